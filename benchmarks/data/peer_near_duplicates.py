"""The peers of `near_duplicates.py`, in an environment of their own: prints seconds and the rows each leaves out.

    peers/bin/python benchmarks/near_duplicates_peers.py datasketch texts.json 2

All have 112 permutations in 14 bands of 8 over word 5-grams; none compares texts exactly.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import Pool
from pathlib import Path

NUM_PERMUTATIONS, NUM_BANDS, NGRAM_WORDS = 112, 14, 5
ROWS_AT_ONCE = 500


def ngrams(text: str) -> list[str]:
    words = text.lower().split()
    return [" ".join(words[begin : begin + NGRAM_WORDS]) for begin in range(max(len(words) - NGRAM_WORDS + 1, 1))]


def datasketch(texts: list[str], processes: int) -> list[int]:
    """Signatures in worker processes, an index in this one; a row goes when an earlier kept one is a candidate."""
    from datasketch import MinHashLSH

    parts = [texts[begin : begin + ROWS_AT_ONCE] for begin in range(0, len(texts), ROWS_AT_ONCE)]
    with Pool(processes) as pool:
        minhashes = [minhash for part in pool.imap(datasketch_signatures, parts) for minhash in part]
    width = NUM_PERMUTATIONS // NUM_BANDS
    index = MinHashLSH(num_perm=NUM_PERMUTATIONS, params=(NUM_BANDS, width))
    removed = []
    for row, minhash in enumerate(minhashes):
        if index.query(minhash):
            removed.append(row)
        else:
            index.insert(row, minhash)
    return removed


def datasketch_signatures(texts: list[str]) -> list[object]:
    from datasketch import LeanMinHash, MinHash

    made = MinHash.generator([[ngram.encode() for ngram in ngrams(text)] for text in texts], num_perm=NUM_PERMUTATIONS)
    return [LeanMinHash(minhash) for minhash in made]


def rensa(texts: list[str], processes: int) -> list[int]:
    """Its streaming deduplicator, which compares candidates by their signatures."""
    from rensa import RMinHashDeduplicator

    deduplicator = RMinHashDeduplicator(threshold=0.8, num_perm=NUM_PERMUTATIONS, use_lsh=True, num_bands=NUM_BANDS)
    is_kept = deduplicator.add_pairs((str(row), ngrams(text)) for row, text in enumerate(texts))
    return [row for row, kept in enumerate(is_kept) if not kept]


def datatrove(texts: list[str], processes: int) -> list[int]:
    """Its four stages, each with as many workers; the files lie in a temporary folder."""
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
    from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter

    config = MinhashConfig(n_grams=NGRAM_WORDS, num_buckets=NUM_BANDS, hashes_per_bucket=NUM_PERMUTATIONS // NUM_BANDS)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "in").mkdir()
        for part in range(processes):
            lines = [
                json.dumps({"text": text, "id": str(row)}) for row, text in enumerate(texts) if row % processes == part
            ]
            (folder / "in" / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
        read = JsonlReader(str(folder / "in"))
        stages: list[tuple[list[Callable[..., Document] | object], int]] = [
            ([read, MinhashDedupSignature(str(folder / "signatures"), config=config)], processes),
            ([MinhashDedupBuckets(str(folder / "signatures"), str(folder / "buckets"), config=config)], NUM_BANDS),
            ([MinhashDedupCluster(str(folder / "buckets"), str(folder / "remove"), config=config)], 1),
            (
                [read, MinhashDedupFilter(str(folder / "remove")), JsonlWriter(str(folder / "out"), compression=None)],
                processes,
            ),
        ]
        for pipeline, tasks in stages:
            LocalPipelineExecutor(pipeline, tasks=tasks, workers=processes).run()
        kept = {int(json.loads(line)["id"]) for path in (folder / "out").glob("*.jsonl") for line in path.open()}
    return [row for row in range(len(texts)) if row not in kept]


PEERS = {"datasketch": datasketch, "rensa": rensa, "datatrove": datatrove}

if __name__ == "__main__":
    name, given, processes = sys.argv[1:]
    texts = json.loads(Path(given).read_text(encoding="utf-8"))
    began = time.perf_counter()
    removed = PEERS[name](texts, int(processes))
    print(json.dumps({"seconds": time.perf_counter() - began, "removed": removed}))
