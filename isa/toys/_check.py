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
        raise TypeError(f"{name} must be a real number or an array of them, got {value!r}") from None
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, but it contains NaN or infinity")
    return array


def positive(name: str, value: float) -> float:
    """Return a positive number."""
    number = real(name, value)
    if number.ndim or number <= 0:
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(number)


def whole(name: str, value: float) -> int:
    """Return a whole number of at least 1."""
    if (number := positive(name, value)) % 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(number)


def matrix(name: str, value: ArrayLike, columns: int | None = None) -> Array:
    """Return a matrix that is not empty, with a certain number of columns if one is given."""
    array = real(name, value)
    if array.ndim != 2 or array.size == 0 or array.shape[1] != (columns or array.shape[1]):
        raise ValueError(f"{name} must be a matrix with {columns or 'one or more'} columns, got shape {array.shape}")
    return array


def noise(noise_var: ArrayLike, n_observed: int) -> Array:
    """Return the noise variances, the diagonal of D, shape (L,)."""
    noise = real("noise_var", noise_var)
    if noise.shape not in ((), (n_observed,)) or (noise <= 0).any():
        raise ValueError(f"noise_var must be a positive number or {n_observed} of them, got {noise_var!r}")
    return np.broadcast_to(noise, n_observed)


def linear_model(x: ArrayLike, W: ArrayLike, noise_var: ArrayLike) -> tuple[Array, Array, Array]:
    """Return data (N, L), weights (L, K) and noise variances (L,)."""
    W = matrix("W", W)
    return matrix("x", x, len(W)), W, noise(noise_var, len(W))
