"""Launching: nodes find each other, exit codes and signals come through, and the schedulers' files are sound."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from torch.distributed.elastic.multiprocessing.api import SignalException

from nexa_core.config import RunConfig, load_config
from nexa_core.errors import NodeError, Preempted, UserError
from nexa_ops.launch import launch
from nexa_ops.launchers.plan import GRACE_SECONDS, Options
from nexa_ops.nodes import Node, first_host, read_node
from nexa_ops.torchrun import SHUTDOWN_SECONDS, run_torchrun, torchrun_arguments

ROOT = Path(__file__).parent.parent
BASELINE = Path("configs/baseline.yaml")
NASTY = """data.dataset=a b; $(touch owned) "c" `id` $HOME 'd' \\ #"""

# Stands in for `nexa_train.train`: says who it is and what it was told, and ends as the test wants.
TRAIN = """
import json, os, pathlib, signal, sys, time
rank = os.environ["RANK"]
out = pathlib.Path(os.environ["OUT"])
names = ("WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "OMP_NUM_THREADS")
def saved(*_):
    (out / f"saved{rank}").touch()
    end_when_told(os.environ.get(f"TOLD_{rank}", "143"))
def end_when_told(end):
    if end == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit(int(end))
signal.signal(signal.SIGTERM, saved)
said = {"argv": sys.argv[1:], **{name: os.environ.get(name) for name in names}}
(out / f"rank{rank}.partial").write_text(json.dumps(said))
(out / f"rank{rank}.partial").rename(out / f"rank{rank}.json")
end = os.environ.get(f"END_OF_{rank}", os.environ.get("END", "0"))
if end == "SIGKILL":
    os.kill(os.getpid(), signal.SIGKILL)
if end == "wait":
    time.sleep(60)
sys.exit(int(end))
"""


# Stands in for what makes a dataset that is not there yet.
JOB = """
import os, pathlib
def ensure_dataset(layout, data):
    with (pathlib.Path(os.environ["OUT"]) / "prepared").open("a") as file:
        print(data.key, file=file)
"""


class Lab:
    """A folder like a clone whose `train` is the one above, and programs that come first on the PATH."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.out = folder / "out"
        self.bin = folder / "bin"
        for made in (self.out, self.bin, folder / "stub" / "nexa_train"):
            made.mkdir(parents=True)
        for name in ("scripts", "configs"):
            (folder / name).symlink_to(ROOT / name)
        (folder / "stub" / "nexa_train" / "__init__.py").touch()
        (folder / "stub" / "nexa_train" / "train.py").write_text(TRAIN)
        (folder / "stub" / "nexa_train" / "job.py").write_text(JOB)

    def program(self, name: str, text: str) -> None:
        (self.bin / name).write_text(f"#!/usr/bin/env bash\nset -euo pipefail\n{text}\n")
        (self.bin / name).chmod(0o755)

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        launchers = ("SLURM_", "PET_", "NNODES", "NODE_RANK", "NPROC_PER_NODE", "MASTER_", "NEXA_ROOT", "OMP_NUM")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(launchers)}
        path = f"{self.bin}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {
            **clean,
            "PATH": path,
            "PYTHONPATH": f"{self.folder / 'stub'}:{ROOT}",
            "OUT": str(self.out),
            **variables,
        }

    def start(self, *command: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment(variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def launch_ddp(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return self.start("bash", "scripts/launch_ddp.sh", "--config", str(BASELINE), *arguments, **variables)

    def ranks(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.out.glob("rank*.json"))]


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture
def from_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr."""
    _, said = process.communicate(timeout=60)
    return process.returncode, said


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def baseline(*overrides: str) -> RunConfig:
    return load_config(ROOT / BASELINE, RunConfig, overrides=overrides)


# A node's place


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Node(0, 1, 4, "127.0.0.1", None, None)),
        ({"NPROC_PER_NODE": "2", "MASTER_PORT": "1234"}, Node(0, 1, 2, "127.0.0.1", 1234, None)),
        ({"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node-a"}, Node(1, 2, 4, "node-a", 29500, None)),
        (
            {"SLURM_NNODES": "3", "SLURM_NODEID": "2", "SLURM_JOB_NODELIST": "gpu[08-09,11]", "SLURM_JOB_ID": "54321"},
            Node(2, 3, 4, "gpu08", 24321, "54321"),
        ),
        (
            {
                "PET_NNODES": "2",
                "PET_NODE_RANK": "1",
                "PET_NPROC_PER_NODE": "auto",
                "PET_MASTER_ADDR": "job-node-0-0.job",
                "PET_MASTER_PORT": "29400",
            },
            Node(1, 2, 4, "job-node-0-0.job", 29400, None),
        ),
    ],
    ids=["alone", "alone-on-a-port", "ours", "slurm", "kubeflow"],
)
def test_a_node_reads_its_place(environment: dict[str, str], expected: Node) -> None:
    assert read_node(environment, baseline(), num_gpus=4) == expected


def test_the_config_shares_its_processes_out_over_the_nodes() -> None:
    config = baseline("training.distributed.world_size=4")
    environment = {"NNODES": "2", "NODE_RANK": "0", "MASTER_ADDR": "node-a"}
    assert read_node({}, config, num_gpus=8).num_processes == 4
    assert read_node(environment, config, num_gpus=8).num_processes == 2
    assert read_node({}, baseline(), num_gpus=0).num_processes == 1


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"NNODES": "two"}, "NNODES=two: expected a whole number of 1 or more"),
        ({"NNODES": "1:4"}, "NNODES=1:4: expected a whole number"),
        ({"NPROC_PER_NODE": "0"}, "NPROC_PER_NODE=0: expected a whole number of 1 or more"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000: expected a whole number from 1 to 65535"),
        ({"NNODES": "2", "MASTER_ADDR": "a"}, "set NODE_RANK, 0 to 1"),
        ({"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "a"}, "NODE_RANK=2: the ranks of 2 nodes are 0 to 1"),
        ({"NNODES": "2", "NODE_RANK": "1"}, "set MASTER_ADDR"),
        ({"NPROC_PER_NODE": "3"}, "3 processes, and training.distributed.world_size is 4"),
        ({"NNODES": "3", "NODE_RANK": "0"}, "world_size is 4, which 3 nodes cannot share out evenly"),
        ({"SLURM_LOCALID": "1"}, "--ntasks-per-node=1"),
    ],
)
def test_a_place_that_cannot_be_is_refused(environment: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_node(environment, baseline("training.distributed.world_size=4"), num_gpus=0)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("node7", "node7"),
        ("node7,node9", "node7"),
        ("gpu[003-010,012],cpu1", "gpu003"),
        ("rack[1-2]gpu[05,07]", "rack1gpu05"),
        ("10.0.0.[4-5]", "10.0.0.4"),
    ],
)
def test_the_first_host_of_a_node_list(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


# launch_ddp.sh


def test_two_nodes_meet_and_train_gets_its_options(lab: Lab) -> None:
    nodes = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NPROC_PER_NODE": "2"}
    arguments = ("--override", NASTY.replace("dataset=", "prepare="), "--resume")
    both = [lab.launch_ddp(*arguments, NODE_RANK=rank, **nodes) for rank in ("1", "0")]
    assert [finish(process)[0] for process in both] == [0, 0]
    expected = {"argv": ["--config", str(BASELINE), *arguments], "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
    expected["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // 2))
    places = [{"LOCAL_RANK": str(rank % 2), "GROUP_RANK": str(rank // 2)} for rank in range(4)]
    assert lab.ranks() == [{**expected, **place} for place in places]
    assert (lab.out / "prepared").read_text() == "python_docs_v1\n"  # by the first node alone


@pytest.mark.parametrize(("end", "code"), [("4", 4), ("SIGKILL", 4)])
def test_the_exit_code_is_that_of_the_worker_that_failed(lab: Lab, end: str, code: int) -> None:
    done, said = finish(lab.launch_ddp(NPROC_PER_NODE="2", END_OF_1=end, END_OF_0="wait"))
    assert done == code
    assert "error: rank 1" in said.lower()
    assert "Traceback" not in said
    assert (lab.out / "saved0").exists()


def test_a_sigterm_reaches_every_worker_and_the_launcher_waits_for_them(lab: Lab) -> None:
    process = lab.launch_ddp(NPROC_PER_NODE="2", END="wait")
    wait_for(lambda: len(lab.ranks()) == 2)
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert code == 143
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("error: told to end by SIGTERM")
    assert {path.name for path in lab.out.glob("saved*")} == {"saved0", "saved1"}


@pytest.mark.parametrize(
    ("first", "second", "expected", "says"),
    [
        ("143", "SIGKILL", 1, "told to end by SIGTERM; worker 1 of this node was killed, maybe before it had saved"),
        ("143", "4", 4, "told to end by SIGTERM; worker 1 of this node ended with exit code 4"),
        ("0", "0", 0, ""),
    ],
)
def test_a_worker_that_did_not_save_when_told_to_end_decides_the_exit_code(
    lab: Lab, first: str, second: str, expected: int, says: str
) -> None:
    process = lab.launch_ddp(NPROC_PER_NODE="2", END="wait", TOLD_0=first, TOLD_1=second)
    wait_for(lambda: len(lab.ranks()) == 2)
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert code == expected, said
    assert says in said
    assert "Traceback" not in said


def test_a_signal_between_two_lines_of_torchrun_is_a_signal_still(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's timing of its own functions sets a local in a `try` and reads it in the `finally`: a signal may come before."""

    def told_while_timing(arguments: list[str]) -> None:
        try:
            raise SignalException("told", signal.SIGTERM)
            start = 0.0
        finally:
            print(start)  # as torch.distributed.elastic.metrics.prof

    monkeypatch.setattr("torch.distributed.run.main", told_while_timing)
    with pytest.raises(Preempted, match="told to end by SIGTERM"):
        run_torchrun([], Node(0, 1, 1, None, None, None))


@pytest.mark.parametrize(
    ("arguments", "variables", "message"),
    [
        ([], {"NNODES": "two"}, "error: NNODES=two: expected a whole number of 1 or more."),
        (["--override", "training.epohs=1"], {}, "Did you mean 'training.epochs'?"),
    ],
)
def test_wrong_usage_is_said_once_before_anything_starts(
    lab: Lab, arguments: list[str], variables: dict[str, str], message: str
) -> None:
    code, said = finish(lab.launch_ddp(*arguments, NPROC_PER_NODE="2", **variables))
    assert code == 2
    assert message in said
    assert len(said.splitlines()) == 1
    assert not lab.ranks()


def test_nodes_that_do_not_meet_are_told_where_they_looked() -> None:
    node = Node(1, 2, 1, "127.0.0.1", int(free_port()), None)
    with pytest.raises(NodeError, match=rf"Node 1 of 2 did not meet the others at 127.0.0.1:{node.master_port}"):
        run_torchrun([*torchrun_arguments(node), "--rdzv-conf=timeout=1", "--module", "no_such_module"], node)


def wait_for(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# The schedulers' files


def render(
    to: str, *overrides: str, nodes: int = 2, gpus: int | None = 1, cpus: int | None = None, **options: str
) -> str:
    return launch(
        to,
        config_path=BASELINE,
        overrides=overrides,
        num_nodes=nodes,
        gpus_per_node=gpus,
        cpus_per_node=cpus,
        options=Options(**options),
        output=None,
        dry_run=True,
    )


EXAMPLES = sorted((ROOT / "deploy").iterdir())
NEEDED: dict[str, dict[str, Any]] = {
    "slurm": {},
    "k8s": {"image": "nexacompute:0.1.0", "volume": "nexa-lab"},
    "sky": {"gpu_type": "H100", "volume": "nexa-lab"},
}


def test_there_is_an_example_for_each_scheduler() -> None:
    assert [path.name for path in EXAMPLES] == ["kubernetes.yaml", "skypilot.yaml", "slurm.sbatch"]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_command_in_an_example_prints_it_again(path: Path) -> None:
    (made_by,) = [line for line in path.read_text().splitlines() if line.startswith("# Made by: ")]
    command = shlex.split(made_by.removeprefix("# Made by: "))
    done = subprocess.run(
        [Path(sys.executable).parent / command[0], *command[1:]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == path.read_text()


@pytest.mark.usefixtures("from_root")
def test_a_slurm_job_trains_on_two_nodes(lab: Lab) -> None:
    """The script itself, with an srun that starts both tasks here."""
    code = run_sbatch(lab, render("slurm", "training.distributed.world_size=2"))
    assert code == 0
    assert [(said["WORLD_SIZE"], said["GROUP_RANK"]) for said in lab.ranks()] == [("2", "0"), ("2", "1")]
    argv = ["--config", str(BASELINE), "--override", "training.distributed.world_size=2", "--resume"]
    assert lab.ranks()[0]["argv"] == argv
    assert not (lab.out / "requeued").exists()


@pytest.mark.usefixtures("from_root")
@pytest.mark.parametrize(("end", "requeued"), [("143", True), ("3", False)])
def test_a_slurm_job_goes_back_into_the_queue_only_when_it_was_preempted(lab: Lab, end: str, requeued: bool) -> None:
    lab.program("launched", f"exit {end}")
    code = run_sbatch(lab, render("slurm").replace("bash scripts/launch_ddp.sh", "launched"))
    assert code == int(end)
    assert (lab.out / "requeued").exists() == requeued
    if requeued:
        assert (lab.out / "requeued").read_text() == "requeue 54321\n"


def run_sbatch(lab: Lab, script: str) -> int:
    """Run a batch script as Slurm would on two nodes that are both this machine; its exit code."""
    options = 'while [[ "$1" == --* ]]; do shift; done'
    tasks = 'for id in 0 1; do SLURM_LOCALID=0 SLURM_NODEID=$id "$@" & tasks+=($!); done'
    highest = 'code=0; for task in "${tasks[@]}"; do wait "$task" || { got=$?; ((got <= code)) || code=$got; }; done'
    lab.program("srun", f"{options}\n{tasks}\n{highest}\nexit $code")
    lab.program("scontrol", 'echo "$*" > "$OUT/requeued"')
    (lab.folder / "job.sbatch").write_text(script + "\n")
    subprocess.run(["bash", "-n", lab.folder / "job.sbatch"], check=True)
    job = {"SLURM_JOB_ID": "54321", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "127.0.0.[1-2]"}
    code, said = finish(lab.start("bash", "job.sbatch", **job))
    print(said)
    return code


@pytest.mark.usefixtures("from_root")
def test_what_goes_into_a_shell_arrives_as_it_was_given(lab: Lab) -> None:
    lab.program("launched", 'python -c "import json, sys; print(json.dumps(sys.argv[1:]))" "$@" > "$OUT/argv"')
    expected = ["--config", str(BASELINE), "--override", NASTY, "--resume"]
    lab.program("srun", 'while [[ "$1" == --* ]]; do shift; done\nexec "$@"')
    script = render("slurm", NASTY).replace("bash scripts/launch_ddp.sh", "launched")
    assert finish(lab.start("bash", "-c", script))[0] == 0
    assert json.loads((lab.out / "argv").read_text()) == expected

    task = yaml.safe_load(render("sky", NASTY, **NEEDED["sky"]))
    (lab.folder / ".venv" / "bin").mkdir(parents=True)
    (lab.folder / ".venv" / "bin" / "activate").touch()
    script = task["run"].replace("bash scripts/launch_ddp.sh", "launched")
    script += '\necho "$NNODES $NODE_RANK $MASTER_ADDR $NPROC_PER_NODE" > "$OUT/place"\n'
    sky = {"NUM_NODES": "2", "NODE_RANK": "1", "NODE_IPS": "10.0.0.4\n10.0.0.5", "NUM_GPUS_PER_NODE": "8"}
    (lab.out / "argv").unlink()
    assert finish(lab.start("bash", "-c", script, **{f"SKYPILOT_{name}": value for name, value in sky.items()}))[0] == 0
    assert json.loads((lab.out / "argv").read_text()) == expected
    assert (lab.out / "place").read_text() == "2 1 10.0.0.4 8\n"

    *_, job = yaml.safe_load_all(render("k8s", NASTY, **NEEDED["k8s"]))
    assert [argument.replace("$$", "$") for argument in job["spec"]["trainer"]["args"]] == expected
    assert "$(touch" not in "".join(job["spec"]["trainer"]["args"]).replace("$$", "")
    assert not (lab.folder / "owned").exists()


def schema(name: str) -> jsonschema.Draft202012Validator:
    value = yaml.safe_load((ROOT / "tests" / "schemas" / f"{name}.yaml").read_text())
    jsonschema.Draft202012Validator.check_schema(value)
    return jsonschema.Draft202012Validator(value)


@pytest.mark.usefixtures("from_root")
@pytest.mark.parametrize(("gpus", "options"), [(8, {"time": "1-00:00:30"}), (0, {})])
def test_a_kubernetes_manifest_holds_what_its_kinds_define(gpus: int, options: dict[str, Any]) -> None:
    config, runtime, job = yaml.safe_load_all(render("k8s", gpus=gpus, **NEEDED["k8s"], **options))
    for document in (config, runtime, job):
        schema("kubernetes").validate(document)
    assert yaml.safe_load(config["data"]["baseline.yaml"]) == yaml.safe_load(BASELINE.read_text())
    assert job["spec"].get("activeDeadlineSeconds") == (86430 if options else None)
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    resources = job["spec"]["trainer"]["resourcesPerNode"]
    assert resources == (
        {"requests": {"cpu": "64"}, "limits": {"nvidia.com/gpu": "8"}} if gpus else {"requests": {"cpu": "8"}}
    )
    (nodes,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = nodes["template"]["spec"]["template"]["spec"]
    mounted = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    assert mounted == {"laboratory": "/mnt/nexa", "shared-memory": "/dev/shm", "config": "/lab/configs/baseline.yaml"}
    assert mounted.keys() == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.usefixtures("from_root")
def test_the_kubernetes_schema_refuses_what_the_apis_do_not_have() -> None:
    _, runtime, job = yaml.safe_load_all(render("k8s", **NEEDED["k8s"]))
    job["spec"]["trainer"]["terminationGracePeriodSeconds"] = 120
    runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"][
        "restartPolicy"
    ] = "OnFailure"
    assert not schema("kubernetes").is_valid(job)
    assert not schema("kubernetes").is_valid(runtime)


@pytest.mark.usefixtures("from_root")
@pytest.mark.parametrize("options", [{"gpus": 8, "image": "nexacompute:0.1.0"}, {"gpus": 0, "nodes": 1}])
def test_a_skypilot_task_holds_what_its_specification_defines(options: dict[str, Any]) -> None:
    task = yaml.safe_load(render("sky", **{**NEEDED["sky"], **options}))
    schema("skypilot").validate(task)
    for script in (task["setup"], task["run"]):
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert task["resources"].get("accelerators") == ("H100:8" if options["gpus"] else None)


@pytest.mark.usefixtures("from_root")
@pytest.mark.parametrize("to", ["slurm", "k8s", "sky"])
def test_the_config_alone_is_enough_for_a_file(to: str) -> None:
    text = render(to, "training.distributed.world_size=4", nodes=1, gpus=None)
    assert "--nodes 1 --gpus-per-node 0" in text.splitlines()[0 if to != "slurm" else 1]
    assert ("--image nexacompute:0.1.0 --volume nexa-lab" in text) == (to == "k8s")


@pytest.mark.usefixtures("from_root")
def test_a_config_for_gpus_asks_for_as_many_as_it_has_processes() -> None:
    overrides = ("training.device=cuda", "training.distributed.world_size=8")
    assert "#SBATCH --gpus-per-node=4" in render("slurm", *overrides, nodes=2, gpus=None)


def test_a_job_has_time_to_save_before_its_scheduler_kills_it() -> None:
    assert SHUTDOWN_SECONDS + 15 < GRACE_SECONDS


@pytest.mark.usefixtures("from_root")
@pytest.mark.parametrize(
    ("to", "arguments", "message"),
    [
        ("slrum", {}, "Unknown launcher 'slrum'. Did you mean 'slurm'? Allowed: k8s, sky, slurm"),
        ("slurm", {"image": "nexacompute"}, "--image has no effect on Slurm, which takes --gpu-type, --time"),
        ("slurm", {"time": "soon"}, "--time soon: expected [days-]hours:minutes:seconds"),
        ("slurm", {"gpu_type": "H100\n#SBATCH --uid=0"}, "expected a name such as H100"),
        ("k8s", {"image": "nexacompute", "volume": "My_Lab"}, "--volume My_Lab: expected lower-case letters"),
        ("sky", {"volume": "nexa-lab"}, "--to sky needs --gpu-type"),
        ("sky", {"gpu_type": "H100"}, "--to sky needs --volume: the nodes of a run share one laboratory folder"),
        ("sky", {"gpu_type": "H100", "time": "01:00:00"}, "--time has no effect on SkyPilot"),
        (
            "slurm",
            {"override": "training.distributed.world_size=3"},
            "2 processes, and training.distributed.world_size is 3",
        ),
        ("slurm", {"override": "training.device=cpu"}, "--gpus-per-node 1 would stand idle"),
        ("slurm", {"override": "training.device=cuda", "gpus": 0}, "ask for at least 1"),
        ("slurm", {"override": "name=7b"}, "The job would be called '7b'"),
        ("slurm", {"override": f"name={'long' * 20}"}, "40 at most"),
        ("slurm", {"override": "data.dataset=a\nrm -r ~"}, "line breaks and control characters"),
        ("k8s", {"image": "../x", "volume": "nexa-lab"}, "expected a container image"),
    ],
)
def test_what_does_not_fit_together_is_refused(to: str, arguments: dict[str, Any], message: str) -> None:
    overrides = [arguments.pop("override")] if "override" in arguments else []
    with pytest.raises(UserError) as refused:
        render(to, *overrides, **arguments)
    assert message in str(refused.value)


# Submitting


def submit(lab: Lab, *arguments: str, path: str | None = None) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "scripts.cli", "launch", "--to", "slurm", "--config", str(BASELINE)]
    environment = lab.environment({"PATH": path} if path else {})
    del environment["PYTHONPATH"]
    done = subprocess.run(
        [*command, "--gpus-per-node", "1", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def test_the_scheduler_gets_the_file_that_a_dry_run_shows(lab: Lab) -> None:
    lab.program("sbatch", 'cp "$1" "$OUT/got"; echo "Submitted batch job 7"')
    code, said, _ = submit(lab)
    assert code == 0
    assert said.splitlines() == ["Submitted batch job 7", "python-docs was handed to Slurm"]
    assert submit(lab, "--dry-run")[1] == (lab.out / "got").read_text()
    target = lab.folder / "job.sbatch"
    assert f"submit it with: sbatch {target}" in submit(lab, "--dry-run", "--output", str(target))[1]
    assert target.read_text() == (lab.out / "got").read_text()


def test_a_scheduler_that_is_missing_or_says_no_is_a_usage_error(lab: Lab) -> None:
    code, _, said = submit(lab, path=str(lab.bin))
    assert (code, said) == (
        2,
        "error: sbatch is not installed here; --dry-run prints the file that it would be given.\n",
    )
    lab.program("sbatch", "echo 'invalid partition' >&2; exit 1")
    code, _, said = submit(lab)
    assert code == 2
    assert said.splitlines()[0] == "invalid partition"
    assert "sbatch did not take the job (exit code 1)" in said
