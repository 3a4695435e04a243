"""What every page of the book needs: checked parameters, figures in three formats, numbers for the prose.

Used by the notebooks only; nothing else in ``isa`` imports this module, and it needs the ``book`` extra.
"""

from __future__ import annotations

import base64
import io
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import myst_nb
import numpy as np
from IPython.display import Markdown, display
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from edition.figures.style import BookFigure
from isa.prior import Node

__all__ = [
    "ROOT",
    "Count",
    "Exponent",
    "ParameterError",
    "Positive",
    "Probability",
    "Seed",
    "glue",
    "missing",
    "parameter_table",
    "parameters",
    "show",
    "table",
    "tree_text",
]

Exponent = Annotated[float, Field(ge=0.2, le=50)]
"""An exponent of an Lp-nested function in the range that :class:`isa.LpNested` is tested for."""
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]

ROOT = Path(__file__).resolve().parents[2]
"""The repository's root, since the book runs from an editable install. Notebooks read ``runs/`` and ``book/`` here.

:meta hide-value:
"""


def tree_text(least: int, most: int) -> Any:
    """The type of a parameter that is an Lp-nested function in text form with ``least`` to ``most`` leaves."""

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

    Parameters
    ----------
    **declared
        Name of each parameter and its type; ranges are stated with ``Annotated`` and pydantic's ``Field``, or by one of
        this module's types.

    Raises
    ------
    ParameterError
        If a declared parameter is missing, has another type or lies outside its range.

    Examples
    --------
    >>> p0 = 2.1
    >>> parameters(p0=Exponent)
    """
    namespace = sys._getframe(1).f_globals
    problems = []
    for name, kind in declared.items():
        if name not in namespace:
            problems.append(f"{name} is not set")
            continue
        try:
            TypeAdapter(kind).validate_python(namespace[name], strict=True)
        except ValidationError as error:
            value = namespace[name]
            what = "; ".join(_sentence(problem) for problem in error.errors())
            hint = " (papermill takes lists by -y, not by -p)" if isinstance(value, str) and value[:1] == "[" else ""
            problems.append(f"{name} = {value!r}: {what}{hint}")
    if problems:
        raise ParameterError(" | ".join(problems))


def _sentence(problem: dict) -> str:
    where = "".join(f"[{part}]" for part in problem["loc"] if isinstance(part, int))
    message = problem["msg"]
    return f"item {where}: {message}" if where else message[0].lower() + message[1:]


def show(figure: Figure, dpi: int = 200) -> None:
    """Display a figure as SVG, as PNG and, if it carries numbers, as CSV in one output, and close it.

    The page shows the SVG and offers all three for download. Marks that were drawn with ``rasterized=True`` are
    embedded in the SVG as pixels. The table is that of :class:`edition.figures.style.BookFigure`.
    """
    svg, png = io.StringIO(), io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "isa"}):  # otherwise the names inside an SVG are random
        figure.savefig(svg, format="svg", dpi=dpi, metadata={"Date": None})
    figure.savefig(png, format="png", dpi=dpi)
    bundle = {"image/svg+xml": svg.getvalue(), "image/png": base64.b64encode(png.getvalue()).decode()}
    width, height = figure.get_size_inches()
    if isinstance(figure, BookFigure) and (numbers := figure.to_csv()) is not None:
        bundle["text/csv"] = numbers
    bundle["text/plain"] = f"<figure, {width:.1f} x {height:.1f} in>"
    plt.close(figure)
    display(bundle, raw=True)


def glue(**values: Any) -> None:
    """Hand numbers and words to the prose, where ``{glue:text}`` with the same name prints them.

    NumPy and torch scalars become Python's own, since a format such as ``{glue:text}`x:.2f``` wants those.
    """
    for name, value in values.items():
        if isinstance(value, np.generic) or getattr(value, "ndim", None) == 0:
            value = value.item()
        myst_nb.glue(name, value, display=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Markdown:
    """A table for the page, from its columns' headings and its rows."""
    lines = [columns, ["---"] * len(columns), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return Markdown("\n".join(f"| {' | '.join(line)} |" for line in cells))


def missing(*records: Any) -> Markdown:
    """How many of how many runs are recorded, and the command that trains the rest: what a page shows in place of a
    figure of nothing, and beneath one of too little.

    Parameters
    ----------
    *records
        :class:`isa.sweep.Records`; those of one command are counted together.

    Returns
    -------
    Markdown
        A sentence or two for each command.
    """
    by_command: dict[str, list[Any]] = {}
    for one in records:
        by_command.setdefault(one.command, []).append(one)
    text = []
    for command, group in by_command.items():
        recorded, left = sum(map(len, group)), sum(len(one.missing) for one in group)
        if not recorded + left:
            continue
        shown = f"`{command.replace(f'{ROOT.as_posix()}/', '')}`"  # to be typed in the root, wherever the page runs
        wanted = f"{recorded + left:,} run{'s' * (recorded + left != 1)}"
        if not left:
            sentence = f"Recorded in full: {wanted}, by {shown}."
        elif not recorded:
            sentence = f"Not recorded yet: {wanted}. {shown} trains them."
        else:
            sentence = f"Recorded so far: {recorded:,} of {wanted}. {shown} trains the rest."
        diverged = sum(row["status"] == "diverged" for one in group for row in one)
        text.append(sentence + (f" Diverged, and so without measurements: {diverged:,}." if diverged else ""))
    return Markdown("\n\n".join(text) or "No such run is named by the specifications.")


def parameter_table(paths: Iterable[Path]) -> Markdown:
    """All parameters of these notebooks as papermill reads them, a table each: name, type, default, meaning."""
    from papermill import inspect_notebook

    text = []
    for path in sorted(paths):
        rows = [
            (f"`{p['name']}`", p["inferred_type_name"], f"`{_spaced(p['default'])}`", p["help"])
            for p in inspect_notebook(path).values()
        ]
        heading = f"**{path.relative_to(ROOT).as_posix()}**"
        text += [heading, table(("parameter", "type", "default", "meaning"), rows).data]
    return Markdown("\n\n".join(text))


def _spaced(default: str) -> str:
    """A default as it would be typed on one line: papermill glues the lines of a longer one together."""
    return re.sub(r",(?=[\"'\[{])", ", ", re.sub(r",(?=[\])}]$)", "", default))
