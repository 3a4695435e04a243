"""Damaged, foreign and malicious files: every reader reads a file whole or refuses it in one line that names it."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import scipy.io
import tiny_sweep
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edition.explorers.decoders import CompressedDecoder, compress
from isa import data, latents, results
from isa.cli import main
from isa.data import cars3d, faces3d
from isa.engine import train
from isa.run import Run
from isa.sweep import Spec, read_records

ROOT = Path(__file__).resolve().parent.parent
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


# --- readers ----------------------------------------------------------------------------------------------------------


@cache
def trained() -> results.Result:
    run = Run(dataset="cars3d", model="small", latent_dim=3, batch_size=16, steps=2, precision="fp32")
    return train(run, dataset=tiny_sweep.DATASET, device="cpu", compile=False, progress=False)


def write_dsprites(path: Path) -> None:
    classes = np.zeros((4, 6), np.int64)
    np.savez_compressed(path, imgs=np.ones((4, 64, 64), np.uint8), latents_classes=classes)


def write_decoder(path: Path) -> None:
    mean = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    compress(trained().model, mean, torch.full_like(mean, -3.0), most_bytes=60_000).save(path)


def write_records(path: Path) -> None:
    lines = (ROOT / "runs" / "dsprites-reduced.csv").read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]))


def write_saved(path: Path) -> None:
    (trained().save(path.parent / "saved") / path.name).replace(path)


@dataclass(frozen=True)
class Reader:
    """A kind of file: its name, a function that writes a valid one, and one that reads it."""

    file: str
    write: Callable[[Path], object]
    read: Callable[[Path], object]
    text: bool = False


def read_faces(path: Path) -> torch.Tensor:
    return data.load("faces3d", path).storage


READERS = {
    "specification": Reader(
        "a.yaml", lambda path: path.write_text(tiny_sweep.SPEC), lambda p: Spec.read(p).runs(), True
    ),
    "records": Reader("a.csv", write_records, read_records, True),
    "dsprites": Reader("a.npz", write_dsprites, lambda path: data.load("dsprites", path)),
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


@cache
def valid(name: str) -> bytes:
    """Return the content of a valid file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / READERS[name].file
        READERS[name].write(path)
        return path.read_bytes()


def outcome(name: str, content: bytes) -> object:
    """Read a file with this content; return what was read, or None if it was refused as it has to be."""
    place = Path("files") / name
    place.mkdir(parents=True, exist_ok=True)
    path = (place / READERS[name].file).absolute()
    path.write_bytes(content)
    try:
        return READERS[name].read(path)
    except (ValueError, OSError) as error:
        message = str(error)
        assert str(path) in message or str(path.parent) in message, f"the file is not named: {message}"
        assert "\n" not in message, f"more than one line: {message}"
        return None


# --- tests ------------------------------------------------------------------------------------------------------------


@every_reader
def test_valid_file_is_read(name):
    read = outcome(name, valid(name))
    if name == "dsprites":  # the published file alone is taken, by its checksum
        assert read is None
    elif name.startswith("faces3d"):
        assert np.array_equal(read.reshape(FACES.shape), FACES)
    else:
        assert read


WORDS = [
    "",
    "-1",
    "0",
    "nan",
    "1e999",
    "9" * 400,
    "[]",
    "{}",
    "null",
    "true",
    "x" * 2000,
    "\0",
    "2001-02-30",
    "[[1], 2]",
]
WORDS += [
    "!!int ''",
    "!!timestamp x",
    "!!python/name:os.system",
    "&a [*a]",
    "*a",
    '"\\ud800"',
    "2[" * 200,
    "1" + ":59" * 9,
]


@st.composite
def damaged(draw: st.DrawFn, content: bytes, text: bool) -> bytes:
    """Draw the content of a file of which some bytes are changed, added or missing, or words are others."""
    held = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(held)))
        match draw(st.sampled_from(["cut", "change", "insert", "remove", *["word"] * 3 * text])):
            case "cut":
                del held[place:]
            case "change":
                held[place : place + 1] = draw(st.binary(min_size=1, max_size=1))
            case "insert":
                held[place:place] = draw(st.binary(min_size=1, max_size=16))
            case "remove":
                del held[place : place + draw(st.sampled_from([1, 4, 64, 1024]))]
            case "word":
                words = [match.span() for match in re.finditer(rb"[\w.+-]+", held)] or [(0, 0)]
                start, stop = words[place % len(words)]
                held[start:stop] = draw(st.sampled_from(WORDS)).encode()
    return bytes(held)


@every_reader
@settings(deadline=None, max_examples=60)
@given(choices=st.data())
def test_damaged_file_is_read_or_refused(name, choices):
    read = outcome(name, choices.draw(damaged(valid(name), READERS[name].text)))
    if name == "faces3d, npz" and read is not None:  # an archive has checksums
        assert np.array_equal(read.reshape(FACES.shape), FACES)


@every_reader
def test_foreign_file_is_refused(name):
    others = {other: valid(other) for other in READERS if READERS[other].file != READERS[name].file}
    others |= {
        "empty": b"",
        "zeros": bytes(5000),
        "picture": b"\x89PNG\r\n\x1a\n" + bytes(50),
        "prose": b"Dear all,\n" * 9,
    }
    for other, content in others.items():
        assert outcome(name, content) in (None, []), other  # an empty table is a table


@every_reader
def test_missing_file_and_folder_are_refused(name, tmp_path):
    for path in (tmp_path / "none" / READERS[name].file, tmp_path / READERS[name].file):
        if name == "records" and not path.parent.exists():
            continue  # no table is an empty table
        (tmp_path / READERS[name].file).mkdir(exist_ok=True)
        with pytest.raises((ValueError, OSError)) as caught:
            READERS[name].read(path)
        assert "\n" not in str(caught.value) and str(path.parent) in str(caught.value)


class Trap:
    """Make a folder in the working directory when unpickled."""

    def __reduce__(self) -> tuple:
        return os.mkdir, ("executed",)


def traps(content: bytes) -> Iterator[bytes]:
    """Yield files that execute code in a careless reader; archives have the members of a valid file."""
    yield from (pickle.dumps(Trap(), protocol) for protocol in range(6))
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


def test_trap_leaves_a_trace(folder):
    pickle.loads(next(traps(b"")))
    (folder / "executed").rmdir()


@every_reader
def test_nothing_in_a_file_is_executed(name, folder):
    for content in traps(valid(name)):
        assert outcome(name, content) in (None, [])
        assert not (folder / "executed").exists()


@pytest.mark.parametrize("arguments", [["status", "{}.yaml"], ["data", "dsprites", "--source", "{}.npz"]])
def test_command_line_refuses_in_one_line(arguments, tmp_path, capsys):
    paths = [argument.replace("{}", str(tmp_path / "a")) for argument in arguments]
    Path(paths[-1]).write_bytes(bytes(range(256)))
    assert main(paths) in (1, 2)
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and paths[-1] in printed.err
