"""Interactive figures: their data, the files beside their pages, and their use by keyboard, touch and screen reader."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pages
import pytest
import torch
from browser import Page
from explorer_page import ROOT, STATE, VALUES, arrange, choose, press, push, settle, touch, wait_for, write_page
from PIL import Image

from edition.explorers import exhibits, explorer_html
from edition.explorers.decoders import CompressedDecoder
from edition.figures.results import METHODS
from isa import LpNested, Node
from isa.latents import Portrait
from isa.sweep import read_records
from isa.toys import factor_analysis, ica

TREES = ("2[1, 1.5[2]]", "2.1[5*2.2[4]]")
PIXELS = f"{VALUES}.map(side => Array.from(side.pixels))"
PICTURES = f"{VALUES}.map(({{picture: p}}) => p.getContext('2d').getImageData(0, 0, p.width, p.height).data)"
PICTURES += ".map(data => Array.from(data).filter((value, i) => i % 4 === 0))"
CANVASES = "[...document.querySelectorAll('canvas')].filter(canvas => canvas.offsetParent)"
INK = f"{CANVASES}.map(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
INK += ".map(data => data.filter((value, i) => i % 4 === 3 && value > 0).length / (data.length / 4))"


@pytest.fixture(scope="module")
def studies() -> list[list[dict]]:
    """Committed records, one of them twice."""
    full, reduced = (read_records(ROOT / "runs" / f"{name}.csv") for name in ("dsprites", "dsprites-reduced"))
    full, reduced = ([row for row in rows if row["status"] == "trained"] for rows in (full, reduced))
    return [full, [*reduced, full[0]]]


@pytest.fixture(scope="module")
def portrait(studies) -> Path:
    """A portrait of a reduced run."""
    hashes = {row["hash"] for row in studies[1] if row["reduced"]}
    paths = sorted((ROOT / "runs" / "portraits").iterdir())
    return next(path for path in paths if path.stem.rpartition("-")[2] in hashes)


@pytest.fixture(scope="module")
def files() -> dict[str, Path]:
    """Committed decoders, by the key of their run."""
    return {path.stem: path for path in (ROOT / "runs" / "decoders").iterdir()}


@pytest.fixture(scope="module")
def models(files) -> list[Portrait]:
    """Portraits of two full runs at beta = 3, and of those that have a decoder, at beta = 1."""
    full = "dsprites-beta-vae-3-seed2-13e3f6297207317d", "dsprites-isa-vae-3-seed2-f5318edf1e367bb3"
    return [Portrait.load(ROOT / "runs" / "portraits" / f"{key}.npz") for key in (*full, *sorted(files))]


def named(data: dict, run: dict) -> tuple[str, str]:
    """Return the name of a run and its MIG as the page shows them."""
    method = data["methods"][run["method"]]
    return f"{method['label']}, {method['weight']} = {run['beta']:g}, seed {run['seed']}", f"{run['mig']:.3f}"


def selected(data: dict, **values: object) -> list[dict]:
    return [run for run in data["runs"] if all(run[name] == value for name, value in values.items())]


def test_runs(studies):
    data = exhibits.trade_off(studies)
    rows = {row["hash"]: row for study in studies for row in study}
    assert sorted(run["hash"] for run in data["runs"]) == sorted(rows)
    for run in data["runs"]:
        row, study = rows[run["hash"]], data["studies"][run["study"]]
        expected = [row[name] for name in ("beta", "seed", "mig", "log_likelihood", "active_units")]
        expected += [row[f"mig_{name}"] for name in data["factors"]]
        actual = [*(run[name] for name in ("beta", "seed", "mig", "fit", "active")), *run["gaps"]]
        assert actual == pytest.approx(expected, abs=1e-3)
        assert data["methods"][run["method"]]["label"] == METHODS[exhibits.method(row)].label
        assert study["reduced"] == row["reduced"] and f"{row['total_steps']:,} steps" in study["title"]
    order = [(run["study"], run["method"], run["beta"], run["seed"]) for run in data["runs"]]
    assert order == sorted(order)
    assert data["runs"][data["first"]]["mig"] == max(run["mig"] for run in selected(data, study=0))


def test_means(studies):
    data = exhibits.trade_off(studies)
    labels = [method["label"] for method in data["methods"]]
    lines = list(dict.fromkeys((run["study"], run["method"], run["prior"]) for run in data["runs"]))
    for mean in data["means"]:
        study, method, kind = lines[mean["line"]]
        assert (mean["study"], mean["method"]) == (study, method)
        if mean["beta"] == 1:  # the runs of objectives with a total correlation are the plain ones
            method = labels.index(labels[method].replace("TC", ""))
        runs = selected(data, study=study, method=method, prior=kind, beta=mean["beta"])
        for name in ("fit", "mig"):
            values = np.array([run[name] for run in runs])
            assert mean["n"] == len(values) and mean[name] == pytest.approx(values.mean(), abs=2e-3)
            error = None if len(values) == 1 else pytest.approx(values.std(ddof=1) / len(values) ** 0.5, abs=2e-3)
            assert mean[f"{name}_error"] == error


def test_build_writes_what_a_page_loads(studies, models, files, portrait, tmp_path):
    app = Mock(srcdir=ROOT, outdir=tmp_path)
    app.builder.format = "html"

    def build(body: str) -> list[str]:
        app.reset_mock()
        pages.add_explorers(app, "book/page", "page.html", {"body": body}, None)
        return [call.args[0] for call in app.method_calls]

    data = exhibits.latents(models[-1:], files.values())
    assert build("<p>a page without an explorer</p>") == []
    names = ["explorers/explorers.css", "explorers/base.js", "explorers/latents.js"]
    assert build(explorer_html("latents", "x", data)) == names
    build(explorer_html("trade-off", "x", exhibits.trade_off(studies, [portrait])))
    written = tmp_path / "_static" / "explorers" / "files"
    script, picture = written / f"{models[-1].about['key']}.js", written / f"{portrait.stem}.png"
    assert set(written.iterdir()) == {script, picture}
    tiles = Portrait.load(portrait).traversals[..., 0, :, :]  # rows of the picture by start, then by latent
    with Image.open(picture) as image:
        np.testing.assert_array_equal(image, np.block([list(row) for row in np.concatenate(tiles.swapaxes(0, 1))]))


@pytest.fixture(scope="module")
def data(studies, models, files, portrait) -> dict[str, dict]:
    """Small data to embed, by the name of the explorer."""
    truth, aligned = ica.directions([30.0, 90.0, 150.0]), factor_analysis.aligned_weights()
    surface = {"trees": [{"label": text, "structure": Node.parse(text).structure} for text in TREES], "samples": 300}
    surface |= {"p0": 2.1, "p1": 2.2, "scale": 1.0, "stops": [1, 2, 2.1, 2.2, 3, 9], "presets": [["cone", 1, 2]]}
    weights = {"betas": [0.1, 0.5, 1.0, 2.0, 5.0, 20.0], "noise_vars": [0.001, 0.01, 0.02], "noise_var": 0.01}
    weights |= {"variances": np.diag(aligned @ aligned.T) + 0.01, "angle": 45, "n": 100}
    paths = [[truth * [1, shrink**step, 1] for step in range(13)] for shrink in (0.9, 0.7)]
    columns = {"paths": paths, "converged": [truth * [1, 0, 1]] * 2, "truth": truth, "betas": [1.0, 5.0]}
    columns |= {"steps": 4, "pair": [1.0, 5.0]}
    columns |= {"points": np.random.default_rng(0).normal(size=(50, 2)), "limit": 10.0, "threshold": ica.PRUNED}
    return {
        "prior": surface,
        "factor-analysis": weights,
        "ica": columns,
        "latents": exhibits.latents(models, files.values(), start="ellipse"),
        "trade-off": exhibits.trade_off(studies, [portrait, Path(f"other-{'0' * 16}.npz")]),
    }


@pytest.fixture(scope="module")
def site(browser, data, files, portrait, tmp_path_factory):
    """A function that opens a page with an explorer, its script and the files that it may ask for."""
    folder = tmp_path_factory.mktemp("site")
    for path in (*files.values(), portrait):
        exhibits.write_file(path, folder / "explorers" / "files")

    def start(name: str) -> Page:
        browser.open(write_page(folder, [name], explorer_html(name, f"The {name}", data[name])))
        arrange(browser)
        if name == "latents":
            wait_for(browser, f"{VALUES}.every(side => side.origin)")
        assert browser.complaints == [] and browser.requests == []
        return browser

    return start


def description(page: Page) -> str:
    return page.evaluate(f"{STATE}.pending").replace("\N{MINUS SIGN}", "-")


def loaded_files(page: Page) -> set[str]:
    return {path.name for path in page.files if path.parent.name == "files"}


@pytest.fixture(scope="module", params=["prior", "factor-analysis", "ica", "latents", "trade-off"])
def shown(request, site) -> Page:
    page = site(request.param)
    if request.param == "trade-off":
        choose(page, study=0)  # runs without a picture: a canvas with a file on it may not be read
    return page


def test_explorer_draws_and_describes_itself(shown):
    assert min(shown.evaluate(INK)) > 0.005
    assert "undefined" not in shown.evaluate("document.querySelector('.explorer-stage').innerText")
    values = shown.evaluate("[...document.querySelectorAll('input')].map(c => c.getAttribute('aria-valuetext'))")
    canvases = shown.evaluate(f"{CANVASES}.map(c => [c.getAttribute('role'), c.getAttribute('aria-label').length])")
    assert values and all(values) and all(role == "img" and length > 20 for role, length in canvases)


@pytest.mark.parametrize(("width", "density"), [(800, 3), (390, 2)])
def test_canvas_fits_the_screen(shown, width, density):
    arrange(shown, width=width, density=density)
    sizes = shown.evaluate(f"{CANVASES}.map(c => [c.width / c.clientWidth, c.height / c.clientHeight])")
    assert np.allclose(sizes, density, atol=0.01) and min(shown.evaluate(INK)) > 0.005
    right = "Math.max(...[...document.querySelectorAll('.explorer *')].map(e => e.getBoundingClientRect().right))"
    small = "[...document.querySelectorAll('.explorer input, .explorer select, .explorer button')]"
    assert shown.evaluate(right) <= width + 1 and min(shown.evaluate(f"{small}.map(e => e.offsetHeight)")) >= 24


@pytest.mark.parametrize("name", ["prior", "factor-analysis", "ica", "trade-off"])
def test_controls_and_picture_fit_a_laptop(site, name):
    page = site(name)
    arrange(page, width=690)  # of a page between its side bars
    top = page.evaluate("document.querySelector('.explorer-stage').getBoundingClientRect().top")
    bottom = "[...document.querySelectorAll('.explorer-panel')].map(panel => panel.getBoundingClientRect().bottom)"
    panels = page.evaluate(bottom)
    assert max(panels[:1] if name == "trade-off" else panels) - top <= 720 - 50  # the bar above; traversals lie below


def test_dark_theme_changes_the_colours(shown):
    pictures = f"{CANVASES}.map(c => c.toDataURL())"
    light = shown.evaluate(pictures)
    shown.evaluate("document.documentElement.dataset.theme = 'dark'; null")
    settle(shown)
    assert all(before != after for before, after in zip(light, shown.evaluate(pictures), strict=True))


def test_paper_and_a_page_without_scripts_have_a_sentence_instead(shown):
    visible = "['.explorer-stage', '.explorer-paper', 'noscript'].map(s => document.querySelector(s).offsetHeight > 0)"
    assert shown.evaluate(visible) == [True, False, False]
    arrange(shown, media="print")
    assert shown.evaluate(visible) == [False, True, False]
    with shown.tab.context.browser.new_context(java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(shown.tab.url)
        assert page.locator("noscript p").is_visible()


def test_failure_leaves_the_sentence_and_a_message(browser, tmp_path):
    browser.open(write_page(tmp_path, ["ica"], explorer_html("ica", "x", {"ways": []})))
    assert len(browser.complaints) == 1 and "TypeError" in browser.complaints[0]
    assert browser.evaluate("document.querySelector('.explorer-paper').offsetHeight") > 10


def numbers_shown(page: Page) -> str:
    return page.evaluate("document.querySelector('.explorer-numbers').innerText").replace("\N{MINUS SIGN}", "-")


def test_prior_by_keyboard(site):
    page = site("prior")
    for slider, key in (("p0", "ArrowRight"), ("p1", "End")):
        press(page, slider, key, 2)
    press(page, "tree", "ArrowDown")
    exponents = f"[{STATE}.controls.p0.value, {STATE}.controls.p1.value]"
    assert page.evaluate(exponents) == [3.0, 9.0]
    wide = [torch.tensor(p, dtype=torch.float64) for p in (3.0, *[9.0] * 5)]
    prior = LpNested(Node.parse("2.1[5*2.2[4]]").with_exponents(wide), 1.0)
    expected = {"mode": prior.log_prob(torch.zeros(20).double()).item(), "entropy": prior.entropy().item()}
    actual = page.evaluate(VALUES)
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, rel=1e-8) and f"{value:.4f}" in numbers_shown(page)
    before = page.evaluate(INK)
    push(page, "cone")
    assert page.evaluate(exponents) == [1.0, 2.0] and page.evaluate(INK) != before


def test_factor_analysis_by_keyboard(site, data):
    page = site("factor-analysis")
    cov = np.diag(data["factor-analysis"]["variances"])
    for control, key, times in (("angle", "ArrowLeft", 15), ("beta", "ArrowRight", 1), ("noise", "ArrowRight", 1)):
        press(page, control, key, times)
    angle, beta, noise, n = math.radians(30), 2.0, 0.02, 100
    for lengths, convention in ((1.0, 13), (beta, 13), (beta, 16), (1.0, 16)):  # beta prunes a latent
        press(page, "lengths", "ArrowDown" if lengths == beta else "ArrowUp")
        press(page, "convention", "ArrowDown" if convention == 16 else "ArrowUp")
        W = factor_analysis.rotate(factor_analysis.optimal_weights(cov, noise, 2, lengths), angle)
        weight = beta if convention == 13 else 1.0
        expected = {
            "likelihood": factor_analysis.log_likelihood(W, noise, cov, n),
            "energy": weight * factor_analysis.replicated_free_energy(W, noise, cov, n, beta),
            "gap": weight * factor_analysis.mean_field_gap(W, noise, n, beta),
        }
        actual = page.evaluate(VALUES)
        assert {name: actual[name] for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert all(f"{expected[name]:.2f}" in numbers_shown(page) for name in ("energy", "likelihood"))


def test_ica_by_keyboard(site):
    page = site("ica")
    press(page, "beta", "ArrowRight")
    press(page, "steps", "ArrowRight", 3)
    W = ica.directions([30.0, 90.0, 150.0]) * [1, 0.7**7, 1]
    actual = page.evaluate(VALUES)
    assert actual["alive"] == ica.survivors(W).sum() == actual["aliveEnd"] == 2
    assert actual["angle"] == pytest.approx(ica.widest_pair(W))
    assert actual["ratio"] == pytest.approx(0.7**7) and actual["pruned"] == "7"
    assert page.evaluate("document.querySelector('.explorer-words').textContent") == page.evaluate(f"{STATE}.pending")
    assert description(page).startswith("β = 5 after 7 steps") and "two directions survive" in description(page)


def test_player_respects_reduced_motion(site):
    page = site("ica")
    play = f"new Promise(done => {{ const {{ steps }} = {STATE}.controls; const seen = [];"
    play += "steps.input.addEventListener('input', () => seen.push(steps.value) && steps.atEnd && done(seen));"
    play += "document.querySelector('.explorer-buttons button').click(); })"
    for motion, expected in (("no-preference", list(range(5, 13))), ("reduce", [12])):
        choose(page, steps=4)
        arrange(page, prefers_reduced_motion=motion)
        assert page.evaluate(play) == expected


def test_surface_is_turned_by_touch(site):
    page = site("prior")
    arrange(page, width=390, density=2)
    page.evaluate("document.querySelector('.explorer-turns').scrollIntoView({ block: 'center' })")
    x, y = page.evaluate("(b => [b.x, b.y])(document.querySelector('.explorer-turns').getBoundingClientRect())")
    turn = page.evaluate(f"{STATE}.controls.turn.value")
    touch(page, *((x + 40 + 12 * step, y + 60) for step in range(7)))
    assert page.evaluate(f"{STATE}.controls.turn.value") != turn


def test_only_the_last_description_is_announced(site):
    page = site("factor-analysis")
    first, announced = page.evaluate(
        "new Promise(done => { const words = document.querySelector('[role=status]');"
        "const first = words.textContent;"
        "new MutationObserver(() => done([first, words.textContent])).observe(words, { childList: true });"
        f"for (let angle = 1; angle <= 10; angle++) {{ {STATE}.controls.angle.value = angle; {STATE}.update(); }} }})"
    )
    assert first.startswith("Turned by 45 degrees") and announced.startswith("Turned by 10 degrees")


def test_sliders_show_the_recorded_images(site, data, models):
    page, sides = site("latents"), ("left", "right")
    assert not loaded_files(page), "a decoder was loaded before its model was chosen"
    start = data["latents"]["start"]
    expected = [model.reconstructions[start] for model in models[:2]]

    def compare() -> None:
        for actual, image in zip(page.evaluate(PICTURES), expected, strict=True):
            np.testing.assert_allclose(actual, image.flatten().astype(int), atol=7)  # 32 grey levels

    compare()
    labels = page.evaluate("[...document.querySelectorAll('.explorer-sides label')].map(e => e.textContent)")
    assert {"latent 11 mixed: x, scale, y", "latent 7 x position, 2.5 nats"} <= set(labels)
    for side, key, step in ((1, "End", -1), (0, "Home", 0), (0, "ArrowRight", 1)):
        for row in (0, 2):  # the second slider puts the first back
            press(page, f"{sides[side]}-z{models[side].shown[row] + 1}", "Home")
        press(page, f"{sides[side]}-z{models[side].shown[row] + 1}", key)
        expected[side] = models[side].traversals[row, start, step]
        compare()
    choose(page, start=1 - start)
    expected = [model.reconstructions[1 - start] for model in models[:2]]
    compare()
    assert page.complaints == [] and page.requests == []


def test_show_moves_the_best_latents(site, models):
    """They move so that the factor grows, whatever the sign of the latent."""
    page = site("latents")
    at = "({ sliders: s, moved: k }) => [s[k].latent + 1, s[k].control.value / s[k].control.input.max]"
    expected = {"x position": [[8, 0], [7, 1]], "y position": [[1, 0], [1, 0]], "scale": [[11, 0], [5, 1]]}
    for row, (title, ends) in enumerate(expected.items()):
        arrange(page, prefers_reduced_motion="reduce")
        push(page, f"Show {title}")
        assert page.evaluate(f"{VALUES}.map({at})") == ends
        text = description(page).partition("ISA-VAE, ")[2]
        assert text.startswith(f"latent {ends[1][0]} ({title}, ")
        change = np.array([*map(float, re.findall(r"(?:x|y|area) ([+-]?[\d.]+)", text.partition("):")[2]))])
        assert change[row] > 10 and (np.abs(np.delete(change, row)) < (20 if row < 2 else 1)).all()
        push(page, "Back to the start")
        assert page.evaluate(f"{VALUES}.map(side => side.moved)") == [None, None]
        arrange(page, prefers_reduced_motion="no-preference")
        push(page, f"Show {title}")
        assert page.evaluate(f"{VALUES}.map({at})") != ends
        wait_for(page, f"JSON.stringify({VALUES}.map({at})) === '{json.dumps(ends, separators=(',', ':'))}'")


def test_page_draws_what_python_draws(site, data, models, files):
    page = site("latents")
    choose(page, beta=1)
    wait_for(page, f"{VALUES}.every(side => side.decoder)")
    assert loaded_files(page) == {f"{key}.js" for key in files}
    decoders = [CompressedDecoder.load(files[model.about["key"]]) for model in models[2:]]
    start, names = data["latents"]["start"], ("left", "right")

    def compare(*latents: torch.Tensor) -> None:
        for actual, decoder, z in zip(page.evaluate(PIXELS), decoders, latents, strict=True):
            np.testing.assert_allclose(actual, decoder.decode(z[None]).sigmoid().flatten(), atol=1e-4)

    at = [decoder.tensors["starts"][start].clone() for decoder in decoders]
    compare(*at)
    for side, number, key, end in ((1, 0, "End", "high"), (0, 1, "Home", "low"), (0, 2, "End", "high")):
        slider = data["latents"]["models"][2 + side]["sliders"][number]
        press(page, f"{names[side]}-z{slider['latent'] + 1}", key)
        at[side][slider["latent"]] = slider[end]  # the sliders act together
        compare(*at)
        assert f"latent {slider['latent'] + 1} (" in description(page)
    assert page.complaints == [] and page.requests == []


def test_missing_decoder_leaves_recorded_images(browser, data, tmp_path):
    browser.open(write_page(tmp_path, ["latents"], explorer_html("latents", "x", data["latents"])))
    choose(browser, beta=1)
    wait_for(browser, f"{VALUES}.every(side => side.origin) && {STATE}.pending.includes('not available')")
    words = "The decoder is not available (a file could not be loaded); the images are recorded."
    assert description(browser) == f"Both models are at the start. {words}"


def chosen_run(page: Page) -> tuple[str, str]:
    return tuple(page.evaluate(f"(v => [v.run, v.mig.split(' ')[0]])({VALUES})"))


def test_runs_by_keyboard(site, data):
    page, data = site("trade-off"), data["trade-off"]
    assert chosen_run(page) == named(data, data["runs"][data["first"]])
    choose(page, study=0)
    full = selected(data, study=0)
    for key, run in (("Home", full[0]), ("ArrowRight", full[1]), ("ArrowRight", full[2]), ("End", full[-1])):
        press(page, "run", key)
        assert chosen_run(page) == named(data, run)
    assert description(page).startswith(f"{named(data, full[-1])[0]}, 7,200 steps of 2,048: MIG ")


def test_filters_of_runs(site, data):
    page, data = site("trade-off"), data["trade-off"]
    full = selected(data, study=0)
    best = max(full, key=lambda run: run["mig"])
    choose(page, study=0)
    entries = page.evaluate("document.querySelectorAll('.explorer-legend span:not([hidden])').length")
    assert entries == len({run["method"] for run in full})
    push(page, "Highest MIG in view")
    count, filters = f"Number({STATE}.controls.run.input.max) + 1", {"study": 0}
    for name in ("method", "beta", "seed"):
        filters[name] = best[name]
        choose(page, **{name: best[name]})
        assert page.evaluate(count) == len(selected(data, **filters)) and chosen_run(page) == named(data, best)
    recorded = {(run["method"], run["beta"]) for run in full}
    pairs = itertools.product(range(len(data["methods"])), {run["beta"] for run in full})
    method, beta = next(pair for pair in pairs if pair not in recorded)
    choose(page, method=method, beta=beta)
    assert description(page) == "No recorded run passes these filters."
    assert page.evaluate(f"{STATE}.controls.run.input.disabled")
    push(page, "All runs")
    assert page.evaluate(count) == len(full) and not page.evaluate(f"{STATE}.controls.run.input.disabled")
    choose(page, study=data["runs"][data["first"]]["study"])
    assert "reduced" in page.evaluate(f"{VALUES}.trained") and "reduced" in description(page)


@pytest.mark.parametrize("width", [1000, 390], ids=["click", "tap"])
def test_mark_chooses_its_run(site, data, width):
    page, data = site("trade-off"), data["trade-off"]
    arrange(page, width=width)
    runs = selected(data, study=0, method=0, beta=3)
    choose(page, study=0, method=0, beta=3)
    points = page.evaluate(
        f"(() => {{ const canvas = document.querySelector('canvas'); canvas.scrollIntoView({{ block: 'center' }});"
        f"const b = canvas.getBoundingClientRect(); return {STATE}.marks().map(([x, y]) => [b.x + x, b.y + y]); }})()"
    )
    for run, point in zip(runs, points, strict=True):
        touch(page, point) if width == 390 else page.click(*point)
        settle(page)
        assert chosen_run(page) == named(data, run)
    assert page.evaluate(f"document.activeElement === {STATE}.controls.run.input"), "arrow keys do not continue"


def test_traversals_are_loaded(site, data, portrait):
    page, data = site("trade-off"), data["trade-off"]
    assert loaded_files(page) == {f"{portrait.stem}.png"}  # of the run that is chosen at first
    wait_for(page, f"{STATE}.pictured()")
    tiles = Portrait.load(portrait).traversals
    assert page.evaluate(f"{STATE}.pictured()") == [tiles.shape[2] * 64, tiles.shape[0] * tiles.shape[1] * 64]
    label = page.evaluate("[...document.querySelectorAll('canvas')].at(-1).getAttribute('aria-label')")
    first = data["runs"][data["first"]]
    assert label.startswith(f"Traversals of {named(data, first)[0]}") and "nats about" in label
    choose(page, study=0)
    panel = "getComputedStyle([...document.querySelectorAll('.explorer-panel')].at(-1)).display"
    assert page.evaluate(panel) == "none"
    choose(page, study=first["study"])
    push(page, "Next run with traversals")
    assert page.evaluate(panel) != "none" and page.complaints == [] and page.requests == []
