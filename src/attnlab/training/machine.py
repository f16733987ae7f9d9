"""The processor that a run computes on: what it multiplies in hardware, and what tells it from others."""

from __future__ import annotations

import contextlib
import functools
import os
import platform


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AMX or AVX-512 BF16)."""
    import torch

    answers = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(answer() for answer in answers if answer is not None)


@functools.cache
def machine_of(device_type: str) -> tuple[str, dict[str, object]]:
    """The processor's name, and what tells it from others of that name as far as it decides how fast a step is."""
    import torch

    if device_type == "cuda":
        name = torch.cuda.get_device_name()
        return name, {"capability": list(torch.cuda.get_device_capability())}
    told: dict[str, str] = {}
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            if not (pair := line.partition(":"))[1]:  # the first processor's lines are over
                break
            told[pair[0].strip()] = pair[2].strip()
    name = told.get("model name") or platform.processor() or platform.machine()
    facts = {key: told.get(key, "") for key in ("vendor_id", "cpu family", "model", "stepping")}
    cpu = {"instructions": torch.backends.cpu.get_cpu_capability(), "bf16": cpu_has_bf16(), "cores": os.cpu_count()}
    return name, {**facts, **cpu}
