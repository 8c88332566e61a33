"""Making a destination like a source: plan, copy in parallel, delete last."""

import logging
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from nexa_core.errors import UserError
from nexa_core.lookup import unknown
from nexa_core.progress import Progress
from nexa_core.storage.digest_cache import cache_folder
from nexa_core.storage.folder import Folder
from nexa_core.storage.meter import Meter, in_parallel, megabytes
from nexa_core.storage.place import PART_BYTES, Place
from nexa_core.storage.plan import Copy, Filter, Plan, make_plan

logger = logging.getLogger(__name__)

DEFAULT_CONCURRENCY = 32
FILES_FOR_A_PART = 2
"""Small files that move at the same time for each part of a large one: waiting takes most of their time."""
LARGE_AT_ONCE = 4
"""Files in parts that move at the same time; the lanes are shared among them, which bounds the memory."""
SCHEMES = ("s3", "file")
MEANT_AS_URL = re.compile(r"(s3|file|gs|https?)(?::/?(?!/)|//)(.*)", re.IGNORECASE | re.DOTALL)
"""A URL whose `://` lacks a character: as a path it would make a folder of that name, and nothing would be in the bucket."""


@dataclass(frozen=True)
class Synced:
    """What a sync did, or with `dry_run` would do."""

    source: str
    destination: str
    plan: Plan
    dry_run: bool
    seconds: float

    def as_json(self) -> dict[str, Any]:
        places = {"source": self.source, "destination": self.destination, "dry_run": self.dry_run}
        return {**places, **self.plan.as_json(), "size_bytes": self.plan.size_bytes, "seconds": round(self.seconds, 3)}

    def as_text(self) -> str:
        if self.dry_run:
            return f"{self.plan.as_text()}\nnothing was written (--dry-run): {self.source} -> {self.destination}"
        rate = self.plan.size_bytes / 1e6 / max(self.seconds, 1e-3)
        did = f"{len(self.plan.copies):,} copied ({self.plan.size_bytes:,} bytes, {rate:,.1f} MB/s)"
        kept = f", {self.plan.num_kept:,} only there and kept" if self.plan.num_kept else ""
        rest = f"{len(self.plan.deletions):,} deleted, {self.plan.num_unchanged:,} unchanged{kept}"
        return f"{did}, {rest}{self.plan.notes_as_text()}\n{self.destination}"


def sync(
    source: str,
    destination: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    delete: bool = False,
    dry_run: bool = False,
    endpoint: str | None = None,
    concurrency: int = DEFAULT_CONCURRENCY,
) -> Synced:
    """Copy what the destination lacks or has with other bytes; with `delete`, remove what the source lacks.

    Killed at any moment it leaves whole files only, and the same call again does the rest.

    Raises:
        UserError: a place, a pattern or a key cannot be used.
        Conflict: somebody else changed a file meanwhile.
        Corrupt: bytes that arrived are not those that were uploaded.
    """
    began = time.monotonic()
    if endpoint and not any(name.startswith("s3://") for name in (source, destination)):
        raise UserError(f"--endpoint {endpoint} is for s3:// places, and neither {source} nor {destination} is one.")
    origin, target = (open_place(name, endpoint=endpoint) for name in (source, destination))
    _refuse_overlap(origin, target)
    try:
        keep = Filter(tuple(include), tuple(exclude))
        plan = make_plan(origin, target, keep=keep, delete=delete, concurrency=concurrency)
        if not plan.copies and not plan.num_unchanged:
            logger.warning("%s holds no files to sync; is its name right?", origin.url)
        if not dry_run and (plan.copies or plan.deletions):
            with target.writing():
                _apply(plan, origin, target, concurrency=concurrency)
        elif not dry_run and plan.num_unchanged:  # an empty source says nothing of what is finished
            target.remove_left(plan.unfinished_there)
    finally:
        origin.digests.save()
        target.digests.save()
    return Synced(origin.url, target.url, plan, dry_run, time.monotonic() - began)


def open_place(name: str, *, endpoint: str | None = None) -> Place:
    """The place that `s3://bucket/prefix`, `file:///folder` or a path means.

    Raises:
        UserError: it means none.
    """
    _refuse_slips(name)
    scheme, found, rest = name.partition("://")
    if not found:
        return Folder(Path(name).expanduser(), cache=cache_folder())
    if scheme == "s3":
        from nexa_core.storage.bucket import Bucket  # its clients are needed by nobody else

        bucket, _, prefix = rest.partition("/")
        prefix = prefix.rstrip("/")
        if not bucket or (prefix and any(part in ("", ".", "..") for part in prefix.split("/"))):
            raise UserError(
                f"'{name}' names no place in a bucket. It looks like s3://bucket or s3://bucket/some/prefix"
            )
        return Bucket(bucket, prefix, endpoint=endpoint, cache=cache_folder())
    if scheme == "file":
        parts = urlsplit(name)
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise UserError(f"'{name}' names no folder of this machine. It looks like file:///data/raw")
        return Folder(Path(unquote(parts.path)), cache=cache_folder())
    raise _unknown_scheme(scheme)


def _unknown_scheme(scheme: str) -> UserError:
    return UserError(f"{unknown('scheme', scheme, SCHEMES)}, or a path without one")


def _refuse_slips(name: str) -> None:
    """An empty name (of a variable that is not set) would mean the current folder."""
    if not name.strip():
        raise UserError("A place to sync has an empty name. Name a folder ('.' for this one), or s3://bucket/prefix")
    if slip := MEANT_AS_URL.fullmatch(name):
        scheme = slip[1].lower()
        if scheme not in SCHEMES:
            raise _unknown_scheme(scheme)
        meant = f"{scheme}://{'/' if scheme == 'file' else ''}{slip[2].lstrip('/')}"
        raise UserError(f"'{name}' is no URL. Did you mean {meant}? A folder of that name is ./{name}")


def _refuse_overlap(origin: Place, target: Place) -> None:
    """One place inside the other would be copied into itself."""
    one, other = (f"{place.root}/" if isinstance(place, Folder) else f"{place.url}/" for place in (origin, target))
    if one.startswith(other) or other.startswith(one):
        raise UserError(f"{origin.url} and {target.url} are the same place, or one lies inside the other.")


def _apply(plan: Plan, origin: Place, target: Place, *, concurrency: int) -> None:
    meter = Meter(len(plan.copies))
    small = [copy for copy in plan.copies if copy.entry.size_bytes <= PART_BYTES]
    large = [copy for copy in plan.copies if copy.entry.size_bytes > PART_BYTES]
    lanes = max(1, concurrency // FILES_FOR_A_PART // max(1, min(LARGE_AT_ONCE, len(large))))

    def copy_one(copy: Copy, *, lanes: int) -> None:
        key = copy.entry.key
        target.write(key, origin, copy.entry, replaces=copy.replaces, lanes=lanes, moved=meter.moved)
        meter.finished()

    what, total = f"{origin.url} -> {target.url}", megabytes(plan.size_bytes)
    with Progress(what, total=total, unit="MB") as progress:
        in_parallel(lambda copy: copy_one(copy, lanes=1), small, concurrency, meter, progress)
        in_parallel(lambda copy: copy_one(copy, lanes=lanes), large, LARGE_AT_ONCE, meter, progress)
    if plan.deletions:
        target.remove(plan.deletions)
        target.digests.forget([entry.key for entry in plan.deletions])
