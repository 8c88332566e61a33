"""Settings of what is left out of a dataset although it is readable: near duplicates, and what an evaluation set holds."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field

from nexa_core.config.base import Settings


class NearDuplicates(Settings):
    """Texts that share most of their word 5-grams are kept once only: the one with the smallest row id."""

    threshold: Annotated[float, Field(ge=0.7, le=1)] = 0.8
    """Least share of word 5-grams (Jaccard similarity) of near duplicates. Of pairs at 0.7 about 56% are found, at 0.8 92%."""


class Decontamination(Settings):
    """Rows that repeat texts of an evaluation set are left out, or listed."""

    against: Annotated[tuple[str, ...], Field(min_length=1)]
    """Prepared datasets with their versions, e.g. [gsm8k_v1], whose split `test` no row may repeat."""
    action: Literal["remove", "report"] = "remove"
    """Whether rows that overlap are left out, or kept and listed, so that `evaluate` tells the score without them as well."""
    ngram_words: Annotated[int, Field(ge=2)] = 13
    """Words in a row that two texts must share to count as overlapping."""
    min_ngram_words: Annotated[int, Field(ge=2)] = 8
    """Words that a shorter evaluation text, or a piece of one between templates, must have to be looked for inside others."""
    min_coverage: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Least share of words, of the evaluation text or of the row, that overlap in a row that counts as one."""
    templates: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that many evaluation texts share by design, such as instructions; their words do not count."""

    def searches(self) -> dict[str, Any]:
        """The settings without those that only say what is done with a row that overlaps."""
        return self.model_dump(mode="json", exclude={"against", "action"})

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.min_ngram_words > self.ngram_words:
            yield ("min_ngram_words",), f"{self.min_ngram_words} is more than ngram_words, {self.ngram_words}"
