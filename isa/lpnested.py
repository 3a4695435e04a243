r"""Lp-nested symmetric distributions and the ISA prior (Sec. 3, Eq. 5-11, Algorithm 1 of the paper).

An Lp-nested function cascades :math:`\ell_p` norms along a tree (:class:`Node`). A distribution whose density depends
on z through such a function alone is Lp-nested symmetric (:class:`LpNested`, Eq. 7). With the radial density of Eq. 11
the subtrees below the root become independent subspaces, which is the prior of ISA-VAE (:func:`isa_prior`).

Everything is evaluated in logarithms of the nodes' values. With :math:`p_0` the root's exponent, s the scale and n the
number of leaves,

.. math::

    \log p(z) = -\frac{f(z)^{p_0}}{s} - \log Z,

    \log Z = \log S_f(1) + \log\Gamma\left(\tfrac{n}{p_0}\right) + \tfrac{n}{p_0}\log s - \log p_0 ,

which is Eq. 7 with Eq. 11 after the powers of f cancel: nothing is left that is undefined at z = 0.

References
----------
Sinz and Bethge (2010), "Lp-nested symmetric distributions", Journal of Machine Learning Research 11, 3409-3451: the
family, its sampler, its factorisation.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, ClassVar

import numpy as np
import scipy.optimize
import scipy.special
import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Gamma, Independent, Normal, Transform, constraints, register_kl

__all__ = [
    "Fit",
    "LearnableISAPrior",
    "LpNested",
    "NestedRadialFactorization",
    "Node",
    "StackedPrior",
    "isa_prior",
    "kl_monte_carlo",
]


_MOST_LEAVES = 1_000_000  # far beyond any use


# ----------------------------------------------------------------------------------------------------------------------
# trees


class Node:
    """An inner node of an Lp-nested function: an exponent, and children that are leaves or nodes.

    The value of a node is the p-norm of its children's values, the value of a leaf is ``|z_j|``; leaves take the
    coordinates of z in order.

    Parameters
    ----------
    p : float or torch.Tensor
        The exponent, positive and finite, from 1e-300 to 1e300. A tensor may require a gradient, and may have a batch
        shape.
    children : int or sequence of (int or Node)
        An int k stands for k leaves, of which a tree has at most 1,000,000. Eq. 6 of the paper is
        ``Node(p0, [1, Node(p1, [2])])``.

    Raises
    ------
    TypeError, ValueError
        If the exponent is not a positive finite number, or if there is no child or a child is neither a positive int
        nor a Node.

    Notes
    -----
    Immutable. Nodes compare and hash by structure and exponents; exponents that are tensors compare by identity, as
    tensors hash.

    Examples
    --------
    >>> tree = Node(2.1, [Node(2.2, 4), Node(2.2, 4)])
    >>> print(tree, tree.n_leaves, tree == Node.parse("2.1[2*2.2[4]]"))
    2.1[2*2.2[4]] 8 True
    """

    __slots__ = ("children", "n_leaves", "p", "structure")

    p: float | Tensor
    children: tuple[Node | int, ...]
    n_leaves: int
    structure: tuple

    def __init__(self, p: float | Tensor, children: int | Sequence[Node | int]) -> None:
        if isinstance(p, Tensor):
            if not p.is_floating_point():
                raise TypeError(f"p has dtype {p.dtype}; a tensor exponent must be floating-point")
        elif isinstance(p, Real) and not isinstance(p, bool):
            p = _float(p)
            if not (p > 0 and math.isfinite(p)):
                raise ValueError(f"p = {p}; an exponent must be positive and finite")
            if not 1e-300 <= p <= 1e300:
                raise ValueError(
                    f"p = {p}; an exponent must be from 1e-300 to 1e300, or Eq. 8 leaves the numbers there are"
                )
        else:
            raise TypeError(f"p = {p!r}; an exponent must be a number or a torch.Tensor")
        if isinstance(children, (Integral, Node)):
            children = [children]
        if isinstance(children, (str, bytes)) or not isinstance(children, Sequence):
            raise TypeError(
                f"children = {children!r}; they must be an int (that many leaves) or a sequence of ints and Nodes"
            )
        merged: list[Node | int] = []
        for child in children:
            if isinstance(child, Node):
                merged.append(child)
            elif isinstance(child, Integral) and not isinstance(child, bool):
                if child < 1:
                    raise ValueError(
                        f"children = {children!r}; {child} leaves are not possible, an int must be at least 1"
                    )
                if merged and isinstance(merged[-1], int):  # [1, 1] and [2] are the same two leaves
                    merged[-1] += int(child)
                else:
                    merged.append(int(child))
            else:
                raise TypeError(f"children = {children!r}; {child!r} is neither an int nor a Node")
        if not merged:
            raise ValueError(f"children = {children!r}; a node needs at least one leaf below it")
        set_ = object.__setattr__
        set_(self, "p", p)
        set_(self, "children", tuple(merged))
        set_(self, "n_leaves", sum(child if isinstance(child, int) else child.n_leaves for child in merged))
        if self.n_leaves > _MOST_LEAVES:
            raise ValueError(f"children = {str(children)[:60]}; a tree has at most {_MOST_LEAVES:,} leaves")
        set_(self, "structure", tuple(child if isinstance(child, int) else child.structure for child in merged))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Node is immutable: {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Node is immutable: {name} cannot be deleted")

    def __reduce__(self):
        return Node, (self.p, list(self.children))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Node):
            return NotImplemented
        return self.structure == other.structure and self._equals(other)

    def _equals(self, other: Node) -> bool:
        """Whether all exponents are equal, in a tree of the same structure."""
        of_tensors = isinstance(self.p, Tensor) or isinstance(other.p, Tensor)
        if not (self.p is other.p if of_tensors else self.p == other.p):
            return False
        last = None
        for pair in zip(self.children, other.children, strict=True):
            # a child that is counted, as in 5*2.2[4], is one object many times
            if isinstance(pair[0], Node) and not (last and pair[0] is last[0] and pair[1] is last[1]):
                if not pair[0]._equals(pair[1]):
                    return False
                last = pair
        return True

    def __hash__(self) -> int:
        return hash((self.structure, self.exponents))

    def __repr__(self) -> str:
        p = self.p if isinstance(self.p, float) else _exponent_text(self.p)
        return f"Node({p}, [{', '.join(map(repr, self.children))}])"

    def __str__(self) -> str:
        """The compact text form that :meth:`parse` reads; equal neighbours are counted, as in ``2.1[5*2.2[4]]``."""
        items: list[tuple[int, str]] = []
        last, text = None, ""
        for child in self.children:
            if child is not last:  # a child that is counted is one object many times
                last, text = child, str(child)
            if isinstance(child, Node) and items and items[-1][1] == text:
                items[-1] = (items[-1][0] + 1, text)
            else:
                items.append((1, text))
        inside = ", ".join(text if count == 1 else f"{count}*{text}" for count, text in items)
        return f"{_exponent_text(self.p)}[{inside}]"

    @classmethod
    def parse(cls, text: str) -> Node:
        """Read the compact text form, ``tree = number "[" item {"," item} "]"`` with ``item = [int "*"] (int | tree)``.

        Raises
        ------
        ValueError
            Naming the position and what was expected there.

        Examples
        --------
        >>> Node.parse("2[1, 1.5[2]]")
        Node(2.0, [1, Node(1.5, [2])])
        """
        return _Parser(text).tree()

    def nodes(self) -> Iterator[Node]:
        """All inner nodes, the root first, each before its children."""
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.nodes()

    @property
    def exponents(self) -> tuple[float | Tensor, ...]:
        """The exponents in the order of :meth:`nodes`."""
        return tuple(node.p for node in self.nodes())

    def with_exponents(self, exponents: Sequence[float | Tensor]) -> Node:
        """The same tree with other exponents, given in the order of :meth:`nodes`."""
        count = len(self.exponents)
        if len(exponents) != count:
            raise ValueError(f"exponents has {len(exponents)} entries; this tree has {count} inner nodes")
        values = iter(exponents)

        def rebuild(node: Node) -> Node:
            return Node(next(values), [child if isinstance(child, int) else rebuild(child) for child in node.children])

        return rebuild(self)

    @property
    def subspaces(self) -> tuple[tuple[int, ...], ...]:
        """The leaves below each child of the root (Eq. 10), each leaf that hangs from the root itself being a subspace
        of its own.
        """
        spans, start = [], 0
        for child in self.branches:
            stop = start + (1 if child == 1 else child.n_leaves)
            spans.append(tuple(range(start, stop)))
            start = stop
        return tuple(spans)

    @property
    def branches(self) -> list[Node | int]:
        """The children one by one: Nodes, and a 1 for each leaf that hangs from this node itself."""
        return [item for child in self.children for item in ([child] if isinstance(child, Node) else [1] * child)]

    def log_surface(self, radius: float = 1.0) -> Tensor:
        r"""Logarithm of the surface area :math:`S_f(R)` of the Lp-nested sphere, Eq. 8.

        Returns
        -------
        Tensor
            float64, of the exponents' batch shape; differentiable with respect to them.

        Examples
        --------
        The circle and the sphere in three dimensions:

        >>> [round(Node(2.0, n).log_surface().exp().item() / math.pi, 6) for n in (2, 3)]
        [2.0, 4.0]
        """
        if not isinstance(radius, Real) or not 0 < radius < math.inf:
            raise ValueError(f"radius = {radius!r}; it must be positive and finite")
        p = _stack([self])[0].double()
        return _log_surface(p, self.structure) + (self.n_leaves - 1) * math.log(radius)

    def norm(self, z: Tensor) -> Tensor:
        """The Lp-nested function f(z) (Eq. 6, 9); z has shape ``(..., n)``, the result ``(...)``."""
        return LpNested(self, validate_args=False).norm(z)


def _float(value: Real) -> float:
    """The number as a float, infinite where it is too large for one."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _exponent_text(p: float | Tensor) -> str:
    value = p if isinstance(p, float) else p.detach().item() if p.numel() == 1 else None
    if value is None:
        return f"<{'x'.join(map(str, p.shape))} exponents>"
    return repr(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)


class _Parser:
    """Recursive descent over the compact text form of a tree."""

    DEPTH, LEAVES = 64, _MOST_LEAVES  # they keep a hostile text from exhausting the stack or the memory
    NUMBER = re.compile(r"\s*(\d+\.?\d*(?:[eE][+-]?\d+)?|\.\d+(?:[eE][+-]?\d+)?)", re.ASCII)

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text = {text!r}; a tree is parsed from a str")
        self.text, self.at = text, 0

    def fail(self, expected: str) -> ValueError:
        shown = self.text if len(self.text) <= 80 else self.text[:77] + "..."
        return ValueError(f"tree {shown!r}: expected {expected} at position {self.at}")

    def peek(self) -> str:
        while self.text[self.at : self.at + 1].isspace():
            self.at += 1
        return self.text[self.at : self.at + 1]

    def take(self, mark: str, expected: str) -> None:
        if self.peek() != mark:
            raise self.fail(expected)
        self.at += 1

    def number(self, expected: str) -> str:
        match = self.NUMBER.match(self.text, self.at)
        if match is None:
            raise self.fail(expected)
        self.at = match.end()
        return match[1]

    def integer(self, text: str, start: int) -> int:
        if not text.isdigit() or not 1 <= int(text[:9]) <= self.LEAVES or len(text) > 9:
            self.at = start
            raise self.fail(f"a whole number from 1 to {self.LEAVES}")
        return int(text)

    def tree(self) -> Node:
        root = self.node(self.number("an exponent"), 0)
        if self.peek():
            raise self.fail("the end")
        return root

    def node(self, exponent: str, depth: int) -> Node:
        if depth > self.DEPTH:
            raise self.fail(f"at most {self.DEPTH} levels")
        if not 0 < float(exponent) < math.inf:
            shown = exponent if len(exponent) <= 20 else exponent[:17] + "..."
            raise self.fail(f"a positive finite exponent before, not {shown},")
        self.take("[", "'[' after an exponent")
        children: list[Node | int] = []
        leaves = 0
        while True:
            more = self.item(depth)
            children += more
            leaves += sum(child if isinstance(child, int) else child.n_leaves for child in more)
            if leaves > self.LEAVES:
                raise self.fail(f"at most {self.LEAVES} leaves")
            if self.peek() != ",":
                break
            self.at += 1
        self.take("]", "',' or ']'")
        return Node(float(exponent), children)

    def item(self, depth: int) -> list[Node | int]:
        self.peek()
        start, count = self.at, 1
        text = self.number("a number of leaves, or a node")
        if self.peek() == "*":
            count = self.integer(text, start)
            self.at += 1
            self.peek()
            start = self.at
            text = self.number("a number of leaves, or a node, after '*'")
        if self.peek() == "[":
            child = self.node(text, depth + 1)
            if count * child.n_leaves > self.LEAVES:
                raise self.fail(f"at most {self.LEAVES} leaves")
            return [child] * count
        return [count * self.integer(text, start)]


# ---------------------------------------------------------------------------------------------------- evaluation along
# a tree


@dataclass(frozen=True)
class _Group:
    """Inner nodes of one height with equally many children: they are evaluated by one set of tensor operations.

    Values live in an imagined buffer that holds the n leaves first and then the nodes, group after group.
    """

    nodes: tuple[int, ...]  # their places in the order of Node.nodes()
    runs: tuple[tuple[tuple[int, int], ...], ...]  # for each node, the runs of the buffer that hold its children
    counts: tuple[tuple[int, ...], ...]  # for each node and child, the leaves below that child: n_{i,k}
    start: int  # where in the buffer the first of the nodes lies

    @property
    def width(self) -> int:
        return len(self.counts[0])

    @property
    def span(self) -> tuple[int, int] | None:
        """The one run that holds all children in order, or None."""
        flat = [run for runs in self.runs for run in runs]
        joined = all(a[1] == b[0] for a, b in pairwise(flat))
        return (flat[0][0], flat[-1][1]) if joined else None


class _Plan(tuple):
    """The groups of a tree, children before parents. A type of its own, so that PyTorch takes it for one argument."""

    __slots__ = ()


def _cached(function: Callable) -> Callable:
    """Remember the results of a pure function of hashable arguments, except while ``torch.compile`` traces it."""
    remembered = lru_cache(maxsize=256)(function)

    @wraps(function)
    def call(*args):
        return (function if torch.compiler.is_compiling() else remembered)(*args)

    return call


@_cached
def _plan(structure: tuple) -> _Plan:
    """The groups of a tree of this structure, children before parents; the root is alone in the last one."""
    records: list[dict] = []
    leaves = 0

    def visit(children: tuple) -> int:
        nonlocal leaves
        record = {"items": [], "counts": [], "height": 1}
        number = len(records)
        records.append(record)
        first = leaves
        for child in children:
            if isinstance(child, int):
                record["items"].append((leaves, leaves + child))
                record["counts"] += [1] * child
                leaves += child
            else:
                before = leaves
                below = visit(child)
                record["items"].append(below)
                record["counts"].append(leaves - before)
                record["height"] = max(record["height"], records[below]["height"] + 1)
        record["leaves"] = leaves - first
        return number

    visit(structure)
    position: dict[int, int] = {}
    at = leaves
    keys = sorted({(record["height"], len(record["counts"])) for record in records})
    groups = []
    for key in keys:
        members = [i for i, record in enumerate(records) if (record["height"], len(record["counts"])) == key]
        runs = tuple(
            tuple(
                item if isinstance(item, tuple) else (position[item], position[item] + 1)
                for item in records[i]["items"]
            )
            for i in members
        )
        groups.append(_Group(tuple(members), runs, tuple(tuple(records[i]["counts"]) for i in members), at))
        for i in members:
            position[i] = at
            at += 1
    return _Plan(groups)


class _Buffer:
    """Tensors ``(..., width)`` at places of the imagined buffer; a read that lies within one of them copies nothing."""

    def __init__(self) -> None:
        self.pieces: list[tuple[int, int, Tensor]] = []

    def put(self, start: int, values: Tensor) -> None:
        self.pieces.append((start, start + values.shape[-1], values))

    def get(self, start: int, stop: int) -> Tensor:
        parts = []
        for low, high, values in sorted(self.pieces, key=lambda piece: piece[0]):
            a, b = max(start, low), min(stop, high)
            if a < b:
                parts.append(values if (a, b) == (low, high) else values[..., a - low : b - low])
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def get_children(self, group: _Group) -> Tensor:  # (..., nodes, width)
        if group.span:
            return self.get(*group.span).unflatten(-1, (len(group.nodes), group.width))
        return torch.stack([torch.cat([self.get(*run) for run in runs], -1) for runs in group.runs], -2)

    def put_children(self, group: _Group, values: Tensor) -> None:
        if group.span:
            self.put(group.span[0], values.flatten(-2))
            return
        for node, runs in enumerate(group.runs):
            at = 0
            for start, stop in runs:
                self.put(start, values[..., node, at : at + stop - start])
                at += stop - start


def _of_group(p: Tensor, group: _Group) -> Tensor:
    """The exponents ``(..., nodes, 1)`` of a group, from those of all nodes ``(..., nodes of the tree)``."""
    first, count = group.nodes[0], len(group.nodes)
    if group.nodes == tuple(range(first, first + count)):
        return p[..., first : first + count, None]
    return torch.stack([p[..., node] for node in group.nodes], -1)[..., None]


def _log_values(children: Tensor, p: Tensor, group: _Group) -> Tensor:
    """Log values ``(..., nodes)`` of a group's nodes from those of their children ``(..., nodes, width)``."""
    if group.width == 1:
        return children[..., 0]
    exponents = _of_group(p, group)
    # exponents of the children's own shape: a multiplication that broadcasts the last dimension is not vectorised on
    # the CPU
    scaled = exponents.expand(*exponents.shape[:-1], group.width).contiguous() * children
    if torch.compiler.is_compiling() and group.width <= 8:
        # written out child by child, which the compiler fuses; its own reductions over so few entries are slow
        parts = scaled.unbind(-1)
        finite = torch.finfo(scaled.dtype)
        top = functools.reduce(torch.maximum, parts).clamp(finite.min, finite.max)
        total = functools.reduce(torch.add, [(part - top).exp() for part in parts])
        return (total.log() + top) / exponents[..., 0]
    return torch.logsumexp(scaled, -1) / exponents[..., 0]


def _ascend(log_leaves: Tensor, p: Tensor, plan: _Plan) -> tuple[Tensor, list[Tensor]]:
    """The log values of the leaves ``(..., n)`` and of each group's nodes ``(..., nodes)``, with the batch's shape."""
    log_leaves = log_leaves.expand(*torch.broadcast_shapes(log_leaves.shape[:-1], p.shape[:-1]), -1)
    buffer = _Buffer()
    buffer.put(0, log_leaves)
    values = []
    for group in plan:
        values.append(_log_values(buffer.get_children(group), p, group))
        buffer.put(group.start, values[-1])
    return log_leaves, values


def _descend(root: Tensor, steps: list[Tensor], plan: _Plan) -> _Buffer:
    """Sum ``steps`` (for each group ``(..., nodes, width)``, a term for each child) along all paths down from ``root``
    ``(...)``.
    """
    buffer = _Buffer()
    buffer.put(plan[-1].start, root[..., None])
    for group, step in zip(reversed(plan), reversed(steps), strict=True):
        parents = buffer.get(group.start, group.start + len(group.nodes))
        buffer.put_children(group, parents[..., None] + step)
    return buffer


def _again(z: Tensor, p: Tensor, plan: _Plan) -> tuple[Tensor, list[Tensor]]:
    """As :func:`_ascend`, for derivatives that are differentiated again: a zero coordinate has a finite constant for
    its logarithm, since the logarithm's own derivative at 0 is of no use. It stands for a number that is nothing even
    beside the smallest float.
    """
    zero = z == 0
    log_nothing = 3.5 * math.log(torch.finfo(z.dtype).tiny)
    return _ascend(z.abs().masked_fill(zero, 1.0).log().masked_fill(zero, log_nothing), p, plan)


def _derivatives(z, p, log_scale, plan, log_leaves, values, with_p):
    """Partial derivatives of log f (``log_scale`` None) or of f^p0 / s, all factors of one summed as logarithms first.

    Multiplied one after the other they would make inf * 0 of a finite derivative where f^p0 leaves the floating-point
    range. Minus infinity, the logarithm of a vanished value, is floored where differences are taken from it.

    Returns
    -------
    tuple of Tensor
        With respect to z ``(..., n)`` and to the exponents ``(..., nodes)``, the latter None unless ``with_p``.
    """
    floor = torch.finfo(z.dtype).min
    buffer = _Buffer()
    buffer.put(0, log_leaves)
    children, steps, shifts = [], [], []
    for group, own in zip(plan, values, strict=True):
        children.append(buffer.get_children(group))
        buffer.put(group.start, own)
        root_of_energy = log_scale is not None and group is plan[-1]
        shifts.append(children[-1] if root_of_energy else children[-1] - own.clamp(min=floor)[..., None])
        steps.append(_of_group(p, group).expand(*p.shape[:-1], len(group.nodes), group.width).contiguous() * shifts[-1])
    top = torch.zeros_like(values[-1][..., 0])
    if log_scale is not None:
        top = (p[..., 0].log() - log_scale).expand_as(top)
    log_weights = _descend(top, steps, plan)
    log_dz = log_weights.get(0, z.shape[-1]) - log_leaves.clamp(min=floor)
    if torch.is_grad_enabled():
        # sign(z) |z|^(p-1) is flat at 0; written as z |z|^(p-2) there, it has the slope of the limit: 1 for p = 2
        zero, ceiling = z == 0, 0.99 * math.log(torch.finfo(z.dtype).max)
        slope = (log_dz - log_leaves).clamp(max=ceiling).masked_fill(~zero, 0.0).exp()
        dz = torch.where(zero, z * slope, z.sign() * log_dz.masked_fill(zero, 0.0).exp())
    else:
        dz = z.sign() * log_dz.exp()
    if not with_p:
        return dz, None
    columns: list[Tensor | None] = [None] * p.shape[-1]
    for group, shift in zip(plan, shifts, strict=True):
        weights = log_weights.get_children(group).exp()
        weights = weights.masked_fill(weights.isinf() & (shift == 0), 0.0)
        partial = (weights * shift.clamp(min=floor) / _of_group(p, group)).sum(-1)
        for place, node in enumerate(group.nodes):
            columns[node] = partial[..., place]
    return dz, torch.stack(columns, -1)


class _TreeFunction(torch.autograd.Function):
    """What :class:`_LogNorm` and :class:`_Energy` share: gradients written out, so that they are exact at zero
    coordinates and at extreme values.

    The nodes' values are outputs beside the result, since a first derivative can then take them from the forward pass;
    a derivative that is to be differentiated again computes them anew, as functions of z and p.
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.plan = inputs
        _, *levels = output
        ctx.mark_non_differentiable(*levels)
        ctx.save_for_backward(*tensors, *levels)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def levels(ctx, z, p):
        saved = ctx.saved_tensors[-len(ctx.plan) - 1 :]
        return _again(z, p, ctx.plan) if torch.is_grad_enabled() else (saved[0], saved[1:])


class _LogNorm(_TreeFunction):
    """log f(z) from z ``(..., n)`` and p ``(*batch, nodes)``."""

    @staticmethod
    def forward(z, p, plan):
        log_leaves, values = _ascend(z.abs().log(), p, plan)
        return values[-1][..., 0], log_leaves, *values

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return None, None, None
        z, p = ctx.saved_tensors[:2]
        dz, dp = _derivatives(z, p, None, ctx.plan, *_TreeFunction.levels(ctx, z, p), ctx.needs_input_grad[1])
        dz = (grad[..., None] * dz).sum_to_size(z.shape)
        return dz, None if dp is None else (grad[..., None] * dp).sum_to_size(p.shape), None


class _LogNormBothModes(_LogNorm):
    """With forward-mode derivatives, which ``torch.compile`` does not take."""

    @staticmethod
    def jvp(ctx, z_t, p_t, _):
        z, p = ctx.saved_tensors[:2]
        log_leaves, values = _again(z, p, ctx.plan)
        dz, dp = _derivatives(z, p, None, ctx.plan, log_leaves, values, p_t is not None)
        total = torch.zeros_like(dz[..., 0]) if z_t is None else (dz * z_t).sum(-1)
        return total if p_t is None else total + (dp * p_t).sum(-1), *([None] * (len(values) + 1))


class _Energy(_TreeFunction):
    """f(z)^p0 / s from z ``(..., n)``, p ``(*batch, nodes)`` and log s ``batch``."""

    @staticmethod
    def forward(z, p, log_scale, plan):
        log_leaves, values = _ascend(z.abs().log(), p, plan)
        return (p[..., 0] * values[-1][..., 0] - log_scale).exp(), log_leaves, *values

    @staticmethod
    def backward(ctx, grad, *_):
        if grad is None:
            return None, None, None, None
        z, p, log_scale = ctx.saved_tensors[:3]
        log_leaves, values = _TreeFunction.levels(ctx, z, p)
        dz, dp = _derivatives(z, p, log_scale, ctx.plan, log_leaves, values, ctx.needs_input_grad[1])
        dz = (grad[..., None] * dz).sum_to_size(z.shape)
        dp = None if dp is None else (grad[..., None] * dp).sum_to_size(p.shape)
        ds = None
        if ctx.needs_input_grad[2]:
            ds = (-grad * (p[..., 0] * values[-1][..., 0] - log_scale).exp()).sum_to_size(log_scale.shape)
        return dz, dp, ds, None


class _EnergyBothModes(_Energy):
    """With forward-mode derivatives, which ``torch.compile`` does not take."""

    @staticmethod
    def jvp(ctx, z_t, p_t, s_t, _):
        z, p, log_scale = ctx.saved_tensors[:3]
        log_leaves, values = _again(z, p, ctx.plan)
        dz, dp = _derivatives(z, p, log_scale, ctx.plan, log_leaves, values, p_t is not None)
        total = torch.zeros_like(dz[..., 0]) if z_t is None else (dz * z_t).sum(-1)
        if p_t is not None:
            total = total + (dp * p_t).sum(-1)
        if s_t is not None:
            total = total - (p[..., 0] * values[-1][..., 0] - log_scale).exp() * s_t
        return total, *([None] * (len(values) + 1))


def _log_norm(z: Tensor, p: Tensor, plan: _Plan) -> Tensor:
    return (_LogNorm if torch.compiler.is_compiling() else _LogNormBothModes).apply(z, p, plan)[0]


def _energy(z: Tensor, p: Tensor, log_scale: Tensor, plan: _Plan) -> Tensor:
    return (_Energy if torch.compiler.is_compiling() else _EnergyBothModes).apply(z, p, log_scale, plan)[0]


def _outlives(x: Tensor) -> bool:
    """Whether a tensor may be kept beyond the present call: it has no graph, and is neither of inference mode nor of a
    transform of ``torch.func``.
    """
    return not (x.requires_grad or x.is_inference() or torch._C._functorch.is_functorch_wrapped_tensor(x))


_surface_tensors: dict[tuple[tuple, torch.device], tuple[Tensor, Tensor, Tensor]] = {}


def _surface_constants(structure: tuple, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Eq. 8 as indices and weights: the node i of each distinct (i, n_ik), their n_ik and multiplicities, and l_i and
    n_i of all nodes.

    They are remembered on their device, where a CUDA graph finds them; but not those made within
    ``torch.inference_mode`` or a transform of ``torch.func``, which would not be valid outside of it.
    """
    tracing = torch.compiler.is_compiling()
    if not tracing and (structure, device) in _surface_tensors:
        return _surface_tensors[structure, device]
    edges: dict[tuple[int, int], int] = {}
    size: dict[int, tuple[int, int]] = {}
    for group in _plan(structure):
        for node, counts in zip(group.nodes, group.counts, strict=True):
            size[node] = (len(counts), sum(counts))
            for count in counts:
                edges[node, count] = edges.get((node, count), 0) + 1
    of_edges = tuple(count for _, count in edges), tuple(edges.values())
    of_nodes = tuple(zip(*(size[i] for i in range(len(size))), strict=True))
    constants = (
        torch.tensor([node for node, _ in edges], device=device),
        torch.tensor(of_edges, dtype=torch.float64, device=device),
        torch.tensor(of_nodes, dtype=torch.float64, device=device),
    )
    if not tracing and all(map(_outlives, constants)):
        if len(_surface_tensors) >= 256:
            _surface_tensors.clear()
        _surface_tensors[structure, device] = constants
    return constants


def _log_surface(p: Tensor, structure: tuple) -> Tensor:
    """Eq. 8 at R = 1 for exponents p ``(..., nodes)`` in float64."""
    parents, (number, multiplicity), (children, leaves) = _surface_constants(structure, p.device)
    edges = (multiplicity * torch.lgamma(number / p.index_select(-1, parents))).sum(-1)
    nodes = ((children - 1) * p.log() + torch.lgamma(leaves / p)).sum(-1)
    return leaves[0] * math.log(2) + edges - nodes


def _broadcast(what: str, *shapes: torch.Size) -> torch.Size:
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        shown = ", ".join(str(tuple(shape)) for shape in dict.fromkeys(shapes))
        raise ValueError(f"{what} have batch shapes {shown}; they must broadcast") from None


def _stack(trees: Sequence[Node], *others: float | Tensor) -> tuple[Tensor, ...]:
    """Exponents ``(*batch, nodes)`` of each tree, and the others ``(*batch,)``, on one device and in one dtype (float64
    if all are numbers).
    """
    tensors = [x for x in (*others, *(p for tree in trees for p in tree.exponents)) if isinstance(x, Tensor)]
    dtype, device = torch.float64, None
    if tensors:
        device = next((x.device for x in tensors if x.device.type != "cpu"), tensors[0].device)
        if any(
            x.requires_grad for x in tensors
        ):  # a learned parameter keeps its own precision, so that casts do not pile up
            dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    batch = _broadcast("the exponents and the scale", *(x.shape for x in tensors))

    def tensor(x: float | Tensor) -> Tensor:
        return torch.as_tensor(x, dtype=dtype, device=device).expand(batch)

    stacked = [torch.stack([tensor(p) for p in tree.exponents], -1) for tree in trees]
    return (*stacked, *(tensor(x) for x in others))


# ---------------------------------------------------------------------------------------------------------------
# distribution


def _holds(condition: Tensor) -> bool:
    """Whether a condition holds everywhere, or cannot be asked (within ``torch.compile`` and ``torch.func.vmap``)."""
    if torch.compiler.is_compiling():
        return True
    try:
        return bool(condition.all())
    except RuntimeError:  # vmap forbids decisions on values
        return True


class LpNested(Distribution):
    r"""Lp-nested symmetric distribution (Eq. 7), by default with the radial density that makes the root's subtrees
    independent (Eq. 11).

    .. math::

        p(z) = \frac{\psi_0(f(z))}{f(z)^{n-1}\, S_f(1)}, \qquad
        \psi_0(v) = \frac{p_0\, v^{n-1}}{\Gamma(n/p_0)\, s^{n/p_0}} \exp\left(-\frac{v^{p_0}}{s}\right)

    Parameters
    ----------
    tree : Node
        The Lp-nested function f. Its exponents may be tensors, with gradients and with a batch shape.
    scale : float, torch.Tensor or "unit"
        s of Eq. 11, positive. ``"unit"``: the s that gives every coordinate variance 1, where one s does (all
        coordinates alike).
    radial : torch.distributions.Distribution, optional
        A density on the positive reals that replaces Eq. 11, for the general Lp-nested symmetric family. It has its own
        scale.
    validate_args : bool, optional
        As in :mod:`torch.distributions`; checks of values are left out within ``torch.compile`` and
        ``torch.func.vmap``.

    Shapes
    ------
    ``event_shape`` is ``(n,)`` with n the number of leaves, ``batch_shape`` that of the exponents, the scale and the
    radial density together.

    Notes
    -----
    Numbers adapt to the dtype and the device of the value, tensors are used as they are. The normaliser is computed in
    float64. ``log_prob`` is exact at zero coordinates; its gradient there is the limit where there is one and 0 at a
    cusp. Half-precision values are evaluated in float32. Derivatives of any order and mode are there, but forward mode
    over forward mode (``jacfwd(jacfwd(...))``), which PyTorch takes for 0 in functions with gradients of their own:
    ``torch.func.hessian`` is right.

    Raises
    ------
    TypeError, ValueError
        For a tree that is no Node, a scale that is not positive, a radial density that is not one of a positive scalar.

    Examples
    --------
    >>> prior = LpNested(Node(2.0, 3), scale=2.0)          # N(0, I) in three dimensions
    >>> z = torch.tensor([0.5, -1.0, 2.0])
    >>> torch.isclose(prior.log_prob(z), Normal(0.0, 1.0).log_prob(z).sum())
    tensor(True)
    """

    arg_constraints: ClassVar = {
        "exponents": constraints.independent(constraints.positive, 1),
        "scale": constraints.positive,
    }
    support = constraints.real_vector
    has_rsample = True
    _BLOCK = 2**19  # coordinates that are sampled at once

    def __init__(
        self,
        tree: Node,
        scale: float | Tensor | str = 1.0,
        *,
        radial: Distribution | None = None,
        validate_args: bool | None = None,
    ) -> None:
        if not isinstance(tree, Node):
            raise TypeError(f"tree = {tree!r}; it must be a Node (Node.parse reads the text form)")
        if isinstance(scale, str):
            if scale != "unit":
                raise ValueError(f"scale = {scale!r}; it must be a positive number, a tensor, or 'unit'")
        elif isinstance(scale, bool) or not isinstance(scale, (Real, Tensor)):
            raise TypeError(f"scale = {scale!r}; it must be a positive number, a tensor, or 'unit'")
        elif isinstance(scale, Tensor):
            if not scale.is_floating_point():
                raise TypeError(f"scale has dtype {scale.dtype}; a tensor must be floating-point")
        elif not 0 < _float(scale) < math.inf:
            raise ValueError(f"scale = {scale}; it must be positive and finite")
        if radial is not None:
            _check_radial(radial)
            if not (isinstance(scale, Real) and scale == 1.0):
                raise ValueError(
                    f"scale = {scale}; a radial density of your own carries its own scale, so leave this one out"
                )
        self.tree, self.radial = tree, radial
        unit = isinstance(scale, str)
        self._p, given = _stack([tree], 1.0 if unit else scale)
        self._scale: Tensor | None = None if unit else given
        tensors = [x for x in (*tree.exponents, scale) if isinstance(x, Tensor)]
        self._dtype = torch.get_default_dtype()
        if tensors:
            self._dtype = tensors[0].dtype
            for x in tensors[1:]:
                self._dtype = torch.promote_types(self._dtype, x.dtype)
            if self._dtype in (torch.float16, torch.bfloat16):
                self._dtype = torch.float32
        self._constants: dict = {}
        batch = self._p.shape[:-1]
        if radial is not None:
            batch = _broadcast("the exponents and the radial density", batch, radial.batch_shape)
            self._p = self._p.expand(*batch, -1)
            self._scale = self._scale.expand(batch)
            self.radial = radial.expand(batch)
        if tensors and (self._validate_args if validate_args is None else validate_args):
            for name, values in (("tree", self._p), ("scale", self._scale)):
                if values is not None and not _holds((values > 0) & values.isfinite()):
                    what = "an exponent" if name == "tree" else "it"
                    bad = values[~((values > 0) & values.isfinite())].reshape(-1)[0].item()
                    raise ValueError(f"{name} holds {bad:g} in a tensor; {what} must be positive and finite")
        super().__init__(batch, torch.Size([tree.n_leaves]), validate_args=validate_args)
        if unit:
            self._check_unit()

    def __repr__(self) -> str:
        scale = (
            "'unit'"
            if self._scale is None
            else self._scale.item()
            if self._scale.numel() == 1
            else f"<{tuple(self.batch_shape)}>"
        )
        what = f"scale={scale}" if self.radial is None else f"radial={self.radial!r}"
        return f"LpNested('{self.tree}', {what})"

    def expand(self, batch_shape: Sequence[int], _instance: LpNested | None = None) -> LpNested:
        """The same distribution with a larger batch shape; nothing is copied."""
        new = self._get_checked_instance(LpNested, _instance)
        batch = torch.Size(batch_shape)
        new.tree, new._dtype, new._constants = self.tree, self._dtype, {}
        new._p = self._p.expand(*batch, -1)
        new._scale = None if self._scale is None else self._scale.expand(batch)
        new.radial = None if self.radial is None else self.radial.expand(batch)
        super(LpNested, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    # ---- parameters

    @property
    def exponents(self) -> Tensor:
        """The exponents of all inner nodes, root first, ``(*batch_shape, nodes)``."""
        return self._p.to(self._dtype)

    @property
    def scale(self) -> Tensor:
        """s of Eq. 11, ``batch_shape``; 1 and without effect where a radial density of one's own is given."""
        return self._scale_of(self._p).to(self._dtype)

    def _scale_of(self, p: Tensor) -> Tensor:
        if self._scale is not None:
            return self._scale.to(p.dtype)
        return (-0.5 * p[..., 0] * self._log_moments(2.0, p.double(), None)[..., 0]).exp().to(p.dtype)

    def _check_unit(self) -> None:
        with torch.no_grad():
            variance = self._log_moments(2.0, self._p.double(), None).exp()
            low, high = variance.min(-1).values, variance.max(-1).values
            if not _holds(high - low <= 1e-6 * high):
                raise ValueError(
                    "scale = 'unit'; coordinates of this tree differ in variance "
                    f"({low.min():.4f} to {high.max():.4f} at s = 1), so no single s makes all of them 1"
                )

    @property
    def _plan(self) -> _Plan:
        return _plan(self.tree.structure)

    def _parameters(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Exponents, log s and log Z (log S_f(1) where a radial density is given) in this dtype, on this device."""
        key = (like.dtype, like.device)
        if key in self._constants:
            return self._constants[key]
        p = self._p.to(like.device)
        scale = self._scale_of(p)
        log_scale = scale.log()
        wide = p.double()
        log_z = _log_surface(wide, self.tree.structure)
        if self.radial is None:
            n_over_p0 = self.tree.n_leaves / wide[..., 0]
            log_z = log_z + torch.lgamma(n_over_p0) + n_over_p0 * log_scale.double() - wide[..., 0].log()
        result = (p.to(like.dtype), log_scale.to(like.dtype), log_z.to(like.dtype))
        if not torch.compiler.is_compiling() and all(map(_outlives, (self._p, scale, *result))):
            self._constants[key] = result
        return result

    # ---- density

    def _checked(self, z: Tensor) -> Tensor:
        if not isinstance(z, Tensor):
            raise TypeError(f"z is a {type(z).__name__}; it must be a torch.Tensor")
        n = self.tree.n_leaves
        if z.shape[-1:] != (n,):
            raise ValueError(
                f"z has shape {tuple(z.shape)}; its last dimension must be {n}, the number of leaves of the tree"
            )
        try:
            torch.broadcast_shapes(z.shape[:-1], self.batch_shape)
        except RuntimeError:
            raise ValueError(
                f"z has shape {tuple(z.shape)}; its leading dimensions do not broadcast with the batch shape "
                f"{tuple(self.batch_shape)}"
            ) from None
        if z.is_complex():
            raise TypeError(f"z has dtype {z.dtype}; all coordinates must be real")
        if not z.is_floating_point():
            z = z.to(torch.get_default_dtype())
        elif z.dtype in (torch.float16, torch.bfloat16):
            z = z.float()
        if self._validate_args and not _holds(z == z):
            raise ValueError(
                f"z holds NaN in {int((z != z).any(-1).sum())} of {z[..., 0].numel()} points; "
                "all coordinates must be real"
            )
        return z

    def norm(self, z: Tensor) -> Tensor:
        """The Lp-nested function f(z) (Eq. 6, 9); z has shape ``(..., n)``, the result the shape of ``z[..., 0]`` and
        the batch together.
        """
        return self._log_norm(self._checked(z)).exp()

    def _log_norm(self, z: Tensor) -> Tensor:
        return _log_norm(z, self._parameters(z)[0], self._plan)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density (Eq. 7) in nats at ``value`` of shape ``(..., n)``.

        Minus infinity where the density underflows to 0 in the value's dtype; never NaN for real coordinates.

        Raises
        ------
        TypeError, ValueError
            If the last dimension is not n, the others do not broadcast with the batch shape, or (while arguments are
            validated) on NaN.
        """
        z = self._checked(value)
        p, log_scale, log_z = self._parameters(z)
        if self.radial is None:
            return -_energy(z, p, log_scale, self._plan) - log_z
        # At f = 0 the density is the limit from above, taken at the smallest positive float.
        log_f = _log_norm(z, p, self._plan).clamp(min=math.log(torch.finfo(z.dtype).tiny))
        f = log_f.exp()
        log_radial = self.radial.log_prob(_into_support(self.radial, f)).to(z.dtype)
        log_radial = torch.where(self.radial.support.check(f), log_radial, -math.inf)
        return log_radial - (self.tree.n_leaves - 1) * log_f - log_z

    # ---- samples

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        """Exact samples (Algorithm 1) without gradients; as :meth:`rsample`, in blocks that stay in a CPU's cache."""
        shape = torch.Size(sample_shape)
        count, block = shape.numel(), max(1, self._BLOCK // max(1, self._extended_shape().numel()))
        with torch.no_grad():
            if self._p.device.type != "cpu" or torch.compiler.is_compiling() or count <= block:
                return self.rsample(shape)
            parts = [self.rsample((min(block, count - start),)) for start in range(0, count, block)]
        return torch.cat(parts).reshape(self._extended_shape(shape))

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        r"""Exact samples (Algorithm 1), differentiable with respect to exponents, scale and the radial density's
        parameters.

        At each node the children's values are the parent's times Dirichlet variables to the power 1/p; with Eq. 11 the
        root's are independent Gammas to that power. Gammas are drawn as logarithms, :math:`\log G_\alpha = \log
        G_{\alpha+1} + \alpha^{-1}\log U`, so that the tiny shapes
        :math:`1/p` of large exponents do not underflow.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        p, scale = self._p.to(self._dtype), self._scale_of(self._p).to(self._dtype)
        plan = self._plan
        steps = []
        for group in plan:
            q = _of_group(p, group)
            root = group is plan[-1]
            if group.width == 1 and not (root and self.radial is None):
                steps.append(torch.zeros_like(q))
                continue
            alpha = torch.tensor(group.counts, dtype=p.dtype, device=p.device) / q
            alpha = alpha.expand(*shape[:-1], *alpha.shape[-2:])
            uniform = 1 - torch.rand(alpha.shape, dtype=p.dtype, device=p.device)  # in (0, 1]
            log_gamma = Gamma(alpha + 1, 1.0, validate_args=False).rsample().log() + uniform.log() / alpha
            if root and self.radial is None:
                steps.append((log_gamma + scale.log()[..., None, None]) / q)
            else:
                steps.append((log_gamma - log_gamma.logsumexp(-1, keepdim=True)) / q)
        if self.radial is None:
            start = torch.zeros(shape[:-1], dtype=p.dtype, device=p.device)
        else:
            draw = self.radial.rsample if self.radial.has_rsample else self.radial.sample
            start = draw(torch.Size(sample_shape)).log().to(p)
        log_magnitude = _descend(start, steps, plan).get(0, self.tree.n_leaves).expand(shape)
        sign = torch.randint(0, 2, shape, device=p.device, dtype=torch.int8) * 2 - 1
        return log_magnitude.exp() * sign

    # ---- moments

    def _log_moments(self, order: float | Tensor, p: Tensor, scale: Tensor | None, nodes: bool = False):
        """log E v^order for the leaves ``(*batch, n)``, or for the whole buffer; Eq. 11 with s = 1 where ``scale`` is
        None.
        """
        order = torch.as_tensor(order, dtype=p.dtype, device=p.device)
        p0, n = p[..., 0], self.tree.n_leaves
        if self.radial is None:
            root = torch.lgamma((n + order) / p0) - torch.lgamma(n / p0)
            if scale is not None:
                root = root + order / p0 * scale.log()
        else:
            root = (self.radial.variance + self.radial.mean.square()).log().to(p)
        steps = []
        for group in self._plan:
            q = _of_group(p, group)
            counts = torch.tensor(group.counts, dtype=p.dtype, device=p.device)
            total, k = counts.sum(-1, keepdim=True), order[..., None, None]
            steps.append(
                torch.lgamma((counts + k) / q)
                - torch.lgamma(counts / q)
                - torch.lgamma((total + k) / q)
                + torch.lgamma(total / q)
            )
        buffer = _descend(root, steps, self._plan)
        return buffer if nodes else buffer.get(0, n)

    def absolute_moment(self, order: float | Tensor) -> Tensor:
        r""":math:`E|z_j|^k` of every coordinate, ``(*batch_shape, n)``, in closed form for real k > -1 (k = 2 only with
        a radial density of one's own).

        A coordinate is the radius times powers of independent Beta variables, one for each node on its path, and so its
        moments are products of Gamma functions.
        """
        if self.radial is not None and not (isinstance(order, Real) and order == 2):
            raise ValueError(f"order = {order}; with a radial density of your own only order 2 is known in closed form")
        if not _holds(torch.as_tensor(order) > -1):
            raise ValueError(f"order = {order}; the moment exists for orders above -1")
        wide = self._p.double()
        return self._log_moments(order, wide, self._scale_of(wide)).exp().to(self._dtype)

    @property
    def mean(self) -> Tensor:
        return torch.zeros(self._extended_shape(), dtype=self._dtype, device=self._p.device)

    @property
    def mode(self) -> Tensor:
        if self.radial is not None:
            raise NotImplementedError("the mode depends on the radial density; it is 0 for Eq. 11")
        return self.mean

    @property
    def variance(self) -> Tensor:
        """Variance of each coordinate, ``(*batch_shape, n)``; coordinates are uncorrelated."""
        return self.absolute_moment(2)

    def entropy(self) -> Tensor:
        """Differential entropy in nats, ``n / p0 + log Z``: closed for Eq. 11 (for another radial density see
        :func:`isa.lpnested.kl_monte_carlo`'s source of samples).

        Raises
        ------
        NotImplementedError
            With a radial density of one's own: it takes E log r, which :mod:`torch.distributions` does not offer.
        """
        if self.radial is not None:
            raise NotImplementedError("the entropy is closed for Eq. 11 only; estimate it as -log_prob(sample).mean()")
        like = torch.empty((), dtype=torch.float64, device=self._p.device)
        p, _, log_z = self._parameters(like)
        return (self.tree.n_leaves / p[..., 0] + log_z).to(self._dtype)

    # ---- subspaces and margins

    @property
    def subspaces(self) -> tuple[tuple[int, ...], ...]:
        """The leaves of each subspace (Eq. 10), one for each child of the root; independent under Eq. 11."""
        return self.tree.subspaces

    def marginal(self, subspace: int) -> LpNested:
        """The distribution of one subspace, an ``LpNested`` of its own: the root's exponent above the subspace's tree,
        and the same scale.

        Raises
        ------
        TypeError, IndexError, NotImplementedError
            If there is no such subspace, or with a radial density of one's own, under which a subspace's radius has no
            closed law.
        """
        children = self.tree.branches
        if not isinstance(subspace, Integral):
            raise TypeError(f"subspace = {subspace!r}; it must be a whole number")
        if not 0 <= subspace < len(children):
            raise IndexError(f"subspace = {subspace}; this distribution has subspaces 0 to {len(children) - 1}")
        if self.radial is not None:
            raise NotImplementedError("the marginal of a subspace is closed for Eq. 11 only")
        scale = self._scale_of(self._p)
        scale = self.scale if scale.ndim or not _outlives(scale) else scale.item()
        return LpNested(Node(self.tree.p, [children[subspace]]), scale, validate_args=self._validate_args)

    def coordinate_pdf(self, x: np.ndarray, leaf: int = 0) -> np.ndarray:
        r"""Marginal density of one coordinate at the points x (numpy, float64), for Eq. 11 without a batch shape.

        :math:`E|z|^{i\omega}` is known in closed form, so the density of :math:`\log|z|` is one Fourier integral, taken
        by the trapezoidal rule, which converges geometrically here. Absolute error about 1e-12 / ``|x|``; at x = 0 the
        limit is taken at 1e-3 of the standard deviation.
        """
        if self.radial is not None or self.batch_shape:
            raise NotImplementedError("the density of a coordinate is computed for Eq. 11 and an empty batch shape")
        if not isinstance(leaf, Integral):
            raise TypeError(f"leaf = {leaf!r}; it must be a whole number")
        if not 0 <= leaf < self.tree.n_leaves:
            raise IndexError(f"leaf = {leaf}; this tree has leaves 0 to {self.tree.n_leaves - 1}")
        path, node, first = [], self.tree, 0
        while isinstance(node, Node):
            for child in node.branches:
                count = child if isinstance(child, int) else child.n_leaves
                if leaf < first + count:
                    path.append((float(node.p), count, node.n_leaves))
                    node = child
                    break
                first += count
        p0, n, scale = path[0][0], self.tree.n_leaves, float(self._scale_of(self._p))

        def log_moment(order: np.ndarray) -> np.ndarray:
            g = scipy.special.loggamma
            total = g((n + order) / p0) - g(n / p0) + order / p0 * math.log(scale)
            for p, below, within in path:
                total = total + g((below + order) / p) - g(below / p) - g((within + order) / p) + g(within / p)
            return total

        step = (
            2 * math.pi / 160
        )  # a period of 160 in log|z|, beyond which the density of log|z| is 0 to float precision
        stop = 64.0
        while log_moment(1j * np.array([stop])).real[0] > -40 and stop < 1e5:
            stop *= 2
        omega = np.arange(0.0, stop, step)
        weights = np.exp(log_moment(1j * omega)) * step / math.pi
        weights[0] /= 2
        magnitude = np.maximum(np.abs(np.asarray(x, dtype=np.float64)), 1e-3 * math.sqrt(float(self.variance[leaf])))
        pdf = np.array([(weights * np.exp(-1j * omega * y)).real.sum() for y in np.log(magnitude).ravel()])
        return np.maximum(pdf, 0.0).reshape(magnitude.shape) / (2 * magnitude)

    # ---- fit

    @staticmethod
    def fit(tree: Node, z: Tensor | np.ndarray) -> Fit:
        """Maximum-likelihood exponents and scale for samples z ``(N, n)``, the tree's shape fixed and its exponents the
        starting point.

        The scale is profiled out (its optimum is closed), the logarithms of the exponents are found by L-BFGS in
        float64. The exponent of a node other than the root with a single child has no influence and is kept.

        Raises
        ------
        TypeError, ValueError
            If the tree's exponents are not numbers, or z is not a finite real ``(N, n)`` array with at least as many
            rows as there are parameters, not 0 throughout.
        """
        return _fit(tree, z)


def _check_radial(radial: Distribution) -> None:
    if not isinstance(radial, Distribution):
        raise TypeError(f"radial = {radial!r}; it must be a torch distribution")
    lower = getattr(radial.support, "lower_bound", None)
    if radial.event_shape or lower is None or radial.support.is_discrete or not bool(torch.as_tensor(lower >= 0).all()):
        raise ValueError(f"radial = {radial!r}; it must be a continuous distribution of one positive number")


def _into_support(radial: Distribution, r: Tensor) -> Tensor:
    """Radii, or the nearest ones that a radial density accepts."""
    return r.clamp(radial.support.lower_bound, getattr(radial.support, "upper_bound", None))


def isa_prior(
    subspaces: Sequence[int] = (4, 4, 4, 4, 4),
    p0: float | Tensor = 2.1,
    p1: float | Tensor | Sequence[float | Tensor] = 2.2,
    scale: float | Tensor | str = 1.0,
    validate_args: bool | None = None,
) -> LpNested:
    """The prior of ISA-VAE: independent subspaces, each an Lp-nested ball of its own (Eq. 7 with Eq. 9 and 11).

    Parameters
    ----------
    subspaces : sequence of int
        The number of coordinates of each subspace; the default is the layout of Fig. 5, five subspaces of four.
    p0 : float or Tensor
        Exponent of the root.
    p1 : float, Tensor or sequence
        Exponent within the subspaces: one for all, or one for each (a sequence, or a tensor of shape
        ``(len(subspaces),)``).
    scale : float, Tensor or "unit"
        s of Eq. 11. The authors' code uses 1, which gives a coordinate half the variance of N(0, 1).

    Examples
    --------
    >>> prior = isa_prior((4, 4), p0=2.1, p1=[1.9, 2.2])
    >>> print(prior.tree)
    2.1[1.9[4], 2.2[4]]
    """
    if isinstance(subspaces, str) or not isinstance(subspaces, Iterable):
        raise TypeError(f"subspaces = {subspaces!r}; it must be a sequence of ints, the sizes of the subspaces")
    subspaces = tuple(subspaces)
    if not subspaces:
        raise ValueError("subspaces = (); at least one subspace is needed")
    if isinstance(p1, Tensor) and p1.ndim == 1:
        p1 = list(p1.unbind())
    each = list(p1) if isinstance(p1, (Sequence, np.ndarray)) else [p1] * len(subspaces)
    if len(each) != len(subspaces):
        raise ValueError(f"p1 has {len(each)} exponents; there are {len(subspaces)} subspaces")
    return LpNested(
        Node(p0, [Node(p, size) for p, size in zip(each, subspaces, strict=True)]), scale, validate_args=validate_args
    )


class LearnableISAPrior(nn.Module):
    """An ISA prior whose exponents are learned with the networks (Sec. 4, "Learning the Exponents").

    p1, one for each subspace, starts from 2 and is kept positive as the softplus of a free parameter; p0 is fixed
    unless asked otherwise. Calling the module gives the prior for the present exponents; ``p0`` and ``p1`` read them
    back.

    Parameters
    ----------
    subspaces : sequence of int
        The number of coordinates of each subspace.
    p0, p1 : float or (p1) sequence of float
        Where the exponents start.
    scale : float
        s of Eq. 11, fixed. (One s for unit variance does not exist once the exponents differ.)
    learn_p0 : bool
        Whether p0 is learned too.

    Examples
    --------
    >>> module = LearnableISAPrior((4, 4, 4))
    >>> module.p1
    tensor([2., 2., 2.], grad_fn=<SoftplusBackward0>)
    >>> module().log_prob(torch.zeros(12)).requires_grad
    True
    """

    def __init__(
        self,
        subspaces: Sequence[int] = (4, 4, 4, 4, 4),
        p0: float = 2.1,
        p1: float | Sequence[float] = 2.0,
        scale: float = 1.0,
        learn_p0: bool = False,
    ) -> None:
        super().__init__()
        start = isa_prior(subspaces, p0, p1, scale)  # checks every argument
        if isinstance(scale, str):
            raise ValueError(
                f"scale = {scale!r}; no single s keeps unit variance while exponents are learned, so give a number"
            )
        self.subspaces, self.scale = tuple(subspaces), float(scale)
        exponents = torch.tensor(start.tree.exponents, dtype=torch.float64)
        raw = (exponents + torch.log(-torch.expm1(-exponents))).to(torch.get_default_dtype())  # inverse of the softplus
        self.raw_p1 = nn.Parameter(raw[1:].clone())
        self.raw_p0 = nn.Parameter(raw[0].clone(), requires_grad=learn_p0)

    @property
    def p0(self) -> Tensor:
        return nn.functional.softplus(self.raw_p0)

    @property
    def p1(self) -> Tensor:
        return nn.functional.softplus(self.raw_p1)

    def forward(self) -> LpNested:
        return isa_prior(self.subspaces, self.p0, self.p1, self.scale, validate_args=False)


class StackedPrior(nn.Module):
    """Priors of P models as one module: Lp-nested distributions on trees of one structure, or N(0, I).

    Learned exponents, all but the roots', are the softplus of the parameter ``raw``.

    Parameters
    ----------
    trees : sequence of Node or None
        One tree for each model, with the initial exponents; None for N(0, I).
    scales : sequence of float, "unit" or None
        s of Eq. 11 for each model.
    latent_dim : int
        Number of latents, for N(0, I).
    learned : bool
        Learn the exponents.
    """

    def __init__(
        self, trees: Sequence[Node | None], scales: Sequence[float | str | None], latent_dim: int, learned: bool
    ) -> None:
        super().__init__()
        self.tree, self.learned = trees[0], learned
        if self.tree is None:
            self.register_buffer("zeros", torch.zeros(latent_dim), persistent=False)
            return
        self.tree = trees[0].with_exponents([1.0] * len(trees[0].exponents))  # one structure, one compiled version
        exponents = torch.tensor([tree.exponents for tree in trees], dtype=torch.float64)
        scale = [LpNested(tree, one).scale.double() for tree, one in zip(trees, scales, strict=True)]
        self.register_buffer("scale", torch.stack(scale)[:, None], persistent=False)
        self.register_buffer("fixed", exponents, persistent=False)
        if learned:
            free = exponents[:, 1:]
            self.raw = nn.Parameter((free + torch.log(-torch.expm1(-free))).float())  # inverse of the softplus
            self.scale, self.fixed = self.scale.float(), exponents[:, :1].float()

    def exponents(self) -> Tensor:
        """Return the exponents (P, nodes) in the order of :meth:`Node.nodes`."""
        return torch.cat([self.fixed, nn.functional.softplus(self.raw)], 1) if self.learned else self.fixed

    def forward(self) -> Distribution:
        """Return the priors as one distribution of batch shape (P, 1), not validated, since a run may diverge."""
        if self.tree is None:
            normal = Normal(self.zeros, torch.ones_like(self.zeros), validate_args=False)
            return Independent(normal, 1, validate_args=False)
        columns = [column[:, None] for column in self.exponents().unbind(1)]
        return LpNested(self.tree.with_exponents(columns), self.scale, validate_args=False)


# ----------------------------------------------------------------------------------------------------- Kullback-Leibler
# divergence


def kl_monte_carlo(p: Distribution, q: Distribution, n_samples: int = 10_000) -> Tensor:
    """KL(p || q) in nats as the mean of log p - log q over samples of p (Eq. 12 for one sample); differentiable where p
    has ``rsample``.

    Its standard error is the standard deviation of log p - log q under p, divided by the root of ``n_samples``.
    """
    if not isinstance(n_samples, Integral) or n_samples < 1:
        raise ValueError(f"n_samples = {n_samples}; it must be a whole number of at least 1")
    if p.event_shape != q.event_shape:
        raise ValueError(f"p has event shape {tuple(p.event_shape)} and q has {tuple(q.event_shape)}; they must agree")
    p = p.expand(torch.broadcast_shapes(p.batch_shape, q.batch_shape))
    z = (p.rsample if p.has_rsample else p.sample)(torch.Size([int(n_samples)]))
    return (p.log_prob(z) - q.log_prob(z)).mean(0)


@register_kl(Distribution, LpNested)
def _kl_any(p: Distribution, q: LpNested) -> Tensor:
    return kl_monte_carlo(p, q)


@register_kl(LpNested, LpNested)
def _kl_lpnested(p: LpNested, q: LpNested) -> Tensor:
    """Closed where every child of q's root is a leaf, or a subtree that p has over the same leaves; by Monte Carlo
    otherwise.
    """
    if p.tree.n_leaves != q.tree.n_leaves:
        raise ValueError(f"p has {p.tree.n_leaves} coordinates and q has {q.tree.n_leaves}; they must be equally many")
    where = _shared_subtrees(p, q) if p.radial is None and q.radial is None else None
    if where is None:
        return kl_monte_carlo(p, q)
    wide_p, wide_q = p._p.double(), q._p.double()
    q0 = wide_q[..., 0]
    moments = p._log_moments(q0, wide_p, p._scale_of(wide_p), nodes=True)
    energy = sum(moments.get(start, start + 1)[..., 0].exp() for start in where) / q._scale_of(wide_q)
    like = torch.empty((), dtype=torch.float64, device=q._p.device)
    return (energy + q._parameters(like)[2]).to(q._dtype) - p.entropy()


@register_kl(LpNested, Independent)
def _kl_lpnested_independent(p: LpNested, q: Independent) -> Tensor:
    """Closed for a diagonal normal q, since coordinates of p are centred and uncorrelated; by Monte Carlo otherwise."""
    base = q.base_dist
    if not isinstance(base, Normal) or q.event_shape != p.event_shape or (p.radial is not None):
        return kl_monte_carlo(p, q)
    energy = 0.5 * ((p.variance + base.loc.square()) / base.scale.square()).sum(-1)
    log_z = (base.scale.log() + 0.5 * math.log(2 * math.pi)).expand(*q.batch_shape, *q.event_shape).sum(-1)
    return energy + log_z - p.entropy()


def _shared_subtrees(p: LpNested, q: LpNested) -> list[int] | None:
    """Where, in the buffer of p, the values of the children of q's root lie; None if p does not have one of them."""
    have: dict[tuple[int, Node], int] = {}
    position = {node: group.start + place for group in p._plan for place, node in enumerate(group.nodes)}
    number = 0

    def visit(node: Node, first: int) -> None:
        nonlocal number
        have.setdefault((first, node), position[number])
        number += 1
        for child in node.children:
            if isinstance(child, Node):
                visit(child, first)
                first += child.n_leaves
            else:
                first += child

    visit(p.tree, 0)
    places: list[int] = []
    first = 0
    for child in q.tree.branches:
        if isinstance(child, Node):
            if (first, child) not in have:
                return None
            places.append(have[first, child])
            first += child.n_leaves
        else:
            places.append(first)
            first += 1
    return places


# ---------------------------------------------------------------------------------------------------------------------
# fit


@dataclass(frozen=True)
class Fit:
    """A maximum-likelihood fit: the distribution, and how certain its parameters are."""

    distribution: LpNested
    log_likelihood: float
    """Total over the samples, in nats."""
    n_samples: int
    exponent_errors: tuple[float, ...]
    """Standard errors of the exponents in the order of ``Node.nodes()``, from the observed information; 0 where an
    exponent has no influence.
    """
    scale_error: float


def _fit(tree: Node, z: Tensor | np.ndarray) -> Fit:
    if not isinstance(tree, Node) or any(isinstance(p, Tensor) for p in tree.exponents):
        raise TypeError(
            f"tree = {tree!r}; it must be a Node whose exponents are numbers, which are where the fit starts"
        )
    values = z if isinstance(z, Tensor) else np.asarray(z)
    if values.is_complex() if isinstance(values, Tensor) else values.dtype.kind not in "fiub":
        raise TypeError(f"z has dtype {values.dtype}; it must hold real numbers")
    z = values.detach().double() if isinstance(values, Tensor) else torch.from_numpy(values.astype(np.float64))
    free = [i for i, node in enumerate(tree.nodes()) if i == 0 or len(node.branches) > 1]
    if z.ndim != 2 or z.shape[1] != tree.n_leaves:
        raise ValueError(f"z has shape {tuple(z.shape)}; it must be (N, {tree.n_leaves})")
    count, n = z.shape
    if count <= len(free):
        raise ValueError(f"z has {count} rows; {len(free) + 1} parameters need at least as many")
    if not bool(torch.isfinite(z).all()):
        raise ValueError(f"z holds NaN or infinity in {int((~z.isfinite()).any(-1).sum())} of {count} rows")
    if not bool(z.any()):
        raise ValueError("z is 0 throughout; a scale cannot be fitted to it")
    plan = _plan(tree.structure)
    start = torch.tensor(tree.exponents, dtype=torch.float64)
    place = torch.tensor(free)

    def mean_nll(p: Tensor, scale: Tensor | None) -> tuple[Tensor, Tensor]:
        power = _energy(z, p, torch.zeros((), dtype=torch.float64), plan).mean()
        if scale is None:
            scale = p[0] * power / n  # where the derivative with respect to s vanishes
        log_z = _log_surface(p, tree.structure) + torch.lgamma(n / p[0]) + n / p[0] * scale.log() - p[0].log()
        return power / scale + log_z, scale

    def objective(log_free: np.ndarray) -> tuple[float, np.ndarray]:
        x = torch.tensor(log_free, requires_grad=True)
        value, _ = mean_nll(start.index_copy(0, place, x.exp()), None)
        (gradient,) = torch.autograd.grad(value, x)
        return value.item(), gradient.numpy()

    found = scipy.optimize.minimize(
        objective,
        start[place].log().numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=[(math.log(0.05), math.log(500.0))] * len(free),
        options={"ftol": 1e-15, "gtol": 1e-8, "maxiter": 500},
    )
    p = start.index_copy(0, place, torch.tensor(found.x).exp())
    with torch.no_grad():
        value, scale = mean_nll(p, None)

    def of_all(x: Tensor) -> Tensor:
        return count * mean_nll(start.index_copy(0, place, x[:-1]), x[-1])[0]

    information = torch.autograd.functional.hessian(of_all, torch.cat([p[place], scale[None]]))
    deviation = torch.linalg.pinv(information).diagonal().clamp(min=0).sqrt()
    errors = torch.zeros_like(p).index_copy(0, place, deviation[:-1])
    distribution = LpNested(tree.with_exponents(p.tolist()), scale.item())
    return Fit(distribution, -count * value.item(), count, tuple(errors.tolist()), deviation[-1].item())


# ------------------------------------------------------------------------------------------------ nested radial
# factorisation


class _GammaRadius:
    """A radius r with r^p / s ~ Gamma(n / p): Eq. 11 for p = p0, and what it implies for the radius of a subtree."""

    EDGE = 1e-290  # quantiles nearer to 0 or 1 than this are not told apart
    TINY = -36.0  # below this log t, the incomplete Gamma function is its leading term to float64 precision

    def __init__(self, p: float, n: int, scale: float) -> None:
        self.p, self.shape, self.log_scale = p, n / p, math.log(scale)

    def quantiles(self, log_r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P(R < r) and P(R > r)."""
        log_t = self.p * log_r - self.log_scale
        t = np.exp(log_t)
        leading = np.exp(self.shape * np.minimum(log_t, self.TINY) - math.lgamma(self.shape + 1))
        return np.where(log_t < self.TINY, leading, scipy.special.gammainc(self.shape, t)), scipy.special.gammaincc(
            self.shape, t
        )

    def log_radius(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        leading = (np.log(lower) + math.lgamma(self.shape + 1)) / self.shape
        inner = np.where(
            lower < 0.5, scipy.special.gammaincinv(self.shape, lower), scipy.special.gammainccinv(self.shape, upper)
        )
        log_t = np.where(leading < self.TINY, leading, np.log(np.maximum(inner, math.exp(self.TINY))))
        return (log_t + self.log_scale) / self.p

    def log_density(self, log_r: Tensor) -> Tensor:
        """Of log r, which is the density of r times r."""
        log_t = self.p * log_r - self.log_scale
        return self.shape * log_t - log_t.exp() + math.log(self.p) - math.lgamma(self.shape)


class _GivenRadius:
    """A radius whose law is a torch distribution with a ``cdf``; the inverse is found by bisection on log r."""

    EDGE = 2.0**-49  # a cdf in double precision does not tell quantiles nearer to 0 or 1 apart

    def __init__(self, law: Distribution) -> None:
        self.law = law

    def quantiles(self, log_r: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        r = torch.as_tensor(np.exp(log_r))
        lower = self.law.cdf(_into_support(self.law, r)).numpy().clip(self.EDGE / 2, 1 - self.EDGE / 2)
        return lower, 1 - lower

    def log_radius(self, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
        lower = lower.clip(self.EDGE, 1 - self.EDGE)
        a, b = np.full_like(lower, -300.0), np.full_like(lower, 300.0)
        for _ in range(70):  # the bracket of 600 shrinks below the spacing of doubles
            middle = 0.5 * (a + b)
            below = self.quantiles(middle)[0] < lower
            a, b = np.where(below, middle, a), np.where(below, b, middle)
        return 0.5 * (a + b)

    def log_density(self, log_r: Tensor) -> Tensor:
        return self.law.log_prob(_into_support(self.law, log_r.exp())) + log_r


def _range(law: _GammaRadius | _GivenRadius, other: _GammaRadius | _GivenRadius) -> tuple[float, float]:
    """The logarithms of the least and the greatest radius of one law whose quantiles both laws can tell apart."""
    edge = max(law.EDGE, other.EDGE)
    ends = (edge, 1 - edge), (1 - edge, edge)
    return tuple(float(law.log_radius(np.array(lower), np.array(upper))) for lower, upper in ends)


class _MapRadius(torch.autograd.Function):
    """log r to the log of the radius that has the same quantile under another law; its derivative is the ratio of the
    densities.
    """

    @staticmethod
    def forward(ctx, log_r, source, target):
        quantiles = source.quantiles(log_r.detach().double().cpu().numpy())
        mapped = torch.from_numpy(np.asarray(target.log_radius(*quantiles))).to(log_r)
        ctx.save_for_backward(log_r, mapped)
        ctx.laws = source, target
        return mapped

    @staticmethod
    def backward(ctx, grad):
        log_r, mapped = ctx.saved_tensors
        source, target = ctx.laws
        return grad * (source.log_density(log_r) - target.log_density(mapped)).exp(), None, None


class NestedRadialFactorization(Transform):
    r"""The transform that makes an Lp-nested source independent, subspace by subspace (Sinz and Bethge 2010).

    At the root the radius is mapped to the law of Eq. 11 through its quantiles, and all coordinates are scaled along:
    then the root's subtrees are independent, each Lp-nested again. Going down, each subtree's radius is mapped likewise
    to the law that makes its own children independent. In the end every coordinate is independent and p-generalised
    normal, with the exponent of the node that it hangs from and the source's scale.

    Parameters
    ----------
    source : LpNested
        The distribution to factorise; a radial density of one's own must have a ``cdf``. No batch shape; its parameters
        are constants here.
    depth : int, optional
        How many levels are factorised: 1 makes the subspaces independent and leaves each as it is; by default all.

    Notes
    -----
    For a source with Eq. 11 the map at the root is the identity. Points are mapped where they are, on the CPU's float64
    quantile functions; the map is differentiable in z. Radii whose quantile is within 1e-290 of 0 or 1 are scaled as
    the nearest radius that is not: near 0 this is the exact limit. A ``cdf`` of one's own is known to double precision
    only, so there the bound is 1e-15, and the map loses digits towards it.

    Raises
    ------
    TypeError, ValueError, NotImplementedError
        If the source is no LpNested, has a batch shape, or has a radial density without a ``cdf``.

    Examples
    --------
    >>> source = LpNested(Node(2.0, [Node(1.0, 2), 1]), radial=torch.distributions.LogNormal(0.0, 0.5))
    >>> transform = NestedRadialFactorization(source)
    >>> z = source.sample((5,)).double()
    >>> torch.allclose(transform.inv(transform(z)), z)
    True
    """

    bijective = True
    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, source: LpNested, depth: int | None = None, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        if not isinstance(source, LpNested):
            raise TypeError(f"source = {source!r}; it must be an LpNested")
        if source.batch_shape:
            raise ValueError(f"source has batch shape {tuple(source.batch_shape)}; it must have none")
        if depth is not None and (not isinstance(depth, Integral) or isinstance(depth, bool) or depth < 1):
            raise ValueError(f"depth = {depth}; it must be a whole number of at least 1")
        if source.radial is not None:
            try:
                source.radial.cdf(torch.ones(()))
            except NotImplementedError:
                raise NotImplementedError(
                    f"radial = {source.radial!r} has no cdf, which the factorisation needs"
                ) from None
        self.source, self.depth = source, depth
        self._p = source._p.detach().double()
        scale = float(source._scale_of(self._p))
        # for each inner node its radius's law before and after its map, with the range of each; None for the identity
        self._laws: list[tuple | None] = []

        def visit(node: Node, above: float | None, level: int) -> None:
            exponent = float(self._p[len(self._laws)])
            before = None
            if depth is None or level < depth:
                if above is not None and above != exponent:
                    before = _GammaRadius(above, node.n_leaves, scale)
                elif above is None and source.radial is not None:
                    before = _GivenRadius(source.radial)
            if before is None:
                self._laws.append(None)
            else:
                after = _GammaRadius(exponent, node.n_leaves, scale)
                self._laws.append(((before, _range(before, after)), (after, _range(after, before))))
            for child in node.children:
                if isinstance(child, Node):
                    visit(child, exponent, level + 1)

        visit(source.tree, None, 0)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, NestedRadialFactorization) and self.source is other.source and self.depth == other.depth
        )

    __hash__ = None

    def with_cache(self, cache_size: int = 1) -> NestedRadialFactorization:
        return NestedRadialFactorization(self.source, self.depth, cache_size)

    def _factors(self, log_r: Tensor, group: _Group, inverse: bool) -> tuple[Tensor, Tensor]:
        """For the radii ``(..., nodes)`` of a group: the logarithm of what each node's map scales by, and of its
        forward determinant.
        """
        factors, log_dets = torch.zeros_like(log_r), torch.zeros_like(log_r)
        columns = []
        for place, node in enumerate(group.nodes):
            laws = self._laws[node]
            if laws is None:
                columns.append((factors[..., place], log_dets[..., place]))
                continue
            (source, limits), (target, _) = laws[::-1] if inverse else laws
            start = log_r[..., place].clamp(*limits)
            factor = _MapRadius.apply(start, source, target) - start
            before, after = (start + factor, start) if inverse else (start, start + factor)
            # dr'/dr is the ratio of the densities; each of the other n - 1 directions is scaled by r'/r
            n = sum(group.counts[place])
            ratio = laws[0][0].log_density(before) - laws[1][0].log_density(after)
            columns.append((factor, n * (after - before) + ratio))
        return torch.stack([f for f, _ in columns], -1), torch.stack([d for _, d in columns], -1)

    def _forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        z = self.source._checked(z)
        plan = self.source._plan
        _, radii = _ascend(z.abs().log(), self._p.to(z), plan)
        log_det = torch.zeros_like(z[..., 0])
        shift = _Buffer()
        shift.put(plan[-1].start, torch.zeros_like(z[..., :1]))
        for group, log_r in zip(reversed(plan), reversed(radii), strict=True):
            above = shift.get(
                group.start, group.start + len(group.nodes)
            )  # by how much the maps of its ancestors have scaled it
            factors, log_dets = self._factors(log_r + above, group, inverse=False)
            log_det = log_det + log_dets.sum(-1)
            shift.put_children(group, (above + factors)[..., None].expand(*factors.shape, group.width))
        return z * shift.get(0, z.shape[-1]).exp(), log_det

    def _call(self, x: Tensor) -> Tensor:
        return self._forward(x)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._forward(x)[1]

    def _inverse(self, y: Tensor) -> Tensor:
        y = self.source._checked(y)
        plan, p = self.source._plan, self._p.to(y)
        radii, own = _Buffer(), _Buffer()  # radii before a node's own map; by how much undoing it scales
        radii.put(0, y.abs().log())
        own.put(0, torch.zeros_like(y))
        for group in plan:
            log_r = _log_values(radii.get_children(group), p, group)
            factors, _ = self._factors(log_r, group, inverse=True)
            radii.put(group.start, log_r + factors)
            own.put(group.start, factors)
        root = own.get(plan[-1].start, plan[-1].start + 1)[..., 0]
        shift = _descend(root, [own.get_children(group) for group in plan], plan)
        return y * shift.get(0, y.shape[-1]).exp()
