"""Files on s3, against a server on loopback."""

from pathlib import Path

import pytest

from moe.common.s3 import RemoteError, RemoteFolder, may_pass, reason_and_fix


def test_what_is_written_is_listed_read_renamed_and_deleted(bucket: str, tmp_path: Path) -> None:
    folder = RemoteFolder(f"{bucket}/some/run/")
    other = RemoteFolder(f"{bucket}/some/runner")
    other.write("x", b"1")
    assert folder.list() == {} and folder.read("a/b") is None
    (tmp_path / "f").write_bytes(b"12345")
    folder.upload(tmp_path / "f", "a/b")
    folder.write("c", b"")
    assert folder.list() == {"a/b": 5, "c": 0} and folder.list("a/") == {"a/b": 5}
    assert folder.read("a/b") == b"12345" and folder.read("c") == b""
    folder.rename("a/b", "a/d")
    folder.download("a/d", tmp_path / "new" / "g")
    assert (tmp_path / "new" / "g").read_bytes() == b"12345"
    folder.delete(["a/d", "c"])
    assert folder.list() == {} and other.list() == {"x": 1}


def test_a_bucket_that_is_not_there_is_told_with_its_address(bucket: str) -> None:
    with pytest.raises(RemoteError, match=r"s3://nowhere-to-be-found/x: cannot list: .*no such bucket"):
        RemoteFolder("s3://nowhere-to-be-found/x").list()


def test_a_server_that_fails_for_a_while_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five answers of 503 in a row: boto3's default mode would give up after four more attempts."""
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    asked = []

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"
            status = 503 if len(asked) <= 5 else 200
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if status == 200 else 0))
            self.end_headers()
            self.wfile.write(body if status == 200 else b"")

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Busy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("S3_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    try:
        assert RemoteFolder("s3://b/x").list() == {} and len(asked) == 6
    finally:
        server.shutdown()
        server.server_close()


def test_what_broke_off_in_every_try_may_pass_and_is_named() -> None:
    from boto3.exceptions import RetriesExceededError
    from botocore import exceptions

    endpoint = "https://bucket.example"
    for cause in (
        exceptions.ReadTimeoutError(endpoint_url=endpoint),
        exceptions.IncompleteReadError(actual_bytes=1, expected_bytes=2),
        ConnectionResetError("reset by peer"),
    ):
        given_up = RetriesExceededError(cause)
        assert may_pass(cause) and may_pass(given_up)
        assert str(cause) in reason_and_fix(given_up)
    assert not may_pass(RetriesExceededError(exceptions.SSLError(endpoint_url=endpoint, error="certificate")))
    assert not may_pass(ValueError("x"))
