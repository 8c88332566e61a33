"""Texts to token ids, exactly those of the tokenizer itself, each distinct word being asked for once only."""

import functools
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

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
WIDE_FROM_CHARS = 2 * 2**20
"""So many characters of texts that are not ASCII take the tokenizer as long as learning its classes of all characters does."""
ASCII_END, UNICODE_END = 0x80, 0x110000
SURROGATES = range(0xD800, 0xE000)
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
        self._ids_of = _Words(tokenizer)
        self._split_ascii = re.compile(_ascii_pattern(tokenizer)).findall
        self._split_any: Any = None
        self._num_wide_chars = 0

    def encode(self, texts: Sequence[str]) -> Iterator[bytes]:
        ids_of = self._ids_of.__getitem__
        for text in texts:
            split = self._split_ascii if text.isascii() else self._wide_split(text)
            yield next(super().encode([text])) if split is None else b"".join(map(ids_of, split(text)))

    def _wide_split(self, text: str) -> Any:
        """What cuts texts of any characters; None while there were too few of them to make it."""
        if self._split_any is None:
            self._num_wide_chars += len(text)
            if self._num_wide_chars >= WIDE_FROM_CHARS:
                self._split_any = re.compile(_pattern(self._tokenizer)).findall
        return self._split_any


class _Words(dict[str, bytes]):
    """The ids of each word so far; asks the tokenizer for a new one's."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__()
        self._tokenizer = tokenizer

    def __missing__(self, word: str) -> bytes:
        ids = np.array(self._tokenizer.encode(word, add_special_tokens=False).ids, dtype=ID_DTYPE).tobytes()
        if len(word) <= MOST_WORD_CHARS:
            if len(self) >= MOST_WORDS:
                self.clear()
            self[word] = ids
        return ids


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


def _ascii_pattern(tokenizer: Tokenizer) -> str:
    letters, digits, spaces, others = _classes(tokenizer, ((code, code) for code in range(ASCII_END)))
    return f" ?[{letters}]++| ?[{digits}]++|{ENDINGS}| ?[{others}]++|{_spaces(spaces)}"


def _pattern(tokenizer: Tokenizer) -> str:
    """For any text. Runs of ASCII that end before ASCII are tried first, because small classes are quick to look up."""
    letters, digits, _, others = _classes(tokenizer, ((code, code) for code in range(ASCII_END)))
    ends = f"(?![^\\x00-\\x{ASCII_END - 1:02x}])"
    first = f" ?[{letters}]++{ends}| ?[{digits}]++{ends}|{ENDINGS}| ?[{others}]++{ends}"
    letters, digits, spaces, others = _classes(tokenizer, _runs(tokenizer))
    return f"{first}| ?[{letters}]++| ?[{digits}]++| ?[{others}]++|{_spaces(spaces)}"


def _spaces(spaces: str) -> str:
    """Spaces up to the last before a word, or that last one by itself."""
    return f"[{spaces}]+(?![^{spaces}])|[{spaces}]+"


def _runs(tokenizer: Tokenizer) -> Iterator[tuple[int, int]]:
    """First and last of runs of characters that are all of one class, as the tokenizer cuts the whole of Unicode."""
    yield from ((code, code) for code in range(ASCII_END))
    everything = "".join(chr(code) for code in range(ASCII_END, UNICODE_END) if code not in SURROGATES)
    for _, (begin, end) in tokenizer.pre_tokenizer.pre_tokenize_str(everything):
        first, last = ord(everything[begin]), ord(everything[end - 1])
        if first < SURROGATES.start <= last:  # no text has them, and no range may span them
            yield first, SURROGATES.start - 1
            first = SURROGATES.stop
        yield first, last


def _classes(tokenizer: Tokenizer, runs: Iterator[tuple[int, int]]) -> tuple[str, str, str, str]:
    """Letters, digits, spaces and others among these runs, as what stands in the brackets of a pattern."""
    found: dict[str, list[str]] = {"a": [], "1": [], " ": [], "!": []}
    for first, last in runs:
        character = chr(first)
        kinds = [
            kind for kind in ("a", "1", "!") if len(tokenizer.pre_tokenizer.pre_tokenize_str(kind + character)) == 1
        ]
        assert len(kinds) <= 1, f"U+{first:04X} belongs to several classes"
        found[kinds[0] if kinds else " "].append(f"\\U{first:08x}-\\U{last:08x}")
    return "".join(found["a"]), "".join(found["1"]), "".join(found[" "]), "".join(found["!"])
