"""Trees: validation, structure, text form."""

from __future__ import annotations

import copy
import math
import pickle
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isa import LpNested, Node

exponents = st.floats(min_value=1e-300, max_value=1e300, allow_nan=False)
trees = st.recursive(
    st.builds(Node, exponents, st.integers(1, 5)),
    lambda below: st.builds(Node, exponents, st.lists(st.one_of(st.integers(1, 4), below), min_size=1, max_size=4)),
    max_leaves=12,
)


def leaves_by_hand(node: Node) -> int:
    return sum(child if isinstance(child, int) else leaves_by_hand(child) for child in node.children)


# ---- structure


def test_the_tree_of_eq_6():
    tree = Node(2.0, [1, Node(3.0, [2])])
    assert (tree.p, tree.n_leaves, len(tree.children)) == (2.0, 3, 2)
    assert [node.p for node in tree.nodes()] == [2.0, 3.0] == list(tree.exponents)
    assert tree.subspaces == ((0,), (1, 2))
    assert str(tree) == "2[1, 3[2]]"
    assert repr(tree) == "Node(2.0, [1, Node(3.0, [2])])"
    assert eval(repr(tree), {"Node": Node}) == tree


def test_runs_of_leaves_are_one_and_single_children_need_no_list():
    assert Node(2.0, [1, 1]) == Node(2.0, 2) == Node(2.0, [2]) == Node(2, (1, 1))
    assert Node(2.0, Node(1.0, 3)) == Node(2.0, [Node(1.0, 3)])
    assert Node(2.0, [1, Node(1.0, 1), 1]).children == (1, Node(1.0, 1), 1)
    assert Node(np.float32(1.5), [np.int64(3)]).children == (3,)


def test_nodes_come_in_preorder_and_exponents_go_back_in_that_order():
    tree = Node(1.0, [Node(2.0, [Node(3.0, 2), 1]), 1, Node(4.0, 2)])
    assert tree.exponents == (1.0, 2.0, 3.0, 4.0)
    other = tree.with_exponents([5.0, 6.0, 7.0, 8.0])
    assert other.exponents == (5.0, 6.0, 7.0, 8.0)
    assert str(other) == "5[6[7[2], 1], 1, 8[2]]"
    assert other.structure == tree.structure and other != tree
    assert tree.subspaces == ((0, 1, 2), (3,), (4, 5))
    with pytest.raises(ValueError, match=r"exponents has 3 entries; this tree has 4 inner nodes"):
        tree.with_exponents([1.0, 2.0, 3.0])


@settings(max_examples=60, deadline=None)
@given(trees)
def test_counts_and_subspaces_agree_on_any_tree(tree):
    assert tree.n_leaves == leaves_by_hand(tree)
    assert [leaf for span in tree.subspaces for leaf in span] == list(range(tree.n_leaves))
    assert len(tree.exponents) == len(list(tree.nodes()))
    assert tree.with_exponents(tree.exponents) == tree


def test_equality_and_hash_are_those_of_structure_and_exponents():
    tree = Node(2.1, [Node(2.2, 4), Node(2.2, 4)])
    same = Node(2.1, [Node(2.2, 4), Node(2.2, [1, 3])])
    assert tree == same and hash(tree) == hash(same) and len({tree, same}) == 1
    assert tree != Node(2.1, [Node(2.2, 4), Node(2.3, 4)])
    assert tree != Node(2.1, [Node(2.2, 8)])
    assert tree != Node(2.1, 8)
    assert tree != "2.1[2*2.2[4]]"
    assert Node(2.0, [1, Node(2.0, 1)]) != Node(2.0, [Node(2.0, 1), 1])


def test_tensor_exponents_compare_by_identity():
    p = torch.tensor(2.0)
    assert Node(p, 2) == Node(p, 2) and hash(Node(p, 2)) == hash(Node(p, 2))
    assert Node(p, 2) != Node(torch.tensor(2.0), 2)
    assert Node(p, 2) != Node(2.0, 2)
    assert str(Node(p, 2)) == "2[2]"
    assert str(Node(torch.ones(3), 2)) == "<3 exponents>[2]"
    assert str(Node(torch.tensor(math.nan), 2)) == "nan[2]"


def test_a_node_cannot_be_changed():
    tree = Node(2.0, 3)
    with pytest.raises(AttributeError):
        tree.p = 3.0
    with pytest.raises(AttributeError):
        del tree.children
    with pytest.raises(AttributeError):
        tree.other = 1


@settings(max_examples=30, deadline=None)
@given(trees)
def test_copies_and_pickles_are_equal(tree):
    assert copy.deepcopy(tree) == tree == copy.copy(tree)
    assert pickle.loads(pickle.dumps(tree)) == tree  # of our own making


# ---- validation


@pytest.mark.parametrize(
    ("p", "children", "error", "message"),
    [
        *[(p, 2, ValueError, "^p = .*; an exponent must be positive and finite")
          for p in (0, -1.0, math.inf, math.nan, 1e301, 1e-301)],
        *[(p, 2, TypeError, "^p = .*; an exponent must be a number or a tensor$") for p in ("2", None, True, 2j)],
        (torch.tensor(2), 2, TypeError, "^p has dtype torch.int64; a tensor exponent must be floating-point$"),
        *[(2.0, children, ValueError, "^children must hold at least one leaf") for children in ([], [0], 0, [2, -1])],
        *[(2.0, children, TypeError, "^children = .*; they must be Nodes and ints")
          for children in ("2", None, 2.0, [None], [True], [[1]], {1: 2})],
        (2.0, 10_001, ValueError, "^a tree has at most 10,000 leaves$"),
    ],
)  # fmt: skip
def test_what_is_no_node_is_refused(p, children, error, message):
    with pytest.raises(error, match=message):
        Node(p, children)


# ---- surface area, Eq. 8


@pytest.mark.parametrize("n", [1, 2, 3, 7])
@pytest.mark.parametrize("radius", [1.0, 2.5])
def test_the_surface_at_p_2_is_the_sphere_s_however_it_is_nested(n, radius):
    sphere = math.log(2) + n / 2 * math.log(math.pi) - math.lgamma(n / 2) + (n - 1) * math.log(radius)
    assert math.isclose(Node(2.0, n).log_surface(radius).item(), sphere, abs_tol=1e-12)
    nested = Node(2.0, [Node(2.0, n), Node(2.0, [Node(2.0, 1)])])
    assert math.isclose(nested.log_surface().item(), Node(2.0, n + 1).log_surface().item(), abs_tol=1e-12)


def test_the_surface_of_eq_6_is_the_derivative_of_its_ball_s_volume():
    # S_f(1) = n V with V the volume of the ball f <= 1, here by integrating over a fine grid of the positive octant
    tree = Node(1.3, [1, Node(2.6, [2])])
    centres = (torch.arange(100, dtype=torch.float64) + 0.5) / 100
    points = torch.cartesian_prod(centres, centres, centres)
    volume = 8 * (tree.norm(points) <= 1).double().mean().item()
    assert math.isclose(tree.log_surface().exp().item(), 3 * volume, rel_tol=2e-3)


# ---- text form


@settings(max_examples=150, deadline=None)
@given(trees)
def test_the_text_form_reads_back_as_the_same_tree(tree):
    text = str(tree)
    assert Node.parse(text) == tree
    assert str(Node.parse(text)) == text
    assert Node.parse(text.replace(" ", "")) == tree


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("2[3]", Node(2.0, 3)),
        (" 2.1 [ 5 * 2.2 [ 4 ] ] ", Node(2.1, [Node(2.2, 4)] * 5)),
        ("2[1,1.5[2]]", Node(2.0, [1, Node(1.5, 2)])),
        ("2[3*1]", Node(2.0, 3)),
        ("2[2*1, 2*3[1]]", Node(2.0, [2, Node(3.0, 1), Node(3.0, 1)])),
        (".5[1]", Node(0.5, 1)),
        ("2.[1]", Node(2.0, 1)),
        ("1e-3[2]", Node(1e-3, 2)),
        ("2E1[2[1[3]]]", Node(20.0, [Node(2.0, [Node(1.0, 3)])])),
        ("2\n[\t3]", Node(2.0, 3)),
    ],
)
def test_what_is_read(text, tree):
    assert Node.parse(text) == tree


@pytest.mark.parametrize(
    ("text", "expected", "position"),
    [
        ("", "an exponent", 0),
        ("2", "'[' after an exponent", 1),
        ("[2]", "an exponent", 0),
        ("2[]", "a number of leaves, or a node", 2),
        ("2[1", "',' or ']'", 3),
        ("2[1 1]", "',' or ']'", 4),
        ("2[1]]", "the end", 4),
        ("2[1] 3[1]", "the end", 5),
        ("2[1,]", "a number of leaves, or a node", 4),
        ("-2[1]", "an exponent", 0),
        ("nan[1]", "an exponent", 0),
        ("٢[1]", "an exponent", 0),
        ("2[1.5]", "'[' after an exponent", 5),
        ("2[1.5*3[1]]", "'[' after an exponent", 5),
        ("2[3*]", "a number of leaves, or a node", 4),
        ("2[" * 70 + "1" + "]" * 70, "at most 64 levels", 128),
        ("2[__import__('os')]", "a number of leaves, or a node", 2),
    ],
)
def test_what_is_refused_and_where(text, expected, position):
    with pytest.raises(ValueError, match=re.escape(f"expected {expected} at position {position}") + "$"):
        Node.parse(text)


@pytest.mark.parametrize("text", ["0[1]", "1e400[1]", "1e-400[1]", "2[0]", "2[0*3[1]]", "2[10001]", "2[1000*2[1001]]"])
def test_numbers_outside_their_range_are_refused(text):
    with pytest.raises(ValueError, match=r"must be|at most 10,000 leaves|expected"):
        Node.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "2[" * 100_000,
        "9" * 100_000 + "[2]",
        "99999*" * 50_000,
        "2[" + "1000*2[" * 60 + "1" + "]" * 61,
        "2[" + "1," * 200_000,
    ],
    ids=["open brackets", "digits", "stars", "product", "open list"],
)
def test_hostile_texts_end_in_a_short_error(text):
    with pytest.raises(ValueError) as caught:
        Node.parse(text)
    assert len(str(caught.value)) < 250


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="0123456789.eE+-*[], \tx", max_size=40))
def test_any_text_gives_a_tree_or_a_value_error(text):
    try:
        tree = Node.parse(text)
    except ValueError as error:
        assert len(str(error)) < 250
    else:
        assert Node.parse(str(tree)) == tree


def test_the_deepest_text_that_is_read_also_evaluates():
    text = "2[" * 64 + "1" + "]" * 64
    tree = Node.parse(text)
    assert str(tree) == text
    assert LpNested(tree).log_prob(torch.ones(1)).isfinite()
