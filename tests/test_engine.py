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
from tiny_runs import GOLDEN, KINDS, assert_same, grey, tiny, train, train_pack
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


def test_epochs_take_every_image_once_and_pairs_share_none():
    run = tiny(objective="factor-vae")
    feed = engine.Feed([run], DATASET)
    per_epoch = len(DATASET) // 16
    for epoch in range(2):
        pairs = torch.stack([feed(epoch * per_epoch + batch)[0][:, 0] for batch in range(per_epoch)])
        assert all(len(pair.unique()) == 32 for pair in pairs)
        assert torch.equal(pairs[:, 0].flatten(), DATASET.epoch(epoch, seed=run.seed)[: per_epoch * 16])


def test_noise_depends_on_seed_and_step_alone():
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


def _plain_prior(run: Run, learned: Tensor | None) -> Distribution:
    if run.tree is None:
        return MultivariateNormal(torch.zeros(run.latent_dim).double(), torch.eye(run.latent_dim).double())
    exponents = torch.tensor(run.tree.exponents, dtype=torch.float64)
    if learned is not None:
        exponents = [exponents[0].float().double(), *F.softplus(learned)]
    return LpNested(run.tree.with_exponents(exponents), LpNested(run.tree, run.scale).scale.double())


@pytest.mark.parametrize(("kind", "model"), EVERY)
def test_step_matches_plain_autograd_in_float64(kind, model):
    first = tiny(**KINDS[kind], model=model)
    runs = [first, first.replace(seed=5), _varied(first)]
    pack = Pack(runs, DATASET)
    networks = engine.build_networks(runs, 1, torch.float64).double()
    index, noise, order = pack.feed(3)
    x, noise = pack.images(index).double(), noise.double()
    total, terms = engine.losses(networks, pack.objective, pack.beta.double(), x, noise, order)
    parameters = dict(networks.named_parameters())
    gradients = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))
    for number, run in enumerate(runs):
        vae = models.build(run.model, run.latent_dim, seed=run.seed).double()
        critic = models.build_discriminator(run.latent_dim, seed=run.seed).double()
        learned = networks.prior.raw[number].detach().requires_grad_() if run.learn_exponents else None
        permutation = None if order is None else order[number]
        inputs = x[:, number], noise[:, number], permutation
        loss, of_critic = _plain_losses(run, vae, critic, _plain_prior(run, learned), *inputs)
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


@pytest.mark.parametrize("fused", [True, False])
def test_adam_matches_torch(fused):
    generator = torch.Generator().manual_seed(0)
    shapes, rate, betas = [(3, 4), (5,)], 0.01, (0.8, 0.99)
    theirs = [torch.randn(shape, generator=generator) for shape in shapes]
    values, means, squares = [value.clone() for value in theirs], *([torch.zeros(s) for s in shapes] for _ in "ms")
    copies = [values[0].bfloat16(), values[1].clone()]
    optimiser = torch.optim.Adam(theirs, rate, betas)
    for step in range(1, 8):
        gradients = [torch.randn(shape, generator=generator) * 10.0 ** (step - 4) for shape in shapes]
        gradients[0] = gradients[0].bfloat16()
        for value, gradient in zip(theirs, gradients, strict=True):
            value.grad = gradient.float()
        optimiser.step()
        tensors = list(zip(copies, gradients, values, means, squares, strict=True))
        if fused:
            engine.fused_adam(tensors, rate, torch.tensor(step).double(), betas)
        else:
            correction = torch.tensor(1 - betas[1] ** step).sqrt()
            engine.adam(tensors, torch.tensor(rate / (1 - betas[0] ** step)), correction, betas)
        for value, their in zip(values, theirs, strict=True):
            torch.testing.assert_close(value, their, rtol=1e-6, atol=1e-7)
        assert torch.equal(copies[0], values[0].bfloat16()) and torch.equal(copies[1], values[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fifty_steps_match_golden_results(kind, precision):
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


def test_all_exponents_except_the_root_are_learned():
    result = train(tiny(**KINDS["learned"], steps=30))
    assert result.exponents[0] == 2.1 and abs(result.exponents[1] - 2.0) > 0.02
    assert result.curve["exponent_1"][0] == pytest.approx(2.0, abs=1e-6)
    assert result.exponents[1] == pytest.approx(result.curve["exponent_1"][-1], abs=0.02)
    deep = train(tiny(objective="isa-vae", prior="2.1[1.5[1, 2.5[2]]]", learn_exponents=True))
    assert deep.prior.tree.structure == Node.parse("2.1[1.5[1, 2.5[2]]]").structure


def test_bf16_training_stays_close_to_float32():
    full, half = (train(tiny(precision=precision, steps=20, learning_rate=0.003)) for precision in ("fp32", "bf16"))
    assert all(value.dtype == torch.float32 for value in half.model.parameters())
    assert not np.array_equal(full.curve["loss"], half.curve["loss"])
    np.testing.assert_allclose(full.curve["loss"], half.curve["loss"], rtol=0.01)


@pytest.mark.parametrize("objective", ["isa-vae", "factor-vae"])
def test_convolutions_train_in_bf16(objective):
    runs = [tiny(objective=objective, model="conv", precision="bf16", steps=2, seed=seed) for seed in (0, 1)]
    for result in train_pack(runs, dataset=grey()):
        assert result.diverged_at is None
        statistics = [value for name, value in result.model.named_buffers() if name.endswith("running_mean")]
        assert all(value.dtype == torch.float32 and value.abs().max() > 0 for value in statistics)
        assert result.model.encoder.net[1].num_batches_tracked == (4 if objective == "factor-vae" else 2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("kind", "model"), EVERY)
def test_self_check_compares_a_step_with_float64(kind, model, precision, monkeypatch):
    runs = [tiny(**KINDS[kind], model=model, precision=precision, seed=seed) for seed in (0, 1)]
    pack, original = Pack(runs, DATASET), engine.losses
    before = {name: value.clone() for name, value in pack.state.items()}
    # Convolutions between normalisations: a third of the smallest gradients is rounding to bfloat16.
    limits = {"small": {"fp32": 1e-4, "bf16": 0.05}, "narrow": {"fp32": 1e-3, "bf16": 0.5}}
    assert pack.disagreement() < limits[model][precision]
    for name, value in pack.state.items():
        assert torch.equal(value, before[name]), name
    monkeypatch.setattr(pack, "losses", lambda *arguments: (3 * original(*arguments)[0], original(*arguments)[1]))
    assert pack.disagreement() > 1


@pytest.mark.parametrize(("kind", "model"), EVERY)
def test_runs_of_a_pack_are_independent(kind, model):
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
    alone, beside, spoiled = packs
    assert alone.diverged() == [None] and beside.diverged() == [None] * 3
    assert spoiled.diverged() == [0, None, steps // 2 + 1]
    for name, value in beside.state.items():
        assert torch.equal(value[1], spoiled.state[name][1]), name
    # A gradient that is zero except for rounding, such as that of a bias before a normalisation, makes Adam take full
    # steps. If the initial parameters of the convolutional pair change by 1e-7, its losses change as much as here.
    rtol = 1e-6 if model == "small" else 1e-3
    torch.testing.assert_close(beside.curve[1, :, 0], alone.curve[0, :, 0], rtol=rtol, atol=0)
    if model == "small":
        row = {name: value[1] for name, value in beside.state.items()}
        own = {name: value[0] for name, value in alone.state.items()}
        torch.testing.assert_close(row, own, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(beside.curve[0, :, 0], alone.curve[0, :, 0], rtol=1e-4)


@pytest.mark.parametrize(("kind", "model"), EVERY)
def test_reused_pack_equals_a_fresh_one(kind, model):
    runs = [tiny(**KINDS[kind], model=model, seed=seed) for seed in (0, 1)]
    others = [_varied(runs[0]).replace(seed=2), runs[1].replace(seed=3)]
    reused, fresh = Pack(runs, DATASET), Pack(others, DATASET)
    reused.advance_to(3)
    reused.load(others)
    reused.advance_to(3)
    fresh.advance_to(3)
    for name, value in fresh.state.items():
        assert torch.equal(reused.state[name], value), name
    assert (reused.step, reused.diverged()) == (3, [None, None])


@pytest.mark.parametrize("kind", ["learned", "factor-vae"])
def test_shorter_run_of_a_course_is_recorded_on_the_way(kind):
    short, long = (tiny(**KINDS[kind], steps=steps) for steps in (13, 60))
    seen = []
    found = train_pack([long, short], evaluation=True, callback=lambda step, terms: seen.append(step))
    assert seen == [13, 50, 60] and [result.run for result in found] == [long, short]
    for result in found:
        assert_same(train(result.run, evaluation=True), result)


@pytest.mark.parametrize(
    "run",
    [
        tiny(beta=1e30, steps=10),
        tiny(beta=1e30, steps=30),
        tiny(objective="isa-vae", learn_exponents=True, exponent_learning_rate=1e38, steps=1),
    ],
)
def test_shorter_run_of_a_course_diverges_as_alone(run):
    long = run.replace(steps=60)
    together, alone = train_pack([run, long]), [train(run), train(long)]
    for one, other in zip(together, alone, strict=True):
        assert one.diverged_at == other.diverged_at is not None and one.exponents == other.exponents
        assert len(one.curve["loss"]) == len(other.curve["loss"])


def test_one_seed_gives_one_result():
    run = tiny(objective="isa-vae", precision="bf16")
    first = train(run, evaluation=True)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
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
def test_interrupted_run_resumes_to_the_same_result(kind, model, tmp_path):
    run = tiny(**KINDS[kind], model=model, steps=110 if model == "small" else 60)
    options = {"checkpoints": tmp_path, "checkpoint_every": 7}
    for stop in (50, 100) if model == "small" else (50,):
        with pytest.raises(_Interrupted):
            train(run, **options, callback=_interrupt_at(stop))
        assert engine.checkpoint_step(tmp_path, run) == stop // 7 * 7
    seen = []
    resumed = train(run, **options, evaluation=True, callback=lambda step, terms: seen.append(step))
    assert seen == ([100, 110] if model == "small" else [50, 60])
    assert_same(train(run, evaluation=True), resumed)
    assert list(tmp_path.iterdir()) == [engine.checkpoint_path(tmp_path, run)]


def test_checkpoints_are_seconds_apart(tmp_path, monkeypatch):
    run = tiny(steps=30)
    clock = itertools.count(0.0, 10.0)  # a step takes ten seconds
    monkeypatch.setattr(engine.time, "perf_counter", lambda: next(clock))
    saved = []
    monkeypatch.setattr(Pack, "save", lambda pack, folder, seconds: saved.append(pack.step))
    train(run, checkpoints=tmp_path, checkpoint_every=1, checkpoint_seconds=75)
    assert saved == [8, 16, 24]


@pytest.mark.parametrize("kind", ["learned", "factor-vae"])
def test_longer_run_continues_a_shorter_one(kind, tmp_path, monkeypatch):
    short, long, other = (tiny(**KINDS[kind], steps=steps, seed=seed) for steps, seed in ((11, 0), (24, 0), (11, 1)))
    assert short.course == long.course != other.course
    options = {"checkpoints": tmp_path, "checkpoint_every": 4}
    expected = [train(run) for run in (short, long)]
    assert_same(expected[0], train(short, **options))
    assert engine.checkpoint_step(tmp_path, long) == 8
    steps, original = [], Pack.advance
    monkeypatch.setattr(Pack, "advance", lambda pack: steps.append(pack.step) or original(pack))
    assert_same(expected[1], train(long, **options))
    assert steps == list(range(8, 24))
    # A checkpoint beyond the end of the short run is not used, and not replaced.
    content = engine.checkpoint_path(tmp_path, long).read_bytes()
    assert engine.checkpoint_step(tmp_path, short) == 20
    assert_same(expected[0], train(short, **options))
    assert engine.checkpoint_path(tmp_path, long).read_bytes() == content
    for one, other in zip(expected, train_pack([short, long], **options), strict=True):
        assert_same(one, other)


def test_pack_resumes_from_different_steps(tmp_path):
    runs = [tiny(objective="isa-vae", beta=beta, steps=60) for beta in (1.0, 2.0, 1e30, 3.0)]
    options = {"checkpoints": tmp_path, "checkpoint_every": 4}
    with pytest.raises(_Interrupted):
        train_pack(runs[:3], **options, callback=_interrupt_at(50))
    assert [engine.checkpoint_step(tmp_path, run) for run in runs] == [48, 48, 48, 0]
    for run, result in zip(runs, train_pack(runs, **options), strict=True):
        assert result.run == run and result.diverged_at == (0 if run.beta == 1e30 else None)
        np.testing.assert_allclose(result.curve["loss"], train(run).curve["loss"], rtol=1e-5)


def test_torn_or_foreign_checkpoint_is_refused(tmp_path):
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


def test_diverged_run_stops_and_records_the_step():
    seen = []
    result = train(tiny(learning_rate=1e4, steps=200), callback=lambda step, terms: seen.append(step))
    assert 0 < result.diverged_at < seen[-1] <= result.diverged_at + 50
    *before, last = result.curve["loss"].tolist()
    limit = 100 * max(math.log(2) * 4096, before[0])
    assert not abs(last) <= limit and all(abs(loss) <= limit for loss in before)
    json.dumps(result.record, allow_nan=False)


def test_parameters_spoiled_by_the_last_step_are_a_divergence(caplog):
    runs = [tiny(steps=1, learning_rate=1e10, seed=seed) for seed in range(2)]
    for run, result in zip(runs, train_pack(runs, evaluation=True), strict=True):
        assert np.isfinite(result.curve["loss"]).all()
        assert result.evaluation is None and result.record["status"] == "diverged"
        assert result.diverged_at == result.record["diverged_at"] == 1
        assert f"{run.key} cannot be measured" in caplog.text


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
)
def test_divergence_is_found_where_it_is_defined(stretches, spoiled):
    loss = [value for length, value in stretches for _ in range(length)]
    terms = np.stack([loss, np.ones(len(loss))], 1).astype(np.float32)
    if spoiled is not None and spoiled[0] < len(loss):
        terms[spoiled[0], spoiled[1]] = spoiled[2]
    pack = Pack([tiny(steps=len(terms))], DATASET)
    pack.step = len(terms)
    pack.curve[0, :, 2:] = 1
    pack.curve[0, :, :2] = torch.from_numpy(terms)
    assert pack.diverged() == [_diverged_by_definition(terms)]


@pytest.mark.parametrize("where", ["parameters", "moments", "discriminator", "statistics", "exponents"])
def test_state_that_is_not_finite_is_found_after_the_last_step(where):
    kind = {"objective": "factor-vae", "prior": "isa", "subspaces": (2, 1), "latent_dim": 3, "learn_exponents": True}
    model = "narrow" if where == "statistics" else "small"
    pack = Pack([tiny(**kind, model=model, seed=seed, steps=2) for seed in (0, 1)], DATASET)
    pack.advance_to(2)
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
    assert pack.diverged() == [None, 2]


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
def test_cuda_graph_replays_the_step(kind):
    runs = [tiny(**KINDS[kind], steps=20, seed=seed) for seed in range(2)]
    images = DATASET.to("cuda")
    replayed, plain = Pack(runs, images), Pack(runs, images)
    replayed.advance_to(20)
    for step in range(20):
        plain.curve[:, step] = plain.update(*plain.feed(step))
    assert replayed.graph is not None and plain.graph is None
    torch.testing.assert_close(replayed.curve, plain.curve, rtol=1e-5, atol=1e-5)


@cuda
def test_reused_cuda_graph_trains_other_runs():
    runs = [tiny(**KINDS["learned"], steps=20, seed=seed) for seed in range(2)]
    images, others = DATASET.to("cuda"), [_varied(run).replace(seed=run.seed + 5) for run in runs]
    reused, fresh = Pack(runs, images), Pack(others, images)
    reused.advance_to(10)
    reused.load(others)
    reused.advance_to(20)
    fresh.advance_to(20)
    torch.testing.assert_close(reused.curve, fresh.curve, rtol=1e-5, atol=1e-5)


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
