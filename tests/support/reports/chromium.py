"""One page in Chromium or Chrome, driven over the DevTools protocol."""

import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time

CHROME = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe", "--window-size=1200,900"),
)
# Chromium reads commands from descriptor 3 and answers on 4, ended by a zero byte each.
LAUNCH = """
import fcntl, os, sys
heard, said = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(heard, 3), os.dup2(said, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 240  # seconds; only what hangs reaches them
KEY_CODES = {"ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Escape": 27, " ": 32}


class Browser:
    """One page, driven over the DevTools protocol."""

    def __init__(self, profile):
        heard, self.ours = os.pipe()
        self.theirs, said = os.pipe()
        command = [*(sys.executable, "-c", LAUNCH, str(heard), str(said)), CHROME, *FLAGS]
        command += [f"--user-data-dir={profile}", "about:blank"]
        self.log = (profile / "log").open("wb")
        self.process = subprocess.Popen(command, pass_fds=(heard, said), stderr=self.log)
        os.close(heard), os.close(said)
        self.numbers, self.buffer, self.events = itertools.count(1), b"", []
        self.session = None
        pages = self.call("Target.getTargets")["targetInfos"]
        target = next(page["targetId"] for page in pages if page["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "DOM"):
            self.call(f"{domain}.enable")

    def close(self):
        self.process.terminate()
        self.process.wait(PATIENCE)
        os.close(self.ours), os.close(self.theirs)
        self.log.close()

    def receive(self):
        while b"\0" not in self.buffer:
            if not select.select([self.theirs], [], [], PATIENCE)[0]:
                raise TimeoutError("the browser says nothing")
            part = os.read(self.theirs, 1 << 20)
            if not part:
                raise EOFError("the browser has ended")
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def keep(self, event):
        self.events.append(event)
        if event.get("method") == "Page.javascriptDialogOpening":
            self.call("Page.handleJavaScriptDialog", accept=True)

    def call(self, method, **params):
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.ours, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self.keep(answer)

    def open(self, path, fragment=""):
        for url in ("about:blank", path.as_uri() + fragment):  # else a new hash opens nothing
            self.events.clear()
            self.call("Page.navigate", url=url)
            while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
                self.keep(self.receive())

    def run(self, code):
        answer = self.call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, code):
        end = time.monotonic() + PATIENCE
        while not (value := self.run(code)):
            assert time.monotonic() < end, f"never came true: {code}"
            time.sleep(0.02)
        return value

    def press(self, *keys):
        for key in keys:
            code = KEY_CODES.get(key, ord(key[0].upper()))
            named = {"key": key, "windowsVirtualKeyCode": code}
            text = "\r" if key == "Enter" else key if len(key) == 1 else ""
            self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **named)
            self.call("Input.dispatchKeyEvent", type="keyUp", **named)

    def choose(self, field, value):
        event = "input" if field in ("search", "low", "high") else "change"
        self.run(
            f"$('{field}').value = {json.dumps(value)};"
            f"$('{field}').dispatchEvent(new Event('{event}'))"
        )

    def click(self, selector):
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def text(self, field):
        return self.run(f"$('{field}').textContent")

    def hidden(self, field):
        return self.run(f"$('{field}').hidden")

    def names(self):
        """Names of the cards there are, in the order of the document."""
        return self.run(
            "[...document.querySelectorAll('.card')].map((c) => c.querySelector('.name').title)"
        )

    def current(self):
        return self.run("document.querySelector('.card.current .name')?.title")

    def decided(self):
        return dict(
            self.run(
                "[...document.querySelectorAll('.card')].map((c) =>"
                "[c.querySelector('.name').title, c.querySelector('.badge').textContent])"
                ".filter(([, text]) => text)"
            )
        )

    def hash(self):
        return self.run("location.hash")

    def faults(self):
        """Exceptions and broken policies, dialogs and requests to elsewhere so far."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") in ("Runtime.exceptionThrown", "Page.javascriptDialogOpening"):
                found.append(params)
            if event.get("method") == "Log.entryAdded" and params["entry"]["source"] == "security":
                found.append(params)
            if event.get("method") == "Network.requestWillBeSent":
                url = params["request"]["url"]
                found += [url] if not url.startswith(("file:", "data:", "blob:")) else []
        return found
