"""Maximum-likelihood fits of Lp-nested distributions."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from isa.prior.lpnested import LpNested
from isa.prior.tree import Node, log_magnitude

__all__ = ["BOUNDS", "Fit", "fit"]

BOUNDS = 0.05, 500.0
"""Smallest and largest exponent of a fit."""


@dataclass(frozen=True)
class Fit:
    """A maximum-likelihood fit: the distribution, and the uncertainty of its parameters."""

    distribution: LpNested
    log_likelihood: float
    """Total over the samples, in nats."""
    n_samples: int
    exponent_errors: tuple[float, ...]
    """Standard errors from the observed information, in the order of :meth:`isa.Node.nodes`; 0 for an exponent without
    influence, NaN for one on a bound.
    """
    scale_error: float
    at_bound: tuple[bool, ...]
    """For each exponent, whether it stopped at one of ``BOUNDS``: the likelihood increases beyond it."""
    converged: bool
    """False if the optimiser stopped before the gradient vanished."""


def fit(tree: Node, z: Tensor | np.ndarray) -> Fit:
    """Return the maximum-likelihood exponents and scale for finite samples z ``(N, n)``.

    The tree's exponents, which are numbers, are the start. L-BFGS finds their logarithms in float64; the scale has a
    closed form given them. The unit of z affects the scale only. Below the root, a node with one child has no influence
    and keeps its exponent.
    """
    if not isinstance(tree, Node) or any(isinstance(p, Tensor) for p in tree.exponents):
        raise TypeError(f"tree = {tree!r}; it must be a Node whose exponents are numbers, from which the fit starts")
    z = z.detach() if isinstance(z, Tensor) else torch.from_numpy(np.array(z))
    free = torch.tensor([i for i, node in enumerate(tree.nodes()) if i == 0 or len(node.sizes) > 1])
    if z.is_complex() or z.ndim != 2 or z.shape[1] != tree.n_leaves or len(z) <= len(free):
        least = f"({len(free) + 1} or more, {tree.n_leaves})"
        raise ValueError(f"z must be a real array of shape {least}, got {z.dtype} of shape {tuple(z.shape)}")
    if not z.isfinite().all() or not z.any():
        raise ValueError("z must be finite, and not 0 throughout")
    (count, n), z = z.shape, z.double().cpu()
    unit = z.square().mean().sqrt().item()
    if not 0 < unit < math.inf:
        unit = z.abs().max().item()
    log_z = log_magnitude(z / unit)
    start = torch.tensor(tree.exponents, dtype=torch.float64)

    def mean_energy(p: Tensor) -> Tensor:
        return (p[0] * tree.log_values(log_z, p)).exp().sum(-1).mean()

    def loss(log_free: Tensor, log_scale: Tensor | None = None) -> Tensor:
        """Return the mean of -log p, at the best scale by default."""
        p = start.index_copy(0, free, log_free.exp())
        energy = mean_energy(p)
        log_scale = (p[0] * energy / n).log() if log_scale is None else log_scale
        log_normaliser = tree.log_surface(p=p) + torch.lgamma(n / p[0]) + n / p[0] * log_scale - p[0].log()
        return energy * (-log_scale).exp() + log_normaliser

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(values, requires_grad=True)
        value = loss(x)
        return value.item(), torch.autograd.grad(value, x)[0].numpy()

    low, high = map(math.log, BOUNDS)
    found = scipy.optimize.minimize(
        objective,
        start[free].log().clamp(low, high).numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(low, high)] * len(free),
        options={"ftol": 1e-15, "gtol": 1e-8, "maxiter": 500},
    )
    x = torch.tensor(found.x)
    p = start.index_copy(0, free, x.exp())
    log_scale = (p[0] * mean_energy(p) / n).log()
    bound = (x <= low) | (x >= high)
    inside = (~bound).nonzero()[:, 0]

    def total(y: Tensor) -> Tensor:
        return count * loss(x.index_copy(0, inside, y[:-1]), y[-1])

    information = torch.autograd.functional.hessian(total, torch.cat([x[inside], log_scale[None]]))
    covariance = torch.linalg.pinv(information, hermitian=True)
    deviations = covariance.diagonal().clamp(min=0).sqrt()
    errors = torch.zeros_like(p)
    errors[free] = torch.where(bound, math.nan, torch.zeros_like(x)).index_copy(0, inside, deviations[:-1]) * x.exp()
    # In the unit of z, log s gains p0 log(unit).
    slope = torch.zeros(len(inside) + 1, dtype=torch.float64)
    slope[-1] = 1.0
    if not bound[0]:
        slope[0] = p[0] * math.log(unit)
    scale = (log_scale + p[0] * math.log(unit)).exp().item()
    at_bound = torch.zeros(len(p), dtype=torch.bool).index_copy(0, free, bound)
    return Fit(
        distribution=LpNested(tree.with_exponents(p.tolist()), scale),
        log_likelihood=-count * (found.fun + n * math.log(unit)),
        n_samples=count,
        exponent_errors=tuple(errors.tolist()),
        scale_error=scale * (slope @ covariance @ slope).clamp(min=0).sqrt().item(),
        at_bound=tuple(at_bound.tolist()),
        converged=bool(np.abs(found.jac[~bound.numpy()]).max(initial=0) < 1e-5),
    )
