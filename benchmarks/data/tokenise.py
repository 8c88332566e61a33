"""Tokenising and packing beside `tokenizers`' own `encode_batch_fast`, on the same texts and cores; compares every id.

    python benchmarks/data/tokenise.py --data gsm8k_train.jsonl --columns question answer
    python benchmarks/data/tokenise.py --data ag_news.csv --columns 1 2

A tokenizer of `--vocab-size` tokens is trained on the file as `prepare` does it. The file's texts are repeated, each time with a
number behind them, until there are `--megabytes` of them. `encode_batch_fast` gets them in batches and nothing is done with
what it returns, which is its best case; a second figure has its ids taken out as Python lists. Ours encodes, packs and writes
shards (fsync included) from a file of documents on disk, in processes of its own, whose start is in its time. The rounds are
interleaved; the first of ours is told apart, because its processes begin and learn the words in it.
"""

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet as parquet

from nexa_core.environment import cpu_name
from nexa_data.encoder import load_tokenizer
from nexa_data.sequences import Shard, TokenSequences
from nexa_data.tables import GROUP_ROWS
from nexa_data.tokenise import Marks, make_shards
from nexa_data.tokenizer import train_tokenizer

WIDTH = 1024
BATCH = 10_000
"""Texts that `encode_batch_fast` gets at once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines, or CSV without a header")
    parser.add_argument(
        "--columns", nargs="+", required=True, help="names, or of CSV numbers from 0; joined by a line end"
    )
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{cpu_name()}, {os.cpu_count()} cores, load {load:.1f} at the start; {datetime.now(UTC):%Y-%m-%d}")
    with tempfile.TemporaryDirectory() as scratch:
        compare(list(read_texts(given.data, given.columns)), given, Path(scratch))


def read_texts(path: Path, columns: list[str]) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as lines:
        if path.suffix == ".csv":
            yield from ("\n".join(row[int(column)] for column in columns) for row in csv.reader(lines))
        else:
            yield from ("\n".join(row[column] for column in columns) for row in map(json.loads, lines))


def compare(texts: list[str], given: argparse.Namespace, folder: Path) -> None:
    texts = enlarged(texts, given.megabytes * 2**20)
    documents, shard, tokenizer_path = (
        folder / name for name in ("documents.parquet", "001.parquet", "tokenizer.json")
    )
    rows = [f"{number:016x}" for number in range(len(texts))]
    parquet.write_table(pyarrow.table({"row_id": rows, "completion": texts}), documents, row_group_size=GROUP_ROWS)
    trained = train_tokenizer([documents], given.vocab_size)
    tokenizer_path.write_text(trained.to_str())
    tokenizer = load_tokenizer(trained.to_str())
    marks = Marks(tokenizer.token_to_id("<|bos|>"), tokenizer.token_to_id("<|eos|>"))
    seconds: dict[str, list[float]] = {"encode_batch_fast": [], "encode_batch_fast, ids taken out": [], "ours": []}
    for number in range(given.rounds):
        for name, takes_ids in (("encode_batch_fast", False), ("encode_batch_fast, ids taken out", True)):
            began = time.perf_counter()
            for start in range(0, len(texts), BATCH):
                encoded = tokenizer.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False)
                if takes_ids:
                    [each.ids for each in encoded]
            seconds[name].append(time.perf_counter() - began)
        began = time.perf_counter()
        (written,) = make_shards(
            [(documents, shard)], tokenizer_path, marks, width=WIDTH, num_processes=os.cpu_count() or 1
        )
        seconds["ours"].append(time.perf_counter() - began)
        print(
            f"round {number + 1}: {', '.join(f'{name} {each[-1]:.2f} s' for name, each in seconds.items())}", flush=True
        )
    num_tokens = written.facts["tokens"] - 2 * len(texts)
    check_ids(texts, tokenizer, marks, TokenSequences([Shard.of(shard, written.facts)], width=WIDTH))
    wide = sum(not text.isascii() for text in texts) / len(texts)
    print(f"\n{len(texts):,} documents, {wide:.0%} of them not ASCII, {num_tokens:,} tokens; every id is the same\n")
    print("| contestant | million tokens/s | range | to encode_batch_fast |\n| --- | ---: | ---: | ---: |")
    base = statistics.median(seconds["encode_batch_fast"])
    seconds |= {"ours, first round": seconds["ours"][:1], "ours": seconds["ours"][1:] or seconds["ours"]}
    for name, each in seconds.items():
        rates = [num_tokens / one / 1e6 for one in each]
        ratio = base / statistics.median(each)
        print(f"| {name} | {statistics.median(rates):.2f} | {min(rates):.2f} to {max(rates):.2f} | {ratio:.2f} |")


def enlarged(texts: list[str], num_bytes: int) -> list[str]:
    found, size = [], 0
    for number in count():
        for text in texts:
            found.append(f"{text} {number}")
            size += len(found[-1])
        if size >= num_bytes:
            return found
    raise AssertionError


def check_ids(texts: list[str], tokenizer: object, marks: Marks, sequences: TokenSequences) -> None:
    """Hold all that was written against what the tokenizer says of one batch after the other."""
    written = np.concatenate(list(sequences.blocks()))
    begin = 0
    for start in range(0, len(texts), BATCH):
        for each in tokenizer.encode_batch_fast(texts[start : start + BATCH], add_special_tokens=False):  # type: ignore[attr-defined]
            expected = [marks.begin, *each.ids, marks.end]
            assert written[begin : begin + len(expected)].tolist() == expected, "ids differ"
            begin += len(expected)
    assert begin == len(written), "there are more ids than the documents have"


if __name__ == "__main__":
    main()
