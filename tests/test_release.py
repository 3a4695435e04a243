"""What the release checks compare and read, on cases whose answer is known, and what the committed tables say."""

from __future__ import annotations

import base64
import json
import math

import numpy as np
import pytest
import release
from release import COLUMNS, EXPLAINED, PERMISSIVE, installed, licence, parts, read_lock, read_table

from edition import page
from edition.figures import style


@pytest.mark.parametrize(
    ("first", "other", "expected"),
    [
        ([1.0, math.nan, -math.inf], [1.0, math.nan, -math.inf], 0),
        ([0.0, 0.0], [0.0, 0.0], 0),
        ([4.0, 0.0], [4.0, 1.0], 0.25),
        ([1.0], [-2.0], 1.5),
        ([0.0, 0.0], [0.0], math.inf),
        ([1.0, math.nan], [1.0, 2.0], math.inf),
    ],
)
def test_differences_are_relative_to_the_largest_number(first, other, expected):
    assert release.differences(np.array(first), np.array(other)).max() == expected


@pytest.mark.parametrize(
    ("first", "other", "expected"),
    [
        ("x,y\na,2\na,8\n", "x,y\na,2\na,6\n", 0.25),
        ("x,y\na,\n", "x,y\na,\n", 0),
        ("x,y\na,2\n", "x,y\nb,2\n", math.inf),
        ("x,y\na,2\n", "x,y\na,\n", math.inf),
        ("x,y\na,2\n", "x,y\na,2\na,2\n", math.inf),
        ("x,y\na,2\n", "x,z\na,2\n", math.inf),
    ],
)
def test_tables_are_compared_column_by_column(first, other, expected):
    assert release.table_difference(first, other) == expected


def test_numbers_are_compared_bit_by_bit(tmp_path):
    numbers = {"a": np.array([0.0, 1.0]), "parameters": np.array([4.0, 0, 0, 0]), "images": np.array([0], np.uint8)}
    changed = numbers | {"a": np.array([-0.0, 1.0]), "parameters": np.array([4.0, 1, 0, 2])}
    np.savez(tmp_path / "one.npz", **numbers)
    np.savez(tmp_path / "two.npz", **changed)
    assert list(release.compare_numbers(tmp_path / "one.npz", tmp_path / "two.npz")) == [
        ("a", False, 0, "2 numbers", None),  # the sign of a zero is a bit too
        ("parameters", False, 0.5, "4 numbers", 0.125),
        ("images", True, 0, "1 number", None),
    ]


def figure(y: float) -> dict[str, bytes]:
    return {"fig-a.csv": f"x,y\n1,{y}\n".encode(), "fig-a.svg": b"<svg/>", "fig-a.png": b"png"}


def test_figures_are_compared_by_numbers_and_by_picture():
    assert list(release.compare_figures(figure(1), figure(2) | {"fig-b.png": b"more"})) == [
        ("numbers of figures", False, 0.5, "0 of 1 equal", None),
        ("figures as SVG", True, None, "1 of 1 equal", None),
        ("figures as PNG", False, None, "1 of 2 equal", None),
    ]
    assert next(release.compare_figures(figure(1), {})).difference == math.inf


def test_figures_are_found_in_notebooks_and_in_built_books(tmp_path):
    expected = figure(3)
    data = {"text/csv": expected["fig-a.csv"].decode(), "image/svg+xml": ["<svg", "/>"], "text/plain": "<figure>"}
    data["image/png"] = base64.b64encode(expected["fig-a.png"]).decode()
    shown = {"cell_type": "code", "metadata": {"mystnb": {"figure": {"name": "fig-a"}}}, "outputs": [{"data": data}]}
    other = {"cell_type": "code", "metadata": {}, "outputs": [{"data": {"text/csv": "x\n"}}]}
    (tmp_path / "page.ipynb").write_text(json.dumps({"cells": [shown, other]}))
    assert release.figures_of_page(tmp_path / "page.ipynb") == expected
    for number, (name, content) in enumerate(expected.items()):
        path = tmp_path / "_build" / "html" / "_downloads" / str(number) / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    assert release.figures_of_book(tmp_path) == expected


def test_figure_is_shown_in_the_same_bytes_every_time(monkeypatch):
    bundles = []
    monkeypatch.setattr(page, "display", lambda bundle, raw: bundles.append(bundle))
    for _ in range(2):
        figure, axes = style.subplots(1, 2, height=1.5)
        axes[0].plot([0, 1], [1, 0], marker="o")  # markers and clips have names in an SVG
        axes[1].imshow([[0, 1], [1, 0]])
        page.show(figure)
    assert bundles[0] == bundles[1]


@pytest.mark.parametrize(
    ("metadata", "texts", "expected"),
    [
        ({"license_expression": "MIT AND PSF-2.0", "license": "other"}, (), "MIT AND PSF-2.0"),
        ({"license": "BSD 3-Clause License", "classifier": ["License :: BSD License"]}, (), "BSD-3-Clause"),
        ({"license": "Copyright (c) X", "classifier": ["License :: OSI Approved :: BSD License"]}, (), "BSD"),
        ({"license": "Apache 2.0", "classifier": ["License :: Other/Proprietary License"]}, (), "proprietary"),
        ({"classifier": ["License :: OSI Approved"]}, ["Permission is hereby\ngranted, free of charge"], "MIT"),
        ({"license": "All rights reserved"}, (), "none stated"),
    ],
)
def test_licence_is_read_from_metadata(metadata, texts, expected):
    assert licence(metadata, texts) == expected


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("Apache-2.0 WITH LLVM-exception AND MIT", ["Apache-2.0 WITH LLVM-exception", "MIT"]),
        ("(GPL-3.0 OR LGPL-3.0) AND BSD", ["GPL-3.0", "BSD"]),
        ("GPL-3.0 OR MIT", ["MIT"]),
    ],
)
def test_licence_expression_comes_apart(expression, expected):
    assert parts(expression) == expected


# --- the committed tables ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLUMNS)
def test_table_has_its_columns(name):
    assert tuple(read_table(name)[0]) == COLUMNS[name]


def test_no_recorded_machine_failed():
    assert {row["passed"] for row in read_table("machines")} <= {"yes", "not tried"}


def test_a_repetition_is_recorded_as_equal_and_another_seed_as_different():
    rows = read_table("reproducibility")
    again = {row["what"]: row["equal"] for row in rows if row["condition"] == release.AGAIN}
    assert len(again) > 10 and set(again.values()) == {"yes"}
    seed = {row["what"]: row["equal"] for row in rows if row["condition"] == release.SEED}
    assert seed["parameters, fp32"] == seed["mig, bf16"] == "no"


def test_every_locked_package_has_a_licence_that_allows_this_project_its_own():
    locked = read_lock("packages.txt") | read_lock("torch.txt")
    rows = {row["package"]: row for row in read_table("licences")}
    assert {name: f"=={row['version']}" for name, row in rows.items()} == {
        name: str(requirement.specifier) for name, (requirement, _) in locked.items()
    }
    stated = {part for row in rows.values() for part in parts(row["licence"])}
    assert stated <= PERMISSIVE | EXPLAINED and stated >= EXPLAINED
    of_module = {row["licence"] for row in rows.values() if row["for"] == "the module"}
    assert {name for name in of_module if not set(parts(name)) <= PERMISSIVE} <= {"MPL-2.0 AND MIT"}  # tqdm's own files
    here = {name: licence(*found) for name in rows if (found := installed(name))}
    assert len(here) > 50 and here == {name: rows[name]["licence"] for name in here}
