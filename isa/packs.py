"""What trains together, in which order, how long that takes, and who trains it.

A sweep turns the runs of its specifications into jobs (:func:`plan`), divides these into packs (:func:`divide`), starts
those that would be done in time (:class:`Speed`, :class:`Watch`), and claims them (:class:`Claim`).
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import torch

from isa import engine, results
from isa.engine import CheckpointError
from isa.run import OBJECTIVES, Run

if TYPE_CHECKING:
    from isa.sweep import Spec

__all__ = [
    "Claim",
    "Job",
    "OutOfTime",
    "Speed",
    "Watch",
    "claim",
    "claim_first",
    "divide",
    "longest",
    "plan",
    "steps_done",
]


@dataclass(eq=False)
class Job:
    """A run that is to be trained, and the specification beside which it is recorded."""

    spec: Spec
    run: Run
    tier: int = 1

    @cached_property
    def hash(self) -> str:
        return self.run.hash

    @cached_property
    def course(self) -> str:
        return self.run.course

    @cached_property
    def steps(self) -> int:
        return self.run.total_steps

    @cached_property
    def group(self) -> tuple:
        """Equal for jobs that can train together; their checkpoints are in one folder."""
        return self.run.pack_key, self.spec.work

    @cached_property
    def shape(self) -> tuple:
        """Equal for jobs of one compiled step."""
        return self.run.replace(steps=1).pack_key

    @cached_property
    def kind(self) -> tuple:
        return kind_of(lambda name: getattr(self.run, name), self.run.base)


def kind_of(of: Callable[[str], Any], base: str) -> tuple:
    """Return what the time of a step depends on."""
    names = ("dataset", "model", "latent_dim", "batch_size", "precision", "learn_exponents")
    return base, of("prior") == "normal", *(of(name) for name in names)


def plan(specs: Sequence[Spec], tier: int | None) -> list[Job]:
    """Return the runs of several specifications up to a tier: tier 1 of each in turn, then tier 2."""
    numbers = sorted({number for spec in specs for number in spec.tiers if tier is None or number <= tier})
    return [Job(spec, run, number) for number in numbers for spec in specs for run in spec.tiers.get(number, ())]


def longest(jobs: Iterable[Job]) -> dict[str, Job]:
    """Return the longest job of each course."""
    return {job.course: job for job in sorted(jobs, key=lambda job: job.steps)}


def divide(jobs: Sequence[Job], size: int) -> Iterator[list[Job]]:
    """Divide jobs, in the order of their tiers, into packs of up to ``size`` courses.

    The runs of a pack have one shape, one tier and one step from which they start, and packs of one shape are about
    equally large. A course ends with its longest job of this tier or an earlier one. Its shorter jobs, of any tier,
    join it, except those that its checkpoint has passed.
    """
    left = {job: None for job in jobs}
    while left:
        first = next(iter(left))
        ends = longest(job for job in left if job.tier <= first.tier)
        order = dict.fromkeys(job.course for job in left if job.course in ends)
        alike = [ends[course] for course in order if ends[course].group == ends[first.course].group]
        starts = {end.course: steps_done(end.spec, end.run) for end in alike}
        alike = [end for end in alike if starts[end.course] == starts[first.course]]
        number = math.ceil(len(alike) / math.ceil(len(alike) / size))
        chosen = {end.course: end.steps for end in alike[:number]}
        pack = [job for job in left if starts.get(job.course, 0) <= job.steps <= chosen.get(job.course, 0)]
        for job in pack:
            del left[job]
        yield pack


class Speed:
    """Seconds per run and step, and to measure a run, by kind of run: those of one device's records, until measured."""

    def __init__(self, records: Iterable[Mapping[str, Any]] = (), device: torch.device | str = "cpu") -> None:
        times: dict[tuple, list[tuple[float, float]]] = {}
        name = device if isinstance(device, str) else results.device_name(device)
        for record in records:
            if record["device"] == name and record["status"] == "trained":
                step = record["train_seconds"] / record["total_steps"] / record["pack_size"]
                kind = kind_of(record.get, OBJECTIVES[record["objective"]])
                times.setdefault(kind, []).append((step, record["evaluation_seconds"]))
        medians = {kind: tuple(map(statistics.median, zip(*both, strict=True))) for kind, both in times.items()}
        self.step = {kind: step for kind, (step, _) in medians.items()}
        self.evaluation = {kind: evaluation for kind, (_, evaluation) in medians.items()}

    def __call__(self, jobs: Sequence[Job]) -> float | None:
        """Return the seconds that jobs take, each course once; None if the speed of a kind is not known."""
        ends = longest(jobs).values()
        if not all(end.kind in self.step for end in ends):
            return None
        steps = sum(self.step[end.kind] * (end.steps - steps_done(end.spec, end.run)) for end in ends)
        return steps + self.measuring(jobs)

    def measuring(self, jobs: Sequence[Job]) -> float:
        """Return the seconds that measuring jobs takes, for kinds not measured yet as long as for the slowest."""
        most = max(self.evaluation.values(), default=0.0)
        return sum(self.evaluation.get(job.kind, most) for job in jobs)


class Claim:
    """A lock on a run in training; it ends with its process, however that ends.

    It applies to the run's whole course: a shorter and a longer run of one course share a checkpoint, which a second
    process would replace, or remove, while the first one uses it.
    """

    def __init__(self, spec: Spec, run: Run) -> None:
        self.path = spec.work / "claims" / f"{run.course}.lock"
        self.lock = filelock.FileLock(self.path)

    def acquire(self) -> bool:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.lock.acquire(blocking=False)
        except filelock.Timeout:
            return False
        return True

    def release(self) -> None:
        self.lock.release()

    def is_held(self) -> bool:
        """Return True if some process has it."""
        if not self.path.exists():
            return False
        try:
            if not self.acquire():
                return True
        except OSError:  # as on a file system that is mounted for reading alone: from here, that cannot be known
            return False
        self.release()
        return False


def claim(pack: Sequence[Job], claims: ExitStack) -> list[Job]:
    """Claim what is free of a pack; returns the jobs that are now this process's, of a course the longest or none."""
    ends = longest(pack)
    claimed: dict[tuple[str, Path], bool] = {}
    for job in sorted(pack, key=lambda job: -job.steps):
        key, end = (job.course, job.spec.work), ends[job.course]
        if key not in claimed and claimed.get((end.course, end.spec.work), True):
            lock = Claim(job.spec, job.run)
            claimed[key] = lock.acquire()
            if claimed[key]:
                claims.callback(lock.release)
    return [job for job in pack if claimed.get((job.course, job.spec.work))]


def claim_first(jobs: Sequence[Job], size: int, claims: ExitStack) -> list[Job]:
    """Claim the first pack of which any course is free."""
    return next((mine for pack in divide(jobs, size) if (mine := claim(pack, claims))), [])


class OutOfTime(Exception):
    """The pack in training would not be done within the budget, or is no longer wanted."""


class Watch:
    """Callback that measures the speed of a pack, and ends its training if it would not be done in time.

    Parameters
    ----------
    steps
        Steps of the longest run.
    deadline
        In seconds of ``time.monotonic``; ``after`` seconds before it the last step must be done.
    check
        Called at every look; it may raise.
    """

    def __init__(
        self, steps: int, deadline: float = math.inf, after: float = 0.0, check: Callable[[], object] = bool
    ) -> None:
        self.steps, self.deadline, self.check = steps, deadline - after, check
        self.last: tuple[float, int] | None = time.monotonic(), 0
        self.intervals: list[tuple[float, int]] = []  # seconds and steps

    def __call__(self, step: int, terms: object) -> None:
        self.check()
        now = time.monotonic()
        if self.last is not None:
            self.intervals.append((now - self.last[0], step - self.last[1]))
        self.last = now, step
        if self.pace is not None and step < self.steps and now + self.pace * (self.steps - step) > self.deadline:
            raise OutOfTime

    def pause(self) -> None:
        """Leave out the time until the next look."""
        self.last = None

    @property
    def pace(self) -> float | None:
        """Seconds of a step of the pack; None during the first interval, in which it is compiled, and the second."""
        seconds, steps = (sum(values) for values in zip((0.0, 0), *self.intervals[1:], strict=True))
        return seconds / steps if steps else None

    @property
    def startup(self) -> float:
        """Seconds that the first interval took longer than the second."""
        return max(0.0, self.intervals[0][0] - self.intervals[1][0]) if len(self.intervals) > 1 else 0.0


def steps_done(spec: Spec, run: Run) -> int:
    """Return the step of a run's checkpoint, 0 if there is none that it can continue from."""
    try:
        done = engine.checkpoint_step(spec.work / "checkpoints", run)
    except CheckpointError:
        return 0
    return done if done <= run.total_steps else 0
