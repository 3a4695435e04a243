"""One environment, said three times (pyproject.toml, constraints.txt, environment.yml), and what files keep to."""

from __future__ import annotations

import ast
import importlib.metadata
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version
from papermill import inspect_notebook

import isa

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
NOTEBOOKS = sorted((ROOT / "book").rglob("*.ipynb"))
NOTEBOOKS = [path for path in NOTEBOOKS if ".ipynb_checkpoints" not in path.parts]
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if not line.startswith("#")]


def pinned_versions() -> dict[str, Version]:
    return {canonicalize_name(pin.name): Version(str(pin.specifier).removeprefix("==")) for pin in pins()}


def requirements() -> list[Requirement]:
    groups = [PROJECT["build-system"]["requires"], PROJECT["project"]["dependencies"], *EXTRAS.values()]
    return [Requirement(text) for group in groups for text in group]


def committed_files() -> list[Path]:
    """Files that git has or would take; every file of the tree where this is no clone (an unpacked archive)."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode:
        ignored = {"_build", ".venv", ".git", ".hypothesis", ".pytest_cache", ".ruff_cache", "__pycache__"}
        paths = (path for path in ROOT.rglob("*") if path.is_file())
        return [path for path in paths if not ignored & set(path.relative_to(ROOT).parts)]
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def read_notebook(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def tagged(notebook: nbformat.NotebookNode, tag: str) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


# --- one environment --------------------------------------------------------------------------------------------------


def test_every_constraint_is_one_exact_version():
    for pin in pins():
        assert re.fullmatch(r"==\d[\w.]*", str(pin.specifier)), f"{pin} is not one public version"
        assert pin.url is None and pin.marker is None and not pin.extras, f"{pin} says more than a version"


def test_constraints_are_sorted_and_name_each_package_once():
    names = [pin.name.lower() for pin in pins()]
    assert names == sorted(names)
    canonical = [canonicalize_name(name) for name in names]
    assert len(canonical) == len(set(canonical))


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_each_dependency_is_pinned_to_a_version_that_it_allows(requirement):
    version = pinned_versions().get(canonicalize_name(requirement.name))
    assert version is not None, f"{requirement} is not in constraints.txt"
    assert requirement.specifier.contains(version), (
        f"constraints.txt has {version}, pyproject.toml asks for {requirement}"
    )


def test_constraints_hold_everything_that_this_environment_got_from_them():
    """What the package needs, followed to the end, is pinned, and what is pinned is installed in that version."""
    pinned = pinned_versions()
    todo = [(Requirement("isa[book,test]"), {""})]
    seen = set()
    unpinned, different = set(), {}
    while todo:
        requirement, extras = todo.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        name = canonicalize_name(requirement.name)
        if (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        distribution = importlib.metadata.distribution(name)
        if name != "isa":
            if name not in pinned:
                unpinned.add(name)
            elif Version(Version(distribution.version).public) != pinned[name]:
                different[name] = distribution.version, str(pinned[name])
        todo += [(Requirement(text), {"", *requirement.extras}) for text in distribution.requires or []]
    assert len(seen) > 50, "the walk over the dependencies ended early"
    assert not unpinned, f"installed, but not in constraints.txt: {sorted(unpinned)}"
    assert not different, f"installed in another version than pinned: {different}"


def test_nothing_installed_here_is_pinned_differently():
    pinned = pinned_versions()
    path = [folder for folder in sys.path if Path(folder).name != "_vendor"]  # copies that setuptools has for itself
    installed = {
        canonicalize_name(d.name): Version(Version(d.version).public)
        for d in importlib.metadata.distributions(path=path)
    }
    different = {
        name: (str(version), str(pinned[name]))
        for name, version in installed.items()
        if version != pinned.get(name, version)
    }
    assert not different, f"installed and pinned versions: {different}"


def test_conda_environment_is_the_same_set():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "isa"
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert pip == ["--constraint constraints.txt", "--editable .[book,test]"]
    python = next(Requirement(entry) for entry in conda if entry.startswith("python"))
    assert {Requirement(entry).name for entry in conda} == {"python", "pip"}
    assert python.specifier == SpecifierSet(PROJECT["project"]["requires-python"])


def test_make_installs_the_pinned_set():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "--editable '.[book,test]'" in makefile
    assert set(re.findall(r"^export (PIP_\w*CONSTRAINT) := constraints.txt$", makefile, re.MULTILINE)) == {
        "PIP_CONSTRAINT",
        "PIP_BUILD_CONSTRAINT",
    }
    oldest = re.search(r"version_info < \((\d+), (\d+)\)", makefile)
    assert PROJECT["project"]["requires-python"] == ">={}.{}".format(*oldest.groups())


def test_this_python_is_supported():
    assert SpecifierSet(PROJECT["project"]["requires-python"]).contains(".".join(map(str, sys.version_info[:3])))


# --- the machine that checks a change ---------------------------------------------------------------------------------


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "bare"])
@pytest.mark.parametrize("cars", [True, False], ids=["cars", "no-cars"])
def test_ci_installs_what_is_missing_then_runs_make_test(tmp_path, installed, cars):
    clone, commands, log = tmp_path / "a clone", tmp_path / "bin", tmp_path / "log"
    (clone / ".ci").mkdir(parents=True)
    commands.mkdir()
    shutil.copy(ROOT / ".ci" / "run", clone / ".ci" / "run")
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    if cars:
        (tmp_path / "shared" / "cars3d").mkdir(parents=True)
    for name in ("bash", "dirname", "env"):
        (commands / name).symlink_to(shutil.which(name))
    (commands / "python3").symlink_to(sys.executable)
    stubs = ["apt-get", "make", *(["chromium"] if installed else [])]
    for name in stubs:
        stub = commands / name
        stub.write_text(f'#!{shutil.which("bash")}\necho "{name} $* CI=$CI CARS=${{ISA_CARS3D:-}}" >> "{log}"\n')
        stub.chmod(0o755)
    environment = {"PATH": str(commands), "HOME": str(tmp_path)}
    ended = subprocess.run(
        [commands / "bash", clone / ".ci" / "run"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    *setup, last = log.read_text().splitlines()
    folder = tmp_path / "shared" / "cars3d" if cars else ""
    assert last == f"make test CI=true CARS={folder}"
    assert [line.split()[1] for line in setup] == ([] if installed else ["update", "install"])
    if not installed:
        assert "chromium" in setup[1].split() and "make" not in setup[1].split()


def test_ci_ends_with_the_exit_status_of_the_tests(tmp_path):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    (tmp_path / "Makefile").write_text("test:\n\t@exit 3\n")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("bash", "dirname", "make", "sh"):
        (commands / name).symlink_to(shutil.which(name))
    (commands / "python3").symlink_to(sys.executable)
    (commands / "chromium").symlink_to(commands / "bash")
    ended = subprocess.run(
        [commands / "bash", tmp_path / ".ci" / "run"], env={"PATH": str(commands)}, capture_output=True, timeout=60
    )
    assert ended.returncode != 0


# --- what the files say of themselves ---------------------------------------------------------------------------------


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["project"]["version"] == isa.__version__ == importlib.metadata.version("isa")


def test_citation_names_the_edition_and_prefers_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    for key in ("message", "title", "authors"):  # required by the format
        assert citation[key], key
    assert citation["license"] == PROJECT["project"]["license"] == "MIT"
    paper = citation["preferred-citation"]
    assert paper["type"] == "article"
    assert [author["family-names"] for author in paper["authors"]] == ["Stühmer", "Turner", "Nowozin"]
    assert {"type": "other", "value": "arXiv:1909.05063"} in paper["identifiers"]
    assert "MIT License" in (ROOT / "LICENSE").read_text(encoding="utf-8")


def test_top_level_is_complete():
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "CITATION.cff",
        "Makefile",
        "_config.yml",
        "_toc.yml",
        ".ci/run",
        "runs",
        "benchmarks",
    ):
        assert (ROOT / name).exists(), f"{name} is missing"


# Reference addresses that readers follow; everything else that looks like a host or a path of one machine stays out.
ADDRESSES = (
    "arxiv.org/",
    "doi.org/",
    "github.com/",
    "proceedings.mlr.press/",
    "openreview.net/",
    "mybinder.org",
    "creativecommons.org/",
    "example.org/",
    "w3.org/",  # names of what an SVG is written in
)
FORBIDDEN = re.compile(
    r"(?:https?|ftp|git|ssh)://(?P<address>[^\s)>\]\"'`}]+)"
    r"|(?P<number>\b(?:\d{1,3}\.){3}\d{1,3}\b)"
    r"|(?P<path>(?<![\w.$}/-])/(?:home|root|Users|work|opt|mnt|media|srv|tmp)/[\w.-]+)"
    r"|(?P<index>--(?:extra-)?index-url|--find-links|--trusted-host)"
)
LOOPBACK = {"127.0.0.1", "0.0.0.0"}


def foreign_places(text: str, bare_numbers: bool) -> list[str]:
    """Host names, addresses and absolute paths in a text, apart from references that readers follow."""
    found = []
    for match in FORBIDDEN.finditer(text):
        if match["address"] and match["address"].lower().removeprefix("www.").startswith(ADDRESSES):
            continue
        if match["number"] and (
            not bare_numbers or match["number"] in LOOPBACK or max(map(int, match["number"].split("."))) > 255
        ):
            continue
        found.append(match.group())
    return found


def test_foreign_places_are_told_from_references():
    clean = "see https://arxiv.org/abs/1909.05063, 127.0.0.1, 1.2.3, a/home/x, ../tmp/y, $HOME/work"
    assert foreign_places(clean, bare_numbers=True) == []
    for dirty in (
        "https://registry.example/simple",
        "10.0.0.1",
        "/" + "home/me/isa",
        "/" + "tmp/x",
        "--extra-" + "index-url",
    ):
        assert foreign_places(f"so {dirty} is there", bare_numbers=True), dirty


def test_no_host_address_or_machine_path_is_committed():
    found = {}
    for path in committed_files():
        data = path.read_bytes()
        if b"\0" in data or path == Path(__file__):
            continue
        # a version with four parts looks like an address, and lists of packages hold nothing but versions
        lists = path.name in ("constraints.txt", "licences.csv") or path.parent.name == "locks"
        places = foreign_places(data.decode("utf-8"), bare_numbers=not lists)
        if places:
            found[str(path.relative_to(ROOT))] = places
    assert not found


def test_nothing_that_is_built_is_committed():
    built = {"_build", "__pycache__", ".ipynb_checkpoints", ".venv"}
    assert not [path for path in committed_files() if built & set(path.relative_to(ROOT).parts)]


# --- the pages --------------------------------------------------------------------------------------------------------


def pages_of(entry: dict) -> list[str]:
    own = [entry[key] for key in ("root", "file") if key in entry]
    return own + [
        page for key in ("parts", "chapters", "sections") for child in entry.get(key, []) for page in pages_of(child)
    ]


TOC = pages_of(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))


def test_every_page_in_the_toc_exists_once():
    assert len(TOC) == len(set(TOC))
    for page in TOC:
        files = [path for path in (ROOT / f"{page}.md", ROOT / f"{page}.ipynb") if path.is_file()]
        assert len(files) == 1, f"_toc.yml names {page}, of which there are {len(files)} files"


def test_every_page_is_in_the_toc():
    written = {
        path.relative_to(ROOT).with_suffix("").as_posix() for path in (*NOTEBOOKS, *(ROOT / "book").rglob("*.md"))
    }
    assert written <= set(TOC), f"not in _toc.yml, so never built: {sorted(written - set(TOC))}"


@notebooks
def test_notebook_is_valid_and_committed_without_results(path):
    notebook = read_notebook(path)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None, f"cell {cell.id} holds results"
            assert cell.source.strip(), f"cell {cell.id} is empty"


@notebooks
def test_notebook_starts_with_one_title(path):
    first = read_notebook(path).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert len(first.source.split("\n", 1)) == 2, "a title without a word on what is asked"


@notebooks
def test_notebook_leaves_the_path_alone(path):
    source = "\n".join(cell.source for cell in read_notebook(path).cells if cell.cell_type == "code")
    assert "sys.path" not in source and "os.chdir" not in source and "%cd" not in source


@notebooks
def test_parameters_are_typed_commented_literals(path):
    notebook = read_notebook(path)
    (cell,) = tagged(notebook, "parameters")
    statements = ast.parse(cell.source).body
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(cell.source).readline)
        if token.type == tokenize.COMMENT
    }
    for statement in statements:
        assert isinstance(statement, ast.AnnAssign), f"not `name: type = literal`: {ast.unparse(statement)}"
        ast.literal_eval(statement.value)
        assert comments.get(statement.end_lineno), f"{statement.target.id} has no comment"
    names = [statement.target.id for statement in statements]
    assert len(names) == len(set(names))


@notebooks
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_papermill_finds_type_default_and_meaning_of_each_parameter(path):
    (cell,) = tagged(read_notebook(path), "parameters")
    expected = {s.target.id: ast.literal_eval(s.value) for s in ast.parse(cell.source).body}
    found = inspect_notebook(path)
    assert list(found) == list(expected)
    for name, parameter in found.items():
        assert parameter["inferred_type_name"] not in ("", "None"), f"{name} has no type"
        assert ast.literal_eval(parameter["default"]) == expected[name], name
        assert parameter["help"].strip(), f"{name} has no meaning"


@notebooks
def test_parameters_are_checked_before_anything_is_computed(path):
    """Right after the parameters come imports and names of types, then the check, which names every parameter."""
    code = [cell for cell in read_notebook(path).cells if cell.cell_type == "code"]
    assert "parameters" in code[0].metadata.get("tags", []), "code before the parameters"
    assert "hide-input" in code[1].metadata.get("tags", []), "the preamble is not hidden"
    preamble = iter(ast.parse(code[1].source).body)
    first = next(
        statement for statement in preamble if not isinstance(statement, ast.Import | ast.ImportFrom | ast.Assign)
    )
    assert isinstance(first, ast.Expr) and isinstance(first.value, ast.Call) and first.value.func.id == "parameters"
    declared = [keyword.arg for keyword in first.value.keywords]
    assert sorted(declared) == sorted(statement.target.id for statement in ast.parse(code[0].source).body)


def figures_of(notebook: nbformat.NotebookNode) -> list[tuple[nbformat.NotebookNode, dict]]:
    return [
        (cell, cell.metadata.get("mystnb", {}))
        for cell in notebook.cells
        if cell.cell_type == "code" and re.search(r"\bshow\(", cell.source)
    ]


@notebooks
def test_every_figure_has_a_name_a_caption_and_an_alternative_text(path):
    for cell, options in figures_of(read_notebook(path)):
        figure, image = options.get("figure", {}), options.get("image", {})
        assert re.fullmatch(r"fig-[a-z0-9-]+", figure.get("name", "")), f"cell {cell.id}: a figure without a name"
        assert figure.get("caption", "").strip().endswith((".", ")", "}")), (
            f"{figure['name']}: no caption, or no sentence"
        )
        alt = image.get("alt", "")
        assert len(alt) >= 40, f"{figure['name']}: the alternative text does not describe what is seen: {alt!r}"
        assert alt.strip() != figure["caption"].strip(), f"{figure['name']}: the alternative text is only the caption"


def test_no_two_figures_have_the_same_name():
    names = [options["figure"]["name"] for path in NOTEBOOKS for _, options in figures_of(read_notebook(path))]
    assert len(names) == len(set(names)), f"used twice: {sorted({name for name in names if names.count(name) > 1})}"


def test_every_figure_is_referred_to_by_its_number():
    names, prose = set(), [path.read_text(encoding="utf-8") for path in (ROOT / "book").rglob("*.md")]
    for path in NOTEBOOKS:
        notebook = read_notebook(path)
        names |= {options["figure"]["name"] for _, options in figures_of(notebook)}
        prose += [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    referred = set(re.findall(r"\{numref\}`(?:[^`<]*<)?([\w-]+)", "\n".join(prose)))
    assert names <= referred, f"no page refers to {sorted(names - referred)}"
