"""Figures of the chapter *Training*: a learning curve, the information in latents, and the effects of precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from edition.figures import style

__all__ = ["information", "learning_curve", "paired_differences"]

_SHARE = LinearSegmentedColormap.from_list("isa.share", ["#f7f7f7", style.SKY, style.BLUE])


@style.styled
def learning_curve(panels: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Draw terms of an objective against the number of steps, one panel each.

    ``panels``: by title: the value at every step ``(steps,)``, and the steps ``(M,)`` and values ``(M,)`` of a smoother
    line, whose steep first tenth does not set the limits of the axis.
    """
    figure, grid = style.subplots(1, len(panels), height=2.9, squeeze=False)
    for axes, (title, (values, at, smooth)) in zip(grid[0], panels.items(), strict=True):
        steps = np.arange(1, len(values) + 1)
        axes.plot(steps, values, color=style.SKY, linewidth=0.9, alpha=0.8)
        axes.plot(at, smooth, color=style.BLUE, linewidth=2.2)
        axes.set(title=title, xlabel="steps", xlim=(0, len(values)))
        settled = smooth[len(smooth) // 10 :]
        margin = 0.15 * np.ptp(settled)
        axes.set_ylim(settled.min() - margin, settled.max() + margin)
        figure.record({"series": "every step", "step": steps, title: values})
        figure.record({"series": "smoothed", "step": at, title: smooth})
    return figure


@style.styled
def information(share: np.ndarray, factors: Sequence[str], latents: np.ndarray) -> Figure:
    """Draw the mutual information of some latents with every factor, as a table that is coloured and printed.

    ``share`` ``(F, K)``: mutual information over the logarithm of the number of the factor's values, 0 to 1;
    ``factors``: their names; ``latents`` ``(A,)``: indices of the latents to draw.
    """
    shown, label = share.T[latents], "share of the factor's entropy"
    figure, axes = style.subplots(height=1.2 + 0.26 * len(latents))
    image = style.printed_table(axes, shown, np.vectorize("{:.2f}".format)(shown), cmap=_SHARE, vmin=0, vmax=1)
    axes.set_xticks(range(len(factors)), factors)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(latents)), [f"$z_{{{latent + 1}}}$" for latent in latents])
    style.colour_bar(image, [axes], label, aspect=40, pad=0.02)
    figure.record({"latent": latents[:, None] + 1, "factor": np.array(factors), label: shown})
    return figure


@style.styled
def paired_differences(
    panels: Mapping[str, tuple[Mapping[str, np.ndarray], Mapping[str, tuple[float, float, float]], float]],
) -> Figure:
    """Draw differences from a reference, run by run, above the scatter of the seeds: one panel a quantity.

    ``panels``: by title: differences ``(S,)`` of each way, one a seed; their mean and its bounds; and the standard
    deviation of the reference over seeds, which is drawn as a band around 0.
    """
    ways = list(next(iter(panels.values()))[0])
    figure, grid = style.subplots(1, len(panels), height=1.3 + 0.6 * len(ways), squeeze=False, sharey=True)
    for axes, (title, (differences, intervals, scatter)) in zip(grid[0], panels.items(), strict=True):
        band = axes.axvspan(-scatter, scatter, color=style.GREY, alpha=0.22, linewidth=0)
        axes.axvline(0, color=style.GREY, linewidth=1)
        figure.record({"quantity": title, "series": "standard deviation of seeds", "value": scatter})
        for line, way in enumerate(ways):
            values, (mean, low, high) = differences[way], intervals[way]
            dots = axes.scatter(values, np.full(len(values), line - 0.2), s=22, color=style.BLUE, alpha=0.8)
            look = {"color": style.VERMILION, "marker": "s", "capsize": 3}
            bar = axes.errorbar(mean, line + 0.12, xerr=[[mean - low], [high - mean]], **look)
            figure.record({"quantity": title, "way": way, "series": "difference of a seed", "value": values})
            interval = {"value": mean, "low": low, "high": high}
            figure.record({"quantity": title, "way": way, "series": "mean, 95 % interval"} | interval)
        axes.set(xlabel=title, ylim=(len(ways) - 0.5, -0.55))
        axes.locator_params(axis="x", nbins=5)
        axes.tick_params(axis="y", length=0)
    grid[0, 0].set_yticks(range(len(ways)), ways)
    figure.key({"a seed": dots, "mean, 95 %": bar, "± scatter of seeds": band})
    return figure
