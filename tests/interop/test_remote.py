"""Models that transformers loads with trust_remote_code=True: the run's own logits and generation, for every family and position."""

import importlib
import json
from pathlib import Path

import pytest
import torch
import transformers
import yaml

from attnlab.generation import Sampler, decode, generate
from attnlab.generation.beam import BeamSearch
from attnlab.interop import CannotConvert, remote
from attnlab.interop.remote_code import LINES, described, kind_of, write_folder
from attnlab.models.heads import SequenceClassifier, SpanFinder, TokenClassifier
from attnlab.parts import Part

CAUSAL = ("xpos", "cope")
POSITIONS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(Path("conf/position").glob("*.yaml"))}
FEW = ("alibi", "learned")
OF_IMAGES = {"axial_rotary", "learned_2d", "sinusoidal_2d"}
SIZES = {"d_model": 16, "num_heads": 2, "num_layers": 1}
OF_TEXT, OF_PAIRS = {"vocabulary_size": 31}, {"vocabulary_size": 31, "source_vocabulary_size": 31}
PIXELS = {"image_size": [8, 12], "channels": 1, "patch_size": 4}
# {family: (its fields, what data told it)}
STACKS = {
    "GPT": ({**SIZES, "max_length": 40}, OF_TEXT),
    "Bert": ({**SIZES, "max_length": 40, "num_segments": 2}, OF_TEXT),
    "EncoderDecoder": ({**SIZES, "max_length": 40}, OF_PAIRS),
    "T5": ({**SIZES, "max_length": 40}, OF_PAIRS),
    "T5LanguageModel": ({**SIZES, "max_length": 40}, OF_PAIRS),
    "ViT": ({**SIZES, "pooling": "mean"}, {**PIXELS, "num_classes": 3}),
    "CLIP": (SIZES, {**PIXELS, **OF_TEXT, "max_length": 40}),
    "Whisper": ({**SIZES, "max_length": 40}, {**OF_TEXT, "num_mels": 5, "num_frames": 12}),
}
BASELINES = {
    "RecurrentLanguageModel": ({"d_model": 16}, OF_TEXT),
    "RecurrentSeq2Seq": ({"d_model": 16}, OF_PAIRS),
    "ConvolutionalLanguageModel": ({"d_model": 16}, OF_TEXT),
    "ConvolutionalSeq2Seq": ({"d_model": 16, "max_length": 40}, OF_PAIRS),
    "RecurrentEncoder": ({"d_model": 16}, OF_TEXT),
    "ConvolutionalEncoder": ({"d_model": 16, "max_length": 40}, OF_TEXT),
}
HEADS = {
    "sequence": lambda encoder: SequenceClassifier(encoder, 3, "mean"),
    "token": lambda encoder: TokenClassifier(encoder, 5),
    "span": SpanFinder,
}


@pytest.fixture(scope="module", autouse=True)
def quiet():
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture
def there(tmp_path):
    """Writes a model that was built without training, and loads it as a stranger would; gives both."""

    def load(family, head=None, position=None, **fields):
        own, widths = (STACKS | BASELINES)[family]
        node = {"_target_": f"attnlab.models.{family}", "_partial_": True, **own, **fields}
        node |= {"position": POSITIONS[position]} if position else {}
        torch.manual_seed(0)
        here = remote.build({"model": node, "widths": widths})
        with torch.no_grad():  # biases and gains are no zeros and ones, as after a training
            for parameter in here.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
        here = (HEADS[head](here) if head else here).eval()
        folder = tmp_path / f"{family}-{head}-{position}"
        numbers = {"pad_token_id": 0, "decoder_start_token_id": 1, "eos_token_id": None, "bos_token_id": None}
        write_folder(folder, here, described(here, node, widths), numbers)
        auto = getattr(transformers, f"AutoModelFor{kind_of(here)[0]}")
        found, told = auto.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
        assert not any(told.values())
        return here, found.eval(), folder

    return load


def positions_of(family):
    """Every one that the family has."""
    refused = {*(OF_IMAGES if family != "ViT" else ()), *(CAUSAL if family != "GPT" else ())}
    return [name for name in POSITIONS if name not in refused] if family in STACKS else [None]


def cases(*families):
    """A family with two positions, and with all the others where there is time."""
    for family in families:
        yield pytest.param(family, [name for name in positions_of(family) if name in (None, *FEW)], id=family)
        if others := [name for name in positions_of(family) if name not in (None, *FEW)]:
            yield pytest.param(family, others, id=f"{family}-others", marks=pytest.mark.slow)


def rows(*lengths):
    """A batch of texts of these lengths, padded on the left, its mask, and each text by itself."""
    texts = [torch.randint(2, 31, (length,), generator=torch.Generator().manual_seed(length)) for length in lengths]
    padded = torch.stack([torch.cat([torch.zeros(max(lengths) - len(text), dtype=torch.long), text]) for text in texts])
    mask = torch.tensor([[0] * (max(lengths) - length) + [1] * length for length in lengths])
    return padded, mask, texts


def assert_near(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "positions"), cases("GPT", "RecurrentLanguageModel", "ConvolutionalLanguageModel"))
@torch.no_grad()
def test_language_models_go_on_from_texts_as_they_do_here(family, positions, there):
    """A row of a padded batch is what the text is by itself; each new token is the likeliest after all before it."""
    tokens_BT, mask_BT, texts = rows(4, 7)
    for position in positions:
        here, found, _ = there(family, position=position)
        logits_BTV = found(tokens_BT, attention_mask=mask_BT).logits
        written = found.generate(tokens_BT, attention_mask=mask_BT, max_new_tokens=6, do_sample=False)[:, 7:]
        assert written.tolist() == generate(here, [text.tolist() for text in texts], 6, Sampler(0))
        for row, text in enumerate(texts):
            assert_near(logits_BTV[row, -len(text) :], here(text[None])[0])
            for token in written[row]:
                assert token == here(text[None])[0, -1].argmax()
                text = torch.cat([text, token[None]])
        if position in (None, "alibi"):
            how = {"attention_mask": mask_BT, "max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2}
            cached, anew = (found.generate(tokens_BT, **how, use_cache=kept) for kept in (True, False))
            assert cached.equal(anew)


@pytest.mark.parametrize(
    "mixer", ["LinearAttention", "Retention", "GatedLinear", "DeltaNet", "GatedDeltaNet", "LSTM", "GRU"]
)
@torch.no_grad()
def test_models_with_a_state_go_on_from_texts_as_they_do_here(mixer, there):
    """In every second layer, beside attention with rotary positions; beams take the states along."""
    tokens_BT, mask_BT, texts = rows(4, 7)
    own = {"_target_": f"attnlab.layers.{mixer}", "_partial_": True}
    layers = {"own": {"attention": own, "position": POSITIONS["none"]}, "full": {}}
    here, found, _ = there("GPT", position="rotary", num_layers=2, pattern=["own", "full"], layers=layers)
    logits_BTV = found(tokens_BT, attention_mask=mask_BT).logits
    for row, text in enumerate(texts):
        assert_near(logits_BTV[row, -len(text) :], here(text[None])[0])
    written = found.generate(tokens_BT, attention_mask=mask_BT, max_new_tokens=6, do_sample=False)[:, 7:]
    assert written.tolist() == generate(here, [text.tolist() for text in texts], 6, Sampler(0))
    how = {"attention_mask": mask_BT, "max_new_tokens": 6, "num_beams": 3, "num_return_sequences": 2}
    cached, anew = (found.generate(tokens_BT, **how, use_cache=kept) for kept in (True, False))
    assert cached.equal(anew)


@pytest.mark.parametrize(
    ("family", "positions"),
    cases("EncoderDecoder", "T5", "T5LanguageModel", "RecurrentSeq2Seq", "ConvolutionalSeq2Seq"),
)
@torch.no_grad()
def test_models_of_pairs_write_targets_as_they_do_here(family, positions, there):
    padded_BS, mask_BS, texts = rows(4, 7)
    source_BS, mask_BS = padded_BS.clone(), mask_BS.flip(1)
    source_BS[0] = padded_BS[0].roll(4)  # padded on the right, as the run's own batches are
    target_BT, total = torch.randint(2, 31, (2, 5), generator=torch.Generator().manual_seed(1)), 0
    for position in positions:
        here, found, _ = there(family, position=position)
        logits_BTV = found(source_BS, attention_mask=mask_BS, decoder_input_ids=target_BT).logits
        for text, target_T, logits_TV in zip(texts, target_BT, logits_BTV, strict=True):
            assert_near(logits_TV, here(text[None], target_T[None])[0])
        how = {"attention_mask": mask_BS, "max_new_tokens": 6, "do_sample": False}
        # With beams, sources are encoded once; anew, once a row.
        for beams, best in ((1, 1), (3, 2)) if position in (None, "alibi") else ((1, 1),):
            more = {"num_beams": beams, "num_return_sequences": best}
            cached, anew = (found.generate(source_BS, **how, **more, use_cache=kept) for kept in (True, False))
            assert cached.equal(anew)
        for text in texts:
            own = decode(here, text[None], None, BeamSearch(1, max_extra_length=0), 1, 30, never=(0, 1))[0][0].tokens
            limits = {"eos_token_id": 30, "suppress_tokens": [0, 1], "max_new_tokens": len(text)}
            written = found.generate(text[None], do_sample=False, **limits)[0, 1:].tolist()
            assert written[: len(own)] == own
            total += len(own)
    assert total > 8 * len(positions)


@torch.no_grad()
def test_hidden_tokens_are_restored_as_here(there):
    tokens_BT, mask_BT, texts = rows(4, 7)
    for position in positions_of("Bert"):
        here, found, _ = there("Bert", position=position)
        logits_BTV = found(tokens_BT, attention_mask=mask_BT, token_type_ids=torch.ones_like(tokens_BT)).logits
        for row, text in enumerate(texts):
            assert_near(logits_BTV[row, -len(text) :], here(text[None], None, torch.ones_like(text[None]))[0])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("family", "position"), [("Bert", "alibi"), ("RecurrentEncoder", None), ("ConvolutionalEncoder", None)]
)
@torch.no_grad()
def test_outputs_of_tasks_on_an_encoder_say_the_same(head, family, position, there):
    """On texts that are padded on the right, as the run's own batches are."""
    padded_BT, mask_BT, texts = rows(4, 7)
    tokens_BT, mask_BT = padded_BT.clone(), mask_BT.flip(1)
    tokens_BT[0] = padded_BT[0].roll(4)
    here, found, _ = there(family, head, position)
    written = found(tokens_BT, attention_mask=mask_BT)
    for row, text in enumerate(texts):
        if head == "sequence":
            assert_near(written.logits[row], here(text[None])[0])
        elif head == "token":
            assert_near(written.logits[row, : len(text)], here(text[None], torch.arange(len(text))))
        else:
            start_1T, end_1T = here(text[None])
            assert_near(written.start_logits[row, : len(text)], start_1T[0])
            assert_near(written.end_logits[row, : len(text)], end_1T[0])


@torch.no_grad()
def test_images_are_told_apart_as_here_in_colours_too(there):
    grey_BYX = torch.randn(2, 8, 12, generator=torch.Generator().manual_seed(0))
    colours_B3YX = torch.stack([grey_BYX, grey_BYX + 1, grey_BYX - 2], dim=1)
    mixed_BYX = 0.299 * colours_B3YX[:, 0] + 0.587 * colours_B3YX[:, 1] + 0.114 * colours_B3YX[:, 2]
    for position in positions_of("ViT"):
        here, found, _ = there("ViT", position=position)
        assert_near(found(grey_BYX[:, None]).logits, here(grey_BYX[:, None]))
        assert_near(found(colours_B3YX).logits, here(mixed_BYX[:, None]))


@torch.no_grad()
def test_images_and_texts_are_compared_as_here(there):
    images, texts = torch.randn(2, 1, 8, 12), torch.tensor([[3, 4, 5, 0], [6, 7, 8, 9]])
    for position in positions_of("CLIP"):
        here, found, _ = there("CLIP", position=position)
        written = found(texts, images, attention_mask=(texts != 0).long())
        assert_near(written.logits_per_image, torch.cat([here(images, texts[:1, :3]), here(images, texts[1:])], dim=1))
        assert written.logits_per_text.equal(written.logits_per_image.t())


@torch.no_grad()
def test_speech_is_written_down_as_here(there):
    features = torch.randn(2, 5, 12)
    for position in positions_of("Whisper"):
        here, found, _ = there("Whisper", position=position)
        target = torch.tensor([[1, 3, 4], [1, 5, 6]])
        assert_near(found(input_features=features, decoder_input_ids=target).logits, here(features, target))
        written = found.generate(input_features=features, max_new_tokens=5, do_sample=False)
        target = target[:, :1]
        for _ in range(5):
            target = torch.cat([target, here(features, target)[:, -1:].argmax(dim=-1)], dim=1)
        assert written.equal(target)


def test_positions_are_seen_in_the_grid_that_was_trained_on(there, tmp_path):
    """A ViT that was trained at another size has its rotations in that grid, which no tensor of weights says."""
    here, _, _ = there("ViT", position="axial_rotary")
    larger = here.at_size([16, 24])
    node = {"_target_": "attnlab.models.ViT", "_partial_": True, **SIZES, "position": POSITIONS["axial_rotary"]}
    widths = {**PIXELS, "image_size": [16, 24], "num_classes": 3}
    write_folder(tmp_path / "larger", larger, described(larger, node, widths), {})
    found = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "larger", trust_remote_code=True)
    images = torch.randn(1, 1, 16, 24)
    assert_near(found.eval()(images).logits, larger(images))
    assert json.loads((tmp_path / "larger/config.json").read_text())["attnlab"]["states"] == {"": [2, 3]}


def test_a_folder_holds_plain_data_and_the_same_few_lines(there):
    _, _, folder = there("GPT", position="alibi")
    _, _, other = there("ViT")
    names = {"config.json", "model.safetensors", "modeling_attnlab.py"}
    assert {path.name for path in folder.iterdir()} == names
    code = (folder / "modeling_attnlab.py").read_text()
    assert code == (other / "modeling_attnlab.py").read_text()
    assert code.count("import") == LINES.count("import")
    config = json.loads((folder / "config.json").read_text())["attnlab"]
    assert config["model"]["position"] == {"_target_": "attnlab.layers.ALiBi", "_partial_": True}


def test_what_was_loaded_can_be_saved_and_loaded_again(there, tmp_path):
    """With layers that encoder and decoder share, and with a state that is no weight."""
    for family, given, fields in (
        ("T5", {"input_ids": torch.tensor([[3, 4]]), "decoder_input_ids": torch.tensor([[1]])}, {"share_layers": True}),
        ("ViT", {"pixel_values": torch.randn(1, 1, 8, 12)}, {}),
    ):
        here, found, _ = there(family, **fields)
        found.save_pretrained(tmp_path / "again")
        auto = getattr(transformers, f"AutoModelFor{kind_of(here)[0]}")
        again, told = auto.from_pretrained(tmp_path / "again", trust_remote_code=True, output_loading_info=True)
        assert not any(told.values())
        assert again.num_parameters() == sum(parameter.numel() for parameter in here.parameters())
        assert again.eval()(**given).logits.equal(found(**given).logits)


def test_nothing_but_parts_of_models_is_built(tmp_path, monkeypatch):
    (tmp_path / "my_parts.py").write_text(
        "from attnlab.layers import ALiBi\n\nclass Mine(ALiBi):\n    pass\n\ndef gone():\n    raise SystemExit\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    node = {"_target_": "attnlab.models.GPT", **STACKS["GPT"][0], "_partial_": True}
    model = remote.build(
        {"model": {**node, "position": {"_target_": "my_parts.Mine", "_partial_": True}}, "widths": OF_TEXT}
    )
    assert isinstance(model.stack.position, importlib.import_module("my_parts").Mine)
    assert issubclass(type(model.stack.position), Part)
    for target, told in (
        ("os.system", "os.system is no part of a model"),
        ("my_parts.gone", "my_parts.gone is no part of a model"),
        ("not_here.Mine", "not_here.Mine: this model has a part that is not installed here"),
    ):
        with pytest.raises(ValueError, match=told):
            remote.build({"model": {**node, "position": {"_target_": target, "_partial_": True}}, "widths": OF_TEXT})


def test_what_cannot_be_served_is_said(there):
    _, found, _ = there("GPT")
    with pytest.raises(ValueError, match=r"cache must be a DecodingCache, which generate.. makes, got DynamicCache"):
        found(torch.tensor([[3]]), cache=transformers.DynamicCache())
    with pytest.raises(NotImplementedError, match="takes back no tokens"):
        remote.DecodingCache(4).crop(1)
    encoder = remote.build(
        {"model": {"_target_": "attnlab.models.RecurrentEncoder", "_partial_": True}, "widths": OF_TEXT}
    )
    with pytest.raises(CannotConvert, match="RecurrentEncoder by itself is no model that transformers has a class for"):
        kind_of(encoder)
