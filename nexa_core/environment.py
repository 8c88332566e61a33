"""The machine and software a run ran on, and the .env files it was configured with."""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Mapping, MutableMapping
from functools import cache
from pathlib import Path
from typing import Any

# Only these variables are recorded: an environment holds secrets under names nobody foresees.
RECORDED_VARIABLES = (
    "CUBLAS_WORKSPACE_CONFIG",
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "NEXA_ROOT",
    "OMP_NUM_THREADS",
    "OPENBLAS_CORETYPE",
    "PYTHONHASHSEED",
    "TORCH_NUM_THREADS",
)


def load_env_files(root: Path, environment: MutableMapping[str, str]) -> None:
    """Fill `environment` from `.env.local`, then `.env`; what it has already wins, and empty values are skipped."""
    from dotenv import dotenv_values

    for name in (".env.local", ".env"):
        for key, value in dotenv_values(root / name).items():
            if value:
                environment.setdefault(key, value)


def describe_environment(*, numerics: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """What `environment.json` holds; `numerics` are the facts that decide a result's bits."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "num_cpus": os.cpu_count(),
        "numerics": dict(numerics),
        "packages": dict(installed_packages()),
        "git": git_state(Path(__file__).resolve().parent.parent),
        "variables": {name: environment[name] for name in RECORDED_VARIABLES if name in environment},
    }


@cache
def installed_packages() -> dict[str, str]:
    """Name and version of every distribution that was installed when the process first asked: reading hundreds takes longer
    than a short run trains."""
    found = {
        dist.metadata["Name"]: dist.version for dist in importlib.metadata.distributions() if dist.metadata["Name"]
    }
    return dict(sorted(found.items(), key=lambda item: item[0].lower()))


def dependency_versions() -> dict[str, str]:
    """Installed versions of the packages that NexaCompute itself declares; tools installed beside them do not count."""
    declared = importlib.metadata.requires("nexacompute") or []
    names = [re.split(r"[^A-Za-z0-9_.-]", line, maxsplit=1)[0] for line in declared if "extra ==" not in line]
    return {name: importlib.metadata.version(name) for name in sorted(names)}


def num_cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's model name as the system tells it, or its architecture."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the checkout that the code runs from, and whether it has uncommitted changes; None outside one."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        return {"commit": commit, "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
