"""The process that sends one run's record to one tracker: started by a run, ended by it or soon after it."""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from pathlib import Path

from nexa_core.lookup import look_up
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder
from nexa_core.trackers.destinations import DESTINATIONS, Refused, in_one_line, prepare_clients
from nexa_core.trackers.follow import Ending, follow
from nexa_core.trackers.manners import LEAST, give_way, nice_sessions
from nexa_core.trackers.story import Story


def main() -> None:
    """Follow the run that the arguments name until standard input ends, and exit with 0 when all is sent."""
    parser = argparse.ArgumentParser()
    parser.add_argument("destination", choices=DESTINATIONS)
    parser.add_argument("run", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("after", type=int)
    parser.add_argument("wait_seconds", type=float)
    given = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # a scheduler tells all processes; the run tells this one
        signal.signal(number, signal.SIG_IGN)
    give_way()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the clients print is no answer
    prepare_clients()
    ending = Ending()
    threading.Thread(target=_listen, args=(ending, given.wait_seconds), daemon=True).start()

    def complain(message: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # the run has ended, and this is left to end by itself
            print(json.dumps({"complaint": in_one_line(message)}), file=answers, flush=True)

    def begun() -> None:
        if not ending.is_said():
            nice_sessions(os.getpid(), LEAST)

    story = Story(Layout(given.root), RunFolder(given.run), given.after)
    try:
        destination = look_up(DESTINATIONS, given.destination, what="tracker")()
        is_complete = follow(destination, story, ending=ending, complain=complain, begun=begun)
    except Exception as error:
        complain(str(error) if isinstance(error, Refused) else f"{type(error).__name__}: {error}")
        os._exit(1)  # without the clients' own farewells, which wait for their servers
    os._exit(0 if is_complete else 1)


def _listen(ending: Ending, wait_seconds: float) -> None:
    """Until the run says how it ended, or is gone without a word; then there is only so much time."""
    word = sys.stdin.read().strip()
    threading.Timer(wait_seconds, os._exit, args=(1,)).start()
    ending.say(word or "killed")
    nice_sessions(os.getpid(), 0)  # now it is waited for


if __name__ == "__main__":
    main()
