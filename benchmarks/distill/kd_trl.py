"""TRL's contestant of `kd.py`: GKDTrainer on a teacher's distributions alone, with rows that are tokenised already.

python kd_trl.py root result.json
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl.experimental.gkd import GKDConfig, GKDTrainer

IGNORED = -100


class Watch(TrainerCallback):
    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())


def main() -> None:
    root, out = map(Path, sys.argv[1:])
    settings = json.loads((root / "run.json").read_text(encoding="utf-8"))["training"]
    torch.set_num_threads(settings["num_threads"])
    rows = json.loads((root / "rows.json").read_text(encoding="utf-8"))
    tokenizer = AutoTokenizer.from_pretrained(root / "student")
    num_microbatches = settings["gradient_accumulation_steps"]
    watch = Watch()
    trainer = GKDTrainer(
        AutoModelForCausalLM.from_pretrained(root / "student", dtype=torch.float32),
        AutoModelForCausalLM.from_pretrained(root / "teacher", dtype=torch.float32),
        GKDConfig(
            output_dir=tempfile.mkdtemp(),
            max_steps=settings["max_steps"],
            per_device_train_batch_size=settings["batch_size"] // num_microbatches,
            gradient_accumulation_steps=num_microbatches,
            learning_rate=settings["optimizer"]["lr"],
            lr_scheduler_type="constant",
            weight_decay=0.0,
            max_grad_norm=settings["max_gradient_norm"],
            bf16=settings["precision"] == "bfloat16",
            gradient_checkpointing=False,
            lmbda=0.0,
            beta=0.5,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        ),
        data_collator=lambda given: collate(given, tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[watch],
    )
    trainer.train()
    per_step = settings["batch_size"]
    useful = sum(len(row["ids"]) - 1 for row in rows[per_step:])
    found = {
        "tokens_per_second": useful / (watch.ends[-1] - watch.ends[0]),
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }
    out.write_text(json.dumps(found), encoding="utf-8")


def collate(rows: list[dict[str, Any]], padding_id: int) -> dict[str, torch.Tensor]:
    longest = max(len(row["ids"]) for row in rows)
    ids = torch.full((len(rows), longest), padding_id)
    labels, mask = torch.full_like(ids, IGNORED), torch.zeros_like(ids)
    for number, row in enumerate(rows):
        length = len(row["ids"])
        ids[number, :length] = torch.tensor(row["ids"])
        learned = torch.tensor(row["learned"])
        labels[number, :length] = torch.where(learned, ids[number, :length], IGNORED)
        mask[number, :length] = 1
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


if __name__ == "__main__":
    main()
