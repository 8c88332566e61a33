"""The checkpoint of a sharded model: a folder of safetensors, in which each process wrote the part that it held.

`about.json`, written last, says what a checkpoint file says besides its tensors, and the sha256 of every other file.
Tensors are called `model.<name>` and `optimizer.<weight>.<what is kept of it>`; torch's distributed checkpoint reads
them back into any number of processes.
"""

import json
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nexa_core import digests, durable
from nexa_core.errors import UserError
from nexa_core.redact import redact
from nexa_models.checkpoint import Checkpoint, DamagedCheckpoint, load_checkpoint, save_checkpoint
from nexa_models.spec import ModelSpec

FORMAT = "nexa-sharded-checkpoint-1"
SUFFIX = ".sharded"
ABOUT = "about.json"
MODEL, OPTIMIZER = "model.", "optimizer."


def is_sharded(path: Path) -> bool:
    """Whether the checkpoint of this name is a folder."""
    return path.resolve().suffix == SUFFIX


def open_checkpoint(path: Path, *, tensors: bool = True) -> Checkpoint:
    """The verified checkpoint at `path`, in either form, whole and on the CPU.

    Args:
        tensors: without them, a folder's are neither read nor verified.

    Raises:
        UserError: there is no such checkpoint.
        DamagedCheckpoint: it is not, or no longer, what was written.
    """
    if not (is_sharded(path) and path.exists()):
        return load_checkpoint(path)
    about = read_about(path)
    checkpoint = _described(about)
    if not tensors:
        return checkpoint
    check_files(path, about)
    stored = _read_whole(path)
    state = name_state({name: tensor for name, tensor in stored.items() if name.startswith(OPTIMIZER)})
    model = {name: stored[place] for name, place in about["model"].items()}
    return replace(checkpoint, model=model, optimizer=number_weights(about["optimizer"], state))


def consolidate(folder: Path, output: Path | None = None) -> Path:
    """One checkpoint file of a sharded one, beside it unless `output` says where; returns where it lies.

    Needs memory for the whole checkpoint, and neither other processes nor a GPU.

    Raises:
        UserError: there is no such checkpoint, or it is one file already.
        DamagedCheckpoint: it is not, or no longer, what was written.
    """
    checkpoint = open_checkpoint(folder)
    if not is_sharded(folder):
        raise UserError(f"{folder} is one file already; a sharded checkpoint is a folder called checkpoint_*{SUFFIX}.")
    path = output or folder.resolve().with_suffix(".pt")
    if path.is_dir():
        raise UserError(
            f"{path} is a folder; say which file to write, for example {path / folder.with_suffix('.pt').name}"
        )
    save_checkpoint(path, checkpoint)
    return path


def digest_of(path: Path) -> str:
    """The digest of a checkpoint in either form: a folder's `about.json` holds those of its files."""
    return digests.of_file(path / ABOUT if is_sharded(path) else path)


def files_of(path: Path) -> list[Path]:
    """The files of a checkpoint in either form."""
    return sorted(path.iterdir()) if is_sharded(path) else [path]


def describe(checkpoint: Checkpoint, places: dict[str, str], groups: list[dict[str, Any]]) -> dict[str, Any]:
    """What `about.json` says, but for the files.

    Args:
        places: under which name each of the model's tensors is stored; tied ones share it.
        groups: the optimizer's settings, each with the names of its weights.
    """
    return {
        "format": FORMAT,
        "config": checkpoint.config,
        "spec": checkpoint.spec.as_json(),
        "dataset": checkpoint.dataset,
        "fingerprint": checkpoint.fingerprint,
        "step": checkpoint.step,
        "history": list(checkpoint.history),
        "model": places,
        "optimizer": groups,
    }


def finish_folder(path: Path, about: dict[str, Any], files: dict[str, str]) -> None:
    """Give the folder, whose `files` are all written, its `about.json` and its name."""
    content = json.loads(redact(json.dumps({**about, "files": files}, allow_nan=False)))
    content["digest"] = digests.of_value(content)
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    durable.write_bytes(durable.unnamed_folder(path) / ABOUT, text.encode("utf-8"))
    durable.name_folder(path)


def read_about(folder: Path) -> dict[str, Any]:
    """The verified content of a folder's `about.json`.

    Raises:
        DamagedCheckpoint: it is not what was written.
    """
    try:
        about = json.loads((folder / ABOUT).read_bytes())
    except (OSError, ValueError) as error:
        raise DamagedCheckpoint(f"{folder} is damaged or no checkpoint: {error}.") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DamagedCheckpoint(f"{folder} is not a {FORMAT} folder.")
    if about.pop("digest", None) != digests.of_value(about):
        raise DamagedCheckpoint(f"{folder} is damaged: its {ABOUT} does not have the digest that was written with it.")
    return about


def check_files(folder: Path, about: dict[str, Any], *, share: int = 0, num_shares: int = 1) -> None:
    """Hold the names of a folder's files, and the bytes of one share of them, against `about.json`.

    Raises:
        DamagedCheckpoint: naming the first file that differs.
    """
    wanted: dict[str, str] = about["files"]
    there = {file.name for file in folder.iterdir()} - {ABOUT}
    if differing := sorted(there ^ set(wanted)):
        raise DamagedCheckpoint(
            f"{folder} is damaged: {differing[0]} is {'not its' if differing[0] in there else 'gone'}."
        )
    for name in sorted(wanted)[share::num_shares]:
        if digests.of_file(folder / name) != wanted[name]:
            raise DamagedCheckpoint(f"{folder} is damaged: {name} does not have the digest that was written with it.")


def name_state(flat: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Of each weight, by name, what the optimizer keeps of it."""
    state: dict[str, dict[str, Any]] = {}
    for place in sorted(flat):
        name, _, what = place.removeprefix(OPTIMIZER).rpartition(".")
        state.setdefault(name, {})[what] = flat[place]
    return state


def number_weights(groups: list[dict[str, Any]], state: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The optimizer's state as torch has it: weights by number, in the groups' order."""
    number = {name: index for index, name in enumerate(_weights_of(groups))}
    return {
        "state": {number[name]: state[name] for name in number if name in state},
        "param_groups": [{**_as_set(group), "params": [number[name] for name in group["params"]]} for group in groups],
    }


def _weights_of(groups: list[dict[str, Any]]) -> Iterable[str]:
    return (name for group in groups for name in group["params"])


def _as_set(group: dict[str, Any]) -> dict[str, Any]:
    """A group's settings with the pairs in it, such as AdamW's betas, that JSON has only lists for."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in group.items()}


def _described(about: dict[str, Any]) -> Checkpoint:
    return Checkpoint(
        config=about["config"],
        spec=ModelSpec.from_json(about["spec"]),
        dataset=about["dataset"],
        fingerprint=about["fingerprint"],
        step=about["step"],
        history=tuple(about["history"]),
        model={},
        optimizer={},
    )


def _read_whole(folder: Path) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader  # takes seconds to load
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    kinds: dict[str, Any] = reader.read_metadata().state_dict_metadata
    tensors = {name: torch.empty(kind.size, dtype=kind.properties.dtype) for name, kind in sorted(kinds.items())}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that there is one process is meant
        load(tensors, storage_reader=reader, no_dist=True)
    return tensors
