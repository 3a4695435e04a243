"""Sweeps: specifications, records, order, resuming, claims, budgets, and the commands."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import cache, partial
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny_sweep import DATASET, SPEC, watch_starts, without_times, write_spec

from isa import cli, engine, isa_prior, packs, results, sweep
from isa.engine import train
from isa.latents import Portrait
from isa.run import Run
from isa.sweep import RECORD, Records, Spec, merge_records, read_records, status

SPECIFICATIONS = [path.stem for path in sorted((ROOT / "runs").glob("*.yaml")) if "\ntiers:" in path.read_text("utf-8")]
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


def _spec(folder: Path, text: str = SPEC) -> Spec:
    return Spec.read(write_spec(folder, text))


@pytest.fixture
def spec(tmp_path) -> Spec:
    return _spec(tmp_path)


@cache
def _committed(name: str) -> Spec:
    return Spec.read(ROOT / "runs" / f"{name}.yaml")


def _sweep(spec: Spec, **options) -> Records:
    return sweep.sweep(spec, **({"device": "cpu"} | options))


def _hashes(rows) -> list[str]:
    return [row.hash if isinstance(row, Run) else row["hash"] for row in rows]


def _assert_trained_alone(records: Records, spec: Spec) -> None:
    """Compare records with those of their runs trained alone, written to a table and read back."""
    table = spec.path.with_name("alone.csv")
    runs = {run.hash: run for run in spec.runs()}
    merge_records(table, [train(runs[row["hash"]], dataset=DATASET, device="cpu").record for row in records])
    assert [without_times(row) for row in records] == [without_times(row) for row in read_records(table)]


def test_grid_order_and_first_tier(spec, tmp_path):
    assert {tier: len(runs) for tier, runs in spec.tiers.items()} == {1: 4, 2: 5}
    first = [(run.objective, run.beta, run.seed) for run in spec.runs(1)]
    assert first == [("beta-vae", 1, 0), ("beta-vae", 4, 0), ("beta-vae", 1, 1), ("beta-vae", 4, 1)]
    assert len(set(_hashes(spec.runs()))) == len(spec.runs()) == 9
    own = _spec(tmp_path / "own", SPEC.replace("beta: [1, 4], seeds: 3", "beta: [4, 1, 4], seed: [0, 5]"))
    assert [(run.beta, run.seed) for run in own.tiers[2] if run.objective == "beta-vae"] == [(4, 5), (1, 5)]


@pytest.mark.parametrize(
    ("name", "value", "values"),
    [
        ("p1", 1.8, [1.8]),
        ("p1", [[1.8, 2.0], 2.2], [(1.8, 2.0), 2.2]),
        ("subspaces", [2, 1], [(2, 1)]),
        ("subspaces", [[2, 1], [1, 2]], [(2, 1), (1, 2)]),
        ("seeds", 3, [0, 1, 2]),
        ("seeds", "7-9", [7, 8, 9]),
        ("seeds", [7, "1-2", 5, "2-5"], [7, 1, 2, 5, 3, 4]),
    ],
)
def test_values_in_grids(name, value, values, spec):
    runs = spec.grid(**{"objective": "isa-vae", "subspaces": [2, 1], name: value}).runs()
    assert [getattr(run, name.removesuffix("s") if name == "seeds" else name) for run in runs] == values


def test_own_grid_keeps_shared_fields_and_records(spec):
    own = spec.grid(beta=[1, 7], steps=9)
    assert (own.record, own.title) == (spec.record, spec.title)
    assert [(run.beta, run.steps, run.batch_size) for run in own.runs()] == [(1, 9, 16), (7, 9, 16)]
    fields = {"objective": "isa-vae", "prior": "2[20]", "scale": 0.98972, "beta": 2}
    named = _committed("dsprites-controls").grid(**fields, seeds=2, named=True).runs()
    assert [run.seed for run in named] == [0, 1, *range(30, 36), *range(75, 79)]


BAD_SPECS = [
    ("beta: [1, 4]", "bta: [1, 4]", "tier 1, grid 1: 'bta' is not a field of Run: the fields are dataset"),
    ("beta: [1, 4]", "beta: []", "tier 1, grid 1: beta must have a value"),
    ("steps: 6", "steps: 6, learning_rate: 1e-4", "learning_rate must be a valid number, got '1e-4'"),
    ("seeds: 2", "seeds: 0", "seeds must be a number from 1 to 10,000, a range .*, got 0"),
    ("seeds: 2", "seeds: [1, true]", r"seeds must be .*, got \[1, True\]"),
    ("beta: [1, 4], seeds: 2", f"beta: [{'1, ' * 999}2], seeds: 999", "at most 10,000 runs"),
    ("seeds: 2", "seeds: 2, seed: 1", "seed and seeds exclude each other"),
    ("seeds: 2", "seeds: 2, seeds: 3", "'seeds' is given twice"),
    ("  1:", "  one:", "tiers must have positive numbers, got {'one'"),
    ("  1:\n    - {objective: beta-vae, beta: [1, 4], seeds: 2}", "  1: 3", "tier 1 must be a list of grids, got 3"),
    ("{objective: beta-vae, beta: [1, 4], seeds: 2}", "3", "a grid must be a mapping of fields to values, got 3"),
    ("seeds: 2", "seeds: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    (SPEC, "3", "must have title, tiers and optionally every, got 3"),
]


@pytest.mark.parametrize(("old", "new", "sentence"), BAD_SPECS, ids=[new[:40] for _, new, _ in BAD_SPECS])
def test_bad_specification_is_one_sentence(old, new, sentence, tmp_path, capsys):
    path = write_spec(tmp_path, SPEC.replace(old, new, 1))
    with pytest.raises(ValueError, match=sentence) as caught:
        Spec.read(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert cli.main(["sweep", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and printed.err.startswith("isa: error: ")


@pytest.mark.parametrize("name", SPECIFICATIONS)
def test_committed_records_belong_to_their_specification(name, tmp_path):
    spec = _committed(name)
    runs = {run.hash: run for run in spec.runs()}
    records = read_records(spec.record)  # each has the hash of its fields
    for record in records:
        run = runs[record["hash"]]
        assert "-dirty" not in record["commit"], f"{record['key']} was made by code that was not committed"
        assert record["total_steps"] == run.total_steps and record["reduced"] == run.reduced
    if records:  # rewritten, it has the same cells, and empty ones in columns that are new
        copy = tmp_path / "copy.csv"
        merge_records(copy, records)
        old, new = (file.read_text(encoding="utf-8").splitlines() for file in (spec.record, copy))
        added = len(RECORD) - len(old[0].split(","))
        assert new == [",".join(RECORD)] + [line + "," * added for line in old[1:]]


def test_papers_runs_are_named():
    spec, faces, cars = map(_committed, ("dsprites", "faces3d", "cars3d"))
    betas = [1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6]
    named = {(run.objective, run.beta, run.seed) for run in spec.runs() if run.epochs == 20}
    wanted = {"beta-vae": betas, "isa-vae": betas, "beta-tcvae": betas[1:], "factor-vae": range(1, 11)}
    assert {(name, beta, seed) for name, values in wanted.items() for beta in values for seed in range(50)} <= named
    assert not any(run.reduced for run in spec.runs())
    learned = {(run.beta, run.seed) for run in faces.runs() if run.learn_exponents}
    assert learned == {(beta, seed) for beta in (0.5, 1, 2, 3, 4, 5) for seed in range(15)}
    assert {run.seed for run in cars.runs()} == set(range(35)) and all(run.source for run in cars.runs())
    (scale,) = {run.scale for run in _committed("dsprites-controls").runs() if run.prior == "2[20]"}
    assert scale / 2 == pytest.approx(isa_prior().variance[0].item(), rel=1e-5)  # that of the ISA prior


def test_planned_seeds_differ_between_betas():
    """Runs of equal seeds share initial weights, order of the images and noise, so they are correlated."""
    betas: dict[tuple[str, int], set[float]] = {}
    for spec in map(_committed, ("dsprites", "dsprites-long", "dsprites-controls")):
        recorded = set(_hashes(read_records(spec.record)))
        for run in (run for tier, runs in spec.tiers.items() if tier < 5 for run in runs if run.beta != 1):
            if run.hash not in recorded:
                betas.setdefault((run.objective.replace("isa-vae", "beta-vae"), run.seed), set()).add(run.beta)
    assert len(betas) > 100 and all(len(its) == 1 for its in betas.values())


def test_sweep_trains_what_is_missing_once(spec, monkeypatch):
    reported = []
    records = _sweep(spec, tier=1, report=reported.append)
    assert len(records) == records.wanted == 4 and not records.missing
    assert [line.split()[0] for line in reported] == [run.key for run in spec.runs(1)]
    _assert_trained_alone(records, spec)
    monkeypatch.setattr(engine, "fit", lambda *a, **k: pytest.fail("a recorded run is trained again"))
    assert _sweep(spec, tier=1) == records
    partial = _sweep(spec, budget=0)
    assert partial == records and partial.missing == spec.tiers[2]


def _made_up(run: Run, **values) -> dict:
    """Return a record of a run with few measurements."""
    measured = {"status": "trained", "total_steps": 9, "pack_size": 1, "train_seconds": 1.5, "evaluation_seconds": 0.5}
    measured |= {"log_likelihood": -20.25, "mig": 1 / 3, "factors": ["size", "x"], "mig_size": 0.25, "mig_x": 1e-7}
    return {**dict.fromkeys(RECORD), **run.to_dict(), "hash": run.hash, "key": run.key, **measured, **values}


def test_records_survive_the_table(tmp_path):
    run = Run(objective="isa-vae", subspaces=(3, 2), p1=(1.9, 2.1 + 1e-15), scale=1.25, beta=0.1 + 0.2)
    other = {"versions": {"torch": '2,"13'}, "unscored": ["shape"], "mig_binned": 0.125, "random_groupings": 20}
    lists = {"mutual_information": [[0.1, 2 / 3], [1e-300, 0.0]], "subspaces_compared": [[0, 1, 2], [3, 4]]}
    path = tmp_path / "new" / "table.csv"
    assert read_records(path) == []
    merge_records(path, [_made_up(run, device="a, b\nc", **other, **lists)])
    (back,) = read_records(path)
    assert back["beta"] == 0.1 + 0.2 and back["p1"] == [1.9, 2.1 + 1e-15]
    assert back["mig"] == pytest.approx(1 / 3, rel=1e-8) and (back["mig_size"], back["mig_x"]) == (0.25, 1e-7)
    assert back["mutual_information"] == [[0.1, 0.666666667], [1e-300, 0.0]] and back["device"] == "a, b c"
    assert all(back[name] == value for name, value in other.items()) and back["subspace_draws"] is None
    text = path.read_bytes()
    merge_records(path, [back, {**back, "mig": 9.0}])
    assert path.read_bytes() == text  # what is recorded stays
    with pytest.raises(ValueError, match="JSON"):
        merge_records(path, [{**back, "hash": "other", "elbo": float("nan")}])
    assert path.read_bytes() == text
    path.write_bytes(noted := text.replace(b"\n", b",note\n"))  # a column that someone has added
    merge_records(path, [])
    assert read_records(path) == [back] and path.read_bytes() == noted


@pytest.fixture
def table(spec) -> Path:
    merge_records(spec.record, [_made_up(run, procedural=True, device="a CPU") for run in spec.runs(1)])
    return spec.record


SPREADSHEETS = {
    "byte-order mark": lambda text: "\ufeff" + text,
    "TRUE": lambda text: text.replace("true", "TRUE").replace("false", "FALSE"),
    "line ends": lambda text: text.replace("\n", "\r\n"),
    "a line twice, as git may leave it": lambda text: text + text.splitlines(True)[2],
}


@pytest.mark.parametrize("kind", SPREADSHEETS)
def test_table_saved_by_a_spreadsheet(kind, table):
    rows, text = read_records(table), table.read_text(encoding="utf-8")
    table.write_text(SPREADSHEETS[kind](text), encoding="utf-8", newline="")
    assert read_records(table) == rows
    merge_records(table, [])
    assert read_records(table) == rows and len(table.read_text(encoding="utf-8")) == len(text)


DAMAGED = {
    "cut off": (lambda text: text[:-40], "line 5 is not a record: it must have the columns .* and a cell for each"),
    "other hash": (lambda text: text.replace("beta-vae,1.0", "beta-vae,2.0", 1), "line 2 .*its fields have the hash"),
    "semicolons": (lambda text: text.replace(",", ";"), "line 2 is not a record: it must have the columns of records"),
    "NaN": (lambda text: text.replace(",-20.25,", ",NaN,", 1), "line 2 is not a record: .*'NaN'"),
    "not text": (lambda text: "\udcff" + text, "is not a record: .*can't decode"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_table_is_one_sentence(kind, spec, table, capsys):
    damage, sentence = DAMAGED[kind]
    table.write_text(damage(table.read_text()), errors="surrogateescape")
    damaged = table.read_bytes()
    with pytest.raises(ValueError, match=sentence) as caught:
        read_records(table)
    assert str(table) in str(caught.value) and "\n" not in str(caught.value)
    assert cli.main(["sweep", str(spec.path), "--device", "cpu"]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and table.read_bytes() == damaged


def test_select_and_column(spec, table):
    records = _sweep(spec, budget=0)
    chosen = records.select(objective="beta-vae", beta=[1, 9])
    assert [(row["beta"], row["seed"]) for row in chosen] == [(1, 0), (1, 1)]
    assert [(run.beta, run.seed) for run in chosen.missing] == [(1, 2)]
    selections = ({"subspaces": [(2, 1)]}, {"total_steps": 6}, {"status": "trained"})
    assert [len(records.select(**fields).missing) for fields in selections] == [3, 5, 0]
    np.testing.assert_array_equal(records.column("beta"), [1, 4, 1, 4])
    assert np.isnan(records.column("elbo")).all() and len(records.column("factors")) == 4
    assert records.column("key").tolist() == [run.key for run in spec.runs(1)]
    assert records.command.startswith("isa sweep ") and records.command.endswith("tiny.yaml")
    for wrong, words in ((partial(records.select, nothing=1), "not a column"), (partial(records.column, "no"), "'no'")):
        with pytest.raises(KeyError, match=words):
            wrong()
    assert records.select(beta=77).column("mig").shape == (0,)


def test_diverging_run_is_recorded_and_spoils_no_other(spec):
    own = spec.grid(learning_rate=[1e-3, 1e30], beta=1)
    records = _sweep(own)
    assert sorted(record["status"] for record in records) == ["diverged", "trained"]
    (bad,) = records.select(status="diverged")
    assert bad["diverged_at"] is not None and bad["mig"] is None and status(own)[0].diverged == 1


def test_interrupted_sweep_continues_from_its_checkpoint(tmp_path, monkeypatch, capsys):
    text = SPEC.replace("steps: 6", "steps: 60").replace("seeds: 2}", "seeds: 1}")
    spec = _spec(tmp_path / "killed", text)

    def killed(step, terms):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        fit = engine.fit
        often = {"checkpoint_every": 20, "checkpoint_seconds": 0, "callback": killed}
        patch.setattr(engine, "fit", lambda runs, dataset, **options: fit(runs, dataset, **options | often))
        _sweep(spec, tier=1)
    assert not spec.record.exists() and status(spec)[0].in_progress == 0
    run, _ = spec.runs(1)
    path = engine.checkpoint_path(spec.work / "checkpoints", run)
    content = path.read_bytes()
    starts = watch_starts(monkeypatch)
    assert len(_sweep(spec.grid(beta=1, steps=6))) == 1 and path.read_bytes() == content  # that of a longer run
    path.write_bytes(content[:99])
    assert cli.main(["sweep", str(spec.path), "--device", "cpu"]) == 2
    assert f"isa: error: {path} cannot be read" in capsys.readouterr().err
    path.write_bytes(content)
    starts.clear()
    records = _sweep(spec, tier=1)
    assert [(run.beta, step) for run, step in starts] == [(1, 40), (4, 0)]
    assert not list(path.parent.iterdir())
    _assert_trained_alone(records, spec)


def test_shorter_runs_join_those_of_other_specifications_and_earlier_tiers(spec, tmp_path, monkeypatch):
    path = tmp_path / "long.yaml"
    path.write_text(SPEC.replace("steps: 6", "steps: 12"))
    starts = watch_starts(monkeypatch)
    both = _sweep([spec, path], tier=1, pack=4)
    assert [[row["total_steps"] for row in records] for records in both] == [[6] * 4, [12] * 4]
    first, second = "{objective: beta-vae, beta: 1}", "{objective: beta-vae, beta: 1, steps: [3, 60]}"
    later = _spec(tmp_path / "own", f"{SPEC[: SPEC.index('tiers')]}tiers: {{1: [{first}], 2: [{second}]}}")
    records = _sweep(later)
    assert [run.steps for run, _ in starts] == [12, 6, 60]  # the last one does not delay tier 1
    assert [record["total_steps"] for record in read_records(later.record)] == [3, 6, 60]
    assert len(list((tmp_path / "own" / "portraits").iterdir())) == 3
    _assert_trained_alone(records, later)


def at_once(self, function, *arguments) -> Future:
    """Do what is submitted, so that the clock of a test does not depend on threads."""
    future: Future = Future()
    future.set_result(function(*arguments))
    return future


class Bench:
    """A card on which training takes only the time of a clock that can be set: an engine that counts."""

    def __init__(self, monkeypatch) -> None:
        self.now, self.startup, self.pace, self.fixed = 0.0, 0.0, {}, 0.0
        self.started: list[list[Run]] = []
        self.ended: list[str] = []
        for module in (packs, sweep):
            monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(packs.Local, "submit", at_once)
        monkeypatch.setattr(engine, "fit", self.fit)
        monkeypatch.setattr(results, "measure", self.measure)

    def fit(self, runs, dataset, *, callback, **options):
        self.started.append(runs)
        ends = {run.course: run for run in sorted(runs, key=lambda run: run.total_steps)}
        assert len({run.pack_key for run in ends.values()}) == 1
        self.now += self.startup
        for step in range(50, max(run.total_steps for run in runs) + 1, 50):
            self.now += 50 * (self.fixed + self.pace.get(runs[0].objective, 1e-3) * len(ends))
            callback(step, {})
            if ended := [run for run in runs if run.total_steps == step]:
                yield SimpleNamespace(results=[SimpleNamespace(run=run) for run in ended])

    def measure(self, trained, dataset, **options) -> list[SimpleNamespace]:
        runs = [result.run for result in trained.results]
        self.ended += _hashes(runs)
        row, record = partial(SimpleNamespace, evaluation=None), partial(_made_up, device="a card")
        return [row(run=run, record=record(run, total_steps=run.total_steps)) for run in runs]


@pytest.fixture
def bench(monkeypatch) -> Bench:
    return Bench(monkeypatch)


@pytest.fixture
def card(tmp_path) -> Spec:
    return _spec(tmp_path / "card", BUDGET_SPEC)


def test_order_and_sizes_of_packs(bench, card):
    assert len(_sweep(card, device="cuda", pack=5)) == 24
    assert [*map(len, bench.started)] == [4] * 6  # of eight runs each, for which one compiled step suffices
    assert [runs[0].objective for runs in bench.started[::2]] == ["beta-vae", "beta-tcvae", "isa-vae"]
    bench.started.clear()
    assert len(_sweep(card.grid(seeds="8-43"), device="cuda")) == 36
    assert [*map(len, bench.started)] == [18, 18]


def test_several_specifications_are_trained_tier_by_tier(bench, card, tmp_path):
    other = _spec(tmp_path / "other", BUDGET_SPEC.replace("seeds: 8", "seeds: 20-21").replace("  2:", "  3:"))
    assert [len(records) for records in _sweep([other.path, card], device="cuda")] == [6, 24]
    order = [("beta-vae", 20), ("beta-tcvae", 20), ("beta-vae", 0), ("beta-tcvae", 0), ("isa-vae", 0), ("isa-vae", 20)]
    assert [(runs[0].objective, runs[0].seed) for runs in bench.started] == order
    assert [len(records) for records in _sweep([other, card], tier=2, device="cuda")] == [4, 24]


def test_slow_kind_is_passed_over(bench, card, monkeypatch):
    bench.pace = {"beta-tcvae": 0.05, "isa-vae": 1e-4}
    reported = []
    records = _sweep(card, device="cuda", pack=8, budget=80.0, report=reported.append)
    assert {record["objective"] for record in records} == {"beta-vae", "isa-vae"} and len(records) == 16
    assert [len(runs) for runs in bench.started if runs[0].objective == "beta-tcvae"] == [8]
    assert sum(line.startswith("not in time") for line in reported) == 1 and bench.now < 80
    own = card.grid(steps=[1000, 50_000], seeds="8-10")  # the longest are passed over, and the shorter ones trained
    assert [record["total_steps"] for record in _sweep(own, device="cuda", budget=20.0)] == [1000] * 3
    fit = bench.fit  # runs with checkpoints of different steps are trained one after the other
    monkeypatch.setattr(engine, "fit", lambda runs, *rest, **more: chain(*(fit([run], *rest, **more) for run in runs)))
    records = _sweep(card.grid(beta=9, seeds=4), device="cuda", budget=2.5, report=reported.append)
    assert len(records) == 2 and reported[-1].split(": ")[1].split(", ") == [run.key for run in records.missing]


@pytest.mark.parametrize("budget", [0.3, 4.5, 13.7, 30.0])
@pytest.mark.parametrize("fixed", [0.0, 2e-3])
def test_budget_is_kept_and_at_most_two_packs_of_known_speed_are_lost(budget, fixed, bench, card):
    bench.pace, bench.startup, bench.fixed = {"beta-tcvae": 2e-3}, 0.5, fixed
    done = set(_hashes(_sweep(card, device="cuda", pack=4, budget=budget)))
    lost = [runs for runs in bench.started if not set(_hashes(runs)) <= done]
    first = {runs[0].objective: runs for runs in reversed(bench.started)}
    assert sum(runs is not first[runs[0].objective] for runs in lost) <= 2 and all(len(runs) <= 4 for runs in lost)
    assert bench.now <= budget + bench.startup + 100 * (fixed + 8e-3)  # two looks after the start
    assert set(bench.ended) == done == set(_hashes(read_records(card.record)))


def test_status_estimates_the_rest_from_records(spec):
    device = results.device_name(torch.device("cpu"))
    times = {"total_steps": 6, "train_seconds": 6000.0, "evaluation_seconds": 5.0, "device": device}
    merge_records(spec.record, [_made_up(run, **times) for run in spec.runs(1)])
    assert status(spec, "cpu")[1].seconds is None  # the ISA prior's runs are of a kind that is not recorded
    assert status(spec.grid(beta=[1, 4], seeds=4), "cpu")[0].seconds == pytest.approx(4 * 6005)
    own = spec.grid(beta=[1, 4], seeds=2, steps=[6, 12])
    assert status(own, "cpu")[0].seconds == pytest.approx(4 * 2 * 6005)
    begun = spec.tiers[2][0].replace(steps=8)  # its checkpoint, after step 4, is also that of the run of 6 steps
    options = {"checkpoints": spec.work / "checkpoints", "checkpoint_every": 4, "checkpoint_seconds": 0}
    train(begun, dataset=DATASET, device="cpu", **options)
    assert status(spec.grid(beta=[1, 4], seeds=4), "cpu")[0].seconds == pytest.approx((3 + 1 / 3) * 6005)


def test_measuring_in_a_second_thread_gives_the_same_records(spec, monkeypatch, tmp_path):
    threads, claimed, original = set(), [], results.measure

    def measure(trained, *arguments, **options):
        threads.add(threading.current_thread())
        claimed.extend(packs.is_claimed(packs.Job(spec, result.run)) for result in trained.results)
        return original(trained, *arguments, **options)

    monkeypatch.setattr(results, "measure", measure)
    found = _sweep(spec, device="cuda", pack=2)
    (thread,) = threads
    assert thread is not threading.main_thread() and not thread.is_alive() and claimed == [True] * 9
    alone = _sweep(_spec(tmp_path / "other"), pack=2)
    assert [without_times(record) for record in found] == [without_times(record) for record in alone]


@pytest.mark.parametrize("failing", [(engine, "fit"), (results, "measure")], ids=["training", "measuring"])
def test_error_in_the_second_pack_ends_the_sweep_and_keeps_the_first(failing, spec, monkeypatch):
    original, calls = getattr(*failing), []

    def failing_once(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise RuntimeError("a bad day")
        return original(*arguments, **options)

    monkeypatch.setattr(*failing, failing_once)
    with pytest.raises(RuntimeError, match="a bad day"):
        _sweep(spec, device="cuda", pack=4)
    assert set(_hashes(spec.runs(1))) <= set(_hashes(read_records(spec.record))) < set(_hashes(spec.runs()))
    assert [row.in_progress for row in status(spec)] == [0, 0]


def test_portraits_models_and_copies_after_every_pack(spec, tmp_path):
    out, counts = tmp_path / "out", []
    first = _hashes(_sweep(spec, tier=1))
    options = {"out": out, "pack": 3, "keep_models": True}
    records = _sweep(spec, **options, report=lambda line: counts.append(len(read_records(out / "tiny.csv"))))
    assert counts == [2, 2, 5, 5, 5]
    new = [row for row in records if row["hash"] not in first]
    added = _sweep(spec.grid(beta=9), out=out)  # another call adds to what is there
    assert sorted(_hashes(read_records(out / "tiny.csv"))) == sorted(_hashes(new + added))
    assert len(list((out / "portraits").iterdir())) == 6
    for record in new:
        path = Path("portraits", f"{record['key']}.npz")
        assert Portrait.load(out / path).about["hash"] == record["hash"]
        assert (out / path).read_bytes() == (tmp_path / path).read_bytes()
        run, _, _ = results.load_model(spec.work / "models" / record["key"])
        assert run.hash == record["hash"]


def test_profile_has_every_kind_and_records_nothing(spec, tmp_path):
    path = tmp_path / "out" / "profile.txt"
    assert len(_sweep(spec, budget=0, profile=path, pack=4)) == 0
    lines = [line for line in path.read_text().splitlines() if "runs at once" in line]
    assert [line[0] for line in lines] == ["4", "3"] and all("ms per run and step" in line for line in lines)
    assert not spec.record.exists() and not (tmp_path / "portraits").exists()


def test_published_data_must_exist(tmp_path, monkeypatch, capsys):
    spec = _spec(tmp_path / "own", SPEC.replace("dataset: cars3d", "dataset: cars3d, source: $TINY_CARS"))
    monkeypatch.delenv("TINY_CARS", raising=False)
    assert _sweep(spec, budget=0).wanted == 9  # reading records asks for no data
    assert cli.main(["sweep", str(spec.path)]) == 2
    assert "$TINY_CARS does not exist; set this variable to the path of the published data" in capsys.readouterr().err
    monkeypatch.setenv("TINY_CARS", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="nowhere does not exist"):
        _sweep(spec)
    monkeypatch.setenv("TINY_CARS", str(tmp_path))
    (record,) = _sweep(spec.grid(beta=1))
    assert record["source"] == "$TINY_CARS" and str(tmp_path) not in spec.record.read_text()


BAD_OPTIONS = {
    "--tier=7": "tier must be one of 1, 2, got 7",
    "--budget=nan": "budget must be a number of seconds, at least 0, got nan",
    "--pack=0": "pack must be a number of runs, at least 1, got 0",
    "--profile=p --scheduler=s": "profile excludes scheduler: it is made on this machine",
}


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_bad_option_is_one_line(option, spec, capsys):
    assert cli.main(["sweep", str(spec.path), *option.split()]) == 2
    assert capsys.readouterr().err == f"isa: error: {BAD_OPTIONS[option]}\n" and not spec.work.exists()


def test_commands_print_progress(spec, tmp_path, capsys):
    assert cli.main(["status", str(spec.path), "--device", "cpu"]) == 0
    assert "unknown: this machine has not recorded this kind of run" in capsys.readouterr().out
    paths = [str(spec.path), str(write_spec(tmp_path / "other", SPEC.replace("seeds: 2", "seeds: 7-8")))]
    assert cli.main(["sweep", *paths, "--tier", "1", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert len(lines) == 10 and all(line.endswith(": 4 of 4 runs recorded") for line in lines[-2:])
    assert printed.err == ""  # no terminal, so no bar
    assert cli.main(["status", *paths, "--device", "cpu"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 8 and all(path in line for path, line in zip(paths, rows[::4], strict=True))
    assert all(line.split() == ["1", "4", "4", "0", "0", "done"] for line in rows[2::4])
