"""Figures of over-complete ICA under mean-field inference (Fig. 1, App. B.7-B.9)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from edition.figures import style

__all__ = ["against_beta", "ascent", "column_lengths", "components", "free_energy", "steps_to_pruning", "survival_maps"]

TRUE, FOUND, EXACT = style.BLUE, style.VERMILION, style.GREEN


@style.styled
def components(x: np.ndarray, true: np.ndarray, panels: Mapping[str, np.ndarray | None], limit: float) -> Figure:
    """Draw the data with the true directions, and with the directions that were found: one panel each.

    ``x`` ``(N, 2)``: data; ``true`` ``(2, K)``: true weights; ``panels`` ``(2, K)``: title and weights of each panel;
    None shows the true weights alone; ``limit``: both axes run from ``-limit`` to ``limit``; lines are scaled so that a
    true one nearly reaches the edge.
    """
    unit = 0.72 * limit / np.linalg.norm(true, axis=0).max()
    figure, grid = style.panels(len(panels), 3, 2.35, labels=("$x_1$", "$x_2$"))
    figure.record({"series": "data", "x_1": x[:, 0], "x_2": x[:, 1]})
    for axes, (title, W) in zip(grid, panels.items(), strict=True):
        axes.scatter(*x.T, s=4, color=style.SKY, alpha=0.45, linewidth=0, rasterized=True)
        drawn = [("true", true, TRUE, 2.2)] if W is None else [("true", true, TRUE, 1.2), ("found", W, FOUND, 2.4)]
        for series, weights, colour, width in drawn:
            lines = unit * np.stack([-weights, weights], 1)
            axes.plot(*lines, color=colour, linewidth=width, solid_capstyle="round")
            columns = {"panel": title, "series": series, "column": np.arange(1, weights.shape[1] + 1)}
            figure.record(columns | dict(zip(("x_1", "x_2"), weights, strict=True)))
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", title=title)
        axes.locator_params(nbins=3)
    figure.key({"true": {"color": TRUE}, "found": {"color": FOUND, "linewidth": 2.4}})
    return figure


@style.styled
def ascent(paths: Mapping[float, tuple[np.ndarray, np.ndarray]], snapshot: int, pruned: float) -> Figure:
    """Draw the course of the directions while the free energy ascends, for several beta.

    ``paths``: for each beta: length of the shortest column over that of the longest, and the angle between the two
    longest in degrees, before the first step and after each; ``snapshot``: step that the page shows elsewhere;
    ``pruned``: relative length below which a column counts as pruned.
    """
    figure, (left, right) = style.subplots(1, 2, height=3.3)
    shades = style.shades(len(paths))
    for (beta, (ratio, angle)), shade in zip(paths.items(), shades, strict=True):
        left.plot(ratio, color=shade, label=rf"$\beta = {beta:g}$")
        right.plot(angle, color=shade)
        measures = {"shortest over longest column": ratio, "angle of the two longest [degrees]": angle}
        figure.record({"beta": beta, "step": np.arange(len(ratio))} | measures)
    for axes, level in ((left, pruned), (right, 90)):
        axes.axhline(level, color=style.GREY, linewidth=0.8, linestyle=":")
        axes.axvline(snapshot, color=style.GREY, linewidth=0.8, linestyle="--")
        axes.set(xlabel="steps of coordinate ascent", xlim=(0, None))
    left.set(ylim=(0, 1.03), title="shortest over longest column")
    right.set(title="angle of the two longest (degrees)")
    figure.key(ncols=len(paths))
    return figure


@style.styled
def free_energy(traces: Mapping[str, np.ndarray]) -> Figure:
    """Draw the distance of the free energy from the best one over the steps of an optimiser, on a logarithmic scale.

    ``traces``: free energy in nats of each optimiser, all of one problem.
    """
    best = max(trace[-1] for trace in traces.values())
    figure, axes = style.subplots(height=3.0)
    for (label, trace), colour in zip(traces.items(), (FOUND, TRUE, EXACT), strict=False):
        gap = best - trace
        shown = gap > 1e-4
        axes.semilogy(np.flatnonzero(shown), gap[shown], color=colour, label=label)
        figure.record({"optimiser": label, "step": np.arange(len(trace)), "free energy [nats]": trace})
    axes.set(xlabel="accepted steps", ylabel="nats below the best", xlim=(0, None))
    axes.legend()
    return figure


@style.styled
def against_beta(
    beta: np.ndarray, angle: Mapping[str, np.ndarray], alive: Mapping[str, np.ndarray], exact: np.ndarray
) -> Figure:
    """Draw the angle between the two longest columns, and how many columns survive, against beta.

    Means over data sets have arms of twice their standard error.

    ``beta`` ``(B,)``: weights of the KL divergence; ``angle``, ``alive`` ``(B, S)``: for each way of fitting: angle in
    degrees and number of surviving columns, for each data set; ``exact`` ``(S,)``: angle in degrees at maximum
    likelihood.
    """
    figure, (left, right) = style.subplots(1, 2, height=3.6)
    mean, deviation = exact.mean(), exact.std(ddof=1)
    left.axhspan(mean - deviation, mean + deviation, color=EXACT, alpha=0.2, linewidth=0)
    left.axhline(mean, color=EXACT, label="maximum likelihood")
    right.axhline(3.0, color=EXACT)
    sets = np.arange(len(exact))
    figure.record({"method": "maximum likelihood", "data set": sets, "angle [degrees]": exact})
    for (name, values), colour, marker in zip(angle.items(), (FOUND, TRUE), "os", strict=False):
        left.scatter(np.repeat(beta, len(sets)), values, s=9, color=colour, alpha=0.45, linewidth=0)
        for axes, measured in ((left, values), (right, alive[name])):
            arms = 2 * measured.std(1, ddof=1) / np.sqrt(len(sets))
            look = {"color": colour, "marker": marker, "markersize": 5, "capsize": 2}
            axes.errorbar(beta, measured.mean(1), arms, label=name, **look)
        columns = {"method": name, "beta": beta[:, None], "data set": sets}
        figure.record(columns | {"angle [degrees]": values, "surviving columns": alive[name]})
    right.set(title="columns that survive", ylim=(1.85, 3.1), xlabel=r"$\beta$")
    left.set(title="angle of the two longest (degrees)", xlabel=r"$\beta$", ylim=(None, 93))
    figure.key()
    return figure


@style.styled
def steps_to_pruning(beta: np.ndarray, steps: np.ndarray) -> Figure:
    """Draw the step at which the first column is pruned against beta, one line per data set, on logarithmic axes.

    ``beta`` ``(B,)``: weights of the KL divergence; ``steps`` ``(B, S)``: steps of coordinate ascent; NaN where no
    column was pruned in time.
    """
    figure, axes = style.subplots(height=3.2)
    axes.plot(beta, steps, color=FOUND, alpha=0.35, linewidth=1)
    middle = np.median(np.where(np.isnan(steps), np.inf, steps), axis=1)
    axes.plot(beta, middle, color=FOUND, marker="o", linewidth=2.4, label="median of the data sets")
    axes.plot(beta, middle[-1] * beta[-1] / beta, color=style.GREY, linestyle=":", label=r"$\propto 1 / \beta$")
    axes.set(xscale="log", yscale="log", xlabel=r"$\beta$", ylabel="steps until a column is pruned")
    axes.minorticks_off()
    axes.set_xticks(beta, [f"{value:g}" for value in beta])
    axes.set_yticks([20, 50, 100, 200], ["20", "50", "100", "200"])
    axes.legend()
    figure.record({"beta": beta[:, None], "data set": np.arange(steps.shape[1]), "steps to pruning": steps})
    return figure


@style.styled
def survival_maps(dof: np.ndarray, noise: np.ndarray, panels: Mapping[str, np.ndarray], label: str) -> Figure:
    """Draw tables of a number over degrees of freedom and noise, coloured and printed: one panel each.

    ``dof``, ``noise`` ``(V,)``, ``(D,)``: degrees of freedom, along the rows, and noise variances, along the columns;
    ``panels`` ``(V, D)``: title and numbers of each panel; NaN stays white; ``label``: what the colour means.
    """
    low, high = (bound(list(panels.values())) for bound in (np.nanmin, np.nanmax))
    options = {"cmap": style.SEQUENTIAL, "vmin": low, "vmax": high, "origin": "lower"}
    figure, grid = style.subplots(1, len(panels), height=3.6, squeeze=False, sharey=True)
    for axes, (title, table) in zip(grid[0], panels.items(), strict=True):
        texts = np.vectorize(lambda value: "none" if np.isnan(value) else f"{value:.2g}")(table)
        image = style.printed_table(axes, table, texts, **options)
        axes.set_xticks(range(len(noise)), [f"{value:g}" for value in noise])
        axes.set(title=title, xlabel="noise variance")
        figure.record({"panel": title, "degrees of freedom": dof[:, None], "noise variance": noise, label: table})
    grid[0, 0].set_yticks(range(len(dof)), [f"{value:g}" for value in dof])
    grid[0, 0].set_ylabel("degrees of freedom $v$")
    style.colour_bar(image, grid[0], label, shrink=0.5, aspect=30)
    return figure


@style.styled
def column_lengths(rows: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw lengths of the columns relative to the truth, for several priors and settings: one panel per setting.

    ``rows`` ``(S, K)``: for each panel, for each prior: relative lengths for each data set.
    """
    ranks = {
        "longest": {"color": FOUND, "marker": "o"},
        "second": {"color": style.ORANGE, "marker": "s"},
        "shortest column": {"color": style.PURPLE, "marker": "^"},
    }
    names = list(next(iter(rows.values())))
    figure, grid = style.subplots(1, len(rows), height=0.9 + 0.5 * len(names), squeeze=False, sharey=True, sharex=True)
    for axes, (title, priors) in zip(grid[0], rows.items(), strict=True):
        axes.axvline(1, color=TRUE, linewidth=1)
        for line, (name, lengths) in enumerate(priors.items()):
            lengths = np.sort(lengths, axis=1)[:, ::-1]
            for values, look in zip(lengths.T, ranks.values(), strict=True):
                axes.scatter(values, np.full(len(values), line), s=28, alpha=0.75, **look)
            columns = {"setting": title, "prior": name, "data set": np.arange(len(lengths))[:, None]}
            figure.record(columns | {"rank": np.arange(1, 1 + len(ranks)), "length / true length": lengths})
        axes.set(title=title, xlabel="length / true length", xlim=(-0.06, None), ylim=(len(names) - 0.5, -0.5))
        axes.set_yticks(range(len(names)), names)
        axes.grid(axis="y", color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    figure.key({name: look | {"linestyle": "none"} for name, look in ranks.items()})
    return figure
