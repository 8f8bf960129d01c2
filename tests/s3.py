"""An S3 for tests: moto's server, which knows conditional writes, ranges, pages of listings and multi-part uploads."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from obstore.store import S3Store

from tests.kube import wait_until

PAGE = 100  # objects of a listing: the real one has 1000


@dataclass(frozen=True)
class S3:
    """A server that runs."""

    address: str
    secret: str = "moto asks nobody who he is"

    @property
    def environment(self) -> dict[str, str]:
        """What a client is told of it."""
        return {
            "AWS_ENDPOINT_URL": self.address,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": self.secret,
        }

    def make_bucket(self, name: str) -> None:
        httpx.put(f"{self.address}/{name}").raise_for_status()

    def put(self, bucket: str, name: str, content: bytes) -> None:
        self._open(bucket).put(name, content)

    def get(self, bucket: str, name: str) -> bytes:
        return bytes(self._open(bucket).get(name).bytes())

    def list(self, bucket: str, prefix: str) -> list[str]:
        return sorted(entry["path"] for page in self._open(bucket).list(prefix.strip("/")) for entry in page)

    def _open(self, bucket: str) -> S3Store:
        return S3Store(bucket, config=self.environment, client_options={"allow_http": True})


@contextmanager
def running_s3(host: str = "127.0.0.1", **given: str) -> Iterator[S3]:
    """A server at this address, at any free port; what it holds ends with it."""
    with tempfile.NamedTemporaryFile() as log:
        command = [sys.executable, "-m", "moto.server", "--host", host, "--port", "0"]
        environment = {**os.environ, "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)}
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            yield S3(wait_until("the S3 listens", lambda: _find_address(Path(log.name)), seconds=60), **given)
        finally:
            process.terminate()
            process.wait()


def _find_address(log: Path) -> str | None:
    told = re.search(r"Running on (http://\S+)", log.read_text())
    return told[1] if told else None
