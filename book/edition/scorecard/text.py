"""The scorecard as text of a page: cards and counts, in MyST Markdown."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from edition.scorecard import Row, Scorecard
from edition.scorecard.evidence import Missing
from edition.scorecard.rules import Finding, Verdict

__all__ = ["cards", "counts", "meanings"]


def _finding(finding: Finding) -> str:
    reading = ", ".join(filter(None, (finding.reading, finding.falls_short)))
    return f"{reading}: {finding.text} ({finding.outcome.value})" if reading else finding.text


def _missing(missing: Missing) -> str:
    text = f"{missing.recorded:,} of {missing.wanted:,} runs at the paper's settings are recorded"
    if missing.commands:
        text += "; the others are made by " + ", ".join(f"`{command}`" for command in missing.commands)
    if missing.unnamed:
        text += f". No specification names runs of {' and '.join(missing.unnamed)} yet"
    return text + "."


def cards(rows: Iterable[Row], here: str) -> str:
    """Return a card for each row: verdict and place, the claim, the findings, and a link to the page that treats it.

    ``here`` is the page that the text is for, relative to ``book/``.
    """
    texts = []
    for row in rows:
        claim, missing = row.claim, row.missing
        head = f"**{row.verdict.mark} {row.verdict_text.capitalize()}** · {claim.where}"
        lines = ["::::{card}", ":shadow: none", "", ":::{card-header}", head, ":::", "", claim.says]
        if claim.understood:
            lines += ["", f"*As read here:* {claim.understood}"]
        if len(row.findings) == 1:
            lines += ["", f"*Measured:* {_finding(row.findings[0])}"]
        elif row.findings:
            lines += ["", "*Measured:*", "", *(f"- {_finding(finding)}" for finding in row.findings)]
        if missing and (missing.recorded < missing.wanted or missing.unnamed):
            lines += ["", f"*Missing:* {_missing(missing)}"]
        if claim.page:
            link = os.path.relpath(claim.page, Path(here).parent).replace(os.sep, "/") + ".ipynb"
            lines += ["", ":::{card-footer}", f"[]({link})", ":::"]
        texts.append("\n".join([*lines, "::::"]))
    return "\n\n".join(texts)


def counts(card: Scorecard) -> list[tuple[str, int, str]]:
    """Return rows of a table: verdicts that occur, how often, and their meanings."""
    summary = card.summary()
    return [(f"{one.mark} {one}", summary[one], one.meaning) for one in Verdict if summary[one]]


def meanings() -> str:
    """Return the meaning of each verdict, as a list."""
    return "\n".join(f"- {one.mark} **{one}**: {one.meaning}" for one in Verdict)
