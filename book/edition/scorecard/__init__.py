"""Every claim of the paper with measurements and a verdict, which is derived by rule and never typed.

::

    card = scorecard("book/claims.yaml", "runs")
    card.summary()                       # {"reproduced": 17, "partly reproduced": 6, ...}
    card.sections["The prior"][0].verdict

**A claim** is data: what the paper says and where, in this edition's words; the values that it prints; the page
that treats it; and the name of a measure (:mod:`edition.scorecard.register`), with its arguments.

**A verdict** follows from the findings by the rules of :mod:`edition.scorecard.rules`, and from nothing else. Evidence
at reduced scale or on stand-in images never makes a claim *reproduced*.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from edition.scorecard import measures
from edition.scorecard.evidence import Evidence, Missing
from edition.scorecard.register import MEASURES
from edition.scorecard.rules import Finding, Verdict, verdict

__all__ = ["Claim", "Row", "Scorecard", "Verdict", "measures", "read_claims", "scorecard"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that the paper says, and how it is put to the test."""

    key: str
    section: str
    where: str
    """Place in the paper."""
    says: str
    """The claim, with the printed values."""
    measure: str
    """A key of :data:`edition.scorecard.register.MEASURES`."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the measure: printed values, methods, settings."""
    page: str | None = None
    """The page of the book that treats it, relative to ``book/``, without suffix."""
    understood: str | None = None
    """Its interpretation here, where its words leave a choice."""


@dataclass(frozen=True)
class Row:
    """A claim with a finding for each of its readings that there is evidence for, and the verdict."""

    claim: Claim
    findings: tuple[Finding, ...]
    missing: Missing | None = None
    """Runs at the paper's settings that bear on it; None for a claim that needs no trained model."""

    @property
    def verdict(self) -> Verdict:
        """The verdict that follows from the findings."""
        return verdict(self.findings)

    @property
    def verdict_text(self) -> str:
        """The verdict with what its evidence falls short in."""
        short = {finding.falls_short for finding in self.findings}
        return str(self.verdict) if "" in short or not short else f"{'; '.join(sorted(short))}: {self.verdict}"


@dataclass(frozen=True)
class Scorecard:
    """All rows, in the order of the claims."""

    rows: tuple[Row, ...]

    @property
    def sections(self) -> dict[str, list[Row]]:
        """Rows by section."""
        sections: dict[str, list[Row]] = {}
        for row in self.rows:
            sections.setdefault(row.claim.section, []).append(row)
        return sections

    def summary(self) -> dict[str, int]:
        """Return the number of claims with each verdict, all verdicts in their order."""
        return {str(name): sum(row.verdict is name for row in self.rows) for name in Verdict}

    def sentence(self) -> str:
        """Return the summary in words: ``Of 50 claims, 17 are reproduced, 6 partly reproduced and 27 not yet run.``"""
        parts, been = [], False
        for name, count in self.summary().items():
            if count and name.startswith("points"):
                parts.append(f"{count} {name if count == 1 else name.replace('points', 'point')}")
                been = False
            elif count:
                parts.append(f"{count} {'' if been else 'is ' if count == 1 else 'are '}{name}")
                been = True
        return f"Of {len(self.rows)} claims, {' and '.join(filter(None, (', '.join(parts[:-1]), parts[-1])))}."


def read_claims(path: str | os.PathLike[str]) -> list[Claim]:
    """Read claims from a YAML file: a list of sections, each with a title and a list of claims.

    Arguments of a claim's measure may stand in its text: ``{mig:.2f}``. A ValueError names the claim and what is wrong.
    """
    claims = []
    for section in yaml.safe_load(Path(path).read_text(encoding="utf-8")):
        for values in section["claims"]:
            given = values.get("given", {})
            try:
                if values["measure"] not in MEASURES:
                    raise KeyError(values["measure"])
                texts = {
                    key: " ".join(values[key].format(**given).split()) for key in {"says", "understood"} & set(values)
                }
                claims.append(Claim(section=section["section"], **values | texts))
            except (KeyError, TypeError, IndexError) as error:
                raise ValueError(f"{path}: {values.get('key')}: {error}") from None
    return claims


def scorecard(claims: str | os.PathLike[str], runs: str | os.PathLike[str]) -> Scorecard:
    """Measure and judge the claims of a file by the records and specifications in the folder ``runs``."""
    evidence, rows = Evidence(Path(runs)), []
    for claim in read_claims(claims):
        evidence.asked.clear()
        findings = MEASURES[claim.measure](evidence, **claim.given)
        rows.append(Row(claim, tuple(findings), evidence.missing()))
    return Scorecard(tuple(rows))
