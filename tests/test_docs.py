"""Every command that the README and the documentation show is run, as it stands, with small models and small data under its names.

`.ci/run` follows docs/extending.md with the wheel; what needs a network, a cluster or a browser is run by the test that ELSEWHERE names."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from PIL import Image

from attnlab.config import shipped
from attnlab.config.compose import ConfigSpace
from attnlab.training.across import FIELDS as ACROSS_FIELDS
from attnlab.training.published import FIGURE_FIELDS, PUBLISHED_FIELDS
from attnlab.training.study_fields import CLAIM_FIELDS, FIELDS, METRIC_FIELDS
from attnlab.training.tuning_fields import TUNE_FIELDS

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.M | re.S)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLLOWED = ("extending.md",)
ELSEWHERE = {  # by how a command begins: the file that runs it, and a word in it that shows so
    "make demo": ("tests/cli/test_contract.py", "available_studies"),
    "make test": (".ci/run", "make test"),
    "attnlab gallery position_length": ("tests/cli/test_gallery.py", '"gallery"'),
    "attnlab serve": ("tests/cli/test_serve.py", "serve"),
    "attnlab sweep scaling": ("tests/cli/test_contract.py", "available_studies"),
    "attnlab scaling": ("tests/cli/test_scaling.py", '"scaling"'),
    "attnlab sweep my_question hydra/launcher=slurm": ("tests/cluster", "slurm"),
    "attnlab coordinate-check": ("tests/runs/test_coordinates.py", "coordinate-check"),
    "attnlab cancel": ("tests/cluster", '"cancel"'),
    "attnlab retry": ("tests/cluster", '"retry"'),
    "attnlab import openai-community/gpt2": ("tests/runs/test_imported.py", "revision"),
    "attnlab import wheel:": ("tests/runs/test_imported.py", "wheel:"),
    "attnlab embed runs/imported/minilm-l6": ("tests/cli/test_embed.py", '"embed"'),
    "attnlab generate runs/imported/smollm2-135m": ("tests/cli/test_pretrained_tokenizer.py", "--chat"),
    "attnlab transcribe runs/imported": ("tests/runs/test_transcribed.py", "temperatures"),
    "attnlab sync": ("tests/runs/test_views.py", '"sync"'),
    "attnlab sweep my_question 'study.on_end=": ("tests/studies/test_on_end.py", "ATTNLAB_SUMMARY"),
    "attnlab wandb-report": ("tests/report/test_wandb_report.py", "wandb-report"),
    "lm_eval": ("tests/cli/test_export_clients.py", "lm_eval"),
    "wandb leet": ("docs/tracking.md", "W&B's own viewer"),
}
OWN = ("image_folder", "image_text", "speech", "text_to_text")  # data that commands name the folder of, or none shows
FOLDERS = {  # what FOLDER stands for, by a word of its command
    "data=image_folder": lambda library, images, published: images(32, 2),
    "data=image_text": lambda library, images, published: library / "captioned",
    "data=speech": lambda library, images, published: library / "spoken",
    "import": lambda library, images, published: published("gpt2"),
}
RUNS = {  # what has trained before, by how a command begins: what trains it, and the name it is then given
    "attnlab attention RUN --text": ("train cell=text", "RUN"),
    "attnlab attention RUN --image": ("train model=vit cell=image", "RUN"),
    "attnlab attention RUN --dependencies": ("train model=bert cell=words", "RUN"),
    "attnlab export runs/train/my_cell": ("train cell=my_cell", "RUN"),
}
MORE = {
    "train": ["progress=off"],
    "lr-range": [],
    "batch-size": ["progress=off"],
    "sweep": ["hydra/launcher=basic", "study.seeds=2", "trainer.max_steps=2", "model.d_model=16"],
}
SMALL = {
    "model": {"d_model": 16, "num_heads": 2, "num_layers": 1, "d_ff": 32, "patch_size": 8},
    "trainer": {"max_steps": 2, "val_check_interval": 1, "threads": 1},
    "task": {"evaluation_lengths": [1], "evaluation_tokens": 256, "num_beams": 1, "max_extra_length": 2},
    "data": {
        "max_validation_tokens": 256,
        "context_length": 16,
        "batch_size": 4,
        "batch_tokens": 500,
        "test_rows": 16,
        "validation_rows": 16,
    },
    "schedule": {"warmup_steps": 0},
}


def blocks(page):
    return BLOCK.findall(page.read_text(encoding="utf-8"))


def commands(page):
    """The commands of a page, without what is said beside them."""
    lines = [line for language, _, text in blocks(page) if language == "bash" for line in text.splitlines()]
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.strip() and line[0] != "#"]


def elsewhere(command):
    return next((where for start, where in ELSEWHERE.items() if command.startswith(start)), None)


def test_every_field_of_a_study_is_described_and_no_other():
    page = (ROOT / "docs" / "study_fields.md").read_text()
    own, metric, tune, claim, published, across = (
        set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]+) \|", part, re.M))))
        for part in page.split("\n## ")[:6]
    )
    assert own == set(FIELDS)
    assert metric == set(METRIC_FIELDS)
    assert tune == set(TUNE_FIELDS)
    assert claim == set(CLAIM_FIELDS)
    assert across == set(ACROSS_FIELDS)
    assert published == set(PUBLISHED_FIELDS)
    assert all(f"`{field}`" in page for field in FIGURE_FIELDS)


@pytest.mark.parametrize(("path", "word"), sorted(set(ELSEWHERE.values())))
def test_what_is_run_elsewhere_is(path, word):
    files = (ROOT / path).rglob("*.py") if (ROOT / path).is_dir() else [ROOT / path]
    assert any(word in file.read_text(encoding="utf-8") for file in files)


@pytest.fixture(scope="module")
def small(library, own_data, tmp_path_factory):
    """A folder of config groups in which each model, task and data set is small, and of this machine."""
    folder = tmp_path_factory.mktemp("small")
    with ConfigSpace([]) as space:
        for group in SMALL:
            (folder / group).mkdir()
            for name in space.groups[group]:
                node = yaml.safe_load((shipped("conf") / group / f"{name}.yaml").read_text())
                if group == "data" and name not in OWN and node["_target_"] != "attnlab.data.SyntheticData":
                    choice, *words = own_data(space, space.compose([f"data={name}"]))
                    node = yaml.safe_load((shipped("conf") / f"{choice.replace('=', '/')}.yaml").read_text())
                    for key, value in (word.removeprefix("data.").split("=", 1) for word in words):
                        at = node["source"] if key.startswith("source.") else node
                        at[key.removeprefix("source.")] = yaml.safe_load(value)
                node |= {key: value for key, value in SMALL[group].items() if key in node}
                if name == "gpt":  # as deep as the longest pattern that a page shows
                    node["num_layers"] = 4
                (folder / group / f"{name}.yaml").write_text(yaml.safe_dump(node, sort_keys=False))
    (folder / "tokenizer").mkdir()
    shutil.copy(shipped("conf") / "tokenizer" / "byte.yaml", folder / "tokenizer" / "character.yaml")  # takes any text
    return folder


@pytest.fixture
def world(here, library, imported, monkeypatch):
    """The folder where a page is followed, with what its commands speak of."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.syspath_prepend(str(here))
    shutil.copy(library / "text.txt", "my_text.txt")
    Path("lines.txt").write_text("the quick brown fox\nover the lazy dog\n")
    Path("dev.conllu").write_text("1\tthe\t_\tDET\t_\t_\t2\tdet\t_\t_\n2\tfox\t_\tNOUN\t_\t_\t0\troot\t_\t_\n\n")
    Image.new("RGB", (32, 32), (90, 40, 200)).save("cat.png")
    soundfile.write("talk.flac", np.random.default_rng(0).normal(0, 0.1, 9600), 16000)
    for page in ("README.md", "docs/parts.md"):
        write_files(ROOT / page)
    return here


def write_files(page):
    """Writes the files that a page shows."""
    for name, text in files_of(page):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)


def link(name, target):
    Path(name).unlink(missing_ok=True)
    Path(name).symlink_to(target)


def files_of(page):
    """The files that a page shows, by a title or by a first line that is their name."""
    found = {(name, text) for _, name, text in blocks(page) if name}
    for language, name, text in blocks(page):
        first, _, rest = text.partition("\n")
        if language in ("python", "yaml") and re.fullmatch(r"# [\w/.]+\.(py|yaml)", first):
            found.add((first[2:], rest))
        elif language == "yaml" and text.startswith("question:") and not name:
            found.add(("my_question/study.yaml", text))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES if page.name not in FOLLOWED])
def test_the_commands_of_a_page_are_run(attnlab, world, small, library, images, published, imported, page):
    def run(name, *words):
        more = [*MORE.get(name, []), *(["--config-dir", str(small)] if name in MORE else [])]
        said = attnlab(name, *words, *more)
        assert said.status == 0, f"{name} {shlex.join(words)}\n{said.err}\n{said.out}"

    write_files(page)
    for command in dict.fromkeys(commands(page)):
        if elsewhere(command):
            continue
        for start, (training, name) in RUNS.items():
            if command.startswith(start):
                run(*training.split())
                link(name, f"runs/train/{training.rpartition('=')[2]}/seed=0")
        for word, folder in FOLDERS.items():
            if "FOLDER" in command and word in command:
                link("FOLDER", folder(library, images, published))
        if "runs/imported/gpt2" in command and not Path("runs/imported").exists():
            shutil.copytree(imported("gpt2").parents[1], "runs/imported")
        if " my_question" in command and " sweep " not in command and not Path("runs/my_question").exists():
            run("sweep", "my_question")
        program, *words = shlex.split(
            re.sub(r"max_steps=\d+", "max_steps=2", re.sub(r"d_model=\d+", "d_model=16", command))
        )
        assert program == "attnlab"
        run(*words, *(["hydra.sweeper.n_trials=1"] if "hydra/sweeper=search" in words else []))
