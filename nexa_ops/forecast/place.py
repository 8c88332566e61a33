"""Where a run is to be: how many processes, on which devices, here or elsewhere."""

from dataclasses import dataclass

import torch

from nexa_core.config import RunConfig
from nexa_core.errors import UserError
from nexa_core.lookup import did_you_mean
from nexa_models.flops import PEAKS
from nexa_ops.nodes import processes_per_node, require_world_size
from nexa_train.distributed.world import World


@dataclass(frozen=True)
class Place:
    """Where the run is to be."""

    world: World
    """As its first process sees it."""
    on_gpu: bool
    gpu: str | None
    """Its name in `PEAKS`."""
    is_here: bool
    """On this machine, with the devices that it has."""
    memory_bytes: int | None
    """Of a GPU, or of a machine of processors; None where nobody said."""
    host_memory_bytes: int | None
    """Of a machine with GPUs, likewise."""

    @property
    def device(self) -> torch.device:
        """The one that stands in for it here."""
        return torch.device("cuda" if self.on_gpu and self.is_here else "cpu")

    def as_text(self) -> str:
        world = self.world
        device = f"{self.gpu or 'a GPU'} each" if self.on_gpu else "on processors"
        where = "this machine" if self.is_here else f"{world.num_nodes} {'node' if world.num_nodes == 1 else 'nodes'}"
        return f"{world.size} {'process' if world.size == 1 else 'processes'}, {device}, on {where}"


def choose_place(config: RunConfig, *, num_nodes: int, gpus_per_node: int | None, gpu: str | None) -> Place:
    """The place that the config and what was asked for agree on.

    Raises:
        UserError: they do not.
    """
    asked = config.training.device
    if gpu is not None and gpu not in PEAKS:
        raise UserError(f"Unknown GPU '{gpu}'.{did_you_mean(gpu, PEAKS)} Known: {', '.join(PEAKS)}")
    if asked == "cpu" and (gpus_per_node or gpu is not None):
        raise UserError("training.device is cpu, and --gpus-per-node and --gpu speak of GPUs: leave them away.")
    if gpus_per_node == 0 and (asked == "cuda" or gpu is not None):
        raise UserError("--gpus-per-node 0 leaves none for training.device: cuda or --gpu.")
    on_gpu = bool(gpus_per_node) or gpu is not None or asked == "cuda"
    if gpus_per_node is None and asked == "auto":
        on_gpu = on_gpu or torch.cuda.is_available()
    local_size = gpus_per_node or processes_per_node(config, num_nodes=num_nodes, num_gpus=0)
    size = num_nodes * local_size
    require_world_size(config, size, given=f"--nodes {num_nodes} x {local_size} processes")
    is_here = num_nodes == 1 and gpu is None and (not on_gpu or torch.cuda.device_count() >= local_size)
    return Place(
        world=World(size=size, local_size=local_size, num_nodes=num_nodes),
        on_gpu=on_gpu,
        gpu=gpu,
        is_here=is_here,
        memory_bytes=None,
        host_memory_bytes=None,
    )
