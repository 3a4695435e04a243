r"""Orientation of codes of positions (x, y): that which a prior prefers, and that of trained models (Fig. 3).

Positions are uniform on a square. A code that turns the square by an angle and leaves it straight gives two latents;
the prior is the p-generalised normal of Eq. 5, factorised over them. How well the two fit has a closed form
(:func:`straight_cost`), and so has the fit of codes that may bend as well (:func:`bent_cost`).

Codes of trained models are measured on a grid of positions: :func:`measure` looks at the direction in which each latent
grows, at every position, so that a bent code along the axes is recognised, too.

::

    dataset = images()                                            # 1,024 positions of one sprite
    learned = learn(model(exponent=4.0, beta=8.0, seed=0, steps=400), dataset)
    learned.code.alignment                                        # 1: along x and y; -1: along the diagonals

The codes of a few models are kept in ``runs/orientation-codes.npz`` (:func:`record_codes`), so that a page shows them
without training. Many seeds are a study, :class:`edition.studies.OrientationStudy`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import gammaincinv, gammaln

from isa import data
from isa.data import FactorDataset
from isa.engine import train
from isa.mig import active_units
from isa.objectives import gaussian_log_density
from isa.run import Run

__all__ = ["SPRITE", "Code", "Learned", "bent_cost", "best_gain", "contours", "images", "learn", "learned_code"]
__all__ += ["measure", "model", "record_codes", "straight_cost"]

SPRITE: dict[str, int] = {"shape": 2, "scale": 5, "orientation": 2}
"""The sprite whose positions are learned: a large heart, turned by 18 degrees. Moved by as far, it changes as many
pixels in every direction to within five per cent, so that the images themselves hardly prefer one."""


def _cosines(angle: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the larger and the smaller of ``|cos|`` and ``|sin|``."""
    angle = np.asarray(angle, float)
    c, s = np.abs(np.cos(angle)), np.abs(np.sin(angle))
    return np.maximum(c, s), np.minimum(c, s)


def _absolute_moment(p: float, angle: ArrayLike) -> np.ndarray:
    """Return E |x cos a - y sin a|^p for (x, y) uniform on [-1, 1]^2: the integral of a trapezium times a power."""
    large, small = _cosines(angle)
    ratio = np.maximum(small / large, 1e-5)  # the quotient loses digits below; there it is at its limit
    quotient = ((1 + ratio) ** (p + 2) - (1 - ratio) ** (p + 2)) / (2 * ratio * (p + 1) * (p + 2))
    return large**p * quotient


def best_gain(p: float, angle: ArrayLike, scale: float = 1.0) -> np.ndarray:
    r"""Return half the side of the turned square that fits a p-generalised normal of scale s best.

    It is the :math:`a` that minimises :math:`-2 \log a + E\,f(a R_\theta u)^p / s`, so that
    :math:`a^p = s / (p\, E|x \cos\theta - y \sin\theta|^p)`. Angles are in radians, of any shape.
    """
    return (scale / (p * _absolute_moment(p, angle))) ** (1 / p)


def straight_cost(p: float, angle: ArrayLike) -> np.ndarray:
    r"""Return the divergence of a turned square of codes from the p-generalised normal of Eq. 5 at the best size.

    With :math:`u` uniform on :math:`[-1, 1]^2` and :math:`M = E\,|u_1 \cos\theta - u_2 \sin\theta|^p`,

    .. math:: \min_a\, D_{KL}\bigl(a R_\theta u \,\|\, p\bigr)
              = \tfrac{2}{p} \bigl(1 + \log(p M)\bigr) + 2 \log\bigl(2\, \Gamma(1 + \tfrac{1}{p})\bigr) - \log 4 .

    Where the posteriors are narrow, this is the part of the ELBO's divergence that the orientation decides: the gain a
    is then free, since posteriors widen with the code and the reconstruction stays the same.

    It is in nats an image, of the shape of ``angle``, in radians. The prior is leptokurtic for exponents p below 2,
    platykurtic above.

    Examples
    --------
    A Laplace prior prefers the diagonals, a normal one has no preference:

    >>> [round(float(straight_cost(p, 0) - straight_cost(p, math.pi / 4)), 4) + 0.0 for p in (1.0, 2.0, 4.0)]
    [0.1178, 0.0, -0.1438]
    """
    power = 2 / p * (1 + np.log(p * _absolute_moment(p, angle)))
    return power + 2 * (math.log(2) + gammaln(1 + 1 / p)) - math.log(4)


def contours(p: float, masses: ArrayLike, scale: float = 1.0, points: int = 400) -> np.ndarray:
    r"""Return closed contours ``(M, points, 2)`` of the two-dimensional p-generalised normal of scale s.

    ``masses`` ``(M,)`` are the probabilities within: :math:`f(z)^p / s` is Gamma distributed with shape 2 / p (Eq. 11).
    """
    angle = np.linspace(0, 2 * np.pi, points)
    unit = np.stack([np.cos(angle), np.sin(angle)], -1)
    unit /= (np.abs(unit) ** p).sum(-1, keepdims=True) ** (1 / p)
    radius = (scale * gammaincinv(2 / p, np.asarray(masses, float))) ** (1 / p)
    return radius[:, None, None] * unit


def bent_cost(angle: ArrayLike) -> np.ndarray:
    r"""Return the divergence of a turned square with bent latents from any factorised prior, at the best bends.

    Bending each latent by itself can give it the prior's marginal distribution. What is left is the mutual information
    of the two, which no such bend changes: with :math:`c \ge s` the absolute cosine and sine of the angle,
    :math:`2 \log c + s / c` nats an image. It is of the shape of ``angle``, in radians, and zero along the axes.
    """
    large, small = _cosines(angle)
    return 2 * np.log(large) + small / large


class Code(NamedTuple):
    """Layout of positions by a trained encoder; means over its active latents, NaN where it has none."""

    alignment: float = math.nan
    """Mean over positions of cos 4 phi, phi the direction in which a latent grows: 1 along x or y everywhere, -1 along
    the diagonals, 0 where directions are mixed."""
    tilt: float = math.nan
    """Angle between the one direction that describes a latent best and the nearest axis: 0 to 45 degrees."""
    linear: float = math.nan
    """Share of a latent's variance that a linear function of (x, y) explains: 1 for a straight code."""
    active: int = 0  #: number of active latents: the variance of their mean over positions exceeds 0.01


def measure(mean: ArrayLike) -> Code:
    """Measure how latents lie on a grid of positions.

    ``mean`` ``(X, Y, D)`` are posterior means, on a grid of equal steps in x and y. Gradients are central differences,
    one-sided at the border. Latents that are not active do not count.

    Examples
    --------
    >>> x, y = np.meshgrid(np.linspace(-1, 1, 32), np.linspace(-1, 1, 32), indexing="ij")
    >>> bent, turned = np.stack([np.sinh(2 * x), y], -1), np.stack([x + y, x - y], -1)
    >>> [round(measure(code).alignment, 9) for code in (bent, turned)]
    [1.0, -1.0]
    >>> round(measure(turned).tilt, 9)
    45.0
    """
    mean = np.asarray(mean, float)
    active = active_units(torch.from_numpy(mean.reshape(-1, mean.shape[2]).copy())).numpy()
    kept = mean[..., active]
    if not active.any():
        return Code()
    along_x, along_y = np.gradient(kept, axis=(0, 1))
    squared = (along_x + 1j * along_y) ** 2  # of twice the direction
    flat = squared == 0
    fourfold = np.where(flat, 0, squared**2 / np.where(flat, 1, np.abs(squared)) ** 2).real
    alignment = fourfold.sum((0, 1)) / np.maximum((~flat).sum((0, 1)), 1)
    angle = np.degrees(np.abs(np.angle(squared.sum((0, 1))))) / 2  # 0 to 90
    x, y = np.indices(mean.shape[:2])
    design = np.stack([np.ones(x.size), x.ravel(), y.ravel()], 1)
    values = kept.reshape(-1, kept.shape[2])
    rest = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    linear = 1 - (rest**2).sum(0) / ((values - values.mean(0)) ** 2).sum(0)
    means = (float(column.mean()) for column in (alignment, np.minimum(angle, 90 - angle), linear))
    return Code(*means, int(active.sum()))


def images(sprite: Mapping[str, int] = SPRITE) -> FactorDataset:
    """Return the 1,024 images of dSprites that show one sprite at every position."""
    return data.load("dsprites").restrict(**sprite)


def model(*, exponent: float, beta: float, seed: int, steps: int, batch_size: int = 64) -> Run:
    """Return the run that trains two latents under a p-generalised normal prior of unit variance.

    The networks are those of A.4. The likelihood of a pixel is Gaussian with variance 1, other than in the paper's
    experiments: its gradients are smooth from the first step, so that a few hundred steps settle the orientation.
    """
    return Run(
        dataset="dsprites",
        objective="isa-vae",
        prior=f"{float(exponent)!r}[2]",
        scale="unit",
        beta=beta,
        seed=seed,
        steps=steps,
        batch_size=batch_size,
        likelihood="gaussian",
    )


class Learned(NamedTuple):
    """Code of a trained model; NaN if the run diverged."""

    mean: np.ndarray  #: ``(X, Y, D)`` posterior means
    code: Code = Code()
    divergence: float = math.nan  #: mean over images of log q(z|x) - log p(z) at one sample each; nats
    noise: float = math.nan
    """Mean over images and active latents of the posterior's standard deviation, where the prior's is 1."""


def learn(run: Run, dataset: FactorDataset) -> Learned:
    """Train a model, from :func:`model`, on the images of a sprite (:func:`images`), and measure its code."""
    grid = [size for name, size in zip(dataset.factor_names, dataset.factor_sizes, strict=True) if name in ("x", "y")]
    # Compiling takes as long as some hundred of these small steps.
    result = train(run, dataset=dataset, compile=False, evaluation=False, progress=False)
    if result.diverged_at is not None:
        return Learned(np.full((*grid, run.latent_dim), math.nan))
    generator = torch.Generator().manual_seed(run.seed)
    with torch.no_grad():
        posterior = result.model.encode(dataset.images(range(len(dataset))))
        z = posterior.sample(generator=generator)
        divergence = (gaussian_log_density(z, *posterior) - result.prior.log_prob(z)).mean().item()
    mean = posterior.mean.view(*grid, -1).numpy()
    noise = torch.exp(0.5 * posterior.log_var[:, active_units(posterior.mean)]).mean().item()
    return Learned(mean, measure(mean), divergence, noise)


def record_codes(path: Path, runs: Iterable[Run], sprite: Mapping[str, int] = SPRITE) -> None:
    """Train models, and keep their posterior means in a ``.npz`` file, from which :func:`learned_code` reads them."""
    np.savez_compressed(path, **{_name(run, sprite): learn(run, images(sprite)).mean for run in runs})


def learned_code(run: Run, recorded: Path, sprite: Mapping[str, int] = SPRITE) -> np.ndarray:
    """Return the posterior means ``(X, Y, D)`` of a model: the recorded ones if there are, else those it learns now."""
    with np.load(recorded, allow_pickle=False) as codes:
        if (name := _name(run, sprite)) in codes:
            return codes[name]
    return learn(run, images(sprite)).mean


def _name(run: Run, sprite: Mapping[str, int]) -> str:
    return "-".join([run.hash, *map(str, sprite.values())])
