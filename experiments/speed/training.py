"""The training steps that are compared: the same work by attnlab and by its peers, each as its own users write it.

Legend: B batch, T length, S source length, N chosen positions, V vocabulary, C channels, Y and X rows and columns.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnlab.data.module import IGNORED
from attnlab.data.special_tokens import SpecialTokens
from attnlab.layers import Learned
from attnlab.models import GPT, Bert, EncoderDecoder, ViT
from attnlab.tasks import CausalLanguageModelling, ImageClassification, MaskedLanguageModelling, Translation
from attnlab.training import LossAccumulator, adamw
from attnlab.training.task import Task

LR = 1e-4
CLIP = 1.0
Batch = dict[str, Tensor]
Step = Callable[[Batch], Tensor]  # one optimizer step; returns the loss


@dataclass(frozen=True)
class Case:
    """One kind of work. sizes: by name, as a command line gives them. batch: makes one. sides: by name, what builds the
    module, and what computes the mean loss of a batch with it.
    """

    name: str
    unit: str
    sizes: Mapping[str, int]
    batch: Callable[[Mapping[str, int]], Batch]
    sides: Mapping[str, Callable[[Mapping[str, int]], tuple[nn.Module, Callable[[Batch], Tensor] | Task]]]

    def units(self, batch: Batch) -> int:
        """How many units (tokens, images) of a batch a rate counts."""
        counted = batch["target"] if "target" in batch else next(iter(batch.values()))
        return len(counted) if self.unit == "images" else counted.numel()


def step_of(module: nn.Module, loss: Callable[[Batch], Tensor] | Task, dtype: torch.dtype | None) -> Step:
    """An optimizer step: AdamW, gradients clipped at 1; in mixed precision where a dtype is given.

    attnlab's own clips and divides as its tasks do; a peer's as in torch's and Lightning's documentation.
    """
    device = next(module.parameters()).device.type
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if isinstance(loss, Task):
        return _own_step(module, loss, adamw(module, lr=LR), dtype)
    optimizer = torch.optim.AdamW(parameters, lr=LR, fused=True)

    def step(batch: Batch) -> Tensor:
        with torch.autocast(device, dtype, enabled=dtype is not None):
            value = loss(batch)
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


def _own_step(module: nn.Module, task: Task, optimizer: torch.optim.Optimizer, dtype: torch.dtype | None) -> Step:
    sums, device = LossAccumulator(), next(module.parameters()).device.type

    def step(batch: Batch) -> Tensor:
        with torch.autocast(device, dtype, enabled=dtype is not None):
            value = sums.accumulate(task.loss_sums(batch), alone=True)
        value.backward()
        tokens = sums.finish_step(1, False, None)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        sums.scale_gradients(gradients, tokens, 1, CLIP, False)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.detach()

    return step


# --- GPT


class NanoBlock(nn.Module):
    """A layer of nanoGPT's recipe: one matrix product for queries, keys and values, torch's fused causal attention."""

    def __init__(self, d_model: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norms = nn.ModuleList(nn.LayerNorm(d_model, bias=False) for _ in range(2))
        self.qkv, self.output = (nn.Linear(d_model, width, bias=False) for width in (3 * d_model, d_model))
        self.up, self.down = nn.Linear(d_model, 4 * d_model, bias=False), nn.Linear(4 * d_model, d_model, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """The stream after attention and feed-forward."""
        parts = self.qkv(self.norms[0](x_BTD)).chunk(3, dim=2)
        q_BHTK, k_BHTK, v_BHTK = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in parts)
        out_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)
        x_BTD = x_BTD + self.output(out_BHTK.transpose(1, 2).flatten(2))
        out_BTD: Tensor = x_BTD + self.down(F.gelu(self.up(self.norms[1](x_BTD))))
        return out_BTD


class NanoGPT(nn.Module):
    """nanoGPT's recipe, rebuilt from torch's parts: learned positions, Pre-LN, GELU, tied output."""

    def __init__(self, vocabulary_size: int, length: int, d_model: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        self.embedding, self.positions = nn.Embedding(vocabulary_size, d_model), nn.Embedding(length, d_model)
        self.blocks = nn.ModuleList(NanoBlock(d_model, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(d_model, bias=False)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else nn.init.ones_(parameter)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        x_BTD = self.embedding(tokens_BT) + self.positions(torch.arange(tokens_BT.shape[1], device=tokens_BT.device))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return F.linear(self.norm(x_BTD), self.embedding.weight)


def gpt_batch(sizes: Mapping[str, int]) -> Batch:
    """Random tokens, and those that follow."""
    tokens_BT = torch.randint(sizes["vocabulary_size"], (sizes["batch_size"], sizes["length"] + 1))
    return {"tokens": tokens_BT[:, :-1].contiguous(), "targets": tokens_BT[:, 1:].contiguous()}


def own_gpt(sizes: Mapping[str, int]) -> tuple[nn.Module, Task]:
    """attnlab's GPT with nanoGPT's parts."""
    model = GPT(sizes["vocabulary_size"], sizes["length"], **_widths(sizes), position=Learned)
    return model, CausalLanguageModelling(model)


def nano_gpt(sizes: Mapping[str, int]) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """nanoGPT's recipe."""
    model = NanoGPT(sizes["vocabulary_size"], sizes["length"], *_widths(sizes).values())
    return model, lambda batch: _cross_entropy(model(batch["tokens"]), batch["targets"])


def x_gpt(sizes: Mapping[str, int]) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """x-transformers' decoder with its fused attention."""
    from x_transformers import Decoder, TransformerWrapper

    heads = {"heads": sizes["num_heads"], "attn_dim_head": sizes["d_model"] // sizes["num_heads"]}
    layers = Decoder(dim=sizes["d_model"], depth=sizes["num_layers"], attn_flash=True, **heads)
    model = TransformerWrapper(
        num_tokens=sizes["vocabulary_size"], max_seq_len=sizes["length"], attn_layers=layers, tie_embedding=True
    )
    return model, lambda batch: _cross_entropy(model(batch["tokens"]), batch["targets"])


def hf_gpt(sizes: Mapping[str, int]) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """GPT-2 of transformers, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=sizes["vocabulary_size"],
        n_positions=sizes["length"],
        n_embd=sizes["d_model"],
        n_layer=sizes["num_layers"],
        n_head=sizes["num_heads"],
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
    )
    model = GPT2LMHeadModel(config)
    return model, lambda batch: _cross_entropy(
        model(input_ids=batch["tokens"], use_cache=False).logits, batch["targets"]
    )


# --- BERT


def bert_batch(sizes: Mapping[str, int]) -> Batch:
    """Random tokens, 15% of them to be restored."""
    shape = (sizes["batch_size"], sizes["length"])
    tokens_BT, chosen_BT = torch.randint(4, sizes["vocabulary_size"], shape), torch.rand(shape) < 0.15
    return {"tokens": tokens_BT.masked_fill(chosen_BT, 3), "targets": tokens_BT, "chosen": chosen_BT}


def own_bert(sizes: Mapping[str, int]) -> tuple[nn.Module, Task]:
    """attnlab's BERT."""
    model = Bert(sizes["vocabulary_size"], sizes["length"], **_widths(sizes), dropout=0.0)
    return model, MaskedLanguageModelling(model)


def hf_bert(sizes: Mapping[str, int]) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """BERT of transformers, without dropout."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=sizes["vocabulary_size"],
        max_position_embeddings=sizes["length"],
        hidden_size=sizes["d_model"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=4 * sizes["d_model"],
        **dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob"), 0.0),
    )
    model = BertForMaskedLM(config)

    def loss(batch: Batch) -> Tensor:
        logits_BTV = model(input_ids=batch["tokens"]).logits
        return _cross_entropy(logits_BTV, batch["targets"].masked_fill(~batch["chosen"], IGNORED))

    return model, loss


# --- ViT


def vit_batch(sizes: Mapping[str, int]) -> Batch:
    """Random images of one channel, and classes."""
    images_BCYX = torch.randn(sizes["batch_size"], 1, sizes["image_size"], sizes["image_size"])
    return {"images": images_BCYX, "labels": torch.randint(10, (sizes["batch_size"],))}


def own_vit(sizes: Mapping[str, int]) -> tuple[nn.Module, Task]:
    """attnlab's ViT."""
    model = ViT(
        10, sizes["image_size"], 1, patch_size=sizes["patch_size"], **_widths(sizes), dropout=0.0, position=Learned
    )
    return model, ImageClassification(model)


def lucid_vit(sizes: Mapping[str, int]) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """vit-pytorch's ViT."""
    width, heads = sizes["d_model"], sizes["num_heads"]
    model = _vit_pytorch().ViT(
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        num_classes=10,
        channels=1,
        dim=width,
        depth=sizes["num_layers"],
        heads=heads,
        dim_head=width // heads,
        mlp_dim=4 * width,
    )
    return model, lambda batch: F.cross_entropy(model(batch["images"]).float(), batch["labels"])


def _vit_pytorch() -> ModuleType:
    # Its own __init__ imports torchvision, which its ViT does without.
    found = importlib.util.find_spec("vit_pytorch")
    if found is None or not found.submodule_search_locations:
        raise ImportError("No module named 'vit_pytorch'")
    spec = importlib.util.spec_from_file_location(
        "vit_of_vit_pytorch", Path(found.submodule_search_locations[0], "vit.py")
    )
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def hf_vit(sizes: Mapping[str, int]) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """ViT of transformers, without dropout."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=sizes["image_size"],
        patch_size=sizes["patch_size"],
        num_channels=1,
        num_labels=10,
        hidden_size=sizes["d_model"],
        num_hidden_layers=sizes["num_layers"],
        num_attention_heads=sizes["num_heads"],
        intermediate_size=4 * sizes["d_model"],
    )
    model = ViTForImageClassification(config)
    return model, lambda batch: F.cross_entropy(model(pixel_values=batch["images"]).logits.float(), batch["labels"])


# --- encoder-decoder


def pairs_batch(sizes: Mapping[str, int]) -> Batch:
    """Random sources and targets, all of one length."""
    shape = (sizes["batch_size"], sizes["length"])
    source_BS, target_BT = (torch.randint(4, sizes["vocabulary_size"], shape) for _ in range(2))
    everywhere = torch.ones(shape, dtype=torch.bool)
    target = {"target_in": target_BT, "target_out": target_BT.roll(-1, 1), "is_target": everywhere}
    return {"source": source_BS, "is_source": everywhere, **target}


def own_pairs(sizes: Mapping[str, int]) -> tuple[nn.Module, Task]:
    """attnlab's encoder-decoder."""
    model = EncoderDecoder(sizes["vocabulary_size"], max_length=sizes["length"], **_widths(sizes), dropout=0.0)
    return model, Translation(model, SpecialTokens(), label_smoothing=0.1)


class TorchTranslator(nn.Module):
    """torch.nn.Transformer between an embedding, sinusoids and a tied output."""

    def __init__(self, vocabulary_size: int, length: int, d_model: int, num_heads: int, num_layers: int) -> None:
        super().__init__()
        depth = {"num_encoder_layers": num_layers, "num_decoder_layers": num_layers, "dim_feedforward": 4 * d_model}
        self.transformer = nn.Transformer(d_model, num_heads, dropout=0.0, batch_first=True, **depth)
        self.embedding, self.scale = nn.Embedding(vocabulary_size, d_model), math.sqrt(d_model)
        nn.init.normal_(self.embedding.weight, std=d_model**-0.5)
        angles_TP = torch.arange(length)[:, None] * 10000 ** -(torch.arange(0, d_model, 2) / d_model)
        self.register_buffer("positions_TD", torch.stack([angles_TP.sin(), angles_TP.cos()], dim=-1).flatten(1))
        self.register_buffer("mask_TT", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, source_BS: Tensor, target_BT: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        x_BSD, x_BTD = (
            self.embedding(x) * self.scale + self.positions_TD[: x.shape[1]] for x in (source_BS, target_BT)
        )
        out_BTD = self.transformer(x_BSD, x_BTD, tgt_mask=self.mask_TT, tgt_is_causal=True)
        return F.linear(out_BTD, self.embedding.weight)


def torch_pairs(sizes: Mapping[str, int]) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """torch.nn.Transformer."""
    model = TorchTranslator(sizes["vocabulary_size"], sizes["length"], *_widths(sizes).values())
    return model, lambda batch: _cross_entropy(model(batch["source"], batch["target_in"]), batch["target_out"], 0.1)


def marian_config(sizes: Mapping[str, int]) -> object:
    """Marian of transformers without dropout, at these sizes."""
    from transformers import MarianConfig

    sides = ("encoder", "decoder")
    return MarianConfig(
        vocab_size=sizes["vocabulary_size"],
        decoder_vocab_size=sizes["vocabulary_size"],
        max_position_embeddings=sizes["length"],
        d_model=sizes["d_model"],
        **{f"{side}_layers": sizes["num_layers"] for side in sides},
        **{f"{side}_attention_heads": sizes["num_heads"] for side in sides},
        **{f"{side}_ffn_dim": 4 * sizes["d_model"] for side in sides},
        **dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0),
        eos_token_id=0,
        forced_eos_token_id=None,
        **dict.fromkeys(("pad_token_id", "decoder_start_token_id"), sizes["vocabulary_size"] - 1),
        scale_embedding=True,
        activation_function="relu",
    )


def hf_pairs(sizes: Mapping[str, int]) -> tuple[nn.Module, Callable[[Batch], Tensor]]:
    """Marian of transformers."""
    from transformers import MarianMTModel

    model = MarianMTModel(marian_config(sizes))

    def loss(batch: Batch) -> Tensor:
        logits = model(input_ids=batch["source"], decoder_input_ids=batch["target_in"], use_cache=False).logits
        return _cross_entropy(logits, batch["target_out"], 0.1)

    return model, loss


def _cross_entropy(logits_BTV: Tensor, targets_BT: Tensor, smoothing: float = 0.0) -> Tensor:
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten(), label_smoothing=smoothing)


def _widths(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: sizes[name] for name in ("d_model", "num_heads", "num_layers")}


CASES = {
    case.name: case
    for case in (
        Case(
            "gpt",
            "tokens",
            {"d_model": 256, "num_heads": 4, "num_layers": 4, "length": 128, "batch_size": 16, "vocabulary_size": 65},
            gpt_batch,
            {"attnlab": own_gpt, "nanoGPT": nano_gpt, "x-transformers": x_gpt, "transformers": hf_gpt},
        ),
        Case(
            "bert",
            "tokens",
            {"d_model": 256, "num_heads": 4, "num_layers": 4, "length": 128, "batch_size": 16, "vocabulary_size": 8000},
            bert_batch,
            {"attnlab": own_bert, "transformers": hf_bert},
        ),
        Case(
            "vit",
            "images",
            {"d_model": 128, "num_heads": 4, "num_layers": 6, "image_size": 28, "patch_size": 4, "batch_size": 64},
            vit_batch,
            {"attnlab": own_vit, "vit-pytorch": lucid_vit, "transformers": hf_vit},
        ),
        Case(
            "encoder_decoder",
            "tokens",
            {"d_model": 256, "num_heads": 8, "num_layers": 3, "length": 32, "batch_size": 64, "vocabulary_size": 8000},
            pairs_batch,
            {"attnlab": own_pairs, "torch": torch_pairs, "transformers": hf_pairs},
        ),
    )
}
