"""Figures of single models (Fig. 8-16): what each latent encodes, and what it does to an image."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edition.figures import style
from edition.figures.results import METHODS, scale
from edition.representatives import encoded, interpretation

if TYPE_CHECKING:
    from isa.data import Factor
    from isa.latents import Portrait

__all__ = ["latents", "title"]

# inches: a line of text, a map or a curve, the labels of the curves' axis, an image at most, the gap between models
_TEXT, _PANEL, _LABELS, _TILE, _GAP = 0.21, 0.74, 0.4, 0.4, 0.2
_LINE = 38  # characters of a line of text
_IDLE = "No latent of this model is active: it draws the same image for every input."


def title(objective: str, beta: float, portrait: Portrait | None = None) -> str:
    """Return a model's heading: name and beta, and from its portrait MIG, log-likelihood and, if reduced, the scale."""
    name = f"{METHODS[objective].label}, β = {beta:g}"
    if portrait is None:
        return name
    about = portrait.about
    fit = f"{about['log_likelihood']:.2f}".replace("-", "\N{MINUS SIGN}")
    lines = [name, f"MIG {about['mig']:.2f}, log p(x|z) {fit}"]
    lines += [scale(about["total_steps"], about["batch_size"], True)] if about["reduced"] else []
    return "\n".join([*lines, about["images_title"]] if about["procedural"] else lines)


def _name(factor: Factor) -> str:
    return f"{factor.name} [rad]" if factor.unit == "rad" else factor.name


@dataclass
class _Column:
    """Part of a figure for one model, in inches from its top left corner; ``y`` is where the next row begins."""

    figure: style.BookFigure
    model: str
    left: float
    width: float
    y: float = 0.02

    def axes(self, x: float, width: float, height: float) -> Axes:
        wide, high = self.figure.get_size_inches()
        return self.figure.add_axes(((self.left + x) / wide, 1 - (self.y + height) / high, width / wide, height / high))

    def text(self, text: str, x: float = 0, down: float = 0, va: str = "top", **options: Any) -> None:
        wide, high = self.figure.get_size_inches()
        self.figure.text((self.left + x) / wide, 1 - (self.y + down) / high, text, va=va, **options)

    def record(self, latent: int, columns: dict[str, Any], values: np.ndarray, noise: float | None = None) -> None:
        """Record a latent's posterior mean over these columns, to four decimals."""
        numbers = {"posterior mean": np.round(values.astype(float), 4)}
        if noise is not None:
            numbers["posterior standard deviation"] = round(float(noise), 4)
        self.figure.record({"model": self.model, "latent": latent + 1} | columns | numbers)


def _heading(column: _Column, heading: str) -> None:
    first, _, others = heading.partition("\n")
    column.text(first, fontweight="bold")
    column.y += _TEXT
    column.text(others)
    column.y += _TEXT * (1 + others.count("\n")) + 0.04


def _map(column: _Column, model: Portrait, latent: int, limit: float) -> Axes:
    """Draw a latent over the plane of two factors."""
    down, across = map(model.factor, model.view.plane)
    values, axes = model.plane[latent], column.axes(0, _PANEL, _PANEL)
    axes.imshow(values, cmap=style.DIVERGING, vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    style.bare(axes)
    column.record(latent, {_name(across): across.values, _name(down): down.values[:, None]}, values)
    return axes


def _curves(
    column: _Column, axes: Axes, model: Portrait, latent: int, factor: Factor, groups: dict[str, str], limit: float
) -> None:
    """Draw a latent against a factor, a curve for each value of the split."""
    x, noise = factor.values, model.noise[latent]
    axes.axhline(0, color=style.GREY, linewidth=0.6)
    for curve, (group, colour) in zip(model.curves[factor.name][latent], groups.items(), strict=True):
        axes.fill_between(x, curve - noise, curve + noise, color=colour, alpha=0.1, linewidth=0)
        axes.plot(x, curve, color=colour)
        column.record(latent, {model.view.split or "images": group or "all", _name(factor): x}, curve, noise)
    axes.set(xlim=(x[0], x[-1]), ylim=(-limit, limit))
    axes.yaxis.set_major_locator(MaxNLocator(2, symmetric=True, integer=limit > 1))
    axes.set_xticks(x[[0, -1]], [f"{end:g}" for end in x[[0, -1]]])
    if factor.unit == "rad":
        turns = range(int(x[-1] / np.pi + 0.01) + 1)
        axes.set_xticks(np.pi * np.array(turns), ["0", "π", *(f"{turn}π" for turn in turns[2:])][: len(turns)])


def _others(model: Portrait) -> list[Factor]:
    """Return the factors whose curves are drawn: up to two next to a map, up to three without one."""
    numbers = [factor for factor in model.factors if factor.values.dtype.kind in "if"]
    taken = (model.view.split, *(model.view.plane or ()))
    return [factor for factor in numbers if factor.name not in taken][: 3 - (model.plane is not None)]


def _model(column: _Column, heading: str, model: Portrait, base: str, groups: dict[str, str]) -> None:
    """Draw a model: an image and its reconstruction; for each latent its traversal, a map and curves."""
    at, steps, (height, width) = model.bases.index(base), model.traversals.shape[2], model.traversals.shape[-2:]
    beside = column.width > 0.6 * style.WIDTH  # traversals on the right of the panels, otherwise above them
    half = (column.width - _GAP) / 2 if beside else column.width
    side = min(_TILE, half / steps * height / width)  # height of an image
    tile = side * width / height
    _heading(column, heading)
    pair = {"image": model.originals[at], "reconstruction": model.reconstructions[at]}
    for x, (label, image) in zip((0, tile + 0.7), pair.items(), strict=True):
        style.mosaic(column.axes(x, tile, side), image[None, None])
        column.text(label, x + tile + 0.06, side / 2, va="center")
    column.y += side + 0.1

    others, maps = _others(model), model.plane is not None
    drawn = [model.curves[factor.name][model.shown] for factor in others] + ([model.plane[model.shown]] if maps else [])
    limit = 1.05 * max(float(np.abs(values).max()) for values in drawn)
    left = _LABELS + (_PANEL if maps else 0)
    span = (half - left + 0.12) / max(len(others), 1)
    strip = half + _GAP if beside else 0
    traversals = dict(zip(model.shown.tolist(), model.traversals[:, at], strict=True))
    for number, latent in enumerate(encoded(model)):
        column.text(f"$z_{{{latent + 1}}}$  {interpretation(model, latent)}")
        column.y += 0 if beside else _TEXT
        if not number:
            column.text("minimum", strip)
            column.text("maximum", strip + steps * tile, ha="right")
        column.y += _TEXT if beside or not number else 0
        tiles = traversals[latent]
        tiles = tiles & 0xF8 | tiles >> 5  # 32 grey levels take half of the bytes
        style.mosaic(column.axes(strip, steps * tile, side), tiles[None])
        column.y += 0 if beside else side + 0.06
        panels = [_map(column, model, latent, limit)] if maps else []
        for place, factor in enumerate(others):
            axes = column.axes(left + place * span, span - 0.22, _PANEL)
            _curves(column, axes, model, latent, factor, groups, limit)
            axes.tick_params(labelbottom=number == len(traversals) - 1, labelleft=not place, pad=2)
            panels.append(axes)
        column.y += _PANEL + 0.12
    names = [f"{model.view.plane[1]} and {model.view.plane[0]}"] if maps else []
    for axes, name in zip(panels, [*names, *(factor.name for factor in others)], strict=True):
        box, high = axes.get_position(), column.figure.get_size_inches()[1]
        column.figure.text((box.x0 + box.x1) / 2, box.y0 - 0.2 / high, name, ha="center", va="top")


@style.styled
def latents(models: Sequence[tuple[str, Portrait | str]], base: str = "") -> Figure:
    """Draw up to two models side by side, and for each active latent its traversal, a map and curves.

    A traversal starts from the posterior mean of an image and moves the latent from the minimum to the maximum of its
    posterior means over all images; it has 32 grey levels. The map shows the posterior mean over the plane of two
    factors, the curves against up to two others, each averaged over the factors that are not shown, on one scale for
    all of a model's panels; colour in a map is height in a curve. Shaded is one standard deviation of the posterior.

    ``models``: heading, see :func:`title`, and the model, or why there is none; ``base``: the image that traversals
    start from, one of the portraits' ``bases``.
    """
    reasons = [model if isinstance(model, str) else "" if len(model.shown) else _IDLE for _, model in models]
    high, width = 1.1 if len(models) == 1 else 1.53, (style.WIDTH - _GAP * (len(models) - 1)) / len(models)
    heights, groups = [], {}
    for (heading, model), reason in zip(models, reasons, strict=True):
        rows = 2 if reason else len(model.shown)
        heights.append(1.45 + _TEXT * heading.count("\n") + rows * high)
        colours = zip([] if reason else model.bases, itertools.cycle(style.CYCLE), strict=False)
        groups |= {group: style.SHAPES.get(group, colour) for group, colour in colours}
    figure, axes = style.subplots(height=0.4 + _TEXT * 3 if all(reasons) else max(heights) + 0.2)
    axes.remove()
    figure.set_layout_engine("none")
    for number, ((heading, model), reason) in enumerate(zip(models, reasons, strict=True)):
        column = _Column(figure, heading.partition("\n")[0], number * (width + _GAP), width)
        if reason:
            _heading(column, heading)
            column.text(textwrap.fill(reason, _LINE * (3 - len(models))))
        else:
            _model(column, heading, model, base, groups if model.view.split else dict.fromkeys(model.bases, style.BLUE))
    if len(groups) > 1:
        looks = {group: {"color": colour} for group, colour in groups.items()}
        figure.key(looks, loc="lower center", ncols=min(3, len(groups)))
    return figure
