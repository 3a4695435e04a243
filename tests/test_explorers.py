"""Figures that move: their numbers against ``isa``; their use by keyboard, touch, screen reader, on paper, by night."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from browser import Page
from playwright.sync_api import Error
from tiny_book import ROOT, TinyBook, code

from edition.explorers import explorer_html
from edition.figures import style
from isa import LpNested, Node
from isa.toys import factor_analysis, ica

SCRIPTS = ROOT / "book" / "_static" / "explorers"
NAMES = ("prior", "factor-analysis", "ica")
TREES = {
    "Eq. 6": ("2[1, 1.5[2]]", 1.0),
    "paper": ("2.1[5*2.2[4]]", 1.0),
    "one subspace": ("0.7[3[3]]", 1.7),
    "no subspace": ("1[3]", 0.6),
    "far apart": ("20[0.5[2], 1]", 2.0),
    "deep": ("1.5[1, 0.8[3[2, 1.2[2]], 1], 2.2[3]]", 1.2),
    "chain": ("2.1[0.7[3.3[1.4[2]]], 1]", 0.9),
}
each_tree = pytest.mark.parametrize("case", TREES)
each_explorer = pytest.mark.parametrize("name", NAMES)
FEW = {"p0": 2.1, "p1": 2.2, "scale": 1.0, "samples": 300, "stops": [0.5, 1.0, 2.0, 2.1, 2.2, 3.0, 6.0, 9.0]}
WEIGHTS = factor_analysis.aligned_weights()
VARIANCES = np.diag(WEIGHTS @ WEIGHTS.T) + 0.01


def data_of(name: str) -> dict:
    """What a page would embed, in small."""
    if name == "prior":
        trees = [{"label": text, "structure": Node.parse(text).structure} for text, _ in TREES.values()]
        return FEW | {"trees": trees, "presets": [["cone", 1.0, 2.0]]}
    if name == "factor-analysis":
        betas, noises = [0.1, 0.5, 1.0, 2.0, 5.0, 20.0], [0.001, 0.01, 0.02]
        rest = {"betas": betas, "noise_vars": noises, "noise_var": 0.01, "angle": 45}
        return rest | {"n": 100, "variances": VARIANCES}
    truth = ica.directions([30.0, 90.0, 150.0])
    paths = [[truth * [1, shrink**step, 1] for step in range(13)] for shrink in (0.9, 0.7)]
    ends = [truth * [1, 0, 1]] * 2
    points = np.random.default_rng(0).normal(size=(50, 2))
    rest = {"steps": 4, "limit": 10.0, "threshold": ica.PRUNED, "stopped": 4, "seeds": 3}
    many = {"alive_stopped": [3.0, 2.5], "alive_converged": [2.0, 2.0]}
    return rest | many | {"betas": [1.0, 5.0], "paths": paths, "converged": ends, "truth": truth, "points": points}


def page_of(folder: Path, *names: str, theme: str = "light") -> Path:
    """A page that loads what the extension would add, and holds these explorers; without any, the scripts alone."""
    scripts = "".join(f'<script defer src="{(SCRIPTS / f"{n}.js").as_uri()}"></script>' for n in ("base", *NAMES))
    sheet = f'<link rel="stylesheet" href="{(SCRIPTS / "explorers.css").as_uri()}">'
    view = '<meta name="viewport" content="width=device-width"><meta charset="utf-8">'
    body = "".join(explorer_html(name, f"The {name}", data_of(name)) for name in names)
    path = folder / f"{'-'.join(names) or 'scripts'}.html"
    head = f"<title>x</title>{view}{sheet}{scripts}"
    text = f'<!doctype html><html data-theme="{theme}"><head>{head}</head><body>{body}</body></html>'
    path.write_text(text, encoding="utf-8")
    return path


def arrange(page: Page, width: int = 1000, density: float = 1, **media: str) -> None:
    """The reader's screen and what the reader's system asks for."""
    page.send(
        "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=density, mobile=width < 600
    )
    features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items() if name != "media"]
    page.send("Emulation.setEmulatedMedia", media=media.get("media", ""), features=features)


@pytest.fixture
def browser(browser) -> Page:
    arrange(browser)
    return browser


@pytest.fixture
def call(browser, tmp_path):
    """Call a JavaScript function, given as an expression, with arguments that JSON can say."""
    browser.open(page_of(tmp_path))

    def run(function: str, *arguments):
        plain = [a.tolist() if isinstance(a, np.ndarray | torch.Tensor) else a for a in arguments]
        # JSON has no infinity, which some results are
        expression = f"JSON.stringify(({function})(...{json.dumps(plain)}), (_, x) => x === -Infinity ? '-inf' : x)"
        return json.loads(browser.evaluate(expression))

    yield run
    assert browser.complaints == [] and browser.requests == []


def numbers(values) -> np.ndarray:
    return np.array(values, dtype=object).astype(float)


# --- the prior --------------------------------------------------------------------------------------------------------

TREE = "const P = Explorers.prior, root = P.tree(structure, exponents);"


def wide(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def prior_of(case: str) -> tuple[LpNested, tuple, list[float]]:
    """The distribution in double precision throughout, the structure of its tree, and its exponents."""
    text, scale = TREES[case]
    node = Node.parse(text)
    prior = LpNested(node.with_exponents([wide(p) for p in node.exponents]), wide(scale))
    return prior, node.structure, list(node.exponents)


def points_for(prior: LpNested) -> torch.Tensor:
    """Near and far, on axes and planes, at 0."""
    torch.manual_seed(0)
    z = prior.sample((40,))
    z[10:20] *= 10
    z[20:25, 0] = 0
    z[25:30, 1:] = 0
    z[30] = 0
    return z


def test_lgamma(call):
    x = np.concatenate([np.geomspace(1e-3, 300, 400), np.arange(1, 9) / 2])
    np.testing.assert_allclose(
        call("xs => xs.map(Explorers.prior.lgamma)", x), scipy.special.gammaln(x), rtol=1e-12, atol=1e-13
    )


@each_tree
def test_norm_and_density(call, case):
    prior, structure, exponents = prior_of(case)
    z = points_for(prior)
    both = call(
        f"(structure, exponents, z, s) => {{ {TREE} return z.map(x => [P.norm(root, x), P.logProb(root, x, s)]); }}",
        *(structure, exponents, z, float(prior.scale)),
    )
    norm, log_prob = numbers(both).T
    np.testing.assert_allclose(norm, prior.norm(z), rtol=1e-12)
    np.testing.assert_allclose(log_prob, prior.log_prob(z), rtol=1e-12, atol=1e-12)


@each_tree
def test_surface_entropy_radius_and_moments(call, case):
    prior, structure, exponents = prior_of(case)
    n = prior.tree.n_leaves
    radii = torch.tensor([0.05, 0.5, 1.0, 2.0], dtype=torch.float64)
    found = call(
        f"(structure, exponents, s, radii) => {{ {TREE} return {{"
        "surface: P.logSurface(root), entropy: P.entropy(root, s), radial: radii.map(v => P.logRadial(root, v, s)),"
        "moments: root.leaves.map(k => [0.5, 1, 2, 4].map(order => P.absoluteMoment(root, k, order, s))) }; }",
        *(structure, exponents, float(prior.scale), radii),
    )
    assert found["surface"] == pytest.approx(prior.tree.log_surface().item(), rel=1e-12)
    assert found["entropy"] == pytest.approx(prior.entropy().item(), rel=1e-12)
    p0 = exponents[0]
    law = torch.distributions.Gamma(wide(n / p0), 1.0)
    power = radii**p0 / prior.scale
    expected = law.log_prob(power) + math.log(p0) + (p0 - 1) * radii.log() - prior.scale.log()
    np.testing.assert_allclose(found["radial"], expected, rtol=1e-11)
    moments = torch.stack([prior.absolute_moment(order) for order in (0.5, 1, 2, 4)], -1)
    np.testing.assert_allclose(found["moments"], moments, rtol=1e-12)


@each_tree
def test_surface_and_sections_lie_at_norm_one(call, case):
    prior, structure, exponents = prior_of(case)
    found = call(
        f"(structure, exponents) => {{ {TREE} const {{ planes, axes }} = P.views(root); return {{ axes,"
        "mesh: P.mesh(root, axes, 12), planes, sections: planes.map(({ a, b }) => P.section(root, a, b, 48)) }; }",
        *(structure, exponents),
    )
    n = prior.tree.n_leaves
    mesh = torch.tensor(found["mesh"], dtype=torch.float64)
    points = torch.zeros(*mesh.shape[:-1], n, dtype=torch.float64)
    points[..., found["axes"]] = mesh
    np.testing.assert_allclose(prior.norm(points), 1.0, rtol=1e-12)
    for plane, section in zip(found["planes"], found["sections"], strict=True):
        across, up = (torch.tensor(plane[side], dtype=torch.float64) for side in "ab")
        u, v = torch.tensor(section, dtype=torch.float64).unbind(-1)
        np.testing.assert_allclose(prior.norm(u[:, None] * across + v[:, None] * up), 1.0, rtol=1e-12)
        assert (section[0][1], section[12][0], section[24][1]) == (0, 0, 0)  # the cusps are met
    assert len(set(found["axes"])) == 3 and found["axes"] == sorted(found["axes"])


@each_tree
def test_planes_say_which_coordinates_share_a_subspace(call, case):
    prior, structure, exponents = prior_of(case)
    planes = call(f"(structure, exponents) => {{ {TREE} return P.views(root).planes; }}", structure, exponents)
    home = {k: i for i, group in enumerate(prior.subspaces) for k in group}
    for plane in planes[:2]:
        i, j = plane["at"]
        assert i != j and ("one subspace" in plane["label"]) == (home[i] == home[j])
    if max(map(len, prior.subspaces)) > 1:
        assert home[planes[0]["at"][0]] == home[planes[0]["at"][1]]
    if len(prior.subspaces) > 1:
        assert home[planes[1]["at"][0]] != home[planes[1]["at"][1]]


@each_tree
def test_samples_follow_their_law(call, case):
    """Radius, share of the first subspace, moments, signs: of 10,000 points, all at fixed seeds."""
    prior, structure, exponents = prior_of(case)
    count, scale, n, p0 = 10_000, float(prior.scale), prior.tree.n_leaves, exponents[0]
    z = numbers(
        call(
            f"(structure, exponents, count, s) => {{ {TREE} return P.sample(root, count, s, 3); }}",
            *(structure, exponents, count, scale),
        )
    )
    assert z.shape == (count, n)
    power = prior.norm(torch.from_numpy(z)).numpy() ** p0 / scale
    assert scipy.stats.kstest(power, scipy.stats.gamma(n / p0).cdf).pvalue > 1e-3
    first = len(prior.subspaces[0])
    if first < n:  # how the root shares its value between the first subspace and the rest
        inside, outside = torch.from_numpy(z.copy()), torch.from_numpy(z.copy())
        inside[:, first:], outside[:, :first] = 0, 0
        ratio = (prior.norm(inside) / prior.norm(outside)).numpy() ** p0
        a, b = first / p0, (n - first) / p0
        upper = 1 - scipy.special.betainc(b, a, 1 / (1 + ratio))
        quantile = np.where(ratio < 1, scipy.special.betainc(a, b, ratio / (1 + ratio)), upper)
        assert scipy.stats.kstest(quantile, scipy.stats.uniform.cdf).pvalue > 1e-3

    def agrees(values, expected):
        error = values.std(0) / math.sqrt(count)
        assert (np.abs(values.mean(0) - expected) < 5 * error).all()

    for order in (0.5, 1, 2):
        agrees(np.abs(z) ** order, prior.absolute_moment(order).numpy())
    agrees(np.sign(z), 0.0)
    agrees(np.sign(z[:, 0] * z[:, 1]), 0.0)
    agrees(-prior.log_prob(torch.from_numpy(z)).numpy(), prior.entropy().item())
    # streams of neighbouring samples and seeds have nothing to do with each other
    uniform = scipy.stats.gamma(n / p0).cdf(power) - 0.5
    agrees(uniform[1:] * uniform[:-1], 0.0)
    again, other = (
        numbers(
            call(
                f"(structure, exponents, s, seed) => {{ {TREE} return P.sample(root, 2000, s, seed); }}",
                *(structure, exponents, scale, seed),
            )
        )
        for seed in (3, 4)
    )
    np.testing.assert_array_equal(again, z[:2000])
    assert abs(scipy.stats.spearmanr(other[:, 0], again[:, 0]).statistic) < 5 / math.sqrt(2000)


@each_tree
def test_correlation_of_squares(call, case):
    prior, structure, exponents = prior_of(case)
    n = prior.tree.n_leaves
    pairs = [(0, 1), (0, n - 1), (n - 2, n - 1), (1, 2)]
    found = call(
        f"(structure, exponents, s, pairs) => {{ {TREE}"
        "return pairs.map(([i, j]) => P.squareCorrelation(root, i, j, s)); }",
        *(structure, exponents, float(prior.scale), pairs),
    )
    torch.manual_seed(0)
    square = prior.sample((60_000,)).square()
    home = {k: i for i, group in enumerate(prior.subspaces) for k in group}
    for (i, j), value in zip(pairs, found, strict=True):
        if home[i] != home[j]:
            assert abs(value) < 1e-12
        a, b = ((square[:, k] - square[:, k].mean()) / square[:, k].std() for k in (i, j))
        assert abs((a * b).mean() - value) < 5 * (a * b).std() / math.sqrt(len(square))
    alike = call(
        f"(structure, exponents) => {{ {TREE} return P.squareCorrelation(root, 0, 1, 1); }}",
        *(structure, [1.7] * len(exponents)),
    )
    assert abs(alike) < 1e-12


# --- factor analysis --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(2, 2), (3, 2), (2, 3), (4, 1)])
def test_factor_analysis(call, size):
    rng = np.random.default_rng(sum(size))
    for beta in (0.1, 1.0, 4.0):
        W = rng.normal(size=size)
        noise = rng.uniform(0.01, 1.0, size[0])
        S = factor_analysis.second_moment(rng.normal(size=(9, size[0])))
        found = call(
            """(W, noise, S, n, beta) => { const F = Explorers.factorAnalysis; return {
                ...F.posterior(W, noise, beta), variance: F.meanField(W, noise, beta),
                ...F.freeEnergyTerms(W, noise, S, n, beta), energy: F.freeEnergy(W, noise, S, n, beta),
                likelihood: F.logLikelihood(W, noise, S, n),
                bound: F.replicatedLogLikelihood(W, noise, S, n, beta), gap: F.meanFieldGap(W, noise, n, beta) }; }""",
            *(W, noise, S, 37, beta),
        )
        exact = factor_analysis.posterior(W, noise, beta)
        terms = factor_analysis.free_energy_terms(W, noise, S, 37, beta)
        expected = {
            "cov": exact.cov,
            "recognition": exact.recognition,
            "variance": factor_analysis.mean_field(W, noise, beta).var,
            "reconstruction": terms.reconstruction,
            "kl": terms.kl,
            "energy": factor_analysis.free_energy(W, noise, S, 37, beta),
            "likelihood": factor_analysis.log_likelihood(W, noise, S, 37),
            "bound": factor_analysis.replicated_log_likelihood(W, noise, S, 37, beta),
            "gap": factor_analysis.mean_field_gap(W, noise, 37, beta),
        }
        assert set(found) == set(expected)
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-9, err_msg=name)


def test_weights_are_turned_and_shortened(call):
    W = np.random.default_rng(0).normal(size=(3, 3))
    for angle in (0.0, 0.7, 2.5):
        turned = call("Explorers.factorAnalysis.rotate", W, angle)
        np.testing.assert_allclose(turned, factor_analysis.rotate(W, angle), rtol=1e-14, atol=1e-15)
    for beta in (0.5, 1.0, 2.0, 3.0, 20.0):
        found = call("Explorers.factorAnalysis.optimalWeights", VARIANCES, 0.01, beta)
        expected = factor_analysis.optimal_weights(np.diag(VARIANCES), 0.01, 2, beta)
        np.testing.assert_allclose(found, expected, atol=1e-14)


# --- ICA --------------------------------------------------------------------------------------------------------------


def test_directions_are_read_as_in_python(call):
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(50, 2, 3)) * np.array([1, 1, 0.1])
    read = "W => { const I = Explorers.ica; return { lengths: I.lengths(W), angles: I.angles(W),"
    read += "alive: I.survivors(W, 0.1), widest: I.widestPair(W), ratio: I.ratio(W) }; }"
    for W, found in zip(weights, call(f"all => all.map({read})", weights), strict=True):
        np.testing.assert_allclose(found["lengths"], ica.lengths(W), rtol=1e-13)
        np.testing.assert_allclose(found["angles"], ica.angles(W), rtol=1e-12, atol=1e-12)
        assert found["alive"] == ica.survivors(W, 0.1).tolist()
        assert found["widest"] == pytest.approx(ica.widest_pair(W), rel=1e-12)
        assert found["ratio"] == pytest.approx(ica.lengths(W).min() / ica.lengths(W).max(), rel=1e-12)
    assert {found["alive"].count(True) for found in call(f"all => all.map({read})", weights)} == {2, 3}


# --- on the page ------------------------------------------------------------------------------------------------------

INK = """[...document.querySelectorAll("canvas")].map(canvas => {
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let drawn = 0;
  for (let i = 3; i < data.length; i += 4) drawn += data[i] > 0;
  return drawn / (canvas.width * canvas.height);
})"""
FRAME = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 0))))"
STATE = "document.querySelector('.explorer').explorer"
VALUES = f"{STATE}.values.values"


def settle(browser: Page) -> None:
    browser.evaluate(FRAME)


def started(browser: Page, folder: Path, name: str, **options: str) -> None:
    browser.open(page_of(folder, name, **options))
    settle(browser)
    assert browser.complaints == [] and browser.requests == []


def press(browser: Page, selector: str, key: str, times: int = 1) -> None:
    browser.evaluate(f"document.querySelector({selector!r}).focus()")
    codes = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "End": 35, "Home": 36, "Enter": 13}
    for _ in range(times):
        for kind in ("rawKeyDown", "keyUp"):
            browser.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key], commands=[]
            )
    settle(browser)


def control(name: str) -> str:
    return f'.explorer-control [id$="-{name}"]'


@each_explorer
def test_it_starts_and_draws(browser, tmp_path, name):
    started(browser, tmp_path, name)
    assert browser.evaluate("document.querySelector('.explorer').className") == "explorer explorer-on"
    shares = browser.evaluate(INK)
    assert len(shares) >= 4 and min(shares) > 0.005
    assert browser.evaluate("document.querySelector('.explorer-paper').offsetParent") is None


@each_explorer
def test_everything_has_a_name(browser, tmp_path, name):
    started(browser, tmp_path, name)
    named = "(() => { const q = s => [...document.querySelectorAll(s)]; return {"
    named += "controls: q('.explorer input, .explorer select').map(c => [...c.labels].map(l => l.textContent).join()),"
    named += "valued: q('.explorer input').map(c => c.getAttribute('aria-valuetext')),"
    named += "buttons: q('.explorer button').map(b => b.textContent),"
    named += "canvases: q('canvas').map(c => c.getAttribute('role') + ' ' + c.getAttribute('aria-label')),"
    named += "ids: q('[id]').map(e => e.id), region: q('.explorer').map(e => e.getAttribute('aria-label')) }; })()"
    found = browser.evaluate(named)
    for what in ("controls", "valued", "buttons", "canvases", "region"):
        assert found[what] and all(text.strip() for text in found[what]), what
    assert all(text.startswith("img ") and len(text) > 25 for text in found["canvases"])
    assert len(found["ids"]) == len(set(found["ids"]))
    assert found["region"] == [f"The {name}"]
    assert "undefined" not in browser.evaluate("document.querySelector('.explorer-stage').innerText")


def test_two_on_one_page_do_not_mix(browser, tmp_path):
    browser.open(page_of(tmp_path, "factor-analysis", "factor-analysis"))
    ids = browser.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert ids and len(ids) == len(set(ids))
    assert browser.evaluate("document.querySelectorAll('.explorer-on').length") == 2


def test_the_prior_by_keyboard(browser, tmp_path):
    started(browser, tmp_path, "prior")
    for slider, key in (("p0", "ArrowRight"), ("p1", "End")):
        press(browser, control(slider), key, 2)
    p0, p1 = (browser.evaluate(f"{STATE}.controls.{name}.value") for name in ("p0", "p1"))
    assert (p0, p1) == (3.0, 9.0)
    assert browser.evaluate(f"document.querySelector({control('p0')!r}).previousSibling.textContent") == "3"
    press(browser, control("tree"), "ArrowDown")
    root = Node.parse(TREES["paper"][0])
    prior = LpNested(root.with_exponents([wide(p0), *[wide(p1)] * 5]), 1.0)
    found = browser.evaluate(VALUES)
    assert found["logSurface"] == pytest.approx(prior.tree.log_surface().item(), rel=1e-9)
    zero = torch.zeros(20, dtype=torch.float64)
    assert found["mode"] == pytest.approx(prior.log_prob(zero).item(), rel=1e-9)
    assert found["entropy"] == pytest.approx(prior.entropy().item(), rel=1e-9)
    assert found["variance"] == pytest.approx(prior.variance[0].item(), rel=1e-9)
    kurtosis = prior.absolute_moment(4)[0] / prior.variance[0] ** 2 - 3
    assert found["kurtosis"] == pytest.approx(kurtosis.item(), rel=1e-8)
    text = browser.evaluate("document.querySelector('.explorer-numbers').innerText").replace("\u2212", "-")
    assert f"{prior.entropy().item():.4f}" in text and f"{found['mode']:.4f}" in text


def test_a_preset_sets_both_exponents(browser, tmp_path):
    started(browser, tmp_path, "prior")
    before = browser.evaluate(INK)
    press(browser, ".explorer-buttons button", "Enter")
    browser.evaluate("document.querySelector('.explorer-buttons button').click()")
    settle(browser)
    assert browser.evaluate(f"[{STATE}.controls.p0.value, {STATE}.controls.p1.value]") == [1.0, 2.0]
    assert browser.evaluate(INK) != before


@pytest.mark.parametrize("lengths", [0, 1])
@pytest.mark.parametrize("convention", [13, 16])
def test_factor_analysis_by_keyboard(browser, tmp_path, lengths, convention):
    started(browser, tmp_path, "factor-analysis")
    press(browser, control("angle"), "ArrowLeft", 15)
    press(browser, control("beta"), "ArrowRight")
    press(browser, control("noise"), "ArrowRight")
    press(browser, control("lengths"), "ArrowDown", lengths)
    press(browser, control("convention"), "ArrowDown", convention == 16)
    angle, beta, noise, n = math.radians(30), 2.0, 0.02, 100
    cov = np.diag(VARIANCES)
    W = factor_analysis.rotate(factor_analysis.optimal_weights(cov, noise, 2, beta if lengths else 1.0), angle)
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
    found = browser.evaluate(VALUES)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name
    shown = browser.evaluate("document.querySelector('.explorer-numbers').innerText").replace("\u2212", "-")
    assert f"{expected['energy']:.2f}" in shown and f"{expected['likelihood']:.2f}" in shown


def test_ica_by_keyboard(browser, tmp_path):
    started(browser, tmp_path, "ica")
    data = data_of("ica")
    press(browser, control("beta"), "ArrowRight")
    press(browser, control("steps"), "ArrowRight", 3)
    W = data["paths"][1][7]
    found = browser.evaluate(VALUES)
    assert found["alive"] == ica.survivors(W).sum() == 2
    assert found["angle"] == pytest.approx(ica.widest_pair(W)) and found["aliveEnd"] == 2
    assert found["ratio"] == pytest.approx(0.7**7)
    assert found["pruned"] == "7"
    words = browser.evaluate(f"{STATE}.pending")
    assert words.startswith("β = 5 after 7 steps") and "two directions alive" in words


def tap(browser: Page, selector: str, across: float) -> None:
    box = browser.evaluate(
        f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{ block: 'center' }});"
        "const b = e.getBoundingClientRect(); return [b.x, b.y, b.width, b.height]; })()"
    )
    point = {"x": box[0] + across * box[2], "y": box[1] + box[3] / 2}
    browser.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
    browser.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
    settle(browser)


def test_by_touch(browser, tmp_path):
    arrange(browser, width=390, density=2)
    browser.send("Emulation.setTouchEmulationEnabled", enabled=True)
    try:
        started(browser, tmp_path, "prior")
        tap(browser, control("p0"), 0.99)
        assert browser.evaluate(f"{STATE}.controls.p0.value") == 9.0
        x, y = browser.evaluate(
            "(() => { const b = document.querySelector('.explorer-turns').getBoundingClientRect();"
            "scrollBy(0, b.y - 200); const c = document.querySelector('.explorer-turns').getBoundingClientRect();"
            "return [c.x + 40, c.y + 60]; })()"
        )
        before = browser.evaluate(f"{STATE}.controls.turn.value")
        browser.send("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
        for step in range(1, 7):
            browser.send("Input.dispatchTouchEvent", type="touchMove", touchPoints=[{"x": x + 12 * step, "y": y}])
        browser.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        settle(browser)
        assert browser.evaluate(f"{STATE}.controls.turn.value") != before
    finally:
        browser.send("Emulation.setTouchEmulationEnabled", enabled=False)


def test_a_description_is_announced_once_it_rests(browser, tmp_path):
    started(browser, tmp_path, "factor-analysis")
    role = "document.querySelector('.explorer-words').getAttribute('role')"
    assert browser.evaluate(role) == "status"  # a polite live region
    first, seen = browser.evaluate(
        "new Promise(done => { const words = document.querySelector('.explorer-words');"
        "const first = words.textContent; const seen = [];"
        "new MutationObserver(() => { seen.push(words.textContent); setTimeout(() => done([first, seen]), 600); })"
        ".observe(words, { childList: true });"
        f"for (let moves = 1; moves <= 10; moves++) {{ {STATE}.controls.angle.value = moves; {STATE}.update(); }} }})"
    )
    assert first.startswith("Turned by 45 degrees")
    assert [text[:20] for text in seen] == ["Turned by 10 degrees"]


@each_explorer
def test_it_fits_a_phone(browser, tmp_path, name):
    arrange(browser, width=390, density=2)
    started(browser, tmp_path, name)
    assert browser.evaluate("document.documentElement.scrollWidth") <= 390
    over = "[...document.querySelectorAll('.explorer *')].filter(e => e.getBoundingClientRect().right > 391).length"
    assert browser.evaluate(over) == 0
    small = "[...document.querySelectorAll('.explorer input, .explorer select, .explorer button')]"
    small += ".filter(e => e.offsetHeight < 24).length"
    assert browser.evaluate(small) == 0


@each_explorer
def test_drawings_are_as_fine_as_the_screen(browser, tmp_path, name):
    sizes = "[...document.querySelectorAll('canvas')].map(c => [c.width / c.clientWidth, c.height / c.clientHeight])"
    arrange(browser, density=1)
    started(browser, tmp_path, name)
    assert np.allclose(browser.evaluate(sizes), 1, atol=0.01)
    arrange(browser, width=800, density=3)  # what a reader does who zooms in
    settle(browser)
    assert np.allclose(browser.evaluate(sizes), 3, atol=0.01)
    assert min(browser.evaluate(INK)) > 0.005


@each_explorer
def test_it_is_drawn_anew_by_night(browser, tmp_path, name):
    started(browser, tmp_path, name)
    pictures = "[...document.querySelectorAll('canvas')].map(c => c.toDataURL())"
    day = browser.evaluate(pictures)
    browser.evaluate("document.documentElement.dataset.theme = 'dark'; null")
    settle(browser)
    assert all(one != other for one, other in zip(day, browser.evaluate(pictures), strict=True))
    ground = "getComputedStyle(document.querySelector('.explorer-stage')).backgroundColor"
    assert browser.evaluate(ground) == "rgb(20, 24, 30)"


@each_explorer
def test_on_paper_a_sentence_stands_in_its_place(browser, tmp_path, name):
    started(browser, tmp_path, name)
    arrange(browser, media="print")
    shown = "['.explorer-stage', '.explorer-paper', 'noscript'].map(s => document.querySelector(s).offsetHeight > 0)"
    assert browser.evaluate(shown) == [False, True, False]


def test_without_scripts_a_sentence_stands_in_its_place(browser, tmp_path):
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.send("Page.navigate", url=page_of(tmp_path, "prior").as_uri())
        for _ in range(200):  # with scripts off, nothing can be awaited within the page
            with contextlib.suppress(Error):  # the page was replaced between two questions
                root = browser.send("DOM.getDocument")["root"]["nodeId"]
                node = browser.send("DOM.querySelector", nodeId=root, selector="noscript p")["nodeId"]
                if node:
                    box = browser.send("DOM.getBoxModel", nodeId=node)["model"]
                    text = browser.send("DOM.getOuterHTML", nodeId=node)["outerHTML"]
                    break
            time.sleep(0.05)
        assert box["height"] > 10
        assert "numbered figure below" in text
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)


def test_a_failure_leaves_the_sentence_and_a_word_in_the_console(browser, tmp_path):
    path = page_of(tmp_path, "ica")
    path.write_text(path.read_text(encoding="utf-8").replace('"paths"', '"ways"'), encoding="utf-8")
    browser.open(path)
    assert len(browser.complaints) == 1 and "TypeError" in browser.complaints[0]
    assert browser.evaluate("document.querySelector('.explorer-paper').offsetHeight") > 10


def test_playing_goes_step_by_step(browser, tmp_path):
    arrange(browser, prefers_reduced_motion="no-preference")
    started(browser, tmp_path, "ica")
    seen = browser.evaluate(
        f"new Promise(done => {{ const {{ steps }} = {STATE}.controls; const seen = [];"
        "steps.input.addEventListener('input', () => { seen.push(steps.value);"
        "if (steps.atEnd) setTimeout(() => done([seen, button.textContent]), 100); });"
        "const button = document.querySelector('.explorer-buttons button'); button.click();"
        "seen.push(button.textContent); })"
    )
    assert seen == [["Pause", *range(5, 13)], "Play the steps"]


def test_playing_jumps_where_motion_is_unwelcome(browser, tmp_path):
    arrange(browser, prefers_reduced_motion="reduce")
    started(browser, tmp_path, "ica")
    browser.evaluate("document.querySelector('.explorer-buttons button').click()")
    settle(browser)
    assert browser.evaluate(f"{STATE}.controls.steps.value") == 12
    assert browser.evaluate("document.querySelector('.explorer-buttons button').textContent") == "Play the steps"


# --- the files --------------------------------------------------------------------------------------------------------


def test_scripts_are_plain_and_ask_for_nothing():
    files = sorted(SCRIPTS.iterdir())
    assert {file.suffix for file in files} == {".js", ".css"}
    for file in files:
        text = file.read_text(encoding="utf-8")
        code_only = re.sub(r"/\*.*?\*/|//.*", "", text, flags=re.DOTALL)
        assert not re.search(r"\beval\(|new Function|innerHTML|document\.write|fetch\(|XMLHttp|import[ (]", text)
        assert "http" not in code_only and "url(" not in code_only
    assert sum(file.stat().st_size for file in files) < 150_000


def palette(theme: str) -> dict[str, str]:
    text = (SCRIPTS / "explorers.css").read_text(encoding="utf-8")
    start = text.index('html[data-theme="dark"] .explorer {' if theme == "dark" else ".explorer {")
    return dict(re.findall(r"--explorer-(\w+): (#[0-9a-f]{6});", text[start : text.index("}", start)]))


def test_colours_are_those_of_all_figures():
    day = palette("light")
    for name in ("blue", "orange", "green", "vermilion", "purple", "sky", "black", "grey"):
        assert day[name] == getattr(style, name.upper()).lower()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_lines_stand_out_from_the_ground(theme):
    def luminance(colour: str) -> float:
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4) @ (
            *(0.2126, 0.7152, 0.0722),
        )

    colours = palette(theme)
    ground = luminance(colours["ground"])
    for name, least in {"black": 7, "blue": 3, "vermilion": 3, "green": 3, "grey": 3}.items():
        low, high = sorted((luminance(colours[name]), ground))
        assert (high + 0.05) / (low + 0.05) >= least, name


def test_data_are_embedded_so_that_nothing_can_end_them():
    html = explorer_html("prior", 'A "title" <b>', {"text": "</script><b>", "values": np.array([0.1, 2.0])})
    assert html.count("</script>") == 1 and "<b>" not in html
    embedded = re.search(r'<script type="application/json">(.*?)</script>', html).group(1)
    assert json.loads(embedded) == {"text": "</script><b>", "values": [0.1, 2.0]}
    assert "<noscript>" in html


def test_data_must_be_finite():
    for value in (math.nan, np.array([math.inf])):
        with pytest.raises(ValueError, match="not JSON compliant"):
            explorer_html("prior", "x", {"a": value})


# --- the build --------------------------------------------------------------------------------------------------------


def test_the_build_adds_scripts_where_they_are_needed(tmp_path):
    book = TinyBook(tmp_path / "book")
    book.write_page(code("from edition.explorers import explorer\nexplorer('ica', 'The ICA', {'paths': [1, 2]})"))
    built = book.build()
    assert built.returncode == 0, built.stdout
    pages = {name: book.html(name) for name in ("book/index", "book/page")}
    scripts = {name: re.findall(r'src="([^"]*explorers/[^"?]+)[^>]*"', text) for name, text in pages.items()}
    assert scripts["book/index"] == [] and "explorers.css" not in pages["book/index"]
    assert [Path(source).name for source in scripts["book/page"]] == ["base.js", "ica.js"]
    folder = book.root / "_build" / "html" / "book"
    assert all((folder / source).is_file() for source in scripts["book/page"])
    assert "explorers/explorers.css" in pages["book/page"] and 'data-explorer="ica"' in pages["book/page"]
    assert re.search(r"<script[^>]*defer[^>]*base\.js|base\.js[^>]*defer", pages["book/page"])


def test_an_explorer_without_a_script_stops_the_build(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "book" / "_ext")
    import pages

    builder, config = SimpleNamespace(format="html"), SimpleNamespace(html_static_path=["static"])
    app = SimpleNamespace(confdir=tmp_path, builder=builder, config=config, add_css_file=lambda name: None)
    with pytest.raises(pages.PageError, match=r"explorers/base\.js"):
        pages.add_explorers(app, "book/page", "page.html", {"body": '<div data-explorer="none">'}, None)
    pages.add_explorers(app, "book/page", "page.html", {"body": "<div>"}, None)
    sys.modules.pop("pages")
