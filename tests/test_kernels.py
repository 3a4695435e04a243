"""The Triton kernels of the total correlation: in Triton's interpreter against double precision, and compiled."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from posteriors import log_density_table, weight_matrix

from isa import aggregate, kernels

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

WEIGHTS = {"weighted": (1e-4, 1e-4), "stratified": (1e-3, 8e-3)}
"""Weight of a sample's own image and of each other one."""


def posteriors(*shape: int, spread=1.0, level=-3.0, outlier=0.0) -> tuple[torch.Tensor, ...]:
    """Return samples, means and log-variances (P, B, D) of random posteriors."""
    mean, log_var, noise = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    log_var = spread * log_var + level
    z = mean + torch.exp(0.5 * log_var) * noise
    z[..., 3, :] += outlier
    return z, mean, log_var


CASES = {
    "one run, whole tiles": posteriors(1, 64, 4),
    "three runs": posteriors(3, 70, 5),
    "one latent": posteriors(1, 33, 1),
    "narrow": posteriors(1, 40, 5, spread=0.1, level=-12.0),
    "narrow and wide": posteriors(1, 40, 5, spread=6.0),
    "collapsed": tuple(scale * x for scale, x in zip((1, 1e-3, 1e-3), posteriors(1, 40, 5, level=0.0), strict=True)),
    "one outlier": posteriors(1, 70, 5, outlier=40.0),
}
PACK = posteriors(3, 70, 5)
for values in PACK:
    values[1] = torch.nan  # a run that has diverged
PACKS = {
    "pack": PACK,
    "reversed": tuple(tensor.flip(0) for tensor in PACK),
    "first": tuple(tensor[:1] for tensor in PACK),
    "last": tuple(tensor[2:] for tensor in PACK),
}

INTERPRET = """
import sys, torch
from isa import kernels
calls = torch.load(sys.argv[1])
torch.save({key: kernels.total_correlation(*arguments) for key, arguments in calls.items()}, sys.argv[1])
"""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory) -> dict[tuple[str, str], tuple[torch.Tensor, ...]]:
    """Results of all cases. Triton reads at its import whether to interpret, hence another process."""
    path = tmp_path_factory.mktemp("kernels") / "tensors.pt"
    calls = {(case, name): (*inputs, *WEIGHTS[name]) for case, inputs in CASES.items() for name in WEIGHTS}
    torch.save(calls | {case: (*inputs, *WEIGHTS["stratified"]) for case, inputs in PACKS.items()}, path)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", INTERPRET, str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(path)


def reference(inputs: tuple[torch.Tensor, ...], own: float, other: float) -> tuple[torch.Tensor, list, list]:
    """Return both batch means and the gradients of each, from a table of all densities in double precision."""
    inputs = [tensor.double().requires_grad_() for tensor in inputs]
    table, weights = log_density_table(*inputs), weight_matrix(inputs[0].shape[1], own, other).log()
    joint = torch.logsumexp(table.sum(-1) + weights, -1).mean(-1)
    marginals = torch.logsumexp(table + weights[..., None], -2).mean(-2)
    gradients = [torch.autograd.grad(value.sum(), inputs, retain_graph=True) for value in (joint, marginals)]
    return joint, marginals, gradients


@needs_triton
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("case", CASES)
def test_interpreted_kernels_match_double_precision(interpreted, case, name):
    joint, marginals, gradient = interpreted[case, name]
    expected_joint, expected_marginals, parts = reference(CASES[case], *WEIGHTS[name])
    torch.testing.assert_close(joint.double(), expected_joint, rtol=1e-6, atol=1e-5)
    torch.testing.assert_close(marginals.double(), expected_marginals, rtol=1e-6, atol=1e-5)
    assert gradient.is_contiguous()
    for result, of_joint, of_product in zip(gradient.unbind(1), *parts, strict=True):
        scale = max(of_joint.abs().max(), of_product.abs().max())  # the two may cancel
        assert (result - (of_joint - of_product)).abs().max() <= 3e-6 * scale


@needs_triton
def test_runs_have_the_same_bits_in_any_pack(interpreted):
    together, turned, first, last = (interpreted[case] for case in PACKS)
    for a, b, c, d in zip(together, turned, first, last, strict=True):
        assert torch.equal(a[0], b[2]) and torch.equal(a[0], c[0])
        assert torch.equal(a[2], b[0]) and torch.equal(a[2], d[0])
        assert a[1].isnan().all()


@needs_triton
@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("kernel", kernels.TILES)
def test_kernels_compile_for_an_h100_without_spills(tmp_path, monkeypatch, kernel, name):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = kernels.load()[kernel]
    names = function.arg_names
    constants = {"B": 2048, "D": 20, "STRATIFIED": name == "stratified", **kernels.TILES[kernel]}
    types = {"diagonal": "fp32", **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(
        function,
        {argument: types.get(argument, "*fp32") for argument in names},
        {(names.index(argument),): value for argument, value in constants.items()},
        {(place,): [["tt.divisibility", 16]] for place, argument in enumerate(names) if argument not in types},
    )
    binary = tmp_path / "kernel.cubin"
    binary.write_bytes(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.check_output([tool, "--dump-resource-usage", binary], text=True)
    assert re.search(r"STACK:(\d+) .* LOCAL:(\d+)", usage).groups() == ("0", "0"), usage


def test_kernels_are_optional(monkeypatch):
    assert kernels.available() == (importlib.util.find_spec("triton") is not None)
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "enabled", False)
        assert not kernels.available()
    monkeypatch.setitem(sys.modules, "triton", None)  # as if not installed
    assert not kernels.available()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU was found")
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("name", WEIGHTS)
def test_operator_on_a_gpu(monkeypatch, enabled, name):
    monkeypatch.setattr(kernels, "enabled", enabled)
    inputs = posteriors(2, 3, 70, 5)
    expected = torch.ops.isa.total_correlation(*(tensor.double() for tensor in inputs), *WEIGHTS[name])
    result = torch.ops.isa.total_correlation(*(tensor.cuda() for tensor in inputs), *WEIGHTS[name])
    for value, truth in zip(result, expected, strict=True):
        assert (value.cpu() - truth).abs().max() <= 1e-5 * truth.abs().max()
    assert aggregate.total_correlation(*(tensor.cuda() for tensor in inputs), 1000).shape == (2, 3)
