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

**Records** are one table per specification, the ``.csv`` next to it, with a row for each run, identified by its hash.
A recorded run is not trained again, so a sweep that was interrupted continues where it stopped. The table is replaced
as a whole by one with the new row, under a lock; two sweeps of one specification share its runs.

**Order.** Several specifications are trained tier by tier: tier 1 of each in turn, then tier 2. A run that is a part of
a longer one (which differs only in the number of steps) is recorded on the way if the longer run is missing too and
belongs to the same tier or an earlier one: one training, two records.

**Devices.** Runs train in packs in this process (:mod:`isa.packs`), or on the workers of a Dask cluster
(:mod:`isa.cluster`). Each run also leaves its portrait (:mod:`isa.latents`) in ``portraits/``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch

from isa import cluster, engine, packs, results
from isa._records import RECORD, Records, Spec, merge_records, read_records
from isa.data.base import StrPath, expand

__all__ = ["RECORD", "Records", "Spec", "Status", "merge_records", "read_records", "status", "sweep"]


class Status(NamedTuple):
    """Progress of one tier."""

    tier: int
    runs: int
    recorded: int
    diverged: int
    in_progress: int  #: runs that a sweep on this file system is training; those of one course count once
    seconds: float | None  #: for the rest on this device, by its records; None if it has not recorded a kind of run


def status(spec: Spec, device: str | torch.device | None = None) -> list[Status]:
    """Return, tier by tier, what is recorded, what remains, and how long that will take on a device."""
    here, known, seconds, progress = results.device_name(engine.default_device(device)), {}, {}, []
    for row in read_records(spec.record):
        known[row["hash"]] = row["status"]
        if row["device"] == here and row["status"] == "trained":  # the latest of its kind
            each = row["train_seconds"] / row["pack_size"] + row["evaluation_seconds"]
            seconds[packs.kind(row)] = each / row["total_steps"]
    for tier, runs in spec.tiers.items():
        done = [known[run.hash] for run in runs if run.hash in known]
        missing = [packs.Job(spec, run, tier) for run in runs if run.hash not in known]
        claimed, rest = sum(map(packs.is_claimed, packs.longest(missing))), packs.duration(missing, seconds)
        progress.append(Status(tier, len(runs), len(done), done.count("diverged"), claimed, rest))
    return progress


def sweep(
    specs: Spec | StrPath | Sequence[Spec | StrPath],
    *,
    tier: int | None = None,
    budget: float | None = None,
    device: str | torch.device | None = None,
    pack: int | None = None,
    scheduler: str | None = None,
    keep_models: bool = False,
    cache_dir: StrPath | None = None,
    out: StrPath | None = None,
    profile: StrPath | None = None,
    report: Callable[[str], object] = lambda line: None,
) -> Records | list[Records]:
    """Train every run of specifications that is not recorded yet, and return the records.

    Bad options, specifications and records raise a ``ValueError`` before anything is trained. If a record cannot be
    written, as on a full disk, all earlier ones stay, and the next sweep continues from the last checkpoint.

    Parameters
    ----------
    specs, tier
        A specification or its path, or a sequence of these, which returns a list; the last tier to train, or all.
    budget
        Seconds. A pack is started only if it would finish in time at the speed measured so far. Runs of a kind of
        unknown speed are started, and stopped once their speed shows that they would not. A cluster trains until the
        time is over. 0 trains nothing.
    device, pack
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``, by default a GPU if there is one, on each worker of a cluster; maximum
        number of runs that train at once, by default 18 on a GPU, 1 on a CPU.
    scheduler
        Address of a Dask scheduler, on whose workers the runs are trained (:mod:`isa.cluster`).
    keep_models, cache_dir
        Keep each trained model below ``spec.work``, 57 MB each with the perceptrons of A.4; folder of drawn images.
    out, profile
        Folder that receives copies of new records (``NAME.csv``) and portraits after every pack; file for a report on
        30 steps of each kind of missing run (:func:`isa.packs.write_profile`), written before training in this process.
    report
        Called with a line of text for each recorded run.
    """
    listed = [specs] if isinstance(specs, Spec | str | os.PathLike) else specs
    named = [spec if isinstance(spec, Spec) else Spec.read(spec) for spec in listed]
    tiers = sorted({number for spec in named for number in spec.tiers})
    if tier is not None and tier not in tiers:
        raise ValueError(f"tier must be one of {', '.join(map(str, tiers))}, got {tier!r}")
    if budget is not None and not budget >= 0:
        raise ValueError(f"budget must be a number of seconds, at least 0, got {budget}")
    if pack is not None and pack < 1:
        raise ValueError(f"pack must be a number of runs, at least 1, got {pack!r}")
    if profile is not None and scheduler is not None:
        raise ValueError("profile excludes scheduler: it is made on this machine")
    deadline = inf if budget is None else time.monotonic() + budget
    records, plan = [_records(spec, tier) for spec in named], dict[tuple[Path, str], packs.Job]()
    for spec, found in zip(named, records, strict=True):
        left = {run.hash for run in found.missing}
        numbered = [(number, run) for number, runs in spec.tiers.items() for run in runs if run.hash in left]
        plan |= {(spec.record, run.hash): packs.Job(spec, run, number) for number, run in numbered}
    jobs = sorted(plan.values(), key=lambda job: job.tier)  # in each tier, the specifications in turn
    if jobs and (budget != 0 or profile is not None):
        for source in {job.run.source for job in jobs if job.run.source}:
            expand(source)  # which may not exist
        record, cache = packs.Recorder(jobs, Path(out) if out else None, report), Path(cache_dir) if cache_dir else None
        trainer: AbstractContextManager
        if scheduler is None:
            here = engine.default_device(device)
            size = pack or packs.PACK_SIZES.get(here.type, 1)
            trainer = packs.Local(record, size, deadline, here, cache, keep_models)
            if profile is not None:
                packs.write_profile(Path(profile), jobs, size, here, cache)
        else:
            trainer = cluster.connect(scheduler, record, pack, deadline, device, cache, keep_models)
        if budget != 0:
            packs.train(jobs, deadline, trainer)
        records = [_records(spec, tier) for spec in named]
    return records if listed is specs else records[0]


def _records(spec: Spec, tier: int | None) -> Records:
    known = {record["hash"]: record for record in read_records(spec.record)}
    rows = [known[run.hash] for run in spec.runs(tier) if run.hash in known]
    missing = [run for run in spec.runs(tier) if run.hash not in known]
    path = Path(os.path.relpath(spec.path)) if spec.path.resolve().is_relative_to(Path.cwd()) else spec.path
    return Records(rows, missing, f"isa sweep {path.as_posix()}{'' if tier is None else f' --tier {tier}'}")
