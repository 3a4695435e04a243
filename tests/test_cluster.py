"""The sweep on a Dask cluster: worker processes of which one is killed, and workers in this process for the rest."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from distributed import Client, LocalCluster
from tiny_sweep import SPEC, watch_starts, without_times, write_spec

from isa import cli, cluster, engine, packs, results, sweep
from isa.run import Run
from isa.sweep import Records, Spec, read_records

TESTS = Path(__file__).resolve().parent
LOCAL = {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch) -> Iterator[None]:
    """As many threads as the workers have, so that a local sweep gives the same to the last bit."""
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 300)  # on a busy machine
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def spec(tmp_path) -> Spec:
    return Spec.read(write_spec(tmp_path))


def _sweep(spec: Spec, **options) -> Records:
    return sweep.sweep(spec, **({"progress": False} | options))


def _by_hash(records) -> dict[str, dict]:
    return {record["hash"]: without_times(record) for record in records}


def _alone(folder: Path, text: str = SPEC, **options) -> dict[str, dict]:
    """Return the records of a sweep without a cluster."""
    folder.mkdir()
    return _by_hash(_sweep(Spec.read(write_spec(folder, text)), device="cpu", **options))


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.02)


def test_killed_worker_loses_nothing(spec, tmp_path, monkeypatch):
    monkeypatch.setenv("TINY_SWEEP_SECONDS", "1")  # which every pack takes
    said, done = [], []
    options = {"n_workers": 2, "threads_per_worker": 1, "preload": [str(TESTS / "tiny_sweep.py")]}
    with LocalCluster(**options, **LOCAL) as workers:
        options = {"scheduler": workers.scheduler_address, "report": said.append}
        thread = threading.Thread(target=lambda: done.append(_sweep(spec, **options)))
        thread.start()
        with Client(workers, set_as_default=False) as client:
            _until(lambda: any(key.startswith("cars3d-") for keys in client.processing().values() for key in keys))
            (busy, *_) = (name for name, keys in client.processing().items() if keys)
            (process,) = (worker.pid for worker in workers.workers.values() if worker.worker_address == busy)
        assert thread.is_alive() and sum(tier.in_progress for tier in sweep.status(spec)) >= 1
        os.kill(process, signal.SIGKILL)
        thread.join(100)
    (records,) = done
    assert len(records) == 9 and not records.missing
    assert sorted(row["hash"] for row in read_records(spec.record)) == sorted(run.hash for run in spec.runs())
    assert len(said) == 9 and all("MIG" in line for line in said)
    monkeypatch.delenv("TINY_SWEEP_SECONDS")
    assert _by_hash(records) == _alone(tmp_path / "alone")
    for run in spec.runs():
        path = Path("portraits", f"{run.key}.npz")
        assert (tmp_path / path).read_bytes() == (tmp_path / "alone" / path).read_bytes()
    assert not list(spec.work.glob("checkpoints/*"))
    assert [tier.in_progress for tier in sweep.status(spec)] == [0, 0]


# Before anything begins


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("tcp://127.0.0.1:{closed}", "TimeoutError"),
        ("127.0.0.1:{silent}", "TimeoutError"),
        ("head", "missing port number"),
        ("carrier-pigeon://head:8786", "unknown address scheme"),
        ("", "missing port number"),
    ],
)
def test_no_scheduler_is_one_sentence(address, why, spec, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as once:
        closed = once.getsockname()[1]
        once.close()
        address = address.format(closed=closed, silent=silent.getsockname()[1])
        assert cli.main(["sweep", str(spec.path), "--scheduler", address]) == 1
    printed = capsys.readouterr().err
    assert f"scheduler must be the address of a Dask scheduler, got {address!r}: " in printed and why in printed
    assert printed.count("\n") == 1 and not spec.work.exists() and not spec.record.exists()


def test_missing_extra_is_named(spec, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert cli.main(["sweep", str(spec.path), "--scheduler", "tcp://head:8786"]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and ".[cluster]" in printed.err and not spec.work.exists()


# Workers in this process


@pytest.fixture(scope="module")
def inside() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=False, protocol="tcp", **LOCAL) as started:
        yield started


@pytest.fixture
def scheduler(inside, monkeypatch) -> str:
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.05)
    return inside.scheduler_address


def test_command_sweeps_on_a_cluster_and_trains_nothing_twice(scheduler, inside, spec, tmp_path, capsys):
    with pytest.raises(cluster.ClusterError, match="a Worker answers"):
        _sweep(spec, scheduler=inside.workers[0].address)
    arguments = ["sweep", str(spec.path), "--tier", "1", "--scheduler", scheduler, "--keep-models"]
    assert cli.main([*arguments, "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert printed.err == "" and len(lines) == 5 and lines[-1].endswith("4 of 4 runs recorded")
    rows = read_records(spec.record)
    assert _by_hash(rows) == _alone(tmp_path / "alone", tier=1)
    assert _by_hash(read_records(tmp_path / "out" / "records-tiny.csv")) == _by_hash(rows)
    again, model, _ = results.load_model(spec.work / "models" / rows[0]["key"])
    assert again.hash == rows[0]["hash"] and not model.training
    assert not _sweep(spec, tier=1, scheduler="tcp://nowhere:1").missing  # nothing is left to ask a scheduler for


def _failing(monkeypatch, fails: Callable[[Run], bool]) -> list[Run]:
    """Let training fail for some runs; return a list of those that were tried."""
    original, tried = engine.fit, []

    def fit(runs, *arguments, **options):
        tried.extend(filter(fails, runs))
        if any(map(fails, runs)):
            raise TimeoutError("a bad\nday")
        return original(runs, *arguments, **options)

    monkeypatch.setattr(engine, "fit", fit)
    return tried


def test_failing_run_is_retried_reported_and_stops_no_other(scheduler, spec, monkeypatch, capsys):
    bad = spec.runs()[1]
    tried = _failing(monkeypatch, lambda run: run == bad)
    assert cli.main(["sweep", str(spec.path), "--scheduler", scheduler]) == 1
    printed = capsys.readouterr()
    assert tried == [bad] * 3
    assert f"1 of 9 runs could not be trained, first {bad.key}: TimeoutError: a bad day" in printed.err
    assert printed.err.count("\n") == 1 and f"{bad.key}  FAILED: TimeoutError: a bad day" in printed.out
    assert set(_by_hash(read_records(spec.record))) == {run.hash for run in spec.runs()} - {bad.hash}
    monkeypatch.undo()
    assert len(_sweep(spec, scheduler=scheduler)) == 9


def test_retry_continues_from_the_checkpoint(scheduler, tmp_path, monkeypatch):
    text = SPEC.replace("steps: 6", "steps: 60").replace("seeds: 2}", "seeds: 1}")
    whole = _alone(tmp_path / "alone", text, tier=1)
    spec = Spec.read(write_spec(tmp_path, text))
    original, starts = engine.fit, []

    def interrupted(runs, dataset, *, callback, **options):
        options |= {"checkpoint_every": 20, "checkpoint_seconds": 0}
        start = engine.checkpoint_step(options["checkpoints"], runs[0])
        starts.append(start)

        def look(step, terms):
            callback(step, terms)
            if start == 0:
                raise RuntimeError("the lights went out")

        return original(runs, dataset, **options, callback=look)

    monkeypatch.setattr(engine, "fit", interrupted)
    records = _sweep(spec, tier=1, scheduler=scheduler)
    assert sorted(starts) == [0, 0, 40, 40] and _by_hash(records) == whole


def test_worker_of_another_version_says_so(inside, spec):
    run = spec.runs()[0]
    options = {"device": None, "cache_dir": None, "keep_models": False, "seconds": 60.0, "folder": spec.work}
    with Client(inside.scheduler_address, set_as_default=False) as client:
        task = client.submit(cluster._work, {"0" * 16: run.to_dict()}, **options, pure=False)
        with pytest.raises(ValueError, match=f"the worker's version of isa has another hash for {run.key}"):
            task.result(60)


def test_budget_stops_slow_runs_and_waiting(scheduler, spec, monkeypatch):
    monkeypatch.setattr(engine, "COMPILE_FROM", 10**9)
    said = []
    own = spec.grid(beta=1, steps=10**6, seeds=2)
    assert len(_sweep(own, scheduler=scheduler, budget=30.0, report=said.append)) == 0
    assert sorted(line.split()[-1] for line in said) == sorted(run.key for run in own.runs())
    with LocalCluster(n_workers=0, **LOCAL) as empty:
        assert len(_sweep(spec, scheduler=empty.scheduler_address, budget=0.2, report=said.append)) == 0
        assert said[-1] == "there is no worker yet: waiting for one"


def test_claimed_runs_are_left_to_other_sweeps(scheduler, spec):
    taken, done, claims = spec.runs(1)[1], [], ExitStack()
    packs.claim([packs.Job(spec, taken)], claims)
    thread = threading.Thread(target=lambda: done.append(_sweep(spec, tier=1, scheduler=scheduler)))
    thread.start()
    _until(lambda: len(read_records(spec.record)) == 3)
    assert taken.hash not in _by_hash(read_records(spec.record))
    claims.close()
    thread.join(100)
    assert len(done[0]) == 4


def test_interrupted_sweep_frees_workers_and_claims(scheduler, inside, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "COMPILE_FROM", 10**9)
    short, long = "{objective: beta-vae, beta: 1, seeds: 2}", "{objective: beta-vae, beta: 2, steps: 1000000, seeds: 2}"
    spec = Spec.read(write_spec(tmp_path, f"{SPEC[: SPEC.index('tiers')]}tiers: {{1: [{short}, {long}]}}"))

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _sweep(spec, scheduler=scheduler, report=stop)
    assert sum(tier.in_progress for tier in sweep.status(spec)) == 0
    _until(lambda: not any(worker.state.executing for worker in inside.workers.values()))


def test_packs_and_courses(scheduler, spec, monkeypatch):
    starts = watch_starts(monkeypatch, "total_steps")
    assert len(_sweep(spec.grid(steps=[6, 12], beta=1), scheduler=scheduler)) == 2
    assert starts == [(12, 0)] and not list(spec.work.glob("checkpoints/*"))
    monkeypatch.undo()
    original, sizes = engine.fit, []

    def small_memory(runs, *arguments, **options):
        sizes.append(len(runs))
        if len(runs) > 2:
            raise torch.OutOfMemoryError("no memory")
        return original(runs, *arguments, **options)

    monkeypatch.setattr(engine, "fit", small_memory)
    records = _sweep(spec, scheduler=scheduler, pack=4)
    assert len(records) == 9 and max(sizes) > 2 and {record["pack_size"] for record in records} <= {1, 2}


# SLURM

SBATCH = """\
#!{bash}
cp "$1" "{folder}/$$.sh"
setsid {bash} "{folder}/$$.sh" > "{folder}/$$.log" 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = "#!{bash}\necho $1 >> {folder}/cancelled\nkill -- -$1\n"


@pytest.mark.skipif(shutil.which("setsid") is None, reason="a job needs a process group, which setsid gives on Linux")
def test_slurm_jobs_sweep(spec, tmp_path, capsys, monkeypatch):
    """``runs/slurm.py`` on a machine whose ``sbatch`` runs a job at once in the background."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        path = folder / name
        path.write_text(text.format(bash=shutil.which("bash"), folder=folder))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", json.dumps([str(TESTS / "tiny_sweep.py")]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(TESTS.parent / "runs")
    import slurm

    options = ["--jobs", "1", "--cores", "1", "--interface", "lo", "--memory", "4GB", "--sbatch", "gpus=1"]
    assert slurm.main([*options, "--", str(spec.path), "--tier", "1"]) == 0
    assert capsys.readouterr().out.endswith("4 of 4 runs recorded\n")
    assert _by_hash(read_records(spec.record)) == _alone(tmp_path / "alone", tier=1)
    (script,) = folder.glob("*.sh")
    lines = set(script.read_text().splitlines())
    assert {"#SBATCH --gpus=1", "#SBATCH --cpus-per-task=1", "#SBATCH -t 12:00:00"} <= lines
    _until((folder / "cancelled").exists)
