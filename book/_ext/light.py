"""Keep pages light: what the theme and the formulas' script would load for nothing is left out.

A page would otherwise weigh more than three megabytes before its first word. Once all pages are written, the theme's
style sheets lose the rules whose classes occur nowhere in the book, and its icon font the icons that nothing shows. The
icons that the theme has twice and the search index, which its search page reads, are not loaded; the formulas' script
is loaded in parts, without its menu.
"""

from __future__ import annotations

import re
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

FORMULAS = ["core", "input/tex", "output/chtml", "a11y/assistive-mml"]
SHEETS = ("styles/pydata-sphinx-theme.css", "sphinx-design.min.css")
ICONS = "vendor/fontawesome/webfonts/fa-solid-900"

_PIECE = re.compile(r"""/\*.*?\*/|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|url\([^)"']*\)|[{}]|[^{}"'/u]+|.""", re.DOTALL)
_NESTING = ("@media", "@supports", "@layer", "@container")


def lighten(app, config):
    config.templates_path.append(str(Path(__file__).parent / "templates"))
    config.mathjax_path = "mathjax/startup.js"
    config.mathjax3_config = {**(config.mathjax3_config or {}), "loader": {"load": FORMULAS}}


def alive(selector: str, words: set[str]) -> bool:
    """Whether a selector could match something: all its classes occur, or it says more than this understands."""
    if re.search(r":(is|where|has)\(|\\", selector):
        return True
    plain = re.sub(r":not\([^()]*\)|\[[^]]*\]", "", selector)
    return set(re.findall(r"\.(-?[A-Za-z_][\w-]*)", plain)) <= words


def slim(css: str, words: set[str]) -> str:
    """A style sheet without the rules whose classes are not among ``words``."""
    pieces = [piece for piece in _PIECE.findall(css) if not piece.startswith("/*")]
    kept, at = _block(pieces, 0, words)
    if at != len(pieces):
        raise ValueError("a style sheet closes a brace that it did not open")
    return kept


def _block(pieces: list[str], at: int, words: set[str]) -> tuple[str, int]:
    """Rules from a place on to the end of the block around them."""
    kept, head = [], ""
    while at < len(pieces) and pieces[at] != "}":
        if pieces[at] != "{":
            head += pieces[at]
            at += 1
            continue
        *statements, head = re.split(r"(?<=;)(?![^(]*\))", head)
        kept += statements
        if head.strip().startswith(_NESTING):
            body, at = _block(pieces, at + 1, words)
        else:
            start, depth = at + 1, 1
            while depth:
                at += 1
                depth += {"{": 1, "}": -1}.get(pieces[at], 0)
            body = "".join(pieces[start:at])
            if not head.strip().startswith("@"):
                head = ",".join(one for one in re.split(r",(?![^(\[]*[)\]])", head) if alive(one, words))
        if head.strip() and body.strip():
            kept.append(f"{head}{{{body}}}")
        head = ""
        at += 1
    return "".join(kept) + head, at


def words_of(html: Path) -> set[str]:
    """Every class on a page, and every word of a script, since scripts set classes."""
    words: set[str] = set()
    for page in html.rglob("*.html"):
        for classes in re.findall(r'\bclass="([^"]*)"', page.read_text(encoding="utf-8")):
            words.update(classes.split())
    scripts = [path for path in (html / "_static").rglob("*.js") if not {"mathjax", "vendor"} & set(path.parts)]
    for script in scripts:
        if script.name != "fontawesome.js":
            words.update(re.findall(r"[A-Za-z_][\w-]*", script.read_text(encoding="utf-8")))
    return words


def subset(font: Path, codes: set[int], target: Path) -> None:
    """A font with nothing but these characters."""
    icons = TTFont(font)
    subsetter = Subsetter(Options())
    subsetter.populate(unicodes=codes)
    subsetter.subset(icons)
    icons.flavor = "woff"
    icons.save(target)


def slim_styles(app, exception):
    static = Path(app.outdir) / "_static"
    if exception is not None or app.builder.format != "html" or not (static / SHEETS[0]).is_file():
        return
    words = words_of(Path(app.outdir))
    for name in SHEETS:
        sheet = static / name
        sheet.write_text(slim(sheet.read_text(encoding="utf-8"), words), encoding="utf-8")
    sheets = [path.read_text(encoding="utf-8") for path in static.rglob("*.css")]
    codes = {int(code, 16) for sheet in sheets for code in re.findall(r'content:\s*"\\([0-9a-fA-F]+)"', sheet)}
    subset(static / f"{ICONS}.ttf", codes, static / f"{ICONS}.woff")
    theme = static / SHEETS[0]
    text = re.sub(
        rf'(url\("?[^)]*{Path(ICONS).name})\.woff2("?\)) format\("woff2"\)',
        r'\1.woff\2 format("woff")',
        theme.read_text(encoding="utf-8"),
    )
    theme.write_text(text, encoding="utf-8")


def setup(app):
    app.connect("config-inited", lighten)
    app.connect("build-finished", slim_styles)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
