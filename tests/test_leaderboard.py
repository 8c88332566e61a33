"""The leaderboard: best first, equal scores share a rank, only scores of the same rows stand in one block."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nexa_core import durable
from nexa_core.errors import UserError
from nexa_core.manifest import write_manifest
from nexa_core.paths import Layout
from nexa_ops.leaderboard import make_leaderboard
from tests.conftest import FinishedLab


def add_run(
    layout: Layout, name: str, scores: dict[str, float], *, dataset: str = "d_v1", data: str = "a" * 64, **facts: Any
) -> Path:
    """A finished run as `nexa train` leaves it, as far as a leaderboard looks at it."""
    folder = layout.runs / facts.get("experiment", "e") / f"{name}_20260101_000000"
    metrics = {key: {"value": value, "low": value - 0.1, "high": None, "num_rows": 9} for key, value in scores.items()}
    durable.write_json(folder / "metrics.json", {"split": facts.get("split", "test"), "metrics": metrics})
    durable.write_json(folder / "cost.json", {"wall_seconds": 1.5, "cost_usd": facts.get("cost_usd")})
    durable.write_json(folder / "lineage.json", {"inputs": {"dataset": {"fingerprint": data}}})
    manifest = {
        "run_id": folder.name,
        "config": "c.yaml",
        "run_dir": layout.relative(folder),
        "metrics": scores,
        "dataset": dataset,
        "model": "mlp",
    }
    write_manifest(layout, manifest)
    return folder


def ranks(layout: Layout, **arguments: Any) -> list[tuple[int, str]]:
    return [(row["rank"], row["run_id"].split("_")[0]) for row in make_leaderboard(layout, **arguments).as_json()]


def test_the_best_stands_first_and_equals_share_a_rank(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for name, accuracy in [("low", 0.5), ("b", 0.9), ("a", 0.9), ("mid", 0.7), ("top", 0.95)]:
        add_run(layout, name, {"accuracy": accuracy, "log_loss": accuracy})
    assert ranks(layout) == [(1, "top"), (2, "a"), (2, "b"), (4, "mid"), (5, "low")]
    assert ranks(layout, metric="log_loss") == [(1, "low"), (2, "mid"), (3, "a"), (3, "b"), (5, "top")]
    text = make_leaderboard(layout, metric="log_loss").as_text()
    assert text.splitlines()[0] == "d_v1, test split, log_loss (less is better)"
    assert "0.4000 to infinity" in text.splitlines()[1]
    assert text.count("better") == 1, "ties at the top must not begin a second block"


def test_scores_of_different_rows_are_not_ranked_together(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    add_run(layout, "test", {"accuracy": 0.9})
    add_run(layout, "val", {"accuracy": 0.8}, split="val")
    add_run(layout, "anew", {"accuracy": 0.7}, data="b" * 64)
    add_run(layout, "other", {"accuracy": 0.6}, dataset="other_v1")
    add_run(layout, "lm", {"bits_per_byte": 2.0})
    assert [rank for rank, _ in ranks(layout)] == [1] * 5
    titles = [line for line in make_leaderboard(layout).as_text().splitlines() if not line.startswith(" ")]
    assert titles == [
        "d_v1 as of aaaaaaaaaaaa, test split, accuracy (more is better)",
        "d_v1 as of aaaaaaaaaaaa, test split, bits_per_byte (less is better)",
        "d_v1 as of aaaaaaaaaaaa, val split, accuracy (more is better)",
        "d_v1 as of bbbbbbbbbbbb, test split, accuracy (more is better)",
        "other_v1, test split, accuracy (more is better)",
    ]


def test_a_run_whose_folder_is_gone_keeps_its_score_and_says_so(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    shutil.rmtree(add_run(layout, "gone", {"accuracy": 0.9}))
    (add_run(layout, "torn", {"accuracy": 0.8}) / "metrics.json").write_text("{")
    add_run(layout, "whole", {"accuracy": 0.7})
    lines = make_leaderboard(layout).as_text().splitlines()
    assert any("0.9000  interval unknown" in line and "gone_20260101_000000 is gone" in line for line in lines)
    assert any("0.8000  interval unknown" in line and "cannot be read" in line for line in lines)
    json.dumps(make_leaderboard(layout).as_json(), allow_nan=False)


def test_a_run_without_the_score_is_named_and_not_ranked(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    add_run(layout, "a", {"accuracy": 0.9})
    add_run(layout, "b", {"custom": 1.0})
    assert ranks(layout) == [(1, "a")]
    assert "not ranked, without such a score: b_20260101_000000" in make_leaderboard(layout).as_text()


def test_one_experiment_can_be_looked_at_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    add_run(layout, "a", {"accuracy": 0.9}, experiment="first")
    add_run(layout, "b", {"accuracy": 0.8}, experiment="second")
    assert ranks(layout, experiment="second") == [(1, "b")]
    with pytest.raises(UserError, match=r"Unknown experiment 'secnd'\. Did you mean 'second'"):
        make_leaderboard(layout, experiment="secnd")
    with pytest.raises(UserError, match=r"Unknown metric 'acuracy'\. Did you mean 'accuracy'"):
        make_leaderboard(layout, metric="acuracy")


def test_without_runs_it_says_how_to_make_one(tmp_path: Path) -> None:
    assert "nexa train" in make_leaderboard(Layout(tmp_path)).as_text()


def test_real_runs_are_ranked_with_interval_time_and_price(finished_lab: FinishedLab) -> None:
    rows = {row["model"]: row for row in make_leaderboard(finished_lab.layout).as_json()}
    assert {model: row["metric"] for model, row in rows.items()} == {
        "mlp": "accuracy",
        "text_classifier": "accuracy",
        "causal_lm": "bits_per_byte",
    }
    mlp = rows["mlp"]
    assert mlp["low"] < mlp["value"] < mlp["high"]
    assert mlp["wall_seconds"] > 0
    assert (mlp["split"], mlp["problem"]) == ("test", None)


def test_a_leaderboard_needs_no_torch() -> None:
    code = "import nexa_ops.leaderboard, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
