"""The page in a browser: it renders without a word in the console and without asking for anything."""

from __future__ import annotations

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
