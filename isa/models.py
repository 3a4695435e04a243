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
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["IMAGE_SIZE", "MODELS", "VAE", "Decoder", "Discriminator", "Encoder", "Posterior", "build"]
__all__ += ["build_discriminator", "conv", "mlp"]

IMAGE_SIZE = 64  #: Height and width, in pixels, of every image the networks read and draw.


class Posterior(NamedTuple):
    """A diagonal Gaussian ``q(z|x)`` for each image of a batch."""

    mean: Tensor  #: Posterior means, shape ``(..., latent_dim)``.
    log_var: Tensor  #: Natural logarithms of the posterior variances, shape ``(..., latent_dim)``.

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
        self.net = nn.Sequential(*_perceptron([latent_dim, *[1000] * 5, 2], lambda: nn.LeakyReLU(0.2)))

    def forward(self, z: Tensor) -> Tensor:
        """Return logits (B, 2) for latents (B, latent_dim)."""
        return self.net(z)


def _perceptron(widths: Sequence[int], activation: Callable[[], nn.Module]) -> list[nn.Module]:
    """Return linear layers of these widths with activations between them."""
    layers = [layer for ends in itertools.pairwise(widths) for layer in (nn.Linear(*ends), activation())]
    return layers[:-1]


def mlp(latent_dim: int, channels: int) -> VAE:
    """Build the multilayer perceptrons of A.4: two hidden layers with ReLU in, three with Tanh out, 1,200 wide."""
    pixels = channels * IMAGE_SIZE * IMAGE_SIZE
    encoder = nn.Sequential(nn.Flatten(), *_perceptron([pixels, 1200, 1200, 2 * latent_dim], nn.ReLU))
    decoder = nn.Sequential(*_perceptron([latent_dim, 1200, 1200, 1200, pixels], nn.Tanh))
    return VAE(Encoder(encoder, latent_dim), Decoder(decoder, channels))


def conv(latent_dim: int, channels: int) -> VAE:
    """Build the convolutional pair used for cars3d: four strided convolutions, one full one, and their mirror.

    The encoder's convolutions are 4 x 4: four of stride 2 to 32, 32, 64 and 64 channels (64 pixels down to 4), one to
    512 channels over the whole 4 x 4 map, each followed by batch normalisation and ReLU, then a 1 x 1 layer to
    ``2 * latent_dim``. The decoder is the same in reverse, its last layer bare.
    """

    def normalised(layers: Iterable[nn.Conv2d | nn.ConvTranspose2d]) -> list[nn.Module]:
        return [part for layer in layers for part in (layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU())]

    half = {"kernel_size": 4, "stride": 2, "padding": 1}
    down = [nn.Conv2d(*ends, **half) for ends in itertools.pairwise([channels, 32, 32, 64, 64])]
    down.append(nn.Conv2d(64, 512, 4))
    encoder = nn.Sequential(*normalised(down), nn.Conv2d(512, 2 * latent_dim, 1), nn.Flatten())
    up = [nn.ConvTranspose2d(latent_dim, 512, 1), nn.ConvTranspose2d(512, 64, 4)]
    up += [nn.ConvTranspose2d(*ends, **half) for ends in itertools.pairwise([64, 64, 32, 32, channels])]
    decoder = nn.Sequential(nn.Unflatten(1, (latent_dim, 1, 1)), *normalised(up[:-1]), up[-1])
    return VAE(Encoder(encoder, latent_dim), Decoder(decoder, channels))


MODELS: dict[str, Callable[[int, int], VAE]] = {"mlp": mlp, "conv": conv}
"""Model constructors ``(latent_dim, channels) -> VAE`` by name."""


def _seeded(construct: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return ``construct()`` with the random state of ``seed``, on the CPU, and restore the global state."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Unlike torch.manual_seed, seeding the CPU's generator leaves those of accelerators alone.
        torch.default_generator.manual_seed(seed)
        return construct()


def build(name: str, latent_dim: int, channels: int = 1, seed: int = 0) -> VAE:
    """Build a model on the CPU: ``"mlp"`` (A.4; dSprites and 3D faces) or ``"conv"`` (cars3d).

    ``channels`` is 1 for grey images and 3 for RGB. The initial parameters are drawn from ``seed``; the global random
    state is left unchanged.
    """
    return _seeded(lambda: MODELS[name](latent_dim, channels), seed)


def build_discriminator(latent_dim: int, seed: int = 0) -> Discriminator:
    """Build FactorVAE's discriminator like :func:`build`."""
    return _seeded(lambda: Discriminator(latent_dim), seed)
