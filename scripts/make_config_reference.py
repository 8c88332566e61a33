"""Write docs/configuration.md from the settings classes, so that it is never out of date."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nexa_core import durable
from nexa_core.config import DataConfig, DistillConfig, RunConfig
from nexa_core.config.policy import PolicyConfig
from nexa_core.config.rubric import Rubric

PAGE = Path(__file__).parent.parent / "docs" / "configuration.md"
INTRO = """\
# Configuration

Every setting there is. This page is made by `python scripts/make_config_reference.py` from the classes in
`nexa_core/config/`; for an editor's completion, print a JSON schema: `nexa schema run`, `data`, `distill`, `rubric` or `policy`.
Groups that are told apart by their `name` list one table for each name.
"""
TITLES: dict[str, type[BaseModel]] = {
    "Runs: `nexa train`, `nexa evaluate`, `nexa tune`": RunConfig,
    "Datasets: `nexa prepare`": DataConfig,
    "Distillation: `nexa collect-teacher`, `nexa filter-pairs`": DistillConfig,
    "Rubrics: `nexa judge`": Rubric,
    "Retention: `nexa clean`": PolicyConfig,
}


def reference() -> str:
    """The whole page as Markdown."""
    sections = [INTRO]
    for title, settings in TITLES.items():
        schema = settings.model_json_schema()
        sections.append(f"## {title}\n")
        sections += [_group(name, group) for name, group in [(settings.__name__, schema), *_groups(schema)]]
    return "\n".join(sections)


def _groups(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return sorted(schema.get("$defs", {}).items())


def _group(name: str, group: dict[str, Any]) -> str:
    lines = [f"### {name}\n"]
    if description := group.get("description"):
        lines.append(" ".join(description.split()) + "\n")
    lines += ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    required = set(group.get("required", []))
    for key, field in group["properties"].items():
        default = "required" if key in required else _default(field.get("default"))
        meaning = " ".join(field.get("description", "").split()).replace("|", "\\|")
        lines.append(f"| `{key}` | {_type(field)} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    return "its own" if isinstance(value, dict) and value else f"`{json.dumps(value)}`".replace("|", "\\|")


def _type(field: dict[str, Any]) -> str:
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for union in ("anyOf", "oneOf", "allOf"):
        if union in field:
            return " or ".join(_type(inner) for inner in field[union])
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}" if "items" in field else "list"
    return _limits(field)


def _limits(field: dict[str, Any]) -> str:
    words = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
    limits = [f"{word} {field[key]:g}" for key, word in words.items() if key in field]
    return ", ".join([str(field.get("type", "anything")), *limits])


if __name__ == "__main__":
    durable.write_text(PAGE, reference())
