"""polars: streaming, as its documentation shows for files larger than memory, or all rows in memory, which takes less time.

python peer_polars.py clean.jsonl folder [in_memory]
"""

import sys
from pathlib import Path

import polars as pl

SCHEMA = {"id": pl.Int64, "source": pl.String, "text": pl.String, "label": pl.String, "score": pl.Float64}
SPLITS = {"train": pl.col("at") > 1, "val": pl.col("at") == 1, "test": pl.col("at") == 0}


def prepared(rows: pl.LazyFrame) -> pl.LazyFrame:
    return (
        rows.filter(pl.col("text").str.strip_chars() != "")
        .unique(["text", "label"], keep="any")
        .with_columns(
            extra_json=pl.struct("id", "source", "score").struct.json_encode(), at=pl.col("text").hash(0) % 10
        )
        .select("text", "label", "extra_json", "at")
    )


def stream(rows: str, folder: Path) -> None:
    kept = prepared(pl.scan_ndjson(rows, schema=SCHEMA))
    sinks = [
        kept.filter(where).drop("at").sink_parquet(folder / f"{split}.parquet", compression="zstd", lazy=True)
        for split, where in SPLITS.items()
    ]
    pl.collect_all(sinks, engine="streaming")


def in_memory(rows: str, folder: Path) -> None:
    kept = prepared(pl.read_ndjson(rows, schema=SCHEMA).lazy()).collect()
    for split, where in SPLITS.items():
        kept.filter(where).drop("at").write_parquet(folder / f"{split}.parquet", compression="zstd")


if __name__ == "__main__":
    way = in_memory if "in_memory" in sys.argv[3:] else stream
    way(sys.argv[1], Path(sys.argv[2]))
