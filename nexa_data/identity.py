"""What makes a row the row it is: the id of its content, and what of it a model is shown."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy

ID_BYTES = 8
ROW_ID_CHARS = 2 * ID_BYTES


def content_id(columns: Mapping[str, Any]) -> tuple[str, int]:
    """The id of a canonical row, and the bytes of its columns.

    The id is the beginning of the sha256 over each column's name and bytes, both with their lengths before them; `row_id` and
    `extra_json` are no part of it.
    """
    parts = {
        name: [value.encode("utf-8") if type(value) is str else bytes_of(value)]
        for name, value in columns.items()
        if value is not None and name not in ("extra_json", "row_id")
    }
    size_bytes = len((columns.get("extra_json") or "").encode("utf-8")) + sum(len(data) for (data,) in parts.values())
    (digest,) = content_digests(parts)
    return digest.hex(), size_bytes


def content_digests(columns: Mapping[str, Sequence[bytes]]) -> list[bytes]:
    """The id of each row, as bytes, of the columns that are part of it."""
    spelt = b"".join(b"%b %%d %%b" % name.encode() for name in columns)  # no two rows are spelt alike
    parts = chain.from_iterable((map(len, values), values) for values in columns.values())
    return [hashlib.sha256(spelt % row).digest()[:ID_BYTES] for row in zip(*parts, strict=True)]


def shown_of(kind: str, columns: Mapping[str, Any]) -> bytes:
    """What a model is shown of a canonical row of that kind: the split is a hash of it."""
    match kind:
        case "features" | "text":
            return bytes_of(columns[kind])
        case "pairs":
            return bytes_of(columns["completion"] if columns["prompt"] is None else columns["prompt"])
        case _:
            return bytes_of(before_last_turn(columns["messages"]))


def before_last_turn(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The messages before the assistant's last one."""
    last = max(index for index, message in enumerate(messages) if message["role"] == "assistant")
    return list(messages[:last])


def bytes_of(value: Any) -> bytes:
    """A column's value; of messages each text with its length before it, and an absent one as an empty one."""
    if isinstance(value, str):
        return value.encode("utf-8")
    if not isinstance(value, list):
        return bytes(value.tobytes())
    if value and not isinstance(value[0], Mapping):  # features, as tables give them
        return numpy.array(value, dtype="<f4").tobytes()
    texts = [(text or "").encode("utf-8") for message in value for text in message.values()]
    return b"".join(b"%d %s" % (len(text), text) for text in texts)
