"""The notebook that distillation begins with: stored clean, run from top to bottom, its prompts those of `nexa prepare`."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from nexa_core import digests
from nexa_core.config import DataConfig, load_config
from nexa_core.errors import UserError
from nexa_core.paths import Layout, folder_with
from nexa_data.data_analysis.query_data import DataQuery
from nexa_data.prepare import prepare_dataset

ROOT = Path(__file__).parent.parent
NOTEBOOK = Path("nexa_data/data_analysis/distill_data_overview.ipynb")
INPUTS = Path("data/processed/distillation/teacher_inputs/teacher_inputs_v1.parquet")
NUM_PLOTS = 4


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh laboratory: configs, the notebook, and no data."""
    lab = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "configs", lab / "configs")
    (lab / NOTEBOOK).parent.mkdir(parents=True)
    shutil.copy(ROOT / NOTEBOOK, lab / NOTEBOOK)
    return lab


@pytest.fixture(scope="module")
def executed(lab: Path) -> Any:
    """The notebook, executed in the laboratory's root."""
    environment = os.environ.pop("NEXA_ROOT", None)
    try:
        notebook = nbformat.read(lab / NOTEBOOK, as_version=4)
        NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(lab)}}).execute()
    finally:
        os.environ.update({} if environment is None else {"NEXA_ROOT": environment})
    return notebook


def outputs_of(notebook: Any, mime: str) -> list[str]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [output.data[mime] for cell in cells for output in cell.outputs if mime in output.get("data", {})]


def test_it_is_stored_valid_and_without_outputs() -> None:
    notebook = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(cells) > 5
    assert [cell.id for cell in cells if cell.outputs or cell.execution_count is not None] == []
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}, "a version would change with whoever saved it last"


def test_every_plot_has_a_sentence_before_it_and_names_on_its_axes() -> None:
    cells = nbformat.read(ROOT / NOTEBOOK, as_version=4).cells
    plots = [index for index, cell in enumerate(cells) if "plt.subplots" in cell.source]
    assert len(plots) == NUM_PLOTS
    for index in plots:
        assert cells[index - 1].cell_type == "markdown"
        assert "." in cells[index - 1].source
        assert all(f"{name}=" in cells[index].source for name in ("xlabel", "ylabel", "title"))


def test_it_makes_the_prompts_that_prepare_makes(executed: Any, lab: Path, tmp_path: Path) -> None:
    config = load_config(ROOT / "configs" / "data.yaml", DataConfig)
    (inputs,) = [dataset for dataset in config.datasets if dataset.key == "teacher_inputs_v1"]
    made = prepare_dataset(inputs, Layout(tmp_path))
    assert (lab / INPUTS).read_bytes() == (tmp_path / INPUTS).read_bytes()
    manifest = Path("data/processed/distillation/manifests/teacher_inputs_v1.json")
    assert (lab / manifest).read_bytes() == (tmp_path / manifest).read_bytes()
    prompts = DataQuery(lab).get_teacher_inputs(version="v1")
    assert len(prompts) == made.num_rows["teacher_inputs"] > 1000


def test_it_shows_what_it_promises(executed: Any) -> None:
    said = "\n".join(outputs_of(executed, "text/markdown"))
    assert len(outputs_of(executed, "image/png")) == NUM_PLOTS
    for words in ("**teacher_inputs_v1** is made", "python -m nexa_distill.collect_teacher"):
        assert words in said
    streams = [
        output.text
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if output.output_type in ("stream", "error")
    ]
    assert streams == [], "warnings"


def test_from_the_shell_it_leaves_alone_what_stands(executed: Any, lab: Path) -> None:
    before = digests.of_tree((path for path in (lab / "data").rglob("*") if path.is_file()), lab)
    command = [Path(sys.executable).parent / "jupyter", "execute", NOTEBOOK, "--output=again"]
    environment = {key: value for key, value in os.environ.items() if key != "NEXA_ROOT"}
    subprocess.run(command, cwd=lab, env=environment, check=True, capture_output=True)
    again = nbformat.read(lab / NOTEBOOK.parent / "again.ipynb", as_version=4)
    assert "**teacher_inputs_v1** stands as asked" in "\n".join(outputs_of(again, "text/markdown"))
    assert digests.of_tree((path for path in (lab / "data").rglob("*") if path.is_file()), lab) == before


def test_the_root_is_found_from_within_a_laboratory_and_nowhere_else(lab: Path, tmp_path: Path) -> None:
    for folder in (lab, lab / NOTEBOOK.parent):
        assert folder_with("configs/data.yaml", folder) == lab.resolve()
    with pytest.raises(UserError, match=r"No laboratory around .*configs/data\.yaml"):
        folder_with("configs/data.yaml", tmp_path)
