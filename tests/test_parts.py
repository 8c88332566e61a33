"""Large sources in pieces: the rows and bytes of one pass, by any number of processes, and only what has changed made anew."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nexa_core import digests
from nexa_core.config.data import DatasetConfig
from nexa_core.paths import Layout
from nexa_data import parts
from nexa_data.prepare import Prepared, prepare_dataset
from nexa_data.sources import pieces
from nexa_data.sources.json_files import read_json_lines
from nexa_data.sources.pieces import JsonLines
from nexa_data.sources.raw import BLANK, BadRow, Row

LINES = st.one_of(
    st.just(b""),
    st.just(b"  \t"),
    st.just(b"[1]"),
    st.binary(max_size=12),
    st.dictionaries(st.text(max_size=3), st.one_of(st.integers(), st.text(max_size=20)), min_size=1).map(
        lambda values: json.dumps(values).encode()
    ),
)


@given(st.lists(LINES, max_size=12), st.sampled_from([b"\n", b"\r\n"]), st.booleans(), st.integers(1, 60))
def test_the_pieces_of_a_file_have_its_rows(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], end: bytes, is_ended: bool, step: int
) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(end.join(lines) + (end if is_ended else b""))
    size, found, lines_before = path.stat().st_size, list[Row](), 0
    if path.read_bytes()[:2] in (b"\xff\xfe", b"\xfe\xff"):  # UTF-16, which is never cut
        return
    for begin in range(0, max(size, 1), step):
        piece = JsonLines("rows", path, begin, min(begin + step, size))
        found += [row._replace(line=row.line + lines_before) for row in piece.rows() if row.line is not None]
        lines_before += piece.num_lines
    while found and isinstance(found[-1], BadRow) and found[-1].reason == BLANK and not found[-1].raw.strip():
        found.pop()
    assert found == list(read_json_lines(path, "rows"))


def config(**changes: Any) -> DatasetConfig:
    given = {
        "name": "news",
        "source": {"name": "files", "path": "data/raw"},
        "rows": {"name": "text", "text": "text", "label": "label"},
        "output": {"name": "training"},
        "max_bad_fraction": 0.2,
        **changes,
    }
    return DatasetConfig.model_validate_json(json.dumps(given))


def write_raw(root: Path, *, changed: str = "") -> None:
    """Two files with duplicates, dirt and blank lines, in and between them."""
    draw = random.Random(0)
    folder = root / "data" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"text": f"text {draw.randrange(300)}", "label": "a", "more": 2**70}) for _ in range(400)]
    rows[17], rows[200], rows[201] = "dirt", "", '{"text": 3, "label": "a"}'
    if changed:
        rows[399] = json.dumps({"text": changed, "label": "b"})
    (folder / "one.jsonl").write_text("\n".join(rows) + "\n\n\n")
    (folder / "two.jsonl").write_text("\n".join(rows[:150]))
    (folder / "three.csv").write_text("text,label\n" + "".join(f'"row {number},\n",c\n' for number in range(50)))


def make(root: Path, **changes: Any) -> Prepared:
    return prepare_dataset(config(**changes), Layout(root), replace=True)


def digests_below(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): digests.of_file(path) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 3000)
    monkeypatch.setattr(parts, "PARALLEL_FROM_BYTES", 0)


@pytest.mark.parametrize("drop_duplicates", [True, False])
def test_several_processes_make_the_bytes_of_one(
    tmp_path: Path, request: pytest.FixtureRequest, drop_duplicates: bool
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    for root in (one, other):
        write_raw(root)
    prepared = make(one, drop_duplicates=drop_duplicates)
    request.getfixturevalue("in_pieces")
    assert make(other, drop_duplicates=drop_duplicates).num_rows == prepared.num_rows
    assert digests_below(one / "data" / "processed") == digests_below(other / "data" / "processed")
    rejected = [json.loads(line) for line in (other / "data/processed/training/rejects/news_v1.jsonl").open()]
    assert {row["reason"].split(":")[0].split(" of ")[0] for row in rejected} >= {"not JSON", "empty row", "not text"}
    assert sum(row["file"].endswith("three.csv") for row in rejected) == 0


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_only_the_pieces_that_changed_are_made_anew(tmp_path: Path, version: str) -> None:
    write_raw(tmp_path)
    make(tmp_path)
    folder = tmp_path / ".cache" / "prepare" / "training_news"
    before = {path.name: path.stat().st_ino for path in folder.glob("*.arrow")}
    write_raw(tmp_path, changed="something else")
    assert make(tmp_path, version=version).manifest["labels"] == ["a", "b", "c"]
    after = {path.name: path.stat().st_ino for path in folder.glob("*.arrow")}
    assert len(after) == len(before) > 5
    assert {name for name in after if after[name] != before.get(name)} == set(after) - set(before)
    assert len(set(after) - set(before)) == 1


@pytest.mark.usefixtures("in_pieces")
def test_other_settings_or_damaged_parts_are_never_served(tmp_path: Path) -> None:
    write_raw(tmp_path)
    make(tmp_path)
    whole = digests_below(tmp_path / "data" / "processed" / "training" / "train")
    folder = tmp_path / ".cache" / "prepare" / "training_news"
    first, second = sorted(folder.glob("*.arrow"))[:2]
    first.write_bytes(first.read_bytes()[:-40])
    second.with_suffix(".json").unlink()
    for path in (tmp_path / "data" / "processed" / "training" / "train").iterdir():
        path.unlink()
    make(tmp_path)
    assert digests_below(tmp_path / "data" / "processed" / "training" / "train") == whole
    names = {path.name for path in folder.glob("*.*")}
    make(tmp_path, rows={"name": "text", "text": ["text", "label"], "label": "label"})
    assert not names & {path.name for path in folder.glob("*.*")}


def test_parts_that_another_preparation_uses_are_not_removed(tmp_path: Path) -> None:
    with parts.in_use(tmp_path / "cache") as used:
        mine = tmp_path / "cache" / "mine.arrow"
        mine.write_bytes(b"rows")
        with parts.in_use(tmp_path / "cache"):
            pass
        assert mine.exists()
        used.add(mine)
    assert mine.exists()
    with parts.in_use(tmp_path / "cache"):
        pass
    assert not mine.exists()


def test_a_line_over_many_pieces_is_looked_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1000)
    path = tmp_path / "one.jsonl"
    path.write_bytes(b'{"a": "' + b"x" * 50_000 + b'"}\n{"a": 2}')
    cut = pieces.cut_json_lines("one", path)
    assert len(cut) > 50
    found = [row for piece in cut for row in piece.rows()]
    assert [row.line for row in found] == [1, 1]
    assert found[1].offset == path.stat().st_size - len(b'{"a": 2}')
    assert [len(piece._data or b"") for piece in cut[1:-1]] == [0] * (len(cut) - 2)


@pytest.mark.usefixtures("in_pieces")
def test_lines_are_counted_from_the_file_also_where_features_are_looked_at_first(tmp_path: Path) -> None:
    path = tmp_path / "data" / "raw" / "rows.jsonl"
    path.parent.mkdir(parents=True)
    lines = [json.dumps({"x": [number, 1.5], "label": "a"}) for number in range(900)]
    for bad in (300, 800):
        lines[bad - 1] = "not JSON"
    path.write_text("\n".join(lines) + "\n")
    make(tmp_path, rows={"name": "features", "features": "x", "label": "label"})
    rejected = (tmp_path / "data/processed/training/rejects/news_v1.jsonl").read_text().splitlines()
    assert [json.loads(row)["line"] for row in rejected] == [300, 800]
