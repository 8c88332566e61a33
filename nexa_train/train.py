"""Training a model: from a config to a run folder, exactly resumable, with its manifest written last."""

import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from nexa_core.config import RunConfig
from nexa_core.cost import CostMeter
from nexa_core.logs import log_to_file
from nexa_core.paths import Layout
from nexa_core.progress import Progress
from nexa_core.runs import RunFolder, hold
from nexa_core.trackers import JsonlTracker, TensorBoardTracker, Tracker, Trackers, refuse_missing_trackers
from nexa_models.numerics import autocast
from nexa_train.finish import TrainingResult, finish_run, read_result
from nexa_train.hooks import Counting, Milestones, Tracking, early_stop
from nexa_train.job import Job, make_job
from nexa_train.loop import State, fit
from nexa_train.optim import learning_rate
from nexa_train.start import begin_run, find_run_of, rejoin, restore_state

logger = logging.getLogger(__name__)


def utc_now() -> datetime:
    return datetime.now(UTC)


def run(
    config: RunConfig,
    *,
    layout: Layout,
    config_path: Path | None = None,
    resume: bool = False,
    resume_from: Path | None = None,
    now: Callable[[], datetime] = utc_now,
) -> TrainingResult:
    """Train to the end and say what came out: the one function behind every door.

    Args:
        config_path: the file the config came from, as the manifest names it; the run's own copy without it.
        resume: continue the newest unfinished run of this very config; begin one where there is none; where it is
            finished already, only say so.
        resume_from: begin a new run at this checkpoint's step, with its weights and optimizer.

    Raises:
        UserError: the config does not fit the data, the machine, or the run or checkpoint to continue.
        GateError: the loss became NaN or infinite.
    """
    unfinished = find_run_of(config, layout, finished=False) if resume else None
    if resume and unfinished is None and (finished := find_run_of(config, layout, finished=True)):
        logger.info("run %s of this config is finished already; there is nothing to resume", finished.run_id)
        return read_result(layout, finished)
    refuse_missing_trackers(os.environ)
    job = make_job(config, layout, source=resume_from)
    if unfinished is not None:
        job = rejoin(unfinished, job)
    folder = unfinished or begin_run(job, now=now())
    with hold(folder), log_to_file(layout.logs / f"{folder.run_id}.log"):
        state = restore_state(job, folder)
        meter = CostMeter(folder.cost, usd_per_hour=config.cost.usd_per_hour, started_at=now())
        _train(job, folder, state, meter)
        return finish_run(job, folder, state, meter, config_path=config_path or folder.config, now=now())


def _train(job: Job, folder: RunFolder, state: State, meter: CostMeter) -> None:
    config, plan = job.config.training, job.plan
    tracker = _open_trackers(job, folder, resume_step=state.step)
    rate = partial(learning_rate, schedule=config.schedule, full=config.optimizer.lr, num_steps=plan.num_steps)
    with Progress("training", total=plan.num_steps, unit="steps", start=state.step) as progress:
        fit(
            state,
            job.train_data,
            plan,
            lr=rate,
            max_gradient_norm=config.max_gradient_norm,
            autocast=partial(autocast, config.precision, job.device),
            device=job.device,
            should_stop=early_stop(config.early_stopping),
            hooks=[
                Counting(meter),
                Tracking(tracker, every_steps=job.config.tracking.every_steps, progress=progress),
                Milestones(job, folder.checkpoints, tracker, meter),
            ],
        )
    tracker.close()


def _open_trackers(job: Job, folder: RunFolder, *, resume_step: int) -> Tracker:
    trackers: list[Tracker] = [JsonlTracker(folder.step_metrics, resume_step=resume_step)]
    if job.config.tracking.tensorboard:
        trackers.append(TensorBoardTracker(job.layout.logs / folder.run_id))
    return Trackers(trackers)


if __name__ == "__main__":
    from nexa_core.command import enter

    enter("train")
