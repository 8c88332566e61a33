"""A teacher's answers as rows, and filtering them."""

from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet
import yaml

from nexa_core.config import DistillConfig, load_config
from nexa_core.paths import Layout
from nexa_distill.filter_pairs import Filtered, filter_pairs
from nexa_distill.outputs import SCHEMA


def row(row_id: str, completion: str | None, **more: Any) -> dict[str, Any]:
    made: dict[str, Any] = dict.fromkeys(SCHEMA.names)
    base = {
        "row_id": row_id,
        "sample_index": 0,
        "prompt": f"Question {row_id}?",
        "completion": completion,
        "status": "answered",
    }
    costs = {"cost_usd": 0.5, "request_sha256": f"digest of {row_id}", "extra_json": "{}", "teacher": "t:m"}
    return {**made, **base, **costs, **more}


def write_outputs(lab: Path, rows: list[dict[str, Any]], key: str = "teacher_outputs_v1") -> None:
    path = lab / "data/processed/distillation/teacher_outputs" / f"{key}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=SCHEMA), path)


def settings(lab: Path, steps: list[dict[str, Any]], **more: Any) -> DistillConfig:
    config = {"collect": {"teacher": "recorded:none.jsonl"}, "filter": {"steps": steps, "val": 0.2, **more}}
    (lab / "distill.yaml").write_text(yaml.safe_dump(config))
    return load_config(lab / "distill.yaml", DistillConfig)


def filtered(lab: Path, steps: list[dict[str, Any]], *, replace: bool = False, **more: Any) -> Filtered:
    return filter_pairs(settings(lab, steps, **more), Layout(lab), replace=replace)


def read(lab: Path, done: Filtered, what: str) -> list[dict[str, Any]]:
    return parquet.read_table(lab / done.manifest[what]["path"]).to_pylist()


def reasons(lab: Path, done: Filtered) -> dict[str, tuple[str, str]]:
    return {each["row_id"]: (each["step"], each["reason"]) for each in read(lab, done, "rejected")}
