"""A headless Chromium for tests, told what to do over a pipe (the DevTools protocol); no further package.

`find_browser` looks for one; tests without are skipped. `Browser` opens pages, and keeps what went wrong on
them and what they asked for.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


def find_browser() -> str | None:
    """Return a Chromium: of the variable SCARCELY_BROWSER, of the PATH, or the one of playwright."""
    named = os.environ.get("SCARCELY_BROWSER")
    if named:
        return named
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        try:
            from playwright.sync_api import sync_playwright
        except ImportError:
            return None
        with sync_playwright() as playwright:
            found = playwright.chromium.executable_path
    return found if found and Path(found).exists() else None


class Browser:
    """A browser with one page.

    Attributes:
        problems: errors of scripts, refused loads and whatever the page wrote to its console.
        requests: addresses that were asked for, the page's own included; ``data:`` left out.
    """

    def __init__(self, path: str) -> None:
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._loaded = 0
        self._number = 0
        self._buffer = b""
        self._profile = tempfile.mkdtemp(prefix="browser")
        # it reads what it is told from its descriptor 3 and answers on 4
        theirs_in, self._in = _pipe()
        self._out, theirs_out = _pipe()
        command = [
            path,
            "--headless",
            "--no-sandbox",  # which refuses to run as root
            "--disable-gpu",
            "--disable-background-networking",
            "--hide-scrollbars",
            "--remote-debugging-pipe",
            f"--user-data-dir={self._profile}",
        ]
        # a shell moves the descriptors to where they are expected, whatever their numbers are here
        moved = f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}'
        self._process = subprocess.Popen(
            ["bash", "-c", moved, "browser", *command],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._session = ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._profile, ignore_errors=True)

    def open(self, page: Path | str, width: int = 1200, height: int = 900, *, dark: bool = False) -> None:
        """Load a file or address at a width and height in CSS pixels, and wait until it is there."""
        self.resize(width, height, dark=dark)
        self.problems.clear()
        self.requests.clear()
        before = self._loaded
        self._call("Page.navigate", url=page.absolute().as_uri() if isinstance(page, Path) else page)
        until = time.monotonic() + 60
        while self._loaded == before:
            self._read(until)
        self.run("new Promise(done => setTimeout(done, 50))")  # what scripts do then

    def resize(self, width: int, height: int = 900, *, dark: bool = False) -> None:
        """Change the size of the page, and which colours it is asked for."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression, of a promise what it comes to."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"])
        return answer["result"].get("value")

    def press(self, *keys: str) -> None:
        """Press keys, as Tab, Enter, Space or letters."""
        codes = {"Tab": 9, "Enter": 13, "Space": 32, "Backspace": 8}
        for key in keys:
            text = {"Enter": "\r", "Space": " "}.get(key, key if len(key) == 1 else "")
            known = {"key": " " if key == "Space" else key, "windowsVirtualKeyCode": codes.get(key, 0)}
            self._call("Input.dispatchKeyEvent", type="keyDown", text=text, **known)
            self._call("Input.dispatchKeyEvent", type="keyUp", **known)

    def click(self, selector: str) -> None:
        """Click with the mouse on the middle of what a CSS selector finds first."""
        x, y = self.run(
            f"""(() => {{
                const found = document.querySelector({json.dumps(selector)});
                found.scrollIntoView({{block: "center", inline: "center"}});
                const box = found.getBoundingClientRect();
                return [box.x + box.width / 2, box.y + box.height / 2];
            }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, out: Path, *, whole: bool = True) -> Path:
        """Write what is seen as PNG; the whole page, or the window alone."""
        options: dict[str, Any] = {}
        if whole:
            size = self._call("Page.getLayoutMetrics")["cssContentSize"]
            options = {"captureBeyondViewport": True, "clip": {**size, "scale": 1}}
        out.write_bytes(
            base64.b64decode(self._call("Page.captureScreenshot", format="png", **options)["data"])
        )
        return out

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + 60
        while True:
            answer = self._read(until)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise AssertionError(f"{method}: {answer['error']}")
                return dict(answer["result"])

    def _read(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._out], [], [], max(0.0, until - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            received = os.read(self._out, 1 << 20)
            if not received:
                raise AssertionError("the browser has ended")
            self._buffer += received
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = dict(json.loads(text))
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, params: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded += 1
        elif event == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.problems.append(details.get("exception", {}).get("description", details["text"]))
        elif event == "Runtime.consoleAPICalled":
            self.problems.append(" ".join(str(a.get("value", a)) for a in params["args"]))
        elif event == "Log.entryAdded":
            self.problems.append(params["entry"]["text"])
        elif event == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.requests.append(params["request"]["url"])


def _pipe() -> tuple[int, int]:
    """Return a pipe whose ends stay clear of descriptors 3 and 4."""
    ends = os.pipe()
    high = fcntl.fcntl(ends[0], fcntl.F_DUPFD_CLOEXEC, 10), fcntl.fcntl(ends[1], fcntl.F_DUPFD_CLOEXEC, 10)
    for end in ends:
        os.close(end)
    return high


def main(arguments: Sequence[str]) -> None:
    """Take a picture of a page: ``python -m tests.browser PAGE OUT.png [WIDTH] [dark]``."""
    page, out, *rest = arguments
    path = find_browser()
    if path is None:
        raise SystemExit("no browser found")
    with Browser(path) as browser:
        width = int(next((word for word in rest if word.isdigit()), 1200))
        browser.open(page if "://" in page else Path(page), width, dark="dark" in rest)
        browser.picture(Path(out))
        for problem in browser.problems:
            print(problem)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
