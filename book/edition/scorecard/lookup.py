"""Findings of single claims of the book, for pages that answer the same question as a card."""

from __future__ import annotations

from edition.page import ROOT
from edition.scorecard import read_claims
from edition.scorecard.evidence import Evidence
from edition.scorecard.register import MEASURES
from edition.scorecard.rules import Finding

__all__ = ["findings"]


def findings(key: str) -> list[Finding]:
    """Return the findings of the claim with this key in ``book/claims.yaml``, from the book's records."""
    (claim,) = [claim for claim in read_claims(ROOT / "book/claims.yaml") if claim.key == key]
    return MEASURES[claim.measure](Evidence(ROOT / "runs"), **claim.given)
