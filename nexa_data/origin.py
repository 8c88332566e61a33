"""What a dataset is made of, each file with its digest."""

from dataclasses import dataclass
from typing import Any

from nexa_core.config.quality import CustomStep
from nexa_data.evaluation_sets import EvaluationSet, open_evaluation_set
from nexa_data.places import Places
from nexa_data.quality.own import code_of
from nexa_data.sources import Source, open_source
from nexa_data.templates import PromptTemplate, open_template
from nexa_data.tokens import tokenizer_origins


@dataclass(frozen=True)
class Origin:
    """The source of a dataset, a prompt template, a tokenizer's file, a user's functions, and the evaluation sets that rows are
    held against."""

    places: Places
    source: Source
    evaluation: EvaluationSet | None
    template: PromptTemplate | None
    """As it was when it was opened: what is recorded is what prompts are made with."""

    def sources(self) -> list[dict[str, Any]]:
        """Refuses a file that has changed since it was opened."""
        templates = [] if self.template is None else [self.template.origin()]
        return self.source.origins() + templates + self.tokenizers() + self.functions()

    def functions(self) -> list[dict[str, Any]]:
        """The user's own quality steps, by the digests of their code."""
        names = {step.name for step in self.places.config.quality if isinstance(step, CustomStep)}
        return [{"file": name, "sha256": code_of(name)} for name in sorted(names)]

    def tokenizers(self) -> list[dict[str, Any]]:
        """Refuses a tokenizer that does not fit what it is for."""
        return tokenizer_origins(self.places.config, self.places.layout)

    def evaluation_sets(self) -> list[dict[str, Any]]:
        return [] if self.evaluation is None else self.evaluation.facts()


def open_origin(places: Places) -> Origin:
    """What the settings name.

    Raises:
        UserError: something of it is not there.
    """
    config, layout = places.config, places.layout
    evaluation = None if config.decontaminate is None else open_evaluation_set(config.decontaminate, layout)
    template = open_template(config.rows, layout)
    return Origin(places, open_source(config.source, layout), evaluation, template)
