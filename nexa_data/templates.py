"""Prompt templates: texts with gaps that the columns of a row fill, each known by its name, version and digest.

A template is Jinja in a sandbox: it sees one row and nothing else, no file and no other template, and nothing in it is left to
chance, so that the same row becomes the same prompt in every process and on every machine.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, Undefined, UndefinedError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from nexa_core import digests
from nexa_core.config.data import Rows
from nexa_core.errors import UserError
from nexa_core.lookup import unknown
from nexa_core.paths import Layout
from nexa_data.makers import RowError
from nexa_data.values import plain

SUFFIX = ".j2"
FOLDER = Path(__file__).parent / "prompts"
BUILT_IN = {
    "explain@1": "A question about a function, answered from its documentation: columns `question`, `signature`, `docstring`.",
    "solve@1": "A problem that ends in a number, solved in steps, the number after `#### `: column `question`.",
    "summarise@1": "A text, summarised in three sentences: column `text`.",
}
"""What each built-in template asks; its text is the file of that name in `prompts/`. Another text is another version."""

ROW = "row"
"""The variable that is the whole row, for columns whose names are no variables': `{{ row["unit price"] }}`."""
LEFT_TO_CHANCE = {"globals": ("lipsum",), "filters": ("random",)}


@dataclass(frozen=True)
class PromptTemplate:
    """A template whose text holds together, in a form that travels to other processes."""

    file: str
    """A built-in template's name with its version, or where the user's file lies, as manifests name it."""
    text: str

    @property
    def name(self) -> str:
        return self._stem.partition("@")[0]

    @property
    def version(self) -> str | None:
        """What stands behind the `@` of its name; None where there is none."""
        return self._stem.partition("@")[2] or None

    @property
    def sha256(self) -> str:
        return digests.of_bytes(self.text.encode("utf-8"))

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it names, sorted."""
        return tuple(sorted(_variables(self.text) - {ROW}))

    def render(self, values: Mapping[str, Any]) -> str:
        """The prompt of a row. A column that is null or nothing but white space counts as missing.

        Raises:
            RowError: a value is missing or is no text where it would be written, or the template fails for this row.
        """
        given = {name: value for name, value in values.items() if not _is_missing(value)}
        try:
            return _compiled(self.text).render({ROW: given, **given})
        except UndefinedError as error:
            raise RowError("missing value", str(error)) from None
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            raise RowError("template fails", f"{type(error).__name__}: {error}") from None

    def origin(self) -> dict[str, Any]:
        """What manifests record beside a dataset's other sources."""
        return {"file": self.file, "bytes": len(self.text.encode("utf-8")), "sha256": self.sha256}

    def as_json(self) -> dict[str, Any]:
        """What manifests tell of the prompts."""
        return {"name": self.name, "version": self.version, "file": self.file, "sha256": self.sha256, "text": self.text}

    @property
    def _stem(self) -> str:
        return self.file.rpartition("/")[2].removesuffix(SUFFIX)


def open_template(rows: Rows, layout: Layout) -> PromptTemplate | None:
    """The template that makes the prompts of these rows; None where a column has them.

    Raises:
        UserError: there is no such template, or its text is none.
    """
    given = rows.template if rows.name == "pairs" else None
    if given is None:
        return None
    if given.endswith(SUFFIX):
        path = layout.root / given
        template = PromptTemplate(layout.relative(path), _read(path))
    elif given in BUILT_IN:
        template = PromptTemplate(given, _read(FOLDER / f"{given}{SUFFIX}"))
    else:
        raise UserError(f"rows.template: {unknown('template', given, BUILT_IN)}, or a file of your own: <path>{SUFFIX}")
    _check(template)
    return template


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")  # line ends as they are: they are part of the digest
    except OSError as error:
        raise UserError(f"rows.template: {path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise UserError(f"rows.template: {path} is not UTF-8 (byte {error.start}).") from None


def _check(template: PromptTemplate) -> None:
    """Refuse what could not make prompts of any rows."""
    try:
        others = list(meta.find_referenced_templates(_environment().parse(template.text)))
        _compiled(template.text)
    except TemplateSyntaxError as error:
        raise UserError(f"rows.template: {template.file}, line {error.lineno}: {error.message}") from None
    if others:
        raise UserError(
            f"rows.template: {template.file}: a template stands alone; it cannot include, import or extend."
        )
    if not _variables(template.text):
        raise UserError(
            f"rows.template: {template.file} names no column, so all prompts would be the same: {{{{ column }}}}"
        )


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=_Missing, finalize=_written, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )
    for kind, names in LEFT_TO_CHANCE.items():
        for name in names:
            del getattr(environment, kind)[name]
    environment.filters["tojson"] = _json  # Jinja's own is for HTML: it spells `<`, `>`, `&` and `'` as escapes
    return environment


@lru_cache(maxsize=16)
def _compiled(text: str) -> Template:
    """Compiled once in each process."""
    return _environment().from_string(text.removeprefix("\ufeff"))


@lru_cache(maxsize=16)
def _variables(text: str) -> frozenset[str]:
    return frozenset(meta.find_undeclared_variables(_environment().parse(text)))


class _Missing(StrictUndefined):
    """A value that is not there: it may be asked for, `{% if hint %}`, and never be written."""

    def __bool__(self) -> bool:  # type: ignore[override]
        return False

    @property
    def _undefined_message(self) -> str:
        return self._undefined_hint or f"no '{self._undefined_name}'"


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(plain(value), ensure_ascii=False, indent=indent)


def _is_missing(value: Any) -> bool:
    return value is None or (type(value) is str and (not value or value.isspace()))


def _written(value: Any) -> Any:
    """A value as it stands in the prompt: text and numbers do, lists and objects only as the template spells them out."""
    if type(value) is str or isinstance(value, Undefined):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError("number not finite", f"{value} in the prompt")
    written = plain(value)
    if written is None:
        raise RowError("missing value", "a null inside a list or object")
    if not isinstance(written, str | int | float):
        kind = type(value).__name__
        raise RowError("not text", f"a {kind} in the prompt; spell it out with `join`, `tojson` or a loop")
    return written
