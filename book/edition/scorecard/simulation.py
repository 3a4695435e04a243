"""How often the rules are right: verdicts on simulated records of the declared runs, with and without an effect.

``python -m edition.scorecard.simulation`` writes ``runs/rules.csv``, in a few minutes on one core.

Spreads are those of the first records: of the MIG 0.06 at beta = 1, and above it 0.07 (beta-VAE) and 0.18 in two groups
(ISA-VAE). Half the variance is of the seed, at all betas. Intervals are Student's t.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from edition.page import ROOT
from edition.scorecard import Claim, read_claims
from edition.scorecard.evidence import MEASURES, Evidence, Setting
from edition.scorecard.rules import Verdict, deciding, judge
from edition.stats import contrast

__all__ = ["WORLDS", "read_rates", "simulate"]

WORLDS = ("no effect", "effect")


class _Made(Evidence):
    """Evidence with simulated measurements of declared runs, judged by Student's t."""

    compare = staticmethod(lambda *sides: contrast(sides, (-1, 1), [np.full(len(side), math.nan) for side in sides]))
    interval = staticmethod(lambda values: contrast([values], [1], [np.full(len(values), math.nan)]))


def _declared(claim: Claim, book: _Made) -> _Made:
    """Return records, still without measurements, of the runs declared for a claim in the setting that decides."""
    empty = book.with_records([])
    MEASURES[claim.measure](empty, **claim.given)
    more = {"status": "trained", "procedural": claim.given["dataset"] == "faces3d", "images_title": ""}
    runs = {}
    for dataset, method, betas in empty.asked:
        named = (row for row in book.named(dataset, method) if not row["paper"] and (not betas or row["beta"] in betas))
        runs |= {row["hash"]: row | more for row in named}
    made = book.with_records(list(runs.values()))
    _draw(claim, made.records, np.zeros(len(runs)), WORLDS[0], np.random.default_rng(0))
    setting = Setting(*deciding(MEASURES[claim.measure](made, **claim.given))[0].order[-len(Setting._fields) :])
    return book.with_records(
        [row for row in made.records if Setting(*(row[name] for name in setting._fields)) == setting]
    )


def _treated(claim: Claim, made: _Made) -> np.ndarray:
    """Return True for each run on which a claim says that there is an effect, and False for the others."""
    given, rows = claim.given, made.records

    def of(*names: str) -> set[str]:
        methods = [one for name in names for one in np.atleast_1d(np.array(given.get(name, []), dtype=object))]
        return {row["hash"] for method in methods for row in made.named(given["dataset"], method)}

    methods = of("first") if "margin" in given else of("second", "method") - of("others")
    beta = given.get("low" if methods else "high")
    return np.array([(not methods or row["hash"] in methods) and beta in (None, row["beta"]) for row in rows])


def _draw(claim: Claim, rows: list[dict[str, Any]], treated: np.ndarray, world: str, rng: np.random.Generator) -> None:
    """Set the measurements of records, in place."""
    n, real, given = len(rows), world == WORLDS[1], claim.given
    size = claim.effect if real else {}
    beta = np.array([row["beta"] for row in rows])
    isa = np.array([row["objective"].startswith("isa") for row in rows])
    _, seed = np.unique([f"{row['objective']} {row['seed']}" for row in rows], return_inverse=True)
    mig, fit, divergence, heart = (rng.standard_normal((4, n)) + rng.standard_normal((4, n))[:, seed]) / math.sqrt(2)
    two = real if claim.measure == "several_modes" else isa & (beta > 1) & (claim.measure != "several_modes")
    mig = np.where(two, 0.96 * np.sign(mig) + 0.28 * rng.standard_normal(n), mig)
    spread = np.where(beta == 1, 0.06, np.where(isa, 0.18, 0.07))
    spread = {"cars3d": 0.02, "faces3d": 0.07}.get(given["dataset"], spread) * np.ones(n)
    mig = 0.1 + spread * mig + treated * size.get("mig", 0)
    mig += size.get("poor", 0) * np.where(treated, -0.3, 1) * (beta > 3)
    fall = 0 if claim.measure == "changes_with_beta" else 10 * (beta - 1)
    fit = -38 - fall + 3.5 * fit + treated * size.get("log_likelihood", 0)
    if claim.measure == "printed_model" and real:  # the printed model is one of the upper half of others like ours
        offset = 0.28 * rng.standard_normal(2)
        mig += given["mig"] - 0.1 - spread * np.where(two, 0.96 + 0.28 * offset[0], 0.8 + 0.6 * offset[0])
        fit += given["log_likelihood"] + 38 + fall - 3.5 * offset[1]
    divergence = 18 + 0.7 * divergence + treated * size.get("divergence", 0)
    active = 6 + (rng.random(n) > (0.97 if real else 0.5))
    middle = {"exponents_differ": [2.1, 2.1, 2.1], "exponents_printed": [2.0, 2.05, 2.25]}
    exponents = [1.95, 1.98, 2.17] if real else middle.get(claim.measure, [1.95, 1.98, 2.17])
    learned = exponents + 0.03 * rng.standard_normal((n, 3))
    learned[:, 2] += 0.1 * (real and claim.measure == "largest_exponent_above")
    for i, row in enumerate(rows):
        row |= {"mig": mig[i], "log_likelihood": fit[i], "divergence": divergence[i], "active_units": active[i]}
        row |= {"exponents": [2.1, *learned[i]], "unscored": ["shape"]}
        row["log_likelihood_by_value"] = [[0.0, 0.0, 3 * heart[i] + treated[i] * size.get("heart", 0)]]


def simulate(
    claims: Collection[Claim],
    folder: Path,
    repetitions: int = 1000,
    report: Callable[[str], object] = lambda line: None,
) -> list[list[Any]]:
    """Return claim, world, repetitions and the share of each verdict, for claims about trained models."""
    book, rates = _Made(folder), []
    for claim in (claim for claim in claims if "dataset" in claim.given):
        made = _declared(claim, book)
        treated, rng = _treated(claim, made), np.random.default_rng(0)
        for world in WORLDS:
            counts = dict.fromkeys(Verdict, 0)
            for _ in range(repetitions):
                _draw(claim, made.records, treated, world, rng)
                counts[judge(MEASURES[claim.measure](made, **claim.given))[0]] += 1
            rates.append([claim.key, world, repetitions, *(count / repetitions for count in counts.values())])
            report(f"{claim.key}, {world}: " + ", ".join(f"{count} {one}" for one, count in counts.items() if count))
    return rates


def read_rates(path: Path) -> list[list[Any]]:
    """Read the table that :func:`simulate` makes."""
    rows = csv.reader(path.read_text("utf-8").splitlines()[1:])
    return [[claim, world, int(repetitions), *map(float, shares)] for claim, world, repetitions, *shares in rows]


if __name__ == "__main__":
    found = simulate(read_claims(ROOT / "book/claims.yaml"), ROOT / "runs", report=print)
    with open(ROOT / "runs/rules.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([["claim", "world", "repetitions", *Verdict], *found])
