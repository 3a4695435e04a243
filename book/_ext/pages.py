"""Additions to the theme's pages: a notebook's foot, scripts and files of explorers; and nothing from other hosts.

The foot has the notebook, the command that runs it again, and the time that it took.
An output with ``data-explorer="NAME"`` (``edition.explorers.explorer``) is an explorer. Its page, and no other, loads
``explorers/base.js``, ``explorers/NAME.js`` and ``explorers/explorers.css`` from the static files. Where its data say
``"file":"runs/decoders/NAME"`` or ``"runs/portraits/NAME"``, the reader may ask for this file later. It is
written to ``_static/explorers/files``: a decoder as a script, ``NAME.js``, since a page that was opened from disk can
load no other kind of file; a portrait's traversals as a picture, ``NAME.png``.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

FILES = re.compile(r'"file":"(runs/(?:decoders|portraits)/[\w.-]+)"')
FOOT = """\
::::{{container}} reproduce
**Reproduce this page.** It is the notebook {{download}}`{file} </{name}.ipynb>`{origin}.
From the repository's root, this command makes its figures and numbers with the values of this page{time}:

```shell
papermill {name}.ipynb {stem}-out.ipynb
```

For other values add `-p NAME VALUE`, once for each of these names;
[all names and values](/book/reproducing) are listed.{colab}
::::
"""
COLAB = """

On Colab, run `!git clone {0} edition && pip install --quiet --editable './edition[book]'` in a cell and restart the
session before the first cell of the page."""


def add_explorers(app, pagename, templatename, context, doctree):
    """Let a page load what its explorers need."""
    body = context.get("body", "")
    names = sorted(set(re.findall(r'data-explorer="([^"]*)"', body)))
    if not names or app.builder.format != "html":
        return
    app.add_css_file("explorers/explorers.css")
    for name in ("base", *names):
        app.add_js_file(f"explorers/{name}.js", loading_method="defer")
    for name in sorted(set(FILES.findall(body))):
        from edition.explorers.exhibits import write_file

        write_file(Path(app.srcdir, name), Path(app.outdir, "_static", "explorers", "files"))


def add_foot(app, docname, source):
    """Append the foot to a notebook."""
    path = Path(app.env.doc2path(docname))
    if path.suffix == ".ipynb":
        seconds = getattr(app.env, "notebook_seconds", {}).get(docname)
        time = "" if seconds is None else f", in {max(seconds, 1):.0f} s when this book was built"
        notebook = nbformat.reads(source[0], as_version=4)
        other = notebook.metadata.get("variant_of")
        origin = f", which `make book` writes from `{other}` by `book/variants.yaml`" if other else ""
        colab = COLAB.format(app.config.repository) if app.config.repository else ""
        foot = FOOT.format(file=path.name, stem=path.stem, name=docname, origin=origin, time=time, colab=colab)
        notebook.cells.append(nbformat.v4.new_markdown_cell(foot))
        source[0] = nbformat.writes(notebook)


class ParametersLast(SphinxPostTransform):
    """Move the cell of parameters to the foot of the page, next to the command that takes them."""

    default_priority = 400

    def run(self, **kwargs):
        containers = list(self.document.findall(nodes.container))
        for foot in (node for node in containers if "reproduce" in node["classes"]):
            for cell in (node for node in containers if "tag_parameters" in node["classes"]):
                cell.parent.remove(cell)
                foot += cell


def mend_bibliography(app, pagename, templatename, context, doctree):
    """Drop the role of a list from bibliographies, whose entries are not list items: a screen reader finds it empty."""
    if "body" in context:
        context["body"] = context["body"].replace('<div role="list" class="citation', '<div class="citation')


def keep_local(app, config):
    """Disconnect ``sphinx_thebe``, which puts a script of a foreign host on every page; load MathJax in parts."""
    for event, listeners in app.events.listeners.items():
        for listener in list(listeners):
            # on "builder-inited" it announces its style sheet, which the pages name already
            if event != "builder-inited" and listener.handler.__module__.startswith("sphinx_thebe"):
                app.disconnect(listener.id)
    config.mathjax_path = "mathjax/startup.js"  # without the menu, and only the parts that the configuration names
    config.repository = config.html_theme_options.get("repository_url", "")
    if config.repository:
        owner, name = config.repository.rstrip("/").split("/")[-2:]
        config.html_baseurl = config.html_baseurl or f"https://{owner}.github.io/{name}/"
    else:  # without a public clone, no page can be run elsewhere
        config.html_theme_options.pop("launch_buttons", None)


def setup(app):
    app.add_config_value("repository", "", "env")  # pages are read again when it changes
    app.connect("config-inited", keep_local)  # after the extension that brings MathJax
    app.connect("source-read", add_foot)
    app.connect("html-page-context", add_explorers)
    app.connect("html-page-context", mend_bibliography)
    app.add_post_transform(ParametersLast)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
