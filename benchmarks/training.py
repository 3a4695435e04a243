"""A training step at the paper's scale, compared with plain PyTorch, pythae, and the bare matrix multiplications.

    python benchmarks/training.py [--json FILE] [--objective beta-vae|isa-vae|beta-tcvae|...] [--pack P]
    python benchmarks/training.py --study STEPS [--seeds N] [--thin N] [--records FILE]

All steps that are compared take turns within one process, and their medians are compared. The networks are the
multilayer perceptrons of A.4. With ``--pack P``, a step of this package trains P runs, and its time is divided by P.
pythae (``pip install pythae``) is timed if it is installed, with the same networks.

``--study`` asks if precision and packs change the result: it trains dSprites models of several seeds in float32 alone,
in bfloat16 alone, and in bfloat16 in one pack, and compares them with the scatter of the seeds. ``--thin N`` takes only
every N-th position and orientation.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import json
import platform
import statistics
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isa import models
from isa.data import Factor, FactorDataset, Provenance, load
from isa.engine import Pack, train_pack
from isa.results import device_name
from isa.run import OBJECTIVES, Run

IMAGES = 16_384
"""Number of random images, in which one pixel in twenty is lit, as in dSprites."""


def dataset() -> FactorDataset:
    """Return random binary images, stored as dSprites is."""
    lit = torch.rand(IMAGES, models.IMAGE_SIZE**2 // 8, 8, generator=torch.Generator().manual_seed(0)) < 0.05
    rows = (lit << torch.arange(7, -1, -1)).sum(-1).to(torch.uint8)
    provenance = Provenance("made up", "none", "none", "random pixels", True)
    shape = (1, models.IMAGE_SIZE, models.IMAGE_SIZE)
    factors = [Factor("image", range(IMAGES))]
    return FactorDataset("dsprites", "random pixels", factors, rows, provenance, image_shape=shape, packed=True)


def plain(run: Run, images: FactorDataset, device: torch.device) -> Callable[[], object]:
    """Return the step of a beta-VAE in plain PyTorch: float32, uncompiled, with the default Adam."""
    vae = models.build("mlp", run.latent_dim).to(device)
    adam = torch.optim.Adam(vae.parameters(), run.learning_rate)
    batches = cycle(images.epoch().split(run.batch_size)[:-1])

    def step() -> None:
        x = images.images(next(batches))
        logits, _, (mean, log_var) = vae(x)
        misfit = F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
        divergence = 0.5 * (mean**2 + log_var.exp() - log_var - 1).sum(1)
        adam.zero_grad()
        (misfit + run.beta * divergence).mean().backward()
        adam.step()

    return step


def pythae(run: Run, images: FactorDataset, device: torch.device) -> Callable[[], object] | None:
    """Return the step of pythae's model of the same objective, or None if there is none."""
    if importlib.util.find_spec("pythae") is None or run.base == "factor-vae" or run.tree is not None:
        return None
    from pythae.models import VAE, BetaTCVAE, BetaTCVAEConfig, BetaVAE, BetaVAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder

    vae = models.build("mlp", run.latent_dim)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = vae.encoder

        def forward(self, x: Tensor) -> ModelOutput:
            mean, log_var = self.net(x)
            return ModelOutput(embedding=mean, log_covariance=log_var)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.net = vae.decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=torch.sigmoid(self.net(z)))

    shape = {"input_dim": images.image_shape, "latent_dim": run.latent_dim, "reconstruction_loss": "bce"}
    if run.base == "beta-vae":
        model: VAE = BetaVAE(BetaVAEConfig(beta=run.beta, **shape), Encoder(), Decoder())
    else:
        model = BetaTCVAE(BetaTCVAEConfig(alpha=1, beta=run.beta, gamma=1, **shape), Encoder(), Decoder())
    model.to(device)
    adam = torch.optim.Adam(model.parameters(), run.learning_rate)
    batches = cycle(images.epoch().split(run.batch_size)[:-1])

    def step() -> None:
        x = images.images(next(batches))
        adam.zero_grad()
        model({"data": x}, dataset_size=len(images)).loss.backward()
        adam.step()

    return step


def products(run: Run, device: torch.device) -> tuple[Callable[[], object], float]:
    """Return the matrix multiplications of one step in bfloat16, and their floating-point operations."""
    vae = models.build("mlp", run.latent_dim)
    layers = [(layer.in_features, layer.out_features) for layer in vae.modules() if isinstance(layer, nn.Linear)]
    size = run.batch_size

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    operands = [(random(size, inner), random(outer, inner), random(size, outer)) for inner, outer in layers]

    def multiply() -> None:
        for number, (x, weight, gradient) in enumerate(operands):
            x @ weight.T
            gradient.T @ x
            if number:  # images have no gradient
                gradient @ weight

    count = sum(2 * size * inner * outer * (3 if number else 2) for number, (inner, outer) in enumerate(layers))
    return multiply, count


def medians(steps: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of steps that take turns, without the first two rounds."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def steps(objective: str, batch: int, size: int, rounds: int, device: torch.device) -> dict[str, float]:
    """Time every step, and print one table; times of this package are divided by the size of its packs."""
    run = Run(objective=objective, batch_size=batch, steps=10_000)
    runs = [run.replace(seed=seed) for seed in range(size)]
    images = dataset().to(device)
    multiply, operations = products(run, device)
    ways = {
        "ours": Pack(runs, images, compile=True).advance,
        "ours, not compiled": Pack(runs, images).advance,
        "ours, fp32": Pack([one.replace(precision="fp32") for one in runs], images, compile=True).advance,
        "plain fp32 beta-VAE": plain(run, images, device),
        "bf16 matrix products alone": multiply,
    }
    theirs = pythae(run, images, device)
    if theirs is not None:
        ways["pythae"] = theirs
    seconds = {
        name: value / size if name.startswith("ours") else value
        for name, value in medians(ways, rounds, device).items()
    }
    print(f"PyTorch {torch.__version__}, {device_name(device)}, {platform.system()},")
    print(f"{run.objective}, {batch:,} images a step, {run.latent_dim} latents, packs of {size}\n")
    print("| step | seconds | ours is faster by |\n| --- | --- | --- |")
    for name, duration in seconds.items():
        print(f"| {name} | {duration:.3f} | {duration / seconds['ours']:.2f} |")
    share = seconds["bf16 matrix products alone"] / seconds["ours"]
    rate = operations / seconds["bf16 matrix products alone"] / 1e12
    print(f"\nThe step reaches {share:.2f} of the rate of its matrix multiplications, {rate:.2f} TFLOP/s in bfloat16.")
    figures = {f"{name}, seconds": value for name, value in seconds.items()}
    figures |= {f"{name}, ratio": value / seconds["ours"] for name, value in seconds.items() if name != "ours"}
    figures |= {"share of the matrix products' rate": share, "TFLOP/s": rate}
    return figures


RECORDED = ("seed", "steps", "batch_size", "images", "mig", "log_likelihood", "divergence", "active_units")
RECORDED += ("train_seconds", "device", "commit")
"""Columns of the study's table that come from a record."""

WAYS = {"fp32": ("fp32", 1), "bf16": ("bf16", 1), "bf16, one pack": ("bf16", None)}
"""Precision and number of runs in a pack (None: all seeds)."""


def study(
    objective: str, batch: int, steps: int, seeds: int, thin: int, device: torch.device
) -> list[dict[str, object]]:
    """Train every seed in every way, and print differences of ways and the scatter of seeds."""
    images = load("dsprites", device=device)
    if thin > 1:
        thinned = ("orientation", "x", "y")
        images = images.restrict(**{name: range(0, images.values[name].size, thin) for name in thinned})
    rows: list[dict[str, object]] = []
    for way, (precision, size) in WAYS.items():
        same = {"objective": objective, "batch_size": batch, "steps": steps, "precision": precision}
        runs = [Run(seed=seed, **same) for seed in range(seeds)]
        for start in range(0, seeds, size or seeds):
            results = train_pack(runs[start : start + (size or seeds)], dataset=images, device=device)
            rows += [{"way": way, **{name: result.record[name] for name in RECORDED}} for result in results]
    print(f"{objective}, {steps:,} steps of {batch:,} of {len(images):,} images, {seeds} seeds, every image measured\n")
    print("| way | of | mean | standard deviation over seeds | mean difference from fp32 | its standard error |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in ("log_likelihood", "mig"):
        values = {way: torch.tensor([row[name] for row in rows if row["way"] == way]).double() for way in WAYS}
        for way, of_seeds in values.items():
            difference = of_seeds - values["fp32"]
            row = of_seeds.mean(), of_seeds.std(), difference.mean(), difference.std() / seeds**0.5
            print(f"| {way} | {name} | {' | '.join(f'{value:.4f}' for value in row)} |")
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objective", default="beta-vae", choices=sorted(OBJECTIVES), help="(beta-vae)")
    parser.add_argument("--batch", type=int, default=2048, help="images in a batch (%(default)s)")
    parser.add_argument("--pack", type=int, default=1, metavar="P", help="runs in a pack of ours (%(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="steps that are timed (%(default)s)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="processor threads (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(%(default)s)")
    parser.add_argument("--study", type=int, metavar="STEPS", help="compare what is learned in this number of steps")
    parser.add_argument("--seeds", type=int, default=5, help="seeds of the study (%(default)s)")
    parser.add_argument("--thin", type=int, default=1, metavar="N", help="images of the study (%(default)s: all)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of the steps to this file, too")
    parser.add_argument("--records", type=Path, metavar="FILE", help="write the study's runs to this .csv file, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)

    if options.study:
        for name, least in (("seeds", 2), ("thin", 1), ("study", 1)):
            if getattr(options, name) < least:
                parser.error(f"--{name} must be at least {least}, got {getattr(options, name)}")
        rows = study(options.objective, options.batch, options.study, options.seeds, options.thin, device)
        if options.records:
            with open(options.records, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        return
    figures = steps(options.objective, options.batch, options.pack, options.rounds, device)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
