"""From raw files to a dataset: rows, ids, splits, gates, manifests, versions that never change."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet as parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_core import digests
from nexa_core.config.data import DataConfig, DatasetConfig, TrainingOutput
from nexa_core.config.load import load_config
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_data import tables
from nexa_data.datasets import list_datasets, open_dataset
from nexa_data.makers import RowError
from nexa_data.prepare import Prepared, prepare, prepare_dataset
from nexa_data.rows import canonical
from nexa_data.split import SPLITS
from tests.labs import split_of

TEXT = {"name": "text", "text": "text", "label": "label"}
FILES = {"name": "files", "path": "data/raw/rows.jsonl"}


def config(**changes: Any) -> DatasetConfig:
    """The settings of a small text dataset, with some of them changed."""
    given = {"name": "news", "source": FILES, "rows": TEXT, "output": {"name": "training"}, **changes}
    return DatasetConfig.model_validate_json(json.dumps(given))


def write_rows(root: Path, rows: list[Any], name: str = "rows.jsonl") -> None:
    path = root / "data" / "raw" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


def make(root: Path, content: list[Any] | None = None, *, replace: bool = False, **changes: Any) -> Prepared:
    """Prepare the dataset of `config(**changes)`, after writing `content` into its source file."""
    if content is not None:
        write_rows(root, content)
    return prepare_dataset(config(**changes), Layout(root), replace=replace)


def rows_of(root: Path, name: str = "news", version: str = "v1") -> dict[str, list[dict[str, Any]]]:
    dataset = open_dataset(Layout(root), name, version)
    return {split: dataset.read_split(split).to_pylist() for split in dataset.num_rows}


def rejects_of(root: Path, category: str = "training", key: str = "news_v1") -> list[dict[str, Any]]:
    path = root / "data" / "processed" / category / "rejects" / f"{key}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_below(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): digests.of_file(path) for path in root.rglob("*") if path.is_file()}


def texts(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"text": f"text number {number}", "label": number % 3} for number in range(start, start + count)]


def test_a_dataset_holds_every_good_row_once_in_the_schema_of_its_kind(tmp_path):
    prepared = make(tmp_path, [*texts(100), {"text": "with more", "label": "x", "z": [1, None], "a": "\u00e9"}])
    splits = rows_of(tmp_path)
    rows = [row for split in SPLITS for row in splits[split]]
    assert prepared.is_new
    assert {row["text"]: row["label"] for row in rows} == {
        "with more": "x", **{row["text"]: str(row["label"]) for row in texts(100)}
    }  # fmt: skip
    assert len({row["row_id"] for row in rows}) == len(rows) == 101
    extra = {row["text"]: row["extra_json"] for row in rows}
    assert extra["with more"] == '{"a":"\u00e9","z":[1,null]}'
    assert extra["text number 0"] is None
    schema = open_dataset(Layout(tmp_path), "news", "v1").read_split("train").schema
    assert [(field.name, str(field.type)) for field in schema] == [
        ("row_id", "string"), ("text", "string"), ("label", "string"), ("extra_json", "string")
    ]  # fmt: skip


def test_the_manifest_records_files_steps_sources_and_labels(tmp_path):
    make(tmp_path, [*texts(200), "not JSON", {"text": " ", "label": 1}, texts(1)[0]])
    manifest = open_dataset(Layout(tmp_path), "news", "v1").manifest
    for record in [*manifest["splits"].values(), manifest["rejects"], *manifest["sources"]]:
        path = tmp_path / (record.get("path") or record["file"])
        assert (path.stat().st_size, digests.of_file(path)) == (record["bytes"], record["sha256"])
    steps = {step["name"]: (step["rows_in"], step["rows_out"], step["reasons"]) for step in manifest["steps"]}
    assert steps == {
        "read": (203, 202, {"not JSON": 1}),
        "normalise": (202, 201, {"empty text": 1}),
        "deduplicate": (201, 200, {"duplicate": 1}),
        "split": (200, 200, {}),
    }
    assert manifest["labels"] == ["0", "1", "2"]
    assert manifest["parents"] == []
    assert sum(record["rows"] for record in manifest["splits"].values()) == 200
    row_id = hashlib.sha256(b"text 13 text number 0label 1 0").hexdigest()[:16]
    rejects = rejects_of(tmp_path)
    raw = (tmp_path / "data" / "raw" / "rows.jsonl").read_bytes()
    assert [raw[reject.pop("offset") :].splitlines()[0].decode() for reject in rejects] == [
        reject["raw"] for reject in rejects
    ]
    assert rejects == [
        {"file": "data/raw/rows.jsonl", "line": 201, "reason": "not JSON: Expecting value at column 1", "raw": "not JSON"},
        {"file": "data/raw/rows.jsonl", "line": 202, "reason": "empty text", "raw": '{"text": " ", "label": 1}'},
        {
            "file": "data/raw/rows.jsonl", "line": 203, "reason": f"duplicate of {row_id}",
            "raw": '{"text": "text number 0", "label": 0}',
        },
    ]  # fmt: skip


def rejected(rows: dict[str, Any], values: dict[str, Any]) -> str:
    with pytest.raises(RowError) as error:
        canonical(config(rows=rows).rows)(values)
    return error.value.reason


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"label": 1}, "missing value"),
        ({"text": None, "label": 1}, "missing value"),
        ({"text": 5, "label": 1}, "not text"),
        ({"text": ["a"], "label": 1}, "not text"),
        ({"text": "", "label": 1}, "empty text"),
        ({"text": "\ud800", "label": 1}, "not valid Unicode"),
        ({"text": "a", "label": 1, "other": "\ud800"}, "not valid Unicode"),
        ({"text": "a", "label": {}}, "not a label"),
        ({"text": "a", "label": "long " * 100}, "not a label"),
        ({"text": "a", "label": ""}, "empty label"),
        ({"text": "a", "label": float("nan")}, "number not finite"),
    ],
)
def test_a_text_row_of_wrong_type_or_without_content_is_rejected(values, reason):
    assert rejected(TEXT, values) == reason


@pytest.mark.parametrize(
    ("features", "reason"),
    [
        ([1, 2], "wrong number of features"),
        ([], "no numbers"),
        ("1,2,3", "not a list of numbers"),
        ([1, 2, "3"], "not a list of numbers"),
        ([1, 2, True], "not a list of numbers"),
        ([1, 2, None], "not a list of numbers"),
        ([1, 2, [3]], "not a list of numbers"),
        ([1, 2, float("nan")], "number not finite"),
        ([1, 2, float("inf")], "number not finite"),
        ([1, 2, 1e39], "number too large for float32"),
        ([1, 2, 10**400], "number too large for float32"),
        (None, "missing value"),
    ],
)
def test_a_feature_row_of_wrong_type_or_size_is_rejected(features, reason):
    rows = {"name": "features", "features": "x", "label": "y", "shape": [3]}
    assert rejected(rows, {"x": features, "y": "a"}) == reason


@pytest.mark.parametrize(
    ("value", "reason"),
    [("abc", "not a number"), ("1_0", "not a number"), ("", "not a number"), ("nan", "number not finite"),
     ("1e39", "number too large for float32"), (True, "not a number"), (10**400, "number too large for float32")],
)  # fmt: skip
def test_a_column_that_is_no_number_is_rejected(value, reason):
    rows = {"name": "features", "features": ["a", "b"], "label": "y"}
    assert rejected(rows, {"a": "1.5", "b": value, "y": 0}) == reason


def test_features_come_from_a_list_or_from_columns_and_keep_their_shape(tmp_path):
    rows = [{"x": [number / 7, 1, 2, 3], "y": "a"} for number in range(50)]
    make(tmp_path, rows, rows={"name": "features", "features": "x", "label": "y", "shape": [1, 2, 2]})
    dataset = open_dataset(Layout(tmp_path), "news", "v1")
    assert dataset.feature_shape == (1, 2, 2)
    found = {tuple(row) for split in SPLITS for row in dataset.read_split(split)["features"].to_pylist()}
    assert found == {(float(numpy.float32(number / 7)), 1.0, 2.0, 3.0) for number in range(50)}

    table = "a,b,y\n" + "".join(f"{number},2.5,k\n" for number in range(50))
    write_rows(tmp_path, [table.strip()], "table.csv")
    make(
        tmp_path, name="table", source={"name": "files", "path": "data/raw/table.csv"},
        rows={"name": "features", "features": ["a", "b"], "label": "y"},
    )  # fmt: skip
    assert open_dataset(Layout(tmp_path), "table", "v1").feature_shape == (2,)


def test_parquet_columns_of_any_type_become_rows_and_extras(tmp_path):
    import datetime
    import decimal

    (tmp_path / "data" / "raw").mkdir(parents=True)
    when = datetime.datetime(2024, 1, 2, 3, 4)
    columns = {
        "text": [f"t{number}" for number in range(40)], "label": [1.5] * 40, "when": [when] * 40, "raw": [b"\xff"] * 40,
        "price": [decimal.Decimal("1.10")] * 40, "gap": [float("nan")] * 40, "n": [None] * 40,
    }  # fmt: skip
    parquet.write_table(pyarrow.table(columns), tmp_path / "data" / "raw" / "rows.parquet")
    make(tmp_path, source={"name": "files", "path": "data/raw"})
    row = rows_of(tmp_path)["train"][0]
    assert row["label"] == "1.5"
    assert json.loads(row["extra_json"]) == {
        "when": "2024-01-02T03:04:00", "raw": "/w==", "price": "1.10", "gap": "NaN", "n": None
    }  # fmt: skip


def test_pairs_documents_and_teacher_inputs_each_go_to_their_place(tmp_path):
    rows = [{"q": f"question {number}", "a": f"answer {number}"} for number in range(25)]
    make(tmp_path, rows, rows={"name": "pairs", "prompt": "q", "completion": "a"})
    pair = rows_of(tmp_path)["train"][0]
    assert pair["prompt"].replace("question", "answer") == pair["completion"]
    make(
        tmp_path,
        name="docs",
        rows={"name": "pairs", "completion": "a"},
        output={"name": "pretrain", "rows_per_shard": 10, "val": 0, "test": 0},
    )
    folder = tmp_path / "data" / "processed" / "training" / "pretrain"
    shards = [parquet.read_table(folder / f"{shard}.parquet").to_pylist() for shard in ("001", "002", "003")]
    assert [len(shard) for shard in shards] == [10, 10, 5]
    assert [row["completion"] for shard in shards for row in shard] == [row["a"] for row in rows]
    make(tmp_path, name="inputs", rows={"name": "pairs", "prompt": "q"}, output={"name": "teacher_inputs"})
    path = tmp_path / "data" / "processed" / "distillation" / "teacher_inputs" / "inputs_v1.parquet"
    assert parquet.read_table(path)["prompt"].to_pylist() == [row["q"] for row in rows]
    assert rejects_of(tmp_path, "distillation", "inputs_v1") == []


def test_pairs_keep_the_columns_types_and_ids_of_earlier_releases(tmp_path):
    make(tmp_path, [{"q": "What?", "a": "caf\u00e9"}], rows={"name": "pairs", "prompt": "q", "completion": "a"},
         output={"name": "training", "val": 0, "test": 0})  # fmt: skip
    make(tmp_path, [{"a": "doc"}], name="docs", rows={"name": "pairs", "completion": "a"},
         output={"name": "pretrain", "val": 0, "test": 0})  # fmt: skip
    tables = [open_dataset(Layout(tmp_path), name, "v1").read_split("train") for name in ("news", "docs")]
    assert tables[0].schema == tables[1].schema
    assert [(field.name, str(field.type)) for field in tables[0].schema] == [
        ("row_id", "string"), ("prompt", "string"), ("completion", "string"), ("extra_json", "string")
    ]  # fmt: skip
    assert [row for table in tables for row in table.to_pylist()] == [
        {"row_id": "cbf624ac85d7fee8", "prompt": "What?", "completion": "caf\u00e9", "extra_json": None},
        {"row_id": "5df4c76e0058c90a", "prompt": None, "completion": "doc", "extra_json": None},
    ]


@pytest.fixture
def default_recursion_limit():
    """Compilers raise it for the whole process."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"q": "a", "a": "\ud800"}, "not valid Unicode"),
        ({"q": "a", "a": "b", "more": json.loads("[" * 900 + "]" * 900)}, "nested too deeply"),
    ],
)
def test_a_pair_that_cannot_be_written_is_rejected(values, reason, default_recursion_limit):
    assert rejected({"name": "pairs", "prompt": "q", "completion": "a"}, values) == reason


def test_kept_duplicates_get_ids_of_their_own(tmp_path):
    make(tmp_path, [{"text": "same", "label": 1}] * 3 + texts(50), drop_duplicates=False)
    ids = [row["row_id"] for rows in rows_of(tmp_path).values() for row in rows if row["text"] == "same"]
    assert ids == [ids[0], f"{ids[0]}-2", f"{ids[0]}-3"]


def test_ids_and_splits_do_not_depend_on_files_or_their_order(tmp_path):
    rows = texts(300)
    write_rows(tmp_path / "one", rows, "a.jsonl")
    write_rows(tmp_path / "two", rows[200:], "a.jsonl")
    write_rows(tmp_path / "two", rows[:200], "b.jsonl")
    placed = []
    for name in ("one", "two"):
        make(tmp_path / name, source={"name": "files", "path": "data/raw"})
        placed.append(
            {row["row_id"]: (split, row["text"]) for split, found in rows_of(tmp_path / name).items() for row in found}
        )
    assert placed[0] == placed[1]


def test_rows_that_are_added_move_no_other_row(tmp_path):
    make(tmp_path, texts(400))
    make(tmp_path, texts(900, start=-500), version="v2")
    before, after = rows_of(tmp_path), rows_of(tmp_path, version="v2")
    for split in SPLITS:
        assert {row["row_id"] for row in before[split]} <= {row["row_id"] for row in after[split]}


def test_the_same_input_with_two_targets_lies_in_one_split(tmp_path):
    make(tmp_path, [{"text": row["text"], "label": label} for row in texts(200) for label in ("a", "b")])
    places: dict[str, set[str]] = {}
    for split, rows in rows_of(tmp_path).items():
        for row in rows:
            places.setdefault(row["text"], set()).add(split)
    assert [text for text, splits in places.items() if len(splits) > 1] == []
    assert len(places) == 200


@settings(max_examples=200, deadline=None)
@given(st.binary(), st.floats(0, 0.4), st.floats(0, 0.3), st.floats(0, 0.3))
def test_a_larger_share_keeps_every_row_that_was_in_the_test_split(shown, val, test, more):
    before = split_of(shown, TrainingOutput(name="training", val=val, test=test))
    after = split_of(shown, TrainingOutput(name="training", val=val, test=test + more))
    assert before != "test" or after == "test"


def test_splits_have_about_their_shares_and_the_salt_moves_rows():
    output = TrainingOutput(name="training", val=0.1, test=0.2)
    placed = [split_of(str(number).encode(), output) for number in range(20_000)]
    assert abs(placed.count("test") / 20_000 - 0.2) < 0.01
    assert abs(placed.count("val") / 20_000 - 0.1) < 0.01
    salted = [split_of(str(number).encode(), output.model_copy(update={"salt": "x"})) for number in range(20_000)]
    assert 0.3 < sum(one != other for one, other in zip(placed, salted, strict=True)) / 20_000 < 0.6


def test_splits_are_those_of_earlier_releases():
    output = TrainingOutput(name="training", val=0.2, test=0.2, salt="pinned")
    placed = [split_of(f"row {number}".encode(), output) for number in range(12)]
    assert " ".join(placed) == "val train train train test train train val val train train train"


def test_zero_and_minus_zero_are_the_same_input():
    convert = canonical(config(rows={"name": "features", "features": "x", "label": "y"}).rows)
    assert convert({"x": [0.0, 1], "y": 1}).row_id == convert({"x": [-0.0, 1.0], "y": 1}).row_id


def test_row_groups_are_bounded_and_hold_all_rows_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "GROUP_ROWS", 7)
    make(tmp_path, texts(100), output={"name": "training", "val": 0, "test": 0})
    with parquet.ParquetFile(open_dataset(Layout(tmp_path), "news", "v1").split_path("train")) as file:
        assert [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)] == [7] * 14 + [2]
    assert [row["text"] for row in rows_of(tmp_path)["train"]] == [row["text"] for row in texts(100)]


def test_too_many_bad_rows_are_refused_and_only_the_rejects_are_left(tmp_path):
    with pytest.raises(
        GateError, match=r"2 of 100 rows are bad \(2.00%\), max_bad_fraction allows 1.00%.*2x not JSON"
    ) as error:
        make(tmp_path, [*texts(98), "{", "["])
    assert error.value.exit_code == 3
    assert "The first: data/raw/rows.jsonl, line 99: Expecting property name" in str(error.value)
    assert [row["line"] for row in rejects_of(tmp_path)] == [99, 100]
    assert list(files_below(tmp_path / "data" / "processed")) == ["training/rejects/news_v1.jsonl"]
    assert make(tmp_path, max_bad_fraction=0.02).num_rejected == 2


def test_duplicates_are_listed_and_are_not_bad(tmp_path):
    prepared = make(tmp_path, texts(50) * 3, max_bad_fraction=0)
    assert (sum(prepared.num_rows.values()), prepared.num_rejected) == (50, 100)


@pytest.mark.parametrize("rows", [[], ["{"], [{"text": "", "label": 1}]])
def test_a_source_without_a_good_row_is_refused(tmp_path, rows):
    with pytest.raises(GateError, match="no good row"):
        make(tmp_path, rows, max_bad_fraction=1)
    assert list_datasets(Layout(tmp_path)) == []


def test_an_empty_training_split_is_refused(tmp_path):
    with pytest.raises(GateError, match="training split is empty"):
        make(tmp_path, texts(3), output={"name": "training", "val": 0, "test": 0.999999})


def test_val_and_test_may_be_empty_and_can_still_be_read(tmp_path):
    make(tmp_path, texts(10), output={"name": "training", "val": 0, "test": 0})
    assert {split: len(rows) for split, rows in rows_of(tmp_path).items()} == {"train": 10, "val": 0, "test": 0}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            {"name": "text", "text": "text", "label": "lable"},
            ["rows.label", "'lable'", "Did you mean 'label'", "label, text"],
        ),
        ({"name": "text", "text": ["text", "titel"], "label": "label"}, ["rows.text", "'titel'"]),
        ({"name": "pairs", "prompt": "q", "completion": "text"}, ["rows.prompt", "'q'"]),
    ],
)
def test_a_column_that_no_row_has_is_a_mistake_in_the_config(tmp_path, rows, words):
    with pytest.raises(UserError) as error:
        make(tmp_path, texts(10), rows=rows)
    assert [word for word in words if word not in str(error.value)] == []
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / "data" / "raw" / "rows.jsonl"]


def test_a_column_that_one_row_lacks_is_a_bad_row(tmp_path):
    make(tmp_path, [{"text": "no label"}, *texts(200)])
    assert [(row["line"], row["reason"]) for row in rejects_of(tmp_path)] == [(1, "missing value: no 'label'")]


def test_preparing_again_does_nothing(tmp_path):
    make(tmp_path, texts(100))
    before = files_below(tmp_path)
    stamps = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not make(tmp_path).is_new
    assert files_below(tmp_path) == before
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == stamps


@pytest.mark.parametrize(
    ("rows", "changes", "words"),
    [
        (texts(101), {}, ["data/raw/rows.jsonl has other content"]),
        (None, {"output": {"name": "training", "test": 0.2}}, ["output.test was 0.1 and is 0.2"]),
        (None, {"source": {"name": "files", "path": "data/raw"}}, ["source.path was", '"data/raw"']),
    ],
)
def test_a_version_never_changes_unless_it_is_replaced(tmp_path, rows, changes, words):
    make(tmp_path, texts(100))
    before = files_below(tmp_path / "data" / "processed")
    with pytest.raises(UserError) as error:
        make(tmp_path, rows, **changes)
    assert [word for word in [*words, "version:", "--replace"] if word not in str(error.value)] == []
    assert files_below(tmp_path / "data" / "processed") == before
    assert make(tmp_path, **changes, replace=True).is_new
    assert not make(tmp_path, **changes).is_new


def test_a_refused_replacement_leaves_the_dataset_that_stands(tmp_path):
    make(tmp_path, [*texts(200), "dirt"])
    before = files_below(tmp_path / "data" / "processed")
    with pytest.raises(GateError):
        make(tmp_path, ["{", *texts(10)], replace=True)
    after = files_below(tmp_path / "data" / "processed")
    assert after.keys() - before.keys() == {"training/rejects/news_v1.refused.jsonl"}
    assert {name: after[name] for name in before} == before
    make(tmp_path, texts(300), replace=True)
    assert files_below(tmp_path / "data" / "processed").keys() == before.keys()


@pytest.mark.parametrize("damaged", ["train/news_v1.parquet", "rejects/news_v1.jsonl", "manifests/news_v1.json"])
@pytest.mark.parametrize("how", ["missing", "cut", "flipped"])
def test_a_damaged_dataset_is_noticed_and_made_again_byte_for_byte(tmp_path, caplog, damaged, how):
    make(tmp_path, [*texts(200), "dirt"])
    before = files_below(tmp_path / "data" / "processed")
    path = tmp_path / "data" / "processed" / "training" / damaged
    data = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(data[:-9] if how == "cut" else bytes([data[0] ^ 1]) + data[1:])
    assert make(tmp_path).is_new
    assert files_below(tmp_path / "data" / "processed") == before
    assert "manifests" in damaged or damaged in caplog.text


def test_a_damaged_split_is_not_read(tmp_path):
    make(tmp_path, texts(100))
    dataset = open_dataset(Layout(tmp_path), "news", "v1")
    data = bytearray(dataset.split_path("train").read_bytes())
    data[50] ^= 1
    dataset.split_path("train").write_bytes(data)
    with pytest.raises(UserError, match=r"train/news_v1.parquet has other bytes"):
        dataset.read_split("train")
    assert len(dataset.read_split("test")) > 0


def test_a_missing_dataset_names_those_that_exist(tmp_path):
    make(tmp_path, texts(100))
    with pytest.raises(
        UserError, match=r"No training dataset new_v1. Did you mean 'news_v1'\? There: news_v1.*prepare"
    ):
        open_dataset(Layout(tmp_path), "new", "v1")
    with pytest.raises(UserError, match=r"no split 'tests'. Did you mean 'test'\? There: train, val, test"):
        open_dataset(Layout(tmp_path), "news", "v1").read_split("tests")


def test_pretraining_shards_of_another_dataset_are_not_overwritten(tmp_path):
    documents = {"rows": {"name": "pairs", "completion": "text"}, "output": {"name": "pretrain", "rows_per_shard": 40}}
    make(tmp_path, texts(100), name="first", **documents)
    with pytest.raises(UserError, match=r"pretrain holds the shards of first_v1. Pass --replace"):
        make(tmp_path, texts(50), name="second", **documents)
    make(tmp_path, name="second", **documents, replace=True)
    assert [dataset.key for dataset in list_datasets(Layout(tmp_path))] == ["second_v1"]
    shards = tmp_path / "data" / "processed" / "training" / "pretrain"
    assert sorted(path.name for path in shards.iterdir()) == ["001.parquet", "002.parquet"]


def test_a_users_own_function_is_a_source(tmp_path, monkeypatch):
    (tmp_path / "own_rows.py").write_text(
        "def rows(count, label='x'):\n"
        "    for number in range(count):\n"
        "        yield {'text': f'row {number}', 'label': label}\n"
        "    yield 'not a dict'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    source = {"name": "own_rows:rows", "parameters": {"count": 300}}
    prepared = make(tmp_path, source=source)
    assert (sum(prepared.num_rows.values()), prepared.num_rejected) == (300, 1)
    assert not make(tmp_path, source=source).is_new
    with pytest.raises(UserError, match="parameters do not fit: missing a required argument: 'count'"):
        make(tmp_path, source={"name": "own_rows:rows"}, version="v2")
    with pytest.raises(UserError, match="Cannot load source 'own_rows:nothing'"):
        make(tmp_path, source={"name": "own_rows:nothing"}, version="v2")
    del sys.modules["own_rows"]


def test_a_tokenizer_is_trained_on_the_training_split_and_gives_texts_back(tmp_path):
    from tokenizers import Tokenizer

    make(tmp_path, texts(300), tokenizer={"vocab_size": 280})
    dataset = open_dataset(Layout(tmp_path), "news", "v1")
    tokenizer = Tokenizer.from_str(dataset.tokenizer_json())
    assert [tokenizer.token_to_id(token) for token in ("<|pad|>", "<|bos|>", "<|eos|>")] == [0, 1, 2]
    assert tokenizer.get_vocab_size() == dataset.manifest["tokenizer"]["vocab_size"] == 280
    for text in ("text number 7", " caf\u00e9 \U0001f600\n\ttail ", "\0"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode("text number 7").ids) <= 5
    assert make(tmp_path, version="v2").manifest["tokenizer"] is None
    assert open_dataset(Layout(tmp_path), "news", "v2").tokenizer_json() is None


def test_digits_are_images_between_0_and_1(tmp_path):
    rows = {"name": "features", "features": "pixels", "label": "digit", "shape": [1, 8, 8]}
    make(tmp_path, name="digits", source={"name": "digits"}, rows=rows)
    dataset = open_dataset(Layout(tmp_path), "digits", "v1")
    assert (dataset.kind, dataset.labels, dataset.feature_shape) == ("features", tuple("0123456789"), (1, 8, 8))
    pixels = numpy.array([row for split in SPLITS for row in dataset.read_split(split)["features"].to_pylist()])
    assert pixels.shape == (1797, 64)
    assert (pixels.min(), pixels.max()) == (0, 1)
    assert not make(tmp_path, name="digits", source={"name": "digits"}, rows=rows).is_new


def test_settings_that_cannot_be_are_refused_with_their_line(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text(
        "datasets:\n"
        "  - name: a\n"
        "    source: {name: files, path: x.csv, csv: {columns: [a, a], delimiter: '\"'}}\n"
        "    rows: {name: features, features: [a, b], label: c, shape: [3]}\n"
        "    output: {name: training}\n"
    )
    with pytest.raises(UserError) as error:
        load_config(path, DataConfig)
    words = ["data.yaml:3", "each column needs a name", "quote or a line end", "data.yaml:4", "2 columns do not fill"]
    assert [word for word in words if word not in str(error.value)] == []


def test_the_committed_config_is_prepared_whole(tmp_path):
    committed = load_config(Path(__file__).parent.parent / "configs" / "data.yaml", DataConfig)
    prepared = prepare(committed, Layout(tmp_path))
    assert [each.key for each in prepared] == [
        "digits_v1",
        "python_docs_v1",
        "python_docs_text_v1",
        "teacher_inputs_v1",
        "docs_questions_v1",
    ]
    assert [each.num_rejected for each in prepared] == [0, 0, 0, 0, 0]
    assert not any(each.is_new for each in prepare(committed, Layout(tmp_path)))
