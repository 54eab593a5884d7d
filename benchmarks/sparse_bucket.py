"""A bucket on loopback whose objects are the files of a folder, sparse ones too: listed in pages, read by ranges.

moto keeps what it holds in memory; a trillion tokens that are holes in files take none here. Reading only.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 1000
BUCKET = "corpus"


class SparseBucket:
    """s3://corpus/... of a folder. `requests`: how often each object was asked for, and each page of a listing."""

    def __init__(self, folder: Path) -> None:
        requests: Counter[str] = Counter()
        self.requests = requests
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.answer_file(body=False)

            def do_GET(self) -> None:
                query = parse_qs(urlsplit(self.path).query)
                self.answer_list(query) if "list-type" in query else self.answer_file(body=True)

            def answer_list(self, query: dict[str, list[str]]) -> None:
                prefix, begin = query.get("prefix", [""])[0], int(query.get("continuation-token", ["0"])[0])
                found = [name for name in names if name.startswith(prefix)]
                requests[f"list {prefix}"] += 1
                entries = "".join(
                    f"<Contents><Key>{escape(name)}</Key><Size>{os.path.getsize(folder / name)}</Size></Contents>"
                    for name in found[begin : begin + PAGE]
                )
                more = begin + PAGE < len(found)
                token = f"<NextContinuationToken>{begin + PAGE}</NextContinuationToken>" if more else ""
                state = f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}"
                text = f"<ListBucketResult>{state}{entries}</ListBucketResult>"
                self.send(200, {"Content-Type": "application/xml", "Content-Length": str(len(text))})
                self.wfile.write(text.encode())

            def answer_file(self, *, body: bool) -> None:
                path = folder / unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}/")
                if not path.is_file():
                    return self.send(404, {"Content-Length": "0"})
                size, status = path.stat().st_size, 200
                begin, end = 0, size
                if asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                    begin, end, status = int(asked[1]), min(size, int(asked[2] or size) + 1), 206
                headers = {
                    "Content-Length": str(end - begin),
                    "ETag": '"sparse"',
                    "Last-Modified": formatdate(usegmt=True),
                }
                if status == 206:
                    headers["Content-Range"] = f"bytes {begin}-{end - 1}/{size}"
                self.send(status, headers)
                if body:
                    requests[str(path.relative_to(folder))] += not begin
                    with open(path, "rb") as file:
                        self.wfile.flush()
                        while begin < end and (
                            sent := os.sendfile(self.connection.fileno(), file.fileno(), begin, end - begin)
                        ):
                            begin += sent

            def send(self, status: int, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def environment(self) -> dict[str, str]:
        """With which Streaming and this project find it."""
        return {
            "S3_ENDPOINT_URL": f"http://127.0.0.1:{self._server.server_port}",
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
