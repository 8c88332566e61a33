"""The most memory that a training process takes at once: its tensors counted, all else measured in this process."""

import resource
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nexa_core.config import RunConfig
from nexa_models.spec import ModelSpec
from nexa_models.table import build_model
from nexa_ops.forecast.trace import Traced, unquantized
from nexa_train.optim import build_optimizer

STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Process:
    """This process's memory in bytes, tensors and all."""

    now: int
    peak: int


@dataclass(frozen=True)
class Memory:
    """Bytes of the first training process, and in the machine's memory of all those on its node."""

    process: int
    """The interpreter, its libraries and the encoded rows."""
    weights: int
    teacher: int
    """The weights of the model that is learned from; 0 without one."""
    gradients: int
    optimizer: int
    step: int
    """Gradients, their partial sums, activations and logits when they are most at once."""
    evaluation: int
    """Activations and logits of a batch of the evaluation."""
    checkpoint: int
    """The copy of weights and optimizer that is written while training goes on; with fsdp a process's share."""
    host: int
    """The most at once in the machine's memory."""
    host_when: str
    node: int
    """The most at once in the machine's memory, of all processes there."""
    node_when: str
    gpu: int | None
    """The most at once in a GPU's, without the 0.5 GiB or so that its driver takes; None without one."""
    gpu_when: str | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        names = ["process", "weights", "teacher", "optimizer", "step", "evaluation", "checkpoint"]
        if not self.teacher:
            names.remove("teacher")
        parts = ", ".join(f"{name} {size_text(getattr(self, name))}" for name in names)
        host = f"{size_text(self.host)} a process, most while {self.host_when}"
        if self.gpu is None:
            return f"{host} ({parts})"
        node = f"{size_text(self.node)} of a node, most while {self.node_when}"
        return f"{size_text(self.gpu)} of its GPU, most while {self.gpu_when}; {host}; {node} ({parts})"


def read_process() -> Process:
    """What the system says of this process; where it has no /proc, its peak for both."""
    try:
        lines = STATUS.read_text(encoding="ascii").splitlines()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return Process(peak, peak)
    values = dict(line.split(":", 1) for line in lines)
    return Process(*(int(values[name].split()[0]) * 1024 for name in ("VmRSS", "VmHWM")))


def load_what_training_loads(spec: ModelSpec, config: RunConfig) -> None:
    """Bring into this process what a run brings into its own before it trains: libraries and the model's code."""
    weights = nn.Linear(8, 8)
    optimizer = build_optimizer(weights, config.training.optimizer)
    weights(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    with FakeTensorMode():
        build_model(unquantized(spec))


def estimate(process: Process, traced: Traced, *, on_gpu: bool, num_local: int) -> Memory:
    """The fullest of the phases, of the first process and of its node.

    Args:
        process: as it is with all rows encoded, before there is a model.
        num_local: processes on a node.
    """
    weights, state = traced.weights, traced.weights + traced.teacher + traced.optimizer
    scoring = traced.teacher + traced.result + traced.evaluation
    on_device = {
        "training": state + traced.step,
        "validating": state + traced.evaluation,
    }
    if not traced.is_sharded:
        on_device["scoring"] = weights + scoring
    on_host = others = traced.kept
    if on_gpu:
        copied = traced.copied  # into memory that the GPU reads from, which is kept
        left = copied + (weights if traced.is_sharded else 0)  # shards leave the GPU when the training is over
        on_host = {
            "loading": traced.kept["loading"],
            "saving": copied,
            "reading the result back": left + traced.checkpoint + traced.result,
        }
        others = {**dict.fromkeys(on_host, 0), "loading": traced.kept["loading"]}
        if traced.is_sharded:  # the result is scored here where one GPU has no room for it
            on_host["scoring"] = left + scoring
            others |= {"saving": copied, "reading the result back": left, "scoring": left}
    on_node = {
        name: size + (num_local - 1) * others[name] + num_local * process.now for name, size in on_host.items()
    } | {"encoding": num_local * process.peak}
    on_host = {name: size + process.now for name, size in on_host.items()} | {"encoding": process.peak}
    host_when = max(on_host, key=lambda name: on_host[name])
    node_when = max(on_node, key=lambda name: on_node[name])
    gpu_when = max(on_device, key=lambda name: on_device[name]) if on_gpu else None
    return Memory(
        process=process.now,
        weights=weights,
        teacher=traced.teacher,
        gradients=traced.gradients,
        optimizer=traced.optimizer,
        step=traced.step,
        evaluation=traced.evaluation,
        checkpoint=traced.copied,
        host=on_host[host_when],
        host_when=host_when,
        node=on_node[node_when],
        node_when=node_when,
        gpu=None if gpu_when is None else on_device[gpu_when],
        gpu_when=gpu_when,
    )


def size_text(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB" if size_bytes >= 2**30 else f"{size_bytes / 2**20:.0f} MiB"
