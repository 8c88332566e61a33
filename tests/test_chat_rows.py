"""Conversations: one spelling, checked turns, stable ids, and nothing of a message lost."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import pytest
from tokenizers import Tokenizer

from nexa_core.config.data import DataConfig, DatasetConfig
from nexa_core.config.load import load_config
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_data.data_analysis.query_data import DataQuery
from nexa_data.datasets import Dataset, open_dataset
from nexa_data.makers import CanonicalRow, RowError
from nexa_data.prepare import prepare_dataset
from nexa_data.rows import canonical, plain_messages

CHAT = {"name": "chat", "messages": "messages"}
SHAREGPT = {
    "name": "chat", "messages": "conversations", "role": "from", "content": "value",
    "roles": {"human": "user", "gpt": "assistant", "function": "tool"},
}  # fmt: skip
SPELLINGS = {"user": "human", "assistant": "gpt", "tool": "function"}

CALL = [{"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}]
WITH_TOOLS = [
    {"role": "system", "content": "You can add."},
    {"role": "user", "content": "1 + 2?"},
    {"role": "assistant", "content": None, "tool_calls": CALL},
    {"role": "tool", "content": "3", "tool_call_id": "1"},
    {"role": "assistant", "content": "3."},
]


def turns(*contents: str) -> list[dict[str, Any]]:
    """User and assistant, one after the other."""
    roles = ("user", "assistant") * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def config(**changes: Any) -> DatasetConfig:
    source = {"name": "files", "path": "data/raw/chats.jsonl"}
    given = {"name": "chats", "source": source, "rows": CHAT, "output": {"name": "training"}, **changes}
    return DatasetConfig.model_validate_json(json.dumps(given))


def make(root: Path, content: list[Any], **changes: Any) -> Dataset:
    path = root / "data" / "raw" / "chats.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in content))
    made = config(**changes)
    prepare_dataset(made, Layout(root))
    return open_dataset(Layout(root), made.name, made.version)


def convert(messages: Any, rows: dict[str, Any] = CHAT) -> CanonicalRow:
    return canonical(config(rows=rows).rows)({rows["messages"]: messages})


def in_sharegpt(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {"from": SPELLINGS.get(each["role"], each["role"]), "value": each["content"]}
        | {key: value for key, value in each.items() if key not in ("role", "content")}
        for each in messages
    ]


def all_rows(dataset: Dataset) -> list[dict[str, Any]]:
    return [row for split in dataset.num_rows for row in dataset.read_split(split).to_pylist()]


def test_conversations_keep_their_order_and_every_key_of_every_message(tmp_path):
    chats = [turns("hello", f"answer {number}", "and?", "that is all") for number in range(50)] + [WITH_TOOLS]
    dataset = make(tmp_path, [{"messages": chat, "topic": "small"} for chat in chats])
    assert dataset.kind == "chat"
    assert dataset.labels == ()
    found = all_rows(dataset)
    with_tools = [{**message, "content": message["content"] or ""} for message in WITH_TOOLS]
    expected = [*chats[:-1], with_tools]
    by_text = sorted((plain_messages(row["messages"]) for row in found), key=str)
    assert by_text == sorted(expected, key=str)
    assert {row["extra_json"] for row in found} == {'{"topic":"small"}'}
    schema = dataset.read_split("train").schema
    assert [(field.name, str(field.type)) for field in schema] == [
        ("row_id", "string"),
        (
            "messages",
            "list<element: struct<role: string not null, content: string not null, extra_json: string> not null>",
        ),
        ("extra_json", "string"),
    ]


def test_the_spelling_and_the_file_format_change_nothing(tmp_path):
    chats = [*(turns(f"question {number}", f"answer {number}") for number in range(60)), WITH_TOOLS]
    usual = make(tmp_path, [{"messages": chat} for chat in chats])
    sharegpt = make(tmp_path / "2", [{"conversations": in_sharegpt(chat)} for chat in chats], rows=SHAREGPT)
    # Every struct of a Parquet column has the same keys, null where a message lacks them.
    raw = tmp_path / "3" / "data" / "raw" / "chats.parquet"
    raw.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": chat} for chat in chats[::-1]]), raw)
    as_parquet = make(tmp_path / "3", [], source={"name": "files", "path": "data/raw/chats.parquet"})
    for other in (sharegpt, as_parquet):
        for split in ("train", "val", "test"):
            ours, theirs = (
                {row["row_id"]: plain_messages(row["messages"]) for row in each.read_split(split).to_pylist()}
                for each in (usual, other)
            )
            assert ours == theirs


@pytest.mark.parametrize(
    ("messages", "reason", "detail"),
    [
        (None, "missing value", ""),
        ("hello", "not a list of messages", "text"),
        ({"role": "user"}, "not a list of messages", "an object"),
        ([], "no assistant message", "0 messages"),
        (turns("only asked"), "no assistant message", "1 messages"),
        ([*turns("a", "b"), "c"], "message not an object", "message 3 is text"),
        ([{"content": "a"}], "message without 'role'", "keys content"),
        ([{"role": "user"}], "message without 'content'", "keys role"),
        ([{"from": "human", "value": "a"}], "message without 'role'", "keys from, value"),
        ([{"role": "human", "content": "a"}], "unknown role", "message 1: 'human'"),
        ([{"role": 1, "content": "a"}], "role not text", "message 1"),
        ([{"role": "user", "content": None}], "content not text", "null"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "content not text", "a list"),
        (turns("a", " "), "empty content", "message 2: assistant"),
        (turns("\n", "b"), "empty content", "message 1: user"),
        ([*turns("a"), *turns("b", "c")], "roles out of order", "message 2: user after user"),
        ([*turns("a", "b"), {"role": "assistant", "content": "c"}], "roles out of order", "assistant after assistant"),
        ([*turns("a", "b"), {"role": "system", "content": "c"}], "roles out of order", "system after assistant"),
        (turns("a", "b")[1:], "roles out of order", "message 1: assistant at the beginning"),
        ([*WITH_TOOLS[:2], *WITH_TOOLS[3:]], "roles out of order", "message 3: tool after user"),
        (turns("a", "\ud800"), "not valid Unicode", ""),
        (turns("\ud800", "a"), "not valid Unicode", ""),
        ([*turns("a"), {"role": "assistant", "content": "b", "name": "\ud800"}], "not valid Unicode", ""),
        ([*turns("a"), {"role": "assistant", "content": "b", "x": {1}}], "not plain values", ""),
    ],
)
def test_a_conversation_that_no_template_can_render_is_rejected(messages, reason, detail):
    with pytest.raises(RowError) as error:
        convert(messages)
    assert error.value.reason.startswith(reason)
    assert detail in error.value.detail


@pytest.mark.parametrize(
    "messages",
    [
        turns("a", "b", "a trailing question"),
        [{"role": "system", "content": ""}, *turns("a", "b")],
        [*WITH_TOOLS[:3], {"role": "tool", "content": ""}, {"role": "tool", "content": "3"}, WITH_TOOLS[4]],
        WITH_TOOLS[:3],
        [*WITH_TOOLS[:2], {"role": "assistant", "tool_calls": CALL}],
        tuple(turns("a", "b")),
    ],
)
def test_an_unusual_conversation_that_can_be_rendered_is_kept(messages):
    assert len(convert(messages).columns["messages"]) == len(messages)


def test_ids_tell_apart_what_a_model_is_shown_and_asked():
    chats = [
        turns("ab", "c"),
        turns("a", "bc"),
        turns("ab", "c", "d"),
        [{"role": "system", "content": "ab"}, *turns("ab", "c")],
        WITH_TOOLS[:3],
        [*WITH_TOOLS[:2], {"role": "assistant", "content": "", "tool_calls": CALL[:1] * 2}],
        [*turns("ab"), {"role": "assistant", "content": "c", "weight": 0}],
    ]
    assert len({convert(chat).row_id for chat in chats}) == len(chats)
    assert convert(turns("ab", "c")).row_id == "21c2327acd66c9f2"


def test_the_input_is_everything_before_the_last_turn_of_the_assistant(tmp_path):
    assert convert(turns("a", "b", "c", "d")).input == convert(turns("a", "b", "c", "e", "f")).input
    assert convert(turns("a", "b", "c", "d")).input != convert(turns("a", "x", "c", "d")).input
    rows = [{"messages": turns("hello", "hi", f"question {n}", answer)} for n in range(100) for answer in ("x", "y")]
    dataset = make(tmp_path, rows)
    places: dict[str, set[str]] = {}
    for split in dataset.num_rows:
        for row in dataset.read_split(split).to_pylist():
            places.setdefault(row["messages"][2]["content"], set()).add(split)
    assert len(places) == 100
    assert {len(splits) for splits in places.values()} == {1}
    assert min(dataset.num_rows.values()) > 0


def test_bad_conversations_are_counted_and_written_down(tmp_path):
    rows = [{"messages": turns(f"q {number}", "a")} for number in range(8)]
    rows += [{"messages": turns("q")}, {"messages": [{"role": "bot", "content": "a"}]}, rows[0]]
    with pytest.raises(GateError, match=r"2 of 11 rows are bad.*1x no assistant message, 1x unknown role.*rows.roles"):
        make(tmp_path, rows)
    dataset = make(tmp_path, rows, max_bad_fraction=0.2)
    assert sum(dataset.num_rows.values()) == 8
    rejects = (tmp_path / "data" / "processed" / "training" / "rejects" / "chats_v1.jsonl").read_text().splitlines()
    assert [json.loads(line)["line"] for line in rejects] == [9, 10, 11]


def test_a_tokenizer_learns_the_words_and_roles_of_conversations(tmp_path):
    rows = [{"messages": turns(f"question number {n}", f"an answer to {n}")} for n in range(100)]
    dataset = make(tmp_path, rows, tokenizer={"vocab_size": 360})
    tokenizer = Tokenizer.from_str(dataset.tokenizer_json() or "")
    assert {"question", "user", "assistant", "\u0120answer"} <= tokenizer.get_vocab().keys()
    for text in ("question number 7", "<|eos|> caf\u00e9 \U0001f600\n"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_conversations_can_be_asked_in_sql(tmp_path):
    make(tmp_path, [{"messages": turns(f"q {number}", "a", "again", "b")} for number in range(100)])
    query = DataQuery(tmp_path)
    words = query.sql("select messages[2].content as first, len(messages) as turns from chats_v1_train limit 1")
    assert words.to_dict("list") == {"first": ["a"], "turns": [4]}
    assert query.get_split("chats", "train").messages[0][0]["role"] == "user"


@pytest.mark.parametrize(
    ("rows", "output", "words"),
    [
        ("{name: chat, messages: m, role: x, content: x}", "{name: training}", ["data.yaml:4", "'x' is the key"]),
        ("{name: chat, messages: m, roles: {bot: model}}", "{name: training}", ["data.yaml:4", "assistant", "tool"]),
        ("{name: chat}", "{name: training}", ["messages"]),
        ("{name: chat, messages: m}", "{name: pretrain}", ["data.yaml:4", "pretrain shards hold documents"]),
        ("{name: chat, messages: m}", "{name: teacher_inputs}", ["data.yaml:4", "teacher inputs are pairs"]),
    ],
)
def test_chat_settings_that_cannot_be_are_refused_with_their_line(tmp_path, rows, output, words):
    path = tmp_path / "data.yaml"
    path.write_text(f"datasets:\n  - name: a\n    source: {{name: digits}}\n    rows: {rows}\n    output: {output}\n")
    with pytest.raises(UserError) as error:
        load_config(path, DataConfig)
    assert [word for word in words if word not in str(error.value)] == []


def test_a_column_that_no_row_has_is_a_mistake_in_the_config(tmp_path):
    with pytest.raises(UserError, match=r"rows.messages: .* no column 'message'. Did you mean 'messages'"):
        make(tmp_path, [{"messages": turns("a", "b")}], rows={"name": "chat", "messages": "message"})


def test_half_a_surrogate_pair_in_a_key_costs_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "data" / "raw" / "chats.jsonl"
    path.parent.mkdir(parents=True)
    good = '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho %d"}]}\n'
    bad = '{"messages": [{"ro\\ud800le": "user", "content": "hi"}]}\n'
    path.write_text("".join(good % number for number in range(200)) + bad)
    dataset = config(source={"name": "files", "path": "data/raw/chats.jsonl"}, output={"name": "training"})
    made = prepare_dataset(dataset, Layout(tmp_path))
    assert made.num_rejected == 1
    assert "\\\\ud800" in (tmp_path / "data/processed/training/rejects").glob("*.jsonl").__next__().read_text()
