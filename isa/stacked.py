"""P networks of one architecture as one network on (P, B, ...), for training a pack of runs at once.

Parameters and buffers keep their names and get a leading dimension P. No operation mixes networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Networks", "stack", "unstack"]


@cache
def _lacks_bfloat16() -> bool:
    """Return True for an x86 CPU without bfloat16 instructions, on which float32 is four times as fast."""
    can = getattr(torch.cpu, "get_capabilities", dict)()
    return can.get("architecture") == "x86_64" and not (can.get("avx512_bf16") or can.get("amx_bf16"))


class _Layer(nn.Module):
    """P linear layers, convolutions (as one in P groups) or batch normalisations, as one layer on (P, B, ...).

    Weights of linear layers are (P, in, out), so that their gradients are contiguous.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.size, self.kind, self.widens = len(layers), type(layers[0]), _lacks_bfloat16()
        if isinstance(layers[0], nn.Conv2d | nn.ConvTranspose2d):
            self.options = {"stride": layers[0].stride, "padding": layers[0].padding, "groups": self.size}
        parameters, buffers = torch.func.stack_module_state(list(layers))
        for name, value in parameters.items():
            value = value.detach().mT.contiguous() if value.ndim == 3 else value.detach()
            self.register_parameter(name, nn.Parameter(value))
        for name, value in buffers.items():
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind is nn.Linear:  # (P, B, in) -> (P, B, out)
            if self.widens and x.is_cpu and x.dtype == torch.bfloat16:  # products of bfloat16 are exact in float32
                return torch.bmm(x.float(), self.weight.float()).to(x.dtype) + self.bias[:, None]
            return torch.bmm(x, self.weight) + self.bias[:, None]
        grouped = x.transpose(0, 1).flatten(1, 2)  # (P, B, C, H, W) -> (B, P * C, H, W)
        if self.kind is nn.BatchNorm2d:  # in at least float32, with PyTorch's default momentum and epsilon
            tensors = (one.view(-1) for one in (self.running_mean, self.running_var, self.weight, self.bias))
            y = F.batch_norm(grouped.to(self.weight.dtype), *tensors, self.training).to(x.dtype)
            if self.training:
                self.num_batches_tracked.add_(1)
        else:
            function = F.conv2d if self.kind is nn.Conv2d else F.conv_transpose2d
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
    if isinstance(first, nn.Flatten):
        return nn.Flatten(2)
    if isinstance(first, nn.Unflatten):
        return nn.Unflatten(2, first.unflattened_size)
    return _Layer(networks) if any(True for _ in first.parameters()) else first  # an activation


def unstack(stacked: Mapping[str, Tensor], number: int, network: nn.Module) -> None:
    """Load the values of one of P stacked networks into a plain network, which may be on the meta device."""
    rows = {name: value[number] for name, value in stacked.items()}
    plain = {name: value.T.contiguous() if value.ndim == 2 else value.clone() for name, value in rows.items()}
    network.load_state_dict(plain, assign=True)


class Networks(nn.Module):
    """Everything that P runs train, each parameter of shape (P, ...).

    ``encoder``, ``decoder`` and FactorVAE's ``discriminator`` are stacked networks; ``prior()`` returns a distribution
    of batch shape (P, 1) and event shape (D,). Matrix multiplications and convolutions have the precision ``dtype``, to
    which their parameters are converted. Normalisation, posterior, sample and prior have at least float32.
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
