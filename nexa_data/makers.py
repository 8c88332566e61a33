"""Makers of canonical rows, one for each kind, and why a row cannot be one."""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import numpy
import orjson

from nexa_core import digests
from nexa_core.config.data import ChatRows, FeatureRows, PairRows, Role, TextRows
from nexa_data.identity import before_last_turn, bytes_of
from nexa_data.values import plain

if TYPE_CHECKING:
    from nexa_data.templates import PromptTemplate

MAX_LABEL_CHARS = 200

ROLES: tuple[Role, ...] = get_args(Role)
FOLLOWS: dict[str, set[str | None]] = {
    "system": {None},
    "user": {None, "system", "assistant"},
    "assistant": {"user", "tool"},
    "tool": {"assistant", "tool"},
}
"""The roles after which a role may come; None is the beginning. What is refused, the chat templates of Gemma and Mistral
refuse as well: there user and assistant take turns, and the user begins."""
AS_THEY_ARE = frozenset({str, int, bool, type(None)})
"""Types of which every value is a JSON value."""
CALLS = ("tool_calls", "function_call")
"""Keys that make up for an assistant's missing content."""


class RowError(Exception):
    """A row cannot become a canonical one; `reason` is one of few, `detail` is particular to the row."""

    def __init__(self, reason: str, detail: str = ""):
        super().__init__(reason)
        self.reason, self.detail = reason, detail


Made = tuple[dict[str, Any], bytes, str | None]
"""What a maker makes: columns, input and label of a canonical row, whose id and `extra_json` are still to come."""


class CanonicalRow(NamedTuple):
    """A row in the columns of its schema.

    `input` is what a model is shown, as bytes: the split is a hash of it. `row_id` is a hash of input and target, and
    `size_bytes` what all of its columns take.
    """

    row_id: str
    columns: dict[str, Any]
    input: bytes
    label: str | None
    size_bytes: int


class FeatureMaker:
    """Makes rows of float32 numbers with a label; without a shape the first row decides how many numbers a row has."""

    def __init__(self, rows: FeatureRows):
        self._rows = rows
        self.num_features = None if rows.shape is None else int(numpy.prod(rows.shape))

    def __call__(self, values: Mapping[str, Any]) -> Made:
        numbers = self._numbers(values)
        self._check_count(len(numbers))
        try:
            packed = struct.pack(f"<{len(numbers)}f", *numbers)
        except (OverflowError, struct.error):  # a float beyond float32, an int beyond any float
            raise RowError("number too large for float32") from None
        features = numpy.frombuffer(packed, dtype="<f4") + numpy.float32(0)  # -0.0 and 0.0 are the same input
        if not numpy.isfinite(features).all():
            raise RowError("number not finite")
        label = _label(values, self._rows.label)
        return {"features": features, "label": label}, features.tobytes(), label

    def _numbers(self, values: Mapping[str, Any]) -> list[float]:
        if not isinstance(self._rows.features, str):
            return [_number(_value(values, column), column) for column in self._rows.features]
        value = _value(values, self._rows.features)
        value = value.tolist() if hasattr(value, "tolist") else value
        if not isinstance(value, list | tuple) or not set(map(type, value)) <= {int, float}:
            raise RowError("not a list of numbers", f"in column '{self._rows.features}'")
        return list(value)

    def _check_count(self, count: int) -> None:
        if count == 0:
            raise RowError("no numbers")
        if self.num_features is None:
            self.num_features = count
        if count != self.num_features:
            raise RowError("wrong number of features", f"{count} instead of {self.num_features}")


class TextMaker:
    """Makes rows of a text and its label."""

    def __init__(self, rows: TextRows):
        self._columns = (rows.text,) if isinstance(rows.text, str) else rows.text
        self._label = rows.label

    def __call__(self, values: Mapping[str, Any]) -> Made:
        texts = [_text(values, column) for column in self._columns]
        text = texts[0] if len(texts) == 1 else "\n".join(texts)
        if _is_empty(text):
            raise RowError("empty text")
        label = _label(values, self._label)
        return {"text": text, "label": label}, text.encode("utf-8"), label


class PairMaker:
    """Makes pairs of a prompt and its completion, or rows of one of them alone."""

    def __init__(self, rows: PairRows, template: "PromptTemplate | None" = None):
        self._columns = {"prompt": rows.prompt, "completion": rows.completion}
        self._template = template

    def __call__(self, values: Mapping[str, Any]) -> Made:
        pair = {"prompt": self._side(values, "prompt"), "completion": self._side(values, "completion")}
        shown = pair["completion"] if pair["prompt"] is None else pair["prompt"]
        assert shown is not None  # the settings demand one of them
        return pair, shown.encode("utf-8"), None

    def _side(self, values: Mapping[str, Any], side: str) -> str | None:
        column = self._columns[side]
        if side == "prompt" and self._template is not None:
            text = self._template.render(values)
        elif column is not None:
            text = _text(values, column)
        else:
            return None
        if _is_empty(text):
            raise RowError(f"empty {side}")
        return text


class ChatMaker:
    """Makes conversations: messages of one spelling, in an order that chat templates can render."""

    def __init__(self, rows: ChatRows):
        self._rows = rows

    def __call__(self, values: Mapping[str, Any]) -> Made:
        given = _value(values, self._rows.messages)
        given = given.tolist() if hasattr(given, "tolist") else given
        if not isinstance(given, list | tuple):
            raise RowError("not a list of messages", f"'{self._rows.messages}' is {_type_name(given)}")
        messages = [self._message(message, f"message {number}") for number, message in enumerate(given, 1)]
        roles = [str(message["role"]) for message in messages]
        if "assistant" not in roles:
            raise RowError("no assistant message", f"{len(roles)} messages")
        _check_order(roles)
        return {"messages": messages}, bytes_of(before_last_turn(messages)), None

    def _message(self, message: Any, where: str) -> dict[str, str | None]:
        if not isinstance(message, Mapping):
            raise RowError("message not an object", f"{where} is {_type_name(message)}")
        role = self._role(_member(message, self._rows.role, where), where)
        content = self._content(message, role, where)
        used = {self._rows.role, self._rows.content}
        # A null is what tables have where there is nothing: the same conversation as JSON lacks the key.
        others = {key: value for key, value in message.items() if key not in used and value is not None}
        return {"role": role, "content": content, "extra_json": extra_json(others, set())}

    def _role(self, given: Any, where: str) -> str:
        if not isinstance(given, str):
            raise RowError("role not text", f"{where}: {_type_name(given)}")
        role = self._rows.roles.get(given, given)
        if role not in ROLES:
            raise RowError(
                f"unknown role (known: {', '.join(ROLES)}; others through rows.roles)", f"{where}: {given[:40]!r}"
            )
        return role

    def _content(self, message: Mapping[str, Any], role: str, where: str) -> str:
        is_call = role == "assistant" and any(message.get(key) for key in CALLS)
        if is_call and message.get(self._rows.content) is None:
            return ""
        content = _member(message, self._rows.content, where)
        if not isinstance(content, str):
            raise RowError("content not text", f"{where}: {_type_name(content)}")
        if role in ("user", "assistant") and not content.strip() and not is_call:
            raise RowError("empty content", f"{where}: {role}")
        return content


def _member(message: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in message:
        raise RowError(f"message without '{key}'", f"{where} has the keys {', '.join(map(str, message)) or 'none'}")
    return message[key]


def _check_order(roles: Sequence[str]) -> None:
    for number, (before, role) in enumerate(zip([None, *roles[:-1]], roles, strict=True), 1):
        if before not in FOLLOWS[role]:
            place = "at the beginning" if before is None else f"after {before}"
            raise RowError("roles out of order", f"message {number}: {role} {place}")


def extra_json(values: Mapping[str, Any], used: set[str]) -> str | None:
    if len(values) == len(used):  # each used column is there, so there is no other
        return None
    extra = {name: value for name, value in values.items() if name not in used}
    if not all(map(_is_plain, extra.values())):
        extra = plain(extra)
    if not extra:
        return None
    try:
        return orjson.dumps(extra, option=orjson.OPT_SORT_KEYS).decode("utf-8")
    except TypeError:  # integers of more than 64 bits, and what JSON cannot hold
        pass
    try:
        return digests.canonical_json(extra).decode("utf-8")
    except TypeError as error:
        raise RowError("not plain values", str(error)) from None


def _is_plain(value: Any) -> bool:
    kind = type(value)
    return kind in AS_THEY_ARE or (kind is float and math.isfinite(value))


def _is_empty(text: str) -> bool:
    """Whether there is nothing but white space."""
    return not text or text.isspace()


def _value(values: Mapping[str, Any], column: str) -> Any:
    value = values.get(column)
    if value is None:
        raise RowError("missing value", f"no '{column}'")
    return value


def _text(values: Mapping[str, Any], column: str) -> str:
    value = values.get(column)
    if type(value) is str:
        return value
    value = _value(values, column)
    if not isinstance(value, str):
        raise RowError("not text", f"'{column}' is {_type_name(value)}")
    return value


def _label(values: Mapping[str, Any], column: str) -> str:
    """A label as text: that of a number or truth value is its JSON."""
    value = _value(values, column)
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not numpy.isfinite(value):
        raise RowError("number not finite", f"'{column}'")
    if not isinstance(value, str | int | float):
        raise RowError("not a label", f"'{column}' is {_type_name(value)}")
    label = str(value)
    if _is_empty(label):
        raise RowError("empty label")
    if len(label) > MAX_LABEL_CHARS:
        raise RowError(
            "not a label", f"'{column}' has {len(label)} characters, at most {MAX_LABEL_CHARS} are a class's name"
        )
    return label


def _number(value: Any, column: str) -> float:
    """A number, or the text of one, as CSV has it."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, bool) or not isinstance(value, str | int | float) or (isinstance(value, str) and "_" in value):
        raise RowError("not a number", f"'{column}' is {_type_name(value)}")
    try:
        return float(value)
    except OverflowError:
        raise RowError("number too large for float32", f"'{column}'") from None
    except ValueError:
        raise RowError("not a number", f"'{column}' is {str(value)[:40]!r}") from None


def _type_name(value: Any) -> str:
    return {"str": "text", "dict": "an object", "list": "a list", "bool": "true or false", "NoneType": "null"}.get(
        type(value).__name__, type(value).__name__
    )
