"""The clients that people have, against the listener over real HTTP; the model behind it is of three classes."""

import base64
import contextlib
import json
import math
import socket
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from google.auth.credentials import AnonymousCredentials
from googleapiclient import discovery
from googleapiclient.errors import HttpError
from pierhead_server import worker
from pierhead_server.artifact import read_artifact
from pierhead_server.model import LoadOptions, load_model
from tritonclient import http as tritonclient
from tritonclient.utils import InferenceServerException

from tests.unit.server.calls import CONTRACT
from tests.unit.server.fake_workers import CONFIDENCES, FakeWorkers
from tests.unit.server.pictures import encode, picture, write_exported_artifact, write_torchvision_artifact
from tests.unit.server.test_app import Served
from tests.unit.server.test_program import write_exported, write_torchscript

PICTURE = base64.b64encode(b"picture").decode()
PREDICTION = {"ids": ["1", "0", "2"], "displayNames": ["bee", "ant", "cat"], "confidences": [0.625, 0.25, 0.125]}


@contextlib.contextmanager
def listening(served):
    """host:port of a listener."""
    with socket.create_server(("127.0.0.1", 0)) as port:
        server = uvicorn.Server(uvicorn.Config(served.app, log_config=None, lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([port],))
        thread.start()
        yield f"127.0.0.1:{port.getsockname()[1]}"
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address():
    """That of a listener."""
    with listening(Served()) as address:
        yield address


# google-api-python-client, whose discovery document of AI Platform is inside the package


@contextlib.contextmanager
def running_service(name, address):
    service = discovery.build(
        name,
        "v1",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": f"http://{address}"},
        static_discovery=True,
    )
    with contextlib.closing(service):
        yield service


@pytest.fixture
def ml(address):
    with running_service("ml", address) as service:
        yield service.projects()


@pytest.mark.parametrize("name", ["projects/p/models/m", "projects/p/models/m/versions/v1"])
def test_ai_platforms_client_predicts(ml, name):
    assert ml.predict(name=name, body={"instances": [{"b64": PICTURE}]}).execute() == {"predictions": [PREDICTION]}


def test_ai_platforms_client_is_told_the_error(ml):
    with pytest.raises(HttpError) as caught:
        ml.predict(name="projects/p/models/m", body={"instances": [{"b64": "%"}]}).execute()
    assert caught.value.status_code == 400
    assert json.loads(caught.value.content)["error"].startswith("instances[0].b64: not valid base64 (")


def test_ai_platforms_client_gets_its_keys_back(ml):
    body = {"instances": [{"image_bytes": {"b64": PICTURE}, "key": "1"}], "signature_name": "serving_default"}
    (prediction,) = ml.predict(name="projects/p/models/m", body=body).execute()["predictions"]
    assert prediction == PREDICTION | {"key": "1"}


@pytest.mark.parametrize(
    ("content_type", "data"),
    [
        ("image/jpeg", PICTURE),
        ("application/json", base64.b64encode(json.dumps({"instances": [{"b64": PICTURE}]}).encode()).decode()),
    ],
)
def test_vertex_ais_generated_client_predicts_raw(address, content_type, data):
    body = {"httpBody": {"contentType": content_type, "data": data}}
    with running_service("aiplatform", address) as service:
        endpoints = service.projects().locations().endpoints()
        said = endpoints.rawPredict(endpoint="projects/p/locations/l/endpoints/1", body=body).execute()
    assert said == {"predictions": [PREDICTION]}


# tritonclient, which speaks the Open Inference Protocol with the binary extension


@pytest.fixture
def triton(address):
    with tritonclient.InferenceServerClient(address) as client:
        yield client


def make_input(data, datatype, *, binary, name="image"):
    given = tritonclient.InferInput(name, list(data.shape), datatype)
    return given.set_data_from_numpy(data, binary_data=binary)


ENCODED = np.array([b"picture", b"another"], dtype=object)
BASE64 = np.array([base64.b64encode(each) for each in ENCODED], dtype=object)
PIXELS = np.zeros((2, 4, 5, 3), dtype=np.uint8)


def test_triton_client_knows_the_server(triton):
    assert triton.is_server_live()
    assert triton.is_server_ready()
    assert triton.is_model_ready("photos")
    assert triton.is_model_ready("photos", "1")
    assert triton.get_server_metadata()["name"] == "pierhead"
    for version in ("", "1"):
        metadata = triton.get_model_metadata("photos", version)
        assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]


@pytest.mark.parametrize(
    ("data", "datatype", "binary"),
    [
        (ENCODED, "BYTES", True),
        (ENCODED.reshape(2, 1), "BYTES", True),
        (BASE64, "BYTES", False),
        (PIXELS, "UINT8", True),
        (PIXELS, "UINT8", False),
        (PIXELS.astype(np.float32), "FP32", True),
    ],
)
@pytest.mark.parametrize(
    "outputs",
    [
        None,
        [tritonclient.InferRequestedOutput("confidences", binary_data=True)],
        [tritonclient.InferRequestedOutput("confidences", binary_data=False)],
    ],
)
def test_triton_client_infers(triton, data, datatype, binary, outputs):
    answer = triton.infer("photos", [make_input(data, datatype, binary=binary)], outputs=outputs, request_id="7")
    np.testing.assert_array_equal(answer.as_numpy("confidences"), [CONFIDENCES, CONFIDENCES])
    assert answer.get_response()["id"] == "7"
    assert answer.get_response()["model_version"] == "2"


@pytest.mark.parametrize("binary", [True, False])
def test_triton_client_is_told_the_classes(triton, binary):
    wanted = tritonclient.InferRequestedOutput("confidences", binary_data=binary, class_count=2)
    answer = triton.infer("photos", [make_input(ENCODED, "BYTES", binary=True)], outputs=[wanted])
    texts = [[str(text, "utf-8") if binary else text for text in row] for row in answer.as_numpy("confidences")]
    assert texts == [["0.625000:1:bee", "0.250000:0:ant"]] * 2


def test_triton_client_is_told_the_error(triton):
    bad = make_input(np.array([b""], dtype=object), "BYTES", binary=True)
    with pytest.raises(InferenceServerException) as caught:
        triton.infer("photos", [bad])
    assert (caught.value.status(), caught.value.message()) == (
        "400",
        "instances[0]: empty: put the picture's bytes here",
    )
    with pytest.raises(InferenceServerException) as caught:
        triton.infer("photos", [make_input(ENCODED, "BYTES", binary=True)], request_compression_algorithm="deflate")
    assert caught.value.status() == "415"


@pytest.mark.parametrize("binary", [True, False])
def test_triton_client_compresses(triton, binary):
    made = make_input(ENCODED, "BYTES", binary=binary)
    gzip = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
    plain, packed = triton.infer("photos", [made]), triton.infer("photos", [made], **gzip)
    assert packed.as_numpy("confidences").tolist() == plain.as_numpy("confidences").tolist()


# Every format of a model, by Triton's client and KServe's


class ModelWorkers(FakeWorkers):
    """Workers that answer with a real model, in this process."""

    def __init__(self, model):
        super().__init__()
        self.signature = model.signature
        self._model = model

    def answer(self, call):
        (reply,) = worker.answer([call], [worker.prepare(call, self._model, CONTRACT)], self._model, CONTRACT)
        return reply


def write_predictor(folder):
    (folder / "model.yaml").write_text("format: predictor\n")
    (folder / "predictor.py").write_text("""
class Predictor:
    def from_path(model_dir):
        return Predictor()
    def predict(self, instances):
        return [float(sum(instance)) for instance in instances]
""")


FORMATS = {
    "torchvision": write_torchvision_artifact,
    "exported": write_exported_artifact,
    "program": write_exported,
    "torchscript": write_torchscript,
    "predictor": write_predictor,
}


@pytest.fixture(scope="module", params=FORMATS)
def model(request, tmp_path_factory):
    """The format's name, and the address of a listener with a model of it."""
    folder = tmp_path_factory.mktemp(request.param)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.filterwarnings("ignore", "`torch.jit", FutureWarning)
        patch.setattr(sys, "path", sys.path.copy())
        patch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
        FORMATS[request.param](folder)
        options = LoadOptions(max_image_pixels=10**6, allow_code=True)
        workers = ModelWorkers(load_model(read_artifact(folder), options).model)
    with listening(Served(10**7, workers)) as address:
        yield request.param, address


FILES = np.array([encode(picture(seed=seed)) for seed in (0, 1)], dtype=object)
FILES_BASE64 = np.array([base64.b64encode(file) for file in FILES], dtype=object)
VECTORS = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.float32)
SUMS = {"program": [12.0, 7.5], "torchscript": [12.0, 7.5], "predictor": [6.0, 15.0]}


def make_inputs(name, binary):
    """For each format the ways in which a client gives two rows."""
    if name in ("torchvision", "exported"):
        pixels = np.stack([np.asarray(picture(seed=seed)) for seed in (0, 1)])
        files = FILES if binary else FILES_BASE64
        return [
            [make_input(files, "BYTES", binary=binary)],
            [make_input(pixels, "UINT8", binary=binary)],
        ]
    rows = make_input(VECTORS, "FP32", binary=binary, name="vector")
    if name == "predictor":
        return [[rows]]
    return [[rows, make_input(np.array([2, 0.5], dtype=np.float32), "FP32", binary=binary, name="scale")]]


ASKED = {"priority": 1, "timeout": 5_000_000, "sequence_id": 42, "sequence_start": True, "sequence_end": True}


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("asked", [{}, ASKED], ids=["plain", "with Triton's parameters"])
def test_triton_client_infers_with_every_format(model, binary, asked):
    name, address = model
    with tritonclient.InferenceServerClient(address) as client:
        (output, *_) = client.get_model_metadata("m")["outputs"] or [{"name": "predictions"}]
        given = [client.infer("m", inputs, **asked).as_numpy(output["name"]) for inputs in make_inputs(name, binary)]
    if name in SUMS:
        assert given[0].tolist() == SUMS[name]
        return
    files, pixels = given
    assert files.shape == (2, 5)
    np.testing.assert_allclose(files, pixels, atol=1e-6)
    assert np.abs(files[0] - files[1]).max() > 1e-4


def test_raw_binary_request_is_one_row_of_every_format(model):
    name, address = model
    data = VECTORS[0].tobytes() if name not in ("torchvision", "exported") else FILES[0]
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": "0"}
    answer = httpx.post(f"http://{address}/v2/models/m/infer", content=data, headers=headers)
    if name in ("program", "torchscript"):
        assert answer.status_code == 400
        assert answer.json()["error"].endswith("0 is for models of one input, and this one has vector, scale")
        return
    assert answer.status_code == 200
    length = int(answer.headers["Inference-Header-Content-Length"])
    (output,) = json.loads(answer.content[:length])["outputs"]
    if name == "predictor":
        assert np.frombuffer(answer.content[length:]).tolist() == [float(sum(data))]
        return
    assert (output["name"], output["shape"]) == ("confidences", [1, 5])
    assert len(np.frombuffer(answer.content[length:], "<f4")) == 5


# Recorded from kserve 0.21.0's InferenceRESTClient, whose dependencies exclude ours: rows of two, as above.
RECORDED = json.loads((Path(__file__).parent / "kserve_requests.json").read_text())


def test_requests_of_kserves_client_are_answered(model):
    name, address = model
    recorded = [one for one in RECORDED if one["name"].partition(":")[0] == name]
    assert len(recorded) == {"torchvision": 0, "exported": 10, "program": 0, "torchscript": 6, "predictor": 6}[name]
    rows = []
    for one in recorded:
        answer = httpx.post(
            f"http://{address}{one['path']}", content=base64.b64decode(one["body"]), headers=one["headers"]
        )
        assert answer.status_code == 200, (one["name"], answer.text)
        if one["path"].startswith("/v1"):
            assert [each.get("key") for each in answer.json()["predictions"] if name == "exported"] in ([], ["1", "1"])
            continue
        length = int(answer.headers.get("Inference-Header-Content-Length", len(answer.content)))
        said = json.loads(answer.content[:length])
        assert said["id"] == "7"
        output = said["outputs"][0]
        dtype = {"FP32": "<f4", "FP64": "<f8"}[output["datatype"]]
        rows.append(
            output["data"]
            if "data" in output
            else np.frombuffer(answer.content[length:], dtype)[: math.prod(output["shape"])]
        )
    for row in rows:
        np.testing.assert_allclose(row, SUMS.get(name, rows[0]), atol=1e-6)


def test_kserves_client_knows_the_server(address):
    paths = {
        "/": {"status": "alive"},
        "/v1/models/m": {"name": "photos", "ready": True},
        "/v2/health/live": {"live": True},
        "/v2/health/ready": {"ready": True},
        "/v2/models/m/ready": {"name": "photos", "ready": True},
    }
    assert {path: httpx.get(f"http://{address}{path}").json() for path in paths} == paths


# KServe V1, by curl


def curl(*arguments):
    """The JSON that it prints first, and what comes in lines after."""
    program = ["curl", "--silent", "--show-error", *arguments]
    printed = subprocess.run(program, capture_output=True, check=True, timeout=60, text=True).stdout
    body, _, more = printed.partition("\n")
    return json.loads(body), more


def test_curl_predicts(address):
    body = json.dumps({"instances": [{"image_bytes": {"b64": PICTURE}}]})
    assert curl(f"http://{address}/v1/models/photos:predict", "--data", body)[0] == {"predictions": [PREDICTION]}
    assert curl(f"http://{address}/v1/models")[0] == {"models": ["photos"]}
    assert curl(f"http://{address}/v1/models/photos")[0] == {"name": "photos", "ready": True}


def test_curl_posts_a_picture(address, tmp_path):
    picture = tmp_path / "picture.jpg"
    picture.write_bytes(b"picture")
    path = f"http://{address}/v1/projects/p/locations/l/endpoints/e:rawPredict"
    said, _ = curl(path, "--header", "Content-Type: image/jpeg", "--data-binary", f"@{picture}")
    assert said == {"predictions": [PREDICTION]}


def test_curl_that_asks_first_sends_no_body_that_is_refused(address, tmp_path):
    body = tmp_path / "body"
    body.write_bytes(b" " * 2_000_000)
    arguments = ("--header", "Expect: 100-continue", "--data-binary", f"@{body}", "--write-out", "\n%{size_upload}")
    said, sent = curl(f"http://{address}/v1/models/photos:predict", *arguments)
    assert said["error"].startswith("the body is over 1000 bytes")
    assert sent == "0"
