"""Figures of the prior's chapters: Lp-nested functions as surfaces and trees; densities, dependence, samples."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edition.figures.style import BLACK, BLUE, CYCLE, DIVERGING, GREY, SKY, VERMILION, WIDTH, bare, styled, subplots
from isa.prior import Node

__all__ = [
    "iso_surfaces",
    "marginals",
    "quantiles",
    "rank_histograms",
    "rotation_loss",
    "sampling_steps",
    "sections",
    "trees",
]

ELEVATION, AZIMUTH = 22, 38  # of the eye, in degrees
EYE = np.array([np.cos(np.radians(AZIMUTH)), np.sin(np.radians(AZIMUTH)), np.tan(np.radians(ELEVATION))])
REACH = 1.35  # of the axes drawn through a surface
LIGHT = np.array([0.72, 0.05, 0.69])
SURFACE = {"rstride": 1, "cstride": 1, "linewidth": 0, "antialiased": False, "shade": False, "rasterized": True}


def iso_surfaces(meshes: Mapping[tuple[float, float], tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Fig. 2: the surface f(z) = 1 in three dimensions for each (p0, p1), p0 down and p1 across.

    ``meshes``: for each (p0, p1) the surface's points ``(rows, columns, 3)`` and its unit normals there.
    """
    rows = sorted({p0 for p0, _ in meshes})
    columns = sorted({p1 for _, p1 in meshes})
    with styled():
        height, space = 1.1 * WIDTH * len(rows) / len(columns), {"projection": "3d", "computed_zorder": False}
        figure, axes = subplots(len(rows), len(columns), height=height, subplot_kw=space, squeeze=False)
        figure.get_layout_engine().set(w_pad=0, h_pad=0, wspace=0, hspace=0)
        for (p0, p1), (points, normals) in meshes.items():
            ax = axes[rows.index(p0), columns.index(p1)]
            ax.set_axis_off()
            for k, end in enumerate(REACH * np.eye(3)):  # behind the surface, which hides the part within
                ax.plot(*zip(-end, end, strict=True), color=GREY, linewidth=0.8, zorder=0)
                ax.text(*(1.13 * end), f"$z_{k + 1}$", fontsize=9, ha="left" if k == 2 else "center", va="center")
            facing = normals[:-1, :-1] + normals[1:, :-1] + normals[:-1, 1:] + normals[1:, 1:]
            facing /= np.linalg.norm(facing, axis=-1, keepdims=True)
            shade = np.clip(facing @ LIGHT, -1, 1)
            colours = colormaps["Blues_r"](0.5 + 0.4 * shade)
            ax.plot_surface(*np.moveaxis(points, -1, 0), facecolors=colours, zorder=1, **SURFACE)
            for k, end in enumerate(REACH * np.eye(3)):  # the ends that point towards the eye
                tip = points.reshape(-1, 3)[(points.reshape(-1, 3) @ end).argmax()][k]
                if end @ EYE > 0:
                    ax.plot(*zip(end / REACH * tip, end, strict=True), color=GREY, linewidth=0.8, zorder=2)
            ax.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
            ax.set_box_aspect((1, 1, 1), zoom=1.02)
            ax.view_init(elev=ELEVATION, azim=AZIMUTH)
            ax.text2D(0.5, 0.02, rf"$p_0={p0:g},\ p_1={p1:g}$", transform=ax.transAxes, ha="center", fontsize=11)
        return figure


def sections(curves: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Plane sections of iso-surfaces: one panel a plane, one closed curve ``(points, 2)`` a setting.

    ``curves``: panel title ("horizontal axis | vertical axis" after a newline) to label to curve.
    """
    with styled():
        figure, axes = subplots(1, len(curves), height=2.9, squeeze=False)
        for ax, (title, lines) in zip(axes.flat, curves.items(), strict=True):
            heading, labels = title.split("\n")
            for colour, (label, curve) in zip(CYCLE, lines.items(), strict=False):
                ax.plot(*curve.T, color=colour, label=label)
            horizontal, vertical = labels.split("|")
            ax.set(title=heading, xlabel=horizontal, ylabel=vertical, aspect="equal")
            ax.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), xticks=[-1, 0, 1], yticks=[-1, 0, 1])
            ax.legend(loc="center", handlelength=1.2, labelspacing=0.25)
        return figure


def trees(nodes: Mapping[str, Node]) -> Figure:
    """Fig. 4: Lp-nested functions as trees, drawn from the ``Node`` objects themselves; one tree below the other."""
    with styled():
        figure, axes = subplots(len(nodes), 1, height=2.5 * len(nodes), squeeze=False)
        for ax, (title, node) in zip(axes.flat, nodes.items(), strict=True):
            _draw_tree(ax, node)
            ax.set_title(title)
        return figure


def _draw_tree(ax: Axes, root: Node) -> None:
    depth = max(_depths(root))
    style = {"ha": "center", "va": "center", "zorder": 3}
    counters = {"leaf": 0, "node": 0}

    def place(node: Node, level: int) -> float:
        number = counters["node"]
        counters["node"] += 1
        spots = []
        for child in node.children:
            for _ in range(1 if isinstance(child, Node) else child):
                if isinstance(child, Node):
                    spots.append((place(child, level + 1), level + 1))
                else:
                    x, counters["leaf"] = counters["leaf"], counters["leaf"] + 1
                    spots.append((x, depth))
                    box = {"boxstyle": "square,pad=0.3", "fc": "white", "ec": BLACK}
                    ax.text(x, -depth, f"$z_{{{x + 1}}}$", bbox=box, **style)
        x = sum(spot for spot, _ in spots) / len(spots)
        for spot, at in spots:
            ax.plot([x, spot], [-level, -at], color=GREY, linewidth=1.2, zorder=1)
        label = f"$v_{{{number}}},\\ p_{{{number}}}{{=}}{float(node.p):g}$"
        ax.text(x, -level, label, bbox={"boxstyle": "round,pad=0.35", "fc": "#e3eef7", "ec": BLUE}, **style)
        return x

    place(root, 0)
    ax.set(xlim=(-0.6, max(root.n_leaves - 0.4, 2.0)), ylim=(-depth - 0.35, 0.35))
    bare(ax)


def _depths(node: Node, level: int = 1) -> list[int]:
    return [level] + [d for child in node.children if isinstance(child, Node) for d in _depths(child, level + 1)]


def rank_histograms(histograms: Mapping[str, np.ndarray], limit: float) -> Figure:
    """Joint histograms of two coordinates' ranks, as ratios to independence (which is 1 everywhere), two a row.

    ``histograms``: panel title to a square array of ratios; ``limit``: the colours span 1 - limit to 1 + limit.
    """
    with styled():
        rows = (len(histograms) + 1) // 2
        figure, axes = subplots(rows, 2, height=2.9 * rows, squeeze=False, sharex=True, sharey=True)
        for ax, (title, ratio) in zip(axes.flat, histograms.items(), strict=True):
            options = {"origin": "lower", "extent": (0, 1, 0, 1), "interpolation": "nearest"}
            image = ax.imshow(ratio, cmap=DIVERGING, vmin=1 - limit, vmax=1 + limit, **options)
            ax.set(title=title, xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        for ax in axes[-1]:
            ax.set_xlabel("rank of the one $|z|$")
        for ax in axes[:, 0]:
            ax.set_ylabel("rank of the other $|z|$")
        figure.colorbar(image, ax=axes, label="density / density if independent", shrink=0.8, aspect=30)
        return figure


def rotation_loss(angles: np.ndarray, losses: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Log density lost by rotating two coordinates against the angle; one line with its standard error a setting.

    ``angles``: in radians; ``losses``: label to (mean loss in nats, its standard error), each of the shape of
    ``angles``.
    """
    with styled():
        figure, ax = subplots(height=3.4)
        degrees = np.degrees(angles)
        for colour, (label, (loss, error)) in zip(CYCLE, losses.items(), strict=False):
            ax.plot(degrees, loss, color=colour, label=label)
            ax.fill_between(degrees, loss - 2 * error, loss + 2 * error, color=colour, alpha=0.2, linewidth=0)
        ax.axhline(0, color=GREY, linewidth=0.8)
        ax.set(xlabel="angle of rotation (degrees)", ylabel="log density lost (nats)", xticks=np.arange(0, 91, 15))
        figure.legend(loc="outside upper center")
        return figure


def marginals(x: np.ndarray, densities: Mapping[str, np.ndarray], normal: np.ndarray) -> Figure:
    """A coordinate's marginal density at unit variance, and its ratio to the normal one, one line a setting."""
    with styled():
        figure, (left, right) = subplots(1, 2, height=3.3)
        left.plot(x, normal, color=BLACK, linestyle="--", label="normal")
        for colour, (label, pdf) in zip(CYCLE, densities.items(), strict=False):
            left.plot(x, pdf, color=colour, linewidth=1.2)
            right.plot(x, pdf / normal, color=colour, label=label)
        left.set(xlabel="$z_j$ / standard deviation", ylabel="density", ylim=(0, None))
        left.legend(loc="upper right", handlelength=1.4)
        right.axhline(1, color=BLACK, linestyle="--", linewidth=1)
        right.set(xlabel="$z_j$ / standard deviation", ylabel="density / normal density")
        right.legend(fontsize=9, title="$p_0;\\ p_1;$ size", title_fontsize=9, loc="lower left")
        return figure


def sampling_steps(
    sphere: np.ndarray,
    radii: np.ndarray,
    grid: np.ndarray,
    radial_density: np.ndarray,
    samples: np.ndarray,
    plane: np.ndarray,
    log_density: np.ndarray,
    names: tuple[str, str],
) -> Figure:
    """Algorithm 1 on a small tree: uniform points on the sphere, the new radius, the finished samples over the density.

    ``sphere``, ``samples``: ``(N, 2)``: two coordinates of the points on the unit sphere and of the samples; ``radii``:
    ``(N,)``, drawn beside ``radial_density`` on ``grid``; ``plane``, ``log_density``: the square on which the log
    density of the two coordinates is contoured, ``(M,)`` and ``(M, M)``; ``names``: of the two coordinates.
    """
    with styled():
        figure, (left, middle, right) = subplots(1, 3, height=2.8)
        left.plot(*sphere.T, ".", color=BLUE, markersize=1.5, alpha=0.35, rasterized=True)
        left.set(title="steps 1-4", xlabel=names[0], ylabel=names[1], aspect="equal", xlim=(0, 1.05), ylim=(0, 1.05))
        middle.hist(radii, bins=60, density=True, color=SKY)
        middle.plot(grid, radial_density, color=VERMILION, label="Eq. 11")
        middle.set(title="step 5", xlabel="radius $v_0$", ylabel="density", box_aspect=1)
        middle.legend(handlelength=1.2)
        right.plot(*samples.T, ".", color=BLUE, markersize=1.5, alpha=0.3, rasterized=True)
        depth = log_density.max() - log_density
        right.contour(plane, plane, depth, levels=np.arange(0.5, 7), colors=VERMILION, linewidths=0.9)
        right.set(title="step 6", xlabel=names[0], ylabel=names[1], aspect="equal")
        right.set(xlim=(plane[0], plane[-1]), ylim=(plane[0], plane[-1]))
        return figure


def quantiles(panels: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Quantiles of samples against those of their laws, two panels a row.

    ``panels``: title to (quantiles of the law, quantiles of the samples).
    """
    with styled():
        rows = (len(panels) + 1) // 2
        figure, axes = subplots(rows, 2, height=2.9 * rows, squeeze=False)
        for ax in axes.flat[len(panels) :]:
            ax.remove()
        for ax, (title, (law, sample)) in zip(axes.flat, panels.items(), strict=False):
            stop = float(max(law.max(), sample.max()))
            ax.plot([0, stop], [0, stop], color=GREY, linewidth=1)
            ax.plot(law, sample, ".", color=BLUE, markersize=4)
            ax.set(title=title, xlabel="law", ylabel="samples")
        return figure
