"""Training of packs in this process, and the parts of it that the worker of a cluster needs.

On a GPU, the models of one pack are measured in a second thread while the next pack trains.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf
from pathlib import Path
from typing import Any

import torch

from isa import data, engine, latents, packs, results
from isa._records import RecordsWarning, merge_records, recorded
from isa.packs import Job
from isa.run import Run

__all__ = ["Local", "Recorder", "fit", "images", "measure", "missing", "pack_size", "source_path"]

_CHECKPOINT_SECONDS = 120.0
_POLL_SECONDS = 2.0
_MARGIN = 1.1  # of the time that a pack is expected to take, for its measurement


def pack_size(device: str | torch.device | None) -> int:
    """Return the default number of runs that train at once on a device."""
    return 18 if engine.default_device(device).type == "cuda" else 1


def source_path(run: Run) -> str | None:
    """Return the path of a run's published data, with environment variables replaced."""
    path = run.source and os.path.expanduser(os.path.expandvars(run.source))
    if path and not os.path.exists(path):
        unset = "; set this variable to where the published data lie" if "$" in path else ""
        raise ValueError(f"source must be where the published data of {run.dataset} lie, got {path}{unset}")
    return path


@lru_cache(maxsize=1)
def _load(name: str, source: str | None, cache_dir: str | None, device: torch.device) -> data.FactorDataset:
    return data.load(name, source, cache_dir=cache_dir).to(device)


def images(run: Run, cache_dir: str | None, device: torch.device) -> data.FactorDataset:
    """Return the images of a run on a device, where the latest data set stays."""
    return _load(run.dataset, source_path(run), cache_dir, device)


def fit(runs: Iterable[Run], dataset: data.FactorDataset, folder: Path | None, **options: Any) -> Iterator:
    """Train runs, some perhaps named twice, as :func:`isa.engine.fit` does, with checkpoints in a folder."""
    different = list({run.hash: run for run in runs}.values())
    return engine.fit(different, dataset, checkpoints=folder, checkpoint_seconds=_CHECKPOINT_SECONDS, **options)


Measured = tuple[dict[str, Any], latents.Portrait | None]
"""The record of a run, and its portrait unless it diverged."""


def measure(trained: engine.Trained, dataset: data.FactorDataset, models: Mapping[str, Path], **options: Any) -> list:
    """Measure runs, save their models in the folders given by hash, and return a record and a portrait for each."""
    measured: list[Measured] = []
    for result in results.measure(trained, dataset, **options):
        if result.run.hash in models:
            result.save(models[result.run.hash] / result.run.key)
        measured.append((result.record, result.evaluation and latents.portrait(result, dataset)))
    return measured


def missing(jobs: Sequence[Job], without: Container[Job] = ()) -> list[Job]:
    """Return the jobs that no sweep has recorded yet, without some."""
    known = {path: recorded(path) for path in {job.spec.record for job in jobs}}
    return [job for job in jobs if job.hash not in known[job.spec.record] and job not in without]


@dataclass
class Recorder:
    """Saves portraits and records of jobs, and copies them to the folder ``out`` if there is one."""

    jobs: Sequence[Job]
    out: Path | None
    report: Callable[[str], object]

    def __call__(self, measured: Sequence[Measured]) -> None:
        """Record what is measured, and remove checkpoints that no longer run continues from."""
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
            folder = job.spec.work / "checkpoints"
            longer = any(other.course == job.course and other.steps > job.steps for other in self.jobs)
            if not longer and engine.checkpoint_step(folder, job.run) <= job.steps:
                engine.checkpoint_path(folder, job.run).unlink(missing_ok=True)
        for record, _ in measured:
            if record["status"] == "diverged":
                numbers = f"diverged at step {record['diverged_at']:,}"
            else:
                numbers = f"MIG {record['mig']:.3f}  log-likelihood {record['log_likelihood']:.2f}"
            self.report(f"{record['key']}  {numbers}  {record['train_seconds']:.0f} s")


class _OutOfTime(Exception):
    """The pack in training would not be done within the budget."""


class _Watch:
    """Callback that measures the pace of a pack, and stops it if its last step would not be done by the deadline."""

    def __init__(self, steps: int, deadline: float) -> None:
        self.steps, self.deadline = steps, deadline
        self.latest, self.pace = inf, None  # step; seconds of a step since the first look, after which it is compiled

    def __call__(self, step: int, terms: object) -> None:
        now = time.monotonic()
        if step <= self.latest:  # the first look, also at further runs of the pack that start from another checkpoint
            self.first = now, step
        else:
            self.pace = (now - self.first[0]) / (step - self.first[1])
        self.latest = step
        if now + (self.pace or 0.0) * (self.steps - step) > self.deadline:
            raise _OutOfTime


@dataclass
class Local:
    """Trains jobs in this process, pack by pack, in the order of their plan; fields as for :func:`isa.sweep.sweep`."""

    jobs: Sequence[Job]
    record: Recorder
    device: torch.device
    size: int
    deadline: float
    cache_dir: str | None
    keep_models: bool
    progress: bool | None
    speeds: dict[tuple, float] = field(default_factory=dict)  # seconds of a step of one run, by kind
    late: set[Job] = field(default_factory=set)  # would not be done in time
    pending: list[Future] = field(default_factory=list)  # in the second thread

    def train(self) -> None:
        """Train what is missing; what other sweeps have claimed is trained only if they end without a record."""
        with ThreadPoolExecutor(1) if self.device.type == "cuda" else nullcontext() as self.pool:
            try:
                while (left := missing(self.jobs, self.late)) and time.monotonic() <= self.deadline:
                    if not any(self._train_or_pass(pack) for pack in packs.divide(left, self.size)):
                        time.sleep(_POLL_SECONDS)
            finally:
                self._wait()

    def _train_or_pass(self, pack: list[Job]) -> bool:
        """Train the jobs of a pack that would be done in time; return False if other sweeps are training them all."""
        if not (fitting := self._in_time(pack)):
            self.late.update(packs.longest(pack).values())  # shorter runs of the courses may be in time
            return True
        with ExitStack() as claims:
            if mine := missing(packs.claim(fitting, claims)):  # others may have recorded some before the claim
                self._train(mine)
                self._later(claims.pop_all().close)
            return bool(mine)

    def _in_time(self, pack: list[Job]) -> list[Job]:
        """Return the jobs of as many courses of a pack as would be done in time. Runs of unknown speed are tried."""
        courses = list(packs.longest(pack))
        for number in range(len(courses), 0, -1):
            fewer = [job for job in pack if job.course in courses[:number]]
            if time.monotonic() + _MARGIN * (packs.duration(fewer, self.speeds) or 0.0) <= self.deadline:
                return fewer
        return []

    def _train(self, jobs: list[Job]) -> None:
        """Train a pack, and have its models measured."""
        ends = list(packs.longest(jobs).values())
        kind, folder = ends[0].kind, ends[0].spec.work / "checkpoints"
        dataset = images(ends[0].run, self.cache_dir, self.device)
        watch = _Watch(ends[0].steps, self.deadline)
        try:
            for trained in fit((job.run for job in jobs), dataset, folder, callback=watch, progress=self.progress):
                self._wait()  # for the pack before, so that memory suffices
                self._later(self._measure, trained, dataset, jobs)
        except _OutOfTime:
            self.record.report(f"not in time, to continue another time: {', '.join(end.run.key for end in ends)}")
            self.late.update(ends if kind in self.speeds else ())  # otherwise fewer at once may be in time
        except torch.OutOfMemoryError:
            self.size = len(ends) // 2
            if self.size == 0:
                raise
            warnings.warn(f"{len(ends)} runs at once do not fit; {self.size} are tried", RecordsWarning, stacklevel=2)
            torch.cuda.empty_cache()
        if watch.pace is not None:
            self.speeds[kind] = watch.pace / len(ends)

    def _measure(self, trained: engine.Trained, dataset: data.FactorDataset, jobs: list[Job]) -> None:
        """Measure and record trained runs."""
        models = {job.hash: job.spec.work / "models" for job in jobs if self.keep_models}
        stream = None
        if dataset.device.type == "cuda":  # concurrently with the training, after what is queued already
            stream = torch.cuda.Stream(dataset.device)
            stream.wait_stream(torch.cuda.default_stream(dataset.device))
        with torch.cuda.stream(stream):
            self.record(measure(trained, dataset, models, progress=False if self.pool else self.progress))

    def _later(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function: on a GPU in the second thread, after earlier ones."""
        if self.pool is None:
            function(*arguments)
        else:
            self.pending.append(self.pool.submit(function, *arguments))

    def _wait(self) -> None:
        """Wait for the second thread, and raise what it raised."""
        while self.pending:
            self.pending.pop(0).result()
