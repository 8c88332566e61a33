"""Lightning's Trainer around the same model, with padded batches of random rows: what its tutorials show.

python peer_lightning.py --variant float32 --data rows.jsonl --tokenizer folder --out result.json
"""

from typing import Any

import contest
import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

ROWS_PER_MICROBATCH = 8
VARIANTS: dict[str, Any] = {"bf16": "bf16-mixed", "float32": "32-true"}
Batch = tuple[Tensor, Tensor, Tensor]


class Student(lightning.LightningModule):
    """The model, its loss and its optimizer."""

    def __init__(self, watch: contest.Stopwatch, *, fused: bool):
        super().__init__()
        self.model = contest.build_model()
        self.watch = watch
        self.fused = fused

    def training_step(self, batch: Batch, _: int) -> Tensor:
        ids, labels, mask = batch
        self.watch.count(useful=int(mask.sum()), computed=ids.numel())
        return self.model(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(contest.decay_groups(self.model), lr=contest.LR, fused=self.fused)


class StepEnds(lightning.Callback):
    """Tells the stopwatch of each optimizer step, with the mean of its microbatches' losses."""

    def __init__(self, watch: contest.Stopwatch, *, microbatches: int):
        self.watch = watch
        self.microbatches = microbatches
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.losses.append(float(outputs["loss"]) * self.microbatches)  # Lightning divides it for the accumulation
        if len(self.losses) == self.microbatches:
            self.watch.end_step(sum(self.losses) / self.microbatches)
            self.losses = []


def main() -> None:
    arguments = contest.read_arguments(__doc__, list(VARIANTS))
    train, validation = contest.load_rows(arguments.data, arguments.tokenizer)
    watch = contest.Stopwatch()
    precision = VARIANTS[arguments.variant]
    student = Student(
        watch, fused=precision == "32-true"
    )  # Lightning refuses to clip a fused optimizer's gradients in bf16
    microbatches = contest.ROWS_PER_STEP // ROWS_PER_MICROBATCH
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        precision=precision,
        max_steps=arguments.steps,
        accumulate_grad_batches=microbatches,
        gradient_clip_val=contest.MAX_GRADIENT_NORM,
        callbacks=[StepEnds(watch, microbatches=microbatches)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(
        train,
        batch_size=ROWS_PER_MICROBATCH,
        shuffle=True,
        collate_fn=contest.pad,
        generator=torch.Generator().manual_seed(contest.SEED),
    )
    watch.start()
    trainer.fit(student, loader)
    name = f"Lightning {lightning.__version__} {arguments.variant}"
    contest.finish(arguments, watch, name=name, model=student.model, validation=validation)


if __name__ == "__main__":
    main()
