"""Does `tpe` find better settings than `random` in as many trials? Studies of both, with the same seeds, held side by side.

python -m benchmarks.tune.quality run digits --seed 0
python -m benchmarks.tune.quality show
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import stats

from nexa_core.logs import log_to_stderr
from nexa_core.paths import Layout
from nexa_train.tune.records import best_of
from nexa_train.tune.search import Search
from scripts.hyperparameter_search import TABLES

NUM_TRIALS = 40
TASKS = {
    "digits": (Path("configs/default.yaml"), ["training.epochs=8", "tracking.tensorboard=false"]),
    "python_docs": (
        Path("configs/baseline.yaml"),
        [
            *("training.max_steps=60", "training.num_threads=1", "tracking.tensorboard=false"),
            *("evaluation.generation=null", "model.parameters.hidden_size=64"),
        ],
    ),
}
"""Config and overrides of each: short runs, because there are hundreds."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("task", nargs="?", choices=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--root", type=Path, default=Path("benchmarks/.tune"))
    arguments = parser.parse_args()
    log_to_stderr()
    layout = Layout(arguments.root)
    if arguments.what == "run":
        for strategy in ("random", "tpe"):
            open_study(arguments.task, strategy, arguments.seed, layout).work(NUM_TRIALS)
    else:
        for task in TASKS:
            show(task, layout)


def open_study(task: str, strategy: str, seed: int, layout: Layout) -> Search:
    config, overrides = TASKS[task]
    own = [f"tune.study={task}_{strategy}_{seed}", f"tune.strategy={strategy}", f"tune.seed={seed}"]
    return Search(config, layout, tables=TABLES, overrides=[*overrides, *own])


def show(task: str, layout: Layout) -> None:
    """The best value of each study after 10, 20, ... trials, and the difference with its interval over the seeds."""
    there = sorted((layout.artifacts / "tune").glob(f"{task}_tpe_*/journal.jsonl"))
    seeds = [int(path.parent.name.rpartition("_")[2]) for path in there]
    bests: dict[str, list[list[float]]] = {"random": [], "tpe": []}
    used = []
    for seed in sorted(seeds):
        studies = {strategy: open_study(task, strategy, seed, layout) for strategy in bests}
        trials = {strategy: search.trials() for strategy, search in studies.items()}
        if any(sum(trial.ending is not None for trial in each) < NUM_TRIALS for each in trials.values()):
            continue
        used.append(seed)
        for strategy, search in studies.items():
            counts = range(10, NUM_TRIALS + 1, 10)
            found = [best_of(search.study, trials[strategy][:count]) for count in counts]
            bests[strategy].append([each.ending.value for each in found if each and each.ending])  # type: ignore[misc]
    print(f"{task}: {len(used)} seeds, best val_loss after 10, 20, 30, {NUM_TRIALS} trials")
    for strategy, values in bests.items():
        print(f"  {strategy:7}", *(f"{value:.4f}" for value in np.mean(values, axis=0)))
    differences = np.array(bests["tpe"]) - np.array(bests["random"])
    for index, count in enumerate(range(10, NUM_TRIALS + 1, 10)):
        mean = differences[:, index].mean()
        error = stats.sem(differences[:, index]) * stats.t.ppf(0.975, len(used) - 1)
        wins = int((differences[:, index] < 0).sum())
        print(f"  tpe - random after {count}: {mean:+.4f} ± {error:.4f} (95%), better in {wins} of {len(used)}")


if __name__ == "__main__":
    main()
