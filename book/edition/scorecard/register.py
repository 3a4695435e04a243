"""The register of measures: functions from evidence to findings, by the name under which claims call them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import wraps

from edition.scorecard.rules import Finding, Outcome, together

__all__ = ["MEASURES", "Measure", "checks", "measure"]

Measure = Callable[..., list[Finding]]

MEASURES: dict[str, tuple[Measure, tuple[str, ...]]] = {}
"""By name: the function, and the rules (keys of :data:`edition.scorecard.rules.RULES`) by which it judges."""


def measure(*rules: str) -> Callable[[Callable[..., Iterable[Finding]]], Measure]:
    """Enter a function into :data:`MEASURES`; what it yields becomes a list."""

    def enter(function: Callable[..., Iterable[Finding]]) -> Measure:
        @wraps(function)
        def listed(*args, **given) -> list[Finding]:
            return list(function(*args, **given))

        MEASURES[function.__name__] = listed, rules
        return listed

    return enter


def checks(parts: Mapping[str, Outcome]) -> tuple[Outcome, str]:
    """Return the outcome of several parts, and a text that says which hold."""
    marks = {Outcome.YES: "yes", Outcome.NO: "no", Outcome.PART: "in part", Outcome.OPEN: "cannot be told"}
    return together(parts.values()), "; ".join(f"{name}: {marks[outcome]}" for name, outcome in parts.items())
