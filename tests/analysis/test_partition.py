"""What cannot be compared is not compared: runs of another task, data set, tokenizer or unit stand in parts of their own."""

import io

import pytest
from rich.console import Console
from tests.stored_studies import cell, write_plan, write_run

from attnlab.analysis import asked, compare, load_study, parts_of_study, print_comparison


def settings(task="CausalLanguageModelling", source="KJV", tokenizer="Character"):
    return {
        "task": {"_target_": f"attnlab.tasks.{task}"},
        "data": {"source": {"_target_": f"attnlab.data.{source}"}},
        "tokenizer": {"_target_": f"attnlab.data.{tokenizer}"},
    }


TEXT = {"fingerprint": "kjv", "unit": "token", "vocabulary_size": 70}
IMAGES = {"fingerprint": "mnist", "unit": "image"}


def write(root, choices, nats, data=TEXT, seeds=(1, 2), metric="val/loss", **changed):
    for seed in seeds:
        write_run(root, choices, seed, {metric: nats + seed / 100}, config=settings(**changed), data=data)


@pytest.fixture
def mixed(tmp_path):
    """What is left of trying things out, without a plan: two models of text, one of images, one with another tokenizer."""
    root = tmp_path / "train"
    write(root, {"position": "rotary"}, 2.0)
    write(root, {"position": "alibi"}, 2.1)
    write(root, {"model": "vit"}, 0.1, IMAGES, task="ImageClassification", source="MNIST5k")
    write(root, {"tokenizer": "bpe"}, 5.0, {**TEXT, "vocabulary_size": 4096}, seeds=(1,), tokenizer="BPE")
    return load_study(root)


def test_runs_of_other_kinds_stand_in_parts_of_their_own(mixed):
    parts = parts_of_study(mixed)
    cells = [sorted(c.name for c in part.cells) for part in parts]
    assert cells == [["position=alibi", "position=rotary"], ["model=vit"], ["tokenizer=bpe"]]
    assert [len(part.runs) for part in parts] == [4, 2, 1]
    said = compare(parts[0]).caveats[0]
    assert "Compared here are runs of CausalLanguageModelling on KJV with Character of 70 (4) alone" in said
    assert "ImageClassification on MNIST5k (2)" in said
    assert "CausalLanguageModelling on KJV with BPE of 4096 (1)" in said


def test_a_study_of_one_kind_stays_the_same_object(tmp_path):
    write(tmp_path / "s", {"position": "rotary"}, 2.0)
    study = load_study(tmp_path / "s")
    assert parts_of_study(study) == [study]
    assert not study.apart


def test_another_text_under_the_same_name_is_another_kind(tmp_path):
    write(tmp_path / "s", {"position": "rotary"}, 2.0)
    write(tmp_path / "s", {"position": "alibi"}, 1.0, {**TEXT, "fingerprint": "edited"})
    assert len(parts_of_study(load_study(tmp_path / "s"))) == 2


def read_from(root, content_of):
    """Two cells of three seeds whose tokenizers are read from a folder of their seed; `content_of(cell, seed)` is what
    each run keeps of it."""
    for choice, nats in (("rotary", 2.0), ("none", 1.5)):
        for seed in (1, 2, 3):
            config = settings()
            config["tokenizer"] = {"_target_": "attnlab.data.read_tokenizer", "path": f"runs/first/seed={seed}"}
            folder = write_run(
                root, {"position": choice}, seed, {"val/loss": nats + seed / 100}, config=config, data=TEXT
            )
            if content := content_of(choice, seed):
                (folder / "tokenizer.json").write_text(content)
    return load_study(root)


def test_one_tokenizer_that_is_read_from_a_folder_of_the_seed_is_one(tmp_path):
    study = read_from(tmp_path / "s", lambda *_: '{"name": "character"}')
    (part,) = parts_of_study(study)
    assert [len(one.values) for one in compare(part).cells] == [3, 3]
    # A run that trained the same tokenizer itself compares with them, too.
    folder = write_run(tmp_path / "s", {"position": "alibi"}, 1, {"val/loss": 1.0}, config=settings(), data=TEXT)
    (folder / "tokenizer.json").write_text('{"name": "character"}')
    assert len(parts_of_study(load_study(tmp_path / "s"))) == 1


def test_tokenizers_that_differ_stay_apart_and_say_from_where_they_are(tmp_path):
    contents = {"by seed": lambda _, seed: str(seed), "unknown": lambda *_: ""}
    for name, content_of in contents.items():
        parts = parts_of_study(read_from(tmp_path / name, content_of))
        assert [len(part.runs) for part in parts] == [2, 2, 2]
        assert "with the tokenizer of runs/first/seed=1 of 70 (2)" in " ".join(compare(parts[0]).caveats)
    sources = {"one": "a", "other": "b"}
    for name, content in sources.items():  # a tokenizer of the sources of its own
        folder = write_run(
            tmp_path / "s", {"model": name}, 1, {"val/loss": 1.0}, config=settings(tokenizer=name), data=TEXT
        )
        (folder / "tokenizer.json").write_text("same")
        (folder / "source_tokenizer.json").write_text(content)
    assert len(parts_of_study(load_study(tmp_path / "s"))) == 2


def planned(tmp_path, metric):
    root = tmp_path / "tokenizers"
    choices = [{"tokenizer": name, "norm": norm} for name in ("character", "bpe") for norm in ("layer", "rms")]
    claim = {"says": "fewer", "cell": choices[2], "metric": metric, "against": {"cell": choices[0]}, "below": 0}
    own = {"says": "better", "cell": choices[1], "metric": metric, "against": {"cell": choices[0]}, "below": 0}
    write_plan(
        root,
        cells=[cell(each) for each in choices],
        seeds=[1, 2, 3],
        factors={"tokenizer": ["character", "bpe"], "norm": ["layer", "rms"]},
        baseline=choices[0],
        metric={"name": metric, "better": "lower"},
        claims=[claim, own],
    )
    for each in choices:
        bpe = each["tokenizer"] == "bpe"
        data = {**TEXT, "vocabulary_size": 4096 if bpe else 70}
        write(root, each, 5.0 if bpe else 2.0, data, metric=metric, tokenizer="BPE" if bpe else "Character")
    return load_study(root)


def test_where_the_tokenizer_is_a_factor_losses_a_token_are_compared_within_each_alone(tmp_path):
    first, second = parts_of_study(planned(tmp_path, "test/loss@1x"))
    assert {c.choices["tokenizer"] for c in first.cells} == {"character"}
    assert len(first.runs) == len(second.runs) == 6  # a seed that is missing stays with its cell
    assert [claim["says"] for claim in first.claims] == ["better"]
    assert second.claims == []
    assert not [cell for cell in compare(second).cells if cell.difference]  # the baseline stands in the other part


def test_where_the_tokenizer_is_a_factor_bits_a_byte_are_compared_across(tmp_path):
    study = planned(tmp_path, "test/bits_per_byte")
    assert parts_of_study(study) == [study]


def test_a_baseline_of_one_kind_is_not_silently_replaced_in_another(mixed):
    first, second, third = asked(mixed, baseline="position=alibi")
    assert compare(first).baseline.label == "alibi"
    assert not [caveat for caveat in compare(first).caveats if "No baseline" in caveat]
    write(mixed.path, {"model": "vit", "norm": "rms"}, 0.2, IMAGES, task="ImageClassification", source="MNIST5k")
    _, second, third = asked(load_study(mixed.path), baseline="position=alibi")
    assert any(
        "No baseline is named among these: model=vit, the first cell" in caveat for caveat in compare(second).caveats
    )
    assert [third.label(cell) for cell in third.cells] == ["bpe"]  # one cell is named by what sets it apart


def test_bits_a_byte_that_are_asked_for_are_compared_across_tokenizers_of_one_text_without_a_plan(tmp_path):
    metric, choices = "test/bits_per_byte", [{"tokenizer": "character"}, {"tokenizer": "bpe"}]
    for each, kind in zip(choices, ("Character", "BPE"), strict=True):
        write(tmp_path / "s", each, 2.0, metric=metric, tokenizer=kind)
        write(tmp_path / "s", each, 2.0, metric="test/loss", tokenizer=kind, seeds=(5,))
    study = load_study(tmp_path / "s")
    (together,) = asked(study, metric)
    assert len(together.cells) == 2
    assert len(asked(study, "test/loss")) == 2
    write(tmp_path / "s", {"data": "other"}, 2.0, {**TEXT, "fingerprint": "other"}, metric=metric)
    assert len(asked(load_study(tmp_path / "s"), metric)) == 2


def test_seeds_that_nobody_asked_for_are_not_missing(tmp_path):
    write(tmp_path / "s", {"position": "rotary"}, 2.0, seeds=(1, 2))
    write(tmp_path / "s", {"position": "alibi"}, 2.1, seeds=(1,))
    comparison = compare(load_study(tmp_path / "s"))
    assert comparison.states == {"finished": 3}
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=110))
    assert not [word for word in ("missing", "1/2", "of 2 seeds", "Not finished") if word in out.getvalue()]
