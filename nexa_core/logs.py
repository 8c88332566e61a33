"""Log lines for people: to stderr while a command runs, and to a text file below logs/ for each run."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from nexa_core import durable
from nexa_core.digests import PACKAGES
from nexa_core.redact import redact


class _Redacting(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


def log_to_stderr() -> None:
    """Show the project's messages from INFO up, and others' from WARNING up, on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacting("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    _let_our_messages_through()


def warn_only() -> None:
    """Show the project's messages from WARNING up: for those processes that another one speaks for."""
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.WARNING)


@contextlib.contextmanager
def log_to_file(path: Path) -> Iterator[None]:
    """Also append every message to `path` while the block runs."""
    stream = durable.open_log(path)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Redacting("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    _let_our_messages_through()
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        stream.close()


def _let_our_messages_through() -> None:
    for package in PACKAGES:
        logging.getLogger(package).setLevel(logging.INFO)


@contextlib.contextmanager
def quiet(*, except_for: str) -> Iterator[None]:
    """On stderr only warnings, and the messages of one package, while the block runs; files get everything."""

    def passes(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.WARNING or record.name.startswith(except_for)

    handlers = [each for each in logging.getLogger().handlers if type(each) is logging.StreamHandler]
    shown = [each for each in handlers if each.stream is sys.stderr]
    for handler in shown:
        handler.addFilter(passes)
    try:
        yield
    finally:
        for handler in shown:
            handler.removeFilter(passes)
