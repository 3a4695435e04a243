"""Studies of the ICA toy over many data sets: a specification ``NAME.yaml`` and its record, the ``.csv`` beside it.

``python -m edition.studies SPEC`` runs or resumes a study.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from itertools import product
from pathlib import Path

import numpy as np
import torch
import yaml

from isa import LpNested, isa_prior
from isa.toys import ica

__all__ = ["Study", "load_record", "lp_prior", "record_weights", "run_study"]

Array = np.ndarray

METHODS = ("newton", "em", "exact", "exact-random", "lp:P0:P1:N+...", "lp-own:P0:P1:N+...")
_KEYS = ("method", "seed", "dof", "noise_var", "beta")


def _parse(method: str) -> tuple[tuple[int, ...], float, float] | None:
    """Return subspaces, p0 and p1 of a method with an Lp-nested prior; None for other methods."""
    if not method.startswith(("lp:", "lp-own:")):
        return None
    try:
        p0, p1, sizes = method.split(":")[1:]
        return tuple(int(size) for size in sizes.split("+")), float(p0), float(p1)
    except ValueError as error:
        raise ValueError(f"methods may hold {METHODS[-2]}, got {method!r}: {error}") from error


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


@dataclass(frozen=True)
class Study:
    """Specification of a study: every combination of its lists is fitted once.

    The ``methods`` are those of :func:`isa.toys.ica.fit`, started at the true weights; ``exact``,
    :func:`isa.toys.ica.fit_exact` from there; ``exact-random``, the same from random directions; ``lp:P0:P1:N+...``,
    :func:`isa.toys.ica.fit_lp_nested` with these exponents and subspaces on the same data; and ``lp-own:...``, on data
    whose sources have that prior. Rows of ``em`` hold the weights after ``updates`` steps, and the step, up to
    ``max_updates``, at which the first column was pruned. With ``log_likelihood`` each row has the exact one.
    """

    seeds: int
    n: int
    directions: tuple[float, ...]
    noise_var: tuple[float, ...]
    dof: tuple[float, ...]
    beta: tuple[float, ...]
    methods: tuple[str, ...]
    updates: int = 40
    max_updates: int = 150
    log_likelihood: bool = False

    def __post_init__(self) -> None:
        for name in ("seeds", "n", "updates", "max_updates"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name in ("noise_var", "dof", "beta"):
            if not all(isinstance(value, (int, float)) and value > 0 for value in getattr(self, name)):
                raise ValueError(f"{name} must be positive, got {list(getattr(self, name))}")
        for method in self.methods:
            if method not in METHODS[:4] and lp_prior(method) is None:
                raise ValueError(f"methods may hold {', '.join(METHODS)}, got {method!r}")
        if self.updates > self.max_updates:
            raise ValueError(f"updates must be at most max_updates = {self.max_updates}, got {self.updates}")

    @classmethod
    def read(cls, path: str | Path) -> Study:
        """Read a specification; an unknown or missing key is an error."""
        with open(path, encoding="utf-8") as file:
            given = yaml.safe_load(file)
        if not isinstance(given, dict):
            raise ValueError(f"{path} must hold a mapping of keys to values")
        known = {field.name: field for field in fields(cls)}
        unknown = sorted(set(given) - set(known))
        missing = sorted(name for name, field in known.items() if field.default is MISSING and name not in given)
        if unknown or missing:
            raise ValueError(f"{path}: unknown keys {unknown}, missing keys {missing}; allowed are {sorted(known)}")
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})

    def cases(self) -> Iterator[tuple[str, int, float, float, float]]:
        """Yield method, seed, dof, noise variance and beta of each fit; beta is 0 for exact likelihood."""
        for dof, noise, seed, method in product(self.dof, self.noise_var, range(self.seeds), self.methods):
            for beta in (0.0,) if method.startswith("exact") else self.beta:
                yield method, seed, float(dof), float(noise), float(beta)

    @property
    def header(self) -> list[str]:
        """Columns of the record."""
        weights = [f"w{row}{column}" for row in (1, 2) for column in range(1, len(self.directions) + 1)]
        return [*_KEYS, "steps", "converged", "objective", "log_likelihood", "pruned_at", *weights]


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


def _run_case(study: Study, method: str, seed: int, dof: float, noise: float, beta: float) -> list[str]:
    """Fit one case and return its row as text."""
    truth = ica.directions(list(study.directions))
    x, _ = ica.sample(study.n, truth, noise, dof=dof, seed=seed)
    pruned_at = ""
    prior = lp_prior(method)
    if prior is not None:
        # Both kinds of sources have the Student-t's variance, so that signal and noise are those of the other methods.
        scaled = truth * np.sqrt(dof / (dof - 2.0) / prior.variance.numpy())
        if method.startswith("lp-own"):
            rng = np.random.default_rng([seed, 2])
            z = _sample_sources(*_parse(method), study.n, rng)
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
        result = ica.fit(x, truth, noise, dof, beta, method="em", max_iter=study.max_updates)
        steps = min(study.updates, result.n_iter)
        W, objective = result.path[steps], result.free_energy[steps]
        pruned = [step for step, weights in enumerate(result.path) if not ica.survivors(weights).all()]
        pruned_at = str(pruned[0]) if pruned else ""
    likelihood = f"{ica.log_likelihood(x, W, noise, dof).sum():.4f}" if study.log_likelihood else ""
    key = [method, str(seed), f"{dof:g}", f"{noise:g}", f"{beta:g}"]
    weights = [f"{value:.6f}" for value in W.ravel()]
    return [*key, str(steps), str(int(result.converged)), f"{objective:.4f}", likelihood, pruned_at, *weights]


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
    """Fit the cases of a specification that its record does not hold yet, and return how many are left.

    Each row is appended in one write, so that a run can be interrupted at any time and resumed.

    Parameters
    ----------
    spec
        Path of the ``.yaml`` file.
    seconds
        Start no further fit after this time.
    report
        Called with each row.
    """
    study, record = Study.read(spec), Path(spec).with_suffix(".csv")
    deadline = time.monotonic() + seconds
    done = set()
    if record.exists():
        raw = record.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) < len(raw):
            os.truncate(record, len(whole))
        rows = list(csv.reader(whole.decode().splitlines()))
        if rows and rows[0] != study.header:
            raise ValueError(f"{record} has columns {rows[0]}, but {spec} makes {study.header}")
        keys = (row[: len(_KEYS)] for row in rows[1:])
        done = {(method, int(seed), *map(float, rest)) for method, seed, *rest in keys}
    left = [case for case in study.cases() if case not in done]
    with open(record, "ab", buffering=0) as file:
        if file.tell() == 0:
            file.write((",".join(study.header) + "\n").encode())
        while left and time.monotonic() < deadline:
            line = ",".join(_run_case(study, *left[0])) + "\n"
            file.write(line.encode())
            report(line.rstrip())
            left.pop(0)
    return len(left)


def main(arguments: list[str] | None = None) -> int:
    """Run or resume a study from the command line; return 3 while cases are left, and 2 for a bad specification."""
    parser = argparse.ArgumentParser(
        prog="python -m edition.studies", description="Studies of ICA over many data sets."
    )
    parser.add_argument("spec", help="a runs/*.yaml file; its record is the .csv of the same name")
    parser.add_argument("--seconds", type=float, default=np.inf, help="start no further fit after this time")
    chosen = parser.parse_args(arguments)
    try:
        left = run_study(chosen.spec, chosen.seconds, report=print)
    except (OSError, TypeError, ValueError) as error:
        print(f"python -m edition.studies: {error}", file=sys.stderr)
        return 2
    print(f"{left} cases left")
    return 3 if left else 0


if __name__ == "__main__":
    sys.exit(main())
