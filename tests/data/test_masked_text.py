"""Windows with masked tokens: marks, targets, static and dynamic masks, pairs of segments, resuming and ranks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data import BPE, Character, DataError, MaskedTextData, Masking, TextFiles
from attnlab.data.special_tokens import END, MASK, SEPARATOR, START


def data(file, **fields):
    given = {
        "tokenizer": BPE(vocabulary_size=300),
        "masking": Masking(),
        "context_length": 20,
        "batch_size": 8,
        "path": str(file),
    }
    module = MaskedTextData(TextFiles, **{**given, **fields})
    module.setup()
    return module


def first(module, count=1):
    loader = iter(module.train_dataloader())
    return [next(loader) for _ in range(count)]


def test_a_window_stands_between_its_marks_and_its_targets_are_the_text(prose_file):
    module = data(prose_file)
    (batch,) = first(module)
    tokens, targets, chosen = batch["tokens"], batch["targets"], batch["chosen"]
    assert tokens.shape == targets.shape == chosen.shape == (8, 22)
    assert (tokens[:, 0] == START).all()
    assert (tokens[:, -1] == END).all()
    assert (chosen.sum(dim=1) == 3).all()
    assert not chosen[:, [0, -1]].any()
    assert torch.equal(tokens[~chosen], targets[~chosen])
    text = prose_file.read_text(encoding="utf-8")
    pieces = [module.vocabulary.decode(row[:-1]) for row in targets]
    assert all(piece.strip("\ufffd") in text for piece in pieces)
    assert module.tokens_per_batch == int(chosen.sum())


def test_whole_words_are_masked_together(prose_file):
    module = data(prose_file, masking=Masking(0.3, 1.0, 0.0, whole_words=True))
    for batch in first(module, 20):
        for tokens, targets in zip(batch["tokens"], batch["targets"], strict=True):
            pieces = [module.tokenizer.decode([t - module.vocabulary.first_text]) for t in targets[1:-1].tolist()]
            masked = (tokens[1:-1] == MASK).tolist()
            for place in range(1, len(pieces)):
                if not pieces[place][:1].isspace():
                    assert masked[place] == masked[place - 1]


@pytest.mark.parametrize("masks", ["static", "dynamic"])
def test_static_masks_come_again_and_dynamic_ones_do_not(prose_file, masks):
    module = data(prose_file, masks=masks, tokenizer=Character())
    text = module.corpus.train.tokens
    starts, numbers = torch.arange(0, 80, 20).numpy(), torch.arange(4).numpy()
    one, other = (module.collate(text, starts, numbers + 4 * turn) for turn in (0, 1))
    assert torch.equal(one["chosen"], other["chosen"]) == (masks == "static")
    assert torch.equal(one["tokens"], other["tokens"]) == (masks == "static")


@pytest.mark.parametrize("masks", ["static", "dynamic"])
def test_every_epoch_hides_the_same_tokens_where_masks_are_static(prose_file, masks):
    module = data(prose_file, masks=masks, batch_size=1)
    count = module.order().count
    seen = [tuple(torch.cat([b["targets"], b["chosen"]]).flatten().tolist()) for b in first(module, 4 * count)]
    epochs = [seen[start : start + count] for start in range(0, 4 * count, count)]
    assert all(epoch != epochs[0] for epoch in epochs[1:])  # the order is another
    assert all(set(epoch) == set(epochs[0]) for epoch in epochs[1:]) == (masks == "static")


def test_the_number_of_masked_tokens_is_told(prose_file):
    assert data(prose_file).describe().endswith("; 3 of 20 tokens of a window masked")
    whole = data(prose_file, masking=Masking(whole_words=True))
    assert whole.describe().endswith("; at most 3 of 20 tokens of a window masked")


@pytest.mark.parametrize(("batch_size", "world_size"), [(8, 2), (8, 3), (1000, 2), (1, 3), (2, 5)])
def test_ranks_evaluate_all_windows_once_masked_as_one_rank_does(prose_file, batch_size, world_size):
    def rows(rank, world_size):
        module = data(prose_file, batch_size=batch_size, next_sentence=True)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        loader = module.evaluation_loader("test")
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(0 < len(batch["tokens"]) <= batch_size for batch in batches)
        columns = [torch.cat([batch[name] for batch in batches]) for name in ("tokens", "targets", "chosen")]
        return torch.cat(columns, dim=1).tolist()

    shares = [rows(rank, world_size) for rank in range(world_size)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert sorted(row for share in shares for row in share) == sorted(rows(0, 1))


def test_more_ranks_than_windows_are_refused(prose_file):
    module = data(prose_file, context_length=100)
    windows = module.corpus.test.num_tokens // 100
    module.trainer = SimpleNamespace(global_rank=0, world_size=windows + 1)
    message = f"{windows} windows to evaluate are too few for {windows + 1} ranks; evaluate on fewer devices"
    with pytest.raises(DataError, match=message):
        module.evaluation_loader("test")


def test_evaluation_is_masked_the_same_for_every_seed_and_covers_the_part_once(prose_file):
    one, other = (data(prose_file, seed=seed) for seed in (0, 1))
    batches = list(one.evaluation_loader("test"))
    for a, b in zip(batches, other.evaluation_loader("test"), strict=True):
        assert torch.equal(a["tokens"], b["tokens"])
    text = torch.cat([batch["targets"][:, 1:-1].flatten() for batch in batches]) - one.vocabulary.first_text
    expected = torch.from_numpy(one.corpus.test.tokens[: len(text)].astype("int64"))
    assert torch.equal(text, expected)
    assert len(text) > one.corpus.test.num_tokens - 20


@pytest.mark.parametrize("next_sentence", [False, True])
def test_a_saved_place_goes_on_and_ranks_share_the_windows(prose_file, next_sentence):
    expected = first(data(prose_file, next_sentence=next_sentence), 6)
    stopped = data(prose_file, next_sentence=next_sentence)
    loader = iter(stopped.train_dataloader())
    for _ in range(4):
        next(loader)
    resumed = data(prose_file, next_sentence=next_sentence)
    resumed.load_state_dict(stopped.state_dict())
    for made, wanted in zip(first(resumed, 2), expected[4:], strict=True):
        assert all(torch.equal(made[name], wanted[name]) for name in wanted)
    ranks = []
    for rank in range(2):
        module = data(prose_file, next_sentence=next_sentence)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        ranks.append(first(module, 3))
    for index, wanted in enumerate(expected):
        assert torch.equal(ranks[index % 2][index // 2]["tokens"], wanted["tokens"])


@pytest.mark.parametrize("next_sentence", [False, True])
def test_a_batch_is_those_of_two_ranks_with_half_as_many_windows(prose_file, next_sentence):
    """Every window has the same mask and the same second half however a step's windows are dealt out."""
    wanted = first(data(prose_file, next_sentence=next_sentence), 3)
    halves = []
    for rank in range(2):
        module = data(prose_file, next_sentence=next_sentence, batch_size=4)
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        halves.append(first(module, 3))
    for whole, *both in zip(wanted, *halves, strict=True):
        assert all(torch.equal(torch.cat([half[name] for half in both]), whole[name]) for name in whole)


def test_pairs_of_segments_follow_each_other_or_do_not(prose_file):
    module = data(prose_file, next_sentence=True, masking=Masking(0.1, 0.0, 0.0))
    text = module.vocabulary.encode(prose_file.read_text(encoding="utf-8")).tolist()
    places = {tuple(text[i : i + 20]) for i in range(len(text) - 20)}
    follows = []
    for batch in first(module, 12):
        assert (batch["tokens"][:, 11] == SEPARATOR).all()
        assert batch["segments"][0].tolist() == [0] * 12 + [1] * 11
        for tokens, label in zip(batch["tokens"], batch["follows"].tolist(), strict=True):
            whole = (*tokens[1:11].tolist(), *tokens[12:22].tolist())
            assert not label or whole in places
            follows.append((label, whole in places))
    assert 0.3 < sum(label for label, _ in follows) / len(follows) < 0.7
    assert sum(found for label, found in follows if not label) < 5
    assert module.dims() == {"vocabulary_size": module.vocabulary.size, "next_sentence": True, "num_segments": 2}


def test_too_short_a_text_is_refused(tmp_path):
    path = tmp_path / "short.txt"
    path.write_text("a few words only " * 4)
    with pytest.raises(DataError, match="too few for a window of 20"):
        data(path, tokenizer=Character())


def words_of(random, batch, length):
    """Numbers of words of one to four tokens."""
    return np.cumsum(random.random((batch, length)) < 0.5, axis=1)


@settings(max_examples=60, deadline=None)
@given(probability=st.floats(0.01, 0.9), length=st.integers(1, 60), whole=st.booleans(), seed=st.integers(0, 999))
def test_the_number_is_the_probabilitys_and_words_stay_whole(probability, length, whole, seed):
    random = np.random.default_rng(seed)
    masking, words = Masking(probability, whole_words=whole), words_of(random, 5, length)
    chosen = masking.choose(words, random.random((5, length)))
    limit = max(1, round(probability * length))
    if not whole:
        assert (chosen.sum(axis=1) == limit).all()
        return
    for row in range(5):
        parts = [set(chosen[row, words[row] == word].tolist()) for word in np.unique(words[row])]
        sizes = np.unique(words[row], return_counts=True)[1]
        whole_ones = [size for part, size in zip(parts, sizes, strict=True) if part == {True}]
        cut = [part for part in parts if len(part) == 2]
        assert 1 <= chosen[row].sum() <= limit
        assert not cut or (len(cut) == 1 and not whole_ones)


def test_every_token_is_as_likely():
    random = np.random.default_rng(0)
    words = np.tile(np.arange(20), (20_000, 1))
    share = Masking().choose(words, random.random(words.shape)).mean(axis=0)
    assert np.abs(share - 0.15).max() < 5 * (0.15 * 0.85 / 20_000) ** 0.5


def test_the_chosen_ones_become_mask_random_or_stay_in_their_shares():
    random = np.random.default_rng(0)
    tokens = np.full((400, 500), 50)
    chosen = random.random(tokens.shape) < 0.15
    seen = Masking().replace(tokens, chosen, random.random(tokens.shape), np.full_like(tokens, 60), MASK)
    assert (seen[~chosen] == 50).all()
    number = chosen.sum()
    for token, share in ((MASK, 0.8), (60, 0.1), (50, 0.1)):
        assert abs((seen[chosen] == token).mean() - share) < 5 * (share * (1 - share) / number) ** 0.5


@pytest.mark.parametrize("shares", [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_other_shares(shares):
    random = np.random.default_rng(0)
    tokens, chosen = np.full((4, 9), 50), np.ones((4, 9), dtype=bool)
    seen = Masking(0.15, *shares).replace(tokens, chosen, random.random((4, 9)), np.full_like(tokens, 60), MASK)
    assert set(seen.flatten().tolist()) == {MASK if shares[0] else 60 if shares[1] else 50}


@pytest.mark.parametrize(
    "fields", [{"probability": 0.0}, {"probability": 1.0}, {"mask_share": 0.9, "random_share": 0.2}]
)
def test_what_is_no_share_is_refused(fields):
    with pytest.raises(ValueError, match="must be"):
        Masking(**fields)
