"""Findings of single claims, for pages that answer the same question as a card."""

from __future__ import annotations

import os
from pathlib import Path

from edition.scorecard import read_claims
from edition.scorecard.evidence import Evidence
from edition.scorecard.register import MEASURES
from edition.scorecard.rules import Finding

__all__ = ["findings", "said"]


def findings(claims: str | os.PathLike[str], runs: str | os.PathLike[str], key: str) -> list[Finding]:
    """Return the findings of the claim with this key in a file of claims, from the records in the folder ``runs``."""
    (claim,) = [claim for claim in read_claims(claims) if claim.key == key]
    return MEASURES[claim.measure](Evidence(Path(runs)), **claim.given)


def said(found: list[Finding]) -> str:
    """Return findings as text, each with its reading and outcome."""
    return "; ".join(f"{one.reading + ': ' if one.reading else ''}{one.text} ({one.outcome.value})" for one in found)
