"""Answers that the student writes itself while it learns; they are a function of its weights and of the moment."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nexa_core.config.distillation import OnPolicy
from nexa_models.causal_lm import CausalLm
from nexa_models.encoding import Batch
from nexa_models.generation import Draw, write
from nexa_models.marks import SpecialIds
from nexa_models.numerics import uncompiled
from nexa_train.objectives import Moment
from nexa_train.order import derive_seed


@dataclass(frozen=True)
class Written:
    """A batch of the student's own answers."""

    batch: Batch
    weights: Tensor
    """(n,) what each of its tokens counts; their sum is the number of targets that the batch would have had."""


@dataclass(frozen=True)
class OwnAnswers:
    settings: OnPolicy
    marks: SpecialIds
    max_tokens: int

    def is_drawn(self, moment: Moment) -> bool:
        """Whether this microbatch is one that the student answers."""
        drawn = derive_seed(moment.seed, "on_policy", moment.step, moment.index) / 2**63
        return drawn < self.settings.share

    @torch.no_grad()
    def write(self, model: CausalLm, batch: Batch, moment: Moment) -> Written:
        """The batch's prompts with the student's answers in place of those it has."""
        prompts = _prompts(batch)
        if not prompts:
            return Written(batch, torch.ones(len(batch.targets), device=batch.targets.device))
        answers = self._generate(model, prompts, moment)
        rows = [torch.cat([prompt, answer]) for prompt, answer in zip(prompts, answers, strict=True)]
        width = max(map(len, rows)) - 1
        ids = prompts[0].new_full((len(rows), width), self.marks.padding)
        at, targets, weights = [], [], []
        for number, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
            ids[number, : len(row) - 1] = row[:-1]
            length = len(row) - len(prompt)
            at.append(torch.arange(len(prompt) - 1, len(row) - 1, device=ids.device) + number * width)
            targets.append(row[len(prompt) :])
            weights.append(
                torch.full((length,), 1 / length if self.settings.normalise == "answers" else 1.0, device=ids.device)
            )
        weighed = torch.cat(weights)
        made = replace(batch, inputs={"ids": ids, "at": torch.cat(at)}, targets=torch.cat(targets), target_rows=None)
        return Written(made, weighed * (len(batch.targets) / weighed.sum()))

    def _generate(self, model: CausalLm, prompts: list[Tensor], moment: Moment) -> list[Tensor]:
        """The tokens of each answer, its end among them where it came."""
        room = self.max_tokens - max(map(len, prompts))
        draw = Draw(max(1, min(self.settings.max_new_tokens, room)), temperature=self.settings.temperature)
        seeds = [derive_seed(moment.seed, "own answers", moment.step, moment.index, row) for row in range(len(prompts))]
        was_training = model.training
        model.eval()
        with uncompiled(model.transformer.base_model):  # its shapes are others at each token
            written = write(
                model,
                [prompt.tolist() for prompt in prompts],
                draw,
                seeds=seeds,
                stop_ids=[self.marks.end],
                padding_id=self.marks.padding,
            )
        model.train(was_training)
        return [prompt.new_tensor(answer.ids) for prompt, answer in zip(prompts, written, strict=True)]


def _prompts(batch: Batch) -> list[Tensor]:
    """The tokens of each row in front of its first target; rows without a target are none."""
    ids, at = batch.inputs["ids"], batch.inputs["at"]
    width = ids.shape[1]
    first: dict[int, int] = {}
    for place in at.tolist():
        row, column = divmod(place, width)
        first[row] = min(first.get(row, column), column)
    return [ids[row, : column + 1] for row, column in sorted(first.items())]
