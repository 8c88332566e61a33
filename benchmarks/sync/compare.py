"""Uploads the same files to the same storage with each contestant, several interleaved rounds; prints the tables.

    python -m benchmarks.sync.compare --peers peers/bin

The storage is SeaweedFS on loopback, with its data in `--folder`. Every upload goes to an empty bucket.
"""

import argparse
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nexa_core import durable
from nexa_core.environment import cpu_name
from tests.storages import Storage, TestBucket, start

LOADS = {"small": (5_000, 20_000), "large": (1, 1 << 30)}
BLOCK_BYTES = 1 << 24
UPLOAD, AGAIN = "upload", "again"


@dataclass(frozen=True)
class Timing:
    seconds: float
    cpu_seconds: float
    """Of the contestant's process alone; the storage's are not in it."""


Command = Callable[[str, str], list[str]]
"""What uploads a folder to a bucket."""
Timings = dict[tuple[str, str, str], list[Timing]]
"""By load, upload or again, and contestant."""


def contestants(peers: Path, endpoint: str) -> dict[str, Command]:
    rclone = ["copy", "--config", "/dev/null", "--s3-provider", "Other", "--s3-env-auth", "--s3-no-check-bucket"]
    nexa = str(Path(sys.executable).parent / "nexa")
    return {
        "bare obstore": lambda folder, bucket: [
            str(peers / "python"), str(Path(__file__).parent / "bare.py"), folder, bucket,
        ],
        "aws s3 sync": lambda folder, bucket: [str(peers / "aws"), "s3", "sync", folder, f"s3://{bucket}/"],
        "s5cmd sync": lambda folder, bucket: [
            str(peers / "s5cmd"), "--endpoint-url", endpoint, "sync", f"{folder}/", f"s3://{bucket}/",
        ],
        "rclone copy": lambda folder, bucket: [
            str(peers / "rclone"), *rclone, "--s3-endpoint", endpoint, folder, f":s3:{bucket}",
        ],
        "nexa sync": lambda folder, bucket: [nexa, "sync", folder, f"s3://{bucket}"],
    }  # fmt: skip


def main() -> None:
    given = parse_arguments()
    with tempfile.TemporaryDirectory(dir=given.folder) as home:
        folders = {load: make_files(Path(home) / load, *LOADS[load]) for load in LOADS}
        with start(Path(home) / "storage") as storage:
            print(f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
            timings = measure(given, storage, folders, Path(home))
    print(f"load afterwards {os.getloadavg()[0]:.1f}")
    for load in LOADS:
        for when in (UPLOAD, AGAIN):
            print_table(load, when, timings)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="bin folder of the environment with the peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where files and storage lie: 4 GB [default: the temporary folder]")
    return parser.parse_args()


def make_files(folder: Path, count: int, size_bytes: int) -> Path:
    draw = random.Random(0)
    for index in range(count):
        with durable.create(folder / f"{index:05}.bin") as file:
            for begin in range(0, size_bytes, BLOCK_BYTES):
                file.write(draw.randbytes(min(BLOCK_BYTES, size_bytes - begin)))
    return folder


def measure(given: argparse.Namespace, storage: Storage, folders: dict[str, Path], home: Path) -> Timings:
    """Every contestant in every round; ours without a digest cached at the first upload."""
    timings: Timings = {}
    os.environ.update(storage.environment, AWS_REGION="us-east-1", XDG_CACHE_HOME=str(home / "cache"))
    for number in range(given.rounds):
        for load, folder in folders.items():
            for name, command in contestants(given.peers, storage.endpoint).items():
                with empty_bucket(storage, f"{load}-{number}-{name.replace(' ', '-')}") as bucket:
                    shutil.rmtree(home / "cache", ignore_errors=True)
                    for when in (UPLOAD, AGAIN) if "bare" not in name else (UPLOAD,):
                        timing = run(command(str(folder), bucket.name))
                        timings.setdefault((load, when, name), []).append(timing)
                        print(f"round {number}: {load} {when} {name} {timing.seconds:.2f} s", flush=True)
                    check(bucket, LOADS[load])
    return timings


@contextmanager
def empty_bucket(storage: Storage, name: str) -> Iterator[TestBucket]:
    storage.client().create_bucket(Bucket=name)
    bucket = TestBucket(storage, name)
    # A first write makes the bucket's volume, which nobody should be charged for.
    bucket.put("first", b"")
    storage.client().delete_object(Bucket=name, Key="first")
    yield bucket
    bucket.remove()


def run(command: list[str]) -> Timing:
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return Timing(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


def check(bucket: TestBucket, load: tuple[int, int]) -> None:
    """A contestant that uploads less than all has not won."""
    sizes = [size for _, size in bucket.listing()]
    if sizes != [load[1]] * load[0]:
        raise SystemExit(f"{bucket.name} holds {len(sizes)} objects of {sum(sizes)} bytes, not {load}")


def print_table(load: str, when: str, timings: Timings) -> None:
    rows = {name: timings[key] for key in timings for name in [key[2]] if key[:2] == (load, when)}
    medians = {name: statistics.median(each.seconds for each in all_) for name, all_ in rows.items()}
    best = min(seconds for name, seconds in medians.items() if name != "nexa sync")
    print(f"\n{load}, {when}\n\n| contestant | seconds | range | to the best peer | CPU seconds |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for name, all_ in rows.items():
        seconds = sorted(each.seconds for each in all_)
        cpu = statistics.median(each.cpu_seconds for each in all_)
        spread = f"{seconds[0]:.2f} to {seconds[-1]:.2f}"
        print(f"| {name} | {medians[name]:.2f} | {spread} | {medians[name] / best:.2f} | {cpu:.2f} |")


if __name__ == "__main__":
    main()
