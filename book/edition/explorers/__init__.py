"""Figures that move: what a notebook puts into its page for a script of ``book/_static/explorers`` to draw.

The scripts and their style are added to the pages that need them by ``book/_ext/pages.py``. Without scripts, and on
paper, a sentence stands in their place that points to the figure at rest, which every such page has.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from IPython.display import display

__all__ = ["explorer", "explorer_html"]


def _plain(value: Any) -> Any:
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f"data holds a {type(value).__name__}; an explorer's data are what JSON can say, and numpy arrays")


def explorer_html(name: str, title: str, data: Mapping[str, Any]) -> str:
    """The HTML of an explorer: a container with its data as JSON, and what is read where no script runs.

    Parameters
    ----------
    name
        Of the script, ``book/_static/explorers/NAME.js``.
    title
        What assistive technology calls the figure.
    data
        What the script is given: JSON's types and numpy arrays. Floats keep all their digits: round what is only drawn.

    Raises
    ------
    ValueError, TypeError
        If the name is no file's stem, or the data hold NaN, infinity, or something that JSON cannot say.
    """
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise ValueError(f"name = {name!r}; an explorer's name is made of lower-case letters, digits and hyphens")
    try:
        text = json.dumps(data, default=_plain, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    except ValueError as error:
        raise ValueError(f"data of the explorer {name!r} cannot be written as JSON: {error}") from None
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
    """Display an explorer in a notebook's page; parameters and errors as for :func:`explorer_html`."""
    display({"text/html": explorer_html(name, title, data), "text/plain": f"<explorer: {title}>"}, raw=True)
