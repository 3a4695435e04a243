"""Figures drawn from records: MIG and reconstruction over runs (Fig. 5a-c, 6), learned exponents (Fig. 7), controls.

Every run is shown as a dot. Means and intervals come ready made, from :mod:`edition.stats`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke

from edition.figures import style
from isa.prior import Node

if TYPE_CHECKING:
    from edition.stats import Curve, Interval

__all__ = ["METHODS", "Method", "controls", "exponents", "lengths", "mig_distributions", "prior", "scale", "trade_off"]

MIG = "MIG"
FIT = r"$\mathbb{E}_{q(z|x)}\,\log p(x|z)$ [nats]"


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
_RUN = {"s": 9, "alpha": 0.22, "linewidth": 0, "zorder": 1}
_POINT = {"markersize": 6, "elinewidth": 0.9, "capsize": 1.5, "zorder": 3}
_COURSE = {"marker": "o", "markersize": 4, "linewidth": 0.8, "alpha": 0.5}


def _swarm(values: np.ndarray, span: float, width: float) -> np.ndarray:
    """Offsets that set dots of nearly one height side by side, at most ``width`` to either side.

    ``span`` is the range of the axis: dots within a fortieth of it are side by side.
    """
    offsets = np.zeros(len(values))
    step = width / 8
    bins = np.floor(values / (span / 40)).astype(int)
    for bin in np.unique(bins):
        inside = np.flatnonzero(bins == bin)
        inside = inside[np.argsort(values[inside])]
        places = (np.arange(1, len(inside) + 1) // 2) * np.where(np.arange(len(inside)) % 2, 1, -1) * step
        most = np.abs(places).max()
        offsets[inside] = places * (width / most if most > width else 1)
    return offsets


def _span(groups: Sequence[np.ndarray]) -> float:
    pooled = np.concatenate([np.asarray(group, dtype=float) for group in groups])
    return float(np.ptp(pooled)) or 1.0


def _dots(
    axes: Axes, centre: float, values: np.ndarray, span: float, width: float, across: bool, label: str, colour: str
) -> None:
    """Every run as a dot, around a place on the other axis; ``across``: values run from left to right."""
    places = centre + _swarm(values, span, width)
    x, y = (values, places) if across else (places, values)
    axes.scatter(x, y, s=16, color=colour, alpha=0.55, linewidth=0, zorder=2, label=f"{label}, runs")


def _mean(axes: Axes, place: float, interval: Interval, across: bool, label: str, colour: str) -> None:
    """A mean with its interval, where there is one."""
    arms = [[interval.estimate - interval.low], [interval.high - interval.estimate]]
    arms = None if np.isnan(arms).any() else np.maximum(arms, 0)
    x, y = (interval.estimate, place) if across else (place, interval.estimate)
    spread = {"xerr" if across else "yerr": arms}
    axes.errorbar(x, y, **spread, **_MEAN, color=colour, label=f"{label}, mean")


def _used(panels: Sequence[Mapping[str, Any]]) -> list[str]:
    """The methods that occur, in the order of :data:`METHODS`."""
    return [name for name in METHODS if any(name in panel for panel in panels)]


def mig_distributions(
    panels: Mapping[str, Mapping[str, tuple[np.ndarray, Interval]]],
    paper: Mapping[str, Mapping[str, float]] | None = None,
) -> Figure:
    """Fig. 5a: the MIG of every run, by method, with quartiles and the mean with its interval.

    ``panels``: title of each panel, one to three, to methods (keys of :data:`METHODS`): the MIG ``(n,)`` of every run,
    and their mean with its interval; ``paper``: by title and method: a MIG that the paper prints, drawn as a mark
    beside the runs.
    """
    paper = paper or {}
    methods = _used(list(panels.values()))
    span = _span([values for panel in panels.values() for values, _ in panel.values()])
    with style.styled():
        figure, grid = style.subplots(1, len(panels), height=3.9, squeeze=False, sharey=True)
        for axes, (title, panel) in zip(grid[0], panels.items(), strict=True):
            for place, name in enumerate(methods):
                if name not in panel:
                    continue
                values, interval = panel[name]
                axes.boxplot(values, positions=[place], widths=0.62, zorder=1, **_BOX)
                _dots(axes, place, np.asarray(values), span, 0.26, False, *METHODS[name][:2])
                _mean(axes, place + 0.42, interval, False, *METHODS[name][:2])
                if name in paper.get(title, {}):
                    mark = {"marker": ">", "color": style.BLACK, "markersize": 7, "zorder": 5}
                    axes.plot(place - 0.42, paper[title][name], **mark, label=f"{METHODS[name].label}, the paper's")
            counts = [len(panel[name][0]) if name in panel else 0 for name in methods]
            names = [METHODS[name].label.replace(", ", "\n") for name in methods]
            ticks = [f"{name}\n{count} run{'s' * (count != 1)}" for name, count in zip(names, counts, strict=True)]
            axes.set_xticks(range(len(methods)), ticks)
            axes.set(xlim=(-0.65, len(methods) - 0.35), title=fill(title, 54 // len(panels)))
            axes.grid(axis="y", color=style.GREY, alpha=0.2)
        low, high = grid[0, 0].get_ylim()
        low = min(0, low)
        grid[0, 0].set(ylabel=MIG, ylim=(low, high + 0.03 * (high - low)))  # 0 is in sight, and the highest run whole
        handles = [
            Line2D([], [], color=style.BLACK, marker="o", alpha=0.55, linestyle="", markersize=4),
            Patch(facecolor="white", edgecolor=style.GREY),
            Line2D([], [], color=style.BLACK, marker="D", linestyle="-"),
        ]
        names = ["a run", "quartiles", "mean, 95 % interval"]
        if any(paper.get(title) for title in panels):
            handles.append(Line2D([], [], color=style.BLACK, marker=">", linestyle=""))
            names.append("the paper's representative")
        figure.legend(handles, names, loc="outside upper center", ncols=2, columnspacing=1.4)
    return figure


def trade_off(
    panels: Mapping[str, Mapping[str, Curve]],
    paper: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]] | None = None,
) -> Figure:
    """Fig. 5b, 5c and 6: MIG against reconstruction over beta, one marker a beta, joined in the order of beta.

    Error bars are one standard error to every side, dots are runs. Beta stands beside the marker where there is room.

    ``panels``: title of each panel, one below the other, to methods (keys of :data:`METHODS`) and their curves;
    ``paper``: by title and method: points that the paper prints.
    """
    paper = {title: (paper or {}).get(title, {}) for title in panels}
    methods = _used([*panels.values(), *paper.values()])
    with style.styled():
        figure, grid = style.subplots(len(panels), 1, height=0.7 + 3.9 * len(panels), squeeze=False)
        for axes, (title, panel) in zip(grid[:, 0], panels.items(), strict=True):
            for name in methods:
                method = METHODS[name]
                if name in panel:
                    _curve(axes, panel[name], method)
                for _, fit, mig in paper[title].get(name, ()):
                    axes.plot(
                        fit, mig, marker=method.marker, markersize=9, markerfacecolor="none", color=method.colour,
                        markeredgewidth=1.4, zorder=5, label=f"{method.label}, the paper's",
                    )  # fmt: skip
            axes.set(xlabel=FIT, ylabel=MIG, title=title)
            axes.margins(0.07)
        handles = [Line2D([], [], color=METHODS[name].colour, marker=METHODS[name].marker) for name in methods]
        names = [METHODS[name].label for name in methods]
        if any(paper.values()):
            handles.append(
                Line2D([], [], color=style.BLACK, marker="o", markerfacecolor="none", linestyle="", markersize=9)
            )
            names.append("the paper's representatives")
        figure.legend(handles, names, loc="outside upper center", ncols=2, columnspacing=1.4)
        figure.draw_without_rendering()  # so that places on the page are known
        for axes, (title, panel) in zip(grid[:, 0], panels.items(), strict=True):
            curves = [(METHODS[name].colour, np.stack(panel[name][:3], 1)) for name in methods if name in panel]
            curves += [(METHODS[name].colour, np.array(points)) for name, points in paper[title].items()]
            _label_betas(axes, curves)
    return figure


def _curve(axes: Axes, curve: Curve, method: Method) -> None:
    axes.scatter(*curve.runs[:, 1:].T, color=method.colour, label=f"{method.label}, runs", **_RUN)
    errors = {"xerr": np.nan_to_num(curve.log_likelihood_error), "yerr": np.nan_to_num(curve.mig_error)}
    label = f"{method.label}, mean and standard error"
    point = {"color": method.colour, "marker": method.marker, "label": label}
    axes.errorbar(curve.log_likelihood, curve.mig, **errors, **point, **_POINT)


_SIDES = ((1, 1), (-1, -1), (1, -1), (-1, 1), (0, 1), (0, -1), (1, 0), (-1, 0))  # corners are free of error bars


def _label_betas(axes: Axes, curves: Sequence[tuple[str, np.ndarray]]) -> None:
    """Write beta beside each point where it covers neither another text nor another point.

    ``curves`` holds a colour and points ``(B, 3)``: beta, x, y. The ends of a curve come first, then whole numbers.
    """
    size, pixels = 9, axes.figure.dpi / 72
    frame = axes.get_window_extent().extents / pixels
    texts = []
    for colour, points in curves:
        for number, (beta, x, y) in enumerate(points):
            at = axes.transData.transform((x, y)) / pixels
            texts.append((number not in (0, len(points) - 1), beta % 1 != 0, colour, f"{beta:g}", (x, y), at))
    taken = [(x - 3, y - 3, x + 3, y + 3) for *_, (x, y) in texts]
    for number, (_, _, colour, text, place, at) in enumerate(sorted(texts, key=lambda one: one[:2])):
        text = text if number else f"β = {text}"
        half = np.array([0.31 * size * len(text) + 1, 0.45 * size])
        for side in _SIDES:
            offset = np.array(side) * (half + (3 if all(side) else 6))
            left, low, right, high = box = (*(at + offset - half), *(at + offset + half))
            if frame[0] <= left and right <= frame[2] and frame[1] <= low and high <= frame[3]:
                if all(right <= b[0] or b[2] <= left or high <= b[1] or b[3] <= low for b in taken):
                    axes.annotate(
                        text, place, offset, textcoords="offset points", fontsize=size, color=colour, ha="center",
                        va="center", zorder=6, path_effects=[withStroke(linewidth=2.5, foreground="white")],
                    )  # fmt: skip
                    taken.append(box)
                    break


def exponents(
    panels: Mapping[str, np.ndarray], root: float, start: float, paper: Mapping[str, Sequence[float]] | None = None
) -> Figure:
    """Fig. 7: histograms of learned exponents of the subspaces, sorted within each run.

    ``panels`` ``(R, S)``: title of each panel, one below the other, to the exponents of each run, ascending along the
    second axis; ``root``: exponent p0 of the root, which is not learned; ``start``: where the others start; ``paper``:
    by title: the most frequent value of each that the paper prints.
    """
    paper = paper or {}
    pooled = np.concatenate([values.ravel() for values in panels.values()])
    edges = np.linspace(min(pooled.min(), start) - 0.01, max(pooled.max(), root) + 0.01, 41)
    with style.styled():
        figure, grid = style.subplots(len(panels), 1, height=0.9 + 2.3 * len(panels), squeeze=False, sharex=True)
        for axes, (title, values) in zip(grid[:, 0], panels.items(), strict=True):
            for number, column in enumerate(values.T):
                colour = style.CYCLE[number % len(style.CYCLE)]
                axes.hist(column, edges, color=colour, alpha=0.6, label=f"$p_{number + 1}$")
            for place, dashes, name in ((root, "--", "$p_0$, fixed"), (start, ":", "start")):
                axes.axvline(place, color=style.BLACK, linestyle=dashes, linewidth=1.2, label=name)
            for number, value in enumerate(paper.get(title, ())):
                axes.plot(
                    value, 1.03, marker="v", markersize=8, color=style.CYCLE[number], clip_on=False,
                    transform=axes.get_xaxis_transform(),
                )  # fmt: skip
            axes.set(ylabel="runs")
            axes.set_title(title, pad=16 if title in paper else 6)
            axes.yaxis.get_major_locator().set_params(integer=True)
        grid[-1, 0].set_xlabel("learned exponent")
        handles, names = grid[0, 0].get_legend_handles_labels()
        if paper:
            handles.append(Line2D([], [], color=style.GREY, marker="v", linestyle="", markersize=8))
            names.append("most frequent in the paper")
        figure.legend(handles, names, loc="outside upper center", ncols=3, columnspacing=1.2)
    return figure


def controls(
    rows: Mapping[str, tuple[tuple[np.ndarray, Interval], tuple[np.ndarray, Interval]]], references: Mapping[str, str]
) -> Figure:
    """MIG and log-likelihood of every run, a row for each prior, with the mean and its interval.

    ``rows``: name of each prior to the MIG of its runs ``(n,)`` with their mean, and the same of the log-likelihood;
    ``references``: rows that the others are held against: the method (a key of :data:`METHODS`) in whose colour each is
    drawn. Its means run through both panels as lines.
    """
    with style.styled():
        figure, panels = style.subplots(1, 2, height=1.0 + 0.46 * len(rows), sharey=True)
        for which, (axes, title) in enumerate(zip(panels, (MIG, "log-likelihood [nats]"), strict=True)):
            span = _span([pair[which][0] for pair in rows.values()])
            for place, (name, pair) in enumerate(rows.items()):
                values, interval = pair[which]
                colour = METHODS[references[name]].colour if name in references else style.BLACK
                _dots(axes, place - 0.12, np.asarray(values), span, 0.2, True, name, colour)
                _mean(axes, place + 0.24, interval, True, name, colour)
                if name in references:
                    axes.axvline(interval.estimate, color=colour, linewidth=1, linestyle=":", zorder=0)
            axes.set(title=title)
            axes.locator_params(axis="x", nbins=4)
        panels[0].set_yticks(range(len(rows)), [name.replace("), ", ")\n") for name in rows])
        panels[0].invert_yaxis()
        for axes in panels:
            axes.tick_params(axis="y", length=0)
            axes.spines["left"].set_visible(False)
    return figure


def lengths(
    panels: Mapping[str, Mapping[str, Mapping[int, tuple[Mapping[int, float], Interval]]]],
    paper: Mapping[str, Mapping[str, float]],
) -> Figure:
    """Effect of longer training: each run as a dot, the same seed joined, with the mean and its interval.

    ``panels``: title of each panel (one to three) to methods, to numbers of steps: the value of each run by its seed,
    and the mean; ``paper``: by title and method: the value that the paper prints, a line.
    """
    steps = sorted({count for panel in panels.values() for by_steps in panel.values() for count in by_steps})
    methods = _used(list(panels.values()))
    with style.styled():
        figure, grid = style.subplots(1, len(panels), height=3.8, squeeze=False)
        for axes, (title, panel) in zip(grid[0], panels.items(), strict=True):
            for number, name in enumerate(methods):
                method = METHODS[name]
                shift = 0.36 * (number - (len(methods) - 1) / 2)
                courses: dict[int, list[tuple[float, float]]] = {}
                for count, (by_seed, interval) in panel.get(name, {}).items():
                    place = steps.index(count) + shift
                    for seed, value in by_seed.items():
                        courses.setdefault(seed, []).append((place, value))
                    _mean(axes, place + 0.13, interval, False, *method[:2])
                for seed, course in courses.items():
                    label = f"{method.label}, seed {seed}"
                    axes.plot(*zip(*course, strict=True), color=method.colour, label=label, **_COURSE)
                if name in paper.get(title, {}):
                    label = f"{method.label}, the paper's"
                    axes.axhline(paper[title][name], color=method.colour, linestyle="--", linewidth=1.2, label=label)
            axes.set(title=title, xlabel="steps", xlim=(-0.5, len(steps) - 0.5))
            axes.set_xticks(range(len(steps)), [f"{count:,}" for count in steps])
        handles = [Line2D([], [], color=METHODS[name].colour, marker="o") for name in methods]
        names = [METHODS[name].label for name in methods]
        if any(paper.values()):
            handles.append(Line2D([], [], color=style.GREY, linestyle="--"))
            names.append("printed in the paper")
        figure.legend(handles, names, loc="outside upper center", ncols=3, columnspacing=1.4)
    return figure
