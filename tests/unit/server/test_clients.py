"""The clients that people have, against the listener over real HTTP; the model behind it is of three classes."""

import base64
import json
import socket
import subprocess
import threading

import numpy as np
import pytest
import uvicorn
from google.auth.credentials import AnonymousCredentials
from googleapiclient import discovery
from googleapiclient.errors import HttpError
from tritonclient import http as tritonclient
from tritonclient.utils import InferenceServerException

from tests.unit.server.fake_workers import CONFIDENCES
from tests.unit.server.test_app import Served

PICTURE = base64.b64encode(b"picture").decode()
PREDICTION = {"ids": ["1", "0", "2"], "displayNames": ["bee", "ant", "cat"], "confidences": [0.625, 0.25, 0.125]}


@pytest.fixture(scope="module")
def address():
    """host:port of a listener."""
    with socket.create_server(("127.0.0.1", 0)) as port:
        server = uvicorn.Server(uvicorn.Config(Served().app, log_config=None, lifespan="off", ws="none"))
        thread = threading.Thread(target=server.run, args=([port],))
        thread.start()
        yield f"127.0.0.1:{port.getsockname()[1]}"
        server.should_exit = True
        thread.join()


# google-api-python-client, whose discovery document of AI Platform is inside the package


@pytest.fixture
def ml(address):
    service = discovery.build(
        "ml",
        "v1",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": f"http://{address}"},
        static_discovery=True,
    )
    yield service.projects()
    service.close()


@pytest.mark.parametrize("name", ["projects/p/models/m", "projects/p/models/m/versions/v1"])
def test_ai_platforms_client_predicts(ml, name):
    assert ml.predict(name=name, body={"instances": [{"b64": PICTURE}]}).execute() == {"predictions": [PREDICTION]}


def test_ai_platforms_client_is_told_the_error(ml):
    with pytest.raises(HttpError) as caught:
        ml.predict(name="projects/p/models/m", body={"instances": [{"b64": "%"}]}).execute()
    assert caught.value.status_code == 400
    assert json.loads(caught.value.content)["error"].startswith("instances[0].b64: not valid base64 (")


# tritonclient, which speaks the Open Inference Protocol with the binary extension


@pytest.fixture
def triton(address):
    with tritonclient.InferenceServerClient(address) as client:
        yield client


def make_input(data, datatype, *, binary):
    given = tritonclient.InferInput("image", list(data.shape), datatype)
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
        triton.infer("photos", [make_input(ENCODED, "BYTES", binary=True)], request_compression_algorithm="gzip")
    assert caught.value.status() == "415"


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
