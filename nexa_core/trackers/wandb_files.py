"""Reading the files that W&B's client writes where it has no server: `offline-run-*/run-<id>.wandb`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

# Source: https://github.com/google/leveldb/blob/main/doc/log_format.md, behind a header of W&B's own.
FILE_HEADER_BYTES = 7
BLOCK_BYTES = 2**15
HEADER_BYTES = 7
FULL, FIRST, LAST = 1, 2, 4  # and 3 between them


def read_records(path: Path) -> Iterator[Any]:
    """The file's records, as far as they were written whole."""
    data = path.read_bytes()
    parts: list[bytes] = []
    position = FILE_HEADER_BYTES
    while position + HEADER_BYTES <= len(data):
        left = BLOCK_BYTES - position % BLOCK_BYTES
        if left < HEADER_BYTES:  # the rest of a block that has no room for a header is empty
            position += left
            continue
        length, kind = int.from_bytes(data[position + 4 : position + 6], "little"), data[position + 6]
        begin = position + HEADER_BYTES
        position = begin + length
        if position > len(data) or not FULL <= kind <= LAST:
            return
        parts = [data[begin:position]] if kind in (FULL, FIRST) else [*parts, data[begin:position]]
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(b"".join(parts))
            yield record


def last_step(path: Path) -> int:
    """The last step that the file has values of; 0 where there is none."""
    steps = (record.history.step.num for record in read_records(path) if record.HasField("history"))
    return max(steps, default=0)
