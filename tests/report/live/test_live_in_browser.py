"""A live page in a browser: it follows what runs, keeps what its reader chose, and goes on when the server was away."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import contextmanager

import pytest
from tests.stored_studies import cell, learning_curve, write_plan, write_run

from attnlab.report.live.server import Server
from attnlab.training.run_directory import RunDirectory, write_json

pytestmark = pytest.mark.slow
POSITIONS = {"none": 2.5, "alibi": 2.3, "rotary": 2.4}
SOON = 20_000  # milliseconds: a machine may be busy


@contextmanager
def serving(studies, port=0):
    server = Server(lambda: studies, port, token="right-token", pause=0.0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def running(tmp_path):
    """Three cells of two seeds: the first seeds have finished, and rotary's second is under way, with this process as its owner."""
    root = tmp_path / "running"
    choices = [{"position": name} for name in POSITIONS]
    metric = {"name": "val/loss", "better": "lower", "margin": 0.02}
    write_plan(root, cells=[cell(c) for c in choices], seeds=[0, 1], metric=metric, baseline=choices[0], factors={"position": [*POSITIONS]})  # fmt: skip
    for name, level in POSITIONS.items():
        write_run(root, {"position": name}, 0, {"val/loss": level}, curve=learning_curve(level, 0, steps=200))
    own = RunDirectory(write_run(root, {"position": "rotary"}, 1, {}, state="running"))
    own.claim()
    yield root, own
    own.release()


def train(own, lines):
    """Appends lines as a training does."""
    with own.metrics.open("a") as file:
        for line in lines:
            file.write(json.dumps(line) + "\n")
            file.flush()


def finish(own, value):
    status = {"state": "finished", "attempt": own.attempt, "step": 200, "max_steps": 200, "final": {"val/loss": value}}
    write_json(own.status_json, status, durable=False)


def says(page, text):
    """Waits until the line at the foot says so; asks the server at once, as after a sleep of the machine."""
    page.evaluate("dispatchEvent(new Event('online'))")
    page.wait_for_function(
        "(text) => document.getElementById('live-state').textContent.includes(text)", arg=text, timeout=SOON
    )


def test_it_follows_a_run_and_keeps_what_was_chosen(browser, running):
    root, own = running
    with serving({"running": root}) as server, browser.open(server.address("/study/running/")) as opened:
        page = opened.page
        assert page.url == f"http://127.0.0.1:{server.port}/study/running/"
        assert page.evaluate("document.cookie") == ""
        says(page, "live, 3 of 6 runs finished, 1 running")
        page.wait_for_selector("html[data-ready] #curves .plot .main-svg")
        heading = page.locator("[aria-label='All cells'] thead button", has_text="val/loss").first
        heading.click()
        heading.click()
        page.locator("select[data-key='curves/axis']").select_option("tokens")
        page.locator("#cells summary", has_text="by seed").click()
        words = page.locator("input[data-key='filter/cells']")
        words.fill("rot")
        words.press("ArrowLeft")
        page.evaluate("document.querySelector('#reading').sameAsBefore = true")
        page.locator("#curves").scroll_into_view_if_needed()
        page.wait_for_timeout(100)  # the place is noted once a frame
        place = page.evaluate("document.getElementById('curves').getBoundingClientRect().top")

        train(own, learning_curve(2.4, 1, steps=200))
        page.wait_for_function("() => JSON.parse(document.getElementById('data').textContent).curves[0].series.some((s) => s.cell === 'rotary' && '1' in s.seeds)", timeout=SOON)  # fmt: skip
        finish(own, 2.2)
        says(page, "live, 4 of 6 runs finished")
        assert "4 of 6 runs finished" in page.locator("header").inner_text()
        assert page.locator("[aria-label='All cells'] tbody tr:visible th").all_inner_texts() == ["rotary"]
        assert heading.locator("..").get_attribute("aria-sort") == "descending"
        assert page.locator("select[data-key='curves/axis']").input_value() == "tokens"
        assert page.locator("#cells details", has_text="by seed").get_attribute("open") is not None
        assert (words.input_value(), page.evaluate("document.activeElement.dataset.key")) == ("rot", "filter/cells")
        assert page.evaluate("document.activeElement.selectionStart") == 2
        assert abs(page.evaluate("document.getElementById('curves').getBoundingClientRect().top") - place) < 2
        assert page.evaluate("document.querySelector('#reading').sameAsBefore")  # what is the same stays as it is
        assert page.locator("#curves .plot .main-svg").count() > 0
        assert page.locator("#live-since").inner_text().startswith("updated ")
        opened.fresh()


def test_a_hidden_page_asks_less_and_at_once_when_it_is_seen_again(browser, running):
    root, own = running
    with serving({"running": root}) as server, browser.open(server.address("/study/running/")) as opened:
        page, asked = opened.page, []
        says(page, "3 of 6")
        page.on("request", lambda request: asked.append(request.url))
        page.evaluate("Object.defineProperty(document, 'hidden', { configurable: true, get: () => true })")
        page.wait_for_timeout(1000)  # the question that was due already
        asked.clear()
        finish(own, 2.2)
        page.wait_for_timeout(1000)
        assert asked == []
        page.evaluate("delete document.hidden; document.dispatchEvent(new Event('visibilitychange'))")
        page.wait_for_selector("header >> text=4 of 6 runs finished", timeout=SOON)
        assert len(asked) >= 2


def test_nothing_is_replaced_while_a_choice_is_open(browser, running):
    root, own = running
    with serving({"running": root}) as server, browser.open(server.address("/study/running/")) as opened:
        page = opened.page
        says(page, "3 of 6")
        box = page.locator("select[data-key='curves/axis']")
        box.click()
        finish(own, 2.2)
        page.wait_for_timeout(1500)
        assert "3 of 6 runs finished" in page.locator("header").inner_text()
        box.select_option("seconds")
        box.evaluate("(box) => box.blur()")
        page.wait_for_selector("header >> text=4 of 6 runs finished", timeout=SOON)
        assert box.input_value() == "seconds"
        opened.fresh()


def test_a_link_of_another_site_leads_to_the_page(browser, running, tmp_path):
    """A cookie for this site alone is not sent on a redirection that another site has begun."""
    with serving({"running": running[0]}) as server:
        link = tmp_path / "link.html"
        link.write_text(f'<a href="{server.address("/study/running/")}">here</a>')
        with browser.open(link.as_uri()) as elsewhere:
            elsewhere.page.context.unroute_all()
            elsewhere.page.get_by_role("link").click()
            elsewhere.page.wait_for_selector("#cells", timeout=SOON)
            assert elsewhere.page.url == f"http://127.0.0.1:{server.port}/study/running/"


def test_it_goes_on_when_the_server_was_away(browser, running):
    root, own = running
    with socket.create_server(("127.0.0.1", 0)) as free:  # one that no other test takes while the server is away
        port = free.getsockname()[1]
    with serving({"running": root}, port) as server, browser.open(server.address("/study/running/")) as opened:
        page = opened.page
        says(page, "3 of 6")
        server.shutdown()
        server.server_close()
        says(page, "The server does not answer.")
        assert page.locator("#live").get_attribute("class") == "lost"
        finish(own, 2.2)
        with serving({"running": root}, port) as again:
            says(page, "4 of 6")
            again.access.token = "another"
            says(page, "The server was started anew: open the address that it printed.")
        assert opened.denied == []
        assert all("ERR_CONNECTION_REFUSED" in error or "403" in error for error in opened.errors)


def test_the_list_and_a_page_fit_a_telephone_in_the_dark(browser, running):
    root, own = running
    long = {"<i>" + "a_long_name_of_a_study_" * 4: root, "running": root}
    with serving(long) as server, browser.open(server.address(), width=400, scheme="dark") as opened:
        page = opened.page
        says(page, "live")
        assert page.locator("#studies h2").count() == 2
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        assert page.locator("#studies time").first.inner_text().endswith(" ago")
        finish(own, 2.1)
        page.wait_for_selector("text=4 of 6 runs finished", timeout=SOON)
        page.locator("#studies h2 a", has_text="running").first.click()
        says(page, "4 of 6 runs finished")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        page.get_by_role("link", name="All studies").click()
        page.wait_for_selector("#studies")
        opened.fresh()


def test_a_study_that_vanishes_is_said_and_shown_again_when_it_is_back(browser, running, tmp_path):
    root, _ = running
    with serving({"running": root}) as server, browser.open(server.address("/study/running/")) as opened:
        page = opened.page
        says(page, "3 of 6")
        root.rename(tmp_path / "away")
        says(page, "The study running is not there any more.")
        assert page.locator("#cells").count() == 1
        opened.fresh()
        page.reload()
        page.wait_for_selector("main >> text=The study running is not there any more.")
        (tmp_path / "away").rename(root)
        page.wait_for_selector("#cells", timeout=SOON)
        says(page, "3 of 6")
        assert opened.denied == []


def test_it_is_readable_by_a_screen_reader(browser, running):
    from axe_playwright_python.sync_playwright import Axe

    root, _ = running
    with serving({"running": root}) as server, browser.open(server.address()) as opened:
        says(opened.page, "live")
        assert Axe().run(opened.page).response["violations"] == []
        opened.page.locator("#studies h2 a").click()
        says(opened.page, "3 of 6")
        found = Axe().run(opened.page, context="#live").response["violations"]
        assert found == []
        assert opened.page.locator("#live-state").get_attribute("role") == "status"
