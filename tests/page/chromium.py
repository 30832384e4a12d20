"""Headless Chromium, driven through a pipe: no package, no port, no network."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time

BINARY = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
START = """
import fcntl, os, sys
ours = [fcntl.fcntl(int(each), fcntl.F_DUPFD, 10) for each in sys.argv[1:3]]
for ours, theirs in zip(ours, (3, 4)):
    os.dup2(ours, theirs)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Chromium reads commands from descriptor 3 and answers on 4."""
PATIENCE = 60.0


class Chromium:
    """One browser; every view of a page has a tab of its own."""

    def __init__(self, folder):
        here, self.commands = os.pipe()
        self.answers, there = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options += ["--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={folder}"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(here), str(there), BINARY, *options,
             "--remote-debugging-pipe", "about:blank"],
            pass_fds=(here, there), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(here)
        os.close(there)
        os.set_blocking(self.answers, False)
        self.number, self.buffer, self.events = 0, b"", []

    def close(self):
        self.send("Browser.close")
        os.close(self.commands)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.answers)

    def send(self, method, session=None, **parameters):
        """Send a command and wait for its result."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": parameters}
        command |= {} if session is None else {"sessionId": session}
        data = json.dumps(command).encode() + b"\0"
        while data:
            data = data[os.write(self.commands, data) :]
        found = self.wait(lambda message: message.get("id") == self.number)
        assert "error" not in found, (method, found)
        return found["result"]

    def wait(self, wanted):
        """The next message that is wanted; events that come before it are kept."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            *whole, self.buffer = self.buffer.split(b"\0")
            for place, text in enumerate(whole):
                message = json.loads(text)
                if "id" not in message:
                    self.events.append(message)
                if wanted(message):
                    self.buffer = b"\0".join([*whole[place + 1 :], self.buffer])
                    return message
            try:
                data = os.read(self.answers, 2**20)
                assert data, "Chromium has ended"
                self.buffer += data
            except BlockingIOError:
                time.sleep(0.005)
        raise TimeoutError(f"no answer within {PATIENCE} s")

    def view(self, path, width, dark=False, printed=False):
        """Open a file in a tab of this width; returns the tab."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        tab = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable", tab)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        medium = "print" if printed else ""
        self.send("Emulation.setEmulatedMedia", tab, media=medium, features=scheme)
        self.send(
            "Emulation.setDeviceMetricsOverride", tab,
            width=width, height=844, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        self.send("Page.navigate", tab, url=path.as_uri())
        if not any(self.of(tab, "Page.loadEventFired")):
            self.wait(
                lambda m: m.get("method") == "Page.loadEventFired" and m.get("sessionId") == tab
            )
        return tab

    def of(self, tab, *methods):
        """Events of a tab, as far as they have come."""
        return [e for e in self.events if e.get("sessionId") == tab and e["method"] in methods]

    def ask(self, tab, expression):
        """The value of an expression of JavaScript in a tab."""
        answer = self.send("Runtime.evaluate", tab, expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press_tab(self, tab):
        """Press the key that moves the focus."""
        for kind in ("keyDown", "keyUp"):
            key = {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9}
            self.send("Input.dispatchKeyEvent", tab, type=kind, **key)

    def picture(self, tab, path):
        """Write an image of the whole page."""
        options = {"format": "png", "captureBeyondViewport": True}
        data = self.send("Page.captureScreenshot", tab, **options)["data"]
        path.write_bytes(base64.b64decode(data))
