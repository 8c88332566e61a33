"""What a study costs beside bare Optuna: the same sampler, the same 200 tiny trials, each the same training run.

Ours and bare Optuna take turns, each study in a process and a laboratory of its own. Both read the rows that were encoded once,
and publish no trial: what differs is the study. The table of docs/benchmarks.md is printed at the end.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

NUM_TRIALS = 200
CONFIG = Path("configs/default.yaml")
TINY = [
    *("training.epochs=2", "training.batch_size=128", "model.parameters.hidden_sizes=[32]"),
    *("training.schedule.warmup_steps=5", "tracking.tensorboard=false", "tune.strategy=tpe", "tune.parallel=1"),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=NUM_TRIALS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--contestant", choices=CONTESTANTS)
    arguments = parser.parse_args()
    if arguments.contestant is not None:
        CONTESTANTS[arguments.contestant](arguments.trials)
        return
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="nexa-tune-") as folder:
        prepare(Path(folder) / "prepared")
        for index in range(arguments.rounds):
            names = list(CONTESTANTS)
            for name in names if index % 2 == 0 else reversed(names):
                measured[name].append(one_study(name, arguments.trials, Path(folder)))
                print(
                    f"round {index}: {name} {measured[name][-1][0]:.1f} s, {measured[name][-1][1]:.1f} CPU s",
                    flush=True,
                )
    print(table(measured, arguments.trials))


def table(measured: dict[str, list[tuple[float, float]]], trials: int) -> str:
    """As in docs/benchmarks.md: medians with the range over the rounds, and the ratio of each round's two."""
    lines = [f"| {trials} trials | nexa tune | bare Optuna | ratio |", "| --- | ---: | ---: | ---: |"]
    for what, which in (("seconds", 0), ("CPU seconds", 1)):
        ours, bare = ([values[which] for values in measured[name]] for name in ("nexa", "optuna"))
        ratios = [a / b for a, b in zip(ours, bare, strict=True)]
        lines.append(f"| {what} | {spread(ours, 1)} | {spread(bare, 1)} | {spread(ratios, 3)} |")
    return "\n".join(lines)


def spread(values: list[float], digits: int) -> str:
    middle, low, high = (f"{value:.{digits}f}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({low} to {high})"


def one_study(name: str, trials: int, folder: Path) -> tuple[float, float]:
    """The seconds, and those of the processors, from a study's first line to its last: without the interpreter's start."""
    root = folder / "lab"
    shutil.copytree(folder / "prepared", root)
    command = [sys.executable, "-m", "benchmarks.tune.overhead", "--contestant", name, "--trials", str(trials)]
    environment = {**os.environ, "NEXA_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(root)
    seconds, cpu_seconds = json.loads(done.stdout.splitlines()[-1])
    return seconds, cpu_seconds


def prepare(root: Path) -> None:
    from nexa_core.config import DataConfig, load_config
    from nexa_core.paths import Layout
    from nexa_data.prepare import prepare

    data = load_config(Path("configs/data.yaml"), DataConfig)
    digits = tuple(dataset for dataset in data.datasets if dataset.name == "digits")
    prepare(data.model_copy(update={"datasets": digits}), Layout(root))


def nexa(trials: int) -> None:
    from nexa_core.paths import Layout
    from nexa_train.tune.search import Search
    from scripts.hyperparameter_search import TABLES

    began = time.perf_counter(), time.process_time()
    search = Search(CONFIG, Layout.from_environment(), tables=TABLES, overrides=TINY)
    search.work(trials)
    print(json.dumps([time.perf_counter() - began[0], time.process_time() - began[1]]))


def optuna(trials: int) -> None:
    """As one would write it who has read how trials share rows: an objective around the training function."""
    import optuna as library

    from nexa_core.config import RunConfig, load_config
    from nexa_core.paths import Layout
    from nexa_train.supervision import Bystander
    from nexa_train.train import run

    library.logging.set_verbosity(library.logging.WARNING)
    layout, shared = Layout.from_environment(), Bystander()

    def objective(trial: library.Trial) -> float:
        values = {
            "training.optimizer.lr": trial.suggest_float("lr", 0.0002, 0.02, log=True),
            "model.parameters.dropout": trial.suggest_float("dropout", 0.0, 0.5),
        }
        overrides = [*TINY, "experiment=bare", *(f"{key}={value!r}" for key, value in values.items())]
        result = run(load_config(CONFIG, RunConfig, overrides=overrides), layout=layout, supervisor=shared)
        lines = map(json.loads, result.run.step_metrics.read_text().splitlines())
        return min(line["val_loss"] for line in lines if "val_loss" in line)

    began = time.perf_counter(), time.process_time()
    study = library.create_study(sampler=library.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=trials)
    print(json.dumps([time.perf_counter() - began[0], time.process_time() - began[1]]))


CONTESTANTS = {"nexa": nexa, "optuna": optuna}

if __name__ == "__main__":
    main()
