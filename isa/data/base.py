"""Images on a grid of generative factors, the form of every data set in this package."""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Factor", "FactorDataset", "Provenance", "SourceError", "SourceMissingError"]
__all__ += ["expand", "reading", "seeded_generator"]

StrPath = str | os.PathLike[str]
Indices = int | Sequence[int] | np.ndarray | Tensor


class SourceError(ValueError):
    """A file or folder is damaged or is not the published data."""


class SourceMissingError(SourceError, FileNotFoundError):
    """A file or folder does not exist."""


def expand(path: StrPath) -> Path:
    """Return the path of published data, which must exist, with ``~`` and environment variables expanded."""
    expanded = Path(os.path.expanduser(os.path.expandvars(path)))
    if not expanded.exists():
        unset = "; set this variable to the path of the published data" if "$" in str(expanded) else ""
        raise SourceMissingError(f"{expanded} does not exist{unset}")
    return expanded


@contextmanager
def reading(path: Path, kind: str) -> Iterator[BufferedReader]:
    """Open a file, and turn every failure to read it into a :class:`SourceError` with its name and ``kind``."""
    try:
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise SourceMissingError(f"{path} does not exist") from None
    except (SourceError, PermissionError):
        raise
    except MemoryError as error:
        raise SourceError(f"{path} needs more memory than is available") from error
    except Exception as error:  # numpy, scipy and torch raise many kinds
        raise SourceError(f"{path} is damaged, truncated or not {kind}; pickled objects are not read") from error


@dataclass(frozen=True)
class Factor:
    """One generative factor; its values are kept as a read-only array."""

    name: str
    values: np.ndarray  #: value for every factor index: numbers in ``unit``, or labels
    unit: str = ""  #: empty for labels and counts

    def __post_init__(self) -> None:
        values = np.array(self.values)
        values.flags.writeable = False
        object.__setattr__(self, "values", values)

    @property
    def size(self) -> int:
        """Number of values."""
        return self.values.size


@dataclass(frozen=True)
class Provenance:
    """Origin of the images and the terms of their use."""

    source: str  #: path that was read, or module that drew the images
    licence: str
    citation: str
    rendering: str  #: how the images were made, and how well they agree with the published ones
    procedural: bool  #: True for a stand-in drawn by this package, to be labelled wherever its images are shown
    source_checksum: str = ""  #: ``algorithm:hex`` of what was read


def seeded_generator(device: torch.device | str, *entropy: int) -> torch.Generator:
    """Return a generator of random numbers whose state is a function of some integers."""
    low, high = np.random.SeedSequence(entropy).generate_state(2, np.uint32).tolist()
    return torch.Generator(device).manual_seed(low << 31 ^ high)


def choose(name: str, factors: Sequence[Factor], fixed: Mapping[str, int | Sequence[int]]) -> list[np.ndarray]:
    """Return the chosen indices of every factor: those that are fixed, otherwise all."""
    sizes = {factor.name: factor.size for factor in factors}
    for factor, index in fixed.items():
        if factor not in sizes:
            raise ValueError(f"{name} has no factor {factor!r}: its factors are {', '.join(sizes)}")
        for value in np.ravel(index):
            if not 0 <= value < sizes[factor]:
                raise IndexError(f"{factor} must be between 0 and {sizes[factor] - 1}, got {value}")
    return [np.ravel(fixed.get(factor, range(size))) for factor, size in sizes.items()]


def restrict_factors(factors: Sequence[Factor], chosen: Sequence[np.ndarray]) -> list[Factor]:
    """Return the factors with the chosen values only."""
    return [Factor(f.name, f.values[index], f.unit) for f, index in zip(factors, chosen, strict=True)]


class FactorDataset:
    """One image for every combination of some factors in C order (the last factor varies fastest).

    ``dataset[i]`` is one image, so that a ``DataLoader`` can shuffle and batch it; :meth:`images` gathers a whole batch
    at once, on the device of the images.

    Parameters
    ----------
    name, title
        Name, as in :func:`isa.load`, and title for readers, which says if the set is a stand-in.
    factors, provenance
        The factors, slowest first; source, licence and citation.
    storage, image_shape, packed
        ``uint8``: grey levels ``(N, C, H, W)``, or if ``packed`` bits ``(N, C * H * W / 8)`` in the order of
        :func:`numpy.packbits`. ``N`` is the product of the factors' sizes, and ``image_shape`` is ``(C, H, W)``.
    """

    def __init__(
        self,
        name: str,
        title: str,
        factors: Sequence[Factor],
        storage: Tensor,
        provenance: Provenance,
        *,
        image_shape: Sequence[int],
        packed: bool = False,
    ) -> None:
        self.name, self.title, self.provenance = name, title, provenance
        self.factors_info = tuple(factors)
        self.factor_names = tuple(factor.name for factor in factors)
        self.factor_sizes = tuple(factor.size for factor in factors)
        self.image_shape, self.packed = tuple(image_shape), packed
        n = math.prod(self.factor_sizes)
        expected = (n, math.prod(image_shape) // 8) if packed else (n, *image_shape)
        if storage.dtype != torch.uint8 or storage.shape != expected:
            raise ValueError(f"storage must be uint8 of shape {expected}, got {storage.dtype} {tuple(storage.shape)}")
        self.storage = storage.contiguous()

    @classmethod
    def from_array(
        cls, name: str, title: str, factors: Sequence[Factor], images: np.ndarray, provenance: Provenance
    ) -> FactorDataset:
        """Make a data set from a whole grid of images.

        ``images`` is ``uint8`` of shape ``(*factor_sizes, H, W)``, ``(*factor_sizes, H, W, C)`` or ``(*factor_sizes,
        C, H, W)``; a last axis of 1, 3 or 4 is channels.
        """
        if images.ndim == len(factors) + 2:
            images = images[..., None]
        if images.shape[-1] in (1, 3, 4):
            images = np.moveaxis(images, -1, -3)
        storage = torch.from_numpy(np.ascontiguousarray(images.reshape(-1, *images.shape[-3:])))
        return cls(name, title, factors, storage, provenance, image_shape=storage.shape[1:])

    def __len__(self) -> int:
        return len(self.storage)

    def __getitem__(self, index: int | slice) -> Tensor:
        """Return one image ``(C, H, W)``, or with a slice a batch ``(B, C, H, W)``, as ``float32`` in [0, 1]."""
        chosen = range(len(self))[index]
        return self.images(chosen) if isinstance(index, slice) else self.images(chosen)[0]

    def __repr__(self) -> str:
        grid = " x ".join(f"{factor.size} {factor.name}" for factor in self.factors_info)
        return f"FactorDataset({self.title}: {grid} = {len(self):,} images of {self.image_shape}, on {self.device})"

    @property
    def values(self) -> dict[str, np.ndarray]:
        """Value of every factor index, by factor name (read-only arrays, in :attr:`units`)."""
        return {factor.name: factor.values for factor in self.factors_info}

    @property
    def units(self) -> dict[str, str]:
        """Unit of every factor's values, by factor name."""
        return {factor.name: factor.unit for factor in self.factors_info}

    @property
    def device(self) -> torch.device:
        """Device of the images, on which batches are made."""
        return self.storage.device

    @property
    def procedural(self) -> bool:
        """True if the images are a stand-in drawn by this package."""
        return self.provenance.procedural

    @cached_property
    def checksum(self) -> str:
        """SHA-256 of the images as stored in memory, in hexadecimal."""
        return hashlib.sha256(self.storage.cpu().numpy().data).hexdigest()

    def to(self, device: torch.device | str) -> FactorDataset:
        """Return the data set with its images on ``device``."""
        moved = copy.copy(self)
        moved.storage = self.storage.to(device)
        return moved

    def index(self, **fixed: int | Sequence[int]) -> Tensor:
        """Return the flat indices of the images for which some factors are fixed.

        ``fixed`` has an index, or a sequence of them, by factor name; the other factors take all of their values. The
        result, ``int64`` on the CPU, has every combination in C order, a sequence's values in the order given.
        """
        chosen = choose(self.name, self.factors_info, fixed)
        return torch.from_numpy(np.ravel_multi_index(np.ix_(*chosen), self.factor_sizes).ravel())

    def restrict(self, **fixed: int | Sequence[int]) -> FactorDataset:
        """Return the images that :meth:`index` selects as a data set on the grid of the chosen values."""
        factors = restrict_factors(self.factors_info, choose(self.name, self.factors_info, fixed))
        rows = self.storage[self.index(**fixed).to(self.device)]
        given = self.name, self.title, factors, rows, self.provenance
        return FactorDataset(*given, image_shape=self.image_shape, packed=self.packed)

    def traversal(self, name: str, steps: int | None = None, **fixed: int) -> Tensor:
        """Return the flat indices along the factor ``name``, the others fixed, by default in the middle.

        There are ``steps`` of them, evenly spaced from the first to the last; all by default, or if there are fewer.
        """
        middle: dict[str, Any] = {factor.name: factor.size // 2 for factor in self.factors_info}
        size = len(self.values[name])
        varied = np.rint(np.linspace(0, size - 1, min(steps or size, size))).astype(int)
        return self.index(**{**middle, **fixed, name: varied})

    def factors(self, index: Indices) -> Tensor:
        """Return the factor indices of images, ``int64`` of shape ``(B, F)`` on the device of ``index``."""
        return torch.stack(torch.unravel_index(self._flat(index), self.factor_sizes), dim=-1)

    def images(self, index: Indices, *, dtype: torch.dtype = torch.float32, check: bool = True) -> Tensor:
        """Return images by flat indices (B,), as ``(B, C, H, W)`` in [0, 1] on :attr:`device`.

        An integer gives a batch of one. With ``check=False``, indices are not checked, and the host does not wait for
        an accelerator.
        """
        rows = self.storage.index_select(0, self._flat(index, check).to(self.device, non_blocking=True))
        if rows.device.type == "cpu":  # numpy's new arrays are in huge pages, which saves half of the time
            bits = np.unpackbits(rows.numpy(), axis=1).astype(np.float32) if self.packed else None
            levels = torch.from_numpy(np.divide(rows.numpy(), np.float32(255)) if bits is None else bits)
        elif self.packed:
            shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=rows.device)
            levels = (rows.unsqueeze(-1) >> shifts) & 1
        else:  # by a tensor, since division by a number would multiply by its reciprocal
            levels = rows / torch.full((), 255.0, device=rows.device)
        return levels.to(dtype).view(-1, *self.image_shape)

    def epoch(self, number: int = 0, *, seed: int = 0) -> Tensor:
        """Return the order of the images in one epoch: a permutation of all flat indices on :attr:`device`.

        It depends on ``(seed, number)`` only: not on the device, other epochs, or the global random state.
        """
        order = torch.randperm(len(self), generator=seeded_generator("cpu", seed, number), device="cpu")
        return order.to(self.device)

    def _flat(self, index: Indices, check: bool = True) -> Tensor:
        """Return indices as a one-dimensional tensor."""
        if not isinstance(index, Tensor):
            array = np.atleast_1d(index)
            index = torch.tensor(array if array.size else array.astype(int), device="cpu")
        flat = torch.atleast_1d(index)
        if check and flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < len(self):
            raise IndexError(f"indices must be between 0 and {len(self) - 1}, got {flat.min():d} to {flat.max():d}")
        return flat
