"""Interactive figures: their data, the files beside their pages, and their use by keyboard, touch and screen reader."""

from __future__ import annotations

import json
import math
import shutil
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
from edition.explorers.decoders import CompressedDecoder
from isa import LpNested, Node
from isa.data import Factor
from isa.latents import Portrait, View
from isa.run import Run
from isa.toys import factor_analysis, ica

FACTORS = ("scale", "orientation", "x", "y")
STARTS = ("dark", "light")
WEIGHTS = factor_analysis.aligned_weights()
VARIANCES = np.diag(WEIGHTS @ WEIGHTS.T) + 0.01
PIXELS = f"{VALUES}.map(side => Array.from(side.pixels))"
CANVASES = "[...document.querySelectorAll('canvas')].filter(canvas => canvas.offsetParent)"
INK = (
    CANVASES
    + """.map(canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let drawn = 0;
  for (let i = 3; i < data.length; i += 4) drawn += data[i] > 0;
  return drawn / (canvas.width * canvas.height);
})"""
)


# --- made-up records, portraits and decoders --------------------------------------------------------------------------


def record(run: Run, status: str = "trained") -> dict:
    """Return a record of a run that was never trained."""
    rng = np.random.default_rng(int(run.hash, 16) % 2**32)
    gaps = rng.uniform(0, 0.5, len(FACTORS))
    fit = -20 - 4 * run.beta + rng.normal() - 60 * run.reduced
    measured = {"mig": float(gaps.mean()), **{f"mig_{f}": float(g) for f, g in zip(FACTORS, gaps, strict=True)}}
    measured |= {"log_likelihood": float(fit), "elbo": float(fit - 20), "active_units": int(rng.integers(3, 12))}
    return {
        **{"hash": run.hash, "key": run.key, "status": status, **run.to_dict()},
        **{"total_steps": run.total_steps, "reduced": run.reduced, "mig_standard_error": 0.001},
        **{"exponents": None if run.tree is None else list(run.tree.exponents), "factors": list(FACTORS)},
        **{"train_seconds": 320.0, "pack_size": 16, "device": "a GPU", "commit": "0123456789abcdef-dirty"},
        **({name: None for name in measured} if status == "diverged" else measured),
    }


def records() -> list[list[dict]]:
    full = [Run(objective=o, beta=b, seed=s) for o in ("isa-vae", "beta-vae") for b in (1, 3) for s in (2, 0, 1)]
    full += [Run(objective="beta-tcvae", beta=3, seed=s) for s in (0, 1)]
    full += [Run(objective="factor-vae", beta=5)]
    small = [Run(objective="isa-vae", seed=s, steps=20) for s in (0, 1)]
    diverged = record(Run(objective="beta-vae", seed=9), "diverged")
    return [[*map(record, full), diverged], [*map(record, small), record(full[0])]]


def save_portrait(folder: Path, row: dict, channels: int = 1) -> Path:
    """Save a portrait of three latents, of which the third is about x, the first about y, and the second inactive."""
    rng = np.random.default_rng(channels)
    factors = (Factor("kind", np.array(STARTS)), Factor("x", np.arange(4)), Factor("y", np.arange(4)))
    images = rng.integers(0, 256, (2, 2, 8, channels, 64, 64), np.uint8)  # latents, starts, steps
    portrait = Portrait(
        about=row,
        factors=factors,
        view=View("kind"),
        scored=("x", "y"),
        **{name: np.zeros(3, np.float32) for name in ("mean", "deviation", "noise")},
        mutual_information=np.array([[0.1, 0, 1.25], [0.5, 0, 0.2]], np.float32),
        curves={factor.name: np.zeros((3, 1, factor.size), np.float32) for factor in factors},
        plane=None,
        shown=np.array([2, 0]),
        values=np.linspace([-2, -1], [2, 3], 8, axis=1, dtype=np.float32),
        originals=images[0, :, 0],
        reconstructions=images[0, :, 0],
        traversals=images,
    )
    return portrait.save(folder / "portraits" / f"{row['key']}.npz")


def save_decoder(folder: Path, run: Run, channels: int, likelihood: str) -> Path:
    """Save a decoder of two layers with random weights, and a portrait of the same name."""
    rng, rank, pixels = np.random.default_rng(channels), 4, channels * 64**2
    tensors = {
        "0.weight": rng.normal(size=(10, 3)),
        "0.bias": rng.normal(size=10),
        "1.down": rng.integers(-127, 128, (rank, 10)),
        "1.down.scale": rng.uniform(0.001, 0.01, rank),
        "1.up": rng.integers(-127, 128, (pixels, rank)),
        "1.up.scale": rng.uniform(0.001, 0.01, pixels),
        "1.bias": rng.normal(size=pixels),
        "starts": np.array([[0.1, -0.2, 0.3], [-0.5, 0.5, 1.5]]),
    }
    plain = {
        name: torch.tensor(x, dtype=torch.float32 if x.dtype == float else torch.int8) for name, x in tensors.items()
    }
    save_portrait(folder, record(run), channels)
    decoder = CompressedDecoder(plain, (channels, 64, 64), likelihood)
    return decoder.save(folder / "decoders" / f"{run.key}.safetensors")


@pytest.fixture(scope="module")
def portrait(tmp_path_factory) -> Path:
    """A portrait of the last reduced run."""
    return save_portrait(tmp_path_factory.mktemp("records"), records()[1][1])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """Two decoders, one of grey logits and one of colours."""
    folder = tmp_path_factory.mktemp("runs")
    kinds = (("beta-vae", 1, "bernoulli"), ("isa-vae", 3, "gaussian"))
    return [save_decoder(folder, Run(objective=name, steps=20), *kind) for name, *kind in kinds]


# --- data -------------------------------------------------------------------------------------------------------------


def test_runs():
    data = exhibits.trade_off(records())
    runs = data["runs"]
    rows = {row["hash"]: row for study in records() for row in study if row["status"] == "trained"}
    assert len(runs) == len(rows) == 17 and {run["hash"] for run in runs} == set(rows)
    for run in runs:
        row = rows[run["hash"]]
        assert run["mig"] == pytest.approx(row["mig"], abs=1e-5) and run["beta"] == row["beta"]
        assert run["gaps"] == pytest.approx([row[f"mig_{f}"] for f in FACTORS], abs=1e-4)
        assert run["fit"] == pytest.approx(row["log_likelihood"], abs=1e-3) and run["seconds"] == 20.0
        study = data["studies"][run["study"]]
        assert study["reduced"] == row["reduced"] == ("reduced" in study["title"])
        assert f"{row['total_steps']:,} steps" in study["title"] and run["commit"] == "0123456789ab-dirty"
    order = [(run["study"], run["method"], run["beta"], run["seed"]) for run in runs]
    assert order == sorted(order)
    assert [one["label"] for one in data["methods"]] == ["β-VAE", "ISA-VAE", "β-TCVAE", "FactorVAE"]
    assert [one["weight"] for one in data["methods"]] == ["β", "β", "β", "γ"]
    assert runs[data["first"]]["mig"] == max(run["mig"] for run in runs if run["study"] == 0)
    json.dumps(data, allow_nan=False)


def test_means():
    data = exhibits.trade_off(records())
    found = {(one["study"], one["method"], one["beta"]): one for one in data["means"]}
    assert len(found) == len(data["means"]) == 8
    tcvae = next(number for number, one in enumerate(data["methods"]) if one["label"] == "β-TCVAE")
    for (study, method, beta), one in found.items():
        kind = [study, 0 if (method, beta) == (tcvae, 1) else method, beta]  # at beta = 1 its runs are the plain ones
        runs = [run for run in data["runs"] if [run["study"], run["method"], run["beta"]] == kind]
        for name in ("fit", "mig"):
            values = np.array([run[name] for run in runs])
            assert one["n"] == len(values) and one[name] == pytest.approx(values.mean(), abs=2e-3)
            error = None if len(values) == 1 else pytest.approx(values.std(ddof=1) / len(values) ** 0.5, abs=2e-3)
            assert one[f"{name}_error"] == error


def test_portrait_of_a_run(portrait, tmp_path):
    data = exhibits.trade_off(records(), [portrait, tmp_path / f"other-{'0' * 16}.npz"])
    (run,) = (run for run in data["runs"] if run["hash"] in data["portraits"])
    expected = {"file": f"runs/portraits/{portrait.name}", "bases": STARTS, "steps": 8, "size": (64, 64)}
    assert data["portraits"][run["hash"]] == expected | {"latents": [[2, "x", 1.25], [0, "y", 0.5]]}
    assert data["runs"][data["first"]] == run


def test_longest_training_is_chosen(files, tmp_path):
    chosen = exhibits.choose(files, ["isa-vae", "beta-vae", "factor-vae"], 1.0)
    assert list(chosen) == ["isa-vae", "beta-vae"] and not exhibits.choose(files, ["isa-vae"], 2.0)
    full = save_decoder(tmp_path, Run(objective="beta-vae"), 1, "bernoulli")
    assert exhibits.choose([*files, full], ["beta-vae"], 1.0)["beta-vae"].path == full


def test_standing():
    studies = records()
    rows = [row for row in studies[0] if row["objective"] == "isa-vae" and row["beta"] == 1]
    chosen = rows.pop(stats.representative([r["mig"] for r in rows], [r["log_likelihood"] for r in rows]))
    expected = {
        "stands for 3 recorded runs": chosen,
        f"one of 3 recorded runs, for which seed {chosen['seed']} would stand": rows[0],
        "the only one recorded": studies[0][-2],
        "not among the records of this page": record(Run(seed=99)),
    }
    assert {exhibits.standing(row, studies): row for row in expected.values()} == expected


def test_build_writes_what_a_page_loads(files, portrait, tmp_path):
    shutil.copytree(files[0].parent.parent, tmp_path / "runs")
    shutil.copy(portrait, tmp_path / "runs" / "portraits")
    scripts, options = [], {"builder": SimpleNamespace(format="html"), "srcdir": tmp_path, "outdir": tmp_path / "html"}
    options |= {"confdir": ROOT, "config": SimpleNamespace(html_static_path=["book/_static"])}
    options["add_js_file"] = lambda name, loading_method: scripts.append((name, loading_method))
    app = SimpleNamespace(**options, add_css_file=lambda name: scripts.append((name, "")))

    def build(body: str) -> list[tuple[str, str]]:
        scripts.clear()
        pages.add_explorers(app, "book/page", "page.html", {"body": body}, None)
        return scripts

    decoders = exhibits.choose((tmp_path / "runs" / "decoders").iterdir(), ["beta-vae"], 1.0)
    latents = explorer_html("latents", "x", exhibits.latents(decoders))
    data = exhibits.trade_off(records(), [tmp_path / "runs" / "portraits" / portrait.name])
    assert build("<p>a page without an explorer</p>") == []
    names = ["explorers/explorers.css", "explorers/base.js", "explorers/latents.js"]
    assert build(latents) == list(zip(names, ("", "defer", "defer"), strict=True))
    build(explorer_html("trade-off", "x", data))
    written = tmp_path / "html" / "_static" / "explorers" / "files"
    assert sorted(path.name for path in written.iterdir()) == sorted([f"{files[0].stem}.js", f"{portrait.stem}.png"])
    assert exhibits.latents(decoders)["sides"][0]["bytes"] == (written / f"{files[0].stem}.js").stat().st_size
    with Image.open(written / f"{portrait.stem}.png") as image:
        shades, tiles = np.asarray(image), Portrait.load(portrait).traversals
    assert shades.shape == (2 * 2 * 64, 8 * 64)
    for latent, start, step in np.ndindex(2, 2, 8):  # rows by start, then by latent
        tile = shades[64 * (2 * start + latent) :, 64 * step :][:64, :64]
        np.testing.assert_array_equal(tile, tiles[latent, start, step, 0])
    (tmp_path / "runs" / "decoders" / files[0].name).write_bytes(b"no decoder")
    with pytest.raises(pages.PageError, match="is not a decoder"):
        build(latents)
    with pytest.raises(pages.PageError, match=r"explorers/none\.js"):
        build('<div data-explorer="none">')


# --- every explorer in the browser ------------------------------------------------------------------------------------


def data_of(name: str, files: list[Path], portrait: Path) -> dict:
    """Return what a page would embed, in small."""
    if name == "latents":
        return exhibits.latents(exhibits.choose(files, ["beta-vae", "isa-vae"], 1.0), "light")
    if name == "trade-off":
        return exhibits.trade_off(records(), [portrait])
    if name == "prior":
        trees = [{"label": text, "structure": Node.parse(text).structure} for text in ("2[1, 1.5[2]]", "2.1[5*2.2[4]]")]
        rest = {"p0": 2.1, "p1": 2.2, "scale": 1.0, "samples": 300, "stops": [0.5, 1.0, 2.0, 2.1, 2.2, 3.0, 6.0, 9.0]}
        return rest | {"trees": trees, "presets": [["cone", 1.0, 2.0]]}
    if name == "factor-analysis":
        betas, noises = [0.1, 0.5, 1.0, 2.0, 5.0, 20.0], [0.001, 0.01, 0.02]
        rest = {"betas": betas, "noise_vars": noises, "noise_var": 0.01, "angle": 45}
        return rest | {"n": 100, "variances": VARIANCES}
    truth = ica.directions([30.0, 90.0, 150.0])
    paths = [[truth * [1, shrink**step, 1] for step in range(13)] for shrink in (0.9, 0.7)]
    points = np.random.default_rng(0).normal(size=(50, 2))
    rest = {"steps": 4, "limit": 10.0, "threshold": ica.PRUNED, "stopped": 4, "seeds": 3, "betas": [1.0, 5.0]}
    rest |= {"alive_stopped": [3.0, 2.5], "alive_converged": [2.0, 2.0], "converged": [truth * [1, 0, 1]] * 2}
    return rest | {"paths": paths, "truth": truth, "points": points}


@pytest.fixture(scope="module")
def site(browser, files, portrait, tmp_path_factory):
    """Open a page with explorers, their scripts and the files that they may ask for."""
    folder = tmp_path_factory.mktemp("site")
    for path in (*files, portrait):
        pages.write(path, folder / "explorers" / "files")

    def start(*names: str) -> Page:
        bodies = [explorer_html(name, f"The {name}", data_of(name, files, portrait)) for name in names]
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


def test_it_starts_and_draws(shown):
    assert shown.evaluate("document.querySelector('.explorer').className") == "explorer explorer-on"
    assert min(shown.evaluate(INK)) > 0.005
    assert shown.evaluate("document.querySelector('.explorer-paper').offsetParent") is None
    assert "undefined" not in shown.evaluate("document.querySelector('.explorer-stage').innerText")


def test_everything_has_a_name(shown):
    found = shown.evaluate(
        "(() => { const q = s => [...document.querySelectorAll(s)]; return {"
        "controls: q('.explorer input, .explorer select').map(c => [...c.labels].map(l => l.textContent).join()),"
        "valued: q('.explorer input').map(c => c.getAttribute('aria-valuetext')),"
        "buttons: q('.explorer button').map(b => b.textContent),"
        "canvases: q('canvas').map(c => c.getAttribute('role') + ' ' + c.getAttribute('aria-label')),"
        "ids: q('[id]').map(e => e.id), region: q('.explorer').map(e => e.getAttribute('aria-label')) }; })()"
    )
    for kind in ("controls", "valued", "canvases"):
        assert found[kind] and all(text.strip() for text in found[kind]), kind
    assert all(found["buttons"]) and all(text.startswith("img ") and len(text) > 25 for text in found["canvases"])
    assert len(found["ids"]) == len(set(found["ids"]))
    assert found["region"] == [f"The {shown.name}"]


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


def test_two_on_one_page_have_their_own_controls(site):
    page = site("factor-analysis", "factor-analysis")
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert ids and len(ids) == len(set(ids))
    assert page.evaluate("document.querySelectorAll('.explorer-on').length") == 2


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
    kurtosis = prior.absolute_moment(4)[0] / prior.variance[0] ** 2 - 3
    expected = {
        "logSurface": prior.tree.log_surface().item(),
        "mode": prior.log_prob(torch.zeros(20, dtype=torch.float64)).item(),
        "entropy": prior.entropy().item(),
        "variance": prior.variance[0].item(),
        "kurtosis": kurtosis.item(),
    }
    found = page.evaluate(VALUES)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-8)
    text = page.evaluate("document.querySelector('.explorer-numbers').innerText").replace("\N{MINUS SIGN}", "-")
    assert f"{expected['entropy']:.4f}" in text and f"{expected['mode']:.4f}" in text
    before = page.evaluate(INK)
    push(page, "cone")
    assert page.evaluate(f"[{STATE}.controls.p0.value, {STATE}.controls.p1.value]") == [1.0, 2.0]
    assert page.evaluate(INK) != before


def test_factor_analysis_by_keyboard(site):
    page = site("factor-analysis")
    press(page, "angle", "ArrowLeft", 15)
    press(page, "beta", "ArrowRight")
    press(page, "noise", "ArrowRight")
    angle, beta, noise, n, cov = math.radians(30), 2.0, 0.02, 100, np.diag(VARIANCES)
    for lengths, convention in ((1.0, 13), (beta, 13), (beta, 16), (1.0, 16)):
        press(page, "lengths", "ArrowDown" if lengths == beta else "ArrowUp")
        press(page, "convention", "ArrowDown" if convention == 16 else "ArrowUp")
        W = factor_analysis.rotate(factor_analysis.optimal_weights(cov, noise, 2, lengths), angle)
        terms = factor_analysis.free_energy_terms(W, noise, cov, n, beta)
        weight = beta if convention == 13 else 1.0
        expected = {
            "likelihood": factor_analysis.log_likelihood(W, noise, cov, n),
            "bound": weight * factor_analysis.replicated_log_likelihood(W, noise, cov, n, beta),
            "energy": weight * factor_analysis.replicated_free_energy(W, noise, cov, n, beta),
            "gap": weight * factor_analysis.mean_field_gap(W, noise, n, beta),
            "reconstruction": terms.reconstruction,
            "kl": terms.kl,
            "lower": terms.reconstruction - terms.kl,
        }
        assert page.evaluate(VALUES) == pytest.approx(expected, rel=1e-9, abs=1e-9)
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


def test_page_draws_what_python_draws(site, files):
    page = site("latents")
    assert not loaded_files(page), "a decoder was loaded before it was asked for"
    assert page.evaluate("document.querySelectorAll('input').length") == 0
    load_decoders(page)
    chosen = exhibits.choose(files, ["beta-vae", "isa-vae"], 1.0).values()
    assert loaded_files(page) == {f"{one.path.stem}.js" for one in chosen}

    def compare(*latents: list[float]) -> None:
        for found, one, z in zip(page.evaluate(PIXELS), chosen, latents, strict=True):
            outputs = one.decoder.decode(torch.tensor([z])).flatten()
            expected = outputs.sigmoid() if one.decoder.likelihood == "bernoulli" else outputs
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

    start = [-0.5, 0.5, 1.5]
    compare(start, start)
    press(page, "ISA-VAE-z3", "End")
    compare(start, [-0.5, 0.5, 2.0])
    words = page.evaluate(f"{STATE}.pending")
    assert words.startswith("ISA-VAE: z3, which knows most of x, is 2.00; it was 1.50 at the start")
    press(page, "β-VAE-z1", "Home")
    compare([-1.0, 0.5, 1.5], [-0.5, 0.5, 2.0])
    push(page, "Back to the start")
    compare(start, start)
    choose(page, start=0)
    compare([0.1, -0.2, 0.3], [0.1, -0.2, 0.3])
    z = 2 * torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    for number, one in enumerate(chosen):
        found = page.evaluate(f"{json.dumps(z.tolist())}.map(z => Array.from({VALUES}[{number}].decoder.decode(z)))")
        np.testing.assert_allclose(found, one.decoder.decode(z).flatten(1), rtol=1e-4, atol=1e-4)
    assert page.complaints == [] and page.requests == []


def test_sliders_have_names_and_values_in_words(site):
    page = site("latents")
    load_decoders(page)
    found = page.evaluate(
        "[...document.querySelectorAll('.explorer-sides [role=group]')].map(g => [g.getAttribute('aria-label'),"
        "[...g.querySelectorAll('input')].map(i => [i.labels[0].textContent, i.getAttribute('aria-valuetext')])])"
    )
    labels = [f"{label}, β = 1, seed 0, 20 steps of 2,048, reduced" for label in ("β-VAE", "ISA-VAE")]
    assert [name for name, _ in found] == labels
    for _, sliders in found:
        assert [label for label, _ in sliders] == ["z3 x, 1.3 nats", "z1 y, 0.5 nats"]
        assert [float(value.replace("−", "-")) for _, value in sliders] == pytest.approx([1.5, -0.5], abs=0.03)


def test_missing_decoder(browser, files, portrait, tmp_path):
    body = explorer_html("latents", "x", data_of("latents", files, portrait))
    browser.open(write_page(tmp_path, ["latents"], body))
    push(browser, "Load the decoders")
    wait_for(browser, "!document.querySelector('button').disabled")
    words = browser.evaluate(f"{STATE}.pending")
    assert words == "The decoders are not here: its file could not be loaded."
    assert browser.evaluate("document.querySelectorAll('input').length") == 0


# --- records ----------------------------------------------------------------------------------------------------------


def named(data: dict, run: dict) -> tuple[str, str]:
    """Return the name of a run and its MIG as the page shows them."""
    method = data["methods"][run["method"]]
    return f"{method['label']}, {method['weight']} = {run['beta']:g}, seed {run['seed']}", f"{run['mig']:.3f}"


def chosen_run(page: Page) -> tuple[str, str]:
    return tuple(page.evaluate(f"(v => [v.run, v.mig.split(' ')[0]])({VALUES})"))


def test_runs_by_keyboard_and_filters(site, portrait):
    page = site("trade-off")
    data = exhibits.trade_off(records(), [portrait])
    assert chosen_run(page) == named(data, data["runs"][data["first"]])
    choose(page, study=0)
    full = [run for run in data["runs"] if run["study"] == 0]
    press(page, "run", "Home")
    for run in full:
        assert chosen_run(page) == named(data, run)
        press(page, "run", "ArrowRight")
    last = named(data, full[-1])
    assert chosen_run(page) == last
    assert page.evaluate(f"{STATE}.controls.run.input.getAttribute('aria-valuetext')") == last[0]
    assert page.evaluate(f"{STATE}.pending").startswith(f"{last[0]}, 7,200 steps of 2,048: MIG ")
    push(page, "Highest MIG in view")
    assert chosen_run(page) == named(data, max(full, key=lambda run: run["mig"]))

    many = f"Number({STATE}.controls.run.input.max) + 1"
    assert page.evaluate(many) == 15
    choose(page, method=1)
    assert page.evaluate(many) == 6 and chosen_run(page)[0].startswith("ISA-VAE")
    choose(page, beta=3, seed=2)
    assert page.evaluate(many) == 1 and chosen_run(page)[0] == "ISA-VAE, β = 3, seed 2"
    before = chosen_run(page)
    choose(page, beta=5)
    assert page.evaluate(f"{STATE}.pending") == "No recorded run passes these filters."
    assert page.evaluate(f"{STATE}.controls.run.input.disabled")
    push(page, "All runs")
    assert page.evaluate(many) == 15 and not page.evaluate(f"{STATE}.controls.run.input.disabled")
    choose(page, method=1, beta=3, seed=2)
    assert chosen_run(page) == before
    choose(page, method=None, beta=None, seed=None, study=1)
    assert page.evaluate(many) == 2
    assert "reduced" in page.evaluate(f"{VALUES}.trained") and "reduced" in page.evaluate(f"{STATE}.pending")


@pytest.mark.parametrize("width", [1000, 390], ids=["click", "tap"])
def test_a_mark_chooses_its_run(site, width):
    page = site("trade-off")
    arrange(page, width=width)
    choose(page, study=0, method=0, beta=3)
    points = page.evaluate(
        f"(() => {{ const canvas = document.querySelector('canvas'); canvas.scrollIntoView({{ block: 'center' }});"
        f"const b = canvas.getBoundingClientRect(); return {STATE}.marks().map(([x, y]) => [b.x + x, b.y + y]); }})()"
    )
    assert len(points) == 3
    page.send("Emulation.setTouchEmulationEnabled", enabled=width == 390)
    try:
        for number, point in enumerate(points):
            touch(page, point) if width == 390 else page.click(*point)
            settle(page)
            assert chosen_run(page)[0] == f"β-VAE, β = 3, seed {number}"
    finally:
        page.send("Emulation.setTouchEmulationEnabled", enabled=False)
    assert page.evaluate(f"document.activeElement === {STATE}.controls.run.input"), "arrow keys do not continue"


def test_traversals_are_loaded(site, portrait):
    page = site("trade-off")
    assert loaded_files(page) == {f"{portrait.stem}.png"}  # of the run that is chosen at first
    wait_for(page, f"{STATE}.pictured()")
    assert page.evaluate(f"{STATE}.pictured()") == [8 * 64, 2 * 2 * 64]
    label = page.evaluate("[...document.querySelectorAll('canvas')].at(-1).getAttribute('aria-label')")
    assert label.startswith("Traversals of ISA-VAE, β = 1, seed 1") and "nats of" in label
    choose(page, study=0)
    panel = "getComputedStyle([...document.querySelectorAll('.explorer-panel')].at(-1)).display"
    assert page.evaluate(panel) == "none"
    choose(page, study=1, seed=1)
    assert page.evaluate(panel) != "none"
    assert page.complaints == [] and page.requests == []
