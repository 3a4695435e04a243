"""The networks of appendix A.4: encoder and decoder pairs, FactorVAE's discriminator, and packs of several networks.

A pair is built by its name::

    vae = build("mlp", latent_dim=20, seed=0)
    posterior = vae.encode(x)             # x (B, 1, 64, 64) -> mean (B, 20), log_var (B, 20)
    z = posterior.sample()                # (B, 20), reparameterised
    logits = vae.decode(z)                # (B, 1, 64, 64)

Initial weights and biases are PyTorch's, uniform on plus or minus ``fan_in ** -0.5``, as in PyTorch 0.4.1, the version
that the paper names. The MLP encoder of A.4 also declares a layer ``conv_z``, which it never calls. It is left out: its
1,025 parameters per output would receive no gradient.

:func:`stack` turns P networks of one architecture into one on (P, B, ...), for training a pack of runs at once.
Parameters and buffers keep their names and get a leading dimension P. No operation mixes networks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["IMAGE_SIZE", "MODELS", "VAE", "Decoder", "Discriminator", "Encoder", "Networks", "Posterior", "build"]
__all__ += ["build_discriminator", "conv", "mlp", "stack", "unstack"]

IMAGE_SIZE = 64  #: Height and width of every image, in pixels.


class Posterior(NamedTuple):
    """A diagonal Gaussian ``q(z|x)`` for each image of a batch."""

    mean: Tensor  #: Shape ``(..., latent_dim)``.
    log_var: Tensor  #: Natural logarithms of the variances, ``(..., latent_dim)``.

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


def _perceptron(*widths: int, activation: Callable[[], nn.Module]) -> nn.Sequential:
    """Return linear layers of these widths with activations between them."""
    layers = [layer for ends in pairwise(widths) for layer in (nn.Linear(*ends), activation())]
    return nn.Sequential(*layers[:-1])


class Discriminator(nn.Sequential):
    """FactorVAE's discriminator, third listing of A.4: five hidden layers of 1,000 with LeakyReLU(0.2), two logits.

    It maps latents (B, latent_dim) to logits (B, 2): 0 for samples of q(z), 1 for the product of its marginals.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(*_perceptron(latent_dim, *[1000] * 5, 2, activation=partial(nn.LeakyReLU, 0.2)))


def mlp(latent_dim: int, channels: int) -> VAE:
    """Build the multilayer perceptrons of A.4: two hidden layers with ReLU in, three with Tanh out, 1,200 wide."""
    pixels = channels * IMAGE_SIZE * IMAGE_SIZE
    encoder = nn.Sequential(nn.Flatten(), *_perceptron(pixels, 1200, 1200, 2 * latent_dim, activation=nn.ReLU))
    decoder = _perceptron(latent_dim, 1200, 1200, 1200, pixels, activation=nn.Tanh)
    return VAE(Encoder(encoder, latent_dim), Decoder(decoder, channels))


def conv(latent_dim: int, channels: int) -> VAE:
    """Build the convolutional pair used for cars3d, 4 x 4 convolutions with batch normalisation and ReLU.

    The encoder has four of stride 2, from 64 pixels down to 4, one over the 4 x 4 map, and a 1 x 1 layer without
    normalisation. The decoder is its mirror.
    """

    def normalised(layers: Sequence[nn.Conv2d | nn.ConvTranspose2d]) -> list[nn.Module]:
        return [part for layer in layers for part in (layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU())]

    half: dict[str, Any] = {"kernel_size": 4, "stride": 2, "padding": 1}
    down = [nn.Conv2d(*ends, **half) for ends in pairwise([channels, 32, 32, 64, 64])] + [nn.Conv2d(64, 512, 4)]
    encoder = nn.Sequential(*normalised(down), nn.Conv2d(512, 2 * latent_dim, 1), nn.Flatten())
    up = [nn.ConvTranspose2d(latent_dim, 512, 1), nn.ConvTranspose2d(512, 64, 4)]
    up += [nn.ConvTranspose2d(*ends, **half) for ends in pairwise([64, 64, 32, 32, channels])]
    decoder = nn.Sequential(nn.Unflatten(1, (latent_dim, 1, 1)), *normalised(up[:-1]), up[-1])
    return VAE(Encoder(encoder, latent_dim), Decoder(decoder, channels))


MODELS: dict[str, Callable[[int, int], VAE]] = {"mlp": mlp, "conv": conv}  #: Constructors of models by name.


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)  # unlike torch.manual_seed, leaves those of accelerators alone
        yield


def build(name: str, latent_dim: int, channels: int = 1, seed: int = 0) -> VAE:
    """Build ``"mlp"`` (A.4; dSprites and 3D faces) or ``"conv"`` (cars3d) on the CPU, with 1 or 3 colour channels.

    The initial parameters are drawn from ``seed``, the same on every device; the global random state does not change.
    """
    with _seeded(seed):
        return MODELS[name](latent_dim, channels)


def build_discriminator(latent_dim: int, seed: int = 0) -> Discriminator:
    """Build FactorVAE's discriminator on the CPU, with initial parameters drawn as in :func:`build`."""
    with _seeded(seed):
        return Discriminator(latent_dim)


_cpu: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
# On an x86 CPU without bfloat16 instructions, float32 is four times as fast; products of bfloat16 are exact in it.
_WIDENS = _cpu.get("architecture") == "x86_64" and not (_cpu.get("avx512_bf16") or _cpu.get("amx_bf16"))


class _Layer(nn.Module):
    """P linear layers, convolutions (as one in P groups) or batch normalisations, as one layer on (P, B, ...).

    Weights of linear layers are (P, in, out), so that their gradients are contiguous.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        first, self.size, self.kind = layers[0], len(layers), type(layers[0])
        self.options: dict[str, Any] = {"groups": self.size}
        if isinstance(first, nn.Conv2d | nn.ConvTranspose2d):
            self.options |= {"stride": first.stride, "padding": first.padding}
        parameters, buffers = torch.func.stack_module_state([*layers])
        weight, bias = parameters["weight"].detach(), parameters["bias"].detach()
        self.weight = nn.Parameter(weight.mT.contiguous() if self.kind is nn.Linear else weight)
        self.bias = nn.Parameter(bias)
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind is nn.Linear:  # (P, B, in) -> (P, B, out)
            if _WIDENS and x.is_cpu and x.dtype == torch.bfloat16:
                return torch.bmm(x.float(), self.weight.float()).to(x.dtype) + self.bias[:, None]
            return torch.bmm(x, self.weight) + self.bias[:, None]
        grouped = x.transpose(0, 1).flatten(1, 2)  # (P, B, C, H, W) -> (B, P * C, H, W)
        if self.kind is nn.BatchNorm2d:  # in at least float32, with PyTorch's default momentum and epsilon
            tensors = self.running_mean, self.running_var, self.weight, self.bias
            mean, var, weight, bias = (tensor.view(-1) for tensor in tensors)
            y = F.batch_norm(grouped.to(weight.dtype), mean, var, weight, bias, self.training).to(x.dtype)
        else:
            function: Callable[..., Tensor] = F.conv2d if self.kind is nn.Conv2d else F.conv_transpose2d
            y = function(grouped, self.weight.flatten(0, 1), self.bias.flatten(), **self.options)
        return y.unflatten(1, (self.size, -1)).transpose(0, 1)


def stack(networks: Sequence[nn.Module]) -> nn.Module:
    """Return P networks of one architecture as one, with copies of their parameters.

    The networks are ``nn.Sequential`` of linear layers (whose stacked weights are (P, in, out)), convolutions, batch
    normalisations, reshapes and activations.
    """
    first = networks[0]
    if isinstance(first, nn.Sequential):
        return nn.Sequential(*(stack(layers) for layers in zip(*networks, strict=True)))
    if isinstance(first, nn.Flatten | nn.Unflatten):
        return nn.Flatten(2) if isinstance(first, nn.Flatten) else nn.Unflatten(2, first.unflattened_size)
    return _Layer(networks) if any(True for _ in first.parameters()) else first  # an activation


def unstack(stacked: Mapping[str, Tensor], number: int, network: nn.Module) -> None:
    """Load the values of one of P stacked networks into a plain network, which may be on the meta device."""
    rows = ((name, value[number]) for name, value in stacked.items())
    layout = {"memory_format": torch.contiguous_format}
    plain = {name: (row.T if row.ndim == 2 else row).clone(**layout) for name, row in rows}
    network.load_state_dict(plain, assign=True)


class Networks(nn.Module):
    """The networks and prior of P runs, each parameter of shape (P, ...).

    ``encoder``, ``decoder`` and, if set, FactorVAE's ``discriminator`` are stacked networks; ``prior()`` returns a
    distribution of batch shape (P, 1) and event shape (D,). Parameters of linear layers and convolutions are converted
    to ``dtype``. Normalisation, posterior, sample and prior have at least float32.
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module, prior: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.encoder, self.decoder, self.dtype = encoder, decoder, dtype
        self.prior: Any = prior  # isa.prior.StackedPrior, which this module does not import
        self.discriminator: nn.Module = nn.Identity()  # until it is set
        for module in self.modules():
            if isinstance(module, _Layer) and module.kind is not nn.BatchNorm2d:
                module.to(dtype)

    def sample(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a sample, the mean and the log-variance of each posterior, (P, B, D), for x (P, B, C, H, W)."""
        mean, log_var = self.encoder(x.to(self.dtype)).to(noise.dtype).chunk(2, -1)
        return mean + torch.exp(0.5 * log_var) * noise, mean, log_var

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the logits (P, B, C, H, W), and what :meth:`sample` returns."""
        z, mean, log_var = self.sample(x, noise)
        return self.decoder(z.to(self.dtype)).reshape(x.shape), z, mean, log_var
