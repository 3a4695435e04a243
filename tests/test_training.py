"""Training: what determines a run, the step against a plain one, packs, resuming, divergence, evaluation, records."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny_sweep import DATASET, SIZES, small_discriminator

from isa import LearnableISAPrior, LpNested, Node, cli, data, isa_prior, models, training
from isa._files import write_atomically
from isa.data import FactorDataset
from isa.training import CheckpointError, Run, evaluate, load_model, train, train_pack

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    monkeypatch.setattr(models, "build_discriminator", small_discriminator)


def _grey() -> FactorDataset:
    """The same squares in a grey that bfloat16 does not hold."""
    images = (DATASET.images(torch.arange(len(DATASET))) * 200).to(torch.uint8).numpy().reshape(*SIZES, 64, 64)
    return FactorDataset.from_array("cars3d", "grey squares", DATASET.factors_info, images, DATASET.provenance)


def _run(**changes) -> Run:
    settings = {"dataset": "cars3d", "model": "small", "batch_size": 16, "steps": 6, "precision": "fp32"}
    prior = changes.get("prior", changes.get("objective", "beta-vae"))
    settings |= {"subspaces": (2, 1)} if prior.startswith("isa") else {"latent_dim": 3}
    return Run(**(settings | changes))


def _train(run: Run, **options):
    return train(run, **({"dataset": DATASET, "device": "cpu"} | options))


KINDS = {
    "beta-vae": {"objective": "beta-vae", "beta": 2.0},
    "closed form": {"objective": "beta-vae", "kl": "closed_form"},
    "isa-vae": {"objective": "isa-vae", "p1": (1.8, 2.4)},
    "learned": {"objective": "isa-vae", "learn_exponents": True, "exponent_learning_rate": 0.01},
    "tree": {"objective": "isa-vae", "prior": "2.1[1.5[2], 1]"},
    "unit": {"objective": "isa-vae", "subspaces": (2, 2), "scale": "unit"},
    "beta-tcvae": {"objective": "beta-tcvae", "beta": 3.0},
    "isa-tcvae": {"objective": "isa-tcvae", "sampling": "stratified"},
    "factor-vae": {"objective": "factor-vae", "beta": 4.0},
    "gaussian": {"objective": "beta-vae", "likelihood": "gaussian"},
}


# --- what a run is ---------------------------------------------------------------------------------------------------


def test_defaults_are_tables_1_and_2():
    run = Run()
    assert (run.total_steps, run.batch_size, run.latent_dim, run.learning_rate) == (7200, 2048, 20, 1e-3)
    assert (run.model, run.likelihood, run.prior, run.beta) == ("mlp", "bernoulli", "normal", 1.0)
    assert not run.reduced
    run = Run(dataset="faces3d", objective="isa-vae", learn_exponents=True)
    assert (run.epochs, run.latent_dim, run.exponent_learning_rate) == (1500, 10, 5e-4)
    assert run.total_steps == 1500 * (50 * 21 * 11 * 11 // 2048)
    assert run.p0 == 2.1 and run.p1 == 2.0
    assert Run(dataset="faces3d", objective="isa-vae").p1 == 1.9
    assert Run(objective="isa-vae").tree == isa_prior((4,) * 5, 2.1, 2.2).tree


def test_sizes_are_the_data_sets():
    from isa.data import cars3d, dsprites, faces3d

    assert training.DEFAULTS["dsprites"].images == math.prod(dsprites.FACTOR_SIZES)
    assert training.DEFAULTS["faces3d"].images == math.prod(faces3d.FACTOR_SIZES)
    assert training.DEFAULTS["cars3d"].images == len(cars3d.CARS) * len(cars3d.ELEVATIONS) * len(cars3d.AZIMUTHS)
    assert set(training.DEFAULTS) == set(data.NAMES)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Run(objective="isa-vae"), Run(objective="isa-vae", prior="2.1[5*2.2[4]]")),
        (Run(objective="isa-vae"), Run(objective="beta-vae", prior="isa", latent_dim=20)),
        (Run(epochs=20), Run(steps=7200)),
        (Run(source="/here.npz"), Run(source="/there.npz")),
        (Run(), Run(sampling="stratified")),
        (Run(objective="beta-tcvae", beta=2), Run(objective="beta-tcvae", beta=2.0)),
        (Run(exponent_learning_rate=1.0), Run()),
    ],
)
def test_runs_that_are_one_have_one_hash(one, other):
    assert one.hash == other.hash


VARIANTS = {
    "dataset": "faces3d",
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
    "latent_dim": None,
    "steps": 7201,
    "epochs": 19.0,
    "batch_size": 2047,
    "learning_rate": 9e-4,
    "likelihood": "gaussian",
    "precision": "fp32",
}


def test_hash_tells_apart_what_determines_a_result():
    start = Run(objective="isa-vae", prior="isa")
    changed = [dataclasses.replace(start, **{name: value}) for name, value in VARIANTS.items() if name != "dataset"]
    changed += [Run(objective="isa-vae", dataset="faces3d"), Run(objective="isa-tcvae"), Run()]
    changed += [Run(objective="isa-tcvae", sampling="stratified"), Run(kl="closed_form")]
    changed += [Run(objective="isa-vae", learn_exponents=True, exponent_learning_rate=1e-4)]
    hashes = [start.hash, *(run.hash for run in changed)]
    same = 1  # latent_dim None is what it was
    assert len(set(hashes)) == len(hashes) - same
    assert start.key.endswith(start.hash) and len(start.hash) == 16


def test_a_hash_is_the_same_on_every_machine_and_day():
    # Records are known by it: where this fails, isa.training._FORMAT has to be raised, and all runs be trained again.
    assert Run(objective="isa-vae").hash == "5b63d2f153b0c6e0"


@given(
    st.sampled_from(sorted(training.OBJECTIVES)),
    st.floats(0.01, 100),
    st.integers(0, 2**63 - 1),
    st.integers(1, 10_000),
    st.lists(st.integers(1, 6), min_size=1, max_size=5),
)
def test_fields_survive_json(objective, beta, seed, steps, subspaces):
    isa = {"subspaces": tuple(subspaces)} if objective.startswith("isa") else {}
    run = Run(objective=objective, beta=beta, seed=seed, steps=steps, **isa)
    again = Run.from_dict(json.loads(json.dumps(run.to_dict())))
    assert again == run and again.hash == run.hash
    assert run.latent_dim == (sum(subspaces) if isa else 20)


BAD = [
    ({"dataset": "mnist"}, "dataset must be one of dsprites, faces3d, cars3d, got 'mnist'"),
    ({"objective": "vae"}, "objective must be one of .*, got 'vae'"),
    ({"beta": -1.0}, r"beta must be a finite number of at least 0, got -1\.0"),
    ({"beta": math.nan}, "beta must be a finite number of at least 0, got nan"),
    ({"beta": math.inf}, "beta must be a finite number of at least 0, got inf"),
    ({"beta": 1e-300}, r"beta must be from 1\.2e-38 to 3\.4e\+38, got 1e-300"),
    ({"beta": False}, "beta must be a number, got False"),
    ({"beta": "1"}, "beta must be a number, got '1'"),
    ({"seed": -1}, "seed must be between 0 and .*, got -1"),
    ({"seed": 1.5}, r"seed must be an integer, got 1\.5"),
    ({"model": "resnet"}, "model must be one of mlp, conv.*, got 'resnet'"),
    ({"latent_dim": 0}, "latent_dim must be at least 1, got 0"),
    ({"latent_dim": 10**9}, "latent_dim must be at most 4,096, got 1000000000"),
    ({"epochs": 1e30}, r"epochs must make at most 100,000,000 steps, got 1e\+30"),
    ({"epochs": 1e300}, r"epochs must be from 1\.2e-38 to 3\.4e\+38, got 1e\+300"),
    ({"steps": 10**12}, "steps must make at most 100,000,000 steps, got 1000000000000"),
    ({"epochs": 0}, "epochs must be a positive finite number, got 0"),
    ({"steps": 0}, "steps must be at least 1, got 0"),
    ({"batch_size": 737_281}, "batch_size must be between 1 and 737280, got 737281"),
    ({"learning_rate": math.inf}, "learning_rate must be a positive finite number, got inf"),
    ({"exponent_learning_rate": 0}, "exponent_learning_rate must be a positive finite number, got 0"),
    ({"likelihood": "poisson"}, "likelihood must be one of bernoulli, gaussian, got 'poisson'"),
    ({"kl": "exact"}, "kl must be one of monte_carlo, closed_form, got 'exact'"),
    ({"kl": "closed_form", "objective": "isa-vae"}, "kl must be monte_carlo with an ISA prior"),
    ({"kl": "closed_form", "objective": "beta-tcvae"}, "kl must be monte_carlo .* TCVAE"),
    ({"sampling": "none"}, "sampling must be one of weighted, stratified, got 'none'"),
    ({"sampling": "stratified", "batch_size": 1}, "batch_size must be at least 2 for sampling 'stratified', got 1"),
    ({"precision": "fp8"}, "precision must be one of bf16, fp32, got 'fp8'"),
    ({"prior": "laplace"}, "prior must be 'normal', 'isa' or the text of a tree"),
    ({"prior": 3}, "prior must be 'normal', 'isa' or the text of a tree, got 3"),
    ({"prior": "normal", "objective": "isa-vae"}, "prior must be 'isa' or the text of a tree with objective 'isa-vae'"),
    ({"p0": 2.0}, r"p0 is for prior 'isa' alone, got 2\.0 with 'normal'"),
    ({"scale": 2.0}, r"scale is for ISA priors, got 2\.0 with prior 'normal'"),
    ({"learn_exponents": True}, "learn_exponents is for ISA priors, got True"),
    ({"objective": "isa-vae", "learn_exponents": 1}, "learn_exponents must be True or False, got 1"),
    ({"objective": "isa-vae", "prior": "2[20]", "p1": 2.0}, "p1 is for prior 'isa' alone"),
    ({"objective": "isa-vae", "subspaces": ()}, r"subspaces must be a sequence of sizes, got \(\)"),
    ({"objective": "isa-vae", "subspaces": (4, 0)}, "subspaces must be at least 1, got 0"),
    ({"objective": "isa-vae", "subspaces": (4, 10**9)}, "subspaces must add up to at most 4,096 .*, got 1000000004"),
    ({"objective": "isa-vae", "prior": "2[5*2[999]]"}, "prior must be a tree of at most 4,096 leaves, got 4995"),
    ({"objective": "isa-vae", "prior": "2[1e-60[20]]"}, r"an exponent of prior must be from .*, got 1e-60"),
    ({"objective": "isa-vae", "p0": 10**400}, "p0 must be from .*, got 1000"),
    ({"objective": "isa-vae", "scale": 1e300}, r"scale must be from .*, got 1e\+300"),
    ({"objective": "isa-vae", "p0": -2.0}, r"p0 must be a positive finite number, got -2\.0"),
    ({"objective": "isa-vae", "p1": (2.0, 2.0)}, "p1 must be one number or 5, one a subspace, got 2"),
    ({"objective": "isa-vae", "latent_dim": 10}, r"latent_dim must be 20, the number of leaves of .*, got 10"),
    ({"objective": "isa-vae", "scale": "unit", "learn_exponents": True}, "scale must be a number .*, got 'unit'"),
    ({"objective": "isa-vae", "scale": 0}, "scale must be a positive finite number, got 0"),
    ({"objective": "isa-vae", "scale": "unit", "subspaces": (1, 4)}, "scale = 'unit'; coordinates of this tree differ"),
    ({"source": 3}, "source must be a path, got 3"),
]


@pytest.mark.parametrize(("changes", "sentence"), BAD, ids=[str(changes) for changes, _ in BAD])
def test_bad_fields_are_refused_in_one_sentence(changes, sentence):
    with pytest.raises((ValueError, TypeError), match=sentence) as caught:
        Run(**changes)
    assert "\n" not in str(caught.value)


def test_from_dict_names_a_field_that_does_not_exist():
    with pytest.raises(KeyError, match="'betas' is no field of a run: its fields are dataset, source"):
        Run.from_dict({"betas": 1})


# --- batches and noise -----------------------------------------------------------------------------------------------


def test_an_epoch_takes_every_image_at_most_once_and_pairs_share_none():
    run = _run(objective="factor-vae")
    feed = training._Feed(run, DATASET, torch.device("cpu"))
    per_epoch = len(DATASET) // 16
    for epoch in range(2):
        pairs = [feed.index(epoch * per_epoch + batch) for batch in range(per_epoch)]
        assert all(len(set(pair.tolist())) == 32 for pair in pairs)
        firsts = torch.cat([pair[:16] for pair in pairs])
        assert len(set(firsts.tolist())) == per_epoch * 16
        assert torch.equal(firsts, DATASET.epoch(epoch, seed=run.seed)[: per_epoch * 16])


def test_noise_is_a_function_of_seed_and_step_alone():
    run = _run(objective="factor-vae", batch_size=32)
    cpu = torch.device("cpu")
    forwards, backwards = training._Feed(run, DATASET, cpu), training._Feed(run, DATASET, cpu)
    one = [forwards.noise(step) for step in range(40)]
    for step in reversed(range(40)):
        for a, b in zip(one[step], backwards.noise(step), strict=True):
            assert torch.equal(a, b)
    values = torch.stack([noise for noise, _ in one])
    assert values.unique().numel() > 0.99 * values.numel()  # nothing is drawn twice
    bound = 5 / math.sqrt(values.numel())
    assert abs(values.mean()) < bound and abs(values.var() - 1) < 2 * bound
    orders = torch.stack([order for _, order in one])
    assert torch.equal(orders.sort(1).values, torch.arange(32)[None, :, None].expand_as(orders))
    other = training._Feed(dataclasses.replace(run, seed=1), DATASET, cpu)
    assert not torch.equal(other.noise(0)[0], one[0][0])


# --- the step --------------------------------------------------------------------------------------------------------


def _plain(run: Run) -> list[float]:
    """The losses of a run trained as one writes it down: modules, one optimiser a network, formulas of the paper."""
    vae = models.build(run.model, run.latent_dim, seed=run.seed)
    adam = torch.optim.Adam(vae.parameters(), run.learning_rate)
    critic = models.build_discriminator(run.latent_dim, seed=run.seed)
    critic_adam = torch.optim.Adam(critic.parameters(), 1e-4, betas=(0.5, 0.9))
    learnable = None
    if run.learn_exponents:
        learnable = LearnableISAPrior(run.subspaces, run.p0, run.p1, run.scale)
        exponent_adam = torch.optim.Adam([learnable.raw_p1], run.exponent_learning_rate)
    normal = torch.distributions.MultivariateNormal(torch.zeros(run.latent_dim), torch.eye(run.latent_dim))
    feed = training._Feed(run, DATASET, torch.device("cpu"))
    losses = []
    for step in range(run.total_steps):
        index = feed.index(step)
        x = DATASET.images(index[: run.batch_size])
        noise, order = feed.noise(step)
        mean, log_var = vae.encode(x)
        z = mean + torch.exp(log_var / 2) * noise[0]
        logits = vae.decode(z)
        if run.likelihood == "bernoulli":
            fit = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3))
        else:
            fit = torch.distributions.Normal(logits, 1.0).log_prob(x).sum((1, 2, 3))
        prior = normal
        if learnable is not None:
            prior = learnable()
        elif run.tree is not None:
            prior = LpNested(run.tree, run.scale)
        posterior = torch.distributions.Normal(mean, torch.exp(log_var / 2))
        log_q, log_p = posterior.log_prob(z).sum(-1), prior.log_prob(z)
        kl = (log_q - log_p).mean()
        if run.kl == "closed_form":
            kl = 0.5 * (mean**2 + log_var.exp() - log_var - 1).sum(-1).mean()
        if run.base == "beta-vae":
            loss = run.beta * kl - fit.mean()
        elif run.base == "beta-tcvae":
            pairs = torch.distributions.Normal(mean, torch.exp(log_var / 2)).log_prob(z[:, None])  # (B, B, D)
            size, whole = run.batch_size, len(DATASET)
            weights = torch.full((size, size), 1 / (size * whole))
            if run.sampling == "stratified":
                weights = torch.full((size, size), (whole - 1) / (whole * (size - 1))).fill_diagonal_(1 / whole)
            joint = (pairs.sum(-1) + weights.log()).logsumexp(1)
            marginal = (pairs + weights.log()[..., None]).logsumexp(1).sum(-1)
            parts = log_q - joint, joint - marginal, marginal - log_p
            loss = (parts[0] + run.beta * parts[1] + parts[2] - fit).mean()
        else:
            judged = critic(z)
            loss = (run.beta * (judged[:, 0] - judged[:, 1]) - fit).mean() + kl
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        if run.base == "factor-vae":
            with torch.no_grad():
                second = vae.encode(DATASET.images(index[run.batch_size :]))
                other = (second.mean + torch.exp(second.log_var / 2) * noise[1]).gather(0, order)
            critic_adam.zero_grad()
            classes = torch.cat([torch.zeros(run.batch_size), torch.ones(run.batch_size)]).long()
            F.cross_entropy(critic(torch.cat([z.detach(), other])), classes).backward()
            critic_adam.step()
        adam.step()
        if learnable is not None:
            exponent_adam.step()
            exponent_adam.zero_grad()
    return losses


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_what_plain_pytorch_trains(kind):
    run = _run(**KINDS[kind], learning_rate=0.01)
    result = _train(run, evaluation=False)
    np.testing.assert_allclose(result.curve["loss"], _plain(run), rtol=2e-5)
    assert result.curve["loss"][-1] < result.curve["loss"][0]


@pytest.mark.parametrize(
    ("kind", "model"), [*((kind, "small") for kind in KINDS), ("learned", "conv"), ("factor-vae", "conv")]
)
def test_a_pack_is_its_runs_trained_alone(kind, model):
    # A bias before a normalisation has no gradient but rounding, which Adam scales to a whole step: that is why the
    # convolutional pair takes two steps here, and its parameters are left out.
    runs = [_run(**KINDS[kind], model=model, seed=seed, steps=2 if model == "conv" else 6) for seed in (0, 5)]
    varied = {"beta": 1.5}
    if kind == "isa-vae":
        varied |= {"p0": 1.9, "p1": (2.5, 1.4), "scale": 1.7}
    if kind == "tree":
        varied |= {"prior": "1.9[2.6[2], 1]"}
    runs.append(dataclasses.replace(runs[0], **varied))
    together = train_pack(runs, dataset=DATASET, device="cpu", evaluation=False)
    for run, result in zip(runs, together, strict=True):
        alone = _train(run, evaluation=False)
        assert result.run == run
        for name, values in alone.curve.items():
            np.testing.assert_allclose(result.curve[name], values, rtol=1e-4, atol=2e-4, err_msg=name)
        if model == "small":
            for name, value in alone.model.state_dict().items():
                torch.testing.assert_close(result.model.state_dict()[name], value, rtol=1e-4, atol=2e-5)
        if alone.exponents is not None:
            np.testing.assert_allclose(result.exponents, alone.exponents, rtol=1e-6)
    assert not np.allclose(together[0].curve["loss"], together[1].curve["loss"], rtol=1e-4)


def test_exponents_are_learned_and_the_roots_is_held():
    result = _train(_run(**KINDS["learned"], steps=30), evaluation=False)
    assert result.exponents[0] == 2.1
    assert all(abs(p - 2.0) > 0.02 for p in result.exponents[1:2])
    assert result.curve["exponent_1"][0] == pytest.approx(2.0, abs=1e-6)
    assert result.exponents[1] == pytest.approx(result.curve["exponent_1"][-1], abs=0.02)
    deep = _train(_run(objective="isa-vae", prior="2.1[1.5[1, 2.5[2]]]", learn_exponents=True), evaluation=False)
    assert deep.prior.tree.structure == Node.parse("2.1[1.5[1, 2.5[2]]]").structure


def test_bf16_products_keep_float32_parameters_and_the_course():
    runs = [_run(precision=precision, steps=20, learning_rate=0.003) for precision in ("fp32", "bf16")]
    full, half = (_train(run, evaluation=False) for run in runs)
    assert all(value.dtype == torch.float32 for value in half.model.parameters())
    assert not np.array_equal(full.curve["loss"], half.curve["loss"])
    np.testing.assert_allclose(full.curve["loss"], half.curve["loss"], rtol=0.01)


@pytest.mark.parametrize("objective", ["isa-vae", "factor-vae"])
def test_the_convolutional_pair_trains_in_bf16_alone_and_in_a_pack(objective):
    runs = [_run(objective=objective, model="conv", precision="bf16", steps=2, seed=seed) for seed in (0, 1)]
    for alone, result in zip(
        [_train(run, evaluation=False) for run in runs],
        train_pack(runs, dataset=_grey(), device="cpu", evaluation=False),
        strict=True,
    ):
        assert alone.diverged_at is None and result.diverged_at is None
        statistics = [value for name, value in result.model.named_buffers() if name.endswith("running_mean")]
        assert all(value.dtype == torch.float32 and value.abs().max() > 0 for value in statistics)
        assert result.model.encoder.net[1].num_batches_tracked == (4 if objective == "factor-vae" else 2)


def test_grey_levels_stay_exact_in_bf16():
    pack = training._Pack([_run(precision="bf16")], _grey(), torch.device("cpu"), False)
    assert set(pack._inputs().x.unique().tolist()) == {0.0, np.float32(200) / np.float32(255)}


# --- the same again --------------------------------------------------------------------------------------------------


def _equal(one, other) -> None:
    for name, values in one.curve.items():
        np.testing.assert_array_equal(other.curve[name], values)
    for name, value in one.model.state_dict().items():
        assert torch.equal(other.model.state_dict()[name], value), name
    assert one.exponents == other.exponents
    if one.discriminator is not None:
        for name, value in one.discriminator.state_dict().items():
            assert torch.equal(other.discriminator.state_dict()[name], value), name
    if one.evaluation is not None:
        assert torch.equal(one.evaluation.log_likelihood, other.evaluation.log_likelihood)
        assert one.record["mig"] == other.record["mig"]


def test_one_seed_gives_one_result_whatever_ran_before():
    run = _run(objective="isa-vae", precision="bf16")
    first = _train(run)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    _train(_run(objective="beta-tcvae", seed=3))
    _equal(first, _train(run))
    assert torch.equal(torch.random.get_rng_state(), state)
    other = _train(dataclasses.replace(run, seed=1))
    assert not np.array_equal(first.curve["loss"], other.curve["loss"])


class _Interrupted(Exception):
    pass


def _interrupt_at(step: int):
    def callback(taken, terms):
        if taken >= step:
            raise _Interrupted

    return callback


@pytest.mark.parametrize(
    ("kind", "model"), [("learned", "small"), ("beta-tcvae", "small"), ("factor-vae", "small"), ("learned", "conv")]
)
def test_an_interrupted_run_goes_on_to_the_same_result(kind, model, tmp_path):
    steps = 9 if model == "conv" else 41
    run = _run(**KINDS[kind], model=model, steps=steps)
    whole = _train(run)
    options = {"checkpoints": tmp_path, "checkpoint_every": 4}
    for stop in (7, steps - 5):
        with pytest.raises(_Interrupted):
            _train(run, **options, callback=_interrupt_at(stop))
    seen = []
    resumed = _train(run, **options, callback=lambda step, terms: seen.append(step))
    assert seen[0] > 7 and seen[-1] == steps
    _equal(whole, resumed)
    _equal(whole, _train(run, **options, callback=_interrupt_at(steps + 1)))  # a checkpoint of the end
    training.remove_checkpoint(run, tmp_path)
    training.remove_checkpoint(run, tmp_path)
    assert not list(tmp_path.iterdir())


def test_checkpoints_keep_their_distance_in_time(tmp_path, monkeypatch):
    run = _run(steps=30)
    clock = itertools.count(0.0, 10.0)  # a step takes ten seconds, as the engine sees it
    monkeypatch.setattr(training.time, "perf_counter", lambda: next(clock))
    saved = []
    monkeypatch.setattr(training, "_save_tensors", lambda path, tensors, **metadata: saved.append(metadata["step"]))
    options = {"checkpoints": tmp_path, "checkpoint_every": 1, "evaluation": False}
    _train(run, **options, checkpoint_seconds=75)
    assert saved == [8, 16, 24, 30]
    saved.clear()
    _train(run, **options)
    assert saved == list(range(1, 31))
    with pytest.raises(ValueError, match="checkpoint_seconds must be a finite number of at least 0, got -1"):
        _train(run, checkpoint_seconds=-1)


@pytest.mark.parametrize("kind", ["learned", "factor-vae"])
def test_a_longer_run_goes_on_where_a_shorter_one_of_its_course_ends(kind, tmp_path):
    short, long, other = (_run(**KINDS[kind], steps=steps, seed=seed) for steps, seed in ((11, 0), (24, 0), (11, 1)))
    assert short.course == long.course != other.course
    options = {"checkpoints": tmp_path, "checkpoint_every": 4}
    _equal(_train(short), _train(short, **options))
    seen = []
    resumed = _train(long, **options, callback=lambda step, terms: seen.append(step))
    assert seen[0] == 11
    _equal(_train(long), resumed)
    held = training._checkpoint(tmp_path, long).read_bytes()
    _equal(_train(short), _train(short, **options))  # what lies beyond its end is no checkpoint of its own
    assert training._checkpoint(tmp_path, long).read_bytes() == held


def test_a_pack_goes_on_even_where_its_runs_stopped_apart(tmp_path):
    runs = [_run(objective="isa-vae", seed=seed, steps=12) for seed in range(3)]
    options = {"checkpoints": tmp_path, "checkpoint_every": 4, "evaluation": False}
    with pytest.raises(_Interrupted):
        train_pack(runs[:2], dataset=DATASET, device="cpu", **options, callback=_interrupt_at(5))
    for run, result in zip(runs, train_pack(runs, dataset=DATASET, device="cpu", **options), strict=True):
        assert result.run == run
        alone = _train(run, evaluation=False)
        np.testing.assert_allclose(result.curve["loss"], alone.curve["loss"], rtol=1e-5)


def test_a_checkpoint_that_is_torn_or_foreign_is_refused(tmp_path):
    run, other = _run(), _run(seed=1)
    _train(run, checkpoints=tmp_path, evaluation=False)
    (file,) = tmp_path.iterdir()
    held = file.read_bytes()
    file.rename(training._checkpoint(tmp_path, other))
    with pytest.raises(CheckpointError, match=f"is of the course {run.course}, not of {other.course}"):
        _train(other, checkpoints=tmp_path)
    file.write_bytes(held[:50])
    with pytest.raises(CheckpointError, match="cannot be read"):
        _train(run, checkpoints=tmp_path)


def test_a_write_that_fails_leaves_the_last_file(tmp_path):
    path = tmp_path / "folder" / "file"
    write_atomically(path, lambda name: Path(name).write_text("whole"))

    def fail(name):
        Path(name).write_text("to")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, fail)
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_the_commit_is_marked_where_code_differs_from_it_and_not_where_records_do(tmp_path, monkeypatch):
    def git(*arguments):
        named = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        command = ["git", *named, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    module, table = tmp_path / "isa" / "training.py", tmp_path / "runs" / "tiny.csv"
    monkeypatch.setattr(training, "__file__", str(module))
    for path in (module, table):
        path.parent.mkdir()
        path.write_text("a")
    assert training._commit() is None
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "a")
    commit = git("rev-parse", "HEAD")
    assert training._commit() == commit
    table.write_text("b")
    assert training._commit() == commit
    module.write_text("b")
    assert training._commit() == f"{commit}-dirty"


# --- divergence ------------------------------------------------------------------------------------------------------


def test_a_run_that_diverges_spoils_no_other():
    well = _run(objective="isa-vae", steps=30)
    ill = dataclasses.replace(well, beta=1e30)
    first, second = train_pack([ill, well], dataset=DATASET, device="cpu")
    assert first.diverged_at == 0 and first.record["status"] == "diverged" and first.evaluation is None
    assert len(first.curve["loss"]) == 1
    alone = _train(well)
    assert second.diverged_at is None and second.record["status"] == "trained"
    np.testing.assert_allclose(second.curve["loss"], alone.curve["loss"], rtol=1e-5)
    assert second.record["log_likelihood"] == pytest.approx(alone.record["log_likelihood"], rel=1e-5)


def test_a_run_that_diverges_stops_and_says_where():
    run = _run(learning_rate=1e4, steps=200)
    taken = []
    result = _train(run, callback=lambda step, terms: taken.append(step))
    assert 0 < result.diverged_at < taken[-1] <= result.diverged_at + training._CHECK_EVERY
    *before, last = result.curve["loss"].tolist()
    limit = training._DIVERGED * max(math.log(2) * 4096, before[0])
    assert not abs(last) <= limit and all(abs(loss) <= limit for loss in before)
    json.dumps(result.record, allow_nan=False)


def test_what_the_last_step_ruined_is_recorded_as_diverged_and_loses_no_other(caplog):
    runs = [_run(steps=1, learning_rate=1e10, seed=seed) for seed in range(2)]
    results = train_pack(runs, dataset=DATASET, device="cpu")
    for run, result in zip(runs, results, strict=True):
        assert np.isfinite(result.curve["loss"]).all()
        assert result.evaluation is None and result.record["status"] == "diverged"
        assert result.diverged_at == result.record["diverged_at"] == 1
        assert f"{run.key} cannot be measured" in caplog.text
        json.dumps(result.record, allow_nan=False)


def test_a_diverged_run_of_a_resumed_pack_stays_diverged(tmp_path):
    runs = [_run(beta=beta, steps=12) for beta in (1.0, 1e30)]
    options = {"checkpoints": tmp_path, "checkpoint_every": 4, "evaluation": False, "dataset": DATASET, "device": "cpu"}
    with pytest.raises(_Interrupted):
        train_pack(runs, **options, callback=_interrupt_at(8))
    assert [result.diverged_at for result in train_pack(runs, **options)] == [None, 0]


# --- compiling -------------------------------------------------------------------------------------------------------


def test_without_a_compiler_the_step_runs_as_it_is(monkeypatch, caplog):
    def no_compiler(function, **options):
        def call(*arguments):
            raise RuntimeError("No working C++ compiler found\nand much more")

        return call

    monkeypatch.setattr(torch, "compile", no_compiler)
    result = _train(_run(), compile=True, evaluation=False)
    assert not result.record["compiled"]
    assert [record.message for record in caplog.records] == ["the step runs uncompiled: No working C++ compiler found"]
    _equal(result, _train(_run(), compile=False, evaluation=False))


@pytest.mark.parametrize(("kind", "size"), [("learned", 1), ("beta-vae", 2)])
def test_compiling_changes_rounding_alone(kind, size, caplog):
    runs = [_run(**KINDS[kind], seed=seed) for seed in range(size)]
    together = train_pack(runs, dataset=DATASET, device="cpu", compile=True, evaluation=False)
    assert not [record for record in caplog.records if record.name.startswith("isa")]
    for run, compiled in zip(runs, together, strict=True):
        assert compiled.record["compiled"]
        plain = _train(run, compile=False, evaluation=False)
        for name, values in plain.curve.items():
            np.testing.assert_allclose(compiled.curve[name], values, rtol=1e-4, atol=1e-4, err_msg=name)


@cuda
@pytest.mark.parametrize("kind", ["learned", "beta-tcvae", "factor-vae"])
def test_a_step_replayed_as_a_cuda_graph_is_the_step(kind, monkeypatch, caplog):
    runs = [_run(**KINDS[kind], steps=20, seed=seed) for seed in range(2)]
    options = {"dataset": DATASET, "device": "cuda", "evaluation": False}
    replayed = train_pack(runs, **options)
    monkeypatch.setattr(training, "_WARM_STEPS", 1000)  # after which one would be captured
    for one, other in zip(replayed, train_pack(runs, **options), strict=True):
        for name, values in one.curve.items():
            np.testing.assert_allclose(values, other.curve[name], rtol=1e-5, atol=1e-5, err_msg=name)
    assert not [record for record in caplog.records if record.name.startswith("isa")]


@cuda
@pytest.mark.parametrize("kind", ["learned", "beta-vae"])
def test_a_gpu_measures_what_the_cpu_does(kind):
    result = _train(_run(**KINDS[kind], steps=20), device="cuda")
    again = evaluate(result.model, result.prior, result.run, DATASET)
    np.testing.assert_allclose(result.evaluation.mean, again.mean, atol=1e-4)
    np.testing.assert_allclose(result.evaluation.log_var, again.log_var, atol=1e-4)
    assert result.evaluation.mig.score == pytest.approx(again.mig.score, abs=0.05)  # its samples are other ones


def test_adam_in_one_pass_is_adam(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(3, 4, generator=generator), torch.randn(5, generator=generator)]
    theirs = [value.clone() for value in values]
    groups = [{"params": values[:1], "lr": 0.01, "betas": (0.8, 0.99)}, {"params": values[1:], "lr": 0.002}]
    adam = training._Adam(groups, {values[0]: values[0].bfloat16()}, compile=True)
    groups = [{**group, "params": [value]} for group, value in zip(groups, theirs, strict=True)]
    optimiser = torch.optim.Adam(groups)
    for taken in range(7):
        given = {value: torch.randn(value.shape, generator=generator) * 10.0 ** (taken - 4) for value in values}
        given[values[0]] = given[values[0]].bfloat16()
        for value, gradient in zip(theirs, given.values(), strict=True):
            value.grad = gradient.float()
        optimiser.step()
        adam.step(given)
        for value, their in zip(values, theirs, strict=True):
            torch.testing.assert_close(value, their, rtol=1e-6, atol=1e-7)
        assert torch.equal(adam.copies[values[0]], values[0].bfloat16())


# --- evaluation, results, records ------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["small", "conv"])
def test_evaluation_is_that_of_all_images(model):
    run = _run(objective="isa-vae", model=model, steps=3)
    result = _train(run)
    measured = result.evaluation
    generator = training._generator(torch.device("cpu"), run.seed, training._EVALUATION)
    noise = torch.randn(len(DATASET), 3, generator=generator)
    x = DATASET.images(torch.arange(len(DATASET)))
    with torch.no_grad():
        assert not result.model.training
        mean, log_var = result.model.encode(x)
        z = mean + torch.exp(log_var / 2) * noise
        fit = torch.distributions.Bernoulli(logits=result.model.decode(z)).log_prob(x).sum((1, 2, 3))
        posterior = torch.distributions.Normal(mean, torch.exp(log_var / 2))
        kl = posterior.log_prob(z).sum(-1) - LpNested(run.tree, run.scale).log_prob(z)
    torch.testing.assert_close(measured.mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(measured.log_var, log_var, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(measured.log_likelihood, fit, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(measured.kl, kl, rtol=1e-4, atol=1e-4)
    record = result.record
    assert record["log_likelihood"] == pytest.approx(fit.mean().item(), rel=1e-6)
    assert record["elbo"] == pytest.approx((fit - kl).mean().item(), rel=1e-6)
    assert record["active_units"] == int((mean.var(0, correction=0) > 0.01).sum())
    assert record["mig"] == measured.mig.score
    assert np.shape(record["mutual_information"]) == (len(record["factors"]), 3)


def test_the_first_ten_thousand_are_a_mean_of_their_own(monkeypatch):
    result = _train(_run())
    fit = torch.zeros(20_000)
    fit[10_000:] = -2.0
    changed = dataclasses.replace(result.evaluation, log_likelihood=fit, kl=fit)
    numbers = training._measurements(changed, DATASET)
    assert numbers["log_likelihood_first_10000"] == 0.0 and numbers["log_likelihood"] == -1.0


def test_a_result_is_saved_and_read_back(tmp_path):
    run = _run(**KINDS["learned"])
    result = _train(run)
    folder = result.save(tmp_path / "a" / "b")
    assert sorted(path.name for path in folder.iterdir()) == [
        "curve.safetensors",
        "model.safetensors",
        "record.json",
    ]
    again, model, prior = load_model(folder)
    assert again == run and not model.training
    assert prior.tree.exponents == result.exponents
    for name, value in result.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)
    measured = evaluate(model, prior, again, DATASET)
    assert torch.equal(measured.log_likelihood, result.evaluation.log_likelihood)
    assert measured.mig.score == result.record["mig"]
    record = json.loads((folder / "record.json").read_text())
    assert record == result.record
    assert record["hash"] == run.hash and record["images_checksum"] == DATASET.checksum
    assert {name: record[name] for name in run.to_dict()} == run.to_dict()
    assert set(record["versions"]) == {"python", "torch", "numpy", "isa"}
    assert record["train_seconds"] > 0 and record["evaluation_seconds"] > 0 and record["reduced"]
    with safetensors.safe_open(folder / "curve.safetensors", "np") as curve:
        np.testing.assert_array_equal(curve.get_tensor("elbo"), result.curve["elbo"])
    with pytest.raises(CheckpointError, match="no model of this package"):
        load_model(folder / "curve.safetensors")


def test_options_are_checked_before_anything_is_loaded(monkeypatch):
    def load(*arguments, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(data, "load", load)
    run = _run()
    with pytest.raises(ValueError, match="runs must share everything but seed, beta, exponents and scale"):
        train_pack([run, _run(steps=7)])
    with pytest.raises(ValueError, match="runs must all be different"):
        train_pack([run, run])
    with pytest.raises(TypeError, match="runs must be one Run or more"):
        train_pack([])
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1, got 0"):
        train(run, checkpoint_every=0)
    with pytest.raises(ValueError, match="n_samples must be at least 2, got 1"):
        train(run, n_samples=1)
    with pytest.raises(ValueError, match="n_samples must be at most the data set's 70 images, got 71"):
        train(run, dataset=DATASET, n_samples=71)
    with pytest.raises(ValueError, match="dataset must be the runs' own, 'dsprites', got 'cars3d'"):
        train(Run(), dataset=DATASET)
    with pytest.raises(ValueError, match="batch_size must be at most the data set's 70 images, got 71"):
        train(_run(batch_size=71), dataset=DATASET)


# --- on the terminal and off it --------------------------------------------------------------------------------------


def test_stderr_stays_empty_where_it_is_no_terminal(capsys):
    _train(_run())
    assert capsys.readouterr() == ("", "")
    _train(_run(), progress=True)
    shown = capsys.readouterr().err
    assert "loss" in shown and "log_likelihood" in shown


def _isa(*arguments: str) -> int:
    return cli.main(["train", "--dataset", "cars3d", "--device", "cpu", *arguments])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--beta", "-1"], "beta must be a finite number of at least 0, got -1.0"),
        (["--objective", "gan"], "objective must be one of beta-vae, isa-vae, beta-tcvae, isa-tcvae, factor-vae"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--objective", "isa-vae", "--prior", "2.1[4"], "expected ',' or ']' at position 5"),
        (["--checkpoint-every", "0"], "--checkpoint-every must be at least 1, got 0"),
        (["--mig-samples", "1"], "--mig-samples must be at least 2, got 1"),
        (["--source", "/no/such/folder"], "--source must exist, got /no/such/folder"),
        (["--device", "tpu"], "--device must be cpu, cuda or cuda:N, got 'tpu'"),
        (["--device", "cuda:77"], "--device must be one of this machine's, got 'cuda:77'"),
    ],
)
def test_the_command_refuses_bad_values_before_anything_is_loaded(arguments, sentence, monkeypatch, capsys):
    def load(*arguments, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(data, "load", load)
    assert _isa(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("isa: error: ") and sentence in err and err.count("\n") == 1


def test_the_command_trains_measures_and_saves_once(monkeypatch, capsys, tmp_path):
    loads = []

    def load(name, source=None, **options):
        loads.append(name)
        return DATASET

    monkeypatch.setattr(data, "load", load)
    arguments = ["--objective", "isa-vae", "--subspaces", "2,1", "--p1", "1.9,2.3", "--model", "small"]
    arguments += ["--batch-size", "16", "--steps", "5", "--learn-exponents", "--output", str(tmp_path / "out")]
    assert _isa(*arguments) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("REDUCED SCALE: 5 steps of 16 images")
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert f"MIG             {record['mig']:.4f} (" in out
    assert f"log-likelihood  {record['log_likelihood']:.2f} nats" in out
    assert "exponents       2.100, " in out
    assert "scale           5 steps of 16 images, REDUCED" in out
    assert not list((tmp_path / "out").glob("*.checkpoint.*"))
    assert _isa(*arguments) == 0  # recorded: printed again, not trained again
    assert capsys.readouterr().out == out.partition("\n")[2]
    assert loads == ["cars3d"]
    assert _isa(*arguments, "--seed", "1") == 1
    assert "--output must be another folder" in capsys.readouterr().err


def test_the_command_says_that_a_run_diverged(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(data, "load", lambda name, source=None, **options: DATASET)
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "small", "--latent-dim", "3", "--batch-size", "16", "--steps", "5", "--beta", "1e30"]
    assert _isa(*arguments) == 1
    assert "DIVERGED        at step 0; nothing is measured" in capsys.readouterr().out
    (folder,) = (tmp_path / "trained").iterdir()
    assert json.loads((folder / "record.json").read_text())["status"] == "diverged"
