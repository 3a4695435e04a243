"""The networks of appendix A.4: encoder and decoder pairs, and FactorVAE's discriminator.

A pair is built by its name::

    vae = build("mlp", latent_dim=20, seed=0)
    posterior = vae.encode(x)             # x (B, 1, 64, 64) -> mean (B, 20), log_var (B, 20)
    z = posterior.sample()                # (B, 20), reparameterised
    logits = vae.decode(z)                # (B, 1, 64, 64)

Parameters start as PyTorch's own initialisation draws them: for ``nn.Linear`` and the convolutions both weight and bias
are uniform on plus or minus ``fan_in ** -0.5``, which is also what PyTorch 0.4.1, the version the paper names, does.
They are drawn on the CPU from a generator state of their own, so one seed gives one model whatever the device it is
moved to, and whatever else has drawn random numbers before.

The listing of A.4 also declares a layer ``conv_z`` in the MLP encoder that its forward pass never calls. It is not
built here: it would add 1,025 parameters per output that receive no gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "IMAGE_SIZE",
    "MODELS",
    "VAE",
    "Decoder",
    "Discriminator",
    "Encoder",
    "Networks",
    "Posterior",
    "build",
    "build_discriminator",
    "conv",
    "mlp",
    "stack",
    "unstack",
]

IMAGE_SIZE = 64
"""Height and width, in pixels, of every image the networks read and draw."""


class Posterior(NamedTuple):
    """A diagonal Gaussian ``q(z|x)`` for each image of a batch."""

    mean: Tensor
    """Posterior means, shape ``(..., latent_dim)``."""
    log_var: Tensor
    """Natural logarithms of the posterior variances, shape ``(..., latent_dim)``."""

    def sample(self, noise: Tensor | None = None, generator: torch.Generator | None = None) -> Tensor:
        r"""Draw one reparameterised sample :math:`z = \mu + \sigma \odot \epsilon` per image.

        Parameters
        ----------
        noise
            Standard normal :math:`\epsilon` of the shape of ``mean``; drawn when not given.
        generator
            Source of the noise that is drawn; the global one when not given.

        Returns
        -------
        Tensor
            Samples of the shape of ``mean``, differentiable in ``mean`` and ``log_var``.
        """
        if noise is None:
            noise = torch.randn(self.mean.shape, dtype=self.mean.dtype, device=self.mean.device, generator=generator)
        return self.mean + torch.exp(0.5 * self.log_var) * noise


class Encoder(nn.Module):
    """From images to a diagonal Gaussian posterior.

    The network's last layer has ``2 * latent_dim`` outputs. The first ``latent_dim`` are the means, the last
    ``latent_dim`` the log-variances, in the same order of latents. Under autocast they are returned in float32: a
    sample of a narrow posterior, rounded to half precision, would lie elsewhere in it.

    Parameters
    ----------
    net
        Maps ``(B, channels, 64, 64)`` to ``(B, 2 * latent_dim)``.
    latent_dim
        Number of latent variables.
    """

    def __init__(self, net: nn.Module, latent_dim: int) -> None:
        super().__init__()
        self.net = net
        self.latent_dim = latent_dim

    def forward(self, x: Tensor) -> Posterior:
        """Return the posterior of every image of ``x``, shape ``(B, channels, 64, 64)``."""
        outputs = self.net(x)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        return Posterior(*outputs.split(self.latent_dim, dim=1))


class Decoder(nn.Module):
    """From latents to the logits (or, under a Gaussian likelihood, the means) of the pixels.

    Parameters
    ----------
    net
        Maps ``(B, latent_dim)`` to ``channels * 64 * 64`` values per image, in any shape.
    channels
        Number of image channels.
    """

    def __init__(self, net: nn.Module, channels: int) -> None:
        super().__init__()
        self.net = net
        self.channels = channels

    def forward(self, z: Tensor) -> Tensor:
        """Return logits of shape ``(B, channels, 64, 64)`` for latents ``z`` of shape ``(B, latent_dim)``."""
        return self.net(z).view(z.shape[0], self.channels, IMAGE_SIZE, IMAGE_SIZE)


class VAE(nn.Module):
    """An encoder and the decoder that belongs to it.

    Parameters
    ----------
    encoder, decoder
        The two networks; they agree on ``latent_dim`` and ``channels``.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    @property
    def latent_dim(self) -> int:
        """Number of latent variables."""
        return self.encoder.latent_dim

    @property
    def channels(self) -> int:
        """Number of image channels."""
        return self.decoder.channels

    def encode(self, x: Tensor) -> Posterior:
        """Return the posterior of every image of ``x``, shape ``(B, channels, 64, 64)``."""
        return self.encoder(x)

    def decode(self, z: Tensor) -> Tensor:
        """Return logits of shape ``(B, channels, 64, 64)`` for latents ``z`` of shape ``(B, latent_dim)``."""
        return self.decoder(z)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Posterior]:
        """Encode, sample once, decode.

        Parameters
        ----------
        x
            Images of shape ``(B, channels, 64, 64)``, in [0, 1].
        noise
            Standard normal noise of shape ``(B, latent_dim)``; drawn when not given.

        Returns
        -------
        tuple
            The logits ``(B, channels, 64, 64)``, the sample ``(B, latent_dim)`` and the posterior it is drawn from.
        """
        posterior = self.encode(x)
        z = posterior.sample(noise)
        return self.decode(z), z, posterior


class Discriminator(nn.Module):
    """FactorVAE's discriminator, third listing of A.4: five hidden layers of 1,000 with LeakyReLU(0.2), two logits.

    Logit 0 stands for "drawn from q(z)", logit 1 for "drawn from the product of its marginals"; their difference
    estimates the logarithm of the ratio of the two densities. Unlike the listing, the output is not squeezed, so that a
    batch of one keeps its shape.

    Parameters
    ----------
    latent_dim
        Number of latent variables.
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
        """Return logits of shape ``(B, 2)`` for latents ``z`` of shape ``(B, latent_dim)``."""
        return self.net(z)


def mlp(latent_dim: int, channels: int) -> VAE:
    """Build the multilayer perceptrons of A.4: two hidden layers with ReLU in, three with Tanh out, 1,200 wide."""
    pixels = channels * IMAGE_SIZE * IMAGE_SIZE
    encoder = nn.Sequential(
        nn.Flatten(),
        nn.Linear(pixels, 1200),
        nn.ReLU(),
        nn.Linear(1200, 1200),
        nn.ReLU(),
        nn.Linear(1200, 2 * latent_dim),
    )
    decoder = nn.Sequential(
        nn.Linear(latent_dim, 1200),
        nn.Tanh(),
        nn.Linear(1200, 1200),
        nn.Tanh(),
        nn.Linear(1200, 1200),
        nn.Tanh(),
        nn.Linear(1200, pixels),
    )
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


def _positive_integer(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _seeded(construct: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Run ``construct`` on the CPU with the random state of ``seed``, and put the global state back afterwards."""
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be an integer, got {seed!r} of type {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must lie between 0 and 2**63 - 1, got {seed}")
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        # Seeding the CPU's generator by itself leaves the accelerators' generators alone, unlike torch.manual_seed.
        torch.default_generator.manual_seed(seed)
        return construct()


def build(name: str, latent_dim: int, channels: int = 1, seed: int = 0) -> VAE:
    """Build a model by name, initialised from ``seed``; the global random state is left as it was.

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

    Returns
    -------
    VAE
        The model, on the CPU, in training mode.

    Raises
    ------
    KeyError
        If no model has this name.
    TypeError, ValueError
        If ``latent_dim``, ``channels`` or ``seed`` is not an integer in range.
    """
    if name not in MODELS:
        raise KeyError(f"name must be one of {', '.join(map(repr, MODELS))}, got {name!r}")
    _positive_integer("latent_dim", latent_dim)
    _positive_integer("channels", channels)
    return _seeded(lambda: MODELS[name](latent_dim, channels), seed)


def build_discriminator(latent_dim: int, seed: int = 0) -> Discriminator:
    """Build FactorVAE's discriminator, initialised from ``seed``; the global random state is left as it was.

    Parameters
    ----------
    latent_dim
        Number of latent variables.
    seed
        Seed of the initial parameters.

    Returns
    -------
    Discriminator
        The network, on the CPU.

    Raises
    ------
    TypeError, ValueError
        If an argument is not an integer in range.
    """
    _positive_integer("latent_dim", latent_dim)
    return _seeded(lambda: Discriminator(latent_dim), seed)


class _Stacked(nn.Module):
    """P layers of one kind, as one layer on (P, B, ...)."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.size = len(layers)
        for name, _ in layers[0].named_parameters():
            values = torch.stack([getattr(layer, name).detach() for layer in layers])
            self.register_parameter(name, nn.Parameter(values))

    def _grouped(self, x: Tensor) -> Tensor:
        """Turn (P, B, C, H, W) into (B, P * C, H, W); a view of what another stacked layer returns."""
        return x.transpose(0, 1).flatten(1, 2)

    def _ungrouped(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.size, -1)).transpose(0, 1)


@cache
def _lacks_bfloat16() -> bool:
    """Return True for an x86 CPU without bfloat16 instructions, on which float32 is four times as fast."""
    found = getattr(torch.cpu, "get_capabilities", dict)()
    return found.get("architecture") == "x86_64" and not (found.get("avx512_bf16") or found.get("amx_bf16"))


class StackedLinear(_Stacked):
    """Linear layers. Weights are (P, in, out), so that their gradients are contiguous."""

    def __init__(self, layers: Sequence[nn.Linear]) -> None:
        super().__init__(layers)
        self.weight = nn.Parameter(self.weight.detach().mT.contiguous())
        self.widens = _lacks_bfloat16()

    def forward(self, x: Tensor) -> Tensor:  # (P, B, in) -> (P, B, out)
        if self.widens and x.is_cpu and x.dtype == torch.bfloat16:  # products of bfloat16 are exact in float32
            return torch.bmm(x.float(), self.weight.float()).to(x.dtype) + self.bias[:, None]
        return torch.bmm(x, self.weight) + self.bias[:, None]


class StackedConvolution(_Stacked):
    """Convolutions, plain or transposed, as one convolution in P groups."""

    def __init__(self, layers: Sequence[nn.Conv2d | nn.ConvTranspose2d]) -> None:
        super().__init__(layers)
        self.options = {"stride": layers[0].stride, "padding": layers[0].padding, "groups": self.size}
        self.function = F.conv2d if isinstance(layers[0], nn.Conv2d) else F.conv_transpose2d

    def forward(self, x: Tensor) -> Tensor:  # (P, B, C, H, W)
        y = self.function(self._grouped(x), self.weight.flatten(0, 1), self.bias.flatten(), **self.options)
        return self._ungrouped(y)


class StackedBatchNorm(_Stacked):
    """Batch normalisation of P * C channels, in at least float32."""

    def __init__(self, layers: Sequence[nn.BatchNorm2d]) -> None:
        super().__init__(layers)
        for name, _ in layers[0].named_buffers():
            self.register_buffer(name, torch.stack([getattr(layer, name) for layer in layers]))
        self.momentum, self.eps = layers[0].momentum, layers[0].eps

    def forward(self, x: Tensor) -> Tensor:  # (P, B, C, H, W)
        tensors = (one.view(-1) for one in (self.running_mean, self.running_var, self.weight, self.bias))
        wide = self._grouped(x).to(self.weight.dtype)
        y = F.batch_norm(wide, *tensors, self.training, self.momentum, self.eps)
        if self.training:
            self.num_batches_tracked.add_(1)
        return self._ungrouped(y).to(x.dtype)


_STACKED: dict[type[nn.Module], type[_Stacked]] = {
    nn.Linear: StackedLinear,
    nn.Conv2d: StackedConvolution,
    nn.ConvTranspose2d: StackedConvolution,
    nn.BatchNorm2d: StackedBatchNorm,
}


def stack(networks: Sequence[nn.Module]) -> nn.Module:
    """Stack P networks of one architecture into one network on (P, B, ...).

    Parameters and buffers keep their names and get a leading dimension P; weights of linear layers are (P, in, out).

    Parameters
    ----------
    networks
        ``nn.Sequential`` of linear layers, convolutions, batch normalisations, reshapes and activations.

    Returns
    -------
    nn.Module
        The stacked network, with copies of the parameters.
    """
    first = networks[0]
    if isinstance(first, nn.Sequential):
        return nn.Sequential(*(stack(layers) for layers in zip(*networks, strict=True)))
    if isinstance(first, nn.Flatten):
        return nn.Flatten(2)
    if isinstance(first, nn.Unflatten):
        return nn.Unflatten(2, first.unflattened_size)
    if type(first) in _STACKED:
        return _STACKED[type(first)](networks)
    return first  # an activation


def unstack(stacked: Mapping[str, Tensor], number: int, network: nn.Module) -> None:
    """Give a plain network, which may be on the meta device, the values of one of P stacked networks."""
    plain = {}
    for name, value in stacked.items():
        plain[name] = value[number].T.contiguous() if value.ndim == 3 else value[number].clone()
    network.load_state_dict(plain, assign=True)


class Networks(nn.Module):
    """Everything that is trained in P runs at once, each parameter of shape (P, ...).

    Parameters
    ----------
    encoder, decoder
        Stacked networks.
    prior
        Module that returns a distribution of batch shape (P, 1) and event shape (D,).
    discriminator
        FactorVAE's, stacked.
    dtype
        Precision of matrix multiplications and convolutions: parameters of these layers are converted to it.
        Normalisation, posterior, sample and prior have at least float32.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: nn.Module,
        discriminator: nn.Module | None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior, self.discriminator = encoder, decoder, prior, discriminator
        self.dtype = dtype
        for module in self.modules():
            if isinstance(module, StackedLinear | StackedConvolution):
                module.to(dtype)

    def sample(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return a sample, the mean and the log-variance of each posterior, (P, B, D), for x (P, B, C, H, W)."""
        outputs = self.encoder(x.to(self.dtype))
        mean, log_var = outputs.to(noise.dtype).chunk(2, -1)
        return mean + torch.exp(0.5 * log_var) * noise, mean, log_var

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the logits (P, B, C, H, W), and what :meth:`sample` returns."""
        z, mean, log_var = self.sample(x, noise)
        return self.decoder(z.to(self.dtype)).reshape(x.shape), z, mean, log_var
