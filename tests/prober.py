"""A steady stream of predictions through the gateway, in which every failure is counted."""

import base64
import io
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import httpx
from PIL import Image

from tests.kube import predict

REQUESTS_PER_SECOND = 20
_CLIENTS = 8


def small_picture() -> bytes:
    """A request that costs a server little beside its forward pass."""
    encoded = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").save(encoded, "JPEG")
    return json.dumps({"instances": [{"content": base64.b64encode(encoded.getvalue()).decode()}]}).encode()


@dataclass
class Answers:
    """Who answered how often, and what failed, with the second of the stream in which it did."""

    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[float, str]] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def total(self) -> int:
        return sum(self.counts.values()) + len(self.failures)


class Prober:
    """Sends requests at a fixed rate, whatever becomes of those before; `with` starts and ends it."""

    def __init__(self, url: str, body: bytes | None = None, rate: float = REQUESTS_PER_SECOND) -> None:
        self._url = url
        self._body = body or small_picture()
        self._rate = rate
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(_CLIENTS)]
        self._begun = 0.0
        self.answers = Answers()

    def __enter__(self) -> "Prober":
        self._begun = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()
        rate = self.answers.total / (time.monotonic() - self._begun)
        print(
            f"\n{self.answers.total} predictions, {rate:.1f} a second, {len(self.answers.failures)} failed,"
            f" the slowest {self.answers.slowest:.1f} s; {dict(self.answers.counts)} {self.answers.failures[:3]}"
        )

    def _run(self, number: int) -> None:
        every = _CLIENTS / self._rate
        due = self._begun + number / self._rate
        with httpx.Client(timeout=60) as client:
            while not self._stopped.wait(max(0.0, due - time.monotonic())):
                due = max(due + every, time.monotonic() - every)
                begun = time.monotonic()
                answer = predict(client, self._url, self._body)
                self._note(begun, answer)

    def _note(self, begun: float, answer: str) -> None:
        with self._lock:
            self.answers.slowest = max(self.answers.slowest, time.monotonic() - begun)
            if answer.startswith("failed"):
                self.answers.failures.append((round(begun - self._begun, 1), answer))
            else:
                self.answers.counts[answer] += 1

    def seen(self, deployed_model: str) -> int:
        """How often it has answered."""
        with self._lock:
            return self.answers.counts[deployed_model]

    def check(self) -> None:
        """Fails where a prediction did."""
        assert not self.answers.failures, self.answers.failures[:20]
        assert self.answers.total
