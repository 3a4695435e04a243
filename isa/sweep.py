r"""Every run of a specification, trained once and recorded (Sec. 4: 1,280 experiments).

::

    spec = Spec.read("runs/dsprites.yaml")
    records = sweep(spec, tier=1)             # trains what is missing
    records.select(objective="isa-vae", beta=1.0).column("mig")

**A specification** is a short YAML file that names runs: a data set, fields that all runs share, and tiers of grids.

.. code-block:: yaml

    title: dSprites at the settings of Table 1
    every: {dataset: dsprites}
    tiers:
      1:
        - {objective: [beta-vae, isa-vae], beta: 1, seeds: 10}
        - {objective: [beta-vae, isa-vae], beta: 4, seeds: [15-19, 23]}

A grid gives each field of :class:`isa.run.Run` one value or a list of values, and stands for every combination.
``seeds: 10`` stands for the seeds 0 to 9, ``seeds: 15-19`` for a range, and a list for several seeds and ranges. Fields
that are left out take the data set's defaults (Tables 1 and 2).

**Records** are one table a specification, the ``.csv`` beside it: a row a run, identified by the run's hash. A recorded
run is not trained again, so a sweep that was interrupted at any moment continues where it stopped. The table is
replaced as a whole by one that has the new row, under a lock; two sweeps over one specification share its runs.

**Order.** Several specifications are trained tier by tier: tier 1 of each in turn, then tier 2. A run that is a part of
a longer one (the same but for the number of steps) is recorded on the way if the longer run is missing too and belongs
to the same tier or an earlier one: one training, two records.

**Devices.** Runs train in this process in packs, on a CPU one after the other (:mod:`isa.local`), or on the workers of
a Dask cluster (:mod:`isa.cluster`). On a GPU the models of one pack are measured while the next one trains. Beside its
record, each run leaves its portrait (:mod:`isa.latents`) in ``portraits/``, from which pages show what its latents do.
"""

from __future__ import annotations

import csv
import errno
import itertools
import json
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import numpy as np
import torch
import yaml

from isa import engine
from isa._files import is_special, remove_leftovers, write_table
from isa.engine import CheckpointError
from isa.packs import Claim, Job, Speed, longest, plan
from isa.run import Run

__all__ = ["Records", "RecordsWarning", "Spec", "Status", "read_records", "status", "sweep"]

_logger = logging.getLogger(__name__)

_RUN_FIELDS = tuple(Run.model_fields)
_SEQUENCES = ("subspaces", "p1")
"""Fields of which a list of numbers is one value."""
_MOST_BYTES, _MOST_SCALAR, _MOST_RUNS, _MOST_LATENTS = 100_000, 1000, 10_000, 1_000_000
"""Bounds on a specification and on its runs together, far beyond any that is meant."""
_MOST_TABLE_BYTES = 1 << 28
"""Of a table of records; one of the runs of a specification has at most a tenth."""


class RecordsWarning(UserWarning):
    """Something in a table of records, or on the way to one, was left aside; what it was is said."""


# ---------------------------------------------------------------------------------------------------------------------
# Specifications


class _Loader(yaml.SafeLoader):
    """YAML of plain values: no alias, no tag, and no key twice."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases such as *{event.anchor} are not allowed")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError(f"tags such as {event.tag} are not allowed")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _MOST_SCALAR:
            raise yaml.YAMLError(f"a value must have at most {_MOST_SCALAR:,} characters, got {event.value[:20]}...")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, (str, int)):
                raise yaml.YAMLError(f"keys must be names, got {name!r}")
            if name in names:
                raise yaml.YAMLError(f"{name!r} is given twice")
            names.add(name)
        return super().construct_mapping(node, deep)


def _check_keys(values: object, allowed: Sequence[str], what: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{what} must be a mapping of names to values, got {values!r}")
    for name in values:
        if name not in allowed:
            raise ValueError(f"{what} has the unknown key {name!r}; allowed are {', '.join(allowed)}")


def _choices(name: str, value: object) -> list:
    """Return the values that a field takes in a grid."""
    several = isinstance(value, list)
    if several and not value:
        raise ValueError(f"{name} is an empty list: it must have a value or more")
    if several and name in _SEQUENCES and not any(isinstance(one, list) for one in value):
        several = False
    choices = value if several else [value]
    for one in choices:
        if isinstance(one, dict) or (isinstance(one, list) and name not in _SEQUENCES):
            raise ValueError(f"{name} must be a value or a list of values, got {value!r}")
    return [tuple(one) if isinstance(one, list) else one for one in choices]


class _Room:
    """Keeps what a specification names within bounds, as it is read."""

    def __init__(self) -> None:
        self.runs, self.latents = _MOST_RUNS, _MOST_LATENTS

    def take(self, runs: int = 0, latents: int = 0) -> None:
        self.runs -= runs
        self.latents -= latents
        if self.runs < 0:
            raise ValueError(f"there must be at most {_MOST_RUNS:,} runs in all")
        if self.latents < 0:
            raise ValueError(f"there must be at most {_MOST_LATENTS:,} latents in all runs together")


def _seeds(value: object) -> list[int]:
    """Return the seeds that 10 (the first ten), "10-14" or a list of seeds and ranges stand for."""
    named = value if isinstance(value, list) else [f"0-{value - 1}" if type(value) is int else value]
    found: dict[int, None] = {}
    for one in named:
        match = re.fullmatch(r"([0-9]{1,19})-([0-9]{1,19})", f"{one}-{one}" if type(one) is int else str(one))
        first, last = map(int, match.groups()) if match else (1, 0)
        if not first <= last < min(2**63, first + _MOST_RUNS - len(found)):
            found.clear()
            break
        found |= dict.fromkeys(range(first, last + 1))
    if not found:
        allowed = f"a number of seeds from 1 to {_MOST_RUNS:,}, a range such as 10-14, or a list of seeds and ranges"
        raise ValueError(f"seeds must be {allowed}, got {str(value)[:60]}")
    return list(found)


def _grid(every: Mapping[str, object], grid: object, room: _Room) -> tuple[Run, ...]:
    """Return every run of a grid, the last field named varying fastest, and seeds slowest: so comparisons stay even."""
    _check_keys(grid, (*_RUN_FIELDS, "seeds"), "a grid")
    named = {**every, **grid}
    if "seeds" in named:
        if "seed" in named:
            raise ValueError("seed and seeds exclude each other, got both")
        named["seed"] = _seeds(named.pop("seeds"))
    choices = {name: _choices(name, value) for name, value in named.items()}
    room.take(runs=math.prod(map(len, choices.values())))
    runs = []
    for seed in choices.pop("seed", [0]):
        for values in itertools.product(*choices.values()):
            runs.append(Run(**dict(zip(choices, values, strict=True)), seed=seed))
            room.take(latents=runs[-1].latent_dim)
    return tuple(runs)


def _once(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return the runs without those that were there before."""
    first: dict[str, Run] = {}
    for run in runs:
        first.setdefault(run.hash, run)
    return tuple(first.values())


@dataclass(frozen=True)
class Spec:
    """Runs by name: what a sweep trains, and where it records.

    Attributes
    ----------
    path : Path
        The file that it was read from.
    title : str
        What the runs are, for people.
    every : dict
        Fields that all runs share.
    tiers : dict of int to tuple of Run
        The runs by tier, each run in the first tier that names it.
    """

    path: Path
    title: str
    every: dict[str, object] = field(repr=False)
    tiers: dict[int, tuple[Run, ...]] = field(repr=False)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Spec:
        """Read a specification and check every run that it names.

        Parameters
        ----------
        path
            A ``.yaml`` file; see this module's description for what is in it.

        Raises
        ------
        ValueError
            In one sentence that names the file, the place in it, the value, and what is allowed.
        OSError
            If the file cannot be read.
        """
        path = Path(path)
        if path.suffix != ".yaml":
            raise ValueError(f"a specification must be a .yaml file, got {path}")
        try:
            if is_special(path):
                raise ValueError("it must be a file")
            with open(path, "rb") as file:
                held = file.read(_MOST_BYTES + 1)
            if len(held) > _MOST_BYTES:
                raise ValueError(f"it must have at most {_MOST_BYTES:,} bytes")
            return cls._of(path, yaml.load(held.decode("utf-8"), _Loader))
        except (yaml.YAMLError, RecursionError) as error:
            raise ValueError(f"{path} is no YAML that can be read: {' '.join(str(error).split())}") from None
        except (TypeError, ValueError, OverflowError, KeyError) as error:
            raise ValueError(f"{path}: {error}") from None

    @classmethod
    def _of(cls, path: Path, held: object) -> Spec:
        _check_keys(held, ("title", "every", "tiers"), "a specification")
        title, every = held.get("title"), held.get("every", {})
        if not isinstance(title, str) or not title.strip().isprintable() or not title.strip():
            raise ValueError(f"title must be a line of text, got {title!r}")
        _check_keys(every, _RUN_FIELDS, "every")
        tiers = held.get("tiers")
        if not isinstance(tiers, dict) or not tiers:
            raise ValueError(f"tiers must name a tier or more, got {tiers!r}")
        named: dict[int, tuple[Run, ...]] = {}
        for number in tiers:
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"a tier must have a number from 1 on, got {number!r}")
        seen: set[str] = set()
        room = _Room()
        for number in sorted(tiers):
            grids = tiers[number]
            if not isinstance(grids, list) or not grids:
                raise ValueError(f"tier {number} must be a list of grids, got {grids!r}")
            runs: list[Run] = []
            for place, grid in enumerate(grids, 1):
                try:
                    runs += _grid(every, grid, room)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"tier {number}, grid {place}: {error}") from None
            named[number] = tuple(run for run in _once(runs) if run.hash not in seen)
            seen |= {run.hash for run in runs}
        return cls(path, title.strip(), every, named)

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def record(self) -> Path:
        """The table of records, the ``.csv`` beside the specification."""
        return self.path.with_suffix(".csv")

    @property
    def work(self) -> Path:
        """Folder for what a sweep in progress keeps: claims, checkpoints, models."""
        return self.path.parent / "work" / self.name

    def runs(self, tier: int | None = None) -> tuple[Run, ...]:
        """All runs up to and with a tier, all where it is None, in the order in which they are to be trained.

        Raises
        ------
        ValueError
            If there is no such tier.
        """
        if tier is not None and tier not in self.tiers:
            raise ValueError(f"tier must be one of {', '.join(map(str, self.tiers))} in {self.path}, got {tier!r}")
        return tuple(run for number, runs in self.tiers.items() if tier is None or number <= tier for run in runs)

    def grid(self, *, named: bool = False, **values: object) -> Spec:
        """Return the same shared fields and records with the runs of another grid, as its only tier.

        Parameters
        ----------
        named
            Add the runs of this specification that differ from those of the grid only in the seed.
        **values
            As in a grid of the file: fields of a run with one value or a list of values, and ``seeds``.

        Raises
        ------
        ValueError
            As for the file's grids.
        """
        every = {name: value for name, value in self.every.items() if name not in values}
        runs = _grid(every, values, _Room())
        if named:
            names = [name for name in _RUN_FIELDS if name != "seed"]
            wanted = {tuple(getattr(run, name) for name in names) for run in runs}
            runs += tuple(run for run in self.runs() if tuple(getattr(run, name) for name in names) in wanted)
        return replace(self, tiers={1: _once(runs)})


# ---------------------------------------------------------------------------------------------------------------------
# Records

_TEXT = ("hash", "key", "dataset", "source", "objective", "prior", "model", "likelihood", "kl", "sampling", "precision")
_TEXT += ("status", "device", "commit", "images_title", "images_checksum")
"""Columns whose cells are text as it stands; in all others a cell holds JSON. An empty cell is None."""

_MEASURED = ("mig", "gaps", "mig_standard_error", "mig_error_bound", "log_likelihood", "log_likelihood_first_10000")
_MEASURED += ("divergence", "elbo", "active_units", "exponents", "factors", "mutual_information", "entropy")
_MEASURED += ("conditional_entropy",)
_OTHER_FACTORS = ("unscored", "log_likelihood_by_value", "unscored_mutual_information")
_SUBSPACES = ("subspaces_compared", "subspace_factors", "subspace_mutual_information", "subspace_standard_error")
_SUBSPACES += ("random_subspace_mean", "random_subspace_deviation")
_ADDED = (*_OTHER_FACTORS, "mig_binned", "mig_10000_samples", *_SUBSPACES, "subspace_draws", "random_groupings")
"""Measurements that older records lack."""
_CIRCUMSTANCES = ("total_steps", "reduced", "train_seconds", "evaluation_seconds", "pack_size", "compiled", "device")
_CIRCUMSTANCES += ("versions", "commit", "images", "images_title", "images_checksum", "procedural")
COLUMNS = ("hash", "key", "status", "diverged_at", *_RUN_FIELDS, *_MEASURED, *_CIRCUMSTANCES, *_ADDED)
"""Columns of a table of records, in order; new ones are appended."""

_NUMBERS = ("mig", "mig_standard_error", "mig_error_bound", "log_likelihood", "log_likelihood_first_10000", "elbo")
_NUMBERS += ("divergence", "train_seconds", "evaluation_seconds", "mig_binned", "mig_10000_samples")
_COUNTS = {"diverged_at": 0, "active_units": 0, "total_steps": 1, "pack_size": 1}
_COUNTS |= {"subspace_draws": 1, "random_groupings": 1}
"""Whole numbers, with the minimum of each."""
_LISTS = ("gaps", "exponents", "factors", "mutual_information", "entropy", "conditional_entropy")
_LISTS += (*_OTHER_FACTORS, *_SUBSPACES)
_SECONDS = ("total_steps", "pack_size", "train_seconds", "evaluation_seconds", "device")
_ALWAYS = {
    "trained": ("mig", "gaps", "log_likelihood", "factors", *_SECONDS),
    "diverged": ("diverged_at", *_SECONDS[:2], "device"),
}
"""What a record of each status has beside its run."""
_NEEDED = {"hash", "dataset", "objective", "status", *_ALWAYS["trained"], *_ALWAYS["diverged"]}

_DIGITS = 9
"""Significant digits of a number in a table."""


def _rounded(value: object) -> object:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a record must hold finite numbers, got {value}")
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, (list, tuple)):
        return [_rounded(one) for one in value]
    return value


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if name in _TEXT:
        return " ".join(str(value).split())
    # A field of the run keeps all digits, since they are part of its hash.
    exact = value if name in _RUN_FIELDS else _rounded(value)
    return json.dumps(exact, separators=(",", ":"), allow_nan=False)


def _row(record: Mapping[str, object]) -> dict[str, str]:
    """Return a record's cells by column."""
    held = dict(record)
    if held.get("factors") is not None:
        held["gaps"] = [held.get(f"mig_{name}") for name in held["factors"]]
    return {name: _cell(name, held.get(name)) for name in COLUMNS}


def _record(cells: Mapping[str, str]) -> dict[str, Any]:
    """Return the record that a row's cells hold."""
    held = {}
    for name, cell in cells.items():
        held[name] = None if cell == "" else cell if name in _TEXT else _value(cell)
    run = _run(held)
    if run.hash != held["hash"]:
        raise ValueError(f"its fields are those of the run {run.hash}, not of {held['hash']}")
    _check_record(held)
    # What files are named after is never taken from the table.
    held |= {**run.to_dict(), "key": run.key}
    held |= {f"mig_{name}": gap for name, gap in zip(held["factors"] or (), held.pop("gaps", None) or (), strict=True)}
    return held


def _value(cell: str) -> Any:
    """Return the JSON of a cell, whose numbers are finite, and whole ones of at most 64 bits."""

    def real(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"it has the number {text}")
        return value

    def whole(text: str) -> int:
        value = int(text)
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"it has the number {text[:60]}")
        return value

    return json.loads(cell, parse_constant=real, parse_float=real, parse_int=whole)


def _check_record(held: Mapping[str, Any]) -> None:
    """Check the kinds of what was measured, and that a record has what is always there."""
    status = held["status"]
    if status not in _ALWAYS:
        raise ValueError(f"status must be one of {', '.join(_ALWAYS)}, got {status!r}")
    for name, value in held.items():
        if value is None:
            if name in _ALWAYS[status]:
                raise ValueError(f"{name} must be there where status is {status}")
        elif name in _NUMBERS and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"{name} must be a number, got {str(value)[:60]!r}")
        elif name in _COUNTS and (type(value) is not int or not _COUNTS[name] <= value < 2**63):
            raise ValueError(f"{name} must be a whole number from {_COUNTS[name]} on, got {str(value)[:60]!r}")
        elif name in _LISTS and not isinstance(value, list):
            raise ValueError(f"{name} must be a list, got {str(value)[:60]!r}")
    for name in held["factors"] or ():
        if not isinstance(name, str) or f"mig_{name}" in COLUMNS:
            raise ValueError(f"factors must be names of factors, got {str(name)[:60]!r}")
    for gap in held["gaps"] or ():
        if gap is not None and (isinstance(gap, bool) or not isinstance(gap, (int, float))):
            raise ValueError(f"gaps must be numbers, got {str(gap)[:60]!r}")


def _run(record: Mapping[str, Any]) -> Run:
    """Return the run that a record is of."""
    return Run.from_dict({name: record.get(name) for name in _RUN_FIELDS if record.get(name) is not None})


def read_records(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a table of records.

    A last line that is cut off, as a copy that was interrupted leaves it, is left aside with a warning.

    Parameters
    ----------
    path
        The ``.csv`` file; where there is none, there are no records.

    Returns
    -------
    list of dict
        Every record once, in the order of the file: the run's fields, and what :func:`isa.results.measure` records.

    Raises
    ------
    ValueError
        If a line is no record; the sentence names the line. Nothing in the file is changed.
    """
    records, torn = _parse(Path(path))
    if torn:
        warnings.warn(f"{path}: its last line is cut off and left aside", RecordsWarning, stacklevel=2)
    return records


def _parse(path: Path) -> tuple[list[dict[str, Any]], bool]:
    """Return the records of a table, and whether its last line is cut off."""
    if not path.exists():
        return [], False
    try:
        if is_special(path) or path.stat().st_size > _MOST_TABLE_BYTES:
            raise ValueError(f"it must be a file of at most {_MOST_TABLE_BYTES:,} bytes")
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        return [], False
    except ValueError as error:
        raise ValueError(f"{path} is no table of records: {error}") from None
    *lines, torn = text.split("\n")
    records: dict[str, dict[str, Any]] = {}
    header: list[str] = []
    for number, line in enumerate(lines, 1):
        try:
            cells = next(csv.reader([line], strict=True), [])
            if not header:
                header = cells
                if len(set(header)) < len(header) or not set(header) >= _NEEDED:
                    raise ValueError("its columns are not those of records")
                continue
            if len(cells) != len(header):
                raise ValueError(f"it has {len(cells)} cells, and the table has {len(header)} columns")
            record = _record(dict(zip(header, cells, strict=True)))
        except (ValueError, TypeError, KeyError, OverflowError, csv.Error, RecursionError) as error:
            raise ValueError(f"{path}, line {number} is no record: {' '.join(str(error).split())}") from None
        records.setdefault(record["hash"], record)
    return list(records.values()), bool(torn)


def recorded(path: Path) -> set[str]:
    """Return the hashes of the runs in a table."""
    return {record["hash"] for record in _parse(path)[0]}


def _append(path: Path, added: Iterable[Mapping[str, object]]) -> None:
    """Add records to a table under its lock."""
    with filelock.FileLock(path.with_name(f".{path.name}.lock")):
        merge_records(path, added)


def merge_records(path: Path, added: Iterable[Mapping[str, object]]) -> None:
    """Replace a table by one that has these records too; those that it has are left as they are."""
    records = {record["hash"]: record for record in _parse(path)[0]}
    for record in added:
        records.setdefault(record["hash"], record)
    write_table(path, COLUMNS, map(_row, records.values()))


class Records(Sequence[dict]):
    """Recorded runs of a specification, in its order, and those that are missing.

    Attributes
    ----------
    missing : tuple of Run
        Runs that are named and not recorded.
    command : str
        The command that trains them.
    """

    def __init__(self, rows: Sequence[dict[str, Any]], missing: Sequence[Run], command: str) -> None:
        self.rows = list(rows)
        self.missing = tuple(missing)
        self.command = command

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return self.rows[index]

    def __repr__(self) -> str:
        return f"<{len(self)} of {self.wanted} runs recorded>"

    @property
    def wanted(self) -> int:
        """How many runs there are, recorded or not."""
        return len(self.rows) + len(self.missing)

    def select(self, **values: object) -> Records:
        """Those whose fields equal the values, a list of values meaning any of them; also of the missing runs.

        A field of a record alone, such as ``status``, says nothing of missing runs, which are then left out.

        Raises
        ------
        KeyError
            If a name is neither a run's nor a record's.
        """
        for name in values:
            if name not in COLUMNS:
                raise KeyError(f"{name!r} is no column of records: they are {', '.join(COLUMNS)}")

        def plain(value: object) -> object:
            return tuple(map(plain, value)) if isinstance(value, (list, tuple)) else value

        def chosen(of: Callable[[str], object]) -> bool:
            for name, value in values.items():
                several = isinstance(value, list)
                if plain(of(name)) not in (list(map(plain, value)) if several else [plain(value)]):
                    return False
            return True

        rows = [row for row in self.rows if chosen(row.get)]
        missing = [run for run in self.missing if all(hasattr(run, name) for name in values)]
        missing = [run for run in missing if chosen(lambda name, run=run: getattr(run, name))]
        return Records(rows, missing, self.command)

    def column(self, name: str) -> np.ndarray:
        """One field of every record; of measured numbers, NaN where a run diverged.

        Raises
        ------
        KeyError
            If no record has it.
        """
        if self.rows and not any(name in row for row in self.rows):
            raise KeyError(f"no record has {name!r}")
        values = [row.get(name) for row in self.rows]
        if all(value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)) for value in values):
            return np.array([math.nan if value is None else value for value in values], float)
        return np.array(values, dtype=object if any(isinstance(value, (list, dict)) for value in values) else None)


def _read(spec: Spec, tier: int | None) -> Records:
    """Return the records of a specification up to a tier, which need not be one of its own."""
    runs = [run for number, runs in spec.tiers.items() if tier is None or number <= tier for run in runs]
    command = f"isa sweep {_shown(spec.path)}{'' if tier is None else f' --tier {tier}'}"
    held = {record["hash"]: record for record in read_records(spec.record)}
    rows = [held[run.hash] for run in runs if run.hash in held]
    return Records(rows, [run for run in runs if run.hash not in held], command)


# ---------------------------------------------------------------------------------------------------------------------
# Progress


class Status(NamedTuple):
    """Progress of one tier."""

    tier: int
    runs: int
    recorded: int
    diverged: int
    in_progress: int
    """Runs that a sweep on this file system is training; those of one course count once."""
    seconds: float | None
    """Time that the rest takes on this device, by its records; None if a kind of run is not recorded on it."""


def status(spec: Spec, device: str | torch.device | None = None) -> list[Status]:
    """Return what is done, what remains, and how long that will take, tier by tier.

    Parameters
    ----------
    spec
        The specification.
    device
        Where the rest would be trained; by default as :func:`sweep` chooses.
    """
    records = read_records(spec.record)
    known = {record["hash"]: record for record in records}
    speed = Speed(records, engine.default_device(device))
    found = []
    for tier, runs in spec.tiers.items():
        done = [known[run.hash] for run in runs if run.hash in known]
        missing = [Job(spec, run, tier) for run in runs if run.hash not in known]
        claimed = sum(Claim(spec, end.run).is_held() for end in longest(missing).values())
        diverged = sum(record["status"] == "diverged" for record in done)
        found.append(Status(tier, len(runs), len(done), diverged, claimed, speed(missing)))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Training


def sweep(
    specs: Spec | str | os.PathLike[str] | Sequence[Spec | str | os.PathLike[str]],
    *,
    tier: int | None = None,
    budget: float | None = None,
    device: str | torch.device | None = None,
    pack: int | None = None,
    scheduler: str | None = None,
    keep_models: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    profile: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    report: Callable[[str], object] | None = None,
) -> Records | list[Records]:
    """Train every run of specifications that is not recorded yet, and return the records.

    Parameters
    ----------
    specs
        A specification or its path, or several; these are trained tier by tier.
    tier
        The last tier that is trained and returned; all by default.
    budget
        Seconds. A pack is started only if it would be done by then at the speed measured so far, smaller if need be; on
        a CPU, records of this very device tell the speed at first. Runs of a kind of unknown speed are started, and
        stopped once their speed shows that they would not be done. 0 trains nothing.
    device
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; by default a GPU if there is one, on each worker of a cluster.
    pack
        Maximum number of runs that train at once; by default 18 on a GPU, 1 on a CPU.
    scheduler
        Address of a Dask scheduler, on whose workers the runs of one specification are trained (:mod:`isa.cluster`).
    keep_models
        Keep each trained model below ``spec.work``, 57 MB each with the perceptrons of A.4.
    cache_dir
        Folder of drawn images; see :func:`isa.data.load`.
    out
        Folder that receives copies of new records and portraits after every pack, in files of at most 15 MB:
        ``records-NAME.csv`` for each specification, and ``portraits-1.tar`` and so on.
    profile
        File for a report on 30 steps of each kind of run that is missing (:mod:`isa.profile`), made before training.
    progress
        Show a progress bar of each pack; by default if stderr is a terminal.
    report
        Called with a line on each run that is recorded.

    Returns
    -------
    Records or list of Records
        Of all runs up to the tier, those that were recorded before included; a list for several specifications.

    Raises
    ------
    ValueError
        If a specification, its records, an option, or the path of published data is wrong; before anything is trained.
    OSError
        If a record, a checkpoint or a portrait cannot be written, as on a full disk. All earlier records stay, and the
        run continues from its last checkpoint in the next sweep. If the scheduler does not answer, or runs could not be
        trained on the cluster (:class:`isa.cluster.ClusterError`).
    """
    single = isinstance(specs, (Spec, str, os.PathLike))
    named = [spec if isinstance(spec, Spec) else Spec.read(spec) for spec in ([specs] if single else specs)]
    if tier is not None and not any(tier in spec.tiers for spec in named):
        named[0].runs(tier)
    if budget is not None and not budget >= 0:
        raise ValueError(f"budget must be a number of seconds, at least 0, got {budget}")
    if pack is not None and (isinstance(pack, bool) or not isinstance(pack, int) or pack < 1):
        raise ValueError(f"pack must be a number of runs, at least 1, got {pack!r}")
    if scheduler is not None and (len(named) != 1 or out is not None or profile is not None):
        raise ValueError("scheduler takes one specification, and neither out nor profile")
    deadline = math.inf if budget is None else time.monotonic() + budget
    found = [_read(spec, tier) for spec in named]
    if budget != 0:
        for spec, records in zip(named, found, strict=True):
            _tidy(spec, records)
    missing = {run.hash for records in found for run in records.missing}
    jobs = [job for job in plan(named, tier) if job.hash in missing]
    if jobs and (budget != 0 or profile is not None):
        from isa import cluster, local

        for run in {(job.run.dataset, job.run.source): job.run for job in jobs}.values():
            local.source_path(run)
        options = {"deadline": deadline, "keep_models": keep_models, "say": report or (lambda line: None)}
        options["cache_dir"] = None if cache_dir is None else os.fspath(cache_dir)
        if scheduler is not None:
            cluster.train(jobs, scheduler, device=device, size=pack, **options)
        else:
            here = engine.default_device(device)
            size = pack or (local.GPU_PACK if here.type == "cuda" else 1)
            options |= {"progress": progress, "out": None if out is None else Path(out)}
            training = local.Local(jobs, itertools.chain(*found), here, size, **options)
            if profile is not None:
                training.profile(Path(profile))
            if budget != 0:
                training.train()
        found = [_read(spec, tier) for spec in named]
    return found[0] if single else found


def _shown(path: Path) -> str:
    """Return the path relative to the current folder if it is below."""
    try:
        return path.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return path.as_posix()


def _tidy(spec: Spec, found: Records) -> None:
    """Remove what interrupted sweeps left and no sweep uses: files half written, checkpoints of recorded runs."""
    checkpoints = spec.work / "checkpoints"
    for folder in (spec.record.parent, spec.path.parent / "portraits", checkpoints, *spec.work.glob("models/*")):
        remove_leftovers(folder)
    if not any(checkpoints.glob("*.safetensors")):
        return
    for record in found:
        run = _run(record)
        if not engine.checkpoint_path(checkpoints, run).exists():
            continue
        claim = Claim(spec, run)
        with suppress(OSError):  # clean-up is best effort
            if claim.acquire():
                try:
                    _drop_checkpoint(spec, run, found.missing)
                finally:
                    claim.release()


def _drop_checkpoint(spec: Spec, run: Run, others: Sequence[Run]) -> None:
    """Remove the checkpoint of a run that is recorded, unless it is of a longer run of its course, or useful to one."""
    folder = spec.work / "checkpoints"
    try:
        if engine.checkpoint_step(folder, run) > run.total_steps:
            return
    except CheckpointError:
        return
    if not any(other.course == run.course and other.total_steps > run.total_steps for other in others):
        engine.checkpoint_path(folder, run).unlink(missing_ok=True)


def record_results(
    spec: Spec, runs: Sequence[Run], added: Sequence[dict[str, Any]], say: Callable[[str], object]
) -> None:
    """Add records to the table, then remove the checkpoints that no run continues from."""
    if not added:
        return
    try:
        _append(spec.record, added)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, f"no space left to record in {spec.record}; all earlier records stay") from None
        raise
    by_hash = {run.hash: run for run in runs}
    for record in added:
        _drop_checkpoint(spec, by_hash[record["hash"]], runs)
        say(describe(record))


def describe(record: Mapping[str, Any]) -> str:
    """Return one line on a record."""
    if record["status"] == "diverged":
        return f"{record['key']}  diverged at step {record['diverged_at']:,}"
    fit = f"MIG {record['mig']:.3f}  log-likelihood {record['log_likelihood']:.2f}"
    return f"{record['key']}  {fit}  {record['train_seconds']:.0f} s"
