"""SpecialTokens of a vocabulary: those in front of attnlab's own tokenizers, those that a published one brings, and rows filled with real tokens."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.huggingface import KINDS, save
from torch.nn import functional as F

from attnlab.data import (
    TSV,
    Byte,
    ClassificationData,
    DataError,
    MaskedTextData,
    Masking,
    ParallelText,
    SpanExtractionData,
    SQuADFiles,
    TextFiles,
    TranslationData,
    read_tokenizer,
)
from attnlab.data.special_tokens import add_special_tokens
from attnlab.data.vocabulary import Vocabulary, placeholder_vocabulary
from attnlab.models import T5
from attnlab.tasks import Translation


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return {kind: read_tokenizer(str(save(kind, tmp_path_factory.mktemp(kind)))) for kind in KINDS}


def test_the_marks_in_front_have_the_same_numbers_in_every_vocabulary():
    vocabulary = Vocabulary(Byte(), 3)
    names = ("pad", "start", "end", "mask", "separator", "target_start", "first_text", "size")
    assert [getattr(vocabulary, name) for name in names] == [0, 1, 2, 3, 4, 1, 8, 264]
    assert vocabulary.sentinels.tolist() == [5, 6, 7]
    assert vocabulary.special_tokens.suppressed == (0, 1, 3, 4)
    assert vocabulary.text_tokens.tolist() == list(range(8, 264))
    assert vocabulary.encode_text("a").tolist() == [8 + 0x20, 8 + 0x61]
    assert vocabulary.decode([1, *vocabulary.encode("fox"), 4, 2, *vocabulary.encode("no")]) == "fox"


def test_marks_are_put_around_texts_of_any_number_of_rows():
    rows = np.arange(6).reshape(2, 3)
    assert add_special_tokens(((7,), (8, 8), (9,)), rows, rows[:, :1]).tolist() == [
        [7, 0, 1, 2, 8, 8, 0, 9],
        [7, 3, 4, 5, 8, 8, 3, 9],
    ]
    assert add_special_tokens(((), ()), rows[0]).tolist() == [0, 1, 2]


def test_a_rehearsal_has_the_marks_that_are_known_beforehand(tokenizers):
    assert placeholder_vocabulary(tokenizers["t5"]).size == 192
    assert placeholder_vocabulary(Byte()).size == placeholder_vocabulary(None).size == 261


def test_padding_is_told_from_the_end_by_the_length_alone(tokenizers, prose, tmp_path):
    """GPT-2's padding is its end: the ends of targets count, what rows are filled with does not."""
    lines = [line.strip() for line in prose.split("\n") if line.strip()][:60]
    (tmp_path / "pairs.tsv").write_text("".join(f"{line}\t{line[: 5 + 3 * i % 40]}\n" for i, line in enumerate(lines)))
    data = TranslationData(
        ParallelText, tokenizers["gpt2"], "en-de", batch_tokens=900, path=str(tmp_path / "pairs.tsv")
    )
    widths = data.dims()
    torch.manual_seed(0)
    model = T5(
        widths["vocabulary_size"], widths["source_vocabulary_size"], d_model=8, num_heads=2, num_layers=1, dropout=0.0
    )
    task = Translation(model, widths["special_tokens"], label_smoothing=0.0)
    expected = found = 0.0
    for batch in data.evaluation_loader("train"):
        assert (~batch["is_target"]).any()
        assert torch.equal((batch["target_out"] == 0).sum(dim=1), (~batch["is_target"]).sum(dim=1) + 1)
        found += task.loss_sums(batch).loss.item()
        logits = model(batch["source"], batch["target_in"], batch["is_source"])
        for row, targets, real in zip(logits, batch["target_out"], batch["is_target"], strict=True):
            length = int(real.sum())
            assert targets[length - 1] == 0
            expected += F.cross_entropy(row[:length], targets[:length], reduction="sum").item()
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_target_needs_an_end(tokenizers, tmp_path):
    (tmp_path / "pairs.tsv").write_text("a\tb\n")
    endless = replace(tokenizers["gpt2"], special={})
    with pytest.raises(
        DataError, match=r"no end token \(none of those that tasks need\), and here every target has to end in one"
    ):
        TranslationData(ParallelText, endless, "en-de", path=str(tmp_path / "pairs.tsv"))


def test_random_replacements_are_text(tokenizers, prose_file):
    tokenizer = tokenizers["bert"]
    masking = Masking(0.9, mask_share=0.0, random_share=1.0)
    data = MaskedTextData(TextFiles, tokenizer, masking, context_length=20, batch_size=32, path=str(prose_file))
    batches = list(data.evaluation_loader("validation"))
    seen = torch.cat([batch["tokens"][batch["chosen"]] for batch in batches]).unique().tolist()
    assert set(seen) <= set(tokenizer.text_tokens.tolist())
    assert len(seen) > 0.8 * len(tokenizer.text_tokens)


@pytest.mark.parametrize("kind", ["bert", "bart"])
def test_pairs_of_segments_stand_in_the_tokenizers_own_marks(tokenizers, prose_file, kind):
    tokenizer = tokenizers[kind]
    data = MaskedTextData(
        TextFiles, tokenizer, Masking(), next_sentence=True, context_length=20, batch_size=4, path=str(prose_file)
    )
    batch = next(iter(data.train_dataloader()))
    before, between, after = tokenizer.special_tokens.pair
    for row, segments in zip(batch["targets"].tolist(), batch["segments"].tolist(), strict=True):
        assert tuple(row[:1]) == before
        assert tuple(row[11 : 11 + len(between)]) == between
        assert tuple(row[-1:]) == after
        assert segments == [0] * (11 + len(between)) + [1] * 11


def test_a_question_and_its_text_in_the_tokenizers_own_marks(tokenizers, tmp_path):
    def paragraph(number):
        answers = [{"text": "lazy dog", "answer_start": 8}]
        asked = {"id": str(number), "question": "Who?", "answers": answers}
        return {"context": f"Oh, the lazy dog! {number}", "qas": [asked]}

    file = tmp_path / "qa.json"
    file.write_text(json.dumps({"data": [{"paragraphs": [paragraph(number)]} for number in range(9)]}))
    for kind in ("bert", "bart", "t5"):
        tokenizer = tokenizers[kind]
        data = SpanExtractionData(SQuADFiles, tokenizer, path=str(file), max_length=60, max_question=20)
        part = data.split("train")
        batch = data.collate(part, np.arange(2))
        for row in range(2):
            begin, end = batch["answers"][row].tolist()
            assert part.words(row, begin, end) == "lazy dog"
            tokens = batch["tokens"][row][batch["is_token"][row]]
            context = part.texts[row].context
            assert (
                tokens.tolist()
                == add_special_tokens(
                    tokenizer.special_tokens.pair, tokenizer.encode("Who?"), tokenizer.encode(context)
                ).tolist()
            )
            assert batch["tokens"][row][batch["is_text"][row]].tolist() == tokenizer.encode(context).tolist()
    with pytest.raises(DataError, match="no separator token"):
        SpanExtractionData(SQuADFiles, tokenizers["gpt2"], path=str(file))
    with pytest.raises(DataError, match=r"and 4 special tokens; accepted: data.max_length from 45 on"):
        SpanExtractionData(SQuADFiles, tokenizers["bart"], path=str(file), max_length=44)


def test_texts_are_encoded_as_the_models_own_library_does_it(tokenizers, tmp_path):
    """Without the blank that attnlab's own tokenizers are trained with."""
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.tsv").write_text("text\tclass\nfox and dog\ta\nlazy\tb\n")
    for kind in ("bert", "gpt2", "bart", "t5"):
        tokenizer = tokenizers[kind]
        data = ClassificationData(TSV, tokenizer, path=str(tmp_path))
        assert (
            data.split("train").rows[0].tolist()
            == add_special_tokens(tokenizer.special_tokens.text, tokenizer.encode("fox and dog")).tolist()
        )
