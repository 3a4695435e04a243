"""Say at the foot of every notebook's page how to make it again: the notebook, the command, the time that it took.

The time is that of the page's last execution, which the execution cache remembers. Buttons that run a page elsewhere
need the address of a public clone (``repository: url`` in ``_config.yml``); without one, this takes them off.
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

PARAMETERS = "book/reproducing"  # the page that lists the parameters of all notebooks


def duration(seconds: float) -> str:
    """A time in words that promise no more than it is worth: another machine takes another time."""
    if seconds < 1:
        return "less than a second"
    if seconds < 100:
        return f"{seconds:.0f} seconds" if round(seconds) > 1 else "one second"
    return f"{seconds / 60:.0f} minutes"


class Reproduce(SphinxTransform):
    default_priority = 401

    def apply(self, **kwargs) -> None:
        path = Path(self.env.doc2path(self.env.docname))
        section = self.document.next_node(nodes.section)
        if path.suffix != ".ipynb" or section is None:
            return
        download = addnodes.download_reference(
            "",
            "",
            nodes.literal("", path.name, classes=["xref", "download"]),
            reftarget=f"/{self.env.docname}.ipynb",
            refdoc=self.env.docname,
            refexplicit=True,
            refdomain="",
        )
        execution = NbMetadataCollector.get_exec_data(self.env, self.env.docname)
        took = f", in {duration(execution['runtime'])} when this book was built" if execution else ""
        first = nodes.paragraph("", "", nodes.strong("", "Make this page again."), nodes.Text(" It is the notebook "))
        first += [download, nodes.Text(". From the repository's root, this command makes its figures and numbers")]
        first += nodes.Text(f" with the values of this page{took}:")
        command = f"papermill {self.env.docname}.ipynb {path.stem}-out.ipynb"
        last = nodes.paragraph("", "", nodes.Text("For other values add "), nodes.literal("", "-p NAME VALUE"))
        last += nodes.Text(", once for each name in its first code cell")
        if PARAMETERS in self.env.found_docs:
            last += [nodes.Text("; "), self._page(PARAMETERS, "all names and values"), nodes.Text(" are listed")]
        last += nodes.Text(".")
        box = nodes.container(
            "", first, nodes.literal_block(command, command, language="shell"), last, classes=["reproduce"]
        )
        section += box

    def _page(self, docname: str, text: str) -> nodes.Node:
        return addnodes.pending_xref(
            "",
            nodes.inline("", text),
            refdomain="std",
            reftype="doc",
            reftarget=f"/{docname}",
            refdoc=self.env.docname,
            refexplicit=True,
            refwarn=True,
        )


def without_an_address(app, config):
    if not config.html_theme_options.get("repository_url"):
        config.html_theme_options.pop("launch_buttons", None)


def setup(app):
    app.connect("config-inited", without_an_address)
    app.add_transform(Reproduce)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
