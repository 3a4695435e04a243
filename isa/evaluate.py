"""Measurements of trained models: one pass over all images, and the mutual information of latents and factors."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution
from tqdm import tqdm

from isa import mig, models, objectives
from isa.data import FactorDataset
from isa.models import Networks, stack
from isa.prior import Node, StackedPrior
from isa.run import DEFAULTS, Run
from isa.subspaces import random_groupings, subspace_information

__all__ = ["Evaluation", "evaluate", "measurements", "stack_networks", "subspaces"]

_logger = logging.getLogger(__name__)

_EVALUATION, _MIG, _SUBSPACES = 2, 3, 4  # streams of random numbers; 0 and 1 belong to training
_BATCH = 2048  # images at once; part of the order in which noise is drawn
_LOG_VAR_LIMIT = 500.0  # beyond it, sigma and 1 / sigma approach the limits of float64
_DRAWS = 100  # of joint densities
_GROUPINGS = {"cpu": 10, "cuda": 20}  # random groupings, with which the subspaces are compared


@dataclass(frozen=True)
class Evaluation:
    """Measurements of one model over all N images of a data set, with one sample of each posterior."""

    log_likelihood: Tensor  #: (N,) log p(x|z), nats.
    kl: Tensor  #: (N,) log q(z|x) - log p(z) (Eq. 12), nats.
    mean: Tensor  #: (N, D) posterior means.
    log_var: Tensor  #: (N, D) posterior log-variances.
    mig: mig.MutualInformationGap

    @property
    def active(self) -> Tensor:
        """Mask (D,) of latents whose posterior mean has a variance over images above 0.01."""
        return mig.active_units(self.mean)

    def cpu(self) -> Evaluation:
        """Return the evaluation with all tensors on the CPU."""
        return Evaluation(self.log_likelihood.cpu(), self.kl.cpu(), self.mean.cpu(), self.log_var.cpu(), self.mig)


def stack_networks(runs: Sequence[Run], vaes: Sequence[models.VAE], trees: Sequence[Node | None]) -> Networks:
    """Return P models of one shape as one, in the precision of their runs, with priors on these trees."""
    run = runs[0]
    encoder, decoder = (stack([getattr(vae, part).net for vae in vaes]) for part in ("encoder", "decoder"))
    prior = StackedPrior(trees, [run.scale for run in runs], run.latent_dim, run.learn_exponents)
    return Networks(encoder, decoder, prior, torch.bfloat16 if run.precision == "bf16" else torch.float32)


@torch.no_grad()
def evaluate(
    trained: Sequence[tuple[Run, models.VAE, Distribution]], dataset: FactorDataset, progress: bool | None = None
) -> list[Evaluation | None]:
    """Measure P models of one shape in one pass over all images.

    ``trained`` contains for each what :func:`isa.results.load_model` returns: the run, whose seed determines the noise,
    the networks and the prior. The result is None for a model with posteriors or reconstructions that are not finite,
    or log-variances beyond ±500.
    """
    if not trained:
        return []
    runs, vaes, priors = zip(*trained, strict=True)
    device, size, latent_dim = dataset.device, len(runs), runs[0].latent_dim
    networks = stack_networks(runs, vaes, [getattr(prior, "tree", None) for prior in priors])
    prior, likelihood = networks.to(device).eval().prior(), objectives.LIKELIHOODS[runs[0].likelihood]
    dtype = networks.dtype if dataset.packed else torch.float32
    sources = [run.generator(device, _EVALUATION) for run in runs]
    fit, kl = torch.empty(2, size, len(dataset), device=device)
    mean, log_var = torch.empty(2, size, len(dataset), latent_dim, device=device)
    batches = torch.arange(len(dataset), device=device).split(_BATCH)
    disable = None if progress is None else not progress  # None: where stderr is not a terminal
    for index in tqdm(batches, "evaluating", unit=" batches", disable=disable, mininterval=0.5):
        x = dataset.images(index, dtype=dtype, check=False).expand(size, -1, -1, -1, -1)
        draws = [torch.randn(len(index), latent_dim, generator=source, device=device) for source in sources]
        logits, z, mean[:, index], log_var[:, index] = networks(x, torch.stack(draws))
        fit[:, index] = likelihood(logits, x)
        kl[:, index] = objectives.kl_monte_carlo(z, mean[:, index], log_var[:, index], prior)
    usable = (log_var.abs().flatten(1).amax(1) <= _LOG_VAR_LIMIT) & (fit + kl).isfinite().all(1)
    evaluations: list[Evaluation | None] = []
    for i, (run, finite) in enumerate(zip(runs, usable.tolist(), strict=True)):
        gap = _gap(run, dataset, mean[i], log_var[i]) if finite else None
        if gap is None:
            _logger.warning("%s cannot be measured: its posteriors or reconstructions are out of bounds", run.key)
        evaluations.append(None if gap is None else Evaluation(fit[i], kl[i], mean[i], log_var[i], gap))
    return evaluations


def _gap(run: Run, dataset: FactorDataset, mean: Tensor, log_var: Tensor) -> mig.MutualInformationGap | None:
    """Return the mutual information of latents and factors; None if it is not finite."""
    sizes, scored, source = dataset.factor_sizes, DEFAULTS[run.dataset].scored, run.generator(dataset.device, _MIG)
    others = [f for f, size in enumerate(sizes) if size > 1 and scored and f not in scored]
    gap = mig.mutual_information_gap(mean, log_var, sizes, scored, generator=source, unscored=others, subsample=10_000)
    sums = [x.sum().item() for x in (gap.mutual_information, gap.conditional_entropy, gap.unscored_mutual_information)]
    numbers = gap.score, gap.standard_error, gap.error_bound, gap.subsampled_score or 0.0, *sums
    return gap if all(map(math.isfinite, numbers)) else None


def subspaces(run: Run) -> list[list[int]] | None:
    """Return the subspaces of a run's prior as groups of latents.

    For a prior without subspaces, the default layout of the data set is used, if the number of latents agrees.
    """
    sizes = [] if run.tree is None else run.tree.sizes
    if max(sizes, default=1) == 1:
        sizes = [*DEFAULTS[run.dataset].subspaces]
    if len(sizes) < 2 or sum(sizes) != run.latent_dim:
        return None
    return [group.tolist() for group in torch.arange(run.latent_dim).split(sizes)]


def measurements(evaluation: Evaluation, run: Run, dataset: FactorDataset) -> dict[str, Any]:
    """Return the part of a run's record that comes from its evaluation."""
    gap, names, sizes = evaluation.mig, dataset.factor_names, dataset.factor_sizes
    fit, kl = evaluation.log_likelihood.double(), evaluation.kl.double()
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
        "unscored": [names[factor] for factor in gap.unscored],
        "log_likelihood_by_value": [fit.view(sizes).movedim(f, 0).flatten(1).mean(1).tolist() for f in gap.unscored],
        "unscored_mutual_information": gap.unscored_mutual_information.tolist(),
        "mig_binned": mig.mutual_information_gap_binned(evaluation.mean, sizes, gap.factors)[0],
        "mig_10000_samples": gap.subsampled_score,
    }
    if (groups := subspaces(run)) is not None:
        source = run.generator("cpu", _SUBSPACES)
        random = random_groupings([len(group) for group in groups], _GROUPINGS[dataset.device.type], source)
        codes = evaluation.mean, evaluation.log_var
        joint = subspace_information(*codes, [groups, *random], sizes, _DRAWS, source)
        own, *others = joint.mutual_information
        ranked = torch.stack(others).sort(-1, descending=True).values
        record |= {
            "subspaces_compared": groups,
            "subspace_factors": [names[factor] for factor in joint.factors],
            "subspace_mutual_information": own.tolist(),
            "subspace_standard_error": joint.standard_error[0].tolist(),
            "random_subspace_mean": ranked.mean(0).tolist(),
            "random_subspace_deviation": ranked.std(0).tolist(),
            "subspace_draws": joint.n_draws,
            "random_groupings": len(random),
        }
    return record
