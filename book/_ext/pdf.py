"""Print the built book to one PDF, with Chromium: ``make pdf``.

All pages of ``_toc.yml`` are joined in order into one document, links between pages become links within it, and
MathJax sets the formulas as on the pages. It is printed twice: the first print tells on which sheet each page begins,
for the table of contents of the second.
"""

from __future__ import annotations

import io
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright
from pypdf import PdfReader, PdfWriter

ROOT = Path(__file__).resolve().parent.parent.parent
NO_CHROMIUM = "make pdf needs Chromium or Chrome, and neither was found on this machine (Debian: apt install chromium)."
FLAGS = ("--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", "--no-sandbox", "--proxy-server=direct://")
DRAWN = """async () => {
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
  await new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)));
}"""
UNPRINTED = "script, iframe, a.headerlink, .figure-downloads, details.hide"
PATIENCE = 1_800_000  # ms for a step: a thousand formulas are set at once, perhaps on a busy machine
SHEET = {"format": "A4", "scale": 0.8, "print_background": True, "tagged": True, "display_header_footer": True}
SHEET["margin"] = dict.fromkeys(("top", "bottom", "left", "right"), "2cm")
SHEET["header_template"] = "<span></span>"
SHEET["footer_template"] = '<div style="width: 100%; font-size: 8px; text-align: center" class="pageNumber"></div>'


def find_chromium() -> str | None:
    """Return the path of Chromium or Chrome, or None where neither is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


def contents(toc: dict) -> Iterator[tuple[str, str, int]]:
    """Yield the name, the part and the depth of each page in the order of ``_toc.yml``."""

    def walk(entries: list[dict], part: str, depth: int) -> Iterator[tuple[str, str, int]]:
        for entry in entries:
            yield entry["file"], part, depth
            yield from walk(entry.get("sections", []), part, depth + 1)

    yield toc["root"], "", 0
    for part in toc.get("parts", [toc]):
        yield from walk(part.get("chapters", []), part.get("caption", ""), 0)


def anchor(name: str, fragment: str = "") -> str:
    """Return the identifier of a page, or of a place on it, in the joined document."""
    return name.replace("/", "-") + (f"--{fragment}" if fragment else "")


def target(path: Path, link: str, pages: dict[Path, str], folder: Path) -> str | None:
    """Return a page's link as seen from the joined document in a folder, or None if it leads to nothing printed."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return link
    file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if file in pages:
        return f"#{anchor(pages[file], unquote(parts.fragment))}"
    return None if {file.suffix, *file.parts} & {".html", "_downloads", "_sources"} else os.path.relpath(file, folder)


def read(path: Path, pages: dict[Path, str], folder: Path) -> BeautifulSoup:
    """Return a page with links and identifiers that are valid in the joined document."""
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    for element in soup.select("[src], [href]"):
        attribute = "src" if element.get("src") else "href"
        if (link := target(path, element[attribute], pages, folder)) is not None:
            element[attribute] = link
        elif element.name == "a":
            element.unwrap()
    for unprinted in soup.article.select(UNPRINTED):
        unprinted.decompose()
    for element in soup.article.select("[id]"):
        element["id"] = anchor(pages[path], element["id"])
    return soup


def join(html: Path, toc: dict, config: dict, folder: Path) -> tuple[str, dict[str, str]]:
    """Return the whole book as one document, to be put into a folder, and the titles of its pages in order."""
    pages = {(html / f"{name}.html").resolve(): name for name, _, _ in contents(toc)}
    read_pages = {name: read(path, pages, folder) for path, name in pages.items()}
    titles = {name: page.h1.get_text() for name, page in read_pages.items()}
    head = max((page.head for page in read_pages.values()), key=lambda head: "window.MathJax" in str(head))
    scripts = [script for script in head.select("script") if "mathjax" in str(script).lower()]
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    chapters, listed, last = [], [], ""
    for name, part, depth in contents(toc):
        body = read_pages[name].article.decode_contents()
        chapters.append(f'<section class="page" id="{anchor(name)}"><div class="bd-article">{body}</div></section>')
        # the number of its sheet comes later, into room for three digits
        number = f'<span class="dots"></span><span class="number" id="{anchor(name)}-number">000</span>'
        link = f'<a href="#{anchor(name)}"><span>{escape(titles[name])}</span>{number}</a>'
        caption = f'<p class="part">{escape(part)}</p>' if part != last else ""
        listed.append(f'{caption}<div style="padding-left: {1.5 * depth}rem">{link}</div>')
        last = part
    title, author = escape(config["title"]), escape(config["author"])
    whole = f"""<!doctype html><html lang="en" data-theme="light" data-mode="light">
<head><meta charset="utf-8"><title>{title}</title>
{"".join(map(str, [*head.select("link[rel=stylesheet]"), *scripts]))}<style>{style}</style></head>
<body><main class="bd-content"><section class="front"><h1>{title}</h1><p>{author}</p></section>
<nav class="contents"><h1>Contents</h1>{"".join(listed)}</nav>{"".join(chapters)}</main></body></html>"""
    return whole, titles


def starts(pdf: bytes, names: list[str]) -> dict[str, int]:
    """Return the sheet on which each page of the book begins, counted from 1."""
    reader = PdfReader(io.BytesIO(pdf))
    places = {name.lstrip("/"): place for name, place in reader.named_destinations.items()}
    return {name: reader.get_destination_page_number(places[anchor(name)]) + 1 for name in names}


def print_twice(joined: Path, names: list[str], chromium: str) -> tuple[bytes, dict[str, int]]:
    """Return the PDF of the joined document, with a complete table of contents, and where each page begins."""
    with sync_playwright() as driver:
        tab = driver.chromium.launch(executable_path=chromium, args=FLAGS).new_page()
        tab.set_default_timeout(PATIENCE)
        tab.goto(joined.resolve().as_uri())
        tab.evaluate(DRAWN)
        sheets = starts(tab.pdf(**SHEET), names)
        numbers = json.dumps({f"{anchor(name)}-number": number for name, number in sheets.items()})
        tab.evaluate(f"for (const [id, n] of Object.entries({numbers})) document.getElementById(id).textContent = n")
        return tab.pdf(**SHEET), sheets


def make(root: Path, chromium: str) -> str:
    """Print the book that was built below a folder; return a sentence about the PDF."""
    toc, config = (yaml.safe_load((root / name).read_text(encoding="utf-8")) for name in ("_toc.yml", "_config.yml"))
    output = root / "_build" / "pdf" / "book.pdf"
    output.parent.mkdir(parents=True, exist_ok=True)
    joined = output.with_suffix(".html")
    whole, titles = join(root / "_build" / "html", toc, config, output.parent)
    joined.write_text(whole, encoding="utf-8")
    pdf, sheets = print_twice(joined, list(titles), chromium)
    joined.unlink()
    writer, above, last = PdfWriter(clone_from=io.BytesIO(pdf)), {}, ""
    for name, part, depth in contents(toc):  # the outline: parts, and pages below them
        if part != last:
            above[-1], last = writer.add_outline_item(part, sheets[name] - 1), part
        above[depth] = writer.add_outline_item(titles[name], sheets[name] - 1, parent=above.get(depth - 1))
    writer.write(output)
    return f"The book is printed: {len(writer.pages)} pages in {output.relative_to(root)}."


if __name__ == "__main__":
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # Chromium counts its objects differently
    chromium = find_chromium()
    if chromium is None:
        sys.exit(NO_CHROMIUM)
    if "--check" not in sys.argv:
        print(make(ROOT, chromium))
