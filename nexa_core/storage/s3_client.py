"""Connections to a bucket: obstore for its speed, botocore for the AWS credential chain and what obstore cannot say."""

import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from nexa_core.errors import NexaError, UserError
from nexa_core.redact import redact

if TYPE_CHECKING:
    from obstore.store import S3Store

DIGEST_NAME = "sha256"
"""The metadata of an object that states the digest of its bytes."""
MAX_CONNECTIONS = 128
TRIES = 5
SECONDS_TO_CONNECT = 10
SECONDS_OF_SILENCE = 60
URL = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?(?:/[\w./~-]*)?", re.ASCII)
BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
"""What obstore takes without a panic, and a bucket may be called."""
NO_PREFIX = "nexa-sync/is-the-bucket-there"
"""Of no key: a listing of it costs a storage nothing."""
NO_CREDENTIALS = (
    "No AWS credentials were found. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the shell or in .env.local, "
    "or AWS_PROFILE to a profile of ~/.aws; `aws configure list` shows what is found."
)


class Clients:
    """Two clients of one bucket with the same credentials, region and endpoint.

    botocore takes longer to import than many a sync, so it is only asked for what obstore cannot say.
    """

    def __init__(self, fast: "S3Store", endpoint: str, make_whole: Callable[[], Any]):
        self.fast, self.endpoint = fast, endpoint
        self._make_whole, self._lock = make_whole, threading.Lock()
        self._whole: Any = None

    @property
    def whole(self) -> Any:
        """botocore's client: multipart uploads with conditions, keys that obstore cannot name."""
        with self._lock:
            if self._whole is None:
                self._whole = self._make_whole()
            return self._whole

    def begin_whole(self) -> None:
        """Have it made beside other work; who asks for it is told what went wrong."""

        def make() -> None:
            with contextlib.suppress(Exception):
                _ = self.whole

        threading.Thread(target=make, daemon=True).start()


def connect(bucket: str, endpoint: str | None, environment: Mapping[str, str] = os.environ) -> Clients:
    """Find credentials, region and endpoint as the AWS tools do, and see that the bucket is there.

    Raises:
        UserError: there are no credentials, or they are refused, or there is no such bucket.
        NexaError: the endpoint does not answer.
    """
    return _by_environment(bucket, endpoint, environment) or _by_session(bucket, endpoint)


def _by_environment(bucket: str, endpoint: str | None, environment: Mapping[str, str]) -> Clients | None:
    """Clients made of what the environment says, without botocore, which would take the same; None where it does not say all."""
    given = endpoint or environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    key, secret, region = (environment.get(name) for name in names)
    elsewhere = {"AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS"} & environment.keys()
    if not (given and _is_url(given) and BUCKET.fullmatch(bucket) and key and secret and region) or elsewhere:
        return None
    said = _Said(key, secret, environment.get("AWS_SESSION_TOKEN"))
    try:
        next(iter(_obstore_client(bucket, said, region, given, tries=0).list(NO_PREFIX)), None)
    except Exception:  # noqa: BLE001 -- botocore tells it better
        return None
    return Clients(_obstore_client(bucket, said, region, given), given, lambda: _by_session(bucket, endpoint).whole)


def _is_url(text: str) -> bool:
    try:
        return URL.fullmatch(text) is not None and urlsplit(text).port != 0
    except ValueError:  # a port that there is not
        return False


def _by_session(bucket: str, endpoint: str | None) -> Clients:
    import botocore.session
    from botocore.exceptions import BotoCoreError

    try:
        session = botocore.session.Session()
        credentials = session.get_credentials()
        region = session.get_config_variable("region") or "us-east-1"
    except BotoCoreError as error:
        raise UserError(f"The AWS settings cannot be used: {error}") from None
    if credentials is None:
        raise UserError(NO_CREDENTIALS)
    client = _botocore_client(session, region, endpoint)
    with errors_told(f"s3://{bucket}", client.meta.endpoint_url):
        home = client.head_bucket(Bucket=bucket).get("BucketRegion") or region
        if home != region:
            client = _botocore_client(session, home, endpoint)
        fast = _obstore_client(bucket, credentials, home, client.meta.endpoint_url)
    return Clients(fast, client.meta.endpoint_url, lambda: client)


def _botocore_client(session: Any, region: str, endpoint: str | None) -> Any:
    from botocore.config import Config

    try:
        return session.create_client(
            "s3",
            region_name=region,
            endpoint_url=endpoint,
            config=Config(
                max_pool_connections=MAX_CONNECTIONS,
                connect_timeout=SECONDS_TO_CONNECT,
                read_timeout=SECONDS_OF_SILENCE,
                retries={"max_attempts": TRIES, "mode": "standard"},
                # Every request is signed with the SHA-256 of its bytes instead, which older servers check as well.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path", "payload_signing_enabled": True},
            ),
        )
    except ValueError as error:  # the message names the URL, which may come from the environment or a profile
        raise UserError(f"{error}. An endpoint is a URL like https://storage.example.com") from None


def _obstore_client(bucket: str, credentials: Any, region: str, endpoint: str, *, tries: int = TRIES) -> "S3Store":
    from datetime import timedelta

    from obstore.store import S3Store

    return S3Store(
        bucket,
        endpoint=endpoint,
        aws_endpoint_url_s3=endpoint,  # the variable of this name would win over `endpoint`
        region=region,
        credential_provider=_Credentials(credentials),
        skip_signature=False,
        virtual_hosted_style_request=False,
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=SECONDS_TO_CONNECT),
            "read_timeout": timedelta(seconds=SECONDS_OF_SILENCE),
            "timeout": timedelta(hours=1),  # of a whole request: a slow line is no fault
        },
        retry_config={"max_retries": tries, "retry_timeout": timedelta(minutes=5)},
    )


class _Said(NamedTuple):
    """Credentials that the environment states."""

    access_key: str
    secret_key: str
    token: str | None

    def get_frozen_credentials(self) -> "_Said":
        return self


class _Credentials:
    """botocore's credentials as obstore asks for them; botocore renews those that expire."""

    def __init__(self, credentials: Any):
        self._credentials = credentials

    def __call__(self) -> Any:
        from datetime import UTC, datetime, timedelta

        frozen = self._credentials.get_frozen_credentials()
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + timedelta(minutes=5),
        }


@contextlib.contextmanager
def errors_told(where: str, endpoint: str) -> Iterator[None]:
    """Turn what a storage says into one line; failed preconditions pass, for the caller knows what they mean."""
    from obstore import exceptions

    try:
        yield
    except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
        raise
    except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
        raise UserError(f"{where}: {endpoint} refuses these credentials: {_first_line(error)}") from None
    except exceptions.BaseError as error:
        raise NexaError(f"{where}: {_first_line(error)}. Files synced before are whole.") from None
    except Exception as error:
        if "botocore" in sys.modules and (told := _botocore_told(where, endpoint, error)):
            raise told from None
        raise


def _botocore_told(where: str, endpoint: str, error: Exception) -> NexaError | None:
    from botocore.exceptions import BotoCoreError, ClientError, ConnectionError, HTTPClientError, NoCredentialsError

    match error:
        case ClientError():
            return None if is_precondition(error) else _refusal(where, endpoint, error)
        case NoCredentialsError():
            return UserError(NO_CREDENTIALS)
        case ConnectionError() | HTTPClientError():
            message = f"{where}: {endpoint} does not answer ({_first_line(error)}). Files synced before are whole"
            return NexaError(f"{message}; run the same command again.")
        case BotoCoreError():
            return NexaError(f"{where}: {_first_line(error)}. Files synced before are whole.")
        case _:
            return None


def is_precondition(error: Exception) -> bool:
    """Whether a storage said that the object is not the one that was meant (or that somebody writes it right now)."""
    return error_code(error) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409")


def error_code(error: Exception) -> str:
    """The word that a storage has for what went wrong, or its number; empty where it was not asked."""
    return str(getattr(error, "response", {}).get("Error", {}).get("Code", ""))


def _refusal(where: str, endpoint: str, error: Any) -> NexaError:
    code = error.response["Error"].get("Code", "")
    if code in ("NoSuchBucket", "404", "NoSuchKey"):
        return UserError(f"{where} does not exist at {endpoint}. Make the bucket first, or mend the name.")
    if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "401"):
        return UserError(f"{where}: {endpoint} refuses these credentials ({code}). They need to list, read and write.")
    return NexaError(f"{where}: {endpoint} says: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return redact(str(error).partition("\n")[0].strip(), None)[:500].rstrip(".")
