"""Figures of results: what is drawn is what was given, every run of it, and texts do not cover each other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from edition.figures import results as draw
from edition.stats import Interval, curve, mean_interval
from isa.run import Run


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def offsets(figure: Figure, label: str) -> np.ndarray:
    """Places of all dots with this label, in every panel."""
    found = [
        np.asarray(one.get_offsets()) for axes in figure.axes for one in axes.collections if one.get_label() == label
    ]
    return np.concatenate(found)


@pytest.mark.parametrize(
    "fields, name",
    [
        ({}, "N(0, I)"),
        ({"objective": "isa-vae"}, "5 × 4, (2.1; 2.2)"),
        ({"objective": "isa-vae", "p0": 2, "p1": 2}, "5 × 4, (2; 2)"),
        ({"objective": "isa-vae", "prior": "2[20]", "scale": 0.98972}, "Gaussian, s = 0.99"),
        ({"objective": "isa-vae", "prior": "2.1[20]"}, "factorised, p = 2.1"),
        ({"objective": "isa-vae", "prior": "2.1[2*1[10]]"}, "2.1[2*1[10]]"),
        ({"objective": "isa-vae", "subspaces": (6, 6, 6)}, "3 × 6, (2.1; 2.2)"),
        ({"objective": "isa-vae", "scale": "unit"}, "5 × 4, (2.1; 2.2), unit variance"),
        ({"objective": "isa-vae", "subspaces": (2, 1), "p1": (1.5, 3.0)}, "2 + 1, (2.1; 1.5, 3)"),
        ({"dataset": "cars3d", "objective": "isa-vae", "learn_exponents": True}, "3 × 6, (2.1; 2), learned"),
    ],
)
def test_a_prior_is_called_by_what_it_is(fields, name):
    assert draw.prior(Run(**fields).to_dict()) == name


def test_a_reduced_run_is_called_reduced():
    assert draw.scale(7200, 2048, False) == "7,200 steps of 2,048"
    assert draw.scale(100, 64, True) == "100 steps of 64, reduced"


def test_every_mig_is_drawn_and_no_two_dots_lie_on_one_place():
    rng = np.random.default_rng(0)
    values = {"beta-vae": np.round(rng.random(40) / 20, 3), "isa-vae": rng.random(3)}
    panel = {name: (one, mean_interval(one)) for name, one in values.items()}
    figure = draw.mig_distributions({"a": panel, "b": panel}, {"a": {"isa-vae": 0.2}})
    for name, one in values.items():
        places = offsets(figure, f"{draw.METHODS[name].label}, runs")
        assert np.sort(places[: len(one), 1]) == pytest.approx(np.sort(one)), name
        assert len(places) == 2 * len(one)
    first = offsets(figure, "β-VAE, runs")[:40]
    assert len(np.unique(first, axis=0)) == 40 and np.abs(first[:, 0]).max() <= 0.27
    marks = [line for axes in figure.axes for line in axes.lines if line.get_label() == "ISA-VAE, the paper's"]
    assert len(marks) == 1 and marks[0].axes is figure.axes[0]


@pytest.mark.parametrize("values", [[0.1], [0.1, 0.1], [0.0] * 5])
def test_one_run_or_equal_ones_are_drawn(values):
    values = np.array(values)
    interval = mean_interval(values)
    assert isinstance(draw.mig_distributions({"a": {"isa-vae": (values, interval)}}), Figure)
    assert isinstance(draw.controls({"N(0, I)": ((values, interval), (values, interval))}, {}), Figure)


def test_a_trade_off_shows_every_run_and_labels_beta_without_overlap():
    rng = np.random.default_rng(1)
    betas = np.repeat([0.5, 1, 1.5, 2, 3, 4, 5, 6], 6)
    curves = {
        name: curve(betas, -20 - 5 * betas + rng.normal(size=48), 0.05 * betas + 0.02 * number + rng.random(48) / 9)
        for number, name in enumerate(("beta-vae", "isa-vae", "beta-tcvae"))
    }
    figure = draw.trade_off({"a": curves}, {"a": {"isa-vae": [(1, -21.0, 0.2)]}})
    for name, one in curves.items():
        assert offsets(figure, f"{draw.METHODS[name].label}, runs") == pytest.approx(one.runs[:, 1:])
    figure.canvas.draw()
    labels = [text for text in figure.axes[0].texts if isinstance(text, Annotation)]
    assert len(labels) > 12, "hardly any beta is labelled"
    assert {text.get_text().removeprefix("β = ") for text in labels} <= {f"{beta:g}" for beta in betas}
    boxes = [text.get_window_extent() for text in labels]
    covering = [(a, b) for a, b in itertools.combinations(boxes, 2) if a.shrunk(0.9, 0.9).overlaps(b.shrunk(0.9, 0.9))]
    assert not covering
    for text in labels:  # each stands at the point whose beta it names
        fits = [(one.beta, one.log_likelihood) for one in curves.values()]
        at = [b for beta, fit in fits for b, x in zip(beta, fit, strict=True) if x == text.xy[0]] or [1]
        assert text.get_text().removeprefix("β = ") == f"{at[0]:g}"


def test_exponents_are_all_counted():
    rng = np.random.default_rng(2)
    values = np.sort(rng.normal(2, 0.1, (30, 3)), axis=1)
    figure = draw.exponents({"a": values, "b": values[:4]}, 2.1, 2.0, {"a": (1.9, 2.0, 2.1)})
    counts = [[sum(bar.get_height() for bar in bars) for bars in axes.containers] for axes in figure.axes]
    assert counts == [[30] * 3, [4] * 3]


def test_controls_show_both_quantities_of_every_prior():
    rng = np.random.default_rng(3)
    rows = {}
    for name in ("N(0, I)", "5 × 4, (2.1; 2.2)", "factorised, p = 2.1"):
        mig, fit = rng.random(7), -30 - rng.random(7)
        rows[name] = (mig, mean_interval(mig)), (fit, mean_interval(fit))
    figure = draw.controls(rows, {"N(0, I)": "beta-vae"})
    for which, axes in enumerate(figure.axes):
        for name, pair in rows.items():
            (dots,) = [one for one in axes.collections if one.get_label() == f"{name}, runs"]
            assert np.asarray(dots.get_offsets())[:, 0] == pytest.approx(pair[which][0])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == list(rows)


def test_lengths_join_the_runs_of_a_seed():
    nothing = Interval(0.0, np.nan, np.nan, 1)
    by_steps = {100: ({0: -3.0, 1: -4.0}, nothing), 200: ({1: -2.0, 2: -1.0}, nothing)}
    figure = draw.lengths({"a": {"beta-vae": by_steps}}, {"a": {"beta-vae": -2.5}})
    heights = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines if "seed" in line.get_label()}
    assert {label: list(values) for label, values in heights.items()} == {
        "β-VAE, seed 0": [-3.0],
        "β-VAE, seed 1": [-4.0, -2.0],
        "β-VAE, seed 2": [-1.0],
    }
