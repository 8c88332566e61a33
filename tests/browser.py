"""A real browser for tests: Chromium without a window, driven through its own DevTools protocol."""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS_TO_START, SECONDS_TO_ANSWER = 60, 20
FLAGS = (
    *("--headless=new", "--remote-debugging-port=0", "--no-first-run", "--no-default-browser-check", "--disable-gpu"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions"),
    *("--no-proxy-server", "--disable-dev-shm-usage", "--force-color-profile=srgb", "--hide-scrollbars"),
)
MODIFIERS = {"Alt": 1, "Ctrl": 2, "Meta": 4, "Shift": 8}
CODES = {
    "Enter": 13,
    "Escape": 27,
    "Tab": 9,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Space": 32,
}
TYPED = {"Enter": "\r", "Space": " "}
NAVIGATED = "Inspected target navigated or closed"
READY = "document.documentElement?.dataset.ready === 'true'"


def find_chromium() -> str | None:
    """Where a browser is installed that speaks the protocol; `NEXA_CHROMIUM` names another."""
    return os.environ.get("NEXA_CHROMIUM") or next((found for name in NAMES if (found := shutil.which(name))), None)


@contextlib.contextmanager
def start_browser(folder: Path) -> Iterator["Browser"]:
    """A running browser with an empty profile in `folder`."""
    program = find_chromium()
    assert program is not None
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # it refuses to be root's in one
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [program, *FLAGS, *sandbox, f"--user-data-dir={folder}", "about:blank"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    browser = None
    try:
        browser = Browser(_address(process, folder))
        yield browser
    finally:
        if browser is not None:
            browser.close()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _address(process: subprocess.Popen[bytes], folder: Path) -> str:
    """The browser's WebSocket, which it writes into its profile."""
    port = folder / "DevToolsActivePort"
    ends = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < ends:
        lines = port.read_text().split("\n") if port.exists() else []
        if len(lines) > 1:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        assert process.poll() is None, (folder.parent / f"{folder.name}.log").read_text()
        time.sleep(0.05)
    raise TimeoutError(f"{process.args} did not start in {SECONDS_TO_START} s")


class Browser:
    """The one connection to a browser."""

    def __init__(self, address: str):
        self._loop = asyncio.new_event_loop()
        self._numbers = itertools.count(1)
        self._session = self._run(_open_session())
        self._socket = self._run(self._session.ws_connect(address, max_msg_size=0))

    def open(self, url: str, *, width: int = 1280, height: int = 800) -> "Page":
        """A new tab in a profile of its own, when the page in it is ready."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        page.resize(width, height)
        page.go(url)
        return page

    def call(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of one command of the protocol."""
        return self._run(self._call(method, session, parameters))

    def close(self) -> None:
        self._run(self._socket.close())
        self._run(self._session.close())
        self._loop.close()

    async def _call(self, method: str, session: str | None, parameters: dict[str, Any]) -> dict[str, Any]:
        number = next(self._numbers)
        about = {} if session is None else {"sessionId": session}
        await self._socket.send_json({"id": number, "method": method, "params": parameters, **about})
        async with asyncio.timeout(SECONDS_TO_ANSWER):
            while True:
                answer = await self._socket.receive_json()
                if answer.get("id") == number:
                    break
        if "error" in answer:
            kind = Navigated if answer["error"].get("message") == NAVIGATED else AssertionError
            raise kind(f"{method}: {answer['error']}")
        return answer["result"]

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(work)


async def _open_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession()


class Navigated(Exception):
    """What was asked of a page is lost, because the next one has come meanwhile."""


class Page:
    """A tab."""

    def __init__(self, browser: Browser, session: str):
        self._browser, self._session = browser, session

    def go(self, url: str) -> None:
        """Load a page, and wait until it says that it is ready."""
        self.call("Page.navigate", url=url)
        self.wait(READY)

    def reload(self) -> None:
        self.read("document.documentElement.dataset.ready = ''")
        self.call("Page.reload")
        self.wait(READY)

    def read(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, f"{expression}: {json.dumps(found)}"
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until a JavaScript expression is true."""
        ends = time.monotonic() + SECONDS_TO_ANSWER
        while not self._is_true(expression):
            assert time.monotonic() < ends, (
                f"never true: {expression}; the page says: {self.read('document.body.innerText')}"
            )
            time.sleep(0.01)

    def _is_true(self, expression: str) -> bool:
        try:
            return bool(self.read(expression))
        except Navigated:
            return False

    def press(self, *keys: str) -> None:
        """Press keys one after the other: `a`, `A`, `Enter`, `Ctrl+Enter`."""
        for each in keys:
            *held, key = each.split("+") if len(each) > 1 else [each]
            if len(key) == 1 and key.isupper():
                held.append("Shift")
            about = {
                "modifiers": sum(MODIFIERS[name] for name in held),
                "key": {"Space": " "}.get(key, key),
                "windowsVirtualKeyCode": CODES.get(key, ord(key[0].upper())),
            }
            text = TYPED.get(key, key if len(key) == 1 else "")
            typed = {"text": text} if text and "Ctrl" not in held else {}
            self.call("Input.dispatchKeyEvent", type="keyDown" if typed else "rawKeyDown", **about, **typed)
            self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        """Put text where the focus is."""
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Click in the middle of an element with the mouse."""
        box = self.read(
            f"(e => (e.scrollIntoView({{block: 'nearest'}}), e.getBoundingClientRect().toJSON()))({_find(selector)})"
        )
        at = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **at)

    def text(self, selector: str) -> str:
        """What an element says."""
        return self.read(f"{_find(selector)}.textContent")

    def resize(self, width: int, height: int, *, is_phone: bool = False, is_dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if is_phone else 1,
            mobile=is_phone,
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=is_phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def save_picture(self, path: Path) -> None:
        """Write what is seen to a PNG file."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, session=self._session, **parameters)


def _find(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)})"
