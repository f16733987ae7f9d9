"""A trained run in a notebook: its model and figures, what it writes and translates, what its heads attend to."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
from markupsafe import Markup
from torch import nn

from attnlab.config import UsageError
from attnlab.data import Tokenizer
from attnlab.generation import Sampler
from attnlab.inspection.heads import role_of
from attnlab.models import LanguageModel, Seq2Seq, ViT, Whisper, idle_parameters
from attnlab.parts import Config
from attnlab.report.attention import render
from attnlab.runs.inspected import Found, InspectedRun
from attnlab.runs.texts import Translator, Writer
from attnlab.tasks import Translation
from attnlab.training.run_directory import STATUS, read_json
from attnlab.training.study_fields import is_finite

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FRAME = '<iframe srcdoc="{}" title="{}" style="width: 100%; height: 46rem; border: 0" sandbox="allow-scripts"></iframe>'
CHECKPOINTS = ("last", "best")
METHODS = {"generate": "a language model", "translate": "task=translation", "attention": "a model that reads text"}


@dataclass(frozen=True, repr=False)
class Attention:
    """What the heads of a run attend to in a text, which a notebook shows as a page to look around in."""

    name: str
    found: Found

    @property
    def heads(self) -> pl.DataFrame:
        """A row a head: kind, layer, head, its role, if any, and a column a statistic, those of heads.csv."""
        names = dict.fromkeys(name for scores in self.found.scores.values() for name in scores)
        rows = [
            {
                "kind": head.kind,
                "layer": head.layer,
                "head": head.head,
                "role": role.name if (role := role_of(scores)) else "",
                **{name: scores[name].value if name in scores else None for name in names},
            }
            for head, scores in self.found.scores.items()
        ]
        return pl.DataFrame(rows, schema_overrides=dict.fromkeys(names, pl.Float64), infer_schema_length=None)

    def figure(self, head: str | None = None) -> Figure:
        """One head with its tokens, in the style of a paper. head: LAYER.HEAD, with or without its kind before it; the
        one whose role is clearest by default. Raises UsageError where there is no such head."""
        from attnlab.report.figures.attention import head_figure  # loads matplotlib
        from attnlab.report.figures.style import paper_style

        with paper_style():
            figure = head_figure(self.found.examples[0], self.found.scores, self.found.head(head))
            figure.canvas.draw()
        return figure

    def _repr_html_(self) -> str:
        """The page of `attnlab attention` in a frame: its styles and scripts are its own."""
        page = render(self.name, self.found.examples, self.found.scores)
        return str(Markup(FRAME).format(page, f"What the heads of {self.name} attend to"))

    def __repr__(self) -> str:
        kinds = ", ".join(self.found.examples[0].kinds)
        return f"Attention of {self.name} ({kinds}; {len(self.found.scores)} heads) in {self.found.examples[0].title!r}"


class Run:
    """A trained run: `model` in evaluation mode on the CPU, `tokenizer` if it has one, `config` as it was composed."""

    def __init__(self, path: Path, checkpoint: str) -> None:
        self._inspected = InspectedRun(path, checkpoint)
        self.path, self.checkpoint = path, checkpoint
        self.name = self._inspected.name
        self.config: Config = self._inspected.record["config"]
        self.model: nn.Module = self._inspected.model.eval()
        self.tokenizer: Tokenizer | None = self._inspected.tokenizer

    @property
    def metrics(self) -> dict[str, float]:
        """The final figures that are finite, by name; none of a run that is not finished."""
        status = read_json(self.path / STATUS, {})
        final = (status.get("final") or {}) if status.get("state") == "finished" else {}
        return {name: float(value) for name, value in final.items() if is_finite(value)}

    @property
    def methods(self) -> list[str]:
        """Which of generate, translate and attention this run has."""
        has = {
            "generate": isinstance(self.model, LanguageModel) and self.tokenizer is not None,
            "translate": isinstance(self._inspected.task, Translation),
            "attention": self.tokenizer is not None and not isinstance(self.model, ViT | Whisper),
        }
        return [name for name, there in has.items() if there]

    def generate(
        self,
        prompt: str,
        max_new_tokens: int = 200,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        seed: int = 0,
    ) -> str:
        """The prompt with what the model writes after it; temperature 0 is greedy. Raises UsageError where the run has
        no such method or the prompt is empty, ValueError for a setting out of range or a text that it cannot read."""
        self._check("generate")
        writer = Writer.of(self.path, self.model, self.tokenizer)
        sampler = Sampler(temperature, top_k, top_p, min_p)
        return writer.go_on([prompt], max_new_tokens, sampler, seed, "prompt")[0]

    def translate(
        self, texts: Sequence[str], num_beams: int | None = None, length_penalty: float | None = None
    ) -> list[str]:
        """The best translation of each text, by beam search as in the run's evaluation where nothing else is given; the
        run's data must be there. Raises UsageError where the run has no such method, ValueError for a setting out of
        range or a text that it cannot read."""
        self._check("translate")
        if isinstance(texts, str):
            raise UsageError(f"texts must be a list of texts, got the text {texts[:60]!r}; write [TEXT]")
        if cut := self._translator.cut(texts):
            warnings.warn(cut, stacklevel=2)
        search = self._translator.search(num_beams, length_penalty)
        found = self._translator.task.translate(self._translator.data, texts, search)
        return [best[0][0] for best in found]

    @cached_property
    def _translator(self) -> Translator:
        return Translator(self.path, self.checkpoint)

    def attention(self, text: str, target: str | None = None) -> Attention:
        """What the heads attend to in a text. target: of a sequence-to-sequence model, by default what it gives itself.
        Raises UsageError where the run has no such method, or text or target do not fit it."""
        self._check("attention")
        if target is not None and not isinstance(self.model, Seq2Seq):
            kind = type(self.model).__name__
            raise UsageError(f"{self.path}: {kind} reads one text, got a target as well; it belongs to a translator")
        found = self._inspected.look_at_texts([text], [] if target is None else [target], None, None, 1)
        return Attention(self.name, found)

    def _check(self, method: str) -> None:
        if method not in self.methods:
            kind, task = type(self.model).__name__, type(self._inspected.task).__name__
            has = " and ".join(self.methods) or "none of generate, translate and attention"
            raise UsageError(
                f"{self.path}: a run of {task} ({kind}) has no {method}, which takes {METHODS[method]}; it has {has}"
            )

    def __repr__(self) -> str:
        kind, size = type(self.model).__name__, sum(weights.numel() for weights in self.model.parameters())
        figures = ", ".join(f"{name} {value:.4g}" for name, value in list(self.metrics.items())[:3])
        idle = idle_parameters(self.model)
        active = f" ({size - idle:,} active for a token)" if idle else ""
        return f"Run({str(self.path)!r}: {kind} of {size:,} parameters{active}; {figures or 'not finished'})"


def load_run(path: str | Path, checkpoint: str = "last") -> Run:
    """A run by its directory; checkpoint: "last" or "best". Raises UsageError where there is none."""
    if checkpoint not in CHECKPOINTS:
        raise UsageError(f"checkpoint must be one of {', '.join(CHECKPOINTS)}, got {checkpoint!r}")
    return Run(Path(path), checkpoint)
