"""Interactive figures: data that a notebook puts into its page for a script of ``book/_static/explorers`` to draw.

The scripts and their style are added to the pages that need them by ``book/_ext/pages.py``. Without scripts, and on
paper, a sentence stands in their place that points to the static figure, which every such page has.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from operator import methodcaller
from typing import Any

from IPython.display import display

__all__ = ["explorer", "explorer_html"]


def explorer_html(name: str, title: str, data: Mapping[str, Any]) -> str:
    """Return the HTML of an explorer: a container with its data as JSON, and a text for readers without scripts.

    Parameters
    ----------
    name
        Of the script, ``book/_static/explorers/NAME.js``.
    title
        Name of the figure for assistive technology.
    data
        JSON's types and numpy arrays. Floats keep all their digits: round what is only drawn.
    """
    text = json.dumps(data, default=methodcaller("tolist"), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    text = text.replace("<", "\\u003c")  # or a "</script>" within the data would end them
    label = html.escape(title, quote=True)
    return (
        f'<div class="explorer" data-explorer="{name}" role="region" aria-label="{label}">\n'
        "<noscript><p>A figure that moves stands here where scripts may run. "
        "The numbered figure below shows it at rest.</p></noscript>\n"
        '<p class="explorer-paper">On the screen a figure that moves stands here. '
        "The numbered figure below shows it at rest.</p>\n"
        f'<script type="application/json">{text}</script>\n'
        "</div>"
    )


def explorer(name: str, title: str, data: Mapping[str, Any]) -> None:
    """Display an explorer in a notebook's page; parameters as for :func:`explorer_html`."""
    display({"text/html": explorer_html(name, title, data), "text/plain": f"<explorer: {title}>"}, raw=True)
