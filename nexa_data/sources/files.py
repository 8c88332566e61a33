"""The source `files`: the user's own files, found, checked and read one after the other in sorted order."""

import contextlib
import glob
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from nexa_core import digests
from nexa_core.config.data import CsvFormat, FilesSource, JsonFormat, TextFormat
from nexa_core.errors import UserError
from nexa_core.lookup import did_you_mean
from nexa_core.paths import Layout
from nexa_data.sources.csv_files import read_csv
from nexa_data.sources.json_files import read_json, read_json_lines
from nexa_data.sources.parquet_files import read_parquet
from nexa_data.sources.pieces import Whole, cut_json_lines, cut_parquet
from nexa_data.sources.raw import UNREADABLE, BadRow, Piece, Row
from nexa_data.sources.streams import COMPRESSIONS, UnreadableError
from nexa_data.sources.text_files import read_text

FORMATS = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "text",
    ".md": "text",
}
GLOB_SIGNS = frozenset("*?[")
MAX_NAMES_SHOWN = 10


class Files:
    """Some files, their formats known and their state remembered, so that a change during the reading is noticed."""

    def __init__(self, config: FilesSource, layout: Layout):
        self._config = config
        paths = find_files(config.path, layout)
        names = sorted((layout.relative(path), path) for path in paths)
        self._files = dict(names)
        self._formats = {name: config.format or format_of(path) for name, path in names}
        self._states = {name: _state(path) for name, path in names}
        self._digests: dict[str, Future[str]] = {}
        _refuse_settings_without_effect(config, set(self._formats.values()))

    def rows(self) -> Iterator[Row]:
        """Every row of every file; a file of which nothing can be read is one bad row.

        Raises:
            UserError: a file changed since this object was made.
        """
        for name, path in self._files.items():
            is_empty = True
            for row in _rows_of(path, name, self._formats[name], self._config):
                is_empty = False
                yield row
            if is_empty:
                yield BadRow(name, None, "no rows in the file")
            self._refuse_change(name)

    def pieces(self) -> list[Piece]:
        """The files one after the other, large ones of JSON lines and of Parquet in several pieces."""
        found: list[Piece] = []
        for name, path in self._files.items():
            cut = self._cut(name, path)
            read = partial(_rows_of, path, name, self._formats[name], self._config)
            found += cut or [Whole(name, read, path, size_bytes=self._states[name][0])]
        return found

    def _cut(self, name: str, path: Path) -> Sequence[Piece]:
        """The pieces of a file that can be read from more places than its beginning; none of another."""
        if self._formats[name] == "jsonl" and path.suffix.lower() not in COMPRESSIONS:
            return cut_json_lines(name, path)
        if self._formats[name] == "parquet":
            with contextlib.suppress(UnreadableError):  # which reading it will tell
                return cut_parquet(name, path)
        return []

    def begin_digests(self) -> None:
        pool = ThreadPoolExecutor(1)
        self._digests = {name: pool.submit(digests.of_file, path) for name, path in self._files.items()}
        pool.shutdown(wait=False)

    def origins(self) -> list[dict[str, Any]]:
        """Name, size and digest of each file.

        Raises:
            UserError: a file changed since this object was made.
        """
        found = []
        for name, path in self._files.items():
            begun = self._digests.get(name)
            digest = digests.of_file(path) if begun is None else begun.result()
            found.append({"file": name, "bytes": self._states[name][0], "sha256": digest})
            self._refuse_change(name)
        return found

    def _refuse_change(self, name: str) -> None:
        if _state(self._files[name]) != self._states[name]:
            raise UserError(f"{name} changed while it was being read; run the command again when it is complete")


def _rows_of(path: Path, name: str, file_format: str, config: FilesSource) -> Iterator[Row]:
    try:
        yield from _read(path, name, file_format, config)
    except UnreadableError as error:
        yield BadRow(name, None, UNREADABLE, detail=str(error))
    except OSError as error:  # a truncated or damaged compressed file, found when its reading gets there
        yield BadRow(name, None, UNREADABLE, detail=f"the rest is lost: {error}")


def _read(path: Path, name: str, file_format: str, config: FilesSource) -> Iterator[Row]:
    match file_format:
        case "csv":
            return read_csv(path, name, config.csv or CsvFormat())
        case "json":
            return read_json(path, name, config.json_ or JsonFormat())
        case "jsonl":
            return read_json_lines(path, name)
        case "parquet":
            return read_parquet(path, name)
        case _:
            return read_text(path, name, config.text or TextFormat())


def find_files(pattern: str, layout: Layout) -> list[Path]:
    """The files that a path, folder or glob means; hidden ones only where they are named.

    Raises:
        UserError: there are none; says what was looked for and what is there.
    """
    path = layout.root / pattern
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [inside for inside in path.rglob("*") if inside.is_file() and not _is_hidden(inside.relative_to(path))]
    elif GLOB_SIGNS & set(pattern):
        found = [Path(match) for match in glob.glob(str(path), recursive=True) if Path(match).is_file()]
    else:
        raise UserError(f"No file or folder {path}.{_what_is_there(path)}")
    if not found:
        raise UserError(f"No files in {path}.{_what_is_there(path)}")
    return found


def format_of(path: Path) -> str:
    """The format that a file's suffix tells, looking through `.gz` and `.zst`.

    Raises:
        UserError: it tells none of them.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_compressed = bool(suffixes) and suffixes[-1] in COMPRESSIONS
    suffix = (suffixes[:-1] if is_compressed else suffixes)[-1:]
    found = FORMATS.get("".join(suffix))
    if found is None:
        allowed = f"{', '.join(FORMATS)}, each also with {' or '.join(COMPRESSIONS)} behind it"
        raise UserError(
            f"Cannot tell the format of {path} by its suffix. Known: {allowed}. Or say `format:`, or use a glob."
        )
    if found == "parquet" and is_compressed:
        raise UserError(f"{path}: Parquet is compressed inside; unpack it first")
    return found


def _refuse_settings_without_effect(config: FilesSource, formats: set[str]) -> None:
    for name, settings in (("csv", config.csv), ("json", config.json_), ("text", config.text)):
        if settings is not None and name not in formats:
            raise UserError(
                f"source.{name} has no effect: {config.path} is {' and '.join(sorted(formats))}; leave it out"
            )


def _state(path: Path) -> tuple[int, int]:
    """What changes when a file is written: size and time.

    Raises:
        UserError: the file cannot be opened.
    """
    try:
        with path.open("rb"):
            state = path.stat()
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}") from None
    return state.st_size, state.st_mtime_ns


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _what_is_there(path: Path) -> str:
    """What the nearest existing folder holds, and the name in it that is spelt alike."""
    folder = path
    while not folder.is_dir() or GLOB_SIGNS & set(folder.name):
        missing, folder = folder.name, folder.parent
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    hint = did_you_mean(missing, names) if folder != path else ""
    shown = ", ".join(names[:MAX_NAMES_SHOWN]) + (", ..." if len(names) > MAX_NAMES_SHOWN else "")
    return f"{hint} In {folder}: {shown or 'nothing'}"
