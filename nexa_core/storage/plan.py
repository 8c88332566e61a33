"""What a sync will do, decided before anything is written."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from nexa_core.errors import UserError
from nexa_core.progress import Progress
from nexa_core.storage.meter import Meter, in_parallel, megabytes
from nexa_core.storage.place import Entry, Keep, Place, digest, is_unfinished, parents, printable, refuse_keys


@dataclass(frozen=True)
class Copy:
    """A file that the destination lacks, or has with other bytes."""

    entry: Entry
    replaces: Entry | None


@dataclass(frozen=True)
class Plan:
    """Everything a sync will do; files are compared by size and SHA-256."""

    copies: list[Copy]
    deletions: list[Entry]
    num_unchanged: int
    num_kept: int
    """Files that only the destination has and that stay, for want of --delete."""
    unfinished: list[str]
    """Keys, on either side, of what a writer has not finished: neither copied nor deleted."""
    unfinished_there: list[str]
    """Those of the destination."""
    unused_excludes: list[str]
    """Patterns that leave nothing out."""

    @property
    def size_bytes(self) -> int:
        return sum(copy.entry.size_bytes for copy in self.copies)

    def as_json(self) -> dict[str, Any]:
        copies = [
            {"key": copy.entry.key, "size_bytes": copy.entry.size_bytes, "why": "changed" if copy.replaces else "new"}
            for copy in self.copies
        ]
        deletions = [{"key": entry.key, "size_bytes": entry.size_bytes} for entry in self.deletions]
        counts = {"unchanged": self.num_unchanged, "kept": self.num_kept}
        changes = {"copies": copies, "deletions": deletions}
        return {**changes, **counts, "unfinished": self.unfinished, "unused_excludes": self.unused_excludes}

    def as_text(self) -> str:
        rows = [("changed" if copy.replaces else "new", copy.entry) for copy in self.copies]
        rows += [("delete", entry) for entry in self.deletions]
        lines = [f"{what:<8}{entry.size_bytes:>16,} bytes  {printable(entry.key)}" for what, entry in rows]
        kept = f", {self.num_kept:,} only there and kept (--delete removes them)" if self.num_kept else ""
        counts = f"{len(self.copies):,} to copy ({self.size_bytes:,} bytes), {len(self.deletions):,} to delete"
        return "\n".join([*lines, f"{counts}, {self.num_unchanged:,} unchanged{kept}{self.notes_as_text()}"])

    def notes_as_text(self) -> str:
        """What there is to tell beside the counts."""
        notes = ""
        if self.unfinished:
            more = f" and {len(self.unfinished) - 1:,} more" if len(self.unfinished) > 1 else ""
            notes += f", left out as unfinished: {printable(self.unfinished[0])}{more}"
        if self.unused_excludes:
            notes += f", matched no file: {' '.join(f'--exclude {pattern!r}' for pattern in self.unused_excludes)}"
        return notes


@dataclass(frozen=True)
class Filter:
    """Which keys belong to a sync: those that an `include` matches, or all where there is none, less any `exclude`.

    A pattern with a slash is matched against the whole key, any other against each part of it, so that `*.csv` means
    such files everywhere and `.git` all that lies in a folder of that name. `*` matches slashes too, `raw/` is
    `raw/*`, and `./raw` is `raw` and nothing deeper.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def __call__(self, key: str) -> bool:
        return (not self.include or _matches(key, self.include)) and not _matches(key, self.exclude)

    def require_use(self, *, kept: Sequence[str], left_out: Sequence[str], delete: bool) -> list[str]:
        """The excludes that leave nothing out.

        Raises:
            UserError: an `include` is that of no file, which is more likely a slip than meant; or, with `delete`, an
                `exclude`: the files that it was to keep would be lost.
        """
        unused_includes = [pattern for pattern in self.include if not _is_used(pattern, kept)]
        unused_excludes = [pattern for pattern in self.exclude if not _is_used(pattern, left_out)]
        refused = [f"--include {pattern!r} matches no file" for pattern in unused_includes]
        if delete:
            lost = "and --delete would remove what it was meant to keep"
            refused += [f"--exclude {pattern!r} matches no file, {lost}" for pattern in unused_excludes]
        if refused:
            raise UserError(
                f"{refused[0]}. '*.csv' means such files everywhere, '2026/' all below that folder, './a.csv' that file "
                "alone; quote it, or the shell matches it itself."
            )
        return unused_excludes


def _is_used(pattern: str, keys: Sequence[str]) -> bool:
    return any(_matches(key, [pattern]) for key in keys)


def _matches(key: str, patterns: Sequence[str]) -> bool:
    parts = key.split("/")
    return any(
        # As it was given as well: a bucket may hold keys like `./a`, which can only be left out.
        fnmatchcase(key, _as_key(pattern)) or fnmatchcase(key, pattern)
        if "/" in pattern
        else any(fnmatchcase(part, pattern) for part in parts)
        for pattern in patterns
    )


@functools.cache
def _as_key(pattern: str) -> str:
    """A pattern with a slash as keys are written: without `./`, and for a folder, `raw/`, that of all below it."""
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    return "/".join([*parts, "*"] if pattern.endswith(("/", "/.")) else parts)


def make_plan(source: Place, destination: Place, *, keep: Filter, delete: bool, concurrency: int) -> Plan:
    """Compare two places.

    Raises:
        UserError: there is nothing to copy from, or some key cannot be written where it should go.
    """
    left_out: list[str] = []
    unfinished: dict[Place, set[str]] = {source: set(), destination: set()}

    def belongs(place: Place, key: str) -> bool:
        if not keep(key):
            left_out.append(key)
        elif is_unfinished(key):
            unfinished[place].add(key)
        else:
            return True
        return False

    there = _list(source, functools.partial(belongs, source))
    if not there:
        source.require_there()
    here = _list(destination, functools.partial(belongs, destination))
    unused_excludes = keep.require_use(kept=[*there, *here], left_out=left_out, delete=delete)
    if not there and here and delete:
        raise UserError(
            f"{source.url} has no files to sync, and --delete would empty {destination.url}. "
            "Is the source the right one? To empty the destination, delete its files by hand."
        )
    on_both = [(entry, here[key]) for key, entry in there.items() if key in here]
    same_size = [(entry, other) for entry, other in on_both if entry.size_bytes == other.size_bytes]
    unchanged = _unchanged(source, destination, same_size, concurrency=concurrency)
    copies = [Copy(entry, here.get(key)) for key, entry in sorted(there.items()) if key not in unchanged]
    only_here = [entry for key, entry in sorted(here.items()) if key not in there]
    _refuse_files_that_are_folders([*there], [*here])
    destination.check([copy.entry.key for copy in copies if copy.replaces is None])
    deletions, num_kept = (only_here, 0) if delete else ([], len(only_here))
    all_unfinished, those_there = sorted(set().union(*unfinished.values())), sorted(unfinished[destination])
    return Plan(copies, deletions, len(unchanged), num_kept, all_unfinished, those_there, unused_excludes)


def _list(place: Place, keep: Keep) -> dict[str, Entry]:
    with Progress(f"listing {place.url}", total=None, unit="files") as progress:
        return place.entries(keep, progress.update)


def _unchanged(source: Place, destination: Place, pairs: list[tuple[Entry, Entry]], *, concurrency: int) -> set[str]:
    """The keys of those pairs of files that have the same bytes."""
    meter, unchanged = Meter(len(pairs)), set()

    def compare(pair: tuple[Entry, Entry]) -> None:
        entry, other = pair
        if digest(source, entry, meter.moved) == digest(destination, other, meter.moved):
            unchanged.add(entry.key)
        meter.finished()

    total = megabytes(sum(entry.size_bytes + other.size_bytes for entry, other in pairs))
    with Progress(f"comparing {source.url} with {destination.url}", total=total, unit="MB") as progress:
        in_parallel(compare, pairs, concurrency, meter, progress)
    return unchanged


def _refuse_files_that_are_folders(there: list[str], here: list[str]) -> None:
    """A bucket may hold both `a` and `a/b`; a folder cannot."""
    names = {*there, *here}
    bad = [key for key in sorted(names) if any(parent in names for parent in parents(key))]
    refuse_keys(bad, "lies below a name that is a file's as well, so the two cannot be in one folder", "Rename one")
