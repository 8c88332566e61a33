"""What every settings class shares."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""Of whatever becomes part of a file's name."""


class Settings(BaseModel):
    """A frozen group of settings: unknown keys and wrong types are errors; a field's docstring is its documentation."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        defer_build=True,  # no command uses all of them
    )

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """(key path, reason) of each given key that the rest of the settings make useless or impossible."""
        yield from ()

    def resolved(self) -> dict[str, Any]:
        """Every setting with its default filled in, as plain JSON values."""
        return self.model_dump(mode="json", by_alias=True)
