"""A small book of one notebook, built by the repository's own configuration and Makefile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent


def environment(root: Path) -> None:
    """Let ``make`` find the running environment as the one it would have created below ``root``.

    To be called last, since ``make`` installs anew where the files of the pinned set are younger.
    """
    (root / ".venv").mkdir()
    (root / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    for name in ("lib", "pyvenv.cfg"):  # by which a Python started from there finds its packages
        if (Path(sys.prefix) / name).exists():
            (root / ".venv" / name).symlink_to(Path(sys.prefix) / name)
    (root / ".venv" / ".ready").touch()


def make(root: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """``make`` in ``root``, with both of its streams in one text.

    On one thread: the tests run in as many processes as there may be cores, and threads that wait for each other on
    cores that others hold take many times as long.
    """
    own = ("MAKE", "MFLAGS", "PYTEST", "PYTHON", "VENV")  # of the outer make and of the tests
    clean = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    return subprocess.run(
        ["make", *arguments],
        cwd=root,
        env=clean | {"OMP_NUM_THREADS": "1"} | variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3000,
    )


def notebook(cells: Sequence[nbformat.NotebookNode]) -> nbformat.NotebookNode:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(
        cells=list(cells), metadata={"kernelspec": kernel, "language_info": {"name": "python"}}
    )


def markdown(source: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_markdown_cell(source)


def code(source: str, **metadata: object) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(source, metadata=metadata)


class TinyBook:
    """An index and one notebook in ``root``, which is created; every execution of the notebook leaves a mark."""

    def __init__(self, root: Path):
        self.root = root
        self.marks = root / "marks"
        (root / "book").mkdir(parents=True)
        for name in ("_config.yml", "Makefile", "pyproject.toml", "constraints.txt", "book/references.bib"):
            shutil.copy(ROOT / name, root / name)
        for name in ("book/_ext", "book/_static", "book/edition", "isa"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        environment(root)
        self.write("_toc.yml", "format: jb-book\nroot: book/index\nchapters:\n  - file: book/page\n")
        self.write("book/index.md", "# A tiny book\n\nSee [the page](page).\n")

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def write_page(self, *cells: nbformat.NotebookNode) -> None:
        """The notebook: a title, a cell that leaves the mark, then these cells."""
        mark = code(f"with open({str(self.marks)!r}, 'a') as marks:\n    marks.write('x')")
        for number, cell in enumerate(cells):
            cell["id"] = f"cell-{number}"
        title = markdown("# A page")
        title["id"], mark["id"] = "title", "mark"
        nbformat.write(notebook([title, mark, *cells]), self.root / "book" / "page.ipynb")

    def build(self) -> subprocess.CompletedProcess[str]:
        return make(self.root, "book")

    def build_plainly(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Without ``make``, as in an activated environment."""
        return subprocess.run(
            [Path(sys.executable).parent / "jupyter-book", "build", ".", *options],
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )

    @property
    def executions(self) -> int:
        return len(self.marks.read_text()) if self.marks.exists() else 0

    def html(self, page: str = "book/page") -> str:
        return (self.root / "_build" / "html" / f"{page}.html").read_text(encoding="utf-8")
