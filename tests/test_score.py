"""The command ``isa mig``: files of both kinds, its numbers, and one sentence for every kind of bad input."""

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
HEADER = "shape,z1,z_0,z2,log_var0,log_var1,log_var2,x"


def save(path, header=HEADER, replace=("", ""), **changes):
    """Write the arrays with changes, or the same as a table with a text replaced."""
    if path.suffix == ".npz":
        np.savez(path, **{name: x for name, x in (CODES | changes).items() if x is not None})
    else:
        columns = np.c_[FACTORS[:, 0], MEAN[:, [1, 0, 2]], CODES["log_var"], FACTORS[:, 1]]
        rows = "\n".join(",".join(f"{x:.17g}" for x in row) for row in columns)
        path.write_text(f"\ufeff{header}\n{rows.replace(*replace, 1)}\n", encoding="utf-8")


def run(capsys, path, *options, **changes):
    save(path, **changes)
    return cli.main(["mig", str(path), *options]), *capsys.readouterr()


def test_both_kinds_of_file_give_the_numbers_of_the_library(tmp_path, capsys):
    options = ("--json", "--binned", "10", "--samples", "30", "--subspaces", "1,2")
    first = json.loads(run(capsys, tmp_path / "a.npz", *options, names=np.array(["shape", "x"]))[1])
    assert first == json.loads(run(capsys, tmp_path / "a.csv", *options)[1])
    generator, of_table = torch.Generator().manual_seed(0), {"factor_values": FACTORS}
    options = {"subsample": 30, "resamples": 100, "generator": generator}
    gap = mig.mutual_information_gap(MEAN, CODES["log_var"], **of_table, **options)
    entropy = [-sum(p * np.log(p)) for p in (np.bincount(values) / 500 for values in FACTORS.T)]
    joint = subspace_information(MEAN, CODES["log_var"], [[[0], [1, 2]]], None, 500, generator, **of_table)
    low, high = first["mig_interval"]
    assert (first["rows"], first["latents"], first["factors"]) == (500, 3, ["shape", "x"])
    assert low < first["mig"] < high and high - low == pytest.approx(4 * gap.standard_error, rel=0.5)
    names = ("gaps", "mutual_information", "entropy", "error_bound")
    wanted = {
        **{name: getattr(gap, name) for name in names},
        "mig": gap.score,
        "factor_entropy": entropy,
        "mig_sampled": gap.subsampled_score,
        "mig_binned": mig.mutual_information_gap_binned(MEAN, **of_table, bins=10)[0],
        "subspace_mutual_information": joint.mutual_information[0].clamp(min=0),
        "info_modularity": disentanglement(gap.mutual_information, entropy).info_modularity,
    }
    for name, value in wanted.items():
        np.testing.assert_allclose(first[name], value, rtol=1e-12)


def test_the_report_names_what_it_scores(tmp_path, capsys):
    status, text, _ = run(capsys, tmp_path / "a.npz")
    assert status == 0 and "500 rows, 3 latents" in text and "gap factor1" in text and "binned" not in text
    status, text, _ = run(capsys, tmp_path / "a.csv", "--factors", "x", "--subspaces", "2,1")
    assert status == 0 and "shape" not in text and text.count("mutual information in nats") == 2
    generator = torch.Generator().manual_seed(0)
    gap = mig.mutual_information_gap(MEAN, None, factor_values=FACTORS, generator=generator)
    assert f"MIG {gap.score:.4f}" in run(capsys, tmp_path / "a.npz", "--deterministic", log_var=None)[1]


FIRST, WITH_NAN = f"{MEAN[0, 1]:.17g}", np.where(np.arange(1500).reshape(500, 3) == 7, np.nan, MEAN)
BAD = [  # file, changes, options, message
    ("npz", {"log_var": None}, (), "has no log_var, only mean, factors; --deterministic"),
    ("npz", {"factors": None}, (), "has no factors, only"),
    ("npz", {"mean": WITH_NAN}, (), "mean of .* must be finite"),
    ("npz", {"factors": FACTORS + 0.5}, (), "factor factor0 must be integers"),
    ("npz", {"factors": FACTORS * [1, 0]}, (), "factor factor1 has one value, 0"),
    ("npz", {name: x[:5] for name, x in CODES.items()}, (), "too few rows to score: 5"),
    ("npz", {"mean": MEAN[:9]}, (), "must have one row per image"),
    ("npz", {"log_var": np.full((500, 3), 600.0)}, (), "log_var must lie between"),
    ("npz", {"names": np.array(["shape"])}, (), "and 1 names"),
    ("npz", dict.fromkeys(("mean", "log_var"), MEAN[:, :, None]), (), r"got mean \(500, 3, 1\)"),
    ("npz", dict.fromkeys(("mean", "log_var"), MEAN[:, :0]), (), r"got mean \(500, 0\)"),
    ("npz", {}, ("--subspaces", "2,2"), "3 latents in all"),
    ("npz", {}, ("--factors", "y"), "has no factor y, only factor0, factor1"),
    ("npz", {}, ("--binned", "-1"), "must be positive"),
    ("csv", {"header": HEADER.replace("z", "a")}, (), "has no mean"),
    ("csv", {"header": "x,z0"}, (), "2 headings for 8 columns"),
    ("csv", {"replace": (FIRST, "nan")}, (), "mean of"),
    ("csv", {"replace": (FIRST, "one")}, (), "could not convert string 'one'"),
    ("csv", {"replace": ("\n", ".5\n")}, (), "factor x must be integers"),
]


@pytest.mark.parametrize(("kind", "changes", "options", "message"), BAD, ids=lambda x: x if type(x) is str else "")
def test_bad_input_ends_in_one_sentence(kind, changes, options, message, tmp_path, capsys):
    try:
        status, out, error = run(capsys, tmp_path / f"a.{kind}", *options, **changes)
    except SystemExit as end:  # of the parser of options
        status, (out, error) = end.code, capsys.readouterr()
    assert status == 2 and not out and error.count("\n") == 1 and re.search(message, error)
