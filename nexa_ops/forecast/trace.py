"""A run's own steps on tensors without storage: what they would hold, with nothing allocated and on no device."""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import fake_tensor

from nexa_core.config import RunConfig
from nexa_core.errors import UserError
from nexa_models.encoding import Batch, Encoded
from nexa_models.flops import training_flops_per_token
from nexa_models.lora import saved_state
from nexa_models.loss import summed_loss
from nexa_models.spec import ModelSpec
from nexa_models.table import build_model
from nexa_ops.forecast.batches import Microbatch
from nexa_ops.forecast.heap import replay
from nexa_ops.forecast.live_bytes import LiveBytes
from nexa_ops.forecast.parameters import Parameters, count_parameters, tensors_in
from nexa_ops.forecast.rehearsal import rehearse
from nexa_train.distilling import FromTeacher
from nexa_train.distributed.world import World
from nexa_train.feed import Feed, StepData
from nexa_train.job import check_shardable, is_packed, made_fast
from nexa_train.lesson import Lesson
from nexa_train.loop import State, StepResult
from nexa_train.objectives import cross_entropy
from nexa_train.optim import build_optimizer
from nexa_train.order import Plan
from nexa_train.room import bytes_of, checkpoint_bytes

CPU = torch.device("cpu")
MOST_TRACED = 8
"""Microbatches of a step that one process is traced through; further ones add but to the partial sums."""
NF4_BYTES = 0.516
"""Of a weight in 4 bits, with its scales. Source: Dettmers et al. 2023, arXiv:2305.14314, section 3: 4.127 bits."""
FORWARD_SHARE_FROZEN = 1 / 2
"""Of the operations of a forward and backward pass of a model that gets no gradients: the teacher goes forward only."""
UNTRACEABLE = (
    fake_tensor.DataDependentOutputException,
    fake_tensor.DynamicOutputShapeException,
    fake_tensor.UnsupportedOperatorException,
)
"""What a model ends in that looks at the values of its tensors, where there are none."""


@dataclass(frozen=True)
class Traced:
    """Bytes of one process's tensors, and what else a model without storage tells."""

    parameters: Parameters
    flops_per_token: float
    """Of a forward and backward pass; of a row, where rows have no tokens."""
    weights: int
    """Parameters and buffers, trained or not."""
    teacher: int
    """Those of the model that is learned from, which every process has whole."""
    gradients: int
    optimizer: int
    step: int
    """Gradients, their partial sums, activations and logits when they are most at once."""
    evaluation: int
    """Activations and logits of a batch that is only looked at, likewise."""
    checkpoint: int
    """Weights and optimizer as they are saved, by all processes."""
    copied: int
    """What this process copies of them before it is written."""
    result: int
    """Weights of the model that is scored at the end, which is whole."""
    is_sharded: bool
    """Whether weights, gradients, optimizer and the copy are this process's share."""
    kept: dict[str, int]
    """By phase, what a process that computes on a processor keeps at most for all of its tensors."""


def trace(
    spec: ModelSpec,
    config: RunConfig,
    *,
    plan: Plan,
    data: Encoded,
    heaviest: Sequence[Microbatch],
    looked_at: Sequence[Batch],
    saves_midway: bool,
    mean_length: float,
    world: World,
    is_exact: bool,
    on_gpu: bool,
    lesson: Lesson | None,
) -> Traced:
    """Go through a run from the model's building to its scores, by the very loop that trains, in the heaviest steps only.

    Each operation holds what it holds on a processor. For a GPU a pack is taken for one document: the attention that
    is used there holds no mask, like that of one document here.

    Raises:
        UserError: the model cannot be built, or looks at the values of its tensors.
    """
    midway = saves_midway and not on_gpu  # from a GPU the copy goes to the machine's memory
    live = LiveBytes()
    try:
        with fake_tensor.FakeTensorMode() as mode, live:
            live.phase = "loading"
            uncompiled = config.training.model_copy(update={"compile": False})
            model = made_fast(build_model(unquantized(spec)), uncompiled, packed=is_packed(data))
            is_sharded = config.training.distributed.strategy == "fsdp" and not world.is_alone
            if is_sharded:
                check_shardable(model)
            if spec.pretrained is not None:
                _copies(model.state_dict())
            objective = cross_entropy if lesson is None else lesson.imagined(CPU, writes=False)
            teacher = objective.teacher.model if isinstance(objective, FromTeacher) else None
            taught = 0 if teacher is None else bytes_of([*teacher.parameters(), *teacher.buffers()])
            if teacher is not None:
                _copies(teacher.state_dict())
            state = State(model, build_optimizer(model, config.training.optimizer))
            live.phase = "training"
            saver = _Saver(spec) if midway else None
            rehearse(
                state,
                _Chosen(data, plan, 0, world.size, 0, CPU, tuple(heaviest), mode, on_gpu),
                config,
                world=world,
                is_exact=is_exact,
                should_stop=lambda state: False,
                hooks=[] if saver is None else [saver],
                objective=objective,
            )
            live.phase = "validating"
            batches = [_without_storage(batch, mode) for batch in looked_at]
            _look(model, batches)
            live.phase = "saving"
            saver = saver or _Saver(spec)
            saver.save(state)
            _copies(max(saver.copies, key=_size))  # on its way to the file
            saver.copies.clear()
            optimizer, saved = bytes_of(tensors_in(state.optimizer.state_dict())), _shapes(_saved(state, spec))
            state.optimizer.state.clear()
            live.phase = "reading the result back"
            read = _tensors(saved)
            result = build_model(unquantized(spec))
            del read
            live.phase = "scoring"
            _look(result, batches)
    except UNTRACEABLE as error:
        raise UserError(
            f"Model '{spec.model['name']}' looks at the values of its tensors ({type(error).__name__}), so that what it "
            "holds cannot be told before it trains. Train a few steps instead (--override training.max_steps=3) and read "
            "peak_memory_bytes in the run's cost.json."
        ) from None
    weights = bytes_of([*model.parameters(), *model.buffers()])
    checkpoint = checkpoint_bytes(model, spec, config.training.optimizer)
    held = weights + taught + optimizer + (checkpoint if midway else 0)
    num_passes = (len(heaviest) + 1) * min(-(-len(plan.microbatches(0)) // world.size), MOST_TRACED)
    gradients = bytes_of([weight for weight in model.parameters() if weight.requires_grad])
    traced = Traced(
        parameters=count_parameters(model),
        flops_per_token=training_flops_per_token(model, mean_length=mean_length)
        + (
            0.0
            if teacher is None
            else FORWARD_SHARE_FROZEN * training_flops_per_token(teacher, mean_length=mean_length)
        ),
        weights=weights,
        teacher=taught,
        gradients=gradients,
        optimizer=optimizer,
        step=live.peak_of("training") - held,
        evaluation=max(0, live.peak_of("validating") - held),
        checkpoint=checkpoint,
        copied=checkpoint,
        result=weights,
        is_sharded=False,
        kept=replay(live.events, pass_length=live.count_in("training") / num_passes),
    )
    traced = _with_sums(traced, _untraced_sums(plan, config, world, is_exact=is_exact))
    if spec.lora is not None and spec.lora.quantization is not None:
        traced = _quantized(traced, model)
    return _sharded(traced, model, config, plan, world, midway=midway) if is_sharded else traced


def unquantized(spec: ModelSpec) -> ModelSpec:
    """The spec of the same layers in float32, which can be built where there is no GPU."""
    lora = spec.model.get("lora")
    return spec if lora is None else replace(spec, model={**spec.model, "lora": {**lora, "quantization": None}})


@dataclass(frozen=True)
class _Chosen(Feed):
    """A feed of the steps with the heaviest microbatches, the last of them twice."""

    heaviest: tuple[Microbatch, ...]
    mode: fake_tensor.FakeTensorMode
    on_gpu: bool

    def steps(self, first: int) -> Generator[StepData, None, None]:
        for microbatch in (*self.heaviest, self.heaviest[-1]):
            yield self._step(microbatch)

    def _step(self, heaviest: Microbatch) -> StepData:
        """The microbatch's step as far as it is traced, the microbatch itself in front."""
        made = self.make(heaviest.step)
        count = min(made.num_microbatches, MOST_TRACED * self.num_shares)
        batches = {index: batch for index, batch in made.batches.items() if index < count}
        batches[self.share] = self.data.batch(heaviest.rows)
        fake = {index: self._fake(batch) for index, batch in batches.items()}
        return replace(made, batches=fake, num_microbatches=count, filler=None)

    def _fake(self, batch: Batch) -> Batch:
        if self.on_gpu:
            batch = replace(batch, inputs={name: each for name, each in batch.inputs.items() if name != "documents"})
        return _without_storage(batch, self.mode)


class _Saver:
    """The copy that checkpoints are written from: taken once, after the first step, and used again each time."""

    def __init__(self, spec: ModelSpec):
        self._spec = spec
        self.copies: list[Tensor] = []

    def __call__(self, state: State, result: StepResult) -> None:
        self.save(state)

    def save(self, state: State) -> None:
        if not self.copies:
            self.copies = _copies(_saved(state, self._spec))


@torch.no_grad()
def _look(model: nn.Module, batches: Sequence[Batch]) -> None:
    """As validation does: one batch's logits are held while the next ones are computed."""
    model.eval()
    logits = None
    for batch in [*batches, *batches]:
        logits = model(**batch.inputs)
        summed_loss(logits, batch.targets)
    del logits


def _saved(state: State, spec: ModelSpec) -> dict[str, Any]:
    return {"model": saved_state(state.model, spec), "optimizer": state.optimizer.state_dict()}


def _copies(value: Any) -> list[Tensor]:
    """A copy of each storage behind the tensors in a value."""
    return _tensors(_shapes(value))


def _shapes(value: Any) -> list[tuple[torch.Size, torch.dtype]]:
    distinct = {tensor.untyped_storage()._cdata: tensor for tensor in tensors_in(value)}
    return [(tensor.shape, tensor.dtype) for tensor in distinct.values()]


def _tensors(shapes: Sequence[tuple[torch.Size, torch.dtype]]) -> list[Tensor]:
    return [torch.empty(shape, dtype=dtype) for shape, dtype in shapes]


def _size(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def _without_storage(batch: Batch, mode: fake_tensor.FakeTensorMode) -> Batch:
    def fake(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}

    return replace(batch, inputs=fake(batch.inputs), targets=mode.from_tensor(batch.targets), beside=fake(batch.beside))


def _untraced_sums(plan: Plan, config: RunConfig, world: World, *, is_exact: bool) -> int:
    """Copies of the gradients that a step holds besides those that the trace has seen."""
    if is_exact:
        count = -(-len(plan.microbatches(0)) // world.size)
        return max(0, math.ceil(math.log2(count)) - math.ceil(math.log2(MOST_TRACED)))
    # DistributedDataParallel copies the gradients into the buckets that it reduces.
    return int(not world.is_alone and config.training.distributed.strategy == "ddp")


def _with_sums(traced: Traced, count: int) -> Traced:
    more = count * traced.gradients
    kept = {**traced.kept, "training": traced.kept["training"] + more}
    return replace(traced, step=traced.step + more, kept=kept)


def _quantized(traced: Traced, model: nn.Module) -> Traced:
    """With the base's layers in 4 bits, of which one at a time is written out in bfloat16."""
    linear = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and not layer.weight.requires_grad]
    sizes = [layer.weight.numel() for layer in linear]
    weights = traced.weights - int(sum(sizes) * (4 - NF4_BYTES))
    return replace(traced, weights=weights, result=weights, step=traced.step + 2 * max(sizes, default=0))


def _sharded(traced: Traced, model: nn.Module, config: RunConfig, plan: Plan, world: World, *, midway: bool) -> Traced:
    """With weights, gradients, optimizer and their copy shared out, and what is gathered of them for the computation.

    That is two layers at a time and all that is in none of them; or everything, where a process has several microbatches
    and its gradients are not reduced before the last.
    """
    num_shares = world.size
    gathered, gradients = traced.weights, traced.gradients
    if len(plan.microbatches(0)) <= num_shares:
        layers = [
            bytes_of(layer.parameters())
            for module in model.modules()
            if isinstance(module, nn.ModuleList)
            for layer in module
        ]
        gathered += 2 * max(layers, default=0) - sum(layers)
        gradients //= num_shares
    if config.training.precision == "bfloat16":
        gathered //= 2
    weights, optimizer = traced.weights // num_shares, traced.optimizer // num_shares
    step = traced.step - traced.gradients + gradients + gathered
    copied = traced.checkpoint // num_shares
    spared = traced.weights + traced.optimizer + traced.step - weights - optimizer - step
    spared_copy = traced.checkpoint - copied
    kept = {
        **traced.kept,
        "training": traced.kept["training"] - spared - (spared_copy if midway else 0),
        "validating": traced.kept["validating"] - spared - (spared_copy if midway else 0),
        "saving": traced.kept["saving"] - spared - spared_copy,
        **{
            name: traced.kept[name] - (traced.weights - weights)  # the shards that are still there
            for name in ("reading the result back", "scoring")
        },
    }
    return replace(traced, weights=weights, optimizer=optimizer, step=step, copied=copied, is_sharded=True, kept=kept)
