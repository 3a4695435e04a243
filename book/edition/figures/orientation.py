"""Figures of how a prior orients the code of positions (Fig. 3): priors, what they prefer, what training finds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Polygon

from edition.figures import style

if TYPE_CHECKING:
    from edition.stats import Interval

__all__ = ["codes", "costs", "kind", "priors", "seeds"]

STRAIGHT, TURNED = style.BLUE, style.VERMILION


def kind(p: float) -> str:
    """What a p-generalised normal of this exponent is called."""
    return "normal" if p == 2 else "Laplace" if p == 1 else "leptokurtic" if p < 2 else "platykurtic"


def _square(axes: Axes, half: float, angle: float, colour: str, filled: bool) -> None:
    corners = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    fill = {"facecolor": (*_rgb(colour), 0.2)} if filled else {"fill": False, "linestyle": (0, (4, 2))}
    axes.add_patch(Polygon(corners @ turn.T, edgecolor=colour, linewidth=2.2 if filled else 1.4, zorder=3, **fill))


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))


def priors(
    image: np.ndarray, positions: np.ndarray, panels: Mapping[float, tuple[Sequence[np.ndarray], float, float]]
) -> Figure:
    """The square of positions, and beside it the contours of priors with the square laid upon them in two ways.

    ``image`` ``(H, W)``: one image of the sprite, in [0, 1]; ``positions`` ``(N, 2)``: all positions of the sprite's
    centre, in pixels, y downwards; ``panels`` ``(M, 2)``: for each exponent: closed contours of the prior, and half the
    side of the square that fits best along the axes and along the diagonals. The better one of the two is filled.
    Contours are cut off beyond the squares.
    """
    reach = 1.08 * np.sqrt(2) * max(turned for _, _, turned in panels.values())
    with style.styled():
        figure, axes = style.subplots(1, 1 + len(panels), height=2.75)
        height, width = image.shape
        axes[0].imshow(1 - 0.35 * image, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
        axes[0].plot(*positions.T, ".", color=style.BLACK, markersize=0.9, rasterized=True)
        axes[0].set(title="positions", xlabel="$x$ [pixels]", ylabel="$y$ [pixels]", xticks=[0, 16, 32, 48, 64])
        axes[0].set(yticks=[0, 16, 32, 48, 64], box_aspect=1)
        for ax, (p, (curves, straight, turned)) in zip(axes[1:], panels.items(), strict=True):
            for curve in curves:
                ax.plot(*curve.T, color=style.GREY, linewidth=1)
            _square(ax, straight, 0, STRAIGHT, filled=p >= 2)
            _square(ax, turned, np.pi / 4, TURNED, filled=p <= 2)
            ax.set(title=f"{kind(p)}, $p = {p:g}$", xlabel="$z_1$", xlim=(-reach, reach), ylim=(-reach, reach))
            ax.set(box_aspect=1, xticks=[-1, 0, 1], yticks=[-1, 0, 1])
            ax.set_ylabel("$z_2$", labelpad=-4)
        handles = [Line2D([], [], color=STRAIGHT), Line2D([], [], color=TURNED), Line2D([], [], color=style.GREY)]
        labels = ["square along the axes", "along the diagonals", "prior's contours"]
        figure.legend(handles, labels, loc="outside upper center", ncols=3, columnspacing=1.2, handlelength=1.4)
    return figure


def costs(angles: np.ndarray, straight: Mapping[float, np.ndarray], bent: np.ndarray) -> Figure:
    """Divergence of the turned square from each prior against the angle.

    ``angles`` ``(A,)``: radians; ``straight`` ``(A,)``: for each exponent, the divergence of a straight code in nats;
    ``bent`` ``(A,)``: the same for codes that may bend, whatever the prior.
    """
    with style.styled():
        figure, axes = style.subplots(height=3.6)
        degrees = np.degrees(angles)
        for colour, (p, cost) in zip(_colours(list(straight)), straight.items(), strict=True):
            axes.plot(degrees, cost, color=colour, label=f"straight, $p = {p:g}$")
        axes.plot(degrees, bent, color=style.BLACK, linestyle="--", label="bent, any $p$")
        axes.set(xlabel="angle of the square (degrees)", ylabel="divergence from the prior\n[nats an image]")
        axes.set(xticks=np.arange(0, 91, 15), ylim=(0, None), xlim=(0, 90))
        figure.legend(loc="outside upper center", ncols=min(4, 1 + len(straight)), columnspacing=1.2, handlelength=1.6)
    return figure


def _colours(exponents: Sequence[float]) -> list[str]:
    """Reds below 2, grey at 2, blues above."""
    low, high = [style.VERMILION, style.ORANGE, style.PURPLE], [style.BLUE, style.SKY, style.GREEN]
    below = sorted(p for p in exponents if p < 2)
    above = sorted((p for p in exponents if p > 2), reverse=True)
    named = dict(zip(below, low * len(below), strict=False)) | dict(zip(above, high * len(above), strict=False))
    return [named.get(p, style.GREY) for p in exponents]


def codes(means: Mapping[str, np.ndarray], tilts: Mapping[str, Sequence[str]]) -> Figure:
    """Each latent's mean over position, a row a latent and a column a model.

    ``means`` ``(X, Y, D)``: posterior means on the grid of positions, by the column's title; ``tilts``: what is written
    over each panel.
    """
    latents = next(iter(means.values())).shape[2]
    with style.styled():
        figure, grid = style.subplots(
            latents, len(means), height=1.15 + 1.85 * latents, squeeze=False, sharex=True, sharey=True
        )
        for column, (title, mean) in enumerate(means.items()):
            for latent in range(latents):
                values = mean[..., latent]
                limit = max(np.abs(values).max(), 1.0)  # the prior's standard deviation: what is less is noise
                axes = grid[latent, column]
                options = {"cmap": style.DIVERGING, "vmin": -limit, "vmax": limit, "interpolation": "nearest"}
                axes.imshow(values.T, extent=(0, 1, 1, 0), **options)
                if np.ptp(values) > limit / 2:
                    places = (np.linspace(0, 1, size) for size in values.shape)
                    levels = np.linspace(-limit, limit, 9)[1:-1]
                    axes.contour(*places, values.T, levels, colors=style.BLACK, linewidths=0.5, linestyles="solid")
                axes.set(title=f"{title}\n{tilts[title][latent]}" if latent == 0 else tilts[title][latent])
                axes.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        for axes in grid[-1]:
            axes.set_xlabel("$x$")
        for latent, axes in enumerate(grid[:, 0], start=1):
            axes.set_ylabel(f"latent $z_{latent}$\n$y$")
    return figure


def seeds(
    panels: Mapping[str, Mapping[float, np.ndarray]],
    means: Mapping[str, Mapping[float, Interval]],
    live: Mapping[str, Mapping[float, float]],
) -> Figure:
    """Alignment of each run against the prior's exponent: one panel a setting.

    ``panels``: for each panel's title and exponent, the alignment of every recorded run; ``means``: means with
    intervals, for the panels that are to show them; ``live``: alignment of the runs trained on the page, drawn as
    diamonds.
    """
    places = {
        title: {p: i for i, p in enumerate(sorted({*runs, *live.get(title, {})}))} for title, runs in panels.items()
    }
    with style.styled():
        ratios = [len(place) + 0.4 for place in places.values()]
        figure, row = style.subplots(
            1, len(panels), height=3.9, squeeze=False, sharey=True, gridspec_kw={"width_ratios": ratios}
        )
        for axes, (title, runs) in zip(row[0], panels.items(), strict=True):
            place = places[title]
            for level in (-1, 0, 1):
                axes.axhline(level, color=style.GREY, linewidth=0.8, linestyle=":" if level else "-")
            for p, values in runs.items():
                spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(len(values))
                axes.plot(place[p] + spread, np.sort(values), "o", color=style.SKY, markersize=5)
            for p, mean in means.get(title, {}).items():
                if mean.n > 1:
                    error = np.nan_to_num([[mean.estimate - mean.low], [mean.high - mean.estimate]])
                    options = {"color": style.BLUE, "marker": "s", "markersize": 5, "capsize": 2.5}
                    axes.errorbar(place[p] + 0.32, mean.estimate, error, **options)
            for p, value in live.get(title, {}).items():
                axes.plot(place[p] - 0.32, value, "D", color=style.VERMILION, markersize=6)
            axes.set_xticks(range(len(place)), [f"{p:g}" for p in place])
            axes.set(title=title, xlabel="exponent $p$", ylim=(-1.08, 1.08), xlim=(-0.6, len(place) - 0.4))
        row[0, 0].set_yticks([-1, -0.5, 0, 0.5, 1], ["−1\ndiagonals", "−0.5", "0", "0.5", "1\naxes"])
        row[0, 0].set_ylabel("alignment $A$")
        handles = [
            Line2D([], [], color=style.SKY, marker="o", linestyle="none"),
            Line2D([], [], color=style.BLUE, marker="s", linestyle="none"),
            Line2D([], [], color=style.VERMILION, marker="D", linestyle="none"),
        ]
        labels = ["recorded run", "mean, 95 % interval", "this page's run"]
        figure.legend(handles, labels, loc="outside upper center", ncols=3, columnspacing=1.2, handletextpad=0.3)
    return figure
