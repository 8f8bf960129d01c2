"""What small requests feel of large ones: `python -m bench.bombs` serves a small model here, and prints a table.

Eight clients at a time send requests of large blank pictures, one after another, while one client sends photographs.
A second table compares how long one request of many photographs takes with one worker and with all.
"""

from __future__ import annotations

import argparse
import base64
import io
import multiprocessing
import re
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from PIL import Image

from bench.server.pierhead import Plan, start_server
from bench.server.processes import wait_until
from bench.server.workshop import Workshop
from cluster.settings import Paths

PATH = "/v1/projects/p/locations/l/endpoints/e:predict"
CLIENTS = 8
# What the requests hold: (pictures, side of each). The first is refused by the headers of its pictures, the others are
# the largest that are taken; the last one is work as any other.
LOADS = {
    "100 blank PNGs of 9400 x 9400": (100, 9400),
    "10 blank PNGs of 6300 x 6300": (10, 6300),
    "1 blank PNG of 6300 x 6300": (1, 6300),
    "128 PNGs of 500 x 500": (128, 500),
}
PHOTOGRAPHS = (128, 16, 1)  # in one request
PHOTOGRAPH = (300, 240)  # so that as many are no larger a body than is taken
TIMES = 5  # of which the fastest counts


def make_body(pictures: int, side: int) -> bytes:
    """A request's body."""
    return _make_body(pictures, Image.new("1", (side, side)), "PNG")


def make_photographs(count: int, width: int, height: int) -> bytes:
    """A request's body."""
    return _make_body(count, Image.effect_noise((width, height), 50).convert("RGB"), "JPEG")


def _make_body(pictures: int, picture: Image.Image, format: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, format)
    instance = b'{"b64":"%s"}' % base64.b64encode(file.getvalue())
    return b'{"instances":[' + b",".join([instance] * pictures) + b"]}"


@contextmanager
def serving(workshop: Workshop, artifact: Path, workers: int) -> Iterator[httpx.Client]:
    """A client of a server, all of whose workers are warm."""
    plan = Plan(artifact, workers=workers, device="cpu", compile=False)
    with start_server(workshop, plan) as server:
        server.wait_ready()
        wait_until("all workers are warm", lambda: f"pierhead_workers {workers}.0" in server.get("/metrics")[1], 60)
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=600) as client:
            yield client


def send_for_ever(address: str, body: bytes | None, codes: multiprocessing.Queue[int]) -> None:
    """In a process of its own: what CLIENTS clients do."""

    def send() -> None:
        with httpx.Client(timeout=600) as client:
            while True:
                code = client.post(f"{address.rstrip('/')}{PATH}", content=body).status_code
                codes.put(code)
                if code != httpx.codes.OK:
                    time.sleep(1)  # as Retry-After says

    threads = [threading.Thread(target=send) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()


def ask(client: httpx.Client, body: bytes, seconds: float) -> list[float]:
    """How long each answer took, of one request after another."""
    took, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        begun = time.perf_counter()
        client.post(PATH, content=body).raise_for_status()
        took.append(time.perf_counter() - begun)
        time.sleep(0.01)
    return took


def describe(took: list[float]) -> tuple[float, float]:
    """The median and the 99th percentile, in milliseconds."""
    return 1000 * statistics.median(took), 1000 * statistics.quantiles(took, n=100)[98]


class Loads:
    """Asks a server for small requests under each load."""

    def __init__(self, client: httpx.Client, small: bytes, seconds: float) -> None:
        self._client = client
        self._small = small
        self._seconds = seconds
        ask(client, small, 3)
        self._quiet = 0.0

    def row(self, load: str, body: bytes | None) -> str:
        """A row of the table."""
        codes: multiprocessing.Queue[int] = multiprocessing.Queue()
        address = str(self._client.base_url)
        others = multiprocessing.Process(target=send_for_ever, args=(address, body, codes))
        if body is not None:
            others.start()
            time.sleep(2)
        took = ask(self._client, self._small, self._seconds)
        if body is not None:
            others.kill()
            others.join()
        median, worst = describe(took)
        self._quiet = self._quiet or worst
        counts = Counter(codes.get() for _ in range(codes.qsize()))
        said = ", ".join(f"{count} x {code}" for code, count in sorted(counts.items())) or "none yet"
        cells = (load, len(took), f"{median:.1f}", f"{worst:.1f}", f"{worst / self._quiet:.1f}", said, self._restarts())
        return f"| {' | '.join(map(str, cells))} |"

    def _restarts(self) -> str:
        found = re.search(r"pierhead_model_process_restarts_total (\d+)", self._client.get("/metrics").text)
        assert found
        return found[1]


def measure_alone(client: httpx.Client, body: bytes) -> float:
    """The seconds that the answer takes, while nobody else asks."""
    took = []
    for _ in range(TIMES):
        begun = time.perf_counter()
        client.post(PATH, content=body).raise_for_status()
        took.append(time.perf_counter() - begun)
    return min(took)


def print_speedup(workshop: Workshop, artifact: Path, workers: int) -> None:
    """Print the table of one request of many photographs."""
    print(f"| photographs in one request | one worker, ms | {workers} workers, ms | speedup |")
    print("|---|---|---|---|")
    bodies = {count: make_photographs(count, *PHOTOGRAPH) for count in PHOTOGRAPHS}
    with serving(workshop, artifact, 1) as client:
        alone = {count: measure_alone(client, body) for count, body in bodies.items()}
    with serving(workshop, artifact, workers) as client:
        together = {count: measure_alone(client, body) for count, body in bodies.items()}
    for count in PHOTOGRAPHS:
        speedup = alone[count] / together[count]
        print(f"| {count} | {1000 * alone[count]:.0f} | {1000 * together[count]:.0f} | {speedup:.2f} |")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    workshop = Workshop(Paths.from_environment())
    artifact = workshop.prepare_uncompiled("mobilenet_v3_small").artifact
    small = make_photographs(1, 640, 480)
    print("| while | small requests | p50 ms | p99 ms | p99 / quiet | the large ones' answers | restarts |")
    print("|---|---|---|---|---|---|---|")
    with serving(workshop, artifact, arguments.workers) as client:
        loads = Loads(client, small, arguments.seconds)
        print(loads.row("nothing else", None), flush=True)
        for load, (pictures, side) in LOADS.items():
            print(loads.row(load, make_body(pictures, side)), flush=True)
    print()
    print_speedup(workshop, artifact, arguments.workers)


if __name__ == "__main__":
    main()
