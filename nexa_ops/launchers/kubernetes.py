"""Kubernetes: a Kubeflow Trainer v2 TrainJob, the runtime it runs in, and the config it trains.

The runtime is the job's own rather than the cluster's `torch-distributed`, because a TrainJob may patch neither its
pods' grace period nor what happens when one fails; and a TrainingRuntime needs no rights outside the namespace.

Source: https://www.kubeflow.org/docs/components/trainer and https://jobset.sigs.k8s.io/docs (failure policy)
"""

from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from nexa_core.errors import GateError, UserError
from nexa_ops.launchers.plan import GRACE_SECONDS, Launcher, Plan, as_yaml, path_below

API = "trainer.kubeflow.org"
CODE = PurePosixPath("/lab")  # the image's working folder: the code and configs/
LABORATORY = "/mnt/nexa"  # data, runs and artifacts, on the volume
MAX_RESTARTS = 10  # all pods begin anew, each time from the newest checkpoint
NODE = "node"  # the names that Kubeflow Trainer looks for: of the replicated job, and of the container in it


def render(plan: Plan) -> str:
    """The manifest."""
    image, volume = plan.options.image, plan.options.volume
    assert image is not None
    assert volume is not None
    config_path = path_below(plan)
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": plan.name},
        "data": {PurePosixPath(config_path).name: plan.config_path.read_text(encoding="utf-8")},
    }
    runtime = {
        "apiVersion": f"{API}/v1alpha1",
        "kind": "TrainingRuntime",
        "metadata": {"name": plan.name},
        "spec": {
            "mlPolicy": {"numNodes": plan.num_nodes, "torch": {}},
            "template": {"spec": {"failurePolicy": _failure_policy(), "replicatedJobs": [_nodes(plan, image, volume)]}},
        },
    }
    job = {
        "apiVersion": f"{API}/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": plan.name},
        "spec": {
            "runtimeRef": {"apiGroup": API, "kind": "TrainingRuntime", "name": plan.name},
            **({"activeDeadlineSeconds": plan.options.time_seconds} if plan.options.time_seconds else {}),
            "trainer": _trainer(plan, image, config_path),
        },
    }
    needs = f"Kubeflow Trainer 2.2 or newer, the image {image}, and the PersistentVolumeClaim {volume} (ReadWriteMany)"
    head = f"# Made by: {plan.made_by}\n# Needs {needs}.\n"
    return head + as_yaml(config_map, runtime, job)


def _failure_policy() -> dict[str, Any]:
    """Every failure begins all pods anew, unless it would only happen again."""
    hopeless = {"name": "usageOrGate", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {"maxRestarts": MAX_RESTARTS, "rules": [hopeless]}


def _nodes(plan: Plan, image: str, volume: str) -> dict[str, Any]:
    config_path = path_below(plan)
    hopeless = {
        "action": "FailJob",
        "onExitCodes": {
            "containerName": NODE,
            "operator": "In",
            "values": [UserError.exit_code, GateError.exit_code],
        },
    }
    container = {
        "name": NODE,
        "image": image,
        "workingDir": str(CODE),
        "volumeMounts": [
            {"name": "laboratory", "mountPath": LABORATORY},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            {"name": "config", "mountPath": str(CODE / config_path), "subPath": PurePosixPath(config_path).name},
        ],
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": [container],
        "volumes": [
            {"name": "laboratory", "persistentVolumeClaim": {"claimName": volume}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
            {"name": "config", "configMap": {"name": plan.name}},
        ],
    }
    return {
        "name": NODE,
        "template": {
            "metadata": {"labels": {f"{API}/trainjob-ancestor-step": "trainer"}},
            "spec": {
                "backoffLimit": 0,
                "podFailurePolicy": {"rules": [hopeless]},
                "template": {"spec": pod},
            },
        },
    }


def _trainer(plan: Plan, image: str, config_path: str) -> dict[str, Any]:
    arguments = ["--config", config_path, *plan.train_arguments[2:]]
    resources: dict[str, Any] = {"requests": {"cpu": str(plan.cpus_per_node)}}
    if plan.gpus_per_node:
        resources["limits"] = {"nvidia.com/gpu": str(plan.gpus_per_node)}
    return {
        "image": image,
        "command": ["bash", "scripts/launch_ddp.sh"],
        "args": [argument.replace("$", "$$") for argument in arguments],  # Kubernetes would fill in $(NAME)
        "env": [
            {"name": "NEXA_ROOT", "value": LABORATORY},
            {"name": "NPROC_PER_NODE", "value": str(plan.processes_per_node)},
        ],
        "numNodes": plan.num_nodes,
        "numProcPerNode": plan.processes_per_node,
        "resourcesPerNode": resources,
    }


def command(plan: Plan, path: Path) -> list[str]:
    return ["kubectl", "apply", "-f", str(path)]


KUBERNETES = Launcher(
    "Kubernetes",
    render,
    command,
    options=frozenset({"time", "image", "volume"}),
    defaults={"image": f"nexacompute:{version('nexacompute')}", "volume": "nexa-lab"},
)
