"""Runs that take milliseconds, of every objective with every kind of prior, for the tests of training."""

import numpy as np
import torch
from tiny_sweep import DATASET
from torch import nn

from isa import engine, models
from isa.results import Result
from isa.run import Run

KINDS = {
    "beta-vae": {"objective": "beta-vae", "beta": 2.0},
    "closed form": {"objective": "beta-vae", "kl": "closed_form"},
    "isa-vae": {"objective": "isa-vae", "p1": (1.8, 2.4)},
    "learned": {"objective": "isa-vae", "learn_exponents": True, "exponent_learning_rate": 0.01},
    "tree": {"objective": "isa-vae", "prior": "2.1[1.5[2], 1]"},
    "unit": {"objective": "isa-vae", "subspaces": (2, 2), "scale": "unit"},
    "beta-tcvae": {"objective": "beta-tcvae", "beta": 3.0},
    "isa-tcvae": {"objective": "isa-tcvae", "sampling": "stratified"},
    "factor-vae": {"objective": "factor-vae", "beta": 4.0},
    "gaussian": {"objective": "beta-vae", "likelihood": "gaussian"},
}


def narrow(latent_dim: int, channels: int) -> models.VAE:
    """Build two convolutions each way with a normalisation between them."""
    down = [nn.Conv2d(channels, 4, 8, 8), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2 * latent_dim, 8), nn.Flatten()]
    up = [nn.Unflatten(1, (latent_dim, 1, 1)), nn.ConvTranspose2d(latent_dim, 4, 8), nn.BatchNorm2d(4), nn.ReLU()]
    up += [nn.ConvTranspose2d(4, channels, 8, 8)]
    return models.VAE(models.Encoder(nn.Sequential(*down), latent_dim), models.Decoder(nn.Sequential(*up), channels))


models.MODELS["narrow"] = narrow


class SmallDiscriminator(models.Discriminator):
    """A discriminator of one hidden layer."""

    def __init__(self, latent_dim: int, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            nn.Sequential.__init__(self, nn.Linear(latent_dim, 20), nn.LeakyReLU(0.2), nn.Linear(20, 2))


def tiny(**changes) -> Run:
    """Return a run with three latents and 16 of 70 images a step."""
    settings = {"dataset": "cars3d", "model": "small", "batch_size": 16, "steps": 6, "precision": "fp32"}
    prior = changes.get("prior", changes.get("objective", "beta-vae"))
    settings |= {"subspaces": (2, 1)} if prior.startswith("isa") else {"latent_dim": 3}
    return Run(**(settings | changes))


def train_pack(runs: list[Run], **options) -> list[Result]:
    """Train runs on the squares, by default uncompiled and without an evaluation."""
    defaults = {"dataset": DATASET, "device": "cpu", "compile": False, "evaluation": False}
    return engine.train_pack(runs, **(defaults | options))


def train(run: Run, **options) -> Result:
    """Train one run as :func:`train_pack`."""
    return train_pack([run], **options)[0]


def numbers(value: object) -> list[float]:
    """Return all numbers in JSON data."""
    if isinstance(value, (list, dict)):
        return [number for one in (value.values() if isinstance(value, dict) else value) for number in numbers(one)]
    return [value] if isinstance(value, (int, float)) else []


def assert_same(one: Result, other: Result) -> None:
    """Compare two results of one run, bit by bit."""
    assert one.run == other.run and one.curve.keys() == other.curve.keys()
    for name, values in one.curve.items():
        np.testing.assert_array_equal(other.curve[name], values, err_msg=name)
    tensors = (dict(result.model.state_dict()) for result in (one, other))
    torch.testing.assert_close(*tensors, rtol=0, atol=0, equal_nan=True)
    circumstances = ("train_seconds", "evaluation_seconds", "pack_size", "commit")
    records = ({k: v for k, v in result.record.items() if k not in circumstances} for result in (one, other))
    assert next(records) == next(records)
