"""A bucket of an S3-compatible storage, or the part of one below a prefix, as a place to sync."""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexa_core import digests
from nexa_core.errors import NexaError, UserError
from nexa_core.lookup import did_you_mean
from nexa_core.storage import multipart
from nexa_core.storage.digest_cache import DigestCache
from nexa_core.storage.place import (
    PART_BYTES,
    Conflict,
    Corrupt,
    Entry,
    Keep,
    Listed,
    Moved,
    Piece,
    Place,
    digest,
    printable,
    refuse_keys,
    untold,
    where,
)
from nexa_core.storage.s3_client import DIGEST_NAME, connect, error_code, errors_told, is_precondition

if TYPE_CHECKING:
    from obstore import ObjectMeta

DIGEST = re.compile(r"[0-9a-f]{64}")
NAMED_BY_OBSTORE = re.compile(r"[^\x00-\x1f\x7f]+")
LONGEST_KEY_BYTES = 1024
MISSING = ("NoSuchKey", "404")
ASKED_AT_ONCE = 16
ASKED_A_PAGE = 50
"""Questions about single objects that take about as long, `ASKED_AT_ONCE`, as a page of a listing."""
KEYS_A_PAGE = 1000
KEYS_A_DELETE = 1000


class Bucket:
    """Objects below `prefix`. Every write has a condition, so that what somebody else wrote is never overwritten."""

    def __init__(self, name: str, prefix: str, *, endpoint: str | None, cache: Path):
        self.url = f"s3://{name}/{prefix}".rstrip("/")
        self._name, self._prefix, self._cache = name, f"{prefix}/" if prefix else "", cache
        self._clients = connect(name, endpoint)
        self.digests = DigestCache(f"{self._clients.endpoint}/{name}/{prefix}", cache)

    def entries(self, keep: Keep, listed: Listed = untold) -> dict[str, Entry]:
        with self._told():
            there = self._list_fast(listed)
            if there is None:
                there = self._list_whole(listed)
        found = [entry for entry in there if not _is_folder_marker(entry) and keep(entry.key)]
        refuse_keys(
            [entry.key for entry in found if _leaves(entry.key)],
            f"a key in {self.url} that is no file's path",
            "Rename it",
        )
        return {entry.key: entry for entry in found}

    def require_there(self) -> None:
        """A bucket without a prefix is there; of a prefix, the marker of an empty folder is enough."""
        with self._told():
            below = {"Bucket": self._name, "Prefix": self._prefix, "MaxKeys": 1}
            if not self._prefix or self._clients.whole.list_objects_v2(**below).get("Contents"):
                return
            name = self._prefix.rstrip("/")
            if self._size_of(name) is not None:
                folder, _, file = self.url.rpartition("/")
                raise UserError(
                    f"{self.url} is an object; sync takes all below a prefix. Name {folder} and --include {file!r}."
                )
            around = name.rpartition("/")[0]
            names = [each.rpartition("/")[2] for each in self._list_folders(f"{around}/" if around else "")]
        raise UserError(
            f"Nothing lies at {self.url}, so there is nothing to copy: {self._clients.endpoint} has no key that begins "
            f"with {self._prefix!r}.{did_you_mean(name.rpartition('/')[2], names)} Mend the name, or fill it first."
        )

    def stated_digest(self, entry: Entry) -> str | None:
        known = self.digests.get(entry)
        if known is None and (known := self._head(entry)):
            self.digests.learn(entry, known)
        return known

    def read(self, entry: Entry, start: int, stop: int) -> Piece:
        whole = (start, stop) == (0, entry.size_bytes)
        with self._told(entry.key):
            try:
                data, stated = (self._get_fast if _is_plain(entry.key) else self._get_whole)(entry, start, stop, whole)
            except FileNotFoundError:
                raise Conflict(where(self, entry.key), "was removed while it was read") from None
            except Exception as error:
                if not _is_condition(error):
                    raise
                raise Conflict(where(self, entry.key), "changed while it was read") from None
        if len(data) != stop - start:
            raise Conflict(where(self, entry.key), "changed while it was read")
        return Piece(data, self.digests.get(entry) or stated)

    def hash(self, entry: Entry, moved: Moved = untold) -> str:
        hashed = hashlib.sha256()
        for start in range(0, entry.size_bytes, PART_BYTES):
            data = self.read(entry, start, min(start + PART_BYTES, entry.size_bytes)).data
            hashed.update(data)
            moved(len(data))
        return hashed.hexdigest()

    def check(self, keys: list[str]) -> None:
        too_long = [key for key in keys if len((self._prefix + key).encode()) > LONGEST_KEY_BYTES]
        refuse_keys(too_long, f"longer than the {LONGEST_KEY_BYTES} bytes that a key may have", "Rename it")

    def writing(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()  # each write has its own condition

    def write(self, key: str, source: Place, entry: Entry, *, replaces: Entry | None, lanes: int, moved: Moved) -> None:
        condition = replaces.version if replaces else None
        if entry.size_bytes > PART_BYTES:
            self._clients.begin_whole()
            sha256 = digest(source, entry)
            upload = multipart.Upload(
                self._clients.whole,
                self._name,
                self._prefix + key,
                sha256=sha256,
                condition=condition,
                cache=self._cache,
            )
            with self._conditional(key, sha256, entry.size_bytes) as written:
                written.version = upload.run(source, entry, lanes=lanes, moved=moved)
        else:
            piece = source.read(entry, 0, entry.size_bytes)
            sha256 = digests.of_bytes(piece.data)
            if piece.stated_sha256 not in (None, sha256):
                raise Corrupt(where(source, entry.key), stated=str(piece.stated_sha256), found=sha256)
            put = self._put_fast if _is_plain(key) else self._put_whole
            with self._conditional(key, sha256, entry.size_bytes) as written:
                written.version = put(self._prefix + key, piece.data, sha256, condition)
            moved(entry.size_bytes)
        source.digests.learn(entry, sha256)
        self.digests.learn(Entry(key, entry.size_bytes, written.version), sha256)

    def remove(self, entries: list[Entry]) -> None:
        now = self.entries({entry.key for entry in entries}.__contains__)
        for entry in entries:
            if now.get(entry.key, entry) != entry:
                raise Conflict(where(self, entry.key), "changed since the sync was planned")
        names = [self._prefix + entry.key for entry in entries]
        plain = [name for name in names if _is_plain(name)]
        with self._told():
            for start in range(0, len(plain), KEYS_A_DELETE):
                self._remove_many(plain[start : start + KEYS_A_DELETE])
            for name in set(names).difference(plain):  # XML has no place for them
                self._clients.whole.delete_object(Bucket=self._name, Key=name)

    def remove_left(self, unfinished: list[str]) -> None:
        pass  # what a sync has not finished uploading has no name

    def _remove_many(self, names: list[str]) -> None:
        objects = {"Objects": [{"Key": name} for name in names], "Quiet": True}
        done = self._clients.whole.delete_objects(Bucket=self._name, Delete=objects)
        for failed in done.get("Errors", []):
            raise NexaError(f"s3://{self._name}/{printable(failed['Key'])} was not deleted: {failed['Code']}.")

    def _told(self, key: str = "") -> AbstractContextManager[None]:
        return errors_told(where(self, key) if key else self.url, self._clients.endpoint)

    @contextlib.contextmanager
    def _conditional(self, key: str, sha256: str, size_bytes: int) -> Iterator["_Written"]:
        """Writing under a condition; who finds the very bytes there that it would write has written them."""
        written = _Written()
        with self._told(key):
            try:
                yield written
            except Exception as error:
                removed = Conflict(where(self, key), "was removed by somebody else since the sync was planned")
                if error_code(error) in MISSING:
                    raise removed from None
                if not _is_condition(error):
                    raise
                try:
                    found = self._clients.whole.head_object(Bucket=self._name, Key=self._prefix + key)
                except self._clients.whole.exceptions.ClientError as missing:
                    raise (removed if error_code(missing) in MISSING else missing) from None
                if (found["ContentLength"], found["Metadata"].get(DIGEST_NAME)) != (size_bytes, sha256):
                    raise Conflict(
                        where(self, key), "was changed by somebody else since the sync was planned"
                    ) from None
                written.version = found["ETag"]  # an answer that got lost, or another sync of the same files

    def _list_fast(self, listed: Listed) -> list[Entry] | None:
        """The listing, or None where obstore cannot tell it: it does not know odd names.

        Nor does it ask for encoded names: a storage writes U+FFFD for the characters that XML has no place for. And it
        shows the marker `raw/` of a folder as an empty `raw`, so each empty object is asked for by its name, unless
        there are so many that a whole second listing takes less time, or the user may list them and not read them.
        """
        from obstore.exceptions import InvalidPathError

        found: list[ObjectMeta] = []
        try:
            for page in self._clients.fast.list(self._prefix or None, chunk_size=KEYS_A_PAGE):
                found += page
                listed(len(found))
        except (InvalidPathError, ValueError):
            return None
        cut = len(self._prefix)
        empty = [meta["path"] for meta in found if meta["size"] == 0]
        is_long = len(empty) > ASKED_A_PAGE * -(-len(found) // KEYS_A_PAGE)
        if is_long or any("\ufffd" in meta["path"] for meta in found):
            return None
        if empty:
            with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
                try:
                    sizes = list(pool.map(self._size_of, empty))
                except self._clients.whole.exceptions.ClientError:
                    return None
            markers = {path for path, size_bytes in zip(empty, sizes, strict=True) if size_bytes != 0}
            found = [meta for meta in found if meta["size"] or meta["path"] not in markers]
        return [Entry(meta["path"][cut:], meta["size"], meta["e_tag"] or "") for meta in found]

    def _list_whole(self, listed: Listed) -> list[Entry]:
        pages = self._clients.whole.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=self._prefix)
        found: list[dict[str, Any]] = []
        for page in pages:
            found += page.get("Contents", [])
            listed(len(found))
        return [Entry(each["Key"][len(self._prefix) :], each["Size"], each["ETag"]) for each in found]

    def _size_of(self, name: str) -> int | None:
        """The size of one object; None where there is none of exactly this name."""
        try:
            return int(self._clients.whole.head_object(Bucket=self._name, Key=name)["ContentLength"])
        except self._clients.whole.exceptions.ClientError as error:
            if error_code(error) in MISSING:
                return None
            raise

    def _list_folders(self, folder: str) -> list[str]:
        """Some of the folders in a folder, to tell what may have been meant."""
        found = self._clients.whole.list_objects_v2(Bucket=self._name, Prefix=folder, Delimiter="/")
        return [each["Prefix"].rstrip("/") for each in found.get("CommonPrefixes", [])]

    def _head(self, entry: Entry) -> str | None:
        with self._told(entry.key):
            try:
                found = self._clients.whole.head_object(
                    Bucket=self._name, Key=self._prefix + entry.key, IfMatch=entry.version
                )
            except Exception as error:
                if not _is_condition(error):
                    raise
                raise Conflict(where(self, entry.key), "changed while the sync was planned") from None
        return _valid(found["Metadata"].get(DIGEST_NAME))

    def _get_fast(self, entry: Entry, start: int, stop: int, whole: bool) -> tuple[bytes, str | None]:
        options: Any = {"if_match": entry.version}
        if not whole:
            options["range"] = (start, stop)
        result = self._clients.fast.get(self._prefix + entry.key, options=options)
        return bytes(result.bytes()), _valid(result.attributes.get(DIGEST_NAME))

    def _get_whole(self, entry: Entry, start: int, stop: int, whole: bool) -> tuple[bytes, str | None]:
        more = {} if whole else {"Range": f"bytes={start}-{stop - 1}"}
        found = self._clients.whole.get_object(
            Bucket=self._name, Key=self._prefix + entry.key, IfMatch=entry.version, **more
        )
        return found["Body"].read(), _valid(found["Metadata"].get(DIGEST_NAME))

    def _put_fast(self, name: str, data: bytes | bytearray, sha256: str, condition: str | None) -> str:
        done = self._clients.fast.put(
            name,
            data,
            attributes={DIGEST_NAME: sha256},
            mode={"e_tag": condition} if condition else "create",
            use_multipart=False,
        )
        return done["e_tag"] or ""

    def _put_whole(self, name: str, data: bytes | bytearray, sha256: str, condition: str | None) -> str:
        only: dict[str, str] = {"IfMatch": condition} if condition else {"IfNoneMatch": "*"}
        done = self._clients.whole.put_object(
            Bucket=self._name, Key=name, Body=data, Metadata={DIGEST_NAME: sha256}, **only
        )
        return str(done["ETag"])


@dataclass
class _Written:
    version: str = ""


def _is_plain(key: str) -> bool:
    """Whether obstore can name it."""
    return NAMED_BY_OBSTORE.fullmatch(key) is not None


def _is_folder_marker(entry: Entry) -> bool:
    """Consoles make empty objects like `raw/` to show folders; they hold nothing to sync."""
    return entry.size_bytes == 0 and (entry.key.endswith("/") or not entry.key)


def _leaves(key: str) -> bool:
    """Whether a key would be written elsewhere than below the folder, or names no file."""
    return "\0" in key or any(part in ("", ".", "..") for part in key.split("/"))


def _is_condition(error: Exception) -> bool:
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    return isinstance(error, (AlreadyExistsError, PreconditionError)) or is_precondition(error)


def _valid(stated: str | None) -> str | None:
    return stated if stated and DIGEST.fullmatch(stated) else None
