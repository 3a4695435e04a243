"""Arrays out of zip archives (the ``.npz`` format), without unpickling and without trusting a header."""

from __future__ import annotations

import errno
import io
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import numpy as np

from isa.data.base import SourceError, SourceMissingError

__all__ = ["open_archive", "read_array", "read_blocks", "read_header", "read_member", "read_shape"]

# Deflate cannot shrink anything further than this; what claims more holds less than it says.
_DEFLATE_LIMIT = 1032
_BLOCK_BYTES = 1 << 22
# Of a file, at once from it, and of the header of an array: more than any data set here has.
_MOST_FILE, _MOST_READ, _MOST_HEADER = 1 << 32, 1 << 26, 10_000
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class _File(io.BufferedReader):
    """A file of which no more is read at once than any array here needs, whatever the file claims of itself."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > _MOST_READ:
            raise zipfile.BadZipFile(f"it claims a part of {size:,} bytes")
        return super().read(size)


@contextmanager
def open_archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive; what proves broken while it is read becomes a :class:`SourceError` that names the file."""
    if not path.exists():
        raise SourceMissingError(f"{path} does not exist")
    if not path.is_file():
        raise SourceError(f"{path} is not a file")
    if path.stat().st_size > _MOST_FILE:
        raise SourceError(f"{path} must have at most {_MOST_FILE:,} bytes, it has {path.stat().st_size:,}")
    broken = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OverflowError, struct.error)
    try:
        with _File(io.FileIO(path)) as file, zipfile.ZipFile(file) as archive:
            archive.filename = str(path)
            yield archive
    except SourceError:
        raise
    except (*broken, UnicodeDecodeError) as error:
        raise SourceError(f"{path} is not a readable zip archive, or is truncated: {error}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a directory that points to before the file's start
            raise
        raise SourceError(f"{path} is not a readable zip archive, or is truncated: {error}") from error


def read_member(archive: zipfile.ZipFile, member: str, most: int) -> bytes:
    """Content of a member that has at most so many bytes.

    Raises
    ------
    SourceError
        Where it is missing or longer.
    """
    with _open(archive, member, member) as stream:
        held = stream.read(most + 1)
    if len(held) > most:
        raise SourceError(f"{member!r} in {archive.filename} must have at most {most:,} bytes")
    return held


def read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool]:
    """Read the header of an array in numpy's format: its shape, its type, and whether it is in Fortran order.

    Raises
    ------
    ValueError
        Where it is none, or longer than any header here; no more than that is read.
    """

    def read(size: int) -> bytes:
        if size > _MOST_HEADER:
            raise ValueError(f"it claims {size:,} bytes")
        return stream.read(size)

    bounded = SimpleNamespace(read=read)
    try:
        version = np.lib.format.read_magic(bounded)
        if version not in _HEADERS:
            raise ValueError(f"version {version} of the npy format is not read here")
        shape, fortran, dtype = _HEADERS[version](bounded)
    except (zipfile.BadZipFile, zlib.error):
        raise
    except Exception as error:  # numpy tokenises and evaluates the header as a literal, which fails in many ways
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"its shape is {str(shape)[:100]}")
    return shape, dtype, fortran


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
        rows = max(1, _BLOCK_BYTES // max(row_bytes, 1))
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


def _open(archive: zipfile.ZipFile, member: str, name: str) -> IO[bytes]:
    """Stream of a member that is stored or deflated: of other methods a few bytes may give gigabytes at once."""
    if member not in archive.namelist():
        raise SourceError(f"{archive.filename} has no {name}")
    if archive.getinfo(member).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise SourceError(f"{archive.filename} must be stored or deflated, and its {name} is compressed otherwise")
    return archive.open(member)


def _open_array(archive: zipfile.ZipFile, member: str) -> tuple[IO[bytes], tuple[int, ...], np.dtype, bool]:
    """Stream of a member behind its header, with the header's shape, type and Fortran flag."""
    stream = _open(archive, member, f"array {member.removesuffix('.npy')!r}")
    try:
        shape, dtype, fortran = read_header(stream)
    except ValueError as error:
        stream.close()
        raise SourceError(f"{_describe(archive, member)} has no valid npy header: {error}") from error
    except BaseException:
        stream.close()
        raise
    if dtype.hasobject:
        stream.close()
        raise SourceError(f"{_describe(archive, member)} holds pickled objects, which are never loaded")
    return stream, shape, dtype, fortran
