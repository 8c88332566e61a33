"""A sync killed at random moments, in both directions: whole files only, and the rest when it is started again."""

import hashlib
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from nexa_core.storage.place import PART_BYTES
from tests.storages import TestBucket

ROOT = Path(__file__).parent.parent
LARGE_BYTES = 6 * PART_BYTES + 1


def make_files(seed: int) -> dict[str, bytes]:
    """Many small files, two in pieces, and some that are there in another version already."""
    small = {f"small/{index % 7}/{index:03}": f"{seed} {index}".encode() * 2000 for index in range(200)}
    return small | {name: hashlib.shake_128(f"{seed}{name}".encode()).digest(LARGE_BYTES) for name in ("large", "z")}


OLD = {key: data for key, data in make_files(0).items() if key.endswith(("7", "large"))}
NEW = make_files(1)


@dataclass(frozen=True)
class Push:
    """From a folder to a bucket."""

    bucket: TestBucket
    folder: Path

    def begin(self) -> tuple[str, str]:
        write(self.folder, NEW)
        for key, data in OLD.items():
            self.bucket.put(key, data)
        return str(self.folder), self.bucket.url

    def visible(self) -> dict[str, bytes]:
        return self.bucket.objects()

    everything = visible


@dataclass(frozen=True)
class Pull:
    """From a bucket to a folder."""

    bucket: TestBucket
    folder: Path

    def begin(self) -> tuple[str, str]:
        write(self.folder, OLD)
        for key, data in NEW.items():
            self.bucket.put(key, data)
        return self.bucket.url, str(self.folder)

    def visible(self) -> dict[str, bytes]:
        return {key: data for key, data in self.everything().items() if not Path(key).name.startswith(".")}

    def everything(self) -> dict[str, bytes]:
        """Hidden files as well."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}


def write(folder: Path, files: dict[str, bytes]) -> None:
    for key, data in files.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)


def is_whole(visible: dict[str, bytes]) -> bool:
    """Whether each file is there in the old version or in the new one."""
    return all(data in (OLD.get(key), NEW[key]) for key, data in visible.items())


def sync_and_kill(draw: random.Random, direction: type[Push] | type[Pull], bucket: TestBucket, home: Path) -> bool:
    """Kill one sync, look at what is there, sync again; whether the kill met it between its first file and its last."""
    place = direction(bucket, home / "folder")
    source, destination = place.begin()
    command = [sys.executable, str(ROOT / "scripts" / "sync_s3.py"), source, destination, "--concurrency", "4"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(home / "cache")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    wait_for_the_first_file(place, process)
    time.sleep(draw.uniform(0, 1.5))
    process.kill()
    process.communicate()
    left = place.visible()
    assert is_whole(left)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert place.everything() == NEW
    return left not in (OLD, NEW)


def wait_for_the_first_file(place: Push | Pull, process: "subprocess.Popen[bytes]") -> None:
    client, marker = place.bucket.storage.client(), "small/0/000"
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if isinstance(place, Pull):
            begun = (place.folder / marker).exists()
        else:
            begun = client.list_objects_v2(Bucket=place.bucket.name, Prefix=marker)["KeyCount"]
        if begun:
            return
        time.sleep(0.01)


@pytest.mark.parametrize("direction", [Push, Pull])
def test_a_killed_sync_leaves_whole_files_and_goes_on(
    direction: type[Push] | type[Pull], bucket: TestBucket, tmp_path: Path
) -> None:
    sync_and_kill(random.Random(0), direction, bucket, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("direction", [Push, Pull])
def test_twenty_kills_leave_whole_files_and_go_on(
    direction: type[Push] | type[Pull], bucket: TestBucket, tmp_path: Path
) -> None:
    draw, num_between = random.Random(1), 0
    for index in range(20):
        own = bucket.another(str(index))
        num_between += sync_and_kill(draw, direction, own, tmp_path / str(index))
        own.remove()
    assert num_between >= 5  # or the kills were too late to mean anything
