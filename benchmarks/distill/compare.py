"""Asks the simulated teacher the same prompts with each contestant, in interleaved rounds; prints the tables.

    python -m benchmarks.distill.compare --peers peers/bin/python

Answers take 200 ms; of the attempts 2% get 429, 1% get 500, 0.5% a reset and 0.5% JSON that is none. Every contestant has a
process and a simulator of its own, and the simulator of a round has the same seed for all.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.distill.contest import API_KEY
from nexa_core import durable
from nexa_core.environment import cpu_name
from tests.simulators import simulator

FOLDER = Path(__file__).parent
BARE, OURS = "bare aiohttp", "nexa collect"
PEERS = {
    BARE: "peer_aiohttp.py",
    "openai client": "peer_openai.py",
    "Bespoke Curator": "peer_curator.py",
    "distilabel": "peer_distilabel.py",
}
NEED_THEIR_OWN = ("Bespoke Curator", "distilabel")
"""The others run where NexaCompute does, at the same versions of aiohttp."""
FAULTS = "rate_limit=0.02,server_error=0.01,reset=0.005,malformed=0.005"
LATENCY_SECONDS = 0.2


@dataclass(frozen=True)
class Files:
    """The same prompts, as each contestant reads them."""

    prompts: Path
    inputs: Path
    answers: dict[str, str]


@dataclass(frozen=True)
class Result:
    seconds: float
    cpu_seconds: float
    """Of the contestant and the processes that it waited for."""
    num_lost: int
    """Rows without the right answer."""
    num_duplicated: int
    num_billed: int


Results = dict[tuple[int, str], list[Result]]
"""By concurrency and contestant."""


def main() -> None:
    given = parse_arguments()
    results: Results = {}
    with tempfile.TemporaryDirectory() as home:
        files = make_files(Path(home), given.prompts)
        ideal = [f"{given.prompts * LATENCY_SECONDS / each:.1f} s at {each}" for each in given.concurrency]
        print(f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; no faults: {', '.join(ideal)}")
        for number in range(given.rounds):
            for concurrency in given.concurrency:
                for name in given.only:
                    result = contest(name, files, concurrency, number, given.peers, Path(home))
                    results.setdefault((concurrency, name), []).append(result)
                    print(f"round {number}, {concurrency} at once: {name} {result}", flush=True)
    print(f"load afterwards {os.getloadavg()[0]:.1f}")
    for concurrency in given.concurrency:
        print_table(concurrency, given.prompts, results)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, help="the python of the peers' environment; without it they are left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=5_000)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--only", nargs="+", choices=[*PEERS, OURS])
    given = parser.parse_args()
    given.only = given.only or [name for name in (*PEERS, OURS) if given.peers or name not in NEED_THEIR_OWN]
    return given


def make_files(home: Path, num_prompts: int) -> Files:
    """Prompts of 400 bytes, with answers of about 60 tokens each of which can be told from all others."""
    answers = {
        f"Question {index}. " + "How many are left when some are taken away? " * 9: f"Answer {index}. "
        + "So it is. " * 23
        for index in range(num_prompts)
    }
    files = Files(home / "prompts.jsonl", home / "inputs.parquet", answers)
    durable.write_json_lines(files.prompts, [{"prompt": prompt} for prompt in answers])
    durable.write_json_lines(home / "answers.jsonl", [{"prompt": each, "answer": answers[each]} for each in answers])
    table = pa.table(
        {
            "row_id": [f"row-{index:05}" for index in range(num_prompts)],
            "prompt": list(answers),
            "completion": pa.nulls(num_prompts, pa.string()),
            "extra_json": ["{}"] * num_prompts,
        }
    )
    with durable.create(files.inputs) as file:
        pq.write_table(table, file)
    return files


def contest(name: str, files: Files, concurrency: int, seed: int, peers: Path | None, home: Path) -> Result:
    with tempfile.TemporaryDirectory(dir=home) as folder, simulator(
        "--seed", str(seed), "--faults", FAULTS, "--answers", str(files.prompts.with_name("answers.jsonl")),
        latency_seconds=LATENCY_SECONDS,
    ) as teacher:  # fmt: skip
        output = Path(folder) / ("out.parquet" if name == OURS else "out.jsonl")
        command, environment = (
            our_command(files, teacher.base_url, concurrency, output)
            if name == OURS
            else peer_command(name, files, teacher.base_url, concurrency, output, peers)
        )
        seconds, cpu_seconds = run(command, {**environment, "HOME": folder}, Path(folder))
        bill, rows = teacher.bill(), read_rows(output)
    right = Counter(prompt for prompt, completion in rows if files.answers.get(prompt) == completion)
    return Result(
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        num_lost=len(files.answers) - len(right),
        num_duplicated=len(rows) - len({prompt for prompt, _ in rows}),
        num_billed=bill["answers"],
    )


def peer_command(
    name: str, files: Files, base_url: str, concurrency: int, output: Path, peers: Path | None
) -> tuple[list[str], Mapping[str, str]]:
    if name in NEED_THEIR_OWN and peers is None:
        raise SystemExit(f"{name} needs --peers, the python of an environment with benchmarks/distill/requirements.txt")
    python = str(peers.absolute()) if peers and name in NEED_THEIR_OWN else sys.executable
    options = ["--prompts", files.prompts, "--base-url", base_url, "--concurrency", concurrency, "--output", output]
    return [python, str(FOLDER / PEERS[name]), *map(str, options)], {}


def our_command(files: Files, base_url: str, concurrency: int, output: Path) -> tuple[list[str], Mapping[str, str]]:
    """`nexa_distill.collect_teacher` with store, budget and retries on, in a laboratory of its own."""
    options = ["--config", FOLDER / "ours.yaml", "--src", files.inputs, "--dst", output]
    options += ["--override", f"collect.pace.concurrency={concurrency}"]
    lab = {"NEXA_ROOT": str(output.parent), "OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": API_KEY}
    return [sys.executable, "-m", "nexa_distill.collect_teacher", *map(str, options)], lab


def run(command: list[str], environment: Mapping[str, str], folder: Path) -> tuple[float, float]:
    """Seconds, and processor seconds; both with the start of the interpreter."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    root = {"PYTHONPATH": str(FOLDER.parent.parent)}
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **root, **environment}, capture_output=True, text=True, check=False
    )
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def read_rows(output: Path) -> list[tuple[str, str | None]]:
    if output.suffix == ".parquet":
        rows = pq.read_table(output, columns=["prompt", "completion"]).to_pylist()
    else:
        rows = [json.loads(line) for line in output.read_text().splitlines()]
    return [(row["prompt"], row["completion"]) for row in rows]


def print_table(concurrency: int, num_prompts: int, results: Results) -> None:
    """Medians of the times; of the counts the worst round's."""
    rows = {name: each for (at_once, name), each in results.items() if at_once == concurrency}
    medians = {name: (_median(all_, "seconds"), _median(all_, "cpu_seconds")) for name, all_ in rows.items()}
    bare = medians.get(BARE)
    print(f"\n{num_prompts:,} prompts, {concurrency} at once\n")
    print("| contestant | seconds | range | to bare | CPU seconds | to bare | rows lost | duplicated | billed |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, all_ in rows.items():
        (seconds, cpu), times = medians[name], sorted(each.seconds for each in all_)
        to_bare = (f"{seconds / bare[0]:.2f}", f"{cpu / bare[1]:.2f}") if bare else ("", "")
        counts = [
            f"{max(getattr(each, what) for each in all_):,}" for what in ("num_lost", "num_duplicated", "num_billed")
        ]
        told = [f"{seconds:.2f}", f"{times[0]:.2f} to {times[-1]:.2f}", to_bare[0], f"{cpu:.2f}", to_bare[1], *counts]
        print(f"| {name} | {' | '.join(told)} |")


def _median(results: list[Result], what: str) -> float:
    return statistics.median(getattr(each, what) for each in results)


if __name__ == "__main__":
    main()
