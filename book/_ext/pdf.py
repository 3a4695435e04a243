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
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from browser import Page, find_chromium
from bs4 import BeautifulSoup, Tag
from pypdf import PdfReader, PdfWriter

ROOT = Path(__file__).resolve().parent.parent.parent
NO_CHROMIUM = "make pdf needs Chromium or Chrome, and neither was found on this machine (Debian: apt install chromium)."
REFERRING = ("id", "for", "aria-labelledby", "aria-describedby")
UNPRINTED = "script, iframe, a.headerlink, .figure-downloads, details.hide"
PATIENCE = 1800  # seconds for a step: a thousand formulas are set at once, perhaps on a busy machine
MARGINS = dict.fromkeys(("top", "bottom", "left", "right"), "2cm")
FOOTER = '<div style="width: 100%; font: 8px sans-serif; text-align: center"><span class="pageNumber"></span></div>'


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


def article(soup: BeautifulSoup, name: str) -> Tag:
    """Return the content of a page, with identifiers that are valid in the joined document."""
    content = soup.select_one("article.bd-article")
    for unprinted in content.select(UNPRINTED):
        unprinted.decompose()
    for element in content.find_all(True):
        for attribute in REFERRING:
            if value := element.get(attribute):
                element[attribute] = " ".join(anchor(name, part) for part in value.split())
    content.name, content.attrs = "div", {"class": "bd-article"}
    return content


def join(html: Path, toc: dict, config: dict, folder: Path) -> tuple[str, dict[str, str]]:
    """Return the whole book as one document, to be put into a folder, and the titles of its pages in order."""
    pages = {(html / f"{name}.html").resolve(): name for name, _, _ in contents(toc)}
    parsed = {}
    for path, name in pages.items():
        parsed[name] = soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        for element in soup.select("[src], [href]"):
            attribute = "src" if element.get("src") else "href"
            if (link := target(path, element[attribute], pages, folder)) is not None:
                element[attribute] = link
            elif element.name == "a":
                element.unwrap()
    model = next((soup for soup in parsed.values() if "window.MathJax" in str(soup.head)), parsed[toc["root"]])
    scripts = [script for script in model.select("head script") if "mathjax" in str(script).lower()]
    head = "\n".join(map(str, [*model.select("head link[rel=stylesheet]"), *scripts]))
    titles, chapters, listed, last = {}, [], [], ""
    for name, part, depth in contents(toc):
        content = article(parsed[name], name)
        titles[name] = content.find("h1").get_text()
        chapters.append(
            f'<section class="page" id="{anchor(name)}"><p class="part">{escape(part)}</p>{content}</section>'
        )
        if part != last:
            listed.append(f'<p class="part">{escape(part)}</p>')
        # the number of its sheet comes later, into room for three digits
        number = f'<span class="dots"></span><span class="number" id="{anchor(name)}-number">000</span>'
        line = f'<a href="#{anchor(name)}"><span>{escape(titles[name])}</span>{number}</a>'
        listed.append(f'<div style="padding-left: {1.5 * depth}rem">{line}</div>')
        last = part
    title, author = escape(config["title"]), escape(config["author"])
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    return (
        f'<!doctype html><html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8">'
        f"<title>{title}</title>{head}<style>{style}</style></head><body><main class='bd-content'>"
        f'<section class="front"><h1>{title}</h1><p>{author}</p></section>'
        f'<nav class="contents"><h1>Contents</h1>{"".join(listed)}</nav>{"".join(chapters)}</main></body></html>'
    ), titles


def starts(pdf: bytes, names: list[str]) -> dict[str, int]:
    """Return the sheet on which each page of the book begins, counted from 1."""
    reader = PdfReader(io.BytesIO(pdf))
    places = {name.lstrip("/"): place for name, place in reader.named_destinations.items()}
    return {name: reader.get_destination_page_number(places[anchor(name)]) + 1 for name in names}


def add_outline(pdf: bytes, toc: dict, titles: dict[str, str]) -> PdfWriter:
    """Give a PDF the parts and pages of the book as its outline."""
    writer, sheets = PdfWriter(clone_from=io.BytesIO(pdf)), starts(pdf, list(titles))
    above, last = {}, ""
    for name, part, depth in contents(toc):
        if part != last:
            above[-1], last = writer.add_outline_item(part, sheets[name] - 1), part
        above[depth] = writer.add_outline_item(titles[name], sheets[name] - 1, parent=above.get(depth - 1))
    return writer


def make(root: Path, html: Path, output: Path, chromium: str) -> int:
    """Write the PDF of the book below ``root`` that was built in ``html``; return its number of sheets."""
    toc, config = (yaml.safe_load((root / name).read_text(encoding="utf-8")) for name in ("_toc.yml", "_config.yml"))
    output.parent.mkdir(parents=True, exist_ok=True)
    joined = output.with_suffix(".html")
    whole, titles = join(html, toc, config, output.parent)
    joined.write_text(whole, encoding="utf-8")
    options = {"format": "A4", "margin": MARGINS, "scale": 0.8, "print_background": True, "tagged": True}
    options |= {"display_header_footer": True, "header_template": "<span></span>", "footer_template": FOOTER}
    with Page(chromium, timeout=PATIENCE) as browser:
        browser.open(joined)
        sheets = starts(browser.tab.pdf(**options), list(titles))
        numbers = {f"{anchor(name)}-number": number for name, number in sheets.items()}
        setter = "document.getElementById(id).textContent = number"
        browser.evaluate(f"for (const [id, number] of Object.entries({json.dumps(numbers)})) {setter}")
        writer = add_outline(browser.tab.pdf(**options), toc, titles)
    joined.unlink()
    writer.write(output)
    return len(writer.pages)


def main() -> int:
    """Print the book, or with ``--check`` only look for Chromium."""
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # Chromium counts its objects differently
    chromium = find_chromium()
    if chromium is None:
        print(NO_CHROMIUM, file=sys.stderr)
        return 1
    if "--check" not in sys.argv:
        output = ROOT / "_build" / "pdf" / "book.pdf"
        sheets = make(ROOT, ROOT / "_build" / "html", output, chromium)
        print(f"The book is printed: {sheets} pages in {output.relative_to(ROOT)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
