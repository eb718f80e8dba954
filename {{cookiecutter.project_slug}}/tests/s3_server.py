"""An S3 server for the tests: moto's, on loopback, a process of its own. It keeps its buckets in
memory, and counts what was asked of it in its log."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx
from live_service import eventually, free_port

BUCKET = "a-bucket"


class Server:
    """`environment` is what a client needs to find it."""

    def __init__(self, folder: Path) -> None:
        self.endpoint = f"http://127.0.0.1:{free_port()}"
        self.url = f"s3://{BUCKET}/prefix"
        self.log = folder / "moto.log"

    @property
    def environment(self) -> Mapping[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def asked(self, method: str, path: str) -> int:
        """How many such requests there were, whatever they ask of the path."""
        lines = self.log.read_text("utf-8").splitlines()
        return sum(f"{method} /{BUCKET}/prefix/{path}" in line for line in lines)

    def put(self, path: str, data: bytes) -> None:
        httpx.put(f"{self.endpoint}/{BUCKET}/prefix/{path}", content=data).raise_for_status()

    def names(self) -> set[str]:
        """Below the prefix."""
        listed = httpx.get(f"{self.endpoint}/{BUCKET}", params={"list-type": "2"}).text
        return {part.split("</Key>")[0] for part in listed.split("<Key>prefix/")[1:]}

    def require_keys(self) -> None:
        """From here on an access key that nobody made is refused, as AWS does."""
        httpx.post(f"{self.endpoint}/moto-api/reset-auth", content=b"0").raise_for_status()


@contextmanager
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    port = server.endpoint.rsplit(":", 1)[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
    with server.log.open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        eventually(lambda: httpx.get(f"{server.endpoint}/moto-api/").status_code == 200, "moto")
        httpx.put(f"{server.endpoint}/{BUCKET}").raise_for_status()
        yield server
    finally:
        process.kill()
        process.wait(20)
