"""Trees and their text form, maximum-likelihood fits, and learned exponents."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from conftest import wide
from hypothesis import given, settings
from hypothesis import strategies as st

from isa import LearnableISAPrior, LpNested, Node, isa_prior

exponents = st.floats(min_value=1e-300, max_value=1e300, allow_nan=False)
trees = st.recursive(
    st.builds(Node, exponents, st.integers(1, 5)),
    lambda below: st.builds(Node, exponents, st.lists(st.one_of(st.integers(1, 4), below), min_size=1, max_size=4)),
    max_leaves=12,
)


def test_tree_of_eq_6():
    tree = Node(2.0, [1, Node(3.0, [2])])
    assert (tree.p, tree.n_leaves, tree.exponents, tree.structure) == (2.0, 3, (2.0, 3.0), (1, (2,)))
    assert [node.p for node in tree.nodes()] == [2.0, 3.0] and tree.subspaces == ((0,), (1, 2))
    assert str(tree) == "2[1, 3[2]]" and eval(repr(tree)) == tree


def test_equality():
    assert Node(2.0, [1, 1]) == Node(2.0, 2) == Node(2, (1, 1)) and Node(2.0, Node(1.0, 3)) == Node(2.0, [Node(1.0, 3)])
    tree, same = Node(2.1, [Node(2.2, 4)] * 2), Node(2.1, [Node(2.2, 4), Node(2.2, [1, np.int64(3)])])
    assert tree == same and len({tree, same}) == 1
    assert tree not in (Node(2.1, [Node(2.2, 4), Node(2.3, 4)]), Node(2.1, [Node(2.2, 8)]), Node(2.1, 8), str(tree))


@settings(max_examples=40, deadline=None)
@given(trees)
def test_any_tree(tree):
    assert [leaf for span in tree.subspaces for leaf in span] == list(range(tree.n_leaves))
    numbers = [float(i + 1) for i in range(len(tree.exponents))]
    assert [node.p for node in tree.with_exponents(numbers).nodes()] == numbers
    assert tree.with_exponents(tree.exponents) == copy.deepcopy(tree) == pickle.loads(pickle.dumps(tree)) == tree
    assert Node.parse(str(tree)) == Node.parse(str(tree).replace(" ", "")) == tree


@pytest.mark.parametrize(
    ("p", "children"),
    [(p, 2) for p in (0, -1.0, math.inf, math.nan, "x", None)] + [(2.0, c) for c in ([], 0, [2, -1], "2", 2.0, 10_001)],
)
def test_bad_nodes_are_refused(p, children):
    with pytest.raises((ValueError, TypeError), match=r"positive and finite|at least one|10,000 leaves|not |convert"):
        Node(p, children)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        (" 2.1 [ 5 * 2.2 [ 4 ] ] ", Node(2.1, [Node(2.2, 4)] * 5)),
        ("2\n[1,\t1.5[2]]", Node(2.0, [1, Node(1.5, 2)])),
        ("2[2*1, 2*3[1]]", Node(2.0, [2, Node(3.0, 1), Node(3.0, 1)])),
        (".5[1e-3[2]]", Node(0.5, Node(1e-3, 2))),
        ("2.E1[2[1[3]]]", Node(20.0, [Node(2.0, [Node(1.0, 3)])])),
    ],
)
def test_parse(text, tree):
    assert Node.parse(text) == tree


@pytest.mark.parametrize(
    "text",
    [
        *("", "2", "[2]", "4", "-2[1]", "nan[1]", "2*2[1]", "2[]", "2[1.5]", "2[__import__]", "2[1", "2[1 1]", "2[3*]"),
        *("2[1]]", "2[1] 3[1]", "0[1]", "1e400[1]", "2[0]", "2[10001]", "2[1000*2[1001]]", "2[99999999*1]"),
        *("2[" * 300 + "1" + "]" * 300, "2[" * 100_000, "2[" + "1000*2[" * 60 + "1" + "]" * 61),
    ],
    ids=lambda text: text[:12],
)
def test_bad_texts_are_refused(text):
    with pytest.raises(ValueError, match=r"is not a tree|at least one|positive and finite|at most 10,000"):
        Node.parse(text)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="0123456789.eE+-*[], \tx", max_size=40))
def test_parse_returns_a_tree_or_raises_a_value_error(text):
    try:
        tree = Node.parse(text)
    except ValueError:
        return
    assert Node.parse(str(tree)) == tree


TRUE = Node(1.6, [Node(2.6, 3), 1, Node(0.9, 2)])
START = TRUE.with_exponents([2.0] * 3)


def sample(tree: Node, scale: float = 0.7, count: int = 1000, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return LpNested(tree, wide(scale)).sample((count,))


def test_fit_recovers_exponents_with_calibrated_errors():
    def z_scores(seed: int) -> np.ndarray:
        fit = LpNested.fit(START, sample(TRUE, seed=seed))
        estimates = np.array([*fit.distribution.tree.exponents, float(fit.distribution.scale)])
        return (estimates - (*TRUE.exponents, 0.7)) / (*fit.exponent_errors, fit.scale_error)

    scores = np.array([z_scores(seed) for seed in range(24)])
    assert np.abs(scores).max() < 4.5 and (np.abs(scores.mean(0)) < 4.5 / np.sqrt(24)).all()
    # the sum of squares over 24 fits is chi-squared: its 1e-4 quantiles over 24 are 0.27 and 2.5
    assert ((scores**2).mean(0) > 0.27).all() and ((scores**2).mean(0) < 2.5).all()


@pytest.mark.parametrize("start", [START, START.with_exponents([0.7, 6.0, 3.0])], ids=str)
def test_fit_is_a_maximum(start):
    z = sample(TRUE)
    fit = LpNested.fit(start, z)
    assert fit.converged and fit.log_likelihood > LpNested(TRUE, 0.7).log_prob(z).sum()
    assert fit.log_likelihood == pytest.approx(fit.distribution.log_prob(z).sum().item(), rel=1e-9)
    p, s = wide(fit.distribution.tree.exponents, True), fit.distribution.scale.double().requires_grad_()
    loss = -LpNested(START.with_exponents(p.unbind()), s).log_prob(z).mean()
    assert all(slope.abs().max() < 1e-4 for slope in torch.autograd.grad(loss, (p, s)))


def test_fit_keeps_an_exponent_without_influence():
    fit = LpNested.fit(Node(2.0, [Node(900.0, [Node(2.0, 2)])]), sample(Node(1.6, [Node(2.6, [Node(1.2, 2)])])))
    assert fit.distribution.tree.exponents[1] == 900.0 and fit.exponent_errors[1] == 0.0
    assert abs(fit.distribution.tree.exponents[0] - 1.6) < 4.5 * fit.exponent_errors[0]


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_units_change_the_scale_only(factor):
    z = sample(TRUE, count=500)
    z[0] = 0.0
    fit, other = LpNested.fit(START, z), LpNested.fit(START, (z * factor).numpy())
    np.testing.assert_allclose(other.distribution.tree.exponents, fit.distribution.tree.exponents, rtol=1e-4)
    np.testing.assert_allclose(other.exponent_errors, fit.exponent_errors, rtol=1e-4)
    assert other.log_likelihood == pytest.approx(fit.log_likelihood - 500 * 6 * np.log(factor), rel=1e-7)


def test_an_exponent_on_a_bound_has_no_error():
    torch.manual_seed(0)
    fit = LpNested.fit(Node(2.0, 4), torch.rand(300, 4) * 60 - 30)  # the likelihood increases with p without end
    assert np.isnan(fit.exponent_errors[0]) and fit.scale_error > 0 and fit.converged


@pytest.mark.parametrize("p", [0.2, 2.0, 50.0])
def test_learnable_prior_starts_at_its_exponents(p):
    module, z = LearnableISAPrior((2, 3), p0=p, p1=[p, 2 * p], scale=0.7), torch.rand(4, 5)
    torch.testing.assert_close(module.p1, torch.tensor([p, 2 * p]), rtol=1e-5, atol=0)
    torch.testing.assert_close(module().log_prob(z), isa_prior((2, 3), p, [p, 2 * p], 0.7).log_prob(z))


def test_learning_reaches_the_maximum_likelihood():
    z = sample(Node(2.1, [Node(1.3, 4), Node(3.5, 4)]), 1.0).float()
    module = LearnableISAPrior((4, 4))
    optimiser = torch.optim.LBFGS(module.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = -module().log_prob(z).mean()
        value.backward()
        return value

    optimiser.step(loss)
    errors = LpNested.fit(isa_prior((4, 4)).tree, z).exponent_errors[1:]
    assert ((module.p1 - torch.tensor([1.3, 3.5])).abs() < 4.5 * torch.tensor(errors)).all()


def test_learnable_prior_is_a_module():
    model = torch.nn.ModuleDict({"encoder": torch.nn.Linear(3, 5), "prior": LearnableISAPrior((2, 3), p1=[1.2, 3.4])})
    other = LearnableISAPrior((2, 3))
    other.load_state_dict(copy.deepcopy(model["prior"]).state_dict())
    assert torch.equal(other.p1, model["prior"].p1)
    model.double()["prior"]().log_prob(model["encoder"](torch.ones(4, 3).double())).sum().backward()
    assert all(p.grad is not None and p.dtype == torch.float64 for p in model.parameters())
