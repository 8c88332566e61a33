"""Training a model: from a config to a run folder, exactly resumable, with its manifest written last."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from nexa_core import digests
from nexa_core.config import RunConfig
from nexa_core.cost import CostMeter
from nexa_core.errors import UserError, not_built_yet
from nexa_core.logs import log_to_file
from nexa_core.paths import Layout
from nexa_core.progress import Progress
from nexa_core.runs import RunFolder, hold
from nexa_core.trackers import JsonlTracker, TensorBoardTracker, Tracker, Trackers
from nexa_data.datasets import Dataset
from nexa_models import numerics
from nexa_models.checkpoint import Checkpoint
from nexa_models.encoding import Encoded, encode
from nexa_models.spec import ModelSpec, describe_model
from nexa_train import start
from nexa_train.finish import TrainingResult, finish_run, read_result
from nexa_train.hooks import Counting, Milestones, Tracking, early_stop
from nexa_train.loop import State, fit
from nexa_train.optim import learning_rate
from nexa_train.order import Plan

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
    if config.training.distributed.world_size > 1:
        what = f"Training with {config.training.distributed.world_size} processes"
        raise not_built_yet(what, "Set training.distributed.world_size: 1.")
    numerics.make_deterministic(config.training.num_threads)
    device = numerics.choose_device(config.training.device)
    dataset = start.ensure_dataset(layout, config.data)
    spec = describe_model(config.model, dataset)
    source = start.read_source(resume_from, config) if resume_from else None
    inputs = start.gather_inputs(config, dataset, numerics=numerics.describe_numerics(device), resume_from=resume_from)

    folder = start.find_unfinished(layout, config) if resume else None
    if resume and folder is None and (finished := start.find_finished(layout, config)):
        logger.info("run %s of this config is finished already; there is nothing to resume", finished.run_id)
        return read_result(layout, finished)
    continued = folder is not None
    if folder is None:
        folder = start.begin_run(layout, config, inputs, now=now(), resume_from=resume_from)

    with hold(folder), log_to_file(layout.logs / f"{folder.run_id}.log"):
        if continued:
            start.check_unchanged(folder, inputs)
        train_data, validation = _encode_split(dataset, "train", spec), _encode_split(dataset, "val", spec)
        plan = _make_plan(config, train_data, validation)
        checkpoint = start.latest_state_of(folder, plan.steps_per_epoch) if continued else None
        state = start.start_state(config, spec, train_data, checkpoint or source, device=device)
        meter = CostMeter(folder.cost, usd_per_hour=config.cost.usd_per_hour, started_at=now())
        counting = Counting()
        tracker = _open_trackers(layout, folder, config, resume_step=state.step)
        with Progress("training", total=plan.num_steps, unit="steps", start=state.step) as progress:
            milestones = Milestones(
                folder.checkpoints,
                config.training.checkpoints,
                plan,
                _checkpoint_maker(config, spec, dataset, inputs),
                validation=validation,
                batch_size=config.evaluation.batch_size,
                device=device,
                tracker=tracker,
                cost=meter,
                counting=counting,
            )
            tracking = Tracking(tracker, every_steps=config.tracking.every_steps, progress=progress)
            fit(
                state,
                train_data,
                plan,
                lr=_learning_rates(config, plan),
                max_gradient_norm=config.training.max_gradient_norm,
                autocast=numerics.choose_autocast(config.training.precision, device),
                device=device,
                should_stop=early_stop(config.training.early_stopping),
                hooks=[counting, tracking, milestones],
            )
        tracker.close()
        return finish_run(
            layout,
            folder,
            config,
            config_path=config_path or folder.config,
            dataset=dataset,
            spec=spec,
            state=state,
            steps_per_epoch=plan.steps_per_epoch,
            write_cost=lambda: meter.write(
                step=state.step, num_rows=counting.num_rows, num_targets=counting.num_targets
            ),
            device=device,
            now=now(),
        )


def _encode_split(dataset: Dataset, split: str, spec: ModelSpec) -> Encoded:
    encoded = encode(dataset.read_split(split), spec)
    for note in encoded.notes:
        logger.info("%s %s: %s", dataset.key, split, note)
    return encoded


def _make_plan(config: RunConfig, train_data: Encoded, validation: Encoded) -> Plan:
    training = config.training
    needs_validation = training.keep == "best" or training.early_stopping or training.checkpoints.save_top_k
    if needs_validation and not len(validation):
        raise UserError(
            f"Dataset {config.data.key} has no validation rows and the run needs them; prepare it with `val` above 0, "
            "or set training.keep: last, without early_stopping and save_top_k."
        )
    return Plan(
        num_rows=len(train_data),
        batch_size=training.batch_size,
        accumulation=training.gradient_accumulation_steps,
        epochs=training.epochs,
        max_steps=training.max_steps,
        seed=training.distributed.seed,
    )


def _learning_rates(config: RunConfig, plan: Plan) -> Callable[[int], float]:
    schedule, full = config.training.schedule, config.training.optimizer.lr
    return lambda step: learning_rate(step, schedule=schedule, full=full, num_steps=plan.num_steps)


def _open_trackers(layout: Layout, folder: RunFolder, config: RunConfig, *, resume_step: int) -> Tracker:
    trackers: list[Tracker] = [JsonlTracker(folder.step_metrics, resume_step=resume_step)]
    if config.tracking.tensorboard:
        trackers.append(TensorBoardTracker(layout.logs / folder.run_id))
    return Trackers(trackers)


def _checkpoint_maker(
    config: RunConfig, spec: ModelSpec, dataset: Dataset, inputs: dict[str, object]
) -> Callable[[State], Checkpoint]:
    fingerprint = digests.of_value(inputs)

    def make(state: State) -> Checkpoint:
        return Checkpoint(
            config=config.resolved(),
            spec=spec,
            dataset=start.describe_dataset(dataset),
            fingerprint=fingerprint,
            step=state.step,
            history=tuple(state.history),
            model=state.model.state_dict(),
            optimizer=state.optimizer.state_dict(),
        )

    return make


if __name__ == "__main__":
    from nexa_core.command import enter

    enter("train")
