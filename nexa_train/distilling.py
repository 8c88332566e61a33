"""Learning from a teacher: the objective that a distillation's settings describe."""

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nexa_core.config.distillation import Distillation, SequenceLoss
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.datasets import Dataset
from nexa_models.causal_lm import CausalLm
from nexa_models.distillation_loss import (
    Divergence,
    summed_divergence,
    summed_divergence_of_states,
    summed_top_divergence,
)
from nexa_models.encoding import Batch, Encoded, Sequences
from nexa_models.loss import summed_loss
from nexa_models.numerics import seed_generators
from nexa_models.spec import ModelSpec
from nexa_models.teacher import Teacher, check_same_tokens, load_teacher, move
from nexa_models.vocabulary import special_ids_of
from nexa_train.objectives import Moment, Objective, cross_entropy
from nexa_train.order import derive_seed
from nexa_train.own_answers import OwnAnswers
from nexa_train.stored_answers import with_stored

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lesson:
    """What a run with a teacher learns by."""

    objective: Objective
    inputs: dict[str, Any]
    """What of it decides the weights beside the config: the teacher's digest."""


def plan_lesson(
    settings: Distillation, spec: ModelSpec, layout: Layout, *, device: torch.device, is_sharded: bool, packed: bool
) -> Lesson:
    """The objective that the settings describe, and what decides it.

    Raises:
        UserError: the teacher is not there, or its tokenizer is not the student's; or the student can't do what is asked of it.
    """
    if not spec.is_language_model:
        raise UserError(
            f"distillation is for language models; a {spec.model['name']} has no teacher here. Leave it out."
        )
    if isinstance(settings.loss, SequenceLoss):
        return Lesson(cross_entropy, {"loss": "sequence"})
    loss = settings.loss
    divergence = Divergence(
        loss.name, loss.temperature, beta=getattr(loss, "beta", 0.5), alpha=getattr(loss, "alpha", 0.1)
    )
    if settings.teacher is None:
        return Lesson(FromStored(divergence, loss.weight), {"loss": loss.name, "stored": settings.stored})
    teacher = load_teacher(layout.find(settings.teacher), max_tokens=spec.max_tokens, kind=spec.kind)
    check_same_tokens(teacher.spec, spec)
    own = None
    if settings.on_policy is not None:
        if packed or is_sharded:
            what = "training.packing" if packed else "strategy: fsdp"
            raise UserError(
                f"distillation.on_policy writes answers row by row, which {what} has no place for; leave one of them out."
            )
        own = OwnAnswers(settings.on_policy, special_ids_of(spec), spec.max_tokens)
    logger.info(
        "teacher %s: %s parameters", settings.teacher, f"{sum(w.numel() for w in teacher.model.parameters()):,}"
    )
    objective = FromTeacher(move(teacher, device), divergence, loss.weight, own, takes_states=not is_sharded)
    return Lesson(objective, {"loss": loss.name, "teacher": teacher.digest})


def bring_stored(settings: Distillation, data: Encoded, dataset: Dataset, layout: Layout) -> Encoded:
    """The training rows with what is stored of a teacher's probabilities, where the settings ask for that."""
    if settings.stored is None:
        return data
    if not isinstance(data, Sequences):
        raise UserError(
            "distillation.stored is for rows that are encoded for each run; leave output.sequence_tokens out."
        )
    found, outputs = with_stored(data, dataset, settings.stored, layout)
    logger.info(
        "log probabilities of %s: %s places", outputs.key, f"{len(found.stored.tail_mass):,}" if found.stored else 0
    )
    return found


@dataclass(frozen=True)
class FromTeacher:
    """A share of the divergence from the teacher, the rest cross entropy on the batch's targets."""

    teacher: Teacher
    divergence: Divergence
    share: float
    own: OwnAnswers | None
    takes_states: bool
    """Whether the output layers may be applied outside of the models, in chunks."""

    def __call__(self, model: nn.Module, batch: Batch, moment: Moment) -> Tensor:
        if self.own is not None and self.own.is_drawn(moment):
            own = self.own.write(_unwrapped(model), batch, moment)
            seed_generators(derive_seed(moment.seed, "dropout", moment.step, moment.index), own.batch.targets.device)
            return self._loss(model, own.batch, share=1.0, weights=own.weights)
        return self._loss(model, batch, share=self.share, weights=None)

    def _loss(self, model: nn.Module, batch: Batch, *, share: float, weights: Tensor | None) -> Tensor:
        student, teacher = _unwrapped(model), self.teacher.model
        if self.takes_states and student.applies_head_alone and teacher.applies_head_alone:
            with torch.no_grad():
                theirs = teacher(**batch.inputs, with_head=False)
            ours = model(**batch.inputs, with_head=False)
            return summed_divergence_of_states(
                ours, student.head, theirs, teacher.head, self.divergence, weights, targets=batch.targets, share=share
            )
        with torch.no_grad():
            theirs = teacher(**batch.inputs)
        logits = model(**batch.inputs)
        loss = share * summed_divergence(logits, theirs, self.divergence, weights)
        return loss if share == 1.0 else loss + (1 - share) * summed_loss(logits, batch.targets)


@dataclass(frozen=True)
class FromStored:
    """The same with the log probabilities that were stored; a target of which none are is learned by cross entropy alone."""

    divergence: Divergence
    share: float

    def __call__(self, model: nn.Module, batch: Batch, moment: Moment) -> Tensor:
        logits, beside = model(**batch.inputs), batch.beside
        stored = beside["is_stored"]
        loss = summed_loss(logits[~stored], batch.targets[~stored])
        kept = logits[stored]
        if self.share < 1.0:
            loss = loss + (1 - self.share) * summed_loss(kept, batch.targets[stored])
        ids, logprobs, tail = (beside[name][stored] for name in ("top_ids", "top_logprobs", "tail_mass"))
        return loss + self.share * summed_top_divergence(kept, ids, logprobs, tail, self.divergence)


def _unwrapped(model: nn.Module) -> CausalLm:
    """The language model inside what distributes it."""
    inner = getattr(model, "module", model)
    assert isinstance(inner, CausalLm)
    return inner
