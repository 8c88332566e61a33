"""`nexa clean`: plans first, never takes what POLICY.md keeps, and can be killed anywhere."""

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from nexa_core.config.policy import PolicyConfig, load_policy
from nexa_core.errors import UserError
from nexa_core.holder import hold
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder
from nexa_ops.package import package
from nexa_ops.retention.clean import clean
from nexa_ops.retention.plan import Plan, make_plan, newest_first
from nexa_ops.runs.pins import pin, unpin
from nexa_ops.tiers.move import move
from nexa_train.train import run
from tests.labs import make_config, make_lab
from tests.test_runs import make_run

NOW = datetime.now(UTC)
LATER = NOW + timedelta(days=365)
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A laboratory with a run of eight epochs and then one of a single one, whose checkpoints `artifacts/` shows."""
    layout = make_lab(tmp_path_factory.mktemp("clean") / "lab")
    run(make_config("mlp", training={"epochs": 8}), layout=layout, now=lambda: NOW - timedelta(days=1))
    run(make_config("mlp", training={"epochs": 1}), layout=layout, now=lambda: NOW)
    return layout.root


@pytest.fixture
def lab(trained: Path, tmp_path: Path) -> Layout:
    shutil.copytree(trained, tmp_path / "lab", symlinks=True)
    return Layout(tmp_path / "lab")


def old_run(layout: Layout) -> RunFolder:
    return RunFolder(min((layout.runs / "test").glob("mlp_*")))


def planned(layout: Layout, **rules: object) -> Plan:
    policy = PolicyConfig.model_validate({"checkpoints": {"after_days": 0.0}, **rules})
    return make_plan(layout, policy, now=LATER)


def names(plan: Plan, rule: str = "checkpoints") -> set[str]:
    return {item.path.name for item in plan.items if item.rule == rule}


def epochs(*numbers: int) -> set[str]:
    return {f"checkpoint_epoch{number}.pt" for number in numbers}


def test_the_table_in_the_policy_has_the_defaults_of_the_code() -> None:
    said = dict(re.findall(r"^\| `(\w+\.\w+)` \| ([\d.]+) \|", (ROOT / "POLICY.md").read_text(), re.MULTILINE))
    defaults = {
        f"{rule}.{name}": value for rule, values in PolicyConfig().resolved().items() for name, value in values.items()
    }
    assert {key: float(value) for key, value in said.items()} == defaults


def test_a_plan_deletes_nothing_and_the_defaults_spare_what_is_young(lab: Layout) -> None:
    before = sorted(str(path) for path in lab.root.rglob("*"))
    assert make_plan(lab, PolicyConfig(), now=NOW).items == ()
    assert names(planned(lab))
    assert sorted(str(path) for path in lab.root.rglob("*")) == before


def test_the_two_newest_and_the_best_stay_and_everything_else_of_a_run_goes(lab: Layout) -> None:
    kept = {(old_run(lab).checkpoints / link).resolve().name for link in ("best.pt", "last.pt")} | epochs(6, 7)
    plan = planned(lab)
    assert names(plan) == epochs(*range(8)) - kept
    lineage = old_run(lab).lineage.read_bytes()
    cleaned = clean(lab, plan, now=lambda: NOW)
    assert {path.name for path in old_run(lab).checkpoints.glob("checkpoint_*")} == kept
    assert old_run(lab).lineage.read_bytes() == lineage
    assert (lab.checkpoints / "checkpoint_epoch0.pt").exists()
    events = [json.loads(line) for line in (lab.logs / "clean.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["deleting", "deleted"] * len(plan.items)
    assert "freed" in cleaned.as_text()
    assert planned(lab).items == (), "cleaning again finds nothing"


def test_a_damaged_checkpoint_does_not_count_among_those_that_are_kept(lab: Layout) -> None:
    path = old_run(lab).checkpoints / "checkpoint_epoch7.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    plan = planned(lab)
    assert names(plan).isdisjoint(epochs(5, 6, 7))
    assert "damaged, and newer than those that are whole" in plan.as_text()


def test_what_is_pinned_packaged_or_a_parent_stays(lab: Layout) -> None:
    free = sorted(names(planned(lab)))
    assert len(free) >= 4
    folder = old_run(lab).checkpoints
    package(layout=lab, checkpoint_path=folder / free[0], verification_rows=8)
    child = make_run(lab, "child_20260101_000000")
    child.lineage.write_text(json.dumps({"kind": "training", "parents": [lab.relative(folder / free[1])]}))
    plan = planned(lab)
    assert names(plan) == set(free[2:])
    assert {kept.why for kept in plan.kept} >= {"packaged", "something was made from it"}
    pin(lab, old_run(lab).run_id, why="the paper", now=NOW)
    assert names(planned(lab)) == set()
    assert unpin(lab, old_run(lab).run_id)
    assert names(planned(lab)) == set(free[2:])


def test_what_lies_in_another_tier_goes_on_protecting_what_it_names_also_unmounted(lab: Layout, tmp_path: Path) -> None:
    free, folder = sorted(names(planned(lab))), old_run(lab).checkpoints
    tier = tmp_path / "durable"
    tier.mkdir()
    for number, experiment in enumerate(("child", "grandchild")):
        child = make_run(lab, f"{experiment}_20260101_000000", experiment=experiment)
        parents = [lab.relative(folder / free[number])]
        child.lineage.write_text(json.dumps({"kind": "training", "parents": parents, "outputs": {}, "fingerprint": ""}))
    package(layout=lab, checkpoint_path=folder / free[2], verification_rows=8)
    for what in ("child_20260101_000000", "artifacts/runs/grandchild", f"artifacts/package/{package_of(lab)}"):
        move(lab, what, "durable", environment={"NEXA_DURABLE": str(tier)}, now=lambda: NOW)
    tier.rename(tmp_path / "unmounted")
    assert names(planned(lab)) == set(free[3:])


def package_of(lab: Layout) -> str:
    (path,) = lab.packages.iterdir()
    return path.name


def test_runs_of_an_experiment_that_lies_in_a_tier_are_not_cleaned_there(lab: Layout, tmp_path: Path) -> None:
    (tmp_path / "durable").mkdir()
    assert names(planned(lab))
    environment = {"NEXA_DURABLE": str(tmp_path / "durable")}
    move(lab, "artifacts/runs/test", "durable", environment=environment, now=lambda: NOW)
    assert names(planned(lab)) == set()
    move(lab, "artifacts/runs/test", "lab", environment=environment, now=lambda: NOW)
    move(lab, lab.relative(old_run(lab).checkpoints), "durable", environment=environment, now=lambda: NOW)
    assert not [item for item in planned(lab).items if item.run == old_run(lab)]


def test_what_cannot_be_read_stops_the_plan(lab: Layout) -> None:
    lab.packages.mkdir(parents=True)
    (lab.packages / "torn.tar.gz").write_bytes(b"half")
    with pytest.raises(UserError, match="nobody knows what it needs, so nothing is deleted"):
        planned(lab)
    (lab.packages / "torn.tar.gz").unlink()
    old_run(lab).lineage.write_text("{")
    with pytest.raises(UserError, match="nobody knows what it needs, so nothing is deleted"):
        planned(lab)


def test_a_run_that_is_being_written_to_is_left_alone_when_planned_and_when_deleted(lab: Layout) -> None:
    plan = planned(lab)
    (lab.run_manifests / f"{old_run(lab).run_id}.json").unlink()
    with hold(old_run(lab)):
        assert names(planned(lab)) == set()
        cleaned = clean(lab, plan, now=lambda: NOW)
        assert [item.path.name for item in cleaned.deleted if item.run and item.run.path == old_run(lab).path] == []
        assert names(plan) <= {path.name for path in old_run(lab).checkpoints.iterdir()}
        assert "spared" in cleaned.as_text()


def test_a_run_that_is_pinned_after_the_plan_was_made_is_left_alone(lab: Layout) -> None:
    plan = planned(lab)
    pin(lab, old_run(lab).run_id, why="a question came up", now=NOW)
    assert not [
        each for each in clean(lab, plan, now=lambda: NOW).deleted if each.run and each.run.path == old_run(lab).path
    ]
    assert names(plan) <= {path.name for path in old_run(lab).checkpoints.iterdir()}


def test_each_rule_takes_its_own_and_null_turns_it_off(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    partial = make_run(layout, "partial_20260101_000000")
    partial.lineage.unlink()
    make_run(layout, "failed_20260101_000000")
    started = make_run(layout, "started_20260101_000000")
    (started.checkpoints / "checkpoint_epoch0.pt").write_bytes(b"x")
    (started.checkpoints / ".checkpoint_epoch1.pt.4194303.partial").write_bytes(b"half")
    (started.checkpoints / f".checkpoint_epoch2.pt.{os.getpid()}.partial").write_bytes(b"being written")
    layout.logs.mkdir()
    (layout.logs / "started_20260101_000000.log").write_text("x\n")
    (layout.logs / "started_20260101_000000.pace.jsonl").write_text("{}\n")
    (layout.logs / "notes.txt").write_text("mine")
    (layout.logs / "wandb" / "offline-run-20260101_000000-started_20260101_000000").mkdir(parents=True)
    (layout.artifacts / "reproductions" / "started_20260101_000000").mkdir(parents=True)
    (layout.cache / "prepare" / "training_x").mkdir(parents=True)
    plan = make_plan(layout, PolicyConfig(), now=LATER)
    assert {(item.rule, item.path.name) for item in plan.items} == {
        ("folders", "partial_20260101_000000"),
        ("folders", "failed_20260101_000000"),
        ("temporary", ".checkpoint_epoch1.pt.4194303.partial"),
        ("logs", "started_20260101_000000.log"),
        ("logs", "started_20260101_000000.pace.jsonl"),
        ("logs", "offline-run-20260101_000000-started_20260101_000000"),
        ("reproductions", "started_20260101_000000"),
        ("cache", "training_x"),
    }
    rules = ("folders", "temporary", "logs", "reproductions", "cache")
    assert planned(layout, **{rule: {"after_days": None} for rule in rules}).items == ()
    clean(layout, plan, now=lambda: NOW)
    assert sorted(path.name for path in (layout.runs / "a").iterdir()) == ["started_20260101_000000"]


def test_checkpoints_are_ordered_by_their_steps_whatever_their_names(lab: Layout) -> None:
    training = {"epochs": 2, "checkpoints": {"every_steps": 9}}
    folder = run(make_config("mlp", training=training), layout=lab).run.checkpoints
    paths = list(folder.glob("checkpoint_*"))
    steps = [23 * (int(re.sub(r"\D", "", path.name)) + 1) if "epoch" in path.name else int(re.sub(r"\D", "", path.name))
             for path in newest_first(paths)]  # fmt: skip
    assert len(steps) == 3
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("checkpoints.keep_newest=1", "greater than or equal to 2"),
        ("checkpoints.after_dys=1", "Did you mean 'checkpoints.after_days'?"),
    ],
)
def test_a_policy_that_is_none_is_refused(override: str, says: str) -> None:
    with pytest.raises(UserError) as refused:
        load_policy(None, overrides=[override])
    assert says in str(refused.value)


def test_the_command_plans_deletes_with_yes_and_two_at_once_are_refused(lab: Layout, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("checkpoints: {after_days: 0}\n")

    def nexa_clean(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "scripts.cli", "clean", "--config", str(policy), *arguments]
        environment = {**os.environ, "NEXA_ROOT": str(lab.root)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    plan = nexa_clean()
    assert plan.stdout.splitlines()[-1] == "nothing was deleted; nexa clean --yes does it"
    done = json.loads(nexa_clean("--yes", "--json").stdout)
    assert done["num_deleted"] == len(done["items"]) > 0
    with (lab.logs / "clean.jsonl").open() as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        refused = nexa_clean("--yes")
    assert (refused.returncode, "Another process is cleaning" in refused.stderr) == (2, True)
