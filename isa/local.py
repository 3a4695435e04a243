"""A sweep in one process: packs trained one after the other, within a time, recorded as they are done.

On a GPU, the models of one pack are measured in a second thread while the next pack trains.
"""

from __future__ import annotations

import math
import os
import re
import tarfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from isa import data, engine, latents, packs, results, sweep
from isa._files import write_atomically
from isa.engine import CheckpointError, Trained
from isa.packs import Job, OutOfTime, Speed, Watch
from isa.profile import profile_steps
from isa.run import Run

__all__ = ["GPU_PACK", "Local", "fit", "images", "keep", "recover", "source_path"]

GPU_PACK = 18
"""Runs that train at once on a GPU, unless another number is asked for."""

_CHECKPOINT_SECONDS = 120.0
_POLL_SECONDS = 2.0
_MARGIN = 1.05
"""Factor of the time that a pack is expected to take."""
_MOST_OUT_BYTES = 15_000_000


def source_path(run: Run) -> str | None:
    """Return the path of a run's published data, with environment variables replaced.

    Raises
    ------
    ValueError
        If a variable is not set, or nothing is at the path.
    """
    if run.source is None:
        return None
    path = os.path.expanduser(os.path.expandvars(run.source))
    unset = re.search(r"\$\{?(\w+)", path)
    if unset:
        raise ValueError(
            f"{run.dataset} is to be read from {run.source}: set {unset[1]} to where the published data lie"
        )
    if not os.path.exists(path):
        raise ValueError(f"source must be where the published data of {run.dataset} lie, got {path}")
    return path


@lru_cache(maxsize=1)
def _dataset(name: str, source: str | None, cache_dir: str | None) -> data.FactorDataset:
    return data.load(name, source, cache_dir=cache_dir)


@lru_cache(maxsize=1)
def _on_device(dataset: data.FactorDataset, device: torch.device) -> data.FactorDataset:
    return dataset.to(device)


def images(run: Run, cache_dir: str | None, device: torch.device) -> data.FactorDataset:
    """Return the images of a run on a device; the latest ones are kept there."""
    return _on_device(_dataset(run.dataset, source_path(run), cache_dir), device)


def fit(
    runs: Iterable[Run],
    dataset: data.FactorDataset,
    checkpoints: Path | None,
    watch: Watch,
    progress: bool | None,
) -> Iterator[Trained]:
    """Train a pack with the checkpoints of a sweep."""
    options = {"checkpoints": checkpoints, "checkpoint_seconds": _CHECKPOINT_SECONDS, "progress": progress}
    return engine.fit(list({run.hash: run for run in runs}.values()), dataset, **options, callback=watch)


def keep(result: results.Result, dataset: data.FactorDataset, models: Path | None, portraits: Path) -> Path | None:
    """Save a result's model in a folder, if there is one, and its portrait; returns the portrait's path."""
    if models is not None:
        result.save(models / result.run.key)
    if result.evaluation is None:
        return None
    return latents.portrait(result, dataset).save(portraits / f"{result.run.key}.npz")


def recover(error: Exception, runs: Sequence[Run], checkpoints: Path | None) -> int:
    """Return the number of runs to train at once after an error, or raise it.

    If memory did not suffice, that is half as many as ``runs``. Checkpoints that cannot be read are moved away.
    """
    if isinstance(error, torch.OutOfMemoryError) and len(runs) > 1:
        half = len(runs) // 2
        warnings.warn(f"{len(runs)} runs at once do not fit; {half} are tried", sweep.RecordsWarning, stacklevel=2)
        torch.cuda.empty_cache()
        return half
    moved = 0
    for run in runs if isinstance(error, CheckpointError) else ():
        path = engine.checkpoint_path(checkpoints, run)
        try:
            engine.checkpoint_step(checkpoints, run)
        except CheckpointError:
            path.replace(path.with_name(f"{path.name}.unreadable"))
            moved += 1
    if not moved:
        raise error
    warnings.warn(f"{error}; it is moved away, and the run starts anew", sweep.RecordsWarning, stacklevel=2)
    return len(runs)


@contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """Run the kernels of this thread concurrently with those of the training, after what is queued already."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.default_stream(device))
    with torch.cuda.stream(stream):
        yield


class _Out:
    """Copies of new records and portraits in a folder, in files of at most 15 MB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        numbers = [re.fullmatch(r"portraits-(\d+)\.tar", path.name) for path in folder.glob("portraits-*.tar")]
        self.number = max((int(match[1]) for match in numbers if match), default=0)
        self.members: list[Path] = []
        self.size = _MOST_OUT_BYTES  # of the latest bundle, which is another sweep's and left as it is

    def add(self, name: str, records: Iterable[Mapping[str, Any]], portraits: Iterable[Path]) -> None:
        """Add records to the copy of a specification's table, and portraits to the latest bundle."""
        sweep.merge_records(self.folder / f"records-{name}.csv", records)
        changed: dict[int, list[Path]] = {}
        for path in portraits:
            size = path.stat().st_size + 2 * tarfile.BLOCKSIZE  # a header, and padding
            if self.size + size > _MOST_OUT_BYTES:
                self.number, self.members, self.size = self.number + 1, [], 2 * tarfile.RECORDSIZE
            self.members.append(path)
            self.size += size
            changed[self.number] = self.members
        for number, members in changed.items():
            write_atomically(self.folder / f"portraits-{number}.tar", lambda path, members=members: _tar(path, members))


def _tar(path: str, members: Iterable[Path]) -> None:
    with tarfile.open(path, "w") as bundle:
        for member in members:
            bundle.add(member, member.name)


class Local:
    """Trains jobs in this process, pack by pack, in the order of their plan.

    Parameters
    ----------
    jobs
        Runs that are not recorded, tier by tier.
    records
        What is recorded. It tells the speed of a CPU until that is measured; a card may have been shared.
    device, size
        Where to train, and the maximum number of runs at once.
    deadline
        Time of ``time.monotonic`` by which everything that is started has to be done.
    cache_dir, keep_models, progress, out, say
        As :func:`isa.sweep.sweep` has them; ``say`` is its ``report``.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        records: Iterable[Mapping[str, Any]],
        device: torch.device,
        size: int,
        *,
        deadline: float = math.inf,
        cache_dir: str | None = None,
        keep_models: bool = False,
        progress: bool | None = None,
        out: Path | None = None,
        say: Callable[[str], object] = bool,
    ) -> None:
        self.jobs, self.device, self.size, self.deadline = jobs, device, size, deadline
        self.cache_dir, self.keep_models, self.progress, self.say = cache_dir, keep_models, progress, say
        self.out = None if out is None else _Out(out)
        self.specs = {job.spec.record: job.spec for job in jobs}
        cuda = device.type == "cuda"
        self.speed = Speed() if cuda else Speed(records, device)
        self.startup, self.compiled = 0.0, set()  # seconds in which a pack is compiled, and shapes that are
        self.passed: set[Job] = set()  # would not be done in time
        self.pool = ThreadPoolExecutor(1) if cuda else None
        self.pending: Future | None = None  # the measurement of runs that are trained
        self.measured: set[Job] = set()  # these runs
        self.claims = ExitStack()  # on these runs

    def train(self) -> None:
        """Train what is missing, leaving alone what other sweeps have claimed until they are done or gone."""
        try:
            while (missing := self._missing()) and time.monotonic() <= self.deadline:
                if not self._train_next(missing):
                    time.sleep(_POLL_SECONDS)
        finally:
            self._wait()
            if self.pool is not None:
                self.pool.shutdown()

    def profile(self, path: Path) -> None:
        """Write a report on 30 steps of each kind of run that is missing, in packs as they would be trained."""
        sections: dict[tuple, str] = {}
        for pack in packs.divide(self._missing(), self.size):
            ends = list(packs.longest(pack).values())
            if ends[0].kind not in sections:
                dataset = images(ends[0].run, self.cache_dir, self.device)
                sections[ends[0].kind] = profile_steps([end.run for end in ends], dataset)
                text = "\n".join(sections.values())
                write_atomically(path, lambda temporary, text=text: Path(temporary).write_text(text, encoding="utf-8"))

    def _missing(self) -> list[Job]:
        recorded = {path: sweep.recorded(path) for path in self.specs}
        out = self.passed | self.measured
        return [job for job in self.jobs if job not in out and job.hash not in recorded[job.spec.record]]

    def _train_next(self, missing: Sequence[Job]) -> bool:
        """Train the next pack; returns False if all that is missing is claimed by others."""
        passed = len(self.passed)
        for pack in packs.divide(missing, self.size):
            with ExitStack() as claims:
                mine = packs.claim(self._in_time(pack), claims)
                if mine and set(mine) <= set(self._missing()):  # others may have recorded some before the claim
                    self._train(mine, claims)
                if mine:
                    return True
        return len(self.passed) > passed

    def _in_time(self, pack: list[Job]) -> list[Job]:
        """Return the jobs of a pack that would be done in time, fewer courses if necessary.

        If not even one would, the longest run of each course is passed over. Runs of unknown speed are tried.
        """
        if self.deadline == math.inf:
            return pack
        courses = list(dict.fromkeys(job.course for job in pack))
        for number in range(len(courses), 0, -1):
            fewer = [job for job in pack if job.course in courses[:number]]
            startup = 0.0 if (fewer[0].shape, number) in self.compiled else self.startup
            if time.monotonic() + startup + _MARGIN * (self.speed(fewer) or 0.0) <= self.deadline:
                return fewer
        self.passed |= set(packs.longest(pack).values())
        return []

    def _train(self, jobs: list[Job], claims: ExitStack) -> None:
        """Train and record the jobs of a pack."""
        ends = list(packs.longest(jobs).values())
        kind, folder = ends[0].kind, ends[0].spec.work / "checkpoints"
        dataset = images(ends[0].run, self.cache_dir, self.device)
        watch = Watch(ends[0].steps, self.deadline, self.speed.measuring(jobs), self._look)
        known = kind in self.speed.step
        try:
            for trained in fit((job.run for job in jobs), dataset, folder, watch, self.progress):
                hashes = {run.hash for run in trained.runs}
                self._measure(trained, dataset, [job for job in jobs if job.hash in hashes])
                watch.pause()
        except OutOfTime:
            names = ", ".join(end.run.key for end in ends)
            self.say(f"not in time, to go on from the last checkpoint another time: {names}")
            self.passed |= set(ends) if known else set()  # otherwise fewer at once may be in time
        except (CheckpointError, torch.OutOfMemoryError) as error:
            self.size = recover(error, [end.run for end in ends], folder)
        if watch.pace is not None:
            self.speed.step[kind] = watch.pace / len(ends)
            self.startup = max(self.startup, watch.startup)
            self.compiled.add((ends[0].shape, len(ends)))
        if self.pending is not None:
            self.claims.push(claims.pop_all())

    def _look(self) -> None:
        """Raise what a measurement that has ended raised."""
        if self.pending is not None and self.pending.done():
            self._wait()

    def _wait(self) -> None:
        """Wait for the measurement that is pending."""
        pending, self.pending = self.pending, None
        try:
            if pending is not None:
                pending.result()
        finally:
            self.measured.clear()
            self.claims.close()

    def _measure(self, trained: Trained, dataset: data.FactorDataset, jobs: list[Job]) -> None:
        """Measure and record trained runs: on a GPU in the other thread, once that has done so with those before."""
        self._wait()
        if self.pool is None:
            self._record(trained, dataset, jobs)
        else:
            self.measured.update(jobs)
            self.pending = self.pool.submit(self._record, trained, dataset, jobs)

    def _record(self, trained: Trained, dataset: data.FactorDataset, jobs: list[Job]) -> None:
        began = time.monotonic()
        with nullcontext() if self.pool is None else _own_stream(self.device):
            progress = self.progress if self.pool is None else False
            found = {result.run.hash: result for result in results.measure(trained, dataset, progress=progress)}
            portraits: dict[Job, Path | None] = {}
            for job in jobs:
                models = job.spec.work / "models" if self.keep_models else None
                portraits[job] = keep(found[job.hash], dataset, models, job.spec.path.parent / "portraits")
        for path, spec in self.specs.items():
            if its := [job for job in jobs if job.spec.record == path]:
                added = [found[job.hash].record for job in its]
                sweep.record_results(spec, [job.run for job in self.jobs if job.spec.record == path], added, self.say)
                if self.out is not None:
                    self.out.add(spec.name, added, [portraits[job] for job in its if portraits[job] is not None])
        self.speed.evaluation[jobs[0].kind] = (time.monotonic() - began) / len(jobs)
