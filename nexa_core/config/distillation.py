"""Settings of learning from a teacher: which one, by which loss, on whose texts."""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from nexa_core.config.base import Settings

Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, Field(gt=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class SequenceLoss(Settings):
    """Cross entropy on the teacher's answers alone. Source: Kim and Rush 2016, arXiv:1606.07947."""

    name: Literal["sequence"]


class DivergenceLoss(Settings):
    weight: Share = 0.5
    """What the divergence from the teacher counts; cross entropy on the answers counts the rest. 1 leaves that out."""
    temperature: PositiveFloat = 1.0
    """Both distributions are softened by it; the divergence is multiplied by its square."""


class ForwardKl(DivergenceLoss):
    """KL of teacher from student. Source: Hinton et al. 2015, arXiv:1503.02531."""

    name: Literal["forward_kl"]


class ReverseKl(DivergenceLoss):
    """KL of student from teacher. Source: Gu et al. 2023, arXiv:2306.08543."""

    name: Literal["reverse_kl"]


class Jsd(DivergenceLoss):
    """The generalised Jensen-Shannon divergence. Source: Agarwal et al. 2023, arXiv:2306.13649."""

    name: Literal["jsd"]
    beta: Share = 0.5
    """0: forward KL. 1: reverse KL."""


class SkewKl(DivergenceLoss):
    """KL of teacher from a mixture with the student. Source: Ko et al. 2024, arXiv:2402.03898."""

    name: Literal["skew_kl"]
    alpha: OpenShare = 0.1
    """The teacher's share of the mixture."""


class SkewReverseKl(DivergenceLoss):
    """KL of student from a mixture with the teacher. Source: Ko et al. 2024, arXiv:2402.03898."""

    name: Literal["skew_reverse_kl"]
    alpha: OpenShare = 0.1
    """The student's share of the mixture."""


Loss = Annotated[
    SequenceLoss | ForwardKl | ReverseKl | Jsd | SkewKl | SkewReverseKl,
    Field(discriminator="name"),
]


class OnPolicy(Settings):
    """The student answers some prompts itself, and learns from what the teacher thinks of its answers.

    Source: Agarwal et al. 2023, arXiv:2306.13649, algorithm 1.
    """

    share: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Of the microbatches, those that the student answers."""
    max_new_tokens: Annotated[int, Field(gt=0)] = 64
    """Longest answer."""
    temperature: PositiveFloat = 1.0
    """At which its tokens are drawn."""
    normalise: Literal["tokens", "answers"] = "tokens"
    """What counts alike: each token, or each answer, however long it is (MiniLLM, arXiv:2306.08543, section 2.2)."""


class Distillation(Settings):
    """Learning from a teacher's answers, or also from the probabilities behind them."""

    loss: Loss = SequenceLoss(name="sequence")
    teacher: str | None = None
    """The model itself: a checkpoint (.pt) or a folder as transformers writes it."""
    stored: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Or the log probabilities that were collected with its answers: datasets of teacher_outputs, or of the filtered pairs."""
    on_policy: OnPolicy | None = None

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if isinstance(self.loss, SequenceLoss):
            for key in ("teacher", "stored", "on_policy"):
                if getattr(self, key) is not None:
                    yield (
                        (key,),
                        "`loss: {name: sequence}` learns from the answers alone; choose another loss, or leave it out",
                    )
            return
        if self.teacher is None and self.stored is None:
            yield (
                ("teacher",),
                "a divergence needs the teacher: its checkpoint or folder as `teacher`, or `stored` log probabilities",
            )
        if self.teacher is not None and self.stored is not None:
            yield ("stored",), "the teacher itself says more than what is stored of it; keep one of the two"
        if self.stored is not None and self.loss.temperature != 1.0:
            yield (
                ("loss", "temperature"),
                "stored log probabilities are those of temperature 1; others need the whole distribution",
            )
        if self.stored is not None and self.on_policy is not None:
            yield ("on_policy",), "nothing is stored of what the student will answer; name a `teacher`"
