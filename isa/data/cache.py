"""Arrays that take long to make, kept on disk between processes."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from isa._files import write_atomically
from isa.data.base import StrPath

__all__ = ["CacheWarning", "cached_array", "directory"]


class CacheWarning(UserWarning):
    """The cache cannot be written; the next process will make the array again."""


def directory(cache_dir: StrPath | None = None) -> Path:
    """Return ``cache_dir``, else ``$ISA_CACHE_DIR``, else the platform's directory (``~/.cache/isa`` on Linux)."""
    if named := cache_dir or os.environ.get("ISA_CACHE_DIR"):
        return Path(os.path.expanduser(named))
    import platformdirs  # not needed on a compute node, where the directory is named

    return Path(platformdirs.user_cache_dir("isa", appauthor=False))


def cached_array(
    name: str, key: str, build: Callable[[], np.ndarray], *, shape: tuple[int, ...], cache_dir: StrPath | None = None
) -> np.ndarray:
    """Return the ``uint8`` array of the file ``{name}-{key}.npy`` in :func:`directory`, or build and store it.

    The key must change with everything on which the array depends. A damaged file is replaced.
    """
    path = directory(cache_dir) / f"{name}-{key}.npy"
    try:
        array = np.load(path, allow_pickle=False)
        if (array.shape, array.dtype) == (shape, np.uint8):
            return array
    except (OSError, ValueError, EOFError):  # it is missing or damaged
        pass
    array, content = build(), io.BytesIO()
    try:
        np.save(content, array)
        write_atomically(path, content.getbuffer())
    except OSError as error:
        message = f"cannot write the cache {path} ({error}); continuing without it. ISA_CACHE_DIR sets another folder"
        warnings.warn(message, CacheWarning, stacklevel=2)
    return array
