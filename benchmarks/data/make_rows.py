"""Blows real text up to as many rows as are wanted: with exact and near duplicates, and with dirt; the same file each time.

    python make_rows.py --texts gsm8k_train.jsonl ag_news.csv --rows 1000000 --out rows.jsonl

A row is {"id", "source", "text", "label", "score"}, about 1 KB. Of a near duplicate its truth is known: beside the rows lies
`<out>.truth.csv` with pairs of ids and the exact Jaccard similarity of their word 5-grams. A near duplicate has some
of its original's words changed; an exact one has another id and nothing else.
"""

import argparse
import csv
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

EXACT_SHARE, NEAR_SHARE, DIRT_SHARE = 0.1, 0.1, 0.002
WORDS_PER_ROW = (110, 230)
WORDS_CHANGED = (1, 6)
KEPT_TO_COPY = 2000
"""Recent originals that a duplicate may be of."""
LABELS = ("world", "sports", "business", "science")
DIRT = (
    b'{"id": 1, "text": "cut off in the mid\n',
    b'{"id": 2, "text": "latin-1: caf\xe9", "label": "world"}\n',
    b"\n",
    b'["not", "an", "object"]\n',
    b'{"id": 3, "text": 17, "label": "world"}\n',
    b'{"id": 4, "text": "a NUL \x00 byte", "label": "world"}\n',
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--texts", type=Path, nargs="+", required=True, help="CSV or JSON lines; all text in them is used"
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clean", action="store_true", help="no dirt, for readers that take none")
    given = parser.parse_args()
    words = [word for path in given.texts for text in read_texts(path) for word in text.split()]
    truth = given.out.with_suffix(".truth.csv")
    with given.out.open("wb") as rows, truth.open("w", encoding="utf-8", newline="") as pairs:
        write(rows, csv.writer(pairs), words, num_rows=given.rows, dirt=0.0 if given.clean else DIRT_SHARE)
    print(f"{given.out}: {given.out.stat().st_size:,} bytes")


def read_texts(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8", newline="") as file:
        if path.suffix == ".csv":
            yield from (field for row in csv.reader(file) for field in row)
        else:
            yield from (str(value) for line in file for value in json.loads(line).values())


def write(rows, pairs, words: Sequence[str], *, num_rows: int, dirt: float) -> None:
    draw = random.Random(0)
    recent: list[tuple[int, list[str], str]] = []
    pairs.writerow(["original", "copy", "jaccard"])
    for number in range(num_rows):
        if draw.random() < dirt:
            rows.write(draw.choice(DIRT))
            continue
        kind = draw.random()
        if recent and kind < EXACT_SHARE + NEAR_SHARE:
            original, text, label = draw.choice(recent)
            if kind >= EXACT_SHARE:
                changed = change(text, words, draw)
                pairs.writerow([original, number, f"{jaccard(text, changed):.6f}"])
                text = changed
        else:
            begin = draw.randrange(len(words) - WORDS_PER_ROW[1])
            text, label = words[begin : begin + draw.randint(*WORDS_PER_ROW)], draw.choice(LABELS)
            text = [word if draw.random() < 0.7 else draw.choice(words) for word in text]
            recent.append((number, text, label))
            if len(recent) > KEPT_TO_COPY:
                recent[draw.randrange(KEPT_TO_COPY)] = recent.pop()
        row = {
            "id": number,
            "source": f"part-{number % 7}",
            "text": " ".join(text),
            "label": label,
            "score": number / 7,
        }
        rows.write(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n")


def change(text: Sequence[str], words: Sequence[str], draw: random.Random) -> list[str]:
    changed = list(text)
    for _ in range(draw.randint(*WORDS_CHANGED)):
        changed[draw.randrange(len(changed))] = draw.choice(words)
    return changed


def jaccard(one: Sequence[str], other: Sequence[str]) -> float:
    first, second = ({tuple(text[at : at + 5]) for at in range(len(text) - 4)} for text in (one, other))
    return len(first & second) / len(first | second)


if __name__ == "__main__":
    main()
