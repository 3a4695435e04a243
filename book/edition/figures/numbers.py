"""The numbers behind a figure: what its artists were given, read back from them as one long table.

A page's figure can be had as a picture and as a table, and neither can drift from the other, since the table is taken
from the picture. Nothing is computed here.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import Collection, FillBetweenPolyCollection, LineCollection, PathCollection, QuadMesh
from matplotlib.colors import is_color_like, to_hex
from matplotlib.container import BarContainer, ErrorbarContainer
from matplotlib.contour import ContourSet
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch, Rectangle
from matplotlib.path import Path
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator
from matplotlib.transforms import Transform

__all__ = ["LIMIT", "to_csv", "to_rows"]

LIMIT = 5_000
"""An artist with more marks than this (points of a line, cells of an image) is named in the table and left out of it.
"""

_ALWAYS = ("panel", "kind", "series", "x", "y")
_COLUMNS = (
    *_ALWAYS, "z", "part", "x_low", "x_high", "y_low", "y_high", "x_tick", "y_tick", "x_label", "y_label", "z_label",
)  # fmt: skip
LEFT_OUT = "left out"

_Marks = dict[str, np.ndarray]


def to_csv(figure: Figure) -> str | None:
    """The table of :func:`to_rows` as CSV, or None where a figure holds no numbers (images of data, say).

    Columns that are empty in every row are not written; numbers are written so that they read back unchanged.
    """
    rows = to_rows(figure)
    if all(row["kind"] == LEFT_OUT for row in rows):
        return None
    columns = [name for name in _COLUMNS if name in _ALWAYS or any(name in row for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def to_rows(figure: Figure) -> list[dict[str, object]]:
    """Everything that a figure's artists show in coordinates of the data, one row a mark.

    Parameters
    ----------
    figure : Figure
        Any, of the book or not.

    Returns
    -------
    list of dict
        ``panel`` is the title of the axes, ``kind`` what was drawn (line, points, bars, band, image, contour, ...),
        ``series`` its label, or the legend's entry of the same look. ``x``, ``y`` and, where there is one, ``z`` (the
        value that a colour stands for, or the third coordinate) are in units of the axes; ``x_low`` to ``y_high`` are
        the ends of error bars, bands and bars; ``part`` counts the pieces of one line; ``x_tick`` and ``y_tick`` hold
        the word at the nearest tick where ticks are words. What is missing is not in the dict. Pictures in colours of
        their own, surfaces, and artists with more than :data:`LIMIT` marks have a single row of kind "left out".
    """
    rows: list[dict[str, object]] = []
    names = _Legend(figure)
    panels = [axes for axes in _walk(figure) if axes.get_visible() and not hasattr(axes, "_colorbar")]
    titles: Counter[str] = Counter()
    for number, axes in enumerate(panels, 1):
        title = _title(axes) or (f"panel {number}" if len(panels) > 1 else "")
        titles[title] += 1
        panel = title if titles[title] == 1 else f"{title} ({titles[title]})"
        series: Counter[tuple[str, str]] = Counter()
        for kind, artist, marks in _artists(axes):
            name = names.of(artist) or kind
            series[kind, name] += 1
            if series[kind, name] > 1:
                name = f"{name} ({series[kind, name]})"
            rows += _rows(axes, {"panel": panel, "kind": kind, "series": name}, artist, marks)
    return rows


def _rows(axes: Axes, head: dict[str, object], artist: object, marks: _Marks | str) -> Iterator[dict[str, object]]:
    if not isinstance(marks, str):
        count = len(next(iter(marks.values())))
        if count > LIMIT:
            marks = f"{count:,} marks, more than {LIMIT:,}"
    if isinstance(marks, str):
        yield head | {"kind": LEFT_OUT, "series": f"{head['series']}: {marks}"}
        return
    for way, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if label := _label(axes, way):
            head = head | {f"{way}_label": label}
        if way in marks and (ticks := _ticks(axis)):
            marks = marks | {f"{way}_tick": np.array([_nearest(ticks, value) for value in marks[way]])}
    if "z" in marks and (label := _z_label(axes, artist)):
        head = head | {"z_label": label}
    columns = {name: np.ma.filled(np.ma.asarray(values), np.nan).tolist() for name, values in marks.items()}
    for values in zip(*columns.values(), strict=True):
        yield head | {
            name: value for name, value in zip(columns, values, strict=True) if value == value and value != ""
        }


# --- words ------------------------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _walk(figure: Figure) -> Iterator[Axes]:
    for axes in figure.axes:
        yield axes
        yield from (child for child in axes.child_axes if child not in figure.axes)


def _title(axes: Axes) -> str:
    return _plain(" ".join(axes.get_title(loc) for loc in ("left", "center", "right")))


def _label(axes: Axes, way: str) -> str:
    """The axis's label, or that of axes which share it, since only the outermost carry one."""
    shared = getattr(axes, f"get_shared_{way}_axes")().get_siblings(axes)
    return next(filter(None, (_plain(getattr(other, f"get_{way}label")()) for other in [axes, *shared])), "")


def _z_label(axes: Axes, artist: object) -> str:
    if hasattr(axes, "get_zlabel") and axes.get_zlabel():
        return _plain(axes.get_zlabel())
    bar = getattr(artist, "colorbar", None)
    if bar is None:  # images of several panels share the bar of one of them
        bars = [image.colorbar for other in axes.figure.axes for image in other.get_images() if image.colorbar]
        bar = bars[0] if len(bars) == 1 else None
    return _plain(bar.ax.get_xlabel() or bar.ax.get_ylabel()) if bar is not None else ""


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    """Places and words of an axis whose ticks are words."""
    locator = axis.get_major_locator()
    if not isinstance(locator, FixedLocator) or not len(locator.locs):
        return []
    words = axis.get_major_formatter().format_ticks(list(locator.locs))
    ticks = [(float(place), _plain(str(word))) for place, word in zip(locator.locs, words, strict=True)]
    return ticks if any(re.search(r"[^\d.,\s−-]", word) for _, word in ticks) else []


def _nearest(ticks: list[tuple[float, str]], value: float) -> str:
    place, word = min(ticks, key=lambda tick: abs(tick[0] - value))
    gaps = np.diff(sorted(place for place, _ in ticks))
    return word if not len(gaps) or abs(place - value) <= gaps.min() / 2 else ""


class _Legend:
    """Finds an artist's name: its own label, or the only entry of the figure's legends with its look or its colour."""

    def __init__(self, figure: Figure):
        legends = [*figure.legends, *(axes.get_legend() for axes in figure.axes if axes.get_legend())]
        self.looks: dict[tuple, set[str]] = {}
        for legend in legends:
            for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
                for look in _looks(handle):
                    self.looks.setdefault(look, set()).add(_plain(text.get_text()))

    def of(self, artist: object) -> str:
        own = _plain(str(artist.get_label() or ""))
        if own and not own.startswith("_"):
            return own
        for look in _looks(artist):
            found = self.looks.get(look, set())
            if len(found) == 1:
                return next(iter(found))
        return ""


def _looks(artist: object) -> list[tuple]:
    """How an artist looks, the most particular first."""
    if isinstance(artist, ErrorbarContainer):
        artist = artist.lines[0] or artist.lines[2][0]
    if isinstance(artist, BarContainer):
        artist = artist.patches[0] if artist.patches else None
    if isinstance(artist, Line2D):
        colour = to_hex(artist.get_color())
        return [(colour, artist.get_linestyle(), str(artist.get_marker())), (colour,)]
    if isinstance(artist, Patch):
        colour = artist.get_facecolor() if artist.get_fill() else artist.get_edgecolor()
        return [(to_hex(colour),)]
    if isinstance(artist, Collection) and artist.get_array() is None:
        for colours in (artist.get_facecolor(), artist.get_edgecolor()):
            shades = {to_hex(colour) for colour in colours if is_color_like(colour)}
            if len(shades) == 1:
                return [(shades.pop(),)]
    return []


# --- numbers ----------------------------------------------------------------------------------------------------------


def _artists(axes: Axes) -> Iterator[tuple[str, Artist, _Marks | str]]:
    """Kind, artist and marks of everything in these axes, or a word on what was left out instead of marks."""
    seen: set[int] = set()
    for container in axes.containers:
        if isinstance(container, ErrorbarContainer | BarContainer):
            seen |= {id(child) for child in container.get_children()}
            read = _error_bars if isinstance(container, ErrorbarContainer) else _bars
            yield ("error bars" if read is _error_bars else "bars"), container, read(container)
    for artist in axes.get_children():
        if id(artist) not in seen and artist.get_visible() and artist not in (axes.patch, *axes.spines.values()):
            for reader in _READERS:
                if isinstance(artist, reader[0]):
                    kind, marks = reader[1](axes, artist)
                    if marks and (isinstance(marks, str) or len(next(iter(marks.values())))):
                        yield kind, artist, marks
                    break


def _of_data(axes: Axes, transform: Transform) -> tuple[bool, bool]:
    """Whether x and y of a transform are coordinates of the data (those of a line across the panel are not)."""
    return transform.contains_branch_seperately(axes.transData)


def _line(axes: Axes, line: Line2D) -> tuple[str, _Marks]:
    if hasattr(line, "get_data_3d"):
        return "line", dict(zip("xyz", map(np.asarray, line.get_data_3d()), strict=True))
    marks = dict(zip("xy", map(np.ma.asarray, line.get_data(orig=False)), strict=True))
    x, y = _of_data(axes, line.get_transform())
    if x and y:
        return ("points" if line.get_linestyle() == "None" else "line"), marks
    if not (x or y):
        return "line", {}
    values = marks["x" if x else "y"]
    across = len(values) == 2 and values[0] == values[1]  # axvline and axhline give their place twice
    return ("line across" if across else "line"), {"x" if x else "y": values[:1] if across else values}


def _error_bars(container: ErrorbarContainer) -> _Marks:
    line, _, bars = container.lines
    marks = {} if line is None else dict(zip("xy", map(np.ma.asarray, line.get_data(orig=False)), strict=True))
    ways = [way for way, has in (("x", container.has_xerr), ("y", container.has_yerr)) if has]
    for way, bar in zip(ways, bars, strict=True):
        ends = np.array([path.vertices for path in bar.get_paths()])  # (N, 2, 2)
        for name, values in zip("xy", (ends[:, :, 0], ends[:, :, 1]), strict=True):
            if name == way:
                marks[f"{way}_low"], marks[f"{way}_high"] = values.min(1), values.max(1)
            else:
                marks.setdefault(name, values[:, 0])
    count = len(next(iter(marks.values())))
    return {name: values for name, values in marks.items() if len(values) == count}


def _bars(container: BarContainer) -> _Marks:
    boxes = np.array([patch.get_bbox().extents for patch in container.patches]).reshape(-1, 4)
    left, low, right, high = boxes.T
    if container.orientation == "horizontal":
        return {"x": right, "y": (low + high) / 2, "x_low": left, "y_low": low, "y_high": high}
    return {"x": (left + right) / 2, "y": high, "y_low": low, "x_low": left, "x_high": right}


def _band(axes: Axes, band: FillBetweenPolyCollection) -> tuple[str, _Marks]:
    """``fill_between``: each part's outline runs along one edge and back along the other."""
    along, across = (0, 1) if band.t_direction == "x" else (1, 0)
    parts = []
    for path in band.get_paths():
        points = path.vertices[:-1] if path.codes is not None else path.vertices
        one, other = np.split(points, 2)
        there, back = one[1:], other[1:][::-1]
        if not np.array_equal(there[:, along], back[:, along]):
            return _outlines(axes, band)
        edges = np.stack([there[:, across], back[:, across]])
        parts.append([there[:, along], edges.min(0), edges.max(0)])
    names = ("x", "y_low", "y_high") if along == 0 else ("y", "x_low", "x_high")
    return "band", dict(zip(names, np.concatenate(parts, axis=1), strict=True)) if parts else {}


def _points(axes: Axes, points: PathCollection) -> tuple[str, _Marks]:
    if hasattr(points, "_offsets3d"):
        return "points", dict(zip("xyz", map(np.asarray, points._offsets3d), strict=True))
    if not all(_of_data(axes, points.get_offset_transform())):
        return "points", {}
    marks = dict(zip("xy", np.ma.asarray(points.get_offsets()).T, strict=True))
    if points.get_array() is not None:
        marks["z"] = points.get_array()
    return "points", marks


def _outlines(axes: Axes, collection: Collection) -> tuple[str, _Marks | str]:
    if hasattr(axes, "get_zlim"):
        return "surface", f"{len(collection.get_paths()):,} faces in space"
    if not all(_of_data(axes, collection.get_transform())):
        return "outline", {}
    kind = "contour" if isinstance(collection, ContourSet) else "line"
    paths = collection.get_paths()
    if not paths:
        return kind, {}
    marks = dict(zip("xy", np.concatenate([path.vertices for path in paths]).T, strict=True))
    if isinstance(collection, ContourSet):
        marks["z"] = np.repeat(np.asarray(collection.levels, dtype=float), [len(path) for path in paths])
    part = np.concatenate([_starts(path) for path in paths]).cumsum()
    return kind, marks | ({"part": part} if len(part) and part[-1] > 1 else {})


def _starts(path: Path) -> np.ndarray:
    """1 where a path puts its pen down anew, 0 where it goes on."""
    return np.arange(len(path)) == 0 if path.codes is None else path.codes == Path.MOVETO


def _mesh(axes: Axes, mesh: QuadMesh) -> tuple[str, _Marks]:
    corners, values = mesh.get_coordinates(), np.ma.asarray(mesh.get_array())
    if corners.shape[:2] != values.shape:
        corners = (corners[:-1, :-1] + corners[1:, :-1] + corners[:-1, 1:] + corners[1:, 1:]) / 4
        values = values.reshape(corners.shape[:2])
    return "image", {"x": corners[..., 0].ravel(), "y": corners[..., 1].ravel(), "z": values.ravel()}


def _image(axes: Axes, image: AxesImage) -> tuple[str, _Marks | str]:
    values = np.ma.asarray(image.get_array())
    rows, columns = values.shape[:2]
    if values.ndim == 3:
        return "image", f"a picture of {columns} x {rows} pixels"
    left, right, bottom, top = image.get_extent()
    x = left + (np.arange(columns) + 0.5) * (right - left) / columns
    y = bottom + (np.arange(rows) + 0.5) * (top - bottom) / rows
    if image.origin == "upper":
        y = y[::-1]
    across, down = np.meshgrid(x, y)
    return "image", {"x": across.ravel(), "y": down.ravel(), "z": values.ravel()}


def _patch(axes: Axes, patch: Patch) -> tuple[str, _Marks]:
    x, y = _of_data(axes, patch.get_data_transform())
    if isinstance(patch, Rectangle) and (x or y):
        left, low, right, high = (np.array([value]) for value in patch.get_bbox().extents)
        ends = {"x_low": left, "x_high": right} if x else {}
        return "box", ends | ({"y_low": low, "y_high": high} if y else {})
    if not (x and y):
        return "outline", {}
    if isinstance(patch, Ellipse):
        turn = np.linspace(0, 2 * np.pi, 73)
        points = patch.get_patch_transform().transform(np.stack([np.cos(turn), np.sin(turn)], 1))
    else:
        points = patch.get_patch_transform().transform(patch.get_path().vertices)
    return "outline", dict(zip("xy", points.T, strict=True))


def _arrow(axes: Axes, note: Annotation) -> tuple[str, _Marks]:
    """An arrow without a word is data, from tail to tip; with words it is an explanation."""
    if note.arrow_patch is None or note.get_text() or (note.xycoords, note.anncoords) != ("data", "data"):
        return "arrow", {}
    return "arrow", dict(zip("xy", np.array([note.xyann, note.xy], dtype=float).T, strict=True))


_READERS = (
    (Line2D, _line),
    (FillBetweenPolyCollection, _band),
    (QuadMesh, _mesh),
    (ContourSet, _outlines),
    (PathCollection, _points),
    (LineCollection, _outlines),
    (Collection, _outlines),
    (AxesImage, _image),
    (Patch, _patch),
    (Annotation, _arrow),
)
