"""Interactive figures: data that a notebook puts into its page for a script of ``book/_static/explorers`` to draw.

``book/_ext/pages.py`` adds the scripts and their style to the pages that need them. Without JavaScript, and on paper, a
sentence refers to the static figure that every such page has.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from operator import methodcaller
from typing import Any

from IPython.display import display

__all__ = ["explorer", "explorer_html"]

_STATIC = "With JavaScript this is an interactive figure. The numbered figure next to it is its static version."


def explorer_html(name: str, title: str, data: Mapping[str, Any]) -> str:
    """Return the HTML of an explorer: a container with its data as JSON, and a text for readers without scripts.

    ``name`` is that of the script, ``book/_static/explorers/NAME.js``; ``title`` names the figure for assistive
    technology; ``data`` has JSON's types and numpy arrays. Floats keep all their digits.
    """
    text = json.dumps(data, default=methodcaller("tolist"), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    text = text.replace("<", "\\u003c")  # a "</script>" within the data would end them
    label = html.escape(title, quote=True)
    return f"""<div class="explorer" data-explorer="{name}" role="region" aria-label="{label}">
<noscript><p>{_STATIC}</p></noscript>
<p class="explorer-paper">{_STATIC}</p>
<script type="application/json">{text}</script>
</div>"""


def explorer(name: str, title: str, data: Mapping[str, Any]) -> None:
    """Display an explorer in a notebook's page; parameters as for :func:`explorer_html`."""
    display({"text/html": explorer_html(name, title, data), "text/plain": f"<explorer: {title}>"}, raw=True)
