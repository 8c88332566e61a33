"""Verifying: packages of others are taken for hostile, refused in words, and never run code of their maker's."""

import gzip
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nexa_core.errors import GateError, UserError
from nexa_models.checkpoint import load_checkpoint, model_of
from nexa_models.weights import check_fit, read_weights, weights_to_bytes
from nexa_ops import archive, contents
from nexa_ops.archive import SUMS, unpack
from nexa_ops.verify import Report, verify
from tests.conftest import Files, FinishedLab, read_package


def write_package(path: Path, files: Files) -> Path:
    """A package of these files whose SHA256SUMS holds."""
    archive.pack(path, "made", {name: data for name, data in files.items() if name != SUMS})
    return path


def write_members(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    return made


@pytest.fixture(scope="module")
def mlp_files(pristine_lab: FinishedLab) -> Files:
    return read_package(pristine_lab.package("mlp"))


def edit_json(files: Files, name: str, change: Callable[[Any], Any]) -> Files:
    return {**files, name: json.dumps(change(json.loads(files[name]))).encode()}


HOSTILE_MEMBERS = {
    "a path upwards": [member("made/../../evil")],
    "a path that begins upwards": [member("../evil")],
    "an absolute path": [member("/tmp/evil")],
    "a hidden file": [member("made/.evil")],
    "a file outside the folder": [member("evil")],
    "a deeper file": [member("made/a/evil")],
    "a name with a line end": [member("made/evil\n")],
    "a folder": [member("made", tarfile.DIRTYPE)],
    "a symbolic link": [member("made/evil", tarfile.SYMTYPE, "/etc/passwd")],
    "a hard link": [member("made/evil", tarfile.LNKTYPE, "made/README.md")],
    "a device": [member("made/evil", tarfile.CHRTYPE)],
    "a pipe": [member("made/evil", tarfile.FIFOTYPE)],
    "a name twice": [member("made/evil"), member("made/evil")],
    "a name twice but for case": [member("made/evil"), member("made/EVIL")],
    "two folders": [member("made/a"), member("other/b")],
    "too many files": [member(f"made/{index}") for index in range(65)],
    "nothing": [],
}


@pytest.mark.parametrize("kind", HOSTILE_MEMBERS)
def test_a_hostile_tarball_is_refused_and_nothing_gets_out(tmp_path: Path, kind: str) -> None:
    tarball = write_members(tmp_path / "p.tar.gz", *((each, b"") for each in HOSTILE_MEMBERS[kind]))
    into = tmp_path / "deep" / "into"
    into.mkdir(parents=True)
    with pytest.raises(GateError, match=r"p\.tar\.gz"):
        unpack(tarball, into)
    outside = {path.name for path in tmp_path.rglob("*") if not path.is_relative_to(into)}
    assert outside == {"p.tar.gz", "deep"}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("where", ["a file", "a header", "sparse"])
def test_a_bomb_is_refused_before_it_fills_disk_or_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    monkeypatch.setattr(archive, "SLACK_BYTES", 2**20)
    big, plain = bytes(64 * 2**20), io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as tar:
        kind = {"a file": tarfile.REGTYPE, "a header": tarfile.GNUTYPE_LONGNAME, "sparse": tarfile.GNUTYPE_SPARSE}
        bomb = member("made/evil", kind[where])
        bomb.size = len(big)
        tar.addfile(bomb, io.BytesIO(big))
    tarball = tmp_path / "p.tar.gz"
    tarball.write_bytes(gzip.compress(plain.getvalue()))
    assert tarball.stat().st_size < 2**17
    with pytest.raises(GateError, match=r"unpacks to more than|not a plain file"):
        unpack(tarball, tmp_path / "into")
    assert not [path for path in (tmp_path / "into").rglob("*") if path.is_file()]


def test_a_cut_package_is_refused_wherever_it_is_cut(pristine_lab: FinishedLab, tmp_path: Path) -> None:
    whole = pristine_lab.package("mlp").read_bytes()
    for left in (0, 1, 10, 100, len(whole) // 2, len(whole) - 300, len(whole) - 8, len(whole) - 1):
        (tmp_path / "p.tar.gz").write_bytes(whole[:left])
        with pytest.raises(GateError, match=r"p\.tar\.gz"):
            unpack(tmp_path / "p.tar.gz", tmp_path / str(left))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_refused(pristine_lab: FinishedLab, tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(pristine_lab.package("mlp").read_bytes())
    # The first ten bytes are gzip's header: its time and system mean nothing.
    at = data.draw(st.integers(10, len(whole) - 1))
    whole[at] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "p.tar.gz").write_bytes(whole)
    shutil.rmtree(tmp_path / "into", ignore_errors=True)
    try:
        folder = unpack(tmp_path / "p.tar.gz", tmp_path / "into")
    except GateError:
        return
    # Nor do the bits that fill up the last compressed byte, before the checksum and the size.
    assert at == len(whole) - 9
    assert files_of(folder) == read_package(pristine_lab.package("mlp"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_flipped_bit_in_the_tarball_below_the_compression_is_refused(
    pristine_lab: FinishedLab, tmp_path: Path, data: st.DataObject
) -> None:
    """Or changes nothing that is unpacked, such as a member's time."""
    plain = bytearray(gzip.decompress(pristine_lab.package("mlp").read_bytes()))
    plain[data.draw(st.integers(0, len(plain) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    (tmp_path / "p.tar.gz").write_bytes(gzip.compress(bytes(plain), 1))
    shutil.rmtree(tmp_path / "into", ignore_errors=True)
    try:
        folder = unpack(tmp_path / "p.tar.gz", tmp_path / "into")
    except GateError:
        return
    assert files_of(folder) == read_package(pristine_lab.package("mlp"))


def files_of(folder: Path) -> Files:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_what_is_no_gzip_or_has_bytes_behind_its_end_is_refused(pristine_lab: FinishedLab, tmp_path: Path) -> None:
    whole = pristine_lab.package("mlp").read_bytes()
    for data in (b"", b"hello", gzip.compress(b"hello"), whole + b"x", whole + gzip.compress(b"x")):
        (tmp_path / "p.tar.gz").write_bytes(data)
        with pytest.raises(GateError, match=r"p\.tar\.gz"):
            unpack(tmp_path / "p.tar.gz", tmp_path / "into")
    with pytest.raises(UserError, match=r"No package .*none\.tar\.gz\. There: p\.tar\.gz"):
        unpack(tmp_path / "none.tar.gz", tmp_path / "into")


def test_files_and_sums_have_to_agree(mlp_files: Files, tmp_path: Path) -> None:
    def verify_members(files: Files) -> None:
        verify(write_members(tmp_path / "p.tar.gz", *((member(f"made/{name}"), data) for name, data in files.items())))

    with pytest.raises(GateError, match="has no SHA256SUMS"):
        verify_members({name: data for name, data in mlp_files.items() if name != SUMS})
    with pytest.raises(GateError, match=r"disagree on: extra\.txt"):
        verify_members({**mlp_files, "extra.txt": b""})
    with pytest.raises(GateError, match=r"disagree on: README\.md"):
        verify_members({name: data for name, data in mlp_files.items() if name != "README.md"})
    with pytest.raises(GateError, match=r"README\.md does not have the digest"):
        verify_members({**mlp_files, "README.md": b"better than it is"})


def verify_edited(tmp_path: Path, files: Files, **arguments: Any) -> Report:
    return verify(write_package(tmp_path / "edited.tar.gz", files), **arguments)


def test_a_pickle_in_a_package_is_refused_unread(mlp_files: Files, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "evil"),)

    for name in ("model.pkl", "pytorch_model.bin"):
        with pytest.raises(GateError, match=rf"\['{name}'\] that no package has"):
            verify_edited(tmp_path, {**mlp_files, name: pickle.dumps(Evil())})
    with pytest.raises(GateError, match=r"model\.safetensors cannot be read"):
        verify_edited(tmp_path, {**mlp_files, "model.safetensors": pickle.dumps(Evil())})
    assert not (tmp_path / "evil").exists()


def test_altered_weights_fail_their_own_proof_in_a_fresh_process(mlp_files: Files, tmp_path: Path) -> None:
    weights = safetensors.torch.load(mlp_files["model.safetensors"])
    weights["layers.0.weight"][0, :] += 0.5
    tarball = write_package(
        tmp_path / "p.tar.gz",
        {**mlp_files, "model.safetensors": safetensors.torch.save(weights, metadata={"tied": "{}"})},
    )
    done = subprocess.run(
        [sys.executable, "-m", "scripts.cli", "verify", tarball, "--json"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    checks = {check["name"]: check["passed"] for check in json.loads(done.stdout)["checks"]}
    assert checks["files"]
    assert not checks["predictions"]
    assert "does not do what it says: predictions" in done.stderr


def test_weights_that_are_no_numbers_are_refused(mlp_files: Files, tmp_path: Path) -> None:
    weights = {
        name: torch.full_like(weight, float("nan"))
        for name, weight in safetensors.torch.load(mlp_files["model.safetensors"]).items()
    }
    with pytest.raises(GateError, match="NaN or infinite"):
        verify_edited(tmp_path, {**mlp_files, "model.safetensors": safetensors.torch.save(weights)})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weights: weights.pop("layers.0.bias"), "'layers.0.bias' has to be float32 of shape .* and is absent"),
        (lambda weights: weights.update(more=torch.zeros(1)), "'more' has to be absent"),
        (lambda weights: weights.update({"layers.0.bias": torch.zeros(3)}), r"and is float32 of shape \[3\]"),
        (lambda weights: weights.update({"layers.0.bias": torch.zeros(16).double()}), "and is float64"),
    ],
)
def test_weights_of_another_model_are_named(
    mlp_files: Files, tmp_path: Path, change: Callable[[Any], Any], says: str
) -> None:
    weights = safetensors.torch.load(mlp_files["model.safetensors"])
    change(weights)
    with pytest.raises(GateError, match=says):
        verify_edited(tmp_path, {**mlp_files, "model.safetensors": safetensors.torch.save(weights)})


def test_tied_weights_are_stored_once_and_come_back_tied(pristine_lab: FinishedLab, tmp_path: Path) -> None:
    model = model_of(load_checkpoint(pristine_lab.checkpoint("causal_lm")))
    path = tmp_path / "model.safetensors"
    path.write_bytes(weights_to_bytes(model))
    stored, read = safetensors.torch.load(path.read_bytes()), read_weights(path)
    assert len(stored) < len(model.state_dict()) == len(read)
    check_fit(model, read)
    assert all(torch.equal(read[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("tied", ["[]", "{", '{"a": 1}', '{"a": "none"}', "[" * 100_000])
def test_malformed_ties_are_refused(mlp_files: Files, tmp_path: Path, tied: str) -> None:
    weights = safetensors.torch.load(mlp_files["model.safetensors"])
    with pytest.raises(GateError, match=r"model\.safetensors cannot be read"):
        verify_edited(tmp_path, {**mlp_files, "model.safetensors": safetensors.torch.save(weights, {"tied": tied})})


def with_model(files: Files, name: str) -> Files:
    return edit_json(files, "model.json", lambda value: {**value, "model": {"name": name, "parameters": {}}})


def test_trusted_code_still_has_to_fit_the_weights(
    mlp_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "other_module.py").write_text("import torch\ndef build(spec): return torch.nn.Linear(64, 10)\n")
    with pytest.raises(GateError, match="The weights are not this model's: 'bias' has to be float32"):
        verify_edited(tmp_path, with_model(mlp_files, "other_module:build"), trusted="other_module:build")


def test_code_named_by_a_package_is_never_imported_without_trust(
    mlp_files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w')\ndef build(spec): ...\n")
    for name in ("os:system", "evil_module:build"):
        files = with_model(mlp_files, name)
        for trusted in (None, "other:name"):
            with pytest.raises(UserError, match=f"To import and run it: --trust {name}"):
                verify_edited(tmp_path, files, trusted=trusted)
    assert not (tmp_path / "imported").exists()
    with pytest.raises(UserError, match=r"has to return a torch\.nn\.Module"):
        verify_edited(tmp_path, files, trusted="evil_module:build")
    assert (tmp_path / "imported").exists(), "the trap works"


MALFORMED = [
    ("model.json", lambda value: {**value, "more": 1}, "more: Extra inputs are not permitted"),
    ("model.json", lambda value: {**value, "labels": "abc"}, "labels"),
    ("model.json", lambda value: {**value, "labels": [str(index) for index in range(9)]}, "layers.3"),
    ("model.json", lambda value: {**value, "labels": ["1", "1"]}, "labels"),
    ("model.json", lambda value: {**value, "labels": ["1"]}, "labels"),
    ("model.json", lambda value: {**value, "kind": "text"}, "does not read rows of text"),
    ("model.json", lambda value: {**value, "feature_shape": [10**9, 10**9]}, "model.json"),
    ("model.json", lambda value: {**value, "feature_shape": [0]}, "feature_shape"),
    ("model.json", lambda value: {**value, "feature_shape": None}, "shape"),
    ("model.json", lambda value: {**value, "feature_shape": [63]}, "layers.0.weight"),
    ("model.json", lambda value: {**value, "model": {"name": "mlq"}}, "model"),
    ("model.json", lambda value: {**value, "model": {"name": ["mlp"]}}, "model"),
    ("model.json", lambda value: {**value, "model": "mlp"}, "model"),
    ("model.json", lambda value: {**value, "model": {"name": "cnn", "parameters": {}}}, "blocks.0.bias"),
    ("model.json", lambda value: {**value, "model": {"name": "text_classifier"}}, "does not read rows of features"),
    ("model.json", lambda value: [], "model.json"),
    ("proof.json", lambda value: {**value, "more": 1}, "more: Extra inputs are not permitted"),
    ("proof.json", lambda value: {**value, "metric": "auroc"}, "has to be 'accuracy'"),
    ("proof.json", lambda value: {**value, "num_rows": 10**12}, "num_rows"),
    ("proof.json", lambda value: {**value, "num_rows": 3}, "has 181 rows"),
    ("proof.json", lambda value: {**value, "batch_size": 0}, "batch_size"),
    ("proof.json", lambda value: {**value, "value": "high"}, "value"),
    ("proof.json", lambda value: None, "proof.json"),
    ("metrics.json", lambda value: [], "metrics.json"),
    ("metrics.json", lambda value: {"metrics": {"accuracy": 1}}, "has no metrics"),
]


@pytest.mark.parametrize(("name", "change", "says"), MALFORMED)
def test_a_malformed_description_is_refused_in_words(
    mlp_files: Files, tmp_path: Path, name: str, change: Callable[[Any], Any], says: str
) -> None:
    with pytest.raises(GateError, match=says):
        verify_edited(tmp_path, edit_json(mlp_files, name, change))


@pytest.mark.parametrize("name", ["model.json", "proof.json", "metrics.json"])
@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}'])
def test_what_is_no_json_is_refused_in_words(mlp_files: Files, tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(GateError, match=name):
        verify_edited(tmp_path, {**mlp_files, name: data})


@pytest.mark.parametrize("name", sorted(contents.REQUIRED - {SUMS}))
def test_a_missing_file_is_named(mlp_files: Files, tmp_path: Path, name: str) -> None:
    with pytest.raises(GateError, match=rf"lacks \['{name}'\]"):
        verify_edited(tmp_path, {other: data for other, data in mlp_files.items() if other != name})


def test_claims_that_the_model_does_not_keep_fail(mlp_files: Files, tmp_path: Path) -> None:
    def better(value: Any) -> Any:
        if isinstance(value["metrics"]["accuracy"], dict):
            value["metrics"]["accuracy"]["value"] = 0.999
        else:
            value["metrics"]["accuracy"] = 0.999
        return value

    boasting = edit_json(mlp_files, "metrics.json", better)
    assert "FAIL  records: metrics.json and manifest.json tell different" in verify_edited(tmp_path, boasting).as_text()
    boasting = edit_json(boasting, "manifest.json", better)
    assert "FAIL  records: metrics.json claims accuracy 0.999" in verify_edited(tmp_path, boasting).as_text()
    proof = edit_json(mlp_files, "proof.json", lambda value: {**value, "value": 0.999})
    assert "FAIL  accuracy: 0.88" in verify_edited(tmp_path, proof).as_text()
    config = mlp_files["config.yaml"].replace(b"dropout: 0.1", b"dropout: 0.2")
    assert config != mlp_files["config.yaml"]
    report = verify_edited(tmp_path, {**mlp_files, "config.yaml": config})
    assert "FAIL  records: config.yaml describes another" in report.as_text()
    for name in ("config.yaml", "manifest.json"):
        assert f"FAIL  records: {name}" in verify_edited(tmp_path, {**mlp_files, name: b"{}"}).as_text()


def edit_table(files: Files, name: str, change: Callable[[Any], Any]) -> Files:
    buffer = io.BytesIO()
    pq.write_table(change(pq.read_table(io.BytesIO(files[name]))), buffer)
    return {**files, name: buffer.getvalue()}


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("proof_rows.parquet", lambda table: table.drop_columns(["label"]), "has the columns"),
        ("proof_rows.parquet", lambda table: table.slice(1), "has 180 rows"),
        ("proof_predictions.parquet", lambda table: table.slice(1), "has 180 rows"),
        ("proof_predictions.parquet", lambda table: table.take(list(range(180, -1, -1))), "is of other rows"),
        ("proof_rows.parquet", lambda table: with_column(table, "label", "ten"), "does not know: \\['ten'\\]"),
        ("proof_rows.parquet", lambda table: with_column(table, "label", None), "rows without 'label'"),
        ("proof_rows.parquet", lambda table: with_column(table, "features", [1.0]), "lists of 64 numbers"),
        ("proof_rows.parquet", lambda table: with_column(table, "features", [None] * 64), "lists of 64 numbers"),
        ("proof_predictions.parquet", lambda table: with_column(table, "probabilities", [1.0]), "lists of 10 numbers"),
    ],
)
def test_a_malformed_proof_is_refused_in_words(
    mlp_files: Files, tmp_path: Path, name: str, change: Callable[[Any], Any], says: str
) -> None:
    with pytest.raises(GateError, match=says):
        verify_edited(tmp_path, edit_table(mlp_files, name, change))


def with_column(table: Any, name: str, value: Any) -> Any:
    index = table.column_names.index(name)
    return table.set_column(index, name, pa.array([value] * table.num_rows, table.schema.field(name).type))


def test_what_is_no_parquet_is_refused_in_words(mlp_files: Files, tmp_path: Path) -> None:
    for data in (b"", b"PAR1PAR1", mlp_files["proof_rows.parquet"][:-20]):
        with pytest.raises(GateError, match=r"proof_rows\.parquet cannot be read"):
            verify_edited(tmp_path, {**mlp_files, "proof_rows.parquet": data})


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b'{"version": "1.0"}'])
def test_a_malformed_tokenizer_is_refused_in_words(pristine_lab: FinishedLab, tmp_path: Path, data: bytes) -> None:
    files = read_package(pristine_lab.package("causal_lm"))
    with pytest.raises(GateError, match=r"tokenizer\.json"):
        verify_edited(tmp_path, {**files, "tokenizer.json": data})


@pytest.mark.parametrize(
    "parameters", [{"hidden_size": 2**40}, {"num_layers": 10**9}, {"num_heads": 3}, {"hidden_size": 17}]
)
def test_a_language_model_larger_than_its_weights_is_refused_before_memory_is_taken(
    pristine_lab: FinishedLab, tmp_path: Path, parameters: dict[str, int]
) -> None:
    def change(value: Any) -> Any:
        value["model"]["parameters"].update(parameters)
        return value

    files = edit_json(read_package(pristine_lab.package("causal_lm")), "model.json", change)
    with pytest.raises(GateError, match=r"model\.json|not this model's"):
        verify_edited(tmp_path, files)
