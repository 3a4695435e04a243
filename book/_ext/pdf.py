"""Print the built book to one PDF, with Chromium: ``make pdf``.

All pages of ``_toc.yml`` are joined in its order into one document, links between pages become links within it, and
formulas are set by the same script as on the pages. It is printed twice: the first print tells on which page each
chapter begins, which its contents say in the second.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import re
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from browser import Page, find_chromium
from bs4 import BeautifulSoup, Tag
from pypdf import PdfReader, PdfWriter
from pypdf.generic import NameObject, TextStringObject

ROOT = Path(__file__).resolve().parent.parent.parent
NO_CHROMIUM = "make pdf needs Chromium or Chrome, and neither was found on this machine (Debian: apt install chromium)."
REFERRING = ("id", "for", "headers", "aria-labelledby", "aria-describedby", "aria-controls")
PATIENCE = 1800  # seconds for a step: a thousand formulas are set at once, perhaps on a busy machine
STYLE = """
body { background: white; }
main { max-width: none; padding: 0; }
section.page { break-before: page; }
section.page > p.part, .sheets > p.part { margin: 0; font-size: 0.9rem; font-weight: 400; color: #444; }
h1, h2, h3, h4, dt { break-after: avoid; }
p, li { orphans: 3; widows: 3; }
figure, table tr, div.math, div.cell_input, div.reproduce, dt { break-inside: avoid; }
figure img { max-height: 19cm; width: auto !important; max-width: 100% !important; }
pre { white-space: pre-wrap !important; overflow-wrap: anywhere; overflow: visible !important; }
div, table { overflow: visible !important; }
table { font-size: 0.9em; }
div.math { font-size: 0.92em; }
td code, td code span { white-space: normal !important; overflow-wrap: anywhere; }
.front { display: flex; flex-direction: column; justify-content: center; min-height: 20cm; }
.front h1 { font-size: 2.2rem; line-height: 1.25; }
.sheets { break-before: page; }
.sheets div p.part { margin: 1rem 0 0.2rem; font-weight: 600; }
.sheets ol { list-style: none; margin: 0; padding: 0; }
.sheets ol ol { padding-left: 1.5rem; }
.sheets li > a { display: flex; gap: 0.5rem; text-decoration: none; color: inherit; }
.sheets .number { min-width: 2em; text-align: right; }
.sheets .dots { flex: 1; border-bottom: 1px dotted #888; margin-bottom: 0.35em; }
"""
FOOTER = """
<div style="width: 100%; font: 8px sans-serif; color: #444; text-align: center">
  <span class="pageNumber"></span>
</div>
"""


class Entry:
    """A page of the table of contents: its name, its part, whether that begins with it, and the pages below it."""

    def __init__(self, entry: dict, part: str = "", first: bool = False):
        self.name: str = entry.get("root") or entry["file"]
        self.part = part
        self.first = first
        self.children = [Entry(child, part) for child in entry.get("sections", [])]

    def walk(self) -> Iterator[Entry]:
        yield self
        for child in self.children:
            yield from child.walk()


def contents(toc: dict) -> list[Entry]:
    """The entries of ``_toc.yml`` at its top level, in order."""
    entries = [Entry({"root": toc["root"]})]
    for part in toc.get("parts", [{"chapters": toc.get("chapters", [])}]):
        for number, chapter in enumerate(part["chapters"]):
            entries.append(Entry(chapter, part.get("caption", ""), number == 0))
    return entries


def anchor(name: str, fragment: str = "") -> str:
    """Where a page, or a place on it, is in the joined document."""
    return name.replace("/", "-") + (f"--{fragment}" if fragment else "")


def article(html: Path, name: str, names: set[str], output: Path) -> tuple[str, Tag]:
    """Title and content of a page, with every name and link on it made valid in the joined document."""
    path = html / f"{name}.html"
    soup = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
    content = soup.select_one("article.bd-article")
    for unwanted in content.select("script, iframe, a.headerlink, .figure-downloads, details.hide"):
        unwanted.decompose()
    title = content.find("h1").get_text()
    for element in content.find_all(True):
        for attribute in REFERRING:
            if value := element.get(attribute):
                values = value if isinstance(value, list) else value.split()
                element[attribute] = " ".join(anchor(name, one) for one in values)
        for attribute in ("src", "href"):
            if value := element.get(attribute):
                link = target(html, path, name, value, names, output)
                if link is None:
                    element.unwrap()
                else:
                    element[attribute] = link
    return title, content


def target(html: Path, path: Path, name: str, link: str, names: set[str], output: Path) -> str | None:
    """A link of a page as seen from the joined document, or None where it leads to nothing that is printed."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return link
    file = (path.parent / unquote(parts.path)).resolve() if parts.path else path.resolve()
    if file.suffix == ".html":
        page = file.relative_to(html.resolve()).with_suffix("").as_posix()
        return f"#{anchor(page, unquote(parts.fragment))}" if page in names else None
    if "_downloads" in file.parts or "_sources" in file.parts:
        return None
    return Path(os.path.relpath(file, output.parent)).as_posix()


def head(html: Path, names: list[str], output: Path) -> str:
    """The style sheets of the pages, and what sets formulas, from the first page that has any."""
    texts = {name: (html / f"{name}.html").read_text(encoding="utf-8") for name in names}
    name = next((name for name, text in texts.items() if "window.MathJax" in text), names[0])
    soup = BeautifulSoup(texts[name], "html.parser")
    kept = soup.select("head link[rel=stylesheet]")
    scripts = soup.select("head script")
    kept += [script for script in scripts if "mathjax" in f"{script.get('src')} {script.string}".lower()]
    for element in kept:
        for attribute in ("src", "href"):
            if link := element.get(attribute):
                element[attribute] = target(html, html / f"{name}.html", name, link, set(), output)
    return "\n".join(map(str, kept))


def contents_html(entries: list[Entry], titles: dict[str, str]) -> str:
    """The table of contents; the numbers of pages come later, into room for three digits."""
    lines = ["<ol>"]
    for entry in entries:
        if entry.first and entry.part:
            lines.append(f'</ol><p class="part">{escape(entry.part)}</p><ol>')
        lines.append(f'<li><a href="#{anchor(entry.name)}"><span>{escape(titles[entry.name])}</span>')
        lines.append(f'<span class="dots"></span><span class="number" id="{anchor(entry.name)}-number">000</span></a>')
        if entry.children:
            lines.append(contents_html(entry.children, titles))
        lines.append("</li>")
    return "\n".join([*lines, "</ol>"])


def join(html: Path, toc: dict, config: dict, output: Path) -> tuple[str, list[str]]:
    """The whole book as one document, and the names of its pages in order."""
    entries = contents(toc)
    order = [page for entry in entries for page in entry.walk()]
    names = {page.name for page in order}
    title, author = escape(config["title"]), escape(config["author"])
    front = f'<section class="front"><h1>{title}</h1><p>{author}</p></section>'
    sheets = f'<nav class="sheets"><p class="part">{author}</p><h1>Contents</h1><div></div></nav>'
    whole = BeautifulSoup(
        f'<!doctype html><html lang="en" data-theme="light" data-mode="light"><head><meta charset="utf-8">'
        f"<title>{title}</title>{head(html, [page.name for page in order], output)}<style>{STYLE}</style></head>"
        f'<body><main class="bd-content">{front}{sheets}</main></body></html>',
        "html.parser",
    )
    titles = {}
    for page in order:
        titles[page.name], content = article(html, page.name, names, output)
        section = whole.new_tag("section", attrs={"class": "page", "id": anchor(page.name)})
        # every page has this line, also since Chromium lists a heading twice that is the first thing on a sheet
        part = whole.new_tag("p", attrs={"class": "part"})
        part.string = page.part or config["author"]
        section.append(part)
        content.attrs["class"] = "bd-article"
        section.append(content)
        whole.main.append(section)
    whole.select_one("nav.sheets > div").append(BeautifulSoup(contents_html(entries, titles), "html.parser"))
    return str(whole), [page.name for page in order]


def chapters(pdf: bytes, names: list[str]) -> dict[str, int]:
    """The page of the PDF on which each page of the book begins, counted from 1."""
    reader = PdfReader(io.BytesIO(pdf))
    places = {name.lstrip("/"): place for name, place in reader.named_destinations.items()}
    return {name: reader.get_destination_page_number(places[anchor(name)]) + 1 for name in names}


def mend_outline(pdf: bytes, headings: list[str]) -> bytes:
    """The same PDF with the spaces in its outline that Chromium leaves out where a heading breaks its line."""
    writer = PdfWriter(clone_from=io.BytesIO(pdf))
    whole = {re.sub(r"\s", "", heading): heading for heading in headings}
    todo = [writer.root_object["/Outlines"]["/First"]]
    while todo:
        item = todo.pop().get_object()
        title = whole.get(re.sub(r"\s", "", item["/Title"]), item["/Title"])
        item[NameObject("/Title")] = TextStringObject(title)
        todo += [item[key] for key in ("/First", "/Next") if key in item]
    mended = io.BytesIO()
    writer.write(mended)
    return mended.getvalue()


def print_open(browser: Page) -> bytes:
    """The open document as a PDF with numbered pages and an outline of its headings, on A4."""
    return browser.tab.pdf(
        format="A4",
        margin=dict.fromkeys(("top", "bottom", "left", "right"), "2cm"),
        scale=0.8,
        print_background=True,
        display_header_footer=True,
        header_template="<span></span>",
        footer_template=FOOTER,
        tagged=True,
        outline=True,
    )


def make(root: Path, html: Path, output: Path, chromium: str) -> int:
    """Write the PDF of the book below ``root`` that was built in ``html``; returns its number of pages."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    output.parent.mkdir(parents=True, exist_ok=True)
    joined = output.with_suffix(".html")
    whole, names = join(html, toc, config, joined)
    joined.write_text(whole, encoding="utf-8")
    try:
        with Page(chromium, timeout=PATIENCE) as browser:
            browser.open(joined)
            pages = chapters(print_open(browser), names)
            numbers = {f"{anchor(name)}-number": number for name, number in pages.items()}
            browser.evaluate(
                f"for (const [id, number] of Object.entries({json.dumps(numbers)}))"
                " document.getElementById(id).textContent = number;"
            )
            pdf = print_open(browser)
    finally:
        joined.unlink()
    if chapters(pdf, names) != pages:
        raise RuntimeError("the contents moved the chapters that they count")
    headings = [heading.get_text() for heading in BeautifulSoup(whole, "html.parser").select("h1, h2, h3, h4, h5, h6")]
    output.write_bytes(mend_outline(pdf, headings))
    return len(PdfReader(io.BytesIO(pdf)).pages)


def main() -> int:
    logging.getLogger("pypdf").setLevel(logging.ERROR)  # Chromium counts its objects differently
    parser = argparse.ArgumentParser(description="Print the built book to one PDF.")
    parser.add_argument("--check", action="store_true", help="only say whether Chromium is here")
    arguments = parser.parse_args()
    chromium = find_chromium()
    if chromium is None:
        print(NO_CHROMIUM, file=sys.stderr)
        return 1
    if not arguments.check:
        output = ROOT / "_build" / "pdf" / "book.pdf"
        count = make(ROOT, ROOT / "_build" / "html", output, chromium)
        print(f"The book is printed: {count} pages in {output.relative_to(ROOT)}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
