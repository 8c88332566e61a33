"""Keeping secrets out of files and logs: values of secret environment variables are blanked wherever text is written."""

import os
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
PASSWORD_IN_ADDRESS = re.compile(r"://[^/@:\s]*:([^/@\s]+)@")
SHORTEST_SECRET = 8  # shorter values are words that stand in ordinary text as well

Secrets = tuple[tuple[str, str], ...]


def known_secrets(environment: Mapping[str, str] = os.environ) -> Secrets:
    """(value, name) of every secret of the environment, the longest first, because one may be a part of another.

    The password in an address (https://user:password@host) is one as well.
    """
    found = [(value, name) for name, value in environment.items() if SECRET_NAME.search(name)]
    found += [(part, name) for name, value in environment.items() for part in PASSWORD_IN_ADDRESS.findall(value)]
    return tuple(sorted((pair for pair in found if len(pair[0]) >= SHORTEST_SECRET), key=lambda pair: -len(pair[0])))


def redact(text: str, secrets: Secrets | None = None) -> str:
    """`text` with every secret value replaced by ``[NAME]``; who writes many lines looks the secrets up once."""
    for value, name in known_secrets() if secrets is None else secrets:
        text = text.replace(value, f"[{name}]")
    return text


def public_url(url: str) -> str:
    """A URL without its user and password, and without the values behind its `?`."""
    parts = urlsplit(url)
    query = urlencode([(name, "...") for name, _ in parse_qsl(parts.query)])
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))
