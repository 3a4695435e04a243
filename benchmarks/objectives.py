"""The total-correlation term of beta-TCVAE, forward and backward, beside the straightforward way and beside pythae's.

Run as ``python benchmarks/objectives.py [--json FILE]``; the ways take turns on the same random posteriors, and the
least time of each counts. pythae (``pip install pythae``) is timed where it is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from isa import aggregate

DATASET_SIZE = 737_280
"""Images in dSprites."""


def posteriors(batch: int, latents: int) -> list[Tensor]:
    """Return samples, means and log-variances as of a trained model: some latents narrow, the others at the prior."""
    generator = torch.Generator().manual_seed(0)
    std = torch.logspace(-1.7, 0, latents)
    noise = torch.randn(3, batch, latents, generator=generator)
    mean = (1 - std**2).clamp_min(0).sqrt() * noise[0]
    log_var = 2 * std.log() + 0.3 * noise[1]
    return [tensor.requires_grad_() for tensor in (mean + torch.exp(0.5 * log_var) * noise[2], mean, log_var)]


def straightforward(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Compute the total correlation from a table of all B x B x D log densities, in plain PyTorch."""
    table = -0.5 * ((z[:, None] - mean) ** 2 * torch.exp(-log_var) + log_var + math.log(2 * math.pi))
    log_size = math.log(len(z) * DATASET_SIZE)
    joint = torch.logsumexp(table.sum(-1), 1) - log_size
    marginals = torch.logsumexp(table, 1) - log_size
    return (joint - marginals.sum(-1)).mean()


def ours(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Compute the same by ``isa.aggregate``."""
    return aggregate.total_correlation(z, mean, log_var, DATASET_SIZE)


def pythae(latents: int) -> Callable[..., Tensor] | None:
    """Return the loss of pythae's BetaTCVAE on images of a single pixel, or None where it is not installed."""
    if importlib.util.find_spec("pythae") is None:
        return None
    from pythae.models import BetaTCVAE, BetaTCVAEConfig

    model = BetaTCVAE(BetaTCVAEConfig(input_dim=(1,), latent_dim=latents))

    def loss(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
        pixel = torch.zeros(len(z), 1)
        return model.loss_function(pixel, pixel, mean, log_var, z, DATASET_SIZE)[0]

    return loss


def seconds(function: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    """Return the time of one forward and backward pass."""
    start = time.perf_counter()
    torch.autograd.grad(function(*inputs), inputs)
    return time.perf_counter() - start


def uncompiled(*inputs: Tensor) -> Tensor:
    """Compute the same by ``isa.aggregate`` as where no compiler is present."""
    with torch.compiler.set_stance("force_eager"):
        return ours(*inputs)


def rows(batch: int, latents: int, repeats: int) -> dict[str, float]:
    """Return the least seconds of every way, by name, after one call each that is not counted."""
    inputs = posteriors(batch, latents)
    ways = {"straightforward, one B x B x D table": straightforward}
    theirs = pythae(latents)
    if theirs is not None:
        ways["pythae's BetaTCVAE loss"] = theirs
    ways |= {"isa.aggregate without a compiler": uncompiled, "isa.aggregate": ours}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):
        for name, way in ways.items():
            times[name].append(seconds(way, inputs))
    return {name: min(each[1:]) for name, each in times.items()}


def agreement(batch: int, latents: int) -> tuple[float, float]:
    """Return the largest differences of value and gradients from double precision, relative to the largest entry."""
    inputs = posteriors(batch, latents)
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    value, truth = ours(*inputs), straightforward(*exact)
    pairs = zip(torch.autograd.grad(value, inputs), torch.autograd.grad(truth, exact), strict=True)
    slopes = max(((one - two).abs().max() / two.abs().max()).item() for one, two in pairs)
    return abs(value.item() / truth.item() - 1), slopes


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2048, help="images in a batch (default: %(default)s)")
    parser.add_argument("--latents", type=int, default=20, help="latents (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="timed calls, of which the least counts")
    parser.add_argument("--threads", type=int, default=2, help="processor threads (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file, too")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(options.threads)

    print(f"PyTorch {torch.__version__}, {platform.machine()}, {options.threads} threads, float32,")
    print(f"batch {options.batch:,}, {options.latents} latents, forward and backward\n")
    timed = rows(options.batch, options.latents, options.repeats)
    print("| total correlation | seconds | isa.aggregate is faster by |\n| --- | --- | --- |")
    for name, duration in timed.items():
        print(f"| {name} | {duration:.3f} | {duration / timed['isa.aggregate']:.1f} |")
    value, slopes = agreement(min(options.batch, 512), options.latents)
    print(f"\nLargest relative difference from double precision: value {value:.1e}, gradients {slopes:.1e}.")
    if options.json:
        own = timed.pop("isa.aggregate")
        figures = {f"{name}, seconds": duration for name, duration in timed.items()} | {"isa.aggregate, seconds": own}
        figures |= {f"{name}, ratio": duration / own for name, duration in timed.items()}
        figures |= {"value, relative error": value, "gradients, relative error": slopes}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
