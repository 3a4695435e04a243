"""Comparisons and licences of the release checks on cases whose answer is known, and the committed tables."""

import json

import numpy as np

from benchmarks import release
from benchmarks.release import COLUMNS, EXPLAINED, PERMISSIVE, compare, installed, licence, parts, read_lock, read_table


def test_folders_are_compared_bit_by_bit(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    numbers = {"a": np.array([0.0, 1.0]), "parameters": np.array([4.0, 0, 0, 0]), "images": np.array([0], np.uint8)}
    changed = numbers | {"a": np.array([-0.0, 1.0]), "parameters": np.array([4.0, 1, 0, 2])}
    data = {"text/csv": "x\n3\n", "image/svg+xml": ["<svg", "/>"], "image/png": "cG5n", "text/plain": "<figure>"}
    shown = {"metadata": {"mystnb": {"figure": {"name": "fig-a"}}}, "outputs": [{"data": data}]}
    other = {"metadata": {}, "outputs": [{"data": {"text/csv": "x\n"}}]}
    for folder, arrays, seconds in ((one, numbers, 1), (two, changed, 2)):
        folder.mkdir()
        np.savez(folder / "numbers.npz", **arrays)
        (folder / "tiny.csv").write_text(f"hash,mig,train_seconds\nb,1,{seconds}\n")
        (folder / "page.ipynb").write_text(json.dumps({"cells": [shown, other]}))
        data["text/csv"] = "x\n4\n"
    columns = ("equal", "compared", "difference", "median")
    assert {row["what"]: tuple(row.get(column) for column in columns) for row in compare(one, two)} == {
        "a": (False, "2 numbers", "0", ""),  # the sign of a zero is a bit too
        "parameters": (False, "4 numbers", "0.5", "0.12"),
        "images": (True, "1 number", "0", ""),
        "records of a sweep": (True, "1 runs", None, None),
        "numbers of figures": (False, "0 of 1 equal", None, None),
        "figures as SVG": (True, "1 of 1 equal", None, None),
        "figures as PNG": (True, "1 of 1 equal", None, None),
    }


def test_licences_are_read_from_metadata():
    other = {"license": "Apache 2.0", "classifier": ["License :: Other/Proprietary License"]}
    assert licence(other) == "proprietary" and licence({}) == "none stated"  # the stricter of the two
    expression = "(GPL-3.0 OR LGPL-3.0) AND Apache-2.0 WITH LLVM-exception AND GPL-3.0 OR MIT"
    assert parts(expression) == ["GPL-3.0", "Apache-2.0 WITH LLVM-exception", "MIT"]  # the first that is permissive


def test_committed_tables_have_their_columns_and_no_failure():
    assert {name: tuple(read_table(name)[0]) for name in COLUMNS} == COLUMNS
    assert {row["passed"] for row in read_table("machines")} <= {"yes", "not tried"}
    equal = {(row["condition"], row["what"]): row["equal"] for row in read_table("reproducibility")}
    again = [value for (condition, _), value in equal.items() if condition == release.AGAIN]
    assert len(again) > 10 and set(again) == {"yes"}
    assert equal[release.SEED, "parameters, fp32"] == equal[release.SEED, "mig, bf16"] == "no"


def test_licences_of_locked_packages_are_permissive():
    locked = read_lock("packages.txt") | read_lock("torch.txt")
    rows = {row["package"]: row for row in read_table("licences")}
    assert {name: f"=={row['version']}" for name, row in rows.items()} == {
        name: str(requirement.specifier) for name, (requirement, _) in locked.items()
    }
    stated = {part for row in rows.values() for part in parts(row["licence"])}
    assert stated <= PERMISSIVE | EXPLAINED and stated >= EXPLAINED
    of_module = {row["licence"] for row in rows.values() if row["for"] == "the module"}
    assert {name for name in of_module if not set(parts(name)) <= PERMISSIVE} <= {"MPL-2.0 AND MIT"}  # tqdm's own files
    here = {name: licence(*release.statements(installed()[name])) for name in rows.keys() & installed()}
    assert len(here) > 50 and here == {name: rows[name]["licence"] for name in here}
