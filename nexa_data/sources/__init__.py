"""Where rows come from: the user's files, built-in sources, or the user's own function."""

import platform
from collections.abc import Iterator
from importlib import metadata
from typing import Any, Protocol

from nexa_core.config.data import CustomSource, FilesSource, WordProblemsSource
from nexa_core.config.data import Source as SourceConfig
from nexa_core.lookup import look_up
from nexa_core.paths import Layout
from nexa_data.sources.generated import Generated
from nexa_data.sources.raw import Piece, Row

SOURCES = {
    "files": "nexa_data.sources.files:Files",
    "digits": "nexa_data.sources.digits:read_digits",
    "python_docs": "nexa_data.sources.python_docs:read_python_docs",
    "word_problems": "nexa_data.sources.word_problems:read_word_problems",
}


class Source(Protocol):
    """Rows, and where they are from."""

    def rows(self) -> Iterator[Row]:
        """All rows, good and bad, in an order that depends on nothing but the source."""

    def pieces(self) -> list[Piece]:
        """The same rows in pieces, to be read one after the other or by several processes."""

    def begin_digests(self) -> None:
        """Begin with what `origins` needs, beside other work, where that is possible."""

    def origins(self) -> list[dict[str, Any]]:
        """For each file or function: its name as `file`, its `sha256`, and what else is known of it."""


def open_source(config: SourceConfig, layout: Layout) -> Source:
    """The source that a config names; nothing is read yet.

    Raises:
        UserError: no such files or function, or settings that do not fit them.
    """
    found = look_up(SOURCES, config.name, what="source")
    if isinstance(config, FilesSource):
        source: Source = found(config, layout)
        return source
    parameters: dict[str, Any] = {}
    if isinstance(config, CustomSource):
        parameters = config.parameters
    if isinstance(config, WordProblemsSource):
        parameters = {"parts": config.parts}
    return Generated(config.name, found, parameters, _library(config.name))


def _library(name: str) -> str | None:
    """The library and version that a built-in source's rows come with."""
    if name == "digits":
        return f"scikit-learn {metadata.version('scikit-learn')}"
    return f"python {platform.python_version()}" if name == "python_docs" else None
