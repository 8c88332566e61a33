"""The embedded example of distillation: student and control differ in the teacher alone, and the teacher is worth it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from nexa_core.config import DataConfig, DistillConfig, RunConfig, load_config
from nexa_core.paths import Layout
from nexa_data.datasets import open_dataset
from nexa_data.prepare import prepare
from nexa_distill.collect_teacher import collect
from nexa_distill.filter_pairs import filter_pairs

ROOT = Path(__file__).parent.parent
CONFIGS = ROOT / "nexa_train" / "configs"


def test_student_and_control_differ_in_what_they_learn_from_alone() -> None:
    student, control = (yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in ("baseline", "control"))
    for config in (student, control):
        load_config(CONFIGS / ("baseline.yaml" if config is student else "control.yaml"), RunConfig)
        for key in ("name", "data", "distillation"):
            config.pop(key, None)
    assert student == control


def test_no_question_of_the_test_is_learned_by_anyone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    layout = Layout(tmp_path)
    for path in ("configs/data.yaml", "configs/distill_data.yaml", "nexa_distill/teacher/data.yaml"):
        prepare(load_config(Path(path), DataConfig), layout)
    datasets = [
        open_dataset(layout, name, "v1", category=category)
        for name, category in (
            ("problems_test", "training"),
            ("problems_labelled", "training"),
            ("problems_teacher", "training"),
            ("teacher_inputs", "distillation"),
        )
    ]
    prompts = [
        {prompt for split in each.manifest["splits"] for prompt in each.read_split(split)["prompt"].to_pylist()}
        for each in datasets
    ]
    test, labelled, teacher, asked = prompts
    assert len(test) > 500
    assert len(asked) > 4000
    assert not test & (labelled | teacher | asked)
    assert not teacher & asked
    assert labelled < asked, "the student is asked about what the control learns from as well"


def test_the_default_settings_collect_and_filter_without_anything_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    layout = Layout(tmp_path)
    settings = load_config(Path("configs/distill.yaml"), DistillConfig, overrides=["collect.max_samples=60"])
    collected = collect(settings, layout)
    assert collected.manifest["statuses"]["answered"] == 60
    filtered = filter_pairs(settings, layout)
    assert sum(filtered.manifest["splits"][split]["rows"] for split in ("train", "val")) >= 57


@pytest.mark.slow
def test_the_student_beats_the_control(tmp_path: Path) -> None:
    """The whole script, as `make demo` runs it."""
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "distill_demo.sh")],
        env={
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "NEXA_ROOT": str(tmp_path),
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (p_value,) = re.findall(r"A is better than B by final_answer: p = (\S+),", done.stdout)
    assert float(p_value) < 0.01
