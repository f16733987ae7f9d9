"""Translation, and any other task of a target text given a source text. Legend: B batch, S source length, T target
length, V vocabulary."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from textwrap import shorten
from typing import Any, ClassVar

import sacrebleu
from torch import Tensor

from attnlab.data.module import IGNORED
from attnlab.data.special_tokens import SpecialTokens
from attnlab.data.translation import TextToTextData, TranslationData
from attnlab.generation.beam import BeamSearch, Hypothesis, decode
from attnlab.models.base import Seq2Seq
from attnlab.parts import Config, Prepared
from attnlab.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, Rate, check_ranges
from attnlab.training import metrics
from attnlab.training.loss import LossSums, cross_entropy_sums
from attnlab.training.metrics import BLEU, CHRF, EXACT, LOSS, LOSS_SMOOTHED, Metric, corpus_scores, prefix_of
from attnlab.training.task import Batch, Task
from attnlab.training.tracking import NUM_SAMPLES, Table

EXCERPT = 60  # characters of a sentence in a message
NUM_OF_EACH, MOST_SCORED = 8, 2000  # translations of a table of samples; sentences that they are chosen from
BUCKETS = {"1-5": (1, 5), "6-10": (6, 10), "11-20": (11, 20), "21+": (21, 10**9)}  # source tokens, both included


class TeacherForced(Task):
    """A target text token by token, each given those before it. A subclass gives `teacher_forced` and `metrics`.

    decode: at the end a split is decoded and the texts are scored; where not, its loss alone is reported, in a fraction
    of the time.
    """

    model_type: ClassVar[type] = Seq2Seq

    def __init__(
        self, model: Seq2Seq, special_tokens: SpecialTokens, label_smoothing: float, z_loss: float, decode: bool
    ) -> None:
        super().__init__(model)
        self.special_tokens, self.label_smoothing, self.z_loss = special_tokens, label_smoothing, z_loss
        self.decodes = decode
        self.loss_name = "loss_smoothed" if label_smoothing else "loss"

    @staticmethod
    def losses(config: Config) -> list[Metric]:
        """The metrics of the loss itself."""
        return [LOSS, LOSS_SMOOTHED] if config["task"].get("label_smoothing") else [LOSS]

    @staticmethod
    def scores(config: Config, *metrics: Metric) -> list[Metric]:
        """The metrics of decoded texts: these, or none where nothing is decoded."""
        return list(metrics) if config["task"].get("decode", True) else []

    @abstractmethod
    def teacher_forced(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The logits (B, T, V) of a batch, each given the targets before it, and the targets (B, T), IGNORED at
        padding."""

    def prepare(self, batch: Batch) -> Prepared:
        return counted(batch)

    def loss_sums(self, batch: Batch) -> LossSums:
        batch = self.prepare(batch)
        logits_BTV, targets_BT = self.teacher_forced(batch)
        logits_NV, targets_N = logits_BTV.flatten(0, 1), targets_BT.flatten()
        self.add_z_loss(logits_NV, targets_N)
        smoothed, loss = cross_entropy_sums(logits_NV, targets_N, self.label_smoothing, ignore=IGNORED)
        return LossSums(smoothed, int(batch["num_targets"]), {"loss": loss} if self.label_smoothing else {})


@check_ranges
class Translation(TeacherForced):
    """Teacher forcing with label smoothing; nats a target token, the end included, always without smoothing beside it.

    At the end a split is translated by beam search (`num_beams`, `length_penalty`, `max_extra_length`: see BeamSearch)
    and scored on its own text, detokenised, with sacreBLEU: BLEU and chrF over the corpus, and BLEU by the number of
    source tokens (`test/bleu@6-10`), special tokens left out. bleu_tokenize: sacreBLEU's name of what cuts a text into
    BLEU's words; None: what the target language asks for. `notes` says how each was computed, and `outputs` holds the
    translations and the references that they were scored on.
    """

    headline: ClassVar[Sequence[str]] = ("val/loss", "val/bleu", "test/bleu", "test/chrf")
    use = "translate RUN --input FILE"
    validates_figures = True
    data_type: ClassVar[type] = TranslationData
    model: Seq2Seq

    def __init__(
        self,
        model: Seq2Seq,
        special_tokens: SpecialTokens,
        label_smoothing: Rate = 0.1,
        num_beams: PositiveInt = 4,
        length_penalty: NonNegativeFloat = 0.6,
        max_extra_length: NonNegativeInt = 50,
        bleu_tokenize: str | None = None,
        z_loss: NonNegativeFloat = 0.0,
        decode: bool = True,
    ) -> None:
        super().__init__(model, special_tokens, label_smoothing, z_loss, decode)
        self.search = BeamSearch(num_beams, length_penalty, max_extra_length)
        if bleu_tokenize is not None:
            metrics.check_tokenizer(bleu_tokenize)
        self.bleu_tokenize = bleu_tokenize

    @classmethod
    def metrics(cls, config: Config) -> Sequence[Metric]:
        return [
            *cls.losses(config),
            *cls.scores(config, BLEU, CHRF, BLEU.on("val", "test", at=list(BUCKETS))),
        ]

    def teacher_forced(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return teacher_forced(self.model, batch)

    def targets(self, batch: Batch) -> Tensor:
        """The target tokens, END included."""
        return batch["target_out"][batch["is_target"]]

    def check_split(self, data: TranslationData, split: str) -> None:
        """Raises ValueError where a source or a target of the split is longer than the model's table of positions, and
        where BLEU of its language needs what is not installed."""
        for language in data.target_languages() if self.decodes else ():
            metrics.text_metrics(self.tokenizer_of(language))
        limit, pairs = self.model.longest, data.split(split)
        for side, lengths_N in zip(("source", "target"), pairs.lengths.T, strict=True):
            row = int(lengths_N.argmax())
            if limit is not None and lengths_N[row] > limit:
                text = getattr(pairs.texts, f"{side}s")[row]
                raise ValueError(
                    f"the {side} of pair {pairs.places[row] + 1:,} of the {split} part takes {lengths_N[row]:,} "
                    f"positions, a special token included, and the model's table has {limit:,}; set model.max_length="
                    f"{lengths_N[row]} or more, or leave the pair out: {shorten(text, EXCERPT, placeholder=' ...')}"
                )

    def figures(self, data: TranslationData, split: str) -> dict[str, float]:
        loader = data.evaluation_loader(split)
        figures, references = self.score(loader), data.references(split)
        if not self.decodes:
            return figures
        tokenize = self.tokenizer_of(*data.target_languages())
        hypotheses = [data.decode_target(found[0].tokens) for found in self.translations(loader).values()]
        scores, signatures = corpus_scores(hypotheses, references, tokenize)
        self.notes |= {f"{prefix_of(split)}/{name}": signature for name, signature in signatures.items()}
        self.outputs[f"{split}.translations.txt"] = "".join(f"{hypothesis}\n" for hypothesis in hypotheses)
        self.outputs[f"{split}.references.txt"] = "".join(f"{reference}\n" for reference in references)
        by_length, empty = scores_by_length(hypotheses, references, data.source_lengths(split), tokenize)
        self.unavailable |= {f"{prefix_of(split)}/bleu@{name}": "no source has this many tokens" for name in empty}
        return figures | scores | by_length

    def tokenizer_of(self, language: str) -> str:
        """sacreBLEU's name of what cuts texts of a target language into BLEU's words."""
        return self.bleu_tokenize or metrics.tokenizer_for(language)

    def samples(self, data: TranslationData, split: str = "test") -> Table | None:
        """The first sources with their references and translations, then the best and the worst of the others by the
        chrF of the sentence; None where nothing was decoded."""
        if not self.decodes:
            return None
        translated = self.outputs.get(f"{split}.translations.txt", "").split("\n")[:-1]
        texts = list(zip(data.sources(split), data.references(split), translated, strict=True))[:MOST_SCORED]
        metric = sacrebleu.CHRF()
        scores = [metric.sentence_score(translation, [reference]).score for _, reference, translation in texts]
        rest = sorted(range(NUM_OF_EACH, len(texts)), key=lambda row: -scores[row])
        half = max(len(rest) - NUM_OF_EACH, (len(rest) + 1) // 2)
        chosen: dict[str, Iterable[int]] = {"first": range(min(NUM_OF_EACH, len(texts)))}
        chosen |= {"best": rest[:half][:NUM_OF_EACH], "worst": rest[half:][::-1]}
        rows = [(which, *texts[row], round(scores[row], 1)) for which, places in chosen.items() for row in places]
        return Table(("of", "source", "reference", "translation", "chrF"), rows)

    def translations(self, loader: Iterable[Batch], search: BeamSearch | None = None) -> dict[int, list[Hypothesis]]:
        """The best hypotheses of every example of a loader, by its id."""
        return self.predictions(loader, lambda batch: self.translate_batch(batch, search))

    def translate_batch(self, batch: Batch, search: BeamSearch | None = None) -> list[list[Hypothesis]]:
        """The best hypotheses of each source of a batch."""
        start, end = self.special_tokens.require("target_start"), self.special_tokens.require("end")
        is_source_BS = mask_of(batch["is_source"])
        return decode(
            self.model, batch["source"], is_source_BS, search or self.search, start, end, self.special_tokens.suppressed
        )

    def translate(
        self, data: TranslationData, lines: Sequence[str], search: BeamSearch | None = None
    ) -> list[list[tuple[str, Hypothesis]]]:
        """The best translations of each line with their hypotheses, best first; an empty line gives itself."""
        full = [i for i, line in enumerate(lines) if line.strip()]
        found = self.translations(data.source_loader([lines[i] for i in full]), search)
        translated = {i: [(data.decode_target(h.tokens), h) for h in found[place]] for place, i in enumerate(full)}
        return [translated.get(i, [("", Hypothesis([], 0.0, 0.0))]) for i in range(len(lines))]


class TextToText(Translation):
    """Translation's training and search on a mixture of tasks (Raffel et al. 2020, section 2.4).

    The outputs of each task are scored as texts: `test/exact@TASK`, the share that are the reference itself (the
    accuracy, where targets are the names of classes), `test/bleu@TASK` and `test/chrf@TASK`. `test/exact` is their
    mean.
    """

    headline = ("val/loss", "val/exact", "test/exact")
    data_type = TextToTextData

    @classmethod
    def metrics(cls, config: Config) -> Sequence[Metric]:
        tasks = list(config["data"].get("tasks") or "*")
        by_task = [metric.on("val", "test", at=tasks) for metric in (EXACT, BLEU, CHRF)]
        return [*cls.losses(config), *cls.scores(config, EXACT, *by_task)]

    def figures(self, data: Any, split: str) -> dict[str, float]:
        loader = data.evaluation_loader(split)
        figures, exact = self.score(loader), []
        if not self.decodes:
            return figures
        hypotheses = {i: data.decode_target(found[0].tokens) for i, found in self.translations(loader).items()}
        references, tasks = data.references(split), data.tasks_of(split)
        for name in data.source.tasks:
            rows = [i for i in hypotheses if tasks[i] == name]
            if not rows:
                self.unavailable[f"{prefix_of(split)}/exact@{name}"] = f"the task has no example in the {split} part"
                continue
            outputs, wanted = [hypotheses[i] for i in rows], [references[i] for i in rows]
            exact.append(sum(map(str.__eq__, outputs, wanted)) / len(rows))
            language = data.source.tasks[name].source.target_language
            scores, signatures = corpus_scores(outputs, wanted, self.tokenizer_of(language))
            self.notes |= {f"{prefix_of(split)}/{metric}@{name}": said for metric, said in signatures.items()}
            figures |= {f"exact@{name}": exact[-1], **{f"{metric}@{name}": score for metric, score in scores.items()}}
        figures["exact"] = sum(exact) / len(exact)
        self.outputs[f"{split}.outputs.txt"] = "".join(f"{tasks[i]}\t{text}\n" for i, text in hypotheses.items())
        return figures

    def samples(self, data: Any, split: str = "test") -> Table | None:
        """The first sources with their references and outputs; None where nothing was decoded."""
        if not self.decodes:
            return None
        lines = self.outputs.get(f"{split}.outputs.txt", "").split("\n")[:-1]
        outputs = (line.partition("\t")[2] for line in lines)
        texts = zip(data.tasks_of(split), data.sources(split), data.references(split), outputs, strict=True)
        return Table(("task", "source", "reference", "output"), list(itertools.islice(texts, NUM_SAMPLES)))


def mask_of(is_token_BS: Tensor) -> Tensor | None:
    """The mask, or None where nothing is padding: a model then needs none. Not looked at on a GPU, which would wait."""
    return None if is_token_BS.device.type == "cpu" and bool(is_token_BS.all()) else is_token_BS


def counted(batch: Batch) -> Prepared:
    """The batch with the number of its target tokens."""
    if "num_targets" in batch:
        return batch
    is_target_BT = batch["is_target"] if "is_target" in batch else batch["targets"] != IGNORED
    return {**batch, "num_targets": int(is_target_BT.sum())}


def teacher_forced(model: Seq2Seq, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits (B, T, V) of a batch, each given the targets before it, and the targets (B, T), IGNORED at padding."""
    logits_BTV: Tensor = model(batch["source"], batch["target_in"], mask_of(batch["is_source"]))
    return logits_BTV, batch["target_out"].masked_fill(~batch["is_target"], IGNORED)


def scores_by_length(
    hypotheses: Sequence[str], references: Sequence[str], lengths: Sequence[int], tokenize: str
) -> tuple[dict[str, float], list[str]]:
    """BLEU of the sentences in each bucket of source tokens, of which `lengths` counts each one's, and the buckets that
    have none."""
    scores = {}
    for name, (low, high) in BUCKETS.items():
        rows = [i for i, length in enumerate(lengths) if low <= length <= high]
        if rows:
            found, _ = corpus_scores([hypotheses[i] for i in rows], [references[i] for i in rows], tokenize)
            scores[f"bleu@{name}"] = found["bleu"]
    return scores, [name for name in BUCKETS if f"bleu@{name}" not in scores]
