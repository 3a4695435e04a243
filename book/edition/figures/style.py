"""The look of all figures: sizes that stay legible on a phone, colours that survive colour blindness, black ink on
white.

In the book's dark mode the page inverts a figure's lightness and keeps its hues (``book/_static/edition.css``), so
figures are drawn for a white page; images of data, which must not be inverted, carry the class ``photo`` in their
cell's metadata.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import matplotlib as mpl
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

__all__ = ["WIDTH", "bare", "styled", "subplots"]

# Okabe and Ito's palette without its yellow, which a white page swallows
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#222222",
)  # fmt: skip
GREY = "#8a8a8a"
CYCLE = [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK]

DIVERGING = LinearSegmentedColormap.from_list("isa.diverging", [BLUE, "#9ecae1", "#f7f7f7", "#fdb58a", VERMILION])
SEQUENTIAL = mpl.colormaps["viridis"]

WIDTH = 6.4
"""Width of a full figure in inches: at this width 11 pt text is still legible where a phone shrinks it to 340 pixels.
"""

RC = {
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "font.size": 11,
    "axes.titlesize": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.prop_cycle": mpl.cycler(color=CYCLE),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": BLACK,
    "axes.labelcolor": BLACK,
    "text.color": BLACK,
    "xtick.color": BLACK,
    "ytick.color": BLACK,
    "lines.linewidth": 1.8,
    "mathtext.fontset": "dejavusans",
    "svg.hashsalt": "isa",
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw in the book's style, and leave the caller's settings of matplotlib as they were."""
    with mpl.rc_context(RC):
        yield


def subplots(
    rows: int = 1, columns: int = 1, *, height: float, width: float = WIDTH, **kwargs
) -> tuple[Figure, np.ndarray | Axes]:
    """``plt.subplots`` with the book's width; ``height`` in inches. Call within :func:`styled`."""
    return plt.subplots(rows, columns, figsize=(width, height), **kwargs)


def bare(axes: Axes) -> None:
    """Take the frame and the ticks off axes that show an image or a drawing."""
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
