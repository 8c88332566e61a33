"""Rows made canonical many at a time: plain texts column by column, which takes half the time, all others one by one.

Both ways make the same of a row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, islice
from operator import not_
from typing import Any, TypeVar

import orjson

from nexa_core.config.data import PairRows, Rows, TextRows
from nexa_data.identity import content_digests
from nexa_data.makers import MAX_LABEL_CHARS, CanonicalRow, RowError
from nexa_data.rows import canonical, used_columns
from nexa_data.sources.raw import RawRow, Row
from nexa_data.templates import PromptTemplate

CHUNK_ROWS = 256

T = TypeVar("T")
Numbered = tuple[int, Row]
Readable = tuple[int, RawRow]


@dataclass
class Chunk:
    """Canonical rows in columns, in their order, and those that cannot be canonical.

    An element of each list is of one good row; `raw` and `numbers` say what it was made of.
    """

    raw: list[RawRow] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """Without `row_id`; texts as UTF-8."""
    ids: list[bytes] = field(default_factory=list)
    inputs: list[bytes] = field(default_factory=list)
    """What a model is shown: the split is a hash of it."""
    sizes: list[int] = field(default_factory=list)
    errors: list[tuple[int, RawRow, RowError]] = field(default_factory=list)

    def extend(self, other: "Chunk") -> None:
        self.raw += other.raw
        self.numbers += other.numbers
        self.ids += other.ids
        self.inputs += other.inputs
        self.sizes += other.sizes
        self.errors += other.errors
        for name, values in other.columns.items():
            self.columns.setdefault(name, []).extend(values)


class Converter:
    """Makes chunks of the rows of a source, after its settings.

    Args:
        num_features: how many numbers a row of features has, where an earlier row has decided it.
        template: what makes the prompts, where the settings name one.
    """

    def __init__(self, rows: Rows, num_features: int | None = None, template: PromptTemplate | None = None):
        self._convert = canonical(rows, num_features=num_features, template=template)
        self._used = {column for _, column in used_columns(rows)}
        self._texts, self._template = _text_columns(rows), template
        self._empty = {"prompt", "completion"} - set(rows.sides) if rows.name == "pairs" else set[str]()

    def __call__(self, rows: Sequence[Readable]) -> Chunk:
        if not self._texts and self._template is None:
            return self._one_by_one(rows)
        if self._are_plain([row for _, row in rows]):
            return self._by_columns(rows)
        is_plain = [self._are_plain([row]) for _, row in rows]
        made = self._by_columns(list(compress(rows, is_plain)))
        made.extend(self._one_by_one(list(compress(rows, map(not_, is_plain)))))
        return _in_order(made)

    def _are_plain(self, rows: Sequence[RawRow]) -> bool:
        """Whether each used column of each row is a text of more than white space, and the others need no change to be JSON."""
        if not all(row.is_json for row in rows):
            return False
        for name, column in self._texts.items():
            texts: list[Any] = [row.values.get(column) for row in rows]
            if set(map(type, texts)) - {str} or "" in texts or any(map(str.isspace, texts)):
                return False
            if name == "label" and max(map(len, texts), default=0) > MAX_LABEL_CHARS:
                return False
        return True

    def _by_columns(self, rows: Sequence[Readable]) -> Chunk:
        values = [row.values for _, row in rows]
        try:
            texts = {name: [row[column].encode() for row in values] for name, column in self._texts.items()}
            columns = {**self._made_prompts(values), **texts}
            extra = self._extra(values)
        except (
            RowError,
            UnicodeEncodeError,
            orjson.JSONEncodeError,
        ):  # no prompt, half a surrogate pair, nested too deeply
            return self._one_by_one(rows)
        none = {name: [None] * len(rows) for name in self._empty}
        return Chunk(
            raw=[row for _, row in rows],
            numbers=[number for number, _ in rows],
            columns={**columns, **none, "extra_json": extra},
            ids=content_digests(columns),
            inputs=next(iter(columns.values())),
            sizes=[
                sum(map(len, texts)) for texts in zip(*columns.values(), [text or b"" for text in extra], strict=True)
            ],
        )

    def _made_prompts(self, values: Sequence[Mapping[str, Any]]) -> dict[str, list[bytes]]:
        """The column of prompts, where a template makes them."""
        if self._template is None:
            return {}
        prompts = [self._template.render(row) for row in values]
        if "" in prompts or any(map(str.isspace, prompts)):
            raise RowError("empty prompt")
        return {"prompt": [prompt.encode() for prompt in prompts]}

    def _extra(self, values: Sequence[Mapping[str, Any]]) -> list[bytes | None]:
        """The other columns of each row as JSON."""
        used, found = self._used, list[bytes | None]()
        for row in values:
            if len(row) == len(used):
                found.append(None)
                continue
            others = dict(row)
            for column in used:
                del others[column]
            found.append(orjson.dumps(others, option=orjson.OPT_SORT_KEYS))
        return found

    def _one_by_one(self, rows: Sequence[Readable]) -> Chunk:
        made = Chunk()
        for number, raw in rows:
            try:
                _add(made, number, raw, self._convert(raw.values))
            except RowError as error:
                made.errors.append((number, raw, error))
        return made


def chunks_of(rows: Iterator[Row]) -> Iterator[list[Numbered]]:
    """The rows, numbered from 0, a few at a time."""
    numbered = enumerate(rows)
    while taken := list(islice(numbered, CHUNK_ROWS)):
        yield taken


def _text_columns(rows: Rows) -> dict[str, str]:
    """The canonical columns and those of the source that they are made of; none where it takes more than that."""
    match rows:
        case TextRows(text=str(text)):
            return {"text": text, "label": rows.label}
        case PairRows():
            sides = {"prompt": rows.prompt, "completion": rows.completion}
            return {name: column for name, column in sides.items() if column is not None}
        case _:
            return {}


def _add(made: Chunk, number: int, raw: RawRow, row: CanonicalRow) -> None:
    made.raw.append(raw)
    made.numbers.append(number)
    made.ids.append(bytes.fromhex(row.row_id))
    made.inputs.append(row.input)
    made.sizes.append(row.size_bytes)
    for name, value in row.columns.items():
        made.columns.setdefault(name, []).append(value.encode() if isinstance(value, str) else value)


def _in_order(chunk: Chunk) -> Chunk:
    order = sorted(range(len(chunk.numbers)), key=chunk.numbers.__getitem__)

    def ordered(values: list[T]) -> list[T]:
        return [values[index] for index in order]

    columns = {name: ordered(values) for name, values in chunk.columns.items()}
    rows = ordered(chunk.raw), ordered(chunk.numbers), columns, ordered(chunk.ids), ordered(chunk.inputs)
    return Chunk(*rows, ordered(chunk.sizes), sorted(chunk.errors, key=lambda each: each[0]))
