"""Speed of the prior: its log-density beside the normal's, and its sampler beside Algorithm 1 written out.

    python benchmarks/prior.py [--json FILE]

Every figure is processor time of one core, or a ratio of two such times within this run: what is compared takes
turns, and medians are reported.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.distributions import Gamma, Normal

from isa import LpNested, isa_prior
from isa.prior import LearnableISAPrior

BATCH, POINTS = 2048, 1_000_000


def timed(work: dict[str, Callable[[], object]], repeats: int, calls: int) -> dict[str, float]:
    """Median processor seconds per call of each piece of work, all of them taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for function in work.values():
        function()
    for _ in range(repeats):
        for name, function in work.items():
            start = time.process_time()
            for _ in range(calls):
                function()
            seconds[name].append((time.process_time() - start) / calls)
    return {name: statistics.median(times) for name, times in seconds.items()}


def algorithm_1(prior: LpNested, count: int) -> Tensor:
    """Algorithm 1 step by step: a radius, then at each node a Beta variable for every child (stick breaking)."""

    def share(node, value: Tensor) -> list[Tensor]:
        children = [
            item for child in node.children for item in ([child] if not isinstance(child, int) else [1] * child)
        ]
        sizes = [child if isinstance(child, int) else child.n_leaves for child in children]
        rest, leaves = torch.ones(count), []
        for k, (child, size) in enumerate(zip(children, sizes, strict=True)):
            last = k == len(children) - 1
            if last:
                part = rest
            else:
                below = torch.distributions.Beta(size / node.p, sum(sizes[k + 1 :]) / node.p, validate_args=False)
                part = rest * below.sample((count,))
                rest = rest - part
            own = value * part.clamp(min=0) ** (1 / node.p)
            leaves += [own] if isinstance(child, int) else share(child, own)
        return leaves

    p0 = prior.tree.p
    radius = Gamma(prior.tree.n_leaves / p0, 1 / prior.scale).sample((count,)) ** (1 / p0)
    magnitude = torch.stack(share(prior.tree, radius), -1)
    return magnitude * (torch.randint(0, 2, magnitude.shape) * 2 - 1)


def log_prob_ratios() -> dict[str, float]:
    """Forward and backward of log-densities on a batch, in microseconds and as ratios to the normal's."""
    torch.manual_seed(0)
    z = torch.randn(BATCH, 20, requires_grad=True)
    normal, prior, learned = Normal(0.0, 1.0), isa_prior(), LearnableISAPrior()

    def step(log_prob: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            z.grad = None
            log_prob(z).sum().backward()

        return run

    functions = {
        "normal": lambda x: normal.log_prob(x).sum(-1),
        "prior": prior.log_prob,
        "prior, exponents learned": lambda x: learned().log_prob(x),
    }
    work = {f"{name}, eager": step(function) for name, function in functions.items()}
    if any(map(shutil.which, ("g++", "c++", "clang++"))):
        work |= {f"{name}, compiled": step(torch.compile(function)) for name, function in functions.items()}
    seconds = timed(work, repeats=25, calls=20)
    figures = {f"{name}, microseconds": 1e6 * value for name, value in seconds.items()}
    for mode in ("eager", "compiled"):
        for name in ("prior", "prior, exponents learned"):
            if f"{name}, {mode}" in seconds:
                figures[f"{name}, {mode}, ratio"] = seconds[f"{name}, {mode}"] / seconds[f"normal, {mode}"]
    return figures


def sampling_seconds() -> dict[str, float]:
    """Drawing a million points, in seconds."""
    prior = isa_prior()
    work = {
        "sample": lambda: prior.sample((POINTS,)),
        "Algorithm 1, step by step": lambda: algorithm_1(prior, POINTS),
        "normal of the same shape": lambda: torch.randn(POINTS, 20),
    }
    torch.manual_seed(0)
    steps, ours = algorithm_1(prior, 100_000).square().mean(), prior.sample((100_000,)).square().mean()
    assert abs(steps - ours) < 0.01, "the two samplers must draw from one distribution"
    return {f"{name}, seconds": value for name, value in timed(work, repeats=5, calls=1).items()}


def main(arguments: list[str] | None = None) -> dict[str, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures = log_prob_ratios() | sampling_seconds()

    print(f"log_prob, forward and backward, {BATCH} x 20, one core (the target is a ratio of at most 5)")
    print(f"{'':32}{'microseconds':>14}{'ratio':>8}")
    for name, value in figures.items():
        if name.endswith(", microseconds"):
            what = name.removesuffix(", microseconds")
            ratio = figures.get(f"{what}, ratio", 1.0)
            print(f"{what:32}{value:14.0f}{ratio:8.2f}")
    print(f"\nsampling {POINTS:,} points x 20, one core (the target is 2 s)")
    for name, value in figures.items():
        if name.endswith(", seconds"):
            print(f"{name.removesuffix(', seconds'):32}{value:12.2f} s")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    return figures


if __name__ == "__main__":
    main()
