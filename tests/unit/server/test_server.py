"""The real server over real HTTP, with tiny real models in its processes."""

import asyncio
import contextlib
import fcntl
import gzip
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from pierhead_server.app import Listener, create_app
from pierhead_server.artifact import compute_digest, read_artifact
from pierhead_server.config import parse_config
from pierhead_server.control import Load
from pierhead_server.devices import cpu_count
from pierhead_server.errors import SettingsInvalidError
from pierhead_server.logs import RequestLog
from pierhead_server.metrics import Metrics
from pierhead_server.model import LoadOptions, load_model
from pierhead_server.protocol import Limits, ServedModel
from pierhead_server.serve import Server, make_load, make_pool, needs_torch
from pierhead_server.settings import load_settings
from pierhead_server.signature import Signature
from pierhead_server.telemetry import Telemetry
from pierhead_server.tracing import make_tracer
from pierhead_server.workers import RESTARTS, Workers
from PIL import Image

from tests.kube import find_port
from tests.unit.server.calls import in_base64, instances, pictures, predict
from tests.unit.server.conftest import (
    PREDICT,
    PROGRAM,
    children,
    is_alive,
    make_environment,
    running_server,
    wait_until,
)
from tests.unit.server.pictures import LABELS, encode, picture, write_obedient_artifact

PROBE = "/v1/probe"
QUEUE_SIZE = 3
WORKERS = 3
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
        "WORKERS": WORKERS,
        "MAX_REQUEST_BYTES": MAX_BYTES,
    }
    log = tmp_path_factory.mktemp("server") / "log"
    with running_server(torchvision_folder, log, **settings) as server:
        answer = server.client.get("/readyz")
        assert (answer.status_code, answer.json()["error"]["message"]) == (503, "the model is loading")
        assert server.client.get("/healthz").status_code == 200
        for path in (PREDICT, PROBE):
            assert server.client.post(path, json=pictures(picture())).status_code == 503
        server.wait_ready(WORKERS)
        yield server


def test_answer_is_what_torch_computes(server, torchvision_folder):
    body = pictures(*(picture(seed=seed) for seed in range(3)), maxPredictions=3.0)
    answer = server.client.post(PREDICT, json=body)
    assert answer.status_code == 200
    said = answer.json()
    predictions = said.pop("predictions")
    assert said == {
        "deployedModelId": "photos-1",
        "model": "projects/default/locations/l/models/photos",
        "modelDisplayName": "Photos",
        "modelVersionId": "1",
    }
    model = load_model(read_artifact(torchvision_folder), LoadOptions(max_image_pixels=10**6)).model
    (expected,) = predict(model, body)
    for given, wanted in zip(predictions, expected, strict=True):
        assert given["ids"] == wanted["ids"]
        assert given["displayNames"] == [LABELS[int(index)] for index in given["ids"]]
        assert given["confidences"] == pytest.approx(wanted["confidences"], abs=1e-4)
        assert given["confidences"] == sorted(given["confidences"], reverse=True)


def test_many_pictures_are_answered_in_their_order_by_all_workers(server):
    before = {pid: cpu_ticks(pid) for pid in server.workers()}
    seen = [picture(60, 45, seed=seed) for seed in range(5)]
    alone = [server.client.post(PREDICT, json=pictures(image)).json()["predictions"][0] for image in seen]
    order = [place * 3 % 5 for place in range(120)]
    answer = server.client.post(PREDICT, json=pictures(*(seen[place] for place in order)))
    assert answer.status_code == 200
    for place, given in zip(order, answer.json()["predictions"], strict=True):
        assert given["ids"] == alone[place]["ids"]
        assert given["confidences"] == pytest.approx(alone[place]["confidences"], abs=1e-4)
    assert all(cpu_ticks(pid) > ticks for pid, ticks in before.items())


def cpu_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_all_dialects_answer_the_same(server):
    data, body = encode(picture()), pictures(picture())
    ai_platform = "/v1/projects/p/models/photos"
    (expected,) = server.client.post(PREDICT, json=body).json()["predictions"]
    answers = [
        server.client.post(PREDICT.replace(":predict", ":rawPredict"), json=body),
        server.client.post(
            PREDICT.replace(":predict", ":rawPredict"), content=data, headers={"Content-Type": "image/png"}
        ),
        server.client.post(f"{ai_platform}:predict", json=body),
        server.client.post(f"{ai_platform}/versions/1:predict", json=instances({"b64": in_base64(data)})),
        server.client.post("/v1/models/photos:predict", json=instances({"image": np.asarray(picture()).tolist()})),
    ]
    for answer in answers:
        assert answer.status_code == 200
        (prediction,) = answer.json()["predictions"]
        assert prediction["ids"] == expected["ids"]
        assert prediction["confidences"] == pytest.approx(expected["confidences"], abs=1e-4)
    assert answers[0].headers["X-Vertex-AI-Deployed-Model-Id"] == "photos-1"


def test_open_inference_protocol_answers_with_all_confidences(server):
    metadata = server.client.get("/v2/models/photos").json()
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert metadata["outputs"] == [{"name": "confidences", "datatype": "FP32", "shape": [-1, len(LABELS)]}]
    (expected,) = server.client.post(PREDICT, json=pictures(picture())).json()["predictions"]
    data = encode(picture())
    column = {"name": "image", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(data) + 4}}
    head = json.dumps({"inputs": [column]}).encode()
    answer = server.client.post(
        "/v2/models/photos/infer",
        content=head + len(data).to_bytes(4, "little") + data,
        headers={"Inference-Header-Content-Length": str(len(head))},
    )
    assert answer.status_code == 200
    (output,) = answer.json()["outputs"]
    confidences = dict(zip(map(int, expected["ids"]), expected["confidences"], strict=True))
    assert output["shape"] == [1, len(LABELS)]
    assert dict(enumerate(output["data"])) == pytest.approx(confidences, abs=1e-4)


def test_descriptions_answer(server):
    for path in ("/healthz", "/readyz", "/v1/models/photos", "/v2", "/v2/health/live", "/v2/health/ready"):
        assert server.client.get(path).status_code == 200
    assert PREDICT.rpartition(":")[2] in server.client.get("/openapi.json").text


GOOD = pictures(picture())["instances"][0]
BAD_PICTURE = instances(GOOD, {"content": in_base64(b"none")})


@pytest.mark.parametrize(
    ("method", "path", "content", "code", "status", "message"),
    [
        ("POST", PREDICT, b"{", 400, "INVALID_ARGUMENT", "the body is not valid JSON: "),
        ("POST", PREDICT, instances({"b64": "%"}), 400, "INVALID_ARGUMENT", "instances[0].b64: not valid base"),
        ("POST", PREDICT, BAD_PICTURE, 400, "INVALID_ARGUMENT", "instances[1].content: not a picture: send one of "),
        ("POST", PREDICT, b"x" * (MAX_BYTES + 1), 413, "INVALID_ARGUMENT", "the body is over 1000000 bytes: send"),
        ("GET", PREDICT, None, 405, "UNIMPLEMENTED", "Method Not Allowed"),
        ("POST", PREDICT.replace(":predict", ":explode"), b"{}", 404, "NOT_FOUND", "Not Found"),
        ("POST", PREDICT + "/", b"{}", 404, "NOT_FOUND", "Not Found"),
        ("GET", "/x", None, 404, "NOT_FOUND", "Not Found"),
    ],
)
def test_error_is_googles(server, method, path, content, code, status, message):
    sent = {"json": content} if isinstance(content, dict) else {"content": content}
    answer = server.client.request(method, path, **sent)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["status"]) == (code, code, status)
    assert error["message"].startswith(message)


def test_error_on_the_other_paths_is_its_message(server):
    for path in ("/v1/projects/p/models/m:predict", "/v1/models/m:predict"):
        answer = server.client.post(path, json=BAD_PICTURE)
        assert answer.status_code == 400
        assert answer.json()["error"].startswith("instances[1].content: not a picture: ")


def test_body_over_the_limit_is_refused_before_it_is_read(server):
    address = server.client.base_url
    with socket.create_connection((address.host, address.port), timeout=30) as connection:
        connection.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n".encode())
        assert connection.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_chunked_body_over_the_limit_is_refused(server):
    chunks = (b"x" * 100_000 for _ in range(11))
    assert server.client.post(PREDICT, content=chunks).status_code == 413


def test_probe_is_a_prediction_of_the_models_own_sample(server):
    before = server.metric("pierhead_predict_requests_total", code="200", dialect="probe")
    answer = server.client.post(PROBE)
    assert answer.status_code == 200
    ((prediction,),) = answer.json().values()
    assert sorted(prediction["displayNames"]) == sorted(LABELS)
    assert server.metric("pierhead_predict_requests_total", code="200", dialect="probe") == before + 1


def test_listener_holds_no_torch(server):
    assert sorted(server.find_torch()) == sorted([server.fork_server(), *server.workers()])


def test_each_process_computes_with_one_thread(server):
    for pid in (server.fork_server(), *server.workers()):
        assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1


def test_metrics_count_requests_by_code(server):
    before = server.metric("pierhead_predict_requests_total", code="400")
    server.client.post(PREDICT, json={})
    assert server.metric("pierhead_predict_requests_total", code="400") == before + 1
    assert server.metric("pierhead_predict_requests_in_flight") == 0
    labels = {"deployed_model_id": "photos-1", "model_version_id": "1", "form": "quick"}
    assert server.metric("pierhead_model_info", **labels) == 1
    assert server.metric("pierhead_workers") == WORKERS


def count(answers):
    """How many are there."""
    return sum(answer.done() for answer in answers)


def test_overload_is_429_and_the_rest_is_answered(server):
    # A worker may hold the next one, too.
    least, most, asked = QUEUE_SIZE + WORKERS, QUEUE_SIZE + 2 * WORKERS, 12
    with ThreadPoolExecutor(asked) as callers:
        with server.held():
            answers = [callers.submit(server.client.post, PREDICT, json=pictures(picture())) for _ in range(asked)]
            wait_until(lambda: count(answers) + server.metric("pierhead_predict_requests_in_flight") == asked)
            refused = [answer.result() for answer in answers if answer.done()]
        codes = [answer.result().status_code for answer in answers]
    assert least <= codes.count(200) <= most
    assert codes.count(200) + codes.count(429) == asked
    assert refused[0].headers["Retry-After"] == "1"
    assert refused[0].json()["error"]["status"] == "RESOURCE_EXHAUSTED"


def test_caller_that_hangs_up_is_forgotten(server):
    gone = server.metric("pierhead_predict_requests_total", code="499")
    with server.held():
        with pytest.raises(httpx.ReadTimeout):
            server.client.post(PREDICT, json=pictures(picture()), timeout=0.2)
        wait_until(lambda: server.metric("pierhead_predict_requests_total", code="499") == gone + 1)
        assert server.client.get("/readyz").status_code == 200  # the listener answers whatever the model does
    assert server.client.post(PREDICT, json=pictures(picture())).status_code == 200


def begin_upload(server, length, sent=b"{"):
    """A connection whose request's body comes as the caller sends it."""
    address = server.client.base_url
    connection = socket.create_connection((address.host, address.port), timeout=60)
    connection.sendall(f"POST {PREDICT} HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n".encode() + sent)
    return connection


def test_slow_uploads_lock_nobody_out(server):
    with contextlib.ExitStack() as opened:
        slow = [opened.enter_context(begin_upload(server, 80_000)) for _ in range(80)]
        wait_until(lambda: server.metric("pierhead_predict_requests_reading") == len(slow))
        codes = [server.client.post(PREDICT, json=pictures(picture())).status_code for _ in range(10)]
        assert codes == [200] * 10
        assert server.client.get("/readyz").status_code == 200
        assert server.client.post(PROBE).status_code == 200
        assert server.metric("pierhead_predict_requests_in_flight") == 0
    wait_until(lambda: server.metric("pierhead_predict_requests_reading") == 0)
    assert server.metric("pierhead_predict_requests_bytes") == 0


def test_gzip_both_ways(server):
    bodies = json.dumps(pictures(*(picture(seed=seed) for seed in range(30)))).encode()
    answer = server.client.post(PREDICT, content=gzip.compress(bodies), headers={"Content-Encoding": "gzip"})
    assert (answer.status_code, answer.headers["Content-Encoding"]) == (200, "gzip")
    assert len(answer.json()["predictions"]) == 30


def read_rss(pid):
    """Bytes."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1000


def test_one_figure_bounds_the_memory_of_the_listener(obedient_folder, tmp_path):
    """Of what is read, waits and is in workers' hands: whatever comes, with and without a declared length."""
    most, length = 30_000_000, 5_000_000
    settings = {"ALLOW_CODE": "true", "WORKERS": 1, "MAX_REQUESTS_BYTES": most}
    with running_server(obedient_folder, tmp_path / "log", **settings) as server, contextlib.ExitStack() as opened:
        server.wait_ready(1)
        opened.enter_context(server.held())
        before, codes = read_rss(server.process.pid), []
        body = json.dumps(instances("pid")).encode().ljust(length)

        def send(chunked):
            content = (body[start : start + 100_000] for start in range(0, length, 100_000)) if chunked else body
            with contextlib.suppress(httpx.ReadTimeout, httpx.TransportError):
                codes.append(httpx.post(f"{server.address}{PREDICT}", content=content, timeout=2).status_code)

        seen, held = [], []
        with ThreadPoolExecutor(40) as callers:
            calls = [callers.submit(send, chunked=number % 2) for number in range(40)]
            while not all(call.done() for call in calls):
                seen.append(read_rss(server.process.pid))
                held.append(server.metric("pierhead_predict_requests_bytes"))
    assert 0 < codes.count(429) == len(codes)
    assert length < max(held) <= most
    # What a worker is sent exists twice, and so does a body in the moment in which its parts become one.
    assert max(seen) - before < 2 * most + 20_000_000


def measure_memory(server):
    """The memory that all its processes take, in MB; what several share is counted once."""
    total = 0
    for pid in server.family():
        line = next(line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line[:4] == "Pss:")
        total += int(line.split()[1]) / 1000
    return total


def ask_all(server, times):
    """Enough at once that each worker computes."""
    with ThreadPoolExecutor(WORKERS) as callers:
        calls = [callers.submit(server.client.post, PREDICT, json=pictures(picture())) for _ in range(times)]
        assert {call.result().status_code for call in calls} == {200}


def test_workers_share_the_models_memory(server, torchvision_folder, tmp_path):
    ask_all(server, 10 * WORKERS)
    assert len(server.workers()) == WORKERS
    with running_server(torchvision_folder, tmp_path / "log", WORKERS=1) as one:
        one.wait_ready(1)
        ask_all(one, 10)
        assert len(one.workers()) == 1
        assert measure_memory(server) <= 1.3 * measure_memory(one) + 150 * (WORKERS - 1)


# Processes that die, with a predictor that does what its instances say


@pytest.fixture(scope="module")
def obedient(obedient_folder, tmp_path_factory):
    log = tmp_path_factory.mktemp("obedient") / "log"
    settings = {"ALLOW_CODE": "true", "WORKERS": 2, "PREDICT_TIMEOUT_SECONDS": 5}
    with running_server(obedient_folder, log, **settings) as server:
        server.wait_ready(2)
        yield server


@pytest.fixture
def mortal(obedient_folder, tmp_path):
    """One whose processes nobody has killed yet."""
    settings = {"ALLOW_CODE": "true", "WORKERS": 2, "PREDICT_TIMEOUT_SECONDS": 5}
    with running_server(obedient_folder, tmp_path / "log", **settings) as server:
        server.wait_ready(2)
        yield server


def tell(server, told):
    return server.client.post(PREDICT, json=instances(told))


def test_probe_of_a_predictor_without_a_sample_predicts_nothing(obedient):
    answer = obedient.client.post(PROBE)
    assert (answer.status_code, answer.json()) == (200, {"predictions": []})


def test_killed_worker_is_replaced(obedient):
    workers = obedient.workers()
    os.kill(workers[0], signal.SIGTERM)  # ignored: the listener alone decides
    assert tell(obedient, "pid").status_code == 200
    assert obedient.workers() == workers
    restarts = obedient.metric("pierhead_model_process_restarts_total")
    os.kill(workers[0], signal.SIGKILL)
    wait_until(lambda: obedient.metric("pierhead_model_process_restarts_total") == restarts + 1)
    wait_until(lambda: obedient.metric("pierhead_workers") == 2)
    assert obedient.workers()[0] == workers[1]
    assert len(obedient.workers()) == 2
    assert obedient.client.get("/healthz").status_code == 200


def test_request_that_kills_its_worker_fails_alone(obedient, tmp_path):
    with ThreadPoolExecutor(2) as callers:
        waiting = callers.submit(tell, obedient, {"wait for": str(tmp_path / "gate")})
        wait_until(lambda: obedient.metric("pierhead_predict_requests_in_flight") == 1)
        fatal = callers.submit(tell, obedient, "die")
        assert {tell(obedient, "pid").status_code for _ in range(6)} == {200}
        answer = fatal.result()
        (tmp_path / "gate").touch()
        assert waiting.result().status_code == 200
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == (
        "the model's process died of this request (SIGKILL: most likely out of memory)"
    )
    wait_until(lambda: obedient.metric("pierhead_workers") == 2)


def test_fork_server_that_is_killed_comes_back_without_a_failed_request(mortal, tmp_path):
    parent, workers = mortal.fork_server(), mortal.workers()
    with ThreadPoolExecutor(6) as callers:
        computing = [callers.submit(tell, mortal, {"wait for": str(tmp_path / "gate")}) for _ in range(2)]
        # Or one of those that follow is there first, and answered.
        wait_until(lambda: mortal.metric("pierhead_predict_requests_in_flight") == 2)
        waiting = [callers.submit(tell, mortal, "pid") for _ in range(4)]
        wait_until(lambda: mortal.metric("pierhead_predict_requests_in_flight") == 6)
        os.kill(parent, signal.SIGKILL)
        wait_until(lambda: mortal.client.get("/readyz").status_code == 503, mortal.process)
        assert "SIGKILL: most likely out of memory" in mortal.client.get("/readyz").json()["error"]["message"]
        assert mortal.client.get("/healthz").status_code == 200
        (tmp_path / "gate").touch()
        answers = [call.result() for call in (*computing, *waiting)]
    assert {answer.status_code for answer in answers} == {200}
    assert mortal.fork_server() != parent
    assert not {pid for answer in answers for pid in answer.json()["predictions"]} & set(workers)
    wait_until(lambda: not any(map(is_alive, workers)))
    mortal.wait_ready(2)


def test_model_that_dies_again_and_again_is_not_ready(mortal):
    for number in range(3):
        assert mortal.client.get("/readyz").status_code == 200
        answer = tell(mortal, f"say boom {number}")
        assert answer.status_code == 500
        assert "boom" not in answer.text
        assert tell(mortal, "pid").status_code == 200
    answer = mortal.client.get("/readyz")
    words = "the model's process died 3 times within 60 s: exit code 3; its last words: say boom 2"
    assert (answer.status_code, answer.json()["error"]["message"]) == (503, f"ModelProcessDies: {words}")
    assert mortal.metric("pierhead_model_process_dies") == 1
    assert mortal.client.get("/healthz").status_code == 200
    assert "say boom 0\n" in mortal.log.read_text()


def test_model_that_does_not_come_back_is_504_and_replaced(obedient):
    before = obedient.workers()
    answer = tell(obedient, "hang")
    assert answer.status_code == 504
    assert answer.json()["error"] == {
        "code": 504,
        "message": "the model took more than 5 s",
        "status": "DEADLINE_EXCEEDED",
    }
    wait_until(lambda: len(set(obedient.workers()) - set(before)) == 1)
    wait_until(lambda: obedient.metric("pierhead_workers") == 2)
    assert tell(obedient, "pid").status_code == 200


def test_model_that_kills_each_worker_at_its_sample_ends_the_server(tmp_path):
    termination_log = tmp_path / "termination-log"
    termination_log.touch()
    (tmp_path / "warmup.json").write_text('{"instances": ["die"]}')
    settings = {"ALLOW_CODE": "true", "WORKERS": 1, "TERMINATION_LOG": termination_log}
    with running_server(write_obedient_artifact(tmp_path), tmp_path / "log", **settings) as server:
        assert server.process.wait(timeout=60) == 1
    line = "ModelProcessDied: SIGKILL: most likely out of memory, 4 times in a row\n"
    assert termination_log.read_text() == line
    assert line in (tmp_path / "log").read_text()


def test_requests_that_kill_their_workers_do_not_end_the_server(mortal):
    """In Kubernetes four of them would put the pod into CrashLoopBackOff."""
    parent = mortal.fork_server()
    for told in ("die", *[f"say {number}" for number in range(2 * RESTARTS)], "die"):
        assert tell(mortal, told).status_code == 500
    assert tell(mortal, "pid").status_code == 200
    assert mortal.client.get("/healthz").status_code == 200
    assert mortal.fork_server() == parent


def test_request_that_takes_too_much_memory_kills_nobody(obedient_folder, tmp_path):
    settings = {"ALLOW_CODE": "true", "WORKERS": 2, "WORKER_MEMORY_BYTES": 256 << 20}
    with running_server(obedient_folder, tmp_path / "log", **settings) as server:
        server.wait_ready(2)
        workers = server.workers()
        for _ in range(2 * RESTARTS):
            answer = tell(server, "eat")
            assert answer.status_code >= 400
            assert "MemoryError" in answer.text
        assert tell(server, "pid").status_code == 200
        assert server.workers() == workers
        assert server.metric("pierhead_model_process_restarts_total") == 0


def test_picture_is_decoded_or_refused_by_what_a_worker_may_take(torchvision_folder, tmp_path):
    """Where the estimate says that there is room, there is."""
    share = 160 << 20
    side = math.isqrt(int(0.75 * share) // 16)
    settings = {"WORKERS": 1, "WORKER_MEMORY_BYTES": share}
    with running_server(torchvision_folder, tmp_path / "log", **settings) as server:
        server.wait_ready(1)
        workers = server.workers()
        for mode in ("L", "RGBA", "P"):
            fits, larger = (
                instances({"content": in_base64(encode(Image.new(mode, (size, size))))}) for size in (side, side + 99)
            )
            for _ in range(2):
                assert server.client.post(PREDICT, json=fits).status_code == 200
                answer = server.client.post(PREDICT, json=larger)
                assert answer.status_code == 400
                assert "MiB to decode, and a worker has 120 MiB for it" in answer.json()["error"]["message"]
        assert server.workers() == workers


def test_killed_listener_leaves_no_process_behind(exported_folder, tmp_path):
    """Not the workers, which are caught in their model, nor who makes the compiled form."""
    settings = {"COMPILE": "true", "COMPILED_DIR": tmp_path / "cache", "WORKERS": 2}
    with running_server(exported_folder, tmp_path / "log", **settings) as server:
        server.wait_ready(2)
        wait_until(lambda: len(children(server.fork_server())) == 3, server.process)
        wait_until(lambda: len(server.workers()) == 2, server.process)
        (compiler,) = set(children(server.fork_server())) - set(server.workers())
        wait_until(lambda: Path(f"/proc/{compiler}/oom_score_adj").read_text() == "1000\n")
        family = server.family()
        assert len(family) >= 5
        with server.held():
            server.process.kill()
            wait_until(lambda: not any(map(is_alive, family)))


# The end


def test_drain_fails_no_request(torchvision_folder, tmp_path):
    """Beside it: where the compiled form cannot be kept, the log says so and the quick form stays."""
    (tmp_path / "cache").touch()
    settings = {"DRAIN_SECONDS": 600, "WORKERS": 2, "COMPILE": "true", "COMPILED_DIR": tmp_path / "cache"}
    log = tmp_path / "log"
    with running_server(torchvision_folder, log, **settings) as server:
        server.wait_ready(2)
        address, hold, codes = server.address, threading.Event(), []

        def call():
            with httpx.Client(base_url=address, timeout=60) as client:
                while not hold.is_set():
                    codes.append(client.post(PREDICT, json=pictures(picture())).status_code)

        callers = 4
        with ThreadPoolExecutor(callers) as threads:
            calls = [threads.submit(call) for _ in range(callers)]
            wait_until(lambda: len(codes) >= callers, server.process)
            wait_until(lambda: "the compiled form cannot be kept in" in log.read_text())
            assert server.form() == "quick"
            server.terminate()
            wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 503)
            so_far = len(codes)
            wait_until(lambda: len(codes) >= so_far + callers, server.process)  # it goes on accepting
            assert httpx.get(f"{address}/healthz").status_code == 200
            answer = httpx.post(f"{address}{PREDICT}", json=pictures(picture()))
            assert (answer.status_code, answer.headers["Connection"]) == (200, "close")

            # All callers' requests are in flight when the server stops accepting.
            with server.held():
                wait_until(lambda: server.metric("pierhead_predict_requests_in_flight") == callers)
                hold.set()
                server.terminate()  # a second time: enough of draining
                wait_until(lambda: not accepts(server), server.process)
            for finished in calls:
                finished.result()
        assert set(codes) == {200}
        assert server.process.wait(timeout=30) == 0
    assert "Traceback" not in log.read_text()


def accepts(server):
    address = server.client.base_url
    try:
        socket.create_connection((address.host, address.port), timeout=30).close()
    except ConnectionRefusedError:
        return False
    return True


async def test_drain_lasts_as_long_as_it_is_set(monkeypatch):
    monkeypatch.setenv("PIERHEAD_ARTIFACT_URI", "file:///")
    served = ServedModel("", "", "", "")
    metrics = Metrics(served)
    workers = Workers(make_pool(load_settings()), metrics)
    workers.signature, workers.not_ready = Signature((), ()), None  # as if it were loaded
    telemetry = Telemetry(metrics, make_tracer({}, {}), RequestLog(0.0))
    listener = Listener(load_settings(), served, workers, telemetry)
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
        family = server.family()
        server.terminate()
        assert server.process.wait(timeout=30) == 0
    wait_until(lambda: not any(map(is_alive, family)))


# The log


def test_predictions_go_on_while_nobody_reads_the_log(obedient_folder):
    port, answers = find_port(), 100
    given = {"ARTIFACT_URI": obedient_folder.as_uri(), "ALLOW_CODE": "true", "WORKERS": 1, "PORT": port}
    environment = make_environment(**given, ACCESS_LOG="true", LOG_LEVEL="error")
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)  # room for some ten lines
    with os.fdopen(reading, "rb") as log:
        process = subprocess.Popen(PROGRAM, env=environment, stderr=writing)
        os.close(writing)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                wait_until(lambda: is_ready(client), process)
                codes = {client.post(PREDICT, json=instances("pid")).status_code for _ in range(answers)}
                assert codes == {200}
                assert client.get("/healthz").status_code == 200
            process.terminate()
            lines = [json.loads(line) for line in log.read().splitlines()]
            assert process.wait(timeout=30) == 0
        finally:
            process.kill()
            process.wait()
    # Errors alone, of which there were none, and each prediction: they waited until somebody came.
    assert [line["logger"] for line in lines] == ["pierhead_server.requests"] * answers


def is_ready(client):
    with contextlib.suppress(httpx.TransportError):
        return client.get("/readyz").status_code == 200
    return False


# The start


def start(tmp_path, **settings):
    """Start with settings that cannot work: (exit code, the termination log, stderr)."""
    termination_log = tmp_path / "termination-log"
    termination_log.write_text("left by an earlier container, which was longer than what follows" * 5)
    environment = make_environment(**({"TERMINATION_LOG": termination_log} | settings))
    ended = subprocess.run(
        [sys.executable, "-m", "pierhead_server"], env=environment, capture_output=True, text=True, timeout=60
    )
    return ended.returncode, termination_log.read_text(), ended.stderr


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"ARTIFACT_URI": "file:///no/such/folder"}, "ArtifactNotFound: file:///no/such/folder: no such folder\n"),
        ({"ARTIFACT_DIGEST": f"sha256:{'0' * 64}"}, "ArtifactInvalid: digest: the artifact is sha256:"),
        ({}, "ArtifactInvalid: format: predictor is code: set allowCode: true"),
        ({"WORKERS": "none"}, "SettingsInvalid: PIERHEAD_WORKERS: "),
        ({"DEVICE": "cuda"}, "SettingsInvalid: PIERHEAD_DEVICE: cuda, but this machine shows no GPU\n"),
    ],
)
def test_what_cannot_be_served_is_told_and_ends_it(obedient_folder, tmp_path, monkeypatch, change, line):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    code, told, stderr = start(tmp_path, **({"ARTIFACT_URI": obedient_folder.as_uri()} | change))
    assert code == 1
    if "WORKERS" in change:  # where the log is, is one of the settings
        assert line in stderr
        return
    assert told.startswith(line)
    assert told.count("\n") == 1
    assert told in stderr
    assert "Traceback" not in stderr


def test_why_it_ends_is_told_where_errors_alone_are_logged(tmp_path):
    code, told, stderr = start(tmp_path, ARTIFACT_URI="file:///none", LOG_LEVEL="error")
    assert (code, told) == (1, "ArtifactNotFound: file:///none: no such folder\n")
    assert stderr == told


def test_predictor_that_fails_at_its_sample_is_told_and_ends_it(obedient_folder, tmp_path):
    folder = shutil.copytree(obedient_folder, tmp_path / "folder")
    (folder / "warmup.json").write_text('{"instances": [{"wait": "for nothing"}]}')
    code, told, _ = start(tmp_path, ARTIFACT_URI=folder.as_uri(), ALLOW_CODE="true", WORKERS=2)
    assert code == 1
    assert told == (
        "ArtifactInvalid: the model cannot answer warmup.json: "
        "instances[0]: the predictor raised KeyError: 'wait for'\n"
    )


LOADED_LATE = """
import os, sys
if "pierhead_server.worker" not in sys.modules:
    raise RuntimeError("imported before the fork")

class Predictor:
    @classmethod
    def from_path(cls, model_dir):
        return cls(os.getpid())

    def __init__(self, pid):
        self.pid = pid

    def predict(self, instances, **kwargs):
        return [self.pid for _ in instances]
"""


def write_late_predictor(folder, text=LOADED_LATE):
    (folder / "model.yaml").write_text("{format: predictor, load_in_workers: true}")
    (folder / "predictor.py").write_text(text)
    return folder


def test_predictor_is_loaded_by_each_worker_where_it_asks_for_it(tmp_path):
    (tmp_path / "folder").mkdir()
    folder = write_late_predictor(tmp_path / "folder")
    with running_server(folder, tmp_path / "log", ALLOW_CODE="true", WORKERS=1) as server:
        server.wait_ready(1)
        answer = server.client.post("/v1/models/m:predict", json={"instances": [1]}).json()
        assert answer["predictions"] == server.one_worker()


def test_predictor_that_fails_in_its_worker_is_told_and_ends_it(tmp_path):
    (tmp_path / "folder").mkdir()
    folder = write_late_predictor(tmp_path / "folder", LOADED_LATE.replace("return cls(", "raise KeyError("))
    code, told, _ = start(tmp_path, ARTIFACT_URI=folder.as_uri(), ALLOW_CODE="true", WORKERS=1)
    assert code == 1
    assert told.startswith("ArtifactInvalid: predictor.py: Predictor.from_path raised KeyError: ")


def test_termination_log_is_never_created(tmp_path):
    code, _, stderr = start(tmp_path, ARTIFACT_URI="file:///none", TERMINATION_LOG=tmp_path / "none")
    assert code == 1
    assert "ArtifactNotFound" in stderr
    assert not (tmp_path / "none").exists()


def test_taken_port_ends_it(obedient_folder, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, stderr = start(
            tmp_path, ARTIFACT_URI=obedient_folder.as_uri(), PORT=taken.getsockname()[1], ALLOW_CODE="true"
        )
    assert code == 1
    assert "Address already in use" in stderr


@pytest.fixture
def make_settings(monkeypatch):
    monkeypatch.setenv("PIERHEAD_ARTIFACT_URI", "file:///models/photos")
    return load_settings


@pytest.mark.parametrize(
    ("gpus", "given", "workers", "device"),
    [
        (0, {}, cpu_count(), "cpu"),
        (0, {"workers": 7}, 7, "cpu"),
        (2, {}, 2, "cuda"),
        (2, {"workers": 1}, 1, "cuda"),
        (2, {"device": "cpu"}, cpu_count(), "cpu"),
        (1, {"device": "cuda"}, 1, "cuda"),
    ],
)
def test_pool_is_as_large_as_the_machine(make_settings, monkeypatch, torchvision_folder, gpus, given, workers, device):
    monkeypatch.setattr("pierhead_server.serve.count_gpus", lambda: gpus)
    settings = make_settings(**given, queue_size=5, predict_timeout_seconds=2.5)
    pool = make_pool(settings)
    assert (pool.workers, pool.device, pool.queue_size, pool.answer_seconds) == (workers, device, 5, 2.5)
    assert make_load(settings, torchvision_folder).device == device


def test_goal_for_latency_says_how_long_a_batch_waits(make_settings):
    pool = make_pool(make_settings(max_batch_delay_seconds=0.25))
    assert pool.policy(32, pipelined=True).delay == 0.25
    assert pool.policy(32).delay == 0  # on a CPU nobody waits


def test_gpu_that_is_not_there_is_told(make_settings, monkeypatch):
    monkeypatch.setattr("pierhead_server.serve.count_gpus", lambda: 0)
    with pytest.raises(SettingsInvalidError, match="PIERHEAD_DEVICE: cuda, but this machine shows no GPU"):
        make_pool(make_settings(device="cuda"))


@pytest.mark.parametrize(
    ("format_", "compiled", "settings", "expected"),
    [
        ("torchvision", False, {}, True),
        ("torchvision", True, {}, False),  # which may be this model's
        ("torchvision", True, {"compile": False}, True),
        ("torchvision", True, {"device": "cuda"}, True),
        ("torchscript", False, {}, True),
        ("predictor", False, {}, False),  # it imports what it needs
    ],
)
def test_torch_is_imported_during_a_download_where_it_is_needed(
    format_, compiled, settings, expected, make_settings, tmp_path, monkeypatch
):
    monkeypatch.setattr("pierhead_server.serve.count_gpus", lambda: 1)
    if compiled:
        (tmp_path / "0123").mkdir()
    needed = {
        "torchvision": b"{architecture: resnet18, weights: w.pt, labels: [a]}",
        "torchscript": b"{program: m.pt, labels: [a]}",
        "predictor": b"{}",
    }[format_]
    config = parse_config(needed.replace(b"{", f"{{format: {format_}, ".encode()))
    chosen = make_settings(**({"device": "cpu", "compiled_dir": tmp_path} | settings))
    assert needs_torch(config, chosen) == expected


def test_fork_server_is_told_what_the_settings_say(make_settings):
    settings = make_settings(
        deployed_model_id="photos-1", model="m", model_display_name="Photos", model_version_id="2", max_instances=3,
        max_image_pixels=4, max_request_pixels=5, worker_memory_bytes=6, allow_code=True, compiled_dir="/cache", device="cpu", log_level="debug", log_format="text",
    )  # fmt: skip
    assert make_load(settings, Path("/folder")) == Load(
        "/folder",
        ServedModel("photos-1", "m", "Photos", "2"),
        Limits(3, max_pixels=5),
        max_image_pixels=4,
        allow_code=True,
        compiled_dir="/cache",
        device="cpu",
        workers=make_pool(settings).workers,
        worker_memory_bytes=6,
        log_level="debug",
        log_json=False,
    )
    assert make_load(make_settings(compile=False), Path("/")).compiled_dir is None
