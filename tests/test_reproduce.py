"""The comparisons of two builds, on files whose differences are known."""

from __future__ import annotations

import base64
import csv
import json
import math

import numpy as np
import pytest
import reproduce
from reproduce import COLUMNS, CONDITIONS, TABLE, compare_figures, compare_numbers, difference, table_difference

from edition import page
from edition.figures import style


def test_equal_arrays_differ_by_nothing():
    assert difference(np.array([1.0, np.nan, -np.inf]), np.array([1.0, np.nan, -np.inf])) == 0
    assert difference(np.zeros(3), np.zeros(3)) == 0


def test_a_difference_is_relative_to_the_largest_number():
    assert difference(np.array([4.0, 0.0]), np.array([4.0, 1.0])) == 0.25
    assert difference(np.array([1.0]), np.array([-2.0])) == 1.5
    images = np.array([0, 255], np.uint8), np.array([255, 255], np.uint8)
    assert difference(*images) == 1, "no wrapping around of small integers"


def test_what_cannot_be_compared_is_infinitely_far():
    assert difference(np.zeros(2), np.zeros(3)) == math.inf
    assert difference(np.array([1.0, np.nan]), np.array([1.0, 2.0])) == math.inf


HEAD = "panel,kind,x,y\n"


@pytest.mark.parametrize(
    ("first", "other", "expected"),
    [
        ("a,line,1,2\n", "a,line,1,2\n", 0),
        ("a,line,1,2\na,line,2,8\n", "a,line,1,2\na,line,2,6\n", 0.25),
        ("a,line,1,\n", "a,line,1,\n", 0),
        ("a,line,1,2\n", "b,line,1,2\n", math.inf),
        ("a,line,1,2\n", "a,line,1,\n", math.inf),
        ("a,line,1,2\n", "a,line,1,2\na,line,1,2\n", math.inf),
    ],
)
def test_tables_are_compared_column_by_column(first, other, expected):
    assert table_difference(HEAD + first, HEAD + other) == expected


def test_tables_with_other_columns_are_infinitely_far():
    assert table_difference("x,y\n1,2\n", "x,z\n1,2\n") == math.inf


def test_numbers_are_compared_bit_by_bit(tmp_path):
    held = {"a": np.array([0.0, 1.0]), "parameters": np.array([4.0, 0, 0, 0]), "images": np.array([1], np.uint8)}
    np.savez(tmp_path / "one.npz", digests=json.dumps({"images": "x"}), **held)
    changed = held | {"a": np.array([-0.0, 1.0]), "parameters": np.array([4.0, 1, 0, 2])}
    np.savez(tmp_path / "two.npz", digests=json.dumps({"images": "y"}), **changed)
    found = list(compare_numbers(tmp_path / "one.npz", tmp_path / "two.npz"))
    assert found == [
        ("a", False, 0, "2 numbers", None),  # the sign of a zero is a bit too
        ("parameters", False, 0.5, "4 numbers", 0.125),
        ("images", False, 0, "1 number", None),  # the same where it was looked at, not as a whole
    ]
    assert all(one.equal for one in compare_numbers(tmp_path / "one.npz", tmp_path / "one.npz"))


def figure(y: float) -> dict[str, bytes]:
    return {"fig-a.csv": f"x,y\n1,{y}\n".encode(), "fig-a.svg": b"<svg/>", "fig-a.png": b"png"}


def test_figures_are_compared_by_numbers_and_by_picture():
    found = list(compare_figures(figure(1), figure(2) | {"fig-b.png": b"more"}))
    assert found == [
        ("numbers of figures", False, 0.5, "0 of 1 equal", None),
        ("figures as SVG", True, None, "1 of 1 equal", None),
        ("figures as PNG", False, None, "1 of 2 equal", None),
    ]
    assert next(iter(compare_figures(figure(1), {}))).difference == math.inf


def test_figures_are_found_in_notebooks_and_in_built_books(tmp_path):
    held = figure(3)
    data = {"text/csv": held["fig-a.csv"].decode(), "image/svg+xml": ["<svg", "/>"], "text/plain": "<figure>"}
    data["image/png"] = base64.b64encode(held["fig-a.png"]).decode()
    shown = {"cell_type": "code", "metadata": {"mystnb": {"figure": {"name": "fig-a"}}}, "outputs": [{"data": data}]}
    other = {"cell_type": "code", "metadata": {}, "outputs": [{"data": {"text/csv": "x\n"}}]}
    (tmp_path / "page.ipynb").write_text(json.dumps({"cells": [shown, other]}))
    assert reproduce.figures_of_page(tmp_path / "page.ipynb") == held
    for number, (name, content) in enumerate(held.items()):
        path = tmp_path / "_build" / "html" / "_downloads" / f"{number}" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    assert reproduce.figures_of_book(tmp_path) == held
    assert len(reproduce.digest(held)) == 64 and reproduce.digest(held) != reproduce.digest(figure(4))
    with pytest.raises(ValueError, match="make book"):
        reproduce.figures_of_book(tmp_path / "nothing")


def test_a_figure_is_shown_in_the_same_bytes_every_time(monkeypatch):
    bundles = []
    monkeypatch.setattr(page, "display", lambda bundle, raw: bundles.append(bundle))
    for _ in range(2):
        with style.styled():
            figure, axes = style.subplots(1, 2, height=1.5)
            axes[0].plot([0, 1], [1, 0], marker="o")  # markers and clips are what has a name of its own
            axes[1].imshow([[0, 1], [1, 0]])
            page.show(figure)
    assert bundles[0] == bundles[1]
    assert set(bundles[0]) == {"text/csv", "image/svg+xml", "image/png", "text/plain"}


def test_rows_take_the_place_of_older_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "TABLE", tmp_path / "table.csv")
    row = dict.fromkeys(COLUMNS, "")
    reproduce.write([row | {"what": "a", "condition": "x", "equal": "no"}, row | {"what": "b", "condition": "x"}])
    reproduce.write([row | {"what": "a", "condition": "x", "equal": "yes"}])
    with (tmp_path / "table.csv").open(newline="") as file:
        held = [(one["what"], one["equal"]) for one in csv.DictReader(file)]
    assert held == [("a", "yes"), ("b", "")]
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


@pytest.mark.skipif(not TABLE.exists(), reason="nothing is recorded yet")
def test_what_is_recorded_holds_what_the_page_claims():
    """The same again gives the same; the comparison can tell another seed."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    again = {row["what"]: row["equal"] for row in rows if row["condition"] == reproduce.AGAIN}
    assert len(again) > 10 and set(again.values()) == {"yes"}, again
    seed = {row["what"]: row["equal"] for row in rows if row["condition"] == CONDITIONS[-1].name}
    if seed:  # the last to be recorded
        assert seed["parameters, fp32"] == seed["mig, bf16"] == "no"
