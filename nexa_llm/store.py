"""Where answers lie, by the digest of everything that determines them, beside the ledger of the calls that brought them.

A call is written down before it is sent, and its answer before anything is made of it; both are on the disk when the method
that wrote them returns. Calls under way at once share one flush.
"""

import asyncio
import contextlib
import fcntl
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

from nexa_core import durable
from nexa_core.errors import NexaError, UserError
from nexa_core.paths import Layout

SCHEMA = """
create table if not exists answers (
    key text primary key, call text not null, latency_seconds real, raw blob not null
) without rowid;
create table if not exists calls (
    id text primary key, key text not null, purpose text not null, teacher text not null, sent_at real not null,
    reserved_picousd integer not null, state text not null default 'sent', picousd integer, prompt_tokens integer,
    completion_tokens integer, detail text
) without rowid;
drop index if exists calls_by_purpose;
create index if not exists calls_priced on calls (purpose, state, picousd, prompt_tokens, completion_tokens);
create index if not exists calls_sent on calls (teacher) where state = 'sent';
create table if not exists unusable (call text primary key, key text not null, raw blob not null) without rowid;
"""
FORMAT = 1
KEYS_A_QUESTION = 500
RESERVE_BYTES = 8 << 20
"""Held on the disk while calls are made: where it fills up, the answers under way, which are paid for, still find room."""
ROWS_A_STATEMENT = 128
"""Many rows in one statement: the interpreter is handed over once for all of them, and not once for each."""
BEGIN = (
    "insert into calls (id, key, purpose, teacher, sent_at, reserved_picousd) values {rows}",
    "(?, ?, ?, ?, ?, ?)",
)
MADE = (
    "insert into calls (id, key, purpose, teacher, sent_at, reserved_picousd, state, picousd) values {rows}",
    "(?, ?, ?, ?, ?, 0, 'answered', 0)",
)
KEEP = ("insert or ignore into answers (key, call, latency_seconds, raw) values {rows}", "(?, ?, ?, ?)")
SETTLE = (
    "with new (id, picousd, prompt_tokens, completion_tokens) as (values {rows}) update calls set state = 'answered', "
    "picousd = new.picousd, prompt_tokens = new.prompt_tokens, completion_tokens = new.completion_tokens from new "
    "where calls.id = new.id",
    "(?, ?, ?, ?)",
)
FAIL = (
    "with new (id, state, picousd, detail) as (values {rows}) update calls set state = new.state, picousd = new.picousd, "
    "detail = new.detail from new where calls.id = new.id",
    "(?, ?, ?, ?)",
)
SET_ASIDE = (
    "insert or replace into unusable (call, key, raw) select call, key, raw from answers where key in ({rows})",
    "?",
)
TAKE_OUT = ("delete from answers where key in ({rows})", "?")
IN_ORDER = (SETTLE, SET_ASIDE, TAKE_OUT, FAIL, BEGIN, MADE, KEEP)
"""An unusable answer is taken out before the next try's comes in."""
Statement = tuple[str, str]
"""With a place for rows, and what stands for each of them."""
Operation = tuple[Statement, Sequence[Any]]


@dataclass(frozen=True)
class Stored:
    """An answer as the server sent it."""

    raw: bytes
    latency_seconds: float | None
    call: str


@dataclass(frozen=True)
class Call:
    """A line of the ledger."""

    id: str
    key: str
    purpose: str
    reserved_picousd: int
    state: str
    """sent: under way, or cut off by a kill. answered. failed: not billed. unknown: cut off, so that it may have been billed."""
    picousd: int | None


@dataclass(frozen=True)
class Total:
    """What some calls have cost."""

    picousd: int
    unknown_picousd: int
    """Of it, for calls of which nobody can say whether they were billed: the most that they can have cost."""
    num_calls: int
    prompt_tokens: int
    completion_tokens: int


def store_path(layout: Layout) -> Path:
    return layout.processed / "distillation" / "store" / "answers.sqlite"


class Store:
    """The answers and the ledger of a laboratory; one process at a time adds to them.

    A context manager; the coroutines are for one event loop.
    """

    def __init__(self, path: Path):
        self._path = path
        self._operations: list[Operation] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._writing: asyncio.Task[None] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._lock = durable.open_lock(path.with_suffix(".lock"))
        self._reserve, self._is_full = path.with_suffix(".reserve"), False

    def __enter__(self) -> "Store":
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UserError(
                f"{self._path} is being added to by another process, which may be buying the same answers. Wait for "
                "it, or stop it."
            ) from None
        durable.reserve(self._reserve, RESERVE_BYTES)
        with _disk_told(self._path):
            self._db = sqlite3.connect(
                self._path,
                check_same_thread=False,
                isolation_level=None,
                cached_statements=len(IN_ORDER) * ROWS_A_STATEMENT,
            )
            self._read = sqlite3.connect(self._path)
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")
            self._db.execute("pragma wal_autocheckpoint = 4000")
            if self._db.execute("pragma user_version").fetchone()[0] not in (0, FORMAT):
                raise UserError(
                    f"{self._path} was made by another version of this software; use that, or move it away."
                )
            self._db.executescript(SCHEMA)
            self._db.execute(f"pragma user_version = {FORMAT}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.shutdown()
        self._read.close()
        self._db.close()
        durable.remove(self._reserve)
        self._lock.close()

    def get(self, keys: Sequence[str]) -> dict[str, Stored]:
        """The answers that there are, by key."""
        found: dict[str, Stored] = {}
        for start in range(0, len(keys), KEYS_A_QUESTION):
            some = keys[start : start + KEYS_A_QUESTION]
            marks = ",".join("?" * len(some))
            rows = self._read.execute(
                f"select key, raw, latency_seconds, call from answers where key in ({marks})", some
            )
            found.update((key, Stored(zlib.decompress(raw), latency, call)) for key, raw, latency, call in rows)
        return found

    def get_unusable(self, call: Call) -> bytes | None:
        """What came of a call and was set aside, if that was so."""
        row = self._read.execute("select raw from unusable where call = ?", (call.id,)).fetchone()
        return None if row is None else zlib.decompress(row[0])

    async def begin(self, call: Call, *, teacher: str, sent_at: float) -> None:
        """Write down that a request goes out.

        Raises:
            NexaError: the disk is full; what is under way can still be kept.
        """
        self._require_room()
        row = (call.id, call.key, call.purpose, teacher, sent_at, call.reserved_picousd)
        await self._write((BEGIN, row))

    async def keep(self, call: Call, raw: bytes, latency_seconds: float | None) -> None:
        """Write down what came back, as it came."""
        await self._write((KEEP, (call.key, call.id, latency_seconds, raw)))

    def settle(self, call: Call, picousd: int | None, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """Note what an answer cost; it goes to the disk with whatever is written next."""
        self._operations.append((SETTLE, (call.id, picousd, prompt_tokens, completion_tokens)))

    def set_aside(self, call: Call) -> None:
        """Note that what was kept of a call is no answer, so that it is asked for again; likewise."""
        self._operations += [(SET_ASIDE, (call.key,)), (TAKE_OUT, (call.key,))]

    def fail(self, call: Call, detail: str, *, picousd: int | None = 0, state: str = "failed") -> None:
        """Note that nothing came of a call, or nothing that can be used; likewise."""
        self._operations.append((FAIL, (call.id, state, picousd, detail[:500])))

    def put_batch(self, rows: Iterable[tuple[Call, bytes, float | None]], *, teacher: str, at: float) -> None:
        """Write down answers that cost nothing but time, all on the disk when it returns."""
        operations: list[Operation] = []
        for call, raw, latency_seconds in rows:
            operations.append((MADE, (call.id, call.key, call.purpose, teacher, at)))
            operations.append((KEEP, (call.key, call.id, latency_seconds, raw)))
        self._commit(operations)
        self._require_room()

    def price(self, purpose: str, teachers: Sequence[str], prompt_picousd: int, completion_picousd: int) -> None:
        """Give answers of these that were bought before their price was known what they cost by it, per token."""
        marks = ",".join("?" * len(teachers))
        with _disk_told(self._path):
            self._db.execute(
                "update calls set picousd = prompt_tokens * ? + completion_tokens * ? where purpose = ? and state = 'answered' "
                f"and picousd is null and prompt_tokens is not null and completion_tokens is not null and +teacher in ({marks})",
                (prompt_picousd, completion_picousd, purpose, *teachers),
            )

    def cut_off(self, teachers: Sequence[str] | None = None) -> list[Call]:
        """The calls, all or to one of these, that were under way when an earlier process was killed."""
        marks = "" if teachers is None else f" and teacher in ({','.join('?' * len(teachers))})"
        rows = self._read.execute(
            f"select id, key, purpose, reserved_picousd, state, picousd from calls where state = 'sent'{marks}",
            teachers or (),
        )
        return [Call(*row) for row in rows]

    def total(self, purpose: str) -> Total:
        """What the calls for `purpose` have cost; of those whose price is not known, nothing."""
        row = self._read.execute(
            "select coalesce(sum(picousd), 0), coalesce(sum(case when state = 'unknown' then picousd end), 0), count(*), "
            "coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0) from calls where purpose = ?",
            (purpose,),
        ).fetchone()
        return Total(*row)

    async def flush(self) -> None:
        """Wait until everything noted is on the disk."""
        await self._write()

    async def _write(self, *operations: Operation) -> None:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        self._operations += operations
        self._waiting.append(future)
        if self._writing is None or self._writing.done():
            self._writing = loop.create_task(self._write_on())
        await future

    async def _write_on(self) -> None:
        """Write what has come together while the last part was written, until there is nothing more."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            operations, waiting = self._operations, self._waiting
            self._operations, self._waiting = [], []
            try:
                await loop.run_in_executor(self._writer, self._commit, operations)
            except Exception as error:  # noqa: BLE001 -- told to all who wait
                for future in waiting:
                    if not future.done():
                        future.set_exception(error)
            else:
                for future in waiting:
                    if not future.done():
                        future.set_result(None)

    def _commit(self, operations: list[Operation]) -> None:
        with _disk_told(self._path):
            try:
                self._transact(operations)
            except sqlite3.OperationalError as error:
                if self._is_full or error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                    raise
                self._is_full = True
                durable.remove(self._reserve)
                self._transact(operations)

    def _transact(self, operations: list[Operation]) -> None:
        self._db.execute("begin immediate")
        try:
            for (text, places), rows in _by_statement(operations):
                for start in range(0, len(rows), ROWS_A_STATEMENT):
                    some = rows[start : start + ROWS_A_STATEMENT]
                    self._db.execute(text.format(rows=", ".join([places] * len(some))), list(chain(*some)))
            self._db.execute("commit")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("rollback")
            raise

    def _require_room(self) -> None:
        if self._is_full:
            raise NexaError(
                f"{self._path}: the disk is full. Every answer so far is kept; make room and run the same command again."
            )


def _by_statement(operations: list[Operation]) -> list[tuple[Statement, list[Sequence[Any]]]]:
    """All rows of a statement together: what is noted at once is of different calls, or comes in the statements' order."""
    found: dict[Statement, list[Sequence[Any]]] = {each: [] for each in IN_ORDER}
    for statement, row in operations:
        found[statement].append(row)
    found[KEEP] = [(*about, zlib.compress(raw, 1)) for *about, raw in found[KEEP]]  # here: it is the writer's thread
    return [(statement, rows) for statement, rows in found.items() if rows]


@contextlib.contextmanager
def _disk_told(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise NexaError(
            f"{path}: {error}. Answers stored before are kept; mend it and run the same command again."
        ) from None
    except sqlite3.DatabaseError as error:
        raise NexaError(f"{path}: {error}. Move it away and restore a copy of it, or buy its answers again.") from None
