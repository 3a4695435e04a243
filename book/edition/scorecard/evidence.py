"""Recorded evidence: runs of sweeps by method, grouped by how they were trained; and the measures that read it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence, Set
from copy import copy
from functools import cache, cached_property, wraps
from pathlib import Path
from typing import Any, NamedTuple, Self

from edition.scorecard.rules import Finding, Outcome
from edition.stats import compare, mean_interval
from isa.run import OBJECTIVES, Run
from isa.sweep import Spec, read_records

__all__ = ["LEARNED", "MEASURES", "PAPER_TIER", "Evidence", "Method", "Missing", "Rows", "Setting", "Sides"]
__all__ += ["measure", "method_text"]

Method = str | Mapping[str, Any]
"""Name of an objective, with :data:`LEARNED` for learned exponents, or the fields of a run that make it."""

Rows = Sequence[Mapping[str, Any]]
"""Records of runs."""

MEASURES: dict[str, Callable[..., list[Finding]]] = {}
"""Measures by name; each takes evidence and, by name, the arguments that a claim gives it, and returns findings."""

LEARNED = ", learned"
"""After the name of an objective: with learned exponents."""

PAPER_TIER = 5
"""Tier of the paper's own numbers of runs. The tiers before it are the plan, which declares how many decide."""

_OF_THE_MODEL = ("prior", "subspaces", "p0", "p1", "scale", "learn_exponents", "model", "latent_dim", "learning_rate")
_OF_THE_MODEL += ("exponent_learning_rate", "likelihood", "kl", "sampling")
"""Fields of a run that must be those of a method; what is left is seed, beta and how long it was trained on what."""


class Setting(NamedTuple):
    """Settings of training, apart from method, beta and seed."""

    reduced: bool
    procedural: bool
    total_steps: int
    batch_size: int
    images_title: str
    precision: str

    @property
    def order(self) -> tuple[Any, ...]:
        """Rank among interpretations: the paper's own terms at Table 1's length, then longer, then what falls short."""
        return self.reduced, self.procedural, self.total_steps * self.batch_size * (-1) ** self.reduced, *self

    @property
    def text(self) -> str:
        """Steps, and images a step where they are not the paper's 2,048."""
        return f"{self.total_steps:,} steps" + ("" if self.batch_size == 2048 else f" of {self.batch_size:,}")

    @property
    def falls_short(self) -> str:
        """Tags for differences from the paper's own terms; empty if there are none."""
        return ", ".join(["stand-in data"] * self.procedural + ["small scale"] * self.reduced)


class Sides(NamedTuple):
    """Runs that a finding compares, a group for each side, all trained in one setting."""

    setting: Setting
    groups: list[Rows]
    declared: list[set[float]]
    """Betas at which the specifications declare runs, for each side; the paper's where the plan has none."""
    missing: Set[str]  #: hashes of the runs that they declare at the betas of the groups, and that are not recorded
    diverged: Set[str]  #: hashes of the runs that are recorded without measurements

    def finding(self, outcome: Outcome, text: str, complete: bool = True) -> Finding:
        """Return the finding on these runs; at small scale, those with all their betas take precedence."""
        text += f"; diverged and left out: {len(self.diverged)}" * bool(self.diverged)
        reduced, *rest = self.setting.order
        order = (reduced + (reduced and not complete), *rest)
        return Finding(outcome, text, self.setting.text, self.setting.falls_short, order, len(self.missing))


class Missing(NamedTuple):
    """Number of runs at the paper's settings that bear on a claim, recorded and wanted, and commands for the others."""

    recorded: int
    wanted: int
    commands: tuple[str, ...]


def measure(function: Callable[..., Any]) -> Callable[..., Any]:
    """Enter a function that measures a claim into :data:`MEASURES`.

    With an argument ``evidence``, an :class:`Evidence`, it yields a finding for every interpretation of the claim that
    there is evidence for. Without, it computes, and returns an outcome and a text.
    """
    reads = "evidence" in inspect.signature(function).parameters

    @wraps(function)
    def findings(evidence: Any, **given: Any) -> list[Finding]:
        return list(function(evidence, **given)) if reads else [Finding(*function(**given))]

    MEASURES[function.__name__] = findings
    return function


@cache
def _model(dataset: str, fields: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Return the fields of a method's models, and its objective."""
    run = Run(dataset=dataset, **dict(fields)).to_dict()
    return {name: run[name] for name in _OF_THE_MODEL} | {"objective": OBJECTIVES[run["objective"]]}


def _is_of(row: Mapping[str, Any], dataset: str, method: Method) -> bool:
    """Return True if the fields of a run are those of a method's runs on a data set, at any beta."""
    if isinstance(method, str):
        method = {"objective": method.removesuffix(LEARNED), "learn_exponents": method.endswith(LEARNED)}
    if row["dataset"] != dataset:
        return False
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in method.items()}
    if row["beta"] == 1 and OBJECTIVES[fields["objective"]] == "beta-tcvae":
        # the terms of the total-correlation objectives then add up to the ELBO
        fields["objective"] = fields["objective"].replace("tc", "")
    model = _model(dataset, tuple(fields.items()))
    return (
        all(model[name] == row[name] for name in _OF_THE_MODEL) and model["objective"] == OBJECTIVES[row["objective"]]
    )


def method_text(method: Method) -> str:
    """Return a method's name for a sentence."""
    named = {"beta-vae": "β-VAE", "beta-tcvae": "β-TCVAE", "isa-vae": "ISA-VAE", "isa-tcvae": "ISA-TCVAE"}
    if isinstance(method, str):
        name = method.removesuffix(LEARNED)
        return named.get(name, "FactorVAE") + " with learned exponents" * method.endswith(LEARNED)
    rest = ", ".join(f"{name} {value}" for name, value in method.items() if name != "objective")
    return f"{named.get(method['objective'], method['objective'])} ({rest})"


class Evidence:
    """Records in a folder, the repository's ``runs``, and the specifications that name what is to be recorded.

    ``asked`` lists data set, method and betas of the runs that it was asked for, to tell which of them are missing.
    """

    compare = staticmethod(compare)
    interval = staticmethod(mean_interval)
    """The comparison of two means and the interval of one by which measures judge; simulations take faster ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.asked: list[tuple[str, Method, Sequence[float] | None]] = []
        self._compared: dict[str, list[Sides]] = {}
        self._methods: dict[str, list[dict[str, Any]]] = {}

    def with_records(self, records: list[dict[str, Any]]) -> Self:
        """Return the same specifications with other records."""
        other = copy(self)
        other.records, other.asked, other._compared = records, [], {}
        return other

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Every recorded run of every sweep, once."""
        records: dict[str, dict[str, Any]] = {}
        for spec in self.specs:
            records |= {record["hash"]: record for record in read_records(spec.record)}
        return list(records.values())

    @cached_property
    def specs(self) -> list[Spec]:
        """Every specification of a sweep."""
        return [Spec.read(path) for path in sorted(self.folder.glob("*.yaml")) if "\ntiers:" in path.read_text("utf-8")]

    @cached_property
    def _named(self) -> dict[str, dict[str, Any]]:
        """Runs that specifications name, by hash: fields, command, and True if only the paper's own tier names it."""
        named: dict[str, dict[str, Any]] = {}
        for spec in self.specs:
            for tier, runs in spec.tiers.items():
                for run in runs:
                    more = {"total_steps": run.total_steps, "reduced": run.reduced, "paper": tier >= PAPER_TIER}
                    if more["paper"] < named.get(run.hash, {"paper": 2})["paper"]:
                        command = f"isa sweep runs/{spec.path.name}"
                        named[run.hash] = run.to_dict() | more | {"hash": run.hash, "command": command}
        return named

    def declared(
        self, dataset: str, method: Method, betas: Sequence[float] | None = None, setting: Setting | None = None
    ) -> dict[str, dict[str, Any]]:
        """Return the runs of a method that specifications declare for a setting, by hash: fields, and command.

        They are those of the tiers below :data:`PAPER_TIER`; at a beta of which these name none, the paper's own.
        Without a setting, they are the runs on the paper's terms at its own length.
        """
        fields = ("reduced", "total_steps", "batch_size", "precision")
        whole = (False, Run(dataset=dataset).total_steps)
        wanted = tuple(getattr(setting, name) for name in fields) if setting else whole
        chosen = [
            row
            for row in self.named(dataset, method)
            if tuple(row[name] for name in fields)[: len(wanted)] == wanted and (not betas or row["beta"] in betas)
        ]
        planned = {row["beta"] for row in chosen if not row["paper"]}
        return {row["hash"]: row for row in chosen if row["paper"] != (row["beta"] in planned)}

    def named(self, dataset: str, method: Method) -> list[dict[str, Any]]:
        """Return the runs of a method that specifications name: fields, command, and ``paper`` (only its own tier)."""
        key = repr((dataset, method))
        if key not in self._methods:
            self._methods[key] = [row for row in self._named.values() if _is_of(row, dataset, method)]
        return self._methods[key]

    def _recorded(self, dataset: str, method: Method, betas: Sequence[float] | None) -> dict[Setting, list[dict]]:
        """Return recorded runs of a method by how they were trained, in the order of betas and seeds."""
        runs: dict[Setting, list[dict[str, Any]]] = {}
        for row in self.records:
            if (not betas or row["beta"] in betas) and _is_of(row, dataset, method):
                runs.setdefault(Setting(*(row[name] for name in Setting._fields)), []).append(row)
        return {setting: sorted(rows, key=lambda row: (row["beta"], row["seed"])) for setting, rows in runs.items()}

    def compared(self, dataset: str, *sides: tuple[Method, float | Sequence[float] | None]) -> list[Sides]:
        """Return the runs in each setting in which every side, a method and its betas, was trained.

        Betas are weights of the divergence; None stands for all. Runs that diverged are counted and left out.
        Settings come in the order in which they decide.
        """
        wanted = [
            (method, betas if betas is None or isinstance(betas, Sequence) else (betas,)) for method, betas in sides
        ]
        self.asked += [(dataset, *side) for side in wanted]
        if (key := repr((dataset, wanted))) not in self._compared:
            groups = [self._recorded(dataset, *side) for side in wanted]
            shared = sorted(set.intersection(*map(set, groups)), key=lambda setting: setting.order)
            found = [self._sides(dataset, wanted, setting, [group[setting] for group in groups]) for setting in shared]
            self._compared[key] = [sides for sides in found if all(sides.groups)]
        return self._compared[key]

    def _sides(
        self, dataset: str, wanted: Sequence[tuple[Method, Any]], setting: Setting, recorded: Sequence[Rows]
    ) -> Sides:
        declared = [self.declared(dataset, method, betas, setting) for method, betas in wanted]
        missing: set[str] = set()
        for runs, rows in zip(declared, recorded, strict=True):
            used = {row["beta"] for row in rows}
            missing |= {name for name, run in runs.items() if run["beta"] in used} - {row["hash"] for row in rows}
        groups = [[row for row in rows if row["status"] == "trained"] for rows in recorded]
        diverged = {row["hash"] for rows in recorded for row in rows if row["status"] != "trained"}
        planned = [[run for run in runs.values() if not run["paper"]] or runs.values() for runs in declared]
        betas = [{run["beta"] for run in runs} for runs in planned]
        return Sides(setting, groups, betas, missing, diverged)

    def missing(self) -> Missing | None:
        """Return what is missing of the runs that are declared of those in ``asked``; None if that is empty."""
        if not self.asked:
            return None
        wanted = {name: run for asked in self.asked for name, run in self.declared(*asked).items()}
        recorded = {row["hash"] for row in self.records}
        commands = dict.fromkeys(run["command"] for name, run in wanted.items() if name not in recorded)
        return Missing(len(wanted.keys() & recorded), len(wanted), tuple(commands))
