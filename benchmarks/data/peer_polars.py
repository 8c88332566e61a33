"""polars, streaming: what its documentation shows for files larger than memory.

python peer_polars.py clean.jsonl folder
"""

import sys
from pathlib import Path

import polars as pl

SCHEMA = {"id": pl.Int64, "source": pl.String, "text": pl.String, "label": pl.String, "score": pl.Float64}


def main() -> None:
    rows, folder = sys.argv[1:]
    kept = (
        pl.scan_ndjson(rows, schema=SCHEMA)
        .filter(pl.col("text").str.strip_chars() != "")
        .unique(["text", "label"], keep="any")
        .with_columns(
            extra_json=pl.struct("id", "source", "score").struct.json_encode(), at=pl.col("text").hash(0) % 10
        )
        .select("text", "label", "extra_json", "at")
    )
    sinks = [
        kept.filter(where).drop("at").sink_parquet(Path(folder) / f"{split}.parquet", compression="zstd", lazy=True)
        for split, where in {"train": pl.col("at") > 1, "val": pl.col("at") == 1, "test": pl.col("at") == 0}.items()
    ]
    pl.collect_all(sinks, engine="streaming")


if __name__ == "__main__":
    main()
