"""Fields of a run: defaults of the paper, checks, and hashes that identify committed records."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isa import data, isa_prior
from isa.data import cars3d, dsprites, faces3d
from isa.run import DEFAULTS, OBJECTIVES, Run

ISA = {"objective": "isa-vae"}


def test_defaults_are_tables_1_and_2_and_match_the_data_sets():
    run = Run()
    assert (run.total_steps, run.batch_size, run.latent_dim, run.learning_rate) == (7200, 2048, 20, 1e-3)
    assert (run.model, run.likelihood, run.prior, run.beta) == ("mlp", "bernoulli", "normal", 1.0)
    assert not run.reduced and Run(epochs=19).reduced
    run = Run(dataset="faces3d", objective="isa-vae", learn_exponents=True)
    assert (run.epochs, run.latent_dim, run.exponent_learning_rate) == (1500, 10, 5e-4)
    assert run.total_steps == 1500 * (50 * 21 * 11 * 11 // 2048)
    assert run.p0 == 2.1 and run.p1 == 2.0 and Run(dataset="faces3d", **ISA).p1 == 1.9
    assert Run(**ISA).tree == isa_prior((4,) * 5, 2.1, 2.2).tree
    grids = {"dsprites": dsprites.FACTOR_SIZES, "faces3d": faces3d.FACTOR_SIZES}
    grids["cars3d"] = [len(values) for values in (cars3d.CARS, cars3d.ELEVATIONS, cars3d.AZIMUTHS)]
    assert {name: math.prod(grids[name]) for name in data.NAMES} == {n: d.images for n, d in DEFAULTS.items()}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (ISA, {"prior": "2.1[5*2.2[4]]", **ISA}),
        (ISA, {"prior": "isa", "latent_dim": 20}),
        ({"epochs": 20}, {"steps": 7200}),
        ({"source": "/here.npz"}, {"source": Path("/there.npz")}),
        ({}, {"sampling": "stratified"}),
        ({"beta": 0}, {"beta": -0.0}),
        ({}, {"exponent_learning_rate": 1.0}),
    ],
)
def test_equivalent_descriptions_have_one_hash(one, other):
    assert Run(**one).hash == Run(**other).hash


def test_choices_that_change_a_result_change_the_hash():
    start = Run(**ISA)
    assert start.hash == "5b63d2f153b0c6e0" and start.key == "dsprites-isa-vae-1-seed0-5b63d2f153b0c6e0"
    changes = {"source": "x.npz", "objective": "factor-vae", "beta": 1.0001, "seed": 1, "p0": 2.11}
    changes |= {"p1": (2.2, 2.2, 2.2, 2.2, 2.3), "subspaces": (5, 5, 5, 5), "scale": 2.0, "learn_exponents": True}
    changes |= {"model": "conv", "batch_size": 2047, "learning_rate": 9e-4, "likelihood": "gaussian"}
    changes |= {"steps": 7201, "epochs": 19.0, "precision": "fp32"}
    explicit = start.replace(prior="isa")
    changed = {name: explicit.replace(**{name: value}) for name, value in changes.items()}
    others = [Run(dataset="faces3d", **ISA), Run(objective="isa-tcvae"), Run(), Run(kl="closed_form")]
    others += [Run(objective="isa-tcvae", sampling="stratified")]
    others += [Run(learn_exponents=True, exponent_learning_rate=1e-4, **ISA)]
    assert len({run.hash for run in (start, *changed.values(), *others)}) == 1 + len(changed) + len(others)
    assert [name for name, run in changed.items() if run.course == start.course] == ["steps", "epochs"]


@settings(max_examples=30)
@given(
    st.sampled_from(sorted(OBJECTIVES)),
    st.floats(0.01, 100),
    st.integers(0, 2**63 - 1),
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
)
def test_fields_survive_json(objective, beta, seed, subspaces):
    isa = {"subspaces": subspaces} if objective.startswith("isa") else {}
    run = Run(objective=objective, beta=beta, seed=seed, **isa)
    assert run.hash  # computed once, and no field
    again = Run(**json.loads(json.dumps(run.to_dict())))
    assert again == run and hash(again) == hash(run) and again.hash == run.hash
    assert run.latent_dim == (sum(subspaces) if isa else 20)
    assert run.replace(seed=5, beta=1.0) == Run(objective=objective, seed=5, **isa)


BAD = [
    ({"objective": "vae"}, "objective must be 'beta-vae', .* or 'factor-vae', got 'vae'"),
    ({"beta": math.nan}, "beta must be .*, got nan"),
    ({"model": "resnet"}, "model must be one of mlp, conv.*, got 'resnet'"),
    ({"batch_size": 737_281}, "batch_size must be at most 737,280, got 737281"),
    ({"kl": "closed_form", **ISA}, "kl must be monte_carlo with an ISA prior"),
    ({"sampling": "stratified", "batch_size": 1}, "batch_size must be at least 2 for sampling 'stratified', got 1"),
    ({"prior": "laplace"}, "prior must be 'normal', 'isa' or the text of a tree: 'laplace' is not a tree"),
    ({"prior": "normal", **ISA}, "prior must be 'isa' or the text of a tree .*, got 'normal'"),
    ({"prior": "2[20]", "p1": 2.0, **ISA}, r"p1 requires the prior 'isa', got 2\.0"),
    ({"scale": 2.0}, r"scale requires an ISA prior, got 2\.0"),
    ({"subspaces": (), **ISA}, r"subspaces must .*, got \(\)"),
    ({"p1": (2.0, 2.0), **ISA}, "p1 must be one number or 5, one for each subspace, got"),
    ({"scale": "unit", "learn_exponents": True, **ISA}, "scale must be a number .*, got 'unit'"),
    ({"scale": "unit", "subspaces": (1, 4), **ISA}, "scale = 'unit'; coordinates of .* differ in variance"),
    ({"latent_dim": 10, **ISA}, "latent_dim must be 20, the number of leaves of .*, got 10"),
    ({"betas": 1}, "'betas' is not a field of Run: the fields are dataset, source"),
]


@pytest.mark.parametrize(("changes", "sentence"), BAD, ids=[str(changes) for changes, _ in BAD])
def test_bad_fields_raise_one_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        Run(**changes)
    assert "\n" not in str(caught.value) and "should" not in str(caught.value)
