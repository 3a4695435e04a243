"""Portraits of trained models: averages against slow loops, traversals, files, the representative, figures."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import nn

from edition.figures import latents as draw
from edition.stats import representative
from isa.data import Factor, FactorDataset, Provenance
from isa.latents import Portrait, View, find_representative, portrait
from isa.mig import active_units, mutual_information_gap

SIZES = (2, 3, 4, 5)
FACTORS = (
    Factor("height", np.linspace(0, 1, 2), "m"),
    Factor("kind", np.array(["one", "two", "three"])),
    Factor("turn", np.arange(4), "rad"),
    Factor("side", np.linspace(-1, 1, 5), "m"),
)
N, K = 120, 6
SPLIT = View("kind", ("side", "height"))


class Painter(nn.Module):
    """A decoder that is not linear, with a dropout that must be switched off."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(K, 3 * 4 * 6, generator=generator))
        self.dropout = nn.Dropout(0.5)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return self.dropout(z @ self.weight).reshape(-1, 3, 4, 6)


@pytest.fixture(scope="module")
def dataset() -> FactorDataset:
    images = np.random.default_rng(0).integers(0, 256, (*SIZES, 4, 6, 3), dtype=np.uint8)
    return FactorDataset.from_array("toy", "Toy", FACTORS, images, Provenance("a test", "MIT", "no", "no", True))


def measured(mean: torch.Tensor, log_var: torch.Tensor) -> SimpleNamespace:
    """Return the parts of a result that a portrait is made of."""
    mig = mutual_information_gap(mean, log_var, SIZES, (0, 2, 3), generator=torch.Generator().manual_seed(0))
    evaluation = SimpleNamespace(mean=mean, log_var=log_var, active=active_units(mean), mig=mig)
    record = {"key": "toy-isa-vae-1-seed0-0123", "hash": "0123", "mig": mig.score, "source": "somewhere"}
    run = SimpleNamespace(likelihood="bernoulli")
    return SimpleNamespace(model=Painter(), run=run, evaluation=evaluation, record=record)


@pytest.fixture(scope="module")
def result() -> SimpleNamespace:
    """Latents that follow side, nothing, turn, height, side more loosely, and nothing: with a little of all in each."""
    index = np.stack(np.unravel_index(np.arange(N), SIZES), 1)
    rng = np.random.default_rng(1)
    mean = rng.normal(0, 0.01, (N, K))
    for latent, (factor, strength) in {0: (3, 1.0), 2: (2, 0.8), 3: (0, -2.0), 4: (3, 0.3)}.items():
        mean[:, latent] += strength * index[:, factor] + rng.normal(0, 0.2, N) + 0.1 * index[:, 1]
    log_var = rng.normal(-4, 0.5, (N, K))
    return measured(torch.tensor(mean, dtype=torch.float32), torch.tensor(log_var, dtype=torch.float32))


def slow_average(mean: np.ndarray, held: dict[str, int]) -> np.ndarray:
    """Return the mean over the images at which some factors have these indices."""
    names = [factor.name for factor in FACTORS]
    places = (dict(zip(names, place, strict=True)) for place in itertools.product(*map(range, SIZES)))
    return np.mean([row for row, place in zip(mean, places, strict=True) if held.items() <= place.items()], 0, float)


@pytest.mark.parametrize("view", [SPLIT, View("height", ("kind", "turn")), View(None, ("height", "side"))], ids=str)
def test_averages_match_a_loop_over_images(result, dataset, view):
    found = portrait(result, dataset, view=view)
    mean = result.evaluation.mean.numpy()
    sizes = dict(zip(dataset.factor_names, SIZES, strict=True))
    for name, size in sizes.items():
        split = None if view.split == name else view.split
        assert found.curves[name].shape == (K, sizes.get(split, 1), size)
        for row, index in np.ndindex(found.curves[name].shape[1:]):
            held = {name: index} | ({split: row} if split else {})
            np.testing.assert_allclose(found.curves[name][:, row, index], slow_average(mean, held), atol=1e-6)
    noise = result.evaluation.log_var.double().exp().mean(0).sqrt()
    np.testing.assert_allclose(found.noise, noise, rtol=1e-6)
    assert found.plane.shape == (K, *(sizes[name] for name in view.plane))
    for place in np.ndindex(found.plane.shape[1:]):
        expected = slow_average(mean, dict(zip(view.plane, place, strict=True)))
        np.testing.assert_allclose(found.plane[:, *place], expected, atol=1e-6)


def test_active_latents_are_ordered_by_their_information(result, dataset):
    found = portrait(result, dataset)
    assert found.about == {"key": "toy-isa-vae-1-seed0-0123", "hash": "0123", "mig": result.evaluation.mig.score}
    assert found.scored == ("height", "turn", "side")
    assert found.shown.tolist() == [3, 2, 0, 4]
    information = result.evaluation.mig.mutual_information.numpy()
    np.testing.assert_allclose(found.mutual_information, information, rtol=1e-6)
    assert {k: factor for k, (factor, _) in found.informative.items()} == {3: "height", 2: "turn", 0: "side", 4: "side"}
    assert found.informative[0][1] == pytest.approx(information[2, 0])
    assert information[2, 0] > information[2, 4] > 0.1


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("view", [SPLIT, View()], ids=["split", "whole"])
def test_traversals_are_decoded_from_the_middle_image_between_the_extremes(result, dataset, likelihood, view):
    result = SimpleNamespace(**{**vars(result), "run": SimpleNamespace(likelihood=likelihood)})
    result.model.train(likelihood == "bernoulli")
    found = portrait(result, dataset, view=view, steps=5)
    assert found.view == view and len(found.bases) == (3 if view.split else 1)
    assert result.model.training == (likelihood == "bernoulli")
    mean = result.evaluation.mean.numpy()
    kinds = range(3) if view.split else [1]
    assert found.traversals.shape == (4, len(kinds), 5, 3, 4, 6)
    for s, kind in enumerate(kinds):
        start = np.ravel_multi_index((1, kind, 2, 2), SIZES)
        assert np.array_equal(found.originals[s], dataset.storage[start].numpy())
        assert np.array_equal(found.reconstructions[s], painted(mean[start], likelihood)[0])
        for k, values, images in zip(found.shown, found.values, found.traversals[:, s], strict=True):
            z = mean[[start] * 5]
            z[:, k] = np.linspace(mean[:, k].min(), mean[:, k].max(), 5)
            np.testing.assert_allclose(values, z[:, k], rtol=1e-5)
            assert np.abs(images.astype(int) - painted(z, likelihood)).max() <= 1
    assert found.traversals.std() > 20


def painted(z: np.ndarray, likelihood: str) -> np.ndarray:
    """Return mean images of latents, computed by numpy, as grey levels."""
    outputs = z.astype(float) @ Painter().weight.detach().double().numpy()
    image = 1 / (1 + np.exp(-outputs)) if likelihood == "bernoulli" else np.clip(outputs, 0, 1)
    return np.rint(255 * image).astype(int).reshape(-1, 3, 4, 6)


def test_long_traversals_are_decoded_in_parts(result, dataset):
    long, short = (portrait(result, dataset, view=SPLIT, steps=steps).traversals.astype(int) for steps in (97, 5))
    assert np.abs(long[:, :, ::24] - short).max() <= 1


def assert_equal(found: Portrait, expected: Portrait) -> None:
    plain = ({**vars(one), "factors": [vars(factor) for factor in one.factors]} for one in (found, expected))
    np.testing.assert_equal(*plain)


@pytest.mark.parametrize("name", ["split", "whole", "collapsed"])
def test_a_file_gives_back_the_portrait(result, dataset, tmp_path, name):
    if name == "collapsed":
        result = measured(torch.zeros(N, K), torch.zeros(N, K))
    expected = portrait(result, dataset, view=View() if name == "whole" else SPLIT)
    assert (expected.traversals.shape == (0, 3, 8, 3, 4, 6)) == (expected.informative == {}) == (name == "collapsed")
    path = expected.save(tmp_path / "folder" / "one.npz")
    assert_equal(Portrait.load(path), expected)
    assert [file.name for file in path.parent.iterdir()] == ["one.npz"]
    assert Portrait.load(path).save(tmp_path / "again.npz").read_bytes() == path.read_bytes()


class Rows(list):
    """A stand-in for ``isa.sweep.Records``."""

    @property
    def wanted(self) -> int:
        return len(self) + 2


def rows_of(name: str) -> Rows:
    """Return six runs, of which the fifth, of this hash, represents the upper half, and one that diverged."""
    migs = {"1": 0.1, "2": 0.11, "3": 0.12, "4": 0.3, name: 0.31, "6": 0.32}
    rows = [{"status": "trained", "hash": key, "mig": mig, "log_likelihood": -20.0 - mig} for key, mig in migs.items()]
    return Rows([*rows, {"status": "diverged", "hash": "7", "mig": None, "log_likelihood": None}])


def test_the_representative_and_its_portrait(result, dataset, tmp_path):
    path = portrait(result, dataset).save(tmp_path / "toy-isa-vae-1-seed0-0123.npz")
    rows, more = rows_of("0123"), rows_of("5")
    found = find_representative([Rows(), more, rows, rows], representative, [tmp_path / "other-4.npz", path])
    assert found.record is rows[4]
    assert (found.study, found.recorded, found.wanted) == (2, 6, 9)
    assert_equal(found.portrait, Portrait.load(path))
    found = find_representative([Rows(), more], representative, [])
    assert found.study == 1 and found.record["hash"] == "5" and found.portrait is None
    found = find_representative([Rows(more[-1:]), Rows()], representative, [])  # it diverged
    assert (found.study, found.recorded, found.wanted, found.record, found.portrait) == (0, 0, 3, None, None)


def words_of(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.mark.parametrize(("reduced", "procedural"), [(False, False), (True, True)])
def test_a_title_has_the_scores_and_the_length_of_training(result, dataset, reduced, procedural):
    about = {"log_likelihood": -21.99, "total_steps": 7200, "batch_size": 2048, "images_title": "Toy (stand-in)"}
    about |= {"mig": 0.14, "reduced": reduced, "procedural": procedural}
    text = draw.title("isa-vae", 1.0, replace(portrait(result, dataset), about=about))
    assert text.startswith("ISA-VAE, β = 1: MIG 0.14, log p(x|z) \N{MINUS SIGN}21.99\n7,200 steps of 2,048")
    assert ("reduced" in text) == reduced and ("stand-in" in text) == procedural
    assert draw.title("isa-vae", 2.5) == "ISA-VAE, β = 2.5"


def test_latents_are_drawn_as_they_are(result, dataset):
    found = portrait(result, dataset, view=SPLIT)
    figure = draw.latents("A heading", found)
    rows = [axes for axes in figure.axes if axes.get_images()]
    assert [axes.get_images()[0].get_array().shape for axes in rows] == [(5, 2)] * 4
    for axes, latent in zip(rows, found.shown, strict=True):
        assert np.array_equal(axes.get_images()[0].get_array(), found.plane[latent])
        assert axes.get_images()[0].get_extent() == [-0.5, 1.5, 1.25, -1.25]  # height across, side down from the top
    curves = [line.get_ydata() for axes in figure.axes for line in axes.lines if len(line.get_ydata()) == 4]
    assert np.array_equal(np.array(curves), found.curves["turn"][found.shown].reshape(12, 4))
    said = words_of(figure)
    for word in ("A heading", "one", "two", "three", "height", "turn [rad]", "height and side", "$z_{4}$"):
        assert word in said
    assert len(draw.latents("A heading", portrait(result, dataset)).axes) == 4 * 3


def test_traversals_are_drawn_as_they_are(result, dataset):
    found = portrait(result, dataset, view=SPLIT)
    figure = draw.traversals([("ISA-VAE, so", found), ("β-VAE, so", "There is none.")], "two")
    top, drawn, missing = figure.axes
    pair = np.stack([found.originals[1], found.reconstructions[1]])
    for axes, images in ((top, pair[None]), (drawn, found.traversals[:, 1])):
        picture = axes.get_images()[0].get_array()
        for r, c in np.ndindex(images.shape[:2]):  # two pixels between them
            tile = picture[r * 6 : r * 6 + 4, c * 8 : c * 8 + 6]
            assert np.array_equal(tile, np.moveaxis(images[r, c], 0, -1))
    assert not missing.get_images()
    assert "There is none." in words_of(figure) and "β-VAE, so" in words_of(figure)


def test_what_cannot_be_drawn_is_said(dataset):
    flat = portrait(measured(torch.zeros(N, K), torch.zeros(N, K)), dataset)
    for figure in (draw.latents("Heading", flat), draw.traversals([("Heading", flat)], "")):
        assert "No latent of this model is active" in words_of(figure)
    for figure in (draw.latents("Heading", "0 of 5 runs"), draw.traversals([("Heading", "0 of 5 runs")], "heart")):
        assert "0 of 5 runs" in words_of(figure) and "Heading" in words_of(figure)


def test_committed_portraits_are_small_and_whole():
    paths = sorted((Path(__file__).resolve().parent.parent / "runs" / "portraits").glob("*.npz"))
    assert paths
    for path in paths:
        assert path.stat().st_size < 500_000, path.name
        assert Portrait.load(path).about["key"] == path.stem
