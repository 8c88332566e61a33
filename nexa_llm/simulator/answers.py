"""What the simulator says: words drawn from the request's digest, or the answers of a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson

from nexa_core.errors import UserError
from nexa_llm.simulator.request import BadRequest, ChatAsked

COMMON = (
    "a again all and answer any as at because before begin both but by can count each end even every first for from "
    "give given half hence if in is it keep last least less let many mean more most much must next no not now of on "
    "once one only or other out over part per read rest same see shows since so some step sum take than that the "
    "then there these they this three thus to two up we what when where which while with write yet you"
)
WORDS = COMMON.split()
FEWEST_WORDS, MOST_WORDS = 8, 48
TEXT_NAMES = ("completion", "answer")


class Answerer(Protocol):
    def answer(self, asked: ChatAsked, digest: bytes) -> str:
        """The whole text; a pure function of the request."""


class DrawnWords:
    """Sentences without sense, of 8 to 48 words."""

    def answer(self, asked: ChatAsked, digest: bytes) -> str:
        number = int.from_bytes(digest)
        count = FEWEST_WORDS + number % (MOST_WORDS - FEWEST_WORDS + 1)
        words = []
        for _ in range(count):
            number = (number * 6364136223846793005 + 1442695040888963407) % 2**64  # Knuth's MMIX constants
            words.append(WORDS[(number >> 33) % len(WORDS)])
        return f"{' '.join(words).capitalize()}."


class AnswerFile:
    """The answers of JSON lines with `prompt` and `completion` or `answer`, found by the last user message.

    Of several answers to a prompt the first is given at temperature 0, and one of them, by the sampling seed, above.
    """

    def __init__(self, path: Path):
        self._path = path
        self._answers: dict[str, list[str]] = {}
        for number, line in enumerate(_lines(path), 1):
            if line.strip():
                prompt, answer = _pair(line, f"{path}:{number}")
                self._answers.setdefault(prompt, []).append(answer)

    def answer(self, asked: ChatAsked, digest: bytes) -> str:
        known = self._answers.get(asked.last_user_text())
        if known is None:
            raise BadRequest(
                f"{self._path} has no answer to the last user message.", param="messages", code="no_answer"
            )
        return known[int.from_bytes(digest) % len(known)] if asked.temperature else known[0]


def vocabulary() -> Sequence[bytes]:
    """What could have stood in place of a drawn word."""
    return [f" {word}".encode() for word in WORDS]


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"Cannot read the answers {path}: {error.strerror}") from error


def _pair(line: bytes, where: str) -> tuple[str, str]:
    try:
        row: Any = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise UserError(f'{where} has no text \'prompt\'. A line is like {{"prompt": ..., "completion": ...}}')
    texts = [row[name] for name in TEXT_NAMES if isinstance(row.get(name), str)]
    if len(texts) != 1:
        raise UserError(f"{where} has to have either a text 'completion' or a text 'answer'.")
    return row["prompt"], texts[0]
