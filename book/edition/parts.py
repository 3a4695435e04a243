"""Part of a data set's grid without the rest.

What a page shows of a stand-in takes seconds to draw, the whole set minutes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from isa.data import _car, _head, cars3d, faces3d, load
from isa.data.base import Factor, FactorDataset, Provenance, choose, restrict_factors

__all__ = ["part"]


def part(name: str, source: str | os.PathLike[str] | None = None, **fixed: int | Sequence[int]) -> FactorDataset:
    """Load the images of some values of some factors, as a data set of their own.

    Parameters
    ----------
    name : {"dsprites", "faces3d", "cars3d"}
        Which data set.
    source : path, optional
        See :func:`isa.data.load`. With a source the whole set is read, and the part taken from it.
    **fixed
        Factor index, or a sequence of them, by factor name; the factors not named keep all of their values.

    Returns
    -------
    FactorDataset
        The grid of the values chosen, with the same images as in the whole data set. Of a stand-in no other is drawn.

    Raises
    ------
    ValueError
        Where the name of the data set or of a factor, an index, or the source is wrong; see :func:`isa.data.load` and
        :meth:`FactorDataset.index`.
    """
    if source is not None or name not in _STAND_INS:
        return load(name, source).restrict(**fixed)
    title, factors, draw, provenance = _STAND_INS[name]
    chosen = choose(name, factors, fixed)
    images = draw(*(indices.numpy() for indices in chosen))
    return FactorDataset.from_array(name, title, restrict_factors(factors, chosen), images, provenance)


def _draw_faces(identity: np.ndarray, azimuth: np.ndarray, elevation: np.ndarray, lighting: np.ndarray) -> np.ndarray:
    coefficients = _head.draw_identities(faces3d.FACTOR_SIZES[0], faces3d._SEED)[identity]
    angles = faces3d.AZIMUTHS[azimuth], faces3d.ELEVATIONS[elevation], faces3d.LIGHTINGS[lighting]
    return faces3d.draw_faces(coefficients, *angles)


def _draw_cars(car: np.ndarray, elevation: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    parameters = _car.draw_parameters(_car.CARS, _car._SEED)
    return _car.draw_cars([parameters[number] for number in car], _car.ELEVATIONS[elevation], _car.AZIMUTHS[azimuth])


def _provenance(module: str, rendering: str) -> Provenance:
    return Provenance(f"drawn by isa.data.{module}", "MIT, as this package", "this package", rendering, procedural=True)


_STAND_INS = {
    "faces3d": (
        "3D faces (procedural stand-in)",
        (
            Factor("identity", np.arange(faces3d.FACTOR_SIZES[0])),
            Factor("azimuth", faces3d.AZIMUTHS, "degrees"),
            Factor("elevation", faces3d.ELEVATIONS, "degrees"),
            Factor("lighting", faces3d.LIGHTINGS, "degrees"),
        ),
        _draw_faces,
        _provenance(
            "faces3d",
            "A procedural head with 50 sets of coefficients, over the published grid of poses and lights. "
            "None of its images is published data.",
        ),
    ),
    "cars3d": (
        cars3d.STAND_IN_TITLE,
        cars3d.factors_of([f"parameters {number + 1}" for number in range(_car.CARS)]),
        _draw_cars,
        _provenance("cars3d", cars3d.STAND_IN_RENDERING),
    ),
}
