"""The whole book, built as ``make book`` builds it and read as a reader without a network does."""

import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from browser import Page
from explorer_page import arrange
from tiny_book import ROOT, make

from edition.figures import style

pytestmark = pytest.mark.book
PHONE = 390  # CSS pixels
HEAVIEST = 3_000_000  # bytes that a page may load before the reader asks for more
TOC = re.findall(r"(?:root|file): ([\w/-]+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))
LINKS = {"a": "href", "link": "href", **dict.fromkeys(("script", "img", "iframe", "source"), "src")}


class Document(HTMLParser):
    """Identifiers, and the addresses that a page links to or loads."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.identifiers, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        self.identifiers.add(named.get("id"))
        self.links += [link] if (link := named.get(LINKS.get(tag))) else []


@pytest.fixture(scope="session")
def html() -> Path:
    """The book where ``make book`` builds it; what has not changed since the last build is not built again."""
    built = make(ROOT, "book")
    if built.returncode:
        pytest.fail(f"the book does not build:\n{built.stdout[-6000:]}", pytrace=False)
    return ROOT / "_build" / "html"


def test_readme_picture_is_that_of_the_front_page(html):
    def drawn(path: Path) -> tuple[str, np.ndarray]:
        text = re.sub(r"data:image/png;base64,[^\"]*", "", path.read_text(encoding="utf-8"))
        number = re.compile(r"-?(?:\d+\.?\d*|\.\d+)")
        # what separates two numbers depends on their signs
        return re.sub(r"\s", "", number.sub("", text)), np.array(number.findall(text), float)

    (name,) = re.findall(r"!\[[^]]*\]\((book/[^)]*\.svg)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    (offered,) = html.glob("_downloads/*/fig-front.svg")
    (words, numbers), (words_now, numbers_now) = drawn(ROOT / name), drawn(offered)
    assert words == words_now, f"copy {offered.name} to {name}"
    np.testing.assert_allclose(numbers, numbers_now, atol=0.05)


def test_internal_links_and_anchors_resolve(html):
    names = [path.relative_to(html).as_posix() for path in html.rglob("*.html") if "_static" not in path.parts]
    parsed, broken = {name: Document(html / name) for name in names}, []
    for name, document in parsed.items():
        for link in document.links:
            parts = urlsplit(link)
            target = ((html / name).parent / unquote(parts.path) if parts.path else html / name).resolve()
            if parts.scheme or parts.netloc:
                continue
            other = parsed.get(target.relative_to(html.resolve()).as_posix())
            if not target.is_file() or (parts.fragment and other and unquote(parts.fragment) not in other.identifiers):
                broken.append(f"{name}: {link}")
    assert not broken


@pytest.mark.parametrize("name", TOC)
def test_page_is_complete(html, name):
    """Figures are numbered and offered for download; nothing is left of roles, failures or misread docstrings."""
    text = (html / f"{name}.html").read_text(encoding="utf-8")
    for figure in re.findall(r"<figure\b.*?</figure>", text, flags=re.DOTALL):
        assert re.search(r'class="caption-number">\s*Fig\. \d+', figure), "a figure without a number"
        if "<img" not in figure:  # runs to come, or data that are elsewhere
            assert re.search(r"(Not r|R)ecorded (yet|so far|in full): |Without the published files", figure)
            continue
        found = [Path(unquote(link)).suffix for link in re.findall(r'href="([^"]*_downloads[^"]*)"', figure)]
        pictures = re.search(r'class="[^"]*\bphoto\b', figure)  # of data; they may have no numbers
        # nor has one in which a sentence stands for a model to come
        blank = "a sentence replaces the row" in figure and re.search(r"(Not r|R)ecorded (yet|so far): ", text)
        assert found in ([".svg", ".png", ".csv"], [".svg", ".png"][: 2 * bool(pictures or blank)])
    assert ">Type<" not in text, "the first sentence about a property was read as its type"
    text = re.sub(r"<[^>]+>", "", re.sub(r"<code\b.*?</code>", "", text, flags=re.DOTALL))
    assert not re.search(r"Traceback \(most recent call last\)|\{(glue:|numref|cite)", text)


# the lowest contrast of text, by WCAG 2; axe-core's own rule takes four fifths of its time
CONTRAST = """
(() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const channel = c => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const background = element => {
    for (; element; element = element.parentElement) {
      const colour = parse(getComputedStyle(element).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  return [...document.querySelectorAll("article :is(p, li, td, th, h1, h2, h3, figcaption, a, code span, button)")]
    .filter(element => element.innerText.trim() && element.offsetParent)
    .map(element => {
      const both = [parse(getComputedStyle(element).color), background(element)].map(luminance);
      return [(Math.max(...both) + 0.05) / (Math.min(...both) + 0.05), element.innerText.trim().slice(0, 60)];
    }).sort((a, b) => a[0] - b[0])[0];
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
FIGURES = """
[...document.querySelectorAll("article img[src*='.svg']")].filter(image => image.offsetParent)
  .map(image => [image.src.endsWith("#dark"), getComputedStyle(image).filter])
"""
WIDTHS = """
[...document.querySelectorAll("article figure img[src*='.svg']")].filter(image => image.offsetParent)
  .map(image => image.getBoundingClientRect().width)
"""
UNSEEN = """
[...document.images].filter(image => image.offsetParent && !(image.complete && image.naturalWidth))
  .map(image => image.src).concat(
  [...document.fonts].filter(font => font.status === "error").map(font => font.family),
  [...document.querySelectorAll(".math")].filter(math => !math.querySelector("mjx-container")).map(math => math.id),
  [...document.querySelectorAll("mjx-merror, [data-mml-node=merror], [data-mjx-error]")].map(node => node.outerHTML))
"""
WIDTH = "Math.max(document.documentElement.scrollWidth, document.body.scrollWidth)"
AXE = files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
VIOLATIONS = """
axe.run(document, {resultTypes: ["violations"], preload: false, rules: {"color-contrast": {enabled: CONTRAST}}})
  .then(found => found.violations
  .filter(violation => ["serious", "critical"].includes(violation.impact))
  .map(({id, help, nodes}) => `${id}: ${help}: ${nodes.slice(0, 3).map(node => node.html).join(" ")}`))
"""


def look(browser: Page, path: Path, theme: str, width: int = 1280) -> None:
    """Open a page in a theme and at a width, without an error, a request or anything that is not drawn."""
    arrange(browser, width, prefers_color_scheme=theme)
    browser.open(path)
    assert browser.requests == [] and browser.complaints == []
    assert browser.evaluate("document.documentElement.dataset.theme") == theme
    browser.tab.wait_for_function("[...document.images].every(image => image.complete || !image.offsetParent)")
    assert all(figure == [theme == "dark", "none"] for figure in browser.evaluate(FIGURES))
    assert browser.evaluate(UNSEEN) == []
    ratio, text = browser.evaluate(CONTRAST)
    assert ratio >= 4.5, f"contrast {ratio:.1f} at {text!r}"


def violations(browser: Page, contrast: bool = False) -> list[str]:
    """Return what axe-core finds in the open page that is serious or critical."""
    browser.evaluate(f"{AXE}; null")
    return browser.evaluate(VIOLATIONS.replace("CONTRAST", str(contrast).lower()))


@pytest.mark.parametrize("name", TOC)
def test_page_by_day_on_a_desktop(html, browser, name):
    look(browser, html / f"{name}.html", "light")
    assert [formula for formula in browser.evaluate(FORMULAS) if min(formula[1:]) < -1] == [], "wider than the page"
    assert violations(browser) == []
    weights = {path: path.stat().st_size for path in browser.files}
    assert html / f"{name}.html" in weights and len(weights) > 10, "what the page loads was not noticed"
    assert sum(weights.values()) <= HEAVIEST, sorted(weights.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("name", TOC)
def test_page_by_night_on_a_phone(html, browser, name):
    look(browser, html / f"{name}.html", "dark", PHONE)
    assert browser.evaluate(WIDTH) <= PHONE and browser.evaluate(CUT_OFF) == []
    scale = min(browser.evaluate(WIDTHS), default=PHONE) / (72 * style.WIDTH)
    assert scale * style.RC["xtick.labelsize"] >= 9, "tick labels are too small"
    assert [formula for formula in browser.evaluate(FORMULAS) if formula[1] < -1] == [], "begins out of sight"


WITH_FIGURES = next(
    name for name in TOC[1:] if (path := ROOT / f"{name}.ipynb").is_file() and "show(" in path.read_text()
)
BUTTON = "document.querySelector('article figure button')"
OPEN = "document.querySelector('dialog[open]')"
IMAGE = """
(selector => {
  const image = document.querySelector(selector);
  if (!image) return null;
  const {left, top, width, height} = image.getBoundingClientRect();
  return {src: image.src, alt: image.alt, drawn: image.naturalWidth > 0, left, top, width, height};
})
"""
SMALL, LARGE = f"{IMAGE}('article figure button img')", f"{IMAGE}('dialog[open] img')"


def test_figure_enlarges_by_a_click_until_a_click_outside(html, browser):
    look(browser, html / f"{WITH_FIGURES}.html", "light")
    assert browser.evaluate("document.querySelectorAll('article figure img:not(button > img)').length") == 0
    browser.evaluate(f"{BUTTON}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
    small = browser.evaluate(SMALL)
    browser.click(small["left"] + small["width"] / 2, small["top"] + small["height"] / 2)
    large = browser.evaluate(LARGE)
    assert (large["src"], large["alt"], large["drawn"]) == (small["src"], small["alt"], True)
    assert large["width"] > 1.2 * small["width"] and 0 <= large["left"] <= 1280 - large["width"]
    assert violations(browser, contrast=True) == []
    browser.click(5, 450)
    assert browser.evaluate(LARGE) is None and browser.requests == [] and browser.complaints == []


def test_figure_enlarges_by_the_keyboard_alone(html, browser):
    look(browser, html / f"{WITH_FIGURES}.html", "light")
    browser.evaluate(f"{BUTTON}.focus()")
    browser.press("Enter")
    assert browser.evaluate(LARGE)["drawn"]
    browser.press("Tab")  # from the button that closes to the figure, which then scrolls by arrow keys
    assert browser.evaluate("document.activeElement.matches('dialog[open] > div')")
    browser.evaluate(f"{OPEN}.querySelector('button').focus()")
    browser.press("Enter")
    assert browser.evaluate(LARGE) is None and browser.evaluate(f"document.activeElement === {BUTTON}")


def test_figure_enlarges_beyond_a_phone_and_scrolls(html, browser):
    look(browser, html / f"{WITH_FIGURES}.html", "dark", PHONE)
    small = browser.evaluate(SMALL)
    browser.evaluate(f"{BUTTON}.click()")
    large = browser.evaluate(LARGE)
    assert large["width"] > 2 * small["width"]
    scrolled, shown = browser.evaluate(f"(view => [view.scrollWidth, view.clientWidth])({OPEN}.querySelector('div'))")
    assert scrolled >= large["width"] and shown <= PHONE
    assert large["src"].endswith("#dark")
    browser.press("Escape")
    assert browser.evaluate(LARGE) is None


def test_search_works_from_the_files(html, browser):
    arrange(browser)
    browser.open(html / "search.html", "?q=prior")
    browser.tab.wait_for_selector("#search-results li")
    assert browser.requests == []


def test_browser_notices_a_request_an_error_and_a_violation(browser, tmp_path):
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><title>x</title><img src='https://example.org/x.png'><script>missing()</script>")
    for _ in range(2):  # what the first page still loads is not part of the second
        browser.open(page)
    assert browser.requests == ["https://example.org/x.png"] and browser.files == {page}
    assert any("missing is not defined" in text for text in browser.complaints)
    assert any("alternative text" in text and "example.org/x.png" in text for text in violations(browser))


MENU = "document.querySelector('dialog[open] .bd-sidebar-primary, dialog[open].bd-sidebar-primary, dialog[open] nav a')"
TOGGLE = "[...document.querySelectorAll('button.primary-toggle')].find(button => button.offsetParent)"
FOLDED = "document.querySelector('#pst-primary-sidebar').classList.contains('pst-sidebar-hidden')"


@pytest.mark.parametrize("width", [PHONE, 800, 1400])
def test_menu_opens_at_every_width(html, browser, width):
    look(browser, html / f"{TOC[0]}.html", "light", width)
    box = browser.evaluate(
        f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({TOGGLE}.getBoundingClientRect())"
    )
    browser.click(*box)
    if width >= 992:
        assert browser.evaluate(FOLDED)
        browser.evaluate(f"{TOGGLE}.click()")  # wherever it has moved to
        assert not browser.evaluate(FOLDED)
        return
    assert browser.evaluate(f"{MENU}?.getBoundingClientRect().left") >= 0
    browser.press("Escape")
    assert browser.evaluate(MENU) is None


def test_code_is_shown_by_a_switch_and_parameters_always(html, browser):
    look(browser, html / f"{WITH_FIGURES}.html", "light")
    shown = "[...document.querySelectorAll('article .cell_input')].filter(code => code.offsetParent).length"
    parameters, every = (
        browser.evaluate(f"document.querySelectorAll('{path}').length")
        for path in (".reproduce .cell_input", "article .cell_input")
    )
    assert browser.evaluate(shown) == parameters == 1
    browser.evaluate("document.querySelector('.code-switch').click()")
    assert browser.evaluate(shown) == every > parameters
    browser.open(html / f"{TOC[1]}.html")  # the switch holds for the pages that follow
    assert browser.evaluate(shown) > 1
    browser.evaluate("document.querySelector('.code-switch').click()")
    assert browser.evaluate(shown) == 1
