"""The JSON dialects of the predict contract, request by request and answer by answer."""

import base64
import codecs
import dataclasses
import datetime
import decimal
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pierhead_server import oip, protocol
from pierhead_server.binary import decode_base64
from pierhead_server.errors import (
    InstanceError,
    InternalError,
    InvalidArgumentError,
    QueueFullError,
    UnsupportedEncodingError,
    ValueTensorError,
)
from pierhead_server.messages import Call
from pierhead_server.protocol import (
    Limits,
    RankingParameters,
    Request,
    ServedModel,
    encode_json,
    parse,
    parse_ranking_parameters,
    read_picture,
    refuse_arguments,
    shape,
    shape_error,
    shape_ranking,
)
from pierhead_server.signature import Signature, TensorSpec

B64 = base64.b64encode(b"picture").decode()
LIMITS = Limits(max_instances=3)
SERVED = ServedModel("photos-2", "projects/default/locations/local/models/photos", "Photos", "2")
JSON_DIALECTS = ("vertex", "raw", "aiplatform", "kserve")


def parse_body(body, dialect="vertex", content_type="application/json"):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse(Call(dialect, raw, content_type), LIMITS)


@pytest.mark.parametrize(
    ("model", "location", "named"),
    [
        ("projects/p/locations/local/models/m", "us-central1", "projects/p/locations/us-central1/models/m"),
        ("projects/p/locations/local/models/m", "", "projects/p/locations/local/models/m"),
        ("projects/p/locations/local/models/m", "a/b", "projects/p/locations/local/models/m"),
        ("projects/p/locations/local/models/m", "a\n", "projects/p/locations/local/models/m"),
        ("my model", "us-central1", "my model"),
        ("", "us-central1", ""),
    ],
)
def test_model_is_named_in_the_location_of_the_request(model, location, named):
    assert ServedModel("", model, "", "").model_in(location) == named


@pytest.mark.parametrize("dialect", JSON_DIALECTS)
@pytest.mark.parametrize(
    ("instance", "parsed"),
    [
        # AI Platform's examples: values, text and rows of CSV, vectors, tensors, pictures, binary, named inputs
        (5, 5),
        (2.5, 2.5),
        (True, True),
        (None, None),
        ("the quick brown fox", "the quick brown fox"),
        ('1.0,true,"x"', '1.0,true,"x"'),
        ([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]),
        ([[1, 2], [3, 4]], [[1, 2], [3, 4]]),
        ([[[138, 30, 66], [130, 20, 56]]], [[[138, 30, 66], [130, 20, 56]]]),
        ({"b64": B64}, b"picture"),
        ({"tag": "beach", "image": {"b64": B64}}, {"tag": "beach", "image": b"picture"}),
        ({"tag": "beach", "image": [[[138, 30, 66]]]}, {"tag": "beach", "image": [[[138, 30, 66]]]}),
        # binary at any depth
        ([{"b64": B64}, {"b64": B64}], [b"picture", b"picture"]),
        ([[1, 2], [{"b64": B64}]], [[1, 2], [b"picture"]]),
        ([1, [2, [{"a": [{"b64": B64}]}]]], [1, [2, [{"a": [b"picture"]}]]]),
        ({"a": {"b": {"c": [{"b64": B64}]}}}, {"a": {"b": {"c": [b"picture"]}}}),
        ({"image_bytes": {"b64": B64}, "key": "7"}, {"image_bytes": b"picture", "key": "7"}),
        # Vertex AI's form stays: only a classifier knows what it means
        ({"content": B64, "mimeType": "image/png"}, {"content": B64, "mimeType": "image/png"}),
        # an object that has more than b64 is an ordinary object
        ({"b64": B64, "b32": 1}, {"b64": B64, "b32": 1}),
        ({}, {}),
        ([], []),
    ],
)
def test_instance_is_any_value(dialect, instance, parsed):
    request = parse_body({"instances": [instance]}, dialect)
    assert request == Request([parsed], {}, dialect)


def test_escaped_name_of_b64_is_b64():
    assert parse_body(b'{"instances": [{"\\u0062\\u0036\\u0034": "%s"}]}' % B64.encode()).instances == [b"picture"]


def test_nan_and_infinity_are_numbers():
    instances = parse_body(b'{"instances": [[NaN, 0, Infinity], [-Infinity, 1e999, -1e999]], "NaN": NaN}').instances
    assert math.isnan(instances[0][0])
    assert instances[0][1:] == [0, math.inf]
    assert instances[1] == [-math.inf, math.inf, -math.inf]


def test_text_beyond_ascii_stays_itself():
    text = "Grüße, 世界 🌊"
    for body in (json.dumps({"instances": [text]}), json.dumps({"instances": [text]}, ensure_ascii=False)):
        assert parse_body(body.encode()).instances == [text]
    nan_too = b'{"instances": ["\\ud83c\\udf0a", NaN]}'
    assert parse_body(nan_too).instances[0] == "🌊"


def test_other_members_are_arguments():
    request = parse_body({"instances": [1], "parameters": {"a": 1}, "threshold": {"b64": B64}})
    assert request.arguments == {"parameters": {"a": 1}, "threshold": {"b64": B64}}


@pytest.mark.parametrize(
    "content_type", ["image/jpeg", "IMAGE/PNG", "application/octet-stream", "application/octet-stream; a=b"]
)
def test_raw_body_of_a_picture_is_one_instance(content_type):
    assert parse_body(b"\xff\xd8", "raw", content_type) == Request((b"\xff\xd8",), {}, "raw")
    with pytest.raises(InvalidArgumentError, match="the body is empty: send the bytes of one instance"):
        parse_body(b"", "raw", content_type)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""])
def test_raw_body_of_another_type_is_json(content_type):
    assert parse_body({"instances": [1]}, "raw", content_type).instances == [1]


def test_labels_for_vertex_ais_bills_are_no_arguments():
    body = {"instances": [1], "labels": {"team": "a"}, "parameters": {"maxPredictions": 1}}
    assert parse_body(body).arguments == {"parameters": {"maxPredictions": 1}}
    assert parse_body(body, "kserve").arguments.keys() == {"labels", "parameters"}


def test_only_the_raw_dialect_looks_at_the_type():
    with pytest.raises(InvalidArgumentError, match="not valid JSON"):
        parse_body(b"\x7f", "vertex", "application/octet-stream")


@pytest.mark.parametrize("dialect", JSON_DIALECTS)
def test_byte_order_mark_is_skipped(dialect):
    for body in (b'{"instances": [{"b64": "%s"}]}' % B64.encode(), b'{"instances": [NaN]}'):
        assert len(parse_body(codecs.BOM_UTF8 + body, dialect).instances) == 1


# Binary data

PHOTO = bytes(range(256)) * 3 + b"\xfb\xff"  # in base64 with +, / and =
IN_BASE64 = base64.b64encode(PHOTO).decode()
DRESSES = {
    "standard": IN_BASE64,
    "unpadded": IN_BASE64.rstrip("="),
    "URL-safe": base64.urlsafe_b64encode(PHOTO).decode(),
    "URL-safe, unpadded": base64.urlsafe_b64encode(PHOTO).decode().rstrip("="),
    "a trailing newline": IN_BASE64 + "\n",
    "space at both ends": f" \t{IN_BASE64}  ",
    "MIME's lines": base64.encodebytes(PHOTO).decode(),
    "lines by Windows": base64.encodebytes(PHOTO).decode().replace("\n", "\r\n"),
    "lines that are indented": base64.encodebytes(PHOTO).decode().replace("\n", " \n\t  "),
    "data URL": f"data:image/jpeg;base64,{IN_BASE64}",
    "data URL without a type": f"data:;base64,{IN_BASE64}",
    "data URL of another kind": f"\n DATA:Application/Octet-Stream;name=x;Base64,\n{base64.encodebytes(PHOTO).decode()}",
}
BYTES_INPUT = Signature((TensorSpec("image", "bytes", ()),), ())


@pytest.mark.parametrize("dress", DRESSES.values(), ids=DRESSES)
def test_base64_is_the_same_bytes_on_every_path(dress):
    for dialect in JSON_DIALECTS:
        assert parse_body({"instances": [{"b64": dress}, [{"x": {"b64": dress}}]]}, dialect).instances == [
            PHOTO,
            [{"x": PHOTO}],
        ]
    call = Call("batch", msgspec.msgpack.encode({"instances": [{"b64": dress}]}))
    assert parse(call, LIMITS).instances == [PHOTO]
    assert read_picture({"content": dress}) == PHOTO
    assert read_picture({"b64": dress, "key": 1}) == PHOTO
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [dress]}
    call = Call("oip", json.dumps({"inputs": [tensor]}).encode())
    assert parse(call, LIMITS, BYTES_INPUT).instances == [PHOTO]
    wrapped = {"httpBody": {"contentType": "image/jpeg", "data": dress}}
    assert parse_body(wrapped, "raw").instances == (PHOTO,)


def test_the_contracts_own_example_is_base64():
    assert decode_base64("X5ad6u", "") == bytes.fromhex("5f969dea")


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("%", "'%' after 0 characters"),
        ("YWJj\nYW*j", "'*' after 6 characters"),
        ("YWJ\0", "'\\x00' after 3 characters"),
        ("YWé=", "'\\xe9' after 2 characters"),
        ("YW Jj", "a space after 2 characters, perhaps a + that was sent in a form"),
        ("YWJjY", "a character is missing, or one too many: it was cut"),
        ("YQ==YQ==", "padding in its middle"),
        ("YWJj=", "too much padding"),
        ("=", "too much padding"),
        (f"data:image/png;base64,{B64},", "',' after 12 characters"),
    ],
)
def test_what_is_no_base64_says_why(text, cause):
    with pytest.raises(ValueTensorError) as caught:
        decode_base64(text, ".b64")
    assert (caught.value.field, caught.value.cause) == (
        ".b64",
        f"not valid base64 ({cause}): send the bytes in base64",
    )


def test_data_url_must_be_in_base64():
    with pytest.raises(ValueTensorError, match="a data: URL that is not in base64: send the bytes in base64, as data:"):
        decode_base64("data:text/plain,abc", "")


@pytest.mark.parametrize("text", ["", "\n", " ", "data:image/png;base64,", "data:image/png;base64,\r\n"])
def test_no_bytes_are_an_error(text):
    with pytest.raises(ValueTensorError, match="empty: put the bytes here, in base64"):
        decode_base64(text, "")


def test_dressed_base64_of_megabytes_takes_as_little_as_other_parsing():
    data = np.random.default_rng(0).bytes(3_000_000)
    lines = base64.encodebytes(data).decode()
    body = json.dumps(list(range(600_000)))  # as many bytes

    def fastest(function, argument):
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            function(argument)
            seconds.append(time.perf_counter() - start)
        return min(seconds)

    assert decode_base64(lines, "") == data
    assert fastest(lambda text: decode_base64(text, ""), lines) < 5 * fastest(json.loads, body)


# rawPredict


@pytest.mark.parametrize("name", ["httpBody", "http_body"])
@pytest.mark.parametrize("type_name", ["contentType", "content_type"])
@pytest.mark.parametrize("content_type", ["image/jpeg", "application/octet-stream"])
def test_raw_picture_may_come_wrapped(name, type_name, content_type):
    body = {name: {type_name: content_type, "data": B64, "extensions": []}}
    assert parse_body(body, "raw") == Request((b"picture",), {}, "raw")


@pytest.mark.parametrize("content_type", ["application/json", None, ""])
def test_raw_json_may_come_wrapped(content_type):
    inner = json.dumps({"instances": [{"b64": B64}, 1], "parameters": {"k": 1}}).encode()
    body = {"httpBody": {"contentType": content_type, "data": base64.b64encode(inner).decode()}}
    assert parse_body(body, "raw") == Request([b"picture", 1], {"parameters": {"k": 1}}, "raw")


def test_only_rawpredict_is_unwrapped():
    body = {"httpBody": {"contentType": "image/jpeg", "data": B64}}
    with pytest.raises(InvalidArgumentError, match="instances: missing"):
        parse_body(body, "vertex")
    assert parse_body(body | {"instances": [1]}, "raw").arguments == body


@pytest.mark.parametrize(
    ("wrapped", "message"),
    [
        ("x", "httpBody: must be an object, not a string"),
        ({}, "httpBody.data: must be a base64 string, not null"),
        ({"data": ""}, "httpBody.data: empty: put the bytes here, in base64"),
        ({"data": "%"}, "httpBody.data: not valid base64 ("),
        ({"contentType": 1, "data": B64}, "httpBody.contentType: must be a string, not a number"),
        ({"contentType": "application/json", "data": B64}, "the body is not valid JSON: "),
        (
            {"contentType": "multipart/form-data; boundary=x", "data": B64},
            "multipart/form-data is not taken here: send JSON, or the picture itself to :rawPredict",
        ),
    ],
)
def test_bad_wrapper_is_named(wrapped, message):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_body({"httpBody": wrapped}, "raw")
    assert str(caught.value).startswith(message)


FORM = b'--x\r\nContent-Disposition: form-data; name="f"\r\nContent-Type: image/jpeg\r\n\r\n\xff\xd8\r\n--x--\r\n'


@pytest.mark.parametrize("dialect", [*JSON_DIALECTS, "oip"])
def test_form_is_told_what_to_send_instead(dialect):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_body(FORM, dialect, "Multipart/Form-Data; boundary=x")
    assert str(caught.value) == "multipart/form-data is not taken here: send JSON, or the picture itself to :rawPredict"


@pytest.mark.parametrize("dialect", ["vertex", "aiplatform", "kserve", "oip"])
def test_picture_itself_is_told_where_to_go(dialect):
    with pytest.raises(InvalidArgumentError, match="image/jpeg is not taken here: send JSON, or the picture itself to"):
        parse_body(b"\xff\xd8", dialect, "image/jpeg")


GOOD = [{"b64": B64}]
DEEP = b'{"instances": [' + b"[" * 900 + b'{"b64": "AA=="}' + b"]" * 900 + b"]}"
OBJECTS = b'{"instances": [' + b'{"a":' * 900 + b'{"b64": "AA=="}' + b"}" * 900 + b"]}"


@pytest.mark.parametrize("dialect", JSON_DIALECTS)
@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the body is not valid JSON: "),
        (b"{", "the body is not valid JSON: "),
        (b'{"instances": [1]} {}', "the body is not valid JSON: Extra data"),
        (b"\xef\xbb\xbf{}", 'instances: missing: send {"instances": [...]}'),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "the body is not valid JSON: Unexpected UTF-8 BOM"),
        (b'{"instances": \xff}', "the body is not UTF-8 (byte 14): send JSON in UTF-8"),
        (b'{"instances": ["\xff"]}', "the body is not UTF-8 (byte 16): send JSON in UTF-8"),
        ('{"instances": [1]}'.encode("utf-16"), "the body is UTF-16, not UTF-8: send JSON in UTF-8"),
        (codecs.BOM_UTF16_BE + '{"instances": [1]}'.encode("utf-16-be"), "the body is UTF-16, not UTF-8: send JSON in"),
        (b"[" * 100_000, "the body is nested too deeply"),
        (b"NaN" + b"[" * 100_000, "the body is not valid JSON: "),
        (b'{"instances": ' + b"9" * 5000 + b"}", "the body is not valid JSON: a number has too many digits"),
        (b'{"instances": ["\\ud800"]}', "the body is not valid JSON: a string holds half a surrogate pair"),
        (b'{"\\uDFFF": 1}', "the body is not valid JSON: a string holds half a surrogate pair"),
        ([], 'the body must be a JSON object with "instances", not a list'),
        (None, 'the body must be a JSON object with "instances", not null'),
        (b"NaN", 'the body must be a JSON object with "instances", not a number'),
        ({}, 'instances: missing: send {"instances": [...]}'),
        ({"instance": GOOD}, "instances: missing"),
        ({"instances": None}, "instances: missing"),
        ({"instances": {}}, "instances: must be a list, not an object"),
        ({"instances": "all"}, "instances: must be a list, not a string"),
        ({"instances": []}, "instances: empty: give at least one instance"),
        ({"instances": GOOD * 4}, "instances: 4 are more than 3: split the request"),
        ({"instances": [{"b64": 5}]}, "instances[0].b64: must be a base64 string, not a number"),
        ({"instances": [{"b64": None}]}, "instances[0].b64: must be a base64 string, not null"),
        ({"instances": [{"b64": ""}]}, "instances[0].b64: empty: "),
        ({"instances": [*GOOD, {"b64": "%%%"}]}, "instances[1].b64: not valid base64 ("),
        ({"instances": [{"b64": B64 + "===="}]}, "instances[0].b64: not valid base64 (too much padding)"),
        ({"instances": [{"b64": "é==="}]}, "instances[0].b64: not valid base64 ('\\xe9' after 0 characters)"),
        ({"instances": [1, {"image": {"b64": "%"}}]}, "instances[1].image.b64: not valid base64 ("),
        ({"instances": [{"a": [0, [{"b64": "%"}]]}]}, "instances[0].a[1][0].b64: not valid base64 ("),
        (b'{"instances": [{"b\\u0036\\u0034": "%"}]}', "instances[0].b64: not valid base64 ("),
    ],
)
def test_bad_request_names_field_and_fix(dialect, body, message):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_body(body, dialect)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("body", [DEEP, OBJECTS])
def test_deep_nesting_is_parsed_or_refused(body):
    try:
        parse_body(body)
    except InvalidArgumentError as error:
        said = str(error)
    else:
        said = "the body is nested too deeply"  # both are right: it depends on the stack's depth
    assert said == "the body is nested too deeply"


def test_error_in_an_instance_says_which():
    with pytest.raises(InstanceError) as caught:
        parse_body({"instances": [1, {"b64": "%"}]})
    assert caught.value.index == 1


# Parameters


@pytest.mark.parametrize(
    ("parameters", "parsed"),
    [
        ({}, RankingParameters(0.0, 10)),
        (None, RankingParameters(0.0, 10)),
        ({"confidenceThreshold": 0.5}, RankingParameters(0.5, 10)),
        ({"confidenceThreshold": 1}, RankingParameters(1.0, 10)),
        ({"confidenceThreshold": None, "maxPredictions": None}, RankingParameters(0.0, 10)),
        ({"maxPredictions": 3}, RankingParameters(0.0, 3)),
        ({"maxPredictions": 10.0}, RankingParameters(0.0, 10)),
        ({"maxPredictions": 10**400}, RankingParameters(0.0, 10**400)),
    ],
)
def test_ranking_parameters_are_parsed(parameters, parsed):
    read = parse_ranking_parameters({"parameters": parameters})
    assert read == parsed
    assert type(read.max_predictions) is int
    assert type(read.confidence_threshold) is float


def test_ranking_parameters_may_be_left_out():
    assert parse_ranking_parameters({}) == RankingParameters()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"parameter": {}}, "parameter: unknown: did you mean parameters?"),
        ({"signature": 1}, "signature: unknown: known are instances, parameters"),
        ({"parameters": []}, "parameters: must be an object, not a list"),
        ({"parameters": {"maxPrediction": 1}}, "parameters.maxPrediction: unknown: did you mean maxPredictions?"),
        ({"parameters": {"k": 1}}, "parameters.k: unknown: known are confidenceThreshold, maxPredictions"),
        ({"parameters": {"confidenceThreshold": 1.1}}, "parameters.confidenceThreshold: must be a number from 0 to 1"),
        ({"parameters": {"confidenceThreshold": -0.1}}, "parameters.confidenceThreshold: must be "),
        ({"parameters": {"confidenceThreshold": True}}, "parameters.confidenceThreshold: must be "),
        ({"parameters": {"confidenceThreshold": "0.5"}}, "parameters.confidenceThreshold: must be "),
        ({"parameters": {"confidenceThreshold": math.nan}}, "parameters.confidenceThreshold: must be "),
        ({"parameters": {"confidenceThreshold": 10**400}}, "parameters.confidenceThreshold: must be "),
        ({"parameters": {"maxPredictions": 0}}, "parameters.maxPredictions: must be a whole number of at least 1"),
        ({"parameters": {"maxPredictions": -(10**400)}}, "parameters.maxPredictions: must be "),
        ({"parameters": {"maxPredictions": 1.5}}, "parameters.maxPredictions: must be "),
        ({"parameters": {"maxPredictions": "1"}}, "parameters.maxPredictions: must be "),
        ({"parameters": {"maxPredictions": True}}, "parameters.maxPredictions: must be "),
        ({"parameters": {"maxPredictions": math.inf}}, "parameters.maxPredictions: must be "),
        ({"parameters": {"maxPredictions": math.nan}}, "parameters.maxPredictions: must be "),
    ],
)
def test_bad_ranking_parameters_are_named(arguments, message):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_ranking_parameters(arguments)
    assert str(caught.value).startswith(message)


def test_arguments_are_refused_where_none_are_known():
    refuse_arguments({})
    with pytest.raises(InvalidArgumentError, match="parameters: unknown: known are instances"):
        refuse_arguments({"parameters": {"k": 1}})


@pytest.mark.parametrize("arguments", [{"parameters": None}, {"parameters": {}}, {"signature_name": "serving_default"}])
def test_arguments_that_mean_nothing_are_taken(arguments):
    refuse_arguments(arguments)
    assert parse_ranking_parameters(arguments) == RankingParameters()


def test_what_is_taken_and_ignored_is_documented():
    text = (Path(__file__).parents[3] / "docs/model-server.md").read_text()
    table = text.partition("### Taken, ignored, refused\n")[2].partition("\n### ")[0]
    names = {"labels", "signature_name", "key", "mimeType", "httpBody.extensions", "triton_*"}
    for name in {*names, *protocol.PICTURE_FIELDS, *oip.MODEL_NAMES, *oip.TRITONS}:
        assert f"`{name}`" in table, name


# Pictures

PIXELS = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)


@pytest.mark.parametrize(
    "instance",
    [
        b"picture",
        {"content": B64},
        {"content": B64, "mimeType": "image/png"},
        {"content": B64, "mimeType": "no such type"},
        {"b64": B64, "mimeType": "image/png"},
        {"content": b"picture"},  # {"content": {"b64": ...}}
        {"image": b"picture"},
        {"image": {"content": B64, "mimeType": "image/png"}},
        {"image": {"b64": B64, "mimeType": "image/png"}},
        {"image_bytes": b"picture"},
        {"image_bytes": b"picture", "key": "1"},  # as Google's samples for the edge send it
        {"b64": B64, "key": 7, "tag": ["beach"]},
        {"content": B64, "mimetype": "", "mimeType": 1},
        {"image": {"b64": B64, "key": "1", "image": 1}, "name": "beach.jpg"},
        np.frombuffer(b"picture", dtype=np.uint8),
    ],
)
def test_picture_is_bytes(instance):
    assert read_picture(instance) == b"picture"


@pytest.mark.parametrize(
    "instance",
    [
        PIXELS.tolist(),
        PIXELS.astype(np.float64).tolist(),
        {"image": PIXELS.tolist()},
        PIXELS,
        PIXELS.astype(np.float32),
        PIXELS.astype(np.int64),
        {"image": PIXELS},
    ],
)
def test_picture_is_rows_of_pixels(instance):
    picture = read_picture(instance)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, PIXELS)


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        (None, 'must be a picture, not null: send {"b64": '),
        (5, "must be a picture, not a number: send "),
        (True, "must be a picture, not a boolean: send "),
        (B64, 'must be a picture, not a string: is it base64? Send {"b64": "'),
        (b"", "empty: "),
        ({}, "must hold exactly one picture: send "),
        ({"mimeType": "image/png"}, "must hold exactly one picture: send "),
        ({"content": B64, "b64": B64}, "must hold exactly one picture: send "),
        ({"contents": B64}, ".contents: unknown: did you mean content?"),
        ({"key": "1", "image_byte": {"b64": B64}}, ".image_byte: unknown: did you mean image_bytes?"),
        ({"key": "1", "tag": "beach"}, "must hold exactly one picture: send "),
        ({"content": 5}, ".content: must be a base64 string, not a number"),
        ({"content": None}, ".content: must be a base64 string, not null"),
        ({"content": ""}, ".content: empty: "),
        ({"content": "%%%"}, ".content: not valid base64 ("),
        ({"content": B64[:4] + " " + B64[4:]}, ".content: not valid base64 (a space after 4 characters, perhaps a + "),
        ({"image": {"content": "%"}}, ".image.content: not valid base64 ("),
        ({"image": {"image": b"picture"}}, ".image: must hold exactly one picture"),
        ({"image": {}}, ".image: must hold exactly one picture"),
        ({"image": "x"}, ".image: must be a picture, not a string"),
        ({"image": [[[0, 0]]]}, ".image: expected shape [any, any, 3], got [1, 1, 2]"),
        ({"image": [[[0, 0, 256]]]}, ".image[0][0][2]: must be a whole number from 0 to 255, not 256"),
        ([], "expected shape [any, any, 3], got [0]"),
        ([[[0, 0, 0]], []], "[1]: ragged: holds 0, and its neighbours 1"),
        ([[["a", 0, 0]]], "[0][0][0]: must be a number, not a string"),
        (PIXELS[:0], "expected shape [any, any, 3], got [0, 2, 3]"),
        (np.float32(1.0), "expected shape [any, any, 3], got a single number"),
    ],
)
def test_what_is_no_picture_is_named(instance, message):
    with pytest.raises(ValueTensorError) as caught:
        read_picture(instance)
    assert (caught.value.field + ": " + caught.value.cause).removeprefix(": ").startswith(message)


# Rankings

LABELS = ("ant", "bee", "cat", "dog")


@pytest.mark.parametrize(
    ("confidences", "parameters", "indices"),
    [
        ([0.1, 0.2, 0.4, 0.3], RankingParameters(), [2, 3, 1, 0]),
        ([0.25, 0.25, 0.25, 0.25], RankingParameters(), [0, 1, 2, 3]),
        ([0.1, 0.4, 0.1, 0.4], RankingParameters(max_predictions=3), [1, 3, 0]),
        ([0.1, 0.2, 0.4, 0.3], RankingParameters(confidence_threshold=0.25), [2, 3]),
        ([0.1, 0.2, 0.4, 0.3], RankingParameters(0.25, 1), [2]),
        ([0.5, 0.2, 0.4, 0.3], RankingParameters(confidence_threshold=0.5), [0]),
        ([0.1, 0.2, 0.4, 0.3], RankingParameters(confidence_threshold=1.0), []),
        ([math.nan, 0.2, math.nan, 0.3], RankingParameters(), [3, 1]),
        ([-1.0, 0.0, 3.0, -2.0], RankingParameters(), [2, 1]),
        ([0.1, 0.2, 0.4, 0.3], RankingParameters(max_predictions=10**400), [2, 3, 1, 0]),
    ],
)
def test_ranking_is_sorted_and_cut(confidences, parameters, indices):
    row = np.array(confidences, dtype=np.float32)
    assert shape_ranking(row, LABELS, parameters) == {
        "ids": [str(index) for index in indices],
        "displayNames": [LABELS[index] for index in indices],
        "confidences": [float(row[index]) for index in indices],
    }


def test_threshold_is_compared_as_the_caller_reads_it():
    row = np.array([0.7], dtype=np.float32)  # 0.699999988079071 in the answer
    assert shape_ranking(row, LABELS, RankingParameters(confidence_threshold=0.7))["ids"] == []


# Answers


@dataclasses.dataclass
class Given:
    """A result as it stands."""

    rows: Sequence[object]
    echoes_key: bool = False
    labels = None

    def predictions(self):
        return self.rows

    def tensors(self):
        return {}


def answer(rows, dialect="vertex", count=None):
    return shape(Request([0] * (len(rows) if count is None else count), {}, dialect), Given(rows), SERVED)


JSON_HEADER = {"Content-Type": "application/json"}


def test_answer_has_vertex_shape():
    reply = answer([{"ids": ["2"], "displayNames": ["cat"], "confidences": [0.75]}, {"ids": []}])
    assert (reply.code, reply.headers, reply.instances) == (200, JSON_HEADER, 2)
    assert json.loads(reply.body) == {
        "predictions": [{"ids": ["2"], "displayNames": ["cat"], "confidences": [0.75]}, {"ids": []}],
        "deployedModelId": "photos-2",
        "model": "projects/default/locations/local/models/photos",
        "modelDisplayName": "Photos",
        "modelVersionId": "2",
    }


@pytest.mark.parametrize("dialect", ["aiplatform", "kserve"])
def test_answer_of_other_paths_is_the_predictions(dialect):
    reply = answer([1, 2], dialect)
    assert (reply.code, reply.body, reply.headers) == (200, b'{"predictions":[1,2]}', JSON_HEADER)


def test_raw_answer_names_the_model_in_headers():
    reply = answer([1], "raw")
    assert reply.body == b'{"predictions":[1]}'
    assert reply.headers == JSON_HEADER | {
        "X-Vertex-AI-Deployed-Model-Id": "photos-2",
        "X-Vertex-AI-Model": "projects/default/locations/local/models/photos",
    }


def test_header_is_ascii():
    served = dataclasses.replace(SERVED, model="Grüße\r\n")
    reply = shape(Request([1], {}, "raw"), Given([1]), served)
    assert reply.headers["X-Vertex-AI-Model"] == "Gr%C3%BC%C3%9Fe%0D%0A"


@pytest.mark.parametrize(
    ("prediction", "written"),
    [
        (None, None),
        ([True, 1, 2.5, "x"], [True, 1, 2.5, "x"]),
        (10**30, 10**30),
        ((1, [2, (3,)]), [1, [2, [3]]]),
        (math.nan, None),
        ([math.inf, -math.inf, 0.0], [None, None, 0.0]),
        (b"picture", {"b64": B64}),
        ({"a": [bytearray(b"picture"), 1]}, {"a": [{"b64": B64}, 1]}),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("x"), "x"),
        (np.bytes_(b"picture"), {"b64": B64}),
        (np.array([[1.5, math.nan]]), [[1.5, None]]),
        (np.array([b"picture", None, 1], dtype=object), [{"b64": B64}, None, 1]),
        (np.array([b"picture"]), [{"b64": B64}]),
        (np.array(["x"]), ["x"]),
        ([np.float64(1.5), {"a": np.arange(2)}], [1.5, {"a": [0, 1]}]),
        ({np.int64(1): np.float32(0.5), np.str_("a"): 1, 2: 2}, {"1": 0.5, "a": 1, "2": 2}),
        (torch.tensor([[1, 2]]), [[1, 2]]),
        (torch.tensor(0.5, dtype=torch.bfloat16), 0.5),
        (torch.ones(1, requires_grad=True), [1.0]),
        ({"x": {"y": [torch.zeros(1)]}}, {"x": {"y": [[0.0]]}}),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (decimal.Decimal("1.5"), "1.5"),
    ],
)
def test_prediction_may_hold_arrays_tensors_and_bytes(prediction, written):
    assert json.loads(answer([prediction], "kserve").body) == {"predictions": [written]}


def test_predictions_may_be_one_array():
    assert answer(np.array([[1.0], [2.0]]), "kserve").body == b'{"predictions":[[1.0],[2.0]]}'


CYCLE: list[object] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (1 + 2j, "the model's answer holds a value of type complex, which JSON does not know"),
        (np.array([1j]), "the model's answer holds a value of type complex"),
        (object(), "the model's answer holds a value of type object"),
        (Given([]).predictions, "the model's answer holds a value of type method"),
        ({(1, 2): 3}, "the model's answer holds a value of type tuple"),
        ("\ud800", "the model's answer cannot be written as JSON: "),
        (CYCLE, "the model's answer cannot be written as JSON: maximum recursion depth exceeded"),
    ],
)
def test_what_cannot_be_written_is_an_internal_error(prediction, message):
    with pytest.raises(InternalError) as caught:
        answer([prediction])
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("dialect", JSON_DIALECTS)
def test_key_of_an_instance_comes_back_in_its_prediction(dialect):
    instances = [{"key": "a", "image": b""}, {"image": b""}, {"key": {"b64": b"x"}}, b"", {"key": 4}, {"key": 5}]
    rows = [{"ids": []}, {"ids": []}, {"ids": []}, {"ids": []}, {"key": "its own"}, 0.5]
    reply = shape(Request(instances, {}, dialect), Given(rows, echoes_key=True), SERVED)
    assert json.loads(reply.body)["predictions"] == [
        {"key": "a", "ids": []},
        {"ids": []},
        {"key": {"b64": {"b64": "eA=="}}, "ids": []},
        {"ids": []},
        {"key": "its own"},
        0.5,
    ]
    reply = shape(Request(instances, {}, dialect), Given(rows), SERVED)
    assert json.loads(reply.body)["predictions"] == rows


def echo(depth):
    key = json.loads("[" * depth + "]" * depth)
    request = Request([b"", {"key": key, "image": b""}], {}, "vertex")
    return key, shape(request, Given([{}, {"ids": []}], echoes_key=True), SERVED)


@pytest.mark.parametrize("depth", [10, 200])
def test_key_may_be_nested(depth):
    key, reply = echo(depth)
    assert json.loads(reply.body)["predictions"][1]["key"] == key


@pytest.mark.parametrize("depth", [500, 700, 900])
def test_key_that_nobody_could_write_is_its_callers_error(depth):
    with pytest.raises(InstanceError) as caught:
        echo(depth)
    assert str(caught.value) == "instances[1].key: nested too deeply"


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([1.5, None, True, "nan"], 0),
        ([math.nan, math.inf, -math.inf, 0.0], 3),
        ([[math.nan, [1.0, (math.inf,)]], {"a": [math.nan], "b": None}], 3),
        ([np.float32("nan"), np.float64("inf")], 2),
        ([np.array([[1.5, math.nan], [math.inf, 0]], dtype=np.float16), np.array([1, 2])], 2),
        ([np.array([math.nan, None, "x", [math.inf]], dtype=object)], 2),
        ([torch.tensor([math.nan, 1.0, math.inf], dtype=torch.bfloat16, requires_grad=True)], 2),
        (np.array([[math.nan], [1.0]]), 1),
        ([decimal.Decimal("NaN"), b"null"], 0),
    ],
)
def test_numbers_that_are_none_are_counted(rows, count):
    assert answer(rows).non_finite == count


@pytest.mark.parametrize("rows", [[], [1], [1, 2, 3]])
def test_never_partial_predictions(rows):
    with pytest.raises(InternalError, match=f"the model gave {len(rows)} predictions for 2 instances"):
        answer(rows, count=2)


# Errors


@pytest.mark.parametrize("dialect", ["vertex", "raw"])
def test_error_has_google_shape(dialect):
    reply = shape_error(dialect, QueueFullError("8 requests are waiting"))
    assert (reply.code, reply.headers) == (429, JSON_HEADER | {"Retry-After": "1"})
    assert json.loads(reply.body) == {
        "error": {"code": 429, "message": "8 requests are waiting", "status": "RESOURCE_EXHAUSTED"}
    }


@pytest.mark.parametrize("dialect", ["aiplatform", "kserve", "oip"])
def test_error_of_other_paths_is_its_message(dialect):
    reply = shape_error(dialect, InstanceError(1, ".image", "not a picture"))
    assert (reply.code, reply.headers) == (400, JSON_HEADER)
    assert json.loads(reply.body) == {"error": "instances[1].image: not a picture"}


def test_error_of_a_compressed_body_says_what_is_accepted():
    assert shape_error("vertex", UnsupportedEncodingError("no")).headers["Accept-Encoding"] == "gzip"


def test_error_is_short_and_can_be_written():
    message = json.loads(shape_error("kserve", InvalidArgumentError("\ud800" + "x" * 5000)).body)["error"]
    assert message == "\\ud800" + "x" * 1999 + "..."


def test_encoding_keeps_numbers_as_they_are():
    assert encode_json({"a": [1, 1.0, np.float32(0.1)]}) == b'{"a":[1,1.0,0.10000000149011612]}'


# Anything at all

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(B64),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["b64", "content", "image", "mimeType", "a"]), inner, max_size=3)
    ),
    max_leaves=20,
)
BODIES = st.fixed_dictionaries(
    {},
    optional={
        "instances": JSON_VALUES | st.lists(JSON_VALUES, max_size=3),
        "parameters": JSON_VALUES,
        "x": JSON_VALUES,
    },
)
FUZZ = settings(derandomize=True, max_examples=500, deadline=None)


def try_all(body, dialect):
    """Parse, and read everything as a classifier would."""
    said = "sound"
    try:
        request = parse(Call(dialect, body), LIMITS, Signature((), ()))
        assert 1 <= len(request.instances) <= 3
        parse_ranking_parameters(request.arguments)
        for instance in request.instances:
            read_picture(instance)
    except (InvalidArgumentError, ValueTensorError) as error:
        said = str(error)
    assert said


@FUZZ
@given(st.binary(max_size=200), st.sampled_from([*JSON_DIALECTS, "oip"]))
def test_any_bytes_are_parsed_or_refused(body, dialect):
    try_all(body, dialect)


@FUZZ
@given(BODIES | JSON_VALUES, st.sampled_from(JSON_DIALECTS))
def test_any_json_is_parsed_or_refused(body, dialect):
    try_all(json.dumps(body).encode(), dialect)


@FUZZ
@given(st.lists(JSON_VALUES, min_size=1, max_size=3))
def test_what_was_parsed_can_be_answered(instances):
    try:
        request = parse(Call("vertex", json.dumps({"instances": instances}).encode()), LIMITS)
    except InvalidArgumentError:
        return
    assert len(json.loads(shape(request, Given(request.instances), SERVED).body)["predictions"]) == len(instances)
