"""Architecture: imports have no circle, private names stay in their file, and no file is too long."""

import ast
import re
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT, SLOW

FOLDERS = {"isa": ROOT / "isa", "edition": ROOT / "book" / "edition"}
LINES = {"isa": 7_420, "edition": 6_330}  # at most, in all
ALONE = {"prior": set(), "models": set(), "data": {"isa._files"}, "toys": {"isa", "isa.prior"}}
ALONE |= {"mig": {"isa.subspaces", "isa.disentanglement"}}
"""Parts of ``isa``, and the modules outside of each that it may import."""


def nodes(text: str) -> list[ast.AST]:
    """Return all nodes of a module's syntax tree, without imports for type checkers."""
    tops = [top for top in ast.parse(text).body if not (isinstance(top, ast.If) and "TYPE_CHECKING" in ast.dump(top))]
    return [node for top in tops for node in ast.walk(top)]


PATHS = [(path, folder.parent) for folder in FOLDERS.values() for path in folder.rglob("*.py")]
NAMES = [".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path, root in PATHS]
TEXTS = {name: path.read_text(encoding="utf-8") for name, (path, _) in zip(NAMES, PATHS, strict=True)}
NODES = {name: nodes(text) for name, text in TEXTS.items()}


def imports(name: str) -> set[str]:
    """Return the modules of ours that a module imports, also inside functions; not the packages around it."""
    names = set()
    for node in NODES[name]:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return {other for other in names & TEXTS.keys() if not f"{name}.".startswith(f"{other}.")}


def test_isa_does_not_import_the_edition():
    imported = set().union(*(imports(name) for name in TEXTS if name.split(".")[0] == "isa"))
    assert not [name for name in imported if name.startswith("edition")]


def test_imports_have_no_circle():
    list(TopologicalSorter({name: imports(name) for name in TEXTS}).static_order())  # raises CycleError


@pytest.mark.parametrize("part", ALONE)
def test_part_imports_no_other(part):
    inside = {name for name in TEXTS if f"{name}.".startswith(f"isa.{part}.")}
    assert inside and set().union(*map(imports, inside)) - inside <= ALONE[part]


def private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_private_names_stay_in_their_file():
    crossing = []
    for name, nodes in NODES.items():
        froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in FOLDERS]
        modules = {alias.asname or alias.name for node in froms for alias in node.names if alias.name.islower()}
        taken = {f"{node.module}.{alias.name}" for node in froms for alias in node.names if private(alias.name)}
        crossing += [f"{name}: {other}" for other in sorted(taken - TEXTS.keys())]
        crossing += [
            f"{name}: {ast.unparse(node)}"
            for node in nodes
            if isinstance(node, ast.Attribute) and private(node.attr)
            if isinstance(node.value, ast.Name) and node.value.id in modules
        ]
    assert not crossing


def test_no_file_is_too_long():
    lengths = {name: len(text.splitlines()) for name, text in TEXTS.items()}
    assert not {name: length for name, length in lengths.items() if length > 600}
    for package, most in LINES.items():
        assert sum(length for name, length in lengths.items() if name.split(".")[0] == package) <= most


def test_slow_tests_exist():
    paths = (ROOT / "tests").glob("test_*.py")
    names = {name for path in paths for name in (path.stem, *re.findall(r"^def (\w+)", path.read_text(), re.M))}
    assert names >= SLOW
