"""The data sets, each a :class:`FactorDataset`: a grid of factors with one image for every combination.

======== =========================================== ==========================================================
name     factors                                     without a source
======== =========================================== ==========================================================
dsprites shape, scale, orientation, x, y             re-rendered, pixel-exact on every real image checked
faces3d  identity, azimuth, elevation, lighting      procedural heads, in place of the licensed face model
cars3d   car, elevation, azimuth                     not available: needs the published files
======== =========================================== ==========================================================
"""

from __future__ import annotations

import os
from importlib import import_module

import torch

from isa.data.base import Factor, FactorDataset, Provenance, SourceError, SourceMissingError, expand
from isa.data.cache import CacheWarning

__all__ = ["NAMES", "CacheWarning", "Factor", "FactorDataset", "Provenance"]
__all__ += ["SourceError", "SourceMissingError", "expand", "load"]

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
    name, source
        ``"dsprites"``, ``"faces3d"`` or ``"cars3d"``, and the path of the published data: the ``.npz`` of dSprites,
        the tensor of 3D faces, the folder of 183 ``.mat`` files of cars3d. They are checked, and nothing in them is
        unpickled or executed. Without a source, dSprites is re-rendered, and the faces are a procedural stand-in
        (``procedural`` is true, and the title says so).
    device, progress
        Device of the images and of batches; show a progress bar while images are drawn or read.
    cache_dir
        Folder of images that take long to make; by default ``$ISA_CACHE_DIR``, or else the platform's cache directory.

    Raises
    ------
    SourceError
        If ``source`` is not the published data (also a ``ValueError``, and a ``FileNotFoundError`` if it is missing).
    """
    if name not in NAMES:
        raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
    return import_module(f"isa.data.{name}").load(source, cache_dir=cache_dir, progress=progress).to(device)
