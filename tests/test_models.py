"""The networks: parameter counts of A.4, shapes, seeding, layout of the encoder's outputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from isa import models


@pytest.fixture(autouse=True)
def only_the_papers_networks(monkeypatch):
    """Take out the small networks that other tests of the same process add."""
    for name in set(models.MODELS) - {"mlp", "conv"}:
        monkeypatch.delitem(models.MODELS, name)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def linear(fan_in: int, fan_out: int) -> int:
    return fan_in * fan_out + fan_out


def convolution(fan_in: int, fan_out: int, kernel: int) -> int:
    return fan_in * fan_out * kernel**2 + fan_out


@pytest.mark.parametrize(("latent_dim", "channels"), [(20, 1), (10, 1), (6, 3)])
def test_mlp_has_the_parameters_of_a4(latent_dim, channels):
    vae = models.build("mlp", latent_dim, channels)
    pixels = 4096 * channels
    assert count(vae.encoder) == linear(pixels, 1200) + linear(1200, 1200) + linear(1200, 2 * latent_dim)
    assert count(vae.decoder) == linear(latent_dim, 1200) + 2 * linear(1200, 1200) + linear(1200, pixels)


def test_mlp_on_dsprites_has_the_printed_sizes():
    vae = models.build("mlp", 20)
    assert (count(vae.encoder), count(vae.decoder)) == (6_405_640, 7_826_896)
    assert not [name for name, _ in vae.named_parameters() if "conv" in name]


@pytest.mark.parametrize(("latent_dim", "channels"), [(20, 1), (10, 3)])
def test_convolutional_pair_has_its_parameters(latent_dim, channels):
    vae = models.build("conv", latent_dim, channels)
    layers = [(channels, 32), (32, 32), (32, 64), (64, 64), (64, 512)]
    normalisation = 2 * (32 + 32 + 64 + 64 + 512)
    shared = sum(convolution(i, o, 4) for i, o in layers)
    assert count(vae.encoder) == shared + normalisation + convolution(512, 2 * latent_dim, 1)
    mirror = [(512, 64), (64, 64), (64, 32), (32, 32), (32, channels)]
    normalisation = 2 * (512 + 64 + 64 + 32 + 32)
    shared = sum(convolution(i, o, 4) for i, o in mirror)
    assert count(vae.decoder) == shared + normalisation + convolution(latent_dim, 512, 1)


def test_discriminator_has_the_parameters_and_layers_of_a4():
    net = models.build_discriminator(20)
    assert count(net) == linear(20, 1000) + 4 * linear(1000, 1000) + linear(1000, 2)
    slopes = [m.negative_slope for m in net.modules() if isinstance(m, nn.LeakyReLU)]
    assert slopes == [0.2] * 5
    assert net(torch.zeros(1, 20)).shape == (1, 2)


@pytest.mark.parametrize("name", ["mlp", "conv"])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(name, channels):
    vae = models.build(name, 7, channels, seed=3)
    x = torch.rand(5, channels, 64, 64)
    logits, z, posterior = vae(x)
    assert logits.shape == x.shape
    assert z.shape == posterior.mean.shape == posterior.log_var.shape == (5, 7)
    assert (vae.latent_dim, vae.channels) == (7, channels)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_every_parameter_receives_a_gradient(name):
    vae = models.build(name, 4)
    logits, z, posterior = vae(torch.rand(8, 1, 64, 64))
    (logits.square().sum() + posterior.log_var.square().sum() + z.sum()).backward()
    without = [key for key, p in vae.named_parameters() if p.grad is None]
    assert without == []


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_means_come_first_and_log_variances_last(name):
    vae = models.build(name, 4).eval()
    last = [m for m in vae.encoder.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.copy_(torch.arange(8.0))
    posterior = vae.encode(torch.rand(2, 1, 64, 64))
    assert posterior.mean.tolist() == [[0.0, 1.0, 2.0, 3.0]] * 2
    assert posterior.log_var.tolist() == [[4.0, 5.0, 6.0, 7.0]] * 2


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_posteriors_and_samples_are_in_single_precision_under_autocast(name):
    vae = models.build(name, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, z, posterior = vae(torch.rand(3, 1, 64, 64))
    assert logits.dtype == torch.bfloat16
    assert z.dtype == posterior.mean.dtype == posterior.log_var.dtype == torch.float32
    assert vae.double().encode(torch.rand(3, 1, 64, 64, dtype=torch.float64)).mean.dtype == torch.float64


def test_mlp_computes_the_printed_listing():
    vae = models.build("mlp", 3, seed=1)
    w = {key: value.detach() for key, value in vae.state_dict().items()}
    x = torch.rand(2, 1, 64, 64)
    h = x.reshape(2, 4096)
    for layer in ("1", "3"):
        h = (h @ w[f"encoder.net.{layer}.weight"].T + w[f"encoder.net.{layer}.bias"]).clamp_min(0)
    out = h @ w["encoder.net.5.weight"].T + w["encoder.net.5.bias"]
    posterior = vae.encode(x)
    torch.testing.assert_close(torch.cat([posterior.mean, posterior.log_var], 1), out)
    h = posterior.mean.detach()
    for layer in ("0", "2", "4"):
        h = torch.tanh(h @ w[f"decoder.net.{layer}.weight"].T + w[f"decoder.net.{layer}.bias"])
    out = h @ w["decoder.net.6.weight"].T + w["decoder.net.6.bias"]
    torch.testing.assert_close(vae.decode(posterior.mean), out.view(2, 1, 64, 64))


def test_the_convolutional_pair_computes_its_layers():
    """Convolution, batch normalisation and ReLU, written out; the last layer of each network is bare."""
    vae = models.build("conv", 3, channels=3, seed=1)
    for module in vae.modules():  # statistics and scales that are not 0 and 1
        if isinstance(module, nn.BatchNorm2d):
            for value in (module.running_mean, module.running_var, module.weight, module.bias):
                nn.init.uniform_(value, 0.5, 1.5, generator=torch.Generator().manual_seed(value.numel()))
    vae.eval()
    w = {key: value.detach() for key, value in vae.state_dict().items()}

    def normalised(h, key):
        mean, var, scale, shift = (
            w[f"{key}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (scale * (h - mean) / (var + 1e-5).sqrt() + shift).clamp_min(0)

    h = x = torch.rand(2, 3, 64, 64)
    for layer in (0, 3, 6, 9, 12):
        options = {"stride": 2, "padding": 1} if layer < 12 else {}
        key = f"encoder.net.{layer}"
        h = nn.functional.conv2d(h, w[f"{key}.weight"], w[f"{key}.bias"], **options)
        h = normalised(h, f"encoder.net.{layer + 1}")
        assert h.shape[1:] == {0: (32, 32, 32), 3: (32, 16, 16), 6: (64, 8, 8), 9: (64, 4, 4), 12: (512, 1, 1)}[layer]
    out = h.flatten(1) @ w["encoder.net.15.weight"].flatten(1).T + w["encoder.net.15.bias"]
    posterior = vae.encode(x)
    torch.testing.assert_close(torch.cat([posterior.mean, posterior.log_var], 1), out, rtol=1e-4, atol=1e-4)

    h = z = posterior.mean.detach()
    h = h[:, :, None, None]
    for layer in (1, 4, 7, 10, 13, 16):
        options = {"stride": 2, "padding": 1} if layer > 4 else {}
        key = f"decoder.net.{layer}"
        h = nn.functional.conv_transpose2d(h, w[f"{key}.weight"], w[f"{key}.bias"], **options)
        if layer < 16:
            h = normalised(h, f"decoder.net.{layer + 1}")
    torch.testing.assert_close(vae.decode(z), h, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "construct",
    [
        models.build_discriminator,
        *(lambda k, seed, name=name: models.build(name, k, seed=seed) for name in ("mlp", "conv")),
    ],
)
def test_seed_decides_and_global_state_stays(construct):
    torch.manual_seed(11)
    before = torch.get_rng_state()
    first, second, other = (construct(4, seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_initial_parameters_are_those_that_pytorch_draws(name):
    state = torch.get_rng_state()
    torch.manual_seed(5)
    plain = models.MODELS[name](4, 3).state_dict()
    torch.set_rng_state(state)
    built = models.build(name, 4, channels=3, seed=5).state_dict()
    assert all(torch.equal(built[key], value) for key, value in plain.items())


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
    noise = torch.ones(n, 2)
    torch.testing.assert_close(posterior.sample(noise)[0], mean + log_var.mul(0.5).exp())


@pytest.mark.parametrize("name", ["mlp", "conv"])
def test_a_model_in_half_precision(name):
    vae = models.build(name, 4).bfloat16()
    logits, z, posterior = vae(torch.rand(2, 1, 64, 64).bfloat16())
    assert logits.dtype == torch.bfloat16 and posterior.mean.dtype == z.dtype == torch.float32


def test_an_unknown_name_is_refused():
    with pytest.raises(KeyError, match="'mlp', 'conv', got 'resnet'"):
        models.build("resnet", 4)
