"""Settings of the quality steps that `prepare` puts rows through: what is measured, and which values are kept."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag

from nexa_core.config.base import Settings

Of = Literal["all", "prompt", "completion"]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]

PrivateKind = Literal["email", "ip_address", "phone", "card", "iban", "secret"]
PRIVATE_KINDS: tuple[PrivateKind, ...] = get_args(PrivateKind)


def not_a_pattern(key: str, pattern: str | None) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """The conflict of a setting that has to be a regular expression, and is none."""
    try:
        re.compile(pattern or "")
    except re.error as error:
        yield (key,), f"not a regular expression: {error}"


class StepSettings(Settings):
    """What every step has."""

    of: Of = "all"
    """Which text of a row is looked at: all of it, or of pairs one side; of chats, `completion` is what the assistant says."""

    def measures(self) -> dict[str, Any]:
        """The settings that decide a row's scores; the others only say which scores are kept."""
        return {"name": getattr(self, "name", ""), "of": self.of}


class LengthStep(StepSettings):
    """Texts that are neither too short nor too long."""

    name: Literal["length"]
    min_chars: Count | None = None
    """Characters."""
    max_chars: Count | None = None
    min_words: Count | None = None
    """Words are what white space parts."""
    max_words: Count | None = None

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.min_chars is self.max_chars is self.min_words is self.max_words is None:
            yield (), "it leaves no row out: set one of its limits"


class LanguageStep(StepSettings):
    """Texts in one of some languages, as py3langid tells them."""

    name: Literal["language"]
    languages: Annotated[tuple[str, ...], Field(min_length=1)]
    """ISO 639-1 codes, e.g. [en, de]."""
    min_probability: Share = 0.5
    """Least probability of the languages together."""

    def measures(self) -> dict[str, Any]:
        return {**super().measures(), "languages": sorted(self.languages)}


class RepetitionStep(StepSettings):
    """Texts that do not repeat themselves, by the thresholds of Gopher.

    Source: Rae et al. 2021, arXiv:2112.11446, table A1.
    """

    name: Literal["repetition"]
    max_duplicate_line_share: Share = 0.30
    """Of the lines, those that stand earlier in the text as well."""
    max_duplicate_paragraph_share: Share = 0.30
    max_duplicate_line_char_share: Share = 0.20
    """Characters in such lines."""
    max_duplicate_paragraph_char_share: Share = 0.20
    max_top_ngram_char_shares: tuple[Share, Share, Share] = (0.20, 0.18, 0.16)
    """Characters in the most frequent sequence of 2, 3 and 4 words."""
    max_duplicate_ngram_char_shares: tuple[Share, Share, Share, Share, Share, Share] = (
        0.15,
        0.14,
        0.13,
        0.12,
        0.11,
        0.10,
    )
    """Characters in sequences of 5 to 10 words that stand earlier in the text as well."""


class SymbolsStep(StepSettings):
    """Texts made of words, by the thresholds of Gopher.

    Source: Rae et al. 2021, arXiv:2112.11446, appendix A.1.1.
    """

    name: Literal["symbols"]
    max_symbol_share: Annotated[float, Field(ge=0)] = 0.1
    """`#` and ellipses for each word."""
    min_alphabetic_share: Share = 0.8
    """Of the words, those with a letter."""
    max_bullet_line_share: Share = 0.9
    """Of the lines, those that begin with a bullet."""
    max_ellipsis_line_share: Share = 0.3
    """Of the lines, those that end with an ellipsis."""
    min_mean_word_chars: Annotated[float, Field(ge=0)] = 3.0
    max_mean_word_chars: Annotated[float, Field(ge=0)] = 10.0


class RefusalsStep(StepSettings):
    """Answers that are none: \"I'm sorry, but as an AI language model I cannot\"."""

    name: Literal["refusals"]
    max_refusals: Count = 0


class CitationsStep(StepSettings):
    """Texts that are not full of references such as [12] or (Smith et al., 2019)."""

    name: Literal["citations"]
    max_per_100_words: Annotated[float, Field(ge=0)] = 5.0


class FormatStep(StepSettings):
    """Texts of a certain form."""

    name: Literal["format"]
    matches: str | None = None
    """A regular expression (of Python) that the whole text must match; a dot stands for line ends as well."""
    is_json: bool = False
    """Whether the text must be JSON."""

    def measures(self) -> dict[str, Any]:
        return {**super().measures(), "matches": self.matches, "is_json": self.is_json}

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.matches is None and not self.is_json:
            yield (), "it checks nothing: set `matches:` or `is_json: true`"
        yield from not_a_pattern("matches", self.matches)


class PrivateStep(StepSettings):
    """Personal data and secrets: rows that have them are left out, or have them blanked before anything else sees them.

    All columns of a row are looked at, unless `of` names one side. Numbers alone in other columns leave no row out, for
    a tenth of long ids pass as cards; with `mask` they are blanked.
    """

    name: Literal["private"]
    kinds: Annotated[tuple[PrivateKind, ...], Field(min_length=1)] = PRIVATE_KINDS
    """What is looked for. `secret` are keys of known services, tokens and private keys."""
    action: Literal["reject", "mask"] = "reject"
    """`mask` puts [EMAIL] and the like in their place, in every column of the row."""

    def measures(self) -> dict[str, Any]:
        return {**super().measures(), "kinds": sorted(self.kinds), "action": self.action}

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.action == "mask" and self.of != "all":
            yield ("of",), "masking blanks every column of a row; leave `of:` out"


class CustomStep(StepSettings):
    """A user's own function ``package.module:name(text, **parameters)`` that gives a number."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    min_score: float | None = None
    """Rows below it are left out."""
    max_score: float | None = None

    def measures(self) -> dict[str, Any]:
        return {**super().measures(), "parameters": self.parameters}

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.min_score is None and self.max_score is None:
            yield (), "it leaves no row out: set `min_score:` or `max_score:`"


def by_step_name(value: Any) -> Any:
    """The tag of a step: its `name`, or ``custom`` for ``package.module:name``."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "custom" if isinstance(name, str) and ":" in name else name


QualityStep = Annotated[
    Annotated[LengthStep, Tag("length")]
    | Annotated[LanguageStep, Tag("language")]
    | Annotated[RepetitionStep, Tag("repetition")]
    | Annotated[SymbolsStep, Tag("symbols")]
    | Annotated[RefusalsStep, Tag("refusals")]
    | Annotated[CitationsStep, Tag("citations")]
    | Annotated[FormatStep, Tag("format")]
    | Annotated[PrivateStep, Tag("private")]
    | Annotated[CustomStep, Tag("custom")],
    Discriminator(by_step_name),
]
