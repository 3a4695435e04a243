"""The mutual information of subspaces against double sums in plain numpy."""

import math
from itertools import chain

import numpy as np
import pytest
import torch
from conftest import cuda, golden
from scipy.special import logsumexp
from test_mig import LOG_VAR, MEAN, SIZES, grid, posteriors

from isa.subspaces import SubspaceInformation, random_groupings, subspace_information

SMALL = (3, 16, 12)
N = math.prod(SMALL)


def information(mean, log_var, groupings, sizes=SMALL, seed=0, **options) -> SubspaceInformation:
    generator = torch.Generator().manual_seed(seed)
    tensors = torch.as_tensor(mean), torch.as_tensor(log_var)
    return subspace_information(*tensors, groupings, sizes, generator=generator, **options)


def slow_information(mean, log_var, groups, table, n_draws) -> np.ndarray:
    """(n_draws, F, S) differences of log densities, for the draws of seed 0."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randperm(len(mean), generator=generator)[:n_draws].numpy()
    noise = torch.randn(n_draws, mean.shape[1], dtype=torch.float64, generator=generator).numpy()
    out = []
    for image, e in zip(images, noise, strict=True):
        z = mean[image] + np.exp(0.5 * log_var[image]) * e
        density = -0.5 * (z - mean) ** 2 * np.exp(-log_var) - 0.5 * log_var
        joint = np.stack([density[:, group].sum(1) for group in groups])
        members = [values == values[image] for values in table.T]
        out.append([logsumexp(joint[:, x], 1) - np.log(x.mean()) - logsumexp(joint, 1) for x in members])
    return np.array(out)


def five_latents(n: int = N) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    value = np.arange(n)[:, None] % 12
    mean = np.sin(value * [0.5, 0.3, 0.0, 1.0, 2.0]) + 0.5 * rng.standard_normal((n, 5))
    return mean, 2 * np.log(rng.uniform(0.1, 0.5, (n, 5)))


@pytest.mark.parametrize("cast", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", [SMALL, (N,), (4, 1, 144), (10, 50, 60)])  # the last takes several blocks
def test_subspace_information_matches_double_sums(sizes, cast):
    mean, log_var = (x.astype(np.float32) for x in five_latents(math.prod(sizes)))
    groupings = [[[0, 3], [1, 2, 4]], [[4], [0, 1]]]
    kept, threads = [f for f, size in enumerate(sizes) if size > 1], torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        result = information(mean.astype(cast), log_var.astype(cast), groupings, sizes, n_draws=20)
    finally:
        torch.set_num_threads(threads)
    assert result.factors == tuple(kept) and result.n_draws == 20
    tolerance = 1e-5 if cast is np.float32 else 1e-10
    for g, groups in enumerate(groupings):
        differences = slow_information(mean.astype(float), log_var.astype(float), groups, grid(sizes), 20)[:, kept]
        np.testing.assert_allclose(result.mutual_information[g], differences.mean(0), atol=tolerance)
        np.testing.assert_allclose(result.standard_error[g], differences.std(0, ddof=1) / 20**0.5, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_results(dtype):
    (case,) = (x for x in golden("mig") if x["options"].get("dtype") == str(dtype)[6:])
    groupings = random_groupings((2, 3, 1), 3, torch.Generator().manual_seed(0))
    assert groupings == case["options"]["groupings"]
    mean, log_var = (x.to(dtype) for x in posteriors(SMALL))
    with torch.device("meta"):  # another default device changes nothing
        generator = torch.Generator("cpu").manual_seed(1)
        result = subspace_information(mean, log_var, groupings, SMALL, 40, generator)
    for name, wanted in case["result"].items():
        tolerance = 1e-5 if dtype == torch.float32 else 1e-9
        np.testing.assert_allclose(getattr(result, name).flatten(), wanted, atol=tolerance)


def test_a_table_of_part_of_a_grid_matches_double_sums():
    mean, log_var = five_latents()
    rows = np.random.default_rng(0).permutation(N)[: N // 3]
    part = mean[rows], log_var[rows]
    result = information(*part, [[[0, 3], [1, 2, 4]]], None, factor_values=grid(SMALL)[rows], n_draws=N)  # the rows
    differences = slow_information(*part, [[0, 3], [1, 2, 4]], grid(SMALL)[rows], N // 3)
    np.testing.assert_allclose(result.mutual_information[0], differences.mean(0), atol=1e-10)


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 99), (torch.float32, 500), (torch.float64, 500)])
def test_densities_of_extreme_ratio_stay_finite(dtype, limit):
    tensors = (torch.tensor(x, dtype=dtype) for x in (MEAN.clip(-1e30, 1e30), LOG_VAR.clip(-limit, limit)))
    groups = [list(range(5)), list(range(5, 10)), list(range(10, MEAN.shape[1]))]
    result = information(*tensors, [groups], SIZES, n_draws=50)
    assert result.mutual_information.isfinite().all() and result.standard_error.isfinite().all()


@cuda
def test_a_gpu_matches_the_cpu():
    mean, log_var = (torch.tensor(x, dtype=torch.float32) for x in five_latents())
    cpu, gpu = (information(mean.to(d), log_var.to(d), [[[0, 3], [1, 2]]], n_draws=20) for d in ("cpu", "cuda"))
    np.testing.assert_allclose(gpu.mutual_information, cpu.mutual_information, atol=1e-4)


def test_random_groupings_are_uniform_partitions():
    groupings = random_groupings((4, 3, 1), 300, torch.Generator().manual_seed(0))
    assert all([len(group) for group in grouping] == [4, 3, 1] for grouping in groupings)
    assert all(sorted(chain(*grouping)) == list(range(8)) for grouping in groupings)
    assert np.mean([grouping[0].count(5) for grouping in groupings]) == pytest.approx(0.5, abs=4 * 0.5 / 300**0.5)
