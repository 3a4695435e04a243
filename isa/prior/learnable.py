"""The ISA prior, and priors whose exponents are learned (Sec. 4, "Learning the Exponents")."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
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
    if isinstance(subspaces, (str, int)) or len(subspaces) == 0:
        raise ValueError(f"subspaces = {subspaces!r}; it must be a sequence of ints, the sizes of the subspaces")
    if isinstance(p1, Tensor) and p1.ndim == 1:
        p1 = p1.unbind()
    each = list(p1) if isinstance(p1, (Sequence, np.ndarray)) else [p1] * len(subspaces)
    if len(each) != len(subspaces):
        raise ValueError(f"p1 has {len(each)} exponents; there are {len(subspaces)} subspaces")
    children = [Node(p, size) for p, size in zip(each, subspaces, strict=True)]
    return LpNested(Node(p0, children), scale, validate_args=validate_args)


class StackedPrior(nn.Module):
    """Priors of P models as one module: Lp-nested distributions on trees of one structure, or N(0, I) for trees None.

    ``learned`` exponents, all but the roots', are the softplus of the parameter ``raw``, which keeps them positive.
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
            self.raw = nn.Parameter(_inverse_softplus(exponents[:, 1:]).float())
            self.scale, self.fixed = self.scale.float(), exponents[:, :1].float()

    def exponents(self) -> Tensor:
        """Return the exponents (P, nodes) in the order of :meth:`isa.Node.nodes`."""
        return torch.cat([self.fixed, nn.functional.softplus(self.raw)], 1) if self.learned else self.fixed

    def forward(self) -> Distribution:
        """Return the priors as one distribution of batch shape (P, 1), not validated, since a run may diverge."""
        if self.tree is None:
            normal = Normal(self.zeros, torch.ones_like(self.zeros), validate_args=False)
            return Independent(normal, 1, validate_args=False)
        columns = [column[:, None] for column in self.exponents().unbind(1)]
        return LpNested(self.tree.with_exponents(columns), self.scale, validate_args=False)


class LearnableISAPrior(nn.Module):
    """An ISA prior whose exponents are learned with the networks; calling it returns the prior at their current values.

    The parameters are those of :func:`isa_prior`. The scale is fixed, and so is p0 unless ``learn_p0``.

    Examples
    --------
    >>> module = LearnableISAPrior((4, 4, 4))
    >>> module.p1
    tensor([2., 2., 2.], grad_fn=<SoftplusBackward0>)
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
        if scale == "unit":
            raise ValueError("scale = 'unit'; no single s keeps unit variance while exponents are learned")
        exponents = torch.tensor(isa_prior(subspaces, p0, p1, scale).tree.exponents, dtype=torch.float64)
        self.subspaces, self.scale = tuple(subspaces), float(scale)
        raw = _inverse_softplus(exponents).to(torch.get_default_dtype())
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


def _inverse_softplus(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))
