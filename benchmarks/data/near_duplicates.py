"""How fast near duplicates are found, and how many of those that were put in: recall, precision, memory, beside peers.

    python benchmarks/data/near_duplicates.py --data rows.jsonl news.csv
    python benchmarks/data/near_duplicates.py --data rows.jsonl news.csv --peers peers/bin/python    # beside others

The documents are the rows of the files, and as many rows with two fifths of their words exchanged as are needed; one in ten
has copies with up to six words exchanged, dropped or added. Which of them are near is computed here from their word
5-grams as texts, by code that shares nothing with any contestant. A contestant has them as a list of texts in memory, and
its time ends with the list of rows to leave out.
"""

import argparse
import csv
import itertools
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

import numpy

from nexa_core.config.overlaps import NearDuplicates
from nexa_core.environment import cpu_name
from nexa_data.minhash import band_keys, signatures
from nexa_data.near_duplicates import find_near_duplicates
from nexa_data.runs import Hashes

PEERS = ("datasketch", "rensa", "datatrove")
ROWS_AT_ONCE = 4096
SHARE_EXCHANGED = 0.4
SHARE_COPIED = 0.1
MAX_CHANGES = 6
NEAR, BARELY, NOT_WRONG, UNLIKE = 0.8, 0.83, 0.75, 0.3
"""Similarity of pairs that must be found, of the hardest of them, of rows that may be left out (contestants cut words a little
differently), and of documents that are not copies."""

Pair = tuple[int, int]


@dataclass(frozen=True)
class Corpus:
    """Documents, the similarity of the pairs of them that are near, and the rows that have a near one."""

    texts: list[str]
    pairs: dict[Pair, float]
    not_wrong: set[int]


def main() -> None:
    given = parse_arguments()
    print(
        f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; Python {sys.version.split()[0]}, ",
        end="",
    )
    print(f"numpy {numpy.__version__}; {datetime.now(UTC):%Y-%m-%d}")
    corpus = make_corpus(given.data, given.documents)
    characters = sum(map(len, corpus.texts)) / len(corpus.texts)
    print(
        f"{len(corpus.texts):,} documents of {characters:.0f} characters, {len(corpus.pairs):,} near pairs", flush=True
    )
    before = _peak_mib()
    for number in range(given.rounds):
        for processes in (1, given.processes):
            began = time.perf_counter()
            removed = ours(corpus.texts, processes)
            report(f"ours, {processes} processes, round {number + 1}", time.perf_counter() - began, corpus, removed)
    print(f"peak memory {_peak_mib()} MiB, {before} of it before the first round", flush=True)
    if given.peers is not None:
        part = corpus if given.peer_documents == given.documents else make_corpus(given.data, given.peer_documents)
        print(f"peers: {len(part.texts):,} documents")
        for name in given.only:
            seconds, rows = peer(given.peers, name, part.texts, given.processes)
            report(name, seconds, part, rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, nargs="+", required=True, help="JSON lines or CSV; all texts of a row are joined"
    )
    parser.add_argument("--documents", type=int, default=200_000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, help="the python of an environment with datasketch, rensa and datatrove")
    parser.add_argument("--peer-documents", type=int, default=20_000, help="the peers are slower")
    parser.add_argument("--only", nargs="+", choices=PEERS, default=PEERS, metavar="NAME", help=", ".join(PEERS))
    return parser.parse_args()


def ours(texts: list[str], processes: int) -> list[int]:
    """The rows to leave out; the keys are made in worker processes, which are started here."""
    parts = [texts[begin : begin + ROWS_AT_ONCE] for begin in range(0, len(texts), ROWS_AT_ONCE)]
    if processes == 1:
        keys = list(map(keys_of, parts))
    else:
        with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
            keys = list(pool.map(keys_of, parts))
    row_ids = [f"{number:016x}" for number in range(len(texts))]
    texts_of = lambda rows: [texts[row] for row in rows.tolist()]  # noqa: E731
    return find_near_duplicates(numpy.concatenate(keys), row_ids, texts_of, NearDuplicates()).rows.tolist()


def keys_of(texts: list[str]) -> Hashes:
    return band_keys(signatures(texts))


def peer(python: Path, name: str, texts: list[str], processes: int) -> tuple[float, list[int]]:
    """A peer's seconds and the rows it leaves out."""
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch) / "texts.json"
        given.write_text(json.dumps(texts), encoding="utf-8")
        script = Path(__file__).with_name("peer_near_duplicates.py")
        command = [str(python.absolute()), str(script), name, str(given), str(processes)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["seconds"], answer["removed"]


def report(name: str, seconds: float, corpus: Corpus, removed: list[int]) -> None:
    gone = set(removed)
    found = {pair: not gone.isdisjoint(pair) for pair in corpus.pairs}
    hardest = [found[pair] for pair, similarity in corpus.pairs.items() if similarity < BARELY]
    recall, of_hardest = sum(found.values()) / len(found), sum(hardest) / len(hardest)
    precision = len(gone & corpus.not_wrong) / max(len(gone), 1)
    rate = len(corpus.texts) / seconds
    print(f"{name}: {rate:,.0f} documents/s, recall {recall:.4f} (below {BARELY}: {of_hardest:.4f}), ", end="")
    print(f"precision {precision:.4f}, {len(gone):,} left out", flush=True)


def make_corpus(paths: list[Path], num_documents: int) -> Corpus:
    originals = [text for path in paths for text in _rows(path)]
    draw = random.Random(0)
    vocabulary = [word for text in originals for word in text.split()]
    texts: list[str] = []
    families: list[list[int]] = []
    while len(texts) < num_documents:
        number = len(families)
        words = originals[number % len(originals)].split(" ")
        if number >= len(originals):
            words = _exchanged(words, vocabulary, draw)
        copies = [
            _changed(words, vocabulary, draw) for _ in range(draw.randint(1, 3) if draw.random() < SHARE_COPIED else 0)
        ]
        families.append(list(range(len(texts), len(texts) + 1 + len(copies))))
        texts += [" ".join(each) for each in [words, *copies]]
    order = list(range(len(texts)))
    draw.shuffle(order)
    place = {row: number for number, row in enumerate(order)}
    families = [[place[row] for row in family] for family in families]
    return _judged([texts[row] for row in order], families, len(originals))


def _rows(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            yield from (" ".join(row[1:]) for row in csv.reader(file))
        else:
            yield from (" ".join(map(str, json.loads(line).values())) for line in file)


def _exchanged(words: list[str], vocabulary: list[str], draw: random.Random) -> list[str]:
    """Another document; a short one, in which few words were exchanged, is drawn again."""
    exchanged, ngrams = words, _ngrams(" ".join(words))
    while _jaccard(ngrams, _ngrams(" ".join(exchanged))) > UNLIKE:
        exchanged = [draw.choice(vocabulary) if draw.random() < SHARE_EXCHANGED else word for word in words]
    return exchanged


def _changed(words: list[str], vocabulary: list[str], draw: random.Random) -> list[str]:
    changed = list(words)
    for _ in range(draw.randint(0, MAX_CHANGES)):
        place = draw.randrange(len(changed))
        changed[place : place + draw.choice([0, 1, 1])] = draw.choice([[], [draw.choice(vocabulary)]])
    return changed or words


def _judged(texts: list[str], families: list[list[int]], num_originals: int) -> Corpus:
    """The corpus with its near pairs: those in families, and those that the files had themselves."""
    first_of = {family[0]: family for family in families[:num_originals]}
    joined = {row: set(family) for family in families for row in family}
    for left, right in _natural_pairs({row: _ngrams(texts[row]) for row in first_of}):
        union = joined[left] | joined[right]
        joined.update(dict.fromkeys(union, union))
    pairs: dict[Pair, float] = {}
    not_wrong: set[int] = set()
    for family in {id(family): family for family in joined.values() if len(family) > 1}.values():
        ngrams = {row: _ngrams(texts[row]) for row in family}
        for left, right in itertools.combinations(sorted(family), 2):
            similarity = _jaccard(ngrams[left], ngrams[right])
            if similarity >= NEAR:
                pairs[left, right] = similarity
            if similarity >= NOT_WRONG:
                not_wrong |= {left, right}
    return Corpus(texts, pairs, not_wrong)


def _natural_pairs(ngrams: dict[int, set[str]]) -> set[Pair]:
    rows_with: dict[str, list[int]] = defaultdict(list)
    for row, its in ngrams.items():
        for ngram in its:
            rows_with[ngram].append(row)
    together = {pair for rows in rows_with.values() if len(rows) < 200 for pair in itertools.combinations(rows, 2)}
    return {(left, right) for left, right in together if _jaccard(ngrams[left], ngrams[right]) >= NOT_WRONG}


def _ngrams(text: str) -> set[str]:
    words = re.findall(r"[^\W_]+|[$+<>=|~^`*/%]", text.lower())
    return {" ".join(words[begin : begin + 5]) for begin in range(max(len(words) - 4, 1))}


def _jaccard(left: set[str], right: set[str]) -> float:
    return len(left & right) / len(left | right)


def _peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
