"""The whole book, built as ``make book`` builds it and read as a reader without a network does."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
import yaml
from browser import Page
from tiny_book import ROOT, environment, make

SOURCES = (
    "Makefile",
    "_config.yml",
    "_toc.yml",
    "pyproject.toml",
    "constraints.txt",
    "book",
    "isa",
    "runs",
    "tests/data",
)
PHONE = 390  # CSS pixels
HEAVIEST = 3_000_000  # bytes that a page may load before the reader asks for more


def pages_of(entry: dict) -> list[str]:
    own = [entry[key] for key in ("root", "file") if key in entry]
    return own + [
        page for key in ("parts", "chapters", "sections") for child in entry.get(key, []) for page in pages_of(child)
    ]


TOC = pages_of(yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8")))
each_page = pytest.mark.parametrize("name", TOC)


class Document(HTMLParser):
    """What a page's HTML names: identifiers, links, images, and everything that a browser would load with it."""

    LOADED = (
        ("script", "src"),
        ("link", "href"),
        ("img", "src"),
        ("iframe", "src"),
        ("source", "src"),
        ("object", "data"),
    )

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.identifiers: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.loaded: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        if named.get("id"):
            self.identifiers.append(named["id"])
        if tag == "a" and named.get("href"):
            self.links.append(named["href"])
        if tag == "img":
            self.images.append(named)
        for name, attribute in self.LOADED:
            if tag == name and named.get(attribute):
                self.loaded.append(named[attribute])


@pytest.fixture(scope="session")
def html(tmp_path_factory) -> Path:
    """The built book, from a copy of the sources; what a build of the clone itself has executed is taken over."""
    root = tmp_path_factory.mktemp("book") / "clone"
    root.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
            )
        else:
            shutil.copy(ROOT / name, root / name)
    executed = ROOT / "_build" / ".jupyter_cache"
    if executed.is_dir():
        shutil.copytree(executed, root / "_build" / ".jupyter_cache")
    environment(root)
    built = make(root, "book")
    if built.returncode:
        pytest.fail(f"the book does not build:\n{built.stdout[-6000:]}", pytrace=False)
    return root / "_build" / "html"


def documents(html: Path) -> dict[str, Document]:
    return {
        path.relative_to(html).as_posix(): Document(path)
        for path in html.rglob("*.html")
        if "_static" not in path.parts
    }


@pytest.fixture(scope="session")
def parsed(html) -> dict[str, Document]:
    return documents(html)


# --- the files --------------------------------------------------------------------------------------------------------

_PICTURED = re.compile(r"data:image/png;base64,[^\"]*")
_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)")


def test_the_readmes_picture_is_the_front_pages(html):
    def drawn(path: Path) -> tuple[str, np.ndarray]:
        text = _PICTURED.sub("", path.read_text(encoding="utf-8"))
        words = re.sub(r"\s", "", _NUMBER.sub("", text))  # what stands between two numbers depends on their signs
        return words, np.array(_NUMBER.findall(text), float)

    (name,) = re.findall(r"!\[[^]]*\]\((book/[^)]*\.svg)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    words, numbers = drawn(ROOT / name)
    (offered,) = html.glob("_downloads/*/fig-front.svg")
    words_now, numbers_now = drawn(offered)
    assert words == words_now, f"copy {offered.name} to {name}"
    np.testing.assert_allclose(numbers, numbers_now, atol=0.05)


@each_page
def test_every_page_of_the_toc_is_built(html, name):
    assert (html / f"{name}.html").is_file()


def test_the_front_page_leads_to_the_book(html):
    front = (html / "index.html").read_text(encoding="utf-8")
    assert f"{TOC[0]}.html" in front


def test_every_internal_link_and_anchor_resolves(html, parsed):
    broken = []
    for name, document in parsed.items():
        for link in document.links + document.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (html / name).parent / unquote(parts.path) if parts.path else html / name
            if not target.resolve().is_file():
                broken.append(f"{name}: {link}")
                continue
            other = parsed.get(target.resolve().relative_to(html.resolve()).as_posix())
            if parts.fragment and other and unquote(parts.fragment) not in other.identifiers:
                broken.append(f"{name}: {link} (no such anchor)")
    assert not broken


def test_nothing_that_a_page_loads_comes_from_elsewhere(parsed):
    outside = {
        name: [link for link in document.loaded if urlsplit(link).scheme not in ("", "data")]
        for name, document in parsed.items()
    }
    assert not {name: links for name, links in outside.items() if links}


def test_style_sheets_load_nothing_from_elsewhere(html):
    """Comments of vendored style sheets aside, which name their projects."""
    outside = {}
    for path in html.rglob("*.css"):
        text = re.sub(r"/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        found = re.findall(r"(?:url\(\s*['\"]?|@import\s+['\"])((?:https?:)?//[^'\")]+)", text)
        if found:
            outside[path.name] = found
    assert not outside


def test_every_image_has_an_alternative_text(parsed):
    silent = [
        f"{name}: {image.get('src')}"
        for name, document in parsed.items()
        for image in document.images
        if not (image.get("alt") or "").strip()
    ]
    assert not silent


def test_every_figure_is_numbered_and_offered_for_download(html, parsed):
    figures = 0
    for name in TOC:
        text = (html / f"{name}.html").read_text(encoding="utf-8")
        for figure in re.findall(r"<figure\b.*?</figure>", text, flags=re.DOTALL):
            figures += 1
            assert re.search(r'class="caption-number">\s*Fig\. \d+', figure), f"{name}: a figure without a number"
            if "<img" not in figure:  # runs to come, or data that are elsewhere
                assert re.search(r"(Not r|R)ecorded (yet|so far|in full): |Without the published files", figure), name
                continue
            found = [Path(unquote(link)).suffix for link in re.findall(r'href="([^"]*_downloads[^"]*)"', figure)]
            pictures = "photo" in re.search(r"<img\b[^>]*>", figure)[0]  # of data; they may hold no numbers
            # nor has one in which a sentence stands for a model to come
            blank = "a sentence in its place says so" in figure and "Not recorded yet: " in text
            assert found in ([".svg", ".png", ".csv"], [".svg", ".png"][: 2 * (pictures or blank)]), f"{name}: {found}"
    assert figures >= 1


def test_words_before_a_colon_are_no_type(html):
    pages = {path.name: path.read_text(encoding="utf-8") for path in (html / "book" / "api").glob("*.html")}
    assert len(pages) > 5
    assert [name for name, text in pages.items() if ">Type<" in text] == []


def test_no_page_is_left_with_an_unset_number_or_a_failure(html):
    for name in TOC:
        text = re.sub(r"<code\b.*?</code>", "", (html / f"{name}.html").read_text(encoding="utf-8"), flags=re.DOTALL)
        text = re.sub(r"<[^>]+>", "", text)
        assert "Traceback (most recent call last)" not in text, name
        assert "{glue:" not in text and "{numref}" not in text and "{cite}" not in text, (
            f"{name}: a role was not understood"
        )


# --- the pages as they are seen ---------------------------------------------------------------------------------------

CONTRAST = """
(() => {
  const channel = c => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const background = element => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const ratios = ["p", "li", "td", "h1", "h2", "figcaption", "a"]
    .flatMap(tag => [...document.querySelectorAll(`article ${tag}`)])
    .filter(element => element.innerText.trim() && element.offsetParent)
    .map(element => {
      const both = [parse(getComputedStyle(element).color), background(element)].map(luminance);
      const [dark, light] = both.sort((a, b) => a - b);
      return [(light + 0.05) / (dark + 0.05), element.innerText.trim().slice(0, 60)];
    });
  return ratios.sort((a, b) => a[0] - b[0])[0];
})()
"""
CUT_OFF = """
(() => {
  const scrolls = element => element && (
    ["auto", "scroll"].includes(getComputedStyle(element).overflowX)
    || scrolls(element.parentElement.closest("article *")));
  return [...document.querySelectorAll("article *:not(mjx-assistive-mml, mjx-assistive-mml *), .prev-next-area *")]
    .filter(element => element.getBoundingClientRect().right > innerWidth + 1 && !scrolls(element))
    .map(element => `${element.tagName} ${element.className}: ${element.textContent.trim().slice(0, 60)}`).slice(0, 5);
})()
"""
FORMULAS = """
[...document.querySelectorAll("article div.math mjx-math")].map(formula => {
  const inner = formula.getBoundingClientRect(), outer = formula.closest("div.math").getBoundingClientRect();
  return [formula.parentElement.textContent.slice(0, 60), inner.left - outer.left, outer.right - inner.right];
})
"""
FILTERS = """
[...document.querySelectorAll("article .cell_output img")]
  .map(image => [image.classList.contains("photo"), getComputedStyle(image).filter])
"""


def look(browser: Page, path: Path, theme: str, width: int = 1280) -> None:
    """Open a page and hold what is true of every page in every theme and at every width."""
    browser.resize(width, mobile=width < 600)
    browser.prefer(theme)
    browser.open(path)
    assert browser.requests == [], f"{path.name} asks the network"
    assert browser.complaints == [], path.name
    assert browser.evaluate("document.documentElement.dataset.theme") == theme
    # figures are inverted by night, images of data never
    for photo, applied in browser.evaluate(FILTERS):
        assert ("invert(" in applied) == (theme == "dark" and not photo), f"{path.name}: {applied}"
    unseen = "[...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.src)"
    assert browser.evaluate(unseen) == []
    assert (
        browser.evaluate("[...document.fonts].filter(font => font.status === 'error').map(font => font.family)") == []
    )


AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
VIOLATIONS = """
axe.run(document, {resultTypes: ["violations"], preload: false}).then(found => found.violations
  .filter(violation => ["serious", "critical"].includes(violation.impact))
  .map(({id, help, nodes}) => `${id}: ${help}: ${nodes.slice(0, 3).map(node => node.html).join(" ")}`))
"""


def violations(browser: Page) -> list[str]:
    """What axe-core holds against the page that is open, if it is serious or critical."""
    browser.evaluate(f"{AXE}; null")
    return browser.evaluate(VIOLATIONS)


def sees_formulas(browser: Page, name: str) -> None:
    formulas = browser.evaluate("document.querySelectorAll('.math').length")
    drawn = browser.evaluate("document.querySelectorAll('.math mjx-container').length")
    assert drawn >= formulas, f"{name}: {formulas} formulas, {drawn} of them drawn"
    errors = (
        "[...document.querySelectorAll('mjx-merror, [data-mml-node=merror], [data-mjx-error]')].map(e => e.outerHTML)"
    )
    assert browser.evaluate(errors) == []
    assert "Math Processing Error" not in browser.evaluate("document.body.innerText")
    if formulas:
        assert browser.evaluate("[...document.fonts].some(f => f.family.startsWith('MJX') && f.status === 'loaded')")


@each_page
def test_a_page_by_day_on_a_desktop(html, browser, name):
    look(browser, html / f"{name}.html", "light")
    sees_formulas(browser, name)
    ratio, text = browser.evaluate(CONTRAST)
    assert ratio >= 4.5, f"contrast {ratio:.1f} at {text!r}"
    assert [formula for formula in browser.evaluate(FORMULAS) if min(formula[1:]) < -1] == [], "wider than the page"
    assert violations(browser) == []
    weights = {path: path.stat().st_size for path in browser.files}
    assert html / f"{name}.html" in weights and len(weights) > 10, "what the page loads was not noticed"
    heaviest = sorted(weights.items(), key=lambda item: -item[1])[:5]
    assert sum(weights.values()) <= HEAVIEST, f"{name} loads {sum(weights.values()):,} bytes: {heaviest}"


@each_page
def test_a_page_by_night_on_a_phone(html, browser, name):
    look(browser, html / f"{name}.html", "dark", PHONE)
    sees_formulas(browser, name)
    ratio, text = browser.evaluate(CONTRAST)
    assert ratio >= 4.5, f"contrast {ratio:.1f} at {text!r}"
    width = browser.evaluate("Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)")
    assert width <= PHONE, f"{name} is {width} px wide"
    assert browser.evaluate(CUT_OFF) == []
    assert [formula for formula in browser.evaluate(FORMULAS) if formula[1] < -1] == [], "begins out of sight"
    assert violations(browser) == []


# --- figures that enlarge ---------------------------------------------------------------------------------------------

WITH_FIGURES = next(name for name in TOC if (path := ROOT / f"{name}.ipynb").is_file() and "show(" in path.read_text())
LARGE = """
(() => {
  const image = document.querySelector("dialog[open] img");
  if (!image) return null;
  const {left, top, width, height} = image.getBoundingClientRect();
  return {src: image.src, alt: image.alt, width, height, left, top, drawn: image.naturalWidth > 0};
})()
"""
FIRST = """
(() => {
  const button = document.querySelector("article figure button");
  button.scrollIntoView({block: "center", behavior: "instant"});
  const image = button.querySelector("img"), {left, top, width, height} = image.getBoundingClientRect();
  return {src: image.src, alt: image.alt, width, height, x: left + width / 2, y: top + height / 2};
})()
"""
FOCUS = "document.activeElement === document.querySelector('article figure button')"


@pytest.fixture
def figure(html, browser) -> dict:
    """A page with figures by day on a desktop, and its first figure."""
    look(browser, html / f"{WITH_FIGURES}.html", "light")
    return browser.evaluate(FIRST)


def test_every_figure_of_a_page_enlarges(browser, figure):
    count = browser.evaluate("document.querySelectorAll('article figure img').length")
    assert count == browser.evaluate("document.querySelectorAll('article figure button > img').length") >= 1


def test_a_click_enlarges_a_figure_and_a_click_beside_it_ends_that(browser, figure):
    browser.click(figure["x"], figure["y"])
    large = browser.evaluate(LARGE)
    assert (large["src"], large["alt"], large["drawn"]) == (figure["src"], figure["alt"], True)
    assert large["width"] > 1.2 * figure["width"]
    assert large["left"] >= 0 and large["left"] + large["width"] <= 1280
    assert violations(browser) == []
    browser.click(5, 450)
    assert browser.evaluate(LARGE) is None
    assert browser.requests == [] and browser.complaints == []


def test_a_figure_enlarges_by_the_keyboard_alone(browser, figure):
    browser.evaluate("document.querySelector('article figure button').focus()")
    for way_out in ("Escape", "close"):
        browser.press("Enter")
        assert browser.evaluate(LARGE)["drawn"]
        browser.press("Tab")  # from the button that closes to the figure, which then scrolls by arrow keys
        assert browser.evaluate("document.activeElement.matches('dialog[open] > .enlarged-room')")
        if way_out == "Escape":
            browser.press("Escape")
        else:
            browser.evaluate("document.querySelector('dialog[open] button').focus()")
            browser.press("Enter")
        assert browser.evaluate(LARGE) is None, f"{way_out} does not close it"
        assert browser.evaluate(FOCUS), f"after {way_out} the focus is elsewhere"


def test_on_a_phone_a_figure_enlarges_beyond_the_screen_and_scrolls(html, browser):
    look(browser, html / f"{WITH_FIGURES}.html", "dark", PHONE)
    figure = browser.evaluate(FIRST)
    browser.evaluate("document.querySelector('article figure button').click()")
    large = browser.evaluate(LARGE)
    assert large["width"] > 2 * figure["width"]
    room = browser.evaluate(
        "(({scrollWidth, clientWidth}) => [scrollWidth, clientWidth])(document.querySelector('dialog[open] > div'))"
    )
    assert room[0] >= large["width"] and room[1] <= PHONE
    assert "invert(" in browser.evaluate("getComputedStyle(document.querySelector('dialog[open] img')).filter")
    browser.press("Escape")


def test_the_reader_can_choose_the_theme(html, browser):
    look(browser, html / f"{TOC[0]}.html", "light")
    seen = {browser.evaluate("document.documentElement.dataset.theme")}
    for _ in range(3):
        browser.evaluate("document.querySelector('.theme-switch-button').click()")
        seen.add(browser.evaluate("document.documentElement.dataset.theme"))
    browser.evaluate("localStorage.clear()")
    assert seen == {"light", "dark"}


def test_the_search_works_from_the_files(html, browser):
    browser.resize(1280)
    browser.open(html / "search.html", "?q=prior")
    found = (
        "new Promise(done => { const poll = () => { const n = document.querySelectorAll('#search-results li').length;"
        " n || performance.now() > 20000 ? done(n) : setTimeout(poll, 100); }; poll(); })"
    )
    assert browser.evaluate(found) >= 1
    assert browser.requests == []


def test_the_browser_notices_a_request_and_an_error(html, browser, tmp_path):
    """The checks above would see what they look for."""
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><title>x</title><img src='https://example.org/x.png'><script>missing()</script>")
    browser.open(page)
    browser.open(page)  # what the page before it still loaded is not of this one
    assert browser.requests == ["https://example.org/x.png"]
    assert any("missing is not defined" in text for text in browser.complaints)
    assert browser.files == {page}
    (serious,) = [text for text in violations(browser) if "alternative text" in text]
    assert "example.org/x.png" in serious
