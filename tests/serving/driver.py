"""A headless browser that a test drives: opens a page, presses keys, sets the window, asks the page. No package needed.

Chromium is spoken to through two pipes (`--remote-debugging-pipe`), in messages of its DevTools protocol.
"""

import base64
import fcntl
import json
import os
import select
import subprocess
import time
from pathlib import Path
from typing import Any

from tests.experiments.browser import FLAGS, find

SECONDS = 60
"""What takes longer hangs."""

ONLY_LOOPBACK = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
KEYS = {"Enter": (13, "\r"), "Tab": (9, ""), "Escape": (27, ""), " ": (32, " ")}
# Pipes go to descriptors 3 and 4, wherever they were.
SHELL = 'exec 3<&"$1" 4>&"$2"; shift 2; exec "$@"'


class Driver:
    """One window of a browser process; use it in a `with` block.

    Attributes:
        problems: what the page's scripts raised and what the browser refused to it, in words.
        asked_for: addresses of all requests of the page.
    """

    def __init__(self, folder: Path) -> None:
        self.problems: list[str] = []
        self.asked_for: list[str] = []
        self._number, self._rest = 0, b""
        self._answers: dict[int, dict[str, Any]] = {}
        read, self._write = (_high(end) for end in os.pipe())
        self._read, write = (_high(end) for end in os.pipe())
        flags = [*(flag for flag in FLAGS if not flag.startswith("--host-resolver")), ONLY_LOOPBACK]
        command = [
            find(),
            *flags,
            "--remote-debugging-pipe",
            f"--user-data-dir={folder / 'profile'}",
            "about:blank",
        ]
        self._process = subprocess.Popen(
            ["bash", "-c", SHELL, "bash", str(read), str(write), *command],
            pass_fds=(read, write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(read)
        os.close(write)
        self._session: str | None = None
        target = self._page_target()
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> "Driver":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.kill()
        self._process.wait()

    def window(self, width: int, height: int, *, dark: bool = False) -> None:
        """Size of the window in pixels, and the colour scheme that the person prefers."""
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        """Go to an address and wait until it has loaded."""
        self._call("Page.navigate", url=address)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page, as JSON can hold it; a promise is awaited."""
        told = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until the expression is true in the page."""
        deadline = time.monotonic() + SECONDS
        while not self.ask(f"Boolean({expression})"):
            shown = self.ask("document.body ? document.body.innerText.slice(0, 2000) : ''")
            assert time.monotonic() < deadline, (
                f"{expression} did not become true; problems: {self.problems}\n{shown}"
            )
            time.sleep(0.05)

    def press(self, key: str, *, shift: bool = False) -> None:
        """One key: Enter, Tab, Escape or a blank."""
        code, text = KEYS[key]
        about = {
            "key": key,
            "code": "Space" if key == " " else key,
            "windowsVirtualKeyCode": code,
            "modifiers": 8 * shift,
        }
        self._call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **about)
        self._call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        """A text into what has the focus."""
        self._call("Input.insertText", text=text)

    def tab_to(self, expression: str, at_most: int = 60) -> None:
        """Press Tab until the expression, about the element `it` that has the focus, is true."""
        for _ in range(at_most):
            if self.ask(f"(it => Boolean({expression}))(document.activeElement)"):
                return
            self.press("Tab")
        raise AssertionError(f"{at_most} times Tab do not lead to {expression}")

    def click(self, selector: str) -> None:
        """A click of the pointer in the middle of the first element that the selector names."""
        middle = (
            "(node => { node.scrollIntoView({block: 'center'}); const box = node.getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })"
        )
        spot = self.ask(f"{middle}(document.querySelector({json.dumps(selector)}))")
        for kind in ("mousePressed", "mouseReleased"):
            self._call(
                "Input.dispatchMouseEvent", type=kind, x=spot[0], y=spot[1], button="left", clickCount=1
            )

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG file."""
        shot = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def _page_target(self) -> str:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for target in self._call("Target.getTargets")["targetInfos"]:
                if target["type"] == "page":
                    return target["targetId"]
            time.sleep(0.05)
        raise AssertionError("the browser has no window")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while self._number not in self._answers:
            self._receive(deadline - time.monotonic(), method)
        answer = self._answers.pop(self._number)
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _receive(self, seconds: float, method: str) -> None:
        ready, _, _ = select.select([self._read], [], [], max(seconds, 0))
        assert ready, f"the browser does not answer {method}"
        part = os.read(self._read, 1 << 20)
        assert part, f"the browser ended at {method}"
        *messages, self._rest = (self._rest + part).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            else:
                self._note(message["method"], message["params"])

    def _note(self, event: str, about: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(about["exceptionDetails"]))
        elif event == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.problems.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
        elif event == "Network.requestWillBeSent":
            self.asked_for.append(about["request"]["url"])


def _high(descriptor: int) -> int:
    """The same end of a pipe at a number that the shell does not overwrite."""
    moved = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 10)
    os.close(descriptor)
    return moved
