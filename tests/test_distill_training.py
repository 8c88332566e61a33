"""A student learns from its teacher: by what loss, on whose texts, and always the same bytes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nexa_core import digests, durable
from nexa_core.config import RunConfig
from nexa_core.config.distillation import Distillation, OnPolicy
from nexa_core.config.documents import Document
from nexa_core.config.load import parse_config
from nexa_core.errors import UserError
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder, list_runs
from nexa_core.trackers import read_json_lines
from nexa_data.datasets import open_dataset
from nexa_models.checkpoint import load_checkpoint
from nexa_models.divergences import Divergence
from nexa_models.encoding import PackedRows, Sequences, encode
from nexa_models.marks import SpecialIds
from nexa_models.table import build_model
from nexa_models.teacher import load_teacher
from nexa_ops.preflight import examine
from nexa_train.distilling import FromTeacher
from nexa_train.objectives import Moment
from nexa_train.own_answers import OwnAnswers
from nexa_train.train import run
from tests.labs import MODELS, make_config, make_lab, write_config

SMALL = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "max_tokens": 32, "dropout": 0.0}
MOMENT = Moment(seed=0, step=0, index=0)


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Path]:
    return teach(tmp_path_factory.mktemp("distill"))


def teach(root: Path) -> tuple[Layout, Path]:
    """A laboratory with a trained teacher."""
    layout = make_lab(root)
    parameters = {**MODELS["causal_lm"]["parameters"], "hidden_size": 32, "dropout": 0.0}
    result = run(make_config("causal_lm", model={"parameters": parameters}, training={"epochs": 3}), layout=layout)
    return layout, layout.absolute(result.manifest["checkpoint"])


def student(teacher: Path | str | None, loss: dict[str, Any], **more: Any) -> RunConfig:
    distillation = {
        "loss": loss,
        **({} if teacher is None else {"teacher": str(teacher)}),
        **more.pop("distillation", {}),
    }
    sections = {"model": {"parameters": SMALL}, "training": {"max_steps": 6}, "distillation": distillation, **more}
    return make_config("causal_lm", **sections)


def losses(folder: RunFolder) -> list[float]:
    return [line["loss"] for line in read_json_lines(folder.step_metrics) if "loss" in line]


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(checkpoint).model


# By what loss.


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl"])
def test_the_student_comes_nearer_to_the_teacher(taught: tuple[Layout, Path], name: str) -> None:
    layout, teacher = taught
    config = student(
        teacher, {"name": name, "weight": 1.0}, training={"max_steps": 12, "optimizer": {"name": "adamw", "lr": 0.03}}
    )
    found = losses(run(config, layout=layout).run)
    assert found[-1] < 0.8 * found[0]


def test_a_student_that_is_its_teacher_has_nothing_to_learn(taught: tuple[Layout, Path]) -> None:
    _, path = taught
    teacher = load_teacher(path, max_tokens=32)
    dataset = open_dataset(taught[0], "pairs", "v1")
    rows = encode(dataset.read_split("val"), teacher.spec)
    batch = rows.batch(np.arange(8))
    for takes_states in (True, False):
        objective = FromTeacher(teacher, Divergence("jsd", temperature=2.0), 1.0, None, takes_states=takes_states)
        same = load_teacher(path, max_tokens=32).model.requires_grad_(True)
        loss = objective(same, batch, MOMENT)[0]
        loss.backward()
        assert abs(loss.item()) < 1e-4
        assert max(weight.grad.abs().max().item() for weight in same.parameters() if weight.grad is not None) < 1e-4


def test_states_and_logits_give_the_same_loss_and_gradients(taught: tuple[Layout, Path]) -> None:
    layout, path = taught
    teacher = load_teacher(path, max_tokens=32)
    rows = encode(open_dataset(layout, "pairs", "v1").read_split("train"), teacher.spec)
    batch = rows.batch(np.arange(16))
    model = load_teacher(path, max_tokens=32).model
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    found = []
    for takes_states in (True, False):
        model.zero_grad()
        model.requires_grad_(True)
        loss = FromTeacher(teacher, Divergence("reverse_kl"), 0.3, None, takes_states=takes_states)(
            model, batch, MOMENT
        )[0]
        loss.backward()
        found.append((loss.detach(), {name: weight.grad.clone() for name, weight in model.named_parameters()}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=1e-5)
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(gradient, found[1][1][name], rtol=1e-4, atol=1e-5)


def test_a_weight_of_nought_is_cross_entropy(taught: tuple[Layout, Path]) -> None:
    layout, teacher = taught
    with_teacher = run(student(teacher, {"name": "forward_kl", "weight": 0.0}), layout=layout)
    alone = run(student(None, {"name": "sequence"}), layout=layout)
    assert losses(with_teacher.run) == pytest.approx(losses(alone.run), rel=1e-5)
    without = run(make_config("causal_lm", model={"parameters": SMALL}, training={"max_steps": 6}), layout=layout)
    assert losses(alone.run) == losses(without.run)


def test_packed_rows_have_the_losses_that_they_have_alone(taught: tuple[Layout, Path]) -> None:
    layout, path = taught
    teacher = load_teacher(path, max_tokens=32)
    rows = encode(open_dataset(layout, "pairs", "v1").read_split("train"), teacher.spec)
    assert isinstance(rows, Sequences)
    packs = PackedRows.of(rows, 32)
    model = build_model(teacher.spec, seed=3)
    objective = FromTeacher(teacher, Divergence("forward_kl", temperature=2.0), 0.5, None, takes_states=True)
    alone, packed = (objective(model, each.batch(np.arange(len(each))), MOMENT).tolist() for each in (rows, packs))
    assert len(packs) < len(rows) / 1.2
    assert packed == pytest.approx(alone, rel=1e-4)


def test_an_output_layer_with_an_adapter_is_learned_through(taught: tuple[Layout, Path]) -> None:
    """The adapter's weights are beside the layer's own, so that they can't be had from those."""
    layout, path = taught
    teacher = load_teacher(path, max_tokens=32)
    batch = encode(open_dataset(layout, "pairs", "v1").read_split("train"), teacher.spec).batch(np.arange(16))
    model = build_model(teacher.spec, seed=3)
    transformer: Any = model.transformer
    transformer.set_output_embeddings(Twice(transformer.get_output_embeddings()))
    found = [
        FromTeacher(teacher, Divergence("jsd"), 0.5, None, takes_states=takes_states)(model, batch, MOMENT).tolist()
        for takes_states in (True, False)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-5)


class Twice(torch.nn.Linear):
    """As an adapter does, it has the layer's weight and gives something else."""

    def __init__(self, layer: torch.nn.Linear):
        super().__init__(layer.in_features, layer.out_features, bias=False)
        self.weight = layer.weight

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(states)


def test_what_is_learned_from_is_told_at_each_step(taught: tuple[Layout, Path]) -> None:
    layout, teacher = taught
    found = run(student(teacher, {"name": "forward_kl", "weight": 0.25}), layout=layout).run
    for line in read_json_lines(found.step_metrics):
        if "loss" in line:
            parts = 0.25 * line["divergence"] + 0.75 * line["cross_entropy"]
            assert line["loss"] == pytest.approx(parts, rel=1e-5)
    own = run(
        student(teacher, {"name": "forward_kl"}, distillation=on_policy(share=1.0)), layout=layout
    ).run  # which has no answers to be compared with
    assert all("cross_entropy" not in line for line in read_json_lines(own.step_metrics))


# Whose teacher.


def test_another_tokenizer_is_refused(taught: tuple[Layout, Path]) -> None:
    layout, teacher = taught
    config = student(teacher, {"name": "forward_kl"}, data={"dataset": "documents"})
    with pytest.raises(UserError, match=r"The teacher's tokenizer is not the student's: .* ids differ, the first"):
        run(config, layout=layout)


def test_a_teacher_that_is_not_there_is_refused(taught: tuple[Layout, Path]) -> None:
    layout, _ = taught
    with pytest.raises(UserError, match="No teacher at"):
        run(student("nowhere", {"name": "forward_kl"}), layout=layout)


def test_the_teacher_is_a_part_of_the_runs_fingerprint(taught: tuple[Layout, Path], tmp_path: Path) -> None:
    layout, teacher = taught
    moved = tmp_path / "moved.pt"
    durable.copy(teacher, moved)
    first = run(student(teacher, {"name": "forward_kl"}), layout=layout)
    again = run(student(teacher, {"name": "forward_kl"}), layout=layout)
    lineage = [json.loads(each.run.lineage.read_text()) for each in (first, again)]
    assert lineage[0]["fingerprint"] == lineage[1]["fingerprint"]
    assert lineage[0]["inputs"]["distillation"]["teacher"] == digests.of_file(moved)
    assert layout.relative(teacher) in lineage[0]["parents"]


# On whose texts.


def on_policy(**settings: Any) -> dict[str, Any]:
    return {"on_policy": {"share": 0.5, "max_new_tokens": 8, **settings}}


def test_the_students_own_answers_are_a_function_of_the_moment(taught: tuple[Layout, Path]) -> None:
    layout, path = taught
    teacher = load_teacher(path, max_tokens=32)
    rows = encode(open_dataset(layout, "pairs", "v1").read_split("train"), teacher.spec)
    assert isinstance(rows, Sequences)
    batch = rows.batch(np.arange(6))
    marks = SpecialIds(0, 1, 2)
    own = OwnAnswers(OnPolicy(share=1.0, max_new_tokens=5), marks, 32)
    one, other, third = (own.write(teacher.model, batch, Moment(0, step, 0)) for step in (3, 3, 4))
    assert torch.equal(one.batch.inputs["ids"], other.batch.inputs["ids"])
    assert not torch.equal(one.batch.targets, third.batch.targets)
    assert one.weights.sum().item() == pytest.approx(len(batch.targets), rel=1e-5)
    each = OwnAnswers(OnPolicy(share=1.0, max_new_tokens=5, normalise="answers"), marks, 32).write(
        teacher.model, batch, Moment(0, 3, 0)
    )
    lengths = torch.diff(
        torch.cat([(each.batch.inputs["at"].diff() > 1).nonzero()[:, 0] + 1, torch.tensor([len(each.weights)])]),
        prepend=torch.tensor([0]),
    )
    sums = [part.sum().item() for part in each.weights.split(lengths.tolist())]
    assert sums == pytest.approx([len(batch.targets) / 6] * 6, rel=1e-4)
    drawn = [OwnAnswers(OnPolicy(share=0.3), marks, 32).is_drawn(Moment(0, step, 0)) for step in range(400)]
    assert 80 < sum(drawn) < 160


def test_a_resumed_run_writes_the_same_answers(taught: tuple[Layout, Path]) -> None:
    layout, teacher = taught
    more = {"distillation": on_policy(), "training": {"max_steps": 6}}
    whole = run(student(teacher, {"name": "jsd"}, **more), layout=layout)
    step = whole.run.checkpoints / "checkpoint_epoch0.pt"
    resumed = run(student(teacher, {"name": "jsd"}, **more), layout=layout, resume_from=step)
    assert load_checkpoint(step).step < 6
    one, other = (
        weights(layout.absolute(whole.manifest["checkpoint"])),
        weights(layout.absolute(resumed.manifest["checkpoint"])),
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_more_processes_give_the_same_bytes(taught: tuple[Layout, Path], size: int) -> None:
    layout, teacher = taught
    more: dict[str, Any] = {"distillation": on_policy(), "training": {"max_steps": 3}}
    alone = run(student(teacher, {"name": "jsd"}, **more), layout=layout)
    more["training"]["distributed"] = {"world_size": size}
    shared = run(student(teacher, {"name": "jsd"}, **more), layout=layout)
    checkpoints = [layout.absolute(each.manifest["checkpoint"]).read_bytes() for each in (alone, shared)]
    assert checkpoints[0] == checkpoints[1]


def test_the_command_goes_on_after_a_kill_as_if_there_had_been_none(
    taught: tuple[Layout, Path], tmp_path: Path
) -> None:
    layout, teacher = taught
    training = {"epochs": 6, "checkpoints": {"every_steps": 2}}
    config = student(teacher, {"name": "skew_kl"}, distillation=on_policy(), training=training)
    path = write_config(tmp_path / "student.yaml", config.model_copy(update={"experiment": "killed"}))
    command = [sys.executable, "-m", "nexa_train.distill", "--config", str(path), "--resume"]
    environment = {**os.environ, "NEXA_ROOT": str(layout.root)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 2/6" in line:
            break
    process.kill()
    process.communicate()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "continuing at step" in done.stderr
    (killed,) = list_runs(layout, experiment="killed")
    whole = run(config, layout=layout)
    one, other = (weights(each.checkpoints / "checkpoint_epoch5.pt") for each in (killed, whole.run))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert read_json_lines(killed.step_metrics) == read_json_lines(whole.run.step_metrics)


def test_in_bfloat16_the_student_learns_much_the_same(taught: tuple[Layout, Path]) -> None:
    layout, teacher = taught
    more = {"distillation": on_policy(share=0.01), "training": {"max_steps": 6}}
    found = []
    for precision in ("float32", "bfloat16"):
        more["training"] = {"max_steps": 6, "precision": precision}
        found.append(losses(run(student(teacher, {"name": "jsd"}, **more), layout=layout).run))
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], rel=0.02)


# Settings.


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": {"name": "sequence"}, "teacher": "x"},
        {"loss": {"name": "forward_kl"}},
        {"loss": {"name": "forward_kl"}, "teacher": "x", "stored": "y"},
        {"loss": {"name": "forward_kl", "temperature": 2.0}, "stored": "y"},
        {"loss": {"name": "forward_kl"}, "stored": "y", "on_policy": {}},
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any]) -> None:
    assert list(Distillation.model_validate_json(json.dumps(settings)).conflicts())


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"distillation": {"loss": {"name": "forward_kl", "beta": 0.5}, "teacher": "x"}}, "beta"),
        (
            {"distillation": {"loss": {"name": "sequence"}}, "model": MODELS["mlp"], "data": {"dataset": "images"}},
            "no teacher here",
        ),
        ({"data": {"dataset": "x", "category": "distillation", "prepare": "y"}}, "filter-pairs"),
    ],
)
def test_configs_that_cannot_be_are_refused(section: dict[str, Any], said: str) -> None:
    value = {"name": "x", "experiment": "x", "data": {"dataset": "pairs"}, "model": MODELS["causal_lm"], **section}
    with pytest.raises(UserError, match=said):
        parse_config(Document(json.loads(json.dumps(value)), {}, "test"), RunConfig)


# What it takes.


def test_preflight_counts_the_teacher(taught: tuple[Layout, Path]) -> None:
    layout, path = taught
    with_teacher = student(path, {"name": "forward_kl"}, distillation={"on_policy": {"max_new_tokens": 4}})
    here = examine(with_teacher, layout).forecast
    assert here is not None
    model = load_teacher(path, max_tokens=32).model
    assert here.memory.teacher == sum(each.nbytes for each in (*model.parameters(), *model.buffers()))
    assert "teacher" in here.memory.as_text()
    assert here.pace is not None
    both = [
        examine(config, layout, gpu="H100", gpus_per_node=1).forecast
        for config in (with_teacher, student(None, {"name": "sequence"}))
    ]
    taken = [each.memory.gpu for each in both if each is not None and each.memory.gpu is not None]
    paces = [each.pace.seconds_per_step for each in both if each is not None and each.pace is not None]
    assert taken[0] >= taken[1] + 0.9 * here.memory.teacher
    assert paces[0] > paces[1]


def test_preflight_says_that_a_teacher_is_not_there(taught: tuple[Layout, Path]) -> None:
    with pytest.raises(UserError, match="No teacher at"):
        examine(student("nowhere", {"name": "forward_kl"}), taught[0])
