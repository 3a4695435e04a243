"""Numbers of the ISA prior that pages and the scorecard share: shape, dependence, rotations; tests of samples."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import stats
from scipy.special import roots_jacobi

from edition.factorise import coordinate_pdf
from isa.prior import LpNested, Node

__all__ = ["excess_kurtosis", "interaction", "rotation_cost", "sample_laws", "sample_tests", "surface"]


def surface(tree: Node, resolution: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Return points of the surface f(z) = 1 of three variables, and its unit normals there.

    Both are ``(resolution + 1, 2 * resolution + 1, 3)``, over latitude and longitude. A point is a direction divided by
    its value under f; the gradient of f is normal to the surface.
    """
    latitude = torch.linspace(0, torch.pi, resolution + 1, dtype=torch.float64)
    longitude = torch.linspace(0, 2 * torch.pi, 2 * resolution + 1, dtype=torch.float64)
    theta, phi = torch.meshgrid(latitude, longitude, indexing="ij")
    directions = torch.stack([theta.sin() * phi.cos(), theta.sin() * phi.sin(), theta.cos()], -1)
    points = (directions / tree.norm(directions)[..., None]).requires_grad_()
    (gradient,) = torch.autograd.grad(tree.norm(points).sum(), points)
    return points.detach().numpy(), torch.nn.functional.normalize(gradient, dim=-1).numpy()


def excess_kurtosis(size: int, p0: float, p1: float) -> float:
    """Return the excess kurtosis of a coordinate in a subspace of this size; 0 for a normal distribution."""
    prior = LpNested(Node(p0, [Node(p1, size)]), torch.ones((), dtype=torch.float64))
    return float(prior.absolute_moment(4)[0] / prior.variance[0] ** 2 - 3)


def interaction(size: int, p0: float, p1: float) -> float:
    """Return log p(a, b) + log p(0, 0) - log p(a, 0) - log p(0, b) in nats, for two coordinates of a subspace at 1.

    It is 0 if they are independent.
    """
    corners = torch.zeros(4, size, dtype=torch.float64)
    corners[[0, 1], 0], corners[[0, 2], 1] = 1.0, 1.0
    both, first, second, neither = LpNested(Node(p0, [Node(p1, size)])).log_prob(corners).tolist()
    return both + neither - first - second


def rotation_cost(
    size: int, p0: float, p1: float, angle: ArrayLike = math.pi / 4, *, between: bool, points: int = 40
) -> np.ndarray:
    r"""Return the divergence of the ISA prior from its copy with two coordinates turned, in nats.

    .. math:: \mathbb E \log \frac{p(z)}{p(R_\theta z)}
              = \frac{n}{p_0}\, \mathbb E \Bigl[ \frac{f(R_\theta z)^{p_0}}{f(z)^{p_0}} - 1 \Bigr]

    The coordinates are in two subspaces of this size, or in one; n counts all coordinates. The quotient depends on the
    direction alone. Gauss's rule integrates over its shares, which are Beta variables, with ``points ** 3`` nodes; the
    result is good to 0.3 %. Angles are in radians, of any shape; an angle and its negative cost the same.
    """

    if between:  # shares of each coordinate in its subspace, and of the first subspace in f
        count, betas = points, [(1 / p1, (size - 1) / p1)] * 2 + [(size / p0, size / p0)]
    else:  # shares of one coordinate in the pair, and of the pair in the subspace
        count, betas = round(points**1.5), [(1 / p1, 1 / p1), (2 / p1, (size - 2) / p1)]
    rules = [roots_jacobi(count, b - 1, a - 1) if b else (np.ones(1), np.ones(1)) for a, b in betas]
    shares = np.meshgrid(*[(1 + nodes) / 2 for nodes, _ in rules], indexing="ij")
    weight = math.prod(np.meshgrid(*[weights / weights.sum() for _, weights in rules], indexing="ij"))
    if between:
        wholes = shares[2] ** (p1 / p0), (1 - shares[2]) ** (p1 / p0)
        parts = [share * whole for share, whole in zip(shares, wholes, strict=False)]
        rests = [whole - part for part, whole in zip(parts, wholes, strict=True)]
    else:
        parts, rests = [shares[0] * shares[1], (1 - shares[0]) * shares[1]], [1 - shares[1]]
    z, w = (part ** (1 / p1) for part in parts)

    def cost(angle: float) -> float:
        c, s = math.cos(angle), math.sin(angle)
        turned = np.abs(c * z - s * w) ** p1, np.abs(s * z + c * w) ** p1
        sums = list(map(np.add, turned, rests)) if between else [sum(turned, rests[0])]
        gained = sum(one ** (p0 / p1) for one in sums) - 1
        return (1 + between) * size / p0 * float((weight * gained).sum())

    return np.vectorize(lambda angle: (cost(angle) + cost(-angle)) / 2, otypes=[float])(angle)


def sample_laws(prior: LpNested, z: torch.Tensor) -> dict[str, tuple[np.ndarray, Any]]:
    """Return quantities of samples ``(N, n)``: arrays ``(N,)``, each with its exact law, which has ``cdf`` and ``ppf``.

    The radius and the root's share depend on norms alone; the last coordinate of each subspace, with its sign, also
    depends on the direction inside. The prior has Eq. 11 and no batch shape.
    """
    p0, n, first, radius = float(prior.tree.p), prior.tree.n_leaves, prior.tree.sizes[0], prior.norm(z)
    laws = {"radius": (radius**p0 / prior.scale, stats.gamma(n / p0))}
    if first < n:
        inside = prior.norm(torch.where(torch.arange(n) < first, z, 0.0))
        laws["root's share"] = (inside / radius) ** p0, stats.beta(first / p0, (n - first) / p0)
    for leaf in (columns[-1] for columns in prior.subspaces):
        edges = float(prior.variance[leaf]) ** 0.5 * np.concatenate([[0.0], np.geomspace(1e-3, 40.0, 1000)])
        density = coordinate_pdf(prior, (edges[1:] + edges[:-1]) / 2, leaf)
        histogram = np.concatenate([density[::-1], density]), np.concatenate([-edges[:0:-1], edges])
        laws[f"coordinate {leaf + 1}"] = (z[:, leaf], stats.rv_histogram(histogram, density=True))
    return {name: (values.numpy(), law) for name, (values, law) in laws.items()}


def sample_tests(prior: LpNested, z: torch.Tensor) -> dict[str, float]:
    """Return p-values of samples ``(N, n)``: Kolmogorov and Smirnov's for :func:`sample_laws`; of signs; of scores.

    Sums of a sign, and of a product of two, are uncorrelated with variance N, so that their squares add up to a
    chi-squared variable. A score, the derivative of log p by an exponent, has mean 0, and another if that is wrong.
    """
    tests = {name: float(stats.kstest(values, law.cdf).pvalue) for name, (values, law) in sample_laws(prior, z).items()}
    signs = torch.cat([torch.ones_like(z[:, :1]), z.sign()], 1)
    sums = (signs.T @ signs / math.sqrt(len(z))).numpy()[np.triu_indices(signs.shape[1], 1)]
    tests["signs"] = float(stats.chi2(len(sums)).sf((sums**2).sum()))

    def log_prob(node: int, step: float) -> torch.Tensor:
        exponents = [float(p) + step * (i == node) for i, p in enumerate(prior.tree.exponents)]
        return LpNested(prior.tree.with_exponents(exponents), float(prior.scale)).log_prob(z)

    for node, p in enumerate(prior.tree.exponents):
        score = (log_prob(node, 1e-4) - log_prob(node, -1e-4)).numpy()
        if score.std() > 1e-9:  # a node with one child has no influence
            tests[f"score of exponent {node + 1}, {p:g}"] = float(stats.ttest_1samp(score, 0.0).pvalue)
    return tests
