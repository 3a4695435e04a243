"""A procedural car: shapes drawn from a few body styles, their solid, their paint, and views of them on white.

The stand-in for cars3d where the published renderings are not at hand: 183 cars, 4 elevations and 24 azimuths, framed
as the real ones are (orthographic, the length filling 88 % of the width). Lengths are in metres; x points to the car's
left, y up, z forwards; the ground is y = 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from tqdm import tqdm

from isa.data import _render
from isa.data._render import Array, capsule, carve, ellipsoid, intersection, polygon, smoothstep, union

CARS = 183
ELEVATIONS = np.array([0.0, 6.0, 12.0, 18.0])
AZIMUTHS = np.arange(24) * 15.0
SIDE = 64

_SEED = 2015
_SAMPLES = 2  # per pixel and direction
_FILL = 113 / 128  # of the frame's width, taken by the length
_DIRECTIONS = 48
_LAMP = (-0.35, 0.75, 0.75)  # in the camera's coordinates
_LAMP_CONCENTRATION = 6.0
_SHADOW_RESOLUTION, _SHADOW_BIAS = 80, 0.10


@dataclass(frozen=True)
class Car:
    """Parameters of one car: lengths in metres, colours as linear red, green and blue."""

    style: str
    length: float
    width: float
    height: float
    clearance: float
    belt: float  # height of the windows' lower edge
    hood: float  # height of the hood at its front
    cowl: float  # where the hood meets the windscreen, z
    screen_top: float  # upper end of the windscreen, z
    roof_end: float  # rear end of the roof, z
    tail: float  # lower end of the rear window, z
    deck: float  # height of what lies behind it
    tumble: float  # how much narrower the roof is than the belt, on each side
    wheel: float  # radius
    front_axle: float  # z
    rear_axle: float  # z
    pillars: tuple[float, ...]  # z of the pillars between side windows
    paint: tuple[float, float, float]
    glass: float
    rim: float
    cladding: bool
    spoiler: bool


# (share, length, width, height, clearance, belt/height, hood/belt, cowl, screen, roof end, tail, deck/belt); the four
# positions along the car are fractions of the length from its middle
_STYLES: dict[str, tuple[float, ...]] = {
    "sedan": (0.28, 4.65, 1.80, 1.43, 0.17, 0.62, 0.84, 0.235, 0.075, -0.20, -0.345, 1.02),
    "hatchback": (0.22, 4.00, 1.72, 1.47, 0.17, 0.61, 0.83, 0.255, 0.09, -0.37, -0.475, 0.98),
    "wagon": (0.10, 4.65, 1.78, 1.47, 0.17, 0.61, 0.84, 0.235, 0.085, -0.40, -0.48, 0.98),
    "coupe": (0.16, 4.50, 1.84, 1.30, 0.14, 0.64, 0.86, 0.195, 0.03, -0.14, -0.40, 0.98),
    "suv": (0.12, 4.50, 1.85, 1.76, 0.24, 0.60, 0.90, 0.255, 0.12, -0.42, -0.48, 0.98),
    "van": (0.08, 4.70, 1.86, 1.92, 0.19, 0.55, 0.84, 0.36, 0.20, -0.455, -0.49, 0.98),
    "pickup": (0.04, 5.10, 1.88, 1.75, 0.25, 0.61, 0.90, 0.225, 0.10, -0.09, -0.135, 0.97),
}

# (weight, linear red, green, blue)
_PAINTS = np.array(
    [
        (0.24, 0.42, 0.43, 0.44),
        (0.12, 0.64, 0.64, 0.62),
        (0.13, 0.030, 0.030, 0.035),
        (0.09, 0.11, 0.115, 0.125),
        (0.16, 0.55, 0.025, 0.025),
        (0.06, 0.20, 0.015, 0.02),
        (0.10, 0.03, 0.12, 0.46),
        (0.03, 0.20, 0.45, 0.68),
        (0.05, 0.04, 0.22, 0.07),
        (0.02, 0.03, 0.38, 0.32),
        (0.06, 0.72, 0.48, 0.02),
        (0.03, 0.70, 0.20, 0.03),
        (0.05, 0.35, 0.28, 0.18),
    ]
)


def draw_parameters(n: int, seed: int) -> list[Car]:
    """``n`` cars: a body style, its measures varied by a few per cent (larger cars are taller), and a paint."""
    rng = np.random.default_rng(seed)
    names = list(_STYLES)
    share = np.array([_STYLES[name][0] for name in names])
    cars = []
    for _ in range(n):
        style = names[rng.choice(len(names), p=share / share.sum())]
        _, length, width, height, clearance, belt, hood, cowl, screen, roof_end, tail, deck = _STYLES[style]
        size, low = rng.normal(0, 1, 2).clip(-2.2, 2.2)
        jitter = rng.normal(0, 1, 12).clip(-2.2, 2.2)
        length *= 1 + 0.055 * size
        width *= 1 + 0.025 * size + 0.01 * jitter[0]
        height *= 1 + 0.025 * size - 0.03 * low
        clearance *= 1 - 0.10 * low
        belt = height * belt * (1 + 0.025 * jitter[1])
        hood = belt * hood * (1 + 0.04 * jitter[2])
        cowl = length * (cowl + 0.018 * jitter[3])
        screen = length * (screen + 0.018 * jitter[3] + 0.012 * jitter[4])
        roof_end = length * (roof_end + 0.015 * jitter[5])
        tail = min(length * (tail + 0.012 * jitter[6]), roof_end - 0.05)
        tail = max(tail, -0.492 * length)
        wheel = 0.068 * length * (1.14 if style in ("suv", "pickup") else 1.0) * (1 + 0.05 * jitter[7])
        wheel = min(wheel, 0.44 * hood)  # its arch stays below the fender
        front_axle = length * (0.305 + 0.012 * jitter[8])
        rear_axle = -length * (0.292 + 0.014 * jitter[9])
        doors = 1 if style in ("coupe", "pickup") else 2
        first = screen - (0.24 if doors == 2 else 0.30) * length
        pillars = (first,) if doors == 1 else (first + 0.02 * length, rear_axle + 0.02 * length)
        paint = _PAINTS[rng.choice(len(_PAINTS), p=_PAINTS[:, 0] / _PAINTS[:, 0].sum()), 1:]
        paint = np.clip(paint * np.exp(0.18 * jitter[10]) * np.exp(rng.normal(0, 0.08, 3)), 0.012, 0.85)
        cars.append(
            Car(
                style,
                *(
                    float(v)
                    for v in (length, width, height, clearance, belt, hood, cowl, screen, roof_end, tail, belt * deck)
                ),
                tumble=float(0.20 + 0.03 * jitter[11]) * (0.6 if style == "van" else 1.0),
                wheel=float(wheel),
                front_axle=float(front_axle),
                rear_axle=float(rear_axle),
                pillars=tuple(float(p) for p in pillars),
                paint=tuple(float(v) for v in paint),
                glass=float(rng.choice([0.02, 0.05, 0.16, 0.35], p=[0.35, 0.3, 0.2, 0.15])),
                rim=float(rng.choice([0.55, 0.38, 0.7, 0.08], p=[0.45, 0.25, 0.2, 0.1])),
                cladding=bool(style in ("suv", "pickup") and rng.random() < 0.5),
                spoiler=bool(style in ("coupe", "sedan") and rng.random() < 0.25),
            )
        )
    return cars


class _Shape:
    """The solid and the paint of one car, as functions of space; ``x`` is folded to |x| throughout."""

    def __init__(self, car: Car) -> None:
        self.car = c = car
        half, round_ = c.length / 2, 0.05
        low, belt = c.clearance, c.belt
        # corners of the side view, drawn in by the radius that rounds them
        nose, tail = half - round_, -half + round_
        middle = low + 0.45 * (c.hood - low)
        self.body = (
            (nose - 0.14, low + round_),
            (nose - 0.01, low + 0.14),
            (nose, middle),
            (nose - 0.05, c.hood - 0.10),
            (nose - 0.20, c.hood - round_),
            (c.cowl, belt - round_),
            (c.tail - 0.02, c.deck - round_),
            (max(c.tail - 0.10, tail + 0.03), c.deck - round_),
            (tail + 0.03, c.deck - 0.10) if c.tail < -0.4 * c.length else (tail + 0.06, c.deck - 0.07),
            (tail, middle + 0.05),
            (tail + 0.03, low + 0.20),
            (tail + 0.22, low + round_),
        )
        top = c.height - 0.04
        self.cabin = (
            (c.cowl + 0.10, belt - 0.12),
            (c.cowl, belt - 0.02),
            (c.screen_top, top - 0.045),
            (c.screen_top - 0.22 * (c.screen_top - c.roof_end), top),
            (c.roof_end + 0.30 * (c.screen_top - c.roof_end), top),
            (c.roof_end, top - 0.05),
            (c.tail, c.deck - 0.02),
            (c.tail, belt - 0.12),
        )
        self.round = round_

    def half_width(self, y: Array, z: Array) -> Array:
        """Half the body's width: full between the wheels at door height, less at nose, tail, sill and roof."""
        c = self.car
        along = np.abs(z) * (2 / c.length)
        inset = 0.085 * c.width * along**4 + 0.045 * c.width * along**12
        height = (y - 0.72 * c.belt) / c.belt
        return c.width / 2 - inset - 0.07 * height * height

    def distance(self, x: Array, y: Array, z: Array) -> Array:
        c = self.car
        x = np.abs(x)
        side = self.half_width(y, z)
        body = intersection(polygon(z, y, self.body) - self.round, x - side, 0.14)
        lean = np.maximum(y - (c.belt - 0.05), 0) * (c.tumble / (c.height - c.belt))
        cabin = intersection(polygon(z, y, self.cabin) - 0.04, x - side + 0.035 + lean, 0.12)
        d = union(body, cabin, 0.04)
        if c.style == "pickup":
            bed = _box(
                x,
                y - c.deck,
                z - ((c.tail - c.length / 2) / 2),
                c.width / 2 - 0.14,
                0.17,
                (c.tail + c.length / 2) / 2 - 0.10,
            )
            d = carve(d, bed, 0.03)
        for axle in (c.front_axle, c.rear_axle):
            r = np.sqrt((y - c.wheel) ** 2 + (z - axle) ** 2)
            well = np.maximum(r - 1.14 * c.wheel, (c.width / 2 - 0.34) - x)
            d = carve(d, well, 0.02)
        for axle in (c.front_axle, c.rear_axle):
            r = np.sqrt((y - c.wheel) ** 2 + (z - axle) ** 2)
            tyre = intersection(r - c.wheel, np.abs(x - (c.width / 2 - 0.165)) - 0.11, 0.05)
            dish = np.maximum(r - 0.66 * c.wheel, (c.width / 2 - 0.085) - x)
            d = np.minimum(d, carve(tyre, dish, 0.02))
        mirror = ellipsoid(x - (c.width / 2 + 0.05), y - (c.belt + 0.07), z - (c.cowl - 0.42), (0.12, 0.08, 0.07))
        d = union(d, mirror, 0.05)
        if c.spoiler:
            w = 0.40 * c.width
            wing = capsule(
                x, y, z, (0, c.deck + 0.13, -c.length / 2 + 0.16), (w, c.deck + 0.13, -c.length / 2 + 0.18), 0.045
            )
            post = capsule(
                x, y, z, (0.8 * w, c.deck, -c.length / 2 + 0.24), (0.8 * w, c.deck + 0.13, -c.length / 2 + 0.18), 0.045
            )
            d = np.minimum(d, np.minimum(wing, post))
        return d

    def surface(self, points: Array, normals: Array) -> tuple[Array, Array]:
        """Colour (V, 3) and gloss (V,)."""
        c = self.car
        x, y, z = np.abs(points[:, 0]), points[:, 1], points[:, 2]
        across, up, forward = np.abs(normals[:, 0]), normals[:, 1], normals[:, 2]
        colour = np.tile(np.float32(c.paint), (len(points), 1))
        gloss = np.full(len(points), 0.6, np.float32)

        def cover(mask: Array, value: float | tuple[float, float, float], shine: float) -> None:
            colour[:] += (np.float32(value) - colour) * mask[:, None]
            gloss[:] += (shine - gloss) * mask

        soft = 0.035
        side = self.half_width(y, z)
        # the sill, bumpers' lower lips and cladding
        edge = c.clearance + (0.30 if c.cladding else 0.07)
        cover(smoothstep(y, edge + soft, edge - soft), (0.035, 0.036, 0.04), 0.1)
        # glass: side windows between pillars, windscreen, rear window
        above = smoothstep(y, c.belt + 0.005, c.belt + 0.045)
        within = smoothstep(polygon(z, y, self.cabin) - 0.04, -0.075, -0.115)
        pane = above * within * smoothstep(across, 0.5, 0.7)
        for pillar in c.pillars:
            pane = pane * smoothstep(np.abs(z - pillar), 0.02, 0.055)
        if c.style == "van":
            pane = pane * smoothstep(np.abs(z + 0.40 * c.length), 0.02, 0.055)
        lean = np.maximum(y - (c.belt - 0.05), 0) * (c.tumble / (c.height - c.belt))
        middle = smoothstep(side - lean - x, 0.10, 0.15) * smoothstep(c.height - y, 0.085, 0.13)
        screen = middle * smoothstep(forward, 0.25, 0.42) * smoothstep(y, c.belt, c.belt + 0.05) * (z > c.roof_end)
        rear = (
            middle
            * smoothstep(forward, -0.18, -0.32)
            * smoothstep(y, c.deck + 0.03, c.deck + 0.08)
            * (z < c.screen_top)
        )
        cover(np.maximum(np.maximum(pane, screen), rear), (0.85 * c.glass, 0.97 * c.glass, c.glass), 1.1)
        # door gaps
        for line in (*c.pillars, c.screen_top + 0.02 * c.length):
            gap = (
                smoothstep(np.abs(z - line), 0.035, 0.0)
                * smoothstep(across, 0.7, 0.9)
                * (y < c.belt)
                * (y > edge + 0.06)
            )
            colour *= 1 - 0.45 * gap[:, None]
        # lamps, grille and plates
        front = smoothstep(forward, 0.15, 0.45) * (y < c.hood) * (z > 0.38 * c.length)
        wide = x / (c.width / 2)
        lamp_y = c.hood - 0.15
        lamp = front * _band(wide, 0.56, 0.93) * smoothstep(np.abs(y - lamp_y), 0.10, 0.06)
        cover(lamp, (0.80, 0.80, 0.74), 1.5)
        grille = front * smoothstep(wide, 0.54, 0.48) * smoothstep(np.abs(y - (lamp_y - 0.02)), 0.085, 0.05)
        cover(grille, (0.03, 0.03, 0.032), 0.4)
        intake = front * smoothstep(wide, 0.66, 0.58) * smoothstep(np.abs(y - (c.clearance + 0.17)), 0.07, 0.035)
        cover(intake, (0.03, 0.03, 0.032), 0.2)
        back = smoothstep(forward, -0.2, -0.5) * (y < c.deck + 0.02) * (z < -0.4 * c.length)
        tall = 0.16 if c.style in ("hatchback", "wagon", "suv", "van") else 0.10
        lights = back * _band(wide, 0.58, 0.97) * smoothstep(np.abs(y - (c.deck - 0.06 - tall)), tall, tall - 0.04)
        cover(lights, (0.50, 0.015, 0.015), 1.2)
        for plate, height in ((front, c.clearance + 0.28), (back, c.clearance + 0.42)):
            cover(
                plate * smoothstep(x, 0.29, 0.24) * smoothstep(np.abs(y - height), 0.075, 0.05), (0.7, 0.7, 0.66), 0.3
            )
        # wheels and what lies behind them
        for axle in (c.front_axle, c.rear_axle):
            dy, dz = y - c.wheel, z - axle
            r = np.sqrt(dy * dy + dz * dz) / c.wheel
            inner = x < self.half_width(c.wheel, axle) - 0.03
            cover(((r < 1.02) | ((r < 1.18) & inner & (up < 0.5))).astype(np.float32), (0.022, 0.022, 0.024), 0.05)
            outer = smoothstep(r, 0.68, 0.60) * smoothstep(across, 0.4, 0.7) * (x > c.width / 2 - 0.16)
            spokes = 0.62 + 0.38 * smoothstep(np.cos(5 * np.arctan2(dy, dz)), -0.3, 0.3) * smoothstep(r, 0.1, 0.3)
            cover(outer * spokes, c.rim, 1.2)
        cover(smoothstep(up, -0.6, -0.85) * (y < c.clearance + 0.15), 0.015, 0.0)
        return colour, gloss


def _box(x: Array, y: Array, z: Array, a: float, b: float, c: float) -> Array:
    """Signed distance (a lower bound near the corners) to a box about the origin with half sides a, b, c."""
    return np.maximum(np.maximum(np.abs(x) - a, np.abs(y) - b), np.abs(z) - c)


def _band(x: Array, low: float, high: float) -> Array:
    return smoothstep(x, low - 0.03, low + 0.03) * smoothstep(x, high + 0.03, high - 0.03)


class _LitCar:
    """A car's mesh with its paint and the light that reaches it."""

    def __init__(self, car: Car) -> None:
        self.car = car
        shape = _Shape(car)
        spacing = car.length / 108
        half = car.width / 2 + 0.30
        side = np.arange(spacing / 2, half + spacing, spacing)
        axes = (
            np.concatenate([-side[::-1], side]),
            np.arange(-0.12, car.height + 0.25, spacing),
            np.arange(-car.length / 2 - 0.2, car.length / 2 + 0.2 + spacing, spacing),
        )
        self.mesh = _render.polygonise(shape.distance, axes)
        self.colour, self.gloss = shape.surface(self.mesh.vertices, self.mesh.normals)
        self.directions = _render.sphere_directions(_DIRECTIONS)
        seen = _render.visibility(self.mesh, self.directions, _SHADOW_RESOLUTION, _SHADOW_BIAS)
        # light from below comes off the white ground, dimmed
        self.transfer = _render.transfer(self.mesh, self.directions, seen)
        sky = np.where(self.directions[:, 1] > 0, 1.0, 0.35).astype(np.float32)
        self.ambient = _render.product(self.transfer, sky[:, None] * (4 / _DIRECTIONS))[:, 0]
        low, high = self.mesh.vertices.min(0), self.mesh.vertices.max(0)
        self.centre = np.float32([0, (low[1] + high[1]) / 2, (low[2] + high[2]) / 2])
        self.scale = _FILL / (high[2] - low[2])

    def draw(self, azimuth: float, elevation: float, side: int) -> NDArray[np.uint8]:
        """Picture (side, side, 3) from one direction."""
        turn = _rotation(azimuth, elevation)
        points = _render.product(self.mesh.vertices - self.centre, turn.T)
        size = side * _SAMPLES
        scale, middle = size * self.scale, size / 2
        fragments = _render.rasterise(
            middle + points[:, 0] * scale, middle - points[:, 1] * scale, -points[:, 2], self.mesh.triangles, size
        )
        lamp = np.float32(_LAMP) / np.float32(np.linalg.norm(_LAMP)) @ turn
        view = turn[2]
        light = _render.product(self.transfer, _render.lobe(self.directions, lamp[None], _LAMP_CONCENTRATION))[:, 0]
        half = (view + lamp) / np.linalg.norm(view + lamp)
        towards = np.maximum(_render.product(self.mesh.normals, np.stack([half, view], axis=1)), 0)
        highlight = towards[:, 0] ** 16
        grazing = (1 - towards[:, 1]) ** 4
        tone = self.colour * (1.2 * light + 0.5 * self.ambient)[:, None]
        tone += (self.gloss * (0.10 * highlight * light + 0.10 * grazing * self.ambient))[:, None]
        ground = self._ground(turn, size)
        picture = _render.resolve(fragments, _render.interpolate(fragments, tone), side, _SAMPLES, ground)
        level = np.clip(picture, 0, 1) ** (1 / 2.2)
        return np.rint(level * 255).astype(np.uint8)

    def _ground(self, turn: NDArray[np.float32], size: int) -> Array:
        """White ground and background (size * size, 1), darker where the car stands."""
        if turn[2, 1] < 1e-3:
            return np.ones((size * size, 1), np.float32)
        sample = ((np.arange(size) + 0.5 - size / 2) / (size * self.scale)).astype(np.float32)
        right, up = np.meshgrid(sample, -sample)
        depth = (-self.centre[1] - turn[1, 1] * up - turn[0, 1] * right) / turn[2, 1]
        x = turn[0, 0] * right + turn[1, 0] * up + turn[2, 0] * depth
        z = turn[0, 2] * right + turn[1, 2] * up + turn[2, 2] * depth + self.centre[2]
        a, b = self.car.width / 2 - 0.35, self.car.length / 2 - 0.40
        outside = np.hypot(np.maximum(np.abs(x) - a, 0), np.maximum(np.abs(z) - b, 0))
        return (1 - 0.72 * smoothstep(outside, 0.55, 0.0)).reshape(-1, 1)


def _rotation(azimuth: float, elevation: float) -> NDArray[np.float32]:
    """From the car's coordinates to the camera's: at growing azimuth the front turns to the picture's left."""
    a, e = np.deg2rad([azimuth, elevation])
    turn = np.array([[np.cos(a), 0, -np.sin(a)], [0, 1, 0], [np.sin(a), 0, np.cos(a)]])
    tilt = np.array([[1, 0, 0], [0, np.cos(e), -np.sin(e)], [0, np.sin(e), np.cos(e)]])
    return (tilt @ turn).astype(np.float32)


def draw_cars(
    cars: list[Car] | None = None,
    elevations: ArrayLike = ELEVATIONS,
    azimuths: ArrayLike = AZIMUTHS,
    *,
    side: int = SIDE,
    progress: bool = False,
) -> NDArray[np.uint8]:
    """Draw cars from every combination of elevation and azimuth.

    Parameters
    ----------
    cars : list of Car, optional
        The data set's 183 where not given.
    elevations, azimuths : one-dimensional
        Angles of the camera in degrees. Azimuth 0 sees the front; as it grows the front turns towards the left of the
        picture.
    side : int
        Width and height of a picture in pixels.
    progress : bool
        Show a progress bar.

    Returns
    -------
    ndarray
        ``uint8``, ``(cars, elevations, azimuths, side, side, 3)``.

    Raises
    ------
    ValueError
        When angles are no one-dimensional arrays of finite numbers, or there is no pixel.
    """
    cars = draw_parameters(CARS, _SEED) if cars is None else cars
    angles = []
    for name, value in (("elevations", elevations), ("azimuths", azimuths)):
        value = np.asarray(value, np.float64)
        if value.ndim != 1 or not np.isfinite(value).all():
            raise ValueError(
                f"{name} must be a one-dimensional array of finite angles in degrees, got shape {value.shape}"
            )
        angles.append(value)
    elevations, azimuths = angles
    if side < 1:
        raise ValueError(f"side must be at least 1 pixel, got {side}")
    images = np.empty((len(cars), len(elevations), len(azimuths), side, side, 3), np.uint8)

    def draw(number: int) -> None:
        car = _LitCar(cars[number])
        for i, elevation in enumerate(elevations):
            for j, azimuth in enumerate(azimuths):
                images[number, i, j] = car.draw(azimuth, elevation, side)

    done = _render.in_order(draw, range(len(cars)))
    for _ in tqdm(done, "drawing cars", len(cars), unit="car", disable=not progress):
        pass
    return images
