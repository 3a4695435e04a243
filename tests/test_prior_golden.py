"""The prior's numbers stay the same; ``python tests/test_prior_golden.py`` computes and stores them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import LP_NESTED
from torch.distributions import Independent, Normal, kl_divergence

from isa import LpNested, Node, isa_prior

GOLDEN = Path(__file__).parent / "golden" / "prior.json"
TREES = {
    "same subspaces": (isa_prior((2, 3), p0=1.5, p1=[2.4, 0.9], scale=0.8), isa_prior((2, 3), p0=2.6, p1=[2.4, 0.9])),
    "subtree": (
        LpNested(Node(1.5, [Node(2.4, [Node(0.9, 2), 1]), 1]), 0.8),
        LpNested(Node(1.1, [Node(0.9, 2), 2])),
    ),
    "normal": (isa_prior((2, 3), p1=[2.4, 0.9]), Independent(Normal(torch.full((5,), 0.3), 0.7), 1)),
}
FITS = {
    "one exponent": (Node(2.0, 3), LpNested(Node(1.3, 3), 0.7)),
    "uneven": (Node(2.0, [Node(2.0, 3), 1, Node(2.0, 2)]), LpNested(Node(1.6, [Node(2.6, 3), 1, Node(0.9, 2)]), 0.7)),
}


def density(name: str) -> dict[str, list]:
    """Values and gradients at two points, sums of samples, and closed forms of one distribution of the table."""
    prior = LP_NESTED[name]()
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, *prior.batch_shape, *prior.event_shape, generator=generator, dtype=torch.float64)
    z = (z / prior.norm(z)[..., None]).requires_grad_()
    p = [torch.as_tensor(p, dtype=torch.float64).clone().requires_grad_() for p in prior.tree.exponents]
    scale = 1.0 if prior.radial is not None else prior.scale.double()
    learned = LpNested(prior.tree.with_exponents(p), scale, radial=prior.radial)
    value = learned.log_prob(z)
    gradients = torch.autograd.grad(value.sum(), (z, *p))
    torch.manual_seed(0)
    samples = prior.sample((20,)).double()
    found = {
        "log_prob": prior.log_prob(z),
        "dz": gradients[0],
        "dp": torch.cat([gradient.reshape(-1) for gradient in gradients[1:]]),
        "norm": prior.norm(1.5 * z[:1]),
        "samples": samples.sum(tuple(range(samples.ndim - 1))),
        "variance": prior.variance,
    }
    if prior.radial is None:
        found["entropy"] = prior.entropy()
        found["marginal"] = prior.marginal(0).log_prob(z[0][..., list(prior.subspaces[0])])
    return {key: [float(f"{x:.9g}") for x in tensor.detach().reshape(-1).tolist()] for key, tensor in found.items()}


def others() -> dict[str, list]:
    """Many samples, drawn in blocks; divergences in closed form; maximum-likelihood fits."""
    torch.manual_seed(0)
    found = {"many samples": isa_prior().sample((30_000,)).abs().mean(0).tolist()}
    found |= {name: [kl_divergence(p, q).item()] for name, (p, q) in TREES.items()}
    for name, (start, true) in FITS.items():
        torch.manual_seed(0)
        fit = LpNested.fit(start, true.sample((1000,)))
        found[name] = [*fit.distribution.tree.exponents, fit.distribution.scale.item(), fit.log_likelihood]
        found[name] += [*fit.exponent_errors, fit.scale_error]
    return {key: [float(f"{x:.7g}") for x in values] for key, values in found.items()}


@pytest.mark.parametrize("name", LP_NESTED)
def test_the_table(name):
    expected, found = json.loads(GOLDEN.read_text())[name], density(name)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        single = key in ("samples", "variance", "entropy")  # of the distribution's own precision
        np.testing.assert_allclose(
            found[key], values, rtol=2e-5 if single else 1e-6, atol=1e-4 if single else 1e-7, err_msg=key
        )


def test_samples_divergences_and_fits():
    expected = json.loads(GOLDEN.read_text())["others"]
    for key, values in others().items():
        np.testing.assert_allclose(values, expected[key], rtol=1e-4, err_msg=key)


if __name__ == "__main__":
    every = {name: density(name) for name in LP_NESTED} | {"others": others()}
    lines = (f"{json.dumps(name)}: {json.dumps(values)}" for name, values in every.items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
