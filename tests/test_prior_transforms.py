"""torch.compile, torch.func, autocast, default dtypes, copies and pickles, changing parameters, and KL divergences."""

from __future__ import annotations

import copy
import math
import pickle
import shutil

import pytest
import torch
from torch.distributions import Independent, Laplace, LogNormal, MultivariateNormal, Normal, kl_divergence

from isa import LearnableISAPrior, LpNested, Node, isa_prior
from isa.prior import kl_monte_carlo

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "c++", "clang++", "gcc", "cc"))), reason="needs a C++ compiler"
)


def wide(values, grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


Z = torch.randn(7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PRIOR = {
    "two subspaces": lambda: isa_prior((3, 2), p0=1.7, p1=[2.4, 0.9]),
    "tensors": lambda: isa_prior((3, 2), p0=wide(1.7, True), p1=[wide(2.4, True), wide(0.9, True)], scale=wide(0.8)),
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
    for z in (Z, torch.zeros_like(Z)):
        torch.testing.assert_close(compiled(z), prior.log_prob(z))
        torch.testing.assert_close(gradient(compiled, z), gradient(prior.log_prob, z))


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("size", [3, 8, 9])  # the compiled evaluation differs between small and large groups
def test_compiled_extremes(size):
    prior = isa_prior((size, size), p0=1.3, p1=[0.4, 30.0])
    z = wide([0.0, 1e-30, 1e-3, 1.0, 1e15, math.inf])[:, None].repeat(1, 2 * size)
    z[:, ::3] = 0.0
    compiled = torch.compile(prior.log_prob, fullgraph=True, backend="aot_eager")(z)
    assert not compiled.isnan().any() and compiled[-1] == -math.inf
    torch.testing.assert_close(compiled, prior.log_prob(z))


@pytest.mark.usefixtures("fresh_compiler")
def test_second_derivatives_and_sampling_compile():
    prior = PRIOR["two subspaces"]()
    hessian = torch.func.jacrev(torch.func.jacrev(prior.log_prob))
    torch.testing.assert_close(torch.compile(hessian, backend="aot_eager")(Z[0]), hessian(Z[0]))
    torch.manual_seed(0)
    squares = torch.compile(lambda: prior.rsample((4000,)), fullgraph=True, backend="aot_eager")().square()
    assert squares.shape == (4000, 5)
    assert ((squares.mean(0) - prior.variance).abs() < 4.5 * squares.std(0) / 4000**0.5).all()


@needs_compiler
@pytest.mark.usefixtures("fresh_compiler")
def test_training_step_compiles_into_machine_code():
    module, z = LearnableISAPrior((3, 2), learn_p0=True).double(), Z.clone().requires_grad_()

    def loss(z):
        return -module().log_prob(z).mean()

    leaves = [z, *module.parameters()]
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True)(z), leaves)
    torch.testing.assert_close(compiled, torch.autograd.grad(loss(z), leaves))


# ---- torch.func


def test_func_transforms(prior):
    expected = gradient(prior.log_prob, Z)
    torch.testing.assert_close(torch.func.vmap(prior.log_prob)(Z), prior.log_prob(Z))
    torch.testing.assert_close(torch.func.vmap(prior.norm, in_dims=1)(Z.T), prior.norm(Z))
    nested = torch.func.vmap(torch.func.vmap(prior.log_prob))(Z.expand(2, 7, 5))
    torch.testing.assert_close(nested[1], prior.log_prob(Z))
    for derivative in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        torch.testing.assert_close(torch.func.vmap(derivative(prior.log_prob))(Z), expected)
    value, pull = torch.func.vjp(prior.log_prob, Z)
    torch.testing.assert_close(pull(torch.ones_like(value))[0], expected)
    step = 1e-6 * torch.eye(5, dtype=torch.float64)
    differences = (gradient(prior.log_prob, Z[0] + step) - gradient(prior.log_prob, Z[0] - step)) / 2e-6
    for outer, inner in ((torch.func.jacfwd, torch.func.jacrev), (torch.func.jacrev, torch.func.jacrev)):
        torch.testing.assert_close(outer(inner(prior.log_prob))(Z[0]), differences, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("validate", [True, False])
def test_vmap_over_parameters(validate):
    parameters = wide([1.2, 2.0, 3.1]), wide([0.8, 2.0, 5.0]), wide([0.5, 1.0, 2.0])

    def total(p, q, s):
        return LpNested(Node(p, [1, Node(q, 4)]), s, validate_args=validate).log_prob(Z).sum()

    def unit_scale(p, q, s):
        return (isa_prior((2, 2), p, q, "unit").scale,)

    for function in (lambda *x: (total(*x),), torch.func.grad(total, (0, 1, 2)), unit_scale):
        each = [function(*x) for x in zip(*parameters, strict=True)]
        expected = tuple(torch.stack(values) for values in zip(*each, strict=True))
        torch.testing.assert_close(torch.func.vmap(function)(*parameters), expected)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_over_sampling():
    torch.manual_seed(0)
    p1 = wide([0.8, 2.0, 5.0])
    squares = torch.func.vmap(lambda q: isa_prior((2, 2), p1=q).rsample((20_000,)), randomness="different")(p1).square()
    variance = torch.stack([isa_prior((2, 2), p1=q).variance for q in p1])
    assert ((squares.mean(1) - variance).abs() < 4.5 * squares.std(1) / 20_000**0.5).all()


def test_nothing_leaks_out_of_a_transform():
    for first in (
        lambda prior: torch.func.hessian(prior.log_prob)(Z[0]),
        lambda prior: torch.func.vmap(prior.log_prob)(Z),
        lambda prior: torch.inference_mode()(prior.log_prob)(Z),
        lambda prior: torch.no_grad()(prior.log_prob)(Z),
    ):
        p1 = wide([2.4, 0.9], True)
        for prior in (isa_prior((3, 2), p1=p1), isa_prior((3, 2), p1=[2.4, 0.9])):
            first(prior)
            torch.testing.assert_close(torch.func.vmap(torch.func.grad(prior.log_prob))(Z), gradient(prior.log_prob, Z))
        assert torch.autograd.grad(isa_prior((3, 2), p1=p1).log_prob(Z).sum(), p1)[0].isfinite().all()


# ---- precision


@pytest.mark.parametrize("learned", [False, True])
def test_autocast_leaves_the_density_in_single_precision(learned):
    p1 = torch.tensor([2.4, 0.9], requires_grad=learned)
    prior, z, half = isa_prior((3, 2), p1=p1), Z.float(), Z.bfloat16().requires_grad_()
    plain = prior.log_prob(z)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prior.log_prob(z), plain)
        result = prior.log_prob(half)
    assert torch.equal(result, prior.log_prob(half.detach().float()))
    result.sum().backward()
    assert half.grad.dtype == torch.bfloat16 and half.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_default_and_parameter_dtypes(dtype):
    torch.set_default_dtype(dtype)
    try:
        torch.manual_seed(0)
        for prior in (isa_prior((2, 2), scale="unit"), LpNested(Node(torch.tensor(1.5, dtype=dtype), 4))):
            found = torch.promote_types(dtype, torch.float32)
            assert prior.sample((3,)).dtype == prior.variance.dtype == found
            assert prior.log_prob(prior.sample((3,)).to(dtype)).dtype == found
        assert LearnableISAPrior((2, 2))().rsample((3,)).isfinite().all()
    finally:
        torch.set_default_dtype(torch.float32)
    torch.testing.assert_close(prior.log_prob(torch.ones(4)), LpNested(Node(1.5, 4)).log_prob(torch.ones(4)))


def test_default_device():
    """The meta device, which has no values, stands for an accelerator."""
    with torch.device("meta"):
        for tree in (Node(2.1, [Node(2.2, 2)] * 2), Node(1.5, [2, Node(3.0, 3)])):
            prior = LpNested(tree, 0.7, validate_args=False)
            results = prior.sample((3,)), prior.mean, prior.variance, prior.entropy(), prior.scale, prior.exponents
            assert {x.device.type for x in (*results, prior.log_prob(prior.rsample((3,))))} == {"meta"}
            assert prior.log_prob(torch.ones(prior.event_shape, device="cpu")).isfinite()


# ---- parameters that change, and copies


@pytest.mark.parametrize("scale", [0.7, "unit"])
def test_prior_follows_its_tensors(scale):
    p0, p1 = torch.nn.Parameter(torch.tensor(2.0)), torch.tensor([1.5, 1.5])
    prior, z = isa_prior((2, 2), p0=p0, p1=p1, scale=scale), torch.ones(3, 4)
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
    other = copy.deepcopy(prior)
    with torch.no_grad():
        p0.add_(1.0)
    torch.testing.assert_close(other.log_prob(z), expected.log_prob(z))
    assert not torch.allclose(prior.log_prob(z), expected.log_prob(z))


def test_copies_and_pickles(lp_nested):
    z = torch.ones(*lp_nested.batch_shape, *lp_nested.event_shape)
    for other in (copy.copy(lp_nested), copy.deepcopy(lp_nested), pickle.loads(pickle.dumps(lp_nested))):  # our own
        assert torch.equal(other.log_prob(z), lp_nested.log_prob(z)) and str(other.tree) == str(lp_nested.tree)
        assert (other.batch_shape, other.event_shape) == (lp_nested.batch_shape, lp_nested.event_shape)


# ---- KL divergences


def normal(n: int, loc=0.0, scale=1.0) -> Independent:
    return Independent(Normal(wide(loc).expand(n), wide(scale).expand(n)), 1)


def by_samples(p, q, count: int = 100_000) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    z = p.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape)).sample((count,)).double()
    difference = p.log_prob(z) - q.log_prob(z)
    return difference.mean(0), difference.std(0) / math.sqrt(count)


S = wide(0.8)
CLOSED = {
    "other scale": (isa_prior((2, 3), scale=S), isa_prior((2, 3), scale=2 * S)),
    "other root": (isa_prior((2, 3), 1.5, [2.4, 0.9], S), isa_prior((2, 3), 2.6, [2.4, 0.9])),
    "leaves only": (LpNested(Node(1.5, [1, Node(2.4, 2)]), S), LpNested(Node(1.2, 3))),
    "a subtree from deeper down": (
        LpNested(Node(1.5, [Node(2.4, [Node(0.9, 2), 1]), 1]), S),
        LpNested(Node(1.1, [Node(0.9, 2), 2])),
    ),
    "a normal": (isa_prior((2, 3), 1.5, [2.4, 0.9], S), normal(5, 0.3, 0.7)),
    "a batch": (
        LpNested(Node(wide([1.0, 2.0, 3.0]), [1, Node(2.4, 2)]), S),
        LpNested(Node(wide([1.5, 1.5, 0.7]), [1, Node(2.4, 2)])),
    ),
    "one against a batch": (LpNested(Node(1.3, 2), S), LpNested(Node(wide([1.0, 2.0, 3.0]), 2))),
}
ESTIMATED = {
    "another tree": (isa_prior((2, 3), scale=S), isa_prior((3, 2), p1=[1.2, 2.0], scale=S)),
    "other exponents within": (isa_prior((2, 2), p1=1.2, scale=S), isa_prior((2, 2), p1=3.0, scale=S)),
    "another radius": (LpNested(Node(1.5, 3), radial=LogNormal(wide(0.2), wide(0.4))), LpNested(Node(1.5, 3))),
    "from a normal": (normal(4, 0.3, 0.8), isa_prior((2, 2))),
    "from a full normal": (
        MultivariateNormal(torch.zeros(2).double(), wide([[1.0, 0.5], [0.5, 1.0]])),
        LpNested(Node(2.0, 2), 2.0),
    ),
    "one against a batch": (LpNested(Node(1.3, 2), S), LpNested(Node(wide([1.0, 2.0]), [Node(3.0, 2)]))),
    "to Laplace": (isa_prior((2, 2), scale=S), Independent(Laplace(wide(0.0).expand(4), 0.5), 1)),
}


@pytest.mark.parametrize(
    ("p", "q", "closed"),
    [(*pair, True) for pair in CLOSED.values()] + [(*pair, False) for pair in ESTIMATED.values()],
    ids=[*CLOSED, *ESTIMATED],
)
def test_kl_divergence_against_samples(p, q, closed):
    mean, error = by_samples(p, q)
    torch.manual_seed(2)
    divergence = kl_divergence(p, q)
    assert torch.equal(divergence, kl_divergence(p, q)) == closed and divergence.shape == mean.shape
    spread = error if closed else error * math.sqrt(1 + 10)  # 10,000 samples against 100,000
    assert ((divergence - mean).abs() < 4.5 * spread).all() and (divergence > 0).all()


@pytest.mark.parametrize(("a", "b"), [(1.0, 2.0), (0.3, 0.1)])
def test_kl_divergence_of_normals(a, b):
    tree = Node(2.0, [2, Node(2.0, 2)])
    ours, shifted = LpNested(tree, wide(2 * a**2)), normal(4, 0.2, b)
    torch.testing.assert_close(kl_divergence(ours, shifted), kl_divergence(normal(4, 0.0, a), shifted))
    expected = kl_divergence(normal(4, 0.0, a), normal(4, 0.0, b))
    torch.testing.assert_close(kl_divergence(ours, LpNested(tree, wide(2 * b**2))), expected)


def test_kl_divergence_from_itself_is_zero(lp_nested):
    divergence = kl_divergence(lp_nested, lp_nested).double()
    torch.testing.assert_close(divergence, torch.zeros_like(divergence), atol=2e-5, rtol=0)


def test_kl_divergences_have_gradients():
    def closed(p, q, s):
        return kl_divergence(LpNested(Node(p, [1, Node(2.4, 2)]), s), LpNested(Node(q, [1, Node(2.4, 2)])))

    assert torch.autograd.gradcheck(closed, (wide(1.4, True), wide(2.2, True), wide(0.7, True)))
    scale = wide(0.5, True)
    torch.manual_seed(0)
    q = Independent(Normal(torch.zeros(3).double(), scale), 1)
    (slope,) = torch.autograd.grad(kl_monte_carlo(q, LpNested(Node(2.0, 3), 2.0), 40_000), scale)
    assert slope.item() == pytest.approx(3 * (0.5 - 1 / 0.5), rel=0.02)


def test_number_of_samples_of_a_divergence():
    p, q = isa_prior((2, 2)), isa_prior((2, 2), p1=1.0)
    torch.manual_seed(0)
    few, many = (torch.stack([kl_monte_carlo(p, q, count) for _ in range(200)]).std() for count in (10, 1000))
    assert 6 < few / many < 16  # the root of 100 is 10
    posterior = Independent(Normal(torch.zeros(64, 20), 0.5), 1)
    divergence = kl_divergence(posterior, isa_prior())  # 10,000 samples in total
    mean, error = by_samples(Independent(Normal(torch.zeros(20), 0.5), 1), isa_prior(), 20_000)
    assert divergence.shape == (64,) and abs(divergence.mean() - mean) < 4.5 * error * math.sqrt(1 + 2)
    assert kl_divergence(posterior.expand((20_000, 64)), isa_prior()).shape == (20_000, 64)


@pytest.mark.parametrize("q", [isa_prior((2, 3)), normal(5)])
def test_kl_divergence_needs_one_space(q):
    with pytest.raises(ValueError, match=r"^p has event shape .* and q has .*; they must agree$"):
        kl_divergence(isa_prior((2, 2)), q)
