"""Model cards as the hub reads them, with the figures of a stored study; a whole study written out."""

import shutil
from pathlib import Path

import pytest
import yaml
from tests.stored_studies import write_position_study

from attnlab.analysis import compare, load_study, to_csv
from attnlab.data.special_tokens import SpecialTokens
from attnlab.interop import build
from attnlab.runs.clients import Exported
from attnlab.runs.record import read_record
from attnlab.studies.cards import _study_of, card

CONFIG = {
    "model": {"_target_": "attnlab.models.GPT", "_partial_": True, "d_model": 8, "d_ff": None,
              "position": {"_target_": "attnlab.layers.ALiBi", "_partial_": True}},
    "task": {"_target_": "attnlab.tasks.CausalLanguageModelling"},
    "data": {"source": {"_target_": "attnlab.data.TextFiles", "_partial_": True}},
    "trainer": {"max_steps": 800, "device": "cpu"},
}  # fmt: skip


@pytest.fixture
def exported(tmp_path):
    """A run of a stored study, as it is before it is written."""
    study = write_position_study(tmp_path / "positions")

    def read(position, seed=0):
        directory = study / f"position={position}" / f"seed={seed}"
        record = {**read_record(directory), "config": CONFIG, "name": f"positions-{position}"}
        record["sources"] = {"my_parts": "0123456789abcdef"}
        settings = {
            "model": "GPT",
            "vocabulary_size": 9,
            "max_length": 8,
            "d_model": 8,
            "num_heads": 2,
            "num_layers": 1,
        }
        return Exported(directory, record, settings, build(settings), None, None, SpecialTokens())

    return read


def test_the_hub_reads_the_figures_of_a_card(exported):
    from huggingface_hub import ModelCard

    found = exported("alibi")
    _, run = _study_of(found.directory)
    read = ModelCard(card("last", _study_of(found.directory), found)).data
    assert (read.library_name, read.pipeline_tag, read.tags) == ("transformers", "text-generation", ["attnlab"])
    assert {result.metric_name: result.metric_value for result in read.eval_results} == run.final
    assert {(result.dataset_name, result.task_type) for result in read.eval_results} == {
        ("TextFiles", "text-generation")
    }


def test_a_card_says_what_the_comparison_says(exported):
    found = exported("alibi")
    text = card("last", _study_of(found.directory), found)
    assert "> Which position encoding generalises beyond the training length?" in text
    comparison = compare(load_study(found.directory.parent.parent))
    alibi = next(row for row in comparison.cells if row.label == "alibi")
    interval, apart = alibi.interval, alibi.difference.interval
    assert f"**{interval.mean:.4f} ({interval.low:.4f} to {interval.high:.4f})**, the mean of 4 seeds" in text
    against = f"Against the baseline sinusoidal: {apart.mean:+.4f} ({apart.low:+.4f} to {apart.high:+.4f}), better."
    assert against in text
    assert f"{alibi.label},test/loss@8x,{interval.mean:.10g}"[:20] in to_csv(comparison).replace("position=", "")
    base = exported("sinusoidal")
    assert "It is the baseline of the study." in card("last", _study_of(base.directory), base)


def test_a_card_shows_the_configuration_and_how_to_load_and_make_it(exported):
    found = exported("rotary", 1)
    text = card("best", _study_of(found.directory), found)
    size = sum(parameter.numel() for parameter in found.model.parameters())
    assert f"GPT, {size:,} parameters, seed 1, trained on `TextFiles`. Its choices: `position=rotary`." in text
    shown = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert shown == {
        "model": {"class": "models.GPT", "d_model": 8, "position": "layers.ALiBi"},
        "task": "tasks.CausalLanguageModelling",
        "data": {"source": "data.TextFiles"},
        "trainer": {"max_steps": 800},
    }
    assert 'AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)' in text
    assert "Where Python finds attnlab, my_parts: `modeling_attnlab.py` imports attnlab" in text
    assert "```bash\nattnlab train position=rotary seed=1\n```" in text
    assert "commit `0123456789abcdef`; the checkpoint `best`." in text


def test_a_run_outside_of_studies_has_a_card_without_figures(exported, tmp_path):
    found = exported("none")
    alone = tmp_path / "elsewhere" / "run"
    shutil.copytree(found.directory, alone)
    assert _study_of(alone) is None
    text = card("last", None, found)
    assert "## Figures" not in text
    assert "model-index" not in text


@pytest.mark.slow
def test_all_finished_runs_of_a_study_are_written(study, attnlab, here):
    from transformers import AutoModelForCausalLM

    study("arms", factors={"position": ["learned", "none"]}, metric={"name": "test/loss@1x", "better": "lower"})
    assert attnlab("sweep", "experiments/arms").status == 0
    (here / "runs/arms/position=none/seed=1/status.json").write_text('{"state": "failed", "error": "no disk"}')
    said = attnlab("export", "arms", "--to", "out")
    assert said.status == 0, said.err
    assert "left out: position=none/seed=1 (interrupted: no disk)" in said.err
    places = [Path(f"out/position={name}/seed={seed}") for name, seed in (("learned", 0), ("learned", 1), ("none", 0))]
    assert [line.split(" (")[0] for line in said.out.splitlines()] == [
        f"{place}: {name}" for place, name in zip(places, ("gpt2", "gpt2", "attnlab"), strict=True)
    ]
    assert not Path("out/position=none/seed=1").exists()
    assert "the mean of 2 seeds and its 95% interval" in (places[1] / "README.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(places[2], trust_remote_code=True).config.attnlab["widths"]
    said = attnlab("export", "arms", "--to", "known", "--as", "llama")
    assert said.status == 2
    assert "runs/arms: no run can be written" in said.err
