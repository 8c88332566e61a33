"""The quick encoder: always the ids that the tokenizer itself gives."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from nexa_data import encoder
from nexa_data.encoder import ID_DTYPE, SURROGATES, UNICODE_END, Encoder, WordEncoder, load_tokenizer, open_encoder
from nexa_data.tokenizer import SPECIAL_TOKENS
from tests.labs import WORDS

TEXTS = [
    *(" ".join(WORDS[start:] + WORDS[:start]) for start in range(len(WORDS))),
    "I'll, we've; it's 12,345.67 (don't) caf\u00e9 \u4e2d\u6587 \u00bd \u0663\u0664 na\u00efve\n\n  end  ",
]
SNIPPETS = [
    *(
        "'s",
        "'S",
        "'re",
        "'ve",
        "'ll",
        "'t'",
        "''",
        " '",
        "  ",
        "\n\n",
        "\t",
        "\r\n",
        "\x85",
        "\xa0",
        "\u3000",
        "\u2028",
    ),
    *(
        "<|eos|>",
        "<|bos|>",
        "the",
        " the",
        "12",
        " 12",
        "\u0301",
        "e\u0301",
        "\U0001f600\u200d",
        "\U00010400",
        "\u00b2",
        "_",
    ),
]
text = st.lists(st.one_of(st.sampled_from(SNIPPETS), st.text(max_size=5)), max_size=12).map("".join)


def trained(**changes: object) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(
            vocab_size=500,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return tokenizer


PLAIN = load_tokenizer(trained().to_str())


def ids_of(encoded: Iterator[bytes]) -> list[list[int]]:
    return [np.frombuffer(each, ID_DTYPE).tolist() for each in encoded]


def by_itself(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [tokenizer.encode(each, add_special_tokens=False).ids for each in texts]


@pytest.fixture(scope="module")
def quick() -> WordEncoder:
    return WordEncoder(PLAIN)


@given(texts=st.lists(text, max_size=5))
@settings(deadline=None, max_examples=300)
def test_any_text_has_the_tokenizers_own_ids(quick: WordEncoder, texts: list[str]) -> None:
    assert ids_of(quick.encode(texts)) == by_itself(PLAIN, texts)


def test_every_character_is_cut_off_its_neighbours_as_the_tokenizer_does_it(quick: WordEncoder) -> None:
    codes = [*range(0x3100), *range(0x3100, UNICODE_END, 61)]
    characters = [chr(code) for code in codes if code not in SURROGATES]
    texts = [f"a{each}1{each}!{each} {each}{each}\n{each}'{each}s " for each in characters]
    assert ids_of(quick.encode(texts)) == [
        each.ids for each in PLAIN.encode_batch_fast(texts, add_special_tokens=False)
    ]


def test_a_memory_that_overflows_changes_no_id(quick: WordEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "MOST_WORDS", 3)
    monkeypatch.setattr(encoder, "MOST_WORD_CHARS", 4)
    texts = [*TEXTS, *TEXTS[::-1]]
    fresh = WordEncoder(PLAIN)
    assert ids_of(fresh.encode(texts)) == by_itself(PLAIN, texts)
    assert len(fresh._ids_of) <= 3


def test_characters_are_learned_as_they_appear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "MOST_BLOCKS", 3)
    fresh = WordEncoder(PLAIN)
    texts = ["caf\u00e9 \u3000\u4e2d", "\u3000 \u4e2d", "x\U0001f600", "\U000e0041\ud7fb\uffff\U0010ffff a"]
    for number, each in enumerate(texts):
        assert ids_of(fresh.encode([each])) == by_itself(PLAIN, [each])
        assert ("\ue000" in fresh._alphabet) == (number >= 2)  # by then all of Unicode is known


def test_a_text_that_spells_a_special_token_out_does_not_end_there() -> None:
    end = PLAIN.token_to_id("<|eos|>")
    ((ids),) = ids_of(open_encoder(PLAIN.to_str()).encode(["a<|eos|>b"]))
    assert end not in ids
    assert len(ids) > 3


def with_a_word_of_its_own() -> Tokenizer:
    tokenizer = trained()
    tokenizer.add_tokens(["the cat"])
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer",
    [
        trained(normalizer=normalizers.NFC()),
        trained(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
        trained(
            pre_tokenizer=pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(r"\p{N}{1,3}|\s+|[^\s\p{N}]+"), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            )
        ),
        trained(pre_tokenizer=pre_tokenizers.Whitespace()),
        with_a_word_of_its_own(),
    ],
    ids=["normalizer", "prefix space", "other pattern", "no bytes", "added word"],
)
def test_other_tokenizers_encode_by_themselves(tokenizer: Tokenizer) -> None:
    opened = open_encoder(tokenizer.to_str())
    assert type(opened) is Encoder
    texts = [*TEXTS, "the cat e\u0301 123456"]
    assert ids_of(opened.encode(texts)) == by_itself(load_tokenizer(tokenizer.to_str()), texts)


def test_cutting_and_padding_that_a_file_asks_for_are_not_done() -> None:
    tokenizer = trained()
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=8)
    assert json.loads(tokenizer.to_str())["truncation"] is not None
    assert ids_of(open_encoder(tokenizer.to_str()).encode(TEXTS)) == by_itself(PLAIN, TEXTS)
