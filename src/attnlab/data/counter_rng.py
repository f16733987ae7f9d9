"""
Random numbers that are a function of what they are for: no generator has a state that a resumed training has to
restore.

Shapes: B examples, K numbers for each.
"""

import hashlib

import numpy as np


def uniforms(seed: int, epochs_B: np.ndarray | int, examples_B: np.ndarray, purpose: str, count: int) -> np.ndarray:
    """`count` numbers in [0, 1) for each example of its epoch, (B, K), fp64, others for each purpose.

    The finaliser of SplitMix64 (Steele et al. 2014) over one number after the other, so that neighbours share nothing.
    """
    named = int.from_bytes(hashlib.blake2b(purpose.encode(), digest_size=8).digest())
    of_epoch = _mix(_mix(np.array([named], dtype=np.uint64), seed), epochs_B)
    of_example_B1 = _mix(of_epoch, np.asarray(examples_B).astype(np.uint64))[:, None]
    numbers_BK = _mix(_mix(of_example_B1, np.arange(count, dtype=np.uint64)), 0)
    return (numbers_BK >> np.uint64(11)).astype(np.float64) / (1 << 53)


def _mix(numbers: np.ndarray, also: np.ndarray | int) -> np.ndarray:
    # Arrays of unsigned integers wrap around, as is meant here.
    mixed = numbers + np.asarray(also, dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
