"""Toy models of Appendix B, in numpy: what variational inference does to factor analysis and to ICA."""

from isa.toys import factor_analysis, ica

__all__ = ["factor_analysis", "ica"]
