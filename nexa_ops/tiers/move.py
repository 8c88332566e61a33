"""Moving a part of the laboratory to another tier and back: what was copied is read again before the original goes."""

import contextlib
import glob
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from nexa_core import digests, durable
from nexa_core.errors import GateError, UserError
from nexa_core.holder import at_rest
from nexa_core.paths import Layout
from nexa_core.progress import Progress
from nexa_core.runs import RunFolder
from nexa_core.storage.place import Place
from nexa_core.storage.sync import open_place, sync
from nexa_ops.retention.kept import named_in
from nexa_ops.runs.states import find_run
from nexa_ops.runs.table import size_text
from nexa_ops.tiers.places import LAB, Tier, find_tier

MOVABLE = ("data/raw", "data/processed", "artifacts/runs", "artifacts/package", "logs")


@dataclass(frozen=True)
class Part:
    """A file or folder of the laboratory as it is, or was, there."""

    key: str
    files: dict[str, str]
    """Sha256 by the name below the folder; of a single file its own name."""
    links: dict[str, str]
    """Target by name: links inside of a folder, which storage for objects knows none of."""
    size_bytes: int
    is_file: bool
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Size and time of each file when it was read, to see whether it was written to since."""


@dataclass(frozen=True)
class Moved:
    part: Part
    source: str
    target: str
    done: bool
    kept: bool

    def as_json(self) -> dict[str, Any]:
        return {
            "what": self.part.key,
            "from": self.source,
            "to": self.target,
            "num_files": len(self.part.files),
            "size_bytes": self.part.size_bytes,
            "done": self.done,
            "source_kept": self.kept,
        }

    def as_text(self) -> str:
        what = f"{self.part.key}: {len(self.part.files):,} files, {size_text(self.part.size_bytes)}"
        if not self.done:
            return f"{what}\nnothing was written (--dry-run): {self.source} -> {self.target}"
        how = "copied, every digest verified" if self.kept else "moved, every digest verified before the original went"
        return f"{what}, {how}\n{self.target}"


def move(
    layout: Layout,
    what: str,
    to: str,
    *,
    environment: Mapping[str, str],
    now: Callable[[], datetime],
    keep: bool = False,
    dry_run: bool = False,
) -> Moved:
    """Move a run (by its id) or a path below the laboratory to a tier; to `lab`, back from where it was moved to.

    Where the tier is a folder, a link stays in the place of what has gone, and every command goes on finding it.
    Killed at any moment, the original or a verified copy is there, and the same call again does the rest.

    Raises:
        UserError: there is no such thing or tier, or it may not be moved.
        GateError: a copy is not what the original was; the original stays.
    """
    tier = find_tier(layout, environment, to)
    key = _key_of(layout, what)
    if tier.name == LAB:
        return _bring_back(layout, key, dry_run=dry_run)
    path = layout.root / key
    if path.is_symlink():
        raise UserError(
            f"{key} has been moved already, to {path.resolve()}. Back with: nexa storage move {what} --to lab"
        )
    if not path.exists():
        return _finish_move(layout, key, tier, dry_run=dry_run)
    with _resting(layout, key):
        part = _describe(path, key)
        target = tier.place_of(key)
        if not dry_run:
            _refuse_others(target, part)
            _copy(str(path), target, part)
            _verify(target, part)
            durable.write_json(_record(layout, key), _as_record(part, tier, now()) | {"keeps": named_in(layout, key)})
            if not keep:
                _take_away(path, Path(target) if tier.is_folder else None, part)
    return Moved(part, str(path), target, done=not dry_run, kept=keep)


def _finish_move(layout: Layout, key: str, tier: Tier, *, dry_run: bool) -> Moved:
    """What a killed move has left to do: the verified copy is there, the original is gone, and the link is not made."""
    part, lies_in = _read_record(layout, key)
    if not (tier.is_folder and lies_in.is_folder) or Path(tier.where).resolve() != Path(lies_in.where):
        raise UserError(f"{key} has been moved already, to {lies_in.name}: {lies_in.where}")
    target = lies_in.place_of(key)
    if not dry_run:
        _verify(target, part)
        _make_links(Path(target), part)
        durable.publish(Path(target), layout.root / key)
    return Moved(part, str(layout.root / key), target, done=not dry_run, kept=False)


def _bring_back(layout: Layout, key: str, *, dry_run: bool) -> Moved:
    path, record = layout.root / key, _record(layout, key)
    is_here = path.exists() and not path.is_symlink()
    if is_here and not record.exists():
        raise UserError(f"{key} is in the laboratory already.")
    part, tier = _read_record(layout, key)
    source = tier.place_of(key)
    if is_here and _describe(path, key).files != part.files:
        raise UserError(f"{key} is in the laboratory already, and is not what was moved to {source}; both stay.")
    if is_here and not dry_run:  # a killed call has brought it back, and has this left to do
        _remove_copy(source, part)
        durable.remove(record)
        return Moved(part, source, str(path), done=True, kept=False)
    if not dry_run:
        with _resting(layout, key):
            arriving = path.with_name(f".{path.name}.{os.getpid()}{durable.TEMPORARY_SUFFIX}")
            where = arriving / path.name if part.is_file else arriving
            _copy(source, str(where), part)
            _verify(str(where), part)
            _make_links(arriving, part)
            durable.remove(path)  # the link
            durable.move(where, path)
            durable.remove(arriving)
            _remove_copy(source, part)
            durable.remove(record)
    return Moved(part, source, str(path), done=not dry_run, kept=False)


def _key_of(layout: Layout, what: str) -> str:
    """Below the root; of a run its folder."""
    key = os.path.normpath(what)
    if "/" not in what and (records := list(layout.moved.glob(f"*~{what}.json"))):
        return records[0].stem.replace("~", "/")
    if not os.path.lexists(layout.root / key) and not _record(layout, key).exists():
        return _below(layout, find_run(layout, what).run.path) if "/" not in what else _missing(layout, what)
    if not key.startswith(tuple(f"{each}/" for each in MOVABLE)) and key not in ("logs",):
        raise UserError(f"{what} cannot be moved: expected a run's id or what lies below {', '.join(MOVABLE)}.")
    return key


def _missing(layout: Layout, what: str) -> str:
    raise UserError(f"There is no {what} below {layout.root}: expected a run's id or a path in the laboratory.")


def _below(layout: Layout, path: Path) -> str:
    return path.relative_to(layout.root).as_posix()


@contextlib.contextmanager
def _resting(layout: Layout, key: str) -> Iterator[None]:
    """While the block lasts no process begins to write to the run, if it is one."""
    parts = Path(key).parts
    with contextlib.ExitStack() as held:
        if parts[:2] == ("artifacts", "runs"):
            path = layout.root / Path(*parts[:4])
            for folder in [path] if len(parts) > 3 else filter(Path.is_dir, path.glob("*")):
                if not held.enter_context(at_rest(RunFolder(folder))):
                    raise UserError(
                        f"Run {folder.name} is being written by another process; wait for it or stop it first."
                    )
        yield


def _describe(path: Path, key: str) -> Part:
    if path.is_file():
        seen = {path.name: _stamp(path)}
        return Part(key, {path.name: digests.of_file(path)}, {}, path.stat().st_size, is_file=True, seen=seen)
    files, links, seen, size_bytes = {}, {}, {}, 0
    every = sorted(each for each in path.rglob("*") if each.is_symlink() or each.is_file())
    with Progress(f"reading {key}", total=len(every), unit="files") as progress:
        for number, each in enumerate(every):
            name = each.relative_to(path).as_posix()
            if each.is_symlink():
                links[name] = os.readlink(each)
            else:
                seen[name] = _stamp(each)
                files[name] = digests.of_file(each)
                size_bytes += seen[name][0]
            progress.update(number + 1)
    return Part(key, files, links, size_bytes, is_file=False, seen=seen)


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _copy(source: str, target: str, part: Part) -> None:
    if part.is_file:
        source, target = source.rpartition("/")[0], target.rpartition("/")[0]
        sync(source, target, include=_exactly(part.files))
    else:
        sync(source, target, exclude=_exactly(part.links))


def _exactly(names: Iterable[str]) -> list[str]:
    """Patterns of these files alone, whatever characters they have."""
    return [f"./{glob.escape(name)}" for name in names]


def _verify(target: str, part: Part) -> None:
    """Read all of the copy, whatever is known of it.

    Raises:
        GateError: it is not what was described.
    """
    folder = target.rpartition("/")[0] if part.is_file else target
    place = open_place(folder)
    there = _entries(place, part)
    with Progress(f"verifying {target}", total=len(part.files), unit="files") as progress:
        for number, (name, digest) in enumerate(part.files.items()):
            if name not in there or place.hash(there[name]) != digest:
                raise GateError(
                    f"{name} in {folder} is not what it was where it came from. The original stays; look at that storage."
                )
            progress.update(number + 1)


def _entries(place: Place, part: Part) -> dict[str, Any]:
    return place.entries(lambda key: key in part.files)


def _take_away(path: Path, target: Path | None, part: Part) -> None:
    """Remove the original, and put a link to the copy in its place where that is a folder's; it has another name first.

    Raises:
        GateError: it was written to since it was read; it stays.
    """
    leaving = path.with_name(f".{path.name}.moved.{os.getpid()}{durable.TEMPORARY_SUFFIX}")
    durable.move(path, leaving)
    if _is_written_to(leaving, part):
        durable.move(leaving, path)
        raise GateError(
            f"{part.key} was written to while it was copied, so it stays. Run the same command again when nothing writes there."
        )
    if target is not None:
        _make_links(target, part)
        durable.publish(target, path)
    durable.remove(leaving)


def _is_written_to(path: Path, part: Part) -> bool:
    if part.is_file:
        return {_stamp(path)} != {*part.seen.values()}
    found = {each.relative_to(path).as_posix(): each for each in path.rglob("*")}
    files = {name: _stamp(each) for name, each in found.items() if each.is_file() and not each.is_symlink()}
    return files != part.seen or {name for name, each in found.items() if each.is_symlink()} != part.links.keys()


def _refuse_others(target: str, part: Part) -> None:
    """Raises UserError where something else lies at the target: another laboratory's, or an older one of that name."""
    if part.is_file:
        place = open_place(target.rpartition("/")[0])
        there = _entries(place, part)
    else:
        place = open_place(target)
        there = place.entries(lambda key: key not in part.links)
    for name, entry in there.items():
        if name not in part.files or place.hash(entry) != part.files[name]:
            raise UserError(
                f"{target} holds something else already: {name}. One laboratory has a tier's folder for itself; name another "
                "one, or move that away."
            )


def _make_links(folder: Path, part: Part) -> None:
    for name, target in part.links.items():
        link = folder / name
        durable.publish(link.parent / target, link)


def _remove_copy(source: str, part: Part) -> None:
    place = open_place(source.rpartition("/")[0] if part.is_file else source)
    if "://" not in source:
        durable.remove(Path(source))
    else:
        place.remove(list(_entries(place, part).values()))


def _record(layout: Layout, key: str) -> Path:
    return layout.moved / f"{key.replace('/', '~')}.json"


def _read_record(layout: Layout, key: str) -> tuple[Part, Tier]:
    record = _record(layout, key)
    try:
        recorded = json.loads(record.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{key} was not moved from this laboratory: there is no {layout.relative(record)}.") from None
    part = Part(key, recorded["files"], recorded["links"], recorded["size_bytes"], recorded["is_file"])
    return part, Tier(recorded["tier"], recorded["where"])


def _as_record(part: Part, tier: Tier, at: datetime) -> dict[str, Any]:
    return {
        "what": part.key,
        "tier": tier.name,
        "where": tier.where if not tier.is_folder else str(Path(tier.where).resolve()),
        "moved_at": at.isoformat(timespec="seconds"),
        "is_file": part.is_file,
        "size_bytes": part.size_bytes,
        "files": part.files,
        "links": part.links,
    }
