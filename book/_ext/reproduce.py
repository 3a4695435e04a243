"""At the foot of every notebook's page: the notebook, the command that runs it again, and the time that it took.

Buttons that run a page elsewhere need the address of a public clone (``repository: url`` in ``_config.yml``) and are
removed without one.
"""

from __future__ import annotations

from pathlib import Path

import nbformat

FOOT = """\
::::{{container}} reproduce
**Reproduce this page.** It is the notebook {{download}}`{file} </{name}.ipynb>`. From the repository's root, this
command makes its figures and numbers with the values of this page{time}:

```shell
papermill {name}.ipynb {stem}-out.ipynb
```

For other values add `-p NAME VALUE`, once for each name in its first code cell{listed}.
::::
"""
PARAMETERS = "book/reproducing"  # the page that lists the parameters of all notebooks


def duration(seconds: float) -> str:
    """Return a time in words, rounded, since another machine takes another time."""
    if seconds < 1.5:
        return "one second" if seconds >= 1 else "less than a second"
    return f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"


def add_foot(app, docname, source):
    path = Path(app.env.doc2path(docname))
    if path.suffix == ".ipynb":
        seconds = getattr(app.env, "notebook_seconds", {}).get(docname)
        time = "" if seconds is None else f", in {duration(seconds)} when this book was built"
        listed = f"; [all names and values](/{PARAMETERS}) are listed" if PARAMETERS in app.env.found_docs else ""
        foot = FOOT.format(file=path.name, stem=path.stem, name=docname, time=time, listed=listed)
        notebook = nbformat.reads(source[0], as_version=4)
        notebook.cells.append(nbformat.v4.new_markdown_cell(foot))
        source[0] = nbformat.writes(notebook)


def remove_buttons(app, config):
    if not config.html_theme_options.get("repository_url"):
        config.html_theme_options.pop("launch_buttons", None)


def setup(app):
    app.connect("config-inited", remove_buttons)
    app.connect("source-read", add_foot)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
