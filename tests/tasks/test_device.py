"""A training step, up to the update, on a device that is no CPU: no operation reads a value back, for which the host would
wait, and GPT's are hardly more than those of the plainest code. The meta device stands for it: a value that is read raises there."""

from collections import Counter
from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from attnlab.data.module import IGNORED
from attnlab.data.special_tokens import SpecialTokens
from attnlab.layers import ALiBi, Learned, RelativeBias, Rotary, Sinusoidal
from attnlab.models import CLIP, GPT, T5, Bert, EncoderDecoder, ViT, Whisper
from attnlab.tasks import (
    CausalLanguageModelling,
    Contrastive,
    ImageClassification,
    MaskedLanguageModelling,
    SequenceClassification,
    SpanCorruption,
    SpanExtraction,
    TokenClassification,
    Transcription,
    Translation,
)
from attnlab.training.loss import LossAccumulator

V, T, B = 50, 12, 4
SPECIAL = SpecialTokens(mask=3)
SIZES = {"d_model": 32, "num_heads": 4, "num_layers": 2}


def tokens(*shape):
    return torch.randint(4, V, shape)


def causal():
    return {"tokens": tokens(B, T), "targets": tokens(B, T)}


def masked():
    return {"tokens": tokens(B, T), "targets": tokens(B, T), "chosen": torch.rand(B, T) < 0.3}


def pairs():
    lengths = torch.tensor([[T], [T - 3], [T - 1], [2]])
    real = torch.arange(T)[None] < lengths
    return {"source": tokens(B, T), "target_in": tokens(B, T), "target_out": tokens(B, T)} | {
        "is_source": real,
        "is_target": real,
    }


def images():
    return {"images": torch.randn(B, 1, 8, 8), "labels": torch.randint(10, (B,))}


def texts():
    lengths = torch.tensor([[T], [T - 3], [T - 1], [2]])
    return {"tokens": tokens(B, T), "is_token": torch.arange(T)[None] < lengths}


def labelled():
    return texts() | {"labels": torch.randint(3, (B,))}


def tagged():
    begins = texts()["is_token"] & (torch.rand(B, T) < 0.6)
    return texts() | {"labels": torch.randint(5, (B, T)).masked_fill(~begins, IGNORED)}


def questions():
    given = texts()
    segments = (torch.arange(T)[None] > 1).long().expand(B, T)
    answers = torch.tensor([[3, 4], [0, 0], [2, 2], [0, 0]])
    return given | {"segments": segments, "is_text": given["is_token"] & (segments > 0), "answers": answers}


def captioned():
    return texts() | {"images": torch.randn(B, 1, 8, 8)}


def spoken():
    targets = tokens(B, T)
    targets[1, -3:] = IGNORED
    return {"features": torch.randn(B, 8, 24), "tokens_in": tokens(B, T), "targets": targets}


def translation(**fields):
    model = EncoderDecoder(V, max_length=T, **SIZES, dropout=0.1, **fields)
    return Translation(model, SpecialTokens(), label_smoothing=0.1)


def clip(loss):
    model = CLIP(V, image_size=8, patch_size=4, channels=1, max_length=T, logit_bias=loss == "sigmoid", **SIZES)
    return Contrastive(model, loss)


CASES = {
    **{
        f"gpt {kind.__name__}": (lambda kind=kind: CausalLanguageModelling(GPT(V, T, **SIZES, position=kind)), causal)
        for kind in (Learned, Rotary, ALiBi, RelativeBias)
    },
    "bert": (lambda: MaskedLanguageModelling(Bert(V, T, **SIZES)), masked),
    "bert, every token": (lambda: MaskedLanguageModelling(Bert(V, T, **SIZES), masked_only=False), masked),
    "encoder-decoder": (lambda: translation(position=Sinusoidal), pairs),
    "encoder-decoder, learned": (lambda: translation(position=Learned), pairs),
    "t5": (lambda: SpanCorruption(T5(V, max_length=T, **SIZES)), pairs),
    "sequence classification": (lambda: SequenceClassification(Bert(V, T, **SIZES), 3, SPECIAL), labelled),
    "sequence classification by the first token": (
        lambda: SequenceClassification(Bert(V, T, **SIZES), 3, SPECIAL, pooling="first", token_dropout=0.1),
        labelled,
    ),
    "token classification": (lambda: TokenClassification(Bert(V, T, **SIZES), 5, SPECIAL), tagged),
    "span extraction": (lambda: SpanExtraction(Bert(V, T, num_segments=2, **SIZES), SPECIAL), questions),
    "clip": (lambda: clip("softmax"), captioned),
    "clip, sigmoid": (lambda: clip("sigmoid"), captioned),
    "whisper": (lambda: Transcription(Whisper(V, 8, 24, T, **SIZES), SPECIAL, T), spoken),
    "vit": (lambda: ImageClassification(ViT(10, 8, 1, patch_size=4, **SIZES)), images),
}


class Operations(TorchDispatchMode):
    """Counts what reaches the device; views cost it nothing."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        if not operation.is_view and not str(operation).startswith(("aten.detach", "aten._unsafe_view")):
            self.counts[str(operation)] += 1
        return operation(*given, **(named or {}))


def on_meta(task, batch):
    """The task and a prepared batch on the meta device."""
    prepared = task.on_before_batch_transfer(batch, 0)
    moved = {name: x.to("meta") if isinstance(x, torch.Tensor) else x for name, x in prepared.items()}
    return task.to("meta").train(), moved


def step(task, batch, sums):
    loss = sums.accumulate(task.loss_sums(batch), alone=True)
    loss.backward()
    count = sums.finish_step(1, False, None)
    sums.scale_gradients([p.grad for p in task.model.parameters() if p.grad is not None], count, 1, 1.0, False)


@pytest.mark.parametrize("name", CASES)
def test_no_training_step_reads_a_value_back(monkeypatch, name):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # which the meta device has none of
    build, batch = CASES[name]
    task, given = on_meta(build(), batch())
    sums = LossAccumulator()
    for _ in range(2):
        step(task, given, sums)
    with pytest.raises(RuntimeError, match="meta"):
        float(sums.last.loss)  # as it would have


class Plain(nn.Module):
    """nanoGPT's recipe: learned positions, Pre-LN, one product for queries, keys and values, a tied output."""

    def __init__(self):
        super().__init__()
        width = SIZES["d_model"]
        self.embedding, self.positions = nn.Embedding(V, width), nn.Embedding(T, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * SIZES["num_layers"] + 1))
        shapes = [(width, 3 * width), (width, width), (width, 4 * width), (4 * width, width)] * SIZES["num_layers"]
        self.matrices = nn.ModuleList(nn.Linear(*shape, bias=False) for shape in shapes)

    def forward(self, tokens_BT):
        x_BTD = self.embedding(tokens_BT) + self.positions(torch.arange(T, device=tokens_BT.device))
        for layer in range(SIZES["num_layers"]):
            qkv, output, up, down = self.matrices[4 * layer : 4 * layer + 4]
            parts = qkv(self.norms[2 * layer](x_BTD)).chunk(3, dim=2)
            heads = (x.unflatten(2, (SIZES["num_heads"], -1)).transpose(1, 2) for x in parts)
            attended = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
            x_BTD = x_BTD + output(attended)
            x_BTD = x_BTD + down(F.gelu(up(self.norms[2 * layer + 1](x_BTD))))
        return F.linear(self.norms[-1](x_BTD), self.embedding.weight)


def test_gpt_takes_hardly_more_operations_than_the_plainest_code():
    task, batch = on_meta(CASES["gpt Learned"][0](), causal())
    with Operations() as ours:
        step(task, batch, LossAccumulator())
    model = Plain().to("meta")
    with Operations() as theirs:
        loss = F.cross_entropy(model(batch["tokens"]).flatten(0, 1), batch["targets"].flatten())
        loss.backward()
        # As torch's clip_grad_norm_, which takes no lists of tensors on this device.
        gradients = [parameter.grad for parameter in model.parameters()]
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, (1.0 / (norm + 1e-6)).clamp(max=1.0))
    more = ours.counts - theirs.counts
    assert ours.counts.total() <= 1.1 * theirs.counts.total(), (ours.counts.total(), theirs.counts.total(), more)
