"""The special tokens of Whisper: what a prompt asks for, and what the model says of time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

MULTILINGUAL = 51865  # rows of a vocabulary from which on a published model is multilingual, as in the published code
START_OF_TRANSCRIPT = "<|startoftranscript|>"
# Fields of WhisperTokens and the texts of the tokens, of which a tokenizer has the first that it knows.
TEXTS = {
    "start": ("startoftranscript",),
    "end": ("endoftext",),
    "transcribe": ("transcribe",),
    "translate": ("translate",),
    "no_timestamps": ("notimestamps",),
    "no_speech": ("nospeech", "nocaptions"),
    "previous": ("startofprev",),
}


@dataclass(frozen=True)
class WhisperTokens:
    """The special tokens by which Whisper is told what to do and tells when it heard what (Radford et al. 2022, sec.
    2.3).

    languages: by their codes. multilingual: a prompt names language and task, which English-only models have not.
    first_timestamp: that of 0.00 s; all that follow it are timestamps, 0.02 s apart. suppressed: what is never
    produced; suppressed_first: not as the first token. others: special tokens besides.
    """

    start: int
    end: int
    languages: Mapping[str, int] = field(default_factory=dict)
    transcribe: int | None = None
    translate: int | None = None
    no_timestamps: int | None = None
    first_timestamp: int | None = None
    no_speech: int | None = None
    previous: int | None = None
    multilingual: bool = False
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    others: tuple[int, ...] = ()

    @classmethod
    def named(
        cls,
        ids: Mapping[str, int],
        vocabulary_size: int,
        suppressed: tuple[int, ...] = (),
        suppressed_first: tuple[int, ...] = (),
        multilingual: bool | None = None,
    ) -> WhisperTokens:
        """Those of a published tokenizer by their texts (`<|en|>`); vocabulary_size: the rows of the model, which tell
        whether it is multilingual where nobody says it. Raises ValueError where one is missing without which nothing is
        decoded.
        """
        found = {text[2:-2]: token for text, token in ids.items() if text.startswith("<|") and text.endswith("|>")}
        named = {name: next((found[text] for text in texts if text in found), None) for name, texts in TEXTS.items()}
        start, end = named.pop("start"), named.pop("end")
        if start is None or end is None:
            raise ValueError(
                "the tokenizer has no <|startoftranscript|> or no <|endoftext|>; accepted: that of a Whisper model"
            )
        task, silent = named["translate"], named["no_timestamps"]
        languages = {text: token for text, token in found.items() if task is not None and start < token < task}
        known = {start, end, *named.values(), *languages.values()}
        return cls(
            start,
            end,
            languages,
            **named,
            first_timestamp=None if silent is None else found.get("0.00", silent + 1),
            multilingual=vocabulary_size >= MULTILINGUAL if multilingual is None else multilingual,
            suppressed=suppressed,
            suppressed_first=suppressed_first,
            others=tuple(token for text, token in found.items() if token not in known and not text[:1].isdigit()),
        )

    @property
    def special(self) -> frozenset[int]:
        """All that are neither text nor a timestamp."""
        tasks = (self.transcribe, self.translate, self.no_timestamps, self.no_speech, self.previous)
        every = (self.start, self.end, *tasks, *self.languages.values(), *self.others)
        return frozenset(token for token in every if token is not None)

    def prompt(self, language: str | None = None, translate: bool = False, timestamps: bool = True) -> list[int]:
        """What a decoder is told before the text: start, language and task where it is multilingual, and whether no
        timestamps are wanted. Raises ValueError for what this vocabulary has no token for.
        """
        prompt = [self.start]
        if self.multilingual:
            prompt.append(self._language(language))
            prompt.append(self._required("translate" if translate else "transcribe"))
        elif translate or language not in (None, "en"):
            asked = "translate" if translate else f"language={language}"
            raise ValueError(f"{asked}: this model knows one language and no task; leave it out")
        if timestamps:
            self._required("first_timestamp")
        elif self.no_timestamps is not None:
            prompt.append(self.no_timestamps)
        return prompt

    def generation(self) -> dict[str, object]:
        """What transformers' own generation of Whisper reads of them."""
        tasks = {name: getattr(self, name) for name in ("transcribe", "translate")}
        return {
            "is_multilingual": self.multilingual,
            "lang_to_id": {f"<|{code}|>": token for code, token in self.languages.items()},
            "task_to_id": {name: token for name, token in tasks.items() if token is not None},
            "no_timestamps_token_id": self.no_timestamps,
            "prev_sot_token_id": self.previous,
            "max_initial_timestamp_index": 50,  # a second
        }

    def before(self, text: Sequence[int], most: int) -> list[int]:
        """What a prompt tells of the text before it, its last `most` tokens; nothing where there is none, or no token
        for it.
        """
        return [] if self.previous is None or not text else [self.previous, *text[-most:]]

    def _language(self, code: str | None) -> int:
        if code is None or code not in self.languages:
            raise ValueError(f"language={code}: there is no such language; accepted: {', '.join(self.languages)}")
        return self.languages[code]

    def _required(self, name: str) -> int:
        token: int | None = getattr(self, name)
        if token is None:
            raise ValueError(f"{name}: this vocabulary has no such token; train with one, or leave it out")
        return token
