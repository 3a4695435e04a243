"""Records, files of trained models, and the command ``isa train``."""

from __future__ import annotations

import errno
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from tiny_runs import KINDS, assert_same, stack, tiny, train
from tiny_sweep import DATASET

from isa import cli, data, results
from isa._files import CheckpointError, write_atomically
from isa.evaluate import evaluate
from isa.results import load_model, read_record
from isa.run import Run

pytestmark = pytest.mark.usefixtures("small_discriminator")

EVALUATED = {
    *("mig", "mig_size", "mig_x", "mig_y", "mig_standard_error", "mig_error_bound", "log_likelihood", "divergence"),
    *("log_likelihood_first_10000", "elbo", "active_units", "factors", "mutual_information", "entropy"),
    *("conditional_entropy", "unscored", "log_likelihood_by_value", "unscored_mutual_information", "mig_binned"),
    *("mig_10000_samples", "evaluation_seconds"),
}
COMPARED = {
    *("subspaces_compared", "subspace_factors", "subspace_mutual_information", "subspace_standard_error"),
    *("random_subspace_mean", "random_subspace_deviation", "subspace_draws", "random_groupings"),
}
TRAINED = {
    *("hash", "key", "status", "diverged_at", "total_steps", "reduced", "exponents", "train_seconds", "pack_size"),
    *("compiled", "device", "versions", "commit", "images", "images_title", "images_checksum", "procedural"),
    *Run.model_fields,
}


@pytest.mark.parametrize("kind", ["learned", "factor-vae"])
def test_saved_result_is_read_back(kind, tmp_path):
    run = tiny(**KINDS[kind])
    result = train(run, evaluation=True)
    folder = result.save(tmp_path / "a" / "b")
    assert sorted(path.name for path in folder.iterdir()) == ["curve.safetensors", "model.safetensors", "record.json"]
    again, model, prior = load_model(folder)
    assert again == run and not model.training
    assert getattr(prior, "tree", None) == getattr(result.prior, "tree", None)
    torch.testing.assert_close(dict(model.state_dict()), dict(result.model.state_dict()), rtol=0, atol=0)
    (measured,) = evaluate(stack([model], run, getattr(prior, "tree", None)), [again], DATASET)
    torch.testing.assert_close(measured.log_likelihood, result.evaluation.log_likelihood, rtol=1e-6, atol=0)
    assert measured.mig.score == pytest.approx(result.record["mig"], rel=1e-6)
    with safetensors.safe_open(folder / "curve.safetensors", "np") as curve:
        np.testing.assert_array_equal(curve.get_tensor("elbo"), result.curve["elbo"])
    with safetensors.safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert ("discriminator.net.0.weight" in names) == (kind == "factor-vae")


def test_record_has_every_column(tmp_path):
    run = tiny(**KINDS["learned"])
    result = train(run, evaluation=True)
    record = read_record(result.save(tmp_path) / "record.json")
    assert record == result.record
    assert set(record) == TRAINED | EVALUATED | COMPARED
    assert record["hash"] == run.hash and record["key"] == run.key and record["images_checksum"] == DATASET.checksum
    assert {name: record[name] for name in run.to_dict()} == run.to_dict()
    assert record["exponents"] == list(result.exponents) and record["pack_size"] == 1
    assert set(record["versions"]) == {"python", "torch", "numpy", "isa"}
    assert record["device"] == results.device_name(torch.device("cpu")) and "threads" in record["device"]
    assert record["train_seconds"] > 0 and record["reduced"] and record["status"] == "trained"
    unmeasured, diverged = train(run), train(run.replace(beta=1e30), evaluation=True)
    assert set(unmeasured.record) == set(diverged.record) == TRAINED
    assert set(train(tiny(), evaluation=True).record) == TRAINED | EVALUATED  # no subspaces
    assert_same(unmeasured, train(run))


def _other_metadata(**changes: object):
    def change(path: Path) -> None:
        with safetensors.safe_open(path, "pt") as file:
            metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}
        metadata |= {name: json.dumps(value) for name, value in changes.items()}
        safetensors.torch.save_file(tensors, path, metadata)

    return change


@pytest.mark.parametrize(
    "change",
    [
        Path.unlink,
        lambda path: path.write_bytes(path.read_bytes()[:50]),
        lambda path: path.write_bytes(path.with_name("curve.safetensors").read_bytes()),
        _other_metadata(channels=3),
        _other_metadata(channels="many"),
        _other_metadata(run={"dataset": "mnist"}),
        _other_metadata(run=None),
        _other_metadata(exponents=[2.1, "x"]),
        _other_metadata(exponents=[2.1, -1.0, 2.0]),
    ],
)
def test_file_that_is_not_a_model_is_refused(change, tmp_path):
    path = train(tiny(**KINDS["learned"])).save(tmp_path) / "model.safetensors"
    change(path)
    with pytest.raises(CheckpointError, match=r"cannot be read|is not a model of this package") as caught:
        load_model(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "\ufeff{}"])
def test_file_that_is_not_a_record_is_refused(text, tmp_path):
    path = tmp_path / "record.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"record\.json is not a record: "):
        read_record(path)


def test_failed_write_leaves_the_last_file(tmp_path):
    path = tmp_path / "folder" / "file"
    write_atomically(path, lambda name: Path(name).write_text("whole"))

    def fail(name):
        Path(name).write_text("to")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, fail)
    assert caught.value.filename == str(path) and path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_commit_is_marked_if_code_differs(tmp_path, monkeypatch):
    def git(*arguments):
        named = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
        command = ["git", *named, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    module, table = tmp_path / "isa" / "results.py", tmp_path / "runs" / "tiny.csv"
    monkeypatch.setattr(results, "__file__", str(module))
    for path in (module, table):
        path.parent.mkdir()
        path.write_text("a")
    assert results.commit() is None
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "a")
    commit = git("rev-parse", "HEAD")
    assert results.commit() == commit
    table.write_text("b")
    assert results.commit() == commit
    module.write_text("b")
    assert results.commit() == f"{commit}-dirty"


def _isa(*arguments: str) -> int:
    return cli.main(["train", "--dataset", "cars3d", "--device", "cpu", *arguments])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--beta", "-1"], "beta must be greater than or equal to 0, got -1"),
        (["--objective", "isa-vae", "--prior", "2.1[4"], "'2.1[4' is not a tree"),
        (["--source", "/no/such/folder"], "--source must exist, got /no/such/folder"),
        (["--device", "tpu"], "--device must be cpu, cuda or cuda:N, got 'tpu'"),
    ],
)
def test_command_checks_its_arguments_before_loading(arguments, sentence, monkeypatch, capsys):
    def load(*arguments, **options):
        raise AssertionError("loaded")

    monkeypatch.setattr(data, "load", load)
    assert _isa(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("isa: error: ") and sentence in err and err.count("\n") == 1


def test_command_trains_and_saves_once(monkeypatch, capsys, tmp_path):
    loads = []

    def load(name, source=None, **options):
        loads.append(name)
        return DATASET

    monkeypatch.setattr(data, "load", load)
    arguments = ["--objective", "isa-vae", "--subspaces", "2,1", "--p1", "1.9,2.3", "--model", "small"]
    arguments += ["--batch-size", "16", "--steps", "5", "--learn-exponents", "--output", str(tmp_path / "out")]
    assert _isa(*arguments) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("REDUCED SCALE: 5 steps of 16 images")
    record = json.loads((tmp_path / "out" / "record.json").read_text())
    assert f"MIG             {record['mig']:.4f} (" in out
    assert not list((tmp_path / "out").glob("*.checkpoint.*"))
    assert _isa(*arguments) == 0  # recorded: printed again, not trained again
    assert capsys.readouterr().out == out.partition("\n")[2]
    assert loads == ["cars3d"]
    assert _isa(*arguments, "--seed", "1") == 2
    assert "--output must be another folder" in capsys.readouterr().err


def test_command_reports_divergence(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(data, "load", lambda name, source=None, **options: DATASET)
    monkeypatch.chdir(tmp_path)
    arguments = ["--model", "small", "--latent-dim", "3", "--batch-size", "16", "--steps", "5", "--beta", "1e30"]
    assert _isa(*arguments) == 1
    assert "DIVERGED        at step 0; nothing is measured" in capsys.readouterr().out
    (folder,) = (tmp_path / "trained").iterdir()
    assert json.loads((folder / "record.json").read_text())["status"] == "diverged"
