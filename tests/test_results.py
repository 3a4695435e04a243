"""Records, files of trained models, and the command ``isa train``."""

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from tiny_runs import KINDS, tiny, train
from tiny_sweep import DATASET

from isa import cli, data, results
from isa._files import CheckpointError, save_tensors, write_atomically
from isa.evaluate import evaluate
from isa.results import Result, load_model, read_record
from isa.sweep import RECORD


@pytest.fixture(scope="module")
def learned() -> Result:
    return train(tiny(**KINDS["learned"]), evaluation=True)


def test_saved_result_is_read_back(learned, tmp_path):
    folder = learned.save(tmp_path / "a" / "b")
    assert sorted(path.name for path in folder.iterdir()) == ["curve.safetensors", "model.safetensors", "record.json"]
    run, model, prior = load_model(folder)
    assert run == learned.run and prior.tree == learned.prior.tree and not model.training
    torch.testing.assert_close(dict(model.state_dict()), dict(learned.model.state_dict()), rtol=0, atol=0)
    (measured,) = evaluate([(run, model, prior)], DATASET)
    torch.testing.assert_close(measured.log_likelihood, learned.evaluation.log_likelihood, rtol=1e-6, atol=0)
    assert measured.mig.score == pytest.approx(learned.record["mig"], rel=1e-6)
    with safetensors.safe_open(folder / "curve.safetensors", "np") as curve:
        np.testing.assert_array_equal(curve.get_tensor("elbo"), learned.curve["elbo"])
    assert read_record(folder / "record.json") == learned.record


def test_record_has_every_column(learned):
    run, record = learned.run, learned.record
    assert set(record) == set(RECORD) - {"gaps"} | {"mig_size", "mig_x", "mig_y"}
    expected = {**run.to_dict(), "hash": run.hash, "key": run.key, "exponents": list(learned.exponents), "pack_size": 1}
    expected |= {"images_checksum": DATASET.checksum, "reduced": True, "status": "trained", "diverged_at": None}
    assert expected.items() <= record.items() and record["train_seconds"] > 0
    assert set(record["versions"]) == {"python", "torch", "numpy", "isa"} and "threads" in record["device"]
    unmeasured, diverged = train(run).record, train(run.replace(beta=1e30), evaluation=True).record
    assert set(unmeasured) == set(diverged) > set(run.to_dict())
    assert not {"mig", "elbo", "entropy", "active_units", "subspace_draws", "evaluation_seconds"} & set(unmeasured)
    assert not any("subspace_" in name for name in train(tiny(), evaluation=True).record)


@pytest.mark.parametrize(
    "metadata",
    [
        {"run": {"dataset": "mnist"}, "exponents": None},
        {"run": tiny(**KINDS["tree"]).to_dict(), "exponents": [2.1, -1.0], "channels": 1},
        {"run": tiny().to_dict(), "exponents": None, "channels": 1},
    ],
)
def test_file_that_is_not_a_model_is_refused(metadata, tmp_path):
    path = tmp_path / "model.safetensors"
    save_tensors(path, {}, metadata)
    with pytest.raises(CheckpointError, match=r"cannot be read|is not a model of this package") as caught:
        load_model(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_failed_write_leaves_the_last_file(tmp_path, monkeypatch):
    def fail(file):
        raise OSError(28, "No space left on device")

    path = tmp_path / "folder" / "file"
    write_atomically(path, b"whole")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, b"to")
    assert caught.value.filename == str(path) and path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_commit_is_marked_if_code_differs(tmp_path, monkeypatch):
    def git(command):
        named = "git -c user.name=a -c user.email=a@example.org -c commit.gpgsign=false"
        command = [*named.split(), "-C", str(tmp_path), *command.split()]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    module, table = tmp_path / "isa" / "results.py", tmp_path / "runs" / "tiny.csv"
    monkeypatch.setattr(results, "__file__", str(module))
    for path in (module, table):
        path.parent.mkdir()
        path.write_text("a")
    assert results.commit() is None
    for command in ("init --quiet", "add .", "commit --quiet --message a"):
        git(command)
    commit = git("rev-parse HEAD")
    table.write_text("b")
    assert results.commit() == commit
    module.write_text("b")
    assert results.commit() == f"{commit}-dirty"


def _train(*arguments: str) -> int:
    return cli.main(["train", "--dataset", "cars3d", "--device", "cpu", *arguments])


def test_command_trains_and_saves_once(monkeypatch, capsys, tmp_path):
    loads = []
    monkeypatch.setattr(data, "load", lambda name, *arguments, **options: loads.append(name) or DATASET)
    monkeypatch.chdir(tmp_path)
    short = ["--model", "small", "--batch-size", "16", "--steps", "5"]
    arguments = ["--objective", "isa-vae", "--subspaces", "2,1", "--p1", "1.9,2.3", "--learn-exponents", *short]
    arguments += ["--output", "out"]
    assert _train(*arguments) == 0
    out, err = capsys.readouterr()
    assert err == "" and f"  MIG {read_record('out/record.json')['mig']:.3f}  log-likelihood" in out
    assert "REDUCED SCALE" in out and "saved in out" in out
    assert not list(Path("out").glob("*.checkpoint.*"))
    assert _train(*arguments) == 0  # recorded: printed again, not trained again
    assert capsys.readouterr().out == out and loads == ["cars3d"]
    assert _train(*arguments, "--seed", "1") == 2
    assert "--output must be another folder" in capsys.readouterr().err
    assert _train(*short, "--latent-dim", "3", "--beta", "1e30") == 1
    assert "  diverged at step 0  " in capsys.readouterr().out
    (folder,) = (tmp_path / "trained").iterdir()
    assert read_record(folder / "record.json")["status"] == "diverged"
