"""Whether a worker moves, and what it counts."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter


class Pulse:
    """When something last came of what this worker does; and `pierhead_batch_*`, which `docs/batch.md` lists."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._last = time.monotonic()
        self._asking = 0  # calls
        self._idle_since: float | None = None  # None: the model was not asked yet
        self._lines = Counter(
            "pierhead_batch_lines", "Lines committed by this process, by outcome.", ["outcome"], registry=registry
        )
        self._bytes = Counter("pierhead_batch_input_bytes", "Bytes of input committed.", registry=registry)
        self._chunks = Counter("pierhead_batch_chunks", "Chunks committed by this process.", registry=registry)
        self._retries = Counter(
            "pierhead_batch_storage_retries", "Requests to storage that were tried once more.", registry=registry
        )
        self._waited = Counter(
            "pierhead_batch_storage_wait_seconds",
            "Time that nothing was done but to wait for storage.",
            registry=registry,
        )
        for outcome in ("successful", "failed"):
            self._lines.labels(outcome)

    @property
    def age(self) -> float:
        """Seconds since the last beat."""
        return time.monotonic() - self._last

    def beat(self) -> None:
        """Something came: an answer of storage, or of the model."""
        self._last = time.monotonic()

    def count_retry(self) -> None:
        """A request to storage failed and is tried again."""
        self._retries.inc()

    def count_chunk(self, successful: int, failed: int, size: int) -> None:
        """A chunk was committed."""
        self._chunks.inc()
        self._lines.labels("successful").inc(successful)
        self._lines.labels("failed").inc(failed)
        self._bytes.inc(size)

    @contextmanager
    def asking(self) -> Iterator[None]:
        """A call is in the model's hands; while none is, storage is waited for."""
        now = time.monotonic()
        if self._asking == 0 and self._idle_since is not None:
            self._waited.inc(now - self._idle_since)
        self._asking += 1
        try:
            yield
        finally:
            self._asking -= 1
            self._idle_since = time.monotonic()
