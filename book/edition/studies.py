"""Studies over many seeds: a specification ``NAME.yaml`` and its record, ``NAME.csv``.

``python -m edition.studies SPEC`` runs or resumes a study: fits of the ICA toy to many data sets (:class:`Study`), or
codes of positions under factorised priors (:class:`OrientationStudy`, Fig. 3).
"""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
import yaml
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt

from edition import orientation
from isa import LpNested, isa_prior
from isa.toys import ica

__all__ = ["OrientationStudy", "Study", "load_record", "lp_prior", "pruning_exponents", "read_study", "record_weights"]
__all__ += ["run_study"]

Array = np.ndarray

_LP = r"lp(?:-own)?:[0-9.]+:[0-9.]+:[0-9]+(?:\+[0-9]+)*"


def _parse(method: str) -> tuple[tuple[int, ...], float, float]:
    """Return subspaces, p0 and p1 of a method with an Lp-nested prior."""
    _, p0, p1, sizes = method.split(":")
    return tuple(map(int, sizes.split("+"))), float(p0), float(p1)


def lp_prior(method: str) -> LpNested:
    """Return the prior that a method such as ``lp:2.1:2.2:3`` or ``lp-own:2.1:2.2:1+2`` names.

    Its moments are in double precision: the start of a fit decides where it ends along a flat valley.

    Examples
    --------
    >>> print(lp_prior("lp-own:2.1:2.2:3").tree)
    2.1[2.2[3]]
    """
    sizes, *exponents = _parse(method)
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


class Study(BaseModel, extra="forbid", frozen=True):
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
    methods: tuple[Annotated[str, Field(pattern=rf"^(newton|em|exact|exact-random|{_LP})$")], ...]
    updates: PositiveInt = 40
    max_updates: PositiveInt = 150
    log_likelihood: bool = False

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
        if method.startswith("lp"):
            prior = lp_prior(method)
            # Both kinds of sources have the Student-t's variance: signal and noise are those of the other methods.
            scaled = truth * np.sqrt(dof / (dof - 2.0) / prior.variance.numpy())
            if method.startswith("lp-own"):
                rng = np.random.default_rng([seed, 2])
                z = _sample_sources(*_parse(method), self.n, rng)
                x = z @ scaled.T + np.sqrt(noise) * rng.standard_normal(x.shape)
            result = ica.fit_lp_nested(x, scaled, noise, prior, beta)
        elif method.startswith("exact"):
            random = ica.directions(np.random.default_rng([seed, 1]).uniform(0.0, 180.0, truth.shape[1]))
            result = ica.fit_exact(x, random if method == "exact-random" else truth, noise, dof)
        else:
            options = {"method": "em", "max_iter": self.max_updates} if method == "em" else {}
            result = ica.fit(x, truth, noise, dof, beta, **options)
        W, steps = result.W, result.n_iter
        path = result.log_likelihood if method.startswith("exact") else result.free_energy
        if method == "em":
            steps = min(self.updates, steps)
            W, path = result.path[steps], path[: steps + 1]
            pruned = [step for step, weights in enumerate(result.path) if not ica.survivors(weights).all()]
            pruned_at = str(pruned[0]) if pruned else ""
        likelihood = f"{ica.log_likelihood(x, W, noise, dof).sum():.4f}" if self.log_likelihood else ""
        weights = [f"{value:.6f}" for value in W.ravel()]
        return [str(steps), str(int(result.converged)), f"{path[-1]:.4f}", likelihood, pruned_at, *weights]


class _Group(BaseModel, extra="forbid", frozen=True):
    exponents: tuple[PositiveFloat, ...] = Field(min_length=1)
    beta: float = Field(ge=0)
    seeds: tuple[int, ...] = Field(min_length=1)
    steps: PositiveInt
    batch_size: PositiveInt


class OrientationStudy(BaseModel, extra="forbid", frozen=True):
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
    contents = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return OrientationStudy(**contents) if "groups" in contents else Study(**contents)


def load_record(path: str | Path) -> dict[str, Array]:
    """Read a record: one array a column; ``method`` is text, the others numbers, with NaN where empty.

    A last line that an interrupted run left unfinished is skipped.
    """
    lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    header, *rows = csv.reader(line for line in lines if line.endswith("\n"))
    cells = np.array(rows, dtype=str).reshape(-1, len(header)).T
    return {
        name: values if name == "method" else np.where(values == "", "nan", values).astype(float)
        for name, values in zip(header, cells, strict=True)
    }


def record_weights(record: dict[str, Array]) -> Array:
    """Return the weights of each row of a record, (rows, 2, K)."""
    k = sum(name.startswith("w1") for name in record)
    return np.stack([[record[f"w{row}{column}"] for column in range(1, k + 1)] for row in (1, 2)]).transpose(2, 0, 1)


def pruning_exponents(record: dict[str, Array]) -> Array:
    """Return the slope of the logarithm of the step of pruning against that of beta, by coordinate ascent.

    One slope for each data set of the record that is pruned at every beta.
    """
    rows = record["method"] == "em"
    seed, beta, step = (record[name][rows] for name in ("seed", "beta", "pruned_at"))
    pruned = [seed == one for one in np.unique(seed) if np.isfinite(step[seed == one]).all()]
    return np.array([np.polyfit(np.log(beta[one]), np.log(step[one]), 1)[0] for one in pruned])


def run_study(spec: str | Path, report: Callable[[str], None] = lambda line: None) -> None:
    """Run the cases of a specification, a ``.yaml`` file, that its record does not hold yet, and report each row.

    Each row is appended in one write, so that a study can be interrupted at any time and resumed.
    """
    study, path = read_study(spec), Path(spec).with_suffix(".csv")
    done = set()
    if path.exists():
        record = load_record(path)
        if list(record) != study.header:
            raise ValueError(f"{path} has columns {list(record)}, but {spec} makes {study.header}")
        done = set(zip(*(record[name].tolist() for name in study.keys), strict=True))
        os.truncate(path, path.read_bytes().rfind(b"\n") + 1)
    with open(path, "ab", buffering=0) as file:
        if file.tell() == 0:
            file.write((",".join(study.header) + "\n").encode())
        for case in dict.fromkeys(study.cases()):
            if case not in done:
                key = [value if isinstance(value, str) else f"{value:g}" for value in case]
                line = ",".join([*key, *study.run(*case)])
                file.write(f"{line}\n".encode())
                report(line)


def main(arguments: list[str] | None = None) -> None:
    """Run or resume a study from the command line."""
    parser = argparse.ArgumentParser(
        "python -m edition.studies", description="Studies of ICA, and of Fig. 3, over seeds."
    )
    parser.add_argument("spec", help="a runs/*.yaml file; its record is the .csv of the same name")
    try:
        run_study(parser.parse_args(arguments).spec, report=lambda line: print(line, flush=True))
    except (OSError, TypeError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
