"""The Hugging Face Trainer with rows of like length in one batch.

python peer_hf_trainer.py --variant grouped-bf16 --data rows.jsonl --tokenizer folder --out result.json
"""

from typing import Any

import contest
import timed_trainer
import transformers
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

VARIANTS: dict[str, dict[str, Any]] = {"grouped-bf16": {"bf16": True}, "grouped-float32": {}}


def main() -> None:
    arguments = contest.read_arguments(__doc__, list(VARIANTS))
    train, validation = contest.load_rows(arguments.data, arguments.tokenizer)
    trainer = Trainer(
        contest.build_model(),
        TrainingArguments(
            **timed_trainer.settings(arguments),
            train_sampling_strategy="group_by_length",
            gradient_accumulation_steps=contest.ROWS_PER_STEP // 8,
            **VARIANTS[arguments.variant],
        ),
        train_dataset=timed_trainer.dataset(train),
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(arguments.tokenizer)),
    )
    name = f"HF Trainer {transformers.__version__} {arguments.variant}"
    timed_trainer.race(trainer, arguments, name=name, validation=validation)


if __name__ == "__main__":
    main()
