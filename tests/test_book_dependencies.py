"""A page is executed again when, and only when, something that its outputs depend on has changed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from tiny_book import ROOT, code, markdown, notebook

TREE = {
    "constraints.txt": "numpy==2.0\n",
    "isa/__init__.py": "from isa.core import Core\n",
    "isa/core.py": "import math\n",
    "isa/top.py": "from .middle import function\n",
    "isa/middle.py": "def function():\n    from isa import bottom\n",
    "isa/bottom.py": "",
    "isa/other.py": "",
    "isa/room/__init__.py": "",
    "isa/room/a.py": "from . import b\n",
    "isa/room/b.py": "from ..bottom import thing\n",
    "isa/room/deep/__init__.py": "",
    "isa/room/deep/c.py": "from ...other import thing\nfrom .. import a\n",
    "isa/ring_a.py": "import isa.ring_b\n",
    "isa/ring_b.py": "import isa.ring_a\n",
    "book/edition/__init__.py": "",
    "book/edition/page.py": "from isa import bottom\n",
    "book/edition/figures/__init__.py": "",
    "book/edition/figures/style.py": "from .. import page\n",
    "runs/one.yaml": "a: 1\n",
    "runs/one.csv": "1\n",
    "runs/many/x.csv": "1\n",
    "runs/many/y.csv": "2\n",
    "book/words.json": "{}\n",
    "book/page.md": "# A page\n",
    "README.md": "words\n",
}


@pytest.fixture(scope="module")
def extension() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dependencies", ROOT / "book" / "_ext" / "dependencies.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def tree(tmp_path) -> Path:
    root = tmp_path / "a clone"
    for name, text in TREE.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def page(source: str) -> nbformat.NotebookNode:
    return notebook([markdown("# import isa.other, `runs/many/x.csv`"), code(source)])


def behind(extension: ModuleType, root: Path, source: str) -> set[str]:
    """The files that matter to a page with this code: those whose change, and only whose, changes its fingerprint."""

    def fingerprint() -> str:
        extension.module_files.cache_clear()  # each build is a process of its own
        extension.imports_of.cache_clear()
        return extension.fingerprint(root, page(source))

    before = fingerprint()
    assert fingerprint() == before, "the fingerprint of an unchanged tree changes"
    matter = set()
    for name, text in TREE.items():
        (root / name).write_text(text + "\n# changed\n")
        if fingerprint() != before:
            matter.add(name)
        (root / name).write_text(text)
    assert fingerprint() == before, "the fingerprint does not come back with the files"
    return matter


PACKAGE = {
    "isa/__init__.py",
    "isa/core.py",
}  # importing any module of isa runs the package's own file, and what it imports
ROOM = {"isa/room/__init__.py"}


@pytest.mark.parametrize(
    "source, expected",
    [
        pytest.param("x = 1", set(), id="nothing"),
        pytest.param("import numpy\nimport isaac", set(), id="foreign"),
        pytest.param("import isa", PACKAGE, id="package"),
        pytest.param("from isa import Core", PACKAGE, id="name-of-the-package"),
        pytest.param("import isa.bottom", PACKAGE | {"isa/bottom.py"}, id="import"),
        pytest.param("import isa.bottom as b", PACKAGE | {"isa/bottom.py"}, id="import-as"),
        pytest.param("from isa import bottom", PACKAGE | {"isa/bottom.py"}, id="from-package-import-module"),
        pytest.param("from isa.bottom import thing", PACKAGE | {"isa/bottom.py"}, id="from-module-import-name"),
        pytest.param("def f():\n    import isa.bottom", PACKAGE | {"isa/bottom.py"}, id="late-import"),
        pytest.param("%matplotlib inline\n!true\nimport isa.bottom", PACKAGE | {"isa/bottom.py"}, id="magics"),
        pytest.param(
            "import isa.top", PACKAGE | {"isa/top.py", "isa/middle.py", "isa/bottom.py"}, id="imports-of-imports"
        ),
        pytest.param("import isa.ring_a", PACKAGE | {"isa/ring_a.py", "isa/ring_b.py"}, id="ring"),
        pytest.param("from isa import room", PACKAGE | ROOM, id="subpackage"),
        pytest.param(
            "from isa.room import a",
            PACKAGE | ROOM | {"isa/room/a.py", "isa/room/b.py", "isa/bottom.py"},
            id="relative",
        ),
        pytest.param(
            "import isa.room.deep.c",
            PACKAGE
            | ROOM
            | {"isa/room/deep/__init__.py", "isa/room/deep/c.py", "isa/other.py"}
            | {"isa/room/a.py", "isa/room/b.py", "isa/bottom.py"},
            id="relative-two-up",
        ),
        pytest.param(
            "from edition.figures import style",
            PACKAGE
            | {"isa/bottom.py"}
            | {f"book/edition/{name}.py" for name in ("__init__", "page")}
            | {f"book/edition/figures/{name}.py" for name in ("__init__", "style")},
            id="the-book's-own",
        ),
        pytest.param("f = ROOT / 'runs/one.csv'", {"runs/one.csv", "runs/one.yaml"}, id="record-and-its-spec"),
        pytest.param("f = 'runs/one.yaml'", {"runs/one.csv", "runs/one.yaml"}, id="spec-and-its-record"),
        pytest.param("f = 'runs/many/*.csv'", {"runs/many/x.csv", "runs/many/y.csv"}, id="glob"),
        pytest.param(
            "f = 'runs/**/*.csv'",
            {"runs/one.csv", "runs/one.yaml", "runs/many/x.csv", "runs/many/y.csv"},
            id="deep-glob",
        ),
        pytest.param("f = 'book/words.json'", {"book/words.json"}, id="file-of-the-book"),
        pytest.param("f: str = 'runs'", {"runs/one.csv", "runs/one.yaml"}, id="folder-of-records"),
        pytest.param("f = 'runs/', 'book/', 'runs/none.csv', 'isa/', 'README.md'", set(), id="no-files"),
        pytest.param("# runs/one.csv\nf = 'see runs/one.csv'", set(), id="words"),
    ],
)
def test_what_matters_to_a_page(extension, tree, source, expected):
    assert behind(extension, tree, source) == expected | {"constraints.txt"}


def test_a_file_that_appears_or_goes_matters(extension, tree):
    source = page("f = 'runs/many/*.csv'")
    before = extension.fingerprint(tree, source)
    (tree / "runs/many/z.csv").write_text("3\n")
    added = extension.fingerprint(tree, source)
    (tree / "runs/many/x.csv").unlink()
    removed = extension.fingerprint(tree, source)
    assert len({before, added, removed}) == 3


def test_renaming_a_file_matters(extension, tree):
    source = page("f = 'runs/many/*.csv'")
    before = extension.fingerprint(tree, source)
    (tree / "runs/many/x.csv").rename(tree / "runs/many/w.csv")
    assert extension.fingerprint(tree, source) != before


def test_two_clones_agree(extension, tree, tmp_path):
    source = page("import isa.room.deep.c\nf = 'runs/many/*.csv'")
    other = tree.rename(tmp_path / "elsewhere")
    first = extension.fingerprint(other, source)
    extension.module_files.cache_clear()
    extension.imports_of.cache_clear()
    assert extension.fingerprint(other.rename(tmp_path / "again"), source) == first


@pytest.mark.parametrize("path", sorted((ROOT / "book").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_the_pages_depend_on_the_modules_that_they_import(extension, path):
    """On the repository itself: the walk finds the package, the page's tools and the style that all figures share."""
    found = extension.dependencies(ROOT, nbformat.read(path, as_version=4))
    names = {file.relative_to(ROOT).as_posix() for file in found}
    assert {"constraints.txt", "isa/__init__.py", "book/edition/page.py"} <= names
    assert all(file.is_file() for file in found)
    for_every_page = {
        f"book/edition/figures/{name}.py" for name in ("__init__", "compact", "numbers")
    }  # of edition.page
    if any(name.startswith("book/edition/figures/") and name not in for_every_page for name in names):
        assert "book/edition/figures/style.py" in names
