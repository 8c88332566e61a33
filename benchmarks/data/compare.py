"""Prepares the same rows with each contestant, one after the other, several rounds; prints the table.

    python benchmarks/data/compare.py --rows dirty.jsonl --clean clean.jsonl --peers peers/bin/python

Everyone reads JSON lines, keeps text and label, leaves out empty texts and exact duplicates, splits by a hash of the text and
writes Parquet (zstd). Ours reads the dirty file as well, which the others cannot. Peak memory is that of all processes together,
looked at twice a second: looking takes 20 ms of a core.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil

from nexa_core.environment import cpu_name

FOLDER = Path(__file__).parent
CONTESTANTS = {
    "ours, dirty": ("ours.py", "rows"),
    "ours, dirty, memory_limit 1GiB": ("ours.py", "rows", "memory_limit"),
    "ours, dirty, near duplicates": ("ours.py", "rows", "near_duplicates"),
    "ours": ("ours.py", "clean"),
    "polars, streaming": ("peer_polars.py", "clean"),
    "polars, in memory": ("peer_polars.py", "clean", "in_memory"),
    "hf datasets": ("peer_hf_datasets.py", "clean"),
}
SECONDS_BETWEEN_LOOKS = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, required=True, help="made by make_rows.py")
    parser.add_argument("--clean", type=Path, required=True, help="likewise, with --clean")
    parser.add_argument("--peers", type=Path, help="the python of the peers' environment; without it they are left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS))
    given = parser.parse_args()
    names = given.only or [name for name, (script, *_) in CONTESTANTS.items() if given.peers or script == "ours.py"]
    load = os.getloadavg()[0]
    print(
        f"{cpu_name()}, {os.cpu_count()} cores, load {load:.1f} at the start; {datetime.now(UTC):%Y-%m-%d}", flush=True
    )
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in names}
    for number in range(given.rounds):
        for name in names:
            script, which, *options = CONTESTANTS[name]
            rows = (given.rows if which == "rows" else given.clean).absolute()
            found[name].append(run(script, rows, options, given.peers))
            print(f"round {number + 1}: {name:<31} {found[name][-1][0]:6.1f} s", flush=True)
    print("\n| contestant | seconds | range | peak memory |\n| --- | ---: | ---: | ---: |")
    for name, rounds in found.items():
        seconds = [one for one, _ in rounds]
        memory = statistics.median(peak for _, peak in rounds) / 2**20
        print(
            f"| {name} | {statistics.median(seconds):.1f} | {min(seconds):.1f} to {max(seconds):.1f} | {memory:,.0f} MiB |"
        )


def run(script: str, rows: Path, options: list[str], peers: Path | None) -> tuple[float, int]:
    """Seconds and peak bytes of one contestant, in a folder of its own."""
    python = sys.executable if script == "ours.py" else str(peers)
    with tempfile.TemporaryDirectory() as scratch:
        began = time.perf_counter()
        process = psutil.Popen([python, str(FOLDER / script), str(rows), scratch, *options])
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of(process))
            time.sleep(SECONDS_BETWEEN_LOOKS)
        seconds = time.perf_counter() - began
        if process.returncode:
            raise SystemExit(f"{script} ended with exit code {process.returncode}")
        print(json.dumps({"files": sorted(path.name for path in Path(scratch).rglob("*.parquet"))}))
        shutil.rmtree(scratch, ignore_errors=True)
        Path(scratch).mkdir()
    return seconds, peak


def memory_of(process: psutil.Process) -> int:
    total = 0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += each.memory_full_info().pss
        except psutil.Error:
            continue
    return total


if __name__ == "__main__":
    main()
