"""The built-in source `python_docs`: what the installed standard library says about itself."""

import ast
import contextlib
import functools
import gc
import hashlib
import importlib
import inspect
import json
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

SKIPPED_FOLDERS = frozenset(
    ("test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "ensurepip", "encodings", "pydoc_data")
)
"""Tests, applications and tables: little documentation for much code."""

C_MODULES = (
    "array",
    "atexit",
    "binascii",
    "builtins",
    "cmath",
    "gc",
    "itertools",
    "marshal",
    "math",
    "select",
    "time",
    "zlib",
)
"""Modules without a Python file; they are imported to be read, all but `sys`."""

QUESTIONS = (
    "What does {name} do?",
    "Explain {name}.",
    "How is {name} used?",
    "What is {name} for?",
    "Describe {name} briefly.",
)

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
ADDRESS = re.compile(r" at 0x[0-9a-f]+")


class Entry(NamedTuple):
    """A documented function, class or method."""

    name: str
    module: str
    signature: str
    docstring: str


def read_python_docs() -> Iterator[dict[str, Any]]:
    """A row for each public, documented name, files first in sorted order: see `row_of` for the columns.

    Python files are parsed and not imported, so nothing in them runs.
    """
    for entry in _entries():
        yield row_of(entry)


def row_of(entry: Entry) -> dict[str, Any]:
    """The entry's fields, its whole `text`, a `question` about it, and the `answer`: signature and first paragraph."""
    wording = hashlib.sha256(entry.name.encode()).digest()[0] % len(QUESTIONS)
    return {
        **entry._asdict(),
        "text": f"{entry.signature}\n\n{entry.docstring}",
        "question": QUESTIONS[wording].format(name=entry.name),
        "answer": f"{entry.signature}\n{first_paragraph(entry.docstring)}",
    }


def first_paragraph(docstring: str) -> str:
    return re.split(r"\n\s*\n", docstring, maxsplit=1)[0]


@functools.cache
def _entries() -> tuple[Entry, ...]:
    """Every entry, its name once only. Kept, because one `prepare` often makes several datasets of them."""
    entries: dict[str, Entry] = {}
    with _garbage_collection_paused():
        for module, path in _python_files(Path(sysconfig.get_paths()["stdlib"])):
            for entry in entries_of_source(path.read_bytes(), module):
                entries.setdefault(entry.name, entry)
        for entry in _entries_of_c_modules():
            entries.setdefault(entry.name, entry)
    return tuple(entries.values())


@contextlib.contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Syntax trees are many objects without cycles; looking for cycles in them takes longer than parsing."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _python_files(folder: Path, package: tuple[str, ...] = ()) -> Iterator[tuple[str, Path]]:
    """Each public module's dotted name and file, by name; what is skipped is not even listed."""
    for path in sorted(folder.iterdir()):
        if path.name == "__init__.py" and package:
            yield ".".join(package), path
        elif not path.stem.isidentifier() or not _is_public(path.stem) or path.stem in SKIPPED_FOLDERS:
            continue
        elif path.suffix == ".py":
            yield ".".join((*package, path.stem)), path
        elif not path.suffix and path.is_dir():
            yield from _python_files(path, (*package, path.name))


def entries_of_source(source: bytes, module: str) -> Iterator[Entry]:
    """The entries of one Python file, in the order of its lines; none where it does not parse."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    yield from _entries_below(tree, module, module)


def _entries_below(node: ast.AST, owner: str, module: str) -> Iterator[Entry]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If | ast.Try | ast.With):
            yield from _entries_below(child, owner, module)
        elif isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and _is_public(child.name):
            name = f"{owner}.{child.name}"
            yield from _entry(name, module, _signature(child, is_method=owner != module), ast.get_docstring(child))
            if isinstance(child, ast.ClassDef):
                yield from _entries_below(child, name, module)


def _entry(name: str, module: str, signature: str, docstring: str | None) -> Iterator[Entry]:
    if docstring and docstring.strip() and not LONE_SURROGATE.search(docstring):
        yield Entry(name, module, f"{name}{signature}", docstring.strip())


def _signature(node: ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, *, is_method: bool) -> str:
    """The arguments in brackets, as a caller gives them: without `self`; a class's are those of its `__init__`."""
    if isinstance(node, ast.ClassDef):
        makers = [child for child in node.body if isinstance(child, ast.FunctionDef) and child.name == "__init__"]
        return _signature(makers[0], is_method=True) if makers else "()"
    decorators = {decorator.id for decorator in node.decorator_list if isinstance(decorator, ast.Name)}
    if decorators & {"property", "cached_property"}:
        return ""
    arguments = ast.unparse(node.args)
    if is_method and "staticmethod" not in decorators:
        arguments = arguments.partition(", ")[2].removeprefix("/").removeprefix(", ")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    return f"({arguments}){returns}"


def _entries_of_c_modules() -> Iterator[Entry]:
    """As an interpreter of its own has them: notebooks and debuggers replace functions such as `input` in theirs."""
    done = subprocess.run([sys.executable, "-I", "-S", __file__], stdout=subprocess.PIPE, check=True)
    yield from (Entry(*fields) for fields in json.loads(done.stdout))


def _entries_of_c_module(module: str) -> Iterator[Entry]:
    prefix = "" if module == "builtins" else f"{module}."
    for name, member in sorted(vars(importlib.import_module(module)).items()):
        if not _is_public(name) or not callable(member) or getattr(member, "__module__", None) != module:
            continue
        yield from _entry_of_object(prefix + name, module, member)
        if inspect.isclass(member):
            for method_name, method in sorted(vars(member).items()):
                if _is_public(method_name) and callable(method):
                    yield from _entry_of_object(f"{prefix}{name}.{method_name}", module, method)


def _entry_of_object(name: str, module: str, member: Any) -> Iterator[Entry]:
    docstring = inspect.getdoc(member)
    if docstring and not ADDRESS.search(docstring):
        yield from _entry(name, module, _signature_of_object(member), docstring)


def _signature_of_object(member: Any) -> str:
    try:
        signature = inspect.signature(member)
    except (ValueError, TypeError):
        return ""  # many C functions have none; their docstring begins with it
    parameters = [parameter for name, parameter in signature.parameters.items() if name != "self"]
    text = str(signature.replace(parameters=parameters)).replace(", /", "").replace("(/", "(")
    return "" if ADDRESS.search(text) else text


def _is_public(name: str) -> bool:
    return not name.startswith("_")


if __name__ == "__main__":  # imports nothing but the standard library, so that any interpreter can run it
    json.dump([entry for module in C_MODULES for entry in _entries_of_c_module(module)], sys.stdout)
