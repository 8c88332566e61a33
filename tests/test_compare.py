"""Comparing two checkpoints: the same rows, paired tests, a gate that says no, refusals in words."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from nexa_core.errors import GateError, UserError
from nexa_data.datasets import open_dataset
from nexa_eval.compare import compare
from nexa_eval.paired_scores import compare_predictions, right_rows
from nexa_models.checkpoint import load_checkpoint, save_checkpoint
from nexa_models.predict import LANGUAGE_MODEL_SCHEMA
from nexa_train.train import run
from tests.conftest import FinishedLab
from tests.labs import make_config


def spoilt(path: Path, target: Path) -> Path:
    """A checkpoint whose weights were halved and shaken."""
    checkpoint = load_checkpoint(path)
    draw = torch.Generator().manual_seed(0)
    weights = {
        name: tensor / 2 + 0.3 * torch.randn(tensor.shape, generator=draw) if "unigram" not in name else tensor
        for name, tensor in checkpoint.model.items()
    }
    save_checkpoint(target, replace(checkpoint, model=weights))
    return target


@pytest.mark.parametrize("model", ["mlp", "causal_lm"])
def test_a_better_checkpoint_is_found_better_and_not_the_other_way_round(finished_lab: FinishedLab, model: str) -> None:
    good, layout = finished_lab.checkpoint(model), finished_lab.layout
    bad = spoilt(good, finished_lab.root / "bad.pt")
    found = compare(good, bad, layout=layout)
    assert found.is_better
    found.require_better()
    assert f"A is better than B by {found.metric}: p = " in found.as_text(layout)
    reverse = compare(bad, good, layout=layout)
    assert not reverse.is_better
    with pytest.raises(GateError, match="not shown to be better"):
        reverse.require_better()
    ours, theirs = found.differences[found.metric], reverse.differences[found.metric]
    assert (ours.difference, ours.p_value, ours.num_first) == (
        pytest.approx(-theirs.difference),
        theirs.p_value,
        theirs.num_second,
    )


def test_the_scores_are_those_of_evaluate_and_lie_on_disk(finished_lab: FinishedLab) -> None:
    good, layout = finished_lab.checkpoint("mlp"), finished_lab.layout
    found = compare(good, spoilt(good, finished_lab.root / "bad.pt"), layout=layout)
    for result, score in ((found.first, "first"), (found.second, "second")):
        for name in ("accuracy", "log_loss"):
            wanted = result.metrics["metrics"][name]["value"]
            assert getattr(found.differences[name], score) == pytest.approx(wanted, rel=1e-9)
    assert json.loads(found.path.read_text()) == found.as_json()
    rows = pq.read_table(found.rows_path)
    test = open_dataset(layout, "images", "v1").read_split("test")
    assert rows["row_id"].to_pylist() == test["row_id"].to_pylist()
    hits = rows["is_right_a"].to_pylist()
    assert sum(hits) / len(hits) == pytest.approx(found.differences["accuracy"].first)


def test_a_checkpoint_is_not_better_than_itself(finished_lab: FinishedLab) -> None:
    good = finished_lab.checkpoint("mlp")
    found = compare(good, good, layout=finished_lab.layout)
    assert found.differences["accuracy"].p_value == 1.0
    assert found.differences["accuracy"].difference == 0.0
    assert not found.is_better
    assert found.changed.num_rows == 0


def test_the_threshold_decides(finished_lab: FinishedLab) -> None:
    good = finished_lab.checkpoint("causal_lm")
    bad = spoilt(good, finished_lab.root / "bad.pt")
    # Sign flips have a least p-value, 1 / 20,001.
    assert not compare(good, bad, layout=finished_lab.layout, alpha=1e-6).is_better
    assert compare(good, bad, layout=finished_lab.layout, alpha=1e-3).is_better


def test_checkpoints_of_different_datasets_are_not_compared_before_the_rows_are_named(
    finished_lab: FinishedLab,
) -> None:
    layout, pairs = finished_lab.layout, finished_lab.checkpoint("causal_lm")
    config = make_config("causal_lm", data={"dataset": "documents"}, training={"max_steps": 2})
    documents = run(config.model_copy(update={"name": "documents"}), layout=layout).checkpoint
    before = finished_lab.files()
    with pytest.raises(UserError, match=r"same rows.*pairs_v1, test split.*documents_v1.*--data"):
        compare(pairs, documents, layout=layout)
    assert finished_lab.files() == before
    found = compare(pairs, documents, layout=layout, dataset="pairs_v1")
    assert found.first.metrics["dataset"] == found.second.metrics["dataset"] == "pairs_v1"


def test_what_cannot_be_compared_is_refused(finished_lab: FinishedLab) -> None:
    layout, good = finished_lab.layout, finished_lab.checkpoint("causal_lm")
    with pytest.raises(UserError, match="Did you mean 'final_answer'"):
        compare(good, good, layout=layout, metric="final_anwser")
    with pytest.raises(UserError, match=r"evaluation\.generation\.max_rows"):
        compare(good, good, layout=layout, metric="exact_match")
    with pytest.raises(UserError, match=r"No dataset pears_v1\. Did you mean 'pairs_v1'"):
        compare(good, good, layout=layout, dataset="pears_v1")


def predictions(texts: list[str | None], losses: list[float], num_tokens: int = 4) -> pa.Table:
    targets = ["1 + 1 = 2\n#### 2", "2 + 2 = 4\n#### 4", "a word", "5\n#### 1,000"]
    return pa.table(
        {
            "row_id": list("abcd"),
            "target": targets,
            "prediction": texts,
            "loss": losses,
            "unigram_loss": [1.0] * 4,
            "num_tokens": [num_tokens] * 4,
            "num_bytes": [len(target) for target in targets],
        },
        schema=LANGUAGE_MODEL_SCHEMA,
    )


def test_a_final_answer_counts_however_it_is_come_to() -> None:
    first = predictions(["so it is\n#### 2.0", "#### 5", "a word", "1000"], [1.0, 2.0, 3.0, 4.0])
    second = predictions([None, "2 + 2 = 4\n#### 4", "another", "#### 1000"], [2.0, 2.0, 3.0, 4.0])
    assert right_rows(first) == [True, False, True, True]
    assert right_rows(second) == [None, True, False, True]
    found = compare_predictions(first, second, ())
    assert list(found) == ["final_answer", "exact_match", "loss", "bits_per_byte"]
    # Rows that mark no final answer, or that one of them did not answer, are left out.
    assert (found["final_answer"].num_rows, found["final_answer"].num_second) == (2, 1)
    assert (found["exact_match"].num_rows, found["exact_match"].first) == (3, pytest.approx(1 / 3))
    assert found["loss"].first == pytest.approx(10 / 16)
    assert found["bits_per_byte"].second == pytest.approx(
        11 / math.log(2) / np.sum([len(text) for text in first["target"].to_pylist()])
    )


def test_losses_per_token_are_not_compared_over_different_tokens() -> None:
    texts: list[str | None] = [None] * 4
    found = compare_predictions(predictions(texts, [1.0] * 4), predictions(texts, [1.0] * 4, num_tokens=5), ())
    assert list(found) == ["bits_per_byte"]
