"""Fail the build when a page named in the table of contents has not been written."""

from __future__ import annotations

from pathlib import Path

from sphinx.errors import SphinxError


class MissingPageError(SphinxError):
    category = "Missing page"


def check_pages(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    missing = [name for name in app.config.external_site_map if not Path(app.builder.get_outfilename(name)).is_file()]
    if missing:
        raise MissingPageError(f"_toc.yml names pages that were not built: {', '.join(sorted(missing))}")


def setup(app):
    app.connect("build-finished", check_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
