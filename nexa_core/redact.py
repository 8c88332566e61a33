"""Keeping secrets out of files and logs: values of secret environment variables are blanked wherever text is written."""

import os
import re
from collections.abc import Mapping
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL)", re.IGNORECASE)
SECRET_IN_QUERY = re.compile(
    rf"{SECRET_NAME.pattern}|(^|[-_.])(sig|signature|code|auth|authorization|pass|pwd|jwt|session|sid)($|[-_.])",
    re.IGNORECASE,
)
"""Names behind a `?` whose values are secret, as Azure's `code` and `sig`, or `X-Amz-Signature`."""
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


def url_without_secrets(url: str) -> str:
    """A URL without its user and password, and without those values behind its `?` that are secret by their names.

    For a digest, not to be shown: a value of another name is a part of what is asked, and might still be secret.
    """
    parts = urlsplit(url)
    query = [(name, "..." if SECRET_IN_QUERY.search(name) else value) for name, value in parse_qsl(parts.query)]
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, urlencode(query), ""))


def public_url(url: str) -> str:
    """A URL without its user and password, and without the values behind its `?`."""
    parts = urlsplit(url)
    query = urlencode([(name, "...") for name, _ in parse_qsl(parts.query)])
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))
