"""Which tokens of a dataset's tokenizer mark the ends of a text, for a model that is made from sizes."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer

from nexa_core.errors import UserError
from nexa_data.datasets import Dataset
from nexa_data.encoder import load_tokenizer
from nexa_data.tokenizer import BEGIN, END, SPECIAL_TOKENS

# The usual names, ours first. Source: the tokenizers of GPT-2, Llama 2 and 3, T5, RoBERTa, Gemma, BERT and what follows them.
END_NAMES = (END, "<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")
BEGIN_NAMES = (BEGIN, "<|begin_of_text|>", "<|startoftext|>", "<s>", "<bos>", "[BOS]", "[CLS]")
PADDING_NAMES = (SPECIAL_TOKENS[0], "<pad>", "[PAD]")
MOST_SHOWN = 20


@dataclass(frozen=True)
class SpecialIds:
    padding: int
    begin: int | None
    """What stands in front of a sequence; None where nothing does."""
    end: int


def find_marks(dataset: Dataset, tokenizer_json: str) -> SpecialIds | None:
    """The marks of a tokenizer that was loaded from a file; None where they are ours, as those of a trained one are.

    They are those of the dataset's token sequences, else what `tokenizer.begin` and `tokenizer.end` name, else the one special
    token that has a usual name. Where none is for padding, the end's token serves, as nothing learns from padding.

    Raises:
        UserError: no token, or more than one, may be meant, or the ids have gaps.
    """
    settings = dataset.manifest["config"].get("tokenizer") or {}
    if "path" not in settings:
        return None
    tokenizer = load_tokenizer(tokenizer_json)
    num_tokens, highest = tokenizer.get_vocab_size(), max(tokenizer.get_vocab().values())
    if highest >= num_tokens:
        raise UserError(
            f"The tokenizer of {dataset.key} has {num_tokens} tokens and ids up to {highest}; a model made from sizes embeds one "
            "id for each token. Number them without gaps, or have one trained here (`tokenizer: {vocab_size: 4096}`)."
        )
    if dataset.sequence_tokens is not None:
        begin, end = dataset.sequence_marks
    else:
        begin, end = _begin(dataset, settings, tokenizer), _end(dataset, settings, tokenizer)
    special = _special(tokenizer)
    found = SpecialIds(next((special[name] for name in PADDING_NAMES if name in special), end), begin, end)
    return None if found == _ours(special) else found


def _ours(special: Mapping[str, int]) -> SpecialIds | None:
    ids = [special[name] for name in SPECIAL_TOKENS if name in special]
    return SpecialIds(*ids) if len(ids) == len(SPECIAL_TOKENS) else None


def _end(dataset: Dataset, settings: Mapping[str, Any], tokenizer: Tokenizer) -> int:
    stated = tokenizer.token_to_id(settings.get("end", END))
    if stated is not None:
        return int(stated)
    found = _usual(tokenizer, END_NAMES)
    if len(found) != 1:
        raise UserError(_which(dataset, tokenizer, "end", found, "behind", END_NAMES))
    return next(iter(found.values()))


def _begin(dataset: Dataset, settings: Mapping[str, Any], tokenizer: Tokenizer) -> int | None:
    name = settings.get("begin", BEGIN)
    if name is None:
        return None
    stated = tokenizer.token_to_id(name)
    if stated is not None:
        return int(stated)
    found = _usual(tokenizer, BEGIN_NAMES)
    if len(found) > 1:
        raise UserError(_which(dataset, tokenizer, "begin", found, "in front of", BEGIN_NAMES))
    return next(iter(found.values()), None)


def _usual(tokenizer: Tokenizer, names: Sequence[str]) -> dict[str, int]:
    special = _special(tokenizer)
    return {name: special[name] for name in names if name in special}


def _which(
    dataset: Dataset, tokenizer: Tokenizer, setting: str, found: Iterable[str], where: str, names: Sequence[str]
) -> str:
    """The sentence that asks for a setting."""
    some = f"several tokens for what stands {where} a text: {', '.join(found)}"
    has = some if found else f"no token under a usual name ({', '.join(names)}) for what stands {where} a text"
    special = list(_special(tokenizer))
    shown = ", ".join(special[:MOST_SHOWN]) + (
        f" and {len(special) - MOST_SHOWN} more" if len(special) > MOST_SHOWN else ""
    )
    return (
        f"The tokenizer of {dataset.key} has {has}. Its special tokens: {shown or 'none'}. Name the one that a model made from "
        f"sizes is to use as `tokenizer.{setting}` in the dataset's config, and prepare it as a new version."
    )


def _special(tokenizer: Tokenizer) -> dict[str, int]:
    added = tokenizer.get_added_tokens_decoder()
    return {token.content: index for index, token in sorted(added.items()) if token.special}
