"""``isa data``: what it prints, draws and compares, and one clear line for each mistake."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from drawn_dsprites import drawn
from PIL import Image

from isa import cli
from isa.data import dsprites, faces3d


@pytest.fixture(autouse=True)
def draw_once(monkeypatch):
    packed = drawn().storage.numpy()
    monkeypatch.setattr(dsprites, "draw_packed", lambda progress=False: packed)


@pytest.fixture
def small_file(tmp_path):
    """Three images in the published format, one of them with two pixels changed."""
    classes = np.array([[0, 0, 5, 3, 4, 5], [0, 2, 1, 39, 31, 0], [0, 1, 2, 3, 4, 5]])
    index = np.ravel_multi_index(tuple(classes.T), (1, *drawn().factor_sizes))
    images = drawn().images(index)[:, 0].numpy().astype(np.uint8)
    images[1, 9, 11] ^= 1
    images[1, 60, 2] ^= 1
    path = tmp_path / "small.npz"
    np.savez_compressed(path, imgs=images, latents_classes=classes, metadata=np.array({"a": 1}, dtype=object))
    return path


def test_description(capsys):
    assert cli.main(["data", "dsprites"]) == 0
    out = capsys.readouterr().out
    for text in (
        "re-rendered",
        "737,280",
        "orientation",
        "40 values",
        "128,328,86",
        "Apache",
        "Matthey",
        dsprites.CHECKSUM,
    ):
        assert text in out


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_contact_sheet(tmp_path, capsys, suffix):
    path = tmp_path / f"sheet{suffix}"
    assert cli.main(["data", "dsprites", "--contact-sheet", str(path)]) == 0
    assert path.stat().st_size > 1000 and list(tmp_path.iterdir()) == [path]
    assert str(path) in capsys.readouterr().out
    if suffix == ".png":
        with Image.open(path) as image:
            assert min(image.size) > 300 and np.asarray(image.convert("L")).std() > 20


def test_compare_says_how_many_pixels_differ_and_where(small_file, capsys):
    assert cli.main(["data", "dsprites", "--compare", str(small_file)]) == 0
    out = capsys.readouterr().out
    assert hashlib.md5(small_file.read_bytes()).hexdigest() in out and "not the published" in out
    assert "2 pixels in 1 images" in out
    assert "shape 2, scale 1, orientation 39, x 31, y 0: (row, column) (9, 11) (60, 2)" in out


def test_verify_passes_and_fails(capsys, monkeypatch):
    assert cli.main(["data", "dsprites", "--verify"]) == 0
    assert capsys.readouterr().out.count("holds") == 3
    monkeypatch.setattr(dsprites, "CHECKSUM", "0" * 64)
    assert cli.main(["data", "dsprites", "--verify"]) == 1
    assert capsys.readouterr().out.count("FAILS") == 1


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["data", "dsprites", "--source", "absent.npz"], "absent.npz does not exist"),
        (["data", "dsprites", "--source", __file__], "test_data_cli.py is not the published file"),
        (["data", "cars3d", "--source", "absent"], "absent does not exist"),
        (["data", "cars3d"], "cars3d needs the folder of its 183 published files"),
        (["data", "dsprites", "--compare", "absent.npz"], "--compare must name a file, and absent.npz is none"),
        (["data", "cars3d", "--compare", "x.npz"], "--compare compares a file with dSprites"),
        (["data", "dsprites", "--source", "a", "--compare", "b"], "no --source"),
        (["data", "dsprites", "--contact-sheet", "x.gif"], "--contact-sheet must name a .png, .svg or .pdf file"),
        (["data", "dsprites", "--contact-sheet", "nowhere/x.png"], "which is no directory"),
    ],
)
def test_mistakes_end_in_one_line(arguments, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("isa: error: ") and captured.err.count("\n") == 1 and text in captured.err


@pytest.mark.parametrize(
    "arguments", [[], ["data"], ["data", "mnist"], ["dat", "dsprites"], ["data", "dsprites", "-x"]]
)
def test_usage_mistakes_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["data", "--help"]])
def test_help(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 0
    assert "data" in capsys.readouterr().out


def test_a_cache_that_cannot_be_used_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(faces3d, "FACTORS", tuple(replace(one, values=one.values[:1]) for one in faces3d.FACTORS))
    (tmp_path / "file").write_text("in the way")
    assert cli.main(["data", "faces3d", "--cache-dir", str(tmp_path / "file")]) == 0
    captured = capsys.readouterr()
    assert "STAND-IN" in captured.out
    assert captured.err.startswith("isa: warning: cannot write the cache") and captured.err.count("\n") == 1
