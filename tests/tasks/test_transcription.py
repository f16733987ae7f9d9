"""Transcription: its loss against torch's, its error rates against the edit distance, greedy decoding against the whole
forward pass, and that a tiny model learns to hear."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.speech_files import write_folder
from torch import nn

from attnlab.data import Character, SpeechData, SpeechFiles
from attnlab.data.module import IGNORED
from attnlab.data.special_tokens import END, START
from attnlab.models import Whisper
from attnlab.parts import build_part
from attnlab.tasks import Transcription
from attnlab.tasks.transcription import error_rates, normalised

WORDS = st.lists(st.sampled_from(["on", "off", "light", "the", "Don't"]), max_size=6)


@pytest.fixture
def make(tmp_path):
    def build(counts=None, **fields):
        folder = write_folder(tmp_path / "speech", counts or {"train": 6, "validation": 3, "test": 4})
        given = {
            "seconds": 0.6,
            "max_length": 24,
            "batch_size": 8,
            "path": str(folder),
            "cache": str(tmp_path / "cache"),
        }
        module = SpeechData(SpeechFiles, Character(), **given | fields)
        module.setup()
        return module

    return build


def task_of(module, **fields):
    torch.manual_seed(0)
    model = build_part(partial(Whisper, d_model=32, num_heads=2, num_layers=1), **module.dims())
    return build_part(partial(Transcription, model=model, **fields), **module.dims())


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_loss_is_torchs_with_and_without_smoothing(make, smoothing):
    module = make()
    task = task_of(module, label_smoothing=smoothing)
    (batch,) = module.evaluation_loader("test")
    loss, tokens, beside = task.loss_sums(batch)
    logits = task.model(batch["features"], batch["tokens_in"]).flatten(0, 1)
    expected = partial(
        nn.functional.cross_entropy, logits, batch["targets"].flatten(), ignore_index=IGNORED, reduction="sum"
    )
    assert loss.item() == pytest.approx(expected(label_smoothing=smoothing).item(), rel=1e-5)
    assert tokens == module.split("test").terms.sum()
    assert {name: value.item() for name, value in beside.items()} == (
        {"loss": pytest.approx(expected().item(), rel=1e-5)} if smoothing else {}
    )


def distance(heard, said):
    """Levenshtein's, by the recurrence."""
    row = list(range(len(said) + 1))
    for i, one in enumerate(heard, start=1):
        above, row = row, [i]
        for j, other in enumerate(said, start=1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (one != other)))
    return row[-1]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_error_rates_are_edit_distances_over_the_references(pairs):
    heard, said = ([" ".join(words) for words in side] for side in zip(*pairs, strict=True))
    words, characters = sum(len(s.split()) for s in said), sum(map(len, said))
    if not words:
        assert error_rates(heard, said) == {}
        return
    errors = sum(distance(h.lower().split(), s.lower().split()) for h, s in zip(heard, said, strict=True))
    letters = sum(distance(h.lower(), s.lower()) for h, s in zip(heard, said, strict=True))
    assert error_rates(heard, said) == {
        "wer": pytest.approx(errors / words),
        "cer": pytest.approx(letters / characters),
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Turn it ON, please!", "turn it on please"),
        ("  don't\tstop \u2014 it\u2019s 7:30 ", "don't stop it's 7 30"),
        ("stra\u00dfe_caf\u00e9", "strasse caf\u00e9"),
        ("...", ""),
    ],
)
def test_a_text_is_normalised(text, expected):
    assert normalised(text) == expected


def test_greedy_decoding_takes_the_best_token_of_the_whole_forward_pass(make):
    module = make()
    task = task_of(module).eval()
    (batch,) = module.evaluation_loader("validation")
    found = task.transcribe_features(batch["features"])
    for row, tokens in enumerate(found):
        prefix, features = [START], batch["features"][row : row + 1]
        while len(prefix) < 24:
            logits = task.model(features, torch.tensor([prefix]))[0, -1]
            logits[list(task.special_tokens.suppressed)] = -torch.inf
            prefix.append(int(logits.argmax()))
            if prefix[-1] == END:
                break
        expected = prefix[1:-1] if prefix[-1] == END else prefix[1:]
        assert tokens == expected


def test_a_split_is_scored_and_its_texts_are_kept(make, monkeypatch):
    module = make()
    task = task_of(module)
    said = module.references("test")
    heard = ["one one", *said[1:]]
    encoded = [module.vocabulary.encode_text(text).tolist() for text in heard]
    ids = iter([batch["ids"].tolist() for batch in module.evaluation_loader("test")])
    monkeypatch.setattr(task, "transcribe_features", lambda features: [encoded[row] for row in next(ids)])
    figures = task.evaluate(module, "test")
    assert figures["test/wer"] == pytest.approx(error_rates(heard, said)["wer"])
    assert set(figures) == {"test/loss", "test/loss_smoothed", "test/wer", "test/cer"}
    assert task.outputs["test.transcripts.txt"] == "".join(f"{text}\n" for text in heard)
    assert task.samples(module).rows[0][:2] == (said[0], "one one")
    assert "lower case" in task.notes["test/wer"]


def test_transcripts_without_a_word_have_no_error_rate(make):
    module = make()
    task = task_of(module)
    module.split("test").recordings.transcripts[:] = ["..."] * 4
    assert set(task.figures(module, "test")) == {"loss", "loss_smoothed"}
    assert task.unavailable == dict.fromkeys(("test/wer", "test/cer"), "no reference has a word")


@pytest.mark.slow
def test_a_tiny_model_learns_to_hear(make):
    module = make({"train": 160, "validation": 8, "test": 24})
    torch.manual_seed(0)
    sizes = {"d_model": 48, "num_heads": 4, "num_layers": 1}
    task = build_part(
        partial(Transcription, model=build_part(partial(Whisper, **sizes), **module.dims())), **module.dims()
    )
    optimizer, loader = torch.optim.AdamW(task.parameters(), 3e-3), iter(module.train_dataloader())
    for _ in range(130):
        loss, tokens, _ = task.loss_sums(next(loader))
        optimizer.zero_grad()
        (loss / tokens).backward()
        optimizer.step()
    assert task.evaluate(module, "test")["test/wer"] < 0.3


def test_without_decoding_the_loss_alone_is_reported(make, monkeypatch):
    module = make()
    task = task_of(module, decode=False)
    expected = {f"test/{name}": value for name, value in task.score(module.evaluation_loader("test")).items()}
    monkeypatch.setattr(task, "transcripts", lambda loader: pytest.fail("it decodes"))
    assert task.evaluate(module) == expected
    assert (task.samples(module), task.outputs, task.notes, task.unavailable) == (None, {}, {}, {})
    config = {"task": {"label_smoothing": 0.1, "decode": False}}
    assert {metric.name for metric in Transcription.metrics(config)} == {"loss", "loss_smoothed"}
