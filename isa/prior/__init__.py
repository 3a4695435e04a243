"""The Lp-nested prior (Sec. 3 of the paper): trees of exponents, the distribution, its fit and its learned form."""

from isa.prior.learnable import LearnableISAPrior, StackedPrior, isa_prior
from isa.prior.lpnested import Fit, LpNested, kl_monte_carlo
from isa.prior.tree import Node

__all__ = ["Fit", "LearnableISAPrior", "LpNested", "Node", "StackedPrior", "isa_prior", "kl_monte_carlo"]
