"""The one checkpoint format: self-describing, verified on load, tensors and plain values only.

A checkpoint holds no run id and no time, so that equal runs leave equal files.
"""

import hashlib
import json
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nexa_core import durable
from nexa_core.errors import UserError
from nexa_models.lora import load_state
from nexa_models.spec import ModelSpec
from nexa_models.table import build_model

FORMAT = "nexa-checkpoint-1"
# What torch.load raises on torn, altered and foreign files; OSError is a seek to where a damaged index points.
UNREADABLE = (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, LookupError, OSError, struct.error)


class DamagedCheckpoint(UserError):
    """A file that is not, or no longer, the checkpoint that was written."""


@dataclass(frozen=True)
class Checkpoint:
    config: dict[str, Any]
    """The run's resolved config."""
    spec: ModelSpec
    dataset: dict[str, Any]
    """Name, version and fingerprint of the dataset it learned from."""
    fingerprint: str
    """The run's fingerprint: runs with the same one leave the same checkpoints."""
    step: int
    """Optimizer steps done."""
    history: tuple[dict[str, float], ...]
    """Each validation so far: step, epoch, loss, accuracy."""
    model: dict[str, Tensor]
    optimizer: dict[str, Any]


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write the checkpoint with a digest of its content inside; the same content gives the same bytes."""
    payload = {
        "format": FORMAT,
        "about": json.dumps(
            {
                "config": checkpoint.config,
                "spec": checkpoint.spec.as_json(),
                "dataset": checkpoint.dataset,
                "fingerprint": checkpoint.fingerprint,
                "step": checkpoint.step,
                "history": list(checkpoint.history),
            },
            sort_keys=True,
            allow_nan=False,
        ),
        "model": checkpoint.model,
        "optimizer": checkpoint.optimizer,
    }
    payload["digest"] = content_digest(payload)
    with durable.create(path) as file:
        torch.save(payload, file)


def load_checkpoint(path: Path) -> Checkpoint:
    """The verified checkpoint at `path`, on the CPU.

    Raises:
        UserError: there is no such file, or it is a sharded checkpoint.
        DamagedCheckpoint: it is torn, altered, of another format, or holds more than tensors and plain values.
    """
    if not path.exists():
        raise UserError(f"No checkpoint {path}.{_nearby(path)}")
    if path.is_dir():
        raise UserError(
            f"{path} is a folder; make one file of a sharded checkpoint: nexa consolidate --checkpoint {path}"
        )
    with path.open("rb") as file:
        try:
            payload = torch.load(file, map_location="cpu", weights_only=True)
        except UNREADABLE as error:
            raise DamagedCheckpoint(
                f"{path} is damaged or no checkpoint: {(str(error) or type(error).__name__).splitlines()[0]}."
            ) from None
    if not isinstance(payload, dict) or payload.get("format") != FORMAT:
        raise DamagedCheckpoint(f"{path} is not a {FORMAT} file.")
    recorded = payload.pop("digest", None)
    if recorded != content_digest(payload):
        raise DamagedCheckpoint(f"{path} is damaged: its content does not have the digest that was written with it.")
    about = json.loads(payload["about"])
    return Checkpoint(
        config=about["config"],
        spec=ModelSpec.from_json(about["spec"]),
        dataset=about["dataset"],
        fingerprint=about["fingerprint"],
        step=about["step"],
        history=tuple(about["history"]),
        model=payload["model"],
        optimizer=payload["optimizer"],
    )


def peek_step(path: Path) -> int:
    """The step that a checkpoint says it is of; the digest is not checked, and its tensors are not read.

    Raises:
        DamagedCheckpoint: it cannot be read.
    """
    try:
        payload = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return int(json.loads(payload["about"])["step"])
    except (*UNREADABLE, KeyError, TypeError) as error:
        raise DamagedCheckpoint(f"{path} is damaged or no checkpoint: {type(error).__name__}.") from None


def model_of(checkpoint: Checkpoint) -> nn.Module:
    """The checkpoint's model with its weights, in evaluation mode on the CPU."""
    model = build_model(checkpoint.spec)
    load_state(model, checkpoint.spec, checkpoint.model)
    return model.eval()


def content_digest(value: Any) -> str:
    """SHA-256 over nested dicts, lists, plain values and tensors (type, shape and bytes), free of how they are stored."""
    state = hashlib.sha256()
    _feed(state, value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        state.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    elif isinstance(value, dict):
        state.update(f"dict {len(value)} ".encode())
        for key, item in value.items():
            _feed(state, key)
            _feed(state, item)
    elif isinstance(value, (list, tuple)):
        state.update(f"list {len(value)} ".encode())
        for item in value:
            _feed(state, item)
    else:
        state.update(f"{type(value).__name__} {value!r} ".encode())


def _nearby(path: Path) -> str:
    there = sorted(other.name for other in path.parent.glob("*.pt"))
    return f" There: {', '.join(there)}" if there else " Train a model first: nexa train --config configs/default.yaml"
