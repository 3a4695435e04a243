"""The command line: what ``isa data`` prints, options of ``isa train``, one clear line for each mistake."""

import sys
from dataclasses import replace

import numpy as np
import pytest
from drawn_dsprites import drawn

from isa import cli, engine
from isa.data import dsprites, faces3d
from isa.run import Run


@pytest.fixture(autouse=True)
def draw_once(monkeypatch):
    packed = drawn().storage.numpy()
    monkeypatch.setattr(dsprites, "draw_packed", lambda: packed)


def test_description_and_verification(capsys, monkeypatch):
    true = dsprites.CHECKSUM
    monkeypatch.setattr(dsprites, "CHECKSUM", "0" * 64)
    assert cli.main(["data", "dsprites", "--verify"]) == 1
    out = capsys.readouterr().out
    for text in ("re-rendered", "737,280", "orientation", "40 values", "128,328,86", "Apache", "Matthey", true):
        assert text in out
    assert out.count("FAILS") == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["data", "dsprites", "--source", "absent.npz"], "absent.npz does not exist"),
        (["data", "dsprites", "--source", __file__], "test_data_cli.py is not the published file"),
        (["data", "cars3d"], "cars3d needs the folder of its 183 published files"),
    ],
)
def test_mistakes_end_in_one_line(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) in (1, 2)
    captured = capsys.readouterr()
    assert captured.err.startswith("isa: error: ") and captured.err.count("\n") == 1 and text in captured.err


@pytest.mark.parametrize(
    "arguments", ["", "data mnist", "data dsprites -x", "train --device tpu", "train --device cuda:99"]
)
def test_usage_mistakes_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments.split())
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("isa: error: ") and printed.count("\n") == 1


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
