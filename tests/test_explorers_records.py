"""The explorers of records and trained models: what they are given, what they show, what they load when asked."""

from __future__ import annotations

import base64
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_sweep
import torch
from browser import Page
from PIL import Image
from test_decoders import posteriors, vae

from edition import stats
from edition.explorers import exhibits, explorer_html
from edition.explorers.decoders import compress
from isa import engine, latents
from isa.results import Result
from isa.run import Run

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "book" / "_static" / "explorers"
FACTORS = ("scale", "orientation", "x", "y")
FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 0))))"
STATE = "document.querySelector('.explorer').explorer"
VALUES = f"{STATE}.values.values"


# --- made-up records and decoders -------------------------------------------------------------------------------------


def record(run: Run, status: str = "trained") -> dict:
    """A record of a run that nobody trained."""
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


@pytest.fixture(scope="module")
def tiny() -> Result:
    run = Run(dataset="cars3d", model="small", latent_dim=3, batch_size=16, steps=60, precision="fp32")
    return engine.train(run, dataset=tiny_sweep.DATASET, device="cpu", progress=False)


@pytest.fixture(scope="module")
def portrait(tiny, tmp_path_factory) -> Path:
    """A portrait in the name of the last reduced run."""
    row = records()[1][1]
    picture = latents.portrait(tiny, tiny_sweep.DATASET)
    picture = replace(picture, about=picture.about | {"hash": row["hash"], "key": row["key"]})
    return picture.save(tmp_path_factory.mktemp("portraits") / f"{row['key']}.npz")


def about(run: Run, channels: int) -> dict:
    """What an export would say of a model."""
    row = record(run) | {"images_title": "squares", "procedural": True}
    z = [[0.1, -0.2, 0.3], [-0.5, 0.5, 1.5]]
    image = [np.full(channels * 4096, grey, np.uint8).tobytes() for grey in (0, 255)]
    names = ("dark", "light")
    return {
        "run": row,
        "sliders": [
            {"latent": 2, "factor": "x", "nats": 1.25, "low": -2.0, "high": 2.0},
            {"latent": 0, "factor": "y", "nats": 0.5, "low": -1.0, "high": 3.0},
        ],
        "starts": [
            {"name": name, "z": one, "image": base64.b64encode(held).decode()}
            for name, one, held in zip(names, z, image, strict=True)
        ],
        "error": {"images": 100, "pixel": 0.001, "log_likelihood": -20.1, "original_log_likelihood": -20.0},
    }


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[Path]:
    """Two decoders, one of grey logits and one of colours."""
    folder = tmp_path_factory.mktemp("decoders")
    made = []
    for objective, channels, likelihood in (("beta-vae", 1, "bernoulli"), ("isa-vae", 3, "gaussian")):
        run = Run(objective=objective, steps=20)
        model = vae(channels=channels, seed=channels)
        compressed = compress(model, *posteriors(), likelihood=likelihood, most_bytes=300_000)
        made.append(replace(compressed, about=about(run, channels)).save(folder / f"{run.key}.bin"))
    return made


# --- what they are given ----------------------------------------------------------------------------------------------


def unpacked(data: dict) -> list[dict]:
    return [dict(zip(data["runs"]["columns"], row, strict=True)) for row in data["runs"]["rows"]]


def test_runs():
    data = exhibits.trade_off(records())
    runs = unpacked(data)
    rows = {row["hash"]: row for study in records() for row in study if row["status"] == "trained"}
    assert len(runs) == len(rows) == 17 and {run["hash"] for run in runs} == set(rows)
    for run in runs:
        row = rows[run["hash"]]
        assert run["mig"] == pytest.approx(row["mig"], abs=1e-5) and run["beta"] == row["beta"]
        assert run["gaps"] == pytest.approx([row[f"mig_{f}"] for f in FACTORS], abs=1e-4)
        assert run["fit"] == pytest.approx(row["log_likelihood"], abs=1e-3) and run["seconds"] == 20.0
        study = data["studies"][run["study"]]
        assert study["reduced"] == row["reduced"] == ("reduced" in study["title"])
        assert f"{row['total_steps']:,} steps" in study["title"]
        assert data["commits"][run["commit"]] == "0123456789ab-dirty"
    order = [(run["study"], run["method"], run["beta"], run["seed"]) for run in runs]
    assert order == sorted(order)
    assert [one["label"] for one in data["methods"]] == ["β-VAE", "ISA-VAE", "β-TCVAE", "FactorVAE"]
    assert [one["weight"] for one in data["methods"]] == ["β", "β", "β", "γ"]
    best = runs[data["first"]]
    assert best["mig"] == max(run["mig"] for run in runs if run["study"] == 0)
    json.dumps(data, allow_nan=False)


def test_means():
    data = exhibits.trade_off(records())
    runs = unpacked(data)
    found = {(one["study"], one["method"], one["beta"]): one for one in data["means"]}
    assert len(found) == len(data["means"]) == 8
    tcvae = next(number for number, one in enumerate(data["methods"]) if one["label"] == "β-TCVAE")
    for (study, method, beta), one in found.items():
        of = 0 if (method, beta) == (tcvae, 1) else method  # at beta = 1 its runs are the plain ones
        values = [
            (run["fit"], run["mig"]) for run in runs if [run["study"], run["method"], run["beta"]] == [study, of, beta]
        ]
        fit, mig = np.transpose(values)
        assert one["n"] == len(values)
        assert [one["fit"], one["mig"]] == pytest.approx([fit.mean(), mig.mean()], abs=2e-3)
        if len(values) == 1:
            assert one["fit_error"] is one["mig_error"] is None
        else:
            errors = [fit.std(ddof=1) / len(fit) ** 0.5, mig.std(ddof=1) / len(mig) ** 0.5]
            assert [one["fit_error"], one["mig_error"]] == pytest.approx(errors, abs=2e-3)


def test_portraits_of_representatives_come_first(portrait, tmp_path):
    rows = exhibits.measured(records())
    copies = [shutil.copy(portrait, tmp_path / f"x-{row['hash']}.npz") for row in rows]
    first = [row["hash"] for row in rows if exhibits.standing(row, records()).startswith(("stands", "the only one"))]
    assert len(first) == 7
    assert sorted(exhibits.trade_off(records(), map(Path, copies), most=7)["portraits"]) == sorted(first)


def test_portrait_of_a_run(portrait, tmp_path):
    data = exhibits.trade_off(records(), [portrait, tmp_path / f"other-{'0' * 16}.npz"])
    (row,) = (run for run in unpacked(data) if run["hash"] in data["portraits"])
    held = data["portraits"][row["hash"]]
    assert held["file"] == f"runs/portraits/{portrait.name}" and held["steps"] == 8 and held["size"] == [64, 64]
    picture = latents.Portrait.load(portrait)
    assert [latent for latent, *_ in held["latents"]] == picture.shown.tolist()
    assert unpacked(data)[data["first"]] == row
    assert not exhibits.trade_off(records(), [portrait], most=0)["portraits"]


def test_longest_training_is_chosen(files, tmp_path):
    chosen = exhibits.choose(files, ["isa-vae", "beta-vae", "factor-vae"], 1.0)
    assert list(chosen) == ["isa-vae", "beta-vae"] and not exhibits.choose(files, ["isa-vae"], 2.0)
    one = chosen["beta-vae"]
    run = Run(objective="beta-vae")
    full = replace(one.decoder, about=about(run, 1)).save(tmp_path / "a.bin")
    assert exhibits.choose([*files, full], ["beta-vae"], 1.0)["beta-vae"].path == full


def test_standing(files):
    studies = records()
    rows = [row for row in studies[0] if row["objective"] == "isa-vae" and row["beta"] == 1]
    chosen = rows[stats.representative([r["mig"] for r in rows], [r["log_likelihood"] for r in rows])]
    assert exhibits.standing(chosen, studies) == "stands for 3 recorded runs"
    other = next(row for row in rows if row is not chosen)
    assert exhibits.standing(other, studies) == f"one of 3 recorded runs, for which seed {chosen['seed']} would stand"
    assert exhibits.standing(studies[0][-2], studies) == "the only one recorded"
    assert exhibits.standing(record(Run(seed=99)), studies) == "not among the records of this page"


# --- files beside the pages -------------------------------------------------------------------------------------------


@pytest.fixture
def extension(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    import pages

    yield pages
    sys.modules.pop("pages")


def test_picture_has_every_tile(extension, portrait):
    picture = latents.Portrait.load(portrait)
    shades = np.asarray(extension.traversals(portrait))
    a, s, t, _, height, width = picture.traversals.shape
    assert shades.shape == (s * a * height, t * width)
    for row, column in np.ndindex(a, t):
        tile = shades[row * height : (row + 1) * height, column * width : (column + 1) * width]
        np.testing.assert_array_equal(tile, picture.traversals[row, 0, column, 0])


def test_build_writes_the_files(extension, files, portrait, tmp_path):
    for path, kind in ((files[0], "decoders"), (files[1], "decoders"), (portrait, "portraits")):
        (tmp_path / "runs" / kind).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "runs" / kind)
    builder, config = SimpleNamespace(format="html"), SimpleNamespace(html_static_path=["book/_static"])
    app = SimpleNamespace(srcdir=tmp_path, confdir=ROOT, outdir=tmp_path / "html", builder=builder, config=config)
    app.add_css_file = app.add_js_file = lambda name, **options: None
    chosen = exhibits.choose((tmp_path / "runs" / "decoders").glob("*.bin"), ["beta-vae"], 1.0)
    bodies = [
        explorer_html("latents", "x", exhibits.latents(chosen)),
        explorer_html("trade-off", "x", exhibits.trade_off(records(), (tmp_path / "runs" / "portraits").glob("*"))),
        "<p>a page of its own</p>",
    ]
    for body in bodies:
        extension.add_explorers(app, "book/page", "page.html", {"body": body}, None)
    written = tmp_path / "html" / "_static" / "explorers" / "files"
    assert sorted(path.name for path in written.iterdir()) == sorted([f"{files[0].stem}.js", f"{portrait.stem}.png"])
    with Image.open(written / f"{portrait.stem}.png") as image:
        assert image.mode == "L"
    size = (written / f"{files[0].stem}.js").stat().st_size
    assert exhibits.latents(chosen)["sides"][0]["bytes"] == size
    (tmp_path / "runs" / "decoders" / files[0].name).write_bytes(b"no decoder")
    with pytest.raises(extension.PageError, match="is not a decoder"):
        extension.add_explorers(app, "book/page", "page.html", {"body": bodies[0]}, None)


# --- in the browser ---------------------------------------------------------------------------------------------------


class Watched(Page):
    """A page that remembers which of the explorers' files it has asked for since it was opened."""

    def open(self, path: Path, query: str = "") -> None:
        self.asked: list[str] = []
        super().open(path, query)

    def note(self, address: str) -> None:
        super().note(address)
        if "/files/" in address:
            self.asked.append(address.rpartition("/")[2])


@pytest.fixture(scope="module")
def page_class() -> type[Page]:
    return Watched


@pytest.fixture
def site(extension, browser, files, portrait, tmp_path):
    """Open a page from disk that holds one explorer, its scripts and the files that it may ask for."""

    def start(name: str, width: int = 1000, theme: str = "light", without: str = "none") -> Watched:
        folder = tmp_path / "explorers"
        shutil.copytree(SCRIPTS, folder, dirs_exist_ok=True)
        for path in (*files, portrait):
            extension.write(path, folder / "files")
        for path in (folder / "files").glob(without):
            path.unlink()
        chosen = exhibits.choose(files, ["beta-vae", "isa-vae"], 1.0)
        data = exhibits.latents(chosen, "light") if name == "latents" else exhibits.trade_off(records(), [portrait])
        scripts = "".join(f'<script defer src="explorers/{one}.js"></script>' for one in ("base", name))
        head = '<title>x</title><meta name="viewport" content="width=device-width"><meta charset="utf-8">'
        head += f'<link rel="stylesheet" href="explorers/explorers.css">{scripts}'
        body = explorer_html(name, f"The {name}", data)
        text = f'<!doctype html><html data-theme="{theme}"><head>{head}</head><body>{body}</body></html>'
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        mobile = width < 600
        browser.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=mobile)
        browser.open(tmp_path / "page.html")
        browser.evaluate(FRAME)
        assert browser.complaints == [] and browser.requests == []
        return browser

    return start


def press(page: Watched, name: str, key: str, times: int = 1) -> None:
    codes = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "End": 35, "Home": 36}
    page.evaluate(f"{STATE}.controls[{json.dumps(name)}].input.focus()")
    for _ in range(times):
        for kind in ("rawKeyDown", "keyUp"):
            page.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])
    page.evaluate(FRAME)


def push(page: Watched, words: str) -> None:
    page.evaluate(
        f"[...document.querySelectorAll('button')].find(b => b.textContent.startsWith({json.dumps(words)})).click()"
    )
    page.evaluate(FRAME)


def loaded(page: Watched) -> None:
    push(page, "Load the decoders")
    page.evaluate(
        "new Promise((done, fail) => { const began = Date.now(); const look = () => "
        "document.querySelector('.explorer-sides') ? done() : Date.now() - began > 50000 ? fail(new Error('late')) :"
        "setTimeout(look, 20); look(); })"
    )
    page.evaluate(FRAME)


PIXELS = f"{VALUES}.map(side => Array.from(side.pixels))"


def test_page_draws_what_python_draws(site, files):
    page = site("latents")
    assert page.asked == [], "a decoder was loaded before it was asked for"
    assert page.evaluate("document.querySelectorAll('input').length") == 0
    loaded(page)
    chosen = exhibits.choose(files, ["beta-vae", "isa-vae"], 1.0).values()
    assert page.asked == [f"{one.path.stem}.js" for one in chosen]
    z = torch.tensor([[-0.5, 0.5, 1.5]])

    def compare(*latents_of: torch.Tensor) -> None:
        for found, one, at in zip(page.evaluate(PIXELS), chosen, latents_of, strict=True):
            np.testing.assert_allclose(found, one.decoder.pixels(at).flatten(), rtol=0, atol=1e-4)

    compare(z, z)
    press(page, "ISA-VAE-z3", "End")
    moved = z.clone()
    moved[0, 2] = 2.0
    compare(z, moved)
    words = page.evaluate(f"{STATE}.pending")
    assert words.startswith("ISA-VAE: z3, which knows most of x, is 2.00; it was 1.50 at the start")
    press(page, "β-VAE-z1", "Home")
    other = z.clone()
    other[0, 0] = -1.0
    compare(other, moved)
    push(page, "Back to the start")
    compare(z, z)
    choose(page, start=0)
    first = torch.tensor([[0.1, -0.2, 0.3]])
    compare(first, first)
    assert page.complaints == [] and page.requests == []


def test_random_latents_agree(site, files):
    page = site("latents")
    loaded(page)
    z = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)) * 2
    for number, one in enumerate(exhibits.choose(files, ["beta-vae", "isa-vae"], 1.0).values()):
        found = page.evaluate(f"{json.dumps(z.tolist())}.map(z => Array.from({VALUES}[{number}].decoder.decode(z)))")
        np.testing.assert_allclose(found, one.decoder.decode(z).flatten(1), rtol=1e-4, atol=1e-4)


def test_missing_decoder(site):
    page = site("latents", without="*.js")
    push(page, "Load the decoders")
    words = page.evaluate(
        "new Promise(done => { const look = () => document.querySelector('button').disabled ? setTimeout(look, 20) :"
        f"done({STATE}.pending); look(); }})"
    )
    assert words == "The decoders are not here: its file could not be loaded."
    assert page.evaluate("document.querySelectorAll('input').length") == 0


def test_sliders_have_names_and_values_in_words(site):
    page = site("latents")
    loaded(page)
    found = page.evaluate(
        "[...document.querySelectorAll('.explorer-sides [role=group]')].map(g => [g.getAttribute('aria-label'),"
        "[...g.querySelectorAll('input')].map(i => [i.labels[0].textContent, i.getAttribute('aria-valuetext')])])"
    )
    labels = [f"{label}, β = 1, seed 0, 20 steps of 2,048, reduced" for label in ("β-VAE", "ISA-VAE")]
    assert [name for name, _ in found] == labels
    for _, sliders in found:
        assert [label for label, _ in sliders] == ["z3 x, 1.3 nats", "z1 y, 0.5 nats"]
        assert [float(value.replace("−", "-")) for _, value in sliders] == pytest.approx([1.5, -0.5], abs=0.03)


@pytest.mark.parametrize("name", ["latents", "trade-off"])
def test_fits_a_phone(site, name):
    page = site(name, width=390, theme="dark")
    if name == "latents":
        loaded(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    wide = page.evaluate(
        "[...document.querySelectorAll('.explorer *')].filter(e => e.getBoundingClientRect().right > 390.5).length"
    )
    assert wide == 0


def state(page: Watched) -> tuple[str, float]:
    """Name and MIG of the run whose record is shown."""
    values = page.evaluate(f"(v => [v.run, Number(v.mig.split(' ')[0])])({VALUES})")
    return values[0], values[1]


def rows_of(data: dict) -> list[tuple[str, float]]:
    methods = data["methods"]
    return [
        (
            f"{methods[r['method']]['label']}, {methods[r['method']]['weight']} = {r['beta']:g}, seed {r['seed']}",
            r["mig"],
        )
        for r in unpacked(data)
    ]


def same(found: tuple[str, float], wanted: tuple[str, float]) -> bool:
    return found[0] == wanted[0] and abs(found[1] - wanted[1]) <= 6e-4


def test_arrow_keys(site, portrait):
    page = site("trade-off")
    data = exhibits.trade_off(records(), [portrait])
    rows = rows_of(data)
    assert same(state(page), rows[data["first"]])
    choose(page, study=0)
    press(page, "run", "Home")
    full = [row for row, run in zip(rows, unpacked(data), strict=True) if run["study"] == 0]
    for wanted in full:
        assert same(state(page), wanted)
        press(page, "run", "ArrowRight")
    assert same(state(page), full[-1])
    spoken = page.evaluate(f"{STATE}.controls.run.input.getAttribute('aria-valuetext')")
    assert spoken == full[-1][0]
    assert page.evaluate(f"{STATE}.pending").startswith(f"{full[-1][0]}, 7,200 steps of 2,048: MIG ")
    push(page, "Highest MIG in view")
    assert same(state(page), max(full, key=lambda row: row[1]))


def choose(page: Watched, **values: object) -> None:
    for name, value in values.items():
        page.evaluate(
            f"(() => {{ const c = {STATE}.controls[{name!r}]; c.value = {json.dumps(value)};"
            "c.input.dispatchEvent(new Event('input')); })()"
        )
    page.evaluate(FRAME)


def test_filters(site, portrait):
    page = site("trade-off")
    many = f"Number({STATE}.controls.run.input.max) + 1"
    choose(page, study=0)
    assert page.evaluate(many) == 15
    choose(page, method=1)
    assert page.evaluate(many) == 6 and state(page)[0].startswith("ISA-VAE")
    choose(page, beta=3, seed=2)
    assert page.evaluate(many) == 1 and state(page)[0] == "ISA-VAE, β = 3, seed 2"
    before = state(page)
    choose(page, beta=5)
    assert page.evaluate(f"{STATE}.pending") == "No recorded run passes these filters."
    assert page.evaluate(f"{STATE}.controls.run.input.disabled")
    push(page, "All runs")
    assert page.evaluate(many) == 15 and not page.evaluate(f"{STATE}.controls.run.input.disabled")
    choose(page, method=1, beta=3, seed=2)
    assert state(page) == before
    choose(page, method=None, beta=None, seed=None, study=1)
    assert page.evaluate(many) == 2
    assert "reduced" in page.evaluate(f"{VALUES}.trained") and "reduced" in page.evaluate(f"{STATE}.pending")


@pytest.mark.parametrize("touch", [False, True], ids=["click", "tap"])
def test_mark_chooses_its_run(site, portrait, touch):
    page = site("trade-off", width=390 if touch else 1000)
    choose(page, study=0, method=0, beta=3)
    places = page.evaluate(
        f"(() => {{ const e = {STATE}; const canvas = document.querySelector('canvas');"
        "canvas.scrollIntoView({ block: 'center' }); const b = canvas.getBoundingClientRect();"
        "return e.marks().map(([x, y]) => [b.x + x, b.y + y]); })()"
    )
    assert len(places) == 3
    page.send("Emulation.setTouchEmulationEnabled", enabled=touch)
    try:
        for number, (x, y) in enumerate(places):
            if touch:
                page.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
                page.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
            else:
                for kind in ("mousePressed", "mouseReleased"):
                    page.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
            page.evaluate(FRAME)
            assert state(page)[0] == f"β-VAE, β = 3, seed {number}"
    finally:
        page.send("Emulation.setTouchEmulationEnabled", enabled=False)
    focused = page.evaluate(f"document.activeElement === {STATE}.controls.run.input")
    assert focused, "arrow keys do not go on from the run that was clicked"


def test_traversals_are_loaded(site, portrait):
    page = site("trade-off")
    choose(page, study=0)
    hidden = "getComputedStyle([...document.querySelectorAll('.explorer-panel')].at(-1)).display"
    assert page.evaluate(hidden) == "none"
    push(page, "All runs")
    choose(page, study=1, seed=1)
    assert page.evaluate(hidden) != "none"
    assert page.asked == [f"{portrait.stem}.png"]
    label = page.evaluate("[...document.querySelectorAll('canvas')].at(-1).getAttribute('aria-label')")
    assert label.startswith("Traversals of ISA-VAE, β = 1, seed 1") and "nats of" in label
    drawn = page.evaluate(
        "new Promise(done => { const look = (left) => { const c = [...document.querySelectorAll('canvas')].at(-1);"
        f"const at = {STATE}.pictured(); if (at || !left) done(at); else setTimeout(() => look(left - 1), 20); }};"
        "look(500); })"
    )
    assert drawn == [8 * 64, len(latents.Portrait.load(portrait).shown) * 64]
    assert page.complaints == [] and page.requests == []
