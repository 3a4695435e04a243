"""Figures of single models (Fig. 8-16): their latents against the true factors, and traversals of these."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edition.figures import style
from edition.figures.results import METHODS, scale

if TYPE_CHECKING:
    from isa.data import Factor
    from isa.latents import Portrait

__all__ = ["latents", "title", "traversals"]

_LINE = 68  # characters of a line of text
_LABEL = 0.9  # inches left of a row, for what its latent is


def title(objective: str, beta: float, portrait: Portrait | None = None) -> str:
    """Return a model's heading: its name and beta, and of its portrait MIG, log-likelihood and scale."""
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


def _text(axes: Axes, text: str) -> None:
    style.bare(axes)
    axes.text(0, 1, textwrap.fill(text, _LINE), va="top", transform=axes.transAxes)


def _reason(model: Portrait | str) -> str:
    """Return why there is nothing to draw of a model, empty where there is something."""
    if isinstance(model, str):
        return model
    return "" if len(model.shown) else "No latent of this model is active: it draws one image, whatever it is shown."


def _name(factor: Factor) -> str:
    return f"{factor.name} [rad]" if factor.unit == "rad" else factor.name


def _ticks(limit: float) -> MaxNLocator:
    return MaxNLocator(3, symmetric=True, integer=limit > 1)


def _edges(factor: Factor) -> tuple[float, float]:
    """Return the edges of an image whose pixels lie at the values of a factor."""
    half = np.ptp(factor.values) / max(factor.size - 1, 1) / 2 or 0.5
    return float(factor.values[0] - half), float(factor.values[-1] + half)


def _maps(figure: style.BookFigure, column: np.ndarray, model: Portrait, limit: float) -> None:
    """Draw each active latent over the plane of two factors, in a column of panels."""
    down, across = map(model.factor, model.view.plane)
    extent = (*_edges(across), *_edges(down)[::-1])
    look = {"cmap": style.DIVERGING, "vmin": -limit, "vmax": limit, "aspect": "auto", "interpolation": "nearest"}
    for axes, latent in zip(column, model.shown, strict=True):
        values = model.plane[latent]
        image = axes.imshow(values, extent=extent, **look)
        axes.set_box_aspect(values.shape[0] / values.shape[1])
        style.bare(axes)
        plane = {_name(across): across.values, _name(down): down.values[:, None]}
        figure.record({"latent": latent + 1} | plane | {"posterior mean": values})
    column[0].set_title(f"{across.name} and {down.name}")
    bar = figure.colorbar(image, ax=column, location="bottom", aspect=14, pad=0.01, label="posterior mean")
    bar.locator = _ticks(limit)


def _curves(
    figure: style.BookFigure, column: np.ndarray, model: Portrait, factor: Factor, groups: dict[str, str], limit: float
) -> None:
    """Draw each active latent against a factor, a curve for each value of the split, in a column of panels."""
    x = factor.values
    for axes, latent in zip(column, model.shown, strict=True):
        axes.axhline(0, color=style.GREY, linewidth=0.6)
        noise = model.noise[latent]
        for curve, (group, colour) in zip(model.curves[factor.name][latent], groups.items(), strict=True):
            axes.fill_between(x, curve - noise, curve + noise, color=colour, alpha=0.1, linewidth=0)
            axes.plot(x, curve, color=colour)
            about = {"latent": latent + 1, model.view.split or "images": group or "all", _name(factor): x}
            figure.record(about | {"posterior mean": curve, "posterior standard deviation": noise})
        axes.set(xlim=(x[0], x[-1]), ylim=(-limit, limit))
        axes.yaxis.set_major_locator(_ticks(limit))
        axes.xaxis.set_major_locator(MaxNLocator(3))
        if factor.unit == "rad":
            turns = range(int(x[-1] / np.pi + 0.01) + 1)
            axes.set_xticks(np.pi * np.array(turns), ["0", "π", *(f"{turn}π" for turn in turns[2:])][: len(turns)])
        axes.tick_params(labelbottom=axes is column[-1])
    column[0].set_title(_name(factor))


@style.styled
def latents(heading: str, model: Portrait | str) -> Figure:
    """Draw each active latent against the true factors: a map over the plane of two, curves against up to two others.

    Everything is the posterior mean, averaged over the factors that are not shown, on one scale for all panels; colour
    in a map is height in a curve. Shaded is one standard deviation of the posterior to either side.

    ``heading``: heading of the figure, see :func:`title`; ``model``: the model, or why there is none: the figure then
    says so.
    """
    if reason := _reason(model):
        figure, axes = style.subplots(height=0.5 + 0.2 * (1 + len(reason) // _LINE))
        axes.set_title(heading, loc="left", fontweight="bold")
        _text(axes, reason)
        return figure
    view, shown, maps = model.view, model.shown, int(model.plane is not None)
    numbers = [factor for factor in model.factors if factor.values.dtype.kind in "if"]
    others = [factor for factor in numbers if factor.name not in (view.split, *(view.plane or ()))][: 3 - maps]
    drawn = [model.curves[factor.name][shown] for factor in others] + ([model.plane[shown]] if maps else [])
    limit = 1.05 * max(float(np.abs(values).max()) for values in drawn)
    colours = zip(model.bases, itertools.cycle(style.CYCLE), strict=False)
    groups = {group: style.SHAPES.get(group, colour) for group, colour in colours}

    options = {"squeeze": False, "width_ratios": [1.0] * maps + [1.5] * len(others)}
    figure, grid = style.subplots(len(shown), maps + len(others), height=1.15 * len(shown) + 1.2, **options)
    left = _LABEL / style.WIDTH
    figure.get_layout_engine().set(h_pad=0.03, w_pad=0.03, rect=(left, 0, 1 - left, 1))
    if maps:
        _maps(figure, grid[:, 0], model, limit)
    for column, factor in zip(grid.T[maps:], others, strict=True):
        _curves(figure, column, model, factor, groups, limit)
    for axes in grid[:, maps + 1 :].flat:
        axes.tick_params(labelleft=False)
    for axes, latent in zip(grid[:, 0], shown.tolist(), strict=True):
        place = {"xycoords": ("figure fraction", "axes fraction"), "va": "center", "fontsize": 10}
        axes.annotate(_row_label(model, latent), (0.01, 0.5), **place).set_in_layout(False)
    if view.split:
        looks = {group: {"color": colour} for group, colour in groups.items()}
        figure.key(looks, loc="lower right", ncols=min(3, len(groups)))
    figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


@style.styled
def traversals(models: Sequence[tuple[str, Portrait | str]], base: str) -> Figure:
    """Draw traversals of every active latent of several models from one image, below its reconstruction by each.

    Traversals have 32 grey levels, evenly spaced.

    ``models``: heading, see :func:`title`, and the model, or why there is none; ``base``: the image that is started
    from, one of the portraits' ``bases``.
    """
    reasons, strips, labels, images = [_reason(model) for _, model in models], [], ["image"], []
    for (heading, model), reason in zip(models, reasons, strict=True):
        strips.append(() if reason else model.traversals[:, model.bases.index(base)])
        if not isinstance(model, str):
            at = model.bases.index(base)
            labels.append(heading.partition(",")[0])
            images += [model.reconstructions[at]] if images else [model.originals[at], model.reconstructions[at]]

    side = (style.WIDTH - _LABEL) / max([tiles.shape[1] for tiles in strips if len(tiles)], default=8)
    heights = [1.5 * side + 0.3] if images else []
    for (heading, _), reason, tiles in zip(models, reasons, strips, strict=True):
        content = 0.2 * (1 + len(reason) // _LINE) if reason else 0.45 + len(tiles) * side
        heights.append(0.4 + 0.2 * heading.count("\n") + content)
    figure, grid = style.subplots(len(heights), 1, height=sum(heights), squeeze=False, height_ratios=heights)
    figure.get_layout_engine().set(h_pad=0.1)
    panels = list(grid[:, 0])
    if images:
        axes = panels.pop(0)
        _, columns = style.mosaic(axes, np.stack(images)[None])
        axes.set_xticks(columns, labels)
        axes.xaxis.tick_top()
    for axes, (heading, model), reason, tiles in zip(panels, models, reasons, strips, strict=True):
        axes.set_title(heading, loc="left", fontweight="bold")
        if reason:
            _text(axes, reason)
            continue
        rows, columns = style.mosaic(axes, tiles & 0xF8 | tiles >> 5)  # 32 grey levels take half of the bytes
        axes.set_anchor("W")
        axes.set_yticks(rows, [_row_label(model, latent) for latent in model.shown.tolist()])
        axes.set_xticks(columns[[0, -1]], ["least", "greatest"])
    return figure
