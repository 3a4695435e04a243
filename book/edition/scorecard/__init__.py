"""Every claim of the paper with measurements and a verdict, which is derived by rule and never typed.

::

    card = scorecard("book/claims.yaml", "runs")
    card.sentences()                     # the summary in words: theory, the prior, trained models
    card.sections["The prior"][0].verdict

**A claim** is data: what the paper says and where, in this edition's words; the values that it prints; the page
that treats it; and the name of a measure (:data:`edition.scorecard.evidence.MEASURES`), with its arguments.

**A verdict** follows from the findings by the rules of :mod:`edition.scorecard.rules`, and from nothing else. Evidence
at small scale or on stand-in data counts only where there is none on the paper's own terms, and is counted apart.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from edition.scorecard import measures
from edition.scorecard.evidence import MEASURES, Evidence, Missing
from edition.scorecard.rules import Finding, Verdict, deciding, judge

__all__ = ["PARTS", "Claim", "Row", "Scorecard", "Verdict", "measures", "read_claims", "scorecard"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something that the paper says, and how it is put to the test."""

    key: str
    section: str
    where: str  #: place in the paper
    says: str  #: the claim, with the printed values
    measure: str  #: a key of :data:`edition.scorecard.evidence.MEASURES`
    given: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the measure: printed values, methods, settings."""
    page: str | None = None  #: the page of the book that treats it, relative to ``book/``, without suffix
    understood: str | None = None  #: its interpretation here, where its words leave a choice
    effect: Mapping[str, float] = field(default_factory=dict)
    """Sizes with which :mod:`edition.scorecard.simulation` tests the rule."""


@dataclass(frozen=True)
class Row:
    """A claim with a finding for each of its interpretations that there is evidence for, and the verdict."""

    claim: Claim
    findings: tuple[Finding, ...]
    missing: Missing | None = None
    """Runs at the paper's settings that bear on it; None for a claim that needs no trained model."""

    @property
    def verdict(self) -> Verdict:
        """The verdict that follows from the findings."""
        return judge(self.findings)[0]

    @property
    def provisional(self) -> Verdict | None:
        """The verdict that the recorded runs would give, if they are fewer than declared."""
        return judge(self.findings)[1]

    @property
    def tags(self) -> str:
        """Tags of the evidence that decides: in what it falls short of the paper's own terms."""
        return next((finding.falls_short for finding in deciding(self.findings)), "")

    @property
    def verdict_text(self) -> str:
        """The verdict with the provisional one and with tags."""
        early = self.provisional
        more = [] if early is None else ["provisional" if early is Verdict.OPEN else f"provisional: {early}"]
        more += [self.tags] * bool(self.tags)
        return f"{self.verdict} ({'; '.join(more)})" if more else str(self.verdict)


_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast, where it was built

PARTS = ("Theory and linear models", "The prior", "Trained models")
"""Parts of the summary. Sections on models are about trained ones; the first part takes all others but the prior's."""


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

    def sentences(self) -> dict[str, str]:
        """Return the summary in words, a sentence for each of the :data:`PARTS`."""
        parts: dict[str, list[Row]] = {part: [] for part in PARTS}
        for title, rows in self.sections.items():
            parts[PARTS[2] if title.startswith("Models") else title if title in parts else PARTS[0]] += rows
        return {part: _sentence(part, rows) for part, rows in parts.items() if rows}


def _counted(verdicts: Iterable[Verdict]) -> str:
    """Return counts in words: ``2 reproduced, 1 partly reproduced and 3 not reproduced``."""
    counts = Counter(verdicts)
    texts = [f"{counts[one]} {one}{' reproduced' * (one is Verdict.PARTLY)}" for one in Verdict if counts[one]]
    return " and ".join(filter(None, (", ".join(texts[:-1]), *texts[-1:])))


def _sentence(part: str, rows: Sequence[Row]) -> str:
    own, short = (
        [row.verdict for row in rows if bool(row.tags) is short and row.verdict is not Verdict.OPEN]
        for short in (False, True)
    )
    early = [row.provisional for row in rows if row.provisional not in (None, Verdict.OPEN)]
    left = len(rows) - len(own) - len(short)
    texts = [
        _counted(own),
        f"{_counted(short)} at small scale or on stand-in data" * bool(short),
        f"{left} open" * bool(left),
    ]
    text = f"{part}: of {len(rows)} claims, {'; '.join(filter(None, texts))}"
    return text + (f" (provisionally {_counted(early)})." if early else ".")


def read_claims(path: str | os.PathLike[str]) -> list[Claim]:
    """Read claims from a YAML file: a list of sections, each with a title and a list of claims.

    Arguments of a claim's measure may stand in its text: ``{mig:.2f}``. A ValueError names the claim and what is wrong.
    """
    claims = []
    for section in yaml.load(Path(path).read_text(encoding="utf-8"), _Loader):
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


def scorecard(claims: str | os.PathLike[str], runs: str | os.PathLike[str], only: str | None = None) -> Scorecard:
    """Measure and judge the claims of a file by the records and specifications in the folder ``runs``.

    With ``only``, those that a page treats, such as ``results/trade-off``, or the one with this key.
    """
    evidence, rows = Evidence(Path(runs)), []
    for claim in read_claims(claims):
        if only in (None, claim.page, claim.key):
            evidence.asked.clear()
            findings = MEASURES[claim.measure](evidence, **claim.given)
            rows.append(Row(claim, tuple(findings), evidence.missing()))
    return Scorecard(tuple(rows))
