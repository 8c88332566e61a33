"""What trackers cost a training at about a thousand steps a second: ours, and their clients called in the loop.

python -m benchmarks.trackers.compare --rounds 3

Two runs differ by more than a tracker costs. So within one run the processes that send its record on are stopped and
continued in turn, 0.15 s each, and each stretch of steps is held against its neighbour. While they go on they do
the work of both stretches, so that what is shown is the most that they could cost.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.trackers import mlflow_server

STEPS = 40_000
STEPS_IN_THE_LOOP = 300
NONE = "no tracker"
KEY = "0" * 40
WANDB = {"WANDB_API_KEY": KEY, "WANDB_MODE": "offline"}
STRETCH_SECONDS = 0.15
SETTLING_SECONDS = 0.01
"""Of each stretch, the first, not counted."""


@dataclass(frozen=True)
class Stretch:
    """A time in which the senders went on, or stood still."""

    began: float
    ended: float
    goes_on: bool


@dataclass(frozen=True)
class Run:
    """When each step ended, by two clocks, and the stretches of it."""

    clock: list[float]
    processor: list[float]
    stretches: list[Stretch]

    def step_seconds(self) -> float:
        return statistics.median(np.diff(self.clock))

    def differences(self) -> Iterator[tuple[float, float]]:
        """Of each two neighbouring stretches, how much longer a step takes where the senders go on; by both clocks."""
        for before, after in zip(self.stretches[::2], self.stretches[1::2], strict=False):
            going, still = (before, after) if before.goes_on else (after, before)
            with suppress(ValueError):
                yield tuple(ours / other - 1 for ours, other in zip(self.mean(going), self.mean(still), strict=True))  # type: ignore[misc]

    def mean(self, stretch: Stretch) -> tuple[float, float]:
        """Seconds a step within a stretch, on the wall and of the processor.

        Raises:
            ValueError: there is no step in it.
        """
        first = bisect_left(self.clock, stretch.began + SETTLING_SECONDS)
        last = bisect_right(self.clock, stretch.ended) - 1
        if last <= first:
            raise ValueError("a stretch without a step")
        count = last - first
        return (self.clock[last] - self.clock[first]) / count, (self.processor[last] - self.processor[first]) / count


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="names of contestants; always without a tracker as well")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "lab"
        environment = {**os.environ, "NEXA_ROOT": str(root), "MLFLOW_DISABLE_TELEMETRY": "true"}
        prepare = [sys.executable, "-m", "nexa_data.prepare", "--config", "configs/data.yaml"]
        subprocess.run(prepare, env=environment, check=True, capture_output=True)
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
            found: dict[str, list[Run]] = {name: [] for name in names}
            for number in range(given.rounds):
                for name in random.Random(number).sample(names, len(names)):  # another order each time
                    arguments, asked = contestants[name]
                    found[name].append(measure(arguments, root, {**environment, **asked}))
    show(found)


def measure(arguments: list[str], root: Path, environment: dict[str, str]) -> Run:
    steps = STEPS if arguments[0] == "ours" else STEPS_IN_THE_LOOP
    command = [sys.executable, "-m", "benchmarks.trackers.one", *arguments, "--steps", str(steps), "--root", str(root)]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as run:
        assert run.stdout is not None
        stretches: list[Stretch] = []
        is_over = threading.Event()
        for line in run.stdout:
            if line == "timing\n" and arguments[0] == "ours":
                alternating = threading.Thread(target=alternate, args=(run.pid, stretches, is_over))
                alternating.start()
            elif line == "timed\n" and arguments[0] == "ours":
                is_over.set()
                alternating.join()
            elif line.startswith("{"):
                times = json.loads(line)
    if run.returncode:
        raise SystemExit(f"error: {' '.join(command)} ended with {run.returncode}")
    shutil.rmtree(root / "artifacts" / "runs")
    return Run(times["clock"], times["processor"], stretches)


def alternate(pid: int, stretches: list[Stretch], is_over: threading.Event) -> None:
    """Stop and continue what a process has begun until all is over; of each two stretches any may be the first."""
    draw = random.Random(pid)
    order: list[bool] = []
    while not is_over.is_set():
        order = order or draw.sample([True, False], 2)
        goes_on = order.pop()
        tell(pid, signal.SIGCONT if goes_on else signal.SIGSTOP)
        began = time.perf_counter()  # one clock for all processes of a machine
        is_over.wait(STRETCH_SECONDS)
        stretches.append(Stretch(began, time.perf_counter(), goes_on))
    tell(pid, signal.SIGCONT)


def tell(pid: int, number: signal.Signals) -> None:
    listed = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in listed.splitlines())
    for each in parents:
        above = each
        while above in parents and above != pid:
            above = parents[above]
        if above == pid and each != pid:
            with suppress(ProcessLookupError):
                os.kill(each, number)


def show(found: dict[str, list[Run]]) -> None:
    print("| tracker | median step | more while it sends: wall | processor |")
    print("| --- | ---: | ---: | ---: |")
    for name, runs in found.items():
        step = statistics.median(run.step_seconds() for run in runs)
        pairs = [pair for run in runs for pair in run.differences()]
        if pairs:
            cells = [as_text(np.array(column)) for column in zip(*pairs, strict=True)]
        else:
            ratios = [run.step_seconds() / none.step_seconds() for run, none in zip(runs, found[NONE], strict=True)]
            cells = [f"{statistics.median(ratios):.1f} times the step", ""]
        print(f"| {name} | {step * 1e6:,.0f} µs | {' | '.join(cells)} |")


def as_text(differences_N: np.ndarray) -> str:
    """The mean, the outer tenths left out for a machine's hiccups, with its 95% interval from resampling the pairs."""
    draw = np.random.default_rng(0)
    resampled_BN = draw.choice(differences_N, (2000, len(differences_N)))
    low, high = np.quantile(trimmed_mean(resampled_BN), [0.025, 0.975])
    return f"{trimmed_mean(differences_N):+.2%} ({low:+.2%} to {high:+.2%}), {len(differences_N)} pairs"


def trimmed_mean(values: np.ndarray) -> np.ndarray:
    count = values.shape[-1]
    return np.sort(values, -1)[..., count // 10 : count - count // 10].mean(-1)  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
