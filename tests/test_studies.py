"""Studies of ICA: recorded values, resuming after a cut, and bad specifications."""

import numpy as np
import pytest
from conftest import ROOT, golden

from edition import orientation, studies

GOLDEN = golden("toys")["study"]
SPEC = "\n".join(GOLDEN["spec"]) + "\n"


def test_study_repeats_recorded_values_and_resumes(tmp_path):
    spec, record, computed = tmp_path / "small.yaml", tmp_path / "small.csv", []
    spec.write_text(SPEC)
    header, *lines = GOLDEN["record"]
    # all but some fast fits and a slower one are recorded, and a row was interrupted
    prefixes = ("newton,0", "em,1", "exact-random,0", "lp-own:1.0:2.2:1+2,1,3.5,0.5,5")
    missing = [line for line in lines if line.startswith(prefixes)]
    recorded = [line for line in lines if line not in missing]
    record.write_text("\n".join([header, *recorded, "newton,0,3.5,0.5,1,14,1,-8"]))
    assert len(studies.load_record(record)["seed"]) == len(recorded)
    studies.run_study(spec, computed.append)
    rows, golden = ([line.split(",") for line in lines] for lines in (computed, missing))
    assert [row[:5] + row[9:10] for row in rows] == [row[:5] + row[9:10] for row in golden]
    for columns, tolerance in ((slice(7, 9), 2e-3), (slice(10, None), 5e-3)):
        values, expected = (np.array([row[columns] for row in table], float) for table in (rows, golden))
        np.testing.assert_allclose(values, expected, rtol=1e-7, atol=tolerance)
    table = studies.load_record(record)
    assert len(table["seed"]) == 20 and studies.record_weights(table).shape == (20, 2, 3)


def test_pruning_exponents():
    powers, betas = np.repeat([-0.5, -1.0, -0.7], 3), np.tile([1.0, 2.0, 4.0], 3)
    record = {"method": np.full(9, "em"), "seed": np.repeat([0, 1, 2], 3), "beta": betas}
    record["pruned_at"] = 9 * betas**powers
    record["pruned_at"][-1] = np.nan  # not in time
    np.testing.assert_allclose(studies.pruning_exponents(record), [-0.5, -1.0])
    record["method"][:3] = "newton"
    np.testing.assert_allclose(studies.pruning_exponents(record), [-1.0])


ORIENTATION = """groups:
  - {beta: 8, steps: 5, batch_size: 8, exponents: [1.0, 4.0], seeds: [1, 2]}
  - {beta: 1, steps: 7, batch_size: 8, exponents: [2.0], seeds: [1, 2]}
"""


@pytest.fixture
def trained(monkeypatch) -> list[tuple]:
    """Replace training by a code that depends on the exponent, and return the runs that are asked for."""
    asked = []

    def learn(run, dataset):
        asked.append((run.tree.p, run.beta, run.seed, run.total_steps, run.batch_size))
        return orientation.Learned(np.zeros((1, 1, 2)), orientation.Code(run.tree.p / 10, 45.0, 0.9, 2), noise=0.25)

    monkeypatch.setattr(orientation, "learn", learn)
    monkeypatch.setattr(orientation, "images", lambda sprite=None: None)
    return asked


def test_orientation_study_trains_every_combination_once(tmp_path, trained):
    spec, lines = tmp_path / "study.yaml", []
    spec.write_text(ORIENTATION)
    for _ in range(2):
        studies.run_study(spec, lines.append)
    first = [(p, 8.0, seed, 5, 8) for seed in (1, 2) for p in (1.0, 4.0)]
    assert trained == first + [(2.0, 1.0, seed, 7, 8) for seed in (1, 2)]
    table = studies.load_record(tmp_path / "study.csv")
    assert len(lines) == len(table["seed"]) == 6
    np.testing.assert_allclose(table["alignment"], table["exponent"] / 10)
    assert np.isnan(table["divergence"]).all() and (table["noise"] == 0.25).all()


@pytest.mark.parametrize(
    ("text", "old", "new", "message"),
    [
        (SPEC, "seeds: 2", "seed: 2", "seeds\n  Field required"),
        (SPEC, "lp:2.1:2.2:3", "lp:2.1:3", "methods.4"),
        (SPEC, "beta: [1.0, 5.0]", "beta: [0.0]", "beta.0"),
        (ORIENTATION, "seeds: [1, 2]", "seeds: []", "groups.0.seeds"),
    ],
)
def test_bad_specification_is_refused(tmp_path, capsys, trained, text, old, new, message):
    spec = tmp_path / "bad.yaml"
    spec.write_text(text.replace(old, new, 1))
    with pytest.raises(SystemExit, match="2"):
        studies.main([str(spec)])
    assert message in capsys.readouterr().err and not (tmp_path / "bad.csv").exists()


def test_record_with_other_columns_stays_as_it_is(tmp_path, trained):
    spec, record = tmp_path / "study.yaml", tmp_path / "study.csv"
    spec.write_text(ORIENTATION)
    record.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="has columns"):
        studies.run_study(spec)
    assert record.read_text() == "a,b\n1,2\n" and not trained


@pytest.mark.parametrize("name", ["orientation", "ica-beta", "ica-map", "ica-lpnested"])
def test_committed_record_matches_its_specification(name):
    path = ROOT / "runs" / f"{name}.yaml"
    study, table = studies.read_study(path), studies.load_record(path.with_suffix(".csv"))
    keys = list(zip(*(table[column].tolist() for column in study.keys), strict=True))
    assert list(table) == list(study.header)
    assert keys and len(set(keys)) == len(keys) and set(keys) <= set(study.cases())
