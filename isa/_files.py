"""Atomic writing, and safetensors files with JSON metadata."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save
from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint or a model cannot be read, or is not that of the run it is named after."""


def write_atomically(path: Path, write: Callable[[str], object]) -> None:
    """Call ``write`` with the name of a temporary file, and rename that to ``path`` once it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        write(str(temporary))
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Write tensors and JSON metadata as a safetensors file, atomically."""
    text = {name: json.dumps(value) for name, value in metadata.items()}
    content = save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, text)
    write_atomically(path, lambda temporary: Path(temporary).write_bytes(content))


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safetensors.safe_open(path, "pt") as file:
            yield file
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata of a file that :func:`save_tensors` wrote."""
    with _open(path) as file:
        return {name: json.loads(text) for name, text in (file.metadata() or {}).items()}


def read_tensors(path: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors with the names, shapes and types of ``like``."""
    with _open(path) as file:
        tensors = {name: file.get_tensor(name) for name in like}
        for name, value in like.items():
            if (tensors[name].dtype, tensors[name].shape) != (value.dtype, value.shape):
                raise ValueError(f"{name} must be {value.dtype} {tuple(value.shape)}")
    return tensors
