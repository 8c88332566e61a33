"""Answers that the student writes itself while it learns; they are a function of its weights and of the moment."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nexa_core.config.distillation import OnPolicy
from nexa_models.causal_lm import CausalLm
from nexa_models.encoding import Batch
from nexa_models.marks import SpecialIds
from nexa_models.numerics import seed_generators
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
        longest = max(map(len, prompts))
        num_new = max(1, min(self.settings.max_new_tokens, self.max_tokens - longest))
        ids = prompts[0].new_full((len(prompts), longest), self.marks.padding)
        for number, prompt in enumerate(prompts):
            ids[number, longest - len(prompt) :] = prompt
        mask = torch.zeros_like(ids)
        for number, prompt in enumerate(prompts):
            mask[number, longest - len(prompt) :] = 1
        seed_generators(derive_seed(moment.seed, "own answers", moment.step, moment.index), ids.device)
        was_training = model.training
        model.eval()
        out = model.sample(
            ids,
            mask,
            max_new_tokens=num_new,
            temperature=self.settings.temperature,
            end_id=self.marks.end,
            padding_id=self.marks.padding,
        )
        model.train(was_training)
        return [_up_to(answer, self.marks.end) for answer in out]


def _prompts(batch: Batch) -> list[Tensor]:
    """The tokens of each row in front of its first target; rows without a target are none."""
    ids, at = batch.inputs["ids"], batch.inputs["at"]
    width = ids.shape[1]
    first: dict[int, int] = {}
    for place in at.tolist():
        row, column = divmod(place, width)
        first[row] = min(first.get(row, column), column)
    return [ids[row, : column + 1] for row, column in sorted(first.items())]


def _up_to(answer: Tensor, end: int) -> Tensor:
    found: Any = (answer == end).nonzero()
    return answer if not len(found) else answer[: int(found[0]) + 1]
