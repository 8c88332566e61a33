"""Which rows of a dataset are near duplicates: a first pass over its parts, before any row is placed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow

from nexa_core.config.data import DatasetConfig
from nexa_data.identity import ROW_ID_CHARS
from nexa_data.judge import Judge
from nexa_data.minhash import NUM_BANDS
from nexa_data.near_duplicates import find_near_duplicates
from nexa_data.parts import Part
from nexa_data.quality import looked_at
from nexa_data.rows import SCHEMAS
from nexa_data.seen import Seen


class Near(NamedTuple):
    """The row of a batch that is left out, the row that is kept instead, and how similar they are."""

    row: int
    kept: str
    jaccard: float


@dataclass(frozen=True)
class NearRows:
    """The ids of all rows that are near duplicates, sorted, with those of the kept ones and the similarities."""

    ids: np.ndarray
    kept: np.ndarray
    jaccard: np.ndarray

    def among(self, ids: np.ndarray) -> list[Near]:
        """Those of a batch's rows that are near duplicates."""
        if len(self.ids) == 0:
            return []
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return [
            Near(index, row_id_of(self.kept[places[index]]), float(self.jaccard[places[index]]))
            for index in np.flatnonzero(self.ids[places] == ids).tolist()
        ]


NO_NEAR_ROWS = NearRows(np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0))


def find_near_rows(parts: Iterable[Part], config: DatasetConfig) -> NearRows:
    """The near duplicates among the rows that pass the steps before, equal ones taken once.

    Holds 130 bytes a row; texts are read from the parts' files where two rows are to be compared.
    """
    assert config.near_duplicates is not None
    judge, seen, texts = Judge(config), Seen(), _Texts(config.rows.name)
    keys, ids = [np.empty((0, NUM_BANDS), np.uint64)], [np.empty(0, np.uint64)]
    for part in parts:
        for batch in part.batches:
            chosen = np.flatnonzero(judge(batch)[1])
            chosen = chosen[seen.count(batch.ids[chosen]) == 0]
            assert batch.keys is not None
            keys.append(batch.keys[chosen])
            ids.append(batch.ids[chosen])
            texts.add(batch.table, chosen)
    all_ids = np.concatenate(ids)
    removed = find_near_duplicates(np.concatenate(keys), all_ids, texts.of, config.near_duplicates)
    order = np.argsort(all_ids[removed.rows])
    return NearRows(all_ids[removed.rows][order], all_ids[removed.kept][order], removed.jaccard[order])


def row_id_of(number: np.uint64) -> str:
    return f"{number:0{ROW_ID_CHARS}x}"


class _Texts:
    """The texts of chosen rows of many tables, which lie in files that are mapped into memory."""

    def __init__(self, kind: str):
        self._look = looked_at(kind, "all")
        self._names = [name for name in SCHEMAS[kind].names if name not in ("row_id", "label", "extra_json")]
        self._columns: list[list[pyarrow.Array]] = []
        self._rows: list[np.ndarray] = []
        self._begins = [0]

    def add(self, table: pyarrow.Table, rows: np.ndarray) -> None:
        if len(rows):
            self._columns.append([table[name].chunk(0) for name in self._names])  # no copy, unlike combine_chunks
            self._rows.append(rows)
            self._begins.append(self._begins[-1] + len(rows))

    def of(self, numbers: np.ndarray) -> Sequence[str]:
        tables = np.searchsorted(self._begins, numbers, side="right") - 1
        return [self._text(table, number) for table, number in zip(tables.tolist(), numbers.tolist(), strict=True)]

    def _text(self, table: int, number: int) -> str:
        row = self._rows[table][number - self._begins[table]]
        values = (column[int(row)].as_py() for column in self._columns[table])
        return self._look(dict(zip(self._names, values, strict=True)))
