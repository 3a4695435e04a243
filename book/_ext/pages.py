"""What the pages of this book need beyond the theme's: the files of their explorers, nothing from elsewhere, no gaps.

An output that says ``data-explorer="NAME"`` (``edition.explorers.explorer``) is an explorer. Its page, and no other,
loads ``explorers/base.js``, ``explorers/NAME.js`` and ``explorers/explorers.css`` from the static files. Where its data
say ``"file":"runs/decoders/NAME.safetensors"`` or ``"runs/portraits/NAME.npz"``, the reader may ask for this file
later, and it is put beside the page: a decoder as a script, ``_static/explorers/files/NAME.js``, since a browser lets a
page that was opened from disk read no other kind of file; a portrait's traversals as a picture, ``NAME.png``.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from PIL import Image
from sphinx.errors import SphinxError

ASKED = re.compile(r'"file":"(runs/(?:decoders/[\w.-]+\.safetensors|portraits/[\w.-]+\.npz))"')


class PageError(SphinxError):
    category = "Incomplete page"


def add_explorers(app, pagename, templatename, context, doctree):
    body = context.get("body", "")
    names = sorted(set(re.findall(r'data-explorer="([^"]*)"', body)))
    if not names or app.builder.format != "html":
        return
    app.add_css_file("explorers/explorers.css")
    for name in ("base", *names):
        script = f"explorers/{name}.js"
        if not any((Path(app.confdir) / folder / script).is_file() for folder in app.config.html_static_path):
            raise PageError(f"{pagename} asks for {script}, which is in no folder of static files")
        app.add_js_file(script, loading_method="defer")
    for name in sorted(set(ASKED.findall(body))):
        try:
            write(Path(app.srcdir, name), Path(app.outdir, "_static", "explorers", "files"))
        except (OSError, ValueError) as error:
            raise PageError(f"{pagename} asks for {name}: {error}") from error


def write(source: Path, folder: Path) -> None:
    """Put a decoder or the traversals of a portrait into a folder, in a form that a page can load."""
    folder.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".npz":
        traversals(source).save(folder / f"{source.stem}.png", optimize=True)
    else:
        from edition.explorers.decoders import to_script

        (folder / f"{source.stem}.js").write_text(to_script(source), encoding="ascii")


def traversals(path: Path) -> Image.Image:
    """All traversals of a portrait as one picture, without gaps: rows by start, then by latent, columns by step."""
    from isa.latents import Portrait

    tiles = np.swapaxes(Portrait.load(path).traversals, 0, 1)  # (S, A, T, C, H, W)
    starts, latents, steps, channels, height, width = tiles.shape
    pixels = tiles.transpose(0, 1, 4, 2, 5, 3).reshape(starts * latents * height, steps * width, channels)
    return Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)


def mend_bibliography(app, pagename, templatename, context, doctree):
    """Take the role of a list from bibliographies, whose entries are not list items: a screen reader finds it empty."""
    if "body" in context:
        context["body"] = context["body"].replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )


def without_live_code(app, config):
    """Disconnect ``sphinx_thebe``, which names a script of a foreign host on every page, for cells that none has."""
    for event, listeners in app.events.listeners.items():
        if event == "builder-inited":  # where its style sheet is announced, which the pages name already
            continue
        for listener in list(listeners):
            if listener.handler.__module__.partition(".")[0] == "sphinx_thebe":
                app.disconnect(listener.id)


def load_formulas_in_parts(app, config):
    """Start MathJax without its menu: the parts that the configuration names, in place of one script of a megabyte."""
    config.mathjax_path = "mathjax/startup.js"


def check_pages(app, exception):
    """Fail the build when a page named in the table of contents has not been written."""
    if exception is not None or app.builder.format != "html":
        return
    missing = [name for name in app.config.external_site_map if not Path(app.builder.get_outfilename(name)).is_file()]
    if missing:
        raise PageError(f"_toc.yml names pages that were not built: {', '.join(sorted(missing))}")


def setup(app):
    app.connect("config-inited", without_live_code)
    app.connect("config-inited", load_formulas_in_parts)  # after the extension that brings MathJax
    app.connect("html-page-context", add_explorers)
    app.connect("html-page-context", mend_bibliography)
    app.connect("build-finished", check_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
