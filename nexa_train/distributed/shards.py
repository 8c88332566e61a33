"""Checkpoints of a sharded model: each process writes and reads its own part, through torch's distributed checkpoint."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.futures import Future

from nexa_core import digests, durable
from nexa_models.checkpoint import Checkpoint
from nexa_models.lora import saved_state
from nexa_models.sharded import MODEL, OPTIMIZER, describe, finish_folder, name_state, number_weights, read_about
from nexa_models.spec import ModelSpec
from nexa_train.distributed.group import LONGEST_WAIT, Group
from nexa_train.optim import load_state
from nexa_train.saving import Copies

FILE_BYTES = 2**32
"""A process writes files of up to so much, or one tensor: each is put together in memory."""
OFFSETS = "DCP_SHARDING_INFO"
"""The safetensors metadata in which torch's reader looks up where in the whole tensor a part begins."""


class Shards:
    """Saves a sharded model and its optimizer: copies what this process holds, which a thread can then write.

    Made by all processes together. The thread's collectives have a group of their own, on the CPU, so that they never
    meet the training's.
    """

    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
        self._mesh = DeviceMesh.from_group(self._group, "cpu")
        self._copies = Copies()

    def copy(self, checkpoint: Checkpoint, model: nn.Module, optimizer: optim.Optimizer) -> Callable[[Path], None]:
        """Begin to copy; returns what writes the copy to a folder, called by all processes."""
        groups = named_groups(model, optimizer)
        tensors, places = _flat_model(checkpoint.model, model)
        tensors |= _flat_optimizer(checkpoint.optimizer, groups)
        about = describe(checkpoint, places, groups)
        copied = self._copies.take({name: _local(tensors[name]) for name in sorted(tensors)})
        parts = {name: self._like(tensors[name], copy) for name, copy in copied.items()}

        def write(path: Path) -> None:
            self._copies.wait()
            try:
                save(parts, storage_writer=FolderWriter(path, about), process_group=self._group)
            except CheckpointException as error:  # the same in all processes
                raise next(cause for cause, _ in error.failures.values()) from None

        return write

    def _like(self, tensor: Tensor, copy: Tensor) -> Tensor:
        """The copy as the same part of a whole, on the CPU."""
        if not isinstance(tensor, DTensor):
            return copy
        return DTensor.from_local(
            copy, self._mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )


class FolderWriter(StorageWriter):
    """Writes safetensors that torch's HuggingFaceStorageReader reads; the folder gets its name when all are whole.

    Torch's own writer leaves files that differ from one time to the next: the order of their metadata is random.
    """

    def __init__(self, path: Path, about: dict[str, Any]):
        self._path, self._about = path, about

    def reset(self, *_: Any) -> None:
        """Nothing is kept from one checkpoint to the next."""

    def set_up_storage_writer(self, *_: Any, **__: Any) -> None:
        """Nothing to set up."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """In the main process, before any writes."""
        durable.begin_folder(self._path)
        return [replace(plan, storage_data=number) for number, plan in enumerate(plans, start=1)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = []
        for index, items in enumerate(_by_size(plan.items), start=1):
            name = f"shard-{plan.storage_data:05}-{index:05}.safetensors"
            data = _as_safetensors(items, planner)
            durable.write_bytes(durable.unnamed_folder(self._path) / name, data)
            written = (name, digests.of_bytes(data))
            results += [WriteResult(item.index, size_in_bytes=_size(item), storage_data=written) for item in items]
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """In the main process, after all have written."""
        files = dict(sorted({result.storage_data for part in results for result in part}))
        finish_folder(self._path, self._about, files)

    @classmethod
    def validate_checkpoint_id(cls, *_: Any) -> bool:
        return False  # made with a path, never from an id


def read_shards(folder: Path, model: nn.Module, optimizer: optim.Optimizer, spec: ModelSpec, group: Group) -> None:
    """Put a verified sharded checkpoint, of however many processes, into the shards of these."""
    about = read_about(folder)
    state, places = saved_state(model, spec), about["model"]
    tensors = {places[name]: tensor for name, tensor in state.items()}
    weights = dict(model.named_parameters())
    reader = HuggingFaceStorageReader(str(folder))
    kinds: dict[str, Any] = reader.read_metadata().state_dict_metadata
    kept = {
        place: _empty_like(kinds[place], weights[_weight_of(place)]) for place in kinds if place.startswith(OPTIMIZER)
    }
    load({**tensors, **kept}, storage_reader=reader, process_group=group.control)
    load_state(optimizer, number_weights(about["optimizer"], name_state(kept))["state"])


def load_whole_optimizer(optimizer: optim.Optimizer, state: dict[str, Any]) -> None:
    """Likewise the optimizer of a checkpoint file: each process takes its part of what it has read."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def part(value: Any, weight: Tensor) -> Any:
        if not isinstance(value, Tensor) or not isinstance(weight, DTensor) or value.shape != weight.shape:
            return value
        mesh = weight.device_mesh
        return distribute_tensor(value.to(weight.device), mesh, weight.placements, src_data_rank=None)

    parts = {
        number: {what: part(value, weights[number]) for what, value in kept.items()}
        for number, kept in state["state"].items()
    }
    load_state(optimizer, parts)


def named_groups(model: nn.Module, optimizer: optim.Optimizer) -> list[dict[str, Any]]:
    """The optimizer's settings, each with the names of its weights."""
    name_of = {weight: name for name, weight in model.named_parameters()}
    names = [name_of[weight] for group in optimizer.param_groups for weight in group["params"]]
    groups = optimizer.state_dict()["param_groups"]  # which has its keys in one order, whatever was loaded before
    return [{**group, "params": [names[number] for number in group["params"]]} for group in groups]


def _flat_model(state: dict[str, Tensor], model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors under the names they are stored with, each once; and which of these each name of the model means."""
    weights = dict(model.named_parameters(remove_duplicate=False))
    stored: dict[Any, str] = {}
    places = {name: stored.setdefault(weights.get(name, name), MODEL + name) for name in state}
    return {place: state[name] for name, place in places.items() if place == MODEL + name}, places


def _flat_optimizer(state: dict[str, Any], groups: list[dict[str, Any]]) -> dict[str, Tensor]:
    names = [name for group in groups for name in group["params"]]
    return {
        f"{OPTIMIZER}{names[number]}.{what}": value
        for number, kept in state["state"].items()
        for what, value in kept.items()
    }


def _weight_of(place: str) -> str:
    return place.removeprefix(OPTIMIZER).rpartition(".")[0]


def _empty_like(kind: Any, weight: Tensor) -> Tensor:
    """Room for what the optimizer keeps of a weight: a tensor cut as the weight is, or a number."""
    if kind.size == weight.shape:
        return torch.empty_like(weight, dtype=kind.properties.dtype)
    return torch.empty(kind.size, dtype=kind.properties.dtype)


def _local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


def _by_size(items: list[WriteItem]) -> Iterator[list[WriteItem]]:
    batch: list[WriteItem] = []
    size = 0
    for item in items:
        if batch and size + _size(item) > FILE_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += _size(item)
    if batch:
        yield batch


def _size(item: WriteItem) -> int:
    assert item.tensor_data is not None
    chunk = item.tensor_data.chunk
    return chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize


def _as_safetensors(items: list[WriteItem], planner: SavePlanner) -> bytes:
    tensors: dict[str, Tensor] = {}
    offsets: dict[str, Any] = {}
    for item in items:
        assert item.tensor_data is not None
        tensor = planner.resolve_data(item)
        assert isinstance(tensor, Tensor)
        tensors[item.index.fqn] = tensor.contiguous()
        offsets[item.index.fqn] = {"saved_offsets": list(item.tensor_data.chunk.offsets)}
    return safetensors.torch.save(tensors, metadata={OFFSETS: json.dumps(offsets)})
