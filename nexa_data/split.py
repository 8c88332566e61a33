"""Which split a row belongs to."""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from nexa_core.config.data import PretrainOutput, TrainingOutput

SPLITS = ("train", "val", "test")
HELD_OUT = ("val", "test")


def positions_of(inputs: Sequence[bytes], salt: str | None) -> np.ndarray:
    """Where each input lies between 0 and 2**64, from nothing but its bytes and the salt; all at 0 without a salt.

    So rows that are added move no other row, the same input with two labels or completions lies in one split,
    and a larger share of `test` keeps every row that was in it.
    """
    if salt is None:
        return np.zeros(len(inputs), dtype=np.uint64)
    before = salt.encode("utf-8") + b"\0"
    digests = b"".join([hashlib.sha256(before + each).digest()[:8] for each in inputs])
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def splits_of(positions: np.ndarray, output: "TrainingOutput | PretrainOutput") -> np.ndarray:
    """For each position the number of its split in `SPLITS`."""
    shares = positions.astype(np.float64) / 2**64
    return np.where(shares < output.test, 2, np.where(shares < output.test + output.val, 1, 0))
