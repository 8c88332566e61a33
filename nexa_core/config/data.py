"""Settings of `prepare`: where rows come from, what they become, where they go."""

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from nexa_core.config.base import NAME_PATTERN, Settings
from nexa_core.config.overlaps import Decontamination, NearDuplicates
from nexa_core.config.quality import QualityStep
from nexa_core.config.tokenizer import TokenizerConfig

LEAST_MEMORY_BYTES = 512 * 2**20


def by_name(value: Any) -> Any:
    """The tag of a group of settings that is told apart by its `name`; ``package.module:name`` is the user's own."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "custom" if isinstance(name, str) and ":" in name else name


class CsvFormat(Settings):
    """How CSV files are read; quoting follows RFC 4180."""

    header: bool = True
    """Whether the first line names the columns."""
    columns: tuple[str, ...] | None = None
    """Column names, in order; needed when there is no header, and replaces the header when there is one."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """The one character between fields."""

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if not self.header and self.columns is None:
            yield ("header",), "a file without a header needs `columns:`, the list of its column names in order"
        if self.columns is not None and len(set(self.columns)) < len(self.columns):
            yield ("columns",), "each column needs a name of its own"
        if self.delimiter in '"\r\n':
            yield ("delimiter",), "fields cannot be told apart by a quote or a line end"


class TextFormat(Settings):
    """How plain text files are cut into rows with the one column `text`."""

    unit: Literal["line", "paragraph", "file"] = "line"
    """What becomes one row: a line, a block between empty lines, or a whole file."""


class JsonFormat(Settings):
    """How `.json` files (one document each) are read."""

    records: str | None = None
    """The key under which the list of rows lies; without it the document itself is the list, or a single row."""


class FilesSource(Settings):
    """Files of the user: csv, json, jsonl, parquet or text, told by their suffix, also as `.gz` or `.zst`."""

    name: Literal["files"]
    path: str
    """A file, a folder (read recursively) or a glob, below the laboratory's root or absolute."""
    format: Literal["csv", "json", "jsonl", "parquet", "text"] | None = None
    """The format of all the files, for names whose suffix does not tell it."""
    csv: CsvFormat | None = None
    json_: Annotated[JsonFormat | None, Field(alias="json")] = None
    text: TextFormat | None = None


class DigitsSource(Settings):
    """1,797 scanned digits of 8x8 pixels that scikit-learn carries: columns `pixels` (64 numbers, 0-1), `digit`."""

    name: Literal["digits"]


class PythonDocsSource(Settings):
    """The installed standard library's documentation.

    Columns: `name`, `module`, `signature`, `docstring`, `text`, `question`, `answer`.
    """

    name: Literal["python_docs"]


class WordProblemsSource(Settings):
    """25,000 arithmetic problems in words, each with a worked answer, made by a grammar.

    Columns: `question`, `part`, `num_steps`, `answer` and `final`, the last two null where the problem is unlabelled.
    """

    name: Literal["word_problems"]
    parts: Annotated[tuple[Literal["teacher", "unlabelled", "labelled", "test"], ...], Field(min_length=1)] = (
        *("teacher", "unlabelled", "labelled", "test"),
    )
    """Which problems: about 20,000 for a teacher to learn from, 4,000 without answers, 400 with, and 600 for the test."""


class CustomSource(Settings):
    """A user's own function ``package.module:name(**parameters)`` that yields rows as dicts."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


Source = Annotated[
    Annotated[FilesSource, Tag("files")]
    | Annotated[DigitsSource, Tag("digits")]
    | Annotated[PythonDocsSource, Tag("python_docs")]
    | Annotated[WordProblemsSource, Tag("word_problems")]
    | Annotated[CustomSource, Tag("custom")],
    Discriminator(by_name),
]


class FeatureRows(Settings):
    """Rows of numbers with a class, for `mlp` and `cnn`."""

    name: Literal["features"]
    features: str | tuple[str, ...]
    """One column that holds a list of numbers, or several columns of one number each."""
    label: str
    """The column of the class; its values are kept as text."""
    shape: tuple[Annotated[int, Field(gt=0)], ...] | None = None
    """The shape of one row's numbers, e.g. [1, 8, 8] (channels, height, width) for images; flat without it."""

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        num_columns = None if isinstance(self.features, str) else len(self.features)
        if num_columns is not None and self.shape is not None and math.prod(self.shape) != num_columns:
            yield ("shape",), f"{num_columns} columns do not fill a shape of {list(self.shape)}"


class TextRows(Settings):
    """Text with a class, for `text_classifier`."""

    name: Literal["text"]
    text: str | tuple[str, ...]
    """The column of the text, or several that are joined with a newline."""
    label: str
    """The column of the class; its values are kept as text."""


class PairRows(Settings):
    """A prompt and its completion, for `causal_lm`; plain documents are completions without a prompt."""

    name: Literal["pairs"]
    prompt: str | None = None
    """The column of the prompt; without it and without a template each row is a document."""
    template: str | None = None
    """What makes the prompt of several columns: a built-in template such as `explain@1`, or a Jinja file whose name ends in
    `.j2`, below the laboratory's root or absolute. Another content of it is another dataset."""
    completion: str | None = None
    """The column of the completion; without it (teacher inputs) only prompts are kept."""

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if not self.sides:
            yield (), "rows of pairs need `prompt:` or `template:`, `completion:`, or both sides"
        if self.prompt is not None and self.template is not None:
            yield ("template",), f"`prompt:` says that column '{self.prompt}' is the prompt; leave one of the two out"

    @property
    def sides(self) -> tuple[Literal["prompt", "completion"], ...]:
        """Those that a row has."""
        has_prompt = self.prompt is not None or self.template is not None
        return (*(("prompt",) if has_prompt else ()), *(("completion",) if self.completion is not None else ()))


Role = Literal["system", "user", "assistant", "tool"]


class ChatRows(Settings):
    """Conversations, for `causal_lm`: each row a list of messages, which are objects with a role and a content."""

    name: Literal["chat"]
    messages: str
    """The column of the list of messages."""
    role: str = "role"
    """The key of a message's role; `from` in the ShareGPT spelling."""
    content: str = "content"
    """The key of a message's text; `value` in the ShareGPT spelling. A message's other keys are kept as JSON."""
    roles: dict[str, Role] = Field(default={})
    """What the source calls the roles, where it is not system, user, assistant and tool; e.g. {human: user, gpt: assistant}."""

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.role == self.content:
            yield ("content",), f"'{self.content}' is the key of the role already"


Rows = Annotated[FeatureRows | TextRows | PairRows | ChatRows, Field(discriminator="name")]

Share = Annotated[float, Field(ge=0, lt=1)]


class TrainingOutput(Settings):
    """`data/processed/training/{train,val,test}/<name>_<version>.parquet`, split by a hash of each row's input."""

    name: Literal["training"]
    val: Share = 0.1
    """Share of rows for validation."""
    test: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of rows for the test; 1, with `val: 0`, makes a benchmark of the whole."""
    salt: str = ""
    """Changes which rows fall into which split."""

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        yield from _nothing_left(self)


class PretrainOutput(Settings):
    """`data/processed/training/pretrain/001.parquet`, `002.parquet`, ...: documents, or token sequences, in shards.

    Those held out go to `data/processed/training/{val,test}/<name>_<version>.parquet`, by a hash of each document.
    """

    name: Literal["pretrain"]
    rows_per_shard: Annotated[int, Field(gt=0)] = 100_000
    """Documents in each shard but the last."""
    val: Share = 0.02
    """Share of documents for validation."""
    test: Share = 0.02
    """Share of documents for the test."""
    salt: str = ""
    """Changes which documents are held out."""
    sequence_tokens: Annotated[int, Field(ge=2, le=1_000_000)] | None = None
    """Encode the documents once, here, into sequences of so many tokens that training maps into memory; the shards then
    hold those, and the documents lie beside them. Without it shards hold documents, which each run encodes."""

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        yield from _nothing_left(self)


def _nothing_left(output: TrainingOutput | PretrainOutput) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if output.test == 1 and output.val == 0:
        return
    if output.val + output.test >= 1:
        yield (
            ("test",),
            f"val {output.val} and test {output.test} leave no rows for training; their sum must be below 1",
        )


class TeacherInputsOutput(Settings):
    """`data/processed/distillation/teacher_inputs/<name>_<version>.parquet`: prompts to ask a teacher."""

    name: Literal["teacher_inputs"]


Output = Annotated[TrainingOutput | PretrainOutput | TeacherInputsOutput, Field(discriminator="name")]


class About(Settings):
    """What others are told of a dataset, in its Croissant file and overview; it decides no row and may change at any time."""

    description: str | None = None
    """What the rows are and where they come from; made from the counts without it."""
    license: str | None = None
    """The licence: its URL, e.g. https://spdx.org/licenses/CC-BY-4.0.html, or its name."""
    url: str | None = None
    """The dataset's page."""
    creator: str | None = None
    """Who made it."""
    creator_type: Literal["organization", "person"] = "organization"
    """What the creator is."""
    published: Annotated[str | None, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] = None
    """The day on which it was published, e.g. 2026-01-31."""
    citation: str | None = None
    """How to cite it, in BibTeX where it can be."""

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.creator is None and "creator_type" in self.model_fields_set:
            yield ("creator_type",), "it says what `creator:` is, and there is none"


class DatasetConfig(Settings):
    """One dataset: a source, the rows made of it and the place where they go."""

    name: Annotated[str, Field(pattern=NAME_PATTERN)]
    version: Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$")] = "v1"
    source: Source
    rows: Rows
    output: Output
    quality: tuple[QualityStep, ...] = ()
    """Steps that rows go through, one after the other; a row that fails one is left out and is nothing bad."""
    near_duplicates: NearDuplicates | None = None
    """Whether rows whose texts are nearly equal are kept once only, over all splits together."""
    decontaminate: Decontamination | None = None
    """Which evaluation texts no row may repeat."""
    tokenizer: TokenizerConfig | None = None
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Share of rows that may be bad before the dataset is refused (exit 3)."""
    drop_duplicates: bool = True
    """Whether rows with equal content are kept once only; each dropped one is listed among the rejects."""
    about: About = About()
    """What others are told of it."""

    @property
    def key(self) -> str:
        """`<name>_<version>`, as files and manifests are called."""
        return f"{self.name}_{self.version}"

    def resolved(self) -> dict[str, Any]:
        """Every setting that decides the rows, with its default filled in: all but `about`."""
        return {name: value for name, value in super().resolved().items() if name != "about"}

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        sides = self.rows.sides if self.rows.name == "pairs" else ()
        wants_prompts_only = sides == ("prompt",)
        if self.output.name == "teacher_inputs" and not wants_prompts_only:
            yield (
                ("rows",),
                "teacher inputs are pairs with a `prompt:` or `template:` and no `completion:`; the teacher writes it",
            )
        if self.output.name != "teacher_inputs" and wants_prompts_only:
            yield ("rows",), "pairs without `completion:` can only become `output: {name: teacher_inputs}`"
        if self.output.name == "pretrain" and sides != ("completion",):
            yield ("rows",), "pretrain shards hold documents: `rows: {name: pairs, completion: <column>}`"
        for key in ("quality", "near_duplicates", "decontaminate"):
            if getattr(self, key) and self.rows.name == "features":
                yield (key,), "it looks at texts, and rows of features have none"
        if self.near_duplicates and not self.drop_duplicates:
            yield ("near_duplicates",), "equal rows are the nearest; leave `drop_duplicates: false` out"
        if self.decontaminate and self.key in self.decontaminate.against:
            yield ("decontaminate", "against"), f"{self.key} is this dataset itself"
        for index, step in enumerate(self.quality):
            if step.of != "all" and self.rows.name not in ("pairs", "chat"):
                yield ("quality", index, "of"), "only pairs and chats have sides"
            if step.of != "all" and self.rows.name == "pairs" and step.of not in sides:
                yield ("quality", index, "of"), f"the rows have no {step.of}"
        if self.tokenizer is not None and (self.rows.name == "features" or self.output.name == "teacher_inputs"):
            yield ("tokenizer",), "a tokenizer is for text, pairs or chat that is for training or pretraining"
        if self.output.name == "pretrain" and self.output.sequence_tokens is not None and self.tokenizer is None:
            yield (
                ("output", "sequence_tokens"),
                "token sequences need a `tokenizer:`, trained here or loaded from a file",
            )


class DataConfig(Settings):
    """The datasets that one `prepare` makes, in order."""

    datasets: Annotated[tuple[DatasetConfig, ...], Field(min_length=1)]
    engine: Literal["local", "ray"] = "local"
    """What reads large sources: the cores of this machine, or Ray Data on the cluster of `RAY_ADDRESS` (of this machine without
    it), whose machines share the laboratory's folder. Either makes the same bytes."""
    memory_limit: Annotated[str, Field(pattern=r"^[0-9]+ ?(MiB|GiB)$")] | None = None
    """About how much memory all processes together may take, e.g. 1GiB; fewer of them read then."""

    @property
    def memory_limit_bytes(self) -> int | None:
        if self.memory_limit is None:
            return None
        number, unit = self.memory_limit[:-3], self.memory_limit[-3:]
        return int(number) * (2**30 if unit == "GiB" else 2**20)

    def conflicts(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        if self.memory_limit is not None and self.engine == "ray":
            yield ("memory_limit",), "Ray has limits of its own; leave it out, or use `engine: local`"
        if self.memory_limit_bytes is not None and self.memory_limit_bytes < LEAST_MEMORY_BYTES:
            yield ("memory_limit",), f"preparing takes {LEAST_MEMORY_BYTES // 2**20} MiB at least"
        seen: set[str] = set()
        for index, dataset in enumerate(self.datasets):
            if dataset.key in seen:
                yield (
                    ("datasets", index, "name"),
                    f"two datasets are called {dataset.key}; names with versions must differ",
                )
            seen.add(dataset.key)
        pretrain = [index for index, dataset in enumerate(self.datasets) if dataset.output.name == "pretrain"]
        for index in pretrain[1:]:
            yield ("datasets", index, "output"), "only one dataset can own the shards pretrain/001.parquet, 002, ..."
