"""Measures of disentanglement of recorded runs of dSprites, and the concentration of its factors in subspaces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

from edition.statements import outcome
from edition.stats import LEVEL, Comparison, Interval
from isa.data import dsprites
from isa.disentanglement import Disentanglement, disentanglement
from isa.evaluate import subspaces
from isa.run import Run

__all__ = ["Concentration", "agreement", "answer", "beyond_chance", "by_seed"]
__all__ += ["gap_of_unscored", "joint", "scores", "shares", "summed"]

_GROUPINGS = 2_000  # random ones, with which sums over subspaces are compared


class Concentration(NamedTuple):
    """Concentration of each factor of a run in one subspace, compared with random groupings of the same latents.

    It is the difference between the two subspaces with the most information of the factor, divided by the factor's
    entropy: a MIG of subspaces. Arrays end with the mean over factors, ``(F + 1,)``.
    """

    seed: int
    own: np.ndarray  #: in the subspaces of the prior
    chance: np.ndarray  #: mean over random groupings
    deviation: np.ndarray  #: standard deviation over random groupings, or an upper bound on it
    random: np.ndarray | None = None
    """In each of G random groupings ``(G, F + 1)``, the same ones for all runs of a seed."""


def _entropy(factors: Iterable[str]) -> np.ndarray:
    """Return the entropies of factors of dSprites in nats, as a column."""
    sizes = {factor.name: factor.size for factor in dsprites.FACTORS}
    return np.log([[sizes[name]] for name in factors])


def shares(row: Mapping[str, Any]) -> np.ndarray:
    """Return the mutual information of a record's factors and latents in shares of the factor's entropy, ``(F, K)``."""
    return np.array(row["mutual_information"]) / _entropy(row["factors"])


def scores(row: Mapping[str, Any]) -> Disentanglement:
    """Return the measures of a record."""
    return disentanglement(row["mutual_information"], _entropy(row["factors"])[:, 0])


def gap_of_unscored(row: Mapping[str, Any]) -> float | None:
    """Return the mean gap of the factors that a record measures without scoring them, or None if it has none."""
    if not row.get("unscored_mutual_information"):
        return None
    shares = np.sort(np.array(row["unscored_mutual_information"]) / _entropy(row["unscored"]), 1)
    return float((shares[:, -1] - shares[:, -2]).mean())


def agreement(found: Mapping[str, Comparison]) -> str:
    """Return a sentence that states whether measures, by name, agree."""
    signs = {"higher": 1, "lower": -1}
    names = {word: [name for name, one in found.items() if one.direction == sign] for word, sign in signs.items()}
    significant = "; ".join(f"{', '.join(some)} {word}" for word, some in names.items() if some)
    if any(np.isnan(one.low) for one in found.values()):
        result = "Too few runs to say"
    elif not significant:
        result = "The measures agree: no significant difference by any of them"
    elif all(names.values()):
        result = f"The measures contradict each other: {significant}"
    elif list(found) in names.values():
        result = f"The measures agree: all are significantly {'higher' if names['higher'] else 'lower'}"
    else:
        result = f"Only some measures differ significantly: {significant}"
    one, positive = next(iter(found.values())), sum(one.difference > 0 for one in found.values())
    return f"{result}; {positive} of {len(found)} estimates are positive (n = {one.n_first} and {one.n_second})."


def _with_mean(values: np.ndarray) -> np.ndarray:
    return np.append(values, values.mean(-1, keepdims=True), -1)


def summed(row: Mapping[str, Any]) -> Concentration | None:
    """Return the concentration with the sum over its latents as the information of a subspace.

    It needs the information of single latents only, which every record has. None without a layout of subspaces.
    """
    groups = subspaces(Run(**{name: row[name] for name in Run.model_fields}))
    if groups is None:
        return None
    latents, starts = np.concatenate(groups), np.cumsum([0, *map(len, groups)])[:-1]
    random = np.random.default_rng(row["seed"]).permuted(np.tile(latents, (_GROUPINGS, 1)), axis=1)
    sums = np.sort(np.add.reduceat(shares(row)[:, np.vstack([latents, random])], starts, axis=2), axis=2)
    own, *others = _with_mean((sums[..., -1] - sums[..., -2]).T)
    return Concentration(row["seed"], own, np.mean(others, 0), np.std(others, 0), np.array(others))


def joint(row: Mapping[str, Any]) -> Concentration | None:
    """Return the concentration by joint densities of the latents of a subspace; None if the record has none.

    Records have the mean and the standard deviation of each rank over few random groupings. The deviation of a
    difference is at most the sum of deviations. Since few groupings may miss what is rare, two active latents in one
    subspace, the deviation is at least that of :func:`summed`.
    """
    if not row.get("subspace_mutual_information"):
        return None
    entropy = _entropy(row["subspace_factors"])
    names = ("subspace_mutual_information", "random_subspace_mean", "random_subspace_deviation")
    own, chance, spread = (np.array(row[name]) / entropy for name in names)
    gaps = -np.diff(np.sort(own, 1)[:, :-3:-1])[:, 0], -np.diff(chance[:, :2])[:, 0]
    spread = _with_mean(spread[:, :2].sum(1) * np.sqrt(1 + 1 / row["random_groupings"]))
    sums = dict(zip([*row["factors"], "mean"], summed(row).deviation, strict=True))
    least = [sums.get(name, 0.0) for name in [*row["subspace_factors"], "mean"]]
    return Concentration(row["seed"], *map(_with_mean, gaps), np.maximum(spread, least))


def by_seed(found: Sequence[Concentration]) -> list[Concentration]:
    """Return means over the runs of each seed, which start from the same weights and are not independent."""
    seeds = [[one for one in found if one.seed == seed] for seed in sorted({one.seed for one in found})]
    columns = [zip(*some, strict=True) for some in seeds]
    return [Concentration(*(x[0] if x[0] is None else np.mean(x, 0) for x in some)) for some in columns]


def beyond_chance(found: Sequence[Concentration]) -> list[Interval]:
    """Return the mean concentration of independent runs minus that by chance, for each factor and for their mean.

    If the grouping by the prior has no effect, it is one random grouping among others, since all latents start from
    independent weights of one distribution. The mean over runs then has the distribution that it has under random
    groupings, and the interval is the central part of that around the difference; if single groupings are not recorded,
    a normal one with the deviations. Student's interval does not fit: groupings seldom join two active latents, so few
    runs are often alike and below the mean.
    """
    n, difference = len(found), np.mean([one.own - one.chance for one in found], 0)
    if found[0].random is not None:
        null = np.mean([one.random - one.chance for one in found], 0)
        low, high = np.quantile(null, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    else:
        high = norm.isf((1 - LEVEL) / 2) * np.sqrt(np.sum([one.deviation**2 for one in found], 0)) / n
        low = -high
    return [Interval(*map(float, row), n) for row in zip(difference, difference - high, difference - low, strict=True)]


def answer(excess: Interval) -> str:
    """Return how the concentration of a factor in one subspace compares with chance."""
    words = "More than by chance", "Less than by chance", "No significant difference"
    return "Too few runs to say" if excess.n < 3 else outcome(excess, *words)
