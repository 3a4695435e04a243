"""Arrays of bytes out of MATLAB files (version 5, which MATLAB writes as v6 and v7), without trusting a header.

A file is 128 bytes of description and then elements, each of a type, a size and so many bytes. An element of type 14 is
an array: its flags, dimensions, name and values are elements of their own; one of type 15 is an element compressed by
zlib. Only the heads of arrays are looked at, until one is of the size, type and name that is asked for: then its values
are read, and nothing else ever is.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from isa.data.base import SourceError

__all__ = ["Declared", "read_array", "read_declared"]

_MATRIX, _COMPRESSED = 14, 15
_INT8, _UINT8, _INT32, _UINT32 = 1, 2, 5, 6
_CLASSES = ("", "cell", "struct", "object", "char", "sparse", "double", "single", "int8", "uint8", "int16", "uint16")
_CLASSES += ("int32", "uint32", "int64", "uint64", "function", "opaque")
_LOGICAL = 0x0200
_MOST_ARRAYS, _MOST_DIMENSIONS, _MOST_NAME = 1000, 32, 255
_BLOCK_BYTES = 1 << 20


class Declared(NamedTuple):
    """What the head of an array says."""

    name: str
    kind: str
    shape: tuple[int, ...]
    place: int
    """Where its element begins in the file."""


class _Inflated(io.RawIOBase):
    """What an element compressed by zlib holds, no more of it at once than is read."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file, self.left, self.decompressor = file, size, zlib.decompressobj()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.decompressor.eof:
            held = self.decompressor.unconsumed_tail
            if not held:
                held = self.file.read(min(self.left, _BLOCK_BYTES))
                self.left -= len(held)
            found = self.decompressor.decompress(held, len(buffer))
            if found or not held:
                buffer[: len(found)] = found
                return len(found)
        return 0


def _read(stream: IO[bytes], size: int) -> bytes:
    held = stream.read(size)
    if len(held) < size:
        raise SourceError("it ends within an element")
    return held


def _tag(stream: IO[bytes], order: str) -> tuple[int, int, bytes | None]:
    """Type and size of the element that follows, and its bytes where it is a small one, which has them in its tag."""
    first = _read(stream, 4)
    kind, size = struct.unpack(f"{order}HH", first)[:: 1 if order == "<" else -1]
    if size:
        if size > 4:
            raise SourceError("it has an element of no length that can be")
        return kind, size, _read(stream, 4)[:size]
    return struct.unpack(f"{order}I", first)[0], struct.unpack(f"{order}I", _read(stream, 4))[0], None


def _small(stream: IO[bytes], order: str, kinds: tuple[int, ...], most: int) -> bytes:
    """Read an element that has one of these types and at most so many bytes."""
    kind, size, held = _tag(stream, order)
    if kind not in kinds or size > most:
        raise SourceError(f"it has an element of type {kind} and {size:,} bytes where there must be none")
    if held is None:
        held = _read(stream, size)
        _read(stream, -size % 8)
    return held


def _head(stream: IO[bytes], order: str, place: int) -> Declared:
    """Read the head of an array, behind its own tag."""
    flags = _small(stream, order, (_UINT32,), 8)
    if len(flags) != 8:
        raise SourceError("it has an array without flags")
    (flag,) = struct.unpack(f"{order}I", flags[:4])
    number = flag & 0xFF
    kind = _CLASSES[number] if 0 < number < len(_CLASSES) else f"class {number}"
    if kind == "opaque":
        return Declared("", kind, (), place)
    sizes = _small(stream, order, (_INT32,), 4 * _MOST_DIMENSIONS)
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes[: len(sizes) // 4 * 4])
    name = _small(stream, order, (_INT8,), _MOST_NAME).decode("ascii", "replace")
    return Declared(name, "logical" if flag & _LOGICAL else kind, shape, place)


def _enter(file: IO[bytes], order: str) -> tuple[IO[bytes], int] | None:
    """Stream of the array that the element at the file's place holds, behind its tag; and where the next element is."""
    kind, size, small = _tag(file, order)
    if small is not None:
        return None
    after = file.tell() + size
    stream: IO[bytes] = file
    if kind == _COMPRESSED:
        stream = io.BufferedReader(_Inflated(file, size))
        kind, _, small = _tag(stream, order)
    else:
        after += -size % 8
    if kind != _MATRIX or small is not None:
        raise SourceError(f"it has an element of type {kind} in the place of an array")
    return stream, after


def _order(file: IO[bytes]) -> str:
    description = file.read(128)
    order = {b"IM": "<", b"MI": ">"}.get(description[126:128])
    if order is None:
        raise SourceError("it does not begin as a file of version 5")
    (version,) = struct.unpack(f"{order}H", description[124:126])
    if version == 0x0200:
        raise SourceError("it is of version 7.3, which is not read here: save it with -v7")
    if version != 0x0100:
        raise SourceError(f"its version is {version:#06x}, and 0x0100 is read here")
    return order


def _refused(path: Path, error: Exception) -> SourceError:
    return SourceError(f"{path} is corrupt, truncated, or no MATLAB file: {error}")


def read_declared(path: Path) -> list[Declared]:
    """Read the heads of all arrays in a file.

    Raises
    ------
    SourceError
        Where the file is damaged, of version 7.3 or 4, or holds more than a thousand arrays.
    """
    found = []
    try:
        with path.open("rb") as file:
            order = _order(file)
            size = path.stat().st_size
            while file.tell() < size:
                place = file.tell()
                entered = _enter(file, order)
                if entered is None or len(found) == _MOST_ARRAYS:
                    raise SourceError(f"it holds more than {_MOST_ARRAYS:,} arrays, or an element that is none")
                stream, after = entered
                found.append(_head(stream, order, place))
                if after > size:
                    raise SourceError("it ends within an element")
                file.seek(after)
    except (SourceError, zlib.error, struct.error) as error:
        raise _refused(path, error) from error
    return found


def read_array(path: Path, declared: Declared) -> np.ndarray:
    """Read the values of an array of class uint8 that :func:`read_declared` has found.

    Returns
    -------
    ndarray
        ``uint8`` of its shape, in Fortran order, as MATLAB stores it.

    Raises
    ------
    SourceError
        Where the values are not as many as the shape says, or the file is damaged behind the head. Nothing is allocated
        beyond the shape, which the caller has looked at.
    """
    count = math.prod(declared.shape)
    try:
        with path.open("rb") as file:
            order = _order(file)
            file.seek(declared.place)
            stream, _ = _enter(file, order)
            _head(stream, order, declared.place)
            kind, size, small = _tag(stream, order)
            if kind != _UINT8 or size != count:
                raise SourceError(f"{declared.name!r} has {size:,} values of type {kind} in place of {count:,} bytes")
            values = np.empty(count, np.uint8)
            view = memoryview(values)
            if small is not None:
                view[:] = small
            for low in range(0, count if small is None else 0, _BLOCK_BYTES):
                part = view[low : low + _BLOCK_BYTES]
                part[:] = _read(stream, len(part))
            if isinstance(stream.raw, _Inflated):  # its checksum comes at its end
                _read(stream, -size % 8 if small is None else 0)
                if stream.read(1) or not stream.raw.decompressor.eof:
                    raise SourceError(f"{declared.name!r} does not end with its values")
    except (SourceError, zlib.error, struct.error) as error:
        raise _refused(path, error) from error
    return values.reshape(declared.shape, order="F")
