"""An S3 server on loopback that can misbehave: moto's, with faults in front of it."""

import logging
import os
import socket
import threading
from collections import Counter

import boto3
from moto.backends import get_backend
from moto.server import ThreadedMotoServer

KEY, SECRET = "AKIATESTKEYOFMINE", "sEcReT/that+must-not/be-shown"


class BucketServer:
    """`faults(method, path, count)` may name what goes wrong with that path's count-th request: an HTTP status, "drop",
    "cut", or "kept" for a removal that is refused.
    """

    def __init__(self, faults=lambda method, path, count: None) -> None:
        self.faults = faults
        self.requests: Counter[tuple[str, str]] = Counter()
        self.failed: Counter[str] = Counter()
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        http = self._server._server
        self._app = http.app
        http.app = self._answer
        self.url = f"http://127.0.0.1:{http.server_port}"
        self._lock = threading.Lock()

    def _answer(self, environ, start_response):
        key = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        with self._lock:
            self.requests[key] += 1
            fault = self.faults(*key, self.requests[key])
        if fault is None:
            return self._app(environ, start_response)
        self.failed[str(fault)] += 1
        if fault == "drop":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        if fault == "cut":
            headers = []
            body = b"".join(self._app(environ, lambda status, given, *rest: headers.extend([status, given])))
            start_response(*headers)
            return self._half(body, environ["werkzeug.socket"])
        if fault == "kept":  # an answer of 200 that says what could not be done
            start_response("200 OK", [("Content-Type", "application/xml")])
            return [b"<DeleteResult><Error><Key>a/b</Key><Code>AccessDenied</Code></Error></DeleteResult>"]
        start_response(f"{fault} Sorry", [("Content-Type", "application/xml")])
        code = "AccessDenied" if fault == 403 else "SlowDown"
        return [f"<Error><Code>{code}</Code><Message>Not now.</Message></Error>".encode()]

    @staticmethod
    def _half(body, connection):
        yield body[: len(body) // 2]
        connection.shutdown(socket.SHUT_RDWR)

    def environment(self) -> dict[str, str]:
        return {
            "S3_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def client(self):
        return boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
        )

    def names(self, bucket: str, prefix: str) -> list[str]:
        """Keys below the prefix."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix and f"{prefix}/")
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    def files(self, bucket: str, prefix: str) -> dict[str, bytes]:
        """Content of every object below the prefix."""
        client = self.client()
        content = {key: client.get_object(Bucket=bucket, Key=key)["Body"].read() for key in self.names(bucket, prefix)}
        return {key[len(prefix) + 1 :]: body for key, body in content.items()}

    def dataset(self, bucket: str, prefix: str) -> dict[str, bytes]:
        """As tests.unit.data.conftest.folder_bytes."""
        return {name: content for name, content in self.files(bucket, prefix).items() if name != "conversion.json"}

    def close(self) -> None:
        """Stop, and empty what moto keeps for the whole process: the next server would show this one's buckets."""
        self._server.stop()
        get_backend("s3").reset()
