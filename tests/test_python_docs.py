"""The built-in documentation source: what it finds, without running what it reads."""

import builtins
import json
import subprocess
import sys
from pathlib import Path

import pytest

from nexa_data.sources import python_docs
from nexa_data.sources.python_docs import QUESTIONS, entries_of_source, read_python_docs, row_of

SOURCE = b'''
raise RuntimeError("this file was run")

def documented(first, *, second=2) -> int:
    """One line.

    And more.
    """

def undocumented(): ...

def _private():
    """Not shown."""

class Thing(Base):
    """A thing."""

    def __init__(self, size: int = 1):
        """Not shown either."""

    def method(self, *args):
        """Do it."""

    @staticmethod
    def static(x, y):
        """Do it alone."""

    @classmethod
    def make(cls, x):
        """Make one."""

    @property
    def size(self):
        """How large it is."""

if True:
    async def conditional():
        """There sometimes."""
'''


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return list(read_python_docs())


def test_public_documented_names_of_a_file_are_found_without_running_it():
    assert [(entry.name, entry.signature) for entry in entries_of_source(SOURCE, "m")] == [
        ("m.documented", "m.documented(first, *, second=2) -> int"),
        ("m.Thing", "m.Thing(size: int=1)"),
        ("m.Thing.method", "m.Thing.method(*args)"),
        ("m.Thing.static", "m.Thing.static(x, y)"),
        ("m.Thing.make", "m.Thing.make(x)"),
        ("m.Thing.size", "m.Thing.size"),
        ("m.conditional", "m.conditional()"),
    ]
    assert list(entries_of_source(b"def broken(:", "m")) == []


def test_an_answer_is_the_signature_and_the_first_paragraph():
    row = row_of(next(entries_of_source(SOURCE, "m")))
    assert row["answer"] == "m.documented(first, *, second=2) -> int\nOne line."
    assert row["text"] == "m.documented(first, *, second=2) -> int\n\nOne line.\n\nAnd more."


def test_the_standard_library_gives_thousands_of_unique_well_known_names(rows):
    names = [row["name"] for row in rows]
    assert len(rows) > 4000
    assert len(set(names)) == len(names)
    assert {"json.dumps", "math.sqrt", "itertools.chain", "len", "str.split", "pathlib.Path.glob", "time.sleep"} <= set(
        names
    )
    assert [name for name in names if name.startswith(("test.", "idlelib.")) or "._" in name] == []


def test_rows_have_text_in_every_column_and_no_address_of_this_process(rows):
    for row in rows:
        assert list(row) == ["name", "module", "signature", "docstring", "text", "question", "answer"]
        assert all(value.strip() for value in row.values())
        assert row["name"] in row["question"]
        assert " at 0x" not in row["signature"]


def test_questions_are_worded_in_several_ways(rows):
    for wording in QUESTIONS:
        before, after = wording.split("{name}")
        share = sum(row["question"].startswith(before) and row["question"].endswith(after) for row in rows) / len(rows)
        assert 0.1 < share < 0.35


def test_another_process_finds_the_same_rows(rows):
    code = "import json; from nexa_data.sources import python_docs; print(json.dumps(list(python_docs.read_python_docs())))"
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent), "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert json.loads(found.stdout) == rows


def test_what_a_notebook_replaces_in_its_process_is_found_all_the_same(
    rows: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "input", lambda prompt="": prompt)
    assert list(python_docs._entries.__wrapped__()) == list(python_docs._entries())
    assert "input" in {row["name"] for row in rows}
