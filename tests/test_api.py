"""The chapter of the programming interface holds everything that modules offer, and its examples are run."""

from __future__ import annotations

import ast
import doctest
import importlib
import importlib.util
import inspect
import pkgutil
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import edition
import isa

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "book" / "api.md", *sorted((ROOT / "book" / "api").glob("*.md"))]
DOCUMENTED = [name for page in PAGES for name in re.findall(r"^\.\. automodule:: (\S+)$", page.read_text(), re.M)]
PACKAGES = (isa, edition)
FILES = sorted(file for package in PACKAGES for file in Path(package.__file__).parent.rglob("*.py"))


def public_modules() -> list[str]:
    """Modules that have something to say: packages which are only a room for their modules have not."""
    names = [package.__name__ for package in PACKAGES]
    names += [module.name for one in PACKAGES for module in pkgutil.walk_packages(one.__path__, f"{one.__name__}.")]
    public = [name for name in names if not any(part.startswith("_") for part in name.split("."))]
    return [name for name in public if offered(importlib.import_module(name))]


def offered(module: ModuleType) -> list[str]:
    own = [name for name in getattr(module, "__all__", ()) if not inspect.ismodule(getattr(module, name))]
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return own or [name for name in defined if not name.startswith("_")]


def test_every_public_module_is_in_the_chapter_once():
    assert sorted(DOCUMENTED) == sorted(public_modules())


def test_the_overview_lists_what_the_pages_document():
    listed = re.findall(r"^   ((?:isa|edition)\S*)$", PAGES[0].read_text(), re.M)
    assert sorted(listed) == sorted(DOCUMENTED)
    for page in PAGES[1:]:
        assert f"](api/{page.stem})" in PAGES[0].read_text(), f"the overview does not lead to {page.stem}"


def test_members_come_from_the_modules_and_not_from_the_pages():
    options = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["sphinx"]["config"]
    assert options["autodoc_default_options"]["members"] is True
    for page in PAGES:
        assert not re.search(r":(exclude-)?members:|autoclass|autofunction|py:function", page.read_text()), page.name


@pytest.mark.parametrize("name", DOCUMENTED)
def test_what_a_module_offers_exists_and_has_words(name):
    module = importlib.import_module(name)
    names = offered(module)
    assert len(names) == len(set(names))
    for member in names:
        value = getattr(module, member)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{member} has no docstring"


def extension() -> ModuleType:
    spec = importlib.util.spec_from_file_location("api_extension", ROOT / "book" / "_ext" / "api.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_name_that_a_package_offers_is_documented_there_alone():
    above = extension().offered_above
    assert above("isa.prior.lpnested", "LpNested") and above("isa.data.base", "FactorDataset")
    assert not above("isa", "LpNested")
    assert not above("isa.data.dsprites", "load"), "another function of the same name"
    assert not above("isa.prior", "kl_monte_carlo"), "offered nowhere else"


def examples(path: Path) -> list[doctest.Example]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    return [example for text in texts for example in doctest.DocTestParser().get_examples(text)]


def test_every_example_is_run_as_a_test():
    """``make test`` collects the doctests of ``isa`` and ``edition``, and no example asks to be passed over."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert "--doctest-modules" in options["addopts"].split() and {"isa", "book/edition"} <= set(options["testpaths"])
    found = {path: examples(path) for path in FILES}
    assert sum(map(len, found.values())) >= 20
    skipped = [path.name for path, some in found.items() for one in some if doctest.SKIP in one.options]
    assert not skipped


def test_code_that_is_shown_as_a_session_is_an_example():
    """A line with a prompt that doctest does not see (indented wrongly, or in no docstring) would never be run."""
    for path in FILES:
        prompts = len(re.findall(r"^\s*>>> ", path.read_text(encoding="utf-8"), re.M))
        assert prompts == len(examples(path)), path.name
