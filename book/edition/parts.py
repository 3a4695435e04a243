"""Part of a data set's grid. The faces that a page shows take seconds to draw, the whole set minutes."""

from __future__ import annotations

import os
from collections.abc import Sequence

from isa.data import faces3d, load
from isa.data.base import FactorDataset, choose, restrict_factors

__all__ = ["part"]


def part(name: str, source: str | os.PathLike[str] | None = None, **fixed: int | Sequence[int]) -> FactorDataset:
    """Load the images of some values of some factors, as a data set on the grid of these values.

    Arguments are those of :func:`isa.load`, and an index or a sequence of indices by factor name; the factors not named
    keep all of their values. Without a source only this part of the faces is drawn.
    """
    if source is not None or name != "faces3d":
        return load(name, source).restrict(**fixed)
    chosen = choose(name, faces3d.FACTORS, fixed)
    factors = restrict_factors(faces3d.FACTORS, chosen)
    images = faces3d.draw_faces(faces3d.identities()[chosen[0]], *(factor.values for factor in factors[1:]))
    return FactorDataset.from_array(name, faces3d.TITLE, factors, images, faces3d.PROVENANCE)
