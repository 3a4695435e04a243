"""The networks of appendix A.4: encoder and decoder pairs, and FactorVAE's discriminator.

A pair is built by its name::

    vae = build("mlp", latent_dim=20, seed=0)
    posterior = vae.encode(x)             # x (B, 1, 64, 64) -> mean (B, 20), log_var (B, 20)
    z = posterior.sample()                # (B, 20), reparameterised
    logits = vae.decode(z)                # (B, 1, 64, 64)

Initial weights and biases are PyTorch's, uniform on plus or minus ``fan_in ** -0.5``, as in PyTorch 0.4.1, the version
that the paper names. The MLP encoder of A.4 also declares a layer ``conv_z``, which it never calls. It is left out: its
1,025 parameters per output would receive no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["IMAGE_SIZE", "MODELS", "VAE", "Decoder", "Discriminator", "Encoder", "Posterior", "build"]
__all__ += ["build_discriminator", "conv", "mlp"]

IMAGE_SIZE = 64  #: Height and width of every image, in pixels.


class Posterior(NamedTuple):
    """A diagonal Gaussian ``q(z|x)`` for each image of a batch."""

    mean: Tensor  #: Posterior means, shape ``(..., latent_dim)``.
    log_var: Tensor  #: Natural logarithms of the posterior variances, shape ``(..., latent_dim)``.

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw one reparameterised sample of each posterior."""
        noise = torch.randn(self.mean.shape, dtype=self.mean.dtype, device=self.mean.device, generator=generator)
        return self.mean + torch.exp(0.5 * self.log_var) * noise


class Encoder(nn.Module):
    """A network ``net`` from images (B, channels, 64, 64) to 2 * latent_dim outputs: means, then log-variances.

    Posteriors are at least float32: half precision would displace the samples of narrow ones.
    """

    def __init__(self, net: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.net, self.latent_dim = net, latent_dim

    def forward(self, x: Tensor) -> Posterior:
        outputs = self.net(x)
        return Posterior(*outputs.to(torch.promote_types(outputs.dtype, torch.float32)).chunk(2, 1))


class Decoder(nn.Module):
    """A network ``net`` from latents (B, latent_dim) to logits (B, channels, 64, 64), or means of Gaussian pixels."""

    def __init__(self, net: nn.Module, channels: int) -> None:
        super().__init__()
        self.net, self.channels = net, channels

    def forward(self, z: Tensor) -> Tensor:
        return self.net(z.to(next(self.net.parameters()).dtype)).view(-1, self.channels, IMAGE_SIZE, IMAGE_SIZE)


class VAE(nn.Module):
    """An encoder and its decoder: ``latent_dim`` latents, images of ``channels`` channels."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.latent_dim, self.channels = encoder.latent_dim, decoder.channels

    def encode(self, x: Tensor) -> Posterior:
        """Return the posteriors (B, latent_dim) of images in [0, 1], (B, channels, 64, 64)."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return logits (B, channels, 64, 64) for latents (B, latent_dim)."""
        return self.decoder(z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Posterior]:
        """Encode, sample once, decode: return logits, samples and posteriors."""
        posterior = self.encode(x)
        z = posterior.sample()
        return self.decode(z), z, posterior


class Discriminator(nn.Module):
    """FactorVAE's discriminator, third listing of A.4: five hidden layers of 1,000 with LeakyReLU(0.2), two logits.

    Logit 0 stands for samples of q(z), logit 1 for samples of the product of its marginals.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(*_perceptron(latent_dim, *[1000] * 5, 2, activation=partial(nn.LeakyReLU, 0.2)))

    def forward(self, z: Tensor) -> Tensor:
        """Return logits (B, 2) for latents (B, latent_dim)."""
        return self.net(z)


def _perceptron(*widths: int, activation: Callable[[], nn.Module]) -> list[nn.Module]:
    """Return linear layers of these widths with activations between them."""
    return [layer for ends in pairwise(widths) for layer in (nn.Linear(*ends), activation())][:-1]


def mlp(latent_dim: int, channels: int) -> VAE:
    """Build the multilayer perceptrons of A.4: two hidden layers with ReLU in, three with Tanh out, 1,200 wide."""
    pixels = channels * IMAGE_SIZE * IMAGE_SIZE
    encoder = nn.Sequential(nn.Flatten(), *_perceptron(pixels, 1200, 1200, 2 * latent_dim, activation=nn.ReLU))
    decoder = nn.Sequential(*_perceptron(latent_dim, 1200, 1200, 1200, pixels, activation=nn.Tanh))
    return VAE(Encoder(encoder, latent_dim), Decoder(decoder, channels))


def conv(latent_dim: int, channels: int) -> VAE:
    """Build the convolutional pair used for cars3d, 4 x 4 convolutions with batch normalisation and ReLU.

    The encoder has four of stride 2, from 64 pixels down to 4, one over the 4 x 4 map, and a 1 x 1 layer without
    normalisation. The decoder is its mirror.
    """

    def normalised(layers: list[nn.Module]) -> list[nn.Module]:
        return [part for layer in layers for part in (layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU())]

    half = {"kernel_size": 4, "stride": 2, "padding": 1}
    down = [nn.Conv2d(*ends, **half) for ends in pairwise([channels, 32, 32, 64, 64])] + [nn.Conv2d(64, 512, 4)]
    encoder = nn.Sequential(*normalised(down), nn.Conv2d(512, 2 * latent_dim, 1), nn.Flatten())
    up = [nn.ConvTranspose2d(latent_dim, 512, 1), nn.ConvTranspose2d(512, 64, 4)]
    up += [nn.ConvTranspose2d(*ends, **half) for ends in pairwise([64, 64, 32, 32, channels])]
    decoder = nn.Sequential(nn.Unflatten(1, (latent_dim, 1, 1)), *normalised(up[:-1]), up[-1])
    return VAE(Encoder(encoder, latent_dim), Decoder(decoder, channels))


MODELS: dict[str, Callable[[int, int], VAE]] = {"mlp": mlp, "conv": conv}
"""Model constructors ``(latent_dim, channels) -> VAE`` by name."""


def _seeded(seed: int, construct: Callable[..., nn.Module], *sizes: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # unlike torch.manual_seed, leaves those of accelerators alone
        return construct(*sizes)


def build(name: str, latent_dim: int, channels: int = 1, seed: int = 0) -> VAE:
    """Build ``"mlp"`` (A.4; dSprites and 3D faces) or ``"conv"`` (cars3d) on the CPU, with 1 or 3 colour channels.

    The initial parameters are drawn from ``seed``, the same on every device; the global random state does not change.
    """
    return _seeded(seed, MODELS[name], latent_dim, channels)


def build_discriminator(latent_dim: int, seed: int = 0) -> Discriminator:
    """Build FactorVAE's discriminator like :func:`build`."""
    return _seeded(seed, Discriminator, latent_dim)
