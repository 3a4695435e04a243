"""Atomic writing, and safetensors files with JSON metadata."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import save
from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint or a model cannot be read, or belongs to another run than its name says."""


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write a temporary file, and rename it to ``path`` once it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Write tensors and JSON metadata as a safetensors file, atomically."""
    text = {name: json.dumps(value) for name, value in metadata.items()}
    write_atomically(path, save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, text))


def read_tensors(path: Path, like: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors with the names, shapes and types of ``like``, and the metadata."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in like}
            if any((x.dtype, x.shape) != (like[name].dtype, like[name].shape) for name, x in tensors.items()):
                raise ValueError("a tensor has another shape or type")
            return tensors, {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
