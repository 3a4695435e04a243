"""Measures of each claim: functions from evidence to findings, by subject.

Each takes :class:`~edition.scorecard.evidence.Evidence` and what the claim gives it: printed values, methods, betas,
the settings of a computation. It returns a finding for every reading of the claim that there is evidence for.
"""

from edition.scorecard.measures import prior, records, toys
from edition.scorecard.register import MEASURES

__all__ = ["MEASURES", "prior", "records", "toys"]
