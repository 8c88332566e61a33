"""Preparing in processes of its own: the same bytes whatever the threads, and nothing half made after a kill."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nexa_core import digests
from nexa_core.paths import Layout
from nexa_data.datasets import list_datasets

HOME = Path(__file__).parent.parent

DATASETS = {
    "datasets": [
        {
            "name": "pairs",
            "source": {"name": "files", "path": "data/raw/pairs.jsonl"},
            "rows": {"name": "pairs", "prompt": "q", "completion": "a"},
            "output": {"name": "training"},
            "tokenizer": {"vocab_size": 600},
        },
        {
            "name": "numbers",
            "source": {"name": "files", "path": "data/raw/pairs.jsonl"},
            "rows": {"name": "features", "features": "x", "label": "k"},
            "output": {"name": "training"},
        },
        {
            "name": "documents",
            "source": {"name": "files", "path": "data/raw/pairs.jsonl"},
            "rows": {"name": "pairs", "completion": "a"},
            "output": {"name": "pretrain", "rows_per_shard": 700},
        },
    ]
}

# Stands in for a power cut: the process is gone at the n-th time that a file would take its name.
PREPARE = """
import json, os, signal, sys
from pathlib import Path
from nexa_core.config.data import DataConfig
from nexa_core.paths import Layout
from nexa_data.prepare import prepare

publish, left = os.replace, [int(sys.argv[3])]

def replace(source, target):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    publish(source, target)

os.replace = replace
prepare(DataConfig.model_validate_json(sys.argv[2]), Layout(Path(sys.argv[1])), replace=sys.argv[4] == "replace")
"""


def write_pairs(root: Path) -> None:
    path = root / "data" / "raw" / "pairs.jsonl"
    path.parent.mkdir(parents=True)
    rows = [
        {"q": f"What is {n}?", "a": f"{n} is {n * n} rooted, {n % 7}", "x": [n / 3, -n], "k": n % 5}
        for n in range(2000)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows[:9]]) + "dirt\n")


def run_prepare(root: Path, config: object, *, kill_at: int = 0, replace: bool = False, **environment: str) -> int:
    command = [sys.executable, "-c", PREPARE, str(root), json.dumps(config), str(kill_at), "replace" if replace else ""]
    paths = f"{HOME}{os.pathsep}{root}"
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths, **environment}, check=False).returncode


def digests_below(root: Path) -> dict[str, str]:
    files = (path for path in (root / "data" / "processed").rglob("*") if path.is_file() and path.suffix != ".partial")
    return {str(path.relative_to(root)): digests.of_file(path) for path in files}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("whole")
    write_pairs(root)
    assert run_prepare(root, DATASETS) == 0
    return digests_below(root)


@pytest.mark.parametrize("threads", ["1", "3"])
def test_the_bytes_are_the_same_whatever_the_number_of_threads_and_the_hash_seed(tmp_path, uninterrupted, threads):
    write_pairs(tmp_path)
    names = ("RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "OMP_NUM_THREADS", "ARROW_IO_THREADS", "PYTHONHASHSEED")
    assert run_prepare(tmp_path, DATASETS, TOKENIZERS_PARALLELISM="true", **dict.fromkeys(names, threads)) == 0
    assert digests_below(tmp_path) == uninterrupted


# Of the first dataset three splits, rejects, tokenizer, Croissant file, overview and manifest take their names, in this
# order; then come the others.
@pytest.mark.parametrize("kill_at", [4, 7, 8, 10])
def test_killed_at_any_write_it_leaves_no_manifest_of_half_a_dataset_and_ends_with_the_same_bytes(
    tmp_path, uninterrupted, kill_at
):
    write_pairs(tmp_path)
    assert run_prepare(tmp_path, DATASETS, kill_at=kill_at) == -signal.SIGKILL
    standing = list_datasets(Layout(tmp_path))
    assert [dataset.key for dataset in standing] == (["pairs_v1"] if kill_at > 8 else [])
    for dataset in standing:
        assert dataset.read_split("train").num_rows > 0
    assert run_prepare(tmp_path, DATASETS) == 0
    assert digests_below(tmp_path) == uninterrupted


# A second name for each of the 5 files and 3 descriptions of what stands and their list come first; then the new ones, as above.
@pytest.mark.parametrize("kill_at", [3, 10, 12, 15, 17])
def test_killed_while_it_replaces_a_dataset_what_stood_comes_back(tmp_path, uninterrupted, kill_at):
    write_pairs(tmp_path)
    assert run_prepare(tmp_path, DATASETS) == 0
    changed = {**DATASETS["datasets"][0], "output": {"name": "training", "salt": "other"}}
    assert run_prepare(tmp_path, {"datasets": [changed]}, kill_at=kill_at, replace=True) == -signal.SIGKILL
    assert run_prepare(tmp_path, DATASETS) == 0
    assert digests_below(tmp_path) == uninterrupted


def test_an_error_while_a_dataset_is_replaced_brings_back_what_stood(tmp_path, uninterrupted):
    write_pairs(tmp_path)
    assert run_prepare(tmp_path, DATASETS) == 0
    tokenizers = tmp_path / "data" / "processed" / "training" / "tokenizers"
    changed = {**DATASETS["datasets"][0], "output": {"name": "training", "salt": "other"}}
    tokenizers.rename(tmp_path / "aside")
    tokenizers.write_text("no folder, so that no tokenizer can be written here\n")
    assert run_prepare(tmp_path, {"datasets": [changed]}, replace=True) == 1
    tokenizers.unlink()
    (tmp_path / "aside").rename(tokenizers)
    assert digests_below(tmp_path) == uninterrupted


def test_killed_while_rows_are_read_it_publishes_nothing(tmp_path):
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n"
        "def rows():\n"
        "    for number in range(30_000):\n"
        "        yield {'text': str(number), 'label': 1}\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    rows = {"name": "text", "text": "text", "label": "label"}
    dataset = {"name": "d", "source": {"name": "deadly:rows"}, "rows": rows, "output": {"name": "training"}}
    assert run_prepare(tmp_path, {"datasets": [dataset]}) == -signal.SIGKILL
    assert digests_below(tmp_path) == {}
