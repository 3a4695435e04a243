"""Sweeps of runs that take milliseconds: a small data set and small networks in the place of the real ones.

Importing this module puts them there, in the process that imports it: the tests' own, a worker's (``--preload``), or
that of a sweep started as ``python tests/tiny_sweep.py ARGUMENTS OF isa``.
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from isa import cli, engine, models, packs
from isa.data import Factor, FactorDataset, Provenance
from isa.run import Run

SIZES = (2, 5, 7)

SPEC = """\
title: Runs that take milliseconds
every: {dataset: cars3d, model: small, latent_dim: 3, batch_size: 16, steps: 6, precision: fp32}
tiers:
  1:
    - {objective: beta-vae, beta: [1, 4], seeds: 2}
  2:
    - {objective: beta-vae, beta: [1, 4], seeds: 3}
    - {objective: isa-vae, subspaces: [2, 1], seeds: 3}
"""


def small(latent_dim: int, channels: int) -> models.VAE:
    """Build the perceptrons of A.4, a hundredth as wide."""
    pixels = channels * models.IMAGE_SIZE**2
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 12), nn.ReLU(), nn.Linear(12, 2 * latent_dim))
    decoder = nn.Sequential(nn.Linear(latent_dim, 12), nn.Tanh(), nn.Linear(12, pixels))
    return models.VAE(models.Encoder(encoder, latent_dim), models.Decoder(decoder, channels))


def squares() -> FactorDataset:
    """Return a square of two sizes on a grid of positions."""
    images = np.zeros((*SIZES, 64, 64), np.uint8)
    for size, x, y in np.ndindex(SIZES):
        images[size, x, y, 8 * y : 8 * y + 6 + 4 * size, 10 * x : 10 * x + 6 + 4 * size] = 1
    factors = [Factor(name, range(count)) for name, count in zip(("size", "x", "y"), SIZES, strict=True)]
    provenance = Provenance("drawn", "none", "none", "squares", True)
    rows = torch.from_numpy(np.packbits(images.reshape(-1, 4096), axis=1))
    return FactorDataset("cars3d", "squares", factors, rows, provenance, image_shape=(1, 64, 64), packed=True)


def without_times(record: dict) -> dict:
    """Return a record without the fields that vary between two trainings of a run."""
    return {name: value for name, value in record.items() if name not in ("train_seconds", "evaluation_seconds")}


def write_spec(folder: Path, text: str = SPEC) -> Path:
    """Write a specification and return its path."""
    folder.mkdir(exist_ok=True)
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def watch_starts(monkeypatch) -> list[tuple[Run, int]]:
    """Return a list that collects, of every pack, its longest run and the step that this starts from."""
    starts = []
    original = engine.fit

    def watched(runs, dataset, **options):
        longest = max(runs, key=lambda run: run.total_steps)
        starts.append((longest, engine.checkpoint_step(options.get("checkpoints"), longest)))
        return original(runs, dataset, **options)

    monkeypatch.setattr(engine, "fit", watched)
    return starts


def _images(name: str, source: str | None, cache_dir: str | None, device: torch.device) -> FactorDataset:
    """Return the squares; the first process that can delete the file ``TINY_SWEEP_BOMB`` is killed instead."""
    try:
        os.unlink(os.environ.get("TINY_SWEEP_BOMB", ""))
    except FileNotFoundError:
        return DATASET
    os.kill(os.getpid(), signal.SIGKILL)


DATASET = squares()
models.MODELS["small"] = small
packs.images = _images

if __name__ == "__main__":
    sys.exit(cli.main(sys.argv[1:]))
