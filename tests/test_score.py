"""The command ``isa mig``: files of both kinds, its numbers, and one sentence for every kind of bad input."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

from isa import cli, mig
from isa.disentanglement import disentanglement
from isa.subspaces import subspace_information

RNG = np.random.default_rng(0)
FACTORS = np.stack([RNG.integers(0, 3, 500), RNG.integers(0, 9, 500)], 1)
MEAN = FACTORS[:, [0, 1, 1]] * [1.0, 0.3, 0.1] + 0.2 * RNG.standard_normal((500, 3))
CODES = {"mean": MEAN, "log_var": np.full((500, 3), -3.0), "factors": FACTORS}


def save_npz(path, **changes):
    np.savez(path, **{name: x for name, x in (CODES | changes).items() if x is not None})
    return path


def save_csv(path, header="shape,z1,z_0,z2,log_var0,log_var1,log_var2,x", replace=("", "")):
    columns = np.c_[FACTORS[:, 0], MEAN[:, [1, 0, 2]], CODES["log_var"], FACTORS[:, 1]]
    rows = "\n".join(",".join(f"{x:.17g}" for x in row) for row in columns)
    path.write_text(f"\ufeff{header}\n{rows.replace(*replace, 1)}\n", encoding="utf-8")
    return path


def run(capsys, path, *options):
    status = cli.main(["mig", str(path), *options])
    return status, *capsys.readouterr()


def test_both_kinds_of_file_give_the_numbers_of_the_library(tmp_path, capsys):
    npz, table = save_npz(tmp_path / "a.npz", names=np.array(["shape", "x"])), save_csv(tmp_path / "a.csv")
    options = ("--json", "--binned", "10", "--samples", "30", "--subspaces", "1,2")
    results = [json.loads(run(capsys, path, *options)[1]) for path in (npz, table)]
    assert results[0] == results[1]
    result, generator = results[0], torch.Generator().manual_seed(0)
    arguments = {"factor_values": FACTORS, "subsample": 30, "resamples": 100, "generator": generator}
    gap = mig.mutual_information_gap(MEAN, CODES["log_var"], **arguments)
    entropy = [-sum(p * np.log(p)) for p in (np.bincount(values) / 500 for values in FACTORS.T)]
    binned = mig.mutual_information_gap_binned(MEAN, factor_values=FACTORS, bins=10)
    groups = [[[0], [1, 2]]]
    joint = subspace_information(MEAN, CODES["log_var"], groups, None, 500, generator, factor_values=FACTORS)
    measures = disentanglement(gap.mutual_information, entropy)
    low, high = result["mig_interval"]
    assert (result["rows"], result["latents"], result["factors"]) == (500, 3, ["shape", "x"])
    assert low < result["mig"] < high and high - low == pytest.approx(4 * gap.standard_error, rel=0.5)
    wanted = {
        "mig": gap.score,
        "gaps": gap.gaps,
        "mutual_information": gap.mutual_information,
        "factor_entropy": entropy,
        "error_bound": gap.error_bound,
        "mig_sampled": gap.subsampled_score,
        "mig_binned": binned[0],
        "subspace_mutual_information": joint.mutual_information[0].clamp(min=0),
        "info_modularity": measures.info_modularity,
        "completeness": measures.completeness,
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(result[name], value, rtol=1e-12)


def test_the_report_names_factors_and_latents(tmp_path, capsys):
    path = save_npz(tmp_path / "a.npz")
    status, text, _ = run(capsys, path)
    assert status == 0 and "500 rows, 3 latents" in text and "gap factor1" in text and "binned" not in text
    status, text, _ = run(capsys, path, "--factors", "factor1", "--subspaces", "2,1")
    assert status == 0 and "factor0" not in text and text.count("mutual information in nats") == 2
    score = mig.mutual_information_gap(
        MEAN, None, factor_values=FACTORS, generator=torch.Generator().manual_seed(0)
    ).score
    assert f"MIG {score:.4f}" in run(capsys, save_npz(path, log_var=None), "--deterministic")[1]


WITH_NAN = np.where(np.arange(1500).reshape(500, 3) == 7, np.nan, MEAN)
BAD = {
    "no variances": ({"log_var": None}, "has no log_var, only mean, factors; --deterministic"),
    "no factors": ({"factors": None}, "has no factors, only"),
    "NaN": ({"mean": WITH_NAN}, "mean of .* must be finite"),
    "float factor": ({"factors": FACTORS + 0.5}, "factor factor0 must be integers"),
    "one value": ({"factors": FACTORS * [1, 0]}, "factor factor1 has one value, 0"),
    "too few rows": ({name: x[:5] for name, x in CODES.items()}, "too few rows to score: 5"),
    "unequal rows": ({"mean": MEAN[:9]}, "must have one row an image"),
    "out of bounds": ({"log_var": np.full((500, 3), 600.0)}, "log_var must lie between"),
    "names": ({"names": np.array(["shape"])}, "and 1 names"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_end_in_one_sentence(case, tmp_path, capsys):
    changes, message = BAD[case]
    status, out, error = run(capsys, save_npz(tmp_path / "a.npz", **changes))
    assert status == 2 and not out and error.count("\n") == 1
    assert re.search(message, error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"header": "shape,a,b,c,log_var0,log_var1,log_var2,x"}, "has no mean"),
        ({"replace": (f"{MEAN[0, 1]:.17g}", "nan")}, "mean of"),
        ({"replace": (f"{MEAN[0, 1]:.17g}", "one")}, "could not convert string 'one'"),
        ({"replace": ("\n", ".5\n")}, "factor x must be integers"),
        ({"header": "x,z0"}, "2 headings for 8 columns"),
    ],
)
def test_bad_tables_end_in_one_sentence(options, message, tmp_path, capsys):
    status, out, error = run(capsys, save_csv(tmp_path / "a.csv", **options))
    assert status == 2 and not out and error.count("\n") == 1 and message in error


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--subspaces", "2,2"], "3 latents in all"), (["--factors", "y"], "has no factor y, only factor0, factor1")],
)
def test_bad_options_end_in_one_sentence(options, message, tmp_path, capsys):
    status, _, error = run(capsys, save_npz(tmp_path / "a.npz"), *options)
    assert status == 2 and message in error
    with pytest.raises(SystemExit):
        run(capsys, tmp_path / "a.npz", "--binned", "0")
