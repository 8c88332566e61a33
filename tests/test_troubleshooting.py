"""Every heading of docs/troubleshooting.md is printed by the software, word for word: here each is provoked."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from aiohttp import web
from torch.distributed import HashStore

from nexa_core import durable
from nexa_core.config.run import Data
from nexa_core.holder import NOTE_BYTES, hold, read_holder
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder
from nexa_data.workers import in_order
from nexa_llm.store import Store, store_path
from nexa_train.distributed.health import Check, share_health
from nexa_train.distributed.node_checks import check_node
from nexa_train.distributed.store import open_store
from nexa_train.distributed.world import World
from nexa_train.job import ensure_dataset
from tests.conftest import FinishedLab, read_package
from tests.folders import llama
from tests.labs import make_config, write_config
from tests.ranks import Ranks, free_port
from tests.scenes import Scene, logged, refused, told_while_training
from tests.studies import write_study
from tests.teacher_answers import filtered, row, write_outputs
from tests.test_collect import answering, write_inputs
from tests.test_collect import settings as collect_settings
from tests.test_heartbeat import train as train_ranks
from tests.test_judge import HARD, write_rubric
from tests.test_token_shards import config_of as sequences_config
from tests.test_token_shards import make as make_sequences
from tests.test_token_shards import write_documents
from tests.test_verify import write_package

ROOT = Path(__file__).parent.parent
HEADINGS = re.findall(r"^### `(.+)`$", (ROOT / "docs" / "troubleshooting.md").read_text(), re.MULTILINE)
PROVOKE: dict[str, Callable[[Scene], str]] = {}


def prints(heading: str) -> Callable[[Callable[[Scene], str]], Callable[[Scene], str]]:
    """Enters a function in the table: what it returns has been printed, and the heading is to be in it."""

    def enter(provoke: Callable[[Scene], str]) -> Callable[[Scene], str]:
        assert heading not in PROVOKE
        PROVOKE[heading] = provoke
        return provoke

    return enter


def test_every_entry_of_the_page_is_provoked_here_and_no_other() -> None:
    assert list(PROVOKE) == HEADINGS


@pytest.mark.parametrize("heading", HEADINGS)
def test_the_message_is_printed(
    heading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    said = PROVOKE[heading](Scene(tmp_path, monkeypatch, request.getfixturevalue))
    assert heading in said


# Preparing data.


def write_data_config(scene: Scene, rows: list[Any], **settings: Any) -> Path:
    """A dataset of these lines."""
    (scene.root / "rows.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in rows))
    source = {"name": "files", "path": "rows.jsonl"}
    texts = {"name": "text", "text": "text", "label": "label"}
    dataset = {"name": "texts", "source": source, "rows": texts, "output": {"name": "training"}, **settings}
    path = scene.root / "data.yaml"
    path.write_text(yaml.safe_dump({"datasets": [dataset]}))
    return path


ROWS = [{"text": f"text number {number}", "label": "ab"[number % 2]} for number in range(100)]


@prints("Unknown key")
def a_typing_error(scene: Scene) -> str:
    config = write_config(scene.root / "run.yaml", make_config("mlp"))
    return scene.nexa("train", "--config", config, "--override", "training.epoch=3")


@prints("No file or folder")
def a_source_elsewhere(scene: Scene) -> str:
    config = write_data_config(scene, ROWS, source={"name": "files", "path": "data/raw/rows.jsonl"})
    return scene.nexa("prepare", "--config", config)


@prints("max_bad_fraction allows")
def dirty_rows(scene: Scene) -> str:
    return scene.nexa("prepare", "--config", write_data_config(scene, [*ROWS, *[{"text": ""}] * 9]), exits=3)


@prints("was prepared from something else")
def another_content_under_a_version(scene: Scene) -> str:
    scene.nexa("prepare", "--config", write_data_config(scene, ROWS), exits=0)
    return scene.nexa("prepare", "--config", write_data_config(scene, ROWS[1:]))


@prints("is not there yet: preparing it from")
def the_first_run(scene: Scene) -> str:
    config = write_data_config(scene, ROWS)
    data = Data(dataset="texts", prepare=str(config))
    scene.monkeypatch.chdir(scene.root)
    return logged(lambda: ensure_dataset(Layout(scene.root), data))


@prints("Datasets are made by")
def another_folder(scene: Scene) -> str:
    return scene.nexa("train", "--config", write_config(scene.root / "run.yaml", make_config("mlp")))


@prints("A process was killed, most often because the memory was full")
def full_memory(scene: Scene) -> str:
    return refused(lambda: list(in_order(os._exit, [9], 2)))


# Training.


@prints("no GPU is visible to torch")
def a_gpu_that_is_none(scene: Scene) -> str:
    config = write_config(scene.lab.root / "run.yaml", make_config("mlp", training={"device": "cuda"}))
    done = subprocess.run(
        [sys.executable, "-m", "scripts.cli", "train", "--config", str(config)],
        env={**os.environ, "NEXA_ROOT": str(scene.lab.root), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    return done.stderr


def trained(scene: Scene, *overrides: str, model: str = "mlp", exits: int = 2, **sections: dict[str, Any]) -> str:
    """What `nexa train` prints."""
    config = write_config(scene.root / "run.yaml", make_config(model, **sections))
    return scene.nexa("train", "--config", config, *overrides, root=scene.lab.root, exits=exits)


@prints("were made with another tokenizer than the model's")
def sequences_for_another_model(scene: Scene) -> str:
    write_documents(scene.root)
    make_sequences(scene.root)
    llama(scene.root / "llama")
    model = {"name": "causal_lm", "path": str(scene.root / "llama"), "parameters": {"max_tokens": 64}}
    return scene.nexa("train", "--config", write_config(scene.root / "run.yaml", sequences_config(model=model)))


@prints("does not fit into packs of")
def small_packs(scene: Scene) -> str:
    return trained(scene, model="causal_lm", training={"packing": {"max_tokens": 8}})


@prints("The loss became")
def too_high_a_learning_rate(scene: Scene) -> str:
    return trained(scene, exits=3, training={"optimizer": {"name": "sgd", "lr": 1e30}})


SAVING: dict[str, Any] = {"training": {"epochs": 3, "checkpoints": {"every_steps": 5}}}


def stop_a_run(scene: Scene, *signals: signal.Signals) -> str:
    return told_while_training(scene.lab, make_config("mlp", **SAVING), *signals)


def stopped_run(scene: Scene) -> RunFolder:
    """A run of the config `SAVING` that was told to end after its first epoch."""
    stop_a_run(scene, signal.SIGTERM)
    (folder,) = (scene.lab.runs / "test").iterdir()
    return RunFolder(folder)


@prints("is finished and saved; the same command with --resume continues there")
def a_machine_that_is_taken_away(scene: Scene) -> str:
    said = stop_a_run(scene, signal.SIGTERM)
    assert said.splitlines()[-1].startswith("error: told to end: step ")
    return said


@prints("Ctrl-C again stops at once")
def ctrl_c(scene: Scene) -> str:
    said = stop_a_run(scene, signal.SIGINT)
    assert said.splitlines()[-1].startswith("error: interrupted: step ")
    return said


@prints("stopped at once")
def ctrl_c_twice(scene: Scene) -> str:
    return stop_a_run(scene, signal.SIGINT, signal.SIGINT)


@prints("is being written by another process")
def two_that_resume(scene: Scene) -> str:
    with hold(stopped_run(scene)):
        return trained(scene, "--resume", **SAVING)


@prints("Falling back to the checkpoint before it")
def a_flipped_bit(scene: Scene) -> str:
    newest = max(stopped_run(scene).checkpoints.glob("checkpoint_*.pt"), key=lambda path: path.stat().st_mtime_ns)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    return trained(scene, "--resume", exits=0, **SAVING)


@prints("cannot be continued exactly")
def data_made_anew(scene: Scene) -> str:
    stopped_run(scene)
    manifest = scene.lab.dataset_manifests("training") / "images_v1.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "fingerprint": "0" * 64}))
    return trained(scene, "--resume", **SAVING)


@prints("there is nothing to resume")
def a_run_that_is_done(scene: Scene) -> str:
    config = scene.finished.config("mlp")
    return scene.nexa("train", "--config", config, "--resume", root=scene.finished.root, exits=0)


@prints("DIVERGES from run")
def other_bytes(scene: Scene) -> str:
    """The run before is made to have ended with other weights."""
    lineage = scene.finished.run("mlp").lineage
    recorded = json.loads(lineage.read_text())
    outputs = {path: "0" * 64 if path.endswith(".pt") else digest for path, digest in recorded["outputs"].items()}
    lineage.write_text(json.dumps({**recorded, "outputs": outputs}))
    return scene.nexa("train", "--config", scene.finished.config("mlp"), root=scene.finished.root, exits=0)


@prints("No space left on device")
def a_full_disk(scene: Scene) -> str:
    """The system's own device without room."""
    full = open("/dev/full", "w", buffering=1)  # noqa: SIM115 -- closing it fails as well
    said = scene.nexa("runs", root=scene.finished.root, stdout=full, exits=1)
    with suppress(OSError):
        full.close()
    return said


# Several processes.


def meet(*checks: Check) -> str:
    """What rank 0 of two says that has these checks, where rank 1 reports none or has none to report."""
    store, said = HashStore(), []

    def take_part(rank: int) -> None:
        world = World(rank, 2, 0, 1, node=rank, num_nodes=2)
        mine = checks if rank else ()
        share = share_health(store, world, {}, mine, timeout_seconds=1.0)
        said.append(refused(share.require_pass))

    with ThreadPoolExecutor(2) as ranks:
        list(ranks.map(take_part, range(2 if checks else 1)))
    return said[0]


@prints("leaves some of")
def more_processes_than_rows(scene: Scene) -> str:
    few = ["--override", "training.batch_size=2", "--override", "training.distributed.world_size=4"]
    return scene.nexa("preflight", "--config", scene.finished.config("mlp"), *few, root=scene.finished.root)


@prints("cannot reach the store at")
def no_rank_0(scene: Scene) -> str:
    world = World(rank=1, size=2, local_rank=0, local_size=1, node=1, num_nodes=2)
    endpoint = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return refused(lambda: open_store(world, endpoint, timeout_seconds=0.5))


@prints("cannot train together")
def an_unfit_node(scene: Scene) -> str:
    cpu = torch.device("cpu")
    return meet(*check_node(World(), folder=scene.root, need_bytes=2**60, device=cpu, endpoint=None))


@prints("did not report within")
def a_node_that_is_down(scene: Scene) -> str:
    return meet()


@prints("has given no sign of life for")
def a_stopped_process(scene: Scene) -> str:
    with Ranks(scene.root, train_ranks, "", 10_000) as ranks:
        ranks.wait_until_said(0, "step 2 done")
        ranks.send(1, signal.SIGSTOP)
        ranks.wait(0)
        return ranks.said(0)


@prints("this machine is not ready")
def an_unfit_machine(scene: Scene) -> str:
    return scene.nexa("doctor", root=Path("/proc"), exits=3)


# Searching.


def tune(scene: Scene, *arguments: str, exits: int = 2, **settings: Any) -> str:
    config = write_study(scene.root / "study.yaml", training={"epochs": 1}, **settings)
    return scene.nexa("tune", "--config", config, *arguments, root=scene.lab.root, exits=exits)


@prints("which must not choose settings")
def the_test_split(scene: Scene) -> str:
    return tune(scene, metric="accuracy")


@prints("was begun with other settings")
def another_study(scene: Scene) -> str:
    tune(scene, "--max-trials", "1", exits=0)
    return tune(scene, "--max-trials", "1", seed=1)


@prints("trials failed one after another")
def a_bad_space(scene: Scene) -> str:
    space = {"training.optimizer.lr": {"name": "choice", "values": [1e30]}}
    return tune(scene, "--max-trials", "9", space=space, max_failed_in_a_row=1, exits=3)


@prints("No use of tune.storage")
def no_database(scene: Scene) -> str:
    return tune(scene, storage=f"postgresql://nobody@127.0.0.1:{free_port()}/studies")


# Trackers.


@prints("what it missed can be sent later")
def a_tracker_that_is_down(scene: Scene) -> str:
    scene.monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    return trained(scene, exits=0, tracking={"wait_seconds": 30.0})


@prints("yet: nexa track-sync")
def a_tracker_that_is_slow(scene: Scene) -> str:
    return a_tracker_that_is_down(scene)


@prints("Nobody to send to")
def no_tracker(scene: Scene) -> str:
    for name in ("MLFLOW_TRACKING_URI", "WANDB_API_KEY"):
        scene.monkeypatch.delenv(name, raising=False)
    return scene.nexa("track-sync", scene.finished.run("mlp").run_id, root=scene.finished.root)


# Teacher and distillation.


PACE = {"concurrency": 1, "give_up_after_seconds": 1.0}


def collect(
    scene: Scene,
    *answers: web.Response | float,
    num_prompts: int = 3,
    options: tuple[str, ...] = (),
    exits: int = 2,
    **given: Any,
) -> str:
    """What `nexa collect-teacher` prints where the server gives these answers."""
    write_inputs(scene.root, num_prompts)
    with answering(list(answers)) as (url, _):
        config = collect_settings(scene.root, url, pace=PACE, **given)
        return scene.nexa("collect-teacher", "--config", config, *options, exits=exits)


@prints("is not set. Set it in the shell or in .env.local")
def no_key(scene: Scene) -> str:
    scene.monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    write_inputs(scene.root, 1)
    config = collect_settings(scene.root, "https://api.openai.com/v1")
    return scene.nexa("collect-teacher", "--config", config)


@prints("A budget is set and the price of")
def no_price(scene: Scene) -> str:
    return collect(scene, prices={}, max_cost_usd=1.0)


@prints("is used up")
def a_spent_budget(scene: Scene) -> str:
    return collect(scene, options=("--max-cost-usd", "0.000001"), exits=3)


@prints("refuses model")
def a_wrong_key(scene: Scene) -> str:
    return collect(scene, 401)


@prints("and called the first")
def a_wrong_setting(scene: Scene) -> str:
    return collect(scene, *[400] * 99, num_prompts=60)


@prints("asks to wait")
def a_rate_limit(scene: Scene) -> str:
    return collect(scene, web.Response(status=429, headers={"Retry-After": "3600"}), exits=1)


@prints("has answered nothing for")
def a_server_that_is_down(scene: Scene) -> str:
    return collect(scene, *[500] * 99, exits=1)


@prints("answers failed, more than")
def refused_requests(scene: Scene) -> str:
    return collect(scene, *[400] * 9, exits=3)


@prints("answers were cut off at max_tokens")
def long_answers(scene: Scene) -> str:
    message = {"role": "assistant", "content": "and so on and"}
    cut = {"choices": [{"message": message, "finish_reason": "length"}], "usage": {}}
    return collect(scene, *[web.json_response(cut) for _ in range(60)], num_prompts=60, exits=3)


@prints("is being added to by another process")
def two_that_collect(scene: Scene) -> str:
    with Store(store_path(Layout(scene.root))):
        return collect(scene)


@prints("no pair is kept of")
def a_filter_that_keeps_none(scene: Scene) -> str:
    write_outputs(scene.root, [row("short", "Yes.")])
    return refused(lambda: filtered(scene.root, [{"name": "length", "of": "completion", "min_words": 3}]))


# Judging and packaging.


def with_lab(scene: Scene, *arguments: object, exits: int = 3) -> str:
    return scene.nexa(*arguments, root=scene.finished.root, exits=exits)


@prints("The checkpoint failed the rubric")
def a_poor_checkpoint(scene: Scene) -> str:
    rubric = write_rubric(scene.root / "hard.yaml", HARD)
    return with_lab(scene, "judge", "--checkpoint", scene.finished.checkpoint("mlp"), "--rubric", rubric)


@prints("does not have the digest of any checkpoint")
def an_altered_checkpoint(scene: Scene) -> str:
    path = scene.finished.checkpoint("mlp")
    path.write_bytes(path.read_bytes() + b"\0")
    return with_lab(scene, "package", "--checkpoint", path)


@prints("No finished run has exactly the config")
def a_changed_config(scene: Scene) -> str:
    path = write_config(scene.root / "other.yaml", make_config("mlp", training={"batch_size": 32}))
    return with_lab(scene, "package", "--config", path, exits=2)


@prints("does not do what it says")
def altered_weights(scene: Scene) -> str:
    files = read_package(scene.finished.package("mlp"))
    weights = safetensors.torch.load(files["model.safetensors"])
    weights["layers.0.weight"][0, :] += 0.5
    altered = safetensors.torch.save(weights, metadata={"tied": "{}"})
    return scene.nexa(
        "verify", write_package(scene.root / "p.tar.gz", {**files, "model.safetensors": altered}), exits=3
    )


@prints("rows could not be predicted")
def rows_of_another_kind(scene: Scene) -> str:
    (scene.root / "rows.jsonl").write_text('{"title": "a cat"}\n')
    return scene.nexa(
        "predict", scene.finished.package("text_classifier"), "--input", scene.root / "rows.jsonl", exits=3
    )


# Runs, clean and storage.


@prints("There is nothing to stop")
def a_run_that_has_ended(scene: Scene) -> str:
    return with_lab(scene, "runs", "stop", "mlp", exits=2)


@contextmanager
def deaf_process(run: RunFolder) -> Iterator[None]:
    """A process that writes to the run and does not end when it is told to."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with hold(run):
            signal.pause()
    try:
        while (holder := read_holder(run)) is None or holder.pid != child:
            time.sleep(0.01)
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@prints("has been told to end and has not within")
def a_long_step(scene: Scene) -> str:
    run = unfinished(scene.finished)
    with deaf_process(run):
        return with_lab(scene, "runs", "stop", run.run_id, "--wait-seconds", "0.1")


@prints("that writes the run is on")
def another_machine(scene: Scene) -> str:
    run = unfinished(scene.finished)
    with hold(run):
        holder = json.loads((run.path / "run.lock").read_text())
        (run.path / "run.lock").write_text(json.dumps({**holder, "host": "node7"}).ljust(NOTE_BYTES))
        return with_lab(scene, "runs", "stop", run.run_id, exits=2)


def unfinished(lab: FinishedLab) -> RunFolder:
    """A run as it is before its last write."""
    run = lab.run("mlp")
    (lab.layout.run_manifests / f"{run.run_id}.json").unlink()
    return run


@prints("There is nothing to resume")
def a_run_that_is_finished(scene: Scene) -> str:
    return with_lab(scene, "runs", "resume", "mlp", exits=2)


@prints("There is no log")
def a_log_that_was_cleaned(scene: Scene) -> str:
    shutil.rmtree(scene.finished.layout.logs)
    return with_lab(scene, "runs", "tail", "mlp", exits=2)


@prints("Another process is cleaning this laboratory")
def two_that_clean(scene: Scene) -> str:
    journal = durable.Journal(scene.finished.layout.logs / "clean.jsonl")
    said = with_lab(scene, "clean", "--yes", exits=2)
    journal.close()
    return said


@prints("is not set: it names the")
def no_tier(scene: Scene) -> str:
    scene.monkeypatch.delenv("NEXA_DURABLE", raising=False)
    return with_lab(scene, "storage", "move", "mlp", "--to", "durable", exits=2)


@prints("has been moved already")
def a_run_that_lies_elsewhere(scene: Scene) -> str:
    scene.monkeypatch.setenv("NEXA_DURABLE", str(scene.root / "durable"))
    (scene.root / "durable").mkdir(exist_ok=True)
    with_lab(scene, "storage", "move", "mlp", "--to", "durable", exits=0)
    return with_lab(scene, "storage", "move", "mlp", "--to", "durable", exits=2)


@prints("The original stays; look at that storage")
def a_damaged_copy(scene: Scene) -> str:
    """A disk that loses what it is given: each file that is synced to it changes afterwards."""
    durable_tier, fsync = scene.root / "durable", os.fsync

    def fsync_and_damage(number: int) -> None:
        fsync(number)
        path = Path(os.readlink(f"/proc/self/fd/{number}"))
        if path.is_relative_to(durable_tier) and path.is_file():
            with path.open("r+b") as file:
                file.write(b"?")

    scene.monkeypatch.setenv("NEXA_DURABLE", str(durable_tier))
    durable_tier.mkdir(exist_ok=True)
    package = scene.finished.layout.relative(scene.finished.package("mlp"))
    scene.monkeypatch.setattr(os, "fsync", fsync_and_damage)
    return with_lab(scene, "storage", "move", package, "--to", "durable")
