"""A student learns from what was stored of its teacher: of the same tokenizer, or not at all."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import pytest
import torch

from nexa_core import digests, durable
from nexa_core.config import RunConfig
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data import manifests
from nexa_data.datasets import find_dataset, open_dataset
from nexa_data.encoder import encoding_digest
from nexa_data.rows import SCHEMAS
from nexa_distill.outputs import SCHEMA
from nexa_llm.logprobs import TokenIds
from nexa_models.encoding import Sequences, encode
from nexa_models.stored import PlacesInTheMaking
from nexa_models.teacher import load_teacher
from nexa_ops.preflight import examine
from nexa_train.stored_answers import with_stored
from nexa_train.train import run
from tests.test_distill_training import losses, student, teach

LEARN = {"dataset": "learn", "version": "v1", "category": "distillation"}
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Path]:
    """A laboratory with a trained teacher."""
    return teach(tmp_path_factory.mktemp("stored"))


def store_answers(
    layout: Layout,
    teacher_path: Path,
    *,
    num_top: int = 4,
    num_edited: int = 0,
    change: Callable[[Rows], None] = lambda rows: None,
) -> Rows:
    """The training pairs as if the teacher had answered them, with its log probabilities, as the datasets stored_v1 and learn_v1.

    Args:
        num_edited: training pairs, the first ones, that are told to be a person's own words.
        change: of the answers to the training prompts.
    """
    teacher = load_teacher(teacher_path, max_tokens=32)
    assert teacher.spec.tokenizer is not None
    pairs = open_dataset(layout, "pairs", "v1")
    answers, rows = {}, {}
    for split in ("train", "val"):
        table = pairs.read_split(split)
        encoded = encode(table, teacher.spec)
        answers[split], rows[split] = [], []
        for number, row in enumerate(table.to_pylist()):
            batch = encoded.batch(np.array([number]))
            with torch.no_grad():
                log_probs = torch.log_softmax(teacher.model(**batch.inputs), -1)
            top, ids = log_probs.topk(num_top, -1)
            key = f"request {row['row_id']}"
            made: dict[str, Any] = dict.fromkeys(SCHEMA.names)
            made |= {name: row[name] for name in ("row_id", "prompt", "completion")}
            made |= {"status": "answered", "request_sha256": key, "token_ids": batch.targets.tolist()}
            made |= {"top_ids": ids.tolist(), "top_logprobs": top.tolist()}
            made["tail_mass"] = (1 - top.exp().sum(-1)).clamp(min=0).tolist()
            made["tokenizer_sha256"] = encoding_digest(teacher.spec.tokenizer)
            answers[split].append(made)
            edited = {"answer_edited": True} if split == "train" and number < num_edited else {}
            rows[split].append({**row, "extra_json": json.dumps({"request_sha256": key, **edited})})
    change(answers["train"])
    folder = layout.processed / "distillation"
    learn = {
        split: write(layout, folder / "sft_datasets" / f"learn_v1.{split}.parquet", rows[split], SCHEMAS["pairs"])
        for split in rows
    }
    write_manifest(layout, "learn", {**learn, "test": learn["val"]})
    write_outputs(layout, "stored", answers["train"] + answers["val"])
    return answers["train"]


def write_outputs(layout: Layout, name: str, rows: Rows) -> None:
    path = layout.processed / "distillation" / "teacher_outputs" / f"{name}_v1.parquet"
    write_manifest(layout, name, {"teacher_outputs": write(layout, path, rows, SCHEMA)})


def write(layout: Layout, path: Path, rows: Rows, schema: pyarrow.Schema) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)
    return manifests.describe_file(layout, path, rows=len(rows))


def write_manifest(layout: Layout, name: str, splits: dict[str, Any], **more: Any) -> None:
    base = open_dataset(layout, "pairs", "v1").manifest
    manifest = {
        **base,
        "category": "distillation",
        "config": {"output": {"name": "x"}},
        "rejects": None,
        "scores": None,
    }
    manifest |= {"name": name, "version": "v1", "splits": splits, "fingerprint": f"of {name}", **more}
    durable.write_json(layout.dataset_manifests("distillation") / f"{name}_v1.json", manifest)


def from_stored(stored: Any = "stored_v1", loss: dict[str, Any] | None = None, **more: Any) -> RunConfig:
    return student(None, loss or {"name": "forward_kl"}, data=LEARN, distillation={"stored": stored}, **more)


def test_everything_stored_is_as_good_as_the_teacher(taught: tuple[Layout, Path]) -> None:
    layout, teacher = taught
    store_answers(layout, teacher, num_top=300)  # the whole vocabulary
    loss = {"name": "reverse_kl", "weight": 0.7}
    stored = run(from_stored(loss=loss), layout=layout)
    live = run(student(teacher, loss, data=LEARN), layout=layout)
    assert losses(stored.run) == pytest.approx(losses(live.run), rel=1e-3)
    lineage = json.loads(stored.run.lineage.read_text())
    outputs = find_dataset(layout, "stored_v1")
    assert lineage["inputs"]["distillation"]["stored"] == outputs.fingerprint
    assert layout.relative(outputs.manifest_path) in lineage["parents"]


def reverse_some(rows: Rows, number: int) -> None:
    for row in rows[:number]:
        row["token_ids"] = row["token_ids"][::-1]


def test_the_likeliest_tokens_are_enough_to_learn_from(taught: tuple[Layout, Path]) -> None:
    layout, teacher = taught
    store_answers(layout, teacher, num_top=8, change=lambda rows: reverse_some(rows, 3))
    training = {"max_steps": 12, "optimizer": {"name": "adamw", "lr": 0.03}}
    config = from_stored(loss={"name": "forward_kl", "weight": 1.0}, training=training)
    found = losses(run(config, layout=layout).run)
    assert found[-1] < 0.8 * found[0]


def test_answers_in_other_tokens_are_refused(taught: tuple[Layout, Path]) -> None:
    layout, teacher = taught
    store_answers(layout, teacher, change=lambda rows: reverse_some(rows, 60))
    with pytest.raises(UserError, match="are encoded in other tokens than the teacher wrote"):
        run(from_stored(), layout=layout)
    store_answers(layout, teacher, change=lambda rows: reverse_some(rows, 60), num_edited=60)
    run(from_stored(training={"max_steps": 1}), layout=layout)  # a person's own words are no other tokenizer's
    with pytest.raises(UserError, match="have no log probabilities in stored_v1"):
        run(student(None, {"name": "forward_kl"}, distillation={"stored": "stored_v1"}), layout=layout)


# Whose tokenizer.


def named(digest: str | None, rows: slice = slice(None)) -> Callable[[Rows], None]:
    def change(given: Rows) -> None:
        for row in given[rows]:
            row["tokenizer_sha256"] = digest

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            named("0123456789abcdef" * 4),
            r"of 2 tokenizers.*0123456789abcdef \(\d+ rows\).*the student's is \w{16}: an id",
        ),
        (
            named("0123456789abcdef" * 4, slice(3)),
            r"of 2 tokenizers.*0123456789abcdef \(3 rows\).*filter\.tokenizer\.path",
        ),
        (
            named(None, slice(2)),
            r"2 rows of stored_v1 do not say which tokenizer.*write its digest into that column: \w{64}$",
        ),
    ],
)
def test_ids_of_another_tokenizer_are_refused(
    taught: tuple[Layout, Path], change: Callable[[Rows], None], said: str
) -> None:
    layout, teacher = taught
    store_answers(layout, teacher, change=change)
    with pytest.raises(UserError, match=said):
        run(from_stored(), layout=layout)


def test_one_other_tokenizer_is_named_beside_the_students(taught: tuple[Layout, Path]) -> None:
    layout, teacher = taught
    write_outputs(layout, "foreign", store_answers(layout, teacher, change=named("f" * 64)))
    tokenizer = load_teacher(teacher, max_tokens=32).spec.tokenizer
    assert tokenizer is not None
    with pytest.raises(
        UserError, match=f"foreign_v1 are of the tokenizer {'f' * 16}.*student's is {encoding_digest(tokenizer)[:16]}"
    ):
        run(from_stored("foreign_v1"), layout=layout)


def test_the_same_tokenizer_in_another_layout_is_the_same(taught: tuple[Layout, Path], tmp_path: Path) -> None:
    layout, teacher = taught
    tokenizer = load_teacher(teacher, max_tokens=32).spec.tokenizer
    assert tokenizer is not None
    value = json.loads(tokenizer)
    value["model"]["merges"] = [" ".join(pair) for pair in value["model"]["merges"]]  # as older files have them
    value["truncation"] = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(value, indent=4, sort_keys=True))
    assert digests.of_file(path) != digests.of_bytes(tokenizer.encode())
    assert TokenIds(path).sha256 == encoding_digest(tokenizer)
    for digest in (TokenIds(path).sha256, digests.of_bytes(tokenizer.encode())):
        store_answers(layout, teacher, change=named(digest))
        run(from_stored(training={"max_steps": 1}), layout=layout)


# What cannot be.


def with_top_id(token_id: int) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[1]["row_id"] = "the second"
        rows[1]["top_ids"][-1][0] = token_id

    return change


def shortened(name: str) -> Callable[[Rows], None]:
    def change(rows: Rows) -> None:
        rows[1] |= {"row_id": "the second", name: rows[1][name][:-1]}

    return change


def with_a_top_less(rows: Rows) -> None:
    rows[1]["row_id"] = "the second"
    rows[1]["top_logprobs"][0] = rows[1]["top_logprobs"][0][:-1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_top_id(50_257), "have the id 50,257, and the student's vocabulary has 300 ids"),
        (with_top_id(300), "have the id 300, and the student's vocabulary has 300 ids"),
        (with_top_id(-1), "have the id -1, and"),
        (shortened("top_ids"), "token_ids and"),
        (shortened("tail_mass"), "token_ids and"),
        (with_a_top_less, "other numbers of top_ids and top_logprobs"),
    ],
)
def test_log_probabilities_that_cannot_be_are_refused(
    taught: tuple[Layout, Path], change: Callable[[Rows], None], said: str
) -> None:
    layout, teacher = taught
    store_answers(layout, teacher, change=change)
    with pytest.raises(UserError, match=f"stored_v1, row the second: .*{said}"):
        run(from_stored(), layout=layout)


# From several datasets.


def test_several_datasets_may_have_the_answers(taught: tuple[Layout, Path]) -> None:
    layout, teacher = taught
    training = {"max_steps": 4}
    rows = store_answers(layout, teacher, num_top=6)
    whole = losses(run(from_stored(training=training), layout=layout).run)
    for row in rows[::2]:  # some with fewer tokens than others, as servers give them
        row["top_ids"] = [each[:4] for each in row["top_ids"]]
        row["top_logprobs"] = [each[:4] for each in row["top_logprobs"]]
    write_outputs(layout, "narrow", rows[::2])
    write_outputs(layout, "wide", rows[1::2])
    write_outputs(layout, "joined", rows)
    both = run(from_stored(("narrow_v1", "wide_v1"), training=training), layout=layout)
    joined = losses(run(from_stored("joined_v1", training=training), layout=layout).run)
    assert losses(both.run) == joined != whole
    inputs = json.loads(both.run.lineage.read_text())["inputs"]["distillation"]
    assert inputs["stored"] == ["of narrow", "of wide"]
    with pytest.raises(
        UserError, match=r"have no log probabilities in narrow_v1\. .* name all of them, or the filtered one"
    ):
        run(from_stored("narrow_v1"), layout=layout)


def test_the_filtered_pairs_have_the_answers_of_all_their_sources(taught: tuple[Layout, Path]) -> None:
    layout, teacher = taught
    rows = store_answers(layout, teacher)
    whole = losses(run(from_stored(), layout=layout).run)
    path = layout.processed / "distillation" / "filtered" / "learn_v1.parquet"
    filtered = write(layout, path, rows, SCHEMA)
    write_manifest(layout, "learn", find_dataset(layout, "learn_v1").manifest["splits"], filtered=filtered)
    assert losses(run(from_stored("learn_v1"), layout=layout).run) == whole
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="learn_v1"):
        run(from_stored("learn_v1"), layout=layout)


def test_what_is_stored_is_never_held_as_pythons_numbers(taught: tuple[Layout, Path]) -> None:
    layout, teacher = taught
    store_answers(layout, teacher, num_top=300)
    spec, dataset = load_teacher(teacher, max_tokens=32).spec, find_dataset(layout, "learn_v1")
    rows = encode(dataset.read_split("train"), spec)
    assert isinstance(rows, Sequences)
    tracemalloc.start()
    stored = with_stored(rows, dataset, ("stored_v1",), layout, spec)[0].stored
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert stored is not None
    assert peak < 4 * (stored.top_ids.nbytes + stored.top_logprobs.nbytes)


def test_places_of_different_widths_are_filled_up() -> None:
    places = PlacesInTheMaking(at_most=9)
    for width in (1, 3, 2):
        places.add(np.full((2, width), width, np.int32), np.full((2, width), -1.0, np.float32), np.zeros(2, np.float32))
    done = places.done(np.zeros(0, np.int64))
    assert done.top_ids[::2].tolist() == [[1, -1, -1], [3, 3, 3], [2, 2, -1]]
    assert done.top_logprobs[::2].tolist() == [[-1, 0, 0], [-1, -1, -1], [-1, -1, 0]]
    assert len(done.tail_mass) == 6


def test_preflight_counts_what_is_stored(taught: tuple[Layout, Path]) -> None:
    layout, teacher = taught
    store_answers(layout, teacher, num_top=8)
    assert examine(from_stored(), layout).forecast is not None
