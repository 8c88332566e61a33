"""The prompts that a teacher is asked, read in order and in batches, so that their number does not matter."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as parquet

from nexa_core import digests
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_distill.places import Place, place_of, require_file

ROWS_A_BATCH = 512
FOLDER = "teacher_inputs"
MAKE = "python -m nexa_data.prepare --config configs/data.yaml"


@dataclass(frozen=True)
class Prompt:
    """A row of the inputs."""

    row_id: str
    prompt: str
    extra_json: str


class Inputs:
    """A Parquet file with `row_id`, `prompt` and, where there is one, `extra_json`.

    Raises:
        UserError: it is not there, or lacks a column.
    """

    def __init__(self, layout: Layout, given: str, *, max_rows: int | None = None):
        self.place: Place = place_of(layout, given, FOLDER)
        require_file(layout, self.place, FOLDER, make=MAKE)
        self.path: Path = self.place.path
        names = parquet.ParquetFile(self.path).schema_arrow.names
        if missing := {"row_id", "prompt"} - set(names):
            raise UserError(f"{self.path} has no column {' and no '.join(sorted(missing))}. It has {', '.join(names)}.")
        self._columns = [name for name in ("row_id", "prompt", "extra_json") if name in names]
        there = parquet.ParquetFile(self.path).metadata.num_rows
        self.num_rows = there if max_rows is None else min(there, max_rows)
        self.sha256 = digests.of_file(self.path)

    def __iter__(self) -> Iterator[Prompt]:
        left = self.num_rows
        file = parquet.ParquetFile(self.path)
        for batch in file.iter_batches(ROWS_A_BATCH, columns=self._columns):
            for row in batch.slice(0, left).to_pylist():
                if row["prompt"] is None:
                    raise UserError(f"{self.path}: row {row['row_id']} has no prompt.")
                yield Prompt(row["row_id"], row["prompt"], row.get("extra_json") or "{}")
            left -= min(left, len(batch))
            if not left:
                return
