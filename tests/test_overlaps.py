"""Near duplicates and evaluation texts in prepared data: what is left out, what is recorded, and what evaluation makes of it."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from nexa_core.config import DataConfig, load_config
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.datasets import find_dataset
from nexa_data.funnel import NO_NEAR_DUPLICATES, show_funnel
from nexa_data.prepare import Prepared, prepare
from nexa_data.seen import Seen
from nexa_eval.evaluate import evaluate
from nexa_train.train import run
from tests.labs import MODELS, make_config

WORDS = [first + second for first in "bdfgklmnprst" for second in ("ano", "eri", "ilu", "oka", "usem", "ytti")]
NUM_ROWS, NUM_NEAR, NUM_TAKEN = 120, 20, 10


def sentence(draw: random.Random, count: int = 40) -> str:
    return " ".join(draw.choices(WORDS, k=count))


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """Raw rows: an exam of 30, and 120 others with 20 near copies and 10 that give exam questions away."""
    draw = random.Random(0)
    exam = [{"question": sentence(draw), "answer": sentence(draw, 3)} for _ in range(30)]
    rows = [{"question": sentence(draw, 60), "answer": sentence(draw, 3)} for _ in range(NUM_ROWS)]
    near = [{**row, "question": f"{row['question']} {draw.choice(WORDS)}"} for row in rows[:NUM_NEAR]]
    taken = [{"question": f"Listen: {row['question']}", "answer": "unknown"} for row in exam[:NUM_TAKEN]]
    rows += near + taken
    draw.shuffle(rows)
    layout = Layout(tmp_path)
    write_rows(layout.raw / "exam.jsonl", exam)
    write_rows(layout.raw / "rows.jsonl", rows)
    return layout


PAIRS: dict[str, Any] = {"name": "pairs", "prompt": "question", "completion": "answer"}
EXAM = {
    "name": "exam",
    "source": {"name": "files", "path": "data/raw/exam.jsonl"},
    "rows": PAIRS,
    "output": {"name": "training", "test": 0.7, "val": 0.2},
}
ROWS = {
    "name": "rows",
    "source": {"name": "files", "path": "data/raw/rows.jsonl"},
    "rows": PAIRS,
    "output": {"name": "training", "test": 0, "val": 0},
}
NEAR: dict[str, Any] = {**ROWS, "near_duplicates": {}}
CLEAN: dict[str, Any] = {**ROWS, "decontaminate": {"against": ["exam_v1"]}}


def make(layout: Layout, *datasets: dict[str, Any], replace: bool = False, **settings: Any) -> list[Prepared]:
    config = DataConfig.model_validate_json(json.dumps({"datasets": datasets, **settings}))
    return prepare(config, layout, replace=replace)


def steps_of(prepared: Prepared) -> dict[str, tuple[int, int]]:
    return {step["name"]: (step["rows_in"], step["rows_out"]) for step in prepared.manifest["steps"]}


def rejects_of(layout: Layout, prepared: Prepared) -> list[dict[str, Any]]:
    path = layout.absolute(prepared.manifest["rejects"]["path"])
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_near_duplicates_are_left_out_and_name_the_row_that_is_kept(layout: Layout) -> None:
    (made,) = make(layout, NEAR)
    total = NUM_ROWS + NUM_NEAR + NUM_TAKEN
    assert steps_of(made)["near_duplicates"] == (total, total - NUM_NEAR)
    kept = set(find_dataset(layout, "rows_v1").read_split("train")["row_id"].to_pylist())
    listed = rejects_of(layout, made)
    assert len(listed) == NUM_NEAR
    for reject in listed:
        words = reject["reason"].split()
        assert words[:3] == ["near", "duplicate", "of"]
        assert words[3].rstrip(":") in kept
        assert float(words[-1]) >= 0.8


def test_each_row_that_is_left_out_names_one_that_is_there(layout: Layout) -> None:
    rows = (layout.raw / "rows.jsonl").read_text()
    (layout.raw / "rows.jsonl").write_text(rows + rows)
    (made,) = make(layout, NEAR)
    kept = set(find_dataset(layout, "rows_v1").read_split("train")["row_id"].to_pylist())
    listed = rejects_of(layout, made)
    assert len(listed) > NUM_ROWS + NUM_NEAR
    assert {reject["reason"].split(" of ")[1][:16] for reject in listed} <= kept


def test_near_duplicates_do_not_depend_on_the_order_of_rows_and_files(layout: Layout) -> None:
    make(layout, NEAR)
    table = find_dataset(layout, "rows_v1").read_split("train")
    lines = (layout.raw / "rows.jsonl").read_text().splitlines(keepends=True)
    (layout.raw / "rows.jsonl").unlink()
    random.Random(1).shuffle(lines)
    (layout.raw / "rows").mkdir()
    for number in range(3):
        (layout.raw / "rows" / f"{3 - number}.jsonl").write_text("".join(lines[number::3]))
    shuffled = {**NEAR, "version": "v2", "source": {"name": "files", "path": "data/raw/rows"}}
    make(layout, shuffled)
    other = find_dataset(layout, "rows_v2").read_split("train")
    assert sorted(table.to_pylist(), key=str) == sorted(other.to_pylist(), key=str)


def test_rows_that_repeat_an_evaluation_text_are_left_out_and_both_manifests_say_so(layout: Layout) -> None:
    exam, made = make(layout, EXAM, CLEAN)
    test_ids = {
        f"exam_v1/{row_id}" for row_id in find_dataset(layout, "exam_v1").read_split("test")["row_id"].to_pylist()
    }
    rows_in, rows_out = steps_of(made)["decontaminate"]
    assert 0 < rows_in - rows_out <= NUM_TAKEN
    for reject in rejects_of(layout, made):
        said = reject["reason"].removeprefix("repeats an evaluation text: ")
        assert said.split(",")[0] in test_ids
        assert said.split(": ")[1].removesuffix("...") in reject["raw"]
    record = exam.manifest["splits"]["test"]
    assert made.manifest["evaluation_sets"] == [
        {"dataset": "exam_v1", "split": "test", "file": record["path"], "sha256": record["sha256"]}
    ]
    named = find_dataset(layout, "exam_v1").manifest["held_against"]
    assert named == {"rows_v1": {"category": "training", "fingerprint": made.manifest["fingerprint"]}}
    overlaps = pq.read_table(layout.absolute(made.manifest["overlaps"]["path"])).to_pylist()
    assert len(overlaps) == rows_in - rows_out
    assert all(each["split"] is None and set(each["evaluation_ids"]) <= test_ids for each in overlaps)


WHOLE = {**EXAM, "output": {"name": "training", "test": 1, "val": 0}}


def test_a_question_that_is_copied_is_found_however_long_the_answers_are(layout: Layout) -> None:
    draw = random.Random(3)
    questions = [sentence(draw, 20) for _ in range(12)]
    for name in ("exam", "rows"):
        rows = [{"question": question, "answer": sentence(draw, 500)} for question in questions]
        write_rows(layout.raw / f"{name}.jsonl", [*rows, {"question": f"only in {name}", "answer": "yes"}])
    _, made = make(layout, WHOLE, CLEAN)
    assert steps_of(made)["decontaminate"] == (13, 1)


def test_texts_too_short_for_ngrams_are_found_where_they_are_the_same(layout: Layout) -> None:
    sums = [{"question": f"What is {left} plus {left + 9}?", "answer": str(2 * left + 9)} for left in range(40)]
    write_rows(layout.raw / "exam.jsonl", sums)
    others = [{"question": f"What is {left} minus {left + 9}?", "answer": "-9"} for left in range(40)]
    symbols = [{"question": "What is 3 + 12?", "answer": "15"}]
    asked = [{"question": "WHAT is 3  plus 12?", "answer": "I do not know"}]
    write_rows(layout.raw / "rows.jsonl", [*sums, *others, *symbols, *asked])
    exam, made = make(layout, WHOLE, CLEAN)
    assert exam.num_rows == {"train": 0, "val": 0, "test": 40}
    assert steps_of(made)["decontaminate"] == (82, 41)
    assert any("WHAT is 3 plus 12?" in reject["reason"] for reject in rejects_of(layout, made))


def test_an_evaluation_set_without_rows_is_refused(layout: Layout) -> None:
    make(layout, {**EXAM, "output": {"name": "training", "test": 0}})
    with pytest.raises(UserError, match="exam_v1 has no rows in its split test"):
        make(layout, CLEAN)


def test_a_changed_evaluation_set_is_never_served_stale(layout: Layout) -> None:
    make(layout, EXAM, CLEAN)
    assert [each.is_new for each in make(layout, EXAM, CLEAN)] == [False, False]
    lines = (layout.raw / "exam.jsonl").read_text().splitlines(keepends=True)
    (layout.raw / "exam.jsonl").write_text("".join(lines[5:]))
    make(layout, EXAM, replace=True)
    with pytest.raises(
        UserError, match=r"rows_v1 was prepared from something else: .*exam_v1.parquet has other content"
    ):
        make(layout, CLEAN)
    (remade,) = make(layout, CLEAN, replace=True)
    test = find_dataset(layout, "exam_v1")
    assert remade.manifest["evaluation_sets"][0]["sha256"] == test.split_digest("test")
    assert test.manifest["held_against"]["rows_v1"]["fingerprint"] == remade.manifest["fingerprint"]
    make(layout, ROWS, replace=True)
    assert find_dataset(layout, "exam_v1").manifest["held_against"] == {}, "it is held against nothing any longer"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"decontaminate": {"against": ["exma_v1"]}}, r"No dataset exma_v1. Did you mean 'exam_v1'\?"),
        ({"decontaminate": {"against": ["asked_v1"]}}, "has no split 'test'"),
    ],
)
def test_an_evaluation_set_that_cannot_be_used_is_refused(layout: Layout, changes: dict[str, Any], said: str) -> None:
    asked = {
        **EXAM,
        "name": "asked",
        "rows": {"name": "pairs", "prompt": "question"},
        "output": {"name": "teacher_inputs"},
    }
    make(layout, EXAM, asked)
    with pytest.raises(UserError, match=said):
        make(layout, {**ROWS, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"near_duplicates": {}, "drop_duplicates": False}, "equal rows are the nearest"),
        ({"decontaminate": {"against": ["rows_v1"]}}, "is this dataset itself"),
        ({"decontaminate": {"against": ["exam_v1"], "min_ngram_words": 20}}, "more than ngram_words"),
        (
            {"near_duplicates": {}, "rows": {"name": "features", "features": "question", "label": "answer"}},
            "no texts|none",
        ),
    ],
)
def test_settings_that_make_no_sense_are_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump({"datasets": [{**ROWS, **changes}]}))
    with pytest.raises(UserError, match=said):
        load_config(path, DataConfig)


def test_the_funnel_shows_overlaps_and_near_duplicates_and_says_what_it_cannot_tell(layout: Layout) -> None:
    both = {**NEAR, **CLEAN, "quality": [{"name": "length", "min_words": 42}]}
    _, made = make(layout, EXAM, both)
    dataset = find_dataset(layout, "rows_v1")
    funnel = show_funnel(dataset)
    recorded = {name: counts for name, counts in steps_of(made).items() if name != "split"}
    assert {stage.name: (stage.rows_in, stage.rows_out) for stage in funnel.stages} == recorded
    tried = show_funnel(dataset, overrides=["quality.0.min_words=50"])
    assert tried.note == NO_NEAR_DUPLICATES
    stages = {stage.name: stage for stage in tried.stages}
    assert "near_duplicates" not in stages
    assert stages["decontaminate"].rows_in == stages["decontaminate"].rows_out == stages["length"].rows_out


def test_evaluate_tells_the_score_of_the_clean_subset(layout: Layout) -> None:
    reported = {**CLEAN, "decontaminate": {"against": ["exam_v1"], "action": "report"}}
    trained_on = {**reported, "output": {"name": "training"}, "tokenizer": {"vocab_size": 300}}
    _, made = make(layout, EXAM, trained_on)
    assert steps_of(made)["decontaminate"] == (NUM_ROWS + NUM_NEAR + NUM_TAKEN,) * 2
    overlaps = pq.read_table(layout.absolute(made.manifest["overlaps"]["path"])).to_pylist()
    known = {row_id for each in overlaps if each["split"] == "train" for row_id in each["evaluation_ids"]}
    assert known
    model = {
        "parameters": {**MODELS["causal_lm"]["parameters"], "max_tokens": 512}
    }  # whole questions with their answers
    checkpoint = run(make_config("causal_lm", data={"dataset": "rows"}, model=model), layout=layout).checkpoint
    result = evaluate(checkpoint, layout=layout, overrides=["data.dataset=exam"])
    clean, whole = result.metrics["clean_subset"], result.metrics["metrics"]["loss"]
    assert (clean["training_dataset"], clean["num_overlapping"]) == ("rows_v1", len(known))
    assert clean["metrics"]["loss"]["num_rows"] == whole["num_rows"] - len(known)
    assert clean["metrics"]["loss"]["value"] != whole["value"]
    assert f"clean subset, without {len(known)} rows" in result.as_text(layout)
    own = evaluate(checkpoint, layout=layout)
    assert "clean_subset" not in own.metrics, "its own test split holds no input that it was trained on"
    unknown = evaluate(checkpoint, layout=layout, overrides=["data.dataset=exam", "evaluation.split=val"])
    assert "rows_v1 was not searched for rows of this split" in unknown.as_text(layout)


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_ids_are_counted_as_a_dict_counts_them(size: int) -> None:
    draw = np.random.default_rng(size)
    seen, times = Seen(), dict[int, int]()
    for _ in range(30):
        ids = draw.integers(0, 4 * size, size, dtype=np.uint64)
        expected = []
        for row_id in ids.tolist():
            expected.append(times.get(row_id, 0))
            times[row_id] = times.get(row_id, 0) + 1
        assert seen.count(ids).tolist() == expected
