"""Problems as batches."""

import numpy as np
import pytest
import torch

from attnlab.data import Copy, DataError, Induction, ModularAddition, Parity, SyntheticData
from attnlab.data.synthetic import FIRST, PAD, START, prompt_of


def test_a_batch_is_the_rows_one_token_apart_and_the_question_before_its_answers():
    data = SyntheticData(Copy(), length=5, shortest=2, batch_size=6)
    batch, drawn = next(iter(data.train_dataloader())), data.training_rows(range(6))
    for number, row in enumerate(drawn):
        size, first = len(row.tokens_T), int(row.is_answer_T.argmax())
        tokens = (row.tokens_T + FIRST).tolist()
        assert batch["tokens"][number, : size - 1].tolist() == tokens[:-1]
        assert batch["targets"][number, : size - 1].tolist() == tokens[1:]
        assert (batch["tokens"][number, size - 1 :] == PAD).all()
        assert batch["targets"][number][batch["is_answer"][number]].tolist() == tokens[first:]
        assert batch["source"][number][batch["is_source"][number]].tolist() == tokens[:first]
        assert batch["target_in"][number][batch["is_target"][number]].tolist() == [START, *tokens[first:-1]]
        assert batch["target_out"][number][batch["is_target"][number]].tolist() == tokens[first:]


def test_ranks_and_steps_take_their_rows_of_one_order_and_go_on_where_they_stopped():
    whole, half = SyntheticData(Parity(), length=9, batch_size=8), SyntheticData(Parity(), length=9, batch_size=4)
    loader = whole.train_dataloader()
    first, second = next(loader), next(loader)
    by_rank = []
    for rank in range(2):
        half.rank_and_world_size = lambda rank=rank: (rank, 2)
        by_rank.append(next(iter(half.train_dataloader()))["tokens"])
    assert torch.cat(by_rank).equal(first["tokens"])
    again = SyntheticData(Parity(), length=9, batch_size=8)
    again.load_state_dict({"rows_seen": 8})
    assert next(again.train_dataloader())["tokens"].equal(second["tokens"])


def test_what_is_asked_is_the_same_for_every_seed_and_no_training_row():
    asked = [SyntheticData(Induction(), length=24, seed=seed).rows_of("test", 24, count=50) for seed in (0, 1)]
    assert all(a.tokens_T.tolist() == b.tokens_T.tolist() for a, b in zip(*asked, strict=True))
    trained = SyntheticData(Induction(), length=24, seed=0).training_rows(range(500))
    assert not {prompt_of(row) for row in asked[0]} & {prompt_of(row) for row in trained}


def test_questions_that_were_trained_on_are_counted():
    data = SyntheticData(Parity(), length=3, batch_size=4)
    asked, trained = data.rows_of("test", 3, count=200), {prompt_of(row) for row in data.training_rows(range(10))}
    expected = np.mean([prompt_of(row) in trained for row in asked])
    assert 0 < expected < 1
    assert data.overlap(asked, answers=10) == pytest.approx(expected)
    assert data.overlap(asked, answers=0) == 0
    unseen = SyntheticData(ModularAddition(11), length=1)
    assert unseen.overlap(unseen.rows_of("test", 1), answers=5000) == 0


def test_every_answer_is_evaluated_once_over_all_ranks():
    data = SyntheticData(Copy(), length=3, batch_size=7, test_rows=20)
    seen = []
    for rank in range(3):
        data.rank_and_world_size = lambda rank=rank: (rank, 3)
        seen += [number for batch in data.evaluation_loader("test") for number in batch["ids"].tolist()]
    assert sorted(seen) == list(range(20))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"length": 3, "shortest": 4}, "data.shortest must be at most data.length=3, got 4"),
        ({"length": 5}, "data.length must be at least 8 for induction, got 5"),
    ],
)
def test_lengths_that_make_no_sense_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        SyntheticData(Induction(), **fields)


def test_an_epoch_of_a_problem_of_few_rows_has_each_pair_once_and_the_others_are_asked_once_each():
    data = SyntheticData(ModularAddition(7), length=1, batch_size=8, test_rows=99, validation_rows=99)
    assert (data.train_tokens, data.steps_in(2), data.facts()["rows_asked"]) == (24, 6, {"validation": 13, "test": 12})
    loader = data.train_dataloader()
    epochs = [torch.cat([next(loader)["tokens"] for _ in range(3)])[:, :2] - FIRST for _ in range(2)]
    first, second = ([tuple(pair) for pair in epoch.tolist()] for epoch in epochs)
    assert first != second
    assert sorted(first) == sorted(second)
    asked = [tuple(row.tokens_T[:2].tolist()) for split in ("validation", "test") for row in data.rows_of(split, 1)]
    assert sorted(first + asked) == [(a, b) for a in range(7) for b in range(7)]


def test_rows_that_are_all_new_have_no_epochs():
    with pytest.raises(DataError, match=r"rows of parity are new at each step; set trainer.max_steps"):
        SyntheticData(Parity()).steps_in(3)
