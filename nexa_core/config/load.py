"""Reading a config: YAML and overrides in, frozen settings out, every mistake named with its file and line."""

import difflib
import json
import types
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from nexa_core.config.base import Settings
from nexa_core.config.documents import Document, KeyPath, dotted, read_document
from nexa_core.errors import UserError
from nexa_core.lookup import did_you_mean

S = TypeVar("S", bound=Settings)


def load_config(path: Path, settings: type[S], *, overrides: Sequence[str] = ()) -> S:
    """The settings in the YAML file `path`, with each ``a.b=value`` of `overrides` put in place.

    Raises:
        UserError: the file is missing or malformed, or any key is unknown, of a wrong type, or without effect;
            the message has a line for each mistake.
    """
    document = read_document(path)
    for override in overrides:
        document.override(override)
    return parse_config(document, settings)


def parse_config(document: Document, settings: type[S]) -> S:
    try:
        config = settings.model_validate_json(json.dumps(document.value))
    except ValidationError as error:
        lines = [_explain(document, settings, dict(mistake)) for mistake in _first_mistakes(error)]
        raise UserError("\n".join(dict.fromkeys(lines))) from None
    lines = [f"{document.where(path)}: {dotted(path)}: {reason}" for path, reason in _conflicts(config, ())]
    if lines:
        raise UserError("\n".join(lines))
    return config


def _first_mistakes(error: ValidationError) -> Iterator[Any]:
    """The mistakes, but for a list that is too short only because of a mistake inside it."""
    mistakes = error.errors()
    for mistake in mistakes:
        inside = (each["loc"][: len(mistake["loc"])] == mistake["loc"] for each in mistakes if each is not mistake)
        if mistake["type"] != "too_short" or not any(inside):
            yield mistake


def _conflicts(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Every settings group's conflicts, with full key paths, outermost first."""
    if isinstance(value, Settings):
        yield from ((path + below, reason) for below, reason in value.conflicts())
        fields = type(value).model_fields
        for name, inner in value:
            yield from _conflicts(inner, (*path, fields[name].alias or name))
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from _conflicts(item, (*path, index))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _conflicts(item, (*path, key))


def _explain(document: Document, settings: type[Settings], mistake: dict[str, Any]) -> str:
    path = document.real_path(mistake["loc"])
    where, key = document.where(path), dotted(path)
    context = mistake.get("ctx", {})
    match mistake["type"]:
        case "extra_forbidden":
            return f"{where}: Unknown key '{key}'.{_nearest_key(document, settings, path)}"
        case "missing":
            return f"{where}: '{key}' is missing; it has no default."
        case "union_tag_invalid":
            allowed = [tag.strip("' ") for tag in context["expected_tags"].split(",")]
            allowed = ["package.module:name" if tag == "custom" else tag for tag in allowed]
            given = str(document.get(path).get("name"))
            hint = did_you_mean(given, allowed)
            return f"{document.where((*path, 'name'))}: Unknown {key}.name '{given}'.{hint} Allowed: {', '.join(sorted(allowed))}"
        case "union_tag_not_found":
            return f"{where}: '{key}' needs a `name:` that says which one it is."
        case _:
            message = mistake["msg"][0].lower() + mistake["msg"][1:]
            return f"{where}: {key} is {json.dumps(mistake['input'], default=str)}: {message}"


def _nearest_key(document: Document, settings: type[Settings], path: KeyPath) -> str:
    """The hint behind an unknown key: a sibling that is spelt alike, the same key elsewhere, or all the siblings."""
    siblings = sorted(_keys_at(document, settings, path[:-1]))
    given = str(path[-1])
    if given in siblings:  # of another form of the group than the other keys choose
        others = ", ".join(f"'{key}'" for key in document.get(path[:-1]) if key != given)
        return f" It cannot stand beside {others}."
    if names := _names_of_those_with(document, settings, path):
        return f" It belongs to {' and '.join(f'`name: {name}`' for name in names)}."
    if near := difflib.get_close_matches(given, siblings, n=1, cutoff=0.6):
        return f" Did you mean '{dotted((*path[:-1], near[0]))}'?"
    elsewhere = [key for key in _all_keys(settings, ()) if key[-1] == given]
    if elsewhere:
        return f" Did you mean '{dotted(elsewhere[0])}'?"
    chosen = document.get(path[:-1]).get("name") if path[:-1] else None
    place = f"in {dotted(path[:-1])}{f' {chosen}' if isinstance(chosen, str) else ''}" if path[:-1] else "at the top"
    return f" Allowed {place}: {', '.join(siblings)}"


def _names_of_those_with(document: Document, settings: type[Settings], path: KeyPath) -> list[str]:
    """The names of the groups that could stand in this place and have the key."""
    if not path[:-1]:
        return []
    found = [
        model
        for above in _models_at(document, settings, path[:-2])
        for model in _step(above, path[-2])
        if path[-1] in {field.alias or name for name, field in model.model_fields.items()}
    ]
    names = [get_args(getattr(model.model_fields.get("name"), "annotation", None)) for model in found]
    return sorted({str(name) for each in names for name in each})


def _keys_at(document: Document, settings: type[Settings], path: KeyPath) -> set[str]:
    candidates = _models_at(document, settings, path)
    return {field.alias or name for model in candidates for name, field in model.model_fields.items()}


def _models_at(document: Document, settings: type[Settings], path: KeyPath) -> list[Any]:
    candidates: list[Any] = [settings]
    for depth, part in enumerate(path):
        below = [annotation for model in candidates for annotation in _step(model, part)]
        # A key of the user's own, such as one of `tune.space`, leads from the group of all to one of them.
        candidates = _chosen(below or candidates, document.get(path[: depth + 1]))
    return candidates


def _step(model: type[BaseModel], part: str | int) -> Iterator[Any]:
    for name, field in model.model_fields.items():
        if (field.alias or name) == part:
            yield from _models_in(field.annotation)
        elif isinstance(part, int):
            yield model


def _chosen(models: list[Any], value: Any) -> list[Any]:
    """Of several possible groups, the one that the value's `name` picks, where it picks one."""
    name = value.get("name") if isinstance(value, dict) else None
    picked = [
        model for model in models if name in get_args(getattr(model.model_fields.get("name"), "annotation", None))
    ]
    keys = set(value) if isinstance(value, dict) else set()
    fitting = [model for model in picked if keys <= {field.alias or key for key, field in model.model_fields.items()}]
    return fitting or picked or models


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings classes inside an annotation, through unions, Annotated and tuples."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, Annotated, tuple, dict):
        for inner in get_args(annotation):
            yield from _models_in(inner)


def _all_keys(settings: type[BaseModel], path: KeyPath) -> Iterator[KeyPath]:
    for name, field in settings.model_fields.items():
        key = (*path, field.alias or name)
        yield key
        for model in _models_in(field.annotation):
            yield from _all_keys(model, key)
