"""Additions to the theme's pages: a notebook's foot, explorers, minus signs; and nothing from other hosts.

An output with ``data-explorer="NAME"`` (``edition.explorers.explorer``) is an explorer. Its page, and no other, loads
``explorers/base.js``, ``explorers/NAME.js`` and ``explorers/explorers.css`` from the static files. Files of ``runs/``
that its data name as ``"file"`` may be loaded later. They are written to ``_static/explorers/files``: a decoder as a
script, since a page that was opened from disk can load no other kind of file; a portrait's traversals as a picture.
"""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
from docutils import nodes
from jinja2 import Template

FILES = re.compile(r'"file":"(runs/(?:decoders|portraits)/[\w.-]+)"')
MINUS = re.compile(r"(?<![\w./-])-(?=\d)|(?<=\de)-(?=\d)")
NUMBERS = re.compile(r"(< )?[+−\d][\d.,e+−]*( (to|and|of) [+−\d][\d.,e+−]*)?")
FOOT = Template(Path(__file__).with_name("foot.jinja").read_text(encoding="utf-8"))


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
        notebook = nbformat.reads(source[0], as_version=4)
        execution = getattr(app.env, "executions", {}).get(docname, {})
        names = {"page": docname, "path": path, "source": notebook.metadata.get("variant_of")}
        foot = FOOT.render(names, repository=app.config.repository, seconds=execution.get("execution_seconds"))
        notebook.cells.append(nbformat.v4.new_markdown_cell(foot))
        source[0] = nbformat.writes(notebook)


def move_parameters(app, doctree, docname):
    """Move the cell of parameters to the foot of the page, next to the command that takes them."""
    containers = list(doctree.findall(nodes.container))
    for foot in (node for node in containers if "reproduce" in node["classes"]):
        for cell in (node for node in containers if "tag_parameters" in node["classes"]):
            cell.parent.remove(cell)
            foot += cell


def set_numbers(app, doctree, docname):
    """Set minus signs before numbers, and keep a number or an interval in a table on one line."""
    for text in list(doctree.findall(nodes.Text)):
        if type(text.parent) in (nodes.paragraph, nodes.inline, nodes.strong, nodes.emphasis, nodes.caption):
            words = MINUS.sub("−", text)
            fixed = isinstance(text.parent.parent, nodes.entry) and NUMBERS.fullmatch(words)
            text.parent.replace(text, nodes.Text(words.replace(" ", "\u00a0") if fixed else words))


def keep_local(app, config):
    """Disconnect ``sphinx_thebe``, which puts a script of a foreign host on every page; load MathJax in parts."""
    for event, listeners in app.events.listeners.items():
        if event != "builder-inited":  # when it announces its style sheet, which the pages name already
            listeners[:] = [entry for entry in listeners if "sphinx_thebe" not in entry.handler.__module__]
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
    app.connect("doctree-resolved", move_parameters)
    app.connect("doctree-resolved", set_numbers)
