"""The bodies of management calls: how large, how slow and how deep they may be, for one caller and for all."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json
from starlette.types import Receive

from pierhead_api.errors import InvalidArgumentError, RequestTimeoutError, ResourceExhaustedError
from pierhead_api.transport import CallerGoneError, check_length, too_large

_KIB = 1024


@dataclass(frozen=True)
class BodyLimits:
    """What is held of bodies until their calls are answered, in bytes; and how long a body may take to come."""

    body: int = 1024 * _KIB
    of_a_caller: int = 8 * 1024 * _KIB
    of_all: int = 32 * 1024 * _KIB
    seconds: float = 20.0
    # Values, and names of objects' members. Each takes some 60 bytes, and a while on the event loop.
    elements: int = 10_000


class Bodies:
    """Reads them. Whoever sends one is somebody whom Kubernetes knows."""

    def __init__(self, limits: BodyLimits | None = None) -> None:
        self._limits = limits or BodyLimits()
        self._held: Counter[str] = Counter()  # by caller, as Kubernetes knows them

    @asynccontextmanager
    async def read(self, caller: str, headers: Mapping[bytes, bytes], receive: Receive) -> AsyncIterator[Any]:
        """The object that a body holds, an empty one of no body; inside, its bytes count as held.

        Raises InvalidArgumentError, BodyTooLargeError, ResourceExhaustedError, RequestTimeoutError, CallerGoneError.
        """
        check_length(headers, self._limits.body)
        # Taken before it comes: a body that comes slowly takes no less room than it says.
        size = self._find_size(headers)
        self._check_room(caller, size)
        self._held[caller] += size
        try:
            data = await self._receive(receive)
            self._held[caller] += len(data) - size
            size = len(data)
            yield parse_object(data, self._limits.elements)
        finally:
            self._held[caller] -= size
            if not self._held[caller]:
                del self._held[caller]

    def _find_size(self, headers: Mapping[bytes, bytes]) -> int:
        """Of a body in bytes: the most, where it is not told; 0 where there is none."""
        declared = headers.get(b"content-length", b"")
        if declared.isdigit():
            return int(declared)
        return self._limits.body if b"transfer-encoding" in headers else 0

    def _check_room(self, caller: str, size: int) -> None:
        limits = self._limits
        if self._held[caller] + size > limits.of_a_caller:
            raise ResourceExhaustedError(f"your calls that are being answered have {limits.of_a_caller} bytes already")
        if self._held.total() + size > limits.of_all:
            raise ResourceExhaustedError("too many large requests are being answered: try again later")

    async def _receive(self, receive: Receive) -> bytes:
        data, more = bytearray(), True
        try:
            async with asyncio.timeout(self._limits.seconds):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise CallerGoneError
                    data += message.get("body", b"")
                    more = bool(message.get("more_body", False))
                    if len(data) > self._limits.body:
                        raise too_large(self._limits.body)
        except TimeoutError as error:
            raise RequestTimeoutError(f"the body did not come within {self._limits.seconds:g} s") from error
        return bytes(data)


def parse_object(data: bytes, most_elements: int) -> dict[str, Any]:
    """The JSON object in a body; an empty one of nothing. Raises InvalidArgumentError."""
    if not data.strip():
        return {}
    # Some of these may stand in a text: then it is a long one.
    if sum(data.count(sign) for sign in (b",", b"[", b"{")) > most_elements:
        raise InvalidArgumentError(f"the body has more than {most_elements} values: send less in a request")
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise InvalidArgumentError(f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise InvalidArgumentError("the body must be a JSON object")
    return body
