r"""Over-complete independent component analysis with a Student-t prior: variational inference beside exact likelihood.

The model of appendix B.7 has :math:`K` heavy-tailed sources behind :math:`L` observations,

.. math::

    z_{nk} \sim \text{Student-t}(v), \qquad x_n \sim \mathcal N(W z_n, D), \qquad
    D = \mathrm{diag}(\sigma_1^2, \dots, \sigma_L^2),

and each data point has a Gaussian posterior of its own, :math:`q(z_{nk}) = \mathcal N(\mu_{nk}, s_{nk}^2)`, without
amortisation.  :func:`fit` maximises the free energy of Eq. 13 over every :math:`q` and over :math:`W`;
:func:`fit_exact` maximises the exact log-likelihood of the same model; :func:`fit_lp_nested` replaces the factorised
prior by an Lp-nested one (Eq. 7).  ``python -m isa.toys.ica study SPEC`` runs the studies over many data sets.

Logarithms are natural; log-likelihoods and free energies are sums over the data, in nats.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from itertools import combinations, product
from pathlib import Path

import autograd.numpy as anp
import numpy as np
import yaml
from autograd import grad
from scipy.optimize import minimize
from scipy.special import gammaln
from scipy.stats import norm, qmc

__all__ = [
    "PRUNED",
    "ExactFit",
    "Fit",
    "LpNestedFit",
    "LpNestedPrior",
    "Study",
    "Terms",
    "angle_between",
    "angles",
    "directions",
    "expected_log1p",
    "explaining_away",
    "fit",
    "fit_exact",
    "fit_lp_nested",
    "free_energy",
    "lengths",
    "load_record",
    "log_likelihood",
    "lp_prior",
    "record_weights",
    "run_study",
    "sample",
    "survivors",
    "terms",
    "widest_pair",
]

Array = np.ndarray

_STEP, _SHIFT = 0.4, 11.0  # spacing of the quadrature, and -log of the scale below which its nodes thin out


def _frullani_nodes(step: float = _STEP, shift: float = _SHIFT) -> tuple[Array, Array]:
    """Nodes ``t`` and weights of ``int_0^inf h(t) exp(-t) / t dt`` for ``h(t) = O(t)`` at 0.

    The trapezoidal rule in ``w`` after ``t = exp(w - exp(-w - shift))``: uniform in ``log t`` over the scales that
    matter, doubly exponential below them.
    """
    w = np.arange(-shift - 3.2, 3.5 + step, step)
    squeeze = np.exp(-w - shift)
    t = np.exp(w - squeeze)
    return t, step * (1.0 + squeeze) * np.exp(-t)


_T, _OMEGA = _frullani_nodes()


# ---------------------------------------------------------------------------------------------------------------------
# Input
# ---------------------------------------------------------------------------------------------------------------------


def _positive(name: str, value: float) -> float:
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)


def _whole(name: str, value: int, least: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return int(value)


def _weights(W: Array) -> Array:
    W = np.array(W, dtype=float)
    if W.ndim != 2 or W.size == 0:
        raise ValueError(f"W must be a matrix of shape (L, K), got shape {W.shape}")
    if not np.isfinite(W).all():
        raise ValueError("W must be finite, got NaN or infinity in it")
    return W


def _noise(noise_var: float | Array, n_obs: int) -> Array:
    noise = np.array(noise_var, dtype=float)
    if noise.shape not in ((), (n_obs,)):
        raise ValueError(
            f"noise_var must be a number or have one entry for each of the {n_obs} rows of W, got shape {noise.shape}"
        )
    if not (np.isfinite(noise).all() and (noise > 0).all()):
        raise ValueError(
            f"noise_var must be positive and finite, got {noise.tolist()}: without noise the posterior of z is singular"
        )
    return np.broadcast_to(noise, (n_obs,)).copy()


def _data(x: Array, n_obs: int) -> Array:
    x = np.array(x, dtype=float)
    if x.ndim != 2 or x.shape[0] == 0 or x.shape[1] != n_obs:
        raise ValueError(
            f"x must have shape (N, {n_obs}) with N at least 1, as W has {n_obs} rows, got shape {x.shape}"
        )
    if not np.isfinite(x).all():
        raise ValueError("x must be finite, got NaN or infinity in it")
    return x


def directions(degrees: Array | list[float], length: float = 1.0) -> Array:
    """Weights of a two-dimensional model with columns of one length at the given angles, in degrees; shape ``(2, K)``.

    >>> directions([0.0, 90.0]).round(6) + 0.0
    array([[1., 0.],
           [0., 1.]])
    """
    angle = np.radians(np.atleast_1d(np.asarray(degrees, dtype=float)))
    return _positive("length", length) * np.stack([np.cos(angle), np.sin(angle)])


def sample(
    n: int, W: Array, noise_var: float | Array, dof: float = 3.5, seed: int | np.random.Generator = 0
) -> tuple[Array, Array]:
    """Draw data from the model of appendix B.7.

    Parameters
    ----------
    n
        Number of data points.
    W
        Weights, shape ``(L, K)``: column ``k`` is the direction of source ``k``.
    noise_var
        Noise variances, the diagonal of ``D``: a number, or one for each observation.
    dof
        Degrees of freedom ``v`` of the Student-t sources (unit scale).
    seed
        Seed, or a generator to draw from.

    Returns
    -------
    x, z
        Observations, shape ``(n, L)``, and sources, shape ``(n, K)``.

    Raises
    ------
    ValueError, TypeError
        If ``n`` is not a positive integer, or ``noise_var`` or ``dof`` is not positive.
    """
    n, W, dof = _whole("n", n, 1), _weights(W), _positive("dof", dof)
    noise = _noise(noise_var, len(W))
    rng = np.random.default_rng(seed)
    z = rng.standard_t(dof, size=(n, W.shape[1]))
    return z @ W.T + np.sqrt(noise) * rng.standard_normal((n, len(W))), z


# ---------------------------------------------------------------------------------------------------------------------
# The free energy, Eq. 13
# ---------------------------------------------------------------------------------------------------------------------


def expected_log1p(mean: Array, sd: Array, dof: float) -> Array:
    r"""``E log(1 + z^2 / v)`` for ``z ~ N(mean, sd^2)``: all of the Student-t cross-entropy that has no closed form.

    Frullani's integral turns the logarithm into exponentials, whose Gaussian expectations are closed,

    .. math::

        \mathrm E \log(1 + z^2/v) = \int_0^\infty \bigl(1 - g(t)\bigr) \frac{e^{-t}}{t}\,\mathrm dt,

        g(t) = \mathrm E\, e^{-t z^2 / v}
        = \sqrt{\tfrac{v}{v + 2 t s^2}} \exp\Bigl(-\frac{t \mu^2}{v + 2 t s^2}\Bigr),

    and in ``log t`` the integrand is analytic in a strip of half-width :math:`\pi/2`, whatever :math:`\mu` and
    :math:`s` are: one fixed set of 46 nodes is exact to about ``3e-11`` for ``mean`` up to 100 and ``sd`` from 0 to 30,
    where a Gauss-Hermite rule fails once ``sd`` exceeds :math:`\sqrt v`.

    Written for ``autograd``: differentiable in ``mean`` and ``sd``, which broadcast.
    """
    mean, sd = mean + 0.0 * sd, sd + 0.0 * mean
    widened = dof + 2.0 * _T * (sd**2)[..., None]
    g = anp.sqrt(dof / widened) * anp.exp(-_T * (mean**2)[..., None] / widened)
    return anp.dot(1.0 - g, _OMEGA)


def _log_normaliser(dof: float) -> float:
    """``log t_v(0)``."""
    return gammaln((dof + 1.0) / 2.0) - gammaln(dof / 2.0) - 0.5 * np.log(np.pi * dof)


@dataclass(frozen=True)
class Terms:
    r"""The free energy's parts, each summed over the data, in nats.

    ``reconstruction`` is :math:`\mathrm E_q \log p(x \mid z)`, ``entropy`` is :math:`\mathrm H[q]`, ``log_prior``
    is :math:`\mathrm E_q \log p(z)`; ``kl``, their sum with both signs turned, is :math:`\mathrm{KL}(q \,\|\,
    p)`.
    """

    reconstruction: float
    entropy: float
    log_prior: float

    @property
    def kl(self) -> float:
        return -self.entropy - self.log_prior


def _reconstruction(W: Array, mean: Array, sd: Array, x: Array, noise: Array) -> float:
    residual = x - anp.dot(mean, W.T)
    spread = anp.dot(sd**2, (W**2).T)
    return -0.5 * anp.sum((residual**2 + spread) / noise) - 0.5 * len(x) * np.sum(np.log(2.0 * np.pi * noise))


def _entropy(sd: Array) -> float:
    return anp.sum(anp.log(sd) + 0.5 * np.log(2.0 * np.pi * np.e))


def _student_log_prior(mean: Array, sd: Array, dof: float) -> float:
    return anp.sum(_log_normaliser(dof) - 0.5 * (dof + 1.0) * expected_log1p(mean, sd, dof))


def terms(W: Array, mean: Array, sd: Array, x: Array, noise_var: float | Array, dof: float = 3.5) -> Terms:
    """The three parts of the free energy at given weights and posteriors; parameters as for :func:`free_energy`."""
    W = _weights(W)
    x, noise = _data(x, len(W)), _noise(noise_var, len(W))
    dof = _positive("dof", dof)
    return Terms(
        float(_reconstruction(W, mean, sd, x, noise)), float(_entropy(sd)), float(_student_log_prior(mean, sd, dof))
    )


def free_energy(
    W: Array,
    mean: Array,
    sd: Array,
    x: Array,
    noise_var: float | Array,
    dof: float = 3.5,
    beta: float = 1.0,
) -> float:
    r"""Modified free energy of Eq. 13.

    .. math::

        F_\beta = \sum_n \mathrm E_q \log p(x_n \mid z_n) - \beta\,\mathrm{KL}(q(z_n) \,\|\, p(z_n)) .

    The reconstruction and the entropy are closed, the cross-entropy with the prior is :func:`expected_log1p`.

    Parameters
    ----------
    W
        Weights, shape ``(L, K)``.
    mean, sd
        Means and standard deviations of ``q``, shape ``(N, K)``.
    x
        Data, shape ``(N, L)``.
    noise_var
        Noise variances: a number or shape ``(L,)``.
    dof
        Degrees of freedom of the prior.
    beta
        Weight of the KL divergence.

    Returns
    -------
    float
        The free energy in nats, summed over the data; differentiable by ``autograd`` in ``W``, ``mean`` and ``sd``.
    """
    noise = np.broadcast_to(np.asarray(noise_var, dtype=float), x.shape[1:])
    return _reconstruction(W, mean, sd, x, noise) + beta * (_entropy(sd) + _student_log_prior(mean, sd, dof))


# ---------------------------------------------------------------------------------------------------------------------
# Inference: damped Newton on every data point's posterior at once
# ---------------------------------------------------------------------------------------------------------------------


def _log1p_derivatives(mean: Array, var: Array, dof: float) -> tuple[Array, Array, Array, Array, Array]:
    """Value of :func:`expected_log1p` and its derivatives ``d/dm, d/dS, d2/dm dS, d2/dS2``, ``m`` mean, ``S`` variance.

    All come from the moments ``sum_t omega g q^j`` with ``q = t / (v + 2 t S)``; ``d2/dm2`` is ``2 d/dS``.
    """
    shape = mean.shape
    square, var = (mean**2).reshape(-1), var.reshape(-1)
    widened = dof + (2.0 * _T)[:, None] * var
    q = _T[:, None] / widened
    g = np.sqrt(dof / widened)
    g *= np.exp(-q * square)
    moment = [np.einsum("t,tn->n", _OMEGA, g)]  # einsum, since threads of a BLAS cost more here than they give
    for _ in range(4):
        g *= q
        moment.append(np.einsum("t,tn->n", _OMEGA, g))
    m0, m1, m2, m3, m4 = (m.reshape(shape) for m in moment)
    square = square.reshape(shape)
    return (
        _OMEGA.sum() - m0,
        2.0 * mean * m1,
        m1 - 2.0 * square * m2,
        mean * (4.0 * square * m3 - 6.0 * m2),
        12.0 * square * m3 - 3.0 * m2 - 4.0 * square**2 * m4,
    )


@dataclass
class _Posterior:
    """Posteriors of ``N`` data points and the loss (minus the free energy, constants left out) with its derivatives.

    Arrays are ``(K, N)``; coordinates of a data point are its ``K`` means and ``K`` log-variances, stacked.
    """

    mean: Array
    log_var: Array
    loss: Array  # (N,)
    gradient: Array  # (2K, N)
    curvature: tuple[Array, Array, Array]  # of the prior and entropy: mean-mean, mean-logvar, and all of logvar-logvar

    def __getitem__(self, index: Array) -> _Posterior:
        return _Posterior(
            self.mean[:, index],
            self.log_var[:, index],
            self.loss[index],
            self.gradient[:, index],
            tuple(c[:, index] for c in self.curvature),
        )

    def put(self, index: Array, other: _Posterior) -> None:
        self.mean[:, index], self.log_var[:, index] = other.mean, other.log_var
        self.loss[index], self.gradient[:, index] = other.loss, other.gradient
        for mine, theirs in zip(self.curvature, other.curvature, strict=True):
            mine[:, index] = theirs


@dataclass(frozen=True)
class _Model:
    """Everything that stays fixed during a fit."""

    x: Array  # (L, N)
    noise: Array  # (L,)
    dof: float
    beta: float

    @property
    def constant(self) -> float:
        """What is left out of the losses: the free energy is minus the summed loss plus this."""
        return -0.5 * self.x.shape[1] * np.log(2.0 * np.pi * self.noise).sum()

    def evaluate(self, W: Array, x: Array, mean: Array, log_var: Array) -> _Posterior:
        """Loss and derivatives at given posteriors of the data points ``x``, shape ``(L, N)``."""
        precision = 1.0 / self.noise[:, None]
        column = (precision * W**2).sum(0)[:, None]
        var = np.exp(log_var)
        residual = x - W @ mean
        scale = 0.5 * self.beta * (self.dof + 1.0)
        value, d_mean, d_var, d_mixed, d_var_var = _log1p_derivatives(mean, var, self.dof)
        constant = _log_normaliser(self.dof) + 0.5 * np.log(2.0 * np.pi * np.e)
        prior = scale * value - self.beta * (0.5 * log_var + constant)
        loss = 0.5 * (precision * residual**2).sum(0) + (0.5 * column * var + prior).sum(0)
        slope = var * (0.5 * column + scale * d_var)
        gradient = np.concatenate([scale * d_mean - W.T @ (precision * residual), slope - 0.5 * self.beta])
        return _Posterior(
            mean,
            log_var,
            loss,
            gradient,
            (2.0 * scale * d_var, scale * var * d_mixed, slope + scale * var**2 * d_var_var),
        )

    def hessian(self, W: Array, q: _Posterior) -> Array:
        """Second derivatives of each data point's loss in its own coordinates, shape ``(2K, 2K, N)``."""
        k = W.shape[1]
        out = np.zeros((2 * k, 2 * k, q.loss.size))
        out[:k, :k] = ((W.T / self.noise) @ W)[:, :, None]
        i = np.arange(k)
        mean_mean, mixed, var_var = q.curvature
        out[i, i] += mean_mean
        out[i, k + i] = out[k + i, i] = mixed
        out[k + i, k + i] = var_var
        return out


def _solve_damped(hessian: Array, rhs: Array) -> Array:
    """Solve ``H y = rhs`` for a stack of small symmetric matrices, ``(D, D, N)`` and ``(D, R, N)``, by ``L D L^T``.

    Pivots enter by their magnitude, so that the solution with ``rhs = -gradient`` descends also where ``H`` is
    indefinite, and is Newton's where it is positive definite.  ``hessian`` and ``rhs`` are overwritten.
    """
    size = len(hessian)
    floor = 1e-9 * np.abs(hessian[np.arange(size), np.arange(size)]).max(0) + 1e-300
    pivots = []
    for j in range(size):
        pivot = np.maximum(np.abs(hessian[j, j]), floor)
        pivots.append(pivot)
        for i in range(j + 1, size):
            factor = hessian[i, j] / pivot
            hessian[i, j + 1 :] -= factor * hessian[j, j + 1 :]
            rhs[i] -= factor * rhs[j]
    rhs /= np.stack(pivots)[:, None]
    for j in reversed(range(size)):
        for i in range(j):
            rhs[i] -= hessian[i, j] / pivots[i] * rhs[j]
    return rhs


def _infer(model: _Model, W: Array, q: _Posterior, tol: float = 1e-11, max_iter: int = 200) -> _Posterior:
    """Descend to each data point's local optimum of ``q`` at fixed ``W``; no data point's loss ever rises."""
    k = W.shape[1]
    active = np.arange(q.loss.size)
    for _ in range(max_iter):
        here = q[active]
        x = model.x[:, active]
        step = _solve_damped(model.hessian(W, here), -here.gradient[:, None, :])[:, 0]
        step /= np.maximum(np.abs(step[k:]).max(0) / 2.0, 1.0)
        decrease = -(step * here.gradient).sum(0)
        moving = decrease > tol * (1.0 + np.abs(here.loss))
        active, here, x, step, decrease = (
            active[moving],
            here[moving],
            x[:, moving],
            step[:, moving],
            decrease[moving],
        )
        if active.size == 0:
            break
        pending, length = np.arange(active.size), 1.0
        for _ in range(30):
            there = model.evaluate(
                W,
                x[:, pending],
                here.mean[:, pending] + length * step[:k, pending],
                here.log_var[:, pending] + length * step[k:, pending],
            )
            better = there.loss <= here.loss[pending] - 1e-4 * length * decrease[pending]
            q.put(active[pending[better]], there[better])
            pending = pending[~better]
            if pending.size == 0:
                break
            length *= 0.4
        active = np.delete(active, pending)  # no step improves: at its optimum up to rounding
    return q


def _starts(model: _Model, W: Array) -> list[tuple[Array, Array]]:
    """Places to start each data point's ``q``: explanations of ``x`` by none, by each few, and by all of the columns.

    Heavy tails make the posterior multimodal, one mode for each small set of sources that could have made ``x``.
    """
    n_obs, k = W.shape
    gram, score = (W.T / model.noise) @ W, (W.T / model.noise) @ model.x
    ridge = model.beta * (model.dof + 1.0) / model.dof
    log_var = np.broadcast_to(np.log(model.beta / (np.diag(gram) + ridge))[:, None], score.shape)
    sets = [(), *(c for size in range(1, min(n_obs, k) + 1) for c in combinations(range(k), size))]
    if k > n_obs:
        sets.append(tuple(range(k)))
    out = []
    for chosen in sets:
        mean = np.zeros_like(score)
        index = list(chosen)
        if index:
            mean[index] = np.linalg.solve(gram[np.ix_(index, index)] + ridge * np.eye(len(index)), score[index])
        out.append((mean, log_var.copy()))
    return out


def _infer_globally(model: _Model, W: Array, q: _Posterior | None = None) -> _Posterior:
    """The best local optimum of each data point's ``q`` over the starts of :func:`_starts` and ``q`` itself."""
    for mean, log_var in _starts(model, W):
        other = _infer(model, W, model.evaluate(W, model.x, mean, log_var))
        if q is None:
            q = other
            continue
        better = np.flatnonzero(other.loss < q.loss)
        q.put(better, other[better])
    return q


# ---------------------------------------------------------------------------------------------------------------------
# Learning W
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """Result of :func:`fit`.

    ``W`` has shape ``(L, K)``; ``free_energy`` holds the free energy in nats after each accepted step, the first entry
    at the start, and never decreases; ``mean`` and ``sd`` are the posteriors, shape ``(N, K)``; ``converged`` tells
    whether the tolerance was met within ``n_iter`` steps; ``gradient_norm`` is the largest entry of the gradient, by
    ``autograd``, in ``W``, ``mean`` and ``log sd`` at the result.  ``path`` holds the weights at every entry of
    ``free_energy``.
    """

    W: Array
    free_energy: Array
    path: Array
    mean: Array
    sd: Array
    converged: bool
    n_iter: int
    gradient_norm: float


def _profile_newton(model: _Model, W: Array, q: _Posterior) -> tuple[Array, Array, Array]:
    """Newton step in ``W`` of the free energy maximised over ``q``, and the shift of ``q`` that goes with it.

    The gradient is autograd's, at fixed ``q``; the curvature subtracts what ``q`` gives way,
    ``H_WW - sum_n H_Wq H_qq^-1 H_qW``, and its negative eigenvalues enter by magnitude.
    Returns the step, minus the shift of ``q`` for each entry of ``W``, and the slope: ``(L, K)``, ``(2K, L K, N)``,
    ``(L, K)``.
    """
    n_obs, k = W.shape
    mean, var = q.mean, np.exp(q.log_var)
    precision = 1.0 / model.noise
    residual = (model.x - W @ mean) * precision[:, None]
    gradient = -grad(_reconstruction)(W, mean.T, np.sqrt(var).T, model.x.T, model.noise).ravel()
    cross = np.zeros((2 * k, n_obs, k, q.loss.size))
    for j in range(k):
        cross[j] = (precision * W[:, j])[:, None, None] * mean
        cross[j, :, j] -= residual
        cross[k + j, :, j] = (precision * W[:, j])[:, None] * var[j]
    cross = cross.reshape(2 * k, n_obs * k, -1)
    response = _solve_damped(model.hessian(W, q), cross.copy())
    second = mean @ mean.T + np.diag(var.sum(1))
    curvature = np.kron(np.diag(precision), second) - np.einsum("dan,dbn->ab", cross, response, optimize=True)
    value, vector = np.linalg.eigh(0.5 * (curvature + curvature.T))
    value = np.maximum(np.abs(value), 1e-9 * np.abs(value).max())
    step = -vector @ ((vector.T @ gradient) / value)
    return step.reshape(n_obs, k), response, gradient.reshape(n_obs, k)


def fit(
    x: Array,
    W: Array,
    noise_var: float | Array,
    dof: float = 3.5,
    beta: float = 1.0,
    method: str = "newton",
    tol: float = 1e-8,
    max_iter: int = 200,
    max_step: float = 0.1,
) -> Fit:
    """Variational inference of Eq. 13: maximise the free energy over every data point's ``q`` and over ``W``.

    ``q`` is brought to its optimum by damped Newton steps on all data points at once, at first from every small set of
    columns that could explain a data point, and again after each change of ``W``.  ``method`` chooses the changes of
    ``W``:

    ``"newton"``
        Newton's direction of the free energy maximised over ``q``, never by more than ``max_step`` of the norm of
        ``W``, and the step of ``"em"`` where that does not improve.  At the end every data point tries all its starts
        again, and the ascent goes on if one finds a better ``q``.
    ``"em"``
        Coordinate ascent: the closed-form optimum given ``q``, a linear regression.  Slow where the noise is small,
        since a step is of the order of ``beta * noise_var``: its path shows what an ascent in small steps passes
        through.

    Only improving steps are accepted, as in appendix B.7.

    Parameters
    ----------
    x
        Data, shape ``(N, L)``.
    W
        Weights to start from, shape ``(L, K)``; the paper starts at the true ones.
    noise_var
        Noise variances, the diagonal of ``D``, held fixed: a number or shape ``(L,)``.
    dof
        Degrees of freedom of the Student-t prior, held fixed.
    beta
        Weight of the KL divergence; 1 is variational inference.
    method
        ``"newton"`` or ``"em"``.
    tol
        Stop when a step changes the free energy by less than this, relatively.
    max_iter
        Most steps in ``W``.
    max_step
        Largest change of ``W`` in one step of Newton's, as a fraction of its Frobenius norm.

    Returns
    -------
    Fit
        Weights, free energy per iteration, posteriors.

    Raises
    ------
    ValueError, TypeError
        If a shape does not fit, a value is not finite, ``method`` is unknown, or ``noise_var``, ``dof``, ``beta``,
        ``tol``, ``max_iter`` or ``max_step`` is not positive.  A zero column of ``W`` is allowed, and stays
        zero up to rounding: it is a stationary point.
    """
    W = _weights(W)
    x, noise = _data(x, len(W)), _noise(noise_var, len(W))
    model = _Model(x.T.copy(), noise, _positive("dof", dof), _positive("beta", beta))
    tol, max_step, max_iter = _positive("tol", tol), _positive("max_step", max_step), _whole("max_iter", max_iter, 1)
    if method not in ("newton", "em"):
        raise ValueError(f"method must be 'newton' or 'em', got {method!r}")

    q = _infer_globally(model, W)
    trace, path = [model.constant - q.loss.sum()], [W]
    converged = False
    for _ in range(max_iter):
        start, small = q.loss.sum(), tol * abs(trace[-1])
        if method == "em":
            W, q = _regress(model, W, q)
            converged = bool(start - q.loss.sum() <= small)
        else:
            W, q = _newton(model, W, q, max_step, small)
            if start - q.loss.sum() <= small:
                local = q.loss.sum()
                q = _infer_globally(model, W, q)
                converged = bool(local - q.loss.sum() <= small)
        if q.loss.sum() < start:
            trace.append(model.constant - q.loss.sum())
            path.append(W)
        if converged:
            break

    mean, sd = q.mean.T.copy(), np.exp(0.5 * q.log_var.T)
    objective = grad(lambda p: free_energy(p[0], p[1], anp.exp(p[2]), x, noise, model.dof, model.beta))
    slopes = objective((W, mean, np.log(sd)))
    steepest = float(max(np.abs(slope).max() for slope in slopes))
    return Fit(W, np.array(trace), np.array(path), mean, sd, converged, len(trace) - 1, steepest)


def _regress(model: _Model, W: Array, q: _Posterior) -> tuple[Array, _Posterior]:
    """The optimal ``W`` given ``q``, and ``q`` at its optimum again; stay where that does not improve."""
    mean = q.mean
    second = mean @ mean.T + np.diag(np.exp(q.log_var).sum(1))
    regression = np.linalg.solve(second, mean @ model.x.T).T
    there = _infer(model, regression, model.evaluate(regression, model.x, mean.copy(), q.log_var.copy()))
    return (regression, there) if there.loss.sum() < q.loss.sum() else (W, q)


def _newton(model: _Model, W: Array, q: _Posterior, max_step: float, small: float) -> tuple[Array, _Posterior]:
    """A Newton step in ``W``, with ``q`` at its optimum again; stay where it promises less than ``small``."""
    k = W.shape[1]
    step, response, slope = _profile_newton(model, W, q)
    if -(step * slope).sum() <= small:
        return W, q
    length = min(1.0, max_step * np.linalg.norm(W) / np.linalg.norm(step))
    for _ in range(8):
        move = length * step
        shift = np.clip(-np.einsum("dan,a->dn", response, move.ravel()), -1.0, 1.0)
        there = model.evaluate(W + move, model.x, q.mean + shift[:k], q.log_var + shift[k:])
        stay = model.evaluate(W + move, model.x, q.mean.copy(), q.log_var.copy())
        worse = np.flatnonzero(there.loss > stay.loss)
        there.put(worse, stay[worse])
        there = _infer(model, W + move, there)
        if there.loss.sum() <= q.loss.sum() + 1e-4 * (slope * move).sum():
            return W + move, there
        length *= 0.4
    return _regress(model, W, q)


# ---------------------------------------------------------------------------------------------------------------------
# The exact log-likelihood
# ---------------------------------------------------------------------------------------------------------------------


def _precision_nodes(dof: float, reach: float, step: float, digits: float) -> tuple[Array, Array]:
    r"""Variances and log-weights that make a Student-t density a finite mixture of Gaussians, for ``|z| <= reach``.

    ``t_v`` is the mixture over precisions :math:`\lambda \sim \mathrm{Gamma}(v/2, v/2)`; the trapezoidal rule in
    :math:`\log\lambda` ends where the integrand is below ``10**-digits`` of its peak at every such ``z``.
    """
    margin = digits * np.log(10.0)
    # In u = log(lambda) from its peak the integrand is exp(-(v + 1) / 2 (e^u - u - 1)) at the far end of z, and
    # exp(-v / 2 (e^u - u - 1)) without the likelihood.
    left, right = 2.0 * margin / (dof + 1.0), 2.0 * margin / dof
    low = np.log((dof + 1.0) / (dof + reach**2)) - left - min(1.0, np.sqrt(2.0 * left))
    high = np.log1p(right + np.log(2.0 + right))
    # Multiples of the step, so that the nodes stay put when W moves
    log_precision = step * np.arange(np.floor(low / step), np.ceil(high / step) + 1.0)
    half = 0.5 * dof
    log_weight = half * (log_precision - np.exp(log_precision) + np.log(half)) - gammaln(half) + np.log(step)
    return np.exp(-log_precision), log_weight


def _mixture(W: Array, x: Array, noise: Array, dof: float, step: float, digits: float) -> tuple[Array, Array, Array]:
    """Covariances ``(J, L, L)``, source variances ``(J, K)`` and log-weights ``(J,)`` of the Gaussians that add up."""
    farthest = np.sqrt((x**2).sum(1).max())
    lengths = np.maximum(np.sqrt((W**2).sum(0)), np.sqrt(noise.min()))
    axes = [_precision_nodes(dof, farthest / length, step, digits) for length in lengths]
    variance = np.stack([a.ravel() for a in np.meshgrid(*(v for v, _ in axes), indexing="ij")], axis=1)
    log_weight = sum(np.meshgrid(*(w for _, w in axes), indexing="ij")).ravel()
    keep = log_weight > log_weight.max() - 3.0 * digits * np.log(10.0) * W.shape[1]
    variance, log_weight = variance[keep], log_weight[keep]
    return np.einsum("ik,jk,lk->jil", W, variance, W, optimize=True) + np.diag(noise), variance, log_weight


def _likelihood_and_slope(
    W: Array, x: Array, noise: Array, dof: float, step: float, digits: float
) -> tuple[Array, Array]:
    """Each data point's log-likelihood, and the gradient of their sum in ``W`` by Fisher's identity."""
    n_obs = len(W)
    covariance, variance, log_weight = _mixture(W, x, noise, dof, step, digits)
    precision = np.linalg.inv(covariance)
    features = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    offset = log_weight - 0.5 * np.linalg.slogdet(covariance)[1] - 0.5 * n_obs * np.log(2.0 * np.pi)
    kernel = -0.5 * precision.reshape(len(precision), -1)
    value, second, share = np.empty(len(x)), 0.0, 0.0
    block = max(1, 10_000_000 // len(offset))  # data points at a time, so that memory stays near 100 MB
    for begin in range(0, len(x), block):
        part = slice(begin, begin + block)
        responsibility = kernel @ features[part].T
        responsibility += offset[:, None]
        top = responsibility.max(0)
        responsibility -= top
        np.exp(responsibility, out=responsibility)
        total = responsibility.sum(0)
        responsibility /= total
        value[part] = top + np.log(total)
        second = second + responsibility @ features[part]
        share = share + responsibility.sum(1)
    second, share = second.reshape(covariance.shape), share[:, None, None]
    inner = precision @ (second - share * covariance) @ precision
    slope = np.einsum("jil,lk,jk->ik", inner, W, variance, optimize=True)
    return value, slope


_LIKELIHOOD_STEP, _LIKELIHOOD_DIGITS = 0.5, 6.0


def log_likelihood(
    x: Array,
    W: Array,
    noise_var: float | Array,
    dof: float = 3.5,
    step: float = _LIKELIHOOD_STEP,
    digits: float = _LIKELIHOOD_DIGITS,
) -> Array:
    r"""Log-likelihood ``log p(x_n)`` of each data point, to numerical precision, with the sources integrated out.

    A Student-t source is a Gaussian of random precision, so that

    .. math::

        p(x) = \int \prod_k \mathrm{Gamma}(\lambda_k; \tfrac v2, \tfrac v2)\;
        \mathcal N\bigl(x;\, 0,\, W \Lambda^{-1} W^\top + D\bigr)\,\mathrm d\lambda ,

    a smooth positive integral over :math:`\log\lambda_1, \dots, \log\lambda_K` that the trapezoidal rule resolves
    with few nodes for any ``W`` and any noise.  The cost grows as a power of ``K``: meant for three sources.

    Parameters
    ----------
    x, W, noise_var, dof
        Data ``(N, L)``, weights ``(L, K)``, noise variances and degrees of freedom.
    step
        Spacing of the nodes in ``log lambda``; the error falls exponentially in ``1 / step`` and is below
        ``2e-6`` at 0.5.
    digits
        Decimal digits kept where the rule is cut off.

    Returns
    -------
    numpy.ndarray
        Natural logarithms, shape ``(N,)``.
    """
    W = _weights(W)
    x, noise = _data(x, len(W)), _noise(noise_var, len(W))
    step, digits = _positive("step", step), _positive("digits", digits)
    return _likelihood_and_slope(W, x, noise, _positive("dof", dof), step, digits)[0]


@dataclass(frozen=True)
class ExactFit:
    """Result of :func:`fit_exact`: weights ``(L, K)``, and the log-likelihood in nats after each accepted step."""

    W: Array
    log_likelihood: Array
    converged: bool
    n_iter: int


def fit_exact(
    x: Array, W: Array, noise_var: float | Array, dof: float = 3.5, tol: float = 1e-8, max_iter: int = 200
) -> ExactFit:
    """Maximum likelihood: maximise the sum of :func:`log_likelihood` over ``W``, from a given start, by BFGS.

    Parameters and errors are those of :func:`fit`; every accepted step improves the log-likelihood.
    """
    W = _weights(W)
    x, noise, dof = _data(x, len(W)), _noise(noise_var, len(W)), _positive("dof", dof)
    tol, max_iter = _positive("tol", tol), _whole("max_iter", max_iter, 1)

    def loss(flat: Array) -> tuple[float, Array]:
        value, slope = _likelihood_and_slope(flat.reshape(W.shape), x, noise, dof, _LIKELIHOOD_STEP, _LIKELIHOOD_DIGITS)
        return -value.sum() / len(x), -slope.ravel() / len(x)

    trace = [-loss(W.ravel())[0] * len(x)]
    result = minimize(
        loss,
        W.ravel(),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iter, "ftol": tol, "gtol": 1e-6, "maxcor": W.size},
        callback=lambda intermediate_result: trace.append(-intermediate_result.fun * len(x)),
    )
    return ExactFit(result.x.reshape(W.shape), np.array(trace), bool(result.success), int(result.nit))


# ---------------------------------------------------------------------------------------------------------------------
# The same toy with an Lp-nested prior
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LpNestedPrior:
    r"""An Lp-nested prior of depth two (Eq. 7 with Eq. 9 and 11, scale 1), written out for few sources.

    Subspaces are independent; within one of size ``n`` the density falls with :math:`\lVert z \rVert_{p_1}^{p_0}`,

    .. math::

        \log p(z_V) = -\lVert z_V \rVert_{p_1}^{p_0} - \log \frac{2^n\, \Gamma(1/p_1)^n\, \Gamma(n/p_0)}
        {p_1^{n-1}\, \Gamma(n/p_1)\, p_0} .

    ``p0 = p1`` makes all sources independent (the p-generalised normal), ``p1 = 2`` makes each subspace rotationally
    symmetric.  Exponents below 1, where the density is not log-concave, are not taken.
    """

    p0: float = 2.1
    p1: float = 2.2
    subspaces: tuple[int, ...] = (3,)

    def __post_init__(self) -> None:
        for name in ("p0", "p1"):
            if _positive(name, getattr(self, name)) < 1.0:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for size in self.subspaces:
            _whole("subspaces", size, 1)

    @property
    def slices(self) -> list[slice]:
        ends = np.cumsum(self.subspaces)
        return [slice(int(end - size), int(end)) for end, size in zip(ends, self.subspaces, strict=True)]

    @property
    def log_normaliser(self) -> float:
        n = np.array(self.subspaces, dtype=float)
        surface = n * np.log(2.0) + n * gammaln(1 / self.p1) - (n - 1) * np.log(self.p1) - gammaln(n / self.p1)
        return float((surface + gammaln(n / self.p0) - np.log(self.p0)).sum())

    @property
    def variance(self) -> Array:
        """Variance of each source, shape ``(K,)``."""
        n = np.repeat(np.array(self.subspaces, dtype=float), self.subspaces)
        log = gammaln((n + 2) / self.p0) - gammaln(n / self.p0) + gammaln(3 / self.p1) - gammaln(1 / self.p1)
        return np.exp(log + gammaln(n / self.p1) - gammaln((n + 2) / self.p1))

    def sample(self, n: int, seed: int | np.random.Generator = 0) -> Array:
        """Draw ``(n, K)``: in each subspace a uniform direction, and a radius with ``r^p0 ~ Gamma(n_V / p0)``."""
        n, rng = _whole("n", n, 1), np.random.default_rng(seed)
        out = []
        for size in self.subspaces:
            power = rng.gamma(1 / self.p1, size=(n, size))
            raw = rng.choice([-1.0, 1.0], size=power.shape) * power ** (1 / self.p1)
            radius = rng.gamma(size / self.p0, size=n) ** (1 / self.p0)
            out.append(raw * (radius / power.sum(1) ** (1 / self.p1))[:, None])
        return np.concatenate(out, axis=1)

    def energy(self, z: Array) -> tuple[Array, Array]:
        """``-log p(z) - log Z`` and its gradient, for ``z`` of shape ``(..., K)``."""
        size = np.maximum(np.abs(z), 1e-300)
        power = size ** (self.p1 - 1.0)
        value, slope = 0.0, np.empty_like(z)
        for part in self.slices:
            total = (power[..., part] * size[..., part]).sum(-1)
            factor = total ** (self.p0 / self.p1 - 1.0)
            value = value + factor * total
            slope[..., part] = self.p0 * factor[..., None] * power[..., part] * np.sign(z[..., part])
        return value, slope


def _gaussian_nodes(k: int, draws: int) -> Array:
    """Points ``(draws, k)`` in pairs ``e, -e`` that stand for ``N(0, I_k)``, with its second moments exact."""
    half = norm.ppf(qmc.Sobol(k, scramble=True, rng=np.random.default_rng(0)).random(draws // 2))
    points = np.concatenate([half, -half])
    return points @ np.linalg.inv(np.linalg.cholesky(points.T @ points / len(points))).T


@dataclass(frozen=True)
class LpNestedFit:
    """Result of :func:`fit_lp_nested`: weights ``(L, K)``, free energy after each step, posteriors ``(N, K)``."""

    W: Array
    free_energy: Array
    mean: Array
    sd: Array
    converged: bool
    n_iter: int


def fit_lp_nested(
    x: Array,
    W: Array,
    noise_var: float | Array,
    prior: LpNestedPrior,
    beta: float = 1.0,
    draws: int = 256,
    tol: float = 1e-8,
    max_iter: int = 1000,
) -> LpNestedFit:
    """:func:`fit` with an Lp-nested prior in place of the Student-t: Eq. 13 over ``W`` and each data point's ``q``.

    The cross-entropy no longer separates over sources; it is an average over ``draws`` fixed quasi-random points, the
    same for every data point, so that the objective is deterministic.  ``W``, means and log standard deviations ascend
    together by L-BFGS, and every accepted step improves the free energy.

    Parameters
    ----------
    x, W, noise_var, beta
        As in :func:`fit`.
    prior
        The prior; its subspaces' sizes add up to the columns of ``W``.
    draws
        Points of the average, a power of two from 4.
    tol, max_iter
        Relative change of the free energy at which to stop, and most iterations.

    Returns
    -------
    LpNestedFit
        Weights, free energy per iteration, posteriors.

    Raises
    ------
    ValueError, TypeError
        As :func:`fit`, or if ``prior`` has another number of sources than ``W``, or ``draws`` is no power of two.
    """
    W = _weights(W)
    x, noise, beta = _data(x, len(W)), _noise(noise_var, len(W)), _positive("beta", beta)
    tol, max_iter, draws = _positive("tol", tol), _whole("max_iter", max_iter, 1), _whole("draws", draws, 4)
    n, k = len(x), W.shape[1]
    if sum(prior.subspaces) != k:
        raise ValueError(f"prior must have as many sources as W has columns, {k}, got subspaces {prior.subspaces}")
    if draws & (draws - 1):
        raise ValueError(f"draws must be a power of two, got {draws}")
    nodes = _gaussian_nodes(k, draws)
    constant = -0.5 * n * np.log(2 * np.pi * noise).sum() + beta * n * (
        0.5 * k * np.log(2 * np.pi * np.e) - prior.log_normaliser
    )

    def loss(flat: Array) -> tuple[float, Array]:
        weights = flat[: W.size].reshape(W.shape)
        mean, log_sd = flat[W.size :].reshape(2, n, k)
        sd = np.exp(log_sd)
        residual = (x - mean @ weights.T) / noise
        spread = (weights**2 / noise[:, None]).sum(0)
        energy, slope = prior.energy(mean[:, None] + sd[:, None] * nodes)
        value = 0.5 * (noise * residual**2).sum() + 0.5 * (spread * sd**2).sum()
        value += beta * (energy.sum() / draws - log_sd.sum())
        d_weights = -residual.T @ mean + weights * (sd**2).sum(0) / noise[:, None]
        d_mean = -residual @ weights + beta * slope.mean(1)
        d_log_sd = sd * (spread * sd + beta * (slope * nodes).mean(1)) - beta
        return value / n, np.concatenate([d_weights.ravel(), d_mean.ravel(), d_log_sd.ravel()]) / n

    gram = (W.T / noise) @ W + beta * np.diag(1.0 / prior.variance)
    mean = np.linalg.solve(gram, (W.T / noise) @ x.T).T
    log_sd = np.broadcast_to(-0.5 * np.log(np.diag(gram) / beta), mean.shape)
    start = np.concatenate([W.ravel(), mean.ravel(), log_sd.ravel()])
    trace = [constant - n * loss(start)[0]]
    result = minimize(
        loss,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": max_iter, "maxfun": 2 * max_iter, "ftol": tol, "gtol": 1e-9, "maxcor": 20},
        callback=lambda intermediate_result: trace.append(constant - n * intermediate_result.fun),
    )
    mean, log_sd = result.x[W.size :].reshape(2, n, k)
    weights = result.x[: W.size].reshape(W.shape)
    return LpNestedFit(weights, np.array(trace), mean, np.exp(log_sd), bool(result.success), int(result.nit))


# ---------------------------------------------------------------------------------------------------------------------
# What became of the directions
# ---------------------------------------------------------------------------------------------------------------------


PRUNED = 0.1
"""A column shorter than this fraction of the longest counts as pruned."""


def lengths(W: Array) -> Array:
    """Euclidean lengths of the columns of ``W``."""
    return np.sqrt((np.asarray(W, dtype=float) ** 2).sum(0))


def survivors(W: Array, threshold: float = PRUNED, reference: Array | None = None) -> Array:
    """Which columns are alive: longer than ``threshold`` times the longest of ``reference``; boolean, shape ``(K,)``.

    Without a reference the longest column of ``W`` itself is taken; with the true weights as reference none is alive
    where all have collapsed.
    """
    length = lengths(W)
    longest = lengths(W if reference is None else reference).max()
    return length > threshold * longest


def angles(W: Array) -> Array:
    """Directions of the columns of a two-row ``W`` as axes, in degrees from 0 up to 180; shape ``(K,)``."""
    return np.degrees(np.arctan2(W[1], W[0])) % 180.0


def angle_between(a: float | Array, b: float | Array) -> float | Array:
    """Angle between two axes given by their directions in degrees: from 0 to 90."""
    gap = np.abs(np.asarray(a) - np.asarray(b)) % 180.0
    return np.minimum(gap, 180.0 - gap)


def widest_pair(W: Array) -> float:
    """Angle between the two longest columns of a two-row ``W``, in degrees: 90 is orthogonal."""
    first, second = np.argsort(-lengths(W), kind="stable")[:2]
    return float(angle_between(angles(W)[first], angles(W)[second]))


def explaining_away(W: Array) -> float:
    """Mean squared cosine between columns, each pair weighted by its squared lengths: 0 when all are orthogonal.

    ``sum_{j<k} (w_j . w_k)^2 / sum_{j<k} |w_j|^2 |w_k|^2``, the share of the Gram matrix that couples sources.
    """
    gram = np.asarray(W, dtype=float).T @ W
    square = np.diag(gram)
    upper = np.triu_indices(len(gram), 1)
    return float((gram[upper] ** 2).sum() / max(np.outer(square, square)[upper].sum(), 1e-300))


# ---------------------------------------------------------------------------------------------------------------------
# Studies over many data sets
# ---------------------------------------------------------------------------------------------------------------------

METHODS = ("newton", "em", "exact", "exact-random", "lp:P0:P1:N+...", "lp-own:P0:P1:N+...")


def lp_prior(method: str) -> LpNestedPrior | None:
    """The prior that a method such as ``lp:2.1:2.2:3`` or ``lp-own:2.1:2.2:1+2`` names; None for the other methods."""
    if not method.startswith(("lp:", "lp-own:")):
        return None
    try:
        p0, p1, sizes = method.split(":")[1:]
        return LpNestedPrior(float(p0), float(p1), tuple(int(size) for size in sizes.split("+")))
    except ValueError as error:
        raise ValueError(f"methods may hold {METHODS[-2]}, got {method!r}: {error}") from error


@dataclass(frozen=True)
class Study:
    """A study's specification, as read from ``runs/*.yaml``: every combination of its lists is fitted once.

    ``methods`` are those of :func:`fit`, started at the true weights; ``exact``, :func:`fit_exact` from there; and
    ``exact-random``, the same from random directions; ``lp:P0:P1:N+...``, :func:`fit_lp_nested` with these exponents
    and subspaces on the same data, and ``lp-own:...`` on data whose sources have that prior.  Rows of ``em`` hold the
    weights after ``updates`` steps, and the step, up to ``max_updates``, at which the first column was pruned.  With
    ``log_likelihood`` each row has the exact one.
    """

    seeds: int
    n: int
    directions: tuple[float, ...]
    noise_var: tuple[float, ...]
    dof: tuple[float, ...]
    beta: tuple[float, ...]
    methods: tuple[str, ...]
    updates: int = 40
    max_updates: int = 150
    log_likelihood: bool = False

    def __post_init__(self) -> None:
        for name in ("seeds", "n", "updates", "max_updates"):
            _whole(name, getattr(self, name), 1)
        for name in ("noise_var", "dof", "beta"):
            for value in getattr(self, name):
                _positive(name, value)
        for method in self.methods:
            if method not in METHODS[:4] and lp_prior(method) is None:
                raise ValueError(f"methods may hold {', '.join(METHODS)}, got {method!r}")
        if self.updates > self.max_updates:
            raise ValueError(f"updates must be at most max_updates = {self.max_updates}, got {self.updates}")

    @classmethod
    def read(cls, path: str | Path) -> Study:
        """Read a specification; an unknown or missing key is an error."""
        with open(path, encoding="utf-8") as file:
            given = yaml.safe_load(file)
        if not isinstance(given, dict):
            raise ValueError(f"{path} must hold a mapping of keys to values")
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(set(given) - set(known))
        missing = sorted(name for name, field in known.items() if field.default is MISSING and name not in given)
        if unknown or missing:
            raise ValueError(f"{path}: unknown keys {unknown}, missing keys {missing}; allowed are {sorted(known)}")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})

    def cases(self) -> Iterator[tuple[str, int, float, float, float]]:
        """Method, seed, dof, noise variance, beta of each fit; beta is 0 for exact likelihood, which has none."""
        for dof, noise, seed, method in product(self.dof, self.noise_var, range(self.seeds), self.methods):
            for beta in (0.0,) if method.startswith("exact") else self.beta:
                yield method, seed, float(dof), float(noise), float(beta)

    @property
    def header(self) -> list[str]:
        weights = [f"w{row}{column}" for row in (1, 2) for column in range(1, len(self.directions) + 1)]
        return [*_KEYS, "steps", "converged", "objective", "log_likelihood", "pruned_at", *weights]


_KEYS = ("method", "seed", "dof", "noise_var", "beta")


def _run_case(study: Study, method: str, seed: int, dof: float, noise: float, beta: float) -> list[str]:
    """Fit one case; its row as text."""
    W_true = directions(list(study.directions))
    x, _ = sample(study.n, W_true, noise, dof=dof, seed=seed)
    pruned_at = ""
    prior = lp_prior(method)
    if prior is not None:
        # Both kinds of sources have the Student-t's variance, so that signal and noise are those of the other methods.
        scaled = W_true * np.sqrt(dof / (dof - 2.0) / prior.variance)
        if method.startswith("lp-own"):
            rng = np.random.default_rng([seed, 2])
            x = prior.sample(study.n, rng) @ scaled.T + np.sqrt(noise) * rng.standard_normal(x.shape)
        nested = fit_lp_nested(x, scaled, noise, prior, beta)
        W, steps, converged, objective = nested.W, nested.n_iter, nested.converged, nested.free_energy[-1]
    elif method.startswith("exact"):
        start = W_true
        if method == "exact-random":
            start = directions(np.random.default_rng([seed, 1]).uniform(0.0, 180.0, W_true.shape[1]))
        exact = fit_exact(x, start, noise, dof)
        W, steps, converged, objective = exact.W, exact.n_iter, exact.converged, exact.log_likelihood[-1]
    elif method == "newton":
        result = fit(x, W_true, noise, dof, beta)
        W, steps, converged, objective = result.W, result.n_iter, result.converged, result.free_energy[-1]
    else:
        result = fit(x, W_true, noise, dof, beta, method="em", max_iter=study.max_updates)
        steps = min(study.updates, result.n_iter)
        W, converged, objective = result.path[steps], result.converged, result.free_energy[steps]
        dead = [step for step, weights in enumerate(result.path) if not survivors(weights).all()]
        pruned_at = str(dead[0]) if dead else ""
    likelihood = f"{log_likelihood(x, W, noise, dof).sum():.4f}" if study.log_likelihood else ""
    key = [method, str(seed), f"{dof:g}", f"{noise:g}", f"{beta:g}"]
    weights = [f"{value:.6f}" for value in W.ravel()]
    return [*key, str(steps), str(int(converged)), f"{objective:.4f}", likelihood, pruned_at, *weights]


def load_record(path: str | Path) -> dict[str, Array]:
    """Read a study's record: one array a column; ``method`` is text, everything else numbers, with NaN where empty.

    A last line that an interrupted run left unfinished is passed over.
    """
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    header, *rows = csv.reader(text[: text.rfind("\n") + 1].splitlines())
    columns = dict(zip(header, zip(*rows, strict=True) if rows else [()] * len(header), strict=True))
    return {
        name: np.array(values) if name == "method" else np.array([float(value or "nan") for value in values])
        for name, values in columns.items()
    }


def record_weights(record: dict[str, Array]) -> Array:
    """The weights of each row of a record, shape ``(rows, 2, K)``."""
    k = sum(name.startswith("w1") for name in record)
    return np.stack([[record[f"w{row}{column}"] for column in range(1, k + 1)] for row in (1, 2)]).transpose(2, 0, 1)


def run_study(spec: str | Path, seconds: float = np.inf, report: Callable[[str], None] = lambda line: None) -> int:
    """Fit the cases of a specification that its record, the ``.csv`` beside it, does not hold yet.

    Each row is appended in one write, so that a run can be interrupted at any time and resumed.

    Parameters
    ----------
    spec
        Path of the ``.yaml`` file.
    seconds
        Start no further fit after this time.
    report
        Called with each row.

    Returns
    -------
    int
        How many cases are still to be done.
    """
    study, record = Study.read(spec), Path(spec).with_suffix(".csv")
    deadline = time.monotonic() + seconds
    done = set()
    if record.exists():
        raw = record.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(record, len(whole))
        rows = list(csv.reader(whole.decode().splitlines()))
        if rows and rows[0] != study.header:
            raise ValueError(f"{record} has columns {rows[0]}, but {spec} makes {study.header}")
        keys = (row[: len(_KEYS)] for row in rows[1:])
        done = {(method, int(seed), *map(float, rest)) for method, seed, *rest in keys}
    left = [case for case in study.cases() if case not in done]
    with open(record, "ab", buffering=0) as file:
        if file.tell() == 0:
            file.write((",".join(study.header) + "\n").encode())
        while left and time.monotonic() < deadline:
            line = ",".join(_run_case(study, *left[0])) + "\n"
            file.write(line.encode())
            report(line.rstrip())
            left.pop(0)
    return len(left)


def main(arguments: list[str] | None = None) -> int:
    """``python -m isa.toys.ica study SPEC``: run or resume a study; exits with 3 while cases are left."""
    parser = argparse.ArgumentParser(prog="python -m isa.toys.ica", description="Studies of ICA over many data sets.")
    commands = parser.add_subparsers(dest="command", required=True)
    study = commands.add_parser("study", help="fit what the record beside a specification does not hold yet")
    study.add_argument("spec", help="a runs/*.yaml file; its record is the .csv of the same name")
    study.add_argument("--seconds", type=float, default=np.inf, help="start no further fit after this time")
    chosen = parser.parse_args(arguments)
    try:
        left = run_study(chosen.spec, chosen.seconds, report=print)
    except (OSError, TypeError, ValueError) as error:
        print(f"python -m isa.toys.ica: {error}", file=sys.stderr)
        return 2
    print(f"{left} cases left")
    return 3 if left else 0


if __name__ == "__main__":
    sys.exit(main())
