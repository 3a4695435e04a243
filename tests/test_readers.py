"""Damaged, foreign and malicious files: every reader reads a file whole or refuses it in one line that names it."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import pytest
import scipy.io
import tiny_sweep
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edition.explorers.decoders import CompressedDecoder, compress
from isa import data, latents, results
from isa.data import cars3d, faces3d
from isa.engine import train
from isa.run import Run
from isa.sweep import Spec, read_records

RECORDS = (Path(__file__).parents[1] / "runs" / "dsprites-reduced.csv").read_bytes().splitlines(keepends=True)
FACES = np.random.default_rng(0).integers(0, 256, (2, 1, 1, 1, 64, 64), np.uint8)
CAR = np.random.default_rng(1).integers(0, 256, (1, 1, 3, 24, 4), np.uint8).repeat(128, 0).repeat(128, 1)

pytestmark = pytest.mark.filterwarnings("ignore")  # numpy, scipy and torch warn of some of these files


@pytest.fixture(scope="module", autouse=True)
def folder() -> Iterator[Path]:
    """The working directory, in which a pickle that is executed makes a folder; data sets of a few images."""
    with TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        patch.chdir(name)
        patch.setenv("ISA_CACHE_DIR", f"{name}/cache")
        patch.setattr(faces3d, "SHAPE", FACES.shape)
        patch.setattr(faces3d, "FACTOR_SIZES", FACES.shape[:4])
        patch.setattr(cars3d, "CARS", (1,))
        yield Path(name)


@cache
def trained() -> results.Result:
    run = Run(dataset="cars3d", model="small", latent_dim=3, batch_size=16, steps=2, precision="fp32")
    return train(run, dataset=tiny_sweep.DATASET, device="cpu", compile=False, progress=False)


def write_decoder(path: Path) -> None:
    mean = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    compress(trained().model, mean, torch.full_like(mean, -3.0), most_bytes=60_000).save(path)


def write_saved(path: Path) -> None:
    (trained().save(path.parent / "saved") / path.name).replace(path)


class Reader(NamedTuple):
    """A kind of file: its name, a function that writes a valid one, and one that reads it."""

    file: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    text: bool = False


def read_faces(path: Path) -> torch.Tensor:
    return data.load("faces3d", path).storage


READERS = {
    "specification": Reader(
        "a.yaml", lambda path: path.write_text(tiny_sweep.SPEC), lambda path: Spec.read(path).runs(), text=True
    ),
    "records": Reader("a.csv", lambda path: path.write_bytes(b"".join(RECORDS[:3])), read_records, True),
    "dsprites": Reader("a.npz", lambda path: np.savez(path, imgs=FACES), lambda path: data.load("dsprites", path)),
    "cars3d": Reader(
        "car_001_mesh.mat",
        lambda path: scipy.io.savemat(path, {"im": CAR}, do_compression=True),
        lambda path: data.load("cars3d", path.parent),
    ),
    "faces3d, npy": Reader("a.npy", lambda path: np.save(path, FACES), read_faces),
    "faces3d, npz": Reader("a.npz", lambda path: np.savez(path, faces=FACES), read_faces),
    "faces3d, mat": Reader("a.mat", lambda path: scipy.io.savemat(path, {"faces": FACES}), read_faces),
    "faces3d, pth": Reader("a.pth", lambda path: torch.save(torch.from_numpy(FACES), path), read_faces),
    "model": Reader("model.safetensors", write_saved, results.load_model),
    "record": Reader("record.json", write_saved, results.read_record, True),
    "portrait": Reader(
        "a.npz", lambda path: latents.portrait(trained(), tiny_sweep.DATASET, steps=2).save(path), latents.Portrait.load
    ),
    "decoder": Reader("a.bin", write_decoder, CompressedDecoder.load),
}
every_reader = pytest.mark.parametrize("name", READERS)
#: without MATLAB's format, on whose damaged files scipy's compiled reader can crash the process
python_readers = pytest.mark.parametrize("name", [name for name in READERS if name not in ("cars3d", "faces3d, mat")])


@cache
def valid(name: str) -> bytes:
    """Return the content of a valid file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / READERS[name].file
        READERS[name].write(path)
        return path.read_bytes()


def outcome(name: str, content: bytes) -> object:
    """Read a file with this content; return what was read, or None if it was refused as it has to be."""
    path = Path("files", name, READERS[name].file).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        return READERS[name].read(path)
    except (ValueError, OSError) as error:
        message = str(error)
        assert str(path) in message or str(path.parent) in message, f"the file is not named: {message}"
        assert "\n" not in message, f"more than one line: {message}"
        return None


@every_reader
def test_valid_file_is_read(name):
    read = outcome(name, valid(name))
    if name.startswith("faces3d"):
        assert np.array_equal(read.reshape(FACES.shape), FACES)
    else:  # of dSprites only the published file is accepted, by its checksum
        assert read if name != "dsprites" else read is None


WORDS = "-1 0 nan 1e999 [] {} null true 2001-02-30 1:59:59 *a !!python/name:os.system".split()
WORDS += ["", "\0", "[[1], 2]", "&a [*a]", "9" * 400, "x" * 2000, "2[" * 200]


@st.composite
def damaged(draw: st.DrawFn, content: bytes, text: bool) -> bytes:
    """Draw the content of a file of which up to three stretches of bytes, or words, are replaced by others."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        start, new = draw(st.integers(0, len(changed))), draw(st.binary(max_size=16))
        stop = start + draw(st.sampled_from([0, 1, 4, 1024, len(changed)]))
        if text and draw(st.booleans()):
            words = [match.span() for match in re.finditer(rb"[\w.+-]+", changed)] or [(0, 0)]
            (start, stop), new = words[start % len(words)], draw(st.sampled_from(WORDS)).encode()
        changed[start:stop] = new
    return bytes(changed)


@python_readers
@settings(max_examples=30)
@given(choices=st.data())
def test_damaged_file_is_read_or_refused(name, choices):
    read = outcome(name, choices.draw(damaged(valid(name), READERS[name].text)))
    if name == "faces3d, npz" and read is not None:  # an archive has checksums
        assert np.array_equal(read.reshape(FACES.shape), FACES)


@every_reader
def test_foreign_file_is_refused(name):
    others = [valid(other) for other in READERS if READERS[other].file != READERS[name].file]
    for content in (*others, b"", bytes(5000), b"\x89PNG\r\n\x1a\n", b"Dear all,\n" * 9):
        assert outcome(name, content) in (None, [])  # an empty table is a table


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("cars3d", lambda file: scipy.io.savemat(file, {"im": CAR[:2]})),
        ("cars3d", lambda file: scipy.io.savemat(file, {"im": np.array([["y", "x"]], dtype=object)})),
        ("faces3d, npy", lambda file: np.save(file, FACES[:1])),
        ("faces3d, npy", lambda file: np.save(file, FACES.astype(np.float32))),
        ("faces3d, npz", lambda file: np.savez(file, a=FACES, b=FACES)),
        ("faces3d, mat", lambda file: scipy.io.savemat(file, {"a": FACES, "b": FACES})),
        ("faces3d, pth", lambda file: torch.save({"faces": torch.from_numpy(FACES)}, file)),
    ],
)
def test_other_arrays_are_refused(name, write):
    file = io.BytesIO()
    write(file)
    assert outcome(name, file.getvalue()) is None


@every_reader
def test_missing_file_and_folder_are_refused(name, tmp_path):
    (tmp_path / READERS[name].file).mkdir()
    for folder in (tmp_path, tmp_path / "none"):
        if name == "records" and folder != tmp_path:
            continue  # no table is an empty table
        with pytest.raises((ValueError, OSError)) as caught:
            READERS[name].read(folder / READERS[name].file)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


class Trap:
    """Make a folder in the working directory when unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


def traps(content: bytes) -> Iterator[bytes]:
    """Yield files that execute code in a careless reader; archives have the members of a valid file."""
    yield from (pickle.dumps(Trap(), protocol) for protocol in (0, 2, 5))
    yield b"title: !!python/object/apply:os.mkdir [executed]\n"
    array, packed = io.BytesIO(), io.BytesIO()
    np.save(array, np.array([Trap()]))
    yield array.getvalue()
    names = zipfile.ZipFile(io.BytesIO(content)).namelist() if content.startswith(b"PK") else ["a.npy"]
    with zipfile.ZipFile(packed, "w") as archive:
        for name in names:
            archive.writestr(name, array.getvalue() if name.endswith(".npy") else pickle.dumps(Trap(), 2))
    yield packed.getvalue()
    for new in (True, False):
        saved = io.BytesIO()
        torch.save({"a": Trap()}, saved, _use_new_zipfile_serialization=new)
        yield saved.getvalue()


@every_reader
def test_nothing_in_a_file_is_executed(name, folder):
    pickle.loads(next(traps(b"")))  # the trap works
    (folder / "executed").rmdir()
    for content in traps(valid(name)):
        assert outcome(name, content) in (None, [])
        assert not (folder / "executed").exists()
