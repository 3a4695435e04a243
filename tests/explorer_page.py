"""Pages with explorers as the book's build makes them, and their use by keyboard."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from browser import Page
from conftest import ROOT

SCRIPTS = ROOT / "book" / "_static" / "explorers"
FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 0))))"
STATE = "document.querySelector('.explorer').explorer"
VALUES = f"{STATE}.values.values"


def write_page(folder: Path, names: Sequence[str], body: str = "") -> Path:
    """Write a page that loads the scripts of these explorers, and return its path."""
    shutil.copytree(SCRIPTS, folder / "explorers", dirs_exist_ok=True)
    scripts = "".join(f'<script defer src="explorers/{name}.js"></script>' for name in ("base", *names))
    head = '<title>x</title><meta name="viewport" content="width=device-width"><meta charset="utf-8">'
    head += f'<link rel="stylesheet" href="explorers/explorers.css">{scripts}'
    path = folder / "page.html"
    text = f'<!doctype html><html data-theme="light"><head>{head}</head><body>{body}</body></html>'
    path.write_text(text, encoding="utf-8")
    return path


def arrange(page: Page, width: int = 1000, density: float = 1, media: str = "", **features: str) -> None:
    """Set the reader's screen, a phone's if it is narrow, and the media features that the reader's system asks for."""
    phone, size = width < 600, {"width": width, "height": 900, "deviceScaleFactor": density}
    page.send("Emulation.setDeviceMetricsOverride", **size, mobile=phone)
    page.send("Emulation.setTouchEmulationEnabled", enabled=phone)
    wanted = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
    page.send("Emulation.setEmulatedMedia", media=media, features=wanted)
    settle(page)


def settle(page: Page) -> None:
    """Wait until everything that was asked for is drawn."""
    page.evaluate(FRAME)


def press(page: Page, control: str, key: str, times: int = 1) -> None:
    """Focus a control, press a key on it, and wait until the page is drawn."""
    page.evaluate(f"{STATE}.controls[{json.dumps(control)}].input.focus()")
    for _ in range(times):
        page.press(key)
    settle(page)


def push(page: Page, words: str) -> None:
    """Push the button whose text starts with these words."""
    button = f"[...document.querySelectorAll('button')].find(b => b.textContent.startsWith({json.dumps(words)}))"
    page.evaluate(f"{button}.click()")
    settle(page)


def choose(page: Page, **values: Any) -> None:
    """Set controls to values, as a reader would."""
    for name, value in values.items():
        page.evaluate(
            f"(() => {{ const c = {STATE}.controls[{name!r}]; c.value = {json.dumps(value)};"
            "c.input.dispatchEvent(new Event('input')); })()"
        )
    settle(page)


def touch(page: Page, *points: tuple[float, float]) -> None:
    """Put a finger on the first point, move it over the others, and lift it."""
    for kind, (x, y) in zip(["touchStart"] + ["touchMove"] * (len(points) - 1), points, strict=True):
        page.send("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
    page.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    settle(page)


def wait_for(page: Page, condition: str) -> None:
    """Wait until a JavaScript expression is true."""
    page.tab.wait_for_function(condition)
    settle(page)
