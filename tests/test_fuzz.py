"""Hostile input: some of what `make fuzz` tries, every case that it has found, and that it would find one."""

import contextlib
import csv
import io
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from pathlib import Path
from random import Random

import fuzz
import hostile
import numpy as np
import pytest
import scipy.io
import torch
from fuzz import TARGETS, Target
from PIL import Image

from isa import Node, cli, data, sweep
from isa.data import SourceError, cars3d, dsprites
from isa.run import Run

pytestmark = pytest.mark.filterwarnings("ignore")  # inputs may be of any kind, also of such as scipy or torch warn of


@pytest.fixture(autouse=True)
def in_the_room():
    with fuzz.working_directory():
        yield
        assert not Path(hostile.EXECUTED).exists()


@contextlib.contextmanager
def little_memory(more: int = 1 << 29):
    """Let this process have that much more memory than it has, where the system tells how much that is."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    told = Path("/proc/self/statm")
    if not told.exists():
        yield
        return
    pages = int(told.read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def refused(name: str, held: bytes, said: str) -> None:
    with pytest.raises(TARGETS[name].refusals, match=said):
        TARGETS[name].read(held)


# --- some of everything -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_taken_or_refused(name):
    rng = Random(f"7 {name}")
    target = TARGETS[name]
    found = {"accepted": 0, "refused": 0}
    for _ in range(20 * target.share):
        held = target.input(rng)
        outcome = fuzz.feed(target, held)
        if isinstance(outcome, BaseException):
            (fuzz.room() / "failed.bin").write_bytes(held)
            raise outcome
        found[outcome] += 1
    assert found["accepted"] > 0 and (found["refused"] > 0 or not target.refusals), found


@pytest.mark.parametrize("name", [name for name, one in TARGETS.items() if one.seeds is not fuzz._no_seeds])
def test_the_files_that_others_are_made_from_are_good(name):
    assert "accepted" in [fuzz.feed(TARGETS[name], held) for held in fuzz._seeds(name)]


# --- that failures would be seen --------------------------------------------------------------------------------------


def _planted(held: bytes) -> None:
    if held == b"refused":
        raise ValueError("no")
    if held == b"mistake":
        raise ZeroDivisionError
    if held == b"pickle":
        pickle.loads(hostile.PICKLES[2])[0:]
    if held == b"wait":
        time.sleep(60)
    while held == b"compute":
        pass


def _of(*inputs: bytes) -> Target:
    left = list(inputs)
    return Target("planted", _planted, (ValueError,), lambda: [b""], lambda rng, held: left.pop(0), 1)


def test_what_goes_wrong_is_found():
    feed = [fuzz.feed(_of(), held) for held in (b"good", b"refused", b"mistake", b"pickle")]
    assert feed[:2] == ["accepted", "refused"]
    assert [type(one) for one in feed[2:]] == [ZeroDivisionError, fuzz.Executed]


def test_what_hangs_is_interrupted_and_kept(tmp_path, monkeypatch, capsys):
    one = _of(b"good", b"wait", b"compute", b"mistake", b"mistake", b"refused")
    monkeypatch.setitem(TARGETS, "planted", one)
    monkeypatch.setattr(fuzz, "LIMIT_SECONDS", 0.2)
    monkeypatch.setattr(fuzz.faulthandler, "dump_traceback_later", lambda *seconds, **options: None)
    monkeypatch.setattr(hostile, "mutate_bytes", lambda rng, held: held)
    before = signal.getsignal(signal.SIGALRM)
    try:
        row = fuzz.run_random(one, 6, 1, tmp_path)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert {name: row[name] for name in ("inputs", "accepted", "refused", "failures")} == {
        "inputs": 6,
        "accepted": 1,
        "refused": 1,
        "failures": 4,
    }
    assert sorted(path.read_bytes() for path in tmp_path.iterdir()) == [b"compute", b"mistake", b"wait"]
    said = capsys.readouterr().err
    assert said.count("Hang") == 2 and said.count("ZeroDivisionError") == 2


def test_the_command_runs_targets_apart_and_writes_the_table(tmp_path):
    table = tmp_path / "fuzz.csv"
    table.write_text(",".join(fuzz.COLUMNS) + "\nrun,random,1,1,0,0,1,1,x,y\ntree,random,1,1,0,0,1,1,x,y\n")
    command = [sys.executable, fuzz.__file__, "tree", "--inputs", "60", "--seed", "2", "--output", str(table)]
    done = subprocess.run(
        [*command, "--failures", str(tmp_path / "failures")], capture_output=True, text=True, check=True
    )
    with open(table, newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["target"], first["commit"]) == ("run", "x")
    assert (second["target"], second["inputs"], second["failures"]) == ("tree", "60", "0")
    assert int(second["accepted"]) + int(second["refused"]) == 60 and 50 < int(second["peak_mb"]) < 8192
    assert second["commit"].startswith(fuzz.commit()[:40]) and done.stdout.count("\n") == 1
    assert list((tmp_path / "failures").iterdir()) == []


# --- specifications ---------------------------------------------------------------------------------------------------


def spec(grid: str = "{objective: beta-vae}", title: str = "any", every: str = "{}") -> bytes:
    return f"title: {title}\nevery: {every}\ntiers:\n  1:\n    - {grid}\n".encode()


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (spec("{beta: !!int ''}"), "tags such as tag:yaml.org,2002:int are not allowed"),
        (spec("{beta: !!timestamp x}"), "tags such as"),
        (spec("{beta: !!float ''}"), "tags such as"),
        (spec('{prior: "' + "2[" * 600 + '"}'), "at most 1,000 characters"),
        (spec("{seed: 0x" + "f" * 5000 + "}"), "at most 1,000 characters"),
        (spec(title='"\\x1b[2J"'), "title must be a line of text"),
        (spec(title='"\\ud800"'), "title must be a line of text"),
        (spec("{seeds: 9000}\n    - {seeds: 9000, beta: 2}"), "at most 10,000 runs in all"),
        (spec("{prior: '2[4000]', seeds: 300}"), "at most 1,000,000 latents"),
        (b"\n".join(b"k%d: 1" % number for number in range(8000)), "unknown key 'k0'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_specifications(held, said):
    refused("spec", held, said)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_is_no_file(tmp_path):
    for name in ("pipe.yaml", "table.csv", "pipe.bin", "pipe.npz", "pipe.pth"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="must be a file"):
        sweep.Spec.read(tmp_path / "pipe.yaml")
    with pytest.raises(ValueError, match="must be a file"):
        sweep.read_records(tmp_path / "table.csv")
    with pytest.raises(ValueError, match="not a file"):
        fuzz.decoders.CompressedDecoder.load(tmp_path / "pipe.bin")
    with pytest.raises(SourceError, match="is not a file"):
        data.load("dsprites", tmp_path / "pipe.npz")
    with pytest.raises(SourceError, match="is not a file"):
        data.load("faces3d", tmp_path / "pipe.pth")


# --- records ----------------------------------------------------------------------------------------------------------


def table(**changes: str) -> bytes:
    """A table of one record with some cells changed, and without those that are None."""
    rows = list(csv.DictReader(io.StringIO(fuzz._seeds("records")[0].decode())))[:1]
    rows[0] |= {name: cell for name, cell in changes.items() if cell is not None}
    names = [name for name in rows[0] if changes.get(name, "") is not None]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue().encode()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mig": "NaN"}, "line 2 is no record: it has the number NaN|nan"),
        ({"mig": "1e999"}, "it has the number 1e999"),
        ({"mig": "1" + "0" * 400}, "it has the number 1000"),
        ({"mig": '"a"'}, "mig must be a number, got 'a'"),
        ({"log_likelihood": ""}, "log_likelihood must be there where status is trained"),
        ({"total_steps": "0"}, "total_steps must be a whole number from 1 on"),
        ({"pack_size": "0"}, "pack_size must be a whole number from 1 on"),
        ({"train_seconds": "[]"}, "train_seconds must be a number"),
        ({"status": "gone"}, "status must be one of trained, diverged"),
        ({"status": "diverged", "diverged_at": ""}, "diverged_at must be there"),
        ({"status": None}, "line 1 is no record: its columns"),
        ({"factors": '["standard_error","orientation","x","y"]'}, "factors must be names of factors"),
        ({"gaps": '["a",0,0,0]'}, "gaps must be numbers"),
        ({"beta": "1" + "0" * 400}, "line 2 is no record"),
        ({"exponents": "[" * 100_000}, "line 2 is no record"),
    ],
    ids=str,
)
def test_records(changes, said):
    refused("records", table(**changes), said)


def test_a_record_is_named_by_its_run_alone():
    held = table(key="../../somewhere", beta=None if json.loads(table_cell("beta")) == 1 else "1")
    (record,) = sweep.read_records(fuzz._file("key.csv", held))
    assert record["key"].endswith(record["hash"]) and "/" not in record["key"] and record["beta"] == 1


def table_cell(name: str) -> str:
    return next(csv.DictReader(io.StringIO(table().decode())))[name]


# --- trees and priors -------------------------------------------------------------------------------------------------


def test_exponents_and_scales_beyond_floats():
    refused("tree", b"1e-320[3]", "from 1e-300 to 1e300")
    for leaves in (10_001, 2**63, 10**400):
        with pytest.raises(ValueError, match="a tree has at most 10,000 leaves"):
            Node(2.0, [1, leaves])


# --- archives ---------------------------------------------------------------------------------------------------------


def dsprites_with(change) -> bytes:
    held = hostile.members(fuzz._seeds("dsprites_npz")[0])
    return hostile.pack(list(change(held).items()))


def test_what_unpacks_without_bound_is_not_unpacked():
    held = hostile.members(fuzz._seeds("dsprites_npz")[0])
    for kind in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        refused("dsprites_npz", hostile.pack(list(held.items()), kind), "must be stored or deflated")


@pytest.mark.parametrize("version", [(2, 0), (3, 0)])
def test_a_header_may_not_be_longer_than_any_header(version):
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (8, 64, 64), }"
    long = hostile.npy(header, bytes(9), version, 2**32 - 1)
    said = "claims 4,294,967,295 bytes" if version == (2, 0) else r"version \(3, 0\)"
    refused("dsprites_npz", dsprites_with(lambda held: held | {"latents_classes.npy": long}), said)
    refused("faces3d_file", b"npy:" + long, said)
    refused("faces3d_file", b"npz:" + hostile.pack([("faces.npy", long)]), said)


@pytest.mark.parametrize("shape", ["(-1,)", "(True,)", "(-1, 6)", f"({2**60}, 6)"])
def test_sizes_that_no_array_has(shape):
    header = f"{{'descr': '<i8', 'fortran_order': False, 'shape': {shape}, }}"
    held = dsprites_with(lambda held: held | {"latents_classes.npy": hostile.npy(header)})
    with little_memory():
        refused("dsprites_npz", held, "its shape is|must have shape|does not hold the bytes")
    portrait = hostile.members(fuzz._seeds("portrait")[0]) | {"header.npy": hostile.npy(header)}
    with little_memory():
        refused("portrait", hostile.pack(list(portrait.items())), "its shape is|its header has the shape")


def test_a_directory_as_large_as_memory_is_not_read(tmp_path):
    path = tmp_path / "sparse.npz"
    size = 3 * 2**30
    end = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 1, 1, size, 0, 0)
    with open(path, "wb") as file:
        file.truncate(size)
        file.seek(size)
        file.write(end)
    with little_memory(), pytest.raises(SourceError, match="claims a part of 3,221,225,472 bytes"):
        dsprites.compare(path, fuzz._EMPTY)
    with open(path, "ab") as file:
        file.truncate(2**40)
    with pytest.raises(SourceError, match="must have at most"):
        dsprites.compare(path, fuzz._EMPTY)


# --- MATLAB files -----------------------------------------------------------------------------------------------------


def mat(*elements: bytes, compressed: bool = False) -> bytes:
    packed = [struct.pack("<II", 15, len(one)) + one for one in map(zlib.compress, elements)]
    return b"MATLAB".ljust(124) + b"\x00\x01IM" + b"".join(packed if compressed else elements)


def element(kind: int, data: bytes, claim: int | None = None) -> bytes:
    return struct.pack("<II", kind, len(data) if claim is None else claim) + data + bytes(-len(data) % 8)


def matrix(number: int, shape: tuple[int, ...], name: bytes, *values: bytes, claim: int | None = None) -> bytes:
    head = element(6, struct.pack("<II", number, 0)) + element(5, struct.pack(f"<{len(shape)}i", *shape))
    return element(14, head + element(1, name, claim) + b"".join(values))


IMAGES = np.arange(np.prod(fuzz._CAR), dtype=np.uint8)
GOOD = matrix(9, fuzz._CAR, b"im", element(2, IMAGES.tobytes()))


@pytest.mark.parametrize("compressed", [True, False])
def test_a_matlab_file_made_by_hand_is_read_as_scipy_does(compressed):
    held = mat(matrix(6, (1, 1), b"before", element(9, bytes(8))), GOOD, compressed=compressed)
    TARGETS["cars3d_mat"].read(held)
    expected = scipy.io.loadmat(io.BytesIO(held))["im"].transpose(4, 3, 0, 1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cars3d, "_RAW_SHAPE", fuzz._CAR)
        found = cars3d.read_car(fuzz._file("hand.mat", held))
    assert np.array_equal(found, expected) and found.flags.c_contiguous


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize(
    ("held", "said"),
    [
        ([matrix(1, (2**31 - 1, 2**31 - 1), b"im"), GOOD], "found cell of shape"),
        ([matrix(9, fuzz._CAR, b"im", claim=2**32 - 8)], "element of type 1 and 4,294,967,288 bytes"),
        (
            [matrix(9, fuzz._CAR, b"im", element(2, b"", 2**32 - 8))],
            "has 4,294,967,288 values of type 2 in place of 192",
        ),
        ([matrix(9, fuzz._CAR, b"im", element(9, IMAGES.tobytes()))], "has 192 values of type 9 in place of 192 bytes"),
        ([GOOD[:-40]], "ends within an element"),
        ([matrix(9, (2,) * 33, b"im")], "where there must be none"),
        ([element(14, b"")], "ends within an element"),
        ([matrix(9, (1, 1), b"a", element(2, b"1"))] * 1001, "more than 1,000 arrays"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_matlab_files_that_claim_what_is_not_there(held, said, compressed):
    with little_memory():
        refused("cars3d_mat", mat(*held, compressed=compressed), said)


def test_a_small_file_of_a_large_array_is_not_unpacked():
    packer = zlib.compressobj()
    zeros = bytes(1 << 24)
    head = matrix(9, (2**15, 2**15), b"im")
    packed = packer.compress(head) + b"".join(packer.compress(zeros) for _ in range(64)) + packer.flush()
    held = b"MATLAB".ljust(124) + b"\x00\x01IM" + struct.pack("<II", 15, len(packed)) + packed
    assert len(held) < 2**20 + 2**17
    with little_memory():
        refused("cars3d_mat", held, r"found uint8 of shape \(32768, 32768\)")


# --- torch files ------------------------------------------------------------------------------------------------------


def torch_file(change: bytes, to: bytes, new: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(torch.zeros(fuzz._FACES, dtype=torch.uint8), buffer, _use_new_zipfile_serialization=new)
    if not new:
        held = buffer.getvalue()
        assert change in held
        return b"pth:" + held.replace(change, to)
    found = [(name, one.replace(change, to)) for name, one in hostile.members(buffer.getvalue()).items()]
    return b"pth:" + hostile.pack(found, zipfile.ZIP_STORED)


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    ("change", "to", "said"),
    [
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"cbuiltins\nbytearray\n", "it names builtins bytearray"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n", b"c_codecs\nencode\n", "it names _codecs encode"),
        (b"M\xe0\x01", b"J\xff\xff\xff\x7f", "more than one tensor of the right size"),
        (b"M\xe0\x01", b"\x8a\x09" + b"\xff" * 8 + b"\x00", "more than one tensor of the right size"),
        (b"ccollections\nOrderedDict\n", b"\x8c\x07builtin\x8c\x04open\x93", "it has the operation SHORT_BINUNICODE"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_torch_is_not_asked_for_anything_but_a_tensor(change, to, said, new):
    with little_memory():
        refused("faces3d_file", torch_file(change, to, new), said)


def test_torch_files_are_not_unpacked():
    held = torch_file(b"", b"", True)[4:]
    TARGETS["faces3d_file"].read(b"pth:" + held)
    refused("faces3d_file", b"pth:" + hostile.pack(list(hostile.members(held).items())), "is compressed")
    refused("faces3d_file", b"pth:" + held + bytes(1 << 21), "must have at most")


# --- the cache --------------------------------------------------------------------------------------------------------


def sheet(size: tuple[int, int], frames: int = 1, lossless: bool = True) -> bytes:
    buffer = io.BytesIO()
    pictures = [Image.new("RGB", size, (9 * number, 0, 0)) for number in range(frames)]
    pictures[0].save(buffer, "WEBP", lossless=lossless, save_all=frames > 1, append_images=pictures[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        {"meta.json": b"[" * 5000},
        {"meta.json": b" " * 20_000},
        {"sheet-0001.webp": sheet((16000, 12))},
        {"sheet-0001.webp": sheet((12, 8), frames=2)},
        {"sheet-0001.webp": sheet((12, 8), lossless=False)},
        {"sheet-0001.webp": bytes(100_000)},
    ],
    ids=["nested", "long", "large", "animated", "lossy", "zeros"],
)
def test_a_file_in_the_cache_is_taken_as_it_was_written_or_not_at_all(change):
    held = hostile.members(fuzz._seeds("cached")[1])
    assert set(change) < set(held)
    with pytest.warns(data.CacheWarning, match="cannot read the cache"):
        assert (
            fuzz.data_cache._read(
                fuzz._file("c.zip", hostile.pack(list((held | change).items()))), "key", fuzz._SHEETS, "webp"
            )
            is None
        )


# --- portraits --------------------------------------------------------------------------------------------------------


def test_a_portraits_words_are_words():
    held = hostile.members(fuzz._seeds("portrait")[1])
    header = json.loads(np.load(io.BytesIO(held["header.npy"])).tobytes())
    header["factors"][0]["values"] = ["a" * 30_000, *[""] * 4000]  # as an array of words, each as long as the longest
    text = json.dumps(header, separators=(",", ":")).encode()
    held["header.npy"] = hostile.npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({len(text)},), }}", text)
    with little_memory(1 << 28):
        refused("portrait", hostile.pack(list(held.items())), "at most 200 characters each")


# --- the command line -------------------------------------------------------------------------------------------------


def test_the_home_of_nobody(capsys):
    for arguments in (
        ["data", "dsprites", "--source=~no-such-user/x"],
        ["data", "cars3d", "--source=~no-such-user/x"],
        ["data", "faces3d", "--source=~no-such-user/x"],
        ["data", "dsprites", "--compare=~no-such-user/x"],
        ["train", "--source=~no-such-user/x"],
        ["data", "faces3d", "--cache-dir=~no-such-user/x"],
    ):
        assert cli.main(arguments) in (1, 2)
        assert "the home directory of nobody" in capsys.readouterr().err


@pytest.mark.parametrize("held", [b"[]", b"3", b"\xff", b"{}"])
def test_a_record_that_is_none(held, capsys):
    folder = fuzz._file("trained/record.json", held).parent
    assert cli.main(["train", f"--output={folder}"]) == 1
    assert capsys.readouterr().err.startswith(f"isa: error: {folder / 'record.json'} is not a record: ")


@pytest.mark.parametrize("status", ["trained", "diverged", "gone", None, []])
def test_a_record_that_lacks_what_is_shown(status, capsys):
    held = json.dumps({"hash": Run().hash, "status": status, "images_title": "x"})
    folder = fuzz._file("trained/record.json", held.encode()).parent
    assert cli.main(["train", f"--output={folder}"]) == 1
    printed = capsys.readouterr()
    assert "record.json is not the record of a training: " in printed.err and printed.out == ""


def test_no_file_steers_the_terminal(capsys):
    path = fuzz._file("title.yaml", spec('{prior: "\\x1b[2J\\u202e"}'))
    assert cli.main(["status", str(path)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.strip().isprintable()
    folder = fuzz._file("a\x1b[2J\u202e/record.json", b"{}").parent
    assert cli.main(["train", f"--output={folder}"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.strip().isprintable() and said.encode()
