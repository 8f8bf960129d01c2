"""Anything at all, sent to a real model as a worker takes it: every answer is 200 or a 4xx, and the next is right."""

import base64
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pierhead_server.artifact import read_artifact
from pierhead_server.messages import Call
from pierhead_server.model import LoadOptions, load_model
from pierhead_server.protocol import Limits, ServedModel
from pierhead_server.worker import Contract, answer, prepare

from tests.unit.server.pictures import encode, picture

DIALECTS = ("vertex", "raw", "aiplatform", "kserve", "oip")
CONTRACT = Contract(ServedModel("photos-1", "projects/p/locations/l/models/photos", "Photos", "1"), Limits(16))
ROUNDS = 20_000
SOUND = [
    encode(picture(40, 30), encoding)
    for encoding in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "ICO", "AVIF", "HEIF")
]
SOUND += [encode(picture(40, 30).convert(mode)) for mode in ("P", "LA", "1")]
SOUND += [encode(picture(40, 30).convert(mode), "TIFF") for mode in ("F", "I")]
SOUND += [encode(picture(40, 30).convert("CMYK"), "JPEG"), encode(picture(40, 30), "JPEG", progressive=True)]


@pytest.fixture(scope="module")
def model(exported_folder):
    torch.set_num_threads(1)  # as in a worker: two wait for each other, spinning, on a busy machine
    return load_model(read_artifact(exported_folder), LoadOptions(max_image_pixels=10**6)).model


def ask(model, *calls):
    return answer(calls, [prepare(call, model, CONTRACT) for call in calls], model, CONTRACT)


def body(data):
    return json.dumps({"instances": [{"b64": base64.b64encode(data).decode()}]}).encode()


GOOD = Call("vertex", body(SOUND[0]))


@pytest.fixture(scope="module")
def right(model):
    (reply,) = ask(model, GOOD)
    assert reply.code == 200
    return reply.body


def check(model, right, call):
    reply, beside = ask(model, call, GOOD)
    assert reply.code == 200 or 400 <= reply.code < 500, reply
    if reply.code != 200:
        assert json.loads(reply.body)["error"]
    # The one beside it in the batch has its own picture's answer; together they are added up in another order.
    assert beside.code == 200
    best, expected = (json.loads(given)["predictions"][0]["ids"] for given in (beside.body, right))
    assert best[0] == expected[0]


def test_thousands_of_broken_pictures_harm_nobody(model, right):
    random = np.random.default_rng(1)
    codes = set()
    for round_ in range(ROUNDS):
        data = bytearray(SOUND[round_ % len(SOUND)])
        match round_ % 3:
            case 0:  # some bytes are others
                for position in random.integers(0, len(data), random.integers(1, 9)):
                    data[position] = random.integers(0, 256)
            case 1:  # the end is missing
                del data[random.integers(1, len(data)) :]
            case 2:  # a part is missing
                start = random.integers(0, len(data))
                del data[start : start + random.integers(1, 64)]
        (reply,) = ask(model, Call("vertex", body(bytes(data)))) if round_ % 10 else (None,)
        if reply is None:
            check(model, right, Call("vertex", body(bytes(data))))
        else:
            assert reply.code in (200, 400), reply
            codes.add(reply.code)
    assert codes == {200, 400}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([{"b64": ""}, {"b64": "AAAA"}, {"content": "!"}, base64.b64encode(SOUND[1]).decode()]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["b64", "content", "key", "image", "image_bytes", "x", "name", "shape", "datatype", "data"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
top_level = st.dictionaries(
    st.sampled_from(["instances", "parameters", "inputs", "outputs", "id", "httpBody", "model_name", "signature_name"]),
    json_values,
)


@settings(max_examples=1500, derandomize=True, deadline=None)
@given(dialect=st.sampled_from(DIALECTS), value=top_level | json_values)
def test_any_json_is_answered(model, right, dialect, value):
    check(model, right, Call(dialect, json.dumps(value).encode()))


@settings(max_examples=1500, derandomize=True, deadline=None)
@given(
    dialect=st.sampled_from(DIALECTS),
    data=st.binary(max_size=200),
    content_type=st.sampled_from(["application/json", "image/jpeg", "application/octet-stream", "", "text/plain"]),
    length=st.none() | st.integers(min_value=0, max_value=300),
)
def test_any_bytes_are_answered(model, right, dialect, data, content_type, length):
    check(model, right, Call(dialect, data, content_type, length))


@pytest.mark.parametrize(
    "instances",
    [
        [[[[0, 0, 0]] * 4] * 4],  # a black picture of 4 x 4
        [{"image": [[[255.0, 0, 1]] * 3] * 2}],
    ],
)
def test_pictures_as_numbers_are_answered(model, instances):
    (reply,) = ask(model, Call("vertex", json.dumps({"instances": instances}).encode()))
    assert reply.code == 200
