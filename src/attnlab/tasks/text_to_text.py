"""Several text-to-text tasks in one model, each with figures of its own."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from attnlab.data.text_to_text import TextToTextData
from attnlab.tasks.translation import Translation
from attnlab.training import NUM_SAMPLES, Table
from attnlab.training.bleu import corpus_scores
from attnlab.training.measures import of_both_parts


class TextToText(Translation):
    """
    Translation's training and search on a mixture of tasks (Raffel et al. 2020, section 2.4).

    The outputs of each task are scored as texts: `test/exact@TASK`, the share that are the reference itself (the accuracy, where
    targets are the names of classes), `test/bleu@TASK` and `test/chrf@TASK`. `test/exact` is their mean over the tasks.
    """

    headline = ("val/nats", "val/exact", "test/exact")
    data_type = TextToTextData

    @classmethod
    def metric_names(cls, config: Mapping[str, Any]) -> Sequence[str]:
        """The figures of both parts, of each task and of all."""
        smoothed = ("smoothed_nats",) if config["task"].get("label_smoothing") else ()
        tasks = config["data"].get("tasks") or ("*",)
        of_tasks = [f"{measure}@{task}" for task in tasks for measure in ("exact", "bleu", "chrf")]
        return of_both_parts(("nats", *smoothed, "exact", *of_tasks))

    def evaluate(self, data: Any, split: str = "test") -> dict[str, float]:
        """Nats of a split, and the figures of each of its tasks; `cannot` names the tasks that have no example there."""
        prefix = {"validation": "val"}.get(split, split)
        loader = data.evaluation_loader(split)
        figures = dict(self.score(loader))
        hypotheses = {i: data.decode_target(found[0].tokens) for i, found in self.translations(loader).items()}
        references, tasks = data.references(split), data.tasks_of(split)
        exact = []
        for name in data.source.tasks:
            rows = [i for i in hypotheses if tasks[i] == name]
            if not rows:
                self.cannot[f"{prefix}/exact@{name}"] = f"the task has no example in the {split} part"
                continue
            outputs, wanted = [hypotheses[i] for i in rows], [references[i] for i in rows]
            exact.append(sum(map(str.__eq__, outputs, wanted)) / len(rows))
            language = data.source.tasks[name].source.target_language
            scores, signatures = corpus_scores(outputs, wanted, self.tokenizer_of(language))
            self.notes |= {f"{prefix}/{metric}@{name}": signature for metric, signature in signatures.items()}
            figures |= {f"exact@{name}": exact[-1], **{f"{metric}@{name}": score for metric, score in scores.items()}}
        figures["exact"] = sum(exact) / len(exact)
        self.outputs[f"{split}.outputs.txt"] = "".join(f"{tasks[i]}\t{text}\n" for i, text in hypotheses.items())
        return {f"{prefix}/{name}": value for name, value in figures.items()}

    def samples(self, data: Any, split: str = "test") -> Table | None:
        """The first sources with their references and outputs."""
        lines = self.outputs.get(f"{split}.outputs.txt", "").split("\n")[:-1]
        outputs = (line.partition("\t")[2] for line in lines)
        texts = zip(data.tasks_of(split), data.sources(split), data.references(split), outputs, strict=True)
        return Table(("task", "source", "reference", "output"), list(itertools.islice(texts, NUM_SAMPLES)))
