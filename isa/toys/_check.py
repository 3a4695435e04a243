"""Argument checks that the toy models share."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def real(name: str, value: ArrayLike) -> Array:
    """Return a new array of finite numbers."""
    try:
        array = np.array(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a real number or an array of them, got {type(value).__name__}") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, but it contains NaN or infinity")
    return array


def positive(name: str, value: float) -> float:
    """Return a positive, finite number."""
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not (np.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value}")
    return float(value)


def whole(name: str, value: float) -> int:
    """Return a whole number of at least 1."""
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not value >= 1 or value % 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value}")
    return int(value)


def noise(noise_var: ArrayLike, n_observed: int) -> Array:
    """Return the noise variances, the diagonal of D, shape (L,)."""
    noise = real("noise_var", noise_var)
    if noise.shape not in ((), (n_observed,)):
        raise ValueError(f"noise_var must be a number or have the shape ({n_observed},), got shape {noise.shape}")
    if (noise <= 0).any():
        raise ValueError(f"noise_var must be positive, got {noise.min():g}: without noise the likelihood is unbounded")
    return np.broadcast_to(noise, (n_observed,))


def matrix(name: str, value: ArrayLike, columns: int | None = None) -> Array:
    """Return a matrix with at least one entry and, where given, a certain number of columns."""
    array = real(name, value)
    if array.ndim != 2 or array.size == 0 or array.shape[1] != (columns or array.shape[1]):
        wanted = "two dimensions" if columns is None else f"the shape (N, {columns})"
        raise ValueError(f"{name} must have {wanted} and at least one entry, got shape {array.shape}")
    return array
