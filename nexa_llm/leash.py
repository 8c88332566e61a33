"""A program that ends with the process that started it, however that ends: `python -m nexa_llm.leash PROGRAM ARGUMENTS...`."""

import contextlib
import os
import signal
import subprocess
import sys
import threading

SECONDS_TO_END = 20.0


def hold(command: list[str]) -> int:
    """Run the command while somebody holds this process's standard input; its exit code."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    def end(number: int, frame: object) -> None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(SECONDS_TO_END)
        os.killpg(0, signal.SIGKILL)  # it, what it started, and this

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=watch, name="parent", daemon=True).start()
    return process.wait()


if __name__ == "__main__":
    sys.exit(hold(sys.argv[1:]))
