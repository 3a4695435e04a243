"""The cache: what is kept is read, and what cannot be kept is made again with one warning."""

import os

import numpy as np
import pytest

from isa.data import CacheWarning
from isa.data.cache import cached_array, directory

ARRAY = np.random.default_rng(0).integers(0, 256, (5, 7, 11), dtype=np.uint8)


def never() -> np.ndarray:
    raise AssertionError("made again although it is in the cache")


def kept(folder, build=lambda: ARRAY, key="k") -> np.ndarray:
    return cached_array("x", key, build, shape=ARRAY.shape, cache_dir=folder)


def test_round_trip(tmp_path):
    folder = tmp_path / "new" / "folder"
    assert np.array_equal(kept(folder), ARRAY)
    assert np.array_equal(kept(folder, never), ARRAY)
    assert np.array_equal(kept(folder, lambda: ARRAY + 1, key="other"), ARRAY + 1)
    assert sorted(path.name for path in folder.iterdir()) == ["x-k.npy", "x-other.npy"]


def test_directory_by_argument_then_environment_then_platform(tmp_path, monkeypatch):
    monkeypatch.setenv("ISA_CACHE_DIR", str(tmp_path / "environment"))
    assert directory(tmp_path / "argument") == tmp_path / "argument"
    assert directory() == tmp_path / "environment"
    monkeypatch.delenv("ISA_CACHE_DIR")
    assert "isa" in directory().parts[-1].lower()


@pytest.mark.parametrize("content", [ARRAY[:2], np.array([None]), b"", bytes(range(256))], ids=type)
def test_a_damaged_file_is_replaced(tmp_path, content):
    if isinstance(content, bytes):
        (tmp_path / "x-k.npy").write_bytes(content)
    else:
        np.save(tmp_path / "x-k.npy", content)
    assert np.array_equal(kept(tmp_path), ARRAY)
    assert np.array_equal(kept(tmp_path, never), ARRAY)


def test_a_failing_write_leaves_nothing(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(CacheWarning, match="cannot write .*No space left") as caught:
        assert np.array_equal(kept(tmp_path), ARRAY)
    assert len(caught) == 1 and not list(tmp_path.iterdir())
