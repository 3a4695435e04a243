"""The scorecard as text of a page: cards and counts, in MyST Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from edition.scorecard import Row, Scorecard
from edition.scorecard.evidence import Missing
from edition.scorecard.rules import Finding, Verdict

__all__ = ["cards", "counts", "meanings", "titles"]


def titles(pages: Iterable[Path], book: Path) -> dict[str, str]:
    """Return the titles of notebooks by their paths below ``book``, without suffix."""
    found = {}
    for path in pages:
        text = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        found[path.relative_to(book).with_suffix("").as_posix()] = text.partition("\n")[0].removeprefix("# ")
    return found


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


def cards(rows: Iterable[Row], titles: Mapping[str, str], here: str) -> str:
    """Return a card for each row: verdict and place, the claim, the findings, and a link to the page that treats it.

    Titles are those of the pages that exist, from :func:`titles`; ``here`` is the page that the text is for.
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
        if claim.page in titles:
            link = os.path.relpath(claim.page, Path(here).parent).replace(os.sep, "/") + ".ipynb"
            lines += ["", ":::{card-footer}", f"[{titles[claim.page]}]({link})", ":::"]
        texts.append("\n".join([*lines, "::::"]))
    return "\n\n".join(texts)


def counts(card: Scorecard) -> list[tuple[str, int, str]]:
    """Return rows of a table: verdicts that occur, how often, and their meanings."""
    summary = card.summary()
    return [(f"{one.mark} {one}", summary[one], one.meaning) for one in Verdict if summary[one]]


def meanings() -> str:
    """Return the meaning of each verdict, as a list."""
    return "\n".join(f"- {one.mark} **{one}**: {one.meaning}" for one in Verdict)
