"""Which number format a training computes in: asked, or chosen by a rule that is the same for every cell of a sweep on one device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

CHOICES = ("auto", "32", "bf16", "16")
_LIGHTNING = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
# A step's time in bf16 over fp32 on an AVX-512 BF16 core (GPT, 2 layers, batch 16, context 64): 1.45 at d_model 64, 0.92 at 128, 0.66 at 256,
# 0.54 at 512. Below 256 conversions eat the gain.
CPU_BF16_D_MODEL = 256


@dataclass(frozen=True)
class Precision:
    """What is `used` ("32", "bf16" or "16"), Lightning's name for it, what was `asked`, and the `reason` in a sentence."""

    lightning: str
    used: str
    asked: str
    reason: str


def resolve(precision: str, device_type: str, d_model: int) -> Precision:
    """The precision to train in. Raises ValueError for an unknown one, and for one that the device does not serve."""
    asked = str(precision)
    if asked not in CHOICES:
        raise ValueError(f"trainer.precision={asked}: accepted are {', '.join(CHOICES)}")
    if asked == "16" and device_type not in ("cuda", "cpu"):
        raise ValueError(
            f"trainer.precision=16: the loss cannot be scaled for fp16 on this device, {device_type}; accepted are auto, 32, bf16"
        )
    used, reason = _automatic(device_type, d_model) if asked == "auto" else (asked, "asked for")
    return Precision(_LIGHTNING[used], used, asked, reason)


def _automatic(device_type: str, d_model: int) -> tuple[str, str]:
    if device_type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU computes in bf16"
        return "32", "this GPU does not compute in bf16, and fp16 can overflow"
    if device_type != "cpu":
        return "32", f"bf16 is not relied on with {device_type}"
    if not cpu_has_bf16():
        return "32", "this CPU has no bf16 instructions"
    if d_model < CPU_BF16_D_MODEL:
        return "32", f"on a CPU bf16 is faster from d_model={CPU_BF16_D_MODEL} on, this model has {d_model}"
    return "bf16", f"this CPU has bf16 instructions and d_model={d_model} is wide enough to gain from them"


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AMX or AVX-512 BF16)."""
    answers = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(answer() for answer in answers if answer is not None)
