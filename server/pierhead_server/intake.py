"""Bodies that are being read: which may begin, how fast they must come, and which go when memory is short.

What memory they take is counted in bytes, together with the requests that wait and those in workers' hands. A slow
upload takes its bytes and nothing else: neither a place in the queue nor a request's turn. Who is refused or dropped
is decided by pure functions; `Intake` keeps the books.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from pierhead_server.errors import BodyTooLargeError, QueueFullError, RequestBytesFullError, SlowUploadError

# What a request takes beside its body: its connection, its headers and its task.
OVERHEAD_BYTES = 16 * 1024
# An upload younger than this is counted among those that will want a place in the queue in a moment.
FRESH_SECONDS = 0.1
# When bytes are short, an upload older than this and slower than that makes room for others.
SLOW_AFTER_SECONDS = 1.0
SLOW_PACE = 64 * 1024  # bytes a second
_GROWTH_BYTES = 64 * 1024  # by which a body without a declared length reserves more

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(frozen=True)
class IntakePolicy:
    """What bodies may take."""

    queue_size: int  # requests that may wait
    most_bytes: int  # of all requests together, from the first byte that is read to the answer
    body_bytes: int  # of one body
    least_pace: float  # bytes a second that a body must come with
    grace_seconds: float  # of silence, or of less than that pace


@dataclass(eq=False)
class Upload:
    """A body that is being read."""

    begun: float  # by the monotonic clock, as all times here
    reserved: int  # bytes
    deadline: float  # by which more of it must have come
    received: int = 0
    dropped: bool = False
    timeout: asyncio.Timeout | None = field(default=None, repr=False)


def is_queue_full(queue_size: int, *, waiting: int, fresh: int) -> bool:
    """Whether one more request would find no place when its body is there.

    The uploads that have just begun are counted too, or their bodies would be read in vain; but at most as half a
    queue, so that uploads that begin and never end do not keep all others away.
    """
    return waiting + min(fresh, queue_size // 2) >= queue_size


def extend_deadline(policy: IntakePolicy, upload: Upload, count: int, now: float) -> float:
    """When an upload is too slow, once `count` more bytes of it have come: what came fast earns no long rest."""
    return min(upload.deadline + count / policy.least_pace, now + policy.grace_seconds)


def choose_victims(uploads: Iterable[Upload], missing: int, now: float) -> list[Upload] | None:
    """The slowest uploads, whose end frees `missing` bytes; None where that is not enough: then nobody is dropped.

    `uploads` are in the order in which they began. One that comes along well is never dropped for another one, or in a
    crowd none would ever end.
    """
    slow: list[tuple[float, Upload]] = []
    for upload in uploads:
        if now - upload.begun < SLOW_AFTER_SECONDS:
            break  # and so are all that follow
        pace = upload.received / (now - upload.begun)
        if pace < SLOW_PACE:
            slow.append((pace, upload))
    slow.sort(key=lambda one: one[0])
    victims: list[Upload] = []
    for _, upload in slow:
        if missing <= 0:
            break
        victims.append(upload)
        missing -= upload.reserved
    return victims if missing <= 0 else None


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
    def held_bytes(self) -> int:
        """The bodies of those that wait and of those in workers' hands."""
        ...


class Intake:
    """Reads bodies within the policy's bounds."""

    def __init__(self, policy: IntakePolicy, held: Held) -> None:
        self._policy = policy
        self._held = held
        self._uploads: dict[Upload, None] = {}  # in the order in which they began
        self._fresh: dict[Upload, None] = {}  # the same, those that just did
        self._reserved = 0  # bytes, of all uploads
        self.aside = 0  # bytes that connections hold besides: of heads that come slowly, and of answers nobody takes

    @property
    def reading(self) -> int:
        """Bodies that are being read."""
        return len(self._uploads)

    @property
    def held_bytes(self) -> int:
        """What all requests hold by now."""
        return self._reserved + self._held.held_bytes + self.aside

    def check(self, declared: int | None) -> None:
        """Whether a body may begin, by its length alone; nothing is reserved and nobody dropped.

        Raises BodyTooLargeError, QueueFullError, RequestBytesFullError.
        """
        self._judge(declared, time.monotonic())

    async def read(self, body: Body) -> bytes:
        """All of a body. Raises what `check` raises, SlowUploadError, and CallerGoneError."""
        now = time.monotonic()
        self._drop(self._judge(body.declared, now))
        size = OVERHEAD_BYTES + (body.declared or 0)
        upload = Upload(now, size, now + self._policy.grace_seconds)
        self._uploads[upload] = self._fresh[upload] = None
        self._reserved += size
        try:
            async with asyncio.timeout(self._policy.grace_seconds) as upload.timeout:
                return await self._receive(body, upload)
        except TimeoutError:
            raise self._explain(upload) from None
        finally:
            self._forget(upload)

    def _judge(self, declared: int | None, now: float) -> list[Upload]:
        """The uploads that must go so that one more body may begin."""
        if declared is not None and declared > self._policy.body_bytes:
            raise self._too_large()
        if is_queue_full(self._policy.queue_size, waiting=self._held.waiting, fresh=self._count_fresh(now)):
            raise QueueFullError(f"{self._policy.queue_size} requests are waiting: try again later")
        return self._find_room(OVERHEAD_BYTES + (declared or 0), now)

    def _count_fresh(self, now: float) -> int:
        while self._fresh:
            first = next(iter(self._fresh))
            if now - first.begun < FRESH_SECONDS:
                break
            del self._fresh[first]
        return len(self._fresh)

    def _find_room(self, count: int, now: float) -> list[Upload]:
        """The uploads that must go so that `count` more bytes may come. Raises RequestBytesFullError."""
        missing = self.held_bytes + count - self._policy.most_bytes
        if missing <= 0:
            return []
        victims = choose_victims(self._uploads, missing, now)
        if victims is None:
            raise self._full()
        return victims

    def _drop(self, victims: list[Upload]) -> None:
        for upload in victims:
            upload.dropped = True
            self._forget(upload)
            if upload.timeout and not upload.timeout.expired():
                upload.timeout.reschedule(-math.inf)

    def _forget(self, upload: Upload) -> None:
        if upload in self._uploads:
            del self._uploads[upload]
            self._fresh.pop(upload, None)
            self._reserved -= upload.reserved

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
            raise self._full()
        chunk: bytes = message.get("body", b"")
        self._take(upload, len(chunk), ended=body.ended)
        return chunk

    def _take(self, upload: Upload, count: int, *, ended: bool) -> None:
        """More of a body has come."""
        upload.received += count
        if upload.received > self._policy.body_bytes:
            raise self._too_large()
        now = time.monotonic()
        if upload.received > upload.reserved - OVERHEAD_BYTES:
            self._grow(upload, now)
        if not ended and upload.timeout:
            upload.deadline = extend_deadline(self._policy, upload, count, now)
            upload.timeout.reschedule(asyncio.get_running_loop().time() + upload.deadline - now)

    def _grow(self, upload: Upload, now: float) -> None:
        """Reserve more for a body that did not say how long it is."""
        more = upload.received - (upload.reserved - OVERHEAD_BYTES) + _GROWTH_BYTES
        victims = self._find_room(more, now)
        self._drop(victims)
        if upload in victims:
            raise self._full()
        upload.reserved += more
        self._reserved += more

    def _explain(self, upload: Upload) -> Exception:
        if upload.dropped:
            return self._full()
        pace, grace = self._policy.least_pace, self._policy.grace_seconds
        return SlowUploadError(
            f"the body came too slowly, {upload.received} bytes of it: send at least {pace:g} bytes a second, "
            f"and never nothing for {grace:g} s"
        )

    def _full(self) -> RequestBytesFullError:
        return RequestBytesFullError(f"requests hold {self._policy.most_bytes} bytes: try again later")

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(
            f"the body is over {self._policy.body_bytes} bytes: send fewer or smaller instances in a request"
        )
