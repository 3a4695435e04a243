"""Arrays that take long to make, kept on disk between processes."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from isa.data.base import StrPath, expand

__all__ = ["CacheWarning", "cached_array", "directory"]


class CacheWarning(UserWarning):
    """The cache cannot be used, and the array is made again."""


def directory(cache_dir: StrPath | None = None) -> Path:
    """Return ``cache_dir``, else ``$ISA_CACHE_DIR``, else the platform's directory (``~/.cache/isa`` on Linux)."""
    if named := cache_dir or os.environ.get("ISA_CACHE_DIR"):
        return expand(named)
    import platformdirs  # not needed on a compute node, where the directory is named

    return Path(platformdirs.user_cache_dir("isa", appauthor=False))


def cached_array(
    name: str, key: str, build: Callable[[], np.ndarray], *, shape: tuple[int, ...], cache_dir: StrPath | None = None
) -> np.ndarray:
    """Return the ``uint8`` array of the file ``{name}-{key}.npy`` in :func:`directory`, or build and store it.

    The key must change with whatever the array depends on. There is a :class:`CacheWarning` if the file is damaged, or
    cannot be read or written.
    """
    path = directory(cache_dir) / f"{name}-{key}.npy"
    try:
        array = np.load(path, allow_pickle=False)
        if array.shape != shape or array.dtype != np.uint8:
            raise ValueError(f"it has {array.dtype} {array.shape}")
        return array
    except (ValueError, EOFError) as error:
        _warn("read", path, error)
    except OSError:  # it is missing; if the folder cannot be used, writing will fail with a warning
        pass
    array = build()
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")  # renamed when whole: readers see all or nothing
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(temporary, array)
        temporary.replace(path)
    except OSError as error:
        _warn("write", path, error)
        with suppress(OSError):
            temporary.unlink()
    return array


def _warn(verb: str, path: Path, reason: object) -> None:
    message = f"cannot {verb} the cache {path} ({reason}); continuing without it. ISA_CACHE_DIR names another directory"
    warnings.warn(message, CacheWarning, stacklevel=3)
