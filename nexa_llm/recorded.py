"""Answers from a file: what was collected elsewhere, or written by people."""

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from nexa_core import digests
from nexa_core.config.ask import AskConfig
from nexa_core.errors import NexaError, UserError
from nexa_core.lookup import did_you_mean
from nexa_llm.chat import Answer, ChatRequest

ROWS_A_BATCH = 1024
PRIVATE_FILE = ""
"""As sqlite calls a database that lies in the folder for temporary files, has no name there, and is gone when it is closed."""


class Recorded:
    """Finds the answer to a prompt by the prompt's digest, in a copy on the disk, so that memory does not grow with the file.

    A later change of the file changes no answer of it.

    Raises:
        UserError: the file is not there, or a row of it is no prompt with its answer.
        NexaError: the disk has no room for the copy.
    """

    def __init__(self, config: AskConfig, path: Path):
        self.name, self._path = config.teacher, path
        self._columns = (config.prompt_column, config.completion_column)
        self._answers = sqlite3.connect(PRIVATE_FILE, isolation_level=None, check_same_thread=False)
        try:
            self._read_all()
            self.sha256 = digests.of_file(path)
        except BaseException:
            self.close()
            raise

    def answer(self, request: ChatRequest) -> Answer:
        """The recorded answer to the last message; of several the one of the request's number."""
        prompt = request.messages[-1]["content"]
        key = digests.of_value(["recorded", self.sha256, prompt, request.sample_index])
        found = self._answers.execute(
            "select completion from answers where prompt = ? order by number limit 1 offset ?",
            (_key(prompt), request.sample_index),
        ).fetchone()
        if found is None:
            ((number,),) = self._answers.execute("select count(*) from answers where prompt = ?", (_key(prompt),))
            error = f"{self._path.name} has {number or 'no'} answer{'s' * (number > 1)} to this prompt"
            return Answer(status="failed", request_sha256=key, error=error)
        return Answer(
            status="answered", request_sha256=key, text=found[0], model=self.name, finish_reason="stop", cost_picousd=0
        )

    def close(self) -> None:
        self._answers.close()

    def _read_all(self) -> None:
        with _disk_told(self._path):
            for setting in ("journal_mode = off", "synchronous = off"):
                self._answers.execute(f"pragma {setting}")
            self._answers.execute("create table answers (number integer primary key, prompt blob, completion text)")
            self._answers.execute("begin")
            rows = ((_key(prompt), completion) for prompt, completion in self._rows())
            self._answers.executemany("insert into answers (prompt, completion) values (?, ?)", rows)
            self._answers.execute("create index by_prompt on answers (prompt)")
            self._answers.execute("commit")

    def _rows(self) -> Iterator[tuple[str, str]]:
        for number, row in enumerate(_read(self._path), start=1):
            missing = [name for name in self._columns if not isinstance(row.get(name), str)]
            if missing:
                hint = did_you_mean(missing[0], row)
                raise UserError(
                    f"{self._path}, row {number}: no text in '{missing[0]}'.{hint} It has {', '.join(row) or 'nothing'}; name "
                    "its columns with prompt_column and completion_column."
                )
            yield row[self._columns[0]], row[self._columns[1]]


def _read(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.is_file():
        raise UserError(
            f"recorded:{path} does not exist. It has to be a file of JSON lines, or Parquet, of prompts with answers."
        )
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet

        with parquet.ParquetFile(path, pre_buffer=False) as table:
            for batch in table.iter_batches(ROWS_A_BATCH):
                yield from batch.to_pylist()
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = orjson.loads(line)
                except orjson.JSONDecodeError as error:
                    raise UserError(f"{path}:{number}: not JSON: {error}. Each line has to be an object.") from None
                if not isinstance(row, dict):
                    raise UserError(f"{path}:{number}: not an object.")
                yield row


def _key(prompt: str) -> bytes:
    return hashlib.sha256(prompt.encode()).digest()[:16]


@contextlib.contextmanager
def _disk_told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise NexaError(
            f"recorded:{path} is copied to the folder for temporary files (TMPDIR): {error}. Make room there, or name another."
        ) from None
