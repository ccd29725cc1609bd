"""A page in headless Chromium, driven by the DevTools protocol: opened, typed at, read."""

import json
import shutil
import subprocess
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)


def need_browser() -> None:
    "Skip the test where there is no browser, or nothing to drive it with."
    if not CHROMIUM:
        pytest.skip("no Chromium or Chrome is installed")
    pytest.importorskip(
        "websocket", reason="websocket-client drives the browser; Jupyter brings it"
    )


class Page:
    "A page, and the browser that has it open."

    prelude = ""  # statements before every expression

    def __init__(self, profile: Path, width: int = 1280, height: int = 800):
        import websocket

        command = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-unsafe-swiftshader",
            "--remote-debugging-port=0",
            f"--window-size={width},{height}",
            f"--user-data-dir={profile}",
            "about:blank",
        ]
        port = profile / "DevToolsActivePort"
        port.unlink(missing_ok=True)  # of the browser that had the profile before
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.until(lambda: port.is_file() and port.read_text().count("\n"))
        targets = json.load(
            urlopen(f"http://127.0.0.1:{port.read_text().split()[0]}/json")
        )
        self.socket = websocket.create_connection(
            next(t["webSocketDebuggerUrl"] for t in targets if t["type"] == "page"),
            suppress_origin=True,
            timeout=120,
        )
        self.n = 0
        self.events = []
        for domain in ("Page", "Network", "Runtime"):
            self(f"{domain}.enable")

    def open(self, address: str, ready: str):
        "Go to an address, and wait until an expression is true there."
        self.js("window.left = true")  # the page before would be ready at once
        self("Page.navigate", url=address)
        self.arrive(ready)

    def reload(self, ready: str):
        "Load the page anew, and wait until an expression is true there."
        self.js("window.left = true")
        self("Page.reload")
        self.arrive(ready)

    def arrive(self, ready: str):
        "Wait for a new page, and until it is painted: what is typed before that is dropped."
        self.until(lambda: self.holds(f"!window.left && ({ready})"))
        painted = "new Promise(done => requestAnimationFrame(() => setTimeout(done)))"
        self("Runtime.evaluate", expression=painted, awaitPromise=True)

    def holds(self, code: str) -> bool:
        "Is an expression true? A page that is just being left has no answer."
        try:
            return bool(self.js(code))
        except AssertionError:
            return False

    def __call__(self, method: str, **params):
        self.n += 1
        self.socket.send(json.dumps({"id": self.n, "method": method, "params": params}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.n:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def js(self, code: str):
        answer = self(
            "Runtime.evaluate",
            expression=f"(() => {{ {self.prelude} return {code} }})()",
            returnByValue=True,
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, true, seconds: float = 60):
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "the page did not get there"
            time.sleep(0.1)

    def key(self, name: str, code: int, text: str = ""):
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if text and kind == "keyDown" else {}
            self(
                "Input.dispatchKeyEvent",
                type=kind,
                key=name,
                windowsVirtualKeyCode=code,
                **typed,
            )

    def mouse(self, x: float, y: float, *kinds: str):
        for kind in kinds:
            self(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                **({} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}),
            )

    def requests(self) -> list[str]:
        "The addresses that the page asked for so far."
        self.js("0")
        sent = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def exceptions(self) -> list[dict]:
        "What went wrong in the page's scripts so far."
        self.js("0")
        return [e for e in self.events if e.get("method") == "Runtime.exceptionThrown"]

    def close(self):
        self.socket.close()
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(20)
