"""Vertex AI's predict contract, request by request."""

import base64
import json

import pytest
from pierhead_server.errors import InvalidArgumentError, QueueFullError
from pierhead_server.protocol import Parameters, Picture, ServedModel, parse_request, shape_answer, shape_error

B64 = base64.b64encode(b"picture").decode()


def parse(body):
    return parse_request(body if isinstance(body, bytes) else json.dumps(body).encode(), max_instances=3)


@pytest.mark.parametrize(
    ("instance", "picture"),
    [
        ({"content": B64, "mimeType": "image/png"}, Picture(b"picture", "content")),
        ({"content": B64}, Picture(b"picture", "content")),
        ({"b64": B64}, Picture(b"picture", "b64")),
    ],
)
def test_instance_is_content_or_b64(instance, picture):
    assert parse({"instances": [instance]}).pictures == (picture,)


@pytest.mark.parametrize(
    ("parameters", "parsed"),
    [
        ({}, Parameters(0.0, 10)),
        (None, Parameters(0.0, 10)),
        ({"confidenceThreshold": 0.5}, Parameters(0.5, 10)),
        ({"confidenceThreshold": 1}, Parameters(1.0, 10)),
        ({"maxPredictions": 3}, Parameters(0.0, 3)),
        ({"maxPredictions": 10.0}, Parameters(0.0, 10)),
    ],
)
def test_parameters_are_parsed(parameters, parsed):
    request = parse({"instances": [{"b64": B64}], "parameters": parameters})
    assert request.parameters == parsed
    assert type(request.parameters.max_predictions) is int


def test_parameters_may_be_left_out():
    assert parse({"instances": [{"b64": B64}]}).parameters == Parameters()


GOOD = [{"b64": B64}]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not valid JSON: "),
        (b"{", "the body is not valid JSON: "),
        (b'{"instances": \xff}', "the body is not UTF-8 (byte 14): send JSON in UTF-8"),
        (b"[" * 100_000, "the body is nested too deeply"),
        (b'{"instances": ' + b"9" * 5000 + b"}", "the body is not valid JSON: "),
        ([], 'the body must be a JSON object with "instances", not a list'),
        (None, 'the body must be a JSON object with "instances", not null'),
        ({}, "instances: missing: give a list of "),
        ({"instances": None}, "instances: missing"),
        ({"instances": {}}, "instances: must be a list, not an object"),
        ({"instances": []}, "instances: empty: give at least one "),
        ({"instances": GOOD * 4}, "instances: 4 are more than 3: split the request"),
        ({"instance": GOOD}, "instance: unknown: did you mean instances?"),
        ({"instances": GOOD, "signature": 1}, "signature: unknown: known are instances, parameters"),
        ({"instances": [B64]}, "instances[0]: must be an object, "),
        ({"instances": [*GOOD, {}]}, "instances[1]: must hold exactly one of content and b64: "),
        ({"instances": [{"b64": B64, "content": B64}]}, "instances[0]: must hold exactly one of content and b64: "),
        ({"instances": [{"b64": B64, "mimetype": ""}]}, "instances[0].mimetype: unknown: did you mean mimeType?"),
        ({"instances": [{"b64": B64, "mimeType": 1}]}, "instances[0].mimeType: must be a string such as "),
        ({"instances": [{"content": 5}]}, "instances[0].content: must be a base64 string, not a number"),
        ({"instances": [{"content": ""}]}, "instances[0].content: empty: "),
        ({"instances": [*GOOD, {"content": "%%%"}]}, "instances[1].content: not valid base64 ("),
        ({"instances": [{"content": B64[:-1]}]}, "instances[0].content: not valid base64 ("),
        ({"instances": [{"content": B64[:4] + "\n" + B64[4:]}]}, "instances[0].content: not valid base64 ("),
        ({"instances": [{"content": "\ud800"}]}, "instances[0].content: not valid base64 ("),
        ({"instances": GOOD, "parameters": []}, "parameters: must be an object, not a list"),
        ({"instances": GOOD, "parameters": {"max": 1}}, "parameters.max: unknown: "),
        ({"instances": GOOD, "parameters": {"confidenceThreshold": 1.1}}, "parameters.confidenceThreshold: must be "),
        ({"instances": GOOD, "parameters": {"confidenceThreshold": True}}, "parameters.confidenceThreshold: must be "),
        (b'{"instances": [{"b64": "AA=="}], "parameters": {"confidenceThreshold": NaN}}', "parameters.confidenceThr"),
        ({"instances": GOOD, "parameters": {"maxPredictions": 0}}, "parameters.maxPredictions: must be "),
        ({"instances": GOOD, "parameters": {"maxPredictions": 1.5}}, "parameters.maxPredictions: must be "),
        ({"instances": GOOD, "parameters": {"maxPredictions": "1"}}, "parameters.maxPredictions: must be "),
        (b'{"instances": [{"b64": "AA=="}], "parameters": {"maxPredictions": Infinity}}', "parameters.maxPredictions"),
    ],
)
def test_bad_request_names_field_and_fix(body, message):
    with pytest.raises(InvalidArgumentError) as caught:
        parse(body)
    assert str(caught.value).startswith(message)


def test_answer_has_vertex_shape():
    served = ServedModel("photos-2", "projects/default/locations/local/models/photos", "Photos", "2")
    assert shape_answer([[(2, 0.75), (0, 0.25)], []], ["ant", "bee", "cat"], served) == {
        "predictions": [
            {"ids": ["2", "0"], "displayNames": ["cat", "ant"], "confidences": [0.75, 0.25]},
            {"ids": [], "displayNames": [], "confidences": []},
        ],
        "deployedModelId": "photos-2",
        "model": "projects/default/locations/local/models/photos",
        "modelDisplayName": "Photos",
        "modelVersionId": "2",
    }


def test_error_has_google_shape():
    assert shape_error(QueueFullError("8 requests are waiting")) == {
        "error": {"code": 429, "message": "8 requests are waiting", "status": "RESOURCE_EXHAUSTED"}
    }
