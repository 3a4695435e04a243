"""Scores of a file of posteriors, or codes, and factor values: reading, scoring, and the report of ``isa mig``."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from isa import mig
from isa.disentanglement import disentanglement
from isa.subspaces import subspace_information

__all__ = ["Codes", "read", "report", "score"]

_FEWEST, _DRAWS, _SEED = 10, 1000, 0  # rows, draws of joint densities, seed of all draws


class Codes(NamedTuple):
    """N posteriors of K latents, and F factors."""

    mean: np.ndarray  #: (N, K)
    log_var: np.ndarray | None  #: (N, K); None for a deterministic encoder
    factors: np.ndarray  #: (N, F) integers
    names: list[str]  #: of the factors


def read(path: Path, names: list[str] | None = None, deterministic: bool = False) -> Codes:
    """Read a ``.npz`` or ``.csv`` file, and check it; ``names`` chooses factors."""
    columns = _read_csv(path) if path.suffix == ".csv" else dict(np.load(path, allow_pickle=False))
    wanted = ["mean", "factors"] if deterministic else ["mean", "log_var", "factors"]
    if absent := [name for name in wanted if name not in columns]:
        hint = "; --deterministic scores codes without variances" if absent == ["log_var"] else ""
        raise ValueError(f"{path} has no {' and no '.join(absent)}, only {', '.join(columns) or 'nothing'}{hint}")
    arrays = [np.atleast_1d(columns[name]) for name in wanted]
    mean, *log_var, factors = (x[:, None] if x.ndim == 1 else x for x in arrays)
    every = [str(name) for name in columns.get("names", [f"factor{f}" for f in range(factors.shape[-1])])]
    sizes = [len(x) for x in arrays]
    if len(set(sizes)) > 1 or any(x.shape != mean.shape for x in log_var) or factors.shape[1:] != (len(every),):
        shapes = [f"{name} {x.shape}" for name, x in zip(wanted, arrays, strict=True)]
        raise ValueError(f"arrays of {path} must have one row an image, got {', '.join(shapes)} and {len(every)} names")
    if len(mean) < _FEWEST:
        raise ValueError(f"{path} has {len(mean)} rows, too few to score: {_FEWEST} at least")
    for name, x in zip(wanted, (mean, *log_var), strict=False):
        if x.dtype.kind not in "fiu" or not np.isfinite(x).all():
            raise ValueError(f"{name} of {path} must be finite numbers, without NaN")
    if absent := [name for name in names or [] if name not in every]:
        raise ValueError(f"{path} has no factor {', '.join(absent)}, only {', '.join(every)}")
    factors = factors[:, [every.index(name) for name in names or every]]
    for name, values in zip(names or every, factors.T, strict=True):
        if values.dtype.kind not in "iub":
            raise ValueError(f"factor {name} must be integers; np.unique(x, return_inverse=True)[1] numbers its values")
        if (values == values[0]).all():
            raise ValueError(f"factor {name} has one value, {values[0]}; choose other factors by --factors")
    return Codes(mean, *(log_var or [None]), factors.astype(np.int64), names or every)


def _read_csv(path: Path) -> dict[str, Any]:
    """Return means from the columns z0, z1, ..., log variances from log_var0, ..., and all others as factors."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = [name.strip() for name in next(csv.reader(file), [])]
        rows = np.loadtxt(file, delimiter=",", ndmin=2)
    if len(rows) and rows.shape[1] != len(header):
        raise ValueError(f"{path} has {len(header)} headings and {rows.shape[1]} columns")
    found: dict[str, dict[int, int]] = {"mean": {}, "log_var": {}}
    for column, name in enumerate(header):
        if match := re.fullmatch(r"(z|log_var)_?(\d+)", name):
            found["mean" if match[1] == "z" else "log_var"][int(match[2])] = column
    taken = [column for group in found.values() for column in group.values()]
    names = [name for column, name in enumerate(header) if column not in taken]
    if not len(rows):
        raise ValueError(f"{path} has no rows")
    factors = rows[:, [header.index(name) for name in names]]
    whole = np.isfinite(factors).all(0) & (factors == np.round(factors)).all(0)
    if not whole.all():
        raise ValueError(f"factor {names[whole.argmin()]} of {path} must be integers, without NaN")
    arrays = {key: rows[:, [group[number] for number in sorted(group)]] for key, group in found.items() if group}
    return arrays | ({"factors": factors.astype(np.int64), "names": names} if names else {})
