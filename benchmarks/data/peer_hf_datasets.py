"""Hugging Face datasets: load, map, filter, exact duplicates by a set of digests, split by a hash, to Parquet.

python peer_hf_datasets.py clean.jsonl folder
"""

import hashlib
import json
import os
import sys
from pathlib import Path

from datasets import disable_progress_bars, load_dataset


def normalise(row: dict) -> dict:
    extra = json.dumps({"id": row["id"], "source": row["source"], "score": row["score"]})
    digest = hashlib.sha256(f"{row['text']}\0{row['label']}".encode()).hexdigest()[:16]
    return {"row_id": digest, "text": row["text"], "label": row["label"], "extra_json": extra}


def main() -> None:
    disable_progress_bars()
    rows, folder = sys.argv[1:]
    processes = os.cpu_count()
    data = load_dataset("json", data_files=rows, split="train", cache_dir=f"{folder}/cache")
    data = data.map(normalise, remove_columns=["id", "source", "score"], num_proc=processes)
    data = data.filter(lambda row: bool(row["text"].strip()), num_proc=processes)
    seen: set[str] = set()
    data = data.select([at for at, row_id in enumerate(data["row_id"]) if not (row_id in seen or seen.add(row_id))])
    places = [int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) % 10 for text in data["text"]]
    for split, wanted in {"train": range(2, 10), "val": (1,), "test": (0,)}.items():
        chosen = data.select([at for at, place in enumerate(places) if place in wanted])
        chosen.to_parquet(Path(folder) / f"{split}.parquet")


if __name__ == "__main__":
    main()
