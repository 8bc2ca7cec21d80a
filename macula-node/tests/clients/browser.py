"""A page in a headless Chromium, which is told what to do over a pipe (the Chrome DevTools Protocol, one JSON object to a NUL)."""

import base64
import fcntl
import json
import os
import subprocess
import tempfile

# Chromium reads what it is told from the first of these descriptors, and answers on the second.
TOLD, ANSWERS = 3, 4
# How long a page may take to show what is expected.
WITHIN_MS = 60_000
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1280,1100", "--remote-debugging-pipe"]

# Settles when the page's text has all of the words, and fails with the text when it does not in time.
SHOWS = """
new Promise((shown, missing) => {
  const words = %s;
  const look = () => words.every((word) => document.body.innerText.includes(word)) && shown("");
  new MutationObserver(look).observe(document.body, { subtree: true, childList: true, characterData: true });
  setTimeout(() => missing(new Error(document.body.innerText)), %d);
  look();
})
"""


class Page:
    def __init__(self, program, address):
        told, self.tell = os.pipe()
        self.answers, answers = os.pipe()
        # Away from the two numbers that the child needs.
        told, answers = (fcntl.fcntl(one, fcntl.F_DUPFD, 10) for one in (told, answers))

        def take_places():
            os.dup2(told, TOLD)
            os.dup2(answers, ANSWERS)

        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        command = [program, *FLAGS, f"--user-data-dir={self.folder.name}"]
        self.process = subprocess.Popen(
            command, preexec_fn=take_places, pass_fds=(TOLD, ANSWERS), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(told)
        os.close(answers)
        self.read, self.asked, self.session, self.news = b"", 0, {}, set()
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = {"sessionId": self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self.ask("Page.enable")
        loaded = "Page.loadEventFired"
        self.news = set()
        self.ask("Page.navigate", url=address)
        while loaded not in self.news:
            self.news.add(self.heard().get("method"))

    def ask(self, method, **params):
        self.asked += 1
        message = {"id": self.asked, "method": method, "params": params, **self.session}
        os.write(self.tell, json.dumps(message).encode() + b"\0")
        while (answer := self.heard()).get("id") != self.asked:
            self.news.add(answer.get("method"))
        assert "error" not in answer, answer
        return answer["result"]

    def heard(self):
        """The next answer or piece of news."""
        while True:
            whole, end, rest = self.read.partition(b"\0")
            if end:
                self.read = rest
                return json.loads(whole)
            more = os.read(self.answers, 1 << 16)
            assert more, "the browser has ended"
            self.read += more

    def wait_for(self, *words):
        """Waits until the page shows all of these."""
        script = SHOWS % (json.dumps(words), WITHIN_MS)
        result = self.ask("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        failed = result.get("exceptionDetails", {}).get("exception", {}).get("description")
        assert failed is None, f"the page does not show {words}: {failed}"

    def picture(self, path, theme):
        self.ask("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot", format="png")["data"]))

    def end(self):
        self.process.kill()
        self.process.wait()
        os.close(self.tell)
        os.close(self.answers)
        self.folder.cleanup()
