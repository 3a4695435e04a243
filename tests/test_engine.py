"""The training step against plain PyTorch, packs, resuming, divergence and compiling."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from tiny_runs import CIRCUMSTANCES, GOLDEN, KINDS, assert_same, grey, tiny, train, train_pack
from tiny_sweep import DATASET
from torch import Tensor
from torch.distributions import Bernoulli, Distribution, MultivariateNormal, Normal

from isa import LpNested, Node, data, engine, models
from isa.engine import CheckpointError, Pack
from isa.run import Run

pytestmark = pytest.mark.usefixtures("small_discriminator")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

CONVOLUTIONS = [("learned", "narrow"), ("factor-vae", "narrow")]
EVERY = [*((kind, "small") for kind in KINDS), *CONVOLUTIONS]


def _varied(run: Run) -> Run:
    """Return a run of the same pack with another beta and another prior."""
    varied = {"beta": 1.5}
    if run.prior == "isa" and run.scale != "unit":
        varied |= {"p0": 1.9, "p1": (2.5, 1.4), "scale": 1.7}
    elif run.prior.startswith("2.1["):
        varied |= {"prior": "1.9[2.6[2], 1]"}
    return run.replace(**varied)


# Images and noise


def test_an_epoch_takes_every_image_at_most_once_and_pairs_share_none():
    run = tiny(objective="factor-vae")
    feed = engine.Feed([run], DATASET)
    per_epoch = len(DATASET) // 16
    for epoch in range(2):
        pairs = torch.stack([feed(epoch * per_epoch + batch)[0][:, 0] for batch in range(per_epoch)])
        assert all(len(pair.unique()) == 32 for pair in pairs)
        firsts = pairs[:, 0].flatten()
        assert len(firsts.unique()) == per_epoch * 16
        assert torch.equal(firsts, DATASET.epoch(epoch, seed=run.seed)[: per_epoch * 16])


def test_noise_is_a_function_of_seed_and_step():
    run = tiny(objective="factor-vae", batch_size=32)
    forwards, backwards = engine.Feed([run], DATASET), engine.Feed([run.replace(seed=1), run], DATASET)
    drawn = [forwards(step) for step in range(40)]
    for step in reversed(range(40)):
        others = backwards(step)
        for one, other, axis in zip(drawn[step], others, (1, 1, 0), strict=True):
            assert torch.equal(one.select(axis, 0), other.select(axis, 1))
        assert not torch.equal(others[1][:, 0], others[1][:, 1])
    noise = torch.stack([one for _, one, _ in drawn])
    assert noise.unique().numel() > 0.99 * noise.numel()  # nothing is drawn twice
    bound = 5 / math.sqrt(noise.numel())
    assert abs(noise.mean()) < bound and abs(noise.var() - 1) < 2 * bound
    orders = torch.stack([order for _, _, order in drawn])
    assert torch.equal(orders.sort(2).values, torch.arange(32)[:, None].expand_as(orders))


def test_grey_levels_stay_exact_in_bf16():
    pack = Pack([tiny(precision="bf16")], grey())
    assert set(pack.images(pack.feed(0)[0]).unique().tolist()) == {0.0, np.float32(200) / np.float32(255)}


# The step


def _plain_losses(
    run: Run,
    vae: models.VAE,
    critic: models.Discriminator,
    prior: Distribution,
    x: Tensor,
    noise: Tensor,
    order: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Return the loss and the discriminator's loss as the papers write them, for x (batches, B, 1, 64, 64)."""
    mean, log_var = vae.encode(x[0])
    z = mean + torch.exp(log_var / 2) * noise[0]
    pixels = Bernoulli(logits=vae.decode(z)) if run.likelihood == "bernoulli" else Normal(vae.decode(z), 1.0)
    fit = pixels.log_prob(x[0]).sum((1, 2, 3))
    posterior = Normal(mean, torch.exp(log_var / 2))
    log_q, log_p = posterior.log_prob(z).sum(-1), prior.log_prob(z)
    kl = (log_q - log_p).mean()
    if run.kl == "closed_form":
        kl = 0.5 * (mean**2 + log_var.exp() - log_var - 1).sum(-1).mean()
    if run.base == "beta-vae":
        return run.beta * kl - fit.mean(), None
    if run.base == "beta-tcvae":
        pairs = posterior.log_prob(z[:, None])  # (B, B, D)
        size, whole = run.batch_size, len(DATASET)
        weights = torch.full((size, size), 1 / (size * whole), dtype=x.dtype)
        if run.sampling == "stratified":
            weights = weights.fill_((whole - 1) / (whole * (size - 1))).fill_diagonal_(1 / whole)
        joint = (pairs.sum(-1) + weights.log()).logsumexp(1)
        marginal = (pairs + weights.log()[..., None]).logsumexp(1).sum(-1)
        return (log_q - joint + run.beta * (joint - marginal) + marginal - log_p - fit).mean(), None
    judged = critic(z)
    loss = (run.beta * (judged[:, 0] - judged[:, 1]) - fit).mean() + kl
    with torch.no_grad():
        mean, log_var = vae.encode(x[1])
        other = (mean + torch.exp(log_var / 2) * noise[1]).gather(0, order)
    classes = torch.cat([torch.zeros(run.batch_size), torch.ones(run.batch_size)]).long()
    return loss, F.cross_entropy(critic(torch.cat([z.detach(), other])), classes)


def _plain_prior(run: Run, learned: Tensor | None, dtype: torch.dtype) -> Distribution:
    if run.tree is None:
        return MultivariateNormal(torch.zeros(run.latent_dim, dtype=dtype), torch.eye(run.latent_dim, dtype=dtype))
    exponents = torch.tensor(run.tree.exponents, dtype=dtype)
    if learned is not None:
        exponents = [exponents[0].float().to(dtype), *F.softplus(learned)]
    return LpNested(run.tree.with_exponents(exponents), LpNested(run.tree, run.scale).scale.to(dtype))


def _plain_inputs(runs: list[Run], step: int) -> tuple[Tensor, ...]:
    index, noise, order = engine.Feed(runs, DATASET)(step)
    return DATASET.images(index.flatten()).view(*index.shape, 1, 64, 64), noise, order


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_what_plain_pytorch_trains(kind):
    run = tiny(**KINDS[kind], learning_rate=0.01)
    result = train(run)
    vae = models.build(run.model, run.latent_dim, seed=run.seed)
    critic = models.build_discriminator(run.latent_dim, seed=run.seed)
    optimisers = [torch.optim.Adam(vae.parameters(), 0.01), torch.optim.Adam(critic.parameters(), 1e-4, (0.5, 0.9))]
    learned = None
    if run.learn_exponents:
        learned = torch.full((2,), 2.0).expm1().log().requires_grad_()
        optimisers.append(torch.optim.Adam([learned], run.exponent_learning_rate))
    losses = []
    for step in range(run.total_steps):
        x, noise, order = _plain_inputs([run], step)
        prior = _plain_prior(run, learned, torch.float32)
        order = None if order is None else order[0]
        loss, of_critic = _plain_losses(run, vae, critic, prior, x[:, 0], noise[:, 0], order)
        losses.append(loss.item())
        for optimiser in optimisers:
            optimiser.zero_grad()
        loss.backward(inputs=[*vae.parameters(), *([] if learned is None else [learned])])
        if of_critic is not None:
            of_critic.backward()
        for optimiser in optimisers:
            optimiser.step()
    np.testing.assert_allclose(result.curve["loss"], losses, rtol=2e-5)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("kind", "model"), EVERY)
def test_a_step_in_float64_is_plain_autograd(kind, model):
    first = tiny(**KINDS[kind], model=model)
    runs = [first, first.replace(seed=5), _varied(first)]
    pack = Pack(runs, DATASET)
    networks = engine.build_networks(runs, 1, torch.float64).double()
    x, noise, order = _plain_inputs(runs, 3)
    x, noise = x.double(), noise.double()
    total, terms = engine.losses(networks, pack.objective, pack.beta.double(), x, noise, order)
    parameters = dict(networks.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))
    for number, run in enumerate(runs):
        vae = models.build(run.model, run.latent_dim, seed=run.seed).double()
        critic = models.build_discriminator(run.latent_dim, seed=run.seed).double()
        learned = networks.prior.raw[number].detach().requires_grad_() if run.learn_exponents else None
        prior = _plain_prior(run, learned, torch.float64)
        permutation = None if order is None else order[number]
        loss, of_critic = _plain_losses(run, vae, critic, prior, x[:, number], noise[:, number], permutation)
        loss.backward(inputs=[*vae.parameters(), *([] if learned is None else [learned])])
        torch.testing.assert_close(terms[number, 0], loss.detach(), rtol=1e-10, atol=0)
        parts = {"encoder": vae.encoder.net, "decoder": vae.decoder.net}
        if of_critic is not None:
            of_critic.backward()
            parts["discriminator"] = critic.net
            torch.testing.assert_close(terms[number, -1], of_critic.detach(), rtol=1e-10, atol=0)
        if learned is not None:
            torch.testing.assert_close(gradients["prior.raw"][number], learned.grad, rtol=1e-10, atol=0)
        for part, network in parts.items():
            expected = {name: value.grad for name, value in network.named_parameters()}
            found = {name: gradients[f"{part}.{name}"][number] for name in expected}
            found = {name: x.T if x.ndim == 2 else x for name, x in found.items()}  # linear layers are (P, in, out)
            torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_adam_is_adam():
    generator = torch.Generator().manual_seed(0)
    shapes, rate, betas = [(3, 4), (5,)], 0.01, (0.8, 0.99)
    theirs = [torch.randn(shape, generator=generator) for shape in shapes]
    values, means, squares = [value.clone() for value in theirs], *([torch.zeros(s) for s in shapes] for _ in "ms")
    copies = [values[0].bfloat16(), values[1].clone()]
    optimiser = torch.optim.Adam(theirs, rate, betas)
    for step in range(1, 8):
        given = [torch.randn(shape, generator=generator) * 10.0 ** (step - 4) for shape in shapes]
        given[0] = given[0].bfloat16()
        for value, gradient in zip(theirs, given, strict=True):
            value.grad = gradient.float()
        optimiser.step()
        tensors = list(zip(copies, given, values, means, squares, strict=True))
        correction = torch.tensor(1 - betas[1] ** step).sqrt()
        engine.adam(tensors, torch.tensor(rate / (1 - betas[0] ** step)), correction, betas)
        for value, their in zip(values, theirs, strict=True):
            torch.testing.assert_close(value, their, rtol=1e-6, atol=1e-7)
        assert torch.equal(copies[0], values[0].bfloat16()) and torch.equal(copies[1], values[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fifty_steps_follow_the_first_engine(kind, precision):
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    runs = [tiny(**KINDS[kind], seed=seed, steps=50, precision=precision) for seed in (0, 7)]
    for result in train_pack(runs, evaluation=True):
        expected = golden[f"{kind}/{result.run.seed}/{precision}"]
        assert result.run.hash == expected["hash"]
        np.testing.assert_allclose(result.curve["loss"], expected["loss"], rtol=2e-6 if precision == "fp32" else 2e-3)
        if "exponents" in expected:
            rtol = 1e-5 if precision == "fp32" else 2e-3
            np.testing.assert_allclose(result.exponents, expected["exponents"], rtol=rtol)
        if precision == "fp32":
            for name in ("mig", "log_likelihood", "elbo"):
                assert result.record[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


def test_exponents_are_learned_except_the_roots():
    result = train(tiny(**KINDS["learned"], steps=30))
    assert result.exponents[0] == 2.1
    assert abs(result.exponents[1] - 2.0) > 0.02
    assert result.curve["exponent_1"][0] == pytest.approx(2.0, abs=1e-6)
    assert result.exponents[1] == pytest.approx(result.curve["exponent_1"][-1], abs=0.02)
    deep = train(tiny(objective="isa-vae", prior="2.1[1.5[1, 2.5[2]]]", learn_exponents=True))
    assert deep.prior.tree.structure == Node.parse("2.1[1.5[1, 2.5[2]]]").structure


def test_bf16_keeps_float32_parameters_and_the_course():
    full, half = (train(tiny(precision=precision, steps=20, learning_rate=0.003)) for precision in ("fp32", "bf16"))
    assert all(value.dtype == torch.float32 for value in half.model.parameters())
    assert not np.array_equal(full.curve["loss"], half.curve["loss"])
    np.testing.assert_allclose(full.curve["loss"], half.curve["loss"], rtol=0.01)


@pytest.mark.parametrize("objective", ["isa-vae", "factor-vae"])
def test_the_convolutional_pair_trains_in_bf16(objective):
    runs = [tiny(objective=objective, model="conv", precision="bf16", steps=2, seed=seed) for seed in (0, 1)]
    for result in train_pack(runs, dataset=grey()):
        assert result.diverged_at is None
        statistics = [value for name, value in result.model.named_buffers() if name.endswith("running_mean")]
        assert all(value.dtype == torch.float32 and value.abs().max() > 0 for value in statistics)
        assert result.model.encoder.net[1].num_batches_tracked == (4 if objective == "factor-vae" else 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("kind", "model"), EVERY)
def test_the_self_check_compares_a_step_with_float64(kind, model, precision, monkeypatch):
    runs = [tiny(**KINDS[kind], model=model, precision=precision, seed=seed) for seed in (0, 1)]
    pack, original = Pack(runs, DATASET), engine.losses
    before = {name: value.clone() for name, value in pack.state.items()}
    # Convolutions between normalisations: a third of the smallest gradients is rounding to bfloat16.
    limits = {"small": {"fp32": 1e-4, "bf16": 0.05}, "narrow": {"fp32": 1e-3, "bf16": 0.5}}
    assert pack.disagreement() < limits[model][precision]
    for name, value in pack.state.items():
        assert torch.equal(value, before[name]), name

    def wrong(networks, *arguments):
        total, terms = original(networks, *arguments)
        return total * (1 if networks.dtype == torch.float64 else 3), terms

    monkeypatch.setattr(engine, "losses", wrong)
    assert pack.disagreement() > 1


# Packs


@pytest.mark.parametrize(("kind", "model"), EVERY)
def test_a_run_does_not_depend_on_the_others_of_its_pack(kind, model):
    """Neither beside healthy runs nor beside two that diverge, one from the start and one halfway."""
    steps = 120 if model == "small" else 40
    run = tiny(**KINDS[kind], model=model, steps=steps)
    healthy = [run.replace(seed=5), run, _varied(run)]
    packs = Pack([run], DATASET), Pack(healthy, DATASET), Pack([run.replace(beta=1e30), *healthy[1:]], DATASET)
    for step in range(steps):
        if step == steps // 2:
            value = packs[2].state["value.decoder.0.weight" if model == "small" else "value.decoder.1.weight"]
            value[2] = math.inf
        for pack in packs:
            pack.advance()
    for pack in packs:
        pack.look()
    alone, beside, ill = packs
    assert alone.diverged == [None] and beside.diverged == [None] * 3
    assert ill.diverged == [0, None, steps // 2 + 1]
    for name, value in beside.state.items():
        assert torch.equal(value[1], ill.state[name][1]), name
    # A gradient that is zero except for rounding, such as that of a bias before a normalisation, makes Adam take full
    # steps. If the initial parameters of the convolutional pair change by 1e-7, its losses change as much as here.
    rtol = 1e-6 if model == "small" else 1e-3
    torch.testing.assert_close(beside.curve[1, :, 0], alone.curve[0, :, 0], rtol=rtol, atol=0)
    if model == "small":
        row = {name: value[1] for name, value in beside.state.items()}
        own = {name: value[0] for name, value in alone.state.items()}
        torch.testing.assert_close(row, own, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(beside.curve[0, :, 0], alone.curve[0, :, 0], rtol=1e-4)


def test_a_diverging_run_is_recorded_and_spoils_no_other():
    run = tiny(objective="factor-vae", steps=120, learning_rate=0.003)
    first, later, well = train_pack([run.replace(beta=1e30), run.replace(beta=1e8), run])
    assert first.diverged_at == 0 and 50 < later.diverged_at < 100 and well.diverged_at is None
    for result in (first, later):
        assert result.record["status"] == "diverged" and result.evaluation is None
        assert len(result.curve["loss"]) == result.diverged_at + 1
    assert well.record["status"] == "trained"
    np.testing.assert_allclose(well.curve["loss"], train(run).curve["loss"], rtol=1e-6)


@pytest.mark.parametrize(("kind", "model"), EVERY)
def test_a_reused_pack_is_a_fresh_one(kind, model):
    runs = [tiny(**KINDS[kind], model=model, seed=seed) for seed in (0, 1)]
    others = [_varied(runs[0]).replace(seed=2), runs[1].replace(seed=3)]
    reused, fresh = Pack(runs, DATASET), Pack(others, DATASET)
    for _ in range(3):
        reused.advance()
    reused.look()
    reused.load(others)
    for _ in range(3):
        reused.advance()
        fresh.advance()
    for name, value in fresh.state.items():
        assert torch.equal(reused.state[name], value), name
    assert (reused.step, reused.seen, reused.diverged) == (3, 0, [None, None])


@pytest.mark.parametrize("kind", ["learned", "factor-vae"])
def test_a_course_is_trained_once_and_recorded_twice(kind):
    short, long = (tiny(**KINDS[kind], steps=steps) for steps in (13, 60))
    seen = []
    options = {"evaluation": True}
    both = train_pack([short, long], **options, callback=lambda step, terms: seen.append(step))
    assert seen == [13, 50, 60]
    assert_same(train(short, **options), both[0])
    assert_same(train(long, **options), both[1])
    pair = [run.replace(seed=1) for run in (long, short)]
    found = train_pack([*pair, long])
    assert [result.run for result in found] == [*pair, long]
    assert_same(train_pack([pair[0], long])[0], found[0])
    np.testing.assert_allclose(found[1].curve["loss"], train(pair[1]).curve["loss"], rtol=1e-6)


@pytest.mark.parametrize(
    "run",
    [
        tiny(beta=1e30, steps=10),
        tiny(beta=1e30, steps=30),
        tiny(objective="isa-vae", learn_exponents=True, exponent_learning_rate=1e38, steps=1),
    ],
    ids=["out of bounds for ten steps", "out of bounds", "exponents after the last step"],
)
def test_a_short_run_of_a_course_diverges_as_it_does_alone(run):
    long = run.replace(steps=60)
    together, alone = train_pack([run, long]), [train(run), train(long)]
    for one, other in zip(together, alone, strict=True):
        assert one.diverged_at == other.diverged_at is not None and one.exponents == other.exponents
        assert len(one.curve["loss"]) == len(other.curve["loss"])


# The same again


def test_one_seed_gives_one_result():
    run = tiny(objective="isa-vae", precision="bf16")
    first = train(run, evaluation=True)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    train(tiny(objective="beta-tcvae", seed=3))
    again = train(run, evaluation=True)
    assert_same(first, again)
    assert torch.equal(first.evaluation.log_likelihood, again.evaluation.log_likelihood)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not np.array_equal(first.curve["loss"], train(run.replace(seed=1)).curve["loss"])


class _Interrupted(Exception):
    pass


def _interrupt_at(step: int):
    def callback(taken, terms):
        if taken >= step:
            raise _Interrupted

    return callback


@pytest.mark.parametrize(
    ("kind", "model"), [("learned", "small"), ("beta-tcvae", "small"), ("factor-vae", "small"), *CONVOLUTIONS]
)
def test_an_interrupted_run_resumes_to_the_same_result(kind, model, tmp_path):
    run = tiny(**KINDS[kind], model=model, steps=110 if model == "small" else 60)
    options = {"checkpoints": tmp_path, "checkpoint_every": 7}
    for stop in (50, 100) if model == "small" else (50,):
        with pytest.raises(_Interrupted):
            train(run, **options, callback=_interrupt_at(stop))
        assert engine.checkpoint_step(tmp_path, run) == stop // 7 * 7
    seen = []
    resumed = train(run, **options, evaluation=True, callback=lambda step, terms: seen.append(step))
    assert seen == ([100, 110] if model == "small" else [50, 60])
    whole = train(run, evaluation=True)
    assert_same(whole, resumed)
    engine.checkpoint_path(tmp_path, run).unlink()
    assert not list(tmp_path.iterdir())


def test_checkpoints_are_seconds_apart(tmp_path, monkeypatch):
    run = tiny(steps=30)
    clock = itertools.count(0.0, 10.0)  # a step takes ten seconds
    monkeypatch.setattr(engine.time, "perf_counter", lambda: next(clock))
    saved = []
    monkeypatch.setattr(Pack, "save", lambda pack, folder, seconds: saved.append(pack.step))
    options = {"checkpoints": tmp_path, "checkpoint_every": 1}
    train(run, **options, checkpoint_seconds=75)
    assert saved == [8, 16, 24]
    saved.clear()
    train(run, **options)
    assert saved == list(range(1, 30))  # the result follows the last step


@pytest.mark.parametrize("kind", ["learned", "factor-vae"])
def test_a_longer_run_continues_a_shorter_one_of_its_course(kind, tmp_path):
    short, long, other = (tiny(**KINDS[kind], steps=steps, seed=seed) for steps, seed in ((11, 0), (24, 0), (11, 1)))
    assert short.course == long.course != other.course
    options = {"checkpoints": tmp_path, "checkpoint_every": 4}
    assert_same(train(short), train(short, **options))
    assert engine.checkpoint_step(tmp_path, long) == 8
    steps, seen = [], []
    original = Pack.advance

    def advance(pack):
        steps.append(pack.step)
        original(pack)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pack, "advance", advance)
        resumed = train(long, **options, callback=lambda step, terms: seen.append(step))
    assert steps == list(range(8, 24)) and seen == [24]
    assert_same(train(long), resumed)
    # A checkpoint beyond the end of the short run is not used, and not replaced.
    content = engine.checkpoint_path(tmp_path, long).read_bytes()
    assert engine.checkpoint_step(tmp_path, short) == 20
    assert_same(train(short), train(short, **options))
    assert engine.checkpoint_path(tmp_path, long).read_bytes() == content
    for one, run in zip(train_pack([short, long], **options), (short, long), strict=True):
        assert_same(train(run), one)


def test_a_pack_resumes_although_its_runs_stopped_at_different_steps(tmp_path):
    runs = [tiny(objective="isa-vae", seed=seed, steps=60) for seed in range(3)]
    options = {"checkpoints": tmp_path, "checkpoint_every": 4}
    with pytest.raises(_Interrupted):
        train_pack(runs[:2], **options, callback=_interrupt_at(50))
    assert [engine.checkpoint_step(tmp_path, run) for run in runs] == [48, 48, 0]
    for run, result in zip(runs, train_pack(runs, **options), strict=True):
        assert result.run == run
        np.testing.assert_allclose(result.curve["loss"], train(run).curve["loss"], rtol=1e-5)


def test_a_diverged_run_of_a_resumed_pack_stays_diverged(tmp_path):
    runs = [tiny(beta=beta, steps=60) for beta in (1.0, 1e30)]
    options = {"checkpoints": tmp_path, "checkpoint_every": 4}
    with pytest.raises(_Interrupted):
        train_pack(runs, **options, callback=_interrupt_at(50))
    assert [result.diverged_at for result in train_pack(runs, **options)] == [None, 0]


def test_a_torn_or_foreign_checkpoint_is_refused(tmp_path):
    run, other = tiny(), tiny(seed=1)
    train(run, checkpoints=tmp_path, checkpoint_every=4)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    file.rename(engine.checkpoint_path(tmp_path, other))
    with pytest.raises(CheckpointError, match=f"is not a checkpoint of {other.key}"):
        train(other, checkpoints=tmp_path)
    file.write_bytes(content[:50])
    with pytest.raises(CheckpointError, match="cannot be read"):
        train(run, checkpoints=tmp_path)


# Divergence


def test_a_diverged_run_stops_and_records_where():
    run = tiny(learning_rate=1e4, steps=200)
    seen = []
    result = train(run, callback=lambda step, terms: seen.append(step))
    assert 0 < result.diverged_at < seen[-1] <= result.diverged_at + 50
    *before, last = result.curve["loss"].tolist()
    limit = 100 * max(math.log(2) * 4096, before[0])
    assert not abs(last) <= limit and all(abs(loss) <= limit for loss in before)
    json.dumps(result.record, allow_nan=False)


def test_parameters_ruined_by_the_last_step_are_a_divergence(caplog):
    runs = [tiny(steps=1, learning_rate=1e10, seed=seed) for seed in range(2)]
    for run, result in zip(runs, train_pack(runs, evaluation=True), strict=True):
        assert np.isfinite(result.curve["loss"]).all()
        assert result.evaluation is None and result.record["status"] == "diverged"
        assert result.diverged_at == result.record["diverged_at"] == 1
        assert f"{run.key} cannot be measured" in caplog.text
        json.dumps(result.record, allow_nan=False)


def _looked(terms: np.ndarray, looks: list[int]) -> int | None:
    """Return the step at which a run with these terms, (steps, 2), diverged, if one looks after these steps."""
    pack = Pack([tiny(steps=len(terms))], DATASET)
    curve = torch.ones_like(pack.curve[0])
    curve[:, :2] = torch.from_numpy(terms)
    for pack.step in looks:
        pack.curve[0, : pack.step] = curve[: pack.step]
        pack.look()
    return pack.diverged[0]


def _diverged_by_definition(terms: np.ndarray) -> int | None:
    limit = min(100 * max(abs(terms[0, 0]), 4096 * math.log(2)), 1e15)
    streak = 0
    for step, values in enumerate(terms):
        if not np.isfinite(values).all():
            return step
        streak = streak + 1 if abs(values[0]) > limit else 0
        if streak == min(25, len(terms)):
            return step - streak + 1
    return None


@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from([3e3, -3e3, 4e5, -4e5, 1e9])), min_size=1, max_size=6),
    st.one_of(st.none(), st.tuples(st.integers(0, 99), st.integers(0, 1), st.sampled_from([math.nan, math.inf]))),
    st.sets(st.integers(1, 239)),
)
def test_a_divergence_is_found_at_one_step_however_often_one_looks(stretches, spoiled, looks):
    loss = [value for length, value in stretches for _ in range(length)]
    terms = np.stack([loss, np.ones(len(loss))], 1).astype(np.float32)
    if spoiled is not None and spoiled[0] < len(loss):
        terms[spoiled[0], spoiled[1]] = spoiled[2]
    expected = _diverged_by_definition(terms)
    assert _looked(terms, [len(loss)]) == expected
    assert _looked(terms, [*(step for step in sorted(looks) if step < len(loss)), len(loss)]) == expected


@pytest.mark.parametrize("where", ["parameters", "moments", "discriminator", "statistics", "exponents"])
def test_a_state_that_is_not_finite_is_found_after_the_last_step(where):
    kind = {"objective": "factor-vae", "prior": "isa", "subspaces": (2, 1), "latent_dim": 3, "learn_exponents": True}
    model = "narrow" if where == "statistics" else "small"
    pack = Pack([tiny(**kind, model=model, seed=seed, steps=2) for seed in (0, 1)], DATASET)
    pack.advance()
    pack.look()
    pack.advance()
    name = {
        "parameters": "value.encoder.1.weight",
        "moments": "square.encoder.1.weight",
        "discriminator": "mean.discriminator.0.bias",
        "statistics": "encoder.1.running_var",
        "exponents": "value.prior.raw",
    }[where]
    with torch.no_grad():
        pack.state[name][1].view(-1)[0] = -1e4 if where == "exponents" else math.inf  # an exponent of zero
        if name == "value.prior.raw":
            pack.networks.prior.raw.copy_(pack.state[name])
    pack.look()
    assert pack.diverged == [None, 2]


# Compiling, and the GPU


def test_without_a_compiler_the_step_runs_uncompiled(monkeypatch, caplog):
    def no_compiler(function, **options):
        def call(*arguments):
            raise RuntimeError("No working C++ compiler found\nand much more")

        return call

    original = engine.losses
    monkeypatch.setattr(torch, "compile", no_compiler)
    monkeypatch.setattr(engine, "losses", lambda *arguments: original(*arguments))  # one that was not compiled before
    result = train(tiny(), compile=True)
    assert not result.record["compiled"]
    assert [record.message for record in caplog.records] == ["the step runs uncompiled: No working C++ compiler found"]
    assert_same(result, train(tiny()))


def test_compiling_changes_only_rounding(caplog):
    runs = [tiny(**KINDS["learned"], seed=seed) for seed in range(2)]
    together = train_pack(runs, compile=True)
    assert not [record for record in caplog.records if record.name.startswith("isa")]
    for run, compiled in zip(runs, together, strict=True):
        assert compiled.record["compiled"]
        for name, values in train(run).curve.items():
            np.testing.assert_allclose(compiled.curve[name], values, rtol=1e-4, atol=1e-4, err_msg=name)


@cuda
@pytest.mark.parametrize("kind", ["learned", "beta-tcvae", "factor-vae"])
def test_a_step_replayed_as_a_cuda_graph_is_the_step(kind):
    runs = [tiny(**KINDS[kind], steps=20, seed=seed) for seed in range(2)]
    images = DATASET.to("cuda")
    replayed, plain = Pack(runs, images), Pack(runs, images)
    for step in range(20):
        replayed.advance()
        plain.curve[:, step] = plain.update(*plain.feed(step))
    assert replayed.graph is not None and plain.graph is None
    torch.testing.assert_close(replayed.curve, plain.curve, rtol=1e-5, atol=1e-5)


@cuda
def test_a_reused_graph_trains_other_runs():
    runs = [tiny(**KINDS["learned"], steps=20, seed=seed) for seed in range(2)]
    images, others = DATASET.to("cuda"), [_varied(run).replace(seed=run.seed + 5) for run in runs]
    reused, fresh = Pack(runs, images), Pack(others, images)
    for _ in range(10):
        reused.advance()
    reused.load(others)
    for _ in range(20):
        reused.advance()
        fresh.advance()
    torch.testing.assert_close(reused.curve, fresh.curve, rtol=1e-5, atol=1e-5)


# Options


def test_runs_are_checked_before_anything_is_loaded(monkeypatch):
    def load(*arguments, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(data, "load", load)
    run = tiny()
    for runs in ([run, tiny(batch_size=8)], [run, tiny(seed=1, steps=5)], [run, run], []):
        with pytest.raises(ValueError, match="runs must be different runs that share everything except seed"):
            engine.train_pack(runs)
    with pytest.raises(ValueError, match="n_samples must be at most 70, the number of images, got 71"):
        train(run, n_samples=71)
    with pytest.raises(ValueError, match="batch_size must be at most 70, the number of images, got 71"):
        train(tiny(batch_size=71))
    with pytest.raises(ValueError, match="dataset must be that of the runs, 'dsprites', got 'cars3d'"):
        train(Run())


def test_progress_is_shown_on_request(capsys):
    train(tiny(), evaluation=True)
    assert capsys.readouterr() == ("", "")
    train(tiny(), evaluation=True, progress=True)
    shown = capsys.readouterr().err
    assert "loss" in shown and "log_likelihood" in shown


def test_circumstances_are_all_that_differs_between_packs():
    run = tiny()
    alone, beside = train(run).record, train_pack([run, tiny(seed=1)])[0].record
    assert {name for name in alone if alone[name] != beside[name]} <= set(CIRCUMSTANCES)
