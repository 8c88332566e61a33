"""Trains the same model on the same rows with each contestant, one after the other, several rounds; prints the table.

    python benchmarks/training/compare.py --data rows.jsonl --peers peers/bin/python

Each contestant is a process of its own: the peers' in their virtual environment (`requirements.txt` beside this file),
the bare loops and ours in this one. Rounds are interleaved, so that a machine that slows down slows everyone.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import contest
import torch

from nexa_core import durable
from nexa_core.environment import cpu_name

FOLDER = Path(__file__).parent
PEER_SCRIPTS = ("peer_trl.py", "peer_hf_trainer.py", "peer_lightning.py")
BARE = "bare.py"
BASELINE, BAR = "trl-default", "bare-compiled-bf16"
CONTESTANTS = {
    BASELINE: ("peer_trl.py", "default"),
    "trl-packed": ("peer_trl.py", "packed"),
    "trl-packed-float32": ("peer_trl.py", "packed-float32"),
    "lightning-bf16": ("peer_lightning.py", "bf16"),
    "lightning-float32": ("peer_lightning.py", "float32"),
    "hf-grouped-bf16": ("peer_hf_trainer.py", "grouped-bf16"),
    "hf-grouped-float32": ("peer_hf_trainer.py", "grouped-float32"),
    "bare": (BARE, "float32"),
    "bare-bf16": (BARE, "bf16"),
    "bare-documents": (BARE, "documents-float32"),
    "bare-compiled": (BARE, "compiled-float32"),
    BAR: (BARE, "compiled-bf16"),
    "bare-compiled-documents": (BARE, "compiled-documents-float32"),
    "bare-compiled-documents-bf16": (BARE, "compiled-documents-bf16"),
    "ours": ("ours.py", "packed"),
    "ours-compiled": ("ours.py", "packed-compiled"),
    "ours-compiled-bf16": ("ours.py", "packed-compiled-bf16"),
}
Results = dict[str, list[dict[str, Any]]]


def main() -> None:
    given = parse_arguments()
    if not (given.tokenizer / "tokenizer.json").exists():
        contest.make_tokenizer(given.data, given.tokenizer)
    begun = machine()
    print(begun, flush=True)
    results: Results = {name: [] for name in given.only}
    for number in range(given.rounds):
        for name in given.only:
            results[name].append(run(name, given, number))
            rate = results[name][-1]["tokens_per_second"]
            print(f"round {number + 1} of {given.rounds}: {name:<24}{rate:8,.0f} useful tokens/s", flush=True)
    lines = [begun, settings(given), "", *table(results)]
    durable.write_json(given.out / "results.json", {"machine": begun, "settings": settings(given), "results": results})
    durable.write_text(given.out / "table.md", "\n".join(lines) + "\n")
    print("\n".join(["", *lines, "", str(given.out / "table.md")]))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines with `question` and `answer`: GSM8K")
    parser.add_argument("--peers", type=Path, help="the python of the peers' environment; without it they are left out")
    parser.add_argument("--out", type=Path, default=Path("artifacts/benchmarks/training"), help="folder of the results")
    parser.add_argument("--tokenizer", type=Path, help="folder of the shared tokenizer; made in --out without it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=14, help="optimizer steps of each contestant in each round")
    parser.add_argument("--warmup", type=int, default=2, help="steps at the beginning that are not timed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", choices=list(CONTESTANTS), metavar="NAME", help=", ".join(CONTESTANTS))
    given = parser.parse_args()
    given.only = given.only or [name for name in CONTESTANTS if given.peers or not is_peer(name)]
    if given.peers is None and any(map(is_peer, given.only)):
        parser.error("--only names peers; say with --peers which python has them installed")
    given.tokenizer = given.tokenizer or given.out / "tokenizer"
    return given


def is_peer(name: str) -> bool:
    return CONTESTANTS[name][0] in PEER_SCRIPTS


def run(name: str, given: argparse.Namespace, number: int) -> dict[str, Any]:
    """One contestant's result; its output lies beside it, for when it fails.

    Raises:
        SystemExit: it failed.
    """
    script, variant = CONTESTANTS[name]
    python = given.peers if is_peer(name) else sys.executable
    out = (given.out / "rounds" / f"{name}_{number + 1}.json").absolute()
    command = [str(python), str(FOLDER / script), "--variant", variant, "--out", str(out)]
    for option in ("data", "tokenizer", "steps", "warmup", "threads"):
        value = getattr(given, option)
        command += [f"--{option}", str(value.absolute() if isinstance(value, Path) else value)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1"}
    log = out.with_suffix(".log")
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    durable.write_text(log, done.stdout)
    if done.returncode:
        raise SystemExit(f"{name} ended with exit code {done.returncode}; its output is in {log}")
    return dict(json.loads(out.read_text(encoding="utf-8")))


def machine() -> str:
    return (
        f"{cpu_name()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; "
        f"Python {sys.version.split()[0]}, torch {torch.__version__}; {datetime.now(UTC):%Y-%m-%d}"
    )


def settings(given: argparse.Namespace) -> str:
    return (
        f"{given.rounds} interleaved rounds of {given.steps} steps, {given.warmup} of them not timed, "
        f"{given.threads} threads; medians."
    )


def table(results: Results) -> list[str]:
    """Markdown: medians over the rounds; the first step's is the shortest, when compiled code is in the cache."""
    rates = {name: median(rounds, "tokens_per_second") for name, rounds in results.items()}
    lines = [
        "| contestant | useful tokens/s | range | to TRL's default | to the bare compiled loop, bfloat16 "
        "| to the fastest bare loop | padding | validation loss | after tokens | first step | peak memory |",
        f"| --- |{' ---: |' * 10}",
    ]
    fastest_bare = max((rate for name, rate in rates.items() if CONTESTANTS[name][0] == BARE), default=None)
    for name, rounds in results.items():
        each = [one["tokens_per_second"] for one in rounds]
        cells = [
            rounds[0]["name"],
            f"{rates[name]:,.0f}",
            f"{min(each):,.0f} to {max(each):,.0f}",
            ratio(rates[name], rates.get(BASELINE)),
            ratio(rates[name], rates.get(BAR)),
            ratio(rates[name], fastest_bare),
            f"{rounds[0]['padding_share']:.1%}",
            f"{median(rounds, 'validation_loss'):.3f}",
            f"{rounds[0]['tokens_learned']:,}",
            f"{min(one['first_step_seconds'] for one in rounds):.1f} s",
            f"{median(rounds, 'peak_memory_bytes') / 2**20:,.0f} MiB",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def median(rounds: list[dict[str, Any]], key: str) -> float:
    return statistics.median(one[key] for one in rounds)


def ratio(rate: float, reference: float | None) -> str:
    return "" if reference is None else f"{rate / reference:.2f}"


if __name__ == "__main__":
    main()
