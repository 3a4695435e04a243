"""Pages that share a notebook differ from it as ``book/variants.yaml`` says."""

from types import SimpleNamespace

import nbformat
import pages
import pytest
import variants
import yaml
from conftest import ROOT
from papermill import inspect_notebook

CHANGES = yaml.safe_load((ROOT / "book/variants.yaml").read_text("utf-8"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", CHANGES)
def test_variant_has_its_own_parameters_and_cells(name, tmp_path):
    change, path = CHANGES[name], tmp_path / "page.ipynb"
    text = (ROOT / f"{change['from']}.ipynb").read_text("utf-8")
    path.write_text(variants.variant(text, change), "utf-8")
    before, after = (nbformat.reads(page, as_version=4) for page in (text, path.read_text("utf-8")))
    nbformat.validate(after)
    ids, without = [cell.id for cell in before.cells], change.get("without", [])
    assert {*change.get("cells", ()), *without} <= set(ids)
    assert [cell.id for cell in after.cells] == [name for name in ids if name not in without]
    parameters = {name: yaml.safe_load(entry["default"]) for name, entry in inspect_notebook(path).items()}
    assert {key: parameters[key] for key in change["parameters"]} == change["parameters"]
    assert after.cells[0].source.partition("\n")[0] != before.cells[0].source.partition("\n")[0]


def test_foot_of_a_variant_names_its_source(tmp_path):
    source = [variants.variant('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}', {"from": "book/a"})]
    env = SimpleNamespace(doc2path=lambda name: f"{name}.ipynb", found_docs=())
    pages.add_foot(SimpleNamespace(env=env, config=SimpleNamespace(repository="")), "book/b", source)
    assert "`make book` writes from `book/a.ipynb`" in source[0] and "papermill book/b.ipynb b-out.ipynb" in source[0]


def test_missing_word_is_named():
    with pytest.raises(ValueError, match="a does not contain y"):
        variants.variant('{"cells": ["x"]}', {"from": "a", "replace": {"y": "z"}})


def test_unchanged_page_is_not_written_again(tmp_path):
    (tmp_path / "book").mkdir()
    (tmp_path / "book/variants.yaml").write_text("book/b: {from: book/a}")
    (tmp_path / "book/a.ipynb").write_text('{"cells": [], "metadata": {}}')
    page = tmp_path / "book/b.ipynb"
    times = [variants.write(tmp_path) or page.stat().st_mtime_ns for _ in range(2)]
    assert times[0] == times[1]
