"""The rows of one piece of a source as columns, with what decides where each of them goes."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
from pyarrow import ipc

from nexa_core import durable
from nexa_core.config.data import Rows
from nexa_core.config.quality import PrivateStep, QualityStep
from nexa_data.contamination import find_contaminated
from nexa_data.evaluation_sets import EvaluationSet
from nexa_data.makers import CanonicalRow, RowError
from nexa_data.minhash import NUM_BANDS, band_keys, signatures
from nexa_data.quality import looked_at, open_step
from nexa_data.quality.private import masker
from nexa_data.rows import SCHEMAS, Canonical, canonical
from nexa_data.sources.raw import BadRow, ExcerptsAt, RawRow, Row, excerpt
from nexa_data.split import position_of

BATCH_ROWS = 10_000
BATCH_BYTES = 32 * 2**20
FLOAT_BYTES = 4
OWN = "nexa."
"""Begins the names of the columns that decide where a row goes."""
SCORE = f"{OWN}score."
KEYS = f"{OWN}keys"

_PLACES = pyarrow.schema(
    [
        pyarrow.field("nexa.id", pyarrow.uint64()),
        pyarrow.field("nexa.position", pyarrow.uint64()),
        pyarrow.field("nexa.size", pyarrow.int64()),
        pyarrow.field("nexa.number", pyarrow.int64()),
        pyarrow.field("nexa.line", pyarrow.int64()),
        pyarrow.field("nexa.offset", pyarrow.int64()),
        pyarrow.field("nexa.excerpt", pyarrow.string()),
    ]
)


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

    @property
    def masked(self) -> tuple[str, ...]:
        """The kinds of private data that are blanked before anything else is done."""
        steps = [step for step in self.quality if isinstance(step, PrivateStep) and step.action == "mask"]
        return tuple(sorted({kind for step in steps for kind in step.kinds}))

    def converter(self) -> Canonical:
        return canonical(self.rows, num_features=self.num_features)


class Bad(NamedTuple):
    """A row that was left out, the `number`-th of its piece, in the step `step`."""

    number: int
    step: str
    row: BadRow


class Overlap(NamedTuple):
    """What a row, the `row`-th of its batch, has in common with evaluation texts."""

    row: int
    evaluation_ids: tuple[str, ...]
    """Of all evaluation texts that it repeats; the one that it covers most comes first."""
    coverage: float
    text: str
    """The longest piece of text that both have."""


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


@dataclass
class _Growing:
    """A batch that is being filled."""

    rows: list[CanonicalRow] = field(default_factory=list)
    raw: list[RawRow] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    scores: list[list[float]] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    bad: list[Bad] = field(default_factory=list)
    size_bytes: int = 0


def make_batches(rows: Iterator[Row], making: Making) -> Iterator[Batch]:
    """Every row of a piece, good in the columns of its schema or bad with its reason."""
    convert, measure = making.converter(), Measuring(making)
    salt = making.salt
    growing, began = _Growing(), 0
    number = -1
    for number, raw in enumerate(_masked(rows, making.masked)):
        if isinstance(raw, BadRow):
            growing.bad.append(Bad(number, "read", raw))
            continue
        try:
            row = convert(raw.values)
        except RowError as error:
            left_out = BadRow(raw.file, raw.line, error.reason, excerpt(raw.values), error.detail, raw.offset)
            growing.bad.append(Bad(number, "normalise", left_out))
            continue
        growing.rows.append(row)
        growing.raw.append(raw)
        growing.numbers.append(number)
        growing.positions.append(0 if salt is None else position_of(row.input, salt))
        growing.scores.append(measure(row.columns) if measure.names else [])
        growing.size_bytes += row.size_bytes
        if len(growing.rows) >= BATCH_ROWS or growing.size_bytes >= BATCH_BYTES:
            yield _close(growing, making, measure.names, number + 1 - began)
            growing, began = _Growing(), number + 1
    if number + 1 > began:
        yield _close(growing, making, measure.names, number + 1 - began)


class Measuring:
    """The scores of canonical rows, in all steps."""

    def __init__(self, making: Making):
        self._steps = [(looked_at(making.rows.name, each.of), open_step(each)) for each in making.quality]
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


def _close(growing: _Growing, making: Making, score_names: Sequence[str], num_read: int) -> Batch:
    rows, raw, schema = growing.rows, growing.raw, SCHEMAS[making.rows.name]
    row_ids = [row.row_id for row in rows]
    made = [row.columns for row in rows]
    columns = [
        pyarrow.array(row_ids if name == "row_id" else [columns[name] for columns in made], kind)
        for name, kind in zip(schema.names, schema.types, strict=True)
    ]
    num_features = len(rows[0].input) // FLOAT_BYTES if rows and "features" in schema.names else None
    return Batch(
        table=pyarrow.Table.from_arrays(columns, schema=schema),
        ids=np.frombuffer(bytes.fromhex("".join(row_ids)), dtype=">u8").astype(np.uint64),
        positions=np.array(growing.positions, dtype=np.uint64),
        sizes=np.array([row.size_bytes for row in rows], dtype=np.int64),
        numbers=np.array(growing.numbers, dtype=np.int64),
        lines=np.array([each.line for each in raw], dtype=np.int64),
        offsets=np.array([-1 if each.offset is None else each.offset for each in raw], dtype=np.int64),
        bad=growing.bad,
        num_read=num_read,
        labels=frozenset([row.label for row in rows if row.label is not None]),
        num_features=num_features,
        excerpts_of=lambda indices: [excerpt(raw[index].values) for index in indices],
        scores=dict(zip(score_names, _columns_of(growing.scores, len(score_names)), strict=True)),
        **_looked_for(made, making),
    )


def _looked_for(rows: Sequence[Mapping[str, Any]], making: Making) -> dict[str, Any]:
    """The keys and overlaps of a batch, where they are asked for."""
    if not making.has_keys and making.evaluation is None:
        return {}
    look = looked_at(making.rows.name, "all")
    texts = [look(columns) for columns in rows]
    keys = band_keys(signatures(texts)) if making.has_keys else None
    found = () if making.evaluation is None else find_contaminated(making.evaluation.index(), texts)
    overlaps = [
        Overlap(each.row, each.evaluation_ids, each.coverage, max((span.text for span in each.spans), key=len))
        for each in found
    ]
    return {"keys": keys, "overlaps": overlaps}


def _columns_of(scores: Sequence[Sequence[float]], count: int) -> np.ndarray:
    return np.array(scores, dtype=np.float64).reshape(len(scores), count).T


def write_batches(path: Path, batches: Iterator[Batch], *, with_excerpts: bool) -> None:
    """Batches as an Arrow file, each with its bad rows beside it.

    Args:
        with_excerpts: whether rows cannot be read again where they begin, so that what is shown of them is kept.
    """
    writer = None
    with durable.create(path) as file:
        for batch in batches:
            count = len(batch.ids)
            shown = batch.excerpts_of(range(count)) if with_excerpts else [None] * count
            beside = {f"{SCORE}{name}": pyarrow.array(values) for name, values in batch.scores.items()}
            if batch.keys is not None:
                beside[KEYS] = pyarrow.FixedSizeListArray.from_arrays(batch.keys.ravel(), NUM_BANDS)
            own = (batch.ids, batch.positions, batch.sizes, batch.numbers, batch.lines, batch.offsets, shown)
            places = [pyarrow.array(values, kind) for values, kind in zip(own, _PLACES.types, strict=True)]
            fields = [pyarrow.field(name, values.type) for name, values in beside.items()]
            schema = pyarrow.schema([*batch.table.schema, *_PLACES, *fields])
            columns = [column.combine_chunks() for column in batch.table.columns]
            record = pyarrow.RecordBatch.from_arrays([*columns, *places, *beside.values()], schema=schema)
            about = {
                "bad": [[number, step, *row] for number, step, row in batch.bad],
                "num_read": batch.num_read,
                "labels": sorted(batch.labels),
                "num_features": batch.num_features,
                "overlaps": batch.overlaps,
            }
            if writer is None:
                writer = ipc.new_file(file, schema)
            writer.write_batch(record, custom_metadata={"about": json.dumps(about)})
        if writer is not None:
            writer.close()


def read_batches(path: Path, excerpts_at: ExcerptsAt | None) -> Iterator[Batch]:
    """The batches of `write_batches`.

    Args:
        excerpts_at: reads the beginnings of rows again; None where the file has kept them.
    """
    if path.stat().st_size == 0:
        return
    with pyarrow.memory_map(str(path)) as mapped, ipc.open_file(mapped) as file:
        for index in range(file.num_record_batches):
            record, metadata = file.get_batch_with_custom_metadata(index)
            yield _batch_of(pyarrow.Table.from_batches([record]), json.loads(metadata["about"]), excerpts_at)


def _batch_of(table: pyarrow.Table, about: dict[str, Any], excerpts_at: ExcerptsAt | None) -> Batch:
    ids, positions, sizes, numbers, lines, offsets = (
        table[name].to_numpy() for name in _PLACES.names if name != "nexa.excerpt"
    )
    excerpts = table["nexa.excerpt"]
    own = [name for name in table.column_names if name.startswith(OWN)]
    return Batch(
        table=table.drop_columns(own),
        ids=ids,
        positions=positions,
        sizes=sizes,
        numbers=numbers,
        lines=lines,
        offsets=offsets,
        bad=[Bad(number, step, BadRow(*row)) for number, step, *row in about["bad"]],
        num_read=about["num_read"],
        labels=frozenset(about["labels"]),
        num_features=about["num_features"],
        excerpts_of=lambda rows: (
            excerpts.take(pyarrow.array(rows)).to_pylist()
            if excerpts_at is None
            else list(excerpts_at(offsets[rows].tolist()))
        ),
        scores={name.removeprefix(SCORE): table[name].to_numpy() for name in own if name.startswith(SCORE)},
        keys=table[KEYS].chunk(0).flatten().to_numpy().reshape(-1, NUM_BANDS) if KEYS in own else None,
        overlaps=[Overlap(*each) for each in about["overlaps"]],
    )
