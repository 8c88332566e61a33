"""TRL's SFTTrainer: as it comes, with packing switched on, and with the best settings found for it on a CPU.

python peer_trl.py --variant default --data rows.jsonl --tokenizer folder --out result.json
"""

from typing import Any

import contest
import timed_trainer
import trl
from transformers import AutoTokenizer

PACKS_PER_STEP = 5
VARIANTS: dict[str, dict[str, Any]] = {
    # bf16 and gradient checkpointing are on, 8 rows a microbatch: SFTConfig's own defaults.
    "default": {"gradient_accumulation_steps": contest.ROWS_PER_STEP // 8},
    # Packs of max_length, 1024 by default. All packs of a microbatch become one sequence, and SDPA computes its square.
    "packed": {"packing": True, "per_device_train_batch_size": PACKS_PER_STEP},
    # So one pack of the smallest length that cuts no row is a microbatch, in float32, with all activations kept.
    "packed-float32": {
        "packing": True,
        "max_length": 512,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2 * PACKS_PER_STEP,
        "bf16": False,
        "gradient_checkpointing": False,
    },
}


def main() -> None:
    arguments = contest.read_arguments(__doc__, list(VARIANTS))
    train, validation = contest.load_rows(arguments.data, arguments.tokenizer)
    trainer = trl.SFTTrainer(
        contest.build_model(),
        trl.SFTConfig(**timed_trainer.settings(arguments), **VARIANTS[arguments.variant]),
        train_dataset=timed_trainer.dataset(train),
        processing_class=AutoTokenizer.from_pretrained(arguments.tokenizer),
    )
    name = f"TRL {trl.__version__} {arguments.variant}"
    timed_trainer.race(trainer, arguments, name=name, validation=validation)


if __name__ == "__main__":
    main()
