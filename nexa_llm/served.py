"""A model on this machine that vLLM serves: begun when the first answer is missing, asked like any server, ended with the run."""

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from nexa_core import digests, durable
from nexa_core.config.ask import AskConfig
from nexa_core.errors import NexaError, UserError
from nexa_llm.chat import ChatRequest
from nexa_llm.openai import OpenAi

logger = logging.getLogger(__name__)

PROGRAM = "vllm"
DECIDING = (".json", ".jinja", ".model", ".safetensors", ".txt")
"""Endings of a folder's files that decide its answers."""
TOKENIZER = "tokenizer.json"
NOWHERE = "http://127.0.0.1:9/v1"
"""Until there is a server."""
SECONDS_TO_START = 1800.0
SECONDS_TO_END = 30.0
SECONDS_BETWEEN_LOOKS = 0.25
NUM_LINES_SHOWN = 20


class Served(OpenAi):
    """A folder as transformers writes it, served by `vllm serve`.

    What it said is stored by the digest of the folder's files, wherever that lies and on whichever port it was served.

    Raises:
        UserError: vLLM is not installed.
    """

    def __init__(self, config: AskConfig, folder: Path, *, log: Path):
        super().__init__(config, {"OPENAI_BASE_URL": NOWHERE})
        self._program = _find_program()
        self.folder, self._log = folder, log
        files = [path for path in folder.iterdir() if path.suffix in DECIDING]
        self.model, self.public_url = "teacher", f"{PROGRAM}:{digests.of_tree(files, folder)}"
        self._asked_url = self.public_url
        self._process: subprocess.Popen[bytes] | None = None
        self._starting: asyncio.Task[None] | None = None
        self._is_over = threading.Event()

    def body(self, request: ChatRequest) -> dict[str, Any]:
        named = {"return_tokens_as_token_ids": True} if request.sampling.logprobs is not None else {}
        return super().body(request) | named

    async def ready(self) -> None:
        """Start the server, once.

        Raises:
            NexaError: it does not start.
        """
        if self._starting is None:
            self._starting = asyncio.create_task(asyncio.to_thread(self._start))
        await asyncio.shield(self._starting)

    def stop_waiting(self) -> None:
        """A large model takes minutes to load."""
        if self._starting is not None and not self._starting.done():
            self._is_over.set()

    def close(self) -> None:
        """End the server, if there is one."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _start(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        served = [self._program, "serve", str(self.folder), "--host", "127.0.0.1", "--port", str(port)]
        with durable.open_log(self._log) as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "nexa_llm.leash", *served, "--served-model-name", self.model],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        logger.info("%s begins to serve %s; its words are in %s", PROGRAM, self.folder, self._log)
        self._wait(f"http://127.0.0.1:{port}/health")
        self._url = f"http://127.0.0.1:{port}/v1"
        self._completions = self._at("chat/completions")

    def _wait(self, address: str) -> None:
        assert self._process is not None
        began = time.monotonic()
        while time.monotonic() < began + SECONDS_TO_START:
            if (code := self._process.poll()) is not None:
                raise NexaError(f"{PROGRAM} ended with exit code {code} before it served. {self._last_words()}")
            with contextlib.suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(address, timeout=5).close()
                logger.info("%s serves, after %.0f s", PROGRAM, time.monotonic() - began)
                return
            if self._is_over.wait(SECONDS_BETWEEN_LOOKS):
                raise NexaError(f"{PROGRAM} was not waited for.")
        raise NexaError(f"{PROGRAM} has not begun to serve within {SECONDS_TO_START:g} s. {self._last_words()}")

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join([f"The end of {self._log}:", *lines[-NUM_LINES_SHOWN:]])


def _find_program() -> str:
    beside = Path(sys.executable).parent / PROGRAM
    program = str(beside) if beside.exists() else shutil.which(PROGRAM)
    if program is None:
        raise UserError(
            f"engine: {PROGRAM} needs the program `{PROGRAM}`, which is not installed here: pip install {PROGRAM}, in a "
            "virtual environment of its own whose bin folder is in PATH; or leave `engine` out."
        )
    return program
