"""torch.compile, torch.func, autocast, inference mode, copies and pickles."""

from __future__ import annotations

import copy
import math
import pickle
import shutil

import pytest
import torch
from torch.distributions import LogNormal

from isa import LpNested, Node, isa_prior
from isa.prior import LearnableISAPrior

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++", "gcc", "cc"))), reason="needs a C++ compiler"
)
Z = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PRIOR = {
    "two subspaces": lambda: isa_prior((3, 2), p0=1.7, p1=[2.4, 0.9]),
    "deep": lambda: LpNested(Node(1.5, [1, Node(0.8, [Node(3.0, 2), 1]), 1]), 1.2),
    "radius": lambda: LpNested(Node(1.5, [2, Node(3.0, 3)]), radial=LogNormal(0.2, 0.4)),
}


@pytest.fixture(params=PRIOR)
def prior(request) -> LpNested:
    return PRIOR[request.param]()


def gradient(function, z: torch.Tensor) -> torch.Tensor:
    z = z.clone().requires_grad_()
    return torch.autograd.grad(function(z).sum(), z)[0]


# ---- torch.compile


@pytest.mark.usefixtures("fresh_compiler")
def test_log_prob_compiles_into_one_graph(prior):
    compiled = torch.compile(prior.log_prob, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(Z), prior.log_prob(Z))
    torch.testing.assert_close(gradient(compiled, Z), gradient(prior.log_prob, Z))
    zeros = torch.zeros_like(Z)
    assert gradient(compiled, zeros).equal(gradient(prior.log_prob, zeros))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("size", [3, 8, 9])  # the compiled evaluation differs between small and large groups
def test_compiled_values_agree_where_they_are_extreme(size):
    prior = isa_prior((size, size), p0=1.3, p1=[0.4, 30.0], validate_args=False)
    z = torch.tensor([0.0, 1e-30, 1e-3, 1.0, 1e15, math.inf], dtype=torch.float64)[:, None].repeat(1, 2 * size)
    z[:, ::3] = 0.0
    compiled = torch.compile(prior.log_prob, fullgraph=True, backend="aot_eager")(z)
    assert not compiled.isnan().any() and compiled[-1] == -math.inf
    torch.testing.assert_close(compiled, prior.log_prob(z))


@pytest.mark.usefixtures("fresh_compiler")
def test_second_derivatives_compile():
    prior = PRIOR["two subspaces"]()
    hessian = torch.func.jacrev(torch.func.jacrev(prior.log_prob))
    torch.testing.assert_close(torch.compile(hessian, backend="aot_eager")(Z[0]), hessian(Z[0]))


@pytest.mark.usefixtures("fresh_compiler")
def test_sampling_compiles_into_one_graph():
    prior = isa_prior((3, 2), p1=[2.4, 0.9])
    torch.manual_seed(0)
    z = torch.compile(lambda: prior.rsample((4000,)), fullgraph=True, backend="aot_eager")()
    assert z.shape == (4000, 5)
    error = z.square().std(0) / 4000**0.5
    assert ((z.square().mean(0) - prior.variance).abs() < 4.5 * error).all()


@needs_compiler
@pytest.mark.usefixtures("fresh_compiler")
def test_a_training_step_with_learned_exponents_compiles_into_machine_code():
    module = LearnableISAPrior((3, 2), learn_p0=True).double()

    def loss(z):
        return -module().log_prob(z).mean()

    z = Z.clone().requires_grad_()
    loss(z).backward()
    expected = [z.grad.clone(), *(p.grad.clone() for p in module.parameters())]
    z.grad = None
    module.zero_grad()
    torch.compile(loss, fullgraph=True)(z).backward()
    for got, want in zip([z.grad, *(p.grad for p in module.parameters())], expected, strict=True):
        torch.testing.assert_close(got, want)


# ---- torch.func


def test_vmap_over_points(prior):
    torch.testing.assert_close(torch.func.vmap(prior.log_prob)(Z), prior.log_prob(Z))
    torch.testing.assert_close(torch.func.vmap(prior.norm, in_dims=1)(Z.T), prior.norm(Z))
    nested = torch.func.vmap(torch.func.vmap(prior.log_prob))(Z.expand(2, 7, 5))
    torch.testing.assert_close(nested[1], prior.log_prob(Z))


def test_grad_and_jacobians(prior):
    expected = gradient(prior.log_prob, Z)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(prior.log_prob))(Z), expected)
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(torch.func.vmap(jacobian(prior.log_prob))(Z), expected)
    value, pull = torch.func.vjp(prior.log_prob, Z)
    torch.testing.assert_close(pull(torch.ones_like(value))[0], expected)


def test_hessians_agree_with_finite_differences_of_the_gradient():
    for prior in (PRIOR["two subspaces"](), PRIOR["deep"]()):
        hessian = torch.func.hessian(prior.log_prob)(Z[0])
        step = 1e-6 * torch.eye(5, dtype=torch.float64)
        expected = (gradient(prior.log_prob, Z[0] + step) - gradient(prior.log_prob, Z[0] - step)) / 2e-6
        torch.testing.assert_close(hessian, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(torch.func.jacrev(torch.func.jacrev(prior.log_prob))(Z[0]), hessian)
        torch.testing.assert_close(torch.func.jacrev(torch.func.jacfwd(prior.log_prob))(Z[0]), hessian)


@pytest.mark.parametrize("validate", [True, False])
def test_vmap_over_parameters(validate):
    p0, p1 = torch.tensor([1.2, 2.0, 3.1]).double(), torch.tensor([0.8, 2.0, 5.0]).double()
    scale = torch.tensor([0.5, 1.0, 2.0]).double()

    def log_prob(p, q, s, z):
        return LpNested(Node(p, [1, Node(q, 4)]), s, validate_args=validate).log_prob(z)

    got = torch.func.vmap(log_prob, in_dims=(0, 0, 0, None))(p0, p1, scale, Z)
    expected = torch.stack([log_prob(*x, Z) for x in zip(p0, p1, scale, strict=True)])
    torch.testing.assert_close(got, expected)
    slopes = torch.func.vmap(torch.func.grad(lambda *a: log_prob(*a).sum(), (0, 1, 2)), in_dims=(0, 0, 0, None))
    for got, argument in zip(slopes(p0, p1, scale, Z), (p0, p1, scale), strict=True):
        each = []
        for i in range(3):
            x = [v[i].clone().requires_grad_() for v in (p0, p1, scale)]
            log_prob(*x, Z).sum().backward()
            each.append(next(v.grad for v, w in zip(x, (p0, p1, scale), strict=True) if w is argument))
        torch.testing.assert_close(got, torch.stack(each))


def test_vmap_over_the_exponents_of_a_unit_variance_prior():
    def scale(p):
        return isa_prior((2, 2), p, p, "unit").scale

    got = torch.func.vmap(scale)(torch.tensor([1.0, 2.0]).double())
    torch.testing.assert_close(got, torch.stack([scale(torch.tensor(p).double()) for p in (1.0, 2.0)]))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_sampling():
    torch.manual_seed(0)
    p1 = torch.tensor([0.8, 2.0, 5.0], dtype=torch.float64)
    draw = torch.func.vmap(lambda q: isa_prior((2, 2), p1=q).rsample((20_000,)), randomness="different")
    z = draw(p1)
    variance = torch.stack([isa_prior((2, 2), p1=float(q)).variance for q in p1])
    error = z.square().std(1) / 20_000**0.5
    assert ((z.square().mean(1) - variance).abs() < 4.5 * error).all()


def test_what_is_remembered_within_a_transform_does_not_leak_out_of_it():
    for first in (
        lambda prior: torch.func.grad(prior.log_prob)(Z[0]),
        lambda prior: torch.func.hessian(prior.log_prob)(Z[0]),
        lambda prior: torch.func.vmap(prior.log_prob)(Z),
        lambda prior: torch.func.jvp(prior.log_prob, (Z,), (Z,)),
        lambda prior: torch.inference_mode()(prior.log_prob)(Z),
        lambda prior: torch.no_grad()(prior.log_prob)(Z),
    ):
        # a tree of its own, which nothing else has evaluated before
        prior = isa_prior((3, 1, 1), p0=1.9, p1=[2.4, 0.9, torch.rand(()).item() + 1.0])
        first(prior)
        assert gradient(prior.log_prob, Z).isfinite().all()
        torch.testing.assert_close(torch.func.vmap(torch.func.grad(prior.log_prob))(Z), gradient(prior.log_prob, Z))
        p = torch.tensor(2.0, requires_grad=True)
        isa_prior((3, 1, 1), p1=p).log_prob(Z).sum().backward()
        assert p.grad.isfinite()


@pytest.mark.parametrize("leaves", range(101, 104))
def test_a_structure_first_seen_in_inference_mode_or_a_transform_can_be_learned_later(leaves):
    z = torch.ones(leaves)
    make = {
        101: lambda: torch.inference_mode()(LpNested(Node(2.0, leaves)).log_prob)(z),
        102: lambda: torch.func.grad(LpNested(Node(2.0, leaves)).log_prob)(z),
        103: lambda: torch.func.vmap(lambda p: LpNested(Node(p, leaves)).log_prob(z))(torch.tensor([1.0, 2.0])),
    }[leaves]
    make()
    p = torch.tensor(2.0, requires_grad=True)
    LpNested(Node(p, leaves)).log_prob(z).backward()
    assert p.grad.isfinite() and p.grad != 0


# ---- autocast


@pytest.mark.parametrize("learned", [False, True])
def test_autocast_leaves_the_density_in_single_precision(learned):
    p1 = torch.tensor([2.4, 0.9], requires_grad=learned)
    prior = isa_prior((3, 2), p1=p1)
    z = Z.float()
    plain = prior.log_prob(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prior.log_prob(z), plain)
        half = z.bfloat16().requires_grad_()
        result = prior.log_prob(half)
    assert result.dtype == torch.float32
    assert torch.equal(result, prior.log_prob(half.detach().float()))
    result.sum().backward()
    assert half.grad.dtype == torch.bfloat16 and half.grad.isfinite().all()
    assert not learned or p1.grad.dtype == torch.float32


def test_half_precision_parameters_are_used_in_single_precision():
    for dtype in (torch.float16, torch.bfloat16):
        prior = LpNested(Node(torch.tensor(1.5, dtype=dtype), 3), torch.tensor(2.0, dtype=dtype))
        exact = LpNested(Node(1.5, 3), 2.0)
        assert prior.sample((2,)).dtype == prior.variance.dtype == torch.float32
        torch.testing.assert_close(prior.log_prob(torch.ones(3)), exact.log_prob(torch.ones(3)))


def test_a_default_dtype_of_half_precision():
    torch.set_default_dtype(torch.bfloat16)
    try:
        torch.manual_seed(0)
        prior = isa_prior((2, 2), scale="unit")
        assert prior.sample((3,)).dtype == prior.variance.dtype == torch.float32
        assert prior.log_prob(prior.sample((3,)).bfloat16()).isfinite().all()
        assert LearnableISAPrior((2, 2))().rsample((3,)).isfinite().all()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(prior.log_prob(torch.ones(4)), isa_prior((2, 2), scale="unit").log_prob(torch.ones(4)))


def test_another_default_device():
    """The meta device, which has no values, stands for an accelerator."""
    with torch.device("meta"):
        for tree in (Node(2.1, [Node(2.2, 2)] * 2), Node(1.5, [2, Node(3.0, 3)])):
            prior = LpNested(tree, 0.7, validate_args=False)
            results = prior.sample((3,)), prior.mean, prior.variance, prior.entropy(), prior.scale, prior.exponents
            assert {x.device.type for x in results} == {"meta"}
            assert prior.log_prob(prior.rsample((3,))).device.type == "meta"
            assert prior.log_prob(torch.ones(prior.event_shape, device="cpu")).isfinite()


# ---- parameters that change


@pytest.mark.parametrize("scale", [0.7, "unit"])
def test_a_prior_of_tensors_follows_their_later_values(scale):
    p0, p1 = torch.nn.Parameter(torch.tensor(2.0)), torch.tensor([1.5, 1.5])
    prior, z = isa_prior((2, 2), p0=p0, p1=p1, scale=scale), torch.ones(3, 4)
    before = prior.log_prob(z)
    optimiser = torch.optim.SGD([p0], lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        prior.log_prob(z).sum().neg().backward()
        optimiser.step()
    p1.fill_(3.0)
    expected = isa_prior((2, 2), p0=p0.item(), p1=3.0, scale=scale)
    torch.testing.assert_close(prior.log_prob(z), expected.log_prob(z))
    torch.testing.assert_close(prior.variance, expected.variance)
    torch.testing.assert_close(prior.entropy(), expected.entropy())
    assert not torch.allclose(prior.log_prob(z), before)
    other = copy.deepcopy(prior)
    with torch.no_grad():
        p0.add_(1.0)
    torch.testing.assert_close(other.log_prob(z), expected.log_prob(z))


# ---- copies


def test_copies_and_pickles_are_the_same_distribution(lp_nested):
    z = torch.ones(*lp_nested.batch_shape, *lp_nested.event_shape)
    expected = lp_nested.log_prob(z)
    for other in (copy.copy(lp_nested), copy.deepcopy(lp_nested), pickle.loads(pickle.dumps(lp_nested))):  # our own
        assert torch.equal(other.log_prob(z), expected)
        assert (other.batch_shape, other.event_shape) == (lp_nested.batch_shape, lp_nested.event_shape)
        assert str(other.tree) == str(lp_nested.tree)


def test_a_deep_copy_of_a_module_learns_on_its_own():
    module = LearnableISAPrior((2, 2))
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.raw_p1.add_(1.0)
    assert not torch.equal(other.p1, module.p1)
