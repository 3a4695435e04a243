"""Specifications: the short YAML files that name the runs of a sweep."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from isa.run import Run

__all__ = ["Spec"]

_MOST_RUNS = 10_000


class _Loader(yaml.SafeLoader):
    """YAML in which no key of a mapping is repeated."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        names = [key.value for key, _ in node.value]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"{twice[0]!r} is given twice")
        return super().construct_mapping(node, deep)


def _seeds(value: object) -> list[int]:
    """Return the seeds that 10 (the first ten), "10-14" or a list of seeds and ranges stand for."""
    seeds: list[int] = []
    for part in value if isinstance(value, list) else [f"0-{value - 1}" if type(value) is int else value]:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", str(part))
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + _MOST_RUNS:
            allowed = f"a number from 1 to {_MOST_RUNS:,}, a range such as 10-14, or a list of seeds and ranges"
            raise ValueError(f"seeds must be {allowed}, got {value}")
        seeds += range(first, last + 1)
    return list(dict.fromkeys(seeds))


def _choices(name: str, value: Any) -> list:
    """Return the values of a field in a grid."""
    if not isinstance(value, list) or (name == "subspaces" and not any(isinstance(size, list) for size in value)):
        value = [value]
    if not value:
        raise ValueError(f"{name} must have a value, got an empty list")
    return [tuple(choice) if isinstance(choice, list) else choice for choice in value]


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
    combinations = list(itertools.product(*choices.values()))
    return [Run(**dict(zip(choices, values, strict=True)), seed=seed) for seed in seeds for values in combinations]


def _tiers(tiers: object, every: Mapping[str, Any]) -> dict[int, tuple[Run, ...]]:
    """Return the runs of each tier, each run in the first tier that names it."""
    if not isinstance(tiers, dict) or not tiers or not all(type(tier) is int and tier > 0 for tier in tiers):
        raise ValueError(f"tiers must have numbers, from 1 on, got {tiers!r:.60}")
    named: dict[str, tuple[int, Run]] = {}
    for tier, grids in sorted(tiers.items()):
        if not isinstance(grids, list):
            raise ValueError(f"tier {tier} must be a list of grids, got {grids!r:.60}")
        for number, grid in enumerate(grids, 1):
            try:
                for run in _grid(every, grid):
                    named.setdefault(run.hash, (tier, run))
            except (TypeError, ValueError) as error:
                raise ValueError(f"tier {tier}, grid {number}: {error}") from None
    return {tier: tuple(run for first, run in named.values() if first == tier) for tier in sorted(tiers)}


@dataclass(frozen=True)
class Spec:
    """Runs that a sweep trains, and the place of their records."""

    path: Path  #: file that it was read from
    title: str  #: description of the runs
    every: dict[str, Any] = field(repr=False)  #: fields that all runs share
    tiers: dict[int, tuple[Run, ...]] = field(repr=False)  #: runs by tier, each in the first tier that names it

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Spec:
        """Read a ``.yaml`` file; a ``ValueError`` names the file, the place in it, the value, and what is allowed."""
        try:
            document = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
            if not isinstance(document, dict) or set(document) | {"every"} != {"title", "every", "tiers"}:
                raise ValueError(f"it must have title, every and tiers, got {document!r:.60}")
            every = document.get("every") or {}
            return cls(Path(path), str(document["title"]), every, _tiers(document["tiers"], every))
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
        """Folder of what a sweep in progress keeps: checkpoints and models."""
        return self.path.parent / "work" / self.name

    def runs(self, tier: int | None = None) -> tuple[Run, ...]:
        """Return the runs up to a tier, all if it is None, in the order in which they are trained."""
        return tuple(run for number, runs in self.tiers.items() if tier is None or number <= tier for run in runs)

    def grid(self, *, named: bool = False, **values: Any) -> Spec:
        """Return the same shared fields and records with the runs of another grid, as its only tier.

        ``values`` are as in a grid of the file. With ``named``, the runs of this specification that differ from those
        of the grid only in the seed are added.
        """
        every = {name: value for name, value in self.every.items() if name not in values}
        runs = _grid(every, values)
        if named:
            wanted = {run.replace(seed=0) for run in runs}
            runs += [run for run in self.runs() if run.replace(seed=0) in wanted]
        return replace(self, tiers={1: tuple({run.hash: run for run in runs}.values())})
