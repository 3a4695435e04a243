"""Files that appear whole or not at all, and are still there when the power has failed."""

from __future__ import annotations

import csv
import errno
import io
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

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
