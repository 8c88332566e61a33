"""A dataset's tokenizer, trained on its rows or loaded from a file, and the token sequences that are made with it."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nexa_core import digests, durable
from nexa_core.config.data import DatasetConfig
from nexa_core.config.tokenizer import LoadedTokenizer, TokenizerConfig
from nexa_core.errors import UserError
from nexa_core.lookup import did_you_mean
from nexa_core.paths import Layout
from nexa_data import manifests
from nexa_data.engines import Means
from nexa_data.places import Places
from nexa_data.reuse import find_reusable, making_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from nexa_data.tokenise import Marks

logger = logging.getLogger(__name__)


def tokenizer_origins(config: DatasetConfig, layout: Layout) -> list[dict[str, Any]]:
    """The file of a tokenizer that is loaded, like a source's: name, size and digest; nothing where none is.

    Raises:
        UserError: there is no such file, or its tokenizer does not fit what it is for.
    """
    if not isinstance(config.tokenizer, LoadedTokenizer):
        return []
    path = layout.find(config.tokenizer.path)
    tokenizer = _load(path)
    if getattr(config.output, "sequence_tokens", None) is not None:
        _marks(tokenizer, config)
    else:
        for setting in sorted(config.tokenizer.model_fields_set & {"begin", "end"}):
            if (token := getattr(config.tokenizer, setting)) is not None:
                _id_of(token, tokenizer, setting)
    return [{"file": layout.relative(path), "bytes": path.stat().st_size, "sha256": digests.of_file(path)}]


def make_tokenizer(places: Places, splits: list[str], origins: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The record of the dataset's tokenizer, trained on `splits` or loaded; None where none is asked for.

    Raises:
        UserError: the file that is loaded is no longer the one among the `origins`.
    """
    config = places.config.tokenizer
    if config is None:
        return None
    if isinstance(config, LoadedTokenizer) and tokenizer_origins(places.config, places.layout)[0] not in origins:
        raise UserError(f"{config.path} changed while rows were read; run the command again.")
    files = [places.split(split) for split in splits]
    return write_tokenizer(config, places.layout, places.tokenizer, files, key=places.config.key)


def write_tokenizer(
    config: TokenizerConfig, layout: Layout, target: Path, files: list[Path], *, key: str
) -> dict[str, Any]:
    """Train a tokenizer on the rows of some files, or load one, and write it to `target`; its record in a manifest.

    Raises:
        UserError: the file that is loaded is no tokenizer.
    """
    if isinstance(config, LoadedTokenizer):
        tokenizer = _load(layout.find(config.path))
    else:
        tokenizer = _train(files, config.vocab_size, key)
    durable.write_bytes(target, tokenizer.to_str().encode("utf-8"))  # no text to blank secrets in: tokens may be words
    return manifests.describe_file(layout, target, vocab_size=tokenizer.get_vocab_size())


def make_sequences(
    places: Places, manifest: manifests.Manifest, means: Means, standing: list[manifests.Stood]
) -> dict[str, Any] | None:
    """Write the shards of token sequences, one for each of documents, and return their record; None where none are asked for.

    Args:
        manifest: the dataset's, with all but these.
        standing: the datasets that it replaces, whose shards serve again where they would come out the same.

    Raises:
        UserError: the tokenizer finds the mark of a document's end inside one.
    """
    width = getattr(places.config.output, "sequence_tokens", None)
    if width is None:
        return None
    import numpy as np

    from nexa_data.sequences import added, count_targets_of, write_target_counts
    from nexa_data.tokenise import make_shards

    path = places.layout.absolute(manifest["tokenizer"]["path"])
    marks = _marks(_load(path), places.config)
    record: dict[str, Any] = {"width": width, "begin": marks.begin, "end": marks.end, "shards": {}}
    documents = {split: manifest["splits"][split]["sha256"] for split in manifests.training_splits(manifest)}
    reusable = find_reusable(places, standing, documents, making_of({**manifest, "sequences": record}) or {})
    files = [(places.split(split), places.shard(split)) for split in documents if split not in reusable]
    written = make_shards(files, path, marks, width=width, num_processes=means.num_processes)
    target_counts_V = np.zeros(0, dtype=np.int64)
    for split in documents:
        target = places.shard(split)
        if split in reusable:
            durable.keep(reusable[split].path, target)
            record["shards"][split] = {**reusable[split].record, "path": places.layout.relative(target)}
            more = count_targets_of(target, width)
        else:
            shard = next(written)
            record["shards"][split] = manifests.describe_file(places.layout, target, **shard.facts)
            more = shard.target_counts_V
        target_counts_V = added(target_counts_V, more)
    write_target_counts(places.target_counts, target_counts_V)
    num_targets = int(target_counts_V.sum())
    record["targets"] = manifests.describe_file(places.layout, places.target_counts, targets=num_targets)
    num_tokens = sum(shard["tokens"] for shard in record["shards"].values())
    before = f"; {len(reusable)} of {len(documents)} shards are those of before" if reusable else ""
    logger.info("%s: %s tokens in sequences of %s%s", places.config.key, f"{num_tokens:,}", f"{width:,}", before)
    return record


def _load(path: Path) -> "Tokenizer":
    from nexa_data.encoder import load_tokenizer

    try:
        return load_tokenizer(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"tokenizer.path: {path} cannot be read ({error.strerror}).") from None
    except Exception as error:  # noqa: BLE001 -- tokenizers raises plain Exception for a malformed file
        raise UserError(f"tokenizer.path: {path} cannot be used: {str(error).strip().splitlines()[0]}") from None


def _train(files: list[Path], wanted: int, key: str) -> "Tokenizer":
    from nexa_data.tokenizer import train_tokenizer

    tokenizer = train_tokenizer(files, wanted)
    if tokenizer.get_vocab_size() < wanted:
        logger.warning(
            "%s: the training text yields %s tokens, fewer than tokenizer.vocab_size %s",
            key, tokenizer.get_vocab_size(), wanted,
        )  # fmt: skip
    return tokenizer


def _marks(tokenizer: "Tokenizer", config: DatasetConfig) -> "Marks":
    """The ids that stand around each document.

    Raises:
        UserError: the tokenizer has no such token, or reads it out of mere text, or has one for both.
    """
    from nexa_data.tokenise import Marks
    from nexa_data.tokenizer import BEGIN, END

    loaded = config.tokenizer
    begin, end = (loaded.begin, loaded.end) if isinstance(loaded, LoadedTokenizer) else (BEGIN, END)
    found = Marks(None if begin is None else _id_of(begin, tokenizer, "begin"), _id_of(end, tokenizer, "end"))
    if found.begin == found.end:
        others = [token for token in _special(tokenizer) if tokenizer.token_to_id(token) != found.end]
        raise UserError(
            f"tokenizer.begin '{begin}' and tokenizer.end '{end}' are the same id, {found.end}, so that a document's end could "
            "not be told from its beginning. Set `begin: null` (nothing stands in front of a document), or one of the two to "
            f"another special token: {', '.join(others) or 'there is none'}."
        )
    return found


def _special(tokenizer: "Tokenizer") -> list[str]:
    return [each.content for each in tokenizer.get_added_tokens_decoder().values() if each.special]


def _id_of(token: str, tokenizer: "Tokenizer", setting: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        special = _special(tokenizer)
        hint = did_you_mean(token, special)
        raise UserError(
            f"tokenizer.{setting}: the tokenizer has no token '{token}'.{hint} Its special ones: {', '.join(special) or 'none'}."
        )
    if found in tokenizer.encode(token, add_special_tokens=False).ids:
        raise UserError(
            f"tokenizer.{setting}: the tokenizer reads '{token}' out of mere text as well, so that it marks nothing. Name a "
            "special token."
        )
    return found
