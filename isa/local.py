"""Training of packs in this process, and the parts of it that the worker of a cluster needs.

On a GPU, the models of one pack are measured in a second thread while the next pack trains.
"""

from __future__ import annotations

import os
import tarfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from isa import data, engine, latents, packs, results
from isa._files import write_atomically
from isa._records import RecordsWarning, merge_records, recorded
from isa.packs import Job, OutOfTime, Speed, Watch
from isa.profile import profile_steps
from isa.run import Run

__all__ = ["GPU_PACK", "Local", "Recorder", "fit", "images", "measure", "missing", "source_path"]

GPU_PACK = 18
"""Runs that train at once on a GPU, unless another number is asked for."""

_CHECKPOINT_SECONDS = 120.0
_POLL_SECONDS = 2.0
_MARGIN = 1.05
"""Factor of the time that a pack is expected to take."""


def source_path(run: Run) -> str | None:
    """Return the path of a run's published data, with environment variables replaced."""
    path = run.source and os.path.expanduser(os.path.expandvars(run.source))
    if path and not os.path.exists(path):
        unset = "; set this variable to where the published data lie" if "$" in path else ""
        raise ValueError(f"source must be where the published data of {run.dataset} lie, got {path}{unset}")
    return path


@lru_cache(maxsize=1)
def images(dataset: str, source: str | None, cache_dir: str | None, device: torch.device) -> data.FactorDataset:
    """Return a data set on a device; the latest one is kept there."""
    return data.load(dataset, source, cache_dir=cache_dir).to(device)


def fit(
    runs: Iterable[Run], dataset: data.FactorDataset, folder: Path | None, watch: Watch, progress: bool | None
) -> Iterator[engine.Trained]:
    """Train a pack with checkpoints in a folder. One that cannot be read is deleted, and its run starts again."""
    different = list({run.hash: run for run in runs}.values())
    for run in different:
        try:
            engine.checkpoint_step(folder, run)
        except engine.CheckpointError as error:
            warnings.warn(f"{error}; it is deleted, and the run starts again", RecordsWarning, stacklevel=2)
            engine.checkpoint_path(folder, run).unlink()
    options = {"checkpoints": folder, "checkpoint_seconds": _CHECKPOINT_SECONDS, "progress": progress}
    return engine.fit(different, dataset, **options, callback=watch)


def measure(
    trained: engine.Trained, dataset: data.FactorDataset, portraits: Path, models: Mapping[str, Path], **options: Any
) -> list[dict[str, Any]]:
    """Measure runs and return their records; save portraits, and models in the folders given by hash."""
    found = results.measure(trained, dataset, **options)
    for result in found:
        if result.run.hash in models:
            result.save(models[result.run.hash] / result.run.key)
        if result.evaluation is not None:
            latents.portrait(result, dataset).save(portraits / f"{result.run.key}.npz")
    return [result.record for result in found]


def missing(jobs: Sequence[Job]) -> list[Job]:
    """Return the jobs that no sweep has recorded yet."""
    known = {path: recorded(path) for path in {job.spec.record for job in jobs}}
    return [job for job in jobs if job.hash not in known[job.spec.record]]


@dataclass
class Recorder:
    """Adds records to the tables of the jobs' specifications, and copies them to the folder ``out`` if there is one."""

    jobs: Sequence[Job]
    out: Path | None
    say: Callable[[str], object]

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Record what is trained, copy it, and remove checkpoints that no longer run continues from."""
        by_hash = {record["hash"]: record for record in records}
        jobs = [job for job in self.jobs if job.hash in by_hash]
        for spec in {job.spec.record: job.spec for job in jobs}.values():
            added = [by_hash[job.hash] for job in jobs if job.spec is spec]
            merge_records(spec.record, added)
            if self.out is not None:
                merge_records(self.out / f"records-{spec.name}.csv", added)
        if self.out is not None:
            portraits = {job.spec.path.parent / "portraits" / f"{job.run.key}.npz" for job in jobs}
            bundle = self.out / f"portraits-{1 + len(list(self.out.glob('portraits-*.tar')))}.tar"
            write_atomically(bundle, lambda path: _tar(path, filter(Path.exists, portraits)))
        for job in jobs:
            folder = job.spec.work / "checkpoints"
            longer = any(other.course == job.course and other.steps > job.steps for other in self.jobs)
            if not longer and engine.checkpoint_step(folder, job.run) <= job.steps:
                engine.checkpoint_path(folder, job.run).unlink(missing_ok=True)
        for record in records:
            self.say(_line(record))


def _tar(path: str, members: Iterable[Path]) -> None:
    with tarfile.open(path, "w") as bundle:
        for member in members:
            bundle.add(member, member.name)


def _line(record: Mapping[str, Any]) -> str:
    if record["status"] == "diverged":
        return f"{record['key']}  diverged at step {record['diverged_at']:,}"
    fit = f"MIG {record['mig']:.3f}  log-likelihood {record['log_likelihood']:.2f}"
    return f"{record['key']}  {fit}  {record['train_seconds']:.0f} s"


@dataclass
class Local:
    """Trains jobs in this process, pack by pack, in the order of their plan; fields as for :func:`isa.sweep.sweep`."""

    jobs: Sequence[Job]
    record: Recorder
    speed: Speed
    device: torch.device
    size: int
    deadline: float
    cache_dir: str | None
    keep_models: bool
    progress: bool | None
    late: set[Job] = field(default_factory=set)  # would not be done in time
    pending: list[Future] = field(default_factory=list)  # in the second thread

    def train(self) -> None:
        """Train what is missing, leaving alone what other sweeps have claimed until they are done or gone."""
        self.pool = ThreadPoolExecutor(1) if self.device.type == "cuda" else None
        try:
            while (left := self._left()) and time.monotonic() <= self.deadline:
                if not self._train_next(left):
                    time.sleep(_POLL_SECONDS)
        finally:
            self._wait()
            if self.pool is not None:
                self.pool.shutdown()

    def profile(self, path: Path) -> None:
        """Write a report on 30 steps of each kind of run that is missing, in packs as they would be trained."""
        sections: dict[tuple, str] = {}
        for pack in packs.divide(self.jobs, self.size):
            if pack[0].kind not in sections:
                runs = [end.run for end in packs.longest(pack).values()]
                sections[pack[0].kind] = profile_steps(runs, self._images(runs[0]))
        write_atomically(path, lambda temporary: Path(temporary).write_text("\n".join(sections.values()), "utf-8"))

    def _left(self) -> list[Job]:
        return missing([job for job in self.jobs if job not in self.late])

    def _images(self, run: Run) -> data.FactorDataset:
        return images(run.dataset, source_path(run), self.cache_dir, self.device)

    def _train_next(self, left: Sequence[Job]) -> bool:
        """Train the next pack; return False if other sweeps, or the second thread, have all that is left."""
        late = len(self.late)
        for pack in packs.divide(left, self.size):
            with ExitStack() as claims:
                # others may have recorded some before the claim
                if mine := missing(packs.claim(self._in_time(pack), claims)):
                    self._train(mine)
                    self._later(claims.pop_all().close)
                    return True
        return len(self.late) > late

    def _in_time(self, pack: list[Job]) -> list[Job]:
        """Return the jobs of a pack that would be done in time, fewer courses if necessary.

        If not even one would, the longest run of each course is passed over. Runs of unknown speed are tried.
        """
        ends = packs.longest(pack)
        for number in range(len(ends), 0, -1):
            fewer = [job for job in pack if job.course in list(ends)[:number]]
            if time.monotonic() + _MARGIN * (self.speed(fewer) or 0.0) <= self.deadline:
                return fewer
        self.late.update(ends.values())
        return []

    def _train(self, jobs: list[Job]) -> None:
        """Train a pack, and have its models measured."""
        ends = list(packs.longest(jobs).values())
        kind, dataset, folder = ends[0].kind, self._images(ends[0].run), ends[0].spec.work / "checkpoints"
        watch = Watch(ends[0].steps, self.deadline - self.speed.measuring(jobs))
        try:
            for trained in fit((job.run for job in jobs), dataset, folder, watch, self.progress):
                self._wait()  # for the pack before, so that memory suffices
                self._later(self._measure, trained, dataset, jobs)
        except OutOfTime:
            self.record.say(f"not in time, to continue another time: {', '.join(end.run.key for end in ends)}")
            self.late.update(ends if kind in self.speed.step else ())  # otherwise fewer at once may be in time
        except torch.OutOfMemoryError:
            self.size = len(ends) // 2
            if self.size == 0:
                raise
            warnings.warn(f"{len(ends)} runs at once do not fit; {self.size} are tried", RecordsWarning, stacklevel=2)
            torch.cuda.empty_cache()
        if watch.pace is not None:
            self.speed.step[kind] = watch.pace / len(ends)

    def _measure(self, trained: engine.Trained, dataset: data.FactorDataset, jobs: list[Job]) -> None:
        """Measure and record trained runs."""
        began, hashes = time.monotonic(), {run.hash for run in trained.runs}
        models = {job.hash: job.spec.work / "models" for job in jobs if self.keep_models and job.hash in hashes}
        stream = None
        if dataset.device.type == "cuda":  # concurrently with the training, after what is queued already
            stream = torch.cuda.Stream(dataset.device)
            stream.wait_stream(torch.cuda.default_stream(dataset.device))
        with torch.cuda.stream(stream):
            portraits = jobs[0].spec.path.parent / "portraits"
            progress = False if self.pool else self.progress
            self.record(measure(trained, dataset, portraits, models, progress=progress))
        self.speed.evaluation[jobs[0].kind] = (time.monotonic() - began) / len(hashes)

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
