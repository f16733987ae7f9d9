"""What the heads of a trained run attend to on texts, images or recordings, what each does, what is lost without it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from attnlab.config import UsageError
from attnlab.data import Tokenizer
from attnlab.data.audio import read_audio
from attnlab.data.image_data import PixelData
from attnlab.data.images import read_pixels
from attnlab.data.readers import read_lines
from attnlab.generation.beam import BeamSearch
from attnlab.inspection.ablation import Effect, TaskLosses, ablate, heads_of, text_losses
from attnlab.inspection.attended import Attended, Reader, read_image, read_recording
from attnlab.inspection.attention_maps import Head
from attnlab.inspection.heads import Scores, head_scores, heads_csv, heads_json, merged, repeat_scores
from attnlab.inspection.syntactic_agreement import Agreement, Sentence, agreement, read_sentences, syntax_csv
from attnlab.models import CLIP, LanguageModel, Seq2Seq
from attnlab.models.vit import ViT
from attnlab.runs.record import read_record
from attnlab.runs.trained import load_run, load_task
from attnlab.runs.transcribed import Transcriber
from attnlab.training.run_directory import write_json, write_text

MOST_EXAMPLES = 256  # that heads are masked on
TRANSLATES = "a sequence-to-sequence model, such as model=encoder_decoder"


@dataclass(frozen=True)
class Found:
    """All that was found out about a run."""

    examples: list[Attended]
    scores: Scores
    effects: dict[Head, Effect] | None
    syntax: list[Agreement]

    def head(self, words: str | None) -> Head | None:
        """The head that is named LAYER.HEAD, with or without its kind. Raises: UsageError where there is none."""
        if words is None:
            return None
        known = {f"{head.layer}.{head.head}": head for head in reversed(self.scores)}
        known |= {str(head): head for head in self.scores}
        if words not in known:
            some = ", ".join(list(known)[:4])
            raise UsageError(
                f"--head {words}: there is no such head; accepted are LAYER.HEAD, as in {some}, with or without a kind"
            )
        return known[words]

    def write_tables(self, folder: Path) -> None:
        """heads.csv, heads.json and, where there are dependencies, syntax.csv."""
        write_text(folder / "heads.csv", heads_csv(self.scores, self.effects), durable=False)
        write_json(folder / "heads.json", heads_json(self.scores, self.effects), durable=False)
        if self.syntax:
            write_text(folder / "syntax.csv", syntax_csv(self.syntax), durable=False)


class InspectedRun:
    """A trained run whose heads are looked at; where texts or images do not fit it, its methods raise UsageError."""

    def __init__(self, directory: Path, checkpoint: str) -> None:
        self.directory, self.checkpoint = directory, checkpoint
        self.record = read_record(directory)
        self.name = str(self.record.get("name", directory.name))
        self.task, self.tokenizer = load_task(directory, checkpoint)
        self.model = self.task.model
        self.kind = type(self.model).__name__

    def look_at_texts(
        self, texts: Sequence[str], targets: Sequence[str], lines: Path | None, trees: Path | None, num_maps: int
    ) -> Found:
        """The heads on texts, with their targets if any, on those of a file and on the sentences of dependency trees.

        num_maps: the first examples, which keep their maps; of the others the tokens stay.
        """
        examples: list[Attended] = []
        with self._refusing():
            reader = self._reader(bool(targets))
            sentences = read_sentences(trees) if trees else []
            scores = head_scores(_read(reader, _given(texts, targets, lines, sentences), examples, num_maps))
            # Read once more, one by one: all maps together may be more than memory holds.
            syntax = agreement((reader.read(sentence.text) for sentence in sentences), sentences)
            if isinstance(self.model, LanguageModel) and self.tokenizer is not None:
                context = self.record["config"]["data"].get("context_length")
                scores = merged(scores, repeat_scores(self.model, self.tokenizer, context))
        return Found(examples, scores, None, syntax)

    def look_at_images(self, names: Sequence[str]) -> Found:
        """The heads on image files, scaled and cut as in training."""
        if not isinstance(self.model, ViT | CLIP):
            raise UsageError(f"{self.directory}: {self.kind} looks at no image; give it --text TEXT")
        tower = self.model.image if isinstance(self.model, CLIP) else self.model
        with self._refusing():
            mean_C, deviation_C = self._moments()
            rows, columns = tower.image_size
            found = []
            for name in names:
                open_image = partial(Image.open, name)
                pixels_CYX = read_pixels(name, open_image, rows if rows == columns else None, tower.channels)
                if pixels_CYX.shape[1:] != (rows, columns):
                    size = "{} x {}".format(*pixels_CYX.shape[1:])
                    raise UsageError(f"--image {name} has {size} pixels (rows x columns); accepted: {rows} x {columns}")
                found.append(read_image(self.model, pixels_CYX, mean_C, deviation_C, Path(name).name))
            return Found(found, head_scores(found), None, [])

    def look_at_recordings(self, names: Sequence[str], said: Sequence[str]) -> Found:
        """The heads on the first window of audio files, with what is said in them if it is given."""
        run = Transcriber(self.directory, self.checkpoint)
        with self._refusing():
            found = []
            for place, name in enumerate(names):
                features_MF = run.log_mel([read_audio(Path(name))])[0]
                target = said[place] if said else None
                title = Path(name).name
                found.append(read_recording(run.model, run.vocabulary, run.tokens, features_MF, target, title))
            return Found(found, head_scores(found), None, [])

    def with_effects(self, found: Found, examples: str | None, num_batches: int) -> Found:
        """With what masking each head does to the loss: of the texts given (`text`), or of validation batches."""
        if examples is None:
            return found
        with self._refusing():
            if examples == "text":
                of_texts = text_losses(self.model, found.examples)
                _say(len(heads_of(self.model)), len(found.examples), "texts given")
                return replace(found, effects=ablate(self.model, of_texts))
            parts, task = load_run(self.directory, self.checkpoint)
            loader = parts.data.val_dataloader()
            # The longest come first in some loaders: batches from all over are like the whole.
            spread = np.linspace(0, len(loader) - 1, min(num_batches, len(loader)))
            places = set(spread.round().astype(int).tolist())
            losses = TaskLosses(task, [batch for place, batch in enumerate(loader) if place in places], MOST_EXAMPLES)
            _say(len(heads_of(task.model)), losses.count, "validation examples")
            return replace(found, effects=ablate(task.model, losses))

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """What cannot be looked at is said of the run."""
        try:
            yield
        except ValueError as error:
            raise UsageError(f"{self.directory}: {error}") from error

    def _reader(self, with_targets: bool) -> Reader:
        """What reads the run's texts, and translates them as the run was evaluated."""
        if isinstance(self.model, ViT) or self.tokenizer is None:
            raise UsageError(f"{self.directory}: {self.kind} reads no text; give it --image FILE")
        if with_targets and not isinstance(self.model, Seq2Seq):
            raise UsageError(f"{self.directory}: {self.kind} takes no --target; it belongs to {TRANSLATES}")
        own = self.directory / "source_tokenizer.json"
        settings = self.record["config"]["task"]
        fields = {
            name: settings[name] for name in ("num_beams", "length_penalty", "max_extra_length") if name in settings
        }
        return Reader(self.model, self.tokenizer, Tokenizer.load(own) if own.is_file() else None, BeamSearch(**fields))

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """What the run's images were normalised by: its record says it, or its data do."""
        facts = self.record.get("data", {})
        if "mean" in facts and "deviation" in facts:
            return np.array(facts["mean"]), np.array(facts["deviation"])
        data = load_run(self.directory, self.checkpoint)[0].data
        assert isinstance(data, PixelData)
        return data.mean_C, data.deviation_C


def _given(
    texts: Sequence[str], targets: Sequence[str], lines: Path | None, sentences: Sequence[Sentence]
) -> list[tuple[str, str | None]]:
    """The texts with the targets given, last those of the dependency file. Raises: UsageError where there is none."""
    more = [line for line in read_lines(lines) if line.strip()] if lines else []
    found = [*texts, *more, *(sentence.text for sentence in sentences)]
    if not found:
        raise UsageError(f"--input {lines} holds no text")
    return list(zip(found, [*targets, *[None] * (len(found) - len(targets))], strict=True))


def _read(
    reader: Reader, given: Sequence[tuple[str, str | None]], examples: list[Attended], num_maps: int
) -> Iterator[Attended]:
    """Text by text; what stays of them is added to `examples`."""
    for text, target in given:
        example = reader.read(text, target)
        examples.append(example if len(examples) < num_maps else replace(example, maps=[]))
        yield example


def _say(heads: int, examples: int, of_what: str) -> None:
    print(f"masking {heads} heads, one at a time; {of_what}: {examples}", file=sys.stderr)
