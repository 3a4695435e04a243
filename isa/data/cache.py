"""Arrays that take long to make, kept on disk between processes.

The cache is a convenience and never a condition: where its directory cannot be read or written, one warning says so and
the array is made again. Files appear by an atomic rename, so that a reader sees a whole file or none; a lock keeps a
second process from making the same array at the same time.
"""

from __future__ import annotations

import errno
import hashlib
import inspect
import io
import json
import math
import os
import time
import uuid
import warnings
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import filelock
import numpy as np
from PIL import Image

from isa.data._npz import open_archive, read_array, read_member
from isa.data.base import DataError, SourceError, expand

__all__ = ["CacheWarning", "cached_array", "directory", "key_of"]

_FORMAT = 1
_LOCK_SECONDS = 900.0
_STALE_SECONDS = 86400.0
_MOST_META = 10_000


class CacheWarning(UserWarning):
    """The cache could not be used; work goes on without it."""


def directory(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Directory of the cache.

    Parameters
    ----------
    cache_dir : path, optional
        Takes precedence over the environment variable ``ISA_CACHE_DIR``, which does over the platform's convention
        (``~/.cache/isa`` on Linux).
    """
    chosen = cache_dir or os.environ.get("ISA_CACHE_DIR")
    if chosen:
        return expand(chosen)
    import platformdirs  # not needed, and on a compute node perhaps not there, where a directory is named

    return Path(platformdirs.user_cache_dir("isa", appauthor=False))


def key_of(*parts: object) -> str:
    """Key that changes with what an array is made of: 16 hexadecimal digits of a SHA-256.

    Parameters
    ----------
    *parts
        Modules (their source text counts), arrays, bytes, or anything with a stable ``repr``.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, ModuleType):
            data = inspect.getsource(part).encode()
        elif isinstance(part, np.ndarray):
            data = f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes()
        elif isinstance(part, bytes):
            data = part
        else:
            data = repr(part).encode()
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def cached_array(
    name: str,
    key: str,
    build: Callable[[], np.ndarray],
    *,
    shape: tuple[int, ...],
    codec: str = "raw",
    cache_dir: str | os.PathLike[str] | None = None,
) -> np.ndarray:
    """Return an array from the cache, or make it and put it there.

    Parameters
    ----------
    name : str
        First part of the file's name, ``{name}-{key}.zip``.
    key : str
        What the array depends on, see :func:`key_of`.
    build : callable
        Makes the array: ``uint8`` of ``shape``.
    shape : tuple of int
        Shape of the array.
    codec : {"raw", "webp"}
        ``"raw"`` stores the bytes. ``"webp"`` stores arrays of shape ``(G, R, C, H, W, 3)`` as ``G`` lossless WebP
        images, each a sheet of ``R x C`` pictures.
    cache_dir : path, optional
        See :func:`directory`.

    Returns
    -------
    ndarray
        ``uint8`` of ``shape``. Each part read from the file has passed its CRC-32.

    Warns
    -----
    CacheWarning
        Once a call, where the cache cannot be used or its file is broken.
    """
    if codec not in _CODECS:
        raise ValueError(f"codec must be one of {', '.join(sorted(_CODECS))}, got {codec!r}")
    path = directory(cache_dir) / f"{name}-{key}.zip"
    existed = _exists(path)
    array = _read(path, key, shape, codec)
    if array is not None:
        return array
    with _lock(path) as (locked, waited):
        if waited or (not existed and _exists(path)):
            array = _read(path, key, shape, codec)
            if array is not None:
                return array
        array = build()
        if array.dtype != np.uint8 or array.shape != tuple(shape):
            raise ValueError(f"build must make uint8 of shape {tuple(shape)}, got {array.dtype} of shape {array.shape}")
        if locked:
            _write(path, key, array, codec)
    return array


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        return False


def _warn(path: Path, doing: str, error: Exception) -> None:
    """One sentence that says what is wrong with the cache and that work goes on."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = "the disk is full"
    elif isinstance(error, OSError) and error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        reason = "the directory is not writable"
    elif isinstance(error, OSError) and error.errno in (errno.EEXIST, errno.ENOTDIR):
        reason = "a file is where the directory should be"
    elif isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    else:
        reason = str(error)
    message = f"cannot {doing} the cache {path} ({reason}); going on without it. ISA_CACHE_DIR names another directory"
    warnings.warn(message, CacheWarning, stacklevel=4)


@contextmanager
def _lock(path: Path) -> Iterator[tuple[bool, bool]]:
    """Hold the file's lock: yields whether it may be written, and whether another process may just have written it."""
    lock = filelock.FileLock(f"{path}.lock")
    waited = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            waited = True
            lock.acquire(timeout=_LOCK_SECONDS)
    except filelock.Timeout:
        # Whoever holds it is stuck: the rename is atomic, so that a second writer does no harm.
        yield True, True
        return
    except NotImplementedError:
        # File systems without locks: work may be done twice, never wrongly.
        yield True, waited
        return
    except OSError as error:
        _warn(path, "write", error)
        yield False, False
        return
    try:
        yield True, waited
    finally:
        lock.release()


def _read(path: Path, key: str, shape: tuple[int, ...], codec: str) -> np.ndarray | None:
    """Array of a cached file; ``None`` where there is none that can be used."""
    try:
        if not _exists(path):
            return None
        with open_archive(path) as archive:
            try:
                meta = json.loads(read_member(archive, "meta.json", _MOST_META))
            except (ValueError, RecursionError):
                raise SourceError(f"{path} is not a file of this cache") from None
            if meta != _meta(key, shape, codec):
                raise SourceError(f"{path} holds another array than its name says")
            return _CODECS[codec][1](archive, tuple(shape))
    except (OSError, DataError) as error:
        _warn(path, "read", error)
        return None


def _meta(key: str, shape: tuple[int, ...], codec: str) -> dict[str, object]:
    return {"format": _FORMAT, "key": key, "shape": list(shape), "codec": codec}


def _write(path: Path, key: str, array: np.ndarray, codec: str) -> None:
    """Write a cached file under a name of its own, then rename it."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}.tmp")
    try:
        _remove_leftovers(path)
        with temporary.open("xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                archive.writestr("meta.json", json.dumps(_meta(key, array.shape, codec)))
                _CODECS[codec][0](archive, array)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _warn(path, "write", error)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_leftovers(path: Path) -> None:
    """Remove what killed writers of this file left behind."""
    for leftover in path.parent.glob(f".{path.name}-*.tmp"):
        try:
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()
        except FileNotFoundError:
            continue


def _write_raw(archive: zipfile.ZipFile, array: np.ndarray) -> None:
    with archive.open("array.npy", "w", force_zip64=True) as stream:
        np.lib.format.write_array(stream, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)


def _read_raw(archive: zipfile.ZipFile, shape: tuple[int, ...]) -> np.ndarray:
    return read_array(archive, "array.npy", shape, np.uint8)


def _encode_sheet(group: np.ndarray) -> bytes:
    """Pictures ``(R, C, H, W, 3)`` as one lossless WebP sheet."""
    rows, columns, height, width, _ = group.shape
    sheet = group.swapaxes(1, 2).reshape(rows * height, columns * width, 3)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet)).save(buffer, "WEBP", lossless=True, quality=50, method=1)
    return buffer.getvalue()


def _write_webp(archive: zipfile.ZipFile, array: np.ndarray) -> None:
    if array.ndim != 6 or array.shape[-1] != 3:
        raise ValueError(f"codec 'webp' takes arrays of shape (G, R, C, H, W, 3), got {array.shape}")
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for number, data in enumerate(pool.map(_encode_sheet, array)):
            archive.writestr(f"sheet-{number:04d}.webp", data)


def _read_webp(archive: zipfile.ZipFile, shape: tuple[int, ...]) -> np.ndarray:
    groups, rows, columns, height, width, _ = shape
    array = np.empty(shape, np.uint8)

    def decode(number: int) -> None:
        held = sheets[number]
        # Lossless pictures have their size here: it is compared before anything is allocated for another.
        bits = int.from_bytes(held[21:25], "little")
        size = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        if held[8:16] != b"WEBPVP8L" or size != (columns * width, rows * height):
            raise SourceError(f"{archive.filename} holds a sheet of another kind or size")
        with Image.open(io.BytesIO(held), formats=["WEBP"]) as image:
            sheet = np.asarray(image.convert("RGB"))
        array[number] = sheet.reshape(rows, height, columns, width, 3).swapaxes(1, 2)

    most = 2 * math.prod(shape[1:]) + 1000  # which a lossless picture stays below
    sheets = [read_member(archive, f"sheet-{number:04d}.webp", most) for number in range(groups)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(decode, range(groups)))
    return array


_CODECS = {"raw": (_write_raw, _read_raw), "webp": (_write_webp, _read_webp)}
