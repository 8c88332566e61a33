"""Rows that a function yields: the built-in sources and the user's own."""

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from nexa_core import digests
from nexa_core.errors import UserError
from nexa_data.sources.pieces import Whole
from nexa_data.sources.raw import BadRow, Piece, RawRow, Row, excerpt
from nexa_data.values import plain


class Generated:
    """What ``function(**parameters)`` yields, as numbered rows of the pseudo-file `name`."""

    def __init__(
        self, name: str, function: Callable[..., Iterable[Any]], parameters: Mapping[str, Any], library: str | None
    ):
        try:
            inspect.signature(function).bind(**parameters)
        except TypeError as error:
            raise UserError(f"source '{name}': its parameters do not fit: {error}") from None
        self._name, self._library = name, library
        self._function, self._parameters = function, dict(parameters)
        self._origin: dict[str, Any] | None = None

    def rows(self) -> Iterator[Row]:
        hasher = hashlib.sha256()
        number = 0
        for values in self._function(**self._parameters):
            number += 1
            row = self._row(number, values)
            hasher.update(digests.canonical_json(plain(row)) + b"\n")
            yield row
        self._origin = {"file": self._name, "library": self._library, "rows": number, "sha256": hasher.hexdigest()}

    def pieces(self) -> list[Piece]:
        return [Whole(self._name, self.rows)]

    def begin_digests(self) -> None:
        """Nothing: the digest is that of the rows, as they are read."""

    def origins(self) -> list[dict[str, Any]]:
        """The digest over all rows: that of the last complete pass, or of one made for it."""
        if self._origin is None:
            for _ in self.rows():
                pass
        assert self._origin is not None
        return [self._origin]

    def _row(self, number: int, values: Any) -> Row:
        if not isinstance(values, Mapping):
            return BadRow(self._name, number, "not a dict", excerpt(repr(values)), f"a {type(values).__name__}")
        try:
            digests.canonical_json(plain(values))
        except (ValueError, TypeError) as error:
            return BadRow(self._name, number, "not plain values", excerpt(repr(values)), str(error))
        return RawRow(self._name, number, {str(key): value for key, value in values.items()})
