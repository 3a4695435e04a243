"""The Triton kernels of the total correlation: in Triton's interpreter against double precision, and compiled."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import cuda
from posteriors import batch, exact

from isa import aggregate, kernels

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

WEIGHTS = {"weighted": (1e-4, 1e-4), "stratified": (1e-3, 8e-3)}
"""Weight of a sample's own image and of each other one."""


def outlier(z, mean, log_var):
    z[..., 3, :] += 40.0
    return z, mean, log_var


SINGLE = {"dtype": torch.float32, "level": -3.0}
CASES = {
    "one run, whole tiles": batch(1, 64, 4, **SINGLE),
    "two runs": batch(2, 33, 3, **SINGLE),
    "one latent": batch(1, 33, 1, **SINGLE),
    "narrow": batch(1, 40, 2, dtype=torch.float32, spread=0.1, level=-12.0),
    "narrow and wide": batch(1, 40, 5, dtype=torch.float32, spread=6.0, level=-3.0),
    "collapsed": batch(1, 40, 2, dtype=torch.float32, spread=1e-3, level=0.0),
    "one outlier": outlier(*batch(1, 70, 5, **SINGLE)),
}
CALLS = [(case, "stratified") for case in CASES]
CALLS += [(case, "weighted") for case in ("one run, whole tiles", "two runs", "narrow and wide")]
PACK = batch(3, 40, 3, **SINGLE)
for values in PACK:
    values[1] = torch.nan  # a run that has diverged
PACKS = {"pack": PACK, "reversed": [x.flip(0) for x in PACK], "first": [x[:1] for x in PACK]}

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
    calls = {(case, name): (*CASES[case], *WEIGHTS[name]) for case, name in CALLS}
    torch.save(calls | {case: (*inputs, *WEIGHTS["stratified"]) for case, inputs in PACKS.items()}, path)
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", INTERPRET, path], env=environment, check=True)
    return torch.load(path)


@needs_triton
@pytest.mark.parametrize(("case", "name"), CALLS)
def test_interpreted_kernels_match_double_precision(interpreted, case, name):
    joint, marginals, gradient = interpreted[case, name]
    inputs = [tensor.double().requires_grad_() for tensor in CASES[case]]
    expected = [values.mean(1) for values in exact(*inputs, *WEIGHTS[name])]
    torch.testing.assert_close([joint.double(), marginals.double()], expected, rtol=1e-6, atol=1e-5)
    parts = [torch.autograd.grad(values.sum(), inputs, retain_graph=True) for values in expected]
    assert gradient.is_contiguous()
    for result, of_joint, of_product in zip(gradient.unbind(1), *parts, strict=True):
        scale = max(of_joint.abs().max(), of_product.abs().max())  # the two may cancel
        assert (result - (of_joint - of_product)).abs().max() <= 3e-6 * scale


@needs_triton
def test_runs_have_the_same_bits_in_any_pack(interpreted):
    for pack, turned, first in zip(*(interpreted[case] for case in PACKS), strict=True):
        assert torch.equal(pack[0], turned[2]) and torch.equal(pack[2], turned[0]) and torch.equal(pack[0], first[0])
        assert pack[1].isnan().all()


@needs_triton
@pytest.mark.parametrize("kernel", kernels.TILES)
def test_kernels_compile_for_an_h100_without_spills(tmp_path, monkeypatch, kernel):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    function = kernels.load()[kernel]
    names = function.arg_names
    constants = {"B": 2048, "D": 20, "STRATIFIED": True, **kernels.TILES[kernel]}
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
    monkeypatch.setattr(kernels, "enabled", False)
    assert not kernels.available()
    monkeypatch.setattr(kernels, "enabled", True)
    monkeypatch.setitem(sys.modules, "triton", None)  # as if not installed
    assert not kernels.available()


@cuda
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("name", WEIGHTS)
def test_operator_on_a_gpu(monkeypatch, enabled, name):
    monkeypatch.setattr(kernels, "enabled", enabled)
    inputs = batch(2, 3, 70, 5, **SINGLE)
    expected = torch.ops.isa.total_correlation(*(tensor.double() for tensor in inputs), *WEIGHTS[name])
    result = torch.ops.isa.total_correlation(*(tensor.cuda() for tensor in inputs), *WEIGHTS[name])
    for value, truth in zip(result, expected, strict=True):
        assert (value.cpu() - truth).abs().max() <= 1e-5 * truth.abs().max()
    assert aggregate.total_correlation(*(tensor.cuda() for tensor in inputs), 1000).shape == (2, 3)
