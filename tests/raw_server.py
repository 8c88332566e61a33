"""A server whose every response a test decides, byte for byte."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Sent = tuple[int, bytes, dict[str, str]]
"""Status, body, headers."""
Respond = Callable[[str, int], Sent]
"""Of the last message, and how often it has been asked."""
NO_BILL: Sent = (404, b'{"detail": "Not Found"}', {})


def answer(text: str | None = "yes", *, finish: Any = "stop", usage: Any = (10, 5), **choice: Any) -> Sent:
    """A whole answer; `usage` are the tokens of the prompt and of the answer."""
    tokens = None if usage is None else {"prompt_tokens": usage[0], "completion_tokens": usage[1]}
    made = {"message": {"role": "assistant", "content": text}, "finish_reason": finish, **choice}
    return 200, json.dumps({"model": "m-1", "choices": [made], "usage": tokens}).encode(), {}


@dataclass
class RawServer:
    respond: Respond
    bill: Callable[[], Sent] = lambda: NO_BILL
    """What it says when it is asked for a call's price."""
    base_url: str = ""
    asked: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)


@contextmanager
def raw_server(respond: Respond, bill: Callable[[], Sent] = lambda: NO_BILL) -> Iterator[RawServer]:
    server, lock = RawServer(respond, bill), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one packet

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            self._send(server.bill())

        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            text = json.loads(raw)["messages"][-1]["content"]
            with lock:
                server.asked.append(text)
                server.bodies.append(raw)
                times = server.asked.count(text)
            self._send(server.respond(text, times))

        def _send(self, sent: Sent) -> None:
            status, body, headers = sent
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    server.base_url = f"http://127.0.0.1:{httpd.server_port}/v1"
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()
