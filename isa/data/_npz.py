"""Arrays out of zip archives (the ``.npz`` format), without unpickling and without trusting a header."""

from __future__ import annotations

import errno
import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np

from isa.data.base import SourceError, SourceMissingError

__all__ = ["open_archive", "read_array", "read_blocks", "read_shape"]

# Deflate cannot shrink anything further than this; what claims more holds less than it says.
_DEFLATE_LIMIT = 1032
_BLOCK_BYTES = 1 << 22
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; what proves broken while it is read becomes a :class:`SourceError` that names the file."""
    if not path.exists():
        raise SourceMissingError(f"{path} does not exist")
    if not path.is_file():
        raise SourceError(f"{path} is not a file")
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OverflowError) as error:
        raise SourceError(f"{path} is not a readable zip archive, or is truncated: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a directory that points to before the file's start
            raise
        raise SourceError(f"{path} is not a readable zip archive, or is truncated: {error}") from error


def read_shape(archive: zipfile.ZipFile, member: str) -> tuple[int, ...]:
    """Shape that an array's header declares."""
    stream, shape, _, _ = _open_array(archive, member)
    stream.close()
    return shape


def read_blocks(
    archive: zipfile.ZipFile, member: str, shape: tuple[int, ...], dtype: np.dtype | str
) -> Iterator[np.ndarray]:
    """Read an array block by block along its first axis.

    Parameters
    ----------
    archive : zipfile.ZipFile
        Opened by :func:`open_archive`.
    member : str
        Name in the archive, with its ``.npy``.
    shape, dtype
        What the array has to be. Nothing is allocated before the header says the same and the archive can hold it.

    Yields
    ------
    ndarray
        Consecutive rows, a few megabytes each. When the last has been taken the member's CRC-32 has been checked.

    Raises
    ------
    SourceError
        Where the member is missing, holds objects, or is of another shape or type.
    """
    dtype = np.dtype(dtype)
    stream, found_shape, found_dtype, fortran = _open_array(archive, member)
    with stream:
        what = _describe(archive, member)
        if found_shape != shape or found_dtype != dtype:
            raise SourceError(f"{what} must be {dtype} of shape {shape}, found {found_dtype} of shape {found_shape}")
        if fortran and sum(size > 1 for size in shape) > 1:
            raise SourceError(f"{what} must be in C order, found Fortran order")
        row_bytes = math.prod(shape[1:]) * dtype.itemsize
        info = archive.getinfo(member)
        claimed = stream.tell() + shape[0] * row_bytes
        if info.file_size != claimed or claimed > _DEFLATE_LIMIT * (info.compress_size + 1):
            raise SourceError(f"{what} does not hold the bytes that its header claims")
        rows = max(1, _BLOCK_BYTES // row_bytes)
        for low in range(0, shape[0], rows):
            count = min(rows, shape[0] - low)
            data = stream.read(count * row_bytes)
            if len(data) != count * row_bytes:
                raise SourceError(f"{what} is truncated")
            yield np.frombuffer(data, dtype).reshape(count, *shape[1:])
        stream.read(1)


def read_array(archive: zipfile.ZipFile, member: str, shape: tuple[int, ...], dtype: np.dtype | str) -> np.ndarray:
    """Read a whole array; see :func:`read_blocks`."""
    blocks = read_blocks(archive, member, shape, dtype)
    first = next(blocks, None)
    array = np.empty(shape, dtype)
    low = 0
    while first is not None:
        array[low : low + len(first)] = first
        low += len(first)
        first = next(blocks, None)
    return array


def _describe(archive: zipfile.ZipFile, member: str) -> str:
    return f"{member.removesuffix('.npy')!r} in {archive.filename}"


def _open_array(archive: zipfile.ZipFile, member: str) -> tuple[IO[bytes], tuple[int, ...], np.dtype, bool]:
    """Stream of a member behind its header, with the header's shape, type and Fortran flag."""
    what = _describe(archive, member)
    if member not in archive.namelist():
        raise SourceError(f"{archive.filename} has no array {member.removesuffix('.npy')!r}")
    stream = archive.open(member)
    try:
        version = np.lib.format.read_magic(stream)
        reader = _HEADERS.get(version)
        if reader is None:
            raise ValueError(f"version {version} of the npy format is not read here")
        shape, fortran, dtype = reader(stream)
    except (zipfile.BadZipFile, zlib.error):
        stream.close()
        raise
    except Exception as error:
        # numpy tokenises and evaluates the header as a literal, which fails in many ways.
        stream.close()
        raise SourceError(f"{what} has no valid npy header: {' '.join(str(error).split())[:200]}") from error
    if dtype.hasobject:
        stream.close()
        raise SourceError(f"{what} holds pickled objects, which are never loaded")
    return stream, shape, dtype, fortran
