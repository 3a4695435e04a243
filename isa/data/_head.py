"""A procedural head: identity coefficients, the solid they shape, and its skin.

Lengths are in centimetres. The pupils are at y = 0, the ear canals at z = 0; the face looks along +z, and its left ear
is at +x. The average head follows published averages of adult measurements (15 wide, 19 long, 23 high, 13.5 across the
cheekbones, 6.3 between the pupils).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from isa.data import _render
from isa.data._render import Array, capsule, carve, ellipsoid, smoothstep, union

# Loadings of the coefficients on four common causes: overall size, robustness (large in most men), fatness, pigment.
_LOADINGS = {
    "skull_width": (0.55, 0.10, 0.20, 0.0),
    "skull_height": (0.60, 0.05, 0.00, 0.0),
    "skull_length": (0.65, 0.15, 0.00, 0.0),
    "cheekbones": (0.50, 0.25, 0.30, 0.0),
    "jaw_width": (0.40, 0.50, 0.35, 0.0),
    "chin": (0.25, 0.60, 0.00, 0.0),
    "nose_length": (0.40, 0.35, 0.00, 0.0),
    "nose_width": (0.20, 0.30, 0.20, 0.0),
    "nose_projection": (0.30, 0.35, 0.00, 0.0),
    "brow": (0.15, 0.70, 0.00, 0.0),
    "eye_distance": (0.45, 0.05, 0.00, 0.0),
    "eye_size": (0.10, -0.35, -0.10, 0.0),
    "mouth_width": (0.35, 0.30, 0.10, 0.0),
    "lips": (0.00, -0.35, 0.10, 0.0),
    "ears": (0.35, 0.30, 0.10, 0.0),
    "fullness": (0.10, -0.10, 0.75, 0.0),
    "skin": (0.00, -0.10, 0.00, -0.80),
    "hair": (0.00, 0.00, 0.00, 0.50),
    "hairline": (0.00, 0.30, 0.10, 0.0),
    "eyebrows": (0.00, 0.45, 0.00, 0.30),
    "asymmetry": (0.00, 0.00, 0.00, 0.0),
}
COEFFICIENTS = tuple(_LOADINGS)


def identity_covariance() -> np.ndarray:
    r"""Return the covariance of the identity coefficients, in the order of ``COEFFICIENTS``.

    Variances are 1; correlations come from common causes with the loadings :math:`\Lambda`,

    .. math:: \Sigma = \Lambda \Lambda^\top + \operatorname{diag}(1 - \lVert \Lambda_i \rVert^2).

    The loadings are chosen to resemble head measurements, not estimated from scans: lengths grow together; jaw, chin,
    nose and brow share a common part; skin, hair and eyebrows darken together.
    """
    loadings = np.array([_LOADINGS[name] for name in COEFFICIENTS])
    return loadings @ loadings.T + np.diag(1 - (loadings**2).sum(1))


def draw_identities(n: int, seed: int) -> np.ndarray:
    """Return coefficients of ``n`` identities, (n, 21), normal with the covariance of :func:`identity_covariance`."""
    factor = np.linalg.cholesky(identity_covariance())
    return np.random.default_rng(seed).standard_normal((n, len(COEFFICIENTS))) @ factor.T


@dataclass(frozen=True)
class Head:
    """Mesh of a head, with albedo (V,) and gloss (V,) of its vertices."""

    mesh: _render.Mesh
    albedo: Array
    gloss: Array


class _Shape:
    """Solid and skin of one identity, as functions of space."""

    def __init__(self, coefficients: np.ndarray) -> None:
        c = dict(zip(COEFFICIENTS, (float(v) for v in coefficients), strict=True))
        self.asymmetry = 0.12 * c["asymmetry"]
        self.skull = (7.35 + 0.34 * c["skull_width"], 8.5 + 0.42 * c["skull_height"], 9.3 + 0.38 * c["skull_length"])
        self.cheek_x = 4.5 + 0.30 * c["cheekbones"]
        self.jaw_x = 4.5 + 0.42 * c["jaw_width"]
        self.chin_y = -9.8 - 0.42 * c["chin"]
        self.chin_size = 1.0 + 0.13 * c["chin"]
        self.nose_y = -3.5 - 0.34 * c["nose_length"]
        self.nose_z = 10.95 + 0.34 * c["nose_projection"]
        self.nose_w = 1.0 + 0.17 * c["nose_width"]
        self.brow = max(0.78 + 0.13 * c["brow"], 0.4)
        self.brow_z = 0.17 * c["brow"]
        self.eye_x = 3.2 + 0.17 * c["eye_distance"]
        self.eye_size = 1.0 + 0.08 * c["eye_size"]
        self.mouth_x = 2.55 + 0.24 * c["mouth_width"]
        self.mouth_y = -6.85 - 0.18 * c["nose_length"] - 0.14 * c["chin"]
        self.lip = min(max(0.39 + 0.08 * c["lips"], 0.18), 0.56)
        self.ear_size = 1.0 + 0.11 * c["ears"]
        self.full = 0.42 * c["fullness"]
        self.skin = float(np.clip(0.44 + 0.13 * c["skin"], 0.14, 0.76))
        self.hair_tone = float(np.clip(0.10 * np.exp(-0.75 * c["hair"]), 0.02, 0.42))
        self.hairline = 0.35 + 0.75 * c["hairline"]
        self.brow_tone = float(np.clip(0.70 + 0.13 * c["eyebrows"], 0.30, 0.95))
        self.brow_thick = max(0.46 + 0.08 * c["eyebrows"], 0.25)

    def straighten(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Return the absolute value of x, and y, without the bend of an asymmetric face."""
        x = x - self.asymmetry * smoothstep(y, 2.0, -9.0)
        return np.abs(x), y - 0.03 * self.asymmetry * x

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        x, y = self.straighten(x, y)
        d = ellipsoid(x, y - 3.1, z + 0.7, self.skull)
        # forehead and mid-face
        d = union(d, ellipsoid(x, y - 3.6, z - 3.4, (5.9, 5.6, 5.5)), 1.5)
        d = union(d, ellipsoid(x, y + 3.6, z - 2.6, (5.5 + self.full, 6.9, 6.3)), 2.0)
        # neck, cut like a bust's
        neck = capsule(x, y, z, (0, -5, -1.9), (0, -19, -3.4), 4.9 + 0.5 * self.full, 5.7 + 0.5 * self.full)
        d = union(d, carve(neck, y + 14.6, 0.8), 1.6)
        # jaw, chin and cheeks
        jaw = capsule(x, y, z, (self.jaw_x, -6.8, 1.9), (1.6, self.chin_y + 0.1, 7.3), 1.55, 1.25)
        ramus = capsule(x, y, z, (self.jaw_x, -6.8, 1.9), (5.6, -1.0, 1.2), 1.5, 1.1)
        d = union(d, union(jaw, ramus, 1.0), 1.8)
        chin = (1.9 * self.chin_size, 1.35, 1.6 * self.chin_size)
        d = union(d, ellipsoid(x, y - self.chin_y, z - 7.75, chin), 1.3)
        d = union(d, ellipsoid(x - 3.6, y + 4.9, z - 5.6, (2.3, 2.6, 2.4 + self.full)), 1.6)
        d = union(d, ellipsoid(x - self.cheek_x, y + 2.3, z - 5.3, (1.75, 1.3, 2.2)), 2.4)
        # the mound that carries the mouth
        d = union(d, ellipsoid(x, y - self.mouth_y, z - 7.5, (3.1, 2.2, 2.4)), 1.2)
        # brow ridge, sockets, eyeballs under their lids
        ridge = capsule(x, y, z, (0.9, 1.75, 8.55 + self.brow_z), (4.7, 2.0, 6.7 + self.brow_z), self.brow, 0.75)
        d = union(d, ridge, 1.1)
        eye_x, e = self.eye_x, self.eye_size
        d = carve(d, ellipsoid(x - eye_x + 0.1, y + 0.15, z - 9.35, (1.75, 1.15, 1.75)), 1.2)
        d = union(d, ellipsoid(x - eye_x, y, z - 6.95, (1.38 * e, 1.22 * e, 1.34 * e)), 0.35)
        d = union(d, ellipsoid(x - eye_x, y - 0.72 * e, z - 7.2, (1.55 * e, 0.42, 1.05 * e)), 0.35)
        # nose: bridge, tip, wings, and the nostrils under them
        ny, nz, w = self.nose_y, self.nose_z, self.nose_w
        d = union(d, capsule(x, y, z, (0, 0.9, 8.5), (0, ny + 0.15, nz - 0.75), 0.62, 0.86), 0.9)
        d = union(d, ellipsoid(x, y - ny, z - (nz - 0.7), (0.92 * (0.4 + 0.6 * w), 0.78, 0.86)), 0.6)
        d = union(d, ellipsoid(x - 1.12 * w, y - (ny - 0.28), z - 9.55, (0.68, 0.66, 0.95)), 0.55)
        d = carve(d, ellipsoid(x - 0.62 * w, y - (ny - 0.92), z - (nz - 1.15), (0.36, 0.36, 0.55)), 0.25)
        # lips: bars bent back along the teeth, a line between them, a hollow below
        bend = 0.24 * x * x
        lx, lip = self.mouth_x - 0.75, self.lip
        corner = smoothstep(x, 0.0, self.mouth_x)
        dip = 0.22 * np.exp(-((x / 0.45) ** 2))
        above, below = self.mouth_y + 0.9 * lip, self.mouth_y - 1.15 * lip
        d = union(d, capsule(x, y + dip + 0.25 * corner, z + bend, (-lx, above, 9.75), (lx, above, 9.75), lip), 0.5)
        d = union(d, capsule(x, y - 0.35 * corner, z + bend, (-lx, below, 9.6), (lx, below, 9.6), 1.2 * lip), 0.45)
        ends = (-self.mouth_x, self.mouth_y, 10.35), (self.mouth_x, self.mouth_y, 10.35)
        d = carve(d, capsule(x, y, z + bend, *ends, 0.16), 0.4)
        ends = (-1.2, self.mouth_y - 2.0, 10.35), (1.2, self.mouth_y - 2.0, 10.35)
        d = carve(d, capsule(x, y, z + bend, *ends, 0.42), 1.0)
        inner, outer = (1.95 * (0.5 + 0.5 * w), ny + 0.1, 9.5), (self.mouth_x + 0.75, self.mouth_y + 0.3, 8.6)
        d = carve(d, capsule(x, y, z, inner, outer, 0.12), 0.55)
        # short hair stands off the scalp
        d = d - 0.22 * self.hair(x, y, z, 1.6)
        return union(d, self.ear(x, y, z), 0.4)

    def ear(self, x: Array, y: Array, z: Array) -> Array:
        """Return the distance to the left ear, a hollowed shell whose back is turned outwards; ``x`` is absolute."""
        cos, sin = math.cos(0.45), math.sin(0.45)
        ex, ey, ez = x - self.skull[0], y + 1.3, z + 1.1
        ex, ez = cos * ex + sin * ez, cos * ez - sin * ex
        ey, ez = ey - 0.15 * ez, ez + 0.15 * ey
        s = self.ear_size
        shell = ellipsoid(ex, ey, ez, (0.62, 3.1 * s, 1.75 * s))
        hollow = ellipsoid(ex - 0.75, ey - 0.4, ez - 0.15, (0.7, 1.9 * s, 1.0 * s))
        return carve(shell, hollow, 0.35)

    def hair(self, x: Array, y: Array, z: Array, soft: float) -> Array:
        """Return the density of hair, from 0 to 1 over a width ``soft`` at the hairline; ``x`` is absolute."""
        temple = (7.0 + self.hairline) - smoothstep(x, 2.0, 6.5) * 1.2
        line = temple - smoothstep(z, 6.6, 2.8) * 3.6 - smoothstep(z, 3.4, 1.2) * 4.2 - smoothstep(z, -2.0, -6.5) * 5.5
        return smoothstep(y - line, 0.15 - soft / 2, 0.15 + soft / 2)

    def surface(self, x: Array, y: Array, z: Array, normal_y: Array) -> tuple[Array, Array]:
        """Return albedo and gloss."""
        x, y = self.straighten(x, y)
        face = smoothstep(z, 4.0, 6.0)
        tone: Array = np.full(x.shape, self.skin, np.float32)
        gloss: Array = np.full(x.shape, 0.5, np.float32)
        # the red of the cheeks is darker in grey
        blush = np.exp(-(((x - 4.0) / 1.8) ** 2 + ((y + 3.4) / 1.4) ** 2)) * face
        tone *= 1 - 0.07 * blush
        # lips
        bow = 0.30 * np.exp(-((x / 0.5) ** 2))
        taper = np.clip(1 - (x / self.mouth_x) ** 2, 0, 1)
        above = (y - self.mouth_y) / (1.75 * self.lip - bow * self.lip) - taper**0.6
        below = (self.mouth_y - y) / (2.0 * self.lip) - taper
        lips = smoothstep(np.maximum(above, below), 0.2, -0.25) * smoothstep(x - self.mouth_x, 0.1, -0.2) * face
        tone *= 1 - 0.33 * lips
        gloss += 0.3 * lips
        line = smoothstep(np.abs(y - self.mouth_y), 0.24, 0.06) * smoothstep(x - self.mouth_x, 0.25, -0.25) * face
        tone *= 1 - 0.62 * line
        # nostrils
        hole = ((x - 0.62 * self.nose_w) / 0.5) ** 2 + ((y - (self.nose_y - 0.85)) / 0.34) ** 2
        tone *= 1 - 0.65 * smoothstep(hole, 1.2, 0.4) * smoothstep(normal_y, 0.1, -0.3) * smoothstep(z, 8.8, 9.4)
        # eyes: an almond of white, iris and pupil, a dark upper lid line, a crease
        e = self.eye_size
        u = (x - self.eye_x) / e
        v = y / e - 0.07 * u
        arc = np.clip(1 - (u / 1.5) ** 2, 0, 1)
        top, bottom = 0.62 * arc**0.8, -0.46 * arc
        in_eye = smoothstep(np.maximum(v - top, bottom - v), 0.07, -0.07) * smoothstep(np.abs(u), 1.55, 1.4) * face
        r = np.sqrt(u * u + (v - 0.06) ** 2)
        white = 0.80 - 0.18 * smoothstep(v, 0.1, 0.6)
        ball = white + (0.13 - white) * smoothstep(r, 0.72, 0.54)
        ball = ball + (0.02 - ball) * smoothstep(r, 0.34, 0.22)
        tone = tone + (ball - tone) * in_eye
        gloss = gloss + (2.5 - gloss) * in_eye
        lash = smoothstep(np.abs(v - top - 0.08), 0.2, 0.05) * smoothstep(np.abs(u), 1.75, 1.3) * face
        tone *= 1 - 0.72 * lash
        rim = smoothstep(np.abs(v - bottom + 0.06), 0.16, 0.04) * smoothstep(np.abs(u), 1.6, 1.2) * face
        tone *= 1 - 0.30 * rim
        shade = smoothstep(np.abs(v - 0.95 * arc - 0.1), 0.3, 0.0) * smoothstep(np.abs(u), 1.8, 1.0) * face
        tone *= 1 - 0.18 * shade
        # eyebrows: arched, thick inside, thin outside
        along = (x - 1.2) / 4.2
        height = 2.05 + 0.5 * np.sin(np.clip(along, 0, 1.25) * 2.6) - 0.25 * along
        thick = self.brow_thick * (1.15 - 0.75 * np.clip(along, 0, 1))
        brow = smoothstep(np.abs(y - height) - thick, 0.16, -0.16) * smoothstep(along, -0.06, 0.06)
        brow = brow * smoothstep(along, 1.1, 0.9) * face
        tone *= 1 - self.brow_tone * brow
        gloss *= 1 - brow
        # hair
        cover = self.hair(x, y, z, 0.9) * smoothstep(self.ear(x, y, z), 0.05, 0.3)
        return tone + (self.hair_tone - tone) * cover * 0.94, gloss * (1 - 0.6 * cover)


def build_head(coefficients: np.ndarray, spacing: float = 0.27) -> Head:
    """Return mesh and skin of one identity.

    ``coefficients`` (21,) are in standard deviations, in the order of ``COEFFICIENTS``; zeros are the average head,
    which is symmetric. ``spacing`` is the grid's on the face, in centimetres; elsewhere it grows to about twice this.
    """
    shape = _Shape(coefficients)
    across = _graded(0, 11.0, spacing, 5.0)
    bottom, top = _graded(12.0, 16.5, spacing, 12.0), _graded(3.0, 14.5, spacing, 3.0)
    back = _graded(-5.0, 12.5, spacing, -5.0)
    axes = (
        np.concatenate([-across[:0:-1], across]),
        np.concatenate([-bottom[::-1], np.arange(-12 + spacing, 3.0, spacing), top]),
        np.concatenate([-back[::-1], np.arange(5 + spacing, 13.5, spacing)]),
    )
    mesh = _render.polygonise(shape.distance, axes)
    x, y, z = mesh.vertices.T
    albedo, gloss = shape.surface(x, y, z, mesh.normals[:, 1])
    return Head(mesh, albedo, gloss)


def _graded(start: float, stop: float, spacing: float, even_until: float) -> np.ndarray:
    """Return coordinates from ``start`` past ``stop``, ``spacing`` apart until ``even_until``, then up to 2.2 times."""
    points = [start]
    while points[-1] < stop:
        stretch = min(2.2, 1.0 + 0.3 * max(0.0, points[-1] - even_until))
        points.append(points[-1] + spacing * stretch)
    return np.array(points)
