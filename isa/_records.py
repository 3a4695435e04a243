"""Specifications, the short YAML files that name the runs of a sweep, and records, a table next to each.

A table has a row for each recorded run. It is replaced as a whole, under a lock.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import yaml

from isa._files import write_atomically
from isa.data.base import StrPath
from isa.run import Run

__all__ = ["RECORD", "Records", "Spec", "merge_records", "read_records", "read_rows"]

_MOST_RUNS = 10_000


class _Loader(yaml.SafeLoader):
    """YAML in which no key of a mapping is repeated."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} is given twice")
        return super().construct_mapping(node, deep)


def _seeds(value: object) -> list[int]:
    """Return the seeds that 10 (the first ten), "10-14" or a list of seeds and ranges stand for."""
    parts = value if isinstance(value, list) else [f"0-{value - 1}" if type(value) is int else value]
    ends = [(int(m[1]), int(m[2] or m[1])) for part in parts if (m := re.fullmatch(r"(\d+)(?:-(\d+))?", str(part)))]
    if len(ends) < len(parts) or not all(first <= last < first + _MOST_RUNS for first, last in ends):
        allowed = f"a number from 1 to {_MOST_RUNS:,}, a range such as 10-14, or a list of seeds and ranges"
        raise ValueError(f"seeds must be {allowed}, got {value}")
    return list(dict.fromkeys(seed for first, last in ends for seed in range(first, last + 1)))


def _choices(name: str, value: Any) -> list:
    """Return the values of a field in a grid."""
    if not isinstance(value, list) or (name == "subspaces" and not any(isinstance(size, list) for size in value)):
        value = [value]
    if not value:
        raise ValueError(f"{name} must have a value, got an empty list")
    return [tuple(choice) if isinstance(choice, list) else choice for choice in value]


def _grid(every: Mapping[str, Any], grid: object) -> list[Run]:
    """Return every run of a grid, the last field varying fastest and seeds slowest, for even comparisons."""
    if not isinstance(grid, Mapping):
        raise ValueError(f"a grid must be a mapping of fields to values, got {grid!r}")
    named = {**every, **grid}
    if {"seed", "seeds"} <= set(named):
        raise ValueError("seed and seeds exclude each other, got both")
    choices = {"seed": _seeds(named.pop("seeds")) if "seeds" in named else [0]}
    choices |= {name: _choices(name, value) for name, value in named.items()}
    if math.prod(map(len, choices.values())) > _MOST_RUNS:
        raise ValueError(f"a grid must have at most {_MOST_RUNS:,} runs")
    return [Run(**dict(zip(choices, values, strict=True))) for values in itertools.product(*choices.values())]


def _without_seed(run: Run) -> tuple:
    return tuple(run.model_dump(exclude={"seed"}).values())


@dataclass(frozen=True)
class Spec:
    """Runs that a sweep trains, and the path of their records."""

    path: Path  #: file that it was read from
    title: str  #: description of the runs
    every: dict[str, Any] = field(repr=False)  #: fields that all runs share
    tiers: dict[int, tuple[Run, ...]] = field(repr=False)  #: runs by tier, each in the first tier that names it

    @classmethod
    def read(cls, path: StrPath) -> Spec:
        """Read a ``.yaml`` file. A ``ValueError`` names the file, the grid, the value, and what is allowed."""
        place, runs = f"{path}: ", dict[str, tuple[int, Run]]()
        try:
            document = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
            if not isinstance(document, dict) or set(document) | {"every"} != {"title", "every", "tiers"}:
                raise ValueError(f"it must have title, tiers and optionally every, got {document!r:.60}")
            tiers, every = document["tiers"], document.get("every") or {}
            if not isinstance(tiers, dict) or not tiers or not all(type(tier) is int and tier > 0 for tier in tiers):
                raise ValueError(f"tiers must have positive numbers, got {tiers!r:.60}")
            for tier, grids in sorted(tiers.items()):
                if not isinstance(grids, list):
                    raise ValueError(f"tier {tier} must be a list of grids, got {grids!r:.60}")
                for number, grid in enumerate(grids, 1):
                    place = f"{path}: tier {tier}, grid {number}: "
                    for run in _grid(every, grid):
                        runs.setdefault(run.hash, (tier, run))
            found = {tier: tuple(run for first, run in runs.values() if first == tier) for tier in sorted(tiers)}
            return cls(Path(path), str(document["title"]), every, found)
        except (yaml.YAMLError, TypeError, ValueError, IndexError, AttributeError) as error:  # of YAML's own tags
            raise ValueError(f"{place}{' '.join(str(error).split())}") from None

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def record(self) -> Path:
        """The table of records, the ``.csv`` next to the specification."""
        return self.path.with_suffix(".csv")

    @property
    def work(self) -> Path:
        """Folder of checkpoints and models."""
        return self.path.parent / "work" / self.name

    def runs(self, tier: int | None = None) -> tuple[Run, ...]:
        """Return the runs up to a tier, all if it is None, in the order in which they are trained."""
        return tuple(run for number, runs in self.tiers.items() if tier is None or number <= tier for run in runs)

    def grid(self, *, named: bool = False, **values: Any) -> Spec:
        """Return a specification with these shared fields and records, and the runs of another grid as its only tier.

        ``values`` are as in a grid of the file. With ``named``, add the runs of this specification that differ from
        those of the grid only in the seed.
        """
        every = {name: value for name, value in self.every.items() if name not in values}
        runs = _grid(every, values)
        if named:
            wanted = {_without_seed(run) for run in runs}
            runs += [run for run in self.runs() if _without_seed(run) in wanted]
        return replace(self, tiers={1: tuple({run.hash: run for run in runs}.values())})


_COLUMNS = """
    hash:str key:str status:str diverged_at:int dataset:str source:str objective:str beta:float seed:int prior:str
    subspaces:list p0:float p1:float|list scale:float|str learn_exponents:bool model:str latent_dim:int epochs:float
    steps:int batch_size:int learning_rate:float exponent_learning_rate:float likelihood:str kl:str sampling:str
    precision:str mig:float gaps:list mig_standard_error:float mig_error_bound:float log_likelihood:float
    log_likelihood_first_10000:float divergence:float elbo:float active_units:int exponents:list factors:list
    mutual_information:list entropy:list conditional_entropy:list total_steps:int reduced:bool train_seconds:float
    evaluation_seconds:float pack_size:int compiled:bool device:str versions:dict commit:str images:int
    images_title:str images_checksum:str procedural:bool unscored:list log_likelihood_by_value:list
    unscored_mutual_information:list mig_binned:float mig_10000_samples:float subspaces_compared:list
    subspace_factors:list subspace_mutual_information:list subspace_standard_error:list random_subspace_mean:list
    random_subspace_deviation:list subspace_draws:int random_groupings:int
"""
RECORD: dict[str, str] = dict(column.split(":") for column in _COLUMNS.split())
"""Columns of a table of records, in order, and the types of their cells; an empty cell is None. Append new columns.

Text is written as is, everything else as JSON. ``gaps`` are the ``mig_FACTOR`` of a record in the order of its factors.
"""


def _cell(column: str, value: Any) -> str:
    """Return the text of a cell: measured numbers to nine digits, the run's fields exactly, as in its hash."""
    if value is None:
        return ""
    if RECORD[column] == "str":
        return " ".join(str(value).split())
    if column not in Run.model_fields:
        value = json.loads(json.dumps(value, allow_nan=False), parse_float=lambda text: float(f"{float(text):.9g}"))
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _value(column: str, cell: str) -> Any:
    if not cell or RECORD[column] == "str":
        return cell or None
    # a spreadsheet writes TRUE; int refuses the constants NaN and Infinity
    return json.loads(cell.lower() if RECORD[column] == "bool" else cell, parse_constant=int)


def _record(cells: Mapping[str, str]) -> dict[str, Any]:
    """Return the record in a row, if its hash is that of its run."""
    record = {column: _value(column, cell) for column, cell in cells.items() if column in RECORD}
    run = Run(**{name: record[name] for name in Run.model_fields if record.get(name) is not None})
    if run.hash != record["hash"]:
        raise ValueError(f"its fields have the hash {run.hash}, but its hash is {record['hash']}")
    gaps = zip(record["factors"] or (), record.pop("gaps") or (), strict=True)
    return record | run.to_dict() | {"key": run.key} | {f"mig_{name}": gap for name, gap in gaps}


def read_rows(path: StrPath, convert: Callable[[dict[str, str]], Any] = dict) -> dict[str, Any]:
    """Return the converted rows of a table by hash. A ``ValueError`` names the line that is not a record."""
    table: dict[str, Any] = {}
    if not Path(path).exists():
        return table
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file, strict=True)
        try:
            for row in rows:
                if not {"hash", "factors", "gaps"} <= row.keys() or None in row or None in row.values():
                    raise ValueError("it must have the columns of records, separated by commas, and a cell for each")
                if row["hash"] not in table:
                    table[row["hash"]] = convert(row)
        except (TypeError, ValueError, csv.Error) as error:
            raise ValueError(f"{path}, line {rows.line_num} is not a record: {error}") from None
    return table


def read_records(path: StrPath) -> list[dict[str, Any]]:
    """Read a table of records, each once, in the order of the file. Without a file, the list is empty.

    A record is as :func:`isa.results.measure` returns it. A ``ValueError`` names the line that is not one, and why.
    """
    return list(read_rows(path, _record).values())


def merge_records(path: StrPath, added: Iterable[Mapping[str, Any]]) -> None:
    """Add records to a table, under its lock. Runs that are recorded already keep their records."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock")):
        rows = read_rows(path)
        for record in added:
            values = {**record, "gaps": [record.get(f"mig_{name}") for name in record.get("factors") or ()] or None}
            rows.setdefault(record["hash"], {column: _cell(column, values.get(column)) for column in RECORD})
        text, columns = io.StringIO(), dict.fromkeys([*RECORD, *itertools.chain(*rows.values())])  # also unknown ones
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
        write_atomically(path, text.getvalue().encode())


def _plain(value: object) -> object:
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


class Records(list):
    """Records of a specification, in its order; its ``missing`` runs, and the shell ``command`` that trains them."""

    def __init__(self, rows: Iterable[dict[str, Any]], missing: Iterable[Run], command: str) -> None:
        super().__init__(rows)
        self.missing, self.command = tuple(missing), command

    @property
    def wanted(self) -> int:
        """Number of runs, recorded or not."""
        return len(self) + len(self.missing)

    def select(self, **values: object) -> Records:
        """Return the records and missing runs whose fields equal the values; a list of values means any of them.

        A column that only records have, such as ``status``, selects no missing run.
        """
        if unknown := set(values) - set(RECORD):
            raise KeyError(f"{', '.join(sorted(unknown))}: not a column of records, which are {', '.join(RECORD)}")
        allowed = {k: [*map(_plain, value if isinstance(value, list) else [value])] for k, value in values.items()}

        def selected(fields: Mapping[str, Any]) -> bool:
            return all(_plain(fields.get(name)) in some for name, some in allowed.items())

        runs = [run for run in self.missing if selected({name: getattr(run, name, ...) for name in values})]
        return Records(filter(selected, self), runs, self.command)

    def column(self, name: str) -> np.ndarray:
        """Return one field of every record. Measured numbers are NaN if a run diverged."""
        if self and not any(name in row for row in self):
            raise KeyError(f"no record has {name!r}")
        values = [row.get(name) for row in self]
        if all(value is None or type(value) in (int, float) for value in values):
            return np.array(values, float)
        return np.array(values, dtype=object if any(isinstance(value, list | dict) for value in values) else None)
