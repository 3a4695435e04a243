"""Studies of ICA: recorded values, resuming after a cut, and bad specifications."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edition import studies

GOLDEN = json.loads(Path(__file__).with_name("golden").joinpath("toys.json").read_text())["study"]
SPEC = "\n".join(GOLDEN["spec"]) + "\n"


def test_a_study_repeats_its_recorded_values_and_resumes_after_a_cut(tmp_path):
    spec, record = tmp_path / "small.yaml", tmp_path / "small.csv"
    spec.write_text(SPEC)
    assert studies.run_study(spec, seconds=0.0) == 20
    assert studies.run_study(spec) == 0
    whole = record.read_text()
    rows, golden = ([line.split(",") for line in lines] for lines in (whole.splitlines(), GOLDEN["record"]))
    assert rows[0] == golden[0] and [row[:5] + row[9:10] for row in rows] == [row[:5] + row[9:10] for row in golden]
    for columns, tolerance in ((slice(7, 9), 2e-3), (slice(10, None), 5e-3)):
        values, expected = (np.array([row[columns] for row in table[1:]], float) for table in (rows, golden))
        np.testing.assert_allclose(values, expected, rtol=1e-7, atol=tolerance)
    lines, computed = whole.splitlines(keepends=True), []
    record.write_text("".join(lines[:14]) + lines[14][:17])  # as if the machine had stopped within a row
    assert len(studies.load_record(record)["seed"]) == 13
    assert studies.run_study(spec, report=computed.append) == 0
    assert len(computed) == 7 and record.read_text() == whole
    assert studies.record_weights(studies.load_record(record)).shape == (20, 2, 3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("seeds: 2", "seed: 2", "seeds\n  Field required"),
        ("newton, em", "newton, sgd", "got 'sgd'"),
        ("lp:2.1:2.2:3", "lp:2.1:3", "got 'lp:2.1:3'"),
        ("beta: [1.0, 5.0]", "beta: [0.0]", "beta.0"),
    ],
)
def test_a_bad_specification_is_refused_before_any_fit(tmp_path, capsys, old, new, message):
    spec = tmp_path / "bad.yaml"
    spec.write_text(SPEC.replace(old, new, 1))
    assert studies.main([str(spec)]) == 2
    assert message in capsys.readouterr().err and not (tmp_path / "bad.csv").exists()
