"""Put links to the SVG and the PNG beneath every numbered figure of a notebook.

A figure cell shows both formats in one output (``isa.notebook.show``); the page displays the first that suits it. This
transform copies both under the figure's own name and offers them for download, so the links also work for outputs that
come from the execution cache.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

FORMATS = {"image/svg+xml": "svg", "image/png": "png"}


class FigureDownloads(SphinxTransform):
    default_priority = 400

    def apply(self, **kwargs) -> None:
        for figure in self.document.findall(nodes.figure):
            bundles = [node for node in figure.findall(nodes.container) if node.get("nb_element") == "mime_bundle"]
            images = {
                child["mime_type"]: child for bundle in bundles for child in bundle.children if "mime_type" in child
            }
            if not set(FORMATS) <= set(images) or not figure["names"]:
                continue
            line = nodes.paragraph(classes=["figure-downloads"])
            for mime_type, suffix in FORMATS.items():
                line += self._link(images[mime_type].next_node(nodes.image), figure["names"][0], suffix)
                line += nodes.Text(" ")
            figure += nodes.legend("", line)

    def _link(self, image: nodes.image, name: str, suffix: str) -> nodes.Node:
        source = Path(self.env.srcdir, self.env.relfn2path(image["uri"], self.env.docname)[0])
        target = Path(self.app.doctreedir).parent / "jupyter_execute" / "figures" / f"{name}.{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        # a path with ".." where the book is built outside of its source
        uri = "/" + Path(os.path.relpath(target, self.env.srcdir)).as_posix()
        label = nodes.literal("", suffix.upper(), classes=["xref", "download"])
        return addnodes.download_reference(
            "",
            "",
            label,
            reftarget=uri,
            refdoc=self.env.docname,
            refexplicit=True,
            refdomain="",
            classes=["figure-download"],
        )


def setup(app):
    app.add_transform(FigureDownloads)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
