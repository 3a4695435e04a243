"""Figures of factor analysis under mean-field inference (App. B.3-B.5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from matplotlib.ticker import LogLocator, NullLocator

from edition.figures import style

__all__ = ["against_alpha", "against_angle", "against_beta", "amplitude", "climbs", "posterior_panels", "pruned_latent"]
__all__ += ["rotated_weights", "shrinkage"]

EXACT, APPROXIMATE, BOUND = style.BLUE, style.VERMILION, style.BLACK
RECONSTRUCTION, KL = style.GREEN, style.PURPLE
AMPLITUDE = r"amplitude $\alpha$ of $z_1$"


def _ellipse(axes: Axes, cov: np.ndarray, colour: str, radii: Sequence[float] = (1,), **look) -> None:
    """Draw contours of a zero-mean Gaussian at these numbers of standard deviations."""
    variance, direction = np.linalg.eigh(cov)
    tilt = np.degrees(np.arctan2(direction[1, 1], direction[0, 1]))
    for radius in radii:
        width, height = 2 * radius * np.sqrt(variance[::-1])
        axes.add_patch(Ellipse((0, 0), width, height, angle=tilt, fill=False, edgecolor=colour, **look))


def _square(axes: Axes, limit: float) -> None:
    axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axes.locator_params(nbins=3)


def _angle_axis(axes: Axes, last: float) -> None:
    places = np.arange(0, last / np.pi + 0.01, 0.25)
    names = {0: "0", 0.25: r"$\pi/4$", 0.5: r"$\pi/2$", 0.75: r"$3\pi/4$", 1: r"$\pi$"}
    axes.set_xticks(np.pi * places, [names.get(place, rf"${place:g}\pi$") for place in places])


def _gap(axes: Axes, x: np.ndarray, log_likelihood: np.ndarray, free_energy: np.ndarray) -> dict[str, np.ndarray]:
    """Draw a log-likelihood and the free energy below it, and return them as columns of the figure's table."""
    axes.fill_between(x, free_energy, log_likelihood, color=APPROXIMATE, alpha=0.12, linewidth=0)
    axes.plot(x, log_likelihood, color=BOUND, label=r"log-likelihood $\log p(x)$")
    axes.plot(x, free_energy, color=APPROXIMATE, label=r"free energy $F$")
    return {"log-likelihood [nats]": log_likelihood, "free energy [nats]": free_energy}


@style.styled
def rotated_weights(
    weights: np.ndarray, marginal: np.ndarray, exact: np.ndarray, approximate: np.ndarray, titles: Sequence[str]
) -> Figure:
    """Draw weights, exact posterior and mean-field posterior: one row for each rotation.

    ``weights`` ``(R, 2, 2)``, whose columns are drawn as arrows; ``marginal`` ``(2, 2)``: covariance of the data under
    the model; ``exact`` ``(R, 2, 2)``: covariance of the exact posterior; ``approximate`` ``(R, 2)``: variances of the
    mean-field posterior; ``titles``: one for each row.
    """
    figure, grid = style.subplots(len(weights), 3, height=2.2 * len(weights), squeeze=False)
    limit_x = 1.45 * np.sqrt(np.linalg.eigvalsh(marginal)[-1])
    limit_z = 2.2 * np.sqrt(max(np.linalg.eigvalsh(exact).max(), approximate.max()))
    for row, W, cov, var, title in zip(grid, weights, exact, approximate, titles, strict=True):
        _ellipse(row[0], marginal, style.GREY, linewidth=1)
        for k, colour in enumerate((style.GREEN, style.ORANGE)):
            row[0].annotate("", W[:, k], (0, 0), arrowprops={"arrowstyle": "-|>", "color": colour, "lw": 2.2})
            spot = W[:, k] * (1 + 0.22 * limit_x / max(np.linalg.norm(W[:, k]), 1e-9))
            row[0].text(*spot, f"$w_{k + 1}$", color=colour, ha="center", va="center")
        _ellipse(row[1], cov, EXACT, radii=(1, 2))
        _ellipse(row[2], cov, EXACT, linewidth=1, linestyle=(0, (2, 2)))
        _ellipse(row[2], np.diag(var), APPROXIMATE, radii=(1, 2))
        for axes, name, limit in zip(row, "xzz", (limit_x, limit_z, limit_z), strict=True):
            _square(axes, limit)
            axes.set_xlabel(f"${name}_1$")
            axes.set_ylabel(f"${name}_2$", labelpad=0)
        row[0].set_title(title, loc="left", fontweight="bold")
        matrices = {"weights": W, "covariance of x": marginal}
        matrices |= {"exact posterior covariance": cov, "mean-field covariance": np.diag(var)}
        figure.record({"setting": title, "row": [[1], [2]], "column": [1, 2]} | matrices)
    grid[0, 1].set_title("exact", color=EXACT)
    grid[0, 2].set_title("mean field", color=APPROXIMATE)
    return figure


@style.styled
def against_angle(
    angles: np.ndarray, log_likelihood: np.ndarray, free_energy: np.ndarray, shown: Sequence[float]
) -> Figure:
    """Draw log-likelihood and free energy against the rotation, with lines at the rotations that the page shows.

    ``angles`` ``(A,)``: radians; ``log_likelihood``, ``free_energy`` ``(A,)``: nats; ``shown``: radians.
    """
    figure, axes = style.subplots(height=3.2)
    for angle in shown:
        axes.axvline(angle, color=style.GREY, linewidth=0.8, linestyle=":")
    figure.record({"rotation [rad]": angles} | _gap(axes, angles, log_likelihood, free_energy))
    axes.set(xlabel=r"rotation $\theta$ of the latent space (rad)", ylabel="nats", xlim=(angles[0], angles[-1]))
    _angle_axis(axes, angles[-1])
    figure.key()
    return figure


@style.styled
def against_alpha(
    alpha: np.ndarray, log_likelihood: np.ndarray, free_energy: np.ndarray, reconstruction: np.ndarray, kl: np.ndarray
) -> Figure:
    """Draw the pruning experiment: likelihood and free energy, and the change of its two terms from alpha = 0.

    ``alpha`` ``(A,)``: amplitude of the first latent; the others ``(A,)``: nats.
    """
    figure, (left, right) = style.subplots(1, 2, height=3.4, subplot_kw={"xlabel": AMPLITUDE, "xlim": alpha[[0, -1]]})
    bound = _gap(left, alpha, log_likelihood, free_energy)
    figure.record({"alpha": alpha, "reconstruction [nats]": reconstruction, "KL [nats]": kl} | bound)
    left.set(ylabel="nats", title="free energy")
    left.legend(loc="best")
    right.plot(alpha, reconstruction - reconstruction[0], color=RECONSTRUCTION, label="reconstruction")
    right.plot(alpha, kl[0] - kl, color=KL, label=r"$-\mathrm{KL}(q\,\Vert\,p)$")
    right.plot(alpha, free_energy - free_energy[0], color=APPROXIMATE, linestyle="--", label="their sum, $F$")
    right.set(ylabel=r"change from $\alpha = 0$ (nats)", title="its two terms")
    right.legend(loc="best")
    return figure


@style.styled
def posterior_panels(titles: Sequence[str], exact: np.ndarray, approximate: np.ndarray) -> Figure:
    """Draw one standard deviation of the exact and the mean-field posterior and of the prior, one panel per setting.

    ``titles`` ``(P,)``; ``exact`` ``(P, 2, 2)``: covariance of the exact posterior; ``approximate`` ``(P, 2)``:
    variances of the mean-field posterior.
    """
    looks = {
        "exact": {"color": EXACT},
        "mean field": {"color": APPROXIMATE, "linestyle": (0, (4, 2))},
        "prior": {"color": style.GREY, "linestyle": ":", "linewidth": 1},
    }
    figure, panels = style.panels(len(titles), 3, 2.3, labels=("$z_1$", "$z_2$"))
    for axes, title, cov, var in zip(panels, titles, exact, approximate, strict=True):
        for look, drawn in zip(looks.values(), (cov, np.diag(var), np.eye(2)), strict=True):
            options = {"linewidth": 1.8} | look
            _ellipse(axes, drawn, options.pop("color"), **options)
        _square(axes, 1.15)
        axes.set_title(title)
        covariances = {"exact covariance": cov, "mean-field covariance": np.diag(var)}
        figure.record({"setting": title, "row": [[1], [2]], "column": [1, 2]} | covariances)
    figure.key(looks)
    return figure


@style.styled
def pruned_latent(
    alpha: np.ndarray, exact_var: np.ndarray, var: np.ndarray, mean_power: np.ndarray, kl: np.ndarray
) -> Figure:
    """Draw the variance of the latent that is pruned, and its KL from the prior, as its amplitude falls to 0.

    ``alpha`` ``(A,)``: amplitude of the latent; ``exact_var``, ``var``, ``mean_power`` ``(A,)``: variance under the
    exact and the mean-field posterior, mean square of the posterior mean over the data; ``kl`` ``(A,)``: nats for each
    data point.
    """
    figure, (left, right) = style.subplots(1, 2, height=3.2, subplot_kw={"xlabel": AMPLITUDE, "xlim": alpha[[0, -1]]})
    left.axhline(1, color=style.GREY, linewidth=0.8, linestyle=":")
    variances = {"exact variance": exact_var, "mean-field variance": var, "variance of the mean": mean_power}
    for (label, values), colour in zip(variances.items(), (EXACT, APPROXIMATE, style.GREEN), strict=True):
        left.plot(alpha, values, color=colour, label=label)
    left.set(title="variance of $z_1$", ylim=(-0.03, 1.08))
    right.plot(alpha, kl, color=KL)
    right.set(title="KL of $z_1$ from its prior", ylabel="nats per data point", ylim=(0, None))
    figure.key(loc="outside upper left")
    figure.record({"alpha": alpha} | variances | {"KL [nats per data point]": kl})
    return figure


@style.styled
def climbs(before: np.ndarray, after: np.ndarray, target: np.ndarray) -> Figure:
    """Draw lengths of the columns of W before and after maximising the free energy, from many random starts.

    ``before``, ``after`` ``(S, K)``: column lengths, sorted within each start, the longest first; ``target`` ``(K,)``:
    lengths at the global optimum.
    """
    figure, axes = style.subplots(height=3.4)
    starts, columns = before.shape
    for k, colour in zip(range(columns), style.CYCLE, strict=False):
        pair = np.stack([before[:, k], after[:, k]])
        lines = axes.plot([0, 1], pair, color=colour, alpha=0.35, linewidth=0.8, marker="o", markersize=3)
        lines[0].set_label(f"rank {k + 1}" if k else "longest column")
        axes.plot([1.0, 1.06], [target[k]] * 2, color=style.BLACK, linewidth=1.2)
    for line in axes.legend(loc="upper right").legend_handles:
        line.set(alpha=1, linewidth=1.8, marker="")
    axes.text(1.075, target.max(), "optimum", va="center")
    axes.set(ylabel="length of a column of $W$", xlim=(-0.08, 1.3), ylim=(-0.05 * before.max(), None))
    axes.set_xticks([0, 1], ["random start", "after optimisation"])
    lengths = {"length at the start": before, "length after optimisation": after, "length at the optimum": target}
    figure.record({"start": np.arange(starts)[:, None], "column": np.arange(1, columns + 1)} | lengths)
    return figure


@style.styled
def against_beta(
    angles: np.ndarray, rotation: np.ndarray, alpha: np.ndarray, pruning: np.ndarray, betas: Sequence[float]
) -> Figure:
    """Draw the free energy minus its maximum for several beta: over the rotation, and over the amplitude.

    ``angles`` ``(A,)``: radians; ``rotation`` ``(B, A)``: free energy minus its maximum over the curve, nats; ``alpha``
    ``(C,)``: amplitudes of the pruned latent; ``pruning`` ``(B, C)``: as ``rotation``, against ``alpha``; ``betas``
    ``(B,)``.
    """
    figure, (left, right) = style.subplots(1, 2, height=3.5)
    shades = style.shades(len(betas))
    for axes, name, x, curves in ((left, "rotation [rad]", angles, rotation), (right, "alpha", alpha, pruning)):
        for curve, beta, shade in zip(curves, betas, shades, strict=True):
            axes.plot(x, curve, color=shade, label=rf"$\beta = {beta:g}$")
            figure.record({"beta": beta, name: x, "free energy minus its maximum [nats]": curve})
        axes.set(xlim=(x[0], x[-1]))
    left.set(xlabel=r"rotation $\theta$ (rad)", ylabel="$F_{16}$ minus its maximum (nats)", title="rotation")
    _angle_axis(left, angles[-1])
    right.set(xlabel=AMPLITUDE, title="pruning")
    figure.key()
    return figure


@style.styled
def amplitude(betas: np.ndarray, rotation: np.ndarray, pruning: np.ndarray) -> Figure:
    """Draw the depth of the free energy below its maximum against beta, in both conventions.

    ``betas`` ``(B,)``: weights of the KL term; ``rotation``, ``pruning`` ``(B,)``: depth in the convention of Eq. 16,
    nats.
    """
    figure, panels = style.subplots(1, 2, height=3.4, sharey=True)
    for axes, depth, title in zip(panels, (rotation, pruning), ("rotation", "pruning"), strict=True):
        axes.axvline(1, color=style.GREY, linewidth=0.8, linestyle=":")
        axes.loglog(betas, depth, color=EXACT, label="$F_{16}$ (likelihood over $\\beta$)")
        axes.loglog(betas, betas * depth, color=style.ORANGE, label="$F_{13}$ (KL times $\\beta$)")
        axes.set(xlabel=r"$\beta$", title=title, xlim=(betas[0], betas[-1]))
        depths = {"depth of F16 [nats]": depth, "depth of F13 [nats]": betas * depth}
        figure.record({"panel": title, "beta": betas} | depths)
    panels[0].set_ylabel("depth (nats)")
    figure.key()
    return figure


@style.styled
def shrinkage(
    betas: np.ndarray, fixed: np.ndarray, learned: np.ndarray, fixed_noise: np.ndarray, learned_noise: np.ndarray
) -> Figure:
    """Draw the variance that each direction of the optimal weights explains, and the noise, against beta.

    ``betas`` ``(B,)``: weights of the KL term; ``fixed``, ``learned`` ``(B, K)``: squared lengths of the optimal
    columns, with the noise variance fixed and learned; ``fixed_noise``, ``learned_noise`` ``(B,)``: noise variance.
    """
    figure, panels = style.subplots(1, 2, height=3.4, sharey=True)
    settings = {"noise fixed": (fixed, fixed_noise), "noise learned": (learned, learned_noise)}
    for axes, (title, (squared, noise)) in zip(panels, settings.items(), strict=True):
        for k, (column, colour) in enumerate(zip(squared.T, style.CYCLE, strict=False), 1):
            axes.plot(betas, column, color=colour, label=rf"$\|w_{k}\|^2$")
        axes.plot(betas, noise, color=style.GREY, linestyle="--", label=r"noise $\sigma^2$")
        axes.set(xlabel=r"$\beta$", title=title, xlim=(betas[0], betas[-1]), ylim=(0, None), xscale="log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        lengths = {f"squared length of w{k}": column for k, column in enumerate(squared.T, 1)}
        figure.record({"panel": title, "beta": betas, "noise variance": noise} | lengths)
    panels[0].set_ylabel("variance")
    figure.key(ncols=fixed.shape[1] + 1)
    return figure
