"""Studies over many seeds: a specification ``NAME.yaml`` and its record, the ``.csv`` beside it.

``python -m edition.studies SPEC`` runs or resumes a study: fits of the ICA toy to many data sets (:class:`Study`), or
codes of positions under factorised priors (:class:`OrientationStudy`, Fig. 3).
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, field_validator

from edition import orientation
from isa import LpNested, isa_prior
from isa.toys import ica

__all__ = [
    "OrientationStudy",
    "Specification",
    "Study",
    "load_record",
    "lp_prior",
    "read_study",
    "record_weights",
    "run_study",
]

Array = np.ndarray

METHODS = ("newton", "em", "exact", "exact-random", "lp:P0:P1:N+...", "lp-own:P0:P1:N+...")


def _parse(method: str) -> tuple[tuple[int, ...], float, float] | None:
    """Return subspaces, p0 and p1 of a method with an Lp-nested prior; None for other methods."""
    if not method.startswith(("lp:", "lp-own:")):
        return None
    p0, p1, sizes = method.split(":")[1:]
    return tuple(int(size) for size in sizes.split("+")), float(p0), float(p1)


def lp_prior(method: str) -> LpNested | None:
    """Return the prior that a method such as ``lp:2.1:2.2:3`` or ``lp-own:2.1:2.2:1+2`` names; None for other methods.

    Its moments are in double precision: the start of a fit decides where it ends along a flat valley.

    Examples
    --------
    >>> print(lp_prior("lp-own:2.1:2.2:3").tree)
    2.1[2.2[3]]
    """
    parsed = _parse(method)
    if parsed is None:
        return None
    sizes, *exponents = parsed
    return isa_prior(sizes, *(torch.tensor(p, dtype=torch.float64) for p in exponents))


def _sample_sources(sizes: tuple[int, ...], p0: float, p1: float, n: int, rng: np.random.Generator) -> Array:
    """Draw (n, K) from an ISA prior: in each subspace a direction and a radius with ``r^p0 ~ Gamma(n_V / p0)``.

    NumPy's generator, not PyTorch's, draws them, so that a record can be reproduced.
    """
    out = []
    for size in sizes:
        power = rng.gamma(1 / p1, size=(n, size))
        raw = rng.choice([-1.0, 1.0], size=power.shape) * power ** (1 / p1)
        radius = rng.gamma(size / p0, size=n) ** (1 / p0)
        out.append(raw * (radius / power.sum(1) ** (1 / p1))[:, None])
    return np.concatenate(out, axis=1)


class Specification(BaseModel):
    """Contents of a YAML file; an unknown or missing key, or a value out of range, is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a specification."""
        return cls(**yaml.safe_load(Path(path).read_text(encoding="utf-8")))


class Study(Specification):
    """Specification of a study of ICA: every combination of its lists is fitted once.

    The ``methods`` are those of :func:`isa.toys.ica.fit`, started at the true weights; ``exact``,
    :func:`isa.toys.ica.fit_exact` from there; ``exact-random``, the same from random directions; ``lp:P0:P1:N+...``,
    :func:`isa.toys.ica.fit_lp_nested` with these exponents and subspaces on the same data; and ``lp-own:...``, on data
    whose sources have that prior. Rows of ``em`` hold the weights after ``updates`` steps, and the step, up to
    ``max_updates``, at which the first column was pruned. With ``log_likelihood`` each row has the exact one.
    """

    keys: ClassVar = ("method", "seed", "dof", "noise_var", "beta")

    seeds: PositiveInt
    n: PositiveInt
    directions: tuple[float, ...]
    noise_var: tuple[PositiveFloat, ...]
    dof: tuple[PositiveFloat, ...]
    beta: tuple[PositiveFloat, ...]
    methods: tuple[str, ...]
    updates: PositiveInt = 40
    max_updates: PositiveInt = 150
    log_likelihood: bool = False

    @field_validator("methods")
    @classmethod
    def _check_methods(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for method in methods:
            try:
                known = method in METHODS[:4] or _parse(method)
            except ValueError:
                known = False
            if not known:
                raise ValueError(f"methods may hold {', '.join(METHODS)}, got {method!r}")
        return methods

    def cases(self) -> Iterator[tuple[str, int, float, float, float]]:
        """Iterate over method, seed, dof, noise variance and beta of each fit; beta is 0 for exact likelihood."""
        for dof, noise, seed, method in product(self.dof, self.noise_var, range(self.seeds), self.methods):
            for beta in (0.0,) if method.startswith("exact") else self.beta:
                yield method, seed, dof, noise, beta

    @property
    def header(self) -> list[str]:
        """Columns of the record."""
        weights = [f"w{row}{column}" for row in (1, 2) for column in range(1, len(self.directions) + 1)]
        return [*self.keys, "steps", "converged", "objective", "log_likelihood", "pruned_at", *weights]

    def run(self, method: str, seed: int, dof: float, noise: float, beta: float) -> list[str]:
        """Fit one case, and return the columns of its row after the keys."""
        truth = ica.directions(list(self.directions))
        x, _ = ica.sample(self.n, truth, noise, dof=dof, seed=seed)
        pruned_at = ""
        prior = lp_prior(method)
        if prior is not None:
            # Both kinds of sources have the Student-t's variance: signal and noise are those of the other methods.
            scaled = truth * np.sqrt(dof / (dof - 2.0) / prior.variance.numpy())
            if method.startswith("lp-own"):
                rng = np.random.default_rng([seed, 2])
                z = _sample_sources(*_parse(method), self.n, rng)
                x = z @ scaled.T + np.sqrt(noise) * rng.standard_normal(x.shape)
            result = ica.fit_lp_nested(x, scaled, noise, prior, beta)
            W, steps, objective = result.W, result.n_iter, result.free_energy[-1]
        elif method.startswith("exact"):
            start = truth
            if method == "exact-random":
                start = ica.directions(np.random.default_rng([seed, 1]).uniform(0.0, 180.0, truth.shape[1]))
            result = ica.fit_exact(x, start, noise, dof)
            W, steps, objective = result.W, result.n_iter, result.log_likelihood[-1]
        elif method == "newton":
            result = ica.fit(x, truth, noise, dof, beta)
            W, steps, objective = result.W, result.n_iter, result.free_energy[-1]
        else:
            result = ica.fit(x, truth, noise, dof, beta, method="em", max_iter=self.max_updates)
            steps = min(self.updates, result.n_iter)
            W, objective = result.path[steps], result.free_energy[steps]
            pruned = [step for step, weights in enumerate(result.path) if not ica.survivors(weights).all()]
            pruned_at = str(pruned[0]) if pruned else ""
        likelihood = f"{ica.log_likelihood(x, W, noise, dof).sum():.4f}" if self.log_likelihood else ""
        weights = [f"{value:.6f}" for value in W.ravel()]
        return [str(steps), str(int(result.converged)), f"{objective:.4f}", likelihood, pruned_at, *weights]


class _Group(Specification):
    exponents: tuple[PositiveFloat, ...] = Field(min_length=1)
    beta: float = Field(ge=0)
    seeds: tuple[int, ...] = Field(min_length=1)
    steps: PositiveInt
    batch_size: PositiveInt


class OrientationStudy(Specification):
    """Specification of a study of orientation: groups of runs, each every combination of its exponents and seeds."""

    keys: ClassVar = ("exponent", "beta", "seed", "steps", "batch_size")
    header: ClassVar = [*keys, "alignment", "tilt", "linear", "active", "divergence", "noise"]

    groups: tuple[_Group, ...]

    def cases(self) -> Iterator[tuple[float, float, int, int, int]]:
        """Iterate over exponent, beta, seed, steps and batch size: seed after seed in every group."""
        for group in self.groups:
            for seed, exponent in product(group.seeds, group.exponents):
                yield exponent, group.beta, seed, group.steps, group.batch_size

    def run(self, *case: float) -> list[str]:
        """Train one model, and return the columns of its row after the keys."""
        learned = orientation.learn(orientation.model(**dict(zip(self.keys, case, strict=True))), _positions())
        return [f"{value:.4g}" for value in (*learned.code, learned.divergence, learned.noise)]


_positions = cache(lambda: orientation.images())


def read_study(path: str | os.PathLike[str]) -> Study | OrientationStudy:
    """Read a specification of either kind: that of orientation has groups."""
    contents: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return OrientationStudy(**contents) if "groups" in contents else Study(**contents)


def load_record(path: str | Path) -> dict[str, Array]:
    """Read a record: one array a column; ``method`` is text, the others numbers, with NaN where empty.

    A last line that an interrupted run left unfinished is skipped.
    """
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    header, *rows = csv.reader(text[: text.rfind("\n") + 1].splitlines())
    columns = dict(zip(header, zip(*rows, strict=True) if rows else [()] * len(header), strict=True))
    return {
        name: np.array(values) if name == "method" else np.array([float(value or "nan") for value in values])
        for name, values in columns.items()
    }


def record_weights(record: dict[str, Array]) -> Array:
    """Return the weights of each row of a record, (rows, 2, K)."""
    k = sum(name.startswith("w1") for name in record)
    return np.stack([[record[f"w{row}{column}"] for column in range(1, k + 1)] for row in (1, 2)]).transpose(2, 0, 1)


def run_study(spec: str | Path, seconds: float = np.inf, report: Callable[[str], None] = lambda line: None) -> int:
    """Run the cases of a specification that its record does not hold yet, and return how many are left.

    Each row is appended in one write, so that a study can be interrupted at any time and resumed.

    Parameters
    ----------
    spec
        Path of the ``.yaml`` file.
    seconds
        Start no further case after this time.
    report
        Called with each row.
    """
    study, path = read_study(spec), Path(spec).with_suffix(".csv")
    deadline = time.monotonic() + seconds
    done = set()
    if path.exists():
        record = load_record(path)
        if list(record) != study.header:
            raise ValueError(f"{path} has columns {list(record)}, but {spec} makes {study.header}")
        done = set(zip(*(record[name].tolist() for name in study.keys), strict=True))
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    left = [case for case in dict.fromkeys(study.cases()) if case not in done]
    with open(path, "ab", buffering=0) as file:
        if file.tell() == 0:
            file.write((",".join(study.header) + "\n").encode())
        while left and time.monotonic() < deadline:
            key = [value if isinstance(value, str) else f"{value:g}" for value in left[0]]
            line = ",".join([*key, *study.run(*left[0])])
            file.write(f"{line}\n".encode())
            report(line)
            left.pop(0)
    return len(left)


def main(arguments: list[str] | None = None) -> int:
    """Run or resume a study from the command line; return 3 while cases are left, and 2 for a bad specification."""
    parser = argparse.ArgumentParser(
        prog="python -m edition.studies", description="Studies of ICA, and of Fig. 3, over many seeds."
    )
    parser.add_argument("spec", help="a runs/*.yaml file; its record is the .csv of the same name")
    parser.add_argument("--seconds", type=float, default=np.inf, help="start no further case after this time")
    chosen = parser.parse_args(arguments)
    try:
        left = run_study(chosen.spec, chosen.seconds, report=lambda line: print(line, flush=True))
    except (OSError, TypeError, ValueError) as error:
        print(f"python -m edition.studies: {error}", file=sys.stderr)
        return 2
    print(f"{left} cases left")
    return 3 if left else 0


if __name__ == "__main__":
    sys.exit(main())
