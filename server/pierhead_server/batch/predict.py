"""Lines become records: pictures fetched ahead, calls kept waiting for every worker, order kept."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

import msgspec

from pierhead_server.batch.caution import MOST_DEATHS, Caution
from pierhead_server.batch.errors import (
    DEADLINE_EXCEEDED,
    INTERNAL,
    INVALID_ARGUMENT,
    NOT_FOUND,
    PERMISSION_DENIED,
    UNAVAILABLE,
    LineError,
    MalformedError,
    RefusedError,
    StorageUnreachableError,
    to_rpc_code,
)
from pierhead_server.batch.instances import Instance, Reading, name_line, quote_line, read_instance
from pierhead_server.batch.lines import MAX_LINE_BYTES
from pierhead_server.batch.parts import Record
from pierhead_server.batch.pulse import Pulse
from pierhead_server.batch.shaping import INSTANCE
from pierhead_server.batch.source import Line
from pierhead_server.batch.storage import ROUNDS, Storage, is_web
from pierhead_server.errors import DeadlineExceededError, InternalError
from pierhead_server.messages import Call, Reply
from pierhead_server.workers import Workers

MOST_LINES = 256  # in flight, if the model's batches ask for no more
MOST_FETCHES = 32  # at a time
AWAY_SECONDS = 60.0  # for which a host or a bucket that did not answer is asked once a picture, and not again and again
BUDGET_BYTES = 128 * 1024 * 1024  # of pictures that nobody has predicted yet, and as many of lines

_MOST_AWAY = 1000  # hosts and buckets that are remembered
_FIRST = "instances[0]"  # how the model's errors begin; each call has one instance


class Answer(msgspec.Struct):
    """The body of a reply."""

    predictions: tuple[msgspec.Raw]


class _Cause(msgspec.Struct):
    message: str


class Refusal(msgspec.Struct):
    """The body of an error."""

    error: _Cause


@dataclass(frozen=True)
class Predicted:
    """A line and what became of it."""

    line: Line
    record: Record


class Budget:
    """Bytes that may be held; one who takes more than there are gets them when nobody else holds any."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._held = 0
        self._freed = asyncio.Event()

    @contextmanager
    def share(self) -> Iterator["Share"]:
        """What is taken inside is given back at the end."""
        share = Share(self)
        try:
            yield share
        finally:
            self._held -= share.size
            self._freed.set()

    async def take(self, size: int) -> None:
        """Wait until there are so many."""
        while self._held and self._held + size > self._size:
            self._freed.clear()
            await self._freed.wait()
        self._held += size


@dataclass
class Share:
    """One taker's part of a budget."""

    budget: Budget
    size: int = 0

    async def take(self, size: int) -> None:
        """Wait for so many bytes."""
        await self.budget.take(size)
        self.size = size


class Pictures:
    """Fetches pictures, within bounds of memory and of requests."""

    def __init__(self, storage: Storage, caution: Caution) -> None:
        self._storage = storage
        self._caution = caution
        self._slots = asyncio.Semaphore(MOST_FETCHES)
        self._away: dict[str, float] = {}  # until when, by host or bucket
        self.budget = Budget(BUDGET_BYTES)

    async def fetch(self, uri: str, share: Share) -> bytes:
        """A picture's bytes. Raises LineError for what is wrong with it, StorageUnreachableError."""
        async with self._slots:
            try:
                data = await self._read(uri, share)
            except FileNotFoundError as error:
                raise LineError(NOT_FOUND, f"content: {error}") from None
            except MalformedError as error:
                raise LineError(INVALID_ARGUMENT, f"content: {error}") from None
            except RefusedError as error:
                raise LineError(PERMISSION_DENIED, f"content: {error}") from None
        if not data:
            raise LineError(INVALID_ARGUMENT, f"content: {uri}: the file is empty")
        return data

    async def _read(self, uri: str, share: Share) -> bytes:
        async def admit(size: int | None) -> int:
            if size is not None and size > MAX_LINE_BYTES:
                raise LineError(INVALID_ARGUMENT, f"content: {uri}: {size} bytes are more than {MAX_LINE_BYTES}")
            most = MAX_LINE_BYTES if size is None else size
            await share.take(most)
            return most

        place = find_place(uri)
        rounds = 1 if time.monotonic() < self._away.get(place, 0.0) else ROUNDS
        try:
            data = await self._storage.read_all(uri, admit, rounds)
        except StorageUnreachableError as error:
            if len(self._away) >= _MOST_AWAY:
                self._away.clear()
            self._away[place] = time.monotonic() + AWAY_SECONDS
            # A storage that is away is everybody's trouble, a web server that of those who name it.
            if is_web(uri) or self._caution.report_away(place):
                raise LineError(UNAVAILABLE, f"content: {error}") from None
            raise
        except (FileNotFoundError, RefusedError, LineError):
            self._report_there(place)
            raise
        self._report_there(place)
        return data

    def _report_there(self, place: str) -> None:
        self._away.pop(place, None)
        self._caution.report_there(place)


def find_place(uri: str) -> str:
    """A URI's bucket or host."""
    scheme, _, rest = uri.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


class Predictor:
    """Predicts lines with a model's workers; `arguments` go with each instance."""

    def __init__(
        self, workers: Workers, pictures: Pictures, reading: Reading, arguments: Mapping[str, object], pulse: Pulse
    ) -> None:
        self._workers = workers
        self._pictures = pictures
        self._reading = reading
        self._arguments = arguments
        self._pulse = pulse

    async def predict(self, lines: AsyncGenerator[Line], caution: Caution) -> AsyncGenerator[Predicted]:
        """One record for each line, in their order; as many lines as help are under way."""
        flight: deque[_Flight] = deque()
        held, more = 0, True
        try:
            async with aclosing(lines):
                while more or flight:
                    while more and self._has_room(flight, held, caution):
                        line = await anext(lines, None)
                        if line is None:
                            more = False
                            break
                        flight.append(_Flight(line, self._begin(line, caution)))
                        held += flight[-1].size
                    if flight:
                        record = await flight[0].task
                        held -= flight[0].size
                        yield Predicted(flight.popleft().line, record)
        finally:
            for one in flight:
                one.task.cancel()

    def _has_room(self, flight: "deque[_Flight]", held: int, caution: Caution) -> bool:
        if caution.active or not flight:
            return not flight
        return len(flight) < max(MOST_LINES, self._workers.appetite) and held < BUDGET_BYTES

    def _begin(self, line: Line, caution: Caution) -> "asyncio.Task[Record]":
        answer = self._predict_alone(line, caution) if caution.active else self._predict(line)
        return asyncio.create_task(answer)

    async def _predict_alone(self, line: Line, caution: Caution) -> Record:
        await self._workers.loaded.wait()  # a worker that dies of its model does not die of this line
        deaths = await caution.take(line.position)
        if deaths < MOST_DEATHS:
            record = await self._predict(line)
        else:
            error = LineError(INTERNAL, f"the worker died {deaths} times at this line")
            # One that died even of passing it could not read it.
            record = self._pass(line, error) if deaths == MOST_DEATHS else _fail(_quote(line), error)
        await caution.end()
        return record

    async def _predict(self, line: Line) -> Record:
        try:
            instance = self._read(line)
        except LineError as error:
            return _fail(error.told or _quote(line), error)
        try:
            return Record(instance.told, await self._ask(instance), True, instance.name)
        except LineError as error:
            self._pulse.beat()
            return _fail(instance.told, error, instance.name)

    def _read(self, line: Line) -> Instance:
        if line.data is None:
            raise LineError(INVALID_ARGUMENT, f"the line is longer than {MAX_LINE_BYTES} bytes")
        return read_instance(self._reading, line.data, line.columns)

    def _pass(self, line: Line, error: LineError) -> Record:
        """The record of a line that is not predicted."""
        try:
            instance = self._read(line)
        except LineError as wrong:
            return _fail(wrong.told or _quote(line), error)
        return _fail(instance.told, error, instance.name)

    async def _ask(self, instance: Instance) -> bytes:
        """The prediction, as JSON. Raises LineError."""
        with self._pictures.budget.share() as share:
            value = instance.value
            if instance.picture is not None:
                assert isinstance(value, dict)
                value = value | {"content": await self._pictures.fetch(instance.picture, share)}
            call = _make_call({**self._arguments, "instances": [value]})
            await self._workers.loaded.wait()
            with self._pulse.asking():
                reply = await self._submit(call)
        self._pulse.beat()
        if reply.code != 200:
            message = msgspec.json.decode(reply.body, type=Refusal).error.message
            raise LineError(to_rpc_code(reply.code), message.removeprefix(_FIRST).lstrip(".: "))
        return bytes(msgspec.json.decode(reply.body, type=Answer).predictions[0])

    async def _submit(self, call: Call) -> Reply:
        try:
            try:
                return await self._workers.submit(call)
            except DeadlineExceededError:
                # Of its batch perhaps another call took so long.
                return await self._workers.submit(call, alone=True)
        except DeadlineExceededError as error:
            raise LineError(DEADLINE_EXCEEDED, str(error)) from None
        except InternalError as error:
            raise LineError(INTERNAL, str(error)) from None


def _make_call(body: Mapping[str, object]) -> Call:
    try:
        return Call("batch", msgspec.msgpack.encode(body))
    except OverflowError:
        raise LineError(INVALID_ARGUMENT, "a whole number is beyond 64 bits") from None
    except RecursionError:
        raise LineError(INVALID_ARGUMENT, "the line is nested too deeply") from None


@dataclass(frozen=True)
class _Flight:
    line: Line
    task: "asyncio.Task[Record]"

    @property
    def size(self) -> int:
        return len(self.line.data or b"")


def _quote(line: Line) -> bytes:
    """What the errors file has of a line that is no instance."""
    return name_line(line.uri, line.position.offset) if line.data is None else quote_line(line.data)


def _fail(told: bytes, error: LineError, name: str = INSTANCE) -> Record:
    return Record(told, msgspec.json.encode({"code": error.code, "message": str(error)}), False, name)
