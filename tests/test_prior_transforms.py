"""torch.compile, torch.func, autocast, default dtypes, copies and pickles, changing parameters, and KL divergences."""

import copy
import math
import pickle
import shutil

import pytest
import torch
from conftest import wide
from torch.distributions import Independent, Laplace, LogNormal, MultivariateNormal, Normal, kl_divergence

from isa import LearnableISAPrior, LpNested, Node, isa_prior

Z = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PRIOR = {
    "two subspaces": lambda: isa_prior((3, 2), p0=1.7, p1=[2.4, 0.9]),
    "tensors": lambda: isa_prior((3, 2), p0=wide(1.7, True), p1=[wide(2.4, True), wide(0.9, True)], scale=wide(0.8)),
    "deep, with a radius": lambda: LpNested(Node(1.5, [1, Node(0.8, [Node(3.0, 2), 2])]), radial=LogNormal(0.2, 0.4)),
}


def gradient(function, z: torch.Tensor) -> torch.Tensor:
    z = z.clone().requires_grad_()
    return torch.autograd.grad(function(z).sum(), z)[0]


@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="needs a C++ compiler")
@pytest.mark.usefixtures("fresh_compiler")
def test_training_step_compiles_into_machine_code():
    module = LearnableISAPrior((3, 2)).double()
    z = torch.cat([Z, wide([0.0, 1e-30, 1.0, 1e15, 0.0]).diag()]).requires_grad_()

    def loss(z):
        return -module().log_prob(z).clamp(min=-1e20).mean()

    leaves = [z, *module.parameters()]
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(z), leaves)
    torch.testing.assert_close(compiled, torch.autograd.grad(loss(z), leaves))


@pytest.mark.parametrize("name", PRIOR)
def test_func_transforms(name):
    prior = PRIOR[name]()
    expected = gradient(prior.log_prob, Z)
    torch.testing.assert_close(torch.func.vmap(torch.func.vmap(prior.log_prob))(Z[None])[0], prior.log_prob(Z))
    torch.testing.assert_close(torch.func.vmap(prior.norm, in_dims=1)(Z.T), prior.norm(Z))
    for derivative in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(torch.func.vmap(derivative(prior.log_prob))(Z), expected)
    hessian = torch.autograd.functional.hessian(prior.log_prob, Z[0])
    for outer in (torch.func.jacfwd, torch.func.jacrev):
        torch.testing.assert_close(outer(torch.func.jacrev(prior.log_prob))(Z[0]), hessian)


@pytest.mark.parametrize("validate", [True, False])
def test_vmap_over_parameters(validate):
    parameters = wide([1.2, 2.0, 3.1]), wide([0.8, 2.0, 5.0]), wide([0.5, 1.0, 2.0])

    def total(p, q, s):
        return LpNested(Node(p, [1, Node(q, 4)]), s, validate_args=validate).log_prob(Z).sum()

    for function in (lambda *x: (total(*x),), torch.func.grad(total, (0, 1, 2))):
        each = [function(*x) for x in zip(*parameters, strict=True)]
        expected = tuple(torch.stack(values) for values in zip(*each, strict=True))
        torch.testing.assert_close(torch.func.vmap(function)(*parameters), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_default_and_parameter_dtypes(dtype):
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        for prior in (isa_prior((2, 2), scale="unit"), LpNested(Node(torch.tensor(1.5, dtype=dtype), 4))):
            computed = torch.promote_types(dtype, torch.float32)
            assert prior.sample((3,)).dtype == prior.variance.dtype == computed
            assert prior.log_prob(prior.sample((3,)).to(dtype)).dtype == computed
        assert LearnableISAPrior((2, 2))().rsample((3,)).isfinite().all()
    finally:
        torch.set_default_dtype(torch.float32)


def test_default_device():
    """The meta device, which has no values, stands for an accelerator."""
    with torch.device("meta"):
        prior = LpNested(Node(1.5, [2, Node(3.0, 3)]), 0.7, validate_args=False)
        results = prior.sample((3,)), prior.mean, prior.variance, prior.entropy(), prior.scale, prior.exponents
        assert {x.device.type for x in (*results, prior.log_prob(prior.rsample((3,))))} == {"meta"}
        assert prior.log_prob(torch.ones(5, device="cpu")).isfinite()


def test_prior_follows_its_tensors():
    p0, p1 = wide(2.0, True), wide([1.5, 1.5])
    prior, z = isa_prior((2, 2), p0=p0, p1=p1, scale=0.7), torch.ones(3, 4)
    with torch.no_grad():
        p0.fill_(1.8)
        p1.fill_(3.0)
    expected = isa_prior((2, 2), p0=1.8, p1=3.0, scale=0.7)
    torch.testing.assert_close(prior.log_prob(z), expected.log_prob(z))
    torch.testing.assert_close(prior.variance.float(), expected.variance)
    torch.testing.assert_close(prior.entropy().float(), expected.entropy())


def test_copies_and_pickles(lp_nested):
    z = torch.ones(*lp_nested.batch_shape, *lp_nested.event_shape)
    for other in (copy.deepcopy(lp_nested), pickle.loads(pickle.dumps(lp_nested))):
        assert torch.equal(other.log_prob(z), lp_nested.log_prob(z)) and str(other.tree) == str(lp_nested.tree)
        assert (other.batch_shape, other.event_shape) == (lp_nested.batch_shape, lp_nested.event_shape)


def normal(n: int, loc: float = 0.0, scale: float = 1.0) -> Independent:
    return Independent(Normal(wide([loc] * n), scale), 1)


BATCH = LpNested(Node(wide([1.0, 2.0, 3.0]), [1, Node(2.4, 2)]), wide(0.8))


@pytest.mark.parametrize(
    ("p", "q", "closed"),
    [
        (isa_prior((2, 3), 1.5, [2.4, 0.9], wide(0.8)), normal(5, 0.3, 0.7), True),
        (BATCH, normal(3), True),
        (isa_prior((2, 3)), isa_prior((3, 2), p1=[1.2, 2.0], scale=wide(0.8)), False),
        (LpNested(Node(1.5, 3), radial=LogNormal(wide(0.2), wide(0.4))), LpNested(Node(1.5, 3)), False),
        (normal(4, 0.3, 0.8), isa_prior((2, 2)), False),
        (MultivariateNormal(wide([0.0] * 3), torch.eye(3).double() + 0.5), BATCH, False),
        (isa_prior((2, 2)), Independent(Laplace(wide(0.0).expand(4), 0.5), 1), False),
    ],
    ids=["to a normal", "batch", "other tree", "other radius", "from a normal", "from a full normal", "to Laplace"],
)
def test_kl_divergence_matches_samples(p, q, closed):
    torch.manual_seed(0)
    z = p.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape)).sample((100_000,)).double()
    difference = p.log_prob(z) - q.log_prob(z)
    divergence = kl_divergence(p, q)
    assert torch.equal(divergence, kl_divergence(p, q)) == closed and divergence.shape == difference.shape[1:]
    count = 100_000 if closed else 10_000 / 3 / 1.1  # at least a third of 10,000 samples for each entry of a batch
    assert ((divergence - difference.mean(0)).abs() < 4.5 * difference.std(0) / math.sqrt(count)).all()


def test_kl_divergence_has_gradients():
    scale = wide(0.5, True)
    torch.manual_seed(0)
    q = Independent(Normal(torch.zeros(3).double(), scale), 1)
    (slope,) = torch.autograd.grad(kl_divergence(q, LpNested(Node(2.0, 3), 2.0)), scale)
    assert slope.item() == pytest.approx(3 * (0.5 - 1 / 0.5), rel=0.012)
