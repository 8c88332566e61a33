"""The provider `openai`: any server that speaks OpenAI's chat completions protocol."""

import asyncio
import base64
import email.utils
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

import orjson

from nexa_core import digests
from nexa_core.config.ask import AskConfig
from nexa_core.errors import UserError
from nexa_core.redact import SHORTEST_SECRET, Secrets, known_secrets, public_url, url_without_secrets
from nexa_llm.chat import ChatRequest

DEFAULT_URL = "https://api.openai.com/v1"
CALL_ID = "X-Client-Request-Id"
LONGEST_BODY_SHOWN = 300
SECONDS_TO_CONNECT = 15
VERSION = re.compile(r"v?\d{1,4}([.-]\d{1,4}){0,3}(-preview)?")
"""What stands behind a `?` and is no secret: `api-version=2026-01-31`."""


class NotConnected(ConnectionError):
    """Nothing reached the server, so that nothing can have been billed."""


@dataclass(frozen=True)
class Response:
    """What a server sent."""

    status: int
    body: bytes
    """Without any key, also where the server repeats it."""
    latency_seconds: float
    """What the server says that it took, or else what was waited."""
    retry_after_seconds: float | None


class OpenAi:
    """How one server is asked for answers of one model. The key never leaves the request's header."""

    def __init__(self, config: AskConfig, environment: Mapping[str, str] = os.environ):
        given = _given_url(config, environment)
        url = urlsplit(given.rstrip("/"))
        if url.scheme not in ("http", "https") or not url.hostname:
            raise UserError(f"base_url is {public_url(given)!r}; it has to be like http://127.0.0.1:8000/v1")
        self.name, self.model = config.teacher, config.model
        self._config, self._url = config, given.rstrip("/")
        self.public_url = public_url(self._url)
        """Without user, password and values that follow a `?`: what is shown."""
        self._asked_url = url_without_secrets(self._url)
        self._key = environment.get(config.api_key_variable)
        if self._key is None and url.hostname.endswith("openai.com"):
            raise UserError(f"{config.api_key_variable} is not set. Set it in the shell or in .env.local.")
        if self._key is not None and not self._key.isprintable():
            raise UserError(
                f"{config.api_key_variable} holds a line break or another character that no key has, and that no header may "
                "have. Set it again, without what stands around the key."
            )
        self._secrets = _secrets(self._url, self._key, environment)
        self._completions = self._at("chat/completions")

    @property
    def address(self) -> str:
        """Which model at which server: whom to ask what became of a call."""
        return f"{self.name} at {self.public_url}"

    def body(self, request: ChatRequest) -> dict[str, Any]:
        """What is sent, as the server gets it."""
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self.model,
            "messages": list(request.messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self._config.max_tokens_name: sampling.max_tokens,
        }
        if request.seed is not None:
            body["seed"] = request.seed
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if sampling.logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": sampling.logprobs}
        if request.tools:
            body["tools"] = list(request.tools)
        return body | self._config.extra_body

    def payload(self, request: ChatRequest) -> bytes:
        """`body` as it goes over the wire."""
        return orjson.dumps(self.body(request))

    def key(self, request: ChatRequest) -> str:
        """The digest of everything that determines the answer."""
        about = {"url": self._asked_url, "body": self.body(request), "sample": request.sample_index}
        return digests.of_bytes(orjson.dumps(about, option=orjson.OPT_SORT_KEYS))

    def session(self, most_connections: int) -> Any:
        """A pool of connections; for one event loop."""
        import aiohttp

        headers = {"Content-Type": "application/json"}
        if (basic := _basic(self._url)) is not None:
            headers["Authorization"] = f"Basic {basic}"
        elif self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=most_connections, ttl_dns_cache=300),
            timeout=aiohttp.ClientTimeout(total=self._config.pace.timeout_seconds, sock_connect=SECONDS_TO_CONNECT),
            headers=headers,
            auto_decompress=True,
            skip_auto_headers=("User-Agent",),
        )

    async def ready(self) -> None:
        """Wait until there is a server to send to."""

    def stop_waiting(self) -> None:
        """Nothing more is sent: whoever waits for the server need not."""

    def close(self) -> None:
        """Let go of what was begun to be asked."""

    async def send(self, session: Any, payload: bytes, call_id: str) -> Response:
        """Ask once.

        Raises:
            NotConnected: the server is not there.
            ConnectionError: no whole response came.
            TimeoutError: none came in time.
        """
        import aiohttp

        began = time.monotonic()
        try:
            async with session.post(self._completions, data=payload, headers={CALL_ID: call_id}) as response:
                body = await response.read()
        except aiohttp.ConnectionTimeoutError:
            raise NotConnected(f"no connection within {SECONDS_TO_CONNECT} s") from None
        except TimeoutError:
            raise TimeoutError(f"no answer within {self._config.pace.timeout_seconds:g} s") from None
        except aiohttp.ClientConnectorError as error:
            raise NotConnected(self.without_secrets(str(error))) from None
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionError(self.without_secrets(f"{type(error).__name__}: {error}")) from None
        stated = response.headers.get("openai-processing-ms", "")
        return Response(
            status=response.status,
            body=self._cleaned(body),
            latency_seconds=float(stated) / 1000 if _is_number(stated) else time.monotonic() - began,
            retry_after_seconds=read_retry_after(response.headers),
        )

    async def billed(self, session: Any, call_id: str) -> int | None:
        """What the server has charged for a call, in picodollars, if it is one that keeps such a bill; None where it isn't.

        It is asked for calls that were cut off, so that nobody else knows. `nexa simulate-teacher` keeps one.
        """
        import aiohttp

        while True:
            try:
                async with session.get(self._at(f"calls/{call_id}")) as response:
                    found = orjson.loads(await response.read())
                    if response.status == 404:
                        return 0 if found["error"]["code"] == "unknown_call" else None
                    if found["state"] != "pending":
                        return int(found["picousd"])
            except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError, TypeError):
                return None
            await asyncio.sleep(0.1)

    def without_secrets(self, text: str) -> str:
        for value, name in self._secrets:
            text = text.replace(value, f"[{name}]")
        return text

    def message(self, body: bytes) -> str:
        """What an error body says, on one line."""
        try:
            error = orjson.loads(body)["error"]
            text = error["message"] if isinstance(error, dict) else str(error)
        except (orjson.JSONDecodeError, LookupError, TypeError):
            text = body.decode("utf-8", "replace")
        return " ".join(str(text).split())[:LONGEST_BODY_SHOWN] or "no message"

    def _at(self, path: str) -> str:
        parts = urlsplit(self._url)
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit((parts.scheme, host, f"{parts.path}/{path}", parts.query, ""))

    def _cleaned(self, body: bytes) -> bytes:
        for value, name in self._secrets:
            if (found := value.encode()) in body:
                body = body.replace(found, f"[{name}]".encode())
        return body


def digest_of_server(config: AskConfig, environment: Mapping[str, str] = os.environ) -> str | None:
    """What tells whether the same server is asked, where the settings as manifests have them do not; None where they do."""
    asked = url_without_secrets(_given_url(config, environment).rstrip("/"))
    told = DEFAULT_URL if config.base_url is None else public_url(config.base_url).rstrip("/")
    return None if asked == told else digests.of_bytes(asked.encode())


def _given_url(config: AskConfig, environment: Mapping[str, str]) -> str:
    return config.base_url or environment.get("OPENAI_BASE_URL") or DEFAULT_URL


def read_retry_after(headers: Mapping[str, str], *, now: float | None = None) -> float | None:
    """Seconds to wait by `retry-after-ms` or `Retry-After`, which is a number or a date; None where neither says.

    Source: RFC 9110, section 10.2.3.
    """
    if _is_number(found := headers.get("retry-after-ms", "")):
        return float(found) / 1000
    found = headers.get("Retry-After", "")
    if _is_number(found):
        return float(found)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(found).timestamp() - (time.time() if now is None else now))
    except (ValueError, TypeError):
        return None


def _is_number(text: str) -> bool:
    try:
        return 0 <= float(text) < 1e9
    except ValueError:
        return False


def _basic(url: str) -> str | None:
    """What the header of basic authentication says of a URL's user and password. Source: RFC 7617, with its UTF-8."""
    parts = urlsplit(url)
    if not parts.username:
        return None
    return base64.b64encode(f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()).decode()


def _secrets(url: str, key: str | None, environment: Mapping[str, str]) -> Secrets:
    """Everything that must not be repeated, the longest first."""
    parts = urlsplit(url)
    in_url = [
        *((parts.username, "user"), (unquote(parts.username or ""), "user")),
        *((parts.password, "password"), (unquote(parts.password or ""), "password")),
        *((value, name) for name, value in parse_qsl(parts.query)),
        *((value, name) for name, _, value in (each.partition("=") for each in parts.query.split("&"))),
    ]
    if (basic := _basic(url)) is not None:
        in_url += [(basic, "password"), (basic.rstrip("="), "password")]
    found = [*((value, name) for value, name in in_url if value), *([(key, "API_KEY")] if key else [])]
    found += [(orjson.dumps(value).decode()[1:-1], name) for value, name in found]  # as a body of JSON repeats it
    # Shorter ones stand in answers as well, as a version in the URL or the key EMPTY do, and those are kept as they came.
    found = [(value, name) for value, name in found if len(value) >= SHORTEST_SECRET and not VERSION.fullmatch(value)]
    found += known_secrets(environment)
    return tuple(sorted(set(found), key=lambda pair: (-len(pair[0]), pair)))
