"""Packs of runs that train together: their order, the claims of sweeps on them, and training in this process."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
from math import ceil
from pathlib import Path
from typing import Any

import filelock
import torch

from isa import data, engine, latents, results
from isa._files import write_atomically
from isa._records import Spec, merge_records, read_rows
from isa.results import Trained
from isa.run import OBJECTIVES, Run

__all__ = ["PACK_SIZES", "Job", "Local", "Recorder", "claim", "divide", "duration", "images", "is_claimed", "kind"]
__all__ += ["longest", "measure", "summary", "train", "write_profile"]

PACK_SIZES = {"cuda": 18, "cpu": 1}
"""Default number of runs that train at once, by the type of the device."""
_POLL_SECONDS = 2.0
_MARGIN = 1.1  # of the time that a pack is expected to take, for its measurement
_CLOCKS = "nvidia-smi --query-gpu=name,clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu --format=csv"
_stream = cache(torch.cuda.Stream)  # of measurements, by device

Measured = tuple[dict[str, Any], latents.Portrait | None]
"""The record of a run, and its portrait, None if it diverged."""


class Job:
    """A run to train, its specification, and its tier there."""

    def __init__(self, spec: Spec, run: Run, tier: int = 1) -> None:
        self.spec, self.run, self.tier = spec, run, tier
        self.hash, self.course, self.steps = run.hash, run.course, run.total_steps
        self.group = run.pack_key, spec.work  # equal for jobs that can train together
        self.kind, self.checkpoints = kind(run.to_dict()), spec.work / "checkpoints"
        # locked by the process that trains the course, all of whose runs share a checkpoint
        self.lock = spec.path.parent / "work" / "claims" / f"{self.course}.lock"

    @property
    def left(self) -> int:
        """Number of steps that remain after the checkpoint; all if the checkpoint is beyond the run's end."""
        done = engine.checkpoint_step(self.checkpoints, self.run)
        return self.steps - done * (done <= self.steps)


def kind(run: Mapping[str, Any]) -> tuple:
    """Return the settings on which the time of a step depends."""
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


def duration(jobs: Iterable[Job], seconds: Mapping[tuple, float]) -> float | None:
    """Return the seconds that jobs take, each course once, from those of a step by kind; None if a kind is unknown."""
    ends = longest(jobs)
    return sum(seconds[end.kind] * end.left for end in ends) if all(end.kind in seconds for end in ends) else None


def claim(pack: Sequence[Job], claims: ExitStack) -> list[Job]:
    """Claim the courses of a pack that no other sweep trains, until ``claims`` is closed; return their jobs."""
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


@lru_cache(maxsize=1)
def images(name: str, source: str | None, cache_dir: Path | None, device: torch.device) -> data.FactorDataset:
    """Return a data set with its images on a device; the latest one stays in memory."""
    return data.load(name, source, cache_dir=cache_dir, device=device)


def measure(pack: Trained, dataset: data.FactorDataset, models: Path | None) -> list[Measured]:
    """Measure runs, save their models in a folder (not if it is None), and return record and portrait of each."""
    stream = _stream(dataset.device) if dataset.device.type == "cuda" else None
    if stream is not None:  # concurrently with the training, after what is queued already
        stream.wait_stream(torch.cuda.default_stream(dataset.device))
    with torch.cuda.stream(stream):
        measured = results.measure(pack, dataset, progress=False)
        if models is not None:
            for one in measured:
                one.save(models / one.run.key)
        return [(one.record, latents.portrait(one, dataset) if one.evaluation else None) for one in measured]


def summary(record: Mapping[str, Any]) -> str:
    """Return a line of text for a recorded run."""
    if record["status"] == "trained":
        result = f"MIG {record['mig']:.3f}  log-likelihood {record['log_likelihood']:.2f}"
    else:
        result = f"diverged at step {record['diverged_at']:,}"
    return f"{record['key']}  {result}  {record['train_seconds']:.0f} s{'  REDUCED SCALE' * bool(record['reduced'])}"


@dataclass
class Recorder:
    """Saves portraits and records of jobs, and copies them to the folder ``out`` if it is not None."""

    jobs: Sequence[Job]
    out: Path | None
    report: Callable[[str], object]

    def __call__(self, measured: Sequence[Measured]) -> None:
        """Record measured runs, and remove checkpoints from which no longer run continues."""
        done = [(job, *pair) for pair in measured for job in self.jobs if job.hash == pair[0]["hash"]]
        tables: dict[Path, list[dict[str, Any]]] = {}
        for job, record, portrait in done:
            for table in [job.spec.record, *([self.out / job.spec.record.name] if self.out else [])]:
                tables.setdefault(table, []).append(record)
                if portrait is not None:
                    portrait.save(table.parent / "portraits" / f"{record['key']}.npz")
        for table, records in tables.items():
            merge_records(table, records)
        for job, *_ in done:
            longer = any(other.course == job.course and other.steps > job.steps for other in self.jobs)
            if not longer and engine.checkpoint_step(job.checkpoints, job.run) <= job.steps:
                engine.checkpoint_path(job.checkpoints, job.run).unlink(missing_ok=True)
        for record, _ in measured:
            self.report(summary(record))

    def late(self, pack: Sequence[Job]) -> None:
        """Report that a pack is not trained within the budget."""
        self.report(f"not in time, to be continued by another sweep: {', '.join(job.run.key for job in pack)}")


def _missing(jobs: Sequence[Job], passed: Container[Job] = ()) -> list[Job]:
    """Return the jobs that no sweep has recorded yet, without those that are passed over."""
    known = {path: set(read_rows(path)) for path in {job.spec.record for job in jobs}}
    return [job for job in jobs if job.hash not in known[job.spec.record] and job not in passed]


def train(jobs: Sequence[Job], deadline: float, trainer: Any) -> None:
    """Train and record jobs pack by pack, in the given order, until they are done or time is up.

    Packs that other sweeps have claimed are trained only if these end without a record. The trainer is a
    :class:`Local`, or the workers of :mod:`isa.cluster`.
    """
    pending: dict[Any, tuple[list[Job], ExitStack]] = {}
    with ExitStack() as all_claims, trainer as workers:  # which end before the claims do
        while (left := _missing(jobs, workers.passed)) and time.monotonic() <= deadline:
            for pack in divide(left, workers.size):
                if len(pending) >= workers.slots:
                    break
                with ExitStack() as claims:
                    if mine := _missing(claim(pack, claims)):  # others may have recorded some before
                        pending[workers.start(mine)] = mine, all_claims.enter_context(claims.pop_all())
            if pending:
                with suppress(TimeoutError):
                    workers.wait(list(pending), _POLL_SECONDS, "FIRST_COMPLETED")
            else:  # other sweeps have all that is left
                time.sleep(_POLL_SECONDS)
            for future in [future for future in pending if future.done()]:
                pack, claims = pending.pop(future)
                with claims:
                    workers.receive(future, pack)
        for future, (pack, _) in pending.items():
            workers.receive(future, pack)


class _OutOfTime(Exception):
    """The pack in training would not be done within the budget."""


@dataclass(eq=False)
class Local(ThreadPoolExecutor):
    """Trains packs in this process, and measures them in a second thread: on a GPU, while the next pack trains.

    A pack is passed over if it would miss the deadline at the speed of its kind so far, and stopped once its own speed
    shows that it will; shorter runs of its courses may be in time.
    """

    record: Recorder
    size: int
    deadline: float
    device: torch.device
    cache_dir: Path | None
    keep_models: bool

    def __post_init__(self) -> None:
        super().__init__(1)
        self.wait, self.slots = wait, 2 if self.device.type == "cuda" else 1
        self.speeds: dict[tuple, float] = {}  # seconds of a step of one run, by kind
        self.passed: set[Job] = set()

    def start(self, jobs: list[Job]) -> Future:
        """Train a pack; return the future of its records."""
        ends = left = longest(jobs)
        done = self.submit(lambda: None)
        looks: list[tuple[float, int]] = []  # time and step; the step is compiled before the first

        def watch(step: int, terms: object) -> None:
            if looks and step <= looks[-1][1]:  # further runs of the pack start from another checkpoint
                looks.clear()
            looks.append((time.monotonic(), step))
            (began, first), (now, _) = looks[0], looks[-1]
            pace = (now - began) / max(step - first, 1)
            if step > first:
                self.speeds[ends[0].kind] = pace / len(ends)
            if now + pace * (ends[0].steps - step) > self.deadline:
                raise _OutOfTime

        def record(before: Future, *some: Any) -> None:
            before.result()  # which may have failed
            self.record(measure(*some))

        models = ends[0].spec.work / "models" if self.keep_models else None
        try:
            if time.monotonic() + _MARGIN * (duration(jobs, self.speeds) or 0.0) > self.deadline:
                raise _OutOfTime
            dataset = images(ends[0].run.dataset, ends[0].run.source, self.cache_dir, self.device)
            runs = [job.run for job in jobs]
            for trained in engine.fit(runs, dataset, checkpoints=ends[0].checkpoints, callback=watch):
                left = [end for end in left if end.run not in [result.run for result in trained.results]]
                done = self.submit(record, done, trained, dataset, models)
                if self.slots == 1:
                    done.result()
        except _OutOfTime:
            self.passed.update(left)
            if looks:
                self.record.late(left)
        return done

    def receive(self, future: Future, pack: list[Job]) -> None:
        """Wait for the records of a pack."""
        future.result()


def _profile(runs: Sequence[Run], dataset: data.FactorDataset) -> str:
    """Train runs of one ``pack_key`` for 130 steps, and report the time of a step, clocks, and 30 steps by kernel."""
    run, short, profiler = runs[0], [run.replace(steps=130) for run in runs], torch.profiler.profile(acc_events=True)
    looks = [time.perf_counter()]  # before the first step, after 50, 100 and 130

    def look(step: int, terms: object) -> None:
        looks.append(time.perf_counter())
        if step == 100:
            profiler.start()
        elif step == 130:
            profiler.stop()

    compiled = run.total_steps >= engine.COMPILE_FROM
    (pack,) = engine.fit(short, dataset, compile=compiled, progress=False, callback=look)
    ms, on, clocks = 1e3 * (looks[2] - looks[1]) / 50, dataset.device.type, ""
    if on == "cuda":
        clocks = f"memory: {torch.cuda.max_memory_allocated(dataset.device) / 2**30:.1f} GiB at most\n"
        with suppress(OSError):  # a container may lack this program
            clocks += subprocess.run(_CLOCKS.split(), capture_output=True, text=True).stdout
    return f"""\
{run.dataset}, {run.objective}, prior {run.prior}, {run.model}, {run.batch_size:,} images a step
{len(runs)} runs at once, {"compiled" if pack.compiled else "not compiled"}: {ms:.2f} ms a step, \
{ms / len(runs):.3f} ms per run and step; first 50 steps {looks[1] - looks[0]:.1f} s
{clocks}{profiler.key_averages().table(sort_by=f"self_{'cpu' if on == 'cpu' else 'device'}_time_total", row_limit=40)}
"""


def write_profile(path: Path, jobs: Iterable[Job], size: int, device: torch.device, cache_dir: Path | None) -> None:
    """Write a report on 30 steps of each kind of run, in the packs in which a sweep would train; record nothing."""
    sections: dict[tuple, str] = {}
    for pack in divide(jobs, size):
        if pack[0].kind not in sections:
            dataset = images(pack[0].run.dataset, pack[0].run.source, cache_dir, device)
            sections[pack[0].kind] = _profile([end.run for end in longest(pack)], dataset)
    write_atomically(path, "\n".join(sections.values()).encode())
