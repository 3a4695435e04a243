"""The networks of appendix A.4: encoder and decoder pairs, and FactorVAE's discriminator.

A pair is built by its name::

    vae = build("mlp", latent_dim=20, seed=0)
    posterior = vae.encode(x)             # x (B, 1, 64, 64) -> mean (B, 20), log_var (B, 20)
    z = posterior.sample()                # (B, 20), reparameterised
    logits = vae.decode(z)                # (B, 1, 64, 64)

Initial parameters are PyTorch's: weights and biases of linear layers and convolutions are uniform on plus or minus
``fan_in ** -0.5``, as in PyTorch 0.4.1, the version that the paper names. They are drawn on the CPU from a generator of
their own, so a seed gives one model on every device.

The listing of A.4 also declares a layer ``conv_z`` in the MLP encoder, which its forward pass never calls. It is left
out: its 1,025 parameters per output would receive no gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["IMAGE_SIZE", "MODELS", "VAE", "Decoder", "Discriminator", "Encoder", "Posterior", "build"]
__all__ += ["build_discriminator", "conv", "mlp"]

IMAGE_SIZE = 64
"""Height and width, in pixels, of every image the networks read and draw."""


class Posterior(NamedTuple):
    """A diagonal Gaussian ``q(z|x)`` for each image of a batch."""

    mean: Tensor
    """Posterior means, shape ``(..., latent_dim)``."""
    log_var: Tensor
    """Natural logarithms of the posterior variances, shape ``(..., latent_dim)``."""

    def sample(self, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw one reparameterised sample :math:`z = \mu + \sigma \odot \epsilon` of each posterior.

        ``noise`` is a standard normal :math:`\epsilon` of the shape of ``mean``, drawn from ``generator`` by default.
        """
        if noise is None:
            noise = torch.randn(self.mean.shape, dtype=self.mean.dtype, device=self.mean.device, generator=generator)
        return self.mean + torch.exp(0.5 * self.log_var) * noise


class Encoder(nn.Module):
    """A network ``net`` from images (B, channels, 64, 64) to posteriors over ``latent_dim`` latents.

    Of the network's 2 * latent_dim outputs the first half are the means, the second half the log-variances. They are
    returned in float32 at least: half precision would displace the samples of narrow posteriors.
    """

    def __init__(self, net: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.net, self.latent_dim = net, latent_dim

    def forward(self, x: Tensor) -> Posterior:
        outputs = self.net(x)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return Posterior(*outputs.split(self.latent_dim, dim=1))


class Decoder(nn.Module):
    """A network ``net`` from latents (B, latent_dim) to the logits of pixels, (B, channels, 64, 64).

    Under a Gaussian likelihood the outputs are the means of the pixels.
    """

    def __init__(self, net: nn.Module, channels: int) -> None:
        super().__init__()
        self.net, self.channels = net, channels

    def forward(self, z: Tensor) -> Tensor:
        outputs = self.net(z.to(next(self.net.parameters()).dtype))
        return outputs.view(z.shape[0], self.channels, IMAGE_SIZE, IMAGE_SIZE)


class VAE(nn.Module):
    """An encoder and its decoder."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    @property
    def latent_dim(self) -> int:
        """Number of latent variables."""
        return self.encoder.latent_dim

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return self.decoder.channels

    def encode(self, x: Tensor) -> Posterior:
        """Return the posteriors (B, latent_dim) of images in [0, 1], (B, channels, 64, 64)."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return logits (B, channels, 64, 64) for latents (B, latent_dim)."""
        return self.decoder(z)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Posterior]:
        """Encode, sample once, decode: return logits, samples and posteriors."""
        posterior = self.encode(x)
        z = posterior.sample(noise)
        return self.decode(z), z, posterior


class Discriminator(nn.Module):
    """FactorVAE's discriminator, third listing of A.4: five hidden layers of 1,000 with LeakyReLU(0.2), two logits.

    Logit 0 stands for samples of q(z), logit 1 for samples of the product of its marginals. Their difference estimates
    the log ratio of the two densities. Unlike in the listing, the output is not squeezed: a batch of one keeps its
    shape.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        layers: list[nn.Module] = []
        width = latent_dim
        for _ in range(5):
            layers += [nn.Linear(width, 1000), nn.LeakyReLU(0.2)]
            width = 1000
        self.net = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, z: Tensor) -> Tensor:
        """Return logits (B, 2) for latents (B, latent_dim)."""
        return self.net(z)


def mlp(latent_dim: int, channels: int) -> VAE:
    """Build the multilayer perceptrons of A.4: two hidden layers with ReLU in, three with Tanh out, 1,200 wide."""
    pixels = channels * IMAGE_SIZE * IMAGE_SIZE
    down = [nn.Linear(pixels, 1200), nn.ReLU(), nn.Linear(1200, 1200), nn.ReLU(), nn.Linear(1200, 2 * latent_dim)]
    up: list[nn.Module] = [nn.Linear(latent_dim, 1200), nn.Tanh()]
    for _ in range(2):
        up += [nn.Linear(1200, 1200), nn.Tanh()]
    up += [nn.Linear(1200, pixels)]
    encoder, decoder = nn.Sequential(nn.Flatten(), *down), nn.Sequential(*up)
    return VAE(Encoder(encoder, latent_dim), Decoder(decoder, channels))


def conv(latent_dim: int, channels: int) -> VAE:
    """Build the convolutional pair used for cars3d: four strided convolutions, one full one, and their mirror.

    The encoder's convolutions are 4 x 4: four of stride 2 to 32, 32, 64 and 64 channels (64 pixels down to 4), one to
    512 channels over the whole 4 x 4 map, each followed by batch normalisation and ReLU, then a 1 x 1 layer to
    ``2 * latent_dim``. The decoder is the same in reverse, its last layer bare.
    """

    def normalised(layer: nn.Module, width: int) -> list[nn.Module]:
        return [layer, nn.BatchNorm2d(width), nn.ReLU()]

    down = [channels, 32, 32, 64, 64]
    encoder: list[nn.Module] = []
    for before, after in itertools.pairwise(down):
        encoder += normalised(nn.Conv2d(before, after, 4, stride=2, padding=1), after)
    encoder += normalised(nn.Conv2d(64, 512, 4), 512)
    encoder += [nn.Conv2d(512, 2 * latent_dim, 1), nn.Flatten()]

    up = [64, 64, 32, 32]
    decoder: list[nn.Module] = [nn.Unflatten(1, (latent_dim, 1, 1))]
    decoder += normalised(nn.ConvTranspose2d(latent_dim, 512, 1), 512)
    decoder += normalised(nn.ConvTranspose2d(512, 64, 4), 64)
    for before, after in itertools.pairwise(up):
        decoder += normalised(nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), after)
    decoder += [nn.ConvTranspose2d(32, channels, 4, stride=2, padding=1)]
    return VAE(Encoder(nn.Sequential(*encoder), latent_dim), Decoder(nn.Sequential(*decoder), channels))


MODELS: dict[str, Callable[[int, int], VAE]] = {"mlp": mlp, "conv": conv}
"""Model constructors ``(latent_dim, channels) -> VAE`` by name."""


def _seeded(construct: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return ``construct()`` with the random state of ``seed``, on the CPU, and restore the global state."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Unlike torch.manual_seed, seeding the CPU's generator leaves those of accelerators alone.
        torch.default_generator.manual_seed(seed)
        return construct()


def build(name: str, latent_dim: int, channels: int = 1, seed: int = 0) -> VAE:
    """Build a model by name, on the CPU, with initial parameters from ``seed``.

    The global random state is left unchanged.

    Parameters
    ----------
    name
        ``"mlp"`` (A.4; dSprites and 3D faces) or ``"conv"`` (cars3d).
    latent_dim
        Number of latent variables.
    channels
        Number of image channels: 1 for grey, 3 for RGB.
    seed
        Seed of the initial parameters.

    Raises
    ------
    KeyError
        If no model has this name.
    """
    if name not in MODELS:
        raise KeyError(f"name must be one of {', '.join(map(repr, MODELS))}, got {name!r}")
    return _seeded(lambda: MODELS[name](latent_dim, channels), seed)


def build_discriminator(latent_dim: int, seed: int = 0) -> Discriminator:
    """Build FactorVAE's discriminator like :func:`build`."""
    return _seeded(lambda: Discriminator(latent_dim), seed)
