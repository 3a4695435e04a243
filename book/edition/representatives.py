"""The run of each kind that stands for all of them, its portrait (A.5), and what its latents encode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edition.stats import representative
from isa.latents import Portrait
from isa.sweep import Records

__all__ = ["Representative", "carriers", "encoded", "factor_title", "find_representative", "interpretation", "ordered"]
__all__ += ["summary"]

_FIFTH = 0.2  # of the largest information, below which another factor, or another latent, does not count
_LEAST = 0.05  # nats, below which another factor does not count


@dataclass(frozen=True)
class Representative:
    """The run that represents all runs of one kind (A.5), if there is one."""

    study: int  #: index of the study that it is from
    recorded: int  #: number of runs of this kind in that study that are recorded and did not diverge
    wanted: int  #: number of runs of this kind that the study specifies
    record: Mapping[str, Any] | None  #: record of the chosen run; None if none is recorded
    portrait: Portrait | None  #: its portrait; None if there is none


def find_representative(studies: Sequence[Records], portraits: Iterable[Path]) -> Representative:
    """Choose the run that represents its kind, and load its portrait.

    ``studies`` are records of one kind of run, in order of preference: the first whose representative has a portrait is
    taken; if none has, the first with a run; otherwise the first. The names of portraits end with the hash of the run.
    """
    paths = {path.stem.rpartition("-")[2]: path for path in portraits}
    candidates = []
    for number, records in enumerate(studies):
        rows = [row for row in records if row["status"] == "trained"]
        scores = [[row[name] for row in rows] for name in ("mig", "log_likelihood")]
        record = rows[representative(*scores)] if rows else None
        path = paths.get(record["hash"]) if record else None
        candidates.append(Representative(number, len(rows), records.wanted, record, path and Portrait.load(path)))
    return max(candidates, key=lambda run: (run.portrait is not None, run.record is not None, -run.study))


def factor_title(model: Portrait, factor: str) -> str:
    """Return a factor's name, with the word *position* if it is one of the plane of the view."""
    return f"{factor} position" if factor in (model.view.plane or ()) else factor


def ordered(model: Portrait) -> list[str]:
    """Return the factors of the mutual information, those of the view's plane first: x, y, and the others."""
    return list(dict.fromkeys([*(model.view.plane or ())[::-1], *model.scored]))


def encoded(model: Portrait) -> dict[int, dict[str, float]]:
    """Return the factors that each active latent encodes, most informative first, and their nats.

    The first is the factor with the most mutual information; others follow if theirs is at least a fifth of it and 0.05
    nats. Latents are ordered by their first factor, those of the plane first, and by decreasing information.
    """
    factors, result = ordered(model), {}
    for k in model.shown.tolist():
        nats = dict(zip(model.scored, model.mutual_information[:, k].tolist(), strict=True))
        names = sorted(nats, key=nats.get, reverse=True)
        enough = max(_FIFTH * nats[names[0]], _LEAST)
        result[k] = {name: nats[name] for name in names if name == names[0] or nats[name] >= enough}
    first = {k: next(iter(found.items())) for k, found in result.items()}
    return {k: result[k] for k in sorted(result, key=lambda k: (factors.index(first[k][0]), -first[k][1]))}


def carriers(model: Portrait, factor: str) -> dict[int, float]:
    """Return the latents with at least a fifth of the most information on a factor, most first, and the nats."""
    nats = model.mutual_information[model.scored.index(factor)]
    return {int(k): float(nats[k]) for k in (-nats).argsort(kind="stable") if nats[k] >= _FIFTH * nats.max() > 0}


def _list(words: Iterable[object]) -> str:
    *first, last = map(str, words)
    return f"{', '.join(first)} and {last}" if first else last


def _share(model: Portrait, factor: str, nats: float) -> str:
    return f"{nats:.2f} of {math.log(model.factor(factor).size):.2f} nats"


def interpretation(model: Portrait, latent: int, short: bool = False) -> str:
    """Return in words what a latent encodes: a factor with its nats out of all, several factors, or nothing."""
    found = encoded(model).get(latent, {})
    if len(found) > 1:
        parts = found if short else (f"{factor} {nats:.2f}" for factor, nats in found.items())
        return f"mixed: {', '.join(parts)}{'' if short else ' nats'}"
    for factor, nats in found.items():
        title = factor_title(model, factor)
        return f"{title}, {nats:.1f} nats" if short else f"{title} ({_share(model, factor, nats)})"
    return "inactive"


def summary(model: Portrait) -> str:
    """Return as a phrase which factors have one latent that encodes nothing else, and where the others are encoded."""
    content, single, others = encoded(model), [], []
    for factor in ordered(model):
        title, latents = factor_title(model, factor), carriers(model, factor)
        names = [f"latent {k + 1}" for k in latents]
        if len(names) > 1:
            others.append(f"{title} is spread over {_list(names).replace(' latent', '').replace('latent', 'latents')}")
        elif len(content.get(next(iter(latents), None), ())) == 1:
            single.append(f"{title} ({names[0]}, {_share(model, factor, sum(latents.values()))})")
        else:
            others.append(f"{title} shares {names[0]} with other factors" if names else f"{title} is not encoded")
    if single:
        verb = "are encoded by one latent each" if len(single) > 1 else "is encoded by one latent"
        single = [f"{_list(single)} {verb}"]
    return "; ".join([*single, *others])
