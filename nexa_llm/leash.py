"""A program that ends with the process that started it, however that ends: `python -m nexa_llm.leash PROGRAM ARGUMENTS...`."""

import os
import signal
import subprocess
import sys
import threading

SECONDS_TO_END = 20.0


def hold(command: list[str]) -> int:
    """Run the command while somebody holds this process's standard input; its exit code."""
    process, told = subprocess.Popen(command, stdin=subprocess.DEVNULL), threading.Event()

    def kill_all() -> None:
        os.killpg(0, signal.SIGKILL)  # it, what it started, and this

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    def end(number: int, frame: object) -> None:
        told.set()
        process.terminate()
        last = threading.Timer(SECONDS_TO_END, kill_all)  # waiting here would be inside the waiting below
        last.daemon = True
        last.start()

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=watch, name="parent", daemon=True).start()
    code = process.wait()
    if told.is_set():
        kill_all()
    return code


if __name__ == "__main__":
    sys.exit(hold(sys.argv[1:]))
