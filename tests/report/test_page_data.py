"""What the page's scripts are handed: every run once and small, samples within their budget, axes, tables beside the page."""

from __future__ import annotations

import base64
import json
import math
import shutil

import numpy as np
import pytest
from tests.stored_studies import cell, learning_curve, write_grid_study, write_plan, write_position_study, write_run

from attnlab.analysis.comparison import compare
from attnlab.analysis.reader import load_study
from attnlab.analysis.tables import to_csv, to_latex, to_markdown, write_tables
from attnlab.report import page_data as charts
from attnlab.report import run_data
from attnlab.report.page_data import page_data
from attnlab.report.run_data import axis_data
from attnlab.training import Picture
from attnlab.training.tracking import thumbnail

PNG = Picture(np.zeros((4, 4), dtype=np.uint8)).as_png()


def comparison_of(root):
    return compare(load_study(root))


def whole(data, run):
    """A run's settings and facts, put together again as page.js does."""
    everything = {**data["shared"], **run.get("own", {})}
    return {key: value for key, value in everything.items() if key not in run.get("lacks", [])}


def test_what_is_shared_and_what_is_own_give_every_run_back(grid_comparison):
    data = page_data(grid_comparison)
    assert len(data["runs"]) == 48
    for entry in data["runs"]:
        run = next(r for r in grid_comparison.study.runs.values() if run_data.path_of(r) == entry["path"])
        assert whole(data, entry) == run_data.describe(run)
        values = dict(zip(data["metrics"], entry.get("values", []), strict=False))
        assert values.keys() == run.final.keys()
        assert all(value == pytest.approx(run.final[name], rel=1e-5) for name, value in values.items())
        assert entry["state"] == run.state
        assert entry["command"] == run.record["command"]
    assert sum(len(json.dumps(entry.get("own", {}))) for entry in data["runs"]) < 48 * 250


def test_runs_that_differ_in_kind_keep_their_own(tmp_path):
    root = write_plan(tmp_path / "s", cells=[cell({"norm": "rms_norm"})], seeds=[0, 1, 2], metric={"name": "m"})
    for seed in (0, 1):
        write_run(
            root, {"norm": "rms_norm"}, seed, {"m": 1.0}, config={"a": 1, "b": [1, {"c": math.nan}], "seed": seed}
        )
    data = page_data(comparison_of(root), ".")
    described = [whole(data, run) for run in data["runs"][:2]]
    assert [run["settings/seed"] for run in described] == [0, 1]
    assert described[0]["settings/b"] == '[1, {"c": null}]'
    assert data["runs"][2] == {"cell": "norm=rms_norm", "seed": 2, "state": "missing", "path": "norm=rms_norm/seed=2", "href": "./norm=rms_norm/seed=2/"}  # fmt: skip
    json.dumps(data, allow_nan=False)


@pytest.mark.parametrize(("name", "href"), [("javascript:alert(1)", "./javascript%3Aalert%281%29/seed=0/"), ("a b?#", "./a%20b%3F%23/seed=0/")])  # fmt: skip
def test_links_lead_to_directories_and_nowhere_else(tmp_path, name, href):
    root = write_plan(tmp_path / "s", cells=[{"name": name, "choices": {}}], seeds=[0])
    (run,) = page_data(comparison_of(root), ".")["runs"]
    assert run["href"] == href
    assert "href" not in page_data(comparison_of(root))["runs"][0]


def test_logs_are_short_and_longer_where_a_run_was_lost(tmp_path):
    root = write_plan(tmp_path / "s", cells=[cell({"norm": "rms_norm"})], seeds=[0, 1], metric={"name": "m"})
    for seed, state in enumerate(("finished", "failed")):
        directory = write_run(root, {"norm": "rms_norm"}, seed, {"m": 1.0}, state=state)
        (directory / "log.txt").write_text("".join(f"line {k} {'x' * 100}\n" for k in range(1000)))
    finished, failed = (run["log"] for run in page_data(comparison_of(root))["runs"])
    assert finished.startswith("\u2026")
    assert "line 999" in finished
    assert len(finished) <= run_data.CHARACTERS + 1
    assert finished.count("\n") < run_data.LINES
    assert run_data.LINES < failed.count("\n") < run_data.LINES_OF_LOST
    assert len(failed) <= run_data.CHARACTERS_OF_LOST + 1


def test_curves_of_many_runs_are_thinned_to_a_budget(tmp_path, monkeypatch):
    root = write_plan(tmp_path / "s", cells=[cell({"norm": "rms_norm"})], seeds=[0, 1], metric={"name": "m"})
    for seed in (0, 1):
        write_run(root, {"norm": "rms_norm"}, seed, {"m": 1.0}, curve=learning_curve(2.0, seed, 2000, 5))
    full = page_data(comparison_of(root))["curves"]
    assert [len(entry["series"][0]["step"]) for entry in full] == [80, 160]
    monkeypatch.setattr(charts, "MOST_NUMBERS", 400)
    thin = page_data(comparison_of(root))["curves"]
    (series,) = thin[1]["series"]
    assert len(series["step"]) == 400 // (2 * (2 + 6))
    assert series["step"][0] == full[1]["series"][0]["step"][0]
    assert series["step"][-1] == 2000
    assert series["flops_per_token"] == 6 * 150_000


def test_flops_are_not_drawn_where_runs_do_not_say(tmp_path):
    root = write_plan(tmp_path / "s", cells=[cell({"norm": "rms_norm"})], seeds=[0, 1], metric={"name": "m"})
    for seed, flops in ((0, 6), (1, None)):
        curve = learning_curve(2.0, seed)
        write_run(root, {"norm": "rms_norm"}, seed, {"m": 1.0}, curve=curve, flops_per_token=flops)
    assert page_data(comparison_of(root))["curves"][0]["series"][0]["flops_per_token"] is None


def test_axes_are_choices_and_what_a_search_varied(tmp_path):
    root = write_plan(tmp_path / "s", cells=[cell({"norm": name}) for name in ("layer_norm", "rms_norm")], seeds=list(range(20)), metric={"name": "m"}, factors={"norm": ["rms_norm", "layer_norm"]})  # fmt: skip
    for name in ("layer_norm", "rms_norm"):
        for seed in range(20):
            config = {
                "norm": name,
                "optimizer": {"lr": 10.0 ** -(seed / 5)},
                "seed": seed,
                "model": {"optimizer": {"lr": 10.0 ** -(seed / 5)}},
            }
            write_run(root, {"norm": name}, seed, {"m": 1.0} if seed else {}, config=config)
    norm, rate = axis_data(comparison_of(root))
    assert (norm["name"], norm["values"]) == ("norm", ["rms_norm", "layer_norm"])
    assert (rate["name"], rate["values"]) == ("lr", None)
    assert rate["of"]["norm=rms_norm/seed=5"] == pytest.approx(0.1)
    assert set(norm["of"]) == set(rate["of"])
    assert "norm=rms_norm/seed=0" not in norm["of"]


def test_axes_need_two_things_that_differ(position, grid_comparison):
    assert axis_data(position) == []
    axes = axis_data(grid_comparison)
    assert [axis["name"] for axis in axes] == ["residual", "num_layers", "lr", "warmup_steps"]
    assert [axis["values"] for axis in axes] == [["post_ln", "pre_ln"], ["6", "12"], ["1e-3", "3e-3"], ["0", "200"]]


def left(directory, told, png=PNG):
    (directory / "outputs").mkdir(exist_ok=True)
    (directory / "outputs/samples.json").write_text(told if isinstance(told, str) else json.dumps(told))
    (directory / "outputs/attention.png").write_bytes(png)


@pytest.fixture
def study(tmp_path):
    root = tmp_path / "s"
    write_position_study(root, seeds=1)
    return root


def test_samples_are_of_one_run_a_cell_and_fit_their_budget(study, monkeypatch):
    image = base64.b64encode(thumbnail(np.zeros((3, 90, 60), dtype=np.uint8)).png).decode()
    rows = [[{"png": image}, "a" * 3000, 1.5], [{"png": "no picture"}, None, "b"]]
    told = {
        "split": "test",
        "columns": ["image", "text", "score"],
        "rows": [*rows, ["too short"]],
        "attention": "heads",
    }
    for name in ("alibi", "none"):
        left(study / f"position={name}" / "seed=0", told)
    alibi, none = page_data(comparison_of(study))["samples"]
    assert (alibi["cell"], alibi["run"], alibi["caption"]) == ("alibi", "position=alibi/seed=0", "heads")
    assert alibi["rows"] == [[{"png": image}, "a" * 2000 + "\u2026", 1.5], ["", "", "b"]]
    assert base64.b64decode(none["attention"]) == PNG
    monkeypatch.setattr(run_data, "MOST_OF_SAMPLES", 2 * 200)
    assert page_data(comparison_of(study))["samples"][0]["rows"] == []
    assert page_data(comparison_of(study))["samples"][0]["left"] == 2
    monkeypatch.setattr(run_data, "MOST_OF_SAMPLES", 2)
    assert page_data(comparison_of(study))["samples"] == []


@pytest.mark.parametrize("told", ["{torn", "[]", '{"columns": 3, "rows": []}', '{"columns": ["a"], "rows": [3]}'])
def test_what_is_no_table_of_samples_is_left_out(study, told):
    left(study / "position=alibi" / "seed=0", told, b"no picture")
    assert page_data(comparison_of(study))["samples"] == []


def test_tables_stand_beside_the_page(study):
    comparison = comparison_of(study)
    paths = write_tables(comparison, study)
    assert [path.name for path in paths] == ["table.csv", "table.md", "table.tex"]
    assert [path.read_text() for path in paths] == [to_csv(comparison), to_markdown(comparison), to_latex(comparison)]


def test_a_run_that_goes_while_the_page_is_made_is_only_missing_there(tmp_path):
    root = write_grid_study(tmp_path / "s", seeds=1)
    comparison = comparison_of(root)
    shutil.rmtree(next(root.glob("*/seed=0")))
    assert len(page_data(comparison)["runs"]) == 16
