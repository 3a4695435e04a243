"""Numbers: every training ends in a result of finite numbers or in a recorded divergence, whatever it is asked for."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from tiny_runs import assert_same, numbers, tiny, train, train_pack
from tiny_sweep import DATASET

from isa import mig, objectives, sweep
from isa.engine import Pack
from isa.prior import LpNested, Node
from isa.results import Result, load_model
from isa.run import OBJECTIVES, Run
from isa.sweep import Spec, read_records

pytestmark = pytest.mark.usefixtures("small_discriminator")

STEPS = 24
MEASURED = {"mig", "log_likelihood", "divergence", "elbo", "active_units", "evaluation_seconds"}


def _run(**changes) -> Run:
    return tiny(**({"steps": STEPS} | changes))


def _check(result: Result) -> str:
    """Check what every result promises, and return its status."""
    run, record, at = result.run, result.record, result.diverged_at
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert all(map(math.isfinite, numbers(record)))
    assert record["diverged_at"] == at
    assert (record["exponents"] is None) == (run.tree is None) and all(p > 0 for p in record["exponents"] or ())
    lengths = {len(values) for values in result.curve.values()}
    if at is None:
        assert record["status"] == "trained" and lengths == {run.total_steps}
        assert set(record) >= MEASURED and None not in map(record.get, MEASURED)
        assert all(np.isfinite(values).all() for values in result.curve.values())
        assert all(bool(value.isfinite().all()) for value in result.model.parameters())
    else:
        assert record["status"] == "diverged" and 0 <= at <= run.total_steps
        assert lengths == {min(at + 1, run.total_steps)}
        assert not set(record) & MEASURED and result.evaluation is None
        assert all(np.isfinite(values[:at]).all() for values in result.curve.values())
    return record["status"]


# Any run

EXPONENTS = st.one_of(st.sampled_from([0.5, 1.0, 2.0, 10.0]), st.floats(0.5, 10))
RATES = st.one_of(st.sampled_from([1e-3, 1.0]), st.floats(-5, 0).map(lambda x: 10**x))


@st.composite
def runs(draw) -> Run:
    """Any objective with any prior at any setting that the ranges of this page allow."""
    objective = draw(st.sampled_from(sorted(OBJECTIVES)))
    changes = {"objective": objective, "seed": draw(st.integers(0, 2**32))}
    changes["beta"] = draw(st.one_of(st.sampled_from([0, 1, 100]), st.floats(1e-3, 100)))
    changes["learning_rate"] = draw(RATES)
    changes["precision"] = draw(st.sampled_from(["fp32", "bf16"]))
    changes["likelihood"] = draw(st.sampled_from(["bernoulli", "gaussian"]))
    if objective == "beta-tcvae" or objective == "isa-tcvae":
        changes["sampling"] = draw(st.sampled_from(["weighted", "stratified"]))
    kinds = ["isa", "learned", "tree", "p-generalised"] + ["normal"] * (not objective.startswith("isa-"))
    kind = draw(st.sampled_from(kinds))
    if kind == "normal":
        if objective != "beta-tcvae":
            changes["kl"] = draw(st.sampled_from(["monte_carlo", "closed_form"]))
    elif kind in ("isa", "learned"):
        changes |= {"prior": "isa", "subspaces": (2, 1), "latent_dim": 3}
        changes |= {"p0": draw(EXPONENTS), "p1": (draw(EXPONENTS), draw(EXPONENTS))}
        if kind == "learned":
            changes |= {"learn_exponents": True, "exponent_learning_rate": draw(RATES)}
    else:
        tree = (
            Node(draw(EXPONENTS), 3)
            if kind == "p-generalised"
            else Node(draw(EXPONENTS), [1, Node(draw(EXPONENTS), 2)])
        )
        changes |= {"prior": str(tree), "latent_dim": 3}
    return _run(**changes)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(runs())
@example(_run(learning_rate=1.0, kl="closed_form", beta=100.0))
@example(_run(objective="isa-vae", p0=10.0, p1=10.0, beta=100.0))
@example(_run(objective="isa-vae", p0=0.5, p1=0.5, beta=0, learn_exponents=True, exponent_learning_rate=1.0))
@example(_run(objective="isa-tcvae", p0=10.0, p1=0.5, learning_rate=1.0, precision="bf16"))
@example(_run(objective="factor-vae", beta=100.0, learning_rate=1.0))
def test_a_training_ends_in_finite_numbers_or_in_a_recorded_divergence(run):
    """The other run of a pack, healthy or not, changes nothing."""
    result, diverged = train_pack([run, run.replace(beta=1e30)], evaluation=True)
    again, _ = train_pack([run, run.replace(seed=run.seed + 1, beta=1.0)], evaluation=True)
    event(_check(result))
    event(f"the other: {_check(diverged)}")
    assert_same(result, again)


@pytest.mark.parametrize("kind", ["beta-vae", "isa-vae", "beta-tcvae", "isa-tcvae", "factor-vae"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_moderate_rate_trains_and_an_absurd_one_diverges(kind, precision):
    """So that the property above is about both ends."""
    well = _run(objective=kind, precision=precision, beta=4.0)
    absurd = well.replace(learning_rate=1e6)
    assert [_check(train(run, evaluation=True)) for run in (well, absurd)] == ["trained", "diverged"]


@pytest.mark.parametrize("prior", ["2.1[2.2[2], 1]", "10[3]", "0.5[10[2], 1]", "10[0.5[2], 1]"])
def test_heavy_weights_and_tails_are_no_divergence(prior):
    run = _run(objective="isa-vae", prior=prior, beta=100.0, steps=60)
    assert _check(train(run, evaluation=True)) == "trained"


# Beta = 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_at_beta_0_the_prior_has_no_say(precision):
    """Beta-VAE and ISA-VAE are then one autoencoder with noise; exponents to be learned stay where they are."""
    common = {"beta": 0, "precision": precision}
    plain = train(_run(**common), evaluation=True)
    of_isa = [_run(objective="isa-vae", **common), _run(objective="isa-vae", learn_exponents=True, **common)]
    for run in of_isa:
        result = train(run, evaluation=True)
        np.testing.assert_array_equal(result.curve["loss"], -result.curve["log_likelihood"])
        np.testing.assert_array_equal(result.curve["loss"], plain.curve["loss"])
        assert result.record["log_likelihood"] == plain.record["log_likelihood"]
        assert result.record["divergence"] != plain.record["divergence"]
        assert not run.learn_exponents or result.exponents == pytest.approx((2.1, 2.0, 2.0))
    assert plain.curve["loss"][-1] < plain.curve["loss"][0]


@pytest.mark.parametrize("objective", ["beta-tcvae", "isa-tcvae", "factor-vae"])
def test_without_weight_total_correlation_is_only_reported(objective):
    result = train(_run(objective=objective, beta=0), evaluation=True)
    curve, rest = result.curve, 0.0
    if objective != "factor-vae":  # there the divergence has the total correlation as a part
        rest = curve["total_correlation"]
    np.testing.assert_allclose(curve["loss"], curve["kl"] - rest - curve["log_likelihood"], rtol=1e-5)
    assert np.abs(curve["total_correlation"]).max() > 1e-3
    assert _check(result) == "trained"


def test_beta_0_has_one_hash_and_a_record(tmp_path):
    run = _run(beta=0)
    assert run.hash == _run(beta=0.0).hash == _run(beta=-0.0).hash != _run(beta=1e-6).hash
    assert run.key.startswith("cars3d-beta-vae-0-seed0-") and json.dumps(_run(beta=-0.0).beta) == "0.0"
    path = tmp_path / "zero.yaml"
    fields = "dataset: cars3d, model: small, latent_dim: 3, batch_size: 16, steps: 3, precision: fp32"
    path.write_text(f"title: no divergence\nevery: {{{fields}}}\ntiers:\n  1:\n    - {{beta: [0, 1]}}\n")
    records = sweep.sweep(Spec.read(path), device="cpu")
    assert [record["beta"] for record in records] == [0, 1] and not records.missing
    assert [
        Run.from_dict({name: row[name] for name in run.to_dict() if row[name] is not None}).hash == row["hash"]
        for row in read_records(path.with_suffix(".csv"))
    ] == [True, True]


# Divergence


@pytest.mark.parametrize("steps", [1, STEPS])
@pytest.mark.parametrize("changes", [{"learning_rate": 1e25}, {"exponent_learning_rate": 1e38}])
def test_exponents_that_ran_away_are_recorded_as_they_last_were(changes, steps, tmp_path):
    """They become NaN, 0 or infinity, of which no prior is made."""
    run = _run(objective="isa-vae", learn_exponents=True, p1=(1.5, 3.0), steps=steps, **changes)
    result = train(run, evaluation=True)
    assert _check(result) == "diverged" and result.diverged_at == 1
    assert result.record["exponents"] == pytest.approx([2.1, 1.5, 3.0], rel=1e-3)
    again, _, prior = load_model(result.save(tmp_path))
    assert again == run and prior.tree.exponents == result.exponents


@pytest.mark.parametrize("rate", [1.0, 30.0, 1e4])
def test_closed_forms_do_not_stop_a_pack(rate):
    runs = [_run(kl="closed_form", learning_rate=rate, seed=seed) for seed in range(2)]
    assert {_check(result) for result in train_pack(runs)} == {"diverged"}


@pytest.mark.parametrize("value", [-1e3, -200.0, 200.0, 1e3, math.nan, math.inf, -math.inf])
def test_a_closed_form_out_of_range_is_no_error(value):
    posterior = torch.zeros(2, 5, 3), torch.full((2, 5, 3), value)
    posterior[1][1] = 0.5
    found = objectives.kl_closed_form(*posterior, objectives.standard_normal(3))
    assert not found[0].isfinite().any()
    torch.testing.assert_close(found[1], torch.full((5,), 1.5 * (math.exp(0.5) - 1.5)))


@pytest.mark.parametrize("p", [0.5, 1.0, 10.0])
def test_posteriors_at_a_priors_cusp_train(p):
    """All codes lie at 0, or so near that float32 has nothing closer to it, where the density's slope is infinite."""
    for log_var in (-80.0, 0.0):
        pack = Pack([_run(prior=f"{p}[{p}[2], 1]", objective="isa-vae", steps=3)], DATASET)
        with torch.no_grad():
            pack.parameters["encoder.3.weight"].zero_()
            pack.parameters["encoder.3.bias"][:, :3] = 0.0
            pack.parameters["encoder.3.bias"][:, 3:] = log_var
            for name, value in pack.parameters.items():
                pack.state[f"value.{name}"].copy_(value)
        pack.advance_to(3)
        assert pack.diverged() == [None]
    z = torch.zeros(4, 3, requires_grad=True)
    value = LpNested(Node(p, [Node(p, 2), 1])).log_prob(z)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert value.isfinite().all() and not gradient.any()


def test_a_mig_that_is_not_a_number_is_a_divergence(monkeypatch):
    original = mig.mutual_information_gap

    def broken(*arguments, **options):
        return replace(original(*arguments, **options), score=math.nan)

    monkeypatch.setattr(mig, "mutual_information_gap", broken)
    result = train(_run(steps=3), evaluation=True)
    assert _check(result) == "diverged" and result.diverged_at == 3
