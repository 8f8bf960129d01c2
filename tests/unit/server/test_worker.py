"""A worker's two loops over a real connection, with a small model in this process."""

import contextlib
import gzip
import json
import socket
import threading
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from pierhead_server.artifact import Sample
from pierhead_server.computing import compute, prepare_rows
from pierhead_server.errors import DriverTooOldError, InvalidArgumentError
from pierhead_server.messages import Call, FirstMessage, Hello, Refusal, Reply, pack, read
from pierhead_server.protocol import Limits, refuse_arguments
from pierhead_server.signature import Signature
from pierhead_server.tensors import ValueTensorError
from pierhead_server.worker import refuse, run_pipelined_worker, run_worker

from tests.unit.server.calls import CONTRACT

REPLY = msgspec.msgpack.Decoder(Reply)
FIRST = msgspec.msgpack.Decoder(FirstMessage)
DEADLINE_SECONDS = 30


class Doubled:
    labels = None
    echoes_key = False

    def __init__(self, rows):
        self._rows = rows

    def predictions(self):
        return self._rows

    def tensors(self):
        return {"output": np.array(self._rows)}


class Doubling:
    """Doubles numbers, and says when it is at which step."""

    form, batch, signature = "quick", 4, Signature((), ())

    def __init__(self, sample=None):
        self.sample = sample
        self.batches = []
        self.prepared = threading.Semaphore(0)
        self.computing = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()

    def measure(self, request):
        return None

    def prepare(self, request):
        try:
            return prepare_rows(request, self._read, refuse_arguments)
        finally:
            self.prepared.release()

    @staticmethod
    def _read(instance):
        if instance == "bug":
            raise RuntimeError("a bug in reading")
        if not isinstance(instance, int):
            raise ValueTensorError("", "must be a whole number")
        return instance

    def compute(self, prepared):
        self.computing.release()
        assert self.go_on.wait(DEADLINE_SECONDS)
        return compute(prepared, self._forward, lambda _, rows: Doubled(rows), faults=(ValueError,))

    def _forward(self, rows):
        self.batches.append(list(rows))
        if -1 in rows:
            raise ValueError("unlucky")
        if -2 in rows:
            raise SystemExit("the device is gone")
        return [2 * row for row in rows]


class Listener:
    """The other end of a worker's connection."""

    def __init__(self, connection):
        self.connection = connection
        self._stream = connection.makefile("rb")

    def close(self):
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)
        self._stream.close()
        self.connection.close()

    def send(self, *bodies):
        calls = [Call("raw", body if isinstance(body, bytes) else json.dumps(body).encode()) for body in bodies]
        self.connection.sendall(pack(calls))

    def receive(self):
        """The next reply; None when the worker has closed the connection."""
        return read(self._stream, REPLY)

    def receive_first(self):
        return read(self._stream, FIRST)

    def predictions(self):
        return json.loads(self.receive().body)["predictions"]


@contextlib.contextmanager
def running(loop, model, first=None, contract=CONTRACT):
    """A listener beside a worker in a thread of its own, which says this first; and what that ended with."""
    first = first or Hello(model.form, model.batch, pipelined=loop is not run_worker)
    ours, theirs = socket.socketpair()
    ended = []

    def work():
        with theirs:
            try:
                loop(theirs, model, contract)
            except BaseException as error:
                ended.append(error)
            else:
                ended.append(None)

    thread = threading.Thread(target=work)
    thread.start()
    ours.settimeout(DEADLINE_SECONDS)
    with contextlib.closing(Listener(ours)) as listener:
        assert listener.receive_first() == first
        yield listener, ended
    model.go_on.set()
    thread.join(DEADLINE_SECONDS)
    assert not thread.is_alive()


LOOPS = pytest.mark.parametrize("loop", [run_worker, run_pipelined_worker])


def instances(*values):
    return {"instances": list(values)}


@LOOPS
def test_batches_are_answered_in_their_order(loop):
    model = Doubling()
    with running(loop, model) as (listener, ended):
        for batch in range(50):
            listener.send(*(instances(batch, call) for call in range(batch % 4 + 1)))
        for batch in range(50):
            for call in range(batch % 4 + 1):
                assert listener.predictions() == [2 * batch, 2 * call]
    assert model.batches == [[n for call in range(batch % 4 + 1) for n in (batch, call)] for batch in range(50)]
    assert ended == [None]


@LOOPS
def test_an_error_is_its_own_calls_answer(loop):
    with running(loop, Doubling()) as (listener, ended):
        listener.send(instances(1), b"{", instances(2, "x"), instances(3, -1), instances(4))
        replies = [listener.receive() for _ in range(5)]
        listener.send(instances(5))
        assert listener.predictions() == [10]
    assert [reply.code for reply in replies] == [200, 400, 400, 400, 200]
    assert [json.loads(reply.body)["predictions"] for reply in (replies[0], replies[4])] == [[2], [8]]
    messages = [json.loads(reply.body)["error"]["message"] for reply in replies[1:4]]
    assert messages[0].startswith("the body is not valid JSON")
    assert messages[1:] == [
        "instances[1]: must be a whole number",
        "instances[1]: the model raised ValueError: unlucky",
    ]
    assert ended == [None]


@LOOPS
def test_reply_says_what_it_cost(loop):
    with running(loop, Doubling()) as (listener, _):
        listener.send(instances(1, 2), instances("x"))
        good, bad = listener.receive(), listener.receive()
    assert (good.instances, bad.instances) == (2, 0)
    assert min(good.parse_seconds, good.prepare_seconds, good.forward_seconds) > 0
    assert bad.forward_seconds == 0


@LOOPS
def test_gzip_is_inflated_and_answered_in_gzip_where_asked(loop):
    numbers = list(range(1000))
    packed = gzip.compress(json.dumps(instances(*numbers)).encode())
    few = json.dumps(instances(1)).encode()
    contract = replace(CONTRACT, limits=Limits(1000))
    with running(loop, Doubling(), contract=contract) as (listener, _):
        listener.connection.sendall(
            pack(
                [
                    Call("raw", packed, encoding="gzip", accepts_gzip=True),
                    Call("raw", packed, encoding="gzip"),
                    Call("raw", few, accepts_gzip=True),
                ]
            )
        )
        large, plain, small = (listener.receive() for _ in range(3))
    assert large.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(large.body) == plain.body
    assert json.loads(plain.body)["predictions"] == [2 * number for number in numbers]
    assert "Content-Encoding" not in plain.headers | small.headers


@LOOPS
def test_what_no_call_is_to_blame_for_ends_the_worker_at_once(loop):
    """Its connection closes without one more call having to come, so that the listener gives the calls to another."""
    with running(loop, Doubling()) as (listener, ended):
        listener.send(instances(1), instances(-2))
        assert listener.receive() is None
    assert isinstance(ended[0], SystemExit)


@LOOPS
def test_bug_that_a_request_finds_while_it_is_prepared_is_its_own_answer(loop):
    """Or whoever knows of one could end a pod's workers, one after the other."""
    with running(loop, Doubling()) as (listener, ended):
        listener.send(instances("bug"), instances(1))
        replies = listener.receive(), listener.receive()
    assert [reply.code for reply in replies] == [500, 200]
    assert ended == [None]


@LOOPS
def test_listener_that_goes_meanwhile_ends_it_quietly(loop):
    model = Doubling()
    model.go_on.clear()
    with running(loop, model) as (listener, ended):
        listener.send(*(instances(n) for n in range(100)))
        assert model.computing.acquire(timeout=DEADLINE_SECONDS)
        listener.connection.shutdown(socket.SHUT_RDWR)
    assert ended == [None]


def test_next_batch_is_prepared_while_the_device_computes():
    model = Doubling()
    model.go_on.clear()
    with running(run_pipelined_worker, model) as (listener, _):
        listener.send(instances(1))
        assert model.computing.acquire(timeout=DEADLINE_SECONDS)
        listener.send(instances(2), instances(3))
        for _ in range(3):
            assert model.prepared.acquire(timeout=DEADLINE_SECONDS)
        assert not model.computing.acquire(blocking=False)  # the device has one batch at a time
        model.go_on.set()
        assert [listener.predictions() for _ in range(3)] == [[2], [4], [6]]
    assert model.batches == [[1], [2, 3]]


def test_thread_that_computes_enters_the_device_first():
    entered, computed = [], []

    class Watching(Doubling):
        def compute(self, prepared):
            computed.append(threading.get_ident())
            return super().compute(prepared)

    def loop(connection, model, contract):
        run_pipelined_worker(connection, model, contract, lambda: entered.append(threading.get_ident()))

    with running(loop, Watching()) as (listener, _):
        for _ in range(3):
            listener.send(instances(1))
            assert listener.predictions() == [2]
    assert set(computed) == set(entered)
    assert len(entered) == 1


def test_worker_that_cannot_start_says_why():
    def loop(connection, _model, _contract):
        refuse(connection, DriverTooOldError("the driver is old"))

    with running(loop, Doubling(), Refusal("DriverTooOld", "the driver is old")) as (_, ended):
        pass
    assert ended == [None]


def test_answer_that_cannot_be_written_is_the_models_fault():
    class Odd(Doubling):
        def compute(self, prepared):
            return compute(prepared, self._forward, lambda _, rows: Doubled([object() for _ in rows]))

    with running(run_worker, Odd()) as (listener, _):
        listener.send(instances(1))
        reply = listener.receive()
    assert reply.code == 500
    assert json.loads(reply.body)["error"]["message"].startswith("the model's answer holds a value of type object")


def test_result_that_raises_is_the_models_fault():
    class Raising(Doubled):
        def predictions(self):
            raise KeyError("lazy")

    class Odd(Doubling):
        def compute(self, prepared):
            return compute(prepared, self._forward, lambda _, rows: Raising(rows))

    with running(run_worker, Odd()) as (listener, _):
        listener.send(instances(1), instances(2))
        replies = [listener.receive() for _ in range(2)]
    assert [reply.code for reply in replies] == [500, 500]
    assert "the model's answer cannot be written: KeyError: 'lazy'" in json.loads(replies[0].body)["error"]["message"]


def test_refusal_of_the_contract_has_the_dialects_form():
    with running(run_worker, Doubling()) as (listener, _):
        listener.connection.sendall(pack([Call("kserve", b"{}"), Call("vertex", b"{}")]))
        kserve, vertex = (json.loads(listener.receive().body)["error"] for _ in range(2))
    assert kserve == vertex["message"]
    assert vertex["status"] == InvalidArgumentError.status


# The model's own sample

PROBE = pack([Call("probe", b"")])


@LOOPS
def test_worker_is_warm_when_it_has_answered_the_sample(loop):
    model = Doubling(Sample(b'{"instances": [3, 4]}', "warmup.json"))
    with running(loop, model) as (_, ended):
        assert model.batches == [[3, 4]]
    assert ended == [None]


@LOOPS
@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (b'{"instances": [1, -1]}', "instances[1]: the model raised ValueError: unlucky"),
        (b'{"instances": ["x"]}', "instances[0]: must be a whole number"),
        (b'{"instances": [1], "k": 1}', "k: unknown: known are instances"),
        (b"[]", 'the body must be a JSON object with "instances", not a list'),
        (b'{"instances": [%s]}' % b",".join([b"1"] * 101), "instances: 101 are more than 100: split the request"),
    ],
)
def test_sample_that_is_not_answered_is_told_instead(loop, sample, message):
    first = Refusal("ArtifactInvalid", f"the model cannot answer warmup.json: {message}")
    with running(loop, Doubling(Sample(sample, "warmup.json")), first) as (_, ended):
        pass
    assert ended == [None]  # when the listener has closed the connection, and not before


@LOOPS
def test_probe_is_answered_with_the_sample(loop):
    with running(loop, Doubling(Sample(b'{"instances": [3]}', "warmup.json"))) as (listener, _):
        for _ in range(2):
            listener.connection.sendall(PROBE)
            assert json.loads(listener.receive().body) == {"predictions": [6]}


def test_probe_of_a_model_without_sample_predicts_nothing():
    model = Doubling()
    with running(run_worker, model) as (listener, _):
        listener.connection.sendall(PROBE)
        assert json.loads(listener.receive().body) == {"predictions": []}


def test_error_of_a_probe_has_vertexs_form():
    sample = Sample(b'{"instances": [1]}', "warmup.json")
    model = Doubling(sample)
    with running(run_worker, model) as (listener, _):
        model.sample = Sample(b'{"instances": [-1]}', "warmup.json")
        listener.connection.sendall(PROBE)
        assert json.loads(listener.receive().body)["error"]["status"] == "INVALID_ARGUMENT"
