"""Measures of claims about the prior and the objectives, by computation."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from scipy.stats import chi, laplace, norm

from edition import stats
from edition.factorise import preserved
from edition.orientation import straight_cost
from edition.prior import excess_kurtosis, interaction, rotation_cost, sample_tests
from edition.scorecard.evidence import measure
from edition.scorecard.rules import Judged, Outcome, checks, holds, together, within
from isa.objectives import beta_tcvae, beta_vae, standard_normal
from isa.prior import LpNested, Node, isa_prior


def _octant_volume(tree: Node, order: int) -> float:
    """Return the volume of all z with f(z) at most 1 in three dimensions, by Gauss's rule over directions."""
    node, weight = np.polynomial.legendre.leggauss(order)
    angle, weight = (node + 1) * math.pi / 4, weight * math.pi / 4
    theta, phi = np.meshgrid(angle, angle, indexing="ij")
    ray = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1)
    reach = 1 / tree.norm(torch.from_numpy(ray)).numpy()
    return float(8 * np.einsum("i,j,ij->", weight, weight, reach**3 / 3 * np.sin(theta)))


@measure
def surface_formula(trees: Sequence[str], order: int, tolerance: float) -> Judged:
    """Test if Eq. 8 makes Eq. 7 a density: it is n times the volume inside, and the sphere's area where all p are 2."""
    nested = [Node.parse(text) for text in trees]
    error = max(abs(float(tree.log_surface().exp()) / (3 * _octant_volume(tree, order)) - 1) for tree in nested)
    for n in range(2, 21):
        sphere = math.log(2) + n / 2 * math.log(math.pi) - math.lgamma(n / 2)
        error = max(error, abs(math.expm1(float(Node(2.0, n).log_surface()) - sphere)))
    text = f"relative error at most {error:.0e} for {len(nested)} trees by quadrature and spheres up to n = 20"
    return within(error, tolerance, text)


@measure
def subspaces_independent(subspaces: Sequence[int], p0: float, p1: float, points: int, tolerance: float) -> Judged:
    """Test if the density is the product of the subspaces' own."""
    prior = isa_prior(subspaces, p0, p1)
    z = 2 * torch.randn(points, sum(subspaces), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parts = [prior.marginal(i).log_prob(z[:, list(where)]) for i, where in enumerate(prior.subspaces)]
    error = float((prior.log_prob(z) - sum(parts)).abs().max())
    text = f"log density and sum over subspaces differ by at most {error:.0e} nats at {points:,} points"
    return within(error, tolerance, text)


@measure
def radial_is_chi(dimensions: Sequence[int], tolerance: float) -> Judged:
    """Test if Eq. 11 with p0 = 2 and s = 2 is the chi distribution, and Eq. 7 then the standard normal."""
    radius, error = np.linspace(0.01, 12, 1000), 0.0
    for n in dimensions:
        z = torch.zeros(len(radius), n, dtype=torch.float64)
        z[:, 0] = torch.from_numpy(radius)
        normal = -0.5 * radius**2 - n / 2 * math.log(2 * math.pi)
        eq11 = math.log(2) + (n - 1) * np.log(radius) - math.lgamma(n / 2) - n / 2 * math.log(2) - radius**2 / 2
        ours = LpNested(Node(2.0, n), 2.0).log_prob(z).numpy()
        error = max(error, np.abs(eq11 - chi(n).logpdf(radius)).max(), np.abs(ours - normal).max())
    text = f"log densities differ by at most {error:.0e} nats in up to {max(dimensions)} dimensions"
    return within(error, tolerance, text)


@measure
def factorised_only_where_equal(size: int, p0: float, others: Sequence[float], tolerance: float) -> Judged:
    """Test if coordinates of a subspace are independent where its exponent is the root's, and dependent elsewhere."""
    elsewhere = f"dependent at {', '.join(f'{p1:g}' for p1 in others)}"
    parts = {f"independent at p1 = {p0:g}": abs(interaction(size, p0, p0)) <= tolerance}
    return checks(parts | {elsewhere: min(abs(interaction(size, p0, p1)) for p1 in others) > tolerance})


def _samples(prior: LpNested, count: int) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return prior.sample((count,)).double()


@measure
def not_rotation_invariant(size: int, p0: float, p1: float, tolerance: float) -> Judged:
    """Test if a rotation by 45 degrees costs log density, within a subspace and between two."""
    within, between = (float(rotation_cost(size, p0, p1, between=between)) for between in (False, True))
    text = f"thousandths of a nat lost: {1000 * within:.2f} within a subspace, {1000 * between:.2f} between two"
    return holds(min(within, between) > tolerance), text


@measure
def identifiable(size: int, p0: float, p1: float, points: int, tolerance: float) -> Judged:
    """Test if nothing but signs and exchanges leaves the prior as it is: no rotation, and no other map that mixes."""
    generator = torch.Generator().manual_seed(0)
    z = 0.3 + 0.4 * torch.rand(points, 2 * size, dtype=torch.float64, generator=generator)
    error, mixing = preserved(isa_prior((size, size), p0, p1), z, math.pi / 4)
    parts = {
        "a rotation changes the prior": float(rotation_cost(size, p0, p1, between=False)) > tolerance,
        "so does every other continuous map that mixes latents": (
            Outcome.NO if error <= tolerance and mixing > 0.1 else Outcome.OPEN
        ),
    }
    outcome, text = checks(parts)
    return outcome, f"{text} (one that keeps the log density to {error:.0e} nats is constructed)"


@measure
def sampler_exact(trees: Sequence[str], points: int, least: float) -> Judged:
    """Test if radii, shares, single coordinates, signs and scores of samples have the laws that they must have."""
    priors = [LpNested(Node.parse(text)) for text in trees]
    p_values = [p for prior in priors for p in sample_tests(prior, _samples(prior, points)).values()]
    smallest = float(stats.holm(p_values).min())
    text = f"{len(p_values)} tests of {points:,} samples of each of {len(trees)} trees"
    return holds(smallest >= least), f"{text}: smallest p-value {smallest:.2f} after Holm ({least:g} allowed)"


@measure
def kurtosis_parameter(kappas: Sequence[float], tolerance: float) -> Judged:
    """Test if p = 2 / (1 + kappa) is normal at 0, Laplace at 1, and has an excess kurtosis of kappa's sign."""
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    laws = (2.0, 2.0, norm), (1.0, 1.0, laplace)  # exponent, scale
    error = max(
        np.abs(LpNested(Node(p, 1), s).log_prob(x[:, None]).numpy() - law.logpdf(x)).max() for p, s, law in laws
    )
    excess = {kappa: excess_kurtosis(1, *[2 / (1 + kappa)] * 2) for kappa in kappas}
    signs = all(value * kappa > 0 for kappa, value in excess.items())
    outcome, text = checks({"normal at κ = 0, Laplace at κ = 1": error <= tolerance, "kurtosis has κ's sign": signs})
    return outcome, f"{text} ({', '.join(f'{value:+.2f} at {kappa:g}' for kappa, value in excess.items())})"


@measure
def kurtosis_sides(p0: float, platykurtic: float, leptokurtic: float, sizes: Sequence[int]) -> Judged:
    """Test if a coordinate's excess kurtosis is negative for one exponent and positive for the other."""
    parts, texts = [], []
    for p1, sign in ((platykurtic, -1), (leptokurtic, 1)):
        excess = [excess_kurtosis(size, p0, p1) for size in sizes]
        parts += [holds(sign * value > 0) for value in excess]
        texts.append(f"p1 = {p1:g}: " + ", ".join(f"{value:+.3f}" for value in excess))
    where = f"excess kurtosis in subspaces of {' and '.join(map(str, sizes))}"
    return together(parts), f"{where}: {'; '.join(texts)}"


@measure
def prior_prefers(leptokurtic: float, platykurtic: float) -> Judged:
    """Test if a straight code of a square fits a leptokurtic prior better on the diagonals, a platykurtic one not."""
    gains = {p: float(np.subtract(*straight_cost(p, [math.pi / 4, 0.0]))) for p in (leptokurtic, platykurtic)}
    text = "; ".join(f"p = {p:g} {gained:+.3f}" for p, gained in gains.items())
    outcome = together([holds(gains[leptokurtic] < 0), holds(gains[platykurtic] > 0)])
    return outcome, f"nats gained by the axes over the diagonals: {text}"


@measure
def same_objective_at_one(latents: int, batch: int, tolerance: float) -> Judged:
    """Test if beta-TCVAE and beta-VAE are one objective at beta = 1 and two elsewhere, for either prior."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch,), (batch, latents), (batch, latents), (batch, latents))
    fit, mean, log_var, noise = (torch.randn(shape, dtype=torch.float64, generator=generator) for shape in shapes)
    z = mean + (log_var / 2).exp() * noise

    def apart(weight: float) -> float:
        differences = []
        for prior in (standard_normal(latents), isa_prior((latents // 2,) * 2)):
            plain = beta_vae(fit, z, mean, log_var, prior, weight)
            split = beta_tcvae(fit, z, mean, log_var, prior, weight, dataset_size=100 * batch)
            differences.append(abs(float(plain.loss - split.loss)))
        return max(differences)

    return checks({"equal at β = 1": apart(1.0) <= tolerance, "different at β = 2": apart(2.0) > tolerance})


@measure
def sampled_divergence_varies_less(weight: float, noise_var: float, points: int) -> Judged:
    """Test if the ELBO with a sampled divergence varies less than with a closed one, where q is the posterior.

    For z ~ N(0, 1) and x ~ N(weight z, noise_var): the sampled one is then log p(x), whatever z is. Here x = 1.
    """
    var = 1 / (1 + weight**2 / noise_var)
    mean, deviation = var * weight / noise_var, math.sqrt(var)
    z = mean + deviation * np.random.default_rng(0).standard_normal(points)
    fit = norm.logpdf(1.0, weight * z, math.sqrt(noise_var))
    sampled = fit + norm.logpdf(z) - norm.logpdf(z, mean, deviation)
    text = f"standard deviation {sampled.std():.0e} nats instead of {fit.std():.2f}, where q is the posterior"
    return holds(sampled.std() < fit.std()), text
