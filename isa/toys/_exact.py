"""Exact likelihood of ICA with Student-t sources, and its maximum; see :mod:`isa.toys.ica`."""

from __future__ import annotations

from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

Array = NDArray[np.floating]


def arrays(x: ArrayLike, W: ArrayLike, noise_var: ArrayLike) -> tuple[Array, Array, Array]:
    """Return data (N, L), weights (L, K) and noise variances (L,) as arrays."""
    x, W, noise_var = (np.asarray(a, dtype=float) for a in (x, W, noise_var))
    return x, W, np.broadcast_to(noise_var, len(W))


def _reach(V: Array, y: Array) -> Array:
    """Return the largest value of each source (K,) that explains a data point, alone or with other sources.

    Posterior means of the sources are convex combinations of the regressions on every set of at most L columns.
    """
    reach = np.zeros(V.shape[1])
    sizes = range(1, min(V.shape) + 1)
    for chosen in (list(chosen) for size in sizes for chosen in combinations(range(V.shape[1]), size)):
        z = np.abs(y @ np.linalg.pinv(V[:, chosen], rcond=1e-6).T)
        reach[chosen] = np.maximum(reach[chosen], z.max(0))
    return reach


def _precision_nodes(dof: float, reach: float, power: float) -> tuple[Array, Array]:
    r"""Return variances and log-weights that make a Student-t a finite mixture of Gaussians, for ``|z| <= reach``.

    ``t_v`` is the mixture over precisions :math:`\lambda \sim \mathrm{Gamma}(v/2, v/2)`; the trapezoidal rule in
    :math:`u = \log\lambda` ends where the integrand is below 10^-6.7 of its peak at every such ``z``.
    """
    # The width of the Gamma in u decreases as sqrt(2 / v), and the spacing with it.
    step, margin = 0.5 * min(1.0, 2.0 / np.sqrt(dof + 1.0)), 6.7 * np.log(10.0)
    low = -2.0 * np.log1p(reach) - 2.0 * margin / dof - 1.0
    high = np.log1p(1.0 / dof) + np.log(2.0 + 4.0 * margin / (dof + 1.0))
    # Multiples of the step, so that the nodes do not move with W.
    u = step * np.arange(np.floor(low / step), np.ceil(high / step) + 1.0)
    log_weight = 0.5 * dof * (u - np.expm1(u))
    integrands = [log_weight, log_weight + 0.5 * u, log_weight + 0.5 * (u - np.exp(u) * reach**2)]
    near = np.any([log_value > log_value.max() - margin for log_value in integrands], axis=0)
    # A data point of squared length ``power`` cannot raise a weight by more than exp(power / 2).
    first, last = np.flatnonzero(near & ((u > 0) | (log_weight > -margin - 0.5 * power)))[[0, -1]]
    u, log_weight = u[first : last + 1], log_weight[first : last + 1]
    return np.exp(-u), log_weight - logsumexp(log_weight)


def _likelihoods(x: Array, W: Array, noise: Array, dof: float) -> tuple[Array, Array]:
    """Return each data point's log-likelihood, and the gradient of their sum in ``W`` by Fisher's identity."""
    sd, n_obs = np.sqrt(noise), len(W)
    V, y = W / sd[:, None], x / sd  # in units of the noise
    axes = [_precision_nodes(dof, reach, (y**2).sum(1).max()) for reach in _reach(V, y)]
    variance = np.stack(np.meshgrid(*(v for v, _ in axes), indexing="ij"), -1).reshape(-1, len(axes))  # (J, K)
    log_weight = np.add.reduce(np.meshgrid(*(w for _, w in axes), indexing="ij")).ravel()
    value, vector = np.linalg.eigh(np.einsum("ik,jk,lk->jil", V, variance, V, optimize=True))
    value = 1.0 + np.maximum(value, 0.0)
    precision = np.einsum("jia,ja,jla->jil", vector, 1.0 / value, vector)
    # The log-density of a data point at a node is linear in the products of its entries.
    offset = log_weight - 0.5 * (np.log(value).sum(1) + np.log(2.0 * np.pi * noise).sum())
    nodes = np.vstack([-0.5 * precision.reshape(-1, n_obs**2).T, offset])
    features = np.column_stack([(y[:, :, None] * y[:, None, :]).reshape(-1, n_obs**2), np.ones(len(y))])
    total, moments = [], np.zeros_like(nodes)
    block = max(1, 200_000 // len(offset))  # data points at a time, so that their densities stay in the cache
    for part in (features[begin : begin + block] for begin in range(0, len(y), block)):
        density = part @ nodes
        top = density.max(1, keepdims=True)
        density = np.exp(density - top)
        mass = density.sum(1, keepdims=True)
        total.append(top + np.log(mass))
        moments += (part / mass).T @ density
    second, share = moments[:-1].T.reshape(precision.shape), moments[-1][:, None, None]
    inner = precision @ second @ precision - share * precision
    return np.concatenate(total)[:, 0], np.einsum("jil,lk,jk->ik", inner, V, variance, optimize=True) / sd[:, None]


def log_likelihood(x: ArrayLike, W: ArrayLike, noise_var: ArrayLike, dof: float = 3.5) -> Array:
    r"""Return the log-likelihood ``log p(x_n)`` of each data point (N,), with the sources integrated out.

    A Student-t source is a Gaussian of random precision, so that

    .. math::

        p(x) = \int \prod_k \mathrm{Gamma}(\lambda_k; \tfrac v2, \tfrac v2)\;
        \mathcal N\bigl(x;\, 0,\, W \Lambda^{-1} W^\top + D\bigr)\,\mathrm d\lambda ,

    a smooth positive integral over :math:`\log\lambda_1, \dots, \log\lambda_K`, by the trapezoidal rule. The error is
    below ``1e-6`` for ``dof`` from 0.5 to 1e6. The cost grows as a power of ``K``: meant for up to three sources.
    """
    x, W, noise = arrays(x, W, noise_var)
    return _likelihoods(x, W, noise, dof)[0]


class ExactFit(NamedTuple):
    """Result of :func:`fit_exact`."""

    W: Array  # (L, K)
    log_likelihood: Array  # (n_iter + 1,), in nats, at the start and after each step
    converged: bool
    n_iter: int


def fit_exact(
    x: ArrayLike, W: ArrayLike, noise_var: ArrayLike, dof: float = 3.5, tol: float = 1e-8, max_iter: int = 200
) -> ExactFit:
    """Maximise the sum of :func:`log_likelihood` over the weights, from ``W``, by BFGS."""
    x, W, noise = arrays(x, W, noise_var)

    def loss(flat: Array) -> tuple[float, Array]:
        value, slope = _likelihoods(x, flat.reshape(W.shape), noise, dof)
        return -value.mean(), -slope.ravel() / len(x)

    trace = [loss(W.ravel())[0]]
    options = {"maxiter": max_iter, "ftol": tol, "gtol": 1e-6, "maxcor": W.size}
    result = minimize(
        loss, W.ravel(), jac=True, method="L-BFGS-B", options=options,
        callback=lambda intermediate_result: trace.append(intermediate_result.fun),
    )  # fmt: skip
    return ExactFit(result.x.reshape(W.shape), -len(x) * np.array(trace), result.success, result.nit)
