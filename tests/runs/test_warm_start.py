"""Another run's weights as a start, by `model.init_from` or `task.pretrained`: what does not fit is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attnlab.config import UsageError, shipped
from attnlab.config.compose import read_yaml
from attnlab.config.identity import IN_INIT_FROM, NotThere, inherit, own_choices
from attnlab.layers import PositionEncoding
from attnlab.models import ViT
from attnlab.runs.record import checkpoint_of, read_tensors
from attnlab.runs.trained import load_run
from attnlab.training.run_directory import FORMAT, read_json, write_json, write_text

STEPS = ["trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.threads=1", "schedule.warmup_steps=0"]
SHARED = dict(word.split("=") for word in STEPS if "threads" not in word)
RUN = Path("runs/train/mine/seed=0")


@pytest.fixture
def go_on(attnlab, imported):
    """Trains two steps from an imported model, or from the run in a folder, and gives what was said."""

    def run(kind, *words, name="mine"):
        start = kind if isinstance(kind, Path) else imported(kind)
        return attnlab("train", f"model.init_from={start}", f"cell={name}", *STEPS, *words)

    return run


CHANGES = {
    "gpt2": (
        ["position=alibi"],
        ["position: ALiBi here, Learned there", "kept 35 tensors as they are", "left behind: 1: stack.position.table.weight"],
    ),
    "llama": (
        ["attention=multi_head"],
        ["attention.num_key_value_heads: 2 here, 1 there", "converted: 4: ", "(each head 2 times)"],
    ),
    "bert": (["feed_forward=relu"], ["feed_forward: ReLU here, GELU there", "kept ALL tensors as they are"]),
    "t5": (["residual=sandwich"], ["residual: Sandwich here, PreNorm there", "fresh: 5: encoder.layers.0.residual.output_norms.0.weight"]),
    "bart": (["norm=rms_norm"], ["residual.norm: RMSNorm here, LayerNorm there", "left behind: "]),
}  # fmt: skip


@pytest.mark.parametrize("kind", CHANGES)
def test_every_family_goes_on_under_an_ablation_and_says_what_was_kept(kind, go_on, attnlab, imported):
    words, expected = CHANGES[kind]
    said = go_on(kind, *words)
    assert said.status == 0, said.err
    count = len(read_tensors(checkpoint_of(imported(kind), "last")))
    for line in (line.replace("ALL", str(count)) for line in expected):
        assert line in said.err
    chosen = {**dict(word.split("=") for word in words), "init_from": kind}
    assert read_json(RUN / "run.json")["cell"] == SHARED | chosen
    assert json.loads(attnlab("evaluate", str(RUN)).out)


def test_without_a_step_nothing_has_changed(imported, attnlab, here):
    """The start itself: with a learning rate of 0 the run evaluates as the one that it started from."""
    before = json.loads(attnlab("evaluate", str(imported("llama"))).out)
    said = attnlab(
        "train",
        f"model.init_from={imported('llama')}",
        *STEPS,
        "optimizer.lr=0",
        "optimizer.weight_decay=0",
        "cell=mine",
    )
    assert said.status == 0, said.err
    assert "kept 21 tensors as they are" in said.err
    assert "differ" not in said.err
    assert json.loads(attnlab("evaluate", str(RUN)).out) == pytest.approx(before)


def test_positions_are_dropped_after_training_and_a_short_recalibration_follows(attnlab, here, tiny):
    """DroPE (Gelberg et al. 2026, arXiv 2512.12167): a rotary run, no positions, some steps more."""
    pretraining = ["position=rotary", "trainer.max_steps=120", "optimizer.lr=1e-2", "run_dir=rotary"]
    assert attnlab("train", *tiny, *pretraining).status == 0
    given = ["model.init_from=rotary", "position=none", "trainer.max_steps=30", "schedule.warmup_steps=0"]
    figures = {}
    for name, words in {"start": ["optimizer.lr=0"], "drope": ["optimizer.lr=3e-3"]}.items():
        said = attnlab("train", *given, *words, f"run_dir={name}", "progress=plain")
        assert said.status == 0, said.err
        assert "position: PositionEncoding here, Rotary there" in said.err
        assert not {"fresh:", "left behind:"} & set(said.err.split())
        figures[name] = json.loads(attnlab("evaluate", name).out)
    figures["rotary"] = json.loads(attnlab("evaluate", "rotary").out)
    ours, theirs = (load_run(Path(run), which)[1].model for run, which in (("start", "last"), ("rotary", "best")))
    assert type(ours.stack.position) is PositionEncoding
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=0, atol=0)
    tokens = torch.arange(12)[None] % 11
    ours.eval(), theirs.eval()
    assert not torch.allclose(ours(tokens), theirs(tokens), atol=1e-3)
    theirs.stack.position = PositionEncoding()  # the rotary run's weights without its positions
    torch.testing.assert_close(ours(tokens), theirs(tokens))
    loss = {name: found["test/loss@1x"] for name, found in figures.items()}
    assert loss["rotary"] < loss["start"]  # what it loses without positions
    assert loss["drope"] < loss["start"]  # and finds again


def test_a_run_that_was_moved_gives_its_own_tokenizer(imported, go_on, attnlab, here):
    moved = Path(shutil.copytree(imported("gpt2"), here / "elsewhere/seed=0"))
    config = (moved / "run.json").read_text().replace(str(imported("gpt2")), "gone")
    (moved / "run.json").write_text(config)
    said = go_on(moved.relative_to(here), "position=none")
    assert said.status == 0, said.err
    assert (RUN / "tokenizer.json").read_bytes() == (moved / "tokenizer.json").read_bytes()
    shutil.rmtree(moved)
    assert attnlab("evaluate", str(RUN)).status == 0


@pytest.mark.slow
def test_a_chain_and_another_text(imported, go_on, attnlab, library, here):
    """A run of a run; on another text it keeps the tokenizer that its weights belong to."""
    small = [
        "data=text",
        f"data.path={library / 'text.txt'}",
        "data.context_length=16",
        "data.batch_size=4",
        "task.evaluation_lengths=[1]",
    ]
    sizes = [
        "model.d_model=16",
        "model.num_heads=2",
        "model.num_layers=1",
        "tokenizer=bpe",
        "tokenizer.vocabulary_size=280",
    ]
    assert attnlab("train", *small, *sizes, *STEPS, "cell=first", "progress=off").status == 0
    first = Path("runs/train/first/seed=0")
    other = here / "other.txt"
    other.write_text("another text altogether, of other words. " * 200)
    said = go_on(first, f"data.path={other}", name="second")
    assert said.status == 0, said.err
    count = len(read_tensors(checkpoint_of(first, "last")))
    assert f"kept {count} tensors as they are" in said.err
    second = Path("runs/train/second/seed=0")
    assert (second / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    said = go_on(second, "feed_forward=swiglu")
    assert said.status == 0, said.err
    assert read_json(RUN / "run.json")["config"]["data"]["path"] == str(other)
    assert read_json(RUN / "run.json")["cell"] == {**SHARED, "feed_forward": "swiglu", "init_from": "second"}


def test_a_classifier_from_an_imported_encoder_by_either_way(imported, go_on, attnlab, library):
    labelled = [
        "task=sequence_classification",
        "data=tsv",
        f"data.path={library}/labelled",
        "data.batch_tokens=400",
        "data.max_length=40",
    ]
    said = go_on("bert", *labelled)
    assert said.status == 0, said.err
    assert "fresh: 2: output.weight, output.bias" in said.err
    other = ["model=bert", f"task.pretrained={imported('bert')}", "cell=other", *labelled, *STEPS]
    said = attnlab("train", *other)
    assert said.status == 2
    assert "model.d_model: 16 there, 128 here" in said.err
    assert "model.init_from=RUN in place of model and task.pretrained takes that run's" in said.err
    sizes = [
        "model.d_model=16",
        "model.num_heads=2",
        "model.num_layers=2",
        "model.d_ff=24",
        "norm.eps=1e-12",
        "+model.num_segments=2",
    ]
    said = attnlab("train", *other, *sizes, "model.max_length=64")
    assert said.status == 0, said.err
    one, two = (json.loads(attnlab("evaluate", f"runs/train/{name}/seed=0").out) for name in ("mine", "other"))
    assert one == pytest.approx(two, abs=1e-4)


def test_a_vit_goes_on_with_images_of_another_size_and_other_classes(imported, go_on, attnlab, images):
    said = go_on(
        "vit", f"data.path={images(32, 3)}", "data.source.image_size=32", "optimizer.lr=0", "optimizer.weight_decay=0"
    )
    assert said.status == 0, said.err
    assert "image_size: [32, 32] here, [16, 16] there; num_classes: 3 here, 2 there" in said.err
    assert "positions (2, 2) -> (4, 4)" in said.err
    assert "fresh: 2: head.weight ((2, 16) there, (3, 16) here), head.bias" in said.err
    _, source = load_run(imported("vit"), "last")
    assert isinstance(source.model, ViT)
    expected = source.model.at_size(32).state_dict()
    for name, tensor in read_tensors(checkpoint_of(RUN, "last")).items():
        if not name.startswith("head.") and not name.endswith("_extra_state"):
            torch.testing.assert_close(tensor, expected[name], atol=0, rtol=0)
    assert attnlab("evaluate", str(RUN)).status == 0


@pytest.mark.slow
def test_a_multirun_names_each_job_by_its_own_choices(imported, attnlab, here):
    said = attnlab(
        "train",
        "-m",
        f"model.init_from={imported('gpt2')}",
        "position=learned,alibi",
        "study.name=many",
        *STEPS,
        "progress=off",
    )
    assert said.status == 0, said.err
    shared = "max_steps=2,val_check_interval=2"
    names = [f"init_from=gpt2,{other}warmup_steps=0,{shared}" for other in ("", "position=alibi,")]
    assert sorted(path.name for path in Path("runs/many").iterdir() if path.is_dir()) == sorted(names)
    assert attnlab("compare", "many").status == 0
    assert attnlab("status", "many").status == 0


@pytest.mark.slow
def test_a_study_whose_cells_all_start_from_one_run(imported, attnlab, study):
    start = imported("gpt2")
    study("after", shared=[f"model.init_from={start}", *STEPS, "progress=off"], factors={"position": ["learned", "alibi"]},
          baseline={"position": "learned"}, seeds=1, metric={"name": "test/loss@1x", "better": "lower", "margin": 0.1})  # fmt: skip
    said = attnlab("sweep", "after", "hydra/launcher=basic")
    assert said.status == 0, said.err
    record = read_json(Path("runs/after/position=alibi/seed=0/run.json"))
    assert record["config"]["model"]["d_model"] == 16
    assert record["config"]["model"]["init_from"] == str(start)
    assert record["cell"] == {"position": "alibi"}
    for command in ("status", "compare", "report"):
        assert attnlab(command, "after").status == 0
    assert {"differences.pdf", "differences.png"} <= {path.name for path in Path("runs/after/figures").iterdir()}


BEFORE = "${runs_dir}/before/rotary/seed=${seed}"


@pytest.mark.slow
def test_each_seed_of_a_study_starts_from_its_own_run_of_a_study_that_it_needs(attnlab, study, tiny):
    """Nothing of it can be composed before those have run: their choices are its defaults."""
    shared = [*(word for word in tiny if "position" not in word), "position=rotary"]
    metric = {"name": "test/loss@1x", "better": "lower"}
    study(
        "before",
        shared=shared,
        factors={},
        cells=[{"name": "rotary", "overrides": []}],
        baseline={},
        seeds=1,
        metric=metric,
    )
    start = [
        f'model.init_from="{BEFORE}"',
        "optimizer.lr=0",
        "optimizer.weight_decay=0",
        "trainer.max_steps=2",
        "trainer.val_check_interval=2",
    ]
    study("after", needs=["before"], shared=start, factors={"position": ["rotary", "none"]}, baseline={"position": "rotary"},
          seeds=1, metric=metric)  # fmt: skip
    said = attnlab("sweep", "after", "--dry-run", "hydra/launcher=basic")
    assert said.status == 0, said.err
    assert "what after takes can be told when before, which it starts from, is over" in said.out + said.err
    assert not Path("runs/before").exists()
    for seeds in (1, 2):  # also where seeds are added to both
        said = attnlab("sweep", "after", f"study.seeds={seeds}", "hydra/launcher=basic")
        assert said.status == 0, said.err
        for seed in range(seeds):
            run, own = Path(f"runs/after/position=none/seed={seed}"), Path(f"runs/before/rotary/seed={seed}")
            assert read_json(run / "run.json")["config"]["model"]["init_from"] == str(own)
            assert read_json(run / "run.json")["config"]["tokenizer"]["path"] == str(own)
            weights = read_tensors(
                checkpoint_of(own, "last" if not (own / "checkpoints/best.ckpt").is_file() else "best")
            )
            for name, tensor in read_tensors(checkpoint_of(run, "last")).items():
                torch.testing.assert_close(tensor, weights[name], rtol=0, atol=0)
    assert attnlab("sweep", "after", "study.seeds=2", "--cfg").out.count("attnlab train") == 2 + 4


def test_what_a_start_by_seed_comes_to(tmp_path):
    write_json(
        run := tmp_path / "before/rotary/seed=3/run.json",
        {"format": FORMAT, "cell_name": "rotary", "overrides": ["position=rotary", "optimizer.lr=1"]},
    )
    words = [f'model.init_from="{BEFORE}"', f"runs_dir={tmp_path}"]
    assert inherit([*words, "seed=3"]) == ["position=rotary", *words, "seed=3"]
    assert own_choices(["position=rotary", *words, "seed=3"]) == ["init_from=rotary", *words[1:], "seed=3"]
    write_text(run.with_name("tokenizer.json"), "{}")
    assert inherit([*words, "seed=3"])[1:3] == ["tokenizer=pretrained", f'tokenizer.path="{BEFORE}"']
    with pytest.raises(NotThere, match=r"there is no run in .*/before/rotary/seed=0 \(no run.json\)") as missing:
        inherit(words)
    assert missing.value.run == tmp_path / "before/rotary/seed=0"
    with pytest.raises(UsageError, match="seed must be one value here"):
        inherit([*words, "seed=3,4"])
    with pytest.raises(UsageError, match=r"\$\{runs_dir\} and \$\{seed\} alone can stand in it"):
        inherit(['model.init_from="${runs_dir}/${cell}"'])
    defaults = read_yaml(shipped("conf") / "train.yaml")
    assert {key: defaults[key] for key in IN_INIT_FROM} == IN_INIT_FROM


REFUSED = {
    "no run": ("model.init_from=nowhere", [], "model.init_from=nowhere: there is no run (no run.json); give the directory of a run"),
    "several": ("model.init_from=\"one,two\"", [], "of several runs each is a cell of a study"),
    "width": (None, ["model.d_model=32"], "tensors of other shapes, which no part that was chosen anew explains: embedding.weight: (323, 16) there, (323, 32)"),
    "depth of the feed-forward": (None, ["model.d_ff=32"], "(64, 16) there, (32, 16) here"),
    "tokenizer": (None, ["tokenizer=byte"], "tokenizer.json there is not this run's, so each token would get the weights of another"),
    "longer table": (None, ["model.max_length=65"], "stack.position.table.weight: (64, 16) there, (65, 16) here"),
    "family": (None, ["model=bert", "task=masked_lm"], "task"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_one_message(name, imported, attnlab, here):
    given, words, message = REFUSED[name]
    said = attnlab("train", given or f"model.init_from={imported('gpt2')}", *words, *STEPS, "cell=mine")
    assert said.status == 2
    assert message in said.err
    assert "Traceback" not in said.err
    assert not (RUN / "run.json").exists()


@pytest.mark.slow
def test_what_is_refused_can_be_mended_under_the_same_name(imported, attnlab, here):
    words = [f"model.init_from={imported('gpt2')}", *STEPS, "cell=mine"]
    assert attnlab("train", *words, "tokenizer=byte").status == 2
    said = attnlab("train", *words)
    assert said.status == 0, said.err


SMALL = [
    "model=bert", "position=rotary", "model.d_model=16", "model.num_heads=4", "model.num_layers=1", "tokenizer.vocabulary_size=280",
    "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.threads=1", "schedule.warmup_steps=0",
]  # fmt: skip
WORDS = Path("runs/words/bert/seed=0")
TUNED = [
    "task=sequence_classification",
    "data=tsv",
    "data.batch_tokens=400",
    f'task.pretrained="{WORDS}"',
    "cell=tuned",
]


@pytest.fixture
def tuned(attnlab, library):
    """Pretrains a small BERT; gives a command that fine-tunes it under further overrides."""
    text = ["data=text_masked", f"data.path={library / 'text.txt'}", "data.context_length=16", "data.batch_size=4"]
    assert attnlab("train", *text, *SMALL, "study.name=words", "cell=bert", "progress=off").status == 0
    path = f"data.path={library / 'labelled'}"
    return lambda *overrides: attnlab("train", *TUNED, path, *SMALL, *overrides, "progress=plain")


DIFFERENCES = {
    "model.num_heads=2": "model.num_heads: 4 there, 2 here",
    "position=none": "model.position._target_: attnlab.layers.Rotary there, attnlab.layers.PositionEncoding here",
    "position.base=500": "model.position.base: 10000.0 there, 500 here",
    "residual=pre_ln": "model.residual._target_: attnlab.layers.PostNorm there, attnlab.layers.PreNorm here",
    "model.embedding_norm=false": "model.embedding_norm: True there, False here",
    "model.scale_embedding=true": "model.scale_embedding: False there, True here",
    "feed_forward=relu": "model.feed_forward._target_: attnlab.layers.GELU there, attnlab.layers.ReLU here",
    "attention.window=4": "model.attention.window: None there, 4 here",
}


def test_an_encoder_that_computes_something_else_with_these_weights_is_refused(tuned):
    for override, difference in DIFFERENCES.items():
        said = tuned(override)
        assert said.status == 2
        assert "task.pretrained must be a run of this encoder" in said.err
        assert difference in said.err
    assert not Path("runs/train").exists()


def test_what_leaves_an_encoder_as_it_is_may_differ(tuned):
    said = tuned("model.dropout=0.3", "init=xavier", "attention.backend=math", "model.max_length=150")
    assert said.status == 0, said.err
    assert "fresh: none and the output" in said.err


@pytest.mark.slow
def test_another_tokenizer_of_the_same_size_is_refused(tuned):
    said = tuned("data.tokenizer_from=null")
    assert said.status == 2
    assert f"task.pretrained={WORDS}: tokenizer.json there is not this run's" in said.err
    assert "leave data.tokenizer_from and tokenizer out" in said.err
    shutil.copytree(WORDS, "elsewhere/run")
    said = tuned("data.tokenizer_from=elsewhere/run", "study.name=same")
    assert said.status == 0, said.err  # the same tokenizer, from another place


def test_a_vit_goes_on_at_a_higher_resolution(attnlab):
    noise = np.random.default_rng(0)
    for name in ("bright", "dark"):
        Path("images", name).mkdir(parents=True)
        for number in range(20):
            pixels = noise.integers(0, 100, (16, 16), dtype=np.uint8) + 100 * (name == "bright")
            Image.fromarray(pixels.astype(np.uint8)).save(f"images/{name}/{number}.png")
    small = ["model=vit", "data=image_folder", "data.path=images", "augmentation=none", "model.d_model=16", "model.num_heads=2",
             "model.num_layers=1", "data.batch_size=8", "trainer.max_steps=2", "trainer.threads=1", "schedule.warmup_steps=0"]  # fmt: skip
    said = attnlab("train", *small, "data.source.image_size=8", "cell=low", "progress=off")
    assert said.status == 0, said.err
    high = [*small, "data.source.image_size=16", 'task.pretrained="runs/train/low/seed=0"']
    said = attnlab("train", *high, "cell=high", "progress=plain")
    assert said.status == 0, said.err
    assert "positions (2, 2) -> (4, 4)" in said.err
    final = read_json(Path("runs/train/high/seed=0/status.json"))["final"]
    said = attnlab("evaluate", "runs/train/high/seed=0")
    assert said.status == 0, said.err
    assert f"{final['test/loss']:.6f}"[:6] in said.out
    assert attnlab("train", *high, "model.patch_size=2", "cell=other").status == 2
