"""Figures of single models (Fig. 8-16): their latents against the true factors, and traversals of these."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
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

__all__ = ["latent_stills", "latents", "title", "traversals"]

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


def _strips(axes: Axes, names: Sequence[str], images: np.ndarray) -> None:
    """Draw images along each latent, ``(latents, steps, channels, H, W)``, a row each."""
    rows, columns = style.mosaic(axes, images)
    axes.set_anchor("W")
    axes.set_yticks(rows, names)
    axes.set_xticks(columns[[0, -1]], ["least", "greatest"])


def _reason(model: Portrait | str) -> str:
    """Return why there is nothing to draw of a model, empty where there is something."""
    if isinstance(model, str):
        return model
    return "" if len(model.shown) else "No latent of this model is active: it draws one image, whatever it is shown."


def _name(factor: Factor) -> str:
    return f"{factor.name} [rad]" if factor.unit == "rad" else factor.name


def _factor_axis(axes: Axes, factor: Factor) -> None:
    axes.set_xlim(factor.values[0], factor.values[-1])
    if factor.unit == "rad":
        turns = np.arange(int(factor.values[-1] / np.pi + 0.01) + 1)
        axes.set_xticks(np.pi * turns, [("0", "π")[turn] if turn < 2 else f"{turn}π" for turn in turns.tolist()])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(3))


def _edges(factor: Factor) -> tuple[float, float]:
    """Return the edges of an image whose pixels lie at the values of a factor."""
    half = np.ptp(factor.values) / max(factor.size - 1, 1) / 2 or 0.5
    return float(factor.values[0] - half), float(factor.values[-1] + half)


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
    view, shown, mapped = model.view, model.shown, model.plane is not None
    numbers = [factor for factor in model.factors if factor.values.dtype.kind in "if"]
    others = [factor for factor in numbers if factor.name not in (view.split, *(view.plane or ()))]
    others = others[: 3 - mapped]
    drawn = [model.curves[factor.name][shown] for factor in others] + ([model.plane[shown]] if mapped else [])
    limit = 1.05 * max(float(np.abs(values).max()) for values in drawn)
    ticks = {"nbins": 3, "symmetric": True, "integer": limit > 1}
    colours = zip(model.bases, itertools.cycle(style.CYCLE), strict=False)
    groups = {group: style.SHAPES.get(group, colour) for group, colour in colours}

    options = {"squeeze": False, "width_ratios": [1.0] * mapped + [1.5] * len(others)}
    figure, grid = style.subplots(len(shown), mapped + len(others), height=1.15 * len(shown) + 1.2, **options)
    left = _LABEL / style.WIDTH
    figure.get_layout_engine().set(h_pad=0.03, w_pad=0.03, rect=(left, 0, 1 - left, 1))
    if mapped:
        rows, columns = map(model.factor, view.plane)
        extent = (*_edges(columns), *_edges(rows)[::-1])
        grid[0, 0].set_title(f"{columns.name} and {rows.name}")
    for row, latent in zip(grid, shown.tolist(), strict=True):
        place = {"xycoords": ("figure fraction", "axes fraction"), "va": "center", "fontsize": 10}
        row[0].annotate(_row_label(model, latent), (0.01, 0.5), **place).set_in_layout(False)
        if mapped:
            values = model.plane[latent]
            look = {"cmap": style.DIVERGING, "vmin": -limit, "vmax": limit, "aspect": "auto"}
            image = row[0].imshow(values, interpolation="nearest", extent=extent, **look)
            row[0].set_box_aspect(values.shape[0] / values.shape[1])
            style.bare(row[0])
            plane = {_name(columns): columns.values, _name(rows): rows.values[:, None]}
            figure.record({"latent": latent + 1} | plane | {"posterior mean": values})
        for axes, factor in zip(row[mapped:], others, strict=True):
            axes.axhline(0, color=style.GREY, linewidth=0.6)
            noise = model.noise[latent]
            for curve, (group, colour) in zip(model.curves[factor.name][latent], groups.items(), strict=True):
                axes.fill_between(factor.values, curve - noise, curve + noise, color=colour, alpha=0.1, linewidth=0)
                axes.plot(factor.values, curve, color=colour)
                about = {"latent": latent + 1, view.split or "images": group or "all", _name(factor): factor.values}
                figure.record(about | {"posterior mean": curve, "posterior standard deviation": noise})
            axes.set_ylim(-limit, limit)
            axes.yaxis.set_major_locator(MaxNLocator(**ticks))
            _factor_axis(axes, factor)
            axes.tick_params(labelbottom=latent == shown[-1], labelleft=axes is row[mapped])
    for axes, factor in zip(grid[0, mapped:], others, strict=True):
        axes.set_title(_name(factor))
    if mapped:
        bar = figure.colorbar(image, ax=grid[:, 0], location="bottom", aspect=14, pad=0.01, label="posterior mean")
        bar.locator = MaxNLocator(**ticks)
    if view.split:
        looks = {group: {"color": colour} for group, colour in groups.items()}
        figure.key(looks, loc="lower right", ncols=min(3, len(groups)))
    figure.suptitle(heading, x=0.01, ha="left", fontsize=11, fontweight="bold")
    return figure


@style.styled
def traversals(models: Sequence[tuple[str, Portrait | str]], base: str) -> Figure:
    """Draw traversals of every active latent of several models from one image, below its reconstruction by each.

    ``models``: heading, see :func:`title`, and the model, or why there is none; ``base``: the image that is started
    from, one of the portraits' ``bases``.
    """
    drawn = [(heading, model) for heading, model in models if not isinstance(model, str)]
    side = (style.WIDTH - _LABEL) / max([portrait.traversals.shape[2] for _, portrait in drawn], default=1)
    heights = [1.5 * side + 0.3] if drawn else []
    for heading, model in models:
        reason = _reason(model)
        content = 0.2 * (1 + len(reason) // _LINE) if reason else 0.45 + len(model.shown) * side
        heights.append(0.4 + 0.2 * heading.count("\n") + content)
    figure, grid = style.subplots(len(heights), 1, height=sum(heights), squeeze=False, height_ratios=heights)
    figure.get_layout_engine().set(h_pad=0.1)
    rows = list(grid[:, 0])
    if drawn:
        axes, first = rows.pop(0), drawn[0][1]
        images = [first.originals[first.bases.index(base)]]
        images += [portrait.reconstructions[portrait.bases.index(base)] for _, portrait in drawn]
        _, places = style.mosaic(axes, np.stack(images)[None])
        axes.set_xticks(places, ["image", *(heading.partition(",")[0] for heading, _ in drawn)])
        axes.xaxis.tick_top()
        axes.tick_params(length=0)
    for axes, (heading, model) in zip(rows, models, strict=True):
        axes.set_title(heading, loc="left", fontweight="bold")
        if reason := _reason(model):
            _text(axes, reason)
            continue
        names = [_row_label(model, latent) for latent in model.shown.tolist()]
        _strips(axes, names, model.traversals[:, model.bases.index(base)])
    return figure


@style.styled
def latent_stills(models: Mapping[str, tuple[Sequence[str], np.ndarray]]) -> Figure:
    """Draw images along each active latent of several models, one below the other.

    ``models``: title of each to the names of its rows, and its images ``(rows, steps, channels, H, W)``, uint8.
    """
    side = (style.WIDTH - _LABEL) / max(images.shape[1] for _, images in models.values())
    heights = [0.5 + max(len(names), 1) * side for names, _ in models.values()]
    figure, grid = style.subplots(len(models), 1, height=sum(heights), squeeze=False, height_ratios=heights)
    figure.get_layout_engine().set(h_pad=0.08)
    for axes, (title, (names, images)) in zip(grid[:, 0], models.items(), strict=True):
        axes.set_title(title, loc="left", fontweight="bold")
        if len(names):
            _strips(axes, names, images)
        else:
            _text(axes, "No latent is active.")
    return figure
