"""Interactive figures: their data, the files beside their pages, and their use by keyboard, touch and screen reader."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pages
import pytest
import torch
from browser import Page
from explorer_page import ROOT, STATE, VALUES, arrange, choose, press, push, settle, touch, wait_for, write_page
from PIL import Image

from edition import stats
from edition.explorers import exhibits, explorer_html
from edition.figures.results import METHODS, prior
from isa import LpNested, Node
from isa.latents import Portrait
from isa.sweep import read_records
from isa.toys import factor_analysis, ica

TREES = ("2[1, 1.5[2]]", "2.1[5*2.2[4]]")
PORTRAITS = sorted((ROOT / "runs" / "portraits").iterdir())
PIXELS = f"{VALUES}.map(side => Array.from(side.pixels))"
CANVASES = "[...document.querySelectorAll('canvas')].filter(canvas => canvas.offsetParent)"
INK = f"{CANVASES}.map(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data)"
INK += ".map(data => data.filter((value, i) => i % 4 === 3 && value > 0).length / (data.length / 4))"


def recorded(name: str) -> list[dict]:
    return [row for row in read_records(ROOT / "runs" / f"{name}.csv") if row["status"] == "trained"]


@pytest.fixture(scope="module")
def studies() -> list[list[dict]]:
    """Committed records, some of them twice."""
    full, reduced = recorded("dsprites"), recorded("dsprites-reduced")
    return [full, [*reduced, full[0]]]


@pytest.fixture(scope="module")
def portrait(studies) -> Path:
    """A portrait of a reduced run."""
    hashes = {row["hash"] for row in studies[1] if row["reduced"]}
    return next(path for path in PORTRAITS if path.stem.rpartition("-")[2] in hashes)


@pytest.fixture(scope="module")
def chosen() -> dict[str, exhibits.Exhibit]:
    return exhibits.choose((ROOT / "runs" / "decoders").iterdir(), ["beta-vae", "isa-vae"], 1.0)


def named(data: dict, run: dict) -> tuple[str, str]:
    """Return the name of a run and its MIG as the page shows them."""
    method = data["methods"][run["method"]]
    return f"{method['label']}, {method['weight']} = {run['beta']:g}, seed {run['seed']}", f"{run['mig']:.3f}"


def selected(data: dict, **values: object) -> list[dict]:
    return [run for run in data["runs"] if all(run[name] == value for name, value in values.items())]


# --- data -------------------------------------------------------------------------------------------------------------


def test_runs(studies):
    data = exhibits.trade_off(studies)
    rows = {row["hash"]: row for study in studies for row in study}
    assert len(data["runs"]) == len(rows) and {run["hash"] for run in data["runs"]} == set(rows)
    for run in data["runs"]:
        row, study = rows[run["hash"]], data["studies"][run["study"]]
        assert run["gaps"] == pytest.approx([row[f"mig_{name}"] for name in data["factors"]], abs=1e-4)
        expected = [row["beta"], row["seed"], row["mig"], row["log_likelihood"], row["active_units"]]
        assert [run[name] for name in ("beta", "seed", "mig", "fit", "active")] == pytest.approx(expected, abs=1e-3)
        assert data["methods"][run["method"]]["label"] == METHODS[exhibits.method(row)].label
        assert study["reduced"] == row["reduced"] and f"{row['total_steps']:,} steps" in study["title"]
    order = [(run["study"], run["method"], run["beta"], run["seed"]) for run in data["runs"]]
    assert order == sorted(order)
    assert data["runs"][data["first"]]["mig"] == max(run["mig"] for run in selected(data, study=0))
    json.dumps(data, allow_nan=False)


def test_means(studies):
    data = exhibits.trade_off(studies)
    labels = [method["label"] for method in data["methods"]]
    lines = list(dict.fromkeys((run["study"], run["method"], run["prior"]) for run in data["runs"]))
    for one in data["means"]:
        study, method, kind = lines[one["line"]]
        assert (one["study"], one["method"]) == (study, method)
        if one["beta"] == 1:  # the runs of objectives with a total correlation are the plain ones
            method = labels.index(labels[method].replace("TC", ""))
        runs = selected(data, study=study, method=method, prior=kind, beta=one["beta"])
        for name in ("fit", "mig"):
            values = np.array([run[name] for run in runs])
            assert one["n"] == len(values) and one[name] == pytest.approx(values.mean(), abs=2e-3)
            error = None if len(values) == 1 else pytest.approx(values.std(ddof=1) / len(values) ** 0.5, abs=2e-3)
            assert one[f"{name}_error"] == error


def test_portrait_of_a_run(studies, portrait, tmp_path):
    data = exhibits.trade_off(studies, [portrait, tmp_path / f"other-{'0' * 16}.npz"])
    seen = Portrait.load(portrait)
    expected = {"file": f"runs/portraits/{portrait.name}", "bases": seen.bases, "steps": 8, "size": (64, 64)}
    expected["latents"] = [[k, factor, pytest.approx(nats, abs=1e-3)] for k, (factor, nats) in seen.informative.items()]
    assert data["portraits"] == {seen.about["hash"]: expected}
    assert data["runs"][data["first"]]["hash"] == seen.about["hash"]


def test_decoder_of_a_full_training_is_preferred(chosen, tmp_path):
    full = chosen["isa-vae"]
    path = full.decoder.save(tmp_path / "decoders" / "a.safetensors")
    replace(full.portrait, about=full.run | {"reduced": True}).save(tmp_path / "portraits" / "a.npz")
    assert exhibits.choose([path, full.path], ["isa-vae", "factor-vae"], 1.0)["isa-vae"].path == full.path
    assert exhibits.choose([path], ["isa-vae"], 1.0)["isa-vae"].path == path
    assert not exhibits.choose([path], ["isa-vae"], 2.0)


def test_standing(studies):
    kinds = [(exhibits.title(row), exhibits.method(row), prior(row), row["beta"]) for row in studies[0]]
    kind = max(kinds, key=kinds.count)
    rows = [row for row, own in zip(studies[0], kinds, strict=True) if own == kind]
    best = rows.pop(stats.representative([r["mig"] for r in rows], [r["log_likelihood"] for r in rows]))
    count = f"{len(rows) + 1} recorded runs"
    assert exhibits.standing(best, studies) == f"represents {count}"
    assert exhibits.standing(rows[0], studies) == f"one of {count}, represented by seed {best['seed']}"
    assert exhibits.standing(best, [[best, studies[1][0]]]) == "the only one recorded"
    assert exhibits.standing(best, [rows]) == "not among the records of this page"


def test_build_writes_what_a_page_loads(studies, chosen, portrait, tmp_path):
    shutil.copytree(ROOT / "runs" / "decoders", tmp_path / "runs" / "decoders")
    (tmp_path / "runs" / "portraits").mkdir()
    shutil.copy(portrait, tmp_path / "runs" / "portraits")
    scripts, options = [], {"builder": SimpleNamespace(format="html"), "srcdir": tmp_path, "outdir": tmp_path / "html"}
    options |= {"confdir": ROOT, "config": SimpleNamespace(html_static_path=["book/_static"])}
    options["add_js_file"] = lambda name, loading_method: scripts.append((name, loading_method))
    app = SimpleNamespace(**options, add_css_file=lambda name: scripts.append((name, "")))

    def build(body: str) -> list[tuple[str, str]]:
        scripts.clear()
        pages.add_explorers(app, "book/page", "page.html", {"body": body}, None)
        return scripts

    data = exhibits.latents({"isa-vae": chosen["isa-vae"]})
    assert build("<p>a page without an explorer</p>") == []
    names = ["explorers/explorers.css", "explorers/base.js", "explorers/latents.js"]
    assert build(explorer_html("latents", "x", data)) == list(zip(names, ("", "defer", "defer"), strict=True))
    build(explorer_html("trade-off", "x", exhibits.trade_off(studies, [portrait])))
    written = tmp_path / "html" / "_static" / "explorers" / "files"
    script = written / f"{chosen['isa-vae'].path.stem}.js"
    assert set(written.iterdir()) == {script, written / f"{portrait.stem}.png"}
    assert data["sides"][0]["bytes"] == script.stat().st_size
    with Image.open(written / f"{portrait.stem}.png") as image:
        shades, tiles = np.asarray(image), Portrait.load(portrait).traversals
    count, starts, steps = tiles.shape[:3]
    assert shades.shape == (starts * count * 64, steps * 64)
    for latent, start, step in np.ndindex(count, starts, steps):  # rows by start, then by latent
        tile = shades[64 * (count * start + latent) :, 64 * step :][:64, :64]
        np.testing.assert_array_equal(tile, tiles[latent, start, step, 0])
    (tmp_path / "runs" / "decoders" / chosen["isa-vae"].path.name).write_bytes(b"no decoder")
    with pytest.raises(pages.PageError, match="is not a decoder"):
        build(explorer_html("latents", "x", data))
    with pytest.raises(pages.PageError, match=r"explorers/none\.js"):
        build('<div data-explorer="none">')


# --- every explorer in the browser ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(studies, chosen, portrait) -> dict[str, dict]:
    """What pages embed, by the name of the explorer, in small."""
    truth, aligned = ica.directions([30.0, 90.0, 150.0]), factor_analysis.aligned_weights()
    return {
        "prior": {
            "trees": [{"label": text, "structure": Node.parse(text).structure} for text in TREES],
            "stops": [0.5, 1.0, 2.0, 2.1, 2.2, 3.0, 6.0, 9.0],
            **{"p0": 2.1, "p1": 2.2, "scale": 1.0, "samples": 300, "presets": [["cone", 1.0, 2.0]]},
        },
        "factor-analysis": {
            **{"betas": [0.1, 0.5, 1.0, 2.0, 5.0, 20.0], "noise_vars": [0.001, 0.01, 0.02], "noise_var": 0.01},
            **{"angle": 45, "n": 100, "variances": np.diag(aligned @ aligned.T) + 0.01},
        },
        "ica": {
            "paths": [[truth * [1, shrink**step, 1] for step in range(13)] for shrink in (0.9, 0.7)],
            "converged": [truth * [1, 0, 1]] * 2,
            "points": np.random.default_rng(0).normal(size=(50, 2)),
            **{"truth": truth, "steps": 4, "limit": 10.0, "threshold": ica.PRUNED, "stopped": 4, "seeds": 3},
            **{"betas": [1.0, 5.0], "alive_stopped": [3.0, 2.5], "alive_converged": [2.0, 2.0]},
        },
        "latents": exhibits.latents(chosen, "ellipse"),
        "trade-off": exhibits.trade_off(studies, [portrait]),
    }


@pytest.fixture(scope="module")
def site(browser, data, chosen, portrait, tmp_path_factory):
    """Open a page with explorers, their scripts and the files that they may ask for."""
    folder = tmp_path_factory.mktemp("site")
    for path in (*(one.path for one in chosen.values()), portrait):
        pages.write(path, folder / "explorers" / "files")

    def start(*names: str) -> Page:
        bodies = [explorer_html(name, f"The {name}", data[name]) for name in names]
        browser.open(write_page(folder, sorted(set(names)), "".join(bodies)))
        settle(browser)
        assert browser.complaints == [] and browser.requests == []
        return browser

    return start


@pytest.fixture(autouse=True)
def _screen(request) -> None:
    if "site" in request.fixturenames:
        arrange(request.getfixturevalue("browser"))


def loaded_files(page: Page) -> set[str]:
    return {path.name for path in page.files if path.parent.name == "files"}


def load_decoders(page: Page) -> None:
    push(page, "Load the decoders")
    wait_for(page, "document.querySelector('.explorer-sides')")


@pytest.fixture(scope="module", params=["prior", "factor-analysis", "ica", "latents", "trade-off"])
def shown(request, site) -> Page:
    page = site(request.param)
    page.name = request.param
    if page.name == "latents":
        load_decoders(page)
    if page.name == "trade-off":
        choose(page, study=0)  # runs without a picture: a canvas with a file on it may not be read
    return page


def test_it_starts_draws_and_describes_itself(shown):
    assert shown.evaluate("document.querySelector('.explorer').className") == "explorer explorer-on"
    assert min(shown.evaluate(INK)) > 0.005
    assert shown.evaluate("document.querySelector('.explorer-paper').offsetParent") is None
    assert "undefined" not in shown.evaluate("document.querySelector('.explorer-stage').innerText")
    values = shown.evaluate("[...document.querySelectorAll('input')].map(c => c.getAttribute('aria-valuetext'))")
    canvases = shown.evaluate(f"{CANVASES}.map(c => [c.getAttribute('role'), c.getAttribute('aria-label').length])")
    assert values and all(values) and all(role == "img" and length > 20 for role, length in canvases)


def test_it_is_as_fine_as_the_screen_and_fits_a_phone(shown):
    sizes = f"{CANVASES}.map(c => [c.width / c.clientWidth, c.height / c.clientHeight])"
    for width, density in ((1000, 1), (800, 3), (390, 2)):
        arrange(shown, width=width, density=density)
        assert np.allclose(shown.evaluate(sizes), density, atol=0.01)
        assert min(shown.evaluate(INK)) > 0.005
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    over = "[...document.querySelectorAll('.explorer *')].filter(e => e.getBoundingClientRect().right > 391).length"
    small = "[...document.querySelectorAll('.explorer input, .explorer select, .explorer button')]"
    assert shown.evaluate(over) == 0 and shown.evaluate(f"{small}.filter(e => e.offsetHeight < 24).length") == 0


def test_it_is_drawn_again_in_the_dark_theme(shown):
    pictures = f"{CANVASES}.map(c => c.toDataURL())"
    light = shown.evaluate(pictures)
    shown.evaluate("document.documentElement.dataset.theme = 'dark'; null")
    settle(shown)
    dark = shown.evaluate(pictures)
    ground = shown.evaluate("getComputedStyle(document.querySelector('.explorer-stage')).backgroundColor")
    shown.evaluate("document.documentElement.dataset.theme = 'light'; null")
    assert all(one != other for one, other in zip(light, dark, strict=True)) and ground == "rgb(20, 24, 30)"


def test_paper_has_a_sentence_instead(shown):
    arrange(shown, media="print")
    visible = "['.explorer-stage', '.explorer-paper', 'noscript'].map(s => document.querySelector(s).offsetHeight > 0)"
    assert shown.evaluate(visible) == [False, True, False]


def test_without_scripts_there_is_a_sentence(site):
    address = site("prior").tab.url
    context = site("prior").tab.context.browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(address)
    sentence = page.locator("noscript p")
    assert sentence.is_visible() and "numbered figure below" in sentence.inner_text()
    context.close()


def test_a_failure_leaves_the_sentence_and_a_message_in_the_console(browser, tmp_path):
    body = explorer_html("ica", "x", {"ways": []})
    browser.open(write_page(tmp_path, ["ica"], body))
    assert len(browser.complaints) == 1 and "TypeError" in browser.complaints[0]
    assert browser.evaluate("document.querySelector('.explorer-paper').offsetHeight") > 10


# --- the prior, factor analysis and ICA -------------------------------------------------------------------------------


def test_prior_by_keyboard(site):
    page = site("prior")
    for slider, key in (("p0", "ArrowRight"), ("p1", "End")):
        press(page, slider, key, 2)
    p0, p1 = (page.evaluate(f"{STATE}.controls.{name}.value") for name in ("p0", "p1"))
    assert (p0, p1) == (3.0, 9.0)
    assert page.evaluate(f"{STATE}.controls.p0.input.previousSibling.textContent") == "3"
    press(page, "tree", "ArrowDown")
    wide = [torch.tensor(p, dtype=torch.float64) for p in (p0, *[p1] * 5)]
    prior = LpNested(Node.parse("2.1[5*2.2[4]]").with_exponents(wide), 1.0)
    expected = {"mode": prior.log_prob(torch.zeros(20).double()).item(), "entropy": prior.entropy().item()}
    found = page.evaluate(VALUES)
    text = page.evaluate("document.querySelector('.explorer-numbers').innerText").replace("\N{MINUS SIGN}", "-")
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-8) and f"{value:.4f}" in text
    before = page.evaluate(INK)
    push(page, "cone")
    assert page.evaluate(f"[{STATE}.controls.p0.value, {STATE}.controls.p1.value]") == [1.0, 2.0]
    assert page.evaluate(INK) != before


def test_factor_analysis_by_keyboard(site, data):
    page = site("factor-analysis")
    cov = np.diag(data["factor-analysis"]["variances"])
    press(page, "angle", "ArrowLeft", 15)
    press(page, "beta", "ArrowRight")
    press(page, "noise", "ArrowRight")
    angle, beta, noise, n = math.radians(30), 2.0, 0.02, 100
    for lengths, convention in ((1.0, 13), (beta, 13), (beta, 16), (1.0, 16)):
        press(page, "lengths", "ArrowDown" if lengths == beta else "ArrowUp")
        press(page, "convention", "ArrowDown" if convention == 16 else "ArrowUp")
        W = factor_analysis.rotate(factor_analysis.optimal_weights(cov, noise, 2, lengths), angle)
        weight = beta if convention == 13 else 1.0
        expected = {
            "likelihood": factor_analysis.log_likelihood(W, noise, cov, n),
            "energy": weight * factor_analysis.replicated_free_energy(W, noise, cov, n, beta),
            "gap": weight * factor_analysis.mean_field_gap(W, noise, n, beta),
        }
        found = page.evaluate(VALUES)
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-9, abs=1e-9)
        text = page.evaluate("document.querySelector('.explorer-numbers').innerText").replace("\N{MINUS SIGN}", "-")
        assert f"{expected['energy']:.2f}" in text and f"{expected['likelihood']:.2f}" in text


def test_ica_by_keyboard(site):
    page = site("ica")
    press(page, "beta", "ArrowRight")
    press(page, "steps", "ArrowRight", 3)
    W = ica.directions([30.0, 90.0, 150.0]) * [1, 0.7**7, 1]
    found = page.evaluate(VALUES)
    assert found["alive"] == ica.survivors(W).sum() == found["aliveEnd"] == 2
    assert found["angle"] == pytest.approx(ica.widest_pair(W))
    assert found["ratio"] == pytest.approx(0.7**7) and found["pruned"] == "7"
    words = page.evaluate(f"{STATE}.pending")
    assert words.startswith("β = 5 after 7 steps") and "two directions alive" in words


def test_playing_shows_every_step_or_jumps_where_motion_is_unwelcome(site):
    page = site("ica")
    arrange(page, prefers_reduced_motion="no-preference")
    seen = page.evaluate(
        f"new Promise(done => {{ const {{ steps }} = {STATE}.controls; const seen = [];"
        "const button = document.querySelector('.explorer-buttons button'); button.click();"
        "seen.push(button.textContent);"
        "new MutationObserver(() => done([...seen, button.textContent])).observe(button, { childList: true });"
        "steps.input.addEventListener('input', () => seen.push(steps.value)); })"
    )
    assert seen == ["Pause", *range(5, 13), "Play the steps"]
    choose(page, steps=4)
    arrange(page, prefers_reduced_motion="reduce")
    push(page, "Play the steps")
    assert page.evaluate(f"{STATE}.controls.steps.value") == 12
    assert page.evaluate("document.querySelector('.explorer-buttons button').textContent") == "Play the steps"


def test_prior_by_touch(site):
    page = site("prior")
    arrange(page, width=390, density=2)
    page.send("Emulation.setTouchEmulationEnabled", enabled=True)
    where = "(() => { const e = {}; e.scrollIntoView({ block: 'center' });"
    where += "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
    try:
        x, y, width, height = page.evaluate(where.replace("{}", f"{STATE}.controls.p0.input", 1))
        touch(page, (x + 0.99 * width, y + height / 2))
        assert page.evaluate(f"{STATE}.controls.p0.value") == 9.0
        x, y, *_ = page.evaluate(where.replace("{}", "document.querySelector('.explorer-turns')", 1))
        before = page.evaluate(f"{STATE}.controls.turn.value")
        touch(page, *((x + 40 + 12 * step, y + 60) for step in range(7)))
        assert page.evaluate(f"{STATE}.controls.turn.value") != before
    finally:
        page.send("Emulation.setTouchEmulationEnabled", enabled=False)


def test_only_the_last_description_is_announced(site):
    page = site("factor-analysis")
    assert page.evaluate("document.querySelector('.explorer-words').getAttribute('role')") == "status"
    first, announced = page.evaluate(
        "new Promise(done => { const words = document.querySelector('.explorer-words');"
        "const first = words.textContent;"
        "new MutationObserver(() => done([first, words.textContent])).observe(words, { childList: true });"
        f"for (let angle = 1; angle <= 10; angle++) {{ {STATE}.controls.angle.value = angle; {STATE}.update(); }} }})"
    )
    assert first.startswith("Turned by 45 degrees") and announced.startswith("Turned by 10 degrees")


# --- decoders ---------------------------------------------------------------------------------------------------------


def test_page_draws_what_python_draws(site, data, chosen):
    page = site("latents")
    assert not loaded_files(page), "a decoder was loaded before it was asked for"
    assert page.evaluate("document.querySelectorAll('input').length") == 0
    load_decoders(page)
    assert loaded_files(page) == {f"{one.path.stem}.js" for one in chosen.values()}
    decoders = [one.decoder for one in chosen.values()]

    def compare(*latents: torch.Tensor) -> None:
        for found, decoder, z in zip(page.evaluate(PIXELS), decoders, latents, strict=True):
            np.testing.assert_allclose(found, decoder.decode(z[None]).sigmoid().flatten(), atol=1e-4)

    sides, start = data["latents"]["sides"], data["latents"]["start"]
    labels = page.evaluate("[...document.querySelectorAll('.explorer-sides label')].map(e => e.textContent)")
    sliders = [slider for side in sides for slider in side["sliders"]]
    assert labels == [f"z{one['latent'] + 1} {one['factor']}, {one['nats']:.1f} nats" for one in sliders]
    at = [decoder.tensors["starts"][start].clone() for decoder in decoders]
    compare(*at)
    slider, k = sides[1]["sliders"][0], sides[1]["sliders"][0]["latent"]
    words = (
        f"z{k + 1}, which is most informative about {slider['factor']}, is {slider['high']:.2f}; it was {at[1][k]:.2f} "
    )
    press(page, f"ISA-VAE-z{k + 1}", "End")
    at[1][k] = slider["high"]
    compare(*at)
    assert f"ISA-VAE: {words}" in page.evaluate(f"{STATE}.pending").replace("\N{MINUS SIGN}", "-")
    slider, k = sides[0]["sliders"][1], sides[0]["sliders"][1]["latent"]
    press(page, f"β-VAE-z{k + 1}", "Home")
    at[0][k] = slider["low"]
    compare(*at)
    push(page, "Back to the start")
    compare(*(decoder.tensors["starts"][start] for decoder in decoders))
    choose(page, start=1 - start)
    compare(*(decoder.tensors["starts"][1 - start] for decoder in decoders))
    assert page.complaints == [] and page.requests == []


def test_missing_decoder(browser, data, tmp_path):
    browser.open(write_page(tmp_path, ["latents"], explorer_html("latents", "x", data["latents"])))
    push(browser, "Load the decoders")
    wait_for(browser, "!document.querySelector('button').disabled")
    words = browser.evaluate(f"{STATE}.pending")
    assert words == "The decoders are not available: a file could not be loaded."
    assert browser.evaluate("document.querySelectorAll('input').length") == 0


# --- records ----------------------------------------------------------------------------------------------------------


def chosen_run(page: Page) -> tuple[str, str]:
    return tuple(page.evaluate(f"(v => [v.run, v.mig.split(' ')[0]])({VALUES})"))


def test_runs_by_keyboard_and_filters(site, data):
    page, data = site("trade-off"), data["trade-off"]
    first = data["runs"][data["first"]]
    assert chosen_run(page) == named(data, first)
    choose(page, study=0)
    full = selected(data, study=0)
    press(page, "run", "Home")
    for run in full[:9]:
        assert chosen_run(page) == named(data, run)
        press(page, "run", "ArrowRight")
    press(page, "run", "End")
    last = named(data, full[-1])
    assert chosen_run(page) == last
    assert page.evaluate(f"{STATE}.controls.run.input.getAttribute('aria-valuetext')") == last[0]
    assert page.evaluate(f"{STATE}.pending").startswith(f"{last[0]}, 7,200 steps of 2,048: MIG ")
    push(page, "Highest MIG in view")
    best = max(full, key=lambda run: run["mig"])
    assert chosen_run(page) == named(data, best)

    many = f"Number({STATE}.controls.run.input.max) + 1"
    kind = {name: best[name] for name in ("method", "beta", "seed")}
    for number in range(4):
        values = dict(list(kind.items())[:number])
        choose(page, **values)
        assert page.evaluate(many) == len(selected(data, study=0, **values)) and chosen_run(page) == named(data, best)
    every = itertools.product(*({run[name] for run in full} for name in kind))
    kinds = [dict(zip(kind, values, strict=True)) for values in every]
    choose(page, **next(one for one in kinds if not selected(data, study=0, **one)))
    assert page.evaluate(f"{STATE}.pending") == "No recorded run passes these filters."
    assert page.evaluate(f"{STATE}.controls.run.input.disabled")
    push(page, "All runs")
    assert page.evaluate(many) == len(full) and not page.evaluate(f"{STATE}.controls.run.input.disabled")
    choose(page, study=first["study"])
    assert page.evaluate(many) == len(selected(data, study=first["study"]))
    assert "reduced" in page.evaluate(f"{VALUES}.trained") and "reduced" in page.evaluate(f"{STATE}.pending")


@pytest.mark.parametrize("width", [1000, 390], ids=["click", "tap"])
def test_a_mark_chooses_its_run(site, data, width):
    page, data = site("trade-off"), data["trade-off"]
    arrange(page, width=width)
    runs = selected(data, study=0, method=0, beta=3)
    choose(page, study=0, method=0, beta=3)
    points = page.evaluate(
        f"(() => {{ const canvas = document.querySelector('canvas'); canvas.scrollIntoView({{ block: 'center' }});"
        f"const b = canvas.getBoundingClientRect(); return {STATE}.marks().map(([x, y]) => [b.x + x, b.y + y]); }})()"
    )
    page.send("Emulation.setTouchEmulationEnabled", enabled=width == 390)
    try:
        for run, point in zip(runs, points, strict=True):
            touch(page, point) if width == 390 else page.click(*point)
            settle(page)
            assert chosen_run(page) == named(data, run)
    finally:
        page.send("Emulation.setTouchEmulationEnabled", enabled=False)
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
