"""Programs that know nothing of Macula use a mesh: grpcio on both sides, and a browser.

usage: play.py MACULA FOLDER

MACULA is the program. A picture of the page goes to FOLDER. `cargo xtask clients` runs this with grpcio installed.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
SERVICE = "clients.Echo"
CALLS, KILL_AFTER = 300, 100
LOOKS = 20
PLAIN = {name: value for name, value in os.environ.items() if not name.startswith("MACULA_")}


def start(*command):
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=PLAIN)


class Play:
    def __init__(self, macula):
        self.macula = macula
        self.running = []

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

    def providers(self, node):
        asked = [self.macula, "providers", SERVICE, "--json", "--bootstrap", node.pinned]
        told = subprocess.run(asked, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=PLAIN)
        return len(json.loads(told.stdout)["providers"]) if told.returncode == 0 else 0

    def end(self):
        for process in reversed(self.running):
            process.kill()
            process.wait()


def calls(play):
    """Two grpcio servers behind two nodes, and a grpcio client at a third. One node is killed while the client calls."""
    first = play.node("--serve", f"grpc://127.0.0.1:{play.server()}")
    second = play.node("--serve", f"grpc://127.0.0.1:{play.server()}", "--bootstrap", first.pinned)
    entry = play.node("--bootstrap", first.pinned, "--ingress", "127.0.0.1:0", "--ops", "127.0.0.1:0")
    while play.providers(entry) < 2:
        pass
    client = start(sys.executable, HERE / "client.py", entry.ready["ingress"], str(CALLS))
    play.running.append(client)
    done = 0
    for line in client.stdout:
        done += line == ".\n"
        if done == KILL_AFTER and second.poll() is None:
            second.kill()
            second.wait()
    assert client.wait() == 0 and done == CALLS, f"only {done} of {CALLS} calls succeeded"
    print(f"grpcio: four kinds of methods, a deadline, a cancellation; {CALLS} calls, none failed while a provider was killed")
    return entry


def page(entry, folder):
    """The page in a real browser."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        print("the page is not tried in a browser: there is no chromium")
        return
    at = f"http://{entry.ready['ops']}/"
    look = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1100", "--timeout=4000"]
    for theme, flags in [("light", []), ("dark", ["--blink-settings=preferredColorScheme=0"])]:
        picture = folder / f"page-{theme}.png"
        subprocess.run([*look, *flags, f"--screenshot={picture}", at], check=True, stderr=subprocess.DEVNULL)
        assert picture.stat().st_size > 10_000, "the picture is empty"
    expected = [entry.ready["node_id"], "in the mesh", SERVICE, "1 of ", "ready"]
    # A browser prints the page when it is loaded, which may be before the page has asked its node for the first time.
    for _ in range(LOOKS):
        shown = subprocess.run([*look, "--dump-dom", at], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        lacking = [words for words in expected if words not in shown.stdout]
        if not lacking:
            break
    assert not lacking, f"the page does not show {lacking}: {shown.stdout}"
    print(f"browser: the page shows the mesh; see {folder}/page-light.png")


def main(macula, folder):
    play = Play(macula)
    try:
        entry = calls(play)
        page(entry, Path(folder))
    finally:
        play.end()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
