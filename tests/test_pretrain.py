"""Documents for pretraining: shards to train on, held-out documents beside them, and few open files on the way."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from nexa_core import digests
from nexa_core.config.data import DataConfig, DatasetConfig, PretrainOutput
from nexa_core.config.load import load_config
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_data.datasets import Dataset, list_datasets, open_dataset
from nexa_data.prepare import prepare_dataset
from tests.labs import split_of
from tests.test_prepare_processes import digests_below, run_prepare

open_files: list[int] = []


def documents(count: int) -> Iterator[dict[str, str]]:
    """A source that looks, at each row, how many files are open."""
    for number in range(count):
        open_files.append(len(os.listdir("/dev/fd")))
        yield {"text": f"document {number}"}


def settings(count: int, *, rows_per_shard: int = 40, **changes: Any) -> dict[str, Any]:
    return {
        "name": "docs",
        "source": {"name": "tests.test_pretrain:documents", "parameters": {"count": count}},
        "rows": {"name": "pairs", "completion": "text"},
        "output": {"name": "pretrain", "rows_per_shard": rows_per_shard, "val": 0.1, "test": 0.2},
        **changes,
    }


def make(root: Path, count: int, *, replace: bool = False, **changes: Any) -> Dataset:
    config = DatasetConfig.model_validate_json(json.dumps(settings(count, **changes)))
    prepare_dataset(config, Layout(root), replace=replace)
    return open_dataset(Layout(root), "docs", "v1")


def texts(dataset: Dataset, split: str) -> list[str]:
    return dataset.read_split(split)["completion"].to_pylist()


def files_below(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): digests.of_file(path) for path in root.rglob("*") if path.is_file()}


def test_each_document_lies_in_a_shard_or_is_held_out_and_the_shards_are_in_the_sources_order(tmp_path):
    dataset = make(tmp_path, 300)
    *full, last = dataset.training_splits
    assert full == [f"{number:03d}" for number in range(1, len(full) + 1)]
    assert {dataset.num_rows[shard] for shard in full} == {40}
    assert 0 < dataset.num_rows[last] <= 40
    assert dataset.splits_of("train") == (*full, last)
    assert dataset.splits_of("val") == ("val",)

    places = {split: texts(dataset, split) for split in ("train", "val", "test")}
    assert [text for shard in dataset.training_splits for text in texts(dataset, shard)] == places["train"]
    expected: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for text in (row["text"] for row in documents(300)):
        expected[split_of(text.encode(), PretrainOutput(name="pretrain", val=0.1, test=0.2))].append(text)
    assert places == expected
    assert all(len(found) > 10 for found in places.values())
    assert dataset.split_path("val") == tmp_path / "data" / "processed" / "training" / "val" / "docs_v1.parquet"


def test_the_defaults_hold_out_documents_for_validation(tmp_path):
    dataset = make(tmp_path, 1000, output={"name": "pretrain"})
    assert dataset.training_splits == ("001",)
    assert dataset.num_rows["001"] > 900
    assert min(dataset.num_rows["val"], dataset.num_rows["test"]) > 5


def test_the_number_of_open_files_does_not_grow_with_the_number_of_shards(tmp_path):
    peaks = []
    for count in (40, 2000):
        open_files.clear()
        dataset = make(tmp_path / str(count), count, rows_per_shard=5)
        peaks.append(max(open_files))
    assert len(dataset.training_splits) > 250
    assert peaks[1] < peaks[0] + 5


@pytest.mark.parametrize("rows_per_shard", [1, 7, 1000])
def test_other_shard_sizes_move_no_document(tmp_path, rows_per_shard):
    one, other = make(tmp_path / "one", 100), make(tmp_path / "other", 100, rows_per_shard=rows_per_shard)
    for split in ("train", "val", "test"):
        assert texts(one, split) == texts(other, split)


def test_a_refused_replacement_leaves_the_shards_that_stand_and_no_litter(tmp_path):
    make(tmp_path, 300)
    before = files_below(tmp_path)
    with pytest.raises(GateError, match="training split is empty"):
        make(tmp_path, 200, replace=True, output={"name": "pretrain", "val": 0, "test": 0.999999})
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "new {n}"}}\n' for n in range(300)) + "dirt\n" * 9)
    with pytest.raises(GateError, match="rows are bad"):
        make(tmp_path, 0, replace=True, source={"name": "files", "path": "rows.jsonl"})
    refused = {"rows.jsonl", "data/processed/training/rejects/docs_v1.refused.jsonl"}
    after = files_below(tmp_path)
    assert after.keys() - before.keys() == refused
    assert {name: after[name] for name in before} == before


def test_a_smaller_replacement_leaves_no_old_shard(tmp_path):
    make(tmp_path, 300)
    dataset = make(tmp_path, 100, replace=True)
    shards = (tmp_path / "data" / "processed" / "training" / "pretrain").iterdir()
    assert sorted(path.stem for path in shards) == list(dataset.training_splits) == ["001", "002"]


# Five shards make 14 renames: each takes a name to wait under, then each its own, then come the other files.
@pytest.mark.parametrize("kill_at", [3, 8])
def test_killed_at_any_write_it_leaves_no_manifest_and_ends_with_the_same_bytes(tmp_path, kill_at, uninterrupted):
    config = {"datasets": [settings(200, rows_per_shard=30)]}
    assert run_prepare(tmp_path, config, kill_at=kill_at) == -signal.SIGKILL
    assert list_datasets(Layout(tmp_path)) == []
    assert run_prepare(tmp_path, config) == 0
    assert digests_below(tmp_path) == uninterrupted


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("whole")
    assert len(make(root, 200, rows_per_shard=30).training_splits) == 5
    return digests_below(root)


def test_a_damaged_shard_is_noticed_when_the_training_rows_are_read(tmp_path):
    dataset = make(tmp_path, 300)
    path = dataset.split_path("002")
    data = path.read_bytes()
    path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    with pytest.raises(UserError, match=r"pretrain/002.parquet has other bytes"):
        dataset.read_split("train")
    assert len(texts(dataset, "001")) == 40
    assert len(texts(make(tmp_path, 300), "train")) > 150


def test_the_tokenizer_learns_from_the_shards_and_from_nothing_that_is_held_out(tmp_path):
    output = {"name": "pretrain", "rows_per_shard": 40, "val": 0.2, "test": 0.2}
    parsed = PretrainOutput.model_validate_json(json.dumps(output))
    rows = []
    for number in range(300):
        seen, unseen = f"visible{number % 5} {number}", f"secret{number % 5} {number}"
        rows += [seen] if split_of(seen.encode(), parsed) == "train" else []
        rows += [unseen] if split_of(unseen.encode(), parsed) != "train" else []
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in rows))
    source = {"name": "files", "path": "rows.jsonl"}
    dataset = make(tmp_path, 0, source=source, output=output, tokenizer={"vocab_size": 400})
    assert len(dataset.training_splits) > 2
    tokenizer = Tokenizer.from_str(dataset.tokenizer_json() or "")
    assert "visible" in tokenizer.get_vocab()
    assert "secret" not in tokenizer.get_vocab()
    assert tokenizer.decode(tokenizer.encode("secret1 caf\u00e9").ids) == "secret1 caf\u00e9"


def test_shares_that_leave_nothing_to_train_on_are_refused_with_their_line(tmp_path):
    path = tmp_path / "data.yaml"
    path.write_text(
        "datasets:\n"
        "  - name: a\n"
        "    source: {name: digits}\n"
        "    rows: {name: pairs, completion: text}\n"
        "    output: {name: pretrain, val: 0.5, test: 0.5}\n"
    )
    with pytest.raises(UserError, match=r"data.yaml:5.*leave no rows for training"):
        load_config(path, DataConfig)
