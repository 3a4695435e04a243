"""Add the scripts and the style of the figures that move to the pages that hold one, and to no other.

A page holds one where an output says ``data-explorer="NAME"`` (``edition.explorers.explorer``); it then loads
``explorers/base.js``, ``explorers/NAME.js`` and ``explorers/explorers.css`` from the static files.
"""

from __future__ import annotations

import re
from pathlib import Path

from sphinx.errors import SphinxError

FOLDER = "explorers"


class MissingExplorerError(SphinxError):
    category = "Missing explorer"


def add_scripts(app, pagename, templatename, context, doctree):
    names = sorted(set(re.findall(r'data-explorer="([^"]*)"', context.get("body", ""))))
    if not names:
        return
    app.add_css_file(f"{FOLDER}/explorers.css")
    for name in ("base", *names):
        script = f"{FOLDER}/{name}.js"
        if not any((Path(app.confdir) / folder / script).is_file() for folder in app.config.html_static_path):
            raise MissingExplorerError(f"{pagename} asks for {script}, which is in no folder of static files")
        app.add_js_file(script, loading_method="defer")


def setup(app):
    app.connect("html-page-context", add_scripts)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
