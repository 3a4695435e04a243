"""Recorded evidence: runs of sweeps by method, grouped by how they were trained, and the toys' studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from edition.studies import Study, load_record
from isa import data
from isa.run import OBJECTIVES, Run
from isa.sweep import Spec, read_records

__all__ = ["LEARNED", "Evidence", "Method", "Missing", "Setting", "alike", "method_text"]

Method = str | Mapping[str, Any]
"""Name of an objective, with :data:`LEARNED` for learned exponents, or the fields of a run that make it."""

LEARNED = ", learned"
"""After the name of an objective: with learned exponents."""

_OF_THE_MODEL = ("prior", "subspaces", "p0", "p1", "scale", "learn_exponents", "model", "latent_dim", "learning_rate")
_OF_THE_MODEL += ("exponent_learning_rate", "likelihood", "kl", "sampling")
"""Fields of a run that must be those of a method; what is left is seed, beta and how long it was trained on what."""


class Setting(NamedTuple):
    """How runs were trained, apart from method, beta and seed; those on the paper's own terms come first."""

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
        images, scale = "on stand-in images" * self.procedural, "at reduced scale" * self.reduced
        return ", ".join(filter(None, (images, scale)))


class Missing(NamedTuple):
    """Number of runs at the paper's settings that bear on a claim, recorded and wanted, and commands for the others."""

    recorded: int
    wanted: int
    commands: tuple[str, ...]
    unnamed: tuple[str, ...]
    """Methods of which no specification names a run."""


def _fields(method: Method) -> dict[str, Any]:
    """Return the fields of a run that make a method."""
    if not isinstance(method, str):
        return {name: tuple(value) if isinstance(value, list) else value for name, value in method.items()}
    name = method.removesuffix(LEARNED)
    if name not in OBJECTIVES:
        raise ValueError(f"a method must be one of {', '.join(OBJECTIVES)}, or fields of a run, got {method!r}")
    return {"objective": name} | ({"learn_exponents": True} if method.endswith(LEARNED) else {})


@cache
def _run(dataset: str, fields: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return Run(dataset=dataset, **dict(fields)).to_dict()


def _is_of(row: Mapping[str, Any], dataset: str, method: Method) -> bool:
    """Return True if the fields of a run are those of a method's runs on a data set, at any beta."""
    fields = _fields(method)
    if row["beta"] == 1 and OBJECTIVES[fields["objective"]] == "beta-tcvae":
        # the terms of the total-correlation objectives then add up to the ELBO
        fields["objective"] = fields["objective"].replace("tc", "")
    if row["dataset"] != dataset or OBJECTIVES[row["objective"]] != OBJECTIVES[fields["objective"]]:
        return False
    run = _run(dataset, tuple(fields.items()))
    return all(row[name] == run[name] for name in _OF_THE_MODEL)


def method_text(method: Method) -> str:
    """Return a method's name for a sentence."""
    named = {"beta-vae": "β-VAE", "beta-tcvae": "β-TCVAE", "isa-vae": "ISA-VAE", "isa-tcvae": "ISA-TCVAE"}
    if isinstance(method, str):
        name = method.removesuffix(LEARNED)
        return named.get(name, "FactorVAE") + (" with learned exponents" if method.endswith(LEARNED) else "")
    rest = ", ".join(f"{name} {value}" for name, value in method.items() if name != "objective")
    return f"{named.get(method['objective'], method['objective'])} ({rest})"


class Evidence:
    """Records in a folder, the repository's ``runs``, and the specifications that name what is to be recorded.

    It remembers which runs it was asked for, to tell which of them are missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.asked: dict[tuple[str, str], tuple[Method, set[float] | None]] = {}

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Every recorded run of every sweep, once."""
        records: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("*.csv")):
            with open(path, encoding="utf-8") as file:
                if "hash" in file.readline().rstrip().split(","):
                    records |= {record["hash"]: record for record in read_records(path)}
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
        self, dataset: str, method: Method, beta: float | Sequence[float] | None = None
    ) -> dict[Setting, list[dict[str, Any]]]:
        """Return recorded runs of a method that did not diverge, by how they were trained, in the order of seeds.

        Beta is the weight of the divergence, or several; all if it is None.
        """
        wanted = None if beta is None else {beta} if isinstance(beta, (int, float)) else set(beta)
        before = self.asked.get((dataset, repr(method)), (method, set()))[1]
        self.asked[dataset, repr(method)] = method, None if None in (wanted, before) else before | wanted
        _fields(method)
        runs: dict[Setting, list[dict[str, Any]]] = {}
        for row in self.records:
            if (
                row["status"] == "trained"
                and (wanted is None or row["beta"] in wanted)
                and _is_of(row, dataset, method)
            ):
                runs.setdefault(Setting(*(row[name] for name in Setting._fields)), []).append(row)
        return {setting: sorted(runs[setting], key=lambda row: (row["beta"], row["seed"])) for setting in sorted(runs)}

    def missing(self) -> Missing | None:
        """Return what is missing of the runs asked for since :meth:`forget`; None if no runs of sweeps were."""
        if not self.asked:
            return None
        recorded = {record["hash"] for record in self.records}
        wanted: dict[str, str] = {}
        unnamed = []
        for (dataset, _), (method, betas) in self.asked.items():
            named = {
                digest: command
                for digest, (fields, command) in self._named.items()
                if (betas is None or fields["beta"] in betas) and _is_of(fields, dataset, method)
            }
            wanted |= named
            if not named:
                unnamed.append(method_text(method))
        left = [digest for digest in wanted if digest not in recorded]
        commands = dict.fromkeys(wanted[digest] for digest in left)
        return Missing(len(wanted) - len(left), len(wanted), tuple(commands), tuple(unnamed))

    def forget(self) -> None:
        """Forget the runs asked for."""
        self.asked.clear()

    def ica(self, name: str) -> tuple[Study, dict[str, np.ndarray]] | None:
        """Return a study of ICA and its record; None if nothing is recorded."""
        path = self.folder / f"{name}.csv"
        if not path.exists():
            return None
        record = load_record(path)
        return (Study.read(path.with_suffix(".yaml")), record) if len(record["seed"]) else None


def alike(*groups: Mapping[Setting, Sequence[Any]]) -> list[tuple[Setting, list[Sequence[Any]]]]:
    """Return the settings that every group has runs of, each with the groups' runs."""
    shared = sorted(set.intersection(*(set(group) for group in groups)))
    return [(setting, [group[setting] for group in groups]) for setting in shared]
