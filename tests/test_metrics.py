"""Comparison by several measures, and the concentration of factors in subspaces, on codes that are made up."""

import numpy as np
import pytest

from edition import metrics
from edition.stats import Comparison, Interval
from isa.data.dsprites import FACTOR_SIZES, FACTORS
from isa.run import Run

NAMES = [factor.name for factor in FACTORS]
ENTROPY = np.log(FACTOR_SIZES)[:, None]
GROUPS = np.arange(20).reshape(5, 4)


def record(shares: np.ndarray, seed: int = 0) -> dict:
    """Return a record of information in shares (5, 20) of the factors' entropies, joint densities being independent."""
    rng = np.random.default_rng(seed)
    groupings = [GROUPS, *(rng.permutation(20).reshape(5, 4) for _ in range(10))]
    own, *others = (shares[:, groups].sum(-1) * ENTROPY for groups in groupings)
    ranked = np.sort(others, 2)[..., ::-1]
    return Run(objective="isa-vae", beta=2.0, seed=seed).to_dict() | {
        "factors": NAMES[1:],
        "mutual_information": shares[1:] * ENTROPY[1:],
        "subspace_factors": NAMES,
        "subspace_mutual_information": own.tolist(),
        "random_subspace_mean": ranked.mean(0).tolist(),
        "random_subspace_deviation": ranked.std(0, ddof=1).tolist(),
        "random_groupings": 10,
    }


def code(latents: tuple[int, int, int], seed: int) -> np.ndarray:
    """Return shares (5, 20) of a code with orientation and position x in the first two latents, and y in the third."""
    shares = np.full((5, 20), 1e-4)
    shares[2:, latents] += [[0.2, 0.1, 0.0], [0.3, 0.2, 0.0], [0.0, 0.0, 0.5]] * np.random.default_rng(seed).random(3)
    return shares


def study(together: bool, seed: int) -> list[np.ndarray]:
    """Return the codes of three runs, the first two latents in one subspace or anywhere."""
    rng = np.random.default_rng(seed)
    places = [(4, 6, 8) if together else tuple(rng.permutation(20)[:3]) for _ in range(3)]
    return [code(latents, 3 * seed + number) for number, latents in enumerate(places)]


def test_scores_of_a_record_are_those_of_its_shares():
    row = record(np.eye(5, 20))
    assert metrics.scores(row).mig == pytest.approx(1) and (metrics.shares(row) == np.eye(5, 20)[1:]).all()


def test_concentration_of_two_latents():
    shares = np.zeros((5, 20))
    shares[4, [0, 3]] = 0.3  # together 0.6 in one subspace, apart 0.3 in two
    found = metrics.summed(record(shares))
    assert found.own[3:] == pytest.approx([0.6, 0.15])
    assert found.chance[3] == pytest.approx(0.6 * 3 / 19, abs=4 * 0.6 * np.sqrt(3 / 19 * 16 / 19 / 2_000))
    pairs = found.random[:, 3] > 0.5
    assert found.deviation[3] == pytest.approx(0.6 * pairs.std())


def test_concentration_by_joint_densities():
    row = record(np.zeros((5, 20))) | {"subspace_factors": ["shape"], "random_groupings": 4}
    row |= {"subspace_mutual_information": [[0.1, 0.5, 0.2]], "random_subspace_mean": [[0.4, 0.2, 0.1]]}
    found = metrics.joint(row | {"random_subspace_deviation": [[0.1, 0.05, 0.0]]})
    parts = np.array([found.own, found.chance, found.deviation]) * np.log(3)
    np.testing.assert_allclose(parts, np.array([[0.3], [0.2], [0.15 * np.sqrt(1.25)]]).repeat(2, 1))
    assert metrics.joint({"subspace_mutual_information": None}) is None
    assert metrics.summed(row | {"subspaces": [20]}) is None


def test_deviation_by_joint_densities_is_at_least_that_of_sums():
    row = record(code((0, 1, 4), 0))
    found = metrics.joint(row | {"random_subspace_deviation": np.zeros((5, 5)).tolist()})
    np.testing.assert_allclose(found.deviation, np.append(0, metrics.summed(row).deviation))


@pytest.mark.parametrize("estimate", [metrics.joint, metrics.summed])
def test_answers_seldom_differ_from_chance_by_chance(estimate):
    def answers(together: bool, studies: int) -> list[str]:
        every = [study(together, seed) for seed in range(studies)]
        rows = [[record(shares, 3 * i + k) for k, shares in enumerate(codes)] for i, codes in enumerate(every)]
        return [metrics.answer(metrics.beyond_chance([estimate(row) for row in some])[-1]) for some in rows]

    assert metrics.answer(Interval(0.2, 0.1, 0.3, 2)) == "Too few runs to say"
    assert metrics.answer(Interval(-0.2, -0.3, -0.1, 3)) == "Less than by chance"
    assert answers(True, 10).count("More than by chance") >= 9
    by_chance = answers(False, 40)
    assert len(by_chance) - by_chance.count("No significant difference") <= 5  # 5 % of 40, and 2.5 standard errors


def test_runs_of_a_seed_are_averaged():
    first, second, other = (metrics.summed(record(code((0, 1, 4), k), seed)) for k, seed in enumerate((0, 0, 1)))
    mean, single = metrics.by_seed([first, other, second])
    np.testing.assert_allclose(mean.own, (first.own + second.own) / 2)
    np.testing.assert_allclose(mean.random, (first.random + second.random) / 2)
    assert single.seed == 1 and (single.own == other.own).all()


@pytest.mark.parametrize(
    ("bounds", "text"),
    [
        ([(-1, 1), (-1, 3)], "The measures agree: no significant difference by any of them; 1 of 2"),
        ([(1, 3), (2, 3)], "The measures agree: all are significantly higher; 2 of 2"),
        ([(-3, -1), (-2, -1)], "The measures agree: all are significantly lower; 0 of 2"),
        ([(1, 3), (-1, 3)], "Only some measures differ significantly: MIG higher; 2 of 2"),
        ([(1, 3), (-3, -1)], "The measures contradict each other: MIG higher; InfoM lower; 1 of 2"),
        ([(np.nan, np.nan), (1, 3)], "Too few runs to say"),
    ],
)
def test_agreement_of_measures(bounds, text):
    comparisons = [Comparison((low + high) / 2, low, high, 0.5, 4, 5) for low, high in bounds]
    found = dict(zip(("MIG", "InfoM"), comparisons, strict=True))
    assert metrics.agreement(found).startswith(text) and metrics.agreement(found).endswith("(n = 4 and 5).")


def test_gap_of_unscored_factors():
    row = {"unscored": ["shape"], "unscored_mutual_information": [[0.1, 0.5, 0.2]]}
    assert metrics.gap_of_unscored(row) == pytest.approx(0.3 / np.log(3)) and metrics.gap_of_unscored({}) is None
