"""Which runs a law may be fitted to: refusals and warnings, each in one sentence."""

import json
import shutil

import pytest
from tests.analysis.scaling.planted import change, counts, write_scaling_study

from attnlab.analysis import load_study
from attnlab.analysis.scaling.runs import usable_runs

METRIC = "test/loss@1x"


@pytest.fixture
def small(tmp_path):
    """Five widths, three budgets, one seed."""
    return write_scaling_study(tmp_path / "small", (16, 24, 32, 48, 64), (450, 900, 1800), seeds=1)


def usable(folder, metric=METRIC):
    return usable_runs(load_study(folder), metric)


def run(folder, width=16, steps=450):
    return folder / f"model.d_model={width},trainer.max_steps={steps}" / "seed=0"


def test_a_run_is_read_with_both_counts_its_tokens_and_its_exact_operations(small):
    found = usable(small)
    assert found.notes == []
    first = found.runs[0]
    N, total, cost = counts(16)
    assert (first.parameters, first.tokens) == ({"non_embedding": N, "total": total}, 460_800)
    assert first.operations == cost * 460_800
    assert first.six_ND("total") == 6 * total * 460_800
    assert len(found.runs) == 15


@pytest.mark.parametrize(
    ("widths", "steps", "said"),
    [
        ((16, 24, 32, 48), (450, 900, 1800), "4 sizes and 3 budgets of tokens; a law of five numbers needs at least 5"),
        ((16, 24, 32, 48, 64), (450, 900), "5 sizes and 2 budgets"),
        ((16, 24, 32, 48, 64), (450,), "all finished runs trained on the same 460,800 tokens"),
    ],
)
def test_too_few_sizes_or_budgets_are_refused(tmp_path, widths, steps, said):
    with pytest.raises(ValueError, match=said):
        usable(write_scaling_study(tmp_path / "few", widths, steps, seeds=1))


def test_a_metric_that_no_run_has_is_refused_with_those_there_are(small):
    with pytest.raises(ValueError, match=r"no finished run has test/loss@8x; they have: .*val/loss"):
        usable(small, "test/loss@8x")


def test_what_is_better_when_higher_is_no_loss(small):
    with pytest.raises(ValueError, match="test/bleu: of it more is better, and a law is one of losses"):
        usable(small, "test/bleu")


def test_a_loss_that_has_no_logarithm_is_refused(small):
    change(run(small), "status.json", final={METRIC: -0.1})
    with pytest.raises(ValueError, match=r"is -0.1 in .*seed=0; a law is fitted to the logarithm of a loss above 0"):
        usable(small)


def test_diverged_failed_unfinished_and_not_a_number_are_left_out_and_counted(tmp_path):
    study = write_scaling_study(tmp_path / "lost", seeds=1)
    change(run(study, 16), "status.json", state="diverged")
    change(run(study, 24), "status.json", state="failed", error="out of memory")
    change(run(study, 32), "status.json", final={METRIC: None})
    shutil.rmtree(run(study, 48))
    change(run(study, 64), "status.json", final={"val/loss": 2.0})
    found = usable(study)
    assert len(found.runs) == 23
    for word in ("diverged", "failed", "not a number", "are not finished", f"have no {METRIC}"):
        assert [word in note and "(1 of 28 runs)" in note for note in found.notes].count(True) == 1, word
    assert "says nothing of how often that happens" in found.notes[0]


def test_runs_on_other_data_are_refused(small):
    change(run(small), "run.json", config__data__context_length=32)
    with pytest.raises(ValueError, match=r"differ in data.context_length \(64, 32\)"):
        usable(small)


def test_what_else_differs_is_named_once_and_not_its_echo_in_the_model(small):
    for folder in small.glob("*/seed=0"):
        position = "alibi" if "d_model=16," in str(folder) else "rotary"
        change(folder, "run.json", config__position__name=position, config__model__position__name=position)
    (note,) = usable(small).notes
    assert note.startswith("Runs differ in more than size and data: position.name (alibi, rotary);")
    assert "model.position" not in note


def test_a_rate_that_goes_with_the_size_is_no_difference_and_two_at_one_size_are(tmp_path):
    study = write_scaling_study(tmp_path / "rates", seeds=2)
    for folder in study.glob("*/seed=*"):
        width = json.loads((folder / "run.json").read_text())["cell"]["model.d_model"]
        change(folder, "run.json", config__optimizer__lr=0.5 / width)
    assert usable(study).notes == []
    change(run(study), "run.json", config__optimizer__lr=1.0)
    assert usable(study).notes == [
        "Runs of the same size and data differ in optimizer.lr; the law is that of their mixture."
    ]


def test_repeated_data_are_named(small):
    change(run(small, 64, 1800), "run.json", training__epochs=2.5)
    (note,) = usable(small).notes
    assert note.startswith("1 runs saw their text more than once (up to 2.5 epochs)")


def test_a_run_without_its_operations_is_left_out_and_counted(tmp_path):
    study = write_scaling_study(tmp_path / "old", seeds=1)
    change(run(study), "run.json", flops_per_token=None)
    found = usable(study)
    assert len(found.runs) == 27
    assert found.notes == ["Left out: 1 runs that do not say their parameters, tokens or operations."]


def test_n_counts_the_parameters_that_a_token_meets_and_says_so(small):
    N, total, _cost = counts(16)
    change(run(small), "run.json", parameters__active_total=total - 900, parameters__active_non_embedding=N - 900)
    found = usable(small)
    [sparse] = [one for one in found.runs if one.parameters["total"] == total - 900]
    assert sparse.parameters == {"non_embedding": N - 900, "total": total - 900}
    assert sparse.six_ND("non_embedding") == 6 * (N - 900) * 460_800
    assert found.notes[-1].startswith("N counts the parameters that a token meets: 1 runs are mixtures of experts")
