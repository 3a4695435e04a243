"""Print the built book to one PDF, with Chromium: ``make pdf``.

All pages of the menu are joined in order into one document, links between pages become links within it, and MathJax
sets the formulas as on the pages. It is printed twice: the first print tells on which sheet each page begins, for the
table of contents of the second.
"""

from __future__ import annotations

import io
import logging
import os
import shutil
import sys
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from bs4 import BeautifulSoup
from playwright.sync_api import sync_playwright
from pypdf import PdfReader

ROOT = Path(__file__).resolve().parent.parent.parent
NO_CHROMIUM = "make pdf needs Chromium or Chrome, and neither was found on this machine (Debian: apt install chromium)."
FLAGS = ("--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND", "--no-sandbox", "--proxy-server=direct://")
DRAWN = """async () => {
  await window.MathJax?.startup?.promise;
  await document.fonts.ready;
  await new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)));
}"""
NUMBER = "sheets => { for (const [id, n] of Object.entries(sheets)) document.getElementById(id).textContent = n; }"
UNPRINTED = "script, iframe, a.headerlink, .figure-downloads, details.hide"
PATIENCE = 1_800_000  # ms for a step: a thousand formulas are set at once, perhaps on a busy machine
SHEET = {"format": "A4", "scale": 0.8, "print_background": True, "tagged": True, "display_header_footer": True}
SHEET["margin"] = dict.fromkeys(("top", "bottom", "left", "right"), "2cm")
SHEET["header_template"] = "<span></span>"
SHEET["footer_template"] = '<div style="width: 100%; font-size: 8px; text-align: center" class="pageNumber"></div>'


def find_chromium() -> str | None:
    """Return the path of Chromium or Chrome, or None where neither is installed."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


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


def join(html: Path, root: str, config: dict, folder: Path) -> tuple[str, list[str]]:
    """Return the whole book as one document, to be put into a folder, and the names of its pages in order."""
    first = html.resolve() / f"{root}.html"
    menu = BeautifulSoup(first.read_text(encoding="utf-8"), "html.parser").select_one("nav.bd-links > div")
    links = {(first.parent / (link["href"].rstrip("#") or first)).resolve(): link for link in menu.select("a")}
    pages = {path: path.relative_to(html.resolve()).with_suffix("").as_posix() for path in links}
    chapters, heads = [], []
    for path, name in pages.items():
        page = read(path, pages, folder)
        heads.append(page.head)
        body = page.article.decode_contents()
        chapters.append(f'<section class="page" id="{anchor(name)}"><div class="bd-article">{body}</div></section>')
        # the number of its sheet comes later, into room for three digits
        number = f'<span class="dots"></span><span class="number" id="{anchor(name)}-number">000</span>'
        links[path]["href"], links[path].string = f"#{anchor(name)}", page.h1.get_text()
        links[path].append(BeautifulSoup(number, "html.parser"))
    for fold in menu.select("summary"):
        fold.parent.unwrap()
        fold.decompose()
    head = next((head for head in heads if "window.MathJax" in str(head)), heads[0])
    scripts = [script for script in head.select("script") if "mathjax" in str(script).lower()]
    style = Path(__file__).with_suffix(".css").read_text(encoding="utf-8")
    title, author = escape(config["title"]), escape(config["author"])
    whole = f"""<!doctype html><html lang="en" data-theme="light" data-mode="light">
<head><meta charset="utf-8"><title>{title}</title>
{"".join(map(str, [*head.select("link[rel=stylesheet]"), *scripts]))}<style>{style}</style></head>
<body><main class="bd-content"><section class="front"><h1>{title}</h1><p>{author}</p></section>
<nav class="contents"><h1>Contents</h1>{menu.decode_contents()}</nav>{"".join(chapters)}</main></body></html>"""
    return whole, list(pages.values())


def starts(pdf: bytes, names: list[str]) -> dict[str, int]:
    """Return the sheet on which each page of the book begins, counted from 1."""
    reader = PdfReader(io.BytesIO(pdf))
    places = {name.lstrip("/"): place for name, place in reader.named_destinations.items()}
    return {name: reader.get_destination_page_number(places[anchor(name)]) + 1 for name in names}


def make(root: Path, chromium: str) -> str:
    """Print the book that was built below a folder; return a sentence about the PDF."""
    toc, config = (yaml.safe_load((root / name).read_text(encoding="utf-8")) for name in ("_toc.yml", "_config.yml"))
    output = root / "_build" / "pdf" / "book.pdf"
    output.parent.mkdir(parents=True, exist_ok=True)
    whole, names = join(root / "_build" / "html", toc["root"], config, output.parent)
    joined = output.with_suffix(".html")
    joined.write_text(whole, encoding="utf-8")
    with sync_playwright() as driver:
        tab = driver.chromium.launch(executable_path=chromium, args=FLAGS).new_page()
        tab.set_default_timeout(PATIENCE)
        tab.goto(joined.resolve().as_uri())
        tab.evaluate(DRAWN)
        sheets = starts(tab.pdf(**SHEET), names)
        tab.evaluate(NUMBER, {f"{anchor(name)}-number": number for name, number in sheets.items()})
        tab.pdf(path=output, outline=True, **SHEET)
    joined.unlink()
    return f"The book is printed: {len(PdfReader(output).pages)} pages in {output.relative_to(root)}."


if __name__ == "__main__":
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # Chromium counts its objects differently
    chromium = find_chromium()
    if chromium is None:
        sys.exit(NO_CHROMIUM)
    if "--check" not in sys.argv:
        print(make(ROOT, chromium))
