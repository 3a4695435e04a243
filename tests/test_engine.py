"""The training step against plain PyTorch, packs, resuming, divergence and compiling."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import cuda, golden
from tiny_runs import KINDS, assert_same, tiny, train, train_pack
from tiny_sweep import DATASET
from torch import Tensor, nn
from torch.backends import cudnn
from torch.overrides import TorchFunctionMode

from isa import LpNested, engine, models, objectives
from isa.data import FactorDataset
from isa.engine import CheckpointError, Pack
from isa.run import Run

pytestmark = pytest.mark.usefixtures("small_discriminator")

CHOSEN = [("learned", "small"), ("factor-vae", "small"), ("factor-vae", "narrow")]
"""Every kind of state: exponents, a discriminator, and statistics of normalisations."""
EVERYTHING = KINDS["learned"] | {"objective": "factor-vae", "prior": "isa", "subspaces": (2, 1), "model": "narrow"}
"""All of these at once."""
RUNAWAY = KINDS["learned"] | {"exponent_learning_rate": 1e38}
OFTEN = {"checkpoint_every": 4, "checkpoint_seconds": 0}
GOLDEN = golden("training")
GPUS = max(1, torch.cuda.device_count())
SPOILED = dict.fromkeys(["value.encoder.1.weight", "square.encoder.1.weight", "mean.discriminator.0.bias"], math.inf)
SPOILED |= {"encoder.1.running_var": math.nan, "prior.raw": -1e4}  # an exponent of zero
BLANK = 4096 * math.log(2)
"""Loss of a model without information: the least first value that counts."""


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
    pixels = (DATASET.images(torch.arange(len(DATASET))) * 200).byte().numpy().reshape(*DATASET.factor_sizes, 64, 64)
    grey = FactorDataset.from_array("cars3d", "grey squares", DATASET.factors_info, pixels, DATASET.provenance)
    pack = Pack([tiny(precision="bf16")], grey)
    assert set(pack.images(pack.feed(0)[0]).unique().tolist()) == {0.0, np.float32(200) / np.float32(255)}


def _losses(run: Run, vae: models.VAE, critic: nn.Module, learned: Tensor | None, *inputs: Tensor) -> list[Tensor]:
    """Return the loss of one run, and of its discriminator if it has one, for images (batches, B, 1, 64, 64)."""
    x, noise, order = inputs
    prior = objectives.standard_normal(run.latent_dim, dtype=torch.float64)
    if run.tree is not None:
        exponents = torch.tensor(run.tree.exponents, dtype=torch.float64)
        if learned is not None:
            exponents = [exponents[0].float().double(), *F.softplus(learned)]
        prior = LpNested(run.tree.with_exponents(exponents), LpNested(run.tree, run.scale).scale.double())
    mean, log_var = vae.encode(x[0])
    z = mean + torch.exp(log_var / 2) * noise[0]
    arguments = objectives.LIKELIHOODS[run.likelihood](vae.decode(z), x[0]), z, mean, log_var, prior, run.beta
    if run.base == "beta-vae":
        return [objectives.beta_vae(*arguments, kl=run.kl).loss]
    if run.base == "beta-tcvae":
        return [objectives.beta_tcvae(*arguments, dataset_size=len(DATASET), sampling=run.sampling).loss]
    with torch.no_grad():
        mean, log_var = vae.encode(x[1])
        other = (mean + torch.exp(log_var / 2) * noise[1]).gather(0, order)
    answers = critic(torch.cat([z.detach(), other]))
    classes = torch.arange(2).repeat_interleave(run.batch_size)
    return [objectives.factor_vae(*arguments, discriminator_logits=critic(z)).loss, F.cross_entropy(answers, classes)]


class OnDevice(TorchFunctionMode):
    """Refuse what a CUDA graph cannot capture: numbers that are copied to the device or read from it."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in (torch.tensor, torch.as_tensor, Tensor.item, Tensor.tolist, Tensor.__bool__)
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(("kind", "model"), [*((kind, "small") for kind in KINDS), CHOSEN[2]])
def test_step_matches_plain_autograd_in_float64(kind, model):
    first = tiny(**KINDS[kind], model=model)
    runs = [first, first.replace(seed=5), _varied(first)]
    pack, networks = Pack(runs, DATASET), engine.build_networks(runs, 1).double()
    networks.dtype = torch.float64
    index, noise, order = pack.feed(3)
    x, noise = pack.images(index).double(), noise.double()
    with OnDevice():
        total, terms = engine.losses(networks, first, len(DATASET), pack.beta.double(), x, noise, order)
        total.backward()
    for number, run in enumerate(runs):
        vae = models.build(run.model, run.latent_dim, seed=run.seed).double()
        critic = models.build_discriminator(run.latent_dim, seed=run.seed).double()
        learned = networks.prior.raw[number].detach().requires_grad_() if run.learn_exponents else None
        inputs = x[:, number], noise[:, number], None if order is None else order[number]
        losses = _losses(run, vae, critic, learned, *inputs)
        losses[0].backward(inputs=[*vae.parameters(), *([] if learned is None else [learned])])
        parts = {"encoder": vae.encoder.net, "decoder": vae.decoder.net}
        if len(losses) == 2:
            losses[1].backward()
            parts["discriminator"] = critic
        expected = {name: value.grad for name, value in nn.ModuleDict(parts).named_parameters()}
        expected |= {} if learned is None else {"prior.raw": learned.grad}
        found = {name: networks.get_parameter(name).grad[number] for name in expected}
        found = {name: x.T if x.ndim == 2 else x for name, x in found.items()}  # of linear layers (in, out)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(terms[number, [0, -1][: len(losses)]], torch.stack(losses).detach())


@pytest.mark.parametrize("fused", [True, False])
def test_adam_matches_torch(fused):
    torch.manual_seed(0)
    rate, betas = 0.01, (0.8, 0.99)
    theirs = [torch.randn(3, 4), torch.randn(5)]
    values, means, squares = ([factor * value for value in theirs] for factor in (1, 0, 0))
    copies = [values[0].bfloat16(), values[1].clone()]
    optimiser = torch.optim.Adam(theirs, rate, betas)
    for step in range(1, 8):
        gradients = [torch.randn_like(copy) * 10.0 ** (step - 4) for copy in copies]
        theirs[0].grad, theirs[1].grad = (gradient.float() for gradient in gradients)
        optimiser.step()
        tensors = list(zip(copies, gradients, values, means, squares, strict=True))
        if fused:
            engine.fused_adam(tensors, rate, torch.tensor(step).double(), betas)
        else:
            correction = torch.tensor(1 - betas[1] ** step).sqrt()
            engine.adam(tensors, torch.tensor(rate / (1 - betas[0] ** step)), correction, betas)
        torch.testing.assert_close(values, theirs, rtol=1e-6, atol=1e-7)
        assert torch.equal(copies[0], values[0].bfloat16()) and torch.equal(copies[1], values[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fifty_steps_match_golden_results(kind, precision):
    """Recorded when the first engine of this package took them."""
    runs = [tiny(**KINDS[kind], seed=seed, steps=50, precision=precision) for seed in (0, 7)]
    for result in train_pack(runs, evaluation=precision == "fp32"):
        expected = GOLDEN[f"{kind}/{result.run.seed}/{precision}"]
        assert result.run.hash == expected["hash"]
        rtol = {"fp32": 2e-6, "bf16": 2e-3}[precision]
        np.testing.assert_allclose(result.curve["loss"], expected["loss"], rtol=rtol)
        if "exponents" in expected:
            np.testing.assert_allclose(result.exponents, expected["exponents"], rtol=max(rtol, 1e-5))
        for name in ("mig", "log_likelihood", "elbo") if precision == "fp32" else ():
            assert result.record[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name


@pytest.mark.parametrize(("precision", "limits"), [("fp32", (1e-4, 1e-3)), ("bf16", (0.05, 0.5))])
@pytest.mark.parametrize(("kind", "model"), [*CHOSEN, ("isa-tcvae", "small"), ("unused prior", "small")])
def test_self_check_compares_a_step_with_float64(kind, model, precision, limits, monkeypatch):
    fields = KINDS.get(kind, KINDS["learned"] | {"beta": 0.0}) | {"model": model, "precision": precision}
    pack, original = Pack([tiny(**fields)], DATASET), engine.losses
    before = {name: value.clone() for name, value in pack.state.items()}
    # Convolutions between normalisations: a third of the smallest gradients is rounding to bfloat16.
    assert pack.disagreement() < limits[model == "narrow"]
    torch.testing.assert_close(pack.state, before, rtol=0, atol=0)
    monkeypatch.setattr(pack, "losses", lambda *arguments: (3 * original(*arguments)[0], original(*arguments)[1]))
    assert pack.disagreement() > 1


@pytest.mark.parametrize(("kind", "model"), CHOSEN)
def test_runs_of_a_pack_are_independent(kind, model):
    """With healthy runs in the pack, or with two that diverge, one from the start and one halfway."""
    run = tiny(**KINDS[kind], model=model, steps=20)
    healthy = [run.replace(seed=5), run, _varied(run)]
    packs = Pack([run], DATASET), Pack(healthy, DATASET), Pack([run.replace(beta=1e30), *healthy[1:]], DATASET)
    for pack in packs:
        pack.advance_to(10)
    packs[2].state[f"value.decoder.{0 if model == 'small' else 1}.weight"][2] = math.inf
    for pack in packs:
        pack.advance_to(20)
    alone, together, spoiled = packs
    assert alone.diverged() == [None] and together.diverged() == [None] * 3 and spoiled.diverged() == [0, None, 11]
    chosen = (together, 1), (spoiled, 1), (alone, 0)
    row, other, own = ({name: x[number] for name, x in pack.state.items()} for pack, number in chosen)
    torch.testing.assert_close(row, other, rtol=0, atol=0)
    # A gradient that is zero except for rounding, such as that of a bias before a normalisation, makes Adam take full
    # steps. If the initial parameters of the convolutional pair change by 1e-7, its losses change as much as here.
    torch.testing.assert_close(row["curve"][:, 0], own["curve"][:, 0], rtol=1e-6 if model == "small" else 1e-3, atol=0)
    if model == "small":
        torch.testing.assert_close(row, own, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together.curve[0, :, 0], alone.curve[0, :, 0], rtol=1e-4)


@pytest.mark.parametrize("device", ["cpu", *(pytest.param(f"cuda:{number}", marks=cuda) for number in range(GPUS))])
@pytest.mark.parametrize("fields", [EVERYTHING, KINDS["beta-tcvae"]])
def test_reused_pack_with_its_graph_equals_plain_updates(fields, device):
    runs, images = [tiny(**fields, seed=seed) for seed in (0, 1)], DATASET.to(device)
    others = [_varied(runs[0]).replace(seed=2), runs[1].replace(seed=3)]
    reused, plain = Pack(runs, images), Pack(others, images)
    reused.advance_to(5)
    reused.load(others)
    reused.advance_to(5)
    for step in range(5):
        plain.curve[:, step] = plain.update(*plain.feed(step))
    torch.testing.assert_close(reused.state, plain.state, rtol=1e-5, atol=1e-5)
    assert (reused.step, reused.diverged()) == (5, [None, None])
    assert (reused.graph is None) == (device == "cpu") and plain.graph is None


LEARNED = tiny(**KINDS["learned"], steps=13)


@pytest.mark.parametrize("run", [LEARNED, tiny(latent_dim=1), tiny(beta=1e30), tiny(**RUNAWAY, steps=1)])
def test_shorter_run_of_a_course_is_recorded_on_the_way(run):
    found = train_pack([run.replace(steps=30), run])
    assert [result.run.total_steps for result in found] == [30, run.steps]
    for result in found:
        alone = train(result.run)
        assert result.diverged_at == alone.diverged_at and result.exponents == alone.exponents
        np.testing.assert_array_equal(result.curve["loss"], alone.curve["loss"])
        pairs = zip(result.model.parameters(), alone.model.parameters(), strict=True)
        assert result.diverged_at is not None or all(torch.equal(*pair) for pair in pairs)


def test_global_random_state_is_neither_used_nor_changed():
    run = tiny(objective="isa-vae", precision="bf16")
    first = train(run, evaluation=True)
    torch.manual_seed(99)
    state = torch.random.get_rng_state()
    assert_same(first, train(run, evaluation=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_interrupted_run_resumes_to_the_same_result(tmp_path):
    def interrupt(step, terms):
        raise KeyboardInterrupt

    run, options = tiny(**EVERYTHING, steps=53), {"checkpoints": tmp_path, **OFTEN}
    with pytest.raises(KeyboardInterrupt):
        train(run, **options, callback=interrupt)
    assert engine.checkpoint_step(tmp_path, run) == 48
    seen = []
    resumed = train(run, **options, callback=lambda step, terms: seen.append(step))
    assert seen == [50, 53]
    assert_same(train(run), resumed)


def test_checkpoints_are_seconds_apart(tmp_path, monkeypatch):
    run = tiny(steps=30)
    clock = itertools.count(0.0, 10.0)  # a step takes ten seconds
    monkeypatch.setattr(engine.time, "perf_counter", lambda: next(clock))
    saved = []
    monkeypatch.setattr(Pack, "save", lambda pack, folder, seconds: saved.append(pack.step))
    train(run, checkpoints=tmp_path, checkpoint_every=1, checkpoint_seconds=75)
    assert saved == [8, 16, 24]


def test_longer_run_continues_a_shorter_one(tmp_path, monkeypatch):
    short, long, other = (tiny(steps=steps, seed=seed) for steps, seed in ((11, 0), (24, 0), (24, 1)))
    options = {"checkpoints": tmp_path, **OFTEN}
    expected = {run: train(run) for run in (short, long, other)}
    train(short, **options)
    steps, original = [], Pack.advance
    monkeypatch.setattr(Pack, "advance", lambda pack: steps.append(cudnn.enabled and pack.step) or original(pack))
    assert_same(expected[long], train(long, **options))
    assert steps == list(range(8, 24))
    content = engine.checkpoint_path(tmp_path, long).read_bytes()
    for result in train_pack([short, long], **options):  # the checkpoint is beyond the end of one
        assert_same(expected[result.run], result)
    assert engine.checkpoint_path(tmp_path, long).read_bytes() == content
    steps.clear()
    for result in train_pack([long, other], **options):  # which continue from different steps
        np.testing.assert_allclose(result.curve["loss"], expected[result.run].curve["loss"], rtol=1e-5)
    assert steps == [*range(24), *range(20, 24)]


def test_checkpoint_of_another_run_is_refused(tmp_path):
    run, other = tiny(), tiny(seed=1)
    train(run, checkpoints=tmp_path, **OFTEN)
    engine.checkpoint_path(tmp_path, run).rename(engine.checkpoint_path(tmp_path, other))
    with pytest.raises(CheckpointError, match=f"is not a checkpoint of {other.key}"):
        train(other, checkpoints=tmp_path)


def test_diverged_run_stops():
    seen = []
    result = train(tiny(learning_rate=1e4, steps=200), callback=lambda step, terms: seen.append(step))
    assert 0 < result.diverged_at < seen[-1] <= result.diverged_at + 50 and len(result.curve["loss"]) <= seen[-1]


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([1.0, *[101 * BLANK] * 24, 1.0, *[101 * BLANK] * 24], None),  # 25 steps in a row
        ([1.0, *[101 * BLANK] * 25, 1.0], 1),
        ([1.0, 1.0, *[-101 * BLANK, 101 * BLANK] * 13], 2),
        ([BLANK, *[99 * BLANK] * 25], None),
        ([-2 * BLANK, *[199 * BLANK] * 25], None),
        ([2 * BLANK, *[201 * BLANK] * 25], 1),
        ([1e14, *[1.1e15] * 25], 1),
        ([1.1e15, 1.1e15], 0),  # all of fewer steps
        ([1.0, *[101 * BLANK] * 20, math.nan], 21),
        ([1.0, *[101 * BLANK] * 25, math.nan], 1),
    ],
)
def test_divergence_is_found_where_it_is_defined(losses, step):
    pack = Pack([tiny(steps=len(losses))], DATASET)
    pack.step, losses = len(losses), torch.tensor(losses)
    pack.curve[0] = losses.nan_to_num(1.0)[:, None]
    pack.curve[0, losses.isnan(), 1] = math.nan  # any term counts
    assert pack.diverged() == [step]


@pytest.mark.parametrize("name", SPOILED)
def test_state_that_is_not_finite_is_found_after_the_last_step(name):
    pack = Pack([tiny(**EVERYTHING, seed=seed, steps=2) for seed in (0, 1)], DATASET)
    pack.advance_to(2)
    with torch.no_grad():
        (pack.state | pack.parameters)[name][1].view(-1)[0] = SPOILED[name]
    assert pack.diverged() == [None, 2]


def test_without_a_compiler_the_step_runs_uncompiled(monkeypatch, caplog):
    def no_compiler(*arguments):
        raise RuntimeError("No working C++ compiler found\nand much more")

    original = engine.losses
    monkeypatch.setattr(torch, "compile", lambda function, **options: no_compiler)
    monkeypatch.setattr(engine, "losses", lambda *arguments: original(*arguments))  # one that was not compiled before
    result = train(tiny(), compile=True)
    assert not result.record["compiled"]
    assert [record.message for record in caplog.records] == ["the step runs uncompiled: No working C++ compiler found"]
    assert_same(result, train(tiny()))


def test_compiling_changes_only_rounding(caplog):
    runs = [tiny(**KINDS["learned"], seed=seed) for seed in range(2)]
    for compiled, plain in zip(train_pack(runs, compile=True), train_pack(runs), strict=True):
        assert compiled.record["compiled"] and "the step" not in caplog.text
        for name, values in plain.curve.items():
            np.testing.assert_allclose(compiled.curve[name], values, rtol=1e-4, atol=1e-4, err_msg=name)


def test_runs_and_images_are_checked_before_training():
    run = tiny()
    for runs in ([run, tiny(batch_size=8)], [run, tiny(seed=1, steps=5)], []):
        with pytest.raises(ValueError, match="runs must be runs that share everything except seed"):
            engine.train_pack(runs)
    for unfit in (tiny(batch_size=71), Run()):
        with pytest.raises(ValueError, match=r"at least one batch of images, got .* 70 images"):
            train(unfit)


def test_progress_is_shown_on_request(capsys):
    train(tiny(), evaluation=True)
    assert capsys.readouterr() == ("", "")
    train(tiny(), evaluation=True, progress=True)
    shown = capsys.readouterr().err
    assert "loss" in shown and "log_likelihood" in shown
