"""The explorers' scripts against ``isa``, their colours, and the embedded data."""

from __future__ import annotations

import json
import math
import re
from operator import methodcaller

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from explorer_page import SCRIPTS, write_page

from edition.explorers import explorer_html
from edition.figures import style
from isa import LpNested, Node
from isa.toys import factor_analysis, ica

TREES = {
    "Eq. 6": ("2[1, 1.5[2]]", 1.0),
    "paper": ("2.1[5*2.2[4]]", 1.0),
    "one subspace": ("0.7[3[3]]", 1.7),
    "far apart": ("20[0.5[2], 1]", 2.0),
    "deep": ("1.5[1, 0.8[3[2, 1.2[2]], 1], 2.2[3]]", 1.2),
    "chain": ("2.1[0.7[3.3[1.4[2]]], 1]", 0.9),
}
each_tree = pytest.mark.parametrize("case", TREES)
TREE = "const P = Explorers.prior, root = P.tree(structure, exponents);"


@pytest.fixture(scope="module")
def call(browser, tmp_path_factory):
    """A function that calls a JavaScript function, given as an expression, with arguments that JSON can represent."""
    browser.open(write_page(tmp_path_factory.mktemp("scripts"), ("prior", "factor-analysis", "ica")))

    def run(function: str, *arguments):
        plain = json.dumps(arguments, default=methodcaller("tolist"))
        return json.loads(browser.evaluate(f"JSON.stringify(({function})(...{plain}))"))

    yield run
    assert browser.complaints == [] and browser.requests == []


def compare(actual: dict, expected: dict, tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=tolerance, atol=tolerance, err_msg=name)


def prior_of(case: str) -> tuple[LpNested, tuple, list[float]]:
    """Return the distribution in double precision, the structure of its tree, and its exponents."""
    text, scale = TREES[case]
    node = Node.parse(text)
    wide = [torch.tensor(p, dtype=torch.float64) for p in (*node.exponents, scale)]
    return LpNested(node.with_exponents(wide[:-1]), wide[-1]), node.structure, list(node.exponents)


@each_tree
def test_density_and_moments(call, case):
    prior, structure, exponents = prior_of(case)
    torch.manual_seed(0)
    z = prior.sample((40,))
    z[10:20] *= 10
    z[20:25, 0] = z[25:30, 1:] = z[30] = 0
    radii, orders = np.array([0.003, 0.05, 0.5, 1.0, 2.0, 7.7]), (0.5, 1, 2, 4)
    actual = call(
        f"(structure, exponents, z, s, radii, orders) => {{ {TREE} return {{"
        "density: z.map(x => [P.norm(root, x), P.logProb(root, x, s)]), surface: P.logSurface(root),"
        "lgamma: radii.map(P.lgamma), entropy: P.entropy(root, s), radial: radii.map(v => P.logRadial(root, v, s)),"
        "moments: root.leaves.map(k => orders.map(order => P.absoluteMoment(root, k, order, s))) }; }",
        *(structure, exponents, z, float(prior.scale), radii, orders),
    )
    p0, n, scale = exponents[0], prior.tree.n_leaves, float(prior.scale)
    expected = {
        "density": torch.stack([prior.norm(z), prior.log_prob(z)], -1),
        "surface": prior.tree.log_surface(),
        "lgamma": scipy.special.gammaln(radii),
        "entropy": prior.entropy(),
        "radial": scipy.stats.gengamma(n / p0, p0, scale=scale ** (1 / p0)).logpdf(radii),
        "moments": torch.stack([prior.absolute_moment(order) for order in orders], -1),
    }
    compare(actual, expected, 1e-10)


@each_tree
def test_surface_and_sections_lie_at_norm_one(call, case):
    prior, structure, exponents = prior_of(case)
    actual = call(
        f"(structure, exponents) => {{ {TREE} const {{ planes, axes }} = P.views(root); return {{ axes,"
        "mesh: P.mesh(root, axes, 12), planes, sections: planes.map(({ a, b }) => P.section(root, a, b, 48)) }; }",
        *(structure, exponents),
    )
    mesh = torch.tensor(actual["mesh"], dtype=torch.float64)
    points = torch.zeros(*mesh.shape[:-1], prior.tree.n_leaves, dtype=torch.float64)
    points[..., actual["axes"]] = mesh
    np.testing.assert_allclose(prior.norm(points), 1.0, rtol=1e-12)
    assert len(set(actual["axes"])) == 3
    for plane, section in zip(actual["planes"], actual["sections"], strict=True):
        across, up = (torch.tensor(plane[side], dtype=torch.float64) for side in "ab")
        u, v = torch.tensor(section, dtype=torch.float64).unbind(-1)
        np.testing.assert_allclose(prior.norm(u[:, None] * across + v[:, None] * up), 1.0, rtol=1e-12)
        assert (section[0][1], section[12][0], section[24][1]) == (0, 0, 0)  # the cusps are met

    together = [any(set(plane["at"]) <= set(group) for group in prior.subspaces) for plane in actual["planes"][:2]]
    assert together == ["one subspace" in plane["label"] for plane in actual["planes"][:2]]
    assert together == [max(map(len, prior.subspaces)) > 1, len(prior.subspaces) == 1]


@each_tree
def test_samples_follow_their_law(call, case):
    prior, structure, exponents = prior_of(case)
    scale, n, p0 = float(prior.scale), prior.tree.n_leaves, exponents[0]

    def sample(seed: int, count: int = 1000) -> np.ndarray:
        function = f"(structure, exponents, count, s, seed) => {{ {TREE} return P.sample(root, count, s, seed); }}"
        return np.array(call(function, structure, exponents, count, scale, seed))

    def agrees(values, expected):
        assert (np.abs(values.mean(0) - expected) < 5 * values.std(0) / math.sqrt(len(values))).all()

    z = sample(4, 4000)
    radius = scipy.stats.gamma(n / p0).cdf(prior.norm(torch.from_numpy(z)).numpy() ** p0 / scale)
    assert scipy.stats.kstest(radius, scipy.stats.uniform.cdf).pvalue > 1e-3
    first = len(prior.subspaces[0])
    if first < n:  # the value of the first subspace relative to that of the rest
        inside = torch.from_numpy(z * (np.arange(n) < first))
        ratio = (prior.norm(inside) / prior.norm(torch.from_numpy(z) - inside)).numpy() ** p0
        assert scipy.stats.kstest(ratio, scipy.stats.betaprime(first / p0, (n - first) / p0).cdf).pvalue > 1e-3
    for order in (0.5, 1, 2):
        agrees(np.abs(z) ** order, prior.absolute_moment(order).numpy())
    agrees(np.sign(z), 0.0)
    agrees(np.sign(z[:, 0] * z[:, 1]), 0.0)
    agrees((radius[1:] - 0.5) * (radius[:-1] - 0.5), 0.0)  # successive samples are independent
    np.testing.assert_array_equal(sample(4), z[:1000])
    assert abs(scipy.stats.spearmanr(sample(5)[:, 0], z[:1000, 0]).statistic) < 5 / math.sqrt(1000)


@each_tree
def test_correlation_of_squares(call, case):
    prior, structure, exponents = prior_of(case)
    n = prior.tree.n_leaves
    pairs = [(0, 1), (0, n - 1), (n - 2, n - 1), (1, 2)]
    correlation = f"(structure, exponents, s, pairs) => {{ {TREE}"
    correlation += "return pairs.map(([i, j]) => P.squareCorrelation(root, i, j, s)); }"
    torch.manual_seed(0)
    square = prior.sample((60_000,)).square()
    square = (square - square.mean(0)) / square.std(0)
    for (i, j), value in zip(pairs, call(correlation, structure, exponents, float(prior.scale), pairs), strict=True):
        product = square[:, i] * square[:, j]
        assert abs(product.mean() - value) < 5 * product.std() / math.sqrt(len(square))
        assert abs(value) < 1e-12 or any({i, j} <= set(subspace) for subspace in prior.subspaces)
    assert abs(call(correlation, structure, [1.7] * len(exponents), 1, [(0, 1)])[0]) < 1e-12


@pytest.mark.parametrize("beta", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("size", [(2, 2), (3, 2), (2, 3), (4, 1)])
def test_factor_analysis(call, size, beta):
    rng = np.random.default_rng(sum(size))
    W, noise = rng.normal(size=size), rng.uniform(0.01, 1.0, size[0])
    S = factor_analysis.second_moment(rng.normal(size=(9, size[0])))
    actual = call(
        """(W, noise, S, n, beta) => { const F = Explorers.factorAnalysis; return {
            ...F.posterior(W, noise, beta), variance: F.meanField(W, noise, beta),
            ...F.freeEnergyTerms(W, noise, S, n, beta), energy: F.freeEnergy(W, noise, S, n, beta),
            likelihood: F.logLikelihood(W, noise, S, n), gap: F.meanFieldGap(W, noise, n, beta),
            bound: F.replicatedLogLikelihood(W, noise, S, n, beta) }; }""",
        *(W, noise, S, 37, beta),
    )
    expected = {
        **factor_analysis.posterior(W, noise, beta)._asdict(),
        **factor_analysis.free_energy_terms(W, noise, S, 37, beta)._asdict(),
        "variance": factor_analysis.mean_field(W, noise, beta).var,
        "energy": factor_analysis.free_energy(W, noise, S, 37, beta),
        "likelihood": factor_analysis.log_likelihood(W, noise, S, 37),
        "bound": factor_analysis.replicated_log_likelihood(W, noise, S, 37, beta),
        "gap": factor_analysis.mean_field_gap(W, noise, 37, beta),
    }
    compare(actual, expected, 1e-9)


def test_ica_directions(call):
    functions = {"lengths": ica.lengths, "angles": ica.angles, "widestPair": ica.widest_pair}
    functions |= {"survivors": ica.survivors, "ratio": lambda W: ica.lengths(W).min() / ica.lengths(W).max()}
    each = "(W, threshold, names) => Object.fromEntries(names.map(name => [name, Explorers.ica[name](W, threshold)]))"
    for W in np.random.default_rng(0).normal(size=(50, 2, 3)) * np.array([1, 1, 0.1]):
        expected = {name: function(W) for name, function in functions.items()}
        compare(call(each, W, ica.PRUNED, list(functions)), expected, 1e-12)


def luminance(colour: str) -> float:
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ (0.2126, 0.7152, 0.0722)


@pytest.mark.parametrize(
    ("theme", "selector"), [("light", ".explorer {"), ("dark", 'html[data-theme="dark"] .explorer {')]
)
def test_colours_are_the_figures_and_have_contrast(theme, selector):
    text = (SCRIPTS / "explorers.css").read_text(encoding="utf-8").partition(selector)[2].partition("}")[0]
    colours = dict(re.findall(r"--explorer-(\w+): (#[0-9a-f]{6});", text))
    for name in ("blue", "orange", "green", "vermilion", "purple", "sky", "black", "grey"):
        colour = getattr(style, name.upper())
        assert colours[name] == (colour.lower() if theme == "light" else style.DARK[colour])
    assert colours["ground"] == ("#ffffff" if theme == "light" else style.DARK["#ffffff"])
    for name, contrast in {"black": 7, "blue": 3, "vermilion": 3, "green": 3, "grey": 3}.items():
        low, high = sorted(map(luminance, (colours[name], colours["ground"])))
        assert (high + 0.05) / (low + 0.05) >= contrast, name


def test_embedded_data_are_escaped_and_finite():
    html = explorer_html("prior", 'A "title" <b>', {"text": "</script><b>", "values": np.array([0.1, 2.0])})
    assert html.count("</script>") == 1 and "<b>" not in html
    embedded = re.search(r'<script type="application/json">(.*?)</script>', html).group(1)
    assert json.loads(embedded) == {"text": "</script><b>", "values": [0.1, 2.0]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        explorer_html("prior", "x", {"a": np.array([math.inf])})
