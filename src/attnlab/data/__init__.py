"""
Data in four steps, the same for every kind: **source -> encode -> order -> collate**.

- **source** says where examples come from, which reader reads them, how they are split and checked, and gives them in
  parts: `read` gives train, validation and test. One class a data set (`texts`, `pairs`, `labelled`, `entities`,
  `questions`, `images`, `captions`, `speech`, `spoken_commands`), on the contracts in `source`; `readers` and `tables`
  know the traps of files, `audio` of sound.
- **encode** makes of each part rows of token numbers, or pixels, with a tokenizer that is trained on the training part;
  what takes long is kept in the `cache`.
- **order** says which rows the next batch of this rank has: an endless training order with a position that can be
  saved, and evaluation that gives each example once; `ramps` make the first steps of a training smaller.
- **collate** makes a batch, a dict of tensors, of rows.

A data module does the last three, one for each shape of example, each on the base that it shares with its like:

| shape | base | data modules |
|---|---|---|
| windows of one text | `windows.WindowData` | TextData, MaskedTextData (`denoising`) |
| corrupted windows | `span_corruption.SpanCorruptionData` | itself, MixtureOfDenoisersData |
| rows of tokens | `token_data.RowData` | ClassificationData, TokenClassificationData, SpanExtractionData |
| pairs of rows | `token_data.TokenData` | TranslationData, TextToTextData |
| images | `image_data.PixelData` | ImageData, ImageTextData (`image_text`) |
| rows of a problem, drawn as they are needed | `module.DataModule` | SyntheticData (`synthetic`, of `problems`) |
| recordings, and rows of tokens | `module.TextedData` | SpeechData |

A new data set is a source, declared in a few lines, and a YAML file that names it and the data module of its shape.
"""

from importlib import import_module
from typing import Any

from attnlab.data.cache import DataError, cache_root
from attnlab.data.captions import CaptionedSource, HubImageText, Icons, ImageText
from attnlab.data.entities import WNUT17, CoNLL, HubEntities
from attnlab.data.images import Digits, FashionMNIST, HubImages, ImageFolder, ImageSource, MNIST5k
from attnlab.data.labelled import SST2, TSV, HubLabelled, LabelledSource, Newsgroups, ReutersR8
from attnlab.data.pairs import HomeAssistant, HubPairs, Multi30k, PairSource, ParallelText, TextTask
from attnlab.data.pretrained_tokenizers import MarianTokenizer, PretrainedTokenizer
from attnlab.data.problems import (
    MQAR,
    Addition,
    Copy,
    Depo,
    FlipFlop,
    Induction,
    ListOps,
    Mano,
    ModularAddition,
    Parity,
    Problem,
    SelectiveCopy,
    Sort,
)
from attnlab.data.questions import HubQuestions, QuestionSource, SQuAD, SQuADFiles
from attnlab.data.ramps import GeometricRamp, LinearRamp, Ramp, Ramps, StagedRamp
from attnlab.data.source import SourceRow, TextSource, describe_sources
from attnlab.data.speech import HubSpeech, SpeechFiles, SpeechSource
from attnlab.data.spoken_commands import SpokenCommands
from attnlab.data.texts import KJV, Corpus, HubText, TextFiles, TinyShakespeare, UnlabelledText, prepare
from attnlab.data.tokenizer_files import read_tokenizer, write_tokenizer
from attnlab.data.tokenizers import BPE, TOKENIZERS, Byte, Character, Tokenizer, Unigram, WithEndOfText

LAZY = {  # what needs torch or Lightning is loaded at its first use, so that listing the data sets is quick
    "Augmentation": "augment",
    "ClassificationData": "classification",
    "DataModule": "module",
    "EvaluationWindows": "windows",
    "ImageData": "image_data",
    "ImageTextData": "image_text",
    "LogMel": "log_mel",
    "MaskedTextData": "denoising",
    "Masking": "denoising",
    "MixtureOfDenoisersData": "span_corruption",
    "SpanCorruptionData": "span_corruption",
    "SpanExtractionData": "span_extraction",
    "SpeechAugmentation": "log_mel",
    "SpeechData": "speech_data",
    "SyntheticData": "synthetic",
    "TextData": "windows",
    "TextToTextData": "translation",
    "TokenClassificationData": "classification",
    "TranslationData": "translation",
}

__all__ = [
    *LAZY, "BPE", "KJV", "MQAR", "SST2", "TOKENIZERS", "TSV", "WNUT17", "Addition", "Byte", "CaptionedSource",
    "Character", "CoNLL", "Copy", "Corpus", "DataError", "Depo", "Digits", "FashionMNIST", "FlipFlop",
    "GeometricRamp", "HomeAssistant", "HubEntities", "HubImageText", "HubImages", "HubLabelled", "HubPairs",
    "HubQuestions", "HubSpeech", "HubText", "Icons", "ImageFolder", "ImageSource", "ImageText", "Induction",
    "LabelledSource", "LinearRamp", "ListOps", "MNIST5k", "Mano", "MarianTokenizer", "ModularAddition", "Multi30k",
    "Newsgroups", "PairSource", "ParallelText", "Parity", "PretrainedTokenizer", "Problem", "QuestionSource",
    "Ramp", "Ramps", "ReutersR8", "SQuAD", "SQuADFiles", "SelectiveCopy", "Sort", "SourceRow", "SpeechFiles",
    "SpeechSource", "SpokenCommands", "StagedRamp", "TextFiles", "TextSource", "TextTask", "TinyShakespeare",
    "Tokenizer", "Unigram", "UnlabelledText", "WithEndOfText", "cache_root", "describe_sources", "prepare",
    "read_tokenizer", "write_tokenizer",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"attnlab.data.{LAZY[name]}"), name)
