"""The reference edition of ISA-VAE as a module: the Lp-nested prior, the models, the mutual information gap.

Reference: Stühmer, Turner and Nowozin (2019), "Independent Subspace Analysis for Unsupervised Learning of Disentangled
Representations", arXiv:1909.05063. Equation numbers in docstrings are the paper's.
"""

from isa.prior import LearnableISAPrior, LpNested, Node, isa_prior

__all__ = ["LearnableISAPrior", "LpNested", "Node", "isa_prior"]
__version__ = "0.1.0"
