"""Preparing sources that are read by several processes: killed, with little memory, and on a full disk."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nexa_core import digests

HOME = Path(__file__).parent.parent
MIB, GIB = 2**20, 2**30
NUM_KILLS = 20
NUM_TEXTS = 8000
CONFIG: dict[str, Any] = {
    "datasets": [
        {
            "name": "rows",
            "source": {"name": "files", "path": "data/raw/rows.jsonl"},
            "rows": {"name": "text", "text": "text", "label": "label"},
            "output": {"name": "training"},
            "quality": [{"name": "length", "min_words": 20}],
            "near_duplicates": {},
        }
    ]
}
WORDS = [first + second for first in "bdfgklmnprst" for second in ("ano", "eri", "ilu", "oka", "usem", "ytti", "a")]


def write_rows(path: Path, size_bytes: int) -> int:
    """A file of about that size, with repeated, nearly repeated and bad rows; returns the number of its lines."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(10, 900))) for _ in range(NUM_TEXTS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    number = 0
    with path.open("wb") as file:
        while file.tell() < size_bytes:
            for text in texts:  # from the second time on nearly what was there before
                number += 1
                line = (
                    b'{"text": "cut o'
                    if number % 500 == 0
                    else b'{"text": "%d %s", "label": 1}' % (number, text.encode())
                )
                file.write(line + b"\n")
                if number % 20 == 0:
                    number += 1
                    file.write(line + b"\n")
    return number


def prepare_command(root: Path, config: dict[str, Any]) -> list[str]:
    path = root / "data.yaml"
    path.write_text(json.dumps(config))
    return [sys.executable, "-m", "scripts.cli", "prepare", "--config", str(path)]


def start(root: Path, config: dict[str, Any], limit: Callable[[], None] | None = None) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(HOME), "NEXA_ROOT": str(root)}
    return subprocess.Popen(
        prepare_command(root, config),
        cwd=root,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=limit,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, errors = process.communicate()
    return process.returncode, output + errors


def digests_below(root: Path) -> dict[str, str]:
    files = (path for path in (root / "data" / "processed").rglob("*") if path.is_file() and path.suffix != ".partial")
    return {str(path.relative_to(root)): digests.of_file(path) for path in files}


def kill_and_finish(root: Path, expected: dict[str, str], seconds: list[float]) -> None:
    """Kill the command and all its processes after each of these times, then let it end; nothing half made is ever seen."""
    for after in seconds:
        process = start(root, CONFIG)
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        standing = digests_below(root)
        if any("manifests" in path for path in standing):
            assert standing == expected
    code, said = finish(start(root, CONFIG))
    assert code == 0, said
    assert digests_below(root) == expected


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str], float]:
    """The raw file, the bytes that are made of it, and how long that takes."""
    root = tmp_path_factory.mktemp("whole")
    raw = root / "data" / "raw" / "rows.jsonl"
    write_rows(raw, 52 * MIB)
    began = time.monotonic()
    code, said = finish(start(root, CONFIG))
    assert code == 0, said
    return raw, digests_below(root), time.monotonic() - began


def lab_with(raw: Path, root: Path) -> Path:
    (root / "data" / "raw").mkdir(parents=True)
    os.link(raw, root / "data" / "raw" / "rows.jsonl")
    return root


def test_killed_while_pieces_are_read_it_goes_on_and_ends_with_the_same_bytes(tmp_path, uninterrupted):
    raw, expected, seconds = uninterrupted
    kill_and_finish(lab_with(raw, tmp_path), expected, [0.4 * seconds, 0.8 * seconds])


@pytest.mark.slow
def test_killed_twenty_times_anywhere_it_ends_with_the_same_bytes(tmp_path, uninterrupted):
    raw, expected, seconds = uninterrupted
    draw = random.Random(7)
    for number in range(NUM_KILLS // 2):  # twice each, so that what was done before is used
        times = [draw.uniform(0.2, 1.0) * seconds for _ in range(2)]
        kill_and_finish(lab_with(raw, tmp_path / str(number)), expected, times)


def test_a_full_disk_is_told_and_the_version_before_stays_whole(tmp_path, uninterrupted):
    raw, _, _ = uninterrupted
    root = lab_with(raw, tmp_path)
    processed = root / "data" / "processed"
    small = tmp_path / "few.jsonl"
    write_rows(small, 100_000)
    before = json.loads(json.dumps(CONFIG))
    before["datasets"][0] |= {"version": "v1", "source": {"name": "files", "path": str(small)}}
    bigger = json.loads(json.dumps(CONFIG))
    bigger["datasets"][0]["version"] = "v2"
    processed.mkdir(parents=True)
    script = (
        'mount -t tmpfs -o size=6m none "$1" || exit 99\n'
        f'"{sys.executable}" -m scripts.cli prepare --config "$2" || exit 98\n'
        f'"{sys.executable}" -m scripts.cli prepare --config "$3"; code=$?\n'
        f'"{sys.executable}" -m scripts.cli data validate rows_v1 || exit 97\n'
        'find "$1" -name "*v2*" | grep -v partial\n'
        "exit $code\n"
    )
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(json.dumps(before))
    second.write_text(json.dumps(bigger))
    environment = {**os.environ, "PYTHONPATH": str(HOME), "NEXA_ROOT": str(root)}
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", processed, first, second]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("this machine lets nobody mount a small disk")
    assert done.returncode == 1, done.stderr
    assert "No space left on device" in done.stderr
    assert "run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert "v2" not in done.stdout.partition("rows_v1: sound")[2]


@pytest.mark.slow
def test_a_file_of_three_gigabytes_needs_two_of_address_space(tmp_path):
    num_lines = write_rows(tmp_path / "data" / "raw" / "rows.jsonl", 3 * GIB)
    config = json.loads(json.dumps(CONFIG))
    del config["datasets"][0]["near_duplicates"]  # which maps all rows into the address space
    process = start(tmp_path, config, lambda: resource.setrlimit(resource.RLIMIT_AS, (2 * GIB, 2 * GIB)))
    code, said = finish(process)
    assert code == 0, said
    (manifest,) = (tmp_path / "data" / "processed" / "training" / "manifests").glob("*.json")
    assert json.loads(manifest.read_text())["steps"][0]["rows_in"] == num_lines
