"""Measurements of trained models against plain formulas, and at the limits of floating-point numbers."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import cuda
from tiny_runs import KINDS, numbers, tiny, train, train_pack
from tiny_sweep import DATASET, small
from torch.distributions import Bernoulli, Normal

from isa import mig, models, objectives
from isa.data import Factor, FactorDataset
from isa.evaluate import evaluate, measurements, subspaces
from isa.prior import LpNested
from isa.results import Result

pytestmark = pytest.mark.usefixtures("small_discriminator")

PRIORS = ("beta-vae", "isa-vae", "learned", "tree", "unit", "gaussian")  # the objective does not matter


@pytest.mark.parametrize(("kind", "model"), [(kind, "small") for kind in PRIORS] + [("isa-vae", "narrow")])
def test_evaluation_matches_plain_formulas(kind, model):
    runs = [tiny(**KINDS[kind], model=model, steps=3, seed=seed) for seed in (0, 4)]
    x = DATASET.images(torch.arange(len(DATASET)))
    for run, result in zip(runs, train_pack(runs, evaluation=True), strict=True):
        found, record = result.evaluation, result.record
        noise = torch.randn(len(DATASET), run.latent_dim, generator=run.generator("cpu", 2))
        with torch.no_grad():
            assert not result.model.training
            mean, log_var = result.model.encode(x)
            z = mean + torch.exp(log_var / 2) * noise
            pixels = result.model.decode(z)
            pixels = Bernoulli(logits=pixels) if run.likelihood == "bernoulli" else Normal(pixels, 1.0)
            fit = pixels.log_prob(x).sum((1, 2, 3))
            kl = Normal(mean, torch.exp(log_var / 2)).log_prob(z).sum(-1) - result.prior.log_prob(z)
        torch.testing.assert_close((found.mean, found.log_var), (mean, log_var), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.log_likelihood, fit, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(found.kl, kl, rtol=1e-4, atol=1e-4)
        means = [record[name] for name in ("log_likelihood", "divergence", "elbo")]
        torch.testing.assert_close(means, [x.mean().item() for x in (fit, kl, fit - kl)], rtol=1e-4, atol=1e-5)
        assert record["active_units"] == int((mean.var(0, correction=0) > 0.01).sum())
        assert record["mig"] == found.mig.score
        (alone,) = evaluate([(run, result.model, result.prior)], DATASET)
        torch.testing.assert_close(alone.log_likelihood, found.log_likelihood, rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def bars() -> tuple[FactorDataset, Result]:
    """Bars with the factors of dSprites, of which the shape is not scored, and a model with three subspaces."""
    sizes = {"shape": 3, "scale": 2, "angle": 2, "x": 2, "y": 3}
    pixels = np.zeros((*sizes.values(), 64, 64), np.uint8)
    for shape, scale, angle, x, y in np.ndindex(*sizes.values()):
        width, height = (4 + 8 * shape, 4 + 4 * scale)[:: 1 - 2 * angle]
        pixels[shape, scale, angle, x, y, 15 * y : 15 * y + height, 15 * x : 15 * x + width] = 255
    factors = [Factor(name, range(size)) for name, size in sizes.items()]
    images = FactorDataset.from_array("dsprites", "bars", factors, pixels, DATASET.provenance)
    fields = {"latent_dim": None, "subspaces": (2, 1, 2), "dataset": "dsprites", "learning_rate": 0.01}
    return images, train(tiny(objective="isa-vae", **fields, steps=60), dataset=images, evaluation=True)


def test_record_measures_every_factor(bars):
    images, result = bars
    record, found, sizes = result.record, result.evaluation, images.factor_sizes
    assert record["unscored"] == ["shape"] and record["factors"] == ["scale", "angle", "x", "y"]
    fit = found.log_likelihood.double().view(3, -1).mean(1)
    np.testing.assert_allclose(record["log_likelihood_by_value"], fit[None], rtol=1e-12)
    every = mig.mutual_information_gap(found.mean, found.log_var, sizes).mutual_information
    information = [record["unscored_mutual_information"][0], *record["mutual_information"]]
    np.testing.assert_allclose(information, every, atol=0.25)  # other draws of 72 images
    assert record["mig_binned"] == mig.mutual_information_gap_binned(found.mean, sizes, (1, 2, 3, 4))[0]
    assert record["mig_10000_samples"] == pytest.approx(record["mig"])  # these have 72 images


def test_record_compares_subspaces_with_random_ones(bars):
    images, result = bars
    record = result.record
    assert record["subspaces_compared"] == [[0, 1], [2], [3, 4]]
    assert record["subspace_factors"] == list(images.factor_names)
    assert record["random_groupings"] > 1 and record["subspace_draws"] == 72
    names = ("subspace_mutual_information", "subspace_standard_error", "random_subspace_mean")
    own, error, mean = (np.array(record[name]) for name in names)
    assert own.shape == mean.shape == np.shape(record["random_subspace_deviation"]) == (5, 3) and (error > 0).all()
    assert (np.diff(mean, axis=1) <= 0).all()  # the subspace with the most information on a factor comes first
    assert (own < np.log(images.factor_sizes)[:, None] + 5 * error).all()


@pytest.mark.parametrize(
    ("fields", "groups"),
    [
        ({"prior": "2.1[2, 1.5[1.2[2], 1]]", "latent_dim": 5}, [[0], [1], [2, 3, 4]]),
        ({"prior": "2.1[1.5[3]]"}, None),
        ({"latent_dim": 18}, [[*range(6)], [*range(6, 12)], [*range(12, 18)]]),
    ],
)
def test_subspaces_of_the_prior_or_the_data_set(fields, groups):
    assert subspaces(tiny(**fields)) == groups


def test_record_has_the_mean_of_the_first_10000_images():
    fit, result = torch.zeros(20_000), train(tiny(), evaluation=True)
    fit[10_000:] = -2.0
    changed = dataclasses.replace(result.evaluation, log_likelihood=fit, kl=fit, mean=torch.zeros(20_000, 3))
    grid = SimpleNamespace(factor_names=DATASET.factor_names, factor_sizes=(2, 100, 100))
    found = measurements(changed, result.run, grid)
    assert found["log_likelihood_first_10000"] == 0.0 and found["log_likelihood"] == -1.0


def _constant(mean: float, log_var: float) -> models.VAE:
    """Return networks whose posterior is the same for every image."""
    vae = small(3, 1)
    with torch.no_grad():
        for value in vae.parameters():
            value.zero_()
        vae.encoder.net[-1].bias[:3], vae.encoder.net[-1].bias[3:] = mean, log_var
    return vae


@pytest.mark.parametrize(
    ("tree", "precision"),
    [(None, "fp32"), ("2.1[2.2[2], 1]", "bf16"), ("10[0.5[2], 1]", "fp32"), ("0.5[10[2], 1]", "bf16")],
)
def test_extreme_posteriors_are_finite_or_refused(tree, precision, caplog):
    run = tiny(prior=tree or "normal", precision=precision)
    prior = LpNested(run.tree) if tree else objectives.standard_normal(3)
    means, log_vars = (0.0, 1e-30, 1.0, 1e4, 3e38, math.inf), (-1e3, -89.0, -80.0, 0.0, 89.0, math.nan)
    extremes = [(mean, log_var) for mean in means for log_var in log_vars]
    models = [(run, _constant(*extreme), prior) for extreme in extremes]
    evaluations = dict(zip(extremes, evaluate(models, DATASET), strict=True))
    measured = {extreme: found for extreme, found in evaluations.items() if found is not None}
    for found in measured.values():
        assert all(map(math.isfinite, numbers(measurements(found, run, DATASET))))
    assert {(0.0, 0.0), (1e-30, 0.0), (1.0, 0.0), (0.0, -80.0)} <= set(measured)
    assert all(abs(log_var) < 100 and math.isfinite(mean) for mean, log_var in measured)
    assert caplog.text.count(f"{run.key} cannot be measured") == len(extremes) - len(measured)


@cuda
@pytest.mark.parametrize("kind", ["learned", "beta-vae"])
def test_gpu_evaluation_matches_the_cpu(kind):
    run = tiny(**KINDS[kind], steps=20)
    result = train(run, device="cuda", evaluation=True)
    (again,) = evaluate([(run, result.model, result.prior)], DATASET)
    posteriors = [(evaluation.mean, evaluation.log_var) for evaluation in (result.evaluation, again)]
    torch.testing.assert_close(*posteriors, rtol=0, atol=1e-4)
    assert result.evaluation.mig.score == pytest.approx(again.mig.score, abs=0.05)  # its draws are different ones
