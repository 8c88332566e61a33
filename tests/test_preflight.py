"""Preflight: what it says of a run is what the run turns out to be."""

import json
import os
import random
import shutil
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nexa_core.config import DataConfig, RunConfig
from nexa_core.config.run import Cost
from nexa_core.errors import GateError, UserError
from nexa_core.paths import Layout
from nexa_data.datasets import open_dataset
from nexa_data.prepare import prepare
from nexa_models.checkpoint import load_checkpoint
from nexa_models.spec import describe_model
from nexa_models.vocabulary import encode_plain
from nexa_ops import preflight
from nexa_ops.forecast.batches import measure_fill
from nexa_ops.forecast.heap import Heap
from nexa_ops.forecast.memory import Process
from nexa_ops.preflight import Forecast, examine
from nexa_train.job import arrange, encode_split, make_plan
from nexa_train.train import run
from tests.conftest import FinishedLab
from tests.labs import MODELS, make_config, make_lab, write_config

MIB = 2**20


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """For reading only."""
    return make_lab(tmp_path_factory.mktemp("prepared") / "lab")


@pytest.fixture(scope="module")
def words_lab(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """With long rows of many words beside the small datasets."""
    layout = make_lab(tmp_path_factory.mktemp("words") / "lab")
    draw = random.Random(0)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(4, 8))) for _ in range(3000)]
    with (layout.raw / "words.jsonl").open("w") as file:
        for index in range(600):
            completion = " ".join(draw.choices(words, k=draw.randint(10, 120)))
            print(json.dumps({"prompt": f"{index}:", "completion": completion}), file=file)
    dataset = {
        "name": "words",
        "source": {"name": "files", "path": "data/raw/words.jsonl"},
        "rows": {"name": "pairs", "prompt": "prompt", "completion": "completion"},
        "output": {"name": "training"},
        "tokenizer": {"vocab_size": 8192},
    }
    prepare(DataConfig.model_validate_json(json.dumps({"datasets": [dataset]})), layout)
    return layout


@pytest.fixture
def young_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the tests has had models of its own, and its peak is theirs."""
    monkeypatch.setattr(preflight, "read_process", lambda: Process(now=2**28, peak=2**28))


def forecast(lab: Layout, config: RunConfig, **where: Any) -> Forecast:
    found = examine(config, lab, **where).forecast
    assert found is not None
    return found


# What a run would be


@pytest.mark.parametrize(
    ("model", "training"),
    [
        ("mlp", {"checkpoints": {"save_top_k": 1}, "epochs": 5}),
        ("text_classifier", {"optimizer": {"name": "sgd"}, "epochs": 2}),
        ("causal_lm", {"packing": {}, "batch_size": 8, "checkpoints": {"every_steps": 2}, "max_steps": 9}),
    ],
)
def test_the_run_is_what_was_said_of_it(finished_lab: FinishedLab, model: str, training: dict[str, Any]) -> None:
    config = make_config(model, training=training)
    said = forecast(finished_lab.layout, config)
    result = run(config, layout=finished_lab.layout)
    checkpoint = load_checkpoint(result.checkpoint)
    files = list((result.run.path / "checkpoints").glob("checkpoint_*.pt"))
    lines = [json.loads(line) for line in result.run.step_metrics.read_text().splitlines()]
    assert said.steps.total == sum("loss" in line for line in lines)
    assert said.checkpoints.kept >= len(files) >= said.checkpoints.kept - 1
    assert said.checkpoints.size_bytes == pytest.approx(result.checkpoint.stat().st_size, rel=0.2, abs=20_000)
    assert said.parameters.total == sum(
        tensor.numel() for name, tensor in checkpoint.model.items() if "unigram" not in name and "lm_head" not in name
    )


def test_nothing_is_written(pristine_lab: FinishedLab) -> None:
    before = pristine_lab.files()
    examine(make_config("causal_lm"), pristine_lab.layout).require_pass()
    assert pristine_lab.files() == before


def test_what_is_cut_off_is_counted_in_rows_and_tokens(lab: Layout) -> None:
    max_tokens = 12
    model = {**MODELS["causal_lm"], "parameters": {**MODELS["causal_lm"]["parameters"], "max_tokens": max_tokens}}
    config = make_config("causal_lm", model=model)
    dataset = open_dataset(lab, "pairs", "v1")
    table, spec = dataset.read_split("train"), describe_model(config.model, dataset)
    prompts, completions = (encode_plain(table[name].to_pylist(), spec) for name in ("prompt", "completion"))
    lengths = [2 + len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    (train, *_) = forecast(lab, config).rows
    assert 0 < train.num_cut < train.num_rows
    assert train.num_cut == sum(length > max_tokens for length in lengths)
    assert train.num_tokens_lost == sum(max(0, length - max_tokens) for length in lengths)
    assert train.num_silent == sum(len(prompt) + 1 >= max_tokens for prompt in prompts)
    assert train.longest_row == max_tokens - 1  # the last token is only predicted


def test_packs_leave_less_padding(words_lab: Layout) -> None:
    dataset = open_dataset(words_lab, "words", "v1")
    model = {"name": "causal_lm", "parameters": {"hidden_size": 16, "num_layers": 1, "num_heads": 2}}
    shares = []
    for packing in (None, {}):
        config = make_config("causal_lm", data={"dataset": "words"}, model=model, training={"packing": packing})
        spec = describe_model(config.model, dataset)
        data = arrange(encode_split(dataset, "train", spec), spec, config.training, num_rows=16)
        plan = make_plan(config, data, encode_split(dataset, "val", spec), 4)
        shares.append(measure_fill(data, plan).padding_share)
    assert shares[1] < shares[0] / 2


# What is learned


def test_the_mask_of_a_pair_is_its_completion(lab: Layout) -> None:
    rows = open_dataset(lab, "pairs", "v1").read_split("train").to_pylist()
    masks = forecast(lab, make_config("causal_lm")).masks
    assert len(masks) == 3
    for mask in masks:
        asked, answered = mask.pieces
        row = rows[mask.row]
        assert (asked.learned, answered.learned) == (False, True)
        assert asked.text == f"<|bos|>{row['prompt']}"
        assert answered.text == f"{row['completion']}<|eos|>"
    assert f"[[{answered.text}]]" in mask.as_text(colour=False)


def test_the_mask_of_a_conversation_is_what_the_assistant_says(lab: Layout) -> None:
    config = make_config("causal_lm", data={"dataset": "chats"}, training={"packing": {"max_tokens": 64}})
    rows = open_dataset(lab, "chats", "v1").read_split("train").to_pylist()
    for mask in forecast(lab, config).masks:
        says = [message["content"] for message in rows[mask.row]["messages"] if message["role"] == "assistant"]
        whole = "".join(piece.text for piece in mask.pieces)
        learned = [piece.text for piece in mask.pieces if piece.learned]
        assert [f"{text}<|eos|>" for text in says][: len(learned) - 1] == learned[:-1]
        assert f"{says[len(learned) - 1]}<|eos|>".startswith(learned[-1])  # max_tokens may cut the last one
        assert whole.startswith("<|bos|>user")


# What it takes


def test_weights_gradients_and_optimizer_are_counted_to_the_byte(lab: Layout) -> None:
    num_weights = 64 * 16 + 16 + 16 * 10 + 10
    for optimizer, copies in (("adamw", 2), ("sgd", 1)):
        memory = forecast(lab, make_config("mlp", training={"optimizer": {"name": optimizer}})).memory
        assert memory.weights == memory.gradients == 4 * num_weights
        steps = 4 * 4 if optimizer == "adamw" else 0  # Adam counts the steps of each tensor
        assert memory.optimizer == copies * memory.weights + steps


def test_checkpointing_activations_takes_less_and_a_wide_vocabulary_more(lab: Layout) -> None:
    def step(**training: Any) -> int:
        return forecast(lab, make_config("gpt2", training={"gradient_accumulation_steps": 1, **training})).memory.step

    usual = step()
    assert step(activation_checkpointing=True) < 0.8 * usual
    assert step(batch_size=128) > 1.5 * usual
    assert step(gradient_accumulation_steps=4) < 0.6 * usual


def test_a_gpu_that_is_not_here_is_spoken_of(lab: Layout) -> None:
    config = make_config("causal_lm").model_copy(update={"cost": Cost(usd_per_hour=20.0)})
    found = examine(config, lab, num_nodes=2, gpus_per_node=4, gpu="H100", memory_gib=80)
    said = found.forecast
    assert said is not None
    assert said.memory.gpu is not None
    assert said.memory.gpu < said.memory.host
    assert said.pace is not None
    assert "assuming 35% of the 67 TFLOP/s of 8 x H100" in said.pace.basis
    assert said.cost_usd == pytest.approx(said.pace.seconds / 3600 * 20.0 * 2)
    assert [check.says for check in found.checks if check.name == "host memory" and "--host-memory" in check.says]
    found.require_pass()


def test_shards_take_less_of_each_gpu(lab: Layout) -> None:
    whole, shared = (
        forecast(lab, make_config("gpt2", training={"distributed": {"strategy": strategy}}), gpus_per_node=4).memory
        for strategy in ("ddp", "fsdp")
    )
    assert shared.weights == whole.weights // 4
    assert shared.optimizer == whole.optimizer // 4
    assert shared.gpu is not None
    assert whole.gpu is not None
    assert shared.gpu < whole.gpu


@pytest.mark.usefixtures("young_process")
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_machine_of_eight_gpus_builds_the_model_eight_times(lab: Layout, strategy: str) -> None:
    """And copies of what is saved one whole with ddp, and eight parts of it with fsdp."""
    parameters = {"architecture": "gpt2", "hidden_size": 256, "num_layers": 8, "num_heads": 2, "max_tokens": 32}
    config = make_config("gpt2", model={"parameters": parameters}, training={"distributed": {"strategy": strategy}})
    enough = examine(config, lab, gpus_per_node=8, gpu="H100", memory_gib=80, host_memory_gib=1024)
    said = enough.forecast
    assert said is not None
    assert not enough.problems
    memory, num_shares = said.memory, 8 if strategy == "fsdp" else 1
    assert memory.checkpoint == pytest.approx(said.checkpoints.size_bytes / num_shares, rel=0.01)
    assert memory.node - 8 * memory.process == pytest.approx(8 * 4 * said.parameters.total, rel=0.05)
    host_memory_gib = 0.9 * memory.node / 2**30
    little = examine(config, lab, gpus_per_node=8, gpu="H100", memory_gib=80, host_memory_gib=host_memory_gib)
    assert [problem.name for problem in little.problems] == ["host memory"]
    assert "needed by 8 processes while" in little.problems[0].says


@pytest.mark.usefixtures("young_process")
def test_the_end_of_a_sharded_run_needs_the_whole_checkpoint_and_model_beside_the_shards(lab: Layout) -> None:
    """12 bytes a weight in the pinned copies and 4 in shards, over both processes; 16 more in the one that reads."""
    parameters = {"architecture": "gpt2", "hidden_size": 512, "num_layers": 2, "num_heads": 2, "max_tokens": 32}
    config = make_config("gpt2", model={"parameters": parameters}, training={"distributed": {"strategy": "fsdp"}})
    said = forecast(lab, config, gpus_per_node=2, gpu="H100")
    assert said.memory.node_when == "reading the result back"
    assert said.memory.node - 2 * said.memory.process == pytest.approx(32 * said.parameters.total, rel=0.02)
    assert said.memory.gpu_when == "training"


def test_freed_memory_is_kept_and_taken_again_where_it_fits() -> None:
    heap = Heap()
    first, second = heap.allocate(MIB), heap.allocate(MIB)
    heap.allocate(MIB)
    kept = heap.resident
    heap.free(*first)
    heap.free(*second)
    heap.allocate(2 * MIB)  # both, side by side
    assert heap.resident == kept
    heap.allocate(MIB)
    assert heap.resident > kept


def test_a_tensor_does_not_fit_where_an_equal_one_lay_once_something_small_lies_beside_it() -> None:
    heap = Heap()
    first = heap.allocate_aligned(MIB)
    heap.allocate_aligned(MIB)
    kept = heap.resident
    heap.free(*first)
    again = heap.allocate_aligned(MIB)
    assert heap.resident == kept
    heap.allocate(24)
    heap.free(*again)
    heap.allocate_aligned(MIB)
    assert heap.resident > kept + MIB // 2


def test_large_pieces_are_given_back() -> None:
    heap = Heap()
    heap.free(*heap.allocate(64 * MIB))
    assert heap.resident == 0


LARGE_MODELS: dict[str, dict[str, Any]] = {
    "many weights": {
        "model": {"name": "mlp", "parameters": {"hidden_sizes": [2048, 2048, 2048]}},
        "data": {"dataset": "images"},
        "training": {"batch_size": 64},
    },
    "packs": {
        "model": {"name": "causal_lm", "parameters": {"hidden_size": 192, "num_layers": 4, "max_tokens": 128}},
        "training": {"batch_size": 32, "packing": {}},
    },
    "wide vocabulary": {
        "model": {"name": "causal_lm", "parameters": {"hidden_size": 96, "num_layers": 2, "max_tokens": 128}},
        "training": {"batch_size": 64, "gradient_accumulation_steps": 1},
    },
    "activations computed again": {
        "model": {
            "name": "causal_lm",
            "parameters": {
                "architecture": "gpt2",
                "hidden_size": 320,
                "num_layers": 6,
                "max_tokens": 128,
                "dropout": 0.1,
            },
        },
        "training": {
            "batch_size": 64,
            "gradient_accumulation_steps": 1,
            "activation_checkpointing": True,
            "checkpoints": {"every_steps": 1},
        },
    },
}

TRAIN = """
import sys
from pathlib import Path
from nexa_core.config import RunConfig, load_config
from nexa_core.paths import Layout
from nexa_train.job import arrange, encode_split, make_plan
from nexa_train.train import run
run(load_config(Path(sys.argv[1]), RunConfig), layout=Layout.from_environment())
print(dict(line.split(":", 1) for line in open("/proc/self/status"))["VmHWM"].split()[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for a process's peak")
@pytest.mark.parametrize("name", LARGE_MODELS)
def test_the_most_memory_is_within_a_fifth_of_what_the_run_takes(words_lab: Layout, tmp_path: Path, name: str) -> None:
    """Of the whole process, and of what it takes beyond its libraries and rows, in fresh processes of their own."""
    changes = LARGE_MODELS[name]
    training = {"max_steps": 3, "keep": "last", **changes["training"]}
    config = make_config(
        "mlp", **{"data": {"dataset": "words"}, **changes, "training": training, "evaluation": {"batch_size": 32}}
    )
    path = write_config(tmp_path / "run.yaml", config)
    said = json.loads(command(words_lab, "-m", "scripts.cli", "preflight", "--config", path, "--json").stdout)
    measured = int(command(words_lab, "-c", TRAIN, path).stdout) * 1024
    memory = said["memory_bytes"]
    assert measured > memory["process"] + 200 * MIB  # the model matters
    assert memory["host"] == pytest.approx(measured, rel=0.2)
    assert memory["host"] - memory["process"] == pytest.approx(measured - memory["process"], rel=0.3)


# What cannot work


def test_a_run_that_needs_more_memory_than_there_is_does_not_pass(lab: Layout, tmp_path: Path) -> None:
    path = write_config(tmp_path / "run.yaml", make_config("mlp"))
    done = command(lab, "-m", "scripts.cli", "preflight", "--config", path, "--memory", "0.1", "--json", code=3)
    said = json.loads(done.stdout)
    assert not said["works"]
    (problem,) = said["problems"]
    assert problem["name"] == "memory"
    assert "of 102 MiB" in problem["says"]
    assert "training.activation_checkpointing" in problem["do"]
    assert "digits cannot run" not in done.stderr
    assert "mlp cannot run: memory" in done.stderr


def test_a_damaged_split_is_named_and_nothing_else_is_looked_at(finished_lab: FinishedLab) -> None:
    path = open_dataset(finished_lab.layout, "pairs", "v1").split_path("train")
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = examine(make_config("causal_lm"), finished_lab.layout)
    assert found.forecast is None
    (problem,) = found.problems
    assert "data/processed/training/train/pairs_v1.parquet has other bytes" in problem.says
    assert "--replace" in problem.do
    with pytest.raises(GateError, match="causal_lm cannot run: dataset"):
        found.require_pass()


def test_a_disk_too_small_for_the_checkpoints_is_a_problem(lab: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(lab.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**29))
    (problem,) = examine(make_config("mlp"), lab).problems
    assert problem.name == "disk"
    assert "training.checkpoints.save_top_k" in problem.do


@pytest.mark.parametrize(
    ("where", "match"),
    [
        ({"gpu": "H10"}, "Unknown GPU 'H10'. Did you mean 'H100'"),
        ({"num_nodes": 3}, "world_size is 4, which 3 nodes cannot share out evenly"),
        ({"host_memory_gib": 64}, "--host-memory is for machines with GPUs; .* --memory"),
        ({"gpus_per_node": 8}, "--nodes 1 x 8 processes are 8 processes, and training.distributed.world_size is 4"),
    ],
)
def test_a_place_that_does_not_fit_the_config_is_refused(lab: Layout, where: dict[str, Any], match: str) -> None:
    config = make_config("mlp", training={"distributed": {"world_size": 4}})
    with pytest.raises(UserError, match=match):
        examine(config, lab, **where)


def test_a_model_that_looks_at_values_is_refused_with_another_way(
    lab: Layout, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "peeking.py").write_text(
        "import torch\n"
        "def build(spec):\n"
        "    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        "    plain = model.forward\n"
        "    model.forward = lambda features: plain(features) if float(features.sum()) else plain(features)\n"
        "    return model\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"'peeking:build' looks at the values .* training.max_steps=3"):
        examine(make_config("mlp", model={"name": "peeking:build", "parameters": {}}), lab)


def command(layout: Layout, *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "NEXA_ROOT": str(layout.root)}
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done
