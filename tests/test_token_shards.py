"""Token sequences: what prepare encodes and packs once, and training maps into memory."""

import json
import random
import shutil
import signal
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_core import digests
from nexa_core.config import DataConfig
from nexa_core.config.data import LEAST_MEMORY_BYTES, DatasetConfig
from nexa_core.config.load import load_config
from nexa_core.errors import NexaError, UserError
from nexa_core.paths import Layout
from nexa_data import tokenise
from nexa_data.data_analysis.query_data import DataQuery
from nexa_data.datasets import Dataset, list_datasets, open_dataset
from nexa_data.difference import compare
from nexa_data.encoder import load_tokenizer
from nexa_data.engines import Means
from nexa_data.prepare import prepare_dataset
from nexa_data.sequences import TokenSequences, find_tokens, read_target_counts, write_target_counts
from nexa_data.tokenise import Encoded
from nexa_data.validation import validate
from nexa_models.encoding import encode
from nexa_models.loss import summed_loss
from nexa_models.spec import describe_model
from nexa_models.table import build_model
from nexa_models.token_rows import TokenRows
from nexa_ops.preflight import examine
from nexa_train.train import run
from tests.folders import llama
from tests.labs import WORDS, make_config
from tests.test_prepare_processes import digests_below, run_prepare
from tests.test_training import STEP, files_of, killed, losses_of

WIDTH = 16
MODEL = {"name": "causal_lm", "parameters": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_tokens": 16}}


def write_documents(root: Path, count: int = 80) -> None:
    draw = random.Random(0)
    texts = [f"{index}: {' '.join(draw.choices(WORDS, k=draw.randint(0, 40)))}" for index in range(count)]
    texts += ["caf\u00e9 <|eos|> \u4e2d\u6587  \U0001f600", "x", "\n\n."]
    path = root / "data" / "raw" / "documents.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def dataset_settings(*, width: int | None = WIDTH, version: str = "v1", **changes: Any) -> dict[str, Any]:
    output = {"name": "pretrain", "rows_per_shard": 30, "val": 0.1, "test": 0.1}
    return {
        "name": "docs",
        "version": version,
        "source": {"name": "files", "path": "data/raw/documents.jsonl"},
        "rows": {"name": "pairs", "completion": "text"},
        "output": output if width is None else {**output, "sequence_tokens": width},
        "tokenizer": {"vocab_size": 320},
        **changes,
    }


def make(root: Path, *, replace: bool = False, **changes: Any) -> Dataset:
    value = dataset_settings(**changes)
    prepare_dataset(DatasetConfig.model_validate_json(json.dumps(value)), Layout(root), replace=replace)
    return open_dataset(Layout(root), "docs", value["version"])


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pristine")
    write_documents(root)
    make(root)
    return root


@pytest.fixture
def lab(pristine: Path, tmp_path: Path) -> Layout:
    shutil.copytree(pristine, tmp_path / "lab")
    return Layout(tmp_path / "lab")


def opened(lab: Layout) -> Dataset:
    return open_dataset(lab, "docs", "v1")


def flat(lists: Iterable[list[Any]]) -> list[Any]:
    return list(chain.from_iterable(lists))


def expected_tokens(dataset: Dataset, shard: str) -> list[list[int]]:
    """The documents of a shard, encoded one by one by the tokenizer itself."""
    tokenizer = load_tokenizer(dataset.tokenizer_json() or "")
    begin, end = dataset.sequence_marks
    texts = dataset.read_split(shard)["completion"].to_pylist()
    return [[begin, *tokenizer.encode(text, add_special_tokens=False).ids, end] for text in texts]


# What lies in a shard


def test_a_shards_tokens_are_its_documents_encoded_one_by_one(lab: Layout) -> None:
    dataset = opened(lab)
    assert len(dataset.training_splits) > 1
    for shard in dataset.training_splits:
        (found,) = dataset.sequence_shards([shard])
        table = parquet.read_table(found.path)
        lengths = [len(tokens) for tokens in table["tokens"].to_pylist()]
        assert set(lengths[:-1]) == {WIDTH}
        assert 0 < lengths[-1] <= WIDTH
        documents = expected_tokens(dataset, shard)
        assert table["tokens"].combine_chunks().flatten().to_pylist() == flat(documents)
        record = dataset.manifest["sequences"]["shards"][shard]
        assert record["tokens"] == sum(lengths)
        assert record["documents"] == len(documents)
        assert record["rows"] == len(table)


def test_the_boundaries_lead_from_each_document_to_its_tokens(lab: Layout) -> None:
    dataset = opened(lab)
    for shard in dataset.training_splits:
        ids = dataset.read_split(shard)["row_id"].to_pylist()
        expected = dict(zip(ids, expected_tokens(dataset, shard), strict=True))
        rebuilt: dict[str, list[int]] = {}
        (found,) = dataset.sequence_shards([shard])
        for row in parquet.read_table(found.path).to_pylist():
            ends = [*row["starts"][1:], len(row["tokens"])]
            assert row["starts"][0] == 0
            assert row["num_begun"] == row["offsets"].count(0)
            num_ended = sum(token == dataset.sequence_marks[1] for token in row["tokens"])
            assert row["num_targets"] == len(row["tokens"]) - num_ended
            for row_id, start, end, offset in zip(row["row_ids"], row["starts"], ends, row["offsets"], strict=True):
                before = rebuilt.setdefault(row_id, [])
                assert len(before) == offset
                before += row["tokens"][start:end]
        assert rebuilt == expected
        assert list(rebuilt) == ids


@pytest.mark.parametrize("group_rows", [1, 3, 10_000])
def test_the_mapped_file_reads_as_arrow_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_rows: int
) -> None:
    monkeypatch.setattr(tokenise, "GROUP_ROWS", group_rows)
    write_documents(tmp_path)
    dataset = make(tmp_path)
    shards = dataset.sequence_shards()
    sequences = TokenSequences(shards, width=WIDTH)
    rows = [row for shard in shards for row in parquet.read_table(shard.path)["tokens"].to_pylist()]
    assert len(sequences) == len(rows)
    assert max(len(shard.offsets) for shard in shards) == max(
        -(-parquet.read_metadata(shard.path).num_rows // group_rows) for shard in shards
    )
    lasts = set((np.cumsum([parquet.read_metadata(shard.path).num_rows for shard in shards]) - 1).tolist())
    for index, row in enumerate(rows):
        assert sequences.read(index).tolist() == row
        following = [] if index in lasts else rows[index + 1][:1]
        assert sequences.read(index, following=True).tolist() == row + following
    assert np.concatenate(list(sequences.blocks())).tolist() == flat(rows)
    assert sequences.token_counts_N.tolist() == [len(row) for row in rows]


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    cuts=st.sets(st.integers(1, 29)),
    width=st.integers(2, 12),
    group_rows=st.integers(1, 5),
)
@settings(deadline=None, max_examples=150)
def test_however_the_documents_come_the_row_groups_are_the_same(
    lengths: list[int], cuts: set[int], width: int, group_rows: int
) -> None:
    def some(first: int, last: int) -> Encoded:
        tokens = np.concatenate([np.arange(each, dtype=np.int32) + 100 * index for index, each in enumerate(lengths)])
        ends = np.cumsum([0, *lengths])
        ids = pyarrow.array([str(index) for index in range(first, last)], pyarrow.string())
        return Encoded(ids, tokens[ends[first] : ends[last]], np.array(lengths[first:last], dtype=np.int64))

    edges = sorted({0, len(lengths), *(cut for cut in cuts if cut < len(lengths))})
    parts = [some(first, last) for first, last in pairwise(edges)]
    whole, cut = (
        list(tokenise._cut(iter(each), group_rows * width, width)) for each in ([some(0, len(lengths))], parts)
    )
    assert whole == cut
    assert {len(table) for table in whole[:-1]} <= {group_rows}
    pieces = [
        (row_id, offset, row["tokens"][start])
        for table in whole
        for row in table.to_pylist()
        for row_id, start, offset in zip(row["row_ids"], row["starts"], row["offsets"], strict=True)
    ]
    assert all(first == 100 * int(row_id) + offset for row_id, offset, first in pieces)
    assert [int(row_id) for row_id, offset, _ in pieces if offset == 0] == list(range(len(lengths)))


# Nothing stale, nothing half


@pytest.mark.parametrize(
    "means",
    [Means(), Means(memory_limit_bytes=LEAST_MEMORY_BYTES), Means(engine="ray")],
    ids=["all cores", "one", "ray"],
)
def test_processes_beside_give_the_bytes_of_one(
    lab: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, means: Means
) -> None:
    monkeypatch.setattr(tokenise, "PARALLEL_FROM_BYTES", 0)
    write_documents(tmp_path / "other")
    config = DatasetConfig.model_validate_json(json.dumps(dataset_settings()))
    prepare_dataset(config, Layout(tmp_path / "other"), means=means)
    assert digests_below(tmp_path / "other") == digests_below(lab.root)


# Six renames come before: of the shards' documents, which wait under another name first, and what is held out.
@pytest.mark.parametrize("kill_at", [8, 12, 13, 14, 15])
def test_killed_at_any_write_it_ends_with_the_same_bytes(tmp_path: Path, pristine: Path, kill_at: int) -> None:
    write_documents(tmp_path)
    config = {"datasets": [dataset_settings()]}
    assert run_prepare(tmp_path, config, kill_at=kill_at) == -signal.SIGKILL
    assert list_datasets(Layout(tmp_path)) == []
    assert run_prepare(tmp_path, config) == 0
    assert digests_below(tmp_path) == digests_below(pristine)


def test_the_second_time_there_is_nothing_to_do_and_a_damaged_shard_is_made_again(lab: Layout) -> None:
    before = digests_below(lab.root)
    value = DatasetConfig.model_validate_json(json.dumps(dataset_settings()))
    assert not prepare_dataset(value, lab).is_new
    path = opened(lab).sequence_shards()[1].path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"pretrain/002.parquet has other bytes"):
        opened(lab).sequence_shards()
    assert prepare_dataset(value, lab).is_new
    assert digests_below(lab.root) == before


def test_sequences_of_another_length_replace_documents_and_shards_that_are_left_over(lab: Layout) -> None:
    with pytest.raises(UserError, match=r"sequence_tokens was 16 and is 64"):
        make(lab.root, width=64)
    dataset = make(lab.root, width=64, replace=True)
    assert dataset.sequence_tokens == 64
    folder = lab.processed / "training"
    assert len(list((folder / "documents").iterdir())) == len(dataset.training_splits)
    dataset = make(lab.root, width=None, replace=True)
    assert list((folder / "documents").iterdir()) == []
    assert DataQuery(lab.root).get_pretrain_dataset("001").columns.tolist() == ["row_id", "completion", "extra_json"]


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of documents that are encoded, as that happens."""
    names: list[str] = []
    encode = tokenise._encode_group

    def told(task: tokenise.Task, **means: Any) -> Encoded:
        names.append(task[0].name)
        return encode(task, **means)

    monkeypatch.setattr(tokenise, "_encode_group", told)
    return names


@pytest.fixture
def loaded(lab: Layout) -> Layout:
    """A laboratory whose tokenizer does not change with the documents."""
    shutil.copy(lab.absolute(opened(lab).manifest["tokenizer"]["path"]), lab.root / "tokenizer.json")
    make(lab.root, tokenizer=LOADED, replace=True)
    return lab


LOADED = {"path": "tokenizer.json"}


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_only_shards_whose_documents_changed_are_encoded_anew(
    loaded: Layout, tmp_path: Path, encoded: list[str], version: str
) -> None:
    write_documents(loaded.root, count=90)
    dataset = make(loaded.root, tokenizer=LOADED, version=version, replace=True)
    assert set(encoded) == {f"docs_{version}_{shard}.parquet" for shard in dataset.training_splits[2:]}
    assert validate(dataset).holds, validate(dataset).as_text()
    other = tmp_path / "other"
    write_documents(other, count=90)
    shutil.copy(loaded.root / "tokenizer.json", other)
    make(other, tokenizer=LOADED, version=version)
    assert digests_below(loaded.root) == digests_below(other)


@pytest.mark.parametrize("what", ["width", "marks", "code", "libraries", "tokenizer"])
def test_shards_that_were_made_otherwise_are_encoded_anew(loaded: Layout, encoded: list[str], what: str) -> None:
    tokenizer, width = LOADED, WIDTH
    path = opened(loaded).manifest_path
    manifest = json.loads(path.read_text())
    if what == "width":
        width = 32
    elif what == "marks":
        tokenizer = {**LOADED, "end": "<|pad|>"}
    elif what == "tokenizer":
        value = json.loads((loaded.root / "tokenizer.json").read_text())
        value["model"]["merges"] = value["model"]["merges"][:10]
        (loaded.root / "tokenizer.json").write_text(json.dumps(value))
    else:
        manifest[what] = "0" * 64 if what == "code" else {**manifest[what], "tokenizers": "0.0.1"}
        path.write_text(json.dumps(manifest))
    write_documents(loaded.root, count=90)
    dataset = make(loaded.root, tokenizer=tokenizer, width=width, replace=True)
    assert len(set(encoded)) == len(dataset.training_splits)


def test_a_damaged_shard_does_not_serve_again(loaded: Layout, encoded: list[str]) -> None:
    path = opened(loaded).sequence_shards()[0].path
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    dataset = make(loaded.root, tokenizer=LOADED)
    assert set(encoded) == {"docs_v1_001.parquet"}
    assert validate(dataset).holds


@pytest.mark.parametrize("kill_at", [24, 26, 28])
def test_killed_while_shards_serve_again_what_stood_comes_back(loaded: Layout, kill_at: int) -> None:
    before = digests_below(loaded.root)
    raw = loaded.root / "data" / "raw" / "documents.jsonl"
    documents = raw.read_bytes()
    write_documents(loaded.root, count=90)
    config = {"datasets": [dataset_settings(tokenizer=LOADED)]}
    assert run_prepare(loaded.root, config, kill_at=kill_at, replace=True) == -signal.SIGKILL
    raw.write_bytes(documents)
    assert run_prepare(loaded.root, config) == 0
    assert digests_below(loaded.root) == before


def test_another_tokenizer_in_the_same_file_is_another_dataset(lab: Layout) -> None:
    path = lab.root / "tokenizer.json"
    shutil.copy(lab.absolute(opened(lab).manifest["tokenizer"]["path"]), path)
    first = make(lab.root, tokenizer={"path": "tokenizer.json"}, replace=True)
    tokens = np.concatenate(list(TokenSequences(first.sequence_shards(), width=WIDTH).blocks()))
    assert not prepare_dataset(
        DatasetConfig.model_validate_json(json.dumps(dataset_settings(tokenizer={"path": "tokenizer.json"}))), lab
    ).is_new
    value = json.loads(path.read_text())
    value["model"]["merges"] = value["model"]["merges"][:10]
    path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"tokenizer.json has other content"):
        make(lab.root, tokenizer={"path": "tokenizer.json"})
    second = make(lab.root, tokenizer={"path": "tokenizer.json"}, replace=True)
    others = np.concatenate(list(TokenSequences(second.sequence_shards(), width=WIDTH).blocks()))
    assert len(others) > len(tokens)
    assert others.tolist() == flat(flat(expected_tokens(second, shard)) for shard in second.training_splits)


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [
        ({"path": "nowhere.json"}, r"nowhere.json cannot be read"),
        ({"path": "data/raw/documents.jsonl"}, r"documents.jsonl cannot be used"),
        ({"path": "tokenizer.json", "end": "<|eo|>"}, r"tokenizer.end: .* no token '<\|eo\|>'.*<\|eos\|>"),
        ({"path": "tokenizer.json", "end": "a"}, r"tokenizer.end: .* 'a' out of mere text"),
        ({"path": "tokenizer.json", "begin": "a"}, r"tokenizer.begin: .* 'a' out of mere text"),
        (
            {"path": "tokenizer.json", "begin": "<|eos|>"},
            r"begin '<\|eos\|>' and tokenizer.end '<\|eos\|>' are the same id, 2.*Set `begin: null`.*: <\|pad\|>, <\|bos\|>\.$",
        ),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused_before_anything_is_replaced(
    lab: Layout, tokenizer: dict[str, str], says: str
) -> None:
    shutil.copy(lab.absolute(opened(lab).manifest["tokenizer"]["path"]), lab.root / "tokenizer.json")
    before = digests_below(lab.root)
    with pytest.raises(UserError, match=says):
        make(lab.root, tokenizer=tokenizer, replace=True)
    assert digests_below(lab.root) == before


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        ("output: {name: pretrain, sequence_tokens: 8}", r"data.yaml:5: .*sequence_tokens.* need a `tokenizer:`"),
        ("output: {name: pretrain}\n    tokenizer: {end: b}", r"data.yaml:6: 'datasets.0.tokenizer.path' is missing"),
        ("output: {name: pretrain}\n    tokenizer: {path: a, vocab_size: 300}", r"Unknown key .*vocab_size"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_their_line(tmp_path: Path, lines: str, says: str) -> None:
    path = tmp_path / "data.yaml"
    head = "datasets:\n  - name: a\n    source: {name: digits}\n    rows: {name: pairs, completion: text}\n    "
    path.write_text(head + lines + "\n")
    with pytest.raises(UserError, match=says):
        load_config(path, DataConfig)


# What people see


def test_a_shard_is_a_table_of_sequences(lab: Layout) -> None:
    frame = DataQuery(lab.root).get_pretrain_dataset(shard="001")
    assert frame.columns.tolist() == ["tokens", "row_ids", "starts", "offsets", "num_targets", "num_begun"]
    assert frame.tokens[0].dtype == np.int32
    documents = DataQuery(lab.root).sql("select row_id from docs_v1")
    assert set(np.concatenate(frame.row_ids)) <= set(documents.row_id)


def test_the_croissant_file_leads_to_the_documents_of_the_shards(lab: Layout) -> None:
    (path,) = lab.processed.rglob("*croissant*.json")
    (shards,) = [each for each in json.loads(path.read_text())["distribution"] if each["@id"] == "shards"]
    found = {path.name for path in (lab.processed / "training").glob(shards["includes"])}
    assert found == {opened(lab).split_path(shard).name for shard in opened(lab).training_splits}


def test_validation_holds_the_sequences_against_documents_and_tokenizer(lab: Layout) -> None:
    assert validate(opened(lab)).holds, validate(opened(lab)).as_text()
    for name, change in {
        "has other ids": lambda table: table.set_column(
            0,
            table.schema.field(0),
            pyarrow.array([[7] * len(each) for each in table["tokens"].to_pylist()], table.schema[0].type),
        ),
        "other documents": lambda table: table.slice(1),
        "other numbers of targets": lambda table: table.set_column(
            4, table.schema.field(4), pyarrow.array([1] * len(table), pyarrow.int32())
        ),
        "ids do not lie": lambda table: table,
    }.items():
        write_shard_anew(lab, change, keep_offsets=name == "ids do not lie")
        found = validate(opened(lab))
        assert [each.check for each in found.findings if not each.holds] == ["sequences"]
        assert name in found.as_text()


@pytest.mark.parametrize("group_rows", [3, 10_000])
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tokens: [*tokens[:-2], 7 if tokens[-2] != 7 else 8, tokens[-1]], "001: document {} has other ids"),
        (lambda tokens: tokens[:-1], "001: the last document does not end"),
    ],
)
def test_validation_looks_at_the_last_document_of_a_shard(lab: Layout, change: Any, says: str, group_rows: int) -> None:
    write_shard_anew(lab, lambda table: table, keep_offsets=False, group_rows=group_rows)
    assert validate(opened(lab)).holds, validate(opened(lab)).as_text()

    def changed(table: pyarrow.Table) -> pyarrow.Table:
        *tokens, last = table["tokens"].to_pylist()
        assert len(last) > 2
        return table.set_column(0, table.schema.field(0), pyarrow.array([*tokens, change(last)], table.schema[0].type))

    write_shard_anew(lab, changed, keep_offsets=False, group_rows=group_rows)
    text = validate(opened(lab)).as_text()
    assert text.count(says.format(opened(lab).read_split("001")["row_id"][-1].as_py())) == 1


def write_shard_anew(lab: Layout, change: Any, *, keep_offsets: bool, group_rows: int = 10_000) -> None:
    """Put another table in a shard's place, with a manifest that knows no better."""
    dataset = opened(lab)
    path = dataset.sequence_shards()[0].path
    table = change(parquet.read_table(path))
    manifest = json.loads(dataset.manifest_path.read_text())
    record = manifest["sequences"]["shards"]["001"]
    parquet.write_table(
        table,
        path,
        row_group_size=group_rows,
        compression="zstd" if keep_offsets else "none",
        use_dictionary=False,
        data_page_size=2**30,
    )
    if not keep_offsets:
        record["offsets"] = [{"byte": at, "rows": rows} for at, rows in find_tokens(path)]
        record["tokens"] = len(table["tokens"].combine_chunks().flatten())
    record |= {"bytes": path.stat().st_size, "sha256": digests.of_file(path)}
    dataset.manifest_path.write_text(json.dumps(manifest))


def test_validation_counts_the_targets_of_each_token(lab: Layout) -> None:
    dataset = opened(lab)
    path = dataset.target_counts()
    assert path is not None
    counts = read_target_counts(path)
    counts[5] += 1
    write_target_counts(path, counts)
    manifest = json.loads(dataset.manifest_path.read_text())
    manifest["sequences"]["targets"] |= {"bytes": path.stat().st_size, "sha256": digests.of_file(path)}
    dataset.manifest_path.write_text(json.dumps(manifest))
    assert "the token 5 is to be predicted more or less often" in validate(opened(lab)).as_text()


def test_versions_are_compared_by_their_documents(lab: Layout) -> None:
    (lab.root / "tokenizers").mkdir()
    other = make(lab.root, version="v2", replace=True)
    assert list_datasets(lab) == [other]
    write_documents(lab.root, count=81)
    value = dataset_settings(version="v3", output={"name": "training"})
    prepare_dataset(DatasetConfig.model_validate_json(json.dumps(value)), lab)
    difference = compare(other, open_dataset(lab, "docs", "v3"))
    assert (difference.num_same, difference.num_added, difference.num_removed) == (83, 1, 0)


# Training


def config_of(**sections: Any) -> Any:
    training = {"batch_size": 8, **sections.pop("training", {})}
    return make_config(
        "causal_lm", data={"dataset": "docs"}, model=sections.pop("model", MODEL), training=training, **sections
    )


@pytest.mark.parametrize("width", [7, 16, 1024])
def test_each_token_of_a_document_but_its_first_is_learned_once(tmp_path: Path, width: int) -> None:
    write_documents(tmp_path)
    dataset = make(tmp_path, width=width)
    spec = describe_model(
        config_of(model={**MODEL, "parameters": {**MODEL["parameters"], "max_tokens": 1024}}).model, dataset
    )
    rows = TokenRows.of(dataset, spec)
    documents = encode(dataset.read_split("train"), spec)
    batches = [rows.batch(part) for part in np.array_split(np.arange(len(rows)), 5)]
    learned = np.sort(np.concatenate([batch.targets.numpy() for batch in batches]))
    assert learned.tolist() == sorted(documents.targets.tolist())
    assert sum(rows.target_counts_N) == len(learned)
    assert rows.count_targets(400).tolist() == np.bincount(learned, minlength=400).tolist()
    assert replace(rows, counts_path=None).count_targets(400).tolist() == rows.count_targets(400).tolist()
    assert rows.begun_N.sum() == len(dataset.read_split("train"))
    for batch, part in zip(batches, np.array_split(np.arange(len(rows)), 5), strict=True):
        assert batch.num_tokens == rows.token_counts_N[part].sum()
        assert np.bincount(batch.target_rows, minlength=len(part)).tolist() == rows.target_counts_N[part].tolist()


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_in_long_sequences_the_loss_is_that_of_the_documents_one_by_one(tmp_path: Path, architecture: str) -> None:
    write_documents(tmp_path)
    dataset = make(tmp_path, width=8192)
    parameters = {**MODEL["parameters"], "max_tokens": 8192, "dropout": 0.0, "architecture": architecture}
    spec = describe_model(config_of(model={**MODEL, "parameters": parameters}).model, dataset)
    model = build_model(spec, seed=3).eval()
    rows, documents = TokenRows.of(dataset, spec), encode(dataset.read_split("train"), spec)
    assert len(rows) == len(dataset.training_splits)

    def loss(batch: Any) -> float:
        with torch.inference_mode():
            return float(summed_loss(model(**batch.inputs), batch.targets))

    together = loss(rows.batch(np.arange(len(rows))))
    alone = sum(loss(documents.batch(np.array([row]))) for row in range(len(documents)))
    assert together == pytest.approx(alone, rel=1e-5)


def test_the_targets_that_prepare_counted_are_not_counted_again(lab: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = TokenRows.of(opened(lab), describe_model(config_of().model, opened(lab)))
    monkeypatch.delattr(TokenSequences, "blocks")
    assert rows.count_targets(400).sum() == rows.target_counts_N.sum()
    path = opened(lab).target_counts()
    assert path is not None
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(UserError, match=r"target_counts/docs_v1.parquet has other bytes"):
        TokenRows.of(opened(lab), describe_model(config_of().model, opened(lab)))


def test_a_dataset_of_before_targets_were_counted_trains_to_the_same_bytes(
    lab: Layout, uninterrupted: dict[str, bytes]
) -> None:
    path = opened(lab).manifest_path
    manifest = json.loads(path.read_text())
    del manifest["sequences"]["targets"]
    path.write_text(json.dumps(manifest))
    assert files_of(run(config_of(**RUN), layout=lab).run.path) == uninterrupted


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_the_processes_of_a_machine_hold_the_digests_together(lab: Layout, damaged: int) -> None:
    paths = [shard.path for shard in opened(lab).sequence_shards()]
    whole = paths[damaged].read_bytes()
    paths[damaged].write_bytes(whole[:-1] + b"?")
    found = 0
    for share in range(2):
        try:
            opened(lab).sequence_shards(share=share, num_shares=2)
        except UserError:
            found += 1
    assert found == 1
    paths[damaged].write_bytes(whole[:-1])
    for share in range(2):
        with pytest.raises(UserError, match=r"bytes instead of"):
            opened(lab).sequence_shards(share=share, num_shares=2)


@pytest.mark.parametrize("damaged", [0, 1])
@pytest.mark.parametrize("place", ["tokens", "end"])
def test_two_processes_do_not_train_on_a_damaged_shard_whichever_of_them_sees_it(
    lab: Layout, capfd: pytest.CaptureFixture[str], damaged: int, place: str
) -> None:
    shard = opened(lab).sequence_shards()[damaged]
    data = bytearray(shard.path.read_bytes())
    data[shard.offsets[0][0] + 4 if place == "tokens" else -1] ^= 1
    shard.path.write_bytes(data)
    training = {**RUN["training"], "distributed": {"world_size": 2}}
    with pytest.raises(NexaError, match=r"ended with exit code [24]"):  # of its data, or of the process that saw it
        run(config_of(training=training), layout=lab)
    assert f"pretrain/00{damaged + 1}.parquet has other bytes" in capfd.readouterr().err
    assert not list(lab.runs.rglob("lineage.json"))


RUN = {"training": {"epochs": 3, "checkpoints": {"every_steps": 3}}}


@pytest.fixture(scope="module")
def uninterrupted(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("uninterrupted") / "lab"
    shutil.copytree(pristine, root)
    result = run(config_of(**RUN), layout=Layout(root))
    losses = losses_of(result.run)
    assert losses[-1] < losses[0]
    assert result.manifest["metrics"]["gain_over_unigram"] > 0
    return files_of(result.run.path)


@pytest.mark.parametrize("count", [1, 8])
def test_a_killed_run_resumes_to_the_bytes_of_an_uninterrupted_one(
    lab: Layout, uninterrupted: dict[str, bytes], count: int
) -> None:
    assert killed(config_of(**RUN), lab, STEP, count)
    assert files_of(run(config_of(**RUN), layout=lab, resume=True).run.path) == uninterrupted


def test_two_processes_give_the_bytes_of_one(lab: Layout, uninterrupted: dict[str, bytes]) -> None:
    training = {**RUN["training"], "distributed": {"world_size": 2}}
    assert files_of(run(config_of(training=training), layout=lab).run.path) == uninterrupted


def test_the_empty_rows_that_a_compiled_model_gets_change_nothing_else(lab: Layout) -> None:
    dataset = opened(lab)
    rows = TokenRows.of(dataset, describe_model(config_of().model, dataset))
    part = np.array([len(rows) - 1, 0])
    batch, filled = rows.batch(part), replace(rows, num_rows=4).batch(part)
    assert filled.inputs["ids"].shape == (4, WIDTH)
    assert torch.equal(filled.targets, batch.targets)
    for name in ("ids", "positions", "documents"):
        assert torch.equal(filled.inputs[name][:2], batch.inputs[name])
    assert (filled.inputs["documents"][2:] == 0).all()
    assert torch.equal(filled.inputs["at"], batch.inputs["at"])


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"training": {"packing": {}}}, r"training.packing has nothing to do"),
        ({"training": {"length_grouping": True}}, r"training.length_grouping has nothing to do"),
        (
            {"model": {**MODEL, "parameters": {**MODEL["parameters"], "max_tokens": 15}}},
            r"sequences of 16 tokens .* reads 15; set model.parameters.max_tokens to 16",
        ),
    ],
)
def test_a_setting_that_does_not_fit_the_sequences_is_refused(lab: Layout, sections: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(config_of(**sections), layout=lab)
    with pytest.raises(UserError, match=says):
        examine(config_of(**sections), lab)


def test_a_model_that_is_brought_along_reads_sequences_of_its_own_tokenizer_alone(lab: Layout, tmp_path: Path) -> None:
    llama(tmp_path / "llama")
    model = {"name": "causal_lm", "path": str(tmp_path / "llama"), "parameters": {"max_tokens": 64}}
    with pytest.raises(UserError, match=r"another tokenizer than the model's"):
        run(config_of(model=model, training={"max_steps": 2}), layout=lab)
    special = json.loads((tmp_path / "llama" / "tokenizer_config.json").read_text())
    tokenizer = {"path": str(tmp_path / "llama" / "tokenizer.json"), "end": special["eos_token"]}
    own = {**tokenizer, "begin": special["bos_token"]}
    make(lab.root, tokenizer={**tokenizer, "begin": None}, replace=True)
    with pytest.raises(UserError, match=r"Set tokenizer.begin and tokenizer.end"):
        run(config_of(model=model, training={"max_steps": 2}), layout=lab)
    make(lab.root, tokenizer=own, replace=True)
    result = run(config_of(model=model, training={"max_steps": 2}), layout=lab)
    assert result.manifest["metrics"]["loss"] > 0


def test_preflight_counts_the_sequences_and_shows_them(lab: Layout) -> None:
    forecast = examine(config_of(), lab).forecast
    assert forecast is not None
    dataset = opened(lab)
    train = forecast.rows[0]
    assert train.num_rows == len(dataset.read_split("train"))
    assert train.num_tokens == sum(record["tokens"] for record in dataset.manifest["sequences"]["shards"].values())
    assert train.num_targets == train.num_tokens - train.num_rows
    assert len(forecast.masks) == 3
