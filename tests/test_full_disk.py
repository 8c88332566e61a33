"""A disk that is full: one clear error, nothing lost, nothing paid twice, the same bytes once there is room."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.ranks import free_port
from tests.simulators import ROOT, simulator
from tests.test_collect import environment, settings, write_inputs

NUM_PROMPTS = 1500
COMMANDS = ("collect_teacher", "filter_pairs", "regenerate")
SHORT = {"name": "length", "of": "completion", "min_words": 16}
FILL = """
import os, subprocess, sys
lab, command, tenths = sys.argv[1], sys.argv[2:-1], int(sys.argv[-1])
free = os.statvfs(lab).f_bavail * os.statvfs(lab).f_frsize
with open(os.path.join(lab, "filler"), "wb") as filler:
    os.posix_fallocate(filler.fileno(), 0, free - tenths * 1024 * 1024 // 10)
done = subprocess.run(command, capture_output=True, text=True)
sys.stderr.write(done.stderr)
os.unlink(os.path.join(lab, "filler"))
sys.exit(done.returncode)
"""
"""Runs a command in a file system that has so many tenths of a megabyte left."""


def make(lab: Path, command: str) -> list[str]:
    return [sys.executable, "-m", f"nexa_distill.{command}", "--config", str(lab / "distill.yaml")]


def made_files(lab: Path) -> dict[str, bytes]:
    folder = lab / "data/processed/distillation"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.parquet")}


def prepare(lab: Path, base_url: str) -> None:
    lab.mkdir(exist_ok=True)
    write_inputs(lab, NUM_PROMPTS)
    path = settings(lab, base_url)
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**config, "filter": {"steps": [SHORT]}}))


SCRIPT = """
mount -t tmpfs -o size=64m none "$1" || exit 99
shift
exec "$@"
"""
FILLED = """
import json, pathlib, subprocess, sys
sys.path.insert(0, {root!r})
from tests.test_full_disk import COMMANDS, FILL, NUM_PROMPTS, environment, made_files, make, prepare
from tests.simulators import simulator
lab = pathlib.Path(sys.argv[1])
told = []
with simulator("--port", sys.argv[2], latency_seconds=0.02) as server:
    prepare(lab, server.base_url)
    for command in COMMANDS:
        for tenths in (2, 83, 86, 90):
            full = [sys.executable, "-c", FILL, str(lab), *make(lab, command), str(tenths)]
            done = subprocess.run(full, env=environment(lab), capture_output=True, text=True)
            told.append((command, done.returncode, done.stderr))
        done = subprocess.run(make(lab, command), env=environment(lab), capture_output=True, text=True)
        told.append((command, done.returncode, done.stderr))
    out = {{"told": told, "bill": server.bill(), "files": {{name: data.hex() for name, data in made_files(lab).items()}}}}
print(json.dumps(out))
"""


def test_on_a_full_disk_each_command_ends_with_one_error_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    port = str(free_port())  # the server's URL is a part of what determines an answer
    whole = tmp_path / "whole"
    with simulator("--port", port) as server:
        prepare(whole, server.base_url)
        for command in COMMANDS:
            subprocess.run(make(whole, command), env=environment(whole), capture_output=True, check=True)
        wanted, bill = made_files(whole), server.bill()
    full = tmp_path / "full"
    full.mkdir()
    inside = [sys.executable, "-c", FILLED.format(root=str(ROOT)), str(full), port]
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", SCRIPT, "sh", str(full), *inside], capture_output=True, text=True, check=False
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("needs the right to mount a tmpfs")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    codes = {command: [code for name, code, _ in found["told"] if name == command] for command in COMMANDS}
    for command, code, said in found["told"]:
        assert "Traceback" not in said, said
        assert code == 0 or said.count("error:") == 1, (command, said)
    assert all(each[0] == 1 and each[-1] == 0 for each in codes.values()), codes
    assert sum(code == 1 for code in codes["collect_teacher"]) > 2, codes  # some of them in the middle of buying
    assert found["bill"]["answers"] == bill["answers"]
    assert set(found["files"]) == set(wanted)
    trained_on = [name for name in wanted if "sft_datasets" in name]  # the others have latencies in them
    assert trained_on
    for name in trained_on:
        assert bytes.fromhex(found["files"][name]) == wanted[name], name
