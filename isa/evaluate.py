"""Measurements of trained models: one pass over all images, and the mutual information of latents and factors."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from isa import mig, objectives
from isa.data import FactorDataset
from isa.run import DEFAULTS, Run
from isa.stacked import Networks
from isa.subspaces import SubspaceInformation, random_groupings, subspace_information

__all__ = ["Evaluation", "evaluate", "measurements", "subspaces"]

_logger = logging.getLogger(__name__)

_EVALUATION, _MIG, _SUBSPACES = 2, 3, 4  # streams of random numbers; 0 and 1 belong to training
_BATCH = 2048  # images at once; part of the order in which noise is drawn
_LOG_VAR_LIMIT = 500.0  # beyond, sigma and 1 / sigma approach the limits of float64
_DRAWS = 100  # of joint densities
_GROUPINGS = {"cpu": 10, "cuda": 20}  # random ones, with which the subspaces are compared


@dataclass(frozen=True)
class Evaluation:
    """Measurements of one model over all N images of a data set, with one sample of each posterior."""

    log_likelihood: Tensor
    """(N,) log p(x|z), nats."""
    kl: Tensor
    """(N,) log q(z|x) - log p(z) (Eq. 12), nats."""
    mean: Tensor
    """(N, D) posterior means."""
    log_var: Tensor
    """(N, D) posterior log-variances."""
    active: Tensor
    """(D,) True for latents whose posterior mean has a variance over images above 0.01."""
    mig: mig.MutualInformationGap
    binned: float
    """MIG of the posterior means in 20 bins."""
    groups: list[list[int]] | None
    """Subspaces of latents: those of the prior, or of the data set's default layout; None if there are none."""
    subspaces: SubspaceInformation | None
    """Mutual information of subspaces and factors: of ``groups``, then of random groupings of the same sizes."""

    def cpu(self) -> Evaluation:
        """Return the same with all tensors on the CPU."""
        tensors = {name: x.cpu() for name, x in vars(self).items() if isinstance(x, Tensor)}
        return replace(self, **tensors)


def subspaces(run: Run) -> list[list[int]] | None:
    """Return the subspaces of a run's prior as groups of latents.

    A prior without subspaces is compared by the default layout of the data set, if the number of latents agrees.
    """
    sizes = () if run.tree is None else run.tree.sizes
    if max(sizes, default=1) == 1:
        sizes = DEFAULTS[run.dataset].subspaces
    if len(sizes) < 2 or sum(sizes) != run.latent_dim:
        return None
    ends = np.cumsum(sizes).tolist()
    return [list(range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


@torch.no_grad()
def evaluate(
    networks: Networks,
    runs: Sequence[Run],
    dataset: FactorDataset,
    *,
    rows: Sequence[int] | None = None,
    n_samples: int | None = None,
    progress: bool | None = None,
) -> list[Evaluation | None]:
    """Measure P trained models in one pass over all images.

    Parameters
    ----------
    networks, runs
        The stacked networks, left in evaluation mode, and their P runs, whose seeds determine the noise.
    dataset
        The images, on the device of the networks.
    rows
        Models whose mutual information is measured; all by default.
    n_samples
        Number of draws for the entropies of the MIG; all images by default.
    progress
        Show a progress bar; by default if stderr is a terminal.

    Returns
    -------
    list of Evaluation
        For each of ``rows``; None if posteriors or reconstructions are not finite, or log-variances beyond ±500.
    """
    networks.eval()
    device, size, likelihood = dataset.device, len(runs), objectives.LIKELIHOODS[runs[0].likelihood]
    prior = networks.prior()
    dtype = networks.dtype if dataset.packed else torch.float32
    sources = [run.generator(device, _EVALUATION) for run in runs]
    fit, kl = torch.empty(2, size, len(dataset), device=device)
    mean, log_var = torch.empty(2, size, len(dataset), runs[0].latent_dim, device=device)
    disable = None if progress is None else not progress  # None: where stderr is not a terminal
    with tqdm(total=len(dataset), unit=" images", desc="evaluating", disable=disable, mininterval=0.5) as bar:
        for index in torch.arange(len(dataset), device=device).split(_BATCH):
            x = dataset.images(index, dtype=dtype, check=False).expand(size, -1, -1, -1, -1)
            shape = len(index), runs[0].latent_dim
            noise = torch.stack([torch.randn(shape, generator=source, device=device) for source in sources])
            logits, z, mean[:, index], log_var[:, index] = networks(x, noise)
            fit[:, index] = likelihood(logits, x)
            kl[:, index] = objectives.gaussian_log_density(z, mean[:, index], log_var[:, index]) - prior.log_prob(z)
            bar.update(len(index))
    usable = log_var.abs().flatten(1).amax(1) <= _LOG_VAR_LIMIT
    for values in (fit, kl, mean, log_var):
        usable &= values.isfinite().flatten(1).all(1)
    evaluations = []
    for row in range(size) if rows is None else rows:
        tensors = fit[row], kl[row], mean[row], log_var[row]
        evaluations.append(_information(runs[row], dataset, n_samples, *tensors) if usable[row] else None)
        if evaluations[-1] is None:
            _logger.warning("%s cannot be measured: its posteriors or reconstructions are out of bounds", runs[row].key)
    return evaluations


def _information(
    run: Run, dataset: FactorDataset, n_samples: int | None, fit: Tensor, kl: Tensor, mean: Tensor, log_var: Tensor
) -> Evaluation | None:
    """Add the mutual information of latents and factors; None if it is not finite."""
    device = dataset.device
    scored = DEFAULTS[run.dataset].scored
    unscored = [f for f, size in enumerate(dataset.factor_sizes) if size > 1 and scored and f not in scored]
    gap = mig.mutual_information_gap(
        mean,
        log_var,
        dataset.factor_sizes,
        factors=scored,
        n_samples=n_samples,
        generator=run.generator(device, _MIG),
        unscored=unscored,
        subsample=10_000,
    )
    sums = [x.sum().item() for x in (gap.mutual_information, gap.conditional_entropy, gap.unscored_mutual_information)]
    if not np.isfinite([gap.score, gap.standard_error, gap.error_bound, gap.subsampled_score, *sums]).all():
        return None
    groups, joint = subspaces(run), None
    if groups is not None:
        source = run.generator("cpu", _SUBSPACES)
        random = random_groupings([len(group) for group in groups], _GROUPINGS[device.type], source)
        options = {"n_draws": min(_DRAWS, len(dataset)), "generator": source}
        joint = subspace_information(mean, log_var, [groups, *random], dataset.factor_sizes, **options)
    binned, _ = mig.mutual_information_gap_binned(mean, dataset.factor_sizes, scored)
    return Evaluation(fit, kl, mean, log_var, mig.active_units(mean), gap, binned, groups, joint)


def measurements(evaluation: Evaluation, dataset: FactorDataset) -> dict[str, Any]:
    """Return what a record contains of an evaluation."""
    gap, names, sizes = evaluation.mig, dataset.factor_names, dataset.factor_sizes
    fit, kl = evaluation.log_likelihood.double(), evaluation.kl.double()
    unscored = list(gap.unscored)
    grid = fit.view(sizes)
    by_value = [grid.movedim(factor, 0).flatten(1).mean(1).tolist() for factor in unscored]
    scored = [names[factor] for factor in gap.factors]
    record = {
        "mig": gap.score,
        **{f"mig_{name}": value for name, value in zip(scored, gap.gaps.tolist(), strict=True)},
        "mig_standard_error": gap.standard_error,
        "mig_error_bound": gap.error_bound,
        "log_likelihood": fit.mean().item(),
        "log_likelihood_first_10000": fit[:10_000].mean().item(),
        "divergence": kl.mean().item(),
        "elbo": (fit - kl).mean().item(),
        "active_units": int(evaluation.active.sum()),
        "factors": scored,
        "mutual_information": gap.mutual_information.tolist(),
        "entropy": gap.entropy.tolist(),
        "conditional_entropy": gap.conditional_entropy.tolist(),
        "unscored": [names[factor] for factor in unscored],
        "log_likelihood_by_value": by_value,
        "unscored_mutual_information": gap.unscored_mutual_information.tolist(),
        "mig_binned": evaluation.binned,
        "mig_10000_samples": gap.subsampled_score,
    }
    if (joint := evaluation.subspaces) is not None:
        subspaces, *random = joint.mutual_information.cpu()
        ranked = torch.stack(random).sort(-1, descending=True).values
        record |= {
            "subspaces_compared": evaluation.groups,
            "subspace_factors": [names[factor] for factor in joint.factors],
            "subspace_mutual_information": subspaces.tolist(),
            "subspace_standard_error": joint.standard_error[0].tolist(),
            "random_subspace_mean": ranked.mean(0).tolist(),
            "random_subspace_deviation": ranked.std(0).tolist(),
            "subspace_draws": joint.n_draws,
            "random_groupings": len(random),
        }
    return record
