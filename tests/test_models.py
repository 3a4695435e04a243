"""The networks: parameter counts of A.4, shapes, seeding, layout of the encoder's outputs."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from isa import models


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_networks_have_the_parameters_of_a4():
    vae, discriminator = models.build("mlp", 20), models.build_discriminator(20)
    assert (count(vae.encoder), count(vae.decoder)) == (6_405_640, 7_826_896)
    assert count(discriminator) == 21 * 1000 + 4 * 1001 * 1000 + 1001 * 2
    assert [m.negative_slope for m in discriminator.modules() if isinstance(m, nn.LeakyReLU)] == [0.2] * 5
    assert discriminator(torch.zeros(1, 20)).shape == (1, 2)
    vae, widths = models.build("conv", 6, channels=3), [3, 32, 32, 64, 64, 512]
    kernels, shifts = sum(16 * i * o for i, o in itertools.pairwise(widths)), sum(widths[1:])
    assert count(vae.encoder) == kernels + 3 * shifts + 513 * 12  # three: bias, and scale and shift of a normalisation
    assert count(vae.decoder) == kernels + 3 * shifts + 3 + 6 * 512


@pytest.mark.parametrize("name", ["mlp", "conv"])
@pytest.mark.parametrize("cast", [True, False])
def test_half_precision_has_posteriors_in_float32(name, cast):
    vae, x = models.build(name, 7, 3), torch.rand(3, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not cast):
        logits, z, posterior = vae.bfloat16()(x.bfloat16()) if cast else vae(x)
    assert logits.dtype == torch.bfloat16 and logits.shape == x.shape
    assert all(v.dtype == torch.float32 and v.shape == (3, 7) for v in (z, *posterior))
    (logits.square().sum() + posterior.log_var.square().sum() + z.sum()).backward()
    assert all(p.grad is not None for p in vae.parameters())
    assert vae.double().encode(x.double()).mean.dtype == torch.float64


def test_mlp_computes_the_printed_listing():
    vae = models.build("mlp", 3, seed=1)
    w = vae.state_dict()

    def layer(key, h):
        return h @ w[f"{key}.weight"].T + w[f"{key}.bias"]

    x = h = torch.rand(2, 1, 64, 64)
    h = layer("encoder.net.1", h.reshape(2, 4096)).clamp_min(0)
    outputs = layer("encoder.net.5", layer("encoder.net.3", h).clamp_min(0))
    posterior = vae.encode(x)
    torch.testing.assert_close(torch.cat(posterior, 1), outputs)
    h = posterior.mean
    for number in (0, 2, 4):
        h = torch.tanh(layer(f"decoder.net.{number}", h))
    torch.testing.assert_close(vae.decode(posterior.mean), layer("decoder.net.6", h).view(2, 1, 64, 64))


def test_convolutional_pair_computes_its_layers():
    """Convolution, batch normalisation and ReLU, written out; the last layer of each network is bare."""
    vae = models.build("conv", 3, channels=3, seed=1)
    for module in vae.modules():  # statistics and scales that are not 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.running_mean, module.running_var, module.weight, module.bias):
                nn.init.uniform_(value, 0.5, 1.5, generator=torch.Generator().manual_seed(value.numel()))
    vae.eval()
    w, half = vae.state_dict(), {"stride": 2, "padding": 1}

    def layer(function, h, key, **options):
        return function(h, w[f"{key}.weight"], w[f"{key}.bias"], **options)

    def normalised(h, key):
        mean, var, scale, shift = (w[f"{key}.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        columns = (scale / (var + 1e-5).sqrt())[:, None, None]
        return (columns * (h - mean[:, None, None]) + shift[:, None, None]).clamp_min(0)

    h = x = torch.rand(2, 3, 64, 64)
    for number, size in {0: (32, 32), 3: (32, 16), 6: (64, 8), 9: (64, 4), 12: (512, 1)}.items():
        h = layer(nn.functional.conv2d, h, f"encoder.net.{number}", **(half if number < 12 else {}))
        h = normalised(h, f"encoder.net.{number + 1}")
        assert h.shape[1:3] == size
    outputs = layer(nn.functional.conv2d, h, "encoder.net.15").flatten(1)
    posterior = vae.encode(x)
    torch.testing.assert_close(torch.cat(posterior, 1), outputs, rtol=1e-4, atol=1e-4)
    h = posterior.mean[:, :, None, None]
    for number in (1, 4, 7, 10, 13, 16):
        h = layer(nn.functional.conv_transpose2d, h, f"decoder.net.{number}", **(half if number > 4 else {}))
        h = normalised(h, f"decoder.net.{number + 1}") if number < 16 else h
    torch.testing.assert_close(vae.decode(posterior.mean), h, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["mlp", "conv", "discriminator"])
def test_seed_decides_and_global_state_stays(name):
    def construct(seed):
        return models.build_discriminator(4, seed) if name == "discriminator" else models.build(name, 4, seed=seed)

    before = torch.get_rng_state()
    first, other = construct(5).state_dict(), construct(6).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    plain = models.Discriminator(4) if name == "discriminator" else models.MODELS[name](4, 1)
    assert all(torch.equal(first[key], value) for key, value in plain.state_dict().items())
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_initialisation_is_uniform_within_the_fan_in_bound():
    layer = models.build("mlp", 20).encoder.net[1]
    bound = 4096**-0.5
    values = torch.cat([layer.weight.flatten(), layer.bias]).double()
    assert values.abs().max() <= bound
    # n draws of U(-b, b): the mean square is b^2 / 3 with a standard error of b^2 sqrt(4 / 45 / n).
    error = values.square().mean().item() / bound**2 - 1 / 3
    assert abs(error) < 5 * math.sqrt(4 / 45 / values.numel())


def test_posterior_samples_have_its_moments():
    mean, log_var = torch.tensor([1.0, -2.0]), torch.tensor([-2.0, 1.0])
    n = 200_000
    posterior = models.Posterior(mean.expand(n, 2), log_var.expand(n, 2))
    z = posterior.sample(generator=torch.Generator().manual_seed(0)).double()
    std = log_var.double().mul(0.5).exp()
    assert ((z.mean(0) - mean).abs() < 5 * std / math.sqrt(n)).all()
    assert ((z.var(0) / std**2 - 1).abs() < 5 * math.sqrt(2 / n)).all()
