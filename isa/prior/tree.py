"""Trees of exponents: Lp-nested functions (Eq. 6 and 9), their text form and their surface (Eq. 8)."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import groupby
from numbers import Integral, Real

import torch
from torch import Tensor
from torch.nn.functional import threshold

__all__ = ["Node", "log_magnitude"]

_MOST_LEAVES = 10_000
_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"


@dataclass(frozen=True, init=False, eq=False, repr=False)
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
    Nodes are immutable. They compare by structure and exponents, and tensor exponents by identity.

    Examples
    --------
    >>> tree = Node(2.1, [Node(2.2, 4), Node(2.2, 4)])
    >>> print(tree, tree.n_leaves, tree == Node.parse("2.1[2*2.2[4]]"))
    2.1[2*2.2[4]] 8 True
    """

    p: float | Tensor
    children: tuple[Node | int, ...]

    def __init__(self, p: float | Tensor, children: int | Node | Sequence[Node | int]) -> None:
        if not isinstance(p, (Real, Tensor)) or isinstance(p, bool):
            raise TypeError(f"p = {p!r}; an exponent must be a number or a tensor")
        if isinstance(p, Tensor) and not p.is_floating_point():
            raise TypeError(f"p has dtype {p.dtype}; a tensor exponent must be floating-point")
        if not isinstance(p, Tensor) and not 1e-300 <= (p if isinstance(p, int) else float(p)) <= 1e300:
            raise ValueError(f"p = {p}; an exponent must be positive and finite, from 1e-300 to 1e300")
        listed = [children] if isinstance(children, (Integral, Node)) else children
        kinds = set(map(type, listed)) if isinstance(listed, Sequence) else {object}
        if bool in kinds or not all(issubclass(kind, (Integral, Node)) for kind in kinds):
            raise TypeError(f"children = {children!r}; they must be Nodes and ints, an int being a number of leaves")
        if not listed or any(x < 1 for x in listed if not isinstance(x, Node)):
            raise ValueError("children must hold at least one leaf, and every int must be at least 1")
        merged: list[Node | int] = []
        runs: list[list] = []  # children alike in structure, which are evaluated together: one, count, leaves, nodes
        for child in listed:
            if isinstance(child, Node):
                merged.append(child)
                if runs and runs[-1][0] is not None and runs[-1][0].structure == child.structure:
                    runs[-1][1] += 1
                else:
                    runs.append([child, 1, child.n_leaves, len(child.exponents)])
            elif merged and isinstance(merged[-1], int):  # [1, 1] and [2] are the same two leaves
                merged[-1] += int(child)
                runs[-1][1] += int(child)
            else:
                merged.append(int(child))
                runs.append([None, int(child), 1, 0])
        nodes = [child for child in merged if isinstance(child, Node)]
        p = p if isinstance(p, Tensor) else float(p)
        values = {
            "p": p,
            "children": tuple(merged),
            "n_leaves": sum(count * leaves for _, count, leaves, _ in runs),
            "height": 1 + max([0] + [child.height for child in nodes]),
            "exponents": (p, *(q for child in nodes for q in child.exponents)),
            "structure": tuple(child.structure if isinstance(child, Node) else child for child in merged),
            "_runs": tuple(map(tuple, runs)),
        }
        if values["n_leaves"] > _MOST_LEAVES:
            raise ValueError(f"a tree has at most {_MOST_LEAVES:,} leaves")
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _key(self) -> tuple:
        return self.structure, tuple(p if isinstance(p, float) else (id(p),) for p in self.exponents)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"Node({self.p!r}, {list(self.children)!r})"

    def __str__(self) -> str:
        """Return the text form that :meth:`parse` reads; equal neighbours are counted, as in ``2.1[5*2.2[4]]``."""
        runs = [(child, len(list(run))) for child, run in groupby(self.children)]
        inside = ", ".join(str(child) if count == 1 else f"{count}*{child}" for child, count in runs)
        if isinstance(self.p, Tensor) and self.p.numel() != 1:
            return f"<{'x'.join(map(str, self.p.shape))} exponents>[{inside}]"
        p = float(self.p)
        return f"{int(p) if p.is_integer() and abs(p) < 1e15 else p!r}[{inside}]"

    @classmethod
    def parse(cls, text: str) -> Node:
        """Read ``tree = number "[" item {"," item} "]"`` with ``item = [int "*"] (int | tree)``.

        A ValueError names the position of a mistake in the text, and what was expected there.

        Examples
        --------
        >>> Node.parse("2[1, 1.5[2]]")
        Node(2.0, [1, Node(1.5, [2])])
        """
        at = 0

        def take(pattern: str, expected: str | None = None) -> str | None:
            nonlocal at
            found = re.compile(rf"\s*({pattern})", re.ASCII).match(text, at)
            if found is None and expected:
                at += len(text[at:]) - len(text[at:].lstrip())
                raise ValueError(
                    f"tree {text if len(text) < 80 else text[:77] + '...'!r}: expected {expected} at position {at}"
                )
            at = found.end() if found else at
            return found and found[1]

        def node(depth: int, expected: str) -> Node:
            p = take(_NUMBER if depth < 64 else "$.", expected if depth < 64 else "at most 64 levels")
            take(r"\[", "'[' after an exponent")
            children: list[Node | int] = []
            while True:
                count = int((take(r"\d{1,5}\s*\*") or "1").rstrip(" *\t\n"))
                leaves = take(r"\d{1,5}(?![\d.eE]|\s*[\[*])")
                children += [int(leaves) if leaves else node(depth + 1, "a number of leaves, or a node")] * count
                if take(r"[],]", "',' or ']'") == "]":
                    return cls(float(p), children)

        tree = node(0, "an exponent")
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
        if len(exponents) != len(self.exponents):
            raise ValueError(f"exponents has {len(exponents)} entries; this tree has {len(self.exponents)} inner nodes")
        values = iter(exponents)

        def rebuild(node: Node) -> Node:
            p = next(values)
            return Node(p, [rebuild(child) if isinstance(child, Node) else child for child in node.children])

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

    def _split(self, x: Tensor, kind: int) -> list[Tensor]:
        """Return what lies below each run of children: ``(..., count, leaves)`` for kind 2, nodes for kind 3."""
        parts = x.split([run[1] * run[kind] for run in self._runs], -1)
        return [part.unflatten(-1, (run[1], run[kind])) for part, run in zip(parts, self._runs, strict=True)]

    def log_values(self, log_z: Tensor, p: Tensor) -> Tensor:
        """Return logarithms of the children's values ``(..., children)``.

        Parameters
        ----------
        log_z : Tensor
            ``log |z|``, ``(..., n)``, whose leading dimensions include the batch shape of the exponents.
        p : Tensor
            Exponents of all inner nodes ``(..., nodes)``, in place of the tree's.
        """
        runs = zip(self._runs, self._split(log_z, 2), self._split(p[..., 1:], 3), strict=True)
        values = [z[..., 0] if run[0] is None else run[0].log_norm(z, q) for run, z, q in runs]
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
        p, log_z = self.stacked(z.dtype, z.device), log_magnitude(z)
        return self.log_norm(log_z.expand(*torch.broadcast_shapes(z.shape[:-1], p.shape[:-1]), -1), p).exp()

    def log_surface(self, radius: float = 1.0, p: Tensor | None = None) -> Tensor:
        """Return the logarithm of the surface area of the Lp-nested sphere (Eq. 8), in float64.

        ``p`` ``(..., nodes)`` replaces the tree's exponents. The result has their batch shape and their gradients.

        Examples
        --------
        >>> [round(Node(2.0, n).log_surface().exp().item() / math.pi, 6) for n in (2, 3)]  # circle and sphere
        [2.0, 4.0]
        """
        if p is None:
            devices = [q.device for q in self.exponents if isinstance(q, Tensor)]
            p = self.stacked(torch.float64, max(devices, key=lambda device: device.type != "cpu", default="cpu"))
        return self._log_shares(p) + self.n_leaves * math.log(2) + (self.n_leaves - 1) * math.log(radius)

    def _log_shares(self, p: Tensor) -> Tensor:
        p0, sizes = p[..., 0], Counter(self.sizes)
        total = (1 - sizes.total()) * p0.log() - torch.lgamma(self.n_leaves / p0)
        for size, count in sizes.items():
            total = total + count * torch.lgamma(size / p0)
        for (child, *_), q in zip(self._runs, self._split(p[..., 1:], 3), strict=True):
            if child is not None:
                total = total + child._log_shares(q).sum(-1)
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
