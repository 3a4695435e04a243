"""Hostile input for everything that reads files or arguments from anywhere.

::

    python tests/fuzz.py                                    # all targets, 100,000 inputs: what `make fuzz` runs
    python tests/fuzz.py spec records --inputs 5000 --seed 3
    python tests/fuzz.py spec --engine atheris              # guided by coverage

A **target** is a function of bytes that reads them as one kind of file, or makes arguments of them. Its docstring is
the rule: what may come of an input. An input is *accepted* if the function returns, *refused* if it raises what the
reader documents, and a *failure* otherwise: any other exception, ``MemoryError`` included under a limit of 8 GB on the
process's addresses; more than a time limit; the end of the process; or a pickle that was executed. Inputs that fail are
kept in a folder, by target and checksum, and ``--replay FILE`` reads one again.

The engine ``random`` makes inputs by :mod:`hostile` from good files, from a seed. The engine ``atheris`` has libFuzzer
choose among the same changes and its own, by the lines that inputs reach; it takes the package atheris, which is no
dependency of the tests: ``pip install --target FOLDER atheris``, then ``PYTHONPATH=FOLDER``.

Each target runs in a process of its own. ``runs/fuzz.csv`` holds the last full run, a row a target and engine: how many
inputs were accepted, refused and failures, the most memory of the process, and seconds of computing.
"""

from __future__ import annotations

import argparse
import csv
import faulthandler
import hashlib
import io
import json
import logging
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, NoReturn
from unittest.mock import patch


def _instrumented() -> Any:
    if "atheris" not in sys.argv:
        return nullcontext()
    import atheris

    return atheris.instrument_imports(include=["isa", "yaml"], enable_loader_override=False)


with _instrumented():
    import checkout
    import hostile
    import numpy as np
    import scipy.io
    import tiny_sweep
    import torch

    from isa import (
        LpNested,
        Node,
        cli,
        cluster,
        data,
        decoders,
        engine,
        isa_prior,
        latents,
        local,
        packs,
        results,
        sweep,
    )
    from isa._files import write_table
    from isa.data import cache as data_cache
    from isa.data import cars3d, dsprites, faces3d
    from isa.run import OBJECTIVES, Run

ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ("target", "engine", "inputs", "accepted", "refused", "failures", "peak_mb", "seconds", "commit", "python")
MOST_BYTES = 8 * 2**30
LIMIT_SECONDS = 30
SEED = 1


@dataclass(frozen=True)
class Target:
    """What is fed with inputs, and where these come from."""

    name: str
    read: Callable[[bytes], object]
    refusals: tuple[type[BaseException], ...]
    seeds: Callable[[], list[bytes]]
    mutate: hostile.Mutator
    share: int
    """How many of 100 inputs are its."""

    def input(self, rng: Random) -> bytes:
        """Make an input of one of the seeds."""
        seeds = _seeds(self.name)
        held = self.mutate(rng, rng.choice(seeds))
        return hostile.mutate_bytes(rng, held) if rng.random() < 0.02 else held


TARGETS: dict[str, Target] = {}


def target(
    *refusals: type[BaseException], seeds: Callable[[], list[bytes]], mutate: hostile.Mutator, share: int
) -> Callable[[Callable[[bytes], object]], Callable[[bytes], object]]:
    """Register a function of bytes as a target that may raise the refusals."""

    def register(read: Callable[[bytes], object]) -> Callable[[bytes], object]:
        TARGETS[read.__name__] = Target(read.__name__, read, refusals, seeds, mutate, share)
        return read

    return register


@cache
def _seeds(name: str) -> list[bytes]:
    return TARGETS[name].seeds()


@cache
def room() -> Path:
    """Folder of this process for the files that readers are given."""
    return Path(tempfile.mkdtemp(prefix="isa-fuzz-"))


def _file(name: str, held: bytes) -> Path:
    path = room() / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(held)
    return path


def one_line(error: BaseException) -> None:
    """Check that a refusal can be shown: some text, on one line, that can be encoded."""
    text = cli._one_line(error)
    assert text and "\n" not in text and text.encode("utf-8"), f"a refusal that cannot be shown: {text!r}"


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let a file be read, and hold a refusal to naming it on one line."""
    try:
        yield
    except ValueError as error:
        assert str(path) in str(error), f"the file is not named: {error}"
        one_line(error)
        raise


def _arguments(rng: Random, _: bytes) -> bytes:
    """Input of a target that makes arguments of its input's bytes."""
    return rng.randbytes(8)


def _no_seeds() -> list[bytes]:
    return [b""]


# ---------------------------------------------------------------------------------------------------------------------
# Specifications and records


def _spec_seeds() -> list[bytes]:
    paths = sorted((ROOT / "runs").glob("*.yaml"))
    read = [sweep.Spec.read(path) for path in paths if b"\ntiers:" in path.read_bytes()]
    few = [one.path.read_bytes() for one in read if len(one.runs()) < 60]  # others take long, and say no more
    return [tiny_sweep.SPEC.encode(), *few]


@target(ValueError, seeds=_spec_seeds, mutate=hostile.mutate_text, share=8)
def spec(held: bytes) -> None:
    """A specification is refused by a ``ValueError`` on one line that names the file, or every run of it is whole."""
    path = _file("any.yaml", held)
    with naming(path):
        found = sweep.Spec.read(path)
    found.title.encode("utf-8")
    for run in found.runs()[:3]:
        json.dumps([run.key, run.to_dict(), run.total_steps], allow_nan=False).encode("utf-8")
        assert run.hash == Run.from_dict(run.to_dict()).hash


def _table_seeds() -> list[bytes]:
    header, *rows = (ROOT / "runs/dsprites-reduced.csv").read_bytes().splitlines(keepends=True)
    path = _file("seed.csv", header + rows[0])
    (diverged,) = sweep.read_records(path)
    diverged |= dict.fromkeys(sweep._MEASURED) | {"status": "diverged", "diverged_at": 3}
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, sweep.COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerow(sweep._row(diverged))
    return [path.read_bytes(), header + rows[0] + rows[1], buffer.getvalue().encode()]


@target(ValueError, seeds=_table_seeds, mutate=hostile.mutate_table, share=12)
def records(held: bytes) -> None:
    """A table is refused by a ``ValueError`` on one line, or its records can be used, written, and read again."""
    path = _file("any.csv", held)
    with naming(path):
        found = sweep.read_records(path)
    packs.Speed(found, "cpu")
    for record in found:
        sweep.describe(record).encode("utf-8")
    rows = sweep.Records(found, [], "")
    for name in ("mig", "log_likelihood", "beta", "status"):
        rows.column(name)
    again = io.StringIO()
    writer = csv.DictWriter(again, sweep.COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(sweep._row, found))
    path.write_text(again.getvalue(), "utf-8", newline="")
    assert [one["hash"] for one in sweep.read_records(path)] == [one["hash"] for one in found]


# ---------------------------------------------------------------------------------------------------------------------
# Trees, priors, runs

TREES = ("2.1[5*2.2[4]]", "2[1, 1.5[2]]", "1e-3[3]", ".5[2*3[2, 1], 4]", "2[2[2[2[2[1]]]]]", "2.[1e0[1],1.E+1[2]]")
TREE_WORDS = (
    "*",
    "[",
    "]",
    ",",
    "1e400",
    "1e-400",
    "100000*",
    "999999999",
    "0",
    "-1",
    "2[",
    "]" * 70,
    "2[" * 70,
    "٣",
    "²",
)
TREE_WORDS += (
    "1e",
    ".",
    "0" * 5000,
    "9" * 5000,
    "1000*1000*1[1]",
    "1000*1[1000*1[1]]",
    "100*2[1000]",
    " " * 999,
    "\0",
    "nan",
)


def _mutate_tree(rng: Random, held: bytes) -> bytes:
    return hostile.mutate_text(rng, held, TREE_WORDS)


@target(ValueError, seeds=lambda: [one.encode() for one in TREES], mutate=_mutate_tree, share=12)
def tree(held: bytes) -> None:
    """The text of a tree is refused by a ``ValueError``, or gives a tree that is the same when its own text is read."""
    try:
        found = Node.parse(held.decode("utf-8", "replace"))
    except ValueError as error:
        one_line(error)
        raise
    assert Node.parse(str(found)) == found
    if found.n_leaves < 1000:
        assert not found.log_surface().isnan().any()


def _number(rng: Random) -> Any:
    if rng.random() < 0.5:
        return round(rng.uniform(0.3, 9), 2)
    return rng.choice(
        (torch.tensor(2.0), torch.tensor(float("nan")), torch.tensor([1.0, 2.0]), torch.tensor(3), 1j, b"2")
        if rng.random() < 0.2
        else hostile.VALUES
    )


def _nodes(rng: Random, depth: int = 0) -> Any:
    kind = rng.random()
    if kind < 0.3 or depth > 4:
        return rng.randrange(1, 5)
    if kind < 0.35:
        return hostile.value(rng)
    return Node(_number(rng), [_nodes(rng, depth + 1) for _ in range(rng.randrange(4))])


@target(ValueError, TypeError, seeds=_no_seeds, mutate=_arguments, share=10)
def prior(held: bytes) -> None:
    """Nodes and priors of any arguments raise ``ValueError`` or ``TypeError``, or are distributions of some sample."""
    rng = Random(held)
    if rng.random() < 0.5:
        made = Node(_number(rng), _nodes(rng))
        found = LpNested(made, "unit" if rng.random() < 0.1 else _number(rng))
    else:
        sizes = [
            rng.choice((1, 2, 4, *hostile.VALUES) if rng.random() < 0.1 else (1, 2, 4)) for _ in range(rng.randrange(5))
        ]
        p1 = [_number(rng) for _ in sizes] if rng.random() < 0.5 else _number(rng)
        options = {name: _number(rng) for name in ("p0", "scale") if rng.random() < 0.5}
        found = isa_prior(hostile.value(rng) if rng.random() < 0.1 else sizes, p1=p1, **options)
    if found.event_shape[0] < 1000:
        assert found.log_prob(torch.ones(found.event_shape)).shape == found.batch_shape


RUN_VALUES: dict[str, tuple[Any, ...]] = {
    "dataset": data.NAMES,
    "source": ("/x", None),
    "objective": tuple(OBJECTIVES),
    "prior": ("normal", "isa", *TREES, "2[1000000*2[1]]", "2[1000000]"),
    "subspaces": ((4, 4), (1,), [2, 3], (10**6,), (1,) * 3000),
    "p1": (2.2, (2.2, 1.9), [2.0]),
    "scale": ("unit", 1.0),
    "learn_exponents": (True, False),
    "model": ("mlp", "conv"),
    "likelihood": ("bernoulli", "gaussian"),
    "kl": ("monte_carlo", "closed_form"),
    "sampling": ("weighted", "stratified"),
    "precision": ("bf16", "fp32"),
}


def _run_arguments(rng: Random) -> dict[str, Any]:
    names = rng.sample(list(Run.model_fields), rng.randrange(6))
    return {
        name: hostile.value(rng)
        if (name not in RUN_VALUES and rng.random() < 0.7) or rng.random() < 0.15
        else rng.choice(RUN_VALUES.get(name, (1, 2.5, 100)))
        for name in names
    }


@target(ValueError, seeds=_no_seeds, mutate=_arguments, share=12)
def run(held: bytes) -> None:
    """Any fields of a run raise a ``ValueError``; or they make a run that JSON can hold and that is the same when it is
    made again."""
    rng = Random(held)
    arguments = _run_arguments(rng)
    if rng.random() < 0.05:
        arguments[rng.choice(hostile.TEXTS)] = 1
    try:
        found = Run.from_dict(arguments) if rng.random() < 0.5 else Run(**arguments)
        assert found.total_steps >= 1 and found.latent_dim >= 1
        text = json.dumps([found.to_dict(), found.key, found.course], allow_nan=False)
        text.encode("utf-8")
        again = Run.from_dict(json.loads(text)[0])
        assert again.hash == found.hash and again.pack_key == found.pack_key
    except BaseException as error:
        error.add_note(f"of {str(arguments)[:500]}")
        raise


# ---------------------------------------------------------------------------------------------------------------------
# Data sets

_SIZES = (2, 1, 2, 2, 1)
_EMPTY = np.broadcast_to(np.zeros(512, np.uint8), (737_280, 512))  # images as many as dSprites has


def _npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return hostile.pack(list(hostile.members(buffer.getvalue()).items()))


def _dsprites_seeds() -> list[bytes]:
    classes = np.stack(np.unravel_index(np.arange(8), (1, *_SIZES)), axis=1)
    images = np.random.default_rng(0).integers(0, 2, (8, 64, 64), np.uint8)
    objects = np.array({"a": hostile.Payload()}, dtype=object)
    return [
        _npz(imgs=images, latents_classes=classes, metadata=objects),
        _npz(imgs=images[:0], latents_classes=classes[:0]),
    ]


@target(data.SourceError, seeds=_dsprites_seeds, mutate=hostile.zip_of_npy, share=8)
def dsprites_npz(held: bytes) -> None:
    """A file of dSprites is refused by a ``SourceError``, or its images are read; its pickle is never touched."""
    path = _file("any.npz", held)
    try:
        found = dsprites.compare(path, _EMPTY)
        assert found.images >= 0
        packed = dsprites.read_packed(path, md5=hashlib.md5(held).hexdigest(), factor_sizes=_SIZES)
    except data.SourceError as error:
        one_line(error)
        raise
    assert packed.shape == (8, 512)


_CAR = (4, 4, 3, 2, 2)


def _mat(**arrays: Any) -> list[bytes]:
    found = []
    for compressed in (True, False):
        buffer = io.BytesIO()
        scipy.io.savemat(buffer, arrays, do_compression=compressed)
        found.append(b"MATLAB 5.0 MAT-file".ljust(116) + buffer.getvalue()[116:])  # without its date
    return found


def _car_seeds() -> list[bytes]:
    images = np.random.default_rng(0).integers(0, 256, _CAR, np.uint8)
    others = {"s": {"a": 1, "b": [1, 2]}, "c": np.array([["x", "y"]], object), "t": "text", "f": np.eye(3), "z": 1j}
    return [*_mat(im=images), *_mat(im=images, **others), *_mat(im=others)]


@target(data.SourceError, seeds=_car_seeds, mutate=hostile.mutate_mat, share=10)
def cars3d_mat(held: bytes) -> None:
    """A file of cars3d is refused by a ``SourceError``, or its renderings are read."""
    path = _file("any.mat", held)
    with patch.object(cars3d, "_RAW_SHAPE", _CAR):
        try:
            found = cars3d.read_car(path)
        except data.SourceError as error:
            one_line(error)
            raise
    assert found.shape == (2, 2, 4, 4, 3) and found.dtype == np.uint8


_FACES = (2, 3, 2, 2, 4, 5)
_KINDS = {b"npy:": ".npy", b"npz:": ".npz", b"mat:": ".mat", b"pth:": ".pth"}


def _face_seeds() -> list[bytes]:
    images = np.random.default_rng(0).integers(0, 256, _FACES, np.uint8)
    found = []
    for array in (images, np.asfortranarray(images), np.array([hostile.Payload()], object)):
        buffer = io.BytesIO()
        np.save(buffer, array)
        found.append(b"npy:" + buffer.getvalue())
        found.append(b"npz:" + _npz(faces=array))
    found += [b"mat:" + one for one in _mat(faces=images)]
    for new in (True, False):
        for one in (torch.from_numpy(images), {"faces": torch.from_numpy(images)}, torch.nn.Parameter(torch.ones(3))):
            buffer = io.BytesIO()
            torch.save(one, buffer, _use_new_zipfile_serialization=new)
            found.append(b"pth:" + buffer.getvalue())
    return found


def _mutate_pth(rng: Random, held: bytes) -> bytes:
    def inner(rng: Random, name: str, one: bytes) -> bytes:
        return hostile.mutate_pickle(rng, one) if name.endswith(".pkl") else hostile.mutate_bytes(rng, one)

    return hostile.mutate_zip(rng, held, inner) if held.startswith(b"PK") else hostile.mutate_pickle(rng, held)


def _mutate_face(rng: Random, held: bytes) -> bytes:
    kind, rest = held[:4], held[4:]
    mutators = {
        b"npy:": hostile.mutate_npy,
        b"npz:": hostile.zip_of_npy,
        b"mat:": hostile.mutate_mat,
        b"pth:": _mutate_pth,
    }
    return (kind if rng.random() < 0.98 else rng.choice(list(_KINDS))) + mutators[kind](rng, rest)


@target(data.SourceError, seeds=_face_seeds, mutate=_mutate_face, share=12)
def faces3d_file(held: bytes) -> None:
    """A file of 3D faces, of any of four kinds, is refused by a ``SourceError``, or its pictures are read."""
    path = _file(f"any{_KINDS.get(held[:4], '.npy')}", held[4:])
    try:
        found = faces3d.read_faces(path, _FACES)
    except data.SourceError as error:
        one_line(error)
        raise
    assert found.shape == _FACES and found.dtype == np.uint8


_SHEETS = (2, 2, 3, 4, 4, 3)


def _cache_seeds() -> list[bytes]:
    found = []
    for codec, shape in (("raw", (3, 4)), ("webp", _SHEETS)):
        array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        path = room() / f"fuzz-{codec}.zip"
        data_cache._write(path, "key", array, codec)
        found.append(path.read_bytes())
    return found


def _mutate_cached(rng: Random, held: bytes) -> bytes:
    def inner(rng: Random, name: str, one: bytes) -> bytes:
        if name.endswith(".json"):
            return hostile.dump_json(rng, hostile.mutate_json(rng, json.loads(one)))
        return hostile.mutate_npy(rng, one) if name.endswith(".npy") else hostile.mutate_bytes(rng, one)

    return hostile.mutate_zip(rng, held, inner)


@target(seeds=_cache_seeds, mutate=_mutate_cached, share=3)
def cached(held: bytes) -> None:
    """A file in the cache's place is read, or left aside with one warning; it never raises."""
    for codec, shape in (("raw", (3, 4)), ("webp", _SHEETS)):
        path = _file(f"cache/fuzz-{codec}-key.zip", held)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = data_cache._read(path, "key", shape, codec)
        assert (found is None) == bool(said) and (found is None or found.shape == shape), said


# ---------------------------------------------------------------------------------------------------------------------
# What trained models leave


@cache
def _trained() -> results.Result:
    run = Run(dataset="cars3d", model="small", latent_dim=3, batch_size=16, steps=2, precision="fp32")
    return engine.train(run, dataset=tiny_sweep.DATASET, device="cpu", compile=False, progress=False)


def _portrait_seeds() -> list[bytes]:
    view = latents.View("size", ("x", "y"))
    found = []
    for number, one in enumerate((view, latents.View())):
        path = room() / f"portrait-{number}.npz"
        latents.portrait(_trained(), tiny_sweep.DATASET, view=one, steps=2).save(path)
        found.append(hostile.pack(list(hostile.members(path.read_bytes()).items())))
    return found


def _mutate_portrait(rng: Random, held: bytes) -> bytes:
    def inner(rng: Random, name: str, one: bytes) -> bytes:
        if name != "header.npy":
            return hostile.mutate_npy(rng, one)
        header = np.load(io.BytesIO(one), allow_pickle=False).tobytes()
        text = hostile.dump_json(rng, hostile.mutate_json(rng, json.loads(header)))
        return hostile.npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({len(text)},), }}", text)

    def often(rng: Random, name: str, one: bytes) -> bytes:
        return inner(rng, name, one)

    if rng.random() < 0.5:  # the header, which is one member of many
        found = hostile.members(held)
        found["header.npy"] = inner(rng, "header.npy", found["header.npy"])
        return hostile.pack(list(found.items()))
    return hostile.mutate_zip(rng, held, often)


@target(ValueError, seeds=_portrait_seeds, mutate=_mutate_portrait, share=4)
def portrait(held: bytes) -> None:
    """A portrait is refused by a ``ValueError`` that names the file, or is the same when it is saved and read again."""
    path = _file("any-portrait.npz", held)
    with naming(path):
        found = latents.Portrait.load(path)
    again = latents.Portrait.load(found.save(path))
    assert found._header() == again._header() and found.informative == again.informative
    assert len(found.bases) == found.originals.shape[0]


def _decoder_seeds() -> list[bytes]:
    paths = sorted((ROOT / "runs/decoders").glob("*.bin"))
    held = paths[0].read_bytes()
    length = int.from_bytes(held[8:12], "little")
    header = json.loads(held[12 : 12 + length])
    header["about"]["starts"] = [{"name": "", "z": [0.5, 1], "image": "AAAAAA=="}]
    header["about"]["sliders"] = [{"latent": 1, "factor": "x", "nats": 1.5, "low": -1, "high": 2.0}]
    header |= {"image": [1, 2, 2], "layers": [{"bits": 8, "sizes": [2, 1, 3]}, {"bits": 32, "sizes": [3, 4]}]}
    weights = bytes(decoders._layer_bytes(8, [2, 1, 3]) + decoders._layer_bytes(32, [3, 4]))
    found = []
    for about in (header["about"], {}):
        text = json.dumps({**header, "about": about}).encode()
        text += b" " * (-len(text) % 4)
        found.append(held[:8] + len(text).to_bytes(4, "little") + text + weights)
    return found


def _mutate_decoder(rng: Random, held: bytes) -> bytes:
    return hostile.mutate_with_header(rng, held, 8, 4)


@target(ValueError, seeds=_decoder_seeds, mutate=_mutate_decoder, share=4)
def decoder(held: bytes) -> None:
    """A decoder's file is refused by a ``ValueError`` that names it, or decodes, and is the same when it is saved."""
    path = _file("any.bin", held)
    with naming(path):
        found = decoders.CompressedDecoder.load(path)
    assert found.decode(torch.zeros(1, found.latents)).shape == (1, *found.image)
    if found.about:
        found.traversals("", 2)
    path.write_bytes(found.to_bytes())
    assert decoders.CompressedDecoder.load(path).about == found.about


# ---------------------------------------------------------------------------------------------------------------------
# The command line


class _Trained(Exception):
    """Instead of a training: arguments were taken."""


def _no_training(*arguments: object, **options: object) -> NoReturn:
    raise _Trained


def _command(rng: Random) -> list[str]:
    """Make arguments of a subcommand, and the files that they name."""

    def word(*good: str) -> str:
        if good and rng.random() < 0.7:
            return rng.choice(good)
        return str(rng.choice((*hostile.TEXTS, *hostile.INTEGERS[:20], *hostile.FLOATS)))

    def made(name: str) -> bytes:
        return TARGETS[name].input(rng) if rng.random() < 0.6 else rng.choice(_seeds(name))

    def options(names: dict[str, tuple[str, ...]]) -> list[str]:
        found = []
        for name in rng.sample(sorted(names), rng.randrange(min(5, len(names) + 1))):
            found += [f"{name}={word(*names[name])}" if names[name] else name]
        return found

    folder = room() / "command"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    command = rng.choice(("data", "train", "train", "sweep", "status", "status", "decoders", "other"))
    if command == "data":
        source = _file("command/source.npz", made("dsprites_npz"))
        for number in (1, 2):
            _file(f"command/cars/car_{number:03d}_mesh.mat", made("cars3d_mat"))
        faces = made("faces3d_file")
        face = _file(f"command/faces{_KINDS.get(faces[:4], '.npy')}", faces[4:])
        places = (str(source), str(folder / "cars"), str(face), str(folder), str(folder / "none"))
        names = {"--source": places, "--contact-sheet": (str(folder / "none/x.png"), "x.txt"), "--compare": places}
        return ["data", word(*data.NAMES), *options({**names, "--cache-dir": (str(folder),), "--help": ()})]
    if command == "train":
        names = {
            f"--{one.replace('_', '-')}": tuple(map(str, RUN_VALUES.get(one, ("1", "2.5", "7"))))
            for one in Run.model_fields
        }
        names |= {"--learn-exponents": (), "--device": ("cpu", "cuda", "cuda:7"), "--output": (str(folder),)}
        names |= {
            "--checkpoint-every": ("5",),
            "--mig-samples": ("9",),
            "--subspaces": ("4,4", "2"),
            "--p1": ("2,2", "1.5"),
        }
        if rng.random() < 0.4:  # a record of an earlier training
            held = json.loads(json.dumps(next(iter(sweep.read_records(ROOT / "runs/dsprites-reduced.csv")))))
            held["hash"] = Run().hash
            _file("command/record.json", hostile.dump_json(rng, hostile.mutate_json(rng, held)))
            return ["train", f"--output={folder}"]
        return ["train", *options(names)]
    if command in ("sweep", "status"):
        path = _file("command/any.yaml", made("spec"))
        if rng.random() < 0.5:
            _file("command/any.csv", made("records"))
            if rng.random() < 0.7:
                path.write_bytes((ROOT / "runs/dsprites-reduced.yaml").read_bytes())
        names = {"--tier": ("1",), "--budget": ("0", "1"), "--pack": ("2",), "--keep-models": (), "--device": ("cpu",)}
        names = {"--device": names["--device"]} if command == "status" else names
        return [command, word(str(path), str(folder / "none.yaml"), str(folder)), *options(names)]
    if command == "decoders":
        path = _file("command/kept/model.safetensors", made("model"))
        _file("command/kept/record.json", hostile.dump_json(rng, hostile.mutate_json(rng, _trained().record)))
        return ["decoders", word(str(path.parent), str(path), str(folder)), f"--output={folder}"]
    return [word("data", "--help", "status"), *(word() for _ in range(rng.randrange(4)))]


_load_data, _compare_data = data.load, dsprites.compare


def _compare(path: str, packed: np.ndarray, **options: Any) -> dsprites.Comparison:
    return _compare_data(path, _EMPTY, **options)


def _load(name: str, source: Any = None, **options: Any) -> data.FactorDataset:
    """Load published data as always; in the place of images to draw stand some that are drawn."""
    return tiny_sweep.DATASET if source is None and name in data.NAMES else _load_data(name, source, **options)


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Leave out what takes long: images that are drawn, trainings, clusters."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(data, "load", _load))
        stack.enter_context(patch.object(dsprites, "compare", _compare))
        stack.enter_context(patch.object(engine, "train", _no_training))
        stack.enter_context(patch.object(local.Local, "train", _no_training))
        stack.enter_context(patch.object(cluster, "train", _no_training))
        yield


@target(SystemExit, seeds=_no_seeds, mutate=_arguments, share=2)
def command(held: bytes) -> None:
    """Any arguments, with any files behind them, end in status 0, or in 1 or 2 with one line on stderr, or in what
    argparse says there. Trainings are not started."""
    arguments = _command(Random(held))
    main = decoders.main if arguments[0] == "decoders" else cli.main
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", how) for how in ("strict", "backslashreplace"))
    try:
        with redirect_stdout(out), redirect_stderr(err), _stand_ins():
            try:
                status = main(arguments[main is decoders.main :])
            except _Trained:
                return
            except SystemExit as end:
                assert end.code in (0, 2)
                raise
        out.flush(), err.flush()
        said = [line for line in err.buffer.getvalue().decode().splitlines() if ": warning: " not in line]
        printed = out.buffer.getvalue()
        assert status in (0, 1, 2) and len(said) <= 1 and (said or printed), said
        assert all(line.isprintable() for line in said), f"what steers a terminal: {said!r}"
        assert status == 0 or said or b"DIVERGED" in printed, f"status {status} without a word"
        if status:
            raise SystemExit(status)
    except BaseException as error:
        error.add_note(f"isa {str(arguments)[:700]}")
        raise


# ---------------------------------------------------------------------------------------------------------------------
# Engines


class Hang(BaseException):
    """An input took too long."""


class Executed(BaseException):
    """A pickle was executed."""


@contextmanager
def working_directory() -> Iterator[None]:
    """Be in the folder where a pickle would leave its mark."""
    before = Path.cwd()
    os.chdir(room())
    try:
        yield
    finally:
        os.chdir(before)


def feed(one: Target, held: bytes) -> str | BaseException:
    """Give a target an input; returns ``"accepted"``, ``"refused"``, or what went wrong."""
    mark = room() / hostile.EXECUTED
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one.read(held)
        outcome: str | BaseException = "accepted"
    except one.refusals:
        outcome = "refused"
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        outcome = error
    if mark.exists():
        mark.unlink()
        return Executed(f"a pickle was executed by {one.name}")
    return outcome


class Count:
    """Outcomes of the inputs of one target."""

    def __init__(self, one: Target, engine: str, failures: Path) -> None:
        self.target, self.engine, self.failures = one, engine, failures
        self.outcomes: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.began = time.process_time()

    def __call__(self, held: bytes) -> None:
        self.current.write_bytes(held)
        outcome = feed(self.target, held)
        if isinstance(outcome, str):
            self.outcomes[outcome] += 1
            return
        self.outcomes["failures"] += 1
        path = self.failures / f"{self.target.name}-{hashlib.sha256(held).hexdigest()[:8]}.bin"
        frames = [
            one
            for one in traceback.extract_tb(outcome.__traceback__)
            if "/isa/" in one.filename or "/tests/" in one.filename
        ]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
        kind = f"{type(outcome).__name__} at {where}"
        self.seen[kind] += 1
        if self.seen[kind] <= 3:
            path.write_bytes(held)
            note = " ".join(getattr(outcome, "__notes__", []))
            print(f"{self.target.name}: {kind}: {str(outcome)[:300]!r} {note[:700]}\n  kept as {path}", file=sys.stderr)

    @property
    def current(self) -> Path:
        """Where the input is while it is read: it stays if the process ends."""
        return self.failures / f"{self.target.name}.current"

    def row(self) -> dict[str, object]:
        """The target's row of the table."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return {
            "target": self.target.name,
            "engine": self.engine,
            "inputs": self.outcomes.total(),
            **{name: self.outcomes[name] for name in ("accepted", "refused", "failures")},
            "peak_mb": round(peak),
            "seconds": round(time.process_time() - self.began, 1),
            "commit": commit(),
            "python": platform.python_version(),
        }


@cache
def commit() -> str:
    """The commit of the package's files, with a plus where these were changed since."""
    command = ["git", "status", "--porcelain", "--", "isa", "tests/fuzz.py", "tests/hostile.py", "tests/tiny_sweep.py"]
    changed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return checkout.last_commit() + "+" * bool(changed.stdout)


class _Limit:
    """Interrupts an input that computes for longer than the limit, or that takes ten times as long in all.

    On a machine that is busy with other things, the time that passes says little.
    """

    def __enter__(self) -> None:
        self.began = time.monotonic(), time.process_time()
        faulthandler.dump_traceback_later(20 * LIMIT_SECONDS, exit=True)  # where no Python runs to be interrupted
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, LIMIT_SECONDS)

    def __exit__(self, *error: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()

    def _look(self, number: int, frame: object) -> None:
        waited, computed = time.monotonic() - self.began[0], time.process_time() - self.began[1]
        if computed >= LIMIT_SECONDS or waited >= 10 * LIMIT_SECONDS:
            raise Hang(f"{computed:.0f} seconds of computing, {waited:.0f} in all")
        signal.setitimer(signal.ITIMER_REAL, max(LIMIT_SECONDS - computed, LIMIT_SECONDS / 10))


def run_random(one: Target, inputs: int, seed: int, failures: Path) -> dict[str, object]:
    """Feed a target with inputs made from a seed."""
    rng = Random(f"{seed} {one.name}")
    _seeds(one.name)
    count = Count(one, "random", failures)
    for _ in range(inputs):
        held = one.input(rng)
        with _Limit():
            count(held)
    count.current.unlink(missing_ok=True)
    return count.row()


def run_atheris(one: Target, inputs: int, seed: int, failures: Path, result: Path) -> NoReturn:
    """Feed a target with inputs that libFuzzer chooses; the process ends with it."""
    import atheris

    corpus = failures / f"{one.name}.corpus"
    corpus.mkdir(exist_ok=True)
    for number, held in enumerate(_seeds(one.name)):
        (corpus / f"seed-{number}").write_bytes(held)
    count = Count(one, "atheris", failures)

    def read(held: bytes) -> None:
        if count.outcomes.total() < inputs:
            count(held)
        if count.outcomes.total() in (inputs // 2, inputs):
            result.write_text(json.dumps(count.row()))
            count.current.unlink(missing_ok=True)

    def mutate(held: bytes, most: int, seed: int) -> bytes:
        rng = Random(seed)
        if rng.random() < 0.4:
            return atheris.Mutate(held, most)
        try:
            return one.mutate(rng, held)[:most]
        except Exception:  # of a file that is damaged already
            return hostile.mutate_bytes(rng, held)[:most]

    flags = [
        f"-runs={inputs + 1000}",
        f"-seed={seed}",
        f"-timeout={10 * LIMIT_SECONDS}",
        "-rss_limit_mb=8192",
        "-max_len=20000",
    ]
    atheris.Setup([sys.argv[0], *flags, "-verbosity=0", str(corpus)], read, custom_mutator=mutate)
    atheris.Fuzz()
    raise SystemExit


def _child(arguments: argparse.Namespace) -> None:
    """Run one target in this process, and write its row."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    torch.set_num_threads(1)
    logging.disable()
    one = TARGETS[arguments.targets[0]]
    with working_directory():
        options = (one, arguments.inputs, arguments.seed, arguments.failures)
        if arguments.engine == "atheris":
            run_atheris(*options, arguments.result)
        arguments.result.write_text(json.dumps(run_random(*options)))
    shutil.rmtree(room(), ignore_errors=True)


def _row_of(name: str, engine: str, inputs: int, seed: int, failures: Path) -> dict[str, object]:
    """Run one target in a process of its own; returns its row, with one failure more where the process ended."""
    result = failures / f"{name}.result"
    result.unlink(missing_ok=True)
    command = [
        sys.executable,
        __file__,
        name,
        "--child",
        "--engine",
        engine,
        "--inputs",
        str(inputs),
        "--seed",
        str(seed),
    ]
    command += ["--failures", str(failures), "--result", str(result)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ISA_CACHE_DIR": str(failures / "cache")}
    environment["TMPDIR"] = str(failures)  # so that nothing is left elsewhere of a process that ends
    began = time.monotonic()
    done = subprocess.run(command, env=environment, check=False)
    for folder in failures.glob("isa-fuzz-*"):
        shutil.rmtree(folder, ignore_errors=True)
    current = failures / f"{name}.current"
    ended = current.exists()
    if ended:
        current.rename(failures / f"{name}-ended.bin")
        print(
            f"{name}: the process ended with {done.returncode}; kept as {failures / f'{name}-ended.bin'}",
            file=sys.stderr,
        )
    if result.exists() and not ended:
        row = json.loads(result.read_text())
        result.unlink()
        return row
    row = {"target": name, "engine": engine, "inputs": inputs, "accepted": 0, "refused": 0, "failures": 1, "peak_mb": 0}
    seconds = round(time.monotonic() - began, 1)
    return {**row, "seconds": seconds, "commit": commit(), "python": platform.python_version()}


def main(argv: list[str] | None = None) -> int:
    """Run targets, print and write the table; returns 1 where anything failed."""
    parser = argparse.ArgumentParser(
        prog="python tests/fuzz.py",
        description="Feed the readers of files and arguments with hostile input, and count what comes of it.",
        epilog="targets: "
        + "; ".join(f"{name}: {' '.join(one.read.__doc__.split())}" for name, one in TARGETS.items()),
    )
    parser.add_argument("targets", metavar="TARGET", nargs="*", help="which; all by default")
    parser.add_argument("--inputs", type=int, metavar="N", help="of each target; by default its share of 100,000")
    parser.add_argument("--seed", type=int, default=SEED, help=f"of the inputs ({SEED})")
    parser.add_argument("--engine", choices=("random", "atheris"), default="random", help="random by default")
    parser.add_argument("--failures", metavar="DIR", type=Path, help="where inputs that fail are kept; a new folder")
    parser.add_argument("--output", metavar="FILE", type=Path, help="table to write; rows of other targets in it stay")
    parser.add_argument("--replay", metavar="FILE", type=Path, help="give a target one kept input, with its traceback")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    for name in arguments.targets:
        if name not in TARGETS:
            parser.error(f"TARGET must be one of {', '.join(TARGETS)}, got {name!r}")
    if arguments.child:
        _child(arguments)
        return 0
    if arguments.replay is not None:
        if len(arguments.targets) != 1:
            parser.error("--replay takes one TARGET")
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
        held = arguments.replay.read_bytes()
        with working_directory():
            TARGETS[arguments.targets[0]].read(held)
        return 0
    failures = (arguments.failures or Path(tempfile.mkdtemp(prefix="isa-fuzz-failures-"))).resolve()
    failures.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in arguments.targets or TARGETS:
        inputs = arguments.inputs or 1000 * TARGETS[name].share
        rows.append(_row_of(name, arguments.engine, inputs, arguments.seed, failures))
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        if arguments.output is not None:
            _write(arguments.output, rows)
    return 1 if any(row["failures"] for row in rows) else 0


def _write(path: Path, rows: list[dict[str, object]]) -> None:
    held: dict[tuple, dict[str, object]] = {}
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            held = {(row["target"], row["engine"]): row for row in csv.DictReader(file)}
    held |= {(row["target"], row["engine"]): row for row in rows}
    write_table(path, COLUMNS, held.values())


if __name__ == "__main__":
    sys.exit(main())
