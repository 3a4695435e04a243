"""``make pdf``: the book on paper, and one sentence where there is nothing to print it with."""

from __future__ import annotations

import io
import os
import re
import shutil
import unicodedata
from pathlib import Path

import pytest
from browser import find_chromium
from pdf import NO_CHROMIUM, anchor, chapters, contents
from pypdf import PdfReader
from tiny_book import TinyBook, code, make, markdown

FIGURE = {"figure": {"name": "fig-line", "caption": "A line that rises."}, "image": {"alt": "a rising line"}}
TOC = """
format: jb-book
root: book/index
parts:
  - caption: The first part
    chapters:
      - file: book/page
        sections:
          - file: book/below
  - caption: The second part
    chapters:
      - file: book/last
"""
LONG = "A title of so many words that no sheet of paper of any size that we print is wide enough for all of them"
TITLES = {"book/index": "A tiny book", "book/page": "A page", "book/below": LONG, "book/last": "The last"}


def words(page) -> str:
    """The text of a sheet with its ligatures undone and its lines joined."""
    return re.sub(r"\s+", " ", unicodedata.normalize("NFKC", page.extract_text()))


def test_the_contents_follow_the_toc():
    toc = {
        "root": "a",
        "parts": [{"caption": "one", "chapters": [{"file": "b", "sections": [{"file": "c"}]}, {"file": "d"}]}],
    }
    entries = contents(toc)
    assert [page.name for entry in entries for page in entry.walk()] == ["a", "b", "c", "d"]
    assert [(page.part, page.first) for entry in entries for page in entry.walk()] == [
        ("", False),
        ("one", True),
        ("one", False),
        ("one", False),
    ]


@pytest.fixture(scope="module")
def printed(tmp_path_factory) -> tuple[bytes, str]:
    """The PDF of a tiny book, and what ``make pdf`` said."""
    if find_chromium() is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium was found, with which the book is printed")
        pytest.skip("no Chromium was found, with which the book is printed")
    book = TinyBook(tmp_path_factory.mktemp("pdf") / "a folder with spaces")
    book.write("_toc.yml", TOC)
    book.write("book/index.md", "# A tiny book\n\nSee [the last](last), [a place on it](#a-place).\n")
    book.write("book/below.md", f"# {LONG}\n\n" + "Many words make a page long.\n\n" * 80)
    book.write(
        "book/last.md", "# The last\n\n(a-place)=\n## A place\n\n[Outside](https://example.org/) and [back](page).\n"
    )
    book.write_page(
        code("from matplotlib import pyplot as plt\nfrom edition.page import show\nhidden = 1", tags=["hide-input"]),
        code("figure, ax = plt.subplots()\nax.plot([1, 2])\nshow(figure)", mystnb=FIGURE),
        markdown("{numref}`fig-line` and $\\alpha + \\beta$."),
    )
    ended = make(book.root, "pdf")
    assert ended.returncode == 0, ended.stdout
    assert not (book.root / "_build" / "pdf" / "book.html").exists()
    return (book.root / "_build" / "pdf" / "book.pdf").read_bytes(), ended.stdout


def test_it_says_where_the_pdf_is_and_how_long(printed):
    pdf, said = printed
    count = len(PdfReader(io.BytesIO(pdf)).pages)
    assert said.splitlines()[-1] == f"The book is printed: {count} pages in _build/pdf/book.pdf."
    assert count >= 8  # a title, contents, four pages of which one takes several sheets


def test_every_page_begins_on_a_sheet_of_its_own_that_the_contents_name(printed):
    reader = PdfReader(io.BytesIO(printed[0]))
    starts = chapters(printed[0], list(TITLES))
    assert list(starts.values()) == sorted(set(starts.values()))
    for name, title in TITLES.items():
        head = words(reader.pages[starts[name] - 1])[: 40 + len(title)]
        assert title in head, f"{title} is not at the head of sheet {starts[name]}: {head!r}"
    listed = words(reader.pages[1])
    for name, title in TITLES.items():
        assert re.search(rf"{title} {starts[name]}\b", listed), listed
    assert listed.index("The first part") < listed.index(" A page") < listed.index("The second part")


def test_every_sheet_has_its_number(printed):
    for number, page in enumerate(PdfReader(io.BytesIO(printed[0])).pages, 1):
        assert re.search(rf"(?m)^{number}$", page.extract_text()), f"sheet {number} is not numbered"


def test_figures_and_formulas_are_printed_and_folded_code_is_not(printed):
    text = "\n".join(words(page) for page in PdfReader(io.BytesIO(printed[0])).pages)
    assert "Fig. 1" in text and "A line that rises." in text and "show(figure)" in text
    assert "\\alpha" not in text and "α" in text
    assert "hidden = 1" not in text and "Show code cell" not in text
    assert not re.search(r"\b(SVG|PNG|CSV)\b", text), "downloads mean nothing on paper"
    assert "papermill book/page.ipynb" in text


def test_links_stay_within_the_book_or_lead_to_the_web(printed):
    reader = PdfReader(io.BytesIO(printed[0]))
    inside, outside = set(), set()
    for page in reader.pages:
        for annotation in page.get("/Annots", []):
            link = annotation.get_object()
            if "/A" in link and "/URI" in link["/A"]:
                outside.add(str(link["/A"]["/URI"]))
            elif "/Dest" in link:
                inside.add(str(link["/Dest"]).lstrip("/"))
    assert outside == {"https://example.org/"}
    places = {anchor(name) for name in TITLES} | {anchor("book/last", "a-place")}
    assert places <= inside <= {name.lstrip("/") for name in reader.named_destinations}


def test_headings_are_its_outline(printed):
    def titles(items) -> list[str]:
        return [title for item in items for title in (titles(item) if isinstance(item, list) else [item.title])]

    outline = titles(PdfReader(io.BytesIO(printed[0])).outline)
    assert [title for title in outline if title in TITLES.values()] == list(TITLES.values())
    assert "A place" in outline


def test_without_chromium_it_says_so_before_anything_is_built(tmp_path):
    book = TinyBook(tmp_path / "clone")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("make", "sh", "bash", "env"):
        (commands / name).symlink_to(shutil.which(name))
    ended = make(book.root, "pdf", PATH=str(commands))
    assert ended.returncode != 0
    said = [line for line in ended.stdout.splitlines() if not re.match(r"make(\[\d+\])?: ", line)]
    assert said == [NO_CHROMIUM] and NO_CHROMIUM.count(".") == 1 and "Chromium" in NO_CHROMIUM
    assert not Path(book.root, "_build").exists()
