"""Figures of the chapter *Data*: contact sheets, the symmetries of the sprites, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edition.figures import style

__all__ = ["orientation_bound", "rotation_difference", "sheet", "traversals"]

_SHAPE_COLOURS = {"square": style.BLUE, "ellipse": style.VERMILION, "heart": style.GREEN}
_GAP = 2


class _Factor(Protocol):
    """A factor: its name, its values and their unit."""

    name: str
    values: np.ndarray
    unit: str


def _tile(images: np.ndarray) -> np.ndarray:
    """Images ``(R, C, channels, H, W)`` in [0, 1] as one RGB picture with grey gaps between them."""
    rows, columns, channels, height, width = images.shape
    picture = np.full((rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3), 0.75, np.float32)
    colour = np.broadcast_to(images, (rows, columns, 3, height, width)) if channels == 1 else images
    for row in range(rows):
        for column in range(columns):
            top, left = row * (height + _GAP), column * (width + _GAP)
            picture[top : top + height, left : left + width] = colour[row, column].transpose(1, 2, 0)
    return picture


def _show(axes: Axes, images: np.ndarray) -> None:
    axes.imshow(_tile(images), interpolation="none", vmin=0, vmax=1)  # an SVG then holds each pixel once
    style.bare(axes)


def _label(factor: _Factor, position: int) -> str:
    value = factor.values[position]
    return f"{value:.3g}" if factor.values.dtype.kind == "f" else str(value).removeprefix("car ")


def traversals(rows: Sequence[tuple[_Factor, np.ndarray, np.ndarray]], title: str | None = None) -> Figure:
    """One row of images a factor.

    ``rows``: the factor, the positions ``(C,)`` of the values shown, and their images ``(C, channels, H, W)`` in [0,
    1]; ``title``: title of the figure.
    """
    columns = max(len(positions) for _, positions, _ in rows)
    with style.styled():
        figure, grid = style.subplots(
            len(rows), 1, height=(style.WIDTH / columns + 0.12) * len(rows) + 0.3, squeeze=False
        )
        for axes, (factor, positions, images) in zip(grid[:, 0], rows, strict=True):
            side = images.shape[-1]
            _show(axes, images[None])
            axes.set_xlim(-0.5, columns * (side + _GAP) - _GAP - 0.5)
            centres = np.arange(len(positions)) * (side + _GAP) + (side - 1) / 2
            axes.set_xticks(centres, [_label(factor, int(position)) for position in positions], fontsize=8)
            axes.tick_params(length=0, pad=1)
            axes.set_ylabel(
                f"{factor.name}\n[{factor.unit}]" if len(factor.unit) in range(1, 8) else factor.name, fontsize=9
            )
        if title:
            figure.suptitle(title)
    return figure


def sheet(
    images: np.ndarray,
    *,
    row_label: str,
    column_label: str,
    row_values: Sequence[str] = (),
    column_values: Sequence[str] = (),
    title: str | None = None,
) -> Figure:
    """Images in rows and columns.

    ``images``: ``(R, C, channels, H, W)`` in [0, 1]; ``row_label``, ``column_label``: what varies down and across;
    ``row_values``, ``column_values``: value of every row and column, where they are to be written; ``title``: title of
    the figure.
    """
    rows, columns = images.shape[:2]
    side = images.shape[-1]
    with style.styled():
        figure, axes = style.subplots(height=(style.WIDTH - 0.3) * rows / columns + (0.8 if title else 0.5))
        _show(axes, images)
        centres = np.arange(max(rows, columns)) * (side + _GAP) + (side - 1) / 2
        if len(column_values):
            axes.set_xticks(centres[:columns], column_values, fontsize=8)
        if len(row_values):
            axes.set_yticks(centres[:rows], row_values, fontsize=8)
        axes.tick_params(length=0, pad=2)
        axes.set(xlabel=column_label, ylabel=row_label)
        if title:
            figure.suptitle(title)
    return figure


def rotation_difference(angles: np.ndarray, differences: dict[str, np.ndarray]) -> Figure:
    """Share of a sprite's pixels that change when it is turned.

    ``angles``: ``(D,)`` angles between two orientations, degrees; ``differences``: by shape, ``(D,)``: pixels that
    differ, as a share of the pixels of both sprites.
    """
    with style.styled():
        figure, axes = style.subplots(height=3.2)
        for shape, share in differences.items():
            axes.plot(angles, share, marker="o", markersize=3.5, color=_SHAPE_COLOURS[shape], label=shape)
        axes.set(
            xlabel="angle between two orientations [degrees]",
            ylabel="pixels that differ\n[share of lit pixels]",
            xticks=range(0, 361, 45),
            ylim=(0, None),
        )
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def orientation_bound(precision: np.ndarray, bounds: dict[str, np.ndarray], exact: float) -> Figure:
    """Greatest share of an orientation's entropy that a code of finite precision can hold.

    ``precision``: ``(S,)`` standard deviation of the code's angle, degrees; ``bounds``: by shape, and ``"all shapes"``:
    ``(S,)`` mutual information over ``log 40``; ``exact``: the same for the images themselves, all shapes.
    """
    with style.styled():
        figure, axes = style.subplots(height=3.4)
        for shape, bound in bounds.items():
            colour = _SHAPE_COLOURS.get(shape, style.BLACK)
            axes.plot(precision, bound, color=colour, label=shape, linewidth=3 if shape not in _SHAPE_COLOURS else 1.8)
        axes.axhline(exact, color=style.GREY, linestyle=":", label="the images themselves")
        axes.set(
            xscale="log",
            xlabel="standard deviation of the angle read off the code [degrees]",
            ylabel="orientation's term of the MIG,\nupper bound",
            ylim=(0, 1.02),
        )
        axes.set_xticks([0.1, 0.3, 1, 3, 10, 30], ["0.1", "0.3", "1", "3", "10", "30"])
        axes.minorticks_off()
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure
