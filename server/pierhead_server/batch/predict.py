"""Lines become records: pictures fetched ahead, calls kept waiting for every worker, order kept."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass

import msgspec

from pierhead_server.batch.caution import Caution
from pierhead_server.batch.document import InputFormat
from pierhead_server.batch.errors import (
    DEADLINE_EXCEEDED,
    INTERNAL,
    INVALID_ARGUMENT,
    NOT_FOUND,
    PERMISSION_DENIED,
    LineError,
    to_rpc_code,
)
from pierhead_server.batch.instances import Instance, name_line, quote_line, read_instance
from pierhead_server.batch.lines import MAX_LINE_BYTES
from pierhead_server.batch.parts import Record
from pierhead_server.batch.pulse import Pulse
from pierhead_server.batch.source import Line
from pierhead_server.batch.storage import RefusedError, Storage
from pierhead_server.errors import DeadlineExceededError, InternalError
from pierhead_server.messages import Call, Reply
from pierhead_server.workers import Workers

MOST_LINES = 256  # in flight, if the model's batches ask for no more
MOST_FETCHES = 32  # at a time
BUDGET_BYTES = 128 * 1024 * 1024  # of pictures that nobody has predicted yet, and as many of lines

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

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._slots = asyncio.Semaphore(MOST_FETCHES)
        self.budget = Budget(BUDGET_BYTES)

    async def fetch(self, uri: str, share: Share) -> bytes:
        """A picture's bytes. Raises LineError for what is not there, StorageUnreachableError."""

        async def admit(size: int) -> None:
            if size > MAX_LINE_BYTES:
                raise LineError(INVALID_ARGUMENT, f"content: {uri}: {size} bytes are more than {MAX_LINE_BYTES}")
            await share.take(size)

        async with self._slots:
            try:
                data = await self._storage.read_all(uri, admit)
            except FileNotFoundError as error:
                raise LineError(NOT_FOUND, f"content: {error}") from None
            except RefusedError as error:
                raise LineError(PERMISSION_DENIED, f"content: {error}") from None
        if not data:
            raise LineError(INVALID_ARGUMENT, f"content: {uri}: the file is empty")
        return data


class Predictor:
    """Predicts lines with a model's workers; `arguments` go with each instance."""

    def __init__(
        self, workers: Workers, pictures: Pictures, form: InputFormat, arguments: Mapping[str, object], pulse: Pulse
    ) -> None:
        self._workers = workers
        self._pictures = pictures
        self._form: InputFormat = form
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
        if reason := await caution.take(line.position):
            record = _fail(self._quote(line), LineError(INTERNAL, reason))
        else:
            record = await self._predict(line)
        await caution.end()
        return record

    async def _predict(self, line: Line) -> Record:
        if line.data is None:
            told = name_line(line.uri, line.position.offset)
            return _fail(told, LineError(INVALID_ARGUMENT, f"the line is longer than {MAX_LINE_BYTES} bytes"))
        try:
            instance = read_instance(self._form, line.data, line.columns)
        except LineError as error:
            return _fail(quote_line(line.data), error)
        try:
            return Record(instance.told, await self._ask(instance), ok=True)
        except LineError as error:
            return _fail(instance.told, error)

    def _quote(self, line: Line) -> bytes:
        """The instance of a line that shall not be predicted."""
        if line.data is None:
            return name_line(line.uri, line.position.offset)
        try:
            return read_instance(self._form, line.data, line.columns).told
        except LineError:
            return quote_line(line.data)

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


def _fail(told: bytes, error: LineError) -> Record:
    return Record(told, msgspec.json.encode({"code": error.code, "message": str(error)}), ok=False)
