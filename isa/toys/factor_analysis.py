r"""Factor analysis under mean-field variational inference, in closed form (App. B.1-B.6).

The model (Eq. 14) has :math:`K` latents, :math:`L` observed dimensions and diagonal noise,

.. math:: z_n \sim \mathcal N(0, I), \qquad x_n \mid z_n \sim \mathcal N(W z_n, D), \qquad n = 1 \dots N .

The data enter only through their number :math:`N` and their second moments
:math:`S = \Sigma_x + \mu_x \mu_x^\top = \frac1N \sum_n x_n x_n^\top`.

**Arguments.** The functions share these names:

- ``W`` (..., L, K): weights; leading dimensions stack models. A zero column is a pruned latent.
- ``noise_var``, a number or (L,): noise variances, the diagonal of :math:`D`, positive.
- ``cov`` (L, L): second moments :math:`S` of the data about 0, see :func:`second_moment`.
- ``n``: number of data points :math:`N`.
- ``beta``: weight of the KL term, positive; an array broadcasts with the leading shape of ``W``.

Log-densities and free energies are in nats, summed over the data: a number for one model, an array for a stack.

**Two conventions for** :math:`\beta`. Eq. 13 weights the KL term, Eq. 16 divides the reconstruction term:

.. math::
    F_{13} = \mathbb E_q \log p(x \mid z) - \beta\, \mathrm{KL}(q \,\|\, p),

    F_{16} = \tfrac1\beta\, \mathbb E_q \log p(x \mid z) - \mathrm{KL}(q \,\|\, p) = F_{13} / \beta .

:func:`free_energy` is :math:`F_{13}`, the objective of a beta-VAE; :func:`replicated_free_energy` is :math:`F_{16}`,
ordinary variational inference on :math:`M = 1/\beta` replicas of every observation. Both have the same optimal
:math:`q`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

__all__ = [
    "BetaPath", "Fit", "FreeEnergy", "LatentUse", "MeanField", "Posterior", "aligned_weights", "beta_path", "fit",
    "free_energy", "free_energy_terms", "gradient", "latent_use", "log_likelihood", "mean_field", "mean_field_gap",
    "misalignment", "optimal_noise", "optimal_weights", "overcomplete_weights", "posterior",
    "replicated_free_energy", "replicated_log_likelihood", "rotate", "sample", "second_moment",
]  # fmt: skip

Array = NDArray[np.floating]


class Posterior(NamedTuple):
    """Exact Gaussian posterior, with mean ``recognition @ x``."""

    recognition: Array  # (..., K, L)
    cov: Array  # (..., K, K)


class MeanField(NamedTuple):
    """Best factorised Gaussian, with mean ``recognition @ x``."""

    recognition: Array  # (..., K, L)
    var: Array  # (..., K)


class FreeEnergy(NamedTuple):
    """Terms of the free energy at the optimal q, in nats, neither multiplied by beta."""

    reconstruction: float | Array
    kl: float | Array


class LatentUse(NamedTuple):
    """Use of each latent, averaged over the data; arrays (..., K)."""

    exact_var: Array  # marginal variance under the exact posterior
    var: Array  # variance under q, at most exact_var
    mean_power: Array  # mean square of the posterior mean
    kl: Array  # KL(q(z_k) || p(z_k)) in nats per data point


class BetaPath(NamedTuple):
    """Optimal models for B values of beta."""

    squared_lengths: Array  # (B, K)
    noise_var: Array  # (B,)


class Fit(NamedTuple):
    """Weights found by :func:`fit` and their free energy (Eq. 13, nats)."""

    W: Array
    free_energy: float


def _arrays(W: ArrayLike, noise_var: ArrayLike, beta: ArrayLike = 1.0) -> tuple[Array, Array, Array]:
    W = np.asarray(W, dtype=float)
    return W, np.broadcast_to(np.asarray(noise_var, dtype=float), W.shape[-2]), np.asarray(beta, dtype=float)


def second_moment(x: ArrayLike) -> Array:
    r"""Return the second moments :math:`\frac1N \sum_n x_n x_n^\top`, (L, L), of data ``x`` (N, L)."""
    x = np.asarray(x, dtype=float)
    return x.T @ x / len(x)


def sample(W: ArrayLike, noise_var: ArrayLike, n: int, seed: int | np.random.Generator = 0) -> Array:
    """Draw ``n`` data points, (n, L), from the model (Eq. 14); ``seed`` is an integer or a generator."""
    W, rng = np.asarray(W), np.random.default_rng(seed)
    return rng.standard_normal((n, W.shape[1])) @ W.T + np.sqrt(noise_var) * rng.standard_normal((n, len(W)))


def rotate(W: ArrayLike, angle: ArrayLike, latents: tuple[int, int] = (0, 1)) -> Array:
    r"""Rotate the latent space: :math:`W' = W R(\theta)^\top` for :math:`z' = R(\theta) z` (App. B.3).

    The likelihood does not change, as :math:`W' W'^\top = W W^\top`. The columns ``latents`` of ``W`` (L, K) span the
    plane of the rotation. Each of the angles (...), in radians, gives one matrix of the result (..., L, K).
    """
    W, angle, (i, j) = np.asarray(W, dtype=float), np.asarray(angle), latents
    rotated = np.broadcast_to(W, (*angle.shape, *W.shape)).copy()
    cos, sin = np.cos(angle)[..., None], np.sin(angle)[..., None]
    rotated[..., i] = cos * W[:, i] - sin * W[:, j]
    rotated[..., j] = sin * W[:, i] + cos * W[:, j]
    return rotated


def overcomplete_weights(alpha: ArrayLike, rho: float = 1.0) -> Array:
    r"""Return the weights of Eq. 17: three latents for two-dimensional data.

    .. math::
        W = \frac{1}{\sqrt 2} \begin{pmatrix} \alpha & \sqrt{1 - \alpha^2} & \rho \\
                                              \alpha & \sqrt{1 - \alpha^2} & -\rho \end{pmatrix}

    The first two latents share one direction, and the likelihood is the same for every ``alpha`` (...) from -1 to 1. At
    ``alpha = 0`` the first latent is pruned. (The paper calls the second amplitude :math:`\beta`; it is not the
    weight of the KL term.) The result has the shape (..., 2, 3).
    """
    alpha = np.asarray(alpha, dtype=float)
    amplitude = np.stack(np.broadcast_arrays(alpha, np.sqrt(1 - alpha**2), rho), axis=-1)
    return amplitude[..., None, :] * np.array([[1, 1, 1], [1, 1, -1]]) / np.sqrt(2)


def aligned_weights(
    n: int = 100,
    noise_var: float = 0.01,
    log_likelihood: float = -17.82,
    free_energy: float = -57.16,
    angle: float = np.pi / 4,
) -> Array:
    r"""Return orthogonal weights with a given log-likelihood, and a given free energy once rotated by ``angle``.

    The paper prints two values for its first experiment (B.3) but not the constants behind them. For ``L = K = 2``,
    isotropic noise and data whose covariance is the model's (a maximum-likelihood solution), write :math:`c_1 \ge
    c_2` for the eigenvalues of :math:`W W^\top + \sigma^2 I`, :math:`m` for their mean and :math:`d` for half their
    difference. Then :math:`c_1 c_2 = m^2 - d^2`, and two equations determine both eigenvalues:

    .. math::
        \log p = -\tfrac N2 \bigl(2 \log 2\pi + 2 + \log c_1 c_2\bigr),

        \log p - F(\theta) = \tfrac N2 \log\Bigl(1 + \frac{d^2 \sin^2 2\theta}{c_1 c_2}\Bigr).

    The noise variance may have any value below :math:`c_2`. The defaults are the paper's values, in nats at beta = 1.
    The result (2, 2) is diagonal, the longer column first; the matching ``cov`` is ``W @ W.T + noise_var * np.eye(2)``.
    """
    gap, turn = log_likelihood - free_energy, np.sin(2 * angle) ** 2
    if gap <= 0 or turn < 1e-12:
        raise ValueError("free_energy must be below log_likelihood, and angle must not be a multiple of pi / 2")
    det = np.exp(-2 * log_likelihood / n - 2 - 2 * np.log(2 * np.pi))
    half_difference = np.sqrt(det * np.expm1(2 * gap / n) / turn)
    largest = np.hypot(np.sqrt(det), half_difference) + half_difference
    eigenvalues = np.array([largest, det / largest])
    if not noise_var < eigenvalues[1]:
        raise ValueError(f"noise_var must be below {eigenvalues[1]:g} for n = {n}, got {noise_var:g}")
    return np.diag(np.sqrt(eigenvalues - noise_var))


def log_likelihood(W: ArrayLike, noise_var: ArrayLike, cov: Array, n: int) -> float | Array:
    r"""Return the log-likelihood of the data, with the latents integrated out (B.2).

    .. math:: -\frac N2 \Bigl[\log\det 2\pi (W W^\top + D) + \operatorname{tr} (W W^\top + D)^{-1} S\Bigr]
    """
    return replicated_log_likelihood(W, noise_var, cov, n, beta=1.0)


def replicated_log_likelihood(
    W: ArrayLike, noise_var: ArrayLike, cov: Array, n: int, beta: ArrayLike = 1.0
) -> float | Array:
    r"""Return the log-likelihood of the replicated data (B.1), :math:`\sum_n \log \int p(x_n | z)^{1/\beta} p(z)\, dz`.

    It bounds :func:`replicated_free_energy` (Eq. 16) and equals :func:`log_likelihood` at ``beta = 1``.
    """
    W, noise, beta = _arrays(W, noise_var, beta)
    # In units of the noise the covariance is I + V V^T: its singular vectors give determinant and inverse without
    # cancellation, however small the noise is.
    sd = np.sqrt(noise)
    left, singular, _ = np.linalg.svd(W / sd[:, None])
    signal = np.zeros(left.shape[:-1])
    signal[..., : singular.shape[-1]] = singular**2
    spread = np.einsum("...li,lm,...mi->...i", left, cov / np.outer(sd, sd), left)
    log_det = np.log1p(signal / beta[..., None]).sum(-1) + np.log(2 * np.pi * noise).sum() / beta
    return -n / 2 * (log_det + (spread / (beta[..., None] + signal)).sum(-1))


def posterior(W: ArrayLike, noise_var: ArrayLike, beta: ArrayLike = 1.0) -> Posterior:
    r"""Return the exact posterior of the latents (Eq. 15), beta-scaled (B.2).

    .. math:: \tilde\Sigma = (I + W^\top D^{-1} W / \beta)^{-1}, \qquad R = \tilde\Sigma W^\top D^{-1} / \beta
    """
    gram, _, recognition = _posterior(*_arrays(W, noise_var, beta))
    return Posterior(recognition, np.linalg.inv(np.eye(gram.shape[-1]) + gram))


def mean_field(W: ArrayLike, noise_var: ArrayLike, beta: ArrayLike = 1.0) -> MeanField:
    """Return the factorised Gaussian that maximises Eq. 13, and so Eq. 16.

    It has the exact posterior's mean and the reciprocal diagonal of its precision (B.2).
    """
    _, excess, recognition = _posterior(*_arrays(W, noise_var, beta))
    return MeanField(recognition, 1 / (1 + excess))


def _posterior(W: Array, noise: Array, beta: Array) -> tuple[Array, Array, Array]:
    """Return the precision beyond the prior's, (..., K, K), its diagonal, and the recognition weights (..., K, L)."""
    scaled = np.swapaxes(W, -1, -2) / noise / beta[..., None, None]
    gram = scaled @ W
    return gram, np.einsum("...kk->...k", gram), np.linalg.solve(np.eye(W.shape[-1]) + gram, scaled)


def _kl(excess: Array, recognition: Array, cov: Array) -> tuple[Array, Array]:
    """Return the mean square of each latent's posterior mean, and its KL, from its precision beyond the prior's."""
    power = (recognition @ cov * recognition).sum(-1)
    return power, (np.log1p(excess) - excess / (1 + excess) + power) / 2


def free_energy_terms(W: ArrayLike, noise_var: ArrayLike, cov: Array, n: int, beta: ArrayLike = 1.0) -> FreeEnergy:
    r"""Return reconstruction and KL at the mean-field :math:`q` that is best for ``beta`` (Eq. 13-16).

    .. math::
        \mathbb E_q \log p(x \mid z) &= -\tfrac N2 \bigl[\log\det 2\pi D
            + \operatorname{tr} D^{-1} (I - W R) S (I - W R)^\top \\
            &\qquad + \operatorname{tr} W^\top D^{-1} W \Sigma_q \bigr] \\
        \mathrm{KL}(q \,\|\, p) &= \tfrac N2 \bigl[\operatorname{tr} \Sigma_q - K - \log\det \Sigma_q
            + \operatorname{tr} R S R^\top \bigr]
    """
    reconstruction, kl, _ = _evaluate(*_arrays(W, noise_var, beta), cov)
    return FreeEnergy(n * reconstruction, n * kl)


def _evaluate(W: Array, noise: Array, beta: Array, cov: Array) -> tuple[Any, Any, Array]:
    """Return reconstruction, KL and the gradient of Eq. 13 in ``W``, all per data point."""
    _, excess, recognition = _posterior(W, noise, beta)
    var = 1 / (1 + excess)
    residual = (np.eye(len(noise)) - W @ recognition) / noise[:, None]
    misfit = (noise[:, None] * residual @ cov * residual).sum((-2, -1))
    blur = (beta[..., None] * excess * var).sum(-1)
    reconstruction = -(np.log(2 * np.pi * noise).sum() + misfit + blur) / 2
    gradient = residual @ cov @ np.swapaxes(recognition, -1, -2) - W / noise[:, None] * var[..., None, :]
    return reconstruction, _kl(excess, recognition, cov)[1].sum(-1), gradient


def free_energy(W: ArrayLike, noise_var: ArrayLike, cov: Array, n: int, beta: ArrayLike = 1.0) -> float | Array:
    r"""Return the free energy of Eq. 13 at its optimal mean-field :math:`q`.

    .. math:: \mathbb E_q \log p(x \mid z) - \beta\, \mathrm{KL}(q \,\|\, p)

    At ``beta = 1`` it is the evidence lower bound; as ``beta`` decreases to 0 it tends to the log-density of the
    least-squares reconstruction.

    Examples
    --------
    A rotation of the latents keeps the likelihood and lowers the free energy:

    >>> W = aligned_weights(n=100, noise_var=0.01)
    >>> cov = W @ W.T + 0.01 * np.eye(2)
    >>> angles = np.array([0.0, np.pi / 4])
    >>> log_likelihood(rotate(W, angles), 0.01, cov, n=100).round(2)
    array([-17.82, -17.82])
    >>> free_energy(rotate(W, angles), 0.01, cov, n=100).round(2)
    array([-17.82, -57.16])
    """
    terms = free_energy_terms(W, noise_var, cov, n, beta)
    return terms.reconstruction - np.asarray(beta) * terms.kl


def replicated_free_energy(
    W: ArrayLike, noise_var: ArrayLike, cov: Array, n: int, beta: ArrayLike = 1.0
) -> float | Array:
    r"""Return the free energy of Eq. 16, :math:`\frac1\beta \mathbb E_q \log p(x \mid z) - \mathrm{KL}(q \,\|\, p)`.

    It equals ``free_energy / beta``, variational inference on :math:`1/\beta` replicas of every observation (B.1).
    """
    terms = free_energy_terms(W, noise_var, cov, n, beta)
    return terms.reconstruction / np.asarray(beta) - terms.kl


def mean_field_gap(W: ArrayLike, noise_var: ArrayLike, n: int, beta: ArrayLike = 1.0) -> float | Array:
    r"""Return :math:`\mathrm{KL}(q(z) \,\|\, p(z \mid x))` of the mean-field :math:`q` (Eq. 4), summed over the data.

    .. math:: \frac N2 \Bigl( \sum_k \log \tilde\Lambda_{kk} - \log\det \tilde\Lambda \Bigr),
              \qquad \tilde\Lambda = I + W^\top D^{-1} W / \beta

    It is :func:`replicated_log_likelihood` minus :func:`replicated_free_energy` (Eq. 16); in the
    convention of Eq. 13 the gap is ``beta`` times this. By Hadamard's inequality it is zero exactly when the columns of
    :math:`D^{-1/2} W` are orthogonal, for every :math:`\beta`.
    """
    W, noise, beta = _arrays(W, noise_var, beta)
    V = W / np.sqrt(noise)[:, None]
    log_det = np.log1p(np.linalg.svd(V, compute_uv=False) ** 2 / beta[..., None]).sum(-1)
    gap = np.log1p((V**2).sum(-2) / beta[..., None]).sum(-1) - log_det
    return n / 2 * np.maximum(gap, 0.0)


def latent_use(W: ArrayLike, noise_var: ArrayLike, cov: Array, beta: ArrayLike = 1.0) -> LatentUse:
    """Return posterior variances, power of the mean, and KL from the prior, latent by latent.

    A pruned latent has variances of 1, the prior's, and neither power nor KL.
    """
    W, noise, beta = _arrays(W, noise_var, beta)
    gram, excess, recognition = _posterior(W, noise, beta)
    exact_var = np.einsum("...kk->...k", np.linalg.inv(np.eye(W.shape[-1]) + gram))
    return LatentUse(exact_var, 1 / (1 + excess), *_kl(excess, recognition, cov))


def gradient(W: ArrayLike, noise_var: ArrayLike, cov: Array, n: int, beta: ArrayLike = 1.0) -> Array:
    r"""Return the gradient of :func:`free_energy` (Eq. 13) with respect to ``W``, (..., L, K), in nats per unit.

    As :math:`q` is at its optimum, only the reconstruction term contributes:

    .. math:: \nabla_W F_{13} = N D^{-1} \bigl[ (I - W R) S R^\top - W \Sigma_q \bigr]
    """
    return n * _evaluate(*_arrays(W, noise_var, beta), cov)[2]


def optimal_weights(cov: Array, noise_var: ArrayLike, n_latents: int, beta: float = 1.0) -> Array:
    r"""Return the weights (L, K) that maximise the free energy at a given noise, in closed form.

    With :math:`\lambda_i, u_i` the eigenvalues and eigenvectors of :math:`D^{-1/2} S D^{-1/2}` in descending order,

    .. math:: w_k = D^{1/2} u_k \sqrt{\max(\lambda_k - \beta, 0)} .

    The replicated log-likelihood is that of data with noise :math:`\beta D`: maximal at the principal directions, in
    any rotation; the mean-field gap vanishes in this one. So ``beta`` does not change the directions, but it shortens
    the weights and prunes every direction with :math:`\lambda_k \le \beta`, and all latents beyond L.
    The largest entry of each column is positive.
    """
    sd = np.sqrt(np.broadcast_to(noise_var, len(cov)))
    ratio, directions = np.linalg.eigh(cov / np.outer(sd, sd))
    columns = sd[:, None] * directions * np.sqrt(np.maximum(ratio - beta, 0.0))
    columns *= np.where(np.abs(columns).max(0) > columns.max(0), -1.0, 1.0)
    return np.pad(columns[:, ::-1], ((0, 0), (0, n_latents)))[:, :n_latents]


def optimal_noise(cov: Array, n_latents: int, beta: float = 1.0) -> float:
    r"""Return the isotropic noise variance that maximises the free energy together with :func:`optimal_weights`.

    The maximised free energy is concave in :math:`\log \sigma^2`, and largest where :math:`u = \beta \sigma^2` solves

    .. math:: \sum_{i \le K} \min(1, \lambda_i / u) + \sum_{i > K} \lambda_i / u = L / \beta ,

    with :math:`\lambda_i` the eigenvalues of ``cov`` in descending order. At ``beta = 1`` this is the mean of the
    remaining eigenvalues, as in probabilistic principal component analysis. All latents are pruned if
    :math:`\beta \ge \lambda_1 / \bar\lambda`. No optimum exists for K at least L with ``beta`` at most 1, or without
    variance outside the first K directions.
    """
    size = len(cov)
    if n_latents >= size and beta <= 1:
        raise ValueError(f"beta must be above 1 for {n_latents} latents in {size} dimensions, got {beta:g}")
    eigenvalues = np.maximum(np.linalg.eigvalsh(cov)[::-1], 0.0)
    # The left side decreases in u: the solution is the first number of active latents consistent with its u.
    for active in range(min(n_latents, size), -1, -1):
        share, rest = size / beta - active, eigenvalues[active:].sum()
        if share > 0 and (active == 0 or rest <= share * eigenvalues[active - 1]):
            break
    if rest <= 0:
        raise ValueError(f"cov must have variance outside the first {active} directions for a noise variance to exist")
    return float(rest / share / beta)


def beta_path(cov: Array, n_latents: int, betas: Array, noise_var: float | None = None) -> BetaPath:
    """Return the optimal model for each of ``betas`` (B,), at ``noise_var`` or else at its :func:`optimal_noise`."""
    noise = np.array([optimal_noise(cov, n_latents, beta) if noise_var is None else noise_var for beta in betas])
    weights = [optimal_weights(cov, var, n_latents, beta) for var, beta in zip(noise, betas, strict=True)]
    return BetaPath((np.array(weights) ** 2).sum(axis=1), noise)


def misalignment(W: ArrayLike, noise_var: ArrayLike, cov: Array) -> Array:
    r"""Return the angle between each column of ``W`` and its image under ``cov``, in degrees, (..., K).

    In units of the noise, :math:`v = D^{-1/2} w_k` is a principal direction when :math:`D^{-1/2} S D^{-1/2}` does not
    turn it; the angle is that of the turn. It is also defined where principal directions are tied, and is 0 for a
    zero column.
    """
    W, noise, _ = _arrays(W, noise_var)
    sd = np.sqrt(noise)
    column = W / sd[:, None]
    image = cov / np.outer(sd, sd) @ column
    power, along = ((column * other).sum(-2, keepdims=True) for other in (column, image))
    across = np.linalg.norm(power * image - along * column, axis=-2)
    return np.degrees(np.arctan2(across, (along * np.sqrt(power))[..., 0, :]))


def fit(W: ArrayLike, noise_var: ArrayLike, cov: Array, n: int, beta: float = 1.0, max_iterations: int = 2000) -> Fit:
    """Maximise the free energy (Eq. 13) from the weights ``W`` (L, K) at fixed noise, by L-BFGS.

    The search does not use :func:`optimal_weights`: it shows which of the equally likely solutions an optimiser
    reaches. It raises ``RuntimeError`` if it does not converge within ``max_iterations``.
    """
    start, noise, weight = _arrays(W, noise_var, beta)

    def loss(flat: Array) -> tuple[Any, Array]:
        # Per data point, so that the stopping rule does not depend on their number.
        reconstruction, kl, gradient = _evaluate(flat.reshape(start.shape), noise, weight, cov)
        return weight * kl - reconstruction, -gradient.ravel()

    options = {"maxiter": max_iterations, "ftol": 0.0, "gtol": 1e-9}
    result = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options=options)
    if result.nit >= max_iterations:
        raise RuntimeError(f"fit did not converge within max_iterations = {max_iterations} steps")
    return Fit(result.x.reshape(start.shape), -n * result.fun)
