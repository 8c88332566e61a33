"""The facts that all ranks of a run have to share: code, packages, config, data, driver."""

import json
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed import is_nccl_available

from nexa_core import digests
from nexa_core.environment import dependency_versions

DRIVER_VERSION = Path("/proc/driver/nvidia/version")


def describe_node(
    *, device: torch.device, config: Mapping[str, Any] | None = None, dataset_fingerprint: str | None = None
) -> dict[str, str]:
    """Facts by name; `share_health` refuses the ranks whose facts differ from the others'.

    A package or a setting is a fact of its own, so that a difference is named and not only noticed.
    """
    facts = {
        "code": digests.of_code(),
        "device": device.type,
        "python": platform.python_version(),
        **{f"package {name}": version for name, version in dependency_versions().items()},
    }
    if device.type == "cuda":
        facts["driver"] = driver_version(DRIVER_VERSION)
        facts["cuda"] = torch.version.cuda or "none"
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version())) if is_nccl_available() else "none"
    if config is not None:
        facts.update(_settings(config, "config "))
    if dataset_fingerprint is not None:
        facts["dataset"] = dataset_fingerprint
    return facts


def driver_version(file: Path) -> str:
    """The NVIDIA kernel driver's version as it tells it itself, or `none`."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "none"
    match = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text)
    return match[1] if match else "none"


def _settings(value: Mapping[str, Any], prefix: str) -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, setting in value.items():
        if isinstance(setting, Mapping):
            flat.update(_settings(setting, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = json.dumps(setting, default=str)
    return flat
