"""Keeping secrets out of files and logs: the values of secret environment variables are blanked wherever text is written."""

import functools
import os
import re

SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
SHORTEST_SECRET = 8  # shorter values are words that stand in ordinary text as well


def redact(text: str) -> str:
    """`text` with every secret value of this process's environment replaced by ``[NAME]``."""
    for value, name in _secrets(frozenset(os.environ.items())):
        text = text.replace(value, f"[{name}]")
    return text


@functools.lru_cache(maxsize=1)
def _secrets(environment: frozenset[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    found = ((value, name) for name, value in environment if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET)
    return tuple(sorted(found, key=lambda pair: len(pair[0]), reverse=True))
