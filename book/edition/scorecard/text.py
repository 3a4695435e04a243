"""The scorecard as text of a page: cards, counts, rules, in MyST Markdown."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from edition.scorecard import Row, Scorecard
from edition.scorecard.rules import RULES, VERDICTS, Finding, Verdict

__all__ = ["MARKS", "cards", "counts", "meanings", "rules", "titles"]

MARKS: dict[Verdict, str] = {
    Verdict.REPRODUCED: "✓",
    Verdict.PARTLY: "½",
    Verdict.NOT: "✗",
    Verdict.UNDECIDED: "?",
    Verdict.SAME_WAY: "✓",
    Verdict.BOTH_WAYS: "½",
    Verdict.OTHER_WAY: "✗",
    Verdict.NO_WAY: "?",
    Verdict.MISSING: "–",
}
"""A mark for each verdict, beside its name or its colour."""


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


def _missing(row: Row) -> str | None:
    if row.missing is None or (row.missing.recorded == row.missing.wanted and not row.missing.unnamed):
        return None
    recorded, wanted, commands, unnamed = row.missing
    text = f"{recorded:,} of {wanted:,} runs at the paper's settings are recorded"
    if commands:
        text += "; the others are made by " + ", ".join(f"`{command}`" for command in commands)
    if unnamed:
        text += f". No specification names runs of {' and '.join(unnamed)} yet"
    return text + "."


def cards(rows: Iterable[Row], titles: Mapping[str, str], here: str) -> str:
    """Return a card for each row: verdict and place, the claim, the findings, and a link to the page that treats it.

    Titles are those of the pages that exist, from :func:`titles`; ``here`` is the page that the text is for.
    """
    texts = []
    for row in rows:
        found = [_finding(finding) for finding in row.findings]
        head = f"**{MARKS[row.verdict]} {row.verdict_text.capitalize()}** · {row.claim.where}"
        lines = ["::::{card}", ":shadow: none", "", ":::{card-header}", head, ":::", "", row.claim.says]
        if row.claim.understood:
            lines += ["", f"*As read here:* {row.claim.understood}"]
        if len(found) == 1:
            lines += ["", f"*Measured:* {found[0]}"]
        elif found:
            lines += ["", "*Measured:*", "", *(f"- {text}" for text in found)]
        missing = _missing(row)
        if missing:
            lines += ["", f"*Missing:* {missing}"]
        if row.claim.page in titles:
            link = os.path.relpath(row.claim.page, Path(here).parent).replace(os.sep, "/") + ".ipynb"
            lines += ["", ":::{card-footer}", f"[{titles[row.claim.page]}]({link})", ":::"]
        texts.append("\n".join([*lines, "::::"]))
    return "\n\n".join(texts)


def counts(card: Scorecard) -> list[tuple[str, int, str]]:
    """Return rows of a table: verdicts that occur, how often, and their meanings."""
    occur = {one: number for one, number in zip(VERDICTS, card.summary().values(), strict=True) if number}
    return [(f"{MARKS[one]} {one}", number, VERDICTS[one]) for one, number in occur.items()]


def meanings() -> str:
    """Return the meaning of each verdict, as a list."""
    return "\n".join(f"- {MARKS[one]} **{one}**: {words}" for one, words in VERDICTS.items())


def rules() -> str:
    """Return the rules, as a list."""
    return "\n".join(f"- {words}" for words in RULES.values())
