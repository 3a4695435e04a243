"""Put links to the SVG, the PNG and the numbers beneath every numbered figure of a notebook.

A figure cell shows all formats in one output (``edition.page.show``); the page displays the first that suits it. This
transform copies each under the figure's own name and offers it for download, so the links also work for outputs that
come from the execution cache. A figure of pictures has no numbers (``edition.figures.numbers``), and no such link.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from docutils import nodes
from myst_nb.core import render
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

IMAGES = {"image/svg+xml": "svg", "image/png": "png"}
TABLE = "text/csv"


class Numbers:
    """Lets a notebook's output of this type through to the transform; MyST-NB would warn of it and drop it."""

    mime_priority_overrides = ()

    @staticmethod
    def handle_mime(renderer, data, inline):
        return [nodes.raw("", data.content, format="csv")] if data.mime_type == TABLE and not inline else None


class FigureDownloads(SphinxTransform):
    default_priority = 400

    def apply(self, **kwargs) -> None:
        for bundle in list(self.document.findall(nodes.container)):
            if bundle.get("nb_element") == "mime_bundle":
                formats = {child["mime_type"]: child for child in bundle.children if "mime_type" in child}
                figure = bundle.parent
                while figure is not None and not isinstance(figure, nodes.figure):
                    figure = figure.parent
                if figure is not None and figure["names"] and set(IMAGES) <= set(formats):
                    figure += nodes.legend("", self._links(figure["names"][0], formats))
                if TABLE in formats:
                    bundle.remove(formats[TABLE])

    def _links(self, name: str, formats: dict[str, nodes.Element]) -> nodes.paragraph:
        line = nodes.paragraph(classes=["figure-downloads"])
        for mime_type, suffix in IMAGES.items():
            uri = formats[mime_type].next_node(nodes.image)["uri"]
            source = Path(self.env.srcdir, self.env.relfn2path(uri, self.env.docname)[0])
            line += self._link(name, suffix, lambda target, source=source: shutil.copyfile(source, target))
            line += nodes.Text(" ")
        if TABLE in formats:
            text = formats[TABLE].astext()
            line += self._link(name, "csv", lambda target: target.write_text(text, encoding="utf-8"))
        return line

    def _link(self, name: str, suffix: str, write) -> nodes.Node:
        target = Path(self.app.doctreedir).parent / "jupyter_execute" / "figures" / f"{name}.{suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        write(target)
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
    # Not an entry point, MyST-NB's own way: it would act on every Sphinx project of an environment that has isa.
    renderers = render.load_mime_renders()
    if Numbers not in renderers:
        render.load_mime_renders = lambda: [*renderers, Numbers]
    app.add_transform(FigureDownloads)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
