"""How two versions of a dataset differ: rows added, removed and changed, and what each step did in either."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from nexa_core.errors import UserError
from nexa_data.datasets import Dataset
from nexa_data.identity import shown_of

MAX_EXAMPLES = 3
MAX_EXAMPLE_CHARS = 160


@dataclass(frozen=True)
class Difference:
    """What is in `new` and not in `old`, and the other way round."""

    old: str
    new: str
    num_same: int
    num_moved: int
    """Rows of both that lie in another split."""
    num_added: int
    num_removed: int
    num_changed: int
    """Rows whose input is in both and whose target is another; they are neither added nor removed."""
    steps: Mapping[str, tuple[int | None, int | None]]
    """For each step the rows that it left out, in the old version and the new; None where it has no such step."""
    examples: Mapping[str, tuple[str, ...]]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        lines = [
            f"{self.old} -> {self.new}: {self.num_same:,} rows in both, {self.num_moved:,} of them in another split"
        ]
        counts = {"added": self.num_added, "removed": self.num_removed, "changed": self.num_changed}
        for kind, count in counts.items():
            lines.append(f"  {kind:<8} {count:>12,}")
            lines += [f"             {text}" for text in self.examples[kind]]
        lines.append("  left out by each step, in the old version and the new:")
        lines += [f"    {name:<16} {_count(old):>12} {_count(new):>12}" for name, (old, new) in self.steps.items()]
        return "\n".join(lines)


def compare(old: Dataset, new: Dataset) -> Difference:
    """Raises UserError where the two have different kinds of rows."""
    if old.kind != new.kind:
        raise UserError(
            f"{old.key} has rows of {old.kind} and {new.key} of {new.kind}; only rows of one kind are compared."
        )
    before, after = _ids(old), _ids(new)
    joined = after.join(before, "row_id", join_type="inner", right_suffix="_before")
    removed = _rows(old, compute.filter(before["row_id"], compute.invert(_is_in(before, after))), "removed")
    added = _rows(new, compute.filter(after["row_id"], compute.invert(_is_in(after, before))), "added")
    changed = removed.keys() & added.keys()
    shown = {
        "added": [text for key, text in added.items() if key not in changed],
        "removed": [text for key, text in removed.items() if key not in changed],
        "changed": [text for key, text in added.items() if key in changed],
    }
    return Difference(
        old=old.key,
        new=new.key,
        num_same=len(joined),
        num_moved=compute.sum(compute.not_equal(joined["split"], joined["split_before"])).as_py() or 0,
        num_added=len(added) - len(changed),
        num_removed=len(removed) - len(changed),
        num_changed=len(changed),
        steps=_steps(old, new),
        examples={kind: tuple(sorted(texts)[:MAX_EXAMPLES]) for kind, texts in shown.items()},
    )


def _ids(dataset: Dataset) -> pyarrow.Table:
    """`row_id` and `split` of every row; of a pretraining dataset's shards the split is train."""
    tables = []
    for split in dataset.num_rows:
        ids = parquet.read_table(dataset.split_path(split), columns=["row_id"])
        name = "train" if split in dataset.training_splits else split
        tables.append(ids.append_column("split", pyarrow.array([name] * len(ids), pyarrow.string())))
    return pyarrow.concat_tables(tables)


def _is_in(rows: pyarrow.Table, others: pyarrow.Table) -> pyarrow.ChunkedArray:
    return compute.is_in(rows["row_id"], value_set=others["row_id"].combine_chunks())


def _rows(dataset: Dataset, row_ids: pyarrow.ChunkedArray, what: str) -> dict[bytes, str]:
    """The inputs of some rows, each with the beginning of the whole row."""
    found: dict[bytes, str] = {}
    wanted = row_ids.combine_chunks()
    for split in dataset.num_rows:
        with parquet.ParquetFile(dataset.split_path(split)) as file:
            for batch in file.iter_batches():
                chosen = batch.filter(compute.is_in(batch["row_id"], value_set=wanted))
                for row in chosen.to_pylist():
                    row_id = row.pop("row_id")
                    key = shown_of(dataset.kind, row)
                    # Rows of one input and several targets count one by one.
                    key = key if key not in found else key + row_id.encode()
                    found[key] = _excerpt(row)
    return found


def _excerpt(row: Mapping[str, Any]) -> str:
    text = ", ".join(f"{name}: {value}" for name, value in row.items() if value is not None and name != "extra_json")
    return " ".join(text.split())[:MAX_EXAMPLE_CHARS]


def _steps(old: Dataset, new: Dataset) -> dict[str, tuple[int | None, int | None]]:
    before, after = (
        {step["name"]: step["rows_in"] - step["rows_out"] for step in dataset.manifest["steps"]}
        for dataset in (old, new)
    )
    return {name: (before.get(name), after.get(name)) for name in dict.fromkeys([*before, *after])}


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"
