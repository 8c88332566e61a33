"""The README is true: its tree, its own-file example, its links; and so is the configuration page."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.make_config_reference import reference

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NEXA = Path(sys.executable).parent / "nexa"


def test_the_two_commands_stand_at_the_top() -> None:
    top = README.partition("```bash")[2].partition("```")[0]
    assert re.findall(r"^make \w+", top, re.MULTILINE) == ["make demo", "make test"]


def test_the_file_tree_names_every_folder_and_no_other() -> None:
    tree = set(re.findall(r"^(\w+)/  ", README, re.MULTILINE))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    folders = {line.partition("/")[0] for line in tracked.splitlines() if "/" in line and not line.startswith(".")}
    assert tree == folders


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            if link.startswith("https://"):
                continue  # tests need no network
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_configuration_page_is_current() -> None:
    assert (ROOT / "docs" / "configuration.md").read_text() == reference()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_users_own_file_goes_all_the_way(tmp_path: Path) -> None:
    """The README's two files and six commands, on a small table of the same form."""
    draw = random.Random(0)
    topics = {"1": ["goal", "match", "team", "coach"], "2": ["market", "stock", "bank", "price"]}
    (tmp_path / "data" / "raw").mkdir(parents=True)
    with (tmp_path / "data" / "raw" / "news.csv").open("w") as file:
        for index in range(1600):
            label = draw.choice(list(topics))
            words = draw.choices(topics[label], k=5)
            print(f'"{label}","{words[0]} {index}","{" ".join(words)}, said ""x"""', file=file)
    (tmp_path / "configs").mkdir()
    names = re.findall(r"^`(configs/\w+\.yaml)`:$", README, re.MULTILINE)
    for name, text in zip(names, blocks("yaml"), strict=True):
        (tmp_path / name).write_text(text)
    (tmp_path / "rows.jsonl").write_text(
        '{"title": "team", "text": "the team and the coach"}\n{"title": "bank", "text": "a bank and its stock"}\n'
    )
    (commands,) = (block for block in blocks("bash") if "news_data" in block)
    environment = {**os.environ, "PATH": f"{NEXA.parent}:{os.environ['PATH']}"}
    environment.pop("NEXA_ROOT", None)
    small = "--override training.num_threads=1 --override model.parameters.vocabulary.num_buckets=4096"
    for line in commands.splitlines():
        command = line.partition(" #")[0].replace("train --config", f"train {small} --config")
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert [answer["prediction"] for answer in answers] == ["1", "2"]


@pytest.mark.parametrize(
    "page", [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md"], ids=lambda page: page.name
)
def test_every_setting_a_page_names_exists(page: Path) -> None:
    known = reference()
    for key in re.findall(r"`(?:training|evaluation|data|model|tracking)\.(?:\w+\.)*(\w+)`", page.read_text()):
        assert f"`{key}`" in known, key
