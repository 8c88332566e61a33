"""The rows of a file that are left out, listed among the rejects in the order of the file, and counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from nexa_data.batches import Bad, Batch
from nexa_data.judge import LeftOut
from nexa_data.rejects import Rejects
from nexa_data.sources.raw import BLANK, BadRow


@dataclass
class Census:
    """What was counted on the way; `feature_shape` is None for rows without features."""

    num_read: int = 0
    num_kept: int = 0
    labels: set[str] = field(default_factory=set)
    feature_shape: list[int] | None = None


class Listing:
    """The rows of one file that are left out, in its order; blank lines at its end are no rows, and nobody's."""

    def __init__(self, rejects: Rejects, file: str, census: Census):
        self._rejects, self._file, self._census = rejects, file, census
        self._blank: list[BadRow] = []
        self._num_rows = 0
        self.lines_before = 0

    def add(self, batch: Batch, left_out: Sequence[LeftOut]) -> None:
        """The rows of a batch that were bad, and those that were left out."""
        num_blank = _count_blank_at_end(batch)
        listed, held = batch.bad[: len(batch.bad) - num_blank], batch.bad[len(batch.bad) - num_blank :]
        if batch.num_read > num_blank:
            self._write_blank()
            self._num_rows += batch.num_read - num_blank
            self._census.num_read += batch.num_read - num_blank
        rows = [(bad, "") for bad in listed] + (self._shown(batch, left_out) if left_out else [])
        for bad, kept in sorted(rows, key=lambda each: each[0].number):
            self._rejects.add(bad.step, self._moved(bad.row), kept=kept)
        self._blank += [self._moved(bad.row) for bad in held]

    def close(self) -> None:
        """At the file's end."""
        if self._num_rows == 0:
            self._rejects.add("read", BadRow(self._file, None, "no rows in the file"))
            self._census.num_read += 1

    def _shown(self, batch: Batch, left_out: Sequence[LeftOut]) -> list[tuple[Bad, str]]:
        """Rows as they are listed, each with the id of the row that is kept in its place."""
        indices = [each.index for each in left_out]
        numbers, lines, offsets = (values[indices].tolist() for values in (batch.numbers, batch.lines, batch.offsets))
        places = zip(left_out, numbers, lines, offsets, batch.excerpts_of(indices), strict=True)
        return [
            (
                Bad(
                    number,
                    each.step,
                    BadRow(self._file, line, each.reason, text, each.detail, None if offset < 0 else offset),
                ),
                each.kept,
            )
            for each, number, line, offset, text in places
        ]

    def _moved(self, row: BadRow) -> BadRow:
        if row.line is None or self.lines_before == 0:
            return row
        return BadRow(row.file, row.line + self.lines_before, *row[2:])

    def _write_blank(self) -> None:
        for row in self._blank:
            self._rejects.add("read", row)
        self._num_rows += len(self._blank)
        self._census.num_read += len(self._blank)
        self._blank = []


def _count_blank_at_end(batch: Batch) -> int:
    last_kept = batch.numbers[-1] if len(batch.numbers) else -1
    count = 0
    for bad in reversed(batch.bad):
        if bad.number < last_kept or bad.row.reason != BLANK or bad.row.raw.strip():
            break
        count += 1
    return count
