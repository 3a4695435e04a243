"""Mutual information of subspaces: joint densities of groups of latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

__all__ = ["SubspaceInformation", "random_groupings", "subspace_information"]
__all__ += ["as_tensor", "factor_labels", "group_log_sums", "map_in_threads"]

Tensors, Groups = Sequence[Tensor], Sequence[Sequence[int]]
_TILE, _GPU_TILE = 2**19, 2**28  # numbers that one block of posteriors takes


@dataclass(frozen=True)
class SubspaceInformation:
    """Result of :func:`subspace_information`; tensors are float64 on the CPU."""

    mutual_information: Tensor  #: (G, F, S) of groups and factors in nats, unbiased and hence not clamped at 0.
    standard_error: Tensor  #: (G, F, S); smaller for differences of groups, which share their draws.
    factors: tuple[int, ...]  #: Index in ``factor_sizes`` of each factor: those of more than one value.
    n_draws: int  #: Number of draws.


def random_groupings(sizes: Sequence[int], count: int, generator: torch.Generator | None = None) -> list[Groups]:
    """Return ``count`` random partitions of ``sum(sizes)`` latents into groups of these sizes."""
    source = "cpu" if generator is None else generator.device
    orders = [torch.randperm(sum(sizes), generator=generator, device=source).cpu() for _ in range(count)]
    return [[sorted(group.tolist()) for group in order.split(list(sizes))] for order in orders]


@torch.no_grad()
def subspace_information(
    mean: Tensor,
    log_var: Tensor,
    groupings: Sequence[Groups],
    factor_sizes: Sequence[int],
    n_draws: int = 100,
    generator: torch.Generator | None = None,
) -> SubspaceInformation:
    r"""Estimate the mutual information of groups of latents and factors from joint densities.

    For the latents :math:`V` of a group, this is the mean of :math:`\log q(z_V \mid v = a) - \log q(z_V)` over draws
    :math:`z` from the posteriors of random images, where :math:`a` is the factor's value in the draw's own image.

    Parameters
    ----------
    mean, log_var
        (N, K) mean and log variance of :math:`q(z \mid x_n)`, images in C order of the factors. The computation is in
        single precision, unless ``mean`` is float64 or ``log_var`` beyond ±100.
    groupings
        G groupings, each of S disjoint groups of latents.
    factor_sizes
        Number of values of each factor.
    n_draws, generator
        Number of images, drawn without replacement, with one draw of each posterior, and its source.
    """
    mean, log_var = as_tensor(mean), as_tensor(log_var)
    device, (n, k) = mean.device, mean.shape
    factors, labels = factor_labels(n, factor_sizes, None, None)
    source = device if generator is None else generator.device
    images = torch.randperm(n, generator=generator, device="cpu" if generator is None else source)[:n_draws].to(device)
    noise = torch.randn(n_draws, k, dtype=torch.float64, generator=generator, device=source).to(device)
    mean, log_var, label = mean.T.contiguous(), log_var.T.contiguous(), torch.stack(labels[1:]).int().to(device)
    single = mean.dtype != torch.float64 and float(log_var.abs().amax()) <= 100.0
    groups = [group for grouping in groupings for group in grouping]
    draws = mean[:, images], log_var[:, images], noise.T
    total = group_log_sums((mean, log_var), draws, groups, (label, label[:, images]), single).cpu()
    total = total.unflatten(2, (len(groupings), -1))
    log_size = torch.tensor([factor_sizes[f] for f in factors], dtype=torch.float64, device="cpu").log()
    information = (total[1:] - total[:1] + log_size[:, None, None, None]).permute(1, 2, 0, 3)  # (M, G, F, S)
    return SubspaceInformation(information.mean(0), information.std(0) / math.sqrt(n_draws), factors, n_draws)


def group_log_sums(
    posteriors: Tensors,  # mean and log variance (K, N)
    draws: Tensors,  # mean and log variance of the posteriors that were drawn from, and noise (K, M)
    groups: Groups,
    labels: Tensors = (),  # values of the factors, for posteriors (F, N) and draws (F, M)
    single: bool = False,  # precision
) -> Tensor:
    r"""Return logs of sums of joint densities of C groups of latents at M draws, (1 + F, M, C) in float64.

    For the latents :math:`V` of a group, the sum over posteriors is :math:`\sum_n \prod_{j \in V} \mathcal N(z_j;
    \mu_{nj}, \sigma_{nj}^2)`: over all of them, then, for each factor, over those with the value of the draw's image.
    Densities saturate at exp(980) times that of a draw's own posterior, in single precision at exp(110).
    """
    mean, log_var = posteriors
    mean_at, log_var_at, noise = (x.double() for x in draws)
    label, label_at = labels or (mean[:0], noise[:0])
    (k, n), m = mean.shape, noise.shape[1]
    z = mean_at + torch.exp(0.5 * log_var_at) * noise
    own = -0.5 * (noise.square() + log_var_at)  # exponents under the draws' own posteriors
    own_density = torch.stack([(own[list(group)] - 0.5 * math.log(2.0 * math.pi)).sum(0) for group in groups], 1)
    # The own exponent becomes the shift, so that exponents from low to high can be summed without overflow.
    dtype, low, shift, high = (torch.float32, -87, -40, 70) if single else (torch.float64, -700, -300, 680)
    mean, half, z, own = (x.to(dtype) for x in (mean, -0.5 * log_var.double(), z.T, own.T))
    scale = math.sqrt(0.5) * torch.exp(half)
    latents = torch.tensor([j for group in groups for j in group], device=mean.device)
    starts = torch.tensor([0, *accumulate(map(len, groups))][:-1], device=mean.device)
    step = max(1, (_TILE if mean.is_cpu else _GPU_TILE) // (len(groups) + 2 * k))

    def sums(start: int) -> Tensor:  # over one block of posteriors
        part, out = slice(start, start + step), mean.new_empty(1 + len(label), m, len(groups))
        for i in range(m):
            t = (mean[:, part] - z[i, :, None]).mul_(scale[:, part])
            exponents = torch.addcmul(half[:, part], t, t, value=-1.0).sub_(own[i, :, None])
            # Sums of rows; a matrix product could be set to reduced precision.
            density = embedding_bag(latents, exponents, starts, mode="sum").add_(shift).clamp_(low, high).exp_()
            out[0, i] = density.sum(1)
            for total, same in zip(out[1:], label[:, part] == label_at[:, i, None], strict=True):
                total[i] = (density.index_select(1, same.nonzero()[:, 0]) if mean.is_cpu else density * same).sum(1)
        return out.double()

    return sum(map_in_threads(sums, range(0, n, step), mean)).log_() - shift + own_density


def as_tensor(x: Tensor) -> Tensor:
    """Return a tensor where it is; on the CPU for an array, and for a device without float64."""
    x = torch.as_tensor(x, device=getattr(x, "device", "cpu"))
    return x.cpu() if x.device.type == "mps" else x


def factor_labels(
    n: int, sizes: Sequence[int] | None, table: Tensor | None, factors: Sequence[int] | None, others: Sequence[int] = ()
) -> tuple[tuple[int, ...], list[Tensor]]:
    """Return the scored factors, and (N,) values on the CPU: zeros, then those of scored and of other factors."""
    if table is not None:
        every = [torch.unique(column, return_inverse=True)[1] for column in torch.as_tensor(table, device="cpu").T]
    elif math.prod(sizes) == n:
        every = torch.unravel_index(torch.arange(n, device="cpu"), tuple(sizes))
    else:
        raise ValueError(f"the product of factor_sizes must be N = {n}, got {tuple(sizes)}")
    counts = [int(label.max()) + 1 for label in every]
    scored = tuple(f for f, c in enumerate(counts) if c > 1) if factors is None else tuple(factors)
    used = (*scored, *others)
    if not scored or min(counts[f] for f in used) < 2:
        raise ValueError(f"factors must have more than one value, got factors {used} of {counts} values")
    return scored, [torch.zeros(n, dtype=torch.int64, device="cpu"), *(every[f] for f in used)]


def map_in_threads(function: Callable, items: Iterable, like: Tensor) -> list:
    """Map in threads of one core each, if ``like`` is on the CPU."""
    threads = torch.get_num_threads()
    if threads == 1 or not like.is_cpu:
        return [function(item) for item in items]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)  # threads started later would inherit a worker's setting
