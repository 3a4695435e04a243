"""The explorers at rest: what stands beside a figure that moves, for paper and for readers without scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from edition.figures.latents import picture
from edition.figures.style import BLUE, VERMILION, WIDTH, bare, styled, subplots


def prior_stills(
    stills: Mapping[str, tuple[Sequence[np.ndarray], np.ndarray, np.ndarray]], names: Sequence[tuple[str, str]]
) -> Figure:
    """Two plane sections of a density and its samples in the second plane: one row a setting.

    ``stills``: title of each row to the closed curves f = 1 in the two planes, each ``(M, 2)``, the factors ``(D,)``
    that make the density's contours out of them, and samples ``(N, 2)``; ``names``: of the two coordinates of each
    plane.
    """
    with styled():
        figure, axes = subplots(len(stills), 3, height=2.3 * len(stills), squeeze=False)
        for row, (title, (sections, factors, samples)) in zip(axes, stills.items(), strict=True):
            limit = 3.4 * np.sqrt((samples**2).mean(0).max())
            for ax, curve in zip(row, sections, strict=False):
                for factor in factors:
                    ax.plot(*(factor * curve).T, color=BLUE, linewidth=0.7, solid_capstyle="round")
                ax.plot(*curve.T, color=VERMILION, solid_capstyle="round")
            row[2].plot(*samples.T, ".", color=BLUE, markersize=1.5, alpha=0.35, rasterized=True)
            for ax, (across, up) in zip(row, (*names, names[-1]), strict=True):
                ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel=across)
                ax.set_ylabel(up, labelpad=0)
                ax.locator_params(nbins=3)
            row[0].set_title(title, loc="left")
        axes[0, 2].set_title("samples")
    return figure


def latent_stills(panels: Mapping[str, tuple[Sequence[str], np.ndarray]]) -> Figure:
    """Images along each active latent of several models, one panel below the other.

    ``panels``: title of each to the names of its rows, and its images, uint8 ``(rows, steps, channels, height,
    width)``.
    """
    label = 0.9
    side = (WIDTH - label) / max(images.shape[1] for _, images in panels.values())
    heights = [0.5 + max(len(rows), 1) * side for rows, _ in panels.values()]
    with styled():
        figure, grid = subplots(len(panels), 1, height=sum(heights), squeeze=False, height_ratios=heights)
        figure.get_layout_engine().set(h_pad=0.08)
        for axes, (title, (rows, images)) in zip(grid[:, 0], panels.items(), strict=True):
            axes.set_title(title, loc="left", fontweight="bold")
            if not len(rows):
                bare(axes)
                axes.text(0, 1, "No latent is active.", va="top", transform=axes.transAxes)
                continue
            middles, columns = picture(axes, images)
            axes.set_anchor("W")
            axes.set_yticks(middles, rows)
            axes.set_xticks(columns[[0, -1]], ["least", "greatest"])
    return figure
