"""`nexa data`: versions compared, datasets held against their manifests."""

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest
from typer.testing import CliRunner

from nexa_core import digests
from nexa_core.config.data import DatasetConfig
from nexa_core.errors import NexaError, UserError
from nexa_core.paths import Layout
from nexa_data.datasets import find_dataset
from nexa_data.difference import compare
from nexa_data.prepare import prepare_dataset
from nexa_data.validation import validate
from scripts.data_commands import app

KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "text": ({"name": "text", "text": "q", "label": "a"}, lambda n, target: {"q": f"text {n}", "a": target}),
    "pairs": ({"name": "pairs", "prompt": "q", "completion": "a"}, lambda n, target: {"q": f"ask {n}", "a": target}),
    "features": ({"name": "features", "features": "q", "label": "a"}, lambda n, target: {"q": [n, 0.5], "a": target}),
    "chat": (
        {"name": "chat", "messages": "q"},
        lambda n, target: {"q": [{"role": "user", "content": f"ask {n}"}, {"role": "assistant", "content": target}]},
    ),
}


def make(root: Path, version: str, rows: list[dict[str, Any]], kind: str = "text", **changes: Any) -> None:
    path = root / "data" / "raw" / f"{version}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {
        "name": "news",
        "version": version,
        "source": {"name": "files", "path": f"data/raw/{version}.jsonl"},
        "rows": KINDS[kind][0],
        "output": {"name": "training", "val": 0.2, "test": 0.2},
        **changes,
    }
    prepare_dataset(DatasetConfig.model_validate_json(json.dumps(given)), Layout(root))


def rows_of(kind: str, numbers: range, **changed: str) -> list[dict[str, Any]]:
    row = KINDS[kind][1]
    return [row(number, changed.get(f"n{number}", "target")) for number in numbers]


def test_other_columns_that_changed_are_counted(tmp_path: Path) -> None:
    rows = rows_of("text", range(50))
    make(tmp_path, "v1", [{**row, "licence": "mit"} for row in rows])
    make(tmp_path, "v2", [{**row, "licence": "mit" if number % 5 else "other"} for number, row in enumerate(rows)])
    found = compare(*(find_dataset(Layout(tmp_path), f"news_{version}") for version in ("v1", "v2")))
    assert (found.num_same, found.num_changed, found.num_with_other_extras) == (50, 0, 10)
    assert re.search(r"^other columns +10 of those in both have others$", found.as_text(), re.MULTILINE)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_added_removed_and_changed_are_told_apart(tmp_path: Path, kind: str) -> None:
    make(tmp_path, "v1", rows_of(kind, range(50)), kind)
    make(tmp_path, "v2", rows_of(kind, range(5, 58), n9="another", n10="another"), kind)
    found = compare(*(find_dataset(Layout(tmp_path), f"news_{version}") for version in ("v1", "v2")))
    assert (found.num_same, found.num_added, found.num_removed, found.num_changed) == (43, 8, 5, 2)
    assert found.num_moved == 0
    assert len(found.examples["changed"]) == 2
    assert "another" in found.examples["changed"][0]


def test_rows_in_another_split_are_counted(tmp_path: Path) -> None:
    for version, salt in (("v1", ""), ("v2", "other")):
        make(tmp_path, version, rows_of("text", range(200)), output={"name": "training", "salt": salt, "val": 0.4})
    found = compare(*(find_dataset(Layout(tmp_path), f"news_{version}") for version in ("v1", "v2")))
    assert (found.num_same, found.num_added, found.num_removed) == (200, 0, 0)
    assert 50 < found.num_moved < 150


def test_steps_of_both_versions_stand_side_by_side(tmp_path: Path) -> None:
    make(tmp_path, "v1", rows_of("text", range(50)) * 2)
    make(tmp_path, "v2", rows_of("text", range(50)), quality=[{"name": "length", "min_chars": 7}])
    found = compare(*(find_dataset(Layout(tmp_path), f"news_{version}") for version in ("v1", "v2")))
    assert found.steps["deduplicate"] == (50, 0)
    assert found.steps["length"] == (None, 10)


def test_a_changed_target_is_shown_beside_what_it_was(tmp_path: Path) -> None:
    make(tmp_path, "v1", rows_of("pairs", range(50)), "pairs")
    make(tmp_path, "v2", rows_of("pairs", range(5, 58), n9="another " * 30), "pairs")
    text = compare(*(find_dataset(Layout(tmp_path), f"news_{version}") for version in ("v1", "v2"))).as_text()
    assert re.search(r"^rows +50 +53$", text, re.MULTILINE)
    assert re.search(r"^in both +44, 0 of them in another split$", text, re.MULTILINE)
    assert re.search(r"^    ~ ask 9 -> (another ){5}.*…, was target$", text, re.MULTILINE)
    assert re.search(r"^    \+ ask 50 -> target$", text, re.MULTILINE)


def test_an_input_with_several_targets_is_counted_row_by_row_whatever_their_order(tmp_path: Path) -> None:
    before = [{"q": "same", "a": target} for target in "abcd"] + rows_of("text", range(20))
    after = [{"q": "same", "a": target} for target in "axy"] + rows_of("text", range(20))
    make(tmp_path, "v1", before)
    make(tmp_path, "v2", after)
    make(tmp_path, "v3", after[::-1])
    found = [compare(*(find_dataset(Layout(tmp_path), f"news_{name}") for name in ("v1", new))) for new in ("v2", "v3")]
    assert (found[0].num_same, found[0].num_changed, found[0].num_removed, found[0].num_added) == (21, 2, 1, 0)
    assert found[0].examples == found[1].examples
    assert len(found[0].examples["changed"]) == 2
    (gone,) = found[0].examples["removed"]
    assert not any(gone.removeprefix("same -> ") == each[-1] for each in found[0].examples["changed"])


def test_rows_of_different_kinds_are_not_compared(tmp_path: Path) -> None:
    make(tmp_path, "v1", rows_of("text", range(50)))
    make(tmp_path, "v2", rows_of("pairs", range(50)), "pairs")
    with pytest.raises(UserError, match="only rows of one kind"):
        compare(*(find_dataset(Layout(tmp_path), f"news_{version}") for version in ("v1", "v2")))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_prepared_is_sound(tmp_path: Path, kind: str) -> None:
    make(tmp_path, "v1", rows_of(kind, range(50)) * 2, kind)
    found = validate(find_dataset(Layout(tmp_path), "news_v1"))
    assert found.holds, found.as_text()
    assert {finding.check for finding in found.findings} >= {"files", "schema", "rows", "ids", "leaks"}


def test_duplicates_that_were_kept_are_sound(tmp_path: Path) -> None:
    make(tmp_path, "v1", rows_of("text", range(50)) * 3, drop_duplicates=False)
    assert validate(find_dataset(Layout(tmp_path), "news_v1")).holds


def forge(root: Path, split: str, change: Any) -> None:
    """Change a split's table and have the manifest say that it was always so."""
    folder = root / "data" / "processed" / "training"
    path, manifest_path = folder / split / "news_v1.parquet", folder / "manifests" / "news_v1.json"
    parquet.write_table(change(parquet.read_table(path)), path)
    manifest = json.loads(manifest_path.read_text())
    manifest["splits"][split].update(bytes=path.stat().st_size, sha256=digests.of_file(path))
    manifest_path.write_text(json.dumps(manifest))


def test_each_fault_is_found(tmp_path: Path) -> None:
    def failed() -> set[str]:
        found = validate(find_dataset(Layout(tmp_path), "news_v1"))
        return {finding.check for finding in found.findings if not finding.holds}

    def fresh() -> None:
        for path in (tmp_path / "data").rglob("*v1*"):
            path.unlink() if path.is_file() else None
        make(tmp_path, "v1", rows_of("text", range(80)))

    fresh()
    train = tmp_path / "data/processed/training/train/news_v1.parquet"
    whole = train.read_bytes()
    train.write_bytes(whole[:-1] + b"\0")
    assert failed() == {"files"}
    train.write_bytes(whole)
    table = parquet.read_table(train)
    forge(tmp_path, "train", lambda table: table.slice(1))
    assert failed() == {"rows"}
    fresh()
    forge(tmp_path, "train", lambda rows: rows.set_column(1, rows.schema.field("text"), [["x"] * len(rows)]))
    assert failed() == {"ids"}
    fresh()
    forge(tmp_path, "val", lambda rows: table.slice(0, len(rows)))
    assert failed() == {"ids", "leaks"}
    fresh()
    forge(tmp_path, "test", lambda rows: rows.drop_columns(["label"]))
    assert "schema" in failed()


def test_the_commands_print_and_exit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEXA_ROOT", str(tmp_path))
    make(tmp_path, "v1", rows_of("text", range(50)), quality=[{"name": "length", "min_chars": 7}])
    make(tmp_path, "v2", rows_of("text", range(9, 60)))
    runner = CliRunner()
    told = runner.invoke(app, ["funnel", "news_v1", "--override", "quality.0.min_chars=0"])
    assert (told.exit_code, "if it were made with quality.0.min_chars=0" in told.output) == (0, True)
    assert json.loads(runner.invoke(app, ["diff", "news_v1", "news_v2", "--json"]).output)["num_added"] == 11
    assert runner.invoke(app, ["validate"]).output.count("sound") == 2
    (tmp_path / "data/processed/training/val/news_v2.parquet").unlink()
    broken = runner.invoke(app, ["validate", "news_v1", "news_v2"])
    assert isinstance(broken.exception, NexaError)
    assert broken.exception.exit_code == 3
    for command in (["diff", "news_v1", "news_v2"], ["overview", "news_v2"]):
        assert "news_v2.parquet is missing. Make it again" in str(runner.invoke(app, command).exception)
    missing = runner.invoke(app, ["funnel", "news_v3"])
    assert "Did you mean 'news_v" in str(missing.exception)
