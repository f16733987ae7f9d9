"""A run in a notebook gives what the commands give, and says what it cannot."""

from __future__ import annotations

import json
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

import attnlab as lab
from attnlab.cli.main import main
from attnlab.config import UsageError
from attnlab.inspection.attention_maps import layer_maps
from attnlab.training.run_directory import read_json


def train(library, folder, *words):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATTNLAB_CACHE", str(library / "cache"))
        assert main(["train", *words, f"run_dir={folder / 'run'}"]) == 0
    return folder / "run"


@pytest.fixture(scope="module")
def writer(tiny, library, tmp_path_factory):
    return train(library, tmp_path_factory.mktemp("writer"), *tiny, "position=rotary")


@pytest.fixture(scope="module")
def translator(library, tmp_path_factory):
    words = ["model=encoder_decoder", "data=parallel_text", f"data.path={library / 'pairs.tsv'}"]
    words += ["data.language_pair=en-de", "data.source.split=[0.8,0.1,0.1]", "data.batch_tokens=400"]
    words += ["tokenizer=character", "model.d_model=16", "model.num_heads=2", "model.num_layers=1"]
    words += ["trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.threads=1", "data.max_length=60"]
    words += ["task.num_beams=2", "task.max_extra_length=2", "progress=off"]
    return train(library, tmp_path_factory.mktemp("translator"), *words)


class Frame(HTMLParser):
    """What an iframe is given."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.attributes = {}
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        assert tag == "iframe"
        self.attributes = dict(attrs)


def page_data(html: str) -> dict:
    start = html.index('id="data">') + len('id="data">')
    return json.loads(html[start : html.index("</script>", start)])


def test_a_run_has_its_model_configuration_and_figures(writer):
    run = lab.load_run(writer)
    assert not run.model.training
    assert run.config["model"]["d_model"] == 16
    assert run.metrics == {k: v for k, v in read_json(writer / "status.json")["final"].items() if v is not None}
    assert run.methods == ["generate", "attention"]
    parameters = read_json(writer / "run.json")["parameters"]["total"]
    assert f"GPT of {parameters:,} parameters; " in repr(run)
    kept = torch.load(writer / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(run.model.embedding.weight, kept["model.embedding.weight"])


def test_it_writes_what_the_command_writes(attnlab, writer):
    run = lab.load_run(str(writer), checkpoint="best")
    said = attnlab(
        "generate", str(writer), "--checkpoint", "best", "--prompt", "the", "--max-new-tokens", "8", "--seed", "3"
    )
    assert run.generate("the", max_new_tokens=8, seed=3) == said.out.rstrip("\n")
    assert run.generate("the", 5, temperature=0) == run.generate("the", 5, temperature=0, seed=7)


def test_it_translates_what_the_command_translates(attnlab, translator, here):
    lines = ["the lazy dog", "", "a fox"]
    (here / "lines.txt").write_text("".join(f"{line}\n" for line in lines))
    run = lab.load_run(translator)
    for words, settings in (([], {}), (["--num-beams", "1"], {"num_beams": 1})):
        said = attnlab("translate", str(translator), "--input", "lines.txt", *words)
        assert run.translate(lines, **settings) == said.out.removesuffix("\n").split("\n")
    assert run.methods == ["translate", "attention"]
    with pytest.warns(UserWarning, match=r"1 of 2 lines cut at 60 tokens \(data.max_length\): 2"):
        run.translate(["a", "dog " * 30], num_beams=1)


def test_attention_is_shown_as_the_page_in_a_frame(writer):
    run = lab.load_run(writer)
    seen = run.attention("the fox")
    html = Frame(seen._repr_html_()).attributes
    assert html["sandbox"] == "allow-scripts"
    assert html["srcdoc"].startswith("<!doctype html>")
    (example,) = page_data(html["srcdoc"])["examples"]
    assert example["title"] == "the fox"
    assert example["kinds"][0]["queries"][:3] == ["t", "h", "e"]
    assert seen.heads.select("kind", "layer", "head").rows()[:2] == [("self", 0, 0), ("self", 0, 1)]
    with torch.inference_mode():
        tokens = torch.from_numpy(run.tokenizer.encode("the fox")).long()[None]
        (told,) = layer_maps(run.model, lambda: run.model(tokens))
    first = seen.heads.filter(kind="self", layer=0, head=1)["first"][0]
    # To the first token, of all queries that come after it.
    assert first == pytest.approx(told.weights_HTS[1, 1:, 0].mean().item(), abs=1e-5)


def test_a_head_is_drawn_for_a_paper(writer, tmp_path):
    seen = lab.load_run(writer).attention("a lazy dog")
    figure = seen.figure("0.1")
    assert figure.axes[0].get_title().startswith("self, layer 0, head 1")
    assert figure._repr_png_().startswith(b"\x89PNG")
    figure.savefig(tmp_path / "head.png")
    with Image.open(tmp_path / "head.png") as image:
        assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)
    assert repr(seen).startswith("Attention of ")
    assert repr(seen).endswith("(self, rollout; 2 heads) in 'a lazy dog'")
    with pytest.raises(UsageError, match=r"9\.9: there is no such head; accepted are LAYER\.HEAD"):
        seen.figure("9.9")


def test_a_translator_s_heads_see_a_given_target(translator):
    seen = lab.load_run(translator).attention("a fox", "fox a")
    (example,) = page_data(Frame(seen._repr_html_()).attributes["srcdoc"])["examples"]
    assert {"encoder self", "decoder self", "cross"} <= {kind["name"] for kind in example["kinds"]}
    assert "cross" in seen.heads["kind"].to_list()


@pytest.mark.parametrize(
    ("of", "ask", "said"),
    [
        ("writer", lambda run: run.translate(["a"]), r"a run of CausalLanguageModelling \(GPT\) has no translate, which takes task=translation; it has generate and attention"),
        ("translator", lambda run: run.generate("a"), r"a run of Translation \(EncoderDecoder\) has no generate, which takes a language model; it has translate and attention"),
        ("translator", lambda run: run.translate("a fox"), r"texts must be a list of texts, got the text 'a fox'; write \[TEXT\]"),
        ("writer", lambda run: run.generate(""), "prompt is empty; give at least one character to go on from"),
        ("writer", lambda run: run.attention("a", "b"), "GPT reads one text, got a target as well"),
        ("writer", lambda run: run.attention("Ü"), "'Ü'"),
        ("writer", lambda run: lab.load_run(run.path.parent), "there is no run"),
        ("writer", lambda run: lab.load_run(run.path, "first"), "checkpoint must be one of last, best, got 'first'"),
    ],
)  # fmt: skip
def test_what_a_run_cannot_do_is_said_with_what_it_can(of, ask, said, request):
    run = lab.load_run(request.getfixturevalue(of))
    with pytest.raises(UsageError, match=said) as raised:
        ask(run)
    assert "\n" not in str(raised.value)


def test_a_run_of_images_has_no_method_of_texts(imported):
    run = lab.load_run(imported("vit"))
    assert run.methods == []
    with pytest.raises(UsageError, match=r"has no attention, .*; it has none of generate, translate and attention"):
        run.attention("a")
    assert run.metrics == {}
    assert repr(run).endswith("not finished)")


@pytest.mark.slow
def test_the_frame_can_be_looked_around_in(writer, tmp_path):
    from tests.browser import chromium

    seen = lab.load_run(writer).attention("a lazy dog")
    (tmp_path / "cell.html").write_text(f"<!doctype html><title>cell</title>{seen._repr_html_()}")
    with chromium() as browser, browser.open((tmp_path / "cell.html").as_uri()) as opened:
        frame = opened.page.frame_locator("iframe")
        frame.locator("#overview canvas").first.wait_for()
        assert frame.locator("#queries li").count() == len("a lazy dog")
        frame.locator("#heads button").nth(1).click()
        assert frame.locator("#title").inner_text().startswith("self, layer 0, head 1")
        opened.fresh()
