"""Figures of over-complete ICA under mean-field inference (Fig. 1, App. B.7-B.9)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from edition.figures import style

__all__ = ["against_beta", "ascent", "column_lengths", "components", "free_energy", "steps_to_pruning", "survival_maps"]

TRUE, FOUND, EXACT = style.BLUE, style.VERMILION, style.GREEN


def _directions(axes: Axes, W: np.ndarray, colour: str, unit: float, **kwargs) -> None:
    """Each column as a line through the origin, ``unit`` times as long as it is, to both sides."""
    for column in unit * W.T:
        axes.plot([-column[0], column[0]], [-column[1], column[1]], color=colour, solid_capstyle="round", **kwargs)


def components(
    x: np.ndarray, true: np.ndarray, panels: Mapping[str, np.ndarray | None], limit: float, found: str = "found"
) -> Figure:
    """The data with the true directions, and with the directions that were found: one panel each.

    ``x`` ``(N, 2)``: data; ``true`` ``(2, K)``: true weights; ``panels`` ``(2, K)``: title and weights of each panel;
    None shows the true weights alone; ``limit``: both axes run from ``-limit`` to ``limit``; lines are scaled so that a
    true one nearly reaches the edge; ``found``: what the legend calls the found directions.
    """
    unit = 0.72 * limit / np.linalg.norm(true, axis=0).max()
    with style.styled():
        rows = -(-len(panels) // 3)
        columns = min(3, len(panels))
        figure, grid = style.subplots(rows, columns, height=0.55 + 2.35 * rows, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        for axes, (title, W) in zip(grid.flat, panels.items(), strict=False):
            axes.scatter(*x.T, s=4, color=style.SKY, alpha=0.45, linewidth=0, rasterized=True)
            _directions(axes, true, TRUE, unit, linewidth=2.2 if W is None else 1.2)
            if W is not None:
                _directions(axes, W, FOUND, unit, linewidth=2.4)
            axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=title)
            axes.locator_params(nbins=3)
        for axes in grid[-1]:
            axes.set_xlabel("$x_1$")
        for axes in grid[:, 0]:
            axes.set_ylabel("$x_2$", labelpad=0)
        handles = [Line2D([], [], color=TRUE), Line2D([], [], color=FOUND, linewidth=2.4)]
        figure.legend(handles, ["true", found], loc="outside upper center", ncols=2)
    return figure


def _colours(values: Sequence[float]) -> list:
    return [style.SEQUENTIAL(0.85 * i / max(len(values) - 1, 1)) for i in range(len(values))]


def ascent(paths: Mapping[float, tuple[np.ndarray, np.ndarray]], snapshot: int, pruned: float) -> Figure:
    """What happens to the directions while the free energy ascends, for several beta.

    ``paths``: for each beta: length of the shortest column over that of the longest, and the angle between the two
    longest in degrees, before the first step and after each; ``snapshot``: step that the page shows elsewhere;
    ``pruned``: relative length below which a column counts as pruned.
    """
    with style.styled():
        figure, (left, right) = style.subplots(1, 2, height=3.3)
        for (beta, (ratio, angle)), colour in zip(paths.items(), _colours(list(paths)), strict=True):
            left.plot(ratio, color=colour, label=rf"$\beta = {beta:g}$")
            right.plot(angle, color=colour)
        left.axhline(pruned, color=style.GREY, linewidth=0.8, linestyle=":")
        right.axhline(90, color=style.GREY, linewidth=0.8, linestyle=":")
        for axes in (left, right):
            axes.axvline(snapshot, color=style.GREY, linewidth=0.8, linestyle="--")
            axes.set(xlabel="steps of coordinate ascent", xlim=(0, None))
        left.set(ylim=(0, 1.03), title="shortest over longest column")
        right.set(title="angle of the two longest (degrees)")
        figure.legend(loc="outside upper center", ncols=len(paths))
    return figure


def free_energy(traces: Mapping[str, np.ndarray]) -> Figure:
    """Free energy that is still to be gained, over the steps of an optimiser, on a logarithmic scale.

    ``traces``: free energy in nats of each optimiser, all of one problem.
    """
    best = max(trace[-1] for trace in traces.values())
    with style.styled():
        figure, axes = style.subplots(height=3.0)
        for (label, trace), colour in zip(traces.items(), (FOUND, TRUE, EXACT), strict=False):
            gap = best - trace
            shown = gap > 1e-4
            axes.semilogy(np.flatnonzero(shown), gap[shown], color=colour, label=label)
        axes.set(xlabel="accepted steps", ylabel="nats below the best", xlim=(0, None))
        axes.legend()
    return figure


def _spread(axes: Axes, beta: np.ndarray, values: np.ndarray, colour: str, label: str, marker: str) -> None:
    """Mean over data sets with twice its standard error, and each data set as a faint dot."""
    mean, error = values.mean(1), values.std(1, ddof=1) / np.sqrt(values.shape[1])
    axes.scatter(np.repeat(beta, values.shape[1]), values.ravel(), s=7, color=colour, alpha=0.22, linewidth=0)
    axes.errorbar(beta, mean, 2 * error, color=colour, marker=marker, markersize=5, capsize=2, label=label)


def against_beta(
    beta: np.ndarray, angle: Mapping[str, np.ndarray], alive: Mapping[str, np.ndarray], exact: np.ndarray
) -> Figure:
    """Angle between the two longest columns, and how many columns survive, against beta, over many data sets.

    ``beta`` ``(B,)``: weights of the KL divergence; ``angle``, ``alive`` ``(B, S)``: for each way of fitting: angle in
    degrees and number of surviving columns, for each data set; ``exact`` ``(S,)``: angle in degrees at maximum
    likelihood.
    """
    with style.styled():
        figure, (left, right) = style.subplots(1, 2, height=3.6)
        low, high = exact.mean() - exact.std(ddof=1), exact.mean() + exact.std(ddof=1)
        left.axhspan(low, high, color=EXACT, alpha=0.2, linewidth=0)
        left.axhline(exact.mean(), color=EXACT, label="maximum likelihood")
        for (name, values), colour, marker in zip(angle.items(), (FOUND, TRUE), ("o", "s"), strict=False):
            _spread(left, beta, values, colour, name, marker)
            mean = alive[name].mean(1)
            error = alive[name].std(1, ddof=1) / np.sqrt(alive[name].shape[1])
            right.errorbar(beta, mean, 2 * error, color=colour, marker=marker, markersize=5, capsize=2)
        right.axhline(alive_exact := 3.0, color=EXACT)
        right.set(title="columns that survive", ylim=(1.85, alive_exact + 0.1), xlabel=r"$\beta$")
        left.set(title="angle of the two longest (degrees)", xlabel=r"$\beta$", ylim=(None, 93))
        figure.legend(loc="outside upper center", ncols=3)
    return figure


def steps_to_pruning(beta: np.ndarray, steps: np.ndarray) -> Figure:
    """Step at which the first column is pruned against beta, one line a data set, both logarithmic.

    ``beta`` ``(B,)``: weights of the KL divergence; ``steps`` ``(B, S)``: steps of coordinate ascent; NaN where no
    column was pruned in time.
    """
    with style.styled():
        figure, axes = style.subplots(height=3.2)
        axes.plot(beta, steps, color=FOUND, alpha=0.35, linewidth=1)
        middle = np.where(np.isnan(steps), np.inf, steps)
        middle = np.median(middle, axis=1)
        axes.plot(beta, middle, color=FOUND, marker="o", linewidth=2.4, label="median of the data sets")
        axes.plot(beta, middle[-1] * beta[-1] / beta, color=style.GREY, linestyle=":", label=r"$\propto 1 / \beta$")
        axes.set(xscale="log", yscale="log", xlabel=r"$\beta$", ylabel="steps until a column is pruned")
        axes.xaxis.set_major_locator(FixedLocator(list(beta)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([f"{value:g}" for value in beta])
        ticks = [10, 20, 50, 100, 200]
        axes.yaxis.set_major_locator(FixedLocator(ticks))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_yticklabels([str(tick) for tick in ticks])
        axes.legend()
    return figure


def survival_maps(
    dof: np.ndarray, noise: np.ndarray, panels: Mapping[str, np.ndarray], label: str, words: Mapping[float, str]
) -> Figure:
    """Tables of a number over degrees of freedom and noise, coloured and printed: one panel each.

    ``dof``, ``noise`` ``(V,)``: degrees of freedom, along the rows, and noise variances, along the columns; ``panels``
    ``(V, D)``: title and numbers of each panel; NaN stays white; ``label``: what the colour means; ``words``:
    replacement text for some of the values.
    """
    finite = np.concatenate([table[np.isfinite(table)] for table in panels.values()])
    low, high = finite.min(), finite.max()
    with style.styled():
        figure, row = style.subplots(1, len(panels), height=3.6, squeeze=False, sharey=True)
        for axes, (title, table) in zip(row[0], panels.items(), strict=True):
            image = axes.imshow(table, cmap=style.SEQUENTIAL, vmin=low, vmax=high, aspect="auto", origin="lower")
            for (i, j), value in np.ndenumerate(table):
                text = words.get(float(value), f"{value:.2g}") if np.isfinite(value) else "none"
                dark = np.isfinite(value) and (value - low) < 0.6 * max(high - low, 1e-9)
                axes.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if dark else style.BLACK)
            axes.set_xticks(range(len(noise)), [f"{value:g}" for value in noise])
            axes.set(title=title, xlabel="noise variance")
            for spine in axes.spines.values():
                spine.set_visible(False)
            axes.tick_params(length=0)
        row[0, 0].set_yticks(range(len(dof)), [f"{value:g}" for value in dof])
        row[0, 0].set_ylabel("degrees of freedom $v$")
        bar = figure.colorbar(image, ax=row[0].tolist(), location="bottom", shrink=0.5, aspect=30)
        bar.set_label(label)
        bar.outline.set_visible(False)
    return figure


def column_lengths(rows: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Lengths of the columns relative to the truth, sorted, for several priors and settings: one panel a setting.

    ``rows`` ``(S, K)``: for each panel, for each prior: relative lengths for each data set.
    """
    marks = (("o", FOUND), ("s", style.ORANGE), ("^", style.PURPLE))
    with style.styled():
        names = list(next(iter(rows.values())))
        figure, panels = style.subplots(
            1, len(rows), height=0.9 + 0.5 * len(names), squeeze=False, sharey=True, sharex=True
        )
        for axes, (title, priors) in zip(panels[0], rows.items(), strict=True):
            axes.axvline(1, color=TRUE, linewidth=1)
            for line, lengths in enumerate(priors.values()):
                for rank, (marker, colour) in enumerate(marks):
                    values = np.sort(lengths, axis=1)[:, ::-1][:, rank]
                    axes.scatter(values, np.full(len(values), line), marker=marker, color=colour, s=28, alpha=0.75)
            axes.set(title=title, xlabel="length / true length", xlim=(-0.06, None), ylim=(len(names) - 0.5, -0.5))
            axes.set_yticks(range(len(names)), names)
            axes.grid(axis="y", color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
        handles = [Line2D([], [], color=colour, marker=marker, linestyle="none") for marker, colour in marks]
        figure.legend(handles, ["longest", "second", "shortest column"], loc="outside upper center", ncols=3)
    return figure
