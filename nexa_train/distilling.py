"""Learning from a teacher: the objective that a distillation's settings describe."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nexa_core.config.distillation import Distillation, SequenceLoss
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.datasets import Dataset
from nexa_models.causal_lm import CausalLm
from nexa_models.distillation_loss import (
    Learned,
    Opinion,
    TopOpinion,
    WholeOpinion,
    loss_of_logits,
    loss_of_states,
)
from nexa_models.divergences import Divergence
from nexa_models.encoding import Batch, Encoded, Sequences
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
    parents: tuple[Path, ...] = ()
    """The files that the teacher, or what is stored of it, was read from."""


def plan_lesson(
    settings: Distillation,
    spec: ModelSpec,
    layout: Layout,
    *,
    outputs: Dataset | None,
    device: torch.device,
    is_sharded: bool,
    packed: bool,
) -> Lesson:
    """The objective that the settings describe, and what decides it.

    Args:
        outputs: the dataset that log probabilities are stored in, where `bring_stored` found one.

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
        assert outputs is not None
        stored = FromStored(divergence, loss.weight, takes_states=not is_sharded)
        return Lesson(stored, {"loss": loss.name, "stored": outputs.fingerprint}, (outputs.manifest_path,))
    path = layout.find(settings.teacher)
    teacher = load_teacher(path, max_tokens=spec.max_tokens, kind=spec.kind)
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
    return Lesson(objective, {"loss": loss.name, "teacher": teacher.digest}, (path,))


def bring_stored(
    settings: Distillation, data: Encoded, dataset: Dataset, layout: Layout
) -> tuple[Encoded, Dataset | None]:
    """The training rows with what is stored of a teacher's probabilities, and where, if the settings ask for that."""
    if settings.stored is None:
        return data, None
    if not isinstance(data, Sequences):
        raise UserError(
            "distillation.stored is for rows that are encoded for each run; leave output.sequence_tokens out."
        )
    found, outputs = with_stored(data, dataset, settings.stored, layout)
    logger.info(
        "log probabilities of %s: %s places", outputs.key, f"{len(found.stored.tail_mass):,}" if found.stored else 0
    )
    return found, outputs


PARTS = ("divergence", "cross_entropy")


@dataclass(frozen=True)
class FromTeacher:
    """A share of the divergence from the teacher, the rest cross entropy on the batch's targets.

    Of its own answers the student learns by the divergence alone.
    """

    teacher: Teacher
    divergence: Divergence
    share: float
    own: OwnAnswers | None
    takes_states: bool
    """Whether the output layers may be applied outside of the models, in chunks."""

    @property
    def parts(self) -> tuple[str, ...]:
        return PARTS

    def __call__(self, model: nn.Module, batch: Batch, moment: Moment) -> Tensor:
        if self.own is not None and self.own.is_drawn(moment):
            own = self.own.write(_unwrapped(model), batch, moment)
            seed_generators(derive_seed(moment.seed, "dropout", moment.step, moment.index), own.batch.targets.device)
            return self._compare(model, own.batch, Learned(own.weights))
        counts = torch.ones(len(batch.targets), device=batch.targets.device)
        of_targets = (1 - self.share) * counts if self.share < 1.0 else None
        return self._compare(model, batch, Learned(self.share * counts, batch.targets, of_targets))

    def _compare(self, model: nn.Module, batch: Batch, learned: Learned) -> Tensor:
        teacher = self.teacher.model
        with_states = self.takes_states and teacher.applies_head_alone
        with torch.no_grad():
            theirs = teacher(**batch.inputs, with_head=not with_states)
        opinion = WholeOpinion.of_states(theirs, teacher.head) if with_states else WholeOpinion.of_logits(theirs)
        return _learn(model, batch, opinion, self.divergence, learned, takes_states=self.takes_states)


@dataclass(frozen=True)
class FromStored:
    """The same with the log probabilities that were stored; a target of which none are is learned by cross entropy alone."""

    divergence: Divergence
    share: float
    takes_states: bool

    @property
    def parts(self) -> tuple[str, ...]:
        return PARTS

    def __call__(self, model: nn.Module, batch: Batch, moment: Moment) -> Tensor:
        beside = batch.beside
        counts = self.share * beside["is_stored"].float()
        opinion = TopOpinion(beside["top_ids"], beside["top_logprobs"], beside["tail_mass"])
        learned = Learned(counts, batch.targets, 1 - counts)
        return _learn(model, batch, opinion, self.divergence, learned, takes_states=self.takes_states)


def _learn(
    model: nn.Module, batch: Batch, opinion: Opinion, divergence: Divergence, learned: Learned, *, takes_states: bool
) -> Tensor:
    """What an objective gives: the loss, and of each of `PARTS` its sum and its targets."""
    student = _unwrapped(model)
    if takes_states and student.applies_head_alone and type(student.head) is nn.Linear:  # and no adapter around one
        numbers = loss_of_states(model(**batch.inputs, with_head=False), student.head, opinion, divergence, learned)
    else:
        numbers = loss_of_logits(model(**batch.inputs), opinion, divergence, learned)
    num_compared = (learned.divergence != 0).sum()
    num_targets = num_compared.new_tensor(0 if learned.targets is None else len(learned.targets))
    loss, divergences, cross_entropies = numbers.unbind()
    return torch.stack([loss, divergences, num_compared, cross_entropies, num_targets])


def _unwrapped(model: nn.Module) -> CausalLm:
    """The language model inside what distributes it."""
    inner = getattr(model, "module", model)
    assert isinstance(inner, CausalLm)
    return inner
