"""A figure's SVG in fewer bytes, for pages that load quickly: what is seen stays the same."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
from PIL import Image

__all__ = ["DIGITS", "compact"]

DIGITS = 2
"""Decimals kept of coordinates, which are in points of 1/72 inch: half of the last one is a 14,000th of an inch."""

_METADATA = re.compile(r"\s*<metadata>.*?</metadata>|\s*<!--.*?-->", re.DOTALL)
_PLACES = re.compile(r'(?<= [dxy]=")[^"]+')
_LONG = re.compile(rf"-?\d+\.\d{{{DIGITS + 1},}}")
_PNG = re.compile(r"(?<=data:image/png;base64,)([^\"]+)")


def compact(svg: str) -> str:
    """Drop what is not drawn, round coordinates to :data:`DIGITS` decimals, and store embedded pixels more tightly.

    Pixels are kept exactly: a picture of at most 256 colours gets a palette, an opaque one loses its alpha channel, a
    grey one its colours, whichever is smallest.

    Parameters
    ----------
    svg : str
        As matplotlib writes it.

    Returns
    -------
    str
        An SVG of the same picture.
    """
    svg = _METADATA.sub("", svg)
    svg = _PLACES.sub(lambda found: _LONG.sub(_rounded, found[0]), svg)
    return _PNG.sub(lambda found: base64.b64encode(_repacked(base64.b64decode(found[1]))).decode(), svg)


def _rounded(number: re.Match[str]) -> str:
    text = f"{float(number[0]):.{DIGITS}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _repacked(png: bytes) -> bytes:
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    pixels = np.asarray(image)
    opaque = bool((pixels[..., 3] == 255).all())
    candidates = [image.convert("RGB") if opaque else image]
    if opaque and (pixels[..., :1] == pixels[..., :3]).all():
        candidates.append(image.convert("RGB").getchannel("R"))
    options = {}
    if image.getcolors(256):
        colours, index = np.unique(pixels.reshape(-1, 4), axis=0, return_inverse=True)
        indexed = Image.fromarray(index.reshape(pixels.shape[:2]).astype(np.uint8), "P")
        indexed.putpalette(colours[:, :3].tobytes())
        candidates.append(indexed)
        options = {} if opaque else {"transparency": colours[:, 3].tobytes()}
    packed = [png]
    for candidate in candidates:
        buffer = io.BytesIO()
        candidate.save(buffer, "PNG", optimize=True, **(options if candidate.mode == "P" else {}))
        packed.append(buffer.getvalue())
    return min(packed, key=len)
