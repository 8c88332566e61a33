"""Which split a row belongs to."""

import hashlib

from nexa_core.config.data import PretrainOutput, TrainingOutput

SPLITS = ("train", "val", "test")
HELD_OUT = ("val", "test")


def split_of(shown: bytes, output: TrainingOutput | PretrainOutput) -> str:
    """The split of an input, from nothing but its bytes and the salt.

    So rows that are added move no other row, the same input with two labels or completions lies in one split,
    and a larger share of `test` keeps every row that was in it.
    """
    digest = hashlib.sha256(output.salt.encode("utf-8") + b"\0" + shown).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    if position < output.test:
        return "test"
    return "val" if position < output.test + output.val else "train"
