"""The page in a browser: it renders without a word in the console and without asking for anything."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlparse

import pytest

from attnlab.analysis.page import write_report

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(position, tmp_path_factory):
    return write_report(position, tmp_path_factory.mktemp("page") / "report.html").as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_it_renders_and_fits(browser, address, width, scheme):
    with browser.open(address, width=width, scheme=scheme) as opened:
        opened.page.wait_for_selector(".plot .main-svg")
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        opened.fresh()


@pytest.fixture(scope="module")
def opened(browser, address):
    """One window for the tests that leave the page as they found it."""
    with browser.open(address, reduced_motion="reduce") as found:
        found.page.wait_for_selector("html[data-ready] .plot .main-svg")
        yield found
        found.fresh()


def put_anew(page):
    """Replaces header, main part and data by fresh copies, as a server that follows a study does, and starts again."""
    page.evaluate("""() => {
        const fresh = new DOMParser().parseFromString(window.asItCame, "text/html");
        for (const part of ["header", "main", "#data"]) document.querySelector(part).replaceWith(fresh.querySelector(part));
        attnlab.start();
    }""")


def first_cell(page, table="All cells"):
    return page.locator(f"[aria-label='{table}'] tbody tr:not([hidden]) th").first.inner_text()


def test_choices_stay_when_the_page_is_put_anew(opened, address):
    page = opened.page
    page.evaluate("(text) => { window.asItCame = text; }", Path(urlparse(address).path).read_text())
    sort = page.locator("[aria-label='All cells'] thead button", has_text="test/nats@8x")
    sort.click()
    sort.click()
    assert first_cell(page).startswith("sinusoidal")
    page.locator("select[data-key='curves/axis']").select_option("seconds")
    page.locator("#cells summary", has_text="by seed").click()
    page.locator("select[data-key='curves/axis']").focus()
    page.wait_for_timeout(100)  # the place is noted once a frame
    before = page.evaluate("document.getElementById('curves').getBoundingClientRect().top")
    put_anew(page)
    page.wait_for_selector("#curves .plot .main-svg")
    assert first_cell(page).startswith("sinusoidal")
    assert sort.locator("..").get_attribute("aria-sort") == "descending"
    assert page.locator("select[data-key='curves/axis']").input_value() == "seconds"
    assert page.locator("#cells details", has_text="by seed").get_attribute("open") is not None
    assert page.evaluate("document.activeElement.dataset.key") == "curves/axis"
    assert abs(page.evaluate("document.getElementById('curves').getBoundingClientRect().top") - before) < 2
    assert (
        page.evaluate("[...document.querySelectorAll('.js-plotly-plot')].length")
        == page.locator("[data-chart] .plot").count()
    )
