"""A sweep on the workers of a Dask cluster: ``isa sweep SPEC --scheduler ADDRESS``.

The sweeping process gives each worker one pack at a time, claims what is in training, and alone writes records and
portraits. A pack whose worker is lost, or that fails, is tried again, and continues from its last checkpoint if workers
see the sweep's folder under the same path. The end reports what keeps failing. A spent budget cancels what is training.

Messages of Dask are pickled: only those who may run code on the workers should be able to reach the scheduler.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from math import inf
from pathlib import Path
from typing import Any

import torch

from isa import local, packs
from isa.engine import default_device
from isa.packs import Job
from isa.run import Run

__all__ = ["ClusterError", "train"]

_POLL_SECONDS = 2.0
_training = threading.Lock()  # the threads of a worker take turns


class ClusterError(OSError):
    """A cluster could not train everything. What is recorded stays."""


def _work(
    runs: Sequence[Run], folder: Path, device: str | None, cache_dir: str | None, keep_models: bool
) -> list[local.Measured]:
    """Train runs on a worker, with checkpoints if it sees the sweep's folder."""
    from distributed import get_worker

    worker = get_worker()
    key = worker.get_current_task()

    def stop_if_cancelled(step: int, terms: object) -> None:
        if key not in worker.state.tasks or worker.state.tasks[key].state != "executing":
            raise RuntimeError("the task is cancelled")

    checkpoints = folder / "checkpoints" if folder.parent.exists() else None  # which has the claims
    models = {run.hash: folder / "models" for run in runs if keep_models}
    with _training:
        torch.set_num_threads(worker.state.nthreads)  # Dask starts workers with one
        dataset = local.images(runs[0], cache_dir, default_device(device))
        fits = local.fit(runs, dataset, checkpoints, callback=stop_if_cancelled, progress=False)
        return [row for trained in fits for row in local.measure(trained, dataset, models, progress=False)]


def _receive(future: Any, pack: Sequence[Job], record: local.Recorder) -> dict[Job, str]:
    """Record what a worker has measured; if it failed, return the jobs with the reason."""
    try:
        measured = future.result()
        if {row["hash"] for row, _ in measured} != {job.hash for job in pack}:
            raise ValueError("the worker has another version of isa")
    except Exception as error:  # of the worker
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        record.report(f"{pack[0].run.key}  FAILED: {reason}")
        return dict.fromkeys(pack, reason)
    record(measured)
    return {}


def train(
    jobs: Sequence[Job], scheduler: str, record: local.Recorder, size: int | None, deadline: float, *options: Any
) -> None:
    """Train jobs on the workers of a cluster, also on those that come later, and record each pack as it is done.

    Options are ``device``, ``cache_dir`` and ``keep_models``, as for :func:`isa.sweep.sweep`.
    """
    try:
        from distributed import Client, wait
    except ImportError:
        raise ClusterError("scheduler requires the package distributed: pip install '.[cluster]'") from None
    pending: dict[Any, tuple[list[Job], ExitStack]] = {}
    failed: dict[Job, str] = {}
    # the client is closed first, which cancels what is pending
    with ExitStack() as all_claims, Client(scheduler, set_as_default=False) as client, client.as_current():
        client.wait_for_workers(1, None if deadline == inf else max(deadline - time.monotonic(), 0.0))
        size = size or client.submit(local.pack_size, options[0], pure=False).result()
        while (left := local.missing(jobs, failed)) and time.monotonic() <= deadline:
            for pack in packs.divide(left, size):
                if len(pending) >= len(client.nthreads()):
                    break
                with ExitStack() as claims:
                    if mine := local.missing(packs.claim(pack, claims)):  # others may have recorded some before
                        runs, folder = [job.run for job in mine], mine[0].spec.work.resolve()
                        future = client.submit(_work, runs, folder, *options, retries=2, pure=False)
                        pending[future] = mine, all_claims.enter_context(claims.pop_all())
            if pending:
                with suppress(TimeoutError):
                    wait(list(pending), _POLL_SECONDS, "FIRST_COMPLETED")
            else:  # other sweeps have all that is left
                time.sleep(_POLL_SECONDS)
            for future in [future for future in pending if future.done()]:
                pack, claims = pending.pop(future)
                with claims:
                    failed |= _receive(future, pack, record)
        for pack, _ in pending.values():
            record.report(f"not in time, to continue another time: {', '.join(job.run.key for job in pack)}")
    if failed:
        job, reason = next(iter(failed.items()))
        raise ClusterError(f"{len(failed)} of {len(jobs)} runs could not be trained, first {job.run.key}: {reason}")
