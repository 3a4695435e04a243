"""The sweep on a Dask cluster: real processes of which one is killed, and a cluster within the process for the rest."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import pytest
import torch
from distributed import Client, LocalCluster
from tiny_sweep import SPEC, watch_starts, without_times, write_spec

from isa import cli, cluster, engine, packs, results, sweep
from isa.run import Run
from isa.sweep import Records, Spec, read_records

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As many threads as the workers have, so that a local sweep gives the same to the last bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def spec(tmp_path) -> Spec:
    return Spec.read(write_spec(tmp_path))


def _sweep(spec: Spec, **options) -> Records:
    return sweep.sweep(spec, **({"progress": False} | options))


def _alone(folder: Path, text: str = SPEC, **options) -> dict[str, dict]:
    """Records of a sweep without a cluster, by hash."""
    folder.mkdir()
    records = _sweep(Spec.read(write_spec(folder, text)), device="cpu", **options)
    return {record["hash"]: without_times(record) for record in records}


def _until(holds: Callable[[], object], seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "what was waited for did not come"
        time.sleep(0.02)


# --- real processes --------------------------------------------------------------------------------------------------


class _Processes:
    """A scheduler and workers, each a process, which log to files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen] = {}
        self.start("scheduler", "--port", "0", "--idle-timeout", "900")  # so that none outlives tests that are killed

    def start(self, name: str, *arguments: str, seconds: float = 0.0) -> None:
        kind = "scheduler" if name == "scheduler" else "worker"
        command = [sys.executable, "-m", f"distributed.cli.dask_{kind}", "--scheduler-file", self.folder / "scheduler"]
        command += ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", *arguments]
        environment = {**os.environ, "TINY_SWEEP_SECONDS": str(seconds)}
        with open(self.folder / f"{name}.log", "w") as log:
            options = {"stdout": log, "stderr": log, "cwd": self.folder, "env": environment}
            self.running[name] = subprocess.Popen(command, **options)

    def start_worker(self, name: str, seconds: float = 0.0) -> None:
        arguments = ["--name", name, "--no-nanny", "--nthreads", "1", "--memory-limit", "0"]
        arguments += ["--local-directory", str(self.folder), "--death-timeout", "300"]
        self.start(name, *arguments, "--preload", str(TESTS / "tiny_sweep.py"), seconds=seconds)

    @property
    def address(self) -> str:
        path = self.folder / "scheduler"
        _until(path.exists)
        return json.loads(path.read_text())["address"]

    def kill(self, name: str) -> None:
        process = self.running.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def stop(self) -> None:
        for name in list(self.running):
            self.kill(name)


@pytest.fixture
def processes(tmp_path, monkeypatch) -> Iterator[_Processes]:
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 300.0)  # on a machine that does much else
    folder = tmp_path / "processes"
    folder.mkdir()
    started = _Processes(folder)
    yield started
    started.stop()


def test_a_worker_killed_in_mid_run_only_delays_its_run(processes, spec, tmp_path):
    processes.start_worker("quick")
    processes.start_worker("stuck", seconds=3600)  # in each of its runs, until it is killed there
    said, ended = [], []

    def run() -> None:
        ended.append(_sweep(spec, scheduler=processes.address, report=said.append))

    with Client(processes.address, set_as_default=False, timeout=300) as client:
        client.wait_for_workers(2, timeout=300)
        thread = threading.Thread(target=run)
        thread.start()
        (stuck,) = (address for address, one in client.scheduler_info()["workers"].items() if one["name"] == "stuck")
        _until(lambda: any(key.startswith("cars3d-") for key in client.processing([stuck])[stuck]))
        assert thread.is_alive() and sum(one.in_progress for one in sweep.status(spec)) >= 1
        processes.kill("stuck")
    thread.join(300)

    (records,) = ended
    assert len(records) == 9 and not records.missing
    assert sorted(record["hash"] for record in read_records(spec.record)) == sorted(run.hash for run in spec.runs())
    (lost,) = (line for line in said if "lost with its worker" in line)
    assert lost.split()[0] in {run.key for run in spec.runs()} and stuck in lost
    assert sum("MIG" in line and line.startswith("cars3d-") for line in said) == 9
    assert {record["hash"]: without_times(record) for record in records} == _alone(tmp_path / "alone")
    assert {path.name for path in (tmp_path / "portraits").iterdir()} == {f"{run.key}.npz" for run in spec.runs()}
    for path in (tmp_path / "portraits").iterdir():
        assert path.read_bytes() == (tmp_path / "alone" / "portraits" / path.name).read_bytes()
    assert not list(spec.work.glob("checkpoints/*"))
    assert [one.in_progress for one in sweep.status(spec)] == [0, 0]


def test_a_scheduler_that_goes_away_ends_the_sweep_in_one_sentence(processes, spec, monkeypatch):
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.1)
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 10.0)  # also for how long one that is gone is asked
    said = []

    def kill(line: str) -> None:
        said.append(line)
        processes.kill("scheduler")

    with pytest.raises(cluster.ClusterError, match=r"the scheduler answers no longer .*; what is recorded stays"):
        _sweep(spec, scheduler=processes.address, report=kill)
    assert said == ["there is no worker; waiting for one"]


# --- before anything begins ------------------------------------------------------------------------------------------


def _listening(answer: bytes | None, stack: list) -> int:
    """Port of something that is no scheduler; it is silent, or says one thing."""
    server = socket.create_server(("127.0.0.1", 0))
    stack.append(server)

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            stack.append(connection)
            if answer is not None:
                connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return server.getsockname()[1]


@pytest.mark.parametrize(
    ("address", "answer", "why"),
    [
        ("tcp://127.0.0.1:{closed}", None, "no answer within 1 seconds"),
        ("127.0.0.1:{open}", None, "no answer within 1 seconds"),
        ("tcp://127.0.0.1:{open}", b"HTTP/1.1 400 Bad Request\r\n\r\n", "what answers is not Dask"),
        ("head", None, "missing port number"),
        ("carrier-pigeon://head:8786", None, "unknown address scheme"),
        ("", None, "missing port number"),
    ],
)
def test_a_scheduler_that_does_not_answer_is_told_before_anything_is_claimed(address, answer, why, spec, monkeypatch):
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 1.0)
    stack: list = []
    with socket.create_server(("127.0.0.1", 0)) as once:
        closed = once.getsockname()[1]
    address = address.format(closed=closed, open=_listening(answer, stack))
    began = threading.active_count()
    with pytest.raises(cluster.ClusterError) as caught:
        _sweep(spec, scheduler=address)
    assert str(caught.value).startswith("scheduler must be the address of a Dask scheduler that answers, as in tcp://")
    assert f"got {address!r}: " in str(caught.value) and why in str(caught.value) and "\n" not in str(caught.value)
    assert not spec.work.exists() and not spec.record.exists()
    assert threading.active_count() <= began
    for one in stack:
        one.close()


def test_without_distributed_the_extra_is_named(spec, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert cli.main(["sweep", str(spec.path), "--scheduler", "tcp://head:8786"]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and "isa[cluster]" in printed.err
    assert not spec.work.exists()


# --- a cluster within this process -----------------------------------------------------------------------------------


INSIDE = {"processes": False, "protocol": "tcp", "host": "127.0.0.1"}
INSIDE |= {"dashboard_address": "127.0.0.1:0", "worker_dashboard_address": "127.0.0.1:0"}


@pytest.fixture(scope="module")
def inside() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, **INSIDE) as started:
        yield started


@pytest.fixture
def scheduler(inside, monkeypatch) -> str:
    monkeypatch.setattr(cluster, "_POLL_SECONDS", 0.05)
    monkeypatch.setattr(cluster, "_ANSWER_SECONDS", 300.0)
    return inside.scheduler_address


def test_a_worker_is_no_scheduler(inside, spec):
    address = inside.workers[0].address
    with pytest.raises(cluster.ClusterError, match="a Worker of Dask answers"):
        _sweep(spec, scheduler=address)


def test_the_command_sweeps_on_a_cluster_and_trains_nothing_twice(scheduler, spec, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "_check_device", lambda name, here: None if not here else pytest.fail("checked here"))
    assert cli.main(["sweep", str(spec.path), "--tier", "1", "--scheduler", scheduler, "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    lines = printed.out.splitlines()
    assert sum("trains on" in line for line in lines) == 2 and lines[-1].endswith("4 of 4 runs recorded")
    rows = read_records(spec.record)
    assert {row["hash"]: without_times(row) for row in rows} == _alone(tmp_path / "alone", tier=1)
    again = _sweep(spec, tier=1, scheduler="tcp://nowhere:1")  # nothing is left to ask a scheduler for
    assert not again.missing and sorted(again.column("hash")) == sorted(row["hash"] for row in rows)
    assert not list(spec.work.glob("checkpoints/*"))


def _failing(monkeypatch, fails: Callable[[Run], bool]) -> None:
    original = engine.fit

    def fit(runs, *arguments, **options):
        if any(map(fails, runs)):
            raise TimeoutError("a bad\nday")
        return original(runs, *arguments, **options)

    monkeypatch.setattr(engine, "fit", fit)


def test_an_error_of_one_run_stops_no_other(scheduler, spec, monkeypatch, capsys):
    bad = spec.runs()[1]
    _failing(monkeypatch, lambda run: run == bad)
    assert cli.main(["sweep", str(spec.path), "--scheduler", scheduler]) == 1
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert f"1 of 9 runs could not be trained, and the same command tries them again; the first is {bad.key}: " in (
        printed.err
    )
    assert "TimeoutError: a bad day (on tcp://127" in printed.err
    assert f"{bad.key}  FAILED: TimeoutError: a bad day" in printed.out
    assert {record["hash"] for record in read_records(spec.record)} == {run.hash for run in spec.runs()} - {bad.hash}
    monkeypatch.undo()
    assert len(_sweep(spec, scheduler=scheduler)) == 9


def test_workers_on_which_nothing_succeeds_are_left_out(scheduler, spec, monkeypatch):
    _failing(monkeypatch, lambda run: True)
    said = []
    with pytest.raises(cluster.ClusterError, match=r"no worker of the cluster can train what is left; .* was left out"):
        _sweep(spec, scheduler=scheduler, report=said.append)
    assert sum("FAILED" in line for line in said) == 2 * cluster._MOST_FAILURES < 9
    assert sum("LEFT OUT: 3 runs in a row failed on it, the last with TimeoutError" in line for line in said) == 2
    assert not spec.record.exists()


def test_workers_without_the_device_are_left_out(scheduler, spec):
    with pytest.raises(cluster.ClusterError, match=r"no worker of the cluster can train what is left; tcp://127.*"):
        _sweep(spec, scheduler=scheduler, device="cuda:99")


def test_a_worker_of_another_version_says_so(inside, spec):
    run = spec.runs()[0]
    options = {"device": None, "cache_dir": None, "models": None}
    with Client(inside.scheduler_address, set_as_default=False) as client:
        task = client.submit(cluster._work, {"0" * 16: run.to_dict()}, None, options, float("inf"), pure=False)
        with pytest.raises(ValueError, match=f"the worker's version of isa knows {run.key} by another hash than 0000"):
            task.result(60)


def test_runs_go_on_from_checkpoints_in_the_sweeps_folder(scheduler, tmp_path, monkeypatch):
    text = SPEC.replace("steps: 6", "steps: 60").replace("seeds: 2}", "seeds: 1}")
    whole = _alone(tmp_path / "alone", text, tier=1)
    spec = Spec.read(write_spec(tmp_path, text))
    original, starts = engine.fit, []

    def interrupted(runs, dataset, **options):
        options |= {"checkpoint_every": 20, "checkpoint_seconds": 0}
        starts.append(engine.checkpoint_step(options["checkpoints"], runs[0]))
        asked = options.pop("callback")

        def callback(step, terms):
            asked(step, terms)
            if len(starts) <= 2:
                raise RuntimeError("the lights went out")

        return original(runs, dataset, **options, callback=callback)

    monkeypatch.setattr(engine, "fit", interrupted)
    with pytest.raises(cluster.ClusterError, match="2 of 2 runs could not be trained"):
        _sweep(spec, tier=1, scheduler=scheduler)
    records = _sweep(spec, tier=1, scheduler=scheduler)
    assert starts == [0, 0, 40, 40]
    assert {record["hash"]: without_times(record) for record in records} == whole


def test_workers_that_do_not_see_the_folder_train_without_checkpoints(scheduler, spec, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster._Sweep, "_identify", lambda self: "another folder")
    said = []
    records = _sweep(spec, tier=1, scheduler=scheduler, report=said.append)
    assert {record["hash"]: without_times(record) for record in records} == _alone(tmp_path / "alone", tier=1)
    assert sum("does not see the sweep's folder" in line for line in said) == 2
    assert not (spec.work / "checkpoints").exists()
    assert len(list((tmp_path / "portraits").iterdir())) == 4
    with pytest.raises(cluster.ClusterError, match="models are to be kept, and it does not see"):
        _sweep(spec, scheduler=scheduler, keep_models=True)


def test_models_are_kept_where_the_sweep_keeps_them(scheduler, spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run, *_) = spec.runs(1)
    _sweep(Spec.read("tiny.yaml").grid(beta=1, seeds=1), scheduler=scheduler, keep_models=True)
    again, model, _ = results.load_model(tmp_path / "work/tiny/models" / run.key)
    assert again == run and not model.training


def test_a_budget_starts_nothing_that_would_not_be_done(scheduler, spec, monkeypatch):
    records = list(_sweep(spec, tier=1, scheduler=scheduler))
    for record in records:
        record["train_seconds"], record["evaluation_seconds"] = 6000.0, 5.0
    spec.record.unlink()
    sweep._append(spec.record, records)
    monkeypatch.setattr(engine, "fit", lambda *a, **k: pytest.fail("a run is started"))
    assert len(_sweep(spec.grid(beta=[1, 4], seeds=4), scheduler=scheduler, budget=6004)) == 4


def test_a_run_of_unknown_speed_is_stopped_once_it_is_seen_to_be_too_slow(scheduler, spec, monkeypatch):
    monkeypatch.setattr(engine, "_COMPILE_FROM", 10**9)
    said = []
    own = spec.grid(beta=1, steps=10**6, seeds=2)
    assert len(_sweep(own, scheduler=scheduler, budget=60.0, report=said.append)) == 0
    assert sorted(line.split()[-1] for line in said if line.startswith("not in time")) == sorted(
        run.key for run in own.runs()
    )


def test_without_workers_a_sweep_waits_for_its_budget(spec, monkeypatch):
    with LocalCluster(n_workers=0, **INSIDE) as empty:
        said = []
        assert len(_sweep(spec, scheduler=empty.scheduler_address, budget=0.2, report=said.append)) == 0
        assert said == ["there is no worker; waiting for one"]


def test_what_another_sweep_trains_is_left_to_it(scheduler, spec):
    runs = spec.runs(1)
    claim = filelock.FileLock(packs.Claim(spec, runs[1]).path, thread_local=False)
    Path(claim.lock_file).parent.mkdir(parents=True)
    claim.acquire()
    done = []
    thread = threading.Thread(target=lambda: done.append(_sweep(spec, tier=1, scheduler=scheduler)))
    thread.start()
    _until(lambda: len(read_records(spec.record)) == 3)
    time.sleep(0.2)
    assert {record["hash"] for record in read_records(spec.record)} == {run.hash for run in runs} - {runs[1].hash}
    claim.release()
    thread.join(300)
    assert len(done[0]) == 4


def test_a_sweep_that_ends_early_frees_its_workers_and_claims(scheduler, inside, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_COMPILE_FROM", 10**9)
    short, long = (
        "{objective: beta-vae, beta: 1, seeds: 2}",
        "{objective: beta-vae, beta: 2, steps: 1000000, seeds: 2}",
    )
    spec = Spec.read(write_spec(tmp_path, f"{SPEC[: SPEC.index('tiers')]}tiers: {{1: [{short}, {long}]}}"))

    def stop(line: str) -> None:
        if "MIG" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _sweep(spec, scheduler=scheduler, report=stop)
    assert sum(one.in_progress for one in sweep.status(spec)) == 0
    _until(lambda: not cluster._alone.locked())
    _until(lambda: not any(worker.state.executing for worker in inside.workers.values()))


def test_two_runs_of_one_course_train_once(scheduler, spec, monkeypatch):
    starts = watch_starts(monkeypatch, "total_steps")
    assert len(_sweep(spec.grid(steps=[6, 12], beta=1), scheduler=scheduler)) == 2
    assert starts == [(12, 0)]
    assert not list(spec.work.glob("checkpoints/*"))


def test_packs_are_as_large_as_asked_and_halved_where_they_do_not_fit(scheduler, spec, monkeypatch):
    original, sizes = engine.fit, []

    def small_memory(runs, *arguments, **options):
        sizes.append(len(runs))
        if len(runs) > 2:
            raise torch.OutOfMemoryError("no memory")
        return original(runs, *arguments, **options)

    monkeypatch.setattr(engine, "fit", small_memory)
    with pytest.warns(sweep.RecordsWarning, match="4 runs at once do not fit; 2 are tried"):
        records = _sweep(spec, scheduler=scheduler, pack=4)
    assert len(records) == 9 and 4 in sizes
    assert {record["pack_size"] for record in records} <= {1, 2}


def _sweeping(spec: Spec, said: list[str]) -> cluster._Sweep:
    options = {"device": None, "cache_dir": None, "models": None}
    return cluster._Sweep(None, packs.plan([spec], None), options, None, float("inf"), said.append)


def test_a_gpu_takes_packs_unless_another_size_is_asked_for(spec):
    said = []
    sweeping = _sweeping(spec, said)
    for gpu, pack, size in ((True, None, 18), (False, None, 1), (True, 3, 3), (False, 3, 3)):
        sweeping.pack = pack
        worker = cluster._Worker("tcp://worker")
        sweeping._welcome(worker, cluster._Introduction("device", gpu, True))
        assert worker.size == size and worker.out is None


def test_a_run_that_ends_its_workers_is_given_up_unless_it_gets_on(spec, monkeypatch):
    said = []
    sweeping = _sweeping(spec, said)
    run = spec.runs()[0]
    steps = iter([0, 0, 3, 3, 3])
    monkeypatch.setattr(packs, "steps_done", lambda spec, run: next(steps))

    def lose(began: int) -> None:
        sweeping._lose(cluster._Worker("tcp://worker", runs=[run], began=[began]))

    for began in (0, 0, 0, 3):
        lose(began)
        assert run.hash in sweeping.left and not sweeping.failed
    assert len(said) == 4 and all("to be trained on another" in line for line in said)
    lose(3)
    assert run.hash not in sweeping.left
    assert sweeping.failed == {run.key: "3 workers in a row were lost with it"}


# --- SLURM -----------------------------------------------------------------------------------------------------------

SBATCH = """\
#!{bash}
if [ "$1" = --test-only ]; then
  grep -q -- '--partition=none' "$2" && {{ echo "sbatch: error: invalid partition" >&2; exit 1; }}
  exit 0
fi
cp "$1" "{folder}/$$.sh"
setsid {bash} "{folder}/$$.sh" > "{folder}/$$.log" 2>&1 &
echo "Submitted batch job $!"
"""
SCANCEL = "#!{bash}\necho $1 >> {folder}/cancelled\nkill -- -$1\n"


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Callable[[list[str]], int]:
    """``runs/slurm.py`` on a machine whose ``sbatch`` runs a job at once in the background."""
    if shutil.which("setsid") is None:
        pytest.skip("a job needs a process group of its own, which setsid gives on Linux")
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in (("sbatch", SBATCH), ("scancel", SCANCEL)):
        path = folder / name
        path.write_text(text.format(bash=shutil.which("bash"), folder=folder))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("DASK_DISTRIBUTED__WORKER__PRELOAD", json.dumps([str(TESTS / "tiny_sweep.py")]))
    (tmp_path / "runs").mkdir()
    shutil.copy(ROOT / "runs" / "slurm.py", tmp_path / "runs")
    monkeypatch.syspath_prepend(tmp_path / "runs")
    monkeypatch.delitem(sys.modules, "slurm", raising=False)
    import slurm

    return slurm.main


def test_slurm_jobs_sweep(slurm, spec, tmp_path, capsys):
    options = ["--jobs", "1", "--cores", "1", "--interface", "lo", "--memory", "4GB", "--sbatch", "gpus=1"]
    assert slurm([*options, "--setup", "export TINY=1", "--", str(spec.path), "--tier", "1"]) == 0
    assert capsys.readouterr().out.endswith("4 of 4 runs recorded\n")
    rows = read_records(spec.record)
    assert {row["hash"]: without_times(row) for row in rows} == _alone(tmp_path / "alone", tier=1)
    (script,) = (tmp_path / "slurm").glob("*.sh")
    lines = script.read_text().splitlines()
    assert {"#SBATCH --gpus=1", "#SBATCH --cpus-per-task=1", "#SBATCH -t 12:00:00", "export TINY=1"} <= set(lines)
    assert lines.index("export TINY=1") < next(i for i, line in enumerate(lines) if "dask_worker" in line)
    _until((tmp_path / "slurm" / "cancelled").exists)


def test_slurm_jobs_that_are_not_taken_are_told_before_anything_begins(slurm, spec, capsys):
    assert slurm(["--script", "--interface", "lo", "--sbatch", "partition=gpu", "--", str(spec.path)]) == 0
    assert "#SBATCH --partition=gpu" in capsys.readouterr().out
    for options, sentence in (
        (["--sbatch", "partition=none"], "sbatch takes no such job: sbatch: error: invalid partition"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
    ):
        with pytest.raises(SystemExit) as caught:
            slurm(["--interface", "lo", *options, "--", str(spec.path)])
        assert caught.value.code == 2 and sentence in capsys.readouterr().err
    assert not spec.work.exists()
