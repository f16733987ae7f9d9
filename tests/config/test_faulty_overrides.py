"""Overrides with a mistake: each is refused in one sentence that names its field, and before any data are read."""

import re

import pytest
import yaml
from tests.config.changes import changed

from attnlab.config import UsageError
from attnlab.config.check import check
from attnlab.config.compose import ConfigSpace
from attnlab.runs.build import dry_build, refuse_for_this_machine

# What is chosen, and below it fields with a value that each must not have.
FAULTS = {
    "": """
        seed: [-1, 1.5, 4294967296, null, x, true]
        progress: [loud, 1, null]
        runs_dir: [null, "", 3]
        run_dir: ["", 3]
        cell: [a/b, "", ..]
        study.name: [null, a/b, .x]
        model.d_model: [0, -64, 64.5, .inf, "64", true, null]
        model.num_heads: [0, -1, 1.0]
        model.num_layers: [0, -3]
        model.d_ff: [0, -1, .nan]
        model.dropout: [1, -0.1, .nan, x]
        model.max_length: [0]
        model.tie_embeddings: [perhaps, 1]
        model.position: [3, alibi]
        data.context_length: [0, -1, 2.5]
        data.batch_size: [0, -32]
        data.split: [[.nan, 0.5, 0.5], [0.5, 0.5], [0, 0.5, 0.5], [0.9, 0.2, -0.1], [0.5, 0.1, 0.1], abc, []]
        data.max_validation_tokens: [0, -1]
        data.path: ["", 3]
        data.seed: [-1]
        optimizer.lr: [-1, .inf, .nan, fast]
        optimizer.betas: [[1, 1], [0.9], [0.9, 1.0], 0.9, [-0.1, 0.9]]
        optimizer.eps: [0, -1, .inf]
        optimizer.weight_decay: [-5, .nan, .inf]
        schedule.warmup_steps: [-1, 1001, 2.5]
        schedule.min_lr_ratio: [2, -0.1]
        position.base: [0, 1, -10000, .inf]
        position.fraction: [0, 1.5, .nan]
        norm.eps: [-1, 0, .nan]
        attention.window: [0, -4]
        attention.soft_cap: [0, -30]
        attention.scale: [0, -1]
        attention.d_head: [0]
        attention.backend: [quick]
        trainer.max_steps: [0, -1, 1e3, .inf]
        trainer.accumulate_grad_batches: [0]
        trainer.gradient_clip_val: [0, -1, .inf, abc]
        trainer.val_check_interval: [-1, 0.5]
        trainer.log_every_n_steps: [0]
        trainer.checkpoint_every_seconds: [-1, .nan]
        trainer.checkpoint_budget_gb: [-0.1, .inf]
        trainer.plateau_share: [0, 1.5, .nan]
        trainer.diagnostics_every: [0]
        trainer.device: [gpu, cuda0, null, tpu]
        trainer.devices: [0, -1]
        trainer.num_nodes: [0]
        trainer.threads: [0, 100000]
        trainer.precision: [64, fp16]
        trainer.strategy: [fsdp]
        task.evaluation_lengths: [[], [0], [1, 2.5], 4]
        task.evaluation_tokens: [0]
    """,
    "tokenizer=bpe": "tokenizer.vocabulary_size: [0, 255, -1, 99999999, 4096.5]",
    "averaging=ema": "averaging.decay: [1, -0.1, .nan]",
    "batch_ramp=linear": "{batch_ramp.start: [0, 1.5, .nan], batch_ramp.steps: [0, 2.5], batch_ramp.stages: [0, 201]}",
    "batch_ramp=staged": "{batch_ramp.stages: [[[0.5]], [[2, 5]], [[0.5, 1.5]]], batch_ramp.multiple_of: [0]}",
    "averaging=last_checkpoints": "averaging.count: [0]",
    "optimizer=adafactor": "{optimizer.beta2_decay: [0.8], optimizer.clip: [0]}",
    "optimizer=muon": "{optimizer.momentum: [1], optimizer.ns_steps: [0, 100]}",
    "optimizer=lion": "optimizer.lr: [0]",
    "schedule=wsd": "schedule.decay_steps: [-1, 1001]",
    "schedule=noam": "schedule.factor: [0]",
    "residual=deepnorm": "{residual.alpha: [0], residual.beta: [-1]}",
    "norm=dynamic_tanh": "norm.alpha: [0]",
    "attention=grouped_query": "attention.num_key_value_heads: [0, 3]",
    "position=learned": "position.offset: [-1]",
    "position=relative_bias": "{position.num_buckets: [0, 3], position.max_distance: [0, 2]}",
    "position=rotary_yarn": "{position.factor: [0.5], position.beta_slow: [0, 64], position.attention_factor: [0], position.original_length: [0]}",
    "data=text": "data.path: [null, /nowhere/at/all]",
    "logger=wandb": "{logger.mode: [perhaps], logger.tags: [abc, [1]]}",
    "model=vit": """
        model.patch_size: [0, 5]
        model.registers: [-1]
        model.pooling: [max]
        augmentation.crop: [[0, 1], [0.5, 1.5], [0.5]]
        augmentation.scale: [[1.2, 0.8]]
        augmentation.shift: [0.5, -1]
        augmentation.degrees: [181]
        augmentation.magnitude: [31]
        augmentation.mixup: [-1]
        augmentation.flip: [2]
        data.validation_share: [0.9]
        task.label_smoothing: [1]
    """,
    "model=bert": """
        data.masking.probability: [0, 1]
        data.masking.mask_share: [1.5, 0.95]
        data.context_length: [1]
        data.masks: [other]
    """,
    "model=t5": """
        task.num_beams: [0]
        task.length_penalty: [-1]
        task.max_extra_length: [-1]
        data.max_length: [1]
        data.batch_tokens: [1]
        model.num_decoder_layers: [0]
    """,
    "model=convolutional": "model.kernel_size: [0, 4]",
    "model=recurrent": "{model.cell: [rnn], model.score: [cosine]}",
}
CASES = [
    (chosen, field, value)
    for chosen, fields in FAULTS.items()
    for field, values in yaml.safe_load(fields).items()
    for value in values
]


@pytest.fixture(scope="module")
def composed():
    """A configuration for each choice, composed once."""
    with ConfigSpace() as space:
        yield {chosen: space.compose(chosen.split()) for chosen in FAULTS if chosen != "data=text"} | {
            "data=text": space.compose(["data=text", "data.path=/nowhere"])
        }


def before_data_are_read(composed):
    check(composed)
    dry_build(composed.resolved)
    refuse_for_this_machine(composed.resolved)


def test_they_are_many():
    assert len(CASES) >= 120


@pytest.mark.parametrize(("chosen", "field", "value"), CASES, ids=lambda part: str(part))
def test_a_faulty_override_is_refused_in_one_sentence(composed, chosen, field, value):
    with pytest.raises(UsageError) as caught:
        before_data_are_read(changed(composed[chosen], field, value, [*chosen.split(), f"{field}={value}"]))
    said = str(caught.value)
    assert len(said.splitlines()) == 1, said
    assert field.rpartition(".")[2] in said or "data.masking" in said
    assert re.search(r"must be .+, got |accepted: |accepted are |does not exist|longer than the training", said), said
    assert not re.search(r"Error|Traceback|object has no|positional argument", said), said
