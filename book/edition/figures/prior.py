"""Figures of the prior's chapters: Lp-nested functions as surfaces and trees; densities, dependence, samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from edition.figures import style
from edition.figures.style import BLACK, BLUE, CYCLE, GREY, SKY, VERMILION
from isa.prior import Node

__all__ = ["draw_surface", "iso_surfaces", "marginals", "prior_stills", "quantiles", "rank_histograms", "rotation_loss"]
__all__ += ["sampling_steps", "sections", "trees"]

ELEVATION, AZIMUTH = 22, 38  # of the eye, in degrees
EYE = np.array([np.cos(np.radians(AZIMUTH)), np.sin(np.radians(AZIMUTH)), np.tan(np.radians(ELEVATION))])
REACH = 1.35  # of the axes drawn through a surface
LIGHT = np.array([0.72, 0.05, 0.69])
SURFACE = {"linewidth": 0, "antialiased": False, "rasterized": True, "zorder": 1}


def draw_surface(axes: Axes, points: np.ndarray, normals: np.ndarray) -> None:
    """Draw a surface with unit normals, each ``(rows, columns, 3)``, and the coordinate axes through it, on 3D axes."""
    axes.set_axis_off()
    facing = normals[:-1, :-1] + normals[1:, :-1] + normals[:-1, 1:] + normals[1:, 1:]
    facing /= np.linalg.norm(facing, axis=-1, keepdims=True)
    colours = colormaps["Blues_r"](0.5 + 0.4 * np.clip(facing @ LIGHT, -1, 1)).reshape(-1, 4)
    corners = np.stack([points[:-1, :-1], points[:-1, 1:], points[1:, 1:], points[1:, :-1]], 2).reshape(-1, 4, 3)
    # axes.plot_surface converts colours one by one, which takes longer than all the rest
    axes.add_collection3d(Poly3DCollection(corners, facecolors=colours, edgecolors=colours, **SURFACE))
    for k, end in enumerate(REACH * np.eye(3)):
        # a line behind the surface, which hides the part within, and in front the end that points towards the eye
        axes.plot(*zip(-end, end, strict=True), color=GREY, linewidth=0.8, zorder=0)
        axes.text(*(1.13 * end), f"$z_{k + 1}$", fontsize=9, ha="left" if k == 2 else "center", va="center")
        tip = points.reshape(-1, 3)[(points.reshape(-1, 3) @ end).argmax()][k]
        if end @ EYE > 0:
            axes.plot(*zip(end / REACH * tip, end, strict=True), color=GREY, linewidth=0.8, zorder=2)
    axes.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
    axes.set_box_aspect((1, 1, 1), zoom=1.02)
    axes.view_init(elev=ELEVATION, azim=AZIMUTH)


@style.styled
def iso_surfaces(meshes: Mapping[tuple[float, float], tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draw the surface f(z) = 1 in three dimensions for each (p0, p1), p0 down and p1 across (Fig. 2).

    ``meshes``: for each (p0, p1) the surface's points ``(rows, columns, 3)``, of which the table has every fourth row
    and column, and its unit normals there.
    """
    rows, columns = (sorted({pair[axis] for pair in meshes}) for axis in (0, 1))
    height, space = 1.1 * style.WIDTH * len(rows) / len(columns), {"projection": "3d", "computed_zorder": False}
    figure, grid = style.subplots(len(rows), len(columns), height=height, subplot_kw=space, squeeze=False)
    figure.get_layout_engine().set(w_pad=0, h_pad=0, wspace=0, hspace=0)
    for (p0, p1), (points, normals) in meshes.items():
        axes = grid[rows.index(p0), columns.index(p1)]
        draw_surface(axes, points, normals)
        axes.text2D(0.5, 0.02, rf"$p_0={p0:g},\ p_1={p1:g}$", transform=axes.transAxes, ha="center", fontsize=11)
        figure.record({"p0": p0, "p1": p1} | {f"z_{k + 1}": points[::4, ::4, k] for k in range(3)})
    return figure


@style.styled
def sections(curves: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draw plane sections of iso-surfaces: one panel per plane, one closed curve ``(points, 2)`` per setting.

    ``curves``: panel title ("horizontal axis | vertical axis" after a newline) to label to curve.
    """
    figure, grid = style.subplots(1, len(curves), height=2.9, squeeze=False)
    for axes, (title, lines) in zip(grid[0], curves.items(), strict=True):
        heading, labels = title.split("\n")
        horizontal, vertical = labels.split("|")
        for colour, (label, curve) in zip(CYCLE, lines.items(), strict=False):
            axes.plot(*curve.T, color=colour, label=label)
            figure.record({"plane": heading, "setting": label, horizontal: curve[:, 0], vertical: curve[:, 1]})
        axes.set(title=heading, xlabel=horizontal, ylabel=vertical, aspect="equal")
        axes.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        axes.legend(loc="center", handlelength=1.2, labelspacing=0.25)
    return figure


@style.styled
def trees(nodes: Mapping[str, Node]) -> Figure:
    """Draw Lp-nested functions as trees, from the ``Node`` objects themselves, one below the other (Fig. 4)."""
    figure, grid = style.subplots(len(nodes), 1, height=2.5 * len(nodes), squeeze=False)
    for axes, (title, node) in zip(grid[:, 0], nodes.items(), strict=True):
        axes.set_title(title)
        for row in _draw_tree(axes, node):
            figure.record({"tree": title} | row)
    return figure


def _draw_tree(axes: Axes, root: Node) -> list[dict[str, object]]:
    """Draw a tree and return its vertices, each with its parent and its exponent."""
    depth = _depth(root)
    look = {"ha": "center", "va": "center", "zorder": 3}
    rows: list[dict[str, object]] = []
    leaves = iter(range(root.n_leaves))
    numbers = iter(range(root.n_leaves + 1))

    def place(node: Node, level: int, parent: str) -> float:
        name = f"v_{{{next(numbers)}}}"
        rows.append({"vertex": name, "parent": parent, "exponent": float(node.p)})
        spots = []
        for child in node.children:
            if isinstance(child, Node):
                spots.append((place(child, level + 1, name), level + 1))
                continue
            for leaf in (next(leaves) for _ in range(child)):
                spots.append((leaf, depth))
                rows.append({"vertex": f"z_{{{leaf + 1}}}", "parent": name})
                box = {"boxstyle": "square,pad=0.3", "fc": "white", "ec": BLACK}
                axes.text(leaf, -depth, f"$z_{{{leaf + 1}}}$", bbox=box, **look)
        x = sum(spot for spot, _ in spots) / len(spots)
        for spot, at in spots:
            axes.plot([x, spot], [-level, -at], color=GREY, linewidth=1.2, zorder=1)
        box = {"boxstyle": "round,pad=0.35", "fc": "#e3eef7", "ec": BLUE}
        axes.text(x, -level, f"${name},\\ p_{name[2:]}{{=}}{float(node.p):g}$", bbox=box, **look)
        return x

    place(root, 0, "")
    axes.set(xlim=(-0.6, max(root.n_leaves - 0.4, 2.0)), ylim=(-depth - 0.35, 0.35))
    style.bare(axes)
    return rows


def _depth(node: Node) -> int:
    return 1 + max((_depth(child) for child in node.children if isinstance(child, Node)), default=0)


@style.styled
def rank_histograms(histograms: Mapping[str, np.ndarray], limit: float) -> Figure:
    """Draw joint histograms of two coordinates' ranks, relative to independence (1 everywhere), two in a row.

    ``histograms``: panel title to a square array of ratios; ``limit``: the colours span 1 - limit to 1 + limit.
    """
    labels = ("rank of one $|z|$", "rank of the other $|z|$")
    figure, panels = style.panels(len(histograms), 2, 2.65, labels=labels)
    options = {"origin": "lower", "extent": (0, 1, 0, 1), "interpolation": "nearest"}
    options |= {"cmap": style.DIVERGING, "vmin": 1 - limit, "vmax": 1 + limit}
    for axes, (title, ratio) in zip(panels, histograms.items(), strict=True):
        image = axes.imshow(ratio, **options)
        axes.set(title=title, xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
        rank = (np.arange(len(ratio)) + 0.5) / len(ratio)
        figure.record({"panel": title, "rank of one": rank, "rank of the other": rank[:, None], "density ratio": ratio})
    figure.colorbar(image, ax=panels, label="density / density if independent", shrink=0.8, aspect=30)
    return figure


@style.styled
def rotation_loss(angles: np.ndarray, losses: Mapping[str, np.ndarray]) -> Figure:
    """Draw the log density lost by rotating two coordinates against the angle.

    ``angles``: in radians; ``losses``: label to the loss in nats, of the shape of ``angles``.
    """
    figure, axes = style.subplots(height=3.4)
    degrees = np.degrees(angles)
    for colour, (label, loss) in zip(CYCLE, losses.items(), strict=False):
        axes.plot(degrees, loss, color=colour, label=label)
        figure.record({"setting": label, "angle [degrees]": degrees, "log density lost [nats]": loss})
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.set(xlabel="angle of rotation (degrees)", ylabel="log density lost (nats)", xticks=np.arange(0, 91, 15))
    figure.key(ncols=1)
    return figure


@style.styled
def marginals(x: np.ndarray, densities: Mapping[str, np.ndarray], normal: np.ndarray) -> Figure:
    """Draw a coordinate's marginal density at unit variance, and its ratio to the normal one, one line per setting."""
    figure, (left, right) = style.subplots(1, 2, height=3.3)
    left.plot(x, normal, color=BLACK, linestyle="--", label="normal")
    figure.record({"setting": "normal", "z_j / standard deviation": x, "density": normal})
    for colour, (label, pdf) in zip(CYCLE, densities.items(), strict=False):
        left.plot(x, pdf, color=colour, linewidth=1.2)
        right.plot(x, pdf / normal, color=colour, label=label)
        figure.record({"setting": label, "z_j / standard deviation": x, "density": pdf})
    left.set(xlabel="$z_j$ / standard deviation", ylabel="density", ylim=(0, None))
    left.legend(loc="upper right", handlelength=1.4)
    right.axhline(1, color=BLACK, linestyle="--", linewidth=1)
    right.set(xlabel="$z_j$ / standard deviation", ylabel="density / normal density")
    right.legend(fontsize=9, title="$p_0;\\ p_1;$ size", title_fontsize=9, loc="lower left")
    return figure


@style.styled
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
    """Draw Algorithm 1 on a small tree: uniform points on the sphere, the new radius, the finished samples.

    ``sphere``, ``samples`` ``(N, 2)``: two coordinates of the points on the unit sphere and of the samples; ``radii``
    ``(N,)``, drawn with ``radial_density`` on ``grid``; ``log_density`` ``(M, M)``: of the two coordinates, on a square
    with the side ``plane`` ``(M,)``; ``names``: of the two. The table has the first 2,000 points.
    """
    figure, (left, middle, right) = style.subplots(1, 3, height=2.8)
    left.plot(*sphere.T, ".", color=BLUE, markersize=1.5, alpha=0.35, rasterized=True)
    left.set(title="steps 1–4", xlabel=names[0], ylabel=names[1], aspect="equal", xlim=(0, 1.05), ylim=(0, 1.05))
    middle.hist(radii, bins=60, density=True, color=SKY)
    middle.plot(grid, radial_density, color=VERMILION, label="Eq. 11")
    middle.set(title="step 5", xlabel="radius $v_0$", ylabel="density", box_aspect=1)
    middle.legend(handlelength=1.2)
    right.plot(*samples.T, ".", color=BLUE, markersize=1.5, alpha=0.3, rasterized=True)
    depth = log_density.max() - log_density
    right.contour(plane, plane, depth, levels=np.arange(0.5, 7), colors=VERMILION, linewidths=0.9)
    right.set(title="step 6", xlabel=names[0], ylabel=names[1], aspect="equal")
    right.set(xlim=(plane[0], plane[-1]), ylim=(plane[0], plane[-1]))
    for series, points in (("point on the sphere", sphere), ("sample", samples)):
        figure.record({"series": series, names[0]: points[:2000, 0], names[1]: points[:2000, 1]})
    figure.record({"series": "radius of a sample", "radius": radii[:2000]})
    figure.record({"series": "radius, Eq. 11", "radius": grid, "density": radial_density})
    columns = {"series": "log density", names[0]: plane, names[1]: plane[:, None]}
    figure.record(columns | {"log density": log_density})
    return figure


@style.styled
def quantiles(panels: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Draw quantiles of samples against those of their exact distributions, two panels in a row.

    ``panels``: title to (exact quantiles, quantiles of the samples).
    """
    figure, grid = style.panels(len(panels), 2, 2.65)
    for axes, (title, (law, sample)) in zip(grid, panels.items(), strict=True):
        ends = [min(0, law.min(), sample.min()), max(law.max(), sample.max())]
        axes.plot(ends, ends, color=GREY, linewidth=1)
        axes.plot(law, sample, ".", color=BLUE, markersize=4)
        axes.set(title=title, xlabel="exact quantile", ylabel="sample quantile")
        figure.record({"panel": title, "exact quantile": law, "sample quantile": sample})
    return figure


@style.styled
def prior_stills(
    stills: Mapping[str, tuple[Sequence[np.ndarray], np.ndarray, np.ndarray]], names: Sequence[tuple[str, str]]
) -> Figure:
    """Draw two plane sections of a density, and its samples in the second plane: one row for each setting.

    ``stills``: title of each row to the closed curves f = 1 in the two planes, each ``(M, 2)``, the factors ``(D,)``
    that scale them to contours of the density, and samples ``(N, 2)``; ``names``: of the two coordinates of each
    plane.
    """
    figure, grid = style.subplots(len(stills), 3, height=2.3 * len(stills), squeeze=False)
    for row, (title, (sections, factors, samples)) in zip(grid, stills.items(), strict=True):
        limit = 3.4 * np.sqrt((samples**2).mean(0).max())
        for axes, curve in zip(row, sections, strict=False):
            for factor in factors:
                axes.plot(*(factor * curve).T, color=BLUE, linewidth=0.7, solid_capstyle="round")
            axes.plot(*curve.T, color=VERMILION, solid_capstyle="round")
        row[2].plot(*samples.T, ".", color=BLUE, markersize=1.5, alpha=0.35, rasterized=True)
        for axes, (across, up) in zip(row, (*names, names[-1]), strict=True):
            axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel=across)
            axes.set_ylabel(up, labelpad=0)
            axes.locator_params(nbins=3)
        row[0].set_title(title, loc="left")
        for series, points, plane in zip(("f = 1", "f = 1", "samples"), (*sections, samples), (0, 1, 1), strict=True):
            x, y = (name.strip("$") for name in names[plane])
            figure.record({"setting": title, "series": series, x: points[:, 0], y: points[:, 1]})
    grid[0, 2].set_title("samples")
    return figure
