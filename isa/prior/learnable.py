"""The ISA prior, and priors whose exponents are learned (Sec. 4, "Learning the Exponents")."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from isa.prior.lpnested import LpNested
from isa.prior.tree import Node

__all__ = ["LearnableISAPrior", "StackedPrior", "isa_prior"]


def isa_prior(
    subspaces: Sequence[int] = (4, 4, 4, 4, 4),
    p0: float | Tensor = 2.1,
    p1: float | Tensor | Sequence[float | Tensor] = 2.2,
    scale: float | Tensor | str = 1.0,
) -> LpNested:
    """Return the prior of ISA-VAE: independent subspaces, each of them Lp-nested (Eq. 7 with Eq. 9 and 11).

    Parameters
    ----------
    subspaces : sequence of int
        Number of coordinates of each subspace. The default is that of Fig. 5.
    p0 : float or Tensor
        Exponent of the root.
    p1 : float, Tensor or sequence
        Exponent within the subspaces: one for all, or one for each (a sequence, or a tensor of one dimension).
    scale : float, Tensor or "unit"
        s of Eq. 11. The authors' code uses 1, which gives a coordinate half the variance of N(0, 1).

    Examples
    --------
    >>> print(isa_prior((4, 4), p0=2.1, p1=[1.9, 2.2]).tree)
    2.1[1.9[4], 2.2[4]]
    """
    exponents: Any = p1 if isinstance(p1, Sequence) or getattr(p1, "ndim", 0) == 1 else [p1] * len(subspaces)
    return LpNested(Node(p0, [Node(p, k) for p, k in zip(exponents, subspaces, strict=True)]), scale)


class StackedPrior(nn.Module):
    """Priors of P models as one module: Lp-nested distributions on trees of one structure, or N(0, I) for trees None.

    ``learned`` exponents, all but the roots', are the softplus of the parameter ``raw``, which keeps them positive.
    """

    raw: nn.Parameter
    fixed: Tensor  # exponents that are not learned, (P, nodes), or (P, 1)
    scale: Tensor  # (P, 1)
    zeros: Tensor  # (D,), mean of the normal prior

    def __init__(
        self, trees: Sequence[Node | None], scales: Sequence[float | str | None], latent_dim: int, learned: bool
    ) -> None:
        super().__init__()
        self.learned = learned
        self.tree = trees[0] and trees[0].with_exponents([1.0] * len(trees[0].exponents))  # compiled once
        if self.tree is None:
            self.register_buffer("zeros", torch.zeros(latent_dim), persistent=False)
            return
        exponents = torch.tensor([tree.exponents for tree in trees if tree], dtype=torch.float64)
        priors = [LpNested(tree, s) for tree, s in zip(trees, scales, strict=True) if tree and s]
        scale = torch.stack([prior.scale for prior in priors])
        if learned:
            inner = exponents[:, 1:]
            self.raw = nn.Parameter((inner + torch.log(-torch.expm1(-inner))).float())  # the inverse of softplus
            scale, exponents = scale.float(), exponents[:, :1].float()
        self.register_buffer("scale", scale[:, None], persistent=False)
        self.register_buffer("fixed", exponents, persistent=False)

    def exponents(self) -> Tensor:
        """Return the exponents (P, nodes) in the order of :meth:`isa.Node.nodes`."""
        return torch.cat([self.fixed, nn.functional.softplus(self.raw)], 1) if self.learned else self.fixed

    def forward(self) -> Distribution:
        """Return the priors as one distribution of batch shape (P, 1), not validated, since a run may diverge."""
        if self.tree is None:
            normal = Normal(self.zeros, torch.ones_like(self.zeros), validate_args=False)
            return Independent(normal, 1, validate_args=False)
        columns = self.exponents()[:, None].unbind(-1)
        return LpNested(self.tree.with_exponents(columns), self.scale, validate_args=False)


class LearnableISAPrior(StackedPrior):
    """An ISA prior whose exponents p1 are learned with the networks; p0 and the scale are fixed.

    The parameters are those of :func:`isa_prior`. Calling the module returns the prior at the current exponents.

    Examples
    --------
    >>> module = LearnableISAPrior((4, 4, 4))
    >>> module.p1
    tensor([2., 2., 2.], grad_fn=<SliceBackward0>)
    """

    tree: Node

    def __init__(
        self, subspaces: Sequence[int] = (4,) * 5, p0: float = 2.1, p1: float | Sequence[float] = 2.0, scale: float = 1
    ) -> None:
        tree = isa_prior(subspaces, p0, p1).tree
        super().__init__([tree], [scale], tree.n_leaves, learned=True)

    @property
    def p1(self) -> Tensor:
        """Exponents of the subspaces."""
        return self.exponents()[0, 1:]

    def forward(self) -> LpNested:
        """Return the prior at the current exponents."""
        return LpNested(self.tree.with_exponents(self.exponents()[0].unbind()), self.scale[0, 0], validate_args=False)
