"""A data set as a grid of factors: the one shape that every data set of this package has.

A :class:`FactorDataset` holds the image of every combination of its generative factors, in C order (the last factor
runs fastest), in one ``uint8`` tensor. A batch is a gather and a conversion on whatever device that tensor lives.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "DataError",
    "Factor",
    "FactorDataset",
    "ImageIndexError",
    "Provenance",
    "SourceError",
    "SourceMissingError",
    "UnknownFactorError",
    "expand",
]

_UNPACKED_ROWS = 32


class DataError(ValueError):
    """Something is wrong with what a data set was asked for, or with the files it was asked to read."""


class SourceError(DataError):
    """A source is not the file, or the folder, that the data set is published as."""


class SourceMissingError(SourceError, FileNotFoundError):
    """A source, or one of its files, does not exist."""

    def __str__(self) -> str:
        return str(self.args[0])


class UnknownFactorError(DataError, KeyError):
    """A factor's name is not one of the data set's."""

    def __str__(self) -> str:
        return str(self.args[0])


class ImageIndexError(DataError, IndexError):
    """An index lies outside the data set, or outside a factor's values."""


def expand(path: str | os.PathLike[str]) -> Path:
    """The path with a home directory at its start put in.

    Raises
    ------
    SourceError
        If that is the home directory of nobody.
    """
    try:
        return Path(path).expanduser()
    except (RuntimeError, ValueError):
        raise SourceError(f"{path} begins with the home directory of nobody that there is") from None


@dataclass(frozen=True)
class Factor:
    """One generative factor.

    Parameters
    ----------
    name : str
        What :meth:`FactorDataset.index` calls it.
    values : sequence
        The value behind every factor index, one-dimensional: numbers in ``unit``, or labels.
    unit : str
        Unit of the numbers, empty where they are labels or plain counts.
    """

    name: str
    values: np.ndarray
    unit: str = ""

    def __post_init__(self) -> None:
        values = np.array(self.values)
        if values.ndim != 1 or values.size == 0:
            raise ValueError(
                f"values of the factor {self.name!r} must be one-dimensional and not empty, got shape {values.shape}"
            )
        values.flags.writeable = False
        object.__setattr__(self, "values", values)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(self.values.size)


@dataclass(frozen=True)
class Provenance:
    """Where the images come from and what may be done with them.

    Parameters
    ----------
    source : str
        Path of the file or folder that was read, or how the images were drawn.
    licence : str
        Licence of the images.
    citation : str
        Whom to cite.
    rendering : str
        One sentence: what is drawn or reduced here, and how exactly it agrees with the published data.
    procedural : bool
        True for a stand-in drawn by this package. It is then to be labelled wherever its images are shown.
    source_checksum : str
        Checksum of the source as ``algorithm:hex``; empty where nothing was read.
    """

    source: str
    licence: str
    citation: str
    rendering: str
    procedural: bool
    source_checksum: str = ""


def choose(name: str, factors: Sequence[Factor], fixed: Mapping[str, int | Sequence[int]]) -> list[Tensor]:
    """Factor indices chosen of every factor: those fixed, else all; the errors are :meth:`FactorDataset.index`'s."""
    names = [factor.name for factor in factors]
    for key in fixed:
        if key not in names:
            raise UnknownFactorError(f"{key!r} is no factor of {name}: its factors are {', '.join(names)}")
    return [
        _as_index(fixed[factor.name], f"index of the factor {factor.name!r}", factor.size).cpu()
        if factor.name in fixed
        else torch.arange(factor.size)
        for factor in factors
    ]


def restrict_factors(factors: Sequence[Factor], chosen: Sequence[Tensor]) -> list[Factor]:
    """Factors with the values chosen only."""
    return [Factor(f.name, f.values[c.numpy()], f.unit) for f, c in zip(factors, chosen, strict=True)]


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uninitialised CPU tensor in memory that numpy allocates.

    numpy asks Linux for huge pages and torch does not: a batch's first touch then costs a fifth of the time.
    """
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return torch.from_numpy(raw[start : start + size]).view(dtype).view(shape)


def _unpack_into(batch: Tensor, rows: np.ndarray) -> None:
    """Bits ``(B, bytes)`` to numbers 0 and 1 ``(B, 8 * bytes)`` on the CPU, in blocks that stay in its cache."""
    native = None if batch.dtype == torch.bfloat16 else batch.numpy()
    for low in range(0, len(rows), _UNPACKED_ROWS):
        bits = np.unpackbits(rows[low : low + _UNPACKED_ROWS], axis=1)
        if native is None:
            batch[low : low + _UNPACKED_ROWS].copy_(torch.from_numpy(bits))
        else:
            native[low : low + _UNPACKED_ROWS] = bits


class FactorDataset:
    """Images of every combination of some factors, whole or by index.

    Parameters
    ----------
    name : str
        Name under which :func:`isa.data.load` knows it.
    title : str
        Name for readers; a procedural stand-in says so here.
    factors : sequence of Factor
        The factors, slowest first.
    storage : Tensor
        ``uint8``. With ``packed=False`` of shape ``(N, C, H, W)``, grey levels 0 to 255. With ``packed=True`` of shape
        ``(N, C * H * W / 8)``, one bit a pixel in the order of :func:`numpy.packbits`. ``N`` is the
        product of the factors' sizes.
    provenance : Provenance
        Source, licence and citation.
    image_shape : tuple of int
        ``(C, H, W)``.
    packed : bool
        Whether ``storage`` holds bits.

    Raises
    ------
    ValueError
        Where the storage does not fit the factors.
    """

    def __init__(
        self,
        name: str,
        title: str,
        factors: Sequence[Factor],
        storage: Tensor,
        provenance: Provenance,
        *,
        image_shape: tuple[int, int, int],
        packed: bool = False,
    ) -> None:
        self.name = name
        self.title = title
        self.factors_info = tuple(factors)
        self.provenance = provenance
        self.image_shape = tuple(image_shape)
        self.packed = packed
        self.factor_names = tuple(factor.name for factor in factors)
        self.factor_sizes = tuple(factor.size for factor in factors)
        if len(set(self.factor_names)) != len(self.factor_names):
            raise ValueError(f"factors must have different names, got {', '.join(self.factor_names)}")
        n = math.prod(self.factor_sizes)
        pixels = math.prod(self.image_shape)
        expected = (n, pixels // 8) if packed else (n, *self.image_shape)
        if storage.dtype != torch.uint8 or tuple(storage.shape) != expected:
            raise ValueError(
                f"storage must be uint8 of shape {expected}, got {storage.dtype} of shape {tuple(storage.shape)}"
            )
        if packed and pixels % 8:
            raise ValueError(f"packed images must have a multiple of 8 pixels, got {pixels}")
        self.storage = storage.contiguous()
        self._strides = tuple(math.prod(self.factor_sizes[i + 1 :]) for i in range(len(self.factor_sizes)))
        self._tables: dict[torch.dtype, Tensor] = {}
        self._checksum: str | None = None

    @classmethod
    def from_array(
        cls, name: str, title: str, factors: Sequence[Factor], images: np.ndarray, provenance: Provenance
    ) -> FactorDataset:
        """Data set of a whole grid of images.

        Parameters
        ----------
        images : ndarray
            ``uint8`` of shape ``(*factor_sizes, H, W)`` (grey) or ``(*factor_sizes, H, W, C)``.

        Raises
        ------
        ValueError
            Where the array does not fit the factors.
        """
        sizes = tuple(factor.size for factor in factors)
        rest = images.shape[len(sizes) :]
        if images.dtype != np.uint8 or images.shape[: len(sizes)] != sizes or len(rest) not in (2, 3):
            raise ValueError(
                f"images must be uint8 of shape {(*sizes, 'H', 'W')} or {(*sizes, 'H', 'W', 'C')}, "
                f"got {images.dtype} of shape {images.shape}"
            )
        height, width = rest[:2]
        channels = rest[2] if len(rest) == 3 else 1
        flat = images.reshape(-1, height, width, channels)
        storage = np.ascontiguousarray(np.moveaxis(flat, 3, 1))
        return cls(name, title, factors, torch.from_numpy(storage), provenance, image_shape=(channels, height, width))

    def __len__(self) -> int:
        return self.storage.shape[0]

    def __repr__(self) -> str:
        grid = " x ".join(f"{size} {name}" for name, size in zip(self.factor_names, self.factor_sizes, strict=True))
        return f"FactorDataset({self.title}: {grid} = {len(self):,} images of {self.image_shape}, on {self.device})"

    @property
    def values(self) -> Mapping[str, np.ndarray]:
        """Value behind every factor index, by factor name (read-only arrays, in :attr:`units`)."""
        return MappingProxyType({factor.name: factor.values for factor in self.factors_info})

    @property
    def units(self) -> Mapping[str, str]:
        """Unit of every factor's values, by factor name."""
        return MappingProxyType({factor.name: factor.unit for factor in self.factors_info})

    @property
    def device(self) -> torch.device:
        """Device on which the images live and on which batches are made."""
        return self.storage.device

    @property
    def nbytes(self) -> int:
        """Bytes that the images take in memory."""
        return self.storage.numel()

    @property
    def licence(self) -> str:
        """Licence of the images."""
        return self.provenance.licence

    @property
    def citation(self) -> str:
        """Whom to cite."""
        return self.provenance.citation

    @property
    def procedural(self) -> bool:
        """True where the images are this package's own stand-in and not the published ones."""
        return self.provenance.procedural

    @property
    def checksum(self) -> str:
        """SHA-256 of the images as they lie in memory, in hexadecimal; computed once."""
        if self._checksum is None:
            digest = hashlib.sha256()
            for block in self.storage.split(65536):
                digest.update(block.cpu().numpy().data)
            self._checksum = digest.hexdigest()
        return self._checksum

    def to(self, device: torch.device | str) -> FactorDataset:
        """Return the data set with its images on ``device``: itself if they are there already."""
        if self.device == torch.device(device):
            return self
        moved = FactorDataset(
            self.name,
            self.title,
            self.factors_info,
            self.storage.to(device),
            self.provenance,
            image_shape=self.image_shape,
            packed=self.packed,
        )
        moved._checksum = self._checksum
        return moved

    def index(self, **fixed: int | Sequence[int]) -> Tensor:
        """Flat indices of the images in which some factors are fixed.

        Parameters
        ----------
        **fixed
            Factor index, or a sequence of them, by factor name. The factors not named take all of their values.

        Returns
        -------
        Tensor
            ``int64`` on the CPU: every combination in C order, a sequence's values in the order given.

        Raises
        ------
        UnknownFactorError
            Where a name is not a factor's (also a ``KeyError`` and a ``ValueError``).
        ImageIndexError
            Where an index is outside the factor's values (also an ``IndexError`` and a ``ValueError``).
        TypeError
            Where an index is no integer.
        """
        flat = torch.zeros(1, dtype=torch.int64)
        for chosen, stride in zip(choose(self.name, self.factors_info, fixed), self._strides, strict=True):
            flat = (flat[:, None] + stride * chosen[None, :]).reshape(-1)
        return flat

    def restrict(self, **fixed: int | Sequence[int]) -> FactorDataset:
        """Return the images that :meth:`index` selects as a data set of their own, over the grid of the values chosen.

        Raises the errors of :meth:`index`.
        """
        factors = restrict_factors(self.factors_info, choose(self.name, self.factors_info, fixed))
        rows = self.storage[self.index(**fixed).to(self.device)]
        return FactorDataset(
            self.name,
            self.title,
            factors,
            rows,
            self.provenance,
            image_shape=self.image_shape,
            packed=self.packed,
        )

    def traversal(self, name: str, steps: int | None = None, **fixed: int) -> Tensor:
        """Flat indices along one factor, the others held.

        Parameters
        ----------
        name : str
            The factor that varies.
        steps : int, optional
            Number of its values, evenly spaced from the first to the last; all by default, or where it has fewer.
        **fixed
            Factor index by factor name; a factor not named is held at the middle of its values.

        Returns
        -------
        Tensor
            ``int64`` on the CPU.

        Raises the errors of :meth:`index`.
        """
        choose(self.name, self.factors_info, {name: 0})
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        size = self.factor_sizes[self.factor_names.index(name)]
        count = size if steps is None else min(steps, size)
        held = {other: n // 2 for other, n in zip(self.factor_names, self.factor_sizes, strict=True)}
        values = np.rint(np.linspace(0, size - 1, count)).astype(np.int64) if count > 1 else np.array([size // 2])
        return self.index(**{**held, **fixed, name: values})

    def factors(self, index: int | Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """Factor indices of images: ``int64`` of shape ``(B, F)``, on the device of ``index``.

        Raises the errors of :meth:`images`.
        """
        flat = _as_index(index, "index", len(self))
        columns = [(flat // stride) % size for size, stride in zip(self.factor_sizes, self._strides, strict=True)]
        return torch.stack(columns, dim=-1)

    def images(
        self,
        index: int | Sequence[int] | np.ndarray | Tensor,
        *,
        dtype: torch.dtype = torch.float32,
        check: bool = True,
    ) -> Tensor:
        """Images by flat index.

        Parameters
        ----------
        index : int, sequence of int, ndarray or Tensor
            Flat indices, ``B`` of them. An integer is a batch of one.
        dtype : torch.dtype
            Floating-point type of the result.
        check : bool
            Whether indices that already are on an accelerator are checked, which makes the host wait for the device.
            Indices on the CPU always are. What an index outside the data set does unchecked is for the device to say.

        Returns
        -------
        Tensor
            ``(B, C, H, W)`` in [0, 1] on :attr:`device`.

        Raises
        ------
        TypeError
            Where ``index`` holds something else than integers.
        ImageIndexError
            Where an index is negative or not below ``len(self)`` (also an ``IndexError`` and a ``ValueError``).
        """
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating-point type, got {dtype}")
        flat = _as_index(index, "index", len(self), check=check).to(self.device, non_blocking=True)
        rows = self.storage.index_select(0, flat)
        if self.device.type == "cpu":
            batch = _empty((len(rows), *self.image_shape), dtype)
            if self.packed:
                _unpack_into(batch.flatten(1), rows.numpy())
                return batch
            return torch.div(rows, 255, out=batch)
        looked_up = self._unpack(rows, dtype) if self.packed else self._grey(rows, dtype)
        return looked_up.view(-1, *self.image_shape)

    def _unpack(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Bits ``(B, bytes)`` to numbers 0 and 1 ``(B, 8 * bytes)``, by a table of the eight bits of every byte."""
        table = self._tables.get(dtype)
        if table is None:
            bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
            table = self._tables[dtype] = torch.from_numpy(bits).to(device=self.device, dtype=dtype)
        return table.index_select(0, rows.view(-1).int()).view(rows.shape[0], -1)

    def _grey(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """Bytes to numbers from 0 to 1 by a table, since a device's division need not round as the processor's does."""
        table = self._tables.get(dtype)
        if table is None:
            levels = torch.div(torch.arange(256, dtype=torch.uint8), 255, out=torch.empty(256, dtype=dtype))
            table = self._tables[dtype] = levels.to(self.device)
        return table.index_select(0, rows.reshape(-1).int())

    def epoch(self, number: int = 0, *, seed: int = 0) -> Tensor:
        """Order of the images in one epoch: a permutation of ``0 .. N - 1``, ``int64`` ``(N,)`` on :attr:`device`.

        It depends on ``(seed, number)`` alone: not on the device, on earlier epochs, or on the global random state.
        """
        for name, value in (("number", number), ("seed", seed)):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        state = np.random.SeedSequence([int(seed), int(number)]).generate_state(2, np.uint32)
        generator = torch.Generator().manual_seed(int(state[0]) << 31 ^ int(state[1]))
        return torch.randperm(len(self), generator=generator).to(self.device)

    def batches(
        self, batch_size: int, *, seed: int = 0, epochs: int | None = 1, start: int = 0, drop_last: bool = False
    ) -> Iterator[Tensor]:
        """Flat indices of shuffled batches, epoch after epoch.

        Parameters
        ----------
        batch_size : int
            Images a batch. An epoch's last batch holds what is left, unless ``drop_last``.
        seed : int
            Seed of the shuffling; see :meth:`epoch`.
        epochs : int or None
            Number of epochs, ``None`` for no end.
        start : int
            Number of the first batch given: a run that is resumed after ``start`` steps sees the batches it would have
            seen.
        drop_last : bool
            Leave out an incomplete last batch of each epoch.

        Yields
        ------
        Tensor
            ``int64`` ``(B,)`` on :attr:`device`, for :meth:`images`.
        """
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
            raise TypeError(f"batch_size must be an integer, got {batch_size!r}")
        if not 1 <= batch_size <= len(self):
            raise ValueError(f"batch_size must be between 1 and the data set's {len(self)} images, got {batch_size}")
        if epochs is not None and epochs < 0:
            raise ValueError(f"epochs must not be negative, got {epochs}")
        if start < 0:
            raise ValueError(f"start must not be negative, got {start}")
        return self._batches(int(batch_size), seed, epochs, start, drop_last)

    def _batches(self, batch_size: int, seed: int, epochs: int | None, start: int, drop_last: bool) -> Iterator[Tensor]:
        edges = [*range(0, len(self), batch_size), len(self)]
        if drop_last and len(self) % batch_size:
            edges.pop()
        bounds = list(pairwise(edges))
        number, first = divmod(start, len(bounds))
        while epochs is None or number < epochs:
            order = self.epoch(number, seed=seed)
            for low, high in bounds[first:]:
                yield order[low:high]
            number, first = number + 1, 0


def _as_index(index: int | Sequence[int] | np.ndarray | Tensor, name: str, size: int, *, check: bool = True) -> Tensor:
    """One-dimensional ``int64`` indices below ``size``, or an error that names the argument."""
    if isinstance(index, Tensor):
        flat = index
        if flat.dtype == torch.bool or flat.is_floating_point() or flat.is_complex():
            raise TypeError(f"{name} must hold integers, got a tensor of {flat.dtype}")
    else:
        array = np.asarray(index)
        if array.size == 0 and not isinstance(index, np.ndarray):
            array = array.astype(np.int64)
        if array.dtype.kind not in "iu":
            shown = repr(index) if array.ndim == 0 else f"an array of {array.dtype}"
            raise TypeError(f"{name} must be an integer or a sequence of integers, got {shown}")
        if array.size and array.dtype.kind == "u" and array.max() >= size:
            raise ImageIndexError(f"{name} must be between 0 and {size - 1}, got {array.max()}")
        flat = torch.from_numpy(np.ascontiguousarray(array.astype(np.int64)))
    flat = flat.to(torch.int64)
    if flat.ndim == 0:
        flat = flat[None]
    if flat.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got shape {tuple(flat.shape)}")
    if flat.numel() and (check or flat.device.type == "cpu"):
        low, high = (int(bound) for bound in torch.aminmax(flat))
        if low < 0 or high >= size:
            raise ImageIndexError(f"{name} must be between 0 and {size - 1}, got {low if low < 0 else high}")
    return flat
