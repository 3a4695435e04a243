"""Figures of single models (Fig. 8-16): their latents against the true factors, and traversals of these."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from edition.figures import style
from edition.figures.results import METHODS, scale

if TYPE_CHECKING:
    from isa.data import Factor
    from isa.latents import Portrait

SHAPES = {"ellipse": style.VERMILION, "square": style.GREEN, "heart": style.BLUE}
"""The paper's colours of the shapes: red, green and blue."""

_PANELS = 3
_LINE = 68  # characters of a line of text
_GAP = 2
_LABEL = 0.9  # inches left of a row, for what its latent is


def title(objective: str, beta: float, portrait: Portrait | None = None) -> str:
    """How a model is headed: its name and beta, and of its portrait MIG, log-likelihood and scale."""
    name = f"{METHODS[objective].label}, β = {beta:g}"
    if portrait is None:
        return name
    about = portrait.about
    trained = scale(about["total_steps"], about["batch_size"], about["reduced"])
    fit = f"{about['log_likelihood']:.2f}".replace("-", "\N{MINUS SIGN}")
    stand_in = "\n" + about["images_title"] if about["procedural"] else ""
    return f"{name}: MIG {about['mig']:.2f}, log p(x|z) {fit}\n{trained}{stand_in}"


def _row_label(portrait: Portrait, latent: int) -> str:
    factor, nats = portrait.informative[latent]
    return f"$z_{{{latent + 1}}}$\n{factor}\n{nats:.2f} nats"


def _say(axes: Axes, text: str) -> None:
    style.bare(axes)
    axes.text(0, 1, textwrap.fill(text, _LINE), va="top", transform=axes.transAxes)


def _words(model: Portrait | str) -> str:
    """Why there is nothing to draw of a model, empty where there is something."""
    if isinstance(model, str):
        return model
    return "" if len(model.shown) else "No latent of this model is active: it draws one image, whatever it is shown."


def _factor_axis(axes: Axes, factor: Factor) -> None:
    axes.set_xlim(factor.values[0], factor.values[-1])
    if factor.unit == "rad":
        axes.xaxis.set_major_locator(MultipleLocator(np.pi))
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda value, _: {0: "0", 1: "π"}.get(round(value / np.pi), f"{round(value / np.pi)}π"))
        )
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3))


def _extent(columns: Factor, rows: Factor) -> tuple[float, float, float, float]:
    """Edges of an image whose pixels lie at the values of two factors, the first row at the top."""
    edges = []
    for factor in (columns, rows):
        half = np.ptp(factor.values) / max(factor.size - 1, 1) / 2 or 0.5
        edges.append((float(factor.values[0] - half), float(factor.values[-1] + half)))
    return *edges[0], *edges[1][::-1]


def latents(heading: str, model: Portrait | str) -> Figure:
    """Each active latent against the true factors: a map over the plane of two, curves against up to two others.

    Everything is the posterior mean, averaged over the factors that are not shown, on one scale for all panels; colour
    in a map is height in a curve. Shaded is one standard deviation of the posterior to either side.

    ``heading``: heading of the figure, see :func:`title`; ``model``: the model, or why there is none: the figure then
    says so.
    """
    words = _words(model)
    if words:
        with style.styled():
            figure, axes = style.subplots(height=0.5 + 0.2 * (1 + len(words) // _LINE))
            axes.set_title(heading, loc="left", fontweight="bold")
            _say(axes, words)
        return figure
    portrait = model
    view = portrait.view
    apart = {view.split, *(view.plane or ())}
    others = [factor for factor in portrait.factors if factor.name not in apart and factor.values.dtype.kind in "if"]
    others = others[: _PANELS - (view.plane is not None)]
    shown = portrait.shown
    groups = portrait.bases
    colours = [SHAPES.get(group, style.CYCLE[number % len(style.CYCLE)]) for number, group in enumerate(groups)]
    drawn = [portrait.curves[factor.name][shown] for factor in others]
    drawn += [] if portrait.plane is None else [portrait.plane[shown]]
    limit = 1.05 * max(float(np.abs(values).max()) for values in drawn)

    with style.styled():
        ratios = [1.0] * (portrait.plane is not None) + [1.5] * len(others)
        figure, grid = style.subplots(
            len(shown), len(ratios), height=1.15 * len(shown) + 1.2, squeeze=False, gridspec_kw={"width_ratios": ratios}
        )
        figure.get_layout_engine().set(
            h_pad=0.03, w_pad=0.03, rect=(_LABEL / style.WIDTH, 0, 1 - _LABEL / style.WIDTH, 1)
        )
        for row, latent in zip(grid, shown.tolist(), strict=True):
            panels = list(row)
            where = ("figure fraction", "axes fraction")
            label = row[0].annotate(_row_label(portrait, latent), (0.01, 0.5), xycoords=where, va="center", fontsize=10)
            label.set_in_layout(False)
            if portrait.plane is not None:
                image = panels[0].imshow(
                    portrait.plane[latent],
                    cmap=style.DIVERGING,
                    vmin=-limit,
                    vmax=limit,
                    interpolation="nearest",
                    aspect="auto",
                    label=f"{view.plane[1]} and {view.plane[0]}, z{latent + 1}",
                    extent=_extent(portrait.factor(view.plane[1]), portrait.factor(view.plane[0])),
                )
                panels[0].set_box_aspect(portrait.plane.shape[1] / portrait.plane.shape[2])
                style.bare(panels.pop(0))
            for axes, factor in zip(panels, others, strict=True):
                axes.axhline(0, color=style.GREY, linewidth=0.6)
                noise = portrait.noise[latent]
                for curve, group, colour in zip(portrait.curves[factor.name][latent], groups, colours, strict=True):
                    name = f"{factor.name}, z{latent + 1} {group}".strip()
                    band = {"alpha": 0.1, "linewidth": 0, "label": f"{name}, one standard deviation"}
                    axes.fill_between(factor.values, curve - noise, curve + noise, color=colour, **band)
                    axes.plot(factor.values, curve, color=colour, label=name)
                axes.set_ylim(-limit, limit)
                axes.yaxis.set_major_locator(MaxNLocator(3, symmetric=True, integer=limit > 1))
                _factor_axis(axes, factor)
                axes.tick_params(labelbottom=latent == shown[-1], labelleft=axes is panels[0])
        for axes, factor in zip(grid[0, -len(others) :], others, strict=True):
            axes.set_title(f"{factor.name} [rad]" if factor.unit == "rad" else factor.name)
        if portrait.plane is not None:
            grid[0, 0].set_title(f"{view.plane[1]} and {view.plane[0]}")
            bar = figure.colorbar(image, ax=grid[:, 0], location="bottom", aspect=14, pad=0.01)
            bar.set_label("posterior mean")
            bar.locator = MaxNLocator(3, symmetric=True, integer=limit > 1)
        if view.split:
            handles = [Line2D([], [], color=colour) for colour in colours]
            figure.legend(handles, groups, loc="lower right", ncols=min(3, len(groups)))
        figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


def _mosaic(images: np.ndarray) -> np.ndarray:
    """Images ``(R, C, channels, H, W)``, grey levels, as one RGB picture with grey gaps between them."""
    rows, columns, _, height, width = images.shape
    tiles = np.broadcast_to(images, (rows, columns, 3, height, width))
    tiles = np.pad(tiles, ((0, 0), (0, 0), (0, 0), (0, _GAP), (0, _GAP)), constant_values=190)
    mosaic = tiles.transpose(0, 3, 1, 4, 2).reshape(rows * (height + _GAP), columns * (width + _GAP), 3)
    return mosaic[:-_GAP, :-_GAP]


def picture(axes: Axes, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Show images ``(R, C, channels, H, W)`` as a mosaic; return the middles of its rows and columns."""
    axes.imshow(_mosaic(images), interpolation="none")  # an SVG then holds each pixel once
    style.bare(axes)
    axes.tick_params(length=0, pad=3)
    height, width = images.shape[3:]
    rows, columns = (np.arange(count) for count in images.shape[:2])
    return rows * (height + _GAP) + (height - 1) / 2, columns * (width + _GAP) + (width - 1) / 2


def traversals(models: Sequence[tuple[str, Portrait | str]], base: str) -> Figure:
    """Traversals of every active latent of several models from one image, above them the image as each rebuilds it.

    ``models``: heading, see :func:`title`, and the model, or why there is none; ``base``: the image that is started
    from, one of the portraits' ``bases``.
    """
    drawn = [(heading, model) for heading, model in models if not isinstance(model, str)]
    side = (style.WIDTH - _LABEL) / max([portrait.traversals.shape[2] for _, portrait in drawn], default=1)
    heights = [1.5 * side + 0.3] if drawn else []
    for heading, model in models:
        words = _words(model)
        text = 0.2 + 0.2 * (1 + heading.count("\n"))
        heights.append(text + (0.2 * (1 + len(words) // _LINE) if words else 0.45 + len(model.shown) * side))
    with style.styled():
        figure, grid = style.subplots(
            len(heights), 1, height=sum(heights), squeeze=False, gridspec_kw={"height_ratios": heights}
        )
        figure.get_layout_engine().set(h_pad=0.1)
        rows = list(grid[:, 0])
        if drawn:
            where = [portrait.bases.index(base) for _, portrait in drawn]
            seen = [portrait.reconstructions[place] for (_, portrait), place in zip(drawn, where, strict=True)]
            axes = rows.pop(0)
            _, middles = picture(axes, np.stack([drawn[0][1].originals[where[0]], *seen])[None])
            axes.set_xticks(middles, ["image", *(heading.partition(",")[0] for heading, _ in drawn)])
            axes.xaxis.tick_top()
        for axes, (heading, model) in zip(rows, models, strict=True):
            axes.set_title(heading, loc="left", fontweight="bold")
            if _words(model):
                _say(axes, _words(model))
                continue
            middles, columns = picture(axes, model.traversals[:, model.bases.index(base)])
            axes.set_anchor("W")
            axes.set_yticks(middles, [_row_label(model, latent) for latent in model.shown.tolist()])
            axes.set_xticks(columns[[0, -1]], ["least", "greatest"])
    return figure
