"""Measures of claims about the prior and the objectives, by computation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import scipy.special
import scipy.stats
import torch

from edition import orientation, stats
from edition.factorise import NestedRadialFactorization
from edition.scorecard.evidence import Evidence
from edition.scorecard.register import checks, measure
from edition.scorecard.rules import Finding, Outcome, agreement, direction, together
from edition.stats import mean_interval
from isa.objectives import beta_tcvae, beta_vae, standard_normal
from isa.prior import LpNested, Node, isa_prior

__all__ = ["mixing_map", "preserved"]


def _octant_volume(tree: Node, order: int) -> float:
    """Volume of all z with f(z) at most 1 in three dimensions, by Gauss's rule over the directions of an octant."""
    node, weight = np.polynomial.legendre.leggauss(order)
    angle, weight = (node + 1) * math.pi / 4, weight * math.pi / 4
    theta, phi = np.meshgrid(angle, angle, indexing="ij")
    ray = np.stack([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)], -1)
    reach = 1 / tree.norm(torch.from_numpy(ray)).numpy()
    return float(8 * np.einsum("i,j,ij->", weight, weight, reach**3 / 3 * np.sin(theta)))


@measure("exact")
def surface_formula(evidence: Evidence, trees: Sequence[str], order: int, tolerance: float) -> Iterator[Finding]:
    """Test if Eq. 8 makes Eq. 7 a density: it is n times the volume inside, and the sphere's area where all p are 2."""
    nested = [Node.parse(text) for text in trees]
    error = max(abs(float(tree.log_surface().exp()) / (3 * _octant_volume(tree, order)) - 1) for tree in nested)
    for n in range(2, 21):
        sphere = math.log(2) + n / 2 * math.log(math.pi) - math.lgamma(n / 2)
        error = max(error, abs(math.expm1(float(Node(2.0, n).log_surface()) - sphere)))
    text = f"relative error at most {error:.0e} for {len(nested)} trees by quadrature and spheres up to n = 20"
    yield Finding(agreement(error, tolerance), f"{text} ({tolerance:g} allowed)")


@measure("exact")
def subspaces_independent(
    evidence: Evidence, subspaces: Sequence[int], p0: float, p1: float, points: int, tolerance: float
) -> Iterator[Finding]:
    """Test if the density is the product of the subspaces' own."""
    prior = isa_prior(subspaces, p0, p1)
    generator = torch.Generator().manual_seed(0)
    z = 2 * torch.randn(points, sum(subspaces), dtype=torch.float64, generator=generator)
    parts = [prior.marginal(i).log_prob(z[:, list(where)]) for i, where in enumerate(prior.subspaces)]
    error = float((prior.log_prob(z) - sum(parts)).abs().max())
    text = f"log density and sum over subspaces differ by at most {error:.0e} nats at {points:,} points"
    yield Finding(agreement(error, tolerance), f"{text} ({tolerance:g} allowed)")


@measure("exact")
def radial_is_chi(evidence: Evidence, dimensions: Sequence[int], tolerance: float) -> Iterator[Finding]:
    """Test if Eq. 11 with p0 = 2 and s = 2 is the chi distribution, and Eq. 7 then the standard normal."""
    radius = np.linspace(0.01, 12, 1000)
    error = 0.0
    for n in dimensions:
        z = torch.zeros(len(radius), n, dtype=torch.float64)
        z[:, 0] = torch.from_numpy(radius)
        normal = -0.5 * radius**2 - n / 2 * math.log(2 * math.pi)
        eq11 = math.log(2) + (n - 1) * np.log(radius) - math.lgamma(n / 2) - n / 2 * math.log(2) - radius**2 / 2
        chi = eq11 - scipy.stats.chi(n).logpdf(radius)
        ours = LpNested(Node(2.0, n), 2.0).log_prob(z).numpy() - normal
        error = max(error, np.abs(chi).max(), np.abs(ours).max())
    text = f"log densities differ by at most {error:.0e} nats in up to {max(dimensions)} dimensions"
    yield Finding(agreement(error, tolerance), f"{text} ({tolerance:g} allowed)")


@measure("exact")
def factorised_only_where_equal(
    evidence: Evidence, size: int, p0: float, others: Sequence[float], tolerance: float
) -> Iterator[Finding]:
    """Test if coordinates of a subspace are independent where its exponent is the root's, and dependent elsewhere.

    Two coordinates are independent where log p(a, b) + log p(0, 0) = log p(a, 0) + log p(0, b) for all a and b.
    """
    corners = torch.zeros(4, size, dtype=torch.float64)
    corners[[0, 1], 0], corners[[0, 2], 1] = 1.0, 1.0

    def interaction(p1: float) -> float:
        both, one, other, none = LpNested(Node(p0, [Node(p1, size)])).log_prob(corners).tolist()
        return abs(both + none - one - other)

    least = min(interaction(p1) for p1 in others)
    parts = {
        f"independent at p1 = {p0:g}": agreement(interaction(p0), tolerance),
        f"dependent at {', '.join(f'{p1:g}' for p1 in others)}": Outcome.YES if least > tolerance else Outcome.NO,
    }
    yield Finding(*checks(parts))


def _turned(z: torch.Tensor, i: int, j: int, angle: float) -> torch.Tensor:
    turned = z.clone()
    turned[:, i] = math.cos(angle) * z[:, i] - math.sin(angle) * z[:, j]
    turned[:, j] = math.sin(angle) * z[:, i] + math.cos(angle) * z[:, j]
    return turned


def _rotation_cost(size: int, p0: float, p1: float, j: int, batches: int) -> stats.Interval:
    """Return the log density that samples lose when coordinates 0 and j are turned by 45 degrees, in millinats.

    Its mean is a Kullback-Leibler divergence. The interval is over batches of 1,000 samples each.
    """
    prior = isa_prior((size, size), p0, p1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        z = prior.sample((1000 * batches,)).double()
    lost = prior.log_prob(z) - prior.log_prob(_turned(z, 0, j, math.pi / 4))
    return mean_interval(1000 * lost.reshape(batches, 1000).mean(1).numpy())


@measure("direction")
def not_rotation_invariant(evidence: Evidence, size: int, p0: float, p1: float, batches: int) -> Iterator[Finding]:
    """Test if a rotation by 45 degrees costs log density, within a subspace and between two."""
    within, between = (_rotation_cost(size, p0, p1, j, batches) for j in (1, size))
    text = "thousandths of a nat lost: "
    text += ", ".join(
        f"{cost.estimate:.2f} ({cost.low:.2f} to {cost.high:.2f}) {where}"
        for where, cost in (("within a subspace", within), ("between two", between))
    )
    yield Finding(together([direction(within), direction(between)]), text)


def mixing_map(prior: LpNested, z: torch.Tensor, angle: float) -> torch.Tensor:
    """Move points of an Lp-nested prior so that the prior stays what it is and its first two coordinates mix.

    The prior is mapped to independent coordinates (:class:`edition.factorise.NestedRadialFactorization`), each of these
    to a standard normal by its quantiles; two of them are turned by ``angle``, under which a normal does not change;
    everything is mapped back. This is the construction by which Locatello et al. (2019) show that a factorised prior
    identifies nothing, put around the map that factorises.

    The prior's tree has a depth of at most two, and no radial density of its own; z is ``(N, n)`` in float64; the angle
    is in radians.
    """
    factorise = NestedRadialFactorization(prior)
    scale = float(prior.scale)
    above = np.concatenate([[float(node.p)] * node.n_leaves for node in prior.tree.children])
    u = factorise(z).numpy()
    below = scipy.special.gammainc(1 / above, np.abs(u) ** above / scale)  # probability of a smaller magnitude
    normal = np.sign(u) * np.sqrt(2 * scipy.special.gammaincinv(0.5, below))
    turned = _turned(torch.from_numpy(normal), 0, 1, angle).numpy()
    back = scipy.special.gammaincinv(1 / above, scipy.special.gammainc(0.5, turned**2 / 2))
    return factorise.inv(torch.from_numpy(np.sign(turned) * (scale * back) ** (1 / above)))


def preserved(prior: LpNested, z: torch.Tensor, angle: float, step: float = 1e-5) -> tuple[float, float]:
    """Return how far :func:`mixing_map` T is from keeping the prior, and how much it mixes.

    The first is the maximum error of ``log p(T z) + log det T' = log p(z)`` over the points, in nats; the second, the
    minimum magnitude of ``d T_1 / d z_2``. Both are by central differences.
    """
    n = z.shape[1]
    ahead, behind = (mixing_map(prior, (z[:, None] + sign * step * torch.eye(n, dtype=z.dtype)).reshape(-1, n), angle)
                     for sign in (1, -1))  # fmt: skip
    jacobian = ((ahead - behind) / (2 * step)).reshape(len(z), n, n).transpose(1, 2)
    error = prior.log_prob(mixing_map(prior, z, angle)) + torch.linalg.slogdet(jacobian)[1] - prior.log_prob(z)
    return float(error.abs().max()), float(jacobian[:, 0, 1].abs().min())


@measure("exact")
def identifiable(
    evidence: Evidence, size: int, p0: float, p1: float, batches: int, points: int, tolerance: float
) -> Iterator[Finding]:
    """Test if nothing but signs and exchanges leaves the prior as it is: no rotation, and no other map that mixes."""
    cost = _rotation_cost(size, p0, p1, 1, batches)
    prior = isa_prior((size, size), p0, p1)
    generator = torch.Generator().manual_seed(0)
    z = 0.3 + 0.4 * torch.rand(points, 2 * size, dtype=torch.float64, generator=generator)
    error, mixing = preserved(prior, z, math.pi / 4)
    kept = error <= tolerance and mixing > 0.1
    parts = {
        "rotations are told apart": direction(cost),
        "so is every other continuous map that mixes latents": Outcome.NO if kept else Outcome.OPEN,
    }
    outcome, text = checks(parts)
    yield Finding(outcome, f"{text} (one that keeps the log density to {error:.0e} nats is constructed)")


@measure("exact")
def sampler_exact(evidence: Evidence, trees: Sequence[str], points: int, least: float) -> Iterator[Finding]:
    """Test if samples have the radius, the shares and the entropy that they must have."""
    p_values, deviations = [], []
    for text in trees:
        prior = LpNested(Node.parse(text))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            z = prior.sample((points,)).double()
        p0, n = float(prior.tree.p), prior.tree.n_leaves
        power = prior.norm(z) ** p0
        p_values.append(scipy.stats.kstest(power.numpy(), scipy.stats.gamma(n / p0).cdf).pvalue)
        first = prior.subspaces[0]
        inside = torch.zeros_like(z)
        inside[:, list(first)] = z[:, list(first)]
        law = scipy.stats.beta(len(first) / p0, (n - len(first)) / p0)
        p_values.append(scipy.stats.kstest((prior.norm(inside) ** p0 / power).numpy(), law.cdf).pvalue)
        surprise = -prior.log_prob(z)
        error = float(surprise.std()) / math.sqrt(points)
        deviations.append(abs(float(surprise.mean() - prior.entropy())) / error)
    smallest = float(stats.holm(p_values).min())
    outcome = together([agreement(max(deviations), 4.0), Outcome.YES if smallest >= least else Outcome.NO])
    text = f"{len(p_values)} Kolmogorov-Smirnov tests, smallest p-value {smallest:.2f} after Holm ({least:g} allowed); "
    text += f"entropy within {max(deviations):.1f} standard errors (4 allowed)"
    yield Finding(outcome, text)


@measure("exact")
def kurtosis_sides(
    evidence: Evidence, p0: float, platykurtic: float, leptokurtic: float, sizes: Sequence[int]
) -> Iterator[Finding]:
    """Test if a coordinate's excess kurtosis is negative for one exponent and positive for the other."""

    def excess(p1: float, size: int) -> float:
        prior = LpNested(Node(p0, [Node(p1, size)]))
        return float(prior.absolute_moment(4)[0] / prior.variance[0] ** 2 - 3)

    parts, texts = [], []
    for p1, sign in ((platykurtic, -1), (leptokurtic, 1)):
        values = [excess(p1, size) for size in sizes]
        parts += [Outcome.YES if sign * value > 0 else Outcome.NO for value in values]
        texts.append(f"p1 = {p1:g}: " + ", ".join(f"{value:+.3f}" for value in values))
    where = f"excess kurtosis in subspaces of {' and '.join(map(str, sizes))}"
    yield Finding(together(parts), f"{where}: {'; '.join(texts)}")


@measure("exact")
def prior_prefers(evidence: Evidence, leptokurtic: float, platykurtic: float) -> Iterator[Finding]:
    """Test if a straight code of a square fits a leptokurtic prior better on the diagonals, a platykurtic one not."""
    parts, texts = [], []
    for p, sign in ((leptokurtic, -1), (platykurtic, 1)):
        gained = float(np.subtract(*orientation.straight_cost(p, [math.pi / 4, 0.0])))
        parts.append(Outcome.YES if sign * gained > 0 else Outcome.NO)
        texts.append(f"p = {p:g} {gained:+.3f}")
    yield Finding(together(parts), f"nats gained by the axes over the diagonals: {'; '.join(texts)}")


@measure("exact")
def same_objective_at_one(evidence: Evidence, latents: int, batch: int, tolerance: float) -> Iterator[Finding]:
    """Test if beta-TCVAE and beta-VAE are one objective at beta = 1 and two elsewhere, for either prior."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    fit, mean, log_var = normal(batch), normal(batch, latents), normal(batch, latents)
    z = mean + (log_var / 2).exp() * normal(batch, latents)

    def apart(beta: float) -> float:
        found = []
        for prior in (standard_normal(latents), isa_prior((latents // 2,) * 2)):
            plain = beta_vae(fit, z, mean, log_var, prior, beta)
            split = beta_tcvae(fit, z, mean, log_var, prior, beta, dataset_size=100 * batch)
            found.append(abs(float(plain.loss - split.loss)))
        return max(found)

    parts = {
        "one at β = 1": agreement(apart(1.0), tolerance),
        "two at β = 2": Outcome.YES if apart(2.0) > tolerance else Outcome.NO,
    }
    yield Finding(*checks(parts))


@measure("exact")
def sampled_divergence_varies_less(
    evidence: Evidence, weight: float, noise_var: float, points: int
) -> Iterator[Finding]:
    """Test if the ELBO with a sampled divergence varies less than with a closed one, where q is the posterior.

    For z ~ N(0, 1) and x ~ N(weight z, noise_var): the sampled one is then log p(x), whatever z is.
    """
    rng = np.random.default_rng(0)
    var = 1 / (1 + weight**2 / noise_var)
    x = 1.0
    mean = var * weight / noise_var * x
    z = mean + math.sqrt(var) * rng.standard_normal(points)
    fit = scipy.stats.norm.logpdf(x, weight * z, math.sqrt(noise_var))
    sampled = fit + scipy.stats.norm.logpdf(z) - scipy.stats.norm.logpdf(z, mean, math.sqrt(var))
    text = f"standard deviation {sampled.std():.0e} nats in place of {fit.std():.2f}, where q is the posterior"
    yield Finding(Outcome.YES if sampled.std() < fit.std() else Outcome.NO, text)
