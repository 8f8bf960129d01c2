"""Storage that is as far away as one likes: a web server whose every answer comes later. Run as a program.

`python -m bench.batch.storage SECONDS FOLDER` writes its port as a line to standard output and serves the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bench.batch.cpus import pin
from bench.server.processes import BenchError, Program, running
from bench.server.workshop import Workshop, make_environment


@dataclass(frozen=True)
class Storage:
    """One that runs."""

    address: str


@contextlib.contextmanager
def start_storage(workshop: Workshop, folder: Path, delay: float, cpus: str) -> Iterator[Storage]:
    """Starts it, and ends it at the end."""
    command = pin([sys.executable, "-m", "bench.batch.storage", str(delay), str(folder)], cpus)
    log = workshop.log(f"storage-{delay:g}")
    with running(command, log=log, environment=make_environment({}), piped=True) as program:
        yield Storage(f"http://127.0.0.1:{_read_port(program)}")


def _read_port(program: Program) -> int:
    assert program.process.stdout is not None
    line = program.process.stdout.readline()
    if not line:
        program.process.wait(10)
        program.check_alive()
        raise BenchError("the storage closed its output")
    return int(line)


async def serve(delay: float, objects: Mapping[bytes, bytes]) -> None:
    """Answer until the process is ended; `objects` by their paths."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Whoever asks may be killed between two pictures.
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(delay)
                writer.write(make_answer(head, objects))
                await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


def make_answer(head: bytes, objects: Mapping[bytes, bytes]) -> bytes:
    """What is sent back for a request's head."""
    body = objects.get(head.split(b" ", 2)[1])
    if body is None:
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    return b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def main(delay: str, folder: str) -> None:
    objects = {f"/{path.name}".encode(): path.read_bytes() for path in Path(folder).iterdir()}
    asyncio.run(serve(float(delay), objects))


if __name__ == "__main__":
    main(*sys.argv[1:])
