"""The listener's routes, over ASGI and with workers that are none."""

import asyncio
import base64
import contextlib
import gzip
import json
import logging
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from pierhead_server import VERSION
from pierhead_server.app import Listener, create_app
from pierhead_server.errors import InternalError, QueueFullError, UnavailableError
from pierhead_server.logs import RequestLog
from pierhead_server.messages import Call, Reply
from pierhead_server.metrics import Metrics
from pierhead_server.settings import load_settings
from pierhead_server.telemetry import Telemetry
from pierhead_server.tracing import Tracer

from tests.unit.server.fake_workers import SERVED, FakeWorkers

ROOT = Path(__file__).parents[3]
PICTURE = base64.b64encode(b"picture").decode()
BODY = {"instances": [{"b64": PICTURE}], "parameters": {"maxPredictions": 1}}
INFER = {"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [PICTURE]}]}
PREDICTION = {"ids": ["1"], "displayNames": ["bee"], "confidences": [0.625]}
MAX_BYTES = 1000

VERTEX = "/v1/projects/p/locations/l/endpoints/e:predict"
RAW = "/v1/projects/p/locations/l/endpoints/e:rawPredict"
AI_PLATFORM = "/v1/projects/p/models/m:predict"
KSERVE = "/v1/models/m:predict"
OIP = "/v2/models/m/infer"
PROBE = "/v1/probe"
PATHS = {
    VERTEX: "vertex",
    "/v1/projects/example.com:p/locations/l/endpoints/123:predict": "vertex",
    RAW: "raw",
    AI_PLATFORM: "aiplatform",
    "/v1/projects/p/models/m/versions/v1:predict": "aiplatform",
    KSERVE: "kserve",
    OIP: "oip",
    "/v2/models/m/versions/1/infer": "oip",
}


class Served:
    """A listener and a client of it."""

    def __init__(
        self, max_bytes: int = MAX_BYTES, workers: FakeWorkers | None = None, log: RequestLog | None = None
    ) -> None:
        self.workers = workers or FakeWorkers()
        self.metrics = Metrics(SERVED)
        given = load_settings(artifact_uri="file:///none", max_request_bytes=max_bytes, max_instances=3)
        self.listener = Listener(given, SERVED, self.workers, Telemetry(self.metrics, Tracer(), log or RequestLog(0)))
        self.app = create_app(self.listener)
        self.client = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://server")

    def count(self, code):
        """Of prediction requests by the code of their answers."""
        name = f'pierhead_predict_requests_total{{code="{code}",'
        lines = self.metrics.expose().decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


@pytest.fixture
def served():
    return Served()


def get_message(answer):
    error = answer.json()["error"]
    return error if isinstance(error, str) else error["message"]


# Predictions


@pytest.mark.parametrize(("path", "dialect"), PATHS.items())
async def test_worker_gets_the_body_as_it_came(served, path, dialect):
    headers = {"Content-Type": "image/png", "Inference-Header-Content-Length": "7"}
    await served.client.post(path, content=b"\xff\x00", headers=headers)
    (call,) = served.workers.calls
    assert (call.dialect, call.body, call.content_type) == (dialect, b"\xff\x00", "image/png")
    assert call.header_length == (7 if dialect == "oip" else None)


async def test_vertex_answer(served):
    answer = await served.client.post(VERTEX, json=BODY)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json() == {
        "predictions": [PREDICTION],
        "deployedModelId": "photos-2",
        "model": "projects/default/locations/l/models/photos",
        "modelDisplayName": "Photos",
        "modelVersionId": "2",
    }
    assert served.count(200) == 1


# What a path names -> the location that answers name.
LOCATIONS = {
    "local": "local",
    "us-central1": "us-central1",
    "a" * 63: "a" * 63,
    "a" * 64: "local",
    "US": "local",
    "-": "local",
    "a%22%2C%22x%22%3A%22": "local",
    "a%0D%0AX-Mine%3A1": "local",
    "%C3%A9": "local",
    "%FF": "local",
    "a%0A": "local",
    "a%5Cg%3C1%3E": "local",
}


@pytest.mark.parametrize(("named", "told"), LOCATIONS.items())
async def test_answer_names_the_location_that_the_request_names(served, named, told):
    model = f"projects/default/locations/{told}/models/photos"
    answer = await served.client.post(VERTEX.replace("/l/", f"/{named}/"), json=BODY)
    assert (answer.status_code, answer.json()["model"]) == (200, model)
    raw = await served.client.post(RAW.replace("/l/", f"/{named}/"), json=BODY)
    assert raw.headers["X-Vertex-AI-Model"] == model
    picture = {"content": b"picture", "headers": {"Content-Type": "image/jpeg"}}
    assert (await served.client.post(RAW.replace("/l/", f"/{named}/"), **picture)).headers["X-Vertex-AI-Model"] == model


async def test_raw_answer(served):
    answer = await served.client.post(RAW, json=BODY)
    assert answer.json() == {"predictions": [PREDICTION]}
    assert answer.headers["X-Vertex-AI-Deployed-Model-Id"] == "photos-2"
    assert answer.headers["X-Vertex-AI-Model"] == "projects/default/locations/l/models/photos"
    picture = await served.client.post(RAW, content=b"picture", headers={"Content-Type": "image/jpeg"})
    assert len(picture.json()["predictions"]) == 1


@pytest.mark.parametrize("path", [path for path, dialect in PATHS.items() if dialect in ("aiplatform", "kserve")])
async def test_answer_of_other_paths(served, path):
    assert (await served.client.post(path, json=BODY)).json() == {"predictions": [PREDICTION]}


async def test_oip_answer(served):
    answer = await served.client.post(OIP, json=INFER | {"id": "7"})
    assert answer.json() == {
        "model_name": "photos",
        "model_version": "2",
        "id": "7",
        "outputs": [{"name": "confidences", "datatype": "FP32", "shape": [1, 3], "data": [0.25, 0.625, 0.125]}],
    }


GOOGLE = {
    "code": 400,
    "message": "instances[1].b64: empty: put the bytes here, in base64",
    "status": "INVALID_ARGUMENT",
}


@pytest.mark.parametrize(
    ("path", "error"), [(VERTEX, GOOGLE), (RAW, GOOGLE), (AI_PLATFORM, GOOGLE["message"]), (KSERVE, GOOGLE["message"])]
)
async def test_error_of_an_instance_is_the_whole_answer(served, path, error):
    answer = await served.client.post(path, json={"instances": [{"b64": PICTURE}, {"b64": ""}]})
    assert (answer.status_code, answer.json()) == (400, {"error": error})
    assert served.count(400) == 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("refusal", "code", "status"),
    [
        (QueueFullError("64 requests are waiting"), 429, "RESOURCE_EXHAUSTED"),
        (UnavailableError("the model is loading"), 503, "UNAVAILABLE"),
    ],
)
async def test_without_capacity_nothing_is_read(served, path, refusal, code, status):
    served.workers.refusal = refusal
    answer = await request_unread(served.app, path)
    error = answer.json()["error"]
    assert answer.status_code == code
    assert answer.headers.get("Retry-After") == ("1" if code == 429 else None)
    if PATHS[path] in ("vertex", "raw"):
        assert error == {"code": code, "message": str(refusal), "status": status}
    else:
        assert error == str(refusal)
    assert served.count(code) == 1


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("headers", "code", "message"),
    [
        ({"Content-Length": "1001"}, 413, "the body is over 1000 bytes: send fewer or smaller instances in a request"),
        ({"Content-Length": "9" * 30}, 413, "the body is over 1000 bytes"),
        ({"Content-Encoding": "br"}, 415, "Content-Encoding br is not supported: send gzip, or the body as it is"),
        ({"Content-Encoding": "gzip, gzip"}, 415, "Content-Encoding gzip, gzip is not supported: send gzip, or the"),
    ],
)
async def test_what_the_headers_tell_is_refused_unread(served, path, headers, code, message):
    answer = await request_unread(served.app, path, headers)
    assert answer.status_code == code
    assert get_message(answer).startswith(message)
    assert served.workers.calls == []


@pytest.mark.parametrize("path", [VERTEX, RAW, AI_PLATFORM, KSERVE])
async def test_gzip_is_inflated_where_instances_are_read(served, path):
    packed = gzip.compress(json.dumps(BODY).encode())
    headers = {"Content-Encoding": "gzip"}
    answer = await served.client.post(path, content=packed, headers=headers)
    assert answer.json()["predictions"] == [PREDICTION]
    (call,) = served.workers.calls
    assert (call.body, call.encoding) == (packed, "gzip")  # the listener does not look into it
    answer = await served.client.post(path, content=b"none", headers=headers)
    assert (answer.status_code, get_message(answer)[:48]) == (400, "the body is not gzip, as Content-Encoding says: ")


async def test_gzip_of_the_open_inference_protocol(served):
    packed = gzip.compress(json.dumps(INFER).encode())
    headers = {"Content-Encoding": "gzip", "Inference-Header-Content-Length": str(len(json.dumps(INFER)))}
    assert (await served.client.post(OIP, content=packed, headers=headers)).status_code == 200


async def test_gzip_bomb_is_too_large():
    served = Served(max_bytes=100_000)
    bomb = gzip.compress(b" " * 12_000_000, 1)
    answer = await served.client.post(VERTEX, content=bomb, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 413
    assert get_message(answer).startswith("the body is over 10485760 bytes once it is inflated: send fewer instances")


@pytest.mark.parametrize(("asked", "accepts"), [("gzip, deflate", True), ("br", False), (None, False)])
async def test_worker_is_told_whether_the_caller_takes_gzip(served, asked, accepts):
    del served.client.headers["Accept-Encoding"]
    await served.client.post(VERTEX, json=BODY, headers={"Accept-Encoding": asked} if asked else {})
    assert served.workers.calls[0].accepts_gzip == accepts


async def test_descriptions_are_compressed_where_asked_for(served):
    answer = await served.client.get("/openapi.json")
    assert answer.headers["Content-Encoding"] == "gzip"
    plain = await served.client.get("/openapi.json", headers={"Accept-Encoding": "identity"})
    assert "Content-Encoding" not in plain.headers
    assert plain.json() == answer.json()


async def test_compressed_body_learns_what_is_accepted(served):
    answer = await request_unread(served.app, VERTEX, {"Content-Encoding": "deflate"})
    assert answer.headers["Accept-Encoding"] == "gzip"
    assert (await served.client.post(VERTEX, json=BODY, headers={"Content-Encoding": "identity"})).status_code == 200


@pytest.mark.parametrize("length", ["x", "-1", "1.5", "9" * 30, ""])
async def test_header_length_is_a_number(served, length):
    answer = await request_unread(served.app, OIP, {"Inference-Header-Content-Length": length})
    assert (answer.status_code, answer.json()["error"][:32]) == (400, "Inference-Header-Content-Length:")


async def request_unread(app, path, headers=None):
    """Post, and fail where the body is read."""

    async def receive():
        raise AssertionError("the body was read")

    return await request(app, path, headers or {}, receive)


async def request(app, path, headers, receive):
    sent = []

    async def send(message):
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": raw, "query_string": b"", "root_path": ""}
    await app(scope, receive, send)
    start, body = sent
    return httpx.Response(start["status"], headers=start["headers"], content=body["body"])


async def test_body_may_come_in_chunks(served):
    async def chunks(size):
        yield json.dumps(BODY).encode()
        for _ in range(size):
            yield b" " * 100

    assert (await served.client.post(VERTEX, content=chunks(5))).status_code == 200
    answer = await served.client.post(VERTEX, content=chunks(10))
    assert (answer.status_code, answer.json()["error"]["status"]) == (413, "INVALID_ARGUMENT")
    assert len(served.workers.calls) == 1


def say(*messages):
    """A `receive` that gives these messages, and after them nothing for ever."""
    left = list(messages)

    async def receive():
        if not left:
            await asyncio.get_running_loop().create_future()
        return left.pop(0)

    return receive


async def test_caller_that_goes_while_sending_is_forgotten(served):
    receive = say({"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"})
    assert (await request(served.app, VERTEX, {}, receive)).status_code == 499
    assert served.workers.calls == []
    assert served.count(499) == 1


async def test_caller_that_goes_while_waiting_gives_the_job_up(served):
    served.workers.held = True
    receive = say({"type": "http.request", "body": b"{}"}, {"type": "http.disconnect"})
    assert (await request(served.app, VERTEX, {}, receive)).status_code == 499
    assert served.workers.futures[0].cancelled()
    assert served.count(499) == 1


async def test_caller_that_waits_gets_the_answer(served):
    served.workers.held = True
    receive = say({"type": "http.request", "body": b"{}"})
    answering = asyncio.create_task(request(served.app, VERTEX, {}, receive))
    await served.workers.called.wait()
    served.workers.futures[0].set_result(Reply(200, b"here"))
    assert (await answering).content == b"here"


async def test_error_of_a_job_is_the_answer(served):
    served.workers.held = True
    answering = asyncio.create_task(request(served.app, KSERVE, {}, say({"type": "http.request", "body": b"{}"})))
    await served.workers.called.wait()
    served.workers.futures[0].set_exception(InternalError("the model's process died"))
    answer = await answering
    assert (answer.status_code, answer.json()) == (500, {"error": "the model's process died"})


async def test_server_that_stops_cancels_the_request(served):
    served.workers.held = True
    answering = asyncio.create_task(request(served.app, VERTEX, {}, say({"type": "http.request", "body": b"{}"})))
    await served.workers.called.wait()
    answering.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answering
    assert served.workers.futures[0].cancelled()


@pytest.mark.parametrize("path", [VERTEX, KSERVE])
async def test_bug_tells_no_details(served, path):
    served.workers.refusal = RuntimeError("secret")
    with contextlib.suppress(RuntimeError):
        await request_unread(served.app, path)
    client = httpx.AsyncClient(
        transport=httpx.ASGITransport(served.app, raise_app_exceptions=False), base_url="http://server"
    )
    answer = await client.post(path, json=BODY)
    assert (answer.status_code, get_message(answer)) == (500, "an error inside the server; its log says more")
    assert served.count(500) == 2


ALL = {"ids": ["1", "0", "2"], "displayNames": ["bee", "ant", "cat"], "confidences": [0.625, 0.25, 0.125]}


async def test_probe_is_a_call_without_a_body(served):
    answer = await request_unread(served.app, PROBE, {"Content-Length": "10000", "Content-Encoding": "gzip"})
    assert (answer.status_code, answer.json()) == (200, {"predictions": [ALL]})
    assert served.workers.calls == [Call("probe", b"")]
    assert 'pierhead_predict_requests_total{code="200",dialect="probe"} 1.0' in served.metrics.expose().decode()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"not_ready": "the model is loading"}, "the model is loading"),
        ({"not_ready": "the model is loading", "failure": "no labels"}, "no labels"),
        ({"refusal": UnavailableError("the model is loading")}, "the model is loading"),
    ],
)
async def test_probe_does_not_wait_for_a_model_that_is_away(served, state, message):
    for name, value in state.items():
        setattr(served.workers, name, value)
    answer = await served.client.post(PROBE)
    assert (answer.status_code, answer.json()) == (
        503,
        {"error": {"code": 503, "message": message, "status": "UNAVAILABLE"}},
    )
    assert served.workers.calls == []


async def test_error_of_a_probe_is_told_as_it_is(served):
    served.workers.refusal = QueueFullError("64 requests are waiting")
    answer = await served.client.post(PROBE)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    served.workers.refusal, served.workers.held = None, True
    answering = asyncio.create_task(served.client.post(PROBE))
    await served.workers.called.wait()
    served.workers.futures[0].set_exception(InternalError("the model's process died"))
    answer = await answering
    assert (answer.status_code, answer.json()["error"]["status"]) == (500, "INTERNAL")


async def test_draining_server_closes_connections(served):
    assert "Connection" not in (await served.client.post(VERTEX, json=BODY)).headers
    served.listener.draining = True
    answer = await served.client.post(VERTEX, json=BODY)
    assert (answer.status_code, answer.headers["Connection"]) == (200, "close")


# The access log


@pytest.fixture
def access_log(caplog):
    """What `RequestLog(every=True)` writes in a test."""
    told_by = logging.getLogger("pierhead_server.requests")
    before = told_by.level
    yield caplog
    told_by.setLevel(before)


async def test_every_prediction_is_told(access_log):
    served = Served(log=RequestLog(0, every=True))
    sent = json.dumps(BODY).encode()
    headers = {
        "Authorization": "Bearer secret",
        "X-Request-Id": "7f3b9c1e",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    answer = await served.client.post(f"{VERTEX}?key=secret", content=sent, headers=headers)
    served.workers.refusal = QueueFullError("secret")
    refused = await served.client.post(KSERVE, content=sent, headers={"X-Request-Id": "a secret"})
    served.workers.refusal = None
    await served.client.post(PROBE)
    await served.client.get("/readyz")
    fields = ("method", "path", "dialect", "code", "instances", "bytes_in", "bytes_out", "trace_id", "request_id")
    told = [{name: getattr(record, name, None) for name in fields} for record in access_log.records]
    assert told == [
        {
            "method": "POST",
            "path": VERTEX,
            "dialect": "vertex",
            "code": 200,
            "instances": 1,
            "bytes_in": len(sent),
            "bytes_out": len(answer.content),
            "trace_id": "0af7651916cd43dd8448eb211c80319c",
            "request_id": "7f3b9c1e",
        },
        {
            "method": "POST",
            "path": KSERVE,
            "dialect": "kserve",
            "code": 429,
            "instances": 0,
            "bytes_in": 0,
            "bytes_out": len(refused.content),
            "trace_id": None,
            "request_id": None,
        },
    ]
    assert all(record.levelname == "INFO" and 0 < record.seconds < 60 for record in access_log.records)
    # Neither a body, nor a query, nor a token, nor an error's words.
    assert not any("secret" in str(vars(record)) or PICTURE in str(vars(record)) for record in access_log.records)


async def test_predictions_are_told_of_only_where_that_is_wanted(access_log):
    await Served().client.post(VERTEX, json=BODY)
    assert access_log.records == []


# Probes and descriptions

PROBES = {
    "/healthz": {"status": "ok"},
    "/readyz": {"status": "ok"},
    "/v2/health/live": {"live": True},
    "/v2/health/ready": {"ready": True},
    "/v2/models/m/ready": {"name": "photos", "ready": True},
    "/v2/models/m/versions/1/ready": {"name": "photos", "ready": True},
    "/v1/models/m": {"name": "photos", "ready": True},
}
LIVENESS = ("/healthz", "/v2/health/live")


@pytest.mark.parametrize(("path", "body"), PROBES.items())
async def test_probe_of_a_server_that_is_well(served, path, body):
    answer = await served.client.get(path)
    assert (answer.status_code, answer.json()) == (200, body)


@pytest.mark.parametrize("path", PROBES)
@pytest.mark.parametrize(
    ("state", "message", "alive"),
    [
        ({"not_ready": "the model is loading"}, "the model is loading", True),
        ({"draining": True}, "the server is shutting down", True),
        ({"dying": "it died", "not_ready": "it is starting anew"}, "ModelProcessDies: it died", True),
        ({"dying": "it died", "draining": True}, "the server is shutting down", True),
        ({"failure": "ArtifactInvalid: no labels"}, "ArtifactInvalid: no labels", False),
    ],
)
async def test_probe_of_a_server_that_is_not(served, path, state, message, alive):
    for name, value in state.items():
        setattr(served.listener if name == "draining" else served.workers, name, value)
    answer = await served.client.get(path)
    if alive and path in LIVENESS:
        assert answer.status_code == 200
        return
    assert (answer.status_code, get_message(answer)) == (503, message)
    assert isinstance(answer.json()["error"], dict) == (path in ("/healthz", "/readyz"))


async def test_descriptions(served):
    assert (await served.client.get("/v1/models")).json() == {"models": ["photos"]}
    assert (await served.client.get("/v2")).json() == {
        "name": "pierhead",
        "version": VERSION,
        "extensions": ["binary_tensor_data", "classification"],
    }
    model = {
        "name": "photos",
        "versions": ["2"],
        "platform": "pytorch",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": "confidences", "datatype": "FP32", "shape": [-1, 3]}],
    }
    for path in ("/v2/models/m", "/v2/models/m/versions/1"):
        assert (await served.client.get(path)).json() == model
    assert served.listener.was_ready
    served.workers.signature, served.workers.not_ready = None, "the model is loading"
    answer = await served.client.get("/v2/models/m")
    assert (answer.status_code, answer.json()) == (503, {"error": "the model is loading"})
    assert not served.listener.was_ready


async def test_reason_of_the_quick_form_is_told(served):
    reason = 'the model is not converted: it calls "x"'
    served.workers.form_reason = reason
    for path in ("/v2/models/m", "/v2/models/m/versions/1"):
        assert (await served.client.get(path)).json()["parameters"] == {"form_reason": reason}
    metrics = (await served.client.get("/metrics")).text
    assert 'pierhead_model_not_compiled{reason="the model is not converted: it calls \\"x\\""} 1.0\n' in metrics


async def test_metrics_are_prometheus(served):
    answer = await served.client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain")
    assert "pierhead_predict_requests_in_flight 0.0" in answer.text
    assert served.count(200) == 0  # only predictions count


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/x", 404),
        ("GET", "/v1", 404),
        ("POST", VERTEX.replace(":predict", ":explode"), 404),
        ("POST", VERTEX.replace(":predict", ":predict:predict"), 404),
        ("POST", VERTEX.replace(":predict", ""), 404),
        ("POST", f"{VERTEX}/", 404),
        ("POST", "/v1/projects/p/models/m:rawPredict", 404),
        ("POST", "/v1/projects/p/models/m/versions/:predict", 404),
        ("POST", "/v1/models/:predict", 404),
        ("POST", "/v1/models/m:explode", 404),
        ("GET", "/v1/models/m:explode", 404),
        ("GET", "/v1/models/m/", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/m/config", 404),
        ("POST", "/v2/repository/index", 404),
        ("GET", VERTEX, 405),
        ("PUT", VERTEX, 405),
        ("GET", KSERVE, 405),
        ("POST", "/v1/models/m", 405),
        ("POST", "/v1/models", 405),
        ("GET", OIP, 405),
        ("POST", "/v2/models/m", 405),
        ("DELETE", "/v2/models/m/ready", 405),
        ("POST", "/healthz", 405),
        ("GET", "/v1/probe", 405),
        ("GET", AI_PLATFORM, 405),
        ("DELETE", "/v1/projects/p/models/m/versions/v:predict", 405),
        ("OPTIONS", RAW, 405),
        ("PATCH", "/metrics", 405),
    ],
)
async def test_no_such_route(served, method, path, code):
    answer = await served.client.request(method, path)
    message = {404: "Not Found", 405: "Method Not Allowed"}[code]
    status = {404: "NOT_FOUND", 405: "UNIMPLEMENTED"}[code]
    plain = path.startswith(("/v1/models", "/v2"))
    error = message if plain else {"code": code, "message": message, "status": status}
    assert (answer.status_code, answer.json()) == (code, {"error": error})
    assert answer.headers["Content-Type"] == "application/json"
    assert ("Allow" in answer.headers) == (code == 405)
    if code == 405:
        assert method not in answer.headers["Allow"].split(", ")


def test_listener_is_light():
    """It is there while the model loads; and what it does not import it does not hold."""
    heavy = ("numpy", "torch", "PIL", "fastapi", "yaml")
    program = f"import sys, pierhead_server.app; print([name for name in {heavy} if name in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.strip() == "[]"


def test_version_is_the_distributions():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert pyproject["project"]["version"] == VERSION


# The description of the routes


async def test_all_routes_are_described(served):
    described = (await served.client.get("/openapi.json")).json()["paths"]
    assert {(path, method) for path, item in described.items() for method in item if method != "parameters"} == {
        (route.path_format, "post" if "POST" in route.methods else "get") for route in served.app.routes
    }


schema = schemathesis.openapi.from_asgi("/openapi.json", Served(max_bytes=10**7).app)


@schema.parametrize()
@settings(
    derandomize=True,
    max_examples=40,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_answers_are_as_described(case):
    # What the schema allows, the model may still refuse: few strings are pictures.
    excluded = [schemathesis.checks.positive_data_acceptance]
    if str(case.headers.get("Inference-Header-Content-Length")) == "0":  # any bytes are one row, JSON's among them
        excluded.append(schemathesis.checks.negative_data_rejection)
    case.call_and_validate(excluded_checks=excluded)


def test_all_routes_are_documented(served):
    documented = set(
        re.findall(r"^\| `((?:GET|POST) /[^`]*)` \|", (ROOT / "docs/model-server.md").read_text(), re.MULTILINE)
    )
    assert documented == {
        f"{'POST' if 'POST' in route.methods else 'GET'} {route.path_format}" for route in served.app.routes
    }
