"""Keep pages light: what the theme and the formulas' script would load for nothing is left out.

A page would otherwise weigh more than three megabytes before its first word. The theme loses the icons that it has
twice and the search index (its search page reads it); the formulas' script is loaded in parts, without its menu.
"""

from __future__ import annotations

from pathlib import Path

FORMULAS = ["core", "input/tex", "output/chtml", "a11y/assistive-mml"]


def lighten(app, config):
    config.templates_path.append(str(Path(__file__).parent / "templates"))
    config.mathjax_path = "mathjax/startup.js"
    config.mathjax3_config = {**(config.mathjax3_config or {}), "loader": {"load": FORMULAS}}


def setup(app):
    app.connect("config-inited", lighten)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
