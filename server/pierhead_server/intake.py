"""Bodies that are being read: which may begin, and how fast they must come.

What memory they take is counted in bytes, in the budget of all requests. A slow upload takes its bytes and nothing
else: neither a place in the queue nor a request's turn.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pierhead_server.budget import Budget, Progress
from pierhead_server.errors import BodyTooLargeError, QueueFullError, SlowUploadError

# What a request takes beside its body: its connection, its headers and its task.
OVERHEAD_BYTES = 16 * 1024
# An upload younger than this is counted among those that will want a place in the queue in a moment.
FRESH_SECONDS = 0.1
_GROWTH_BYTES = 64 * 1024  # by which a body without a declared length reserves more

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(frozen=True)
class IntakePolicy:
    """What bodies may take."""

    queue_size: int  # requests that may wait
    body_bytes: int  # of one body
    least_pace: float  # bytes a second that a body must come with
    grace_seconds: float  # of silence, or of less than that pace


@dataclass(eq=False)
class Upload:
    """A body that is being read: one of the budget's transfers."""

    begun: float  # by the monotonic clock, as all times here
    held: int  # bytes: of a body that says how long it is, all of them from the beginning
    deadline: float  # by which more of it must have come
    declared: int | None = None  # bytes
    received: int = 0
    dropped: bool = False
    timeout: asyncio.Timeout | None = field(default=None, repr=False)

    def measure(self) -> Progress:
        """How far it has come."""
        return Progress(self.received, None if self.declared is None else self.declared - self.received)

    def drop(self) -> None:
        """End it, for want of room."""
        self.dropped = True
        if self.timeout and not self.timeout.expired():
            self.timeout.reschedule(-math.inf)


def is_queue_full(queue_size: int, *, waiting: int, fresh: int) -> bool:
    """Whether one more request would find no place when its body is there.

    The uploads that have just begun are counted too, or their bodies would be read in vain; but at most as half a
    queue, so that uploads that begin and never end do not keep all others away.
    """
    return waiting + min(fresh, queue_size // 2) >= queue_size


def extend_deadline(policy: IntakePolicy, upload: Upload, count: int, now: float) -> float:
    """When an upload is too slow, once `count` more bytes of it have come: what came fast earns no long rest."""
    return min(upload.deadline + count / policy.least_pace, now + policy.grace_seconds)


class Body:
    """One request's body as it comes."""

    def __init__(self, declared: int | None, receive: Receive) -> None:
        self.declared = declared
        self.received = 0
        self.ended = False
        self._receive = receive

    @property
    def left(self) -> float:
        """The bytes of it that nobody has read; infinite where nobody knows."""
        if self.ended:
            return 0
        return math.inf if self.declared is None else max(0, self.declared - self.received)

    async def receive(self) -> MutableMapping[str, Any]:
        """The next message of ASGI."""
        message = await self._receive()
        if message["type"] == "http.request":
            self.received += len(message.get("body", b""))
            self.ended = not message.get("more_body", False)
        return message


class CallerGoneError(Exception):
    """Nobody waits for the answer any more."""


class Held(Protocol):
    """Whoever holds the requests that are read: the workers."""

    @property
    def waiting(self) -> int:
        """Requests that wait."""
        ...

    @property
    def budget(self) -> Budget:
        """The bytes of all requests."""
        ...


class Intake:
    """Reads bodies within the policy's bounds."""

    def __init__(self, policy: IntakePolicy, held: Held) -> None:
        self._policy = policy
        self._held = held
        self._budget = held.budget
        self._fresh: dict[Upload, None] = {}  # that have just begun, in that order
        self.reading = 0  # bodies

    def check(self, declared: int | None) -> None:
        """Whether a body may begin, by its length alone; nothing is reserved and nobody dropped.

        Raises BodyTooLargeError, QueueFullError, RequestBytesFullError.
        """
        now = time.monotonic()
        self._judge(declared, now)
        self._budget.find_room(OVERHEAD_BYTES + (declared or 0), now)

    async def read(self, body: Body) -> bytes:
        """All of a body. Raises what `check` raises, SlowUploadError, and CallerGoneError."""
        now = time.monotonic()
        self._judge(body.declared, now)
        size = OVERHEAD_BYTES + (body.declared or 0)
        self._budget.make_room(size, now)
        upload = Upload(now, size, now + self._policy.grace_seconds, body.declared)
        self._budget.begin(upload)
        self._fresh[upload] = None
        self.reading += 1
        try:
            async with asyncio.timeout(self._policy.grace_seconds) as upload.timeout:
                return await self._receive(body, upload)
        except TimeoutError:
            raise self._explain(upload) from None
        finally:
            self.reading -= 1
            self._fresh.pop(upload, None)
            self._budget.end(upload)

    def _judge(self, declared: int | None, now: float) -> None:
        if declared is not None and declared > self._policy.body_bytes:
            raise self._too_large()
        if is_queue_full(self._policy.queue_size, waiting=self._held.waiting, fresh=self._count_fresh(now)):
            raise QueueFullError(f"{self._policy.queue_size} requests are waiting: try again later")

    def _count_fresh(self, now: float) -> int:
        while self._fresh:
            first = next(iter(self._fresh))
            if now - first.begun < FRESH_SECONDS:
                break
            del self._fresh[first]
        return len(self._fresh)

    async def _receive(self, body: Body, upload: Upload) -> bytes:
        first = await self._receive_chunk(body, upload)
        if body.ended:
            return first
        # Not a list of chunks: one that comes in crumbs would take many times its size.
        whole = bytearray(first)
        while not body.ended:
            whole += await self._receive_chunk(body, upload)
        return bytes(whole)

    async def _receive_chunk(self, body: Body, upload: Upload) -> bytes:
        message = await body.receive()
        if message["type"] == "http.disconnect":
            raise CallerGoneError
        if upload.dropped:
            raise self._budget.explain()
        chunk: bytes = message.get("body", b"")
        self._take(upload, len(chunk), ended=body.ended)
        return chunk

    def _take(self, upload: Upload, count: int, *, ended: bool) -> None:
        """More of a body has come."""
        upload.received += count
        if upload.received > self._policy.body_bytes:
            raise self._too_large()
        now = time.monotonic()
        if upload.received > upload.held - OVERHEAD_BYTES:
            self._grow(upload, now)
        if not ended and upload.timeout:
            upload.deadline = extend_deadline(self._policy, upload, count, now)
            upload.timeout.reschedule(asyncio.get_running_loop().time() + upload.deadline - now)

    def _grow(self, upload: Upload, now: float) -> None:
        """Reserve more for a body that did not say how long it is."""
        more = upload.received - (upload.held - OVERHEAD_BYTES) + _GROWTH_BYTES
        self._budget.make_room(more, now)
        if upload.dropped:  # it was the slowest itself
            raise self._budget.explain()
        self._budget.resize(upload, upload.held + more)

    def _explain(self, upload: Upload) -> Exception:
        if upload.dropped:
            return self._budget.explain()
        pace, grace = self._policy.least_pace, self._policy.grace_seconds
        return SlowUploadError(
            f"the body came too slowly, {upload.received} bytes of it: send at least {pace:g} bytes a second, "
            f"and never nothing for {grace:g} s"
        )

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"the body is over {self._policy.body_bytes} bytes: send fewer or smaller instances in a request"
        )
