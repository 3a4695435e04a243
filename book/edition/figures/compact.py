"""A figure's SVG in fewer bytes, for pages that load quickly: what is seen stays the same."""

from __future__ import annotations

import base64
import io
import re
from decimal import Decimal

import numpy as np
from PIL import Image

__all__ = ["DIGITS", "compact"]

DIGITS = 2
"""Decimals kept of coordinates, which are in points of 1/72 inch: half of the last one is a 14,000th of an inch."""

_METADATA = re.compile(r"\s*<metadata>.*?</metadata>|\s*<!--.*?-->", re.DOTALL)
_PLACES = re.compile(r'(?<= [dxy]=")[^"]+|(?<=<use )[^>]+')
_LONG = re.compile(rf"-?\d+\.\d{{{DIGITS + 1},}}")
_PATH = re.compile(r'(?<= d=")[MLQCz\d\s.-]+(?=")')
_STYLE = re.compile(r'(?<= style=")[^"]+')
_NAME = re.compile(r'(?<= id=")[^"]+')
_USE = re.compile(r'(?<=href="#)[^"]+|(?<=url\(#)[^)]+')
_PNG = re.compile(r"(?<=data:image/png;base64,)([^\"]+)")


def compact(svg: str) -> str:
    """Drop what is not drawn, round coordinates to :data:`DIGITS` decimals, and write the rest more tightly.

    Coordinates of a path become relative, exactly, and names short. Pixels are kept exactly: a picture of at most 256
    colours gets a palette, an opaque one loses its alpha channel, a grey one its colours, whichever is smallest.

    Parameters
    ----------
    svg : str
        As matplotlib writes it, its text as paths.

    Returns
    -------
    str
        An SVG of the same picture.
    """
    svg = _METADATA.sub("", svg)
    svg = _PLACES.sub(lambda found: _LONG.sub(_rounded, found[0]), svg)
    svg = _PATH.sub(lambda found: _relative(found[0]), svg)
    svg = _STYLE.sub(lambda found: re.sub(r"\s*([:;])\s*", r"\1", found[0]), svg)
    svg = _renamed(svg)
    svg = re.sub(r">\s+<", "><", svg)
    return _PNG.sub(lambda found: base64.b64encode(_repacked(base64.b64decode(found[1]))).decode(), svg)


def _rounded(number: re.Match[str]) -> str:
    text = f"{float(number[0]):.{DIGITS}f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _relative(path: str) -> str:
    """A path, given in absolute coordinates, in relative ones."""
    written, last = "", ""
    pen = start = (Decimal(0), Decimal(0))
    for command, text in re.findall(r"([MLQCz])([^MLQCz]*)", path):
        numbers = [Decimal(number) for number in text.split()]
        points = list(zip(numbers[::2], numbers[1::2], strict=True))
        steps = [x - y for point in points for x, y in zip(point, pen, strict=True)]
        pen = points[-1] if points else start
        start = pen if command == "M" else start
        # without its letter a command repeats the one before, or, after a move, is a line
        letter = "" if command != "M" and command == {"M": "L"}.get(last, last) else command.lower()
        last = command
        for step in steps:
            number = re.sub(r"^(-?)0\.", r"\1.", f"{step.normalize() + 0:f}")  # + 0: no sign of a zero
            letter += number if letter[-1:].isalpha() or number.startswith("-") else f" {number}"
        written += letter
    return written


def _renamed(svg: str) -> str:
    """Without names that nothing refers to, and the others short."""
    used = dict.fromkeys(_USE.findall(svg))
    short = {name: f"n{number:x}" for number, name in enumerate(used)}
    svg = re.sub(r' id="([^"]+)"', lambda found: found[0] if found[1] in short else "", svg)
    return _USE.sub(lambda found: short[found[0]], _NAME.sub(lambda found: short[found[0]], svg))


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
