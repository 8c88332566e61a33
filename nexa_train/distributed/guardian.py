"""A small process beside each rank that ends it when it has stopped: a launcher waits for a stopped process for ever.

Run as a program, with nothing imported that takes time: `python guardian.py SECONDS NAME`. Each byte on its standard
input is a sign of life of the process that started it; the end of the input is that process's own good end. Before it
ends a process it asks it for its stack, with a signal: a native call may hold the interpreter.
"""

import os
import select
import signal
import subprocess
import sys

STACK_SIGNAL = signal.SIGURG
"""One that does nothing to a process that has not registered it (as in the Go runtime, for the same reason)."""
LAST_SECONDS = 1.0
"""Between the question for the stack and the end."""


def start_guardian(name: str, *, seconds: float) -> subprocess.Popen[bytes]:
    """A guardian of this process; it does nothing as long as a byte comes every `seconds`."""
    # In its own folder's place and isolated: neither this process's packages nor its environment are looked at.
    command = [sys.executable, "-I", "-S", __file__, str(seconds), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0)


def guard(parent: int, seconds: float, name: str) -> None:
    """Kill `parent` when no byte has come for so long; SIGKILL also ends a process that is stopped."""
    slice_seconds = min(LAST_SECONDS, seconds / 4)
    silent_seconds = 0.0
    is_asked = False
    while os.getppid() == parent:
        if select.select([0], [], [], slice_seconds)[0]:
            if not os.read(0, 4096):
                return
            silent_seconds, is_asked = 0.0, False
            continue
        silent_seconds += slice_seconds  # counted and not read from a clock: time in which all are stopped is no one's
        if silent_seconds >= seconds - LAST_SECONDS and not is_asked:
            os.kill(parent, STACK_SIGNAL)
            is_asked = True
        if silent_seconds >= seconds:
            what = f"{name} has been stopped, or a native call has held its interpreter, for {seconds:g} s"
            os.write(2, f"error: {what}; ending it (SIGKILL)\n".encode())
            os.kill(parent, signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # it ends with the process that it guards, not before
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    guard(os.getppid(), float(sys.argv[1]), sys.argv[2])
