"""Pages: parameters that are checked, figures in three formats, numbers for the prose."""

from __future__ import annotations

import ast
import base64
import io
import math
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Annotated, Any

import myst_nb
import nbformat
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from pydantic import Field

import edition.page
from edition.figures.style import BookFigure
from edition.page import (
    Count,
    Exponent,
    ParameterError,
    Positive,
    Probability,
    Seed,
    glue,
    missing,
    parameter_table,
    parameters,
    show,
    table,
)
from isa.sweep import Records, Spec, sweep

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted(path for path in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)


def parameters_cell(path: Path) -> nbformat.NotebookNode:
    cells = nbformat.read(path, as_version=4).cells
    return next(cell for cell in cells if "parameters" in cell.metadata.get("tags", []))


def check(declared: dict[str, Any], **given: Any) -> None:
    """Call ``parameters`` as a notebook would that holds these values."""
    exec("check(**declared)", {"check": parameters, "declared": declared} | given)


def message(declared: dict[str, Any], **given: Any) -> str:
    with pytest.raises(ParameterError) as caught:
        check(declared, **given)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- parameters -------------------------------------------------------------------------------------------------------

LIST = Annotated[list[Exponent], Field(min_length=1)]
GOOD = [(Exponent, 0.2), (Exponent, 2), (Exponent, 50.0), (Positive, 1e-300), (Probability, 0.5), (Count, 1), (Seed, 0)]
GOOD += [(Seed, 2**63 - 1), (str, ""), (bool, True), (list[int], []), (LIST, [1.0, 2.0]), (list, [1, "a"])]
BAD = [
    (Exponent, 0.19, "greater than or equal to 0.2"),
    (Exponent, 50.1, "less than or equal to 50"),
    (Exponent, math.nan, ""),
    (Exponent, "2.1", "valid number"),
    (Exponent, True, "valid number"),
    (Positive, 0.0, "greater than 0"),
    (Positive, math.inf, "finite"),
    (Probability, 1.0, "less than 1"),
    (Count, 0, "greater than or equal to 1"),
    (Count, 2.0, "valid integer"),
    (Seed, -1, "greater than or equal to 0"),
    (str, 3, "valid string"),
    (bool, 1, "valid boolean"),
    (list[int], (1, 2), "valid list"),
    (LIST, [], "at least 1 item"),
    (LIST, [1.0, 2.0, 0.0], ": item [2]: "),
    (LIST, "[1, 2]", "(papermill takes lists by -y, not by -p)"),
]


def test_right_values_pass():
    for number, (kind, value) in enumerate(GOOD):
        check({f"x{number}": kind}, **{f"x{number}": value}, my_number=3, function=len)  # others are left alone


@pytest.mark.parametrize("kind, value, allowed", BAD)
def test_wrong_values_end_in_a_sentence_that_names_them(kind, value, allowed):
    text = message({"x": kind}, x=value)
    assert text.startswith(f"x = {value!r}: ") and allowed in text


def test_all_problems_are_named_at_once():
    text = message({"p0": Exponent, "p1": Exponent, "n": Count, "seed": Seed}, p0=0.0, n=1.5)
    assert [part.split(" ")[0] for part in text.split(" | ")] == ["p0", "p1", "n", "seed"]
    assert text.endswith("seed is not set")


# --- figures, numbers, tables -----------------------------------------------------------------------------------------


@pytest.fixture
def displayed(monkeypatch) -> list[dict[str, str]]:
    bundles = []
    monkeypatch.setattr(edition.page, "display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def test_show_gives_one_output_with_svg_png_and_csv(displayed):
    figure = plt.figure(figsize=(3, 2), FigureClass=BookFigure)
    figure.record({"x": [1, 2], "y [nats]": 0.5})
    show(figure, dpi=100)
    (bundle,) = displayed
    assert set(bundle) == {"image/svg+xml", "image/png", "text/csv", "text/plain"}
    assert bundle["text/csv"] == "x,y [nats]\n1,0.5\n2,0.5\n"
    assert ElementTree.fromstring(bundle["image/svg+xml"]).tag.endswith("}svg")
    pixels = plt.imread(io.BytesIO(base64.b64decode(bundle["image/png"])))
    assert pixels.shape[:2] == (200, 300)
    assert bundle["text/plain"] == "<figure, 3.0 x 2.0 in>"
    assert not plt.fignum_exists(figure.number), "an open figure shows a second time"


@pytest.mark.parametrize("options", [{}, {"FigureClass": BookFigure}])
def test_figure_without_numbers_has_no_csv(displayed, options):
    show(plt.figure(**options))
    assert set(displayed[0]) == {"image/svg+xml", "image/png", "text/plain"}


def test_show_is_the_same_on_another_day(displayed):
    for _ in range(2):
        figure, ax = plt.subplots()
        ax.plot([1, 2])
        show(figure)
    with_dates = [bundle["image/svg+xml"] for bundle in displayed]
    assert "<dc:date>" not in with_dates[0]


@pytest.mark.parametrize(
    "value, expected",
    [
        (1.5, 1.5),
        ("a", "a"),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (np.bool_(True), True),
        (np.array(2.5), 2.5),
        (torch.tensor(0.25, requires_grad=True), 0.25),
    ],
    ids=lambda value: f"{type(value).__name__}-{value}",
)
def test_glue_gives_the_prose_plain_numbers(monkeypatch, value, expected):
    glued = {}
    monkeypatch.setattr(myst_nb, "glue", lambda name, value, display: glued.update({name: (value, display)}))
    glue(number=value)
    (result, display) = glued["number"]
    assert result == expected and type(result) is type(expected) and display is False


def test_table_has_a_line_for_each_row():
    text = table(("a", "b"), [(1, 2.5), ("float | None", r"$\|x\|$")]).data
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| 1 | 2.5 |", r"| float \| None | $\\|x\\|$ |"]


SPEC = """
title: two runs, and two more
every: {dataset: dsprites, steps: 1}
tiers:
  1: [{objective: beta-vae, seeds: 2}]
  2: [{objective: isa-vae, seeds: 2}]
"""


@pytest.mark.parametrize("in_root", [True, False])
def test_missing_runs_are_counted_and_the_command_named(tmp_path, monkeypatch, in_root):
    monkeypatch.setattr(edition.page, "ROOT", tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "page").mkdir()
    monkeypatch.chdir(tmp_path if in_root else tmp_path / "page")
    (tmp_path / "runs" / "x.yaml").write_text(SPEC)
    spec = Spec.read(tmp_path / "runs" / "x.yaml")
    nothing, first = sweep(spec, budget=0), sweep(spec, tier=1, budget=0)

    def recorded(*states: str) -> Records:
        rows = [{**run.to_dict(), "status": state} for run, state in zip(spec.runs(), states, strict=False)]
        return Records(rows, spec.runs()[len(states) :], nothing.command)

    some, whole = recorded("trained"), recorded("trained", "diverged", "trained", "trained")
    command = "`isa sweep runs/x.yaml`"
    in_full = f"Recorded in full: 4 runs, by {command}. Diverged, and so without measurements: 1."
    for records, text in (
        ([nothing], f"Not recorded yet: 4 runs. {command} trains them."),
        ([some], f"Recorded so far: 1 of 4 runs. {command} trains the rest."),
        ([some, some], f"Recorded so far: 2 of 8 runs. {command} trains the rest."),
        ([some.select(objective="beta-vae", seed=0)], f"Recorded in full: 1 run, by {command}."),
        ([some.select(objective="factor-vae")], "No such run is named by the specifications."),
        ([first, whole], f"Not recorded yet: 2 runs. {command[:-1]} --tier 1` trains them.\n\n{in_full}"),
    ):
        assert missing(*records).data == text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_parameter_table_has_every_parameter_of_every_notebook():
    text = parameter_table(NOTEBOOKS).data
    expected = []
    for path in NOTEBOOKS:
        source = parameters_cell(path).source
        expected.append(path.relative_to(ROOT).as_posix())
        for statement in ast.parse(source).body:
            value = ast.get_source_segment(source, statement.value)
            one_line = re.sub(r"\n\s*", " ", re.sub(r",\n\s*(?=[\])}])|(?<=[\[({])\n\s*", "", value))
            expected.append((statement.target.id, one_line))
    rows = re.findall(r"^\*\*(book/\S+)\*\*$|^\| `(\w+)` \| \w+ \| `(.+)` \| \S.* \|$", text, re.MULTILINE)
    assert [page or (name, default) for page, name, default in rows] == expected


# --- the notebooks themselves -----------------------------------------------------------------------------------------


def run_preamble(path: Path, **injected: Any) -> None:
    """Execute a notebook as far as its check, with what papermill would put after its parameters."""
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code[0].source, str(path), "exec"), namespace)
    namespace.update(injected)
    exec(compile(code[1].source, str(path), "exec"), namespace)


def defaults(path: Path) -> dict[str, Any]:
    body = ast.parse(parameters_cell(path).source).body
    return {statement.target.id: ast.literal_eval(statement.value) for statement in body}


def outside(value: Any) -> Any:
    """A value of the same type as this one, but in no sensible range."""
    if isinstance(value, list):
        return [outside(value[0]), *value[1:]]
    return {int: -(10**30), float: -math.inf, str: "?"}[type(value)]  # words stand in lists only


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_parameter_of_each_notebook_has_a_type_and_numbers_a_range(path):
    for name, value in defaults(path).items():
        wrong = [0 if isinstance(value, str) else "text"]
        wrong += [] if isinstance(value, str | bool) or value == [] else [outside(value)]
        for given in wrong:
            with pytest.raises(ParameterError, match=rf"^{name} = "):
                run_preamble(path, **{name: given})


def papermill(path: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(
        [sys.executable, "-m", "papermill", "--no-progress-bar", os.path.relpath(path, cwd), *arguments],
        cwd=cwd,
        env=clean,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )


CHEAP = ROOT / "book" / "prior" / "functions.ipynb"


def test_papermill_with_a_parameter_out_of_range_ends_in_one_sentence(tmp_path):
    """Also from another folder, and from a file of parameters."""
    (tmp_path / "x.yaml").write_text("p0: 0.0\n")
    ended = papermill(CHEAP, tmp_path, "out.ipynb", "-f", "x.yaml")
    assert ended.returncode != 0
    assert (
        ended.stderr.rstrip().splitlines()[-1]
        == "ParameterError: p0 = 0.0: input should be greater than or equal to 0.2"
    )
    assert "book/edition/page.py" not in ended.stderr and "Input In" not in ended.stderr
    failed = [cell for cell in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells if cell.get("outputs")]
    assert [output.output_type for output in failed[-1].outputs if output.output_type != "stream"] == ["error"]


def test_papermill_runs_a_notebook_with_other_parameters_from_any_folder(tmp_path):
    ended = papermill(CHEAP, tmp_path, "out.ipynb", "-p", "p0", "3.0", "-p", "resolution", "12")
    assert ended.returncode == 0, ended.stderr
    notebook = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    (injected,) = [cell for cell in notebook.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    assert "p0 = 3.0" in injected.source
    kinds = {kind for cell in notebook.cells for output in cell.get("outputs", []) for kind in output.get("data", {})}
    assert {"image/svg+xml", "image/png", "text/csv"} <= kinds
