"""DataQuery: prepared data as DataFrames, and answers to SQL."""

import contextlib
from pathlib import Path

import numpy
import pandas
import pyarrow
import pyarrow.parquet as parquet
import pytest

from nexa_core.config.data import DataConfig
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_data.data_analysis.query_data import DataQuery
from nexa_data.prepare import prepare

CONFIG = """{"datasets": [
    {"name": "points", "source": {"name": "files", "path": "data/raw"}, "output": {"name": "training", "test": 0.3},
     "rows": {"name": "features", "features": ["a", "b"], "label": "c"}},
    {"name": "docs", "source": {"name": "files", "path": "data/raw"},
     "output": {"name": "pretrain", "rows_per_shard": 60, "val": 0.1}, "rows": {"name": "pairs", "completion": "t"}},
    {"name": "teacher_inputs", "source": {"name": "files", "path": "data/raw"}, "output": {"name": "teacher_inputs"},
     "rows": {"name": "pairs", "prompt": "t"}}
]}"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("laboratory")
    raw = root / "data" / "raw" / "rows.csv"
    raw.parent.mkdir(parents=True)
    raw.write_text("a,b,c,t\n" + "".join(f"{n},{n / 2},{n % 2},text {n}\n" for n in range(100)))
    prepare(DataConfig.model_validate_json(CONFIG), Layout(root))
    predictions = root / "data" / "processed" / "evaluation" / "predictions" / "run-a_1.parquet"
    predictions.parent.mkdir(parents=True)
    parquet.write_table(pyarrow.table({"row_id": ["x", "y"], "prediction": ["0", "1"]}), predictions)
    return root


def test_the_runbooks_lines_work(root, monkeypatch):
    monkeypatch.chdir(root)
    monkeypatch.delenv("NEXA_ROOT", raising=False)
    query = DataQuery()
    teacher_df = query.get_teacher_inputs(version="v1")
    pretrain_df = query.get_pretrain_dataset(shard="001")
    assert isinstance(teacher_df, pandas.DataFrame)
    assert list(teacher_df.columns) == ["row_id", "prompt", "extra_json"]
    assert list(pretrain_df.columns) == ["row_id", "completion", "extra_json"]
    assert list(teacher_df.prompt) == [f"text {n}" for n in range(100)]
    held_out = [query.get_split("docs", split) for split in ("val", "test")]
    frames = [pretrain_df, query.get_pretrain_dataset(shard="002"), *held_out]
    assert len(pretrain_df) == 60
    assert sorted(text for frame in frames for text in frame.completion) == sorted(f"text {n}" for n in range(100))


def test_features_make_a_matrix(root):
    frame = DataQuery(root).get_split("points", "train")
    matrix = numpy.stack(frame.features)
    assert matrix.dtype == numpy.float32
    assert matrix.shape == (len(frame), 2)
    assert (matrix[:, 0] == 2 * matrix[:, 1]).all()


def test_list_datasets_has_a_row_for_each(root):
    frame = DataQuery(root).list_datasets()
    assert list(frame.columns) == ["name", "version", "category", "kind", "rows", "path"]
    found = {tuple(row[:5]) for row in frame.itertuples(index=False)}
    assert found == {
        ("teacher_inputs", "v1", "distillation", "pairs", 100),
        ("docs", "v1", "training", "pairs", 100),
        ("points", "v1", "training", "features", 100),
    }
    assert all(Path(path).is_file() for path in frame.path)
    assert len(DataQuery(root / "nowhere").list_datasets()) == 0


def test_sql_reaches_every_dataset_and_predictions(root):
    query = DataQuery(root)
    assert query.tables() == [
        "teacher_inputs_v1", "docs_v1", "docs_v1_val", "docs_v1_test", "points_v1_train", "points_v1_val",
        "points_v1_test", "predictions_run-a_1",
    ]  # fmt: skip
    splits = " union all ".join(f"select * from points_v1_{split}" for split in ("train", "val", "test"))
    assert query.sql(f"select count(*) as n, count(distinct row_id) as ids from ({splits})").to_dict("list") == {
        "n": [100], "ids": [100]
    }  # fmt: skip
    documents = "select * from Docs_V1 union all select * from docs_v1_val union all select * from docs_v1_test"
    assert query.sql(f"SELECT count(*) AS n FROM ({documents})").n[0] == 100
    assert query.sql("SELECT count(*) AS n FROM Docs_V1").n[0] > 60
    assert query.sql('select prediction from "predictions_run-a_1" order by 1 desc').prediction[0] == "1"


@pytest.mark.parametrize("name", ["teacher_inputs_v1", "points_v1_train"])
@pytest.mark.parametrize(
    "statement", ["delete from {}", "drop view {}", "copy {} to '{}.csv'", "insert into {} values (1)"]
)
def test_sql_changes_nothing(root, name, statement):
    before = sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*"))
    with contextlib.suppress(UserError):
        DataQuery(root).sql(statement.format(name, root / "out"))
    assert sorted((path, path.stat().st_mtime_ns) for path in root.rglob("*")) == before
    assert len(DataQuery(root).sql(f"select * from {name}")) > 0


@pytest.mark.parametrize("source", ["'{}'", "read_csv('{}')", "read_text('{}')"])
def test_sql_reaches_no_other_file(root, source):
    with pytest.raises(UserError):
        DataQuery(root).sql(f"select * from {source.format(root / 'data' / 'raw' / 'rows.csv')}")


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda q: q.get_split("point", "train"), "No training dataset point_v1. Did you mean 'points_v1'?"),
        (lambda q: q.get_split("points", "train", version="v2"), "No training dataset points_v2"),
        (lambda q: q.get_split("points", "tran"), "no split 'tran'. Did you mean 'train'?"),
        (lambda q: q.get_pretrain_dataset("003"), "No pretraining shard '003'."),
        (lambda q: q.get_pretrain_dataset("003"), "There: 001, 002"),
        (lambda q: q.get_pretrain_dataset("val"), "No pretraining shard 'val'."),
        (lambda q: q.get_split("docs", "vall"), "Did you mean 'val'? There: 001 to 002 (together: train), val, test"),
        (lambda q: q.get_teacher_inputs("v9"), "There: teacher_inputs_v1"),
        (lambda q: q.get_predictions("run-a_2"), "Did you mean 'run-a_1'?"),
        (
            lambda q: q.sql("select * from points_v1_trian"),
            "No table 'points_v1_trian'. Did you mean 'points_v1_train'?",
        ),
        (lambda q: q.sql("select nothing from points_v1_train"), 'column "nothing"'),
        (lambda q: q.sql("selekt"), "syntax error"),
    ],
)
def test_what_is_missing_is_named_beside_what_exists(root, ask, message):
    with pytest.raises(UserError) as error:
        ask(DataQuery(root))
    assert message in str(error.value)


def test_predictions_of_a_run_are_a_frame(root):
    assert DataQuery(root).get_predictions("run-a_1").row_id.tolist() == ["x", "y"]


def test_sql_reads_no_changed_file_and_says_what_is_missing(tmp_path):
    raw = tmp_path / "data" / "raw" / "rows.csv"
    raw.parent.mkdir(parents=True)
    raw.write_text("a,b,c,t\n" + "".join(f"{n},{n / 2},{n % 2},text {n}\n" for n in range(100)))
    prepare(DataConfig.model_validate_json(CONFIG), Layout(tmp_path))
    query = DataQuery(tmp_path)
    assert query.sql("select count(*) as n from docs_v1").n[0] > 60
    shard = tmp_path / "data" / "processed" / "training" / "pretrain" / "001.parquet"
    parquet.write_table(parquet.read_table(shard).slice(0, 10), shard)
    with pytest.raises(UserError, match=r"001.parquet has .* bytes instead of"):
        query.sql("select count(*) as n from docs_v1")
    shard.unlink()
    with pytest.raises(UserError, match=r"001.parquet is missing"):
        query.sql("select count(*) as n from docs_v1")


@pytest.mark.parametrize("query", ["", "  ", "-- nothing"])
def test_an_empty_query_is_named(root, query):
    with pytest.raises(UserError, match="The query is empty"):
        DataQuery(root).sql(query)


def test_a_shard_that_is_a_number_is_named_beside_those_there_are(root):
    with pytest.raises(UserError, match="No pretraining shard '1'"):
        DataQuery(root).get_pretrain_dataset(shard=1)
