"""What every contestant is given, and what it has to hand in; imports nothing, so that any environment can."""

import argparse
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

MODEL = "simulated-teacher"
MAX_TOKENS = 128
API_KEY = "sk-benchmark"


@dataclass(frozen=True)
class Task:
    prompts: list[str]
    base_url: str
    concurrency: int
    output: Path
    """A line a row: {"prompt": ..., "completion": ...}."""


def parse_task(doc: str | None) -> Task:
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines with prompt")
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    prompts = [json.loads(line)["prompt"] for line in given.prompts.read_text().splitlines()]
    return Task(prompts, given.base_url, given.concurrency, given.output)


def hand_in(task: Task, rows: Iterable[Mapping[str, str | None]]) -> None:
    """Write the rows; a row that was not answered may be left out or have no completion."""
    lines = (json.dumps({"prompt": row["prompt"], "completion": row["completion"]}) for row in rows)
    task.output.write_text("".join(f"{line}\n" for line in lines))
