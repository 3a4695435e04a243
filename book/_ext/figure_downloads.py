"""Links to the SVG, the PNG and the numbers below every numbered figure of a notebook.

A figure cell shows all formats in one output (``edition.page.show``); the page displays the first that suits it. This
transform copies each under the figure's own name and offers it for download, also from cached outputs.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from docutils import nodes
from myst_nb.core import render
from PIL import Image
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

IMAGES = {"image/svg+xml": "svg", "image/png": "png"}
TABLE = "text/csv"


class Numbers:
    """Hands outputs of type text/csv to the transform; MyST-NB would warn and drop them."""

    mime_priority_overrides = ()

    @staticmethod
    def handle_mime(renderer, data, inline):
        return [nodes.raw("", data.content, format="csv")] if data.mime_type == TABLE and not inline else None


class FigureDownloads(SphinxTransform):
    default_priority = 400

    def apply(self, **kwargs) -> None:
        self.thumbnails = Path(self.app.outdir, "_static", "thumbnails")
        self.thumbnails.mkdir(parents=True, exist_ok=True)
        for figure in list(self.document.findall(nodes.figure)):
            formats = {node["mime_type"]: node for node in figure.findall(nodes.Element) if "mime_type" in node}
            if figure["names"] and set(IMAGES) <= set(formats):
                line = nodes.paragraph(classes=["figure-downloads"])
                for kind, suffix in (IMAGES | {TABLE: "csv"}).items():
                    if kind in formats:
                        line += [self._link(f"{figure['names'][0]}.{suffix}", formats[kind]), nodes.Text(" ")]
                figure += nodes.legend("", line)
        for node in list(self.document.findall(nodes.Element)):
            if node.get("mime_type") == TABLE:
                node.parent.remove(node)

    def _link(self, name: str, output: nodes.Element) -> nodes.Node:
        """Write a file from an output, and return a link to it."""
        target = Path(self.app.doctreedir).parent / "jupyter_execute" / "figures" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if image := output.next_node(nodes.image):
            shutil.copyfile(Path(self.env.srcdir, self.env.relfn2path(image["uri"], self.env.docname)[0]), target)
            if target.suffix == ".png":
                small = Image.open(target).convert("RGB")  # for the front page
                small.thumbnail((320, 960))
                small.save(self.thumbnails / name, optimize=True)
        else:
            target.write_text(output.astext(), encoding="utf-8")
        # a path with ".." where the book is built outside of its source
        path = "/" + Path(os.path.relpath(target, self.env.srcdir)).as_posix()
        label = nodes.literal("", target.suffix[1:].upper(), classes=["xref", "download"])
        options = {"refdoc": self.env.docname, "refexplicit": True, "refdomain": "", "classes": ["figure-download"]}
        return addnodes.download_reference("", "", label, reftarget=path, **options)


def setup(app):
    # not by an entry point, MyST-NB's own way, which would act on every Sphinx project of an environment that has isa
    renderers = render.load_mime_renders()
    if Numbers not in renderers:
        render.load_mime_renders = lambda: [*renderers, Numbers]
    app.add_transform(FigureDownloads)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
