"""Figures of the chapter *Training*: a learning curve, what latents know, and what precision changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from edition.figures import style

__all__ = ["information", "learning_curve", "paired_differences"]

_SHARE = LinearSegmentedColormap.from_list("isa.share", ["#f7f7f7", style.SKY, style.BLUE])


def learning_curve(panels: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Figure:
    """Terms of an objective against the number of steps, one panel each.

    ``panels``: by title: the value at every step ``(steps,)``, and the steps ``(M,)`` and values ``(M,)`` of a smoother
    line, whose first tenth, where everything falls into place at once, does not set the limits of the axis.
    """
    with style.styled():
        figure, row = style.subplots(1, len(panels), height=2.9, squeeze=False)
        for axes, (title, (values, at, smooth)) in zip(row[0], panels.items(), strict=True):
            axes.plot(np.arange(1, len(values) + 1), values, color=style.SKY, linewidth=0.9, alpha=0.8)
            axes.plot(at, smooth, color=style.BLUE, linewidth=2.2)
            axes.set(title=title, xlabel="steps", xlim=(0, len(values)))
            settled = smooth[len(smooth) // 10 :]
            low, high = settled.min(), settled.max()
            axes.set_ylim(low - 0.15 * (high - low), high + 0.15 * (high - low))
    return figure


def information(share: np.ndarray, factors: Sequence[str], active: np.ndarray) -> Figure:
    """Mutual information of every latent with every factor, as a table that is coloured and printed.

    ``share`` ``(F, K)``: mutual information over the logarithm of the number of the factor's values, 0 to 1;
    ``factors``: their names; ``active`` ``(K,)``: latents that are not active are named in grey.
    """
    latents = share.shape[1]
    with style.styled():
        figure, axes = style.subplots(height=0.8 + 0.26 * latents)
        image = axes.imshow(share.T, cmap=_SHARE, vmin=0, vmax=1, aspect="auto")
        for (latent, factor), value in np.ndenumerate(share.T):
            colour = "white" if value > 0.7 else style.BLACK if value >= 0.005 else style.GREY
            axes.text(factor, latent, f"{value:.2f}", ha="center", va="center", fontsize=10, color=colour)
        axes.set_xticks(range(len(factors)), factors)
        axes.xaxis.tick_top()
        axes.set_yticks(range(latents), [f"$z_{{{latent + 1}}}$" for latent in range(latents)])
        for label, on in zip(axes.get_yticklabels(), active, strict=True):
            label.set_color(style.BLACK if on else style.GREY)
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(image, location="bottom", aspect=40, pad=0.02)
        bar.set_label("share of the factor's entropy")
        bar.outline.set_visible(False)
    return figure


def paired_differences(
    panels: Mapping[str, tuple[Mapping[str, np.ndarray], Mapping[str, tuple[float, float, float]], float]],
) -> Figure:
    """Differences from a reference, run by run, beside the scatter of the seeds: one panel a quantity.

    ``panels``: by title: differences ``(S,)`` of each way, one a seed; their mean and its bounds; and the standard
    deviation of the reference over seeds, which is drawn as a band around 0.
    """
    with style.styled():
        ways = list(next(iter(panels.values()))[0])
        figure, row = style.subplots(1, len(panels), height=1.3 + 0.6 * len(ways), squeeze=False, sharey=True)
        for axes, (title, (differences, intervals, scatter)) in zip(row[0], panels.items(), strict=True):
            band = axes.axvspan(-scatter, scatter, color=style.GREY, alpha=0.22, linewidth=0)
            axes.axvline(0, color=style.GREY, linewidth=1)
            for line, way in enumerate(ways):
                values = differences[way]
                dots = axes.scatter(values, np.full(len(values), line - 0.2), s=22, color=style.BLUE, alpha=0.8)
                mean, low, high = intervals[way]
                bar = axes.errorbar(
                    mean, line + 0.12, xerr=[[mean - low], [high - mean]], color=style.VERMILION, marker="s", capsize=3
                )
            axes.set(xlabel=title, ylim=(len(ways) - 0.5, -0.55))
            axes.locator_params(axis="x", nbins=5)
        row[0, 0].set_yticks(range(len(ways)), ways)
        for axes in row[0]:
            axes.tick_params(axis="y", length=0)
        figure.legend(
            [dots, bar, band], ["a seed", "mean, 95 %", "± scatter of seeds"], loc="outside upper center", ncols=3
        )
    return figure
