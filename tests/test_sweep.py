"""Sweeps: specifications, records, resuming, claims, budget, and what bad input is told."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import filelock
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_sweep import DATASET, SPEC, watch_starts, without_times, write_spec

from isa import _files, cli, isa_prior, sweep, training
from isa.latents import Portrait
from isa.sweep import COLUMNS, Records, RecordsWarning, Spec, read_records, status
from isa.training import Run, train

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def spec(tmp_path) -> Spec:
    return Spec.read(write_spec(tmp_path))


def _sweep(spec: Spec, **options) -> Records:
    return sweep.sweep(spec, **({"device": "cpu", "progress": False} | options))


# --- specifications --------------------------------------------------------------------------------------------------


def test_a_grid_stands_for_every_combination(spec):
    assert {tier: len(runs) for tier, runs in spec.tiers.items()} == {1: 4, 2: 5}
    first = [(run.objective, run.beta, run.seed) for run in spec.runs(1)]
    assert first == [("beta-vae", 1, 0), ("beta-vae", 4, 0), ("beta-vae", 1, 1), ("beta-vae", 4, 1)]
    assert len({run.hash for run in spec.runs()}) == len(spec.runs()) == 9
    assert all(run.dataset == "cars3d" and run.steps == 6 for run in spec.runs())
    assert spec.runs(2) == spec.runs()
    assert {run.subspaces for run in spec.tiers[2] if run.objective == "isa-vae"} == {(2, 1)}


def test_a_run_stands_in_the_first_tier_that_names_it(tmp_path):
    text = SPEC.replace("beta: [1, 4], seeds: 3", "beta: [4, 1, 4], seed: [0, 5]")
    spec = Spec.read(write_spec(tmp_path, text))
    assert [(run.beta, run.seed) for run in spec.tiers[2] if run.objective == "beta-vae"] == [(4, 5), (1, 5)]


def test_lists_of_lists_give_several_layouts_and_a_list_gives_one(spec):
    runs = spec.grid(objective="isa-vae", subspaces=[[2, 1], [1, 2]], p1=[1.5, 2.5]).runs()
    assert {(run.subspaces, run.p1) for run in runs} == {((2, 1), (1.5, 2.5)), ((1, 2), (1.5, 2.5))}
    runs = spec.grid(objective="isa-vae", subspaces=[1, 1, 1], p1=[[1, 2, 3], 4], seed=7).runs()
    assert {(run.p1, run.seed) for run in runs} == {((1.0, 2.0, 3.0), 7), (4.0, 7)}


def test_a_grid_of_ones_own_keeps_what_is_shared_and_where_it_is_recorded(spec):
    own = spec.grid(beta=[1, 7], steps=9)
    assert (own.record, own.title) == (spec.record, spec.title)
    assert [(run.beta, run.steps, run.batch_size) for run in own.runs()] == [(1, 9, 16), (7, 9, 16)]


BAD = {
    "unknown key": ("beta: [1, 4]", "bta: [1, 4]", "tier 1, grid 1: a grid has the unknown key 'bta'; allowed are"),
    "key of the whole": ("title:", "titel:", "a specification has the unknown key 'titel'; allowed are title, every"),
    "empty list": ("beta: [1, 4], seeds: 2", "beta: [], seeds: 2", "tier 1, grid 1: beta is an empty list"),
    "beta": ("beta: [1, 4], seeds: 2", "beta: [1, -1]", "tier 1, grid 1: beta must be .*, got -1"),
    "text for a number": ("steps: 6", "steps: 6, learning_rate: 1e-4", "learning_rate must be a number, got '1e-4'"),
    "no seeds": ("seeds: 2", "seeds: 0", "seeds must be a number of seeds from 1 to 10,000, got 0"),
    "seed and seeds": ("seeds: 2", "seeds: 2, seed: 1", "seed and seeds exclude each other"),
    "tier": ("  1:", "  one:", "a tier must have a number from 1 on, got 'one'"),
    "no grids": (
        "  1:\n    - {objective: beta-vae, beta: [1, 4], seeds: 2}",
        "  1: []",
        "tier 1 must be a list of grids",
    ),
    "mapping for a value": ("beta: [1, 4], seeds: 2", "beta: {a: 1}", "beta must be a value or a list of values"),
    "nested list": ("beta: [1, 4], seeds: 2", "beta: [[1, 4]]", "beta must be a value or a list of values"),
    "no title": ("title: Runs that take milliseconds", "title: 3", "title must be a line of text, got 3"),
    "twice": ("seeds: 2", "seeds: 2, seeds: 3", "'seeds' is given twice"),
    "alias": ("seeds: 2", "seeds: &n 2, seed: *n", "aliases such as \\*n are not allowed"),
    "no YAML": ("tiers:", "tiers: [", "is no YAML that can be read"),
    "object": ("seeds: 2", "seeds: !!python/object/apply:os.getcwd []", "is no YAML that can be read"),
    "too many": ("beta: [1, 4], seeds: 2", f"beta: [{'1, ' * 999}2], seeds: 999", "at most 10,000 runs"),
    "other data set": ("dataset: cars3d", "dataset: mnist", "dataset must be one of .*, got 'mnist'"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_specification_is_refused_in_one_sentence(kind, tmp_path, capsys):
    old, new, sentence = BAD[kind]
    assert old in SPEC
    path = write_spec(tmp_path, SPEC.replace(old, new, 1))
    with pytest.raises(ValueError, match=sentence) as caught:
        Spec.read(path)
    assert str(path) in str(caught.value)
    for command in ("sweep", "status"):
        assert cli.main([command, str(path)]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("isa: error: ")
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.yaml"]


def test_files_that_are_no_specification_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"must be a \.yaml file"):
        Spec.read(tmp_path / "tiny.csv")
    with pytest.raises(FileNotFoundError):
        Spec.read(tmp_path / "none.yaml")
    path = write_spec(tmp_path, "a: " + "[" * 5000)
    with pytest.raises(ValueError, match="is no YAML that can be read"):
        Spec.read(path)
    path.write_bytes(b"title: \xff")
    with pytest.raises(ValueError, match=str(path)):
        Spec.read(path)
    path.write_text("#" * 100_001)
    with pytest.raises(ValueError, match="at most 100,000 bytes"):
        Spec.read(path)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**20) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(("beta", "seeds", "p1", "x")), inner),
    max_leaves=6,
)


@given(every=PLAIN, grid=PLAIN, name=st.sampled_from(("beta", "seeds", "subspaces", "prior", "scale", "steps")))
def test_any_yaml_is_a_specification_or_one_sentence(every, grid, name, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "tiny.yaml"
    held = yaml.safe_load(SPEC)
    held["every"] = every
    held["tiers"][1][0][name] = grid
    path.write_text(yaml.safe_dump(held))
    try:
        spec = Spec.read(path)
    except ValueError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert spec.runs()


def specifications() -> list[Path]:
    return [path for path in sorted((ROOT / "runs").glob("*.yaml")) if "tiers" in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize("path", specifications(), ids=lambda path: path.stem)
def test_committed_specifications_and_records_are_whole(path):
    spec = Spec.read(path)
    named = {run.hash for run in spec.runs()}
    for record in read_records(spec.record):
        assert record["hash"] in named, f"{record['key']} is recorded in {spec.record} and named by nothing"
        assert "-dirty" not in record["commit"], f"{record['key']} was made by code that was not committed"
        run = Run.from_dict({name: record[name] for name in sweep._RUN_FIELDS if record[name] is not None})
        assert record["total_steps"] == run.total_steps and record["reduced"] == run.reduced


def test_the_papers_runs_are_all_named():
    spec = Spec.read(ROOT / "runs/dsprites.yaml")
    betas = [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6]
    for objective, values in [("beta-vae", betas), ("isa-vae", betas), ("beta-tcvae", betas[1:])]:
        runs = [run for run in spec.runs() if run.objective == objective and run.epochs == 20]
        assert {(run.beta, run.seed) for run in runs} == {(beta, seed) for beta in values for seed in range(50)}
    gammas = {(run.beta, run.seed) for run in spec.runs() if run.objective == "factor-vae"}
    assert gammas == {(gamma, seed) for gamma in range(1, 11) for seed in range(50)}
    assert not any(run.reduced for run in spec.runs())
    tier = [run for run in spec.runs(1) if run.epochs == 20]
    assert {(run.objective, run.seed) for run in tier} == {(o, s) for o in ("beta-vae", "isa-vae") for s in range(10)}
    faces = Spec.read(ROOT / "runs/faces3d.yaml").runs()
    learned = {(run.beta, run.seed) for run in faces if run.learn_exponents}
    assert learned == {(beta, seed) for beta in (0.5, 1, 2, 3, 4, 5) for seed in range(15)}
    cars = Spec.read(ROOT / "runs/cars3d.yaml").runs()
    assert {run.seed for run in cars} == set(range(35)) and all(run.source for run in cars)


def test_the_controls_gaussian_has_the_isa_priors_variance():
    (scale,) = {run.scale for run in Spec.read(ROOT / "runs/dsprites-controls.yaml").runs() if run.prior == "2[20]"}
    assert scale / 2 == pytest.approx(isa_prior().variance[0].item(), rel=1e-5)


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_sweep_trains_what_is_missing_and_nothing_twice(spec, monkeypatch):
    said = []
    records = _sweep(spec, tier=1, report=said.append)
    assert len(records) == records.wanted == 4 and not records.missing
    assert [line.split()[0] for line in said] == [run.key for run in spec.runs(1)]
    monkeypatch.setattr(training, "train_pack", lambda *a, **k: pytest.fail("a recorded run is trained again"))
    assert _sweep(spec, tier=1).rows == records.rows
    partial = _sweep(spec, budget=0)
    assert partial.rows == records.rows
    assert partial.missing == spec.tiers[2]


def test_a_record_is_what_training_alone_gives(spec):
    records = _sweep(spec, tier=1)
    for run, record in zip(spec.runs(1), records, strict=True):
        alone = train(run, dataset=DATASET, device="cpu").record
        for name, value in without_times(alone).items():
            if isinstance(value, float):
                assert record[name] == pytest.approx(value, rel=1e-8), name
            elif isinstance(value, list) and value and not isinstance(value[0], str):
                np.testing.assert_allclose(record[name], value, rtol=1e-8, err_msg=name)
            else:
                assert record[name] == value, name
    with open(spec.record, newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[0] == list(COLUMNS) and len(lines) == 5


def test_every_run_leaves_its_portrait_and_its_model_where_that_is_asked_for(spec):
    records = _sweep(spec, tier=1, keep_models=True)
    for record in records:
        portrait = Portrait.load(spec.path.parent / "portraits" / f"{record['key']}.npz")
        assert portrait.about["hash"] == record["hash"]
        run, _, _ = training.load_model(spec.work / "models" / record["key"])
        assert run.hash == record["hash"]


def test_records_come_back_as_they_were_written(tmp_path):
    run = Run(objective="isa-vae", subspaces=(3, 2), p1=(1.9, 2.1 + 1e-15), scale="unit" and 1.25, beta=0.1 + 0.2)
    record = {
        **dict.fromkeys(COLUMNS),
        **run.to_dict(),
        "hash": run.hash,
        "key": run.key,
        "status": "trained",
        "total_steps": 9,
        "pack_size": 1,
        "train_seconds": 1.5,
        "evaluation_seconds": 0.5,
        "log_likelihood": -20.25,
        "mig": 1 / 3,
        "factors": ["size", "x"],
        "mig_size": 0.25,
        "mig_x": 1e-7,
        "mutual_information": [[0.1, 2 / 3], [1e-300, 0.0]],
        "versions": {"torch": '2,"13'},
        "device": "a, b\nc",
    }
    path = tmp_path / "table.csv"
    sweep._append(path, [record])
    (back,) = read_records(path)
    assert back["beta"] == 0.1 + 0.2 and back["p1"] == [1.9, 2.1 + 1e-15]
    assert back["mig"] == pytest.approx(1 / 3, rel=1e-8) and (back["mig_size"], back["mig_x"]) == (0.25, 1e-7)
    assert back["mutual_information"] == [[0.1, 0.666666667], [1e-300, 0.0]]
    assert back["versions"] == {"torch": '2,"13'} and back["device"] == "a, b c"
    held = path.read_bytes()
    sweep._append(path, [back])
    assert path.read_bytes() == held
    with pytest.raises(ValueError, match="finite"):
        sweep._append(path, [{**record, "hash": "other", "elbo": float("nan")}])
    assert path.read_bytes() == held


def test_a_torn_last_line_is_left_aside_and_then_replaced(spec, capsys):
    whole = _sweep(spec, tier=1).rows
    held = spec.record.read_bytes()
    for cut in (1, 40, len(held.splitlines(True)[-1]) - 1):
        spec.record.write_bytes(held[:-cut])
        with pytest.warns(RecordsWarning, match="its last line is cut off"):
            assert read_records(spec.record) == whole[:3]
    assert cli.main(["sweep", str(spec.path), "--tier", "1", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert read_records(spec.record)
    assert printed.err.count("isa: warning: ") == 1 and "cut off" in printed.err
    assert [without_times(record) for record in read_records(spec.record)] == [
        without_times(record) for record in whole
    ]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda lines: [lines[0], lines[1].rsplit(",", 5)[0], *lines[2:]], "line 2 is no record: it has .* cells"),
        (lambda lines: [*lines[:3], "<<<<<<< ours", *lines[3:]], "line 4 is no record"),
        (
            lambda lines: [lines[0], lines[1].replace("beta-vae,1.0", "beta-vae,2.0"), *lines[2:]],
            "its fields are those",
        ),
        (lambda lines: lines[1:], "line 1 is no record: its columns"),
        (lambda lines: [lines[0], lines[1].replace(",1000.0,", ",1000.,"), *lines[2:]], "line 2 is no record"),
    ],
)
def test_a_damaged_table_is_told_by_line_and_left_as_it_is(damage, sentence, spec, capsys):
    _sweep(spec, tier=1)
    lines = spec.record.read_text().splitlines()
    spec.record.write_text("".join(f"{line}\n" for line in damage(lines)))
    held = spec.record.read_bytes()
    with pytest.raises(ValueError, match=sentence):
        read_records(spec.record)
    assert cli.main(["sweep", str(spec.path), "--device", "cpu"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert spec.record.read_bytes() == held


def test_a_line_twice_counts_once_as_git_may_leave_it(spec):
    rows = _sweep(spec, tier=1).rows
    held = spec.record.read_text()
    spec.record.write_text(held + held.splitlines(True)[2])
    assert read_records(spec.record) == rows


def test_an_older_table_without_a_column_is_read_and_completed(spec):
    rows = _sweep(spec, tier=1).rows
    with open(spec.record, newline="", encoding="utf-8") as file:
        cells = [line[:-1] for line in csv.reader(file)]
    with open(spec.record, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(cells)
    last = COLUMNS[-1]
    assert read_records(spec.record) == [{k: v for k, v in row.items() if k != last} for row in rows]
    assert len(_sweep(spec)) == 9
    assert spec.record.read_text().splitlines()[0] == ",".join(COLUMNS)


def test_records_are_selected_by_fields_and_so_is_what_is_missing(spec):
    records = _sweep(spec, tier=1)
    records = _sweep(spec, budget=0)
    assert repr(records) == "<4 of 9 runs recorded>"
    chosen = records.select(objective="beta-vae", beta=[1, 9])
    assert [(row["beta"], row["seed"]) for row in chosen] == [(1, 0), (1, 1)]
    assert [(run.beta, run.seed) for run in chosen.missing] == [(1, 2)]
    assert len(records.select(subspaces=[(2, 1)]).missing) == len(records.select(objective="isa-vae").missing) == 3
    assert records.select(status="trained").missing == ()
    np.testing.assert_array_equal(records.column("beta"), [1, 4, 1, 4])
    assert records.column("mutual_information").shape[0] == 4
    assert records.column("key").tolist() == [run.key for run in spec.runs(1)]
    assert records.command.startswith("isa sweep ") and records.command.endswith("tiny.yaml")
    with pytest.raises(KeyError, match="'nothing' is no column"):
        records.select(nothing=1)
    with pytest.raises(KeyError, match="no record has 'nothing'"):
        records.column("nothing")
    assert len(records.select(beta=77)) == 0 and records.select(beta=77).column("mig").shape == (0,)


def test_a_run_that_diverges_is_recorded_and_spoils_no_other(spec):
    own = spec.grid(learning_rate=[1e-3, 1e30], beta=1)
    records = _sweep(own)
    assert sorted(record["status"] for record in records) == ["diverged", "trained"]
    bad = records.select(status="diverged")[0]
    assert bad["diverged_at"] is not None and bad["mig"] is None
    assert np.isnan(records.select(status="diverged").column("mig")).all()
    assert [row.diverged for row in status(own)] == [1]


# --- resuming, claims, budget ----------------------------------------------------------------------------------------


class _Killed(BaseException):
    pass


def test_an_interrupted_sweep_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    text = SPEC.replace("steps: 6", "steps: 60").replace("seeds: 2}", "seeds: 1}")
    whole = _sweep(Spec.read(write_spec(tmp_path, text)), tier=1).rows
    other = tmp_path / "other"
    other.mkdir()
    spec = Spec.read(write_spec(other, text))
    original = training.train_pack
    seen = []

    def interrupted(runs, **options):
        options |= {"checkpoint_every": 10, "checkpoint_seconds": 0}

        def callback(step, terms):
            seen.append(step)
            if step >= 25 and len(seen) < 4:
                raise _Killed

        return original(runs, **options, callback=callback)

    monkeypatch.setattr(training, "train_pack", interrupted)
    with pytest.raises(_Killed):
        _sweep(spec, tier=1)
    assert not spec.record.exists()
    assert list((spec.work / "checkpoints").glob("*.checkpoint.safetensors"))
    seen += [0] * 4
    rows = _sweep(spec, tier=1).rows
    assert 20 in seen  # the first look after going on
    assert [without_times(row) for row in rows] == [without_times(row) for row in whole]
    assert not list((spec.work / "checkpoints").iterdir())


def test_a_checkpoint_that_cannot_be_read_is_moved_away(spec):
    run = spec.runs()[0]
    path = training._checkpoint(spec.work / "checkpoints", run)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"torn")
    with pytest.warns(RecordsWarning, match="starts anew"):
        assert len(_sweep(spec, tier=1)) == 4
    assert [file.name for file in path.parent.iterdir()] == [f"{path.name}.unreadable"]


def test_a_longer_run_takes_over_the_checkpoint_of_a_shorter_one(spec, monkeypatch):
    own = spec.grid(steps=[6, 12], beta=1)
    starts = watch_starts(monkeypatch, "total_steps")
    _sweep(own)
    assert starts == [(6, 0), (12, 6)]
    assert not list((spec.work / "checkpoints").iterdir())


def test_what_another_sweep_trains_is_left_to_it(spec):
    runs = spec.runs(1)
    claim = filelock.FileLock(sweep._Claim(spec, runs[1]).path, thread_local=False)
    Path(claim.lock_file).parent.mkdir(parents=True)
    claim.acquire()
    assert [row.in_progress for row in status(spec)] == [1, 0]
    done = []
    thread = threading.Thread(target=lambda: done.append(_sweep(spec, tier=1)))
    thread.start()
    while len(read_records(spec.record)) < 3:
        assert thread.is_alive()
        time.sleep(0.05)
    time.sleep(0.2)
    assert {record["hash"] for record in read_records(spec.record)} == {run.hash for run in runs} - {runs[1].hash}
    claim.release()  # as when its process ends, however it does
    thread.join(60)
    assert len(done[0]) == 4
    assert [row.in_progress for row in status(spec)] == [0, 0]


def _start(spec: Spec, seconds: float = 0.0) -> subprocess.Popen:
    command = [sys.executable, str(ROOT / "tests" / "tiny_sweep.py"), "sweep", str(spec.path), "--device", "cpu"]
    environment = {**os.environ, "TINY_SWEEP_SECONDS": str(seconds)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_sweeps_share_the_runs_and_a_killed_one_leaves_its_own_to_the_next(spec, tmp_path):
    first, second = _start(spec, 0.3), _start(spec, 0.3)
    while not spec.record.exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert "9 of 9 runs recorded" in out
    records = read_records(spec.record)
    assert sorted(record["hash"] for record in records) == sorted(run.hash for run in spec.runs())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        undisturbed = tmp_path / "undisturbed"
        undisturbed.mkdir()
        again = {record["hash"]: record for record in _sweep(Spec.read(write_spec(undisturbed)))}
    for record in records:
        assert without_times(record) == without_times(again[record["hash"]])


def test_a_budget_starts_nothing_that_would_not_be_done(spec, monkeypatch):
    _sweep(spec, tier=1)
    records = read_records(spec.record)
    for record in records:
        record["train_seconds"], record["evaluation_seconds"] = 6000.0, 5.0
    spec.record.unlink()
    sweep._append(spec.record, records)
    left = status(spec)[1]
    assert left.seconds is None  # the ISA prior's runs are of a kind that is not recorded
    beta_vae = spec.grid(beta=[1, 4], seeds=4)
    assert status(beta_vae)[0].seconds == pytest.approx(4 * 6005)
    monkeypatch.setattr(training, "train_pack", lambda *a, **k: pytest.fail("a run is started"))
    assert len(_sweep(beta_vae, budget=6004)) == 4
    with pytest.raises(ValueError, match="budget must be a number of seconds, at least 0, got -1"):
        _sweep(spec, budget=-1)


def test_a_run_of_unknown_speed_is_stopped_once_it_is_seen_to_be_too_slow(spec, monkeypatch):
    monkeypatch.setattr(training, "_COMPILE_FROM", 10**9)
    own = spec.grid(beta=1, steps=10**6, seeds=2)
    said = []
    assert len(_sweep(own, budget=2.0, report=said.append)) == 0
    assert len(said) == 2 and all(line.startswith("not in time") for line in said)


def test_runs_of_one_shape_train_as_packs(spec):
    alone = {record["hash"]: record for record in _sweep(spec)}
    spec.record.unlink()
    packed = _sweep(spec, pack=4)
    assert sorted(record["pack_size"] for record in packed) == [2, 2, 3, 3, 3, 4, 4, 4, 4]
    for record in packed:
        assert record["log_likelihood"] == pytest.approx(alone[record["hash"]]["log_likelihood"], rel=1e-5)


def test_a_pack_that_does_not_fit_is_halved(spec, monkeypatch):
    original = training.train_pack
    sizes = []

    def small_memory(runs, **options):
        sizes.append(len(runs))
        if len(runs) > 2:
            raise torch.OutOfMemoryError("no memory")
        return original(runs, **options)

    monkeypatch.setattr(training, "train_pack", small_memory)
    with pytest.warns(RecordsWarning, match="4 runs at once do not fit; 2 are tried"):
        assert len(_sweep(spec, tier=1, pack=4)) == 4
    assert sizes == [4, 2, 2]


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_published_data_must_be_where_they_are_said_to_be(tmp_path, monkeypatch, capsys):
    path = write_spec(tmp_path, SPEC.replace("dataset: cars3d", "dataset: cars3d, source: $TINY_CARS"))
    spec = Spec.read(path)
    assert spec.runs()[0].source == "$TINY_CARS"
    monkeypatch.delenv("TINY_CARS", raising=False)
    assert _sweep(spec, budget=0).wanted == 9  # reading records asks for no data
    assert cli.main(["sweep", str(path)]) == 1
    assert "set TINY_CARS to where the published data lie" in capsys.readouterr().err
    monkeypatch.setenv("TINY_CARS", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"source must be where the published data of cars3d lie, got .*nowhere"):
        _sweep(spec)
    monkeypatch.setenv("TINY_CARS", str(tmp_path))
    records = _sweep(spec, tier=1)
    assert {record["source"] for record in records} == {"$TINY_CARS"}  # no machine's path in a record
    assert str(tmp_path) not in spec.record.read_text()


def test_a_full_disk_is_told_and_loses_nothing(spec, monkeypatch, capsys):
    _sweep(spec, tier=1)
    held = spec.record.read_bytes()
    original = _files.write_atomically

    def full(path, write):
        if path == spec.record:
            raise OSError(28, "No space left on device")
        original(path, write)

    monkeypatch.setattr(_files, "write_atomically", full)
    assert cli.main(["sweep", str(spec.path), "--device", "cpu"]) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "no space left to record in" in printed
    assert spec.record.read_bytes() == held
    monkeypatch.undo()
    assert len(_sweep(spec)) == 9


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--tier", "7"], "tier must be one of 1, 2 in"),
        (["--budget", "-3"], "--budget must be at least 0, got -3"),
        (["--budget", "nan"], "--budget must be at least 0, got nan"),
        (["--pack", "0"], "--pack must be at least 1, got 0"),
        (["--device", "tpu"], "--device must be cpu, cuda or cuda:N, got 'tpu'"),
    ],
)
def test_the_command_refuses_bad_options(arguments, sentence, spec, capsys):
    assert cli.main(["sweep", str(spec.path), *arguments]) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1
    assert not spec.work.exists()


def test_the_commands_print_what_is_done(spec, capsys):
    assert cli.main(["status", str(spec.path), "--device", "cpu"]) == 0
    assert "not known: a kind of run that it has not recorded" in capsys.readouterr().out
    assert cli.main(["sweep", str(spec.path), "--tier", "1", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""  # no terminal, so no bar
    lines = printed.out.splitlines()
    assert len(lines) == 5 and lines[-1].endswith("4 of 4 runs recorded")
    assert cli.main(["status", str(spec.path), "--device", "cpu"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert rows[0].split()[:5] == ["1", "4", "4", "0", "0"] and rows[0].endswith("done")
    assert rows[1].split()[:3] == ["2", "5", "0"]


@pytest.mark.parametrize(("seconds", "text"), [(30, "30 seconds"), (600, "10.0 minutes"), (10_000, "2.8 hours")])
def test_durations_are_said_in_fitting_units(seconds, text):
    assert cli._duration(seconds) == text
    assert cli._duration(86_400 * 3) == "3.0 days"


def test_records_hold_no_text_that_json_cannot(spec):
    for record in _sweep(spec, tier=1):
        json.dumps(record, allow_nan=False)


ABSENT = ("autograd", "dask", "distributed", "IPython", "jupyter_book", "myst_nb", "papermill", "platformdirs")
ABSENT += ("pydantic", "sphinx")


def test_training_needs_no_more_than_a_compute_node_has(tmp_path):
    """A machine that only trains has torch, numpy, scipy, Pillow, matplotlib, PyYAML, safetensors, filelock, tqdm."""
    write_spec(tmp_path)
    program = f"""
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {ABSENT!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, {str(ROOT / "tests")!r})
import tiny_sweep
sys.exit(tiny_sweep.cli.main(["sweep", {str(tmp_path / "tiny.yaml")!r}, "--tier", "1", "--device", "cpu"]))
"""
    environment = {**os.environ, "ISA_CACHE_DIR": str(tmp_path / "cache")}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert "4 of 4 runs recorded" in ran.stdout
