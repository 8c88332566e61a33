"""How the simulator counts and cuts text: pieces of four bytes, or the tokens of a tokenizer.json."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tokenizers import Tokenizer

from nexa_core.errors import UserError
from nexa_llm.token_bytes import bytes_by_id

BYTES_PER_TOKEN = 4
TOKENS_PER_MESSAGE = 4


@dataclass(frozen=True, slots=True)
class Taken:
    """As much of a text as fits."""

    text: str
    pieces: Sequence[bytes]
    """The bytes of each token."""
    is_whole: bool


class Tokens(Protocol):
    @property
    def vocabulary(self) -> Sequence[bytes]:
        """What could stand in the place of any token."""

    def take(self, text: str, max_tokens: int | None) -> Taken:
        """The beginning of `text` that has at most so many tokens."""


def count_prompt_tokens(messages: Sequence[tuple[str, str]], tools: bytes) -> int:
    """A quarter of the UTF-8 bytes of each message, rounded up, and 4; tools likewise, without the 4.

    So never more than the bytes and 8 per message, whichever tokenizer counts the answers.
    """
    texts = sum(_quarter(len(text.encode())) + TOKENS_PER_MESSAGE for _, text in messages)
    return texts + _quarter(len(tools))


def _quarter(num_bytes: int) -> int:
    return -(-num_bytes // BYTES_PER_TOKEN)


class BytePieces:
    """Each four bytes of UTF-8 are a token, so that the count is the bytes / 4, rounded up."""

    def __init__(self, vocabulary: Sequence[bytes]):
        self.vocabulary = vocabulary

    def take(self, text: str, max_tokens: int | None) -> Taken:
        data = text.encode()
        kept = data if max_tokens is None else data[: max_tokens * BYTES_PER_TOKEN]
        pieces = [kept[begin : begin + BYTES_PER_TOKEN] for begin in range(0, len(kept), BYTES_PER_TOKEN)]
        if len(kept) == len(data):
            return Taken(text, pieces, is_whole=True)
        return Taken(kept.decode(errors="ignore"), pieces, is_whole=False)


class FileTokens:
    """The tokens of a tokenizer.json: byte-level, or with SentencePiece's word marks and byte names."""

    def __init__(self, path: Path):
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises this very class
            raise UserError(f"Cannot read the tokenizer {path}: {error}. Give a tokenizer.json.") from error
        self._bytes_by_id = bytes_by_id(self._tokenizer)
        special = {index for index, token in self._tokenizer.get_added_tokens_decoder().items() if token.special}
        self.vocabulary = [data for index, data in sorted(self._bytes_by_id.items()) if index not in special]

    def take(self, text: str, max_tokens: int | None) -> Taken:
        encoding = self._tokenizer.encode(text, add_special_tokens=False)
        ids = encoding.ids[:max_tokens]
        pieces = [self._bytes_by_id[index] for index in ids]
        if len(ids) == len(encoding.ids):
            return Taken(text, pieces, is_whole=True)
        return Taken(text[: encoding.offsets[len(ids) - 1][1]], pieces, is_whole=False)
