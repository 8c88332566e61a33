"""Engines: the same bytes with each of them, within the memory that is given."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from nexa_core.config import DataConfig, load_config
from nexa_core.environment import num_cores
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data import parts
from nexa_data.engines import MAIN_BYTES, PROCESS_BYTES, Means
from nexa_data.sources import pieces
from tests.test_overlaps import CLEAN, EXAM, NEAR, files_below, layout, make, write_rows

__all__ = ["layout"]


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_pieces_and_engines_make_the_same_bytes(
    layout: Layout, monkeypatch: pytest.MonkeyPatch, engine: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    both = {**NEAR, **CLEAN, "quality": [{"name": "length", "min_words": 45}]}
    make(layout, EXAM, both)
    expected = files_below(layout.processed)
    elsewhere = Layout(tmp_path_factory.mktemp("elsewhere"))
    for name in ("exam.jsonl", "rows.jsonl"):
        write_rows(elsewhere.raw / name, [json.loads(line) for line in (layout.raw / name).open()])
    monkeypatch.setattr(pieces, "PIECE_BYTES", 9000)
    monkeypatch.setattr(parts, "PARALLEL_FROM_BYTES", 0)
    make(elsewhere, EXAM, both, engine=engine)
    assert files_below(elsewhere.processed) == expected


def test_a_users_mistake_on_another_machine_is_told_as_here(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PARALLEL_FROM_BYTES", 0)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 9000)
    before = signal.getsignal(signal.SIGTERM)
    bad = {**NEAR, "quality": [{"name": "tests.test_engines:refuses", "min_score": 0}]}
    with pytest.raises(UserError, match="a step that refuses"):
        make(layout, bad, engine="ray")
    assert signal.getsignal(signal.SIGTERM) is before, "a run that trains afterwards saves when it is asked to end"


def refuses(text: str) -> float:
    raise UserError("a step that refuses")


def test_fewer_processes_read_where_there_is_little_memory() -> None:
    assert Means().num_processes == num_cores()
    assert Means(memory_limit_bytes=MAIN_BYTES).num_processes == 1
    assert Means(memory_limit_bytes=MAIN_BYTES + 1000 * PROCESS_BYTES).num_processes == num_cores()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"memory_limit": "100MiB"}, "512 MiB at least"),
        ({"memory_limit": "1GB"}, "memory_limit"),
        ({"memory_limit": "2GiB", "engine": "ray"}, "Ray has limits of its own"),
        ({"engine": "spark"}, "engine"),
    ],
)
def test_means_that_cannot_be_are_named(tmp_path: Path, settings: dict[str, Any], said: str) -> None:
    path = tmp_path / "data.yaml"
    path.write_text(yaml.safe_dump({"datasets": [NEAR], **settings}))
    with pytest.raises(UserError, match=said):
        load_config(path, DataConfig)
