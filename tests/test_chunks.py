"""Rows made canonical by columns are those made one by one."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nexa_core.config.data import PairRows, Rows, TextRows
from nexa_data.chunks import CHUNK_ROWS, Chunk, Converter
from nexa_data.sources.raw import RawRow
from nexa_data.templates import PromptTemplate

ROWS: list[Rows] = [
    TextRows(name="text", text="text", label="label"),
    TextRows(name="text", text="text", label="text"),
    PairRows(name="pairs", prompt="text", completion="label"),
    PairRows(name="pairs", completion="text"),
    PairRows(name="pairs", prompt="text"),
    PairRows(name="pairs", template="some.j2"),
    PairRows(name="pairs", template="some.j2", completion="label"),
]
TEMPLATE = PromptTemplate("some.j2", "{% if more %}{{ more }}: {% endif %}{{ text }}")
NUMBERS = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=4
)
TEXTS = st.text() | st.sampled_from(["", "  ", "\u2028", "\ud800", "x" * 300, "é", "a\0b"]) | JSON
SOURCE = st.fixed_dictionaries({}, optional={"text": TEXTS, "label": TEXTS, "more": JSON, "\ud83d": JSON, "": JSON})


def made_of(rows: Rows, values: list[dict[str, Any]], *, is_json: bool) -> Chunk:
    raw = [(3 * number, RawRow("f", number, row, None, is_json)) for number, row in enumerate(values)]
    template = TEMPLATE if isinstance(rows, PairRows) and rows.template else None
    return Converter(rows, template=template)(raw)


def facts(chunk: Chunk) -> dict[str, Any]:
    return {
        "numbers": chunk.numbers,
        "columns": {name: values for name, values in chunk.columns.items() if values},
        "ids": chunk.ids,
        "inputs": chunk.inputs,
        "sizes": chunk.sizes,
        "errors": [(number, error.reason, error.detail) for number, _, error in chunk.errors],
    }


@settings(max_examples=300, deadline=None)
@given(rows=st.sampled_from(ROWS), values=st.lists(SOURCE, max_size=8))
def test_many_rows_at_once_become_what_they_become_one_by_one(rows: Rows, values: list[dict[str, Any]]) -> None:
    assert facts(made_of(rows, values, is_json=True)) == facts(made_of(rows, values, is_json=False))


@pytest.mark.parametrize("rows", ROWS)
def test_a_row_that_is_nested_too_deeply_costs_its_neighbours_nothing(rows: Rows) -> None:
    deep: list[Any] = []
    for _ in range(300):
        deep = [deep]
    values = [{"text": f"text {number}", "label": "a"} for number in range(CHUNK_ROWS)]
    values[17] |= {"more": deep}
    assert facts(made_of(rows, values, is_json=True)) == facts(made_of(rows, values, is_json=False))
