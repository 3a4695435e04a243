"""Measure what is the same every time, and by how much the rest differs: ``make reproduce``.

Two clones of the committed tree are made, one after the other. In the first, a run of the networks of A.4 is trained
for a few steps, images are drawn, and some pages are executed. Then the same is done in the second clone, and in the
first under conditions that stand in for other machines: other numbers of threads, other kernels, a compiled step.
Each comparison is a row of ``runs/reproducibility.csv``.

``python tests/reproduce.py --books A B`` compares two built books instead, clones that were built at different times.

A difference is the largest between two numbers, relative to the largest number of its kind: of all parameters, of a
column of a figure's table. Of parameters there is the median too: Adam divides a gradient by its size, so that one of
nothing but rounding, as at a pixel that is never lit, moves its parameter as far as any other does.
"""

from __future__ import annotations

import argparse
import base64
import csv
import hashlib
import io
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import checkout
import numpy as np
from numpy._core._multiarray_umath import __cpu_dispatch__

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "runs" / "reproducibility.csv"
COLUMNS = ("what", "condition", "equal", "difference", "median", "compared", "steps", "platform", "torch", "commit")
PAGES = ("book/fig1.ipynb", "book/prior/functions.ipynb", "book/prior/sampling.ipynb")
STEPS = 30

AGAIN = "the same again, in a second clone"
TWO_BUILDS = "two clones built at different times"


@dataclass(frozen=True)
class Condition:
    """Circumstances of a training or of a page that differ from those of the first clone."""

    name: str
    environment: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    second: bool = False
    """In the second clone."""
    pages: bool = False
    """Pages are executed too."""


OTHER_KERNELS = {
    "oneDNN's kernels for AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "MKL's kernels for any processor": {"MKL_CBWR": "COMPATIBLE"},
    "PyTorch's kernels without vector instructions": {"ATEN_CPU_CAPABILITY": "default"},
}
OLDER = {name: value for settings in OTHER_KERNELS.values() for name, value in settings.items()}
OLDER["NPY_DISABLE_CPU_FEATURES"] = " ".join(__cpu_dispatch__)

FIRST = Condition("the first clone")
CONDITIONS = (
    # Everything around it is another: time, time zone, locale, the seed of Python's own hashes.
    Condition(AGAIN, {"TZ": "Asia/Kathmandu", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "1"}, second=True, pages=True),
    Condition("two threads", {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}),
    Condition("a compiled step", options=("--compile",)),
    Condition("in a pack of two runs", options=("--pack",)),
    *(Condition(name, settings) for name, settings in OTHER_KERNELS.items()),
    Condition("an older processor, by all three and the least that NumPy runs on", OLDER, pages=True),
    Condition("another seed, for comparison", options=("--seed", "1")),
)


# --- what runs inside a clone -----------------------------------------------------------------------------------------


def measure(target: Path, *, compile: bool, pack: bool, seed: int) -> None:
    """Train, draw, and write all numbers to a file."""
    from isa import data
    from isa.data import _car, faces3d
    from isa.data._head import draw_identities
    from isa.engine import train_pack
    from isa.run import Run

    whole = data.load("dsprites")
    part = whole.restrict(scale=[0, 5], orientation=range(0, 40, 8), x=range(0, 32, 4), y=range(0, 32, 4))
    angles = [-40.0, 0.0, 25.0]
    held = {
        "images of dsprites": part.storage.numpy(),
        "images of faces3d": faces3d.draw_faces(draw_identities(2, 0), angles, [10.0], angles),
        "images of cars3d": _car.draw_cars(_car.draw_parameters(2, 0), [20.0], angles),
    }
    digests = {"images of dsprites": whole.checksum}
    for precision in ("fp32", "bf16"):
        runs = [Run(objective="isa-vae", steps=STEPS, batch_size=128, seed=seed, precision=precision)]
        if pack:
            runs.append(Run(objective="isa-vae", beta=2.0, steps=STEPS, batch_size=128, seed=seed, precision=precision))
        result = train_pack(runs, dataset=part, device="cpu", compile=compile, progress=False)[0]
        assert result.record["compiled"] == compile, "the step was to be compiled, and was not"
        vectors = [value.detach().float().numpy().ravel() for value in result.model.state_dict().values()]
        held[f"parameters, {precision}"] = np.concatenate(vectors)
        held[f"first loss, {precision}"] = result.curve["loss"][:1]
        for name in ("log_likelihood", "mig"):
            held[f"{name}, {precision}"] = np.array([result.record[name]])
    np.savez(target, digests=json.dumps(digests), **held)


# --- comparisons ------------------------------------------------------------------------------------------------------


class Comparison(NamedTuple):
    """What was compared, and what came of it."""

    what: str
    equal: bool
    """To the bit."""
    difference: float | None
    compared: str
    median: float | None = None


def differences(first: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the differences of two arrays, relative to the largest number in them; one infinite one for two shapes."""
    if first.shape != other.shape:
        return np.array([math.inf])
    first, other = first.astype(np.float64), other.astype(np.float64)
    if np.array_equal(first, other, equal_nan=True):
        return np.zeros(1)
    if not np.array_equal(np.isfinite(first), np.isfinite(other)):
        return np.array([math.inf])
    good = np.isfinite(first)
    return np.abs(first - other)[good] / max(np.abs(first[good]).max(), np.abs(other[good]).max())


def difference(first: np.ndarray, other: np.ndarray) -> float:
    """Return the largest of the differences."""
    return float(differences(first, other).max())


def table_difference(first: str, other: str) -> float:
    """Return the largest difference over the columns of two tables; infinite where rows or words differ."""
    one, two = (list(csv.reader(io.StringIO(text))) for text in (first, other))
    if [len(row) for row in one] != [len(row) for row in two]:
        return math.inf
    largest = 0.0
    for column, pair in enumerate(zip(zip(*one[1:], strict=True), zip(*two[1:], strict=True), strict=True)):
        if one[0][column] != two[0][column]:
            return math.inf
        numbers = [[_number(cell) for cell in cells] for cells in pair]
        words = [
            [cell for cell, value in zip(cells, values, strict=True) if value is None]
            for cells, values in zip(pair, numbers, strict=True)
        ]
        if words[0] != words[1] or [x is None for x in numbers[0]] != [x is None for x in numbers[1]]:
            return math.inf
        arrays = [np.array([value for value in values if value is not None]) for values in numbers]
        largest = max(largest, difference(*arrays))
    return largest


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def compare_numbers(first: Path, other: Path) -> Iterable[Comparison]:
    """Yield the comparison of each array in two files."""
    with np.load(first) as one, np.load(other) as two:
        digests = [json.loads(str(held["digests"])) for held in (one, two)]
        for name in one.files:
            if name == "digests":
                continue
            same = one[name].tobytes() == two[name].tobytes() and digests[0].get(name) == digests[1].get(name)
            size = one[name].size
            apart = differences(one[name], two[name])
            median = float(np.median(apart)) if name.startswith("parameters") else None
            yield Comparison(name, same, float(apart.max()), f"{size:,} number{'s' * (size != 1)}", median)


def compare_figures(first: Mapping[str, bytes], other: Mapping[str, bytes]) -> Iterable[Comparison]:
    """Yield the comparisons of figures by their files: the numbers of all, then both kinds of picture."""
    for suffix, what in (("csv", "numbers of figures"), ("svg", "figures as SVG"), ("png", "figures as PNG")):
        names = sorted(name for name in first.keys() | other.keys() if name.endswith(f".{suffix}"))
        same = [first.get(name) == other.get(name) for name in names]
        apart = None
        if suffix == "csv":
            apart = max(
                table_difference(first[name].decode(), other[name].decode())
                if name in first and name in other
                else math.inf
                for name in names
            )
        yield Comparison(what, all(same), apart, f"{sum(same)} of {len(names)} equal")


def figures_of_book(root: Path) -> dict[str, bytes]:
    """Return the files that the figures of a built book can be downloaded as, by name.

    Raises
    ------
    ValueError
        If there are none.
    """
    paths = [path for path in sorted((root / "_build" / "html" / "_downloads").glob("*/fig-*")) if path.is_file()]
    if not paths:
        raise ValueError(f"BOOK must be a folder in which `make book` has run, got {root}")
    return {path.name: path.read_bytes() for path in paths}


def figures_of_page(path: Path) -> dict[str, bytes]:
    """Return the same of an executed notebook."""
    held = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        name = cell["metadata"].get("mystnb", {}).get("figure", {}).get("name")
        for output in cell.get("outputs", ()) if name else ():
            shown = {kind: "".join(text) for kind, text in output.get("data", {}).items() if kind != "text/plain"}
            if "text/csv" in shown:
                held[f"{name}.csv"] = shown["text/csv"].encode()
            if "image/svg+xml" in shown:
                held[f"{name}.svg"] = shown["image/svg+xml"].encode()
            if "image/png" in shown:
                held[f"{name}.png"] = base64.b64decode(shown["image/png"])
    return held


# --- the table --------------------------------------------------------------------------------------------------------


def write(rows: Iterable[Mapping[str, object]]) -> None:
    """Put rows into the table, in place of those of the same name and condition."""
    held: dict[tuple[str, str], Mapping[str, object]] = {}
    if TABLE.exists():
        with TABLE.open(encoding="utf-8", newline="") as file:
            held = {(row["what"], row["condition"]): row for row in csv.DictReader(file)}
    held |= {(str(row["what"]), str(row["condition"])): row for row in rows}
    from isa._files import write_table

    write_table(TABLE, COLUMNS, held.values())


@cache
def commit() -> str:
    """Return the commit that is cloned: the one at which this was started, whatever is committed meanwhile."""
    return checkout.last_commit()


def circumstances() -> dict[str, str]:
    """Return what a row says of where it was measured."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    where = f"{platform.system()} {platform.machine()}, {capability}"
    return {"platform": where, "torch": torch.__version__, "commit": commit()}


def rows_of(condition: str, compared: Iterable[Comparison]) -> list[dict[str, object]]:
    """Return rows, and print them."""
    rows = []
    for one in compared:
        numbers = {name: getattr(one, name) for name in ("difference", "median")}
        row = {name: "" if value is None else f"{value:.2g}" for name, value in numbers.items()}
        row |= {"what": one.what, "condition": condition, "equal": "yes" if one.equal else "no"}
        steps = STEPS if one.what.endswith(("fp32", "bf16")) else ""
        rows.append(row | {"compared": one.compared, "steps": steps} | circumstances())
        apart = "equal" if one.equal else f"differs {row['difference'] and 'by ' + row['difference']}".strip()
        print(f"{condition}: {one.what}: {apart}", flush=True)
    return rows


# --- clones -----------------------------------------------------------------------------------------------------------


def clone(work: Path, name: str) -> Path:
    """Return a fresh clone of the committed tree, which its programs import in the place of this one."""
    path = work / name
    checkout.clone(path, commit())
    return path


def call(place: Path, condition: Condition, command: Iterable[object]) -> None:
    """Run Python in a clone under a condition."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(place)}
    subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=place,
        env=env | dict(condition.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        check=True,
    )


def numbers_of(place: Path, condition: Condition, target: Path) -> Path:
    """Train and draw in a clone; returns the file of numbers."""
    call(place, condition, [place / "tests" / "reproduce.py", "--measure", target, *condition.options])
    return target


def sweep_of(place: Path, condition: Condition, target: Path) -> list[dict[str, str]]:
    """Sweep nine runs that take milliseconds in a clone; returns their records without their times."""
    target.mkdir()
    code = "import sys, pathlib, tiny_sweep; tiny_sweep.write_spec(pathlib.Path(sys.argv[1]))"
    tests = Condition(condition.name, {**condition.environment, "PYTHONPATH": f"{place}{os.pathsep}{place / 'tests'}"})
    call(place, tests, ["-c", code, target])
    call(place, tests, [place / "tests" / "tiny_sweep.py", "sweep", target / "tiny.yaml"])
    with (target / "tiny.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    times = ("train_seconds", "evaluation_seconds")
    return sorted(({k: v for k, v in row.items() if k not in times} for row in rows), key=lambda row: row["hash"])


def pages_of(place: Path, condition: Condition, target: Path) -> dict[str, bytes]:
    """Execute the pages in a clone; returns the files of their figures."""
    target.mkdir()
    held = {}
    for page in PAGES:
        executed = target / Path(page).name
        call(place, condition, ["-m", "papermill", "--no-progress-bar", "--log-level", "ERROR", page, executed])
        held |= figures_of_page(executed)
    return held


def measure_all(work: Path) -> None:
    """Fill the table."""
    commit()  # which is remembered
    first = clone(work, "first")
    numbers = numbers_of(first, FIRST, work / "first.npz")
    records = sweep_of(first, FIRST, work / "first sweep")
    figures = pages_of(first, FIRST, work / "first pages")
    second = clone(work, "second")
    for number, condition in enumerate(CONDITIONS):
        place = second if condition.second else first
        found = numbers_of(place, condition, work / f"{number}.npz")
        write(rows_of(condition.name, compare_numbers(numbers, found)))
        if condition.second:
            again = sweep_of(place, condition, work / f"{number} sweep")
            swept = Comparison("records of a sweep", again == records, None, f"{len(records)} runs")
            write(rows_of(condition.name, [swept]))
        if condition.pages:
            shown = pages_of(place, condition, work / f"{number} pages")
            write(rows_of(condition.name, compare_figures(figures, shown)))


def digest(figures: Mapping[str, bytes]) -> str:
    """Return one hash of the numbers of all figures."""
    held = hashlib.sha256()
    for name in sorted(name for name in figures if name.endswith(".csv")):
        held.update(f"{name} {hashlib.sha256(figures[name]).hexdigest()}\n".encode())
    return held.hexdigest()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Measure what is the same every time.")
    parser.add_argument("--books", nargs=2, metavar="BOOK", type=Path, help="compare two clones with built books")
    parser.add_argument("--place", metavar="DIR", type=Path, help="where the clones are made")
    for name, kind in (("--measure", Path), ("--seed", int)):
        parser.add_argument(name, type=kind, default=0 if kind is int else None, help=argparse.SUPPRESS)
    for name in ("--compile", "--pack"):
        parser.add_argument(name, action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.measure:
        measure(given.measure, compile=given.compile, pack=given.pack, seed=given.seed)
        return 0
    if given.books:
        try:
            one, two = map(figures_of_book, given.books)
        except ValueError as error:
            parser.error(str(error))
        print(f"{digest(one)}  {given.books[0]}\n{digest(two)}  {given.books[1]}")
        write(rows_of(TWO_BUILDS, compare_figures(one, two)))
        return 0
    with tempfile.TemporaryDirectory(dir=given.place) as folder:
        measure_all(Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
