"""The run of each kind that stands for all of them, and its portrait (A.5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edition.stats import representative
from isa.latents import Portrait
from isa.sweep import Records

__all__ = ["Representative", "find_representative"]


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
