"""The doctor: everything needed is found here, and what is missing is named."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nexa_core.errors import GateError
from nexa_core.paths import Layout
from nexa_ops.doctor import examine


def test_a_sound_machine_passes_and_nothing_is_left_behind(tmp_path: Path) -> None:
    report = examine(Layout(tmp_path / "not" / "there" / "yet"))
    report.require_pass()
    assert "everything needed is here" in report.as_text()
    assert {"python", "packages", "cpu", "memory", "gpu", "disk", "writable"} <= {each.name for each in report.findings}
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "artifacts").write_text("a file where a folder should be")
    report = examine(Layout(tmp_path))
    bad = [finding for finding in report.findings if not finding.passed]
    assert [finding.says for finding in bad] == [f"{tmp_path / 'artifacts'}: Not a directory"]
    with pytest.raises(GateError, match="not ready: writable"):
        report.require_pass()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_root_of_another_user_is_not_writable(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from nexa_core.paths import Layout\n"
        "from nexa_ops.doctor import examine\n"
        "import torch; os.setuid(65534)\n"
        "print(examine(Layout(Path(sys.argv[1]))).as_text())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.count("BAD  writable") == 4
    assert "Permission denied" in done.stdout


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    """An installed NexaCompute that declares a package which is not here."""
    info = tmp_path / "nexacompute-9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: nexacompute\nVersion: 9\nRequires-Dist: no-such-package>=1\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "scripts.cli", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        env=environment(PYTHONPATH=str(tmp_path), NEXA_ROOT=str(tmp_path)),
    )
    assert done.returncode == 3, done.stderr
    assert "BAD  packages   no-such-package is not installed; run: pip install -r requirements.txt" in done.stdout


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, **changes}
