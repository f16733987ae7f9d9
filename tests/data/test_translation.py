"""The data module of translation: what a batch holds, what is left out, texts by id, resuming, ranks."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnlab.data import BPE, Character, DataError, ParallelText, TranslationData
from attnlab.data.special_tokens import END, PAD, START
from attnlab.data.translation import TokenRows, TokenRowsBuilder


@pytest.fixture
def file(tmp_path):
    """200 pairs of unequal lengths, and one whose source is long."""
    words = ["ein", "kleiner", "Hund", "läuft", "über", "die", "grüne", "Wiese", "und", "bellt", "laut"]
    lines = [
        f"{' '.join(words[i % 5 : i % 5 + 1 + i % 7])} {i}\t{' '.join(words[: 1 + i % 11])} {i}" for i in range(200)
    ]
    path = tmp_path / "pairs.tsv"
    path.write_text("\n".join([*lines, f"{'sehr ' * 80}lang\tlong"]), encoding="utf-8")
    return path


def data(file, split=(0.8, 0.1, 0.1), **fields):
    source = partial(ParallelText, split=split)
    given = {
        "tokenizer": BPE(vocabulary_size=300),
        "language_pair": "de-en",
        "path": str(file),
        "batch_tokens": 300,
        "max_length": 70,
    }
    return TranslationData(source, **{**given, **fields})


def test_a_batch_is_the_pairs_with_their_marks(file):
    module = data(file)
    module.setup()
    batch = next(iter(module.train_dataloader()))
    pairs = module.split("train")
    for row, example in enumerate(batch["ids"].tolist()):
        source, target = pairs.texts.sources[example], pairs.texts.targets[example]
        is_source, is_target = batch["is_source"][row], batch["is_target"][row]
        assert batch["source"][row][is_source][-1] == END
        assert module.source_vocabulary.decode(batch["source"][row]).strip() == source
        assert batch["target_in"][row, 0] == START
        assert torch.equal(batch["target_in"][row][is_target][1:], batch["target_out"][row][is_target][:-1])
        assert batch["target_out"][row][is_target][-1] == END
        assert module.decode_target(batch["target_out"][row]) == target
        assert (batch["target_out"][row][~is_target] == PAD).all()
        # Padding stands on the right.
        assert is_target.long().diff().max() <= 0


def test_a_target_is_one_line_whatever_a_model_gives(file):
    # Tokenizers that know single characters know the newline between the lines that they were trained on.
    module = data(file, tokenizer=Character())
    module.setup()
    tokens = module.vocabulary.encode(" ein\nkleiner Hund\n").tolist()
    assert module.decode_target([*tokens, END, *tokens]) == "ein kleiner Hund"


def test_one_vocabulary_or_two(file):
    joint, apart = data(file), data(file, joint_vocabulary=False, tokenizer=BPE(vocabulary_size=280))
    assert joint.dims()["vocabulary_size"] == joint.dims()["source_vocabulary_size"]
    apart.setup()
    assert joint.source_vocabulary.tokenizer == joint.vocabulary.tokenizer
    assert apart.source_vocabulary.tokenizer != apart.vocabulary.tokenizer
    assert set(joint.dims()) == set(joint.placeholder_dims())


@pytest.mark.parametrize("way", ["drop", "truncate"])
def test_long_pairs_are_dropped_or_cut_and_counted(file, way):
    module = data(file, split=(1, 0, 0), on_overlong=way, tokenizer=Character())
    pairs = module.split("train")
    assert len(pairs.sources) == (200 if way == "drop" else 201)
    assert pairs.counts == {
        "pairs with an empty side": 0,
        "too long": way == "drop",
        "cut": way != "drop",
    }
    assert pairs.lengths.max() <= 70
    what = "too long in train: 1" if way == "drop" else "cut in train: 1"
    assert what in module.describe()
    assert module.facts()["left_out"]["train"] == pairs.counts


def test_what_is_evaluated_is_cut_in_the_source_alone_and_counted_so(tmp_path):
    lines = [f"kurz {i}\tshort {i}" for i in range(20)]
    (tmp_path / "train.tsv").write_text("\n".join(lines))
    (tmp_path / "other.tsv").write_text(f"kurz\t{'long ' * 30}end\n{'lang ' * 30}\tshort\nkurz\tshort\n")
    other = str(tmp_path / "other.tsv")
    source = partial(ParallelText, validation_path=other, test_path=other)
    module = TranslationData(source, Character(), "de-en", max_length=20, path=str(tmp_path / "train.tsv"))
    module.setup()
    for split in ("validation", "test"):
        pairs = module.split(split)
        assert pairs.counts == {"pairs with an empty side": 0, "too long": 0, "cut": 1}
        assert pairs.lengths[:, 0].tolist() == [6, 20, 6]
        assert module.decode_target(pairs.targets[0]) == module.references(split)[0]


def test_a_split_that_is_empty_says_what_became_of_its_pairs(file, tmp_path):
    with pytest.raises(DataError, match=r"in a split 'train' \(too long: \d+\); accepted: validation, test$"):
        data(file, max_length=2).setup()
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(DataError, match=r"in a split 'train'; no split has any: look at data.path"):
        data(tmp_path / "empty.tsv").setup()
    (tmp_path / "half.tsv").write_text("one\t\ntwo\t\n")
    with pytest.raises(DataError, match=r"in a split 'train' \(pairs with an empty side: 2\); no split has any"):
        data(tmp_path / "half.tsv").setup()


def test_an_epoch_covers_all_and_a_saved_place_goes_on(file):
    module = data(file)
    loader = iter(module.train_dataloader())
    seen, batches = [], []
    while len(seen) < len(module.split("train").sources):
        batches.append(next(loader))
        seen += batches[-1]["ids"].tolist()
    assert sorted(seen) == list(range(len(module.split("train").sources)))
    assert module.tokens_per_batch == pytest.approx(module.train_tokens / len(batches), abs=1)
    stopped = data(file)
    loader = iter(stopped.train_dataloader())
    for _ in range(2):
        next(loader)
    resumed = data(file)
    resumed.load_state_dict(stopped.state_dict())
    again = next(iter(resumed.train_dataloader()))
    assert all(torch.equal(again[name], batches[2][name]) for name in again)


def on_rank(file, rank, world_size, accumulated, budget, place=None):
    module = data(file, batch_tokens=budget)
    module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size, accumulate_grad_batches=accumulated)
    module.load_state_dict(place or {})
    return module


def micro_batches(module, steps):
    loader, count = iter(module.train_dataloader()), steps * module.trainer.accumulate_grad_batches
    return [set(next(loader)["ids"].tolist()) for _ in range(count)]


def test_ranks_and_accumulated_batches_share_a_step(file):
    def batches(rank, world_size, accumulated, budget):
        return micro_batches(on_rank(file, rank, world_size, accumulated, budget), 4)

    alone = batches(0, 1, 1, 400)
    one, other = batches(0, 2, 1, 200), batches(1, 2, 1, 200)
    assert [a | b for a, b in zip(one, other, strict=True)] == alone
    assert not any(a & b for a, b in zip(one, other, strict=True))
    twice = batches(0, 1, 2, 200)
    assert [twice[i] | twice[i + 1] for i in range(0, 8, 2)] == alone


@pytest.mark.parametrize("parts", [4, 6])
def test_a_run_goes_on_with_another_number_of_ranks(file, parts):
    before = on_rank(file, 0, 1, parts, 150)
    micro_batches(before, 3)
    place = before.state_dict()
    expected = micro_batches(on_rank(file, 0, 1, parts, 150, place), 3)
    steps = [expected[step * parts : (step + 1) * parts] for step in range(3)]
    # Ragged steps: not every one has a multiple of the parts, and then some of them have one pair more.
    assert any(len({len(batch) for batch in step}) > 1 for step in steps)
    for ranks in (2, parts):
        each = parts // ranks
        dealt = [micro_batches(on_rank(file, rank, ranks, each, 150, place), 3) for rank in range(ranks)]
        for number, step in enumerate(steps):
            found = [batch for rank in dealt for batch in rank[number * each : (number + 1) * each]]
            assert sorted(map(sorted, found)) == sorted(map(sorted, step))


@pytest.mark.parametrize("parts", [1, 2, 5])
def test_a_step_of_several_batches_has_the_tokens_that_are_planned(file, parts):
    module = data(file, batch_tokens=400)
    loader = iter(on_rank(file, 0, 1, parts, 400).train_dataloader())
    pairs, seen, steps = len(module.split("train").sources), 0, 0
    while seen < pairs:
        seen += sum(len(next(loader)["ids"]) for _ in range(parts))
        steps += 1
    assert seen == pairs
    assert module.tokens_per_step(parts) == module.train_tokens // steps


def test_evaluation_gives_every_pair_of_a_split_once(file):
    module = data(file)
    ids = [i for batch in module.evaluation_loader("test") for i in batch["ids"].tolist()]
    assert sorted(ids) == list(range(len(module.references("test"))))
    assert len(module.sources("test")) == len(module.references("test"))
    with pytest.raises(DataError, match="has no pairs in a split 'tets'; accepted: train, validation, test"):
        module.evaluation_loader("tets")


def test_texts_to_translate_keep_their_places_and_are_cut(file):
    module = data(file, tokenizer=Character())
    texts = ["Hund", "ein kleiner Hund", "Hund " * 40]
    rows = {i: row for b in module.source_loader(texts) for i, row in zip(b["ids"].tolist(), b["source"], strict=True)}
    assert [module.source_vocabulary.decode(rows[i]).strip() for i in range(2)] == texts[:2]
    assert len(rows[2]) == 70
    assert rows[2][-1] == END


def test_the_tokenizers_are_trained_once_and_on_the_training_part_alone(file, own_cache, monkeypatch):
    first = data(file)
    first.setup()
    monkeypatch.setattr(BPE, "train", lambda self, text: pytest.fail("trained again"))
    again = data(file)
    again.setup()
    assert again.vocabulary == first.vocabulary
    assert again.facts() == first.facts()


def test_numbers_that_serve_no_batch_are_refused(file):
    with pytest.raises(ValueError, match="batch_tokens must be at least 2, got 1"):
        data(file, batch_tokens=1)
    with pytest.raises(DataError, match=r"data.batch_tokens=5 cannot hold the longest example"):
        data(file, batch_tokens=5).setup()
    with pytest.raises(DataError, match="has no pairs in a split 'validation'"):
        data(file, split=(1, 0, 0)).setup()
    with pytest.raises(DataError, match="has no pairs in a split 'test'; accepted: train, validation"):
        data(file, split=(0.9, 0.1, 0)).setup()


def test_rows_are_encoded_once_for_each_way_of_cutting_and_mapped(file, own_cache, monkeypatch):
    first, cut = data(file), data(file, max_length=20, on_overlong="truncate")
    kept = {module: next(iter(module.train_dataloader())) for module in (first, cut)}
    assert first.split("train").counts != cut.split("train").counts
    sources = first.sources("train")
    monkeypatch.setattr("attnlab.data.translation.encode_pairs", lambda *_: pytest.fail("encoded again"))
    for module, fields in ((first, {}), (cut, {"max_length": 20, "on_overlong": "truncate"})):
        again = data(file, **fields)
        assert isinstance(again.split("train").sources.tokens_N, np.memmap)
        batch = next(iter(again.train_dataloader()))
        assert all(torch.equal(batch[name], kept[module][name]) for name in batch)
        assert again.facts() == module.facts()
    assert data(file).sources("train") == sources


def test_rows_that_are_damaged_are_encoded_again(file, own_cache):
    first = data(file)
    expected = [row.tolist() for row in first.split("train").sources]
    (damaged,) = own_cache.glob("pairs/*/train-*/sources.npy")
    damaged.write_bytes(b"nothing")
    again = data(file)
    assert [row.tolist() for row in again.split("train").sources] == expected
    assert isinstance(data(file).split("train").sources.tokens_N, np.memmap)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.lists(st.integers(0, 65_000), max_size=5), max_size=12),
    size=st.sampled_from([65_536, 65_537]),
)
def test_rows_come_out_as_they_went_in(tmp_path, rows, size):
    making = TokenRowsBuilder(size)
    for row in rows:
        making.add(np.array(row, dtype=np.int64))
    made = making.done()
    made.save(tmp_path, "some")
    for found in (made, TokenRows.load(tmp_path, "some")):
        assert found.tokens_N.dtype == (np.uint16 if size == 65_536 else np.uint32)
        assert len(found) == len(rows)
        assert [row.tolist() for row in found] == [found[i].tolist() for i in range(len(rows))] == rows
        assert found.lengths_R.tolist() == [len(row) for row in rows]
        assert [found[i - len(rows)].tolist() for i in range(len(rows))] == rows
        with pytest.raises(IndexError):
            found[len(rows)]
