"""What a node has to have before it joins a run: devices, memory, disk, limits, a way to the others."""

import os
import resource
import shutil
import socket
import tempfile
import time
from pathlib import Path

import torch

from nexa_core import durable
from nexa_train.distributed.gpu_errors import memory_errors, xid_errors
from nexa_train.distributed.health import RENDEZVOUS, Check
from nexa_train.distributed.world import World

LEAST_DISK_BYTES = 2**30
LEAST_MEMORY_BYTES = 2**29
LEAST_SHARED_MEMORY_BYTES = 2**26
"""For each rank. A container has 64 MiB for all of them unless told otherwise, and NCCL between the GPUs of one node then
fails. Source: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html"""
FSYNC_BYTES = 2**20
FSYNC_LIMIT_SECONDS = 5.0
"""A disk that takes longer for a mebibyte cannot hold checkpoints of a run."""
FILES_OF_A_RANK = 512
FILES_FOR_EACH_OTHER_RANK = 4
"""A connection for each process group and a few for the library's own channels."""
ENDPOINT_SECONDS = 30.0
"""How long rank 0 may take to open its port: nodes do not start in the same second."""

MEMORY = Path("/proc/meminfo")
SHARED_MEMORY = Path("/dev/shm")
CONTROL_GROUP = Path("/sys/fs/cgroup")


def check_node(
    world: World,
    *,
    folder: Path,
    need_bytes: int,
    device: torch.device,
    endpoint: tuple[str, int] | None,
    need_memory_bytes: int = 0,
    endpoint_seconds: float = ENDPOINT_SECONDS,
) -> list[Check]:
    """What this rank finds on its node, in the order in which it is worth mending; joins nothing and leaves nothing.

    Args:
        folder: the run folder; where it is not there yet, the nearest one above it.
        need_bytes: what the run will write to it.
        endpoint: host and port of the store, which other nodes than the first have to reach.
        need_memory_bytes: what one rank needs on its device, or of the machine's memory on a CPU.
    """
    checks = [_device(world, device), _memory(world, device, need_memory_bytes)]
    if device.type == "cuda":
        checks += [memory_errors(_gpu_uuid(world)), xid_errors()]
    checks += [_disk(folder, need_bytes), _fsync(folder), _shared_memory(world, device), _files(world)]
    if endpoint is not None and world.node > 0:
        checks.append(_endpoint(*endpoint, endpoint_seconds))
    return checks


def _device(world: World, device: torch.device) -> Check:
    if device.type != "cuda":
        return Check("device", True, f"{os.cpu_count()} processor cores, {world.local_size} of this run's processes")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if world.local_rank >= count:
        says = f"{count} GPUs are visible to torch {torch.__version__} and local rank {world.local_rank} needs its own"
        remedy = (
            "Check nvidia-smi and CUDA_VISIBLE_DEVICES, and that torch is a build for GPUs; or start no more processes "
            "on a node than it has GPUs."
        )
        return Check("device", False, says, remedy)
    name = torch.cuda.get_device_name(world.local_rank)
    return Check("device", True, f"GPU {world.local_rank} of {count}: {name}")


def _memory(world: World, device: torch.device, need_bytes: int) -> Check:
    need = max(need_bytes, LEAST_MEMORY_BYTES)
    if device.type == "cuda":
        if not _has_gpu(world):
            return Check("memory", None, "no GPU to ask")
        free, total = torch.cuda.mem_get_info(world.local_rank)
        says = f"{_gib(free)} of {_gib(total)} free on GPU {world.local_rank} ({_gib(need)} needed)"
        return Check("memory", free >= need, says, "End the other processes on that GPU (nvidia-smi lists them).")
    available = available_memory()
    if available is None:
        return Check("memory", None, f"{MEMORY} cannot be read")
    need *= world.local_size
    says = f"{_gib(available)} available ({_gib(need)} needed)"
    return Check("memory", available >= need, says, "End other programs, or start fewer processes on this node.")


def available_memory() -> int | None:
    """What the machine has left, or the container where that is less; None where neither can be read."""
    known = [size for size in (_machine_memory(), _container_memory()) if size is not None]
    return min(known, default=None)


def _machine_memory() -> int | None:
    try:
        lines = MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _container_memory() -> int | None:
    """The limit of this control group less what it uses and could not drop; None without a limit."""
    try:
        limit = (CONTROL_GROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((CONTROL_GROUP / "memory.current").read_text(encoding="ascii"))
        lines = (CONTROL_GROUP / "memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    droppable = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return None if limit == "max" else int(limit) - used + droppable


def _disk(folder: Path, need_bytes: int) -> Check:
    need = max(need_bytes, LEAST_DISK_BYTES)
    there = _nearest_existing(folder)
    free = shutil.disk_usage(there).free
    says = f"{_gib(free)} free at {there} ({_gib(need)} needed)"
    return Check("disk", free >= need, says, "Free some, set NEXA_ROOT to a larger disk, or keep fewer checkpoints.")


def _fsync(folder: Path) -> Check:
    """Write, flush and forget a file where the run will write."""
    there = _nearest_existing(folder)
    began = time.monotonic()
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(b"\0" * FSYNC_BYTES)
            file.flush()
            os.fsync(file.fileno())
        durable.flush_folder(there)
    except OSError as error:
        remedy = "Check the mount, its quota and the rights on it."
        return Check("fsync", False, f"{there}: {error.strerror}", remedy)
    seconds = time.monotonic() - began
    says = f"1 MiB is safe on disk after {seconds * 1000:.1f} ms at {there} ({FSYNC_LIMIT_SECONDS:g} s allowed)"
    return Check("fsync", seconds <= FSYNC_LIMIT_SECONDS, says, "Check the disk or network mount under that folder.")


def _shared_memory(world: World, device: torch.device) -> Check:
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError as error:
        return Check("shared memory", None, f"{SHARED_MEMORY}: {error.strerror}")
    if device.type != "cuda" or world.local_size == 1:
        return Check(
            "shared memory", True, f"{_gib(free)} free; ranks that compute on CPUs or alone on a node use none"
        )
    need = LEAST_SHARED_MEMORY_BYTES * world.local_size
    says = f"{_gib(free)} free at {SHARED_MEMORY} ({_gib(need)} needed by {world.local_size} ranks)"
    return Check("shared memory", free >= need, says, "Start the container with --shm-size=1g or more, or --ipc=host.")


def _files(world: World) -> Check:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = FILES_OF_A_RANK + FILES_FOR_EACH_OTHER_RANK * (world.size - 1)
    if limit == resource.RLIM_INFINITY:
        return Check("open files", True, "unlimited")
    says = f"{limit} allowed ({need} needed)"
    return Check("open files", limit >= need, says, f"Run `ulimit -n {need}` before the launcher, or raise its limit.")


def _endpoint(host: str, port: int, seconds: float) -> Check:
    """Connect once; refusals and unknown names are tried again until the time is up, because rank 0 may start later."""
    until = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        try:
            with socket.create_connection((host, port), timeout=max(until - began, 0.1)):
                took = time.monotonic() - began
                return Check(RENDEZVOUS, True, f"{host}:{port} answers after {took * 1000:.1f} ms")
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() >= until:
            break
        time.sleep(min(0.2, seconds))
    remedy = (
        "Check that rank 0 is up, that MASTER_ADDR is its name or address as this node sees it, and that no firewall "
        f"closes port {port} between them."
    )
    return Check(RENDEZVOUS, False, f"{host}:{port} does not answer within {seconds:g} s: {reason}", remedy)


def _has_gpu(world: World) -> bool:
    return torch.cuda.is_available() and world.local_rank < torch.cuda.device_count()


def _gpu_uuid(world: World) -> str | None:
    return str(torch.cuda.get_device_properties(world.local_rank).uuid) if _has_gpu(world) else None


def _nearest_existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.resolve().parents) if os.path.exists(path))  # Path.exists may raise


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GiB"
