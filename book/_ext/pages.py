"""Fail the build when a page named in the table of contents has not been written; mend what docutils says of a list.

Docutils gives a bibliography the role of a list, whose children have to be list items, and its entries the role of
bibliography entries, which stand by themselves. A screen reader that trusts the list finds it empty.
"""

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


def stand_alone(app, page, template, context, doctree):
    if "body" in context:
        context["body"] = context["body"].replace(
            '<div role="list" class="citation-list">', '<div class="citation-list">'
        )


def setup(app):
    app.connect("html-page-context", stand_alone)
    app.connect("build-finished", check_pages)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
