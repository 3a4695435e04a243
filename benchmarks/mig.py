"""The mutual information gap of dSprites' size, beside the straightforward estimator: time, and agreement in nats.

Run as ``python benchmarks/mig.py [--json FILE]``; two cores are asked for by ``OMP_NUM_THREADS=2``. Posteriors are as
of a trained model: half of the latents follow the factors with sigma from 0.05 to 0.3, the others have collapsed to the
prior. The straightforward estimator sums over all posteriors sample by sample, as is usual, in single precision; it is
timed on a few samples and scaled by their number. The last part is what a record of a training needs in addition: the
factor that is not scored, the score from 10,000 samples, and the information of subspaces.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from isa import mig
from isa.subspaces import SubspaceInformation, random_groupings, subspace_information

SIZES = (3, 6, 40, 32, 32)
FACTORS = (1, 2, 3, 4)
UNSCORED = (0,)
USUAL_SAMPLES = 10_000
SUBSPACE, GROUPINGS, DRAWS = 4, 6, 100
COMPARED_LATENTS = 4
COMPARED_SAMPLES = 12  # enough of them that the fast sums are used


def posteriors(latents: int) -> tuple[Tensor, Tensor]:
    """(N, K) means and log variances: even latents active, odd ones collapsed."""
    generator = torch.Generator().manual_seed(0)
    n = math.prod(SIZES)
    axes = torch.meshgrid(*(torch.linspace(-1, 1, size) for size in SIZES), indexing="ij")
    factors = torch.stack([axis.reshape(-1) for axis in axes], 1)
    weights = torch.randn(2, len(SIZES), latents, generator=generator)
    mean = 1.5 * torch.tanh(1.2 * factors @ weights[0]) + torch.sin(2 * factors @ weights[1])
    sigma = 0.05 + 0.25 * torch.rand(n, latents, generator=generator)
    mean[:, 1::2] *= 0.01
    sigma[:, 1::2] = 1 - 0.05 * sigma[:, 1::2]
    return mean, 2 * sigma.log()


def straightforward(z: Tensor, mean: Tensor, log_var: Tensor, batch: int = 10) -> Tensor:
    """(K,) entropies from samples z (M, K) under mixtures of posteriors (N, K): all N M K Gaussians."""
    total = torch.zeros(z.shape[1], dtype=z.dtype)
    for part in z.split(batch):
        gap = part[:, None] - mean
        table = -0.5 * (gap**2 * torch.exp(-log_var) + log_var + math.log(2 * math.pi))
        total -= (torch.logsumexp(table, 1) - math.log(len(mean))).sum(0)
    return total / len(z)


def straightforward_on(samples: int, seed: int, mean: Tensor, log_var: Tensor) -> tuple[Tensor, Tensor]:
    """Entropies (K,) and conditional entropies (F, K) in float64, from the draws ``mig`` makes from this seed."""
    generator = torch.Generator().manual_seed(seed)
    mean, log_var = mean.double(), log_var.double()
    noise = torch.randn((mean.shape[1], len(mean)), dtype=torch.float64, generator=generator).T
    z = mean + torch.exp(0.5 * log_var) * noise
    images = torch.arange(len(mean)).reshape(SIZES)
    found = []
    for factor in (None, *FACTORS):
        slices = [images.reshape(-1)] if factor is None else [s.reshape(-1) for s in images.unbind(factor)]
        entropies = []
        for members in slices:
            picked = members[torch.randperm(len(members), generator=generator)[:samples]]
            entropies.append(straightforward(z[picked], mean[members], log_var[members], batch=2))
        found.append(torch.stack(entropies).mean(0))
    return found[0], torch.stack(found[1:])


def timed(function: Callable[[], object], repetitions: int) -> tuple[float, float]:
    """Least wall and processor time of a call, in seconds."""
    walls, processors = [], []
    for _ in range(repetitions):
        wall, processor = time.perf_counter(), time.process_time()
        function()
        walls.append(time.perf_counter() - wall)
        processors.append(time.process_time() - processor)
    return min(walls), min(processors)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--latents", type=int, default=20, help="latents scored (20)")
    parser.add_argument("--repetitions", type=int, default=3, help="runs of which the fastest counts (3)")
    parser.add_argument("--part", type=int, default=4, help="samples timed straightforwardly (4)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, too")
    arguments = parser.parse_args()

    mean, log_var = posteriors(arguments.latents)
    n = len(mean)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"N = {n:,} images, {arguments.latents} latents, factors {FACTORS} of {SIZES}\n")

    def ours(samples: int | None = None, **options: object) -> mig.MutualInformationGap:
        generator = torch.Generator().manual_seed(0)
        return mig.mutual_information_gap(mean, log_var, SIZES, FACTORS, samples, generator=generator, **options)

    order = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    grid = torch.stack(torch.unravel_index(torch.arange(n), SIZES), 1)
    rows = mean[order], log_var[order], grid[order]

    def of_table(**options: object) -> mig.MutualInformationGap:
        options |= {"factors": FACTORS, "factor_values": rows[2], "generator": torch.Generator().manual_seed(0)}
        return mig.mutual_information_gap(*rows[:2], **options)

    def subspaces() -> SubspaceInformation:
        generator = torch.Generator().manual_seed(0)
        groupings = random_groupings([SUBSPACE] * (arguments.latents // SUBSPACE), GROUPINGS, generator)
        return subspace_information(mean, log_var, groupings, SIZES, DRAWS, generator)

    result = ours()
    wall, processor = timed(ours, arguments.repetitions)
    usual_wall, usual_processor = timed(lambda: ours(USUAL_SAMPLES), arguments.repetitions)
    extended = timed(lambda: ours(unscored=UNSCORED, subsample=USUAL_SAMPLES), arguments.repetitions)
    table = timed(of_table, arguments.repetitions)
    resampled = timed(lambda: of_table(resamples=100), 1)
    joint = timed(subspaces, arguments.repetitions)
    part = mean[:: n // arguments.part][: arguments.part]
    slow = timed(lambda: straightforward(part, mean, log_var), 1)[0] / len(part)
    passes = 1 + len(FACTORS)  # a sample of a slice costs its share of N, and every factor has all shares
    slow_usual, slow_all = passes * USUAL_SAMPLES * slow, passes * n * slow

    print(f"{'':45} {'wall':>12} {'processor':>12} {'times as fast':>14}")
    print(f"{'all samples':45} {wall:10.2f} s {processor:10.2f} s")
    print(f"{'10,000 samples an entropy':45} {usual_wall:10.2f} s {usual_processor:10.2f} s")
    print(f"{'all samples, for a record':45} {extended[0]:10.2f} s {extended[1]:10.2f} s")
    print(f"{'all samples, table in random order':45} {table[0]:10.2f} s {table[1]:10.2f} s")
    print(f"{'the same with 100 resamples':45} {resampled[0]:10.2f} s {resampled[1]:10.2f} s")
    print(f"{f'subspaces, {GROUPINGS} groupings, {DRAWS} draws':45} {joint[0]:10.2f} s {joint[1]:10.2f} s")
    figures = {"all samples, seconds": wall, "10,000 samples an entropy, seconds": usual_wall}
    figures |= {"all samples, for a record, seconds": extended[0]}
    figures |= {"table in random order, ratio to the grid": table[0] / wall, "resamples, seconds": resampled[0]}
    figures |= {"subspaces, a draw and grouping, seconds": joint[0] / (DRAWS * GROUPINGS)}
    for name, seconds, own in (
        ("straightforward, 10,000 samples, scaled", slow_usual, usual_wall),
        ("straightforward, beside ours with all samples", slow_usual, wall),
        ("straightforward, all samples, scaled", slow_all, wall),
    ):
        print(f"{name:45} {seconds / 60:8.1f} min {'':12} {seconds / own:14,.0f}")
        figures[f"{name}, ratio"] = seconds / own

    some = slice(0, COMPARED_LATENTS)
    few = mig.mutual_information_gap(
        mean[:, some], log_var[:, some], SIZES, FACTORS, COMPARED_SAMPLES, generator=torch.Generator().manual_seed(1)
    )
    entropy, conditional = straightforward_on(COMPARED_SAMPLES, 1, mean[:, some], log_var[:, some])
    deviation = float((few.entropy - entropy).abs().max()), float((few.conditional_entropy - conditional).abs().max())
    print(f"\nlargest deviation from the double sum in float64, in nats; {entropy.numel()} latents, ", end="")
    print(f"{COMPARED_SAMPLES} samples for each mixture:")
    print(f"  entropies             {deviation[0]:.1e}")
    print(f"  conditional entropies {deviation[1]:.1e}")
    print("what the result with all samples reports about itself, in nats:")
    print(f"  entropies             {float(result.entropy_error[0].max()):.1e}")
    print(f"  conditional entropies {float(result.entropy_error[1:].max()):.1e}")
    print(f"MIG {result.score:.5f}, error bound {result.error_bound:.1e}, standard error {result.standard_error:.1e}")
    if arguments.json:
        figures |= {"entropies, nats": deviation[0], "conditional entropies, nats": deviation[1]}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
