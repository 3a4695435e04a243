r"""The evidence lower bound, its terms, and the objectives of beta-VAE, beta-TCVAE and FactorVAE.

The prior is any ``torch.distributions.Distribution`` of event shape ``(D,)``; only its ``log_prob`` is used, or its KL
divergence. ``z``, ``mean`` and ``log_var`` have shape ``(..., B, D)`` for B images and D latents: one sample of each
posterior, the posterior means and the log-variances. Images are ``(..., B, C, H, W)``, values per image ``(..., B)``,
batch means ``(...)``. The leading dimensions contain several models of one shape, each with its own weight ``beta`` of
shape ``(...)``; one model has none. Everything is in nats. Half precision is computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from isa.aggregate import Sampling, estimate, full_precision

__all__ = ["LIKELIHOODS", "OBJECTIVES", "BetaTCVAETerms", "BetaVAETerms", "FactorVAETerms", "beta_tcvae", "beta_vae"]
__all__ += ["bernoulli_log_likelihood", "density_ratio", "discriminator_loss", "factor_vae", "gaussian_log_density"]
__all__ += ["gaussian_log_likelihood", "kl_closed_form", "kl_monte_carlo", "permute_dims", "standard_normal"]

KL = Literal["monte_carlo", "closed_form"]


def _check_range(x: Tensor) -> None:
    """Refuse integers of 0 to 255. Images in training are floating-point, so their values are never read."""
    if not (x.is_floating_point() or torch.compiler.is_compiling()) and x.max() > 1:
        raise ValueError(f"x must contain values in [0, 1], got {x.max().item()}; divide grey values by 255")


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    r"""Return :math:`\log p(x|z) = \sum_k x_k l_k - \log(1 + e^{l_k})` of every image, shape ``(..., B)``.

    ``logits`` :math:`l` are the decoder's outputs. Pixels ``x`` are in [0, 1], of any dtype.
    """
    _check_range(x)
    (logits,) = full_precision(logits)
    return -F.binary_cross_entropy_with_logits(logits, x.to(logits.dtype), reduction="none").sum((-3, -2, -1))


def gaussian_log_likelihood(decoded: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
    r"""Return :math:`\log p(x|z) = \sum_k \log N(x_k; d_k, s^2)` of every image, shape ``(..., B)``.

    ``decoded`` :math:`d` are the decoder's outputs, ``scale`` :math:`s` the standard deviation of a pixel.
    """
    _check_range(x)
    (decoded,) = full_precision(decoded)
    normal = Normal(decoded, decoded.new_full((), scale), validate_args=False)  # a number would be copied to a GPU
    return normal.log_prob(x.to(decoded.dtype)).sum((-3, -2, -1))


#: Log-likelihoods ``(decoded, x) -> (..., B)`` by name.
LIKELIHOODS: dict[str, Callable[..., Tensor]] = {
    "bernoulli": bernoulli_log_likelihood,
    "gaussian": gaussian_log_likelihood,
}


def standard_normal(
    latent_dim: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Independent:
    """Return N(0, I) over ``latent_dim`` latents, the prior of the ordinary VAE."""
    zeros = torch.zeros(latent_dim, device=device, dtype=dtype)
    return Independent(Normal(zeros, torch.ones_like(zeros)), 1)


def gaussian_log_density(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    r"""Return :math:`\log q(z|x) = \sum_j \log N(z_j; \mu_j, \sigma_j^2)`, shape ``(..., B)``."""
    z, mean, log_var = full_precision(z, mean, log_var)
    return -0.5 * ((z - mean).square() * torch.exp(-log_var) + log_var + math.log(2 * math.pi)).sum(-1)


def kl_monte_carlo(z: Tensor, mean: Tensor, log_var: Tensor, prior: Distribution) -> Tensor:
    r"""Estimate :math:`\mathrm{KL}(q(z|x)\,\|\,p(z))` by one sample, :math:`\log q(z|x) - \log p(z)`, as in Eq. 12.

    The estimates, shape ``(..., B)``, are unbiased; a single one may be negative.
    """
    z, mean, log_var = full_precision(z, mean, log_var)
    return gaussian_log_density(z, mean, log_var) - prior.log_prob(z)


def kl_closed_form(mean: Tensor, log_var: Tensor, prior: Distribution) -> Tensor:
    r"""Return :math:`\mathrm{KL}(q(z|x)\,\|\,p(z))`, shape ``(..., B)``, for an ``Independent`` prior."""
    if not isinstance(prior, Independent):  # PyTorch would draw samples
        raise ValueError(f"{type(prior).__name__} has no closed-form KL divergence from a Gaussian: use kl_monte_carlo")
    mean, log_var = full_precision(mean, log_var)
    # Not validated: posteriors that have diverged must not raise while other models of a pack are in training.
    q = Normal(mean, torch.exp(0.5 * log_var), validate_args=False)
    return kl_divergence(Independent(q, 1, validate_args=False), prior)


def permute_dims(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Permute samples of :math:`q(z)` over the batch, each latent independently: draws of :math:`\prod_j q(z_j)`."""
    order = torch.rand(z.shape, device=z.device, generator=generator).argsort(-2)
    return z.detach().gather(-2, order)


def density_ratio(logits: Tensor) -> Tensor:
    r"""Return FactorVAE's estimate of :math:`\log q(z) - \log \prod_j q(z_j)` for each sample, shape ``(...)``.

    Of the discriminator's logits ``(..., 2)``, 0 is that of samples of :math:`q(z)` and 1 that of permuted ones.
    """
    joint, permuted = full_precision(*logits.unbind(-1))
    return joint - permuted


def discriminator_loss(joint_logits: Tensor, permuted_logits: Tensor) -> Tensor:
    """Return the discriminator's loss: the mean cross-entropy of logits (..., B, 2) of samples and permuted samples."""
    joint, permuted = -density_ratio(joint_logits), density_ratio(permuted_logits)
    return 0.5 * (F.softplus(joint).mean(-1) + F.softplus(permuted).mean(-1))


class BetaVAETerms(NamedTuple):
    """Batch means, each of shape ``(...)``, in nats per image."""

    loss: Tensor  #: The training loss, ``beta * kl - log_likelihood``.
    elbo: Tensor  #: Eq. 1: ``log_likelihood - kl``, for any ``beta``.
    log_likelihood: Tensor  #: Expected log-likelihood of the images, log p(x|z).
    kl: Tensor  #: KL divergence of the posterior from the prior.


class BetaTCVAETerms(NamedTuple):
    """Batch means, each of shape ``(...)``, in nats per image; the last three sum to ``kl``."""

    loss: Tensor  #: The training loss, ``kl + (beta - 1) * total_correlation - log_likelihood``.
    elbo: Tensor  #: Eq. 1: ``log_likelihood - kl``, for any ``beta``.
    log_likelihood: Tensor  #: Expected log-likelihood of the images, log p(x|z).
    kl: Tensor  #: KL divergence of the posterior from the prior, by one sample each (Eq. 12).
    index_code_mi: Tensor  #: Mutual information of image and code, log q(z|x) - log q(z); without gradient.
    total_correlation: Tensor  #: Total correlation over all dimensions, log q(z) - sum_j log q(z_j).
    #: sum_j log q(z_j) - log p(z), for a factorised prior the sum of the dimensions' KL divergences; without gradient.
    dimension_wise_kl: Tensor


class FactorVAETerms(NamedTuple):
    """Batch means, each of shape ``(...)``, in nats per image."""

    loss: Tensor  #: The training loss, ``kl + gamma * total_correlation - log_likelihood``.
    elbo: Tensor  #: Eq. 1: ``log_likelihood - kl``, for any ``gamma``.
    log_likelihood: Tensor  #: Expected log-likelihood of the images, log p(x|z).
    kl: Tensor  #: KL divergence of the posterior from the prior.
    total_correlation: Tensor  #: The discriminator's estimate of the total correlation.


def beta_vae(
    log_likelihood: Tensor,  # (..., B)
    z: Tensor,  # (..., B, D)
    mean: Tensor,  # (..., B, D)
    log_var: Tensor,  # (..., B, D)
    prior: Distribution,
    beta: float | Tensor = 1.0,  # number or (...)
    *,
    kl: KL = "monte_carlo",
) -> BetaVAETerms:
    r"""Return the terms of beta-VAE, Eq. 2: :math:`\mathrm{E}[\log p(x|z)] - \beta\, \mathrm{KL}(q(z|x)\,\|\,p(z))`.

    With an ISA prior this is Eq. 12, ISA-VAE. ``log_likelihood`` is log p(x|z) of every image. The divergence is
    estimated from one sample ``z`` of each posterior, as the authors train every model; ``kl="closed_form"`` is exact.
    """
    exact = kl == "closed_form"
    divergence = kl_closed_form(mean, log_var, prior) if exact else kl_monte_carlo(z, mean, log_var, prior)
    fit, divergence = log_likelihood.mean(-1), divergence.mean(-1)
    return BetaVAETerms(beta * divergence - fit, fit - divergence, fit, divergence)


def beta_tcvae(
    log_likelihood: Tensor,  # (..., B)
    z: Tensor,  # (..., B, D)
    mean: Tensor,  # (..., B, D)
    log_var: Tensor,  # (..., B, D)
    prior: Distribution,
    beta: float | Tensor = 1.0,  # number or (...)
    *,
    dataset_size: int,
    sampling: Sampling = "weighted",
) -> BetaTCVAETerms:
    r"""Return the terms of beta-TCVAE: Eq. 3, with the weight :math:`\beta` on the total correlation.

    .. math::

        \log p(x|z) &- \Big(\log q(z|x) - \log q(z)\Big) - \beta\, \Big(\log q(z) - \sum_j \log q(z_j)\Big) \\
        &- \Big(\sum_j \log q(z_j) - \log p(z)\Big)

    With an ISA prior this is ISA-TCVAE. Its total correlation is still that over all dimensions, and the last term
    contains the prior as a whole, because an ISA prior does not factorise over dimensions. ``dataset_size`` is N, and
    ``sampling`` selects the weights of :mod:`isa.aggregate`; other parameters are those of :func:`beta_vae`.
    """
    plain = beta_vae(log_likelihood, z, mean, log_var, prior)
    correlation, joint = estimate(z, mean, log_var, dataset_size, sampling)
    information = (gaussian_log_density(z, mean, log_var).mean(-1) - joint).detach()
    dimension_wise = (plain.kl - information - correlation).detach()
    loss = plain.loss + (beta - 1) * correlation  # beta = 1 is the ELBO to the last bit
    return BetaTCVAETerms(loss, *plain[1:], information, correlation, dimension_wise)


def factor_vae(
    log_likelihood: Tensor,  # (..., B)
    z: Tensor,  # (..., B, D)
    mean: Tensor,  # (..., B, D)
    log_var: Tensor,  # (..., B, D)
    prior: Distribution,
    gamma: float | Tensor = 1.0,  # number or (...)
    *,
    discriminator_logits: Tensor,  # (..., B, 2)
    kl: KL = "monte_carlo",
) -> FactorVAETerms:
    r"""Return the terms of FactorVAE (Kim and Mnih 2018): the ELBO minus :math:`\gamma` times a total correlation.

    ``discriminator_logits`` are the discriminator's outputs for ``z``, not detached; :func:`discriminator_loss` trains
    the discriminator. The other parameters are those of :func:`beta_vae`.
    """
    plain = beta_vae(log_likelihood, z, mean, log_var, prior, kl=kl)
    correlation = density_ratio(discriminator_logits).mean(-1)
    return FactorVAETerms(plain.loss + gamma * correlation, *plain[1:], correlation)


#: Objectives by name. The prior decides whether their names start with ISA.
OBJECTIVES = {"beta-vae": beta_vae, "beta-tcvae": beta_tcvae, "factor-vae": factor_vae}
