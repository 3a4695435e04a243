"""Specifications: the short YAML files that name the runs of a sweep."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, InstanceOf, StringConstraints, ValidationError, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass

from isa.run import Run

__all__ = ["Spec"]

_MOST_RUNS = 10_000


class _Loader(yaml.SafeLoader):
    """YAML without its traps: no key twice, no octal numbers, no number that is text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{name!r} is given twice")
        return super().construct_mapping(node, deep)

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        if not re.fullmatch(r"[-+]?(0|[1-9]\d*)", node.value):
            raise ValueError(f"{node.value} is {self.construct_yaml_int(node)} in YAML: write it in decimal digits")
        return int(node.value)

    def construct_text(self, node: yaml.ScalarNode) -> str:
        number = re.fullmatch(r"([-+]?\d+)(\.\d*)?[eE]([-+]?)(\d+)", node.value)
        if number and node.style is None:
            whole, fraction, sign, power = number.groups()
            hint = f"{whole}{fraction or '.0'}e{sign or '+'}{power}"
            raise ValueError(f"{node.value} is text in YAML: write {hint}")
        return node.value


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)
_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_text)


def _seeds(value: object) -> list[int]:
    """Return the seeds that 10 (the first ten), "10-14" or a list of seeds and ranges stand for."""
    seeds: dict[int, None] = {}
    for part in value if isinstance(value, list) else [f"0-{value - 1}" if type(value) is int else value]:
        match = re.fullmatch(r"(\d+)-(\d+)", f"{part}-{part}" if type(part) is int else str(part))
        first, last = map(int, match.groups()) if match else (1, 0)
        if not first <= last < first + _MOST_RUNS:
            allowed = f"a number from 1 to {_MOST_RUNS:,}, a range such as 10-14, or a list of seeds and ranges"
            raise ValueError(f"seeds must be {allowed}, got {value}")
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)


def _choices(name: str, value: Any) -> list:
    """Return the values of a field in a grid."""
    if not isinstance(value, list) or (name == "subspaces" and not any(isinstance(one, list) for one in value)):
        value = [value]
    if not value:
        raise ValueError(f"{name} must have a value, got an empty list")
    return [tuple(one) if isinstance(one, list) else one for one in value]


def _grid(every: Mapping[str, Any], grid: object) -> list[Run]:
    """Return every run of a grid, the last field named varying fastest, and seeds slowest: so comparisons stay even."""
    if not isinstance(grid, Mapping):
        raise ValueError(f"a grid must be a mapping of fields to values, got {grid!r}")
    named = {**every, **grid}
    if {"seed", "seeds"} <= set(named):
        raise ValueError("seed and seeds exclude each other, got both")
    choices = {name: _choices(name, value) for name, value in named.items() if name != "seeds"}
    seeds = _seeds(named["seeds"]) if "seeds" in named else choices.pop("seed", [0])
    if len(seeds) * math.prod(map(len, choices.values())) > _MOST_RUNS:
        raise ValueError(f"a grid must have at most {_MOST_RUNS:,} runs")
    combinations = [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]
    return [Run(**values, seed=seed) for seed in seeds for values in combinations]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Spec:
    """Runs by name: what a sweep trains, and where it records.

    Attributes
    ----------
    path : Path
        The file that it was read from.
    title : str
        What the runs are, for people.
    every : dict
        Fields that all runs share.
    tiers : dict of int to tuple of Run
        The runs by tier, each run in the first tier that names it. Grids are accepted as well as runs.
    """

    path: Path
    title: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    every: dict[str, Any] = Field(default_factory=dict, repr=False)
    tiers: dict[int, tuple[InstanceOf[Run], ...]] = Field(repr=False)

    @field_validator("tiers", mode="before")
    @classmethod
    def _expand(cls, tiers: Any, info: ValidationInfo) -> dict[int, tuple[Run, ...]]:
        """Replace grids by their runs, each in the first tier that names it."""
        if not isinstance(tiers, dict) or not tiers or not all(type(tier) is int and tier > 0 for tier in tiers):
            raise ValueError(f"tiers must have numbers, from 1 on, got {tiers!r:.60}")
        expanded: dict[int, tuple[Run, ...]] = {}
        seen: set[str] = set()
        for tier in sorted(tiers):
            if not isinstance(tiers[tier], list | tuple):
                raise ValueError(f"tier {tier} must be a list of grids, got {tiers[tier]!r:.60}")
            runs: dict[str, Run] = {}
            for number, grid in enumerate(tiers[tier], 1):
                try:
                    for run in [grid] if isinstance(grid, Run) else _grid(info.data.get("every", {}), grid):
                        runs.setdefault(run.hash, run)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"tier {tier}, grid {number}: {error}") from None
            expanded[tier] = tuple(run for digest, run in runs.items() if digest not in seen)
            seen.update(runs)
        return expanded

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Spec:
        """Read a specification and check every run that it names.

        A ``ValueError`` names the file, the place in it, the value, and what is allowed.

        Parameters
        ----------
        path
            A ``.yaml`` file; see :mod:`isa.sweep` for what is in it.
        """
        try:
            document = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
            if not isinstance(document, dict):
                raise ValueError(f"it must have title, every and tiers, got {document!r:.60}")
            return cls(**document, path=path)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = "".join(f"{name}: " for name in first["loc"][:1])  # no place if a name is not Unicode
            raise ValueError(f"{path}: {place}{first['msg']}".replace("tiers: Value error, ", "")) from None
        except (yaml.YAMLError, TypeError, ValueError, IndexError, AttributeError) as error:  # of YAML's own tags
            raise ValueError(f"{path}: {' '.join(str(error).split())}") from None

    @property
    def name(self) -> str:
        """The file's name without its suffix."""
        return self.path.stem

    @property
    def record(self) -> Path:
        """The table of records, the ``.csv`` beside the specification."""
        return self.path.with_suffix(".csv")

    @property
    def work(self) -> Path:
        """Folder for what a sweep in progress keeps: claims, checkpoints, models."""
        return self.path.parent / "work" / self.name

    def runs(self, tier: int | None = None) -> tuple[Run, ...]:
        """Return all runs up to a tier, all if it is None, in the order in which they are trained."""
        if tier is not None and tier not in self.tiers:
            raise ValueError(f"tier must be one of {', '.join(map(str, self.tiers))} in {self.path}, got {tier!r}")
        return tuple(run for number, runs in self.tiers.items() if tier is None or number <= tier for run in runs)

    def grid(self, *, named: bool = False, **values: Any) -> Spec:
        """Return the same shared fields and records with the runs of another grid, as its only tier.

        Parameters
        ----------
        named
            Add the runs of this specification that differ from those of the grid only in the seed.
        **values
            As in a grid of the file: fields of a run with one value or a list of values, and ``seeds``.
        """
        every = {name: value for name, value in self.every.items() if name not in values}
        runs = _grid(every, values)
        if named:
            wanted = {run.replace(seed=0) for run in runs}
            runs += [run for run in self.runs() if run.replace(seed=0) in wanted]
        return replace(self, tiers={1: runs})
