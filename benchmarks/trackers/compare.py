"""What trackers cost a training at about a thousand steps a second: ours, and their clients called in the loop.

python -m benchmarks.trackers.compare --rounds 3
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.trackers import mlflow_server

STEPS = 5000
STEPS_IN_THE_LOOP = 300
KEY = "0" * 40
WANDB = {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "lab"
        environment = {**os.environ, "NEXA_ROOT": str(root), "MLFLOW_DISABLE_TELEMETRY": "true"}
        subprocess.run(
            [sys.executable, "-m", "nexa_data.prepare", "--config", "configs/data.yaml"], env=environment, check=True
        )
        (Path(scratch) / "server").mkdir()
        with mlflow_server(Path(scratch) / "server") as address:
            mlflow = {"MLFLOW_TRACKING_URI": address}
            contestants: dict[str, tuple[list[str], dict[str, str]]] = {
                "no tracker": (["ours"], {}),
                "TensorBoard": (["ours", "--tensorboard"], {}),
                "MLflow": (["ours"], mlflow),
                "W&B": (["ours"], WANDB),
                "all three": (["ours", "--tensorboard"], {**mlflow, **WANDB}),
                "`mlflow.log_metrics` in the loop": (["mlflow.log_metrics"], mlflow),
                "`wandb.log` in the loop": (["wandb.log"], WANDB),
            }
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
            for _ in range(given.rounds):
                for name, (arguments, asked) in contestants.items():
                    found[name].append(measure(arguments, root, {**environment, **asked}))
    show(found)


def measure(arguments: list[str], root: Path, environment: dict[str, str]) -> dict[str, Any]:
    steps = STEPS if arguments[0] == "ours" else STEPS_IN_THE_LOOP
    command = [sys.executable, "-m", "benchmarks.trackers.one", *arguments, "--steps", str(steps), "--root", str(root)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    shutil.rmtree(root / "artifacts" / "runs")
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def show(found: dict[str, list[dict[str, Any]]]) -> None:
    """A table of medians over the rounds, with the range of the median step."""
    base = {key: middle(found["no tracker"], key) for key in ("median_us", "mean_us", "cpu_us")}
    print("| tracker | median step | range | to none | mean step | to none | processor time a step | to none |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, rounds in found.items():
        cells = [f"{middle(rounds, 'median_us'):,.0f} µs"]
        medians = [each["median_us"] for each in rounds]
        cells += [
            f"{min(medians):,.0f} to {max(medians):,.0f}",
            f"{middle(rounds, 'median_us') / base['median_us'] - 1:+.1%}",
        ]
        for key in ("mean_us", "cpu_us"):
            cells += [f"{middle(rounds, key):,.0f} µs", f"{middle(rounds, key) / base[key] - 1:+.1%}"]
        print(f"| {name} | {' | '.join(cells)} |")


def middle(rounds: list[dict[str, Any]], key: str) -> float:
    return statistics.median(each[key] for each in rounds)


if __name__ == "__main__":
    main()
