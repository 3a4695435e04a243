"""Toy models of appendix B, in numpy: variational inference in factor analysis and in ICA."""

from isa.toys import factor_analysis, ica

__all__ = ["factor_analysis", "ica"]
