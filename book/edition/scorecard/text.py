"""The scorecard as text of a page: cards and counts, in MyST Markdown."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from edition.scorecard import Row, Scorecard
from edition.scorecard.rules import Finding, Verdict, deciding

__all__ = ["answer", "cards", "counts", "said"]


def _finding(finding: Finding) -> str:
    reading = ", ".join(filter(None, (finding.reading, finding.falls_short)))
    runs = f"declared run{'s' * (finding.missing != 1)}"
    missing = f"; {finding.missing} {runs} missing" if finding.missing else ""
    return f"{reading}: {finding.text} ({finding.outcome.value}{missing})" if reading else finding.text


def said(findings: Iterable[Finding]) -> str:
    """Return findings in one line, each with its interpretation and outcome."""
    return "; ".join(f"{one.reading + ': ' if one.reading else ''}{one.text} ({one.outcome.value})" for one in findings)


def cards(rows: Iterable[Row], here: str) -> str:
    """Return a folded card for each row: verdict and claim, then place, findings, and a link to its page.

    ``here`` is the page that the text is for, relative to ``book/``.
    """
    texts = []
    for row in rows:
        claim, missing = row.claim, row.missing
        head = f"{row.verdict.mark} **{row.verdict_text.capitalize()}** · {claim.says}"
        lines = [f"::::{{dropdown}} {head}", "", f"*Paper:* {claim.where}"]
        if claim.understood:
            lines += ["", f"*Interpretation:* {claim.understood}"]
        if len(row.findings) == 1:
            lines += ["", f"*Measured:* {_finding(row.findings[0])}"]
        elif row.findings:
            first = deciding(row.findings)
            shown = [(finding, "" if finding in first else "*Remark:* ") for finding in row.findings]
            lines += ["", "*Measured:*", "", *(f"- {remark}{_finding(finding)}" for finding, remark in shown)]
        if missing and missing.recorded < missing.wanted:
            commands = ", ".join(f"`{command}`" for command in missing.commands)
            text = f"{missing.recorded:,} of {missing.wanted:,} declared runs at the paper's settings"
            lines += ["", f"*Recorded:* {text}; the others are trained by {commands}."]
        if claim.page:
            link = os.path.relpath(claim.page, Path(here).parent).replace(os.sep, "/") + ".ipynb"
            lines += ["", f"*Page:* []({link})"]
        texts.append("\n".join([*lines, "::::"]))
    return "\n\n".join(texts)


def _answer(row: Row) -> list[str]:
    found = [_finding(finding) for finding in deciding(row.findings)] or ["nothing is recorded yet"]
    runs = row.missing and f"{row.missing.recorded:,} of {row.missing.wanted:,} declared runs are recorded"
    verdict = f"{row.verdict.mark} {row.verdict_text}"
    return [
        f"**Paper** ({row.claim.where}). {row.claim.says}",
        f"**Here.** {re.sub('^[a-z]', lambda first: first[0].upper(), '; '.join(found))}.",
        f"**Verdict.** {'; '.join(filter(None, (verdict, runs)))}.",
    ]


def answer(rows: Sequence[Row]) -> str:
    """Return the box at the top of a page: what the paper says, what is found here, and the verdict.

    The box has the first claim about a figure; the others are folded below it.
    """
    first, *others = sorted(rows, key=lambda row: "Fig." not in row.claim.where)
    lines = ["::::{admonition} Paper and findings\n:class: short-answer", *_answer(first), "::::"]
    if others:
        lines += ["::::{dropdown} Other claims on this page", *chain(*map(_answer, others)), "::::"]
    return "\n\n".join(lines)


def counts(card: Scorecard) -> list[tuple[str, int, int, int, str]]:
    """Return rows of a table: verdict, counts by evidence (on the paper's own terms, short of them, none), meaning."""
    seen = Counter((row.verdict, bool(row.findings) + bool(row.tags)) for row in card.rows)
    return [(f"{one.mark} {one}", *(seen[one, level] for level in (1, 2, 0)), one.meaning) for one in Verdict]
