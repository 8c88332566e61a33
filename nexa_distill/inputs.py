"""The prompts that a teacher is asked, read in order and in batches, so that their number does not matter."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as parquet

from nexa_core import digests
from nexa_core.config import DistillConfig, load_config
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_distill.places import Place, place_of, require_file

logger = logging.getLogger(__name__)

ROWS_A_BATCH = 512
FOLDER = "teacher_inputs"
MAKE = "python -m nexa_data.prepare --config configs/data.yaml"


@dataclass(frozen=True)
class Prompt:
    """A row of the inputs."""

    row_id: str
    prompt: str
    extra_json: str


def open_inputs(config: DistillConfig, layout: Layout) -> "Inputs":
    """The prompts that the settings name; made now from `prepare` when they are not there yet.

    Raises:
        UserError: they are not there, and `prepare` does not make them.
    """
    if config.prepare is not None and not place_of(layout, config.inputs, FOLDER).path.exists():
        from nexa_core.config import DataConfig  # what a run whose inputs are there does not need
        from nexa_data.prepare import prepare

        data = load_config(layout.find(config.prepare), DataConfig)
        if wanted := tuple(dataset for dataset in data.datasets if dataset.key == config.inputs):
            logger.info("%s is not there yet: preparing it from %s", config.inputs, config.prepare)
            prepare(data.model_copy(update={"datasets": wanted}), layout)
    return Inputs(layout, config.inputs, max_rows=config.collect.max_samples)


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
