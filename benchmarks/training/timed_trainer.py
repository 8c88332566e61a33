"""What the two contestants on the Hugging Face Trainer share: its settings, and a stopwatch that it does not notice."""

import tempfile
from collections.abc import Sequence
from typing import Any

import contest
from datasets import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class StepEnds(TrainerCallback):
    """Tells the stopwatch of each optimizer step."""

    def __init__(self, watch: contest.Stopwatch):
        self.watch = watch

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.watch.end_step()


def dataset(rows: Sequence[contest.Row]) -> Dataset:
    """The rows as both trainers take them when they are tokenized already."""
    return Dataset.from_list([{"input_ids": list(row.ids), "labels": list(row.labels)} for row in rows])


def settings(arguments: contest.Arguments) -> dict[str, Any]:
    """What is learned, equal for all; how fast is left to each trainer's defaults and its variant."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": arguments.steps,
        "learning_rate": contest.LR,
        "lr_scheduler_type": "constant",
        "weight_decay": contest.WEIGHT_DECAY,
        "max_grad_norm": contest.MAX_GRADIENT_NORM,
        "seed": contest.SEED,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }


def race(trainer: Trainer, arguments: contest.Arguments, *, name: str, validation: Sequence[contest.Row]) -> None:
    """Train to the end, timed, and write the result."""
    watch = contest.Stopwatch()
    trainer.add_callback(StepEnds(watch))
    step = trainer.training_step

    def counted_step(model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        mask = inputs.get("attention_mask")  # packs come without one: every position of theirs holds a token
        computed = inputs["input_ids"].numel()
        watch.count(useful=computed if mask is None else int(mask.sum()), computed=computed)
        return step(model, inputs, *rest, **named)

    trainer.training_step = counted_step
    watch.start()
    trainer.train()
    watch.losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    contest.finish(arguments, watch, name=name, model=trainer.model, validation=validation)
