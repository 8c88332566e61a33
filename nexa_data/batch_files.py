"""Batches in Arrow files: what was made of a piece, as other processes write it and this one maps it into memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import ipc

from nexa_core import durable
from nexa_data.batches import Bad, Batch
from nexa_data.evaluation_sets import Overlap
from nexa_data.minhash import NUM_BANDS
from nexa_data.sources.raw import BadRow, ExcerptsAt

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


def write_batches(path: Path, batches: Iterator[Batch], *, with_excerpts: bool) -> None:
    """Batches as an Arrow file, each with its bad rows beside it.

    Args:
        with_excerpts: whether rows cannot be read again where they begin, so that what is shown of them is kept.
    """
    writer = None
    with durable.create(path, flush=False) as file:
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
