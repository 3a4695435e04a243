"""The chapter of the programming interface has everything that modules offer, and its examples are run."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
from tiny_book import ROOT

import edition
import isa
from api import offered_above

PAGES = [ROOT / "book" / "api.md", *sorted((ROOT / "book" / "api").glob("*.md"))]
DOCUMENTED = [name for page in PAGES for name in re.findall(r"^\.\. automodule:: (\S+)$", page.read_text(), re.M)]
PACKAGES = (isa, edition)


def offered(module: ModuleType) -> list[str]:
    names = [name for name in getattr(module, "__all__", ()) if not inspect.ismodule(getattr(module, name))]
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return names or [name for name in defined if not name.startswith("_")]


def test_chapter_documents_every_public_module_once():
    names = [package.__name__ for package in PACKAGES]
    names += [module.name for one in PACKAGES for module in pkgutil.walk_packages(one.__path__, f"{one.__name__}.")]
    public = [name for name in names if "._" not in name and offered(importlib.import_module(name))]
    overview = PAGES[0].read_text()
    listed = re.findall(r"^   ((?:isa|edition)\S*)$", overview, re.M)
    assert sorted(DOCUMENTED) == sorted(public) == sorted(listed)
    assert [page.stem for page in PAGES[1:] if f"](api/{page.stem})" not in overview] == []


@pytest.mark.parametrize("name", DOCUMENTED)
def test_members_are_unique_and_have_docstrings(name):
    module = importlib.import_module(name)
    names = offered(module)
    assert len(names) == len(set(names))
    values = {member: getattr(module, member) for member in names}
    functions = {member for member, value in values.items() if inspect.isclass(value) or inspect.isfunction(value)}
    assert [member for member in functions if not inspect.getdoc(values[member])] == []


def test_name_that_a_package_offers_is_documented_there_alone():
    assert offered_above("isa.prior.lpnested", "LpNested") and offered_above("isa.data.base", "FactorDataset")
    assert not offered_above("isa", "LpNested")
    assert not offered_above("isa.data.dsprites", "load"), "another function of the same name"
    assert not offered_above("isa.prior", "kl_monte_carlo"), "offered nowhere else"


def test_examples_are_run_as_tests():
    """``make test`` collects the doctests of both packages, which hold every line with a prompt and skip none."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    assert "--doctest-modules" in options["addopts"].split() and {"isa", "book/edition"} <= set(options["testpaths"])
    count = 0
    for path in [file for package in PACKAGES for file in Path(package.__file__).parent.rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        docstrings = re.findall(r'"""(.*?)"""', text, re.DOTALL)
        examples = [one for words in docstrings for one in doctest.DocTestParser().get_examples(words)]
        assert len(examples) == len(re.findall(r"^\s*>>> ", text, re.M)), path.name
        assert not [one.source for one in examples if doctest.SKIP in one.options]
        count += len(examples)
    assert count >= 20
