"""The page's server: for this machine alone, and for its own page alone.

What pairs say is other people's words: the page puts it in as text, and its policy lets no script run but its own.
"""

import asyncio
import errno
import html
import re
import secrets
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from nexa_core.errors import UserError
from nexa_distill.review.review import Conflict, Review
from nexa_distill.review.views import View

HOST = "127.0.0.1"
HOST_NAMES = ("127.0.0.1", "localhost")
"""What a browser may call this machine. A page of another site that points its own name here is sent away by it."""
MOST_BYTES = 32 * 2**20
SECONDS_TO_END = 2.0
FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(review: Review, *, port: int, next_command: str, tell: Callable[[str], None]) -> None:
    """Serve the review until SIGINT or SIGTERM.

    Args:
        port: 0 for a free one.
        tell: called with the URL once it answers.

    Raises:
        UserError: the port is taken or not to be had.
    """
    asyncio.run(_serve(review, port, next_command, tell))


async def _serve(review: Review, port: int, next_command: str, tell: Callable[[str], None]) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    runner = web.AppRunner(make_app(review, next_command), access_log=None, shutdown_timeout=SECONDS_TO_END)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, port).start()
        tell(f"http://{HOST}:{runner.addresses[0][1]}/")
        await ended.wait()
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is taken" if error.errno == errno.EADDRINUSE else "is not to be had without more rights"
        raise UserError(f"Port {port} {why}. Choose another with --port, or --port 0 for a free one.") from None
    finally:
        review.end_searches()
        await runner.cleanup()


def make_app(review: Review, next_command: str) -> web.Application:
    """The application; each has a token of its own, which only its page knows."""
    pages = Pages(review, next_command)
    app = web.Application(middlewares=[pages.guard], client_max_size=MOST_BYTES)
    app.add_routes([web.get(path, pages.file) for path in FILES])
    app.add_routes([web.get("/pair", pages.pair), web.post("/decide", pages.decide), web.post("/undo", pages.undo)])
    return app


class Pages:
    """What is answered to each request."""

    def __init__(self, review: Review, next_command: str):
        self._review = review
        self._token = secrets.token_urlsafe(32)
        about = {
            "key": review.key,
            "choices": review.choices(),
            "is_filtered": review.is_filtered,
            "next_command": next_command,
        }
        given = {"token": self._token, "key": review.key, "about": orjson.dumps(about).decode()}
        self._files = {path: (_read(name), kind) for path, (name, kind) in FILES.items()}
        text, kind = self._files["/"]
        self._files["/"] = (re.sub(r"\{\{ (\w+) \}\}", lambda found: html.escape(given[found[1]]), text), kind)

    @web.middleware
    async def guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let our own page through, and answer mistakes with a sentence that the page shows."""
        try:
            response = self._refusal(request) or await handler(request)
        except web.HTTPException as error:
            response = _answer({"error": error.text or error.reason}, error.status)
        except (UserError, orjson.JSONDecodeError) as error:
            response = _answer({"error": str(error)}, 400)
        except Conflict as error:
            response = _answer({"error": str(error)}, 409)
        except OSError as error:
            response = _answer(
                {"error": f"Not saved: {error.filename}: {error.strerror}. Mend it and decide again."}, 507
            )
        response.headers.update(HEADERS)
        return response

    async def file(self, request: web.Request) -> web.Response:
        text, kind = self._files[request.path]
        return web.Response(text=text, content_type=kind, charset="utf-8")

    async def pair(self, request: web.Request) -> web.Response:
        asked = request.query
        view = View(show=asked.get("show", "all"), state=asked.get("state", "any"), text=asked.get("text", ""))
        row = asked.get("row")
        if row is not None and not row.isdecimal():
            raise UserError(f"'{row}' is no row number.")
        shown = await asyncio.to_thread(
            self._review.show, view, None if row is None else int(row), asked.get("move", "stay")
        )
        return _answer(shown)

    async def decide(self, request: web.Request) -> web.Response:
        wishes = orjson.loads(await request.read())
        if not isinstance(wishes, list) or not wishes or not all(isinstance(wish, dict) for wish in wishes):
            raise UserError("A list of decisions is expected.")
        return _answer(await asyncio.shield(asyncio.to_thread(self._review.decide, wishes)))

    async def undo(self, request: web.Request) -> web.Response:
        return _answer(await asyncio.shield(asyncio.to_thread(self._review.undo)))

    def _refusal(self, request: web.Request) -> web.Response | None:
        if re.sub(r":\d+$", "", request.host) not in HOST_NAMES:
            return _answer({"error": f"This page is at {' or '.join(HOST_NAMES)} only."}, 403)
        given = request.headers.get("X-Review-Token", "")
        if request.method != "GET" and not secrets.compare_digest(given.encode(), self._token.encode()):
            return _answer({"error": "The review was started anew since this page was loaded. Reload it."}, 403)
        return None


def _answer(value: dict[str, Any], status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def _read(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
