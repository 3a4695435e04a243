"""Recorded evidence: runs of sweeps by method, grouped by how they were trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from isa import data
from isa.run import OBJECTIVES, Run
from isa.sweep import Spec, read_records

__all__ = ["LEARNED", "Evidence", "Method", "Missing", "Rows", "Setting", "method_text"]

Method = str | Mapping[str, Any]
"""Name of an objective, with :data:`LEARNED` for learned exponents, or the fields of a run that make it."""

Rows = Sequence[Mapping[str, Any]]
"""Records of runs."""

LEARNED = ", learned"
"""After the name of an objective: with learned exponents."""

_OF_THE_MODEL = ("prior", "subspaces", "p0", "p1", "scale", "learn_exponents", "model", "latent_dim", "learning_rate")
_OF_THE_MODEL += ("exponent_learning_rate", "likelihood", "kl", "sampling")
"""Fields of a run that must be those of a method; what is left is seed, beta and how long it was trained on what."""


class Setting(NamedTuple):
    """Settings of training, apart from method, beta and seed; those on the paper's own terms come first."""

    reduced: bool
    procedural: bool
    total_steps: int
    batch_size: int
    images_title: str
    precision: str

    @property
    def text(self) -> str:
        """Steps, and images a step where they are not the paper's 2,048."""
        return f"{self.total_steps:,} steps" + ("" if self.batch_size == 2048 else f" of {self.batch_size:,}")

    @property
    def falls_short(self) -> str:
        """Differences from the paper's own terms; empty if there are none."""
        return ", ".join(["on stand-in images"] * self.procedural + ["at reduced scale"] * self.reduced)


class Missing(NamedTuple):
    """Number of runs at the paper's settings that bear on a claim, recorded and wanted, and commands for the others."""

    recorded: int
    wanted: int
    commands: tuple[str, ...]
    unnamed: tuple[str, ...]
    """Methods of which no specification names a run."""


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

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.asked: list[tuple[str, Method, Sequence[float] | None]] = []

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
        paths = sorted(self.folder.glob("*.yaml"))
        return [Spec.read(path) for path in paths if "tiers" in (yaml.safe_load(path.read_text("utf-8")) or {})]

    @cached_property
    def _named(self) -> dict[str, tuple[dict[str, Any], str]]:
        """Runs at the paper's settings that specifications name: fields and command by hash."""
        named: dict[str, tuple[dict[str, Any], str]] = {}
        steps = {dataset: Run(dataset=dataset).total_steps for dataset in data.NAMES}
        for spec in self.specs:
            for run in spec.runs():
                if run.total_steps == steps[run.dataset] and not run.reduced:
                    named.setdefault(run.hash, (run.to_dict(), f"isa sweep runs/{spec.path.name}"))
        return named

    def runs(
        self, dataset: str, method: Method, betas: float | Sequence[float] | None = None
    ) -> dict[Setting, list[dict[str, Any]]]:
        """Return recorded runs of a method that did not diverge, by how they were trained, in the order of seeds.

        ``betas`` are weights of the divergence; all if it is None.
        """
        betas = betas if betas is None or isinstance(betas, Sequence) else (betas,)
        self.asked.append((dataset, method, betas))
        runs: dict[Setting, list[dict[str, Any]]] = {}
        for row in self.records:
            if row["status"] == "trained" and (not betas or row["beta"] in betas) and _is_of(row, dataset, method):
                runs.setdefault(Setting(*(row[name] for name in Setting._fields)), []).append(row)
        return {setting: sorted(runs[setting], key=lambda row: (row["beta"], row["seed"])) for setting in sorted(runs)}

    def compared(
        self, dataset: str, *sides: tuple[Method, float | Sequence[float] | None]
    ) -> list[tuple[Setting, list[Rows]]]:
        """Return the settings in which every side, a method and its betas, was trained, each with the sides' runs."""
        groups = [self.runs(dataset, *side) for side in sides]
        shared = sorted(set.intersection(*map(set, groups)))
        return [(setting, [group[setting] for group in groups]) for setting in shared]

    def missing(self) -> Missing | None:
        """Return what is missing of the runs in ``asked``; None if that is empty."""
        if not self.asked:
            return None
        wanted: dict[str, str] = {}
        named: dict[str, bool] = {}
        for dataset, method, betas in self.asked:
            commands = {
                digest: command
                for digest, (fields, command) in self._named.items()
                if (not betas or fields["beta"] in betas) and _is_of(fields, dataset, method)
            }
            wanted |= commands
            named[method_text(method)] = named.get(method_text(method), False) or bool(commands)
        recorded = {row["hash"] for row in self.records}
        left = {digest: command for digest, command in wanted.items() if digest not in recorded}
        unnamed = tuple(method for method, is_named in named.items() if not is_named)
        return Missing(len(wanted) - len(left), len(wanted), tuple(dict.fromkeys(left.values())), unnamed)
