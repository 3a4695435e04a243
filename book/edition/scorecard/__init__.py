"""Every claim of the paper with what was measured of it and a verdict, which is derived by rule and never typed.

::

    card = scorecard("book/claims.yaml", "runs")
    card.summary()                       # {"reproduced": 17, "partly reproduced": 6, ...}
    card.sections["The prior"][0].verdict

**A claim** is data: what the paper says and where, in words of this edition's own; the values that it prints; the page
that treats it; and the name of what measures it (:mod:`edition.scorecard.measures`), with what that is given.

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

_REQUIRED, _OPTIONAL = ("key", "where", "says", "measure"), ("page", "understood", "given")


@dataclass(frozen=True)
class Claim:
    """Something that the paper says, and how it is put to the test.

    Attributes
    ----------
    key : str
        Name of the claim.
    section : str
        Heading under which it stands.
    where : str
        Where the paper says it.
    says : str
        What it says, with the printed values.
    measure : str
        Name of what measures it, a key of :data:`MEASURES`.
    given : dict
        What the measure is given: printed values, methods, settings.
    page : str or None
        The page of the book that treats it, relative to ``book/``, without suffix.
    understood : str or None
        How it is read here, where its words leave a choice.
    """

    key: str
    section: str
    where: str
    says: str
    measure: str
    given: Mapping[str, Any] = field(default_factory=dict)
    page: str | None = None
    understood: str | None = None

    @property
    def rules(self) -> tuple[str, ...]:
        """The rules by which it is judged, keys of :data:`RULES`."""
        return MEASURES[self.measure][1]


@dataclass(frozen=True)
class Row:
    """A claim, what was found, and the verdict.

    Attributes
    ----------
    claim : Claim
    findings : tuple of Finding
        One for each reading of the claim that there is evidence for.
    missing : Missing or None
        Of the runs at the paper's settings that bear on it, how many are recorded and what makes the others; None for
        a claim that needs no trained model.
    """

    claim: Claim
    findings: tuple[Finding, ...]
    missing: Missing | None = None

    @property
    def verdict(self) -> Verdict:
        """What follows from the findings."""
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
        """Rows by the section that they stand in."""
        sections: dict[str, list[Row]] = {}
        for row in self.rows:
            sections.setdefault(row.claim.section, []).append(row)
        return sections

    def summary(self) -> dict[str, int]:
        """How many claims have each verdict, all verdicts in the order of :data:`VERDICTS`."""
        return {str(one): sum(row.verdict is one for row in self.rows) for one in VERDICTS}

    def sentence(self) -> str:
        """The summary in words: ``Of 50 claims, 17 are reproduced, 6 partly reproduced and 27 not yet run.``"""
        parts, been = [], False
        for name, count in self.summary().items():
            if not count:
                continue
            if name.startswith("points"):
                parts.append(f"{count} {name if count == 1 else name.replace('points', 'point')}")
                been = False
            else:
                parts.append(f"{count} {'' if been else 'is ' if count == 1 else 'are '}{name}")
                been = True
        if not parts:
            return "There are no claims."
        joined = parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
        return f"Of {len(self.rows)} claims, {joined}."


def read_claims(path: str | os.PathLike[str]) -> list[Claim]:
    """Read claims from a YAML file: a list of sections, each with a title and a list of claims.

    Values that a claim is given may stand in its text: ``{mig:.2f}``.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    ValueError
        In one sentence that names the claim and what is wrong with it: a key is missing, unknown or given twice, the
        measure is unknown, what it is given is not what it takes, or the text names a value that is not given.
    OSError
        If the file cannot be read.
    """
    held = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(held, list) or not held:
        raise ValueError(f"{path} must be a list of sections, got {type(held).__name__}")
    claims: dict[str, Claim] = {}
    for section in held:
        if not isinstance(section, dict) or set(section) != {"section", "claims"}:
            raise ValueError(f"{path}: every entry must have section and claims, got {section!r:.80}")
        for values in section["claims"]:
            claim = _claim(path, section["section"], values)
            if claim.key in claims:
                raise ValueError(f"{path}: the key {claim.key!r} is given twice")
            claims[claim.key] = claim
    return list(claims.values())


def _claim(path: str | os.PathLike[str], section: str, values: Mapping[str, Any]) -> Claim:
    if not isinstance(values, dict):
        raise ValueError(f"{path}: a claim must be a mapping, got {values!r:.80}")
    name = values.get("key", "a claim without a key")
    missing = [key for key in _REQUIRED if key not in values]
    unknown = [key for key in values if key not in _REQUIRED + _OPTIONAL]
    if missing or unknown:
        what = f"lacks {', '.join(missing)}" if missing else f"has the unknown key {unknown[0]!r}"
        raise ValueError(f"{path}: {name} {what}; its keys are {', '.join(_REQUIRED + _OPTIONAL)}")
    if values["measure"] not in MEASURES:
        raise ValueError(f"{path}: {name} has the unknown measure {values['measure']!r}")
    given = values.get("given", {})
    try:
        inspect.signature(MEASURES[values["measure"]][0]).bind(None, **given)
    except TypeError as error:
        raise ValueError(f"{path}: {name} does not give {values['measure']} what it takes: {error}") from None
    try:
        texts = {key: " ".join(values[key].format(**given).split()) for key in ("says", "understood") if key in values}
    except (KeyError, IndexError) as error:
        raise ValueError(f"{path}: {name} names a value in its text that is not given: {error}") from None
    rest = {key: values[key] for key in ("key", "where", "measure", "page") if key in values}
    return Claim(section=section, given=given, **rest, **texts)


def scorecard(claims: str | os.PathLike[str] | Sequence[Claim], runs: str | os.PathLike[str]) -> Scorecard:
    """Measure and judge claims.

    Parameters
    ----------
    claims
        Claims, or the file to read them from.
    runs
        Folder of records and specifications.

    Raises
    ------
    ValueError
        If the claims, a record or a specification are not as they must be.
    """
    chosen = read_claims(claims) if isinstance(claims, (str, os.PathLike)) else claims
    evidence = Evidence(Path(runs))
    rows = []
    for claim in chosen:
        evidence.forget()
        findings = MEASURES[claim.measure][0](evidence, **claim.given)
        rows.append(Row(claim, tuple(findings), evidence.missing()))
    return Scorecard(tuple(rows))
