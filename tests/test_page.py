"""Pages: parameters that are checked, figures in three formats, numbers for the prose."""

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

import nbformat
import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from myst_nb.ext import glue as mystnb
from pydantic import Field
from test_environment import parameter_values
from tiny_book import NOTEBOOKS, ROOT

from edition import page
from edition.figures.style import BookFigure
from edition.page import Count, Exponent, ParameterError, Positive, Probability, Seed, parameters
from isa.sweep import Records, Spec, sweep


def check(declared: dict[str, Any], **given: Any) -> None:
    """Call ``parameters`` as a notebook with these values does."""
    exec("check(**declared)", {"check": parameters, "declared": declared} | given)


LIST = Annotated[list[Exponent], Field(min_length=1)]
GOOD = [(Exponent, 0.2), (Exponent, 2), (Exponent, 50.0), (Positive, 1e-300), (Probability, 0.5), (Count, 1), (Seed, 0)]
GOOD += [(Seed, 2**63 - 1), (str, ""), (bool, True), (list[int], []), (LIST, [1.0, 2.0]), (list, [1, "a"])]
BAD = [
    (Exponent, 0.19, "greater than or equal to 0.2"),
    (Exponent, 50.1, "less than or equal to 50"),
    (Exponent, math.nan, "equal to"),
    (Exponent, "2.1", "valid number"),
    (Positive, 0.0, "greater than 0"),
    (Positive, math.inf, "finite"),
    (Probability, 1.0, "less than 1"),
    (Count, 2.0, "valid integer"),
    (Seed, -1, "greater than or equal to 0"),
    (str, 3, "valid string"),
    (bool, 1, "valid boolean"),
    (list[int], (1, 2), "valid list"),
    (LIST, [1.0, 2.0, 0.0], "item [2]: "),
    (LIST, "[1, 2]", "(papermill takes lists by -y, not by -p)"),
]


def test_valid_parameters_pass():
    for kind, value in GOOD:
        check({"x": kind}, x=value, my_number=3, function=len)  # others are not checked


@pytest.mark.parametrize(("kind", "value", "allowed"), BAD)
def test_invalid_parameter_is_named_with_its_range(kind, value, allowed):
    with pytest.raises(ParameterError, match=rf"^{re.escape(f'x = {value!r}: ')}.*{re.escape(allowed)}.*$"):
        check({"x": kind}, x=value)


def test_all_invalid_parameters_are_named_at_once():
    with pytest.raises(ParameterError, match=r"^p0 = .* \| n = .* \| seed is not set$"):
        check({"p0": Exponent, "p1": Exponent, "n": Count, "seed": Seed}, p0=0.0, p1=2.0, n=1.5)


@pytest.fixture
def displayed(monkeypatch) -> list[dict[str, str]]:
    bundles = []
    monkeypatch.setattr(page, "display", lambda bundle, raw: bundles.append(bundle))
    return bundles


def test_show_gives_one_output_with_svg_png_and_csv(displayed):
    for _ in range(2):
        figure = plt.figure(figsize=(3, 2), FigureClass=BookFigure)
        figure.subplots().plot([0, 1], [1, 0], marker="o")  # markers and clips have names in an SVG
        figure.record({"x": [1, 2], "y [nats]": 0.5})
        page.show(figure, dpi=100)
    bundle, again = displayed
    assert bundle == again and "<dc:date>" not in bundle["image/svg+xml"]  # no random names, no dates
    assert set(bundle) == {"image/svg+xml", "image/png", "text/csv", "text/plain"}
    assert bundle["text/csv"] == "x,y [nats]\n1,0.5\n2,0.5\n"
    assert ElementTree.fromstring(bundle["image/svg+xml"]).tag.endswith("}svg")
    assert plt.imread(io.BytesIO(base64.b64decode(bundle["image/png"]))).shape[:2] == (200, 300)
    assert bundle["text/plain"] == "<figure, 3.0 x 2.0 in>"
    assert not plt.fignum_exists(figure.number), "an open figure shows a second time"


@pytest.mark.parametrize("options", [{}, {"FigureClass": BookFigure}])
def test_figure_without_numbers_has_no_csv(displayed, options):
    page.show(plt.figure(**options))
    assert set(displayed[0]) == {"image/svg+xml", "image/png", "text/plain"}


def test_glue_displays_plain_numbers_as_mystnb_does(monkeypatch):
    outputs = []
    for module in (page, mystnb):
        name = "display" if module is page else "ipy_display"
        monkeypatch.setattr(module, name, lambda bundle, raw, metadata: outputs.append((bundle, metadata)))
    scalar = torch.tensor(0.25, requires_grad=True)
    page.glue(word="a", single=np.float32(0.5), count=np.int64(7), flag=np.bool_(True), tensor=scalar)
    for name, value in {"word": "a", "single": 0.5, "count": 7, "flag": True, "tensor": 0.25}.items():
        mystnb.glue(name, value, display=False)
    assert outputs[:5] == outputs[5:]


def test_table_has_a_line_for_each_row():
    text = page.table(("a", "b"), [(1, 2.5), ("float | None", r"$\|x\|$")]).data
    assert text.splitlines() == ["| a | b |", "| --- | --- |", "| 1 | 2.5 |", r"| float \| None | $\\|x\\|$ |"]


SPEC = """{title: two runs and two more, every: {dataset: dsprites, steps: 1}, tiers: {
  1: [{objective: beta-vae, seeds: 2}], 2: [{objective: isa-vae, seeds: 2}]}}"""


def test_missing_runs_are_counted_and_the_command_named(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "ROOT", tmp_path)
    path = tmp_path / "x.yaml"
    path.write_text(SPEC)
    spec = Spec.read(path)
    nothing, first = sweep(spec, budget=0), sweep(spec, tier=1, budget=0)

    def recorded(*states: str) -> Records:
        rows = [{**run.to_dict(), "status": state} for run, state in zip(spec.runs(), states, strict=False)]
        return Records(rows, spec.runs()[len(states) :], nothing.command)

    some, whole = recorded("trained"), recorded("trained", "diverged", "trained", "trained")
    command = "`isa sweep x.yaml`"
    in_full = f"Recorded in full: 4 runs, by {command}. Diverged, and so without measurements: 1."
    for records, text in (
        ([nothing], f"Not recorded yet: 4 runs. {command} trains them."),
        ([some], f"Recorded so far: 1 of 4 runs. {command} trains the rest."),
        ([some, some], f"Recorded so far: 2 of 8 runs. {command} trains the rest."),
        ([some.select(objective="beta-vae", seed=0)], f"Recorded in full: 1 run, by {command}."),
        ([some.select(objective="factor-vae")], "No such run is named by the specifications."),
        ([first, whole], f"Not recorded yet: 2 runs. {command[:-1]} --tier 1` trains them. {in_full}"),
    ):
        assert page.missing(*records).data == text


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_parameter_table_has_every_parameter_of_every_notebook():
    text = page.parameter_table(NOTEBOOKS).data
    rows = re.findall(r"^\*\*(book/\S+)\*\*$|^\| `(\w+)` \| \w+ \| `(.+)` \| \S.* \|$", text, re.MULTILINE)
    expected = [(path.relative_to(ROOT).as_posix(), parameter_values(path).items()) for path in NOTEBOOKS]
    expected = [item for path, items in expected for item in (path, *items)]
    assert [path or (name, ast.literal_eval(default)) for path, name, default in rows] == expected


def run_preamble(path: Path, **injected: Any) -> None:
    """Execute a notebook's parameters, what papermill injects after them, and their check."""
    cells = nbformat.read(path, as_version=4).cells
    declared, checked, *_ = [cell.source for cell in cells if cell.cell_type == "code"]
    exec(declared, namespace := {"__name__": "__main__"})
    exec(checked, namespace | injected)


def outside(value: Any) -> Any:
    """Return a value of the same type as this one that lies in no sensible range."""
    if isinstance(value, list):
        return [outside(value[0]), *value[1:]]
    return {int: -(10**30), float: -math.inf, str: "?"}[type(value)]  # words stand in lists only


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_checks_types_and_ranges_of_its_parameters(path):
    for name, value in parameter_values(path).items():
        wrong = [0 if isinstance(value, str) else "text"]
        wrong += [] if isinstance(value, str | bool) or value == [] else [outside(value)]
        for given in wrong:
            with pytest.raises(ParameterError, match=rf"^{name} = "):
                run_preamble(path, **{name: given})


def test_papermill_ends_in_one_sentence(tmp_path):
    """It runs in another folder than the notebook's, with a file of parameters."""
    (tmp_path / "x.yaml").write_text("p0: 0.0\n")
    notebook = os.path.relpath(ROOT / "book" / "prior" / "functions.ipynb", tmp_path)
    options = ["--no-progress-bar", "--start-timeout", "300", "-f", "x.yaml"]
    command = [sys.executable, "-m", "papermill", *options, notebook, "out.ipynb"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    ended = subprocess.run(command, cwd=tmp_path, env=clean, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert ended.returncode != 0 and "book/edition/page.py" not in ended.stderr and "Input In" not in ended.stderr
    sentence = "ParameterError: p0 = 0.0: input should be greater than or equal to 0.2"
    assert ended.stderr.rstrip().splitlines()[-1] == sentence
