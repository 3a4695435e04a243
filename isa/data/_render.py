"""A small software renderer: from signed distances to meshes, from meshes to samples, from samples to pictures.

A procedural head is a solid given by a signed distance function (negative inside). It is turned once into a triangle
mesh, the light that reaches each vertex is computed once for a set of directions over the sphere, and every view is one
rasterisation of the mesh. Everything is numpy in single precision and depends on its arguments only.

Coordinates are right-handed: x to the right of the picture, y up, z towards the camera. Distance functions take
coordinates of any one shape and return an array of that shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]  # float32
Distance = Callable[[Array, Array, Array], Array]
Point = Sequence[float]


def ellipsoid(x: Array, y: Array, z: Array, radii: Point) -> Array:
    """Return the first-order signed distance to an axis-parallel ellipsoid about the origin; exact for a sphere."""
    a, b, c = (np.float32(1.0 / r) for r in radii)
    u, v, w = x * a, y * b, z * c
    k0 = np.sqrt(u * u + v * v + w * w)
    u, v, w = u * a, v * b, w * c
    k1 = np.sqrt(u * u + v * v + w * w)
    return k0 * (k0 - 1.0) / np.maximum(k1, 1e-6)


def capsule(x: Array, y: Array, z: Array, start: Point, end: Point, radius: float, end_radius: float = 0) -> Array:
    """Return the signed distance to a segment whose radius varies linearly, or is constant without ``end_radius``."""
    ax, ay, az = (np.float32(v) for v in start)
    bx, by, bz = (np.float32(e - s) for s, e in zip(start, end, strict=True))
    px, py, pz = x - ax, y - ay, z - az
    t = np.clip((px * bx + py * by + pz * bz) / (bx * bx + by * by + bz * bz), 0, 1)
    px, py, pz = px - t * bx, py - t * by, pz - t * bz
    distance = np.sqrt(px * px + py * py + pz * pz)
    return distance - (np.float32(radius) + t * np.float32((end_radius or radius) - radius))


def union(a: Array, b: Array, blend: float) -> Array:
    """Return the union of two solids, rounded over a width ``blend`` (quadratic smooth minimum)."""
    k = np.float32(blend)
    h = np.maximum(k - np.abs(a - b), 0)
    return np.minimum(a, b) - h * h * (0.25 / k)


def carve(a: Array, b: Array, blend: float) -> Array:
    """Return solid ``a`` without solid ``b``, rounded over a width ``blend``."""
    return -union(-a, b, blend)


def smoothstep(x: Array, low: float, high: float) -> Array:
    """Return a cubic step from 0 at ``low`` to 1 at ``high``, constant beyond; it falls if ``low > high``."""
    t = np.clip((x - np.float32(low)) / np.float32(high - low), 0, 1)
    return t * t * (3 - 2 * t)


@dataclass(frozen=True)
class Mesh:
    """Vertices and unit normals (V, 3); triangles (T, 3), corners counter-clockwise seen from outside."""

    vertices: Array
    normals: Array
    triangles: NDArray[np.int32]


def polygonise(distance: Distance, axes: Sequence[NDArray[np.floating]], coarse: int = 4) -> Mesh:
    """Return the surface net of the zero level of a signed distance on a rectilinear grid.

    Every grid cell that the surface crosses gets one vertex, at the mean of the crossings on the cell's edges. Two
    Newton steps along the gradient, which also gives the normal, move it onto the surface. Distances are first computed
    on every ``coarse``-th grid point, then only where the surface can be, given that the distance has slope at most 1.

    The solid must lie strictly inside the grid, given by three increasing arrays of coordinates.
    """
    x, y, z = axes = [np.asarray(a, np.float32) for a in axes]
    value = _banded_values(distance, axes, coarse)
    inside = value < 0

    n_cells = value.size
    weight = np.zeros(n_cells, np.float32)
    total = np.zeros((3, n_cells), np.float32)
    quads = []
    strides = np.array([y.size * z.size, z.size, 1])
    flat = value.ravel()
    for axis in range(3):
        before = np.moveaxis(inside, axis, 0)[:-1]
        crossed = np.moveaxis(before != np.moveaxis(inside, axis, 0)[1:], 0, axis)
        index = np.stack(np.nonzero(crossed))
        start = strides @ index
        low, high = flat[start], flat[start + strides[axis]]
        t = low / (low - high)
        point = np.stack([x[index[0]], y[index[1]], z[index[2]]])
        point[axis] += t * (axes[axis][index[axis] + 1] - axes[axis][index[axis]])
        u, v = strides[(axis + 1) % 3], strides[(axis + 2) % 3]
        cells = np.stack([start - u - v, start - v, start, start - u])
        for cell in cells:
            weight += np.bincount(cell, minlength=n_cells).astype(np.float32)
            for k in range(3):
                total[k] += np.bincount(cell, point[k], minlength=n_cells).astype(np.float32)
        # from inside to outside along the axis, the four cells turn counter-clockwise seen from outside
        quads.append(np.where(low < 0, cells, cells[::-1]).T)
    used = weight > 0
    vertices = total[:, used] / weight[used]
    corners = (np.cumsum(used, dtype=np.int32) - 1)[np.concatenate(quads)]
    step = 0.25 * min(np.diff(line).min() for line in axes)
    for iteration in range(3):
        value, gradient = _gradient(distance, vertices, step)
        length = np.maximum(np.sqrt((gradient**2).sum(0)), 1e-6)
        normals = gradient / length
        if iteration < 2:
            vertices = vertices - normals * np.clip(value / length, -2 * step, 2 * step)
    triangles = np.concatenate([corners[:, [0, 1, 2]], corners[:, [0, 2, 3]]])
    return Mesh(np.ascontiguousarray(vertices.T), np.ascontiguousarray(normals.T), np.ascontiguousarray(triangles))


def _banded_values(distance: Distance, axes: Sequence[Array], coarse: int) -> Array:
    picks = [np.unique(np.append(np.arange(0, a.size, coarse), a.size - 1)) for a in axes]
    grid = np.meshgrid(*(a[p] for a, p in zip(axes, picks, strict=True)), indexing="ij")
    rough = distance(*(g.ravel() for g in grid)).reshape(grid[0].shape)
    diagonal = np.sqrt(sum(np.diff(a[p]).max() ** 2 for a, p in zip(axes, picks, strict=True)))
    near = np.abs(rough) <= np.float32(diagonal)
    for axis in range(3):  # a cell is near when any of its corners is
        rolled = np.moveaxis(near, axis, 0)
        near = np.moveaxis(np.concatenate([rolled[:-1] | rolled[1:], rolled[-1:]]), 0, axis)
    owner = [np.searchsorted(p, np.arange(a.size), side="right") - 1 for a, p in zip(axes, picks, strict=True)]
    value = rough[np.ix_(*owner)]
    i, j, k = np.nonzero(near[np.ix_(*owner)])
    value[i, j, k] = distance(axes[0][i], axes[1][j], axes[2][k])
    return value


def _gradient(distance: Distance, points: Array, step: np.float32) -> tuple[Array, Array]:
    """Return value (N,) and gradient (3, N) at points (3, N), from the four corners of a tetrahedron."""
    value = np.zeros(points.shape[1], np.float32)
    gradient = np.zeros_like(points)
    for corner in ((1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)):
        offset = np.array(corner, np.float32)[:, None]
        d = distance(*(points + offset * step))
        value += d * 0.25
        gradient += offset * d
    return value, gradient / (4 * step)


@dataclass(frozen=True)
class Fragments:
    """Visible samples of a view: flat index (F,) in a row-major picture, mesh corners and their weights (F, 3)."""

    sample: NDArray[np.int64]
    corners: NDArray[np.int32]
    weights: Array


def rasterise(x: Array, y: Array, depth: Array, triangles: NDArray[np.int32], size: int) -> Fragments:
    """Return the visible samples of the triangles that face the viewer, with barycentric weights.

    Vertices have positions ``x`` to the right and ``y`` down in samples, whose centres are at half-integers, and
    distances ``depth`` from the viewer, (V,) each. Triangles (T, 3) have their corners counter-clockwise seen from the
    front; they are clipped to a picture of ``size`` x ``size`` samples.
    """
    x, y = x - 0.5, y - 0.5
    c0, c1, c2 = triangles.T
    x0, y0, x1, y1, x2, y2 = x[c0], y[c0], x[c1], y[c1], x[c2], y[c2]
    double_area = (x2 - x0) * (y1 - y0) - (x1 - x0) * (y2 - y0)
    facing = np.flatnonzero(double_area > 1e-9)
    x0, y0, x1, y1, x2, y2, double_area = (a[facing] for a in (x0, y0, x1, y1, x2, y2, double_area))
    low_x = np.ceil(np.maximum(np.minimum(np.minimum(x0, x1), x2), 0)).astype(np.int32)
    low_y = np.ceil(np.maximum(np.minimum(np.minimum(y0, y1), y2), 0)).astype(np.int32)
    n_x = np.floor(np.minimum(np.maximum(np.maximum(x0, x1), x2), size - 1)).astype(np.int32) - low_x + 1
    n_y = np.floor(np.minimum(np.maximum(np.maximum(y0, y1), y2), size - 1)).astype(np.int32) - low_y + 1
    kept = np.flatnonzero((n_x > 0) & (n_y > 0))
    n_x, count = n_x[kept], n_x[kept] * n_y[kept]

    # one candidate for every sample in the bounding box of each triangle
    which = np.repeat(np.arange(kept.size, dtype=np.int32), count)
    local = np.arange(which.size, dtype=np.int32) - np.repeat(np.cumsum(count, dtype=np.int32) - count, count)
    row, column = np.divmod(local, n_x[which])
    column += low_x[kept][which]
    row += low_y[kept][which]
    # barycentric weights are affine in the position
    scale = 1 / double_area[kept]
    u_x, u_y = (y0 - y2)[kept] * scale, (x2 - x0)[kept] * scale
    v_x, v_y = (y1 - y0)[kept] * scale, (x0 - x1)[kept] * scale
    dx, dy = column - x0[kept][which], row - y0[kept][which]
    u = dx * u_x[which] + dy * u_y[which]
    v = dx * v_x[which] + dy * v_y[which]
    hit = np.flatnonzero((np.minimum(u, v) >= -1e-5) & (u + v <= 1 + 1e-5))
    face, u, v = facing[kept[which[hit]]], u[hit], v[hit]
    sample = row[hit].astype(np.int64) * size + column[hit]
    corners = triangles[face]
    weights = np.stack([1 - u - v, u, v], axis=1)
    z = (depth[corners] * weights).sum(1)
    # far to near, so that the nearest is written last; 16 bits of depth sort by radix
    far, near = (z.max(), z.min()) if z.size else (1.0, 0.0)
    order = np.argsort(((far - z) * np.float32(65535 / max(far - near, 1e-6))).astype(np.uint16), kind="stable")
    winner = np.full(size * size, -1, np.int64)
    winner[sample[order]] = order
    seen = np.flatnonzero(winner >= 0)
    winner = winner[seen]
    return Fragments(seen, corners[winner], weights[winner])


def interpolate(fragments: Fragments, values: Array) -> Array:
    """Interpolate vertex values (V, C) at the fragments, (F, C)."""
    corners, weights = fragments.corners.T, fragments.weights.T[..., None]
    return values[corners[0]] * weights[0] + values[corners[1]] * weights[1] + values[corners[2]] * weights[2]


def resolve(fragments: Fragments, values: Array, size: int, factor: int) -> Array:
    """Return a picture (size, size, C) of fragments (F, C) on black, each pixel the mean of ``factor``² samples."""
    picture = np.zeros(((size * factor) ** 2, values.shape[1]), np.float32)
    picture[fragments.sample] = values
    picture = picture.reshape(size, factor, size, factor, -1)
    samples = (picture[:, i, :, j] for i in range(factor) for j in range(factor))
    return reduce(np.add, samples) * np.float32(1 / factor**2)


def product(a: Array, b: Array) -> Array:
    """Return the matrix product (M, K) @ (K, N) of a long ``a`` and a small ``b``, computed on the calling thread.

    The blocks of rows are so small that BLAS does not start threads: pictures are already drawn on several threads, and
    the sums do not depend on the number of cores.
    """
    k, n = b.shape
    rows = max(1, min(len(a), 8192 // k if n == 1 else 131072 // (k * n)))
    whole = len(a) // rows * rows
    blocks = (a[:whole].reshape(-1, rows, k) @ b).reshape(whole, n)
    return blocks if whole == len(a) else np.concatenate([blocks, a[whole:] @ b])


def sphere_directions(n: int) -> Array:
    """Return ``n`` nearly uniform unit vectors (n, 3): a spiral over the half sphere x > 0, and its mirror image."""
    half = n // 2
    k = np.arange(half) + 0.5
    x = k / half
    angle = np.pi * (1 + np.sqrt(5)) * k
    r = np.sqrt(1 - x * x)
    right = np.stack([x, r * np.cos(angle), r * np.sin(angle)], axis=1)
    return np.concatenate([right, right * [-1, 1, 1]]).astype(np.float32)


def visibility(mesh: Mesh, directions: Array, resolution: int, bias: float) -> Array:
    """Return how much of each direction every vertex sees past the mesh itself, (D, V), between 0 (in shadow) and 1.

    A vertex, moved by ``bias`` towards the light, is compared with the four samples around it in an orthographic depth
    map for the direction, weighted bilinearly. A vertex that faces away from a direction does not see it.
    """
    centre = (mesh.vertices.max(0) + mesh.vertices.min(0)) / 2
    points = mesh.vertices - centre
    radius = np.sqrt((points**2).sum(1)).max()
    scale = np.float32((resolution / 2 - 2) / radius)
    seen = np.zeros((len(directions), len(points)), np.float32)
    cosines = product(mesh.normals, np.ascontiguousarray(directions.T)).T
    for d, cosine, row in zip(directions, cosines, seen, strict=True):
        helper = np.array([0, 1, 0] if abs(d[1]) < 0.9 else [0, 0, 1], np.float32)
        right = np.cross(helper, d)
        right /= np.sqrt((right**2).sum())
        up = np.cross(d, right)
        placed = product(points, np.stack([right, up, d], axis=1))
        x = placed[:, 0] * scale + np.float32(resolution / 2)
        y = np.float32(resolution / 2) - placed[:, 1] * scale
        depth = -placed[:, 2]
        fragments = rasterise(x, y, depth, mesh.triangles, resolution)
        nearest = np.full(resolution * resolution, np.inf, np.float32)
        nearest[fragments.sample] = (depth[fragments.corners] * fragments.weights).sum(1)
        lit = np.flatnonzero(cosine > 0)
        column, row_ = np.floor(x[lit] - 0.5), np.floor(y[lit] - 0.5)
        fx, fy = x[lit] - 0.5 - column, y[lit] - 0.5 - row_
        first = row_.astype(np.int64) * resolution + column.astype(np.int64)
        near = depth[lit] - np.float32(bias)
        row[lit] = (
            (nearest[first] > near) * (1 - fx) * (1 - fy)
            + (nearest[first + 1] > near) * fx * (1 - fy)
            + (nearest[first + resolution] > near) * (1 - fx) * fy
            + (nearest[first + resolution + 1] > near) * fx * fy
        )
    return seen


def transfer(mesh: Mesh, directions: Array, seen: Array) -> Array:
    """Return the irradiance (V, D) of each vertex by unit radiance from each direction: visibility times the cosine."""
    cosines = product(mesh.normals, np.ascontiguousarray(directions.T))
    return np.maximum(cosines, 0, out=cosines) * seen.T


def lobe(directions: Array, centre: Array, concentration: float) -> Array:
    """Return the weights (D, L), with columns that sum to 1, of von Mises-Fisher lobes about ``centre`` (L, 3)."""
    weight = np.exp(np.float32(concentration) * (directions @ centre.T - 1))
    return weight / weight.sum(0)
