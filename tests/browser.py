"""A headless Chromium, driven over its DevTools protocol."""

import json
import shutil
import subprocess
import time
from base64 import b64decode
from contextlib import contextmanager

import httpx
import pytest
from conftest import wait_for
from websockets.sync.client import connect


class Tab:
    """One page: what it is asked, and the events that it sends meanwhile."""

    def __init__(self, socket):
        self._socket, self._number, self.events = socket, 0, []

    def ask(self, method, **parameters):
        """Returns the result of a command of the protocol."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while (message := json.loads(self._socket.recv(timeout=60))).get("id") != self._number:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def go(self, address):
        """Opens an address and waits until it has loaded; its logs and requests are events."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")
        self.events.clear()
        self.ask("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self._socket.recv(timeout=60)))

    def run(self, expression):
        """Returns the value of a JavaScript expression; of a promise, once it is settled."""
        said = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def size(self, width, height=900):
        """Makes the window so many CSS pixels large."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Emulation.setScrollbarsHidden", hidden=True)

    def picture(self, file):
        """Writes the whole page, however long, as PNG."""
        file.write_bytes(b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def complaints(self):
        """Returns what the page has written to the console, or failed at."""
        kinds = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event for event in self.events if event["method"] in kinds]

    def requests(self):
        """Returns the addresses that it has asked for."""
        asked = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [one["request"]["url"] for one in asked]


@contextmanager
def browser(folder):
    """Starts Chromium with its files in ``folder`` and gives its tab; the test is skipped where there is none."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium here: no page can be looked at")
    process = subprocess.Popen(
        [found, "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
         f"--user-data-dir={folder}", "--window-size=1400,3000", "about:blank"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        active = folder / "DevToolsActivePort"
        wait_for(lambda: active.exists() and active.read_text().count("\n"), 30)
        tabs = httpx.get(f"http://127.0.0.1:{active.read_text().splitlines()[0]}/json").json()
        [tab] = [tab for tab in tabs if tab["type"] == "page"]
        with connect(tab["webSocketDebuggerUrl"], max_size=None) as socket:
            yield Tab(socket)
    finally:
        process.kill()
        process.wait()


def text_once(tab, has, seconds=60):
    """Returns the text of the page as people see it, once it ``has`` what is waited for."""
    stop, text = time.monotonic() + seconds, ""
    while not has(text) and time.monotonic() < stop:
        time.sleep(0.5)
        text = tab.run("document.body.innerText")
    return text
