"""Rotations of the ISA prior against closed forms and simulation; tests of samples that are right, and wrong."""

import math

import numpy as np
import pytest
import torch

from edition.factorise import turned
from edition.prior import excess_kurtosis, interaction, rotation_cost, sample_tests
from edition.stats import mean_interval
from isa import LpNested, isa_prior


def draw(prior: LpNested, count: int) -> torch.Tensor:
    torch.manual_seed(0)
    return prior.sample((count,)).double()


@pytest.mark.parametrize("between", [False, True])
def test_rotation_cost_in_closed_form(between):
    laplace = 3 / math.sqrt(2) - 2  # E |x - y| = 3 / 2 for two of them
    np.testing.assert_allclose(rotation_cost(2, 1.0, 1.0, between=between), laplace, rtol=1e-3)
    costs = rotation_cost(3, 2.0, 2.0, np.array([0.3, 1.0]), between=between)
    np.testing.assert_allclose(costs, 0.0, atol=1e-12)  # normal


@pytest.mark.parametrize(("between", "partner"), [(False, 1), (True, 3)])
def test_rotation_cost_by_simulation(between, partner):
    prior, angle = isa_prior((3, 3), 1.3, 3.0), 0.5
    z = draw(prior, 40_000)
    lost = mean_interval((prior.log_prob(z) - prior.log_prob(turned(z, 0, partner, angle))).reshape(40, -1).mean(1))
    assert abs(rotation_cost(3, 1.3, 3.0, angle, between=between) - lost.estimate) < lost.high - lost.low


def test_shape_and_dependence():
    assert excess_kurtosis(4, 2.0, 2.0) == pytest.approx(0.0, abs=1e-9)
    assert excess_kurtosis(1, 1.0, 3.0) == pytest.approx(3.0)  # one coordinate has the root's exponent
    assert interaction(3, 1.5, 1.5) == pytest.approx(0.0, abs=1e-12) and abs(interaction(3, 1.5, 2.0)) > 0.1


def other_directions(prior: LpNested, z: torch.Tensor, p: float) -> torch.Tensor:
    """Return points with the same norms in every subspace, and directions inside of another exponent."""
    torch.manual_seed(1)
    parts = []
    for columns, child in zip(prior.subspaces, prior.tree.branches, strict=True):
        part = isa_prior((len(columns),), float(prior.tree.p), p).sample((len(z),)).double()
        parts.append(part * (child.norm(z[:, list(columns)]) / child.norm(part))[:, None])
    return torch.cat(parts, 1)


PRIOR = isa_prior((4, 4), 2.1, 2.2)
SAMPLES = draw(PRIOR, 10_000)


@pytest.mark.parametrize(
    ("z", "failing"),
    [
        (SAMPLES, set()),
        (other_directions(PRIOR, SAMPLES, 1.3), {"coordinate", "score"}),
        (other_directions(PRIOR, SAMPLES, 1.7), {"score"}),  # too near for single coordinates
        (SAMPLES.abs() * SAMPLES[:, :1].sign(), {"signs"}),
        (SAMPLES.abs(), {"coordinate", "signs"}),
        (SAMPLES * 1.1, {"radius", "coordinate", "score"}),
    ],
)
def test_wrong_samples_fail(z, failing):
    p_values = sample_tests(PRIOR, z)
    assert {name.split()[0] for name, p in p_values.items() if p < 1e-3} == failing
    assert all(p_values[name] < 1e-3 for name in p_values if name.split()[0] in failing - {"score"})
