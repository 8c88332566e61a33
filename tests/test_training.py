"""Training: what is learned depends on the config alone, whatever happens to the process."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD

from nexa_core.config import RunConfig
from nexa_core.errors import GateError, UserError
from nexa_core.holder import hold
from nexa_core.paths import Layout
from nexa_core.progress import Progress
from nexa_core.runs import RunFolder
from nexa_core.trackers import Trackers, read_json_lines
from nexa_data.datasets import open_dataset
from nexa_models import numerics
from nexa_models.checkpoint import Checkpoint, load_checkpoint
from nexa_train import milestones
from nexa_train.feed import StepData
from nexa_train.hooks import Tracking
from nexa_train.loop import State, StepResult, fit
from nexa_train.preemption import Preemption
from nexa_train.saving import Writer
from nexa_train.train import run
from tests.labs import DATASETS, MODELS, make_config, write_config

GOLDEN = Path(__file__).parent / "golden"
WITHOUT_DROPOUT = {"dropout": 0.0}


def files_of(folder: Path) -> dict[str, bytes]:
    """What a run has to reproduce, by name: its weights, scores, predictions and every logged number."""
    names = ["metrics.json", "metrics.jsonl", "predictions.parquet"]
    checkpoints = list((folder / "checkpoints").glob("checkpoint_*.pt"))
    return {path.name: path.read_bytes() for path in [*(folder / name for name in names), *checkpoints]}


def losses_of(folder: RunFolder) -> list[float]:
    return [line["loss"] for line in read_json_lines(folder.step_metrics) if "loss" in line]


# What is learned


@pytest.mark.parametrize("model", MODELS)
def test_the_losses_of_each_model_are_the_golden_ones(lab: Layout, model: str) -> None:
    losses = losses_of(
        run(make_config(model, training={"max_steps": 8, "gradient_accumulation_steps": 1}), layout=lab).run
    )
    golden = GOLDEN / f"{model}.json"
    if os.environ.get("NEXA_WRITE_GOLDEN"):
        golden.write_text(json.dumps(losses) + "\n")
    assert losses == pytest.approx(json.loads(golden.read_text()), rel=1e-4)


@pytest.mark.parametrize("model", ["mlp", "causal_lm"])
def test_cutting_a_batch_into_microbatches_changes_nothing(lab: Layout, model: str) -> None:
    parameters = {**MODELS[model], "parameters": {**MODELS[model]["parameters"], **WITHOUT_DROPOUT}}
    whole, cut = (
        run(
            make_config(
                model, model=parameters, training={"max_steps": 6, "gradient_accumulation_steps": num_microbatches}
            ),
            layout=lab,
        )
        for num_microbatches in (1, 5)
    )
    assert losses_of(cut.run) == pytest.approx(losses_of(whole.run), rel=1e-5)
    one, other = load_checkpoint(whole.checkpoint).model, load_checkpoint(cut.checkpoint).model
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "optimizer", [{"name": "adam", "lr": 0.01}, {"name": "adamw", "lr": 0.01}, {"name": "sgd", "lr": 0.5}]
)
def test_every_optimizer_learns(lab: Layout, optimizer: dict[str, Any]) -> None:
    losses = losses_of(run(make_config("mlp", training={"optimizer": optimizer}), layout=lab).run)
    assert losses[-1] < 0.8 * losses[0]


def test_bfloat16_learns_nearly_the_same(lab: Layout) -> None:
    exact = losses_of(run(make_config("mlp"), layout=lab).run)
    rounded = losses_of(run(make_config("mlp", training={"precision": "bfloat16"}), layout=lab).run)
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.1)


def test_bfloat16_where_there_is_none_is_refused_before_anything_is_made(
    lab: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(numerics, "has_bfloat16", lambda device: False)
    with pytest.raises(
        UserError, match=r"training\.precision is bfloat16 and this cpu has no bfloat16 arithmetic; set"
    ):
        run(make_config("mlp", training={"precision": "bfloat16"}), layout=lab)
    assert not lab.runs.exists()


def test_a_language_model_carries_the_unigram_model_of_its_training_targets(lab: Layout) -> None:
    result = run(make_config("causal_lm", training={"epochs": 12}), layout=lab)
    metrics = result.manifest["metrics"]
    log_probs = load_checkpoint(result.checkpoint).model["unigram_log_probs_V"]
    assert log_probs.exp().sum().item() == pytest.approx(1.0)
    assert metrics["gain_over_unigram"] == pytest.approx(metrics["unigram_loss"] - metrics["loss"])
    assert metrics["gain_over_unigram"] > 0.3


def test_a_dataset_that_is_not_what_its_config_describes_is_not_trained_on(lab: Layout, tmp_path: Path) -> None:
    described = tmp_path / "data.yaml"
    data = {"dataset": "images", "prepare": str(described)}
    described.write_text(json.dumps({"datasets": DATASETS}))
    run(make_config("mlp", data=data, training={"max_steps": 1}), layout=lab)
    images = {**DATASETS[0], "output": {"name": "training", "salt": "other"}}
    described.write_text(json.dumps({"datasets": [images]}))
    with pytest.raises(UserError, match=r'images_v1 is not what .* describes: output.salt was "" and is "other"'):
        run(make_config("mlp", data=data, training={"max_steps": 1}), layout=lab)


def test_prompts_that_leave_no_room_for_an_answer_are_named(lab: Layout) -> None:
    parameters = {**MODELS["causal_lm"]["parameters"], "max_tokens": 4}
    with pytest.raises(UserError, match=r"None of the [0-9]+ (validation )?rows has a target"):
        run(make_config("causal_lm", model={"parameters": parameters}), layout=lab)


def test_a_users_own_model_is_trained(lab: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code = (
        "import math, torch\n"
        "def linear(spec, scale):\n"
        "    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(math.prod(spec.feature_shape), 10))\n"
        "    model.forward = lambda features: scale * torch.nn.Sequential.forward(model, features)\n"
        "    return model\n"
    )
    (tmp_path / "my_models.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    model = {"name": "my_models:linear", "parameters": {"scale": 2.0}}
    losses = losses_of(run(make_config("mlp", model=model), layout=lab).run)
    assert losses[-1] < losses[0]
    with pytest.raises(UserError, match="does not take these parameters"):
        run(make_config("mlp", model={**model, "parameters": {"scales": 2.0}}), layout=lab)


# The same bytes


@pytest.mark.parametrize("model", ["mlp", "text_classifier", "causal_lm"])
def test_the_same_config_gives_the_same_bytes_and_says_so(lab: Layout, model: str) -> None:
    first, second = (run(make_config(model), layout=lab) for _ in range(2))
    assert files_of(first.run.path) == files_of(second.run.path)
    assert first.twin is None
    assert second.twin is not None
    assert f"reproduces run {first.run.run_id} bit for bit" in second.twin


def test_another_seed_gives_other_weights(lab: Layout) -> None:
    first, second = (run(make_config("mlp", training={"distributed": {"seed": seed}}), layout=lab) for seed in (0, 1))
    assert first.checkpoint.read_bytes() != second.checkpoint.read_bytes()
    assert second.twin is None


Event = tuple[Any, str]
STEP: Event = (torch.optim.AdamW, "step")
FSYNC: Event = (os, "fsync")
RENAME: Event = (os, "replace")


def killed(config: RunConfig, lab: Layout, event: Event, count: int, **how: Any) -> bool:
    """Train in a child process that kills itself when it enters `event` for the count-th time; whether it died."""
    owner, name = event
    child = os.fork()
    if child == 0:
        signal.alarm(120)
        original: Callable[..., Any] = getattr(owner, name)
        left = count

        def kill_or_call(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, kill_or_call)
        try:
            run(config, layout=lab, **how)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.stem.removeprefix("checkpoint_step"))


def only_run(lab: Layout) -> Path:
    (folder,) = (lab.runs / "test").glob("*_*")
    return folder


RESUMED = {
    "mlp": {"training": {"checkpoints": {"every_steps": 5}, "gradient_accumulation_steps": 2}},
    "causal_lm": {"training": {"checkpoints": {"every_steps": 2}}, "evaluation": {"generation": {"max_rows": 4}}},
}

POINTS = [
    ("mlp", STEP, 1),  # before the first checkpoint
    ("mlp", STEP, 18),  # inside an epoch
    ("mlp", STEP, 24),  # right after an epoch's checkpoint
    ("mlp", FSYNC, 9),  # while the run's first files are written
    ("mlp", FSYNC, 30),  # inside a write among the checkpoints
    ("mlp", FSYNC, 41),
    ("mlp", RENAME, 14),  # a checkpoint is written but not yet named
    ("mlp", RENAME, 31),
    ("causal_lm", STEP, 6),
    ("causal_lm", RENAME, 13),
]


@pytest.fixture(scope="module")
def uninterrupted(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    files = {}
    for model, sections in RESUMED.items():
        root = tmp_path_factory.mktemp("uninterrupted") / "lab"
        shutil.copytree(prepared, root)
        files[model] = files_of(run(make_config(model, **sections), layout=Layout(root)).run.path)
    return files


@pytest.mark.parametrize(("model", "event", "count"), POINTS)
def test_a_killed_run_resumes_to_the_bytes_of_an_uninterrupted_one(
    lab: Layout, uninterrupted: dict[str, dict[str, bytes]], model: str, event: Event, count: int
) -> None:
    config = make_config(model, **RESUMED[model])
    assert killed(config, lab, event, count)
    result = run(config, layout=lab, resume=True)
    assert files_of(result.run.path) == uninterrupted[model]
    assert not list(result.run.path.rglob("*.partial"))


def test_a_run_killed_again_and_again_still_ends_with_the_same_bytes(
    lab: Layout, uninterrupted: dict[str, dict[str, bytes]]
) -> None:
    config = make_config("mlp", **RESUMED["mlp"])
    for count in (7, 9, 3, 12, 6):
        assert killed(config, lab, STEP, count, resume=True)
    assert files_of(run(config, layout=lab, resume=True).run.path) == uninterrupted["mlp"]
    assert len(list((lab.runs / "test").iterdir())) == 2  # the one run, and the link to its metrics


def test_every_write_of_a_run_can_be_its_last(lab: Layout, uninterrupted: dict[str, dict[str, bytes]]) -> None:
    """Kill at the first rename, then at the second of the next attempt, and so on, until an attempt gets through."""
    config = make_config("mlp", **RESUMED["mlp"])
    num_kills = 0
    while killed(config, lab, RENAME, num_kills + 1, resume=True):
        num_kills += 1
        assert num_kills < 100
    assert num_kills > 10
    finished = [
        path for path in (lab.runs / "test").glob("mlp_*") if (lab.run_manifests / f"{path.name}.json").exists()
    ]
    assert [files_of(path) for path in finished] == [uninterrupted["mlp"]]


@pytest.mark.parametrize("damage", ["torn", "flipped"])
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_taken(
    lab: Layout, uninterrupted: dict[str, dict[str, bytes]], damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config("mlp", **RESUMED["mlp"])
    assert killed(config, lab, STEP, 36)  # that of step 35 waited for that of step 30 to be written
    older, newest = sorted((only_run(lab) / "checkpoints").glob("checkpoint_step*.pt"), key=step_of)[-2:]
    content = bytearray(newest.read_bytes())
    if damage == "torn":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    caplog.set_level("INFO")
    result = run(config, layout=lab, resume=True)
    assert f"{newest.name} is damaged" in caplog.text
    assert "Falling back" in caplog.text
    assert f"continuing at step {step_of(older)}" in caplog.text
    assert files_of(result.run.path) == uninterrupted["mlp"]


def test_any_single_flipped_bit_of_the_weights_is_found(lab: Layout) -> None:
    path = run(make_config("mlp", training={"max_steps": 1}), layout=lab).checkpoint
    weights = load_checkpoint(path).model["layers.0.weight"].numpy().tobytes()
    content = path.read_bytes()
    start = content.index(weights)
    for offset in np.random.default_rng(0).integers(0, len(weights), size=10):
        flipped = bytearray(content)
        flipped[start + offset] ^= 0x10
        path.write_bytes(flipped)
        with pytest.raises(UserError, match="damaged"):
            load_checkpoint(path)


def test_a_new_run_from_a_checkpoint_ends_with_the_same_weights(lab: Layout) -> None:
    config = make_config("mlp", training={"epochs": 3})
    whole = run(config, layout=lab)
    middle = whole.run.checkpoints / "checkpoint_epoch0.pt"
    again = run(config, layout=lab, resume_from=middle)
    assert again.run.run_id != whole.run.run_id
    one, other = load_checkpoint(whole.checkpoint), load_checkpoint(again.checkpoint)
    assert all(torch.equal(one.model[name], other.model[name]) for name in one.model)
    assert again.metrics == whole.metrics
    assert str(middle.relative_to(lab.root)) in json.loads(again.run.lineage.read_text())["parents"]
    with pytest.raises(UserError, match=r"these keys differ: training\.batch_size"):
        run(make_config("mlp", training={"batch_size": 32}), layout=lab, resume_from=middle)


def test_a_run_that_began_at_a_checkpoint_and_was_killed_at_once_resumes_from_there(lab: Layout) -> None:
    config = make_config("mlp", training={"epochs": 3})
    whole = run(config, layout=lab)
    middle = whole.run.checkpoints / "checkpoint_epoch0.pt"
    assert killed(config, lab, STEP, 2, resume_from=middle)
    result = run(config, layout=lab, resume=True)
    assert result.run != whole.run
    assert load_checkpoint(result.checkpoint).model.keys() == load_checkpoint(whole.checkpoint).model.keys()
    assert result.metrics == whole.metrics
    assert read_json_lines(result.run.step_metrics)[0]["step"] == 24
    assert load_checkpoint(result.checkpoint).fingerprint == json.loads(result.run.lineage.read_text())["fingerprint"]


def test_resuming_a_finished_run_only_says_so(lab: Layout, caplog: pytest.LogCaptureFixture) -> None:
    config = make_config("mlp")
    first = run(config, layout=lab, resume=True)
    caplog.set_level("INFO")
    again = run(config, layout=lab, resume=True)
    assert again.run == first.run
    assert "there is nothing to resume" in caplog.text


def test_a_run_whose_data_changed_is_not_continued(lab: Layout) -> None:
    config = make_config("mlp", **RESUMED["mlp"])
    assert killed(config, lab, STEP, 12)
    manifest = lab.dataset_manifests("training") / "images_v1.json"
    changed = json.loads(manifest.read_text()) | {"fingerprint": "0" * 64}
    manifest.write_text(json.dumps(changed))
    with pytest.raises(UserError, match="cannot be continued exactly: dataset changed"):
        run(config, layout=lab, resume=True)


def test_two_processes_never_write_to_one_run(lab: Layout) -> None:
    config = make_config("mlp", **RESUMED["mlp"])
    assert killed(config, lab, STEP, 12)
    with hold(RunFolder(only_run(lab))), pytest.raises(UserError, match="being written by another process"):
        run(config, layout=lab, resume=True)


def test_the_command_line_survives_a_kill_at_any_time(lab: Layout, prepared: Path, tmp_path: Path) -> None:
    """As a user would see it: a real process, killed by the clock, and the same command again."""
    config = write_config(tmp_path / "run.yaml", make_config("mlp", training={"epochs": 30}))
    command = [sys.executable, "-m", "nexa_train.train", "--config", str(config), "--resume"]
    environment = {**os.environ, "NEXA_ROOT": str(lab.root)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if "epoch 7/30" in line:
            break
    process.kill()
    process.communicate()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "continuing at step" in done.stderr
    assert done.stdout.splitlines()[-1].startswith("manifest runs/manifests/mlp_")
    other = tmp_path / "other"
    shutil.copytree(prepared, other)
    subprocess.run(command, env={**environment, "NEXA_ROOT": str(other)}, check=True, capture_output=True)
    assert files_of(only_run(lab)) == files_of(only_run(Layout(other)))


# What a run keeps, and when it ends


def test_tensorboard_events_and_a_text_log_lie_under_logs(lab: Layout) -> None:
    result = run(make_config("mlp", tracking={"tensorboard": True}), layout=lab)
    assert list((lab.logs / result.run.run_id).glob("events.out.tfevents.*"))
    assert "validation loss" in (lab.logs / f"{result.run.run_id}.log").read_text()


def test_save_top_k_keeps_the_best_and_the_newest(lab: Layout) -> None:
    result = run(make_config("mlp", training={"epochs": 6, "checkpoints": {"save_top_k": 1}}), layout=lab)
    kept = {path.name for path in result.run.checkpoints.glob("checkpoint_*.pt")}
    assert {"checkpoint_epoch5.pt", "checkpoint_epoch4.pt", result.checkpoint.name} == kept


def test_the_result_is_the_checkpoint_with_the_lowest_validation_loss(lab: Layout) -> None:
    result = run(make_config("mlp", training={"epochs": 4, "optimizer": {"name": "sgd", "lr": 2.0}}), layout=lab)
    history = load_checkpoint(result.run.checkpoints / "last.pt").history
    best = min(history, key=lambda entry: entry["loss"])
    assert load_checkpoint(result.checkpoint).step == best["step"]
    assert (result.run.checkpoints / "best.pt").resolve() == result.checkpoint.resolve()


def test_early_stopping_ends_a_run_that_no_longer_improves(lab: Layout) -> None:
    stopping = {"patience_epochs": 2, "min_improvement": 100.0}
    result = run(make_config("mlp", training={"epochs": 9, "early_stopping": stopping}), layout=lab)
    assert len(load_checkpoint(result.run.checkpoints / "last.pt").history) == 3


def test_a_loss_that_is_no_number_stops_the_run_and_leaves_no_checkpoint_of_it(lab: Layout) -> None:
    with pytest.raises(GateError, match=r"The loss became (nan|inf) at step \d+"):
        run(make_config("mlp", training={"optimizer": {"name": "sgd", "lr": 1e30}}), layout=lab)
    for path in only_run(lab).glob("checkpoints/checkpoint_*.pt"):
        assert all(math.isfinite(entry["loss"]) for entry in load_checkpoint(path).history)
    assert not list(lab.run_manifests.glob("*.json"))


@pytest.mark.parametrize(("name", "values"), [("loss", (math.nan, 1.0)), ("gradient's norm", (1.0, math.inf))])
def test_a_number_that_is_none_is_seen_before_the_next_checkpoint_in_a_step_that_is_not_logged(
    name: str, values: tuple[float, float]
) -> None:
    tracking = Tracking(Trackers([]), every_steps=50, progress=Progress("training", total=100, unit="steps"))
    state = State(nn.Linear(1, 1), SGD([nn.Parameter(torch.zeros(1))], lr=0.1), step=7)
    loss, gradient_norm = map(torch.tensor, values)
    tracking(state, StepResult(loss, gradient_norm, 0.1, 1, 1, 0, 0.0))
    with pytest.raises(GateError, match=f"The {name} became (nan|inf) at step 7"):
        tracking.settle()


def test_a_run_told_to_end_that_cannot_save_does_not_say_that_it_has(
    lab: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, checkpoint: Checkpoint) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(milestones, "save_checkpoint", fail)
    monkeypatch.setattr(Preemption, "_asked_before", lambda self: 1)
    with pytest.raises(OSError, match="No space left"):
        run(make_config("mlp"), layout=lab)


def test_an_error_is_told_and_so_is_a_checkpoint_that_failed_meanwhile(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(GateError), Writer() as writer:
        writer.begin(fail)
        raise GateError("the loss")
    assert "The last checkpoint could not be written either: [Errno 28] No space left on device" in caplog.text


def test_a_new_runs_checkpoints_replace_the_earlier_ones_under_artifacts(lab: Layout) -> None:
    run(make_config("mlp", training={"epochs": 4}), layout=lab)
    result = run(make_config("mlp", training={"epochs": 2}), layout=lab)
    shown = {path.name: path.resolve() for path in lab.checkpoints.iterdir()}
    assert set(shown) == {"checkpoint_epoch0.pt", "checkpoint_epoch1.pt", "best.pt", "last.pt"}
    assert all(path.parent == result.run.checkpoints.resolve() for path in shown.values())
    assert (lab.runs / "test" / "metrics.json").read_bytes() == result.run.metrics.read_bytes()


def test_a_finished_run_leaves_everything_the_contract_names(lab: Layout) -> None:
    result = run(make_config("mlp"), layout=lab)
    names = {path.name for path in result.run.path.iterdir()}
    expected = {"config.yaml", "metrics.json", "metrics.jsonl", "predictions.parquet", "lineage.json"}
    assert names >= expected | {"environment.json", "cost.json", "checkpoints"}
    lineage = json.loads(result.run.lineage.read_text())
    for path in lineage["outputs"]:
        assert (lab.root / path).exists()
    assert len(lineage["outputs"]) == 4
    assert json.loads(result.run.cost.read_text())["attempts"][0]["num_rows"] == 2 * 1455


@pytest.mark.parametrize("packing", [None, {}])
@pytest.mark.parametrize("dataset", ["pairs", "documents"])
def test_rows_of_the_dataset_are_counted_whatever_they_are_cut_and_packed_into(
    lab: Layout, dataset: str, packing: dict[str, Any] | None
) -> None:
    parameters = {**MODELS["causal_lm"]["parameters"], "max_tokens": 24}  # documents are longer
    config = make_config(
        "causal_lm",
        data={"dataset": dataset},
        model={"parameters": parameters},
        training={"packing": packing, "batch_size": 16},
    )
    cost = json.loads(run(config, layout=lab).run.cost.read_text())
    assert cost["attempts"][0]["num_rows"] == 2 * open_dataset(lab, dataset, "v1").read_split("train").num_rows


def test_predictions_are_left_out_when_not_wanted(lab: Layout) -> None:
    result = run(make_config("mlp", evaluation={"save_predictions": False}), layout=lab)
    assert not result.run.predictions.exists()


@pytest.mark.parametrize(
    ("model", "sections", "why"),
    [
        ("mlp", {"data": {"dataset": "pairs"}}, "reads rows of features; dataset pairs_v1 holds pairs"),
        ("mlp", {"data": {"dataset": "imagse"}}, "Did you mean 'images_v1'"),
        ("mlp", {"model": {"name": "mpl:build"}}, "Cannot load model 'mpl:build'"),
        ("cnn", {"model": {"name": "cnn", "parameters": {"channels": [2, 2, 2, 2]}}}, "too small"),
        ("causal_lm", {"model": {"name": "causal_lm", "parameters": {"hidden_size": 10, "num_heads": 4}}}, "4 heads"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_a_folder_is_made(
    lab: Layout, model: str, sections: dict[str, Any], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        run(make_config(model, **sections), layout=lab)
    assert not list(lab.root.glob("runs/manifests/*"))


def test_a_part_that_was_loaded_for_evaluation_is_trained() -> None:
    """As a quantized base is, below a root that says it is in training."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5)))
    model[1].eval()

    class Nothing:
        def steps(self, start: int) -> Iterator[StepData]:
            yield from ()

    state = State(model, SGD(model.parameters(), lr=0.1))
    unused: Any = None
    fit(
        state,
        Nothing(),  # type: ignore[arg-type]
        unused,
        lr=lambda step: 0.1,
        max_gradient_norm=None,
        autocast=unused,
        should_stop=lambda state: False,
        hooks=[],
        notify=lambda step: None,
    )
    assert all(module.training for module in model.modules())
