"""The Open Inference Protocol: JSON and binary tensors to rows, and results to both."""

import base64
import json
import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pierhead_server.errors import ApiError, InternalError, InvalidArgumentError
from pierhead_server.messages import Call
from pierhead_server.oip import HEADER_LENGTH, Output, Wanted
from pierhead_server.protocol import Limits, Request, ServedModel, parse, shape
from pierhead_server.signature import Signature, TensorSpec

LIMITS = Limits(max_instances=3)
SERVED = ServedModel("photos-2", "projects/default/locations/local/models/photos", "Photos", "2")
B64 = base64.b64encode(b"picture").decode()

CLASSIFIER = Signature((TensorSpec("image", "bytes", ()),), (TensorSpec("confidences", "float32", (3,)),))
PROGRAM = Signature(
    (TensorSpec("a", "float32", (2,)), TensorSpec("b", "int64", ())),
    (TensorSpec("sum", "float32", ()), TensorSpec("twice", "float32", (2,))),
)


def parse_body(document, binary=b"", signature=None):
    head = document if isinstance(document, bytes) else json.dumps(document).encode()
    return parse(Call("oip", head + binary, header_length=len(head) if binary else None), LIMITS, signature)


def tensor(name="x", shape=(2,), datatype="FP32", **more):
    return {"name": name, "shape": list(shape), "datatype": datatype} | more


def lists(instances):
    return [each.tolist() if isinstance(each, np.ndarray | np.generic) else each for each in instances]


@pytest.mark.parametrize(
    ("shape", "datatype", "data", "rows"),
    [
        ([2], "FP32", [1, 2.5], [1.0, 2.5]),
        ([2, 2], "FP32", [1, 2, 3, 4], [[1.0, 2.0], [3.0, 4.0]]),
        ([2, 2], "FP64", [[1, 2], [3, 4]], [[1.0, 2.0], [3.0, 4.0]]),
        ([1, 1, 2], "FP16", [[[1, 2]]], [[[1.0, 2.0]]]),
        ([2], "BOOL", [True, False], [True, False]),
        ([2], "UINT8", [0, 255], [0, 255]),
        ([1, 2], "UINT16", [0, 65535], [[0, 65535]]),
        ([1], "UINT32", [2**32 - 1], [2**32 - 1]),
        ([1], "UINT64", [2**64 - 1], [2**64 - 1]),
        ([1], "INT8", [-128], [-128]),
        ([1], "INT16", [-1], [-1]),
        ([1], "INT32", [1.0], [1]),
        ([1], "INT64", [-(2**63)], [-(2**63)]),
        ([2], "BYTES", ["a", "ü"], ["a", "ü"]),
        ([2, 1], "BYTES", ["a", "b"], [["a"], ["b"]]),
        ([1, 2], "BYTES", [["a", "b"]], [["a", "b"]]),
    ],
)
def test_rows_of_json(shape, datatype, data, rows):
    request = parse_body({"inputs": [tensor("x", shape, datatype, data=data)]})
    assert lists(request.instances) == rows
    assert (request.dialect, request.arguments) == ("oip", {})


@pytest.mark.parametrize(
    ("datatype", "dtype"),
    [
        ("UINT8", "u1"),
        ("UINT16", "<u2"),
        ("UINT32", "<u4"),
        ("UINT64", "<u8"),
        ("INT8", "i1"),
        ("INT16", "<i2"),
        ("INT32", "<i4"),
        ("INT64", "<i8"),
        ("FP16", "<f2"),
        ("FP32", "<f4"),
        ("FP64", "<f8"),
    ],
)
def test_rows_of_binary(datatype, dtype):
    data = np.array([[1, 2], [3, 4]], dtype=dtype)
    document = {"inputs": [tensor("x", (2, 2), datatype, parameters={"binary_data_size": data.nbytes})]}
    request = parse_body(document, data.tobytes())
    assert lists(request.instances) == [[1, 2], [3, 4]]
    assert request.instances[0].dtype == np.dtype(dtype)


def test_binary_booleans_are_bytes():
    request = parse_body({"inputs": [tensor("x", (3,), "BOOL", parameters={"binary_data_size": 3})]}, b"\0\1\2")
    assert lists(request.instances) == [False, True, True]


def encode_elements(*elements):
    return b"".join(struct.pack("<I", len(element)) + element for element in elements)


def test_binary_bytes_have_their_length_before_them():
    data = encode_elements(b"\xff\xd8", b"")
    document = {"inputs": [tensor("x", (2,), "BYTES", parameters={"binary_data_size": len(data)})]}
    assert parse_body(document, data).instances == [b"\xff\xd8", b""]


def test_nan_is_a_number():
    request = parse_body(b'{"inputs": [{"name": "x", "shape": [2], "datatype": "FP32", "data": [NaN, -Infinity]}]}')
    assert math.isnan(request.instances[0])
    assert request.instances[1] == -math.inf


def test_rows_of_several_inputs_are_objects():
    document = {
        "id": "7",
        "parameters": {"maxPredictions": 3, "binary_data_output": True},
        "inputs": [
            tensor("a", (2, 2), "FP32", parameters={"binary_data_size": 16}),
            tensor("b", (2,), "INT64", data=[5, 6]),
        ],
        "outputs": [
            {"name": "sum"},
            {"name": "twice", "parameters": {"binary_data": False, "classification": 2}},
        ],
    }
    request = parse_body(document, np.arange(4, dtype="<f4").tobytes(), PROGRAM)
    assert [{name: value.tolist() for name, value in row.items()} for row in request.instances] == [
        {"a": [0.0, 1.0], "b": 5},
        {"a": [2.0, 3.0], "b": 6},
    ]
    assert request.arguments == {"parameters": {"maxPredictions": 3}}
    assert request.wanted == Wanted("7", True, (Output("sum", True), Output("twice", False, 2)))


@pytest.mark.parametrize("shape", [[2], [2, 1], [2, 1, 1]])
def test_picture_in_json_is_base64(shape):
    document = {"inputs": [tensor("image", shape, "BYTES", data=[B64, B64])]}
    assert parse_body(document, signature=CLASSIFIER).instances == [b"picture", b"picture"]


def test_picture_in_binary_is_itself():
    data = encode_elements(b"picture")
    document = {"inputs": [tensor("image", (1, 1), "BYTES", parameters={"binary_data_size": len(data)})]}
    assert parse_body(document, data, CLASSIFIER).instances == [b"picture"]


def test_predictor_takes_inputs_of_any_name():
    request = parse_body({"inputs": [tensor("x", (1,), data=[1])], "outputs": [{"name": "y"}]}, b"", Signature((), ()))
    assert request.wanted.outputs == (Output("y", False),)


X = tensor(data=[1, 2])


@pytest.mark.parametrize(
    "parameters",
    [
        {"priority": 1, "timeout": 5_000_000},
        {"sequence_id": 42, "sequence_start": True, "sequence_end": False},
        {"sequence_id": "a", "headers": {"x": "y"}, "triton_enable_empty_final_response": True},
        None,
        {},
    ],
)
def test_names_and_parameters_of_other_servers_clients_mean_nothing(parameters):
    body = {"model_name": "m", "model_version": None, "inputs": [X], "parameters": parameters}
    request = parse_body(body)
    assert lists(request.instances) == [1.0, 2.0]
    assert request.arguments == {}


def test_own_parameters_stay():
    request = parse_body({"inputs": [X], "parameters": {"k": 1, "priority": 1, "binary_data_output": True}})
    assert request.arguments == {"parameters": {"k": 1}}
    assert request.wanted.binary


def test_byte_order_mark_is_skipped_in_the_json_part():
    assert lists(parse_body(b"\xef\xbb\xbf" + json.dumps({"inputs": [X]}).encode()).instances) == [1.0, 2.0]
    head = b"\xef\xbb\xbf" + json.dumps({"inputs": [tensor(parameters={"binary_data_size": 8})]}).encode()
    assert lists(parse_body(head, np.array([1, 2], dtype="<f4").tobytes()).instances) == [1.0, 2.0]


# Raw binary requests: the body is the one input


def parse_raw(body, *specs):
    return parse(
        Call("oip", body, "application/octet-stream", header_length=0), LIMITS, Signature(specs, ()) if specs else None
    )


NUMBERS_RAW = np.arange(6, dtype="<f4")


@pytest.mark.parametrize(
    ("spec", "body", "row"),
    [
        (TensorSpec("image", "bytes", ()), b"\xff\xd8{", b"\xff\xd8{"),
        (None, b"anything", b"anything"),
        (TensorSpec("x", "float32", (6,)), NUMBERS_RAW.tobytes(), NUMBERS_RAW.tolist()),
        (TensorSpec("x", "float32", (2, 3)), NUMBERS_RAW.tobytes(), NUMBERS_RAW.reshape(2, 3).tolist()),
        (TensorSpec("x", "float32", (-1, 3)), NUMBERS_RAW.tobytes(), NUMBERS_RAW.reshape(2, 3).tolist()),
        (TensorSpec("x", "float32", (2, -1)), NUMBERS_RAW.tobytes(), NUMBERS_RAW.reshape(2, 3).tolist()),
        (TensorSpec("x", "bool", (-1,)), b"\0\1\2", [False, True, True]),
        (TensorSpec("x", "int64", ()), (7).to_bytes(8, "little"), 7),
    ],
)
def test_raw_body_is_one_row(spec, body, row):
    request = parse_raw(body, *([spec] if spec else []))
    assert lists(request.instances) == [row]
    assert request.wanted == Wanted(None, True, ())


@pytest.mark.parametrize(
    ("specs", "body", "message"),
    [
        ([TensorSpec("image", "bytes", ())], b"", "the body is empty: send the bytes of one instance"),
        (PROGRAM.inputs, b"x", f"{HEADER_LENGTH}: 0 is for models of one input, and this one has a, b"),
        (
            [TensorSpec("x", "float32", (-1, -1))],
            b"abcd",
            f"{HEADER_LENGTH}: 0 is for inputs of one size to be found out, and x has [-1, -1]",
        ),
        ([TensorSpec("x", "float32", (2,))], b"abcd", "the body: shape [1, 2] of FP32 needs 8 bytes, got 4"),
        ([TensorSpec("x", "float32", (-1, 3))], b"abcdefgh", "the body: shape [1, 1, 3] of FP32 needs 12 bytes, got 8"),
        ([TensorSpec("x", "float32", (-1,))], b"abc", "the body: shape [1, 1] of FP32 needs 4 bytes, got 3"),
        ([TensorSpec("x", "float32", (-1, 3))], b"a" * 13, "the body: shape [1, 1, 3] of FP32 needs 12 bytes, got 13"),
    ],
)
def test_raw_body_that_does_not_fit_is_named(specs, body, message):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_raw(body, *specs)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b"{", "the body is not valid JSON: "),
        (b"\xff", "the body is not UTF-8 (byte 0)"),
        (b"[" * 100_000, "the body is nested too deeply"),
        ([], 'the body must be a JSON object with "inputs", not a list'),
        ({}, 'inputs: missing: send {"inputs": '),
        ({"instances": [1]}, "instances: unknown: known are id, parameters, inputs, outputs"),
        ({"inputs": []}, "inputs: missing"),
        ({"inputs": {"x": 1}}, "inputs: must be a list, not an object"),
        ({"inputs": [5]}, "inputs[0]: must be an object, not a number"),
        ({"input": [X]}, "input: unknown: did you mean inputs?"),
        ({"inputs": [X], "id": 5}, "id: must be a string, not a number"),
        ({"inputs": [X], "parameters": []}, "parameters: must be an object, not a list"),
        (
            {"inputs": [X], "parameters": {"binary_data_output": 1}},
            "parameters.binary_data_output: must be true or fal",
        ),
        ({"inputs": [{"shape": [1]}]}, "inputs[0].name: must be a string, not null"),
        ({"inputs": [X, X]}, "inputs[1].name: x is there twice"),
        ({"inputs": [tensor(dataa=[1])]}, "inputs[0].dataa: unknown: did you mean data?"),
        ({"inputs": [tensor()]}, "inputs[0].data: missing"),
        # shape
        ({"inputs": [tensor(shape=())]}, "inputs[0].shape: must have 1 to 32 sizes, the batch first"),
        ({"inputs": [tensor(shape=[1] * 33)]}, "inputs[0].shape: must have 1 to 32 sizes"),
        ({"inputs": [tensor(shape=(0,), data=[])]}, "inputs[0].shape: empty: each size must be at least 1"),
        ({"inputs": [tensor(shape=(1, 0), data=[])]}, "inputs[0].shape: empty: "),
        (
            {"inputs": [tensor(shape=(10**4000, 10**4000))]},
            "inputs[0].shape: each size must be at most 9223372036854775807",
        ),
        ({"inputs": [tensor(shape=(-1,))]}, "inputs[0].shape: must be a list of whole numbers, the batch first"),
        ({"inputs": [tensor(shape=(1.0,))]}, "inputs[0].shape: must be a list of whole numbers"),
        ({"inputs": [tensor(shape=(True,))]}, "inputs[0].shape: must be a list of whole numbers"),
        ({"inputs": [{"name": "x", "shape": 5}]}, "inputs[0].shape: must be a list of whole numbers"),
        ({"inputs": [tensor(shape=(4,), data=[1, 2, 3, 4])]}, "inputs: 4 rows are more than 3: split the request"),
        ({"inputs": [X, tensor("y", (1,), data=[1])]}, "inputs[1].shape: a batch of 1, but inputs[0] has one of 2"),
        # datatype
        ({"inputs": [tensor(datatype="BF16")]}, "inputs[0].datatype: BF16 is not supported: send FP32 or FP16"),
        ({"inputs": [tensor(datatype="float32")]}, "inputs[0].datatype: must be one of BOOL, UINT8, "),
        ({"inputs": [tensor(datatype=["FP32"])]}, "inputs[0].datatype: must be one of "),
        # data
        ({"inputs": [tensor(data=5)]}, "inputs[0].data: must be a list, not a number"),
        ({"inputs": [tensor(data=None)]}, "inputs[0].data: must be a list, not null"),
        ({"inputs": [tensor(data=[1])]}, "inputs[0].data: holds [1], but shape is [2]"),
        ({"inputs": [tensor(shape=(2, 2), data=[[1, 2, 3, 4]])]}, "inputs[0].data: holds [1, 4], but shape is [2, 2]"),
        (
            {"inputs": [tensor(shape=(9**20, 9**20), data=[1])]},
            "inputs[0].shape: each size must be at most 9223372036854775807",
        ),
        ({"inputs": [tensor(data=[[1], []])]}, "inputs[0].data[1]: ragged: "),
        ({"inputs": [tensor(data=[1, "2"])]}, "inputs[0].data[1]: must be a number, not a string"),
        ({"inputs": [tensor(data=[1, None])]}, "inputs[0].data[1]: must be a number, not null"),
        ({"inputs": [tensor(datatype="UINT8", data=[1, 256])]}, "inputs[0].data[1]: must be a whole number from 0 to"),
        ({"inputs": [tensor(datatype="BYTES", data=["a", 1])]}, "inputs[0].data[1]: must be a string, not a number"),
        ({"inputs": [tensor(datatype="BYTES", data=[["a"], "b"])]}, "inputs[0].data[1]: ragged: "),
        # binary
        ({"inputs": [tensor(parameters=5)]}, "inputs[0].parameters: must be an object, not a number"),
        (
            {"inputs": [tensor(parameters={"shared_memory_region": "r"})]},
            "inputs[0].parameters.shared_memory_region: there is no shared memory: send the data itself",
        ),
        (
            {"inputs": [tensor(data=[1, 2], parameters={"binary_data_size": 8})]},
            "inputs[0]: has both data and binary_data_size: send one of them",
        ),
        (
            {"inputs": [tensor(parameters={"binary_data_size": -1})]},
            "inputs[0].parameters.binary_data_size: must be a whole number of bytes",
        ),
        (
            {"inputs": [tensor(parameters={"binary_data_size": 8})]},
            "inputs[0].parameters.binary_data_size: 8 bytes, but only 0 are left in the body",
        ),
        # outputs
        ({"inputs": [X], "outputs": {}}, "outputs: must be a list, not an object"),
        ({"inputs": [X], "outputs": ["y"]}, "outputs[0]: must be an object, not a string"),
        ({"inputs": [X], "outputs": [{}]}, "outputs[0].name: must be a string, not null"),
        ({"inputs": [X], "outputs": [{"name": "y"}, {"name": "y"}]}, "outputs[1].name: y is there twice"),
        (
            {"inputs": [X], "outputs": [{"name": "y", "data": 1}]},
            "outputs[0].data: unknown: known are name, parameters",
        ),
        (
            {"inputs": [X], "outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
            "outputs[0].parameters.binary_data: must be true or false, not a number",
        ),
        (
            {"inputs": [X], "outputs": [{"name": "y", "parameters": {"classification": 0}}]},
            "outputs[0].parameters.classification: must be a whole number of at least 1",
        ),
        (
            {"inputs": [X], "outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
            "outputs[0].parameters.shared_memory_region: there is no shared memory",
        ),
    ],
)
def test_bad_request_names_field_and_fix(document, message):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_body(document)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("document", "signature", "message"),
    [
        ({"inputs": [tensor("imag", data=[1, 2])]}, CLASSIFIER, "inputs[0].name: imag is unknown: did you mean image?"),
        ({"inputs": [tensor("a", (1, 2), data=[1, 2])]}, PROGRAM, "inputs: b is missing: the model needs it"),
        (
            {"inputs": [tensor("a", (1,), "BYTES", data=["x"])]},
            PROGRAM,
            "inputs[0].datatype: must be FP32, not BYTES",
        ),
        (
            {"inputs": [tensor("image", (1,), "BYTES", data=["%"])]},
            CLASSIFIER,
            "inputs[0].data[0]: not valid base64 (",
        ),
        (
            {"inputs": [tensor("image", (1, 2), "BYTES", data=[B64, B64])]},
            CLASSIFIER,
            "inputs[0].data: must be one element for each of the 1 rows, not 2",
        ),
        (
            {"inputs": [tensor("image", (1,), "BYTES", data=[B64])], "outputs": [{"name": "probabilities"}]},
            CLASSIFIER,
            "outputs[0].name: probabilities is unknown: known are confidences",
        ),
    ],
)
def test_request_is_compared_with_the_signature(document, signature, message):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_body(document, signature=signature)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("shape", "datatype", "size", "binary", "message"),
    [
        ((2,), "FP32", 7, b"x" * 7, "inputs[0].parameters.binary_data_size: shape [2] of FP32 needs 8 bytes, got 7"),
        ((2,), "FP32", 8, b"x" * 7, "inputs[0].parameters.binary_data_size: 8 bytes, but only 7 are left in the body"),
        ((2,), "FP32", 8, b"x" * 9, "the body holds 1 bytes more than its inputs need"),
        ((9**20,), "FP32", 8, b"x" * 8, "inputs[0].shape: each size must be at most 9223372036854775807"),
        ((1,), "BYTES", 3, b"\0\0\0", "inputs[0]: the binary data end inside the length of element 0"),
        ((1,), "BYTES", 5, b"\2\0\0\0x", "inputs[0]: the binary data end inside element 0"),
        ((2,), "BYTES", 5, b"\1\0\0\0x", "inputs[0]: the shape needs 2 elements, the binary data hold only 1"),
        ((1,), "BYTES", 12, b"\0" * 12, "inputs[0]: the shape needs 1 elements, the binary data hold more"),
    ],
)
def test_bad_binary_is_named(shape, datatype, size, binary, message):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_body({"inputs": [tensor("x", shape, datatype, parameters={"binary_data_size": size})]}, binary)
    assert str(caught.value).startswith(message)


def test_header_longer_than_the_body_is_refused():
    with pytest.raises(InvalidArgumentError, match=f"{HEADER_LENGTH}: 3, but the body has 2 bytes"):
        parse(Call("oip", b"{}", header_length=3), LIMITS)


# Answers


class Given:
    """A result as it stands."""

    def __init__(self, labels=None, **tensors):
        self.labels = labels
        self._tensors = tensors

    def predictions(self):
        return []

    def tensors(self):
        return self._tensors


def answer(result, *outputs, count=2, name=None, binary=False):
    return shape(Request([0] * count, {}, "oip", Wanted(name, binary, outputs)), result, SERVED)


NUMBERS = np.array([[0.5, 0.25], [1.0, math.nan]], dtype=np.float32)


def test_answer_is_flat_json():
    reply = answer(Given(y=NUMBERS, n=np.array([1, 2])), name="7")
    assert reply.headers == {"Content-Type": "application/json"}
    assert (reply.code, reply.instances) == (200, 2)
    assert json.loads(reply.body) == {
        "model_name": "photos",
        "model_version": "2",
        "id": "7",
        "outputs": [
            {"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [0.5, 0.25, 1.0, None]},
            {"name": "n", "datatype": "INT64", "shape": [2], "data": [1, 2]},
        ],
    }


@pytest.mark.parametrize("binary", [True, False])
def test_numbers_that_are_none_are_counted_in_what_is_asked_for(binary):
    given = Given(a=NUMBERS, b=np.array([math.inf, 1]), n=np.array([1, 2]), t=np.array(["nan", "x"]))
    assert answer(given, binary=binary).non_finite == 2
    assert answer(given, Output("b", binary)).non_finite == 1
    assert answer(given, Output("n", binary), Output("t", binary)).non_finite == 0


def test_outputs_are_those_that_are_asked_for():
    said = json.loads(answer(Given(a=NUMBERS, b=NUMBERS), Output("b", False)).body)
    assert [output["name"] for output in said["outputs"]] == ["b"]
    assert "id" not in said


def test_answer_may_be_partly_binary():
    reply = answer(
        Given(a=NUMBERS, b=np.array([1, 2], dtype=">i2"), c=NUMBERS),
        Output("b", True),
        Output("a", False),
        Output("c", True),
    )
    length = int(reply.headers[HEADER_LENGTH])
    assert reply.headers["Content-Type"] == "application/octet-stream"
    first, _, third = json.loads(reply.body[:length])["outputs"]
    assert first == {"name": "b", "datatype": "INT16", "shape": [2], "parameters": {"binary_data_size": 4}}
    assert third["parameters"] == {"binary_data_size": 16}
    assert reply.body[length:] == b"\1\0\2\0" + NUMBERS.tobytes()


@pytest.mark.parametrize(
    "texts", [np.array(["a", "ü"]), np.array(["a", "ü".encode()], dtype=object), np.array([b"a", "ü".encode()])]
)
def test_text_is_bytes(texts):
    (output,) = json.loads(answer(Given(y=texts)).body)["outputs"]
    assert output == {"name": "y", "datatype": "BYTES", "shape": [2], "data": ["a", "ü"]}
    reply = answer(Given(y=texts), binary=True)
    assert reply.body[int(reply.headers[HEADER_LENGTH]) :] == encode_elements(b"a", "ü".encode())


@pytest.mark.parametrize(
    ("labels", "count", "texts"),
    [
        (("ant", "bee", "cat"), 2, ["0.750000:1:bee", "0.125000:0:ant", "0.500000:0:ant", "0.500000:2:cat"]),
        (("ant",), 1, ["0.750000:1", "0.500000:0"]),
        (None, 9, ["0.750000:1", "0.125000:0", "0.125000:2", "0.500000:0", "0.500000:2", "0.000000:1"]),
    ],
)
def test_classification_is_value_index_label(labels, count, texts):
    confidences = np.array([[0.125, 0.75, 0.125], [0.5, 0.0, 0.5]], dtype=np.float32)
    (output,) = json.loads(answer(Given(labels, y=confidences), Output("y", False, count)).body)["outputs"]
    assert output == {"name": "y", "datatype": "BYTES", "shape": [2, len(texts) // 2], "data": texts}


class Ragged(Given):
    def tensors(self):
        raise ValueError("all input arrays must have the same shape")


@pytest.mark.parametrize(
    ("result", "output", "family", "message"),
    [
        (Given(y=NUMBERS), Output("z", False), InvalidArgumentError, "outputs: z is unknown: known are y"),
        (Given(y=NUMBERS[0]), Output("y", False, 1), InvalidArgumentError, "outputs: classification: y holds no list"),
        (
            Given(y=np.array([b"\xff", b""])),
            Output("y", False),
            InvalidArgumentError,
            "outputs: y holds bytes that are n",
        ),
        (Given(y=NUMBERS[:1]), Output("y", False), InternalError, "the model gave y with shape [1, 2] for 2 rows"),
        (Given(y=np.array(1)), Output("y", False), InternalError, "the model gave y with shape [] for 2 rows"),
        (
            Given(y=np.array([1j, 2])),
            Output("y", False),
            InternalError,
            "the model gave y as complex128, which the prot",
        ),
        (
            Given(y=np.array([None, 1])),
            Output("y", False),
            InternalError,
            "the model gave y with a NoneType among text",
        ),
        (Ragged(), Output("y", False), InternalError, "the model's answer is no tensors: all input arrays must"),
    ],
)
def test_what_cannot_be_answered_is_named(result, output, family, message):
    with pytest.raises(family) as caught:
        answer(result, output)
    assert str(caught.value).startswith(message)


def test_model_without_a_name_has_one():
    reply = shape(Request([0], {}, "oip"), Given(y=np.array([1])), ServedModel("", "", "", ""))
    said = json.loads(reply.body)
    assert (said["model_name"], said["model_version"]) == ("model", "1")


# Anything at all

LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["x", "FP32", "BYTES", "BOOL", B64])
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=3), max_leaves=8)
PARAMETERS = st.dictionaries(st.sampled_from(["binary_data_size", "binary_data", "classification"]), LEAVES, max_size=2)
TENSOR = st.fixed_dictionaries(
    {"name": st.sampled_from(["image", "x"])},
    optional={
        "shape": VALUES | st.lists(st.integers(1, 3), min_size=1, max_size=3),
        "datatype": st.sampled_from(["FP32", "INT8", "UINT64", "BOOL", "BYTES", "FP16"]),
        "data": VALUES | st.lists(st.floats(), max_size=4) | st.lists(st.text(max_size=3), max_size=4),
        "parameters": PARAMETERS | VALUES,
    },
)
DOCUMENT = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, max_size=2) | VALUES},
    optional={"id": LEAVES, "parameters": PARAMETERS | VALUES, "outputs": st.lists(TENSOR, max_size=2) | VALUES},
)


@settings(derandomize=True, max_examples=500, deadline=None)
@given(DOCUMENT | VALUES, st.binary(max_size=40), st.sampled_from([None, CLASSIFIER, PROGRAM]), st.integers(0, 2))
def test_any_request_is_parsed_or_refused(document, binary, signature, cut):
    head = json.dumps(document).encode()
    length = None if cut == 2 else len(head) + cut
    code = 200
    try:
        request = parse(Call("oip", head + binary, header_length=length), LIMITS, signature)
        assert 1 <= len(request.instances) <= 3
    except ApiError as error:
        code = error.code
    assert code in (200, 400)
