"""Tokens that a server names by text and bytes are found in the vocabulary, however it spells them."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from nexa_core.errors import UserError
from nexa_llm.logprobs import TokenIds
from nexa_llm.token_bytes import bytes_by_id, id_by_bytes


def of_characters() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"<unk>": 0, "é": 1, "a": 2, "▁": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["<|eos|>"])
    return tokenizer


def of_bytes() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE({"Ġ": 0, "a": 1, "Ġa": 2, "Ã": 3, "©": 4}, [("Ġ", "a")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["Ġé"])
    return tokenizer


def of_pieces() -> Tokenizer:
    """Like Llama 2's: bytes have names of their own, also those that are characters of the vocabulary."""
    vocab = {"<unk>": 0, "<0x61>": 1, "<0x0A>": 2, "▁": 3, "a": 4, "▁a": 5}
    tokenizer = Tokenizer(models.BPE(vocab, [("▁", "a")], byte_fallback=True, unk_token="<unk>"))
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def test_a_token_is_spelled_as_its_tokenizer_decodes_it() -> None:
    assert bytes_by_id(of_characters()) == {0: b"<unk>", 1: "é".encode(), 2: b"a", 3: "▁".encode(), 4: b"<|eos|>"}
    assert bytes_by_id(of_bytes()) == {0: b" ", 1: b"a", 2: b" a", 3: b"\xc3", 4: b"\xa9", 5: "Ġé".encode()}
    assert bytes_by_id(of_pieces()) == {0: b"<unk>", 1: b"a", 2: b"\n", 3: b" ", 4: b"a", 5: b" a"}


def test_of_tokens_with_equal_bytes_the_one_that_text_is_encoded_with_is_found() -> None:
    ids = id_by_bytes(of_pieces())
    assert ids[b"a"] == 4 == of_pieces().encode("a").ids[0]
    assert ids[b"\n"] == 2


def test_tokens_of_an_answer_are_found_by_their_bytes(tmp_path: Path) -> None:
    of_characters().save(str(tmp_path / "tokenizer.json"))
    token_ids = TokenIds(tmp_path / "tokenizer.json")
    place = {"token": "é", "bytes": list("é".encode()), "logprob": -0.5, "top_logprobs": []}
    place["top_logprobs"] = [{"token": "a", "bytes": [97], "logprob": -0.4}, place | {"top_logprobs": []}]
    found = token_ids.read([place])
    assert (found.token_ids, found.top_ids) == ([1], [[2, 1]])
    with pytest.raises(UserError, match="no token of"):
        token_ids.read([place | {"token": "z", "bytes": [122]}])
