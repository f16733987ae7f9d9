"""`attnlab compare` and `report` in their forms, the mixtures of them that make no sense, and resampled sentences."""

from __future__ import annotations

import csv
import io

import pytest
import yaml
from tests.stored_studies import cell, write_plan, write_position_study, write_run, write_task_study

REFERENCES = [f"the {what} runs over the grass {number}" for number, what in enumerate(["dog", "cat", "man"] * 8)]


@pytest.fixture
def study(here):
    """A synthetic study where the command is given."""
    return write_position_study(here / "runs" / "position_length", seeds=3)


def test_each_form_is_printed(attnlab, study):
    assert "alibi is best" in attnlab("compare", "position_length").out
    assert len(list(csv.DictReader(io.StringIO(attnlab("compare", "position_length", "--format", "csv").out)))) == 6
    assert attnlab("compare", "position_length", "--format", "md").out.startswith("| cell |")
    assert attnlab("compare", "position_length", "--format", "tex").out.startswith(r"{\footnotesize")


def test_the_runs_behind_it_are_listed(attnlab, study):
    lines = attnlab("compare", "position_length", "--runs").out.splitlines()
    assert len(lines) == 19
    assert lines[1].endswith("runs/position_length/position=sinusoidal/seed=0")
    rows = list(csv.DictReader(io.StringIO(attnlab("compare", "position_length", "--runs", "--format", "csv").out)))
    assert {row["directory"] for row in rows} == {line.split()[-1] for line in lines[1:]}


def test_it_is_watched_until_it_is_over(attnlab, study):
    said = attnlab("compare", "position_length", "--watch", "--every", "0.1")
    assert said.status == 0
    assert said.out.count("18 finished") == 1
    assert said.out.endswith("report.html\n")
    assert (study / "report.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--watch", "--format", "csv"], "--watch follows the table of cells"),
        (["--watch", "--runs"], "--watch follows the table of cells"),
        (["--watch", "--baseline", "rotary"], "--watch follows the table of cells"),
        (["--runs", "--format", "tex"], "not tex"),
        (["--every", "3"], "give both, or neither"),
        (["--watch", "--every", "0"], "--every must be a number of seconds above 0, got 0.0"),
        (["--watch", "--every", "nan"], "--every must be a number of seconds above 0, got nan"),
    ],
)
def test_mixtures_are_refused(attnlab, study, words, message):
    said = attnlab("compare", "position_length", *words)
    assert said.status == 2
    assert message in said.err
    assert said.out == ""


# --- another metric, another baseline


def rows_of(attnlab, *words):
    said = attnlab("compare", *words, "--format", "csv")
    assert said.status == 0, said.err
    return {row["cell"]: row for row in csv.DictReader(io.StringIO(said.out))}


@pytest.mark.parametrize("baseline", ["rotary", "position=rotary"])
def test_a_study_is_compared_on_what_is_asked_for(attnlab, study, baseline):
    own = rows_of(attnlab, "position_length")
    asked = rows_of(attnlab, "position_length", "--metric", "test/loss@1x", "--baseline", baseline)
    assert {row["metric"] for row in asked.values()} == {"test/loss@1x"}
    assert [cell for cell, row in asked.items() if row["verdict"] == "baseline"] == ["position=rotary"]
    alibi, rotary = (float(asked[f"position={name}"]["mean"]) for name in ("alibi", "rotary"))
    assert float(asked["position=alibi"]["difference"]) == pytest.approx(alibi - rotary, abs=1e-6)
    assert {row["metric"] for row in own.values()} == {"test/loss@8x"}


@pytest.fixture
def multirun(here):
    """Runs of `attnlab train -m`, which no plan has asked for."""
    root = here / "runs" / "mine"
    for heads in (2, 4):
        for position, loss in (("alibi", 2.0), ("rotary", 1.5)):
            choices = {"position": position, "model.num_heads": heads}
            for seed in range(3):
                final = {"val/loss": loss + 0.1 * heads + 0.01 * seed, "test/loss@1x": 3 - loss + 0.01 * seed}
                write_run(root, choices, seed, final)
    return root


def test_a_multirun_is_compared_with_its_first_cell_and_says_so(attnlab, multirun):
    said = attnlab("compare", "mine")
    assert said.status == 0, said.err
    assert "val/loss, lower is better" in said.out
    assert "No baseline is named: alibi \u00b7 num_heads 2, the first cell, stands for it" in " ".join(said.out.split())
    assert "names no baseline" not in said.out


def test_a_multirun_is_compared_with_the_cell_that_is_named(attnlab, multirun):
    words = ("--baseline", "position=rotary model.num_heads=4", "--metric", "test/loss@1x")
    rows = rows_of(attnlab, "mine", *words)
    first, *others = rows.values()
    baseline = next(row for row in rows.values() if row["verdict"] == "baseline")
    assert (baseline["metric"], float(baseline["mean"])) == ("test/loss@1x", pytest.approx(1.51))
    assert {float(row["difference"]) for row in (first, *others) if row["difference"]} == {-0.5, 0.0}
    assert "No baseline is named" not in attnlab("compare", "mine", *words).out


def test_the_report_takes_the_same_words(attnlab, multirun):
    said = attnlab("report", "mine", "--no-figures", "--baseline", "rotary, num_heads 2")
    assert said.status == 0, said.err
    assert "No baseline is named" not in (multirun / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--metric", "test/bleu"], "--metric must be a final metric of the study mine, got 'test/bleu'; there are "),
        (
            ["--baseline", "position=alibbi"],
            "--baseline must be one cell of the study mine, got 'position=alibbi'; give",
        ),
        (["--baseline", "position=alibi"], "got 'position=alibi' (2 cells fit it); give a label or all choices, of: "),
    ],
)
def test_what_is_not_there_is_said_with_what_is(attnlab, multirun, words, message):
    said = attnlab("compare", "mine", *words)
    assert (said.status, said.out) == (2, "")
    assert message in said.err


# --- resampled sentences


@pytest.fixture
def translated(here):
    """A study of two cells in `runs`, of which one has lost every third word."""
    names = ["sinusoidal", "none"]
    root = write_plan(
        here / "runs" / "translated",
        factors={"position": names},
        baseline={"position": names[0]},
        cells=[cell({"position": name}) for name in names],
        seeds=[0],
        metric={"name": "test/bleu", "better": "higher"},
    )
    spoilt = [" ".join(word for i, word in enumerate(line.split()) if i % 3) for line in REFERENCES]
    for name, lines in zip(names, (REFERENCES, spoilt), strict=True):
        outputs = write_run(root, {"position": name}, 0, {"test/bleu": 50.0}) / "outputs"
        outputs.mkdir()
        for kind, texts in (("translations", lines), ("references", REFERENCES)):
            (outputs / f"test.{kind}.txt").write_text("".join(f"{line}\n" for line in texts))
    return root


def test_sentences_are_resampled_where_that_is_asked_for(attnlab, translated):
    plain, asked = attnlab("compare", "translated"), attnlab("compare", "translated", "--bootstrap-sentences")
    assert (plain.status, asked.status) == (0, 0)
    assert "resampled" not in plain.out
    assert "Against the baseline on resampled test sentences" in asked.out
    assert "0.001, at most 0.05 in 1 of 1 seeds" in asked.out
    assert "p_bleu_sentences seed=0" in attnlab("compare", "translated", "--format", "csv", "--bootstrap-sentences").out
    assert attnlab("report", "translated", "--bootstrap-sentences", "--to", "page.html").status == 0
    with open("page.html") as page:
        assert "sacreBLEU" in page.read()


def test_a_study_without_translations_says_why(attnlab, translated):
    for file in translated.glob("*/*/outputs/test.references.txt"):
        file.unlink()
    said = attnlab("compare", "translated", "--bootstrap-sentences")
    assert said.status != 0
    assert said.err.strip().endswith(
        "--bootstrap-sentences: translated: no translations to compare: seed 0: the baseline has no outputs/test.references.txt"
    )


def test_a_study_across_tasks_has_its_aggregate_first_and_then_each_task(attnlab, here):
    folder = write_task_study(here / "runs" / "tasks")
    said = attnlab("compare", "tasks")
    assert said.status == 0, said.err
    heads = [said.out.index(words) for words in ("Mean score on each task", "copy (--part 1)", "kjv (--part 3)")]
    assert heads == sorted(heads)
    assert "test/bits_per_byte@1x, lower is better" in said.out[heads[2] :]
    assert {"report.html", "report-1.html", "report-2.html", "report-3.html"} <= {
        path.name for path in folder.iterdir()
    }
    page = (folder / "report.html").read_text()
    assert page.count('href="report-3.html"') == 1
    assert 'data-chart="profiles"' in page
    rows = list(csv.DictReader(io.StringIO(attnlab("compare", "tasks", "--format", "csv").out)))
    assert [row["verdict"] for row in rows] == ["baseline", "better", "undecided"]
    assert float(rows[1]["score kjv"]) > float(rows[0]["score kjv"])
    one = attnlab("compare", "tasks", "--part", "3", "--baseline", "rotary")
    assert "Compared here are the runs with data=kjv, one of the tasks." in " ".join(one.out.split())
    assert "All tasks" not in one.out
    assert (
        len(list(csv.DictReader(io.StringIO(attnlab("compare", "tasks", "--part", "1", "--format", "csv").out)))) == 3
    )


@pytest.mark.slow
def test_the_report_of_a_study_across_tasks_has_tables_and_figures(attnlab, here):
    folder = write_task_study(here / "runs" / "tasks")
    said = attnlab("report", "tasks")
    assert said.status == 0, said.err
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "profiles.pdf",
        "profiles.png",
        "ranks.pdf",
        "ranks.png",
    }
    first = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert attnlab("report", "tasks").status == 0
    assert first == {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    assert (folder / "tasks.tex").read_text().count(r"\toprule") == 2


@pytest.mark.slow
def test_two_tasks_are_swept_and_compared(attnlab, study_of_tasks):
    said = attnlab("sweep", "two", "hydra/launcher=basic")
    assert said.status == 0, said.err
    assert "2 tasks x 2 seeds" in said.out
    assert "test/chance@1x) to perfect (1)" in " ".join(said.out.split())


@pytest.fixture
def study_of_tasks(here):
    own = ["task=answers", "model=gpt", "model.d_model=16", "model.num_heads=2", "model.num_layers=1", "data.length=4"]
    own += ["data.batch_size=4", "data.validation_rows=8", "data.test_rows=16", "task.evaluation_lengths=[1]"]
    own += ["trainer.max_steps=2", "trainer.threads=1", "schedule.warmup_steps=0", "trainer.precision=32"]
    folder = here / "experiments" / "two"
    folder.mkdir(parents=True)
    written = {"shared": own, "factors": {"data": ["copy", "sort"], "position": ["rotary", "none"]}, "seeds": 2}
    written |= {"baseline": {"position": "none"}, "metric": {"name": "test/accuracy@1x", "better": "higher"}}
    (folder / "study.yaml").write_text(yaml.safe_dump(written | {"across": "data"}))
