"""A sweep on the workers of a Dask cluster: ``isa sweep SPEC --scheduler ADDRESS``.

The sweeping process gives each worker one pack at a time, claims its runs, and alone writes records and portraits. A
pack that fails, or whose worker is lost, is tried again, and continues from its last checkpoint if workers see the
sweep's folder under the same path. Lasting failures are reported at the end. A spent budget cancels packs in training.

Dask pickles its messages: only those who may run code on the workers should be able to reach the scheduler.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from math import inf
from pathlib import Path
from typing import Any

import torch

from isa import engine, packs
from isa.packs import Job
from isa.run import Run

__all__ = ["ClusterError", "connect"]

_training = threading.Lock()  # the threads of a worker take turns


class ClusterError(OSError):
    """A cluster could not train everything. What is recorded stays."""


def _work(runs: Sequence[Run], folder: Path, device: Any, cache_dir: Any, models: bool) -> list[packs.Measured]:
    """Train and measure runs on a worker, with checkpoints if it sees the sweep's folder."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def stop_if_cancelled(step: int, terms: object) -> None:
        if key not in worker.state.tasks or worker.state.tasks[key].state != "executing":
            raise RuntimeError("the task is cancelled")

    saved = folder / "checkpoints" if folder.parent.exists() else None  # which has the claims
    with _training:
        torch.set_num_threads(worker.state.nthreads)  # Dask starts workers with one
        dataset = packs.images(runs[0].dataset, runs[0].source, cache_dir, engine.default_device(device))
        parts = engine.fit(runs, dataset, checkpoints=saved, progress=False, callback=stop_if_cancelled)
        return [row for part in parts for row in packs.measure(part, dataset, folder / "models" if models else None)]


class _Workers:
    """Trains packs on the workers of a cluster, including those that join later."""

    def __init__(self, client: Any, record: packs.Recorder, size: int, options: tuple) -> None:
        from distributed import wait

        self.client, self.record, self.size, self.options, self.wait = client, record, size, options, wait
        self.passed: list[Job] = []  # that failed

    @property
    def slots(self) -> int:
        """Number of packs in training at once."""
        return len(self.client.nthreads())

    def start(self, pack: Sequence[Job]) -> Any:
        """Return the future of a pack's records."""
        runs, folder = [job.run for job in pack], pack[0].spec.work.resolve()
        return self.client.submit(_work, runs, folder, *self.options, retries=2, pure=False)

    def receive(self, future: Any, pack: Sequence[Job]) -> None:
        """Record the measurements of a worker, or report that it failed or is not in time."""
        if not future.done():
            return self.record.late(pack)
        try:
            measured = future.result()
            if {row["hash"] for row, _ in measured} != {job.hash for job in pack}:
                raise ValueError("the worker has another version of isa")
        except Exception as error:  # of the worker
            reason = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())}"
            self.record.report(f"{', '.join(job.run.key for job in pack)}  {reason}")
            self.passed += pack
        else:
            self.record(measured)


@contextmanager
def connect(
    scheduler: str, record: packs.Recorder, size: int | None, deadline: float, *options: Any
) -> Iterator[_Workers]:
    """Connect to a cluster for :func:`isa.packs.train`; on exit, cancel pending packs and report failed ones.

    Options are ``device``, ``cache_dir`` and ``keep_models``, as for :func:`isa.sweep.sweep`.
    """
    try:
        from distributed import Client
    except ImportError:
        raise ClusterError("scheduler requires distributed (isa-vae[cluster]): pip install distributed") from None
    try:
        with Client(scheduler, set_as_default=False) as client, client.as_current():
            left = None if deadline == inf else max(deadline - time.monotonic(), 0.0)
            client.wait_for_workers(1, left)
            if size is None:
                there = client.submit(engine.default_device, options[0], pure=False).result(left)  # on a worker
                size = packs.PACK_SIZES.get(there.type, 1)
            yield (workers := _Workers(client, record, size, options))
    except CancelledError:
        raise ClusterError(f"the connection to {scheduler} was lost; the same command continues") from None
    if workers.passed:
        raise ClusterError(f"{len(workers.passed)} of {len(record.jobs)} runs failed: the lines above say why")
