"""How two versions of a dataset differ: rows added, removed and changed, and what each step did in either."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute as compute
import pyarrow.parquet as parquet
from xxhash import xxh3_64_intdigest

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
    removed, added = _Rows(old, ~_is_in(before, after)), _Rows(new, ~_is_in(after, before))
    pairs = _Pairs(removed.inputs, added.inputs)
    return Difference(
        old=old.key,
        new=new.key,
        num_same=len(joined),
        num_moved=compute.sum(compute.not_equal(joined["split"], joined["split_before"])).as_py() or 0,
        num_with_other_extras=compute.sum(compute.not_equal(joined["extra"], joined["extra_before"])).as_py() or 0,
        num_added=len(added.inputs) - pairs.num_changed,
        num_removed=len(removed.inputs) - pairs.num_changed,
        num_changed=pairs.num_changed,
        steps=_steps(old, new),
        examples=_examples(removed, added, pairs),
    )


class _Pairs:
    """Rows of the old version and of the new that have the same input: as many changed as there are on both sides.

    Args:
        old: uint64, the hashed input of each row that is not in the new version.
        new: likewise.
    """

    def __init__(self, old: np.ndarray, new: np.ndarray):
        (self._old, old_times), (self._new, new_times) = (np.unique(each, return_counts=True) for each in (old, new))
        self._both, in_old, in_new = np.intersect1d(self._old, self._new, assume_unique=True, return_indices=True)
        self._times = np.minimum(old_times[in_old], new_times[in_new])
        old_times[in_old] -= self._times
        new_times[in_new] -= self._times
        self._old, self._new = self._old[old_times > 0], self._new[new_times > 0]

    @property
    def num_changed(self) -> int:
        return int(self._times.sum())

    def of(self, key: int) -> int:
        """How many rows of an input changed."""
        return int(self._times[self._both == np.uint64(key)].sum())

    def first(self) -> dict[str, list[int]]:
        """A few inputs of each kind."""
        kinds = {"added": self._new, "removed": self._old, "changed": self._both}
        return {kind: keys[:MAX_EXAMPLES].tolist() for kind, keys in kinds.items()}


def _examples(removed: "_Rows", added: "_Rows", pairs: _Pairs) -> dict[str, tuple[str, ...]]:
    """A few rows of each kind; of an input with several targets those with the first ids changed, the others came or went."""
    first = pairs.first()
    old, new = removed.of({*first["removed"], *first["changed"]}), added.of({*first["added"], *first["changed"]})
    shown = {
        "added": [str(row) for key in first["added"] for row in new[key][pairs.of(key) :]],
        "removed": [str(row) for key in first["removed"] for row in old[key][pairs.of(key) :]],
        "changed": [
            f"{row}, was {was.target}"
            for key in first["changed"]
            for row, was in zip(new[key], old[key], strict=False)  # those that came or went have no other
        ],
    }
    return {kind: tuple(sorted(texts)[:MAX_EXAMPLES]) for kind, texts in shown.items()}


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
    return xxh3_64_intdigest((text or "").encode("utf-8")) - 2**63


def _is_in(rows: pyarrow.Table, others: pyarrow.Table) -> np.ndarray:
    """For each row whether the others have its id."""
    found: np.ndarray = compute.is_in(rows["row_id"], value_set=others["row_id"].combine_chunks()).to_numpy()
    return found


class _Rows:
    """Some rows of a dataset; of each only its hashed input is held.

    Args:
        chosen: for each row of the dataset, in its order, whether it is one of them.
    """

    def __init__(self, dataset: Dataset, chosen: np.ndarray):
        self._dataset, self._chosen = dataset, chosen
        self.inputs = np.fromiter((key for key, _ in self._read(chosen)), dtype=np.uint64)

    def of(self, keys: set[int]) -> dict[int, list[_Row]]:
        """Those of some inputs, by their ids."""
        wanted = self._chosen.copy()
        wanted[wanted] = np.isin(self.inputs, np.array(sorted(keys), dtype=np.uint64))
        found: dict[int, list[tuple[str, _Row]]] = {key: [] for key in keys}
        for key, row in self._read(wanted):
            found[key].append((row["row_id"], _Row.of(self._dataset.kind, row)))
        return {key: [row for _, row in sorted(rows)] for key, rows in found.items()}

    def _read(self, chosen: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
        """Goes through the row groups that have rows of these."""
        before = 0
        for split in self._dataset.num_rows:
            with parquet.ParquetFile(self._dataset.split_path(split), pre_buffer=False) as file:
                for group in range(file.num_row_groups):
                    mine = chosen[before : before + file.metadata.row_group(group).num_rows]
                    before += len(mine)
                    if mine.any():
                        for row in file.read_row_group(group).filter(pyarrow.array(mine)).to_pylist():
                            yield xxh3_64_intdigest(shown_of(self._dataset.kind, row)), row


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
