"""Packs: which runs train together, in which order, how long that takes, and which sweep trains them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from math import ceil
from typing import Any

import filelock

from isa._records import Spec
from isa.run import OBJECTIVES, Run

__all__ = ["Job", "claim", "divide", "duration", "is_claimed", "longest", "speeds"]


class Job:
    """A run to train, the specification next to which it is recorded, and its tier there."""

    def __init__(self, spec: Spec, run: Run, tier: int = 1) -> None:
        self.spec, self.run, self.tier = spec, run, tier
        self.hash, self.course, self.steps = run.hash, run.course, run.total_steps
        self.group = run.pack_key, spec.work  # equal for jobs that can train together
        self.kind = _kind(run.to_dict())
        # locked by the process that trains the course, all of whose runs share a checkpoint
        self.lock = spec.path.parent / "work" / "claims" / f"{self.course}.lock"


def _kind(run: Mapping[str, Any]) -> tuple:
    """Return what the time of a step depends on."""
    names = ("dataset", "model", "latent_dim", "batch_size", "precision", "learn_exponents")
    return OBJECTIVES[run["objective"]], run["prior"] == "normal", *(run[name] for name in names)


def longest(jobs: Iterable[Job]) -> list[Job]:
    """Return the longest job of each course, in the order of the courses."""
    ends: dict[str, Job] = {}
    for job in jobs:
        ends[job.course] = max(ends.get(job.course, job), job, key=lambda one: one.steps)
    return list(ends.values())


def divide(jobs: Iterable[Job], size: int) -> Iterator[list[Job]]:
    """Divide jobs, in the order of their tiers, into packs of up to ``size`` courses.

    The runs of a pack have one shape; packs of one shape are about equally large. A course ends with its longest job of
    this tier or an earlier one. Its shorter jobs, of any tier, join it.
    """
    left = list(jobs)
    while left:
        ends = longest(job for job in left if job.tier <= left[0].tier)
        alike = [end for end in ends if end.group == ends[0].group]
        chosen = {end.course: end.steps for end in alike[: ceil(len(alike) / ceil(len(alike) / size))]}
        yield [job for job in left if job.steps <= chosen.get(job.course, 0)]
        left = [job for job in left if job.steps > chosen.get(job.course, 0)]


def speeds(records: Iterable[Mapping[str, Any]], device: str) -> dict[tuple, float]:
    """Return the seconds of a step of one run, by kind, in the latest records of a device; measuring is included."""
    return {
        _kind(row): (row["train_seconds"] / row["pack_size"] + row["evaluation_seconds"]) / row["total_steps"]
        for row in records
        if row["device"] == device and row["status"] == "trained"
    }


def duration(jobs: Iterable[Job], seconds: Mapping[tuple, float]) -> float | None:
    """Return the seconds that jobs take, each course once; None if those of a step are not known for all kinds."""
    known = [seconds[end.kind] * end.steps if end.kind in seconds else None for end in longest(jobs)]
    return None if None in known else sum(known)


def claim(pack: Sequence[Job], claims: ExitStack) -> list[Job]:
    """Claim the courses of a pack that no sweep trains, until ``claims`` is closed; return their jobs."""
    mine = set()
    for job in longest(pack):
        with suppress(filelock.Timeout):
            claims.enter_context(filelock.FileLock(job.lock, thread_local=False).acquire(blocking=False))
            mine.add(job.course)
    return [job for job in pack if job.course in mine]


def is_claimed(job: Job) -> bool:
    """Return True if a sweep on this file system is training the job's course."""
    with ExitStack() as claims:
        return job.lock.exists() and not claim([job], claims)
