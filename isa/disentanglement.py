"""Measures of disentanglement from the mutual information of latents and factors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import entr

__all__ = ["Disentanglement", "disentanglement", "informative_latents"]


class Disentanglement(NamedTuple):
    r"""Measures of one code, in [0, 1].

    They are functions of :math:`I_{fk}`, the mutual information of factor :math:`f` of F and latent :math:`k` of K, or
    of its share :math:`N_{fk} = I_{fk} / H_f` of the factor's entropy. A matrix of zeros scores 0; NaN means undefined.
    """

    mig: float
    r"""Mean over factors of the largest :math:`N_{fk}` minus the second largest: Chen et al., "Isolating Sources of
    Disentanglement in Variational Autoencoders" (2018), Sec. 4. Inactive latents do not change it."""
    info_modularity: float
    r"""InfoM of Hsu et al., "Disentanglement via Latent Quantization" (2023): the mean over the A active latents of
    :math:`\max_f N_{fk} / \sum_f N_{fk}`, scaled from [1/F, 1] to [0, 1]. In their code a latent is active if its
    range over images exceeds a twentieth of the largest range."""
    info_compactness: float
    r"""InfoC of the same: the mean over factors of :math:`\max_k N_{fk} / \sum_k N_{fk}`, sum and maximum over the
    active latents, scaled from [1/A, 1] to [0, 1]."""
    modularity: float
    r"""Mean over latents of :math:`1 - \sum_{f \ne m} I_{fk}^2 / ((F - 1) I_{mk}^2)`, where m is the factor with the
    largest :math:`I_{fk}`: Ridgeway and Mozer, "Learning Deep Disentangled Embeddings With the F-Statistic Loss"
    (2018), Sec. 3. All latents count, also inactive ones, whose entries are errors of the estimate."""
    completeness: float
    r"""Mean over factors of :math:`1 + \sum_k P_{fk} \log_K P_{fk}` with :math:`P_{fk} = N_{fk} / \sum_j N_{fj}`:
    Eastwood and Williams, "A Framework for the Quantitative Evaluation of Disentangled Representations" (2018), Sec. 2,
    with mutual information as the importance of a latent. All latents count; those without information add nothing."""


def informative_latents(information: ArrayLike, entropy: ArrayLike, threshold: float = 0.01) -> np.ndarray:
    r"""Return a (K,) mask of latents whose :math:`\sum_f N_{fk}` is above ``threshold``."""
    return (np.asarray(information, float) / np.asarray(entropy, float)[:, None]).sum(0) > threshold


@np.errstate(divide="ignore", invalid="ignore")
def disentanglement(information: ArrayLike, entropy: ArrayLike, active: ArrayLike | None = None) -> Disentanglement:
    """Return all measures for mutual information (F, K) and the factors' entropies (F,), in nats.

    ``active`` is a (K,) mask of the latents that count in InfoM and InfoC, :func:`informative_latents` by default.

    Examples
    --------
    >>> code = disentanglement([[0.6, 0.0, 0.0], [0.0, 0.6, 0.0]], [0.6, 0.6])
    >>> {name: round(value, 2) for name, value in code._asdict().items()}
    {'mig': 1.0, 'info_modularity': 1.0, 'info_compactness': 1.0, 'modularity': 0.67, 'completeness': 1.0}
    """
    active = informative_latents(information, entropy) if active is None else np.asarray(active, bool)
    information = np.asarray(information, float)
    normalised, largest = information / np.asarray(entropy, float)[:, None], information.max(0)
    second, first = np.sort(np.pad(normalised, ((0, 0), (1, 0))), 1)[:, -2:].T
    ratio = np.where(largest > 0, information / largest, 1.0)
    return Disentanglement(
        float((first - second).mean()),
        _concentration(normalised[:, active], 0),
        _concentration(normalised[:, active], 1),
        float(1.0 - ((ratio**2).sum(0).mean() - 1.0) / (len(information) - 1.0)),
        float(1.0 - entr(_shares(normalised, 1)).sum(1).mean() / np.log(information.shape[1])),
    )


def _shares(x: np.ndarray, axis: int) -> np.ndarray:
    """Return entries divided by their sum along an axis, or equal shares."""
    total = x.sum(axis, keepdims=True)
    return np.where(total > 0, x / total, 1.0 / np.float64(x.shape[axis]))


def _concentration(x: np.ndarray, axis: int) -> float:
    """Return the mean largest share along an axis, scaled from between equal shares and a single one to [0, 1]."""
    chance = 1.0 / np.float64(x.shape[axis])
    largest = _shares(x, axis).max(axis, initial=0.0)
    return float((largest.sum() / largest.size - chance) / (1.0 - chance))
