"""How fast a student learns from a live teacher, here and in TRL's GKDTrainer: the same weights, the same rows, equal losses.

    python -m benchmarks.distill.kd --peers benchmarks/.peers-kd/bin/python

Both begin with the same random Llama, read the same microbatches in the same order and take the generalised
Jensen-Shannon divergence (beta 0.5) from the same random teacher as their loss. Each contestant is a process of its own, in
interleaved rounds; a step's time is from the end of one to the end of the next.
"""

import argparse
import json
import os
import random
import statistics
import string
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from nexa_core import durable
from nexa_core.config import DataConfig, RunConfig
from nexa_core.environment import cpu_name
from nexa_core.paths import Layout
from nexa_data.prepare import prepare
from nexa_models.encoding import Sequences
from nexa_train.distributed.world import World
from nexa_train.job import make_job

BATCH_SIZE, NUM_MICROBATCHES = 32, 4
SIZES = {"student": (128, 2), "teacher": (256, 4)}
"""Hidden size and layers."""
MAX_TOKENS = 256
DATASET = {
    "name": "words",
    "source": {"name": "files", "path": "data/raw/words.jsonl"},
    "rows": {"name": "pairs", "prompt": "prompt", "completion": "completion"},
    "output": {"name": "training", "val": 0.02, "test": 0.02},
    "tokenizer": {"vocab_size": 8192},
}
MARKS = {"pad_token": "<|pad|>", "bos_token": "<|bos|>", "eos_token": "<|eos|>"}
CONTESTANTS = {"ours": "kd_ours.py", "trl": "kd_trl.py"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="the python of the environment with TRL")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=12, help="of each contestant in each round; the first is not timed"
    )
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("artifacts/benchmarks/distill"), help="folder of the results")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        lay_out(Layout(Path(root)), given)
        results: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTESTANTS}
        for _ in range(given.rounds):
            for name, rounds in results.items():
                rounds.append(run(name, Path(root), given))
    print(
        f"{cpu_name()}, {given.threads} threads, {given.precision}, {given.rounds} rounds of {given.steps} steps; medians"
    )
    for name, rounds in results.items():
        rates = [each["tokens_per_second"] for each in rounds]
        peak = statistics.median(each["peak_memory_bytes"] for each in rounds) / 2**20
        print(
            f"  {name:<5} {statistics.median(rates):9,.0f} tokens/s ({min(rates):,.0f} to {max(rates):,.0f}), "
            f"{peak:,.0f} MiB, last loss {rounds[0]['losses'][-1]:.6f}"
        )
    pairs = list(zip(results["ours"][0]["losses"], results["trl"][0]["losses"], strict=True))
    print(f"  largest difference of a step's loss: {max(abs(one - other) / other for one, other in pairs):.1e} of it")
    durable.write_json(given.out / f"kd_{given.precision}.json", results)


def lay_out(layout: Layout, given: argparse.Namespace) -> None:
    """The rows, both models, the run's settings, and the rows again as the run will read them, for the peer."""
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(4, 8))) for _ in range(6000)]
    rows = [
        {
            "prompt": f"{number} {' '.join(draw.choices(words, k=draw.randint(5, 30)))}:",
            "completion": " ".join(draw.choices(words, k=draw.randint(20, 80))),
        }
        for number in range(2000)
    ]
    durable.write_json_lines(layout.raw / "words.jsonl", rows)
    prepare(DataConfig.model_validate_json(json.dumps({"datasets": [DATASET]})), layout)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(layout.processed / "training" / "tokenizers" / "words_v1.json"), **MARKS
    )
    torch.manual_seed(0)
    for name, (hidden_size, num_layers) in SIZES.items():
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=num_layers,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=MAX_TOKENS,
            initializer_range=0.1,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(layout.root / name)
        tokenizer.save_pretrained(layout.root / name)
    config = run_config(layout, given)
    durable.write_json(layout.root / "run.json", config.resolved())
    job = make_job(config, layout, world=World(), source=None)
    encoded = job.train_data
    assert isinstance(encoded, Sequences)
    steps = []
    for step in range(given.steps):
        order = [int(row) for rows in job.plan.microbatches(step) for row in rows]
        spans = [slice(*encoded.tokens.offsets[row : row + 2]) for row in order]
        steps += [
            {"ids": encoded.tokens.flat[span].tolist(), "learned": encoded.learned[span].tolist()} for span in spans
        ]
    durable.write_json(layout.root / "rows.json", steps)


def run_config(layout: Layout, given: argparse.Namespace) -> RunConfig:
    settings = {
        "name": "kd",
        "experiment": "bench",
        "data": {"dataset": "words"},
        "model": {
            "name": "causal_lm",
            "path": str(layout.root / "student"),
            "parameters": {"max_tokens": MAX_TOKENS},
        },
        "distillation": {
            "loss": {"name": "jsd", "beta": 0.5, "weight": 1.0},
            "teacher": str(layout.root / "teacher"),
        },
        "training": {
            "max_steps": given.steps,
            "batch_size": BATCH_SIZE,
            "gradient_accumulation_steps": NUM_MICROBATCHES,
            "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.0},
            "max_gradient_norm": 1.0,
            "num_threads": given.threads,
            "precision": given.precision,
            "keep": "last",
        },
        "evaluation": {"save_predictions": False},
        "tracking": {"tensorboard": False},
    }
    return RunConfig.model_validate_json(json.dumps(settings))


def run(name: str, root: Path, given: argparse.Namespace) -> dict[str, Any]:
    """One contestant's result.

    Raises:
        SystemExit: it failed.
    """
    python = given.peers.absolute() if name == "trl" else Path(sys.executable)
    out = root / f"{name}.json"
    command = [str(python), str(Path(__file__).with_name(CONTESTANTS[name])), str(root), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads), "HF_HUB_OFFLINE": "1", "NEXA_ROOT": str(root)}
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{name} ended with exit code {done.returncode}:\n{done.stdout[-3000:]}")
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    print(f"{name}: {found['tokens_per_second']:,.0f} tokens/s", flush=True)
    return found


if __name__ == "__main__":
    main()
