"""Token shards of the dataset that is being replaced, for the shards that would come out the same again.

They need no room of their own: what is replaced stays until the new dataset is whole, and there is one dataset of shards in a
laboratory, so whatever changes in its documents, its shards of before are there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nexa_core import digests
from nexa_data import manifests
from nexa_data.places import Places
from nexa_data.replacing import kept_files


@dataclass(frozen=True)
class Reusable:
    """A shard of before, whose digest has held."""

    path: Path
    record: Mapping[str, Any]


def find_reusable(
    places: Places, standing: list[manifests.Stood], documents: Mapping[str, str], made_with: Mapping[str, Any]
) -> dict[str, Reusable]:
    """The shards of before that can serve, by the shard that they serve as.

    Args:
        standing: the datasets that are being replaced.
        documents: the digest of each new shard's documents.
        made_with: all else that decides a shard's bytes; see `making_of`.
    """
    found, kept = {}, kept_files(places)
    for _, manifest in standing:
        if making_of(manifest) != made_with:
            continue
        records = {manifest["splits"][name]["sha256"]: each for name, each in manifest["sequences"]["shards"].items()}
        for shard, digest in documents.items():
            record = records.get(digest)
            path = None if record is None else kept.get(record["path"])
            if record is not None and path is not None and digests.of_file(path) == record["sha256"]:
                found[shard] = Reusable(path, record)
    return found


def making_of(manifest: manifests.Manifest) -> dict[str, Any] | None:
    """What decides the bytes of a dataset's shards, the documents aside; None where it has no token shards."""
    sequences = manifest.get("sequences")
    if sequences is None:
        return None
    return {
        "tokenizer": manifest["tokenizer"]["sha256"],
        **{name: sequences[name] for name in ("width", "begin", "end")},
        **{name: manifest[name] for name in ("code", "libraries")},
    }
