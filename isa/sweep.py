r"""Every run of a specification, trained once and recorded (Sec. 4: 1,280 experiments).

::

    spec = Spec.read("runs/dsprites.yaml")
    records = sweep(spec, tier=1)             # trains what is missing
    records.select(objective="isa-vae", beta=1.0).column("mig")

**A specification** is a short YAML file that names runs: a data set, fields that all runs share, and tiers of grids.

.. code-block:: yaml

    title: dSprites at the settings of Table 1
    every: {dataset: dsprites}
    tiers:
      1:
        - {objective: [beta-vae, isa-vae], beta: 1, seeds: 10}
        - {objective: [beta-vae, isa-vae], beta: 4, seeds: [15-19, 23]}

A grid gives each field of :class:`isa.run.Run` one value or a list of values, and stands for every combination. A list
of ``p1`` is several values, each for all subspaces, and a list in it is one value for each subspace:
``p1: [1.8, 2.0]`` makes twice as many runs, ``p1: [[1.8, 2.0]]`` does not. ``subspaces: [4, 3, 3]`` is one layout, and
a list of lists several. ``seeds: 10`` stands for the seeds 0 to 9, ``seeds: 15-19`` for a range, and a list for several
seeds and ranges. Fields that are left out take the data set's defaults (Tables 1 and 2).

**Records** are one table a specification, the ``.csv`` next to it: a row a run, identified by its hash. A recorded
run is not trained again, so a sweep that was interrupted at any moment continues where it stopped. The table is
replaced as a whole by one that has the new row, under a lock; two sweeps over one specification share its runs.

**Order.** Several specifications are trained tier by tier: tier 1 of each in turn, then tier 2. A run that is a part of
a longer one (the same but for the number of steps) is recorded on the way if the longer run is missing too and belongs
to the same tier or an earlier one: one training, two records.

**Devices.** Runs train in packs in this process (:mod:`isa.local`), or on the workers of a Dask cluster
(:mod:`isa.cluster`). With its record, each run leaves its portrait (:mod:`isa.latents`) in ``portraits/``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch

from isa import cluster, engine, local, results
from isa._records import RECORD, Records, Spec, merge_records, read_records
from isa.packs import Job, duration, is_claimed, longest, speeds
from isa.profile import write_profile

__all__ = ["RECORD", "Records", "Spec", "Status", "merge_records", "read_records", "status", "sweep"]


class Status(NamedTuple):
    """Progress of one tier."""

    tier: int
    runs: int
    recorded: int
    diverged: int
    in_progress: int  #: runs that a sweep on this file system is training; those of one course count once
    seconds: float | None  #: for the rest on this device, by its records; None if a kind of run is not recorded on it


def status(spec: Spec, device: str | torch.device | None = None) -> list[Status]:
    """Return what is done, what remains, and how long that will take on a device, tier by tier."""
    records = {record["hash"]: record for record in read_records(spec.record)}
    here = speeds(records.values(), results.device_name(engine.default_device(device)))
    progress = []
    for tier, runs in spec.tiers.items():
        done = [records[run.hash]["status"] for run in runs if run.hash in records]
        missing = [Job(spec, run, tier) for run in runs if run.hash not in records]
        claimed = sum(map(is_claimed, longest(missing)))
        progress.append(Status(tier, len(runs), len(done), done.count("diverged"), claimed, duration(missing, here)))
    return progress


def sweep(
    specs: Spec | str | os.PathLike[str] | Sequence[Spec | str | os.PathLike[str]],
    *,
    tier: int | None = None,
    budget: float | None = None,
    device: str | torch.device | None = None,
    pack: int | None = None,
    scheduler: str | None = None,
    keep_models: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    profile: str | os.PathLike[str] | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> Records | list[Records]:
    """Train every run of specifications that is not recorded yet, and return the records.

    Bad options, specifications and records raise a ``ValueError`` before anything is trained. If a record cannot be
    written, as on a full disk, all earlier ones stay, and the next sweep continues from the last checkpoint.

    Parameters
    ----------
    specs, tier
        A specification or its path, or several, for which a list of records is returned; the last tier, by default all.
    budget
        Seconds. A pack is started only if it would be done by then at the speed measured so far. Runs of a kind of
        unknown speed are started, and stopped once their speed shows that they would not be done. A cluster trains
        until then. 0 trains nothing.
    device, pack
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``, by default a GPU if there is one, on each worker of a cluster; maximum
        number of runs that train at once, by default 18 on a GPU, 1 on a CPU.
    scheduler
        Address of a Dask scheduler, on whose workers the runs are trained (:mod:`isa.cluster`).
    keep_models, cache_dir
        Keep each trained model below ``spec.work``, 57 MB each with the perceptrons of A.4; folder of drawn images.
    out, profile
        Folder that receives copies of new records (``NAME.csv``) and portraits after every pack; file for a report on
        30 steps of each kind of missing run (:mod:`isa.profile`), made before training here.
    report
        Called with a line on each run that is recorded.
    """
    single = isinstance(specs, Spec | str | os.PathLike)
    named = [spec if isinstance(spec, Spec) else Spec.read(spec) for spec in ([specs] if single else specs)]
    tiers = sorted({number for spec in named for number in spec.tiers})
    if tier is not None and tier not in tiers:
        raise ValueError(f"tier must be one of {', '.join(map(str, tiers))}, got {tier!r}")
    if budget is not None and not budget >= 0:
        raise ValueError(f"budget must be a number of seconds, at least 0, got {budget}")
    if pack is not None and pack < 1:
        raise ValueError(f"pack must be a number of runs, at least 1, got {pack!r}")
    deadline = inf if budget is None else time.monotonic() + budget
    records = [_read(spec, tier) for spec in named]
    missing = [set(some.missing) for some in records]
    jobs = [
        Job(spec, run, number)
        for number in tiers
        for spec, left in zip(named, missing, strict=True)
        for run in spec.tiers.get(number, ())
        if run in left
    ]
    if jobs and (budget != 0 or profile is not None):
        for job in jobs:
            local.source_path(job.run)  # which may not exist
        record = local.Recorder(jobs, out and Path(out), report)
        if scheduler is not None:
            trainer = cluster.connect(scheduler, record, pack, deadline, device, cache_dir, keep_models)
        else:
            here, size = engine.default_device(device), pack or local.pack_size(device)
            trainer = local.Local(record, size, deadline, here, cache_dir, keep_models)
            if profile is not None:
                write_profile(Path(profile), jobs, size, here, cache_dir)
        if budget != 0:
            local.train(jobs, deadline, trainer)
        records = [_read(spec, tier) for spec in named]
    return records[0] if single else records


def _read(spec: Spec, tier: int | None) -> Records:
    path = spec.path.resolve()
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else spec.path
    command = f"isa sweep {shown.as_posix()}{'' if tier is None else f' --tier {tier}'}"
    known = {record["hash"]: record for record in read_records(spec.record)}
    runs = spec.runs(tier)
    rows = [known[run.hash] for run in runs if run.hash in known]
    return Records(rows, [run for run in runs if run.hash not in known], command)
