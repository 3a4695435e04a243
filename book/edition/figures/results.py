"""Figures drawn from records: MIG and reconstruction over runs (Fig. 5a-c, 6), learned exponents (Fig. 7), controls.

Every run is shown as a dot. Means and intervals come from :mod:`edition.stats`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from edition.figures import style
from isa.prior import Node

if TYPE_CHECKING:
    from edition.stats import Curve, Interval

__all__ = ["METHODS", "Effect", "Method", "controls", "effects", "exponents", "lengths", "mig_distributions", "prior"]
__all__ += ["scale", "trade_off"]

MIG = "MIG"
FIT = "log-likelihood [nats]"
FIT_LABEL = r"$\mathbb{E}_{q(z|x)}\,\log p(x|z)$ [nats]"


class Method(NamedTuple):
    """Label and look of a method, in every figure."""

    label: str
    colour: str
    marker: str


METHODS: dict[str, Method] = {
    "beta-vae": Method("β-VAE", style.BLUE, "o"),
    "isa-vae": Method("ISA-VAE", style.VERMILION, "s"),
    "isa-vae, learned": Method("ISA-VAE, learned exponents", style.PURPLE, "D"),
    "beta-tcvae": Method("β-TCVAE", style.GREEN, "^"),
    "isa-tcvae": Method("ISA-TCVAE", style.ORANGE, "v"),
    "factor-vae": Method("FactorVAE", style.SKY, "P"),
}
"""By the objective's name; with learned exponents ``", learned"`` follows it."""


class Effect(NamedTuple):
    """A mean with its interval, the values ``(n,)`` behind it, and the interval of such means by chance."""

    interval: Interval
    values: Sequence[float] = ()
    chance: tuple[float, float] | None = None


def scale(total_steps: int, batch_size: int, reduced: bool) -> str:
    """Return the length of training as text: ``7,200 steps of 2,048``, followed by the word reduced if it was."""
    return f"{total_steps:,} steps of {batch_size:,}{', reduced' if reduced else ''}"


def prior(row: Mapping[str, Any]) -> str:
    """Describe a run's prior in a few words, from the fields of the run in its record."""
    if row["prior"] == "normal":
        return "N(0, I)"
    if row["prior"] == "isa":
        sizes, p0, p1 = row["subspaces"], row["p0"], row["p1"]
        layout = f"{len(sizes)} × {sizes[0]}" if len(set(sizes)) == 1 else " + ".join(map(str, sizes))
        inner = f"{p1:g}" if isinstance(p1, (int, float)) else ", ".join(f"{p:g}" for p in p1)
        text = f"{layout}, ({p0:g}; {inner}){', learned' if row['learn_exponents'] else ''}"
    else:
        p, *others = Node.parse(row["prior"]).exponents
        text = row["prior"] if others else "Gaussian" if p == 2 else f"factorised, p = {p:g}"
    if row["scale"] == "unit":
        return f"{text}, unit variance"
    return text if row["scale"] == 1 else f"{text}, s = {row['scale']:.3g}"


_MEAN = {"marker": "D", "markersize": 6, "capsize": 4, "markeredgecolor": "white", "linewidth": 2, "zorder": 4}
_BOX = {f"{part}props": {"color": style.GREY} for part in ("box", "whisker", "cap")}
_BOX |= {"medianprops": {"color": style.BLACK, "linewidth": 1.6}, "showfliers": False, "manage_ticks": False}
_POINT = {"markersize": 6, "elinewidth": 0.9, "capsize": 1.5, "zorder": 3}
_COURSE = {"marker": "o", "markersize": 4, "linewidth": 0.8, "alpha": 0.5}
_CHANCE = {"color": style.GREY, "alpha": 0.3, "linewidth": 7, "solid_capstyle": "butt", "zorder": 1}
_PAPER = {"markersize": 9, "markerfacecolor": "none", "markeredgewidth": 1.4, "zorder": 5}


def _swarm(values: np.ndarray, span: float, width: float) -> np.ndarray:
    """Return offsets that set dots of nearly one height side by side, at most ``width`` to either side.

    ``span`` is the range of the axis: dots within a fortieth of it are side by side.
    """
    offsets = np.zeros(len(values))
    bins = np.floor(values / (span / 40)).astype(int)
    for one in np.unique(bins):
        inside = np.flatnonzero(bins == one)
        number = np.arange(len(inside))
        places = (number + 1) // 2 * np.where(number % 2, 1, -1) * width / 8
        offsets[inside[np.argsort(values[inside])]] = places * width / max(np.abs(places).max(), width)
    return offsets


def _span(groups: Sequence[np.ndarray]) -> float:
    return float(np.ptp(np.concatenate(groups))) or 1.0


def _dots(
    axes: Axes, place: float, values: np.ndarray, span: float, width: float, across: bool, colour: str, columns: dict
) -> None:
    """Draw every run as a dot, around a place on the other axis, and record it; ``across``: values go to the right."""
    points = values, place + _swarm(values, span, width)
    axes.scatter(*(points if across else points[::-1]), s=16, color=colour, alpha=0.55, linewidth=0, zorder=2)
    axes.figure.record(columns | {"series": "run", "value": values})


def _mean(axes: Axes, place: float, interval: Interval, across: bool, colour: str, columns: dict) -> None:
    """Draw a mean with its interval, where there is one, and record it."""
    mean, low, high, _ = interval
    arms = None if np.isnan([low, high]).any() else np.maximum([[mean - low], [high - mean]], 0)
    x, y = (mean, place) if across else (place, mean)
    axes.errorbar(x, y, **{"xerr" if across else "yerr": arms}, **_MEAN, color=colour)
    axes.figure.record(columns | {"series": "mean", "value": mean, "low": low, "high": high})


def _used(panels: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the methods that occur, in the order of :data:`METHODS`."""
    return [name for name in METHODS if any(name in panel for panel in panels)]


@style.styled
def mig_distributions(
    panels: Mapping[str, Mapping[str, tuple[np.ndarray, Interval]]], paper: Mapping[str, Mapping[str, float]]
) -> Figure:
    """Draw the MIG of every run, by method, with quartiles and the mean with its interval (Fig. 5a).

    ``panels``: title of each panel, one to three, to methods (keys of :data:`METHODS`): the MIG ``(n,)`` of every run,
    and their mean with its interval; ``paper``: by title and method: a MIG that the paper prints, drawn as a mark to
    the left of the runs.
    """
    methods = _used(list(panels.values()))
    span = _span([values for panel in panels.values() for values, _ in panel.values()])
    mark = {"marker": ">", "color": style.BLACK, "markersize": 7, "zorder": 5, "linestyle": ""}
    figure, grid = style.subplots(1, len(panels), height=3.9, squeeze=False, sharey=True)
    for axes, (title, panel) in zip(grid[0], panels.items(), strict=True):
        ticks = []
        for place, name in enumerate(methods):
            label, colour, _ = METHODS[name]
            values, interval = panel.get(name, ((), None))
            ticks.append(label.replace(", ", "\n") + f"\n{len(values)} run{'s' * (len(values) != 1)}")
            if interval is None:
                continue
            axes.boxplot(values, positions=[place], widths=0.62, zorder=1, **_BOX)
            columns = {"panel": title, "method": label, "quantity": MIG}
            _dots(axes, place, values, span, 0.26, False, colour, columns)
            _mean(axes, place + 0.42, interval, False, colour, columns)
            if name in paper.get(title, {}):
                axes.plot(place - 0.42, paper[title][name], **mark)
                figure.record(columns | {"series": "paper", "value": paper[title][name]})
        axes.set_xticks(range(len(methods)), ticks)
        axes.set(xlim=(-0.65, len(methods) - 0.35), title=fill(title, 54 // len(panels)))
        axes.grid(axis="y", color=style.GREY, alpha=0.2)
    low, high = grid[0, 0].get_ylim()
    grid[0, 0].set(ylabel=MIG, ylim=(min(0, low), high + 0.03 * (high - low)))  # shows 0, and the highest run whole
    entries = {
        "a run": {"color": style.BLACK, "marker": "o", "alpha": 0.55, "linestyle": "", "markersize": 4},
        "quartiles": Patch(facecolor="white", edgecolor=style.GREY),
        "mean, 95 % interval": {"color": style.BLACK, "marker": "D"},
    }
    figure.key(entries | ({"the paper's representative": mark} if any(paper.values()) else {}), ncols=2)
    return figure


@style.styled
def trade_off(
    panels: Mapping[str, Mapping[str, Curve]],
    paper: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]] | None = None,
) -> Figure:
    """Draw MIG against reconstruction over beta, one marker a beta, joined in the order of beta (Fig. 5b, 5c and 6).

    Error bars are one standard error to every side, dots are runs. Beta stands next to the marker where there is room.

    ``panels``: title of each panel, one below the other, to methods (keys of :data:`METHODS`) and their curves;
    ``paper``: by title and method: points that the paper prints, as beta, log-likelihood and MIG.
    """
    paper = {title: (paper or {}).get(title, {}) for title in panels}
    methods = _used([*panels.values(), *paper.values()])
    labelled = []
    figure, grid = style.subplots(len(panels), 1, height=0.7 + 3.9 * len(panels), squeeze=False)
    for axes, (title, panel) in zip(grid[:, 0], panels.items(), strict=True):
        points = []
        for name in methods:
            label, colour, marker = METHODS[name]
            columns = {"panel": title, "method": label}
            if name in panel:
                beta, fit, mig, fit_error, mig_error, _, runs = panel[name]
                axes.scatter(*runs[:, 1:3].T, color=colour, **style.RUN)
                arms = np.nan_to_num([mig_error, fit_error])
                axes.errorbar(fit, mig, *arms, color=colour, marker=marker, **_POINT)
                points.append((colour, np.stack([beta, fit, mig], 1)))
                errors = {f"standard error of {FIT}": fit_error, f"standard error of {MIG}": mig_error}
                figure.record(columns | {"series": "run"} | dict(zip(("beta", FIT, MIG), runs.T, strict=False)))
                figure.record(columns | {"series": "mean", "beta": beta, FIT: fit, MIG: mig} | errors)
            if name in paper[title]:
                beta, fit, mig = printed = np.transpose(paper[title][name])
                axes.plot(fit, mig, color=colour, marker=marker, linestyle="", **_PAPER)
                points.append((colour, printed.T))
                figure.record(columns | {"series": "paper", "beta": beta, FIT: fit, MIG: mig})
        axes.set(xlabel=FIT_LABEL, ylabel=MIG, title=title)
        axes.margins(0.07)
        axes.locator_params(axis="x", nbins=6)
        labelled.append((axes, points))
    entries = {METHODS[name].label: dict(zip(("color", "marker"), METHODS[name][1:], strict=True)) for name in methods}
    if any(paper.values()):
        entries["the paper's representatives"] = {"color": style.BLACK, "marker": "o", "linestyle": "", **_PAPER}
    figure.key(entries, ncols=2)
    figure.draw_without_rendering()  # so that places on the page are known
    for axes, points in labelled:
        _label_betas(axes, points)
    return figure


_SIDES = ((1, 1), (-1, -1), (1, -1), (-1, 1), (0, 1), (0, -1), (1, 0), (-1, 0))  # corners are free of error bars


def _label_betas(axes: Axes, curves: Sequence[tuple[str, np.ndarray]]) -> None:
    """Write beta next to each point where it covers neither another text nor another point.

    ``curves`` holds a colour and points ``(B, 3)``: beta, x, y. The ends of a curve come first, then whole numbers.
    """
    size, pixels = 9, axes.figure.dpi / 72
    left, low, right, high = axes.get_window_extent().extents / pixels
    texts = []
    for colour, points in curves:
        for number, (beta, x, y) in enumerate(points):
            at = axes.transData.transform((x, y)) / pixels
            texts.append((number not in (0, len(points) - 1), beta % 1 != 0, colour, f"{beta:g}", (x, y), at))
    taken = [(*(at - 3), *(at + 3)) for *_, at in texts]
    look = {"ha": "center", "va": "center", "fontsize": size, "textcoords": "offset points", "zorder": 6}
    look["path_effects"] = [withStroke(linewidth=2.5, foreground="white")]
    for number, (_, _, colour, text, place, at) in enumerate(sorted(texts, key=lambda one: one[:2])):
        text = text if number else f"β = {text}"
        half = np.array([0.31 * size * len(text) + 1, 0.45 * size])
        for side in _SIDES:
            offset = np.array(side) * (half + (3 if all(side) else 6))
            x0, y0, x1, y1 = box = (*(at + offset - half), *(at + offset + half))
            inside = left <= x0 and x1 <= right and low <= y0 and y1 <= high
            if inside and all(x1 <= b[0] or b[2] <= x0 or y1 <= b[1] or b[3] <= y0 for b in taken):
                axes.annotate(text, place, offset, color=colour, **look)
                taken.append(box)
                break


@style.styled
def exponents(
    panels: Mapping[str, np.ndarray], root: float, start: float, paper: Mapping[str, Sequence[float]]
) -> Figure:
    """Draw histograms of learned exponents of the subspaces, sorted within each run (Fig. 7).

    ``panels`` ``(R, S)``: title of each panel, one below the other, to the exponents of each run, ascending along the
    second axis; ``root``: exponent p0 of the root, which is not learned; ``start``: where the others start; ``paper``:
    by title: the most frequent value of each that the paper prints.
    """
    pooled = np.concatenate([values.ravel() for values in panels.values()])
    edges = np.linspace(min(pooled.min(), start) - 0.01, max(pooled.max(), root) + 0.01, 41)
    mark = {"marker": "v", "markersize": 8, "linestyle": ""}
    figure, grid = style.subplots(len(panels), 1, height=0.9 + 2.3 * len(panels), squeeze=False, sharex=True)
    for axes, (title, values) in zip(grid[:, 0], panels.items(), strict=True):
        for number, (column, colour) in enumerate(zip(values.T, cycle(style.CYCLE), strict=False), 1):
            axes.hist(column, edges, color=colour, alpha=0.6, label=f"$p_{number}$")
            figure.record({"panel": title, "exponent": f"p_{number}", "run": np.arange(len(column)), "value": column})
        for place, dashes, name in ((root, "--", "$p_0$, fixed"), (start, ":", "start")):
            axes.axvline(place, color=style.BLACK, linestyle=dashes, linewidth=1.2, label=name)
        for value, colour in zip(paper.get(title, ()), style.CYCLE, strict=False):
            axes.plot(value, 1.03, color=colour, clip_on=False, transform=axes.get_xaxis_transform(), **mark)
        axes.set(ylabel="runs")
        axes.set_title(title, pad=16 if title in paper else 6)
        axes.yaxis.get_major_locator().set_params(integer=True)
    grid[-1, 0].set_xlabel("learned exponent")
    entries = dict(zip(*reversed(grid[0, 0].get_legend_handles_labels()), strict=True))
    figure.key(entries | ({"most frequent in the paper": {"color": style.GREY, **mark}} if paper else {}))
    return figure


@style.styled
def controls(
    rows: Mapping[str, tuple[tuple[np.ndarray, Interval], tuple[np.ndarray, Interval]]], references: Mapping[str, str]
) -> Figure:
    """Draw MIG and log-likelihood of every run, a row for each prior, with the mean and its interval.

    ``rows``: name of each prior to the MIG of its runs ``(n,)`` with their mean, and the same of the log-likelihood;
    ``references``: rows that the others are compared with: the method (a key of :data:`METHODS`) in whose colour each
    is drawn. Its means run through both panels as lines.
    """
    figure, panels = style.subplots(1, 2, height=1.0 + 0.46 * len(rows), sharey=True)
    for which, (axes, title) in enumerate(zip(panels, (MIG, FIT), strict=True)):
        span = _span([pair[which][0] for pair in rows.values()])
        for place, (name, pair) in enumerate(rows.items()):
            values, interval = pair[which]
            colour = METHODS[references[name]].colour if name in references else style.BLACK
            columns = {"quantity": title, "prior": name}
            _dots(axes, place - 0.12, values, span, 0.2, True, colour, columns)
            _mean(axes, place + 0.24, interval, True, colour, columns)
            if name in references:
                axes.axvline(interval.estimate, color=colour, linewidth=1, linestyle=":", zorder=0)
        axes.set(title=title)
        axes.locator_params(axis="x", nbins=4)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    panels[0].set_yticks(range(len(rows)), [name.replace("), ", ")\n") for name in rows])
    panels[0].invert_yaxis()
    return figure


@style.styled
def effects(panels: Mapping[str, Mapping[str, Mapping[str, Effect]]], quantity: str) -> Figure:
    """Draw effects and zero, a row for each measure or factor: means with intervals, runs as dots, chance as a bar.

    ``panels``: title of each panel, one to three, to methods (keys of :data:`METHODS`), to rows; ``quantity``: label of
    the horizontal axis.
    """
    methods = _used(list(panels.values()))
    series = sorted((effects for panel in panels.values() for effects in panel.values()), key=len, reverse=True)
    rows, drawn = list(dict.fromkeys(row for one in series for row in one)), [x for one in series for x in one.values()]
    span = _span([np.append(effect.values, effect.interval.estimate) for effect in drawn])
    height = 1.5 + 0.27 * len(rows) * len(methods)
    figure, grid = style.subplots(1, len(panels), height=height, squeeze=False, sharex=True, sharey=True)
    for axes, (title, panel) in zip(grid[0], panels.items(), strict=True):
        for number, name in enumerate(methods):
            label, colour, _ = METHODS[name]
            for row, (interval, values, chance) in panel.get(name, {}).items():
                place = rows.index(row) + (number - (len(methods) - 1) / 2) / (len(methods) + 0.5)
                columns = {"panel": title, "row": row, "method": label}
                if chance:
                    axes.plot(chance, [place, place], **_CHANCE)
                    figure.record(columns | {"series": "chance"} | dict(zip(("low", "high"), chance, strict=True)))
                if len(values):
                    _dots(axes, place, np.asarray(values), span, 0.1, True, colour, columns)
                _mean(axes, place, interval, True, colour, columns)
        axes.axvline(0, color=style.BLACK, linewidth=0.8, zorder=0)
        axes.set_title(fill(title, 60 // len(panels)))
        axes.locator_params(axis="x", nbins=6 // len(panels) + 1)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
    grid[0, 0].set_yticks(range(len(rows)), rows)
    grid[0, 0].set_ylim(len(rows) - 0.5, -0.5)
    figure.supxlabel(quantity, fontsize=11)
    entries = {METHODS[name].label: {"color": METHODS[name].colour, "marker": "D"} for name in methods}
    if any(effect.chance for effect in drawn):
        figure.key(entries | {"95 % by chance": _CHANCE})
    return figure


@style.styled
def lengths(
    panels: Mapping[str, Mapping[str, Mapping[int, tuple[Mapping[int, float], Interval]]]],
    paper: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Draw the effect of longer training: each run as a dot, the same seed joined, with the mean and its interval.

    ``panels``: title of each panel (one to three) to methods, to numbers of steps: the value of each run by its seed,
    and the mean; ``paper``: by title and method: the value that the paper prints, a line.
    """
    steps = sorted({count for panel in panels.values() for by_steps in panel.values() for count in by_steps})
    methods = _used(list(panels.values()))
    figure, grid = style.subplots(1, len(panels), height=3.8, squeeze=False)
    for axes, (title, panel) in zip(grid[0], panels.items(), strict=True):
        for number, name in enumerate(methods):
            label, colour, _ = METHODS[name]
            shift = 0.36 * (number - (len(methods) - 1) / 2)
            courses: dict[int, list[tuple[float, float]]] = {}
            for count, (by_seed, interval) in panel.get(name, {}).items():
                place = steps.index(count) + shift
                columns = {"quantity": title, "method": label, "steps": count}
                for seed, value in by_seed.items():
                    courses.setdefault(seed, []).append((place, value))
                    figure.record(columns | {"series": "run", "seed": seed, "value": value})
                _mean(axes, place + 0.13, interval, False, colour, columns)
            for course in courses.values():
                axes.plot(*zip(*course, strict=True), color=colour, **_COURSE)
            if name in paper.get(title, {}):
                axes.axhline(paper[title][name], color=colour, linestyle="--", linewidth=1.2)
                figure.record({"quantity": title, "method": label, "series": "paper", "value": paper[title][name]})
        axes.set(title=title, xlabel="steps", xlim=(-0.5, len(steps) - 0.5))
        axes.set_xticks(range(len(steps)), [f"{count:,}" for count in steps])
    entries = {METHODS[name].label: {"color": METHODS[name].colour, "marker": "o"} for name in methods}
    if any(paper.values()):
        entries["printed in the paper"] = {"color": style.GREY, "linestyle": "--"}
    figure.key(entries)
    return figure
