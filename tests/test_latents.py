"""Portraits of trained models: averages against slow loops, traversals, files, the representative, figures."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from torch import nn

from edition.figures import latents as draw
from edition.representatives import carriers, encoded, find_representative, interpretation, summary
from isa.data import Factor, FactorDataset, Provenance
from isa.latents import Portrait, View, portrait
from isa.mig import active_units, mutual_information_gap

pytestmark = pytest.mark.usefixtures("closed")
SIZES = (2, 3, 4, 5)
FACTORS = (
    Factor("height", np.linspace(0, 1, 2), "m"),
    Factor("kind", np.array(["one", "two", "three"])),
    Factor("turn", np.arange(4), "rad"),
    Factor("side", np.linspace(-1, 1, 5), "m"),
)
NAMES = [factor.name for factor in FACTORS]
N, K = 120, 6
SPLIT = View("kind", ("side", "height"))


class Painter(nn.Module):
    """A decoder that is not linear."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(K, 3 * 4 * 6, generator=generator))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        return (z @ self.weight).reshape(-1, 3, 4, 6)


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


def slow_average(mean: np.ndarray, *names: str) -> np.ndarray:
    """Return the mean over all factors except these, (K, *sizes of these factors), by a loop over the images."""
    axes = [NAMES.index(name) for name in names]
    total = np.zeros((*(SIZES[axis] for axis in axes), K))
    for row, index in zip(mean, np.ndindex(SIZES), strict=True):
        total[tuple(index[axis] for axis in axes)] += row
    return np.moveaxis(total * total[..., 0].size / N, -1, 0)


@pytest.mark.parametrize("view", [SPLIT, View("height", ("kind", "turn")), View(None, ("height", "side"))], ids=str)
def test_averages_match_a_loop_over_images(result, dataset, view):
    made, mean = portrait(result, dataset, view=view), result.evaluation.mean.numpy()
    for name in NAMES:
        whole = view.split in (None, name)
        expected = slow_average(mean, name)[:, None] if whole else slow_average(mean, view.split, name)
        np.testing.assert_allclose(made.curves[name], expected, atol=1e-6)
    np.testing.assert_allclose(made.plane, slow_average(mean, *view.plane), atol=1e-6)
    np.testing.assert_allclose(made.noise, result.evaluation.log_var.double().exp().mean(0).sqrt(), rtol=1e-6)


def test_active_latents_are_ordered_by_their_information(result, dataset):
    made, mig = portrait(result, dataset), result.evaluation.mig
    information = mig.mutual_information.numpy()
    assert information[2, 0] > information[2, 4] > 0.1  # two latents follow side
    assert made.about == {"key": "toy-isa-vae-1-seed0-0123", "hash": "0123", "mig": mig.score}
    assert made.scored == ("height", "turn", "side") and made.shown.tolist() == [3, 2, 0, 4]
    np.testing.assert_allclose(made.mutual_information, information, rtol=1e-6)
    assert [factor for factor, _ in made.informative.values()] == ["height", "turn", "side", "side"]
    assert made.informative[0][1] == pytest.approx(information[2, 0])


def painted(z: np.ndarray, likelihood: str) -> np.ndarray:
    """Return mean images of latents, computed by numpy, as grey levels."""
    outputs = z.astype(float) @ Painter().weight.detach().double().numpy()
    image = 1 / (1 + np.exp(-outputs)) if likelihood == "bernoulli" else np.clip(outputs, 0, 1)
    return np.rint(255 * image).astype(int).reshape(-1, 3, 4, 6)


@pytest.mark.parametrize(("likelihood", "view", "steps"), [("bernoulli", SPLIT, 97), ("gaussian", View(), 5)])
def test_traversals_start_at_the_middle_image(result, dataset, likelihood, view, steps):
    """They reach from the minimum to the maximum posterior mean; 97 steps are decoded in several parts."""
    result = SimpleNamespace(**{**vars(result), "run": SimpleNamespace(likelihood=likelihood)})
    made = portrait(result, dataset, view=view, steps=steps)
    mean = result.evaluation.mean.numpy()
    kinds = range(3) if view.split else [1]
    assert len(made.bases) == len(kinds) and made.traversals.shape == (4, len(kinds), steps, 3, 4, 6)
    for s, kind in enumerate(kinds):
        start = np.ravel_multi_index((1, kind, 2, 2), SIZES)
        assert np.array_equal(made.originals[s], dataset.storage[start].numpy())
        assert np.array_equal(made.reconstructions[s], painted(mean[start], likelihood)[0])
        for k, values, images in zip(made.shown, made.values, made.traversals[:, s], strict=True):
            z = mean[[start] * steps]
            z[:, k] = np.linspace(mean[:, k].min(), mean[:, k].max(), steps)
            np.testing.assert_allclose(values, z[:, k], rtol=1e-5, atol=1e-6)
            assert np.abs(images.astype(int) - painted(z, likelihood)).max() <= 1
    assert made.traversals.std() > 20


@pytest.mark.parametrize("name", ["split", "whole", "collapsed"])
def test_file_round_trip(result, dataset, tmp_path, name):
    if name == "collapsed":
        result = measured(torch.zeros(N, K), torch.zeros(N, K))
    expected = portrait(result, dataset, view=View() if name == "whole" else SPLIT)
    assert (expected.traversals.shape == (0, 3, 8, 3, 4, 6)) == (expected.informative == {}) == (name == "collapsed")
    path = expected.save(tmp_path / "folder" / "one.npz")
    fields = (vars(made) | {"factors": list(map(vars, made.factors))} for made in (Portrait.load(path), expected))
    np.testing.assert_equal(*fields)
    assert Portrait.load(path).save(tmp_path / "again.npz").read_bytes() == path.read_bytes()


class Rows(list):
    """A stand-in for ``isa.sweep.Records``: six runs, of which the fifth, of this hash, represents the upper half."""

    wanted = 9

    def __init__(self, name: str) -> None:
        migs = {"1": 0.1, "2": 0.11, "3": 0.12, "4": 0.3, name: 0.31, "6": 0.32}
        super().__init__({"status": "trained", "hash": k, "mig": v, "log_likelihood": -v} for k, v in migs.items())
        self.append({"status": "diverged", "hash": "7", "mig": None, "log_likelihood": None})


def test_representative_has_a_portrait_if_any_study_does(result, dataset, tmp_path):
    path = portrait(result, dataset).save(tmp_path / "toy-isa-vae-1-seed0-0123.npz")
    none = Rows("5")
    del none[:-1]  # all but the run that diverged
    for studies, paths, *expected in (
        ([none, Rows("5"), Rows("0123")], [tmp_path / "other-4.npz", path], 2, 6, "0123", path.stem),
        ([none, Rows("5")], [path], 1, 6, "5", None),
        ([none], [path], 0, 0, None, None),
    ):
        made = find_representative(studies, paths)
        key, picture = made.record and made.record["hash"], made.portrait and made.portrait.about["key"]
        assert made.wanted == 9 and [made.study, made.recorded, key, picture] == expected


def words_of(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.findobj(Text))


@pytest.mark.parametrize("reduced", [False, True])
def test_title_has_scores(result, dataset, reduced):
    about = {"mig": 0.14, "log_likelihood": -21.99, "total_steps": 7200, "batch_size": 2048}
    about |= {"images_title": "Toy (stand-in)", "reduced": reduced, "procedural": reduced}
    text = draw.title("isa-vae", 1.0, replace(portrait(result, dataset), about=about))
    assert text.startswith("ISA-VAE, β = 1\nMIG 0.14, log p(x|z) \N{MINUS SIGN}21.99")
    assert ("7,200 steps of 2,048" in text) == ("reduced" in text) == ("stand-in" in text) == reduced


def informed(made: Portrait, **rows: list[float]) -> Portrait:
    """Return a portrait with another mutual information of its latents 0, 2, 3 and 4 with each factor, in nats."""
    table = np.zeros_like(made.mutual_information)
    for name, nats in rows.items():
        table[made.scored.index(name), [0, 2, 3, 4]] = nats
    return replace(made, mutual_information=table)


def test_interpretation_follows_from_the_information(result, dataset):
    made = portrait(result, dataset, view=View("kind", ("side", "height")))
    made = informed(made, height=[0.30, 0.0, 0.05, 0.02], turn=[0.0, 0.80, 0.06, 0.04], side=[0.08, 0.15, 0.0, 1.0])
    # 0.15 is less than a fifth of 0.8, 0.02 is less than 0.05 nats
    assert [list(one) for one in encoded(made).values()] == [["height", "side"], ["side"], ["turn"], ["turn", "height"]]
    assert list(encoded(made)) == [0, 4, 2, 3] and carriers(made, "side") == pytest.approx({4: 1.0})
    words = ("mixed: height 0.30, side 0.08 nats", "inactive", "turn (0.80 of 1.39 nats)")
    assert tuple(interpretation(made, k) for k in (0, 1, 2)) == words
    single = "side position (latent 5, 1.00 of 1.61 nats) and turn (latent 3, 0.80 of 1.39 nats)"
    both = f"{single} are encoded by one latent each"
    assert summary(made) == f"{both}; height position shares latent 1 with other factors"
    text = summary(informed(made, turn=[0.5, 0.4, 0.0, 0.2]))
    assert "turn is spread over latents 1, 3 and 5" in text and "side position is not encoded" in text


def test_figure_shows_maps_curves_and_traversals(result, dataset):
    made = portrait(result, dataset, view=SPLIT)
    figure = draw.latents([("ISA-VAE, one\nscores", made), ("β-VAE, two\nscores", "There is none.")], "two")
    order = list(encoded(made))
    images = [axes.get_images()[0].get_array() for axes in figure.axes if axes.get_images()]
    assert [np.array_equal(image, made.plane[k]) for image, k in zip(images[3::2], order, strict=True)] == [True] * 4
    assert len(images) == 2 + 2 * len(order)  # an image and its reconstruction; for each latent a traversal and a map
    rows = [made.originals[1:2], made.reconstructions[1:2]]
    rows += [made.traversals[made.shown.tolist().index(k), 1] for k in order]
    for picture, tiles in zip([*images[:2], *images[2::2]], rows, strict=True):
        for step, tile in enumerate(tiles):  # two pixels between them, 32 grey levels in traversals
            shown = picture[:4, step * 8 : step * 8 + 6].astype(float)
            np.testing.assert_allclose(shown, np.moveaxis(tile, 0, -1), atol=7)
    curves = [line.get_ydata() for axes in figure.axes for line in axes.lines if len(line.get_ydata()) == 4]
    assert np.array_equal(np.array(curves), made.curves["turn"][order].reshape(12, 4))
    table = figure.to_csv().splitlines()
    assert table[0].startswith("model,latent,height,side") and len(table) == 1 + 4 * (2 * 5 + 3 * 4)
    for words in ("ISA-VAE, one", "three", "height and side", "$z_{4}$", "minimum", "maximum", "There is none."):
        assert words in words_of(figure)
    assert len(draw.latents([("A heading", portrait(result, dataset))]).axes) == 2 + 4 * (1 + 3)


def test_figure_says_why_nothing_is_drawn(dataset):
    flat = portrait(measured(torch.zeros(N, K), torch.zeros(N, K)), dataset)
    for model, words in ((flat, "No latent of this model is"), ("0 of 5 runs", "0 of 5 runs")):
        text = words_of(draw.latents([("Heading", model)]))
        assert words in text and "Heading" in text
