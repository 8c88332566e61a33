"""A source's pieces made canonical: here one after the other, or, of a large source, by all cores or machines at once.

What was made of a piece is kept under a digest of everything that decided it, so that a source of which one file
has changed is only read anew where it has.
"""

import contextlib
import fcntl
import gc
import json
import unicodedata
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from itertools import chain
from pathlib import Path
from typing import Any

from nexa_core import digests, durable
from nexa_core.config.data import DatasetConfig, TeacherInputsOutput
from nexa_core.config.quality import CustomStep
from nexa_data import manifests
from nexa_data.batch_files import read_batches, write_batches
from nexa_data.batches import Batch, Making, make_batches
from nexa_data.engines import Made, Means, make_all
from nexa_data.evaluation_sets import EvaluationSet
from nexa_data.quality.own import code_of
from nexa_data.sources import Source
from nexa_data.sources.raw import ExcerptsAt, Piece
from nexa_data.templates import PromptTemplate

LOCK = "lock"
PARALLEL_FROM_BYTES = 48 * 2**20
"""A smaller source is read by this process: others take half a second to begin."""


@dataclass(frozen=True)
class Part:
    """The rows of one piece of a source."""

    piece: Piece
    batches: Iterable[Batch]
    """Once only, where the piece is being read with them."""
    num_lines: int | None
    """None until the batches are read, where the piece is being read with them."""

    @property
    def file(self) -> str:
        return self.piece.file

    @property
    def lines_read(self) -> int:
        """Of the piece, once its batches are read."""
        return self.piece.num_lines if self.num_lines is None else self.num_lines


@dataclass(frozen=True)
class _Kept:
    """The batches of a piece in the file that they were written to; may be read again and again."""

    path: Path
    excerpts_at: ExcerptsAt | None

    def __iter__(self) -> Iterator[Batch]:
        return read_batches(self.path, self.excerpts_at)


@contextlib.contextmanager
def in_use(folder: Path) -> Iterator[set[Path]]:
    """A block that uses files of the folder, and adds them to the set; at its end the others are removed.

    Another process that uses the folder keeps them all: whoever is the last one there cleans up.
    """
    used: set[Path] = set()
    with durable.open_lock(folder / LOCK) as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        yield used
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        for left_over in set(folder.iterdir()) - used - {folder / LOCK}:
            durable.remove(left_over)


def make_parts(
    source: Source,
    config: DatasetConfig,
    folder: Path,
    *,
    means: Means,
    evaluation: EvaluationSet | None = None,
    template: PromptTemplate | None = None,
    again: bool = False,
    used: set[Path],
) -> Iterator[Part]:
    """The parts of a source in its order.

    Args:
        folder: where what was made of pieces is kept until the source's next version; see `in_use`.
        evaluation: whose texts rows are searched for.
        template: what makes the prompts, where the settings name one.
        again: whether batches will be read more than once.
        used: takes the files of the folder that the parts are made of.

    Raises:
        NexaError: a process that made one of them was killed.
    """
    pieces = source.pieces()
    salt = None if isinstance(config.output, TeacherInputsOutput) else config.output.salt
    making = Making(config.rows, salt, quality=config.quality, has_keys=again, evaluation=evaluation, template=template)
    is_small = len(pieces) == 1 or sum(piece.size_bytes for piece in pieces) < PARALLEL_FROM_BYTES
    if is_small and not again:
        yield from _make_here(pieces, making)
        return
    if config.rows.name == "features":  # the first row says for all how many numbers a row has
        making = replace(making, num_features=_num_features(pieces, making))
    make = partial(_make_part, making=making, stamp=_stamp(making), folder=folder)
    made = map(make, pieces) if is_small else make_all(make, pieces, means)
    for piece, (path, num_lines) in zip(pieces, made, strict=True):
        used |= {path, _facts_of(path)}
        yield Part(piece, _Kept(path, piece.excerpts_at if _can_reread(piece, making) else None), num_lines)


def _make_here(pieces: list[Piece], making: Making) -> Iterator[Part]:
    for piece in pieces:
        batches = make_batches(piece.rows(), making, piece.excerpts_at if _can_reread(piece, making) else None)
        first = next(batches, None)
        if first is None:
            yield Part(piece, iter(()), None)
            continue
        making = replace(making, num_features=making.num_features or first.num_features)
        yield Part(piece, chain([first], batches), None)


def _num_features(pieces: list[Piece], making: Making) -> int | None:
    found = (batch.num_features for piece in map(copy, pieces) for batch in make_batches(piece.rows(), making))
    return next(filter(None, found), None)


def _make_part(piece: Piece, making: Making, stamp: str, folder: Path) -> Made:
    """The file of a piece's rows, made where it does not stand whole, and its number of lines."""
    piece = copy(piece)  # which holds its bytes while it is read
    digest = piece.digest()
    decides = {"bytes": digest, "file": piece.file, "begin": piece.begin_bytes, "making": stamp}
    path = folder / f"{digests.of_value(decides)}.arrow"
    facts = None if digest is None else _read_facts(path)
    can_reread = _can_reread(piece, making)
    if facts is None:
        with collector_paused():
            write_batches(path, make_batches(piece.rows(), making), with_excerpts=not can_reread)
        facts = {"num_lines": piece.num_lines, "digest": digests.quick_of_file(path)}
        with durable.create(_facts_of(path), flush=False) as file:
            file.write(durable.json_line(facts))
    return path, int(facts["num_lines"])


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """No search for cycles among millions of rows, which have none: it would take a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _can_reread(piece: Piece, making: Making) -> bool:
    """Whether what is shown of a row may be read again from the source; what is masked there is not."""
    return piece.excerpts_at is not None and not making.masked


def _stamp(making: Making) -> str:
    """The digest of all that decides what is made of any piece, beside the piece."""
    return digests.of_value(
        {
            "rows": making.rows.resolved(),
            "salt": making.salt,
            "num_features": making.num_features,
            "measures": [step.measures() for step in making.quality],
            "own_code": [code_of(step.name) for step in making.quality if isinstance(step, CustomStep)],
            "has_keys": making.has_keys,
            "evaluation": making.evaluation and making.evaluation.decides(),
            "template": making.template and making.template.sha256,
            "code": manifests.code_digest(),
            "unicode": unicodedata.unidata_version,
            "libraries": {
                name: metadata.version(name) for name in ("jinja2", "numpy", "orjson", "py3langid", "pyarrow")
            },
        }
    )


def _facts_of(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_facts(path: Path) -> dict[str, Any] | None:
    """What is known of a file that was made earlier; None where it is not there or not what it was."""
    try:
        facts: dict[str, Any] = json.loads(_facts_of(path).read_text(encoding="utf-8"))
        return facts if facts["digest"] == digests.quick_of_file(path) else None
    except (OSError, ValueError, KeyError):
        return None
