"""The tables of kept and rejected answers in the making, and the rows to train on."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from nexa_core import digests, durable
from nexa_core.config.data import TrainingOutput
from nexa_data.identity import content_id
from nexa_data.rows import SCHEMAS
from nexa_data.split import SPLITS, positions_of, splits_of
from nexa_data.tables import Table
from nexa_distill import outputs
from nexa_distill.checks import Pair
from nexa_distill.sifting import Sifted

SCORES = ("scores_json", pyarrow.string())
"""What the steps measured, by `<step>.<score>`."""
FILTERED_SCHEMA = pyarrow.schema([*outputs.FIELDS, SCORES])
REJECTED_SCHEMA = pyarrow.schema(
    [*outputs.FIELDS, SCORES, *((name, pyarrow.string()) for name in ("step", "reason", "detail"))]
)


class PairTables:
    """They get their names when `stack`, and `told` for the rejected, are closed without an error.

    Args:
        splits: the file of each split of the rows to train on; with `val` among them, those of a share of the prompts.
    """

    def __init__(
        self,
        stack: ExitStack,
        told: ExitStack,
        *,
        filtered: Path,
        rejected: Path,
        splits: dict[str, Path],
        val: float,
        salt: str,
    ):
        self._filtered = _table(stack, filtered, FILTERED_SCHEMA)
        self._rejected = _table(told, rejected, REJECTED_SCHEMA)
        self._splits = {split: _table(stack, path, SCHEMAS["pairs"]) for split, path in splits.items()}
        self._output, self._salt = TrainingOutput(name="training", val=val, test=0.0), salt
        self.num_read = 0

    @property
    def num_kept(self) -> int:
        return self._filtered.num_rows

    @property
    def num_rejected(self) -> int:
        return self._rejected.num_rows

    @property
    def num_rows(self) -> dict[str, int]:
        return {split: table.num_rows for split, table in self._splits.items()}

    def add(self, outcome: Sequence[Sifted]) -> None:
        self.num_read += len(outcome)
        kept = [each for each in outcome if each.rejection is None]
        _add(self._filtered, kept, FILTERED_SCHEMA)
        _add(self._rejected, [each for each in outcome if each.rejection is not None], REJECTED_SCHEMA)
        positions = positions_of([each.pair.prompt.encode() for each in kept], self._salt)
        numbers = splits_of(positions, self._output)
        for number, split in enumerate(SPLITS):
            rows = [_sft_row(each.pair) for each, its in zip(kept, numbers, strict=True) if its == number]
            if rows:
                sizes = np.array([outputs.size_of(row) for row in rows])
                self._splits[split].add(pyarrow.Table.from_pylist(rows, schema=SCHEMAS["pairs"]), sizes)

    def close(self) -> None:
        """Write what is buffered; the files are complete, and still without their names."""
        for table in (self._filtered, self._rejected, *self._splits.values()):
            table.close()


def _table(stack: ExitStack, path: Path, schema: pyarrow.Schema) -> Table:
    table = Table(stack.enter_context(durable.create(path)), schema)
    stack.callback(table.abandon)
    return table


def _add(table: Table, some: Sequence[Sifted], schema: pyarrow.Schema) -> None:
    if not some:
        return
    rows = [_row(each) for each in some]
    logprobs = _logprobs([each.pair for each in some])
    made = pyarrow.Table.from_pylist(rows, schema=pyarrow.schema([schema.field(name) for name in rows[0]]))
    columns = [logprobs[name] if name in outputs.LOGPROBS else made[name] for name in schema.names]
    sizes = np.array([outputs.size_of(row) for row in rows])
    sizes += outputs.BYTES_OF_A_LOGPROB * _num_values(logprobs["top_ids"])
    table.add(pyarrow.table(columns, schema=schema), sizes)


def _row(sifted: Sifted) -> dict[str, Any]:
    row = {**sifted.pair.row, SCORES[0]: digests.canonical_json(dict(sifted.scores)).decode()}
    if sifted.rejection is not None:
        row |= {"step": sifted.step, "reason": sifted.rejection.reason, "detail": sifted.rejection.detail}
    return row


def _logprobs(pairs: Iterable[Pair]) -> pyarrow.Table:
    """The columns that are carried along without a look at them."""
    schema = pyarrow.schema([outputs.SCHEMA.field(name) for name in outputs.LOGPROBS])
    parts = []
    for _, group in groupby(pairs, key=lambda pair: id(pair.logprobs)):
        run = list(group)
        batch = run[0].logprobs
        if batch is None:
            parts.append(pyarrow.table([pyarrow.nulls(len(run), each.type) for each in schema], schema=schema))
        else:
            taken = batch.take(pyarrow.array([pair.place for pair in run]))
            parts.append(pyarrow.Table.from_batches([taken]).cast(schema))
    return pyarrow.concat_tables(parts)


def _num_values(lists: pyarrow.ChunkedArray) -> np.ndarray:
    """How many values each row's list of lists has."""
    flat = lists.combine_chunks()
    if not len(flat.values):
        return np.zeros(len(flat), dtype=np.int64)
    offsets, inner = flat.offsets.to_numpy(), flat.values.offsets.to_numpy()
    return (inner[offsets[1:]] - inner[offsets[:-1]]).astype(np.int64)


def _sft_row(pair: Pair) -> dict[str, Any]:
    """A canonical row to train on, which names the answer that it is."""
    row = pair.row
    columns = {"prompt": pair.prompt, "completion": pair.completion}
    about = {"teacher_row": row["row_id"], "sample_index": row["sample_index"], "request_sha256": row["request_sha256"]}
    if pair.is_edited:
        about["answer_edited"] = True
    extra = digests.canonical_json({**pair.extra, **about}).decode()
    return {"row_id": content_id(columns)[0], **columns, "extra_json": extra}
