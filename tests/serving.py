"""A web server on this machine that misbehaves as told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class File:
    """What a path of the server answers.

    `breaks_after` and `statuses` are used up one per request; after that the file comes whole.
    """

    body: bytes = b""
    with_range: bool = True
    with_length: bool = True
    redirect: str = ""
    etag: str = ""
    content_type: str = "application/octet-stream"
    announced: int | None = None  # a wrong Content-Length
    wrong_range: bool = False
    pause_s: float = 0.0  # before every 64 KiB
    breaks_after: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)


@dataclass
class Server:
    """Paths with what they answer, and a log of what was asked."""

    files: dict[str, File]
    requests: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    address: str = ""

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"

    def asked(self, path: str) -> list[str | None]:
        return [r for p, r in self.requests if p.split("/")[-1] == path]


@contextmanager
def serve(files: dict[str, File]) -> Iterator[Server]:  # noqa: C901  (a handler within)
    state = Server(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            path = self.path.split("/")[-1]  # a proxy is asked for the whole address
            state.requests.append((self.path, self.headers.get("Range")))
            self.close_connection = True
            file = state.files.get(path)
            if file is None:
                return self.send_error(404)
            if file.statuses:
                return self.send_error(file.statuses.pop(0))
            if file.redirect:
                self.send_response(302)
                self.send_header("Location", file.redirect)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self._send(file)

        def _send(self, file: File) -> None:
            start = self._start(file)
            if start is not None and start >= len(file.body):
                self.send_response(416)
                self.send_header("Content-Length", "0")
                return self.end_headers()
            self.send_response(200 if start is None else 206)
            body = file.body[start or 0 :]
            if start is not None:
                first = start + 1 if file.wrong_range else start
                end = len(file.body)
                self.send_header("Content-Range", f"bytes {first}-{end - 1}/{end}")
            if file.with_length:
                self.send_header("Content-Length", str(file.announced or len(body)))
            if file.etag:
                self.send_header("ETag", file.etag)
            self.send_header("Content-Type", file.content_type)
            self.end_headers()
            cut = file.breaks_after.pop(0) if file.breaks_after else len(body)
            for at in range(0, min(cut, len(body)), 1 << 16):
                time.sleep(file.pause_s)
                try:
                    self.wfile.write(body[at : min(cut, at + (1 << 16))])
                except OSError:
                    return  # the client has gone
            self.wfile.flush()

        def _start(self, file: File) -> int | None:
            wanted = self.headers.get("Range")
            same = self.headers.get("If-Range") in (None, file.etag)
            if not (wanted and file.with_range and same):
                return None
            return int(wanted.removeprefix("bytes=").removesuffix("-"))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.address = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
