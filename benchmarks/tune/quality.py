"""Does `tpe` find better settings than `random` in as many trials? Studies of both, with the same seeds, held side by side.

python -m benchmarks.tune.quality run digits        # all its seeds; those that are there are not run again
python -m benchmarks.tune.quality show              # the table of docs/benchmarks.md
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
SEEDS = {"digits": 10, "python_docs": 5}
"""How many, from 0 on."""
TITLES = {"digits": "digits, 8 epochs", "python_docs": "`configs/baseline.yaml`, 60 steps, half as wide"}
COUNTS = range(10, NUM_TRIALS + 1, 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["run", "show"])
    parser.add_argument("task", nargs="?", choices=TASKS)
    parser.add_argument("--seeds", type=int, help="how many, from 0 on")
    parser.add_argument("--root", type=Path, default=Path("benchmarks/.tune"))
    arguments = parser.parse_args()
    log_to_stderr()
    layout = Layout(arguments.root)
    if arguments.what == "run":
        for seed in range(arguments.seeds or SEEDS[arguments.task]):
            for strategy in ("random", "tpe"):
                open_study(arguments.task, strategy, seed, layout).work(NUM_TRIALS)
    else:
        after = " | ".join(str(count) for count in COUNTS)
        print(
            f"| task | seeds | strategy | {after} trials | tpe - random after {NUM_TRIALS}, 95% interval | tpe better |"
        )
        print(f"| --- | ---: | --- |{' ---: |' * len(COUNTS)} --- | ---: |")
        for task in TASKS:
            show(task, layout)


def open_study(task: str, strategy: str, seed: int, layout: Layout) -> Search:
    config, overrides = TASKS[task]
    own = [f"tune.study={task}_{strategy}_{seed}", f"tune.strategy={strategy}", f"tune.seed={seed}"]
    return Search(config, layout, tables=TABLES, overrides=[*overrides, *own])


def show(task: str, layout: Layout) -> None:
    """Two rows: the best value after 10, 20, ... trials, its mean over the seeds, and the difference with its interval."""
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
            found = [best_of(search.study, trials[strategy][:count]) for count in COUNTS]
            bests[strategy].append([each.ending.value for each in found if each and each.ending])  # type: ignore[misc]
    if len(used) < 2:
        print(f"| {TITLES[task]} | {len(used)} | fewer than two seeds are done |{' |' * (len(COUNTS) + 2)}")
        return
    differences = (np.array(bests["tpe"]) - np.array(bests["random"]))[:, -1]
    error = stats.sem(differences) * stats.t.ppf(0.975, len(used) - 1)
    wins = f"{int((differences < 0).sum())} of {len(used)}"
    means = {name: " | ".join(f"{value:.4f}" for value in np.mean(values, axis=0)) for name, values in bests.items()}
    print(f"| {TITLES[task]} | {len(used)} | random | {means['random']} | | |")
    print(f"| | | tpe | {means['tpe']} | {differences.mean():+.4f} ± {error:.4f} | {wins} |")


if __name__ == "__main__":
    main()
