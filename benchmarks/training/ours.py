"""NexaCompute's own contestant: a whole run, with its checkpoints, metrics.jsonl, TensorBoard and manifest.

The run begins with the same weights and reads with the same tokenizer as everyone's, from a folder that holds both.

    python ours.py --variant packed --data rows.jsonl --tokenizer folder --out result.json
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import contest
from bare import PACK_TOKENS, PACKS_PER_MICROBATCH, PACKS_PER_STEP
from transformers import AutoTokenizer

from nexa_core import durable
from nexa_core.config import DataConfig, RunConfig
from nexa_core.paths import Layout
from nexa_data.prepare import prepare
from nexa_train import hooks, milestones, train
from nexa_train.loop import State, StepResult

CHECKPOINT_EVERY_STEPS = 5
VARIANTS: dict[str, dict[str, Any]] = {
    "packed": {"packing": {"max_tokens": PACK_TOKENS}},
    "packed-compiled": {"packing": {"max_tokens": PACK_TOKENS}, "compile": True},
    "packed-compiled-bf16": {"packing": {"max_tokens": PACK_TOKENS}, "compile": True, "precision": "bfloat16"},
}
DATASET = {
    "name": "pairs",
    "source": {"name": "files", "path": "data/raw/pairs.jsonl"},
    "rows": {"name": "pairs", "prompt": "question", "completion": "answer"},
    "output": {"name": "training", "val": 0.01, "test": 0.01},
}


class TimedTracking(hooks.Tracking):
    """The run's own tracking, which also tells the stopwatch of each step: a step's time is from one to the next."""

    watch: contest.Stopwatch
    model: Any = None

    def __call__(self, state: State, result: StepResult) -> None:
        super().__call__(state, result)
        self.watch.count(useful=result.num_tokens, computed=round(result.num_tokens / (1 - result.padding_share)))
        self.watch.end_step(float(result.loss))
        type(self).model = state.model


class TimedMilestones(milestones.Milestones):
    """The run's own, which also notes what each checkpoint held the training up for, in seconds."""

    waits: ClassVar[list[float]] = []

    def save(self, state: State) -> None:
        began = time.perf_counter()
        super().save(state)
        self.waits.append(time.perf_counter() - began)


def main() -> None:
    arguments = contest.read_arguments(__doc__, list(VARIANTS))
    _, validation = contest.load_rows(arguments.data, arguments.tokenizer)
    watch = TimedTracking.watch = contest.Stopwatch()
    train.Tracking, train.Milestones = TimedTracking, TimedMilestones
    with tempfile.TemporaryDirectory() as root:
        layout = Layout(Path(root))
        lay_out(layout, arguments)
        prepare(DataConfig.model_validate_json(json.dumps({"datasets": [DATASET]})), layout)
        watch.start()
        config = run_config(arguments, layout.root / "model")
        train.run(RunConfig.model_validate_json(json.dumps(config)), layout=layout)
    trained = contest.build_model()
    trained.load_state_dict(TimedTracking.model.transformer.state_dict())
    waits = ", ".join(f"{1000 * wait:.1f}" for wait in TimedMilestones.waits)
    print(f"checkpoints held the training up for {waits} ms")
    contest.finish(arguments, watch, name=f"NexaCompute {arguments.variant}", model=trained, validation=validation)


def lay_out(layout: Layout, arguments: contest.Arguments) -> None:
    """The rows that all train on, and the model that all begin with, where a user would put them."""
    train_pairs, _ = contest.split(contest.read_pairs(arguments.data))
    rows = [{"question": question, "answer": answer} for question, answer in train_pairs]
    durable.write_json_lines(layout.raw / "pairs.jsonl", rows)
    contest.build_model().save_pretrained(layout.root / "model")
    AutoTokenizer.from_pretrained(arguments.tokenizer).save_pretrained(layout.root / "model")


def run_config(arguments: contest.Arguments, model: Path) -> dict[str, Any]:
    return {
        "name": "bench",
        "experiment": "bench",
        "data": {"dataset": "pairs"},
        "model": {"name": "causal_lm", "path": str(model), "parameters": {"max_tokens": PACK_TOKENS}},
        "training": {
            "epochs": 1 + arguments.steps * contest.ROWS_PER_STEP // 7000,
            "max_steps": arguments.steps,
            "batch_size": PACKS_PER_STEP,
            "gradient_accumulation_steps": PACKS_PER_STEP // PACKS_PER_MICROBATCH,
            "optimizer": {"name": "adamw", "lr": contest.LR, "weight_decay": contest.WEIGHT_DECAY},
            "max_gradient_norm": contest.MAX_GRADIENT_NORM,
            "num_threads": arguments.threads,
            "keep": "last",
            "checkpoints": {"every_steps": CHECKPOINT_EVERY_STEPS},
            **VARIANTS[arguments.variant],
        },
        "evaluation": {"batch_size": 32, "save_predictions": False},
    }


if __name__ == "__main__":
    main()
