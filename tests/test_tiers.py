"""`nexa storage`: what lies in each tier, and moving with digests; killed or damaged, nothing is lost."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from nexa_core import durable
from nexa_core.config.policy import PolicyConfig
from nexa_core.errors import GateError, UserError
from nexa_core.holder import hold
from nexa_core.paths import Layout
from nexa_ops.retention.plan import make_plan
from nexa_ops.runs.follow import look_again
from nexa_ops.runs.states import find_run
from nexa_ops.runs.table import Filters, list_rows
from nexa_ops.tiers import move as moving
from nexa_ops.tiers.move import Moved, move
from nexa_ops.tiers.places import read_tiers
from nexa_ops.tiers.usage import kind_of, measure
from tests.conftest import FinishedLab
from tests.storages import TestBucket
from tests.test_runs import make_run

NOW = datetime(2026, 1, 31, tzinfo=UTC)


@pytest.fixture
def desk(tmp_path: Path) -> Layout:
    layout = Layout(tmp_path / "lab")
    run = make_run(layout, "a_20260101_000000", metrics={"accuracy": 0.9})
    (run.checkpoints / "checkpoint_epoch0.pt").write_bytes(b"weights" * 1000)
    durable.publish(run.checkpoints / "checkpoint_epoch0.pt", run.checkpoints / "best.pt")
    layout.packages.mkdir(parents=True)
    (layout.packages / "a [1].tar.gz").write_bytes(b"packed")
    return layout


@pytest.fixture
def tiers(tmp_path: Path) -> dict[str, str]:
    for name in ("durable", "shared"):
        (tmp_path / name).mkdir()
    return {"NEXA_DURABLE": str(tmp_path / "durable"), "NEXA_SHARED": str(tmp_path / "shared")}


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file's bytes and every link's target."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def move_to(layout: Layout, what: str, to: str, tiers: dict[str, str], **how: bool) -> Moved:
    return move(layout, what, to, environment=tiers, now=lambda: NOW, **how)


def test_a_run_goes_to_a_folder_and_comes_back_as_it_was(desk: Layout, tiers: dict[str, str]) -> None:
    run = find_run(desk, "a").run
    before = contents(run.path)
    moved = move_to(desk, "a_20260101", "durable", tiers)
    assert moved.target == f"{tiers['NEXA_DURABLE']}/artifacts/runs/a/a_20260101_000000"
    assert run.path.is_symlink()
    assert contents(run.path.resolve()) == before
    assert [row.state for row in list_rows(desk, Filters(), limit=0).rows] == ["finished"]
    with pytest.raises(UserError, match="has been moved already"):
        move_to(desk, run.run_id, "shared", tiers)
    move_to(desk, run.run_id, "lab", tiers)
    assert not run.path.is_symlink()
    assert contents(run.path) == before
    assert not list(Path(tiers["NEXA_DURABLE"]).rglob("*.pt"))
    assert not list(desk.moved.iterdir())
    assert not list(desk.root.rglob("*.partial"))


def test_a_run_goes_to_a_bucket_and_comes_back_as_it_was(desk: Layout, bucket: TestBucket) -> None:
    run = find_run(desk, "a").run
    before = contents(run.path)
    tiers = {"NEXA_DURABLE": f"s3://{bucket.name}/lab"}
    move_to(desk, run.run_id, "durable", tiers)
    assert not run.path.exists()
    (usage,) = [each for each in measure(desk, tiers).usages if each.tier.name == "durable"]
    assert usage.size_bytes["checkpoints"] == 7000
    move_to(desk, run.run_id, "lab", tiers)
    assert contents(run.path) == before


def test_a_file_is_copied_or_moved_whatever_its_name(desk: Layout, tiers: dict[str, str]) -> None:
    name = "artifacts/package/a [1].tar.gz"
    copied = move_to(desk, name, "shared", tiers, keep=True)
    assert "copied, every digest verified" in copied.as_text()
    assert not (desk.root / name).is_symlink()
    assert Path(copied.target).read_bytes() == b"packed"
    move_to(desk, name, "shared", tiers)
    assert (desk.root / name).read_bytes() == b"packed"
    assert (desk.root / name).is_symlink()
    move_to(desk, name, "lab", tiers)
    assert not (desk.root / name).is_symlink()
    assert not Path(copied.target).exists()


def test_a_run_in_storage_that_is_not_mounted_says_so(desk: Layout, tiers: dict[str, str]) -> None:
    make_run(desk, "b_20260101_000000")
    move_to(desk, "b_20260101_000000", "durable", tiers)
    Path(tiers["NEXA_DURABLE"]).rename(Path(tiers["NEXA_DURABLE"]).with_name("elsewhere"))
    with pytest.raises(UserError, match=r"which is not there: is that storage mounted\?"):
        look_again(desk, find_run(desk, "b_20260101_000000"))


def test_what_is_written_to_while_it_is_copied_stays(
    desk: Layout, tiers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = desk.raw / "x"
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("{}\n")
    verify = moving._verify

    def add_a_file_and_verify(target: str, part: moving.Part) -> None:
        (folder / "late.jsonl").write_text("{}\n")
        verify(target, part)

    monkeypatch.setattr(moving, "_verify", add_a_file_and_verify)
    with pytest.raises(GateError, match="was written to while it was copied, so it stays"):
        move_to(desk, "data/raw/x", "durable", tiers)
    assert {path.name for path in folder.iterdir()} == {"rows.jsonl", "late.jsonl"}
    monkeypatch.setattr(moving, "_verify", verify)
    move_to(desk, "data/raw/x", "durable", tiers)
    assert (folder / "late.jsonl").read_text() == "{}\n"
    assert folder.is_symlink()


@pytest.mark.parametrize("inner", ["checkpoints", "checkpoints/checkpoint_epoch0.pt"])
def test_a_part_of_a_run_that_is_being_written_stays(desk: Layout, tiers: dict[str, str], inner: str) -> None:
    run = find_run(desk, "a").run
    key = f"artifacts/runs/{run.path.parent.name}/{run.run_id}/{inner}"
    with hold(run), pytest.raises(UserError, match="is being written by another process"):
        move_to(desk, key, "durable", tiers)
    move_to(desk, key, "durable", tiers)
    assert (desk.root / key).is_symlink()


def test_a_tier_that_is_not_mounted_is_not_made(desk: Layout, tmp_path: Path) -> None:
    tiers = {"NEXA_DURABLE": str(tmp_path / "mount" / "lab")}
    with pytest.raises(UserError, match=r"is not there: is that storage mounted\?"):
        move_to(desk, "a_20260101_000000", "durable", tiers)
    assert not (tmp_path / "mount").exists()
    assert "(not there: is it mounted?)" in measure(desk, tiers).as_text()


def test_what_lies_in_a_tier_is_not_written_over(desk: Layout, tiers: dict[str, str]) -> None:
    name = "artifacts/package/a [1].tar.gz"
    theirs = Path(tiers["NEXA_SHARED"]) / name
    theirs.parent.mkdir(parents=True)
    theirs.write_bytes(b"another laboratory's")
    with pytest.raises(UserError, match="holds something else already"):
        move_to(desk, name, "shared", tiers)
    assert theirs.read_bytes() == b"another laboratory's"
    assert (desk.root / name).read_bytes() == b"packed"


def test_brought_back_and_killed_the_same_call_does_the_rest(
    desk: Layout, tiers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = find_run(desk, "a").run
    before = contents(run.path)
    moved = move_to(desk, run.run_id, "durable", tiers)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(moving, "_remove_copy", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        move_to(desk, run.run_id, "lab", tiers)
    assert Path(moved.target).exists()
    move_to(desk, run.run_id, "lab", tiers)
    assert contents(run.path) == before
    assert not Path(moved.target).exists()
    with pytest.raises(UserError, match="is in the laboratory already"):
        move_to(desk, run.run_id, "lab", tiers)


def test_a_copy_that_is_not_the_original_is_found_and_the_original_stays(
    desk: Layout, tiers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = find_run(desk, "a").run
    before = contents(run.path)
    copy = moving._copy

    def copy_and_damage(source: str, target: str, part: moving.Part) -> None:
        copy(source, target, part)
        (Path(target) / "checkpoints" / "checkpoint_epoch0.pt").write_bytes(b"weighty" * 1000)

    monkeypatch.setattr(moving, "_copy", copy_and_damage)
    with pytest.raises(GateError, match=r"checkpoint_epoch0\.pt in .* is not what it was .* The original stays"):
        move_to(desk, run.run_id, "durable", tiers)
    assert contents(run.path) == before


@pytest.mark.parametrize("kill_at", range(6))
def test_a_move_that_is_killed_anywhere_is_done_by_the_same_call(
    desk: Layout, tiers: dict[str, str], kill_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    run = find_run(desk, "a").run
    before = contents(run.path)
    calls = 0
    for name in ("write_json", "publish", "move", "remove"):
        real = getattr(durable, name)

        def counted(*arguments: object, real: object = real) -> object:
            nonlocal calls
            calls += 1
            if calls > kill_at:
                raise Killed
            return real(*arguments)  # type: ignore[operator]

        monkeypatch.setattr(durable, name, counted)
    try:
        move_to(desk, run.run_id, "durable", tiers)
    except Killed:
        pass
    else:
        assert calls <= kill_at
    monkeypatch.undo()
    if not run.path.is_symlink():
        move_to(desk, run.run_id, "durable", tiers)
    assert contents(run.path.resolve()) == before
    move_to(desk, run.run_id, "lab", tiers)
    assert contents(run.path) == before


def test_a_run_that_is_written_to_or_what_is_no_part_is_not_moved(desk: Layout, tiers: dict[str, str]) -> None:
    run = find_run(desk, "a").run
    with hold(run), pytest.raises(UserError, match="is being written by another process"):
        move_to(desk, run.run_id, "durable", tiers)
    for what, says in {
        "data/raw": "There is no data/raw",
        "runs/manifests": "cannot be moved: expected a run's id",
        "../lab": "cannot be moved",
        "nothing": "No run nothing",
    }.items():
        with pytest.raises(UserError, match=says):
            move_to(desk, what, "durable", tiers)
    with pytest.raises(UserError, match="NEXA_SCRATCH is not set"):
        move_to(desk, run.run_id, "scratch", tiers)
    with pytest.raises(UserError, match="Did you mean 'durable'"):
        move_to(desk, run.run_id, "durabel", tiers)
    with pytest.raises(UserError, match="expected a folder on a fast disk"):
        read_tiers(desk, {"NEXA_SCRATCH": "s3://bucket"})
    with pytest.raises(UserError, match="is the laboratory itself"):
        read_tiers(desk, {"NEXA_SHARED": str(desk.root)})


def test_a_dry_run_writes_nothing(desk: Layout, tiers: dict[str, str], tmp_path: Path) -> None:
    before = contents(tmp_path)
    assert "nothing was written" in move_to(desk, "a", "durable", tiers, dry_run=True).as_text()
    assert contents(tmp_path) == before


def test_the_table_counts_each_kind_where_it_lies(desk: Layout, tiers: dict[str, str]) -> None:
    def sizes() -> dict[str, dict[str, int]]:
        return {each["tier"]: each["size_bytes"] for each in measure(desk, tiers).as_json()}

    assert sizes()["lab"]["checkpoints"] == 7000
    move_to(desk, "a", "durable", tiers)
    assert "checkpoints" not in sizes()["lab"]
    assert sizes()["durable"]["checkpoints"] == 7000
    text = measure(desk, tiers).as_text()
    assert "not set: NEXA_SCRATCH (POLICY.md" in text
    assert kind_of("data/raw/x.csv") == "raw data"


def test_what_lies_in_a_tier_is_not_cleaned_and_a_moved_result_is_found(
    finished_lab: FinishedLab, tmp_path: Path
) -> None:
    layout, run = finished_lab.layout, finished_lab.run("mlp")
    tiers = {"NEXA_DURABLE": str(tmp_path / "durable")}
    (tmp_path / "durable").mkdir()
    move_to(layout, run.run_id, "durable", tiers)
    later = datetime(2100, 1, 1, tzinfo=UTC)
    assert not [item for item in make_plan(layout, PolicyConfig(), now=later).items if item.rule == "checkpoints"]
    assert finished_lab.checkpoint("mlp").is_file()
    assert json.loads(run.metrics.read_bytes())


def test_scratch_takes_what_can_be_made_again(tmp_path: Path) -> None:
    assert Layout.from_environment({"NEXA_ROOT": str(tmp_path)}).cache == tmp_path / ".cache"
    both = {"NEXA_ROOT": str(tmp_path), "NEXA_SCRATCH": str(tmp_path / "fast")}
    assert Layout.from_environment(both).cache == tmp_path / "fast" / ".cache"
