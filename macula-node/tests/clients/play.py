"""Programs that know nothing of Macula use a mesh: grpcio on both sides, a health probe, curl, and a browser.

usage: play.py MACULA FOLDER

MACULA is the program. A picture of the page goes to FOLDER. `cargo xtask clients` runs this with grpcio installed.
"""

import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import browser
import promql

HERE = Path(__file__).parent
SERVICE = "clients.Echo"
PLAIN_SERVICE = "clients.plain"
# Fails at every provider, so that a call of it fails over.
BROKEN_SERVICE = "clients.broken"
CALLS, KILL_AFTER = 300, 100
# How often a probe and curl ask before the provider is killed, and again afterwards.
ASKS = 5
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("MACULA_")}


def start(*command):
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=PLAIN)


class Asking(threading.Thread):
    """Runs a program again and again, each time with a connection of its own. Every run has to succeed and print the same."""

    def __init__(self, expected, *command):
        super().__init__(daemon=True)
        self.expected, self.command = expected, command
        self.ran = threading.Condition()
        self.count, self.failed, self.ended = 0, "", False

    def run(self):
        while not self.ended and not self.failed:
            ran = subprocess.run(self.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=PLAIN)
            with self.ran:
                if ran.returncode != 0 or ran.stdout != self.expected:
                    self.failed = f"{self.command} ended with {ran.returncode}: {ran.stdout}"
                self.count += 1
                self.ran.notify()

    def more(self):
        """Waits for further runs that begin from now on."""
        with self.ran:
            # The present one has begun.
            enough = self.count + 1 + ASKS
            self.ran.wait_for(lambda: self.failed or self.count >= enough)
        assert not self.failed, self.failed

    def end(self):
        self.ended = True
        self.join()
        assert not self.failed, self.failed


class Play:
    def __init__(self, macula):
        self.macula = macula
        self.running, self.pages = [], []

    def server(self):
        server = start(sys.executable, HERE / "server.py")
        self.running.append(server)
        return server.stdout.readline().strip()

    def node(self, *options):
        node = start(self.macula, "node", "--json", "--admin", "off", "--listen", "127.0.0.1:0", *options)
        self.running.append(node)
        node.ready = json.loads(node.stdout.readline())
        address = node.ready["endpoint"].removeprefix("https://")
        node.pinned = f"{node.ready['node_id']}@{address}"
        return node

    def providers(self, node, service):
        asked = [self.macula, "providers", service, "--json", "--bootstrap", node.pinned]
        told = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=PLAIN)
        return len(json.loads(told.stdout)["providers"]) if told.returncode == 0 else 0

    def end(self):
        for page in self.pages:
            page.end()
        for process in reversed(self.running):
            process.kill()
            process.wait()


def calls(play, folder):
    """Two grpcio servers behind two nodes; grpcio, a probe and curl at a third, and its page in a browser. One node is killed while they
    ask."""
    serve = ["--serve", f"{PLAIN_SERVICE}=echo", "--serve", f"{BROKEN_SERVICE}=exec:false", "--ops", "127.0.0.1:0"]
    first = play.node("--serve", f"grpc://127.0.0.1:{play.server()}", *serve)
    second = play.node("--serve", f"grpc://127.0.0.1:{play.server()}", *serve, "--bootstrap", first.pinned)
    entry = play.node("--bootstrap", first.pinned, "--ingress", "127.0.0.1:0", "--ops", "127.0.0.1:0")
    while any(play.providers(entry, service) < 2 for service in [SERVICE, PLAIN_SERVICE, BROKEN_SERVICE]):
        pass
    at = entry.ready["ingress"]
    try:
        urllib.request.urlopen(f"http://{at}/v1/call/{BROKEN_SERVICE}", data=b"")
    except urllib.error.HTTPError as error:
        told = json.load(error)
        assert len(told["attempts"]) == 2, told
    else:
        raise AssertionError("a call of a broken service succeeded")
    asking = [Asking("status: SERVING\n", sys.executable, HERE / "probe.py", at, SERVICE)]
    if shutil.which("curl"):
        call = ["--silent", "--show-error", "--fail", "--data", "hello", f"http://{at}/v1/call/{PLAIN_SERVICE}"]
        asking.append(Asking("hello", "curl", *call))
    else:
        print("curl is not tried: it is not there")
    for one in asking:
        one.start()
        one.more()
    page = page_of(play, entry)
    if page:
        urllib.request.urlopen(f"http://{at}/v1/call/{PLAIN_SERVICE}", data=b"hello")
        page.wait_for(entry.ready["node_id"], "in the mesh", PLAIN_SERVICE, "2 of 2 ready")
    client = start(sys.executable, HERE / "client.py", at, str(CALLS))
    play.running.append(client)
    done = 0
    for line in client.stdout:
        done += line == ".\n"
        if done == KILL_AFTER and second.poll() is None:
            second.kill()
            second.wait()
            for one in asking:
                one.more()
            if page:
                page.wait_for("1 of 2 ready", f"{SERVICE} at {second.ready['node_id'][:10]}: it cannot be reached")
                for theme in ["light", "dark"]:
                    page.picture(folder / f"page-{theme}.png", theme)
                print(f"browser: the page shows the provider that was killed; see {folder}/page-light.png")
    assert client.wait() == 0 and done == CALLS, f"only {done} of {CALLS} calls succeeded"
    for one in asking:
        one.end()
    print(f"grpcio: four kinds of methods, a deadline, a cancellation; {CALLS} calls, none failed while a provider was killed")
    for one in asking:
        print(f"{Path(one.command[1]).name if len(one.command) == 4 else one.command[0]}: {one.count} runs, none failed meanwhile")
    return [entry, first]


def numbers(nodes):
    """What the deployed dashboard and alert rules ask for is in the scrapes of these nodes."""
    scrapes = []
    for node in nodes:
        with urllib.request.urlopen(f"http://{node.ready['ops']}/metrics") as scrape:
            scrapes.append(scrape.read().decode())
    print(f"promql: {promql.check(scrapes)} expressions of the dashboard and the alert rules ask for numbers that are there")


def page_of(play, entry):
    """The node's page in a real browser; `None` without one."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        print("the page is not tried in a browser: there is no chromium")
        return None
    page = browser.Page(program, f"http://{entry.ready['ops']}/")
    play.pages.append(page)
    return page


def main(macula, folder):
    play = Play(macula)
    try:
        numbers(calls(play, Path(folder)))
    finally:
        play.end()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
