"""Every claim of the paper with measurements and a verdict, which is derived by rule and never typed.

::

    card = scorecard("book/claims.yaml", "runs")
    card.summary()                       # {"reproduced": 17, "partly reproduced": 6, ...}
    card.sections["The prior"][0].verdict

**A claim** is data: what the paper says and where, in this edition's words; the values that it prints; the page
that treats it; and the name of the measure (:mod:`edition.scorecard.measures`), with its arguments.

**A verdict** follows from the findings by the rules of :mod:`edition.scorecard.rules`, and from nothing else. Evidence
at reduced scale or on stand-in images never makes a claim *reproduced*.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from edition.scorecard.evidence import Evidence, Missing
from edition.scorecard.measures import MEASURES
from edition.scorecard.rules import RULES, VERDICTS, Finding, Outcome, Verdict, verdict

__all__ = [
    "MEASURES",
    "RULES",
    "VERDICTS",
    "Claim",
    "Evidence",
    "Finding",
    "Outcome",
    "Row",
    "Scorecard",
    "Verdict",
    "read_claims",
    "scorecard",
    "verdict",
]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that the paper says, and how it is put to the test."""

    key: str
    section: str
    where: str
    """Where the paper says it."""
    says: str
    """What it says, with the printed values."""
    measure: str
    """A key of :data:`MEASURES`."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the measure: printed values, methods, settings."""
    page: str | None = None
    """The page of the book that treats it, relative to ``book/``, without suffix."""
    understood: str | None = None
    """How it is read here, where its words leave a choice."""

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules by which it is judged, keys of :data:`RULES`."""
        return MEASURES[self.measure][1]


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
        short = sorted({finding.falls_short for finding in self.findings if finding.falls_short})
        own = any(not finding.falls_short for finding in self.findings)
        return str(self.verdict) if own or not short else f"{'; '.join(short)}: {self.verdict}"


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
        """Return the number of claims with each verdict, all verdicts in the order of :data:`VERDICTS`."""
        return {str(name): sum(row.verdict is name for row in self.rows) for name in VERDICTS}

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
        if not parts:
            return "There are no claims."
        joined = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        return f"Of {len(self.rows)} claims, {joined}."


def read_claims(path: str | os.PathLike[str]) -> list[Claim]:
    """Read claims from a YAML file: a list of sections, each with a title and a list of claims.

    Arguments of a claim's measure may stand in its text: ``{mig:.2f}``. A ValueError names the claim and what is wrong.
    """
    claims: dict[str, Claim] = {}
    for section in yaml.safe_load(Path(path).read_text(encoding="utf-8")):
        for values in section["claims"]:
            try:
                claim = _claim(section["section"], **values)
            except (KeyError, TypeError, IndexError) as error:
                raise ValueError(f"{path}: {values.get('key')}: {error}") from None
            if claim.key in claims:
                raise ValueError(f"{path}: the key {claim.key!r} is given twice")
            claims[claim.key] = claim
    return list(claims.values())


def _claim(section: str, **values: Any) -> Claim:
    given = values.get("given", {})
    inspect.signature(MEASURES[values["measure"]][0]).bind(None, **given)
    texts = {key: " ".join(values[key].format(**given).split()) for key in ("says", "understood") if key in values}
    return Claim(section=section, **values | texts)


def scorecard(claims: str | os.PathLike[str] | Sequence[Claim], runs: str | os.PathLike[str]) -> Scorecard:
    """Measure and judge claims, or those of a file, by the records and specifications in the folder ``runs``."""
    chosen = read_claims(claims) if isinstance(claims, (str, os.PathLike)) else claims
    evidence = Evidence(Path(runs))
    rows = []
    for claim in chosen:
        evidence.forget()
        findings = MEASURES[claim.measure][0](evidence, **claim.given)
        rows.append(Row(claim, tuple(findings), evidence.missing()))
    return Scorecard(tuple(rows))
