"""A run as a folder that Hugging Face transformers loads, tried before it is called one."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnlab.config import UsageError
from attnlab.data import MarianTokenizer, PretrainedTokenizer, Tokenizer, write_tokenizer
from attnlab.data.audio import RATE
from attnlab.data.log_mel import FRAMES_A_SECOND, HOP, WIDTH
from attnlab.data.special_tokens import END, START, SpecialTokens, add_special_tokens
from attnlab.data.speech_data import published_tokens
from attnlab.data.tokenizer_files import LEADING
from attnlab.data.vocabulary import Vocabulary
from attnlab.interop import HEADS, CannotConvert, Head, Settings, build, compare, to_folder, tokenizer_there
from attnlab.interop.convert import Given
from attnlab.models import Encoder, WhisperTokens
from attnlab.runs.record import Record, checkpoint_of, read_record, read_tensors, settings_of

TOKEN_FIELDS = {
    "pad_token_id": "pad",
    "bos_token_id": "start",
    "eos_token_id": "end",
    "decoder_start_token_id": "target_start",
}
PAIRS = ("EncoderDecoder", "T5")  # models of a source and a target
WITH_IMAGES = "CLIP"  # the model of texts with images
OF_SPEECH = "Whisper"
OLD_END = 2  # as eos_token_id this makes transformers' CLIP pool a text where its highest number stands
TEXTS, LONGEST = 4, 48  # that an export is tried on, and how many tokens of each at most


@dataclass(frozen=True)
class Exported:
    """What of a run is written: its model by settings and tensors, perhaps a task's output on it, its tokenizer and
    special tokens."""

    record: Record
    settings: Settings
    tensors: dict[str, Tensor]
    output: tuple[Tensor, Tensor] | None
    head: Head | None
    tokenizer: Tokenizer | Vocabulary | None
    special_tokens: SpecialTokens
    names: tuple[str, ...] = LEADING  # of a vocabulary's special tokens

    @property
    def has_old_end(self) -> bool:
        """Whether transformers' CLIP would see a text elsewhere than at its end."""
        is_causal = self.settings["model"] == WITH_IMAGES and self.settings["causal_text"]
        return bool(is_causal and self.special_tokens.end == OLD_END)

    @property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens before and after a text that the model reads, as the written tokenizer puts them."""
        own = not isinstance(self.tokenizer, PretrainedTokenizer)
        return self.special_tokens.source if self.as_source and own else self.special_tokens.text

    @property
    def as_source(self) -> bool:
        """Whether a text ends in a mark and starts with none, as the source of a sequence-to-sequence model does."""
        return self.settings["model"] in PAIRS or self.settings["model"] == WITH_IMAGES

    @property
    def whisper_tokens(self) -> WhisperTokens | None:
        """What a published tokenizer of a Whisper knows beside text."""
        if self.settings["model"] != OF_SPEECH or not isinstance(self.tokenizer, PretrainedTokenizer):
            return None
        return published_tokens(self.tokenizer, self.settings["vocabulary_size"])

    def model(self) -> nn.Module:
        """The model as it is here."""
        model = build(self.settings)
        model.load_state_dict(self.tensors, strict=False)  # beside tensors there is the state of random generators
        if self.head is None or self.output is None:
            return model
        assert isinstance(model, Encoder)
        wrapped = self.head.build(model, len(self.output[1]))
        weight_and_bias = dict(zip(("weight", "bias"), self.output, strict=True))
        wrapped.get_submodule("output").load_state_dict(weight_and_bias)
        return wrapped


def export_run(directory: Path, checkpoint: str, target: Path, architecture: str | None) -> tuple[list[str], list[str]]:
    """Writes config.json, safetensors and the tokenizer's files; says what was written, and what clients may miss.

    target: a folder that is new or empty. architecture: None: the one that computes the same. Raises: UsageError.
    """
    found, left = _read(directory, checkpoint)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        folder = Path(scratch) / "model"
        try:
            written = _write(found, folder, architecture)
            tried = _tried(found, folder)
        except CannotConvert as error:
            raise UsageError(f"{directory}: {error}") from error
        if target.is_dir():
            target.rmdir()
        shutil.move(folder, target)
    size = sum(tensor.numel() for tensor in found.tensors.values())
    return [f"{target}: {written}, {size:,} parameters; {tried}"], [*left, *_notes(found)]


def _read(directory: Path, checkpoint: str) -> tuple[Exported, list[str]]:
    """What a run is to be written as, and notes on what is left out. Raises: UsageError."""
    record = read_record(directory)
    settings = settings_of(record, directory)
    tensors, output = _apart(read_tensors(checkpoint_of(directory, checkpoint)))
    tokenizer, special_tokens = _tokenizer(directory, record)
    head, left = _head(record) if output else None, []
    if isinstance(head, str):
        head, left = None, [f"left out: {', '.join(output)} ({head})"]
    pair = (output["output.weight"], output["output.bias"]) if head else None
    found = Exported(record, settings, tensors, pair, head, tokenizer, special_tokens)
    return _exchanged(found) if found.has_old_end and isinstance(tokenizer, Vocabulary) else found, left


def _exchanged(found: Exported) -> Exported:
    """The same model of images and texts with the numbers of the start, which none of its texts has, and the end
    exchanged."""
    numbers = torch.arange(found.settings["vocabulary_size"])
    numbers[START], numbers[END] = END, START
    tensors = found.tensors | {"text.embedding.weight": found.tensors["text.embedding.weight"][numbers]}
    frame: Any = ((), (START,))
    other = replace(found.special_tokens, start=END, end=START, ends=(START,), source=frame)
    names = tuple(LEADING[number] for number in numbers[: len(LEADING)].tolist())
    return replace(found, tensors=tensors, special_tokens=other, names=names)


def _apart(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of the model that a task's output stands on, and the output's; none where the model has its own."""
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith("_extra_state")}
    if "encoder.embedding.weight" not in tensors:
        return tensors, {}
    inner = {name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")}
    return inner, {name: t for name, t in tensors.items() if not name.startswith("encoder.")}


def _head(record: Record) -> Head | str:
    """The output of a run's task, as transformers has it; or why it has not."""
    task = record["config"].get("task", {})
    name = str(task.get("_target_", "")).rpartition(".")[2]
    if name == "SequenceClassification" and task.get("pooling") != "first":
        return "it reads the mean of the states, and that of transformers the first one: task.pooling=first"
    return HEADS.get(name, "the output of this run's task has no counterpart there")


def _write(found: Exported, folder: Path, architecture: str | None) -> str:
    """Writes all files; says which architecture and class it is. Raises CannotConvert."""
    numbers = {} if found.tokenizer is None else _fields(found)
    if found.has_old_end:
        raise CannotConvert(
            f"a text of this run ends in the token {OLD_END}, which transformers' CLIP takes for the sign of old files "
            "and does not look for; accepted: another tokenizer, such as attnlab's own (tokenizer=bpe), or model=siglip"
        )
    fields = numbers | _labels(found)
    known = to_folder(folder, found.settings, found.tensors, architecture, found.head, found.output, **fields)
    tokens = found.whisper_tokens
    if found.tokenizer is not None:
        frame: Any = "source" if found.as_source else "text"
        loaded_as = "PreTrainedTokenizerFast" if tokens is None else "WhisperTokenizer"
        segments = found.settings.get("num_segments", 0) > 1
        write_tokenizer(found.tokenizer, folder, frame, segments, loaded_as, found.names)
    if numbers and found.settings["model"] != "Bert":
        _write_json(folder / "generation_config.json", numbers if tokens is None else numbers | tokens.generation())
    if (read := _preprocessor(found)) is not None:
        _write_json(folder / "preprocessor_config.json", read)
    written = found.head.class_of(known.name) if found.head else known.class_of(found.settings)
    return f"{known.name} ({written})"


def _tokenizer(directory: Path, record: Record) -> tuple[Tokenizer | Vocabulary | None, SpecialTokens]:
    """The run's tokenizer, behind its special tokens where the model's numbers have them before the text's."""
    path = directory / "tokenizer.json"
    if (directory / "source_tokenizer.json").is_file():
        raise UsageError(
            f"{directory}: source and target have a tokenizer each, and no architecture that is written has "
            "two; train with data.joint_vocabulary=true"
        )
    if not path.is_file():
        return None, SpecialTokens()
    tokenizer = Tokenizer.load(path)
    if tokenizer.special_tokens is not None:
        return tokenizer, tokenizer.special_tokens
    rows = record.get("widths", {})["vocabulary_size"]
    assert isinstance(rows, int)
    before = rows - tokenizer.vocabulary_size
    if not before:
        return tokenizer, SpecialTokens()
    vocabulary = Vocabulary(tokenizer)
    vocabulary = Vocabulary(tokenizer, before - vocabulary.first_text)
    return vocabulary, vocabulary.special_tokens


def _write_json(path: Path, content: dict[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _fields(found: Exported) -> dict[str, object]:
    """The numbers of the special tokens as config.json has them: null for absent ones, as each architecture has
    defaults."""
    numbers: dict[str, object] = {field: getattr(found.special_tokens, name) for field, name in TOKEN_FIELDS.items()}
    if len(found.special_tokens.ends) > 1:
        numbers["eos_token_id"] = list(found.special_tokens.ends)
    if found.settings["model"] not in (*PAIRS, OF_SPEECH):
        del numbers["decoder_start_token_id"]
    else:
        numbers["forced_eos_token_id"] = None
    if isinstance(found.tokenizer, PretrainedTokenizer | MarianTokenizer):
        numbers |= found.tokenizer.generation
    return numbers


def _labels(found: Exported) -> dict[str, object]:
    """The names of what is told apart, where the run's data said them."""
    facts = found.record.get("data", {})
    types = [f"{prefix}-{kind}" for kind in facts.get("types", []) for prefix in "BI"]
    names = list(facts.get("classes", [])) or ["O", *types] * bool(types)
    count = len(found.output[1]) if found.output else found.settings.get("num_classes")
    if len(names) != count:
        return {}
    numbered = {str(number): str(name) for number, name in enumerate(names)}
    return {"id2label": numbered, "label2id": {name: int(number) for number, name in numbered.items()}}


def _preprocessor(found: Exported) -> dict[str, object] | None:
    """What becomes of an image or of sound before the model sees it; None for texts, and where the run does not say or
    there is no form for it.
    """
    if found.settings["model"] == OF_SPEECH:
        seconds, rest = divmod(found.settings["num_frames"], FRAMES_A_SECOND)
        known = {"feature_size": found.settings["num_mels"], "chunk_length": seconds, "sampling_rate": RATE}
        fixed = {"n_fft": WIDTH, "hop_length": HOP, "padding_value": 0.0, "return_attention_mask": False}
        return None if rest else {"feature_extractor_type": "WhisperFeatureExtractor", **known, **fixed}
    facts = found.record.get("data", {})
    if "image_size" not in found.settings or not {"mean", "deviation"} <= facts.keys():
        return None
    rows, columns = found.settings["image_size"]
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": rows, "width": columns},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": facts["mean"],
        "image_std": facts["deviation"],
        "do_convert_rgb": found.settings["channels"] == 3,
    }


def _notes(found: Exported) -> Iterator[str]:
    """What a client may miss in what was written."""
    if found.settings["model"] == "GPT" and found.tokenizer is not None and not found.special_tokens.ends:
        yield (
            "note: the tokenizer has no end-of-text token, and clients such as lm-evaluation-harness need one, as does "
            "generation that is to stop by itself; train with data.end_of_text=true"
        )
    if found.names != LEADING:
        yield "note: <s> and </s> have exchanged their numbers, for transformers' CLIP looks for no end of the number 2"
    if found.settings.get("channels") == 1:
        yield (
            "note: transformers' image pipeline makes every image RGB, and this model reads grey ones: give them to it "
            "as pixel values"
        )
    if found.settings["model"] == OF_SPEECH and _preprocessor(found) is None:
        seconds = found.settings["num_frames"] / FRAMES_A_SECOND
        yield (
            f"note: windows have {seconds:g} seconds, and transformers' feature extractor knows whole ones alone, so "
            "there is no preprocessor_config.json; train with data.seconds of a whole number"
        )
    if found.settings["model"] == OF_SPEECH and found.whisper_tokens is None:
        yield (
            "note: transformers' speech pipeline decodes by the special tokens of a published Whisper, which this "
            "tokenizer has not: give what model.generate gives to tokenizer.decode"
        )
    if "image_size" in found.settings and _preprocessor(found) is None:
        yield "note: the run does not say what pixels were normalised by, so there is no preprocessor_config.json"


def _tried(found: Exported, folder: Path) -> str:
    """In words, how transformers does with the folder: the same numbers of texts, and the same logits. Raises
    CannotConvert."""
    if find_spec("transformers") is None:
        return 'not checked: transformers is not installed (pip install "attnlab[transformers]")'
    difference = compare(folder, found.model(), _given(found, folder), found.head)
    has_images, has_texts = "image_size" in found.settings, "vocabulary_size" in found.settings
    what = " and ".join(
        ["images"] * has_images + ["speech"] * (found.settings["model"] == OF_SPEECH) + ["texts"] * has_texts
    )
    return f"transformers loads it, and gives the same on {what} (logits differ by {difference:.0e} at most)"


def _given(found: Exported, folder: Path) -> list[Given]:
    """What the model is tried on: images or sounds of noise, texts as the written tokenizer encodes them. Raises
    CannotConvert for other numbers."""
    images: Given = ()
    if "image_size" in found.settings:
        shape = (2, found.settings["channels"], *found.settings["image_size"])
        images = (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)
        if "vocabulary_size" not in found.settings:
            return [images]
    rows = list(_rows(found, folder))
    if images:  # a row that was cut ends in the mark again, for there a text is seen
        ends = [found.special_tokens.end] * (found.special_tokens.end is not None)
        return [(*images, torch.cat([row_1T[:, : -len(ends) or None], torch.tensor([ends])], dim=1)) for row_1T in rows]
    if found.settings["model"] == OF_SPEECH:
        shape = (1, found.settings["num_mels"], found.settings["num_frames"])
        features_1MF = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        return [(features_1MF, row_1T) for row_1T in rows]
    if found.settings["model"] not in PAIRS:
        return [(row_1T,) for row_1T in rows]
    start = torch.tensor([[found.special_tokens.target_start or 0]])
    return [(row_1S, torch.cat([start, row_1S.flip(1)[:, :5]], dim=1)) for row_1S in rows]


def _rows(found: Exported, folder: Path) -> Iterator[Tensor]:
    longest = min(LONGEST, found.settings["max_length"])
    random = np.random.Generator(np.random.Philox(0))
    if found.tokenizer is None:
        yield torch.from_numpy(random.integers(0, found.settings["vocabulary_size"], (1, longest)))
        return
    tokenizer = found.tokenizer if isinstance(found.tokenizer, Vocabulary) else found.tokenizer.of_source
    # The library's tokenizer of a Marian needs one more library, and its files are written as they were read.
    can_be_read = not isinstance(tokenizer, MarianTokenizer) or find_spec("sentencepiece")
    there = tokenizer_there(folder) if can_be_read else None
    for _ in range(TEXTS):
        text = tokenizer.decode(random.choice(tokenizer.text_tokens, longest))
        encoded = tokenizer.encode_text(text) if isinstance(tokenizer, Vocabulary) else tokenizer.encode(text)
        ours = add_special_tokens(found.frame, encoded.astype(np.int64)).tolist()
        theirs = ours if there is None else there(text)["input_ids"]
        if ours != theirs:
            raise CannotConvert(
                f"transformers reads the text {text[:60]!r} as other tokens ({theirs[:12]}) than the run does "
                f"({ours[:12]}): nothing was written. Please report this, with the run's tokenizer.json"
            )
        yield torch.tensor([ours[:longest]])
