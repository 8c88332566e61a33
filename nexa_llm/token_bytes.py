"""The bytes of text that each token of a tokenizer stands for, which its name in the vocabulary only hints at."""

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what only those load who read a teacher's log probabilities
    from tokenizers import Tokenizer

WORD_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
BYTE_NAME = re.compile(r"<0x([0-9A-F]{2})>")


def bytes_by_id(tokenizer: "Tokenizer") -> dict[int, bytes]:
    """By the tokenizer's own decoder: byte-level, SentencePiece's marks and byte names, or plain text.

    The name alone does not say it: ``é`` is one byte of a byte-level vocabulary, and two of one of characters.
    """
    file = json.loads(tokenizer.to_str())
    kinds = set(_kinds(file.get("decoder"), "decoders")) | set(_kinds(file.get("pre_tokenizer"), "pretokenizers"))
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}

    def spelled(name: str) -> bytes:
        if "ByteLevel" in kinds and name not in added and all(char in BYTE_BY_CHAR for char in name):
            return bytes(BYTE_BY_CHAR[char] for char in name)
        if "ByteFallback" in kinds and (found := BYTE_NAME.fullmatch(name)):
            return bytes([int(found[1], 16)])
        if kinds & {"Metaspace", "Replace"} and name not in added:
            return name.replace(WORD_MARK, " ").encode()
        return name.encode()

    return {index: spelled(name) for name, index in tokenizer.get_vocab(with_added_tokens=True).items()}


def id_by_bytes(tokenizer: "Tokenizer") -> dict[bytes, int]:
    """The token that has just these bytes; of several the one that text is encoded with, so that names of bytes come last."""
    names = {index: name for name, index in tokenizer.get_vocab(with_added_tokens=True).items()}
    spelled = bytes_by_id(tokenizer)
    found: dict[bytes, int] = {}
    for index in sorted(names, key=lambda index: (BYTE_NAME.fullmatch(names[index]) is not None, index)):
        found.setdefault(spelled[index], index)
    return found


def _kinds(part: dict[str, Any] | None, below: str) -> list[str]:
    if part is None:
        return []
    return [part["type"], *(kind for each in part.get(below, ()) for kind in _kinds(each, below))]


def _byte_by_char() -> dict[str, int]:
    """The printable characters that stand for bytes in the names of byte-level tokens.

    Source: bytes_to_unicode in https://github.com/openai/gpt-2/blob/master/src/encoder.py
    """
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + rank): byte for rank, byte in enumerate(others)}


BYTE_BY_CHAR = _byte_by_char()
