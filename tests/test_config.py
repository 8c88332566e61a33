"""Configs: every mistake is named with its place, and every setting has an effect."""

from pathlib import Path

import pytest
import yaml

from nexa_core.config import DataConfig, RunConfig, load_config
from nexa_core.errors import UserError

ROOT = Path(__file__).parent.parent

RUN = """\
name: a
experiment: b
data: {dataset: digits}
model:
  name: mlp
training:
  optimizer:
    name: adamw
    lr: 1e-4
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


def complaint(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load_config(write(tmp_path, text), RunConfig, overrides=overrides)
    return str(caught.value)


def test_a_number_in_scientific_notation_is_a_number(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, RUN), RunConfig).training.optimizer.lr == 1e-4


@pytest.mark.parametrize(
    ("override", "value"),
    [("training.optimizer.lr=0.0001", 0.0001), ("training.optimizer.lr=1e-4", 1e-4), ("training.optimizer.lr=1", 1.0)],
)
def test_an_override_replaces_one_value(tmp_path: Path, override: str, value: float) -> None:
    assert load_config(write(tmp_path, RUN), RunConfig, overrides=[override]).training.optimizer.lr == value


def test_an_override_may_give_a_group_that_the_file_leaves_out(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, RUN), RunConfig, overrides=["training.early_stopping.patience_epochs=3"])
    assert config.training.early_stopping is not None
    assert config.training.early_stopping.patience_epochs == 3


def test_an_unknown_key_names_file_line_and_the_nearest_key(tmp_path: Path) -> None:
    said = complaint(tmp_path, RUN.replace("lr:", "lrr:"))
    assert "run.yaml:9: Unknown key 'training.optimizer.lrr'. Did you mean 'training.optimizer.lr'?" in said


def test_a_key_in_the_wrong_group_is_pointed_to_its_own(tmp_path: Path) -> None:
    said = complaint(tmp_path, RUN + "  lr: 0.1\n")
    assert "run.yaml:10: Unknown key 'training.lr'. Did you mean 'training.optimizer.lr'?" in said


def test_an_unknown_choice_lists_the_allowed_ones(tmp_path: Path) -> None:
    said = complaint(tmp_path, RUN.replace("adamw", "adamm"))
    assert "run.yaml:8: Unknown training.optimizer.name 'adamm'. Did you mean" in said
    assert "Allowed: adam, adamw, sgd" in said


def test_a_wrong_type_shows_what_was_given(tmp_path: Path) -> None:
    assert 'run.yaml:10: training.epochs is "many"' in complaint(tmp_path, RUN + "  epochs: many\n")
    assert "training.epochs is 1.5" in complaint(tmp_path, RUN, "training.epochs=1.5")
    assert "training.epochs is true" in complaint(tmp_path, RUN, "training.epochs=true")


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("training.schedule={name: constant, final_fraction: 0.1}", "Unknown key 'training.schedule.final_fraction'"),
        ("evaluation.generation.max_rows=3", "writes no text"),
        ("training.gradient_accumulation_steps=64", "cannot cut a batch of 32 rows"),
        ("training.optimizer={name: sgd, momentum: 0.0, nesterov: true}", "needs a momentum"),
        ("model.parameters.channels=[3]", "Unknown key 'model.parameters.channels'"),
        ("training.optimizer.betas=[0.9, 1.5]", "less than 1"),
    ],
)
def test_a_setting_without_effect_is_refused_and_the_override_named(tmp_path: Path, override: str, why: str) -> None:
    said = complaint(tmp_path, RUN, override)
    assert why in said
    assert f"--override {override}" in said


def test_every_mistake_of_a_file_is_named_at_once(tmp_path: Path) -> None:
    said = complaint(tmp_path, RUN.replace("name: mlp", "name: mpl") + "  epochs: no\n  batchsize: 3\n")
    assert len(said.splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: 1\na: 2\n", "run.yaml:2: 'a' is given twice, first at"),
        ("a: [1\n", "run.yaml:2: not valid YAML"),
        ("- 1\n", "a config is a mapping"),
        ("", "a config is a mapping"),
    ],
)
def test_a_file_that_is_no_config_says_why(tmp_path: Path, text: str, why: str) -> None:
    assert why in complaint(tmp_path, text)


def test_a_missing_file_names_those_that_exist(tmp_path: Path) -> None:
    write(tmp_path, RUN)
    with pytest.raises(UserError, match=r"No config file .*There: .*run\.yaml"):
        load_config(tmp_path / "rnu.yaml", RunConfig)


def test_yaml_words_of_1_1_stay_text(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, RUN.replace("name: a\n", "name: no\n")), RunConfig).name == "no"


@pytest.mark.parametrize("name", ["default", "baseline"])
def test_the_shipped_run_configs_load_and_survive_a_round_trip(name: str, tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / f"{name}.yaml", RunConfig)
    again = write(tmp_path, yaml.safe_dump(config.resolved()))
    assert load_config(again, RunConfig) == config


def test_a_config_with_a_search_survives_a_round_trip(tmp_path: Path) -> None:
    """With all its defaults written out, as a run's own `config.yaml` has them."""
    config = load_config(write(tmp_path, RUN + "tune: {strategy: tpe}\n"), RunConfig)
    assert load_config(write(tmp_path, yaml.safe_dump(config.resolved())), RunConfig) == config


def test_the_shipped_data_config_loads() -> None:
    assert {dataset.key for dataset in load_config(ROOT / "configs" / "data.yaml", DataConfig).datasets} >= {
        "digits_v1",
        "python_docs_v1",
    }
