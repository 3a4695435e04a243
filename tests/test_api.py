"""The chapter of the programming interface has everything that modules offer."""

import importlib
import inspect
import pkgutil
import re
from types import ModuleType

import pytest
from conftest import ROOT

import edition
import isa
from api import offered_above

OVERVIEW, *PAGES = [ROOT / "book" / "api.md", *sorted((ROOT / "book" / "api").glob("*.md"))]
DOCUMENTED = re.findall(r"^\.\. automodule:: (\S+)$", "\n".join(page.read_text() for page in PAGES), re.M)


def offered(module: ModuleType) -> list[str]:
    names = [name for name in getattr(module, "__all__", ()) if not inspect.ismodule(getattr(module, name))]
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return names or [name for name in defined if not name.startswith("_")]


def test_chapter_documents_every_public_module_once():
    names = ["isa", "edition"]
    names += [found.name for top in (isa, edition) for found in pkgutil.walk_packages(top.__path__, f"{top.__name__}.")]
    public = [name for name in names if "._" not in name and offered(importlib.import_module(name))]
    listed = re.findall(r"^   ((?:isa|edition)\S*)$", OVERVIEW.read_text(), re.M)
    assert sorted(DOCUMENTED) == sorted(public) == sorted(listed)
    assert [page.stem for page in PAGES if f"](api/{page.stem})" not in OVERVIEW.read_text()] == []


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
