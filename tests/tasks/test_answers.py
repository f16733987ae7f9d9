"""Accuracy of answers, against answers that are known."""

import re

import pytest
import torch
from torch import nn

from attnlab.data import MQAR, Copy, ModularAddition, Parity, SyntheticData
from attnlab.data.synthetic import FIRST
from attnlab.models import GPT, EncoderDecoder
from attnlab.models.base import LanguageModel
from attnlab.tasks import Answers
from attnlab.tasks.answers import right


class Oracle(LanguageModel):
    """Gives the right token where a row's next one is known, which `lies` spoils; all logits are equal where `ties`."""

    def __init__(self, data, lies=(), ties=False):
        super().__init__()
        self.vocabulary_size, self.lies, self.ties = data.dims()["vocabulary_size"], lies, ties
        self.known = {}
        for length in (data.length, 2 * data.length, 4 * data.length):
            for number, row in enumerate(data.rows_of("test", length)):
                self.known[tuple((row.tokens_T[:-1] + FIRST).tolist())] = (number, row)
        self.weight = nn.Parameter(torch.zeros(()))

    def new_cache(self, capacity):
        raise NotImplementedError

    def forward(self, tokens_BT, is_token_BT=None, cache=None):
        logits_BTV = torch.zeros(*tokens_BT.shape, self.vocabulary_size)
        for place, tokens_T in enumerate(tokens_BT.tolist()):
            number, row = self.known[tuple(token for token in tokens_T if token)]
            following = torch.from_numpy(row.tokens_T[1:] + FIRST)
            if not self.ties:
                logits_BTV[place, torch.arange(len(following)), following] = -1.0 if number in self.lies else 1.0
        return logits_BTV


def figures(data, **oracle):
    return Answers(Oracle(data, **oracle)).figures(data, "test")


def test_a_model_that_knows_is_right_and_one_that_lies_is_wrong_in_as_many_rows():
    data = SyntheticData(Copy(vocabulary=5), length=4, shortest=2, test_rows=50, batch_size=8)
    found = figures(data)
    assert [found[f"accuracy@{k}x"] for k in (1, 2, 4)] == [1.0, 1.0, 1.0]
    assert found["success@1x"] == found["exact@4x"] == 1.0
    found = figures(data, lies=range(10))
    assert found["accuracy@1x"] == found["exact@1x"] == 0.8
    assert found["success@1x"] == 0.0


def test_ties_lose():
    data = SyntheticData(Parity(), length=5, test_rows=40)
    assert figures(data, ties=True)["accuracy@1x"] == 0.0
    logits = torch.tensor([[1.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
    assert right(logits, torch.tensor([0, 0, 0])).tolist() == [False, True, False]


def test_chance_is_that_of_the_most_frequent_answers():
    data = SyntheticData(MQAR(num_pairs=4, vocabulary=64), length=32)
    assert figures(data)["chance@1x"] == pytest.approx(1 / 32, abs=0.02)
    data = SyntheticData(Parity(), length=12)
    assert figures(data)["chance@1x"] == pytest.approx(0.5, abs=0.06)


def test_difficulties_and_lengths_that_there_are_not_say_why():
    data = SyntheticData(MQAR(num_pairs=4, vocabulary=64), length=32, test_rows=16)
    task = Answers(GPT(66, 64, d_model=16, num_layers=1), difficulties={"num_pairs": [2, 16], "vocabulary": [32]})
    task.model.longest = 63
    found = task.figures(data, "test")
    assert {name for name in found if name.startswith("exact@")} == {"exact@1x", "exact@2x", "exact@num_pairs=2"}
    assert task.unavailable["test/accuracy@4x"] == "the learned table ends at 63 positions"
    assert "at least 64 for 16 pairs" in task.unavailable["test/success@num_pairs=16"]
    assert "other symbols" in task.unavailable["test/chance@vocabulary=32"]
    task = Answers(GPT(62, 8, d_model=16, num_layers=1))
    task.figures(SyntheticData(ModularAddition(59), length=1, test_rows=8), "test")
    assert task.unavailable["test/accuracy@2x"] == "modularaddition has no lengths"


def test_an_encoder_decoder_reads_the_question():
    data = SyntheticData(Copy(vocabulary=5), length=3, test_rows=20, batch_size=8)
    model = EncoderDecoder(8, d_model=16, num_heads=2, num_layers=1, dropout=0.0)
    task, batch = Answers(model), next(iter(data.evaluation_loader("test")))
    sums = task.loss_sums(batch)
    assert sums.tokens == 8 * 3
    logits_BTV = model(batch["source"], batch["target_in"], batch["is_source"])
    expected = nn.functional.cross_entropy(logits_BTV.flatten(0, 1), batch["target_out"].flatten(), reduction="sum")
    torch.testing.assert_close(sums.loss, expected)
    with pytest.raises(ValueError, match=re.escape("answers of mqar stand within its rows, and EncoderDecoder reads")):
        Answers(model).check_split(SyntheticData(MQAR(), length=64), "train")
