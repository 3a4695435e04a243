r"""The evidence lower bound, its terms, and the objectives made of them, over any prior.

Every objective is the batch mean of terms that are functions of their own here:

==============  =========================================================================================
``beta_vae``    Eq. 2; Eq. 1 at ``beta=1``; with an ISA prior, Eq. 12 (ISA-VAE)
``beta_tcvae``  Eq. 3, its total correlation weighted by ``beta``; with an ISA prior, ISA-TCVAE
``factor_vae``  the same penalty, estimated by a discriminator (density-ratio trick)
==============  =========================================================================================

A prior is any ``torch.distributions.Distribution`` of event shape ``(D,)``: ``standard_normal(D)``, an ``isa_prior``
with fixed or learned exponents, or another. Only its ``log_prob`` is used (and a registered KL divergence, on request).

Shapes: ``z``, ``mean`` and ``log_var`` are ``(..., B, D)`` for a batch of B images and D latents, images
``(..., B, C, H, W)``, per-image terms ``(..., B)``, batch means ``(...)``. The leading dimensions, none for one model,
let several models of one shape be computed at once, each with its own ``beta``. Everything is in nats. Half-precision
inputs are computed in float32.

**The aggregate posterior.** Total correlation needs :math:`q(z) = \frac{1}{N} \sum_n q(z|x_n)` over all N images, of
which a minibatch holds B. For the sample :math:`z_i` of image i, it is estimated by a weighted sum over the batch,

.. math:: q(z_i) \approx \sum_{m=1}^{B} W_{im}\, q(z_i|x_m),

with one of two weight matrices of Chen et al. (2018):

- *weighted* sampling has :math:`W_{im} = 1/(BN)`. Its rows sum to 1/N, not to 1, so :math:`\log q(z_i)` comes out too
  low: by about :math:`\log B` where :math:`q(z_i|x_i)` dominates the sum, by about :math:`\log N` where all posteriors
  agree. The authors train with it.
- *stratified* sampling has :math:`W_{ii} = 1/N` and :math:`W_{im} = (N-1)/(N(B-1))` elsewhere. The image that
  :math:`z_i` was drawn from is in the batch for certain and stands for itself, one image of N. The other B - 1 are a
  sample without replacement of the other N - 1, so each stands for :math:`(N-1)/(B-1)` images. Every row sums to 1,
  and the estimate of :math:`q(z_i)` is unbiased. Chen et al. (appendix C.2) give :math:`1/M` with :math:`M = B - 1` to
  all but one of the others and :math:`(N-M)/(NM)` to the last; which one is last is arbitrary, and the matrix here is
  the mean over that choice. It has the same expectation, never a larger variance, and is exact where the batch is the
  whole data set.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Distribution, Independent, Normal, kl_divergence
from torch.distributions.kl import _KL_REGISTRY

from isa import kernels

__all__ = [
    "LIKELIHOODS",
    "OBJECTIVES",
    "AggregateLogDensities",
    "BetaTCVAETerms",
    "BetaVAETerms",
    "FactorVAETerms",
    "SamplingWeights",
    "aggregate_log_densities",
    "bernoulli_log_likelihood",
    "beta_tcvae",
    "beta_vae",
    "density_ratio",
    "discriminator_loss",
    "factor_vae",
    "gaussian_log_density",
    "gaussian_log_likelihood",
    "kl_closed_form",
    "kl_monte_carlo",
    "mean_aggregate_log_densities",
    "permute_dims",
    "sampling_weights",
    "standard_normal",
    "total_correlation",
]

_LOG_2PI = math.log(2 * math.pi)
_logger = logging.getLogger(__name__)

Sampling = Literal["weighted", "stratified"]


# ---------------------------------------------------------------------------------------------------------------------
# Checks


def _full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in their widest floating type, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return tuple(tensor.to(dtype) for tensor in tensors)


def _posterior(z: Tensor, mean: Tensor, log_var: Tensor) -> tuple[Tensor, ...]:
    if z.ndim < 2 or not z.shape == mean.shape == log_var.shape:
        raise ValueError(
            "z, mean and log_var must have one shape (..., B, D), "
            f"got {tuple(z.shape)}, {tuple(mean.shape)} and {tuple(log_var.shape)}"
        )
    return _full_precision(z, mean, log_var)


def _images(name: str, decoded: Tensor, x: Tensor) -> None:
    if decoded.ndim < 4 or decoded.shape != x.shape:
        raise ValueError(
            f"{name} and x must have one shape (..., B, C, H, W), got {tuple(decoded.shape)} and {tuple(x.shape)}"
        )


def _weight(name: str, value: float | Tensor) -> None:
    # A tensor's value is left unread: reading it would stall an accelerator at every step.
    if not isinstance(value, Tensor) and not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0, got {value}")


def _log_prior(prior: Distribution, z: Tensor) -> Tensor:
    if prior.event_shape != z.shape[-1:]:
        raise ValueError(
            f"prior must have event_shape ({z.shape[-1]},), one entry a latent, got {tuple(prior.event_shape)}; "
            "wrap a univariate distribution in torch.distributions.Independent"
        )
    return prior.log_prob(z)


# ---------------------------------------------------------------------------------------------------------------------
# Likelihoods


def bernoulli_log_likelihood(logits: Tensor, x: Tensor) -> Tensor:
    r"""Return :math:`\log p(x|z) = \sum_k x_k l_k - \log(1 + e^{l_k})` of every image, pixels Bernoulli.

    Parameters
    ----------
    logits
        Decoder outputs :math:`l`, shape ``(..., B, C, H, W)``.
    x
        Images in [0, 1] (0 or 1 for a likelihood in the strict sense), same shape, any dtype.

    Returns
    -------
    Tensor
        Log-likelihoods in nats, shape ``(..., B)``, summed over channels and pixels.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    _images("logits", logits, x)
    if logits.requires_grad and logits.dtype in (torch.bfloat16, torch.float16):
        return _HalfPrecisionBernoulli.apply(logits, x)[0]
    (logits,) = _full_precision(logits)
    return -F.binary_cross_entropy_with_logits(logits, x.to(logits.dtype), reduction="none").sum((-3, -2, -1))


class _HalfPrecisionBernoulli(torch.autograd.Function):
    """The same with half-precision logits: their gradient is formed in the same pass, so that no float32 is stored."""

    generate_vmap_rule = True

    @staticmethod
    def forward(logits: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        wide = logits.float()
        slope = (x - torch.sigmoid(wide)).to(logits.dtype)
        value = -F.binary_cross_entropy_with_logits(wide, x.float(), reduction="none").sum((-3, -2, -1))
        return value, slope

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(output[1])
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream: Tensor, _) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return (upstream[..., None, None, None] * slope).to(slope.dtype), None


def gaussian_log_likelihood(decoded: Tensor, x: Tensor, scale: float = 1.0) -> Tensor:
    r"""Return :math:`\log p(x|z) = \sum_k \log N(x_k; d_k, s^2)` of every image, pixels Gaussian.

    Parameters
    ----------
    decoded
        Decoder outputs :math:`d`, taken as means, shape ``(..., B, C, H, W)``.
    x
        Images, same shape.
    scale
        Standard deviation :math:`s` of a pixel, in the units of ``x``.

    Returns
    -------
    Tensor
        Log-likelihoods in nats, shape ``(..., B)``, summed over channels and pixels.

    Raises
    ------
    ValueError
        If the shapes differ or ``scale`` is not a positive number.
    """
    _images("decoded", decoded, x)
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be a positive number, got {scale}")
    (decoded,) = _full_precision(decoded)
    squares = ((x.to(decoded.dtype) - decoded) / scale).square().sum((-3, -2, -1))
    return -0.5 * squares - math.prod(x.shape[-3:]) * (math.log(scale) + 0.5 * _LOG_2PI)


LIKELIHOODS: dict[str, Callable[..., Tensor]] = {
    "bernoulli": bernoulli_log_likelihood,
    "gaussian": gaussian_log_likelihood,
}
"""Log-likelihoods ``(decoded, x) -> (..., B)`` by name."""


# ---------------------------------------------------------------------------------------------------------------------
# Prior and posterior


def standard_normal(
    latent_dim: int, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Independent:
    """Return N(0, I) over ``latent_dim`` latents, the prior of the ordinary VAE, as one multivariate distribution."""
    zeros = torch.zeros(latent_dim, device=device, dtype=dtype)
    return Independent(Normal(zeros, torch.ones_like(zeros)), 1)


def gaussian_log_density(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    r"""Return :math:`\log q(z|x) = \sum_j \log N(z_j; \mu_j, \sigma_j^2)`.

    Parameters
    ----------
    z, mean, log_var
        Samples, posterior means and log-variances, shape ``(..., B, D)``.

    Returns
    -------
    Tensor
        Log densities, shape ``(..., B)``.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    z, mean, log_var = _posterior(z, mean, log_var)
    return -0.5 * ((z - mean).square() * torch.exp(-log_var) + log_var + _LOG_2PI).sum(-1)


def kl_monte_carlo(z: Tensor, mean: Tensor, log_var: Tensor, prior: Distribution) -> Tensor:
    r"""Estimate :math:`\mathrm{KL}(q(z|x)\,\|\,p(z))` from one sample: :math:`\log q(z|x) - \log p(z)`, as in Eq. 12.

    Parameters
    ----------
    z
        One sample of each posterior, shape ``(..., B, D)``.
    mean, log_var
        The posteriors' means and log-variances, same shape.
    prior
        Distribution of event shape ``(D,)``.

    Returns
    -------
    Tensor
        Unbiased estimates, shape ``(..., B)``; a single one may be negative.

    Raises
    ------
    ValueError
        If the shapes differ or the prior's event shape is another.
    """
    z, mean, log_var = _posterior(z, mean, log_var)
    return gaussian_log_density(z, mean, log_var) - _log_prior(prior, z)


def kl_closed_form(mean: Tensor, log_var: Tensor, prior: Distribution) -> Tensor:
    r"""Return :math:`\mathrm{KL}(q(z|x)\,\|\,p(z))` exactly, where PyTorch has a formula registered for the prior.

    Parameters
    ----------
    mean, log_var
        The posteriors' means and log-variances, shape ``(..., B, D)``.
    prior
        Distribution of event shape ``(D,)``, such as ``standard_normal(D)``.

    Returns
    -------
    Tensor
        Divergences, shape ``(..., B)``.

    Raises
    ------
    ValueError
        If the shapes differ, the prior's event shape is another, or no formula is registered.
    """
    mean, _, log_var = _posterior(mean, mean, log_var)
    if prior.event_shape != mean.shape[-1:]:
        raise ValueError(f"prior must have event_shape ({mean.shape[-1]},), got {tuple(prior.event_shape)}")
    # What is registered for every distribution at once, as sampling may be, is no closed form.
    if not any(
        issubclass(type(prior), q) and issubclass(Independent, p) for p, q in _KL_REGISTRY if p is not Distribution
    ):
        raise ValueError(
            f"prior {type(prior).__name__} has no registered closed-form divergence from a Gaussian; "
            "use the Monte-Carlo estimate"
        )
    # Unvalidated: posteriors that have diverged give no finite number, and must not raise in the midst of a pack.
    posterior = Normal(mean, torch.exp(0.5 * log_var), validate_args=False)
    return kl_divergence(Independent(posterior, 1, validate_args=False), prior)


# ---------------------------------------------------------------------------------------------------------------------
# Aggregate posterior: weights


class SamplingWeights(NamedTuple):
    """The two values in a weight matrix ``W``: on its diagonal, and off it."""

    own: float
    other: float

    def matrix(self, batch_size: int, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the matrix itself, shape ``(B, B)``."""
        weights = torch.full((batch_size, batch_size), self.other, dtype=dtype)
        return weights.fill_diagonal_(self.own)


def sampling_weights(batch_size: int, dataset_size: int, sampling: Sampling = "weighted") -> SamplingWeights:
    """Return the weights with which a batch stands for the data set in the aggregate posterior.

    Parameters
    ----------
    batch_size
        Number of images B in the batch.
    dataset_size
        Number of images N in the data set.
    sampling
        ``"weighted"``: 1/(BN) for every image. ``"stratified"``: 1/N for the image that the sample was drawn from,
        (N - 1)/(N(B - 1)) for each other one. The module's description says why.

    Returns
    -------
    SamplingWeights
        Weight of the sample's own image, and of each other image.

    Raises
    ------
    ValueError
        If ``sampling`` is another name, N < B, or B < 2 for stratified sampling.
    """
    if dataset_size < batch_size:
        raise ValueError(f"dataset_size must be at least the batch size {batch_size}, got {dataset_size}")
    if sampling == "weighted":
        weight = 1 / (batch_size * dataset_size)
        return SamplingWeights(weight, weight)
    if sampling == "stratified":
        if batch_size < 2:
            raise ValueError(f"stratified sampling needs a batch of at least 2, got {batch_size}")
        return SamplingWeights(1 / dataset_size, (dataset_size - 1) / (dataset_size * (batch_size - 1)))
    raise ValueError(f"sampling must be 'weighted' or 'stratified', got {sampling!r}")


# ---------------------------------------------------------------------------------------------------------------------
# Aggregate posterior: the sum over the batch
#
# There are B x B x D densities, 84 million at B = 2048 and D = 20: the cost of the whole objective. They are computed a
# few samples at a time and summed at once. With t_imd = (z_id - mu_md) / (sigma_md sqrt 2), the share p_imd of image m
# in the marginal density of z_id, the share w_im in the joint density of z_i, and the weights a_id of log q(z_id) and
# a_i of log q(z_i) in a loss, the gradients follow from g_imd = a_i w_im + a_id p_imd:
#
#   d loss / d z_id      = -sum_m g_imd t_imd sqrt 2 / sigma_md
#   d loss / d mu_md     =  sum_i g_imd t_imd sqrt 2 / sigma_md
#   d loss / d logvar_md =  sum_i g_imd (t_imd^2 - 1/2)
#
# The batch mean of the total correlation has the weights a_i = 1/B and a_id = -1/B, so its value and its gradient are
# formed in one pass.

_FLOOR = {torch.float32: -60.0, torch.float64: -600.0}
"""Exponent, relative to the largest, below which a term counts as zero. It keeps terms and their products out of the
subnormal numbers, with which a processor computes a hundred times more slowly."""

_COMPILE_FROM = 2**23
"""Number of densities from which compiling the block pays."""

_BLOCK, _COMPILED_BLOCK, _CUDA_BLOCK = 2**19, 2**21, 2**24
"""Densities in a block: what stays in a core's cache, with one temporary per operation and compiled, or fills a GPU."""

_COMPILER_OPTIONS = {
    # Computing the densities again, for the sums over images and for those over samples, is faster than storing them.
    "realize_opcount_threshold": 1000,
    "realize_reads_threshold": 100,
    "cpp.enable_floating_point_contract_flag": "fast",
}


def _exp(x: Tensor) -> Tensor:
    """Return the exponential of x; in compiled code, a polynomial that takes half the time of the library's."""
    if not (x.is_cpu and x.dtype == torch.float32 and torch.compiler.is_compiling()):
        return torch.exp(x)
    x = x * math.log2(math.e)
    whole = torch.round(x)
    rest = x - whole
    power = 0.00132186773 * rest + 0.00967170723  # 2^rest on [-1/2, 1/2], relative error 1e-7
    for coefficient in (0.0555089309, 0.240222379, 0.693146856, 1.0):
        power = power * rest + coefficient
    return power * ((whole.int() + 127) << 23).view(torch.float32)  # 127 and 23: exponent bits of a float


def _log_sum(exponent: Tensor, reference: Tensor, exp: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Return the log of the sum of exponentials over the last dimension, the sum over exp(reference), and its terms."""
    floor = _FLOOR[exponent.dtype]
    terms = exp((exponent - reference).clamp_min(floor)) - math.exp(floor)
    total = terms.sum(-1, keepdim=True)
    return torch.log(total) + reference, total, terms


def _block(
    z: Tensor,
    mean: Tensor,
    scale: Tensor,
    offset: Tensor,
    log_weight: Tensor | None,
    upstream: tuple[Tensor, Tensor] | None,
    sums: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Return the log densities of R samples, joint (1, R, 1) and marginal (D, R, 1), and their part of the gradient.

    ``z`` is (D, R, 1); ``mean``, ``scale`` (1 / sigma sqrt 2) and ``offset`` (log density at the mean) are (D, 1, B);
    ``log_weight`` is (R, B). ``upstream`` holds the samples' weights in a loss, (1, R, 1) and (D, R, 1). With it follow
    the gradient in ``z`` (D, R, 1) and ``sums`` (3, D, B), over samples of g, g t and g t^2, with this block added.
    """
    t = (z - mean) * scale
    marginal = offset - t * t
    joint = marginal.sum(0, keepdim=True)
    highest = marginal.amax(-1, keepdim=True)
    if log_weight is not None:
        joint, marginal = joint + log_weight, marginal + log_weight
    # In compiled code, the terms of torch.exp are stored: those of the joint density serve every latent.
    log_joint, joint_total, w = _log_sum(joint, joint.amax(-1, keepdim=True), torch.exp)
    log_marginal, marginal_total, p = _log_sum(marginal, highest, _exp)
    if upstream is None:
        return log_joint, log_marginal, None
    of_joint, of_marginal = upstream[0] / joint_total, upstream[1] / marginal_total
    slope = t * scale
    of_z = -2 * (of_joint * (w * slope).sum(-1, keepdim=True) + of_marginal * (p * slope).sum(-1, keepdim=True))
    g = of_joint * w + of_marginal * p
    gt = g * t
    return log_joint, log_marginal, of_z, sums + torch.stack([g.sum(1), gt.sum(1), (gt * t).sum(1)])


def compiler_error(error: Exception) -> str:
    """Return what failed, in one line, when nothing could be compiled."""
    cause = getattr(error, "inner_exception", error)  # torch.compile wraps errors of its back end
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]


class _Compiled:
    """A function that is compiled at its first call, or runs as it is where nothing can be compiled."""

    def __init__(self, function: Callable[..., tuple[Tensor, ...]]) -> None:
        self.function = function
        self.compiled: Callable[..., tuple[Tensor, ...]] | None = None
        self.works = True

    def __call__(self, *arguments: object) -> tuple[Tensor, ...]:
        if not self.works:
            return self.function(*arguments)
        try:
            if self.compiled is None:
                self.compiled = torch.compile(self.function, dynamic=False, options=_COMPILER_OPTIONS)
            return self.compiled(*arguments)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ImportError, OSError, UnicodeError) as error:  # the last three of reading its own files
            self.works = False
            _logger.warning("the aggregate posterior runs uncompiled: %s", compiler_error(error))
            return self.function(*arguments)


_compiled_block = _Compiled(_block)


def _aggregate(
    z: Tensor, mean: Tensor, log_var: Tensor, own: float, other: float, upstream: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Return log q(z) (B,) and log q(z_j) (B, D) of one model and, given the samples' weights in a loss, its gradient.

    The weights are (B,) and (B, D); the gradient in ``z``, ``mean`` and ``log_var`` is (3, B, D).
    """
    b, d = z.shape
    block = _compiled_block if b * b * d >= _COMPILE_FROM and _compiled_block.works else _block
    size = _CUDA_BLOCK if z.is_cuda else _COMPILED_BLOCK if block is _compiled_block else _BLOCK
    n_blocks = math.ceil(b / max(1, size // (b * d)))
    r = math.ceil(b / n_blocks)
    # Blocks are compiled for one shape: the last one is filled up with the last sample, at weight zero.
    order = torch.arange(n_blocks * r, device=z.device).clamp_max(b - 1)

    def blocks(values: Tensor) -> Tensor:  # (B, D) -> (blocks, D, R, 1)
        return values[order].unflatten(0, (n_blocks, r)).mT.unsqueeze(-1).contiguous()

    centre, half_log_var = (values.mT.unsqueeze(1).contiguous() for values in (mean, 0.5 * log_var))
    scale = math.sqrt(0.5) * torch.exp(-half_log_var)
    peak = -half_log_var.amin(-1, keepdim=True)
    offset = -half_log_var - peak
    weights, sums = [None] * n_blocks, None
    if upstream is not None:
        weights, sums = [blocks(upstream[0].unsqueeze(-1)), blocks(upstream[1])], z.new_zeros(3, d, b)
        for values in weights:
            values[-1, :, b - (n_blocks - 1) * r :] = 0
        weights = list(zip(*weights, strict=True))
    results = []
    for samples, own_image, weight in zip(blocks(z), order.view(n_blocks, r, 1), weights, strict=True):
        log_weight = None
        if own != other:
            log_weight = (own_image == torch.arange(b, device=z.device)).to(z.dtype) * math.log(own / other)
        *result, sums = block(samples, centre, scale, offset, log_weight, weight, sums)
        results.append(result)
    joint, marginals, *of_z = (
        torch.stack(parts).squeeze(-1).mT.flatten(0, 1)[:b] for parts in zip(*results, strict=True)
    )
    level = peak[:, 0, 0] - 0.5 * _LOG_2PI
    joint, marginals = joint[:, 0] + (level.sum() + math.log(other)), marginals + (level + math.log(other))
    if upstream is None:
        return joint, marginals
    zeroth, once, twice = sums
    return joint, marginals, torch.stack([*of_z, (2 * scale[:, 0] * once).mT, (twice - 0.5 * zeroth).mT])


def _over_models(function: Callable[..., tuple[Tensor, ...]], z: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Apply a function of (B, ...) tensors to each of several models, (..., B, ...)."""
    stack = z.shape[:-2]
    inputs = [tensor.reshape(-1, *tensor.shape[len(stack) :]) for tensor in (z, *others)]
    results = [function(*tensors) for tensors in zip(*inputs, strict=True)]
    return tuple(torch.stack(parts).unflatten(0, stack) if stack else parts[0] for parts in zip(*results, strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Aggregate posterior: operators
#
# Registered as operators, so that a compiled training step takes each as one node instead of tracing its loop.


@torch.library.custom_op("isa::log_densities", mutates_args=())
def _log_densities_op(z: Tensor, mean: Tensor, log_var: Tensor, own: float, other: float) -> tuple[Tensor, Tensor]:
    return _over_models(lambda *inputs: _aggregate(*inputs, own, other), z, mean, log_var)


@torch.library.custom_op("isa::log_densities_gradient", mutates_args=())
def _log_densities_gradient_op(
    z: Tensor, mean: Tensor, log_var: Tensor, joint: Tensor, marginals: Tensor, own: float, other: float
) -> Tensor:
    def gradient(*inputs: Tensor) -> tuple[Tensor]:
        return _aggregate(*inputs[:3], own, other, inputs[3:])[2:]

    return _over_models(gradient, z, mean, log_var, joint, marginals)[0]


def _mean_total_correlation(
    z: Tensor, mean: Tensor, log_var: Tensor, own: float, other: float, with_gradient: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the batch means of log q(z) (...) and log q(z_j) (..., D), and the gradient of joint minus marginals."""

    def means(*inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Weights of 1, divided by B afterwards: small weights would lead the products into the subnormal numbers.
        ones = torch.ones_like(inputs[0])
        weights = (ones[:, 0], -ones) if with_gradient else None
        joint, marginals, *gradient = _aggregate(*inputs, own, other, weights)
        return joint.mean(0), marginals.mean(0), gradient[0] / len(joint) if with_gradient else z.new_empty(0)

    return _over_models(means, z, mean, log_var)


_total_correlation_op = torch.library.custom_op("isa::total_correlation", _mean_total_correlation, mutates_args=())


@_total_correlation_op.register_kernel("cuda")
def _(z, mean, log_var, own, other, with_gradient):
    if not (with_gradient and z.dtype == torch.float32 and kernels.available()):
        return _mean_total_correlation(z, mean, log_var, own, other, with_gradient)
    stack = z.shape[:-2]
    stacked = [tensor.reshape(-1, *z.shape[-2:]) for tensor in (z, mean, log_var)]
    return tuple(result.reshape(stack + result.shape[1:]) for result in kernels.total_correlation(*stacked, own, other))


@_log_densities_op.register_fake
def _(z, mean, log_var, own, other):
    return z.new_empty(z.shape[:-1]), z.new_empty(z.shape)


@_log_densities_gradient_op.register_fake
def _(z, mean, log_var, joint, marginals, own, other):
    return z.new_empty(*z.shape[:-2], 3, *z.shape[-2:])


@_total_correlation_op.register_fake
def _(z, mean, log_var, own, other, with_gradient):
    *stack, b, d = z.shape
    return z.new_empty(stack), z.new_empty(*stack, d), z.new_empty(*stack, *((3, b, d) if with_gradient else (0,)))


class _LogDensities(torch.autograd.Function):
    """Log densities per sample, whose gradient is computed anew once the rows' weights are known."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z, mean, log_var, own, other):
        return _log_densities_op(z, mean, log_var, own, other)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.own, ctx.other = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, joint, marginal):
        gradients = _log_densities_gradient_op(*ctx.saved_tensors, joint, marginal, ctx.own, ctx.other)
        return *gradients.unbind(-3), None, None


def _register_vmap(op: torch.library.CustomOpDef, n_outputs: int) -> None:
    """Map an operator over stacked models by moving the mapped dimension to the front."""

    @op.register_vmap
    def _(info, in_dims, *args):
        moved = [
            argument
            if not isinstance(argument, Tensor)
            else argument.expand(info.batch_size, *argument.shape)
            if dim is None
            else argument.movedim(dim, 0)
            for argument, dim in zip(args, in_dims, strict=True)
        ]
        return op(*moved), 0 if n_outputs == 1 else (0,) * n_outputs


_register_vmap(_log_densities_op, 2)
_register_vmap(_log_densities_gradient_op, 1)
_register_vmap(_total_correlation_op, 3)


# ---------------------------------------------------------------------------------------------------------------------
# Aggregate posterior: estimates


class AggregateLogDensities(NamedTuple):
    """Log densities of the aggregate posterior and of its marginals."""

    joint: Tensor
    r""":math:`\log q(z)`, shape ``(..., B)``; of a batch mean, ``(...)``."""
    marginals: Tensor
    r""":math:`\log q(z_j)`, shape ``(..., B, D)``; of a batch mean, ``(..., D)``."""


def aggregate_log_densities(
    z: Tensor, mean: Tensor, log_var: Tensor, dataset_size: int, sampling: Sampling = "weighted"
) -> AggregateLogDensities:
    r"""Estimate :math:`\log q(z_i)` and :math:`\log q(z_{ij})` of every sample from the posteriors of its batch.

    Memory grows as B D, never as B B D, forward and backward; the backward pass computes the densities again. Training
    needs only the total correlation's gradient, which ``total_correlation`` forms in the forward pass, in half the
    time. The gradient can be compiled, or mapped by ``torch.func.vmap``; that of ``total_correlation`` also both at
    once.

    Parameters
    ----------
    z
        One sample of each posterior, in the posteriors' order, shape ``(..., B, D)``.
    mean, log_var
        The posteriors' means and log-variances, same shape.
    dataset_size
        Number of images N in the data set.
    sampling
        ``"weighted"`` or ``"stratified"``; see ``sampling_weights``.

    Returns
    -------
    AggregateLogDensities
        Estimates per sample, differentiable once in ``z``, ``mean`` and ``log_var``.

    Raises
    ------
    ValueError
        If the shapes differ, or N or ``sampling`` is out of range.
    """
    z, mean, log_var = _posterior(z, mean, log_var)
    weights = sampling_weights(z.shape[-2], dataset_size, sampling)
    return AggregateLogDensities(*_LogDensities.apply(z, mean, log_var, *weights))


def mean_aggregate_log_densities(
    z: Tensor, mean: Tensor, log_var: Tensor, dataset_size: int, sampling: Sampling = "weighted"
) -> AggregateLogDensities:
    r"""Estimate the batch means of :math:`\log q(z)` and :math:`\log q(z_j)`.

    Parameters and errors are those of ``aggregate_log_densities``.

    Returns
    -------
    AggregateLogDensities
        Batch means, joint ``(...)`` and marginals ``(..., D)``, differentiable once in ``z``, ``mean`` and ``log_var``.
    """
    joint, marginals = aggregate_log_densities(z, mean, log_var, dataset_size, sampling)
    return AggregateLogDensities(joint.mean(-1), marginals.mean(-2))


def _total_correlation(
    z: Tensor, mean: Tensor, log_var: Tensor, dataset_size: int, sampling: Sampling
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the batch means of log q(z) and of sum_j log q(z_j), (...) without gradient, and their difference."""
    posterior = _posterior(z, mean, log_var)
    weights = sampling_weights(z.shape[-2], dataset_size, sampling)
    with_gradient = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in posterior)
    detached = [tensor.detach() for tensor in posterior]
    joint, marginals, gradient = _total_correlation_op(*detached, *weights, with_gradient)
    product = marginals.sum(-1)
    correlation = joint - product
    if with_gradient:
        # Zero, but with the gradient: unlike an autograd function, this can be compiled and mapped at once.
        zero = torch.stack([tensor - value for tensor, value in zip(posterior, detached, strict=True)], -3)
        correlation = correlation + (gradient * zero).sum((-3, -2, -1))
    return joint, product, correlation


def total_correlation(
    z: Tensor, mean: Tensor, log_var: Tensor, dataset_size: int, sampling: Sampling = "weighted"
) -> Tensor:
    r"""Estimate the total correlation :math:`\mathrm{KL}(q(z)\,\|\,\prod_j q(z_j))`, second term of Eq. 3.

    The estimate is the batch mean of :math:`\log q(z) - \sum_j \log q(z_j)`, over all dimensions, whatever the prior's
    subspaces. Parameters and errors are those of ``aggregate_log_densities``.

    Returns
    -------
    Tensor
        Batch mean, shape ``(...)``, differentiable once in ``z``, ``mean`` and ``log_var``.
    """
    return _total_correlation(z, mean, log_var, dataset_size, sampling)[2]


# ---------------------------------------------------------------------------------------------------------------------
# FactorVAE's estimate


def permute_dims(z: Tensor, generator: torch.Generator | None = None) -> Tensor:
    r"""Permute each latent over the batch on its own: samples of :math:`\prod_j q(z_j)` out of samples of :math:`q(z)`.

    Parameters
    ----------
    z
        Samples, shape ``(..., B, D)``.
    generator
        Source of the permutations; the global one when not given.

    Returns
    -------
    Tensor
        The permuted samples, same shape, detached: the discriminator's loss trains no encoder.
    """
    order = torch.rand(z.shape, device=z.device, generator=generator).argsort(-2)
    return z.detach().gather(-2, order)


def density_ratio(logits: Tensor) -> Tensor:
    r"""Return the discriminator's estimate of :math:`\log q(z) - \log \prod_j q(z_j)` for each sample.

    With both classes equally frequent, the best discriminator's :math:`\log D(z) / (1 - D(z))` is that log ratio; under
    a softmax over two logits, it is their difference.

    Parameters
    ----------
    logits
        Discriminator outputs, shape ``(..., 2)``: logit 0 for samples of :math:`q(z)`, logit 1 for permuted ones.

    Returns
    -------
    Tensor
        Log ratios in nats, shape ``(...)``.

    Raises
    ------
    ValueError
        If the last dimension is not 2.
    """
    if logits.ndim < 1 or logits.shape[-1] != 2:
        raise ValueError(f"logits must have a last dimension of 2, got shape {tuple(logits.shape)}")
    (logits,) = _full_precision(logits)
    return logits[..., 0] - logits[..., 1]


def discriminator_loss(joint_logits: Tensor, permuted_logits: Tensor) -> Tensor:
    """Return the cross-entropy that FactorVAE's discriminator minimises, the mean of its two classes' means.

    Parameters
    ----------
    joint_logits
        Outputs for samples of q(z), shape ``(..., B, 2)``; detach these samples from the encoder.
    permuted_logits
        Outputs for permuted samples of another batch, shape ``(..., B', 2)``.

    Returns
    -------
    Tensor
        Loss in nats, shape ``(...)``; log 2 where the discriminator cannot tell the classes apart.

    Raises
    ------
    ValueError
        If a last dimension is not 2.
    """
    joint = F.softplus(-density_ratio(joint_logits)).mean(-1)
    permuted = F.softplus(density_ratio(permuted_logits)).mean(-1)
    return 0.5 * (joint + permuted)


# ---------------------------------------------------------------------------------------------------------------------
# Objectives


class BetaVAETerms(NamedTuple):
    """Batch means, each of shape ``(...)``, in nats per image."""

    loss: Tensor
    """What is minimised: ``beta * kl - log_likelihood``."""
    elbo: Tensor
    """Eq. 1: ``log_likelihood - kl``, whatever ``beta``."""
    log_likelihood: Tensor
    """Expected log-likelihood of the images, log p(x|z)."""
    kl: Tensor
    """KL divergence from prior to posterior."""


class BetaTCVAETerms(NamedTuple):
    """Batch means, each of shape ``(...)``, in nats per image; the last three sum to ``kl``.

    ``index_code_mi`` and ``dimension_wise_kl`` carry no gradient; the loss does not need theirs.
    """

    loss: Tensor
    """What is minimised: ``index_code_mi + beta * total_correlation + dimension_wise_kl - log_likelihood``."""
    elbo: Tensor
    """Eq. 1: ``log_likelihood - kl``, whatever ``beta``."""
    log_likelihood: Tensor
    """Expected log-likelihood of the images, log p(x|z)."""
    kl: Tensor
    """KL divergence from prior to posterior, by one sample each (Eq. 12)."""
    index_code_mi: Tensor
    """log q(z|x) - log q(z): mutual information of image and code."""
    total_correlation: Tensor
    """log q(z) - sum_j log q(z_j), over all dimensions."""
    dimension_wise_kl: Tensor
    """sum_j log q(z_j) - log p(z): for a prior that factorises, the sum of the dimensions' divergences."""


class FactorVAETerms(NamedTuple):
    """Batch means, each of shape ``(...)``, in nats per image."""

    loss: Tensor
    """What is minimised: ``kl + gamma * total_correlation - log_likelihood``."""
    elbo: Tensor
    """Eq. 1: ``log_likelihood - kl``, whatever ``gamma``."""
    log_likelihood: Tensor
    """Expected log-likelihood of the images, log p(x|z)."""
    kl: Tensor
    """KL divergence from prior to posterior."""
    total_correlation: Tensor
    """The discriminator's estimate of the total correlation."""


KL = Literal["monte_carlo", "closed_form"]


def _kl(kl: KL, z: Tensor, mean: Tensor, log_var: Tensor, prior: Distribution) -> Tensor:
    if kl == "monte_carlo":
        return kl_monte_carlo(z, mean, log_var, prior)
    if kl == "closed_form":
        return kl_closed_form(mean, log_var, prior)
    raise ValueError(f"kl must be 'monte_carlo' or 'closed_form', got {kl!r}")


def _log_likelihood(log_likelihood: Tensor, z: Tensor) -> Tensor:
    if log_likelihood.shape != z.shape[:-1]:
        raise ValueError(
            f"log_likelihood must have shape {tuple(z.shape[:-1])}, one value an image, "
            f"got {tuple(log_likelihood.shape)}"
        )
    return log_likelihood.mean(-1)


def beta_vae(
    log_likelihood: Tensor,
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    prior: Distribution,
    beta: float | Tensor = 1.0,
    *,
    kl: KL = "monte_carlo",
) -> BetaVAETerms:
    r"""Beta-VAE, Eq. 2: :math:`\mathrm{E}[\log p(x|z)] - \beta\, \mathrm{KL}(q(z|x)\,\|\,p(z))`.

    With an ISA prior this is Eq. 12, ISA-VAE.

    Parameters
    ----------
    log_likelihood
        :math:`\log p(x|z)` of every image, shape ``(..., B)``.
    z, mean, log_var
        One sample of each posterior, and the posteriors, shape ``(..., B, D)``.
    prior
        Distribution of event shape ``(D,)``.
    beta
        Weight of the divergence, at least 0; a tensor of shape ``(...)`` gives each of several models its own.
    kl
        ``"monte_carlo"``: one sample, as the authors train every model. ``"closed_form"``: exact, where registered.

    Returns
    -------
    BetaVAETerms
        Loss, ELBO and terms.

    Raises
    ------
    ValueError
        If shapes do not agree, ``beta`` is negative or not finite, or ``kl`` is unknown or unavailable for the prior.
    """
    _weight("beta", beta)
    fit = _log_likelihood(log_likelihood, z)
    divergence = _kl(kl, z, mean, log_var, prior).mean(-1)
    return BetaVAETerms(beta * divergence - fit, fit - divergence, fit, divergence)


def beta_tcvae(
    log_likelihood: Tensor,
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    prior: Distribution,
    beta: float | Tensor = 1.0,
    *,
    dataset_size: int,
    sampling: Sampling = "weighted",
) -> BetaTCVAETerms:
    r"""Beta-TCVAE: the divergence split as in Eq. 3, its total correlation weighted by :math:`\beta`.

    .. math::

        \log p(x|z) &- \Big(\log q(z|x) - \log q(z)\Big) - \beta\, \Big(\log q(z) - \sum_j \log q(z_j)\Big) \\
        &- \Big(\sum_j \log q(z_j) - \log p(z)\Big)

    With an ISA prior this is ISA-TCVAE. The total correlation stays that over all dimensions; the last term takes the
    prior as a whole, since an ISA prior does not factorise over dimensions.

    Parameters
    ----------
    log_likelihood
        :math:`\log p(x|z)` of every image, shape ``(..., B)``.
    z, mean, log_var
        One sample of each posterior, and the posteriors, shape ``(..., B, D)``.
    prior
        Distribution of event shape ``(D,)``.
    beta
        Weight of the total correlation, at least 0; a tensor of shape ``(...)`` gives each of several models its own.
    dataset_size
        Number of images N in the data set.
    sampling
        ``"weighted"``, which the authors use, or ``"stratified"``; see ``sampling_weights``.

    Returns
    -------
    BetaTCVAETerms
        Loss, ELBO and terms.

    Raises
    ------
    ValueError
        If shapes do not agree, ``beta`` is negative or not finite, or N or ``sampling`` is out of range.
    """
    _weight("beta", beta)
    fit = _log_likelihood(log_likelihood, z)
    z, mean, log_var = _posterior(z, mean, log_var)
    posterior = gaussian_log_density(z, mean, log_var).mean(-1)
    log_prior = _log_prior(prior, z).mean(-1)
    joint, product, correlation = _total_correlation(z, mean, log_var, dataset_size, sampling)
    information, dimension_wise = (posterior - joint).detach(), (product - log_prior).detach()
    divergence = posterior - log_prior
    # Written as the divergence and what is added to it, so that beta = 1 is the ELBO to the last bit.
    loss = divergence - fit + (beta - 1) * correlation
    return BetaTCVAETerms(loss, fit - divergence, fit, divergence, information, correlation, dimension_wise)


def factor_vae(
    log_likelihood: Tensor,
    z: Tensor,
    mean: Tensor,
    log_var: Tensor,
    prior: Distribution,
    gamma: float | Tensor = 1.0,
    *,
    discriminator_logits: Tensor,
    kl: KL = "monte_carlo",
) -> FactorVAETerms:
    r"""FactorVAE (Kim and Mnih 2018): the ELBO less :math:`\gamma` times a discriminator's total correlation.

    The discriminator is trained by ``discriminator_loss`` with an optimiser of its own; here its parameters are held.

    Parameters
    ----------
    log_likelihood
        :math:`\log p(x|z)` of every image, shape ``(..., B)``.
    z, mean, log_var
        One sample of each posterior, and the posteriors, shape ``(..., B, D)``.
    prior
        Distribution of event shape ``(D,)``.
    gamma
        Weight of the total correlation, at least 0; a tensor of shape ``(...)`` gives each of several models its own.
    discriminator_logits
        The discriminator's outputs for ``z``, not detached, shape ``(..., B, 2)``.
    kl
        ``"monte_carlo"`` or ``"closed_form"``, as in ``beta_vae``.

    Returns
    -------
    FactorVAETerms
        Loss, ELBO and terms.

    Raises
    ------
    ValueError
        If shapes do not agree, ``gamma`` is negative or not finite, or ``kl`` is unknown or unavailable for the prior.
    """
    _weight("gamma", gamma)
    if discriminator_logits.shape != (*z.shape[:-1], 2):
        raise ValueError(
            f"discriminator_logits must have shape {(*z.shape[:-1], 2)}, got {tuple(discriminator_logits.shape)}"
        )
    fit = _log_likelihood(log_likelihood, z)
    divergence = _kl(kl, z, mean, log_var, prior).mean(-1)
    correlation = density_ratio(discriminator_logits).mean(-1)
    loss = divergence + gamma * correlation - fit
    return FactorVAETerms(loss, fit - divergence, fit, divergence, correlation)


OBJECTIVES: dict[str, Callable[..., BetaVAETerms | BetaTCVAETerms | FactorVAETerms]] = {
    "beta-vae": beta_vae,
    "beta-tcvae": beta_tcvae,
    "factor-vae": factor_vae,
}
"""Objectives by name; the prior decides whether they are called ISA-."""
