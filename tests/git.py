"""Git repositories for tests, and a server that they are fetched from over HTTP: Git's own."""

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

_AUTHOR = ("-c", "user.name=tests", "-c", "user.email=tests@example.com")


@dataclass(frozen=True)
class Repository:
    """A repository with one branch, `main`, and where it is fetched from."""

    folder: Path
    url: str

    def commit(self, files: Mapping[str, str]) -> str:
        """A commit with these files and no others; its SHA."""
        self._git("rm", "-r", "--quiet", "--ignore-unmatch", ".")
        for name, content in files.items():
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        self._git("add", "--all")
        self._git(*_AUTHOR, "commit", "--quiet", "--message", "another one")
        return self._git("rev-parse", "HEAD").strip()

    def _git(self, *arguments: str) -> str:
        argv = ["git", "-C", str(self.folder), *arguments]
        return subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=60, check=True).stdout


@dataclass(frozen=True)
class GitServer:
    """A server that runs."""

    folder: Path
    address: str

    def make_repository(self, name: str) -> Repository:
        folder = self.folder / name
        subprocess.run(["git", "init", "--quiet", "--initial-branch", "main", str(folder)], timeout=60, check=True)
        return Repository(folder, f"{self.address}/{name}/.git")


class _Handler(BaseHTTPRequestHandler):
    """Hands each request to `git http-backend`, by CGI."""

    def __init__(self, folder: Path, *given: object) -> None:
        self._folder = folder
        super().__init__(*given)  # type: ignore[arg-type]  # what the server gives

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        environment = {
            "PATH": os.environ["PATH"],
            "GIT_PROJECT_ROOT": str(self._folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("Content-Type", ""),
            "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
        }
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        argv = ["git", "http-backend"]
        answer = subprocess.run(
            argv, input=body, stdout=subprocess.PIPE, env=environment, timeout=60, check=True
        ).stdout
        head, _, content = answer.partition(b"\r\n\r\n")
        fields = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.send_response(int(fields.pop("Status", "200 OK").split()[0]))
        for name, value in fields.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET  # noqa: N815  # as the server calls it

    def log_message(self, *_: object) -> None:
        """Silent: what was asked tells nothing that a failed test does not."""


@contextmanager
def serving_git(folder: Path) -> Iterator[GitServer]:
    """A server for the repositories in a folder, at any free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, folder))
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield GitServer(folder, f"http://127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
