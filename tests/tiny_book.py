"""A small book of one notebook, built by the repository's own configuration and Makefile."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import nbformat
from conftest import ROOT

NOTEBOOKS = sorted(path for path in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
BIN = Path(sys.executable).parent


def run(command: list[object], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command on one thread, since tests share the cores, with both of its streams in one text."""
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTEST"))}
    streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=outer | {"OMP_NUM_THREADS": "1"} | variables, text=True, **streams
    )


def make(root: Path, target: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run ``make`` with the environment of the tests in place of the one that it would create."""
    return run(["make", "READY=", f"BIN={BIN}", target], root, **variables)


def markdown(source: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_markdown_cell(source)


def code(source: str, **metadata: object) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(source, metadata=metadata)


def notebook(*cells: nbformat.NotebookNode) -> nbformat.NotebookNode:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return nbformat.v4.new_notebook(cells=list(cells), metadata={"kernelspec": kernel})


class TinyBook:
    """An index and one notebook in a new folder; every execution of the notebook leaves a mark."""

    def __init__(self, root: Path, files: Mapping[str, str] | None = None):
        self.root, self.marks = root, root / "marks"
        for name in ("book/_ext", "book/_static"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("_config.yml", "Makefile", "constraints.txt", "book/references.bib"):
            shutil.copy(ROOT / name, root / name)
        config = (root / "_config.yml").read_text(encoding="utf-8")
        self.write("_config.yml", re.sub(r'(?m)^  url: ".*"$', '  url: ""', config))  # no public clone
        self.write(
            "_toc.yml", "format: jb-book\nroot: book/index\nchapters: [{file: book/page}, {file: book/reproducing}]\n"
        )
        self.write("book/reproducing.md", "# Reproducing\n")  # the foot of a page refers to it
        self.write("book/index.md", "# A tiny book\n\nSee [the page](page).\n")
        for name, text in (files or {}).items():
            self.write(name, text)

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def write_page(self, *cells: nbformat.NotebookNode) -> None:
        """Write the notebook: a title, a cell that leaves the mark, then these cells."""
        mark = code(f"with open({str(self.marks)!r}, 'a') as marks:\n    marks.write('x')")
        nbformat.write(notebook(markdown("# A page"), mark, *cells), self.root / "book" / "page.ipynb")

    def build(self, target: str = "book") -> subprocess.CompletedProcess[str]:
        return make(self.root, target)

    @property
    def executions(self) -> int:
        return len(self.marks.read_text()) if self.marks.exists() else 0

    def html(self, page: str = "book/page") -> str:
        return (self.root / "_build" / "html" / f"{page}.html").read_text(encoding="utf-8")
