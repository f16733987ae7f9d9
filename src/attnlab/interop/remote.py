"""attnlab's models as classes of transformers: what the modelling file of a folder imports where no architecture there
computes the same.

Legend: B batch, T length of a text or target, S length of a source, V vocabulary, C channels or classes, Y and X rows
and columns of pixels, M mel bins, F frames.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.generation.utils import ALL_CACHE_NAMES
from transformers.modeling_outputs import (
    BaseModelOutput,
    CausalLMOutput,
    ImageClassifierOutput,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    Seq2SeqLMOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.models.clip.modeling_clip import CLIPOutput

from attnlab.interop.remote_code import MODEL_TYPE
from attnlab.interop.settings import find
from attnlab.layers.cache import DecodingState
from attnlab.models import heads
from attnlab.parts import Part, build_part

CACHE = ALL_CACHE_NAMES[0]  # what this version of transformers calls the cache among a model's arguments
GREY = (0.299, 0.587, 0.114)  # shares of red, green and blue, as Pillow has them (ITU-R 601-2)


class AttnlabConfig(PretrainedConfig):
    """A run's model as plain data. attnlab: its node in the run's configuration (`model`), what the data told it
    (`widths`), the output of a task on it (`head`), and what it keeps beside its tensors (`states`).
    """

    model_type = MODEL_TYPE

    def __init__(self, attnlab: Mapping[str, Any] | None = None, **fields: Any) -> None:
        self.attnlab = dict(attnlab or {})
        # Asks whether any tensors are shared, as those of layers are; that the output is the embedding's is the node's.
        super().__init__(**{**fields, "tie_word_embeddings": True})


def build(described: Mapping[str, Any]) -> nn.Module:
    """The model that a configuration's field `attnlab` describes. Raises ValueError for a part that is none."""
    model: nn.Module = build_part(_part(described["model"]), **described["widths"])
    if head := described.get("head"):
        fields = {name: value for name, value in head.items() if name != "class"}
        model = getattr(heads, head["class"])(model, **fields)
    for name, state in described.get("states", {}).items():
        model.get_submodule(name).set_extra_state(torch.tensor(state))
    return model


def _part(node: Any) -> Any:
    """What a node of a configuration names: a partial, or a table of fields where it names no class."""
    if not isinstance(node, Mapping):
        return [_part(item) for item in node] if isinstance(node, list) else node
    given = {name: _part(value) for name, value in node.items() if not name.startswith("_")}
    if "_target_" not in node:
        return given
    made = partial(_class_of(node["_target_"]), **given)
    return made if node.get("_partial_") else made()


def _class_of(target: str) -> Any:
    """The part of a name: attnlab's own, or one of a package that is installed. Raises ValueError for anything else."""
    try:
        return find(target)
    except KeyError:
        module, _, name = target.rpartition(".")
        try:
            found = getattr(import_module(module), name, None)
        except (ImportError, ValueError) as error:
            raise ValueError(f"{target}: this model has a part that is not installed here ({error})") from error
        if not (inspect.isclass(found) and issubclass(found, Part)):
            raise ValueError(
                f"{target} is no part of a model; accepted: classes derived from attnlab.parts.Part"
            ) from None
        return found


class DecodingCache(Cache):
    """Where a model's own decoding stands, as transformers' generation keeps it from step to step.

    capacity: tokens that it has room for. copies: rows that follow one another and go on from one source.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, capacity: int, copies: int = 1) -> None:
        super().__init__(layers=[])
        self.capacity, self.copies, self.length = capacity, copies, 0
        self.state: DecodingState | None = None

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def reorder_cache(self, beam_idx: Tensor) -> None:
        if self.state is not None:
            self.state.select(beam_idx)

    def crop(self, *_: object) -> None:
        raise NotImplementedError("a model of attnlab takes back no tokens: generate without an assistant model")


class AttnlabModel(PreTrainedModel):
    """A model of attnlab under the name `model`, so that its tensors are called what a run's checkpoint calls them."""

    config_class = AttnlabConfig
    base_model_prefix = ""

    def __init__(self, config: AttnlabConfig) -> None:
        super().__init__(config)
        # On no meta device, where from_pretrained builds: what parts compute of numbers has to be there.
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            self.model: Any = build(config.attnlab)
        first: dict[int, str] = {}
        named = self.named_parameters(remove_duplicate=False)
        shared = {name: first.setdefault(id(parameter), name) for name, parameter in named}
        self._tied_weights_keys = {name: other for name, other in shared.items() if name != other}
        self.post_init()  # type: ignore[no-untyped-call]
        self._keys_to_ignore_on_load_missing = ["_extra_state"]  # it stands in the configuration

    def _init_weights(self, module: nn.Module) -> None:
        return  # they were drawn when the model was built


def is_real(attention_mask: Tensor | None) -> Tensor | None:
    """Where tokens are real (B, T), bool; None where all are, which asks for no mask."""
    return None if attention_mask is None or bool(attention_mask.all()) else attention_mask.bool()


class Generating(AttnlabModel, GenerationMixin):
    """A model that generates with its own cache."""

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def _prepare_cache_for_generation(  # type: ignore[override]  # what stands between differs from version to version
        self, generation_config: Any, model_kwargs: dict[str, Any], *given: Any
    ) -> None:
        if model_kwargs.get(CACHE) is None and generation_config.use_cache is not False:
            copies = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
            model_kwargs[CACHE] = DecodingCache(int(given[-1]), copies)

    def _cache_of(self, given: object) -> DecodingCache | None:
        if given is not None and not isinstance(given, DecodingCache):
            kind = type(given).__name__
            raise ValueError(f"{CACHE} must be a DecodingCache, which generate() makes, got {kind}: leave it out")
        return given


class AttnlabForCausalLM(Generating):
    """A language model; input_ids (B, T) to logits (B, T, V). attention_mask: of all tokens, the cached ones too."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutput:
        own = self._cache_of(past_key_values if cache is None else cache)
        length = input_ids.shape[1]
        is_token_BT = None if attention_mask is None else is_real(attention_mask[:, -length:])
        if own is None:
            return CausalLMOutput(logits=self.model(input_ids, is_token_BT))
        if own.state is None:
            own.state = self.model.new_cache(own.capacity)
        own.length += length
        return CausalLMOutput(logits=self.model(input_ids, is_token_BT, own.state))

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        cache = self._cache_of(kwargs.get(CACHE))
        known = 0 if cache is None else cache.get_seq_length()
        return {"input_ids": input_ids[:, known:], "attention_mask": attention_mask, CACHE: cache}


class Source(nn.Module):
    """Hands a source on as it is: it is encoded with the first token of a target."""

    main_input_name = "input_ids"

    def forward(
        self, input_ids: Tensor | None = None, input_features: Tensor | None = None, **_: object
    ) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=input_features if input_ids is None else input_ids)


class AttnlabForSeq2SeqLM(Generating):
    """A model of a target given a source; input_ids (B, S), decoder_input_ids (B, T) to logits (B, T, V).

    attention_mask is the source's. Padding of a target has to stand on the right, where no token sees it.
    """

    def __init__(self, config: AttnlabConfig) -> None:
        super().__init__(config)
        self.source = Source()

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return self.source

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        encoder_outputs: Any = None,
        input_features: Tensor | None = None,
        cache: Cache | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> Seq2SeqLMOutput:
        given = input_features if input_ids is None else input_ids
        source = given if encoder_outputs is None else encoder_outputs[0]
        if source is None or decoder_input_ids is None:
            raise ValueError("a source (input_ids or input_features) and a target (decoder_input_ids) are needed")
        own = self._cache_of(past_key_values if cache is None else cache)
        if own is None:
            return Seq2SeqLMOutput(logits=self.model(source, decoder_input_ids, is_real(attention_mask)))
        if own.state is None:
            own.state = self._started(source, attention_mask, own)
        steps = [self.model.step(tokens_B, own.state) for tokens_B in decoder_input_ids.unbind(dim=1)]
        own.length += len(steps)
        return Seq2SeqLMOutput(logits=torch.stack(steps, dim=1))

    def _started(self, source: Tensor, attention_mask: Tensor | None, cache: DecodingCache) -> DecodingState:
        """The state before the first token; a source that several beams go on from is encoded once."""
        mask = None if attention_mask is None else attention_mask[:: cache.copies]
        state: DecodingState = self.model.start(source[:: cache.copies], is_real(mask), cache.capacity)
        if cache.copies > 1:
            rows = torch.arange(len(source) // cache.copies, device=source.device)
            state.select(rows.repeat_interleave(cache.copies))
        return state

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, encoder_outputs: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        cache = self._cache_of(kwargs.get(CACHE))
        known = 0 if cache is None else cache.get_seq_length()
        fields = {"decoder_input_ids": input_ids[:, known:], "attention_mask": attention_mask, CACHE: cache}
        return fields | {"encoder_outputs": encoder_outputs}


class AttnlabForSpeechSeq2Seq(AttnlabForSeq2SeqLM):
    """The same of speech; input_features (B, M, F)."""

    main_input_name = "input_features"


class AttnlabForMaskedLM(AttnlabModel):
    """A model of hidden tokens; input_ids (B, T) to logits (B, T, V)."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> MaskedLMOutput:
        return MaskedLMOutput(logits=self.model(input_ids, is_real(attention_mask), token_type_ids))


class AttnlabForSequenceClassification(AttnlabModel):
    """One class a text; input_ids (B, T) to logits (B, C)."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, return_dict: bool | None = None
    ) -> SequenceClassifierOutput:
        return SequenceClassifierOutput(logits=self.model(input_ids, is_real(attention_mask)))


class AttnlabForTokenClassification(AttnlabModel):
    """One class a token; input_ids (B, T) to logits (B, T, C)."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, return_dict: bool | None = None
    ) -> TokenClassifierOutput:
        places = torch.arange(input_ids.numel(), device=input_ids.device)
        logits_NC = self.model(input_ids, places, is_real(attention_mask))
        return TokenClassifierOutput(logits=logits_NC.unflatten(0, tuple(input_ids.shape)))


class AttnlabForQuestionAnswering(AttnlabModel):
    """Where an answer starts and ends; input_ids (B, T) to two logits a position (B, T)."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> QuestionAnsweringModelOutput:
        start_BT, end_BT = self.model(input_ids, is_real(attention_mask), token_type_ids)
        return QuestionAnsweringModelOutput(start_logits=start_BT, end_logits=end_BT)


class AttnlabForImageClassification(AttnlabModel):
    """One class an image; pixel_values (B, C, Y, X) to logits (B, C). One that reads grey images takes RGB, too."""

    main_input_name = "pixel_values"

    def forward(self, pixel_values: Tensor, return_dict: bool | None = None) -> ImageClassifierOutput:
        return ImageClassifierOutput(logits=self.model(as_channels(pixel_values, self.model.channels)))


class AttnlabForZeroShotImageClassification(AttnlabModel):
    """Images with texts; pixel_values (B, C, Y, X) and input_ids (N, T) to scores (B, N). Padding of a text stands on
    the right.
    """

    main_input_name = "pixel_values"

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
    ) -> CLIPOutput:
        images = as_channels(pixel_values, self.model.image.channels)
        scores_BN = self.model(images, input_ids, is_real(attention_mask))
        return CLIPOutput(logits_per_image=scores_BN, logits_per_text=scores_BN.t())


def as_channels(images_BCYX: Tensor, channels: int) -> Tensor:
    """The images, grey where the model reads grey ones and they have three channels."""
    if channels == 1 and images_BCYX.shape[1] == len(GREY):
        shares_C11 = images_BCYX.new_tensor(GREY)[:, None, None]
        return (images_BCYX * shares_C11).sum(dim=1, keepdim=True)
    return images_BCYX
