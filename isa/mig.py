"""The mutual information gap (MIG), estimated without bias from binning and in seconds.

Sec. 4 of the paper, with the estimator of Chen et al., "Isolating Sources of Disentanglement in Variational
Autoencoders" (2018). For a data set whose images form a full grid of known factors, the mutual information of a latent
:math:`z_j` and a factor :math:`v` under the encoder's joint distribution is

.. math:: I(z_j; v) = H(z_j) - \\frac{1}{|v|} \\sum_{a} H(z_j \\mid v = a),

and each entropy is that of a mixture of Gaussian posteriors, over all :math:`N` images or over the images with
:math:`v = a`, estimated with one draw :math:`z^{(n)} \\sim q(z \\mid x_n)` an image:

.. math:: H \\approx -\\frac1M \\sum_{n} \\log \\frac{1}{N} \\sum_{m=1}^{N}
          \\mathcal N\\bigl(z_j^{(n)}; \\mu_{mj}, \\sigma_{mj}^2\\bigr).

The gap of a factor is the difference of its two largest :math:`I(z_j; v)`, divided by :math:`\\log |v|`; the score is
the mean over factors. All logarithms are natural.

The double sum costs :math:`M N` Gaussians. Three ways of computing it are combined here, latent by latent:

* few pairs: the sum itself;
* otherwise a grid: posteriors are laid down on cells of (mean, variance) with linear weights, one grid an octave of
  sigma, every variance is blurred by one FFT, all octaves are added as spectra, and the log density is interpolated
  where it is asked. A linear weight between two cells widens a posterior by a known variance, which is taken off before
  the variance's own weights are set, so that every posterior keeps its exact mean and variance;
* posteriors too narrow for a grid over the whole axis: the pairs within reach of each other where they are few, and
  where they are many the same grid over the occupied stretches of the axis alone.

The result says how far the fast sums are from the exact ones at points drawn at random.
"""

from __future__ import annotations

import itertools
import math
import operator
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from scipy.fft import next_fast_len
from torch import Tensor
from torch.nn import functional

__all__ = [
    "BinnedMutualInformationGap",
    "MutualInformationGap",
    "SubspaceInformation",
    "active_units",
    "mutual_information_gap",
    "mutual_information_gap_binned",
    "random_groupings",
    "subspace_information",
]

_BLOCK = 2**15  # images worked on at once on a CPU: what is made in passing stays in a core's cache
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
_LOG_VAR_LIMIT = 500.0  # sigma and 1/sigma stay far from the ends of float64
_DIRECT_PAIRS = 2**22  # up to here the plain double sum is the cheaper one,
_DIRECT_MEMBERS = 256  # and for mixtures of so few, of which there are many
_TILE = 2**16  # elements of a tile of the double sum: 512 KiB of float64, within a core's cache
_GPU_TILE = 2**25  # 24 points and the images of dSprites are one tile
_BOX, _GPU_BOX = 2**19, 2**29  # numbers of single precision that joint densities work on at once
_LEAST_EXPONENT = -700.0  # nothing beside any point's own posterior; exp is many times slower where it underflows
_LEAST_SIGMA = 2.0**-44  # of the greatest |mean| or |z|: narrower posteriors are not for a grid, since z is rounded
_EDGE_SIGMAS = 8.0  # the grid ends this many sigmas outside every posterior
_REACH_SIGMAS = 12.0  # exp(-72): a posterior is nothing beyond
_UPSAMPLING = 4  # cells of the density's table to one of the finest level
_CONFIDENCE = 3.0  # standard errors
_CHECKED_SLICES = 8  # the points compared with the exact sum share their slices
_SPARSE_PAIRS = 32  # neighbours up to which pairs are cheaper than a grid
_LINE_CELLS = 2**20
_SLOW_PAIRS = 1e12
_OWN_SEED = 0x5EED  # random choices that must not disturb the caller's generator


@dataclass(frozen=True, slots=True)
class MutualInformationGap:
    """Mutual information of latents (or groups of latents) and factors; all tensors are float64 on the CPU.

    F counts the factors scored, C the columns: latents, or groups where groups were asked for. Entropies and
    mutual information are in nats.

    Attributes
    ----------
    score
        The MIG: mean of ``gaps``.
    gaps
        (F,) difference of the two largest entries of a row of ``mutual_information`` over ``log`` of the number of
        values. Where there is one column only, the runner-up counts as 0.
    mutual_information
        (F, C) ``entropy - conditional_entropy``, clamped at 0.
    entropy, conditional_entropy
        (C,) and (F, C).
    factors
        Index in ``factor_sizes`` of each row.
    columns
        The latents of each column.
    entropy_error, conditional_entropy_error
        (C,) and (F, C): bound on the distance of an entropy from the exact double sum over the same draws; 0 where that
        sum itself was computed. An entropy is the mean of ``-log q`` over its draws, so its distance is the mean of
        ``log q - log q_exact``: the absolute mean of this at ``checked_points`` draws taken at random, with ``q_exact``
        summed over all posteriors in float64, plus three standard errors of that mean. It is a bound at this
        confidence (0.997 for normal deviations), not a certain one.
    gaps_error_bound
        (F,) what these errors can do to each of ``gaps``, at most.
    error_bound
        The same of ``score``: their mean.
    checked_points
        Draws of one entropy compared with the exact sum.
    mutual_information_standard_error
        (F, C) Monte-Carlo standard error, from the scatter of the draws. It treats the images as drawn at random; where
        every image is used it therefore errs on the large side.
    gaps_standard_error
        (F,) the same of ``gaps``, by independent errors of the two columns of a gap.
    standard_error
        The same of ``score``: the mean of ``gaps_standard_error``, as if errors of factors were fully dependent.
    bootstrap_scores
        (B,) scores under resampling, see :func:`mutual_information_gap`; empty where none were asked for.
    unscored
        Index in ``factor_sizes`` of each row of ``unscored_mutual_information``.
    unscored_mutual_information
        (U, C) mutual information with factors that do not enter the score, clamped at 0.
    subsampled_score
        The score whose entropies are means over ``subsample`` draws; None without ``subsample``.
    """

    score: float
    gaps: Tensor
    mutual_information: Tensor
    entropy: Tensor
    conditional_entropy: Tensor
    factors: tuple[int, ...]
    columns: tuple[tuple[int, ...], ...]
    entropy_error: Tensor
    conditional_entropy_error: Tensor
    gaps_error_bound: Tensor
    error_bound: float
    checked_points: int
    mutual_information_standard_error: Tensor
    gaps_standard_error: Tensor
    standard_error: float
    bootstrap_scores: Tensor
    unscored: tuple[int, ...]
    unscored_mutual_information: Tensor
    subsampled_score: float | None


@dataclass(frozen=True, slots=True)
class BinnedMutualInformationGap:
    """The binned MIG and its parts, see :func:`mutual_information_gap_binned`; tensors are float64 on the CPU.

    Attributes
    ----------
    score
        Mean of ``gaps``.
    gaps
        (F,) difference of the two largest entries of a row over the factor's entropy.
    mutual_information
        (F, K), nats.
    factor_entropy
        (F,) log of the number of values.
    factors
        Index in ``factor_sizes`` of each row.
    """

    score: float
    gaps: Tensor
    mutual_information: Tensor
    factor_entropy: Tensor
    factors: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SubspaceInformation:
    """Result of :func:`subspace_information`; tensors are float64 on the CPU."""

    mutual_information: Tensor
    """(G, F, S) mutual information of groups and factors in nats, unbiased and hence not clamped at 0."""
    standard_error: Tensor
    """(G, F, S) from the scatter of the draws, which all groups share: differences of groups have smaller errors."""
    factors: tuple[int, ...]
    """Index in ``factor_sizes`` of each factor: those of more than one value."""
    n_draws: int


@dataclass(frozen=True, slots=True)
class _Mixtures:
    """The V mixtures of one entropy: all images (V = 1), or the slices of a factor."""

    label: Tensor  # (N,) mixture of each image
    members: Tensor  # (V, n) images of each mixture
    query: Tensor | None  # (M,) image of each sample point; None for every image in order
    query_label: Tensor  # (M,)
    query_rows: Tensor  # (V, m) sample points of each mixture

    @property
    def images(self) -> Tensor:
        """(V, m) image of each sample point, by mixture."""
        return self.query_rows if self.query is None else self.query[self.query_rows]


class _Latent:
    """One latent under all posteriors, with one draw an image. All tensors (N,), float64."""

    def __init__(self, mean: Tensor, log_var: Tensor, noise: Tensor) -> None:
        self.mean = mean
        # own is log N(z_n; mu_n, sigma_n); z_rest what rounding took from z, felt where sigma is below the mean's ulp.
        self.sigma, self.z, self.z_rest, self.own = _by_blocks(self._drawn, mean, log_var, noise)
        ends = [*torch.aminmax(self.sigma), *torch.aminmax(mean), *torch.aminmax(self.z), *_span(mean, self.sigma)]
        self.sigma_min, self.sigma_max, *ends, self.low, self.high = torch.stack(ends).tolist()
        self.largest = max(map(abs, ends))

    @staticmethod
    def _drawn(mean: Tensor, log_var: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        sigma = torch.exp(0.5 * log_var)
        step = sigma * noise
        z = mean + step
        return sigma, z, (mean - z) + step, (noise.square() + log_var).mul_(-0.5).sub_(_HALF_LOG_2PI)


def _span(mean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return the ends of a grid for these posteriors."""
    return (mean - _EDGE_SIGMAS * sigma).min(), (mean + _EDGE_SIGMAS * sigma).max()


def _in_blocks(device: torch.device) -> bool:
    """True for a CPU, where work in blocks that fit into the cache is faster and sums have a fixed order."""
    return device.type == "cpu"


def _by_blocks(function: Callable[..., tuple[Tensor, ...]], *vectors: Tensor) -> tuple[Tensor, ...]:
    """An elementwise function of vectors of one length, on a CPU a block at a time."""
    n = len(vectors[0])
    if n <= _BLOCK or not _in_blocks(vectors[0].device):
        return function(*vectors)
    out: tuple[Tensor, ...] = ()
    for start in range(0, n, _BLOCK):
        parts = function(*(v[start : start + _BLOCK] for v in vectors))
        out = out or tuple(part.new_empty(n) for part in parts)
        for whole, part in zip(out, parts, strict=True):
            whole[start : start + _BLOCK] = part
    return out


def mutual_information_gap(
    mean: Tensor,
    log_var: Tensor,
    factor_sizes: Sequence[int],
    factors: Sequence[int] | None = None,
    n_samples: int | None = None,
    groups: Sequence[Sequence[int]] | None = None,
    generator: torch.Generator | None = None,
    *,
    n_bootstrap: int = 0,
    checked_points: int = 24,
    progress: Callable[[int, int], object] | None = None,
    unscored: Sequence[int] = (),
    subsample: int | None = None,
) -> MutualInformationGap:
    r"""Mutual information gap of Gaussian posteriors over a full grid of factors.

    Parameters
    ----------
    mean, log_var
        (N, K) mean and log variance of :math:`q(z \mid x_n)`, N the product of ``factor_sizes``, images in C order of
        the factors (the last varies fastest). The work is done on their device, in float64.
    factor_sizes
        Number of values of every factor. dSprites: ``(3, 6, 40, 32, 32)``.
    factors
        Indices of the factors scored; every factor of more than one value unless given. The paper scores dSprites with
        ``(1, 2, 3, 4)``: shape is left out.
    n_samples
        Draws an entropy is averaged over: every image's unless given. ``10_000`` is what other studies use, drawn
        without replacement from all images for :math:`H(z_j)` and from a slice (all of it, where it is no larger) for
        :math:`H(z_j \mid v)`. The mixtures are over all images in either case.
    groups
        Disjoint groups of latents, each scored as one column (the MIG of subspaces): the joint entropy of its latents,
        under mixtures of diagonal Gaussians in which every posterior has one weight. Latents in no group are left out.
        A group of one latent is that latent. Larger groups have no fast path: they cost
        ``(F + 1) * n_samples * N`` Gaussians for slices of at least ``n_samples`` images, about half a minute of two
        cores for each 10^10, and N^2 without ``n_samples``. A warning says so above 10^12.
    generator
        Source of all randomness, on any device. The same generator state gives the same result on one machine.
    n_bootstrap
        Scores recomputed on resampled draws (``bootstrap_scores``): the points that enter an average are drawn anew,
        with replacement; the mixtures stay. With all images, one resample of images serves every latent and factor, and
        the spread is that of a score on N images taken from a larger set of such images; with ``n_samples``, entropies
        are resampled apart. It says how far a score hangs on the draws for this encoder and this data set, and nothing
        of other trainings. Clamping at 0 and taking the two largest biases resampled scores as it biases the score.
    checked_points
        Sample points of each entropy at which the fast density is compared with the exact one.
    progress
        Called with the number of columns done and their total, after each, by one thread at a time.
    unscored
        Further factors, whose mutual information is reported but does not enter the score. Nothing else changes.
    subsample
        Draws of each mixture that the entropies of ``subsampled_score`` are averaged over: at 10,000 the score of other
        studies, as from ``n_samples`` but at next to no cost. They are chosen at random by the seed of ``generator``,
        whose state stays as it is.

    Returns
    -------
    MutualInformationGap

    Examples
    --------
    A latent that knows the only factor, and one that knows nothing:

    >>> mean = torch.stack([torch.arange(8.0), torch.zeros(8)], 1)
    >>> log_var = torch.tensor([-12.0, 0.0]).expand(8, 2)
    >>> round(mutual_information_gap(mean, log_var, (8,)).score, 6)
    1.0
    """
    mean, log_var, sizes = _check_posteriors(mean, log_var, factor_sizes)
    scored = _check_factors(factors, sizes)
    n, k = mean.shape
    columns = _check_groups(groups, k)
    n_samples = _check_count("n_samples", n_samples, 1, n, f"1 to N = {n}") if n_samples is not None else n
    further = _check_factors(unscored, sizes) if unscored else ()
    n_bootstrap = _check_count("n_bootstrap", n_bootstrap, 0, math.inf, "0 or more")
    checked_points = _check_count("checked_points", checked_points, 1, math.inf, "1 or more")

    device = mean.device
    with torch.no_grad():
        used = sorted({j for column in columns for j in column})
        mean, log_var = (x.T[used].to(torch.float64).contiguous() for x in (mean, log_var))
        noise = _randn((len(used), n), generator, device)
        mixtures = [_mixtures(sizes, f, n_samples, generator, device) for f in (None, *scored)]
        seed = torch.initial_seed() if generator is None else generator.initial_seed()
        own = torch.Generator().manual_seed(seed ^ _OWN_SEED)
        chosen = [] if subsample is None else [_subsample(m, subsample, own) for m in mixtures]
        checks = [_checks(m, checked_points) for m in mixtures]
        mixtures += [_mixtures(sizes, f, n_samples, own, device) for f in further]
        joint = sum(len(column) > 1 for column in columns)
        pairs = joint * sum(float(m.query_label.numel()) * m.members.shape[1] for m in mixtures)
        if pairs > _SLOW_PAIRS:
            warnings.warn(
                f"groups: {joint} joint entropies over N = {n} images need {pairs:.1e} Gaussians; "
                f"n_samples=10_000 or less bounds this",
                stacklevel=2,
            )

        where = {j: i for i, j in enumerate(used)}
        estimate = partial(_estimate, mixtures=mixtures[: 1 + len(scored)], chosen=chosen, keep=n_bootstrap > 0)
        singles = [c for c, column in enumerate(columns) if len(column) == 1]
        done = _Progress(progress, len(columns))

        def single(c: int) -> _Estimate:
            i = where[columns[c][0]]
            latent = _Latent(mean[i], log_var[i], noise[i])
            log_densities = _log_densities(latent, mixtures, 1 + len(scored))
            out = estimate(log_densities, _errors(latent, log_densities, mixtures, checks))
            done.advance()
            return out

        results = dict(zip(singles, _map(single, singles, device, n), strict=True))
        for c, column in enumerate(columns):
            if c not in results:
                rows = [where[j] for j in column]
                log_densities = _joint_log_densities(mean[rows], log_var[rows], noise[rows], mixtures)
                results[c] = estimate(log_densities, mean.new_zeros(1 + len(scored)))
                done.advance()
        estimates = [results[c] for c in range(len(columns))]
        return _assemble(estimates, mixtures, sizes, scored, further, columns, checked_points, n_bootstrap, generator)


def mutual_information_gap_binned(
    mean: Tensor, factor_sizes: Sequence[int], factors: Sequence[int] | None = None, *, bins: int = 20
) -> BinnedMutualInformationGap:
    r"""The binned MIG that other studies report: discrete mutual information of posterior means cut into equal bins.

    As in Locatello et al., "Challenging Common Assumptions in the Unsupervised Learning of Disentangled
    Representations" (2019): each latent's posterior mean is cut into ``bins`` equal bins from its least to its greatest
    value, and a factor's gap is divided by the factor's entropy. Posterior variances do not enter, so a collapsed
    latent is scored on the shape of its tiny means. Not comparable with :func:`mutual_information_gap`. All N images
    are counted, where those studies count a random sample.

    Parameters
    ----------
    mean
        (N, K) posterior means, images in C order of the factors.
    factor_sizes, factors
        As for :func:`mutual_information_gap`.
    bins
        Number of bins.

    Returns
    -------
    BinnedMutualInformationGap
    """
    sizes = _check_sizes(factor_sizes)
    mean = _check_matrix("mean", mean, math.prod(sizes))
    scored = _check_factors(factors, sizes)
    bins = _check_count("bins", bins, 2, math.inf, "2 or more")
    with torch.no_grad():
        mean = mean.to(torch.float64)
        n, k = mean.shape
        low, high = mean.amin(0), mean.amax(0)
        width = torch.where(high > low, high - low, 1.0)  # a constant latent falls into one bin
        code = ((mean - low) / width * bins).long().clamp_(max=bins - 1)
        code += bins * torch.arange(k, device=mean.device)  # a cell of its own for every latent
        rows = []
        for f in scored:
            label = _labels(sizes, f, mean.device)
            cell = code + bins * k * label[:, None]
            count = torch.bincount(cell.reshape(-1), minlength=sizes[f] * k * bins)
            joint = count.to(torch.float64).reshape(sizes[f], k, bins) / n
            independent = joint.sum(0, keepdim=True) / sizes[f]
            rows.append(torch.xlogy(joint, joint / independent.clamp(min=1e-300)).sum((0, 2)))
        information = torch.stack(rows).clamp_(min=0.0).cpu()
    entropy = torch.tensor([math.log(sizes[f]) for f in scored], dtype=torch.float64)
    gaps = _top_two_gap(information) / entropy
    return BinnedMutualInformationGap(float(gaps.mean()), gaps, information, entropy, scored)


def random_groupings(
    sizes: Sequence[int], count: int, generator: torch.Generator | None = None
) -> list[list[list[int]]]:
    """Return ``count`` random partitions of ``sum(sizes)`` latents into groups of these sizes."""
    orders = [_randperm(sum(sizes), generator, torch.device("cpu")) for _ in range(count)]
    return [[sorted(group.tolist()) for group in order.split(list(sizes))] for order in orders]


def subspace_information(
    mean: Tensor,
    log_var: Tensor,
    groupings: Sequence[Sequence[Sequence[int]]],
    factor_sizes: Sequence[int],
    n_draws: int = 100,
    generator: torch.Generator | None = None,
) -> SubspaceInformation:
    r"""Estimate the mutual information of groups of latents and factors from joint densities.

    For the latents :math:`V` of a group it is the mean of :math:`\log q(z_V \mid v = a) - \log q(z_V)` over draws
    :math:`z` from the posteriors of random images, where :math:`a` is the factor's value in the draw's own image. The
    density :math:`q(z_V) = \frac1N \sum_{n=1}^N \prod_{j \in V} \mathcal N(z_j; \mu_{nj}, \sigma_{nj}^2)`, and the same
    mean over the images with :math:`v = a`, are summed directly.

    Parameters
    ----------
    mean, log_var, factor_sizes
        As for :func:`mutual_information_gap`. The work is done in single precision, unless ``mean`` is float64 or
        ``log_var`` beyond ±100. Densities saturate at exp(110) times that of a draw's own posterior.
    groupings
        G groupings, each of S disjoint groups of latents.
    n_draws
        Number of images, drawn without replacement, with one draw of each posterior; at least 2.
    generator
        Source of all randomness, on any device.

    Returns
    -------
    SubspaceInformation
        For every factor of more than one value.
    """
    mean, log_var, sizes = _check_posteriors(mean, log_var, factor_sizes)
    factors = _check_factors(None, sizes)
    (n, k), device = mean.shape, mean.device
    n_draws = _check_count("n_draws", n_draws, 2, n, f"2 to N = {n}")
    groups = [group for grouping in groupings for group in _check_groups(grouping, k)]
    if len({len(grouping) for grouping in groupings}) != 1:
        raise ValueError(f"groupings must have one number of groups, got {[len(x) for x in groupings]}")
    with torch.no_grad():
        images = _randperm(n, generator, torch.device("cpu"))[:n_draws]
        values = torch.stack(torch.unravel_index(images, sizes), 1).tolist()
        noise = _randn((n_draws, k), generator, device)
        mean_at, log_var_at = (x[images.to(device)].double() for x in (mean, log_var))
        z = mean_at + torch.exp(0.5 * log_var_at) * noise
        own = -0.5 * (noise.square() + log_var_at)  # exponents under the draws' own posteriors
        single = mean.dtype != torch.float64 and float(log_var.abs().amax()) <= 100.0
        # The own exponent becomes the shift, so that exponents from low to high can be summed without overflow.
        dtype, low, shift, high = (torch.float32, -87.0, -40.0, 70.0) if single else (torch.float64, -700, -300, 680)
        mean, half, z, own = (x.to(dtype).contiguous() for x in (mean.T, -0.5 * log_var.T, z, own))
        scale = math.sqrt(0.5) * torch.exp(half)
        latents = torch.tensor([j for group in groups for j in (*group, k)]).to(device)  # row k: the shift
        starts = torch.tensor([0, *itertools.accumulate(len(group) + 1 for group in groups)][:-1]).to(device)
        axes = tuple(range(1, 1 + len(sizes)))

        def sums(box: tuple[range, ...]) -> Tensor:
            """(M, 1 + F, G S) sums of joint densities over a box of the grid and over each draw's slices of it."""
            first = sum(r.start * math.prod(sizes[f + 1 :]) for f, r in enumerate(box))
            part = slice(first, first + math.prod(map(len, box)))
            out = mean.new_zeros(n_draws, 1 + len(factors), len(groups))
            exponents = mean.new_full((k + 1, part.stop - first), shift)
            for m, at in enumerate(values):
                t = (mean[:, part] - z[m, :, None]).mul_(scale[:, part])
                torch.addcmul(half[:, part], t, t, value=-1.0, out=exponents[:k]).sub_(own[m, :, None])
                # Sums of rows; a matrix product could be set to reduced precision.
                density = functional.embedding_bag(latents, exponents, starts, mode="sum").clamp_(low, high).exp_()
                density = density.view(-1, *map(len, box), 1)
                out[m, 0] = density.sum((*axes, -1))
                for i, f in enumerate(factors, 1):
                    if at[f] in box[f]:
                        out[m, i] = density.select(f + 1, at[f] - box[f].start).sum(axes)
            return out.double()

        boxes = _boxes(sizes, max(1, (_BOX if _in_blocks(device) else _GPU_BOX) // (len(groups) + 2 * k)))
        total = sum(_map(sums, boxes, device, n)).cpu().log_().unflatten(2, (len(groupings), -1))  # (M, 1 + F, G, S)
        log_size = torch.tensor([sizes[f] for f in factors], dtype=torch.float64).log()[:, None, None]
        information = (total[:, 1:] - total[:, :1] + log_size).transpose(1, 2)
    return SubspaceInformation(information.mean(0), information.std(0) / math.sqrt(n_draws), factors, n_draws)


def _boxes(sizes: tuple[int, ...], most: int) -> list[tuple[range, ...]]:
    """Return the boxes of about ``most`` consecutive images that a grid is cut into, as ranges of the factors."""
    axis = next(a for a in range(len(sizes)) if math.prod(sizes[a + 1 :]) <= most)
    step = max(1, most // math.prod(sizes[axis + 1 :]))
    outer = [[range(i, i + 1) for i in range(size)] for size in sizes[:axis]]
    parts = [range(i, min(i + step, sizes[axis])) for i in range(0, sizes[axis], step)]
    return list(itertools.product(*outer, parts, *([range(size)] for size in sizes[axis + 1 :])))


def active_units(mean: Tensor, threshold: float = 1e-2) -> Tensor:
    r"""Which latents are active: :math:`\operatorname{Var}_x(\mathrm E[z_j \mid x]) >` ``threshold``.

    Burda et al., "Importance Weighted Autoencoders" (2016). The number of active units is ``active_units(mean).sum()``.

    Parameters
    ----------
    mean
        (N, K) posterior means over the whole data set.
    threshold
        Least variance over images (divisor N) of an active latent's posterior mean.

    Returns
    -------
    Tensor
        (K,) bool, on the device of ``mean``.
    """
    mean = _check_matrix("mean", mean, None)
    if not (math.isfinite(threshold) and threshold >= 0):
        raise ValueError(f"threshold must be a finite number of at least 0, got {threshold!r}")
    return mean.detach().to(torch.float64).var(0, correction=0) > threshold


def _check_count(name: str, value: int, least: float, most: float, allowed: str) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None
    if isinstance(value, bool) or not least <= count <= most:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")
    return count


def _check_sizes(factor_sizes: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(_check_count("factor_sizes", s, 1, math.inf, "positive integers") for s in factor_sizes)
    if not sizes:
        raise ValueError("factor_sizes must name at least one factor, got none")
    return sizes


def _check_matrix(name: str, value: Tensor, n: int | None) -> Tensor:
    matrix = torch.as_tensor(value)
    if not matrix.is_floating_point():
        raise TypeError(f"{name} must be of a real floating-point type, got {matrix.dtype}")
    if matrix.ndim != 2 or 0 in matrix.shape:
        raise ValueError(f"{name} must have shape (N, K) with N, K >= 1, got {tuple(matrix.shape)}")
    if n is not None and len(matrix) != n:
        raise ValueError(f"{name} has {len(matrix)} rows, but the product of factor_sizes is {n}")
    if not bool(torch.isfinite(matrix).all()):
        bad = int((~torch.isfinite(matrix)).sum())
        raise ValueError(f"{name} must be finite, got {bad} values that are NaN or infinite")
    return matrix


def _check_posteriors(mean: Tensor, log_var: Tensor, factor_sizes: Sequence[int]) -> tuple:
    sizes = _check_sizes(factor_sizes)
    mean = _check_matrix("mean", mean, math.prod(sizes))
    log_var = _check_matrix("log_var", log_var, math.prod(sizes))
    if mean.shape != log_var.shape:
        raise ValueError(f"mean and log_var must have one shape, got {tuple(mean.shape)} and {tuple(log_var.shape)}")
    if mean.device != log_var.device:
        raise ValueError(f"mean and log_var must be on one device, got {mean.device} and {log_var.device}")
    extreme = float(log_var.abs().max())
    if extreme > _LOG_VAR_LIMIT:
        raise ValueError(f"log_var must lie within ±{_LOG_VAR_LIMIT:g}, got a magnitude of {extreme:g}")
    return mean, log_var, sizes


def _check_factors(factors: Sequence[int] | None, sizes: tuple[int, ...]) -> tuple[int, ...]:
    if factors is None:
        scored = tuple(f for f, size in enumerate(sizes) if size > 1)
        if not scored:
            raise ValueError(f"factor_sizes must hold a factor of more than one value, got {sizes}")
        return scored
    allowed = f"indices from 0 to {len(sizes) - 1}"
    scored = tuple(_check_count("factors", f, 0, len(sizes) - 1, allowed) for f in factors)
    if not scored or len(set(scored)) < len(scored):
        raise ValueError(f"factors must name at least one factor and none twice, got {scored}")
    for f in scored:
        if sizes[f] == 1:
            raise ValueError(f"factors must have more than one value to be scored, factor {f} of {sizes} has one")
    return scored


def _check_groups(groups: Sequence[Sequence[int]] | None, k: int) -> tuple[tuple[int, ...], ...]:
    if groups is None:
        return tuple((j,) for j in range(k))
    allowed = f"latents from 0 to {k - 1}"
    columns = tuple(tuple(_check_count("groups", j, 0, k - 1, allowed) for j in group) for group in groups)
    if not columns or not all(columns):
        raise ValueError(f"groups must hold at least one group and no empty one, got {columns}")
    flat = [j for column in columns for j in column]
    if len(set(flat)) < len(flat):
        raise ValueError(f"groups must not overlap, got latent {next(j for j in flat if flat.count(j) > 1)} twice")
    return columns


def _members(sizes: tuple[int, ...], factor: int | None, device: torch.device) -> Tensor:
    """(V, n) images of each value of a factor; (1, N) all images where there is no factor."""
    images = torch.arange(math.prod(sizes), device=device)
    if factor is None:
        return images[None]
    after = math.prod(sizes[factor + 1 :])
    return images.reshape(-1, sizes[factor], after).transpose(0, 1).reshape(sizes[factor], -1)


def _labels(sizes: tuple[int, ...], factor: int | None, device: torch.device) -> Tensor:
    """(N,) value of a factor for every image; 0 for all where there is no factor."""
    n = math.prod(sizes)
    if factor is None:
        return torch.zeros(n, dtype=torch.int64, device=device)
    after = math.prod(sizes[factor + 1 :])
    value = torch.arange(sizes[factor], device=device)
    return value[:, None].expand(n // (sizes[factor] * after), -1, after).reshape(-1)


def _mixtures(
    sizes: tuple[int, ...],
    factor: int | None,
    n_samples: int,
    generator: torch.Generator | None,
    device: torch.device,
) -> _Mixtures:
    values = 1 if factor is None else sizes[factor]
    label = _labels(sizes, factor, device)
    members = _members(sizes, factor, device)
    n = members.shape[1]
    if n_samples >= n:
        return _Mixtures(label, members, None, label, members)
    picked = torch.stack([members[v, _randperm(n, generator, device)[:n_samples]] for v in range(values)]).reshape(-1)
    rows = torch.arange(picked.numel(), device=device).reshape(values, n_samples)
    return _Mixtures(label, members, picked, label[picked], rows)


def _subsample(mixtures: _Mixtures, count: int, generator: torch.Generator) -> Tensor:
    """At most ``count`` sample points of each mixture, without replacement and in order, as memory is read faster."""
    values, m = mixtures.query_rows.shape
    at = torch.stack([torch.randperm(m, generator=generator)[:count] for _ in range(values)])
    return mixtures.query_rows.gather(1, at.to(mixtures.label.device)).reshape(-1).sort().values


def _randn(shape: tuple[int, ...], generator: torch.Generator | None, device: torch.device) -> Tensor:
    source = device if generator is None else generator.device
    return torch.randn(shape, dtype=torch.float64, generator=generator, device=source).to(device)


def _randperm(n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    source = device if generator is None else generator.device
    return torch.randperm(n, generator=generator, device=source).to(device)


class _Progress:
    def __init__(self, report: Callable[[int, int], object] | None, total: int) -> None:
        self.report, self.total, self.count, self.lock = report, total, 0, threading.Lock()

    def advance(self) -> None:
        with self.lock:
            self.count += 1
            if self.report is not None:
                self.report(self.count, self.total)


def _map(function: Callable, items: list, device: torch.device, n: int) -> list:
    """Map, on the CPU in threads of one core each: scatters, gathers and small tiles use no more by themselves."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1 or len(items) == 1 or n < 2**12:
        return [function(item) for item in items]
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, items))
    finally:
        torch.set_num_threads(threads)  # the setting of a worker is what threads started later would inherit


@dataclass(frozen=True, slots=True)
class _Estimate:
    entropy: Tensor  # (1 + F + U,) of all images, then of each factor
    subsampled: Tensor  # (1 + F,) means over the chosen draws; (0,) without a choice
    error: Tensor  # (1 + F,)
    standard_error: Tensor  # (F,) of the mutual information with each factor
    points: list[Tensor]  # log densities, kept for the bootstrap


def _checks(mixtures: _Mixtures, points: int) -> tuple[Tensor, Tensor, Tensor]:
    """Slices (V',), sample points (V', m) and their images, at which log densities are compared with the exact sum."""
    values, m = mixtures.query_rows.shape
    device = mixtures.label.device
    seed = torch.Generator().manual_seed(0)  # what the caller's generator gives must not depend on the checks
    chosen = torch.randperm(values, generator=seed)[:_CHECKED_SLICES].to(device)
    at = torch.randint(m, (len(chosen), -(-points // len(chosen))), generator=seed).to(device)
    return chosen, mixtures.query_rows[chosen].gather(1, at), mixtures.images[chosen].gather(1, at)


def _errors(latent: _Latent, log_densities: list[Tensor], mixtures: list[_Mixtures], checks: list[tuple]) -> Tensor:
    """What each entropy may be off by: mean deviation and three standard errors of it.

    The scatter is the larger of the entropy's own and that of all the latent's: few points see few large deviations.
    """
    found = {}
    for i, (x, m, (slices, rows, images)) in enumerate(zip(log_densities, mixtures, checks, strict=False)):
        if not _is_direct(m):
            found[i] = (x[rows] - _exact_log_density(latent, m.members[slices], images)).reshape(-1)
    out = latent.mean.new_zeros(len(checks))
    pooled = torch.cat(list(found.values())).square().mean().sqrt() if found else None
    for i, d in found.items():
        out[i] = d.mean().abs() + _CONFIDENCE / math.sqrt(len(d)) * torch.maximum(pooled, d.std(correction=0))
    return out


def _estimate(
    log_densities: list[Tensor], error: Tensor, *, mixtures: list[_Mixtures], chosen: list[Tensor], keep: bool
) -> _Estimate:
    marginal, *conditional = log_densities
    entropy = -torch.stack([x.mean() for x in log_densities])
    subsampled = [-x.index_select(0, at).mean() for x, at in zip(log_densities, chosen, strict=False)]
    subsampled = torch.stack(subsampled) if chosen else entropy[:0]
    standard_error = []
    for m, x in zip(mixtures[1:], conditional, strict=False):
        if m.query is None and mixtures[0].query is None:  # the same draws: their scatter largely cancels
            standard_error.append(_standard_error(x - marginal))
        else:
            standard_error.append(torch.hypot(_standard_error(x), _standard_error(marginal)))
    points = [x.float() for x in log_densities[: len(mixtures)]] if keep else []
    return _Estimate(entropy, subsampled, error, torch.stack(standard_error), points)


def _standard_error(x: Tensor) -> Tensor:
    n = x.numel()
    return (x.var() / n).sqrt() if n > 1 else x.new_full((), math.nan)


def _top_two_gap(information: Tensor) -> Tensor:
    """Difference of the two largest along the last axis; the runner-up of a single column is 0."""
    if information.shape[-1] == 1:
        return information[..., 0]
    top = information.topk(2, dim=-1).values
    return top[..., 0] - top[..., 1]


def _assemble(
    estimates: list[_Estimate],
    mixtures: list[_Mixtures],
    sizes: tuple[int, ...],
    scored: tuple[int, ...],
    unscored: tuple[int, ...],
    columns: tuple[tuple[int, ...], ...],
    checked_points: int,
    n_bootstrap: int,
    generator: torch.Generator | None,
) -> MutualInformationGap:
    rows = zip(*((e.entropy, e.subsampled, e.error, e.standard_error) for e in estimates), strict=True)
    entropies, subsampled, errors, standard = (torch.stack(row, 1).cpu() for row in rows)  # (..., C)
    log_size = torch.tensor([math.log(sizes[f]) for f in scored], dtype=torch.float64)

    information = (entropies[0] - entropies[1:]).clamp(min=0.0)
    information, further = information[: len(scored)], information[len(scored) :]
    gaps = _top_two_gap(information) / log_size
    subsampled_score = None
    if len(subsampled):
        differences = (subsampled[0] - subsampled[1:]).clamp(min=0.0)
        subsampled_score = float((_top_two_gap(differences) / log_size).mean())
    # Sorted values move by no more than the largest move of any one of them.
    bound = 2.0 * (errors[0] + errors[1:]).amax(1) / log_size
    order = information.argsort(dim=1, descending=True)[:, :2]
    gap_error = standard.gather(1, order).square().sum(1).sqrt() / log_size
    return MutualInformationGap(
        score=float(gaps.mean()),
        gaps=gaps,
        mutual_information=information,
        entropy=entropies[0],
        conditional_entropy=entropies[1 : 1 + len(scored)],
        factors=scored,
        columns=columns,
        entropy_error=errors[0],
        conditional_entropy_error=errors[1:],
        gaps_error_bound=bound,
        error_bound=float(bound.mean()),
        checked_points=checked_points,
        mutual_information_standard_error=standard,
        gaps_standard_error=gap_error,
        standard_error=float(gap_error.mean()),
        bootstrap_scores=_bootstrap(estimates, mixtures[: 1 + len(scored)], log_size, n_bootstrap, generator),
        unscored=unscored,
        unscored_mutual_information=further,
        subsampled_score=subsampled_score,
    )


def _bootstrap(
    estimates: list[_Estimate],
    mixtures: list[_Mixtures],
    log_size: Tensor,
    replicates: int,
    generator: torch.Generator | None,
) -> Tensor:
    """(B,) scores with the sample points of each entropy drawn anew, with replacement."""
    if replicates == 0:
        return torch.empty(0, dtype=torch.float64)
    points = [torch.stack([e.points[i] for e in estimates], 1) for i in range(len(mixtures))]  # (M, C) each
    centres = [x.mean(0, dtype=torch.float64) for x in points]
    centred = [x - c.float() for x, c in zip(points, centres, strict=True)]
    device = points[0].device
    source = device if generator is None else generator.device
    scores = []
    for start in range(0, replicates, 16):
        batch = min(16, replicates - start)
        entropies, shared = [], None
        for m, x, centre in zip(mixtures, centred, centres, strict=True):
            if m.query is None and shared is not None:
                weights = shared
            else:
                size = len(x)
                draw = torch.randint(size, (batch, size), generator=generator, device=source).to(device)
                weights = torch.stack([torch.bincount(d, minlength=size) for d in draw]).float() / size
            if m.query is None:
                shared = weights
            entropies.append(-(weights @ x).double() - centre)
        scores.append(torch.stack([entropies[0] - e for e in entropies[1:]], 1).clamp(min=0.0))  # (batch, F, C)
    return (_top_two_gap(torch.cat(scores).cpu()) / log_size).mean(1)


def _is_direct(mixtures: _Mixtures) -> bool:
    n = mixtures.members.shape[1]
    return n <= _DIRECT_MEMBERS or mixtures.query_label.numel() * n <= _DIRECT_PAIRS


def _exact_log_density(latent: _Latent, members: Tensor, images: Tensor) -> Tensor:
    """(V, m) log density of the draws of ``images`` (V, m) under the mixtures of ``members`` (V, n).

    No maximum is taken out: each sum holds its point's own posterior, which is within float64's range.
    """
    values, n = members.shape
    m = images.shape[1]
    out = latent.mean.new_zeros(values, m)
    block, tile = (_BLOCK, _TILE) if _in_blocks(members.device) else (_GPU_TILE, _GPU_TILE)
    width = min(n, block)
    rows = max(1, min(m, tile // width))
    slices = max(1, tile // (width * rows))
    # The exponent as a polynomial in z, unless squares of (mean / sigma) ulps would show.
    expand = latent.largest < 1e4 * latent.sigma_min
    for v, c in itertools.product(range(0, values, slices), range(0, n, width)):
        chosen = members[v : v + slices, c : c + width]
        mean = latent.mean[chosen][:, None]
        precision = 1.0 / latent.sigma[chosen][:, None]
        if expand:
            square = -0.5 * precision.square()
            linear = -2.0 * square * mean
            constant = square * mean.square() + precision.log()
        for r in range(0, m, rows):
            at = images[v : v + slices, r : r + rows]
            z = latent.z[at][..., None]
            if expand:
                density = (z * square).add_(linear).mul_(z).add_(constant).clamp_(min=_LEAST_EXPONENT).exp_().sum(-1)
            else:
                t = ((z - mean) + latent.z_rest[at][..., None]) * precision
                density = (t.square_().mul_(-0.5).clamp_(min=_LEAST_EXPONENT).exp_() @ precision[:, 0, :, None])[..., 0]
            out[v : v + slices, r : r + rows] += density
    return out.log_() - (_HALF_LOG_2PI + math.log(n))


def _joint_log_densities(mean: Tensor, log_var: Tensor, noise: Tensor, mixtures: list[_Mixtures]) -> list[Tensor]:
    """Log density of d latents' draws (d, N) under mixtures of diagonal Gaussians: one weight a posterior."""
    precision = torch.exp(-log_var)
    centre = mean.mean(1, keepdim=True)
    mu = mean - centre
    z = mu + torch.exp(0.5 * log_var) * noise
    constant = -0.5 * log_var.sum(0) - len(mean) * _HALF_LOG_2PI
    own = constant - 0.5 * noise.square().sum(0)
    # Squares expanded into a matrix product lose (mean / sigma)^2 ulps; where that shows, differences are taken.
    expand = float(torch.maximum(mu.abs(), z.abs()).amax()) ** 2 * float(precision.amax()) < 1e8
    ones = torch.ones_like(own)
    left = torch.stack([*z.square(), *z, ones, -own], 1)  # (N, 2 d + 2)
    offset = constant - 0.5 * (precision * mu.square()).sum(0)
    right = torch.stack([*(-0.5 * precision), *(precision * mu), offset, ones])

    def log_ratios(at: Tensor, block: Tensor) -> Tensor:
        """(points, posteriors) log densities, less those under the points' own posteriors."""
        if expand:
            return left[at] @ right[:, block]
        out = constant[block] - own[at, None]
        for mu_i, z_i, precision_i in zip(mu, z, precision, strict=True):
            out -= 0.5 * (z_i[at, None] - mu_i[block]).square_().mul_(precision_i[block])
        return out

    def summed(task: tuple[Tensor, tuple[Tensor, ...]], safely: bool = False) -> Tensor:
        at, blocks = task
        if safely:
            parts = [torch.logsumexp(log_ratios(at, block), 1) for block in blocks]
            return torch.logsumexp(torch.stack(parts), 0) + own[at]
        total = mean.new_zeros(len(at))
        for block in blocks:
            total += log_ratios(at, block).clamp_(min=_LEAST_EXPONENT).exp_().sum(1)
        return total.log_() + own[at]

    out = []
    for mixture in mixtures:
        n = mixture.members.shape[1]
        width = min(n, 2**10) if mean.device.type == "cpu" else min(n, 2**16)
        height = _TILE // width if mean.device.type == "cpu" else 2**10
        rows = [part for row in mixture.query_rows for part in row.split(height)]
        images = [part for row in mixture.images for part in row.split(height)]
        blocks = [members.split(width) for members in mixture.members]
        repeats = len(rows) // len(blocks)
        tasks = [(at, blocks[i // repeats]) for i, at in enumerate(images)]
        sums = _map(summed, tasks, mean.device, mean.shape[1])
        for i, finite in enumerate(torch.stack([x.isfinite().all() for x in sums]).tolist()):
            if not finite:  # densities beyond all proportion to the points' own
                sums[i] = summed(tasks[i], safely=True)
        result = mean.new_empty(mixture.query_label.numel())
        result[torch.cat(rows)] = torch.cat(sums)
        out.append(result - math.log(n))
    return out


def _log_densities(latent: _Latent, mixtures: list[_Mixtures], scored: int) -> list[Tensor]:
    """Log density of the draws under each mixture, by its sample points; only the first ``scored`` set the grid."""
    out, grids = [], {}
    most = max((len(m.members) for m in mixtures[:scored] if not _is_direct(m)), default=1)
    for mixture in reversed(mixtures):  # slices before all images
        if _is_direct(mixture):
            log_density = latent.mean.new_empty(mixture.query_label.numel())
            log_density[mixture.query_rows] = _exact_log_density(latent, mixture.members, mixture.images)
        else:
            values = max(most, len(mixture.members))
            grid = grids[values] = grids.get(values) or _Grid(latent, values)
            # The point's own posterior bounds its density from below: exact where all others are out of sight.
            own = latent.own if mixture.query is None else latent.own[mixture.query]
            if grid.rest is None:
                log_density = grid.log_density(mixture, own)
            else:
                log_density = grid.log_density(mixture, None)
                log_density = torch.logaddexp(log_density, _narrow_log_density(latent, grid.rest, mixture))
                log_density = torch.maximum(log_density, own - math.log(mixture.members.shape[1]))
        out.append(log_density)
    return out[::-1]


def _octave_window(latent: _Latent, sigmas: float) -> tuple[float, float]:
    """The range of sigma that holds the most posteriors and spans no more than so many of its least sigma."""
    octave = torch.floor(torch.log2(latent.sigma))
    octaves, index, count = torch.unique(octave, return_inverse=True, return_counts=True)
    low = latent.mean.new_empty(len(octaves)).scatter_reduce_(
        0, index, latent.mean - _EDGE_SIGMAS * latent.sigma, "amin", include_self=False
    )
    high = latent.mean.new_empty(len(octaves)).scatter_reduce_(
        0, index, latent.mean + _EDGE_SIGMAS * latent.sigma, "amax", include_self=False
    )
    octaves, low, high, count = (x.tolist() for x in (octaves, low, high, count))
    best, window = 0, (math.inf, math.inf)
    for a, first in enumerate(octaves):
        if 2.0**first < _LEAST_SIGMA * latent.largest:
            continue
        lowest, highest, total = math.inf, -math.inf, 0
        for b in range(a, len(octaves)):
            lowest, highest, total = min(lowest, low[b]), max(highest, high[b]), total + count[b]
            if highest - lowest <= sigmas * 2.0**first and total > best:
                best, window = total, (2.0**first, 2.0 ** (octaves[b] + 1.0))
    return window


@dataclass(frozen=True, slots=True)
class _Resolution:
    """Cells and rows of one level, for posteriors of sigma from ``cells`` to 2 ``cells`` cells.

    Row r has the variance cells^2 2^((r - 1) / octave), in cells^2.
    """

    cells: int  # to the level's least sigma
    octave: int  # rows to an octave of variance

    @property
    def rows(self) -> int:
        return 2 * self.octave + 1  # intervals between the rows

    def weights(self, position: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Cell, row, and the complex weights of this cell and the next, of posteriors at ``position`` in cells.

        Real parts belong to the row, imaginary parts to the row above.
        """
        cell = position.floor()
        f = position - cell
        variance = (variance - f * (1.0 - f)) / self.cells**2  # less what linear weights between two cells add
        row = torch.log2(variance).mul_(self.octave).floor_().clamp_(-1, self.rows - 2)
        g = (variance * torch.exp2(row * (-1.0 / self.octave)) - 1.0) / (2.0 ** (1.0 / self.octave) - 1.0)
        first, low = 1.0 - f, 1.0 - g
        return cell, row + 1, torch.complex(first * low, first * g), torch.complex(f * low, f * g)

    def transfer(self, length: int, first: int, used: int, device: torch.device) -> Tensor:
        """(U + 1, L/2) spectra of the normal densities of the rows on both sides of ``used`` intervals."""
        omega = torch.arange(length // 2, dtype=torch.float64, device=device) * (2.0 * math.pi / length)
        row = torch.arange(first - 1, first + used, dtype=torch.float64, device=device)
        variance = self.cells**2 * torch.exp2(row / self.octave)
        return torch.exp(-0.5 * variance[:, None] * omega.square()).to(torch.complex128)


def _blurred(level: Tensor, transfer: Tensor) -> Tensor:
    """(V, L/2) spectrum of the intervals (V, U, L) of a level, blurred row by row and summed."""
    values, used, length = level.shape
    out = level.new_empty(values, length // 2)
    step = max(1, _BLOCK // ((used + 1) * length)) if _in_blocks(level.device) else values
    for part, spectrum in zip(level.split(step), out.split(step), strict=True):
        rows = functional.pad(part.real, (0, 0, 0, 1))
        rows[:, 1:] += part.imag
        # The Nyquist frequency is left out: the blur has taken it below 1e-7.
        torch.sum(torch.fft.rfft(rows)[..., : length // 2].mul_(transfer), 1, out=spectrum)
    return out


_RESOLUTIONS = (  # the first is taken whose grid, over all levels and slices, is of no more complex numbers
    (_Resolution(16, 32), 2**19),
    (_Resolution(12, 24), 2**20),
    (_Resolution(8, 16), 2**20),
    (_Resolution(6, 12), 2**21),
    (_Resolution(4, 8), 2**22),
    (_Resolution(2, 4), 2**23),
)
_LINE_RESOLUTIONS = ((_Resolution(12, 24), 2**16), (_Resolution(8, 16), 2**17), (_Resolution(4, 8), math.inf))  # cells


def _deposit(rows: Tensor, at: Tensor, first: Tensor, second: Tensor) -> None:
    """Add the complex weights ``first`` to the cells ``at`` of ``rows`` (L,), and ``second`` to the next cells.

    A GPU adds in any order: whole numbers make the sums the same every time.
    """
    if _in_blocks(rows.device):
        rows.index_add_(0, at, first).index_add_(0, at + 1, second)
        return
    scale = 2.0 ** (62 - len(at).bit_length())  # weights are at most 1, so that no sum reaches 2^63
    whole = torch.zeros(len(rows), 2, dtype=torch.int64, device=rows.device)
    for shift, weights in enumerate((first, second)):
        whole.index_add_(0, at + shift, (torch.view_as_real(weights) * scale).round_().long())
    rows += torch.view_as_complex(whole.double().div_(scale))


def _log_table(density: Tensor, curvature: float) -> Tensor:
    """(V, L) complex: log density and its step to the next cell, for linear interpolation without bias.

    A chord lies below a concave curve, by a twelfth of the second difference on average; the nodes are moved by that.
    ``curvature`` is the least that the second difference of the log density can be, (spacing / least sigma)^2.
    """
    log = density.clamp_(min=1e-17 * density.amax()).log_()
    second = torch.roll(log, 1, -1) + torch.roll(log, -1, -1) - 2.0 * log
    log -= second.clamp_(-curvature, 8.0 * curvature) / 12.0
    step = torch.roll(log, -1, -1) - log
    for end in (log[:, :1], log[:, -2:]):  # beyond all posteriors' reach
        end.fill_(-math.inf)
    step[:, :1] = step[:, -2:] = 0.0
    return torch.complex(log, step)


class _Grid:
    """Posteriors of one latent on grids over the whole axis, one an octave of sigma."""

    def __init__(self, latent: _Latent, values: int) -> None:
        self.rest: Tensor | None = None  # posteriors left to other means
        self.chosen: Tensor | None = None  # None for all
        self.spectrum: Tensor | None = None  # of the slices of a factor, which add up to that of all images
        mean, sigma = latent.mean, latent.sigma
        self.low, self.length = latent.low, latent.high - latent.low
        least, octaves = latent.sigma_min, math.log2(latent.sigma_max / latent.sigma_min)
        found = []
        if least >= _LEAST_SIGMA * latent.largest:
            found = [r for r, most in _RESOLUTIONS if self._elements(r, self.length / least, octaves) * values <= most]
        self.resolution = found[0] if found else _RESOLUTIONS[-1][0]
        if not found:
            cells = _RESOLUTIONS[-1][1] // (2 * self.resolution.rows * values)
            low, high = _octave_window(latent, 2 ** int(math.log2(max(64, cells))) / self.resolution.cells)
            inside = (sigma >= low) & (sigma < high)
            self.rest = torch.nonzero(~inside)[:, 0]
            self.chosen = torch.nonzero(inside)[:, 0]
            if self.chosen.numel() == 0:
                return
            mean, sigma = mean[self.chosen], sigma[self.chosen]
            self.low, high, least = torch.stack([*_span(mean, sigma), sigma.min()]).tolist()
            self.length = high - self.low
        self.cells = self._cells(self.resolution, self.length / least)
        interval, index, self.first, self.second = _by_blocks(self._deposits, mean, sigma)
        rows = self.resolution.rows
        starts = torch.zeros(rows * self.cells.bit_length(), dtype=torch.int64)
        occupied = torch.zeros(len(starts), dtype=torch.bool, device=index.device).index_fill_(0, interval, True)
        used = [i for i, x in enumerate(occupied.tolist()) if x]
        self.levels: list[tuple[int, int, Tensor]] = []  # intervals, cells of each, their transfer functions
        self.size = 0
        for level, of in itertools.groupby(used, lambda i: i // rows):
            first, *_ = of = list(of)
            width, count = self.cells >> level, of[-1] + 1 - first
            starts[first : first + count] = self.size + width * torch.arange(count)
            self.levels.append((count, width, self.resolution.transfer(width, first % rows, count, mean.device)))
            self.size += width * count
        self.index = index.add_(starts.to(index.device, non_blocking=True)[interval])
        self.fine = self.cells * _UPSAMPLING
        self.curvature = (self.length / self.fine / least) ** 2
        self.cell, self.fraction = _by_blocks(self._places, latent.z)

    @staticmethod
    def _cells(resolution: _Resolution, sigmas: float) -> int:
        return max(64, 2 ** math.ceil(math.log2(resolution.cells * sigmas)))

    @classmethod
    def _elements(cls, resolution: _Resolution, sigmas: float, octaves: float) -> float:
        """Complex numbers of a mixture's grid of so many least sigmas, for sigma of so many octaves."""
        cells = cls._cells(resolution, sigmas)
        rows = 2.0 * resolution.octave
        levels = range(math.ceil(octaves) + 1)
        return sum(cells / 2**i * min(resolution.rows, rows * (octaves - i + 1.0)) for i in levels)

    def _deposits(self, mean: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
        """Of each posterior: its level and row as one number, its cell, the weights there and in the next."""
        spacing, rows = self.length / self.cells, self.resolution.rows
        level = torch.floor(torch.log2(sigma / (self.resolution.cells * spacing))).clamp_(min=0.0)
        shrink = torch.exp2(-level)
        scale = shrink / spacing
        cell, row, first, second = self.resolution.weights((mean - self.low) * scale, (sigma * scale).square())
        return (level * rows + row).long(), cell.long(), first, second

    def _places(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Cell of the table of log densities and fraction of the way to the next; an end cell, for points off it."""
        position = ((z - self.low) * (self.fine / self.length)).clamp_(0.0, self.fine - 2.0)
        cell = position.floor()
        return cell.long(), position.sub_(cell)

    def log_density(self, mixture: _Mixtures, own: Tensor | None) -> Tensor:
        """(M,) log density under the posteriors of the grid, no less than those of ``own`` with their weight."""
        points = mixture.query_label.numel()
        if self.chosen is not None and self.chosen.numel() == 0:
            return self.rest.new_full((points,), -math.inf, dtype=torch.float64)
        values, n = mixture.members.shape
        if values == 1 and self.spectrum is not None:
            spectrum = self.spectrum.sum(0, keepdim=True)
        else:
            spectrum = self.spectrum = self._spectrum(mixture)
        density = torch.fft.irfft(spectrum, n=self.fine) * (self.fine / (self.length * n))
        table = _log_table(density, self.curvature).reshape(-1)

        def looked_up(cell: Tensor, fraction: Tensor, label: Tensor, *own: Tensor) -> tuple[Tensor]:
            entry = torch.view_as_real(table[torch.add(cell, label, alpha=self.fine)])
            log_density = torch.addcmul(entry[:, 0], entry[:, 1], fraction)
            for least in own:
                torch.maximum(log_density, least - math.log(n), out=log_density)
            return (log_density,)

        cell, fraction = self.cell, self.fraction
        if mixture.query is not None:
            cell, fraction = cell[mixture.query], fraction[mixture.query]
        return _by_blocks(looked_up, cell, fraction, mixture.query_label, *([] if own is None else [own]))[0]

    def _spectrum(self, mixture: _Mixtures) -> Tensor:
        """(V, fine/2 + 1) sums of the spectra of the grid's posteriors, mixture by mixture."""
        values = len(mixture.members)
        label = mixture.label if self.chosen is None else mixture.label[self.chosen]
        rows = torch.zeros(values * self.size, dtype=torch.complex128, device=label.device)
        step = _BLOCK if _in_blocks(label.device) else len(label)
        for start in range(0, len(label), step):
            block = slice(start, start + step)
            at = self.index[block] + self.size * label[block]
            _deposit(rows, at, self.first[block], self.second[block])
        spectrum = rows.new_zeros(values, self.fine // 2 + 1)
        start = 0
        for count, width, transfer in self.levels:
            stop = start + count * width
            level = rows.reshape(values, self.size)[:, start:stop].unflatten(1, (count, width))
            spectrum[:, : width // 2] += _blurred(level, transfer)
            start = stop
        return spectrum


def _narrow_log_density(latent: _Latent, chosen: Tensor, mixture: _Mixtures) -> Tensor:
    """Log density of the draws under the ``chosen`` posteriors alone, with the weight 1/n of the whole mixtures.

    Posteriors with few sample points in reach are summed pair by pair. Those with many lie close together, so that the
    stretches within their reach, cut out and laid end to end, are a short line, and take a grid.
    """
    values, n = mixture.members.shape
    m = mixture.query_rows.shape[1]
    images = mixture.images
    z, order = torch.sort(latent.z[images], dim=1)  # (V, m)
    images = images.gather(1, order).reshape(-1)
    z, rest = z.reshape(-1), latent.z_rest[images]

    rank = torch.full_like(mixture.label, -1)
    rank[chosen] = torch.arange(chosen.numel(), device=chosen.device)
    label, mean, sigma = mixture.label[chosen], latent.mean[chosen], latent.sigma[chosen]
    # One search in a sorted row a mixture: posteriors as a (V, n) table, the others' places filled with anything.
    table = rank[mixture.members]
    bounds = []
    for sign, right in ((-1.0, False), (1.0, True)):
        edge = (mean + sign * _REACH_SIGMAS * sigma)[table].contiguous()
        found = torch.searchsorted(z.reshape(values, m), edge, right=right)
        flat = torch.empty_like(chosen)
        kept = table >= 0
        flat[table[kept]] = found[kept]
        bounds.append(flat + m * label)
    low, high = bounds
    count = high - low

    density = torch.zeros_like(z)
    sparse = (count > 0) & (count <= _SPARSE_PAIRS)
    for part in torch.nonzero(sparse)[:, 0].split(2**16):
        point, of = _ranges(low[part], high[part])
        repeat = part[of]
        t = ((z[point] - mean[repeat]) + rest[point]) / sigma[repeat]
        # Not index_add_, which adds in any order on a GPU.
        density.index_put_((point,), torch.exp(-0.5 * t.square()) / sigma[repeat], accumulate=True)
    log_density = torch.log(density) - (_HALF_LOG_2PI + math.log(n))

    dense = torch.nonzero(count > _SPARSE_PAIRS)[:, 0]
    octave = torch.floor(torch.log2(sigma[dense]))
    for o in torch.unique(octave).tolist():
        for line in _lines(dense[octave == o], label, mean, 2.0**o):
            point, value = line.log_density(mean, sigma, low, high, z, rest, n)
            log_density[point] = torch.logaddexp(log_density[point], value)
    out = torch.empty_like(log_density)
    out[mixture.query_rows.gather(1, order).reshape(-1)] = log_density
    return out


@dataclass(frozen=True, slots=True)
class _Line:
    """Stretches of the axis around posteriors of one octave of sigma, laid end to end."""

    posteriors: Tensor  # sorted by mixture and mean
    stretch: Tensor  # of each posterior
    origin: Tensor  # mean of the first posterior of each stretch
    offset: Tensor  # its cell
    end: Tensor  # first cell beyond each stretch
    margin: int  # cells of a stretch before its offset
    cells: int
    spacing: float
    resolution: _Resolution

    def log_density(
        self, mean: Tensor, sigma: Tensor, low: Tensor, high: Tensor, z: Tensor, rest: Tensor, n: int
    ) -> tuple[Tensor, Tensor]:
        """Sample points in reach and their log densities, given each posterior's range ``low:high`` of points."""
        chosen, stretch = self.posteriors, self.stretch
        position = self.offset[stretch] + (mean[chosen] - self.origin[stretch]) / self.spacing
        cell, row, first, second = self.resolution.weights(position, (sigma[chosen] / self.spacing).square())
        at = (row * self.cells + cell).long()
        intervals = self.resolution.rows
        rows = torch.zeros(intervals * self.cells, dtype=torch.complex128, device=at.device)
        _deposit(rows, at, first, second)
        fine = self.cells * _UPSAMPLING
        spectrum = torch.zeros(1, fine // 2 + 1, dtype=torch.complex128, device=at.device)
        level = rows.reshape(1, intervals, self.cells)
        transfer = self.resolution.transfer(self.cells, 0, intervals, at.device)
        spectrum[:, : self.cells // 2] = _blurred(level, transfer)
        density = torch.fft.irfft(spectrum, n=fine) * (_UPSAMPLING / (self.spacing * n))
        table = _log_table(density, (_UPSAMPLING * self.resolution.cells) ** -2.0)[0]

        start = torch.empty_like(self.origin, dtype=torch.int64).scatter_reduce_(
            0, stretch, low[chosen], "amin", include_self=False
        )
        stop = torch.empty_like(start).scatter_reduce_(0, stretch, high[chosen], "amax", include_self=False)
        point, of = _ranges(start, stop)
        position = self.offset[of] + ((z[point] - self.origin[of]) + rest[point]) / self.spacing
        # Where sigma is below z's ulp, points that round to one number may yet lie outside of the stretch.
        inside = (position >= self.offset[of] - self.margin) & (position < self.end[of])
        point, position = point[inside], position[inside] * _UPSAMPLING
        cell = position.floor()
        entry = torch.view_as_real(table[cell.long()])
        return point, torch.addcmul(entry[:, 0], entry[:, 1], position - cell)


def _lines(chosen: Tensor, label: Tensor, mean: Tensor, least: float) -> Iterator[_Line]:
    """The lines of posteriors of sigma from ``least`` to twice that; stretches never reach across mixtures."""
    chosen = chosen[torch.argsort(mean[chosen])]
    chosen = chosen[torch.argsort(label[chosen], stable=True)]
    reach = 2.0 * _REACH_SIGMAS * least
    first = torch.ones_like(chosen, dtype=torch.bool)
    first[1:] = (label[chosen].diff() != 0) | (mean[chosen].diff() > 2.0 * reach)
    origin, last = mean[chosen[first]], mean[chosen[torch.roll(first, -1)]]
    stretch = torch.cumsum(first, 0) - 1
    for resolution, most in _LINE_RESOLUTIONS:
        spacing = least / resolution.cells
        margin = math.ceil(reach / spacing) + 2
        cells = torch.ceil((last - origin) / spacing).long() + 2 * margin
        if int(cells.sum()) <= most:
            break
    offset = torch.cumsum(cells, 0) - cells
    line = offset // _LINE_CELLS
    for i in torch.unique(line).tolist():
        kept = torch.nonzero(line == i)[:, 0]
        inside = (stretch >= kept[0]) & (stretch <= kept[-1])
        begin = int(offset[kept[0]])
        length = next_fast_len(int(offset[kept[-1]] + cells[kept[-1]]) - begin, real=True)
        yield _Line(
            posteriors=chosen[inside],
            stretch=stretch[inside] - kept[0],
            origin=origin[kept],
            offset=offset[kept] - begin + margin,
            end=offset[kept] - begin + cells[kept],
            margin=margin,
            cells=length,
            spacing=spacing,
            resolution=resolution,
        )


def _ranges(start: Tensor, stop: Tensor) -> tuple[Tensor, Tensor]:
    """All integers of the ranges ``start:stop``, one after the other, and the range each comes from."""
    count = stop - start
    of = torch.repeat_interleave(torch.arange(len(start), device=start.device), count)
    shift = start - (torch.cumsum(count, 0) - count)
    return torch.arange(of.numel(), device=start.device) + shift[of], of
