"""What a run needs, held against what there is: files, rows to score, memory, disk."""

from collections.abc import Iterable
from dataclasses import replace

from nexa_core.config import RunConfig
from nexa_core.paths import Layout
from nexa_data import manifests
from nexa_data.datasets import Dataset
from nexa_ops.forecast.memory import Memory, size_text
from nexa_ops.forecast.place import Place
from nexa_train.distributed.health import Check
from nexa_train.distributed.node_checks import available_memory, check_node
from nexa_train.room import Checkpoints

LESS_MEMORY = (
    "raise training.gradient_accumulation_steps, set training.activation_checkpointing, or lower training.batch_size, "
    "evaluation.batch_size or model.parameters.max_tokens"
)
FEWER_CHECKPOINTS = "set training.checkpoints.save_top_k, or raise training.checkpoints.every_steps"


def check_files(layout: Layout, dataset: Dataset) -> tuple[Check, bool]:
    """Whether every file of the dataset is what its manifest says."""
    records = list(manifests.files_of(dataset.manifest))
    damages = [damage for record in records if (damage := manifests.damage(layout, record))]
    says = "; ".join(damages) or f"{len(records)} files of {dataset.key} have the digests of its manifest"
    do = f"Put the files back, or prepare {dataset.key} again with --replace."
    return Check("dataset", not damages, says, do), bool(damages)


def check_scored(dataset: Dataset, config: RunConfig) -> Check:
    """A run without rows to score would end in an error."""
    split = config.evaluation.split
    num_rows = dataset.num_rows.get(split, 0)
    says = f"{num_rows:,} rows of {split} to score"
    return Check("evaluation", num_rows > 0, says, "Set evaluation.split, or prepare the dataset with more rows.")


def check_room(
    config: RunConfig, layout: Layout, place: Place, memory: Memory, checkpoints: Checkpoints
) -> Iterable[Check]:
    """Memory, and the disk that runs are written to."""
    need = memory.host if memory.gpu is None else memory.gpu
    found = check_node(
        place.world,
        folder=layout.runs / config.experiment,
        need_bytes=checkpoints.needed_bytes,
        device=place.device,
        endpoint=None,
        need_memory_bytes=need,
    )
    checks = {check.name: check for check in found}
    yield _check_memory(place, need, checks["memory"])
    if place.on_gpu:
        yield _check_host_memory(place, memory)
    yield replace(checks["disk"], do=f"{checks['disk'].do} To keep fewer, {FEWER_CHECKPOINTS}.")
    yield checks["fsync"]


def _check_memory(place: Place, need: int, here: Check) -> Check:
    do = f"To need less, {LESS_MEMORY}."
    if place.memory_bytes is None:
        unknown = f"{size_text(need)} needed by each process; --memory says what there is"
        return replace(here, do=f"{here.do} {do}") if place.is_here else Check("memory", None, unknown)
    sharing = 1 if place.on_gpu else place.world.local_size
    says = f"{size_text(need * sharing)} needed of {size_text(place.memory_bytes)}"
    return Check("memory", need * sharing <= place.memory_bytes, says, do)


def _check_host_memory(place: Place, memory: Memory) -> Check:
    """What all processes of a machine with GPUs hold beside them: each builds the whole model there."""
    there = place.host_memory_bytes
    if there is None and place.is_here:
        there = available_memory()
    need = f"{size_text(memory.node)} needed by {place.world.local_size} processes while {memory.node_when}"
    if there is None:
        return Check("host memory", None, f"{need}; --host-memory says what there is")
    do = "Start fewer processes on each node, or take nodes with more memory."
    return Check("host memory", memory.node <= there, f"{need}, of {size_text(there)}", do)
