"""The networks: parameter counts of A.4, shapes, seeding, layout of the encoder's outputs."""

import itertools

import pytest
import scipy.stats
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


@pytest.mark.parametrize(("name", "cast"), [("mlp", True), ("conv", False)])
def test_half_precision_has_posteriors_in_float32(name, cast):
    vae, x = models.build(name, 7, 3), torch.rand(3, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=not cast):
        logits, z, posterior = vae.bfloat16()(x.bfloat16()) if cast else vae(x)
    assert logits.dtype == torch.bfloat16 and logits.shape == x.shape
    assert all(v.dtype == torch.float32 and v.shape == (3, 7) for v in (z, *posterior))
    (logits.square().sum() + posterior.log_var.square().sum() + z.sum()).backward()
    assert all(p.grad is not None for p in vae.parameters())
    assert vae.double().encode(x.double()).mean.dtype == torch.float64


HALF, WHOLE, POINT = "4x4/2", "4x4/1", "1x1/1"
NETWORKS = {  # layers of encoder and decoder, of appendix A.4 or of cars3d; * is followed by a normalisation and a ReLU
    "mlp": ("Flatten Linear ReLU Linear ReLU Linear", "Linear Tanh Linear Tanh Linear Tanh Linear"),
    "conv": (
        f"{HALF}* {HALF}* {HALF}* {HALF}* {WHOLE}* {POINT} Flatten",
        f"Unflatten {POINT}* {WHOLE}* {HALF}* {HALF}* {HALF}* {HALF}",
    ),
}


def described(layer: nn.Module) -> str:
    if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
        return type(layer).__name__
    assert layer.padding == ((1, 1) if layer.stride == (2, 2) else (0, 0))
    return "{}x{}".format(*layer.kernel_size) + f"/{layer.stride[0]}"


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_have_their_layers(name):
    vae, x = models.build(name, 3, channels=3, seed=1).eval(), torch.rand(2, 3, 64, 64)
    for network, layers in zip((vae.encoder.net, vae.decoder.net), NETWORKS[name], strict=True):
        assert [*map(described, network)] == layers.replace("*", " BatchNorm2d ReLU").split()
    mean, log_var = vae.encode(x)
    assert torch.equal(torch.cat([mean, log_var], 1), vae.encoder.net(x))
    assert torch.equal(vae.decode(mean), vae.decoder.net(mean).view(x.shape))


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


def test_posterior_samples_are_normal():
    mean, log_var = torch.tensor([1.0, -2.0]), torch.tensor([-2.0, 1.0])
    posterior = models.Posterior(mean.expand(20_000, 2), log_var.expand(20_000, 2))
    z = posterior.sample(generator=torch.Generator().manual_seed(0))
    for values, loc, scale in zip(z.T, mean, torch.exp(0.5 * log_var), strict=True):
        assert scipy.stats.kstest(values, "norm", (loc, scale)).pvalue > 1e-3
