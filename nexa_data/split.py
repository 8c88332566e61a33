"""Which split a row belongs to."""

import hashlib

import numpy as np

from nexa_core.config.data import PretrainOutput, TrainingOutput

SPLITS = ("train", "val", "test")
HELD_OUT = ("val", "test")


def position_of(shown: bytes, salt: str) -> int:
    """Where an input lies between 0 and 2**64, from nothing but its bytes and the salt.

    So rows that are added move no other row, the same input with two labels or completions lies in one split,
    and a larger share of `test` keeps every row that was in it.
    """
    return int.from_bytes(hashlib.sha256(salt.encode("utf-8") + b"\0" + shown).digest()[:8], "big")


def splits_of(positions: np.ndarray, output: TrainingOutput | PretrainOutput) -> np.ndarray:
    """For each position the number of its split in `SPLITS`."""
    shares = positions.astype(np.float64) / 2**64
    return np.where(shares < output.test, 2, np.where(shares < output.test + output.val, 1, 0))
