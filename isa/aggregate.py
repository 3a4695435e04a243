r"""The aggregate posterior of a data set, and its total correlation, estimated from the posteriors of one batch.

The total correlation needs :math:`q(z) = \frac{1}{N} \sum_n q(z|x_n)` over all N images, of which a batch contains B.
Shapes and units are those of :mod:`isa.objectives`. For the sample :math:`z_i` of image i, it is estimated by

.. math:: q(z_i) \approx \sum_{m=1}^{B} W_{im}\, q(z_i|x_m),

with one of two weight matrices (Chen et al. 2018):

- *weighted*: :math:`W_{im} = 1/(BN)`. Rows sum to 1/N instead of 1, so :math:`\log q(z_i)` is too low, by about
  :math:`\log B` where :math:`q(z_i|x_i)` dominates the sum and by about :math:`\log N` where all posteriors agree. The
  authors use it.
- *stratified*: :math:`W_{ii} = 1/N`, and :math:`W_{im} = (N-1)/(N(B-1))` for the other images, a sample without
  replacement of the other N - 1. Rows sum to 1, and the estimate of :math:`q(z_i)` is unbiased. Chen et al. (appendix
  C.2) give :math:`1/M`, with :math:`M = B - 1`, to all other images except an arbitrary one, which has
  :math:`(N-M)/(NM)`; this matrix is the mean over its choice, with the same expectation and no more variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from isa import kernels
from isa._compiled import Compiled

__all__ = ["SamplingWeights", "sampling_weights", "total_correlation"]

Sampling = Literal["weighted", "stratified"]


def full_precision(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in their widest floating type, float32 at least."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors), torch.float32)
    return tuple(tensor.to(dtype) for tensor in tensors)


class SamplingWeights(NamedTuple):
    """The two values in a weight matrix W."""

    own: float  #: Value on the diagonal: weight of the image that a sample was drawn from.
    other: float  #: Value off the diagonal: weight of each other image of the batch.


def sampling_weights(batch_size: int, dataset_size: int, sampling: Sampling = "weighted") -> SamplingWeights:
    """Return the weights of the images in a batch of B images out of N; see the module's description."""
    if sampling == "weighted":
        return SamplingWeights(*[1 / (batch_size * dataset_size)] * 2)
    if sampling == "stratified":
        return SamplingWeights(1 / dataset_size, (dataset_size - 1) / (dataset_size * (batch_size - 1)))
    raise ValueError(f"sampling must be 'weighted' or 'stratified', got {sampling!r}")


def total_correlation(
    z: Tensor, mean: Tensor, log_var: Tensor, dataset_size: int, sampling: Sampling = "weighted"
) -> Tensor:
    r"""Estimate the total correlation :math:`\mathrm{KL}(q(z)\,\|\,\prod_j q(z_j))`, second term of Eq. 3.

    The estimate, shape ``(...)``, is the batch mean of :math:`\log q(z) - \sum_j \log q(z_j)` over all dimensions,
    for any prior and its subspaces. Memory grows as B^2, not as B^2 D. It can be differentiated once, and compiled.
    """
    return estimate(z, mean, log_var, dataset_size, sampling)[0]


def estimate(z: Tensor, mean: Tensor, log_var: Tensor, dataset_size: int, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return the total correlation and, without gradient, the batch mean of log q(z), each (...)."""
    weights = sampling_weights(z.shape[-2], dataset_size, sampling)
    correlation, _, joint = _operator(*full_precision(z, mean, log_var), *weights)
    return correlation, joint.detach()


# The operator computes B x B x D densities, 84 million at B = 2048 and D = 20: the cost of the whole objective. It
# takes a few samples at a time, and forms the gradient in the same pass. With t_imd = (z_id - mu_md) / (sigma_md
# sqrt 2), w_im the share of image m in the joint density of z_i, p_imd its share in the marginal density of z_id, and
# g_imd = w_im - p_imd, the gradient of B times the total correlation is
#   d / d z_id = -sum_m g_imd t_imd sqrt 2 / sigma_md,   d / d mu_md = sum_i g_imd t_imd sqrt 2 / sigma_md,
#   d / d logvar_md = sum_i g_imd (t_imd^2 - 1/2).

# Terms below exp of this, relative to the maximum, are zero: subnormal numbers slow a CPU down a hundred times.
_FLOOR = {torch.float32: -60.0, torch.float64: -600.0}
_COMPILE_FROM = 2**23  # densities from which compiling a block saves time
_BLOCK, _COMPILED_BLOCK, _CUDA_BLOCK = 2**19, 2**21, 2**24  # densities in a block that fits a cache, or fills a GPU


def _exp(x: Tensor) -> Tensor:
    """Return exp(x); in compiled code by a polynomial, which takes half the time of the library's function."""
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
    z: Tensor,  # (D, R, 1), R of the samples
    mean: Tensor,  # (D, 1, B)
    scale: Tensor,  # (D, 1, B): 1 / (sigma sqrt 2)
    offset: Tensor,  # (D, 1, B): log density at the mean
    log_weight: Tensor | None,  # (R, B), relative to that of other images
    sums: Tensor,  # (3, D, B): sums over earlier samples of g, g t and g t^2
) -> tuple[Tensor, ...]:
    """Return log densities, joint (1, R, 1) and marginal (D, R, 1), the gradient in z, and the sums with this block."""
    t = (z - mean) * scale
    marginal = offset - t * t
    joint = marginal.sum(0, keepdim=True)
    highest = marginal.amax(-1, keepdim=True)
    if log_weight is not None:
        joint, marginal = joint + log_weight, marginal + log_weight
    # Compiled code stores the terms of torch.exp: those of the joint density serve every latent.
    log_joint, joint_total, w = _log_sum(joint, joint.amax(-1, keepdim=True), torch.exp)
    log_marginal, marginal_total, p = _log_sum(marginal, highest, _exp)
    of_joint, of_marginal = 1 / joint_total, -1 / marginal_total
    slope = t * scale
    of_z = -2 * (of_joint * (w * slope).sum(-1, keepdim=True) + of_marginal * (p * slope).sum(-1, keepdim=True))
    g = of_joint * w + of_marginal * p
    gt = g * t
    return log_joint, log_marginal, of_z, sums + torch.stack([g.sum(1), gt.sum(1), (gt * t).sum(1)])


# Computing densities twice, for the sums over images and over samples, is faster than storing them.
_options: dict[str, Any] = {"realize_opcount_threshold": 1000, "realize_reads_threshold": 100}
_options |= {"cpp.enable_floating_point_contract_flag": "fast"}
_compiled_block = Compiled(_block, "the total correlation", options=_options)


def _of_one_model(z: Tensor, mean: Tensor, log_var: Tensor, own: float, other: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the batch means of log q(z) and log q(z_j), and the gradient (3, B, D), for inputs of shape (B, D)."""
    b, d = z.shape
    compiles = z.is_cpu and b * b * d >= _COMPILE_FROM and _compiled_block.works  # a GPU has kernels
    most = (_CUDA_BLOCK if z.is_cuda else _COMPILED_BLOCK if compiles else _BLOCK) // (b * d)
    size = max(r for r in range(1, b + 1) if b % r == 0 and r <= max(1, most))  # compiled for one size
    centre, half_log_var = (values.mT.unsqueeze(1).contiguous() for values in (mean, 0.5 * log_var))  # (D, 1, B)
    scale, offset = math.sqrt(0.5) * torch.exp(-half_log_var), -half_log_var - 0.5 * math.log(2 * math.pi)
    log_weights = math.log(own / other) * torch.eye(b, dtype=z.dtype, device=z.device)
    sums, results = z.new_zeros(3, d, b), []
    for samples, log_weight in zip(z.split(size), log_weights.split(size), strict=True):
        rows, weight = samples.T.unsqueeze(-1).contiguous(), log_weight if own != other else None
        *result, sums = (_compiled_block if compiles else _block)(rows, centre, scale, offset, weight, sums)
        results.append(result)
    joint, marginals, of_z = (torch.cat(parts, 1)[..., 0] for parts in zip(*results, strict=True))
    gradient = torch.stack([of_z, 2 * scale[:, 0] * sums[1], sums[2] - 0.5 * sums[0]]).mT / b
    return joint.mean() + math.log(other), marginals.mean(1) + math.log(other), gradient


# An operator, which a compiled training step takes as one node without tracing the loop over blocks.
@torch.library.custom_op("isa::total_correlation", mutates_args=())
def _operator(z: Tensor, mean: Tensor, log_var: Tensor, own: float, other: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the total correlation (...), its gradient (..., 3, B, D) and the batch mean of log q(z) (...)."""
    *stack, b, d = z.shape
    z, mean, log_var = (tensor.reshape(-1, b, d) for tensor in (z, mean, log_var))
    if z.is_cuda and z.dtype == torch.float32 and kernels.available():
        joint, marginals, gradient = kernels.total_correlation(z, mean, log_var, own, other)
    else:
        models = [_of_one_model(*tensors, own, other) for tensors in zip(z, mean, log_var, strict=True)]
        joint, marginals, gradient = (torch.stack(parts) for parts in zip(*models, strict=True))
    correlation = joint - marginals.sum(-1)
    return correlation.reshape(stack), gradient.reshape(*stack, 3, b, d), joint.reshape(stack)


@_operator.register_fake
def _(z, mean, log_var, own, other):
    *stack, b, d = z.shape
    return z.new_empty(stack), z.new_empty(*stack, 3, b, d), z.new_empty(stack)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, upstream: Tensor, second: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if second is not None:
        raise RuntimeError("the total correlation can be differentiated only once")
    return *(upstream[..., None, None, None] * ctx.saved_tensors[0]).unbind(-3), None, None


_operator.register_autograd(_backward, setup_context=_save)
