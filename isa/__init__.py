"""The reference edition of ISA-VAE as a module: the Lp-nested prior, the models, the mutual information gap.

Reference: Stühmer, Turner and Nowozin (2019), "Independent Subspace Analysis for Unsupervised Learning of Disentangled
Representations", arXiv:1909.05063. Equation numbers in docstrings are the paper's.
"""

from isa import mig
from isa.data import load
from isa.engine import train
from isa.models import build
from isa.prior import LearnableISAPrior, LpNested, Node, isa_prior
from isa.run import Run

__all__ = ["LearnableISAPrior", "LpNested", "Node", "Run", "build", "isa_prior", "load", "mig", "train"]
__version__ = "0.1.0"
