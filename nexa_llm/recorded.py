"""Answers from a file: what was collected elsewhere, or written by people."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from nexa_core import digests
from nexa_core.config.ask import AskConfig
from nexa_core.errors import UserError
from nexa_core.lookup import did_you_mean
from nexa_llm.chat import Answer, ChatRequest

ROWS_A_BATCH = 1024


class Recorded:
    """Finds the answer to a prompt by the prompt's digest. All answers of the file are held in memory."""

    def __init__(self, config: AskConfig, path: Path):
        self.name, self._path = config.teacher, path
        self._columns = (config.prompt_column, config.completion_column)
        self._answers: dict[bytes, list[str]] = {}
        for prompt, completion in self._rows():
            self._answers.setdefault(_key(prompt), []).append(completion)
        self.sha256 = digests.of_file(path)

    def answer(self, request: ChatRequest) -> Answer:
        """The recorded answer to the last message; of several the one of the request's number."""
        prompt = request.messages[-1]["content"]
        found = self._answers.get(_key(prompt), [])
        key = digests.of_value(["recorded", self.sha256, prompt, request.sample_index])
        if request.sample_index >= len(found):
            error = f"{self._path.name} has {len(found) or 'no'} answer{'s' * (len(found) > 1)} to this prompt"
            return Answer(status="failed", request_sha256=key, error=error)
        text = found[request.sample_index]
        return Answer(
            status="answered", request_sha256=key, text=text, model=self.name, finish_reason="stop", cost_picousd=0
        )

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

        for batch in parquet.ParquetFile(path).iter_batches(ROWS_A_BATCH):
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
