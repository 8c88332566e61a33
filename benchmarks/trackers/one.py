"""One run of a small model at about a thousand steps a second, with the trackers that the arguments name; times as JSON.

python -m benchmarks.trackers.one ours --steps 4000 --root <laboratory>      # and what the environment asks for
python -m benchmarks.trackers.one mlflow.log_metrics --steps 300 --root <laboratory>

It says `timing` when the steps that count begin and `timed` when they are over, and then on one line when each ended.
"""

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from nexa_core.config import RunConfig, load_config
from nexa_core.paths import Layout
from nexa_core.trackers import Record
from nexa_train import hooks, train
from nexa_train.loop import State, StepResult

SETTLING = 0.2
"""Share of the steps, the first, that are not timed: meanwhile the followers load their clients."""

clock: list[float] = []
processor: list[float] = []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("contestant", choices=["ours", "mlflow.log_metrics", "wandb.log"])
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--tensorboard", action="store_true")
    given = parser.parse_args()
    overrides = [
        f"training.max_steps={given.steps}",
        "training.epochs=10000",
        "training.batch_size=8",
        "training.gradient_accumulation_steps=1",
        "training.data_workers=0",
        'model.parameters={"hidden_sizes": []}',
        "training.max_gradient_norm=null",
        'training.optimizer={"name": "sgd", "lr": 0.1}',
        "training.num_threads=1",
        'training.checkpoints={"save_top_k": 1, "every_steps": 1000000}',
        f"tracking.tensorboard={json.dumps(given.tensorboard)}",
    ]
    first = int(given.steps * SETTLING)

    class TimedTracking(hooks.Tracking):
        def __call__(self, state: State, result: StepResult) -> None:
            clock.append(time.perf_counter())
            processor.append(time.process_time())
            if state.step in (first, given.steps):
                print("timing" if state.step == first else "timed", flush=True)
            super().__call__(state, result)

    train.Tracking = TimedTracking  # type: ignore[misc]
    close = log_in_the_loop(given.contestant, given.root)
    train.run(load_config(Path("configs/default.yaml"), RunConfig, overrides=overrides), layout=Layout(given.root))
    close()
    print(json.dumps({"clock": clock[first:], "processor": processor[first:]}))


def log_in_the_loop(contestant: str, root: Path) -> Callable[[], None]:
    """Have each line of the record go to the client as well, as its own guide says to; returns what ends it."""
    write = Record.log
    if contestant == "mlflow.log_metrics":
        import mlflow

        mlflow.set_tracking_uri(os.environ.pop("MLFLOW_TRACKING_URI"))
        mlflow.set_experiment("in_the_loop")
        mlflow.start_run()
        log, close = mlflow.log_metrics, mlflow.end_run
    elif contestant == "wandb.log":
        import wandb

        run = wandb.init(project="in_the_loop", dir=str(root), settings=wandb.Settings(silent=True))
        os.environ.pop("WANDB_API_KEY")
        log, close = run.log, run.finish
    else:
        return lambda: None

    def write_and_log(self: Record, step: int, values: Mapping[str, float]) -> None:
        write(self, step, values)
        log(dict(values), step=step)

    Record.log = write_and_log  # type: ignore[method-assign]
    return close


if __name__ == "__main__":
    main()
