"""What is recorded: runs of sweeps by method, brought together where they were trained alike, and the toys' studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from edition.studies import Study, load_record
from isa import data
from isa.run import OBJECTIVES, Run
from isa.sweep import Spec, read_records

__all__ = ["Evidence", "Missing", "Setting"]

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

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Setting:
        return cls(*(row[name] for name in cls._fields))

    @property
    def text(self) -> str:
        """Steps, and images a step where they are not the paper's 2,048."""
        return f"{self.total_steps:,} steps" + ("" if self.batch_size == 2048 else f" of {self.batch_size:,}")

    @property
    def falls_short(self) -> str:
        """What keeps it from the paper's own terms."""
        images, scale = "on stand-in images" * self.procedural, "at reduced scale" * self.reduced
        return ", ".join(filter(None, (images, scale)))


class Missing(NamedTuple):
    """Runs at the paper's settings that bear on a claim: how many there are, how many are to be, what makes them."""

    recorded: int
    wanted: int
    commands: tuple[str, ...]
    unnamed: tuple[str, ...]
    """Methods of which no specification names a run."""


def _fields(method: Method) -> dict[str, Any]:
    """Fields of a run that make a method: of its name, or as they are given."""
    if not isinstance(method, str):
        return {name: tuple(value) if isinstance(value, list) else value for name, value in method.items()}
    name = method.removesuffix(LEARNED)
    if name not in OBJECTIVES:
        raise ValueError(f"a method must be one of {', '.join(OBJECTIVES)}, or fields of a run, got {method!r}")
    return {"objective": name} | ({"learn_exponents": True} if method.endswith(LEARNED) else {})


def method_text(method: Method) -> str:
    """How a method is called in a sentence."""
    named = {"beta-vae": "β-VAE", "beta-tcvae": "β-TCVAE", "isa-vae": "ISA-VAE", "isa-tcvae": "ISA-TCVAE"}
    if isinstance(method, str):
        name = method.removesuffix(LEARNED)
        return named.get(name, "FactorVAE") + (" with learned exponents" if method.endswith(LEARNED) else "")
    rest = ", ".join(f"{name} {value}" for name, value in method.items() if name != "objective")
    return f"{named.get(method['objective'], method['objective'])} ({rest})"


class Evidence:
    """Records below a folder, and the specifications that name what is to be recorded.

    It remembers which runs it was asked for, so that what is missing of them can be told.

    Parameters
    ----------
    folder
        Where ``*.csv`` and ``*.yaml`` lie: the repository's ``runs``.

    Raises
    ------
    ValueError
        If a table of records or a specification is not as it must be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.asked: dict[tuple[str, str], tuple[Method, set[float] | None]] = {}
        self._standard: dict[tuple[str, str], dict[str, Any]] = {}

    # --- runs of sweeps

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """Every run of every sweep that was recorded, once."""
        held: dict[str, dict[str, Any]] = {}
        for path in sorted(self.folder.glob("*.csv")):
            with open(path, encoding="utf-8") as file:
                if "hash" in file.readline().rstrip().split(","):
                    held |= {record["hash"]: record for record in read_records(path)}
        return list(held.values())

    @cached_property
    def specs(self) -> list[Spec]:
        """Every specification of a sweep."""
        return [
            Spec.read(path)
            for path in sorted(self.folder.glob("*.yaml"))
            if "tiers" in (yaml.safe_load(path.read_text(encoding="utf-8")) or {})
        ]

    def _method(self, dataset: str, method: Method, beta: float) -> tuple[str, dict[str, Any]]:
        """What is minimised, and the fields of every run of a method."""
        fields = _fields(method)
        if beta == 1 and OBJECTIVES[fields["objective"]] == "beta-tcvae":
            # the terms of the total-correlation objectives then add up to the ELBO
            fields["objective"] = fields["objective"].replace("tc", "")
        key = dataset, repr(sorted(fields.items()))
        if key not in self._standard:
            self._standard[key] = Run(dataset=dataset, **fields).to_dict()
        return OBJECTIVES[fields["objective"]], {name: self._standard[key][name] for name in _OF_THE_MODEL}

    def runs(self, dataset: str, method: Method, beta: float | None = None) -> dict[Setting, list[dict[str, Any]]]:
        """Recorded runs of a method that did not diverge, by how they were trained, in the order of seeds.

        Parameters
        ----------
        dataset
            Its name.
        method
            Name of an objective, with ``", learned"`` for learned exponents, or the fields of a run that make it.
        beta
            Weight of the divergence, or several; all where it is None.
        """
        wanted = None if beta is None else {beta} if isinstance(beta, (int, float)) else set(beta)
        before = self.asked.get((dataset, repr(method)), (method, set()))[1]
        self.asked[dataset, repr(method)] = method, None if None in (wanted, before) else before | wanted
        found: dict[Setting, list[dict[str, Any]]] = {}
        for row in self.records:
            if row["dataset"] != dataset or row["status"] != "trained":
                continue
            if wanted is not None and row["beta"] not in wanted:
                continue
            base, fields = self._method(dataset, method, row["beta"])
            if OBJECTIVES[row["objective"]] == base and all(row[name] == fields[name] for name in _OF_THE_MODEL):
                found.setdefault(Setting.of(row), []).append(row)
        return {
            setting: sorted(found[setting], key=lambda row: (row["beta"], row["seed"])) for setting in sorted(found)
        }

    def missing(self) -> Missing | None:
        """What was asked for at the paper's settings since :meth:`forget`; None where nothing of sweeps was."""
        if not self.asked:
            return None
        recorded = {record["hash"] for record in self.records}
        wanted: dict[str, str] = {}
        unnamed = []
        for (dataset, _), (method, betas) in self.asked.items():
            named = {digest: command for digest, run, fields, command in self._named
                     if run.dataset == dataset and (betas is None or run.beta in betas)
                     and self._matches(run, fields, method)}  # fmt: skip
            wanted |= named
            if not named:
                unnamed.append(method_text(method))
        left = [digest for digest in wanted if digest not in recorded]
        commands = dict.fromkeys(wanted[digest] for digest in left)
        return Missing(len(wanted) - len(left), len(wanted), tuple(commands), tuple(unnamed))

    @cached_property
    def _named(self) -> list[tuple[str, Run, dict[str, Any], str]]:
        """Runs at the paper's settings that specifications name: hash, run, its fields, the command that makes it."""
        named: dict[str, tuple[str, Run, dict[str, Any], str]] = {}
        steps = {dataset: Run(dataset=dataset).total_steps for dataset in data.NAMES}
        for spec in self.specs:
            for run in spec.runs():
                if run.total_steps == steps[run.dataset] and not run.reduced:
                    digest = run.hash
                    named.setdefault(digest, (digest, run, run.to_dict(), f"isa sweep runs/{spec.path.name}"))
        return list(named.values())

    def _matches(self, run: Run, held: Mapping[str, Any], method: Method) -> bool:
        base, fields = self._method(run.dataset, method, run.beta)
        return run.base == base and all(held[name] == fields[name] for name in _OF_THE_MODEL)

    def forget(self) -> None:
        """Begin anew to remember what is asked for."""
        self.asked.clear()

    # --- studies of the toys

    def ica(self, name: str) -> tuple[Study, dict[str, np.ndarray]] | None:
        """A study of ICA and its record; None where nothing is recorded."""
        path = self.folder / f"{name}.csv"
        if not path.exists():
            return None
        record = load_record(path)
        return (Study.read(path.with_suffix(".yaml")), record) if len(record["seed"]) else None


def alike(*groups: Mapping[Setting, Sequence[Any]]) -> list[tuple[Setting, list[Sequence[Any]]]]:
    """Settings that every group has runs of, each with the groups' runs."""
    shared = sorted(set.intersection(*(set(group) for group in groups)))
    return [(setting, [group[setting] for group in groups]) for setting in shared]
