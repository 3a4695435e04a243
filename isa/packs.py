"""What trains together, in which order, how long that takes, and which sweep trains it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from math import ceil, inf
from pathlib import Path
from statistics import median
from typing import Any

import filelock

from isa import engine
from isa._spec import Spec
from isa.run import OBJECTIVES, Run

__all__ = ["Job", "OutOfTime", "Speed", "Watch", "claim", "divide", "is_claimed", "longest", "steps_done"]


class Job:
    """A run to train, the specification beside which it is recorded, and its tier there."""

    def __init__(self, spec: Spec, run: Run, tier: int = 1) -> None:
        self.spec, self.run, self.tier = spec, run, tier
        self.hash, self.course, self.steps = run.hash, run.course, run.total_steps
        self.group = run.pack_key, spec.work  # equal for jobs that can train together
        self.kind = _kind(run.to_dict())


def _kind(run: Mapping[str, Any]) -> tuple:
    """Return what the time of a step depends on."""
    names = ("dataset", "model", "latent_dim", "batch_size", "precision", "learn_exponents")
    return OBJECTIVES[run["objective"]], run["prior"] == "normal", *(run[name] for name in names)


def longest(jobs: Iterable[Job]) -> dict[str, Job]:
    """Return the longest job of each course, in the order of the courses."""
    ends: dict[str, Job] = {}
    for job in jobs:
        if job.course not in ends or job.steps > ends[job.course].steps:
            ends[job.course] = job
    return ends


def steps_done(job: Job) -> int:
    """Return the step of the checkpoint from which a job continues, 0 if there is none."""
    with suppress(engine.CheckpointError):
        done = engine.checkpoint_step(job.spec.work / "checkpoints", job.run)
        return done if done <= job.steps else 0
    return 0


def divide(jobs: Iterable[Job], size: int) -> Iterator[list[Job]]:
    """Divide jobs, in the order of their tiers, into packs of up to ``size`` courses.

    The runs of a pack have one shape and start from one step; packs of one shape are about equally large. A course ends
    with its longest job of this tier or an earlier one. Its shorter jobs, of any tier, join it, except those that its
    checkpoint has passed.
    """
    left = list(jobs)
    while left:
        ends = longest(job for job in left if job.tier <= left[0].tier)
        group, start = ends[left[0].course].group, steps_done(ends[left[0].course])
        alike = [end for end in ends.values() if end.group == group and steps_done(end) == start]
        chosen = {end.course: end.steps for end in alike[: ceil(len(alike) / ceil(len(alike) / size))]}
        pack = [job for job in left if start <= job.steps <= chosen.get(job.course, -1)]
        left = [job for job in left if job not in pack]
        yield pack


class Speed:
    """Seconds of a step and of a measurement of one run, by kind: those of one device's records, until measured."""

    def __init__(self, records: Iterable[Mapping[str, Any]] = (), device: str = "") -> None:
        steps, evaluations = {}, {}
        for row in records:
            if row["device"] == device and row["status"] == "trained":
                step = row["train_seconds"] / row["total_steps"] / row["pack_size"]
                steps.setdefault(_kind(row), []).append(step)
                evaluations.setdefault(_kind(row), []).append(row["evaluation_seconds"])
        self.step = {kind: median(seconds) for kind, seconds in steps.items()}
        self.evaluation = {kind: median(seconds) for kind, seconds in evaluations.items()}

    def __call__(self, jobs: Sequence[Job]) -> float | None:
        """Return the seconds that jobs take, each course once; None if the speed of a kind is not known."""
        ends = longest(jobs).values()
        if not {end.kind for end in ends} <= set(self.step):
            return None
        return sum(self.step[end.kind] * (end.steps - steps_done(end)) for end in ends) + self.measuring(jobs)

    def measuring(self, jobs: Sequence[Job]) -> float:
        """Return the seconds that measuring jobs takes, for unknown kinds as long as for the slowest."""
        slowest = max(self.evaluation.values(), default=0.0)
        return sum(self.evaluation.get(job.kind, slowest) for job in jobs)


class OutOfTime(Exception):
    """The pack in training would not be done within the budget, or is no longer wanted."""


class Watch:
    """Callback that measures the pace of a pack, and raises :class:`OutOfTime` if it would not be done in time.

    ``steps`` is the number of steps, ``deadline`` the time of ``time.monotonic`` by which the last must be done, and
    ``wanted`` is asked at every look.
    """

    def __init__(self, steps: int, deadline: float = inf, wanted: Callable[[], bool] = lambda: True) -> None:
        self.steps, self.deadline, self.wanted = steps, deadline, wanted
        self.looks: list[tuple[float, int]] = []

    def __call__(self, step: int, terms: object) -> None:
        self.looks.append((time.monotonic(), step))
        if not self.wanted() or self.looks[-1][0] + (self.pace or 0.0) * (self.steps - step) > self.deadline:
            raise OutOfTime

    @property
    def pace(self) -> float | None:
        """Seconds of a step since the first look, before which the step is compiled; None until the second look."""
        if len(self.looks) < 2:
            return None
        (began, first), (now, last) = self.looks[0], self.looks[-1]
        return (now - began) / (last - first)


def _lock(spec: Spec, run: Run) -> filelock.FileLock:
    """Return the lock on a run's course, all of whose runs share a checkpoint. It ends with the process."""
    return filelock.FileLock(spec.path.parent / "work" / "claims" / f"{run.course}.lock", thread_local=False)


def claim(pack: Sequence[Job], claims: ExitStack) -> list[Job]:
    """Claim the courses of a pack that no sweep trains, until ``claims`` is closed; return their jobs."""
    mine = set()
    for job in longest(pack).values():
        with suppress(filelock.Timeout):
            claims.enter_context(_lock(job.spec, job.run).acquire(blocking=False))
            mine.add(job.course)
    return [job for job in pack if job.course in mine]


def is_claimed(spec: Spec, run: Run) -> bool:
    """Return True if a sweep on this file system is training the run's course."""
    lock = _lock(spec, run)
    try:
        if Path(lock.lock_file).exists():
            lock.acquire(blocking=False).lock.release()
    except filelock.Timeout:
        return True
    except OSError:  # nothing can be known on a file system that is mounted for reading only
        pass
    return False
