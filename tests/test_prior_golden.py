"""The prior's numbers stay the same: densities, gradients, samples, moments and fits, recorded once."""

import numpy as np
import pytest
import torch
from conftest import LP_NESTED, golden
from torch.distributions import Independent, Normal, kl_divergence

from isa import LpNested, Node, isa_prior

GOLDEN = golden("prior")
PAIRS = {
    "same subspaces": (isa_prior((2, 3), p0=1.5, p1=[2.4, 0.9], scale=0.8), isa_prior((2, 3), p0=2.6, p1=[2.4, 0.9])),
    "subtree": (LpNested(Node(1.5, [Node(2.4, [Node(0.9, 2), 1]), 1]), 0.8), LpNested(Node(1.1, [Node(0.9, 2), 2]))),
}
FITS = {
    "one exponent": (Node(2.0, 3), LpNested(Node(1.3, 3), 0.7)),
    "uneven": (Node(2.0, [Node(2.0, 3), 1, Node(2.0, 2)]), LpNested(Node(1.6, [Node(2.6, 3), 1, Node(0.9, 2)]), 0.7)),
}


@pytest.mark.parametrize("name", LP_NESTED)
def test_the_table(name):
    prior = LP_NESTED[name]()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, *prior.batch_shape, *prior.event_shape, generator=generator, dtype=torch.float64)
    z = (z / prior.norm(z)[..., None]).requires_grad_()
    p = [torch.as_tensor(p, dtype=torch.float64).clone().requires_grad_() for p in prior.tree.exponents]
    scale = 1.0 if prior.radial is not None else prior.scale.double()
    learned = LpNested(prior.tree.with_exponents(p), scale, radial=prior.radial)
    gradients = torch.autograd.grad(learned.log_prob(z).sum(), (z, *p))
    torch.manual_seed(0)
    samples = prior.sample((20,)).double()
    values = {
        "log_prob": prior.log_prob(z),
        "dz": gradients[0],
        "dp": torch.cat([gradient.reshape(-1) for gradient in gradients[1:]]),
        "norm": prior.norm(1.5 * z[:1]),
        "samples": samples.sum(tuple(range(samples.ndim - 1))),
        "variance": prior.variance,
    }
    if prior.radial is None:
        values["entropy"] = prior.entropy()
        values["marginal"] = prior.marginal(0).log_prob(z[0][..., list(prior.subspaces[0])])
    assert values.keys() == GOLDEN[name].keys()
    for key, value in values.items():
        single = key in ("samples", "variance", "entropy")  # of the distribution's own precision
        tolerances = {"rtol": 2e-5, "atol": 1e-4} if single else {"rtol": 1e-6, "atol": 1e-7}
        np.testing.assert_allclose(value.detach().reshape(-1), GOLDEN[name][key], err_msg=key, **tolerances)


@pytest.mark.parametrize("name", PAIRS)
def test_estimated_divergence(name):
    p, q = PAIRS[name]
    torch.manual_seed(0)
    z = p.sample((100_000,))
    spread = (p.log_prob(z) - q.log_prob(z)).std() / 10_000**0.5  # of the 10,000 samples that are drawn by default
    assert abs(kl_divergence(p, q) - GOLDEN["others"][name][0]) < 4 * spread


def test_samples_divergence_and_fits():
    torch.manual_seed(0)  # many samples are drawn in blocks
    values = {"many samples": isa_prior().sample((30_000,)).abs().mean(0).tolist()}
    normal = Independent(Normal(torch.full((5,), 0.3), 0.7), 1)
    values["normal"] = [kl_divergence(isa_prior((2, 3), p1=[2.4, 0.9]), normal).item()]
    for name, (start, true) in FITS.items():
        torch.manual_seed(0)
        fit = LpNested.fit(start, true.sample((1000,)))
        values[name] = [*fit.distribution.tree.exponents, fit.distribution.scale.item(), fit.log_likelihood]
        values[name] += [*fit.exponent_errors, fit.scale_error]
    for key, value in values.items():
        np.testing.assert_allclose(value, GOLDEN["others"][key], rtol=1e-4, err_msg=key)
