"""What trackers cost a training at about a thousand steps a second: ours, and their clients called in the loop.

python -m benchmarks.trackers.compare --rounds 3
"""

import argparse
import json
import os
import random
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
NONE = "no tracker"
KEY = "0" * 40
WANDB = {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of contestants; always without a tracker as well")
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
                NONE: (["ours"], {}),
                "TensorBoard": (["ours", "--tensorboard"], {}),
                "MLflow": (["ours"], mlflow),
                "W&B": (["ours"], WANDB),
                "all three": (["ours", "--tensorboard"], {**mlflow, **WANDB}),
                "`mlflow.log_metrics` in the loop": (["mlflow.log_metrics"], mlflow),
                "`wandb.log` in the loop": (["wandb.log"], WANDB),
            }
            names = [name for name in contestants if not given.only or name in (NONE, *given.only)]
            found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
            for number in range(given.rounds):
                for name in random.Random(number).sample(names, len(names)):  # another order each time
                    arguments, asked = contestants[name]
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
    """A table of medians over the rounds; each is held against the same round's without a tracker, for machines drift."""
    print("| tracker | median step | to none: median, range | processor time a step | to none: median, range |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, rounds in found.items():
        cells = []
        for key in ("median_us", "cpu_us"):
            ratios = [each[key] / none[key] - 1 for each, none in zip(rounds, found[NONE], strict=True)]
            cells += [
                f"{middle(rounds, key):,.0f} µs",
                f"{statistics.median(ratios):+.1%} ({min(ratios):+.1%} to {max(ratios):+.1%})",
            ]
        print(f"| {name} | {' | '.join(cells)} |")


def middle(rounds: list[dict[str, Any]], key: str) -> float:
    return statistics.median(each[key] for each in rounds)


if __name__ == "__main__":
    main()
