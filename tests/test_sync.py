"""Syncing between a folder and a bucket: the same bytes, nothing in part, nobody overwritten."""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexa_core import durable
from nexa_core.errors import NexaError, UserError
from nexa_core.storage.bucket import Bucket
from nexa_core.storage.folder import Folder
from nexa_core.storage.place import PART_BYTES, Conflict, Corrupt, Entry, is_unfinished
from nexa_core.storage.sync import Synced, open_place, sync
from tests.storages import SECRET_KEY, Storage, TestBucket

ROOT = Path(__file__).parent.parent
LARGE = 3 * PART_BYTES + 12_345


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for key, data in files.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden and temporary ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def large(seed: int = 0) -> bytes:
    return hashlib.shake_128(bytes([seed])).digest(LARGE)


FILES = {"a.csv": b"1", "b/c.csv": b"22", "b/d/e.txt": b"", "large": large()}


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source", FILES)


@pytest.fixture(params=["bucket", "folder"])
def other(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A place that is empty: a bucket's prefix, or a folder."""
    bucket = request.getfixturevalue("bucket") if request.param == "bucket" else None
    return f"{bucket.url}/raw" if bucket else f"file://{tmp_path}/other%20folder"


def keys(synced: Synced) -> tuple[set[str], set[str]]:
    """What was copied and what was deleted."""
    return {copy.entry.key for copy in synced.plan.copies}, {entry.key for entry in synced.plan.deletions}


def test_there_and_back_gives_the_same_bytes(source: Path, other: str, tmp_path: Path) -> None:
    assert keys(sync(str(source), other))[0] == set(FILES)
    assert keys(sync(other, str(tmp_path / "back")))[0] == set(FILES)
    assert read(tmp_path / "back") == FILES


def test_a_second_sync_finds_nothing_to_do_and_reads_nothing(
    source: Path, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(str(source), other)
    sync(other, str(tmp_path / "back"))
    for file in source.rglob("*"):
        os.utime(file)  # other times, same bytes: they are hashed once more
    time.sleep(0.05)  # what was changed this instant is not relied on
    assert keys(sync(str(source), other)) == (set(), set())
    monkeypatch.setattr(Folder, "read", None)
    monkeypatch.setattr(Folder, "hash", None)
    monkeypatch.setattr(Bucket, "read", None)
    for one, two in ((str(source), other), (other, str(tmp_path / "back"))):
        again = sync(one, two)
        assert keys(again) == (set(), set())
        assert again.plan.num_unchanged == len(FILES)


def test_the_same_size_with_other_bytes_is_copied(source: Path, other: str, tmp_path: Path) -> None:
    sync(str(source), other)
    times = (source / "a.csv").stat()
    (source / "a.csv").write_bytes(b"2")
    os.utime(source / "a.csv", ns=(times.st_atime_ns, times.st_mtime_ns))  # time and size are as they were
    assert keys(sync(str(source), other))[0] == {"a.csv"}
    sync(other, str(tmp_path / "back"))
    assert (tmp_path / "back" / "a.csv").read_bytes() == b"2"


def test_a_bucket_that_another_machine_filled_is_compared_by_its_stated_digests(
    source: Path, bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync(str(source), bucket.url)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    monkeypatch.setattr(Bucket, "read", None)
    assert sync(str(source), bucket.url).plan.num_unchanged == len(FILES)


def test_objects_that_others_uploaded_are_compared_by_their_bytes(bucket: TestBucket, tmp_path: Path) -> None:
    bucket.put("a", b"1")
    bucket.put("b", b"1")
    write(tmp_path / "source", {"a": b"1", "b": b"2"})
    assert keys(sync(str(tmp_path / "source"), bucket.url))[0] == {"b"}
    assert bucket.objects() == {"a": b"1", "b": b"2"}


def test_an_etag_is_never_taken_for_a_digest(bucket: TestBucket, tmp_path: Path) -> None:
    md5 = hashlib.md5(b"1").hexdigest()
    bucket.put("a", b"1", Metadata={"sha256": md5})
    assert open_place(bucket.url).stated_digest(open_place(bucket.url).entries(lambda key: True)["a"]) is None


def test_planning_says_how_far_it_is(
    bucket: TestBucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    many = write(tmp_path / "many", {f"{index % 10}/{index}": b"" for index in range(2_500)})
    sync(str(source), bucket.url)
    assert "listing" not in caplog.text  # it was fast
    monkeypatch.setattr("nexa_core.progress.SECONDS_BETWEEN_LINES", 1e-9)
    sync(str(many), str(tmp_path / "empty"), dry_run=True)
    for count in (1000, 2000):
        assert f"listing {many}: {count} files, " in caplog.text
    (source / "a.csv").touch()
    sync(str(source), bucket.url, dry_run=True)
    assert f"listing {bucket.url}: 4 files, " in caplog.text
    assert re.search(rf"comparing {source} with {bucket.url}: 5\d/51 MB, .* 4/4 files", caplog.text)


def test_hashing_says_how_far_it_is(bucket: TestBucket, source: Path) -> None:
    bucket.put("large", large())
    for place in (open_place(str(source)), open_place(bucket.url)):
        moved: list[int] = []
        assert place.hash(place.entries(lambda key: True)["large"], moved.append) == hashlib.sha256(large()).hexdigest()
        assert sum(moved) == LARGE
        assert len(moved) > 3


def test_progress_is_shown_on_a_terminal_and_nowhere_else(source: Path, tmp_path: Path) -> None:
    write(tmp_path / "target", {"a.csv": b"2"})
    command = [sys.executable, str(ROOT / "scripts" / "sync_s3.py"), str(source), str(tmp_path / "target"), "--dry-run"]
    quiet = subprocess.run(command, capture_output=True, text=True, check=True)
    assert quiet.stderr == ""
    shown, terminal = pty.openpty()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal) as process:
        os.close(terminal)
        said = b""
        with contextlib.suppress(OSError):  # which is how a terminal ends
            while read_now := os.read(shown, 1 << 16):
                said += read_now
    os.close(shown)
    assert process.returncode == 0
    assert b"listing" in said
    assert b"comparing" in said


def test_a_dry_run_says_what_it_would_do_and_changes_nothing(source: Path, other: str, tmp_path: Path) -> None:
    write(tmp_path / "more", {"a.csv": b"3", "stale": b"x"})
    sync(str(tmp_path / "more"), other)
    planned = sync(str(source), other, delete=True, dry_run=True)
    assert keys(planned) == (set(FILES), {"stale"})
    assert "changed                1 bytes  a.csv" in planned.as_text()
    assert "delete                 1 bytes  stale" in planned.as_text()
    assert "nothing was written" in planned.as_text()
    sync(other, str(tmp_path / "back"))
    assert read(tmp_path / "back") == {"a.csv": b"3", "stale": b"x"}
    sync(str(source), str(tmp_path / "nowhere"), dry_run=True)
    assert not (tmp_path / "nowhere").exists()


def test_only_what_the_patterns_name_is_copied_and_deleted(other: str, tmp_path: Path) -> None:
    old = {"stale.csv": b"x", "stale.txt": b"x", "keep/stale.csv": b"x"}
    new = {"a.csv": b"1", "b/c.csv": b"2", "b/d.txt": b"3", "keep/e.csv": b"4"}
    sync(str(write(tmp_path / "old", old)), other)
    done = sync(str(write(tmp_path / "new", new)), other, include=["*.csv"], exclude=["keep/*"], delete=True)
    assert keys(done) == ({"a.csv", "b/c.csv"}, {"stale.csv"})
    sync(other, str(tmp_path / "back"))
    assert set(read(tmp_path / "back")) == {"a.csv", "b/c.csv", "stale.txt", "keep/stale.csv"}


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("raw/", {"raw/a", "raw/b/x"}),
        ("./raw/", {"raw/a", "raw/b/x"}),
        ("/raw/.", {"raw/a", "raw/b/x"}),
        ("raw//b/", {"raw/b/x"}),
        ("./raw//b/./x", {"raw/b/x"}),
        ("./x", {"x"}),
        ("/x", {"x"}),
        ("./*x", {"x", "raw/b/x"}),
        ("*/", {"raw/a", "raw/b/x"}),
        ("./", {"x", "y", "raw/a", "raw/b/x"}),
        ("x", {"x", "raw/b/x"}),
    ],
)
def test_patterns_may_be_written_as_paths_are(tmp_path: Path, pattern: str, matched: set[str]) -> None:
    files = {"x": b"1", "raw/a": b"2", "raw/b/x": b"3", "y": b"4"}
    source, target = str(write(tmp_path / "source", files)), str(tmp_path / "target")
    assert keys(sync(source, target, include=[pattern], dry_run=True))[0] == matched
    assert keys(sync(source, target, exclude=[pattern], dry_run=True))[0] == {*files} - matched


@pytest.mark.parametrize("pattern", ["kep/", "../raw", "./kep", "", "source/a.csv", "A.CSV"])
def test_an_exclude_that_matches_no_file_is_told(source: Path, tmp_path: Path, pattern: str) -> None:
    for dry_run in (True, False):
        synced = sync(str(source), str(tmp_path / "target"), exclude=["*.txt", pattern], dry_run=dry_run)
        assert f"matched no file: --exclude {pattern!r}" in synced.as_text()
        assert "*.txt" not in synced.as_text()
        assert synced.as_json()["unused_excludes"] == [pattern]
    with pytest.raises(UserError, match="matches no file"):
        sync(str(source), str(tmp_path / "target"), include=["*.csv", pattern])


def test_modes_and_times_are_not_kept(source: Path, other: str, tmp_path: Path) -> None:
    """As docs/sync.md says."""
    (source / "a.csv").chmod(0o700)
    os.utime(source / "a.csv", (0, 0))
    (write(tmp_path / "back", {"a.csv": b"old"}) / "a.csv").chmod(0o600)
    (tmp_path / "new file").touch()
    sync(str(source), other)
    sync(other, str(tmp_path / "back"))
    found, new = (tmp_path / "back" / "a.csv").stat(), (tmp_path / "new file").stat()
    assert found.st_mode == new.st_mode
    assert found.st_mtime >= new.st_mtime


def test_delete_removes_what_the_source_lacks_and_the_folders_that_are_empty_then(source: Path, tmp_path: Path) -> None:
    write(tmp_path / "target", {"x/y/z": b"old", "b/old": b"old"})
    assert sync(str(source), str(tmp_path / "target")).plan.num_kept == 2
    assert keys(sync(str(source), str(tmp_path / "target"), delete=True)) == (set(), {"x/y/z", "b/old"})
    assert read(tmp_path / "target") == FILES
    assert not (tmp_path / "target" / "x").exists()


def test_an_empty_source_does_not_empty_the_destination(source: Path, other: str, tmp_path: Path) -> None:
    sync(str(source), other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no files to sync, and --delete would empty"):
        sync(str(tmp_path / "empty"), other, delete=True)


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (
            "data/2026/rwa",
            r"Nothing lies at s3://.*/rwa, so .* begins with 'data/2026/rwa/'. Did you mean 'raw'\? Mend",
        ),
        ("data/2026/ra", "Nothing lies at .* begins with 'data/2026/ra/'"),
        ("data/2026/raw/a.csv", "a.csv is an object; .* Name s3://[^ ]*/data/2026/raw and --include 'a.csv'"),
        ("no/such", "begins with 'no/such/'. Mend the name"),
    ],
)
def test_a_source_that_is_not_there_is_refused(bucket: TestBucket, tmp_path: Path, prefix: str, message: str) -> None:
    bucket.put("data/2026/raw/a.csv", b"1")
    bucket.put("data/2026/rawer", b"1")
    target = write(tmp_path / "target", {"stale": b"x"})
    for options in ({}, {"delete": True}, {"include": ["*.csv"]}, {"dry_run": True}):
        with pytest.raises(UserError, match=message):
            sync(f"{bucket.url}/{prefix}", str(target), **options)  # type: ignore[arg-type]
    assert read(target) == {"stale": b"x"}


@pytest.mark.parametrize("place", ["bucket", "marker", "folder"])
def test_a_source_without_files_is_told(
    bucket: TestBucket, tmp_path: Path, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    (tmp_path / "empty").mkdir()
    if place == "marker":
        bucket.put("raw/", b"")
    source = {"bucket": bucket.url, "marker": f"{bucket.url}/raw", "folder": str(tmp_path / "empty")}[place]
    for delete in (False, True):
        caplog.clear()
        sync(source, str(tmp_path / "target"), delete=delete)
        assert f"{source} holds no files to sync; is its name right?" in caplog.text
    write(tmp_path / "target", {"a": b"1"})
    with pytest.raises(UserError, match=r"no files to sync, and --delete would empty"):
        sync(source, str(tmp_path / "target"), delete=True)
    assert read(tmp_path / "target") == {"a": b"1"}


def test_between_two_buckets(source: Path, bucket: TestBucket, tmp_path: Path) -> None:
    sync(str(source), f"{bucket.url}/one")
    sync(f"{bucket.url}/one", f"{bucket.url}/two")
    sync(f"{bucket.url}/two", str(tmp_path / "back"))
    assert read(tmp_path / "back") == FILES


def test_what_somebody_else_wrote_meanwhile_is_not_overwritten(
    bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"new": b"mine", "changed": b"mine", "large": large(), "large changed": large()}
    bucket.put("changed", b"old")
    bucket.put("large changed", b"old")
    write(tmp_path / "source", files)
    for key in files:
        with monkeypatch.context() as patch:
            interfere(patch, lambda key=key: bucket.put(key, b"theirs"))
            with pytest.raises(Conflict, match=f"{bucket.name}/{key} was changed by somebody else"):
                sync(str(tmp_path / "source"), bucket.url, include=[key])
        assert bucket.objects()[key] == b"theirs"
    assert bucket.uploads() == []


def test_a_file_that_changed_meanwhile_in_the_folder_is_not_overwritten(
    bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a", b"from the bucket")
    target = write(tmp_path / "target", {"a": b"old"})
    interfere(monkeypatch, lambda: write(target, {"a": b"theirs"}))
    with pytest.raises(Conflict, match="target/a changed since the sync was planned"):
        sync(bucket.url, str(target))
    assert (target / "a").read_bytes() == b"theirs"


def test_a_source_that_changes_while_it_is_read_is_not_mixed(
    bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("large", large(1))
    interfere(monkeypatch, lambda: bucket.put("large", large(2)))
    with pytest.raises(Conflict, match="large changed while it was read"):
        sync(bucket.url, str(tmp_path / "target"))
    assert read(tmp_path / "target") == {}
    source = write(tmp_path / "source", {"f": large(1)})
    interfere(monkeypatch, lambda: write(source, {"f": large(2)}))
    with pytest.raises(Conflict, match="source/f changed while it was read"):
        sync(str(source), f"{bucket.url}/up")
    assert "up/f" not in bucket.objects()


def interfere(monkeypatch: pytest.MonkeyPatch, act: "object") -> None:
    """Do something between the plan and its execution."""
    from nexa_core.storage import sync as module

    apply = module._apply

    def act_first(*args: object, **kwargs: object) -> None:
        monkeypatch.setattr(module, "_apply", apply)
        act()  # type: ignore[operator]
        apply(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_apply", act_first)


def test_the_same_upload_by_two_syncs_is_no_conflict(
    source: Path, bucket: TestBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    interfere(monkeypatch, lambda: sync(str(source), bucket.url))
    sync(str(source), bucket.url)
    assert bucket.objects() == FILES


@pytest.mark.parametrize("data", [b"other bytes", large()], ids=["small", "large"])
def test_a_corrupted_download_is_refused_and_the_old_file_stays(
    bucket: TestBucket, tmp_path: Path, data: bytes
) -> None:
    bucket.put("a", data, Metadata={"sha256": hashlib.sha256(b"the true bytes").hexdigest()})
    target = write(tmp_path / "target", {"a": b"old"})
    with pytest.raises(Corrupt, match=f"{bucket.name}/a is corrupt: its sha256 is {hashlib.sha256(data).hexdigest()}"):
        sync(bucket.url, str(target))
    assert read(target) == {"a": b"old"}
    with pytest.raises(Corrupt):
        sync(bucket.url, str(tmp_path / "second"))
    assert read(tmp_path / "second") == {}


@pytest.mark.parametrize("data", [b"other bytes", large()], ids=["small", "large"])
def test_a_corrupt_object_is_not_copied_to_another_place(bucket: TestBucket, data: bytes) -> None:
    bucket.put("one/a", data, Metadata={"sha256": hashlib.sha256(b"the true bytes").hexdigest()})
    with pytest.raises(Corrupt, match=hashlib.sha256(data).hexdigest()):
        sync(f"{bucket.url}/one", f"{bucket.url}/two")
    assert set(bucket.objects()) == {"one/a"}
    assert bucket.uploads() == []


def test_an_object_that_was_removed_meanwhile_is_a_conflict(bucket: TestBucket, source: Path) -> None:
    bucket.put("a.csv", b"old")
    place = open_place(bucket.url)
    (old,) = place.entries(lambda key: True).values()
    bucket.storage.client().delete_object(Bucket=bucket.name, Key="a.csv")
    folder = open_place(str(source))
    entry = folder.entries(lambda key: True)["a.csv"]
    with pytest.raises(Conflict, match="somebody else"):
        place.write("a.csv", folder, entry, replaces=old, lanes=1, moved=lambda _: None)


GET, READ = (Bucket, "_get_fast"), (Folder, "read")


def test_an_interrupted_download_goes_on_where_it_was(bucket: TestBucket, source: Path, tmp_path: Path) -> None:
    sync(str(source), bucket.url)
    target = tmp_path / "target"
    with pieces_read(GET, fail_at=2 * PART_BYTES), pytest.raises(RuntimeError):
        sync(bucket.url, str(target), concurrency=1)
    assert not (target / "large").exists()
    assert all(Path(name).name.startswith(".") for name in read(target) if name not in FILES)
    with pieces_read(GET) as starts:
        sync(bucket.url, str(target), concurrency=1)
    assert min(starts["large"]) == 2 * PART_BYTES
    assert read(target) == FILES


def test_what_an_interrupted_download_left_is_not_trusted(bucket: TestBucket, source: Path, tmp_path: Path) -> None:
    sync(str(source), bucket.url)
    target = tmp_path / "target"
    with pieces_read(GET, fail_at=2 * PART_BYTES), pytest.raises(RuntimeError):
        sync(bucket.url, str(target), concurrency=1)
    (partial,) = (target / name for name in read(target) if name.endswith(durable.TEMPORARY_SUFFIX))
    partial.write_bytes(b"\0" * partial.stat().st_size)
    sync(bucket.url, str(target))
    assert read(target) == FILES


def test_an_interrupted_upload_adds_the_parts_that_are_missing(bucket: TestBucket, source: Path) -> None:
    with pieces_read(READ, fail_at=2 * PART_BYTES), pytest.raises(RuntimeError):
        sync(str(source), bucket.url, concurrency=1)
    assert bucket.uploads() == ["large"]
    assert "large" not in bucket.objects()
    with pieces_read(READ) as starts:
        sync(str(source), bucket.url, concurrency=1)
    assert min(starts["large"]) == 2 * PART_BYTES  # what was there is not read again
    assert bucket.objects() == FILES
    assert bucket.uploads() == []


def test_an_upload_that_was_begun_with_other_bytes_is_aborted(bucket: TestBucket, source: Path) -> None:
    with pieces_read(READ, fail_at=2 * PART_BYTES), pytest.raises(RuntimeError):
        sync(str(source), bucket.url, concurrency=1)
    (source / "large").write_bytes(large(3))
    sync(str(source), bucket.url)
    assert bucket.objects() == {**FILES, "large": large(3)}
    assert bucket.uploads() == []


@contextlib.contextmanager
def pieces_read(where: tuple[type, str], *, fail_at: int | None = None) -> Iterator[dict[str, list[int]]]:
    """The starts of all pieces that are read, by key; reading the one at `fail_at` fails."""
    owner, method = where
    read_piece, starts = getattr(owner, method), {}

    def read_or_fail(self: object, entry: Entry, start: int, *rest: int) -> object:
        starts.setdefault(entry.key, []).append(start)
        if start == fail_at:
            raise RuntimeError("the line is cut")
        return read_piece(self, entry, start, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, read_or_fail)
        yield starts


def test_two_syncs_into_one_folder_do_not_meet(source: Path, tmp_path: Path) -> None:
    target = open_place(str(tmp_path / "target"))
    with target.writing(), pytest.raises(UserError, match="target is being synced by another process"):
        sync(str(source), str(tmp_path / "target"))


UNFINISHED = {
    f"{folder}{name}": b"half"
    for folder in ("", "b/", ".d.12.partial/")
    for name in (".a.csv.123.partial", f".{'0' * 32}.partial", ".t.parquet.5.whole.partial")
}
YOURS = {"d/.notes.partial": b"1", ".partial": b"2", "a.123.partial": b"3", ".0a.partial": b"4", ".x.partial/y": b"5"}


def test_unfinished_files_are_left_alone_on_both_sides_and_told(
    bucket: TestBucket, source: Path, tmp_path: Path
) -> None:
    write(source, UNFINISHED)
    for key in UNFINISHED:
        bucket.put(f"raw/other/{key}", b"half")
    pushed = sync(str(source), f"{bucket.url}/raw", delete=True)
    there = {f"other/{key}" for key in UNFINISHED}
    assert set(pushed.plan.unfinished) == there | set(UNFINISHED)
    assert keys(pushed) == (set(FILES), set())
    assert f"left out as unfinished: {min(there | set(UNFINISHED))} and 17 more" in pushed.as_text()
    assert {key for key in bucket.objects() if key.startswith("raw/other")} == {f"raw/{key}" for key in there}
    sync(f"{bucket.url}/raw", str(tmp_path / "back"))
    assert read(tmp_path / "back") == FILES


def test_your_files_that_end_in_partial_are_files(other: str, tmp_path: Path) -> None:
    source = write(tmp_path / "source", YOURS)
    sync(str(source), other)
    assert sync(str(source), other, delete=True).plan.num_unchanged == len(YOURS)
    for _ in range(2):
        assert sync(other, str(tmp_path / "back"), delete=True).plan.unfinished == []
    assert read(tmp_path / "back") == YOURS


def test_what_killed_syncs_left_goes(source: Path, tmp_path: Path) -> None:
    target = write(tmp_path / "target", {f".{'0' * 32}.partial": b"of a killed sync"})
    sync(str(source), str(target))
    assert read(target) == FILES


def test_what_killed_syncs_left_goes_where_nothing_is_copied_too(
    source: Path, bucket: TestBucket, tmp_path: Path
) -> None:
    sync(str(source), bucket.url)
    bucket.put(f".{'1' * 32}.partial", b"of a bucket, where no sync leaves any")
    target, left = tmp_path / "target", {f"{folder}.{'0' * 32}.partial": b"of a killed sync" for folder in ("", "b/")}
    others = {".a.csv.123.partial": b"of another writer"}
    sync(bucket.url, str(target))
    write(target, left | others)
    (target / f".{'2' * 32}.partial").symlink_to(source / "a.csv")
    sync(bucket.url, str(target), dry_run=True)
    sync(bucket.url, str(target), exclude=["*.partial"])
    (tmp_path / "empty").mkdir()
    sync(str(tmp_path / "empty"), str(target))
    assert read(target).keys() >= left.keys()
    with open(target / f".{'0' * 32}.partial", "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # as a sync that writes it does
        assert keys(sync(bucket.url, str(target))) == (set(), set())
    assert read(target).keys() & left.keys() == {f".{'0' * 32}.partial"}
    with open_place(str(target)).writing():  # another sync into the folder, which does not write this file
        sync(bucket.url, str(target))
    assert not read(target).keys() & left.keys()
    assert read(target).keys() >= others.keys()
    assert (target / f".{'2' * 32}.partial").is_symlink()
    sync(str(target), bucket.url)
    assert f".{'1' * 32}.partial" in bucket.objects()


def test_a_key_of_the_source_does_not_lead_to_a_file_that_is_removed(
    bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a", b"1")
    sync(bucket.url, str(tmp_path / "target"))
    outside = {f".{'0' * 32}.partial": b"of another folder"}
    write(tmp_path / "outside", outside)
    listing = open_place(bucket.url).entries(lambda key: True)
    evil = Entry(f"../outside/.{'0' * 32}.partial", 1, "1")
    monkeypatch.setattr(Bucket, "_list_fast", lambda *_: [*listing.values(), evil])
    assert keys(sync(bucket.url, str(tmp_path / "target"))) == (set(), set())
    assert read(tmp_path / "outside") == outside


def test_a_sync_around_another_leaves_the_download_of_that_one(
    bucket: TestBucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("large", large(4))
    get, outer, inner = Bucket._get_fast, tmp_path / "outer", tmp_path / "outer" / "inner"

    def sync_around(self: Bucket, entry: Entry, start: int, *rest: int) -> object:
        if start == 2 * PART_BYTES:
            assert len(read(inner)) == 1  # the other one is in the middle of it
            sync(str(source), str(outer))
            assert len(read(inner)) == 1
        return get(self, entry, start, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Bucket, "_get_fast", sync_around)
    sync(bucket.url, str(inner), concurrency=1)
    assert read(inner) == {"large": large(4)}


ODD_NAMES = [
    *("ü ñ", "日本", " lead", "trail ", "new\nline", "tab\tx", "a%2Fb", "a+b", "a?b#c", "a\\b", "b*[x]", "..x", "\x01"),
    *("é", "e\u0301", ".hidden", "-dash", "~", "'\"", "x" * 255),
]


def test_odd_names_come_back_as_they_were(other: str, tmp_path: Path) -> None:
    names = [name for name in ODD_NAMES if "\\" not in name or not other.startswith("s3://")]  # see NAMES
    files = {f"{name}{'' if len(name) > 200 else '/in it'}": name.encode() for name in names}
    source = write(tmp_path / "source", files)
    assert keys(sync(str(source), other))[0] == set(files)
    assert sync(str(source), other).plan.num_unchanged == len(files)
    sync(other, str(tmp_path / "back"))
    assert read(tmp_path / "back") == files
    sync(str(write(tmp_path / "one", {"a": b"1"})), other, delete=True)
    assert set(open_place(other).entries(lambda key: True)) == {"a"}


# SeaweedFS takes a backslash for a slash.
NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0\\"), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..") and len(name.encode()) <= 255 and not is_unfinished(name)
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.sets(NAMES, min_size=1, max_size=4), folder=NAMES)
def test_any_name_a_file_can_have_comes_back_from_a_bucket(
    bucket: TestBucket, tmp_path_factory: pytest.TempPathFactory, names: set[str], folder: str
) -> None:
    files = {f"{folder}/{name}": name.encode() for name in names}
    home = tmp_path_factory.mktemp("names")
    sync(str(write(home / "source", files)), bucket.url, delete=True)
    sync(bucket.url, str(home / "back"))
    assert read(home / "back") == files


@pytest.mark.parametrize("key", ["../evil", "a/../../evil", "/evil", "a//b", "./a", "a/."])
def test_keys_that_lead_elsewhere_are_refused(
    bucket: TestBucket, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("fine", b"1")
    listing = [Entry("fine", 1, "1"), Entry(key, 4, "1")]  # some storages refuse to hold such keys
    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=f"'{key}': a key in {bucket.url} that is no file's path. Rename it, or leave"),
    ):
        patch.setattr(Bucket, "_list_fast", lambda *_: listing)
        sync(bucket.url, str(tmp_path / "target"))
    assert not (tmp_path / "target").exists()
    assert keys(sync(bucket.url, str(tmp_path / "target"), exclude=[key]))[0] == {"fine"}


@pytest.mark.parametrize("is_listed_again", [False, True])
def test_markers_of_folders_are_no_files(
    bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_listed_again: bool
) -> None:
    files = {"deep/a": b"1", "deep/empty": b"", "empty": b"", "empty.txt": b"2", "marked/b": b"3", "marked0": b""}
    for key in ("", "deep/", "marked/", "hollow/", "hollow/in it/"):
        bucket.put(f"raw/{key}", b"")
    for key, data in files.items():
        bucket.put(f"raw/{key}", data)
    if is_listed_again:
        monkeypatch.setattr("nexa_core.storage.bucket.ASKED_A_PAGE", 7)  # there are 8
    else:
        monkeypatch.setattr(Bucket, "_list_whole", None)
    sync(f"{bucket.url}/raw", str(tmp_path / "target"))
    assert read(tmp_path / "target") == files
    again = sync(f"{bucket.url}/raw", str(tmp_path / "target"), exclude=["hollow/"])
    assert keys(again) == (set(), set())
    assert again.plan.unused_excludes == ["hollow/"]


def test_empty_files_do_not_have_the_bucket_listed_again(
    bucket: TestBucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(source, {f"package/{index}/__init__.py": b"" for index in range(20)})
    monkeypatch.setattr(Bucket, "_list_whole", None)
    sync(str(source), f"{bucket.url}/other")
    assert sync(str(source), f"{bucket.url}/other", delete=True).plan.num_unchanged == 24
    sync(f"{bucket.url}/other", str(tmp_path / "back"))
    assert read(tmp_path / "back") == read(source)


def test_who_may_list_and_not_read_can_plan(
    bucket: TestBucket, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(source, {"_SUCCESS": b""})
    sync(str(source), bucket.url)

    def refuse(self: Bucket, name: str) -> None:
        raise ClientError({"Error": {"Code": "403"}}, "HeadObject")

    monkeypatch.setattr(Bucket, "_size_of", refuse)
    planned = sync(bucket.url, str(tmp_path / "back"), dry_run=True)
    assert {copy.entry.key for copy in planned.plan.copies} == set(read(source))


def test_symbolic_links_are_refused(source: Path, other: str, tmp_path: Path) -> None:
    (source / "link").symlink_to(tmp_path)
    (source / "b" / "second").symlink_to(source / "a.csv")
    with pytest.raises(
        UserError, match=r"and 1 more: a symbolic link in .*source. Put the file itself there, or leave"
    ):
        sync(str(source), other)
    sync(str(source), other, exclude=["link", "second"])


def test_nothing_is_written_through_a_link_in_the_destination(source: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "b").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match=r"'b': a symbolic link in .*target"):
        sync(str(source), str(tmp_path / "target"))
    with pytest.raises(UserError, match=r"target/b/c.csv lies behind a symbolic link"):
        sync(str(source), str(tmp_path / "target"), include=["*.csv"])
    assert read(tmp_path / "outside") == {}


def test_a_file_where_a_folder_would_have_to_be_is_refused(source: Path, tmp_path: Path) -> None:
    write(tmp_path / "target", {"b": b"a file"})
    with pytest.raises(UserError, match=r"'b/c.csv' and 1 more: lies below a name that is a file's as well"):
        sync(str(source), str(tmp_path / "target"))
    (tmp_path / "second" / "a.csv").mkdir(parents=True)
    with pytest.raises(UserError, match=r"'a.csv': would be a file where .*second has a folder"):
        sync(str(source), str(tmp_path / "second"))


def test_a_file_that_the_patterns_leave_out_is_not_taken_for_a_folder(other: str, source: Path, tmp_path: Path) -> None:
    sync(str(source), other)
    target = write(tmp_path / "target", {"b": b"no CSV"})
    for dry_run in (True, False):
        with pytest.raises(UserError, match=r"'b/c.csv': would lie in a folder where .*target has a file. Rename one"):
            sync(other, str(target), include=["*.csv"], dry_run=dry_run)
    assert read(target) == {"b": b"no CSV"}
    sync(other, str(target), include=["*.csv"], exclude=["b/"])
    assert read(target) == {"a.csv": b"1", "b": b"no CSV"}


def test_keys_of_which_one_is_a_folder_of_the_other_are_refused_unless_one_is_left_out(
    bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("a/b", b"1")
    bucket.put("other", b"2")
    listing = list(open_place(bucket.url).entries(lambda key: True).values())
    monkeypatch.setattr(Bucket, "_list_fast", lambda *_: [Entry("a", 4, "1"), *listing])  # not all hold both
    target = tmp_path / "target"
    with pytest.raises(UserError, match=r"'a/b': lies below a name that is a file's .* or leave it out with --exclude"):
        sync(bucket.url, str(target))
    assert not target.exists()
    sync(bucket.url, str(target), exclude=["./a"])
    assert read(target) == {"a/b": b"1", "other": b"2"}
    write(tmp_path / "second", {"a": b"file"})
    with pytest.raises(UserError, match=r"'a/b': would lie in a folder where .*second has a file"):
        sync(bucket.url, str(tmp_path / "second"), exclude=["./a"])
    assert read(tmp_path / "second") == {"a": b"file"}


def test_a_folder_that_became_a_file_since_the_plan_is_a_conflict(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    interfere(monkeypatch, lambda: write(target, {"b": b"theirs"}))
    with pytest.raises(Conflict, match=r"target/b/.* cannot be written: a folder around it has become a file"):
        sync(str(source), str(target))
    assert read(target)["b"] == b"theirs"
    sync(str(source), str(tmp_path / "second"))
    write(tmp_path / "second", {"old/x": b"1"})

    def replace() -> None:
        (tmp_path / "second" / "old" / "x").unlink()
        (tmp_path / "second" / "old").rmdir()
        write(tmp_path / "second", {"old": b"theirs"})

    interfere(monkeypatch, replace)
    with pytest.raises(Conflict, match="old/x changed since the sync was planned"):
        sync(str(source), str(tmp_path / "second"), delete=True)
    assert read(tmp_path / "second")["old"] == b"theirs"


@pytest.mark.parametrize("key", ["x" * 256, f"{'x' * 256}/y"])
def test_a_key_that_is_too_long_for_a_folder_is_refused(
    bucket: TestBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    bucket.put("fine", b"1")
    listing = [*open_place(bucket.url).entries(lambda key: True).values(), Entry(key, 1, "1")]
    monkeypatch.setattr(Bucket, "_list_fast", lambda *_: listing)  # not all hold such keys
    sync(bucket.url, str(tmp_path / "target"), exclude=["xx*"])
    with pytest.raises(UserError, match="longer than the 255 bytes that a file's name may have"):
        sync(bucket.url, str(tmp_path / "target"))
    assert read(tmp_path / "target") == {"fine": b"1"}


@pytest.mark.parametrize(
    ("source", "destination", "options", "message"),
    [
        ("gs://bucket", "there", {}, "Unknown scheme 'gs'. Allowed: file, s3, or a path without one"),
        ("s3n://bucket", "there", {}, "Did you mean 's3'"),
        ("s3://", "there", {}, "'s3://' names no place in a bucket. It looks like s3://bucket"),
        ("s3://bucket/a/../b", "there", {}, "names no place in a bucket"),
        ("file://host/folder", "there", {}, "names no folder of this machine"),
        ("missing", "there", {}, "missing does not exist, so there is nothing to copy"),
        ("here/file", "there", {}, "here/file is a file; sync takes folders. Name its folder and --include 'file'"),
        ("here/file/a/b", "there", {}, "here/file/a/b cannot be a folder, for "),
        ("here", "stands/in/the/way", {}, "stands is a file. Name another folder, or rename the file"),
        ("here", "/dev/null/way", {}, "/dev/null/way cannot be a folder, for /dev/null is a file"),
        ("here", "stands/way", {"dry_run": True}, "stands is a file. Name another folder, or rename the file"),
        ("here", "here", {}, "here and here are the same place, or one lies inside the other"),
        ("here", "here/inside", {}, "are the same place, or one lies inside the other"),
        ("here", "there", {"include": ["*.csv"]}, "--include '*.csv' matches no file"),
        ("here", "", {"delete": True}, "A place to sync has an empty name. Name a folder ('.' for this one), or s3://"),
        (" ", "there", {}, "A place to sync has an empty name"),
        (
            "here",
            "s3:/bucket/x",
            {},
            "'s3:/bucket/x' is no URL. Did you mean s3://bucket/x? A folder of that name is ./s3",
        ),
        ("here", "s3:bucket", {}, "Did you mean s3://bucket?"),
        ("here", "S3//bucket", {}, "Did you mean s3://bucket?"),
        ("file:/here", "there", {}, "Did you mean file:///here?"),
        ("https:/host/x", "there", {}, "Unknown scheme 'https'. Allowed: file, s3"),
        (
            *("here", "there", {"exclude": ["kep/*"], "delete": True}),
            "--exclude 'kep/*' matches no file, and --delete would remove what it was meant to keep",
        ),
        ("here", "there", {"endpoint": "http://x"}, "--endpoint http://x is for s3:// places"),
    ],
)
def test_bad_input_is_told_in_one_sentence(
    source: str,
    destination: str,
    options: dict[str, object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {"here/file": b"1", "stands": b"2"}
    monkeypatch.chdir(write(tmp_path / "lab", files).resolve())
    with pytest.raises(UserError) as told:
        sync(source, destination, **options)  # type: ignore[arg-type]
    assert message in str(told.value)
    assert read(tmp_path / "lab") == files


def test_folders_may_still_be_named_like_urls(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("./s3:raw", "s3", "s3/raw", "s3raw"):
        sync(str(source), name)
        assert (tmp_path / name / "a.csv").exists()


def test_an_exclude_is_used_where_it_matches_on_either_side(tmp_path: Path) -> None:
    write(tmp_path / "source", {"a": b"1"})
    target = write(tmp_path / "target", {"keep/b": b"2", "stale": b"3"})
    sync(str(tmp_path / "source"), str(target), exclude=["keep"], delete=True)
    assert read(target) == {"a": b"1", "keep/b": b"2"}
    sync(str(tmp_path / "source"), str(target), exclude=["of no file"])  # nothing is deleted: it may stand in a script


def nexa_sync(arguments: list[str], environment: dict[str, str], **more: object) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    command = [sys.executable, str(ROOT / "scripts" / "sync_s3.py"), *arguments]
    return subprocess.run(command, env={**clean, **environment}, capture_output=True, text=True, check=False, **more)  # type: ignore[call-overload,no-any-return]


def test_the_door_takes_credentials_from_env_local_and_prints_the_result(
    source: Path, bucket: TestBucket, tmp_path: Path
) -> None:
    lines = [f"{name}={value}" for name, value in bucket.storage.environment.items()]
    (tmp_path / ".env.local").write_text("\n".join(lines))
    done = nexa_sync(["source", f"{bucket.url}/raw"], {}, cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"{bucket.url}/raw")
    done = nexa_sync([f"{bucket.url}/raw", "data/raw", "--json"], {}, cwd=tmp_path)
    assert json.loads(done.stdout)["size_bytes"] == sum(map(len, FILES.values()))
    assert read(tmp_path / "data" / "raw") == FILES


@pytest.mark.parametrize(
    ("change", "is_asked"),
    [({}, False), ({"AWS_DEFAULT_REGION": ""}, True), ({"AWS_PROFILE": "lab"}, True)],
)
def test_the_aws_chain_is_asked_where_the_environment_does_not_say_all(
    bucket: TestBucket, tmp_path: Path, change: dict[str, str], is_asked: bool
) -> None:
    source = tmp_path / "small"
    source.mkdir()
    (source / "one").write_text("1")
    (tmp_path / "config").write_text("[profile lab]\nregion = us-east-1\n")
    environment = {**bucket.storage.environment, "AWS_CONFIG_FILE": str(tmp_path / "config"), **change}
    program = (
        "import sys; from nexa_core.storage.sync import sync; "
        f"print(sync({str(source)!r}, {bucket.url!r}).plan.num_unchanged, 'botocore' in sys.modules)"
    )
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    clean["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    for unchanged in (0, 1):
        done = subprocess.run(
            [sys.executable, "-c", program], env={**clean, **environment}, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stdout.split()[:1]) == (0, [str(unchanged)]), done.stderr
    assert done.stdout.split()[1] == str(is_asked)


def test_credentials_come_from_a_profile_as_well(source: Path, bucket: TestBucket, tmp_path: Path) -> None:
    keys = bucket.storage.environment
    (tmp_path / "credentials").write_text(
        f"[lab]\naws_access_key_id = {keys['AWS_ACCESS_KEY_ID']}\naws_secret_access_key = {SECRET_KEY}\n"
    )
    environment = {"AWS_PROFILE": "lab", "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")}
    done = nexa_sync([str(source), bucket.url, "--endpoint", bucket.storage.endpoint], environment)
    assert done.returncode == 0, done.stderr
    assert bucket.objects() == FILES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-and-secret"}, "refuses these credentials"),
        ({"AWS_ACCESS_KEY_ID": ""}, "No AWS credentials were found. Set AWS_ACCESS_KEY_ID"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer"),
        ({"AWS_ENDPOINT_URL": "nonsense"}, "Invalid endpoint: nonsense. An endpoint is a URL like https"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:99999"}, "99999"),
        ({"AWS_ENDPOINT_URL": "http://host:port"}, "http://host:port"),
        ({"AWS_ENDPOINT_URL": "http://["}, "An endpoint is a URL like https"),
        ({"AWS_PROFILE": "nobody"}, "The AWS settings cannot be used: The config profile (nobody) could not be found"),
    ],
)
def test_a_storage_that_says_no_is_told_in_one_line_without_secrets(
    source: Path, storage: Storage, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    environment = {**storage.environment, "HOME": str(tmp_path), **change}
    done = nexa_sync([str(source), "s3://somewhere"], environment, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert "panicked" not in done.stderr
    assert not any(secret in done.stdout + done.stderr for secret in (SECRET_KEY, "wrong-and-secret"))


def test_a_bucket_that_is_not_there_is_told(source: Path, storage: Storage, tmp_path: Path) -> None:
    done = nexa_sync([str(source), "s3://no-such-bucket"], storage.environment, cwd=tmp_path)
    assert (done.returncode, "s3://no-such-bucket does not exist at" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(
    ("unreadable", "do"),
    [
        ("a.csv", "Make it readable for this user, or leave it out with --exclude"),
        ("large", "Make it readable for this user, or leave it out with --exclude"),
        ("b", "Make it readable for this user."),
        (".", "Make it readable for this user."),
    ],
)
def test_a_source_that_cannot_be_read_is_told_as_such(
    source: Path, other: str, bucket: TestBucket, unreadable: str, do: str
) -> None:
    (source / unreadable).chmod(0)
    arguments = [sys.executable, str(ROOT / "scripts" / "sync_s3.py"), str(source), other]
    if os.geteuid() == 0:
        if not shutil.which("setpriv"):
            pytest.skip("root reads everything")
        arguments = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *arguments]
    environment = {**os.environ, **bucket.storage.environment}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    (source / unreadable).chmod(0o700)
    assert done.returncode == 2, done.stderr
    assert f"error: cannot read {source / unreadable}: Permission denied. {do}" in done.stderr


def test_a_disk_that_fails_is_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(NexaError, match=r"cannot read .*source/(a.csv|b/c.csv|large): Input/output error") as told:
        sync(str(source), str(tmp_path / "target"))
    assert told.value.exit_code == 1


def test_a_full_disk_is_told_and_leaves_the_previous_version(bucket: TestBucket, tmp_path: Path) -> None:
    bucket.put("a", b"new bytes " * 100_000)
    script = (
        'mount -t tmpfs -o size=64k none "$1" || exit 99\n'
        'echo -n old > "$1/a"\nshift; "$@"; code=$?\n'
        'test "$(cat "$0/a")" = old || exit 98\n'
        'test "$(ls -A "$0")" = a || exit 97\nexit $code'
    )
    (tmp_path / "full").mkdir()
    command = [sys.executable, str(ROOT / "scripts" / "sync_s3.py"), bucket.url, str(tmp_path / "full")]
    done = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script, str(tmp_path / "full"), str(tmp_path / "full"), *command],
        env={**os.environ, **bucket.storage.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip("needs the right to mount a tmpfs")
    assert (done.returncode, "No space left on device" in done.stderr) == (1, True), done.stderr
    assert f"cannot write {tmp_path / 'full' / 'a'}" in done.stderr
