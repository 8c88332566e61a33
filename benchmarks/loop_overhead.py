"""What the training loop costs beside a bare PyTorch loop over the same model, data and optimizer.

Ours runs with all that a run has: exact order, per-microbatch seeds, clipping, metrics.jsonl, progress, checkpoints.
The bare loop draws a permutation, computes the loss, steps. Both start from the same weights on the same threads.

    python benchmarks/loop_overhead.py            # needs prepared datasets: nexa prepare
"""

import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from nexa_core.config import RunConfig, load_config
from nexa_core.cost import CostMeter
from nexa_core.paths import Layout
from nexa_core.progress import Progress
from nexa_core.trackers import JsonlTracker
from nexa_models.numerics import autocast
from nexa_train.hooks import Counting, Milestones, Tracking
from nexa_train.job import Job, make_job
from nexa_train.loop import State, fit
from nexa_train.optim import build_optimizer, learning_rate

CASES = {"configs/default.yaml": 400, "configs/baseline.yaml": 40}
ROUNDS = 5


def ours(job: Job, num_steps: int, folder: Path) -> float:
    """Seconds per step of our loop with its hooks."""
    config = job.config.training
    state = State(job.model, build_optimizer(job.model, config.optimizer))
    tracker = JsonlTracker(folder / "metrics.jsonl", resume_step=0)
    meter = CostMeter(folder / "cost.json", usd_per_hour=None)
    began = time.perf_counter()
    with Progress("bench", total=num_steps, unit="steps") as progress:
        fit(
            state,
            job.train_data,
            job.plan,
            lr=partial(learning_rate, schedule=config.schedule, full=config.optimizer.lr, num_steps=job.plan.num_steps),
            max_gradient_norm=config.max_gradient_norm,
            autocast=partial(autocast, config.precision, job.device),
            device=job.device,
            should_stop=lambda state: state.step >= num_steps,
            hooks=[
                Counting(meter),
                Tracking(tracker, every_steps=1, progress=progress),
                Milestones(job, folder / "checkpoints", tracker, meter),
            ],
        )
    seconds = time.perf_counter() - began
    tracker.close()
    return seconds / num_steps


def bare(job: Job, num_steps: int) -> float:
    """Seconds per step of the shortest loop that learns the same."""
    optimizer = build_optimizer(job.model, job.config.training.optimizer)
    data, size = job.train_data, job.plan.batch_size
    job.model.train()
    began = time.perf_counter()
    step = 0
    while step < num_steps:
        for rows in torch.randperm(len(data)).split(size):
            batch = data.batch(rows.numpy())
            logits = job.model(**batch.inputs)
            loss = cross_entropy(logits.flatten(0, -2), batch.targets.flatten())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            if step == num_steps:
                break
    return (time.perf_counter() - began) / num_steps


def main() -> None:
    layout = Layout.from_environment()
    for path, num_steps in CASES.items():
        config = load_config(Path(path), RunConfig)
        ratios, times = [], []
        for _ in range(ROUNDS):
            with tempfile.TemporaryDirectory() as scratch:
                bare_seconds = bare(make_job(config, layout, source=None), num_steps)
                our_seconds = ours(make_job(config, layout, source=None), num_steps, Path(scratch))
            ratios.append(our_seconds / bare_seconds)
            times.append((bare_seconds * 1000, our_seconds * 1000))
        bare_ms, our_ms = (statistics.median(column) for column in zip(*times, strict=True))
        print(
            f"{path}: bare {bare_ms:.2f} ms/step, ours {our_ms:.2f} ms/step, "
            f"ratio median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}, {ROUNDS} rounds)"
        )


if __name__ == "__main__":
    main()
