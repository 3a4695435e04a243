"""What keeps pages light takes nothing from them that they show."""

from __future__ import annotations

import io
from importlib.resources import files
from pathlib import Path

import pytest
from fontTools.ttLib import TTFont
from light import ICONS, SHEETS, alive, slim, subset, words_of

STATIC = Path(str(files("pydata_sphinx_theme"))) / "theme" / "pydata_sphinx_theme" / "static"
WORDS = {"seen", "seen-too"}


@pytest.mark.parametrize(
    "selector, lives",
    [
        (".seen", True),
        ("p > a.seen:hover::before", True),
        (".seen.seen-too", True),
        (".unseen", False),
        (".seen .unseen", False),
        ("article p", True),
        ("[data-theme=dark] .seen", True),
        ("[title='.unseen'] p", True),
        (".seen:not(.unseen)", True),
        (".unseen:not(.seen)", False),
        (":is(.unseen, p)", True),
        (r".md\:seen", True),
    ],
)
def test_a_selector_lives_where_all_its_classes_occur(selector, lives):
    assert alive(selector, WORDS) is lives


@pytest.mark.parametrize(
    "css, left",
    [
        (".seen{a:b}.unseen{c:d}", ".seen{a:b}"),
        (".unseen,.seen,p{a:b}", ".seen,p{a:b}"),
        ("/* .unseen{ */.seen{a:b}", ".seen{a:b}"),
        ('@charset "UTF-8";.unseen{a:b}.seen{c:d}', '@charset "UTF-8";.seen{c:d}'),
        ("@media print{.unseen{a:b}.seen{c:d}}p{e:f}", "@media print{.seen{c:d}}p{e:f}"),
        ("@media print{.unseen{a:b}}p{e:f}", "p{e:f}"),
        ("@supports (a:b){@media print{.seen{c:d}}}", "@supports (a:b){@media print{.seen{c:d}}}"),
        ("@keyframes x{0%{a:b}50.5%{c:d}}", "@keyframes x{0%{a:b}50.5%{c:d}}"),
        ("@font-face{src:url(x.woff)}", "@font-face{src:url(x.woff)}"),
        ('.seen{content:"}.unseen{"}.unseen{a:b}', '.seen{content:"}.unseen{"}'),
        ("p{a:url(data:image/svg+xml;base64,x/y)}.unseen{a:b}", "p{a:url(data:image/svg+xml;base64,x/y)}"),
        (":is(p,.unseen) a,.unseen{a:b}", ":is(p,.unseen) a{a:b}"),
        ("@import url(a;b.css);.seen{a:b}", "@import url(a;b.css);.seen{a:b}"),
    ],
)
def test_a_sheet_keeps_what_can_match_and_nothing_else(css, left):
    assert slim(css, WORDS) == left


def test_a_sheet_with_an_odd_brace_is_refused():
    with pytest.raises(ValueError, match="brace"):
        slim(".seen{a:b}}p{c:d}", WORDS)


def test_the_theme_s_sheet_is_read_to_its_end():
    """With every class known nothing is lost but comments; with none only rules without a class are left."""
    css = (STATIC / SHEETS[0]).read_text(encoding="utf-8")

    class Everything(set):
        def __ge__(self, other):
            return True

    class Nothing(set):
        pass

    whole, bare = slim(css, Everything()), slim(css, Nothing())
    assert slim(whole, Everything()) == whole
    assert 0.98 * len(css) < len(whole) <= len(css)
    assert 1_000 < len(bare) < 0.25 * len(css)
    for text in (whole, bare):
        assert text.count("{") == text.count("}") > 50


def test_words_are_the_classes_of_pages_and_all_words_of_scripts(tmp_path):
    (tmp_path / "_static" / "mathjax").mkdir(parents=True)
    (tmp_path / "page.html").write_text('<p class="one two-2">three</p>')
    (tmp_path / "_static" / "a.js").write_text('e.classList.add("four-4")')
    (tmp_path / "_static" / "mathjax" / "b.js").write_text("five")
    words = words_of(tmp_path)
    assert {"one", "two-2", "four-4"} <= words and not {"three", "five"} & words


def test_a_font_keeps_the_icons_that_are_shown(tmp_path):
    target = tmp_path / "small.woff"
    subset(STATIC / f"{ICONS}.ttf", {0xF002, 0xF019}, target)
    small = TTFont(io.BytesIO(target.read_bytes()))
    assert set(small.getBestCmap()) == {0xF002, 0xF019}
    assert target.stat().st_size < 5_000
