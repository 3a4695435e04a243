"""Maximum-likelihood fits of Lp-nested distributions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from isa.prior.tree import Node, log_magnitude

if TYPE_CHECKING:
    from isa.prior.lpnested import LpNested

__all__ = ["BOUNDS", "Fit", "fit"]

BOUNDS = 0.05, 500.0
"""Smallest and largest exponent of a fit."""


@dataclass(frozen=True)
class Fit:
    """A maximum-likelihood fit: the distribution, and the uncertainty of its parameters."""

    distribution: LpNested
    log_likelihood: float
    """Total over the samples, in nats."""
    exponent_errors: tuple[float, ...]
    """Standard errors from the observed information, in the order of :meth:`isa.Node.nodes`.

    An error is 0 for an exponent without influence, and NaN for one on a bound, beyond which the likelihood increases.
    """
    scale_error: float
    converged: bool
    """False if the optimiser stopped before the gradient vanished."""


def fit(family: type[LpNested], tree: Node, z: Tensor | np.ndarray) -> Fit:
    """Return the member of a family of distributions with the largest likelihood of samples z ``(N, n)``.

    The tree's exponents, which are numbers, are the start. L-BFGS finds their logarithms in float64; the scale has a
    closed form given them. The unit of z affects the scale only. Below the root, a node with one child has no influence
    and keeps its exponent.
    """
    z = (z.detach() if isinstance(z, Tensor) else torch.tensor(z)).double().cpu()
    count, n = z.shape
    free = torch.tensor([i for i, node in enumerate(tree.nodes()) if i == 0 or len(node.sizes) > 1])
    log_unit = z.abs().max().log()  # exponents are fitted to coordinates of at most 1, whose powers do not overflow
    log_z = log_magnitude(z / log_unit.exp())
    start = torch.tensor(tree.exponents, dtype=torch.float64)

    def exponents(log_free: Tensor) -> Tensor:
        return start.index_copy(0, free, log_free.exp())

    def best_log_scale(p: Tensor) -> Tensor:
        return torch.logsumexp(p[0] * tree.log_norm(log_z, p), 0) - (n * count / p[0]).log()

    def objective(values: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the mean of -log p at the best scale, where it is the entropy, and its gradient."""
        x = torch.tensor(values, requires_grad=True)
        p = exponents(x)
        scale = best_log_scale(p).exp()
        value = family(tree.with_exponents(p.unbind()), scale, validate_args=False).entropy()
        return value.item(), torch.autograd.grad(value, x)[0].numpy()

    def loss(x: Tensor) -> Tensor:
        """Return the total of -log p for logarithms of the free exponents and of the scale, in the unit of z."""
        p = exponents(x[:-1])
        return -family(tree.with_exponents(p.unbind()), x[-1].exp(), validate_args=False).log_prob(z).sum()

    low, high = map(math.log, BOUNDS)
    optimum = scipy.optimize.minimize(
        objective,
        start[free].log().clamp(low, high).numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(low, high)] * len(free),
        options={"ftol": 1e-15, "gtol": 1e-8, "maxiter": 500},
    )
    p = exponents(torch.tensor(optimum.x))
    log_scale = best_log_scale(p) + p[0] * log_unit
    x = torch.tensor([*optimum.x, log_scale])
    inner = torch.tensor([*(low < optimum.x) & (optimum.x < high), True])
    errors = torch.full_like(x, math.nan)
    information = torch.autograd.functional.hessian(loss, x)[inner][:, inner]
    errors[inner] = torch.linalg.pinv(information, hermitian=True).diagonal().clamp(min=0).sqrt() * x[inner].exp()
    return Fit(
        distribution=family(tree.with_exponents(p.tolist()), float(log_scale.exp())),
        log_likelihood=-float(loss(x)),
        exponent_errors=tuple(torch.zeros_like(p).index_copy(0, free, errors[:-1]).tolist()),
        scale_error=float(errors[-1]),
        converged=bool(np.abs(optimum.jac[inner[:-1].numpy()]).max(initial=0) < 1e-5),
    )
