"""The teacher simulator as its users meet it: a process of its own, found by the URL that it prints."""

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Simulator:
    base_url: str
    """As a client wants it: it ends with /v1."""
    process: "subprocess.Popen[str]"

    def ask(self, text: str = "hello", *, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
        """The answer to one user message; raises HTTPError for an error."""
        given = {"model": "m", "messages": [{"role": "user", "content": text}], "temperature": 0} | body
        request = urllib.request.Request(f"{self.base_url}/chat/completions", json.dumps(given).encode(), headers or {})
        with urllib.request.urlopen(request, timeout=10) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(self.base_url.removesuffix("/v1") + path, timeout=10) as response:
            found: dict[str, Any] = json.load(response)
            return found

    def bill(self) -> dict[str, Any]:
        return self.get("/bill")

    def end(self, how: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code, and what it had left to say."""
        self.process.send_signal(how)
        out, _ = self.process.communicate(timeout=10)
        return self.process.returncode, out


@contextmanager
def simulator(*options: str, latency_seconds: float = 0.0) -> Iterator[Simulator]:
    """A running simulator with these options of `nexa simulate-teacher`."""
    command = [sys.executable, "-m", "scripts.cli", "simulate-teacher", "--port", "0"]
    process = subprocess.Popen(
        [*command, "--latency-seconds", str(latency_seconds), *options],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield Simulator(process.stdout.readline().strip(), process)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
