"""What is learned from a teacher: its probabilities, live or stored, beside the targets' cross entropy."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
from nexa_models.encoding import Batch
from nexa_models.numerics import seed_generators
from nexa_models.teacher import Teacher
from nexa_train.objectives import Moment
from nexa_train.order import derive_seed
from nexa_train.own_answers import OwnAnswers

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
