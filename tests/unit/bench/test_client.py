"""The HTTP client counts what came back, however a server behaves."""

import http.server
import itertools
import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from bench.server.client import Client, Job, make_request, make_schedule


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers each request as the server's next behaviour says."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self):
        behaviour = next(self.server.behaviours)
        if behaviour == "refuse and close":  # without reading the body
            self._answer(429, b"{}", {"Retry-After": "1", "Connection": "close"})
            self.close_connection = True
            return
        self.rfile.read(int(self.headers["Content-Length"]))
        if behaviour == "hang up":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if behaviour == "slow":
            time.sleep(0.2)
        self._answer(429 if behaviour == "refuse" else 200, b'{"predictions": []}', {})

    def _answer(self, code, body, headers):
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format, *arguments):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request, client_address):
        pass  # a client that is gone


@contextmanager
def serving(*behaviours):
    with Server(("127.0.0.1", 0), Handler) as server:
        server.behaviours = itertools.chain(behaviours, itertools.repeat("answer"))
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def bodies(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.json").write_bytes(b"%d" % number * 300_000)
    return [str(tmp_path / f"{number}.json") for number in range(3)]


def make_job(port, bodies, **changes):
    given = {"seconds": 0.3, "warmup_seconds": 0.0, "wait_seconds": 5.0}
    return Job(port, "/predict", bodies, **{**given, **changes})


def test_closed_loop_keeps_every_connection_busy(bodies):
    with serving() as port:
        outcome = Client(make_job(port, bodies, connections=4)).run()
    assert set(outcome.codes) == {200}
    assert outcome.codes[200] > 4
    assert outcome.opened == 4
    assert outcome.broken == {}
    assert set(outcome.answers) == {0, 1, 2}
    assert 0 <= len(outcome.latencies) - outcome.codes[200] <= 4  # those answered after the window


def test_closed_loop_goes_on_after_refusals_and_broken_connections(bodies):
    with serving("refuse and close", "hang up", "answer", "refuse") as port:
        outcome = Client(make_job(port, bodies)).run()
    assert outcome.codes[429] == 2
    assert outcome.retry_after == 1
    assert sum(outcome.broken.values()) == 1
    assert outcome.codes[200] > 1


def test_open_loop_keeps_its_rate_and_counts_the_wait_of_those_behind_a_slow_answer(bodies):
    with serving("slow") as port:
        outcome = Client(make_job(port, bodies, rate=50.0, connections=1, seconds=0.5)).run()
    assert outcome.offered == pytest.approx(50, abs=4)
    assert outcome.opened == 1
    assert sorted(outcome.latencies)[-3] > 0.1  # due while the only connection was waiting


def test_what_is_never_answered_is_broken(bodies):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        job = make_job(silent.getsockname()[1], bodies, connections=2, wait_seconds=0.1)
        outcome = Client(job).run()
    assert outcome.broken == {"no answer": 2}


def test_warm_up_is_not_counted(bodies):
    with serving(*["refuse"] * 3) as port:
        outcome = Client(make_job(port, bodies, warmup_seconds=0.3)).run()
    assert set(outcome.codes) == {200}


def test_tensor_is_the_picture_itself_behind_the_json_that_describes_it():
    request = make_request(Job(1, "/v2/models/m/infer", [], 1.0, tensors=True), b"\xff\xd8picture")
    head, _, body = request.partition(b"\r\n\r\n")
    names = dict(line.split(": ") for line in head.decode().splitlines()[1:])
    assert int(names["Content-Length"]) == len(body)
    described = json.loads(body[: int(names["Inference-Header-Content-Length"])])
    tensor = body[int(names["Inference-Header-Content-Length"]) :]
    assert tensor == b"\x09\0\0\0\xff\xd8picture"
    assert described["inputs"][0]["parameters"] == {"binary_data_size": len(tensor)}
    assert described["outputs"] == [{"name": "confidences", "parameters": {"classification": 5}}]


@pytest.mark.parametrize("poisson", [False, True])
def test_schedule_has_the_rate(poisson):
    job = Job(1, "/", [], 1.0, rate=100.0, poisson=poisson)
    due = list(itertools.islice(make_schedule(job, 5.0), 20_000))
    assert due == sorted(due)
    assert due[-1] - 5.0 == pytest.approx(200, rel=0.03)


def test_schedule_of_a_closed_loop_is_empty():
    assert next(make_schedule(Job(1, "/", [], 1.0), 5.0)) == float("inf")
