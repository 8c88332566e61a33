"""Writing files: a reader sees the old bytes or the new ones."""

import ast
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nexa_core import durable

ROOT = Path(__file__).parent.parent


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write_text(path, "old")
    with pytest.raises(RuntimeError), durable.create(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with durable.create(pipe) as file:
        file.write(b"rows")
    assert os.read(reader, 9) == b"rows"
    os.close(reader)
    assert pipe.is_fifo()
    assert list(tmp_path.iterdir()) == [pipe]


def test_a_killed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    durable.write_text(path, "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from nexa_core import durable\n"
        "with durable.create(Path(sys.argv[1])) as file:\n"
        "    file.write(b'new'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    durable.remove_partial_files(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_numbers_that_json_has_no_word_for_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        durable.write_json(tmp_path / "file", {"loss": float("nan")})
    assert not (tmp_path / "file").exists()


def test_publishing_replaces_a_link_and_leaves_the_target_alone(tmp_path: Path) -> None:
    for name in ("one", "two"):
        durable.write_text(tmp_path / name, name)
        durable.publish(tmp_path / name, tmp_path / "links" / "newest")
        assert (tmp_path / "links" / "newest").read_text() == name
    assert (tmp_path / "links" / "newest").is_symlink()
    assert (tmp_path / "one").read_text() == "one"


def test_a_new_folder_is_given_out_once(tmp_path: Path) -> None:
    assert durable.make_new_folder(tmp_path / "a" / "run")
    assert not durable.make_new_folder(tmp_path / "a" / "run")


def test_secrets_of_the_environment_do_not_reach_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "abcdef0123456789")
    durable.write_json(tmp_path / "file", {"url": "https://user:abcdef0123456789@host"})
    assert (tmp_path / "file").read_text() == '{\n  "url": "https://user:[WANDB_API_KEY]@host"\n}\n'


def test_a_journal_keeps_whole_lines_and_cuts_what_a_kill_left_of_the_last(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2')
    journal = durable.Journal(path)
    assert journal.cut_bytes == 7
    journal.append([{"a": 3}, {"a": 4}])
    journal.close()
    assert path.read_bytes() == b'{"a": 1}\n{"a": 3}\n{"a": 4}\n'


def test_a_journals_last_line_without_its_end_is_kept_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}')
    journal = durable.Journal(path)
    journal.append([{"a": 3}])
    journal.close()
    assert (journal.cut_bytes, path.read_bytes()) == (0, b'{"a": 1}\n{"a": 2}\n{"a": 3}\n')


def test_a_journal_is_held_by_one_alone(tmp_path: Path) -> None:
    journal = durable.Journal(tmp_path / "journal.jsonl")
    with pytest.raises(BlockingIOError):
        durable.Journal(journal.path)
    journal.close()
    durable.Journal(journal.path).close()


@pytest.mark.parametrize("change", ["write", "replace"])
def test_a_journal_that_another_program_changes_takes_no_more_lines(tmp_path: Path, change: str) -> None:
    journal = durable.Journal(tmp_path / "journal.jsonl")
    journal.append([1])
    if change == "replace":
        durable.write_text(journal.path, "1\n")
    else:
        journal.path.write_text("1\n2\n")
    before = journal.path.read_bytes()
    with pytest.raises(OSError, match="another program has changed it"):
        journal.append([3])
    assert journal.path.read_bytes() == before


def test_a_journals_failed_lines_leave_nothing(tmp_path: Path) -> None:
    """The limit on a file's size stands for a full disk."""
    path = tmp_path / "journal.jsonl"
    code = (
        "import resource, signal, sys; from pathlib import Path; from nexa_core import durable\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "journal = durable.Journal(Path(sys.argv[1])); journal.append(['one'])\n"
        "try: journal.append(['two', 'x' * 200])\n"
        "except OSError as error: print(error.filename)\n"
        "journal.append(['three'])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=True, capture_output=True, text=True)
    assert done.stdout == f"{path}\n"
    assert path.read_text() == '"one"\n"three"\n'


WRITERS = {
    *("write_text", "write_bytes", "touch", "symlink_to", "hardlink_to", "mkdir", "rmdir", "unlink", "rename"),  # Path
    *("to_parquet", "to_csv", "to_json", "to_pickle", "save_file", "save_model", "save_pretrained", "savez", "tofile"),
    *("os.replace", "os.rename", "os.remove", "os.unlink", "os.makedirs", "os.mkdir", "os.symlink"),
    *("shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree", "shutil.move", "shutil.rmtree"),
}


def other_writes(code: str) -> list[str]:
    """The calls in some code that would write past `durable`."""
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    return [ast.unparse(call) for call in calls if _writes(call)]


def _writes(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    method = name.rpartition(".")[2]
    if name.startswith("durable."):
        return False
    positional = call.args[1:] if name == "open" else call.args  # the first is the file's name
    arguments = [*positional, *(keyword.value for keyword in call.keywords)]
    modes = [str(argument.value) for argument in arguments if isinstance(argument, ast.Constant)]
    opens_to_write = method == "open" and any(re.fullmatch(r"[rwaxbt+]*[wax+][rwaxbt+]*", mode) for mode in modes)
    return opens_to_write or name in WRITERS or ("." in name and method in WRITERS)


def test_nothing_writes_files_but_the_one_module() -> None:
    sources = [path for package in ROOT.glob("nexa_*") for path in package.rglob("*.py")]
    assert len(sources) > 30
    found = [
        f"{path.relative_to(ROOT)}: {call}"
        for path in sources
        if path.name != "durable.py"
        for call in other_writes(path.read_text())
    ]
    assert set(found) <= {
        # flock needs an open file; what its holder says of itself is written in place, for another file would have another lock
        "nexa_core/holder.py: open(os.open(_lock_path(run), os.O_RDWR | os.O_CREAT, 438), 'r+')",
        # both write to a buffer or an open file that `durable` gave out
        "nexa_ops/archive.py: gzip.GzipFile(filename='', mode='wb', fileobj=file, compresslevel=6, mtime=0)",
        "nexa_ops/archive.py: tarfile.open(fileobj=compressed, mode='w', format=tarfile.GNU_FORMAT)",
    }


@pytest.mark.parametrize(
    "code", ["open('x', 'w')", "path.write_text('x')", "os.replace(a, b)", "p.open(mode='ab')", "open('x', 'r+')"]
)
def test_the_search_for_other_writes_finds_them(code: str) -> None:
    assert other_writes(code)


@pytest.mark.parametrize("code", ["open('x', 'rb')", "'a'.replace('b', 'c')", "durable.write_text(path, 'x')"])
def test_the_search_for_other_writes_passes_what_writes_nothing(code: str) -> None:
    assert not other_writes(code)
