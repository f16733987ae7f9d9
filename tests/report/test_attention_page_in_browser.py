"""The page of a model's attention in a browser: numbers under the pointer and by the keyboard, narrow, dark, and for screen readers."""

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe

from attnlab.data import Character
from attnlab.inspection.attended import Reader, read_image
from attnlab.inspection.attention_maps import CROSS
from attnlab.inspection.heads import head_scores
from attnlab.models import EncoderDecoder, ViT
from attnlab.report.attention import write_page

pytestmark = pytest.mark.slow
LETTERS = Character(alphabet=' <b>"&acdefg\n')


def shaken(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def examples():
    """Two pairs, the first with what HTML would take for its own."""
    torch.manual_seed(0)
    model = EncoderDecoder(
        5 + LETTERS.vocabulary_size, max_length=64, d_model=16, num_heads=2, num_layers=2, dropout=0.0
    )
    reader = Reader(shaken(model), LETTERS)
    return [reader.read('a <b>"bad"</b'.replace("/", "&"), "dab cab\nbag"), reader.read("cab", "bac")]


@pytest.fixture(scope="module")
def address(examples, tmp_path_factory):
    path = tmp_path_factory.mktemp("attention") / "attention.html"
    return write_page(path, "a <run>", examples, head_scores(examples)).as_uri()


def rows_of(page):
    """What the table of keys says: label, place, weight."""
    return [tuple(row.locator("th, td").all_inner_texts()) for row in page.locator("#top tbody tr").all()]


def expected_rows(example, kind, layer, head, query):
    keys = example.axes[kind][1]
    row = (example.of_kind(kind)[layer].weights_HTS[head][query].numpy() * 65535).round()
    order = sorted((s for s in range(len(keys)) if row[s] > 0), key=lambda s: (-row[s], s))[:8]
    return [(keys.labels[s], str(s), f"{row[s] / 65535:.4f}") for s in order]


def test_pointer_and_keyboard_show_the_models_own_numbers(browser, address, examples):
    with browser.open(address) as opened:
        page = opened.page
        page.select_option("#kind", label=CROSS)
        page.click("#overview button[data-layer='1'][data-head='1']")
        assert page.inner_text("#title") == "cross, layer 1, head 1"
        queries = page.locator("#queries")
        queries.press("Home")
        queries.press("ArrowDown")
        queries.press("ArrowDown")
        assert page.inner_text("#queries [aria-selected=true]") == "d"
        assert rows_of(page) == expected_rows(examples[0], CROSS, 1, 1, 2)
        queries.press("ArrowRight")
        queries.press("ArrowRight")
        weight = examples[0].of_kind(CROSS)[1].weights_HTS[1][2, 1].item()
        assert page.inner_text("#pair") == f"d (2) \u2192 a (1): {weight:.4f}"
        box = page.locator("#cells").bounding_box()
        targets, sources = examples[0].axes[CROSS]
        page.mouse.move(box["x"] + box["width"] * 3.5 / len(sources), box["y"] + box["height"] * 5.5 / len(targets))
        weight = examples[0].of_kind(CROSS)[1].weights_HTS[1][5, 3].item()
        assert page.inner_text("#pair") == f"{targets.labels[5]} (5) \u2192 < (3): {weight:.4f}"
        assert rows_of(page) == expected_rows(examples[0], CROSS, 1, 1, 5)
        page.mouse.move(1, 1)  # away: what was chosen before is shown again
        assert rows_of(page) == expected_rows(examples[0], CROSS, 1, 1, 2)
        page.select_option("#example", "1")
        assert rows_of(page) == expected_rows(examples[1], CROSS, 1, 1, 2)
        page.select_option("#kind", label="encoder rollout")
        assert page.inner_text("#title") == "encoder rollout, layers 0 to 1"
        page.click("#heads button[data-kind='decoder self'][data-layer='0'][data-head='1']")
        assert page.inner_text("#title").startswith("decoder self, layer 0, head 1")
        assert rows_of(page) == expected_rows(examples[1], "decoder self", 0, 1, 2)
        opened.fresh()


def test_the_map_is_drawn_where_the_weights_are(browser, address, examples):
    with browser.open(address) as opened:
        page = opened.page
        page.select_option("#kind", label="decoder self")
        page.click("#overview button[data-layer='0'][data-head='0']")
        pixels = page.evaluate("""() => { const c = document.getElementById('cells');
            return [c.width, c.height, Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data)]; }""")
        weights = examples[0].of_kind("decoder self")[0].weights_HTS[0].numpy()
        red = np.array(pixels[2]).reshape(pixels[1], pixels[0], 4)[:, :, 0]
        allowed = np.tril(np.ones_like(weights, dtype=bool))
        assert (red[~allowed] == 236).all()  # the shade of what may not be attended to
        order = np.argsort(weights[allowed])
        assert (np.diff(red[allowed][order]) <= 1).all()  # darker with the weight
        assert red[allowed].min() == 8
        opened.fresh()


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (400, "light")])
def test_narrow_and_dark_and_nothing_in_the_way_of_a_screen_reader(browser, address, width, scheme):
    with browser.open(address, width=width, scheme=scheme) as opened:
        opened.page.wait_for_selector("#top tbody tr")
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.page.locator("b, script[src], img").count() == 1  # the page's own, of its legend
        found = Axe().run(opened.page).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")] == []
        opened.fresh()


def test_an_image_is_tinted_where_a_patch_attends_to(browser, tmp_path):
    torch.manual_seed(0)
    model = shaken(ViT(2, 8, 1, patch_size=4, d_model=16, num_heads=2, num_layers=1))
    found = read_image(model, np.zeros((1, 8, 8), dtype=np.uint8), np.zeros(1), np.ones(1), "dark.png")
    with browser.open(write_page(tmp_path / "a.html", "run", [found], head_scores([found])).as_uri()) as opened:
        page = opened.page
        assert page.is_visible("#image")
        assert not page.is_visible("#reading")
        page.click("#overview button[data-layer='0'][data-head='1']")
        box = page.locator("#image").bounding_box()
        page.mouse.click(box["x"] + 0.75 * box["width"], box["y"] + 0.25 * box["height"])
        assert page.inner_text("#queries [aria-selected=true]") == "1.2"
        middles = page.evaluate("""() => { const c = document.getElementById('image'), x = c.width / 4;
            return [[1, 1], [3, 1], [1, 3], [3, 3]].map(([a, b]) => c.getContext('2d').getImageData(a * x, b * x, 1, 1).data[0]); }""")
        weights = found.of_kind("self")[0].weights_HTS[1][1].numpy()
        np.testing.assert_allclose(middles, 255 * 0.75 * weights / weights.max(), atol=2)
        opened.fresh()
