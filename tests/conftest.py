"""Finished runs and packages that several test modules start from; each is made once a session and copied for each test."""

import os
import shutil
import tarfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Before torch is imported: several test processes share few cores, and tiny models are slower on many threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from nexa_core.manifest import Manifest, list_manifests
from nexa_core.paths import Layout
from nexa_core.runs import RunFolder
from nexa_models import numerics
from nexa_ops.package import package
from nexa_train.train import run
from tests.browser import Browser, find_chromium, start_browser
from tests.labs import make_config, make_lab, write_config
from tests.postgres import Postgres, find_postgres, start_postgres
from tests.storages import Storage, TestBucket, start

FINISHED_MODELS = ("mlp", "text_classifier", "causal_lm")

Files = dict[str, bytes]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if find_chromium() is None:
        reason = "no Chromium here: apt-get install --no-install-recommends chromium, or NEXA_CHROMIUM=<program>"
        for item in items:
            if item.get_closest_marker("browser"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def any_processor_has_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without its arithmetic emulates it to the same rounding, which is slower and all the same to a test."""
    monkeypatch.setattr(numerics, "has_bfloat16", lambda device: True)


@dataclass(frozen=True)
class FinishedLab:
    """A laboratory with one finished run of each of `FINISHED_MODELS`, and the package of each."""

    layout: Layout

    @property
    def root(self) -> Path:
        return self.layout.root

    def manifest(self, model: str) -> Manifest:
        return next(manifest for manifest in list_manifests(self.layout) if manifest["model"] == model)

    def run(self, model: str) -> RunFolder:
        return RunFolder(self.layout.absolute(self.manifest(model)["run_dir"]))

    def checkpoint(self, model: str) -> Path:
        """The run's result."""
        return self.layout.absolute(self.manifest(model)["checkpoint"])

    def config(self, model: str) -> Path:
        """A config file that describes the run."""
        return self.root / f"{model}.yaml"

    def package(self, model: str) -> Path:
        return self.layout.packages / f"{self.manifest(model)['run_id']}.tar.gz"

    def files(self) -> set[str]:
        """Every file there is, to see that nothing was written."""
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*")}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a laboratory with prepared datasets, for reading only."""
    root = tmp_path_factory.mktemp("prepared")
    make_lab(root)
    return root


@pytest.fixture
def lab(prepared: Path, tmp_path: Path) -> Layout:
    """A laboratory of the test's own with the prepared datasets."""
    shutil.copytree(prepared, tmp_path / "lab")
    return Layout(tmp_path / "lab")


@pytest.fixture(scope="session")
def pristine_lab(tmp_path_factory: pytest.TempPathFactory) -> FinishedLab:
    """For reading only; a test that writes takes `finished_lab`."""
    lab = FinishedLab(make_lab(tmp_path_factory.mktemp("finished") / "lab"))
    for model in FINISHED_MODELS:
        config = make_config(model)
        run(config, layout=lab.layout, config_path=write_config(lab.config(model), config))
        package(layout=lab.layout, checkpoint_path=lab.checkpoint(model))
    return lab


@pytest.fixture
def finished_lab(pristine_lab: FinishedLab, tmp_path: Path) -> FinishedLab:
    """A finished laboratory of the test's own."""
    shutil.copytree(pristine_lab.root, tmp_path / "lab", symlinks=True)
    return FinishedLab(Layout(tmp_path / "lab"))


@pytest.fixture(scope="session")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Storage]:
    """An S3 storage on loopback."""
    with start(tmp_path_factory.mktemp("storage") / "seaweed") as storage:
        yield storage


@pytest.fixture
def bucket(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> TestBucket:
    """An empty bucket, which the environment leads to."""
    for name, value in storage.environment.items():
        monkeypatch.setenv(name, value)
    bucket = TestBucket(storage, f"bucket-{uuid.uuid4().hex[:12]}")
    storage.client().create_bucket(Bucket=bucket.name)
    return bucket


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """A real browser, for tests with the marker of its name."""
    with start_browser(tmp_path_factory.mktemp("browser") / "profile") as browser:
        yield browser


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL on loopback, for tests that each take other names in it."""
    if find_postgres() is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    with start_postgres(tmp_path_factory.mktemp("postgres") / "server") as server:
        yield server


@pytest.fixture
def postgres_of_its_own(tmp_path: Path) -> Iterator[Postgres]:
    """One that the test may stop."""
    if find_postgres() is None:
        pytest.skip("no PostgreSQL here: apt-get install postgresql")
    with start_postgres(tmp_path / "server") as server:
        yield server


def read_package(tarball: Path) -> Files:
    """The files of a package by name."""
    with tarfile.open(tarball) as tar:
        return {Path(member.name).name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
