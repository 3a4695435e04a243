"""Figures of how a prior orients the code of positions (Fig. 3): priors, their preferences, and trained codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from edition.figures import style

if TYPE_CHECKING:
    from edition.stats import Interval

__all__ = ["codes", "costs", "kind", "priors", "seeds"]

STRAIGHT, TURNED = style.BLUE, style.VERMILION


def kind(p: float) -> str:
    """Return the name of a p-generalised normal of this exponent."""
    return "normal" if p == 2 else "Laplace" if p == 1 else "leptokurtic" if p < 2 else "platykurtic"


def _square(axes: Axes, half: float, turns: float, colour: str, filled: bool) -> None:
    """Draw a square about the origin, turned by a number of quarter turns."""
    corners = half * np.sqrt(2) * np.exp(0.5j * np.pi * (np.arange(4) + 0.5 + turns))
    look = {"facecolor": to_rgba(colour, 0.2), "linewidth": 2.2} if filled else {"fill": False, "linestyle": "--"}
    look = {"edgecolor": colour, "linewidth": 1.4, "zorder": 3} | look
    axes.add_patch(Polygon(np.stack([corners.real, corners.imag], 1), **look))


@style.styled
def priors(
    image: np.ndarray, positions: np.ndarray, panels: Mapping[float, tuple[Sequence[np.ndarray], float, float]]
) -> Figure:
    """Draw the square of positions, and the contours of priors with the square on top in two orientations.

    ``image`` ``(H, W)``: one image of the sprite, in [0, 1]; ``positions`` ``(N, 2)``: all positions of the sprite's
    centre, in pixels, y downwards; ``panels``: for each exponent: closed contours ``(M, 2)`` of the prior, and half the
    side of the square that fits best along the axes and along the diagonals. The better one of the two is filled.
    Contours are cut off beyond the squares.
    """
    reach = 1.08 * np.sqrt(2) * max(turned for _, _, turned in panels.values())
    figure, (first, *others) = style.subplots(1, 1 + len(panels), height=2.75)
    height, width = image.shape
    first.imshow(image, cmap=ListedColormap([style.GREY]), alpha=0.5 * image, extent=(0, width, height, 0))
    first.plot(*positions.T, ".", color=style.BLUE, markersize=0.9, rasterized=True)
    ticks = [0, 16, 32, 48, 64]
    first.set(title="positions", xlabel="$x$ [pixels]", ylabel="$y$ [pixels]", xticks=ticks, yticks=ticks, box_aspect=1)
    figure.record({"series": "position", "x [pixels]": positions[:, 0], "y [pixels]": positions[:, 1]})
    for axes, (p, (curves, straight, turned)) in zip(others, panels.items(), strict=True):
        for number, curve in enumerate(curves, 1):
            axes.plot(*curve.T, color=style.GREY, linewidth=1)
            points = {"contour": number, "z_1": curve[:, 0], "z_2": curve[:, 1]}
            figure.record({"series": "prior's contour", "p": p} | points)
        _square(axes, straight, 0, STRAIGHT, filled=p >= 2)
        _square(axes, turned, 0.5, TURNED, filled=p <= 2)
        names = np.array(["square along the axes", "square along the diagonals"])
        figure.record({"series": names, "p": p, "half the side": [straight, turned]})
        axes.set(title=f"{kind(p)}, $p = {p:g}$", xlabel="$z_1$", xlim=(-reach, reach), ylim=(-reach, reach))
        axes.set(box_aspect=1, xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        axes.set_ylabel("$z_2$", labelpad=-4)
    colours = {"square along the axes": STRAIGHT, "along the diagonals": TURNED, "prior's contours": style.GREY}
    figure.key({name: {"color": colour} for name, colour in colours.items()}, handlelength=1.4)
    return figure


@style.styled
def costs(angles: np.ndarray, straight: Mapping[float, np.ndarray], bent: np.ndarray) -> Figure:
    """Draw the divergence of the turned square from each prior against the angle.

    ``angles`` ``(A,)``: radians; ``straight`` ``(A,)``: for each exponent, the divergence of a straight code in nats;
    ``bent`` ``(A,)``: the same for codes that may bend, whatever the prior.
    """
    figure, axes = style.subplots(height=3.6)
    degrees = np.degrees(angles)
    looks = {f"straight, $p = {p:g}$": (cost, _colour(p, straight), "-") for p, cost in straight.items()}
    looks["bent, any $p$"] = bent, style.BLACK, "--"
    for label, (cost, colour, line) in looks.items():
        axes.plot(degrees, cost, color=colour, linestyle=line, label=label)
        figure.record({"code": label, "angle [degrees]": degrees, "divergence [nats per image]": cost})
    axes.set(xlabel="angle of the square (degrees)", ylabel="divergence from the prior\n(nats per image)")
    axes.set(xticks=np.arange(0, 91, 15), ylim=(0, None), xlim=(0, 90))
    figure.key(ncols=min(4, 1 + len(straight)), handlelength=1.6)
    return figure


def _colour(p: float, exponents: Mapping[float, np.ndarray]) -> str:
    """Return a red below 2, grey at 2, and a blue above, the strongest farthest from 2."""
    if p == 2:
        return style.GREY
    shades = [style.VERMILION, style.ORANGE, style.PURPLE] if p < 2 else [style.BLUE, style.SKY, style.GREEN]
    return shades[sum(abs(other - 2) > abs(p - 2) for other in exponents if (other < 2) == (p < 2)) % 3]


@style.styled
def codes(means: Mapping[str, np.ndarray], tilts: Mapping[str, Sequence[str]]) -> Figure:
    """Draw each latent's mean over position, one row per latent and one column per model.

    ``means`` ``(X, Y, D)``: posterior means on the grid of positions, by the column's title; ``tilts``: what is written
    over each panel.
    """
    latents = next(iter(means.values())).shape[2]
    height, shared = 1.15 + 1.85 * latents, {"sharex": True, "sharey": True}
    figure, grid = style.subplots(latents, len(means), height=height, squeeze=False, **shared)
    for column, (title, mean) in zip(grid.T, means.items(), strict=True):
        x, y = (np.linspace(0, 1, size) for size in mean.shape[:2])
        for latent, (axes, values) in enumerate(zip(column, np.moveaxis(mean, 2, 0), strict=True)):
            limit = max(np.abs(values).max(), 1.0)  # less than the prior's standard deviation is noise
            options = {"cmap": style.DIVERGING, "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
            axes.imshow(values.T, extent=(0, 1, 1, 0), **options)
            if np.ptp(values) > limit / 2:
                levels = np.linspace(-limit, limit, 9)[1:-1]
                axes.contour(x, y, values.T, levels, colors=style.BLACK, linewidths=0.5, linestyles="solid")
            axes.set_title(f"{title}\n{tilts[title][latent]}" if latent == 0 else tilts[title][latent])
            axes.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
            columns = {"model": title, "latent": latent + 1, "x": x[:, None], "y": y}
            figure.record(columns | {"posterior mean": values})
    for axes in grid[-1]:
        axes.set_xlabel("$x$")
    for latent, axes in enumerate(grid[:, 0], start=1):
        axes.set_ylabel(f"latent $z_{latent}$\n$y$")
    return figure


@style.styled
def seeds(
    panels: Mapping[str, Mapping[float, np.ndarray]],
    means: Mapping[str, Mapping[float, Interval]],
    live: Mapping[str, Mapping[float, float]],
) -> Figure:
    """Draw the alignment of each run against the prior's exponent: one panel per setting.

    ``panels``: alignment of every recorded run, by the panel's title and the exponent; ``means``, ``live``: in the same
    way, means with intervals, and the alignment of the models that the page shows, drawn as diamonds.
    """
    looks = {
        "recorded run": {"color": style.SKY, "marker": "o", "markersize": 5, "linestyle": "none"},
        "mean, 95 % interval": {"color": style.BLUE, "marker": "s", "markersize": 5, "linestyle": "none"},
        "model shown above": {"color": style.VERMILION, "marker": "D", "linestyle": "none"},
    }
    run, mean, diamond = looks
    places = {title: sorted({*runs, *live.get(title, {})}) for title, runs in panels.items()}
    ratios = [len(place) + 0.4 for place in places.values()]
    figure, grid = style.subplots(1, len(panels), height=3.9, squeeze=False, sharey=True, width_ratios=ratios)
    for axes, (title, runs) in zip(grid[0], panels.items(), strict=True):
        place = places[title].index
        for level in (-1, 0, 1):
            axes.axhline(level, color=style.GREY, linewidth=0.8, linestyle=":" if level else "-")
        for p, values in runs.items():
            spread = np.linspace(-0.16, 0.16, len(values)) if len(values) != 1 else 0
            axes.plot(place(p) + spread, np.sort(values), **looks[run])
            figure.record({"setting": title, "p": p, "series": run, "alignment": values})
        for p, (estimate, low, high, n) in means.get(title, {}).items():
            if n > 1:
                error = np.nan_to_num([[estimate - low], [high - estimate]])
                axes.errorbar(place(p) + 0.32, estimate, error, capsize=2.5, **looks[mean])
                interval = {"alignment": estimate, "low": low, "high": high}
                figure.record({"setting": title, "p": p, "series": mean} | interval)
        for p, value in live.get(title, {}).items():
            axes.plot(place(p) - 0.32, value, **looks[diamond])
            figure.record({"setting": title, "p": p, "series": diamond, "alignment": value})
        count = len(places[title])
        axes.set_xticks(range(count), [f"{p:g}" for p in places[title]])
        axes.set(title=title, xlabel="exponent $p$", ylim=(-1.08, 1.08), xlim=(-0.6, count - 0.4))
    grid[0, 0].set_yticks([-1, -0.5, 0, 0.5, 1], ["−1\ndiagonals", "−0.5", "0", "0.5", "1\naxes"])
    grid[0, 0].set_ylabel("alignment $A$")
    figure.key(looks, handletextpad=0.3)
    return figure
