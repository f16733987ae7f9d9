"""Translation, and any other task of a target text given a source text. Legend: B batch, S source length, T target length, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import shorten
from typing import Any, ClassVar

import sacrebleu
from torch import Tensor
from torch.optim import Optimizer

from attnlab.data.marks import Marks
from attnlab.data.translation import TranslationData
from attnlab.generation.beam import BeamSearch, Hypothesis, decode
from attnlab.models.seq2seq import Seq2Seq
from attnlab.ranges import NonNegativeFloat, NonNegativeInt, PositiveInt, Rate, check_ranges
from attnlab.tasks.losses import IGNORED, cross_entropy_sums
from attnlab.training import Table, TokenTask
from attnlab.training.bleu import check_tokenizer, corpus_scores, metrics, tokenizer_for
from attnlab.training.measures import of_both_parts

EXCERPT = 60  # characters of a sentence in a message
NUM_OF_EACH, MOST_SCORED = 8, 2000  # translations of a table of samples; sentences that they are chosen from
BUCKETS = ((1, 5), (6, 10), (11, 20), (21, None))  # source tokens, both included


@check_ranges
class Translation(TokenTask):
    """
    Teacher forcing with label smoothing; nats a target token, the end included, always without smoothing beside it.

    At the end a split is translated by beam search (`beams`, `length_penalty`, `max_extra`: see BeamSearch) and
    scored on its own text, detokenised, with sacreBLEU: BLEU and chrF over the corpus, and BLEU by the number of
    source tokens (`test/bleu@6-10`), marks left out. bleu_tokenize: sacreBLEU's name of what cuts a text into BLEU's
    words; None: what the target language asks for. `notes` says how each was computed, and `outputs` holds the
    translations and the references that they were scored on.
    """

    headline: ClassVar[Sequence[str]] = ("val/nats", "val/bleu", "test/bleu", "test/chrf")
    data_type: ClassVar[type] = TranslationData
    model_type: ClassVar[type] = Seq2Seq

    def __init__(
        self,
        model: Seq2Seq,
        optimizer: Callable[..., Optimizer],
        schedule: Callable[..., Any],
        marks: Marks,
        label_smoothing: Rate = 0.1,
        beams: PositiveInt = 4,
        length_penalty: NonNegativeFloat = 0.6,
        max_extra: NonNegativeInt = 50,
        bleu_tokenize: str | None = None,
        log_every: PositiveInt = 10,
    ) -> None:
        super().__init__(model, optimizer, schedule, log_every)
        self.marks, self.label_smoothing = marks, label_smoothing
        self.search = BeamSearch(beams, length_penalty, max_extra)
        if bleu_tokenize is not None:
            check_tokenizer(bleu_tokenize)
        self.bleu_tokenize = bleu_tokenize
        self.loss_name = "smoothed_nats" if label_smoothing else "nats"

    @classmethod
    def metric_names(cls, config: Mapping[str, Any]) -> Sequence[str]:
        """The figures of both parts; BLEU also by length."""
        smoothed = ("smoothed_nats",) if config["task"].get("label_smoothing") else ()
        return of_both_parts(
            ("nats", *smoothed, "bleu", "chrf", *(f"bleu@{bucket_name(*bucket)}" for bucket in BUCKETS))
        )

    def loss_sums(self, batch: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """Summed cross-entropy of the batch's target tokens, and how many they are."""
        logits_BTV = self.model(
            batch["source"], batch["target_in"], mask_of(batch["is_source"]), mask_of(batch["is_target"])
        )
        targets_BT = batch["target_out"].masked_fill(~batch["is_target"], IGNORED)
        smoothed, nats = cross_entropy_sums(logits_BTV.flatten(0, 1), targets_BT.flatten(), self.label_smoothing)
        if self.label_smoothing:
            self.also({"nats": nats})
        return smoothed, int(batch["is_target"].sum())

    def targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The target tokens, END included."""
        return batch["target_out"][batch["is_target"]]

    def check_split(self, data: TranslationData, split: str) -> None:
        """
        Raises ValueError where a source or a target of the split is longer than the model's table of positions, and
        where BLEU of its language needs what is not installed.
        """
        assert isinstance(self.model, Seq2Seq)
        for language in data.target_languages():
            metrics(self.tokenizer_of(language))
        limit, pairs = self.model.longest, data.split(split)
        for side, lengths_N in zip(("source", "target"), pairs.lengths.T, strict=True):
            row = int(lengths_N.argmax())
            if limit is not None and lengths_N[row] > limit:
                text = getattr(pairs.texts, f"{side}s")[row]
                raise ValueError(
                    f"the {side} of pair {pairs.places[row] + 1:,} of the {split} part takes {lengths_N[row]:,} positions, a mark "
                    f"included, and the model's table has {limit:,}; set model.max_length={lengths_N[row]} or more, or leave the pair "
                    f"out: {shorten(text, EXCERPT, placeholder=' ...')}"
                )

    def validate(self, data: TranslationData) -> dict[str, float]:
        """Nats, BLEU and chrF of the validation part."""
        return self.evaluate(data, "validation")

    def evaluate(self, data: TranslationData, split: str = "test") -> dict[str, float]:
        """Nats, BLEU and chrF of a split, and BLEU by source length; `cannot` names the lengths that no sentence has."""
        prefix = {"validation": "val"}.get(split, split)
        loader = data.evaluation_loader(split)
        nats = {f"{prefix}/{name}": value for name, value in self.score(loader).items()}
        best = self.translations(loader)
        hypotheses = [data.decode_target(found[0].tokens) for found in best.values()]
        references, tokenize = data.references(split), self.tokenizer_of(*data.target_languages())
        figures, signatures = corpus_scores(hypotheses, references, tokenize)
        self.notes |= {f"{prefix}/{name}": signature for name, signature in signatures.items()}
        self.outputs[f"{split}.translations.txt"] = "".join(f"{hypothesis}\n" for hypothesis in hypotheses)
        self.outputs[f"{split}.references.txt"] = "".join(f"{reference}\n" for reference in references)
        by_length, empty = scores_by_length(hypotheses, references, data.source_lengths(split), tokenize)
        self.cannot |= {f"{prefix}/bleu@{name}": "no source has this many tokens" for name in empty}
        return nats | {f"{prefix}/{name}": value for name, value in (figures | by_length).items()}

    def tokenizer_of(self, language: str) -> str:
        """sacreBLEU's name of what cuts texts of a target language into BLEU's words."""
        return self.bleu_tokenize or tokenizer_for(language)

    def samples(self, data: TranslationData, split: str = "test") -> Table | None:
        """The first sources with their references and translations, then the best and the worst of the others by the chrF of the sentence."""
        translated = self.outputs.get(f"{split}.translations.txt", "").split("\n")[:-1]
        texts = list(zip(data.sources(split), data.references(split), translated, strict=True))[:MOST_SCORED]
        metric = sacrebleu.CHRF()
        scores = [metric.sentence_score(translation, [reference]).score for _, reference, translation in texts]
        rest = sorted(range(NUM_OF_EACH, len(texts)), key=lambda row: -scores[row])
        half = max(len(rest) - NUM_OF_EACH, (len(rest) + 1) // 2)
        chosen = {
            "first": range(min(NUM_OF_EACH, len(texts))),
            "best": rest[:half][:NUM_OF_EACH],
            "worst": rest[half:][::-1],
        }
        rows = [(which, *texts[row], round(scores[row], 1)) for which, places in chosen.items() for row in places]
        return Table(("of", "source", "reference", "translation", "chrF"), rows)

    def translations(self, loader: Any, search: BeamSearch | None = None) -> dict[int, list[Hypothesis]]:
        """The best hypotheses of every example of a loader, by its id."""
        return self.predictions(loader, lambda batch: self.translate_batch(batch, search))

    def translate(
        self, data: TranslationData, lines: Sequence[str], search: BeamSearch | None = None
    ) -> list[list[tuple[str, Hypothesis]]]:
        """The best translations of each line with their hypotheses, best first; an empty line gives itself."""
        full = [i for i, line in enumerate(lines) if line.strip()]
        found = self.translations(data.source_loader([lines[i] for i in full]), search)
        translated = {i: found[place] for place, i in enumerate(full)}
        nothing = [("", Hypothesis([], 0.0, 0.0))]
        texts = {i: [(data.decode_target(h.tokens), h) for h in best] for i, best in translated.items()}
        return [texts.get(i, nothing) for i in range(len(lines))]

    def translate_batch(self, batch: Mapping[str, Tensor], search: BeamSearch | None = None) -> list[list[Hypothesis]]:
        """The best hypotheses of each source of a batch."""
        assert isinstance(self.model, Seq2Seq)
        start, end = self.marks.need("target_start"), self.marks.need("end")
        is_source_BS = mask_of(batch["is_source"])
        return decode(self.model, batch["source"], is_source_BS, search or self.search, start, end, self.marks.never)


def mask_of(is_token_BS: Tensor) -> Tensor | None:
    """The mask, or None where nothing is padding: a model then needs none. Not looked at on a GPU, which would wait for it."""
    return None if is_token_BS.device.type == "cpu" and bool(is_token_BS.all()) else is_token_BS


def bucket_name(low: int, high: int | None) -> str:
    """6-10, or 21+ where there is no end."""
    return f"{low}+" if high is None else f"{low}-{high}"


def scores_by_length(
    hypotheses: Sequence[str], references: Sequence[str], lengths: Sequence[int], tokenize: str
) -> tuple[dict[str, float], list[str]]:
    """
    BLEU of the sentences in each bucket of source tokens, of which `lengths` counts each one's, and the buckets that
    have none.
    """
    scores, empty = {}, []
    for low, high in BUCKETS:
        name = bucket_name(low, high)
        rows = [i for i, length in enumerate(lengths) if low <= length <= (high or 10**9)]
        if rows:
            found, _ = corpus_scores([hypotheses[i] for i in rows], [references[i] for i in rows], tokenize)
            scores[f"bleu@{name}"] = found["bleu"]
        else:
            empty.append(name)
    return scores, empty
