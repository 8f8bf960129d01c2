"""The real server over real HTTP, with a tiny real model in its process."""

import asyncio
import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from pierhead_server.app import Listener, create_app
from pierhead_server.artifact import compute_digest, read_artifact
from pierhead_server.metrics import Metrics
from pierhead_server.model import load_classifier
from pierhead_server.protocol import Parameters, Picture, PredictRequest, ServedModel
from pierhead_server.serve import Server
from pierhead_server.settings import load_settings
from pierhead_server.workers import Workers

from tests.unit.server.conftest import PREDICT, running_server, wait_until
from tests.unit.server.pictures import LABELS, encode, picture

QUEUE_SIZE = 3
MAX_BYTES = 1_000_000


@pytest.fixture(scope="module")
def server(torchvision_folder, tmp_path_factory):
    settings = {
        "DEPLOYED_MODEL_ID": "photos-1",
        "MODEL": "projects/default/locations/local/models/photos",
        "MODEL_DISPLAY_NAME": "Photos",
        "MODEL_VERSION_ID": "1",
        "ARTIFACT_DIGEST": compute_digest(torchvision_folder),
        "QUEUE_SIZE": QUEUE_SIZE,
        "MAX_REQUEST_BYTES": MAX_BYTES,
    }
    log = tmp_path_factory.mktemp("server") / "log"
    with running_server(torchvision_folder, log, **settings) as server:
        answer = server.client.get("/readyz")
        assert (answer.status_code, answer.json()["error"]["message"]) == (503, "the model is loading")
        assert server.client.get("/healthz").status_code == 200
        assert server.client.post(PREDICT, json=body(picture())).status_code == 503
        server.wait_ready()
        yield server


def body(*images, **parameters):
    instances = [{"content": base64.b64encode(encode(image)).decode(), "mimeType": "image/png"} for image in images]
    return {"instances": instances, "parameters": parameters}


def test_answer_is_what_torch_computes(server, torchvision_folder):
    pictures = [picture(seed=seed) for seed in range(3)]
    answer = server.client.post(PREDICT, json=body(*pictures, maxPredictions=3.0))
    assert answer.status_code == 200
    said = answer.json()
    predictions = said.pop("predictions")
    assert said == {
        "deployedModelId": "photos-1",
        "model": "projects/default/locations/local/models/photos",
        "modelDisplayName": "Photos",
        "modelVersionId": "1",
    }
    classifier = load_classifier(read_artifact(torchvision_folder), threads=1, max_image_pixels=10**6)
    asked = PredictRequest(tuple(Picture(encode(image), "content") for image in pictures), Parameters(0.0, 3))
    for prediction, ranking in zip(predictions, classifier.predict(asked), strict=True):
        assert prediction["ids"] == [str(index) for index, _ in ranking]
        assert prediction["displayNames"] == [LABELS[index] for index, _ in ranking]
        assert prediction["confidences"] == pytest.approx([confidence for _, confidence in ranking], abs=1e-5)
        assert prediction["confidences"] == sorted(prediction["confidences"], reverse=True)


BAD_PICTURE = {"instances": [body(picture())["instances"][0], {"b64": base64.b64encode(b"none").decode()}]}


@pytest.mark.parametrize(
    ("method", "path", "content", "code", "status", "message"),
    [
        ("POST", PREDICT, b"{", 400, "INVALID_ARGUMENT", "the body is not valid JSON: "),
        (
            "POST",
            PREDICT,
            b'{"instances": [{"b64": "%"}]}',
            400,
            "INVALID_ARGUMENT",
            "instances[0].b64: not valid base",
        ),
        ("POST", PREDICT, BAD_PICTURE, 400, "INVALID_ARGUMENT", "instances[1].b64: not a picture: send one of "),
        (
            "POST",
            PREDICT,
            b"x" * (MAX_BYTES + 1),
            413,
            "INVALID_ARGUMENT",
            "the body is over 1000000 bytes: send fewer",
        ),
        ("GET", PREDICT, None, 405, "UNIMPLEMENTED", "Method Not Allowed"),
        ("POST", PREDICT.replace(":predict", ":explode"), b"{}", 404, "NOT_FOUND", "Not Found"),
        ("POST", PREDICT + "/", b"{}", 404, "NOT_FOUND", "Not Found"),
        ("GET", "/", None, 404, "NOT_FOUND", "Not Found"),
    ],
)
def test_error_is_googles(server, method, path, content, code, status, message):
    sent = {"json": content} if isinstance(content, dict) else {"content": content}
    answer = server.client.request(method, path, **sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (code, code, status)
    assert error["message"].startswith(message)


def test_body_over_the_limit_is_refused_before_it_is_read(server):
    address = server.client.base_url
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        connection.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_chunked_body_over_the_limit_is_refused(server):
    chunks = (b"x" * 100_000 for _ in range(11))
    assert server.client.post(PREDICT, content=chunks).status_code == 413


def test_listener_holds_no_torch(server):
    libraries = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" not in libraries
    assert "libtorch" in Path(f"/proc/{server.model_process()}/maps").read_text()


def test_metrics_count_requests_by_code(server):
    name = 'pierhead_predict_requests_total{code="400",dialect="vertex"}'
    before = server.metric(name)
    server.client.post(PREDICT, json={})
    assert server.metric(name) == before + 1
    assert server.metric("pierhead_predict_requests_in_flight") == 0
    info = 'deployed_model_id="photos-1",model="projects/default/locations/local/models/photos",model_version_id="1"'
    assert server.metric(f"pierhead_model_info{{{info}}}") == 1


def test_overload_is_429_and_the_rest_is_answered(server):
    asked = 10
    with model_held(server), ThreadPoolExecutor(asked) as callers:
        answers = [callers.submit(server.client.post, PREDICT, json=body(picture())) for _ in range(asked)]
        wait_until(lambda: sum(answer.done() for answer in answers) >= asked - QUEUE_SIZE - 1)
        refused = next(answer.result() for answer in answers if answer.done())
        os.kill(server.model_process(), signal.SIGCONT)
        codes = [answer.result().status_code for answer in answers]
    assert set(codes) == {200, 429}
    assert QUEUE_SIZE <= codes.count(200) <= QUEUE_SIZE + 1
    assert refused.headers["Retry-After"] == "1"
    assert refused.json()["error"]["status"] == "RESOURCE_EXHAUSTED"


@contextlib.contextmanager
def model_held(server):
    """The model's process stands still meanwhile."""
    model = server.model_process()
    os.kill(model, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(model, signal.SIGCONT)


def test_caller_that_hangs_up_is_forgotten(server):
    gone = server.metric('pierhead_predict_requests_total{code="499",dialect="vertex"}')
    with model_held(server):
        with pytest.raises(httpx.ReadTimeout):
            server.client.post(PREDICT, json=body(picture()), timeout=0.2)
        wait_until(lambda: server.metric('pierhead_predict_requests_total{code="499",dialect="vertex"}') == gone + 1)
        assert server.client.get("/readyz").status_code == 200  # the listener answers whatever the model does
    assert server.client.post(PREDICT, json=body(picture())).status_code == 200


def test_killed_model_process_is_replaced(server):
    killed = server.model_process()
    os.kill(killed, signal.SIGTERM)  # ignored: the listener alone decides
    assert server.client.post(PREDICT, json=body(picture())).status_code == 200
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: server.client.get("/readyz").status_code == 503, server.process)
    assert "SIGKILL: most likely out of memory" in server.client.get("/readyz").json()["error"]["message"]
    # The request waits for the new process rather than failing.
    assert server.client.post(PREDICT, json=body(picture())).status_code == 200
    assert server.client.get("/healthz").status_code == 200
    assert server.metric("pierhead_model_process_restarts_total") == 1
    assert server.model_process() != killed


def test_sigterm_drains_without_a_failed_request(exported_folder, tmp_path):
    with running_server(exported_folder, tmp_path / "log", DRAIN_SECONDS=600) as server:
        server.wait_ready()
        address, hold, codes = str(server.client.base_url), threading.Event(), []

        def call():
            with httpx.Client(base_url=address, timeout=60) as client:
                while not hold.is_set():
                    codes.append(client.post(PREDICT, json=body(picture())).status_code)

        callers = 4
        with ThreadPoolExecutor(callers) as threads:
            calls = [threads.submit(call) for _ in range(callers)]
            wait_until(lambda: len(codes) >= callers, server.process)
            server.terminate()
            wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 503)
            so_far = len(codes)
            wait_until(lambda: len(codes) >= so_far + callers, server.process)  # it goes on accepting
            assert httpx.get(f"{address}/healthz").status_code == 200
            answer = httpx.post(f"{address}{PREDICT}", json=body(picture()))
            assert (answer.status_code, answer.headers["Connection"]) == (200, "close")

            # All callers' requests are in flight when the server stops accepting.
            model = server.model_process()
            os.kill(model, signal.SIGSTOP)
            wait_until(lambda: server.metric("pierhead_predict_requests_in_flight") == callers)
            hold.set()
            server.terminate()  # a second time: enough of draining
            wait_until(lambda: not accepts(server), server.process)
            os.kill(model, signal.SIGCONT)
            for finished in calls:
                finished.result()
        assert set(codes) == {200}
        assert server.process.wait(timeout=30) == 0


def accepts(server):
    address = server.client.base_url
    try:
        socket.create_connection((address.host, address.port), timeout=30).close()
    except ConnectionRefusedError:
        return False
    return True


async def test_drain_lasts_as_long_as_it_is_set(torchvision_folder, monkeypatch):
    monkeypatch.setenv("PIERHEAD_ARTIFACT_URI", torchvision_folder.as_uri())
    served = ServedModel("", "", "", "")
    metrics = Metrics(served)
    workers = Workers(queue_size=1, max_image_pixels=1, metrics=metrics)
    workers.artifact, workers.not_ready = read_artifact(torchvision_folder), None  # as if it were loaded
    listener = Listener(load_settings(), served, workers, metrics)
    server = Server(create_app(listener), listener, drain_seconds=0.5)
    with socket.create_server(("127.0.0.1", 0)) as port:
        address = f"http://127.0.0.1:{port.getsockname()[1]}"
        serving = asyncio.create_task(server.serve(sockets=[port]))
        async with asyncio.timeout(30), httpx.AsyncClient() as client:
            assert (await client.get(f"{address}/readyz")).status_code == 200
            began = time.monotonic()
            server.handle_exit(signal.SIGTERM, None)
            assert (await client.get(f"{address}/readyz")).status_code == 503
            await serving
    assert time.monotonic() - began >= 0.5


def test_sigterm_before_the_model_is_loaded_ends_at_once(exported_folder, tmp_path):
    with running_server(exported_folder, tmp_path / "log", DRAIN_SECONDS=600) as server:
        server.terminate()
        assert server.process.wait(timeout=30) == 0


def start(tmp_path, **settings):
    """Start with settings that cannot work: (exit code, the termination log, stderr)."""
    termination_log = tmp_path / "termination-log"
    termination_log.write_text("left by an earlier container, which was longer than what follows" * 5)
    variables = {"HOST": "127.0.0.1", "PORT": 0, "TERMINATION_LOG": termination_log} | settings
    environment = os.environ | {f"PIERHEAD_{name}": str(value) for name, value in variables.items()}
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "pierhead_server"], env=environment, capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - began < 30
    return ended.returncode, termination_log.read_text(), ended.stderr


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"ARTIFACT_URI": "file:///no/such/folder"}, "ArtifactNotFound: file:///no/such/folder: no such folder\n"),
        ({"ARTIFACT_DIGEST": f"sha256:{'0' * 64}"}, "ArtifactInvalid: digest: the artifact is sha256:"),
    ],
)
def test_what_cannot_be_served_is_told_and_ends_it(exported_folder, tmp_path, change, line):
    code, told, stderr = start(tmp_path, **({"ARTIFACT_URI": exported_folder.as_uri()} | change))
    assert code == 1
    assert told.startswith(line)
    assert told.count("\n") == 1
    assert told in stderr
    assert "Traceback" not in stderr


def test_termination_log_is_never_created(tmp_path):
    code, _, stderr = start(tmp_path, ARTIFACT_URI="file:///none", TERMINATION_LOG=tmp_path / "none")
    assert code == 1
    assert "ArtifactNotFound" in stderr
    assert not (tmp_path / "none").exists()
