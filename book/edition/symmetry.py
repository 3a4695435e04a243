r"""Upper bounds on a representation's information about a factor, from the images themselves.

A representation is computed from the image, so its mutual information with a factor :math:`v` is at most that of
the image. Images are deterministic: the finest code is the image's class, all images of the grid with the same
pixels. The factors are uniform on their grid, so

.. math::

    I(z; v) \le I(x; v) = \log |v| - H(v \mid x),

    H(v \mid x) = -\frac1N \sum_{n=1}^N \log \frac{|\{m \sim n : v_m = v_n\}|}{|\{m \sim n\}|},

where :math:`m \sim n` are the images with the same pixels as image :math:`n`. Divided by :math:`\log |v|` this bounds
the factor's term of the mutual information gap, a difference of two mutual informations and at most the larger.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import entropy

from isa.data.base import FactorDataset

__all__ = ["PERIODS", "FactorBound", "angle_information", "factor_bounds", "image_classes", "rotation_differences"]
__all__ += ["symmetric_code"]

#: Angle in degrees after which an outline of dSprites is the same again.
PERIODS = {"square": 90.0, "ellipse": 180.0, "heart": 360.0}


def image_classes(dataset: FactorDataset) -> np.ndarray:
    """Return the class of every image, ``int64`` ``(N,)`` from 0: two images share one if all their pixels agree.

    Images are compared by a cryptographic hash of 64 bits, which is the same for two different ones of a million images
    with a probability below 1e-7.
    """
    rows = dataset.storage.numpy().reshape(len(dataset), -1)
    hashes = b"".join(hashlib.blake2b(row, digest_size=8).digest() for row in rows)
    return np.unique(np.frombuffer(hashes, np.uint64), return_inverse=True)[1]


@dataclass(frozen=True)
class FactorBound:
    """Information of a code of the images about a factor, in nats."""

    entropy: float  #: logarithm of the number of the factor's values
    information: float  #: ``I(code; v)``
    by_first: np.ndarray
    """Information within every value of the first factor (dSprites: its shape); its mean is ``information``."""

    @property
    def share(self) -> float:
        """``information / entropy``: an upper bound on the factor's term of the mutual information gap."""
        return self.information / self.entropy

    @property
    def share_by_first(self) -> np.ndarray:
        """``by_first / entropy``."""
        return self.by_first / self.entropy


def factor_bounds(dataset: FactorDataset, classes: np.ndarray) -> dict[str, FactorBound]:
    """Return the mutual information of a code of the images and each factor, by factor name.

    ``classes`` ``(N,)`` is the code of every image, an integer from 0; :func:`image_classes` gives the finest.
    """
    sizes, bounds = np.bincount(classes), {}
    values = np.unravel_index(np.arange(len(dataset)), dataset.factor_sizes)
    for name, size, value in zip(dataset.factor_names, dataset.factor_sizes, values, strict=True):
        _, inverse, together = np.unique(classes * size + value, return_inverse=True, return_counts=True)
        lost = np.log(sizes[classes] / together[inverse]).reshape(dataset.factor_sizes[0], -1).mean(axis=1)
        by_first = math.log(size) - lost
        bounds[name] = FactorBound(math.log(size), float(by_first.mean()), by_first)
    return bounds


def symmetric_code(dataset: FactorDataset, width: float) -> np.ndarray:
    """Return a code of dSprites, ``int64`` ``(N,)``: shape, and angle up to the shape's symmetry in cells.

    ``width`` is that of the cells in degrees, counted from 0 in every shape's period (see :data:`PERIODS`).
    """
    shape, _, orientation, *_ = np.unravel_index(np.arange(len(dataset)), dataset.factor_sizes)
    periods = np.array([PERIODS[str(name)] for name in dataset.values["shape"]])[shape]
    angle = np.degrees(dataset.values["orientation"])[orientation]
    # An angle that is a multiple of the period up to rounding belongs to the first cell, not to the last.
    cell = np.floor(np.mod(angle + 1e-6, periods) / width).astype(np.int64)
    return cell * dataset.factor_sizes[0] + shape


def rotation_differences(dataset: FactorDataset, step: int = 8) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the angles between two orientations of dSprites, ``(D,)`` degrees, and the share of pixels that change.

    The shares ``(D,)``, by shape, are over all pairs of images that far apart and otherwise equal, at all scales and at
    every ``step``-th position in x and in y: pixels that differ divided by the lit pixels of both. They are 0 where the
    images agree, and 1 where they have no pixel in common.
    """
    words = dataset.storage.numpy().view(np.uint64).reshape(*dataset.factor_sizes, -1)[:, :, :-1, ::step, ::step]

    def lit(images: np.ndarray) -> np.ndarray:
        return np.bitwise_count(images).sum(axis=(1, 2, 3, 4, 5), dtype=np.int64)

    turns = range(words.shape[2] + 1)
    shares = [lit(words ^ np.roll(words, -turn, axis=2)) / (2 * lit(words)) for turn in turns]
    names = map(str, dataset.values["shape"])
    return np.linspace(0.0, 360.0, len(turns)), dict(zip(names, np.transpose(shares), strict=True))


def angle_information(angles: np.ndarray, period: float, deviation: float, resolution: int = 8192) -> float:
    r"""Return the mutual information of a uniform choice among angles and a noisy angle within a period, in nats.

    .. math:: I = h(y) - h(y \mid v), \qquad y = (\theta_v + \sigma \epsilon) \bmod P, \quad
              \epsilon \sim \mathcal N(0, 1),

    with both differential entropies by the trapezoidal rule on the circle, which is exact to rounding for densities
    this smooth as long as ``deviation`` is several cells wide.

    Angles ``(V,)``, period (see :data:`PERIODS`) and standard deviation are in degrees; ``resolution`` is the number of
    points on the circle.
    """
    points = np.arange(resolution) * period / resolution
    distance = np.angle(np.exp(2j * np.pi * points / period)) * period / (2 * np.pi)
    wraps = np.arange(-math.ceil(9 * deviation / period), math.ceil(9 * deviation / period) + 1) * period
    kernel = np.exp(-0.5 * ((distance[:, None] + wraps) / deviation) ** 2).sum(axis=1)
    kernel /= kernel.sum()
    # The mixture is a convolution of the kernel with the angles, and angles need not lie on the points: shift by phase.
    frequencies = np.arange(resolution // 2 + 1)
    phases = np.exp(-2j * np.pi * np.outer(np.asarray(angles) / period, frequencies)).mean(axis=0)
    mixture = np.fft.irfft(np.fft.rfft(kernel) * phases, resolution)
    return max(entropy(mixture.clip(min=0)) - entropy(kernel), 0.0)
