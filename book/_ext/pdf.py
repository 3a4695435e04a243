"""Print the built book to one PDF, with Chromium: ``make pdf``.

All pages of the menu are joined in order into one document, links between pages become links within it, and MathJax
sets the formulas as on the pages. It is printed twice: the first print tells on which sheet each page begins, for the
table of contents of the second.
"""

from __future__ import annotations

import io
import logging
import re
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urljoin

import yaml
from bs4 import BeautifulSoup
from jinja2 import Template
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
NUMBER = "sheets => document.querySelectorAll('.contents a').forEach(a => a.dataset.sheet = sheets[a.hash.slice(1)])"
HEAD = "link[rel=stylesheet], script[src*=mathjax], script:-soup-contains('MathJax')"
LEFT_OUT = re.compile(r"^file:.*(\.html$|/_downloads/|/_sources/)")  # addresses of the book that are not printed
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


def read(path: Path, pages: dict[str, str]) -> BeautifulSoup:
    """Return a page with links and identifiers that are valid in the joined document."""
    soup, address = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser"), path.as_uri()
    for element in soup.select("[src], [href]"):
        attribute = "src" if element.get("src") else "href"
        element[attribute] = urljoin(address, element[attribute])
        file, _, fragment = element[attribute].partition("#")
        if file in pages:
            element[attribute] = "#" + anchor(pages[file], unquote(fragment))
        elif element.name == "a" and LEFT_OUT.match(file):
            element.unwrap()
    for unprinted in soup.article.select(UNPRINTED):
        unprinted.decompose()
    for element in soup.article.select("[id]"):
        element["id"] = anchor(pages[address], element["id"])
    return soup


def join(html: Path, config: dict) -> tuple[str, list[str]]:
    """Return the whole book as one document, and the names of its pages in order."""
    front = BeautifulSoup((html / "search.html").read_text(encoding="utf-8"), "html.parser")
    menu = front.select_one("nav.bd-links > div")
    links = {unquote(link["href"]).removesuffix(".html"): link for link in menu.select("a")}
    pages = {(html / f"{name}.html").as_uri(): name for name in links}
    chapters, heads = {}, []
    for name, link in links.items():
        page = read(html / f"{name}.html", pages)
        heads.append(page.head)
        chapters[anchor(name)] = page.article.decode_contents()
        link["href"], link.string = f"#{anchor(name)}", page.h1.get_text()
    for fold in menu.select("summary"):
        fold.parent.unwrap()
        fold.decompose()
    head = max(heads, key=lambda head: "MathJax" in str(head)).select(HEAD)  # the first with formulas
    template, style = (Path(__file__).with_suffix(end).read_text(encoding="utf-8") for end in (".jinja", ".css"))
    parts = {"head": "".join(map(str, head)), "style": style, "menu": menu.decode_contents(), "chapters": chapters}
    return Template(template).render(config, **parts), list(links)


def starts(pdf: bytes, names: list[str]) -> dict[str, int]:
    """Return the sheet on which each page of the book begins, counted from 1."""
    reader = PdfReader(io.BytesIO(pdf))
    places = {name.lstrip("/"): place for name, place in reader.named_destinations.items()}
    return {name: reader.get_destination_page_number(places[anchor(name)]) + 1 for name in names}


def make(root: Path, chromium: str) -> str:
    """Print the book that was built below a folder; return a sentence about the PDF."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    output = root / "_build" / "pdf" / "book.pdf"
    output.parent.mkdir(parents=True, exist_ok=True)
    whole, names = join((root / "_build" / "html").resolve(), config)
    joined = output.with_suffix(".html")
    joined.write_text(whole, encoding="utf-8")
    with sync_playwright() as driver:
        tab = driver.chromium.launch(executable_path=chromium, args=FLAGS).new_page()
        tab.set_default_timeout(PATIENCE)
        tab.goto(joined.resolve().as_uri())
        tab.evaluate(DRAWN)
        sheets = starts(tab.pdf(**SHEET), names)
        tab.evaluate(NUMBER, {anchor(name): sheet for name, sheet in sheets.items()})
        tab.pdf(path=output, outline=True, **SHEET)
    joined.unlink()
    return f"The book is printed: {len(PdfReader(output).pages)} pages in {output.relative_to(root)}."


if __name__ == "__main__":
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # Chromium counts its objects differently
    chromium = find_chromium() or sys.exit(NO_CHROMIUM)
    if "--check" not in sys.argv:
        print(make(ROOT, chromium))
