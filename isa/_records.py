"""Records of runs: one table a specification, a row a run, replaced as a whole under a lock."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

import filelock
import numpy as np

from isa._files import write_atomically
from isa.run import Run

__all__ = ["RECORD", "Records", "merge_records", "read_records", "recorded"]

RECORD: dict[str, type | UnionType] = (
    {"hash": str, "key": str, "status": str, "diverged_at": int, "dataset": str, "source": str, "objective": str}
    | {"beta": float, "seed": int, "prior": str, "subspaces": list, "p0": float, "p1": float | list}
    | {"scale": float | str, "learn_exponents": bool, "model": str, "latent_dim": int, "epochs": float, "steps": int}
    | {"batch_size": int, "learning_rate": float, "exponent_learning_rate": float, "likelihood": str, "kl": str}
    | {"sampling": str, "precision": str, "mig": float, "gaps": list}
    | dict.fromkeys(("mig_standard_error", "mig_error_bound", "log_likelihood", "log_likelihood_first_10000"), float)
    | {"divergence": float, "elbo": float, "active_units": int, "exponents": list, "factors": list}
    | dict.fromkeys(("mutual_information", "entropy", "conditional_entropy"), list)
    | {"total_steps": int, "reduced": bool, "train_seconds": float, "evaluation_seconds": float, "pack_size": int}
    | {"compiled": bool, "device": str, "versions": dict, "commit": str, "images": int, "images_title": str}
    | {"images_checksum": str, "procedural": bool}
    | dict.fromkeys(("unscored", "log_likelihood_by_value", "unscored_mutual_information"), list)
    | {"mig_binned": float, "mig_10000_samples": float}
    | dict.fromkeys(("subspaces_compared", "subspace_factors", "subspace_mutual_information"), list)
    | dict.fromkeys(("subspace_standard_error", "random_subspace_mean", "random_subspace_deviation"), list)
    | {"subspace_draws": int, "random_groupings": int}
)
"""Columns of a table of records, in order, and what their cells hold; an empty cell is None. Append new columns.

Text stands as it is, everything else as JSON. ``gaps`` are the ``mig_FACTOR`` of a record, in the order of its factors.
"""


def _cell(column: str, value: Any) -> str:
    """Return the text of a cell; measured numbers have nine digits, and the run's fields all, as its hash does."""
    if value is None:
        return ""
    if RECORD[column] is str:
        return " ".join(str(value).split())
    if column not in Run.model_fields:
        value = json.loads(json.dumps(value, allow_nan=False), parse_float=lambda text: float(f"{float(text):.9g}"))
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _value(column: str, cell: str) -> Any:
    if not cell or RECORD[column] is str:
        return cell or None
    # a spreadsheet writes TRUE; int refuses the constants NaN and Infinity
    return json.loads(cell.lower() if RECORD[column] is bool else cell, parse_constant=int)


def _record(cells: Mapping[str, str]) -> dict[str, Any]:
    """Return the record in a row, if it is that of the run which its hash names."""
    record = {column: _value(column, cell) for column, cell in cells.items() if column in RECORD}
    run = Run(**{name: record[name] for name in Run.model_fields if record.get(name) is not None})
    if run.hash != record["hash"]:
        raise ValueError(f"its fields are those of the run {run.hash}, and its hash is {record['hash']}")
    gaps = zip(record["factors"] or (), record.pop("gaps") or (), strict=True)
    return record | run.to_dict() | {"key": run.key} | {f"mig_{name}": gap for name, gap in gaps}


def _read(path: str | os.PathLike[str], convert: Callable[[dict[str, str]], Any] = dict) -> dict[str, Any]:
    """Return the rows of a table by hash, each converted. A ``ValueError`` names the line that is not a record."""
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


def read_records(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read a table of records: every record once, in the order of the file, as :func:`isa.results.measure` returns it.

    If there is no file, there are no records. A ``ValueError`` names the line that is not a record, and says why.
    """
    return list(_read(path, _record).values())


def recorded(path: Path) -> set[str]:
    """Return the hashes of the runs in a table, which is faster than reading the records."""
    return set(_read(path))


def merge_records(path: str | os.PathLike[str], added: Iterable[Mapping[str, Any]]) -> None:
    """Add records to a table under its lock. Runs that are recorded there already keep their records."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock")):
        rows = _read(path)
        for record in added:
            values = {**record, "gaps": [record.get(f"mig_{name}") for name in record.get("factors") or ()] or None}
            rows.setdefault(record["hash"], {column: _cell(column, values.get(column)) for column in RECORD})
        text = io.StringIO()
        writer = csv.DictWriter(text, RECORD, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
        write_atomically(path, text.getvalue().encode())


def _plain(value: object) -> object:
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


class Records(list):
    """List of recorded runs of a specification, in its order; ``missing`` runs, which the shell ``command`` trains."""

    def __init__(self, rows: Iterable[dict[str, Any]], missing: Iterable[Run], command: str) -> None:
        super().__init__(rows)
        self.missing, self.command = tuple(missing), command

    @property
    def wanted(self) -> int:
        """Number of runs, recorded or not."""
        return len(self) + len(self.missing)

    def select(self, **values: object) -> Records:
        """Return those whose fields equal the values, a list of values meaning any of them; also of the missing runs.

        A column that only records have, such as ``status``, selects no missing run.
        """
        if unknown := set(values) - set(RECORD):
            raise KeyError(f"{', '.join(sorted(unknown))}: not a column of records, which are {', '.join(RECORD)}")
        allowed = {name: _plain(value if isinstance(value, list) else [value]) for name, value in values.items()}

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
