"""Trees of exponents: Lp-nested functions (Eq. 6 and 9), their text form and their surface (Eq. 8)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from numbers import Integral

import torch
from torch import Tensor
from torch.nn.functional import threshold

__all__ = ["Node", "log_magnitude", "positive"]

_OPEN = r"((?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)\s*\["
_ITEM = rf"(?:(\d{{1,5}})\s*\*\s*)?(?:{_OPEN}|(\d{{1,5}}))"


@dataclass(frozen=True, init=False)
class Node:
    """An inner node of an Lp-nested function: the p-norm of its children's values.

    The value of a leaf is ``|z_j|``; leaves take the coordinates of z in order.

    Parameters
    ----------
    p : float or Tensor
        Exponent, from 1e-300 to 1e300. A tensor may require a gradient and may have a batch shape.
    children : int, Node or sequence of both
        An int k stands for k leaves. Eq. 6 of the paper is ``Node(p0, [1, Node(p1, [2])])``.

    Notes
    -----
    Nodes are immutable. ``exponents`` are those of all :meth:`nodes`; ``structure`` is the children as nested tuples of
    numbers of leaves.

    Examples
    --------
    >>> tree = Node(2.1, [Node(2.2, 4), Node(2.2, 4)])
    >>> print(tree, tree.n_leaves, tree == Node.parse("2.1[2*2.2[4]]"))
    2.1[2*2.2[4]] 8 True
    """

    p: float | Tensor
    children: tuple[Node | int, ...]

    def __init__(self, p: float | Tensor, children: int | Node | Sequence[Node | int]) -> None:
        p = p if isinstance(p, Tensor) else positive("p", p)
        children = [children] if isinstance(children, (Integral, Node)) else list(children)
        if not children or not all(isinstance(c, Node) or (isinstance(c, Integral) and c > 0) for c in children):
            raise ValueError("children must be Nodes and numbers of leaves, and there must be at least one")
        merged: list[Node | int] = []
        runs: list[tuple[Node | None, int, int, int]] = []  # neighbours of one structure: one, number, leaves, nodes
        for structure, group in groupby(children, key=lambda c: c.structure if isinstance(c, Node) else None):
            alike = list(group)
            if structure is None:  # [1, 1] and [2] are the same two leaves
                alike = [int(sum(alike))]
                runs.append((None, alike[0], alike[0], 0))
            else:
                one, count = alike[0], len(alike)
                runs.append((one, count, count * one.n_leaves, count * len(one.exponents)))
            merged += alike
        nodes = [child for child in merged if isinstance(child, Node)]
        values = {
            "p": p,
            "children": tuple(merged),
            "n_leaves": sum(leaves for _, _, leaves, _ in runs),
            "height": 1 + max([0, *(child.height for child in nodes)]),
            "exponents": (p, *(q for child in nodes for q in child.exponents)),
            "structure": tuple(child.structure if isinstance(child, Node) else child for child in merged),
            "_runs": tuple(runs),
        }
        if values["n_leaves"] > 10_000 or values["height"] > 50:
            raise ValueError("a tree has at most 10,000 leaves and 50 levels")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __str__(self) -> str:
        """Return the text form that :meth:`parse` reads; equal neighbours are counted, as in ``2.1[5*2.2[4]]``."""
        runs = [(child, len(list(run))) for child, run in groupby(map(str, self.children))]
        inside = ", ".join(child if count == 1 else f"{count}*{child}" for child, count in runs)
        if isinstance(self.p, Tensor) and self.p.numel() != 1:
            return f"<{'x'.join(map(str, self.p.shape))} exponents>[{inside}]"
        return f"{repr(float(self.p)).removesuffix('.0')}[{inside}]"

    @classmethod
    def parse(cls, text: str) -> Node:
        """Read ``tree = number "[" item {"," item} "]"`` with ``item = [int "*"] (int | tree)``.

        A ValueError names the position of a mistake in the text, and what was expected there.

        Examples
        --------
        >>> Node.parse("2[1, 1.5[2]]")
        Node(p=2.0, children=(1, Node(p=1.5, children=(2,))))
        """
        at = 0

        def take(pattern: str, expected: str) -> tuple[str | None, ...]:
            nonlocal at
            found = re.compile(rf"\s*{pattern}\s*", re.ASCII).match(text, at)
            if found is None:
                raise ValueError(f"tree {text[:80]!r}: expected {expected} at position {at}")
            at = found.end()
            return found.groups()

        (p,) = take(_OPEN, "an exponent and '['")
        stack: list[tuple[int, float, list[Node | int]]] = [(1, float(p), [])]  # open nodes, with their multiplicity
        while stack:
            count, p, leaves = take(_ITEM, "a number of leaves, or a node")
            if p:
                stack.append((int(count or 1), float(p), []))
                continue
            stack[-1][2].extend([int(leaves)] * int(count or 1))
            while stack and take(r"([],])", "',' or ']'") == ("]",):
                count, p, children = stack.pop()
                tree = cls(p, children)
                if stack:
                    stack[-1][2].extend([tree] * count)
        take("$", "the end")
        return tree

    def nodes(self) -> Iterator[Node]:
        """Iterate over all inner nodes, each before its children."""
        yield self
        for child in self.children:
            if isinstance(child, Node):
                yield from child.nodes()

    def with_exponents(self, exponents: Sequence[float | Tensor]) -> Node:
        """Return the same tree with other exponents, in the order of :meth:`nodes`."""
        values = iter(exponents)

        def rebuild(node: Node) -> Node:
            return Node(next(values), [rebuild(c) if isinstance(c, Node) else c for c in node.children])

        return rebuild(self)

    @property
    def branches(self) -> list[Node | int]:
        """Children one by one: Nodes, and a 1 for each leaf below this node itself."""
        return [one for child in self.children for one in ([child] if isinstance(child, Node) else [1] * child)]

    @property
    def sizes(self) -> list[int]:
        """Number of leaves below each of :attr:`branches`."""
        return [child.n_leaves if isinstance(child, Node) else 1 for child in self.branches]

    @property
    def subspaces(self) -> tuple[tuple[int, ...], ...]:
        """Coordinates below each of :attr:`branches` (Eq. 10)."""
        coordinates = iter(range(self.n_leaves))
        return tuple(tuple(next(coordinates) for _ in range(size)) for size in self.sizes)

    def stacked(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return all exponents as one tensor ``(*batch, nodes)``; on the CPU where the device lacks the dtype."""
        device = "cpu" if dtype == torch.float64 and torch.device(device).type == "mps" else device
        values = [
            p.to(device, dtype) if isinstance(p, Tensor) else torch.full((), p, dtype=dtype, device=device)
            for p in self.exponents
        ]
        return torch.stack(torch.broadcast_tensors(*values), -1)

    def log_values(self, log_z: Tensor, p: Tensor) -> Tensor:
        """Return logarithms of the children's values ``(..., children)``.

        Parameters
        ----------
        log_z : Tensor
            ``log |z|``, ``(..., n)``, whose leading dimensions include the batch shape of the exponents.
        p : Tensor
            Exponents of all inner nodes ``(..., nodes)``, in place of the tree's.
        """
        values = []
        _, _, leaves, nodes = zip(*self._runs, strict=True)
        for run, z, q in zip(self._runs, log_z.split(leaves, -1), p[..., 1:].split(nodes, -1), strict=True):
            child, alike = run[0], (run[1], -1)
            values.append(z if child is None else child.log_norm(z.unflatten(-1, alike), q.unflatten(-1, alike)))
        return values[0] if len(values) == 1 else torch.cat(values, -1)

    def log_norm(self, log_z: Tensor, p: Tensor) -> Tensor:
        """Return log f ``(...)``; the arguments are those of :meth:`log_values`."""
        values = self.log_values(log_z, p)
        if values.shape[-1] == 1:
            return values[..., 0]
        # written out for every child: a product that broadcasts along the last dimension is slow on the CPU
        each = p[..., :1].expand(*p.shape[:-1], values.shape[-1]).contiguous()
        return _log_sum_exp(each * values) / p[..., 0]

    def norm(self, z: Tensor) -> Tensor:
        """Return f(z) (Eq. 6, 9); z has shape ``(..., n)``, the result ``(...)``."""
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        p = self.stacked(z.dtype, z.device)
        z = z.expand(*torch.broadcast_shapes(z.shape[:-1], p.shape[:-1]), self.n_leaves)
        return self.log_norm(log_magnitude(z), p).exp()

    def log_surface(self, p: Tensor | None = None) -> Tensor:
        """Return the logarithm of the surface area of f(z) = 1 (Eq. 8), with the batch shape of the exponents.

        ``p`` ``(..., nodes)`` replaces the tree's exponents, in float64 on the device of the first tensor among them.

        Examples
        --------
        >>> [round(Node(2.0, n).log_surface().exp().item() / math.pi, 6) for n in (2, 3)]  # circle and sphere
        [2.0, 4.0]
        """
        if p is None:
            p = self.stacked(torch.float64, next((q.device for q in self.exponents if isinstance(q, Tensor)), "cpu"))
        return self._log_orthant(p) + self.n_leaves * math.log(2)

    def _log_orthant(self, p: Tensor) -> Tensor:
        """Return the logarithm of the surface area in one orthant."""
        p0, below = p[..., 0], p[..., 1:].split([nodes for _, _, _, nodes in self._runs], -1)
        total = (1 - len(self.branches)) * p0.log() - torch.lgamma(self.n_leaves / p0)
        for (child, count, leaves, _), q in zip(self._runs, below, strict=True):
            total = total + count * torch.lgamma(leaves // count / p0)
            if child is not None:
                total = total + child._log_orthant(q.unflatten(-1, (count, -1))).sum(-1)
        return total


def _log_sum_exp(x: Tensor) -> Tensor:
    """Return the logarithm of the sum of exponentials over the last dimension."""
    if not torch.compiler.is_compiling() or x.shape[-1] > 8:
        return torch.logsumexp(x, -1)
    parts = x.unbind(-1)  # the compiler's own reductions over so few entries are slow
    finite = torch.finfo(x.dtype)
    top = reduce(torch.maximum, parts).detach().clamp(finite.min, finite.max)
    return sum((part - top).exp() for part in parts).log() + top


def log_magnitude(z: Tensor) -> Tensor:
    """Return ``log |z|``; up to the smallest normal float, -1e4 with a gradient of 0, whose powers vanish in a sum."""
    tiny = torch.finfo(z.dtype).tiny
    return threshold(z.abs().clamp(min=tiny).log(), (1 - 1e-6) * math.log(tiny), -1e4)


def positive(name: str, value: float) -> float:
    """Return a number as a float, or raise a ValueError."""
    if not 1e-300 <= (value if isinstance(value, int) else float(value)) <= 1e300:
        raise ValueError(f"{name} = {value!r}; it must be positive and finite, from 1e-300 to 1e300")
    return float(value)
