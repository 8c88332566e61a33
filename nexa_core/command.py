"""The one way into a command: `python -m package.module` and `nexa verb` parse the same options and fail the same way."""

import atexit
import errno
import gc
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from nexa_core.errors import NexaError, Stopped
from nexa_core.logs import log_to_stderr
from nexa_core.lookup import look_up

logger = logging.getLogger(__name__)

# A name, not an import: the command line stands on top of every package and none of them may import it.
COMMAND_LINE = "scripts.cli:main"


def enter(command: str) -> None:
    """Run `nexa <command>` with this process's arguments, and exit."""
    main: Callable[[list[str]], None] = look_up({}, COMMAND_LINE, what="command line")
    main([command, *sys.argv[1:]])


def run_to_exit(work: Callable[[], None]) -> None:
    """Run `work`; turn what it raises into one message on stderr and the exit code that goes with it."""
    from nexa_core.environment import load_env_files  # what --help does not need is not imported for it

    atexit.register(
        gc.freeze
    )  # a process that ends looks for no cycles in what it leaves: a tenth of a second of each command
    log_to_stderr()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _interrupt_once if "RANK" in os.environ else _interrupt)
    threading.excepthook = lambda failed: logger.warning("a background writer failed: %s", failed.exc_value)
    load_env_files(Path("."), os.environ)
    try:
        work()
    except NexaError as error:
        _forget_interrupt()
        fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _forget_interrupt()
        fail(str(Stopped()), Stopped.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        what = f"cannot write {error.filename or 'a file'}: {error.strerror}"
        fail(f"{what}. Files written before are whole; mend it and run the same command again.", 1)


def was_interrupted() -> bool:
    """Whether Ctrl-C came: Python drops the exception where it comes in the midst of a callback, as imports have them."""
    return bool(_interrupts)


_interrupts: list[int] = []


def _interrupt(number: int, frame: FrameType | None) -> None:
    _interrupts.append(number)
    raise KeyboardInterrupt


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """Ctrl-C in one of several processes: it may come from the terminal and again from the launcher, in the midst of ending."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _forget_interrupt() -> None:
    """Have this process end with its own exit code.

    Where Ctrl-C came while a string was being executed, as in the making of a dataclass, Python remembers it, and kills itself
    by the signal at its end whatever was caught; the next string that is executed makes it forget.
    """
    exec("")  # noqa: S102


def fail(message: str, exit_code: int) -> None:
    """Exit; of several processes that end alike, those without a message leave it to the one that has it."""
    if message:
        print(f"error: {message}", file=sys.stderr)
    sys.exit(exit_code)


def show(value: Any, text: str, as_json: bool) -> None:
    """Print a result: text for people, or JSON for machines."""
    print(json.dumps(value, indent=2, ensure_ascii=False) if as_json else text)
