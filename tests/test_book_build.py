"""The build on a tiny book: what is executed when, what a page offers, what fails, and the book on paper."""

import io
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from browser import find_chromium
from pdf import NO_CHROMIUM, anchor, starts
from pypdf import PdfReader
from tiny_book import BIN, ROOT, TinyBook, code, make, markdown, run

pytestmark = pytest.mark.book
LONG = "A title of so many words that no sheet of paper of any size that we print is wide enough for all of them"
TITLES = {"book/index": "A tiny book", "book/page": "A page", "book/below": LONG, "book/last": "The last"}
TITLES["book/reproducing"] = "Reproducing"
FILES = {
    "_toc.yml": """
format: jb-book
root: book/index
parts:
  - {caption: The first part, chapters: [{file: book/page, sections: [{file: book/below}]}]}
  - {caption: The second part, chapters: [{file: book/last}, {file: book/reproducing}]}
""",
    "book/index.md": "# A tiny book\n\nSee [the last](last), [a place on it](#a-place).\n",
    "book/below.md": f"# {LONG}\n\n" + "Many words make a page long.\n\n" * 80,
    "book/last.md": "# The last\n\n(a-place)=\n## A place\n\n[Outside](https://example.org/) and [back](page).\n",
    "runs/numbers.csv": "1.2345\n",
}
FIGURE = {"figure": {"name": "fig-line", "caption": "A line that rises."}, "image": {"alt": "a rising line"}}
SHOW = "figure, ax = style.subplots(height=2)\nfigure.record({'x': [1, 2]})\nax.plot([1, 2])\nshow(figure)"
CELLS = (
    code("p: float = 1.5  # a number", tags=["parameters"]),
    code("from edition.figures import style\nfrom edition.page import glue, show", tags=["hide-input"]),
    code("record = 'runs/numbers.csv'\nglue(number=float(open(f'../{record}').read()), below=-1.5)"),
    code(SHOW, mystnb=FIGURE),
    markdown("{numref}`fig-line`: {glue:text}`number:.2f`, $\\alpha$, {cite}`sinz2010lp`.\n\n```{bibliography}\n```"),
    markdown("| 8-bit |\n| --- |\n| -1.5 to -2e-3 |\n\n{glue:text}`below:.1f`, `-1`"),
)


@pytest.fixture(scope="module")
def book(tmp_path_factory) -> TinyBook:
    """A book that was built once, and printed where Chromium is installed."""
    book = TinyBook(tmp_path_factory.mktemp("book") / "a folder with spaces", FILES)
    book.write_page(*CELLS)
    built = book.build("pdf" if find_chromium() else "book")
    assert built.returncode == 0, built.stdout
    book.output = built.stdout.splitlines()
    return book


def downloads(book: TinyBook, pattern: str) -> list[Path]:
    """Return the files that the page offers under names that match."""
    links = re.findall(rf'href="([^"]*_downloads/[^"]*/{pattern})"', book.html())
    return [(book.root / "_build/html/book" / link).resolve() for link in links]


def test_first_build_executes_the_notebook(book):
    assert book.executions == 1
    assert any("_build/html/index.html in a browser" in line for line in book.output)
    assert sum(line.startswith("page 1 of 1: book/page, ") for line in book.output) == 1
    html = book.html()
    assert "1.23" in html and "Fig. 1" in html and 'alt="a rising line"' in html
    assert {"8-bit", "−1.5\u00a0to\u00a0−2e−3", "−1.5", "-1"} <= {*re.findall(">([^<>]+)<", html)}
    assert not re.search(r'href="https?://[^"]*(binder|colab)|Colab|rel="canonical"', html), "there is no public clone"
    graph = re.search(r'<script type="application/ld\+json">(.*?)</script>', book.html("book/index"), re.DOTALL)[1]
    paper, edition, records = json.loads(graph)["@graph"]
    assert [part["@type"] for part in (paper, edition, records)] == [*["ScholarlyArticle"] * 2, "Dataset"]
    assert paper["@id"] == edition["isBasedOn"]["@id"] == records["isBasedOn"]["@id"]
    assert "application/ld+json" not in html, "the metadata are on the front page only"


def test_figure_is_offered_in_three_formats(book):
    svg, png, numbers = downloads(book, r"fig-line\.(?:svg|png|csv)")
    assert (svg.read_bytes()[:4], png.read_bytes()[:4]) == (b"<?xm", b"\x89PNG")
    assert numbers.name == "fig-line.csv" and numbers.read_text() == "x\n1\n2\n"


def test_page_says_how_to_reproduce_it(book):
    foot = book.html().partition('<div class="reproduce')[2]
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", foot))
    assert re.search(r"in \d+ s when this book was built", words)
    (offered,) = downloads(book, r"page\.ipynb")
    assert offered.read_bytes() == (book.root / "book/page.ipynb").read_bytes()
    assert "papermill book/page.ipynb page-out.ipynb" in words


def words(sheet) -> str:
    return re.sub(r"\s+", " ", sheet.extract_text().replace("ﬁ", "fi"))


@pytest.fixture
def printed(book) -> PdfReader:
    if find_chromium() is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium was found, with which the book is printed")
    return PdfReader(io.BytesIO((book.root / "_build" / "pdf" / "book.pdf").read_bytes()))


def test_pages_begin_on_new_sheets_that_the_contents_name(book, printed):
    assert book.output[-1] == f"The book is printed: {len(printed.pages)} pages in _build/pdf/book.pdf."
    begin = starts((book.root / "_build" / "pdf" / "book.pdf").read_bytes(), list(TITLES))
    assert list(begin.values()) == sorted(set(begin.values()))
    listed = words(printed.pages[1])
    for name, title in TITLES.items():
        assert title in words(printed.pages[begin[name] - 1])[: 40 + len(title)]
        assert re.search(rf"{title} {begin[name]}(?!\d)", listed), listed
    assert listed.index("The first part") < listed.index(" A page") < listed.index("The second part")
    assert all(re.search(rf"(?m)^{n}$", sheet.extract_text()) for n, sheet in enumerate(printed.pages, 1))


def test_figures_and_formulas_are_printed_and_hidden_code_is_not(printed):
    text = "\n".join(map(words, printed.pages))
    assert "Fig. 1" in text and "A line that rises." in text and "show(figure)" in text
    assert "\\alpha" not in text and "α" in text
    assert "from edition.page" not in text and "Show code cell" not in text
    assert not re.search(r"\b(SVG|PNG|CSV)\b", text) and "papermill book/page.ipynb" in text


def test_printed_links_stay_in_the_book_or_lead_to_the_web(printed):
    links = [note.get_object() for sheet in printed.pages for note in sheet.get("/Annots", [])]
    outside = {str(link["/A"]["/URI"]) for link in links if "/URI" in link.get("/A", {})}
    inside = {str(link["/Dest"]).lstrip("/") for link in links if "/Dest" in link}
    cited = re.search(r"\{sinz2010lp,.*?url = \{(.*?)\}", (ROOT / "book/references.bib").read_text("utf-8"), re.DOTALL)
    assert outside == {"https://example.org/", cited[1]}
    places = {anchor(name) for name in TITLES} | {anchor("book/last", "a-place")}
    assert places <= inside <= {name.lstrip("/") for name in printed.named_destinations}


def test_outline_has_pages_and_their_sections(printed):
    def titles(items) -> list:
        return [titles(item) if isinstance(item, list) else item.title for item in items]

    pages = titles(printed.outline)[-6:]
    assert pages == ["A tiny book", "A page", LONG, "The last", ["A place"], "Reproducing"]


def test_notebook_is_executed_again_when_its_record_changes(book):
    for text, executions, shown in (("1.2345\n", 1, "1.23"), ("6.789\n", 2, "6.79")):
        if text != (book.root / "runs/numbers.csv").read_text():
            book.write("runs/numbers.csv", text)
        built = book.build()
        assert built.returncode == 0, built.stdout
        assert book.executions == executions and shown in book.html()


def test_build_outside_of_the_sources_and_buttons_for_a_public_clone(tmp_path):
    book = TinyBook(tmp_path / "clone")
    config = (book.root / "_config.yml").read_text()
    assert config.count('  url: ""\n') == 1
    book.write("_config.yml", config.replace('url: ""\n', 'url: "https://github.com/owner/name"\n'))
    book.write_page(*CELLS[1:2], *CELLS[3:4], markdown("{numref}`fig-line`"))
    built = run([BIN / "jupyter-book", "build", ".", "-W", "-n", "--path-output", tmp_path / "out"], book.root)
    assert built.returncode == 0, built.stdout
    offered = {path.name for path in (tmp_path / "out").glob("_build/html/_downloads/*/*")}
    assert offered == {"fig-line.svg", "fig-line.png", "fig-line.csv", "page.ipynb"}
    assert not (book.root / "_build").exists()
    html = (tmp_path / "out/_build/html/book/page.html").read_text()
    assert re.findall(r'href="(https?://[^"]*(?:binder|colab)[^"]*)"', html) == [
        "https://mybinder.org/v2/gh/owner/name/main?urlpath=lab/tree/book/page.ipynb",
        "https://colab.research.google.com/github/owner/name/blob/main/book/page.ipynb",
    ]
    assert '<span class="pre">https://github.com/owner/name</span>' in html, "Colab needs a clone"
    public = "https://owner.github.io/name"
    assert f'<link rel="canonical" href="{public}/book/page.html"' in html
    assert f'<meta property="og:image" content="{public}/_static/thumbnails/fig-front.png"' in html


def test_failing_cell_fails_the_build(tmp_path):
    book = TinyBook(tmp_path / "book")
    book.write_page(code("1 / 0"), code("never = 'reached'"))
    built = book.build()
    assert built.returncode != 0 and "ZeroDivisionError" in built.stdout
    assert "page 1 of 1: book/page, failed" in built.stdout


def test_warnings_and_missing_pages_fail_the_build_every_time(tmp_path):
    wrong = {
        "no-such-target": "[nowhere](#no-such-target)",
        "fig-none": "{numref}`fig-none`",
        "nobody1900": "{cite}`nobody1900`",
        "unknown": "{glue:text}`unknown`",
    }
    book = TinyBook(tmp_path, {"book/index.md": "# A tiny book\n\n" + " ".join(wrong.values())})  # and no book/page
    for _ in range(2):
        built = book.build()
        assert built.returncode != 0
        for name in [*wrong, "book/page"]:
            assert re.search(rf"WARNING.*{name}|{name}.*WARNING", built.stdout), name


def sentence(ended: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that a failing ``make`` prints, apart from its own."""
    assert ended.returncode != 0
    (line,) = [line for line in ended.stdout.splitlines() if not re.match(r"make(\[\d+\])?: (\*\*\*|[EL])", line)]
    return line


def test_make_pdf_without_chromium_says_so_before_anything_is_built(tmp_path):
    book = TinyBook(tmp_path / "clone")
    for name in ("make", "sh", "bash", "env"):
        (tmp_path / name).symlink_to(shutil.which(name))
    assert sentence(make(book.root, "pdf", PATH=str(tmp_path))) == NO_CHROMIUM
    assert not Path(book.root, "_build").exists()


PYTHON = '#!/bin/sh\ncase "$*" in *--version*) echo "{}";; *version_info*) exit {};; *ensurepip*) exit 1;; esac\n'


@pytest.mark.parametrize(
    ("script", "named"),
    [
        (None, "{python}"),
        (PYTHON.format("Python 3.9.1", 1), "Python 3.9.1"),
        (PYTHON.format("Python 3.11.2", 0), "python3-venv"),
    ],
    ids=["absent", "old", "no ensurepip"],
)
def test_make_without_a_usable_python_says_so_in_one_sentence(tmp_path, script, named):
    python = tmp_path / "python"
    if script:
        python.write_text(script)
        python.chmod(0o755)
    said = sentence(run(["make", f"PYTHON={python}", f"VENV={tmp_path}/venv", "book"], ROOT))
    assert named.format(python=python) in said
