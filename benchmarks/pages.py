"""What each page of the built book weighs and how soon it is seen: ``python benchmarks/pages.py`` after ``make book``.

A page is opened from disk in headless Chromium without a network, in a window of 1280 x 900, several times; the table
gives medians. *First view* is when the first words or pictures are painted, *complete* when all formulas are set and
all pictures drawn; both are counted from the start of the page's loading. Weight is everything that is read from disk.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build" / "html"
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "book" / "_ext")]

from browser import Page, find_chromium  # noqa: E402

REPETITIONS = 5
FIRST_VIEW = """
new Promise(done => new PerformanceObserver(list => {
  for (const paint of list.getEntriesByName("first-contentful-paint")) done(paint.startTime);
}).observe({type: "paint", buffered: true}))
"""
COMPLETE = "Promise.all([...document.images].map(image => image.decode())).then(() => performance.now())"


def measure(browser: Page, path: Path) -> tuple[float, float, int]:
    """First view and completion in ms, and weight in bytes."""
    browser.open(path)
    complete = browser.evaluate(COMPLETE)
    return browser.evaluate(FIRST_VIEW), complete, sum(file.stat().st_size for file in browser.files)


def main() -> int:
    """Print the table."""
    chromium = find_chromium()
    paths = sorted(path for path in HTML.rglob("*.html") if "_static" not in path.parts)
    paths = [
        path for path in paths if path.name not in ("index.html", "genindex.html", "search.html", "py-modindex.html")
    ]
    if chromium is None or not paths:
        print("no Chromium was found" if paths else "there is no built book: run make book first")
        return 0
    with Page(chromium) as browser:
        browser.resize(1280)
        browser.open(paths[0])  # what the browser itself reads first is not counted
        print(f"{'page':44} {'first view':>12} {'complete':>12} {'weight':>12}")
        for path in paths:
            first, complete, weight = zip(*(measure(browser, path) for _ in range(REPETITIONS)), strict=True)
            name = path.relative_to(HTML).with_suffix("").as_posix()
            times = f"{statistics.median(first):9.0f} ms {statistics.median(complete):9.0f} ms"
            print(f"{name:44} {times} {max(weight) / 1e6:9.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
