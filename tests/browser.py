"""A page as a reader without a network sees it, in the Chromium that also prints the book."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pdf import DRAWN, FLAGS, find_chromium
from playwright.sync_api import sync_playwright

__all__ = ["Page", "find_chromium"]
LOCAL_SCHEMES = ("data:", "blob:", "about:", "chrome-error:")


class Page:
    """One tab, which records requests that would leave the machine, files that are read, and errors.

    Use as a context manager; ``timeout`` is in seconds and holds for each command.
    """

    def __init__(self, executable: str, timeout: float = 300):
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.files: set[Path] = set()
        self._driver = sync_playwright().start()
        self._browser = self._driver.chromium.launch(executable_path=executable, args=FLAGS, timeout=1000 * timeout)
        unset = dict.fromkeys(("color_scheme", "contrast", "forced_colors", "reduced_motion"), "null")
        self.tab = self._browser.new_page(no_viewport=True, **unset)
        self.tab.set_default_timeout(1000 * timeout)
        self._protocol = self.tab.context.new_cdp_session(self.tab)
        self.tab.on("request", lambda request: self._note(request.url))
        self.tab.on("requestfailed", lambda request: self.complaints.append(f"{request.url}: {request.failure}"))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("console", lambda line: self.complaints.append(line.text) if line.type == "error" else None)
        self.evaluate, self.press, self.click = self.tab.evaluate, self.tab.keyboard.press, self.tab.mouse.click

    def __enter__(self) -> Page:
        return self

    def __exit__(self, *exception: object) -> None:
        self._browser.close()
        self._driver.stop()

    def _note(self, address: str) -> None:
        if address.startswith("file:"):
            self.files.add(Path(unquote(urlsplit(address).path)))
        elif not address.startswith(LOCAL_SCHEMES):
            self.requests.append(address)

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command of Chromium's own protocol and return its result."""
        return self._protocol.send(method, parameters)

    def open(self, path: Path, query: str = "") -> None:
        """Load a file and wait until it, its fonts and its formulas are drawn."""
        self.tab.goto("about:blank")  # what the last page still loads is not part of this one
        for notes in (self.requests, self.complaints, self.files):
            notes.clear()
        self.tab.goto(path.resolve().as_uri() + query)
        self.evaluate(DRAWN)
