"""Mixtures of experts and what training adds to the loss, from the command line to what a study says of its runs."""

import json
from pathlib import Path

import polars as pl
import pytest

from attnlab.analysis import compare, load_study
from attnlab.analysis.frames import runs_frame
from attnlab.analysis.tables import to_csv
from attnlab.training.run_directory import read_json

SMALL = ["data=text", "tokenizer=character", "model.d_model=16", "model.num_heads=2", "model.num_layers=2"]
SMALL += ["data.context_length=16", "data.batch_size=4", "trainer.max_steps=6", "trainer.log_every_n_steps=2"]
SMALL += ["trainer.val_check_interval=6", "data.max_validation_tokens=480", "task.evaluation_lengths=[1]"]
SMALL += [
    "task.evaluation_tokens=64",
    "trainer.threads=1",
    "progress=off",
    "trainer.precision=32",
    "trainer.compile=false",
]
EXPERTS = "feed_forward=mixture_of_experts"


@pytest.fixture
def small(library):
    return [*SMALL, f"data.path={library / 'text.txt'}"]


def test_a_run_reports_what_is_added_apart_and_counts_active_parameters(attnlab, small):
    chosen = [EXPERTS, "feed_forward@feed_forward.expert=swiglu", "feed_forward.z_coefficient=0.01"]
    said = attnlab("train", *small, *chosen, "task.z_loss=0.001", "model.extra_heads=1", "run_dir=run")
    assert said.status == 0, said.err
    counts = read_json(Path("run") / "run.json")["parameters"]
    idle = 3 * (8 - 2) * 3 * 16 * round(2 * 64 / 3)  # of two layers, and of the head's
    assert counts["total"] - counts["active_total"] == idle
    assert counts["non_embedding"] - counts["active_non_embedding"] == idle
    lines = [json.loads(line)["values"] for line in (Path("run") / "metrics.jsonl").read_text().splitlines()]
    added = {"train/balance_loss", "train/router_z_loss", "train/z_loss", "train/loss_2_ahead", "train/expert_load"}
    assert lines[0].keys() >= added | {"train/expert_load@layer=0", "train/expert_load@layer=1"}
    assert 1 <= lines[0]["train/expert_load"] <= 8 / 2
    reported = {name for values in lines for name in values if not name.startswith("train/")}
    assert reported.isdisjoint(name.replace("train/", "val/") for name in added)


def test_a_bias_moves_by_its_rate_each_step_and_is_in_the_checkpoint(attnlab, small):
    import torch

    chosen = [EXPERTS, "feed_forward.num_experts=4", "feed_forward.balance=bias", "feed_forward.gate=sigmoid"]
    assert attnlab("train", *small, *chosen, "run_dir=run").status == 0
    [path] = (
        sorted(Path("run/checkpoints").glob("*step=6*.ckpt"))[:1] or sorted(Path("run/checkpoints").glob("*.ckpt"))[:1]
    )
    state = torch.load(path, weights_only=True)["state_dict"]
    biases = [value for name, value in state.items() if name.endswith("balance.bias_E")]
    assert len(biases) == 2
    for bias in biases:  # six steps of 0.001 either way, or none
        steps = bias / 0.001
        torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)
        assert 0 < steps.abs().max() < 6.5


def test_a_study_of_experts_says_what_is_active(attnlab, small):
    said = attnlab("train", "-m", *small, "feed_forward=gelu,mixture_of_experts", "study.name=s")
    assert said.status == 0, said.err
    study = load_study("runs/s")
    frame = runs_frame(study)
    dense, sparse = (frame.filter(pl.col("feed_forward") == name) for name in ("gelu", "mixture_of_experts"))
    router, expert = 16 * 8, 2 * 16 * 64
    assert sparse["active_parameters"][0] - dense["active_parameters"][0] == 2 * (expert + router)
    assert sparse["parameters"][0] - dense["parameters"][0] == 2 * (7 * expert + router)
    comparison = compare(study)
    assert "active_parameters" in to_csv(comparison).splitlines()[0]
    assert any("active parameters (those that a token meets)" in caveat for caveat in comparison.caveats)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("feed_forward.top_k=9", "feed_forward.top_k must be at most num_experts=8, got 9"),
        ("feed_forward.top_k=1", "feed_forward.normalize: the weight of a single expert would always be 1"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_trained(attnlab, small, words, said):
    refused = attnlab("train", *small, EXPERTS, words)
    assert refused.status != 0
    assert said in refused.err


def test_further_tokens_are_predicted_where_all_are_targets(attnlab):
    refused = attnlab("train", "task=answers", "data=parity", "model.extra_heads=1")
    assert refused.status != 0
    assert "model.extra_heads: task=answers has no targets further ahead; accepted there: 0" in refused.err


@pytest.mark.parametrize("model", ["t5", "t5_prefix"])
def test_ul2_trains_models_that_read_and_write(attnlab, library, model):
    own = [f"model={model}", "model.d_model=16", "model.num_heads=2", "model.num_layers=1", "data=text_ul2"]
    own += ["task=span_corruption", "tokenizer=character", f"data.path={library / 'text.txt'}", "data.batch_size=4"]
    own += ["data.context_length=24", "trainer.max_steps=3", "trainer.val_check_interval=2", "trainer.threads=1"]
    own += ["schedule.warmup_steps=0", "data.max_validation_tokens=480", "progress=off", "run_dir=run"]
    said = attnlab("train", *own)
    assert said.status == 0, said.err
    final = read_json(Path("run") / "status.json")["final"]
    assert {"val/loss", "test/loss", "test/accuracy"} <= set(final)
