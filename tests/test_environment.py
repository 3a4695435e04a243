"""The files that state the environment agree, nothing foreign is committed, and notebooks keep their form."""

import ast
import importlib.metadata
import re
import subprocess
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from tiny_book import NOTEBOOKS, run

from benchmarks.release import OF_TORCH, PROJECT, PYPROJECT, ROOT, needed, read_lock

CONSTRAINTS = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = {canonicalize_name(pin.name): pin for pin in map(Requirement, filter(lambda x: x[0] != "#", CONSTRAINTS))}


def test_constraints_are_exact_versions():
    names = [pin.name.lower() for pin in PINS.values()]
    assert names == sorted(names)
    for pin in PINS.values():
        assert re.fullmatch(r"==\d[\w.]*", str(pin.specifier)) and not (pin.url or pin.marker or pin.extras), pin
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    for requirement in map(Requirement, sum(groups, PYPROJECT["build-system"]["requires"])):
        pin = PINS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(str(pin.specifier).removeprefix("==")), f"{requirement}, but {pin}"


def test_everything_installed_for_this_package_is_pinned():
    names = needed("book") | needed("test")
    assert len(names) > 50
    for name in names - {PROJECT["name"]}:
        assert Version(importlib.metadata.version(name)).public in PINS[name].specifier, name


def test_conda_and_make_install_the_same_set():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, packages = environment["dependencies"]
    assert python == f"python{PROJECT['requires-python']}" and pip == "pip"
    assert packages == {"pip": ["--constraint constraints.txt", "--editable .[book,test]"]}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--editable '.[book,test]'" in makefile
    exported = re.findall(r"^export (PIP_\w*CONSTRAINT) := constraints.txt$", makefile, re.MULTILINE)
    assert exported == ["PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"]
    oldest = re.search(r"version_info < \((\d+), (\d+)\)", makefile)
    assert PROJECT["requires-python"] == ">={}.{}".format(*oldest.groups())


def test_locks_have_hashes_of_the_pinned_set():
    packages, torch, cpu = (read_lock(f"{name}.txt") for name in ("packages", "torch", "torch-cpu"))
    locked = packages | torch
    assert all(hashes for _, hashes in [*locked.values(), *cpu.values()])
    assert all(locked[name][0].specifier == pin.specifier for name, pin in PINS.items())
    others = {name for name in locked.keys() - PINS.keys() if locked[name][0].marker is None}
    assert others <= {"tomlkit"}, "neither for another system nor for the installation itself, as hatchling's tomlkit"
    assert [bool(OF_TORCH.match(name)) for name in [*packages, *torch]] == [False] * len(packages) + [True] * len(torch)
    assert cpu.keys() == {"torch", "triton"} and cpu["triton"] == torch["triton"]
    assert cpu["torch"][0].specifier == torch["torch"][0].specifier
    assert not set(cpu["torch"][1]) & set(torch["torch"][1]), "builds for CPUs are others"


@pytest.mark.parametrize(("locked", "last"), [("1", "torch.txt"), ("cpu", "torch-cpu.txt")])
def test_make_installs_by_hash_on_request(tmp_path, locked, last):
    options = ["--dry-run", f"VENV={tmp_path}/fresh", f"LOCKED={locked}"]
    printed = run(["make", *options, f"{tmp_path}/fresh/.ready"], ROOT).stdout
    by_hash, own = [line for line in printed.splitlines() if "pip install" in line]
    assert "--require-hashes --only-binary :all:" in by_hash and by_hash.endswith(f"locks/{last}")
    assert "env -u PIP_CONSTRAINT" in by_hash, "a constraint without hashes"
    assert "--no-build-isolation --no-deps" in own and "'.[book,test]'" in own


# References that readers follow; everything else that looks like a host or a path of one machine stays out.
REFERENCES = ("arxiv.org/", "doi.org/", "github.com/", "proceedings.mlr.press/", "openreview.net/", "mybinder.org")
REFERENCES += ("creativecommons.org/", "example.org/", "jmlr.org/", "papers.nips.cc/", "scottreed.info/", "w3.org/")
REFERENCES += ("schema.org", "w3id.org/codemeta/", "spdx.org/", "keepachangelog.com/", "semver.org/")
REFERENCES += ("colab.research.google.com", "{owner}.github.io/", "owner.github.io/")  # of the repository's address
FOREIGN = re.compile(
    rf"(?:https?|ftp|git|ssh)://(?!(?i:(?:www\.)?(?:{'|'.join(map(re.escape, REFERENCES))})))[^\s)>\]\"'`}}]+"
    r"|(?<![\w.$}/-])/(?:home|root|Users|work|opt|mnt|media|srv|tmp)/[\w.-]+"
    r"|--(?:extra-)?index-url|--find-links|--trusted-host"
)
NUMBER = re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b")


def foreign_places(text: str, versions: bool = False) -> list[str]:
    """Return hosts, addresses and absolute paths in a text; with versions, one of four parts is no address."""
    numbers = [] if versions else set(NUMBER.findall(text)) - {"127.0.0.1", "0.0.0.0"}
    return FOREIGN.findall(text) + [number for number in numbers if max(map(int, number.split("."))) < 256]


def test_no_build_host_address_or_machine_path_is_committed():
    assert not foreign_places("see https://arxiv.org/abs/1909.05063, 127.0.0.1, 1.2.3, a/home/x, ../tmp/y, $HOME/work")
    for place in ("https://registry.example/simple", "10.0.0.1", "/" + "home/me/isa", "/" + "tmp/x", "--find-links"):
        assert foreign_places(f"so {place} is there"), place
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]:
        assert not {"_build", "__pycache__", ".ipynb_checkpoints", ".venv"} & set(path.relative_to(ROOT).parts), path
        data = path.read_bytes()
        versions = path.name in ("constraints.txt", "licences.csv") or path.parent.name == "locks"
        if b"\0" not in data and path != Path(__file__):
            assert not foreign_places(data.decode("utf-8"), versions), path


def test_every_page_is_in_the_toc_once():
    listed = re.findall(r"(?:root|file): ([\w/-]+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))
    written = [*NOTEBOOKS, *(ROOT / "book").rglob("*.md")]
    pages = {path.relative_to(ROOT).with_suffix("").as_posix() for path in written}
    pages |= set(yaml.safe_load((ROOT / "book" / "variants.yaml").read_text(encoding="utf-8")))  # written by the build
    assert sorted(listed) == sorted(pages)


def code(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_valid_and_committed_without_results(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert re.match("# .+\n", notebook.cells[0].source), "no title, or nothing below it"
    for cell in code(notebook):
        assert cell.outputs == [] and cell.execution_count is None and cell.source.strip(), cell.id
        assert not re.search(r"sys\.path|os\.chdir|%cd", cell.source), f"cell {cell.id} manipulates paths"


def parameter_values(path: Path) -> dict[str, Any]:
    """Return the values of the parameters of a notebook, which are typed literals in its first cell of code."""
    cell, preamble = code(nbformat.read(path, as_version=4))[:2]
    assert "parameters" in cell.metadata.get("tags", []) and "hide-input" in preamble.metadata.get("tags", [])
    statements = ast.parse(cell.source).body
    assert all(isinstance(statement, ast.AnnAssign) for statement in statements)
    return {statement.target.id: ast.literal_eval(statement.value) for statement in statements}


def test_figures_are_named_described_and_referred_to():
    cells = [cell for path in NOTEBOOKS for cell in nbformat.read(path, as_version=4).cells]
    names = []
    for cell in cells:
        # the captions of figures that have a name are computed
        if cell.cell_type == "code" and re.search(r"\bshow\((?!.*, name=)", cell.source):
            options = cell.metadata["mystnb"]
            name, caption, alt = *map(options["figure"].get, ("name", "caption")), options["image"]["alt"]
            caption = caption.strip()
            assert re.fullmatch(r"fig-[a-z0-9-]+", name) and caption.endswith((".", ")", "}")), name
            assert len(alt) >= 40 and alt.strip() != caption, f"{name}: the alternative text describes nothing: {alt!r}"
            names.append(name)
    assert len(names) == len(set(names))
    prose = [path.read_text(encoding="utf-8") for path in (ROOT / "book").rglob("*.md")]
    prose += [cell.source for cell in cells if cell.cell_type == "markdown"]
    referred = set(re.findall(r"\{numref\}`(?:[^`<]*<)?([\w-]+)", "\n".join(prose)))
    assert set(names) <= referred, f"no page refers to {sorted(set(names) - referred)}"
