"""Tools of several files: a browser, golden values, and the Lp-nested distributions that general tests run over."""

import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # for numpy and PyTorch, before either is imported: tests share the cores

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import torch
from browser import Page, find_chromium
from hypothesis import HealthCheck, settings
from torch.distributions import Distribution, HalfNormal, LogNormal, Uniform, Weibull

from isa import LpNested, Node, isa_prior, models
from isa.data import FactorDataset, dsprites, load

ROOT = Path(__file__).resolve().parent.parent
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

#: files, and tests of others, that are slow for a reason: sweeps with kills, schedulers, whole studies, kernels under
#: an interpreter; and compilers, kernels of notebooks, whole data sets, fits of many samples
SLOW = {"test_cluster", "test_kernels", "test_kill", "test_numbers", "test_studies"}
SLOW |= {"test_a_compiled_loss_is_one_graph", "test_compiled_sums_of_a_large_batch_in_single_precision"}
SLOW |= {"test_compiling_changes_only_rounding", "test_training_step_compiles_into_machine_code"}
SLOW |= {"test_profile_has_every_kind_and_records_nothing"}
SLOW |= {"test_memory_does_not_grow_as_batch_by_batch_by_latents"}
SLOW |= {"test_stand_in_is_that_of_the_records", "test_pictures_differ_and_are_inside_the_frame"}
SLOW |= {"test_total_correlation_of_a_correlated_gaussian", "test_fit_recovers_exponents_with_calibrated_errors"}
SLOW |= {"test_papermill_ends_in_one_sentence", "test_exact_likelihood_recovers_the_directions"}
SLOW |= {"test_kernels_are_copies_that_share_nothing", "test_show_moves_the_best_latents"}
SLOW |= {"test_log_likelihood_matches_characteristic_function"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if {item.path.stem, getattr(item, "originalname", None)} & SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    """Headless Chromium, one for each file of tests, so that no file sees what another has emulated."""
    executable = find_chromium()
    if executable is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("no Chromium was found, which the pages are read with")
    with Page(executable) as page:
        yield page


@pytest.fixture(autouse=True)
def _validation() -> None:
    """Distributions check their values in every test: the first ``torch.compile`` of a process turns this off."""
    Distribution.set_default_validate_args(True)


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """A compiler without compiled code, and distributions without checks, which it cannot trace."""
    torch._dynamo.reset()
    Distribution.set_default_validate_args(False)
    yield
    torch._dynamo.reset()


@pytest.fixture
def closed() -> Iterator[None]:
    """Close the figures of a test."""
    yield
    plt.close("all")


dsprites.draw_packed = cache(dsprites.draw_packed)  # once a process: the whole set takes seconds and 377 MB


@cache
def drawn() -> FactorDataset:
    """Return dSprites as it is drawn."""
    return load("dsprites")


def golden(name: str) -> Any:
    """Return values that were recorded once."""
    return json.loads((ROOT / "tests" / "golden" / f"{name}.json").read_text())


def wide(values, grad: bool = False) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


LP_NESTED = {
    "one leaf": lambda: LpNested(Node(1.7, 1), 0.8),
    "normal": lambda: LpNested(Node(2.0, 3), 2.0),
    "laplace": lambda: LpNested(Node(1.0, 2), 1.5),
    "p = 0.2": lambda: LpNested(Node(0.2, 2)),
    "p = 50": lambda: LpNested(Node(50.0, [2, Node(50.0, 2)])),
    "0.2 in 50": lambda: LpNested(Node(50.0, [Node(0.2, 2), 1]), 3.0),
    "50 in 0.2": lambda: LpNested(Node(0.2, [Node(50.0, 2), 1]), 0.3),
    "the paper's": lambda: isa_prior(),
    "Eq. 6": lambda: LpNested(Node(1.3, [1, Node(2.6, [2])]), 0.7),
    "uneven": lambda: isa_prior((1, 3, 2), p0=1.6, p1=[0.9, 2.4, 5.0]),
    "deep": lambda: LpNested(Node(1.5, [1, Node(0.8, [Node(3.0, [2, Node(1.2, 2)]), 1]), Node(2.2, 3)]), 1.2),
    "chain": lambda: LpNested(Node(2.1, [Node(0.7, [Node(3.3, [Node(1.4, 2)])])])),
    "unit variance": lambda: isa_prior((4, 4), scale="unit"),
    "batch of exponents": lambda: LpNested(
        Node(wide([0.7, 2.0, 9.0]), [1, Node(wide([2.0, 1.1, 3.0]), 2)]), wide([1.0, 2.0, 0.4])
    ),
    "batch by broadcasting": lambda: LpNested(Node(wide([[1.4], [2.3]]), [Node(wide([1.0, 2.0, 6.0]), 2), 1])),
    "expanded": lambda: isa_prior((2, 2), p1=[1.5, 3.0]).expand((2, 3)),
    "log-normal radius": lambda: LpNested(Node(1.5, [2, Node(3.0, 2)]), radial=LogNormal(0.2, 0.4)),
    "half-normal radius": lambda: LpNested(Node(2.0, 3), radial=HalfNormal(wide([0.5, 2.0]))),
    "Weibull radius": lambda: LpNested(Node(0.8, 2), radial=Weibull(wide(1.3), wide(2.5))),
    "uniform radius": lambda: LpNested(Node(3.0, [1, Node(1.2, 2)]), radial=Uniform(0.5, 2.0, validate_args=True)),
}


@pytest.fixture(params=LP_NESTED)
def lp_nested(request) -> LpNested:
    """Return each distribution of the table in turn."""
    return LP_NESTED[request.param]()


@pytest.fixture
def small_discriminator(monkeypatch) -> None:
    """Give FactorVAE a discriminator of one hidden layer."""
    from tiny_runs import SmallDiscriminator

    monkeypatch.setattr(models, "build_discriminator", SmallDiscriminator)


settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")  # no test fails because other processes keep the cores busy
