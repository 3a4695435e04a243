"""Nothing is lost when sweeps are disturbed: the soak at a small scale, and one test for each fault that it found."""

from __future__ import annotations

import ast
import csv
import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest
import soak
import torch
from tiny_sweep import DATASET, watch_starts, write_spec

from isa import _files, engine, latents, local, packs, sweep
from isa.sweep import RecordsWarning, Spec, status

ROOT = Path(__file__).resolve().parent.parent

HERE = [fault for fault in soak.FAULTS if fault != "Dask worker killed"]  # which is tests/test_cluster.py's
LEAST = {"killed at a random moment": 8, "killed at a dangerous instant": 10, "disk full": 3, "cache read-only": 3}
"""Disturbances at the least, of others one."""


@pytest.fixture
def spec(tmp_path) -> Spec:
    return Spec.read(write_spec(tmp_path))


@pytest.fixture
def frequent(monkeypatch) -> None:
    """Checkpoints every four steps."""
    monkeypatch.setattr(engine, "fit", partial(engine.fit, checkpoint_every=4))
    monkeypatch.setattr(local, "_CHECKPOINT_SECONDS", 0.0)


def _sweep(spec: Spec, **options) -> sweep.Records:
    return sweep.sweep(spec, **({"device": "cpu", "progress": False} | options))


# --- the soak ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def soaked(tmp_path_factory) -> tuple[dict[str, dict[str, str]], str]:
    """The rows of a small soak by fault, and what it said."""
    table = tmp_path_factory.mktemp("soak") / "soak.csv"
    command = [sys.executable, str(ROOT / "tests" / "soak.py"), "--kills", "8", "--runs", "1", "--output", str(table)]
    command += [part for fault in HERE for part in ("--fault", fault)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert table.exists(), ran.stderr
    with open(table, newline="", encoding="utf-8") as file:
        return {row["fault"]: row for row in csv.DictReader(file)}, ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize("fault", HERE)
def test_disturbed_sweeps_record_every_run_once_and_as_undisturbed_ones(fault, soaked):
    rows, said = soaked
    row = rows[fault]
    if row["skipped"]:
        pytest.skip(row["skipped"])
    problems = [line for line in said.splitlines() if line.startswith(f"PROBLEM: {fault}")]
    assert not problems
    assert int(row["disturbances"]) >= LEAST.get(fault, 1)
    assert int(row["sweeps"]) >= 1 and int(row["runs"]) == 4 * int(row["sweeps"])
    assert row["recorded_once"] == row["equal"] == row["runs"] and row["torn"] == "0"


def test_the_soak_sees_what_is_lost_doubled_changed_or_torn(tmp_path):
    bench = object.__new__(soak.Bench)  # without an undisturbed sweep of its own, which would be forked
    bench.problems, bench.text = [], soak.SPEC.format(seeds=1)

    def swept(name: str) -> soak.Sweep:
        one = soak.Sweep(tmp_path / name, tmp_path, bench.text)
        _sweep(one.spec)
        one.out.write_text("")
        return one

    bench.reference = swept("whole").results()
    assert len(bench.reference) == 4

    def judged(name: str, damage) -> soak.Row:
        one, row = swept(name), soak.Row("a fault")
        damage(one)
        bench.judge(row, one)
        return row

    def rewritten(change):
        def damage(one: soak.Sweep) -> None:
            one.spec.record.write_text(change(one.spec.record.read_text()))

        return damage

    def lines(of):
        return rewritten(lambda text: "".join(of(text.splitlines(True))))

    well = judged("well", lambda one: None)
    assert well.is_well and (well.recorded_once, well.equal, well.runs) == (4, 4, 4)
    assert judged("lost", lines(lambda held: held[:-1])).recorded_once == 3
    assert judged("doubled", lines(lambda held: [*held, held[2]])).recorded_once == 3
    told = judged("told twice", lambda one: one.out.write_text(f"{one.spec.runs()[0].key}  MIG 0.1\n" * 2))
    assert told.recorded_once == 3
    assert judged("changed", rewritten(lambda text: text.replace("threads", "thread", 1))).equal == 3
    assert judged("no portrait", lambda one: one.portraits()[0].unlink()).equal == 3
    assert judged("torn", lambda one: os.truncate(one.portraits()[0], 999)).torn == 1


# --- disks ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def limited() -> Iterator[None]:
    """No file of this process can grow beyond 64 KB."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: _files.save_tensors(path, {"a": torch.zeros(2**16)}, {}),
        lambda path: _files.write_atomically(path, lambda temporary: Path(temporary).write_bytes(bytes(2**17))),
    ],
    ids=["tensors", "bytes"],
)
def test_a_file_that_does_not_fit_is_an_error_that_names_it(write, tmp_path, limited):
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(OSError, match="File too large") as caught:
        write(path)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_portrait_that_does_not_fit_leaves_the_one_before_it(spec, tmp_path, monkeypatch):
    _sweep(spec.grid(beta=1))
    (path,) = (tmp_path / "portraits").iterdir()
    before = path.read_bytes()
    portrait = latents.Portrait.load(path)
    monkeypatch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
    with pytest.raises(OSError, match="No space left") as caught:
        portrait.save(path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_what_can_only_be_read_has_a_status(spec, monkeypatch):
    own = spec.grid(beta=1, seeds=2)
    claim = packs.Claim(spec, own.runs()[0])
    assert claim.acquire()
    claim.release()

    def read_only(self) -> bool:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(packs.Claim, "acquire", read_only)
    assert [(row.runs, row.in_progress) for row in status(own)] == [(2, 0)]


# --- what killed sweeps leave -----------------------------------------------------------------------------------------


def test_what_killed_writers_left_is_removed_after_a_day(spec, tmp_path):
    _sweep(spec.grid(beta=1), keep_models=True)
    work = spec.work
    files = [spec.record, *(tmp_path / "portraits").iterdir(), *(work / "models").glob("*/model.safetensors")]
    files.append(engine.checkpoint_path(work / "checkpoints", spec.runs()[0]))
    assert len(files) == 4
    left = []
    for path in files:

        def killed(temporary: str, path: Path = path) -> None:
            Path(temporary).write_text("half")
            left.append(Path(temporary).rename(f"{temporary}.kept"))  # from what would remove it

        with pytest.raises(FileNotFoundError):
            _files.write_atomically(path, killed)
        left[-1] = left[-1].rename(left[-1].with_suffix(""))
    own_notes = tmp_path / ".notes.backup-20240101"  # of somebody, and old
    own_notes.write_text("of somebody")
    os.utime(own_notes, (0, 0))
    held = {path.name: path.read_bytes() for path in (*files[:3], own_notes)}
    own = spec.grid(beta=1)
    for days, kept in ((0, True), (-2, True), (2, False)):  # of another clock, their age may be less than nothing
        for path in left:
            then = path.stat().st_ctime - 86_400 * days
            os.utime(path, (then, then))
        _sweep(own)
        assert [path.exists() for path in left] == [kept] * 4
    assert {path.name: path.read_bytes() for path in (*files[:3], own_notes)} == held


def _checkpointed(spec: Spec, steps: int, beta: float = 1) -> Path:
    """Train a run, and leave its latest checkpoint, of the step before the last."""
    (run,) = spec.grid(beta=beta, steps=steps).runs()
    folder = spec.work / "checkpoints"
    options = {"dataset": DATASET, "device": "cpu", "evaluation": False}
    engine.train(run, **options, checkpoints=folder, checkpoint_every=steps - 1)
    return engine.checkpoint_path(folder, run)


def test_the_checkpoint_of_a_run_that_was_killed_once_it_was_recorded_is_removed(spec):
    _sweep(spec.grid(beta=1, steps=6))
    path = _checkpointed(spec, 6)
    assert len(_sweep(spec.grid(beta=1, steps=6), budget=0)) == 1
    assert path.exists()  # who reads records writes nothing
    claim = packs.Claim(spec, spec.grid(beta=1, steps=12).runs()[0])
    assert claim.acquire()
    _sweep(spec.grid(beta=1, steps=6))
    assert path.exists()  # a longer run is being trained
    claim.release()
    _sweep(spec.grid(beta=1, steps=6))
    assert not path.exists()


def test_the_checkpoint_of_a_longer_run_outlives_a_shorter_one(spec):
    path = _checkpointed(spec, 12)
    held = path.read_bytes()
    assert len(_sweep(spec.grid(beta=1, steps=6))) == 1
    assert path.read_bytes() == held


def test_of_a_pack_only_the_checkpoint_that_cannot_be_read_is_moved_away(spec, monkeypatch):
    own = spec.grid(beta=[1, 4], steps=12)
    torn, whole = (_checkpointed(spec, 6, beta) for beta in (1, 4))
    os.truncate(torn, 99)
    starts = watch_starts(monkeypatch, "beta")
    with pytest.warns(RecordsWarning, match="starts anew"):
        assert len(_sweep(own, pack=2)) == 2
    assert starts == [(1, 0), (4, 5)]
    assert [path.name for path in torn.parent.iterdir()] == [f"{torn.name}.unreadable"] and not whole.exists()


# --- several sweeps, other clocks -------------------------------------------------------------------------------------


def test_runs_of_one_course_are_never_in_training_at_once(spec):
    own = spec.grid(steps=[6, 12], beta=1)
    short, long = packs.plan([own], None)
    assert short.course == long.course and short.hash != long.hash
    with ExitStack() as first, ExitStack() as second:
        assert packs.claim([short], first) == [short]
        assert packs.claim([long], second) == []
        assert [row.in_progress for row in status(own)] == [1]
    with ExitStack() as second:
        assert packs.claim([long], second) == [long]


@pytest.mark.parametrize("module", ["sweep", "packs", "local", "engine", "results", "latents", "cluster"])
def test_no_clock_of_the_day_is_asked(module):
    """Clocks of the day are set, and differ between machines: durations and deadlines are of others."""
    tree = ast.parse((ROOT / "isa" / f"{module}.py").read_text(encoding="utf-8"))
    asked = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "time"
    }
    assert asked <= {"time.monotonic", "time.perf_counter", "time.sleep"}
    imported = {
        name.name for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom) for name in node.names
    }
    assert not imported & {"datetime", "date"}
