"""Settings of a training run's optimisation, checkpoints and determinism."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from nexa_core.config.base import Settings

PositiveInt = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
NonNegative = Annotated[float, Field(ge=0)]


class Adam(Settings):
    """Adam. Source: Kingma and Ba 2015, arXiv:1412.6980."""

    name: Literal["adam"]
    lr: PositiveFloat = 1e-3
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8


class AdamW(Settings):
    """Adam with decoupled weight decay. Source: Loshchilov and Hutter 2019, arXiv:1711.05101."""

    name: Literal["adamw"]
    lr: PositiveFloat = 1e-3
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegative = 0.01
    """Decay of the weight matrices; biases and norms (tensors of one dimension) are not decayed."""


class Sgd(Settings):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"]
    lr: PositiveFloat = 1e-2
    momentum: Beta = 0.9
    nesterov: bool = False
    weight_decay: NonNegative = 0.0

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.nesterov and self.momentum == 0:
            yield ("nesterov",), "Nesterov's step needs a momentum above 0"


Optimizer = Annotated[Adam | AdamW | Sgd, Field(discriminator="name")]


class WarmUp(Settings):
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps over which the learning rate rises linearly to its full value."""


class ConstantSchedule(WarmUp):
    name: Literal["constant"]


class LinearSchedule(WarmUp):
    name: Literal["linear"]
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the full learning rate at the last step."""


class CosineSchedule(WarmUp):
    name: Literal["cosine"]
    final_fraction: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the full learning rate at the last step."""


class StepSchedule(WarmUp):
    name: Literal["step"]
    every_steps: PositiveInt
    """Optimizer steps between two drops."""
    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """What the learning rate is multiplied with at each drop."""


Schedule = Annotated[ConstantSchedule | LinearSchedule | CosineSchedule | StepSchedule, Field(discriminator="name")]


class EarlyStopping(Settings):
    """Stops when the validation loss has not improved for some epochs."""

    patience_epochs: PositiveInt
    min_improvement: NonNegative = 0.0
    """Nats by which the validation loss has to fall to count as better."""


class Packing(Settings):
    """Several rows in one sequence, each attending to itself only: no padding between rows of unequal length.

    A pack then takes the place of a row: `batch_size` counts packs.
    """

    max_tokens: PositiveInt | None = None
    """Tokens of a pack; the model's own `max_tokens` without it. Positions restart with each row, so it may be more."""


class Checkpoints(Settings):
    """When a run can be resumed from, and what is kept. Every epoch leaves `checkpoint_epoch<N>.pt`, or a folder
    `checkpoint_epoch<N>.sharded` with strategy fsdp."""

    every_steps: PositiveInt | None = None
    """Also leave a `checkpoint_step<N>.pt` every so many optimizer steps; the two newest are kept."""
    save_top_k: PositiveInt | None = None
    """Keep only the epochs with the k lowest validation losses, and the last one; without it all are kept."""


class Distributed(Settings):
    """Training in several processes, on one machine or many. See `docs/distributed.md`."""

    world_size: PositiveInt = 1
    """Number of training processes. Above 1 they are launched by `train` itself, unless a launcher such as torchrun has."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """ddp: each process holds the whole model. fsdp: weights, gradients and optimizer are sharded over the processes."""
    determinism: Literal["exact", "fast"] | None = None
    """exact: gradients are summed in one order, so 1, 2 and 4 processes give the same bytes. fast: whatever order the
    library sums in. Without it: exact on a CPU with ddp, fast elsewhere."""
    timeout_seconds: PositiveFloat = 300.0
    """How long a process may go without a step before the run ends, naming it."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the initial weights, the order of the data and dropout; equal seeds give equal bytes."""

    def is_exact(self, device_type: str) -> bool:
        """Whether any number of processes on such devices ("cpu", "cuda") gives the same bytes."""
        if self.determinism is None:
            return device_type == "cpu" and self.strategy == "ddp"
        return self.determinism == "exact"

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.strategy == "fsdp" and self.determinism == "exact":
            yield ("determinism",), "fsdp sums its shards in the library's own order; use fast, or strategy: ddp"
        if self.determinism == "exact" and self.world_size & (self.world_size - 1):
            yield ("world_size",), "exact sums in a binary tree, which needs 1, 2, 4, 8, ... processes; or use fast"


class Training(Settings):
    epochs: PositiveInt = 10
    """Passes over the training split."""
    max_steps: PositiveInt | None = None
    """Stop after so many optimizer steps, wherever that is in an epoch."""
    batch_size: PositiveInt = 32
    """Rows per optimizer step."""
    gradient_accumulation_steps: PositiveInt | None = None
    """Microbatches that each batch is cut into, over all processes; the loss and gradients stay those of the whole batch.
    Without it 4 where determinism is exact, so that up to 4 processes share the same cut, and else one a process."""
    packing: Packing | None = None
    length_grouping: bool = False
    """Rows of like length share a batch, so that less of it is padding; the order of the batches stays random."""
    compile: bool = False
    """Compile the model with torch.compile, and the attention inside packs on processors with AVX-512: slower to start,
    faster steps. Needs a C++ compiler."""
    activation_checkpointing: bool = False
    """Compute each layer's activations again in the backward pass instead of keeping them: less memory, more work."""
    data_workers: Annotated[int, Field(ge=0)] = 1
    """Threads that put batches together ahead of the step that needs them; what a step learns from never depends on it."""
    optimizer: Optimizer = AdamW(name="adamw")
    schedule: Schedule = ConstantSchedule(name="constant")
    max_gradient_norm: PositiveFloat | None = None
    """Gradients of a larger global norm are scaled down to it."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: forward passes under autocast, with fsdp all of them in bfloat16; weights and optimizer stay float32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: the GPU where one is visible."""
    num_threads: PositiveInt | None = None
    """Processor threads of each operation; all cores without it. Small models are fastest, and undisturbed, with 1."""
    keep: Literal["best", "last"] = "best"
    """Which epoch's weights are the run's result: the lowest validation loss, or the last."""
    early_stopping: EarlyStopping | None = None
    checkpoints: Checkpoints = Checkpoints()
    distributed: Distributed = Distributed()

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.packing is not None and self.length_grouping:
            yield ("length_grouping",), "packs leave no padding to save; use packing or length_grouping"
        if self.gradient_accumulation_steps is not None and self.gradient_accumulation_steps > self.batch_size:
            reason = (
                f"cannot cut a batch of {self.batch_size} rows into {self.gradient_accumulation_steps} microbatches"
            )
            yield ("gradient_accumulation_steps",), reason
