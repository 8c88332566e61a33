"""What is never deleted, and why: results, links' targets, parents, what was packaged, what is pinned."""

import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from nexa_core.errors import UserError
from nexa_core.lineage import Lineage
from nexa_core.paths import CATEGORIES, Layout
from nexa_core.runs import RunFolder
from nexa_ops.contents import LINEAGE

Reasons = dict[Path, str]
"""Why a file or folder, by its real path, is kept."""


def find_kept(layout: Layout, lineages: dict[str, Lineage]) -> Reasons:
    """Every file that something else in the laboratory names, or something of it that lies in another tier.

    Args:
        lineages: of all runs and evaluations, by id.

    Raises:
        UserError: what may name some cannot be read.
    """
    kept: Reasons = {}
    records = [read(path) for path in layout.moved.glob("*.json")]
    for record in records:
        for name in record.get("keeps", []):
            kept[layout.absolute(name).resolve()] = "named by what lies in another tier"
    for name in _parents(lineages.values(), _dataset_manifests(layout)):
        kept[layout.absolute(_home(name, records)).resolve()] = "something was made from it"
    for path in layout.checkpoints.glob("*"):
        kept[path.resolve()] = "shown in artifacts/checkpoints"
    for name in _packaged(layout.packages.glob("*.tar.gz"), lineages):
        kept[layout.absolute(name).resolve()] = "packaged"
    for path in layout.run_manifests.glob("*.json"):
        if checkpoint := read(path).get("checkpoint"):
            kept[layout.absolute(checkpoint).resolve()] = "the run's result"
    return kept


def named_in(layout: Layout, key: str) -> list[str]:
    """What is named by all that lies at `key`, as the laboratory's paths: for when that is out of reach.

    Raises:
        UserError: a lineage or manifest there cannot be read; a package that cannot be names nothing.
    """
    path = layout.root / key
    files = [path] if path.is_file() else list(path.rglob("*"))
    own = [read(each) for each in files if each.name == LINEAGE]
    manifests = [each for each in files if each.parent.name == "manifests" and each.suffix == ".json"]
    tarballs = [each for each in files if each.name.endswith(".tar.gz") and _is_package(each)]
    names = {*_parents(own, manifests)}
    return sorted({*names, *_packaged(tarballs, read_lineages(layout))} if tarballs else names)


def read_lineages(layout: Layout) -> dict[str, Lineage]:
    """Of all runs and evaluations, by id.

    Raises:
        UserError: one cannot be read.
    """
    return {path.parent.name: read(path) for path in layout.runs.glob("*/*/lineage.json")}


def read(path: Path) -> dict[str, Any]:
    """A JSON object that says what has to stay; empty where it is not there.

    Raises:
        UserError: it is there and cannot be read.
    """
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(_unreadable(path, error)) from None
    return value if isinstance(value, dict) else {}


def linked(run: RunFolder) -> Reasons:
    """The checkpoints that the run's own `best` and `last` show."""
    links = [path for path in run.checkpoints.glob("*") if path.is_symlink()]
    return {path.resolve(): f"the {path.stem} one" for path in sorted(links, reverse=True)}


def _dataset_manifests(layout: Layout) -> Iterator[Path]:
    for category in CATEGORIES:
        yield from layout.dataset_manifests(category).glob("*.json")


def _parents(lineages: Iterable[Lineage], manifests: Iterable[Path]) -> Iterator[str]:
    """The paths of all that runs, evaluations and datasets were made from, as they were recorded."""
    for each in (*lineages, *map(read, manifests)):
        for parent in each.get("parents") or []:
            if name := parent if isinstance(parent, str) else parent.get("path", ""):
                yield name


def _home(name: str, records: list[dict[str, Any]]) -> str:
    """Where a file lay that was named while it lay in a tier, by its path there."""
    for record in records:
        if name.startswith(f"{record.get('where', '')}/"):
            return name[len(record["where"]) + 1 :]
    return name


def _packaged(tarballs: Iterable[Path], lineages: dict[str, Lineage]) -> Iterator[str]:
    """The checkpoints whose bytes a package says it was made from."""
    for tarball in filter(Path.exists, tarballs):  # a link into a tier that is not mounted has a record
        lineage = _lineage_in(tarball)
        digest = lineage.get("packed_checkpoint")
        outputs = lineages.get(lineage.get("run_id", ""), lineage).get("outputs", {})
        yield from (path for path, has in outputs.items() if digest in (None, has))


def _lineage_in(tarball: Path) -> Lineage:
    """A package's lineage, which lies ahead of its weights."""
    try:
        with tarfile.open(tarball, mode="r|gz") as tar:
            for member in tar:
                if Path(member.name).name == LINEAGE and (file := tar.extractfile(member)):
                    return json.load(file)
    except (tarfile.TarError, OSError, ValueError, EOFError, zlib.error) as error:
        raise UserError(_unreadable(tarball, error)) from None
    raise UserError(_unreadable(tarball, f"it has no {LINEAGE}"))


def _is_package(path: Path) -> bool:
    try:
        return bool(_lineage_in(path))
    except UserError:
        return False


def _unreadable(path: Path, why: object) -> str:
    return f"{path} cannot be read ({why}), and nobody knows what it needs, so nothing is deleted. Mend it, or move it away."
