"""A real PostgreSQL for tests: a server of the test's own on loopback, with its data in a temporary folder."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

USER = "nobody"
SECONDS_TO_START = 60


def find_postgres() -> Path | None:
    """The folder of the server's programs."""
    found = shutil.which("initdb")
    newest = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return Path(found).resolve().parent if found else newest[-1].parent if newest else None


class Postgres:
    """A server that trusts everyone on this machine."""

    def __init__(self, folder: Path):
        programs = find_postgres()
        assert programs is not None
        self._programs, self._data, self._log = programs, folder / "data", folder / "server.log"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        folder.mkdir(parents=True)
        if os.geteuid() == 0:  # it refuses to be root's
            shutil.chown(folder, USER)
            for above in [folder, *folder.parents]:
                if above.stat().st_uid == 0 and not above.stat().st_mode & 0o001:
                    above.chmod(above.stat().st_mode | 0o011)
        self._run("initdb", "-D", str(self._data), "-U", "nexa", "-A", "trust", "--no-sync")

    @property
    def url(self) -> str:
        return f"postgresql://nexa@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        options = f"-p {self._port} -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        self._run("pg_ctl", "-D", str(self._data), "-l", str(self._log), "-w", "-o", options, "start")

    def stop(self) -> None:
        """As in a crash: connections are cut, and nothing is finished."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        if os.geteuid() == 0:
            account = pwd.getpwnam(USER)
            changed = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        else:
            changed = {}
        done = subprocess.run(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=self._log.parent.joinpath("out.txt").open("ab"),
            stderr=subprocess.STDOUT,
            timeout=SECONDS_TO_START,
            check=False,
            **changed,  # type: ignore[call-overload]
        )
        assert done.returncode == 0, (self._log.parent / "out.txt").read_text()


@contextlib.contextmanager
def start_postgres(folder: Path) -> Iterator[Postgres]:
    """A running server."""
    server = Postgres(folder)
    server.start()
    try:
        yield server
    finally:
        with contextlib.suppress(AssertionError):  # a test may have stopped it
            server.stop()
        time.sleep(0)
