"""The loop of a sweep over its packs, and the training of packs in this process."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from isa import data, engine, latents, packs, results
from isa._records import merge_records, recorded
from isa.packs import Job
from isa.run import Run

__all__ = ["Local", "Recorder", "fit", "images", "measure", "pack_size", "source_path", "summary", "train"]

_CHECKPOINT_SECONDS = 120.0
_POLL_SECONDS = 2.0
_MARGIN = 1.1  # of the time that a pack is expected to take, for its measurement

Measured = tuple[dict[str, Any], latents.Portrait | None]
"""The record of a run, and its portrait unless it diverged."""


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


_load = lru_cache(maxsize=1)(data.load)


def images(run: Run, cache_dir: str | os.PathLike[str] | None, device: torch.device) -> data.FactorDataset:
    """Return the images of a run on a device, where the latest data set stays."""
    return _load(run.dataset, source_path(run), cache_dir=cache_dir, device=device)


def fit(runs: Iterable[Run], dataset: data.FactorDataset, folder: Path | None, **options: Any) -> Iterator:
    """Train runs, some perhaps named twice, as :func:`isa.engine.fit` does, with checkpoints in a folder."""
    different = list({run.hash: run for run in runs}.values())
    return engine.fit(different, dataset, checkpoints=folder, checkpoint_seconds=_CHECKPOINT_SECONDS, **options)


def measure(trained: results.Trained, dataset: data.FactorDataset, models: Path | None) -> list[Measured]:
    """Measure runs, save their models in a folder if there is one, and return record and portrait of each."""
    stream = None
    if dataset.device.type == "cuda":  # concurrently with the training, after what is queued already
        stream = torch.cuda.Stream(dataset.device)
        stream.wait_stream(torch.cuda.default_stream(dataset.device))
    with torch.cuda.stream(stream):
        measured = results.measure(trained, dataset, progress=False)
        for result in measured if models is not None else ():
            result.save(models / result.run.key)
        return [(one.record, one.evaluation and latents.portrait(one, dataset)) for one in measured]


def summary(record: Mapping[str, Any]) -> str:
    """Return a line on a recorded run."""
    if record["status"] == "diverged":
        numbers = f"diverged at step {record['diverged_at']:,}"
    else:
        numbers = f"MIG {record['mig']:.3f}  log-likelihood {record['log_likelihood']:.2f}"
    reduced = "  REDUCED SCALE" if record["reduced"] else ""
    return f"{record['key']}  {numbers}  {record['train_seconds']:.0f} s{reduced}"


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
            self.report(summary(record))

    def late(self, pack: Sequence[Job]) -> None:
        """Report that a pack is not trained within the budget."""
        self.report(f"not in time, to continue another time: {', '.join(job.run.key for job in pack)}")


def _missing(jobs: Sequence[Job], passed: Container[Job] = ()) -> list[Job]:
    """Return the jobs that no sweep has recorded yet, without those that are passed over."""
    known = {path: recorded(path) for path in {job.spec.record for job in jobs}}
    return [job for job in jobs if job.hash not in known[job.spec.record] and job not in passed]


def train(jobs: Sequence[Job], deadline: float, trainer: AbstractContextManager) -> None:
    """Have jobs trained and recorded pack by pack, in the order of their plan, until they are done or time is up.

    Packs that other sweeps have claimed are trained only if these end without a record. The trainer is a
    :class:`Local`, or the workers of :mod:`isa.cluster`.
    """
    pending: dict[Any, tuple[list[Job], ExitStack]] = {}
    with ExitStack() as all_claims, trainer as workers:  # which end before the claims do
        while (left := _missing(jobs, workers.passed)) and time.monotonic() <= deadline:
            for pack in packs.divide(left, workers.size):
                if len(pending) >= workers.slots:
                    break
                with ExitStack() as claims:
                    if mine := _missing(packs.claim(pack, claims)):  # others may have recorded some before
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


class Local(ThreadPoolExecutor):
    """Trains packs in this process, and measures them in a second thread: on a GPU, while the next pack trains.

    A pack is passed over if it would not be done by the deadline at the speed of its kind so far, and stopped once its
    own speed shows that; shorter runs of its courses may be in time.
    """

    def __init__(
        self, record: Recorder, size: int, deadline: float, device: torch.device, cache_dir: Any, keep_models: bool
    ) -> None:
        super().__init__(1)
        self.record, self.size, self.deadline, self.device = record, size, deadline, device
        self.cache_dir, self.models, self.wait = cache_dir, keep_models, wait
        self.slots = 2 if device.type == "cuda" else 1
        self.speeds: dict[tuple, float] = {}  # seconds of a step of one run, by kind
        self.passed: set[Job] = set()

    def start(self, jobs: list[Job]) -> Future:
        """Train a pack; return the future of its records."""
        ends, looks, done = packs.longest(jobs), [], self.submit(int)
        if time.monotonic() + _MARGIN * (packs.duration(jobs, self.speeds) or 0.0) > self.deadline:
            self.passed.update(ends)
            return done

        def watch(step: int, terms: object) -> None:
            if looks and step <= looks[-1][1]:  # further runs of the pack start from another checkpoint
                looks.clear()
            looks.append((time.monotonic(), step))
            (began, first), (now, _) = looks[0], looks[-1]  # the step is compiled before the first look
            pace = (now - began) / max(step - first, 1)
            if step > first:
                self.speeds[ends[0].kind] = pace / len(ends)
            if now + pace * (ends[0].steps - step) > self.deadline:
                raise _OutOfTime

        dataset, folder = images(ends[0].run, self.cache_dir, self.device), ends[0].spec.work
        try:
            for trained in fit((job.run for job in jobs), dataset, folder / "checkpoints", callback=watch):
                done = self.submit(self._measure, done, trained, dataset, folder / "models" if self.models else None)
                if self.slots == 1:
                    done.result()
        except _OutOfTime:
            self.record.late(ends)
            self.passed.update(ends)
        return done

    def receive(self, future: Future, pack: list[Job]) -> None:
        """Wait for the records of a pack."""
        future.result()

    def _measure(self, before: Future, *trained: Any) -> None:
        """Measure and record trained runs, if that succeeded for those before."""
        before.result()
        self.record(measure(*trained))
