"""Errors that a GPU has had: its memory's, as nvidia-smi counts them, and the driver's own, from the kernel log."""

import re
import subprocess
from pathlib import Path

from nexa_train.distributed.health import Check

COMMAND_SECONDS = 30.0
"""A GPU that has fallen off its bus makes nvidia-smi hang."""

MEMORY_ERRORS = {
    "ecc.errors.uncorrected.volatile.total": "uncorrected memory errors since the driver was loaded",
    "remapped_rows.pending": "memory rows waiting to be remapped",
    "remapped_rows.failure": "failures to remap a memory row",
}
"""What nvidia-smi is asked for, and how messages call it; 0 and No are well, and `[N/A]` says that a GPU cannot tell."""

FATAL_XIDS = {
    48: "uncorrectable memory error",
    62: "internal micro-controller halted",
    64: "memory row could not be remapped",
    74: "NVLink error",
    79: "GPU has fallen off the bus",
    95: "uncontained memory error",
    119: "GPU system processor timed out",
    120: "GPU system processor error",
    136: "NVLink training failed",
    140: "unrecovered memory error",
    143: "GPU could not be initialised",
}
"""Driver errors that only a reset or a repair ends; those that a program causes (13, 31, 43, ...) are not among them.
Source: https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html"""
XID_HOURS = 24.0
"""Older ones have been followed by a reset, or show in the memory errors as well."""

UPTIME = Path("/proc/uptime")


def memory_errors(uuid: str | None) -> Check:
    """The memory errors of the GPU with that UUID; of all GPUs on the node where it is unknown, or a slice of one."""
    name = "gpu memory"
    query = ["nvidia-smi", f"--query-gpu=index,uuid,{','.join(MEMORY_ERRORS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except FileNotFoundError:
        return Check(name, None, "not readable: nvidia-smi is not installed")
    except subprocess.TimeoutExpired:
        says = f"nvidia-smi has not answered for {COMMAND_SECONDS:g} s"
        return Check(name, False, says, "A GPU hangs: restart the node; if it comes back, take it out of service.")
    if done.returncode != 0:
        says = f"nvidia-smi ended with {done.returncode}: {_last_line(done.stdout + done.stderr)}"
        return Check(name, False, says, "Reload the NVIDIA driver or restart the node.")
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    rows = [row for line in lines if len(row := [cell.strip() for cell in line.split(",")]) == 2 + len(MEMORY_ERRORS)]
    if not rows:  # lines of another form are warnings, such as that of a corrupted infoROM
        return Check(name, None, f"not readable: nvidia-smi said {_last_line(done.stdout)!r} and no GPU's numbers")
    rows = [row for row in rows if uuid is not None and row[1].endswith(uuid)] or rows
    found = [
        f"GPU {row[0]} ({row[1]}) has {row[2 + column]} {meaning}"
        for row in rows
        for column, meaning in enumerate(MEMORY_ERRORS.values())
        if row[2 + column] not in ("0", "No", "[N/A]", "N/A", "[Not Supported]")
    ]
    if found:
        remedy = "Reset the GPU (nvidia-smi --gpu-reset -i N) or restart the node; replace it if the errors come back."
        return Check(name, False, "; ".join(found), remedy)
    if all(cell.strip("[]") in ("N/A", "Not Supported") for row in rows for cell in row[2:]):
        return Check(name, None, f"not readable: {len(rows)} GPUs count no memory errors")
    return Check(name, True, f"no uncorrected errors on {len(rows)} GPU{'s' if len(rows) != 1 else ''}")


def xid_errors() -> Check:
    """Fatal driver errors on this node in the last day; any GPU's, because one that is lost takes its links along."""
    name = "gpu driver"
    try:
        done = subprocess.run(["dmesg"], capture_output=True, text=True, timeout=COMMAND_SECONDS, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        return Check(name, None, f"the kernel log is not readable: {error}")
    if done.returncode != 0:
        return Check(name, None, f"the kernel log is not readable: {_last_line(done.stderr)}")
    since = _uptime_seconds() - XID_HOURS * 3600
    found: dict[str, None] = {}
    for match in re.finditer(r"^\[\s*([\d.]+)\].*NVRM: Xid \((?:PCI:)?([\w:.]+)\): (\d+)", done.stdout, re.MULTILINE):
        number = int(match[3])
        if number in FATAL_XIDS and float(match[1]) >= since:
            found[f"Xid {number} ({FATAL_XIDS[number]}) on {match[2]}"] = None
    if found:
        remedy = "Restart the node and run a diagnosis (dcgmi diag -r 3); replace the GPU if the error comes back."
        return Check(name, False, f"{'; '.join(found)} in the last {XID_HOURS:g} h", remedy)
    return Check(name, True, f"no fatal Xid in the kernel log of the last {XID_HOURS:g} h")


def _uptime_seconds() -> float:
    """What the kernel log counts from; 0, so that every line counts, where it is hidden."""
    try:
        return float(UPTIME.read_text(encoding="ascii").split()[0])
    except OSError:
        return 0.0


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]
