"""Headless Chromium by its own protocol (https://chromedevtools.github.io/devtools-protocol/) over two pipes, which
needs no driver and no library."""

import base64
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Without the sandbox, which needs more rights than a container has: the pages are our own.
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking", "--remote-debugging-pipe"),
)

CTRL = 2
"""As a held key."""
KEYS = {"Tab": 9, "Space": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}


class Browser:
    """One browser with one page; notes every message of its console and every request."""

    def __init__(self, program: str, profile: Path) -> None:
        to_read, self._commands = os.pipe()
        self._answers, to_write = os.pipe()

        # Chromium reads commands from descriptor 3 and answers on 4; a shell puts them there in the child alone.
        shell = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        command = ["bash", "-c", shell, program, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(to_read, to_write), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[Mapping[str, Any]] = []
        [page] = [each for each in self.call("Target.getTargets")["targetInfos"] if each["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command, and its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            told = self._next()
            if told.get("id") == self._number:
                assert "error" not in told, (method, told["error"])
                return told["result"]
            self.events.append(told)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            more = os.read(self._answers, 1 << 20)
            assert more, "the browser has gone"
            self._buffer += more
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, dark: bool = False, width: int = 1200, height: int = 900) -> None:
        """Open a file and wait until all of its plots are drawn."""
        self.events.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Page.navigate", url=page.absolute().as_uri())
        self.wait("document.documentElement?.dataset.drawn === 'yes'")

    def wait(self, condition: str) -> None:
        """Wait until the page says so, at most 20 seconds."""
        self.value(
            "new Promise((done, fail) => { setTimeout(() => fail('it does not come'), 20000);"
            f"const look = () => ({condition}) ? done() : setTimeout(look, 20); look(); }})"
        )

    def value(self, expression: str) -> Any:
        """What the page computes; promises are waited for."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def point_at(self, x: float, y: float) -> None:
        """Move the mouse there; pixels of the window."""
        for nudge in (1, 0):
            self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x + nudge, y=y)

    def turn_wheel(self, x: float, y: float, held: int = 0) -> None:
        """Turn the wheel there, away from the hand, while these keys are held."""
        self.point_at(x, y)
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-400, modifiers=held)

    def drag(self, x: float, y: float, to_x: float) -> None:
        """Press the left button there, and let it go at `to_x`."""
        self.point_at(x, y)
        for kind, at in (("mousePressed", x), ("mouseMoved", to_x), ("mouseReleased", to_x)):
            self.call("Input.dispatchMouseEvent", type=kind, x=at, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press a key and let it go; `Space` types one."""
        typed = {"key": " ", "text": " "} if key == "Space" else {"key": key}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, code=key, windowsVirtualKeyCode=KEYS[key], **typed)

    def screenshot(self, path: Path, whole: bool = True) -> Path:
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))
        return path

    def requests(self) -> list[str]:
        """Addresses that the page has asked for."""
        return [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[Any]:
        """Errors and warnings: exceptions, the console's, and the browser's own."""
        found: list[Any] = []
        for event in self.events:
            told = event["params"]
            match event["method"]:
                case "Runtime.exceptionThrown":
                    found.append(told["exceptionDetails"])
                case "Runtime.consoleAPICalled" if told["type"] in ("error", "warning", "assert"):
                    found.append([each.get("value") for each in told["args"]])
                case "Log.entryAdded" if told["entry"]["level"] in ("error", "warning"):
                    found.append(told["entry"]["text"])
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)
