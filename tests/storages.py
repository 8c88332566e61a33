"""A real S3 storage (SeaweedFS) on loopback, started once for the tests that need one."""

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ACCESS_KEY, SECRET_KEY = "sync-tests", "a-secret-of-the-tests"
WEED = Path(sys.executable).parent / "weed"
SECONDS_TO_START = 60
ONE_VOLUME_A_BUCKET = {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"}
"""It makes seven for each otherwise, which takes a second and leaves none to later buckets."""


@dataclass(frozen=True)
class Storage:
    """A running storage."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to find it."""
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A client that knows nothing of ours."""
        return _client(self.endpoint)


@functools.cache
def _client(endpoint: str) -> Any:
    import botocore.session
    from botocore.config import Config

    session = botocore.session.Session()
    session.set_credentials(ACCESS_KEY, SECRET_KEY)
    config = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 10})
    return session.create_client("s3", region_name="us-east-1", endpoint_url=endpoint, config=config)


@dataclass(frozen=True)
class TestBucket:
    """A bucket of a test's own."""

    __test__ = False

    storage: Storage
    name: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def another(self, suffix: str) -> "TestBucket":
        """One more empty bucket."""
        self.storage.client().create_bucket(Bucket=f"{self.name}-{suffix}")
        return TestBucket(self.storage, f"{self.name}-{suffix}")

    def remove(self) -> None:
        """Delete the bucket with all it holds."""
        client = self.storage.client()
        for key, _ in self.listing():
            client.delete_object(Bucket=self.name, Key=key)
        client.delete_bucket(Bucket=self.name)

    def put(self, key: str, data: bytes, **more: Any) -> None:
        self.storage.client().put_object(Bucket=self.name, Key=key, Body=data, **more)

    def listing(self) -> list[tuple[str, int]]:
        """Keys and sizes."""
        pages = self.storage.client().get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [(each["Key"], each["Size"]) for page in pages for each in page.get("Contents", [])]

    def objects(self) -> dict[str, bytes]:
        client = self.storage.client()
        return {key: client.get_object(Bucket=self.name, Key=key)["Body"].read() for key, _ in self.listing()}

    def head(self, key: str) -> dict[str, Any]:
        return dict(self.storage.client().head_object(Bucket=self.name, Key=key))

    def uploads(self) -> list[str]:
        """Keys of uploads that were begun and not ended."""
        return [
            each["Key"] for each in self.storage.client().list_multipart_uploads(Bucket=self.name).get("Uploads", [])
        ]


@contextlib.contextmanager
def start(folder: Path) -> Iterator[Storage]:
    """A storage whose data lies in `folder` and goes with it."""
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "data").mkdir(parents=True)
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    ports = _free_ports(8)
    master, master_rpc, volume, volume_rpc, filer, filer_rpc, s3, s3_rpc = ports
    options = {
        "dir": folder / "data", "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "filer": "true", "s3": "true",
        "master.port": master, "master.port.grpc": master_rpc, "master.volumeSizeLimitMB": 512,
        "volume.port": volume, "volume.port.grpc": volume_rpc, "volume.max": 256,
        "filer.port": filer, "filer.port.grpc": filer_rpc,
        "s3.port": s3, "s3.port.grpc": s3_rpc, "s3.port.iceberg": 0, "s3.port.lance": 0,
        "s3.iam": "false", "s3.config": folder / "s3.json",
    }  # fmt: skip
    command = [str(WEED), "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in options.items())]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, start_new_session=True, env={**os.environ, **ONE_VOLUME_A_BUCKET}
        )
    storage = Storage(f"http://127.0.0.1:{s3}")
    try:
        _wait_until_up(storage, server, folder / "log")
        yield storage
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # it takes ten seconds to end when it is asked to
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)
        for port in ports:
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _wait_until_up(storage: Storage, server: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(storage.endpoint, timeout=1)
        except urllib.error.HTTPError:  # it answers: without a key, nothing but no
            with contextlib.suppress(Exception):
                storage.client().create_bucket(Bucket="first")  # the first one waits for the volumes
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"the storage did not start:\n{log.read_text()[-3000:]}")
