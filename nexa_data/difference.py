"""How two versions of a dataset differ: rows added, removed and changed, and what each step did in either."""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from nexa_core.errors import UserError
from nexa_data.datasets import Dataset
from nexa_data.identity import before_last_turn, shown_of

MAX_EXAMPLES = 3
MAX_INPUT_CHARS, MAX_TARGET_CHARS = 90, 50
IDS = pyarrow.schema({"row_id": pyarrow.string(), "split": pyarrow.string(), "extra": pyarrow.int64()})
SIGNS = {"added": "+", "removed": "-", "changed": "~"}


@dataclass(frozen=True)
class Difference:
    """What is in `new` and not in `old`, and the other way round."""

    old: str
    new: str
    num_same: int
    num_moved: int
    """Rows of both that lie in another split."""
    num_with_other_extras: int
    """Rows of both whose other columns (`extra_json`) differ, which are no part of a row's id."""
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
        gone, come = self.num_removed + self.num_changed, self.num_added + self.num_changed
        lines = [
            _columns("", self.old, self.new),
            _columns("rows", f"{self.num_same + gone:,}", f"{self.num_same + come:,}"),
            _columns("in both", "", f"{self.num_same:,}") + f", {self.num_moved:,} of them in another split",
            _columns("other columns", "", f"{self.num_with_other_extras:,}") + " of those in both have others",
        ]
        counts = {"added": self.num_added, "removed": self.num_removed, "changed": self.num_changed}
        for kind, count in counts.items():
            lines.append(_columns(kind, "", f"{count:,}"))
            lines += [f"    {SIGNS[kind]} {text}" for text in self.examples[kind]]
        lines.append("left out by")
        lines += [_columns(name, _count(old), _count(new)) for name, (old, new) in self.steps.items()]
        return "\n".join(lines)


def compare(old: Dataset, new: Dataset) -> Difference:
    """Raises UserError where the two have different kinds of rows, or a file is missing or changed."""
    if old.kind != new.kind:
        raise UserError(
            f"{old.key} has rows of {old.kind} and {new.key} of {new.kind}; only rows of one kind are compared."
        )
    for dataset in (old, new):
        dataset.require_whole()
    before, after = _ids(old), _ids(new)
    joined = after.join(before, "row_id", join_type="inner", right_suffix="_before")
    removed = _rows(old, compute.filter(before["row_id"], compute.invert(_is_in(before, after))))
    added = _rows(new, compute.filter(after["row_id"], compute.invert(_is_in(after, before))))
    changed = removed.keys() & added.keys()
    shown = {
        "added": [str(row) for key, row in added.items() if key not in changed],
        "removed": [str(row) for key, row in removed.items() if key not in changed],
        "changed": [f"{row}, was {removed[key].target}" for key, row in added.items() if key in changed],
    }
    return Difference(
        old=old.key,
        new=new.key,
        num_same=len(joined),
        num_moved=compute.sum(compute.not_equal(joined["split"], joined["split_before"])).as_py() or 0,
        num_with_other_extras=compute.sum(compute.not_equal(joined["extra"], joined["extra_before"])).as_py() or 0,
        num_added=len(added) - len(changed),
        num_removed=len(removed) - len(changed),
        num_changed=len(changed),
        steps=_steps(old, new),
        examples={kind: tuple(sorted(texts)[:MAX_EXAMPLES]) for kind, texts in shown.items()},
    )


class _Row(NamedTuple):
    """The beginnings of a row's input and of its target; no target where it has none."""

    shown: str
    target: str

    @classmethod
    def of(cls, kind: str, row: Mapping[str, Any]) -> "_Row":
        shown, target = _parts(kind, row)
        return cls(_clipped(shown, MAX_INPUT_CHARS), "" if target is None else _clipped(target, MAX_TARGET_CHARS))

    def __str__(self) -> str:
        return f"{self.shown} -> {self.target}" if self.target else self.shown


def _parts(kind: str, row: Mapping[str, Any]) -> tuple[Any, Any]:
    """What a model is shown of a row, and what it is to answer."""
    match kind:
        case "features" | "text":
            return row[kind], row["label"]
        case "pairs":
            return (row["completion"], None) if row["prompt"] is None else (row["prompt"], row["completion"])
        case _:
            before = before_last_turn(row["messages"])
            return " ".join(each["content"] for each in before), row["messages"][len(before)]["content"]


def _ids(dataset: Dataset) -> pyarrow.Table:
    """`row_id`, `split` and a hash of `extra_json` of every row; of a pretraining dataset's shards the split is train."""
    tables = []
    for split in dataset.num_rows:
        name = "train" if split in dataset.training_splits else split
        with parquet.ParquetFile(dataset.split_path(split), pre_buffer=False) as file:
            for batch in file.iter_batches(columns=["row_id", "extra_json"]):
                extra = pyarrow.array([_hash(text) for text in batch["extra_json"].to_pylist()], pyarrow.int64())
                split_of = pyarrow.array([name] * len(batch), pyarrow.string())
                tables.append(pyarrow.table({"row_id": batch["row_id"], "split": split_of, "extra": extra}, schema=IDS))
    if not tables:
        return IDS.empty_table()
    return pyarrow.concat_tables(tables)


def _hash(text: str | None) -> int:
    return int.from_bytes(hashlib.blake2b((text or "").encode("utf-8"), digest_size=8).digest(), "big", signed=True)


def _is_in(rows: pyarrow.Table, others: pyarrow.Table) -> pyarrow.ChunkedArray:
    return compute.is_in(rows["row_id"], value_set=others["row_id"].combine_chunks())


def _rows(dataset: Dataset, row_ids: pyarrow.ChunkedArray) -> dict[bytes, _Row]:
    """Some rows by what a model is shown of them."""
    found: dict[bytes, _Row] = {}
    wanted = row_ids.combine_chunks()
    for split in dataset.num_rows:
        with parquet.ParquetFile(dataset.split_path(split), pre_buffer=False) as file:
            for batch in file.iter_batches():
                chosen = batch.filter(compute.is_in(batch["row_id"], value_set=wanted))
                for row in chosen.to_pylist():
                    row_id = row.pop("row_id")
                    key = shown_of(dataset.kind, row)
                    # Rows of one input and several targets count one by one.
                    key = key if key not in found else key + row_id.encode()
                    found[key] = _Row.of(dataset.kind, row)
    return found


def _clipped(value: object, length: int) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= length else text[: length - 1] + "…"


def _steps(old: Dataset, new: Dataset) -> dict[str, tuple[int | None, int | None]]:
    before, after = (
        {step["name"]: step["rows_in"] - step["rows_out"] for step in dataset.manifest["steps"]}
        for dataset in (old, new)
    )
    return {name: (before.get(name), after.get(name)) for name in dict.fromkeys([*before, *after])}


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _columns(name: str, old: str, new: str) -> str:
    return f"{name:<18} {old:>14} {new:>14}".rstrip()
