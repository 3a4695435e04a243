"""Numbers: every training ends in a result of finite numbers or in a recorded divergence, whatever it is asked for."""

from __future__ import annotations

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st
from tiny_sweep import DATASET, small, small_discriminator, without_times

from isa import models, objectives, sweep, training
from isa.lpnested import LpNested, Node
from isa.sweep import Spec, read_records
from isa.training import DivergedError, Run, evaluate, load_model, train, train_pack

STEPS = 24
MEASURED = {"mig", "log_likelihood", "divergence", "elbo", "active_units", "evaluation_seconds"}


@pytest.fixture(autouse=True)
def small_critic(monkeypatch):
    monkeypatch.setattr(models, "build_discriminator", small_discriminator)


def _run(**changes) -> Run:
    settings = {"dataset": "cars3d", "model": "small", "batch_size": 16, "steps": STEPS, "precision": "fp32"}
    prior = changes.get("prior", changes.get("objective", "beta-vae"))
    settings |= {} if "[" in prior else {"subspaces": (2, 1)} if prior.startswith("isa") else {"latent_dim": 3}
    return Run(**(settings | changes))


def _train(runs: list[Run], **options) -> list[training.Result]:
    return train_pack(runs, dataset=DATASET, device="cpu", **options)


def _numbers(value: object) -> list[float]:
    """All numbers in what JSON holds."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [number for one in value for number in _numbers(one)]
    return [value] if isinstance(value, (int, float)) else []


def _check(result: training.Result) -> str:
    """Hold a result to what every result promises; returns its status."""
    run, record, at = result.run, result.record, result.diverged_at
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert all(map(math.isfinite, _numbers(record)))
    assert record["diverged_at"] == at
    assert (record["exponents"] is None) == (run.tree is None) and all(p > 0 for p in record["exponents"] or ())
    lengths = {len(values) for values in result.curve.values()}
    if at is None:
        assert record["status"] == "trained" and lengths == {run.total_steps}
        assert set(record) >= MEASURED and None not in map(record.get, MEASURED)
        assert all(np.isfinite(values).all() for values in result.curve.values())
        held = [*result.model.parameters(), *(result.discriminator.parameters() if result.discriminator else ())]
        assert all(bool(value.isfinite().all()) for value in held)
    else:
        assert record["status"] == "diverged" and 0 <= at <= run.total_steps
        assert lengths == {min(at + 1, run.total_steps)}
        assert not set(record) & MEASURED and result.evaluation is None
        assert all(np.isfinite(values[:at]).all() for values in result.curve.values())
    return record["status"]


def _equal(one: training.Result, other: training.Result) -> None:
    assert one.run == other.run
    for name, values in one.curve.items():
        np.testing.assert_array_equal(values, other.curve[name])
    for name, value in one.model.state_dict().items():
        torch.testing.assert_close(other.model.state_dict()[name], value, rtol=0, atol=0, equal_nan=True)
    assert without_times(one.record) == without_times(other.record)


# --- any run ---------------------------------------------------------------------------------------------------------

EXPONENTS = st.one_of(st.sampled_from([0.5, 1.0, 2.0, 10.0]), st.floats(0.5, 10))
RATES = st.one_of(st.sampled_from([1e-3, 1.0]), st.floats(-5, 0).map(lambda x: 10**x))


@st.composite
def runs(draw) -> Run:
    """Any objective with any prior at any setting that the ranges of this page allow."""
    objective = draw(st.sampled_from(sorted(training.OBJECTIVES)))
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
    """And what is trained beside it, be it well or ill, changes nothing in it."""
    ill, other = dataclasses.replace(run, beta=1e30), dataclasses.replace(run, seed=run.seed + 1, beta=1.0)
    result, diverged = _train([run, ill])
    again, _ = _train([run, other])
    event(_check(result))
    event(f"beside it: {_check(diverged)}")
    _equal(result, again)


@pytest.mark.parametrize("kind", ["beta-vae", "isa-vae", "beta-tcvae", "isa-tcvae", "factor-vae"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_moderate_rate_trains_and_an_absurd_one_diverges(kind, precision):
    """So that the property above is about both ends."""
    well = _run(objective=kind, precision=precision, beta=4.0)
    ill = dataclasses.replace(well, learning_rate=1e6)
    assert [_check(*_train([run])) for run in (well, ill)] == ["trained", "diverged"]


@pytest.mark.parametrize("prior", ["2.1[2.2[2], 1]", "10[3]", "0.5[10[2], 1]", "10[0.5[2], 1]"])
def test_heavy_weights_and_tails_are_no_divergence(prior):
    run = _run(objective="isa-vae", prior=prior, beta=100.0, steps=60)
    assert _check(*_train([run])) == "trained"


# --- beta = 0 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_at_beta_0_the_prior_has_no_say(precision):
    """Beta-VAE and ISA-VAE are then one autoencoder with noise; exponents to be learned stay where they are."""
    common = {"beta": 0, "precision": precision}
    plain = _train([_run(**common)])[0]
    of_isa = [_run(objective="isa-vae", **common), _run(objective="isa-vae", learn_exponents=True, **common)]
    for run in of_isa:
        (result,) = _train([run])
        np.testing.assert_array_equal(result.curve["loss"], -result.curve["log_likelihood"])
        np.testing.assert_array_equal(result.curve["loss"], plain.curve["loss"])
        assert result.record["log_likelihood"] == plain.record["log_likelihood"]
        assert result.record["divergence"] != plain.record["divergence"]
        assert not run.learn_exponents or result.exponents == pytest.approx((2.1, 2.0, 2.0))
    assert plain.curve["loss"][-1] < plain.curve["loss"][0]


@pytest.mark.parametrize("objective", ["beta-tcvae", "isa-tcvae", "factor-vae"])
def test_without_weight_total_correlation_is_only_reported(objective):
    (result,) = _train([_run(objective=objective, beta=0)])
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


# --- divergence ------------------------------------------------------------------------------------------------------


def _watched(curve: torch.Tensor, looks: list[int], total: int) -> int | None:
    """Where a watch that looks after these steps finds that the one run diverged, of terms (steps, terms, 1)."""
    pack = SimpleNamespace(curve=curve, names=("loss", "kl"), runs=[SimpleNamespace(key="a run")], step=0)
    pack.dataset, pack.run = SimpleNamespace(image_shape=(1, 64, 64)), SimpleNamespace(total_steps=total)
    pack.is_finite = lambda number: True
    watch = training._Watch(pack)
    for pack.step in looks:
        watch.look()
        if watch.died:
            return watch.died[0]
    return None


def _diverged_by_definition(terms: np.ndarray) -> int | None:
    limit = min(100 * max(abs(terms[0, 0]), 4096 * math.log(2)), 1e15)
    far = [not abs(loss) <= limit for loss in terms[:, 0]]
    for end in range(len(terms)):
        streak = 0
        while streak <= end and far[end - streak]:
            streak += 1
        if streak >= min(25, len(terms)) or not np.isfinite(terms[end]).all():
            return end - max(streak - 1, 0)
    return None


@given(
    st.lists(st.tuples(st.integers(1, 40), st.sampled_from([3e3, -3e3, 4e5, -4e5, 1e9])), min_size=1, max_size=6),
    st.one_of(st.none(), st.tuples(st.integers(0, 99), st.integers(0, 1), st.sampled_from([math.nan, math.inf]))),
    st.sets(st.integers(1, 239)),
)
def test_a_divergence_is_found_at_one_step_however_often_one_looks(stretches, ill, looks):
    loss = [value for length, value in stretches for _ in range(length)]
    terms = np.stack([loss, np.ones(len(loss))], 1).astype(np.float32)
    if ill is not None and ill[0] < len(loss):
        terms[ill[0], ill[1]] = ill[2]
    expected = _diverged_by_definition(terms)
    curve = torch.from_numpy(terms)[..., None]
    looks = [step for step in sorted(looks) if step < len(loss)]
    assert _watched(curve, [len(loss)], len(loss)) == expected
    assert _watched(curve, [*looks, len(loss)], len(loss)) == expected


def test_a_term_that_is_no_number_is_a_divergence_though_the_loss_is_one():
    terms = torch.full((30, 2, 1), 2e3)
    assert _watched(terms, [30], 30) is None
    terms[11, 1] = math.nan
    assert _watched(terms, [30], 30) == 11


@pytest.mark.parametrize("where", ["parameters", "moments", "discriminator", "statistics", "exponents"])
def test_a_state_that_is_not_finite_is_found_after_the_last_step(where):
    model = "conv" if where == "statistics" else "small"
    kind = {"objective": "factor-vae", "prior": "isa", "subspaces": (2, 1), "latent_dim": 3, "learn_exponents": True}
    pack = training._Pack(
        [_run(**kind, model=model, seed=seed) for seed in (0, 1)], DATASET, torch.device("cpu"), False
    )
    assert pack.is_finite(0) and pack.is_finite(1)
    parameter = pack.parameters[next(iter(pack.parameters))]
    value = {
        "parameters": parameter,
        "moments": pack.adam.moments(parameter)[1],
        "discriminator": pack.critic_parameters["0.bias"],
        "statistics": next((one for name, one in pack.buffers.items() if name.endswith("running_var")), None),
        "exponents": pack.prior.raw,
    }[where]
    with torch.no_grad():
        value[1].view(-1)[0] = -1e4 if where == "exponents" else math.inf  # an exponent of 0
    assert pack.is_finite(0) and not pack.is_finite(1)


@pytest.mark.parametrize("steps", [1, STEPS])
@pytest.mark.parametrize("changes", [{"learning_rate": 1e25}, {"exponent_learning_rate": 1e38}])
def test_exponents_that_ran_away_are_recorded_as_they_last_were(changes, steps, tmp_path):
    """They become NaN, 0 or infinity, of which no prior is made."""
    run = _run(objective="isa-vae", learn_exponents=True, p1=(1.5, 3.0), steps=steps, **changes)
    (result,) = _train([run])
    assert _check(result) == "diverged" and result.diverged_at == 1
    assert result.record["exponents"] == pytest.approx([2.1, 1.5, 3.0], rel=1e-3)
    again, _, prior = load_model(result.save(tmp_path))
    assert again == run and prior.tree.exponents == result.exponents


@pytest.mark.parametrize("rate", [1.0, 30.0, 1e4])
def test_closed_forms_do_not_stop_a_pack(rate):
    runs = [_run(kl="closed_form", learning_rate=rate, seed=seed) for seed in range(2)]
    assert {_check(result) for result in _train(runs)} == {"diverged"}


@pytest.mark.parametrize("value", [-1e3, -200.0, 200.0, 1e3, math.nan, math.inf, -math.inf])
def test_a_closed_form_out_of_range_is_no_error(value):
    posterior = torch.zeros(2, 5, 3), torch.full((2, 5, 3), value)
    posterior[1][1] = 0.5
    found = objectives.kl_closed_form(*posterior, objectives.standard_normal(3))
    assert not found[0].isfinite().any()
    torch.testing.assert_close(found[1], torch.full((5,), 1.5 * (math.exp(0.5) - 1.5)))


# --- measuring -------------------------------------------------------------------------------------------------------


def _constant(mean: float, log_var: float) -> models.VAE:
    """Networks whose posterior is the same for every image."""
    vae = small(3, 1)
    with torch.no_grad():
        for value in vae.parameters():
            value.zero_()
        vae.encoder.net[-1].bias[:3], vae.encoder.net[-1].bias[3:] = mean, log_var
    return vae


PRIORS = ["normal", "2.1[2.2[2], 1]", "0.5[3]", "10[3]", "10[0.5[2], 1]", "0.5[10[2], 1]"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("prior", PRIORS)
def test_extreme_posteriors_are_measured_in_finite_numbers_or_refused(prior, precision):
    run = _run(prior=prior, precision=precision)
    measured = set()
    for mean in (0.0, 1e-30, 1.0, 1e3, 1e4, 1e20, 3e38, math.inf, math.nan):
        for log_var in (-1e3, -500.0, -89.0, -80.0, 0.0, 80.0, 89.0, 500.0, 1e3, math.nan):
            try:
                found = evaluate(_constant(mean, log_var), training._final_prior(run, None), run, DATASET)
            except DivergedError as error:
                assert f"{run.key} cannot be measured" in str(error)
            else:
                assert all(map(math.isfinite, _numbers(training._measurements(found, DATASET))))
                measured.add((mean, log_var))
    assert {(0.0, 0.0), (1e-30, 0.0), (1.0, 0.0), (0.0, -80.0)} <= measured
    assert all(abs(log_var) < 100 and math.isfinite(mean) for mean, log_var in measured)


@pytest.mark.parametrize("p", [0.5, 1.0, 10.0])
def test_posteriors_at_a_priors_cusp_train(p):
    """All codes lie at 0, or so near that float32 has nothing closer to it, where the density's slope is infinite."""
    for log_var in (-80.0, 0.0):
        pack = training._Pack([_run(prior=f"{p}[{p}[2], 1]", objective="isa-vae")], DATASET, torch.device("cpu"), False)
        with torch.no_grad():
            pack.parameters["vae.encoder.net.3.weight"].zero_()
            pack.parameters["vae.encoder.net.3.bias"][:, :3] = 0.0
            pack.parameters["vae.encoder.net.3.bias"][:, 3:] = log_var
        for _ in range(3):
            pack.advance()
        assert pack.curve[:3].isfinite().all() and pack.is_finite(0)
    z = torch.zeros(4, 3, requires_grad=True)
    value = LpNested(Node(p, [Node(p, 2), 1])).log_prob(z)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    assert value.isfinite().all() and not gradient.any()


def test_a_mig_that_is_no_number_is_a_divergence(monkeypatch):
    original = training.mutual_information_gap

    def broken(*arguments, **options):
        return dataclasses.replace(original(*arguments, **options), score=math.nan)

    monkeypatch.setattr(training, "mutual_information_gap", broken)
    result = train(_run(steps=3), dataset=DATASET, device="cpu")
    assert _check(result) == "diverged" and result.diverged_at == 3
