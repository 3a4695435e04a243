"""The module whose exponents are learned (Sec. 4)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from isa import LpNested, Node, isa_prior
from isa.prior import LearnableISAPrior


def test_where_it_starts():
    module = LearnableISAPrior()
    torch.testing.assert_close(module.p1, torch.full((5,), 2.0))
    torch.testing.assert_close(module.p0, torch.tensor(2.1))
    assert isinstance(module(), LpNested) and module().event_shape == (20,)
    z = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(module().log_prob(z), isa_prior(p0=2.1, p1=2.0).log_prob(z), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("p", [0.2, 1.0, 2.0, 7.5, 50.0])
def test_any_start_is_read_back(p):
    module = LearnableISAPrior((2, 3), p0=p, p1=[p, 2 * p], scale=0.7)
    torch.testing.assert_close(module.p0, torch.tensor(p), rtol=1e-5, atol=0)
    torch.testing.assert_close(module.p1, torch.tensor([p, 2 * p]), rtol=1e-5, atol=0)
    assert module().scale.item() == pytest.approx(0.7)


@pytest.mark.parametrize("learn_p0", [False, True])
def test_which_parameters_learn(learn_p0):
    module = LearnableISAPrior((2, 3), learn_p0=learn_p0)
    module().log_prob(torch.ones(5)).backward()
    assert module.raw_p1.grad.isfinite().all() and (module.raw_p1.grad != 0).all()
    assert (module.raw_p0.grad is not None) == learn_p0
    assert [name for name, p in module.named_parameters() if p.requires_grad] == ["raw_p1"] + ["raw_p0"] * learn_p0


def test_gradients_flow_through_samples_too():
    module = LearnableISAPrior((2, 3), learn_p0=True)
    torch.manual_seed(0)
    module().rsample((50,)).square().mean().backward()
    assert (module.raw_p1.grad != 0).all() and module.raw_p0.grad != 0


def test_optimisation_recovers_the_exponents_of_samples():
    torch.manual_seed(0)
    z = LpNested(Node(2.1, [Node(1.3, 4), Node(3.5, 4)])).sample((6000,))
    fit = LpNested.fit(Node(2.0, [Node(2.0, 4), Node(2.0, 4)]), z)
    module = LearnableISAPrior((4, 4), learn_p0=True)
    optimiser = torch.optim.LBFGS(module.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = -module().log_prob(z).mean()
        value.backward()
        return value

    optimiser.step(loss)
    errors = torch.tensor(fit.exponent_errors)
    for got, true, error in zip([module.p0, *module.p1], (2.1, 1.3, 3.5), errors, strict=True):
        assert abs(got.item() - true) < 4.5 * error


@pytest.mark.parametrize("target", [0.3, 12.0])
def test_exponents_stay_positive_wherever_plain_gradient_steps_lead(target):
    torch.manual_seed(0)
    module = LearnableISAPrior((4, 4))
    z = isa_prior((4, 4), p1=target).sample((500,))
    optimiser = torch.optim.SGD(module.parameters(), lr=5.0)
    for _ in range(60):
        optimiser.zero_grad()
        (-module().log_prob(z).mean()).backward()
        optimiser.step()
        assert (module.p1 > 0).all() and module.p1.isfinite().all()


def test_very_negative_raw_values_still_give_positive_exponents():
    module = LearnableISAPrior((2, 2))
    with torch.no_grad():
        module.raw_p1.fill_(-60.0)
    assert (module.p1 > 0).all()


def test_a_state_is_saved_and_loaded():
    module = LearnableISAPrior((2, 3), p1=[1.2, 3.4])
    assert set(module.state_dict()) == {"raw_p0", "raw_p1"}
    other = LearnableISAPrior((2, 3))
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.p1, module.p1) and torch.equal(other.p0, module.p0)
    with pytest.raises(RuntimeError, match="size mismatch"):
        LearnableISAPrior((2, 3, 1)).load_state_dict(module.state_dict())


def test_it_is_part_of_a_larger_module():
    model = nn.ModuleDict({"encoder": nn.Linear(3, 5), "prior": LearnableISAPrior((2, 3))}).double()
    assert model["prior"].p1.dtype == torch.float64
    model["prior"]().log_prob(model["encoder"](torch.ones(4, 3).double())).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_each_call_gives_the_prior_of_the_present_exponents():
    module = LearnableISAPrior((2, 2))
    z = torch.ones(4)
    before = module().log_prob(z)
    with torch.no_grad():
        module.raw_p1.add_(1.0)
    assert not torch.equal(module().log_prob(z), before)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"subspaces": ()}, ValueError, "^subspaces = "),
        ({"subspaces": (2, 0)}, ValueError, "every int must be at least 1"),
        ({"p1": [2.0, 2.0]}, ValueError, r"^p1 has 2 exponents; there are 5 subspaces$"),
        ({"p1": 0.0}, ValueError, r"^p = 0.0; an exponent must be positive and finite"),
        ({"p0": -1.0}, ValueError, r"^p = -1.0; an exponent must be positive and finite"),
        ({"scale": 0.0}, ValueError, r"^scale = 0.0; it must be a positive finite number"),
        ({"scale": "unit", "p1": 2.2}, ValueError, r"^scale = 'unit'; no single s keeps unit variance"),
    ],
)
def test_what_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        LearnableISAPrior(**arguments)
