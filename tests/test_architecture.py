"""The house: imports point down, private names stay in their file, and no file is longer than an hour's reading."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"isa": ROOT / "isa", "edition": ROOT / "book" / "edition"}
LINES = {"isa": 7_600, "edition": 5_100}  # at most, in all
ALONE = {"prior", "models", "mig", "data", "toys"}  # parts of isa that know no other


def module_name(package: str, path: Path) -> str:
    parts = path.relative_to(FOLDERS[package]).with_suffix("").parts
    return ".".join([package, *(part for part in parts if part != "__init__")])


FILES = {module_name(package, path): path for package, folder in FOLDERS.items() for path in folder.rglob("*.py")}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in FILES.items()}


def imports(name: str) -> set[str]:
    """Modules of ours that a module imports, whenever; imports for type checkers do not count."""
    typing = {
        id(inner)
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(TREES[name]):
        if id(node) in typing:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {one for one in found if one in FILES and one != name and not is_package_of(one, name)}


def is_package_of(package: str, name: str) -> bool:
    """Whether a module lies in a package, whose ``__init__`` re-exports it."""
    return name.startswith(f"{package}.")


def test_isa_knows_nothing_of_the_book():
    assert not [
        name for name in FILES if name.startswith("isa") and any(o.startswith("edition") for o in imports(name))
    ]


def test_imports_have_no_circle():
    graph = {name: imports(name) for name in FILES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(FILES)  # raises CycleError


@pytest.mark.parametrize("part", sorted(ALONE))
def test_a_part_that_stands_alone_imports_no_other(part):
    inside = {f"isa.{part}", *(name for name in FILES if name.startswith(f"isa.{part}."))}
    allowed = {"mig": {"isa.subspaces"}, "toys": {"isa", "isa.prior"}}.get(part, set())
    for name in inside & FILES.keys():
        assert imports(name) - inside <= allowed, name


def ours(module: str | None) -> bool:
    return (module or "").split(".")[0] in FOLDERS


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_private_names_stay_in_their_file():
    crossing = []
    for name, tree in TREES.items():
        nodes = list(ast.walk(tree))
        froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and ours(node.module)]
        modules = {alias.asname or alias.name for node in froms for alias in node.names if alias.name.islower()}
        taken = {f"{node.module}.{alias.name}" for node in froms for alias in node.names if private(alias.name)}
        crossing += [f"{name}: {one}" for one in sorted(taken - FILES.keys())]
        crossing += [
            f"{name}: {ast.unparse(node)}"
            for node in nodes
            if isinstance(node, ast.Attribute) and private(node.attr)
            if isinstance(node.value, ast.Name) and node.value.id in modules
        ]
    assert not crossing


def test_no_file_is_too_long():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    assert not {name: length for name, length in lengths.items() if length > 600}
    for package, most in LINES.items():
        assert sum(length for name, length in lengths.items() if name.split(".")[0] == package) <= most
