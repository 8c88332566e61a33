"""Steps that are a user's own functions, and the code that they are."""

import inspect
import math
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from nexa_core import digests
from nexa_core.config.quality import CustomStep
from nexa_core.errors import UserError
from nexa_core.lookup import look_up
from nexa_data.quality import Limit, Step

INSTALLED = {"site-packages", "dist-packages"}
SHOWN_CHARS = 60


def own_step(settings: CustomStep) -> Step:
    """The step of the function that the settings name.

    Raises:
        UserError: it cannot be imported, or does not take these parameters.
    """
    function: Callable[..., Any] = look_up({}, settings.name, what="quality step")
    parameters = dict(settings.parameters)
    try:
        inspect.signature(function).bind("text", **parameters)
    except TypeError as error:
        raise UserError(f"quality step '{settings.name}': its parameters do not fit: {error}") from None
    except ValueError:  # a function in C, whose signature nobody knows
        pass

    def measure(text: str) -> Sequence[float]:
        return (_score(settings.name, function, text, parameters),)

    return Step(("score",), measure, (Limit("score", settings.min_score, settings.max_score),))


@lru_cache(maxsize=64)
def code_of(name: str) -> str:
    """The digest of a user's function: of all files of its package, of its file, or of its distribution's version."""
    function = look_up({}, name, what="quality step")
    top = sys.modules[function.__module__.partition(".")[0]]
    file = getattr(top, "__file__", None)
    if file is None or INSTALLED & set(Path(file).parts):
        made_by = metadata.packages_distributions().get(top.__name__, [])
        return digests.of_value([top.__name__, sorted((each, metadata.version(each)) for each in made_by)])
    path = Path(file)
    return (
        digests.of_tree(path.parent.rglob("*.py"), path.parent) if hasattr(top, "__path__") else digests.of_file(path)
    )


def _score(name: str, function: Callable[..., Any], text: str, parameters: dict[str, Any]) -> float:
    try:
        value = float(function(text, **parameters))
    except UserError:
        raise
    except Exception as error:  # whatever a user's function raises, the row it was given is what has to be seen
        raise UserError(
            f"quality step '{name}' fails: {type(error).__name__}: {error}. The text begins {text[:SHOWN_CHARS]!r}"
        ) from error
    if not math.isfinite(value):
        raise UserError(
            f"quality step '{name}' gave {value}; a score is a finite number. The text begins {text[:SHOWN_CHARS]!r}"
        )
    return value
