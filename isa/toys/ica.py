r"""Over-complete independent component analysis with a Student-t prior: variational and exact inference (App. B.7-B.9).

The model has :math:`K` heavy-tailed sources and :math:`L` observations,

.. math:: z_{nk} \sim \text{Student-t}(v), \qquad x_n \mid z_n \sim \mathcal N(W z_n, D),

and each data point has its own Gaussian posterior, :math:`q(z_{nk}) = \mathcal N(\mu_{nk}, s_{nk}^2)`, without
amortisation. :func:`fit` maximises the free energy of Eq. 13 over every :math:`q` and over :math:`W`, :func:`fit_exact`
the exact log-likelihood, and :func:`fit_lp_nested` the free energy under an Lp-nested prior (Eq. 7).

**Arguments.** The functions share these names:

- ``x`` (N, L): data.
- ``W`` (L, K): weights; column ``k`` is the direction of source ``k``. A zero column stays zero in a fit.
- ``noise_var``, a number or (L,): noise variances, the diagonal of :math:`D`, fixed.
- ``dof``: degrees of freedom :math:`v` of the sources, which have unit scale, fixed.
- ``beta``: weight of the KL term; 1 is variational inference.
- ``mean``, ``sd`` (N, K): the posteriors.

Free energies are in nats, summed over the data.
"""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any, NamedTuple

import autograd.numpy as anp
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import stats
from scipy.optimize import minimize

from isa import LpNested
from isa.toys._exact import Array, ExactFit, arrays, fit_exact, log_likelihood

__all__ = [
    "PRUNED", "ExactFit", "Fit", "LpNestedFit", "Terms", "angle_between", "angles", "directions", "expected_log1p",
    "fit", "fit_exact", "fit_lp_nested", "free_energy", "lengths", "log_likelihood",
    "sample", "survivors", "terms", "widest_pair",
]  # fmt: skip


def directions(degrees: ArrayLike) -> Array:
    """Return two-dimensional weights (2, K) with columns of unit length at the given angles, in degrees.

    >>> directions([0.0, 90.0]).round(6) + 0.0
    array([[1., 0.],
           [0., 1.]])
    """
    angle = np.radians(np.atleast_1d(degrees))
    return np.stack([np.cos(angle), np.sin(angle)])


def sample(
    n: int, W: ArrayLike, noise_var: ArrayLike, dof: float = 3.5, seed: int | np.random.Generator = 0
) -> tuple[Array, Array]:
    """Draw ``n`` observations (n, L) and their sources (n, K); ``seed`` is an integer or a generator."""
    W, rng = np.asarray(W), np.random.default_rng(seed)
    z = rng.standard_t(dof, size=(n, W.shape[1]))
    return z @ W.T + np.sqrt(noise_var) * rng.standard_normal((n, len(W))), z


# Nodes t and weights of int_0^inf h(t) exp(-t) / t dt for h(t) = O(t) at 0: the trapezoidal rule in w after
# t = exp(w - exp(-w - 11)), uniform in log t over the scales that matter, doubly exponential below exp(-11).
_W = np.arange(-14.2, 3.9, 0.4)
_T = np.exp(_W - np.exp(-_W - 11.0))
_OMEGA = 0.4 * (1.0 + np.exp(-_W - 11.0)) * np.exp(-_T)


def expected_log1p(mean: Array, sd: Array, dof: float) -> Array:
    r"""Return ``E log(1 + z^2 / v)`` for ``z ~ N(mean, sd^2)``, the part of the cross-entropy without a closed form.

    Frullani's integral turns the logarithm into exponentials, whose Gaussian expectations are closed,

    .. math::
        \mathrm E \log(1 + z^2/v) &= \int_0^\infty \bigl(1 - g(t)\bigr) \frac{e^{-t}}{t}\,\mathrm dt, \\
        g(t) &= \sqrt{\tfrac{v}{v + 2 t s^2}} \exp\Bigl(-\frac{t \mu^2}{v + 2 t s^2}\Bigr),

    and in ``log t`` the integrand is analytic in a strip of half-width :math:`\pi/2`. The error of 46 fixed nodes is
    about ``3e-11`` for ``mean`` up to 100 and ``sd`` up to 30, where a Gauss-Hermite rule fails. Differentiable by
    ``autograd`` in ``mean`` and ``sd``, which broadcast.
    """
    mean, sd = mean + 0.0 * sd, sd + 0.0 * mean
    widened = dof + 2.0 * _T * (sd**2)[..., None]
    g = anp.sqrt(dof / widened) * anp.exp(-_T * (mean**2)[..., None] / widened)
    return anp.dot(1.0 - g, _OMEGA)


class Terms(NamedTuple):
    """Parts of the free energy, in nats, summed over the data."""

    reconstruction: float  # E_q log p(x | z)
    entropy: float  # H[q]
    log_prior: float  # E_q log p(z)

    @property
    def kl(self) -> float:
        """``KL(q || p)``."""
        return -self.entropy - self.log_prior


def terms(W: Array, mean: Array, sd: Array, x: Array, noise_var: ArrayLike, dof: float = 3.5) -> Terms:
    """Return the parts of the free energy, differentiable by ``autograd`` in ``W``, ``mean`` and ``sd``."""
    noise = np.broadcast_to(noise_var, x.shape[1:])
    square = (x - anp.dot(mean, W.T)) ** 2 + anp.dot(sd**2, (W**2).T)
    reconstruction = -0.5 * anp.sum(square / noise) - 0.5 * len(x) * np.sum(np.log(2.0 * np.pi * noise))
    entropy = anp.sum(anp.log(sd) + 0.5 * np.log(2.0 * np.pi * math.e))
    log_prior = anp.sum(stats.t.logpdf(0.0, dof) - 0.5 * (dof + 1.0) * expected_log1p(mean, sd, dof))
    return Terms(reconstruction, entropy, log_prior)


def free_energy(
    W: Array, mean: Array, sd: Array, x: Array, noise_var: ArrayLike, dof: float = 3.5, beta: float = 1.0
) -> float:
    r"""Return the modified free energy of Eq. 13, differentiable like :func:`terms`.

    .. math:: F_\beta = \sum_n \mathrm E_q \log p(x_n \mid z_n) - \beta\,\mathrm{KL}(q(z_n) \,\|\, p(z_n))
    """
    parts = terms(W, mean, sd, x, noise_var, dof)
    return parts.reconstruction - beta * parts.kl


_BLOCK = 600  # values at once, whose terms stay in a processor's cache: twice as fast as thousands


def _log1p_derivatives(mean: Array, var: Array, dof: float) -> tuple[Array, Array, Array, Array, Array]:
    """Return :func:`expected_log1p` and ``d/dm, d/dS, d2/dm dS, d2/dS2``, with ``m`` mean and ``S`` variance.

    All come from the moments ``sum_t omega g r^j`` with ``r = t / (v + 2 t S)``; ``d2/dm2`` is ``2 d/dS``.
    """
    square, moments = mean**2, np.empty((5, mean.size))
    for start in range(0, mean.size, _BLOCK):
        here = slice(start, start + _BLOCK)
        widened = dof + (2.0 * _T)[:, None] * var.ravel()[here]
        ratio = _T[:, None] / widened
        g = np.sqrt(dof / widened) * np.exp(-ratio * square.ravel()[here])
        for moment in moments:
            # einsum, because the threads of a BLAS cost more here than they save
            moment[here] = np.einsum("t,tn->n", _OMEGA, g)
            g *= ratio
    m0, m1, m2, m3, m4 = moments.reshape(5, *mean.shape)
    d_mixed, d_var_var = 4.0 * square * m3 - 6.0 * m2, 12.0 * square * m3 - 3.0 * m2 - 4.0 * square**2 * m4
    return _OMEGA.sum() - m0, 2.0 * mean * m1, m1 - 2.0 * square * m2, mean * d_mixed, d_var_var


class _Posteriors(NamedTuple):
    """Posteriors of N data points, and their loss (minus the free energy, without constants) with its derivatives."""

    q: Array  # (2K, N): K means and K log-variances
    loss: Array  # (N,)
    gradient: Array  # (2K, N)
    hessian: Array  # (2K, 2K, N)

    def take(self, index: NDArray[np.integer]) -> _Posteriors:
        return _Posteriors(*(values[..., index] for values in self))

    def put(self, index: NDArray[np.integer], other: _Posteriors) -> None:
        for ours, theirs in zip(self, other, strict=True):
            ours[..., index] = theirs


class _Model(NamedTuple):
    """Data and parameters that stay fixed during a fit."""

    x: Array  # (L, N)
    noise: Array  # (L,)
    dof: float
    beta: float

    def free_energy(self, q: _Posteriors) -> float:
        constant = 0.5 * self.beta * len(q.q) * (stats.t.logpdf(0.0, self.dof) + 0.5 * np.log(2.0 * np.pi * math.e))
        return q.loss.size * (constant - 0.5 * np.log(2.0 * np.pi * self.noise).sum()) - q.loss.sum()

    def evaluate(self, W: Array, x: Array, q: Array) -> _Posteriors:
        """Return loss and derivatives at the posteriors ``q`` (2K, N) of the data points ``x`` (L, N)."""
        mean, log_var = np.split(q, 2)
        var, residual, weighted = np.exp(log_var), x - W @ mean, W.T / self.noise
        gram, scale = weighted @ W, 0.5 * self.beta * (self.dof + 1.0)
        column, i = np.diag(gram)[:, None], np.arange(len(mean))
        value, d_mean, d_var, d_mixed, d_var_var = _log1p_derivatives(mean, var, self.dof)
        prior = scale * value - 0.5 * self.beta * log_var
        loss = 0.5 * (residual**2 / self.noise[:, None]).sum(0) + (0.5 * column * var + prior).sum(0)
        slope = var * (0.5 * column + scale * d_var)
        gradient = np.concatenate([scale * d_mean - weighted @ residual, slope - 0.5 * self.beta])
        hessian = np.zeros((len(q), *q.shape))
        hessian[: len(mean), : len(mean)] = gram[:, :, None]
        hessian[i, i] += 2.0 * scale * d_var
        hessian[i, len(mean) + i] = hessian[len(mean) + i, i] = scale * var * d_mixed
        hessian[len(mean) + i, len(mean) + i] = slope + scale * var**2 * d_var_var
        return _Posteriors(q, loss, gradient, hessian)


def _solve_damped(hessian: Array, rhs: Array) -> Array:
    """Solve ``H y = rhs`` for small symmetric matrices, (D, D, N) and (D, R, N), by elimination in place.

    Pivots enter by their magnitude, so that ``rhs = -gradient`` gives a descent direction also where ``H`` is
    indefinite, and Newton's where it is positive definite.
    """
    floor = 1e-9 * np.abs(np.einsum("iin->in", hessian)).max(0) + 1e-300
    for j, row in enumerate(hessian):
        row[j] = np.maximum(np.abs(row[j]), floor)
        factor = (hessian[j + 1 :, j] / row[j])[:, None]
        hessian[j + 1 :, j + 1 :] -= factor * row[j + 1 :]
        rhs[j + 1 :] -= factor * rhs[j]
    for j in reversed(range(len(rhs))):
        rhs[j] = (rhs[j] - np.einsum("in,irn->rn", hessian[j, j + 1 :], rhs[j + 1 :])) / hessian[j, j]
    return rhs


def _descend(model: _Model, W: Array, q: _Posteriors, tol: float = 1e-11, max_iter: int = 200) -> _Posteriors:
    """Move each data point's ``q`` to its local optimum at fixed ``W``, by damped Newton steps; no loss increases."""
    active, length = np.arange(q.loss.size), np.ones(q.loss.size)
    for _ in range(max_iter):
        here = q.take(active)
        step = _solve_damped(here.hessian, -here.gradient[:, None, :])[:, 0]
        step /= np.maximum(np.abs(step[W.shape[1] :]).max(0) / 2.0, 1.0)
        decrease = -(step * here.gradient).sum(0)
        moving = (decrease > tol * (1.0 + np.abs(here.loss))) & (length > 1e-12)
        if not moving.any():
            break
        active, length, loss = active[moving], length[moving], here.loss[moving]
        there = model.evaluate(W, model.x[:, active], here.q[:, moving] + length * step[:, moving])
        better = there.loss <= loss - 1e-4 * length * decrease[moving]
        q.put(active[better], there.take(better))
        length = np.where(better, 1.0, 0.4 * length)
    return q


def _descend_globally(model: _Model, W: Array, q: _Posteriors | None = None) -> _Posteriors:
    """Return each data point's best local optimum over several starting points and ``q`` itself.

    Heavy tails make the posterior multimodal, with one mode for each small set of sources that could explain ``x``. The
    starting points explain ``x`` by no column, by each set of at most L columns, and by all columns.
    """
    n_obs, k = W.shape
    gram, score = (W.T / model.noise) @ W, (W.T / model.noise) @ model.x
    ridge = model.beta * (model.dof + 1.0) / model.dof
    log_var = np.broadcast_to(np.log(model.beta / (np.diag(gram) + ridge))[:, None], score.shape)
    sizes = sorted({*range(min(n_obs, k) + 1), k})
    for chosen in (list(chosen) for size in sizes for chosen in combinations(range(k), size)):
        mean = np.zeros_like(score)
        mean[chosen] = np.linalg.solve(gram[np.ix_(chosen, chosen)] + ridge * np.eye(len(chosen)), score[chosen])
        other = _descend(model, W, model.evaluate(W, model.x, np.concatenate([mean, log_var])))
        q = other if q is None else q
        better = np.flatnonzero(other.loss < q.loss)
        q.put(better, other.take(better))
    return q  # type: ignore[return-value] # there is a starting point


class Fit(NamedTuple):
    """Result of :func:`fit`."""

    W: Array  # (L, K)
    free_energy: Array  # (n_iter + 1,), in nats, at the start and after each accepted step; never decreases
    path: Array  # (n_iter + 1, L, K), the weights at every entry of free_energy
    mean: Array  # (N, K)
    sd: Array  # (N, K)
    converged: bool  # True if the tolerance was met within max_iter steps
    n_iter: int


def fit(
    x: ArrayLike,
    W: ArrayLike,
    noise_var: ArrayLike,
    dof: float = 3.5,
    beta: float = 1.0,
    method: str = "newton",
    tol: float = 1e-8,
    max_iter: int = 200,
) -> Fit:
    """Maximise the free energy of Eq. 13 over every data point's ``q`` and over the weights, from ``W``.

    Damped Newton steps bring all ``q`` to their optimum, at first from every small set of columns that could explain a
    data point, and again after each change of the weights. Only improving steps are accepted, as in App. B.7.

    Parameters
    ----------
    x, W, noise_var, dof, beta
        See the module.
    method
        ``"newton"``: Newton's direction of the free energy maximised over ``q``, or a step of ``"em"`` where that does
        not improve; at the end, all starting points are tried again. ``"em"``: coordinate ascent with the optimal
        weights given ``q``, a linear regression, in steps of the order of ``beta * noise_var``.
    tol, max_iter
        Relative change of the free energy at which to stop, and maximum number of steps of the weights.
    """
    x, W, noise = arrays(x, W, noise_var)
    model = _Model(x.T.copy(), noise, dof, beta)
    if method not in ("newton", "em"):
        raise ValueError(f"method must be 'newton' or 'em', got {method!r}")
    q = _descend_globally(model, W)
    trace, path, converged = [model.free_energy(q)], [W], False
    for _ in range(max_iter):
        start, small = q.loss.sum(), tol * abs(trace[-1])
        W, q = _regress(model, W, q) if method == "em" else _newton(model, W, q, small)
        if method == "newton" and start - q.loss.sum() <= small:
            q = _descend_globally(model, W, q)
        if q.loss.sum() < start:
            trace.append(model.free_energy(q))
            path.append(W)
        if converged := bool(start - q.loss.sum() <= small):
            break
    mean, log_var = np.split(q.q.T, 2, axis=1)
    return Fit(W, np.array(trace), np.array(path), mean, np.exp(0.5 * log_var), converged, len(trace) - 1)


def _regress(model: _Model, W: Array, q: _Posteriors) -> tuple[Array, _Posteriors]:
    """Set ``W`` to its optimum given ``q`` and optimise ``q`` again; return the arguments unless that improves."""
    mean, log_var = np.split(q.q, 2)
    second = mean @ mean.T + np.diag(np.exp(log_var).sum(1))
    regression = np.linalg.solve(second, mean @ model.x.T).T
    there = _descend(model, regression, model.evaluate(regression, model.x, q.q.copy()))
    return (regression, there) if there.loss.sum() < q.loss.sum() else (W, q)


def _newton(model: _Model, W: Array, q: _Posteriors, small: float) -> tuple[Array, _Posteriors]:
    """Take a Newton step in ``W`` and optimise ``q`` again; return the arguments if it promises less than ``small``.

    The curvature is that at fixed ``q`` minus the response of ``q``, ``H_WW - sum_n H_Wq H_qq^-1 H_qW``; its negative
    eigenvalues enter by magnitude. A step is at most 0.1 of the Frobenius norm of ``W``.
    """
    k, i = W.shape[1], np.arange(W.shape[1])
    mean, var, weighted = q.q[:k], np.exp(q.q[k:]), W / model.noise[:, None]
    residual = (model.x - W @ mean) / model.noise[:, None]
    slope = weighted * var.sum(1) - residual @ mean.T
    cross = np.zeros((2 * k, *W.shape, q.loss.size))
    cross[:k] = weighted.T[:, :, None, None] * mean
    cross[i, :, i] -= residual
    cross[k + i, :, i] = weighted.T[:, :, None] * var[:, None]
    cross = cross.reshape(2 * k, W.size, -1)
    response = _solve_damped(q.hessian.copy(), cross.copy())
    second = mean @ mean.T + np.diag(var.sum(1))
    curvature = np.kron(np.diag(1.0 / model.noise), second) - np.einsum("dan,dbn->ab", cross, response, optimize=True)
    value, vector = np.linalg.eigh(0.5 * (curvature + curvature.T))
    value = np.maximum(np.abs(value), 1e-9 * np.abs(value).max())
    step = (-vector @ ((vector.T @ slope.ravel()) / value)).reshape(W.shape)
    if -(step * slope).sum() <= small:
        return W, q
    length = min(1.0, 0.1 * float(np.linalg.norm(W)) / float(np.linalg.norm(step)))
    for _ in range(8):
        move = length * step
        shift = np.clip(-np.einsum("dan,a->dn", response, move.ravel()), -1.0, 1.0)
        there = model.evaluate(W + move, model.x, q.q + shift)
        stay = model.evaluate(W + move, model.x, q.q.copy())
        worse = np.flatnonzero(there.loss > stay.loss)
        there.put(worse, stay.take(worse))
        there = _descend(model, W + move, there)
        if there.loss.sum() <= q.loss.sum() + 1e-4 * (slope * move).sum():
            return W + move, there
        length *= 0.4
    return _regress(model, W, q)


def _gaussian_nodes(k: int, draws: int) -> Array:
    """Return points (draws, k), in pairs ``e, -e``, that stand for ``N(0, I_k)``; their second moments are exact."""
    half = stats.norm.ppf(stats.qmc.Sobol(k, scramble=True, rng=np.random.default_rng(0)).random(draws // 2))
    points = np.concatenate([half, -half])
    return points @ np.linalg.inv(np.linalg.cholesky(points.T @ points / len(points))).T


class LpNestedFit(NamedTuple):
    """Result of :func:`fit_lp_nested`."""

    W: Array  # (L, K)
    free_energy: Array  # (n_iter + 1,), in nats, at the start and after each accepted step
    mean: Array  # (N, K)
    sd: Array  # (N, K)
    converged: bool
    n_iter: int


def fit_lp_nested(
    x: ArrayLike,
    W: ArrayLike,
    noise_var: ArrayLike,
    prior: LpNested,
    beta: float = 1.0,
    draws: int = 256,
    tol: float = 1e-8,
) -> LpNestedFit:
    """Maximise Eq. 13 over the weights and each data point's ``q``, with an Lp-nested ``prior`` over the K sources.

    The cross-entropy does not separate over sources; it is an average over ``draws`` fixed quasi-random points, a power
    of two, the same for every data point, so that the objective is deterministic. Weights, means and log standard
    deviations ascend together by L-BFGS. Other arguments are those of :func:`fit`.
    """
    x, W, noise = arrays(x, W, noise_var)
    n, k = len(x), W.shape[1]
    data, variances, nodes = (torch.from_numpy(part.copy()) for part in (x, noise, _gaussian_nodes(k, draws)))

    def unpack(flat: Any) -> tuple[Any, ...]:
        return flat[: W.size].reshape(W.shape), *flat[W.size :].reshape(2, n, k)

    def loss(flat: Array) -> tuple[float, Array]:
        point = torch.from_numpy(flat).requires_grad_()
        weights, mean, log_sd = unpack(point)
        sd = log_sd.exp()
        square = (data - mean @ weights.T) ** 2 + sd**2 @ (weights**2).T
        reconstruction = -0.5 * (square / variances + torch.log(2 * torch.pi * variances)).sum()
        entropy = log_sd.sum() + 0.5 * n * k * np.log(2 * np.pi * math.e)
        log_prior = prior.log_prob(mean[:, None] + sd[:, None] * nodes).sum() / draws
        value = -(reconstruction + beta * (entropy + log_prior)) / n
        return value.item(), torch.autograd.grad(value, point)[0].numpy()

    gram = (W.T / noise) @ W + beta * np.diag(1.0 / prior.variance.double().numpy(force=True))
    mean = np.linalg.solve(gram, (W.T / noise) @ x.T).T
    start = np.concatenate([W.ravel(), mean.ravel(), np.tile(-0.5 * np.log(np.diag(gram) / beta), n)])
    trace = [loss(start)[0]]
    options = {"maxiter": 1000, "maxfun": 2000, "ftol": tol, "gtol": 1e-9, "maxcor": 20}
    result = minimize(
        loss, start, jac=True, method="L-BFGS-B", options=options,
        callback=lambda intermediate_result: trace.append(intermediate_result.fun),
    )  # fmt: skip
    weights, mean, log_sd = unpack(result.x)
    return LpNestedFit(weights, -n * np.array(trace), mean, np.exp(log_sd), result.success, result.nit)


PRUNED = 0.1
"""Fraction of the longest column below which a column counts as pruned."""


def lengths(W: Array) -> Array:
    """Return the Euclidean lengths of the columns of ``W``, (K,)."""
    return np.sqrt((np.asarray(W, dtype=float) ** 2).sum(0))


def survivors(W: Array, threshold: float = PRUNED, reference: Array | None = None) -> Array:
    """Return a mask (K,) of columns longer than ``threshold`` times the longest of ``reference``, by default ``W``.

    With the true weights as reference, no column survives where all have collapsed.
    """
    return lengths(W) > threshold * lengths(W if reference is None else reference).max()


def angles(W: Array) -> Array:
    """Return the directions of the columns of a two-row ``W`` as axes, in degrees from 0 to below 180, (K,)."""
    return np.degrees(np.arctan2(W[1], W[0])) % 180.0


def angle_between(a: float | Array, b: float | Array) -> float | Array:
    """Return the angle between two axes, given by their directions, in degrees from 0 to 90."""
    gap = np.abs(np.asarray(a) - np.asarray(b)) % 180.0
    return np.minimum(gap, 180.0 - gap)


def widest_pair(W: Array) -> float:
    """Return the angle between the two longest columns of a two-row ``W``, in degrees: 90 is orthogonal."""
    first, second = np.argsort(-lengths(W), kind="stable")[:2]
    return float(angle_between(angles(W)[first], angles(W)[second]))
