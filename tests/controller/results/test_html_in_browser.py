"""The HTML report in a real browser: filters, links, a phone, paper, the dark, no script, no network."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fleet_controller.results.html.page import render
from support.browser import Browser, Page, find_browser
from support.reports import page_of, report

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium on this machine")

ALL = "#depth="
TAB = ("Tab", 9)
# The lowest contrast of text with what is behind it (WCAG 2.2, 1.4.3), of all elements that match.
CONTRAST = """
((selector, colour) => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b]
    .map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, index) => sum + part * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (element) => {
    for (let one = element; one !== null; one = one.parentElement) {
      const colour = rgba(getComputedStyle(one).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const ratios = [...document.querySelectorAll(selector)].map((element) => {
    const [ink, paper] = [light(rgba(getComputedStyle(element)[colour])), light(behind(element))];
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  });
  const worst = ratios.indexOf(Math.min(...ratios));
  return [ratios.length, ratios[worst], document.querySelectorAll(selector)[worst].outerHTML.slice(0, 200)];
})
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("report") / "matrix.html"
    target.write_text(render(report()), encoding="utf-8")
    return target


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser.start(tmp_path_factory.mktemp("browser")) as started:
        yield started


def shown(page: Page, selector: str) -> int:
    """How many elements take room."""
    found: int = page.evaluate(
        f"[...document.querySelectorAll({selector!r})].filter((one) => one.getClientRects().length > 0).length"
    )
    return found


def choose(page: Page, name: str, value: str) -> None:
    """As a user does: the browser's own event follows a change of the choice."""
    page.evaluate(
        f"(() => {{ const one = document.querySelector('select[name={name}]'); one.value = '={value}';"
        " one.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )


def visible_columns(page: Page) -> set[str]:
    found: list[str] = page.evaluate(
        "[...document.querySelectorAll('.heat thead th[data-column]')]"
        ".filter((one) => one.getClientRects().length > 0).map((one) => one.textContent)"
    )
    return set(found)


@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("scripts", [True, False])
def test_it_fits_its_window_and_asks_for_nothing(browser: Browser, path: Path, width: int, scripts: bool) -> None:
    page = browser.open(path, width=width, scripts=scripts, hash_=ALL)
    if scripts:
        page.evaluate("document.getElementById('open-all').click()")
    assert page.call("Page.getLayoutMetrics")["cssContentSize"]["width"] == width
    assert page.requests() == [path.as_uri()]
    assert page.complaints() == []


def test_wide_tables_scroll_in_their_own_boxes(browser: Browser, path: Path) -> None:
    page = browser.open(path, width=360)
    overflowing = "[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth)"
    assert page.evaluate(f"{overflowing}.length") > 0
    assert page.evaluate(f"{overflowing}.every((one) => one.tabIndex === 0 && one.getAttribute('aria-label'))")


def test_filters_hide_what_does_not_match(browser: Browser, path: Path) -> None:
    page = browser.open(path)
    assert page.evaluate("document.querySelector('select[name=depth]').value") == "=0"
    at_depth_0, total = map(int, re.findall(r"\d+", page.evaluate("document.getElementById('count').textContent")))
    assert 0 < at_depth_0 < total == page.evaluate("document.querySelectorAll('[data-row]').length")
    choose(page, "model", "qwen3.5-4b")
    choose(page, "backend", "vllm")
    assert visible_columns(page) == {"rtx4090-linux"}
    assert shown(page, ".heat tbody") == 3  # decode, prefill, time to first token
    assert shown(page, ".host") == 1
    assert shown(page, ".chart g") == 2
    assert shown(page, "[data-row]") == 6
    assert page.evaluate("location.hash") == "#model=qwen3.5-4b&backend=vllm&depth=0"
    assert page.evaluate("document.getElementById('count').textContent") == f"6 of {total} results are shown"
    page.evaluate("document.getElementById('show-all').click()")
    assert shown(page, "[data-row]") == total
    assert page.complaints() == []


def test_an_address_names_filters(browser: Browser, path: Path) -> None:
    page = browser.open(path, hash_="#host=gpu1&source=measured&depth=8192")
    assert visible_columns(page) == {"gpu1"}
    assert shown(page, "[data-row]") == 2
    assert shown(page, ".host") == 1
    assert browser.open(path, hash_="#model=nobody").complaints() == []


def test_filters_by_host_and_source_leave_tables_in_order(browser: Browser, path: Path) -> None:
    page = browser.open(path, hash_="#source=measured")
    assert visible_columns(page) == {"gpu1", "<script>alert(1)</script>"}
    lengths = page.evaluate(
        "[...document.querySelectorAll('.heat')].filter((one) => one.getClientRects().length > 0).map((table) =>"
        " [...table.querySelectorAll('thead tr, tbody tr:not(:first-child)')]"
        ".filter((one) => one.getClientRects().length > 0)"
        ".map((row) => [...row.cells].filter((one) => one.getClientRects().length > 0).length))"
    )
    assert lengths
    assert all(len(set(of_table)) == 1 for of_table in lengths)


def test_a_figure_leads_to_its_samples_even_where_a_filter_hides_them(browser: Browser, path: Path) -> None:
    page = browser.open(path, hash_="#depth=8192")
    assert page.evaluate("document.getElementById('r2').getClientRects().length") == 0
    page.evaluate("location.hash = '#r2'")
    page.evaluate("new Promise((done) => setTimeout(done))")
    assert page.evaluate("document.getElementById('r2').closest('article').querySelector('details').open")
    top, height = page.evaluate("[document.getElementById('r2').getBoundingClientRect().top, innerHeight]")
    assert 0 < top < height
    assert page.evaluate("document.activeElement.id") == "r2"


def test_a_page_without_results_is_a_page(browser: Browser, tmp_path: Path) -> None:
    target = tmp_path / "empty.html"
    target.write_text(page_of([]), encoding="utf-8")
    page = browser.open(target, width=360)
    assert page.complaints() == []
    assert "fleet bench MODEL" in page.evaluate("document.body.innerText")


def test_conclusions_lead_to_their_rows(browser: Browser, path: Path) -> None:
    page = browser.open(path)
    page.evaluate("document.querySelector('#conclusions li small a').click()")
    page.evaluate("new Promise((done) => setTimeout(done))")
    assert page.evaluate("document.querySelector('tr:target').getClientRects().length") == 1


def test_colours_follow_the_models_or_the_rows_best(browser: Browser, path: Path) -> None:
    page = browser.open(path)
    colours = (
        "new Set([...document.querySelectorAll('.cell')].map((one) => getComputedStyle(one).backgroundColor)).size"
    )
    of_model = page.evaluate(colours)
    page.evaluate(
        "(() => { const one = document.getElementById('colours'); one.value = 'row';"
        " one.dispatchEvent(new Event('change', { bubbles: true })); })()"
    )
    assert page.evaluate(colours) < of_model


def test_without_scripts_everything_is_there_and_no_dead_control(browser: Browser, path: Path) -> None:
    page = browser.open(path, scripts=False)
    page.call("DOM.enable")
    page.call("CSS.enable")
    document = page.call("DOM.getDocument")["root"]["nodeId"]

    def nodes(selector: str) -> list[int]:
        found: list[int] = page.call("DOM.querySelectorAll", {"nodeId": document, "selector": selector})["nodeIds"]
        return found

    def boxes(selector: str) -> int:
        styles = [
            page.call("CSS.getComputedStyleForNode", {"nodeId": node})["computedStyle"] for node in nodes(selector)
        ]
        return sum({"name": "display", "value": "none"} not in style for style in styles)

    assert boxes("#filters") == 0
    assert boxes(".copy") == 0
    assert boxes("figure") == len(nodes("figure")) > 3
    assert boxes(".host") > 3


def test_names_that_are_html_do_nothing(browser: Browser, path: Path) -> None:
    page = browser.open(path, hash_="#host-script-alert-1-script")
    assert page.evaluate("document.images.length + document.scripts.length") == 1
    assert page.evaluate("document.querySelector('#host-script-alert-1-script h3').textContent").startswith("<script>")
    assert page.complaints() == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize(
    ("selector", "colour", "least"),
    [
        (
            "p, li, th, td, small, a:not(svg a), caption, summary, dt, dd, label, select, button, pre, figcaption",
            "color",
            4.5,
        ),
        (".chart text", "fill", 4.5),
        (".line, .mark, .bar", "stroke", 3.0),  # graphics: WCAG 1.4.11
    ],
)
def test_contrast_is_enough(browser: Browser, path: Path, dark: bool, selector: str, colour: str, least: float) -> None:
    page = browser.open(path, dark=dark, hash_=ALL)
    count, lowest, where = page.evaluate(f"{CONTRAST}({selector!r}, {colour!r})")
    assert count > 5
    assert lowest >= least, where


def test_it_can_be_used_by_keyboard(browser: Browser, path: Path) -> None:
    page = browser.open(path)
    page.press(*TAB)
    assert page.evaluate("document.activeElement.className") == "skip"
    seen: list[str] = []
    for _ in range(60):
        page.press(*TAB)
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert {"filter-model", "colours", "show-all", "open-all", "scroll"} <= set(seen)


def test_tables_controls_and_headings_say_what_they_are(browser: Browser, path: Path) -> None:
    page = browser.open(path)
    faults = page.evaluate(
        """({
          tables: [...document.querySelectorAll("table")].filter((one) => one.caption === null).length,
          heads: document.querySelectorAll("th:not([scope])").length,
          controls: [...document.querySelectorAll("select")].filter((one) => one.labels.length !== 1).length,
          charts: document.querySelectorAll("svg:not([aria-label]):not([aria-hidden])").length,
          headings: [...document.querySelectorAll("h1, h2, h3, h4, h5")].map((one) => Number(one.tagName[1]))
            .filter((level, index, all) => index > 0 && level > all[index - 1] + 1).length,
          language: document.documentElement.lang === "en" ? 0 : 1,
        })"""
    )
    assert set(faults.values()) == {0}, faults


def test_paper_shows_no_controls_and_cuts_no_section(browser: Browser, path: Path) -> None:
    page = browser.open(path, width=718, dark=True, hash_=ALL)
    page.as_printed()
    assert shown(page, "form, nav, .copy") == 0
    assert page.evaluate(
        "[...document.querySelectorAll('.block')].every((one) => getComputedStyle(one).breakInside === 'avoid')"
    )
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    wide = (
        "[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > document.body.clientWidth).length"
    )
    assert page.evaluate(wide) == 0
    printed = page.pdf()
    assert printed.startswith(b"%PDF")
    boxes = re.findall(rb"/MediaBox \[([\d. ]+)\]", printed)
    assert boxes and all([round(float(side)) for side in box.split()] == [0, 0, 595, 842] for box in boxes)  # A4
