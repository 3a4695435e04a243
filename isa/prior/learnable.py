"""The ISA prior, and priors whose exponents are learned (Sec. 4, "Learning the Exponents")."""

from __future__ import annotations

from collections.abc import Sequence

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
    validate_args: bool | None = None,
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
    several = isinstance(p1, Sequence) or getattr(p1, "ndim", 0) == 1
    each = list(p1) if several else [p1] * len(subspaces)
    if len(each) != len(subspaces):
        raise ValueError(f"p1 has {len(each)} exponents; there are {len(subspaces)} subspaces")
    return LpNested(Node(p0, list(map(Node, each, subspaces))), scale, validate_args=validate_args)


class StackedPrior(nn.Module):
    """Priors of P models as one module: Lp-nested distributions on trees of one structure, or N(0, I) for trees None.

    ``learned`` exponents, all but the roots' unless ``learn_root``, are the softplus of the parameter ``raw``, which
    keeps them positive.
    """

    def __init__(
        self,
        trees: Sequence[Node | None],
        scales: Sequence[float | str | None],
        latent_dim: int,
        learned: bool,
        learn_root: bool = False,
    ) -> None:
        super().__init__()
        self.tree, self.learned = trees[0], learned
        if self.tree is None:
            self.register_buffer("zeros", torch.zeros(latent_dim), persistent=False)
            return
        self.tree = trees[0].with_exponents([1.0] * len(trees[0].exponents))  # one structure, one compiled version
        exponents = torch.tensor([tree.exponents for tree in trees], dtype=torch.float64)
        scale = torch.stack([LpNested(tree, one).scale.double() for tree, one in zip(trees, scales, strict=True)])
        if learned:
            first = 0 if learn_root else 1
            self.raw = nn.Parameter(_inverse_softplus(exponents[:, first:]).float())
            scale, exponents = scale.float(), exponents[:, :first].float()
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
    """An ISA prior whose exponents are learned with the networks; calling it returns the prior at their current values.

    The parameters are those of :func:`isa_prior`. The scale is fixed, and so is p0 unless ``learn_p0``.

    Examples
    --------
    >>> module = LearnableISAPrior((4, 4, 4))
    >>> module.p1
    tensor([2., 2., 2.], grad_fn=<SliceBackward0>)
    """

    def __init__(
        self,
        subspaces: Sequence[int] = (4, 4, 4, 4, 4),
        p0: float = 2.1,
        p1: float | Sequence[float] = 2.0,
        scale: float = 1.0,
        learn_p0: bool = False,
    ) -> None:
        if scale == "unit":
            raise ValueError("scale = 'unit'; no single s keeps unit variance while exponents are learned")
        tree = isa_prior(subspaces, p0, p1).tree
        super().__init__([tree], [scale], tree.n_leaves, learned=True, learn_root=learn_p0)

    @property
    def p0(self) -> Tensor:
        return self.exponents()[0, 0]

    @property
    def p1(self) -> Tensor:
        return self.exponents()[0, 1:]

    def forward(self) -> LpNested:
        """Return the prior at the current exponents."""
        return LpNested(self.tree.with_exponents(self.exponents()[0].unbind()), self.scale[0, 0], validate_args=False)


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))
