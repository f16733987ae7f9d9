"""Whether runs that are killed at random instants and resumed end with the bits of runs that were never stopped.

python experiments/kill_resume/measure.py [--runs 50] [--kills 3] [--damaged 20] [--seed 0]

Each run is a process that is killed by SIGKILL up to three times, anywhere between its start and its end, and then left to end. What is compared with
the uninterrupted run, bit for bit: the last and the best checkpoint (weights, their averages, the optimizer's state, random generators, counts), every
metric of every step, the final figures, and what was predicted for the test part. Then checkpoints are cut short at a random byte, or one of their
bits is flipped: each has to be found out, and the run has to go on from the one before to the same bits. Runs are tiny: 40 steps, one thread.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import wave
from collections import Counter
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}

import torch
from PIL import Image

# What a process would import itself, which takes longer than its training.
import attnlab.cli.train
import attnlab.data
import attnlab.runs.run
import attnlab.tasks  # noqa: F401
from attnlab.cli.main import main as attnlab_command
from attnlab.config.check import check
from attnlab.config.compose import ConfigSpace
from attnlab.training import effective_state, find_resume, read_checkpoint, read_json

FORK = multiprocessing.get_context("fork")
NOT_COMPARED = re.compile(r"\.ckpt\.(attnlab\.seconds$|epoch$|loops\.)")
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "and", "then", "sleeps", "under", "old", "trees"]  # fmt: skip
TINY = (
    "model.d_model=16 model.num_heads=2 model.dropout=0.1 trainer.max_steps=40 trainer.val_check_interval=15 trainer.log_every_n_steps=4 "
    "trainer.threads=1 trainer.device=cpu trainer.precision=32 progress=plain"
)
# 0 seconds save after every step.
OFTEN, ALWAYS = "trainer.checkpoint_every_seconds=0.03", "trainer.checkpoint_every_seconds=0"
# What a run is, and the variants of it.
FAMILIES: dict[str, tuple[str, list[str]]] = {
    "causal_lm": (
        "model=gpt model.num_layers=2 data=text data.path=text.txt data.context_length=16 data.batch_size=4 "
        "data.max_validation_tokens=256 task.evaluation_lengths=[1,2] task.evaluation_tokens=256",
        [
            f"optimizer=adamw schedule=cosine averaging=ema trainer.accumulate_grad_batches=2 {OFTEN}",
            f"optimizer=muon schedule=wsd {ALWAYS}",
            f"optimizer=schedule_free schedule=constant trainer.accumulate_grad_batches=3 {ALWAYS}",
            f"optimizer=lion schedule=linear averaging=last_checkpoints {OFTEN}",
        ],
    ),
    "masked_lm": (
        "model=bert model.num_layers=1 data=text_masked data.path=text.txt data.context_length=16 data.batch_size=4 "
        "data.max_validation_tokens=256 tokenizer=character",
        [
            f"optimizer=adam schedule=noam schedule.warmup_steps=10 averaging=ema {OFTEN}",
            f"optimizer=adafactor schedule=inverse_sqrt schedule.warmup_steps=10 trainer.accumulate_grad_batches=3 {OFTEN}",
            f"optimizer=adamw schedule=cosine averaging=last_checkpoints {ALWAYS}",
        ],
    ),
    "translation": (  # batches of similar length within a budget of tokens
        "model=encoder_decoder model.num_layers=1 data=parallel_text data.path=pairs.tsv data.language_pair=en-de "
        "data.source.split=[0.8,0.1,0.1] data.batch_tokens=256 tokenizer=character task.num_beams=2",
        [
            f"optimizer=adam schedule=noam schedule.warmup_steps=10 averaging=ema trainer.accumulate_grad_batches=2 {OFTEN}",
            f"optimizer=adamw schedule=cosine averaging=last_checkpoints {ALWAYS}",
            f"optimizer=schedule_free schedule=constant {OFTEN}",
        ],
    ),
    "images_texts": (  # augmented images
        "model.num_layers=1 data=image_text data.path=images data.source.image_size=8 data.batch_size=8 "
        "data.max_length=32 augmentation=photos tokenizer=character",
        [
            f"model=clip optimizer=adamw schedule=cosine averaging=ema {OFTEN}",
            f"model=siglip optimizer=lion schedule=linear averaging=last_checkpoints {ALWAYS}",
        ],
    ),
    "speech": (  # masked spectrograms
        "model=whisper model.num_layers=1 data=speech data.path=speech data.seconds=0.3 data.num_mels=20 data.batch_size=8 "
        "data.max_length=24 tokenizer=character",
        [
            f"optimizer=adamw schedule=cosine averaging=ema trainer.accumulate_grad_batches=2 {OFTEN}",
            f"optimizer=adafactor schedule=inverse_sqrt schedule.warmup_steps=10 averaging=last_checkpoints {ALWAYS}",
        ],
    ),
}


def write_data(folder: Path, draw: random.Random) -> None:
    """A text, sentence pairs of unequal length, and images and recordings of noise with a word or two each."""
    lines = [" ".join(draw.choices(WORDS, k=draw.randint(1, 9))) for _ in range(800)]
    (folder / "text.txt").write_text("\n".join(lines))
    (folder / "pairs.tsv").write_text("".join(f"{line}\t{' '.join(line.split()[::-1])}\n" for line in lines[:200]))
    for name in ("images", "speech"):
        (folder / name).mkdir()
    for number in range(80):
        for name in ("images", "speech"):
            (folder / name / f"{number}.txt").write_text(" ".join(lines[number].split()[:2]))
        Image.frombytes("RGB", (8, 8), draw.randbytes(192)).save(folder / "images" / f"{number}.png")
        with wave.open(str(folder / "speech" / f"{number}.wav"), "wb") as file:
            file.setparams((1, 2, 16000, 0, "NONE", ""))
            file.writeframes(draw.randbytes(2 * draw.randint(1600, 4800)))


def start(words: list[str], directory: Path) -> Any:
    """The command in a process of its own; what it says is appended to a file beside its directory."""

    def child() -> None:
        descriptor = os.open(f"{directory}.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os._exit(attnlab_command(["train", *words, f"run_dir={directory}"]))

    process = FORK.Process(target=child)
    process.start()
    return process


def finish(words: list[str], directory: Path) -> None:
    """Runs until the end. Raises RuntimeError where that is none."""
    start(words, directory).join()
    if effective_state(directory) != "finished":
        raise RuntimeError(f"{directory} is {effective_state(directory)}:\n" + Path(f"{directory}.log").read_text())


def kill_at(words: list[str], directory: Path, seconds: float) -> bool:
    """Starts a run and kills it so many seconds later; whether it was still at it."""
    process = start(words, directory)
    process.join(seconds)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL and effective_state(directory) != "finished"


def what_is_left(directory: Path) -> dict[str, Any]:
    """All of a finished run but clocks, the attempt's number, and Lightning's count of epochs, of which a run has one that never ends."""
    left: dict[str, Any] = {}
    for name in ("last.ckpt", "best.ckpt"):
        left |= dict(leaves(read_checkpoint(directory / "checkpoints" / name), name))
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        left[f"tokens at {row['step']}"] = row["tokens"]
        left |= {f"{name} at {row['step']}": value for name, value in row["values"].items()}
    status = read_json(directory / "status.json")
    left |= {name: status[name] for name in ("final", "best", "latest", "unavailable", "notes", "tokens", "step")}
    left |= {path.name: path.read_bytes() for path in (directory / "outputs").glob("*")}
    return {place: value for place, value in left.items() if not NOT_COMPARED.search(place)}


def leaves(value: Any, place: str) -> Any:
    """The tensors and primitives of a checkpoint by their place."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from leaves(inside, f"{place}.{key}")
    elif isinstance(value, (list, tuple)):
        for number, inside in enumerate(value):
            yield from leaves(inside, f"{place}.{number}")
    else:
        yield place, value


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The places where two runs differ in any bit."""
    return [place for place in sorted({*one, *other}) if not same(one.get(place), other.get(place))]


def same(one: Any, other: Any) -> bool:
    """Whether two values have the same bits."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    return type(one) is type(other) and one == other


class Trials:
    """Runs of all families and variants in one folder, with those that were never stopped."""

    def __init__(self, draw: random.Random, most_kills: int) -> None:
        self.draw, self.most_kills = draw, most_kills
        self.references: dict[tuple[str, int], tuple[dict[str, Any], float]] = {}

    def kill_and_resume(self, family: str, number: int) -> tuple[int, list[str]]:
        """(kills, what differs in the end) of one run."""
        words, (expected, seconds) = self._variant(family, number)
        directory = Path("killed", f"{family}-{number}")
        kills = 0
        while kills == 0:
            shutil.rmtree(directory, ignore_errors=True)
            wanted = self.draw.randint(1, self.most_kills)
            while kills < wanted and kill_at(words, directory, self.draw.uniform(0, seconds)):
                kills += 1
        finish(words, directory)
        return kills, differing(expected, what_is_left(directory))

    def damage_and_resume(self, family: str, number: int, kind: str) -> tuple[bool, bool]:
        """(found out, recovered from the one before) of a checkpoint that is cut short or has a bit flipped."""
        words, (expected, seconds) = self._variant(family, number)
        directory = Path("damaged", f"{kind}-{family}-{number}")
        numbered: list[Path] = []
        while len(numbered) < 2:
            shutil.rmtree(directory, ignore_errors=True)
            was_killed = kill_at(words, directory, self.draw.uniform(0.3, 1.0) * seconds)
            seconds *= 1 if was_killed else 0.9  # the machine was busier when it was timed
            found = (directory / "checkpoints").glob("step=*.ckpt") if was_killed else []
            numbered = sorted(found, key=lambda path: int(path.stem.removeprefix("step=")))
        newest = find_resume(directory)
        before = numbered[-2]
        if newest != numbered[-1]:
            raise RuntimeError(f"{directory} would go on from {newest}, and the newest is {numbered[-1]}")
        damage(newest, kind, self.draw)
        said: list[str] = []
        found_out = find_resume(directory, say=said.append) == before and "is damaged" in said[0]
        finish(words, directory)
        log = Path(f"{directory}.log").read_text()
        different = differing(expected, what_is_left(directory))
        recovered = f"going on from {before}" in log and not different
        if not (found_out and recovered):
            print(
                f"{directory}: said {said}; {len(different)} places differ: {', '.join(different[:5])}", file=sys.stderr
            )
        return found_out, recovered

    def _variant(self, family: str, number: int) -> tuple[list[str], tuple[dict[str, Any], float]]:
        base, variants = FAMILIES[family]
        key = (family, number % len(variants))
        words = f"{base} {TINY} {variants[key[1]]}".split()
        if key not in self.references:
            directory, started = Path("whole", f"{family}-{key[1]}"), time.monotonic()
            finish(words, directory)
            self.references[key] = (what_is_left(directory), time.monotonic() - started)
        return words, self.references[key]


def damage(path: Path, kind: str, draw: random.Random) -> None:
    """Cuts a file short at a random byte, or flips one random bit of it."""
    data = bytearray(path.read_bytes())
    place = draw.randrange(len(data))
    if kind == "torn":
        data = data[:place]
    else:
        data[place] ^= 1 << draw.randrange(8)
    path.write_bytes(data)


def main() -> int:
    """Prints both tables; exit status 1 where anything differs or was not found out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--kills", type=int, default=3, help="of a run, at most")
    parser.add_argument("--damaged", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for base, variants in FAMILIES.values():
        with ConfigSpace([]) as space:  # Hydra's plugins, and the classes that the configurations name
            check(space.compose(f"{base} {variants[0]}".split()))
    trials, kills, runs, equal = (
        Trials(random.Random(arguments.seed), arguments.kills),
        Counter[str](),
        Counter[str](),
        Counter[str](),
    )
    damages: dict[str, Counter[str]] = {"torn": Counter(), "flipped": Counter()}
    names = list(FAMILIES)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["ATTNLAB_CACHE"] = str(Path(folder, "cache"))
        write_data(Path(folder), trials.draw)
        for part in ("whole", "killed", "damaged"):
            Path(part).mkdir()
        for number in range(arguments.runs):
            family = names[number % len(names)]
            count, different = trials.kill_and_resume(family, number // len(names))
            kills[family] += count
            runs[family] += 1
            equal[family] += not different
            if different:
                print(f"{family} {number}: {len(different)} places differ: {', '.join(different[:5])}", file=sys.stderr)
        for kind, counts in damages.items():
            for number in range(arguments.damaged):
                found_out, recovered = trials.damage_and_resume(names[number % len(names)], number // len(names), kind)
                counts.update(made=1, found_out=found_out, recovered=recovered)
        os.chdir("/")
    print(f"{'family':12} {'runs':>5} {'kills':>6} {'equal':>6}")
    for family in [name for name in names if runs[name]]:
        print(f"{family:12} {runs[family]:5} {kills[family]:6} {equal[family]:6}")
    print(f"{'all':12} {runs.total():5} {kills.total():6} {equal.total():6}")
    print(f"\n{'checkpoints':12} {'made':>5} {'found out':>10} {'recovered':>10}")
    for kind, counts in damages.items():
        print(f"{kind:12} {counts['made']:5} {counts['found_out']:10} {counts['recovered']:10}")
    all_well = equal == runs and all(c["made"] == c["found_out"] == c["recovered"] for c in damages.values())
    return 0 if all_well else 1


if __name__ == "__main__":
    sys.exit(main())
