"""The data sets, each as a :class:`FactorDataset`: a grid of factors with images, whole or by index.

======== =========================================== ==========================================================
name     factors                                     without a source
======== =========================================== ==========================================================
dsprites shape, scale, orientation, x, y             re-rendered, pixel-exact on every real image checked
cars3d   car, elevation, azimuth                     a procedural car, in place of the published renderings
faces3d  identity, azimuth, elevation, lighting      a procedural head, in place of the licensed face model
======== =========================================== ==========================================================
"""

from __future__ import annotations

import os
from importlib import import_module

import torch

from isa.data.base import (
    DataError,
    Factor,
    FactorDataset,
    ImageIndexError,
    Provenance,
    SourceError,
    SourceMissingError,
    UnknownFactorError,
)
from isa.data.cache import CacheWarning

__all__ = [
    "NAMES",
    "CacheWarning",
    "DataError",
    "Factor",
    "FactorDataset",
    "ImageIndexError",
    "Provenance",
    "SourceError",
    "SourceMissingError",
    "UnknownFactorError",
    "load",
]

NAMES = ("dsprites", "faces3d", "cars3d")


def load(
    name: str,
    source: str | os.PathLike[str] | None = None,
    *,
    device: torch.device | str = "cpu",
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> FactorDataset:
    """Load a data set.

    Parameters
    ----------
    name : {"dsprites", "faces3d", "cars3d"}
        Which.
    source : path, optional
        The published data: the ``.npz`` file of dSprites, the folder of 183 ``.mat`` files of cars3d, the tensor of
        3D faces. It is checked before it is used, and nothing in it is unpickled or executed. Without it dSprites is
        re-rendered, and the other two are procedural stand-ins (``procedural`` is true, and the title says so).
    device : torch.device or str
        Where the images live and batches are made.
    cache_dir : path, optional
        Where images that take long to make are kept; default is the environment variable ``ISA_CACHE_DIR``, then the
        platform's convention.
    progress : bool
        Show a progress bar on stderr where images are drawn or reduced.

    Returns
    -------
    FactorDataset

    Raises
    ------
    ValueError
        Where ``name`` is none of the data sets.
    SourceError
        Where ``source`` is not what it should be (also a ``ValueError``; a missing one is also a
        ``FileNotFoundError``).

    Warns
    -----
    CacheWarning
        Where the cache cannot be used; the images are then made again.
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    if source is not None and not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source must be a path, got {source!r}")
    module = import_module(f"isa.data.{name}")
    dataset = module.load(source, cache_dir=cache_dir, progress=progress)
    return dataset if torch.device(device).type == "cpu" else dataset.to(device)
