"""Prepared data as pandas DataFrames, for notebooks and questions in SQL."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import duckdb
import pandas
import pyarrow.dataset
import pyarrow.parquet as parquet

from nexa_core.errors import UserError
from nexa_core.lookup import did_you_mean
from nexa_core.paths import Layout
from nexa_data.datasets import Dataset, list_datasets, open_dataset
from nexa_data.manifests import is_pretrain


class DataQuery:
    """Reads whatever `prepare` and `evaluate` left below `root`; never writes.

    Without a root it is `NEXA_ROOT`, or the folder that the notebook runs in. A row's `features` are a numpy array of
    float32 in each cell; `numpy.stack(frame.features)` makes a matrix of them.
    """

    def __init__(self, root: Path | str | None = None):
        self._layout = Layout.from_environment() if root is None else Layout(Path(root))
        self._sound: set[tuple[Path, int, int]] = set()
        """Files whose digest has held, each with its size and time: a second question reads none of them for it."""

    def get_teacher_inputs(self, version: str = "v1", name: str = "teacher_inputs") -> pandas.DataFrame:
        """The prompts to ask a teacher: `row_id`, `prompt`, `extra_json`."""
        dataset = open_dataset(self._layout, name, version, category="distillation")
        return _frame(dataset, "teacher_inputs").drop(columns="completion")

    def get_pretrain_dataset(self, shard: str = "001") -> pandas.DataFrame:
        """One shard: its documents, or its token sequences where those were made.

        Of a document `row_id`, `completion` (the document), `extra_json`. Of a sequence `tokens` (a numpy array), `row_ids` of
        the documents in it, where in it each of them `starts`, how many of its tokens lie in sequences before (`offsets`),
        `num_targets` and `num_begun`; the documents are in `sql("select * from <name>_<version>")`.

        Raises:
            UserError: there is no such shard; says which there are.
        """
        owners = [dataset for dataset in list_datasets(self._layout) if is_pretrain(dataset.manifest)]
        shards = {split: dataset for dataset in owners for split in dataset.training_splits}
        if shard not in shards:
            raise UserError(_missing("pretraining shard", str(shard), list(shards)))
        if shards[shard].sequence_tokens is not None:
            (found,) = shards[shard].sequence_shards([shard])
            return parquet.read_table(found.path).to_pandas()
        return _frame(shards[shard], shard).drop(columns="prompt")

    def get_split(self, dataset: str, split: str, version: str = "v1") -> pandas.DataFrame:
        """A split (train, val or test) of a training dataset."""
        return _frame(open_dataset(self._layout, dataset, version), split)

    def get_predictions(self, run_id: str) -> pandas.DataFrame:
        """What a run's model said to each evaluated row.

        Raises:
            UserError: the run left no predictions; says which runs did.
        """
        files = {path.stem: path for path in self._prediction_files()}
        if run_id not in files:
            raise UserError(_missing("predictions of run", run_id, list(files)))
        return parquet.read_table(files[run_id]).to_pandas()

    def list_datasets(self) -> pandas.DataFrame:
        """A row for each dataset: `name`, `version`, `category`, `kind`, `rows` of all splits, `path` of its manifest."""
        datasets = list_datasets(self._layout)
        rows = [
            (each.name, each.version, each.category, each.kind, sum(each.num_rows.values()), str(each.manifest_path))
            for each in datasets
        ]
        return pandas.DataFrame(rows, columns=["name", "version", "category", "kind", "rows", "path"])

    def tables(self) -> list[str]:
        """The names that `sql` knows.

        `digits_v1_train` is a split of a training dataset, `python_docs_text_v1` all documents of a pretraining one,
        `python_docs_text_v1_val` what that holds out, `teacher_inputs_v1` a distillation dataset, and
        `predictions_<run_id>` what a run predicted.
        """
        return [name for name, _ in self._tables()]

    def sql(self, query: str) -> pandas.DataFrame:
        """The answer to a query over `tables()`; a name with `-` or `.` in it needs double quotes around it.

        Runs in a database of its own that can reach no file, so nothing can be changed.

        Raises:
            UserError: the query is not valid SQL, names a table or column that does not exist, or a file of a table is missing or
                changed.
        """
        with duckdb.connect(":memory:", config={"enable_external_access": "false"}) as connection:
            for name, checked in self._tables():
                if name.lower() in query.lower():
                    connection.register(name, pyarrow.dataset.dataset([str(path) for path in checked()]))
            try:
                if not duckdb.extract_statements(query):
                    raise UserError("The query is empty.")
                return connection.execute(query).df()
            except duckdb.Error as error:
                raise UserError(self._explain(error)) from None

    def _explain(self, error: duckdb.Error) -> str:
        missing = re.search(r"Table with name (\S+) does not exist", str(error))
        return _missing("table", missing[1], self.tables()) if missing else f"DuckDB: {error}"

    def _tables(self) -> Iterator[tuple[str, Callable[[], list[Path]]]]:
        """The name of each table, and what gives its files once their digests have held."""
        for dataset in list_datasets(self._layout):
            together: tuple[str, ...] = ()
            if dataset.category != "training":
                together = tuple(dataset.num_rows)
            elif is_pretrain(dataset.manifest):
                together = dataset.training_splits
            if together:
                yield dataset.key, partial(self._checked, dataset, together)
            apart = [split for split in dataset.num_rows if split not in together]
            yield from ((f"{dataset.key}_{split}", partial(self._checked, dataset, (split,))) for split in apart)
        yield from ((f"predictions_{path.stem}", partial(list, [path])) for path in self._prediction_files())

    def _checked(self, dataset: Dataset, splits: tuple[str, ...]) -> list[Path]:
        paths = [dataset.split_path(split) for split in splits]
        for split, path in zip(splits, paths, strict=True):
            if not path.exists() or _state(path) not in self._sound:
                dataset.check_split(split)
                self._sound.add(_state(path))
        return paths

    def _prediction_files(self) -> list[Path]:
        return sorted((self._layout.evaluation / "predictions").glob("*.parquet"))


def _state(path: Path) -> tuple[Path, int, int]:
    found = path.stat()
    return path, found.st_size, found.st_mtime_ns


def _frame(dataset: Dataset, split: str) -> pandas.DataFrame:
    return dataset.read_split(split).to_pandas()


def _missing(what: str, given: str, known: list[str]) -> str:
    return f"No {what} '{given}'.{did_you_mean(given, known)} There: {', '.join(known) or 'none'}"
