"""Sweeps on a Dask cluster: two SLURM jobs, of which one worker is killed, and workers in this process for the rest."""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import dask
import distributed
import pytest
import torch
from tiny_sweep import SPEC, without_times, write_spec

from isa import cli, cluster, engine, packs, results, sweep
from isa.sweep import Spec, read_records

TESTS = Path(__file__).resolve().parent
LOCAL = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}
dask.config.set({"distributed.comm.timeouts.connect": "300s"})  # on a busy machine
SBATCH = """\
#!{bash}
cp "$1" "{folder}/$$.sh"
setsid {bash} "{folder}/$$.sh" > "{folder}/$$.log" 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = "#!{bash}\necho $1 >> {folder}/cancelled\nkill -- -$1\n"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use as many threads as the workers, so that a local sweep gives the same to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def spec(tmp_path) -> Spec:
    return Spec.read(write_spec(tmp_path))


def _by_hash(records) -> dict[str, dict]:
    return {record["hash"]: without_times(record) for record in records}


def _alone(folder: Path, text: str = SPEC, **options) -> dict[str, dict]:
    """Return the records of a sweep without a cluster."""
    return _by_hash(sweep.sweep(Spec.read(write_spec(folder, text)), device="cpu", **options))


def test_no_scheduler_or_no_worker_is_one_sentence(spec, monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as once:
        closed = f"tcp://127.0.0.1:{once.getsockname()[1]}"
    with dask.config.set({"distributed.comm.timeouts.connect": "0.5s"}):
        for address, why in ((closed, f"connect to {closed}"), ("pigeon://head:8786", "unknown address scheme")):
            assert cli.main(["sweep", str(spec.path), "--scheduler", address]) in (1, 2)
            printed = capsys.readouterr().err
            assert why in printed and printed.count("\n") == 1 and not spec.work.exists()
    with distributed.LocalCluster(n_workers=0, **LOCAL) as empty:  # the budget ends the wait
        assert cli.main(["sweep", str(spec.path), "--scheduler", empty.scheduler_address, "--budget", "0.2"]) == 1
    assert "0/1 workers" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert cli.main(["sweep", str(spec.path), "--scheduler", closed]) == 1
    assert "isa-vae[cluster]" in capsys.readouterr().err


@pytest.fixture(scope="module")
def inside() -> Iterator[distributed.LocalCluster]:
    options = LOCAL | {"n_workers": 2, "threads_per_worker": 1, "processes": False, "protocol": "tcp"}
    with distributed.LocalCluster(**options) as started:
        yield started


@pytest.fixture
def scheduler(inside) -> str:
    return inside.scheduler_address


def test_command_sweeps_on_a_cluster_and_trains_nothing_twice(scheduler, spec, tmp_path, capsys):
    arguments = ["sweep", str(spec.path), "--tier", "1", "--scheduler", scheduler, "--keep-models"]
    assert cli.main(arguments) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == "" and len(lines) == 5 and lines[-1].endswith("4 of 4 runs recorded")
    run, _, _ = results.load_model(spec.work / "models" / spec.runs()[0].key)
    assert run == spec.runs()[0]
    assert not sweep.sweep(spec, tier=1, scheduler="tcp://nowhere:1").missing  # nothing is left to ask a scheduler for
    records = sweep.sweep(spec.grid(steps=[6, 12], beta=[1, 4]), scheduler=scheduler, pack=2)
    assert {row["pack_size"] for row in records if row["steps"] == 12} == {2}


def test_failing_run_is_retried_from_its_checkpoint_and_stops_no_other(scheduler, tmp_path, monkeypatch, capsys):
    text = SPEC.replace("steps: 6", "steps: 60").replace("seeds: 2}", "seeds: 1}")
    spec, fit, starts = Spec.read(write_spec(tmp_path, text)), engine.fit, []
    good, bad = spec.runs(1)

    def failing(runs, dataset, *, callback, **options):
        start = engine.checkpoint_step(options["checkpoints"], runs[0])
        starts.append((runs[0].beta, start))

        def look(step, terms):
            callback(step, terms)
            if start == 0 or runs == [bad]:
                raise TimeoutError("a bad\nday")

        return fit(runs, dataset, **options | {"checkpoint_every": 20, "checkpoint_seconds": 0}, callback=look)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "fit", failing)
        assert cli.main(["sweep", str(spec.path), "--tier", "1", "--scheduler", scheduler]) == 1
    printed = capsys.readouterr()
    assert sorted(starts) == [(1, 0), (1, 40), (4, 0), (4, 40), (4, 40)]
    assert printed.err == "isa: error: 1 of 2 runs failed: the lines above say why\n"
    assert f"{bad.key}  FAILED: TimeoutError: a bad day" in printed.out
    assert list(_by_hash(read_records(spec.record))) == [good.hash]
    assert _by_hash(sweep.sweep(spec, tier=1, scheduler=scheduler)) == _alone(tmp_path / "alone", text, tier=1)


def test_worker_of_another_version_is_reported(scheduler, spec, monkeypatch):
    monkeypatch.setattr(packs, "measure", lambda *a, **k: [({"hash": "of another"}, None)])
    reported = []
    with pytest.raises(cluster.ClusterError, match="4 of 4 runs failed"):
        sweep.sweep(spec, tier=1, scheduler=scheduler, report=reported.append)
    assert all(line.endswith("FAILED: ValueError: the worker has another version of isa") for line in reported)


@pytest.mark.parametrize("interrupted", [False, True])
def test_end_of_the_budget_or_an_interrupt_frees_workers_and_claims(interrupted, scheduler, spec, monkeypatch):
    fit, started, stopped, reported = engine.fit, threading.Event(), threading.Event(), []
    endless = spec.grid(beta=1, steps=10**6)

    def watched(runs, dataset, **options):
        started.set()
        try:
            yield from fit(runs, dataset, **options, compile=False)
        finally:
            stopped.set()

    def now() -> float:  # the budget ends when the training has begun
        if started.is_set() and interrupted:
            raise KeyboardInterrupt
        return float(started.is_set())

    monkeypatch.setattr(engine, "fit", watched)
    for module in (cluster, packs, sweep):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=now))
    with pytest.raises(KeyboardInterrupt) if interrupted else nullcontext():
        assert len(sweep.sweep(endless, scheduler=scheduler, budget=0.5, report=reported.append)) == 0
        assert [line.split()[-1] for line in reported] == [run.key for run in endless.runs()]
    assert stopped.wait(100)
    assert [tier.in_progress for tier in sweep.status(endless)] == [0]


@pytest.mark.parametrize("here", [True, False])
def test_claimed_runs_are_left_to_other_sweeps(here, scheduler, spec, monkeypatch):
    taken, claims = spec.runs(1)[1], ExitStack()
    assert packs.claim([packs.Job(spec, taken.replace(steps=3))], claims)  # a shorter run of its course
    assert [row.in_progress for row in sweep.status(spec)] == [1, 0]
    assert packs.claim([packs.Job(spec, taken)], ExitStack()) == []

    def others_work(seconds: float) -> None:
        assert set(_by_hash(read_records(spec.record))) == {run.hash for run in spec.runs(1)} - {taken.hash}
        claims.close()

    monkeypatch.setattr(packs, "time", SimpleNamespace(monotonic=time.monotonic, sleep=others_work))
    options = {"device": "cpu"} if here else {"scheduler": scheduler}
    assert len(sweep.sweep(spec, tier=1, **options)) == 4
    assert [row.in_progress for row in sweep.status(spec)] == [0, 0]


def test_lost_scheduler_is_one_sentence(scheduler, spec, monkeypatch, capsys):
    monkeypatch.setattr(distributed.Client, "wait_for_workers", Mock(side_effect=cluster.CancelledError))
    assert cli.main(["sweep", str(spec.path), "--scheduler", scheduler]) == 1
    assert capsys.readouterr().err.startswith(f"isa: error: the connection to {scheduler} was lost; ")


@pytest.mark.skipif(shutil.which("setsid") is None, reason="a job needs a process group, which setsid gives on Linux")
def test_killed_worker_of_a_slurm_job_loses_nothing(spec, tmp_path, capsys, monkeypatch):
    """``runs/slurm.py`` on a machine whose ``sbatch`` runs a job at once in the background."""
    folder, out, bomb = tmp_path / "slurm", tmp_path / "out", tmp_path / "bomb"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        (folder / name).write_text(text.format(bash=shutil.which("bash"), folder=folder))
        (folder / name).chmod(0o755)
    bomb.touch()
    monkeypatch.setenv("TINY_SWEEP_BOMB", str(bomb))  # kills the worker that finds it
    monkeypatch.setenv("DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT", "300s")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", json.dumps([str(TESTS / "tiny_sweep.py")]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(TESTS.parent / "runs")
    import slurm

    options = ["--jobs", "2", "--cores", "1", "--interface", "lo", "--memory", "4GB", "--sbatch", "gpus=1"]
    assert slurm.main([*options, "--", str(spec.path), "--tier", "1", "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith("4 of 4 runs recorded\n") and not bomb.exists()
    script, _ = folder.glob("*.sh")
    lines = set(script.read_text().splitlines())
    assert {"#SBATCH --gpus=1", "#SBATCH --cpus-per-task=1", "#SBATCH -t 12:00:00"} <= lines
    assert (folder / "cancelled").exists()
    rows, copies = read_records(spec.record), read_records(out / "tiny.csv")
    assert len(rows) == 4 and _by_hash(rows) == _by_hash(copies) == _alone(tmp_path / "alone", tier=1)
    for path in (tmp_path / "alone" / "portraits").iterdir():
        assert path.read_bytes() == (tmp_path / "portraits" / path.name).read_bytes()
    assert not list(spec.work.glob("checkpoints/*"))
    assert [tier.in_progress for tier in sweep.status(spec)] == [0, 0]
