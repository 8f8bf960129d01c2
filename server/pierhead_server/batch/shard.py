"""One shard from its first line to its last: read, predict, commit, and on from where an earlier attempt ended."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing

from pierhead_server.batch.caution import Caution
from pierhead_server.batch.chain import Chain
from pierhead_server.batch.parts import Record
from pierhead_server.batch.plan import Plan, Position, Segment, compute_segments, count_bytes, end_of
from pierhead_server.batch.predict import MOST_LINES, Predicted, Predictor
from pierhead_server.batch.pulse import Pulse
from pierhead_server.batch.source import Source

logger = logging.getLogger(__name__)

CHUNK_LINES = 200
CHUNK_BYTES = 8 * 1024 * 1024  # of input
CHUNK_SECONDS = 10.0  # that a slow model's lines wait for others; a worker that is killed loses no more of its time
# That a worker may have in its hands when it dies: a chunk that is written, one that is filled, and what is under way.
SUSPECTS = 2 * CHUNK_LINES + MOST_LINES


class Chunk:
    """Records that will be committed together."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._size = 0
        self._due = math.inf
        self.end = Position(0, 0)  # behind its last line

    @property
    def full(self) -> bool:
        """Whether the next record belongs to the next chunk."""
        return len(self.records) >= CHUNK_LINES or self._size >= CHUNK_BYTES or time.monotonic() >= self._due

    def add(self, predicted: Predicted) -> None:
        """One more."""
        if not self.records:
            self._due = time.monotonic() + CHUNK_SECONDS
        self.records.append(predicted.record)
        self._size += len(predicted.line.data or b"")
        self.end = predicted.line.next


class OvertakenError(Exception):
    """Another worker has committed here, and its chunk ends elsewhere."""


class Shard:
    """One worker's part of a job; `committed` is called after each chunk. Raises StartupErrors."""

    def __init__(self, plan: Plan, number: int, chain: Chain, pulse: Pulse, committed: Callable[[], None]) -> None:
        self._plan = plan
        self._chain = chain
        self._pulse = pulse
        self._committed = committed
        self._segments: Sequence[Segment] = compute_segments(plan, number)
        self._writing: asyncio.Task[None] | None = None

    @property
    def bytes_done(self) -> int:
        """Of its input, committed."""
        return count_bytes(self._plan, self._segments, self._chain.end)

    @property
    def bytes_total(self) -> int:
        """Of its input."""
        return count_bytes(self._plan, self._segments)

    async def run(self, source: Source, predictor: Predictor, caution: Caution) -> None:
        """Commit all that is not committed yet."""
        while self._chain.end < end_of(self._plan):
            try:
                if not await self._run_on(source, predictor, caution):
                    return
            except OvertakenError:
                logger.warning("another worker is at this shard: its chunks are taken over")

    async def _run_on(self, source: Source, predictor: Predictor, caution: Caution) -> bool:
        """From the chain's end on; whether there was any line."""
        chunk, lines = Chunk(), source.lines(self._segments, self._chain.end)
        try:
            async with aclosing(predictor.predict(lines, caution)) as predicted:
                async for one in predicted:
                    if chunk.full:
                        await self._commit(chunk)
                        chunk = Chunk()
                    chunk.add(one)
            if chunk.records:
                chunk.end = end_of(self._plan)
                await self._commit(chunk)
        finally:
            await self.settle()
        return bool(chunk.records)

    async def _commit(self, chunk: Chunk) -> None:
        """Begin to write a chunk, when the one before it is there: the next one is filled meanwhile."""
        await self.settle()
        self._writing = asyncio.create_task(self._write(chunk))

    async def settle(self) -> None:
        """Wait for what is being written. Raises OvertakenError."""
        if writing := self._writing:
            await asyncio.wait({writing})  # whoever is cancelled here, what is written is not
            self._writing = None
            writing.result()

    async def _write(self, chunk: Chunk) -> None:
        before, failed = self.bytes_done, self._chain.failed
        mine = await self._chain.commit(chunk.records, chunk.end)
        self._committed()
        if not mine and self._chain.end != chunk.end:
            raise OvertakenError
        if mine:
            failed = self._chain.failed - failed
            self._pulse.count_chunk(len(chunk.records) - failed, failed, self.bytes_done - before)
