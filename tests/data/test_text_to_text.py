"""Mixtures of tasks: prefixes, shares, which task an example is of, and the batches."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.data import BPE, Character, DataError, ParallelText, TextTask, TextToTextData
from attnlab.data.pairs import Mixture, Pairs, PairSource


class Listed(PairSource):
    """So many different examples a split."""

    name = "listed"

    def __init__(self, train, test=3, word="a"):
        super().__init__("text-text")
        self.splits = {
            split: Pairs([f"{word}{i} {split}" for i in range(n)], [f"{word}{i}" for i in range(n)], dropped=1)
            for split, n in (("train", train), ("validation", 2), ("test", test))
        }

    def read(self, cache=None):
        return self.splits


def mixture(temperature=1.0, **sizes_and_weights):
    tasks = {
        name: TextTask(f"do {name}", Listed(size, word=name), weight)
        for name, (size, weight) in sizes_and_weights.items()
    }
    return Mixture(tasks, temperature)


def counts(made):
    return Counter(source.split(":")[0].removeprefix("do ") for source in made.read()["train"].sources)


def test_every_example_stands_behind_its_prefix_and_has_its_target():
    made = mixture(a=(4, None), b=(2, None))
    splits = made.read()
    assert splits["test"].sources == [f"do {n}: {n}{i} test" for n in "ab" for i in range(3)]
    assert splits["test"].targets == [f"{n}{i}" for n in "ab" for i in range(3)]
    assert made.members["test"] == ["a"] * 3 + ["b"] * 3
    assert splits["train"].dropped == 2
    for source, target in zip(splits["train"].sources, splits["train"].targets, strict=True):
        assert source.split(" ")[2] == target


def test_shares_are_those_of_sizes_temperature_or_weights():
    assert counts(mixture(a=(40, None), b=(10, None))) == {"a": 40, "b": 10}
    assert counts(mixture(temperature=1e9, a=(40, None), b=(10, None))) == {"a": 40, "b": 40}
    assert counts(mixture(temperature=2.0, a=(400, None), b=(100, None))) == {"a": 400, "b": 200}
    assert counts(mixture(a=(40, 1), b=(10, 3))) == {"a": 40, "b": 120}
    assert counts(mixture(a=(40, 9), b=(10, 1))) == {"a": 90, "b": 10}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 60), st.floats(1, 10)), min_size=1, max_size=4))
def test_no_example_is_left_out_and_shares_are_as_asked(tasks):
    made = mixture(**{f"t{i}": task for i, task in enumerate(tasks)})
    train = made.read()["train"]
    total, weights = len(train.sources), sum(weight for _, weight in tasks)
    found = counts(made)
    repeats = Counter(train.sources)
    assert len(repeats) == sum(size for size, _ in tasks)
    for i, (_, weight) in enumerate(tasks):
        assert found[f"t{i}"] == pytest.approx(total * weight / weights, abs=len(tasks))
        own = [count for source, count in repeats.items() if source.startswith(f"do t{i}:")]
        assert max(own) - min(own) <= 1


def test_a_share_that_repeats_each_example_over_a_thousand_times_is_refused():
    assert counts(mixture(a=(1, 1000), b=(10, 10))) == {"a": 1000, "b": 10}
    with pytest.raises(
        DataError, match=r"data.tasks.a would have each of its 1 examples more than 1,000 times an epoch"
    ):
        mixture(a=(1, 1001), b=(10, 10)).read()


@pytest.fixture
def files(tmp_path):
    """Words written backwards, and whether a word is short."""
    words = [f"{a}{b}{c}" for a in "abcdefg" for b in ("o", "ee", "uu") for c in ("t", "nd", "rst", "lmes")]
    (tmp_path / "reverse.tsv").write_text("\n".join(f"{w}\t{w[::-1]}" for w in words))
    (tmp_path / "size.tsv").write_text("\n".join(f"{w}\t{'short' if len(w) < 5 else 'long'}" for w in words[::2]))
    return tmp_path


def make_data(files, **fields):
    split = (0.6, 0.2, 0.2)
    tasks = {
        "reverse": TextTask("reverse", ParallelText("text-text", files / "reverse.tsv", split=split)),
        "size": TextTask("how long", ParallelText("text-class", files / "size.tsv", split=split), weight=30),
    }
    return TextToTextData(**{"tasks": tasks, "tokenizer": BPE(vocabulary_size=280), "batch_tokens": 200, **fields})


def test_batches_mix_the_tasks_and_ids_find_them(files):
    data = make_data(files)
    data.prepare_data()
    data.setup()
    loader = data.train_dataloader()
    texts = []
    for _ in range(6):
        batch = next(loader)
        texts += [data.vocabulary.decode(row).strip() for row in batch["source"]]
        for source, target in zip(texts[-len(batch["ids"]) :], batch["target_out"], strict=True):
            prefix, word = source.split(": ")
            wanted = word[::-1] if prefix == "reverse" else "short" if len(word) < 5 else "long"
            assert data.decode_target(target) == wanted
    assert {text.split(":")[0] for text in texts} == {"reverse", "how long"}
    tasks = data.tasks_of("test")
    for batch in data.evaluation_loader("test"):
        for number, row in zip(batch["ids"].tolist(), batch["source"], strict=True):
            prefix = data.vocabulary.decode(row).strip().split(":")[0]
            assert prefix == {"reverse": "reverse", "size": "how long"}[tasks[number]]
    assert set(tasks) == {"reverse", "size"}


def test_facts_say_the_shares(files):
    data = make_data(files)
    facts = data.facts()["tasks"]
    assert facts["reverse"]["examples"] == len(data.source.tasks["reverse"].source.read()["train"].sources)
    assert facts["size"]["an_epoch"] >= facts["size"]["examples"]
    assert "shares reverse " in data.describe()
    assert data.dims()["vocabulary_size"] == data.dims()["source_vocabulary_size"]


def test_a_saved_place_is_gone_on_from(files):
    whole = [batch["source"] for batch, _ in zip(make_data(files).train_dataloader(), range(8), strict=False)]
    data, resumed = make_data(files), make_data(files)
    loader = data.train_dataloader()
    for _ in range(3):
        next(loader)
    resumed.load_state_dict(data.state_dict())
    rest = resumed.train_dataloader()
    assert all(torch.equal(next(rest)["source"], expected) for expected in whole[3:])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture({}), r"data\.tasks is empty"),
        (lambda: mixture(temperature=0.0, a=(3, None)), r"temperature must be above 0"),
        (lambda: TextTask(" ", Listed(3)), "the prefix of a task is empty"),
        (lambda: TextTask("do", Listed(3), weight=0.0), r"weight must be above 0"),
        (
            lambda: Mixture({"a": TextTask("do", Listed(3)), "b": TextTask("do", Listed(3))}),
            "two tasks have one prefix",
        ),
        (lambda: mixture(a=(0, None), b=(3, None)).read(), r"data\.tasks\.a has no training examples"),
        (lambda: mixture(a=(2, 1e4), b=(3, 1e-4)).read(), r"data\.tasks\.a would have each of its 2 examples more"),
    ],
)
def test_mixtures_that_cannot_be_learned_from_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_dropped_moves_no_example_to_another_task(tmp_path):
    for name, length in {"long": 30, "short": 2}.items():
        lines = [f"{name} {'x' * (length + i)}\t{name}" for i in range(40)]
        (tmp_path / f"{name}.tsv").write_text("\n".join(lines))
    tasks = {n: TextTask(n, ParallelText("text-text", tmp_path / f"{n}.tsv")) for n in ("long", "short")}
    module = TextToTextData(tasks, Character(), max_length=64, cache=str(tmp_path / "cache"))
    assert module.split("train").counts["too long"] > 0
    for split in ("train", "validation", "test"):
        assert [source.split(":")[0] for source in module.sources(split)] == module.tasks_of(split)
