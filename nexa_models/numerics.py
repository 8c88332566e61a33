"""What decides a result's bits: device, threads, precision, deterministic kernels."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import nn

from nexa_core.environment import cpu_name
from nexa_core.errors import UserError

MOST_SHAPES = 64  # that one piece of code is compiled for; batches have 6 widths at most


def choose_device(name: str, *, local_rank: int = 0) -> torch.device:
    """The device that `training.device` means here; of several GPUs, that of the process's number on its node.

    Raises:
        UserError: cuda was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "training.device is cuda and no GPU is visible to torch; check nvidia-smi, or set it to auto or cpu."
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name != "cuda":
        return torch.device(name)
    if local_rank >= torch.cuda.device_count():
        raise UserError(
            f"Process {local_rank} of this node has no GPU: {torch.cuda.device_count()} are visible; start fewer processes."
        )
    return torch.device("cuda", local_rank)


def make_deterministic(num_threads: int | None = None) -> None:
    """Only kernels that give the same bits each time; one that cannot raises instead of differing."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it before its first call
    # torch.use_deterministic_algorithms does the same, and imports the compiler for it: 2 s.
    torch.set_deterministic_debug_mode("error")
    deterministic: Any = torch.utils.deterministic  # a property that type checkers do not see
    deterministic.fill_uninitialized_memory = False  # nothing reads what was never written
    torch.backends.cudnn.benchmark = False


def never_fall_back_to_eager() -> None:
    """Have compilation fail, instead of going on without it, where a model sees more shapes than anyone meant.

    Which shapes are compiled would depend on which came first, so a run that is continued would differ.
    """
    import torch._dynamo  # takes seconds to load

    torch._dynamo.config.recompile_limit = MOST_SHAPES
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def uncompiled(model: nn.Module) -> AbstractContextManager[Any]:
    """Have a compiled model run as it is written, for shapes that are not worth compiling for."""
    if model._compiled_call_impl is None:
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed the generators that dropout draws from; torch.manual_seed also notes a stack trace per unused device: 1 ms."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)


def check_precision(precision: str, device: torch.device) -> None:
    """Raises UserError when bfloat16 was asked for and the device would only emulate it."""
    if precision == "bfloat16" and not has_bfloat16(device):
        raise UserError(
            f"training.precision is bfloat16 and this {device.type} has no bfloat16 arithmetic; set float32."
        )


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """The context that forward passes run in."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def describe_numerics(device: torch.device) -> dict[str, Any]:
    """The facts that two runs must share to agree bit for bit."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "num_threads": torch.get_num_threads(),
    }


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device calculates in it; torch emulates it on any."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
