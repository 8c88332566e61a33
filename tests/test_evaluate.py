"""Evaluating: the scores of the run again, each refusal in words, nothing written where nothing was evaluated."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from nexa_core.config import DataConfig
from nexa_core.errors import GateError, UserError
from nexa_core.lineage import read_lineage
from nexa_core.manifest import check_manifest, list_manifests
from nexa_core.metrics import Scores, classification_scores, language_model_scores
from nexa_core.runs import RUN_ID, create_run, list_runs
from nexa_data.prepare import prepare
from nexa_eval.evaluate import evaluate, utc_now
from nexa_models.checkpoint import load_checkpoint, model_of, save_checkpoint
from nexa_models.predict import complete
from nexa_models.scores import CLASSIFIER_SCORES, LANGUAGE_MODEL_SCORES, interval_text, main_score
from nexa_train.train import run
from tests.conftest import FinishedLab
from tests.labs import DATASETS, make_config, write_config


@pytest.mark.parametrize("model", ["mlp", "text_classifier", "causal_lm"])
def test_an_evaluation_repeats_the_runs_scores_and_predictions(finished_lab: FinishedLab, model: str) -> None:
    result = evaluate(finished_lab.checkpoint(model), layout=finished_lab.layout)
    trained = finished_lab.run(model)
    assert result.run.metrics.read_bytes() == trained.metrics.read_bytes()
    assert result.run.predictions.read_bytes() == trained.predictions.read_bytes()
    evaluation = finished_lab.layout.processed / "evaluation"
    assert (evaluation / "predictions" / f"{result.run.run_id}.parquet").exists()
    shown = finished_lab.layout.runs / "test" / "metrics.json"
    assert json.loads(shown.read_text()) == result.metrics


def test_an_evaluation_says_what_it_was_made_from(finished_lab: FinishedLab) -> None:
    link = finished_lab.layout.checkpoints / "last.pt"
    before = list_manifests(finished_lab.layout)
    result = evaluate(link, layout=finished_lab.layout)
    path = finished_lab.layout.dataset_manifests("evaluation") / f"{result.run.run_id}.json"
    manifest = json.loads(path.read_text())
    check_manifest(manifest, where=str(path))
    lineage = read_lineage(result.run)
    assert lineage is not None
    assert lineage["kind"] == "evaluation"
    assert manifest["checkpoint"] == finished_lab.layout.relative(link.resolve()) == lineage["parents"][0]
    assert list_manifests(finished_lab.layout) == before, "runs/manifests is for training runs"


def test_an_evaluation_is_not_taken_for_a_run_to_resume(finished_lab: FinishedLab) -> None:
    evaluate(finished_lab.checkpoint("mlp"), layout=finished_lab.layout)
    resumed = run(make_config("mlp"), layout=finished_lab.layout, resume=True)
    assert resumed.run == finished_lab.run("mlp")


def test_predictions_are_not_saved_where_the_config_says_so(finished_lab: FinishedLab) -> None:
    result = evaluate(
        finished_lab.checkpoint("mlp"), layout=finished_lab.layout, overrides=["evaluation.save_predictions=false"]
    )
    assert not result.run.predictions.exists()
    assert "predictions" not in result.as_text(finished_lab.layout)
    lineage = read_lineage(result.run)
    assert lineage is not None
    assert [Path(name).name for name in lineage["outputs"]] == ["metrics.json"]


def test_the_other_split_can_be_scored(finished_lab: FinishedLab) -> None:
    result = evaluate(finished_lab.checkpoint("mlp"), layout=finished_lab.layout, overrides=["evaluation.split=val"])
    assert result.metrics["split"] == "val"
    assert result.metrics != json.loads(finished_lab.run("mlp").metrics.read_text())


def refusal(lab: FinishedLab, checkpoint: Path, **arguments: object) -> str:
    """The message that an evaluation ends with, having written nothing."""
    before = lab.files()
    with pytest.raises((UserError, GateError)) as caught:
        evaluate(checkpoint, layout=lab.layout, **arguments)  # type: ignore[arg-type]
    assert lab.files() == before
    return str(caught.value)


def test_a_config_of_another_model_is_refused(finished_lab: FinishedLab, tmp_path: Path) -> None:
    checkpoint = finished_lab.checkpoint("mlp")
    said = refusal(finished_lab, checkpoint, config_path=finished_lab.config("text_classifier"))
    assert "model.name is text_classifier, the checkpoint's is mlp" in said
    wider = make_config("mlp", model={"parameters": {"hidden_sizes": [32]}})
    said = refusal(finished_lab, checkpoint, config_path=write_config(tmp_path / "wider.yaml", wider))
    assert "model.parameters.hidden_sizes is [32], the checkpoint's is [16]" in said
    said = refusal(finished_lab, checkpoint, overrides=["model.parameters.dropout=0.5"])
    assert "model.parameters.dropout is 0.5" in said


def test_a_dataset_made_anew_under_its_name_is_refused(finished_lab: FinishedLab) -> None:
    anew = {**DATASETS[0], "output": {"name": "training", "salt": "other"}}
    prepare(DataConfig.model_validate_json(json.dumps({"datasets": [anew]})), finished_lab.layout, replace=True)
    said = refusal(finished_lab, finished_lab.checkpoint("mlp"))
    assert "images_v1 is not the one this checkpoint was trained with" in said


def test_a_dataset_of_another_kind_is_refused(finished_lab: FinishedLab) -> None:
    said = refusal(finished_lab, finished_lab.checkpoint("mlp"), overrides=["data.dataset=topics"])
    assert "rows of text; the model knows rows of features" in said


def test_a_changed_test_file_is_refused(finished_lab: FinishedLab) -> None:
    split = finished_lab.layout.processed / "training" / "test" / "images_v1.parquet"
    data = bytearray(split.read_bytes())
    data[200] ^= 1
    split.write_bytes(data)
    assert "sha256 differs" in refusal(finished_lab, finished_lab.checkpoint("mlp"))


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "text", "folder", "missing"])
def test_a_damaged_checkpoint_is_one_line_of_refusal(finished_lab: FinishedLab, damage: str) -> None:
    path = finished_lab.root / "damaged.pt"
    whole = finished_lab.checkpoint("mlp").read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(b"/data/0") + 100] ^= 1
    contents = {"flipped": bytes(flipped), "cut": whole[: len(whole) // 2], "empty": b"", "text": b"hello\n"}
    if damage == "folder":
        path.mkdir()
    elif damage in contents:
        path.write_bytes(contents[damage])
    said = refusal(finished_lab, path)
    assert str(path) in said
    assert "\n" not in said


def test_a_diverged_model_is_named(finished_lab: FinishedLab) -> None:
    for model in ("mlp", "causal_lm"):
        checkpoint = load_checkpoint(finished_lab.checkpoint(model))
        path = finished_lab.root / f"{model}_diverged.pt"
        weights = {name: torch.full_like(weight, float("nan")) for name, weight in checkpoint.model.items()}
        save_checkpoint(path, replace(checkpoint, model=weights))
        said = refusal(finished_lab, path)
        assert str(path) in said
        assert "diverged" in said


def test_exact_match_comes_from_completions(finished_lab: FinishedLab) -> None:
    result = evaluate(
        finished_lab.checkpoint("causal_lm"),
        layout=finished_lab.layout,
        overrides=["evaluation.generation.max_rows=5", "evaluation.generation.max_new_tokens=4"],
    )
    assert result.metrics["metrics"]["exact_match"]["num_rows"] == 5
    predicted = pq.read_table(result.run.predictions)["prediction"].to_pylist()
    assert [text is not None for text in predicted] == [True] * 5 + [False] * (len(predicted) - 5)


def test_a_completion_ends_where_the_model_is_full(finished_lab: FinishedLab) -> None:
    checkpoint = load_checkpoint(finished_lab.checkpoint("causal_lm"))
    model, device = model_of(checkpoint), torch.device("cpu")
    prompts = ["write 3 words:", "word " * 30, "write 3 words: and then some more:", "write 3 words:"]
    alone = [
        complete(model, checkpoint.spec, [prompt], max_new_tokens=1000, batch_size=1, device=device)[0]
        for prompt in prompts
    ]
    together = complete(model, checkpoint.spec, prompts, max_new_tokens=1000, batch_size=8, device=device)
    assert together == alone
    assert [text is None for text in together] == [False, True, False, False]


def test_every_score_there_is_has_a_direction() -> None:
    names = set(_scores_of_each_kind()[0].metrics), set(_scores_of_each_kind()[1].metrics)
    assert names == (set(CLASSIFIER_SCORES), set(LANGUAGE_MODEL_SCORES))
    assert [main_score(each) for each in (*names, {"auroc"})] == ["accuracy", "bits_per_byte", None]


def _scores_of_each_kind() -> tuple[Scores, Scores]:
    classifier = classification_scores([0, 1, 1, 0], [[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    columns = {"nll_N": [1.0, 2.0], "num_tokens_N": [2, 3], "num_bytes_N": [4, 6]}
    return classifier, language_model_scores(**columns, exact_match_N=[0, 1], unigram_nll_N=[2.0, 4.0])  # type: ignore[arg-type]


def test_an_interval_without_bound_is_written_as_infinite() -> None:
    assert interval_text(None, 0.5) == "-infinity to 0.5000"
    assert interval_text(0.5, None) == "0.5000 to infinity"


def test_runs_of_one_second_are_told_apart_and_listed_in_order(finished_lab: FinishedLab) -> None:
    now = utc_now()
    made = [create_run(finished_lab.layout, experiment="many", name="a_b", now=now) for _ in range(11)]
    assert len({folder.run_id for folder in made}) == 11
    assert all(RUN_ID.match(folder.run_id) for folder in made)
    assert list_runs(finished_lab.layout, experiment="many") == made
