r"""Factor analysis under mean-field variational inference, in closed form (App. B.1-B.6).

The model (Eq. 14) has :math:`K` latents, :math:`L` observed dimensions and diagonal noise,

.. math:: z_n \sim \mathcal N(0, I), \qquad x_n \mid z_n \sim \mathcal N(W z_n, D), \qquad n = 1 \dots N .

Everything below depends on the data only through their number :math:`N` and their second moments
:math:`S = \Sigma_x + \mu_x \mu_x^\top = \frac1N \sum_n x_n x_n^\top`, so no data point is ever touched.

**Two conventions for** :math:`\beta`. Eq. 13 weighs the KL term, Eq. 16 divides the reconstruction term:

.. math::
    F_{13} = \mathbb E_q \log p(x \mid z) - \beta\, \mathrm{KL}(q \,\|\, p),

    F_{16} = \tfrac1\beta\, \mathbb E_q \log p(x \mid z) - \mathrm{KL}(q \,\|\, p) = F_{13} / \beta .

``free_energy`` is :math:`F_{13}`, the objective that a beta-VAE trains; ``replicated_free_energy`` is :math:`F_{16}`,
ordinary variational inference on :math:`M = 1/\beta` replicas of every observation. Both have the same optimal
:math:`q`.

**Why rotation matters.** With :math:`\tilde\Lambda = I + W^\top D^{-1} W / \beta` the precision of the posterior, the
optimal mean-field :math:`q` has the posterior's mean and the precision :math:`\operatorname{diag} \tilde\Lambda`, and
misses the replicated log-likelihood by

.. math:: \frac N2 \Bigl( \sum_k \log \tilde\Lambda_{kk} - \log\det \tilde\Lambda \Bigr) \ge 0 .

That is Hadamard's inequality: equality holds exactly when the columns of :math:`D^{-1/2} W` are orthogonal, whatever
:math:`\beta` is.

Shapes: ``W`` is ``(..., L, K)``, so that a whole curve is one call; ``beta`` is a number or an array that broadcasts
with the leading shape of ``W``; ``noise_var`` is a number or ``(L,)``; ``cov`` is ``(L, L)``. A result without
leading shape is a Python float. All log-densities and free energies are sums over the :math:`N` data points, in nats.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize

__all__ = [
    "BetaPath",
    "Fit",
    "FreeEnergy",
    "LatentUse",
    "MeanField",
    "Posterior",
    "aligned_weights",
    "beta_path",
    "fit",
    "free_energy",
    "free_energy_terms",
    "gradient",
    "latent_use",
    "log_likelihood",
    "mean_field",
    "mean_field_gap",
    "misalignment",
    "optimal_noise",
    "optimal_weights",
    "overcomplete_weights",
    "posterior",
    "recognition_weights",
    "replicated_free_energy",
    "replicated_log_likelihood",
    "rotate",
    "sample",
    "second_moment",
]

Array = NDArray[np.float64]


class Posterior(NamedTuple):
    r"""A Gaussian posterior whose covariance is the same for every data point.

    Attributes
    ----------
    recognition : array, (..., K, L)
        Recognition weights :math:`R`; the mean given :math:`x_n` is :math:`R x_n`.
    cov : array, (..., K, K)
        Posterior covariance.
    """

    recognition: Array
    cov: Array


class MeanField(NamedTuple):
    r"""The best factorised Gaussian :math:`q(z_n) = \prod_k q(z_{nk})`.

    Attributes
    ----------
    recognition : array, (..., K, L)
        Recognition weights :math:`R`; the mean given :math:`x_n` is :math:`R x_n`.
    var : array, (..., K)
        Variance of every latent.
    """

    recognition: Array
    var: Array


class FreeEnergy(NamedTuple):
    r"""The two terms of the free energy at the optimal mean-field :math:`q`, in nats, summed over the data.

    Attributes
    ----------
    reconstruction : float or array
        :math:`\mathbb E_q \log p(x \mid z)`, without the factor :math:`1/\beta`.
    kl : float or array
        :math:`\mathrm{KL}(q(z) \,\|\, p(z))`, without the factor :math:`\beta`.
    """

    reconstruction: float | Array
    kl: float | Array


class LatentUse(NamedTuple):
    r"""What each latent carries, averaged over the data. Every field has shape ``(..., K)``.

    Attributes
    ----------
    exact_var : array
        Marginal variance under the exact (beta-scaled) posterior, the diagonal of :math:`\tilde\Sigma`.
    var : array
        Variance under the mean-field :math:`q`. Never larger than ``exact_var``.
    mean_power : array
        Mean square of the posterior mean over the data, the diagonal of :math:`R S R^\top`.
    kl : array
        :math:`\mathrm{KL}(q(z_k) \,\|\, p(z_k))` in nats for each data point; 0 for a pruned latent.
    """

    exact_var: Array
    var: Array
    mean_power: Array
    kl: Array


class BetaPath(NamedTuple):
    """The optimal model along a list of betas.

    Attributes
    ----------
    squared_lengths : array, (B, K)
        Squared length of each column of the optimal weights.
    noise_var : array, (B,)
        Isotropic noise variance.
    """

    squared_lengths: Array
    noise_var: Array


class Fit(NamedTuple):
    """Weights found by ``fit`` and the free energy there (Eq. 13, nats)."""

    W: Array
    free_energy: float


# --- checks ---------------------------------------------------------------------------------------------------------


def _real_array(name: str, value: ArrayLike) -> Array:
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number or an array of them, got {type(value).__name__}.") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, but it contains NaN or infinity.")
    return array


def _check_model(W: ArrayLike, noise_var: ArrayLike) -> tuple[Array, Array]:
    """Return ``W`` (..., L, K) and the noise variances (L,), or raise."""
    W = _real_array("W", W)
    if W.ndim < 2 or 0 in W.shape[-2:]:
        raise ValueError(f"W must have the shape (..., L, K) with L and K at least 1, got shape {W.shape}.")
    return W, _check_noise(noise_var, W.shape[-2])


def _check_noise(noise_var: ArrayLike, n_observed: int) -> Array:
    noise = _real_array("noise_var", noise_var)
    if noise.shape not in ((), (n_observed,)):
        raise ValueError(f"noise_var must be a number or have the shape ({n_observed},), got shape {noise.shape}.")
    if (noise <= 0).any():
        raise ValueError(
            f"noise_var must be positive, got {noise.min():g}: without noise the posterior collapses onto a point "
            "and the likelihood is unbounded."
        )
    return np.broadcast_to(noise, (n_observed,))


def _check_cov(cov: ArrayLike, n_observed: int | None = None) -> Array:
    cov = _real_array("cov", cov)
    if cov.ndim != 2 or cov.shape[0] != cov.shape[1] or cov.size == 0:
        raise ValueError(f"cov must be a square matrix, got shape {cov.shape}.")
    if n_observed is not None and len(cov) != n_observed:
        raise ValueError(f"cov must have the shape ({n_observed}, {n_observed}) to go with W, got shape {cov.shape}.")
    scale = np.abs(cov).max()
    if np.abs(cov - cov.T).max() > 1e-8 * scale:
        raise ValueError("cov must be symmetric.")
    cov = (cov + cov.T) / 2
    smallest = np.linalg.eigvalsh(cov)[0]
    if smallest < -1e-8 * scale:
        raise ValueError(f"cov must be positive semi-definite, but its smallest eigenvalue is {smallest:g}.")
    return cov


def _check_n(n: float) -> int:
    value = _real_array("n", n)
    if value.ndim or value < 1 or value != np.floor(value):
        raise ValueError(f"n must be a whole number of data points, at least 1, got {n!r}.")
    return int(value)


def _check_beta(beta: ArrayLike, batch: tuple[int, ...]) -> Array:
    beta = _real_array("beta", beta)
    if (beta <= 0).any():
        raise ValueError(
            f"beta must be positive, got {beta.min():g}: at 0 the optimal q is a point mass and its KL infinite."
        )
    try:
        np.broadcast_shapes(beta.shape, batch)
    except ValueError:
        raise ValueError(f"beta must broadcast with the leading shape {batch} of W, got shape {beta.shape}.") from None
    return beta


def _check_single_beta(beta: float) -> Array:
    beta = _check_beta(beta, ())
    if beta.ndim:
        raise ValueError(f"beta must be a number, got shape {beta.shape}.")
    return beta


def _check_count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}.")
    return int(value)


def _number(value: Array) -> float | Array:
    return float(value) if np.ndim(value) == 0 else value


# --- the model and its rotations ------------------------------------------------------------------------------------


def second_moment(x: ArrayLike) -> Array:
    r"""Second-moment matrix :math:`S = \Sigma_x + \mu_x \mu_x^\top` of data ``x``.

    Parameters
    ----------
    x : array, (N, L)
        Data, one row a data point; a single row is fine.

    Returns
    -------
    array, (L, L)

    Raises
    ------
    ValueError
        When ``x`` is not a matrix with at least one row, or is not finite.
    """
    x = _real_array("x", x)
    if x.ndim != 2 or x.size == 0:
        raise ValueError(f"x must have the shape (N, L) with N and L at least 1, got shape {x.shape}.")
    return x.T @ x / len(x)


def sample(W: ArrayLike, noise_var: ArrayLike, n: int, rng: np.random.Generator) -> Array:
    """Draw ``n`` data points from the model (Eq. 14).

    Parameters
    ----------
    W : array, (L, K)
        Weights.
    noise_var : float or array, (L,)
        Noise variances, the diagonal of D.
    n : int
        Number of data points.
    rng : numpy.random.Generator
        Source of randomness.

    Returns
    -------
    array, (n, L)
    """
    W, noise = _check_model(W, noise_var)
    if W.ndim != 2:
        raise ValueError(f"W must have the shape (L, K), got shape {W.shape}.")
    n = _check_n(n)
    return rng.standard_normal((n, W.shape[1])) @ W.T + np.sqrt(noise) * rng.standard_normal((n, W.shape[0]))


def rotate(W: ArrayLike, angle: ArrayLike, latents: tuple[int, int] = (0, 1)) -> Array:
    r"""Rotate the latent space: :math:`W' = W R(\theta)^\top` for :math:`z' = R(\theta) z` (App. B.3).

    The likelihood does not change, as :math:`W' W'^\top = W W^\top`. The two columns named by ``latents`` turn, the
    others stay.

    Parameters
    ----------
    W : array, (L, K)
        Weights.
    angle : float or array, (...)
        Angles in radians.
    latents : pair of int
        The plane of the rotation.

    Returns
    -------
    array, (..., L, K)
        One rotated matrix for each angle.

    Raises
    ------
    ValueError
        When ``W`` is no matrix with two such columns.
    """
    W = _real_array("W", W)
    angle = _real_array("angle", angle)
    i, j = latents
    if W.ndim != 2 or i == j or not {i, j} <= set(range(W.shape[1])):
        raise ValueError(f"latents must name two different columns of W of shape {W.shape}, got {latents}.")
    rotated = np.broadcast_to(W, (*angle.shape, *W.shape)).copy()
    cos, sin = np.cos(angle)[..., None], np.sin(angle)[..., None]
    rotated[..., i] = cos * W[:, i] - sin * W[:, j]
    rotated[..., j] = sin * W[:, i] + cos * W[:, j]
    return rotated


def overcomplete_weights(alpha: ArrayLike, rho: float = 1.0) -> Array:
    r"""Weights of Eq. 17: three latents for two-dimensional data.

    .. math::
        W = \frac{1}{\sqrt 2} \begin{pmatrix} \alpha & \sqrt{1 - \alpha^2} & \rho \\
                                              \alpha & \sqrt{1 - \alpha^2} & -\rho \end{pmatrix}

    The first two latents share one direction, in proportions that leave :math:`W W^\top` unchanged, so every
    ``alpha`` has the same likelihood. At ``alpha = 0`` the first latent is pruned. (The second amplitude is called
    :math:`\beta` in the paper; it is not the weight of the KL term.)

    Parameters
    ----------
    alpha : float or array, (...)
        Amplitude of the first latent, from -1 to 1.
    rho : float
        Amplitude of the third latent.

    Returns
    -------
    array, (..., 2, 3)

    Raises
    ------
    ValueError
        When ``alpha`` lies outside [-1, 1].
    """
    alpha = _real_array("alpha", alpha)
    rho = _real_array("rho", rho)
    if (np.abs(alpha) > 1).any():
        raise ValueError(f"alpha must lie in [-1, 1], got {alpha.flat[np.abs(alpha).argmax()]:g}.")
    amplitude = np.stack(np.broadcast_arrays(alpha, np.sqrt(1 - alpha**2), rho), axis=-1)
    return amplitude[..., None, :] * np.array([[1, 1, 1], [1, 1, -1]]) / np.sqrt(2)


def aligned_weights(
    n: int = 100,
    noise_var: float = 0.01,
    log_likelihood: float = -17.82,
    free_energy: float = -57.16,
    angle: float = np.pi / 4,
) -> Array:
    r"""Orthogonal weights that give a wanted log-likelihood, and a wanted free energy once rotated by ``angle``.

    The paper prints two values for its first experiment (B.3) but not the constants behind them. For ``L = K = 2``,
    isotropic noise and data whose covariance is the model's (a maximum-likelihood solution), write :math:`c_1 \ge
    c_2` for the eigenvalues of :math:`W W^\top + \sigma^2 I`, :math:`m` for their mean and :math:`d` for half their
    difference. Then

    .. math::
        \log p = -\tfrac N2 \bigl(2 \log 2\pi + 2 + \log c_1 c_2\bigr),

        \log p - F(\theta) = \tfrac N2 \log\Bigl(1 + \frac{d^2 \sin^2 2\theta}{c_1 c_2}\Bigr),

    with :math:`c_1 c_2 = m^2 - d^2`: two equations for two eigenvalues. They are fixed by ``n`` alone; the noise
    variance is free below :math:`c_2`, and what it leaves is the squared length of the columns.

    Parameters
    ----------
    n : int
        Number of data points.
    noise_var : float
        Isotropic noise variance.
    log_likelihood, free_energy : float
        Wanted values in nats, at beta = 1; the paper's by default. The free energy is the one at ``angle``.
    angle : float
        Rotation in radians at which the free energy is wanted.

    Returns
    -------
    array, (2, 2)
        Diagonal weights, the longer column first. The matching data covariance is ``W @ W.T + noise_var * np.eye(2)``.

    Raises
    ------
    ValueError
        When the free energy is not below the log-likelihood, the rotation leaves the columns orthogonal, or the noise
        variance is too large for ``n``.
    """
    n = _check_n(n)
    noise = _check_noise(noise_var, 1)[0]
    target, lower = _real_array("log_likelihood", log_likelihood), _real_array("free_energy", free_energy)
    if target.ndim or lower.ndim or lower >= target:
        raise ValueError(f"free_energy must be below log_likelihood = {log_likelihood!r}, got {free_energy!r}.")
    turn = np.sin(2 * _real_array("angle", angle)) ** 2
    if turn.ndim or turn < 1e-12:
        raise ValueError(f"angle must be a number that is no multiple of pi / 2, got {angle!r}.")
    det = np.exp(-2 * target / n - 2 - 2 * np.log(2 * np.pi))
    half_difference = np.sqrt(det * np.expm1(2 * (target - lower) / n) / turn)
    largest = np.hypot(np.sqrt(det), half_difference) + half_difference
    eigenvalues = np.array([largest, det / largest])
    if not noise < eigenvalues[1]:
        raise ValueError(
            f"noise_var must be below {eigenvalues[1]:g}, the smaller variance that these values imply for n = {n}, "
            f"got {noise:g}."
        )
    return np.diag(np.sqrt(eigenvalues - noise))


# --- likelihood and posteriors --------------------------------------------------------------------------------------


def log_likelihood(W: ArrayLike, noise_var: ArrayLike, cov: ArrayLike, n: int) -> float | Array:
    r"""Log-likelihood of the data, with the latents integrated out (B.2).

    .. math:: -\frac N2 \Bigl[\log\det 2\pi (W W^\top + D) + \operatorname{tr} (W W^\top + D)^{-1} S\Bigr]

    Parameters
    ----------
    W : array, (..., L, K)
        Weights, or a stack of them. A zero column is a pruned latent.
    noise_var : float or array, (L,)
        Noise variances, the diagonal of D.
    cov : array, (L, L)
        Second moments of the data about 0, see ``second_moment``.
    n : int
        Number of data points.

    Returns
    -------
    float, or array of the leading shape of ``W``
        Nats, summed over the data.

    Raises
    ------
    ValueError
        When a shape does not fit, an entry is NaN or infinite, a noise variance is not positive, ``cov`` is not
        symmetric positive semi-definite, or ``n`` is not a whole number of at least 1.
    """
    return replicated_log_likelihood(W, noise_var, cov, n, beta=1.0)


def replicated_log_likelihood(
    W: ArrayLike, noise_var: ArrayLike, cov: ArrayLike, n: int, beta: ArrayLike = 1.0
) -> float | Array:
    r"""Log-likelihood of the replicated data (B.1), :math:`\sum_n \log \int p(x_n \mid z)^{1/\beta}\, p(z)\, dz`.

    It bounds ``replicated_free_energy`` (Eq. 16) as the log-likelihood bounds the free energy, and equals
    ``log_likelihood`` at ``beta = 1``. Parameters and errors as in ``free_energy``.

    Returns
    -------
    float or array
        Nats, summed over the data.
    """
    W, noise = _check_model(W, noise_var)
    cov = _check_cov(cov, len(noise))
    n = _check_n(n)
    beta = _check_beta(beta, W.shape[:-2])
    # In units of the noise the covariance is I + V V^T: its singular vectors give determinant and inverse without
    # cancellation, however small the noise is.
    sd = np.sqrt(noise)
    left, singular, _ = np.linalg.svd(W / sd[:, None])
    signal = np.zeros(left.shape[:-1])
    signal[..., : singular.shape[-1]] = singular**2
    spread = np.einsum("...li,lm,...mi->...i", left, cov / np.outer(sd, sd), left)
    log_det = np.log1p(signal / beta[..., None]).sum(-1) + np.log(2 * np.pi * noise).sum() / beta
    return _number(-n / 2 * (log_det + (spread / (beta[..., None] + signal)).sum(-1)))


def posterior(W: ArrayLike, noise_var: ArrayLike, beta: ArrayLike = 1.0) -> Posterior:
    r"""Exact posterior of the latents (Eq. 15), beta-scaled (B.2).

    .. math:: \tilde\Sigma = (I + W^\top D^{-1} W / \beta)^{-1}, \qquad R = \tilde\Sigma W^\top D^{-1} / \beta

    Parameters
    ----------
    W : array, (..., L, K)
        Weights, or a stack of them.
    noise_var : float or array, (L,)
        Noise variances, the diagonal of D.
    beta : float or array
        Weight of the KL term; 1 is the model's own posterior.

    Returns
    -------
    Posterior
        Recognition weights (..., K, L) and covariance (..., K, K).

    Raises
    ------
    ValueError
        When a shape does not fit, an entry is NaN or infinite, or a noise variance or ``beta`` is not positive.
    """
    W, noise = _check_model(W, noise_var)
    beta = _check_beta(beta, W.shape[:-2])
    cov = np.linalg.inv(_precision(W, noise, beta))
    scaled = np.swapaxes(W, -1, -2) / noise / beta[..., None, None]
    return Posterior(cov @ scaled, (cov + np.swapaxes(cov, -1, -2)) / 2)


def recognition_weights(W: ArrayLike, noise_var: ArrayLike, beta: ArrayLike = 1.0) -> Array:
    r"""Recognition weights :math:`R(\beta)` (..., K, L): the posterior mean of :math:`x_n` is :math:`R x_n` (B.2).

    The exact and the mean-field posterior share them. Parameters and errors as in ``posterior``.
    """
    W, noise = _check_model(W, noise_var)
    return _recognition(W, noise, _check_beta(beta, W.shape[:-2]))


def mean_field(W: ArrayLike, noise_var: ArrayLike, beta: ArrayLike = 1.0) -> MeanField:
    r"""Mean-field posterior: the exact posterior's mean, and the reciprocal diagonal of its precision (B.2).

    It maximises Eq. 13, and so Eq. 16, over all factorised :math:`q`. Parameters and errors as in ``posterior``.

    Returns
    -------
    MeanField
        Recognition weights (..., K, L) and variances (..., K).
    """
    W, noise = _check_model(W, noise_var)
    beta = _check_beta(beta, W.shape[:-2])
    return MeanField(_recognition(W, noise, beta), 1 / (1 + _excess_precision(W, noise, beta)))


def _precision(W: Array, noise: Array, beta: Array) -> Array:
    gram = np.swapaxes(W, -1, -2) @ (W / noise[:, None])
    return np.eye(W.shape[-1]) + gram / beta[..., None, None]


def _recognition(W: Array, noise: Array, beta: Array) -> Array:
    return np.linalg.solve(_precision(W, noise, beta), np.swapaxes(W, -1, -2) / noise / beta[..., None, None])


def _excess_precision(W: Array, noise: Array, beta: Array) -> Array:
    """Precision of each latent beyond the prior's, shape (..., K)."""
    return (W**2 / noise[:, None]).sum(-2) / beta[..., None]


# --- free energy ----------------------------------------------------------------------------------------------------


def free_energy_terms(W: ArrayLike, noise_var: ArrayLike, cov: ArrayLike, n: int, beta: ArrayLike = 1.0) -> FreeEnergy:
    r"""Reconstruction and KL of the free energy, at the mean-field :math:`q` that is best for ``beta`` (Eq. 13-16).

    .. math::
        \mathbb E_q \log p(x \mid z) &= -\tfrac N2 \bigl[\log\det 2\pi D
            + \operatorname{tr} D^{-1} (I - W R) S (I - W R)^\top \\
            &\qquad + \operatorname{tr} W^\top D^{-1} W \Sigma_q \bigr] \\
        \mathrm{KL}(q \,\|\, p) &= \tfrac N2 \bigl[\operatorname{tr} \Sigma_q - K - \log\det \Sigma_q
            + \operatorname{tr} R S R^\top \bigr]

    Neither term carries a factor of ``beta``: combine them as Eq. 13 or Eq. 16 say, or take their plain difference to
    see the evidence lower bound that ``beta`` leaves. Parameters and errors as in ``free_energy``.

    Returns
    -------
    FreeEnergy
        ``reconstruction`` and ``kl``, in nats, summed over the data.
    """
    W, noise = _check_model(W, noise_var)
    cov = _check_cov(cov, len(noise))
    n = _check_n(n)
    return _terms(W, noise, cov, n, _check_beta(beta, W.shape[:-2]))


def _terms(W: Array, noise: Array, cov: Array, n: int, beta: Array) -> FreeEnergy:
    recognition = _recognition(W, noise, beta)
    excess = _excess_precision(W, noise, beta)
    residual = np.eye(len(noise)) - W @ recognition
    misfit = (residual @ cov * residual / noise[:, None]).sum((-2, -1))
    blur = (beta[..., None] * excess / (1 + excess)).sum(-1)
    reconstruction = -n / 2 * (np.log(2 * np.pi * noise).sum() + misfit + blur)
    kl = n * _kl_per_latent(recognition, excess, cov).sum(-1)
    return FreeEnergy(_number(reconstruction), _number(kl))


def _mean_power(recognition: Array, cov: Array) -> Array:
    return (recognition @ cov * recognition).sum(-1)


def _kl_per_latent(recognition: Array, excess: Array, cov: Array) -> Array:
    # var - 1 - log var with var = 1 / (1 + excess), exact also for a latent that is almost pruned.
    power = _mean_power(recognition, cov)
    return (np.log1p(excess) - excess / (1 + excess) + power) / 2


def free_energy(W: ArrayLike, noise_var: ArrayLike, cov: ArrayLike, n: int, beta: ArrayLike = 1.0) -> float | Array:
    r"""Free energy of Eq. 13 at its optimal mean-field :math:`q`.

    .. math:: \mathbb E_q \log p(x \mid z) - \beta\, \mathrm{KL}(q \,\|\, p)

    At ``beta = 1`` it is the evidence lower bound. As ``beta`` falls to 0 it tends to the log-density of the
    least-squares reconstruction; at 0 itself the optimal :math:`q` is a point mass and the call is refused.

    Parameters
    ----------
    W : array, (..., L, K)
        Weights, or a stack of them. A zero column is a pruned latent, whose posterior is the prior.
    noise_var : float or array, (L,)
        Noise variances, the diagonal of D.
    cov : array, (L, L)
        Second moments of the data about 0, see ``second_moment``.
    n : int
        Number of data points.
    beta : float or array
        Weight of the KL term, positive; broadcasts with the leading shape of ``W``.

    Returns
    -------
    float, or array
        Nats, summed over the data; an array of the common leading shape of ``W`` and ``beta`` when there is one.

    Raises
    ------
    ValueError
        When a shape does not fit, an entry is NaN or infinite, a noise variance or ``beta`` is not positive, ``cov``
        is not symmetric positive semi-definite, or ``n`` is not a whole number of at least 1.

    See Also
    --------
    replicated_free_energy : the same in the convention of Eq. 16.

    Examples
    --------
    Turning the latents leaves the likelihood and lowers the free energy:

    >>> W = aligned_weights(n=100, noise_var=0.01)
    >>> cov = W @ W.T + 0.01 * np.eye(2)
    >>> angles = np.array([0.0, np.pi / 4])
    >>> log_likelihood(rotate(W, angles), 0.01, cov, n=100).round(2)
    array([-17.82, -17.82])
    >>> free_energy(rotate(W, angles), 0.01, cov, n=100).round(2)
    array([-17.82, -57.16])
    """
    terms = free_energy_terms(W, noise_var, cov, n, beta)
    return _number(terms.reconstruction - np.asarray(beta, dtype=np.float64) * terms.kl)


def replicated_free_energy(
    W: ArrayLike, noise_var: ArrayLike, cov: ArrayLike, n: int, beta: ArrayLike = 1.0
) -> float | Array:
    r"""Free energy of Eq. 16, :math:`\frac1\beta \mathbb E_q \log p(x \mid z) - \mathrm{KL}(q \,\|\, p)`.

    That is ``free_energy / beta``: variational inference on :math:`1/\beta` replicas of every observation (B.1). It
    lies below ``replicated_log_likelihood`` by ``mean_field_gap``. Parameters, result and errors as in
    ``free_energy``.
    """
    terms = free_energy_terms(W, noise_var, cov, n, beta)
    return _number(terms.reconstruction / np.asarray(beta, dtype=np.float64) - terms.kl)


def mean_field_gap(W: ArrayLike, noise_var: ArrayLike, n: int, beta: ArrayLike = 1.0) -> float | Array:
    r"""What the mean-field :math:`q` misses of the replicated log-likelihood: the divergence of Eq. 4.

    .. math:: \frac N2 \Bigl( \sum_k \log \tilde\Lambda_{kk} - \log\det \tilde\Lambda \Bigr),
              \qquad \tilde\Lambda = I + W^\top D^{-1} W / \beta

    This is :math:`\mathrm{KL}(q(z) \,\|\, p(z \mid x))`, summed over the data.

    Zero exactly when the columns of :math:`D^{-1/2} W` are orthogonal. In the convention of Eq. 13 the gap is
    ``beta`` times this. Parameters and errors as in ``free_energy``.

    Returns
    -------
    float or array
        Nats, summed over the data, in the convention of Eq. 16.
    """
    W, noise = _check_model(W, noise_var)
    n = _check_n(n)
    beta = _check_beta(beta, W.shape[:-2])
    singular = np.linalg.svd(W / np.sqrt(noise)[:, None], compute_uv=False)
    log_det = np.log1p(singular**2 / beta[..., None]).sum(-1)
    gap = np.log1p(_excess_precision(W, noise, beta)).sum(-1) - log_det
    return _number(n / 2 * np.maximum(gap, 0.0))


def latent_use(W: ArrayLike, noise_var: ArrayLike, cov: ArrayLike, beta: ArrayLike = 1.0) -> LatentUse:
    """How much each latent carries: posterior variances, power of the mean, and KL from the prior, latent by latent.

    A pruned latent has variances of 1, the prior's, and neither power nor KL. Parameters and errors as in
    ``free_energy``.

    Returns
    -------
    LatentUse
        Arrays of shape (..., K); ``n * kl.sum(-1)`` is the KL term of ``free_energy_terms``.
    """
    W, noise = _check_model(W, noise_var)
    cov = _check_cov(cov, len(noise))
    beta = _check_beta(beta, W.shape[:-2])
    recognition, exact_cov = posterior(W, noise, beta)
    excess = _excess_precision(W, noise, beta)
    return LatentUse(
        exact_var=np.diagonal(exact_cov, axis1=-2, axis2=-1).copy(),
        var=1 / (1 + excess),
        mean_power=_mean_power(recognition, cov),
        kl=_kl_per_latent(recognition, excess, cov),
    )


# --- optimal weights ------------------------------------------------------------------------------------------------


def gradient(W: ArrayLike, noise_var: ArrayLike, cov: ArrayLike, n: int, beta: ArrayLike = 1.0) -> Array:
    r"""Gradient of ``free_energy`` (Eq. 13) with respect to ``W``.

    As :math:`q` is at its optimum it may be held fixed, so only the reconstruction term contributes:

    .. math:: \nabla_W F_{13} = N D^{-1} \bigl[ (I - W R) S R^\top - W \Sigma_q \bigr]

    Parameters and errors as in ``free_energy``.

    Returns
    -------
    array, (..., L, K)
        Nats per unit of ``W``.
    """
    W, noise = _check_model(W, noise_var)
    cov = _check_cov(cov, len(noise))
    n = _check_n(n)
    return _gradient(W, noise, cov, n, _check_beta(beta, W.shape[:-2]))


def _gradient(W: Array, noise: Array, cov: Array, n: int, beta: Array) -> Array:
    recognition = _recognition(W, noise, beta)
    var = 1 / (1 + _excess_precision(W, noise, beta))
    residual = np.eye(len(noise)) - W @ recognition
    return n / noise[:, None] * (residual @ cov @ np.swapaxes(recognition, -1, -2) - W * var[..., None, :])


def optimal_weights(cov: ArrayLike, noise_var: ArrayLike, n_latents: int, beta: float = 1.0) -> Array:
    r"""Weights that maximise the free energy at a given noise, for any beta, in closed form.

    With :math:`\lambda_i, u_i` the eigenvalues and eigenvectors of :math:`D^{-1/2} S D^{-1/2}` in falling order,

    .. math:: w_k = D^{1/2} u_k \sqrt{\max(\lambda_k - \beta, 0)} .

    The replicated log-likelihood is that of data with noise :math:`\beta D`; it is largest at the principal
    directions, in any rotation, and the mean-field gap vanishes in this one. So ``beta`` does not touch the
    directions, but it shortens the weights and prunes every direction with :math:`\lambda_k \le \beta`.

    Parameters
    ----------
    cov : array, (L, L)
        Second moments of the data about 0.
    noise_var : float or array, (L,)
        Noise variances, the diagonal of D.
    n_latents : int
        Number of latents K; those beyond L are pruned.
    beta : float
        Weight of the KL term, positive.

    Returns
    -------
    array, (L, K)
        Columns in order of falling :math:`\lambda_k`, the largest entry of each positive.

    Raises
    ------
    ValueError
        When a shape does not fit, an entry is not finite, or a noise variance, ``n_latents`` or ``beta`` is not
        positive.
    """
    cov = _check_cov(cov)
    noise = _check_noise(noise_var, len(cov))
    n_latents = _check_count("n_latents", n_latents)
    beta = _check_single_beta(beta)
    sd = np.sqrt(noise)
    ratio, directions = np.linalg.eigh(cov / np.outer(sd, sd))
    kept = min(n_latents, len(cov))
    ratio, directions = ratio[::-1][:kept], directions[:, ::-1][:, :kept]
    columns = sd[:, None] * directions * np.sqrt(np.maximum(ratio - beta, 0.0))
    columns = columns * np.where(columns[np.abs(columns).argmax(0), np.arange(kept)] < 0, -1.0, 1.0)
    return np.hstack([columns, np.zeros((len(cov), n_latents - kept))])


def optimal_noise(cov: ArrayLike, n_latents: int, beta: float = 1.0) -> float:
    r"""Isotropic noise variance that maximises the free energy together with its weights, in closed form.

    With ``optimal_weights`` put in, the free energy is concave in :math:`\log \sigma^2`, and largest where :math:`u =
    \beta \sigma^2` solves

    .. math:: \sum_{i \le K} \min(1, \lambda_i / u) + \sum_{i > K} \lambda_i / u = L / \beta ,

    with :math:`\lambda_i` the eigenvalues of ``cov`` in falling order. At ``beta = 1`` this is the mean of the
    eigenvalues left out, as in probabilistic principal component analysis. No latent survives from :math:`\beta =
    \lambda_1 / \bar\lambda` on.

    Parameters
    ----------
    cov : array, (L, L)
        Second moments of the data about 0.
    n_latents : int
        Number of latents K.
    beta : float
        Weight of the KL term, positive.

    Returns
    -------
    float
        :math:`\sigma^2`; pass it to ``optimal_weights`` for the weights that go with it.

    Raises
    ------
    ValueError
        As in ``optimal_weights``, and where no noise is best: with K at least L and ``beta`` at most 1, or with no
        variance outside the first K directions.
    """
    cov = _check_cov(cov)
    n_latents = _check_count("n_latents", n_latents)
    beta = float(_check_single_beta(beta))
    size = len(cov)
    if n_latents >= size and beta <= 1:
        raise ValueError(
            f"beta must be above 1 when n_latents = {n_latents} latents meet {size} dimensions, got {beta:g}: "
            "the less noise, the better."
        )
    eigenvalues = np.maximum(np.linalg.eigvalsh(cov)[::-1], 0.0)
    # The left side falls with u: the first count of survivors that agrees with its own u is the solution.
    for alive in range(min(n_latents, size), -1, -1):
        share, dead = size / beta - alive, eigenvalues[alive:].sum()
        if share > 0 and (alive == 0 or dead <= share * eigenvalues[alive - 1]):
            break
    if dead <= 0:
        raise ValueError(f"cov must have variance outside the first {alive} directions for a noise variance to exist.")
    return float(dead / share / beta)


def beta_path(cov: ArrayLike, n_latents: int, betas: ArrayLike, noise_var: float | None = None) -> BetaPath:
    """Optimal model against beta, with the isotropic noise held at ``noise_var`` or, when that is None, learned too.

    Parameters
    ----------
    cov : array, (L, L)
        Second moments of the data about 0.
    n_latents : int
        Number of latents K.
    betas : array, (B,)
        Weights of the KL term, positive.
    noise_var : float, optional
        Noise variance; by default the ``optimal_noise`` of each beta.

    Returns
    -------
    BetaPath
        Squared column lengths (B, K) and noise variances (B,).

    Raises
    ------
    ValueError
        As in ``optimal_weights`` and, without ``noise_var``, in ``optimal_noise``.
    """
    betas = np.atleast_1d(_check_beta(betas, ()))
    noise = np.array([optimal_noise(cov, n_latents, beta) if noise_var is None else noise_var for beta in betas])
    weights = [optimal_weights(cov, var, n_latents, beta) for var, beta in zip(noise, betas, strict=True)]
    return BetaPath((np.array(weights) ** 2).sum(axis=1), noise)


def misalignment(W: ArrayLike, noise_var: ArrayLike, cov: ArrayLike) -> Array:
    r"""Angle by which each column of ``W`` misses a principal direction, in degrees.

    In units of the noise, :math:`v = D^{-1/2} w_k` is a principal direction when :math:`D^{-1/2} S D^{-1/2}` does not
    turn it; this is the angle of that turn. It is defined also where principal directions are tied. Parameters as in
    ``free_energy``.

    Returns
    -------
    array, (..., K)
        0 for a zero column.

    Raises
    ------
    ValueError
        As in ``free_energy``.
    """
    W, noise = _check_model(W, noise_var)
    cov = _check_cov(cov, len(noise))
    sd = np.sqrt(noise)
    column = W / sd[:, None]
    image = cov / np.outer(sd, sd) @ column
    power = (column**2).sum(-2)
    along = (column * image).sum(-2)
    share = np.divide(along, power, out=np.zeros_like(along), where=power > 0)
    across = np.linalg.norm(image - share[..., None, :] * column, axis=-2)
    return np.degrees(np.arctan2(across * np.sqrt(power), along))


def fit(
    W: ArrayLike, noise_var: ArrayLike, cov: ArrayLike, n: int, beta: float = 1.0, max_iterations: int = 2000
) -> Fit:
    """Climb the free energy (Eq. 13) from the weights ``W``, by L-BFGS with the exact gradient; the noise is held.

    The result does not know ``optimal_weights``: it shows which of the equally likely solutions an optimiser reaches.

    Parameters
    ----------
    W : array, (L, K)
        Where to start.
    noise_var, cov, n, beta
        As in ``free_energy``.
    max_iterations : int
        Limit on the steps.

    Returns
    -------
    Fit
        ``W`` (L, K) and ``free_energy`` there.

    Raises
    ------
    ValueError
        As in ``free_energy``, and when ``W`` is not a single matrix.
    RuntimeError
        When the optimiser does not converge within ``max_iterations``.
    """
    start, noise = _check_model(W, noise_var)
    if start.ndim != 2:
        raise ValueError(f"W must have the shape (L, K), got shape {start.shape}.")
    n = _check_n(n)
    cov = _check_cov(cov, len(noise))
    max_iterations = _check_count("max_iterations", max_iterations)
    weight = _check_single_beta(beta)

    def loss(flat: Array) -> tuple[float, Array]:
        weights = flat.reshape(start.shape)
        # The mean over data points, so that the stopping rule does not depend on their number.
        terms = _terms(weights, noise, cov, 1, weight)
        return weight * terms.kl - terms.reconstruction, -_gradient(weights, noise, cov, 1, weight).ravel()

    result = minimize(
        loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": max_iterations, "ftol": 0.0, "gtol": 1e-9}
    )
    if result.nit >= max_iterations:
        raise RuntimeError(f"fit did not converge within max_iterations = {max_iterations} steps.")
    weights = result.x.reshape(start.shape)
    return Fit(weights, float(free_energy(weights, noise, cov, n, beta)))
