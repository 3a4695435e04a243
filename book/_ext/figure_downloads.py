"""Links to the SVG, the PNG and the numbers below every numbered figure of a notebook; hidden figures load when shown.

A figure cell shows all formats in one output (``edition.page.show``); the page displays the first that suits it. Each
is copied under the figure's own name and offered for download, also from cached outputs.
"""

import os
import shutil
from pathlib import Path

from docutils import nodes
from myst_nb.core import render
from PIL import Image
from sphinx import addnodes

SUFFIXES = {"image/svg+xml": "svg", "image/png": "png", "text/csv": "csv"}


class Numbers:
    """Keeps tables of numbers, which MyST-NB would drop with a warning, for the downloads; pages do not show them."""

    mime_priority_overrides = ()

    @staticmethod
    def handle_mime(renderer, data, inline):
        return [nodes.raw("", data.content, format="csv")] if data.mime_type == "text/csv" and not inline else None


def offer_downloads(app, doctree):
    """Add a line of links to every numbered figure of a page."""
    for figure in list(doctree.findall(nodes.figure)):
        formats = {node["mime_type"]: node for node in figure.findall(nodes.Element) if "mime_type" in node}
        kinds = [kind for kind in SUFFIXES if kind in formats and figure["names"]]
        links = [link(app, f"{figure['names'][0]}.{SUFFIXES[kind]}", formats[kind]) for kind in kinds]
        if links:
            figure += nodes.legend("", nodes.paragraph("", "", *links, classes=["figure-downloads"]))
    for tab in doctree.findall(lambda node: isinstance(node, nodes.container) and "sd-tab-item" in node["classes"]):
        for image in tab.findall(nodes.image):
            image["loading"] = "lazy"


def link(app, name: str, output: nodes.Element) -> nodes.Node:
    """Write a file from an output, and return a link to it."""
    target = Path(app.doctreedir).parent / "jupyter_execute" / "figures" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if image := output.next_node(nodes.image):
        shutil.copyfile(Path(app.srcdir, app.env.relfn2path(image["uri"], app.env.docname)[0]), target)
    else:
        target.write_text(output.astext(), encoding="utf-8")
    if target.suffix == ".png":
        small = Image.open(target).convert("RGB")  # for the front page
        small.thumbnail((320, 960))
        small.save(Path(app.outdir, "_static", "thumbnails", name), optimize=True)
    # a path with ".." where the book is built outside of its source
    path = "/" + Path(os.path.relpath(target, app.srcdir)).as_posix()
    label = nodes.literal("", target.suffix[1:].upper(), classes=["xref", "download"])
    return addnodes.download_reference("", "", label, reftarget=path, classes=["figure-download"])


def setup(app):
    # not by an entry point, MyST-NB's own way, which would act on every Sphinx project of an environment that has isa
    render.load_mime_renders().append(Numbers)
    Path(app.outdir, "_static", "thumbnails").mkdir(parents=True, exist_ok=True)
    app.connect("doctree-read", offer_downloads, priority=400)  # before Sphinx collects images and downloads
