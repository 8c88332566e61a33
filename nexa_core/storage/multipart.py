"""Uploading one large file in parts: in parallel, continued after a kill, completed under a condition."""

import hashlib
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from nexa_core import durable
from nexa_core.storage.place import PART_BYTES, Corrupt, Entry, Moved, Place, where
from nexa_core.storage.s3_client import DIGEST_NAME, error_code

logger = logging.getLogger(__name__)

HOPELESS = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409", "404", "NoSuchKey", "InvalidPart",
            "InvalidPartOrder", "EntityTooSmall"}  # fmt: skip
"""What a storage says of an upload that will never be completed."""
MAX_PARTS = 10_000
"""Source: the limits of multipart uploads in the S3 API reference."""


class Upload:
    """One object that is uploaded in parts.

    A small file in the cache remembers it, so that the next try adds the parts that are missing. A remembered upload
    of other bytes is aborted, and the storage charges nothing for it any longer.
    """

    def __init__(self, client: Any, bucket: str, key: str, *, sha256: str, condition: str | None, cache: Path):
        self._client, self._at = client, {"Bucket": bucket, "Key": key}
        self._sha256, self._condition = sha256, condition
        place = f"{client.meta.endpoint_url}/{bucket}/{key}"
        self._memory_path = cache / f"upload_{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"

    def run(self, source: Place, entry: Entry, *, lanes: int, moved: Moved) -> str:
        """Upload what is missing and give the object its name; returns its ETag.

        Raises:
            Corrupt: the source's bytes have another digest than it states.
        """
        part_bytes = part_size(entry.size_bytes)
        check = _InOrder()
        upload_id, there = self._begin(part_bytes)
        starts = range(0, entry.size_bytes, part_bytes)

        def upload(index: int) -> dict[str, Any]:
            start, stop = starts[index], min(starts[index] + part_bytes, entry.size_bytes)
            tag = there.get((index + 1, stop - start))
            if tag is None:
                piece = source.read(entry, start, stop)
                if piece.stated_sha256 is not None:  # and not computed from the bytes
                    check.add(index, piece.data)
                body = {"PartNumber": index + 1, "Body": piece.data}
                tag = self._client.upload_part(**self._at, UploadId=upload_id, **body)["ETag"]
            moved(stop - start)
            return {"PartNumber": index + 1, "ETag": tag}

        with ThreadPoolExecutor(lanes) as pool:
            coming = [pool.submit(upload, index) for index in range(len(starts))]
            try:
                parts = [part.result() for part in coming]
            finally:
                pool.shutdown(cancel_futures=True)
        if check.is_used:
            found = check.hexdigest() if check.num_added == len(starts) else source.hash(entry)
            if found != self._sha256:
                self._abort(upload_id)
                raise Corrupt(where(source, entry.key), stated=self._sha256, found=found)
        only = {"IfMatch": self._condition} if self._condition else {"IfNoneMatch": "*"}
        try:
            done = self._client.complete_multipart_upload(
                **self._at, UploadId=upload_id, MultipartUpload={"Parts": parts}, **only
            )
        except self._client.exceptions.ClientError as error:
            if error_code(error) in HOPELESS:  # after any other, the next try completes the same parts
                self._abort(upload_id)
            raise
        durable.remove(self._memory_path)
        return str(done["ETag"])

    def _begin(self, part_bytes: int) -> tuple[str, dict[tuple[int, int], str]]:
        """The upload to add to, and the ETags of the parts it has by number and size."""
        remembered = self._remembered()
        if remembered and (remembered["sha256"], remembered["part_bytes"]) == (self._sha256, part_bytes):
            there = self._parts(remembered["upload_id"])
            if there is not None:
                logger.info("%s: %s parts are there already", self._at["Key"], len(there))
                return remembered["upload_id"], there
        elif remembered:
            self._abort(remembered["upload_id"])
        begun = self._client.create_multipart_upload(**self._at, Metadata={DIGEST_NAME: self._sha256})
        memory = {"upload_id": begun["UploadId"], "sha256": self._sha256, "part_bytes": part_bytes}
        durable.write_json(self._memory_path, memory)
        return begun["UploadId"], {}

    def _remembered(self) -> dict[str, Any] | None:
        try:
            read = json.loads(self._memory_path.read_bytes())
            return {name: read[name] for name in ("upload_id", "sha256", "part_bytes")}
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _parts(self, upload_id: str) -> dict[tuple[int, int], str] | None:
        """None where the upload is no longer there."""
        pages = self._client.get_paginator("list_parts").paginate(**self._at, UploadId=upload_id)
        try:
            found = [part for page in pages for part in page.get("Parts", [])]
        except self._client.exceptions.ClientError:
            return None
        return {(part["PartNumber"], part["Size"]): part["ETag"] for part in found}

    def _abort(self, upload_id: str) -> None:
        try:
            self._client.abort_multipart_upload(**self._at, UploadId=upload_id)
        except self._client.exceptions.ClientError as error:
            if error_code(error) != "NoSuchUpload":  # it is remembered, so that the next sync aborts it
                logger.info("%s: an upload that was begun earlier is left as it is: %s", self._at["Key"], error)
                return
        durable.remove(self._memory_path)


class _InOrder:
    """The digest of parts that come in any order; holds those that come before their turn."""

    def __init__(self) -> None:
        self._lock, self._hashed, self._waiting = threading.Lock(), hashlib.sha256(), dict[int, Any]()
        self.num_added = 0

    @property
    def is_used(self) -> bool:
        return bool(self.num_added or self._waiting)

    def add(self, index: int, data: bytes | bytearray) -> None:
        with self._lock:
            self._waiting[index] = data
            while self.num_added in self._waiting:
                self._hashed.update(self._waiting.pop(self.num_added))
                self.num_added += 1

    def hexdigest(self) -> str:
        return self._hashed.hexdigest()


def part_size(size_bytes: int) -> int:
    """Bytes of each part: `PART_BYTES`, or as many times that as keeps within the number of parts allowed."""
    return PART_BYTES * max(1, -(-size_bytes // (PART_BYTES * MAX_PARTS)))
