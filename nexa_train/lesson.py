"""What a distillation's settings come to: the rows, the teacher, and the objective to learn by."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nexa_core.config.distillation import Distillation, SequenceLoss
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.datasets import Dataset
from nexa_models.divergences import Divergence
from nexa_models.encoding import Encoded, Sequences
from nexa_models.spec import ModelSpec
from nexa_models.teacher import TeacherFiles, check_same_tokens, find_teacher, move
from nexa_models.token_rows import TokenRows
from nexa_models.vocabulary import special_ids_of
from nexa_train.distilling import FromStored, FromTeacher
from nexa_train.objectives import Objective, cross_entropy
from nexa_train.own_answers import OwnAnswers
from nexa_train.stored_answers import with_stored

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lesson:
    """Checked against the data, with nothing of the teacher's weights read yet."""

    settings: Distillation
    spec: ModelSpec
    teacher: TeacherFiles | None
    """None where answers, or what is stored of it beside them, are enough."""
    outputs: tuple[Dataset, ...]
    """Where that is stored."""
    is_sharded: bool
    """Whether the student's weights are cut into shards, so that its output layer can't be applied by itself."""

    @property
    def inputs(self) -> dict[str, Any]:
        """What decides the weights beside the config."""
        found: dict[str, Any] = {"loss": self.settings.loss.name}
        if self.teacher is not None:
            found["teacher"] = self.teacher.digest
        if self.outputs:
            fingerprints = [each.fingerprint for each in self.outputs]
            found["stored"] = fingerprints[0] if isinstance(self.settings.stored, str) else fingerprints
        return found

    @property
    def parents(self) -> tuple[Path, ...]:
        """The files that the teacher, or what is stored of it, is read from."""
        teacher = () if self.teacher is None else (self.teacher.path,)
        return (*teacher, *(each.manifest_path for each in self.outputs))

    def objective(self, device: torch.device) -> Objective:
        """What a microbatch's loss is, with the teacher loaded."""
        return self._objective(device, is_real=True, writes=True)

    def imagined(self, device: torch.device, *, writes: bool) -> Objective:
        """The same with a teacher of the same sizes that has learned nothing, for what only looks at those.

        Args:
            writes: whether the student writes answers of its own where it is to; it can't where tensors have no values.
        """
        return self._objective(device, is_real=False, writes=writes)

    def _objective(self, device: torch.device, *, is_real: bool, writes: bool) -> Objective:
        loss, takes_states = self.settings.loss, not self.is_sharded
        if isinstance(loss, SequenceLoss):
            return cross_entropy
        divergence = Divergence(
            loss.name, loss.temperature, beta=getattr(loss, "beta", 0.5), alpha=getattr(loss, "alpha", 0.1)
        )
        if self.teacher is None:
            return FromStored(divergence, loss.weight, takes_states=takes_states)
        teacher = move(self.teacher.load() if is_real else self.teacher.imagine(), device)
        own = None
        if self.settings.on_policy is not None and writes:
            own = OwnAnswers(self.settings.on_policy, special_ids_of(self.spec), self.spec.max_tokens)
        return FromTeacher(teacher, divergence, loss.weight, own, takes_states=takes_states)


def plan_lesson(
    settings: Distillation,
    encoded: Encoded,
    spec: ModelSpec,
    dataset: Dataset,
    layout: Layout,
    *,
    is_packing: bool,
    is_sharded: bool,
) -> tuple[Encoded, Lesson]:
    """The training rows, with what is stored of a teacher beside them, and what is to be made of them.

    Raises:
        UserError: the teacher is not there, or its tokenizer is not the student's; or the student can't do what is asked of it.
    """
    if not spec.is_language_model:
        raise UserError(
            f"distillation is for language models; a {spec.model['name']} has no teacher here. Leave it out."
        )
    teacher: TeacherFiles | None = None
    outputs: tuple[Dataset, ...] = ()
    if settings.stored is not None:
        encoded, outputs = _bring_stored(settings.stored, encoded, dataset, layout, spec)
    if settings.teacher is not None:
        teacher = find_teacher(layout.find(settings.teacher), max_tokens=spec.max_tokens, kind=spec.kind)
        check_same_tokens(teacher.spec, spec)
    if settings.on_policy is not None and (is_packing or is_sharded or isinstance(encoded, TokenRows)):
        what = "strategy: fsdp" if is_sharded else "training.packing" if is_packing else "output.sequence_tokens"
        raise UserError(
            f"distillation.on_policy writes answers row by row, which {what} has no place for; leave one of them out."
        )
    return encoded, Lesson(settings, spec, teacher, outputs, is_sharded)


def _bring_stored(
    stored: str | tuple[str, ...], encoded: Encoded, dataset: Dataset, layout: Layout, spec: ModelSpec
) -> tuple[Encoded, tuple[Dataset, ...]]:
    if not isinstance(encoded, Sequences):
        raise UserError(
            "distillation.stored is for rows that are encoded for each run; leave output.sequence_tokens out."
        )
    keys = (stored,) if isinstance(stored, str) else stored
    found, outputs = with_stored(encoded, dataset, keys, layout, spec)
    assert found.stored is not None
    logger.info("log probabilities of %s: %s places", ", ".join(keys), f"{len(found.stored.tail_mass):,}")
    return found, outputs
