"""Mutual information of subspaces: joint densities of groups of latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

__all__ = ["SubspaceInformation", "random_groupings", "subspace_information"]
__all__ += ["as_posteriors", "as_tensor", "factor_labels", "log_sums", "map_in_threads"]

Groups: TypeAlias = Sequence[Sequence[int]]
_TILE, _GPU_TILE = 2**19, 2**28  # numbers in memory for one block of posteriors


@dataclass(frozen=True)
class SubspaceInformation:
    """Result of :func:`subspace_information`; tensors are float64 on the CPU."""

    mutual_information: Tensor  #: (G, F, S) in nats, by grouping, factor and group; unbiased, hence not clamped at 0.
    standard_error: Tensor  #: (G, F, S); smaller for differences of groups, which share their draws.
    factors: tuple[int, ...]  #: Index of each factor: those of more than one value.
    n_draws: int  #: Number of draws.


def random_groupings(sizes: Sequence[int], count: int, generator: torch.Generator | None = None) -> list[Groups]:
    """Return ``count`` random partitions of ``sum(sizes)`` latents into groups of these sizes."""
    source = "cpu" if generator is None else generator.device
    orders = [torch.randperm(sum(sizes), generator=generator, device=source).cpu() for _ in range(count)]
    return [[sorted(group.tolist()) for group in order.split(list(sizes))] for order in orders]


@torch.no_grad()
def subspace_information(
    mean: Tensor,
    log_var: Tensor | None,
    groupings: Sequence[Groups],
    factor_sizes: Sequence[int] | None = None,
    n_draws: int = 100,
    generator: torch.Generator | None = None,
    *,
    factor_values: Tensor | None = None,
) -> SubspaceInformation:
    r"""Estimate the mutual information of groups of latents and factors from joint densities.

    For the latents :math:`V` of a group, this is the mean of :math:`\log q(z_V \mid v = a) - \log q(z_V)` over draws
    :math:`z` from the posteriors of random images, where :math:`a` is the factor's value in the draw's own image.

    Parameters
    ----------
    mean, log_var
        (N, K) mean and log variance of :math:`q(z \mid x_n)`. The computation is in single precision, unless ``mean``
        is float64 or ``log_var`` beyond ±100.
    groupings
        G groupings, each of S disjoint groups of latents.
    factor_sizes, factor_values
        The images' factors, as in :func:`isa.mig.mutual_information_gap`: a full grid in C order, or a table (N, F).
    n_draws, generator
        Number of images, at most N, drawn without replacement, with one draw from each posterior; source of the draws.
    """
    mean, log_var = as_posteriors(mean, log_var)
    device, (n, k) = mean.device, mean.shape
    n_draws = min(n_draws, n)
    factors, labels = factor_labels(n, factor_sizes, factor_values, None)
    source = device if generator is None else generator.device
    images = torch.randperm(n, generator=generator, device="cpu" if generator is None else source)[:n_draws].to(device)
    noise = torch.randn(n_draws, k, dtype=torch.float64, generator=generator, device=source).to(device)
    mean, log_var, label = mean.T.contiguous(), log_var.T.contiguous(), torch.stack(labels)[list(factors)].to(device)
    single = mean.dtype != torch.float64 and float(log_var.abs().amax()) <= 100.0
    groups = [group for grouping in groupings for group in grouping]
    draws = mean[:, images], log_var[:, images], noise.T
    total = log_sums((mean, log_var), draws, groups, (label, label[:, images]), single).cpu()
    total = total.unflatten(2, (len(groupings), -1))
    share = torch.stack([one.bincount()[one].double().log() for one in label.cpu()])[:, images.cpu()] - math.log(n)
    information = (total[1:] - total[:1] - share[..., None, None]).permute(1, 2, 0, 3)  # (M, G, F, S)
    return SubspaceInformation(information.mean(0), information.std(0) / math.sqrt(n_draws), factors, n_draws)


def log_sums(
    posteriors: Sequence[Tensor],  # mean and log variance (K, N)
    draws: Sequence[Tensor],  # mean and log variance of the posteriors that were drawn from, and noise (K, M)
    groups: Groups,
    labels: Sequence[Tensor] = (),  # values of the factors, for posteriors (F, N) and draws (F, M)
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
    (k, n), m, c = mean.shape, noise.shape[1], len(groups)
    own = -0.5 * (noise.square() + log_var_at)  # exponents under the draws' own posteriors
    own_density = torch.stack([(own[list(group)] - 0.5 * math.log(2.0 * math.pi)).sum(0) for group in groups], 1)
    # The own exponent becomes the shift, so that exponents from low to high can be summed without overflow.
    dtype, low, shift, high = (torch.float32, -87, -40, 70) if single else (torch.float64, -700, -300, 680)
    step = torch.exp(0.5 * log_var_at).mul_(noise)  # apart from the mean, whose rounding error may exceed sigma
    mean_at, step, own = (x.to(dtype)[..., None] for x in (mean_at, step, own))
    latents = torch.tensor([j for group in groups for j in group], device=mean.device)
    starts = torch.tensor([0, *accumulate(map(len, groups))][:-1], device=mean.device)
    size = max(1, (_TILE if mean.is_cpu else _GPU_TILE) // (10 + c + 2 * k))  # posteriors at once, times draws
    rows = max(1, size // n)  # draws at once

    def sums(start: int) -> Tensor:  # over one block of posteriors
        part, out = slice(start, start + size), own.new_empty(1 + len(label), m, c)
        centre, half = mean[:, None, part].to(dtype), -0.5 * log_var[:, None, part].to(dtype)
        scale = math.sqrt(0.5) * torch.exp(half)
        for at in (slice(i, i + rows) for i in range(0, m, rows)):
            t = (mean_at[:, at] - centre).add_(step[:, at]).mul_(scale)
            density = torch.addcmul(half, t, t, value=-1.0).sub_(own[:, at])
            if k > 1:  # sums of rows; a matrix product could be set to reduced precision
                density = embedding_bag(latents, density.flatten(1), starts, mode="sum").unflatten(1, t.shape[1:])
            density.add_(shift).clamp_(low, high).exp_()  # (C, rows, size)
            out[0, at] = density.sum(2).T
            same = torch.empty_like(t[0])
            for total, value, values in zip(out[1:], label_at[:, at, None], label[:, part], strict=True):
                if c > 1 and mean.is_cpu and len(same) == 1:
                    total[at] = density[:, 0].index_select(1, (value == values).nonzero()[:, 1]).sum(1)
                else:
                    total[at] = torch.eq(value, values, out=same).mul(density).sum(2).T
        return out.double()

    return sum(map_in_threads(sums, range(0, n, size), mean)).log_() - shift + own_density


def as_tensor(x: Tensor) -> Tensor:
    """Return a tensor on its own device, or on the CPU for an array or a device without float64."""
    x = torch.as_tensor(x, device=getattr(x, "device", "cpu"))
    return x.cpu() if x.device.type == "mps" else x


def as_posteriors(mean: Tensor, log_var: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return tensors of mean and log variance (N, K); for None, sigma is 1/20 of a latent's standard deviation."""
    mean = as_tensor(mean)
    if log_var is None:
        log_var = (mean.double().std(0, correction=0) / 20.0).log().mul(2.0).clamp(min=-500.0).expand(mean.shape)
    return mean, as_tensor(log_var)


def factor_labels(
    n: int, sizes: Sequence[int] | None, table: Tensor | None, factors: Sequence[int] | None, others: Sequence[int] = ()
) -> tuple[tuple[int, ...], list[Tensor]]:
    """Return the scored factors, and the value of every factor, (N,) on the CPU, counted from 0."""
    if table is not None:
        table = torch.as_tensor(table, device="cpu")
        if table.ndim != 2 or len(table) != n or table.is_floating_point():
            raise ValueError(f"factor_values must be ({n}, F) integers, got {tuple(table.shape)} of {table.dtype}")
        labels = [torch.unique(column.long(), return_inverse=True)[1] for column in table.T]
    elif sizes is not None and math.prod(sizes) == n:
        labels = list(torch.unravel_index(torch.arange(n, device="cpu"), tuple(sizes)))
    else:
        raise ValueError(f"the product of factor_sizes must be N = {n}, got {sizes}")
    counts = [int(label.max()) + 1 for label in labels]
    scored = tuple(f for f, c in enumerate(counts) if c > 1) if factors is None else tuple(factors)
    used = (*scored, *others)
    if not scored or min(counts[f] for f in used) < 2:
        raise ValueError(f"factors must have more than one value, got factors {used} of {counts} values")
    return scored, labels


def map_in_threads(function: Callable, items: Iterable, like: Tensor) -> list:
    """Return the mapped items, computed in threads of one core each if ``like`` is on the CPU."""
    threads = torch.get_num_threads()
    if threads == 1 or not like.is_cpu:
        return [function(item) for item in items]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)  # threads started later would inherit a worker's setting
