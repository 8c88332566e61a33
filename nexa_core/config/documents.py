"""A YAML document that remembers the line of every key, and takes overrides."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nexa_core.errors import UserError

KeyPath = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's scalars: `1e-4` is a number, `no` and `on` are text, a date stays text."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in [
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("tag:yaml.org,2002:int", r"^[-+]?[0-9]+$", list("-+0123456789")),
    ("tag:yaml.org,2002:float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789")),
]:
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)


def _add_number(tag: str, number: Callable[[str], float]) -> None:
    def construct(loader: yaml.SafeLoader, node: yaml.Node) -> float:
        assert isinstance(node, yaml.ScalarNode)
        return number(str(loader.construct_scalar(node)))

    _Loader.add_constructor(f"tag:yaml.org,2002:{tag}", construct)


_add_number("int", int)
_add_number("float", float)


@dataclass
class Document:
    """Plain values, and for each key path the place that it was given at."""

    value: Any
    places: dict[KeyPath, str]
    name: str

    def override(self, assignment: str) -> None:
        """Put ``a.b=value`` in place; the value is read as JSON first and as YAML otherwise.

        Raises:
            UserError: there is no `=`, a list index does not exist, or the path leads through a plain value.
        """
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--override {assignment}: expected key=value, e.g. training.optimizer.lr=0.0001")
        path = tuple(int(part) if part.isdigit() else part for part in key.strip().split("."))
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = _read_yaml(text, f"--override {assignment}").value
        self._put(path, value, f"--override {assignment}")

    def _put(self, path: KeyPath, value: Any, place: str) -> None:
        node = self.value
        for depth, part in enumerate(path):
            is_list = isinstance(node, list) and isinstance(part, int)
            if not isinstance(node, dict) and not is_list:
                raise UserError(f"{place}: '{dotted(path[:depth])}' is a plain value and has no '{part}' in it")
            if is_list and part not in range(len(node)):
                raise UserError(f"{place}: '{dotted(path[:depth])}' has {len(node)} entries, 0 to {len(node) - 1}")
            if depth == len(path) - 1:
                node[part] = value
            elif is_list:
                node = node[part]
            else:
                if node.get(part) is None:
                    node[part] = {}
                    self.places[path[: depth + 1]] = place
                node = node[part]
        self.places = {key: where for key, where in self.places.items() if key[: len(path)] != path}
        self.places[path] = place

    def get(self, path: KeyPath) -> Any:
        node = self.value
        for part in path:
            node = node[part]
        return node

    def where(self, path: KeyPath) -> str:
        """The place of a key, or of the nearest group around it: ``file:line`` or the override."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.name

    def real_path(self, loc: tuple[str | int, ...]) -> KeyPath:
        """A validation error's location without the union tags that are not keys of the document."""
        path: list[str | int] = []
        node = self.value
        for index, part in enumerate(loc):
            inside = (isinstance(node, dict) and part in node) or (isinstance(node, list) and part in range(len(node)))
            if inside:
                path.append(part)
                node = node[part]
            elif index == len(loc) - 1 and isinstance(node, dict):
                path.append(part)
        return tuple(path)


def dotted(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)


def read_document(path: Path) -> Document:
    """The YAML file at `path`.

    Raises:
        UserError: it is missing, not UTF-8, not YAML, has a key twice, or is not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        near = sorted(str(other) for other in path.parent.glob("*.y*ml"))
        found = f" There: {', '.join(near)}" if near else ""
        raise UserError(f"No config file {path}.{found}") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"Cannot read config {path}: {error}") from None
    document = _read_yaml(text, str(path))
    if not isinstance(document.value, dict):
        raise UserError(f"{path}: a config is a mapping of keys to values, this is {type(document.value).__name__}")
    return document


def _read_yaml(text: str, name: str) -> Document:
    loader = _Loader(text)
    places: dict[KeyPath, str] = {}
    try:
        node = loader.get_single_node()
        value = None if node is None else _construct(loader, node, (), places, name)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{name}{line}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    finally:
        loader.dispose()
    return Document(value=value, places=places, name=name)


def _construct(loader: _Loader, node: yaml.Node, path: KeyPath, places: dict[KeyPath, str], name: str) -> Any:
    if isinstance(node, yaml.MappingNode):
        loader.flatten_mapping(node)
        return dict(_entries(loader, node, path, places, name))
    if isinstance(node, yaml.SequenceNode):
        items = []
        for index, item in enumerate(node.value):
            places[(*path, index)] = f"{name}:{item.start_mark.line + 1}"
            items.append(_construct(loader, item, (*path, index), places, name))
        return items
    return loader.construct_object(node)


def _entries(loader: _Loader, node: yaml.MappingNode, path: KeyPath, places: dict[KeyPath, str], name: str) -> Any:
    for key_node, value_node in node.value:
        key = str(loader.construct_object(key_node))
        place = f"{name}:{key_node.start_mark.line + 1}"
        if places.get((*path, key), place) != place:
            raise UserError(f"{place}: '{dotted((*path, key))}' is given twice, first at {places[(*path, key)]}")
        places[(*path, key)] = place
        yield key, _construct(loader, value_node, (*path, key), places, name)
