"""Figures of the front page and the background: networks, mutual information gaps, the paper in one picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from edition.figures import style
from edition.figures.prior import draw_surface
from edition.figures.results import FIT, FIT_LABEL, METHODS, MIG

if TYPE_CHECKING:
    from edition.stats import Curve
    from isa.latents import Portrait

__all__ = ["figure_5", "gaps", "networks", "overview"]


@style.styled
def networks(layers: Mapping[str, tuple[str, ...]]) -> Figure:
    """Draw a variational autoencoder: for each network, named by its heading, the contents of its layers in order."""
    figure, axes = style.subplots(height=1.5)
    texts = [text for network in layers.values() for text in network]
    for place, text in enumerate(texts):
        look = {"boxstyle": "round,pad=0.3", "fc": "white", "ec": style.GREY}
        axes.text(place, 0, text, bbox=look, ha="center", va="center", fontsize=8.5, linespacing=1.4)
        if place:
            axes.annotate("", (place - 0.4, 0), (place - 0.6, 0), arrowprops={"arrowstyle": "->"})
    start = 0
    for (heading, network), colour in zip(layers.items(), [style.BLUE, style.VERMILION], strict=True):
        end = start + len(network) - 1
        axes.plot([start - 0.35, end + 0.35], [0.62, 0.62], color=colour)
        axes.text((start + end) / 2, 0.82, heading, color=colour, ha="center", va="center")
        start = end + 1
        contents = [text.replace("\n", ", ") for text in network]
        figure.record({"network": heading, "layer": np.arange(len(network)) + 1, "contents": contents})
    axes.set(xlim=(-0.5, len(texts) - 0.5), ylim=(-0.6, 1.05))
    style.bare(axes)
    return figure


@style.styled
def gaps(models: Mapping[str, np.ndarray], factors: list[str]) -> Figure:
    """Draw the mutual information gap of each factor: a dot for each latent, a bar from the second to the first.

    ``models``: title of each panel to the share of each factor's entropy that each latent carries, ``(F, K)``, whose
    rows are those of ``factors``.
    """
    figure, grid = style.subplots(1, len(models), height=2.6, squeeze=False, sharey=True)
    for axes, (title, shares) in zip(grid[0], models.items(), strict=True):
        for row, (factor, values) in enumerate(zip(factors, shares, strict=True)):
            first, second = np.argsort(-values)[:2]
            axes.plot(values[[second, first]], [row, row], color=style.ORANGE, linewidth=7, alpha=0.6, zorder=1)
            axes.scatter(values, np.full(len(values), row), s=26, color=style.BLUE, alpha=0.7, linewidth=0, zorder=2)
            label = {"textcoords": "offset points", "ha": "center", "va": "bottom", "fontsize": 9}
            axes.annotate(f"$z_{{{first + 1}}}$", (values[first], row), (0, 5), **label)
            figure.record({"model": title, "factor": factor, "latent": np.arange(1, len(values) + 1), "share": values})
        ordered = -np.sort(-shares, axis=1)
        axes.set(xlim=(-0.04, 1.04), ylim=(len(factors) - 0.5, -0.65), xlabel="mutual information / entropy")
        axes.set_title(f"{title}: {MIG} {(ordered[:, 0] - ordered[:, 1]).mean():.2f}", loc="left")
        axes.set_yticks(range(len(factors)), factors)
        axes.grid(axis="x", color=style.GREY, alpha=0.2)
    return figure


def _latent(figure: style.BookFigure, axes: Axes, method: str, model: Portrait, factor: str, limit: float) -> None:
    """Draw the latent that has most information about a factor: over the plane, or against the factor."""
    latent = int(model.mutual_information[model.scored.index(factor)].argmax())
    columns = {"method": method, "factor": factor, "latent": latent + 1}
    style.bare(axes)
    if factor in (model.view.plane or ()):
        axes.imshow(model.plane[latent], cmap=style.DIVERGING, vmin=-limit, vmax=limit, interpolation="nearest")
        down, across = map(model.factor, model.view.plane)
        values = model.plane[latent]
        figure.record(columns | {across.name: across.values, down.name: down.values[:, None], "posterior mean": values})
        return
    values = model.factor(factor).values
    for shape, curve in zip(model.bases, model.curves[factor][latent], strict=True):
        axes.plot(values, curve, color=style.SHAPES.get(shape), linewidth=1.4)
        figure.record(columns | {"shape": shape, factor: values, "posterior mean": curve})
    axes.axhline(0, color=style.GREY, linewidth=0.6, zorder=0)
    axes.set(ylim=(-limit, limit))
    axes.set_box_aspect(1)


def _plane(figure: style.BookFigure, axes: Axes, curves: Mapping[str, Curve], **columns: str) -> None:
    """Draw MIG against reconstruction: runs as small dots, means over seeds joined in the order of beta."""
    for method, curve in curves.items():
        label, colour, marker = METHODS[method]
        axes.scatter(*curve.runs[:, 1:3].T, color=colour, **style.RUN)
        look = {"color": colour, "marker": marker, "markersize": 6, "linewidth": 1.2, "label": label}
        axes.plot(curve.log_likelihood, curve.mig, **look)
        means = {FIT: curve.log_likelihood, MIG: curve.mig}
        figure.record(columns | {"method": label, "beta": curve.beta} | means)
    axes.set(xlabel=FIT_LABEL)
    axes.xaxis.set_major_locator(MaxNLocator(3))


@style.styled
def figure_5(distributions: Mapping[str, np.ndarray], panels: Mapping[str, Mapping[str, Curve]]) -> Figure:
    """Draw Fig. 5 as one picture: the MIG at beta = 1 by method, then MIG against reconstruction on each data set.

    ``distributions``: by method, the MIG ``(n,)`` of every run; ``panels``: title to curves by method, empty where
    nothing is recorded.
    """
    options = {"width_ratios": [0.8] + [1] * len(panels)}
    figure, (first, *others) = style.subplots(1, 1 + len(panels), height=3.3, **options)
    box = {"widths": 0.5, "showfliers": False, "manage_ticks": False, "medianprops": {"color": style.BLACK}}
    for place, (method, values) in enumerate(distributions.items()):
        label, colour, _ = METHODS[method]
        first.boxplot(values, positions=[place], **box)
        spread = np.linspace(-0.14, 0.14, len(values))
        first.scatter(place + spread, values, color=colour, **style.RUN)
        figure.record({"panel": "β = 1", "method": label, MIG: values})
    first.set(xlim=(-0.5, len(distributions) - 0.5), ylabel=MIG, title="(a) dSprites\nβ = 1")
    first.set_xticks(range(len(distributions)), [METHODS[method].label for method in distributions])
    for letter, axes, (title, curves) in zip("bcd", others, panels.items(), strict=False):
        _plane(figure, axes, curves, panel=title)
        axes.set_title(f"({letter}) {title}".replace(", ", "\n"))
        if not curves:
            axes.text(0.5, 0.5, "not recorded", ha="center", transform=axes.transAxes, color=style.GREY)
    figure.key(ncols=3)
    return figure


@style.styled
def overview(
    solids: Mapping[str, tuple[np.ndarray, np.ndarray]],
    models: Mapping[str, Portrait],
    factors: list[str],
    curves: Mapping[str, Curve],
) -> Figure:
    """Draw the paper in one picture: two priors, the trade-off plane, and the latents of a model of each kind.

    ``solids``: title to points and normals of a surface, see :func:`edition.figures.prior.iso_surfaces`; ``models``: by
    method, the portraits whose latents are drawn, one row each, with the most informative latent for each of
    ``factors``; ``curves``: by method, MIG and log-likelihood over beta.
    """
    figure = plt.figure(figsize=(style.WIDTH, 5.6), FigureClass=style.BookFigure)
    top, bottom = figure.subfigures(2, 1, height_ratios=[2.5, 3.1])
    space = {"projection": "3d", "computed_zorder": False}
    left, right = top.subfigures(1, 2, width_ratios=[1.25, 1])
    for number, (title, mesh) in enumerate(solids.items(), 1):
        axes = left.add_subplot(1, len(solids), number, **space)
        draw_surface(axes, *mesh)
        axes.text2D(0.5, -0.12, title, transform=axes.transAxes, ha="center", va="center")

    plane = right.subplots()
    _plane(figure, plane, curves)
    plane.set_ylabel(MIG)

    grid = bottom.subplots(len(models), len(factors), squeeze=False)
    for axes, factor in zip(grid[0], factors, strict=True):
        axes.set_title(factor)
    for row, (method, model) in zip(grid, models.items(), strict=True):
        label, colour, _ = METHODS[method]
        limit = 1.05 * max(float(np.abs(model.plane[model.shown]).max()), 1.0)
        for axes, factor in zip(row, factors, strict=True):
            _latent(figure, axes, label, model, factor, limit)
        row[0].set_ylabel(f"{label}\nMIG {model.about['mig']:.2f}", color=colour, rotation=0, ha="right", va="center")
    return figure
