"""attnlab against Hugging Face transformers: the largest differences for every architecture that weights are exchanged with.

python experiments/parity/measure.py [--only NAME ...] [--threads 2]     (make parity)

A randomly initialised reference model of odd sizes is written by its own library, imported, and compared:
logits    fp32, of rows of every length from 1 to 24 and of the longest (88, of encoders 24), padded on the right, at real tokens; left: on
          the left
bf16      the same logits with both models in bf16, of weights 0.3 times as large
loss      and gradients of every parameter, mapped by the same rules
greedy    tokens of greedy decoding that differ, over 64 new tokens, from prompts of several lengths; of Whisper windows, with timestamps and
          without, and recordings of several windows
beam      score and tokens of the best hypothesis of 4 beams (encoder-decoders)
trip      import, export, import: tensors that differ in a bit, and logits of the reference loaded from the export
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from attnlab.generation import (
    BeamSearch,
    Sampler,
    TranscriptionOptions,
    decode,
    generate,
    transcribe,
    transcribe_windows,
)
from attnlab.interop import Imported, read_model, to_folder
from attnlab.interop.architecture import to_ours
from attnlab.models import WhisperTokens
from attnlab.tasks.contrastive import Pairs, sigmoid_sum, softmax_sum

LONGEST, VOCABULARY, NEW, BEAM_NEW = 24, 101, 64, 30
PAD, START, END = 1, 0, 2
SMALL, PENALTY = 0.3, 0.4
BOUNDS = {
    "logits": 1e-5,
    "left": 1e-5,
    "bf16": 2e-2,
    "loss": 1e-4,
    "gradients": 1e-4,
    "greedy": 0,
    "beam": 1e-4,
    "trip": 0,
}
MARKS = {"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END}
SEQ2SEQ_MARKS = {**MARKS, "decoder_start_token_id": START, "forced_eos_token_id": None}
BART_SIZES = {
    "d_model": 30,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 50,
    "decoder_ffn_dim": 50,
    "max_position_embeddings": LONGEST + NEW,
}
BERT_SIZES = {
    "hidden_size": 30,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "layer_norm_eps": 1e-12,
}
NEOX_SIZES = {
    "hidden_size": 36,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 50,
    "max_position_embeddings": LONGEST + NEW,
}
LLAMA_SIZES = {**NEOX_SIZES, "num_attention_heads": 6, "num_key_value_heads": 3}
TOWER_SIZES = {"num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 50}
TEXT_SIZES = {**TOWER_SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": LONGEST, "pad_token_id": 1}
IMAGE_SIZES = {**TOWER_SIZES, "hidden_size": 36, "num_hidden_layers": 2, "image_size": 18, "patch_size": 6}
SPEECH_SIZES = {name: size for name, size in BART_SIZES.items() if name != "max_position_embeddings"}
SPEECH_SIZES |= {"num_mel_bins": 7, "max_source_positions": 31, "max_target_positions": LONGEST + NEW}
LAST = VOCABULARY - 1  # every text ends in it, where it is pooled
T5_SIZES = {"d_model": 30, "d_kv": 7, "d_ff": 50, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 3}


@dataclass(frozen=True)
class Case:
    """One reference model: its class and configuration by the names in transformers, and of what kind it is."""

    name: str
    kind: str  # decoder, encoder, seq2seq, image, image_text or speech
    model: str
    config: str
    fields: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case(
        "GPT-2",
        "decoder",
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_positions": LONGEST + NEW, "n_embd": 30, "n_layer": 3, "n_head": 3},
    ),
    Case(
        "GPT-NeoX",
        "decoder",
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {**NEOX_SIZES, "rotary_pct": 0.5},
    ),
    Case(
        "GPT-NeoX, one after the other",
        "decoder",
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {**NEOX_SIZES, "rotary_pct": 0.34, "use_parallel_residual": False, "hidden_act": "gelu_new"},
    ),
    Case(
        "LLaMA 3",
        "decoder",
        "LlamaForCausalLM",
        "LlamaConfig",
        {
            **LLAMA_SIZES,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 50000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
    ),
    Case(
        "LLaMA, YaRN, tied, biases",
        "decoder",
        "LlamaForCausalLM",
        "LlamaConfig",
        {
            **LLAMA_SIZES,
            "num_key_value_heads": 1,
            "head_dim": 10,
            "tie_word_embeddings": True,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 22,
            },
        },
    ),
    Case(
        "Mistral",
        "decoder",
        "MistralForCausalLM",
        "MistralConfig",
        {**LLAMA_SIZES, "num_key_value_heads": 1, "sliding_window": 5},
    ),
    Case(
        "Qwen 3, windows in two of three",
        "decoder",
        "Qwen3ForCausalLM",
        "Qwen3Config",
        {
            **LLAMA_SIZES,
            "head_dim": 8,
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        },
    ),
    Case(
        "OLMo 2, eps 1e-3",
        "decoder",
        "Olmo2ForCausalLM",
        "Olmo2Config",
        # Norms of outputs make small sums as large as others: with three layers bf16 is 4% from fp32, on both sides.
        {**LLAMA_SIZES, "num_hidden_layers": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-3},
    ),
    Case(
        "Gemma 2, low caps",
        "decoder",
        "Gemma2ForCausalLM",
        "Gemma2Config",
        {
            **LLAMA_SIZES,
            "num_hidden_layers": 2,
            "head_dim": 8,
            "query_pre_attn_scalar": 10,
            "sliding_window": 5,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    Case(
        "Gemma 3, two rotary bases",
        "decoder",
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        {
            **LLAMA_SIZES,
            "num_hidden_layers": 2,
            "head_dim": 8,
            # Normed queries and keys make large scores: with 10, bf16 is 10% from fp32 here and 18% there.
            "query_pre_attn_scalar": 1000,
            "sliding_window": 5,
            "layer_types": ["sliding_attention", "full_attention"],
            "final_logit_softcapping": 3.0,
            "rms_norm_eps": 1e-3,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 8.0},
            },
        },
    ),
    Case(
        "StarCoder 2, no biases",
        "decoder",
        "Starcoder2ForCausalLM",
        "Starcoder2Config",
        {**LLAMA_SIZES, "use_bias": False, "sliding_window": 9},
    ),
    Case("BLOOM", "decoder", "BloomForCausalLM", "BloomConfig", {"hidden_size": 30, "n_layer": 3, "n_head": 5}),
    Case("BERT", "encoder", "BertForMaskedLM", "BertConfig", {**BERT_SIZES, "max_position_embeddings": LONGEST}),
    Case(
        "BERT, next sentence",
        "encoder",
        "BertForPreTraining",
        "BertConfig",
        {**BERT_SIZES, "max_position_embeddings": LONGEST, "num_hidden_layers": 2},
    ),
    Case(
        "RoBERTa",
        "encoder",
        "RobertaForMaskedLM",
        "RobertaConfig",
        {**BERT_SIZES, "max_position_embeddings": LONGEST + 2, "type_vocab_size": 1},
    ),
    Case("T5", "seq2seq", "T5ForConditionalGeneration", "T5Config", T5_SIZES),
    Case(
        "T5 1.1",
        "seq2seq",
        "T5ForConditionalGeneration",
        "T5Config",
        {**T5_SIZES, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    Case(
        "Marian",
        "seq2seq",
        "MarianMTModel",
        "MarianConfig",
        {**BART_SIZES, "activation_function": "swish", "scale_embedding": True},
    ),
    Case("BART", "seq2seq", "BartForConditionalGeneration", "BartConfig", BART_SIZES),
    Case(
        "ViT",
        "image",
        "ViTForImageClassification",
        "ViTConfig",
        {**BERT_SIZES, "image_size": [18, 30], "patch_size": 6, "num_channels": 3, "num_labels": 7},
    ),
    Case(
        "CLIP",
        "image_text",
        "CLIPModel",
        "CLIPConfig",
        {
            "text_config": {**TEXT_SIZES, "hidden_size": 30, "eos_token_id": LAST},
            "vision_config": IMAGE_SIZES,
            "projection_dim": 21,
        },
    ),
    Case(
        "SigLIP",
        "image_text",
        "SiglipModel",
        "SiglipConfig",
        {
            "text_config": {**TEXT_SIZES, "hidden_size": 30, "projection_size": 36, "eos_token_id": LAST},
            "vision_config": IMAGE_SIZES,
        },
    ),
    Case("Whisper", "speech", "WhisperForConditionalGeneration", "WhisperConfig", SPEECH_SIZES),
)
# Of Whisper, behind its text and before its timestamps.
SPEECH_MARKS = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 60) | {"decoder_start_token_id": 61}
HEARD = WhisperTokens(
    *(61, 60, {"de": 62, "en": 63}),
    translate=64,
    transcribe=65,
    previous=66,
    no_speech=67,
    no_timestamps=68,
    first_timestamp=69,
    multilingual=True,
    suppressed=(7, *range(61, 69)),
    suppressed_first=(5, 60),
)
MARKS_OF = {"decoder": MARKS, "encoder": MARKS, "seq2seq": SEQ2SEQ_MARKS, "speech": SPEECH_MARKS}
NO_TEXT = ("image", "image_text")  # kinds whose configuration has no tokens of its own


class Pair:
    """The reference and what is imported of it, from a folder that the reference wrote."""

    def __init__(self, case: Case, folder: Path, scale: float = 1.0, sharpness: float = 1.0) -> None:
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        self.case, self.folder = case, folder
        marks = MARKS_OF.get(case.kind, {})
        sizes = {} if case.kind in NO_TEXT else {"vocab_size": VOCABULARY}
        config = getattr(transformers, case.config)(**sizes, **marks, **case.fields)
        config._attn_implementation = "eager"
        self.reference: Any = getattr(transformers, case.model)(config)
        draw(self.reference, scale, sharpness)
        self.reference.eval().save_pretrained(folder)
        self.imported: Imported = read_model(folder)
        self.model: Any = self.imported.model()
        self.rules = self.imported.architecture.of_model(self.model, self.imported.settings)

    def reload(self, folder: Path) -> Any:
        """The reference as it is loaded from another folder."""
        return type(self.reference).from_pretrained(folder, attn_implementation="eager").eval()


def draw(model: torch.nn.Module, scale: float, sharpness: float) -> None:
    """
    Draws every parameter, biases and gains of norms too, so that none of them can be mixed up unseen.

    scale: of matrices, times the root of their width. sharpness: multiplies the embeddings, which are the output, too.
    """
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("final_logits_bias") or (tensor.ndim == 1 and name.endswith("bias")):
                tensor.copy_(0.2 * torch.randn(tensor.shape, generator=random))
            elif tensor.ndim <= 1 and isinstance(tensor, torch.nn.Parameter):
                tensor.copy_(1 + 0.2 * torch.randn(tensor.shape, generator=random))
            elif isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad:
                width = tensor.shape[-1] if "relative_attention" not in name else 1
                factor = sharpness if "shared" in name or "lm_head" in name else 1.0
                tensor.copy_(torch.randn(tensor.shape, generator=random) * factor * scale * width**-0.5)
        if hasattr(model, "tie_weights"):
            model.tie_weights()


def rows(lengths: list[int], left: bool, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random tokens (B, T), a row of each length, and where they are real; the padding has a number that no real token has."""
    random = torch.Generator().manual_seed(seed)
    width = max(lengths)
    tokens_BT = torch.full((len(lengths), width), PAD)
    is_token_BT = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        place = slice(width - length, None) if left else slice(0, length)
        tokens_BT[row, place] = torch.randint(3, VOCABULARY, (length,), generator=random)
        is_token_BT[row, place] = True
    return tokens_BT, is_token_BT


def counted(is_token_BT: Tensor) -> Tensor:
    """Positions that do not count padding."""
    return (is_token_BT.long().cumsum(dim=1) - 1).clamp(min=0)


class ByLength(BeamSearch):
    """The search with the length penalty of transformers: a hypothesis of n tokens is divided by n to the power alpha."""

    def penalty(self, length: Any) -> Any:
        """What divides the log-probability."""
        return length**self.length_penalty


class Compare:
    """What both sides make of the same rows: (ours, theirs), at real tokens."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        longest = {"decoder": LONGEST + NEW, "seq2seq": LONGEST + NEW}.get(pair.case.kind, LONGEST)
        self.lengths = sorted({*range(1, LONGEST + 1), longest})  # up to the end of the table, where there is one

    def logits(self, left: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Of rows of every length."""
        raise NotImplementedError

    def loss(self) -> tuple[Tensor, Tensor]:
        """One number each, which depends on every parameter."""
        raise NotImplementedError

    def greedy(self) -> int | None:
        """Tokens that differ; None: this kind decodes nothing."""
        return None

    def beam(self) -> float | None:
        """The largest difference of scores; None: this kind searches nothing."""
        return None

    def both(self, dtype: torch.dtype) -> tuple[Any, Any]:
        """Model and reference in a type."""
        return self.pair.model.to(dtype), self.pair.reference.to(dtype)


class Decoder(Compare):
    """Language models."""

    def logits(self, left: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        model, reference = self.both(dtype)
        tokens_BT, is_token_BT = rows(self.lengths, left)
        here_BTV = model(tokens_BT, is_token_BT=is_token_BT)
        there_BTV = reference(tokens_BT, attention_mask=is_token_BT.long(), **self._positions(is_token_BT)).logits
        return here_BTV[is_token_BT], there_BTV[is_token_BT]

    def _positions(self, is_token_BT: Tensor) -> dict[str, Tensor]:
        # BLOOM has none: its slopes count the mask.
        return {} if self.pair.case.name == "BLOOM" else {"position_ids": counted(is_token_BT)}

    def loss(self) -> tuple[Tensor, Tensor]:
        (here, there), (tokens_BT, is_token_BT) = self.logits(left=False), rows(self.lengths, left=False)
        targets_N = tokens_BT.roll(-3, dims=1)[is_token_BT]
        return F.cross_entropy(here, targets_N), F.cross_entropy(there, targets_N)

    def greedy(self) -> int:
        tokens_BT, is_token_BT = rows([1, 5, 11, 17, LONGEST], left=True, seed=2)
        prompts = [row[real].tolist() for row, real in zip(tokens_BT, is_token_BT, strict=True)]
        here = torch.tensor(generate(self.pair.model, prompts, NEW, Sampler(temperature=0)))
        there = self.pair.reference.generate(
            tokens_BT, attention_mask=is_token_BT.long(), do_sample=False, max_new_tokens=NEW, eos_token_id=None
        )
        return int((here != there[:, tokens_BT.shape[1] :]).sum())


class TextEncoder(Compare):
    """Masked language models; with next-sentence prediction its output, too."""

    def logits(self, left: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        model, reference = self.both(dtype)
        tokens_BT, is_token_BT = rows(self.lengths, left)
        segments_BT = (counted(is_token_BT) > 3).long() * (reference.config.type_vocab_size > 1)
        # RoBERTa counts by the padding's number.
        own = {} if self.pair.case.name == "RoBERTa" else {"position_ids": counted(is_token_BT)}
        states_BTD = model.encode(tokens_BT, is_token_BT, segments_BT)
        there = reference(tokens_BT, attention_mask=is_token_BT.long(), token_type_ids=segments_BT, **own)
        if model.next_sentence is None:
            return model.predict(states_BTD, is_token_BT), there.logits[is_token_BT]
        first = is_token_BT.all(
            dim=1
        )  # the output on the first place is of a real token in full rows alone, where left
        here = [model.predict(states_BTD, is_token_BT).flatten(), model.follows(states_BTD)[first].flatten()]
        other = [there.prediction_logits[is_token_BT].flatten(), there.seq_relationship_logits[first].flatten()]
        return torch.cat(here), torch.cat(other)

    def loss(self) -> tuple[Tensor, Tensor]:
        here, there = self.logits(left=False)
        random = torch.Generator().manual_seed(3)
        weights = torch.randn(here.shape, generator=random)
        return (here.log_softmax(-1) * weights).mean() * 10, (there.log_softmax(-1) * weights).mean() * 10


class EncoderDecoder(Compare):
    """Sequence to sequence; targets are padded on the right."""

    def logits(self, left: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        model, reference = self.both(dtype)
        source_BS, is_source_BS = rows(self.lengths, left)
        target_BT, is_target_BT = rows(self.lengths[::-1], left=False, seed=4)
        here_BTV = model(source_BS, target_BT, is_source_BS)
        if left and self.pair.case.name in ("Marian", "BART"):
            # They count padding on the left as positions; the reference is then each source without it.
            there_BTV = torch.cat(
                [
                    reference(input_ids=source[real][None], decoder_input_ids=target[None]).logits
                    for source, real, target in zip(source_BS, is_source_BS, target_BT, strict=True)
                ]
            )
        else:
            there_BTV = reference(
                input_ids=source_BS, attention_mask=is_source_BS.long(), decoder_input_ids=target_BT
            ).logits
        return here_BTV[is_target_BT], there_BTV[is_target_BT]

    def loss(self) -> tuple[Tensor, Tensor]:
        here, there = self.logits(left=False)
        target_BT, is_target_BT = rows(self.lengths[::-1], left=False, seed=4)
        targets_N = target_BT.roll(-3, dims=1)[is_target_BT]
        return F.cross_entropy(here, targets_N), F.cross_entropy(there, targets_N)

    def greedy(self) -> int:
        source_BS, is_source_BS = rows([1, 5, 11, 17, LONGEST], left=False, seed=2)
        there = self.pair.reference.generate(
            input_ids=source_BS, attention_mask=is_source_BS.long(), do_sample=False, num_beams=1,
            max_new_tokens=NEW, min_new_tokens=NEW,
        )  # fmt: skip
        state = self.pair.model.start(source_BS, is_source_BS, capacity=NEW)
        tokens_B, found = torch.full((len(source_BS),), START), []
        for _ in range(NEW):
            logits_BV = self.pair.model.step(tokens_B, state)
            logits_BV[:, END] = -torch.inf  # what min_new_tokens says there
            tokens_B = logits_BV.argmax(dim=1)
            found.append(tokens_B)
        return int((torch.stack(found, dim=1) != there[:, 1:]).sum())

    def beam(self) -> float:
        # A random model hardly ever ends: of a sharp one the end mark is a token that it likes, where the best hypothesis ends with it.
        # The stream of pre-norm layers is their inputs' unless the layers are loud.
        scale, sharpness = (4.0, 1.0 / self.pair.model.logit_scale) if "T5" in self.pair.case.name else (1.0, 1.5)
        pair = Pair(self.pair.case, self.pair.folder / "sharp", scale, sharpness)
        source_BS, is_source_BS = rows([3, 9, LONGEST], left=False, seed=5)
        gaps, lengths = [0.0], []
        for source_S, real_S in zip(source_BS, is_source_BS, strict=True):
            source_1S = source_S[real_S][None]
            first_V = pair.reference(input_ids=source_1S, decoder_input_ids=torch.tensor([[START]])).logits[0, 0]
            for end in set(first_V.topk(10).indices.tolist()) - {START}:
                there = pair.reference.generate(
                    input_ids=source_1S, do_sample=False, max_new_tokens=BEAM_NEW, pad_token_id=PAD, num_beams=4,
                    eos_token_id=end, length_penalty=PENALTY, early_stopping="never", output_scores=True,
                    return_dict_in_generate=True,
                )  # fmt: skip
                tokens = there.sequences[0, 1:].tolist()
                if end in tokens:
                    search = ByLength(4, PENALTY, max_extra_length=BEAM_NEW - 1 - len(source_S[real_S]))
                    here = decode(pair.model, source_1S, search=search, start=START, end=end, never=())[0][0]
                    lengths.append(tokens.index(end))
                    same = here.tokens == tokens[: lengths[-1]]
                    gaps.append(abs(here.score - float(there.sequences_scores[0])) if same else float("inf"))
        assert len(lengths) >= 8, f"{len(lengths)} hypotheses compare too little"
        assert max(lengths) > 0, f"hypotheses of {lengths} tokens compare too little"
        return max(gaps)


class Images(Compare):
    """Classifiers of images."""

    def logits(self, left: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        model, reference = self.both(dtype)
        images_BCYX = torch.randn(5, 3, *model.image_size, generator=torch.Generator().manual_seed(6)).to(dtype)
        return model(images_BCYX), reference(images_BCYX).logits

    def loss(self) -> tuple[Tensor, Tensor]:
        here, there = self.logits(left=False)
        targets_N = torch.arange(len(here))
        return F.cross_entropy(here, targets_N), F.cross_entropy(there, targets_N)


class ImagesAndTexts(Compare):
    """Scores of every image with every text. SigLIP reads padding as tokens: its rows are full."""

    def given(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images, and tokens whose last one is the end of the text."""
        lengths = self.lengths if self.pair.model.text.stack.causal else [LONGEST] * 7
        tokens_BT, is_token_BT = rows(lengths, left=False)
        tokens_BT = tokens_BT.clamp(max=LAST - 1)  # a text is pooled at the first of its ends there
        tokens_BT[torch.arange(len(lengths)), torch.tensor(lengths) - 1] = LAST
        size = (len(lengths), 3, *self.pair.model.image.image_size)
        return torch.randn(size, generator=torch.Generator().manual_seed(6)), tokens_BT, is_token_BT

    def logits(self, left: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        model, reference = self.both(dtype)
        images_BCYX, tokens_BT, is_token_BT = self.given()
        there = reference(pixel_values=images_BCYX.to(dtype), input_ids=tokens_BT, attention_mask=is_token_BT.long())
        return model(images_BCYX.to(dtype), tokens_BT, is_token_BT), there.logits_per_image

    def loss(self) -> tuple[Tensor, Tensor]:
        """Of the task, which is the reference's own."""
        model, (images_BCYX, tokens_BT, is_token_BT) = self.pair.model, self.given()
        images_BE, texts_BE = model.encode_images(images_BCYX), model.encode_texts(tokens_BT, is_token_BT)
        sums = {"CLIPModel": softmax_sum, "SiglipModel": sigmoid_sum}[self.pair.case.model]
        there = self.pair.reference(
            pixel_values=images_BCYX, input_ids=tokens_BT, attention_mask=is_token_BT.long(), return_loss=True
        )
        return sums(model.scores, Pairs.alone(images_BE, texts_BE)) / len(images_BE), there.loss


class Speech(Compare):
    """Whisper: features of sound, and targets padded on the right."""

    def features(self, count: int, seed: int) -> Tensor:
        """Of noise, whole windows."""
        return torch.randn(count, 7, self.pair.model.num_frames, generator=torch.Generator().manual_seed(seed))

    def targets(self) -> tuple[Tensor, Tensor]:
        """Tokens, none of which is the padding there, whose row has no gradient, and where they are real."""
        target_BT, is_target_BT = rows(self.lengths, left=False)
        return target_BT.where(target_BT != HEARD.end, 2), is_target_BT

    def logits(self, left: bool, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        model, reference = self.both(dtype)
        features_BMF = self.features(len(self.lengths), seed=6).to(dtype)
        target_BT, is_target_BT = self.targets()
        there_BTV = reference(input_features=features_BMF, decoder_input_ids=target_BT).logits
        return model(features_BMF, target_BT)[is_target_BT], there_BTV[is_target_BT]

    def loss(self) -> tuple[Tensor, Tensor]:
        here, there = self.logits(left=False)
        target_BT, is_target_BT = self.targets()
        targets_N = target_BT.roll(-3, dims=1)[is_target_BT]
        return F.cross_entropy(here, targets_N), F.cross_entropy(there, targets_N)

    def greedy(self) -> int:
        """Without timestamps and with them, the rules of which the reference reads from its configuration."""
        told = {
            "no_timestamps_token_id": HEARD.no_timestamps,
            "prev_sot_token_id": HEARD.previous,
            "is_multilingual": True,
            "max_initial_timestamp_index": 10,
            "suppress_tokens": list(HEARD.suppressed),
            "begin_suppress_tokens": list(HEARD.suppressed_first),
            "lang_to_id": {f"<|{code}|>": token for code, token in HEARD.languages.items()},
            "task_to_id": {"translate": HEARD.translate, "transcribe": HEARD.transcribe},
        }
        for name, value in told.items():
            setattr(self.pair.reference.generation_config, name, value)
        features_BMF, differ = self.features(5, seed=7), self.recordings()
        for timestamps in (False, True):
            asked = TranscriptionOptions("de", timestamps=timestamps, max_new_tokens=NEW, latest_start=0.2)
            found = transcribe_windows(self.pair.model, features_BMF, HEARD, asked)
            there = self.pair.reference.generate(
                features_BMF, return_timestamps=timestamps, language="de", task="transcribe", max_new_tokens=NEW,
                do_sample=False, force_unique_generate_call=True,
            )  # fmt: skip
            kept = [[token for token in row if token < HEARD.end or token > 68] for row in there.tolist()]
            differ += sum(one.tokens != row for one, row in zip(found, kept, strict=True))
        return differ

    def recordings(self) -> int:
        """How many of two recordings of three windows are heard otherwise: words, and times in hundredths of a second."""
        differ, most = 0, LONGEST
        for told in (False, True):  # the text before each window
            features_1MF = self.features(3, seed=8).transpose(0, 1).flatten(1)[None, :, :-10]
            asked = TranscriptionOptions(
                "de", max_new_tokens=most, latest_start=0.2, no_speech_threshold=None, temperatures=(0.0,), after_previous=told
            )  # fmt: skip
            here = transcribe(self.pair.model, features_1MF[0], HEARD, asked)
            there = self.pair.reference.generate(
                features_1MF, return_timestamps=True, return_segments=True, language="de", task="transcribe",
                max_new_tokens=most, do_sample=False, condition_on_prev_tokens=told,
            )["segments"][0]  # fmt: skip
            parts = ([part[name] for name in ("start", "end", "tokens")] for part in there)
            kept = [(*times, [token for token in row.tolist() if token < HEARD.end]) for *times, row in parts]
            heard = [(round(100 * float(a)), round(100 * float(b)), tokens) for a, b, tokens in kept if tokens]
            differ += heard != [(round(100 * one.start), round(100 * one.end), one.tokens) for one in here]
        return differ


KINDS: dict[str, type[Compare]] = {
    "decoder": Decoder,
    "encoder": TextEncoder,
    "seq2seq": EncoderDecoder,
    "image": Images,
    "image_text": ImagesAndTexts,
    "speech": Speech,
}


def gap(both: tuple[Tensor, Tensor]) -> float:
    """The largest difference, in fp32, relative to the largest value where that is above 1: sums are rounded to that."""
    here, there = both[0].float(), both[1].float()
    return float((here - there).abs().max() / max(1.0, float(there.abs().max())))


def gradients(compare: Compare) -> tuple[float, float]:
    """The difference of the losses, and the largest of all gradients. Raises AssertionError where one side has no gradient."""
    pair = compare.pair
    here, there = compare.loss()
    here.backward()
    there.backward()
    theirs = {name: p.grad for name, p in pair.reference.named_parameters() if p.grad is not None}
    mapped = to_ours(pair.rules, saved_names(pair.reference, theirs), pair.imported.settings)
    worst, seen = 0.0, 0
    for name, parameter in pair.model.named_parameters():
        if parameter.grad is None:
            continue
        if name in mapped:
            worst, seen = max(worst, float((parameter.grad - mapped[name]).abs().max())), seen + 1
    learned = [name for name, p in pair.model.named_parameters() if p.grad is not None and name != "head_bias"]
    assert seen >= len(learned), f"{seen} of {len(learned)} gradients have a counterpart"
    for module in (pair.model, pair.reference):
        module.zero_grad()
    return abs(float(here.detach() - there.detach())), worst


def saved_names(reference: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the reference under the names that its library saves them by, which are not always those of its modules."""
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(reference, dict(tensors)))


def round_trip(pair: Pair, compare: Compare) -> float:
    """Tensors that differ in a bit after import, export, import, and logits that differ where the reference loads the export."""
    folder = pair.folder / "exported"
    marks = MARKS_OF | {"image_text": {"eos_token_id": LAST}}
    to_folder(folder, pair.imported.settings, pair.model.state_dict(), **marks.get(pair.case.kind, {}))
    again = read_model(folder)
    first, second = pair.imported.tensors, again.tensors
    assert again.settings == pair.imported.settings, "the settings changed"
    changed = sum(not torch.equal(first[name], second[name]) for name in first) + len({*first} ^ {*second})
    before = compare.logits(left=False)[1]
    pair.reference = pair.reload(folder)
    return changed + gap((compare.logits(left=False)[1], before))


def measure(case: Case) -> dict[str, float | None]:
    """Every check of one case."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(case, Path(folder))
        compare = KINDS[case.kind](pair)
        found: dict[str, float | None] = {}
        with torch.no_grad():
            found["logits"] = gap(compare.logits(left=False))
            found["left"] = None if case.kind in (*NO_TEXT, "speech") else gap(compare.logits(left=True))
            # Half the digits are lost wherever sums are large: bf16 is compared on weights of the size that models start with.
            small = KINDS[case.kind](Pair(case, Path(folder) / "small", SMALL))
            found["bf16"] = gap(small.logits(left=False, dtype=torch.bfloat16))
        found["loss"], found["gradients"] = gradients(compare)
        with torch.no_grad():
            found["greedy"], found["beam"] = compare.greedy(), compare.beam()
            found["trip"] = round_trip(pair, compare)
    return found


def table(measured: dict[str, dict[str, float | None]]) -> Iterator[str]:
    """The rows of a Markdown table; a difference beyond its bound is marked."""
    names = list(BOUNDS)
    yield f"| architecture | {' | '.join(names)} |"
    yield f"|---|{'---|' * len(names)}"
    yield f"| bound | {' | '.join(f'{bound:g}' for bound in BOUNDS.values())} |"
    for case, found in measured.items():
        cells = [shown(found[name], BOUNDS[name]) for name in names]
        yield f"| {case} | {' | '.join(cells)} |"


def shown(value: float | None, bound: float) -> str:
    """A difference as text."""
    if value is None:
        return "-"
    return f"{value:.1e}" if 0 < value <= bound else "0" if value == 0 else f"**{value:.1e}**"


def within(found: dict[str, float | None]) -> list[str]:
    """The checks whose difference is beyond the bound, or no number."""
    return [name for name, bound in BOUNDS.items() if found[name] is not None and not found[name] <= bound]


def main(say: Callable[[str], None] = print) -> int:
    """Measures, prints the table; 1 where a difference is beyond its bound."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--threads", type=int)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    started, measured = time.monotonic(), {}
    cases = [case for case in CASES if not arguments.only or case.name in arguments.only]
    for case in cases:
        measured[case.name] = measure(case)
        print(f"{case.name}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    for line in table(measured):
        say(line)
    beyond = {case: names for case, found in measured.items() if (names := within(found))}
    for case, names in beyond.items():
        say(f"beyond the bound: {case}: {', '.join(names)}")
    return int(bool(beyond))


if __name__ == "__main__":
    sys.exit(main())
