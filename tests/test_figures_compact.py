"""An SVG in fewer bytes shows the same picture."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from matplotlib import pyplot as plt
from PIL import Image

from edition.figures.compact import DIGITS, compact

RNG = np.random.default_rng(3)
NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)")


def svg_of(figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    return buffer.getvalue()


def drawn() -> str:
    figure, axes = plt.subplots(1, 2)
    axes[0].plot(RNG.standard_normal(200), RNG.standard_normal(200), "o", alpha=0.4, rasterized=True)
    axes[0].plot(RNG.standard_normal(50).cumsum(), color="C1", marker="s")
    axes[0].set_title(r"$\beta = 1$, and words")
    axes[1].imshow(RNG.integers(0, 256, (40, 30)), cmap="gray")
    axes[1].fill_between([0, 1, 2], [0, 1, 0], [2.123456, 3, 4], alpha=0.2)
    return svg_of(figure)


def elements(svg: str) -> list[ElementTree.Element]:
    drops = ("metadata", "RDF", "Work", "type", "format", "creator", "Agent", "title", "date")
    return [element for element in ElementTree.fromstring(svg).iter() if element.tag.split("}")[-1] not in drops]


def pictures(svg: str) -> list[np.ndarray]:
    found = re.findall(r'data:image/png;base64,\s*([^"]+)', svg)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGBA")) for png in found]


def absolute(path: str) -> list[tuple[str, float, float]]:
    """Every point that a path names, where it lies and by which command, read letter by letter."""
    pen = start = np.zeros(2)
    points, command, size = [], "", {"m": 1, "l": 1, "q": 2, "c": 3}
    pieces = re.findall(rf"[A-Za-z]|{NUMBER.pattern}", path)
    while pieces:
        if pieces[0].isalpha():
            command = pieces.pop(0)
        kind = command.lower()
        if kind == "z":
            points.append((kind, *start))
            pen = start
            continue
        origin = pen if command == kind else 0
        for _ in range(size[kind]):
            point = origin + np.array([float(pieces.pop(0)), float(pieces.pop(0))])
            points.append((kind, *point))
        pen = point
        if kind == "m":
            start, command = pen, {"m": "l", "M": "L"}[command]
    return points


def test_everything_stays_where_it_is():
    before = drawn()
    after = compact(before)
    assert len(after) < 0.65 * len(before)
    pairs = list(zip(elements(before), elements(after), strict=True))
    assert len(pairs) > 100
    names = {old.get("id"): new.get("id") for old, new in pairs}
    moved = 0
    for old, new in pairs:
        assert old.tag == new.tag and (old.text or "").strip() == (new.text or "").strip()
        assert old.attrib.keys() - {"id"} == new.attrib.keys() - {"id"}
        for name, value in old.attrib.items():
            if name == "d":
                one, other = absolute(value), absolute(new.attrib[name])
                assert [point[0] for point in one] == [point[0] for point in other]
                away = np.abs(np.array([point[1:] for point in one]) - np.array([point[1:] for point in other]))
                assert away.max(initial=0) <= 0.5 * 10**-DIGITS + 1e-9
                moved += away.any()
            elif name in ("x", "y") or (old.tag.endswith("}use") and name == "transform"):
                assert NUMBER.sub("", value) == NUMBER.sub("", new.attrib[name])
                one, other = (np.array(NUMBER.findall(text), dtype=float) for text in (value, new.attrib[name]))
                assert np.abs(one - other).max(initial=0) <= 0.5 * 10**-DIGITS + 1e-9
                moved += (one != other).any()
            elif name.endswith("href") and value.startswith("#"):
                assert new.attrib[name] == f"#{names[value[1:]]}"
            elif name == "clip-path":
                assert new.attrib[name] == f"url(#{names[value[5:-1]]})"
            elif name == "style":
                assert new.attrib[name].split(";") == re.sub(r"\s*([:;])\s*", r"\1", value).split(";")
            elif name != "id" and "base64" not in value:
                assert value == new.attrib[name], f"{name} of {old.tag}"
    assert moved > 10
    assert len({name for name in names.values() if name}) > 10


def test_a_browser_draws_the_same(browser, tmp_path):
    before = drawn()
    seen = []
    for name, svg in (("before", before), ("after", compact(before))):
        page = tmp_path / f"{name}.html"
        page.write_text(f"<!doctype html><title>{name}</title>{svg[svg.index('<svg') :]}", encoding="utf-8")
        browser.resize(800, 600)
        browser.open(page)
        browser.screenshot(tmp_path / f"{name}.png")
        seen.append(np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"), dtype=int))
    away = np.abs(seen[0] - seen[1])
    assert seen[0].std() > 10
    assert away.max() <= 16 and away.mean() < 0.05  # of 255: edges move by a 14,000th of an inch


@pytest.mark.parametrize(
    ("path", "short"),
    [
        ("M 1 2 \nL 3 2 \nL 3 5.5 \nz\n", "m1 2 2 0 0 3.5z"),
        ("M 0.5 -0.25 L 0.25 0 M 4000 4 L 4 4000", "m.5-.25-.25 .25m3999.75 4-3996 3996"),
        ("M 1 1 L 2 2 z M 3 3 L 2 3", "m1 1 1 1zm2 2-1 0"),
        ("M 0 0 Q 1 1 2 0 Q 3 1 4 0 C 5 1 6 2 7 3 L 0 0 L 1.5 1.5", "m0 0q1 1 2 0 1 1 2 0c1 1 2 2 3 3l-7-3 1.5 1.5"),
        ("", ""),
        ("M 0 0 L nan nan", "M 0 0 L nan nan"),
    ],
)
def test_paths_become_relative(path, short):
    assert compact(f'<svg><path d="{path}"/></svg>') == f'<svg><path d="{short}"/></svg>'


def test_names_that_nothing_refers_to_go_and_the_others_are_short():
    svg = (
        '<svg id="figure_1"><path id="mark"/><clipPath id="box"/><use xlink:href="#mark" clip-path="url(#box)"/></svg>'
    )
    assert compact(svg) == ('<svg><path id="n0"/><clipPath id="n1"/><use xlink:href="#n0" clip-path="url(#n1)"/></svg>')


def test_pixels_stay_as_they_are():
    svg = drawn()
    before, after = pictures(svg), pictures(compact(svg))
    assert len(before) == 2
    for old, new in zip(before, after, strict=True):
        assert np.array_equal(old, new)


@pytest.mark.parametrize(
    "pixels",
    [
        RNG.integers(0, 256, (9, 7, 4)).astype(np.uint8),
        np.concatenate([RNG.integers(0, 256, (9, 7, 3)), np.full((9, 7, 1), 255)], 2).astype(np.uint8),
        np.repeat(RNG.integers(0, 256, (40, 50, 1)), 4, axis=2).astype(np.uint8),
        np.array([[0, 0, 0, 0], [255, 0, 0, 128], [9, 9, 9, 255]], np.uint8)[RNG.integers(0, 3, (30, 30))],
        np.array([[0, 0, 0, 255], [7, 7, 7, 255]], np.uint8)[RNG.integers(0, 2, (64, 64))],
    ],
    ids=["any", "opaque", "grey and transparent", "few colours", "opaque and grey"],
)
def test_every_kind_of_picture_survives(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG", compress_level=1)
    svg = f'<svg><image href="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"/></svg>'
    small = compact(svg)
    assert len(small) <= len(svg)
    assert np.array_equal(pictures(small)[0], pixels)


def test_what_scales_is_not_rounded():
    svg = '<svg><g transform="scale(0.015625) translate(1.23456 2)"><path d="M 1.23456 -0.0004 L 2 3.999"/></g></svg>'
    assert compact(svg) == (
        '<svg><g transform="scale(0.015625) translate(1.23456 2)"><path d="m1.23 0 .77 4"/></g></svg>'
    )
