"""What the training loop costs beside a bare PyTorch loop over the same model, data and optimizer.

Ours is a whole run: exact order, per-microbatch seeds, clipping, metrics.jsonl, progress, validation, checkpoints. The
bare loop draws a permutation, computes the loss, steps. Both start from the same weights on the same threads. Said as
well: how long a step waits for a checkpoint (for the copy of the state; the writing goes on beside the training).

    python benchmarks/loop_overhead.py            # needs prepared datasets: nexa prepare
"""

import itertools
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from nexa_core.config import RunConfig, load_config
from nexa_core.paths import Layout
from nexa_train import hooks, milestones, train
from nexa_train.distributed.world import World
from nexa_train.job import Job, make_job
from nexa_train.loop import State, StepResult
from nexa_train.optim import build_optimizer

CASES = {"configs/default.yaml": 400, "configs/baseline.yaml": 40}
ROUNDS = 5
CHECKPOINTS = 4  # in a run, besides those of its epochs

clock: list[float] = []
"""When each step of the current run was done."""
waits: list[float] = []
"""What each of its checkpoints held the training up for, in seconds."""


class TimedTracking(hooks.Tracking):
    def __call__(self, state: State, result: StepResult) -> None:
        clock.append(time.perf_counter())
        super().__call__(state, result)


class TimedMilestones(milestones.Milestones):
    def save(self, state: State) -> None:
        began = time.perf_counter()
        super().save(state)
        waits.append(time.perf_counter() - began)


def ours(config: RunConfig, layout: Layout, num_steps: int) -> tuple[float, float]:
    """Seconds per step of a whole run, and the median wait for a checkpoint."""
    clock.clear()
    waits.clear()
    checkpoints = config.training.checkpoints.model_copy(update={"every_steps": num_steps // CHECKPOINTS})
    training = config.training.model_copy(
        update={"max_steps": num_steps, "gradient_accumulation_steps": 1, "checkpoints": checkpoints}
    )
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(layout.root / "data", Path(scratch) / "data")
        train.run(config.model_copy(update={"training": training}), layout=Layout(Path(scratch)))
    return (clock[-1] - clock[0]) / (len(clock) - 1), statistics.median(waits)


def bare(job: Job, num_steps: int) -> float:
    """Seconds per step of the shortest loop that learns the same."""
    optimizer = build_optimizer(job.model, job.config.training.optimizer)
    data, size = job.train_data, job.plan.batch_size
    job.model.train()
    began = 0.0
    batches = itertools.chain.from_iterable(torch.randperm(len(data)).split(size) for _ in itertools.count())
    for step, rows in enumerate(itertools.islice(batches, num_steps)):
        batch = data.batch(rows.numpy())
        loss = cross_entropy(job.model(**batch.inputs), batch.targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step == 0:
            began = time.perf_counter()
    return (time.perf_counter() - began) / (num_steps - 1)


def main() -> None:
    train.Tracking, train.Milestones = TimedTracking, TimedMilestones
    layout = Layout.from_environment()
    for path, num_steps in CASES.items():
        config = load_config(Path(path), RunConfig)
        rounds = []
        for _ in range(ROUNDS):
            bare_seconds = bare(make_job(config, layout, world=World(), source=None), num_steps)
            rounds.append((bare_seconds, *ours(config, layout, num_steps)))
        ratios = [ours_seconds / bare_seconds for bare_seconds, ours_seconds, _ in rounds]
        bare_ms, our_ms, wait_ms = (1000 * statistics.median(column) for column in zip(*rounds, strict=True))
        print(
            f"{path}: bare {bare_ms:.2f} ms/step, ours {our_ms:.2f} ms/step, "
            f"ratio median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {ROUNDS} rounds); "
            f"a checkpoint holds it up for {wait_ms:.2f} ms"
        )


if __name__ == "__main__":
    main()
