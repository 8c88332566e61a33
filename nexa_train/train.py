"""Training a model: from a config to a run folder, exactly resumable, with its manifest written last."""

import contextlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from nexa_core import durable
from nexa_core.config import RunConfig
from nexa_core.cost import CostMeter
from nexa_core.errors import GateError, NodeError, Preempted, Stopped, UserError
from nexa_core.holder import hold
from nexa_core.logs import log_to_file, warn_only
from nexa_core.paths import Layout
from nexa_core.progress import Progress
from nexa_core.runs import RunFolder
from nexa_core.trackers import Tracker, Trackers
from nexa_models.flops import attended_lengths, mean_length, peak_flops, training_flops_per_token
from nexa_models.numerics import autocast, choose_device
from nexa_train.checkpoints import is_scheduled
from nexa_train.distributed.group import Group
from nexa_train.distributed.launch import launch
from nexa_train.distributed.meeting import Meeting, compare, meet, tell_others
from nexa_train.distributed.strategies import make_strategy
from nexa_train.distributed.world import World, read_world
from nexa_train.feed import Feed
from nexa_train.finish import TrainingResult, finish_run, read_result, release
from nexa_train.hooks import Pace, Throughput, Tracking, any_of, early_stop, never, rates_as_text
from nexa_train.job import Job, count_microbatches, ensure_dataset, make_job
from nexa_train.loop import State, StepResult, fit
from nexa_train.milestones import Milestones
from nexa_train.optim import learning_rate
from nexa_train.preemption import Preemption
from nexa_train.room import room_needed
from nexa_train.saving import Writer
from nexa_train.sending import open_trackers
from nexa_train.start import begin_run, begun_threads, find_run_of, rejoin, restore_state, shared_facts
from nexa_train.supervision import Pruned, Supervisor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Onlookers:
    """Who is told of each step."""

    tracker: Tracker
    note: Callable[[int], None]
    supervisor: Supervisor | None


def utc_now() -> datetime:
    return datetime.now(UTC)


def _say_nothing(step: int) -> None:
    """What other processes than the main one note of a step."""


def run(
    config: RunConfig,
    *,
    layout: Layout,
    config_path: Path | None = None,
    resume: bool | str = False,
    resume_from: Path | None = None,
    now: Callable[[], datetime] = utc_now,
    supervisor: Supervisor | None = None,
) -> TrainingResult:
    """Train to the end and say what came out: the one function behind every door.

    With `training.distributed.world_size` above 1 it launches as many processes, unless a launcher has done so; then
    it is called in each of them, and each returns the result.

    Args:
        config_path: the file the config came from, as the manifest names it; the run's own copy without it.
        resume: continue the newest unfinished run of this very config, or the run of this id alone; begin one where there
            is none; where it is finished already, only say so.
        resume_from: begin a new run at this checkpoint's step, with its weights and optimizer.
        supervisor: the search that the run is a trial of; with several processes it gives nothing up.

    Raises:
        Pruned: the supervisor gave the run up.
        UserError: the config does not fit the data, the machine, or the run or checkpoint to continue.
        GateError: the loss became NaN or infinite.
        NodeError: a machine or process cannot take part, or was lost.
        Preempted: the process was told to end, and has saved; Interrupted where it was by Ctrl-C.
    """
    world = read_world(os.environ)
    asked = config.training.distributed.world_size
    if world.is_alone and asked > 1:
        distributed = config.training.distributed
        exact = distributed.is_exact(choose_device(config.training.device).type)
        count_microbatches(config.training, World(size=asked, local_size=asked), exact=exact)
        ensure_dataset(layout, config.data)  # before any process waits for another
        folder = launch(
            config,
            layout=layout,
            config_path=config_path,
            resume=resume,
            resume_from=resume_from,
            is_trial=supervisor is not None,
        )
        if supervisor is not None:
            supervisor.begin(folder)
        return read_result(layout, folder)
    if asked not in (1, world.size):
        raise UserError(
            f"training.distributed.world_size is {asked} and the launcher started {world.size} processes; "
            "leave the setting at 1 to take the launcher's number."
        )
    config = _with_world_size(config, world.size)
    if world.is_main:
        return _run_here(config, world, layout, config_path, resume, resume_from, now, supervisor)
    warn_only()
    try:
        return _run_here(config, world, layout, config_path, resume, resume_from, now)
    except (GateError, Preempted) as error:  # all processes end so; the main one says why
        raise type(error)("") from None
    except KeyboardInterrupt:
        raise Stopped("") from None


def _run_here(
    config: RunConfig,
    world: World,
    layout: Layout,
    config_path: Path | None,
    resume: bool | str,
    resume_from: Path | None,
    now: Callable[[], datetime],
    supervisor: Supervisor | None = None,
) -> TrainingResult:
    """This process's part."""
    timeout_seconds = config.training.distributed.timeout_seconds
    unfit_path = layout.logs / f"{config.experiment}_{config.name}_health.json"
    try:
        job, run_before = _prepare(config, world, layout, resume, resume_from, supervisor)
    except (UserError, NodeError) as error:
        tell_others(world, error, environment=os.environ, unfit_path=unfit_path, timeout_seconds=timeout_seconds)
        raise
    if job is None:
        assert run_before is not None
        facts = {"run": f"{run_before.run_id}, which is finished"}
        compare(world, facts, environment=os.environ, unfit_path=unfit_path, timeout_seconds=timeout_seconds)
        logger.info("run %s of this config is finished already; there is nothing to resume", run_before.run_id)
        return read_result(layout, run_before)
    written_to = None if run_before is None else run_before.checkpoints
    with meet(
        world,
        environment=os.environ,
        folder=layout.runs / config.experiment,
        need_bytes=room_needed(job, folder=written_to),
        device=job.device,
        config=config.deciding(exact=job.is_exact),
        dataset_fingerprint=job.dataset.fingerprint,
        facts=shared_facts(job, run_before),
        unfit_path=unfit_path,
        timeout_seconds=timeout_seconds,
    ) as meeting:
        folder = run_before or _begin_together(meeting.group, job, now=now)
        return _run_in(meeting, folder, job, config_path=config_path, now=now, supervisor=supervisor)


def _prepare(
    config: RunConfig,
    world: World,
    layout: Layout,
    resume: bool | str,
    resume_from: Path | None,
    supervisor: Supervisor | None,
) -> tuple[Job | None, RunFolder | None]:
    """The job, and the run to continue where there is one; no job where that run is finished."""
    device = _find_device(config, world)
    exact = config.training.distributed.is_exact(device.type)
    find = partial(find_run_of, config, layout, exact=exact, run_id=resume if isinstance(resume, str) else None)
    unfinished = find(finished=False) if resume else None
    if resume and unfinished is None and (finished := find(finished=True)):
        return None, finished
    threads = None if unfinished is None else begun_threads(unfinished)
    shelf = None if supervisor is None else supervisor.shelf
    job = make_job(config, layout, world=world, source=resume_from, num_threads=threads, shelf=shelf)
    return (job if unfinished is None else rejoin(unfinished, job)), unfinished


def _find_device(config: RunConfig, world: World) -> torch.device:
    """Of several processes, one without its GPU is a fault of its node and not of the config."""
    try:
        return choose_device(config.training.device, local_rank=world.local_rank)
    except UserError as error:
        if world.is_alone:
            raise
        raise NodeError(str(error)) from None


def _run_in(
    meeting: Meeting,
    folder: RunFolder,
    job: Job,
    *,
    config_path: Path | None,
    now: Callable[[], datetime],
    supervisor: Supervisor | None,
) -> TrainingResult:
    """Train and finish; only the main process holds the folder and writes to it."""
    is_main = meeting.group.world.is_main
    note: Callable[[int], None] = _say_nothing
    with contextlib.ExitStack() as held:
        if is_main:
            named = None if config_path is None else str(config_path)
            note = held.enter_context(hold(folder, num_steps=job.plan.num_steps, config=named)).note
            held.enter_context(log_to_file(job.layout.logs / f"{folder.run_id}.log"))
            if supervisor is not None:
                supervisor.begin(folder)
            if meeting.health is not None:
                durable.write_json(folder.health, meeting.health.as_json())
        with meeting.heartbeat.phase("reading the checkpoint"):
            state = restore_state(job, folder, group=meeting.group)
        if job.is_exact and job.config.training.num_threads is None and is_main and not meeting.group.world.is_alone:
            threads = job.inputs["numerics"]["num_threads"]
            logger.info("other numbers of processes give the same bytes with training.num_threads: %d", threads)
        tracker = held.enter_context(open_trackers(job, folder, resume_step=state.step)) if is_main else Trackers([])
        meter = CostMeter(folder.cost, usd_per_hour=job.config.cost.usd_per_hour, started_at=now())
        _train(job, folder, state, meter, meeting, _Onlookers(tracker, note, supervisor))
        release(state, is_sharded=job.is_sharded)
        if is_main:
            with meeting.heartbeat.phase("scoring"):
                result = finish_run(
                    job,
                    folder,
                    state,
                    meter,
                    config_path=config_path or folder.config,
                    now=now(),
                    renew=meeting.heartbeat.renew,
                    publishes=supervisor is None,
                )
        else:  # ahead of the main process, whose phase alone counts
            meeting.heartbeat.beat(state.step, "waiting for the scores")
        meeting.group.wait_for_all()
    return result if is_main else read_result(job.layout, folder)


def _train(
    job: Job, folder: RunFolder, state: State, meter: CostMeter, meeting: Meeting, onlookers: _Onlookers
) -> None:
    config, plan, group = job.config.training, job.plan, meeting.group
    world, heartbeat = group.world, meeting.heartbeat
    rate = partial(learning_rate, schedule=config.schedule, full=config.optimizer.lr, num_steps=plan.num_steps)
    tracker, supervisor = onlookers.tracker, onlookers.supervisor
    gives_up = never if supervisor is None else supervisor.gives_up
    feed = Feed(job.train_data, plan, world.rank, world.size, config.data_workers, job.device)
    with (
        Preemption(group) as preemption,  # outermost: what is told while the state is being saved is heard as well
        Progress("training", total=plan.num_steps, unit="steps", start=state.step) as progress,
        Writer() as writer,
        contextlib.ExitStack() as first_step,
    ):
        first_step.enter_context(heartbeat.phase("the first step, which may compile"))
        throughput = _measure(job, meter, world)
        milestones = Milestones(
            job, folder.checkpoints, group=group, tracker=tracker, meter=meter, writer=writer, pause=throughput.pause
        )
        tracking = Tracking(tracker, every_steps=job.config.tracking.every_steps, progress=progress)

        def save(state: State) -> None:
            tracking.settle()
            milestones.save(state)
            writer.wait()

        def reach_milestones(state: State, result: StepResult) -> None:
            if is_scheduled(plan, config.checkpoints, state.step):
                tracking.settle()
            with heartbeat.phase("validating and saving"):
                milestones(state, result)

        fit(
            state,
            feed,
            make_strategy(job.config.training.distributed, state.model, group, is_exact=job.is_exact),
            lr=rate,
            max_gradient_norm=config.max_gradient_norm,
            # A sharded model casts by itself, when it gathers its weights.
            autocast=partial(autocast, "float32" if job.is_sharded else config.precision, job.device),
            should_stop=any_of(early_stop(config.early_stopping), gives_up),
            hooks=[
                lambda state, result: first_step.close(),
                lambda state, result: onlookers.note(state.step),
                throughput,
                Pace(tracker),
                tracking,
                reach_milestones,
                preemption.obey(save),
            ],
            notify=heartbeat.beat,
            objective=job.objective,
        )
        rates = throughput.report()  # before the last checkpoint is waited for
        with heartbeat.phase("writing the last checkpoint"):
            writer.wait()
        preemption.obey_last(state)
    meter.note_rates(rates)
    if world.is_main:
        logger.info("%s", rates_as_text(rates))
    tracker.flush()
    if state.step < plan.num_steps and gives_up(state):  # at its end there is nothing to give up
        raise Pruned(f"given up at step {state.step} of {plan.num_steps}", step=state.step)


def _measure(job: Job, meter: CostMeter, world: World) -> Throughput:
    """Counts the tokens of all processes, held against the peak of all their devices."""
    # A token of a pack attends to its own row.
    return Throughput(
        meter,
        flops_per_token=training_flops_per_token(job.model, mean_length=mean_length(attended_lengths(job.train_data))),
        peak_flops=peak_flops(job.device, job.config.training.precision, num_devices=world.size),
    )


def _begin_together(group: Group, job: Job, *, now: Callable[[], datetime]) -> RunFolder:
    """The new run's folder, made by the main process."""
    path = str(begin_run(job, now=now()).path) if group.world.is_main else ""
    return RunFolder(Path(group.from_main(path)))


def _with_world_size(config: RunConfig, size: int) -> RunConfig:
    distributed = config.training.distributed.model_copy(update={"world_size": size})
    return config.model_copy(update={"training": config.training.model_copy(update={"distributed": distributed})})


if __name__ == "__main__":
    from nexa_core.command import enter

    enter("train")
