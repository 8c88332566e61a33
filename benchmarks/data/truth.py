"""How many of the near duplicates that `make_rows.py` put in were found, and whether any row was left out that is none.

    python benchmarks/data/truth.py --rejects rows_v1.jsonl --truth dirty.truth.csv

A pair is found where at least one of its rows is left out. The truth's similarity is over words between spaces; ours reads
words without punctuation, so that a row may be left out whose similarity there is a little smaller.
"""

import argparse
import csv
import json
from pathlib import Path

NEAR = 0.8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rejects", type=Path, required=True)
    parser.add_argument("--truth", type=Path, required=True)
    given = parser.parse_args()
    left_out, near = read_rejects(given.rejects)
    with given.truth.open(newline="") as file:
        pairs = [(int(row["original"]), int(row["copy"]), float(row["jaccard"])) for row in csv.DictReader(file)]
    hard = [{one, other} for one, other, jaccard in pairs if jaccard >= NEAR]
    injected = {row for one, other, _ in pairs for row in (one, other)}
    recall = sum(not pair.isdisjoint(left_out) for pair in hard) / len(hard)
    print(f"{len(hard):,} pairs of similarity {NEAR} and more: recall {recall:.4f}")
    print(f"{len(near):,} rows left out as near duplicates: precision {len(near & injected) / max(len(near), 1):.4f}")


def read_rejects(path: Path) -> tuple[set[int], set[int]]:
    """The ids of all rows that were left out as duplicates, and of the near ones."""
    left_out, near = set[int](), set[int]()
    for line in path.open(encoding="utf-8"):
        reject = json.loads(line)
        if "duplicate of" in reject["reason"]:
            row = int(reject["raw"].removeprefix('{"id": ').split(",")[0])
            left_out.add(row)
            near |= {row} if reject["reason"].startswith("near") else set()
    return left_out, near


if __name__ == "__main__":
    main()
