"""Peak memory of collecting, filtering and asking again, for more and more prompts; prints a line for each.

    python -m benchmarks.distill.memory --prompts 10000 100000 1000000
    python -m benchmarks.distill.memory --teacher simulator --prompts 10000 100000

The teacher is a recording, of which every fifth answer is too short: it is rejected, and asked for again of the simulator. Or
it is the simulator, without latency, which fills store and ledger. Each command is a process of its own; the simulator is
another, whose memory does not count.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from nexa_core import durable
from tests.simulators import simulator

ROWS_AT_ONCE = 10_000
QUESTION, ANSWER = "How many are left when some are taken away? " * 4, "So it is. " * 12
SCHEMA = pa.schema([("row_id", pa.string()), ("prompt", pa.string()), ("extra_json", pa.string())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", choices=["recorded", "simulator"], default="recorded")
    parser.add_argument("--prompts", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    given = parser.parse_args()
    for number in given.prompts:
        with tempfile.TemporaryDirectory() as home, simulator() as server:
            lab = Path(home)
            recording = make_files(lab, number)
            first = {"teacher": recording} if given.teacher == "recorded" else asked_of(server.base_url)
            run(lab, number, "collect-teacher", first)
            run(lab, number, "filter-pairs", first)
            if given.teacher == "recorded":  # the simulator's own answers are all kept
                run(lab, number, "regenerate", asked_of(server.base_url))


def make_files(lab: Path, number: int) -> str:
    """The prompts, and the teacher that a recording of their answers is."""
    answers = (
        {"prompt": f"Question {index}. {QUESTION}", "completion": f"Answer {index}. {ANSWER}" if index % 5 else "No."}
        for index in range(number)
    )
    durable.write_json_lines(lab / "answers.jsonl", answers)
    with durable.create(lab / "inputs.parquet") as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as table:
        for start in range(0, number, ROWS_AT_ONCE):
            some = range(start, min(start + ROWS_AT_ONCE, number))
            rows = [{"row_id": f"row-{i:07}", "prompt": f"Question {i}. {QUESTION}", "extra_json": "{}"} for i in some]
            table.write_table(pa.Table.from_pylist(rows, schema=SCHEMA))
    return f"recorded:{lab / 'answers.jsonl'}"


def asked_of(base_url: str) -> dict[str, object]:
    return {"teacher": "openai:m", "base_url": base_url, "sampling": {"max_tokens": 64}}


def run(lab: Path, number: int, command: str, collect: dict[str, object]) -> None:
    config = {
        "inputs": str(lab / "inputs.parquet"),
        "collect": collect,
        "filter": {"steps": [{"name": "length", "of": "completion", "min_words": 6}], "val": 0.01},
        "regenerate": {"max_tries": 1},
    }
    durable.write_text(lab / "distill.yaml", yaml.safe_dump(config))
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "scripts.cli", command, "--config", str(lab / "distill.yaml")],
        env={**os.environ, "NEXA_ROOT": str(lab)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(process.pid, 0)
    seconds, peak = time.monotonic() - began, usage.ru_maxrss / 1024
    print(
        f"{command} of {number:,}: exit {os.waitstatus_to_exitcode(status)}, {seconds:.1f} s, peak {peak:.0f} MiB",
        flush=True,
    )


if __name__ == "__main__":
    main()
