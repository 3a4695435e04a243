"""Sweeps: specifications, records, resuming, claims, budget, and what bad input is told."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import filelock
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tiny_sweep import DATASET, SPEC, watch_starts, without_times, write_spec

from isa import _files, cli, engine, isa_prior, local, packs, results, sweep
from isa.engine import train
from isa.latents import Portrait
from isa.run import Run
from isa.sweep import COLUMNS, Records, RecordsWarning, Spec, read_records, status

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def spec(tmp_path) -> Spec:
    return Spec.read(write_spec(tmp_path))


def _sweep(spec: Spec, **options) -> Records:
    return sweep.sweep(spec, **({"device": "cpu", "progress": False} | options))


def assert_equal(record: dict, alone: dict) -> None:
    """Compare what a table holds with what training alone gives, times apart."""
    for name, value in without_times(alone).items():
        if isinstance(value, float):
            assert record[name] == pytest.approx(value, rel=1e-8), name
        elif isinstance(value, list) and np.asarray(value).dtype.kind == "f":
            np.testing.assert_allclose(record[name], value, rtol=1e-8, err_msg=name)
        else:
            assert record[name] == value, name


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


SEEDS = st.integers(0, 30) | st.tuples(st.integers(0, 30), st.integers(0, 5)).map(lambda r: f"{r[0]}-{r[0] + r[1]}")


@given(seeds=st.lists(SEEDS, min_size=1, max_size=4))
def test_seeds_are_a_number_a_range_or_a_list_of_seeds_and_ranges(seeds, tmp_path_factory):
    named = set()
    for one in seeds:
        first, _, last = str(one).partition("-")
        named |= set(range(int(first), int(last or first) + 1))
    text = SPEC.replace("seeds: 2", f"seeds: [{', '.join(map(str, seeds))}]")
    spec = Spec.read(write_spec(tmp_path_factory.mktemp("seeds"), text))
    assert {run.seed for run in spec.runs(1)} == named and len(spec.runs(1)) == 2 * len(named)
    assert [run.seed for run in spec.grid(seeds="7-9").runs()] == [7, 8, 9]


BAD = {
    "unknown key": ("beta: [1, 4]", "bta: [1, 4]", "tier 1, grid 1: a grid has the unknown key 'bta'; allowed are"),
    "key of the whole": ("title:", "titel:", "a specification has the unknown key 'titel'; allowed are title, every"),
    "empty list": ("beta: [1, 4], seeds: 2", "beta: [], seeds: 2", "tier 1, grid 1: beta is an empty list"),
    "beta": ("beta: [1, 4], seeds: 2", "beta: [1, -1]", "tier 1, grid 1: beta must be .*, got -1"),
    "text for a number": (
        "steps: 6",
        "steps: 6, learning_rate: 1e-4",
        "learning_rate must be a valid number, got '1e-4'",
    ),
    "no seeds": ("seeds: 2", "seeds: 0", "seeds must be a number of seeds from 1 to 10,000, a range .*, got 0"),
    "seeds backwards": ("seeds: 2", "seeds: 14-10", "seeds must be .*, a range such as 10-14, or a list .*, got 14-10"),
    "too many seeds": ("seeds: 2", "seeds: [0-9998, 9999-10000]", "seeds must be a number of seeds from 1 to 10,000"),
    "seeds of another kind": ("seeds: 2", "seeds: [1, true]", r"seeds must be .*, got \[1, True\]"),
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
    "other data set": ("dataset: cars3d", "dataset: mnist", "dataset must be 'dsprites', .*, got 'mnist'"),
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
        run = Run.from_dict({name: record[name] for name in Run.model_fields if record[name] is not None})
        assert record["total_steps"] == run.total_steps and record["reduced"] == run.reduced


def _committed(name: str) -> Spec:
    return Spec.read(ROOT / "runs" / f"{name}.yaml")


def test_the_papers_runs_are_all_named():
    spec = Spec.read(ROOT / "runs/dsprites.yaml")
    betas = [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6]
    named = {(run.objective, run.beta, run.seed) for run in spec.runs() if run.epochs == 20}
    for objective, values in [
        ("beta-vae", betas),
        ("isa-vae", betas),
        ("beta-tcvae", betas[1:]),
        ("factor-vae", range(1, 11)),
    ]:
        assert {(objective, beta, seed) for beta in values for seed in range(50)} <= named
    assert not any(run.reduced for run in spec.runs())
    faces = Spec.read(ROOT / "runs/faces3d.yaml").runs()
    learned = {(run.beta, run.seed) for run in faces if run.learn_exponents}
    assert learned == {(beta, seed) for beta in (0.5, 1, 2, 3, 4, 5) for seed in range(15)}
    cars = Spec.read(ROOT / "runs/cars3d.yaml").runs()
    assert {run.seed for run in cars} == set(range(35)) and all(run.source for run in cars)


def test_the_plans_seeds_differ_between_betas():
    """Runs of equal seeds share initial weights, order of the images and noise, so they are correlated."""
    betas: dict[tuple[str, int], set[float]] = {}
    for name in ("dsprites", "dsprites-long", "dsprites-controls"):
        spec = Spec.read(ROOT / f"runs/{name}.yaml")
        recorded = {record["hash"] for record in read_records(spec.record)}
        for run in (run for tier, runs in spec.tiers.items() if tier < 5 for run in runs):
            if run.hash not in recorded and run.beta != 1:
                betas.setdefault((run.objective.replace("isa-vae", "beta-vae"), run.seed), set()).add(run.beta)
    assert len(betas) > 100 and all(len(its) == 1 for its in betas.values())


def _planned(tier: int, objective: str) -> dict[float, int]:
    """Return the number of runs at the settings of Table 1, by beta, that the plan names up to a tier."""
    runs = [run for run in _committed("dsprites").runs(tier) if run.objective == objective and run.epochs == 20]
    return {beta: sum(run.beta == beta for run in runs) for beta in sorted({run.beta for run in runs})}


def test_tiers_are_the_blocks_of_the_plan():
    for objective in ("beta-vae", "isa-vae"):
        assert _planned(1, objective) == {1: 10, 1.5: 5, 2: 5, 3: 5, 4: 5, 6: 5}
        assert _planned(2, objective) == {1: 10, 1.5: 5, 2: 10, 3: 10, 4: 5, 6: 5}
        assert _planned(4, objective) == {1: 30, 2: 10, 3: 10} | dict.fromkeys([1.5, 2.5, 3.5, 4, 5, 6], 5)
    assert _planned(2, "beta-tcvae") == dict.fromkeys([1.5, 2, 3, 4, 6], 5)
    assert _planned(4, "beta-tcvae") == {2: 10, 3: 10, 4: 10} | dict.fromkeys([1.5, 2.5, 3.5, 5, 6], 5)
    assert _planned(2, "isa-tcvae") == dict.fromkeys([1.5, 2, 3, 4], 5)
    assert _planned(4, "factor-vae") == dict.fromkeys([1, 2, 4, 6, 10], 4)
    gaussian = [run for run in _committed("dsprites-controls").runs(2) if run.prior == "2[20]"]
    assert [sum(run.beta == beta for run in gaussian) for beta in (2, 3)] == [10, 10]
    assert [len(_committed("cars3d").runs(tier)) for tier in (2, 3)] == [10, 40]


def test_long_runs_are_recorded_at_7200_steps_too():
    short, long = _committed("dsprites"), _committed("dsprites-long")
    for tier, runs in long.tiers.items():
        assert {run.course for run in runs} <= {run.course for run in short.runs(tier) if run.total_steps == 7200}


def test_a_grid_takes_in_the_named_runs_of_other_seeds():
    spec = Spec.read(ROOT / "runs/dsprites-controls.yaml")
    fields = {"objective": "isa-vae", "prior": "2[20]", "scale": 0.98972, "beta": 2}
    seeds = [run.seed for run in spec.grid(**fields, seeds=2, named=True).runs()]
    assert seeds == [0, 1, *range(30, 36), *range(75, 79)]
    assert [run.seed for run in spec.grid(**fields, seeds=2).runs()] == [0, 1]


def test_the_controls_gaussian_has_the_isa_priors_variance():
    (scale,) = {run.scale for run in _committed("dsprites-controls").runs() if run.prior == "2[20]"}
    assert scale / 2 == pytest.approx(isa_prior().variance[0].item(), rel=1e-5)


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_sweep_trains_what_is_missing_and_nothing_twice(spec, monkeypatch):
    said = []
    records = _sweep(spec, tier=1, report=said.append)
    assert len(records) == records.wanted == 4 and not records.missing
    assert [line.split()[0] for line in said] == [run.key for run in spec.runs(1)]
    monkeypatch.setattr(engine, "fit", lambda *a, **k: pytest.fail("a recorded run is trained again"))
    assert _sweep(spec, tier=1).rows == records.rows
    partial = _sweep(spec, budget=0)
    assert partial.rows == records.rows
    assert partial.missing == spec.tiers[2]


def test_a_record_is_what_training_alone_gives(spec):
    records = _sweep(spec, tier=1)
    for run, record in zip(spec.runs(1), records, strict=True):
        assert_equal(record, train(run, dataset=DATASET, device="cpu").record)
    with open(spec.record, newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines[0] == list(COLUMNS) and len(lines) == 5


def test_every_run_leaves_its_portrait_and_its_model_where_that_is_asked_for(spec):
    records = _sweep(spec, tier=1, keep_models=True)
    for record in records:
        portrait = Portrait.load(spec.path.parent / "portraits" / f"{record['key']}.npz")
        assert portrait.about["hash"] == record["hash"]
        run, _, _ = results.load_model(spec.work / "models" / record["key"])
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
        "unscored": ["shape"],
        "log_likelihood_by_value": [[-20.0, -21.25, -19.5]],
        "mig_binned": 0.125,
        "subspaces_compared": [[0, 1, 2], [3, 4]],
        "random_subspace_mean": [[0.5, 0.25]],
        "random_groupings": 20,
    }
    path = tmp_path / "table.csv"
    sweep._append(path, [record])
    (back,) = read_records(path)
    assert back["beta"] == 0.1 + 0.2 and back["p1"] == [1.9, 2.1 + 1e-15]
    assert back["mig"] == pytest.approx(1 / 3, rel=1e-8) and (back["mig_size"], back["mig_x"]) == (0.25, 1e-7)
    assert back["mutual_information"] == [[0.1, 0.666666667], [1e-300, 0.0]]
    assert back["versions"] == {"torch": '2,"13'} and back["device"] == "a, b c"
    for name in ("unscored", "log_likelihood_by_value", "mig_binned", "subspaces_compared", "random_groupings"):
        assert back[name] == record[name], name
    assert back["subspace_draws"] is None and back["random_subspace_mean"] == [[0.5, 0.25]]
    held = path.read_bytes()
    sweep._append(path, [back])
    assert path.read_bytes() == held
    with pytest.raises(ValueError, match="finite"):
        sweep._append(path, [{**record, "hash": "other", "elbo": float("nan")}])
    assert path.read_bytes() == held


def tables() -> list[Path]:
    paths = sorted((ROOT / "runs").glob("*.csv"))
    return [path for path in paths if "hash" in path.read_text(encoding="utf-8").split("\n", 1)[0].split(",")]


@pytest.mark.parametrize("path", tables(), ids=lambda path: path.stem)
def test_a_committed_table_keeps_its_columns_and_cells_when_it_is_written_again(path, tmp_path):
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    before = read_records(copy)
    sweep.merge_records(copy, [])
    old, new = (file.read_text(encoding="utf-8").splitlines() for file in (path, copy))
    added = ",".join(COLUMNS[len(old[0].split(",")) :])
    assert new[0] == ",".join(filter(None, (old[0], added))) == ",".join(COLUMNS)
    empty = "," * (added.count(",") + bool(added))
    assert new[1:] == [f"{line}{empty}" for line in old[1:]]
    after = read_records(copy)
    assert [{name: one[name] for name in other} for one, other in zip(after, before, strict=True)] == before


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("mig_binned", "high", "mig_binned must be a number, got 'high'"),
        ("random_groupings", 0, "random_groupings must be a whole number from 1 on, got '0'"),
        ("subspace_mutual_information", 1, "subspace_mutual_information must be a list, got '1'"),
    ],
)
def test_measurements_of_another_kind_are_refused(name, value, sentence, spec):
    rows = _sweep(spec.grid(beta=1)).rows
    spec.record.unlink()
    sweep._append(spec.record, [{**rows[0], name: value}])
    with pytest.raises(ValueError, match=sentence):
        read_records(spec.record)


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


# --- resuming ---------------------------------------------------------------------------------------------------------


class _Killed(BaseException):
    pass


def test_an_interrupted_sweep_goes_on_from_its_checkpoint(tmp_path, monkeypatch):
    text = SPEC.replace("steps: 6", "steps: 60").replace("seeds: 2}", "seeds: 1}")
    whole = _sweep(Spec.read(write_spec(tmp_path, text)), tier=1).rows
    other = tmp_path / "other"
    other.mkdir()
    spec = Spec.read(write_spec(other, text))
    original, seen = engine.fit, []

    def interrupted(runs, dataset, **options):
        asked = options.pop("callback")
        options |= {"checkpoint_every": 20, "checkpoint_seconds": 0}

        def callback(step, terms):
            asked(step, terms)
            seen.append(step)
            if len(seen) == 1:
                raise _Killed

        return original(runs, dataset, **options, callback=callback)

    monkeypatch.setattr(engine, "fit", interrupted)
    with pytest.raises(_Killed):
        _sweep(spec, tier=1)
    assert not spec.record.exists() and seen == [50]
    assert [engine.checkpoint_step(spec.work / "checkpoints", run) for run in spec.runs(1)] == [40, 0]
    assert status(spec)[0].in_progress == 0
    starts = watch_starts(monkeypatch, "beta")
    rows = _sweep(spec, tier=1).rows
    assert sorted(starts) == [(1, 40), (4, 0)]
    assert [without_times(row) for row in rows] == [without_times(row) for row in whole]
    assert not list((spec.work / "checkpoints").iterdir())


def test_a_checkpoint_that_cannot_be_read_is_moved_away(spec):
    run = spec.runs()[0]
    path = engine.checkpoint_path(spec.work / "checkpoints", run)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"torn")
    with pytest.warns(RecordsWarning, match="starts anew"):
        assert len(_sweep(spec, tier=1)) == 4
    assert [file.name for file in path.parent.iterdir()] == [f"{path.name}.unreadable"]


# --- one training, several records ------------------------------------------------------------------------------------


def test_a_shorter_run_is_recorded_on_the_way_of_the_longer(spec, monkeypatch, tmp_path):
    own = spec.grid(steps=[60, 110], beta=[1, 4])
    starts = watch_starts(monkeypatch, "total_steps")
    records = _sweep(own)
    assert starts == [(110, 0), (110, 0)]
    assert [record["total_steps"] for record in records] == [60, 60, 110, 110]
    assert [record["total_steps"] for record in read_records(spec.record)] == [60, 110, 60, 110]
    assert len(list((tmp_path / "portraits").iterdir())) == 4
    for run, record in zip(own.runs(), records, strict=True):
        alone = train(run, dataset=DATASET, device="cpu").record
        assert_equal(record, alone)
    assert not list(spec.work.glob("checkpoints/*"))


def test_runs_of_one_course_in_two_specifications_train_once(tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("short", "long")]
    for folder, steps in zip(folders, ("6", "12"), strict=True):
        folder.mkdir()
        write_spec(folder, SPEC.replace("steps: 6", f"steps: {steps}"))
    specs = [Spec.read(folder / "tiny.yaml") for folder in folders]
    starts = watch_starts(monkeypatch, "total_steps")
    found = _sweep(specs, tier=1, pack=4)
    assert starts == [(12, 0)]
    assert [len(records) for records in found] == [4, 4]
    for spec, steps in zip(specs, (6, 12), strict=True):
        rows = read_records(spec.record)
        assert [row["total_steps"] for row in rows] == [steps] * 4 and [row["pack_size"] for row in rows] == [4] * 4
        assert len(list((spec.path.parent / "portraits").iterdir())) == 4


def test_a_shorter_run_does_not_wait_for_a_longer_one_of_a_later_tier(tmp_path, monkeypatch):
    first, second = "{objective: beta-vae, beta: 1}", "{objective: beta-vae, beta: 1, steps: [3, 12]}"
    path = write_spec(tmp_path, f"{SPEC[: SPEC.index('tiers')]}tiers: {{1: [{first}], 2: [{second}]}}")
    spec = Spec.read(path)
    starts = watch_starts(monkeypatch, "total_steps")
    assert len(_sweep(spec)) == 3
    assert starts == [(6, 0), (12, 0)]  # the run of 3 steps, of tier 2, is recorded on the way of the first
    assert [record["total_steps"] for record in read_records(spec.record)] == [3, 6, 12]


def test_a_checkpoint_beyond_the_end_of_a_run_is_left_alone(spec, monkeypatch):
    short, long = spec.grid(steps=[30, 60], beta=1).runs()
    folder = spec.work / "checkpoints"
    options = {"dataset": DATASET, "device": "cpu", "checkpoints": folder, "checkpoint_every": 40}
    train(long, **options)
    held = engine.checkpoint_path(folder, long).read_bytes()
    (record,) = _sweep(spec.grid(steps=30, beta=1))
    assert_equal(record, train(short, dataset=DATASET, device="cpu").record)
    assert engine.checkpoint_path(folder, long).read_bytes() == held
    assert len(_sweep(spec.grid(steps=[20, 60], beta=1))) == 2
    assert not list(folder.iterdir())


def test_runs_that_continue_from_different_steps_are_different_packs(spec, monkeypatch):
    own = spec.grid(steps=60, beta=[1, 4, 5])
    folder = spec.work / "checkpoints"
    train(own.runs()[1], dataset=DATASET, device="cpu", checkpoints=folder, checkpoint_every=40)
    starts = watch_starts(monkeypatch, "beta")
    assert len(_sweep(own, pack=3)) == 3
    assert starts == [(1, 0), (4, 40)]


# --- claims -----------------------------------------------------------------------------------------------------------


def test_what_another_sweep_trains_is_left_to_it(spec):
    runs = spec.runs(1)
    claim = filelock.FileLock(packs.Claim(spec, runs[1]).path, thread_local=False)
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


# --- budget -----------------------------------------------------------------------------------------------------------


class Inline:
    """An executor that does at once what is submitted, so that the clock of a test does not depend on threads."""

    def __init__(self, workers: int) -> None:
        assert workers == 1

    def submit(self, function: Callable[..., object], *arguments: object) -> Future:
        future: Future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self) -> None:
        pass


class Bench:
    """A card on which training takes no time but that of a clock that can be set: an engine that only counts."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.startup, self.pace, self.fixed, self.measuring = 0.0, 0.0, {}, 0.0, 0.0
        self.started: list[list[Run]] = []
        self.ended: list[str] = []
        clock = SimpleNamespace(monotonic=lambda: self.now, sleep=time.sleep)
        for module in (packs, local, sweep):
            monkeypatch.setattr(module, "time", clock)
        monkeypatch.setattr(local, "ThreadPoolExecutor", Inline)
        monkeypatch.setattr(engine, "fit", self.fit)
        monkeypatch.setattr(results, "measure", self.measure)
        monkeypatch.setattr(local, "_on_device", lambda dataset, device: dataset)
        monkeypatch.setattr(local, "_own_stream", lambda device: nullcontext())

    def fit(self, runs, dataset, *, callback, **options):
        self.started.append(runs)
        ends = {run.course: run for run in sorted(runs, key=lambda run: run.total_steps)}
        assert len({run.pack_key for run in ends.values()}) == 1
        self.now += self.startup
        for step in range(50, max(run.total_steps for run in runs) + 1, 50):
            self.now += 50 * (self.fixed + self.pace.get(runs[0].objective, 1e-3) * len(ends))
            callback(step, {})
            if ended := [run for run in runs if run.total_steps == step]:
                yield SimpleNamespace(runs=ended, pack=list(ends.values()))

    def measure(self, trained, dataset, **options) -> list[SimpleNamespace]:
        self.now += self.measuring * len(trained.runs)
        self.ended += [run.hash for run in trained.runs]
        records = [{**RECORD, **run.to_dict(), "hash": run.hash, "key": run.key} for run in trained.runs]
        return [
            SimpleNamespace(run=run, evaluation=None, record=record)
            for run, record in zip(trained.runs, records, strict=True)
        ]

    @property
    def sizes(self) -> list[int]:
        return [len(runs) for runs in self.started]


RECORD = {"status": "trained", "total_steps": 1000, "pack_size": 4, "train_seconds": 1.0, "evaluation_seconds": 0.5}
RECORD |= {"log_likelihood": -20.0, "mig": 0.1, "factors": ["size"], "mig_size": 0.1, "device": "a card"}

BUDGET_SPEC = """\
title: Runs of three kinds
every: {dataset: cars3d, model: small, latent_dim: 3, batch_size: 16, steps: 1000, precision: fp32}
tiers:
  1:
    - {objective: beta-vae, beta: 1, seeds: 8}
    - {objective: beta-tcvae, beta: 2, seeds: 8}
  2:
    - {objective: isa-vae, subspaces: [2, 1], seeds: 8}
"""


@pytest.fixture
def bench(monkeypatch) -> Bench:
    return Bench(monkeypatch)


@pytest.fixture
def card(tmp_path) -> Spec:
    return Spec.read(write_spec(tmp_path, BUDGET_SPEC))


def test_without_a_budget_everything_is_trained_in_the_order_of_the_plan(bench, card):
    assert len(_sweep(card, device="cuda", pack=5)) == 24
    assert bench.sizes == [4] * 6  # eight runs are two packs of four, for which one compiled step suffices
    assert [run.objective for runs in bench.started for run in runs[:1]] == [
        *(["beta-vae"] * 2),
        *(["beta-tcvae"] * 2),
        *(["isa-vae"] * 2),
    ]
    bench.started.clear()
    assert len(_sweep(card, device="cuda")) == 24 and not bench.started


def test_a_pack_of_a_gpu_has_eighteen_runs(bench, card):
    assert len(_sweep(card.grid(seeds=36), device="cuda")) == 36
    assert bench.sizes == [18, 18]


def test_several_specifications_are_trained_tier_by_tier(bench, card, tmp_path):
    (tmp_path / "other").mkdir()
    other = Spec.read(write_spec(tmp_path / "other", BUDGET_SPEC.replace("seeds: 8", "seeds: 20-21")))
    found = _sweep([other.path, card], device="cuda")
    assert [len(records) for records in found] == [6, 24]
    order = [(runs[0].objective, runs[0].seed) for runs in bench.started]
    tiers = [("beta-vae", 20), ("beta-tcvae", 20), ("beta-vae", 0), ("beta-tcvae", 0), ("isa-vae", 20), ("isa-vae", 0)]
    assert order == tiers
    assert len(read_records(card.record)) == 24 and len(read_records(other.record)) == 6
    bench.started.clear()
    (tmp_path / "third").mkdir()
    third = Spec.read(write_spec(tmp_path / "third", BUDGET_SPEC.replace("  2:", "  3:")))
    assert [len(records) for records in _sweep([third, card], tier=2, device="cuda")] == [16, 24]
    with pytest.raises(ValueError, match=r"tier must be one of 1, 3 in .*, got 7"):
        _sweep([third, card], tier=7)


def test_a_budget_starts_packs_that_fit_and_shrinks_the_last_one(bench, card):
    # A pack of four takes 4 s: two of them, then 1.1 s are left for one run of the next kind.
    records = _sweep(card, device="cuda", pack=4, budget=9.5)
    assert bench.sizes[:2] == [4, 4] and {run.objective for runs in bench.started[:2] for run in runs} == {"beta-vae"}
    assert bench.sizes[2:4] == [4, 1]  # the first of its kind is stopped when its speed is known, then one run fits
    assert len(records) == 9 and bench.now <= 9.5 + 0.4  # two looks at the third kind
    assert [record["objective"] for record in records] == ["beta-vae"] * 8 + ["beta-tcvae"]


def test_a_kind_that_does_not_fit_is_passed_over_for_a_later_one(bench, card):
    bench.pace = {"beta-tcvae": 0.05, "isa-vae": 1e-4}
    said = []
    records = _sweep(card, device="cuda", pack=8, budget=80.0, report=said.append)
    assert {record["objective"] for record in records} == {"beta-vae", "isa-vae"} and len(records) == 16
    assert [len(runs) for runs in bench.started if runs[0].objective == "beta-tcvae"] == [8]
    assert sum(line.startswith("not in time") for line in said) == 1
    assert bench.now < 80


def test_the_longest_runs_are_passed_over_and_the_shorter_ones_of_their_courses_trained(bench, card):
    own = card.grid(steps=[1000, 50_000], seeds=3)
    records = _sweep(own, device="cuda", budget=20.0)
    assert [record["total_steps"] for record in records] == [1000] * 3
    assert [max(run.total_steps for run in runs) for runs in bench.started] == [50_000, 1000]


@pytest.mark.parametrize("budget", [0.3, 2.0, 4.5, 8.0, 13.7, 21.0, 30.0, 60.0])
@pytest.mark.parametrize("fixed", [0.0, 2e-3])
def test_a_budget_is_kept_and_at_most_one_pack_of_known_speed_is_lost(budget, fixed, bench, card):
    bench.pace, bench.startup, bench.fixed, bench.measuring = {"beta-tcvae": 2e-3}, 0.5, fixed, 0.01
    records = _sweep(card, device="cuda", pack=4, budget=budget)
    done = {record["hash"] for record in records}
    lost = [runs for runs in bench.started if not {run.hash for run in runs} <= done]
    seen: set[str] = set()
    known = []
    for runs in bench.started:
        known += [runs] * (runs[0].objective in seen and runs in lost)
        seen.add(runs[0].objective)
    assert len(known) <= 1 and all(len(runs) <= 4 for runs in lost)
    assert bench.now <= budget + bench.startup + 100 * (fixed + 8e-3)  # two looks after the start
    assert set(bench.ended) == done == {record["hash"] for record in read_records(card.record)}


def test_records_of_a_shared_card_do_not_hold_a_sweep_back(bench, card, monkeypatch):
    (first, *_) = card.runs()
    slow = {**RECORD, **first.to_dict(), "hash": first.hash, "key": first.key, "train_seconds": 1e6}
    sweep._append(card.record, [slow])
    assert len(_sweep(card, device="cuda", budget=60.0)) == 24
    monkeypatch.setattr(results, "device_name", lambda device: "a card")  # on a processor of that name they do
    card.record.unlink()
    sweep._append(card.record, [slow])
    bench.started.clear()
    assert len(_sweep(card.grid(seeds=8), device="cpu", budget=60.0)) == 1 and not bench.started


def test_a_first_estimate_from_records_gives_way_to_what_is_measured(bench, card, monkeypatch):
    monkeypatch.setattr(results, "device_name", lambda device: "a card")
    (first, *_) = card.runs()
    sweep._append(card.record, [{**RECORD, **first.to_dict(), "hash": first.hash, "key": first.key}])  # 1 ms a step
    bench.pace = {"beta-vae": 2e-3}
    assert len(_sweep(card.grid(seeds=8), device="cpu", budget=7.5)) == 4
    assert bench.sizes == [1, 1, 1] and bench.now <= 7.5


def test_a_budget_of_a_processor_goes_by_its_records(spec, monkeypatch):
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
    assert status(spec.grid(beta=[1, 4], seeds=2, steps=[6, 12]))[0].seconds == pytest.approx(4 * (12_000 + 5))
    monkeypatch.setattr(engine, "fit", lambda *a, **k: pytest.fail("a run is started"))
    assert len(_sweep(beta_vae, budget=6004)) == 4
    with pytest.raises(ValueError, match="budget must be a number of seconds, at least 0, got -1"):
        _sweep(spec, budget=-1)


def test_a_run_of_unknown_speed_is_stopped_once_it_is_seen_to_be_too_slow(spec, monkeypatch):
    monkeypatch.setattr(engine, "_COMPILE_FROM", 10**9)
    own = spec.grid(beta=1, steps=10**6, seeds=2)
    said = []
    assert len(_sweep(own, budget=2.0, report=said.append)) == 0
    assert len(said) == 1 and said[0].startswith("not in time")  # the other is of the same speed


# --- measuring in a second thread, copies -----------------------------------------------------------------------------


@pytest.fixture
def threaded(monkeypatch) -> None:
    """The course of a sweep on a card, on this processor."""
    monkeypatch.setattr(local, "_on_device", lambda dataset, device: dataset)
    monkeypatch.setattr(local, "_own_stream", lambda device: nullcontext())


def test_measuring_while_the_next_pack_trains_gives_the_same_records(spec, threaded, monkeypatch, tmp_path):
    threads = set()
    original = results.measure

    def measure(*arguments, **options):
        threads.add(threading.current_thread())
        return original(*arguments, **options)

    monkeypatch.setattr(results, "measure", measure)
    found = _sweep(spec, device="cuda", pack=2)
    assert len(threads) == 1 and threading.main_thread() not in threads
    assert not any(thread.is_alive() for thread in threads)
    other = tmp_path / "other"
    other.mkdir()
    alone = _sweep(Spec.read(write_spec(other)), pack=2)
    assert [without_times(record) for record in found] == [without_times(record) for record in alone]


def test_runs_are_claimed_until_they_are_recorded(spec, threaded, monkeypatch):
    claimed, training = [], threading.Event()
    original, fit = results.measure, engine.fit

    def measure(trained, *arguments, **options):
        training.wait(60)
        claimed.append([packs.Claim(spec, run).is_held() for run in trained.runs])
        return original(trained, *arguments, **options)

    def watched(runs, *arguments, **options):
        if runs[0].objective == "isa-vae" or len(runs) == 1:
            training.set()
        return fit(runs, *arguments, **options)

    monkeypatch.setattr(results, "measure", measure)
    monkeypatch.setattr(engine, "fit", watched)
    _sweep(spec.grid(beta=[1, 4, 5], seeds=1), device="cuda", pack=2)
    assert claimed == [[True, True], [True]]
    assert [row.in_progress for row in status(spec)] == [0, 0]


@pytest.mark.parametrize("pack", [2, 4])
def test_what_a_measurement_raises_ends_the_sweep(pack, spec, threaded, monkeypatch):
    original = results.measure
    asked = []

    def measure(*arguments, **options):
        asked.append(arguments)
        if len(asked) == 2:
            raise RuntimeError("no second pack can be measured")
        return original(*arguments, **options)

    monkeypatch.setattr(results, "measure", measure)
    with pytest.raises(RuntimeError, match="no second pack can be measured"):
        _sweep(spec, device="cuda", pack=pack)
    assert len(read_records(spec.record)) == pack
    assert [row.in_progress for row in status(spec)] == [0, 0]
    monkeypatch.undo()
    assert len(_sweep(spec)) == 9


def test_an_interrupted_sweep_records_what_is_trained(spec, threaded, monkeypatch):
    original, packs_begun = engine.fit, []

    def fit(runs, *arguments, **options):
        packs_begun.append(runs)
        if len(packs_begun) == 2:
            raise KeyboardInterrupt
        return original(runs, *arguments, **options)

    monkeypatch.setattr(engine, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        _sweep(spec, device="cuda", pack=4)
    assert {record["hash"] for record in read_records(spec.record)} == {run.hash for run in packs_begun[0]}


def test_copies_are_complete_after_every_pack_and_of_limited_size(spec, monkeypatch, tmp_path):
    out = tmp_path / "out"
    _sweep(spec, tier=1)
    size = max(path.stat().st_size for path in (tmp_path / "portraits").iterdir())
    monkeypatch.setattr(local, "_MOST_OUT_BYTES", 2 * size + 25_000)
    seen = []

    def look(line: str) -> None:
        # A run is reported when it is recorded, just before it is copied.
        seen.append(len(read_records(out / "records-tiny.csv")))

    records = _sweep(spec, out=out, report=look)
    assert seen == [0, 1, 2, 3, 4]
    new = [record for record in records if record["hash"] not in {run.hash for run in spec.runs(1)}]
    assert [row["hash"] for row in read_records(out / "records-tiny.csv")] == [row["hash"] for row in new]

    def bundled() -> dict[str, bytes]:
        found = {}
        for path in sorted(out.glob("portraits-*.tar")):
            assert path.stat().st_size <= 2 * size + 25_000
            with tarfile.open(path) as bundle:
                found |= {member.name: bundle.extractfile(member).read() for member in bundle}
        return found

    portraits = tmp_path / "portraits"
    assert bundled() == {f"{row['key']}.npz": (portraits / f"{row['key']}.npz").read_bytes() for row in new}
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"portraits-{number}.tar" for number in (1, 2, 3)),
        "records-tiny.csv",
    ]
    held = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    _sweep(spec.grid(beta=9), out=out)  # another call leaves the bundles of this one as they are
    assert {name: (out / name).read_bytes() for name in held} == held
    assert len(bundled()) == 6 and len(read_records(out / "records-tiny.csv")) == 6


def test_a_profile_has_every_kind_of_missing_run_and_records_nothing(spec, tmp_path):
    path = tmp_path / "profile.txt"
    assert len(_sweep(spec, budget=0, profile=path, pack=4)) == 0
    text = path.read_text()
    assert text.count("ms per run and step") == 2 and "4 runs at once" in text and "isa-vae" in text
    assert "aten::bmm" in text
    assert not spec.record.exists() and not (tmp_path / "portraits").exists()


# --- packs ------------------------------------------------------------------------------------------------------------


def test_runs_of_one_shape_train_as_packs(spec):
    alone = {record["hash"]: record for record in _sweep(spec)}
    spec.record.unlink()
    packed = _sweep(spec, pack=4)
    assert sorted(record["pack_size"] for record in packed) == [2, 2, 3, 3, 3, 4, 4, 4, 4]
    for record in packed:
        assert record["log_likelihood"] == pytest.approx(alone[record["hash"]]["log_likelihood"], rel=1e-5)


def test_a_pack_that_does_not_fit_is_halved(spec, monkeypatch):
    original, sizes = engine.fit, []

    def small_memory(runs, dataset, **options):
        sizes.append(len(runs))
        if len(runs) > 2:
            raise torch.OutOfMemoryError("no memory")
        return original(runs, dataset, **options)

    monkeypatch.setattr(engine, "fit", small_memory)
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


def test_the_commands_take_several_specifications(spec, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    paths = [str(spec.path), str(write_spec(other, SPEC.replace("seeds: 2", "seeds: 7-8")))]
    assert cli.main(["sweep", *paths, "--tier", "1", "--device", "cpu", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert [line.split()[1:4] for line in printed.out.splitlines()[-2:]] == [["4", "of", "4"]] * 2
    assert (tmp_path / "out" / "records-tiny.csv").exists()
    assert cli.main(["status", *paths, "--device", "cpu"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 8 and all(path in line for path, line in zip(paths, rows[::4], strict=True))
    assert all(line.endswith("done") for line in rows[2::4])
    assert cli.main(["sweep", *paths, "--scheduler", "tcp://nowhere:1"]) == 1
    assert "scheduler takes one specification" in capsys.readouterr().err


@pytest.mark.parametrize(("seconds", "text"), [(30, "30 seconds"), (600, "10.0 minutes"), (10_000, "2.8 hours")])
def test_durations_are_said_in_fitting_units(seconds, text):
    assert cli._duration(seconds) == text
    assert cli._duration(86_400 * 3) == "3.0 days"


def test_records_hold_no_text_that_json_cannot(spec):
    for record in _sweep(spec, tier=1):
        json.dumps(record, allow_nan=False)


ABSENT = ("autograd", "dask", "distributed", "IPython", "jupyter_book", "myst_nb", "papermill", "platformdirs")
ABSENT += ("sphinx",)


def test_training_needs_no_more_than_a_compute_node_has(tmp_path):
    """A machine that only trains lacks what the book, the toys and a cluster need."""
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
