"""Scores of a file of posteriors (or codes) and factor values: reading, scoring, and the report of ``isa mig``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from isa import mig
from isa.data.base import SourceError, reading
from isa.disentanglement import disentanglement
from isa.subspaces import subspace_information

__all__ = ["read", "report", "score"]

_FEWEST, _RESAMPLES = 10, 100  # rows, bootstrap resamples of them
_DRAWS, _PAIRS = 100, 2 * 10**7  # minimum of draws of joint densities, maximum of draws times rows above it
_LABELS = {"mig_binned": "binned MIG", "mig_sampled": "sampled MIG", "mig_of_subspaces": "MIG of subspaces"}
_LABELS |= {"info_modularity": "InfoM", "info_compactness": "InfoC"} | {x: x for x in ("modularity", "completeness")}


Arrays = tuple[Tensor, Tensor | None, Tensor, list[str]]


def read(path: Path, names: list[str] | None = None, deterministic: bool = False) -> Arrays:
    """Return mean and log variance (N, K), factors (N, F) and their names from a file; ``names`` chooses factors."""
    with reading(path, "an archive or table of numbers") as file:
        arrays = _read_csv(file) if path.suffix == ".csv" else dict(np.load(file, allow_pickle=False))
    wanted = ["mean", "factors"] if deterministic else ["mean", "log_var", "factors"]
    if absent := [name for name in wanted if name not in arrays]:
        hint = "; --deterministic scores codes without variances" if absent == ["log_var"] else ""
        raise ValueError(f"{path} has no {' and no '.join(absent)}, only {', '.join(arrays) or 'nothing'}{hint}")
    *codes, factors = (arrays[name] if arrays[name].ndim == 2 else arrays[name][..., None] for name in wanted)
    every = [str(name) for name in arrays.get("names", [f"factor{f}" for f in range(factors.shape[-1])])]
    unlike = any(x.ndim != 2 or not x.size or x.shape != codes[0].shape for x in codes)
    if unlike or factors.shape != (len(codes[0]), len(every)):
        shapes = ", ".join(f"{name} {arrays[name].shape}" for name in wanted)
        raise ValueError(f"the arrays of {path} must have one row per image, got {shapes} and {len(every)} names")
    if len(factors) < _FEWEST:
        raise ValueError(f"{path} has too few rows to score: {len(factors)}, but at least {_FEWEST} are needed")
    for name, x in zip(wanted, codes, strict=False):
        if x.dtype.kind not in "fiu" or not np.isfinite(x).all():
            raise ValueError(f"{name} of {path} must be finite numbers, without NaN")
    if absent := [name for name in names or [] if name not in every]:
        raise ValueError(f"{path} has no factor {', '.join(absent)}, only {', '.join(every)}")
    factors = factors[:, [every.index(name) for name in names or every]]
    for name, values in zip(names or every, factors.T, strict=True):
        if values.dtype.kind not in "iub" and (values.dtype.kind != "f" or path.suffix != ".csv" or (values % 1).any()):
            raise ValueError(f"factor {name} must be integers; np.unique(x, return_inverse=True)[1] numbers its values")
        if (values == values[0]).all():
            raise ValueError(f"factor {name} has one value, {values[0]:g}; --factors chooses the others")
    tensors = [torch.from_numpy(x.astype(np.result_type(x, np.float32))) for x in codes]
    return tensors[0], None if deterministic else tensors[1], torch.from_numpy(factors.astype(int)), names or every


def _read_csv(file: BinaryIO) -> dict[str, Any]:
    """Return means from the columns z0, z1, ..., log variances from log_var0, ..., and the rest as factors."""
    header = [name.strip(' "') for name in file.readline().decode("utf-8-sig").strip().split(",")]
    try:
        rows = np.loadtxt(file, delimiter=",", ndmin=2)
        if rows.shape[1] != len(header):
            raise ValueError(f"{len(header)} headings for {rows.shape[1]} columns")
    except ValueError as error:
        raise SourceError(f"{file.name}: {error}") from None
    columns: dict[str, list[tuple[int, int]]] = {}
    for column, name in enumerate(header):
        match = re.fullmatch(r"(z|log_var)_?(\d+)", name)
        kind, place = ({"z": "mean"}.get(match[1], match[1]), int(match[2])) if match else ("factors", column)
        columns.setdefault(kind, []).append((place, column))
    arrays: dict[str, Any] = {kind: rows[:, [column for _, column in sorted(its)]] for kind, its in columns.items()}
    return arrays | {"names": [header[column] for _, column in columns.get("factors", [])]}


def score(arrays: Arrays, binned: int = 0, samples: int = 0, subspaces: Sequence[int] = ()) -> dict[str, Any]:
    """Return the scores of arrays from :func:`read`, ready for JSON, in nats, with 95 % intervals by resampled rows."""
    mean, log_var, table, names = arrays
    generator, k = torch.Generator().manual_seed(0), mean.shape[1]
    if min(binned, samples) < 0:
        raise ValueError(f"binned and samples must be positive, got {binned} and {samples}")
    if subspaces and not (all(type(size) is int and size > 0 for size in subspaces) and sum(subspaces) == k):
        raise ValueError(f"subspaces must have {k} latents in all, as in 1,{k - 1}, got {subspaces}")
    options: dict[str, Any] = {"subsample": samples or None, "resamples": _RESAMPLES, "generator": generator}
    gap = mig.mutual_information_gap(mean, log_var, factor_values=table, **options)
    resampled = np.asarray(gap.resampled_gaps)
    ends, between = (np.quantile(x, (0.025, 0.975), axis=0).T.tolist() for x in (resampled, resampled.mean(1)))
    result: dict[str, Any] = {"rows": len(mean), "latents": k, "factors": names, "mig": gap.score}
    result |= {"mig_interval": between, "gap_intervals": ends, "error_bound": gap.error_bound}
    result |= {x: getattr(gap, x).tolist() for x in ("gaps", "mutual_information", "entropy", "factor_entropy")}
    measures = gap.disentanglement._asdict().items()
    result |= {name: value for name, value in measures if name in _LABELS and math.isfinite(value)}
    result |= {"mig_sampled": gap.subsampled_score} if samples else {}
    if binned:
        result["mig_binned"] = mig.mutual_information_gap_binned(mean, factor_values=table, bins=binned)[0]
    if subspaces:
        groups = [group.tolist() for group in torch.arange(k).split(list(subspaces))]
        count = max(_DRAWS, _PAIRS // len(mean))
        joint = subspace_information(mean, log_var, [groups], None, count, generator, factor_values=table)
        information = joint.mutual_information[0].clamp(min=0.0)
        result |= {"subspace_mutual_information": information.tolist(), "subspace_draws": joint.n_draws}
        result["subspace_standard_error"] = joint.standard_error[0].tolist()
        result["mig_of_subspaces"] = disentanglement(information, gap.factor_entropy).mig
    return result


def report(result: dict[str, Any]) -> str:
    """Return the scores of :func:`score` as text."""
    (low, high), bound = result["mig_interval"], result["error_bound"]
    lines = [f"{result['rows']:,} rows, {result['latents']} latents\n"]
    lines += [f"MIG {result['mig']:.4f}, 95 % interval {low:.4f} to {high:.4f}; error bound of its sums {bound:.1g}"]
    for name, one, (low, high) in zip(result["factors"], result["gaps"], result["gap_intervals"], strict=True):
        lines.append(f"  gap {name:12} {one:7.4f}, 95 % interval {low:.4f} to {high:.4f}")
    lines += [f"{label:20} {result[name]:7.4f}" for name, label in _LABELS.items() if name in result]
    for title, key in (("latent  ", "mutual_information"), ("subspace", "subspace_mutual_information")):
        if key in result:
            lines += ["", "mutual information in nats", title + "".join(f"{x:>13}" for x in result["factors"])]
            columns = enumerate(zip(*result[key], strict=True))
            lines += [f"{k:8}" + "".join(f"{nats:13.4f}" for nats in column) for k, column in columns]
    return "\n".join(lines)
