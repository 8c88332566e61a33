"""Canonical rows: what every source's rows become, each with an id made of its content."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow

from nexa_core.config.data import PairRows, Rows
from nexa_core.errors import UserError
from nexa_core.lookup import did_you_mean
from nexa_data.identity import content_id
from nexa_data.makers import (
    CanonicalRow,
    ChatMaker,
    FeatureMaker,
    PairMaker,
    RowError,
    TextMaker,
    extra_json,
)
from nexa_data.sources.raw import RawRow, Row
from nexa_data.templates import PromptTemplate

NUM_ROWS_LOOKED_AT = 100
MAX_ROWS_HELD = 10_000

_ID, _EXTRA = pyarrow.field("row_id", pyarrow.string(), nullable=False), pyarrow.field("extra_json", pyarrow.string())
_LABEL = pyarrow.field("label", pyarrow.string(), nullable=False)
_MESSAGE = pyarrow.struct(
    [
        pyarrow.field("role", pyarrow.string(), nullable=False),
        pyarrow.field("content", pyarrow.string(), nullable=False),
        pyarrow.field("extra_json", pyarrow.string()),
    ]
)
_MESSAGES = pyarrow.list_(pyarrow.field("element", _MESSAGE, nullable=False))

SCHEMAS = {
    "features": pyarrow.schema(
        [_ID, pyarrow.field("features", pyarrow.list_(pyarrow.float32()), nullable=False), _LABEL, _EXTRA]
    ),
    "text": pyarrow.schema([_ID, pyarrow.field("text", pyarrow.string(), nullable=False), _LABEL, _EXTRA]),
    "pairs": pyarrow.schema(
        [_ID, pyarrow.field("prompt", pyarrow.string()), pyarrow.field("completion", pyarrow.string()), _EXTRA]
    ),
    "chat": pyarrow.schema([_ID, pyarrow.field("messages", _MESSAGES, nullable=False), _EXTRA]),
}
"""The columns of each kind of rows. `extra_json` is the source's other columns as a JSON object, null where it has none.
Of a pair, `prompt` is null for plain documents and `completion` is null for teacher inputs. Of a message, `extra_json` is
its other keys, such as `tool_calls`; `plain_messages` puts them back."""

Canonical = Callable[[Mapping[str, Any]], CanonicalRow]
"""Makes a source's values a canonical row, or raises `RowError`."""


def canonical(rows: Rows, *, num_features: int | None = None, template: PromptTemplate | None = None) -> Canonical:
    """The function that makes canonical rows after these settings.

    Args:
        num_features: how many numbers a row of features has, where an earlier row has decided it.
        template: what makes the prompts, where the settings name one; the columns that it takes are kept in `extra_json`.
    """
    used = {column for _, column in used_columns(rows)}
    assert (getattr(rows, "template", None) is None) == (template is None)
    makers: dict[str, Any] = {"features": FeatureMaker, "text": TextMaker, "chat": ChatMaker}
    make: Any = PairMaker(rows, template) if isinstance(rows, PairRows) else makers[rows.name](rows)
    if num_features is not None:
        make.num_features = num_features

    def convert(values: Mapping[str, Any]) -> CanonicalRow:
        try:
            columns, shown, label = make(values)
            columns["extra_json"] = extra_json(values, used)
            row_id, size_bytes = content_id(columns)
        except UnicodeEncodeError:
            raise RowError("not valid Unicode", "half of a surrogate pair") from None
        except RecursionError:
            raise RowError("nested too deeply") from None
        return CanonicalRow(row_id, columns, shown, label, size_bytes)

    return convert


def used_columns(rows: Rows) -> Iterator[tuple[str, str]]:
    """(setting, column) for each column of the source that the settings name."""
    for setting in ("features", "text", "prompt", "completion", "messages", "label"):
        given = getattr(rows, setting, None)
        for column in (given,) if isinstance(given, str) else given or ():
            yield setting, column


def check_columns(source: Iterator[Row], rows: Rows, template: PromptTemplate | None = None) -> Iterator[Row]:
    """`source` unchanged, once its first good rows have shown that it has the columns that the settings or the
    template name.

    Raises:
        UserError: a column is in none of the first good rows.
    """
    held: list[Row] = []
    good: list[RawRow] = []
    for row in source:
        held.append(row)
        if isinstance(row, RawRow):
            good.append(row)
        if len(good) == NUM_ROWS_LOOKED_AT or len(held) == MAX_ROWS_HELD:
            break
    columns = {name for row in good for name in row.values}
    named = [("template", column) for column in template.columns] if template is not None else []
    for setting, column in [*used_columns(rows), *named]:
        if good and column not in columns:
            hint = did_you_mean(column, columns)
            raise UserError(
                f"rows.{setting}: {good[0].file} has no column '{column}'.{hint} There: {', '.join(sorted(columns))}"
            )
    yield from held
    held.clear()
    yield from source


def plain_messages(messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row's `messages` as chat templates take them: each message's other keys beside `role` and `content` again."""
    return [
        {**json.loads(message["extra_json"] or "{}"), "role": message["role"], "content": message["content"]}
        for message in messages
    ]
