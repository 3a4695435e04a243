"""Maximum-likelihood fits: known parameters come back, with errors that are what they say."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch

from isa import LpNested, Node

TRUE = Node(1.6, [Node(2.6, 3), 1, Node(0.9, 2)])
START = Node(2.0, [Node(2.0, 3), 1, Node(2.0, 2)])


def sample(tree: Node, scale: float, count: int, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return LpNested(tree, torch.tensor(scale, dtype=torch.float64)).sample((count,))


def z_scores(tree: Node, start: Node, scale: float, count: int, seeds: int) -> np.ndarray:
    scores = []
    for seed in range(seeds):
        fit = LpNested.fit(start, sample(tree, scale, count, seed))
        got = [*fit.distribution.tree.exponents, float(fit.distribution.scale)]
        errors = [*fit.exponent_errors, fit.scale_error]
        scores.append([(g - t) / e for g, t, e in zip(got, (*tree.exponents, scale), errors, strict=True)])
    return np.array(scores)


def test_known_exponents_come_back_within_calibrated_errors():
    scores = z_scores(TRUE, START, 0.7, 1500, 24)
    assert np.abs(scores).max() < 4.5
    assert (np.abs(scores.mean(0)) < 4.5 / np.sqrt(24)).all()
    # the sum of squares over 24 fits is chi-squared: its 1e-4 quantiles over 24 are 0.27 and 2.5
    assert ((scores**2).mean(0) > 0.27).all() and ((scores**2).mean(0) < 2.5).all()


@pytest.mark.parametrize(
    ("tree", "scale"),
    [
        (Node(1.3, 3), 0.7),
        (Node(0.5, [Node(6.0, 3), Node(6.0, 3)]), 1.5),
        (Node(2.5, [Node(0.6, [Node(1.8, 2), 2]), 1]), 1.0),
    ],
    ids=str,
)
def test_other_trees(tree, scale):
    start = tree.with_exponents([2.0] * len(tree.exponents))
    assert np.abs(z_scores(tree, start, scale, 4000, 2)).max() < 4.5


def test_the_fit_is_a_maximum():
    z = sample(TRUE, 0.7, 2000, 0)
    fit = LpNested.fit(START, z)
    best = fit.distribution.log_prob(z).sum().item()
    assert fit.log_likelihood == pytest.approx(best, rel=1e-12) and fit.n_samples == 2000
    assert best > LpNested(TRUE, 0.7).log_prob(z).sum().item()
    p = torch.tensor(fit.distribution.tree.exponents, dtype=torch.float64, requires_grad=True)
    s = fit.distribution.scale.double().requires_grad_()
    LpNested(START.with_exponents(p.unbind()), s).log_prob(z).mean().backward()
    assert p.grad.abs().max() < 1e-5 and s.grad.abs() < 1e-4


def test_the_start_does_not_matter():
    z = sample(TRUE, 0.7, 2000, 0)
    fits = [LpNested.fit(START.with_exponents(p), z) for p in ([2.0] * 3, [0.7, 6.0, 3.0], TRUE.exponents)]
    for fit in fits[1:]:
        assert fit.log_likelihood == pytest.approx(fits[0].log_likelihood, abs=1e-4)
        np.testing.assert_allclose(fit.distribution.tree.exponents, fits[0].distribution.tree.exponents, rtol=1e-4)


def test_a_node_without_influence_keeps_its_exponent():
    z = sample(Node(1.6, [Node(2.6, [Node(1.2, 2)])]), 1.0, 2000, 0)
    fit = LpNested.fit(Node(2.0, [Node(9.0, [Node(2.0, 2)])]), z)
    assert fit.distribution.tree.exponents[1] == 9.0 and fit.exponent_errors[1] == 0.0
    assert abs(fit.distribution.tree.exponents[0] - 1.6) < 4.5 * fit.exponent_errors[0]
    assert abs(fit.distribution.tree.exponents[2] - 1.2) < 4.5 * fit.exponent_errors[2]


def test_normal_samples_are_recognised():
    torch.manual_seed(0)
    fit = LpNested.fit(Node(1.0, [Node(1.0, 2), 1]), 1.5 * torch.randn(8000, 3))
    for p, error in zip(fit.distribution.tree.exponents, fit.exponent_errors, strict=True):
        assert abs(p - 2.0) < 4.5 * error and error < 0.1
    assert abs(fit.distribution.variance.mean() - 2.25) < 0.1


@pytest.mark.parametrize("convert", [np.asarray, lambda z: z.float(), lambda z: z.clone().requires_grad_()])
def test_what_samples_may_be(convert):
    z = sample(TRUE, 0.7, 300, 0)
    assert LpNested.fit(START, convert(z)).log_likelihood == pytest.approx(
        LpNested.fit(START, z).log_likelihood, rel=1e-5
    )


def test_samples_are_left_as_they_are():
    z = np.asarray(sample(TRUE, 0.7, 300, 0))
    z.setflags(write=False)
    before = z.copy()
    LpNested.fit(START, z)
    assert np.array_equal(z, before)


def test_zero_coordinates_do_no_harm():
    z = sample(Node(2.2, [Node(2.6, 3), 1, Node(2.4, 2)]), 0.7, 500, 0)
    z[::50, 0] = 0.0
    z[7] = 0.0
    fit = LpNested.fit(START, z)
    assert np.isfinite([*fit.exponent_errors, fit.scale_error, fit.log_likelihood]).all()
    assert all(0 < e < 2 for e in fit.exponent_errors)


@pytest.mark.parametrize("factor", [1e-12, 1e9])
def test_units_change_the_scale_only(factor):
    z = sample(TRUE, 0.7, 500, 0)
    fit, other = LpNested.fit(START, z), LpNested.fit(START, z * factor)
    np.testing.assert_allclose(other.distribution.tree.exponents, fit.distribution.tree.exponents, rtol=1e-4)
    jacobian = 500 * 6 * np.log(factor)
    assert other.log_likelihood == pytest.approx(fit.log_likelihood - jacobian, rel=1e-7)


def test_standard_errors_do_not_depend_on_the_unit():
    torch.manual_seed(0)
    z = torch.randn(20_000, 4, dtype=torch.float64)
    fits = [LpNested.fit(Node(2.0, [Node(2.0, 2), Node(2.0, 2)]), c * z) for c in (1.0, 3000.0, 1e-9)]
    for fit in fits:
        np.testing.assert_allclose(fit.exponent_errors, fits[0].exponent_errors, rtol=1e-6)
    assert fits[0].exponent_errors[0] == pytest.approx(0.0183, abs=2e-4)


def test_an_exponent_on_a_bound_is_reported():
    torch.manual_seed(0)
    z = torch.rand(300, 4, dtype=torch.float64) * 2 - 1  # the likelihood increases with p without end
    fit = LpNested.fit(Node(2.0, 4), z)
    assert fit.at_bound == (True,) and np.isnan(fit.exponent_errors[0]) and fit.scale_error > 0 and fit.converged
    assert LpNested.fit(START, sample(TRUE, 0.7, 300, 0)).at_bound == (False,) * 3


def test_a_fit_that_did_not_converge_is_reported(monkeypatch):
    z = sample(TRUE, 0.7, 300, 0)
    assert LpNested.fit(START, z).converged
    minimize = scipy.optimize.minimize
    monkeypatch.setattr(scipy.optimize, "minimize", lambda *a, **k: minimize(*a, **{**k, "options": {"maxiter": 1}}))
    assert not LpNested.fit(START, z).converged


@pytest.mark.parametrize(
    ("tree", "z", "error", "message"),
    [
        (None, np.ones((9, 2)), TypeError, r"^tree = None; it must be a Node whose exponents are numbers"),
        (Node(torch.tensor(2.0), 2), np.ones((9, 2)), TypeError, r"^tree = .*; it must be a Node whose exponents"),
        *[(Node(2.0, 2), z, ValueError, r"^z must be a real array of shape \(2 or more, 2\), got ")
          for z in (np.ones((9, 3)), np.ones(9), np.ones((1, 2)), np.ones((0, 2)), np.ones((9, 2)) * 1j)],
        *[(Node(2.0, 2), z, ValueError, "^z must be finite, and not 0 throughout$")
          for z in (np.full((9, 2), np.nan), np.diag([np.inf, 1.0]), np.zeros((9, 2)))],
        (Node(2.0, 2), np.array("samples"), TypeError, "numpy"),
    ],
)  # fmt: skip
def test_what_is_refused(tree, z, error, message):
    with pytest.raises(error, match=message):
        LpNested.fit(tree, z)
