"""Settings of filtering a teacher's answers, and of asking again for those that were rejected."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag

from nexa_core.config.ask import AskConfig, PositiveInt, Share
from nexa_core.config.base import NAME_PATTERN, Settings
from nexa_core.config.quality import (
    CitationsStep,
    CustomStep,
    FormatStep,
    LanguageStep,
    LengthStep,
    PrivateStep,
    RefusalsStep,
    RepetitionStep,
    SymbolsStep,
    by_step_name,
    not_a_pattern,
)
from nexa_core.config.tokenizer import TokenizerConfig


class MathCheck(Settings):
    """The final answer equals a reference: the same number, or an expression that math-verify finds equal.

    Final answers stand behind `####`, in `\\boxed{}`, or are the last number.
    """

    name: Literal["math"]
    reference: str | None = None
    """The key of the row's `extra_json` that holds the reference: an answer, or a solution that marks it.

    Without it an answer only has to end in a number, or in an expression that can be read.
    """
    timeout_seconds: Annotated[float, Field(gt=0)] = 10.0
    """For one comparison; what takes longer is rejected with this reason."""


class ExactCheck(Settings):
    """The answer has a form; white space around it does not count."""

    name: Literal["exact"]
    matches: str | None = None
    """A regular expression (of Python) that the whole answer must match; a dot stands for line ends as well."""
    starts_with: str = ""
    ends_with: str = ""
    json_keys: tuple[str, ...] = ()
    """The answer is a JSON object with these keys, and perhaps others."""

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.matches is None and not (self.starts_with or self.ends_with or self.json_keys):
            yield (), "it checks nothing: set `matches:`, `starts_with:`, `ends_with:` or `json_keys:`"
        yield from not_a_pattern("matches", self.matches)


class ReferenceCheck(Settings):
    """The answer is the reference, but for white space, upper and lower case, and a full stop at the end."""

    name: Literal["reference"]
    reference: str
    """The key of the row's `extra_json` that holds it."""


class ArithmeticCheck(Settings):
    """The sums that an answer writes out, such as `7 * 6 = 42`, are right; needs no reference."""

    name: Literal["arithmetic"]
    require_sums: bool = False
    """Whether an answer without any is rejected."""
    ends_with_last: bool = False
    """Whether the final answer has to be the result of the last sum."""


class AgreementCheck(Settings):
    """Of several samples of a prompt, those agree that have the same final answer; the first of the largest group is kept.

    Source: Wang et al. 2022, arXiv:2203.11171.
    """

    name: Literal["agreement"]
    min_share: Share = 0.5
    """Of the prompt's samples that are left, those that have to agree."""
    min_samples: PositiveInt = 2
    """Samples that a prompt needs to have left; with fewer nothing can agree."""


class JudgeCheck(Settings):
    """A model gives each pair a score; its answers are bought once, like a teacher's."""

    name: Literal["judge"]
    ask: AskConfig
    """Which model, and how."""
    template: str | None = None
    """A file with {prompt} and {completion} in it that asks for a line `Score: <number>`; the built-in one without it."""
    max_cost_usd: Annotated[float, Field(gt=0)] | None = None
    """What judging for this dataset may cost, earlier tries among it (exit 3 where it does not suffice)."""
    min_score: float = 7.0
    """Pairs below it are rejected; the built-in template asks for 1 to 10."""
    max_failed_share: Share = 0.01
    """Of requests without an answer, which are no verdict on a pair (exit 3)."""


class OwnCheck(Settings):
    """A user's own function ``check:package.module:name(prompt, completion, extra, **parameters)``: a reason, or None to keep."""

    name: Annotated[str, Field(pattern=r"^check:.+:.+$")]
    parameters: dict[str, Any] = Field(default_factory=dict)


Check = MathCheck | ExactCheck | ReferenceCheck | ArithmeticCheck | AgreementCheck | JudgeCheck
OWN_CHECK = "check:package.module:name"
"""How the settings name a user's own check."""
CHECK_NAMES = tuple(get_args(check.model_fields["name"].annotation)[0] for check in get_args(Check))


def by_kind(value: Any) -> Any:
    """The tag of a step: one of the checks of answers, a user's own, or a quality step of the data engine."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    if name in CHECK_NAMES:
        return name
    return OWN_CHECK if isinstance(name, str) and name.startswith("check:") else by_step_name(value)


FilterStep = Annotated[
    Annotated[MathCheck, Tag("math")]
    | Annotated[ExactCheck, Tag("exact")]
    | Annotated[ReferenceCheck, Tag("reference")]
    | Annotated[ArithmeticCheck, Tag("arithmetic")]
    | Annotated[AgreementCheck, Tag("agreement")]
    | Annotated[JudgeCheck, Tag("judge")]
    | Annotated[OwnCheck, Tag(OWN_CHECK)]
    | Annotated[LengthStep, Tag("length")]
    | Annotated[LanguageStep, Tag("language")]
    | Annotated[RepetitionStep, Tag("repetition")]
    | Annotated[SymbolsStep, Tag("symbols")]
    | Annotated[RefusalsStep, Tag("refusals")]
    | Annotated[CitationsStep, Tag("citations")]
    | Annotated[FormatStep, Tag("format")]
    | Annotated[PrivateStep, Tag("private")]
    | Annotated[CustomStep, Tag("custom")],
    Discriminator(by_kind),
]


class FilterConfig(Settings):
    """Which answers are kept, and the dataset that is made of them."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "distilled"
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$")] = "v1"
    outputs: tuple[str, ...] = ()
    """The answers: datasets of teacher_outputs, or Parquet files; what `collect` makes without it."""
    max_samples: PositiveInt | None = None
    """Answers that are looked at, the first of each of the outputs; all without it."""
    keep_truncated: bool = False
    """Whether an answer that was cut off at its limit of tokens may be kept."""
    steps: tuple[FilterStep, ...] = ()
    """What answers go through, one step after the other; first of all those without an answer are rejected."""
    val: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the kept pairs for validation, by a hash of the prompt."""
    salt: str = ""
    """Changes which prompts are for validation."""
    tokenizer: TokenizerConfig | None = None
    """A tokenizer that is trained on the kept pairs or loaded, for a student that is made from sizes."""
    use_reviews: bool = True
    """Whether what people decided in `nexa review` counts."""

    @property
    def key(self) -> str:
        """`<name>_<version>`, as files and manifests are called."""
        return f"{self.name}_{self.version}"

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        for index, step in enumerate(self.steps):
            if getattr(step, "action", None) == "mask":
                yield ("steps", index, "action"), "answers are kept or rejected; nothing is blanked in them"


class RegenerateConfig(Settings):
    """Asking again for prompts of which no answer was kept, with the reason; the teacher is `collect`'s."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)] = "regenerated"
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$")] = "v1"
    max_tries: PositiveInt = 2
    """Of a prompt."""
    template: str | None = None
    """A file with {reason} in it: what the teacher is told of its answer; the built-in one without it."""
    one_message: bool = False
    """For a teacher that takes no conversations: all in one message. A template of your own then has {prompt} in it as well."""
    filtered_version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$")] | None = None
    """Of the pairs that old and new answers are filtered to; the one after `filter.version` without it (v2 after v1)."""

    @property
    def key(self) -> str:
        return f"{self.name}_{self.version}"
