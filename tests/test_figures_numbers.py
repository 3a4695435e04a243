"""The table behind a figure holds exactly the numbers that were drawn, under the names that the reader sees."""

from __future__ import annotations

import csv
import io
import math

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch

from edition.figures import factor_analysis, prior
from edition.figures.numbers import LIMIT, to_csv, to_rows

RNG = np.random.default_rng(7)
X, Y, SIZE = np.sort(RNG.standard_normal(9)), RNG.standard_normal(9), RNG.random(9) + 0.1


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def table(axes: Axes, kind: str, *columns: str) -> np.ndarray:
    """The numbers of these columns over the rows of one kind; NaN where a cell is empty."""
    rows = [row for row in to_rows(axes.figure) if row["kind"] == kind]
    assert rows, f"no row of kind {kind}"
    return np.array([[row.get(name, math.nan) for name in columns] for row in rows])


def kinds(axes: Axes) -> set[str]:
    return {row["kind"] for row in to_rows(axes.figure)}


# --- each way of drawing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", ["plot", "semilogy", "loglog"])
def test_a_line(axes, draw):
    x, y = np.exp(X), np.exp(Y)
    getattr(axes, draw)(x, y)
    assert np.array_equal(table(axes, "line", "x", "y"), np.stack([x, y], 1))


def test_a_line_with_a_gap(axes):
    y = np.where(np.arange(9) == 4, np.nan, Y)
    axes.plot(X, y)
    assert np.array_equal(table(axes, "line", "x", "y"), np.stack([X, y], 1), equal_nan=True)


def test_points_with_and_without_colours(axes):
    axes.plot(X, Y, "o", label="plotted")
    axes.scatter(Y, X, c=SIZE, label="scattered")
    both = table(axes, "points", "x", "y", "z")
    drawn = np.concatenate([np.stack([Y, X, SIZE], 1), np.stack([X, Y, np.full(9, np.nan)], 1)])
    assert np.array_equal(both[np.argsort(both[:, 0])], drawn[np.argsort(drawn[:, 0])], equal_nan=True)


@pytest.mark.parametrize("marker", ["o", ""])
def test_error_bars_of_both_ways(axes, marker):
    low, high = RNG.random(9), RNG.random(9)
    axes.errorbar(X, Y, xerr=SIZE, yerr=[low, high], fmt=marker)
    columns = ("x", "y", "x_low", "x_high", "y_low", "y_high")
    assert np.array_equal(
        table(axes, "error bars", *columns), np.stack([X, Y, X - SIZE, X + SIZE, Y - low, Y + high], 1)
    )
    assert kinds(axes) == {"error bars"}, "caps or bars are listed a second time"


def test_error_bars_alone(axes):
    axes.errorbar(X, Y, yerr=SIZE, fmt="none")
    assert np.array_equal(table(axes, "error bars", "x", "y_low", "y_high"), np.stack([X, Y - SIZE, Y + SIZE], 1))


def test_bars_upright_and_lying(axes):
    axes.bar(X, SIZE, width=0.25, bottom=1.0)
    got = table(axes, "bars", "x", "y", "y_low", "x_low", "x_high")
    assert np.allclose(got, np.stack([X, 1 + SIZE, np.ones(9), X - 0.125, X + 0.125], 1), rtol=0, atol=1e-14)
    axes.clear()
    axes.barh(X, SIZE, height=0.25)
    got = table(axes, "bars", "x", "y", "x_low", "y_low", "y_high")
    assert np.allclose(got, np.stack([SIZE, X, np.zeros(9), X - 0.125, X + 0.125], 1), rtol=0, atol=1e-14)


def test_a_histogram_is_its_counts_between_its_edges(axes):
    values = RNG.standard_normal(500)
    counts, edges = np.histogram(values, bins=12, density=True)
    axes.hist(values, bins=12, density=True)
    assert np.allclose(table(axes, "bars", "y", "x_low", "x_high"), np.stack([counts, edges[:-1], edges[1:]], 1))


@pytest.mark.parametrize("where", [None, np.arange(9) != 4], ids=["whole", "in two parts"])
def test_a_band(axes, where):
    axes.fill_between(X, Y - SIZE, Y + SIZE, where=where)
    keep = slice(None) if where is None else where
    assert np.array_equal(table(axes, "band", "x", "y_low", "y_high"), np.stack([X, Y - SIZE, Y + SIZE], 1)[keep])


def test_an_upright_band(axes):
    axes.fill_betweenx(X, Y + SIZE, Y - SIZE)
    assert np.array_equal(table(axes, "band", "y", "x_low", "x_high"), np.stack([X, Y - SIZE, Y + SIZE], 1))


@pytest.mark.parametrize("origin", ["upper", "lower"])
def test_an_image_of_values(axes, origin):
    values = RNG.random((3, 4))
    axes.imshow(values, origin=origin, extent=(0, 4, 0, 3))
    got = {(x, y): z for x, y, z in table(axes, "image", "x", "y", "z")}
    rows = values if origin == "lower" else values[::-1]
    assert got == {(j + 0.5, i + 0.5): rows[i, j] for i in range(3) for j in range(4)}


def test_an_image_without_an_extent_counts_pixels(axes):
    values = RNG.random((2, 5))
    axes.imshow(values)
    got = {(x, y): z for x, y, z in table(axes, "image", "x", "y", "z")}
    assert got == {(j, i): values[i, j] for i in range(2) for j in range(5)}


def test_a_mesh_of_values(axes):
    values = RNG.random((2, 3))
    axes.pcolormesh([0, 1, 2, 4], [0, 2, 4], values)
    got = {(x, y): z for x, y, z in table(axes, "image", "x", "y", "z")}
    assert got == {(x, y): values[i, j] for i, y in enumerate((1, 3)) for j, x in enumerate((0.5, 1.5, 3))}


def test_contours_lie_on_their_levels(axes):
    grid = np.linspace(-2, 2, 41)
    x, y = np.meshgrid(grid, grid)
    axes.contour(x, y, x + 3 * y, levels=[-1.5, 0.5])
    x, y, z = table(axes, "contour", "x", "y", "z").T
    assert set(z) == {-1.5, 0.5}
    assert np.allclose(x + 3 * y, z)


def test_segments_are_told_apart(axes):
    axes.vlines([1, 2], 0, [3, 4])
    drawn = [[1, 0, 1], [1, 3, 1], [2, 0, 2], [2, 4, 2]]
    assert np.array_equal(table(axes, "line", "x", "y", "part"), drawn)


def test_lines_across_the_panel_have_one_coordinate(axes):
    axes.axvline(1.25)
    axes.axhline(-3)
    assert np.array_equal(table(axes, "line across", "x", "y"), [[1.25, np.nan], [np.nan, -3]], equal_nan=True)
    axes.axhspan(1, 2)
    axes.axvspan(3, 5)
    box = table(axes, "box", "x_low", "x_high", "y_low", "y_high")
    assert np.array_equal(box, [[np.nan, np.nan, 1, 2], [3, 5, np.nan, np.nan]], equal_nan=True)


def test_an_ellipse_is_its_outline(axes):
    axes.add_patch(Ellipse((0, 0), 4, 2, angle=30, fill=False))
    x, y = table(axes, "outline", "x", "y").T
    turn = np.radians(30)
    along, across = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    assert np.allclose((along / 2) ** 2 + across**2, 1)


def test_an_arrow_without_words_runs_from_tail_to_tip(axes):
    axes.annotate("", (3, 4), (1, 2), arrowprops={})
    axes.annotate("look here", (0, 0), (1, 1), arrowprops={})
    assert np.array_equal(table(axes, "arrow", "x", "y"), [[1, 2], [3, 4]])


def test_points_in_space_have_three_coordinates():
    figure = plt.figure()
    axes = figure.add_subplot(projection="3d")
    axes.plot(X, Y, SIZE)
    assert np.array_equal(table(axes, "line", "x", "y", "z"), np.stack([X, Y, SIZE], 1))
    plt.close(figure)


# --- what is left out -------------------------------------------------------------------------------------------------


def test_what_is_large_is_left_out_and_said_so(axes):
    axes.plot(np.arange(LIMIT), label="just fits")
    axes.plot(np.arange(LIMIT + 1), label="does not")
    rows = to_rows(axes.figure)
    assert len(rows) == LIMIT + 1
    assert rows[-1]["kind"] == "left out"
    assert rows[-1]["series"] == "does not: 5,001 marks, more than 5,000"


def test_a_figure_of_pictures_has_no_table(axes):
    axes.imshow(np.zeros((4, 5, 3)))
    (row,) = to_rows(axes.figure)
    assert row["kind"] == "left out" and "5 x 4 pixels" in row["series"]
    assert to_csv(axes.figure) is None


def test_what_is_no_data_is_not_listed(axes):
    axes.text(0, 0, "words")
    axes.plot([0, 1], [0, 1], transform=axes.transAxes)
    axes.plot([], [])
    (hidden,) = axes.plot(X, Y)
    hidden.set_visible(False)
    assert to_rows(axes.figure) == []
    assert to_csv(axes.figure) is None


def test_a_colour_bar_is_no_panel(axes):
    image = axes.imshow(RNG.random((2, 2)))
    axes.figure.colorbar(image, label="what the\ncolour means")
    rows = to_rows(axes.figure)
    assert len(rows) == 4
    assert {row["z_label"] for row in rows} == {"what the colour means"}


# --- names ------------------------------------------------------------------------------------------------------------


def test_panels_and_axes_carry_their_titles():
    figure, axes = plt.subplots(1, 3, sharey=True)
    for panel, title in zip(axes, ("one\n$\\beta = 1$", "", "one\n$\\beta = 1$"), strict=True):
        panel.plot(X, Y)
        panel.set_title(title)
    axes[0].set(ylabel="nats", xlabel="steps")
    rows = to_rows(figure)
    assert list(dict.fromkeys(row["panel"] for row in rows)) == [r"one $\beta = 1$", "panel 2", r"one $\beta = 1$ (2)"]
    assert {row["y_label"] for row in rows} == {"nats"}, "panels that share an axis share its label"
    assert {row["panel"] for row in rows if "x_label" in row} == {r"one $\beta = 1$"}
    plt.close(figure)


def test_a_series_is_named_by_its_label_else_by_the_legend(axes):
    axes.plot(X, Y, color="#0072B2", label="its own")
    axes.plot(X, Y + 1, color="#D55E00", linestyle="--")
    axes.plot(X, Y + 2, color="#D55E00", marker="s")
    axes.plot(X, Y + 3, color="#009E73")
    axes.scatter(X, Y + 4, color="#CC79A7")
    handles = [
        Line2D([], [], color="#D55E00", linestyle="--"),
        Line2D([], [], color="#D55E00"),
        Patch(facecolor="#CC79A7"),
    ]
    axes.figure.legend(handles, ["dashed", "solid", "patch"])
    rows = to_rows(axes.figure)
    names = [name for name in dict.fromkeys(row["series"] for row in rows)]
    # of the two red entries neither has squares, so that the line with squares stays without a name
    assert sorted(names) == ["dashed", "its own", "line", "line (2)", "patch"]


def test_two_artists_of_one_name_are_numbered(axes):
    for shift in range(3):
        axes.plot(X, Y + shift, label="run")
    assert list(dict.fromkeys(row["series"] for row in to_rows(axes.figure))) == ["run", "run (2)", "run (3)"]


def test_words_at_ticks(axes):
    axes.plot([0.1, 1.2, 5.0], [1, 2, 3], "o")
    axes.set_xticks([0, 1], ["β-VAE\n10 runs", "ISA-VAE"])
    axes.set_yticks([1, 2], ["1", "2,000"])
    rows = to_rows(axes.figure)
    assert [row.get("x_tick") for row in rows] == ["β-VAE 10 runs", "ISA-VAE", None]
    assert not any("y_tick" in row for row in rows), "ticks that are numbers say nothing new"


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_gives_the_numbers_back_to_the_last_digit(axes):
    axes.plot(X, Y, label='a "quoted", name')
    axes.set(xlabel="x")
    text = to_csv(axes.figure)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert list(rows[0]) == ["panel", "kind", "series", "x", "y", "x_label"]
    assert [(float(row["x"]), float(row["y"])) for row in rows] == list(zip(X.tolist(), Y.tolist(), strict=True))
    assert {row["series"] for row in rows} == {'a "quoted", name'}


def test_a_figure_of_the_book(axes):
    """What a drawing function is given comes back under its labels."""
    angles = np.linspace(0, np.pi / 2, 5)
    loss, error = RNG.random(5), RNG.random(5)
    figure = prior.rotation_loss(angles, {"within": (loss, error)})
    rows = to_rows(figure)
    line = [(row["x"], row["y"]) for row in rows if row["kind"] == "line"]
    band = [(row["x"], row["y_low"], row["y_high"]) for row in rows if row["kind"] == "band"]
    degrees = np.degrees(angles).tolist()
    assert line == list(zip(degrees, loss.tolist(), strict=True))
    assert band == list(zip(degrees, (loss - 2 * error).tolist(), (loss + 2 * error).tolist(), strict=True))
    assert {row["series"] for row in rows if row["kind"] in ("line", "band")} == {"within"}
    plt.close(figure)

    marginal, exact = np.diag([2.0, 1.0]), np.eye(2)[None]
    figure = factor_analysis.rotated_weights(np.eye(2)[None], marginal, exact, np.ones((1, 2)), ["0"])
    tips = [(row["x"], row["y"]) for row in to_rows(figure) if row["kind"] == "arrow"][1::2]
    assert tips == [(1, 0), (0, 1)]
    plt.close(figure)
