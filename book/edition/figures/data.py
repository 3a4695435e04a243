"""Figures of the chapter *Data*: contact sheets, the symmetries of the sprites, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from edition.figures import style

if TYPE_CHECKING:
    from isa.data import Factor

__all__ = ["orientation_bound", "rotation_difference", "sheet", "traversals"]


@style.styled
def traversals(rows: Sequence[tuple[Factor, np.ndarray, np.ndarray]]) -> Figure:
    """Draw one row of images for each factor.

    ``rows``: the factor, the positions ``(C,)`` of its values, and their images ``(C, channels, H, W)`` in [0, 1].
    """
    columns = max(len(positions) for _, positions, _ in rows)
    height = (style.WIDTH / columns + 0.12) * len(rows) + 0.3
    figure, grid = style.subplots(len(rows), 1, height=height, squeeze=False)
    for axes, (factor, positions, images) in zip(grid[:, 0], rows, strict=True):
        _, places = style.mosaic(axes, images[None])
        axes.set_xlim(-0.5, axes.get_xlim()[1] * columns / len(positions))
        form = "{:.3g}" if factor.values.dtype.kind == "f" else "{}"
        axes.set_xticks(places, [form.format(factor.values[int(position)]) for position in positions])
        axes.set_ylabel(f"{factor.name}\n[{factor.unit}]" if 0 < len(factor.unit) < 8 else factor.name, fontsize=9)
    return figure


@style.styled
def sheet(
    images: np.ndarray,
    *,
    row_label: str,
    column_label: str,
    row_values: Sequence[str] = (),
    column_values: Sequence[str] = (),
    title: str = "",
) -> Figure:
    """Draw images in rows and columns.

    ``images``: ``(R, C, channels, H, W)`` in [0, 1]; ``row_label``, ``column_label``: what varies down and across;
    ``row_values``, ``column_values``: values to write at every row and column.
    """
    rows, columns = images.shape[:2]
    figure, axes = style.subplots(height=(style.WIDTH - 0.3) * rows / columns + (0.8 if title else 0.5))
    row_places, column_places = style.mosaic(axes, images)
    axes.set_xticks(column_places[: len(column_values)], column_values)
    axes.set_yticks(row_places[: len(row_values)], row_values)
    axes.set(xlabel=column_label, ylabel=row_label)
    figure.suptitle(title)
    return figure


@style.styled
def rotation_difference(angles: np.ndarray, differences: Mapping[str, np.ndarray]) -> Figure:
    """Draw the share of a sprite's pixels that change when it is turned.

    ``angles``: ``(D,)`` angles between two orientations, degrees; ``differences``: by shape, ``(D,)``: pixels that
    differ, as a share of the pixels of both sprites.
    """
    figure, axes = style.subplots(height=3.2)
    for shape, share in differences.items():
        axes.plot(angles, share, marker="o", markersize=3.5, color=style.SHAPES[shape], label=shape)
        figure.record({"shape": shape, "angle [degrees]": angles, "pixels that differ [share of lit pixels]": share})
    axes.set(xlabel="angle between two orientations [degrees]", xticks=range(0, 361, 45), ylim=(0, None))
    axes.set_ylabel("pixels that differ\n[share of lit pixels]")
    figure.key()
    return figure


@style.styled
def orientation_bound(precision: np.ndarray, bounds: Mapping[str, np.ndarray], exact: float) -> Figure:
    """Draw the largest share of an orientation's entropy that a code of finite precision can hold.

    ``precision``: ``(S,)`` standard deviation of the code's angle, degrees; ``bounds``: by shape, and ``"all shapes"``:
    ``(S,)`` mutual information over ``log 40``; ``exact``: the same for the images themselves, all shapes.
    """
    figure, axes = style.subplots(height=3.4)
    term = "upper bound of the MIG's term"
    for shape, bound in bounds.items():
        look = {"color": style.SHAPES[shape]} if shape in style.SHAPES else {"color": style.BLACK, "linewidth": 3}
        axes.plot(precision, bound, label=shape, **look)
        figure.record({"shape": shape, "standard deviation [degrees]": precision, term: bound})
    axes.axhline(exact, color=style.GREY, linestyle=":", label="the images themselves")
    figure.record({"shape": "the images themselves", term: exact})
    axes.set(xlabel="standard deviation of the angle read off the code [degrees]", xscale="log", ylim=(0, 1.02))
    axes.set_ylabel("orientation's term of the MIG,\nupper bound")
    axes.set_xticks([0.1, 0.3, 1, 3, 10, 30], ["0.1", "0.3", "1", "3", "10", "30"])
    axes.minorticks_off()
    figure.key()
    return figure
