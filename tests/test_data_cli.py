"""The command line: what ``isa data`` prints, options of ``isa train``, one clear line for each mistake."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from isa import cli, data, engine
from isa.data import dsprites, faces3d
from isa.run import Run


def test_description_and_verification(capsys, monkeypatch):
    true = dsprites.CHECKSUM
    monkeypatch.setattr(dsprites, "CHECKSUM", "0" * 64)
    assert cli.main(["data", "dsprites", "--verify"]) == 1
    out = capsys.readouterr().out
    for text in ("re-rendered", "737,280", "orientation", "40 values", "128,328,86", "Apache", "Matthey", true):
        assert text in out
    assert out.count("FAILS") == 1


MISTAKES = {
    "data dsprites --source absent.npz": "absent.npz does not exist",
    f"data dsprites --source {__file__}": "test_data_cli.py is not the published file",
    "data cars3d": "cars3d needs the folder of its 183 published files",
    "train --beta -1": "beta must be greater than or equal to 0, got -1",
    "train --objective isa-vae --prior 2.1[4": "'2.1[4' is not a tree",
    **dict.fromkeys(["", "data mnist", "data dsprites -x", "train --device tpu", "train --device cuda:99"], "error"),
}


@pytest.mark.parametrize("arguments", MISTAKES)
def test_mistakes_end_in_one_line(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if arguments.startswith("train"):
        monkeypatch.setattr(data, "load", lambda *arguments, **options: pytest.fail("loaded"))
    try:
        status = cli.main(arguments.split())
    except SystemExit as end:  # of the parser of options
        status = end.code
    out, err = capsys.readouterr()
    assert out == "" and (status == 2 or (status == 1 and arguments.startswith("data ")))  # 1 for missing files
    assert err.startswith("isa: error: ") and err.count("\n") == 1 and MISTAKES[arguments] in err


@pytest.mark.parametrize("command", ["", "data", "train", "sweep", "status"])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main([*command.split(), "--help"])
    assert caught.value.code == 0
    printed = capsys.readouterr().out
    assert command in printed and ("example" in printed or not command)
    if command == "train":  # every field, and its description in the docstring
        assert all(f"--{name.replace('_', '-')}" in printed for name in Run.model_fields)
        assert "Seed of the initial parameters" in printed and "default: 2048" in printed


def test_options_of_train_are_fields_of_a_run(monkeypatch):
    runs = []
    monkeypatch.setattr(engine, "train", lambda run, **options: runs.append(run) or sys.exit())
    options = "--objective isa-vae --subspaces 4 --p1 1.9 --scale unit --beta 1e-1 --batch-size 64"
    with pytest.raises(SystemExit):
        cli.main(["train", *options.split()])
    fields = {"subspaces": (4,), "p1": 1.9, "scale": "unit", "beta": 0.1, "batch_size": 64}
    assert runs == [Run(objective="isa-vae", **fields)]


def test_a_cache_that_cannot_be_used_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(faces3d, "FACTORS", tuple(replace(one, values=one.values[:1]) for one in faces3d.FACTORS))
    monkeypatch.setattr(faces3d, "draw_faces", lambda *_, **options: np.zeros((1, 1, 1, 1, 64, 64), np.uint8))
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["data", "faces3d", "--cache-dir", str(tmp_path / "file")]) == 0
    captured = capsys.readouterr()
    assert "stand-in" in captured.out
    assert captured.err.startswith("isa: warning: cannot write the cache") and captured.err.count("\n") == 1
