"""The scorecard at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from edition.figures import style

__all__ = ["Mark", "glance"]


class Mark(NamedTuple):
    """Look of a verdict: filled if its evidence is on the paper's own terms, otherwise outlined."""

    colour: str
    filled: bool
    text: str


_COLUMNS = 15  # squares in a line, so that a mark is legible at the width of a phone


@style.styled
def glance(sections: Mapping[str, Sequence[str]], marks: Mapping[str, Mark]) -> Figure:
    """Draw a square for each claim, by section, coloured and marked by its verdict.

    ``sections``: title of each section to the verdicts of its claims; ``marks``: by verdict, in the order of the
    legend, which shows those that occur.
    """
    occur = [verdict for verdict in marks if any(verdict in verdicts for verdicts in sections.values())]
    lines = [-(-len(verdicts) // _COLUMNS) for verdicts in sections.values()]
    height = sum(lines) + 0.95 * len(lines) + 0.85 * -(-len(occur) // 2) + 0.3
    figure, axes = style.subplots(height=height * style.WIDTH / (_COLUMNS + 0.3))
    top = 0.0
    for (title, verdicts), depth in zip(sections.items(), lines, strict=True):
        axes.text(0, top + 0.62, title, va="center")
        for number, verdict in enumerate(verdicts):
            line, column = divmod(number, _COLUMNS)
            _square(axes, column, top + 0.95 + line, marks[verdict])
            figure.record({"section": title, "claim": number + 1, "verdict": verdict})
        top += depth + 0.95
    for number, verdict in enumerate(occur):
        line, column = divmod(number, 2)
        x, y = column * _COLUMNS / 2, top + 0.25 + 0.85 * line
        _square(axes, x, y, marks[verdict], 0.62)
        axes.text(x + 0.85, y + 0.33, verdict, va="center")
    axes.set(xlim=(-0.1, _COLUMNS + 0.1), ylim=(height, 0), aspect="equal")
    style.bare(axes)
    return figure


def _square(axes: Axes, x: float, y: float, mark: Mark, size: float = 0.86) -> None:
    face = mark.colour if mark.filled else "white"
    ink = style.INK if mark.colour == style.ORANGE else "white" if mark.filled else mark.colour
    axes.add_patch(Rectangle((x + 0.03, y + 0.03), size, size, facecolor=face, edgecolor=mark.colour, linewidth=1.6))
    look = {"ha": "center", "va": "center", "fontsize": 13 * size / 0.86, "fontweight": "bold", "color": ink}
    axes.text(x + 0.03 + size / 2, y + 0.05 + size / 2, mark.text, **look)
