"""What determines a run: defaults of the paper, checks, and hashes that identify committed records."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isa import data, isa_prior
from isa.data import cars3d, dsprites, faces3d
from isa.run import DEFAULTS, OBJECTIVES, Run

TABLES = Path(__file__).parents[1] / "runs"
TEXTS = ("dataset", "source", "objective", "prior", "model", "likelihood", "kl", "sampling", "precision")


def test_defaults_are_tables_1_and_2():
    run = Run()
    assert (run.total_steps, run.batch_size, run.latent_dim, run.learning_rate) == (7200, 2048, 20, 1e-3)
    assert (run.model, run.likelihood, run.prior, run.beta) == ("mlp", "bernoulli", "normal", 1.0)
    assert not run.reduced and Run(epochs=19).reduced
    run = Run(dataset="faces3d", objective="isa-vae", learn_exponents=True)
    assert (run.epochs, run.latent_dim, run.exponent_learning_rate) == (1500, 10, 5e-4)
    assert run.total_steps == 1500 * (50 * 21 * 11 * 11 // 2048)
    assert run.p0 == 2.1 and run.p1 == 2.0
    assert Run(dataset="faces3d", objective="isa-vae").p1 == 1.9
    assert Run(objective="isa-vae").tree == isa_prior((4,) * 5, 2.1, 2.2).tree


def test_defaults_match_the_data_sets():
    assert DEFAULTS["dsprites"].images == math.prod(dsprites.FACTOR_SIZES)
    assert DEFAULTS["faces3d"].images == math.prod(faces3d.FACTOR_SIZES)
    assert DEFAULTS["cars3d"].images == len(cars3d.CARS) * len(cars3d.ELEVATIONS) * len(cars3d.AZIMUTHS)
    assert set(DEFAULTS) == set(data.NAMES)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Run(objective="isa-vae"), Run(objective="isa-vae", prior="2.1[5*2.2[4]]")),
        (Run(objective="isa-vae"), Run(objective="beta-vae", prior="isa", latent_dim=20)),
        (Run(epochs=20), Run(steps=7200)),
        (Run(source="/here.npz"), Run(source=Path("/there.npz"))),
        (Run(), Run(sampling="stratified")),
        (Run(objective="beta-tcvae", beta=2), Run(objective="beta-tcvae", beta=2.0)),
        (Run(beta=0.0), Run(beta=-0.0)),
        (Run(exponent_learning_rate=1.0), Run()),
    ],
)
def test_equivalent_descriptions_have_one_hash(one, other):
    assert one.hash == other.hash


CHOICES = {
    "source": "x.npz",
    "objective": "factor-vae",
    "beta": 1.0001,
    "seed": 1,
    "p0": 2.11,
    "p1": (2.2, 2.2, 2.2, 2.2, 2.3),
    "subspaces": (5, 5, 5, 5),
    "scale": 2.0,
    "learn_exponents": True,
    "model": "conv",
    "steps": 7201,
    "epochs": 19.0,
    "batch_size": 2047,
    "learning_rate": 9e-4,
    "likelihood": "gaussian",
    "precision": "fp32",
}


def test_choices_that_change_a_result_change_the_hash():
    start = Run(objective="isa-vae", prior="isa")
    changed = [start.replace(**{name: value}) for name, value in CHOICES.items()]
    changed += [Run(objective="isa-vae", dataset="faces3d"), Run(objective="isa-tcvae"), Run()]
    changed += [Run(objective="isa-tcvae", sampling="stratified"), Run(kl="closed_form")]
    changed += [Run(objective="isa-vae", learn_exponents=True, exponent_learning_rate=1e-4)]
    hashes = {start.hash, *(run.hash for run in changed)}
    assert len(hashes) == 1 + len(changed)
    assert start.key.endswith(start.hash) and len(start.hash) == 16
    same = [name for name, run in zip(CHOICES, changed, strict=False) if run.course == start.course]
    assert same == ["steps", "epochs"]


def test_every_committed_record_has_the_hash_of_its_run():
    assert Run(objective="isa-vae").hash == "5b63d2f153b0c6e0"
    checked = 0
    for path in sorted(TABLES.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        for row in rows if rows and {"hash", "objective"} <= set(rows[0]) else []:
            cells = {name: row[name] for name in Run.model_fields if row.get(name)}
            run = Run(**{name: cell if name in TEXTS else json.loads(cell) for name, cell in cells.items()})
            assert run.hash == row["hash"], f"{path.name}: {row['key']}"
            checked += 1
    assert checked >= 89


@given(
    st.sampled_from(sorted(OBJECTIVES)),
    st.floats(0.01, 100),
    st.integers(0, 2**63 - 1),
    st.integers(1, 10_000),
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
)
def test_fields_survive_json(objective, beta, seed, steps, subspaces):
    isa = {"subspaces": subspaces} if objective.startswith("isa") else {}
    run = Run(objective=objective, beta=beta, seed=seed, steps=steps, **isa)
    again = Run.from_dict(json.loads(json.dumps(run.to_dict())))
    assert again == run and again.hash == run.hash and hash(again) == hash(run)
    assert run.latent_dim == (sum(subspaces) if isa else 20)
    assert run.replace(seed=5, beta=1.0) == Run(objective=objective, seed=5, steps=steps, **isa)
    assert list(run.to_dict()) == list(Run.model_fields)


ISA = {"objective": "isa-vae"}
BAD = [
    ({"dataset": "mnist"}, "dataset must be 'dsprites', 'faces3d' or 'cars3d', got 'mnist'"),
    ({"objective": "vae"}, "objective must be 'beta-vae', .* or 'factor-vae', got 'vae'"),
    ({"beta": -1.0}, r"beta must be greater than or equal to 0, got -1\.0"),
    ({"beta": math.nan}, "beta must be .*, got nan"),
    ({"beta": "1"}, "beta must be a valid number, got '1'"),
    ({"seed": -1}, "seed must be greater than or equal to 0, got -1"),
    ({"seed": 2**63}, f"seed must be less than {2**63}, got {2**63}"),
    ({"model": "resnet"}, "model must be one of mlp, conv.*, got 'resnet'"),
    ({"latent_dim": 10**9}, "latent_dim must be less than or equal to 4096, got 1000000000"),
    ({"epochs": 1e30}, r"epochs must make at most 100,000,000 steps, got 1e\+30"),
    ({"epochs": 0}, "epochs must be greater than 0, got 0"),
    ({"steps": 10**12}, "steps must be less than or equal to 100000000, got 1000000000000"),
    ({"batch_size": 737_281}, "batch_size must be at most 737,280, got 737281"),
    ({"learning_rate": math.inf}, "learning_rate must be .*, got inf"),
    ({"kl": "exact"}, "kl must be 'monte_carlo' or 'closed_form', got 'exact'"),
    ({"kl": "closed_form", **ISA}, "kl must be monte_carlo with an ISA prior"),
    ({"kl": "closed_form", "objective": "beta-tcvae"}, "kl must be monte_carlo .* TCVAE"),
    ({"sampling": "stratified", "batch_size": 1}, "batch_size must be at least 2 for sampling 'stratified', got 1"),
    ({"prior": "laplace"}, "prior must be 'normal', 'isa' or the text of a tree: 'laplace' is not a tree"),
    ({"prior": "normal", **ISA}, "prior must be 'isa' or the text of a tree .*, got 'normal'"),
    ({"p0": 2.0}, r"p0 requires the prior 'isa', got 2\.0"),
    ({"prior": "2[20]", "p1": 2.0, **ISA}, r"p1 requires the prior 'isa', got 2\.0"),
    ({"scale": 2.0}, r"scale requires an ISA prior, got 2\.0"),
    ({"learn_exponents": True}, "learn_exponents requires an ISA prior, got True"),
    ({"learn_exponents": 1, **ISA}, "learn_exponents must be a valid boolean, got 1"),
    ({"subspaces": (), **ISA}, r"subspaces must .*, got \(\)"),
    ({"p0": -2.0, **ISA}, r"p0 must be greater than 0, got -2\.0"),
    ({"p1": (2.0, 2.0), **ISA}, "p1 must be one number or 5, one for each subspace, got"),
    ({"scale": "unit", "learn_exponents": True, **ISA}, "scale must be a number .*, got 'unit'"),
    ({"scale": "unit", "subspaces": (1, 4), **ISA}, "scale = 'unit'; coordinates of .* differ in variance"),
    ({"latent_dim": 10, **ISA}, "latent_dim must be 20, the number of leaves of .*, got 10"),
    ({"source": 3}, "source must be a valid string, got 3"),
    ({"betas": 1}, "'betas' is not a field of Run: the fields are dataset, source"),
]


@pytest.mark.parametrize(("changes", "sentence"), BAD, ids=[str(changes) for changes, _ in BAD])
def test_bad_fields_raise_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        Run(**changes)
    assert "\n" not in str(caught.value) and "should" not in str(caught.value)
