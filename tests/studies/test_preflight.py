"""What a study will take is said before it runs: sizes as the runs record them, times by what was measured."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from tests.stored_studies import write_run

from attnlab.config.compose import ConfigSpace
from attnlab.runs.build import prepare_data
from attnlab.runs.trial import Cost
from attnlab.studies.monitor import roughly
from attnlab.studies.plan import Cell, Plan
from attnlab.studies.preflight import Preflight, Size, in_gb, sizes_of
from attnlab.studies.remaining import read_costs
from attnlab.studies.slots import Slots
from attnlab.training.run_directory import read_json

SIZE = Size(1000, 5000, "token", 100, 100, 4, 1e6, 6e6, "a", None)


def preflight(tmp_path, sizes, seeds=2, workers=2, takes=None):
    cells = [Cell(name, {"cell": name}, []) for name in sizes]
    plan = Plan("s", "Which?", {"cell": list(sizes)}, {"cell": "a"}, cells, list(range(seeds)), {"name": "test/loss"})
    pending = [(cell.name, seed) for cell, seed in plan.jobs()]
    return Preflight(plan, tmp_path, pending, sizes, Slots([0] * len(pending), workers), takes)


def test_one_line_says_runs_parameters_tokens_disk_and_time(tmp_path):
    ahead = preflight(
        tmp_path, {"a": SIZE, "b": replace(SIZE, parameters=250_000, tokens=2_000_000, unit="image", disk=2e8)}
    )
    assert ahead.line({}) == "4 runs (0 done), 1k to 250k parameters, 10k tokens, 4M images, about 0.4 GB"
    assert ahead.line({"a": 30.0, "b": 100.0}).endswith(", about 3 min on this machine with 2 workers")
    begun = replace(ahead, pending=ahead.pending[3:])
    assert begun.line({}) == "4 runs (3 done), 250k parameters, 2M images, about 0.2 GB"
    assert begun.time({"b": 40.0}) == "about 40 s on this machine with 2 workers"
    away = preflight(tmp_path, {"a": SIZE}, seeds=3, takes=(4, "core"))
    assert away.time({"a": 1800.0}).startswith("about 6 core-hours at this machine's speed (how fast the nodes are")
    assert [in_gb(size) for size in (3e5, 2e7, 4.2e8, 3e10)] == ["1 MB", "20 MB", "0.4 GB", "30.0 GB"]
    assert [roughly(seconds) for seconds in (0.2, 40, 1500, 12600)] == ["1 s", "40 s", "25 min", "3.5 h"]


def test_one_cell_of_each_shape_is_tried_and_what_lies_between_costs_what_lies_between(tmp_path):
    sizes = {f"c{i}": replace(SIZE, operations=6e6 * (i + 1), shape=str(i)) for i in range(13)}
    sizes |= {"longer": replace(sizes["c0"], steps=200, operations=12e6)}
    asked = []

    def measure(composed, slots):
        asked.extend(composed)
        return [Cost(1.0, 0.01 * sizes[cell].operations / 6e6, 0.5, 2.0) for cell in composed]

    costs, failed = preflight(tmp_path, sizes).measured({cell: cell for cell in sizes}, measure)
    assert failed == {}
    assert asked == ["c0", "c2", "c4", "c7", "c9", "c12"]
    assert {cell: costs[cell].step for cell in ("c0", "longer", "c1", "c12")} == pytest.approx(
        {"c0": 0.01, "longer": 0.01, "c1": 0.02, "c12": 0.13}
    )
    assert costs["longer"].of(200, 4) == pytest.approx(1 + 200 * 0.01 + 4 * 0.5 + 2)


def test_a_cell_that_cannot_be_tried_has_no_time_and_the_others_have_one(tmp_path):
    sizes = {"a": SIZE, "b": replace(SIZE, shape="b")}
    answers = {"a": Cost(1.0, 0.1, 0.0, 1.0), "b": "memory ran out"}
    ahead = preflight(tmp_path, sizes)
    costs, failed = ahead.measured({"a": "a", "b": "b"}, lambda composed, slots: [answers[cell] for cell in composed])
    assert (costs, failed) == ({"a": answers["a"]}, {"b": "memory ran out"})
    text = ahead.table(costs, {"a": 12.0}).to_text()
    assert [line.split()[-3:] for line in text.splitlines()[1:]] == [
        ["ms", "12", "s"],
        ["100", "?", "?"],
    ] or "?" in text
    assert ahead.measured({"a": "a"}, lambda composed, slots: ["no"] * len(composed)) == ({}, {"a": "no"})


def test_runs_that_ended_here_with_as_many_threads_say_what_others_take(tmp_path):
    ahead = preflight(tmp_path, dict.fromkeys(("cell=a", "cell=b", "cell=c", "cell=d"), SIZE))
    threads = ahead.slots.threads
    for name, host, used, state, attempt in (
        ("a", socket.gethostname(), threads, "finished", 1),
        ("b", "another", threads, "finished", 1),
        ("c", socket.gethostname(), threads + 1, "finished", 1),
        ("d", socket.gethostname(), threads, "finished", 2),
    ):
        for seed in (0, 7):
            run = write_run(tmp_path / "s", {"cell": name}, seed, {}, state, device={"type": "cpu", "threads": used})
            status = {"state": state, "attempt": attempt, "host": host, "started": 100.0, "ended": 130.0 + seed}
            (run / "status.json").write_text(json.dumps(status))
    assert ahead.recorded() == {"cell=a": 33.5}


def test_what_the_estimate_of_what_is_left_rests_on_is_left_in_the_folder(tmp_path):
    preflight(tmp_path, {"a": SIZE}).write_costs()
    assert read_costs(tmp_path / "s").cells == {"a": 6e6}
    assert read_costs(tmp_path / "s").workers == 2
    preflight(tmp_path, {"a": SIZE}, takes=(1, "GPU")).write_costs()
    assert read_costs(tmp_path / "s").workers is None


RAMPED = ["batch_ramp=doubling", "batch_ramp.steps=6", "length_ramp=staged", "length_ramp.stages=[[0.5,4]]"]
RAMPED += ["batch_ramp.start=0.25", "trainer.accumulate_grad_batches=2"]


@pytest.mark.parametrize(
    "more", [[], ["trainer.accumulate_grad_batches=3", "position=learned", "averaging=ema"], RAMPED]
)
def test_sizes_are_those_that_a_run_records(attnlab, tiny, more):
    assert attnlab("train", *tiny, *more, "run_dir=run").status == 0
    record, disk = (
        read_json(Path("run/run.json")),
        sum(path.stat().st_size for path in Path("run").rglob("*.ckpt") if not path.is_symlink()),
    )
    with ConfigSpace() as space:
        composed = space.compose([*tiny, *more])
    size = sizes_of([composed], prepare_data([composed.resolved]))[composed.cell]
    assert size.parameters == record["parameters"]["total"]
    assert size.tokens == record["training"]["tokens"] == read_json(Path("run/status.json"))["tokens"]
    assert size.full_steps * record["training"]["tokens_per_step"] == pytest.approx(size.tokens)
    assert (size.unit, size.steps, size.validations) == (record["data"]["unit"], 10, 2)
    numbers = size.disk - 150_000 - 250 * 10 / composed.get("trainer.log_every_n_steps")
    assert numbers == pytest.approx(disk, rel=0.5)


@pytest.mark.slow
def test_a_dry_run_trains_nothing_and_says_what_the_runs_then_are(attnlab, study, left):
    folder = study("mine", seeds=1, factors={"position": ["none", "learned"]})
    before = left(folder.parent.parent)
    dry = attnlab("sweep", "mine", "--dry-run", "hydra.launcher.n_jobs=2")
    assert dry.status == 0, dry.err
    assert left(folder.parent.parent) == before
    assert re.search(
        r"2 runs \(0 done\), .* parameters, 1\.28k tokens, about 1 MB, about \d+ s on this machine with 2 workers",
        dry.out.replace("\n", " "),
    )
    said = attnlab("sweep", "mine", "hydra/launcher=basic")
    assert said.status == 0, said.err
    for run in Path("runs/mine").glob("*/seed=0/run.json"):
        row = next(line for line in dry.out.splitlines() if line.startswith(run.parts[2].partition("=")[2])).split()
        record = read_json(run)
        assert row[2:5] == [f"{record['parameters']['total']:,}", f"{record['training']['tokens']:,}", "10"]
    again = attnlab("sweep", "mine", "--dry-run", "study.seeds=2", "hydra/launcher=basic")
    assert "4 runs (2 done)" in again.out
    assert " ms " not in again.out


def test_the_active_parameters_of_experts_stand_beside_all(tmp_path):
    sizes = {"a": SIZE, "b": replace(SIZE, parameters=5000, idle=3000)}
    table = preflight(tmp_path, sizes).table({}, {}).to_markdown()
    rows = [
        [word.strip() for word in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    ]
    assert rows[0][2:4] == ["parameters", "active"]
    assert [row[2:4] for row in rows[-2:]] == [["1,000", "1,000"], ["5,000", "2,000"]]
    assert "active" not in preflight(tmp_path, {"a": SIZE}).table({}, {}).to_markdown()
