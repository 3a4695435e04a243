"""Trees of exponents: Lp-nested functions (Eq. 6 and 9), their text form and their surface (Eq. 8)."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import threshold

__all__ = ["Node", "log_magnitude"]

_MAX_LEAVES = 10_000


@dataclass(frozen=True, init=False)
class Node:
    """An inner node of an Lp-nested function: the p-norm of its children's values.

    The value of a leaf is ``|z_j|``; leaves take the coordinates of z in order.

    Parameters
    ----------
    p : float or Tensor
        Positive exponent. A tensor may require a gradient and may have a batch shape.
    children : int, Node or sequence of both
        An int k stands for k leaves. Eq. 6 of the paper is ``Node(p0, [1, Node(p1, [2])])``.

    Examples
    --------
    >>> tree = Node(2.1, [Node(2.2, 4), Node(2.2, 4)])
    >>> print(tree, tree.n_leaves, tree == Node.parse("2.1[2*2.2[4]]"))
    2.1[2*2.2[4]] 8 True
    """

    p: float | Tensor
    children: tuple[Node | int, ...]
    n_leaves: int = field(repr=False, compare=False)  #: Number of leaves, n.
    height: int = field(repr=False, compare=False)  #: Largest number of inner nodes above a leaf.
    exponents: tuple[Any, ...] = field(repr=False, compare=False)  #: Of all :meth:`nodes`, as numbers or tensors.
    structure: tuple[Any, ...] = field(repr=False, compare=False)  #: Children as nested tuples of numbers of leaves.
    _groups: list[list[Any]] = field(repr=False, compare=False)  # neighbours of one structure are evaluated together
    _leaves: list[int] = field(repr=False, compare=False)  # number in each group
    _nodes: list[int] = field(repr=False, compare=False)

    def __init__(self, p: float | Tensor, children: int | Node | Sequence[Node | int]) -> None:
        p = p if isinstance(p, Tensor) else float(p)
        if not isinstance(p, Tensor) and not 0 < p < math.inf:
            raise ValueError(f"p must be positive and finite, got {p}")
        items: list[Any] = [*children] if isinstance(children, Sequence) else [children]
        if not items or not all(isinstance(c, Node) or (isinstance(c, Integral) and int(c) > 0) for c in items):
            raise ValueError("children must be Nodes and numbers of leaves, and there must be at least one")
        by_structure = groupby(items, key=lambda child: getattr(child, "structure", None))
        groups = [[int(sum(group))] if form is None else [*group] for form, group in by_structure]  # [1, 1] is [2]
        merged = tuple(child for group in groups for child in group)
        leaves = [sum(getattr(child, "n_leaves", child) for child in group) for group in groups]
        values = {
            "p": p,
            "children": merged,
            "n_leaves": sum(leaves),
            "height": 1 + max(getattr(child, "height", 0) for child in merged),
            "exponents": (p, *(q for child in merged for q in getattr(child, "exponents", ()))),
            "structure": tuple(getattr(child, "structure", child) for child in merged),
            "_groups": groups,
            "_leaves": leaves,
            "_nodes": [sum(len(getattr(child, "exponents", ())) for child in group) for group in groups],
        }
        if sum(leaves) > _MAX_LEAVES:
            raise ValueError(f"a tree has at most {_MAX_LEAVES:,} leaves")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        """Return the text form that :meth:`parse` reads; equal neighbours are counted, as in ``2.1[5*2.2[4]]``."""
        groups = [(child, len(list(group))) for child, group in groupby(map(str, self.children))]
        inside = ", ".join(child if count == 1 else f"{count}*{child}" for child, count in groups)
        p = self.p.tolist() if isinstance(self.p, Tensor) else self.p
        return f"{str(p).removesuffix('.0')}[{inside}]"

    @classmethod
    def parse(cls, text: str) -> Node:
        """Read ``tree = number "[" item {"," item} "]"`` with ``item = [int "*"] (int | tree)``."""
        try:  # the form is a part of Python's syntax
            trees = _parse(ast.parse(f"({text})", mode="eval").body)
        except (SyntaxError, MemoryError, RecursionError):
            trees = []
        if len(trees) != 1 or not isinstance(trees[0], Node):
            raise ValueError(f"{text[:80]!r} is not a tree; write it as in 2.1[1, 3*2.2[4]]")
        return trees[0]

    def nodes(self) -> Iterator[Node]:
        """Iterate over all inner nodes, each before its children."""
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.nodes()

    def with_exponents(self, exponents: Iterable[float | Tensor]) -> Node:
        """Return the same tree with other exponents, in the order of :meth:`nodes`."""
        values = iter(exponents)
        return Node(next(values), [c.with_exponents(values) if isinstance(c, Node) else c for c in self.children])

    @property
    def branches(self) -> list[Node | int]:
        """Children one by one, with a 1 for each leaf below this node itself."""
        return [one for child in self.children for one in ([child] if isinstance(child, Node) else [1] * child)]

    @property
    def sizes(self) -> list[int]:
        """Number of leaves below each of :attr:`branches`."""
        return [child.n_leaves if isinstance(child, Node) else 1 for child in self.branches]

    @property
    def subspaces(self) -> tuple[tuple[int, ...], ...]:
        """Coordinates below each of :attr:`branches` (Eq. 10)."""
        coordinates = iter(range(self.n_leaves))
        return tuple(tuple(islice(coordinates, size)) for size in self.sizes)

    def stacked(self, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """Return all exponents as one tensor ``(nodes, *batch)``; on the CPU where the device lacks the dtype."""
        device = "cpu" if dtype == torch.float64 and torch.device(device).type == "mps" else device
        values = [
            p.to(device, dtype) if isinstance(p, Tensor) else torch.full((), p, dtype=dtype, device=device)
            for p in self.exponents
        ]
        return torch.stack(torch.broadcast_tensors(*values))

    def log_values(self, log_z: Tensor, p: Tensor) -> Tensor:
        """Return logarithms of the children's values ``(children, ...)``.

        ``log_z`` ``(n, ...)`` is :func:`log_magnitude` of z, whose trailing dimensions include the batch shape of the
        exponents p ``(nodes, ...)`` of all inner nodes, which replace the tree's.
        """
        p = p.reshape(len(p), *[1] * (log_z.ndim - p.ndim), *p.shape[1:])
        values = []
        for group, *parts in zip(self._groups, log_z.split(self._leaves), p[1:].split(self._nodes), strict=True):
            alike = (x.unflatten(0, (len(group), -1)).transpose(0, 1) for x in parts)
            values.append(group[0].log_norm(*alike) if isinstance(group[0], Node) else parts[0])
        return torch.cat(values)

    def log_norm(self, log_z: Tensor, p: Tensor) -> Tensor:
        """Return log f ``(...)``; the arguments are those of :meth:`log_values`."""
        values = self.log_values(log_z, p)
        return values[0] if len(values) == 1 else torch.logsumexp(p[0] * values, 0) / p[0]

    def norm(self, z: Tensor) -> Tensor:
        """Return f(z) (Eq. 6, 9); z has shape ``(..., n)``, the result ``(...)``."""
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        p = self.stacked(z.dtype, z.device)
        z = z.expand(*torch.broadcast_shapes(z.shape[:-1], p.shape[1:]), -1)
        return self.log_norm(log_magnitude(z), p).exp()

    def log_surface(self, p: Tensor | None = None) -> Tensor:
        """Return the logarithm of the surface area of f(z) = 1 (Eq. 8), with the batch shape of the exponents.

        ``p`` ``(nodes, ...)`` replaces the tree's exponents, in float64 on the device of the first tensor among them.

        Examples
        --------
        >>> [round(Node(2.0, n).log_surface().exp().item() / math.pi, 6) for n in (2, 3)]  # circle and sphere
        [2.0, 4.0]
        """
        if p is None:
            p = self.stacked(torch.float64, next((q.device for q in self.exponents if isinstance(q, Tensor)), "cpu"))
        total = (1 - len(self.branches)) * p[0].log() - torch.lgamma(self.n_leaves / p[0])
        for group, q in zip(self._groups, p[1:].split(self._nodes), strict=True):
            child = group[0]
            if isinstance(child, Node):
                below = child.log_surface(q.unflatten(0, (len(group), -1)).transpose(0, 1)).sum(0)
                total = total + len(group) * torch.lgamma(child.n_leaves / p[0]) + below
            else:
                total = total + child * (torch.lgamma(1 / p[0]) + math.log(2))
        return total


def _parse(syntax: ast.expr) -> list[Node | int]:
    """Return the children that an item stands for."""
    match syntax:
        case ast.Constant(int(leaves)):
            return [leaves]
        case ast.BinOp(ast.Constant(int(count)), ast.Mult(), item) if count <= _MAX_LEAVES:
            return _parse(item) * count
        case ast.Subscript(ast.Constant(int() | float() as p), inside):
            items = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            return [Node(p, [child for item in items for child in _parse(item)])]
    raise SyntaxError("neither a number of leaves nor a tree")


def log_magnitude(z: Tensor) -> Tensor:
    """Return ``log |z|``, leaves first: ``(n, ...)`` for z ``(..., n)``.

    Up to the smallest normal float the result is -1e4, whose powers vanish in a sum, with a gradient of 0.
    """
    tiny = torch.finfo(z.dtype).tiny
    log_z = threshold(z.abs().clamp(min=tiny).log(), (1 - 1e-6) * math.log(tiny), -1e4)
    if torch.compiler.is_compiling():  # half the time of a transposed copy, whose loops the compiler does not vectorise
        return torch.stack(log_z.unbind(-1))
    return log_z.movedim(-1, 0).contiguous()
