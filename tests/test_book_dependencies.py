"""A page is executed again when, and only when, something that its outputs depend on has changed."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest
from dependencies import dependencies, fingerprint
from tiny_book import ROOT, code, markdown, notebook, run

TREE = {
    "constraints.txt": "numpy==2.0\n",
    "isa/__init__.py": "from isa.core import Core\n",
    "isa/core.py": "import math\n",
    "isa/top.py": "from isa.middle import function\n",
    "isa/middle.py": "def function():\n    from isa import bottom\n",
    "isa/bottom.py": "import isa.middle",
    "isa/part/__init__.py": "",
    "isa/part/a.py": "from isa.part import b\n",
    "isa/part/b.py": "",
    "book/edition/__init__.py": "",
    "book/edition/page.py": "from isa.part import b\nwords, key = 'book/words.json', 'runs'\n",
    "runs/one.yaml": "a: 1\n",
    "runs/one.csv": "1\n",
    "runs/many/x.csv": "1\n",
    "runs/many/y.csv": "2\n",
    "book/words.json": "{}\n",
    "README.md": "words\n",
}
MANY = {"runs/many/x.csv", "runs/many/y.csv"}
ONE = {"runs/one.csv", "runs/one.yaml"}
EDITION = {"book/edition/__init__.py", "book/edition/page.py", "book/words.json"}


@pytest.fixture
def tree(tmp_path) -> Path:
    for name, text in TREE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def page(*sources: str) -> nbformat.NotebookNode:
    return notebook(markdown("# Import isa.bottom, see `runs/one.csv`"), *map(code, sources))


def isa(*names: str) -> set[str]:
    return {f"isa/{name}.py" for name in ("__init__", "core", *names)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import isapod, os, numpy", set()),
        ("import isa", isa()),
        ("from isa.core import Core", isa()),
        ("def f():\n    import isa.core as c", isa()),
        ("%matplotlib inline\n!true\nimport isa.core", isa()),
        ("import isa.top", isa("top", "middle", "bottom")),
        ("from isa.part import a", isa("part/__init__", "part/a", "part/b")),
        ("from edition import page", isa("part/__init__", "part/b") | EDITION),
        ("f = ROOT / 'runs/one.csv'", ONE),
        ("f = 'runs/one.yaml'", ONE),
        ("f: str = 'runs'", ONE),
        ("f = 'runs/many/*.csv'", MANY),
        ("f = 'runs/**/*.csv'", MANY | ONE),
        ("f = 'book/words.json'", {"book/words.json"}),
        ("f = 'runs/', 'book/', 'runs/none.csv', 'isa/', 'README.md'", set()),
        ("# runs/one.csv\nf = 'see runs/one.csv'", set()),
    ],
)
def test_page_depends_on(tree, source, expected):
    found = {path.relative_to(tree).as_posix() for path in dependencies(tree, page(source))}
    assert found == expected | {"constraints.txt"}


def test_fingerprint_changes_with_the_files_and_not_with_their_folder(tree, tmp_path_factory):
    source = page("import isa.top\nf = 'runs/many/*.csv'")
    path = tree / "runs/many/x.csv"
    prints = [fingerprint(tree, source)]
    for change in (
        lambda: path.with_name("z.csv").write_text("3\n"),
        lambda: path.unlink(),
        lambda: path.with_name("z.csv").rename(path.with_name("w.csv")),
        lambda: (tree / "runs/many/w.csv").write_text("4\n"),
    ):
        change()
        prints.append(fingerprint(tree, source))
    assert len(set(prints)) == 5
    assert fingerprint(tree.rename(tmp_path_factory.mktemp("other") / "clone"), source) == prints[-1]


def test_of_other_notebooks_only_titles_and_parameters_count(tree):
    source, path = page("f = 'book/*.ipynb'"), tree / "book" / "other.ipynb"
    prints = []
    for title, parameter, text in (("A", 1, "x"), ("A", 1, "y"), ("A", 2, "x"), ("B", 1, "x")):
        nbformat.write(notebook(markdown(f"# {title}\n\n{text}"), code(f"p = {parameter}"), code(f"'{text}'")), path)
        prints.append(fingerprint(tree, source))
    assert prints[0] == prints[1] and len(set(prints)) == 3


COPIES = """
import sys
import forked, nbformat
from jupyter_cache.executors.utils import single_nb_execution
if __name__ == "__main__":
    forked.use()
    for name in sys.argv[1:]:
        quiet = {"extra_arguments": ["--IPKernelApp.log_level=40"]}
        book = single_nb_execution(nbformat.read(name, 4), "data", 60, False, **quiet).nb
        print(*(output.get("text", output.get("ename")).strip() for cell in book.cells for output in cell.outputs))
"""
LOOKS = "import os, sys\nprint('edition.page' in sys.modules, os.path.basename(os.getcwd()), os.environ['WORD'])"
STARTS = "import multiprocessing\nmultiprocessing.get_context('fork').Process(target=len, args=('',)).start()"


@pytest.mark.skipif(sys.platform != "linux", reason="kernels are copies on Linux only")
def test_kernels_are_copies_that_share_nothing(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "copies.py").write_text(COPIES)
    pages = {"first": (LOOKS, f"sys.word = 1\n{STARTS}"), "second": ("import sys\nprint(sys.word)",), "third": (LOOKS,)}
    for name, sources in pages.items():
        nbformat.write(notebook(*map(code, sources)), tmp_path / name)
    path = f"{ROOT / 'book/_ext'}:{ROOT}:{ROOT / 'book'}"
    output = run([sys.executable, "copies.py", *pages], tmp_path, PYTHONPATH=path, WORD="word").stdout
    assert output.splitlines() == ["True data word", "AttributeError", "True data word"]
