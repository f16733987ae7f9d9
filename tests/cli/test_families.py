"""Every family, with every position that its table allows, before and after its norms: it learns, and decodes as it was trained."""

import itertools
import json

import pytest
import torch

from attnlab.config import shipped
from attnlab.config.check import check
from attnlab.config.compose import ConfigSpace
from attnlab.config.seams import broken_rules
from attnlab.layers import Attention
from attnlab.layers.pointwise import Dropout
from attnlab.models import LanguageModel, Whisper
from attnlab.models.base import Seq2Seq
from attnlab.runs.build import build

FAMILIES = sorted(path.stem for path in (shipped("conf") / "model").glob("*.yaml"))
RESIDUALS = ("pre_ln", "post_ln")
STEPS = {"vit": 20}  # to learn something that shows; OTHERS of other families
OTHERS = 10
IN_A_GRID, CAUSAL = {"sinusoidal_2d", "learned_2d", "axial_rotary"}, {"xpos", "cope"}
WITH_IMAGES = {"clip", "siglip"}
OF_SEQUENCES = {"gpt", "ngpt", "bert", "encoder_decoder", "t5", "t5_shared", "t5_decoder", "t5_prefix"}
SMALL = {
    "model": {"d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 32, "dropout": 0.0, "patch_size": 2},
    "data": {"context_length": 24, "batch_size": 32, "batch_tokens": 400, "max_validation_tokens": 400},
    "optimizer": {"lr": 0.01},
}


@pytest.fixture(scope="module")
def space(library):
    with pytest.MonkeyPatch.context() as patch, ConfigSpace() as opened:
        patch.setenv("ATTNLAB_CACHE", str(library / "cache"))
        yield opened


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def compose(space, own_data, family, *more):
    """The family as its file has it, small and on small data."""
    words = [f"model={family}"]
    words += [*own_data(space, space.compose(words)), "tokenizer=character"]
    there = space.compose(words).resolved
    nothing = "speech_none" if family == "whisper" else "none"
    words += [f"augmentation={nothing}"] if "augmentation" in there["data"] else []
    words += [f"{g}.{f}={value}" for g, fields in SMALL.items() for f, value in fields.items() if f in there[g]]
    return space.compose([*words, *more])


def pairs(space, family, own):
    """Every position, before and after its norms in turn, so that some family has each pair; and the other with none. SigLIP is CLIP
    with another end to it, and has its own position alone.
    """
    turn = FAMILIES.index(family)
    positions, other = ([own], own) if family == "siglip" else (space.groups["position"], "none")
    found = [(position, RESIDUALS[(turn + at) % 2]) for at, position in enumerate(positions)]
    return [*found, *((other, residual) for residual in RESIDUALS if (other, residual) not in found)]


def allowed(space, own_data, family):
    """(position, residual) to a composed configuration for all that makes sense; those that change nothing in the model once."""
    alone = compose(space, own_data, family)
    if "position" not in alone.resolved["model"]:
        return {("none of its own",) * 2: alone}
    found = {}
    for position, residual in pairs(space, family, alone.names["position"]):
        # Where a position of patches makes no sense for texts, it is that of the images alone.
        place = "@model.image.position" if family in WITH_IMAGES and position in IN_A_GRID else ""
        seams = [
            f"position{place}={position}",
            *([f"residual={residual}"] if "residual" in alone.resolved["model"] else []),
        ]
        composed = compose(space, own_data, family, *seams)
        if not list(broken_rules(composed)):
            found.setdefault(json.dumps(composed.resolved["model"]), ((position, residual), composed))
    return dict(found.values())


def nats_of(task, batch):
    with torch.no_grad():
        nats, tokens, _ = task.loss_sums(batch)
    return float(nats / tokens)


def train(parts, data, seed=0, steps=OTHERS):
    """The task after some steps, and the loss on a batch of the validation part before and after them."""
    torch.manual_seed(seed)
    task = parts.build_task(data.dims())
    optimizer, batch = task.optimization.optimizer(task.model), next(iter(data.val_dataloader()))
    before = nats_of(task.eval(), batch)
    task.train()
    for step_batch in itertools.islice(iter(data.train_dataloader()), steps):
        nats, tokens, _ = task.loss_sums(step_batch)
        optimizer.zero_grad()
        (nats / tokens).backward()
        torch.nn.utils.clip_grad_norm_(task.model.parameters(), 1.0)
        optimizer.step()
    return task, before, nats_of(task.eval(), batch)


def assert_decodes_as_it_was_trained(model):
    """Token by token with what is kept, or all at once."""
    draw = torch.Generator().manual_seed(1)
    target = torch.randint(5, model.vocabulary_size, (3, 7), generator=draw)
    with torch.no_grad():
        if isinstance(model, LanguageModel):
            cache = model.new_cache(7)
            steps, expected = [model(token, cache=cache)[:, 0] for token in target.split(1, dim=1)], model(target)
        else:
            source = torch.randint(5, model.vocabulary_size, (3, 6), generator=draw)
            if isinstance(model, Whisper):  # which hears features
                source = torch.randn(3, model.num_mels, 6, generator=draw)
            is_source = torch.arange(6)[None] < torch.tensor([[6], [3], [1]])
            state = model.start(source, is_source, capacity=7)
            steps, expected = [model.step(token, state) for token in target.unbind(1)], model(source, target, is_source)
    torch.testing.assert_close(torch.stack(steps, dim=1), expected, rtol=1e-5, atol=1e-5)


def assert_all_learn(choices, steps=OTHERS):
    """Each of some configurations that share their data, by what they are called."""
    data = build(next(iter(choices.values())).resolved).data
    data.setup()
    for chosen, composed in choices.items():
        task, before, after = train(build(composed.resolved), data, steps=steps)
        assert after < before - 0.1, (chosen, before, after)
        if isinstance(task.model, (LanguageModel, Seq2Seq)):
            assert_decodes_as_it_was_trained(task.model)


def presets():
    """Files that differ from another in sizes, and in where dropout acts, alone: small, they are that one."""
    return {"encoder_decoder_base", "encoder_decoder_big"}


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(presets()))
def test_a_preset_is_its_family_in_another_size(space, own_data, preset):
    found = compose(space, own_data, preset, "residual=pre_ln")
    without = ("+attention.dropout=0.0", "+feed_forward.dropout=0.0")
    wanted = compose(space, own_data, "encoder_decoder", "residual=pre_ln", *without)
    assert found.resolved["model"] == wanted.resolved["model"]
    assert found.resolved["task"] == wanted.resolved["task"]


@pytest.mark.parametrize(
    ("preset", "parameters", "rate"),
    [("encoder_decoder_base", 63_082_496, 0.1), ("encoder_decoder_big", 214_245_376, 0.3)],
)
@pytest.mark.parametrize("seams", [[], ["attention=grouped_query", "feed_forward=swiglu", "residual=pre_ln"]])
def test_a_preset_is_the_model_of_the_paper(space, preset, parameters, rate, seams):
    composed = space.compose([f"model={preset}", *seams])
    check(composed)
    with torch.device("meta"):
        model = build(composed.resolved).model(vocabulary_size=37000, source_vocabulary_size=37000)
    if not seams:  # table 3 of Vaswani et al. 2017 rounds to 65 M and 213 M
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    # Section 5.4: dropout on the output of every sublayer and on the sums of embeddings and positions.
    rates = {name: module.rate for name, module in model.named_modules() if isinstance(module, Dropout)}
    layers = [f"{stack}.layers.{i}.residual.dropout" for stack in ("encoder", "decoder") for i in range(6)]
    assert rates == dict.fromkeys(["encoder.dropout", "decoder.dropout", *layers], rate)
    assert {module.dropout for module in model.modules() if isinstance(module, Attention)} == {0.0}


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in presets()])
def test_a_family_learns_and_decodes_with_every_position_and_residual(space, own_data, family):
    choices = allowed(space, own_data, family)
    if family in OF_SEQUENCES and not family.startswith("t5_"):
        refused = IN_A_GRID if family in ("gpt", "ngpt") else IN_A_GRID | CAUSAL
        assert {position for position, _ in choices} == set(space.groups["position"]) - refused
    if family in ("vit", "clip"):
        assert {position for position, _ in choices} == set(space.groups["position"]) - CAUSAL
    assert choices
    assert_all_learn(choices, STEPS.get(family, OTHERS))


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_translation_by_recurrences_learns_and_decodes_with_every_attention(space, own_data, cell):
    kinds = ("none", "bahdanau", "luong")
    assert_all_learn(
        {kind: compose(space, own_data, "recurrent", f"model.cell={cell}", f"model.attention={kind}") for kind in kinds}
    )


CLASSIFIER = ["model=bert", "task.label_smoothing=0.1"]
TASKS = {
    "causal_lm": ["model=gpt", "data.context_length=16"],
    "masked_lm": ["model=bert", "data.next_sentence=true", "data.context_length=16"],
    "translation": ["model=encoder_decoder", "task.num_beams=1", "task.max_extra_length=2"],
    "span_corruption": ["model=t5", "task=span_corruption", "data=text_spans", "data.path=x", "data.context_length=32"],
    "image_classification": ["model=vit", "data=digits"],
    "sequence_classification": [*CLASSIFIER, "task=sequence_classification", "data=tsv", "data.path=x"],
    "token_classification": ["model=bert", "task=token_classification", "data=conll", "data.path=x"],
    "contrastive": ["model=clip"],
    "span_extraction": ["model=bert", "task=span_extraction", "data=squad_files", "data.path=x"],
    "text_to_text": [
        "model=t5",
        "task=text_to_text",
        "data=text_to_text",
        "task.num_beams=1",
        "task.max_extra_length=2",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_names_the_metrics_that_it_reports(space, own_data, library, name):
    words = TASKS[name]
    if name == "text_to_text":
        path = library / "pairs.tsv"
        source = f"{{_target_: attnlab.data.ParallelText, language_pair: en-de, path: {path}, split: [0.8, 0.1, 0.1]}}"
        one = f"+data.tasks.mine={{_target_: attnlab.data.TextTask, prefix: mine, source: {source}}}"
        words = [*words, "~data.tasks.german", "~data.tasks.dutch", one]
    else:
        words = [*words, *own_data(space, space.compose(words))]
    small = [f"model.{key}={value}" for key, value in SMALL["model"].items() if key not in ("d_ff", "patch_size")]
    composed = space.compose([*words, *small, "tokenizer=character"])
    data = build(composed.resolved).data
    data.setup()
    task = build(composed.resolved).build_task(data.dims()).eval()
    with torch.no_grad():
        found = task.validate(data) | task.evaluate(data)
    assert found
    assert [metric for metric in found if not task.reports(metric, composed.resolved)] == []
    named = {metric for known in task.metrics(composed.resolved) for metric in known.names() if "*" not in metric}
    assert {metric for metric in named - set(found) - set(task.unavailable) if "loss" in metric} == set()
    assert not task.reports("test/natz", composed.resolved)
