"""Figures of factor analysis under mean-field inference (App. B.3-B.5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse
from matplotlib.ticker import FuncFormatter, LogLocator, MultipleLocator, NullLocator

from edition.figures import style

__all__ = [
    "against_alpha",
    "against_angle",
    "against_beta",
    "amplitude",
    "climbs",
    "posterior_panels",
    "pruned_latent",
    "rotated_weights",
    "shrinkage",
]

EXACT, APPROXIMATE, BOUND = style.BLUE, style.VERMILION, style.BLACK
TERMS = {"reconstruction": style.GREEN, "kl": style.PURPLE}


def _ellipse(axes: Axes, cov: np.ndarray, colour: str, radii: Sequence[float] = (1, 2), **kwargs) -> None:
    """Contours of a zero-mean Gaussian at these numbers of standard deviations."""
    variance, direction = np.linalg.eigh(cov)
    tilt = np.degrees(np.arctan2(direction[1, 1], direction[0, 1]))
    for radius in radii:
        width, height = 2 * radius * np.sqrt(variance[::-1])
        axes.add_patch(Ellipse((0, 0), width, height, angle=tilt, fill=False, edgecolor=colour, **kwargs))


def _square(axes: Axes, limit: float, name: str) -> None:
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel=f"${name}_1$", ylabel=f"${name}_2$")
    axes.locator_params(nbins=3)
    axes.yaxis.labelpad = 0


def _pi_axis(axes: Axes) -> None:
    def label(value: float, _: int) -> str:
        quarters = round(4 * value / np.pi)
        return {0: "0", 1: r"$\pi/4$", 2: r"$\pi/2$", 3: r"$3\pi/4$", 4: r"$\pi$"}.get(quarters, f"{value:.2f}")

    axes.xaxis.set_major_locator(MultipleLocator(np.pi / 4))
    axes.xaxis.set_major_formatter(FuncFormatter(label))


def rotated_weights(
    weights: np.ndarray, marginal: np.ndarray, exact: np.ndarray, approximate: np.ndarray, titles: Sequence[str]
) -> Figure:
    """Weights, exact posterior and mean-field posterior: one row for each rotation.

    ``weights`` ``(R, 2, 2)``: weights; their columns are drawn as arrows; ``marginal`` ``(2, 2)``: covariance of the
    data under the model; ``exact`` ``(R, 2, 2)``: covariance of the exact posterior; ``approximate`` ``(R, 2)``:
    variances of the mean-field posterior; ``titles``: one for each row.
    """
    with style.styled():
        figure, axes = style.subplots(len(weights), 3, height=2.2 * len(weights), squeeze=False)
        limit_x = 1.45 * np.sqrt(np.linalg.eigvalsh(marginal)[-1])
        limit_z = 2.2 * np.sqrt(max(np.linalg.eigvalsh(exact).max(), approximate.max()))
        for row, W, cov, var, title in zip(axes, weights, exact, approximate, titles, strict=True):
            _ellipse(row[0], marginal, style.GREY, radii=(1,), linewidth=1)
            for k, colour in enumerate((style.GREEN, style.ORANGE)):
                row[0].annotate("", W[:, k], (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2.2})
                length = np.linalg.norm(W[:, k])
                if length > 0:
                    spot = W[:, k] * (1 + 0.22 * limit_x / length)
                    row[0].text(*spot, f"$w_{k + 1}$", color=colour, ha="center", va="center")
            _ellipse(row[1], cov, EXACT)
            _ellipse(row[2], cov, EXACT, radii=(1,), linewidth=1, linestyle=(0, (2, 2)))
            _ellipse(row[2], np.diag(var), APPROXIMATE)
            _square(row[0], limit_x, "x")
            _square(row[1], limit_z, "z")
            _square(row[2], limit_z, "z")
            row[0].set_title(title, loc="left", fontweight="bold")
        axes[0, 1].set_title("exact", color=EXACT)
        axes[0, 2].set_title("mean field", color=APPROXIMATE)
    return figure


def against_angle(
    angles: np.ndarray, log_likelihood: np.ndarray, free_energy: np.ndarray, shown: Sequence[float]
) -> Figure:
    """Log-likelihood and free energy against the rotation, with lines at the rotations that the page shows.

    ``angles`` ``(A,)``: radians; ``log_likelihood``, ``free_energy`` ``(A,)``: nats; ``shown``: radians.
    """
    with style.styled():
        figure, axes = style.subplots(height=3.2)
        for angle in shown:
            axes.axvline(angle, color=style.GREY, linewidth=0.8, linestyle=":")
        axes.fill_between(angles, free_energy, log_likelihood, color=APPROXIMATE, alpha=0.12, linewidth=0)
        axes.plot(angles, log_likelihood, color=BOUND, label=r"log-likelihood $\log p(x)$")
        axes.plot(angles, free_energy, color=APPROXIMATE, label=r"free energy $F$")
        axes.set(xlabel=r"rotation $\theta$ of the latent space (rad)", ylabel="nats", xlim=(angles[0], angles[-1]))
        _pi_axis(axes)
        figure.legend(loc="outside upper center", ncols=2)
    return figure


def against_alpha(
    alpha: np.ndarray, log_likelihood: np.ndarray, free_energy: np.ndarray, reconstruction: np.ndarray, kl: np.ndarray
) -> Figure:
    """The pruning experiment: likelihood and free energy, and the free energy's two terms as changes since alpha = 0.

    ``alpha`` ``(A,)``: amplitude of the first latent; ``log_likelihood``, ``free_energy``, ``reconstruction``, ``kl``
    ``(A,)``: nats.
    """
    with style.styled():
        figure, (left, right) = style.subplots(1, 2, height=3.4)
        left.fill_between(alpha, free_energy, log_likelihood, color=APPROXIMATE, alpha=0.12, linewidth=0)
        left.plot(alpha, log_likelihood, color=BOUND, label=r"$\log p(x)$")
        left.plot(alpha, free_energy, color=APPROXIMATE, label=r"free energy $F$")
        left.set(ylabel="nats", title="bound")
        left.legend(loc="lower left")
        right.axhline(0, color=style.GREY, linewidth=0.8)
        right.plot(alpha, reconstruction - reconstruction[0], color=TERMS["reconstruction"], label="reconstruction")
        right.plot(alpha, kl[0] - kl, color=TERMS["kl"], label=r"$-\mathrm{KL}(q\,\Vert\,p)$")
        right.plot(alpha, free_energy - free_energy[0], color=APPROXIMATE, linestyle="--", label="their sum, $F$")
        right.set(ylabel=r"change since $\alpha = 0$ (nats)", title="its two terms")
        right.legend(loc="best")
        for axes in (left, right):
            axes.set(xlabel=r"amplitude $\alpha$ of $z_1$", xlim=(alpha[0], alpha[-1]))
    return figure


def posterior_panels(titles: Sequence[str], exact: np.ndarray, approximate: np.ndarray) -> Figure:
    """Exact and mean-field posterior of two latents over the prior, one panel a setting, at one standard deviation.

    ``titles`` ``(P,)``: one for each panel; ``exact`` ``(P, 2, 2)``: covariance of the exact posterior; ``approximate``
    ``(P, 2)``: variances of the mean-field posterior.
    """
    lines = {"exact": (EXACT, "-"), "mean field": (APPROXIMATE, (0, (4, 2))), "prior": (style.GREY, ":")}
    with style.styled():
        columns = min(3, len(titles))
        rows = -(-len(titles) // columns)
        figure, axes = style.subplots(rows, columns, height=0.5 + 2.3 * rows, squeeze=False)
        for panel in axes.flat[len(titles) :]:
            panel.set_visible(False)
        for index, (panel, title, cov, var) in enumerate(zip(axes.flat, titles, exact, approximate, strict=False)):
            for (colour, line), drawn in zip(lines.values(), (cov, np.diag(var), np.eye(2)), strict=True):
                width = 1 if colour == style.GREY else 1.8
                _ellipse(panel, drawn, colour, radii=(1,), linestyle=line, linewidth=width)
            _square(panel, 1.15, "z")
            panel.set_title(title)
            lowest = index + columns >= len(titles)
            panel.tick_params(labelbottom=lowest, labelleft=index % columns == 0)
            panel.set(xlabel="$z_1$" if lowest else "", ylabel="$z_2$" if index % columns == 0 else "")
        handles = [Line2D([], [], color=colour, linestyle=line) for colour, line in lines.values()]
        figure.legend(handles, list(lines), loc="outside upper center", ncols=3)
    return figure


def pruned_latent(
    alpha: np.ndarray, exact_var: np.ndarray, var: np.ndarray, mean_power: np.ndarray, kl: np.ndarray
) -> Figure:
    """Variance of the latent that is pruned, and its KL from the prior, as its amplitude falls to 0.

    ``alpha`` ``(A,)``: amplitude of the latent; ``exact_var``, ``var``, ``mean_power`` ``(A,)``: variance under the
    exact and the mean-field posterior, mean square of the posterior mean over the data; ``kl`` ``(A,)``: nats for each
    data point.
    """
    with style.styled():
        figure, (left, right) = style.subplots(1, 2, height=3.2)
        left.axhline(1, color=style.GREY, linewidth=0.8, linestyle=":")
        left.plot(alpha, exact_var, color=EXACT, label="exact variance")
        left.plot(alpha, var, color=APPROXIMATE, label="mean-field variance")
        left.plot(alpha, mean_power, color=style.GREEN, label="power of the mean")
        left.set(title="variance of $z_1$", ylim=(-0.03, 1.08))
        right.plot(alpha, kl, color=TERMS["kl"])
        right.set(title="KL of $z_1$ from its prior", ylabel="nats a data point", ylim=(0, None))
        for axes in (left, right):
            axes.set(xlabel=r"amplitude $\alpha$ of $z_1$", xlim=(alpha[0], alpha[-1]))
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def climbs(before: np.ndarray, after: np.ndarray, target: np.ndarray) -> Figure:
    """Lengths of the columns of W before and after climbing the free energy, from many random starts.

    ``before``, ``after`` ``(S, K)``: column lengths, sorted within each start, the longest first; ``target`` ``(K,)``:
    lengths at the global optimum.
    """
    with style.styled():
        figure, axes = style.subplots(height=3.4)
        colours = [style.BLUE, style.GREEN, style.VERMILION, style.PURPLE, style.ORANGE, style.SKY, style.BLACK]
        for k in range(before.shape[1]):
            colour = colours[k % len(colours)]
            pair = np.stack([before[:, k], after[:, k]])
            axes.plot([0, 1], pair, color=colour, alpha=0.35, linewidth=0.8, marker="o", markersize=3)
            axes.plot([1.0, 1.06], [target[k]] * 2, color=style.BLACK, linewidth=1.2)
        ranks = ["longest column", *(f"number {k + 1}" for k in range(1, before.shape[1]))]
        axes.legend([Line2D([], [], color=colour) for colour in colours[: len(ranks)]], ranks, loc="upper right")
        axes.text(1.075, target.max(), "optimum", va="center")
        axes.set(ylabel="length of a column of $W$", xlim=(-0.08, 1.3), ylim=(-0.05 * before.max(), None))
        axes.set_xticks([0, 1], ["random start", "after the climb"])
    return figure


def against_beta(
    angles: np.ndarray, rotation: np.ndarray, alpha: np.ndarray, pruning: np.ndarray, betas: Sequence[float]
) -> Figure:
    """Free energy below its maximum, for several beta: over the rotation, and over the pruned latent's amplitude.

    ``angles`` ``(A,)``: radians; ``rotation`` ``(B, A)``: free energy minus its maximum over the curve, nats; ``alpha``
    ``(C,)``: amplitudes; ``pruning`` ``(B, C)``: as ``rotation``, against ``alpha``; ``betas`` ``(B,)``: one for each
    curve.
    """
    with style.styled():
        figure, panels = style.subplots(1, 2, height=3.5)
        shades = style.SEQUENTIAL(np.linspace(0, 0.85, len(betas)))
        for axes, x, curves in zip(panels, (angles, alpha), (rotation, pruning), strict=True):
            for curve, beta, shade in zip(curves, betas, shades, strict=True):
                axes.plot(x, curve, color=shade, label=rf"$\beta = {beta:g}$")
            axes.set(xlim=(x[0], x[-1]))
        panels[0].set(xlabel=r"rotation $\theta$ (rad)", ylabel="$F_{16}$ below its maximum (nats)", title="rotation")
        _pi_axis(panels[0])
        panels[1].set(xlabel=r"amplitude $\alpha$ of $z_1$", title="pruning")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(3, len(betas)))
    return figure


def amplitude(betas: np.ndarray, rotation: np.ndarray, pruning: np.ndarray) -> Figure:
    """Depth of the free energy's valley against beta, in both conventions.

    ``betas`` ``(B,)``: weights of the KL term; ``rotation``, ``pruning`` ``(B,)``: depth in the convention of Eq. 16,
    nats.
    """
    with style.styled():
        figure, (left, right) = style.subplots(1, 2, height=3.4, sharey=True)
        for axes, depth, title in ((left, rotation, "rotation"), (right, pruning, "pruning")):
            axes.axvline(1, color=style.GREY, linewidth=0.8, linestyle=":")
            axes.loglog(betas, depth, color=EXACT, label="$F_{16}$ (likelihood over $\\beta$)")
            axes.loglog(betas, betas * depth, color=style.ORANGE, label="$F_{13}$ (KL times $\\beta$)")
            axes.set(xlabel=r"$\beta$", title=title, xlim=(betas[0], betas[-1]))
        left.set_ylabel("depth of the valley (nats)")
        figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=2)
    return figure


def shrinkage(
    betas: np.ndarray, held: np.ndarray, learned: np.ndarray, held_noise: np.ndarray, learned_noise: np.ndarray
) -> Figure:
    """Variance that each direction of the optimal weights explains, and the noise, against beta.

    ``betas`` ``(B,)``: weights of the KL term; ``held``, ``learned`` ``(B, K)``: squared lengths of the optimal
    columns, with the noise held and with the noise learned; ``held_noise``, ``learned_noise`` ``(B,)``: noise variance
    in either case.
    """
    with style.styled():
        figure, panels = style.subplots(1, 2, height=3.4, sharey=True)
        noises = (held_noise, learned_noise)
        for axes, squared, noise, title in zip(
            panels, (held, learned), noises, ("noise held", "noise learned"), strict=True
        ):
            for k, column in enumerate(squared.T):
                axes.plot(betas, column, color=style.CYCLE[k % len(style.CYCLE)], label=rf"$\|w_{k + 1}\|^2$")
            axes.plot(betas, noise, color=style.GREY, linestyle="--", label=r"noise $\sigma^2$")
            axes.set(xlabel=r"$\beta$", title=title, xlim=(betas[0], betas[-1]), ylim=(0, None), xscale="log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        panels[0].set_ylabel("variance")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=held.shape[1] + 1)
    return figure
