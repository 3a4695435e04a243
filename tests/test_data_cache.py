"""The cache: round trips, two processes at once, and every way in which it cannot be used."""

import errno
import os
import subprocess
import sys
import time
import types
import warnings
import zipfile

import filelock
import numpy as np
import pytest

from isa.data import CacheWarning, cache

RAW = np.random.default_rng(0).integers(0, 256, (5, 7, 11), dtype=np.uint8)
PICTURES = np.random.default_rng(1).integers(0, 256, (3, 2, 4, 8, 8, 3), dtype=np.uint8)


def never() -> np.ndarray:
    raise AssertionError("made again although it is in the cache")


@pytest.mark.parametrize(("codec", "array"), [("raw", RAW), ("webp", PICTURES)])
def test_round_trip_is_lossless(tmp_path, codec, array):
    made = cache.cached_array("x", "k", lambda: array, shape=array.shape, codec=codec, cache_dir=tmp_path)
    read = cache.cached_array("x", "k", never, shape=array.shape, codec=codec, cache_dir=tmp_path)
    assert np.array_equal(made, array) and np.array_equal(read, array)
    assert not list(tmp_path.glob(".*.tmp"))


def test_another_key_is_another_array(tmp_path):
    cache.cached_array("x", "k", lambda: RAW, shape=RAW.shape, cache_dir=tmp_path)
    other = cache.cached_array("x", "l", lambda: RAW + 1, shape=RAW.shape, cache_dir=tmp_path)
    assert np.array_equal(other, RAW + 1)


def test_directory_argument_then_environment_then_platform(tmp_path, monkeypatch):
    monkeypatch.setenv("ISA_CACHE_DIR", str(tmp_path / "environment"))
    assert cache.directory(tmp_path / "argument") == tmp_path / "argument"
    assert cache.directory() == tmp_path / "environment"
    monkeypatch.delenv("ISA_CACHE_DIR")
    assert "isa" in cache.directory().parts[-1].lower()


def test_keys_depend_on_every_part():
    module = types.ModuleType("module")
    keys = [
        cache.key_of("a", "b"),
        cache.key_of("ab"),
        cache.key_of(b"ab"),
        cache.key_of(RAW),
        cache.key_of(RAW + 1),
        cache.key_of(RAW.reshape(5, 77)),
        cache.key_of(cache),
        cache.key_of(errno.ENOSPC, 1.0),
    ]
    assert len(set(keys)) == len(keys)
    assert cache.key_of(RAW) == cache.key_of(RAW.copy())
    with pytest.raises((OSError, TypeError)):
        cache.key_of(module)


def _damage(path, how):
    data = path.read_bytes()
    if how == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "flipped bit":
        place = data.index(RAW.tobytes()[:16]) + 100
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    elif how == "another archive":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("readme", "hello")
    else:
        with zipfile.ZipFile(path) as archive:
            meta = archive.read("meta.json")
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("meta.json", meta)


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped bit", "another archive", "no array"])
def test_a_damaged_file_is_named_and_replaced(tmp_path, how):
    cache.cached_array("x", "k", lambda: RAW, shape=RAW.shape, cache_dir=tmp_path)
    _damage(tmp_path / "x-k.zip", how)
    with pytest.warns(CacheWarning, match=r"x-k\.zip") as caught:
        array = cache.cached_array("x", "k", lambda: RAW.copy(), shape=RAW.shape, cache_dir=tmp_path)
    assert len(caught) == 1
    assert np.array_equal(array, RAW)
    assert np.array_equal(cache.cached_array("x", "k", never, shape=RAW.shape, cache_dir=tmp_path), RAW)


def test_a_damaged_sheet_is_replaced(tmp_path):
    arguments = {"shape": PICTURES.shape, "codec": "webp", "cache_dir": tmp_path}
    cache.cached_array("x", "k", lambda: PICTURES, **arguments)
    path = tmp_path / "x-k.zip"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["sheet-0001.webp"] = members["sheet-0001.webp"][:50]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.warns(CacheWarning, match="read"):
        assert np.array_equal(cache.cached_array("x", "k", lambda: PICTURES, **arguments), PICTURES)
    assert np.array_equal(cache.cached_array("x", "k", never, **arguments), PICTURES)


def test_a_directory_that_cannot_be_made_costs_one_warning(tmp_path):
    (tmp_path / "file").write_text("in the way")
    text = r"cannot write the cache .*a file is where the directory should be.*going on without it"
    with pytest.warns(CacheWarning, match=text) as caught:
        array = cache.cached_array("x", "k", lambda: RAW, shape=RAW.shape, cache_dir=tmp_path / "file" / "below")
    assert np.array_equal(array, RAW) and len(caught) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may write anywhere")
def test_a_read_only_directory_costs_one_warning(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.warns(CacheWarning, match="not writable") as caught:
        cache.cached_array("x", "k", lambda: RAW, shape=RAW.shape, cache_dir=tmp_path)
    assert len(caught) == 1


@pytest.mark.parametrize(
    ("number", "text"), [(errno.ENOSPC, "the disk is full"), (errno.EROFS, "the directory is not writable")]
)
def test_a_failing_write_costs_one_warning_and_leaves_nothing(tmp_path, monkeypatch, number, text):
    def fail(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.warns(CacheWarning, match=text) as caught:
        array = cache.cached_array("x", "k", lambda: RAW, shape=RAW.shape, cache_dir=tmp_path)
    assert np.array_equal(array, RAW) and len(caught) == 1
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_a_lock_that_is_never_released_does_not_stop_work(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_LOCK_SECONDS", 0.1)
    with filelock.FileLock(tmp_path / "x-k.zip.lock"):
        cache.cached_array("x", "k", lambda: RAW, shape=RAW.shape, cache_dir=tmp_path)
    assert np.array_equal(cache.cached_array("x", "k", never, shape=RAW.shape, cache_dir=tmp_path), RAW)


def test_a_file_system_without_locks_does_not_stop_work(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise NotImplementedError("no locks here")

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    cache.cached_array("x", "k", lambda: RAW, shape=RAW.shape, cache_dir=tmp_path)
    assert np.array_equal(cache.cached_array("x", "k", never, shape=RAW.shape, cache_dir=tmp_path), RAW)


def test_what_killed_writers_left_is_removed(tmp_path):
    old, young = tmp_path / ".x-k.zip-aa.tmp", tmp_path / ".x-k.zip-bb.tmp"
    for path in (old, young):
        path.write_bytes(b"half")
    two_days_ago = time.time() - 2 * 86400
    os.utime(old, (two_days_ago, two_days_ago))
    cache.cached_array("x", "k", lambda: RAW, shape=RAW.shape, cache_dir=tmp_path)
    assert not old.exists() and young.exists()


def test_two_processes_at_once_make_it_once(tmp_path):
    code = """
import sys, time
import numpy as np
from isa.data.cache import cached_array
def build():
    with open(sys.argv[1] + "/made", "a") as file:
        file.write("x")
    time.sleep(1.0)
    return np.full((4, 4), 7, np.uint8)
array = cached_array("x", "k", build, shape=(4, 4), cache_dir=sys.argv[1])
assert (array == 7).all()
"""
    arguments = [sys.executable, "-W", "error", "-c", code, str(tmp_path)]
    processes = [subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    assert (tmp_path / "made").read_text() == "x"


def test_an_error_while_making_passes_through_and_releases_the_lock(tmp_path):
    def fail():
        raise RuntimeError("no paint")

    with pytest.raises(RuntimeError, match="no paint"):
        cache.cached_array("x", "k", fail, shape=RAW.shape, cache_dir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.cached_array("x", "k", lambda: RAW, shape=RAW.shape, cache_dir=tmp_path)


def test_bad_input(tmp_path):
    with pytest.raises(ValueError, match=r"codec must be one of raw, webp, got 'png'"):
        cache.cached_array("x", "k", never, shape=(1,), codec="png", cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"build must make uint8 of shape \(2, 2\)"):
        cache.cached_array("x", "k", lambda: RAW, shape=(2, 2), cache_dir=tmp_path)
    with pytest.raises(ValueError, match="codec 'webp' takes arrays"):
        cache.cached_array("x", "k", lambda: RAW, shape=RAW.shape, codec="webp", cache_dir=tmp_path)
