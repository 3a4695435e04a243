"""The build itself, on a tiny book: what is executed when, and what makes it fail."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_book import TinyBook, code, make, markdown

FIGURE = {"figure": {"name": "fig-line", "caption": "A line."}, "image": {"alt": "a rising line from 1 to 2"}}


@pytest.fixture
def book(tmp_path) -> TinyBook:
    return TinyBook(tmp_path / "a folder with spaces")


def test_what_is_executed_when(book):
    """The first build executes the notebook, the second does not, one after a change in what it depends on does."""
    book.write("runs/numbers.csv", "1.2345\n")
    book.write_page(
        code("from matplotlib import pyplot as plt\nfrom edition.page import glue, show"),
        code("record = 'runs/numbers.csv'\nwith open(f'../{record}') as file:\n    glue(number=float(file.read()))"),
        code("figure, ax = plt.subplots()\nax.plot([1, 2])\nshow(figure)", mystnb=FIGURE),
        markdown(
            "{numref}`fig-line` shows {glue:text}`number:.2f`, $x$ and {cite}`sinz2010lp`.\n\n```{bibliography}\n```"
        ),
    )
    first = book.build()
    assert first.returncode == 0, first.stdout
    assert "_build/html/index.html" in first.stdout.splitlines()[-1], "where to open the book is said last"
    assert book.executions == 1
    html = book.html()
    assert "1.23" in html and "Fig. 1" in html and 'alt="a rising line from 1 to 2"' in html
    downloads = re.findall(r'href="([^"]*_downloads/[^"]*fig-line\.(?:svg|png|csv))"', html)
    assert [Path(link).suffix for link in downloads] == [".svg", ".png", ".csv"]
    files = [(book.root / "_build/html/book" / link).resolve() for link in downloads]
    assert [file.read_bytes()[:4] for file in files] == [b"<?xm", b"\x89PNG", b"pane"]
    assert files[2].read_text().splitlines()[1:] == [",line,line,0.0,1.0", ",line,line,1.0,2.0"]

    second = book.build()
    assert second.returncode == 0, second.stdout
    assert book.executions == 1, "an unchanged page was executed again"

    book.write("runs/numbers.csv", "6.789\n")
    third = book.build()
    assert third.returncode == 0, third.stdout
    assert book.executions == 2
    assert "6.79" in book.html() and "1.23" not in book.html()

    (book.root / "isa" / "cli.py").write_text("changed = True\n")
    assert book.build().returncode == 0
    assert book.executions == 2, "a module that the page does not import made it stale"

    style = book.root / "book" / "edition" / "page.py"
    style.write_text(style.read_text() + "\nCHANGED = True\n")
    assert book.build().returncode == 0
    assert book.executions == 3, "a change in an imported module did not make the page stale"


def test_a_build_outside_of_the_sources(book, tmp_path):
    book.write_page(
        code("from matplotlib import pyplot as plt\nfrom edition.page import show"),
        code("figure, ax = plt.subplots()\nax.plot([1, 2])\nshow(figure)", mystnb=FIGURE),
        markdown("{numref}`fig-line`"),
    )
    built = book.build_plainly("-W", "-n", "--path-output", str(tmp_path / "out"))
    assert built.returncode == 0, built.stdout
    offered = {path.name for path in (tmp_path / "out").glob("_build/html/_downloads/*/*")}
    assert offered == {"fig-line.svg", "fig-line.png", "fig-line.csv", "page.ipynb"}
    assert not (book.root / "_build").exists()


def test_a_page_says_how_to_make_it_again(book):
    """The notebook itself, a command that works as it stands, and how long the page took, here about two seconds."""
    book.write_page(code("p: float = 1.5  # a number", tags=["parameters"]), code("import time\ntime.sleep(2)"))
    for executions in (1, 1):
        built = book.build()
        assert built.returncode == 0, built.stdout
        assert book.executions == executions
    html = book.html()
    (box,) = re.findall(r'<div class="reproduce.*?\n</div>\n</section>', html, flags=re.DOTALL)
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", "", box))
    (seconds,) = re.findall(r"in (\d+) seconds when this book was built", words)
    assert 2 <= int(seconds) <= 90
    (link,) = re.findall(r'href="([^"]*_downloads/[^"]*/page\.ipynb)"', box)
    offered = (book.root / "_build/html/book" / link).resolve()
    assert offered.read_bytes() == (book.root / "book/page.ipynb").read_bytes()
    (command,) = re.findall(r"papermill book/page\.ipynb \S+\.ipynb", words)
    ran = subprocess.run(
        [Path(sys.executable).parent / "papermill", *command.split()[1:]], cwd=book.root, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert book.executions == 2


@pytest.mark.parametrize("address", ["", "https://github.com/owner/name"])
def test_one_switch_for_running_pages_elsewhere(book, address):
    config = (book.root / "_config.yml").read_text()
    assert config.count('  url: ""\n') == 1
    book.write("_config.yml", config.replace('  url: ""\n', f'  url: "{address}"\n'))
    book.write_page(code("1 + 1"))
    built = book.build()
    assert built.returncode == 0, built.stdout
    links = re.findall(r'href="(https?://[^"]*binder[^"]*)"', book.html())
    expected = ["https://mybinder.org/v2/gh/owner/name/main?urlpath=lab/tree/book/page.ipynb"] if address else []
    assert links == expected
    assert not re.findall(r'href="https?://[^"]*binder', book.html("book/index")), "a page that is no notebook"


def test_a_failing_cell_fails_the_build(book):
    book.write_page(code("1 / 0"), code("never = 'reached'"))
    built = book.build()
    assert built.returncode != 0
    assert "ZeroDivisionError" in built.stdout


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("[nowhere](#no-such-target)", "no-such-target"),
        ("{numref}`fig-none`", "fig-none"),
        ("{cite}`nobody1900`", "nobody1900"),
        ("{glue:text}`unknown`", "unknown"),
    ],
    ids=["link", "figure", "citation", "number"],
)
def test_a_warning_fails_the_build(book, text, complaint):
    book.write("_toc.yml", "format: jb-book\nroot: book/index\n")
    book.write("book/index.md", f"# A tiny book\n\n{text}\n")
    built = book.build()
    assert built.returncode != 0
    assert re.search(rf"WARNING.*{complaint}|{complaint}.*WARNING", built.stdout), built.stdout


def test_a_page_that_is_missing_fails_the_build(book):
    book.write("_toc.yml", "format: jb-book\nroot: book/index\nchapters:\n  - file: book/forgotten\n")
    built = book.build()
    assert built.returncode != 0
    assert "book/forgotten" in built.stdout


def test_a_page_that_was_not_built_fails_the_build(book):
    """Also where warnings are let pass, as when a pattern of excluded files catches a page."""
    book.write("book/private/page.md", "# Excluded\n")
    book.write("_toc.yml", "format: jb-book\nroot: book/index\nchapters:\n  - file: book/private/page\n")
    book.write("book/index.md", "# A tiny book\n")
    config = (book.root / "_config.yml").read_text()
    book.write("_config.yml", config.replace("exclude_patterns: [", "exclude_patterns: [book/private/*, "))
    built = book.build_plainly()
    assert built.returncode != 0
    assert "_toc.yml names pages that were not built: book/private/page" in built.stdout


# --- a machine on which something is missing --------------------------------------------------------------------------


def python(path: Path, *, version: str, supported: bool, can_make_environments: bool) -> Path:
    """A stand-in for a Python: it tells its version, whether it is new enough, and whether it has ensurepip."""
    path.write_text(
        "#!/bin/sh\n"
        'case "$*" in\n'
        f"  *--version*) echo 'Python {version}' ;;\n"
        f"  *version_info*) exit {0 if supported else 1} ;;\n"
        f"  *ensurepip*) exit {0 if can_make_environments else 1} ;;\n"
        "  *) echo 'went on' ; exit 0 ;;\n"
        "esac\n"
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@pytest.mark.parametrize("target", ["book", "test"])
@pytest.mark.parametrize("case", ["absent", "folder", "old", "no-ensurepip"])
def test_make_without_a_usable_python_says_so_in_one_sentence(book, tmp_path, target, case):
    fake = tmp_path / "python-of-the-system"
    if case == "absent":
        fake = Path("/nonexistent")
    elif case == "folder":
        fake.mkdir()
    elif case == "old":
        python(fake, version="3.9.1", supported=False, can_make_environments=True)
    else:
        python(fake, version="3.11.2", supported=True, can_make_environments=False)
    (book.root / ".venv" / ".ready").unlink()
    ended = make(book.root, target, PYTHON=str(fake))
    assert ended.returncode != 0
    lines = [
        line for line in ended.stdout.splitlines() if not re.match(r"make(\[\d+\])?: (\*\*\*|Entering|Leaving)", line)
    ]
    assert len(lines) == 1, ended.stdout
    named = {"absent": "'/nonexistent'", "folder": f"'{fake}'", "old": "Python 3.9.1", "no-ensurepip": "python3-venv"}
    assert named[case] in lines[0]
