"""What one architecture of Hugging Face transformers is here: its configuration, its tensors, and what cannot be carried over."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.interop.fields import CannotConvert, Config, Field
from attnlab.interop.rules import Rule
from attnlab.interop.settings import Settings, build, completed, different

# Fields that every configuration may have and that leave what a model computes as it is.
NO_MATTER = re.compile(
    r"_.*|.*(dropout|pdrop|layerdrop|_token_id|initializer_range|initializer_factor|init_std)(_prob|_rate)?|summary_.*|architectures|model_type|"
    r"transformers_version|torch_dtype|dtype|use_cache|id2label|label2id|num_labels|problem_type|task_specific_params|"
    r"gradient_checkpointing|output_(past|attentions|hidden_states|scores)|return_dict.*|torchscript|use_bfloat16|tf_legacy_loss|"
    r"finetuning_task|tokenizer_class|n_ctx|language|"
    r"(max_length|min_length|num_beams|num_beam_groups|num_return_sequences|length_penalty|repetition_penalty|diversity_penalty|"
    r"no_repeat_ngram_size|encoder_no_repeat_ngram_size|bad_words_ids|do_sample|early_stopping|temperature|top_k|top_p|typical_p|"
    r"remove_invalid_values|exponential_decay_length_penalty|suppress_tokens|begin_suppress_tokens|prefix)|"
    r"pretraining_tp|slow_but_exact|chunk_size_feed_forward|cross_attention_hidden_size|is_encoder_decoder"
)

# What a model may lack and an architecture always has: zeros in its place compute the same.
ZEROS = ("attention.bias", "feed_forward.bias", "residual.norm.bias", "output_bias", "num_segments")

# Numbers of marks that a model says nothing of; those of published models would be taken otherwise.
UNKNOWN_MARKS = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


@dataclass(frozen=True)
class Output:
    """The output's weight, which may be the embedding's transpose.

    says: the field that says whether it is; None: the tensors alone do. tied: what is meant where the field is missing.
    """

    theirs: str
    embedding: str
    says: str | None = "tie_word_embeddings"
    tied: bool = True


@dataclass(frozen=True)
class Architecture:
    """
    One architecture, both ways.

    name: what config.json calls it (model_type). model: the class here. classes: theirs with an output, of which the
    last is one with next-sentence prediction where there are two, and the first is written for all else. fixed:
    settings that all its models have. aliases, tidy: bring other spellings of a configuration into the one that
    `fields` knows; untidy: into the one that is written. no_matter: fields (a regular expression) that leave what it
    computes as it is, beside those of all. prefix: of the tensors' names but the output's; where a file holds the
    model without its output they lack it, and what begins as in `fresh`, here, is initialised anew. copies: tensors
    that repeat another one. present: tensors whose being there is a setting. buffers: tensors (a regular expression)
    that hold nothing learned. old_names: endings of tensors' names, as old files have them.
    """

    name: str
    model: str
    classes: tuple[str, ...]
    fixed: Settings
    fields: tuple[Field, ...]
    rules: tuple[Rule, ...]
    prefix: str = ""
    output: Output | None = None
    copies: Mapping[str, str] = field(default_factory=dict)
    present: Mapping[str, str] = field(default_factory=dict)
    buffers: str = ""
    fresh: tuple[str, ...] = ()
    old_names: Mapping[str, str] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    no_matter: str = ""
    tidy: Callable[[Config], Config] = dict
    untidy: Callable[[Config], Config] = dict

    def read_config(self, config: Mapping[str, Any], ignore: Iterable[str] = ()) -> Settings:
        """The settings that a configuration asks for. Raises CannotConvert for what has no counterpart here, unless it is to be ignored."""
        tidy = self.spelt(config, ignore)
        known = {entry.theirs for entry in self.fields} | ({self.output.says} if self.output else set())
        unknown = [
            key
            for key in tidy
            if key not in known and not NO_MATTER.fullmatch(key) and not re.fullmatch(self.no_matter, key)
        ]
        if unknown:
            fields = ", ".join(f"{key}={tidy[key]!r}" for key in unknown)
            raise CannotConvert(
                f"config.json has fields without a counterpart here: {fields}. If the model computes the same without them, say so "
                f"with {' '.join(f'--ignore {key}' for key in unknown)}"
            )
        settings: Settings = {"model": self.model, **self.fixed}
        for entry in self.fields:
            settings |= entry.read(tidy)
        return settings

    def spelt(self, config: Mapping[str, Any], ignore: Iterable[str] = ()) -> Config:
        """The configuration in the spelling of `fields`, without what is to be ignored, in either spelling."""
        out = set(ignore)
        given = {key: value for key, value in config.items() if key not in out}
        own = {key: value for key, value in given.items() if key not in self.aliases}
        tidy = self.tidy({self.aliases[key]: value for key, value in given.items() if key in self.aliases} | own)
        return {key: value for key, value in tidy.items() if key not in out}

    def write_config(self, settings: Settings) -> Config:
        """The configuration of a model of these (completed) settings, as near to them as it can be; `differences` tells how near."""
        config: Config = {"architectures": [self.class_of(settings)], "model_type": self.name, **UNKNOWN_MARKS}
        for entry in self.fields:
            config |= entry.write(settings)
        if self.output is not None and self.output.says is not None:
            config[self.output.says] = bool(settings.get("tied", True))
        return self.untidy(config)

    def class_of(self, settings: Settings) -> str:
        """The class there of a model of these settings."""
        return self.classes[-1 if settings.get("next_sentence") else 0]

    def differences(self, settings: Settings, fields: Mapping[str, Any] | None = None) -> list[str]:
        """
        What a model of these (completed) settings has that this architecture has not; none: it can be written as one.

        What zeros stand for (ZEROS) is no difference. fields: more fields of the configuration that is to be written.
        """
        if settings["model"] != self.model:
            return [f"model: {settings['model']} here, {self.model} there"]
        try:
            there = self._written(settings, fields)
        except CannotConvert as error:
            return [str(error)]
        return different(_with_zeros(settings, there), there)

    def as_written(self, settings: Settings) -> Settings:
        """
        The (completed) settings of a model that can be written as this architecture, and with it what zeros stand for
        there.
        """
        return _with_zeros(settings, self._written(settings))

    def _written(self, settings: Settings, fields: Mapping[str, Any] | None = None) -> Settings:
        """The settings that a configuration says which was written for these."""
        there = self.read_config(self.write_config(settings) | dict(fields or {}))
        for setting in (*self.present.values(), *(("tied",) if self.output else ())):
            there.setdefault(setting, settings[setting])
        return completed(there)

    def settings_of_tensors(self, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Settings:
        """The settings that the tensors alone tell, such as whether the output is tied."""
        settings: Settings = {setting: name in tensors for name, setting in self.present.items()}
        if self.output is not None:
            own = tensors.get(self.output.theirs)
            said = config.get(self.output.says, self.output.tied) if self.output.says else own is None
            same = own is None or _equal(own, tensors.get(self.output.embedding))
            settings["tied"] = bool(said) and same if self.output.says else same
        return settings

    def of_model(self, model: nn.Module, settings: Settings) -> list[Rule]:
        """The rules of the tensors that a model of these settings has."""
        own = model.state_dict()
        every = [each for rule in self.rules for each in rule.each(settings)]
        return [rule for rule in every if rule.holds(settings) and all(name in own for name in rule.ours)]

    def blank(self, settings: Settings) -> nn.Module:
        """A model of these settings without memory for its weights."""
        with torch.device("meta"):
            return build(settings)


def _with_zeros(settings: Settings, there: Settings) -> Settings:
    return settings | {key: there[key] for key in ZEROS if key in settings and not settings[key] and there.get(key)}


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and bool((one == other).all())
