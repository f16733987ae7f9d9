"""Code is part of what a run is: the source of the user's own parts, found without running anything, and attnlab's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.processes import command, wait_for

from attnlab.analysis import compare, load_study
from attnlab.runs import record as records
from attnlab.runs.record import code_version, library_versions, own_repositories, own_sources
from attnlab.training.run_directory import read_json

PART = (
    "from attnlab.layers import ALiBi\n\nfrom own_helper import FACTOR\n\n\nclass Mine(ALiBi):\n    factor = FACTOR\n"
)


@pytest.fixture(autouse=True)
def looked_at_anew():
    """As in a new process: one process keeps what it has seen."""
    for cached in (records._own_file, records._digest, records._imports, code_version):
        cached.cache_clear()
    yield
    for cached in (records._own_file, records._digest, records._imports, code_version):
        cached.cache_clear()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Modules of the user's own: a package with one that imports another, in a function a third, and one that nobody imports."""
    files = {
        "ours/__init__.py": "",
        "ours/parts.py": "import torch\nfrom attnlab.layers import ALiBi\nfrom . import near\n\n\ndef late():\n    import far_helper\n",
        "ours/near.py": "from ..ours.deeper import value as other\nraise RuntimeError('this must not run')\n",
        "ours/deeper/__init__.py": "value = 1\n",
        "ours/aside.py": "raise RuntimeError('nobody imports it')\n",
        "far_helper.py": "import yaml, no_such_module\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def config(*targets):
    return {"model": {"_target_": "attnlab.models.GPT"}, "data": [{"source": {"_target_": name}} for name in targets]}


def test_the_own_modules_of_a_part_are_found_without_running_them(package):
    before = set(sys.modules)
    found = own_sources(config("ours.parts.Mine"))
    assert list(found) == ["far_helper", "ours", "ours.deeper", "ours.near", "ours.parts"]
    assert set(sys.modules) - before == set()


@pytest.mark.parametrize("name", ["ours/parts.py", "ours/near.py", "ours/deeper/__init__.py", "far_helper.py"])
def test_an_edit_of_any_of_them_changes_that_one_alone(package, name):
    before = own_sources(config("ours.parts.Mine"))
    looked = package / name
    looked.write_text(looked.read_text() + "# edited\n")
    assert own_sources(config("ours.parts.Mine")) == before  # this process has loaded what was there
    for cached in (records._digest, records._imports):
        cached.cache_clear()
    after = own_sources(config("ours.parts.Mine"))
    module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    assert [key for key in before if before[key] != after[key]] == [module]


def test_what_is_installed_has_a_version_and_no_source():
    assert own_sources(config("torch.optim.Adam", "scipy.stats.norm", "json.loads", "attnlab.data.TextData")) == {}
    assert library_versions(config("scipy.stats.norm"))["scipy"]
    assert "attnlab" not in library_versions(config())


def test_the_repository_of_own_parts_is_named(package):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-C", str(package)]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "parts"]):
        subprocess.run([*git, *words], check=True)
    sources = own_sources(config("ours.parts.Mine"))
    [(top, state)] = own_repositories(sources).items()
    assert (Path(top).resolve(), len(state["commit"]), state["dirty"]) == (package.resolve(), 40, False)
    (package / "ours" / "near.py").write_text("")
    assert own_repositories(sources)[top]["dirty"] is True


def test_edited_code_of_attnlab_has_another_digest(monkeypatch, tmp_path):
    (tmp_path / "attnlab").mkdir()
    monkeypatch.setattr(records, "PACKAGE", tmp_path / "attnlab")
    found = []
    for text in ("x = 1\n", "x = 2\n", "x = 1\n"):
        (tmp_path / "attnlab" / "code.py").write_text(text)
        records._digest.cache_clear()
        code_version.cache_clear()
        found.append(code_version()["source"])
    assert found[0] == found[2] != found[1]


@pytest.fixture
def own_part(tmp_path, monkeypatch, study):
    """A study of a part of the user's own, and what edits the module that the part imports."""
    (tmp_path / "own_part.py").write_text(PART)
    (tmp_path / "conf" / "position").mkdir(parents=True)
    (tmp_path / "conf" / "position" / "mine.yaml").write_text("_target_: own_part.Mine\n_partial_: true\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    study("mine", seeds=1, factors={"position": ["none", "mine"]})

    def edit(factor):
        (tmp_path / "own_helper.py").write_text(f"FACTOR = {factor}\n")

    edit(1)
    return edit


def ended(*words):
    """The exit status and the words of a command in a process of its own, which imports what is there now."""
    process = command(*words, "hydra/launcher=basic", "--config-dir", "conf")
    return process.wait(), process.said


@pytest.mark.slow
def test_an_edited_part_is_refused_or_mixed_with_a_caveat(own_part):
    status, said = ended("sweep", "mine")
    assert status == 0, said
    run = Path("runs/mine/position=mine")
    record = read_json(run / "seed=0" / "run.json")
    assert list(record["sources"]) == ["own_helper", "own_part"]
    assert [entry["attempt"] for entry in record["attempts"]] == [1]
    assert read_json("runs/mine/position=none/seed=0/run.json")["sources"] == {}
    own_part(2)
    status, said = ended("sweep", "mine", "study.seeds=2")
    assert status == 2, said
    assert f"{run}/seed=0 was trained with another source of your own parts" in said
    assert f"own_helper: {record['sources']['own_helper']} -> " in said
    assert "own_part:" not in said
    assert "mixed_code=true" in said
    evaluated = command("evaluate", f"{run}/seed=0")
    assert evaluated.wait() == 0, evaluated.said
    assert "another source of your own parts (own_helper: " in evaluated.said
    assert not (run / "seed=1").exists()
    status, said = ended("sweep", "mine", "study.seeds=2", "mixed_code=true")
    assert status == 0, said
    assert "the source of own_helper" in " ".join(said.split())
    [caveat] = [line for line in compare(load_study("runs/mine")).caveats if "the source of own_helper" in line]
    assert caveat.endswith("; within one cell in mine.")


def test_tokens_and_operations_are_those_of_the_steps_of_a_ramp(attnlab, here, tiny):
    """Of full attention a token costs 2 L d multiplications a layer more in rows of L tokens (q.k, and weights.v)."""
    ramps = ["batch_ramp=staged", "batch_ramp.stages=[[0.5,3]]", "length_ramp=linear", "length_ramp.steps=8"]
    ramps += ["length_ramp.multiple_of=1", "trainer.log_every_n_steps=1"]
    assert attnlab("train", *tiny, "run_dir=plain").status == 0
    assert attnlab("train", *tiny, *ramps, "run_dir=ramped").status == 0
    plain, ramped = (read_json(Path(place) / "run.json") for place in ("plain", "ramped"))
    lengths = [2, 3, 5, 7, 9, 10, 12, 14, 16, 16]  # from an eighth of 16: 2 + 14 t / 8
    tokens = [(2 if step < 3 else 4) * length for step, length in enumerate(lengths)]
    saved = [3 * 2 * 2 * (16 - length) * 16 for length in lengths]
    operations = sum(n * (plain["flops_per_token"] - less) for n, less in zip(tokens, saved, strict=True))
    assert ramped["flops_per_token"] == pytest.approx(operations / sum(tokens), abs=1)
    assert ramped["training"] == plain["training"] | {"tokens": sum(tokens), "epochs": ramped["training"]["epochs"]}
    lines = [json.loads(line) for line in Path("ramped/metrics.jsonl").read_text().splitlines()]
    seen = {line["step"]: line["tokens"] for line in lines if "train/loss" in line["values"]}
    assert seen == {step: sum(tokens[:step]) for step in range(1, 11)}
    assert (
        f"plan: 10 steps of 64 tokens or, in the first 8, fewer: {sum(tokens)} in all"
        in Path("ramped/log.txt").read_text()
    )


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_with_its_own_code_alone(own_part, tiny):
    words = ["train", "position=mine", *tiny, "study.name=one", "cell=mine", "trainer.max_steps=100000"]
    stopped = command(*words, "--config-dir", "conf")
    run = Path("runs/one/mine/seed=0")
    wait_for(lambda: (read_json(run / "status.json") or {}).get("step", 0) > 0, stopped)
    os.kill(stopped.pid, 15)
    assert stopped.wait() == 143
    step = read_json(run / "status.json")["step"]
    own_part(2)
    refused = command(*words, "--config-dir", "conf")
    assert refused.wait() == 2
    assert "another source of your own parts" in refused.said
    assert read_json(run / "status.json")["step"] == step
