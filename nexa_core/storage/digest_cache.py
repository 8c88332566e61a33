"""Which digest a listed file has, kept between syncs so that what did not change is not read again."""

import hashlib
import json
import logging
import os
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexa_core import durable

if TYPE_CHECKING:
    from nexa_core.storage.place import Entry

logger = logging.getLogger(__name__)


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where this user's caches lie; all of it may be deleted at any time."""
    base = environment.get("XDG_CACHE_HOME") or Path(environment.get("HOME") or Path.home()) / ".cache"
    return Path(base) / "nexacompute" / "sync"


class DigestCache:
    """SHA-256 digests of one place's files by key, size and version; a file whose size or version differs is unknown.

    It is read when it is first asked, and a cache that is lost, damaged or unwritable costs time and nothing else.
    """

    def __init__(self, url: str, folder: Path):
        self._path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"
        self._url = url
        self._lock = threading.Lock()
        self._known: dict[str, list[Any]] | None = None
        self._is_changed = False

    def get(self, entry: "Entry") -> str | None:
        size_bytes, version, sha256 = self._entries().get(entry.key, (None, None, None))
        return sha256 if (size_bytes, version) == (entry.size_bytes, entry.version) else None

    def learn(self, entry: "Entry", sha256: str) -> None:
        if entry.is_settled and self.get(entry) != sha256:
            self._entries()[entry.key] = [entry.size_bytes, entry.version, sha256]
            self._is_changed = True

    def forget(self, keys: Collection[str]) -> None:
        for key in keys:
            self._is_changed |= self._entries().pop(key, None) is not None

    def save(self) -> None:
        if not self._is_changed:
            return
        try:
            data = json.dumps({"url": self._url, "files": self._entries()}, ensure_ascii=False)
            durable.write_bytes(self._path, data.encode("utf-8", "surrogatepass"))
        except OSError as error:
            logger.info("digests are not kept for the next sync: cannot write %s: %s", self._path, error.strerror)
        self._is_changed = False

    def _entries(self) -> dict[str, list[Any]]:
        with self._lock:
            if self._known is None:
                self._known = _load(self._path, self._url)
            return self._known


def _load(path: Path, url: str) -> dict[str, list[Any]]:
    try:
        read = json.loads(path.read_bytes())
        if read["url"] == url and all(len(value) == 3 for value in read["files"].values()):
            return dict(read["files"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.info("%s is damaged (%s); digests are computed anew", path, error)
    return {}
