"""Prompt templates: what they make of a row, what they refuse, and that no dataset is served from another text."""

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet
import pytest

from nexa_core import digests
from nexa_core.config.data import DataConfig, PairRows
from nexa_core.config.load import load_config
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_data import parts, templates
from nexa_data.makers import RowError
from nexa_data.prepare import Prepared, prepare
from nexa_data.sources import pieces
from nexa_data.templates import BUILT_IN, FOLDER, PromptTemplate, open_template
from nexa_models.spec import ModelSpec
from nexa_ops.inputs import InputReader

DIGESTS = {
    "explain@1": "ecaec3de430749604061f0371732a7531807c310c872ea9f25a7cb1cbc17afd1",
    "solve@1": "de4ed4f2655f81b11b8b8b4c8fb577fd97a33e7c2d11a1d3859da3587a989809",
    "summarise@1": "b163445bb30ebbec5a16d382d397f8b870207bcccd4757c4aeb361fa81639cbf",
}
MINE = "Translate into {{ language }}:\n{{ text }}\n"


def write_rows(root: Path, rows: list[Any]) -> None:
    path = root / "data" / "raw" / "rows.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_template(root: Path, text: str, name: str = "mine@2.j2") -> str:
    (root / "prompts").mkdir(exist_ok=True)
    (root / "prompts" / name).write_text(text)
    return f"prompts/{name}"


def config(template: str, **changes: Any) -> DataConfig:
    dataset = {
        "name": "inputs",
        "source": {"name": "files", "path": "data/raw/rows.jsonl"},
        "rows": {"name": "pairs", "template": template},
        "output": {"name": "teacher_inputs"},
        **changes,
    }
    engine = {"engine": dataset.pop("engine")} if "engine" in dataset else {}
    return DataConfig.model_validate_json(json.dumps({"datasets": [dataset], **engine}))


def make(root: Path, template: str, *, replace: bool = False, **changes: Any) -> Prepared:
    return prepare(config(template, **changes), Layout(root), replace=replace)[0]


def table_path(root: Path) -> Path:
    return root / "data" / "processed" / "distillation" / "teacher_inputs" / "inputs_v1.parquet"


def prompts(root: Path) -> list[str]:
    return list(parquet.read_table(table_path(root))["prompt"].to_pylist())


def reasons(root: Path) -> list[str]:
    path = root / "data" / "processed" / "distillation" / "rejects" / "inputs_v1.jsonl"
    return [json.loads(line)["reason"] for line in path.read_text().splitlines()]


def rows(count: int) -> list[dict[str, Any]]:
    return [{"text": f"text {number}", "language": ["Greek", "Welsh"][number % 2]} for number in range(count)]


def rendered(text: str, /, **values: Any) -> str:
    return PromptTemplate("some.j2", text).render(values)


def test_a_template_makes_the_prompt_and_the_columns_it_takes_are_kept(tmp_path: Path) -> None:
    write_rows(tmp_path, rows(3))
    make(tmp_path, write_template(tmp_path, MINE))
    assert prompts(tmp_path)[:2] == ["Translate into Greek:\ntext 0", "Translate into Welsh:\ntext 1"]
    table = parquet.read_table(table_path(tmp_path)).to_pylist()
    assert json.loads(table[0]["extra_json"]) == {"language": "Greek", "text": "text 0"}
    assert [row["completion"] for row in table] == [None] * 3


def test_the_manifest_tells_name_version_digest_and_text(tmp_path: Path) -> None:
    write_rows(tmp_path, rows(3))
    manifest = make(tmp_path, write_template(tmp_path, MINE)).manifest
    digest = digests.of_file(tmp_path / "prompts" / "mine@2.j2")
    assert manifest["template"] == {
        "name": "mine", "version": "2", "file": "prompts/mine@2.j2", "sha256": digest, "text": MINE
    }  # fmt: skip
    assert {"file": "prompts/mine@2.j2", "bytes": len(MINE), "sha256": digest} in manifest["sources"]
    built_in = make(tmp_path, "summarise@1", name="other").manifest["template"]
    assert (built_in["name"], built_in["version"]) == ("summarise", "1")
    assert (
        make(tmp_path, write_template(tmp_path, MINE, "plain.j2"), name="more").manifest["template"]["version"] is None
    )


def test_a_changed_template_is_another_dataset(tmp_path: Path) -> None:
    write_rows(tmp_path, rows(3))
    name = write_template(tmp_path, MINE)
    first = make(tmp_path, name)
    assert not make(tmp_path, name).is_new
    write_template(tmp_path, MINE.replace("Translate", "Render"))
    with pytest.raises(UserError, match=re.escape("prompts/mine@2.j2 has other content")):
        make(tmp_path, name)
    second = make(tmp_path, name, replace=True)
    assert prompts(tmp_path)[0] == "Render into Greek:\ntext 0"
    assert second.manifest["fingerprint"] != first.manifest["fingerprint"]
    elsewhere = write_template(tmp_path, MINE, "other@1.j2")
    with pytest.raises(UserError, match=r'rows.template was "prompts/mine@2.j2" and is "prompts/other@1.j2"'):
        make(tmp_path, elsewhere)


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_processes_make_the_same_bytes_and_what_they_keep_is_of_one_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    some = rows(2000)
    write_rows(tmp_path, some)
    name = write_template(tmp_path, MINE)
    expected = make(tmp_path, name).manifest["splits"]
    monkeypatch.setattr(pieces, "PIECE_BYTES", 9000)
    monkeypatch.setattr(parts, "PARALLEL_FROM_BYTES", 0)
    monkeypatch.setattr(
        parts.manifests, "code_digest", lambda: engine
    )  # as another state of the code would make it anew
    assert make(tmp_path, name, replace=True, engine=engine).manifest["splits"] == expected
    assert len(list((tmp_path / ".cache" / "prepare" / "distillation_inputs").glob("*.arrow"))) > 5
    write_template(tmp_path, "{{ text }} in {{ language }}")
    make(tmp_path, name, replace=True)
    assert prompts(tmp_path) == [f"{row['text']} in {row['language']}" for row in some]


def test_a_template_travels_to_other_processes() -> None:
    template = PromptTemplate("some.j2", "{{ text }}!")
    assert template.render({"text": "a"}) == "a!"
    assert pickle.loads(pickle.dumps(template)).render({"text": "b"}) == "b!"


def test_a_row_that_lacks_a_column_is_a_bad_row(tmp_path: Path) -> None:
    bad = [{"text": "a", "language": None}, {"text": "a"}, {"text": " ", "language": "Greek"}]
    write_rows(tmp_path, [*rows(400), *bad])
    make(tmp_path, write_template(tmp_path, MINE))
    assert reasons(tmp_path) == ["missing value: no 'language'"] * 2 + ["missing value: no 'text'"]
    assert len(prompts(tmp_path)) == 400


def test_a_column_that_no_row_has_is_a_mistake_in_the_template(tmp_path: Path) -> None:
    write_rows(tmp_path, rows(3))
    with pytest.raises(UserError) as error:
        make(tmp_path, write_template(tmp_path, "{{ text }} {{ langauge }}"))
    assert "rows.template: data/raw/rows.jsonl has no column 'langauge'. Did you mean 'language'?" in str(error.value)
    assert not (tmp_path / "data" / "processed" / "distillation" / "manifests").exists()


def test_the_gate_counts_rows_of_which_a_template_makes_nothing(tmp_path: Path) -> None:
    write_rows(tmp_path, rows(10))
    with pytest.raises(GateError, match=r"no good row among 10 read.*10x empty prompt"):
        make(tmp_path, write_template(tmp_path, "{% if text == 'other' %}{{ text }}{% endif %}"))
    with pytest.raises(GateError, match=r"10x template fails.*TypeError"):
        make(tmp_path, write_template(tmp_path, "{{ text + 1 }}"))


@pytest.mark.parametrize(
    ("text", "values", "prompt"),
    [
        ("{{ n }}/{{ x }}/{{ yes }}", {"n": 3, "x": 0.5, "yes": True}, "3/0.5/true"),
        ("a{% if hint %} ({{ hint }}){% endif %}", {"hint": ""}, "a"),
        ("a{% if hint %} ({{ hint }}){% endif %}", {"hint": "b"}, "a (b)"),
        ("{{ hint | default('none') }} {{ hint or 'none' }}", {"hint": None}, "none none"),
        ("{% if n is defined %}{{ n }}{% endif %}", {"n": 0}, "0"),
        ("{% for word in words %}\n  {% if true %}\n{{ word }}\n  {% endif %}\n{% endfor %}\n", {"words": ["a", "b"]}, "a\nb\n"),
        ("{% for word in words %}{{ word }}{{ '; ' if not loop.last }}{% endfor %}", {"words": ["a", "b"]}, "a; b"),
        ("{{ words | join(', ') }}", {"words": ["a", "b"]}, "a, b"),
        ("{{ many | tojson }}", {"many": {"é": [None, "<&'>"]}}, '{"é": [null, "<&\'>"]}'),
        ('{{ row["unit price"] }} {{ row.text }}', {"unit price": 2, "text": "a"}, "2 a"),
        ("{{ row }}", {"row": "a column of that name"}, "a column of that name"),
        ("{{ text }}", {"text": "<b> & {{ 7 * 7 }} {% x %}"}, "<b> & {{ 7 * 7 }} {% x %}"),
        ("\ufeff{{ text }}\r\nb", {"text": "a"}, "a\nb"),
    ],
)  # fmt: skip
def test_what_stands_in_a_prompt(text: str, values: dict[str, Any], prompt: str) -> None:
    assert rendered(text, **values) == prompt


@pytest.mark.parametrize(
    ("text", "values", "said"),
    [
        ("{{ text }}", {"text": None}, "missing value: no 'text'"),
        ("{{ text | upper }}", {}, "missing value: no 'text'"),
        ("{{ row.text }}", {"more": 1}, "missing value: no 'text'"),
        ("{{ many.a }}", {"many": {"a": None}}, "missing value: a null"),
        ("{{ words }}", {"words": ["a"]}, "not text: a list in the prompt"),
        ("{{ many }}", {"many": {"a": 1}}, "not text: a dict in the prompt"),
        ("{{ text.upper }}", {"text": "a"}, "not text: a builtin"),
        ("{{ x }}", {"x": float("nan")}, "number not finite"),
        ("{{ n / 0 }}", {"n": 1}, "template fails: ZeroDivisionError"),
        ("{{ text.__class__.__mro__ }}", {"text": "a"}, "template fails: SecurityError"),
        ("{% for i in range(n) %}{% endfor %}", {"n": 10**9}, "template fails: OverflowError"),
        ("{{ words.append(1) }}", {"words": [1]}, "template fails: SecurityError"),
    ],
)
def test_rows_that_make_no_prompt(text: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises(RowError) as error:
        rendered(text, **values)
    assert f"{error.value.reason}: {error.value.detail}".startswith(said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\n{{ text", "mine@2.j2, line 2: unexpected end"),
        ("{{ text | uper }}", "No filter named 'uper'"),
        ("{{ text | random }}", "No filter named 'random'"),
        ("{% include 'other.j2' %}{{ text }}", "cannot include"),
        ("{% import text as other %}", "cannot include"),
        ("What is this?", "names no column"),
        ("", "names no column"),
    ],
)
def test_texts_that_are_no_template(tmp_path: Path, text: str, said: str) -> None:
    name = write_template(tmp_path, text)
    with pytest.raises(UserError, match=re.escape(said)):
        open_template(PairRows(name="pairs", template=name), Layout(tmp_path))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            "explian@1",
            "Unknown template 'explian@1'. Did you mean 'explain@1'? Allowed: explain@1, solve@1, summarise@1",
        ),
        ("explain", "Did you mean 'explain@1'?"),
        ("prompts/none.j2", "none.j2 cannot be read (No such file or directory)"),
        ("prompts/bytes.j2", "bytes.j2 is not UTF-8 (byte 1)"),
    ],
)
def test_templates_that_are_not_there(tmp_path: Path, given: str, said: str) -> None:
    write_template(tmp_path, "")
    (tmp_path / "prompts" / "bytes.j2").write_bytes(b"a\xff")
    with pytest.raises(UserError, match=re.escape(said)):
        open_template(PairRows(name="pairs", template=given), Layout(tmp_path))


@pytest.mark.parametrize(
    ("given", "output", "said"),
    [
        ("template: solve@1, prompt: q", "teacher_inputs", "`prompt:` says that column 'q' is the prompt"),
        ("template: solve@1, completion: a", "teacher_inputs", "no `completion:`"),
        ("template: solve@1", "training", "can only become"),
        ("template: solve@1, completion: a", "pretrain", "pretrain shards hold documents"),
        ("{}", "training", "need `prompt:` or `template:`"),
    ],
)
def test_settings_that_exclude_each_other(tmp_path: Path, given: str, output: str, said: str) -> None:
    sides = "" if given == "{}" else f", {given}"
    text = (
        f"datasets: [{{name: a, source: {{name: digits}}, rows: {{name: pairs{sides}}}, output: {{name: {output}}}}}]"
    )
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=re.escape(said)):
        load_config(tmp_path / "data.yaml", DataConfig)


def test_pairs_to_train_on_may_have_made_prompts_and_their_model_reads_those(tmp_path: Path) -> None:
    write_rows(tmp_path, [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(50)])
    settings = {"name": "pairs", "template": "solve@1", "completion": "answer"}
    quality = [{"name": "length", "of": "prompt", "min_words": 5}]
    made = make(tmp_path, "", rows=settings, output={"name": "training", "val": 0, "test": 0}, quality=quality)
    (row, *_) = parquet.read_table(tmp_path / made.manifest["splits"]["train"]["path"]).to_pylist()
    assert row["prompt"].startswith("0 + 1?\n\nSolve this")
    assert (row["completion"], json.loads(row["extra_json"])) == ("#### 1", {"question": "0 + 1?"})
    reader = InputReader(ModelSpec({"name": "causal_lm"}, "pairs", (), None, None), PairRows.model_validate(settings))
    assert reader.read({"prompt": "made", "question": "raw"}) == "made"
    with pytest.raises(RowError, match="missing column"):
        reader.read({"question": "raw"})


def test_private_data_is_masked_before_a_template_sees_it(tmp_path: Path) -> None:
    write_rows(tmp_path, [{"text": "write to ada@example.org", "language": "Greek"}])
    make(tmp_path, write_template(tmp_path, MINE), quality=[{"name": "private", "action": "mask"}])
    assert prompts(tmp_path) == ["Translate into Greek:\nwrite to [EMAIL]"]


def test_the_built_in_templates_are_those_of_the_table_and_never_change() -> None:
    """Another text is another version: datasets that were made with this one name it."""
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.j2" for name in BUILT_IN}
    assert {name: digests.of_file(FOLDER / f"{name}.j2") for name in BUILT_IN} == DIGESTS
    for name, about in BUILT_IN.items():
        template = open_template(PairRows(name="pairs", template=name), Layout(Path()))
        assert template is not None
        assert set(template.columns) == set(re.findall(r"`(\w+)`", about))


def test_a_template_is_compiled_once_for_all_rows(tmp_path: Path) -> None:
    write_rows(tmp_path, rows(1000))
    templates._compiled.cache_clear()
    make(tmp_path, write_template(tmp_path, MINE))
    assert templates._compiled.cache_info().misses == 1


def test_the_shipped_config_uses_one() -> None:
    shipped = load_config(Path(__file__).parent.parent / "configs" / "data.yaml", DataConfig)
    (inputs,) = [dataset for dataset in shipped.datasets if dataset.name == "docs_questions"]
    assert isinstance(inputs.rows, PairRows)
    assert inputs.rows.template in BUILT_IN
