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

from isa.figures.compact import DIGITS, compact

RNG = np.random.default_rng(3)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


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


def test_everything_stays_where_it_is():
    before = drawn()
    after = compact(before)
    assert len(after) < 0.85 * len(before)
    pairs = list(zip(elements(before), elements(after), strict=True))
    assert len(pairs) > 100
    moved = 0
    for old, new in pairs:
        assert old.tag == new.tag and (old.text or "").strip() == (new.text or "").strip()
        assert old.attrib.keys() == new.attrib.keys()
        for name, value in old.attrib.items():
            if name in ("d", "x", "y"):
                assert NUMBER.sub("", value) == NUMBER.sub("", new.attrib[name])
                one, other = (np.array(NUMBER.findall(text), dtype=float) for text in (value, new.attrib[name]))
                assert np.abs(one - other).max(initial=0) <= 0.5 * 10**-DIGITS + 1e-9
                moved += (one != other).any()
            elif not name.endswith("href") or "base64" not in value:
                assert value == new.attrib[name], f"{name} of {old.tag}"
    assert moved > 10


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
        '<svg><g transform="scale(0.015625) translate(1.23456 2)"><path d="M 1.23 0 L 2 4"/></g></svg>'
    )
