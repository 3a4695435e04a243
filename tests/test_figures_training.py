"""Figures of the chapter on training: what is drawn is what was given."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba

from edition.figures import style, training


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_learning_curve_is_not_scaled_by_its_beginning():
    values = np.concatenate([np.linspace(-3000, -500, 20), np.linspace(-500, -100, 180)])
    at, smooth = np.arange(5, 196), np.convolve(values, np.ones(10) / 10, "valid")
    figure = training.learning_curve({"fit (nats)": (values, at, smooth), "divergence (nats)": (-values, at, -smooth)})
    left, right = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["fit (nats)", "divergence (nats)"]
    every, mean = left.get_lines()
    np.testing.assert_array_equal(every.get_xdata(), np.arange(1, 201))
    np.testing.assert_array_equal(every.get_ydata(), values)
    np.testing.assert_array_equal(mean.get_xydata(), np.stack([at, smooth], 1))
    low, high = left.get_ylim()
    assert -600 < low < smooth[19] and smooth.max() < high < 0
    assert right.get_ylim() == pytest.approx((-high, -low))


def test_every_share_is_printed_in_its_cell_and_inactive_latents_are_grey():
    share = np.array([[0.9, 0.004, 0.25], [0.0, 0.5, 0.126]])
    active = np.array([True, False, True])
    axes, bar = training.information(share, ["scale", "x"], active).axes
    printed = {text.get_position(): text.get_text() for text in axes.texts}
    assert printed == {(f, k): f"{share[f, k]:.2f}" for f in range(2) for k in range(3)}
    np.testing.assert_array_equal(axes.images[0].get_array(), share.T)
    assert axes.images[0].get_clim() == (0, 1) and bar.get_xlabel()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["scale", "x"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$z_{1}$", "$z_{2}$", "$z_{3}$"]
    colours = [to_rgba(label.get_color()) for label in axes.get_yticklabels()]
    assert colours == [to_rgba(style.BLACK if on else style.GREY) for on in active]


def test_differences_stand_above_their_mean_and_interval():
    differences = {"bf16": np.array([0.1, -0.3, 0.2]), "pack": np.array([0.0, 0.05, -0.05])}
    intervals = {"bf16": (0.0, -0.6, 0.7), "pack": (0.0, -0.1, 0.2)}
    (axes,) = training.paired_differences({"MIG": (differences, intervals, 0.4)}).axes
    band, *others = axes.patches
    assert not others and (band.get_x(), band.get_x() + band.get_width()) == (-0.4, 0.4)
    dots = [one.get_offsets() for one in axes.collections if len(one.get_offsets()) == 3]
    bars = [container.lines[2][0].get_segments()[0] for container in axes.containers]
    for line, way in enumerate(differences):
        np.testing.assert_allclose(dots[line][:, 0], differences[way])
        np.testing.assert_allclose(bars[line][:, 0], intervals[way][1:])
        assert (dots[line][:, 1] < bars[line][0, 1]).all()  # the axis points down
        assert round(dots[line][0, 1]) == round(bars[line][0, 1]) == line
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(differences)


def test_too_few_values_leave_out_the_interval():
    differences, intervals = {"bf16": np.array([0.1, -0.3])}, {"bf16": (-0.1, np.nan, np.nan)}
    figure = training.paired_differences({"MIG": (differences, intervals, 0.4)})
    figure.canvas.draw()
    (bar,) = figure.axes[0].containers
    assert bar.lines[0].get_xdata() == pytest.approx([-0.1])
