"""The rows of one piece of a source as columns, with what decides where each of them goes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pyarrow

from nexa_core.config.data import Rows
from nexa_core.config.quality import PrivateStep, QualityStep
from nexa_core.errors import UserError
from nexa_data.chunks import Chunk, Converter, chunks_of
from nexa_data.evaluation_sets import EvaluationSet, Overlap
from nexa_data.makers import RowError
from nexa_data.minhash import band_keys, signatures
from nexa_data.quality import look_of, looked_at, open_step
from nexa_data.quality.private import masker
from nexa_data.rows import SCHEMAS
from nexa_data.sources.raw import BadRow, ExcerptsAt, RawRow, Row, excerpt
from nexa_data.split import positions_of
from nexa_data.templates import PromptTemplate

BATCH_ROWS = 10_000
BATCH_BYTES = 32 * 2**20
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Making:
    """What makes a source's rows canonical, in a form that travels to other processes."""

    rows: Rows
    salt: str | None
    """Of the split; None where rows are not split."""
    num_features: int | None = None
    """Of each row of features, once the first one has decided it."""
    quality: tuple[QualityStep, ...] = ()
    has_keys: bool = False
    """Whether each row gets the keys by which near duplicates are found."""
    evaluation: EvaluationSet | None = None
    """Whose texts rows are searched for."""
    template: PromptTemplate | None = None
    """What makes the prompts, where the settings name one."""

    @property
    def masked(self) -> tuple[str, ...]:
        """The kinds of private data that are blanked before anything else is done."""
        steps = [step for step in self.quality if isinstance(step, PrivateStep) and step.action == "mask"]
        return tuple(sorted({kind for step in steps for kind in step.kinds}))


class Bad(NamedTuple):
    """A row that was left out, the `number`-th of its piece, in the step `step`."""

    number: int
    step: str
    row: BadRow


@dataclass(frozen=True)
class Batch:
    """Some rows of a piece in their order; arrays have an element a row that is kept."""

    table: pyarrow.Table
    """In the columns of its schema."""
    ids: np.ndarray
    """uint64: the number that `row_id` is."""
    positions: np.ndarray
    """uint64: where each row lies between 0 and 2**64; the split is a function of it."""
    sizes: np.ndarray
    """Bytes of all columns."""
    numbers: np.ndarray
    """Which row of its piece, bad ones counted, from 0."""
    lines: np.ndarray
    offsets: np.ndarray
    """Bytes; -1 where a format has no lines."""
    bad: Sequence[Bad]
    num_read: int
    labels: frozenset[str]
    num_features: int | None
    excerpts_of: Callable[[Sequence[int]], list[str]]
    """The beginnings of the source's rows that the given rows were made of."""
    scores: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What the quality steps measured, by `score_name`."""
    keys: np.ndarray | None = None
    """uint64 (rows, 14), as `minhash.band_keys` gives them; None where nobody asked for them."""
    overlaps: Sequence[Overlap] = ()
    """Of the rows that an evaluation set has texts of."""


def make_batches(rows: Iterator[Row], making: Making, excerpts_at: ExcerptsAt | None = None) -> Iterator[Batch]:
    """Every row of a piece, good in the columns of its schema or bad with its reason.

    Args:
        excerpts_at: reads the beginnings of rows again; without it they are shown as what was read of them.
    """
    close = _Closing(making, excerpts_at)
    convert = Converter(making.rows, making.num_features, making.template)
    made, bad, num_read, size_bytes = Chunk(), list[Bad](), 0, 0
    for taken in chunks_of(_masked(rows, making.masked)):
        num_read += len(taken)
        bad += [Bad(number, "read", row) for number, row in taken if isinstance(row, BadRow)]
        chunk = convert([(number, row) for number, row in taken if isinstance(row, RawRow)])
        bad += [_not_canonical(*error) for error in chunk.errors]
        made.extend(chunk)
        size_bytes += sum(chunk.sizes)
        if len(made.ids) >= BATCH_ROWS or size_bytes >= BATCH_BYTES:
            yield close(made, bad, num_read)
            made, bad, num_read, size_bytes = Chunk(), [], 0, 0
    if num_read:
        yield close(made, bad, num_read)


def _not_canonical(number: int, raw: RawRow, error: RowError) -> Bad:
    row = BadRow(raw.file, raw.line, error.reason, excerpt(raw.values), error.detail, raw.offset)
    return Bad(number, "normalise", row)


class Measuring:
    """The scores of canonical rows, in all steps."""

    def __init__(self, making: Making):
        self._steps = [(look_of(making.rows.name, each), open_step(each)) for each in making.quality]
        self.names = [score_name(index, name) for index, (_, step) in enumerate(self._steps) for name in step.names]

    def __call__(self, columns: Mapping[str, Any]) -> list[float]:
        return [score for look, step in self._steps for score in step.measure(look(columns))]


def score_name(step: int, name: str) -> str:
    """What a step's score is called among those of all steps."""
    return f"{step}.{name}"


def _masked(rows: Iterator[Row], kinds: Sequence[str]) -> Iterator[Row]:
    """Rows with private data blanked in all that anybody will see of them."""
    if not kinds:
        return rows
    mask = masker(kinds)
    return (
        row._replace(raw=mask(row.raw), detail=mask(row.detail))
        if isinstance(row, BadRow)
        else row._replace(values=mask(row.values))
        for row in rows
    )


class _Closing:
    """Makes batches of what was read."""

    def __init__(self, making: Making, excerpts_at: ExcerptsAt | None):
        self._making, self._excerpts_at = making, excerpts_at
        self._measure = Measuring(making)

    def __call__(self, made: Chunk, bad: list[Bad], num_read: int) -> Batch:
        making, schema, raw = self._making, SCHEMAS[self._making.rows.name], made.raw
        ids = np.frombuffer(b"".join(made.ids), dtype=">u8").astype(np.uint64)
        columns = {"row_id": list(map(bytes.hex, made.ids)), **made.columns}
        table = pyarrow.Table.from_arrays(
            [_column(columns.get(field.name, []), field.type) for field in schema], schema=schema
        )
        offsets = np.array([-1 if each.offset is None else each.offset for each in raw], dtype=np.int64)
        num_features = len(made.inputs[0]) // FLOAT_BYTES if made.inputs and "features" in schema.names else None
        return Batch(
            table=table,
            ids=ids,
            positions=positions_of(made.inputs, making.salt),
            sizes=np.array(made.sizes, dtype=np.int64),
            numbers=np.array(made.numbers, dtype=np.int64),
            lines=np.array([each.line for each in raw], dtype=np.int64),
            offsets=offsets,
            bad=sorted(bad, key=lambda each: each.number),
            num_read=num_read,
            labels=frozenset(map(bytes.decode, made.columns.get("label", []))),
            num_features=num_features,
            excerpts_of=self._excerpts(raw, offsets),
            **self._looked_for(table, raw),
        )

    def _excerpts(self, raw: Sequence[RawRow], offsets: np.ndarray) -> Callable[[Sequence[int]], list[str]]:
        excerpts_at = self._excerpts_at
        if excerpts_at is None:
            return lambda rows: [excerpt(raw[row].values) for row in rows]
        return lambda rows: list(excerpts_at(offsets[rows].tolist()))

    def _scores(self, columns: Mapping[str, Any], raw: RawRow) -> list[float]:
        try:
            return self._measure(columns)
        except UserError as error:
            place = f"line {raw.line}" if raw.offset is None else f"byte {raw.offset}"
            raise UserError(f"{raw.file}, {place}: {error}") from error

    def _looked_for(self, table: pyarrow.Table, raw: Sequence[RawRow]) -> dict[str, Any]:
        """The scores, keys and overlaps of a batch, where they are asked for."""
        making = self._making
        if not self._measure.names and not making.has_keys and making.evaluation is None:
            return {}
        rows = table.to_pylist()
        scores = _columns_of([self._scores(*each) for each in zip(rows, raw, strict=True)], len(self._measure.names))
        look = looked_at(making.rows.name, "all")
        keys = band_keys(signatures(list(map(look, rows)))) if making.has_keys else None
        overlaps = [] if making.evaluation is None else making.evaluation.overlaps(making.rows.name, rows)
        return {"scores": dict(zip(self._measure.names, scores, strict=True)), "keys": keys, "overlaps": overlaps}


def _column(values: Sequence[Any], kind: pyarrow.DataType) -> pyarrow.Array:
    if kind == pyarrow.string() and not (values and isinstance(values[0], str)):
        return pyarrow.array(values, pyarrow.binary()).view(kind)  # they are UTF-8 already
    return pyarrow.array(values, kind)


def _columns_of(scores: Sequence[Sequence[float]], count: int) -> np.ndarray:
    return np.array(scores, dtype=np.float64).reshape(len(scores), count).T
