r"""Mutual information gap (MIG) of a variational autoencoder (Sec. 4 of the paper).

For image :math:`n` of :math:`N`, the encoder gives a latent the posterior :math:`\mathcal N(\mu_n, \sigma_n^2)`. Over
all images, the latent :math:`z` has the mixture of these posteriors as its density :math:`q(z)`; over the images with
value :math:`a` of a factor :math:`v`, it has the smaller mixture :math:`q(z \mid a)`. Chen et al., "Isolating Sources
of Disentanglement in Variational Autoencoders" (2018), estimate the mutual information

.. math:: I(z; v) = H(z) - \sum_a p(a)\, H(z \mid v = a)
          \approx \frac1N \sum_n \bigl[\log q(z_n \mid v_n) - \log q(z_n)\bigr]

from one draw :math:`z_n` of each posterior. The gap of a factor is the difference between the two largest
:math:`I(z; v)` of all latents, divided by the factor's entropy (:math:`\log |v|` on a full grid). The MIG is the mean
gap. All logarithms are natural.

**Fast sums.** A direct sum costs N Gaussians per draw. The Fourier transform of a mixture is cheaper:

.. math:: \hat q(\omega) = \frac1N \sum_r e^{-\omega^2 V_r / 2} \sum_{n \in r} e^{-i \omega \mu_n}
          \, e^{-\omega^2 (\sigma_n^2 - V_r) / 2},

where row :math:`r` contains the posteriors with a variance near :math:`V_r`. The inner sum is approximated on a grid: a
posterior is spread over the four cells around its mean, with the weights of cubic interpolation, which preserve the
first three moments of :math:`\mathcal N(\mu_n, \sigma_n^2 - V_r)`. One FFT per row, one inverse FFT and linear
interpolation of the log density then give the density at all draws. Errors of a density integrate to zero, so they
change an entropy to second order only. Posteriors that do not fit on one grid (spikes, outliers, widths over many
octaves) are split, by width or by mean, until each part fits or is small enough for direct sums. Direct sums at random
draws give the error bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn.functional import pad

from isa.disentanglement import Disentanglement, disentanglement
from isa.subspaces import as_posteriors, as_tensor, factor_labels, log_sums, map_in_threads

__all__ = ["MutualInformationGap", "active_units", "mutual_information_gap", "mutual_information_gap_binned"]

_CELLS = 4  # cells per sigma of the narrowest posteriors; up to three times as many on small grids
_ROWS = 12  # rows of variance per octave of sigma; the same
_NODES = 16  # nodes of the log-density table per sigma
_REACH = 8.0  # a grid ends this many sigmas outside its posteriors: exp(-32)
_FLOOR = 1e-15  # of the peak density: below lies the rounding error of the FFT
_SMALL, _MOST_BINS = 2**20, 2**24  # of a grid that is made finer, of any
_EXACT_PAIRS, _LEAF_PAIRS = 2**22, 2**16  # draws times posteriors that are summed directly: of a latent, of a part
_RARE = 32  # values of fewer images are summed directly
_CHECKED, _MOST_CHECKED, _CHECKED_PAIRS = 4, 64, 3 * 2**20  # draws compared with direct sums: more if N is small
_WHOLE = 2**30  # weights of a posterior on a GPU, which sums whole numbers
_BLOCK = 2**15  # images that are resampled at once
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


@dataclass(frozen=True)
class MutualInformationGap:
    """Result of :func:`mutual_information_gap`, in nats. Tensors are float64 on the CPU.

    F counts the scored factors, U the unscored ones, K the columns: latents, or groups of latents. With one column, the
    second largest entry of a row counts as 0. Standard errors are those of the scatter of the draws. They treat images
    as drawn at random, columns of a gap as independent, and gaps as fully dependent. Error bounds limit the difference
    from direct sums over the same draws: the mean deviation at random draws and three standard errors of it.
    """

    score: float  #: The MIG: mean of ``gaps``.
    gaps: Tensor  #: (F,) difference of the two largest entries of a row, divided by the factor's entropy.
    mutual_information: Tensor  #: (F, K) difference of the entropies, clamped at 0.
    entropy: Tensor  #: (K,) of all images.
    conditional_entropy: Tensor  #: (F, K) given a factor.
    standard_error: float  #: Of ``score``.
    gaps_standard_error: Tensor  #: (F,)
    mutual_information_standard_error: Tensor  #: (F, K)
    error_bound: float  #: On the error of ``score``; 0 if all sums were direct.
    gaps_error_bound: Tensor  #: (F,)
    entropy_error: Tensor  #: (1 + F, K) bounds for ``entropy`` and ``conditional_entropy``.
    factors: tuple[int, ...]  #: Factor of each row of ``mutual_information``.
    unscored: tuple[int, ...]  #: Factor of each row of ``unscored_mutual_information``.
    unscored_mutual_information: Tensor  #: (U, K)
    subsampled_score: float | None  #: The score from ``subsample`` draws per mixture.
    resampled_gaps: Tensor | None  #: (B, F) ``gaps`` of the bootstrap resamples.
    factor_entropy: Tensor  #: (F,)

    @property
    def disentanglement(self) -> Disentanglement:
        """InfoM, InfoC, modularity and completeness of the same matrix."""
        return disentanglement(self.mutual_information, self.factor_entropy)


@torch.no_grad()
def mutual_information_gap(
    mean: Tensor,
    log_var: Tensor | None,
    factor_sizes: Sequence[int] | None = None,
    factors: Sequence[int] | None = None,
    n_samples: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    generator: torch.Generator | None = None,
    *,
    factor_values: Tensor | None = None,
    unscored: Sequence[int] = (),
    subsample: int | None = None,
    resamples: int = 0,
) -> MutualInformationGap:
    r"""Estimate the mutual information gap of Gaussian posteriors.

    Parameters
    ----------
    mean, log_var
        (N, K) mean and log variance of :math:`q(z \mid x_n)`. Computed in float64, on their device if possible.
        ``log_var=None`` stands for a deterministic encoder, whose exact codes would identify every image: they get
        noise of 1/20 of the latent's standard deviation, the rounding error of uniform codes in 20 bins.
    factor_sizes
        Number of values of each factor, if the images form a full grid in C order (the last factor varies fastest).
    factors
        Factors to score; all with more than one value by default. The paper omits dSprites' shape: ``(1, 2, 3, 4)``.
    n_samples
        Number of draws per mixture, i.e. per value of a factor; all by default. Fewer save time for ``groups`` only.
    groups
        Disjoint groups of latents, each scored as one column (the MIG of subspaces), by N Gaussians per draw.
    generator
        Source of the random numbers.
    factor_values
        Alternative to ``factor_sizes``: (N, F) integers, the factors' values for images in any order and number. Each
        value counts by its share of the images, and their order does not change the result.
    unscored
        Factors whose mutual information is reported but does not enter the score.
    subsample
        Number of draws per mixture for ``subsampled_score``, chosen at random by the seed of ``generator``.
    resamples
        Number B of bootstrap resamples for ``resampled_gaps``, if all draws are used. They change the weights of the
        images, and keep the densities of all images, whose change is of second order.

    Examples
    --------
    A latent that encodes the only factor, and one that encodes nothing:

    >>> mean = torch.stack([torch.arange(8.0), torch.zeros(8)], 1)
    >>> log_var = torch.tensor([-12.0, 0.0]).expand(8, 2)
    >>> round(mutual_information_gap(mean, log_var, (8,)).score, 6)
    1.0
    """
    mean, log_var = as_posteriors(mean, log_var)
    device, (n, k) = mean.device, mean.shape
    scored, every = factor_labels(n, factor_sizes, factor_values, factors, unscored)
    if factor_values is not None:
        order = _order(every, mean, log_var)
        every, mean, log_var = [x[order] for x in every], mean[order.to(device)], log_var[order.to(device)]
    columns = [[j] for j in range(k)] if groups is None else [list(group) for group in groups]
    used = sorted(j for column in columns for j in column)
    columns = [[used.index(j) for j in column] for column in columns]
    mean, log_var = (x.T[used].contiguous() for x in (mean, log_var))
    if not (mean.isfinite().all() and log_var.abs().amax() <= 500):
        raise ValueError("mean must be finite and log_var must lie between -500 and 500")

    labels = [torch.zeros_like(every[0]), *(every[f] for f in (*scored, *unscored))]
    mixtures, kept, m = _Mixtures(labels, device), 1 + len(scored), min(n, n_samples or n)
    source = device if generator is None else generator.device
    noise = torch.randn(len(used), n, dtype=torch.float64, device=source, generator=generator).to(device)
    other = torch.Generator("cpu").manual_seed((generator or torch).initial_seed() ^ 0x5EED)
    sampler = fewer = counts = None
    members: list[list[Tensor]] = []  # images by mixture, and by the factor's value
    draws: list[list[Tensor]] = []  # those that are drawn
    if m < n or subsample is not None or groups is not None:
        members = [mixtures.members(r) for r in range(len(labels))]
        draws = _choose(members[:kept], m, generator)
        if subsample is not None:
            fewer = _weights(members, _choose(draws, subsample, other, always=True), n)
        draws += _choose(members[kept:], m, other)
        sampler = _weights(members, draws, n) if m < n else None
    if resamples and m == n:
        counts = _resample(n, resamples, other).to(device)
    checked = torch.randperm(n, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    checked = checked[: max(_CHECKED, min(_MOST_CHECKED, _CHECKED_PAIRS // n))].to(device)

    def estimate(column: list[int]) -> tuple[Tensor, ...]:
        """Return entropies (R,), squared errors of the information, error bounds of both, then
        entropies from fewer draws and information of resamples."""
        off = noise.new_zeros(len(labels), 1)
        if len(column) > 1:
            log_q = _joint(mean[column], log_var[column], noise[column], members, draws)
        else:
            (j,) = column
            q = _Posteriors(mean[j], log_var[j], noise[j], mixtures.label, mixtures.row)
            exact = n * n <= _EXACT_PAIRS
            log_q = (_direct(q, q) if exact else _fast(q, mixtures)).double()
            torch.maximum(log_q, q.own(), out=log_q)  # the sum contains the draw's own posterior
            off = off if exact else log_q[:, checked] - _direct(q, q.at(checked))
        log_q -= mixtures.log_n
        subsampled = log_q.new_empty(0) if fewer is None else _averages(log_q, fewer)[0]
        resampled = log_q.new_empty(0) if counts is None else _reweighted(log_q[1:kept] - log_q[0], counts)
        return *_averages(log_q, sampler), _bound(off, m), _bound(off[1:] - off[0], m), subsampled, resampled

    rows = zip(*map_in_threads(estimate, columns, mean), strict=True)
    entropies, variances, errors, moves, fewer_entropies, resampled = (torch.stack(x, 1).cpu() for x in rows)
    f, size = kept - 1, math.log(n) - mixtures.log_n[1:kept].mean(1).cpu()  # entropies of the factors
    information = (entropies[0] - entropies[1:]).clamp(min=0.0)
    gaps, best = _gaps(information[:f], size), information[:f].argsort(dim=1, descending=True)[:, :2]
    gap_errors = variances[:f].gather(1, best).sum(1).sqrt() / size
    bounds = 2.0 * moves[:f].amax(1) / size  # sorted entries move by no more than the largest move
    score_of_fewer = resampled_gaps = None
    if fewer is not None:
        score_of_fewer = float(_gaps(fewer_entropies[0] - fewer_entropies[1:], size).mean())
    if counts is not None:
        sizes = math.log(n) - _reweighted(mixtures.log_n[1:kept], counts).cpu()
        resampled_gaps = _gaps(resampled.transpose(1, 2), sizes).T
    values = float(gaps.mean()), gaps, information[:f], entropies[0], entropies[1:kept]
    spread = float(gap_errors.mean()), gap_errors, variances[:f].sqrt(), float(bounds.mean()), bounds, errors[:kept]
    rest = scored, tuple(unscored), information[f:], score_of_fewer, resampled_gaps, size
    fields = *values, *spread, *rest
    return MutualInformationGap(*fields)


def mutual_information_gap_binned(
    mean: Tensor,
    factor_sizes: Sequence[int] | None = None,
    factors: Sequence[int] | None = None,
    *,
    factor_values: Tensor | None = None,
    bins: int = 20,
) -> tuple[float, Tensor]:
    """Return the MIG of binned posterior means (N, K), and their mutual information with the factors, (F, K) in nats.

    The estimator of Locatello et al. (2019): the range of each latent's mean is cut into equal bins. Variances do not
    enter, so a collapsed latent is scored by the shape of its tiny means.
    """
    mean = as_tensor(mean).detach().cpu().double()
    n, k = mean.shape
    scored, labels = factor_labels(n, factor_sizes, factor_values, factors)
    low, high = mean.amin(0), mean.amax(0)
    code = ((mean - low) / torch.where(high > low, high - low, 1.0) * bins).long().clamp(max=bins - 1)
    code += bins * torch.arange(k, device="cpu")  # every latent has its own bins
    rows, sizes = [], []
    for label in (labels[f] for f in scored):
        index, count = (code + bins * k * label[:, None]).flatten(), int(label.max()) + 1
        joint = index.bincount(minlength=count * k * bins).view(count, k, bins).double() / n
        of_code, of_both = (torch.special.entr(p).sum((0, -1)) for p in (joint.sum(0, keepdim=True), joint))
        sizes.append(torch.special.entr(joint[:, 0].sum(-1)).sum())
        rows.append((of_code + sizes[-1] - of_both).clamp(min=0.0))
    information = torch.stack(rows)
    return float(_gaps(information, torch.stack(sizes)).mean()), information


def active_units(mean: Tensor, threshold: float = 1e-2) -> Tensor:
    """Return a (K,) mask of latents whose mean, (N, K), has a variance above ``threshold``: Burda et al. (2016)."""
    return as_tensor(mean).detach().to(torch.float64).var(0, correction=0) > threshold


def _gaps(information: Tensor, entropy: Tensor) -> Tensor:
    """Return the gaps (...) of information (..., K) with factors of this entropy (...)."""
    return -pad(information.clamp(min=0.0), (0, 1)).topk(2, dim=-1).values.diff()[..., 0] / entropy


def _order(labels: list[Tensor], mean: Tensor, log_var: Tensor) -> Tensor:
    """Return the images in C order of their factors, those with equal factors in an order that their posteriors set."""
    posteriors = torch.cat([mean, log_var], 1).double().cpu().numpy()
    ties = posteriors @ np.sin(np.arange(1.0, posteriors.shape[1] + 1.0))
    return torch.from_numpy(np.lexsort([ties, *torch.stack(labels).flip(0).numpy()]))


def _choose(
    mixtures: list[list[Tensor]], count: int, generator: torch.Generator | None, always: bool = False
) -> list[list[Tensor]]:
    """Return ``count`` random images of each value; ``always``: use random numbers even if these are all."""

    def choose(images: Tensor) -> Tensor:
        if count >= len(images) and not always:
            return images
        source = images.device if generator is None else generator.device
        return images[torch.randperm(len(images), generator=generator, device=source)[:count].to(images.device)]

    return [[choose(images) for images in values] for values in mixtures]


def _weights(members: list[list[Tensor]], draws: list[list[Tensor]], n: int) -> Tensor:
    """Return weights (R, N) of drawn images: the share of their value in all images, over the number of its draws."""
    weights = torch.zeros(len(draws), n, dtype=torch.float64, device=members[0][0].device)
    for row, images, drawn in zip(weights, members, draws, strict=False):
        for every, some in zip(images, drawn, strict=True):
            row[some] = len(every) / (len(some) * n)
    return weights


def _resample(n: int, count: int, generator: torch.Generator) -> Tensor:
    """Return how often each image is in each resample of n images, (B, N)."""
    draws = (torch.randint(n, (n,), generator=generator, device="cpu") for _ in range(count))
    return torch.stack([x.bincount(minlength=n).to(torch.uint8) for x in draws])


def _reweighted(x: Tensor, counts: Tensor) -> Tensor:
    """Return the (R, B) means of x, (R, N), over images of which B resamples contain these counts, (B, N)."""
    n, total = x.shape[1], x.new_zeros(len(x), len(counts), dtype=torch.float64)
    for values, weights in zip(x.split(_BLOCK, 1), counts.split(_BLOCK, 1), strict=True):
        total += values.float() @ weights.float().T
    return total / n


def _averages(log_q: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return entropies (R,) and squared errors of the information (R - 1,) from log densities (R, N) at draws.

    Weights (R, N) add up to 1, and are zero for images that were not drawn; None for equal ones.
    """
    if weights is None:  # H(z) and H(z | v) use the same draws
        n, moves = log_q.shape[1], log_q[1:] - log_q[0]
        variance = (moves.square().mean(1) - moves.mean(1).square()).clamp(min=0.0)
        return -log_q.mean(1), variance / (n - 1 if n > 1 else math.nan)
    log_q, m = log_q[: len(weights)], (weights > 0).sum(1)
    entropy = -(weights * log_q).sum(1)
    variance = (weights * (log_q + entropy[:, None])).square().sum(1) * m / (m - 1)  # NaN for one draw
    return entropy, variance[1:] + variance[0]


def _bound(off: Tensor, m: int) -> Tensor:
    """Return (R,) bounds on mean errors over m draws: the mean of (R, P) errors and three standard errors of it."""
    return off.mean(1).abs() + 3.0 * off.square().mean().sqrt() * math.sqrt(1.0 / off.shape[1] + 1.0 / m)


class _Mixtures:
    """Images by mixture: that of all images, then those of each factor's values; R counts all and the factors."""

    def __init__(self, labels: list[Tensor], device: torch.device) -> None:  # (N,) each, on the CPU
        self.labels, self.counts = labels, [torch.bincount(label) for label in labels]
        self.rows, self.rare, rows, log_n = [0], [], [], []
        for label, count in zip(labels, self.counts, strict=True):
            # On a grid, each frequent value has a row, and all rare ones share the last.
            frequent = (count >= _RARE) | (len(count) == 1)
            row = (frequent.cumsum(0) - 1).where(frequent, frequent.sum())[label] + self.rows[-1]
            rare = (~frequent[label]).nonzero()[:, 0]
            self.rare.append(rare[label[rare].argsort()].to(device))
            self.rows.append(int(row.max()) + 1)
            rows.append(row)
            log_n.append(count.double().log()[label])
        self.label, self.row = torch.stack(labels).int().to(device), torch.stack(rows).to(device)  # (R, N)
        self.log_n = torch.stack(log_n).to(device)  # (R, N) number of images with the image's value

    def members(self, r: int) -> list[Tensor]:
        """Return the images of each value."""
        return list(self.labels[r].argsort(stable=True).to(self.label.device).split(self.counts[r].tolist()))


class _Posteriors(NamedTuple):
    """Posteriors of a latent, with one draw of each (n,), and their images' values and rows on a grid (R, n)."""

    mean: Tensor
    log_var: Tensor
    noise: Tensor
    label: Tensor
    row: Tensor

    def at(self, index: Tensor) -> _Posteriors:
        return _Posteriors(*(x.index_select(-1, index) for x in self))

    def draws(self) -> tuple[Tensor, Tensor]:
        """Return the mean and the step to the draw: sigma may be below the rounding error of the mean."""
        return self.mean.double(), torch.exp(0.5 * self.log_var.double()).mul_(self.noise)

    def own(self) -> Tensor:
        """Return the log density of the draw under its own posterior."""
        return torch.addcmul(self.log_var.double(), self.noise, self.noise).mul_(-0.5).sub_(_HALF_LOG_2PI)


def _direct(of: _Posteriors, at: _Posteriors) -> Tensor:
    """Return (R, P) logs of the sums of densities at draws, over the posteriors with the draw's value."""
    draws = at.mean[None], at.log_var[None], at.noise[None]
    return log_sums((of.mean[None], of.log_var[None]), draws, [[0]], (of.label[1:], at.label[1:]))[:, :, 0]


def _joint(
    mean: Tensor, log_var: Tensor, noise: Tensor, members: list[list[Tensor]], draws: list[list[Tensor]]
) -> Tensor:
    """Return (R, N) logs of the sums of joint densities of latents (K, N) at the draws, directly."""
    out = torch.zeros(len(draws), mean.shape[1], dtype=torch.float64, device=mean.device)
    for row, images, drawn in zip(out, members, draws, strict=True):
        for of, at in zip(images, drawn, strict=True):
            points = mean[:, at], log_var[:, at], noise[:, at]
            row[at] = log_sums((mean[:, of], log_var[:, of]), points, [range(len(mean))])[0, :, 0]
    return out


def _fast(q: _Posteriors, mixtures: _Mixtures) -> Tensor:
    """Return (R, N) logs of the sums of densities at all draws."""
    out = torch.full(q.label.shape, -math.inf, dtype=torch.float32, device=q.mean.device)
    parts: list[tuple[_Posteriors, _Posteriors, Tensor | None]] = [(q, q, None)]
    while parts:  # posteriors, draws that may be in their reach, the draws' images
        of, at, images = parts.pop()
        mean, log_var = of.mean.double(), of.log_var.double()
        extent = low, high, least, most = torch.stack([*mean.aminmax(), *log_var.aminmax()]).tolist()
        margin = _REACH * math.exp(0.5 * most)
        if images is not None:
            z = torch.add(*at.draws())
            near = ((z >= low - margin) & (z <= high + margin)).nonzero()[:, 0]
            at, images = at.at(near), images[near]
        pairs = len(of.mean) * len(at.mean)
        # Estimated times of direct sums and of a grid, in ns on a CPU core
        rows = mixtures.rows[-1] * _ROWS * (1.0 + (most - least) / math.log(4.0))
        bins = rows * _CELLS * (high - low + 2.0 * margin) / math.exp(0.5 * least)
        direct, grid = (2.0 + len(q.label)) * pairs, 10.0 * bins
        compact = high - low <= 2.0 * margin and most - least < 4.0
        if pairs <= _LEAF_PAIRS or (compact and direct < grid):
            sums = _direct(of, at)
        elif compact or (bins <= _MOST_BINS and grid < 3000.0 * (len(of.mean) + len(at.mean))):
            sums = _grid(of, at, extent, min(3, max(1, int(math.sqrt(_SMALL / bins)))), mixtures)
        else:
            if most - least > 6.0 or high - low < 2.0 * margin:
                upper = log_var > 0.5 * (least + most)
            else:
                upper = mean >= max(low + 0.5 * (high - low), math.nextafter(low, math.inf))
            images = torch.arange(len(mean), device=mean.device) if images is None else images
            parts += [(of.at(side.nonzero()[:, 0]), at, images) for side in (upper, ~upper)]
            continue
        if images is None:
            out = sums
        else:
            out[:, images] = torch.logaddexp(out[:, images], sums.float())
    for r, rare in enumerate(mixtures.rare):
        for start in range(0, len(rare), 256):  # sorted by value, so all with the same value are near
            near, images = rare[max(0, start - _RARE) : start + 256 + _RARE], rare[start : start + 256]
            out[r, images] = _direct(q.at(near), q.at(images))[r].to(out.dtype)
    return out


def _grid(of: _Posteriors, at: _Posteriors, extent: Sequence[float], finer: int, mixtures: _Mixtures) -> Tensor:
    """Return (R, P) logs of the sums of densities at draws, over some posteriors: by Fourier transforms.

    ``extent`` gives the range of the means and of the log variances; ``finer`` grids have more cells and rows.
    """
    per_sigma, height = _CELLS * finer, math.log(4.0) / (_ROWS * finer)  # the latter of a row of log variance
    (low, high, least, most), device, cpu = extent, of.mean.device, of.mean.is_cpu
    margin, rows = _REACH * math.exp(0.5 * most), int((most - least) / height) + 1
    least -= 0.5 * (rows * height - (most - least))  # centre the rows
    spacing = math.exp(0.5 * least) / per_sigma
    cells = next_fast_len(math.ceil((high - low + 2.0 * margin) / spacing), real=True)
    length, nodes = cells * spacing, cells * math.ceil(_NODES / per_sigma)
    variance = torch.arange(0.5, rows, dtype=torch.float64, device=device).mul_(height).exp_() * per_sigma**2  # cells^2

    # Weights on the cells, for every value of every factor; whole numbers on a GPU, which adds in any order
    values, size = mixtures.rows[-1] - 1, rows * cells
    bins = torch.zeros(values * size, dtype=torch.float64 if cpu else torch.int64, device=device)
    mean, log_var = of.mean.double(), of.log_var.double()
    row = ((log_var - least) * (1.0 / height)).int().clamp_(max=rows - 1)
    position = (mean - low).add_(margin).mul_(1.0 / spacing)
    cell = position.floor()
    f = position.sub_(cell)
    s = log_var.exp().mul_(1.0 / spacing**2).sub_(variance.index_select(0, row))
    second = f.square().add_(s)  # moments of N(f, s)
    third = second.add(s, alpha=2.0).mul_(f)
    above = (third - f).mul_(1.0 / 6.0)  # weights of the cells -1, 0, 1, 2: expectations of Lagrange's cubics
    below = (second - f).mul_(0.5).sub_(above)
    right = (f + below).sub_(above, alpha=2.0)
    left = 1.0 - (below + right).add_(above)
    weights = [w if cpu else (w * _WHOLE).round_().long() for w in (below, left, right, above)]
    first = cell.long().add_(row, alpha=cells).sub_(1 + size)  # row 0 of the values has no bins
    for value in of.row[1:]:
        index = torch.add(first, value, alpha=size)
        for shift, w in enumerate(weights):
            bins[shift:].scatter_add_(0, index, w)

    bins = (bins if cpu else bins.double() * (1.0 / _WHOLE)).view(values, rows, cells)
    omega = torch.arange(cells // 2 + 1, dtype=torch.float64, device=device) * (2.0 * math.pi / cells)
    spectra = torch.zeros(values + 1, nodes // 2 + 1, dtype=torch.complex128, device=device)
    blur = torch.exp(-0.5 * variance[:, None] * omega.square())
    spectra[1:, : len(omega)] = torch.fft.rfft(bins).mul_(blur).sum(1)
    a, b = min(pairwise(mixtures.rows[1:]), key=lambda ends: ends[1] - ends[0])
    torch.sum(spectra[a:b], 0, out=spectra[0])
    table = _log_table(spectra, nodes, length, (length / nodes / (per_sigma * spacing)) ** 2)

    mean, step = at.draws()
    position = (mean - low).add_(step).add_(margin).mul_(nodes / length).clamp_(0.0, nodes - 2.0)
    cell = position.floor()
    f, cell = position.sub_(cell).float(), cell.long()
    out = torch.empty(at.row.shape, dtype=torch.float32, device=device)
    for x, row in zip(out, at.row, strict=True):
        entry = table.index_select(0, torch.add(cell, row, alpha=nodes))
        torch.addcmul(entry.real, entry.imag, f, out=x)
    return out


def _log_table(spectrum: Tensor, nodes: int, length: float, curvature: float) -> Tensor:
    """Return (V * nodes,) complex: log density and its step to the next node, for linear interpolation without bias.

    A chord lies below a concave curve by a twelfth of the second difference on average; the nodes are raised by that.
    The second difference of a mixture's log density is at least ``-curvature``, that of its narrowest Gaussian.
    """
    density = torch.fft.irfft(spectrum, n=nodes)  # (V, nodes)
    peak = density.amax(1, keepdim=True).clamp_(min=1e-300)
    log = torch.threshold_(density.div_(peak), _FLOOR, 1e-300).log_()
    log += peak.log_() + math.log(nodes / length)
    second = log.roll(1, -1).add_(log.roll(-1, -1)).sub_(log, alpha=2.0)
    log -= second.clamp_(-curvature, 8.0 * curvature).mul_(1.0 / 12.0)
    return torch.complex(log.float(), (log.roll(-1, -1) - log).float()).flatten()
