"""What the clients of an export need beside its weights: special tokens, names of classes, what images and sounds go
through first; and what they will miss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from attnlab.data import MarianTokenizer, PretrainedTokenizer, Tokenizer
from attnlab.data.audio import RATE
from attnlab.data.log_mel import FRAMES_A_SECOND, HOP, WIDTH
from attnlab.data.special_tokens import SpecialTokens
from attnlab.data.speech_data import published_tokens
from attnlab.data.tokenizer_files import LEADING
from attnlab.data.vocabulary import Vocabulary
from attnlab.interop import Head, Settings
from attnlab.interop.architecture import Architecture
from attnlab.models import CLIP, LanguageModel, Seq2Seq, Whisper, WhisperTokens
from attnlab.models.heads import EncoderHead
from attnlab.runs.record import Record

TOKEN_FIELDS = {
    "pad_token_id": "pad",
    "bos_token_id": "start",
    "eos_token_id": "end",
    "decoder_start_token_id": "target_start",
}
OLD_END = 2  # as eos_token_id this makes transformers' CLIP pool a text where its highest number stands


@dataclass(frozen=True)
class Exported:
    """What of a run is written: its model, with what it computes as settings (of a model of the user's own, what its
    data told it), transformers' form of a task's output on it, its tokenizer and special tokens."""

    directory: Path
    record: Record
    settings: Settings
    model: nn.Module
    head: Head | None
    tokenizer: Tokenizer | Vocabulary | None  # of what the model reads
    special_tokens: SpecialTokens
    target_tokenizer: Tokenizer | Vocabulary | None = None  # where it is another one
    names: tuple[str, ...] = LEADING  # of a vocabulary's special tokens
    known: Architecture | None = None  # of transformers, that computes the same; None: it goes with code of its own

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those of the model that a task's output stands on."""
        return (self.model.encoder if isinstance(self.model, EncoderHead) else self.model).state_dict()

    @property
    def output(self) -> tuple[Tensor, Tensor] | None:
        """The weight and the bias of the task's output."""
        return (self.model.output.weight, self.model.output.bias) if isinstance(self.model, EncoderHead) else None

    @property
    def has_old_end(self) -> bool:
        """Whether transformers' CLIP would see a text elsewhere than at its end."""
        is_causal = isinstance(self.model, CLIP) and self.settings.get("causal_text")
        return bool(is_causal and self.special_tokens.end == OLD_END)

    @property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens before and after a text that the model reads, as the written tokenizer puts them."""
        own = not isinstance(self.tokenizer, PretrainedTokenizer)
        return self.special_tokens.source if self.as_source and own else self.special_tokens.text

    @property
    def is_pair(self) -> bool:
        """Whether the model reads a text and writes another."""
        return isinstance(self.model, Seq2Seq) and not isinstance(self.model, Whisper)

    @property
    def as_source(self) -> bool:
        """Whether a text ends in a mark and starts with none, as the source of a sequence-to-sequence model does."""
        return self.is_pair or isinstance(self.model, CLIP)

    @property
    def packages(self) -> str:
        """What has to be installed where its code of its own is loaded: attnlab, and modules of the user's own."""
        return ", ".join(["attnlab", *self.record.get("sources", {})])

    @property
    def whisper_tokens(self) -> WhisperTokens | None:
        """What a published tokenizer of a Whisper knows beside text."""
        if not isinstance(self.model, Whisper) or not isinstance(self.tokenizer, PretrainedTokenizer):
            return None
        return published_tokens(self.tokenizer, self.settings["vocabulary_size"])


def token_fields(found: Exported) -> dict[str, object]:
    """The numbers of the special tokens as config.json has them: null for absent ones, as each architecture has
    defaults."""
    numbers: dict[str, object] = {field: getattr(found.special_tokens, name) for field, name in TOKEN_FIELDS.items()}
    if len(found.special_tokens.ends) > 1:
        numbers["eos_token_id"] = list(found.special_tokens.ends)
    if not isinstance(found.model, Seq2Seq):
        del numbers["decoder_start_token_id"]
    else:
        numbers["forced_eos_token_id"] = None
    if isinstance(found.tokenizer, PretrainedTokenizer | MarianTokenizer):
        numbers |= found.tokenizer.generation
    return numbers


def labels(found: Exported) -> dict[str, object]:
    """The names of what is told apart, where the run's data said them."""
    facts = found.record.get("data", {})
    types = [f"{prefix}-{kind}" for kind in facts.get("types", []) for prefix in "BI"]
    names = list(facts.get("classes", [])) or ["O", *types] * bool(types)
    count = len(found.output[1]) if found.output else found.settings.get("num_classes")
    if len(names) != count:
        return {}
    numbered = {str(number): str(name) for number, name in enumerate(names)}
    return {"id2label": numbered, "label2id": {name: int(number) for number, name in numbered.items()}}


def preprocessor(found: Exported) -> dict[str, object] | None:
    """What becomes of an image or of sound before the model sees it; None for texts, and where the run does not say or
    there is no form for it.
    """
    if isinstance(found.model, Whisper):
        seconds, rest = divmod(found.settings["num_frames"], FRAMES_A_SECOND)
        known = {"feature_size": found.settings["num_mels"], "chunk_length": seconds, "sampling_rate": RATE}
        fixed = {"n_fft": WIDTH, "hop_length": HOP, "padding_value": 0.0, "return_attention_mask": False}
        return None if rest else {"feature_extractor_type": "WhisperFeatureExtractor", **known, **fixed}
    facts = found.record.get("data", {})
    if "image_size" not in found.settings or not {"mean", "deviation"} <= facts.keys():
        return None
    rows, columns = found.settings["image_size"]
    moments = {"image_mean": list(facts["mean"]), "image_std": list(facts["deviation"])}
    takes_colours = found.known is None  # of which it makes grey where it was trained on grey
    if takes_colours and found.settings["channels"] == 1:
        moments = {name: value * 3 for name, value in moments.items()}
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": rows, "width": columns},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        **moments,
        "do_convert_rgb": takes_colours or found.settings["channels"] == 3,
    }


def notes(found: Exported) -> Iterator[str]:
    """What a client may miss in what was written."""
    if isinstance(found.model, LanguageModel) and found.tokenizer is not None and not found.special_tokens.ends:
        yield (
            "note: the tokenizer has no end-of-text token, and clients such as lm-evaluation-harness need one, as does "
            "generation that is to stop by itself; train with data.end_of_text=true"
        )
    if found.names != LEADING:
        yield "note: <s> and </s> have exchanged their numbers, for transformers' CLIP looks for no end of the number 2"
    if found.settings.get("channels") == 1 and found.known is not None:
        yield (
            "note: transformers' image pipeline makes every image RGB, and this model reads grey ones: give them to it "
            "as pixel values"
        )
    if isinstance(found.model, Whisper) and preprocessor(found) is None:
        seconds = found.settings["num_frames"] / FRAMES_A_SECOND
        yield (
            f"note: windows have {seconds:g} seconds, and transformers' feature extractor knows whole ones alone, so "
            "there is no preprocessor_config.json; train with data.seconds of a whole number"
        )
    if isinstance(found.model, Whisper) and found.known is None:
        yield (
            "note: transformers' speech pipeline knows transformers' own classes alone: give what model.generate gives "
            "to tokenizer.decode"
        )
    elif isinstance(found.model, Whisper) and found.whisper_tokens is None:
        yield (
            "note: transformers' speech pipeline decodes by the special tokens of a published Whisper, which this "
            "tokenizer has not: give what model.generate gives to tokenizer.decode"
        )
    if "image_size" in found.settings and preprocessor(found) is None:
        yield "note: the run does not say what pixels were normalised by, so there is no preprocessor_config.json"
