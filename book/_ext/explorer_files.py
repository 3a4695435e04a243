"""Put beside the pages what their explorers load only when it is asked for.

A page asks where the data of an explorer say ``"file":"runs/decoders/NAME.bin"`` or ``"runs/portraits/NAME.npz"``. The
decoder becomes a script, ``_static/explorers/files/NAME.js``, since a browser lets a page that was opened from disk
read no other kind of file; the portrait's traversals become a picture, ``NAME.png``: for every image that they start
from, a row of tiles for each active latent.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image
from sphinx.errors import SphinxError

FOLDER = "explorers/files"
ASKED = re.compile(r'"file":"(runs/(?:decoders/[\w.-]+\.bin|portraits/[\w.-]+\.npz))"')


class ExplorerFileError(SphinxError):
    category = "Missing file of an explorer"


def traversals(path: Path) -> Image.Image:
    """All traversals of a portrait as one picture, without gaps: rows by start, then by latent, columns by step."""
    from isa.latents import Portrait

    tiles = np.swapaxes(Portrait.load(path).traversals, 0, 1)  # (S, A, T, C, H, W)
    starts, latents, steps, channels, height, width = tiles.shape
    pixels = tiles.transpose(0, 1, 4, 2, 5, 3).reshape(starts * latents * height, steps * width, channels)
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)


def write(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".npz":
        traversals(source).save(folder / f"{source.stem}.png", optimize=True)
    else:
        from edition.explorers.decoders import to_script

        (folder / f"{source.stem}.js").write_text(to_script(source), encoding="ascii")


def add_files(app, pagename, templatename, context, doctree):
    if app.builder.format != "html":
        return
    for name in sorted(set(ASKED.findall(context.get("body", "")))):
        try:
            write(Path(app.srcdir, name), Path(app.outdir, "_static", FOLDER))
        except (OSError, ValueError) as error:
            raise ExplorerFileError(f"{pagename} asks for {name}: {error}") from error


def setup(app):
    app.connect("html-page-context", add_files)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
