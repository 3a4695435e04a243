"""Every training ends in a result of finite numbers or in a recorded divergence."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from tiny_runs import KINDS, numbers, tiny, train, train_pack

from isa import mig, objectives
from isa.prior import Node
from isa.results import Result, load_model
from isa.run import Run

pytestmark = pytest.mark.usefixtures("small_discriminator")

STEPS = 12
MEASURED = {"mig", "log_likelihood", "divergence", "elbo", "active_units", "evaluation_seconds"}


def _run(**changes) -> Run:
    return tiny(**({"steps": STEPS} | changes))


def _check(result: Result) -> str:
    """Check what every result promises, and return its status."""
    run, record, at = result.run, result.record, result.diverged_at
    assert json.loads(json.dumps(record, allow_nan=False)) == record and record["diverged_at"] == at
    assert all(map(math.isfinite, numbers(record)))
    assert (record["exponents"] is None) == (run.tree is None) and all(p > 0 for p in record["exponents"] or ())
    assert all(np.isfinite(values[:at]).all() for values in result.curve.values())
    (steps,) = {len(values) for values in result.curve.values()}
    if at is None:
        assert record["status"] == "trained" and steps == run.total_steps
        assert None not in map(record.get, MEASURED)
        assert all(bool(value.isfinite().all()) for value in result.model.parameters())
    else:
        assert record["status"] == "diverged" and steps == min(at + 1, run.total_steps)
        assert not set(record) & MEASURED and result.evaluation is None
    return record["status"]


EXPONENTS = st.sampled_from([0.5, 1.0, 2.0, 10.0]) | st.floats(0.5, 10)
TREES = st.builds(lambda p, q: {"prior": str(Node(p, [1, Node(q, 2)])), "latent_dim": 3}, EXPONENTS, EXPONENTS)
RATES = st.sampled_from([1e-3, 1.0]) | st.floats(-5, 0).map(lambda x: 10**x)
SETTINGS = {
    "seed": st.integers(0, 2**32),
    "beta": st.sampled_from([0, 1, 100]) | st.floats(1e-3, 100),
    "learning_rate": RATES,
    "precision": st.sampled_from(["fp32", "bf16"]),
    "likelihood": st.sampled_from(["bernoulli", "gaussian"]),
}
KIND = st.sampled_from(list(KINDS.values())) | TREES
RUNS = st.builds(lambda kind, changes: _run(**(kind | changes)), KIND, st.fixed_dictionaries(SETTINGS))


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RUNS)
@example(_run(learning_rate=1.0, kl="closed_form", beta=100.0))
@example(_run(objective="isa-vae", p0=10.0, p1=10.0, beta=100.0))
@example(_run(objective="isa-vae", p0=0.5, p1=0.5, beta=0, learn_exponents=True, exponent_learning_rate=1.0))
@example(_run(objective="isa-tcvae", p0=10.0, p1=0.5, learning_rate=1.0, precision="bf16"))
@example(_run(objective="factor-vae", beta=100.0, learning_rate=1.0))
@example(_run(objective="isa-vae", beta=100.0, prior="10[0.5[2], 1]"))
def test_training_ends_in_finite_numbers_or_divergence(run):
    for result in train_pack([run, run.replace(beta=1e30)], evaluation=True):
        event(_check(result))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_prior_is_not_used_at_beta_0(precision):
    """Beta-VAE and ISA-VAE are then the same noisy autoencoder; learned exponents stay at their start."""
    common = {"beta": 0, "precision": precision}
    plain = train(_run(**common), evaluation=True)
    for learned in (False, True):
        result = train(_run(objective="isa-vae", learn_exponents=learned, **common), evaluation=True)
        np.testing.assert_array_equal(result.curve["loss"], -result.curve["log_likelihood"])
        np.testing.assert_array_equal(result.curve["loss"], plain.curve["loss"])
        assert result.record["log_likelihood"] == plain.record["log_likelihood"]
        assert result.record["divergence"] != plain.record["divergence"]
        assert not learned or result.exponents == pytest.approx((2.1, 2.0, 2.0))
    assert plain.curve["loss"][-1] < plain.curve["loss"][0]


@pytest.mark.parametrize("steps", [1, STEPS])
@pytest.mark.parametrize("changes", [{"learning_rate": 1e25}, {"exponent_learning_rate": 1e38}])
def test_diverged_exponents_are_recorded_as_they_last_were(changes, steps, tmp_path):
    """No prior exists for the NaN, 0 or infinity that they become."""
    run = _run(objective="isa-vae", learn_exponents=True, p1=(1.5, 3.0), steps=steps, **changes)
    result = train(run, evaluation=True)
    assert _check(result) == "diverged" and result.diverged_at == 1
    assert result.record["exponents"] == pytest.approx([2.1, 1.5, 3.0], rel=1e-3)
    again, _, prior = load_model(result.save(tmp_path))
    assert again == run and prior.tree.exponents == result.exponents


@pytest.mark.parametrize("value", [-200.0, 200.0, math.nan, math.inf, -math.inf])
def test_closed_form_out_of_range_is_not_finite(value):
    posterior = torch.zeros(2, 5, 3), torch.full((2, 5, 3), value)
    posterior[1][1] = 0.5
    actual = objectives.kl_closed_form(*posterior, objectives.standard_normal(3))
    assert not actual[0].isfinite().any()
    torch.testing.assert_close(actual[1], torch.full((5,), 1.5 * (math.exp(0.5) - 1.5)))


def test_mig_that_is_not_a_number_is_a_divergence(monkeypatch):
    original = mig.mutual_information_gap

    def broken(*arguments, **options):
        return replace(original(*arguments, **options), score=math.nan)

    monkeypatch.setattr(mig, "mutual_information_gap", broken)
    result = train(_run(steps=3), evaluation=True)
    assert _check(result) == "diverged" and result.diverged_at == 3
