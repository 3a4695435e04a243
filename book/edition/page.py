"""Checked parameters, figures in three formats, numbers and tables: the base of every notebook of the book."""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from IPython.core.formatters import format_display_data
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from edition.figures.style import BookFigure, by_night
from isa.prior import Node

__all__ = ["ROOT", "Count", "Exponent", "ParameterError", "Positive", "Probability", "Seed", "captioned"]
__all__ += ["glue", "missing", "parameter_table", "parameters", "show", "table", "tree_text"]

Exponent = Annotated[float, Field(ge=0.2, le=50)]
"""An exponent of an Lp-nested function in the range that :class:`isa.LpNested` is tested for."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

_GLUED = "application/papermill.record/"  # what MyST-NB knows a number for the prose by

ROOT = Path(__file__).resolve().parents[2]
"""The repository's root, since the book runs from an editable install. Notebooks read ``runs/`` and ``book/`` here.

:meta hide-value:
"""


def tree_text(least: int, most: int) -> Any:
    """Return the type of a parameter that is an Lp-nested function in text form with ``least`` to ``most`` leaves."""

    def check(text: str) -> str:
        if not least <= Node.parse(text).n_leaves <= most:
            raise ValueError(f"the tree must have {least} to {most} leaves")
        return text

    return Annotated[str, AfterValidator(check)]


class ParameterError(ValueError):
    """A notebook's parameter is missing, has the wrong type or lies outside its range."""

    def _render_traceback_(self) -> list[str]:  # what IPython prints: the sentence, without our frames
        return [f"{type(self).__name__}: {self}"]


def parameters(**declared: Any) -> None:
    """Check the parameters of the notebook that calls this, right after its ``parameters`` cell; others are left alone.

    Each is declared with its type; ranges are stated with ``Annotated`` and pydantic's ``Field``, or by one of this
    module's types. A :class:`ParameterError` names all that are missing, have another type or lie outside their range.

    Examples
    --------
    >>> p0 = 2.1
    >>> parameters(p0=Exponent)
    """
    namespace = sys._getframe(1).f_globals
    problems = []
    for name, kind in declared.items():
        try:
            TypeAdapter(kind).validate_python(value := namespace[name], strict=True)
        except KeyError:
            problems.append(f"{name} is not set")
        except ValidationError as error:
            hint = " (papermill takes lists by -y, not by -p)" if isinstance(value, str) and "[" in value else ""
            problems.append(f"{name} = {value!r}: {'; '.join(map(_sentence, error.errors()))}{hint}")
    if problems:
        raise ParameterError(" | ".join(problems))


def _sentence(problem: dict) -> str:
    where = "".join(f"[{part}]" for part in problem["loc"] if isinstance(part, int))
    message = problem["msg"]
    return f"item {where}: {message}" if where else message[0].lower() + message[1:]


def show(figure: Figure, dpi: int = 200, name: str = "") -> None:
    """Display a figure as SVG, PNG and, with numbers, CSV in one output; with a ``name`` give it to ``{glue:figure}``.

    The page shows the SVG, with other colours in dark mode, and offers all three for download. Marks that were drawn
    with ``rasterized=True`` are embedded in the SVG as pixels. The table is that of
    :class:`edition.figures.style.BookFigure`.
    """
    svg, png = io.StringIO(), io.BytesIO()
    nameless = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with plt.rc_context({"svg.hashsalt": "isa"}):  # otherwise the names inside an SVG are random
        figure.savefig(svg, format="svg", dpi=dpi, metadata=nameless)
    figure.set_layout_engine(None)  # which has placed everything
    figure.savefig(png, format="png", dpi=dpi)
    bundle = {"image/svg+xml": by_night(svg.getvalue()), "image/png": base64.b64encode(png.getvalue()).decode()}
    width, height = figure.get_size_inches()
    if isinstance(figure, BookFigure) and (numbers := figure.to_csv()) is not None:
        bundle["text/csv"] = numbers
    bundle["text/plain"] = f"<figure, {width:.1f} x {height:.1f} in>"
    plt.close(figure)
    _hand_over(name, bundle) if name else display(bundle, raw=True)


def captioned(name: str, caption: str, alt: str, classes: str = "") -> str:
    """Return MyST text of a numbered figure that :func:`show` was given with a ``name``, where it may be missing."""
    options = [f":name: {name}", f":alt: {alt}", *([f":figclass: {classes}"] if classes else [])]
    return "\n".join([f"```{{glue:figure}} {name}", *options, "", caption, "```"])


def glue(**values: Any) -> None:
    """Hand numbers and words to the prose, where ``{glue:text}`` with the same name prints them.

    NumPy and torch scalars become Python's own, since a format such as ``{glue:text}`x:.2f``` wants those.
    """
    for name, value in values.items():
        if isinstance(value, np.generic) or getattr(value, "ndim", None) == 0:
            value = value.item()
        _hand_over(name, *format_display_data(value))


def _hand_over(name: str, data: dict[str, Any], metadata: dict[str, Any] | None = None) -> None:
    """Put an output aside for the text, as ``myst_nb.glue``, whose import takes long."""
    metadata = (metadata or {}) | {"scrapbook": {"name": name, "mime_prefix": _GLUED}}
    display({_GLUED + kind: content for kind, content in data.items()}, raw=True, metadata=metadata)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markdown:
    """Return a table for the page, from its columns' headings and its rows."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in cells))


def missing(*records: Any) -> Markdown:
    """Return the number of runs that are recorded, of those named, and the command that trains the rest, as sentences.

    A page shows it in place of a figure without data, and below one with too little. :class:`isa.sweep.Records`
    of one command are counted together.
    """
    by_command: dict[str, list[Any]] = {}
    for found in records:
        by_command.setdefault(found.command, []).append(found)
    text = []
    for command, group in by_command.items():
        recorded, wanted = sum(map(len, group)), sum(found.wanted for found in group)
        if not wanted:
            continue
        shown = f"`{command.replace(f'{ROOT.as_posix()}/', '')}`"  # to be typed in the root, wherever the page runs
        runs = f"{wanted:,} run{'s' * (wanted != 1)}"
        if recorded == wanted:
            sentence = f"Recorded in full: {runs}, by {shown}."
        elif not recorded:
            sentence = f"Not recorded yet: {runs}. {shown} trains them."
        else:
            sentence = f"Recorded so far: {recorded:,} of {runs}. {shown} trains the rest."
        diverged = sum(row["status"] == "diverged" for found in group for row in found)
        text.append(sentence + (f" Diverged, and so without measurements: {diverged:,}." if diverged else ""))
    return Markdown(" ".join(text) or "No such run is named by the specifications.")


def parameter_table(paths: Iterable[Path]) -> Markdown:
    """Return all parameters of these notebooks as papermill reads them: tables of name, type, default and meaning."""
    from papermill import inspect_notebook

    def spaced(default: str) -> str:  # as typed on one line: papermill joins the lines of a longer one without spaces
        return re.sub(r",(?=[\"'\[{])", ", ", re.sub(r",(?=[\])}]$)", "", default))

    text = []
    for path in sorted(paths):
        found = inspect_notebook(path).values()
        rows = [(f"`{p['name']}`", p["inferred_type_name"], f"`{spaced(p['default'])}`", p["help"]) for p in found]
        text.append(f"**{path.relative_to(ROOT).as_posix()}**")
        text.append(table(("parameter", "type", "default", "meaning"), rows).data)
    return Markdown("\n\n".join(text))
