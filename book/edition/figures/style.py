"""The look of all figures, and the tables behind them.

Sizes stay legible on a phone, colours survive colour blindness, ink is black on white. Shapes, methods and themes have
their colours here and nowhere else. In the book's dark mode a page shows the same SVG with :data:`DARK` colours
(:func:`by_night`); images and colour maps stay as they are.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

__all__ = ["DARK", "RUN", "WIDTH", "BookFigure", "bare", "by_night", "colour_bar", "mosaic", "panels", "printed_table"]
__all__ += ["shades", "styled", "subplots"]

# Okabe and Ito's palette without its yellow, which a white page swallows
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#222222",
)  # fmt: skip
GREY = "#8a8a8a"
CYCLE = [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK]
SHAPES = {"ellipse": VERMILION, "square": GREEN, "heart": BLUE}  # as in the paper

DARK = {
    BLUE: "#4fa8e0",
    ORANGE: "#f0b53c",
    GREEN: "#2fc79b",
    VERMILION: "#f28242",
    PURPLE: "#dd9fc2",
    SKY: "#8fcdf2",
    BLACK: "#e4e4e4",
    "#000000": "#e4e4e4",
    GREY: "#9b9b9b",
    "#ffffff": "#121212",
    "#dddddd": "#3a424d",
    "#e3eef7": "#1d3347",
}
"""Colours of lines, areas and text, and those that replace them in dark mode; all others stay."""

INK, PAPER = "#111111", "#fefefe"  # of text on coloured cells, the same by day and by night

DIVERGING = LinearSegmentedColormap.from_list("isa.diverging", [BLUE, "#9ecae1", "#f7f7f7", "#fdb58a", VERMILION])
SEQUENTIAL = mpl.colormaps["viridis"]

RUN = {"s": 14, "alpha": 0.6, "linewidth": 0, "zorder": 1}
"""Look of the dots of single runs, behind their means."""

WIDTH = 6.4
"""Width of a figure in inches, at which 11 pt text is 9 pixels high where a phone shrinks it to 380 pixels."""

RC = {
    "figure.constrained_layout.use": True,
    "lines.linewidth": 1.8,
    "legend.fontsize": 10,
    **dict.fromkeys(("font.size", "axes.titlesize", "axes.labelsize", "xtick.labelsize", "ytick.labelsize"), 11),
    **dict.fromkeys(("legend.frameon", "axes.spines.top", "axes.spines.right"), False),
    **dict.fromkeys(("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), BLACK),
}

styled = mpl.rc_context(RC)
"""Decorator that draws in the book's style and leaves matplotlib's settings as they were.

:meta hide-value:
"""


class BookFigure(Figure):
    """A figure that carries the numbers it was drawn from."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rows: list[dict[str, object]] = []

    def record(self, columns: Mapping[str, ArrayLike]) -> None:
        """Add rows to the figure's table: each column's heading, with its unit in brackets, and its values.

        Values are broadcast against each other.
        """
        values = (column.ravel().tolist() for column in np.broadcast_arrays(*columns.values()))
        self.rows += [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]

    def to_csv(self) -> str | None:
        """Return the table as CSV, with NaN as an empty cell, or None if nothing was recorded."""
        if not self.rows:
            return None
        text = io.StringIO()
        columns = dict.fromkeys(name for row in self.rows for name in row)
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            plain = {name: " ".join(cell.split()) if isinstance(cell, str) else cell for name, cell in row.items()}
            writer.writerow({name: cell for name, cell in plain.items() if cell == cell})
        return text.getvalue()

    def key(self, entries: Mapping[str, Artist | Mapping[str, Any]] | None = None, **options: Any) -> None:
        """Draw one legend above all panels; ``options`` are those of ``Figure.legend``.

        ``entries``: text of each entry, and the artist or the look of the line next to it; if omitted, all labels in
        the panels, each once.
        """
        if entries is None:
            labelled = [axes.get_legend_handles_labels() for axes in self.axes]
            entries = {text: handle for pair in labelled for handle, text in zip(*pair, strict=True)}
        handles = [Line2D([], [], **look) if isinstance(look, Mapping) else look for look in entries.values()]
        options = {"loc": "outside upper center", "ncols": 3, "columnspacing": 1.2} | options
        self.legend(handles, list(entries), **options)


def subplots(rows: int = 1, columns: int = 1, *, height: float, **options: Any) -> tuple[BookFigure, Any]:
    """Return ``plt.subplots`` of the book's width and of ``height`` inches."""
    return plt.subplots(rows, columns, figsize=(WIDTH, height), FigureClass=BookFigure, **options)


def panels(
    count: int, columns: int, row_height: float, labels: tuple[str, str] | None = None
) -> tuple[BookFigure, list[Axes]]:
    """Return a figure of ``count`` panels, at most ``columns`` a row, and their axes.

    With ``labels`` of the two axes, only outer panels have labels and ticks with numbers.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, grid = subplots(rows, columns, height=0.5 + row_height * rows, squeeze=False)
    for spare in grid.flat[count:]:
        spare.remove()
    for number, axes in enumerate(grid.flat[:count] if labels else ()):
        lowest, leftmost = number + columns >= count, number % columns == 0
        axes.tick_params(labelbottom=lowest, labelleft=leftmost)
        axes.set_xlabel(labels[0] if lowest else "")
        axes.set_ylabel(labels[1] if leftmost else "", labelpad=0)
    return figure, list(grid.flat[:count])


def bare(axes: Axes, ticks: bool = False) -> None:
    """Take the frame off axes that show an image or a drawing, and the ticks, or only their lines."""
    axes.tick_params(length=0)
    if not ticks:
        axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def mosaic(axes: Axes, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Show images in rows and columns with grey gaps between them, and return the places of the rows and columns.

    ``images``: ``(R, C, channels, H, W)``, of one or three channels, in [0, 1] or uint8.
    """
    gap, (rows, columns, _, height, width) = 2, images.shape
    tiles = np.broadcast_to(images, (rows, columns, 3, height, width))
    grey = 128 if images.dtype == np.uint8 else 0.5
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, 0), (0, gap), (0, gap)), constant_values=grey)
    picture = tiles.transpose(0, 3, 1, 4, 2).reshape(rows * (height + gap), columns * (width + gap), 3)
    axes.imshow(picture[:-gap, :-gap], interpolation="none")  # an SVG then holds each pixel once
    bare(axes)
    axes.tick_params(pad=2)
    return tuple(np.arange(n) * (side + gap) + (side - 1) / 2 for n, side in ((rows, height), (columns, width)))


def printed_table(axes: Axes, values: np.ndarray, texts: np.ndarray, **options: Any) -> AxesImage:
    """Show a table ``(rows, columns)`` as coloured cells with a text in each; ``options`` are those of ``imshow``."""
    image = axes.imshow(values, aspect="auto", **options)
    colours = image.to_rgba(values)
    lightness = colours[..., :3] @ (0.3, 0.6, 0.1) + 1 - colours[..., 3]  # NaN is transparent
    for place, text in np.ndenumerate(texts):
        ink = INK if lightness[place] > 0.5 else PAPER
        axes.text(*place[::-1], text, ha="center", va="center", fontsize=9, color=ink)
    bare(axes, ticks=True)
    return image


def shades(count: int) -> np.ndarray:
    """Return colours ``(count, 4)`` in an order, for lines, with contrast on white and on the dark ground."""
    return mpl.colormaps["plasma"](np.linspace(0.34, 0.76, count))


def by_night(svg: str) -> str:
    """Return an SVG that has its :data:`DARK` colours where its address ends with ``#dark``.

    The rules override matplotlib's inline styles where a program knows custom properties, which reach copies of markers
    as well. Others show the figure as it was.
    """
    colours = "".join(f"--{day[1:]}:{night};" for day, night in DARK.items())
    rules = f":target{{{colours}fill:{DARK[BLACK]}}}"  # matplotlib does not write a fill that is black
    rules += "".join(
        f'[style*="{what}: {day.lower()}"]{{{what}:var(--{day[1:]},{day})!important}}'
        for day in DARK
        for what in ("fill", "stroke")
        if f"{what}: {day.lower()}" in svg
    )
    style = f"<style>@supports (fill:var(--a)){{{rules}}}</style>"
    return re.sub(r"<svg ([^>]*>)", rf'<svg id="dark" \1{style}', svg, count=1)


def colour_bar(image: AxesImage, axes: Any, label: str, **options: Any) -> Colorbar:
    """Draw a frameless colour bar below the axes."""
    bar = axes[0].figure.colorbar(image, ax=axes, location="bottom", label=label, **options)
    bar.outline.set_visible(False)
    return bar
