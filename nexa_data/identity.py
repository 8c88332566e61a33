"""What makes a row the row it is: the id of its content, and what of it a model is shown."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

ID_BYTES = 8
ROW_ID_CHARS = 2 * ID_BYTES


def content_id(columns: Mapping[str, Any]) -> tuple[str, int]:
    """The id of a canonical row, and the bytes of its columns.

    The id is the beginning of the sha256 over each column's name and bytes, both with their lengths before them; `row_id` and
    `extra_json` are no part of it.
    """
    parts: list[bytes] = []
    size_bytes = len((columns.get("extra_json") or "").encode("utf-8"))
    for name, value in columns.items():
        if value is None or name == "extra_json" or name == "row_id":
            continue
        data = value.encode("utf-8") if type(value) is str else bytes_of(value)
        size_bytes += len(data)
        parts += framed(name, [data])
    return hashlib.sha256(b"".join(parts)).hexdigest()[:ROW_ID_CHARS], size_bytes


def framed(name: str, values: Sequence[bytes]) -> list[bytes]:
    """A column's values with its name and their number of bytes before each, so that no two rows are spelt alike."""
    before = name.encode()
    return [b"%b %d %b" % (before, len(value), value) for value in values]


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
