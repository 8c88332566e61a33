"""What a run would be, said before it begins and without a GPU: what it reads, learns, needs, takes and costs."""

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from nexa_core.config import RunConfig
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_data.datasets import Dataset
from nexa_models import numerics
from nexa_models.encoding import Encoded
from nexa_models.flops import PEAKS, attended_lengths, mean_length
from nexa_models.spec import ModelSpec, describe_model
from nexa_ops.forecast.batches import Fill, find_heaviest, find_heaviest_looked_at, measure_fill
from nexa_ops.forecast.checks import check_files, check_room, check_scored
from nexa_ops.forecast.mask import Preview, preview
from nexa_ops.forecast.memory import Memory, estimate, load_what_training_loads, read_process, size_text
from nexa_ops.forecast.pace import Pace, from_peak, make_pace, time_steps
from nexa_ops.forecast.parameters import Parameters
from nexa_ops.forecast.place import Place, choose_place
from nexa_ops.forecast.rows import RowCounts, count_rows
from nexa_ops.forecast.trace import Traced, trace
from nexa_train.distributed.health import Check
from nexa_train.distributed.world import World
from nexa_train.feed import Feed
from nexa_train.job import arrange, count_microbatches, encode_split, encode_training, ensure_dataset, make_plan
from nexa_train.lesson import Lesson, plan_lesson
from nexa_train.order import Plan
from nexa_train.room import Checkpoints, count_checkpoints, schedule_checkpoints


@dataclass(frozen=True)
class Steps:
    epochs: int
    per_epoch: int
    total: int
    num_microbatches: int
    """Of each step, over all processes."""
    slots_per_step: float
    padding_share: float

    def as_text(self) -> str:
        parts = [f"{self.total:,} steps, {self.per_epoch:,} an epoch, {self.num_microbatches} microbatches each"]
        return f"{parts[0]}, {self.slots_per_step:,.0f} tokens or rows a step, {self.padding_share:.1%} of them padding"


@dataclass(frozen=True)
class Forecast:
    """What is known of a run whose data is sound."""

    rows: tuple[RowCounts, ...]
    masks: tuple[Preview, ...]
    parameters: Parameters
    model_files: dict[str, str]
    """The sha256 of each file of a model that is brought along."""
    steps: Steps
    memory: Memory
    checkpoints: Checkpoints
    pace: Pace | None
    """None where nothing says how fast the device is."""
    cost_usd: float | None
    """None without a price or a pace."""


@dataclass(frozen=True)
class Preflight:
    config: RunConfig
    place: Place
    dataset: Dataset
    checks: tuple[Check, ...]
    """What was held against this machine and against the disk."""
    forecast: Forecast | None
    """None where the dataset is damaged."""

    @property
    def problems(self) -> list[Check]:
        return [check for check in self.checks if check.failed]

    def as_json(self) -> dict[str, Any]:
        forecast, place = self.forecast, self.place
        known: dict[str, Any] = {}
        if forecast is not None:
            known = {
                "rows": [each.as_json() for each in forecast.rows],
                "masks": [each.as_json() for each in forecast.masks],
                "parameters": forecast.parameters.as_json(),
                "model_files": forecast.model_files,
                "steps": asdict(forecast.steps),
                "memory_bytes": forecast.memory.as_json(),
                "checkpoints": forecast.checkpoints.as_json(),
                "time": None if forecast.pace is None else forecast.pace.as_json(),
                "cost_usd": forecast.cost_usd,
            }
        return {
            "works": not self.problems,
            "problems": [{"name": check.name, "says": check.says, "do": check.do} for check in self.problems],
            "checks": [asdict(check) for check in self.checks],
            "name": self.config.name,
            "dataset": {"key": self.dataset.key, "kind": self.dataset.kind, "fingerprint": self.dataset.fingerprint},
            "model": self.config.model.name,
            "place": {**asdict(place.world), "on_gpu": place.on_gpu, "gpu": place.gpu, "is_here": place.is_here},
            **known,
        }

    def as_text(self, *, colour: bool = False) -> str:
        lines = [f"{self.config.name}: {self.config.model.name} on {self.dataset.key}, {self.place.as_text()}"]
        if (forecast := self.forecast) is not None:
            lines += [_line("rows", each.as_text()) for each in forecast.rows]
            lines.append(_line("model", forecast.parameters.as_text()))
            lines.append(_line("steps", forecast.steps.as_text()))
            lines.append(_line("memory", forecast.memory.as_text()))
            lines.append(_line("checkpoints", _checkpoints_text(forecast.checkpoints)))
            unknown = "unknown: name the GPU with --gpu"
            lines.append(_line("time", unknown if forecast.pace is None else forecast.pace.as_text()))
            if forecast.cost_usd is not None:
                lines.append(_line("cost", f"about {forecast.cost_usd:,.2f} USD"))
        marks = {True: "ok", False: "BAD", None: "?"}
        lines += [_line(check.name, f"{marks[check.passed]}: {check.says}") for check in self.checks]
        if forecast is not None:
            lines += [each.as_text(colour=colour) for each in forecast.masks]
        lines += [f"{check.name}: {check.do}" for check in self.problems]
        return "\n".join([*lines, "it cannot work as it is" if self.problems else "nothing stands against it"])

    def require_pass(self) -> None:
        """Raises GateError when the run cannot work."""
        if self.problems:
            raise GateError(f"{self.config.name} cannot run: {', '.join(check.name for check in self.problems)}")


def examine(
    config: RunConfig,
    layout: Layout,
    *,
    num_nodes: int = 1,
    gpus_per_node: int | None = None,
    gpu: str | None = None,
    memory_gib: float | None = None,
    host_memory_gib: float | None = None,
) -> Preflight:
    """Work the run out, through the same pieces as training; writes nothing but a dataset that is not there yet.

    Args:
        gpus_per_node: 0 for processors only; without it what the config and this machine say.
        gpu: a name in `nexa_models.flops.PEAKS`, to tell the time by.
        memory_gib: what a GPU has, or where there are none, a machine; without it this machine is looked at.
        host_memory_gib: what a machine with GPUs has beside theirs, likewise.

    Raises:
        UserError: the config fits neither the data nor the place, as training would say.
    """
    place = choose_place(config, num_nodes=num_nodes, gpus_per_node=gpus_per_node, gpu=gpu)
    if host_memory_gib is not None and not place.on_gpu:
        raise UserError("--host-memory is for machines with GPUs; of one without, --memory says what it has.")
    place = replace(place, memory_bytes=_bytes(memory_gib), host_memory_bytes=_bytes(host_memory_gib))
    numerics.make_deterministic(config.training.num_threads)
    if place.is_here:
        numerics.check_precision(config.training.precision, place.device)
    dataset = ensure_dataset(layout, config.data)
    whole, damaged = check_files(layout, dataset)
    if damaged:
        return Preflight(config, place, dataset, (whole,), None)
    forecast, checks = _forecast(config, layout, place, dataset)
    return Preflight(config, place, dataset, (whole, *checks), forecast)


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else int(gib * 2**30)


def _forecast(config: RunConfig, layout: Layout, place: Place, dataset: Dataset) -> tuple[Forecast, list[Check]]:
    training, world = config.training, place.world
    is_exact = training.distributed.is_exact("cuda" if place.on_gpu else "cpu")
    num_microbatches = count_microbatches(training, world, exact=is_exact)
    spec = describe_model(config.model, dataset)
    load_what_training_loads(spec, config)
    splits = tuple(dict.fromkeys(("train", "val", config.evaluation.split)))
    encoded = {"train": encode_training(dataset, spec, World())}
    encoded |= {split: encode_split(dataset, split, spec) for split in splits[1:]}
    most_rows = -(-training.batch_size // num_microbatches)
    lesson = None
    if config.distillation is not None:
        encoded["train"], lesson = plan_lesson(
            config.distillation,
            encoded["train"],
            spec,
            dataset,
            layout,
            is_packing=training.packing is not None,
            is_sharded=training.distributed.strategy == "fsdp" and not world.is_alone,
        )
    data = arrange(encoded["train"], spec, training, num_rows=most_rows)
    if not len(data):
        raise UserError(f"Dataset {dataset.key} has no rows to train on.")
    plan = make_plan(config, data, encoded["val"], num_microbatches)
    process = read_process()  # as it is when a run builds its model
    fill = measure_fill(data, plan)
    traced = trace(
        spec,
        config,
        plan=plan,
        data=data,
        heaviest=find_heaviest(data, plan),
        looked_at=[
            batch
            for split in splits[1:]
            for batch in find_heaviest_looked_at(encoded[split], config.evaluation.batch_size)
        ],
        saves_midway=len(schedule_checkpoints(plan, training)) > 1,
        mean_length=mean_length(attended_lengths(encoded["train"])),
        world=world,
        is_exact=is_exact,
        on_gpu=place.on_gpu,
        lesson=lesson,
    )
    checkpoints = count_checkpoints(plan, training, spec, tensor_bytes=traced.checkpoint, is_sharded=traced.is_sharded)
    memory = estimate(process, traced, on_gpu=place.on_gpu, num_local=world.local_size)
    checks = [check_scored(dataset, config), *check_room(config, layout, place, memory, checkpoints)]
    fits = not any(check.failed for check in checks)
    known = _time_a_step(spec, config, data, plan, place, traced, fill, lesson, is_exact=is_exact) if fits else None
    pace = None
    if known is not None:
        num_looks = -(-plan.num_steps // plan.steps_per_epoch)
        looked_at = num_looks * _size(encoded["val"]) + _size(encoded[config.evaluation.split])
        pace = make_pace(known, plan, slots_per_step=fill.slots_per_step, slots_looked_at=looked_at, world=world)
    price = config.cost.usd_per_hour
    forecast = Forecast(
        rows=tuple(count_rows(split, partial(dataset.read_split, split), encoded[split], spec) for split in splits),
        masks=preview(data, plan, spec),
        parameters=traced.parameters,
        model_files={} if spec.pretrained is None else dict(spec.pretrained.files),
        steps=Steps(
            epochs=training.epochs,
            per_epoch=plan.steps_per_epoch,
            total=plan.num_steps,
            num_microbatches=num_microbatches,
            slots_per_step=fill.slots_per_step,
            padding_share=fill.padding_share,
        ),
        memory=memory,
        checkpoints=checkpoints,
        pace=pace,
        cost_usd=None if pace is None or price is None else pace.seconds / 3600 * price * world.num_nodes,
    )
    return forecast, checks


def _size(encoded: Encoded) -> int:
    """Tokens of a split, or rows where rows have none."""
    return int(encoded.token_counts_N.sum()) or len(encoded)


def _time_a_step(
    spec: ModelSpec,
    config: RunConfig,
    data: Encoded,
    plan: Plan,
    place: Place,
    traced: Traced,
    fill: Fill,
    lesson: Lesson | None,
    *,
    is_exact: bool,
) -> tuple[float, str] | None:
    world, flops_per_step = place.world, traced.flops_per_token * fill.slots_per_step
    if place.gpu is not None:
        peak = PEAKS[place.gpu][0 if config.training.precision == "bfloat16" else 1]
        return from_peak(place.gpu, peak, flops_per_step=flops_per_step, world=world)
    if place.on_gpu and not place.is_here:
        return None
    feed = Feed(data, plan, 0, world.size, config.training.data_workers, place.device)
    return time_steps(
        spec,
        config,
        feed=feed,
        world=world,
        is_exact=is_exact,
        device=place.device,
        flops_per_step=flops_per_step / world.size,
        lesson=lesson,
    )


def _checkpoints_text(found: Checkpoints) -> str:
    each, most = size_text(found.size_bytes), size_text(found.disk_bytes)
    return f"{found.written:,} written, {found.kept:,} kept, {each} each, {most} at most"


def _line(name: str, text: str) -> str:
    return f"  {name:<12} {text}"
