"""A sweep on the workers of a Dask cluster: ``isa sweep SPEC --scheduler ADDRESS``.

The sweeping process gives each worker one pack at a time, claims what is in training, and alone writes records and
portraits. A pack whose worker is lost, or that fails, is tried again, and continues from its last checkpoint if workers
see the sweep's folder under the same path. What keeps failing is reported at the end, and stops nothing else.

Messages of Dask are pickled: only those who may run code on the workers should be able to reach the scheduler.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import torch

from isa import local, packs
from isa._files import write_atomically
from isa.engine import default_device
from isa.packs import Job
from isa.run import Run

__all__ = ["ClusterError", "train"]

_ANSWER_SECONDS = 10
_POLL_SECONDS = 0.5
_RETRIES = 2
_training = threading.Lock()
"""Held while a pack trains: the threads of a worker take turns."""


class ClusterError(OSError):
    """A cluster does not answer, or could not train everything. What is recorded stays."""


def _size(device: str | None) -> int:
    return local.GPU_PACK if default_device(device).type == "cuda" else 1


def _work(
    fields: Mapping[str, Mapping[str, Any]],
    folder: Path,
    device: str | None,
    cache_dir: str | None,
    keep_models: bool,
    seconds: float,
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Train runs, given by hash, for a number of seconds at most; return records, and portraits by file name.

    Checkpoints are written if the worker sees the sweep's ``folder``.
    """
    from distributed import get_worker

    worker, deadline = get_worker(), time.monotonic() + seconds
    key = worker.get_current_task()

    def wanted() -> bool:
        return key in worker.state.tasks and worker.state.tasks[key].state == "executing"

    checkpoints = folder / "checkpoints" if folder.parent.exists() else None  # which has the claims
    models = dict.fromkeys(fields, folder / "models") if keep_models else {}
    with _training, tempfile.TemporaryDirectory() as portraits:
        torch.set_num_threads(worker.state.nthreads)  # Dask starts workers with one
        runs = [Run(**values) for values in fields.values()]
        if [run.hash for run in runs] != list(fields):
            raise ValueError(f"the worker's version of isa has another hash for {runs[0].key}")
        dataset = local.images(runs[0].dataset, local.source_path(runs[0]), cache_dir, default_device(device))
        watch = packs.Watch(max(run.total_steps for run in runs), deadline, wanted)
        records: list[dict[str, Any]] = []
        try:
            for trained in local.fit(runs, dataset, checkpoints, watch, progress=False):
                records += local.measure(trained, dataset, Path(portraits), models, progress=False)
        except packs.OutOfTime:
            pass
        return records, {path.name: path.read_bytes() for path in Path(portraits).iterdir()}


class _Sweep:
    """Packs of jobs on their way to workers and back."""

    def __init__(self, client: Any, jobs: Sequence[Job], record: local.Recorder, **options: Any) -> None:
        self.client, self.jobs, self.record, self.options = client, jobs, record, options
        self.pending: dict[Any, tuple[list[Job], ExitStack]] = {}
        self.failed: dict[Job, str] = {}
        self.late: set[Job] = set()

    def run(self, size: int | None, deadline: float) -> None:
        """Train what is missing, up to a deadline, with as many packs at once as there are workers."""
        default = self.client.submit(_size, self.options["device"], pure=False)
        if not self.client.nthreads():
            self.record.say("there is no worker yet: waiting for one")
        while time.monotonic() <= deadline:
            for future in [future for future in self.pending if future.done()]:
                size = self._receive(future, size)
            left = local.missing([job for job in self.jobs if job not in self.late and job not in self.failed])
            if not left:
                return
            if default.done():
                size = size or default.result()
                for pack in packs.divide(left, size):
                    if len(self.pending) < len(self.client.nthreads()):
                        self._submit(pack, deadline - time.monotonic())
            time.sleep(_POLL_SECONDS)

    def _submit(self, pack: list[Job], seconds: float) -> None:
        claims = ExitStack()
        if mine := local.missing(packs.claim(pack, claims)):  # others may have recorded some before the claim
            fields = {job.hash: job.run.to_dict() for job in mine}
            options = {**self.options, "folder": mine[0].spec.work.resolve(), "seconds": seconds, "retries": _RETRIES}
            future = self.client.submit(_work, fields, **options, key=f"{mine[0].run.key}-{uuid.uuid4().hex}")
            self.pending[future] = mine, claims
        else:
            claims.close()

    def _receive(self, future: Any, size: int | None) -> int | None:
        """Record what a worker has done; return the number of runs to train at once from now on."""
        pack, claims = self.pending.pop(future)
        with claims:
            try:
                records, portraits = future.result()
            except Exception as error:  # of the worker
                if isinstance(error, torch.OutOfMemoryError) and len(pack) > 1:
                    return len(pack) // 2
                self.failed |= dict.fromkeys(pack, f"{type(error).__name__}: {' '.join(str(error).split())}")
                self.record.say(f"{pack[0].run.key}  FAILED: {self.failed[pack[0]]}")
                return size
            for name, content in portraits.items():
                path = pack[0].spec.path.parent / "portraits" / name
                write_atomically(path, lambda temporary, content=content: Path(temporary).write_bytes(content))
            self.record(records)
            late = {job for job in pack if job.hash not in {record["hash"] for record in records}}
            for job in late:
                self.record.say(f"not in time, to continue another time: {job.run.key}")
            self.late |= late
        return size

    def cancel(self) -> None:
        """Stop the workers, and give up the claims."""
        with suppress(Exception):  # the scheduler may be gone
            self.client.cancel(list(self.pending), force=True)
        for _, claims in self.pending.values():
            claims.close()


def train(
    jobs: Sequence[Job], scheduler: str, record: local.Recorder, size: int | None, deadline: float, **options: Any
) -> None:
    """Train jobs on the workers of a cluster, also on those that come later, and record each pack as it is done.

    Options are ``device``, ``cache_dir`` and ``keep_models``, as for :func:`isa.sweep.sweep`.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ClusterError("scheduler requires the package distributed: pip install '.[cluster]'") from None
    _check(scheduler)
    with Client(scheduler, timeout=_ANSWER_SECONDS, set_as_default=False, name="isa") as client:
        sweep = _Sweep(client, jobs, record, **options)
        try:
            sweep.run(size, deadline)
        finally:
            sweep.cancel()
    if sweep.failed:
        job, why = next(iter(sweep.failed.items()))
        raise ClusterError(f"{len(sweep.failed)} of {len(jobs)} runs could not be trained, first {job.run.key}: {why}")


async def _kind(address: str) -> str:
    from distributed.core import rpc

    async with rpc(address) as server:
        return (await asyncio.wait_for(server.identity(), _ANSWER_SECONDS))["type"]


def _check(address: str) -> None:
    """Raise an error unless a scheduler answers; a ``Client`` would wait for a silent address for ever."""
    try:
        with ThreadPoolExecutor(1) as aside:  # the thread of a notebook already has an event loop
            why = (
                f"a {kind} answers"
                if (kind := aside.submit(asyncio.run, _kind(address)).result()) != "Scheduler"
                else ""
            )
    except Exception as error:  # of many kinds, if the address is wrong or something else answers
        why = f"{type(error).__name__} {error}"
    if why:
        raise ClusterError(f"scheduler must be the address of a Dask scheduler, got {address!r}: {why}")
