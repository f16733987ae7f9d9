"""What one architecture of Hugging Face transformers is here, as declarations that are read both ways: fields of its
configuration, tensors, and what cannot be carried over.

Shapes: H heads, K head width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from attnlab.interop.settings import Settings, build, completed, different

Config = dict[str, Any]
Names = Mapping[str, str]  # of tensors or modules, there and here
REQUIRED = object()
ABSENT = object()

# Fields that every configuration may have and that leave what a model computes as it is.
NO_MATTER = re.compile(
    r"_.*|.*(dropout|pdrop|layerdrop|_token_id|initializer_range|initializer_factor|init_std)(_prob|_rate)?|summary_.*|"
    r"architectures|model_type|"
    r"transformers_version|torch_dtype|dtype|use_cache|id2label|label2id|num_labels|problem_type|task_specific_params|"
    r"gradient_checkpointing|output_(past|attentions|hidden_states|scores)|return_dict.*|torchscript|use_bfloat16|"
    r"tf_legacy_loss|finetuning_task|tokenizer_class|n_ctx|language|"
    r"(max_length|min_length|num_beams|num_beam_groups|num_return_sequences|length_penalty|repetition_penalty|"
    r"diversity_penalty|no_repeat_ngram_size|encoder_no_repeat_ngram_size|bad_words_ids|do_sample|early_stopping|"
    r"temperature|top_k|top_p|typical_p|remove_invalid_values|exponential_decay_length_penalty|suppress_tokens|"
    r"begin_suppress_tokens|prefix)|"
    r"pretraining_tp|slow_but_exact|chunk_size_feed_forward|cross_attention_hidden_size|is_encoder_decoder"
)
# What a model may lack and an architecture always has: zeros in its place compute the same.
ZEROS = ("attention.bias", "feed_forward.bias", "residual.norm.bias", "output_bias", "num_segments", "patch_bias")
# Special tokens that a model says nothing of; those of published models would be taken otherwise.
UNKNOWN_TOKENS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


class CannotConvert(ValueError):
    """A model that one of the libraries has no counterpart for, or files that do not hold what they say."""


def some(names: Sequence[str], listed: int = 12) -> str:
    """The first of several names, and how many there are where that is not all."""
    return ", ".join(names[:listed]) + (f", ... ({len(names)} in all)" if len(names) > listed else "")


# --- fields: `read` gives the settings of a configuration, or raises CannotConvert; `write` the fields of settings


@dataclass(frozen=True)
class Same:
    """A number, or several, that is the same there and here."""

    theirs: str
    ours: str
    default: object = REQUIRED  # what is meant where the field is missing there; ABSENT: nothing
    least: int | None = None  # the smallest number that can be written

    def read(self, config: Mapping[str, object]) -> Settings:
        value = config.get(self.theirs)
        value = self.default if value is None else value
        if value is REQUIRED:
            raise CannotConvert(f"config.json has no {self.theirs}, and a model cannot be built without it")
        if value is ABSENT:
            return {}
        if isinstance(value, str | Mapping):
            raise CannotConvert(f"config.json has {self.theirs}={value!r}; accepted: a number")
        return {self.ours: value}

    def write(self, settings: Settings) -> Config:
        value = settings.get(self.ours)
        if value is not None and self.least is not None:
            value = max(value, self.least)
        return {} if value is None else {self.theirs: value}


@dataclass(frozen=True)
class OneOf:
    """A word there, one or several settings here."""

    theirs: str
    words: Mapping[Any, Settings]
    default: object = REQUIRED  # the word that is meant where the field is missing

    def read(self, config: Mapping[str, object]) -> Settings:
        word = config.get(self.theirs)
        word = self.default if word is None and self.default is not REQUIRED else word
        for known, settings in self.words.items():
            if known == word:
                return dict(settings)
        accepted = ", ".join(map(repr, self.words))
        raise CannotConvert(f"{self.theirs}={word!r} has no counterpart here; accepted: {accepted}")

    def write(self, settings: Settings) -> Config:
        """The first word whose settings are these; where none is, the first that has the largest share of them."""
        shares = {
            word: sum(bool(settings.get(key) == value) for key, value in fields.items()) / len(fields)
            for word, fields in self.words.items()
        }
        return {self.theirs: max(shares, key=lambda word: shares[word])}


@dataclass(frozen=True)
class Only:
    """A field that has a counterpart here for some values alone, the first of which is meant where it is missing."""

    theirs: str
    values: tuple[object, ...]
    why: str = "has no counterpart here"  # of other values

    def read(self, config: Mapping[str, object]) -> Settings:
        value = config.get(self.theirs)
        if value is not None and value not in self.values:
            raise CannotConvert(f"{self.theirs}={value!r} {self.why}; accepted: {', '.join(map(repr, self.values))}")
        return {}

    def write(self, settings: Settings) -> Config:
        return {}


@dataclass(frozen=True)
class Windows:
    """The window of each layer there, None where it sees all; a pattern here where they are not all the same."""

    theirs: str
    ours: ClassVar[str] = "attention.window"

    def read(self, config: Mapping[str, object]) -> Settings:
        windows = cast("Sequence[int | None]", config.get(self.theirs) or [None])
        kinds = list(dict.fromkeys(windows))
        found: Settings = {self.ours: kinds[0]}
        if len(kinds) > 1:
            found["pattern"] = [kinds.index(window) for window in windows]
            found |= {f"layers.{number}.{self.ours}": window for number, window in enumerate(kinds) if number}
        return found

    def write(self, settings: Settings) -> Config:
        whole = settings.get(self.ours)
        pattern = settings.get("pattern") or [0] * settings["num_layers"]
        return {self.theirs: [settings.get(f"layers.{number}.{self.ours}", whole) for number in pattern]}


Field = Same | OneOf | Only | Windows


def required(default: object = REQUIRED, /, **names: str) -> tuple[Same, ...]:
    """Numbers that every configuration has to say, by their names there and here."""
    return tuple(Same(theirs, ours, default) for theirs, ours in names.items())


optional = partial(required, ABSENT)


def flag(theirs: str, *ours: str) -> OneOf:
    """True where it is missing, for all of these settings."""
    return OneOf(theirs, {value: dict.fromkeys(ours, value) for value in (True, False)}, default=True)


def only(**values: object) -> tuple[Only, ...]:
    """Fields that have a counterpart here for one value alone."""
    return tuple(Only(theirs, (value,)) for theirs, value in values.items())


# --- tensors


@dataclass(frozen=True)
class Form:
    """What a tensor there is of several here: `split` there to here, `join` back; each undoes the other bit for bit."""

    split: Callable[[Tensor, Settings], Sequence[Tensor]]
    join: Callable[[Sequence[Tensor], Settings], Tensor]


def _three_of_each_head(tensor: Tensor, settings: Settings) -> Sequence[Tensor]:
    parts = tensor.unflatten(0, (settings["num_heads"], 3, -1))  # (H, 3, K, ...)
    return [part.flatten(0, 1) for part in parts.unbind(1)]


def _by_head(tensors: Sequence[Tensor], settings: Settings) -> Tensor:
    return torch.stack([tensor.unflatten(0, (settings["num_heads"], -1)) for tensor in tensors], dim=1).flatten(0, 2)


def _pixels(tensors: Sequence[Tensor], settings: Settings) -> Tensor:
    shape = [settings[name] for name in ("channels", "patch_size", "patch_size")]
    return cast(Tensor, tensors[0].unflatten(1, shape))


COPY = Form(lambda tensor, _: [tensor], lambda tensors, _: tensors[0])
TRANSPOSED = Form(lambda tensor, _: [tensor.t()], lambda tensors, _: tensors[0].t())
THIRDS = Form(lambda tensor, _: tensor.chunk(3, dim=0), lambda tensors, _: torch.cat(list(tensors)))
THIRDS_TRANSPOSED = Form(lambda tensor, _: tensor.t().chunk(3, dim=0), lambda tensors, _: torch.cat(list(tensors)).t())
THIRDS_OF_HEADS = Form(_three_of_each_head, _by_head)
IN_ONE = Form(lambda tensor, _: [tensor[0]], lambda tensors, _: tensors[0][None])
A_ROW = Form(lambda tensor, _: [tensor[None]], lambda tensors, _: tensors[0][0])
PIXELS = Form(lambda tensor, _: [tensor.flatten(1)], _pixels)  # those of a patch in one axis


@dataclass(frozen=True)
class Rule:
    """One tensor there and what it is here."""

    theirs: str
    ours: tuple[str, ...]
    form: Form = COPY
    layers: str = "num_layers"  # the setting that gives how many `{i}` in the names counts
    has: str = ""  # the rule is one of models that have a setting of this name
    lacks: str = ""  # or that lack one

    def holds(self, settings: Settings) -> bool:
        """Whether models of these settings have the tensor."""
        return (not self.has or self.has in settings) and (not self.lacks or self.lacks not in settings)

    def each(self, settings: Settings) -> Iterator[Rule]:
        """The rule of every layer; itself where it is of none."""
        for i in range(settings[self.layers] if "{i}" in self.theirs else 1):
            ours = tuple(name.replace("{i}", str(i)) for name in self.ours)
            yield replace(self, theirs=self.theirs.replace("{i}", str(i)), ours=ours)


def tensors(names: Names, theirs: str = "", ours: str = "", form: Form = COPY, **more: str) -> tuple[Rule, ...]:
    """The rules of tensors by their names there and here, behind `theirs` and `ours`; more: fields of the rules."""
    return tuple(Rule(theirs + there, (ours + here,), form, **more) for there, here in names.items())


def modules(names: Names, theirs: str = "", ours: str = "", form: Form = COPY, **more: str) -> tuple[Rule, ...]:
    """The rules of a weight and a bias of each; `form` is the weight's."""
    forms = {"weight": form, "bias": COPY}
    both = [(there, here, kind) for there, here in names.items() for kind in forms]
    return tuple(Rule(f"{theirs}{t}.{kind}", (f"{ours}{o}.{kind}",), forms[kind], **more) for t, o, kind in both)


def fused(theirs: str, ours: str, of_weight: Form, of_bias: Form) -> tuple[Rule, ...]:
    """The rules of queries, keys and values that are one tensor there."""
    return tuple(
        Rule(f"{theirs}.{kind}", tuple(f"{ours}.{name}.{kind}" for name in ("query", "key", "value")), form)
        for kind, form in (("weight", of_weight), ("bias", of_bias))
    )


def projections(pattern: str, names: Sequence[str], ours: str = "attention") -> dict[str, str]:
    """The names of queries, keys, values and, where there is a fourth, the output; `*` stands for each of them."""
    parts = ("query", "key", "value", "output")
    return {pattern.replace("*", name): f"{ours}.{part}" for name, part in zip(names, parts, strict=False)}


def to_ours(rules: Iterable[Rule], theirs: Mapping[str, Tensor], settings: Settings) -> dict[str, Tensor]:
    """The tensors here of those there, as far as they are given."""
    made: dict[str, Tensor] = {}
    for rule in rules:
        if rule.theirs in theirs:
            parts = rule.form.split(theirs[rule.theirs], settings)
            made |= {name: part.contiguous() for name, part in zip(rule.ours, parts, strict=True)}
    return made


def to_theirs(rules: Iterable[Rule], ours: Mapping[str, Tensor], settings: Settings) -> dict[str, Tensor]:
    """The tensors there of those here, as far as all their parts are given."""
    return {
        rule.theirs: rule.form.join([ours[name] for name in rule.ours], settings).contiguous()
        for rule in rules
        if all(name in ours for name in rule.ours)
    }


# --- architectures


@dataclass(frozen=True)
class Output:
    """The output's weight, which may be the embedding's transpose."""

    theirs: str
    embedding: str
    says: str | None = "tie_word_embeddings"  # the field that says whether it is; None: the tensors alone do
    tie_embeddings: bool = True  # what is meant where the field is missing


@dataclass(frozen=True)
class Architecture:
    """One architecture, both ways.

    classes: theirs with an output, of which the last is one with next-sentence prediction where there are two, and the
    first is written for all else. aliases, tidy: bring other spellings of a configuration into the one that `fields`
    knows; untidy: into the one that is written. prefix: of the tensors' names but the output's; where a file holds the
    model without its output they lack it, and what begins as in `fresh`, here, is initialised anew. tokens_in: the part
    of a configuration that holds the numbers of special tokens; empty: it does itself.
    """

    name: str  # what config.json calls it (model_type)
    model: str  # the class here
    classes: tuple[str, ...]
    fixed: Settings  # what all its models have
    fields: tuple[Field, ...]
    rules: tuple[Rule, ...]
    prefix: str = ""
    output: Output | None = None
    copies: Mapping[str, str] = field(default_factory=dict)  # tensors that repeat another one
    present: Mapping[str, str] = field(default_factory=dict)  # tensors whose being there is a setting
    buffers: str = ""  # tensors (a regular expression) that hold nothing learned
    fresh: tuple[str, ...] = ("head.",)
    old_names: Mapping[str, str] = field(default_factory=dict)  # endings of tensors' names in old files
    aliases: Mapping[str, str] = field(default_factory=dict)
    no_matter: str = ""  # fields (a regular expression) beside NO_MATTER
    tokens_in: str = ""
    tidy: Callable[[Config], Config] = dict
    untidy: Callable[[Config], Config] = dict

    def read_config(self, config: Mapping[str, object], ignore: Iterable[str] = ()) -> Settings:
        """The settings that a configuration asks for. Raises CannotConvert for what has no counterpart here."""
        tidy = self.spelt(config, ignore)
        known = {entry.theirs for entry in self.fields} | ({self.output.says} if self.output else set())
        matters = (key for key in tidy if not NO_MATTER.fullmatch(key) and not re.fullmatch(self.no_matter, key))
        if unknown := [key for key in matters if key not in known]:
            fields = ", ".join(f"{key}={tidy[key]!r}" for key in unknown)
            raise CannotConvert(
                f"config.json has fields without a counterpart here: {fields}. If the model computes the same without "
                f"them, say so with {' '.join(f'--ignore {key}' for key in unknown)}"
            )
        settings: Settings = {"model": self.model, **self.fixed}
        for entry in self.fields:
            settings |= entry.read(tidy)
        return settings

    def spelt(self, config: Mapping[str, object], ignore: Iterable[str] = ()) -> Config:
        """The configuration in the spelling of `fields`, without what is to be ignored, in either spelling."""
        out = set(ignore)
        given = {key: value for key, value in config.items() if key not in out}
        own = {key: value for key, value in given.items() if key not in self.aliases}
        tidy = self.tidy({self.aliases[key]: value for key, value in given.items() if key in self.aliases} | own)
        return {key: value for key, value in tidy.items() if key not in out}

    def write_config(self, settings: Settings) -> Config:
        """The configuration of a model of these (completed) settings, as near as it can be; see `differences`."""
        tokens = {} if self.tokens_in else UNKNOWN_TOKENS
        config: Config = {"architectures": [self.class_of(settings)], "model_type": self.name, **tokens}
        for entry in self.fields:
            config |= entry.write(settings)
        if self.output is not None and self.output.says is not None:
            config[self.output.says] = bool(settings.get("tie_embeddings", True))
        return self.untidy(config)

    def with_fields(self, config: Config, fields: Mapping[str, object]) -> Config:
        """The configuration with more fields, each where it belongs."""
        own = {key: value for key, value in fields.items() if self.tokens_in and key.endswith("_token_id")}
        inner = {self.tokens_in: config[self.tokens_in] | own} if own else {}
        return config | {key: value for key, value in fields.items() if key not in own} | inner

    def class_of(self, settings: Settings) -> str:
        """The class there of a model of these settings."""
        return self.classes[-1 if settings.get("next_sentence") else 0]

    def differences(self, settings: Settings, fields: Mapping[str, object] | None = None) -> list[str]:
        """What a model of these (completed) settings has that this architecture has not; none: it can be written as
        one. What zeros stand for (ZEROS) is no difference. fields: more fields of the configuration that is to be
        written.
        """
        if settings["model"] != self.model:
            return [f"model: {settings['model']} here, {self.model} there"]
        named = {key: value for key, value in settings.items() if key.rpartition(".")[2] == "attention"}
        if others := [f"{key}: {kind} here, Attention there" for key, kind in named.items() if kind != "Attention"]:
            return others  # whose fields no configuration could say
        try:
            there = self._written(settings, fields)
        except CannotConvert as error:
            return [str(error)]
        return different(_with_zeros(settings, there), there)

    def as_written(self, settings: Settings) -> Settings:
        """The (completed) settings of a model that can be written as this, and what zeros stand for there."""
        return _with_zeros(settings, self._written(settings))

    def _written(self, settings: Settings, fields: Mapping[str, object] | None = None) -> Settings:
        """The settings that a configuration says which was written for these."""
        there = self.read_config(self.write_config(settings) | dict(fields or {}))
        for setting in (*self.present.values(), *(("tie_embeddings",) if self.output else ())):
            there.setdefault(setting, settings[setting])
        return completed(there)

    def settings_of_tensors(self, tensors: Mapping[str, Tensor], config: Mapping[str, object]) -> Settings:
        """The settings that the tensors alone tell, such as whether the output is tied."""
        settings: Settings = {setting: name in tensors for name, setting in self.present.items()}
        if self.output is not None:
            own, embedding = tensors.get(self.output.theirs), tensors.get(self.output.embedding)
            same = own is None
            if own is not None and embedding is not None and own.shape == embedding.shape:
                same = bool((own == embedding).all())
            said = config.get(self.output.says, self.output.tie_embeddings) if self.output.says else True
            settings["tie_embeddings"] = bool(said) and same
        return settings

    def of_model(self, model: nn.Module, settings: Settings) -> list[Rule]:
        """The rules of the tensors that a model of these settings has."""
        own, every = {*model.state_dict()}, [each for rule in self.rules for each in rule.each(settings)]
        return [rule for rule in every if rule.holds(settings) and own.issuperset(rule.ours)]


def blank(settings: Settings) -> nn.Module:
    """A model of these settings without memory for its weights."""
    with torch.device("meta"):
        return build(settings)


def _with_zeros(settings: Settings, there: Settings) -> Settings:
    of_towers = (key for key in settings if key.endswith(ZEROS) and key.partition(".")[2] in ZEROS)
    keys = [*(key for key in ZEROS if key in settings), *of_towers]
    return settings | {key: there[key] for key in keys if not settings[key] and there.get(key)}
