"""Studies of ICA: a run resumes where it was cut, and a bad specification is refused."""

from __future__ import annotations

import numpy as np
import pytest

from edition import studies
from isa.toys import ica

SPEC = """seeds: 2
n: 20
directions: [30.0, 90.0, 150.0]
noise_var: [0.5]
dof: [3.5]
beta: [1.0, 5.0]
methods: [newton, em, "lp:2.1:2.2:3"]
updates: 3
max_updates: 5
"""
W = ica.directions([30.0, 90.0, 150.0])


def test_a_study_resumes_where_it_was_cut(tmp_path):
    spec, record = tmp_path / "small.yaml", tmp_path / "small.csv"
    spec.write_text(SPEC)
    assert studies.run_study(spec, seconds=0.0) == 12
    assert studies.run_study(spec) == 0
    whole = record.read_text()
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 13
    record.write_text("".join(lines[:5]) + lines[5][:17])  # as if the machine had stopped within a row
    assert len(studies.load_record(record)["seed"]) == 4
    computed = []
    assert studies.run_study(spec, report=computed.append) == 0
    assert len(computed) == 8 and record.read_text() == whole
    columns = studies.load_record(record)
    assert studies.record_weights(columns).shape == (12, 2, 3)
    x, _ = ica.sample(20, W, 0.5, seed=1)
    row = np.flatnonzero((columns["method"] == "newton") & (columns["seed"] == 1) & (columns["beta"] == 5))[0]
    assert columns["objective"][row] == pytest.approx(ica.fit(x, W, 0.5, beta=5.0).free_energy[-1], abs=1e-3)


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
    assert message in capsys.readouterr().err
    assert not (tmp_path / "bad.csv").exists()
