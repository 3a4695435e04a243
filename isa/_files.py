"""Files that appear whole or not at all, and are still there when the power has failed."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save_file
from torch import Tensor

_STALE_SECONDS = 86_400.0
_TEMPORARY = re.compile(r"\..+\.\d+-[0-9a-f]{8}")
"""Names of files that are being written: hidden, with the writer's process and a random number."""
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM)
"""What file systems, and folders that may be written and not read, answer where a folder cannot be synced."""


def write_atomically(path: Path, write: Callable[[str], object]) -> None:
    """Let ``write`` make a file beside ``path``, and put it in its place once it is whole and on the disk.

    When this returns, the file is there to stay: what relies on it may be written next, what it replaces removed.

    Raises
    ------
    OSError
        If the file cannot be written, which it names; what was in its place is left as it was.
    """
    _make_folder(path.parent)
    # A name that no other writer has, on whatever machine that sees the folder.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        write(str(temporary))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):  # which would hide why the file cannot be written
            temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a table of comma-separated values whole or not at all, with a header and lines that end alike everywhere.

    Raises
    ------
    OSError
        As :func:`write_atomically`.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, lambda temporary: Path(temporary).write_text(text.getvalue(), "utf-8", newline=""))


def is_special(path: Path) -> bool:
    """Whether a path is there and neither a file nor a folder, as a pipe is, whose reader would wait for ever."""
    return path.exists() and not (path.is_file() or path.is_dir())


def remove_leftovers(folder: Path) -> None:
    """Remove from a folder what writers that were killed left there a day ago or earlier."""
    for leftover in folder.glob(".*"):
        if not _TEMPORARY.fullmatch(leftover.name):
            continue
        with suppress(OSError):  # what is gone is gone, and what may not be removed does no harm
            if time.time() - leftover.stat().st_mtime > _STALE_SECONDS:
                leftover.unlink()


def _make_folder(folder: Path) -> None:
    """Make a folder, with those above it, so that it stays."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk; a file's own sync does not do so for its name."""
    if os.name == "nt":  # where folders cannot be opened, and names are written at once
        return
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        if error.errno in _NO_SYNC:
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)


class CheckpointError(ValueError):
    """A checkpoint or a model cannot be read, or does not belong to the run that it is named after."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Write tensors and JSON metadata as a safetensors file, atomically."""
    text = {name: json.dumps(value) for name, value in metadata.items()}
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}

    def write(temporary: str) -> None:
        try:
            save_file(contiguous, temporary, metadata=text)
        except safetensors.SafetensorError as error:  # also for a full disk
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from None

    write_atomically(path, write)


_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, safetensors.SafetensorError)


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a file that :func:`save_tensors` wrote."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        with safetensors.safe_open(path, "pt") as file:
            return {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
    except _UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def read_tensors(path: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the names, shapes and types of ``like``."""
    found = {}
    try:
        with safetensors.safe_open(path, "pt") as file:
            for name, value in like.items():
                shape = tuple(file.get_slice(name).get_shape())
                if shape != tuple(value.shape):  # before anything is read
                    raise ValueError(f"{name} must have shape {tuple(value.shape)}, got {shape}")
                found[name] = file.get_tensor(name)
                if found[name].dtype != value.dtype:
                    raise ValueError(f"{name} must be {value.dtype}, got {found[name].dtype}")
    except _UNREADABLE as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    return found
