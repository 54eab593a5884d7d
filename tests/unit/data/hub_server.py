"""A small stand-in for the hub on loopback, which can misbehave."""

import hashlib
import json
import re
import socket
import threading
import time
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

SHA = "0123456789abcdef0123456789abcdef01234567"


def git_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """Serves `datasets` and the tokenizers `models`:

    name -> folder. `faults(path, count)` may name what goes wrong with that file's count-th request; `headers(path,
    count)` are sent with a file. `listing` is what a dataset's list holds of each file beside its name.
    """

    def __init__(
        self,
        datasets: dict[str, Path],
        faults=lambda path, count: None,
        *,
        models: dict[str, Path] | None = None,
        headers=lambda path, count: {},
        listing: tuple[str, ...] = ("size", "blobId"),
        revisions: tuple[str, ...] = ("main", SHA),
    ) -> None:
        self.datasets, self.faults, self.models = datasets, faults, models or {}
        self.headers, self.listing, self.revisions = headers, listing, revisions
        self.tokens: list[tuple[str, str | None]] = []
        self.requests: Counter[str] = Counter()
        self.ranges: list[tuple[str, int, int, float]] = []
        self.failed: Counter[str] = Counter()
        self._open: set[socket.socket] = set()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                hub._open.add(self.connection)

            def finish(self):
                super().finish()
                hub._open.discard(self.connection)

            def log_message(self, *args):
                pass

            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_POST = do_GET

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in list(self._open):  # else each keeps a thread that waits for the client's next request
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def send(handler, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        for key, value in (headers or {}).items():
            handler.send_header(key, value)
        handler.end_headers()
        if handler.command == "HEAD":
            return
        handler.wfile.write(body if cut is None else body[:cut])
        if cut is not None:
            handler.close_connection = True

    def answer(self, handler) -> None:
        path = unquote(handler.path.partition("?")[0])
        self.tokens.append((path, handler.headers.get("Authorization")))
        self.requests[path] += 1
        fault = self.faults(path, self.requests[path])
        if fault is not None:
            self.failed[fault] += 1
        if fault == "429":
            return self.send(handler, 429, b"slow down", {"Retry-After": "1"})
        if fault == "503":
            return self.send(handler, 503, b"sorry")
        if fault == "drop":
            handler.close_connection = True
            return handler.connection.close()
        if fault == "stall":
            time.sleep(4)
            handler.close_connection = True
            return None
        api = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/revision/([^/]+)", handler.path.partition("?")[0])
        if api and api[1] in self.datasets and unquote(api[2]) in self.revisions:
            root = self.datasets[api[1]]
            files = [p for p in sorted(root.rglob("*")) if p.is_file()]
            listing = [
                {
                    "rfilename": p.relative_to(root).as_posix(),
                    **{
                        key: value
                        for key, value in (
                            ("size", p.stat().st_size),
                            ("blobId", git_id(p.read_bytes())),
                            ("lfs", {"sha256": hashlib.sha256(p.read_bytes()).hexdigest(), "size": p.stat().st_size}),
                        )
                        if key in self.listing
                    },
                }
                for p in files
            ]
            return self.send(handler, 200, json.dumps({"id": api[1], "sha": SHA, "siblings": listing}).encode())
        file = re.fullmatch(rf"/datasets/([^/]+/[^/]+)/resolve/{SHA}/(.+)", path)
        target = self.datasets[file[1]] / file[2] if file and file[1] in self.datasets else None
        model = re.fullmatch(r"/([^/]+/[^/]+)/resolve/main/([^/]+)", path)
        if model and model[1] in self.models:
            target = self.models[model[1]] / model[2]
        if target is None or not target.is_file():
            return self.send(handler, 404, b"no such thing", self.headers(path, self.requests[path]))
        body, status, first = target.read_bytes(), 200, 0
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
        headers = self.headers(path, self.requests[path])
        if asked and fault != "no_range":
            first, status = int(asked[1]), 206
            headers = {"Content-Range": f"bytes {first}-{asked[2]}/{len(body)}", **headers}
            body = body[first : int(asked[2]) + 1]
            self.ranges.append((path, first, len(body), time.monotonic()))
        if fault == "short":
            return self.send(
                handler, status, body[: len(body) // 2], headers
            )  # well-formed, but not what was asked for
        return self.send(handler, status, body, headers, cut=len(body) // 2 if fault == "cut" else None)
