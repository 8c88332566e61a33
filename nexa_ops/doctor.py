"""What is installed, visible and writable on this machine: the first thing to ask when something does not work."""

import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nexa_core.environment import cpu_name, dependency_versions
from nexa_core.errors import GateError
from nexa_core.paths import Layout

LEAST_FREE_BYTES = 2**30


@dataclass(frozen=True)
class Finding:
    name: str
    passed: bool
    says: str


@dataclass(frozen=True)
class Examination:
    findings: tuple[Finding, ...]

    def as_json(self) -> list[dict[str, Any]]:
        return [asdict(finding) for finding in self.findings]

    def as_text(self) -> str:
        lines = [
            f"  {'ok ' if finding.passed else 'BAD'}  {finding.name:<10} {finding.says}" for finding in self.findings
        ]
        healthy = all(finding.passed for finding in self.findings)
        return "\n".join([*lines, "everything needed is here" if healthy else "mend the lines marked BAD"])

    def require_pass(self) -> None:
        """Raises GateError when something needed is missing."""
        bad = dict.fromkeys(finding.name for finding in self.findings if not finding.passed)
        if bad:
            raise GateError(f"this machine is not ready: {', '.join(bad)}")


def examine(layout: Layout) -> Examination:
    """Look at Python, packages, processor, GPUs, memory, disk and the folders that are written to."""
    return Examination(
        (
            _python(),
            _packages(),
            Finding("cpu", True, f"{cpu_name()}, {os.cpu_count()} cores"),
            _memory(),
            _gpus(),
            _disk(layout.root),
            *(_writable(folder) for folder in (layout.processed, layout.artifacts, layout.run_manifests, layout.logs)),
            _env_files(layout.root),
        )
    )


def _python() -> Finding:
    return Finding("python", sys.version_info >= (3, 11), f"{platform.python_version()} (3.11 or newer)")


def _packages() -> Finding:
    try:
        versions = dependency_versions()
    except importlib.metadata.PackageNotFoundError as error:
        return Finding("packages", False, f"{error.name} is not installed; run: pip install -r requirements.txt")
    return Finding("packages", True, ", ".join(f"{name} {version}" for name, version in versions.items()))


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Finding("memory", True, f"{total / 2**30:.1f} GiB")


def _gpus() -> Finding:
    try:
        import torch
    except ImportError as error:
        return Finding("gpu", False, f"torch cannot be imported: {error}")
    if not torch.cuda.is_available():
        hint = ", though nvidia-smi is here: is this torch built for CPUs only?" if shutil.which("nvidia-smi") else ""
        return Finding("gpu", True, f"none visible to torch {torch.__version__}{hint}; training runs on the CPU")
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Finding("gpu", True, f"{len(names)} visible: {', '.join(names)}")


def _disk(root: Path) -> Finding:
    free = shutil.disk_usage(_nearest_existing(root)).free
    return Finding("disk", free >= LEAST_FREE_BYTES, f"{free / 2**30:.1f} GiB free at {root.resolve()} (1 or more)")


def _writable(folder: Path) -> Finding:
    """Try a real file in the folder, or in the nearest one above it that exists; leaves nothing behind."""
    try:
        with tempfile.TemporaryFile(dir=_nearest_existing(folder)):
            pass
    except OSError as error:
        return Finding("writable", False, f"{folder}: {error.strerror}")
    return Finding("writable", True, str(folder))


def _nearest_existing(folder: Path) -> Path:
    """The folder itself, or the first one above it that can be seen."""
    return next(path for path in (folder, *folder.resolve().parents) if os.path.exists(path))  # Path.exists may raise


def _env_files(root: Path) -> Finding:
    there = [name for name in (".env.local", ".env") if os.path.exists(root / name)]
    return Finding("settings", True, f"environment from the shell{''.join(f', then {name}' for name in there)}")
