"""Overrides become one configuration, or one message that helps."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from attnlab.cli.main import main
from attnlab.config import UsageError
from attnlab.config.check import check
from attnlab.config.compose import ConfigSpace
from attnlab.config.identity import cell_name, identity, readable
from attnlab.runs.build import dry_build
from attnlab.training.run_directory import read_json


@pytest.fixture(scope="module")
def composed_before():
    return ConfigSpace()


@pytest.fixture
def space(composed_before):
    # Opened anew for each test: another of this file may have opened one of its own, which takes its place.
    with composed_before as opened:
        yield opened


def message(space, *overrides):
    with pytest.raises(UsageError) as caught:
        check(space.compose(list(overrides)))
    return str(caught.value)


@pytest.mark.slow
def test_every_choice_of_every_group_composes(space):
    for place in range(max(map(len, space.groups.values()))):  # one choice of every group at a time
        chosen = {group: choices[place % len(choices)] for group, choices in space.groups.items()}
        composed = space.compose([f"{group}={choice}" for group, choice in chosen.items()])
        asked_for = {
            f"data.{name}=x-y" for name in ("path", "language_pair") if OmegaConf.is_missing(composed.config.data, name)
        }
        config = space.compose([*composed.overrides, *sorted(asked_for)]).resolved
        for group, choice in chosen.items():
            assert group in ("debug", "pattern") or isinstance(config[group], dict), (group, choice)


def test_swapping_a_part_leaves_no_key_of_the_old_one(space):
    rotary = space.compose(["position=rotary"]).resolved["position"]
    alibi = space.compose(["position=alibi"]).resolved["position"]
    assert "base" in rotary
    assert "base" not in alibi


def test_an_unknown_choice_names_the_nearest_and_all(space):
    text = message(space, "position=alibbi")
    assert "Did you mean alibi?" in text
    assert "rotary" in text
    assert "sinusoidal" in text


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("modle.d_model=64", "model.d_model"),
        ("model.d_modl=64", "model.d_model"),
        ("trainer.max_step=5", "trainer.max_steps"),
        ("optimizer.learning_rate=1", "optimizer."),
        ("sed=1", "seed"),
    ],
)
def test_a_misspelt_field_names_the_nearest_and_its_neighbours(space, override, nearest):
    text = message(space, override)
    assert override.split("=")[0] in text
    assert nearest in text
    assert "Fields of" in text


def test_an_added_field_that_the_class_does_not_take_is_refused(space):
    text = message(space, "+model.d_embedding=3")
    assert "model.d_embedding: there is no such field" in text
    assert "num_heads" in text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("seed=abc", "seed must be a whole number at least 0 and below 4294967296, got 'abc'"),
        ("model.d_model=64.5", "model.d_model must be a whole number at least 1, got 64.5"),
        ("model.tie_embeddings=perhaps", "model.tie_embeddings must be true or false, got 'perhaps'"),
        ("optimizer.lr=fast", "optimizer.lr must be a number at least 0, got 'fast'"),
        ("optimizer.betas=[0.9]", "optimizer.betas must be 2 values, each a number at least 0 and below 1, got [0.9]"),
        ("progress=loud", "progress must be one of auto, plain, off, got 'loud'"),
        ("trainer.precision=64", "trainer.precision must be one of auto, 32, bf16, 16, got 64"),
    ],
)
def test_a_wrong_type_says_what_was_expected(space, override, words):
    assert words in message(space, override)


@pytest.mark.parametrize("precision", ["32", "'32'", "bf16", "auto"])
def test_precision_is_taken_as_a_number_or_as_a_word(space, precision):
    check(space.compose([f"trainer.precision={precision}"]))
    assert str(space.compose([f"trainer.precision={precision}"]).resolved["trainer"]["precision"]) == precision.strip(
        "'"
    )


def test_a_required_field_is_asked_for_once(space):
    assert message(space, "data=text") == "data.path is required: add data.path=..."


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["model.num_heads=7", "model.d_model=64"],
            "must be one of 1, 2, 4, 8, 16, 32, 64, which divide model.d_model=64, got 7",
        ),
        (["model.num_heads=2", "model.d_model=6"], "odd number"),
        (["position=sinusoidal_2d"], "image patches"),
        (
            ["augmentation=digits"],
            "augmentation: data=kjv has no augmentation, so augmentation=digits would have no effect; leave it out",
        ),
        (
            ["model=vit", "data=kjv"],
            "task=image_classification needs image data (digits, fashion_mnist, hub_images, image_folder, mnist_5k), got data=kjv",
        ),
        (
            ["model=recurrent", "task=causal_lm", "data=kjv"],
            "task=causal_lm needs another model (convolutional_lm, gpt, ngpt, recurrent_lm), got model=recurrent; choose one of them, or leave task out",
        ),
        (
            ["model=gpt", "task=sequence_classification", "data=reuters_r8"],
            "needs another model (bert, convolutional_encoder, recurrent_encoder), got model=gpt; choose one of them, or leave task out",
        ),
        (["model=recurrent", "model.attention=none", "model.input_feeding=true"], "model.input_feeding: only Luong's"),
        (["model=recurrent", "model.attention=bahdanau", "model.score=dot"], "with model.attention=bahdanau it would"),
        (["position=learned", "model.max_length=8", "data.context_length=32"], "table of 8 positions"),
        (["schedule=noam", "optimizer.lr=0.1"], "noam sets the learning rate itself"),
        (["optimizer=schedule_free", "schedule=cosine"], "schedule=constant"),
        (["model=recurrent_lm", "trainer.precision=16", "trainer.device=cpu"], "a CPU has no LSTM in fp16"),
        (["optimizer=schedule_free", "schedule=constant", "averaging=ema"], "averages the weights itself"),
        (
            ["averaging=last_checkpoints", "trainer.val_check_interval=0"],
            "there are none (trainer.val_check_interval=0",
        ),
        (["averaging=last_checkpoints", "trainer.max_steps=50"], "set trainer.val_check_interval"),
        (
            ["model=encoder_decoder", "data=multi30k", "batch_ramp=linear"],
            "batch_ramp: data=multi30k has no batches of a fixed number of examples",
        ),
        (["model=clip", "batch_ramp=doubling"], "batch_ramp: data=icons has no batches of a fixed number of examples"),
        (["model=vit", "length_ramp=linear"], "length_ramp: data=mnist_5k has rows that cannot be cut to a length"),
        (["residual=rezero", "norm=rms_norm"], "no norm"),
        (
            ["model=bert", "position=xpos"],
            "position: xpos is of distances to keys before the query, and model=bert has",
        ),
        (["model=ngpt", "residual=pre_ln"], "model=ngpt has no residual, so residual=pre_ln would have no effect"),
        (["model=ngpt", "optimizer=schedule_free", "schedule=constant"], "put back on the sphere after every step"),
        (["trainer.devices=2", "trainer.strategy=fsdp2", "model=ngpt"], "model=ngpt divides whole matrices"),
        (["trainer.devices=2", "trainer.strategy=fsdp2", "position=fire"], "position=fire learns single numbers"),
        (
            ["trainer.devices=2", "trainer.strategy=fsdp2", "residual=hyper_connections"],
            "hyper_connections learns single",
        ),
        (
            ["model.random_positions=64", "data.context_length=128"],
            "model.random_positions: 64 positions are fewer than the 128 tokens of a row (data.context_length); draw from more",
        ),
        (
            ["trainer.devices=2", "trainer.strategy=fsdp2", "norm=dynamic_tanh"],
            "learns single numbers, which torch cannot shard",
        ),
        (
            ["trainer.devices=2", "trainer.strategy=fsdp2", "residual=rezero"],
            "learns single numbers, which torch cannot shard",
        ),
        (
            ["trainer.devices=2", "trainer.strategy=fsdp2", "optimizer=adafactor"],
            "optimizer=adafactor cannot work on shards (torch's Adafactor)",
        ),
        (["attention.soft_cap=30", "attention.backend=fused"], "no soft cap"),
        (["schedule.warmup_steps=50", "trainer.max_steps=10"], "longer than the training of 10"),
    ],
)
def test_an_impossible_combination_is_refused_with_the_reason(space, overrides, words):
    assert words in message(space, *overrides)


PAIRS = ["data=parallel_text", "data.path=x", "data.language_pair=de-en"]
SPANS = ["task=span_corruption", "data=text_spans", "data.path=x"]


@pytest.mark.parametrize(
    ("overrides", "row", "field"),
    [
        (["model=gpt", "position=learned", "data.context_length=32"], 32, "data.context_length"),
        (["model=bert", "data.context_length=32"], 34, "data.context_length, and its special tokens"),
        (["model=encoder_decoder", "position=learned", *PAIRS, "data.max_length=40"], 40, "data.max_length"),
        (["model=t5_prefix", "position=learned", *PAIRS, "data.max_length=40"], 40, "data.max_length"),
        (["model=convolutional", *PAIRS, "data.max_length=40"], 40, "data.max_length"),
        (["model=convolutional_encoder", "data.max_length=40"], 40, "data.max_length"),
        # 100 tokens of which 15 are noise in 5 spans: 85 + 5 in, and out 5 + 15 + 1; each with its end.
        (["model=t5", "position=learned", *SPANS, "data.context_length=100"], 91, "data.context_length"),
        # Each span takes as much as it leaves, so the end comes on top.
        (
            ["model=convolutional", *SPANS, "data.context_length=100", "data.mean_span_length=1"],
            101,
            "data.context_length",
        ),
    ],
)
def test_a_learned_table_has_to_serve_the_longest_row(space, overrides, row, field):
    check(space.compose([*overrides, f"model.max_length={row}"]))
    text = message(space, *overrides, f"model.max_length={row - 1}")
    assert text == (
        f"model.max_length: a learned table of {row - 1} positions (model.max_length) cannot serve rows of {row} tokens ({field}); shorten the rows, or take a longer table where it is not trained yet"
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=encoder_decoder", "position=sinusoidal", *PAIRS, "data.max_length=300"],
        ["model=t5", *SPANS, "data.context_length=300"],
        ["model=convolutional_lm", "data.context_length=300"],
        ["model=recurrent", *PAIRS, "data.max_length=300"],
        ["model=vit", "position=learned"],
    ],
)
def test_what_has_no_table_takes_rows_of_any_length(space, overrides):
    check(space.compose(overrides))


def test_what_luong_alone_has_is_taken_with_luong(space):
    check(space.compose(["model=recurrent", "model.attention=luong", "model.score=dot", "model.input_feeding=true"]))


def test_a_model_without_a_table_of_tokens_gets_no_reason_about_one(space):
    assert len(message(space, "model=vit", "data=reuters_r8").splitlines()) == 1


@pytest.mark.parametrize("position", ["learned_2d", "sinusoidal_2d", "axial_rotary", "learned", "alibi", "none"])
def test_images_have_positions_of_one_and_of_two_dimensions(space, position):
    composed = space.compose(["model=vit", f"position={position}"])
    check(composed)
    dry_build(composed.resolved)
    assert composed.resolved["data"]["augmentation"]["degrees"] == 15.0  # the data's own, unless another is chosen
    chosen = space.compose(["model=vit", "augmentation=photos"]).resolved["data"]["augmentation"]
    assert (chosen["degrees"], chosen["flip"]) == (0.0, 0.5)


def test_a_patch_that_does_not_divide_the_image_is_refused_before_any_image_is_read(space):
    config = space.compose(["model=vit", "data=mnist_5k", "model.patch_size=5"]).resolved
    with pytest.raises(
        UsageError, match="patch_size=5 does not divide images of 28 x 28 pixels; accepted: 1, 2, 4, 7, 14"
    ):
        dry_build(config)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model=recurrent", "position=alibi"], "position: model=recurrent has no position, so position=alibi would"),
        (
            ["model=recurrent_lm", "position=learned"],
            "position: model=recurrent_lm has no position, so position=learned",
        ),
        (["model=recurrent", "attention=multi_query"], "model=recurrent has no attention, so attention=multi_query"),
        (["model=recurrent", "attention.window=3"], "model=recurrent has no attention, so attention.window=3"),
        (["model=convolutional", "norm=rms_norm"], "model=convolutional has no norm, so norm=rms_norm"),
        (["model=convolutional_lm", "residual=post_ln"], "model=convolutional_lm has no residual, so residual=post_ln"),
        (["model=recurrent_encoder", "feed_forward=glu"], "model=recurrent_encoder has no feed_forward"),
        (["model=convolutional_encoder", "position=sinusoidal_2d"], "has no position, so position=sinusoidal_2d would"),
    ],
)
def test_a_seam_that_the_model_does_not_have_is_refused(space, overrides, words):
    text = message(space, *overrides)
    assert words in text
    assert text.endswith("would have no effect; leave it out")
    assert len(text.splitlines()) == 1


REPLACED = [f"{kind}{end}" for kind in ("recurrent", "convolutional") for end in ("", "_lm", "_encoder")]


@pytest.mark.parametrize("model", [*REPLACED, "encoder_decoder", "gpt", "bert"])
def test_a_model_composes_with_the_seams_as_they_are_by_default(space, model):
    composed = space.compose([f"model={model}", "init=normal_002"])
    check(composed)
    dry_build(composed.resolved)


@pytest.mark.parametrize("seam", ["position=alibi", "residual=post_ln", "norm=rms_norm", "attention=multi_query"])
def test_a_seam_that_the_model_has_is_taken(space, seam):
    check(space.compose(["model=encoder_decoder", seam]))


def test_choices_separated_by_commas_need_a_multirun(space):
    text = message(space, "position=alibi,rotary")
    assert "-m" in text


def test_all_jobs_of_a_multirun(space):
    jobs = space.expand(["position=alibi,rotary", "seed=0,1", "model.num_layers=2"])
    assert jobs == [[f"position={p}", f"seed={s}", "model.num_layers=2"] for p in ("alibi", "rotary") for s in (0, 1)]


@pytest.mark.parametrize("swept", [["model.d_ff=range(1,101)", "seed=range(0,101)"], ["seed=range(0,10000000000)"]])
def test_a_multirun_has_an_end(space, swept):
    with pytest.raises(UsageError, match=r"at most 10,000 jobs, got 10,\d+ or more"):
        space.expand(swept)


def test_the_run_directory_follows_from_the_identity(space):
    composed = space.compose(["position=alibi", "model.d_model=32", "seed=3", "runs_dir=elsewhere", "study.name=mine"])
    assert composed.config.run_dir == "elsewhere/mine/d_model=32,position=alibi/seed=3"


def test_names_of_cells_are_readable_ordered_and_distinct():
    assert cell_name([]) == "default"
    assert cell_name(["seed=3", "runs_dir=x", "trainer.threads=2"]) == "default"
    assert cell_name(["position=alibi", "model.d_model=8"]) == cell_name(["model.d_model=8", "position=alibi"])
    assert cell_name(["data.path=a/b"]) != cell_name(["data.path=a_b"])
    assert cell_name(["a.lr=1", "b.lr=2"]) == "a.lr=1,b.lr=2"


@given(st.text(alphabet="abc/._- ü*'\"$", min_size=1, max_size=300))
def test_the_name_of_a_cell_is_always_one_folder(value):
    name = cell_name([f"data.path={value}"])
    assert "/" not in name
    assert 0 < len(name) <= 120
    assert name not in {".", ".."}


def test_where_a_run_stands_is_no_part_of_what_it_is(space):
    here = identity(space.compose(["position=alibi", "runs_dir=a", "progress=off", "trainer.threads=1"]).resolved)
    there = identity(space.compose(["position=alibi", "runs_dir=b"]).resolved)
    other = identity(space.compose(["position=alibi", "seed=1"]).resolved)
    assert here == there
    assert here != other


@pytest.mark.parametrize(
    "override",
    [
        "task.pretrained=runs/train/model=bert/seed=0",
        "task.pretrained=runs/train/model=bert,d_model=32/seed=0",
        'task.pretrained="runs/train/model=bert/seed=0"',
    ],
)
def test_a_path_may_have_the_signs_that_cells_have(space, override):
    words = readable(["model=bert", "task=sequence_classification", "data=reuters_r8", override])
    assert space.compose(words).config.task.pretrained == override.split("=", 1)[1].strip('"')


def test_a_multirun_takes_several_paths_and_one_with_a_comma_that_is_there(space, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=1,b=2").mkdir()
    assert space.expand(readable(["data.path=x/a=1,x/a=2,y"], multirun=True)) == [
        ['data.path="x/a=1"'],
        ['data.path="x/a=2"'],
        ["data.path=y"],
    ]
    assert space.expand(readable(["data.path=a=1,b=2"], multirun=True)) == [['data.path="a=1,b=2"']]


def test_what_needs_no_quotes_has_none():
    words = ["position=alibi,none", "model.d_model=64", "+data.tasks.x={a: b}", "position=choice(alibi)", "loose"]
    assert readable(words, multirun=True) == words


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes a file of a folder of configurations of the user's own, and gives the folder."""
    monkeypatch.chdir(tmp_path)

    def write(name, text, folder="my_conf"):
        path = tmp_path / folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(tmp_path / folder)

    return write


ROTARY = "_target_: attnlab.layers.Rotary\n_partial_: true\nbase: {base}\n"


def test_a_file_of_ones_own_takes_the_place_of_one_of_attnlabs_and_is_said(own, capsys):
    own("position/mine.yaml", ROTARY.format(base=3.0))
    folder = own("position/alibi.yaml", ROTARY.format(base=77.0))
    with ConfigSpace([folder]) as space:
        said = capsys.readouterr().err
        assert space.compose(["position=alibi"]).resolved["position"]["base"] == 77.0
        assert space.compose(["position=mine"]).resolved["position"]["base"] == 3.0
        assert {"mine", "alibi", "rotary"} <= set(space.groups["position"])
    assert said == f"attnlab: {folder}/position/alibi.yaml takes the place of attnlab's own position/alibi.yaml\n"
    with ConfigSpace([own("data/kjv_of_mine.yaml", "x: 1", "other")]):
        assert capsys.readouterr().err == ""


def test_of_two_folders_the_first_wins_and_this_is_said_too(own, capsys):
    folders = [own("position/mine.yaml", ROTARY.format(base=base), f"conf{base}") for base in (1.0, 2.0)]
    with ConfigSpace(folders) as space:
        assert space.compose(["position=mine"]).resolved["position"]["base"] == 1.0
    assert "conf1.0/position/mine.yaml takes the place of" in capsys.readouterr().err


def test_it_takes_the_place_in_every_job_of_a_multirun(own, capsys, tiny):
    folder = own("position/alibi.yaml", ROTARY.format(base=77.0))
    words = [
        "-m",
        "--config-dir",
        folder,
        *tiny,
        "position=alibi",
        "trainer.max_steps=1",
        "trainer.val_check_interval=0",
    ]
    assert main(["train", *words, "task.evaluation_lengths=[1]"]) == 0
    (record,) = Path("runs/train").glob("*/seed=0/run.json")
    assert read_json(record)["config"]["position"]["base"] == 77.0
    assert capsys.readouterr().err.count("takes the place") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2\n", "line 2, column 1: found duplicate key a"),
        ("a: [1\n", "expected ',' or ']'"),
        ("defaults: [mine]\n", "must not name itself in its defaults"),
    ],
)
def test_a_file_of_ones_own_that_cannot_be_read(own, text, words):
    with ConfigSpace([own("position/mine.yaml", text)]) as space, pytest.raises(UsageError) as caught:
        space.compose(["position=mine"])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_jobs_that_are_one_run_are_refused(attnlab):
    said = attnlab("train", "-m", "optimizer.lr=1e-3,0.001", "--cfg")
    assert said.status == 2
    assert said.err == "attnlab: two of these jobs are one run; leave one out: optimizer.lr=0.001\n"
