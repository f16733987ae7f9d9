"""The pages in a browser: they fit, can be used by mouse and by keys, keep choices, name everything, and take no text for markup."""

from __future__ import annotations

import io
import json
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from tests.stored_studies import cell, write_crossed_study, write_grid_study, write_plan, write_run, write_task_study

from attnlab.analysis.across import compare_tasks
from attnlab.analysis.comparison import compare
from attnlab.analysis.reader import load_study
from attnlab.report.across import write_across
from attnlab.report.page import write_report
from attnlab.runs.views import Examples
from attnlab.training import Picture, Table

pytestmark = pytest.mark.slow

EVIL = '<img src=x onerror="window.harmed=1"><script>window.harmed=1</script>\'&amp;<b>bold</b>'


def leave(directory, word):
    """What a run leaves to look at."""
    (directory / "log.txt").write_text("".join(f"2026-01-01 00:00:00 line {k} of {word}\n" for k in range(90)))
    table = Table(("text", "model goes on"), [(f"In the beginning {k}", f"{word} {k}") for k in range(3)])
    Examples(table, Picture(np.zeros((64, 130), dtype=np.uint8), word)).leave(directory, print)


def opened_page(browser, path):
    return browser.open(path.as_uri(), reduced_motion="reduce")


@pytest.fixture(scope="module")
def address(position, tmp_path_factory):
    return write_report(position, tmp_path_factory.mktemp("page") / "report.html")


@pytest.fixture(scope="module")
def lengths(browser, address):
    """The page of position encodings, for tests that leave it in a state that any other of them can begin with."""
    with opened_page(browser, address) as found:
        found.page.wait_for_selector("html[data-ready] .plot .main-svg")
        yield found


@pytest.fixture(scope="module")
def grid(browser, tmp_path_factory):
    """The page of a factorial study, in its folder, with logs and samples."""
    root = write_grid_study(tmp_path_factory.mktemp("runs") / "norm_warmup")
    for directory in sorted(root.glob("*/seed=0")):
        leave(directory, directory.parent.name)
    with opened_page(browser, write_report(load_study(root), root / "report.html")) as found:
        found.page.wait_for_selector("html[data-ready]")
        yield found


def until(page, condition):
    """Waits for a condition in JavaScript; the page's policy forbids Playwright's own way, which evaluates text in the page."""
    for _ in range(200):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"never came: {condition}")


def violations(page):
    """What axe finds serious or critical, in light and in dark."""
    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        for each in Axe().run(page).response["violations"]:
            if each["impact"] in ("serious", "critical") or each["id"] == "heading-order":
                found += [(scheme, each["id"], node["html"][:200]) for node in each["nodes"]]
    return found


def names(page, table, column="th"):
    return page.locator(f"[aria-label='{table}'] tbody tr[data-row]:not([hidden]) > {column}").all_inner_texts()


@pytest.mark.parametrize("which", ["lengths", "grid"])
def test_it_fits_and_is_named_in_light_and_dark(request, which):
    opened = request.getfixturevalue(which)
    page = opened.page
    for width in (400, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        until(page, "document.documentElement.scrollWidth <= innerWidth")
    unfolded = [page.locator(f"#{part} button.unfold").first for part in ("cells", "runs")]
    for button in unfolded:
        button.click()
    page.locator("#cells .unfolded summary").first.click()
    assert violations(page) == []
    for button in unfolded:
        button.click()
    assert page.locator("[role=img]:not([aria-label]), img:not([alt])").count() == 0
    opened.fresh()


# What is cut: text beyond the part that can be scrolled to, or beyond the picture it belongs to; words of an axis on each other.
CUT = """() => {
    const found = [], say = (what, element) => found.push(`${what}: ${element.textContent.trim().slice(0, 60)}`);
    for (const picture of document.querySelectorAll("svg.figure, .plot")) {
        const frame = picture.getBoundingClientRect();
        if (!frame.width) continue;
        for (const text of picture.querySelectorAll("text")) {
            const box = text.getBoundingClientRect();
            if (box.width && (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 || box.bottom > frame.bottom + 1)) say("outside its picture", text);
        }
    }
    for (const cell of document.querySelectorAll("td, th, li, p, h1, h2, summary")) if (cell.scrollWidth > cell.clientWidth + 1 && cell.clientWidth && getComputedStyle(cell).display !== "inline") say("wider than its box", cell);
    for (const region of document.querySelectorAll(".scroll")) {
        const right = region.getBoundingClientRect().left - region.scrollLeft + region.scrollWidth;
        for (const inside of region.querySelectorAll("td, th, svg")) if (inside.getBoundingClientRect().right > right + 1) say("cannot be scrolled to", inside);
    }
    const words = [...document.querySelectorAll(".plot.parallel g.annotation")].map((word) => [word, word.getBoundingClientRect()]);
    for (const [i, [first, a]] of words.entries()) for (const [second, b] of words.slice(i + 1)) {
        if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3) say(`covers ${second.textContent}`, first);
    }
    return found;
}"""


@pytest.fixture(scope="module")
def twelve(browser, tmp_path_factory):
    """The page of twelve cells of three factors, with long names."""
    factors = {
        "position": ["none", "my_parts.encoding_of_a_long_name"],
        "model.num_layers": [2, 6, 12],
        "feed_forward": ["gelu", "swiglu"],
    }
    root = write_crossed_study(tmp_path_factory.mktemp("runs") / "twelve", factors)
    with opened_page(browser, write_report(load_study(root), root / "report.html")) as found:
        found.page.wait_for_selector("html[data-ready]")
        yield found


def test_nothing_of_twelve_cells_is_cut_on_a_phone_or_a_desk(twelve):
    page = twelve.page
    until(
        page,
        "document.querySelectorAll('.plot .main-svg').length > 3 && document.querySelectorAll('.parallel .main-svg').length",
    )
    page.evaluate("document.querySelectorAll('main details').forEach((fold) => { fold.open = true; })")
    for width in (400, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(600)  # charts follow the width after a pause
        until(page, "document.documentElement.scrollWidth <= innerWidth")
        assert page.evaluate(CUT) == [], width
    widths = [page.evaluate("document.querySelector('.plot.parallel').offsetWidth")]
    page.set_viewport_size({"width": 700, "height": 900})
    page.wait_for_timeout(300)
    assert [page.evaluate("document.querySelector('.plot.parallel').offsetWidth")] == widths  # of one scale
    twelve.fresh()


# The colours of the named lines of each panel of a chart.
COLOURS = """() => Object.fromEntries([...document.querySelectorAll("#lengths .panel")].map((panel) => [
    panel.querySelector("h3")?.textContent ?? "", panel.querySelector(".plot").data.filter((line) => line.name && line.mode !== "markers").map((line) => line.line.color),
]))"""


def test_lines_of_many_cells_are_told_apart_by_panels_of_one_scale(twelve):
    page = twelve.page
    until(page, "document.querySelectorAll('#lengths .main-svg').length > 5")
    panels = page.evaluate(COLOURS)
    assert set(panels) == {f"num_layers {layers} · {part}" for layers in (2, 6, 12) for part in ("gelu", "swiglu")}
    assert [len(set(colours)) for colours in panels.values()] == [2] * 6
    assert len({tuple(colours) for colours in panels.values()}) == 1
    ranges = "[...document.querySelectorAll('#lengths .plot')].map((plot) => plot.layout.yaxis.range.join())"
    assert len(set(page.evaluate(ranges))) == 1
    assert "against multiple of the training length" in page.locator("#lengths .key").inner_text()


def test_the_answer_comes_first_and_cells_stand_best_first_with_a_column_a_factor(twelve):
    page = twelve.page
    sections = [section.get_attribute("id") for section in page.locator("main > section").all()]
    assert sections[:3] == ["short", "grid", "trust"]
    assert sections.index("differences") < sections.index("lengths")
    heads = page.locator("[aria-label='All cells'] thead th").all_inner_texts()
    assert heads[:4] == ["position", "num_layers", "feed_forward", "seeds"]
    means = [
        float(cell.get_attribute("data-value"))
        for cell in page.locator("#cells [aria-label='All cells'] td:nth-of-type(5) [data-value]").all()
    ]
    assert means == sorted(means)
    assert len(means) == 12


def test_a_table_that_scrolls_has_a_shadow_at_the_side_where_there_is_more(twelve):
    page = twelve.page
    page.set_viewport_size({"width": 400, "height": 900})
    region = page.locator("#evidence .scroll")
    region.scroll_into_view_if_needed()

    def darkness(side):
        """How much darker the edge of the heading's row is than the page."""
        box = region.bounding_box()
        x = box["x"] + (1 if side == "left" else box["width"] - 2)
        shot = page.screenshot(clip={"x": x, "y": box["y"] + 2, "width": 1, "height": 4})
        with Image.open(io.BytesIO(shot)) as picture:
            return 250 - min(picture.convert("L").getdata())

    assert darkness("right") > 15
    assert darkness("left") < 8
    region.evaluate("(element) => { element.scrollLeft = element.scrollWidth; }")
    page.wait_for_timeout(100)
    assert darkness("left") > 15
    assert darkness("right") < 8
    region.evaluate("(element) => { element.scrollLeft = 0; }")


def put_anew(page):
    """Replaces header, main part and data by fresh copies, as a server that follows a study does, and starts again."""
    page.evaluate("""() => {
        const fresh = new DOMParser().parseFromString(window.asItCame, "text/html");
        for (const part of ["header", "main", "#data"]) document.querySelector(part).replaceWith(fresh.querySelector(part));
        attnlab.start();
    }""")


def test_choices_stay_when_the_page_is_put_anew(lengths, address):
    page = lengths.page
    page.evaluate("(text) => { window.asItCame = text; }", Path(urlparse(address.as_uri()).path).read_text())
    sort = page.locator("[aria-label='All cells'] thead button.sort", has_text="test/loss@8x")
    sort.click()
    sort.click()
    page.locator("#runs input").fill("seed=1")
    page.locator("#cells button.unfold").first.click()
    page.locator("#cells .unfolded summary").nth(1).click()
    page.locator("select[data-key='curves/axis']").select_option("flops")
    page.locator("#cells summary", has_text="by seed").click()
    page.locator("select[data-key='curves/axis']").focus()
    page.wait_for_timeout(100)  # the place is noted once a frame
    before = page.evaluate("document.getElementById('curves').getBoundingClientRect().top")
    put_anew(page)
    page.wait_for_selector("#curves .plot .main-svg")
    assert names(page, "All cells")[0].startswith("sinusoidal")
    assert names(page, "All cells")[-1] == "learned"
    page.evaluate("attnlab.start()")  # of sections that stayed as they were
    assert sort.count() == 1
    assert sort.locator("..").get_attribute("aria-sort") == "descending"
    assert page.locator("#runs [role=status]").inner_text() == "6 of 24 shown"
    assert page.locator("#cells .unfolded .run").count() >= 1
    assert page.locator("select[data-key='curves/axis']").input_value() == "flops"
    assert page.locator("#cells details", has_text="by seed").last.get_attribute("open") is not None
    assert page.evaluate("document.activeElement.dataset.key") == "curves/axis"
    assert abs(page.evaluate("document.getElementById('curves').getBoundingClientRect().top") - before) < 2
    until(page, "document.querySelectorAll('[data-chart] .plot .main-svg').length >= 2")
    assert page.evaluate("document.querySelectorAll('.js-plotly-plot').length") == page.locator(".plot").count()
    lengths.fresh()


def test_cells_are_filtered_by_words_and_choices_and_unfold_to_their_runs(grid):
    page = grid.page
    page.locator("#cells input").fill("PRE 3e-3")
    page.locator("select[data-key='filter/cells/num_layers']").select_option("12")
    shown = page.locator("[aria-label='All cells'] tbody tr[data-row]:not([hidden])")
    rows = [row.get_attribute("data-row") for row in shown.all()]
    assert rows == [f"pre_ln \u00b7 num_layers 12 \u00b7 lr 3e-3 \u00b7 warmup_steps {k}" for k in (200, 0)]
    assert page.locator("#cells [role=status]").inner_text() == "2 of 16 shown"
    page.locator("#cells tr:not([hidden]) button.unfold").first.click()
    page.locator("#cells .unfolded summary").first.click()
    run = page.locator("#cells .unfolded .run").first
    assert "attnlab train residual=pre_ln" in run.inner_text()
    assert "line 89 of residual=pre_ln" in run.inner_text()
    assert "line 80 of" not in run.inner_text()
    link = run.locator("a").get_attribute("href")
    assert (Path(urlparse(page.url).path).parent / link / "run.json").is_file()
    page.locator("#cells input").fill("")
    page.locator("select[data-key='filter/cells/num_layers']").select_option("")
    page.locator("#cells button.unfold[aria-expanded=true]").first.click()
    assert page.locator("#cells .unfolded").count() == 0
    assert len(names(page, "All cells")) == 16
    grid.fresh()


def test_results_stand_over_what_they_cost_with_the_front_filled(grid):
    """Depth alone costs here: the front is the best of the cheap cells and the best of all."""
    page = grid.page
    page.locator("[data-chart=pareto]").scroll_into_view_if_needed()
    until(page, "document.querySelectorAll('[data-chart=pareto] .plot .main-svg').length > 0")
    shown = page.evaluate(
        "document.querySelector('[data-chart=pareto] .plot').data.filter((t) => t.mode === 'markers').map((t) => [t.name, t.marker.symbol])"
    )
    assert len(shown) == 16
    assert sum(symbol == "circle" for _, symbol in shown) == 2
    page.locator("select[data-key='pareto/axis']").select_option("parameters")
    until(
        page,
        "document.querySelector('[data-chart=pareto] [role=img]').getAttribute('aria-label').includes('parameters')",
    )
    grid.fresh()


def test_everything_is_done_by_keys_alone(grid):
    page = grid.page
    page.locator("#runs select").focus()
    page.keyboard.type("diverged")
    page.keyboard.press("Enter")
    assert names(page, "Every run", "td:nth-of-type(2)") == ["diverged"]
    page.locator("#runs input").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "sort"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.locator("#runs thead th").first.get_attribute("aria-sort") == "ascending"
    page.locator("#runs tr:not([hidden]) button.unfold").focus()
    page.keyboard.press("Space")
    assert "loss is not finite at step 120" in page.locator("#runs .unfolded").inner_text()
    page.keyboard.press("Space")
    assert page.locator("#runs .unfolded").count() == 0
    page.locator("#runs select").select_option("")
    page.locator("#parallel [data-word=post_ln]").focus()
    page.keyboard.press("Enter")
    assert page.locator("#parallel [role=status]").inner_text() == "23 of 47 runs go through residual post_ln"
    faded = "document.querySelector('#parallel .plot').data.filter((line) => line.opacity < 0.1).length"
    assert page.evaluate(faded) == 24
    assert page.locator("#parallel [data-word=post_ln]").get_attribute("aria-pressed") == "true"
    page.keyboard.press("Enter")
    assert page.evaluate(faded) == 0
    grid.fresh()


def test_two_runs_side_by_side_show_what_differs_and_nothing_else(grid):
    page = grid.page
    labels = {k: f"pre_ln \u00b7 num_layers {k} \u00b7 lr 1e-3 \u00b7 warmup_steps 0 \u00b7 seed 2" for k in (6, 12)}
    for place, layers in (("first", 6), ("second", 12)):
        page.locator(f"select[data-key='pair/{place}']").select_option(label=labels[layers])
    rows = page.locator("#pair tbody tr:not(.group)").all()
    assert [row.locator("th").inner_text() for row in rows] == [
        "model.num_layers", "val/loss", "flops_per_token", "parameters.non_embedding", "parameters.total"
    ]  # fmt: skip
    assert rows[0].locator("td").all_inner_texts() == ["6", "12", "+6"]
    assert rows[-1].locator("td").all_inner_texts() == ["150000", "300000", "+150000"]
    page.locator("select[data-key='pair/second']").select_option(label=labels[6])
    assert "Nothing differs" in page.locator("#pair").inner_text()
    grid.fresh()


def test_samples_and_heads_of_two_cells_stand_side_by_side(grid):
    page = grid.page
    page.locator("select[data-key='samples/second']").select_option(index=3)
    panels = page.locator("#samples .panel")
    assert panels.count() == 2
    chosen = page.locator("select[data-key='samples/second']").input_value()
    assert panels.nth(1).locator("h3").inner_text() == chosen
    assert "In the beginning 2" in panels.nth(1).inner_text()
    until(page, "[...document.querySelectorAll('#samples img')].every((one) => one.naturalWidth === 130)")
    page.locator("select[data-key='samples/second']").select_option("")
    assert panels.count() == 1
    grid.fresh()


@pytest.fixture
def evil_study(tmp_path):
    factors = {EVIL: ["a", EVIL], "other": ["x", "y"]}
    cells = [{**cell({EVIL: first, "other": second}), "name": f"{number}"} for number, (first, second) in
             enumerate((first, second) for first in factors[EVIL] for second in factors["other"])]  # fmt: skip
    metric = f"val/{EVIL}@1x"
    claims = [{"says": EVIL, "cell": {EVIL: EVIL}, "below": 1, "source": EVIL}]
    root = write_plan(
        tmp_path / "s", study=EVIL, question=EVIL, seeds=[0, 1], factors=factors, baseline=cells[0]["choices"], shared=[EVIL],
        cells=cells, metric={"name": metric, "better": "lower"}, claims=claims, code={"commit": EVIL},
    )  # fmt: skip
    for number in range(4):
        for seed in (0, 1):
            values = {f"val/{EVIL}@{k}x": number + seed + k for k in (1, 2)} | {f"train/{EVIL}": 2.0}
            curve = [{"step": k, "tokens": k, "seconds": k, "values": values} for k in (1, 2)]
            directory = write_run(root, {"x": number}, seed, values, curve=curve, error=EVIL, command=EVIL)
            record = json.loads((directory / "run.json").read_text())
            record |= {"cell_name": str(number), "config": {EVIL: f"{EVIL}{number}"}, "device": {"name": EVIL}}
            (directory / "run.json").write_text(json.dumps(record))
            leave(directory, EVIL)
    return root


def test_names_with_markup_stay_text_wherever_they_are_shown(browser, evil_study):
    with opened_page(browser, write_report(load_study(evil_study), evil_study / "report.html")) as opened:
        page = opened.page
        page.wait_for_selector("#curves .plot .main-svg")
        page.wait_for_selector("#lengths .plot .main-svg")
        for button in page.locator("button.unfold:visible").all():
            button.click()
        for fold in page.locator(".unfolded summary").all():
            fold.click()
        page.locator("select[data-key='pair/second']").select_option(index=4)
        plot = page.locator("#lengths .plot .nsewdrag").bounding_box()
        for share in range(1, 20):  # over the lines, whose labels Plotly takes markup in
            page.mouse.move(plot["x"] + plot["width"] * share / 20, plot["y"] + plot["height"] * (1 - share / 20))
        assert page.evaluate("window.harmed") is None
        assert page.locator("img[src=x], main b:text-is('bold'), svg tspan[style*='bold']").count() == 0
        for part in ("header", "#cells", "#pair", "#samples", "#parallel", "#runs .unfolded", "#claims", "#settings"):
            shown = EVIL[:17] if part == "#parallel" else EVIL  # its words are cut to what its axes have room for
            assert shown in (page.locator(part).first.text_content() or ""), part
        opened.fresh()


@pytest.mark.parametrize("kind", ["empty", "one run", "nothing measured"])
def test_a_study_with_little_in_it_gives_a_page_that_says_so(browser, tmp_path, kind):
    metric = {"name": "val/loss", "better": "lower"}
    cells = [] if kind == "empty" else [cell({"norm": "rms_norm"})]
    root = write_plan(tmp_path / "s", cells=cells, seeds=[0], metric=metric, baseline={"norm": "rms_norm"})
    if kind != "empty":
        write_run(root, {"norm": "rms_norm"}, 0, {"val/loss": 2.0 if kind == "one run" else None})
    comparison = compare(load_study(root))
    with opened_page(browser, write_report(comparison, root / "report.html")) as opened:
        opened.page.wait_for_selector("html[data-ready]")
        said = opened.page.locator("body").inner_text()
        expected = {"empty": "No run is planned", "one run": "2.000", "nothing measured": "not a number"}
        assert expected[kind] in said
        opened.fresh()


def test_the_page_of_many_tasks_draws_profiles_and_ranks_and_leads_to_each_task(browser, tmp_path):
    study = load_study(write_task_study(tmp_path / "tasks"))
    address, *others = write_across(compare_tasks(study), tmp_path / "report.html")
    with opened_page(browser, address) as opened:
        page = opened.page
        until(page, "document.querySelectorAll('.js-plotly-plot .main-svg').length >= 4")
        for width in (400, 1280):
            page.set_viewport_size({"width": width, "height": 900})
            until(page, "document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("#profiles .key span").all_inner_texts()[0] == "rotary"
        assert {"rotary", "none"} <= {text.strip() for text in page.locator("#ranks svg text").all_text_contents()}
        page.locator("#tasks summary").last.click()
        assert violations(page) == []
        links = page.locator("#tasks a").evaluate_all("links => links.map((link) => link.getAttribute('href'))")
        assert links == [other.name for other in others]
