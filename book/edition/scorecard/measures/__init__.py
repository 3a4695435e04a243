"""Measures of each claim, by subject. Each module enters its own into :data:`edition.scorecard.evidence.MEASURES`."""

from edition.scorecard.measures import models, prior, records, toys

__all__ = ["models", "prior", "records", "toys"]
