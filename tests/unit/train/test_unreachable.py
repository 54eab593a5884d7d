"""A start whose s3 does not answer ends with 75, as what may pass; one that it refuses ends with 2."""

import http.server
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import moe.common.s3
from moe.cli.train import main
from moe.common.errors import InputError, Unreachable
from moe.common.s3 import RemoteAway, RemoteError
from moe.train.distributed.ranks import on_each
from tests.ranks import on_ranks
from tests.tiny import tiny_config, write_config


class _Busy(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_PUT = do_HEAD = do_GET

    def log_message(self, *words: object) -> None: ...


@pytest.fixture
def server() -> Iterator[http.server.HTTPServer]:
    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Busy)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield found
    found.shutdown()
    found.server_close()


@pytest.mark.parametrize("what", ["save_folder=s3://bucket/run", "train_data.remote=s3://bucket/run"])
@pytest.mark.parametrize(("status", "code"), [(None, 75), (503, 75), (429, 75), (403, 2)])
def test_the_code_says_whether_the_same_command_may_do_later(
    tiny: Path,
    tmp_path: Path,
    monkeypatch,
    capsys,
    server: http.server.HTTPServer,
    status: int | None,
    code: int,
    what: str,
) -> None:
    """A requeued job met an s3 that was away, and ended for good with 2: "run the same command again"."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(moe.common.s3, "ATTEMPTS", 1)
    moe.common.s3._client.cache_clear()
    port = server.server_port
    if status is None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]  # nobody listens there
    server.status = status  # type: ignore[attr-defined]
    settings = {"S3_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in {**settings, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(name, value)
    path = write_config(tmp_path / "c.yaml", tiny_config(tiny))
    try:
        assert main([str(path), what, *["train_data.local=new"] * ("remote" in what)]) == code
    finally:
        moe.common.s3._client.cache_clear()
    err = capsys.readouterr().err
    assert "s3://bucket/run" in err and ("run the same command again" in err) == (code == 75)


@pytest.mark.parametrize("kind", [Unreachable, RemoteAway, InputError, RemoteError])
def test_all_ranks_end_alike(kind: type[Exception]) -> None:
    def rank_of(rank: int) -> None:
        def call() -> None:
            if rank == 1:
                raise kind("the bucket is away")

        with pytest.raises(Unreachable if kind in (Unreachable, RemoteAway) else InputError, match="bucket is away"):
            on_each(call, here=True)

    on_ranks(2, rank_of)
