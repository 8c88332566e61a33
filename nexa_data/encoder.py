"""Texts to token ids, exactly those of the tokenizer itself, each distinct word being asked for once only."""

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tokenizers import Tokenizer

from nexa_core import digests

ID_DTYPE = np.dtype("<i4")
CHUNK = 1024
"""Texts that the tokenizer encodes at once."""
MOST_WORDS = 2**19
"""Words that are remembered, some 100 MB of them; then it begins anew."""
MOST_WORD_CHARS = 64
"""Longer ones, which hardly come again, are not remembered."""
BLOCK, MOST_BLOCKS = 4096, 16
"""Characters are learned in blocks, which takes milliseconds each, and after so many the rest together, in a second."""
ASCII_END, UNICODE_END = 0x80, 0x110000
SURROGATES = range(0xD800, 0xE000)
Splitter = Callable[[str], list[str]]
GPT2_WORDS = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


@functools.lru_cache(maxsize=4)
def load_tokenizer(tokenizer_json: str) -> Tokenizer:
    """A tokenizer that reads a text as letters and nothing else, and all of it.

    A text that spells "<|eos|>" out does not end a sequence, and what a file says of cutting and padding is not done.
    """
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@functools.lru_cache(maxsize=4)
def encoding_digest(tokenizer_json: str) -> str:
    """The digest of what decides the ids of a text; tokenizers that differ in what they do beside that share it."""
    value = json.loads(load_tokenizer(tokenizer_json).to_str())
    return digests.of_value({key: value[key] for key in ("added_tokens", "normalizer", "pre_tokenizer", "model")})


@functools.lru_cache(maxsize=2)
def open_encoder(tokenizer_json: str) -> "Encoder":
    """The quickest encoder of this tokenizer; a process keeps what it has learned of it."""
    tokenizer = load_tokenizer(tokenizer_json)
    return WordEncoder(tokenizer) if splits_into_words(tokenizer_json) else Encoder(tokenizer)


class Encoder:
    """Encodes with the tokenizer itself."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer

    def encode(self, texts: Sequence[str]) -> Iterator[bytes]:
        """The ids of each text and nothing around them, as bytes of `ID_DTYPE`."""
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            for encoding in self._tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
                yield np.array(encoding.ids, dtype=ID_DTYPE).tobytes()


class WordEncoder(Encoder):
    """Cuts texts into words as GPT-2's pattern does and remembers the ids that the tokenizer gives each word.

    The ids are the tokenizer's: no word's depend on its neighbours, and a word that stands alone is cut no further. What is
    a letter, a digit or a space is the tokenizer's too: it is asked for every character, not a table of another library.
    """

    def __init__(self, tokenizer: Tokenizer):
        super().__init__(tokenizer)
        self._alphabet = _Alphabet(tokenizer)
        self._ids_of = _Words(tokenizer, self._alphabet)
        self._split_ascii, self._split_any = self._splitters()

    def encode(self, texts: Sequence[str]) -> Iterator[bytes]:
        return map(self._encode, texts)

    def _encode(self, text: str) -> bytes:
        split = self._split_ascii if text.isascii() else self._split_any
        try:
            return b"".join(map(self._ids_of.__getitem__, split(text)))
        except _UnknownError as unknown:
            self._alphabet.learn(unknown.character)
            self._split_ascii, self._split_any = self._splitters()
            return self._encode(text)

    def _splitters(self) -> tuple[Splitter, Splitter]:
        return re.compile(_pattern(self._alphabet.ascii)).findall, re.compile(_any_pattern(self._alphabet)).findall


class _UnknownError(Exception):
    """A character that the alphabet does not have yet."""

    def __init__(self, character: str):
        super().__init__(character)
        self.character = character


class _Words(dict[str, bytes]):
    """The ids of each word so far; asks the tokenizer for a new one's."""

    def __init__(self, tokenizer: Tokenizer, alphabet: "_Alphabet"):
        super().__init__()
        self._tokenizer, self._alphabet = tokenizer, alphabet

    def __missing__(self, word: str) -> bytes:
        if word[0] not in self._alphabet:
            raise _UnknownError(word[0])
        ids = np.array(self._tokenizer.encode(word, add_special_tokens=False).ids, dtype=ID_DTYPE).tobytes()
        if len(word) <= MOST_WORD_CHARS:
            if len(self) >= MOST_WORDS:
                self.clear()
            self[word] = ids
        return ids


class _Classes(NamedTuple):
    """Characters by class, each as it stands in the brackets of a pattern."""

    letters: str
    digits: str
    spaces: str
    others: str


class _Alphabet:
    """What the tokenizer takes for a letter, a digit or a space, learned of it block by block of Unicode as characters appear."""

    def __init__(self, tokenizer: Tokenizer):
        self._cut = tokenizer.pre_tokenizer.pre_tokenize_str
        self._blocks: set[int] = set()
        self.ascii = self.seen = self._ask((code, code) for code in range(ASCII_END))

    def __contains__(self, character: str) -> bool:
        return character.isascii() or ord(character) // BLOCK in self._blocks

    def learn(self, character: str) -> None:
        """The block of a character; when many are known, all that are left."""
        blocks = {ord(character) // BLOCK} if len(self._blocks) < MOST_BLOCKS else set(range(UNICODE_END // BLOCK))
        for block in sorted(blocks - self._blocks):
            codes = range(max(block * BLOCK, ASCII_END), (block + 1) * BLOCK)
            text = "".join(chr(code) for code in codes if code not in SURROGATES)
            spans = (span for _, span in self._cut(text)) if text else ()
            found = self._ask((ord(text[begin]), ord(text[end - 1])) for begin, end in spans)
            self.seen = _Classes(*map("".join, zip(self.seen, found, strict=True)))
        self._blocks |= blocks

    def _ask(self, runs: Iterable[tuple[int, int]]) -> _Classes:
        """The classes of runs of characters, first and last, each of which is all of one: as what is put before them shows."""
        found: dict[str, str] = {"a": "", "1": "", " ": "", "!": ""}
        for first, last in runs:
            kinds = [kind for kind in ("a", "1", "!") if len(self._cut(kind + chr(first))) == 1]
            assert len(kinds) <= 1, f"U+{first:04X} belongs to several classes"
            found[kinds[0] if kinds else " "] += f"\\U{first:08x}-\\U{last:08x}"
        return _Classes(*found.values())


def splits_into_words(tokenizer_json: str) -> bool:
    """Whether all that stands before the tokenizer's model is GPT-2's pattern, so that `WordEncoder` fits."""
    value = json.loads(tokenizer_json)
    before = {key: setting for key, setting in (value["pre_tokenizer"] or {}).items() if key != "trim_offsets"}
    model = value["model"]
    return (
        value["normalizer"] is None
        and before == GPT2_WORDS
        and model.get("type") == "BPE"
        and not model.get("dropout")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and all(token["special"] for token in value["added_tokens"])  # others are looked for in the text first
    )


# GPT-2's words: ` ?` and a run of letters, of digits, or of what is neither; the endings 's, 't, ...; and spaces, of which the
# last before a word is its own. The endings come before the runs of other characters and after nothing that begins alike, so
# the order is free, and the commonest come first. Source: Radford et al. 2019, github.com/openai/gpt-2 (encoder.py), whose
# pattern is `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`.
ENDINGS = "'(?:[stmd]|re|ve|ll)"


def _pattern(classes: _Classes, ends: str = "") -> str:
    letters, digits, spaces, others = classes
    words = f" ?[{letters}]++{ends}| ?[{digits}]++{ends}|{ENDINGS}| ?[{others}]++{ends}"
    return words if ends else f"{words}|[{spaces}]+(?![^{spaces}])|[{spaces}]+"


def _any_pattern(alphabet: _Alphabet) -> str:
    """For any text; a character that is not in the alphabet yet is a word by itself.

    Runs of ASCII that end before ASCII are tried first, because small classes are quick to look up.
    """
    quick = _pattern(alphabet.ascii, ends=f"(?![^\\x00-\\x{ASCII_END - 1:02x}])")
    return f"{quick}|{_pattern(alphabet.seen)}|[^{''.join(alphabet.seen)}]"
