"""The register of measures: functions that measure a claim, by the name under which claims call them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from edition.scorecard.rules import Finding

__all__ = ["MEASURES", "measure"]

MEASURES: dict[str, Callable[..., list[Finding]]] = {}
"""Measures by name; each takes evidence and, by name, the arguments that a claim gives it, and returns findings."""


def measure(function: Callable[..., Any]) -> Callable[..., Any]:
    """Enter a function into :data:`MEASURES`.

    With an argument ``evidence``, an :class:`~edition.scorecard.evidence.Evidence`, it yields a finding for every
    interpretation of the claim that there is evidence for. Without, it computes, and returns an outcome and a text.
    """
    reads = "evidence" in inspect.signature(function).parameters

    @wraps(function)
    def findings(evidence: Any, **given: Any) -> list[Finding]:
        return list(function(evidence, **given)) if reads else [Finding(*function(**given))]

    MEASURES[function.__name__] = findings
    return function
