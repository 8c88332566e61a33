"""Finding a thing by name in a table of lazy ``"module:attribute"`` strings."""

import difflib
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from nexa_core.errors import UserError


def look_up(table: Mapping[str, str], name: str, *, what: str) -> Any:
    """Import what `name` stands for: a key of `table`, or a user's own ``package.module:name``.

    Raises:
        UserError: the name is in neither form, or what it names cannot be imported.
    """
    target = table.get(name, name)
    if ":" not in target:
        raise UserError(unknown(what, name, table))
    module_name, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"Cannot load {what} '{name}': {error}. It has to be importable as package.module:name."
        ) from error


def unknown(what: str, given: str, allowed: Iterable[str]) -> str:
    """The sentence for a name that is not among the allowed ones."""
    allowed = sorted(allowed)
    return f"Unknown {what} '{given}'.{did_you_mean(given, allowed)} Allowed: {', '.join(allowed) or 'none'}"


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest allowed name, or an empty string when none is near."""
    nearest = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.6)
    return f" Did you mean '{nearest[0]}'?" if nearest else ""
