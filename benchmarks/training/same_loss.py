"""Shows that ours learns what the shortest loop learns: the same packs in the same order, losses step by step.

The bare loop attends through PyTorch's own operator with a block-diagonal mask, takes PyTorch's cross entropy over all
logits in float32, its AdamW and its clipping, and sums gradients as they come. Ours is a whole run.

    python same_loss.py --variant packed-compiled-bf16 --data rows.jsonl --tokenizer folder --out result.json --steps 40
"""

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import contest
import torch
from ours import DATASET, VARIANTS, lay_out, run_config
from torch import Tensor
from torch.nn.functional import cross_entropy

from nexa_core import durable
from nexa_core.config import DataConfig, RunConfig
from nexa_core.paths import Layout
from nexa_core.trackers import read_json_lines
from nexa_data.prepare import prepare
from nexa_models.causal_lm import block_diagonal_mask
from nexa_train import train
from nexa_train.distributed.world import World
from nexa_train.feed import Feed, StepData
from nexa_train.job import Job, make_job


def main() -> None:
    arguments = contest.read_arguments(__doc__, list(VARIANTS))
    with tempfile.TemporaryDirectory() as root:
        layout = Layout(Path(root))
        lay_out(layout, arguments)
        prepare(DataConfig.model_validate_json(json.dumps({"datasets": [DATASET]})), layout)
        config = RunConfig.model_validate_json(json.dumps(run_config(arguments, layout.root / "model")))
        result = train.run(config, layout=layout)
        ours = [line["loss"] for line in read_json_lines(result.run.step_metrics) if "loss" in line]
        job = make_job(config, layout, world=World(), source=None)
        bare = list(bare_losses(job))
    ours = ours[: len(bare)]
    apart = [abs(one - other) / other for one, other in zip(ours, bare, strict=True)]
    found = {"variant": arguments.variant, "ours": ours, "bare": bare, "largest_relative_difference": max(apart)}
    durable.write_json(arguments.out, found)
    print(
        f"{arguments.variant}, {len(bare)} steps: ours {ours[-1]:.4f}, the bare loop {bare[-1]:.4f} nats at the last; "
        f"largest difference of a step {max(apart):.2e} of its loss\n{arguments.out}"
    )


def bare_losses(job: Job) -> Iterator[float]:
    """The loss of each step of the job's plan, learned by the shortest loop from the weights that all begin with."""
    model, settings = contest.build_model(), job.config.training
    optimizer = torch.optim.AdamW(contest.decay_groups(model), lr=contest.LR, fused=True)
    feed = Feed(job.train_data, job.plan, 0, 1, 0, job.device)
    with contextlib.closing(feed.steps(0)) as steps:
        for step in steps:
            total = sum(learn(model, step, index, bf16=settings.precision == "bfloat16") for index in step.batches)
            torch.nn.utils.clip_grad_norm_(model.parameters(), contest.MAX_GRADIENT_NORM)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            yield float(total)


def learn(model: torch.nn.Module, step: StepData, index: int, *, bf16: bool) -> Tensor:
    batch = step.batches[index]
    given = batch.inputs
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        mask = block_diagonal_mask(given["documents"])
        logits = model(
            input_ids=given["ids"], attention_mask=mask, position_ids=given["positions"], use_cache=False
        ).logits
    loss = cross_entropy(logits.flatten(0, 1)[given["at"]].float(), batch.targets, reduction="sum") / step.num_targets
    loss.backward()
    return loss.detach()


if __name__ == "__main__":
    main()
