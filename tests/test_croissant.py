"""Croissant files: to the specification's rules, and a reader that knows nothing else gets each dataset's rows from them."""

import fnmatch
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from nexa_core import digests
from nexa_core.config.data import DatasetConfig
from nexa_core.paths import Layout
from nexa_data.croissant import CONTEXT, describe
from nexa_data.datasets import Dataset, find_dataset, list_datasets
from nexa_data.places import croissant_path
from nexa_data.prepare import prepare_dataset
from nexa_data.validation import validate

# What the document uses of schema.org; every other word of it has to be in its context.
# Source: https://docs.mlcommons.org/croissant/docs/croissant-spec-1.1.html
SCHEMA_ORG = {
    "citeAs", "contentSize", "contentUrl", "creator", "datePublished", "description", "distribution", "encodingFormat",
    "identifier", "license", "name", "sha256", "url", "value", "version",
}  # fmt: skip

ANSWER = {"role": "assistant", "content": "tell", "mood": "good"}
OUTPUT = {"name": "training", "val": 0.2, "test": 0.2}
DATASETS: dict[str, dict[str, Any]] = {
    "text": {"rows": {"name": "text", "text": "text", "label": "label"}, "output": OUTPUT},
    "pairs": {"rows": {"name": "pairs", "prompt": "text", "completion": "label"}, "output": OUTPUT},
    "features": {
        "rows": {"name": "features", "features": "pixels", "label": "label", "shape": [1, 2]},
        "output": OUTPUT,
    },
    "chat": {"rows": {"name": "chat", "messages": "messages"}, "output": OUTPUT},
    "pretrain": {
        "rows": {"name": "pairs", "completion": "text"},
        "output": {"name": "pretrain", "rows_per_shard": 10, "val": 0.2, "test": 0.2},
    },
    "sequences": {
        "rows": {"name": "pairs", "completion": "text"},
        "output": {"name": "pretrain", "rows_per_shard": 10, "val": 0.2, "test": 0.2, "sequence_tokens": 16},
        "tokenizer": {"vocab_size": 260},
    },
    "teacher_inputs": {"rows": {"name": "pairs", "prompt": "text"}, "output": {"name": "teacher_inputs"}},
}


def make(root: Path, name: str, version: str = "v1", *, replace: bool = False, **changes: Any) -> Dataset:
    path = root / "data" / "raw" / "rows.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = (
        {
            "text": f"row {n}",
            "label": f"{n % 3}",
            "pixels": [n, 0.5],
            "messages": [{"role": "user", "content": f"{n}"}, ANSWER],
        }
        for n in range(60)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"name": "files", "path": "data/raw/rows.jsonl"}
    given = {"name": name, "version": version, "source": source, **DATASETS[name], **changes}
    prepare_dataset(DatasetConfig.model_validate_json(json.dumps(given)), Layout(root), replace=replace)
    return find_dataset(Layout(root), f"{name}_{version}")


class Reader:
    """Reads record sets as the specification says, from the document and the files beside it."""

    def __init__(self, path: Path):
        self.folder, self.document = path.parent, json.loads(path.read_text())
        self.files = {each["@id"]: each for each in self.document["distribution"]}
        self.record_sets = {each["@id"]: each for each in self.document["recordSet"]}

    def records(self, name: str) -> Iterator[dict[str, Any]]:
        record_set = self.record_sets[name]
        if "data" in record_set:
            yield from record_set["data"]
            return
        for path in sorted({path for field in record_set["field"] for path in self._paths(field)}):
            for row in parquet.read_table(path).to_pylist():
                yield {field["@id"]: self._value(field, row) for field in record_set["field"]}

    def _paths(self, field: dict[str, Any]) -> Iterator[Path]:
        for inner in field.get("subField", []):
            yield from self._paths(inner)
        source = field.get("source", {})
        if "fileObject" in source:
            yield self.folder / self.files[source["fileObject"]["@id"]]["contentUrl"]
        if "fileSet" in source:
            pattern = self.files[source["fileSet"]["@id"]]["includes"]
            below = (path for path in self.folder.rglob("*") if path.is_file())
            yield from (path for path in below if fnmatch.fnmatch(str(path.relative_to(self.folder)), pattern))

    def _value(self, field: dict[str, Any], row: dict[str, Any]) -> Any:
        if "value" in field:
            return field["value"]
        if "subField" in field:
            parts = {inner["@id"]: self._value(inner, row) for inner in field["subField"]}
            assert field["isArray"]
            return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]
        value = row[field["source"]["extract"]["column"]]
        path = field["source"].get("transform", {}).get("jsonPath")
        return value if path is None else [each[path] for each in value]


def bare(value: Any) -> Any:
    """A record without the paths before its fields' names."""
    if isinstance(value, list):
        return [bare(each) for each in value]
    return {key.rpartition("/")[2]: bare(each) for key, each in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("name", DATASETS)
def test_a_reader_gets_every_row(tmp_path: Path, name: str) -> None:
    dataset = make(tmp_path, name)
    reader = Reader(croissant_path(dataset.layout, dataset.manifest))
    splits = {"teacher_inputs"} if name == "teacher_inputs" else {"train", "val", "test"}
    assert set(reader.record_sets) - {"splits", "labels", "sequences"} == splits
    for split in splits:
        rows = dataset.read_split(split).to_pylist()
        told = {} if name == "teacher_inputs" else {"split": split}
        assert [bare(record) for record in reader.records(split)] == [{**told, **row} for row in rows]
        assert rows


def test_a_reader_gets_every_sequence_and_the_tokenizer(tmp_path: Path) -> None:
    dataset = make(tmp_path, "sequences")
    reader = Reader(croissant_path(dataset.layout, dataset.manifest))
    rows = [row for shard in dataset.sequence_shards() for row in parquet.read_table(shard.path).to_pylist()]
    assert len(dataset.sequence_shards()) > 1
    assert [bare(record) for record in reader.records("sequences")] == rows
    fields = {field["name"]: field for field in reader.record_sets["sequences"]["field"]}
    assert (fields["tokens"]["dataType"], fields["tokens"]["isArray"]) == ("sc:Integer", True)
    assert "16 in each sequence" in fields["tokens"]["description"]
    digest_of = {each.get("contentUrl"): each.get("sha256") for each in reader.document["distribution"]}
    for record in (dataset.manifest["tokenizer"], *dataset.sequence_records.values()):
        assert digest_of["/".join(Path(record["path"]).parts[-2:])] == record["sha256"]


@pytest.mark.parametrize("name", DATASETS)
def test_the_document_keeps_the_specifications_rules(tmp_path: Path, name: str) -> None:
    dataset = make(tmp_path, name)
    reader = Reader(croissant_path(dataset.layout, dataset.manifest))
    document = reader.document
    assert (document["@type"], document["conformsTo"]) == ("sc:Dataset", "http://mlcommons.org/croissant/1.1")
    assert (document["name"], document["version"]) == (name, "1.0.0")
    assert "60 rows" in document["description"]
    check_words(document)
    ids = [node["@id"] for node in nodes(document)]
    assert len(ids) == len(set(ids))
    assert {reference["@id"] for reference in references(document)} <= set(ids)
    for node in nodes(document):
        if node["@type"] == "cr:FileObject":
            path = reader.folder / node["contentUrl"]
            assert node["sha256"] == digests.of_file(path)
            assert node["contentSize"] == f"{path.stat().st_size} B"
        if node["@type"] == "cr:Field":
            assert ("dataType" in node) != ("subField" in node)


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Every node that defines an id."""
    if isinstance(value, dict):
        if {"@id", "@type"} <= value.keys():
            yield value
        for key, each in value.items():
            yield from () if key in ("@context", "data") else nodes(each)
    elif isinstance(value, list):
        for each in value:
            yield from nodes(each)


def references(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if value.keys() == {"@id"}:
            yield value
        for key, each in value.items():
            yield from () if key in ("@context", "data") else references(each)
    elif isinstance(value, list):
        for each in value:
            yield from references(each)


def check_words(value: Any) -> None:
    if isinstance(value, dict):
        for key, each in value.items():
            prefix = key.partition(":")[0]
            assert key.startswith("@") or key in CONTEXT or key in SCHEMA_ORG or (":" in key and prefix in CONTEXT), key
            check_words(each) if key not in ("@context", "data") else None
    elif isinstance(value, list):
        for each in value:
            check_words(each)


def test_splits_and_classes_are_told_in_croissants_words(tmp_path: Path) -> None:
    dataset = make(tmp_path, "text")
    reader = Reader(croissant_path(dataset.layout, dataset.manifest))
    assert list(reader.records("splits")) == [
        {"splits/name": "train", "splits/url": "cr:TrainingSplit"},
        {"splits/name": "val", "splits/url": "cr:ValidationSplit"},
        {"splits/name": "test", "splits/url": "cr:TestSplit"},
    ]
    assert reader.record_sets["splits"]["dataType"] == "cr:Split"
    assert [record["labels/name"] for record in reader.records("labels")] == ["0", "1", "2"]
    fields = {field["name"]: field for field in reader.record_sets["val"]["field"]}
    assert fields["split"]["references"] == {"field": {"@id": "splits/name"}}
    assert fields["label"]["dataType"] == ["sc:Text", "cr:Label"]


def test_features_tell_their_shape(tmp_path: Path) -> None:
    dataset = make(tmp_path, "features")
    (field,) = (f for f in describe(dataset.manifest)["recordSet"][-1]["field"] if f["name"] == "features")
    assert (field["dataType"], field["isArray"], field["arrayShape"]) == ("sc:Float", True, "2")
    assert "1 x 2" in field["description"]


def test_what_the_settings_say_is_told_and_may_change_without_a_new_version(tmp_path: Path) -> None:
    before = make(tmp_path, "text")
    path = croissant_path(before.layout, before.manifest)
    assert not {"license", "url", "creator", "datePublished", "citeAs"} & json.loads(path.read_text()).keys()
    written = before.split_path("train").stat().st_mtime_ns
    about = {
        "description": "Rows.",
        "license": "https://spdx.org/licenses/CC0-1.0.html",
        "url": "https://example.org/rows",
        "creator": "Ada Lovelace",
        "creator_type": "person",
        "published": "2026-01-31",
        "citation": "@misc{rows}",
    }
    after = make(tmp_path, "text", about=about)
    told = json.loads(path.read_text())
    assert told["creator"] == {"@type": "sc:Person", "name": "Ada Lovelace"}
    assert (told["license"], told["datePublished"]) == (about["license"], "2026-01-31")
    assert (told["description"], told["url"], told["citeAs"]) == ("Rows.", about["url"], "@misc{rows}")
    assert after.fingerprint == before.fingerprint
    assert after.split_path("train").stat().st_mtime_ns == written


def test_a_missing_or_stale_file_is_written_again_and_nothing_else(tmp_path: Path) -> None:
    dataset = make(tmp_path, "text")
    path = croissant_path(dataset.layout, dataset.manifest)
    whole, written = path.read_bytes(), dataset.split_path("train").stat().st_mtime_ns
    for harm in (path.unlink, lambda: path.write_text("{}"), lambda: path.write_bytes(whole[:100])):
        harm()
        assert validate(dataset).holds  # it is no part of the dataset's own files
        make(tmp_path, "text")
        assert path.read_bytes() == whole
    assert dataset.split_path("train").stat().st_mtime_ns == written


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    made = [make(tmp_path / place, "pretrain") for place in ("here", "there")]
    first, second = (croissant_path(dataset.layout, dataset.manifest).read_bytes() for dataset in made)
    assert first == second


def test_a_dataset_that_gives_up_its_shards_leaves_no_croissant_file(tmp_path: Path) -> None:
    make(tmp_path, "pretrain")
    make(tmp_path, "pretrain", "v2", replace=True)
    assert [dataset.key for dataset in list_datasets(Layout(tmp_path))] == ["pretrain_v2"]
    found = [path.name for path in (tmp_path / "data" / "processed").rglob("*.croissant.json")]
    assert found == ["pretrain_v2.croissant.json"]


@pytest.mark.parametrize(
    ("version", "told"), [("v2", "2.0.0"), ("1.2", "1.2.0"), ("0.1.7", "0.1.7"), ("may-1", "may-1")]
)
def test_versions_are_semantic_where_they_can_be(tmp_path: Path, version: str, told: str) -> None:
    assert describe(make(tmp_path, "text", version).manifest)["version"] == told
    assert re.fullmatch(r"[\w.-]+", told)
